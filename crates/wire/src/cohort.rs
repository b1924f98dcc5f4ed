//! Groups of several hosts that are cut as one. On connections of their own, which publish nothing: what is said here must not wait behind
//! data.
//!
//! ```text
//! receiver: prepare ─► hold ─► cut ─► over(it is one | it is none)
//! source:     ready ─► held ─► has cut
//! ```

use farside_ledger::CohortCut;
use farside_region::Name;
use serde::{Deserialize, Serialize};

use crate::{DecodeError, TEXT_BYTES_MAX};

/// Writes are never held for longer, whatever is asked for, in microseconds.
pub const COHORT_HOLD_US_MAX: u32 = 1_000_000;

/// What the receiver wants, which conducts a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CohortAsk {
    /// Begin no other cut, and say when all volumes could be cut at once. Answered by [`CohortSay::Ready`] or [`CohortSay::Not`].
    Prepare {
        /// What its point is to say of itself.
        cut: CohortCut,
        /// The cohort's name.
        cohort: Name,
    },
    /// Let no write begin, for so long at most by your own clock. Answered by [`CohortSay::Held`] or [`CohortSay::Not`].
    Hold {
        /// Which cut.
        cut: [u8; 16],
        /// For so long, in microseconds.
        for_us: u32,
    },
    /// Cut, and let go. All are held. Answered by [`CohortSay::HasCut`] or [`CohortSay::Not`].
    Cut {
        /// Which.
        cut: [u8; 16],
    },
    /// What came of it, whatever it had come to.
    Over {
        /// Which cut.
        cut: [u8; 16],
        /// Every group was cut while all were held.
        is_one: bool,
    },
}

/// What a source answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CohortSay {
    /// All volumes can be cut at once, and wait for that.
    Ready {
        /// Which cut.
        cut: [u8; 16],
    },
    /// No write begins from now on.
    Held {
        /// Which cut.
        cut: [u8; 16],
    },
    /// It was cut.
    HasCut {
        /// Which.
        cut: [u8; 16],
        /// No write began from when it was held until after the switch.
        was_held: bool,
        /// How long writes were held, in microseconds.
        held_us: u32,
    },
    /// Nothing is to become of it here.
    Not {
        /// Which cut.
        cut: [u8; 16],
        /// For a person. At most [`TEXT_BYTES_MAX`] bytes.
        why: String,
    },
}

impl CohortSay {
    /// Which cut it is about.
    pub fn cut(&self) -> [u8; 16] {
        match self {
            Self::Ready { cut } | Self::Held { cut } | Self::HasCut { cut, .. } | Self::Not { cut, .. } => *cut,
        }
    }

    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        match self {
            Self::Not { why, .. } if why.len() > TEXT_BYTES_MAX => Err(DecodeError::Limit("the reason why nothing is cut")),
            _ => Ok(()),
        }
    }
}

impl CohortAsk {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        match self {
            Self::Hold { for_us, .. } if *for_us > COHORT_HOLD_US_MAX => Err(DecodeError::Limit("the time of a hold")),
            _ => Ok(()),
        }
    }
}
