//! When a follower locks what its target holds; how is `locks`'s.

use std::sync::Arc;
use std::time::Instant;

use farside_blockio::clone_file;
use farside_control::PointId;
use farside_control::follower::LockRule;
use farside_region::LedgerPosition;
use farside_store::FileTarget;
use jiff::Timestamp;

use super::{Definition, Runner, Trouble, goes_on, lock};
use crate::group::GroupHandle;
use crate::locks::{self, Locked, Round, Whose};

/// Why a target is not locked.
pub(super) const POINT_GONE: &str = "its point is gone, so that the target cannot be compared before the next one";
pub(super) const GROUP_AWAY: &str = "its group cannot be asked what the target should hold";

impl Runner {
    /// Locks what the target holds, if that is due, before it goes on.
    pub(super) fn lock_step(&mut self, group: &GroupHandle, at: LedgerPosition) -> Result<(), Trouble> {
        let definition = lock(&self.entry.definition).clone();
        let Some(rule) = definition.lock.as_ref().filter(|_| definition.promoted.is_none()) else { return Ok(()) };
        let (id, now_ms) = (PointId::new(at.slot.0, &at.digest.0), Timestamp::now().as_millisecond());
        let is_too_soon = self.no_lock_until.is_some_and(|until| Instant::now() < until);
        if is_too_soon || !locks::is_due(&self.read_holds()?.locked, id, rule, now_ms) {
            return Ok(());
        }
        let words = match self.lock_round(group, at, &definition, (rule, id, now_ms)) {
            Ok(()) => {
                self.lock_pause.reset();
                self.no_lock_until = None;
                self.show(|view| view.unlocked = None);
                tracing::debug!(follower = %self.entry.name, point = %id, "what a follower holds is locked");
                return Ok(());
            }
            Err(stopped @ (Trouble::Stopped | Trouble::Diverged(_))) => return Err(stopped),
            Err(Trouble::Words(words) | Trouble::Unread(words)) => words,
        };
        if rule.strict {
            return Err(Trouble::Words(format!("what it holds cannot be locked: {words}")));
        }
        if lock(&self.entry.view).unlocked.as_ref() != Some(&words) {
            tracing::warn!(follower = %self.entry.name, point = %id, %words, "what a follower holds is not locked");
        }
        self.no_lock_until = Some(Instant::now() + self.lock_pause.next(0));
        self.show(|view| view.unlocked = Some(words));
        Ok(())
    }

    fn lock_round(
        &mut self,
        group: &GroupHandle,
        at: LedgerPosition,
        definition: &Definition,
        (rule, id, now_ms): (&LockRule, PointId, i64),
    ) -> Result<(), Trouble> {
        // † What a stranger wrote since, and what a dead receiver may have left half written, is not what the point holds.
        self.inspect_target(group, at, true)?;
        if self.read_holds()?.following.is_in_doubt() {
            self.verify(group, at)?;
        }
        if self.read_holds()?.following.is_in_doubt() {
            return Err(Trouble::Words(POINT_GONE.to_owned()));
        }
        let Some(target) = &self.target else { return Err(Trouble::Stopped) };
        let (path, handle) = (target.path().to_owned(), target.handle());
        let handle = handle.map_err(|error| Trouble::Words(format!("{}: {error}", path.display())))?;
        let share = |to: &std::fs::File| clone_file(&handle, to);
        let (receiver, entry) = (Arc::clone(&self.receiver), Arc::clone(&self.entry));
        // † Whoever waits for a promotion does not wait for this.
        let goes_on = || goes_on(&receiver, &entry) && lock(&entry.definition).promoted.is_none();
        let programs = &receiver.config().locks;
        let whose = || Whose {
            follower: entry.name.to_string(),
            volume: format!("{}/{}", definition.names(), definition.volume),
            target: path.clone(),
            share: &share,
        };
        let failed = |words: String| if goes_on() { Trouble::Words(words) } else { Trouble::Stopped };
        let mut locked = self.read_holds()?.locked.clone();
        let mut keep = |now: &[Locked]| self.keep_locked(now);
        let done = Round { programs, whose: whose(), keep: &mut keep, goes_on: &goes_on }.lock((rule, id), &mut locked, now_ms);
        done.map_err(failed)?;
        // And nothing was written to it meanwhile, nor was something else put in its place.
        let is_in_place = self.target.as_ref().is_some_and(FileTarget::is_in_place);
        let looked = if is_in_place { self.inspect_target(group, at, true) } else { Err(Trouble::Stopped) };
        let is_another = !is_in_place || matches!(looked, Err(Trouble::Diverged(_)));
        let mut keep = |now: &[Locked]| self.keep_locked(now);
        let mut round = Round { programs, whose: whose(), keep: &mut keep, goes_on: &goes_on };
        match looked {
            Ok(()) => round.confirm(rule, &mut locked).map_err(failed),
            // What is not undone here is before the next round.
            Err(trouble) => {
                if is_another && let Err(words) = round.undo_unsure(&mut locked) {
                    tracing::warn!(follower = %self.entry.name, point = %id, %words, "a lock of what is no point stays for now");
                }
                Err(trouble)
            }
        }
    }

    fn keep_locked(&mut self, now: &[Locked]) -> Result<(), String> {
        let now = now.to_vec();
        self.change_holds(|holds| holds.locked.clone_from(&now))
            .map_err(|_| "the state directory cannot be written".to_owned())?;
        self.show(|view| view.locked = now);
        Ok(())
    }
}
