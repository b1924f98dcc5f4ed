//! From a message to the payload of one control frame and back. The transport frames payloads; TLS keeps them whole.
//!
//! Invariant: what [`decode_payload`] gives back was at most [`PAYLOAD_BYTES_MAX`] long, ended where the message ends, and is
//! within the limits of its kind.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{ReceiverMessage, SourceMessage};

/// The longest payload of a control frame, in bytes. Longer things are paged by their messages.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// The oldest version of the messages that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest.
pub const VERSION_MAX: u16 = 1;

/// The versions that one side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl VersionRange {
    /// What this build speaks.
    pub const OURS: Self = Self { min: VERSION_MIN, max: VERSION_MAX };

    /// The newest version that both speak.
    ///
    /// # Errors
    /// When there is none, or `peer` is not a range.
    pub fn negotiate(self, peer: Self) -> Result<u16, DecodeError> {
        let newest = self.max.min(peer.max);
        if peer.min > peer.max || newest < self.min.max(peer.min) {
            return Err(DecodeError::Version { ours: self, theirs: peer });
        }
        Ok(newest)
    }
}

/// Optional abilities, one bit each. Bits that a side does not know are ignored by it, so a bit may only ever allow, never
/// demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub u64);

impl Features {
    /// Retention by a grid: [`SourceMessage::Retention`](crate::SourceMessage::Retention) is understood.
    pub const GRID: Self = Self(1);
    /// A source may say what it compared: [`SourceMessage::Compared`](crate::SourceMessage::Compared) is understood.
    pub const COMPARED: Self = Self(2);
    /// A source that waits for publication may say so: [`SourceMessage::Publish`](crate::SourceMessage::Publish) is understood.
    pub const PUBLISH: Self = Self(4);
    /// Encrypted volumes: claims with a seal, and [`SourceMessage::WrappedKey`](crate::SourceMessage::WrappedKey), are understood.
    pub const SEALED: Self = Self(8);
    /// In a source's greeting: the connection is there to pull a point, and for nothing else. A receiver that does not say it back cannot
    /// do that.
    pub const PULL: Self = Self(16);
    /// Points of which something is said: [`SourceMessage::LabelledEnd`](crate::SourceMessage::LabelledEnd) is understood.
    pub const LABELS: Self = Self(32);
    /// In a receiver's greeting on a connection that pulls: [`SourceMessage::PullFork`](crate::SourceMessage::PullFork) is understood.
    pub const FORK: Self = Self(64);
    /// Volumes that the gateway encrypts at rest: claims of them, [`SourceMessage::KeyWanted`](crate::SourceMessage::KeyWanted) and its answer are
    /// understood.
    pub const AT_REST: Self = Self(128);
    /// Points of groups of several hosts that were cut as one are understood, and connections over which that is conducted.
    pub const COHORTS: Self = Self(256);
    /// What it takes to say of a point that it is of such a cut.
    pub const LABELS_OF_COHORTS: Self = Self(Self::LABELS.0 | Self::COHORTS.0);
    /// In a source's greeting: the connection is there to be cut with groups of other hosts, and for nothing else. Only to a receiver that has
    /// said [`Features::COHORTS`] on a connection that publishes.
    pub const COHORT: Self = Self(512);
    /// That nobody said how many points are to be kept may be said: [`SourceMessage::DefaultRetention`](crate::SourceMessage::DefaultRetention)
    /// is understood.
    pub const DEFAULTS: Self = Self(1024);
    /// In a receiver's greeting on a connection that pulls: [`SourceMessage::PullVolumes`](crate::SourceMessage::PullVolumes) is understood.
    pub const PULL_VOLUMES: Self = Self(2048);
    /// In a receiver's greeting on a connection that pulls: [`SourceMessage::RollBack`](crate::SourceMessage::RollBack) is understood.
    pub const ROLL_BACK: Self = Self(4096);
    /// What a receiver of this build can do on a connection that pulls.
    pub const PULLS: Self = Self(Self::PULL.0 | Self::FORK.0 | Self::AT_REST.0 | Self::PULL_VOLUMES.0 | Self::ROLL_BACK.0);
    /// What this build can do on a connection that publishes.
    pub const OURS: Self = Self(
        Self::GRID.0
            | Self::COMPARED.0
            | Self::PUBLISH.0
            | Self::SEALED.0
            | Self::LABELS.0
            | Self::AT_REST.0
            | Self::COHORTS.0
            | Self::DEFAULTS.0,
    );

