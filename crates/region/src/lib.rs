//! The words every other crate shares: identities, units, geometry, sets of regions and granules, and the bytes of the
//! intent map and its header. Pure: no I/O, no clock, no thread, no atomics.
//!
//! Invariant: a value of one of these types is in range for its own definition (a run never overflows, a set never holds
//! an empty range). What it does not know is the volume it belongs to; [`Geometry`] does.

mod geometry;
mod ids;
pub mod intent;
pub mod mutation;
mod packed;
mod seal;
mod sets;
mod text;

pub use geometry::{Geometry, GeometryError};
pub use ids::{
    BootId, EpochId, Generation, GranuleDigest, GroupId, KeyId, LayerKey, LedgerPosition, MapId, MergeId, Name, NameError,
    RecordDigest, Seq, Slot, Term, VolumeId,
};
pub use packed::PackedRegions;
pub use seal::{DigestKey, Seal, SealMode};
pub use sets::{ByteExtent, ByteOffset, GranuleIndex, GranuleMask, GranuleRun, GranuleSet, RegionIndex, RegionRange, RegionSet};
pub use text::{printable, steers};
