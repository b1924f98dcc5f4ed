//! What is kept of a failback, durably: which disks it holds, and what they are.
//!
//! Invariant: a disk that a note names, and that may hold a part of a point, is shown to nobody, whatever the configuration says of it, and whether
//! farsided runs or not. A note that cannot be read names every disk of its group.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use farside_blockio::Identity;
use farside_control::source::LastPoint;
use farside_region::{Generation, Name, Slot};
use farside_replication::failback::{At, Branch, Course, Stage};
use farside_store::Seen;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::config::{Config, sync_dir, write_atomically};
use crate::state_dir::{Mark, volume_meta, volume_path};
use crate::status::last_point;

const VERSION: u32 = 2;
/// Of notes that say nothing of a branch, and of those of which a build that knows none may go on with the rest.
const VERSION_WITHOUT: u32 = 1;

/// A point, as people see it.
pub(super) fn shown(at: &At) -> LastPoint {
    last_point(&at.position, at.wall_ms)
}

/// A volume that is failed back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) name: Name,
    pub(super) backing: PathBuf,
    /// Which disk or file that is; `None`: the one that is found there next.
    pub(super) identity: Option<Identity>,
    /// What tells whether somebody wrote to it since `at` was said of it.
    pub(super) seen: Option<Seen>,
    /// The disk was larger when it was taken than at the point over which its branch lies: what is beyond so many bytes is in no point and no branch.
    #[serde(default)]
    pub(super) beyond: Option<u64>,
    /// It was asked to take the history back: it may have claimed it, whatever is known here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) was_asked: bool,
    /// A person removes it: it is no part of this any more, and served by nobody until that is done.
    pub(super) leaving: bool,
    /// It was paused by a person when it was taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) paused: bool,
}

#[cfg(test)]
impl Held {
    /// As it was just taken, and nothing was done.
    pub(super) fn of(volume: &str, backing: &Path, identity: Option<Identity>) -> Self {
        Self {
            name: volume.parse().expect("a name"),
            backing: backing.to_owned(),
            identity,
            seen: None,
            beyond: None,
            was_asked: false,
            leaving: false,
            paused: false,
        }
    }
}

/// As it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    version: u32,
    pub(super) group: Name,
    /// The promotion that a person was shown.
    pub(super) generation: u64,
    pub(super) volumes: Vec<Held>,
    /// Newer points, up to that slot, which a person passed over when it was finished: their source could not read all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) passes: Option<Slot>,
    /// As far as a person knew of such points when that was forced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) may_pass: Option<Slot>,
    #[serde(flatten)]
    pub(super) course: Course,
}

impl Note {
    /// Before anybody serves the volumes of one that is given up: what a person had paused, whose folder went when it was taken, is so again. (Who finishes
    /// it has the history taken back, which nobody does of a paused volume.)
    pub(super) fn leave_paused(&self, state_dir: &Path) -> anyhow::Result<()> {
        let paused = self.volumes.iter().filter(|held| held.paused && !held.leaving && self.course.stage == Stage::Aborting);
        for held in paused {
            let dir = volume_path(state_dir, &self.group, &held.name);
            // One that was served since is as a person left it.
            if matches!(volume_meta(&dir), Ok(None)) {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
                dir.ancestors().skip(1).take(2).try_for_each(sync_dir)?;
                Mark::Paused.put(&dir, true)?;
            }
        }
        Ok(())
    }

    pub(super) fn new(group: Name, volumes: Vec<Held>) -> Self {
        Self {
            version: VERSION,
            group,
            generation: 0,
            volumes,
            passes: None,
            may_pass: None,
            course: Course::new(Branch::Wanted { base: None }),
        }
    }

    /// Whether a volume was asked to take the history back.
    pub(super) fn was_asked(&self, volume: &Name) -> bool {
        self.volumes.iter().any(|held| held.name == *volume && held.was_asked)
    }

    /// A volume is about to be asked that.
    pub(super) fn asks(&mut self, volume: &Name) {
        self.volumes.iter_mut().filter(|held| held.name == *volume).for_each(|held| held.was_asked = true);
    }

    /// Those that are part of it.
    pub(super) fn held(&self) -> Vec<Held> {
        self.volumes.iter().filter(|held| !held.leaving).cloned().collect()
    }

