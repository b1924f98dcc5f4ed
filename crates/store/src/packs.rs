//! Packs: the parts of one publication, end to end in few objects, where each object is a request that is paid for.
//!
//! Only in a bucket. What a record says of packs, and which of them are needed, `ledger` knows; here they are made, and deleted. Invariants:
//! - a pack is durable before the record that names it is put, and its name, drawn at random, is never used for another;
//! - a pack goes when no part in it is needed, for as long as the rule for parts says, and nobody reads what may lie in it;
//! - one that no record names goes only when no record can name it any more, however late a request comes to pass: its name says from
//!   which slot on it may be named, and slots are decided once. A clock has no say in that.
//!
//! A part that is alone has an object of its own, and so has a large one where one pack is not enough.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use farside_ledger::{Body, PackId, PackPlaces, PackedPart, PackedParts, PartEntry, Place};
use farside_region::mutation;

use super::{GroupStore, LISTED_AT_ONCE, ORPHANS_AFTER_MS, Segments, Unseen};
use crate::backend::{Backend, Created, block_on, end_to_end};
use crate::error::{Result, StoreError};
use crate::landing::check_landed;
use crate::leases::Held;
use crate::liveness::PartName;
use crate::names::{GroupNames, GroupObject};
use crate::replay::at_once;
use crate::store::random;

/// The largest pack.
pub(crate) const PACK_BYTES_MAX: u64 = 64 << 20;
/// Where one pack is not enough, a part of so many bytes has an object of its own: half a pack, so that all but the last are half full.
const ALONE_BYTES_MIN: u64 = PACK_BYTES_MAX / 2;

/// One that a record is to name.
#[derive(Clone, Debug)]
pub(crate) struct Pack {
    id: PackId,
    parts: Vec<Packed>,
    /// It was put by an attempt whose record failed.
    is_there: bool,
}

impl Pack {
    /// Whether it is to be put.
    pub(super) fn is_new(&self) -> bool {
        !self.is_there
    }
}

#[derive(Clone, Debug)]
struct Packed {
    name: PartName,
    entry: PartEntry,
    offset: u64,
    file: PathBuf,
}

/// What a process knows of the packs of its group.
#[derive(Debug, Default)]
pub(super) struct Packs {
    /// Parts in packs that are there, and that no record names which we know of.
    put: BTreeMap<PartName, (PartEntry, Place)>,
    /// Packs that records named, as long as something of them is needed.
    named: BTreeSet<PackId>,
    /// Packs that a record may still name, and when they came to be.
    awaited: BTreeMap<PackId, Option<i64>>,
    /// Packs to delete.
    dead: BTreeMap<PackId, Why>,
    /// Those of them that may go: nobody reads them, and nobody will.
    cleared: BTreeSet<PackId>,
    /// What of the bucket's packs nobody has looked at: those after this one.
    pub(super) unseen: Option<Unseen>,
}

/// Why a pack is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// All parts in it were given up, the last of them a day ago.
    GivenUp,
    /// No record names it, and none can.
    Unnamed {
        /// When it came to be, by the clock of the service; `None`: not known yet.
        created_ms: Option<i64>,
    },
}

/// Where parts will lie once their record is in.
pub(super) fn places_in(packs: &[Pack]) -> BTreeMap<PartName, Place> {
    let of = |pack: &Pack| {
        let id = pack.id;
        pack.parts.iter().map(move |part| (part.name, Place { pack: id, offset: part.offset })).collect::<Vec<_>>()
    };
    packs.iter().flat_map(of).collect()
}

/// What the record says of them.
pub(super) fn said_of(packs: &[Pack]) -> Body {
    let part = |part: &Packed| PackedPart { layer: part.name.layer, number: part.name.number, offset: part.offset };
    let of = |pack: &Pack| PackedParts { pack: pack.id, parts: pack.parts.iter().map(part).collect() };
    Body::PackPlaces(PackPlaces { packs: packs.iter().map(of).collect() })
}

