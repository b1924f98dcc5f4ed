//! Groups of several hosts that are cut as one: who conducts that, at the receiver, and who takes part in it, at each source.
//!
//! Why the cuts of one round are one moment is said in `farside_shim::Group::hold`.

mod conductor;
mod keeping;
mod member;
mod whole;

pub use conductor::{CohortAction, CohortConfig, CohortEvent, CohortLimits, CohortOutcome, Conductor, CutId};
pub use keeping::CohortsKept;
pub use member::{CohortMember, MemberAction, MemberEvent, MemberLimits};
pub use whole::{CutsOfGroup, WHOLE_KEPT, WholeCut, cuts_of, whole, whole_to_keep};