    /// Whether nobody else opens a volume of that name, or the disk of that path: it may be a part of a point. A volume that the group did not have
    /// waits until the others are back.
    pub(super) fn holds(&self, (group, volume): (&Name, &Name), backing: Option<&Path>) -> bool {
        let is_it = |held: &Held| {
            (self.group == *group && held.name == *volume) || backing.is_some_and(|backing| is_same_disk(backing, &held.backing))
        };
        let is_open_to_all = matches!(self.course.stage, Stage::Aborting | Stage::Returning { served: true, .. });
        match self.volumes.iter().find(|held| is_it(held)) {
            Some(held) => held.leaving || !is_open_to_all,
            None => self.group == *group && !is_open_to_all,
        }
    }

    /// Whether it was handed over, and is to stay so.
    pub(super) fn is_handed_over(&self) -> bool {
        matches!(self.course.stage, Stage::HandedOver { .. }) && !self.course.abort
    }

    /// What was handed over comes back: it is held from here on. `false`: it is being served again, and nothing was changed.
    pub(super) fn take_up(&mut self, promoted: Generation, branch: Branch) -> bool {
        let Stage::HandedOver { at } = self.course.stage.clone() else { return false };
        if self.course.abort {
            return false;
        }
        (self.generation, self.course.stage, self.course.branch) = (promoted.0, Stage::Held { at, applying: None }, branch);
        true
    }

    fn path(&self, state_dir: &Path) -> PathBuf {
        path(state_dir, &self.group)
    }

    /// Makes it durable.
    pub(super) fn keep(&self, state_dir: &Path) -> anyhow::Result<()> {
        // † An older build would overwrite what is to be kept: it refuses a version that it does not know.
        let version = if self.course.branch.is_due() { VERSION } else { VERSION_WITHOUT };
        let text = serde_json::to_string_pretty(&Self { version, ..self.clone() })?;
        let folder = folder(state_dir);
        if !folder.is_dir() {
            std::fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, &error.into()))?;
            sync_dir(state_dir)?; // a note in a folder that a power cut takes is none
        }
        write_atomically(&self.path(state_dir), &text)?;
        Ok(())
    }

    /// The point that the disks of a group are when a failback of it is given up: the next one has that in common with them.
    pub(super) fn remember_base(&self, state_dir: &Path, at: &At) -> anyhow::Result<()> {
        Ok(write_atomically(&base_path(state_dir, &self.group), &serde_json::to_string(&(self.generation, at))?)?)
    }

    /// The history is taken back: what the disks were is no base any more.
    pub(super) fn forget_base(&self, state_dir: &Path) {
        let _ = std::fs::remove_file(base_path(state_dir, &self.group)); // another base is right, too, and wants more room
    }

    /// Makes it durable where another word of it may be.
    pub(super) fn keep_if_there(&self, state_dir: &Path) -> anyhow::Result<()> {
        if self.path(state_dir).try_exists()? { self.keep(state_dir) } else { Ok(()) }
    }

    /// It is over.
    pub(super) fn forget(&self, state_dir: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(self.path(state_dir)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if folder(state_dir).is_dir() {
            sync_dir(&folder(state_dir))?;
        }
        Ok(())
    }
}

fn unwritable(path: &Path, error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{} cannot be written: {error:#}", path.display())
}

/// Tries what a note takes. † A group that was stopped for one that cannot be kept is served again, and was away for nothing.
///
/// # Errors
/// The state directory, and what is wrong with it.
pub(super) fn check_writable(state_dir: &Path) -> anyhow::Result<()> {
    let tried = || -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
        file.write_all(&[b' '; 4096])?;
        Ok(file.as_file().sync_all()?)
    };
    tried().map_err(|error| unwritable(state_dir, &error).context("nothing can be kept in the state directory"))
}

fn base_path(state_dir: &Path, group: &Name) -> PathBuf {
    folder(state_dir).join(format!("{group}.was"))
}

/// The point that a group's disks were when the last failback from that promotion was given up.
pub(super) fn base(state_dir: &Path, group: &Name, generation: u64) -> Option<At> {
    let kept = std::fs::read_to_string(base_path(state_dir, group)).ok()?;
    let (of, at): (u64, At) = serde_json::from_str(&kept).ok()?;
    (of == generation).then_some(at)
}

fn path(state_dir: &Path, group: &Name) -> PathBuf {
    folder(state_dir).join(format!("{group}.json"))
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("failback")
}

