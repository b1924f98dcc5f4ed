//! What the disks of a host that was failed over hold, and no point does: its branch. It is kept before it is overwritten.
//!
//! Invariants:
//! - † a granule of a disk is overwritten only after what it held is durable in the branch; and what the branch has of a granule is what the disk held
//!   before anything of this failback was written there: the first that is kept stays;
//! - a branch lies over one point, from its beginning to its end: the newest from before the failover that the gateway had. That point is pinned
//!   there before anything is overwritten;
//! - what is left behind by a kill is gone on with; nothing of a branch is removed but by a person, or where nothing differed.
//!
//! A volume of a branch is an overlay (`docs/formats/overlay.md`), so whoever has the store and the folder opens it as a block device.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use farside_control::PointId;
use farside_control::failback::BranchStatus;
use farside_region::{ByteExtent, Geometry, GranuleRun, Name, VolumeId};
use farside_store::{FileTarget, RestoreTarget as _};
use farside_view::{Origin, Overlay};
use farside_wire::PullPoint;
use serde::{Deserialize, Serialize};

use super::note::At;
use crate::config::{sync_dir, write_atomically};

const VERSION: u32 = 1;
const DESCRIPTION: &str = "branch.json";
/// The ending of what is being removed.
const GONE: &str = "removed";
/// So much of the state directory's file system is left alone: intent maps grow there.
const ROOM_LEFT: u64 = 64 << 20;

/// What becomes of what the disks hold and no point does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub(super) enum Branch {
    /// There is nothing, or a person gave it up.
    #[default]
    None,
    /// It is to be kept; nothing is overwritten yet.
    Wanted,
    /// It is kept in the folder of that name, over that point. `whole`: all of it is, and the disks were that point.
    Kept { id: String, over: At, whole: bool },
}

impl Branch {
    /// Whether something is left to be kept.
    pub(super) fn is_due(&self) -> bool {
        matches!(self, Self::Wanted | Self::Kept { whole: false, .. })
    }
}

/// A branch as its folder says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    version: u32,
    source: Name,
    group: Name,
    generation: u64,
    over: At,
    began_wall_ms: i64,
    volumes: Vec<Name>,
    whole: bool,
    /// What differs from the point.
    bytes: u64,
    /// What could not be read of the disks, and is in no branch.
    unreadable_bytes: u64,
}

/// The branches of a host.
pub(super) fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("branches")
}

fn folder_of(state_dir: &Path, group: &Name, id: &str) -> PathBuf {
    folder(state_dir).join(group.as_str()).join(id)
}

/// A branch that is being written.
#[derive(Debug)]
pub(super) struct Keeping {
    dir: PathBuf,
    volumes: BTreeMap<Name, Arc<Kept>>,
}

/// What is kept of one volume.
#[derive(Debug)]
pub(super) struct Kept {
    overlay: Overlay,
    dir: PathBuf,
    /// Bytes of the disk that could not be read, by this process.
    unreadable: AtomicU64,
}

/// Why a granule cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: {why}. What the disks hold and no point does is kept there before it is overwritten: make room, or give it up with farside failback \
     --discard-branch"
)]
pub(super) struct KeepError {
    path: String,
    why: String,
}

/// Begins one over a point, or goes on with it. Its folder is durable then.
///
/// # Errors
/// What the file system says.
pub(super) fn begin(state_dir: &Path, (source, group): (&Name, &Name), generation: u64, over: &At) -> anyhow::Result<String> {
    let now = jiff::Timestamp::now();
    let id = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut dir = folder(state_dir);
    let of_group = dir.join(group.as_str());
    for step in [dir.clone(), of_group.clone(), of_group.join(&id)] {
        std::fs::create_dir_all(&step)?;
        sync_dir(step.parent().unwrap_or(state_dir))?;
        dir = step;
    }
    let description = Description {
        version: VERSION,
        source: source.clone(),
        group: group.clone(),
        generation,
        over: over.clone(),
        began_wall_ms: now.as_millisecond(),
        volumes: Vec::new(),
        whole: false,
        bytes: 0,
        unreadable_bytes: 0,
    };
    description.keep(&dir)?;
    Ok(id)
}

