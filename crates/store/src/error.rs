//! Everything that can go wrong with a store, as one enum: what happened, to which thing, and what to do next.
//!
//! Invariant: every variant that a person may read names the path or the volume it is about and the way out of it.
//! [`StoreError::remedy`] says what the *program* does: go on trying, open the store anew, or wait for a person.

use std::io;
use std::path::{Path, PathBuf};

use farside_blockio::is_of_medium;
use farside_region::{GroupId, KeyId, LayerKey, RegionIndex, Slot, VolumeId};

/// The result of most of this crate's functions.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What the caller does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same operation may succeed later by itself (space was freed, the file system is writable again).
    Retry,
    /// Drop the store and open it again: what is in memory may no longer be what is on disk.
    Reopen,
    /// The state was brought up to date; build the record anew from it.
    Rebuild,
    /// What was to be published never can be, and no retry helps: forget its layers and say `lost`, so that the source claims
    /// anew and sends them again (T5). [`StoreError::layer`] says which; `None`: all that the record named.
    Lose,
    /// Only a person can help.
    Person,
}

/// Why something in the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space left (or a quota).
    #[error("the store's file system is full at {path} ({needed} bytes were needed): free space there, or keep fewer points")]
    Full {
        /// What was being written.
        path: PathBuf,
        /// How much.
        needed: u64,
    },
    /// The file system is read-only.
    #[error(
        "{path} is on a read-only file system: remount it for writing (the kernel may have done this after an I/O error: see its log)"
    )]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
    },
    /// The directory is gone, or another one is in its place.
    #[error("the store directory {path} has vanished: mount or move it back; until then nothing can be landed")]
    Vanished {
        /// The store.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("no permission for {path}: it must belong to the user that runs the receiver")]
    Denied {
        /// What was touched.
        path: PathBuf,
    },
    /// Any other error of the operating system.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done, as a present participle.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The medium fails under a file that is there. That one object is damaged; the rest of the store goes on.
    #[error(
        "{path} cannot be read ({source}): its disk fails there (see the kernel's log); put the file back from a copy of the store"
    )]
    Unreadable {
        /// Which file or directory.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A write or sync of the store failed before, and nobody knows what is durable.
    #[error("{path} failed earlier ({why}), so what was written there may not be durable: the store must be opened again")]
    Latched {
        /// What failed.
        path: PathBuf,
        /// The first failure.
        why: String,
    },
    /// No such object.
    #[error("{name} is not in the store at {path}")]
    NotFound {
        /// The object.
        name: String,
        /// The store.
        path: PathBuf,
    },
    /// A name that no object can have.
    #[error("`{0}` cannot be the name of an object")]
    BadName(String),

    /// A store in a bucket does not answer, or not as it should. It may later.
    #[error("{doing} {what}: {why}")]
    Remote {
        /// What was being done, as a present participle.
        doing: &'static str,
        /// The object, with the place of its store.
        what: String,
        /// What the service said, or why it said nothing.
        why: String,
    },
    /// A store in a bucket that does not let us in.
    #[error("{place} refuses access ({why}): give credentials that may read, write, list and delete there")]
    RemoteDenied {
        /// The store.
        place: String,
        /// What the service said.
        why: String,
    },
    /// The bucket is not there (any more).
    #[error("the bucket of {place} does not exist: make it, or correct the name; Farside makes none")]
    NoBucket {
        /// The store.
        place: String,
    },
    /// A service on which two writers can both believe that they made an object.
    #[error(
        "{place} cannot hold a store: {how}. Farside needs that of several who create an object at once exactly one succeeds (`If-None-Match: *`): use a service that does so"
    )]
    NotCreateOnly {
        /// The store.
        place: String,
        /// What the probe saw.
        how: String,
    },
    /// A bucket that holds the store no more.
    #[error(
        "{place} does not hold the store any more that this receiver has: its objects were removed, or are another store's; put them back, or give the receiver a new `state_dir` and `staging` to begin anew"
    )]
    Replaced {
        /// The store.
        place: String,
    },
    /// The directory for what is on its way to a bucket is another store's.
    #[error(
        "{path} holds what is on its way to another store ({found}, not {expected}): give this receiver a `staging` of its own"
    )]
    ForeignStaging {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },

    /// There is something else in the directory.
    #[error(
        "{path} is not a Farside store (no farside-store.json) and not empty: give the path of a store, or of an empty directory to make one"
    )]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// A description that cannot be read.
    #[error("{path} is damaged ({why}): restore it from a copy of the store")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// Written by a newer Farside.
    #[error("{path} has format version {found}; this Farside reads version {known}: use a newer one")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another receiver runs on it.
    #[error("{path} is locked: another receiver has this store open{holder}; stop it first")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// " (process N)", or nothing.
        holder: String,
    },
    /// A file system without dependable locks.
    #[error(
        "{path} is on {kind}, which cannot hold a store: locks and create-only files are not dependable there; use a local file system"
    )]
    NetworkFs {
        /// The directory.
        path: PathBuf,
        /// Its file system.
        kind: &'static str,
    },
    /// A file system without hard links.
    #[error(
        "the file system of {path} has no hard links ({why}), which the store needs to create files safely: use ext4, xfs, btrfs or zfs"
    )]
    NoHardLinks {
        /// The directory.
        path: PathBuf,
        /// What the probe met.
        why: String,
    },

    /// A ledger record that does not verify. Nothing is appended, pruned or swept in this group.
    #[error(
        "ledger of {group}: the record in slot {slot} ({file}) cannot be used: {why}. Points before it can be restored; nothing is added, pruned or swept until then: {remedy}"
    )]
    LedgerTorn {
        /// Source and group.
        group: String,
        /// The slot.
        slot: Slot,
        /// Its object.
        file: String,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The folder belongs to another group than its name says.
    #[error("{file} describes group {found}, not {expected}: it was copied or renamed; move it back to where it was")]
    ForeignGroup {
        /// The description.
        file: String,
        /// Which group was asked for.
        expected: GroupId,
        /// Which one is there.
        found: GroupId,
    },
    /// Somebody else appended first; the state has been brought up to date.
    #[error("slot {slot} was taken by another writer")]
    Overtaken {
        /// The slot that was tried.
        slot: Slot,
    },
    /// A record too large to be written.
    #[error("a ledger record cannot be written: {0}")]
    Record(String),
    /// A segment's content is not what was published.
    #[error(
        "volume {volume}, point {point}, region {region}: segment {segment} is corrupt ({why}); run `farside store check` and restore another point or bring the file back from a copy of the store"
    )]
    Corrupt {
        /// The volume's name.
        volume: String,
        /// The point that was read; `head` for the head image.
        point: String,
        /// Where in the volume.
        region: RegionIndex,
        /// Which object.
        segment: String,
        /// What does not fit.
        why: String,
    },
    /// A point is open for longer than what it lay in stays without a lease.
    #[error(
        "what volume {volume} was read from at point {point} lies in other files by now, since the receiver laid parts together: open the point again"
    )]
    PartMerged {
        /// The volume's name.
        volume: String,
        /// The point's slot.
        point: Slot,
    },
    /// Parts stay as they are.
    #[error("parts of volume {volume} are not merged: {segment}: {why}; `farside store check` says what is damaged")]
    NotMerged {
        /// The volume's name.
        volume: String,
        /// Which object.
        segment: String,
        /// What is wrong with it.
        why: String,
    },
    /// A part on its way in is not what it should be.
    #[error("part {part} of layer {layer} is refused: {why}")]
    BadPart {
        /// The layer.
        layer: LayerKey,
        /// Its number.
        part: u32,
        /// What is wrong.
        why: String,
    },
    /// A part that is to be published is not in landing.
    #[error("part {part} of layer {layer} is not in landing any more: the source must claim again")]
    PartMissing {
        /// The layer.
        layer: LayerKey,
        /// Its number.
        part: u32,
    },
    /// Another writer went on and wrote a checkpoint over our slot: what became of a record is in its state.
    #[error("slot {slot} of group {group} is covered by a checkpoint of another writer: the group must be opened again")]
    BehindCheckpoint {
        /// Source and group.
        group: String,
        /// The slot after our head.
        slot: Slot,
    },
    /// A record of ours is in its slot, and whether it counts could not be found out: what is in memory may be behind it.
    #[error("what became of the record in slot {slot} of group {group} is not known ({why}): the group must be opened again")]
    Uncertain {
        /// Source and group.
        group: String,
        /// Its slot.
        slot: Slot,
        /// What was in the way.
        why: String,
    },
    /// Something that must hold by the ledger's rules does not.
    #[error("ledger of {group}: {why}")]
    Inconsistent {
        /// Source and group.
        group: String,
        /// What.
        why: String,
    },

    /// No such group.
    #[error("the store has no group {group} of source {source_name}{known}")]
    NoSuchGroup {
        /// The source.
        source_name: String,
        /// The group.
        group: String,
        /// "; it has: …", or nothing.
        known: String,
    },
    /// No such volume.
    #[error("the store has no volume `{volume}`{known}")]
    NoSuchVolume {
        /// What was asked for.
        volume: String,
        /// "; it has: …", or nothing.
        known: String,
    },
    /// No such point.
    #[error("no point `{point}`: {why}")]
    NoSuchPoint {
        /// What was asked for.
        point: String,
        /// Why there is none.
        why: String,
    },
    /// It was given up, and nothing kept what it needs.
    #[error(
        "volume {volume}, point {point}: the point was deleted while it was opened or read: retention gave it up (by slot {slot} of its ledger), and no lease kept what it needs. Take another point; one that is to be read for long is pinned before: `farside point pin`"
    )]
    PointDeleted {
        /// The volume's name.
        volume: String,
        /// The point.
        point: Slot,
        /// The head of the ledger in which it is not a point any more.
        slot: Slot,
    },
    /// Not a member of the point.
    #[error("volume {volume} is not a member of point {point}: it was syncing, comparing or paused then")]
    NotAMember {
        /// The volume.
        volume: String,
        /// The point.
        point: Slot,
    },
    /// A point with runs that the source could not read.
    #[error(
        "volume {volume}, point {point}: the source could not read {bytes} bytes of its disk ({runs} runs, the first in region {region}); `--allow-degraded` restores the rest with zeroes there"
    )]
    Degraded {
        /// The volume.
        volume: String,
        /// The point.
        point: Slot,
        /// The first such region.
        region: RegionIndex,
        /// How many runs of granules.
        runs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A point that does not cover its volume.
    #[error("volume {volume}, point {point}: no layer holds region {region}: the store is incomplete; run `farside store check`")]
    Incomplete {
        /// The volume.
        volume: String,
        /// The point.
        point: Slot,
        /// The first such region.
        region: RegionIndex,
    },
    /// The restore target is too small.
    #[error("{path} has {has} bytes; volume {volume} needs {needs}")]
    TargetTooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        has: u64,
        /// The volume's name.
        volume: String,
        /// The volume's size.
        needs: u64,
    },
    /// There is something on the restore target.
    #[error("{path} is not empty: `--force` overwrites it")]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// The restore target failed.
    #[error("{doing} {path}: {source}{hint}")]
    Target {
        /// What was being done, as a present participle.
        doing: &'static str,
        /// The target.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
        /// "; what to do", or nothing.
        hint: &'static str,
    },
    /// Somebody uses the restore target.
    #[error("{path} is in use: {why}")]
    TargetBusy {
        /// The target.
        path: PathBuf,
        /// By whom.
        why: String,
    },
    /// It can never be restored to.
    #[error("{path} cannot be restored to: {why}")]
    TargetUnsuitable {
        /// The target.
        path: PathBuf,
        /// What it is, or what is missing.
        why: String,
    },
    /// All of a target is to be compared with the point that it held, and that cannot be read.
    #[error(
        "nobody can tell whether somebody else wrote to {path} (more was written there than was noted, or its writes are counted anew, as after \
         a boot), since point {point}, which it held, cannot be read: {source}; that is tried again, and to heal the follower (`farside follower \
         heal`, `farside store follow --heal`) compares it with a newer point instead, and overwrites what differs"
    )]
    TargetUntold {
        /// The target.
        path: PathBuf,
        /// What it held.
        point: Slot,
        /// Why it cannot be read.
        source: Box<StoreError>,
    },
    /// What a target holds is a point of a ledger that this one never went through.
    #[error(
        "{path} holds point {slot} of another history: the ledger was put back to an older state, or is another one. Look what the target holds before anything else; to heal it (`farside follower heal`, `farside store follow --heal`) overwrites it"
    )]
    TargetOfAnotherHistory {
        /// The target.
        path: PathBuf,
        /// What it holds.
        slot: Slot,
    },
    /// Somebody else wrote to a target.
    #[error(
        "{path} is not what was written to it ({why}): nothing more is applied. Look what the target holds before anything else; to heal it (`farside follower heal`, `farside store follow --heal`) overwrites it"
    )]
    TargetDiverged {
        /// The target.
        path: PathBuf,
        /// What is known.
        why: String,
    },
    /// A restored file is complete and could not get its name.
    #[error("{path} could not get its name ({why}); the restored volume is complete in {partial}")]
    NotNamed {
        /// The target.
        path: PathBuf,
        /// Where the volume is.
        partial: PathBuf,
        /// Why.
        why: String,
        /// Somebody writes to what it replaces: once that has ended, a resumed restore goes on with what is there, and replaces it.
        goes_on: bool,
    },
    /// An encrypted volume, and no key that opens it.
    #[error(
        "volume {volume} is encrypted {mode} with the key {key}, and cannot be read: {why}. The key is wrapped by: {wrapped}. Give what unwraps it: `--key file:PATH`, `--key passphrase[:FILE]` or `--key \"command:PROGRAM …\"`"
    )]
    KeyNeeded {
        /// The volume's name.
        volume: String,
        /// How it is encrypted.
        mode: &'static str,
        /// With which key.
        key: KeyId,
        /// The ways in which the store holds it.
        wrapped: String,
        /// What is missing, or does not fit.
        why: String,
    },
    /// A wrapped key that cannot be kept.
    #[error("a wrapped key cannot be kept in group {group}: {why}")]
    BadKey {
        /// Source and group.
        group: String,
        /// Why not.
        why: String,
    },
    /// The caller said stop.
    #[error("interrupted before it was done")]
    Stopped,
    /// An id the ledger does not know.
    #[error("volume {0} has never been claimed in this group")]
    UnknownVolume(VolumeId),
}