impl GroupStore {
    /// Which of the parts that these records publish are to lie in packs. What an earlier attempt has put is not put again.
    /// None where those records fill their object: it has no room for the one that says where packs lie.
    pub(super) fn plan_packs<'b>(&self, bodies: impl ExactSizeIterator<Item = &'b Body>) -> Result<Vec<Pack>> {
        if self.shared.is_dir || bodies.len() as u64 >= self.room() {
            return Ok(Vec::new());
        }
        let slot = self.state().next_slot();
        let mut packs: BTreeMap<PackId, Pack> = BTreeMap::new();
        let mut fitting: Vec<Packed> = Vec::new();
        for (entry, volume, _) in self.new_layers(bodies)? {
            for (number, part) in (0..).zip(&entry.parts) {
                let name = PartName { layer: entry.key, number };
                let put = self.packs.put.get(&name).filter(|(known, _)| known == part).map(|(_, place)| *place);
                if let Some(place) = put.filter(|place| place.pack.may_be_named_in(slot)) {
                    let pack = packs.entry(place.pack);
                    let pack = pack.or_insert_with(|| Pack { id: place.pack, parts: Vec::new(), is_there: true });
                    pack.parts.push(Packed { name, entry: *part, offset: place.offset, file: PathBuf::new() });
                } else if let Some(file) = self.landing.unsent(&volume, &name, part) {
                    fitting.push(Packed { name, entry: *part, offset: 0, file });
                }
            }
        }
        if fitting.iter().map(|part| part.entry.bytes).sum::<u64>() > PACK_BYTES_MAX {
            fitting.retain(|part| part.entry.bytes < ALONE_BYTES_MIN);
        }
        let mut packs: Vec<Pack> = packs.into_values().collect();
        for parts in end_to_end_parts(fitting) {
            let nonce: [u8; 16] = random()?;
            let (random, _) = nonce.split_first_chunk().expect("it has sixteen bytes");
            packs.push(Pack { id: PackId::new(slot, *random), parts, is_there: false });
        }
        Ok(packs)
    }

    /// Puts those that are not there.
    pub(super) fn put_packs(&mut self, packs: &[Pack]) -> Result<()> {
        let new: Vec<&Pack> = packs.iter().filter(|pack| pack.is_new()).collect();
        self.await_packs(new.iter().copied());
        let answers = put_all(&self.segments, &new);
        self.packs_were_put(new.into_iter().cloned().zip(answers).collect())
    }

    /// They are about to be put. Whatever the answer: what became of them is remembered.
    pub(super) fn await_packs<'p>(&mut self, packs: impl Iterator<Item = &'p Pack>) {
        packs.for_each(|pack| _ = self.packs.awaited.entry(pack.id).or_insert(None));
    }

    /// Gives the first error.
    pub(super) fn packs_were_put(&mut self, packs: Vec<(Pack, Result<()>)>) -> Result<()> {
        let mut failed = None;
        for (pack, answer) in packs {
            match answer {
                Ok(()) => {
                    let at = |part: &Packed| (part.entry, Place { pack: pack.id, offset: part.offset });
                    self.packs.put.extend(pack.parts.iter().map(|part| (part.name, at(part))));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The group was just opened.
    pub(super) fn begin_packs(&mut self) {
        self.packs.named = self.state().packs().keys().copied().collect();
        self.packs.unseen = Some(Unseen::default());
    }

    /// Records came in.
    pub(super) fn look_at_packs<'b>(&mut self, bodies: impl Iterator<Item = &'b Body>) {
        let (state, image) = (self.image.state(), &self.image);
        let next = state.next_slot();
        for body in bodies {
            if let Body::PackPlaces(said) = body {
                self.packs.named.extend(said.packs.iter().map(|packed| packed.pack));
            }
        }
        let Packs { put, named, awaited, dead, .. } = &mut self.packs;
        put.retain(|part, (_, place)| image.is_awaited(&part.layer) && place.pack.may_be_named_in(next));
        let is_needed = |id: &PackId| state.packs().contains_key(id);
        if named.len() > state.packs().len() {
            let over = |id: &PackId| !is_needed(id) && id.is_decided(next);
            let gone: Vec<PackId> = named.iter().filter(|id| over(id)).copied().collect();
            for id in gone {
                named.remove(&id);
                awaited.remove(&id);
                dead.insert(id, Why::GivenUp);
            }
        }
        if mutation::on("L4 a pack goes while a part in it is needed") {
            let thinned = state.packs().iter().filter(|(_, used)| used.living_bytes < used.bytes);
            dead.extend(thinned.map(|(id, _)| (*id, Why::GivenUp)));
        }
        awaited.retain(|id, created_ms| {
            if is_needed(id) || named.contains(id) {
                return false;
            }
            if id.is_decided(next) {
                dead.insert(*id, Why::Unnamed { created_ms: *created_ms });
            }
            !id.is_decided(next)
        });
    }

    /// Looks at some more of the bucket's packs.
    pub(super) fn look_for_unnamed_packs(&mut self) -> Result<()> {
        let Some(Unseen(after)) = &self.packs.unseen else { return Ok(()) };
        let page = block_on(self.segments.backend.list(Some(&self.names().packs()), after.as_ref(), LISTED_AT_ONCE))?;
        let last = page.objects.last().map(|listed| listed.name.clone());
        for listed in &page.objects {
            let Some(GroupObject::Pack(id)) = self.names().parse(&listed.name) else { continue };
            let next = self.state().next_slot();
            if self.state().packs().contains_key(&id) || self.packs.named.contains(&id) || self.packs.dead.contains_key(&id) {
                continue;
            }
            if id.is_decided(next) || mutation::on("T4 a pack that a record may still name goes") {
                self.packs.dead.insert(id, Why::Unnamed { created_ms: Some(listed.created_ms) });
            } else {
                self.packs.awaited.insert(id, Some(listed.created_ms));
            }
        }
        self.packs.unseen = page.more.then_some(Unseen(last));
        Ok(())
    }

    /// A pack that was put for a slot beyond the head: the ledger has lost what was before it.
    pub(super) fn pack_beyond(&self) -> Result<Option<PackId>> {
        let next = self.state().next_slot();
        let last = self.names().pack(PackId::new(next, [0xff; 8]));
        let page = block_on(self.segments.backend.list(Some(&self.names().packs()), Some(&last), LISTED_AT_ONCE))?;
        let id = |name| match self.names().parse(name) {
            Some(GroupObject::Pack(id)) => Some(id).filter(|id| id.slot() > next),
            _ => None,
        };
        let Some(beyond) = page.objects.iter().filter_map(|listed| id(&listed.name)).max() else { return Ok(None) };
        // Another writer may be ahead of what we replayed.
        Ok(block_on(self.segments.backend.size(&self.names().record(next)))?.is_none().then_some(beyond))
    }

    /// Whether packs wait to be deleted that are not cleared, and may be.
    pub(super) fn packs_wait(&self) -> bool {
        self.packs.dead.keys().any(|id| !self.packs.cleared.contains(id) && self.image.pack_may_go(id))
    }

    /// How many wait to be deleted.
    pub(super) fn dead_packs(&self) -> usize {
        self.packs.dead.len()
    }

    /// Finds out which of them may go, given who reads.
    pub(super) fn clear_packs(&mut self, held: &Held) {
        let image = &self.image;
        for (id, why) in self.packs.dead.iter_mut().filter(|(id, _)| image.pack_may_go(id)) {
            let is_held = held.holds_any(id.slot()) && !mutation::on("L4 a pack goes without a look at the leases");
            let is_old = match why {
                Why::GivenUp => true,
                Why::Unnamed { created_ms } => {
                    held.now_ms.saturating_sub(*created_ms.get_or_insert(held.now_ms)) >= ORPHANS_AFTER_MS
                }
            };
            if is_old && !is_held {
                self.packs.cleared.insert(*id);
            }
        }
    }

    /// Those that were cleared and may not go any more are not.
    pub(super) fn keep_packs_that_may_not_go(&mut self) {
        let image = &self.image;
        self.packs.cleared.retain(|id| image.pack_may_go(id));
    }

    /// Some that may go.
    pub(super) fn cleared_packs(&self, count: usize) -> Vec<PackId> {
        self.packs.cleared.iter().take(count).copied().collect()
    }

    /// One was asked to be deleted. If that failed, it comes up again with the next look.
    pub(super) fn pack_deleted(&mut self, id: PackId, is_gone: bool) {
        self.packs.cleared.remove(&id);
        if is_gone {
            self.packs.dead.remove(&id);
        }
    }
}

/// Parts in their order, in as few objects as that gives; not those that would be alone.
fn end_to_end_parts(parts: Vec<Packed>) -> Vec<Vec<Packed>> {
    let mut packs: Vec<Vec<Packed>> = Vec::new();
    let mut bytes = 0;
    for part in parts {
        if packs.is_empty() || bytes + part.entry.bytes > PACK_BYTES_MAX {
            packs.push(Vec::new());
            bytes = 0;
        }
        let pack = packs.last_mut().expect("there is one");
        let offset = bytes;
        bytes += part.entry.bytes;
        pack.push(Packed { offset, ..part });
    }
    packs.retain(|parts| parts.len() > 1);
    packs
}

/// Puts them side by side, and gives the answers in their order.
pub(super) fn put_all(segments: &Segments, packs: &[&Pack]) -> Vec<Result<()>> {
    at_once(packs, |pack| put(&*segments.backend, &segments.names, pack))
}

fn put(backend: &dyn Backend, names: &GroupNames, pack: &Pack) -> Result<()> {
    let name = names.pack(pack.id);
    let files: Vec<(PathBuf, u64)> = pack.parts.iter().map(|part| (part.file.clone(), part.entry.bytes)).collect();
    pack.parts.iter().try_for_each(|part| check_landed(&part.file, &part.name, &part.entry))?;
    let lost = |path: &PathBuf| pack.parts.iter().find(|part| part.file == *path).map(|part| part.name);
    match block_on(backend.adopt_all(&name, &files)) {
        Ok(Created::New) => Ok(()),
        // Of a create whose answer was lost and that was made again.
        Ok(Created::AlreadyExists) => {
            let ours = end_to_end(&name, &files)?;
            match block_on(backend.get(&name, ours.len() as u64))? {
                Some(found) if found == ours => Ok(()),
                _ => Err(StoreError::Damaged {
                    path: name.as_str().into(),
                    why: "another object has this name, which was drawn at random".to_owned(),
                }),
            }
        }
        Err(StoreError::NotFound { path, .. } | StoreError::Damaged { path, .. }) if lost(&path).is_some() => {
            let PartName { layer, number } = lost(&path).expect("just seen");
            Err(StoreError::PartMissing { layer, part: number })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "packs_tests.rs"]
mod tests;
