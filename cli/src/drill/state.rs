//! What a drill has kept: one folder each, with its state (`state.json`), the owner's lock (`owner`), sockets and overlays.
//!
//! ```text
//!  begin ─► Opening ─► Ready ─► Stopping ─► (folder removed)
//!              └──────────────────▲
//!  any stage, and nobody holds `owner` ─► shown as interrupted ─► swept: Stopping ─► (folder removed)
//! ```
//!
//! That a drill was interrupted is never written down: it is what a free lock means, so no end of a process can forget to say it. Who makes
//! or sweeps a folder holds the lock of all drills, so that one without a state yet is not taken for one that was left.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farside_control::Point;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, OrFail as _};
use crate::kept;

const STATE: &str = "state.json";
const OWNER: &str = "owner";
const ALL: &str = ".lock";
/// A server whose owner is gone.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    Opening,
    Ready,
    Stopping,
}

impl Stage {
    /// The arrows of the diagram.
    pub(crate) fn may_become(self, next: Self) -> bool {
        matches!((self, next), (Self::Opening, Self::Ready) | (_, Self::Stopping))
    }
}

/// A volume of the group, and where its clone is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) volume: String,
    pub(crate) socket: PathBuf,
    /// Of this machine's kernel, once it is there, if it was asked for.
    pub(crate) node: Option<PathBuf>,
    pub(crate) overlay: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Drill {
    pub(crate) id: String,
    pub(crate) group: String,
    /// Of which it is one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cohort: Option<String>,
    pub(crate) point: Point,
    pub(crate) created: Timestamp,
    pub(crate) expires: Timestamp,
    /// Of the owner; believed only while its lock is held.
    pub(crate) pid: u32,
    pub(crate) stage: Stage,
    pub(crate) volumes: Vec<Device>,
}

/// The folder of all drills, to which nobody else adds or removes meanwhile.
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

/// What its owner has.
pub(crate) struct Owned {
    pub(crate) drill: Drill,
    dir: PathBuf,
    _lock: File,
}

/// One that was found.
pub(crate) struct Found {
    pub(crate) id: String,
    /// Missing where the owner died before the first one was durable, or it cannot be read.
    pub(crate) drill: Option<Drill>,
    /// Why it cannot be read.
    pub(crate) unread: Option<String>,
    pub(crate) is_interrupted: bool,
    dir: PathBuf,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |what| format!("{} cannot be {what}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(path).or_fail(failed("made"))?;
        let is = std::fs::symlink_metadata(path).or_fail(failed("looked at"))?;
        if !is.is_dir() || is.uid() != nix::unistd::geteuid().as_raw() || is.mode() & 0o077 != 0 {
            let message = format!("{} is not a folder of this user alone", path.display());
            return Err(Failure::new(Exit::Refused, message, "name another one: --dir DIRECTORY"));
        }
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(ALL)).or_fail(failed("used"))?;
        lock.lock().or_fail(failed("locked"))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Whether drills were kept there. Nothing is made.
    pub(crate) fn is_one(path: &Path) -> bool {
        path.join(ALL).exists()
    }

    /// A new one, owned by this process; `of` is told its id and folder.
    pub(crate) fn begin(&self, of: impl FnOnce(String, &Path) -> Drill) -> Result<Owned, Failure> {
        let dir = tempfile::Builder::new().prefix("d").rand_bytes(7).tempdir_in(&self.path).or_fail("no folder for the drill")?;
        let lock = File::create(dir.path().join(OWNER)).or_fail("no lock for the drill")?;
        lock.try_lock().or_fail("the lock of a new drill is held")?;
        let id = dir.path().file_name().expect("it was just named").to_string_lossy().into_owned();
        let drill = of(id, dir.path());
        kept::write(dir.path(), STATE, &drill).or_fail("the state of the drill cannot be kept")?;
        Ok(Owned { drill, dir: dir.keep(), _lock: lock })
    }