impl StoreError {
    /// What the program does about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Full { .. } | Self::ReadOnly { .. } | Self::Denied { .. } => Remedy::Retry,
            Self::Remote { .. } | Self::NoBucket { .. } => Remedy::Retry,
            // With credentials that may be other ones now.
            Self::RemoteDenied { .. } | Self::Replaced { .. } => Remedy::Reopen,
            Self::Io { source, .. } if is_shortage(source) => Remedy::Retry,
            Self::Vanished { .. } | Self::Latched { .. } | Self::Io { .. } => Remedy::Reopen,
            Self::BehindCheckpoint { .. } | Self::Uncertain { .. } => Remedy::Reopen,
            Self::Overtaken { .. } => Remedy::Rebuild,
            Self::PartMissing { .. } | Self::BadPart { .. } | Self::Record(_) => Remedy::Lose,
            _ => Remedy::Person,
        }
    }

    /// The layer that it is about, if it is about one.
    pub fn layer(&self) -> Option<LayerKey> {
        match self {
            Self::PartMissing { layer, .. } | Self::BadPart { layer, .. } => Some(*layer),
            _ => None,
        }
    }

    /// Of an error met while an object was *read*: what the medium did to this one object is not an error of the store.
    pub(crate) fn while_reading(self) -> Self {
        match self {
            Self::Io { path, source, .. } if is_of_medium(&source) => Self::Unreadable { path, source },
            other => other,
        }
    }

    /// An error of what a point is restored to.
    pub fn of_target(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => "; restore to where there is room for the volume's content",
            Some(libc::EROFS) => "; it cannot be written",
            Some(libc::EACCES | libc::EPERM) => "; run this as a user who may write there (a device may also be read-only)",
            _ => "",
        };
        Self::Target { doing, path: path.to_owned(), source, hint }
    }

    /// An error of the operating system, given its kind. `needed`: bytes that were being written.
    pub(crate) fn from_io(doing: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full { path, needed },
            Some(libc::EROFS) => Self::ReadOnly { path },
            Some(libc::EACCES | libc::EPERM) => Self::Denied { path },
            _ => Self::Io { doing, path, source },
        }
    }
}

/// This process or machine has too little of something at the moment; nothing is wrong with the store.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// "; it has: a, b" for messages about names that do not exist.
pub(crate) fn known(names: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let all: Vec<_> = names.into_iter().take(20).map(|n| n.to_string()).collect();
    if all.is_empty() { String::new() } else { format!("; it has: {}", all.join(", ")) }
}