impl Description {
    fn keep(&self, dir: &Path) -> anyhow::Result<()> {
        Ok(write_atomically(&dir.join(DESCRIPTION), &serde_json::to_string_pretty(self)?)?)
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let read: Self = serde_json::from_str(&std::fs::read_to_string(dir.join(DESCRIPTION))?)?;
        anyhow::ensure!(read.version == VERSION, "it is of version {}, and this build reads {VERSION}", read.version);
        Ok(read)
    }

    fn show(&self, id: &str, dir: &Path) -> BranchStatus {
        BranchStatus {
            id: format!("{}/{id}", self.group),
            group: self.group.to_string(),
            source: self.source.to_string(),
            path: dir.display().to_string(),
            over: Some(self.over.shown()),
            began: jiff::Timestamp::from_millisecond(self.began_wall_ms).ok(),
            volumes: self.volumes.iter().map(Name::to_string).collect(),
            whole: self.whole,
            bytes: self.bytes,
            unreadable_bytes: self.unreadable_bytes,
            trouble: None,
        }
    }
}

impl Keeping {
    /// Opens what is kept of a group's volumes in that branch.
    ///
    /// # Errors
    /// Those of an overlay, and what the file system says.
    pub(super) fn open(
        state_dir: &Path,
        (source, group): (&Name, &Name),
        id: &str,
        store: [u8; 16],
        (over, point): (&At, &PullPoint),
    ) -> anyhow::Result<Self> {
        let dir = folder_of(state_dir, group, id);
        let point_id = PointId::new(over.position.slot.0, &over.position.digest.0);
        let mut volumes = BTreeMap::new();
        for member in &point.members {
            let name = &member.meta.name;
            let geometry = member.meta.geometry.resized(member.volume_bytes)?;
            let origin = origin(store, (source, group, name), member.meta.id, point_id, &geometry);
            let path = dir.join(name.as_str());
            let overlay = Overlay::open(&path, &origin, &geometry)?;
            volumes.insert(name.clone(), Arc::new(Kept { overlay, dir: path, unreadable: AtomicU64::new(0) }));
        }
        Ok(Self { dir, volumes })
    }

    /// Of one volume.
    pub(super) fn of(&self, volume: &Name) -> Option<Arc<Kept>> {
        self.volumes.get(volume).cloned()
    }

    /// What is in it by now.
    pub(super) fn bytes(&self) -> u64 {
        self.volumes.values().map(|kept| kept.overlay.written_bytes()).sum()
    }

    /// All of it is there. `false`: nothing differed, and the branch is gone.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn end(self) -> anyhow::Result<bool> {
        let (mut bytes, mut unreadable_bytes) = (0, 0);
        for kept in self.volumes.values() {
            kept.overlay.flush()?;
            bytes += kept.overlay.written_bytes();
            unreadable_bytes += kept.unreadable.load(Ordering::Relaxed);
        }
        if bytes == 0 && unreadable_bytes == 0 {
            drop(self.volumes);
            remove(&self.dir)?;
            return Ok(false);
        }
        let volumes = self.volumes.keys().cloned().collect();
        Description { volumes, whole: true, bytes, unreadable_bytes, ..Description::read(&self.dir)? }.keep(&self.dir)?;
        Ok(true)
    }
}

fn origin(
    store: [u8; 16],
    (source, group, volume): (&Name, &Name, &Name),
    id: VolumeId,
    point: PointId,
    geometry: &Geometry,
) -> Origin {
    Origin {
        store: HEXLOWER.encode(&store),
        volume: format!("{source}/{group}/{volume}"),
        volume_id: id.to_string(),
        point: point.to_string(),
        volume_bytes: geometry.volume_bytes(),
        granule_bytes: geometry.granule_bytes(),
    }
}

