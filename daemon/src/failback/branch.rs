//! What the disks of a host that was failed over hold, and no point does: its branch. It is kept before it is overwritten.
//!
//! Invariants:
//! - † a granule of a disk is overwritten only after what it held is durable in the branch; and what the branch has of a granule is what the disk held
//!   before anything of this failback was written there: the first that is kept stays. So what was overwritten can be put back, by this host alone;
//! - a branch lies over one point, from its beginning to its end, which the gateway has pinned before anything is overwritten;
//! - † what was begun is gone on with only where it is: a folder that is not there is not made anew;
//! - nothing of a branch is removed but by a person, or where nothing differed, or where all of it is on the disks again.
//!
//! A volume of a branch is an overlay (`docs/formats/overlay.md`), so whoever has the store and the folder opens it as a block device.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use farside_control::PointId;
use farside_control::failback::BranchStatus;
use farside_region::{ByteExtent, Geometry, GranuleIndex, GranuleRun, LedgerPosition, Name};
use farside_replication::failback::At;
use farside_store::{FileTarget, RestoreTarget as _};
use farside_view::{Origin, Overlay};
use farside_wire::{PullMember, PullPoint};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::note::{Held, shown};
use crate::config::{sync_dir, write_atomically};
use crate::locked;

const VERSION: u32 = 2;
/// Of those that a failback keeps, or has kept in whole.
const VERSION_KEPT: u32 = 1;
/// So many places that could not be put back are said in words.
const PLACES_MAX: usize = 8;
/// No volume has such a name.
const DESCRIPTION: &str = ".branch.json";
/// The ending of what is being removed.
const GONE: &str = "removed";
/// So much of the state directory's file system is left alone: intent maps grow there.
const ROOM_LEFT: u64 = 64 << 20;
/// Of all volumes that are kept.
const GRANULE_BYTES: u64 = 4096;
/// What cannot be read is taken for lost only when it could not be so many times, with pauses between: a path may come back.
const READ_TRIES: u32 = 3;

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
    /// Those of which not all is there: they were let go of meanwhile.
    partial: Vec<Name>,
    whole: bool,
    /// What differs from the point.
    bytes: u64,
    /// What could not be read of the disks, and is in no branch.
    unreadable: Vec<Unreadable>,
    /// The rest was put back: the disks are what they were but for what is unreadable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    put_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unreadable {
    volume: Name,
    offset: u64,
    bytes: u64,
}

/// How often which granules could not be read.
pub(super) type Suspects = Mutex<BTreeMap<(Name, GranuleIndex), u32>>;

/// A branch that is being written.
#[derive(Debug)]
pub(super) struct Keeping {
    dir: PathBuf,
    volumes: BTreeMap<Name, Arc<KeptVolume>>,
    description: Arc<Mutex<Description>>,
}

/// What is kept of one volume.
#[derive(Debug)]
pub(super) struct KeptVolume {
    name: Name,
    /// Of the branch.
    dir: PathBuf,
    overlay: Overlay,
    description: Arc<Mutex<Description>>,
    suspects: Arc<Suspects>,
}

/// Why a granule cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub(super) struct KeepError {
    path: String,
    why: String,
}

/// The branches of a host.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("branches")
}

fn folder_of(state_dir: &Path, group: &Name, id: &Name) -> PathBuf {
    folder(state_dir).join(group.as_str()).join(id.as_str())
}

/// A volume of the point, as it would lie below a branch.
///
/// # Errors
/// When its shape is none that a disk of ours has.
fn shape(member: &PullMember) -> anyhow::Result<Geometry> {
    let geometry = member.meta.geometry.resized(member.volume_bytes)?;
    let usual = Geometry::new(member.volume_bytes)?;
    anyhow::ensure!(geometry == usual, "volume {} has granules or regions of another size", member.meta.name);
    Ok(geometry)
}

