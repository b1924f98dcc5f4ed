//! What is known of a target, in a directory that belongs to it.
//!
//! Invariants: one process has the directory at a time; what is in it is whole, whatever happens; and † it is of one volume of one store and one target:
//! what one holds says nothing of another.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use farside_store::{FollowKeeper, Following};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, OrFail as _};
use crate::kept;

const FILE: &str = "follow.json";
const LOCK: &str = "follow.lock";
/// Of it.
const VERSION: u32 = 1;

/// What is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holds {
    version: u32,
    /// The store's id.
    store: String,
    /// SOURCE/GROUP/NAME.
    volume: String,
    target: PathBuf,
    following: Following,
    /// When it was filled.
    filled_wall_ms: Option<i64>,
    /// When all of it was equal to what it held.
    verified_wall_ms: Option<i64>,
}

/// What every version of it has.
#[derive(Deserialize)]
struct Which {
    version: u32,
}

/// The directory, and what is in it.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    target: PathBuf,
    /// `None`: nothing was begun, and there may be no directory.
    locked: Option<Flock<File>>,
    holds: Option<Holds>,
    following: Following,
}

/// Writes it down.
pub(super) struct Keeper<'k>(&'k Kept);

impl FollowKeeper for Keeper<'_> {
    fn keep(&self, following: &Following) -> io::Result<()> {
        let begun = self.0.holds.clone().ok_or_else(|| io::Error::other("nothing was begun there"))?;
        self.0.is_ours()?;
        kept::write_alone(&self.0.dir, FILE, &Holds { following: following.clone(), ..begun })
    }
}

