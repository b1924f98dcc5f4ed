//! What a publication puts into a bucket before its record, by a thread that nobody waits for.
//!
//! Segments take as long as the line does. While they go the group is heard, and what comes meanwhile is staged: the thread that owns the group
//! plans what must be there ([`GroupStore::plan_upload`]), another one sends it ([`Upload::run`]), and [`GroupStore::append_all`] finds it done.
//!
//! Invariants:
//! - it changes nothing of what an append does: what it did not bring, or brought for a layer that was dropped meanwhile, the append puts or
//!   refuses by itself;
//! - whatever its answers, it is known before the first request what may lie in the bucket by it, so that what no record comes to name goes.

use std::sync::Arc;

use farside_ledger::{Body, PartEntry};
use farside_region::Name;

use super::packs::{Pack, places_in, put_all};
use super::{GroupStore, Landing, Segments};
use crate::error::Result;
use crate::liveness::PartName;

/// What is to be put.
#[derive(Debug)]
pub struct Upload {
    segments: Arc<Segments>,
    landing: Arc<Landing>,
    packs: Vec<Pack>,
    /// Parts that lie in none.
    alone: Vec<(Name, PartName, PartEntry)>,
}

/// What became of it.
#[derive(Debug)]
pub struct Uploaded {
    packs: Vec<(Pack, Result<()>)>,
    alone: Vec<(Name, PartName)>,
    put_alone: Result<()>,
}

impl Upload {
    /// Puts it. Blocks as long as that takes.
    pub fn run(self) -> Uploaded {
        let Self { segments, landing, packs, alone } = self;
        let answers = put_all(&segments, &packs.iter().collect::<Vec<_>>());
        let parts: Vec<(&Name, PartName, &PartEntry)> =
            alone.iter().map(|(volume, part, entry)| (volume, *part, entry)).collect();
        let put_alone = landing.adopt(&segments, &parts);
        let alone = alone.into_iter().map(|(volume, part, _)| (volume, part)).collect();
        Uploaded { packs: packs.into_iter().zip(answers).collect(), alone, put_alone }
    }
}

impl GroupStore {
    /// What must be in the bucket before these records, and is not. `None`: nothing, or there is no bucket.
    ///
    /// # Errors
    /// [`StoreError::LedgerTorn`](crate::StoreError::LedgerTorn), [`StoreError::Uncertain`](crate::StoreError::Uncertain),
    /// [`StoreError::Record`](crate::StoreError::Record): they could not be appended.
    pub fn plan_upload(&mut self, bodies: &[&Body]) -> Result<Option<Upload>> {
        if self.shared.is_dir {
            return Ok(None);
        }
        self.usable()?;
        let packs = self.plan_packs(bodies.iter().copied())?;
        let places = places_in(&packs);
        let mut alone = Vec::new();
        for (entry, volume, _) in self.new_layers(bodies.iter().copied())? {
            let parts = (0..).zip(&entry.parts).map(|(number, part)| (PartName { layer: entry.key, number }, *part));
            let unsent =
                parts.filter(|(part, known)| !places.contains_key(part) && self.landing.unsent(&volume, part, known).is_some());
            alone.extend(unsent.map(|(part, known)| (volume.clone(), part, known)));
        }
        let packs: Vec<Pack> = packs.into_iter().filter(Pack::is_new).collect();
        if packs.is_empty() && alone.is_empty() {
            return Ok(None);
        }
        self.await_packs(packs.iter());
        self.awaited.extend(alone.iter().map(|(volume, part, _)| (*part, volume.clone())));
        Ok(Some(Upload { segments: Arc::clone(&self.segments), landing: Arc::clone(&self.landing), packs, alone }))
    }

    /// Notes what was put, perhaps for an opening of the group before this one.
    ///
    /// # Errors
    /// What the service, or the file system, said of one of them.
    pub fn uploaded(&mut self, uploaded: Uploaded) -> Result<()> {
        let Uploaded { packs, alone, put_alone } = uploaded;
        self.await_packs(packs.iter().map(|(pack, _)| pack));
        self.awaited.extend(alone.into_iter().map(|(volume, part)| (part, volume)));
        self.packs_were_put(packs).and(put_alone)
    }

    /// Notes what may have been put for another opening of the store, perhaps of an older moment of it: it is put again where it is needed, and what
    /// no record comes to name goes.
    pub fn uploaded_elsewhere(&mut self, uploaded: Uploaded) {
        self.await_packs(uploaded.packs.iter().map(|(pack, _)| pack));
        self.awaited.extend(uploaded.alone.into_iter().map(|(volume, part)| (part, volume)));
    }
}
