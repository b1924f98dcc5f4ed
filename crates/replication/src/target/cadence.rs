//! When what is staged is published, and how much of it at once.
//!
//! Where a record is dear, as in a bucket, layers that are staged wait for others and are named by records that lie in one object:
//! as long as [`Limits::publish_every`](super::Limits) at most. What ends the wait before its time: much waits, by bytes, by layers or by what their end messages take;
//! the disk has little room; a source says that it waits (`Publish`: a planned stop, a compare, a first point); or another run of the
//! source greets, whose claims would end the terms of what is complete here; or the receiver is stopped.
//!
//! What ends it later than that: requests that are billed are used up ([`Event::Budget`](super::Event)).
//!
//! One append names parts of [`Limits::publish_bytes`](super::Limits) at most, unless one record alone has more, and half as many records
//! as one that failed: whatever goes wrong again and again comes to be tried in pieces that can succeed.
//!
//! Invariant: a wait holds up nothing but publication. Nobody's bit is cleared meanwhile, and the loss of all that waits costs the time to
//! send it again.

use farside_ledger::{BATCH_SLOTS, Body, RECORD_BYTES_MAX, Record, Stamp, State, object_bytes, room_in_run};
use farside_region::mutation;

use super::Target;
use super::api::Dated;
use super::compose::RETRIED;
use super::landing::{End, carries_terms};
use crate::source::Nanos;

impl Target {
    /// Whether something that is staged is to be published now.
    pub(super) fn is_due(&self, now: Nanos) -> bool {
        let limits = &self.config.limits;
        // A claim would end the term of what is complete: points are worth more than requests.
        if self.spent && self.claims.is_empty() && limits.publish_every > 0 {
            return false;
        }
        if limits.publish_every == 0 || self.hurried {
            return true;
        }
        let is_short = self.disk.is_some_and(|disk| limits.is_little_room(disk.free_bytes, disk.disk_bytes));
        let (mut bytes, mut ends_bytes, mut of_volume) = (0_u64, 0, (None, 0));
        for (key, landing) in &self.layers {
            let Some(since) = landing.staged_since() else { continue };
            bytes = bytes.saturating_add(landing.bytes());
            ends_bytes += landing.end.as_ref().map_or(0, End::held_bytes);
            // In the order of their volumes.
            of_volume = if of_volume.0 == Some(key.volume) { (of_volume.0, of_volume.1 + 1) } else { (Some(key.volume), 1) };
            let is_old = now >= since.saturating_add(limits.publish_every);
            let is_much = bytes >= limits.publish_bytes || ends_bytes >= limits.ends_bytes_max / 2;
            if is_short || is_old || is_much || of_volume.1 >= limits.publish_layers {
                return true;
            }
        }
        false
    }

    /// How many records the next append may hold.
    pub(super) fn room(&self, state: &State) -> u64 {
        // (What some mistakes make is composed from all of the history.)
        let alone = self.config.limits.publish_every == 0 || carries_terms() || mutation::on(RETRIED);
        // One slot stays for a record of where parts lie.
        if alone { 1 } else { self.together.min((room_in_run(state.next_slot()) - 1).max(1)) }
    }
}

/// What is said of where one part lies, in bytes.
const PLACE_BYTES_MAX: usize = 64;

/// Records that are to be appended together, and the state as they will have made it.
pub(super) struct Batch<'s> {
    state: &'s State,
    /// As soon as there is a record, and room for another.
    ahead: Option<State>,
    room: u64,
    records: Vec<Dated>,
    bytes: usize,
    parts: usize,
    /// Of the parts that they name; so many at most, unless one record alone has more.
    parts_bytes: u64,
    parts_bytes_max: u64,
}

impl<'s> Batch<'s> {
    /// None yet, and room for so many, and for so many bytes of parts.
    pub(super) fn new(state: &'s State, room: u64, parts_bytes_max: u64) -> Self {
        Self {
            state,
            ahead: None,
            room: room.min(BATCH_SLOTS),
            records: Vec::new(),
            bytes: 0,
            parts: 0,
            parts_bytes: 0,
            parts_bytes_max,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        (self.records.len() as u64) < self.room
    }

    /// What the next record is judged by.
    pub(super) fn state(&self) -> &State {
        self.ahead.as_ref().unwrap_or(self.state)
    }

    /// Takes a record that will be accepted; `false`: it does not fit in with those that are there. One alone always fits: whether
    /// it can be written at all is for the store to say.
    pub(super) fn add(&mut self, dated: Dated) -> bool {
        if self.room <= 1 {
            self.records.push(dated);
            return true;
        }
        let members = if let Body::Layers(layers) = &dated.body { &layers.members[..] } else { &[] };
        let parts_bytes = members.iter().flat_map(|member| &member.parts).map(|part| part.bytes).sum();
        let parts = members.iter().map(|member| member.parts.len()).sum::<usize>();
        if !self.records.is_empty() && self.parts_bytes.saturating_add(parts_bytes) > self.parts_bytes_max {
            return false;
        }
        let state = self.ahead.as_ref().unwrap_or(self.state);
        let (group, slot, prev) = (state.group(), state.next_slot(), state.prev());
        let stamp = Stamp { writer: [0; 16], mono_ms: 0, wall_ms: 0 };
        let record = Record { group, slot, prev, nonce: [0; 16], stamp, body: dated.body };
        let encoded = record.encode();
        let bytes = encoded.as_ref().map_or(RECORD_BYTES_MAX, |encoded| encoded.bytes.len());
        let alone = self.records.is_empty();
        // What a record of where parts lie takes.
        let places_bytes = 256 + PLACE_BYTES_MAX * (self.parts + parts);
        if !alone && object_bytes(self.records.len() + 2, self.bytes + bytes + places_bytes) > RECORD_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        self.parts_bytes = self.parts_bytes.saturating_add(parts_bytes);
        self.parts += parts;
        match encoded {
            Ok(encoded) => drop(self.ahead.get_or_insert_with(|| self.state.without_history()).apply(&record, encoded.digest)),
            Err(_) => self.room = 1,
        }
        self.records.push(Dated { body: record.body, ..dated });
        true
    }

    pub(super) fn into_records(self) -> Vec<Dated> {
        self.records
    }
}
