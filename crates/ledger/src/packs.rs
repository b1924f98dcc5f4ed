//! Packs: objects that hold several parts end to end, and where in them each part lies.
//!
//! A record of kind *pack places* comes before the records of the layers, in the same object, so it is in the ledger with them or not at
//! all. A place is only where to look: what is found there counts if it is the part that the layer's record names. Invariants:
//! - what a record said of a layer that did not come in within the record's own run of slots is forgotten;
//! - a pack is known from the first part in it that was published until the last of them was given up a day ago, by the age clock;
//! - the name of a pack says from which slot on it may be named. Once the head is far enough beyond, nobody can name it any more.

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{LayerKey, Slot};
use serde::{Deserialize, Serialize};

use crate::batch::BATCH_SLOTS;
use crate::record::{LayerEntry, PrunedParts};
use crate::verdict::Malformed;

/// The name of a pack: the slot from which on it may be named, and eight random bytes. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    /// Records in so many slots may name a pack: in its own, and in those after it.
    pub const SLOTS: u64 = BATCH_SLOTS;

    /// One that is put for a record in that slot.
    pub fn new(slot: Slot, random: [u8; 8]) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&slot.0.to_be_bytes());
        id[8..].copy_from_slice(&random);
        Self(id)
    }

    /// The first slot in which a record may name it.
    pub fn slot(&self) -> Slot {
        let (slot, _) = self.0.split_first_chunk().expect("it has sixteen bytes");
        Slot(u64::from_be_bytes(*slot))
    }

    /// Whether a record in that slot may name it.
    pub fn may_be_named_in(&self, slot: Slot) -> bool {
        slot.0.checked_sub(self.slot().0).is_some_and(|after| after < Self::SLOTS)
    }

    /// Whether no layer can come to lie in it any more if none does: the record that names it is at most so many slots after its own, the
    /// layers are within that record's run.
    pub fn is_decided(&self, next: Slot) -> bool {
        next.0.checked_sub(self.slot().0).is_some_and(|after| after >= Self::SLOTS + BATCH_SLOTS)
    }
}

/// Where the parts of layers lie that the records after this one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackPlaces {
    /// At least one.
    pub packs: Vec<PackedParts>,
}

/// What lies in one pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedParts {
    /// Which.
    pub pack: PackId,
    /// At least one.
    pub parts: Vec<PackedPart>,
}

/// Where one part begins; its bytes are in its layer's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedPart {
    /// Of which layer.
    pub layer: LayerKey,
    /// Its number in it.
    pub number: u32,
    /// Its first byte in the pack.
    pub offset: u64,
}

/// Where a part lies that has no object of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// In which pack.
    pub pack: PackId,
    /// Its first byte there.
    pub offset: u64,
}

/// What is known of a pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUse {
    /// Parts in it that are not given up, or were within the last day of the age clock.
    pub parts: u32,
    /// Bytes of all parts that were ever published in it.
    pub bytes: u64,
    /// Of them, those of parts that are not given up.
    pub living_bytes: u64,
}

/// A part by its layer and number.
type Part = (LayerKey, u32);

/// What replay knows of packs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packs {
    /// Of parts whose layers are to come, in this run of slots.
    said: BTreeMap<Part, Place>,
    /// Of parts that were published, with their bytes, until a day after they were given up.
    #[serde(deserialize_with = "crate::sorted::map")]
    places: BTreeMap<Part, (Place, u64)>,
    #[serde(deserialize_with = "crate::sorted::map")]
    uses: BTreeMap<PackId, PackUse>,
}

impl Packs {
    pub(crate) fn judge(slot: Slot, said: &PackPlaces) -> Result<(), Malformed> {
        if said.packs.is_empty() || said.packs.iter().any(|packed| packed.parts.is_empty()) {
            return Err(Malformed::NoMembers);
        }
        let ids: BTreeSet<PackId> = said.packs.iter().map(|packed| packed.pack).collect();
        let parts = || said.packs.iter().flat_map(|packed| &packed.parts);
        let named: BTreeSet<Part> = parts().map(|part| (part.layer, part.number)).collect();
        if ids.len() < said.packs.len() || named.len() < parts().count() {
            return Err(Malformed::Twice);
        }
        match ids.iter().all(|id| id.may_be_named_in(slot)) {
            true => Ok(()),
            false => Err(Malformed::Pack),
        }
    }

    /// A record comes in, in that slot.
    pub(crate) fn reach(&mut self, slot: Slot) {
        if slot.0.is_multiple_of(BATCH_SLOTS) {
            self.said.clear();
        }
    }

    pub(crate) fn say(&mut self, said: &PackPlaces) {
        let of = |packed: &PackedParts| {
            let pack = packed.pack;
            packed
                .parts
                .iter()
                .map(move |part| ((part.layer, part.number), Place { pack, offset: part.offset }))
                .collect::<Vec<_>>()
        };
        self.said = said.packs.iter().flat_map(of).collect();
    }

    /// A layer was accepted.
    pub(crate) fn publish(&mut self, entry: &LayerEntry) {
        for (number, part) in (0..).zip(&entry.parts) {
            let Some(place) = self.said.remove(&(entry.key, number)) else { continue };
            self.places.insert((entry.key, number), (place, part.bytes));
            let pack = self.uses.entry(place.pack).or_default();
            pack.parts += 1;
            pack.bytes = pack.bytes.saturating_add(part.bytes);
            pack.living_bytes = pack.living_bytes.saturating_add(part.bytes);
        }
    }

    /// Parts were given up.
    pub(crate) fn give_up(&mut self, given_up: &[PrunedParts]) {
        for part in parts_of(given_up) {
            if let Some((place, bytes)) = self.places.get(&part)
                && let Some(pack) = self.uses.get_mut(&place.pack)
            {
                pack.living_bytes = pack.living_bytes.saturating_sub(*bytes);
            }
        }
    }

    /// That was a day ago.
    pub(crate) fn forget(&mut self, given_up: &[PrunedParts]) {
        for part in parts_of(given_up) {
            let Some((place, _)) = self.places.remove(&part) else { continue };
            if let Some(pack) = self.uses.get_mut(&place.pack) {
                pack.parts -= 1;
                if pack.parts == 0 {
                    self.uses.remove(&place.pack);
                }
            }
        }
    }

    pub(crate) fn place(&self, layer: &LayerKey, number: u32) -> Option<Place> {
        self.places.get(&(*layer, number)).map(|(place, _)| *place)
    }

    /// Where a part will lie whose layer comes in with the record in that slot.
    pub(crate) fn place_in(&self, slot: Slot, layer: &LayerKey, number: u32) -> Option<Place> {
        let over = slot.0.is_multiple_of(BATCH_SLOTS);
        self.said.get(&(*layer, number)).copied().filter(|_| !over)
    }

    pub(crate) fn uses(&self) -> &BTreeMap<PackId, PackUse> {
        &self.uses
    }
}

fn parts_of(given_up: &[PrunedParts]) -> impl Iterator<Item = Part> + '_ {
    given_up.iter().flat_map(|pruned| pruned.parts.iter().map(|&number| (pruned.layer, number)))
}
