//! The intent owner: the only one that builds and writes the pages of a volume's intent map.

use farside_region::{
    ByteOffset, MapId,
    intent::{IntentBlock, PageIndex, SlotIndex},
};

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
}

impl Commit {
    /// Always true, except under a mutation that tests switch on.
    pub fn needs_sync(&self) -> bool {
        todo!()
    }
}

/// The single owner of the pages. Its driver loops: `next_commit`; write and fdatasync; `committed`.
#[derive(Debug)]
pub struct IntentOwner {}

impl IntentOwner {
    /// Everything asked for since the last one, as one commit. `None` → sleep until [`crate::Wakes::owner`].
    ///
    /// # Panics
    /// While a commit is outstanding.
    pub fn next_commit(&mut self) -> Option<Commit> {
        todo!()
    }

    /// The outstanding commit was written and synced, or a write or the sync failed. A failure latches: the map is
    /// lost for this attach ([`crate::Tracking::Lost`]), and no more commits are made.
    ///
    /// # Panics
    /// When none is outstanding.
    pub fn committed(&mut self, _ok: bool) {
        todo!()
    }

    /// The map's id.
    pub fn map(&self) -> MapId {
        todo!()
    }
}
