//! What replay says about a record.

use farside_region::{Generation, LayerKey, MergeId, Seq, Slot, Term, VolumeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The fate of a record, fixed by the records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It took effect. (A fuzzy record may have advanced some members and found the others done.)
    Accepted,
    /// It changed nothing.
    Void(VoidReason),
}

impl Verdict {
    /// Whether what the record wanted is true now: it was accepted, or everything in it had been accepted before with the
    /// same content (T11).
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Accepted | Self::Void(VoidReason::Duplicate))
    }
}

/// Why a record is void, and so what its writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[non_exhaustive]
pub enum VoidReason {
    /// Judge the position anew, then claim again.
    #[error("a layer of the volume, or a loss of its tracking, came in at slot {last_layer}, after the claimant had looked")]
    ClaimOvertaken {
        /// The newest layer of the volume; or the loss of which a receiver says so, without a record.
        last_layer: Slot,
    },
    /// Not the volume that the ledger knows.
    #[error("the claim gives volume {0} other granules or regions than the ledger does")]
    ClaimShape(VolumeId),
    /// Shrinking is refused by name.
    #[error("the claim would shrink the volume from {ledger_bytes} to {claim_bytes} bytes")]
    ClaimShrinks {
        /// What the ledger holds.
        ledger_bytes: u64,
        /// What the claimant sees.
        claim_bytes: u64,
    },
    /// Adopt the ledger's key and claim again; where either is a seal, stop.
    #[error("the claim carries another digest key or seal than the ledger's")]
    ClaimDigestKey,
    /// A promotion happened; stop.
    #[error("the volume is at generation {current}")]
    Fenced {
        /// The ledger's.
        current: Generation,
    },
    /// Nobody ever claimed it.
    #[error("no claim of volume {0} was ever accepted")]
    UnknownVolume(VolumeId),
    /// Claim again, keeping the maps.
    #[error("the term of volume {volume} is {current} now")]
    Term {
        /// Whose.
        volume: VolumeId,
        /// The accepted one.
        current: Term,
    },
    /// Build the record anew from the last accepted sequence numbers.
    #[error("the next layer of volume {volume} is not that one: {last} was the last accepted")]
    Seq {
        /// Whose.
        volume: VolumeId,
        /// The last accepted.
        last: Seq,
    },
    /// A point whose member lacks an earlier layer.
    #[error("an earlier layer of volume {volume} is missing under the point: {last} was the last accepted")]
    PointOverGap {
        /// Whose.
        volume: VolumeId,
        /// The last accepted.
        last: Seq,
    },
    /// Success for the caller: all members are in, with the same digests.
    #[error("all of its layers were accepted before")]
    Duplicate,
    /// Two contents under one name: refused by name.
    #[error("layer {0} was accepted before with another digest")]
    DuplicateDiffers(LayerKey),
    /// A point is all-duplicate or all-new.
    #[error("some members of the point were accepted before, others were not")]
    PointPartlyDuplicate,
    /// Said under a claim that is over.
    #[error("the heartbeat's term of volume {0} is not current")]
    HeartbeatTerm(VolumeId),
    /// Said about a ledger that has moved on, or is another.
    #[error("the heartbeat rests on a position that does not hold for volume {0}")]
    HeartbeatPosition(VolumeId),
    /// No retained point there.
    #[error("there is no point at slot {0}")]
    NoSuchPoint(Slot),
    /// No pin there.
    #[error("there is no pin at slot {0}")]
    NoSuchPin(Slot),
    /// Judge anew.
    #[error("a pin, unpin or prune came in at slot {0}, after the writer had looked")]
    PruneOvertaken(Slot),
    /// The policy, or a pin, holds it.
    #[error("the point at slot {0} may not be pruned")]
    NotPrunable(Slot),
    /// Something still needs it, or it is not there to be given up.
    #[error("parts of layer {0} are in use or unknown")]
    PruneLive(LayerKey),
    /// Somebody gave a part up, or the whole was merged already: plan anew.
    #[error("a part of layer {0} that was to be merged is not there (any more)")]
    MergeGone(LayerKey),
    /// Parts on both sides of a point that is retained.
    #[error("a part of layer {layer} was not born in the interval that ends with point {point}")]
    MergeAcross {
        /// The part's.
        layer: LayerKey,
        /// The point at which the merge was to hold the same.
        point: Slot,
    },
    /// A part between the others that the merge leaves out.
    #[error("a part of layer {0} lies between those that were to be merged")]
    MergeSkips(LayerKey),
    /// The newest layer's parts stay what its source sent.
    #[error("layer {0} is its volume's newest, whose parts are not merged")]
    MergeNewest(LayerKey),
    /// Its parts are kept as they are, also for who reads it without a lease: merge when the pin is gone.
    #[error("point {0} is pinned, and may need parts that were to be merged")]
    MergePinned(Slot),
    /// Write the parts anew under another id.
    #[error("the id of merge {0} was used before, decreed never to be, or is that of a merge which began too long ago")]
    MergeAgain(MergeId),
    /// It took effect: what it wrote is needed.
    #[error("merge {0} was accepted before, and cannot be decreed away")]
    MergeAccepted(MergeId),
    /// No correct writer makes such a record.
    #[error("malformed: {0}")]
    Malformed(Malformed),
    /// The slot's bytes did not verify and were replaced.
    #[error("the record was torn")]
    Torn,
    /// Not the next record of this ledger; the head did not move.
    #[error("the record does not continue this ledger")]
    BrokenChain,
}

/// What no correct writer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Nothing in it.
    #[error("it names no member")]
    NoMembers,
    /// A volume, point or layer twice.
    #[error("it names something twice")]
    Twice,
    /// A sequence number of 0.
    #[error("sequence numbers start at 1")]
    SeqZero,
    /// A region outside of the volume, or an unreadable one that the layer does not touch.
    #[error("it names a region that cannot be")]
    Region,
    /// A size the volume's shape cannot have, or a smaller one than before.
    #[error("it gives an impossible volume size")]
    VolumeBytes,
    /// The switch ended before it began.
    #[error("its times run backwards")]
    Times,
    /// Claims to have looked at slots that came later.
    #[error("it looked ahead of its own slot")]
    LookedAhead,
    /// A merge into more parts than there were, or with an id that is none, or of another volume's parts.
    #[error("it is a merge that cannot be")]
    Merge,
    /// Longer than [`crate::Pin::REASON_BYTES_MAX`].
    #[error("its reason is too long")]
    Reason,
    /// Of a slot that is later, or too long ago: see [`crate::PackId::SLOTS`].
    #[error("it names a pack that was put for another slot")]
    Pack,
    /// Longer than [`crate::Label::TEXT_BYTES_MAX`], or of layers that are no point.
    #[error("it has a label that cannot be")]
    Label,
}
