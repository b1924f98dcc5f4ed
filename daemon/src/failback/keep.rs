//! What a failback does about what only its disks hold: what is kept over which point, when, and how it ends.
//!
//! Owns the branch of a failback's note. Invariant: what is done follows from the note as it was looked at, and is done only if that is still so under the
//! lock of the disks. How a branch is written is [`branch`]'s.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use farside_control::ApiError;
use farside_control::failback::BranchStatus;
use farside_region::{LedgerPosition, Name};
use farside_replication::failback::{At, Branch, Ending, Kept, Stage};
use farside_wire::{ForkPin, PullPoint};
use tracing::{error, info, warn};

use super::branch::{self, Keeping, Left};
use super::note::{Held, Note, shown};
use super::pull::{PullError, Puller};
use super::{Failback, conflict, fits, turns, waits};
use crate::locked;
use crate::supervisor::Daemon;

/// A gateway that does not hear that a branch is gone keeps its point.
const UNPIN: Duration = Duration::from_secs(5);

impl Daemon {
    /// A person gives up what the disks hold and no point does. What is kept of it by now stays.
    pub(super) async fn discard_branch(&self, failback: &Failback) -> Result<anyhow::Result<()>, ApiError> {
        let _disks = failback.stop_for_a_moment().await?;
        Ok(self.change(failback, |note| note.course.branch = Branch::Discarded))
    }

    /// The first of these points that is there and holds these volumes, or else the newest from before the failover. Over this connection, or the next,
    /// which it leaves.
    pub(super) async fn fork(
        &self,
        group: &Name,
        failback: &Failback,
        connected: &mut Option<Arc<Puller>>,
        held: &[Held],
        bases: impl IntoIterator<Item = Option<LedgerPosition>>,
    ) -> Result<PullPoint, PullError> {
        for over in bases.into_iter().flatten().map(Some).chain([None]) {
            let puller = match connected.take() {
                Some(connected) => connected,
                None => self.puller(group, failback).await?,
            };
            puller
                .wants(held.iter().map(|held| farside_ledger::volume_id(&failback.source, group, &held.name)).collect())
                .await?;
            match puller.fork(over, ForkPin::Leave).await {
                // It ends the connection, too.
                Err(PullError::Refused(_)) if over.is_some() => {}
                answered => {
                    *connected = Some(puller);
                    let fits_all = |point: &PullPoint| held.iter().all(|held| fits(&held.name, point).is_ok());
                    // A volume may be newer than what the disks were last.
                    if over.is_none() || !answered.as_ref().is_ok_and(|point| !fits_all(point)) {
                        return answered;
                    }
                }
            }
        }
        Err(PullError::Stopped)
    }

    /// Why it does not go on, and what ends the keeping if that is what waits.
    pub(super) fn with_way_out(&self, failback: &Failback, error: &anyhow::Error) -> String {
        let note = locked(&failback.note);
        // A line that broke is there again, or not, whatever is kept; and so is a key.
        let is_of_keeping = note.course.branch.is_due()
            && matches!(note.course.stage, Stage::Held { .. })
            && !matches!(error.downcast_ref(), Some(PullError::Ended(_) | PullError::Stopped | PullError::NoKey(_)));
        if !is_of_keeping {
            return format!("{error:#}");
        }
        format!("{error:#}; {}", waits::ends_keeping(&note.group, &note.course))
    }