/// Begins one over a point, of the volumes that are held. All that it will be written into is durable then.
///
/// # Errors
/// What the file system says: nothing is left of it.
pub(super) fn begin(
    state_dir: &Path,
    (source, group): (&Name, &Name),
    generation: u64,
    store: [u8; 16],
    (held, point): (&[Held], &PullPoint),
) -> anyhow::Result<Name> {
    let now = jiff::Timestamp::now();
    let mut random = [0; 3];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let id: Name = format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), HEXLOWER.encode(&random)).parse()?;
    let (of_all, of_group) = (folder(state_dir), folder(state_dir).join(group.as_str()));
    let dir = of_group.join(id.as_str());
    for step in [&of_all, &of_group] {
        std::fs::create_dir_all(step).with_context(|| step.display().to_string())?;
        sync_dir(step.parent().unwrap_or(state_dir))?;
    }
    std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
    let over = At::from(point);
    let make = || {
        for held in held {
            let member = point.members.iter().find(|member| member.meta.name == held.name);
            let member = member.with_context(|| format!("volume {} is not in point {}", held.name, point.position.slot))?;
            let geometry = shape(member)?;
            let origin = Origin {
                store: HEXLOWER.encode(&store),
                volume: format!("{source}/{group}/{}", held.name),
                volume_id: member.meta.id.to_string(),
                point: PointId::new(over.position.slot.0, &over.position.digest.0).to_string(),
                volume_bytes: geometry.volume_bytes(),
                granule_bytes: geometry.granule_bytes(),
            };
            Overlay::open(&dir.join(held.name.as_str()), &origin, &geometry)?;
        }
        let description = Description {
            version: VERSION_KEPT,
            source: source.clone(),
            group: group.clone(),
            generation,
            over: over.clone(),
            began_wall_ms: now.as_millisecond(),
            volumes: held.iter().map(|held| held.name.clone()).collect(),
            partial: Vec::new(),
            whole: false,
            bytes: 0,
            unreadable: Vec::new(),
            put_back: false,
        };
        description.keep(&dir)?;
        Ok(sync_dir(&of_group)?)
    };
    let made: anyhow::Result<()> = make();
    if let Err(error) = made {
        let _ = std::fs::remove_dir_all(&dir);
        return Err(error);
    }
    Ok(id)
}

impl Description {
    fn keep(&self, dir: &Path) -> anyhow::Result<()> {
        Ok(write_atomically(&dir.join(DESCRIPTION), &serde_json::to_string_pretty(self)?)?)
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let read: Self = serde_json::from_str(&std::fs::read_to_string(dir.join(DESCRIPTION))?)?;
        let is_known = (VERSION_KEPT..=VERSION).contains(&read.version);
        anyhow::ensure!(is_known, "it is of version {}, and this build reads up to {VERSION}", read.version);
        Ok(read)
    }

    /// Where the disks are not what they were though all that was kept is put back, in words.
    fn places(&self) -> String {
        let mut places: Vec<Unreadable> = Vec::new();
        let mut all = self.unreadable.clone();
        all.sort_by(|a, b| (&a.volume, a.offset).cmp(&(&b.volume, b.offset)));
        for one in all {
            match places.last_mut() {
                Some(last) if last.volume == one.volume && last.offset + last.bytes == one.offset => last.bytes += one.bytes,
                _ => places.push(one),
            }
        }
        let more = places.len().saturating_sub(PLACES_MAX);
        let named =
            places.iter().take(PLACES_MAX).map(|one| format!("{} bytes at {} of volume {}", one.bytes, one.offset, one.volume));
        let mut said = named.collect::<Vec<_>>().join(", ");
        if more > 0 {
            said.push_str(&format!(" and {more} more"));
        }
        said
    }

    fn show(&self, id: &str, dir: &Path) -> BranchStatus {
        // Of one that is not whole as much as its files take.
        let taken = |volume: &Name| {
            let data = std::fs::metadata(dir.join(volume.as_str()).join("data"));
            data.map_or(0, |data| data.blocks() * 512)
        };
        let names = |of: &[Name]| of.iter().map(Name::to_string).collect();
        BranchStatus {
            id: format!("{}/{id}", self.group),
            group: self.group.to_string(),
            source: self.source.to_string(),
            path: dir.display().to_string(),
            over: Some(shown(&self.over)),
            began: jiff::Timestamp::from_millisecond(self.began_wall_ms).ok(),
            volumes: names(&self.volumes),
            partial: names(&self.partial),
            whole: self.whole,
            bytes: if self.whole { self.bytes } else { self.volumes.iter().map(taken).sum() },
            unreadable_bytes: self.unreadable.iter().map(|one| one.bytes).sum(),
            trouble: self.put_back.then(|| not_as_before(&self.places())),
        }
    }
}

