//! A ledger that rots (§5): one slot does not verify any more, or the newest ones are gone. No receiver opens such a group; a person
//! puts the file back from a copy, or gives the slot up with all that follow it, by void records in their places.
//!
//! Invariants: a number that was given up is never used again, neither as a slot nor as a term: where the newest records are
//! lost, slots are voided up to the newest claim that left files. A loss that leaves no trace at all is a store that was put
//! back, and is judged as one.

use farside_ledger::{Body, Record, Stamp, TornVoid};
use farside_region::Term;
use farside_store::Attempt;

use crate::receiver;
use crate::run::Run;
use crate::world::{SegmentKey, World};

/// What is wrong, until a person has mended it.
pub(crate) struct TornLedger {
    /// The first slot that cannot be read.
    first: u64,
    /// What stood there and after it.
    copy: Vec<Vec<u8>>,
    /// The last slot that has to be given up with it.
    last: u64,
}

impl Run {
    /// Says whether there is something to tear.
    pub(crate) fn ledger_tears(&mut self) -> bool {
        let world = self.world.clone();
        let end = world.store.borrow().ledger().len() as u64;
        // What a prune gave up is deleted: from before it there is nothing to go back to. What a checkpoint covers is known without its record.
        let least = after_last_prune(&world).max(world.store.borrow().covered());
        if least >= end {
            return false;
        }
        self.receiver_ends(true);
        world.store.borrow_mut().forget_flight();
        let at_the_end = world.chance(0.5);
        let first = if at_the_end {
            end - 1 - world.dice((end - least).min(3) as usize) as u64
        } else {
            least + world.dice((end - least) as usize) as u64
        };
        let copy = world.store.borrow().ledger()[first as usize..].to_vec();
        world.store.borrow_mut().lose_from(first);
        // Lost slots are noticed by the files of a claim among them; one that rots is always.
        let lost = at_the_end && world.chance(0.5);
        let unseen = lost && farside_region::mutation::on("a claim that was lost is not looked for");
        let last = if lost { newest_term(&world) } else { end - 1 };
        if unseen {
            self.records_are_given_up(first);
            return true;
        }
        if lost && last < first {
            world.met("the newest records are lost without a trace");
            world.say(|| format!("the LEDGER LOSES its records from slot {first} on, and nothing tells"));
            self.records_are_given_up(first);
            self.unnamed_segments_go();
            return true;
        }
        world.met(if lost { "a lost claim is noticed" } else { "a torn record" });
        world.say(|| format!("the LEDGER TEARS in slot {first} of {end}; slots up to {last} would be given up"));
        self.torn = Some(TornLedger { first, copy, last: last.max(first) });
        true
    }

    /// Sooner or later.
    pub(crate) fn person_mends_ledger(&mut self) {
        let world = self.world.clone();
        if self.torn.is_none() || !world.chance(if world.healing.get() { 0.3 } else { 0.01 }) {
            return;
        }
        let torn = self.torn.take().expect("just seen");
        if world.chance(0.4) {
            world.say(|| "the ledger is put back from a copy".into());
            torn.copy.into_iter().for_each(|bytes| world.store.borrow_mut().append_by_hand(bytes));
            return;
        }
        world.met("a ledger is repaired");
        self.records_are_given_up(torn.first);
        for slot in torn.first..=torn.last {
            let bytes = void(&world, slot);
            world.store.borrow_mut().append_by_hand(bytes);
            self.judge.on_record(&world, slot);
        }
    }

    /// As after a rollback of the store: whatever was published there is not. Their layers may be sent again under their names,
    /// with what the disk holds by then; no others may (T5).
    fn records_are_given_up(&mut self, first: u64) {
        let world = self.world.clone();
        let layers = self.judge.layers_from(first).filter_map(|key| Some((world.volume_of(key.volume)?, key.term.0, key.seq.0)));
        world.given_up.borrow_mut().extend(layers);
        self.judge.give_up_from(&world, first);
        world.unpacked.borrow_mut().clear();
        world.taint_all();
    }
}

impl Run {
    /// A store that was put back has none of them.
    fn unnamed_segments_go(&self) {
        let world = &self.world;
        let group = receiver::replay(world, u64::MAX);
        let named = |name: &SegmentKey| group.state().published(&receiver::layer_key(world, name)).is_some();
        let strays: Vec<SegmentKey> = world.store.borrow().names().filter(|n| !named(n)).copied().collect();
        strays.iter().for_each(|name| world.store.borrow_mut().delete(name));
        world.landing.borrow_mut().clear();
    }
}

fn after_last_prune(world: &World) -> u64 {
    let is_prune = |bytes: &Vec<u8>| matches!(Record::decode(bytes), Ok((record, _)) if matches!(record.body, Body::Prune(_)));
    world.store.borrow().ledger().iter().rposition(is_prune).map_or(0, |slot| slot as u64 + 1)
}

/// The newest claim that left files.
fn newest_term(world: &World) -> u64 {
    let (store, landing) = (world.store.borrow(), world.landing.borrow());
    let terms = store.names().chain(landing.keys()).map(|name| name.1);
    terms.filter(|term| !Term(*term).is_merge()).max().unwrap_or(0)
}

/// The record that takes a slot's place.
fn void(world: &World, slot: u64) -> Vec<u8> {
    let group = receiver::replay(world, slot);
    let mut rng = world.rng.borrow_mut();
    let torn = TornVoid { torn_digest: [slot as u8; 32], torn_bytes: 100 };
    let stamp = Stamp { writer: rng.bytes16(), mono_ms: 0, wall_ms: world.wall_ms() };
    let attempt = Attempt::new(group.state(), Body::TornVoid(torn), rng.bytes16(), stamp);
    attempt.expect("records of the simulator are small").bytes
}
