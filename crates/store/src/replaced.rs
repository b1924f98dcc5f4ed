//! Parts that merges replaced, as long as a replay may stop before the merge. Pure.
//!
//! A map record is all that says what took a part's place, and a record can be torn: replay then ends before it, and the points that are left
//! are laid from the old parts. A checkpoint ends that: replay that begins there knows the map whatever became of the records. So an old part
//! is *replaced* until a durable checkpoint, root and state, covers the slot of its map, and only then given up for good.
//!
//! What an image begins with comes from a checkpoint, so only maps after that are in here.

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::PackId;
use farside_region::Slot;

use crate::liveness::{Part, PartName};

/// The replaced parts of one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replaced {
    by_map: BTreeMap<Slot, Vec<Part>>,
    names: BTreeSet<PartName>,
    /// Packs that such parts lie in, and the slot of the last map that replaced one.
    packs: BTreeMap<PackId, Slot>,
    bytes: u64,
}

impl Replaced {
    /// A map in that slot replaced these.
    pub(crate) fn add(&mut self, slot: Slot, parts: Vec<Part>) {
        for part in &parts {
            self.names.insert(part.name);
            self.bytes += part.bytes;
            if let Some(place) = part.place {
                self.packs.insert(place.pack, slot); // slots ascend
            }
        }
        self.by_map.entry(slot).or_default().extend(parts);
    }

    /// A durable checkpoint covers all slots below this one: takes out what its maps replaced.
    pub(crate) fn covered(&mut self, end: Slot) -> Vec<Part> {
        let left = self.by_map.split_off(&end);
        let gone: Vec<Part> = std::mem::replace(&mut self.by_map, left).into_values().flatten().collect();
        for part in &gone {
            self.names.remove(&part.name);
            self.bytes -= part.bytes;
        }
        self.packs.retain(|_, slot| *slot >= end);
        gone
    }

    pub(crate) fn has(&self, part: &PartName) -> bool {
        self.names.contains(part)
    }

    pub(crate) fn has_in(&self, pack: &PackId) -> bool {
        self.packs.contains_key(pack)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
