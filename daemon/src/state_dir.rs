//! The state directory: one daemon's memory across restarts. Identity and pairing live in files that `transport` owns;
//! here are the lock and the folders of the volumes.
//!
//! Invariant: whoever holds a [`StateDir`] is the only daemon that uses it (`flock` on `lock`).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use farside_ledger::VolumeMeta;
use farside_region::Name;
use thiserror::Error;
use tracing::warn;

use crate::config::{ConfigError, sync_dir, write_atomically};

/// How long the lock may outlive who took it: a program that a daemon was about to start as it was killed has it until it runs.
const LEFT_OVER_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// A locked state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Another daemon has it.
    #[error("the state directory {} is in use by another daemon of Farside ({holder}); stop it first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What its lock file says of the holder.
        holder: String,
    },
    /// A daemon that was killed has it, until a device answers.
    #[error(
        "the state directory {} is held by a farsided that was killed ({holder}): a thread of it waits for a device that does \
         not answer, which no signal ends. Have that device answer or fail (`ps -L -o stat,wchan,comm -p PID` shows what is waited for), \
         or reboot: what was written is known after it",
        path.display()
    )]
    Dying {
        /// The directory.
        path: PathBuf,
        /// What its lock file says of the holder.
        holder: String,
    },
    /// It cannot be made or written.
    #[error("the state directory {} cannot be used: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl StateDir {
    /// Creates it if need be (mode 0700) and takes its lock.
    ///
    /// # Errors
    /// At once when a live daemon holds it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        Self::open_within(path, LEFT_OVER_MAX)
    }

    fn open_within(path: &Path, left_over_max: Duration) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let mut lock = open_lock(&path.join("lock")).map_err(io)?;
        let until = Instant::now() + left_over_max;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(io(e)),
            }
            let mut holder = String::new();
            lock.rewind().and_then(|()| lock.read_to_string(&mut holder)).map_err(io)?;
            let (path, holder) = (path.to_owned(), holder.trim().to_owned());
            let pid = holder.strip_prefix("pid ");
            // Most are gone in a moment: requests that were under way are being waited for.
            let is_dying = pid.is_some_and(is_dying);
            if !(is_dying || pid.is_some_and(is_gone)) || Instant::now() >= until {
                return Err(if is_dying { StateDirError::Dying { path, holder } } else { StateDirError::InUse { path, holder } });
            }
            std::thread::sleep(POLL);
        }
        // For people only, so a full disk is no reason not to serve; in one block that is there since the first start.
        let holder = format!("pid {:<10}", std::process::id());
        match lock.rewind().and_then(|()| lock.write_all(holder.as_bytes())) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EBADF) => {
                warn!(dir = %path.display(), "the state directory's file system is read-only");
            }
            Err(error) => warn!(dir = %path.display(), %error, "the state directory cannot be written"),
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that says who the receiver is.
    pub fn pairing(&self) -> PathBuf {
        self.path.join("receiver.json")
    }

    /// The folder of the volumes' folders, GROUP/NAME.
    pub fn volumes(&self) -> PathBuf {
        self.path.join(VOLUMES)
    }

    /// Where a volume's folder is, or will be.
    pub fn volume_path(&self, group: &Name, volume: &Name) -> PathBuf {
        volume_path(&self.path, group, volume)
    }

    /// A volume's folder, created if need be, and whether it was.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn volume_dir(&self, group: &Name, volume: &Name) -> Result<(PathBuf, bool), StateDirError> {
        let dir = self.volume_path(group, volume);
        let io = |source| StateDirError::Io { path: dir.clone(), source };
        // What cannot be looked at is not new: a folder that is goes when its volume cannot be opened.
        let is_new = !dir.try_exists().map_err(io)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io)?;
        Ok((dir, is_new))
    }
}

/// Whether a file system takes no write at all, as after an error.
pub(crate) fn is_read_only(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

/// A disk that has become read-only is no reason not to serve, either: whoever only reads a file can lock it.
fn open_lock(path: &Path) -> std::io::Result<File> {
    match OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
        Err(error) if is_read_only(&error) => File::open(path),
        opened => opened,
    }
}

const VOLUMES: &str = "volumes";

/// Where groups have the folders of their volumes in a state directory, also in one that is not opened.
pub(crate) fn volumes_path(state_dir: &Path) -> PathBuf {
    state_dir.join(VOLUMES)
}

/// Where it is kept in a volume's folder what the volume is.
pub(crate) fn meta_path(dir: &Path) -> PathBuf {
    dir.join("meta.json")
}

/// Why it is not known what a volume is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum MetaError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Read, and not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
}

/// What a volume is, as its folder has it; `None`: nothing is kept.
///
/// # Errors
/// When it cannot be read, or is damaged: then nobody can tell.
pub(crate) fn volume_meta(dir: &Path) -> Result<Option<VolumeMeta>, MetaError> {
    Ok(kept_volume_meta(dir)?.map(|(meta, _)| meta))
}