impl Kept {
    /// Keeps what a disk holds of these runs, but for what is kept already; durable when this returns. Says how many bytes are new.
    ///
    /// # Errors
    /// [`KeepError`]: none of these runs may be overwritten.
    pub(super) fn keep(&self, target: &FileTarget, geometry: &Geometry, runs: &[GranuleRun]) -> Result<u64, KeepError> {
        let failed = |why: &dyn std::fmt::Display| KeepError { path: self.dir.display().to_string(), why: why.to_string() };
        let wanted = runs.iter().map(|run| geometry.bytes_of(*run).len).sum::<u64>();
        if self.overlay.room_bytes().map_err(|error| failed(&error))? < ROOM_LEFT + wanted {
            return Err(failed(&format!("less than {} MiB would be left there", ROOM_LEFT >> 20)));
        }
        // One read for each run; what is read piece by piece is what cannot be read as a whole.
        let mut ahead: Vec<(ByteExtent, Vec<u8>)> = Vec::new();
        for run in runs {
            let extent = geometry.bytes_of(*run);
            let mut bytes = vec![0; extent.len as usize];
            if target.read_at(extent.offset, &mut bytes).is_ok() {
                ahead.push((extent, bytes));
            }
        }
        let read = |extent: ByteExtent, out: &mut [u8]| {
            let end = |extent: &ByteExtent| extent.offset.0 + extent.len;
            let within = ahead.iter().find(|(run, _)| run.offset <= extent.offset && end(&extent) <= end(run));
            let Some((run, bytes)) = within else { return target.read_at(extent.offset, out) };
            let from = (extent.offset.0 - run.offset.0) as usize;
            out.copy_from_slice(&bytes[from..from + out.len()]);
            Ok(())
        };
        let kept = self.overlay.keep(runs, read).map_err(|why| failed(&why))?;
        self.unreadable.fetch_add(kept.unreadable, Ordering::Relaxed);
        Ok(kept.bytes)
    }
}

/// All that are kept.
pub(super) fn all(state_dir: &Path) -> Vec<BranchStatus> {
    let mut found = Vec::new();
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !is_gone(path)).collect();
        paths.sort();
        paths
    };
    let named = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    for of_group in entries(&folder(state_dir)) {
        for dir in entries(&of_group) {
            let id = named(&dir);
            found.push(Description::read(&dir).map_or_else(
                |error| BranchStatus {
                    id: format!("{}/{id}", named(&of_group)),
                    group: named(&of_group),
                    path: dir.display().to_string(),
                    trouble: Some(format!("{DESCRIPTION}: {error:#}")),
                    ..BranchStatus::default()
                },
                |description| description.show(&id, &dir),
            ));
        }
    }
    found
}

/// A person wants it no more.
///
/// # Errors
/// When somebody has a part of it open, or what the file system says.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let lock = entry?.path().join("lock");
        if let Ok(lock) = std::fs::File::open(&lock)
            && lock.try_lock().is_err()
        {
            anyhow::bail!("{} is open: farside point close", dir.display());
        }
    }
    // In one step, so that what a kill leaves is not taken for a branch.
    let gone = dir.with_extension(GONE);
    std::fs::rename(dir, &gone)?;
    std::fs::remove_dir_all(&gone)?;
    Ok(sync_dir(dir.parent().unwrap_or(dir))?)
}

/// Removes what a kill in the middle of a removal left.
pub(super) fn sweep(state_dir: &Path) {
    let groups = std::fs::read_dir(folder(state_dir)).into_iter().flatten().filter_map(Result::ok);
    for of_group in groups {
        for entry in std::fs::read_dir(of_group.path()).into_iter().flatten().filter_map(Result::ok) {
            if is_gone(&entry.path()) {
                let _ = std::fs::remove_dir_all(entry.path()); // by the next start, then
            }
        }
    }
}

fn is_gone(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == GONE)
}
