//! What a source and a receiver say to each other: messages, versions, and the bytes of both.
//!
//! Owns [`SourceMessage`], [`ReceiverMessage`], their bytes ([`encode_payload`], [`decode_payload`]) and the header that opens
//! every part's own stream ([`PartHeader`]). `docs/formats/wire.md` is the same in prose.
//!
//! Invariants:
//! - A payload is never longer than [`PAYLOAD_BYTES_MAX`], and a decoder never allocates for a peer more than a small multiple
//!   of the bytes that have arrived.
//! - What is not known is refused by name: a version, a message, a flag. Nothing is guessed.
//!
//! Deliberately not here: connections and their frames, order of messages, what any of it means (`replication`), the bytes of a part (`layer`).

mod codec;
mod cohort;
mod messages;
mod part;
mod points;
mod pull;

#[cfg(test)]
mod tests;

pub use codec::{
    DecodeError, EncodeError, Features, Message, PAYLOAD_BYTES_MAX, VERSION_MAX, VERSION_MIN, VersionRange, decode_payload,
    encode_payload,
};
pub use cohort::{COHORT_HOLD_US_MAX, CohortAsk, CohortSay};
pub use messages::{
    ClaimOutcome, ClaimRequest, ClaimVerdict, Compared, Credit, CurrentVolume, DAMAGED_VOLUMES_MAX, DIGEST_GRANULES_MAX, Damage,
    DamagedVolume, DigestAnswer, DigestQuery, DigestRun, END_MEMBERS_MAX, END_RANGES_MAX, EndMember, EpochEnd, GroupKeyAnswer,
    HeldLayer, InstanceId, LabelledEnd, LayerBegin, LayerFate, LedgerLayer, LedgerSlice, LossRecorded, LossReport, Lost,
    NewestPoint, Notice, Published, RESUME_LAYERS_MAX, ReadLedger, ReceiverHello, ReceiverMessage, Refusal, RefusalCode,
    RequestId, ResumeAnswer, ResumeQuery, ResumedLayer, SaidEnd, Settings, SourceHello, SourceMessage, Staged, TEXT_BYTES_MAX,
    Void, WRAPPED_KEY_BYTES_MAX,
};
pub use part::{PART_HEADER_BYTES, PartHeader, PartHeaderError};
pub use points::{PointAnswer, PointInfo, PointMemberInfo, PointPage, PointQuery, PointQueryKind};
pub use pull::{
    ForkPin, NO_KEY, PULL_ANSWER_BYTES_MAX, PULL_CHUNK_BYTES_MAX, PULL_GRANULES_MAX, PULL_MEMBERS_MAX, PULL_OPEN_MAX,
    PULL_RANGES_MAX, PullBegin, PullChunk, PullFork, PullMember, PullOther, PullPoint, PullQuery, PullVolumes, RollBackAnswer,
    RollBackAsk, RollBackPoint,
};