    /// What both can do.
    #[must_use]
    pub fn common(self, peer: Self) -> Self {
        Self(self.0 & peer.0)
    }

    /// All but these.
    #[must_use]
    pub fn without(self, these: Self) -> Self {
        Self(self.0 & !these.0)
    }

    /// Whether all of these are among them.
    pub fn has(self, these: Self) -> bool {
        self.common(these) == these
    }
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The length is beyond the limit: not our protocol, or an attack.
    #[error("a frame of {0} bytes; at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Nothing this build knows: a newer message, or none at all.
    #[error("a {0} that this build does not understand")]
    Unknown(&'static str),
    /// More bytes than the message has.
    #[error("{0} bytes too many after a message")]
    TrailingBytes(usize),
    /// A text, list or set beyond its own limit.
    #[error("a message breaks a limit: {0}")]
    Limit(&'static str),
    /// No version in common, or a greeting of a newer one that has more than this build knows.
    #[error("the peer speaks versions {}..={}, this build {}..={}: update the older side", theirs.min, theirs.max, ours.min, ours.max)]
    Version {
        /// What this build speaks.
        ours: VersionRange,
        /// What the peer said.
        theirs: VersionRange,
    },
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It should have been paged.
    #[error("a message of {0} bytes; at most {PAYLOAD_BYTES_MAX} fit a frame")]
    TooLong(usize),
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::SourceMessage {}
    impl Sealed for crate::ReceiverMessage {}
}

/// A message of either direction.
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {
    /// For errors.
    const WHAT: &'static str;

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// Names the limit.
    fn check(&self) -> Result<(), DecodeError>;

    /// Of bytes that are no such message: the versions that they offer, if they are the greeting of a peer.
    fn offered(_payload: &[u8]) -> Option<VersionRange> {
        None
    }
}

impl Message for SourceMessage {
    const WHAT: &'static str = "message from a source";

    fn check(&self) -> Result<(), DecodeError> {
        self.check_limits()
    }

    /// The first variant begins with them, in every version.
    fn offered(payload: &[u8]) -> Option<VersionRange> {
        let (variant, versions): (u32, VersionRange) = postcard::take_from_bytes(payload).ok()?.0;
        (variant == 0).then_some(versions)
    }
}

impl Message for ReceiverMessage {
    const WHAT: &'static str = "message from a receiver";

    fn check(&self) -> Result<(), DecodeError> {
        self.check_limits()
    }
}

/// A message as the payload of one control frame.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn encode_payload<M: Message>(message: &M) -> Result<Bytes, EncodeError> {
    let payload = postcard::to_allocvec(message).expect("messages hold nothing that postcard cannot write");
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EncodeError::TooLong(payload.len()));
    }
    Ok(payload.into())
}

/// A message from the payload of one frame.
///
/// # Errors
/// When it is not exactly one message of this direction, within all limits. A greeting that is none of this build's, of a peer that speaks a newer version, is
/// [`DecodeError::Version`]: that peer is told so, and of no garbage.
pub fn decode_payload<M: Message>(payload: &[u8]) -> Result<M, DecodeError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(DecodeError::TooLong(payload.len()));
    }
    decode_exactly(payload).map_err(|error| match M::offered(payload) {
        Some(theirs) if theirs.max > VERSION_MAX => DecodeError::Version { ours: VersionRange::OURS, theirs },
        _ => error,
    })
}

fn decode_exactly<M: Message>(payload: &[u8]) -> Result<M, DecodeError> {
    let (message, rest) = postcard::take_from_bytes::<M>(payload).map_err(|_| DecodeError::Unknown(M::WHAT))?;
    if !rest.is_empty() {
        return Err(DecodeError::TrailingBytes(rest.len()));
    }
    message.check()?;
    Ok(message)
}