/// The same, and whether it was kept with a checksum.
///
/// # Errors
/// Those of [`volume_meta`].
pub(crate) fn kept_volume_meta(dir: &Path) -> Result<Option<(VolumeMeta, bool)>, MetaError> {
    let path = meta_path(dir);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MetaError::Io { path, source }),
        Ok(bytes) => bytes,
    };
    let checked = bytes.strip_prefix(CHECKSUM.as_bytes());
    // Of a build that kept none: believed.
    let is_whole = checked.is_none_or(|rest| {
        let (said, fields) = rest.split_at_checked(CHECKSUM_DIGITS).unwrap_or((rest, &[]));
        fields.strip_prefix(b"\",").is_some_and(|fields| said == checksum_of(fields).as_bytes())
    });
    if !is_whole {
        return Err(MetaError::Damaged { path, what: "its checksum does not match".to_owned() });
    }
    match serde_json::from_slice(&bytes) {
        Ok(meta) => Ok(Some((meta, checked.is_some()))),
        // † Whole, and not understood: it is of a newer build, and nothing is to be made in its place.
        Err(error) if checked.is_some() => {
            Err(MetaError::Io { path, source: std::io::Error::new(std::io::ErrorKind::InvalidData, error) })
        }
        Err(error) => Err(MetaError::Damaged { path, what: error.to_string() }),
    }
}

/// How the file begins. † One bit of a generation ends a fence, and nobody would see it.
const CHECKSUM: &str = "{\"checksum\":\"";
const CHECKSUM_DIGITS: usize = 8;

fn checksum_of(fields: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(fields))
}

/// Where what is damaged of it is put aside.
pub(crate) fn damaged_meta_path(dir: &Path) -> PathBuf {
    meta_path(dir).with_extension("json.damaged")
}

/// Keeps what a volume is, durably. The checksum is a field like the others: who knows none reads past it.
pub(crate) fn keep_volume_meta(dir: &Path, meta: &VolumeMeta) -> anyhow::Result<()> {
    let text = serde_json::to_string(meta)?;
    let fields = text.strip_prefix('{').context("not an object")?;
    Ok(write_atomically(&meta_path(dir), &format!("{CHECKSUM}{}\",{fields}", checksum_of(fields.as_bytes())))?)
}

/// Where a volume's folder is in a state directory, also in one that is not opened.
pub(crate) fn volume_path(state_dir: &Path, group: &Name, volume: &Name) -> PathBuf {
    volumes_path(state_dir).join(group.as_str()).join(volume.as_str())
}

/// Whether the first thread of a process has ended and the process has not.
fn is_dying(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the first field behind the name, which may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
}

fn is_gone(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| matches!(Path::new(&format!("/proc/{pid}")).try_exists(), Ok(false)))
}

/// A mark that a volume carries across restarts: a file, durable before it counts. What is in it says why, and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `volume pause`.
    Paused,
    /// Changes may be unknown: everything must be compared. It may say why, for people.
    TrackingLost,
    /// The operator's `--accept`, not yet carried out.
    Accepted,
    /// It is being taken out of service, and what becomes of it is not known yet: for whoever opens it next, everything must be compared. † A mark of
    /// its own: who puts [`Mark::TrackingLost`] for the time being takes away with it what was lost meanwhile.
    Leaving,
}