/// A note that says nothing: nobody knows which disks of its group it holds.
#[derive(Debug, Error)]
#[error(
    "{} {why}. It says which disks of group {group} hold a part of a point, or belong to another host: put it back, or remove it only if you \
     know what is on them",
    path.display()
)]
pub(crate) struct Unread {
    /// The one whose name the file has.
    pub(super) group: Name,
    path: PathBuf,
    why: WhyUnread,
}

#[derive(Debug, Error)]
enum WhyUnread {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("is of version {0}, and this build reads up to {VERSION}")]
    Version(u32),
}

/// What is kept below a state directory, of each group.
///
/// # Errors
/// When nobody can tell what there is.
pub(super) fn notes(state_dir: &Path) -> anyhow::Result<Vec<Result<Note, Unread>>> {
    let folder = folder(state_dir);
    let found = match std::fs::read_dir(&folder) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let mut notes = Vec::new();
    for entry in found {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let group = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        match (read(&path), group) {
            (Ok(note), _) => notes.extend(note.map(Ok)),
            (Err(why), Some(group)) => notes.push(Err(Unread { group, path, why })),
            // No group is called that: it was not written by us.
            (Err(why), None) => warn!("{} {why}, and is no note of a group", path.display()),
        }
    }
    Ok(notes)
}

/// The note of a group, if there is one.
///
/// # Errors
/// When it says nothing.
pub(super) fn of(state_dir: &Path, group: &Name) -> Result<Option<Note>, Unread> {
    let path = path(state_dir, group);
    read(&path).map_err(|why| Unread { group: group.clone(), path, why })
}

fn read(path: &Path) -> Result<Option<Note>, WhyUnread> {
    /// What is the same in all versions.
    #[derive(Deserialize)]
    struct Of {
        version: u32,
    }
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let Of { version } = serde_json::from_str(&text)?;
    if !(VERSION_WITHOUT..=VERSION).contains(&version) {
        return Err(WhyUnread::Version(version));
    }
    let note: Note = serde_json::from_str(&text)?;
    // Of an older build, which had overwritten nothing yet.
    let is_untouched =
        matches!(note.course.stage, Stage::Held { at: None, applying: None }) && note.course.branch == Branch::None;
    Ok(Some(match is_untouched {
        true => Note { course: Course { branch: Branch::Wanted { base: None }, ..note.course }, ..note },
        false => note,
    }))
}

/// The disk of a volume, of which it is asked whether a failback has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) group: &'a Name,
    pub(crate) volume: &'a Name,
    pub(crate) backing: &'a Path,
    /// The groups of all volumes that are known, and their disks.
    pub(crate) all: &'a [(Name, PathBuf)],
}

impl Asked<'_> {
    fn is(&self, held: &Held) -> bool {
        held.name == *self.volume || is_same_disk(&held.backing, self.backing)
    }

    /// Whether a note of that group which cannot be read may name it. (Not if it does so of a disk over which no volume of the group is known any more:
    /// that one only who reads the note would know.)
    pub(super) fn may_be_of(&self, group: &Name) -> bool {
        let mut disks = self.all.iter().filter(|(of, _)| of == group);
        self.group == group || disks.any(|(_, disk)| is_same_disk(disk, self.backing))
    }
}

/// The groups of all volumes that are configured, and their disks.
pub(crate) fn disks_of(config: &Config) -> Vec<(Name, PathBuf)> {
    config.volumes.values().map(|volume| (volume.group.clone(), volume.backing.clone())).collect()
}

/// What the notes say of a disk.
///
/// # Errors
/// When they say nothing, and one that may name it cannot be read.
fn said_of<T>(state_dir: &Path, disk: Asked<'_>, says: impl Fn(&Note) -> Option<T>) -> anyhow::Result<Option<T>> {
    let mut unread = None;
    for note in notes(state_dir)? {
        let names_it = |note: &Note| note.volumes.iter().any(|held| disk.is(held));
        match note {
            Ok(note) => {
                if let Some(said) = says(&note).filter(|_| names_it(&note)) {
                    return Ok(Some(said));
                }
            }
            Err(error) => unread = unread.or(Some(error).filter(|error| disk.may_be_of(&error.group))),
        }
    }
    unread.map_or(Ok(None), |unread| Err(unread.into()))
}