    /// The volumes are served again: as the disks are, if that is a point; as they were, if what only they hold is being kept.
    pub(super) async fn end_held(self: &Arc<Self>, failback: &Arc<Failback>, ending: Ending) -> anyhow::Result<()> {
        let state_dir = self.state_path();
        if let Ending::PutBack { id, over } = &ending {
            let (held, _) = self.take_disks(failback).await?;
            let mut disks = failback.disks.lock().await;
            let group = locked(&failback.note).group.clone();
            // From here on until all of it is back they are no point.
            disks.known = None;
            for held in &held {
                let target = disks.open.get(&held.name).cloned().ok_or_else(|| anyhow::anyhow!("{} is closed", held.name))?;
                let (state_dir, group, id, name) = (state_dir.clone(), group.clone(), id.clone(), held.name.clone());
                let traffic = failback.traffic.clone();
                let put = move || branch::put_back(&state_dir, (&group, &id), (&name, &target), &traffic.interrupt);
                let Some(bytes) = tokio::task::spawn_blocking(put).await?? else { return Ok(()) };
                info!(volume = %held.name, bytes, "what was overwritten is put back");
            }
            let mut is_over = false;
            self.change(failback, |note| is_over = note.course.is_put_back(id))?;
            if !is_over {
                return Ok(()); // it was told otherwise meanwhile
            }
            disks.let_go();
            drop(disks);
            let (looked_in, of, which) = (state_dir.clone(), group.clone(), id.clone());
            let left = tokio::task::spawn_blocking(move || branch::is_put_back(&looked_in, &of, &which, &held));
            match left.await? {
                Ok(Left::Nothing) => {
                    self.unpin((&self.source_of(&group), &group), over.position, id).await;
                }
                Ok(Left::Content) => {}
                Ok(Left::Places(places)) => error!(
                    %group, branch = %id, %places,
                    "the disks are what they were but there: that could not be read before it was overwritten; `farside branch list` says so, too"
                ),
                Err(why) => error!(%group, branch = %id, "it stays, though what it has is put back: {why:#}"),
            }
            return Ok(());
        }
        let note = locked(&failback.note).clone();
        if let Ending::AsTheyAre { at: Some(at) } = &ending {
            self.remember_base(&note, at);
        }
        failback.disks.lock().await.let_go();
        self.turn(failback, Stage::Aborting)
    }

    /// What the disks are is in a point: the next branch need not have it.
    pub(super) fn remember_base(&self, note: &Note, at: &At) {
        if let Err(error) = note.remember_base(&self.state_path(), at) {
            warn!(group = %note.group, "what its disks are cannot be remembered, and a branch may get larger: {error:#}");
        }
    }

    /// The gateway need keep a point for a branch no more. Whether it heard that.
    async fn unpin(&self, names: (&Name, &Name), over: LedgerPosition, id: &Name) -> bool {
        let unpinned = async {
            let puller = self.puller_of(names, Arc::default()).await?;
            puller.fork(Some(over), ForkPin::Unpin(id.clone())).await?;
            puller.is_over();
            Ok::<_, PullError>(())
        };
        let unpinned = tokio::time::timeout(UNPIN, unpinned).await;
        let is_done = matches!(unpinned, Ok(Ok(())));
        if !is_done {
            warn!(branch = %id, point = %over.slot, "a point stays pinned for a branch that is gone: {unpinned:?}");
        }
        is_done
    }