    pub(crate) fn find(&self) -> Result<Vec<Found>, Failure> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).or_fail(self.path.display())? {
            let dir = entry.or_fail(self.path.display())?.path();
            if std::fs::symlink_metadata(&dir).is_ok_and(|is| is.is_dir()) {
                found.extend(look(dir)?);
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Removes what an owner left. Refused while one of its servers still answers: they end by themselves when their owner is gone.
    pub(crate) fn sweep(&self, found: &Found) -> Result<(), Failure> {
        let id = &found.id;
        // Which they are, the folder says too where the state does not.
        let sockets = std::fs::read_dir(&found.dir).into_iter().flatten().flatten();
        let mut sockets = sockets.filter(|file| file.file_type().is_ok_and(|is| is.is_socket())).map(|file| file.path());
        if let Some(socket) = sockets.find(|socket| !has_ended(socket)) {
            let message = format!("{} of drill {id} is served still, and its owner is gone", socket.display());
            return Err(Failure::new(Exit::Refused, message, format!("it ends by itself; then: farside drill stop {id}")));
        }
        if let Some(drill) = &found.drill {
            // Where it filled the disk there is no room for that, and only its removal makes some.
            let _ = kept::write(&found.dir, STATE, &Drill { stage: Stage::Stopping, ..drill.clone() });
        }
        std::fs::remove_dir_all(&found.dir).or_fail(format!("drill {id} cannot be removed"))
    }
}

impl Found {
    /// The folder of all drills in which it is.
    pub(crate) fn place(&self) -> &Path {
        self.dir.parent().expect("it was listed in one")
    }

    /// It runs, and nothing says in which process.
    pub(crate) fn is_unknown(&self) -> bool {
        self.drill.is_none() && !self.is_interrupted
    }

    /// Why it cannot be asked to end, and what can be done.
    pub(crate) fn unknown(&self) -> Failure {
        let why = self.unread.as_deref().unwrap_or("it says nothing yet");
        let message = format!("drill {} runs, and in which process is not known: {why}", self.id);
        let owner = self.dir.join(OWNER);
        let what = format!(
            "end the process that has {0} open (`fuser {0}`); what it leaves is taken away by the next drill",
            owner.display()
        );
        Failure::new(Exit::Refused, message, what)
    }

    /// Until its owner has ended; it may have removed everything.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        match File::open(self.dir.join(OWNER)) {
            Ok(lock) => lock.lock().or_fail(format!("the end of drill {} cannot be waited for", self.id)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).or_fail(format!("drill {}", self.id)),
        }
    }
}

impl Owned {
    /// # Panics
    /// If the diagram has no such arrow.
    pub(crate) fn advance(&mut self, stage: Stage) -> Result<(), Failure> {
        assert!(self.drill.stage.may_become(stage), "{:?} does not become {stage:?}", self.drill.stage);
        let next = Drill { stage, ..self.drill.clone() };
        kept::write(&self.dir, STATE, &next).or_fail(format!("the state of drill {} cannot be kept", next.id))?;
        self.drill = next;
        Ok(())
    }

    /// The last arrow. The lock goes after the folder.
    pub(crate) fn remove(self) -> Result<(), Failure> {
        // Nobody takes a folder that is half gone for one that was left.
        let _folder = Folder::open(self.dir.parent().expect("it lies in one"))?;
        std::fs::remove_dir_all(&self.dir).or_fail(format!("drill {} cannot be removed", self.drill.id))
    }
}

/// Whether nobody answers at a socket any more. A server whose owner is gone ends at once; a connection to it ends then.
fn has_ended(socket: &Path) -> bool {
    let begun = Instant::now();
    while let Ok(mut server) = UnixStream::connect(socket) {
        let left = ENDS_WITHIN.saturating_sub(begun.elapsed());
        let mut until_it_ends = || -> io::Result<()> {
            server.set_read_timeout(Some(left))?;
            while server.read(&mut [0; 512])? > 0 {}
            Ok(())
        };
        if left.is_zero() || until_it_ends().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return false;
        }
    }
    true
}

