//! Ends what a guard began and could not end, because it was killed or a post-cut failed.
//!
//! Invariant: a note is followed only by whoever holds its lock, so never while its guard lives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use farside_region::Name;
use serde::{Deserialize, Serialize};

use crate::command::{self, Asked, Done};
use crate::freeze::{FileSystems, Freeze, Mounted, Thaw};
use crate::guard::ran;
use crate::note::{Locked, Note, notes};
use crate::plan::{Cut, Hook, Plan, Ran, Stage, What};
use crate::wait::{Limit, Waiting};

/// A note that somebody left, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    /// The file. It is gone if nothing `failed`.
    pub note: PathBuf,
    /// Whose; `None` if the note is not readable.
    pub group: Option<Name>,
    /// The post-cuts that ran, in order.
    pub ran: Vec<Ran>,
    /// Why it could not all be ended: what is left stays noted, and is tried again by the next guard with this note, or the next call.
    pub failed: Option<String>,
}

/// Ends what the notes in a directory say was begun, except those of guards that live. It is cheap where there is nothing to do, so
/// it can be called whenever a guard was lost, and must be when farsided starts. It blocks, for at most the timeouts of the hooks
/// that were begun. A guard that is dying still counts as living: what it leaves is found by the next call.
///
/// Commands run as children of the caller, with its privileges: [`crate::resume`] has a guard do it, with those of a guard.
pub fn resume_forgotten(dir: &Path) -> Vec<Forgotten> {
    let none = |note: &Path, why: String| Forgotten { note: note.to_owned(), group: None, ran: Vec::new(), failed: Some(why) };
    let notes = match notes(dir) {
        Ok(notes) => notes,
        Err(error) => return vec![none(dir, format!("what is noted in {} is not known: {error}", dir.display()))],
    };
    let end = |note: PathBuf| match Locked::take(&note) {
        Ok(None) => None,
        Ok(Some(locked)) => {
            let systems: Arc<dyn FileSystems> = Arc::new(Mounted { spared: Vec::new() });
            end_forgotten(&locked, &note, None, &systems, &mut Waiting::default())
        }
        Err(error) => Some(none(&note, format!("the note {} cannot be locked: {error}", note.display()))),
    };
    notes.into_iter().filter_map(end).collect()
}

/// Ends what a note says was begun; `None` if it says nothing. Commands are taken from the `plan` of today, if there is one that
/// has the hook: one that was mistaken then would fail for ever.
pub(crate) fn end_forgotten(
    locked: &Locked,
    path: &Path,
    today: Option<&Plan>,
    systems: &Arc<dyn FileSystems>,
    waiting: &mut Waiting,
) -> Option<Forgotten> {
    let note = match locked.read() {
        Ok(note) => note?,
        Err(error) => {
            let failed = Some(format!("the note {} says what was begun, but {error}", path.display()));
            return Some(Forgotten { note: path.to_owned(), group: None, ran: Vec::new(), failed });
        }
    };
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for hook in note.to_end() {
        let ran = post_cut(&note.plan, corrected(hook, today), systems, waiting);
        if ran.failed.is_some() {
            left.push(hook.name.clone());
        }
        done.push(ran);
    }
    left.reverse();
    let mut failed = done.iter().find_map(Ran::complaint);
    let settled = if left.is_empty() { locked.remove() } else { locked.write(&Note { begun: left, ..note.clone() }) };
    if let Err(error) = settled {
        failed.get_or_insert(format!("the note {} cannot be changed: {error}", path.display()));
    }
    Some(Forgotten { note: path.to_owned(), group: Some(note.plan.group), ran: done, failed })
}

/// The hook as it is today, if it is a command still. A file system is thawed where it was frozen.
fn corrected<'a>(hook: &'a Hook, today: Option<&'a Plan>) -> &'a Hook {
    let is_command = |hook: &Hook| matches!(hook.what, What::Command(_));
    let same = today.and_then(|plan| plan.hooks.iter().find(|other| other.name == hook.name));
    same.filter(|other| is_command(other) && is_command(hook)).unwrap_or(hook)
}

fn post_cut(plan: &Plan, hook: &Hook, systems: &Arc<dyn FileSystems>, waiting: &mut Waiting) -> Ran {
    let limit = Limit::only(hook.timeout);
    let done = match &hook.what {
        What::Command(words) => {
            let asked = Asked { plan, hook, stage: Stage::PostCut, cut: Some(Cut::NotTaken) };
            command::run(asked, words, &limit, waiting)
        }
        What::Freeze(path) => {
            let thaw = Freeze::end_forgotten(systems.clone(), path).map(|mut freeze| freeze.thaw(&limit, waiting));
            let path = path.display();
            let (said, failed) = match thaw {
                Ok(Thaw::Thawed) => (Some(format!("{path} is thawed")), None),
                // Whoever thawed it did what was to be done.
                Ok(Thaw::WasNot | Thaw::NotOurs) => (Some(format!("{path} was not frozen any more")), None),
                Ok(Thaw::Failed(why) | Thaw::Late(why)) | Err(why) => (None, Some(why)),
            };
            Done { said, failed, begun: true }
        }
    };
    ran(hook, Stage::PostCut, limit.began, done)
}