    /// Keeps what the disks hold and a point does not, and brings them to it.
    pub(super) async fn keep_branch(
        &self,
        failback: &Failback,
        connected: &mut Option<Arc<Puller>>,
        looked: &Note,
        (held, have): (&[Held], Option<LedgerPosition>),
    ) -> anyhow::Result<()> {
        let (group, state_dir) = (&looked.group, self.state_path());
        let source = self.source_of(group);
        let is_as_it_was = |note: &Note| {
            note.course.branch == looked.course.branch && note.course.abort == looked.course.abort && note.held() == held
        };
        let (id, over) = match &looked.course.branch {
            Branch::Wanted { base } => {
                let lacks = failback.disks.lock().await.lacks_something();
                let whole = have.filter(|_| !lacks);
                let bases = [whole, base.as_ref().map(|base| base.position)];
                let point = self.fork(group, failback, connected, held, bases).await?;
                locked(&failback.view).over = Some(shown(&At::from(&point)));
                let Some(is) = looked.course.keeps(whole, point.position) else {
                    return self.change(failback, |note| {
                        if is_as_it_was(note) {
                            note.course.branch = Branch::None;
                        }
                    });
                };
                let store = connected.as_ref().expect("it has just answered").store();
                // Nobody removes it before it is noted.
                let turn = self.failbacks.turns.of(group.as_str(), turns::PATIENCE).await;
                let _one = turn.map_err(|busy| anyhow::anyhow!("{}", busy.message))?;
                if !is_as_it_was(&locked(&failback.note)) {
                    return Ok(());
                }
                let (dir, of, generation) = (state_dir.clone(), (source.clone(), group.clone()), looked.generation);
                let (volumes, over) = (held.to_vec(), At::from(&point));
                let begun = move || branch::begin(&dir, (&of.0, &of.1), generation, store, (&volumes, &point));
                let id = tokio::task::spawn_blocking(begun).await??;
                // † If this fails it may be durable all the same: the folder stays.
                let kept = Branch::Kept { id: id.clone(), over: over.clone(), is };
                self.change(failback, |note| note.course.branch = kept)?;
                (id, over)
            }
            Branch::Kept { id, over, is: Kept::Revertible | Kept::Mixed } => (id.clone(), over.clone()),
            Branch::None | Branch::Discarded | Branch::Kept { is: Kept::Whole, .. } => return Ok(()),
        };
        let puller = match connected {
            Some(connected) => Arc::clone(connected),
            None => connected.insert(self.puller(group, failback).await?).clone(),
        };
        // † Before anything is overwritten: without it what is kept is worth nothing.
        let point = puller.fork(Some(over.position), ForkPin::Pin(id.clone())).await?;
        let (dir, of, at, volumes) = (state_dir.clone(), (group.clone(), id.clone()), over.clone(), held.to_vec());
        let suspects = failback.suspects.clone();
        let opened = move || Keeping::open(&dir, (&of.0, &of.1), &at, &volumes, &suspects);
        let keeping = tokio::task::spawn_blocking(opened).await??;
        failback.traffic.kept.store(keeping.bytes(), Ordering::Relaxed);
        self.apply(failback, &puller, held, &point, Some((id.clone(), keeping))).await?;
        if locked(&failback.note).course.branch == Branch::None {
            // Nothing differed.
            let (dir, of, which) = (state_dir, group.clone(), id.clone());
            tokio::task::spawn_blocking(move || branch::forget(&dir, &of, &which)).await?;
            if puller.fork(Some(over.position), ForkPin::Unpin(id)).await.is_err() {
                warn!(%group, point = %over.position.slot, "a point stays pinned for a branch that came to nothing");
            }
        }
        Ok(())
    }

    /// What was kept of disks before it was overwritten.
    pub(crate) fn branches(&self) -> Vec<BranchStatus> {
        branch::all(&self.state_path())
    }

    /// A person wants a branch no more.
    ///
    /// # Errors
    /// When there is none, a failback is at it, somebody has it open, or it cannot be removed.
    pub(crate) async fn remove_branch(self: &Arc<Self>, id: &str) -> Result<BranchStatus, ApiError> {
        let _one = self.failbacks.turns.of(id.split('/').next().unwrap_or(id), turns::PATIENCE).await?;
        let found = self.branches().into_iter().find(|branch| branch.id == id);
        let branch = found.ok_or_else(|| ApiError::not_found("branch", id, "`farside branch list` lists them"))?;
        self.refuse_unread(&branch.group)?;
        let all: Vec<Arc<Failback>> = locked(&self.failbacks.all).values().cloned().collect();
        let is_written = |one: &Arc<Failback>| {
            let note = locked(&one.note);
            matches!(&note.course.branch, Branch::Kept { id: kept, .. } if note.course.branch.is_due() && format!("{}/{kept}", note.group) == id)
        };
        if all.iter().any(is_written) {
            let message = format!("a failback of {} is keeping branch {id}", branch.group);
            let what = "`farside failback --list` shows how far it is; --discard-branch there has it keep no more";
            return Err(conflict(message, what));
        }
        let path = branch.path.clone();
        let base = branch::base(Path::new(&path));
        let removed = tokio::task::spawn_blocking(move || branch::remove(Path::new(&path))).await.map_err(ApiError::internal)?;
        if let Err(error) = removed {
            return Err(conflict(format!("branch {id} stays: {error:#}"), "say the same again when that is mended"));
        }
        let name = id.rsplit('/').next().and_then(|name| name.parse::<Name>().ok());
        let is_unpinned = match (&base, &name) {
            (Some(((source, group), over)), Some(name)) => self.unpin((source, group), *over, name).await,
            _ => false,
        };
        let trouble = (!is_unpinned).then(|| "its pin was not withdrawn on the gateway".to_owned());
        Ok(BranchStatus { trouble, ..branch })
    }
}
