//! What farsided and a guard say to each other, one JSON value a line.
//!
//! Owns the words and what makes a plan valid. farsided says a [`Plan`], later a [`Verdict`]; the guard says [`Said`]. A reader
//! refuses what it does not know, so that a guard of another version does not begin what it would not end.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use farside_region::Name;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::forgotten::Forgotten;

/// The longest line that either side reads, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The longest time that a hook may be given for one stage.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest hold.
pub const HOLD_MAX: Duration = Duration::from_secs(60 * 60);

/// All that a guard must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`Plan::VERSION`].
    pub version: u32,
    /// The group that is cut.
    pub group: Name,
    /// Its volumes.
    pub volumes: Vec<Name>,
    /// In the order of their pre-cuts; post-cuts run in reverse. File systems that are frozen should come last: they are then
    /// frozen for the shortest time, and no other pre-cut waits to write to them.
    pub hooks: Vec<Hook>,
    /// How long applications may be held, in milliseconds. There is one deadline: it counts from the moment at which the first
    /// file system was frozen, or from Ready if none is. When it passes, also during a later pre-cut, everything is ended. A file
    /// system is thus frozen for at most this long, and what the post-cuts of later hooks take.
    pub hold_ms: u64,
    /// Where the guard notes what it began: `NAME.json` in a directory of a tmpfs, the same one for every cut of a group.
    pub note: PathBuf,
    /// Files whose file systems must not be frozen, besides the note's: what farsided itself writes to.
    #[serde(default)]
    pub spared: Vec<PathBuf>,
}

/// Something to do before a cut and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Once in a plan.
    pub name: Name,
    /// What is done.
    pub what: What,
    /// How long each of its two stages may take.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
}

/// What a hook does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Runs `argv... pre-cut`, and later `argv... post-cut`. Its post-cut must work whatever became of its pre-cut, and may be
    /// asked for more than once if a guard was killed.
    Command(Vec<String>),
    /// Freezes the file system that is mounted there, and thaws it.
    Freeze(PathBuf),
}

/// The two stages of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Before the cut.
    PreCut,
    /// After it, or instead of it.
    PostCut,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreCut => "pre-cut",
            Self::PostCut => "post-cut",
        })
    }
}

/// How one stage of a hook ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// Its name.
    pub hook: Name,
    /// Which stage.
    pub stage: Stage,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// Its last words for people, at most 200 bytes on one line.
    pub said: Option<String>,
    /// Why it did not work.
    pub failed: Option<String>,
}

impl Ran {
    /// The failure as a sentence that names the hook.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.failed.as_ref().map(|why| format!("the {} of hook {} failed: {why}", self.stage, self.hook))
    }
}

/// What became of the cut, as farsided says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    pub(crate) cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cut {
    Taken,
    NotTaken,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken => "taken",
            Self::NotTaken => "not-taken",
        })
    }
}

/// What may stand in place of a plan: that what other guards left is to be ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {
    pub(crate) version: u32,
    /// The directory of their notes.
    pub(crate) resume: PathBuf,
}

/// The first line that a guard hears.
#[derive(Debug)]
pub(crate) enum First {
    Plan(Box<Plan>),
    Resume(PathBuf),
}

impl First {
    /// Reads it and checks it.
    pub(crate) fn read(line: &[u8]) -> Result<Self, PlanError> {
        match serde_json::from_slice(line) {
            Ok(Resume { version: Plan::VERSION, resume }) => Ok(Self::Resume(resume)),
            // Also one of another version, which says so.
            _ => Plan::read(line).map(|plan| Self::Plan(Box::new(plan))),
        }
    }
}

/// A line of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Said {
    Ran(Ran),
    /// What another guard left.
    Forgotten(Forgotten),
    /// Every pre-cut succeeded: cut now.
    Ready {},
    /// The last line.
    Ended {
        held: bool,
        why: Option<String>,
    },
}

/// Why a plan is not followed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Not JSON, or not this JSON.
    #[error("it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("it is of version {0}, and this guard knows only version {known}", known = Plan::VERSION)]
    Version(u32),
    /// Nothing to do.
    #[error("it has no hooks")]
    NoHooks,
    /// A name that is there twice.
    #[error("it has two hooks with the name {0}")]
    Twice(Name),
    /// A command without a program.
    #[error("hook {0} has no program to run")]
    NoProgram(Name),
    /// A mount point that is relative to nothing.
    #[error("hook {0} freezes {path}, which is not an absolute path", path = .1.display())]
    RelativeMount(Name, PathBuf),
    /// No time, or too much.
    #[error("hook {0} must have between 1 ms and {max} s for a stage", max = TIMEOUT_MAX.as_secs())]
    Timeout(Name),
    /// No time, or too much.
    #[error("the hold must be between 1 ms and {max} s", max = HOLD_MAX.as_secs())]
    Hold,
    /// A note that would not be found again.
    #[error("the note {} is not an absolute path that ends in .json", .0.display())]
    Note(PathBuf),
    /// Longer than a guard reads.
    #[error("it is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl Plan {
    /// The version of the protocol, and of the note.
    pub const VERSION: u32 = 1;

    /// Reads a plan and checks it.
    pub(crate) fn read(line: &[u8]) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        // What another version says besides is not for us to judge.
        let Any { version } = serde_json::from_slice(line)?;
        if version != Self::VERSION {
            return Err(PlanError::Version(version));
        }
        let plan: Self = serde_json::from_slice(line)?;
        plan.check().map(|()| plan)
    }

    /// Whether a guard would follow it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.version != Self::VERSION {
            return Err(PlanError::Version(self.version));
        }
        if self.hooks.is_empty() {
            return Err(PlanError::NoHooks);
        }
        for (at, hook) in self.hooks.iter().enumerate() {
            hook.check()?;
            if self.hooks.iter().take(at).any(|other| other.name == hook.name) {
                return Err(PlanError::Twice(hook.name.clone()));
            }
        }
        if self.hold_ms == 0 || self.hold() > HOLD_MAX {
            return Err(PlanError::Hold);
        }
        let is_note = self.note.is_absolute() && self.note.extension().is_some_and(|ending| ending == "json");
        if is_note { Ok(()) } else { Err(PlanError::Note(self.note.clone())) }
    }

    pub(crate) fn hold(&self) -> Duration {
        Duration::from_millis(self.hold_ms)
    }

    /// What all hooks together may take for one of the stages.
    pub(crate) fn timeouts(&self) -> Duration {
        self.hooks.iter().map(|hook| hook.timeout).fold(Duration::ZERO, Duration::saturating_add)
    }
}

impl Hook {
    fn check(&self) -> Result<(), PlanError> {
        match &self.what {
            What::Command(words) if words.first().is_none_or(String::is_empty) => {
                return Err(PlanError::NoProgram(self.name.clone()));
            }
            What::Freeze(path) if !path.is_absolute() => {
                return Err(PlanError::RelativeMount(self.name.clone(), path.clone()));
            }
            What::Command(_) | What::Freeze(_) => {}
        }
        let is_time = (Duration::from_millis(1)..=TIMEOUT_MAX).contains(&self.timeout);
        if is_time { Ok(()) } else { Err(PlanError::Timeout(self.name.clone())) }
    }
}

/// Durations as whole milliseconds.
mod millis {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
