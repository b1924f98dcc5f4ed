//! The epoch counter of a group and the switch that cuts.

use farside_region::intent::{IntentBlock, PageIndex};
use farside_region::{EpochId, GranuleSet, MapId, RegionIndex, RegionRange, RegionSet};
use thiserror::Error;

use crate::hold::Gate;
use crate::mutation::mutated;
use crate::side_buffer::SideBuffer;
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, Weak, fence};
use crate::volume::{CUT, Grace, SEALED, frozen_word};
use crate::{IntentOwner, Limits, Queue, Volume, VolumeConfig, Wakes};

/// What the volumes of a consistency group share: the epoch counter and the side buffer.
///
/// The counter is the cut: if A completed before B was issued then epoch(A) ≤ epoch(B), by the coherence of one atomic, over
/// any number of queues and volumes.
#[derive(Debug)]
pub struct Group {
    epoch: AtomicU64,
    /// Beside the counter: a write reads both.
    pub(crate) gate: Gate,
    side: Mutex<SideBuffer>,
    granule_bytes: u64,
    volumes: AtomicU32,
    /// Those that are open. Never locked on a queue's thread.
    open: Mutex<Vec<Weak<Volume>>>,
}

impl Group {
    /// A group whose volumes have granules of so many bytes.
    pub fn new(limits: &Limits, granule_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(1),
            gate: Gate::new(),
            side: Mutex::new(SideBuffer::new(limits.side_buffer_bytes, granule_bytes)),
            granule_bytes,
            volumes: AtomicU32::new(0),
            open: Mutex::new(Vec::new()),
        })
    }

    /// Opens a volume: the shared part, its queues, and the owner of its pages. `slots` returns what both slots of a page hold
    /// on disk, synced (all zero beyond the end of a file that is too short). Regions with a bit set are hot.
    ///
    /// T12: in a volume that grew, the old last region and all later ones are put before the owner; before serving, and before
    /// the header takes the new size, drive the owner until [`Volume::is_hot`] says so for them.
    ///
    /// # Panics
    /// When granules have another size than the group's.
    pub fn open_volume(
        self: &Arc<Self>,
        config: VolumeConfig,
        wakes: Wakes,
        map: MapId,
        slots: &mut dyn FnMut(PageIndex) -> [Box<IntentBlock>; 2],
    ) -> (Arc<Volume>, Vec<Queue>, IntentOwner) {
        assert_eq!(config.geometry.granule_bytes(), self.granule_bytes, "one granule size per group");
        let pages = IntentOwner::recover(&config, map, slots);
        let hot = |region| {
            let (page, place) = config.layout.place(region);
            pages[page.0 as usize].page.bits.get(place)
        };
        let ordinal = self.volumes.fetch_add(1, Ordering::Relaxed);
        let volume = Arc::new(Volume::new(self.clone(), ordinal, &config, wakes, &hot));
        {
            let mut open = self.open.lock().expect("nobody panics under this lock");
            open.retain(|volume| volume.strong_count() > 0);
            open.push(Arc::downgrade(&volume));
        }
        if config.volume_bytes_before < config.geometry.volume_bytes() {
            let old_last = config.volume_bytes_before.saturating_sub(1) / config.geometry.region_bytes();
            let old_last = old_last + u64::from(mutated!(volume, OldLastStaysCold));
            let mut grown = RegionSet::new();
            grown.insert_range(RegionRange { start: RegionIndex(old_last), count: config.geometry.region_count() - old_last });
            volume.heat(&grown);
        }
        let queues = (0..config.queues).map(|slot| Queue::new(volume.clone(), slot)).collect();
        let owner = IntentOwner::new(volume.clone(), map, pages);
        (volume, queues, owner)
    }

    #[inline]
    pub(crate) fn epoch(&self) -> EpochId {
        EpochId(self.epoch.load(Ordering::Acquire))
    }

    pub(crate) fn side(&self) -> MutexGuard<'_, SideBuffer> {
        self.side.lock().expect("nobody panics under this lock")
    }

    /// The volumes that are open.
    pub(crate) fn volumes(&self) -> Vec<Arc<Volume>> {
        self.open.lock().expect("nobody panics under this lock").iter().filter_map(Weak::upgrade).collect()
    }

    /// (granules in use or reserved, granules in all) of the side buffer.
    pub fn side_buffer_usage(&self) -> (usize, usize) {
        self.side().usage()
    }
}

/// What a switch makes of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Preserved by save-before-overwrite.
    Cut,
    /// The host may overwrite it while it is read.
    Pass,
}

