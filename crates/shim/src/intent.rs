//! The intent owner: the only one that builds and writes the pages of a volume's intent map.

#[cfg(any(test, feature = "mutations"))]
use farside_region::intent::UncheckedPage;
use farside_region::intent::{IntentBlock, Page, PageBits, PageIndex, RecoveredPage, SlotIndex, recover_page};
use farside_region::{ByteOffset, MapId, RegionIndex};

use crate::epoch_map::{bits, words_of};
use crate::mutation::mutated;
use crate::sync::{Arc, Ordering};
use crate::{RegionState, Volume, VolumeConfig};

/// One page slot to write.
#[derive(Debug)]
pub struct PageWrite {
    /// Which page.
    pub page: PageIndex,
    /// Which of its slots.
    pub slot: SlotIndex,
    /// Where in the intent file.
    pub offset: ByteOffset,
    /// What.
    pub block: Box<IntentBlock>,
}

/// A group commit: write all slots, sync once, then [`IntentOwner::committed`].
#[derive(Debug)]
pub struct Commit {
    /// The slots, in any order.
    pub writes: Vec<PageWrite>,
    needs_sync: bool,
}

impl Commit {
    /// Always true, except under a mutation that tests switch on.
    pub fn needs_sync(&self) -> bool {
        self.needs_sync
    }
}

/// What the owner knows of one page. `bits` is what the newest slot holds, or what the outstanding commit writes.
#[derive(Debug)]
struct OwnedPage {
    seq: u64,
    newest: Option<SlotIndex>,
    bits: PageBits,
}

/// A commit whose result is awaited.
#[derive(Debug)]
struct Outstanding {
    pages: Vec<(PageIndex, SlotIndex)>,
    setting: Vec<RegionIndex>,
}

/// The single owner of the pages. Its driver loops: `next_commit`; write and fdatasync; `committed`.
///
/// Costs follow what was asked for, not the size of the volume: writers and cooler leave a bit per region and a bit per page,
/// and only pages with a bit are looked at.
#[derive(Debug)]
pub struct IntentOwner {
    volume: Arc<Volume>,
    map: MapId,
    pages: Vec<OwnedPage>,
    outstanding: Option<Outstanding>,
    failed: bool,
}

impl IntentOwner {
    /// The pages that a start found, and which regions of them are hot.
    pub(crate) fn recover(
        config: &VolumeConfig,
        map: MapId,
        slots: &mut dyn FnMut(PageIndex) -> [Box<IntentBlock>; 2],
    ) -> Vec<RecoveredPage> {
        (0..config.layout.page_count())
            .map(|p| {
                let [a, b] = slots(PageIndex(p));
                let page = recover_page(map, &config.layout, PageIndex(p), [&a.0, &b.0]);
                #[cfg(any(test, feature = "mutations"))]
                if config.mutations.has(crate::Mutation::TrustTornPage) {
                    let torn = |s: &IntentBlock| {
                        UncheckedPage(&s.0).check(map, &config.layout, PageIndex(p)).is_err() && s.0 != [0; 4096]
                    };
                    if torn(&a) || torn(&b) {
                        return RecoveredPage { page: Page { bits: PageBits::clear(), ..page.page }, ..page };
                    }
                }
                page
            })
            .collect()
    }

    pub(crate) fn new(volume: Arc<Volume>, map: MapId, pages: Vec<RecoveredPage>) -> Self {
        let owned = |p: RecoveredPage| OwnedPage { seq: p.page.seq, newest: p.newest, bits: p.page.bits };
        Self { volume, map, pages: pages.into_iter().map(owned).collect(), outstanding: None, failed: false }
    }

    /// The map's id.
    pub fn map(&self) -> MapId {
        self.map
    }

    /// Everything asked for since the last one, as one commit. `None` → sleep until [`crate::Wakes::owner`].
    ///
    /// One commit at a time, so a page's next write starts only after the sync of its previous one †: otherwise both slots of a
    /// page may be in the device's cache at once, and a power cut tears both.
    ///
    /// # Panics
    /// While a commit is outstanding.
    pub fn next_commit(&mut self) -> Option<Commit> {
        assert!(self.outstanding.is_none(), "one commit at a time");
        if self.failed {
            return None;
        }
        let commit = self.collect();
        if commit.is_some() {
            return commit;
        }
        self.volume.owner_bell.arm();
        self.collect()
    }

