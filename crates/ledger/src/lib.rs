//! A group's ledger: the numbered, create-only records that say what happened, and the one pure function that replays them.
//!
//! Owns the bytes of a record ([`Record::encode`], [`Record::decode`]), of several in one object ([`encode_object`],
//! [`decode_object`]), of those that it repeats ([`encode_repeating`], [`decode_repeats`]) and the rules ([`State::apply`]): whoever appends
//! replays up to his slot and reads the verdict there, so retries, collisions and stalled writers are harmless. Also the bytes
//! of a checkpoint, from which replay may begin ([`EncodedCheckpoint`], [`CheckpointRoot`]), and of what a receiver keeps of a layer that
//! no record names yet ([`KeptEnd`]).
//!
//! Invariants:
//! - [`State::apply`] is total and deterministic: the same records give the same state, byte for byte, on every machine, and
//!   no record that decodes can make it panic.
//! - A void record changes nothing but the head.
//! - Per volume the accepted layers form one chain: terms only grow, sequence numbers count from 1 in each term.
//!
//! Deliberately not here: files, slots that exist or do not (the store's), clocks (a [`Stamp`] comes in), which *granule* of
//! which segment is live (the store's index knows; the ledger knows layers and regions).

mod batch;
mod checkpoint;
mod codec;
mod digests;
mod identity;
mod in_turn;
mod kept;
mod label;
mod memory;
mod merges;
mod packs;
mod points;
mod promotion;
mod record;
mod repeats;
mod retention;
mod rows;
mod slot_digests;
mod sorted;
mod state;
mod stored;
mod verdict;

#[cfg(test)]
mod tests;

pub use batch::{BATCH_SLOTS, BatchError, decode_object, encode_object, object_bytes, room_in_run, run_of};
pub use checkpoint::{
    CHECKPOINT_ROOT_BYTES, CHECKPOINT_STATE_BYTES_MAX, CheckpointError, CheckpointPart, CheckpointParts, CheckpointPlace,
    CheckpointRoot, EncodedCheckpoint,
};
pub use codec::{DecodeError, Encoded, RECORD_BYTES_MAX, RECORD_BYTES_MIN, TooLarge};
pub use identity::{group_id, volume_id};
pub use in_turn::{LayerTouch, LayersInTurn, Touched};
pub use kept::KeptEnd;
pub use label::{CohortCut, Consistency, Label};
pub use memory::{Forgotten, Memory};
pub use merges::{MergeFact, Published};
pub use packs::{PackId, PackPlaces, PackUse, PackedPart, PackedParts, Place};
pub use points::PointFilter;
pub use record::{
    Body, Claim, CutTime, Decree, EpochInfo, Heartbeat, LayerEntry, LayerKind, Layers, Map, PartEntry, Pin, Prune, PrunePolicy,
    PrunedParts, Record, Stamp, TornVoid, TrackingLost, Unpin, Verified, VerifiedHow, VolumeMeta,
};
pub use repeats::{
    LENGTHS_BYTES_MAX, Newest, REPEATED_BYTES_MAX, REPEATED_IN_RUN_BYTES_MAX, Repeated, decode_repeats, decode_with_repeats,
    encode_repeating, may_repeat_others, repeats_from,
};
pub use retention::{Grid, GridError, Policy, Rule};
pub use rows::{Passing, Rows, RowsIn};
pub use slot_digests::SlotDigests;
pub use state::{
    CacheError, ChainError, GIVEN_UP_LATELY_MS, LayerFact, Point, PointMember, PointProof, Proof, Proofs, State,
    TOUCHED_BYTES_MAX, VolumeState,
};
pub use stored::Stored;
pub use verdict::{Malformed, Verdict, VoidReason};