/// A folder that was made for one, and the overlay in it. † One that is not there is not made anew: it may be on a disk that is not mounted.
fn reopen(dir: &Path, volume: &Name) -> anyhow::Result<Overlay> {
    let path = dir.join(volume.as_str());
    anyhow::ensure!(
        Overlay::is_in(&path),
        "{} is not there, in which what only the disks held is kept: bring it back (is its file system mounted?)",
        path.display()
    );
    Ok(Overlay::reopen(&path)?)
}

impl Keeping {
    /// Opens what is kept of the volumes that are held.
    ///
    /// # Errors
    /// When not all of it is there, or it lies over another point; what the file system says.
    pub(super) fn open(
        state_dir: &Path,
        (group, id): (&Name, &Name),
        over: &At,
        held: &[Held],
        suspects: &Arc<Suspects>,
    ) -> anyhow::Result<Self> {
        let dir = folder_of(state_dir, group, id);
        let description = Description::read(&dir).with_context(|| format!("{}/{DESCRIPTION}", dir.display()))?;
        anyhow::ensure!(description.over == *over, "{} is of another branch", dir.display());
        let description = Arc::new(Mutex::new(description));
        let mut volumes = BTreeMap::new();
        for held in held {
            let kept = KeptVolume {
                name: held.name.clone(),
                dir: dir.clone(),
                overlay: reopen(&dir, &held.name)?,
                description: description.clone(),
                suspects: suspects.clone(),
            };
            volumes.insert(held.name.clone(), Arc::new(kept));
        }
        Ok(Self { dir, volumes, description })
    }

    /// Of one volume.
    pub(super) fn of(&self, volume: &Name) -> Option<Arc<KeptVolume>> {
        self.volumes.get(volume).cloned()
    }

    /// What is in it by now.
    pub(super) fn bytes(&self) -> u64 {
        self.volumes.values().map(|kept| kept.overlay.written_bytes()).sum()
    }

    /// All of it is there. `false`: nothing differed.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn end(self) -> anyhow::Result<bool> {
        for kept in self.volumes.values() {
            kept.overlay.flush()?;
        }
        let mut description = locked(&self.description).clone();
        let gone = |name: &&Name| !self.volumes.contains_key(*name);
        description.partial = description.volumes.iter().filter(gone).cloned().collect();
        description.bytes = self.bytes();
        // What could be read later, after all, is there.
        description.unreadable.retain(|one| {
            let granule = GranuleIndex(one.offset / GRANULE_BYTES);
            self.volumes.get(&one.volume).is_none_or(|kept| !kept.overlay.has(granule))
        });
        description.whole = true;
        description.keep(&self.dir)?;
        Ok(description.bytes > 0 || !description.unreadable.is_empty() || !description.partial.is_empty())
    }
}

impl KeptVolume {
    /// Keeps what a disk holds of these runs, but for what is kept already; durable when this returns. Says how many bytes are new.
    ///
    /// # Errors
    /// [`KeepError`]: none of these runs may be overwritten.
    pub(super) fn keep(&self, target: &FileTarget, geometry: &Geometry, runs: &[GranuleRun]) -> Result<u64, KeepError> {
        let failed = |why: &dyn std::fmt::Display| KeepError { path: self.dir.display().to_string(), why: why.to_string() };
        let wanted = runs.iter().map(|run| geometry.bytes_of(*run).len).sum::<u64>();
        let is = nix::sys::statvfs::statvfs(&self.dir).map_err(|errno| failed(&errno))?;
        if is.blocks() > 0 && is.blocks_available().saturating_mul(is.fragment_size()) < ROOM_LEFT + wanted {
            return Err(failed(&format!(
                "less than {} MiB would be left there by what the disks hold and no point does, which is kept before it is overwritten: make room",
                ROOM_LEFT >> 20
            )));
        }
        let (ahead, lost) = self.read(target, geometry, runs)?;
        let end = |extent: &ByteExtent| extent.offset.0 + extent.len;
        let read = |extent: ByteExtent, out: &mut [u8]| {
            if lost.contains(&extent) {
                return Ok(false);
            }
            let within = ahead.iter().find(|(run, _)| run.offset <= extent.offset && end(&extent) <= end(run));
            let (run, bytes) = within.ok_or(Errno::EIO)?;
            let from = (extent.offset.0 - run.offset.0) as usize;
            out.copy_from_slice(&bytes[from..from + out.len()]);
            Ok(true)
        };
        self.overlay.keep(runs, read).map_err(|why| failed(&why))
    }