impl Kept {
    /// What is known of that target; nothing, if there is no such directory.
    pub(super) fn open(dir: &Path, target: &Path) -> Result<Self, Failure> {
        let mut new =
            Self { dir: dir.to_owned(), target: target.to_owned(), locked: None, holds: None, following: Following::default() };
        if !dir.exists() {
            return Ok(new);
        }
        new.lock()?;
        let path = dir.join(FILE);
        let damaged = |why: String| {
            let what = format!(
                "put it back from a copy; or move {} aside, and begin anew with --overwrite: what of the target is right is not written again",
                dir.display()
            );
            Failure::new(Exit::Refused, format!("{} is damaged: {why}", path.display()), what)
        };
        let holds: Holds = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(new),
            read => {
                let bytes = read.or_fail(path.display())?;
                if let Ok(Which { version }) = serde_json::from_slice(&bytes)
                    && version > VERSION
                {
                    let message = format!(
                        "{} was written by a later version of Farside (version {version}, and this one reads {VERSION}): it is whole",
                        path.display()
                    );
                    return Err(Failure::new(Exit::Refused, message, "go on with that version; nothing is to be removed"));
                }
                serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?
            }
        };
        if holds.version != VERSION {
            return Err(damaged(format!("there is no version {}", holds.version)));
        }
        // One that was moved may have another name, unless there is still something under the old one.
        if holds.target != target && holds.target.exists() {
            let message = format!("{} says what {} holds", dir.display(), holds.target.display());
            return Err(Failure::new(Exit::Refused, message, "give each target a directory of its own: --state DIR"));
        }
        new.following = holds.following.clone();
        new.holds = Some(Holds { target: target.to_owned(), ..holds });
        Ok(new)
    }

    fn lock(&mut self) -> Result<(), Failure> {
        let path = self.dir.join(LOCK);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).or_fail(path.display())?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut holder); // said as well as it can be
                let message = format!("{} is followed into already (process {})", self.target.display(), holder.trim());
                return Err(Failure::new(Exit::Refused, message, "end that one first"));
            }
            Err((_, errno)) => return Err(io::Error::from(errno)).or_fail(path.display()),
        };
        // For people only.
        let _ = file.write_all_at(format!("{:<10}", std::process::id()).as_bytes(), 0);
        self.locked = Some(file);
        Ok(())
    }

    /// Whether a volume was ever found for it.
    pub(super) fn is_begun(&self) -> bool {
        self.holds.is_some()
    }

    /// It is of that volume of that store from here on, if it was of none; refused, if it is of another.
    pub(super) fn begin(&mut self, store: &str, volume: &str) -> Result<(), Failure> {
        if let Some(holds) = &self.holds {
            let another = match holds.store == store {
                false => format!("a volume of another store (id {}, and this one is {store})", holds.store),
                true if holds.volume == volume => return Ok(()),
                true => holds.volume.clone(),
            };
            let message = format!("{} follows {another}", self.target.display());
            let what = format!("name another target; or give that up: remove {}, and say --overwrite", self.dir.display());
            return Err(Failure::new(Exit::Refused, message, what));
        }
        let failed = format!("{} cannot be made", self.dir.display());
        make_folder(&self.dir).or_fail(failed)?;
        if self.locked.is_none() {
            self.lock()?;
        }
        let holds = Holds {
            version: VERSION,
            store: store.to_owned(),
            volume: volume.to_owned(),
            target: self.target.clone(),
            following: self.following.clone(),
            filled_wall_ms: None,
            verified_wall_ms: None,
        };
        self.write(holds)
    }

    /// † Something else may have been mounted over it, with what is known of another target, which somebody else may have.
    fn is_ours(&self) -> io::Result<()> {
        let there = std::fs::metadata(self.dir.join(LOCK))?;
        let ours = self.locked.as_ref().map(|file| file.metadata()).transpose()?;
        match ours.is_some_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino())) {
            true => Ok(()),
            false => Err(io::Error::other("another directory has its name by now")),
        }
    }

    fn write(&mut self, holds: Holds) -> Result<(), Failure> {
        let failed = format!("what {} holds cannot be noted in {}", self.target.display(), self.dir.display());
        self.is_ours().or_fail(&failed)?;
        kept::write_alone(&self.dir, FILE, &holds).or_fail(failed)?;
        // † What is not durable is not known.
        self.holds = Some(holds);
        Ok(())
    }

    /// What the target holds.
    pub(super) fn following(&self) -> &Following {
        &self.following
    }

    /// To write it down with.
    pub(super) fn keeper(&self) -> Keeper<'_> {
        Keeper(self)
    }

    /// What was written down.
    pub(super) fn is(&mut self, following: Following) {
        if let Some(holds) = &mut self.holds {
            holds.following = following.clone();
        }
        self.following = following;
    }

    /// When all of the target was whole: when it was filled, when it was compared.
    pub(super) fn was_whole_ms(&self) -> [Option<i64>; 2] {
        self.holds.as_ref().map_or([None; 2], |holds| [holds.filled_wall_ms, holds.verified_wall_ms])
    }

    /// It was filled at that time.
    pub(super) fn filled(&mut self, wall_ms: i64) -> Result<(), Failure> {
        let Some(holds) = self.holds.clone() else { return Ok(()) };
        self.write(Holds { filled_wall_ms: Some(wall_ms), ..holds })
    }

    /// All of it was compared at that time, and equal.
    pub(super) fn verified(&mut self, wall_ms: i64) -> Result<(), Failure> {
        let Some(holds) = self.holds.clone() else { return Ok(()) };
        self.write(Holds { verified_wall_ms: Some(wall_ms), ..holds })
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Makes a folder whose name is durable, and those above it. † One whose name is not loses what is durable in it.
fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(|parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_of_one_target_and_one_volume_and_one_process() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (state, target, other) = (dir.path().join("a/state"), dir.path().join("data.img"), dir.path().join("other.img"));
        let mut kept = Kept::open(&state, &target).expect("nothing there");
        assert!(!kept.is_begun() && !state.exists(), "nothing is made before something was found");
        kept.begin("5e", "web1/db/data").expect("begun");
        kept.verified(7).expect("noted");
        assert!(Kept::open(&state, &target).is_err_and(|failure| failure.message.contains(&std::process::id().to_string())));
        drop(kept);
        let mut kept = Kept::open(&state, &target).expect("free");
        assert!(kept.is_begun() && kept.was_whole_ms() == [None, Some(7)]);
        kept.begin("5e", "web1/db/data").expect("the same");
        for (store, volume) in [("5f", "web1/db/data"), ("5e", "web1/db/log")] {
            assert!(kept.begin(store, volume).is_err_and(|failure| failure.exit == Exit::Refused));
        }
        // Something else has its name.
        let aside = dir.path().join("a/aside");
        std::fs::rename(&state, &aside).expect("renamed");
        std::fs::create_dir(&state).expect("mkdir");
        std::fs::write(state.join(LOCK), "").expect("written");
        std::fs::write(state.join(FILE), "another's").expect("written");
        assert!(kept.verified(8).is_err() && kept.keeper().keep(&Following::default()).is_err());
        assert_eq!(std::fs::read(state.join(FILE)).expect("read"), b"another's");
        std::fs::remove_dir_all(&state).and_then(|()| std::fs::rename(&aside, &state)).expect("put back");
        kept.verified(8).expect("ours again");
        drop(kept);
        // Another target, while there is the old one; and the same one, moved.
        std::fs::write(&target, "").expect("written");
        assert!(Kept::open(&state, &other).is_err_and(|failure| failure.message.contains("data.img")));
        std::fs::rename(&target, &other).expect("moved");
        assert!(Kept::open(&state, &other).is_ok_and(|kept| kept.is_begun()));
        std::fs::write(state.join(FILE), r#"{"version": 1}"#).expect("written");
        assert!(
            Kept::open(&state, &other)
                .is_err_and(|failure| failure.what_to_do.contains("aside, and begin anew with --overwrite"))
        );
        // A later version's is whole: it is not given up for an older one.
        std::fs::write(state.join(FILE), r#"{"version": 2}"#).expect("written");
        let later = Kept::open(&state, &other).expect_err("not understood");
        assert!(later.message.contains("later version") && !later.what_to_do.contains("--overwrite"), "{later:?}");
    }
}
