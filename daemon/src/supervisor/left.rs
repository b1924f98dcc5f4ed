//! What hooks of a group quiesced that nobody has any more: its last volume was removed, or cannot be opened.
//!
//! A group that has its thread ends what its own guards left (`group/quiet.rs`), and says so. For the others it is done here, from the start on, as
//! often, and said of the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farside_control::source::GroupStatus;
use farside_control::{Code, Reason, Severity};
use farside_replication::quiet::QuietLimits;
use tokio::sync::oneshot;
use tracing::warn;

use super::Daemon;
use crate::{hooks, locked};

impl Daemon {
    /// Ends what is left of anybody, at once; then of those that nobody has, ever less often while it is there.
    pub(super) async fn end_what_hooks_left(self: Arc<Self>) {
        let QuietLimits { left_again, left_again_max, .. } = QuietLimits::default();
        let mut pause = left_again;
        self.try_to_end().await;
        loop {
            tokio::time::sleep(Duration::from_nanos(pause)).await;
            if hooks::noted(&self.around.runtime_dir).iter().any(|note| self.is_nobodys(note)) {
                pause = pause.saturating_mul(2).min(left_again_max);
                self.try_to_end().await;
            } else {
                pause = left_again;
            }
        }
    }

    async fn try_to_end(&self) {
        let runtime_dir = self.around.runtime_dir.clone();
        let (done, is_done) = oneshot::channel();
        // On a thread of its own: what it runs may take long, and be what waits for our volumes.
        let tries = std::thread::Builder::new().name("hooks".to_owned());
        let tries = tries.spawn(move || drop(done.send(hooks::resume_forgotten(&runtime_dir))));
        if let (Ok(_), Ok(left)) = (tries, is_done.await) {
            let mut known = locked(&self.hooks_left);
            left.iter().filter(|one| !known.contains(one)).for_each(|(note, why)| {
                warn!(note = %note.display(), "what a guard of hooks had quiesced may still be: {why}");
            });
            *known = left;
        }
    }

    /// Whether a note is of a group that has no volume, or no thread.
    fn is_nobodys(&self, note: &Path) -> bool {
        let has_thread = |group: &_| locked(&self.groups).contains_key(group);
        hooks::group_of(note).is_none_or(|group| self.volumes_of(&group).is_empty() || !has_thread(&group))
    }

    /// What a person should know of those that none of these `groups` says.
    pub(super) fn still_quiesced(&self, groups: &[GroupStatus]) -> Vec<Reason> {
        let is_said = |note: &Path| {
            let group = hooks::group_of(note);
            group.is_some_and(|group| groups.iter().any(|known| known.name == group.as_str()))
        };
        // Whoever ended it by hand has removed it.
        let left = |(note, _): &&(PathBuf, String)| note.exists() && !is_said(note);
        let reason = |(note, why): &(PathBuf, String)| {
            let of = hooks::group_of(note).map_or_else(String::new, |group| format!(" of group {group}, which is not served,"));
            let message = format!("what hooks{of} quiesced may still be: {why}");
            let todo = format!(
                "it is tried again by itself; end that by hand if it does not end (`farside explain hooks_failed`), and remove {}",
                note.display()
            );
            Reason::new(Severity::Error, Code::HooksFailed, message, todo)
        };
        locked(&self.hooks_left).iter().filter(left).map(reason).collect()
    }
}