    /// What a disk holds of these runs, and which granules of it are lost.
    ///
    /// # Errors
    /// When some cannot be read that may be another time. What is taken for lost is noted, durably, before.
    #[expect(clippy::type_complexity, reason = "two lists, for one caller")]
    fn read(
        &self,
        target: &FileTarget,
        geometry: &Geometry,
        runs: &[GranuleRun],
    ) -> Result<(Vec<(ByteExtent, Vec<u8>)>, Vec<ByteExtent>), KeepError> {
        let (mut ahead, mut lost, mut first) = (Vec::new(), Vec::new(), None);
        for run in runs {
            let extent = geometry.bytes_of(*run);
            let mut bytes = vec![0; extent.len as usize];
            if target.read_at(extent.offset, &mut bytes).is_ok() {
                ahead.push((extent, bytes));
                continue;
            }
            for granule in (run.start.0..run.end().0).map(GranuleIndex).filter(|granule| !self.overlay.has(*granule)) {
                let extent = geometry.bytes_of(GranuleRun { start: granule, count: 1 });
                let mut bytes = vec![0; extent.len as usize];
                let Err(why) = target.read_at(extent.offset, &mut bytes) else {
                    ahead.push((extent, bytes));
                    continue;
                };
                lost.push(extent);
                let mut suspects = locked(&self.suspects);
                let tried = suspects.entry((self.name.clone(), granule)).or_default();
                *tried += 1;
                if *tried < READ_TRIES {
                    first.get_or_insert((extent.offset.0, why));
                }
            }
        }
        if let Some((offset, why)) = first {
            let path = target.path().display().to_string();
            return Err(KeepError {
                path,
                why: format!("{offset} bytes from its beginning it cannot be read ({why}); it is tried again"),
            });
        }
        if !lost.is_empty() {
            // Before it is overwritten: afterwards nobody could tell.
            let mut description = locked(&self.description);
            for extent in &lost {
                let one = Unreadable { volume: self.name.clone(), offset: extent.offset.0, bytes: extent.len };
                if !description.unreadable.contains(&one) {
                    description.unreadable.push(one);
                }
            }
            warn!(volume = %self.name, granules = lost.len(), "what cannot be read of a disk is in no branch, and is overwritten");
            description
                .keep(&self.dir)
                .map_err(|error| KeepError { path: self.dir.display().to_string(), why: format!("{error:#}") })?;
        }
        Ok((ahead, lost))
    }
}

/// Puts back onto a disk what was kept of it, and says how much that is. `None`: somebody wants it to stop; it is to begin anew.
///
/// # Errors
/// What the disk or the file system says: it may be in part what it was then, and can be put back again.
pub(super) fn put_back(
    state_dir: &Path,
    (group, id): (&Name, &Name),
    (volume, target): (&Name, &FileTarget),
    interrupt: &AtomicU64,
) -> anyhow::Result<Option<u64>> {
    let is_interrupted = || interrupt.load(Ordering::SeqCst) > 0;
    let mut gave_way = false;
    let overlay = reopen(&folder_of(state_dir, group, id), volume)?;
    let mut failed = None;
    let given = overlay.give(|extent, content| {
        if is_interrupted() {
            gave_way = true;
            return Err(Errno::EINTR);
        }
        target.write_at(extent.offset, content).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            failed = Some(error);
            errno
        })
    });
    if let Some(error) = failed {
        return Err(error).with_context(|| target.path().display().to_string());
    }
    if gave_way {
        return Ok(None);
    }
    given?;
    target.sync()?;
    Ok(Some(overlay.written_bytes()))
}