/// Why nobody may see a disk, farsided or not: it may hold a part of a point, or it was handed over, and another host has what became of it.
///
/// # Errors
/// When that cannot be told.
pub(crate) fn why_unusable(state_dir: &Path, disk: Asked<'_>) -> anyhow::Result<Option<&'static str>> {
    said_of(state_dir, disk, |note| match note.course.stage {
        Stage::Held { applying: Some(_), .. } => {
            Some("a failback has written a part of a point to it; start farsided, which goes on with it")
        }
        Stage::HandedOver { .. } => {
            Some("it was handed over to another host (farside cutover); start farsided, and fail it back, or abort that")
        }
        _ => None,
    })
}

/// Whether a disk stays hidden because a failback holds it; also where nobody can tell.
pub(crate) fn stays_hidden(state_dir: &Path, disk: Asked<'_>) -> bool {
    held_by(state_dir, disk).map_or(true, |group| group.is_some())
}

/// The group whose failback holds a disk, or that was handed over with it: nobody else may use that.
///
/// # Errors
/// When that cannot be told.
pub(crate) fn held_by(state_dir: &Path, disk: Asked<'_>) -> anyhow::Result<Option<Name>> {
    said_of(state_dir, disk, |note| {
        let is_held = !matches!(note.course.stage, Stage::HandingOver | Stage::Aborting | Stage::Returning { served: true, .. });
        is_held.then(|| note.group.clone())
    })
}

/// Whether two paths are one disk, or one file.
fn is_same_disk(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let which = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let is_device = found.file_type().is_block_device();
        Some((is_device, if is_device { (found.rdev(), 0) } else { (found.dev(), found.ino()) }))
    };
    one == other || which(one).is_some_and(|one| which(other) == Some(one))
}

/// Keeps a note of a failback that has a part of a point on a disk; what comes back ends it.
#[cfg(test)]
pub(crate) fn hold(state_dir: &Path, (group, volume): (&str, &str), backing: &Path) -> impl FnOnce() + use<> {
    let note = Note::new(group.parse().expect("a name"), vec![Held::of(volume, backing, None)]);
    note.keep(state_dir).expect("kept");
    let state_dir = state_dir.to_owned();
    move || note.forget(&state_dir).expect("over")
}

/// Keeps a note of one that was just begun with a volume, as it is now.
#[cfg(test)]
pub(crate) fn hold_as_it_is(daemon: &crate::supervisor::Daemon, volume: &crate::config::VolumeConfig) {
    Note::new(volume.group.clone(), vec![daemon.held(volume)]).keep(&daemon.state_path()).expect("kept");
}

#[cfg(test)]
mod tests {
    use farside_region::{LedgerPosition, RecordDigest};
    use farside_replication::failback::Kept;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn note(stage: Stage, backing: &Path) -> Note {
        let held = Held::of("data", backing, None);
        with(stage, false, Branch::Wanted { base: None }, Note::new(name("db"), vec![held]))
    }

    fn with(stage: Stage, abort: bool, branch: Branch, note: Note) -> Note {
        Note { course: Course { stage, abort, branch, finish: None }, ..note }
    }

    fn at() -> At {
        At { position: LedgerPosition { slot: Slot(7), digest: RecordDigest([0x5a; 32]) }, wall_ms: 0 }
    }

    #[test]
    fn a_position_is_kept_as_it_is() {
        let kept = serde_json::to_value(at()).expect("JSON");
        let position = serde_json::from_value::<At>(kept.clone()).expect("as it was kept").position;
        assert_eq!((position.slot, position.digest), (Slot(7), RecordDigest([0x5a; 32])));
        for bad in ["", "5a", &"5g".repeat(32), &"é".repeat(32)] {
            let mut kept = kept.clone();
            kept["position"]["digest"] = bad.into();
            assert!(serde_json::from_value::<At>(kept).is_err(), "{bad}");
        }
    }

