//! Cooling: taking back the intent bits of regions that nobody mentions.

use farside_region::{RegionIndex, RegionSet};

use crate::in_flight::InFlight;
use crate::mutation::mutated;
use crate::sync::{Arc, Ordering, fence};
use crate::volume::Grace;
use crate::{RegionState, Tracking, Volume};

/// What the cooler needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoolStep {
    /// Nothing under way.
    Idle,
    /// Writers are in their marks; poll again.
    Wait,
    /// A backing flush: [`Cooler::flush_begin`], flush, [`Cooler::flush_end`]. (Or poll again later: a host's flush that
    /// covers it is used.)
    Flush,
    /// A durable header whose position covers the records that published these regions; then [`Cooler::header_durable`].
    Header,
}

/// How far a batch has come.
#[derive(Debug)]
enum Stage {
    Idle,
    /// Regions are COOLING; writers that saw them hot may still be marking.
    Grace(Grace),
    /// Nobody mentions them; a flush that begins as `after + 1` or later covers them.
    Flush {
        after: u64,
        failures: u64,
    },
    Flushing {
        flush: u64,
        failures: u64,
    },
    /// Covered; but a flush that overlapped a failing one may have been told "success" in its place †.
    Settle {
        upto: u64,
        failures: u64,
    },
    Header,
}

/// The cooler of one volume; owned by the control thread. One batch at a time.
///
/// ```text
/// begin ─► grace ─► who mentions them? ─► flush ─► no flush failed beside it ─► header ─► the pages' owner
/// ```
/// At any time a writer takes a region back with one CAS; a failed flush takes back all.
#[derive(Debug)]
pub struct Cooler {
    volume: Arc<Volume>,
    stage: Stage,
    batch: Vec<(RegionIndex, bool)>,
}

impl Cooler {
    /// The cooler of a volume; make one only.
    pub fn new(volume: Arc<Volume>) -> Self {
        Self { volume, stage: Stage::Idle, batch: Vec::new() }
    }

    /// Whether no batch is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Begins a batch: those of the candidates that are hot, not flush-failed, not in the volume's own maps, and not still
    /// waiting at the owner. `zero`: the published content of the whole region is zero and this attach read or zeroed
    /// it (T8). Returns how many are cooling.
    ///
    /// # Panics
    /// While a batch is under way.
    pub fn begin(&mut self, candidates: &mut dyn Iterator<Item = (RegionIndex, bool)>) -> usize {
        assert!(self.is_idle(), "one batch at a time");
        let volume = &*self.volume;
        if volume.tracking() != Tracking::Sound {
            return 0;
        }
        for (region, zero) in candidates {
            let waits_at_owner = volume.ready[region.0 as usize / 64].load(Ordering::Acquire) >> (region.0 % 64) & 1 == 1;
            let waits_at_owner = waits_at_owner && !mutated!(volume, CoolBesideEntry);
            if !waits_at_owner && !self.volume_mentions(region) && volume.change(region, RegionState::Hot, RegionState::Cooling) {
                self.batch.push((region, zero));
            }
        }
        if !self.batch.is_empty() {
            // Pairs with the fence after every announcement: a writer that we do not see marking sees COOLING.
            fence(Ordering::SeqCst);
            self.stage = Stage::Grace(Grace::begin(volume));
        }
        self.batch.len()
    }

    /// Whether the volume itself mentions a region: in its maps, or as hot when a flush failed.
    fn volume_mentions(&self, region: RegionIndex) -> bool {
        !mutated!(self.volume, CoolMentioned) && (self.volume.is_mapped(region) || !self.volume.may_cool(region))
    }

