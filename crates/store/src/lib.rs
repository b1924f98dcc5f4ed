//! The recovery-point store: where layers become recovery points, and where points are read again (DESIGN §5).
//!
//! Owns the layout of a store (`docs/formats/store.md`), its durability (what is acknowledged outlives a power cut), landing,
//! the index from granules to segments, liveness and deletion. Invariants:
//! - nothing is visible that an accepted ledger record does not name, and whatever one names was durable before it;
//! - nothing that a retained point or the head image needs is ever deleted;
//! - every granule that is read was checked against the digest computed at the source.
//!
//! | Pure, for the simulator too | Over the [`Backend`] trait | Over a directory |
//! |---|---|---|
//! | [`VolumeIndex`], [`Parts`], [`GroupImage`], [`head_digests`], [`Attempt`], [`GroupNames`] | replay, segments, [`PointReader`], [`GroupStore`]'s appends | [`DirBackend`], [`Store`], [`Landing`], locks, [`FileTarget`] |
//!
//! One process writes to a store ([`Store`], `writer.lock`); in it one thread owns each [`GroupStore`], and any thread may land
//! parts ([`Landing`]) or read points. Other processes read beside it ([`StoreReader`]). Everything blocks.
//!
//! It deliberately does not decide: what a source may send, when a layer is staged, what to answer (`replication`); whether a
//! record is accepted (`ledger`); what is inside a part (`layer`).

mod ahead;
mod aligned;
mod attempt;
mod backend;
#[cfg(test)]
mod batch_tests;
mod cascade;
mod check;
mod checkpoint;
#[cfg(test)]
mod disk_tests;
mod error;
mod everything;
mod follower;
mod group;
mod head;
mod image;
mod index;
mod keys;
mod landing;
mod lazy;
mod leases;
mod liveness;
mod locks;
#[cfg(test)]
mod matrix_tests;
mod merge;
mod names;
mod points;
mod probe;
mod reader;
mod repeats;
mod replaced;
mod replay;
#[cfg(test)]
mod requests_tests;
mod resting;
mod restore;
mod said_once;
#[cfg(test)]
mod scale_tests;
mod segments;
mod space;
mod spoiled;
mod store;
mod stream;
mod target;
#[cfg(test)]
mod testkit;
mod verify;
mod wanted;

pub use aligned::AlignedBytes;
pub use attempt::{Attempt, Draft, Found};
#[cfg(any(test, feature = "conformance"))]
pub use backend::conformance;
pub use backend::{Backend, Created, DirBackend, Listed, ObjectName, Page, block_on, end_to_end};
pub use cascade::Next;
pub use check::{CheckReport, Finding, Problem, Severity, check};
#[cfg(feature = "mutations")]
pub use checkpoint::set_checkpoint_span;
pub use error::{Remedy, Result, StoreError};
pub use farside_ledger::PointFilter;
pub use follower::{
    Differing, FollowKeeper, FollowLook, FollowProgress, FollowReport, FollowStage, FollowTarget, Follower, Following, Seen,
};
pub use group::{Appended, Dated, DigestRun, GroupStore, Known, Repair, Swept, Upload, Uploaded, VoidedRecord, head_digests};
pub use image::{Applied, GroupImage, PRUNE_PARTS_MAX, PRUNE_POINTS_MAX, PartRuns, VolumeImage};
pub use index::{Content, Extent, PartNo, VolumeIndex};
pub use keys::{AtRestKey, ClaimedKeys, Keepers, StoredWrapping, Unlocking, add_wrapping, wrappings};
pub use landing::{LandedLayer, Landing, PartLander};
pub use lazy::{LazyImage, LazyPointReader};
pub use leases::{Held, Leases};
pub use liveness::{MUTATION_RETAINED_POINTS_ONLY, Part, PartName, Parts};
pub use locks::{DeletionGuard, ReaderLock, WriterLock};
pub use merge::{
    LaidParts, MergeFound, MergeLook, MergePiece, MergeTried, MergeWritten, MergesFound, SoundParts, SpoiledLook, choose_merges,
    freed_by,
};
pub use names::{CHECKPOINT_SLOTS, GroupNames, GroupObject, SLOTS_PER_FOLDER};
pub use points::{MemberInfo, PointInfo, PointsFound, find_points, point_ends};
pub use reader::{GroupReader, PointReader, RegionContent, StoreReader};
pub use replay::Torn;
pub use resting::RestingGroup;
pub use restore::{RestoreOptions, RestoreReport, RestoreTarget, check_restorable, restore_to};
pub use segments::runs_of;
pub use space::{RESERVE_BYTES_MIN, Space};
pub use spoiled::{KnownDamage, SpoiledParts};
pub use store::{Listing, STORE_VERSION, Store};
pub use stream::restore_stream;
pub use target::{Existing, FileTarget, OutputHold};
pub use verify::{DamagedRegion, Looked, Verified, unreadable_runs, verify_point};
pub use wanted::{Tried, Wanted, is_verify_due};