/// A volume that takes part in a switch.
#[derive(Debug)]
pub struct Member {
    /// Which.
    pub volume: Arc<Volume>,
    /// What else belongs to the frozen epoch: regions to compare, unreadable runs to try again. Must be hot.
    pub also: GranuleSet,
}

/// A frozen epoch. Keep the sets until its layers are published: they say what may not cool.
#[derive(Debug)]
pub struct Frozen {
    /// The epoch that ended.
    pub epoch: EpochId,
    /// As begun; a cut may have overflowed since (ask [`Switcher::is_cut`]).
    pub kind: Kind,
    /// Its members.
    pub members: Vec<FrozenVolume>,
}

/// One volume of a frozen epoch.
#[derive(Debug)]
pub struct FrozenVolume {
    /// Which.
    pub volume: Arc<Volume>,
    /// What changed in it, with what the switch added.
    pub set: GranuleSet,
}

/// Why a switch cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The grace of the one before is not over: poll.
    #[error("a switch is under way")]
    InGrace,
    /// The cut of a member was not released yet (at most one per volume).
    #[error("member {0} still has a frozen epoch")]
    StillFrozen(usize),
}

/// A switch whose grace is not over.
#[derive(Debug)]
struct Pending {
    epoch: EpochId,
    kind: Kind,
    members: Vec<(Member, Grace)>,
}

/// A cut that was switched and not released.
#[derive(Debug)]
struct Cut {
    epoch: EpochId,
    volumes: Vec<Arc<Volume>>,
}

/// A volume whose cut is over: its memory goes back once nobody can be looking at it.
#[derive(Debug)]
struct Closing {
    volume: Arc<Volume>,
    grace: Grace,
}

/// The one switcher of a group; owned by its control thread.
///
/// ```text
/// begin ─► (grace) ─► Frozen ─► readers … End ─► conclude ─► Cut: announce the point, … published ─► release
///                        └─ overflow, demote ─► readers go on as a pass          └► Pass: nothing to release
/// ```
#[derive(Debug)]
pub struct Switcher {
    group: Arc<Group>,
    pending: Option<Pending>,
    cuts: Vec<Cut>,
    closing: Vec<Closing>,
}

impl Switcher {
    /// The switcher of a group; make one only.
    pub fn new(group: Arc<Group>) -> Self {
        Self { group, pending: None, cuts: Vec::new(), closing: Vec::new() }
    }

    /// The epoch that is open now.
    pub fn epoch(&self) -> EpochId {
        self.group.epoch()
    }

    /// Switches: from here on, requests belong to the next epoch. Returns the epoch that ended. Measure the clock right before
    /// and after. Poll (briefly spinning: parked writers wait for it) until [`Frozen`] comes.
    ///
    /// # Errors
    /// When one is under way, or a member's cut was not released. Nothing happened then.
    pub fn begin(&mut self, kind: Kind, members: Vec<Member>) -> Result<EpochId, SwitchError> {
        if self.pending.is_some() {
            return Err(SwitchError::InGrace);
        }
        let frozen = |m: &Member| m.volume.frozen.load(Ordering::Acquire) != 0;
        if let Some(i) = members.iter().position(frozen) {
            return Err(SwitchError::StillFrozen(i));
        }
        let epoch = self.group.epoch();
        // Everything that a writer of the next epoch will look for must be there before it can read the counter: the map it
        // marks in, and for a cut the word that makes it claim.
        for member in &members {
            if kind == Kind::Cut {
                member.volume.mark_open(&member.also);
                member.volume.frozen.store(frozen_word(epoch, CUT), Ordering::Release);
            }
            member.volume.turn_maps(epoch);
        }
        self.group.epoch.store(epoch.0 + 1, Ordering::Release);
        // Pairs with the fence after every announcement: a writer that we do not see marking reads the new epoch.
        fence(Ordering::SeqCst);
        let members = members.into_iter().map(|m| (Grace::begin(&m.volume), m)).map(|(grace, m)| (m, grace)).collect();
        self.pending = Some(Pending { epoch, kind, members });
        Ok(epoch)
    }

    /// Ends the grace when it can be, and frees what demoted and released cuts held. Call it while [`Switcher::is_busy`].
    pub fn poll(&mut self) -> Option<Frozen> {
        self.closing.retain_mut(|closing| {
            let over = closing.grace.is_over(&closing.volume);
            if over {
                free_cut(&closing.volume);
            }
            !over
        });
        let pending = self.pending.as_mut()?;
        let over = |volume: &Volume, grace: &mut Grace| grace.is_over(volume) || mutated!(volume, NoGrace);
        if !pending.members.iter_mut().all(|(member, grace)| over(&member.volume, grace)) {
            return None;
        }
        let Pending { epoch, kind, members } = self.pending.take().expect("there is one");
        Some(self.freeze(epoch, kind, members.into_iter().map(|(member, _)| member).collect()))
    }