    fn collect(&mut self) -> Option<Commit> {
        let volume = self.volume.clone();
        let (mut writes, mut out) = (Vec::new(), Outstanding { pages: Vec::new(), setting: Vec::new() });
        for (w, word) in volume.asked_pages.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for bit in bits(word.swap(0, Ordering::AcqRel)) {
                let index = PageIndex((w * 64 + bit) as u64);
                if let Some(write) = self.build(index, &mut out.setting) {
                    out.pages.push((index, write.slot));
                    writes.push(write);
                }
            }
        }
        if writes.is_empty() {
            return None;
        }
        let needs_sync = !mutated!(volume, WriteBeforeSync) || !out.setting.is_empty();
        self.outstanding = Some(out);
        Some(Commit { writes, needs_sync })
    }

    /// The next image of a page, if it differs.
    fn build(&mut self, index: PageIndex, setting: &mut Vec<RegionIndex>) -> Option<PageWrite> {
        let volume = &*self.volume;
        let page = &mut self.pages[index.0 as usize];
        let range = volume.layout.page_run(index);
        let mut changed = false;
        for (word, mask) in words_of(range.start.0 as usize, range.count as usize) {
            let region = |bit: usize| RegionIndex((word * 64 + bit) as u64);
            let place = |bit: usize| ((word * 64 + bit) as u64 - range.start.0) as u32;
            for bit in bits(volume.ready[word].load(Ordering::Acquire) & mask) {
                // The bit goes only if the region is COOLING at this very moment: a writer that came first took it back, one
                // that comes now sees COLD and is set anew by the page's next image †.
                let zero = volume.ready_zero[word].load(Ordering::Acquire) >> bit & 1 == 1;
                let to = if zero { RegionState::ColdZero } else { RegionState::Cold };
                if volume.change(region(bit), RegionState::Cooling, to) {
                    page.bits.set(place(bit), false);
                    changed = true;
                }
                // Only now may the cooler make another entry for it (ABA †): a region that a writer took back, and that cooled
                // again without its flush, must not be cleared by this entry.
                if !mutated!(volume, ZeroFlagOutlives) {
                    volume.ready_zero[word].fetch_and(!(1 << bit), Ordering::AcqRel);
                }
                volume.ready[word].fetch_and(!(1 << bit), Ordering::AcqRel);
            }
            if volume.want[word].load(Ordering::Relaxed) & mask != 0 {
                for bit in bits(volume.want[word].fetch_and(!mask, Ordering::AcqRel) & mask) {
                    // A wish from before the map was made anew is fulfilled already: its region is hot.
                    if volume.region_state(region(bit)) == RegionState::Setting {
                        page.bits.set(place(bit), true);
                        setting.push(region(bit));
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            return None;
        }
        // The older or the invalid slot: the newest one stays whole whatever becomes of this write †.
        page.seq += 1;
        let newest = if mutated!(volume, NewestSlot) { page.newest.map(SlotIndex::other) } else { page.newest };
        let slot = newest.map_or(SlotIndex::A, SlotIndex::other);
        let image = Page { map: self.map, index, seq: page.seq, bits: page.bits.clone() };
        Some(PageWrite { page: index, slot, offset: volume.layout.page_offset(index, slot), block: image.encode(&volume.layout) })
    }

    /// The outstanding commit was written and synced, or a write or the sync failed. A failure latches: the map is
    /// lost for this attach ([`crate::Tracking::Lost`]), and no more commits are made.
    ///
    /// # Panics
    /// When none is outstanding.
    pub fn committed(&mut self, ok: bool) {
        let done = self.outstanding.take().expect("a commit is outstanding");
        if !ok {
            // Nothing is known of either slot now, so no bit of this map may be set or cleared by it again.
            self.failed = true;
            self.volume.lose_tracking();
            return;
        }
        for (index, slot) in done.pages {
            self.pages[index.0 as usize].newest = Some(slot);
        }
        let waiters = !done.setting.is_empty();
        for region in done.setting {
            let was = self.volume.change(region, RegionState::Setting, RegionState::Hot);
            assert!(was, "only the owner ends SETTING");
        }
        if waiters {
            self.volume.ring_all();
            self.volume.tell_heated();
        }
    }

    /// The file that holds the map failed beside a commit (its header could not be written): nothing of it is relied on any more.
    pub fn lose(&mut self) {
        if !self.failed {
            self.failed = true;
            self.volume.lose_tracking();
        }
    }

    /// A map of a new id has been made in the failed one's place, durably: *every* bit set, sequence number 1 and slot B the
    /// newest of every page. Every region is hot from now on and tracking is sound again. What was written in between may be
    /// marked in no map that a crash would have left, so whoever calls this has everything compared (T3).
    ///
    /// # Panics
    /// While a commit is outstanding.
    pub fn made_anew(&mut self, map: MapId) {
        assert!(self.outstanding.is_none(), "no commit is under way on a failed map");
        for (index, page) in self.pages.iter_mut().enumerate() {
            let bits = PageBits::first(self.volume.layout.page_run(PageIndex(index as u64)).count);
            *page = OwnedPage { seq: 1, newest: Some(SlotIndex::B), bits };
        }
        self.map = map;
        self.failed = false;
        self.volume.regain_tracking();
    }
}