/// All that are kept.
pub(super) fn all(state_dir: &Path) -> Vec<BranchStatus> {
    let mut found = Vec::new();
    let named = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    for of_group in folders(&folder(state_dir)) {
        for dir in folders(&of_group).into_iter().filter(|dir| !is_gone(dir)) {
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

/// The source and group of a branch, and the point that it lies over.
pub(super) fn base(dir: &Path) -> Option<((Name, Name), LedgerPosition)> {
    let description = Description::read(dir).ok()?;
    Some(((description.source, description.group), description.over.position))
}

/// It is not wanted any more.
///
/// # Errors
/// When somebody has a part of it open, or what the file system says: it stays then.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    for volume in folders(dir) {
        if !Overlay::is_free(&volume).with_context(|| format!("whether {} is open is not known", volume.display()))? {
            anyhow::bail!("{} is open: farside point close", volume.display());
        }
    }
    // In one step, so that what a kill leaves is not taken for a branch.
    let gone = dir.with_extension(GONE);
    std::fs::rename(dir, &gone)?;
    if let Err(error) = std::fs::remove_dir_all(&gone) {
        warn!(path = %gone.display(), %error, "a branch that is gone takes room until the next start");
    }
    Ok(sync_dir(dir.parent().unwrap_or(dir))?)
}

/// What a branch is worth whose content was put back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: the disks are what they were, and it is gone.
    Nothing,
    /// It has what is on no disk, and stays.
    Content,
    /// It says where the disks are not what they were, and stays; in words.
    Places(String),
}

/// All that was kept of these volumes is on their disks again.
///
/// # Errors
/// When it cannot be told what it has, or that cannot be kept: it stays.
pub(super) fn is_put_back(state_dir: &Path, group: &Name, id: &Name, held: &[Held]) -> anyhow::Result<Left> {
    let dir = folder_of(state_dir, group, id);
    let mut description = Description::read(&dir).with_context(|| format!("{}/{DESCRIPTION}", dir.display()))?;
    // † Of a volume that left meanwhile it holds what is on no disk.
    let is_all = description.volumes.iter().all(|name| held.iter().any(|held| held.name == *name));
    // What could be read later, after all, was put back.
    let mut lost = Vec::new();
    for one in std::mem::take(&mut description.unreadable) {
        if !reopen(&dir, &one.volume)?.has(GranuleIndex(one.offset / GRANULE_BYTES)) {
            lost.push(one);
        }
    }
    description.unreadable = lost;
    match (description.unreadable.is_empty(), is_all) {
        (true, true) => {
            forget(state_dir, group, id);
            Ok(Left::Nothing)
        }
        (true, false) => Ok(Left::Content),
        // † What was there is overwritten, and nothing else says where.
        (false, _) => {
            (description.version, description.put_back) = (VERSION, true);
            description.keep(&dir)?;
            Ok(Left::Places(description.places()))
        }
    }
}

fn not_as_before(places: &str) -> String {
    format!(
        "the disks were put back but for what could not be read before it was overwritten: {places} may hold what a point has there, not what was there"
    )
}

/// The same of one that holds nothing, or whose content is on the disks again.
pub(super) fn forget(state_dir: &Path, group: &Name, id: &Name) {
    let dir = folder_of(state_dir, group, id);
    if let Err(error) = remove(&dir) {
        warn!(path = %dir.display(), "a branch that is not needed any more stays: {error:#}");
    }
}

/// Removes what a kill in the middle of a removal left.
pub(super) fn sweep(state_dir: &Path) {
    for of_group in folders(&folder(state_dir)) {
        for gone in folders(&of_group).into_iter().filter(|dir| is_gone(dir)) {
            let _ = std::fs::remove_dir_all(gone); // by the next start, then
        }
    }
}

fn is_gone(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == GONE)
}