    /// Every mark of the epoch is in its map, every write of it registered: the maps are final.
    fn freeze(&mut self, epoch: EpochId, kind: Kind, members: Vec<Member>) -> Frozen {
        let frozen: Vec<_> = members
            .into_iter()
            .map(|Member { volume, also }| {
                let mut set = volume.frozen_map().snapshot(&volume.masks, &volume.geometry);
                volume.settled.store(epoch.0 + 1, Ordering::Release);
                if mutated!(volume, ClearedInPlace) {
                    volume.open_map().clear(&volume.masks);
                }
                if kind == Kind::Pass {
                    // The set says all that a pass needs; the map is free for the next switch.
                    set.union_with(&also);
                    volume.frozen_map().clear(&volume.masks);
                }
                volume.ring_all();
                FrozenVolume { volume, set }
            })
            .collect();
        if kind == Kind::Cut {
            self.cuts.push(Cut { epoch, volumes: frozen.iter().map(|f| f.volume.clone()).collect() });
            if !self.is_cut(epoch) {
                self.demote(epoch);
            }
        }
        Frozen { epoch, kind, members: frozen }
    }

    /// Whether a grace or a release is under way.
    pub fn is_busy(&self) -> bool {
        self.pending.is_some() || !self.closing.is_empty()
    }

    /// Whether the epoch still is a cut on all its members.
    pub fn is_cut(&self, epoch: EpochId) -> bool {
        let kept = |volume: &Volume| {
            let word = volume.frozen.load(Ordering::Acquire);
            word == frozen_word(epoch, CUT) || word == frozen_word(epoch, SEALED)
        };
        match (&self.pending, self.cuts.iter().find(|cut| cut.epoch == epoch)) {
            (Some(p), _) if p.epoch == epoch => p.kind == Kind::Cut && p.members.iter().all(|(m, _)| kept(&m.volume)),
            (_, Some(cut)) => cut.volumes.iter().all(|v| kept(v)),
            _ => false,
        }
    }

    /// Gives the cut up: at once for all members (also during its grace, and after it was concluded, T1). Readers go on as a
    /// pass; what was saved and not yet taken is worthless, its newer content is in the open map. A no-op for others.
    pub fn demote(&mut self, epoch: EpochId) {
        if let Some(pending) = self.pending.as_ref().filter(|p| p.epoch == epoch) {
            // Its memory is freed when the grace is over.
            for (member, _) in &pending.members {
                member.volume.end_cut(epoch);
                member.volume.ring_all();
            }
        }
        let Some(i) = self.cuts.iter().position(|cut| cut.epoch == epoch) else {
            return;
        };
        let volumes = self.cuts.swap_remove(i).volumes;
        volumes.iter().for_each(|volume| _ = volume.end_cut(epoch));
        // Whoever announces itself after this fence sees that the cut is over; the others are waited for.
        fence(Ordering::SeqCst);
        for volume in volumes {
            volume.ring_all();
            self.closing.push(Closing { grace: Grace::begin(&volume), volume });
        }
    }

    /// All readers of the epoch returned [`crate::Next::End`]: is it a cut? After `Cut` it can no longer overflow, and the point
    /// may be announced; its claims stay until [`Switcher::release`] (T10).
    pub fn conclude(&mut self, epoch: EpochId) -> Kind {
        let seal = |volume: &Arc<Volume>| {
            let (from, to) = (frozen_word(epoch, CUT), frozen_word(epoch, SEALED));
            volume.frozen.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        match self.cuts.iter().find(|cut| cut.epoch == epoch) {
            Some(cut) if cut.volumes.iter().all(seal) => Kind::Cut,
            _ => {
                self.demote(epoch);
                Kind::Pass
            }
        }
    }

    /// Nothing of the epoch will be read under its claims again. A no-op for others.
    pub fn release(&mut self, epoch: EpochId) {
        self.demote(epoch);
    }
}

/// Gives back all that a volume's cut held. Nobody is pinned who saw it as a cut.
fn free_cut(volume: &Volume) {
    let map = volume.frozen_map();
    map.dirty_regions().for_each(|region| volume.claims.clear(region));
    map.clear(&volume.masks);
    let mut from = Some(0);
    while let Some(at) = from {
        from = volume.group.side().drop_some(volume.ordinal, at);
    }
    volume.frozen.store(0, Ordering::Release);
}