fn look(dir: PathBuf) -> Result<Option<Found>, Failure> {
    let id = dir.file_name().expect("it was listed").to_string_lossy().into_owned();
    let is_interrupted = match File::open(dir.join(OWNER)).map(|lock| lock.try_lock()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock)) => false,
        Ok(Err(TryLockError::Error(error))) => return Err(error).or_fail(format!("drill {id}")),
        // Its folder was all that its owner came to make, or the owner has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.exists(),
        Err(error) => return Err(error).or_fail(format!("drill {id}")),
    };
    let state = dir.join(STATE);
    let unread = |error: &dyn std::fmt::Display| Some(format!("{} cannot be read: {error}", state.display()));
    // † Of one that cannot be read nothing is known, and the others are there all the same.
    let (drill, unread) = match std::fs::read(&state).map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(drill)) => (Some(drill), None),
        Ok(Err(error)) => (None, unread(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
        Err(error) => (None, unread(&error)),
    };
    let is_one = drill.is_some() || unread.is_some() || is_interrupted;
    Ok(is_one.then_some(Found { id, drill, unread, is_interrupted, dir }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_the_diagram() {
        use Stage::{Opening, Ready, Stopping};
        let all = [Opening, Ready, Stopping];
        let arrows: Vec<_> = all.iter().flat_map(|a| all.map(|b| (*a, b))).filter(|(a, b)| a.may_become(*b)).collect();
        assert_eq!(arrows, [(Opening, Ready), (Opening, Stopping), (Ready, Stopping), (Stopping, Stopping)]);
    }

    #[test]
    fn a_folder_without_a_state_and_an_owner_was_interrupted_and_is_swept() {
        let root = tempfile::tempdir().expect("made");
        let all = root.path().join("drills");
        let folder = Folder::open(&all).expect("opened");
        std::fs::create_dir(all.join("dx")).expect("made");
        File::create(all.join("dx").join(OWNER)).expect("made");
        let found = folder.find().expect("listed");
        assert!(found.len() == 1 && found[0].is_interrupted && found[0].drill.is_none());
        folder.sweep(&found[0]).expect("swept");
        assert!(folder.find().expect("listed").is_empty());
        // While somebody holds it, it is not.
        std::fs::create_dir(all.join("dy")).expect("made");
        let owner = File::create(all.join("dy").join(OWNER)).expect("made");
        owner.lock().expect("free");
        assert!(folder.find().expect("listed").is_empty(), "its owner lives, and has said nothing yet");
        drop(owner);
        assert!(folder.find().expect("listed")[0].is_interrupted);
    }

    /// One whose state could not be read took all others away, from `drill start` and `job list` too.
    #[test]
    fn a_state_that_cannot_be_read_is_of_one_of_which_nothing_is_known() {
        let root = tempfile::tempdir().expect("made");
        let all = root.path().join("drills");
        let folder = Folder::open(&all).expect("opened");
        for (name, state) in [("da", "{\"id\":"), ("db", "{}")] {
            std::fs::create_dir(all.join(name)).expect("made");
            std::fs::write(all.join(name).join(STATE), state).expect("written");
            File::create(all.join(name).join(OWNER)).expect("made");
        }
        let owner = File::open(all.join("db").join(OWNER)).expect("there");
        owner.lock().expect("free");
        let found = folder.find().expect("listed");
        let [left, runs] = &found[..] else { panic!("{} were found", found.len()) };
        assert!(left.is_interrupted && left.drill.is_none() && !left.is_unknown());
        assert!(runs.is_unknown() && runs.unknown().message.contains("state.json cannot be read"), "{:?}", runs.unknown());
        // A server of it that still answers is not taken away from under whoever uses it.
        let server = std::os::unix::net::UnixListener::bind(all.join("da/data.nbd")).expect("bound");
        let refused = folder.sweep(left).expect_err("it is served");
        assert!(refused.message.contains("data.nbd of drill da is served still"), "{refused:?}");
        drop(server);
        folder.sweep(left).expect("swept");
        assert!(!all.join("da").exists() && all.join("db").join(STATE).exists());
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().expect("made");
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
        let refused = Folder::open(root.path()).err().expect("refused");
        assert!(refused.exit == Exit::Refused && refused.message.contains("of this user alone"), "{refused:?}");
    }
}