/// Folders in a folder, by name; no links.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let mut paths: Vec<PathBuf> = entries.filter(is_folder).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use farside_ledger::{EpochInfo, VolumeMeta};
    use farside_region::{BootId, DigestKey, Generation, RecordDigest, Slot, VolumeId};
    use farside_wire::RequestId;

    use super::*;

    const BYTES: u64 = 12 << 20;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn held(path: &Path) -> Held {
        Held::of("data", path, None)
    }

    fn point() -> PullPoint {
        let meta = VolumeMeta {
            id: VolumeId([3; 16]),
            name: name("data"),
            geometry: Geometry::new(BYTES).expect("valid"),
            digest_key: DigestKey::Clear([7; 32]),
            generation: Generation(1),
        };
        PullPoint {
            id: RequestId(1),
            position: LedgerPosition { slot: Slot(42), digest: RecordDigest([1; 32]) },
            epoch: EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 3 },
            generation: Generation(2),
            promotion: Some(Generation(2)),
            is_since: false,
            passed_over: None,
            other: None,
            members: vec![PullMember { meta, volume_bytes: BYTES, touched: None }],
        }
    }

    fn begun(state: &Path, disk: &Path) -> Name {
        begin(state, (&name("web1"), &name("db")), 2, [9; 16], (&[held(disk)], &point())).expect("begun")
    }

    fn open(state: &Path, id: &Name, disk: &Path, suspects: &Arc<Suspects>) -> anyhow::Result<Keeping> {
        Keeping::open(state, (&name("db"), id), &At::from(&point()), &[held(disk)], suspects)
    }

    fn target(disk: &Path) -> FileTarget {
        FileTarget::open_to_follow(disk, "data", 0, false, true).expect("a disk")
    }

    const RUNS: [GranuleRun; 2] =
        [GranuleRun { start: GranuleIndex(3), count: 2 }, GranuleRun { start: GranuleIndex(2047), count: 3 }];

    #[test]
    fn what_was_overwritten_is_put_back_and_one_that_is_elsewhere_is_not_made_anew() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
        std::fs::create_dir(&state).expect("made");
        let content: Vec<u8> = (0..BYTES).map(|at| (at / 4096) as u8 | 1).collect();
        std::fs::write(&disk, &content).expect("written");
        let (id, suspects, geometry) = (begun(&state, &disk), Arc::default(), Geometry::new(BYTES).expect("valid"));
        assert_ne!(begun(&state, &disk), id, "two that are begun at one moment are two");
        let keeping = open(&state, &id, &disk, &suspects).expect("there");
        assert!(open(&state, &id, &disk, &suspects).is_err(), "two write it");
        let kept = keeping.of(&name("data")).expect("held");
        assert_eq!(kept.keep(&target(&disk), &geometry, &RUNS).expect("kept"), 5 * 4096);
        for run in RUNS {
            let extent = geometry.bytes_of(run);
            target(&disk).write_at(extent.offset, &vec![0xcc; extent.len as usize]).expect("written");
        }
        assert_eq!(kept.keep(&target(&disk), &geometry, &RUNS).expect("kept"), 0, "what was kept first stays");
        drop((kept, keeping));
        let shown = all(&state);
        assert_eq!(shown.len(), 2);
        let one = shown.iter().find(|one| one.id == format!("db/{id}")).expect("listed");
        assert!(!one.whole && one.bytes >= 5 * 4096 && one.volumes == ["data"], "{one:?}");

        // On a file system that is not mounted.
        let (at, aside) = (folder_of(&state, &name("db"), &id), dir.path().join("aside"));
        std::fs::rename(&at, &aside).expect("moved");
        assert!(open(&state, &id, &disk, &suspects).is_err() && !at.exists(), "it is made anew");
        std::fs::create_dir(&at).and_then(|()| std::fs::copy(aside.join(DESCRIPTION), at.join(DESCRIPTION))).expect("in part");
        let missing = open(&state, &id, &disk, &suspects).expect_err("its overlay is not there").to_string();
        assert!(missing.contains("mounted") && !at.join("data").exists(), "{missing}");
        assert!(put_back(&state, (&name("db"), &id), (&name("data"), &target(&disk)), &AtomicU64::new(0)).is_err());
        std::fs::remove_dir_all(&at).and_then(|()| std::fs::rename(&aside, &at)).expect("back");

        // Who has to stop gives way at once, and begins anew.
        let stopped = put_back(&state, (&name("db"), &id), (&name("data"), &target(&disk)), &AtomicU64::new(1));
        assert!(stopped.expect("nothing is wrong").is_none());
        put_back(&state, (&name("db"), &id), (&name("data"), &target(&disk)), &AtomicU64::new(0)).expect("put back");
        assert!(std::fs::read(&disk).expect("read") == content);
        let whole = open(&state, &id, &disk, &suspects).expect("there").end().expect("ended");
        assert!(whole && all(&state).iter().any(|one| one.whole && one.bytes == 5 * 4096 && one.partial.is_empty()));
        forget(&state, &name("db"), &id);
        assert_eq!(all(&state).len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_lost_at_the_third_try_only_and_is_noted_before() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
        std::fs::create_dir(&state).expect("made");
        // Of the second run the last two granules cannot be read.
        std::fs::write(&disk, vec![5; 8 << 20]).expect("written");
        let (id, suspects, geometry) = (begun(&state, &disk), Arc::default(), Geometry::new(BYTES).expect("valid"));
        for _ in 1..READ_TRIES {
            let keeping = open(&state, &id, &disk, &suspects).expect("there");
            let refused = keeping.of(&name("data")).expect("held").keep(&target(&disk), &geometry, &RUNS);
            assert!(refused.expect_err("it is tried again").to_string().contains("cannot be read"));
            assert_eq!(all(&state)[0].unreadable_bytes, 0);
        }
        let keeping = open(&state, &id, &disk, &suspects).expect("there");
        let kept = keeping.of(&name("data")).expect("held").keep(&target(&disk), &geometry, &RUNS);
        assert_eq!(kept.expect("what can be read"), 3 * 4096);
        assert_eq!(all(&state)[0].unreadable_bytes, 2 * 4096);
        // Now it can, and was overwritten.
        let file = std::fs::File::options().write(true).open(&disk).expect("open");
        file.set_len(BYTES).and_then(|()| file.write_all_at(&[1; 4096], 8 << 20)).expect("written");
        assert!(keeping.end().expect("ended"));
        assert!(all(&state).iter().any(|one| one.whole && one.bytes == 3 * 4096 && one.unreadable_bytes == 2 * 4096));
    }

    /// A failback is given up that had written over what could not be read: nothing but the branch says where.
    #[test]
    fn where_the_disks_are_not_what_they_were_is_said_for_as_long_as_a_person_wants() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
        std::fs::create_dir(&state).expect("made");
        std::fs::write(&disk, vec![5; 8 << 20]).expect("written");
        let (id, suspects, geometry) = (begun(&state, &disk), Arc::default(), Geometry::new(BYTES).expect("valid"));
        for _ in 0..READ_TRIES {
            let keeping = open(&state, &id, &disk, &suspects).expect("there");
            let _ = keeping.of(&name("data")).expect("held").keep(&target(&disk), &geometry, &RUNS);
        }
        let file = std::fs::File::options().write(true).open(&disk).expect("open");
        file.set_len(BYTES).and_then(|()| file.write_all_at(&[1; 8192], 8 << 20)).expect("overwritten");
        put_back(&state, (&name("db"), &id), (&name("data"), &target(&disk)), &AtomicU64::new(0)).expect("what there is");
        let left = is_put_back(&state, &name("db"), &id, &[held(&disk)]).expect("kept");
        assert_eq!(left, Left::Places(format!("8192 bytes at {} of volume data", 8 << 20)));
        let shown = all(&state);
        assert!(
            matches!(&shown[..], [one] if one.trouble.as_ref().is_some_and(|words| words.contains("8192 bytes at 8388608"))),
            "{shown:?}"
        );
        // Said again after a kill.
        assert_eq!(is_put_back(&state, &name("db"), &id, &[held(&disk)]).expect("kept"), left);

        let whole = begun(&state, &disk);
        assert_eq!(is_put_back(&state, &name("db"), &whole, &[]).expect("told"), Left::Content);
        assert_eq!(is_put_back(&state, &name("db"), &whole, &[held(&disk)]).expect("told"), Left::Nothing);
        assert_eq!(all(&state).len(), 1, "the one that has nothing to say is gone");
    }

    #[test]
    fn a_branch_without_content_is_none() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (state, disk) = (dir.path().join("state"), dir.path().join("disk"));
        std::fs::create_dir(&state).expect("made");
        std::fs::write(&disk, vec![5; BYTES as usize]).expect("written");
        let id = begun(&state, &disk);
        assert!(!open(&state, &id, &disk, &Arc::default()).expect("there").end().expect("ended"));
        forget(&state, &name("db"), &id);
        assert!(all(&state).is_empty());
        // What a kill in the middle of a removal left is none, and goes.
        let id = begun(&state, &disk);
        let at = folder_of(&state, &name("db"), &id);
        std::fs::rename(&at, at.with_extension(GONE)).expect("moved");
        assert!(all(&state).is_empty());
        sweep(&state);
        assert_eq!(folders(&folder(&state).join("db")), [] as [PathBuf; 0]);
    }
}