impl Mark {
    fn file(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::TrackingLost => "tracking-lost",
            Self::Accepted => "accepted",
            Self::Leaving => "leaving",
        }
    }

    /// Whether the volume in that folder carries it.
    ///
    /// # Errors
    /// When that cannot be told: "no" would be a lie that loses writes.
    pub fn is_set(self, volume_dir: &Path) -> Result<bool, ConfigError> {
        let path = volume_dir.join(self.file());
        path.try_exists().map_err(|source| ConfigError::Io { verb: "look at", path, source })
    }

    /// Sets or withdraws it, durably.
    ///
    /// # Errors
    /// When that is not durable.
    pub fn put(self, volume_dir: &Path, set: bool) -> Result<(), ConfigError> {
        let path = volume_dir.join(self.file());
        let io = |source| ConfigError::Io { verb: "mark", path: path.clone(), source };
        if set {
            let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            open().and_then(|f| f.sync_all()).map_err(io)?;
        } else {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
                _ => {}
            }
        }
        sync_dir(volume_dir)
    }

    /// Sets it, durably, with the reason. Where there is no room for a reason it is set without one.
    ///
    /// # Errors
    /// As [`Mark::put`].
    pub fn put_because(self, volume_dir: &Path, why: &str) -> Result<(), ConfigError> {
        self.put(volume_dir, true)?;
        let path = volume_dir.join(self.file());
        let written = std::fs::write(&path, why).and_then(|()| File::open(&path)?.sync_all());
        if let Err(error) = written {
            warn!(mark = %path.display(), %error, %why, "the reason of a mark cannot be kept");
        }
        Ok(())
    }

    /// Why it was set, if it is and says so.
    pub fn reason(self, volume_dir: &Path) -> Option<String> {
        let text = std::fs::read_to_string(volume_dir.join(self.file())).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounted::Mounted;

    #[test]
    fn a_second_daemon_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = StateDir::open(dir.path()).expect("free");
        let error = StateDir::open(dir.path()).expect_err("taken").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn a_lock_that_outlives_its_holder_is_waited_for() {
        let dir = tempfile::tempdir().expect("temp dir");
        let left_over = StateDir::open(dir.path()).expect("free");
        std::fs::write(dir.path().join("lock"), "pid 0").expect("nobody has that number");
        let error = StateDir::open_within(dir.path(), Duration::ZERO).expect_err("taken").to_string();
        assert!(error.contains("pid 0"), "{error}");
        let (tried, waits) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let next = std::thread::spawn(move || {
            tried.send(()).expect("somebody waits");
            StateDir::open_within(&path, Duration::from_secs(3600)).map(drop)
        });
        waits.recv().expect("it began");
        (0..1000).for_each(|_| std::thread::yield_now());
        assert!(!next.is_finished(), "it did not wait");
        drop(left_over);
        next.join().expect("it ended").expect("free by now");
    }

    /// One bit of a generation ended a fence.
    #[test]
    fn a_bit_that_flipped_in_what_a_volume_is_does_not_go_unnoticed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let geometry = farside_region::Geometry::new(1 << 20).expect("a size");
        let (id, digest_key) = (farside_region::VolumeId([3; 16]), farside_region::DigestKey::Clear([1; 32]));
        let generation = farside_region::Generation(1);
        let meta = VolumeMeta { id, name: "data".parse().expect("a name"), geometry, digest_key, generation };
        let path = meta_path(dir.path());
        // Of a build that kept no checksum.
        std::fs::write(&path, serde_json::to_string(&meta).expect("JSON")).expect("written");
        assert_eq!(volume_meta(dir.path()).expect("read").expect("there"), meta);
        keep_volume_meta(dir.path(), &meta).expect("kept");
        let kept = std::fs::read(&path).expect("read");
        assert_eq!(volume_meta(dir.path()).expect("read").expect("there"), meta);
        assert_eq!(serde_json::from_slice::<VolumeMeta>(&kept).expect("as a build of before reads it"), meta);
        for (at, bit) in (0..kept.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = kept.clone();
            flipped[at] ^= 1 << bit;
            std::fs::write(&path, flipped).expect("written");
            match volume_meta(dir.path()) {
                // In the name of the checksum: the rest is whole.
                Ok(read) => assert_eq!(read.expect("there"), meta, "bit {bit} of byte {at}"),
                Err(error) => assert!(matches!(error, MetaError::Damaged { .. }), "{error}"),
            }
        }
        for len in 0..kept.len() {
            std::fs::write(&path, &kept[..len]).expect("written");
            assert!(matches!(volume_meta(dir.path()), Err(MetaError::Damaged { .. })), "{len} bytes");
        }
    }

    #[test]
    fn marks_survive() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert!(!Mark::Paused.is_set(dir.path()).expect("asked"));
        Mark::Paused.put(dir.path(), true).expect("set");
        let set = |mark: Mark| mark.is_set(dir.path()).expect("asked");
        assert!(set(Mark::Paused) && !set(Mark::TrackingLost));
        Mark::Paused.put(dir.path(), false).expect("withdrawn");
        Mark::Paused.put(dir.path(), false).expect("withdrawn twice");
        assert!(!Mark::Paused.is_set(dir.path()).expect("asked"));
    }

    /// After an error, as many systems have it, the file system of the state directory takes no write any more.
    #[test]
    fn a_state_directory_that_became_read_only_is_locked_all_the_same() {
        let dir = tempfile::tempdir().expect("temp dir");
        let Some(mounted) = Mounted::over(dir.path()) else { return };
        let state = dir.path().join("state");
        drop(StateDir::open(&state).expect("free"));
        mounted.set_read_only(true);
        let held = StateDir::open(&state).expect("nobody has it");
        let second = open_lock(&state.join("lock")).expect("opened");
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)), "two daemons had it");
        drop(held);
    }

    #[test]
    fn a_mark_keeps_its_reason_until_it_is_withdrawn() {
        let dir = tempfile::tempdir().expect("temp dir");
        Mark::TrackingLost.put(dir.path(), true).expect("set");
        assert_eq!(Mark::TrackingLost.reason(dir.path()), None);
        Mark::TrackingLost.put_because(dir.path(), "somebody was there").expect("set");
        Mark::TrackingLost.put(dir.path(), true).expect("set again");
        assert_eq!(Mark::TrackingLost.reason(dir.path()).as_deref(), Some("somebody was there"));
        Mark::TrackingLost.put(dir.path(), false).expect("withdrawn");
        assert_eq!(Mark::TrackingLost.reason(dir.path()), None);
    }

    #[test]
    fn a_mark_that_cannot_be_looked_at_is_not_called_absent() {
        let dir = tempfile::tempdir().expect("temp dir");
        // A link that leads to itself: looking fails, whoever looks.
        std::os::unix::fs::symlink("tracking-lost", dir.path().join("tracking-lost")).expect("linked");
        let error = Mark::TrackingLost.is_set(dir.path()).expect_err("neither yes nor no").to_string();
        assert!(error.contains("tracking-lost"), "{error}");
    }
}