    /// A restart in the middle of taking the history back must know which volumes may have claimed it; a note of before says nothing of that.
    #[test]
    fn who_was_asked_to_take_the_history_back_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut note = note(Stage::Returning { at: at(), served: true }, &dir.path().join("disk"));
        note.may_pass = Some(Slot(9));
        note.keep(dir.path()).expect("kept");
        let text = std::fs::read_to_string(note.path(dir.path())).expect("kept");
        assert!(!text.contains("was_asked"), "a build that knows nothing of it reads it as before");
        note.asks(&name("another"));
        assert!(!note.was_asked(&name("data")));
        note.asks(&name("data"));
        note.keep(dir.path()).expect("kept");
        let read = read_all(dir.path());
        assert!(read[0].was_asked(&name("data")) && !read[0].was_asked(&name("another")));
        assert_eq!(read[0].may_pass, Some(Slot(9)));
    }

    /// A disk is the same under whatever name, and nobody sees one that holds a part of a point.
    #[test]
    fn a_disk_that_is_half_done_is_known_by_any_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (disk, other) = (dir.path().join("disk"), dir.path().join("other"));
        std::fs::write(&disk, b"x").expect("written");
        std::fs::write(&other, b"x").expect("written");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).expect("linked");
        let keep = |stage: Stage| note(stage, &disk).keep(dir.path()).expect("kept");
        keep(Stage::Held { at: Some(at()), applying: Some(at()) });
        let x = name("x");
        let why = |volume: &str, backing: &Path| {
            let asked = Asked { group: &x, volume: &name(volume), backing, all: &[] };
            (why_unusable(dir.path(), asked).expect("readable"), stays_hidden(dir.path(), asked))
        };
        let half = |volume: &str, backing: &Path| why(volume, backing).0.is_some();
        let is_hidden = |volume: &str, backing: &Path| why(volume, backing).1;
        assert!(half("data", &other) && half("x", &disk) && half("x", &link) && !half("x", &other));
        keep(Stage::Held { at: Some(at()), applying: None });
        assert!(!half("data", &disk));
        assert!(is_hidden("x", &link) && !is_hidden("x", &other));
        keep(Stage::HandedOver { at: Some(at()) });
        assert!(why("data", &other).0.is_some_and(|why| why.contains("handed over")) && !half("x", &other));
        assert!(is_hidden("x", &link));
        for stage in [Stage::HandingOver, Stage::Aborting] {
            keep(stage);
            assert!(!half("data", &disk) && !is_hidden("data", &disk));
        }
    }

    /// One file that could not be read hid every disk of a host, and kept all of its volumes from it.
    #[test]
    fn a_note_that_cannot_be_read_holds_what_is_its_groups_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [disk, other] = ["disk", "other"].map(|file| dir.path().join(file));
        std::fs::write(&disk, b"x").expect("written");
        std::fs::write(&other, b"x").expect("written");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).expect("linked");
        let held = Stage::Held { at: Some(at()), applying: Some(at()) };
        let beside = Note { group: name("beside"), ..note(held, &dir.path().join("beside")) };
        beside.keep(dir.path()).expect("kept");
        let (db, x) = (name("db"), name("x"));
        let all = [(db.clone(), disk.clone()), (x.clone(), other.clone())];
        let newer = r#"{"version": 3, "group": "db", "held": "in words of its own"}"#;
        for (text, why) in [("{", "is damaged"), (newer, "is of version 3"), ("", "is damaged")] {
            std::fs::write(path(dir.path(), &db), text).expect("written");
            let asked = |group, backing| Asked { group, volume: &x, backing, all: &all };
            for unknown in [asked(&db, &other), asked(&x, &disk), asked(&x, &link)] {
                let error = why_unusable(dir.path(), unknown).expect_err("nobody knows").to_string();
                assert!(error.contains("db.json") && error.contains(why) && error.contains("put it back"), "{error}");
                assert!(held_by(dir.path(), unknown).is_err() && stays_hidden(dir.path(), unknown));
            }
            assert_eq!(why_unusable(dir.path(), asked(&x, &other)).expect("known"), None);
            assert!(!stays_hidden(dir.path(), asked(&x, &other)), "it is another group's");
            // What is known of others is known.
            let known = Asked { volume: &name("data"), ..asked(&x, &other) };
            assert_eq!(held_by(dir.path(), known).expect("known"), Some(name("beside")));
            assert!(of(dir.path(), &db).is_err() && of(dir.path(), &x).expect("there is none").is_none());
            let groups: Vec<_> = notes(dir.path()).expect("listed").into_iter().map(|note| note.map_err(|e| e.group)).collect();
            assert!(groups.len() == 2 && groups.contains(&Err(db.clone())), "{groups:?}");
        }
        // Whose it would be nobody can say.
        std::fs::rename(path(dir.path(), &db), dir.path().join("failback/no name.json")).expect("renamed");
        assert_eq!(read_all(dir.path()).len(), 1);
        // Nor which there are.
        std::fs::remove_dir_all(folder(dir.path())).expect("removed");
        std::fs::write(folder(dir.path()), "").expect("written");
        assert!(
            notes(dir.path()).is_err() && stays_hidden(dir.path(), Asked { group: &x, volume: &x, backing: &other, all: &all })
        );
    }

    /// What is being served again is held by nobody else, though it was asked for while it still was handed over.
    #[test]
    fn what_is_being_aborted_is_not_taken_up() {
        let disk = Path::new("/dev/x");
        let branch = || Branch::Wanted { base: Some(at()) };
        for (stage, abort) in [(Stage::Aborting, true), (Stage::Aborting, false), (Stage::HandedOver { at: Some(at()) }, true)] {
            let before = with(stage.clone(), abort, Branch::None, note(stage, disk));
            let mut after = before.clone();
            assert!(!after.is_handed_over() && !after.take_up(Generation(3), branch()) && after == before, "{before:?}");
        }
        let mut taken = note(Stage::HandedOver { at: Some(at()) }, disk);
        assert!(taken.is_handed_over() && taken.take_up(Generation(3), branch()));
        assert_eq!(
            (taken.generation, taken.course.stage, taken.course.branch),
            (3, Stage::Held { at: Some(at()), applying: None }, branch())
        );
    }

    /// A build that knows of no branches would overwrite what is to be kept.
    #[test]
    fn what_is_to_be_kept_is_said_in_a_version_of_its_own_and_notes_of_before_that_are_read() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = dir.path().join("disk");
        let path = dir.path().join("failback/db.json");
        let version = || {
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path).expect("kept")).expect("JSON")["version"].clone()
        };
        let held = |at, applying| Stage::Held { at, applying };
        let kept = |is| Branch::Kept { id: name("x"), over: at(), is };
        let all = [
            (Branch::Wanted { base: Some(at()) }, 2),
            (kept(Kept::Revertible), 2),
            (kept(Kept::Mixed), 2),
            (kept(Kept::Whole), 1),
            (Branch::Discarded, 1),
            (Branch::None, 1),
        ];
        for (branch, said) in all {
            let one = with(held(Some(at()), None), false, branch, note(held(None, None), &disk));
            one.keep(dir.path()).expect("kept");
            assert_eq!((version(), branch_of(dir.path())), (said.into(), one.course.branch.clone()), "{one:?}");
        }
        // Of a build before: what had overwritten nothing keeps it, and what had goes on.
        for (stage, branch) in [(held(None, None), Branch::Wanted { base: None }), (held(None, Some(at())), Branch::None)] {
            note(stage, &disk).keep(dir.path()).expect("kept");
            let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("kept")).expect("JSON");
            old["version"] = 1.into();
            old.as_object_mut().expect("an object").remove("branch");
            std::fs::write(&path, old.to_string()).expect("written");
            assert_eq!(branch_of(dir.path()), branch);
        }
        let one = note(held(Some(at()), None), &disk);
        one.remember_base(dir.path(), &at()).expect("kept");
        assert_eq!(base(dir.path(), &name("db"), one.generation), Some(at()));
        assert_eq!(base(dir.path(), &name("db"), one.generation + 1), None, "of another failover");
        assert_eq!(read_all(dir.path()).len(), 1);
        one.forget_base(dir.path());
        assert_eq!(base(dir.path(), &name("db"), one.generation), None);
    }

    fn read_all(state_dir: &Path) -> Vec<Note> {
        notes(state_dir).expect("listed").into_iter().map(|note| note.expect("readable")).collect()
    }

    fn branch_of(state_dir: &Path) -> Branch {
        read_all(state_dir).remove(0).course.branch
    }

    #[test]
    fn what_may_be_opened_follows_from_the_stage() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = dir.path().join("disk");
        std::fs::write(&disk, b"x").expect("written");
        let (db, data, x) = (name("db"), name("data"), name("x"));
        let returning = |served| Stage::Returning { at: at(), served };
        let held = Stage::Held { at: None, applying: None };
        let cutover = [(Stage::HandingOver, true), (Stage::HandedOver { at: None }, true)];
        let failback = [(held, true), (returning(false), true), (returning(true), false), (Stage::Aborting, false)];
        for (stage, holds) in cutover.into_iter().chain(failback) {
            let mut note = note(stage, &disk);
            assert_eq!(note.holds((&db, &data), None), holds, "{note:?}");
            assert_eq!(note.holds((&x, &x), Some(&disk)), holds, "{note:?}");
            assert_eq!(note.holds((&db, &x), None), holds, "a volume that is new to the group waits: {note:?}");
            assert!(!note.holds((&x, &data), Some(dir.path())));
            note.volumes[0].leaving = true;
            assert!(note.holds((&db, &data), None), "it is being removed");
            assert!(note.held().is_empty());
        }
    }
}