    /// Goes on. `mentioned`: whether replication still mentions a region: layers not known published, compare set, unreadable
    /// runs, frozen sets. It must speak of *now*.
    pub fn poll(&mut self, mentioned: &mut dyn FnMut(RegionIndex) -> bool) -> CoolStep {
        loop {
            match &mut self.stage {
                Stage::Idle => return CoolStep::Idle,
                Stage::Grace(grace) => {
                    if !grace.is_over(&self.volume) {
                        return CoolStep::Wait;
                    }
                    self.drop_mentioned(mentioned);
                    let (after, failures) = (self.volume.flushes_begun(), self.volume.flush_failures());
                    self.stage = match self.batch.is_empty() {
                        true => Stage::Idle,
                        false if mutated!(self.volume, ClearWithoutFlush) => Stage::Settle { upto: 0, failures },
                        false => Stage::Flush { after, failures },
                    };
                }
                &mut Stage::Flush { after, failures } => {
                    if self.volume.flush_ok_newest() <= after {
                        return CoolStep::Flush;
                    }
                    self.stage = Stage::Settle { upto: self.volume.flushes_begun(), failures };
                }
                Stage::Flushing { .. } => return CoolStep::Wait,
                &mut Stage::Settle { upto, failures } => {
                    if mutated!(self.volume, FlushBesideFailedCounts) {
                        self.stage = Stage::Header;
                        continue;
                    }
                    if self.volume.is_flush_under_way(upto) {
                        return CoolStep::Wait;
                    }
                    if self.volume.flush_failures() != failures && !mutated!(self.volume, ClearWithoutFlush) {
                        self.give_up();
                    } else {
                        self.stage = Stage::Header;
                    }
                }
                Stage::Header if mutated!(self.volume, ClearBeforeHeader) => self.hand_over(),
                Stage::Header => return CoolStep::Header,
            }
        }
    }

    /// After the grace whoever had seen a region hot has marked it and is registered: ask again who mentions it.
    fn drop_mentioned(&mut self, mentioned: &mut dyn FnMut(RegionIndex) -> bool) {
        let volume = self.volume.clone();
        let mut written = RegionSet::new();
        for (run, _) in volume.in_flight.iter().flat_map(InFlight::writes) {
            written.insert_range(volume.geometry.regions_of(run));
        }
        let batch = std::mem::take(&mut self.batch);
        self.batch = batch
            .into_iter()
            .filter(|&(region, _)| {
                let is_mentioned = self.volume_mentions(region)
                    || (!mutated!(volume, CoolMentioned) && (written.contains(region) || mentioned(region)));
                if is_mentioned {
                    volume.change(region, RegionState::Cooling, RegionState::Hot);
                }
                !is_mentioned && volume.region_state(region) == RegionState::Cooling
            })
            .collect();
    }

    /// The flush is about to be issued.
    ///
    /// # Panics
    /// When none is asked for.
    pub fn flush_begin(&mut self) {
        let Stage::Flush { failures, .. } = self.stage else {
            panic!("no flush is asked for");
        };
        self.stage = Stage::Flushing { flush: self.volume.flush_begin(), failures };
    }

    /// The flush ended. After a failure the batch is given up.
    ///
    /// # Panics
    /// When none was begun.
    pub fn flush_end(&mut self, ok: bool) {
        self.settle(|volume, flush| volume.flush_end(flush, ok));
    }

    /// The flush failed, and whoever saw it end has said so to the volume, before anything was shown that ended after it
    /// ([`Volume::flush_end`] of a flush of his own). † A failure that is counted twice is told of twice, and by the second time another
    /// one is called told of which nobody heard.
    ///
    /// # Panics
    /// When none was begun.
    pub fn flush_failed(&mut self) {
        self.settle(Volume::flush_over);
    }

    fn settle(&mut self, end: impl FnOnce(&Volume, u64)) {
        let Stage::Flushing { flush, failures } = self.stage else {
            panic!("no flush was begun");
        };
        end(&self.volume, flush);
        self.stage = Stage::Settle { upto: self.volume.flushes_begun(), failures };
    }

    /// The header is durable: the batch goes to the owner.
    ///
    /// # Panics
    /// When no header is asked for.
    pub fn header_durable(&mut self) {
        assert!(matches!(self.stage, Stage::Header), "no header is asked for");
        self.hand_over();
    }

    fn hand_over(&mut self) {
        for (region, zero) in std::mem::take(&mut self.batch) {
            if self.volume.region_state(region) == RegionState::Cooling {
                if zero {
                    self.volume.ready_zero[region.0 as usize / 64].fetch_or(1 << (region.0 % 64), Ordering::AcqRel);
                }
                self.volume.post(&self.volume.ready, region);
            }
        }
        self.stage = Stage::Idle;
        self.volume.owner_bell.ring();
    }

    fn give_up(&mut self) {
        for (region, _) in std::mem::take(&mut self.batch) {
            self.volume.change(region, RegionState::Cooling, RegionState::Hot);
        }
        self.stage = Stage::Idle;
    }
}
