//! What a group deletes, and when: segments and packs that nothing needs any more.
//!
//! Invariants:
//! - what damage makes one need does not go ([`GroupImage::may_go`](crate::image::GroupImage::may_go)), neither when it was cleared before the
//!   damage was found;
//! - in a directory it goes once two objects say that it was given up ([`crate::said_once`]; in a bucket a day later);
//! - what may not go keeps nothing else, and neither does what cannot be deleted: one file that a disk will not let go of fills no store;
//! - what fails comes again later and later, a file by itself, all of a directory where nothing goes, and is said once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_region::{LayerKey, Name, Slot, mutation};

use super::{GroupStore, LISTED_AT_ONCE, ORPHANS_AFTER_MS, Swept, Unseen};
use crate::backend::block_on;
use crate::error::Result;
use crate::liveness::PartName;
use crate::locks::DeletionGuard;
use crate::replay::parallel;

/// Files deleted under one hold of the readers' lock.
const DELETE_BATCH: usize = 1000;
/// Objects of a bucket deleted at once, since records wait for it.
const DELETE_REQUESTS: usize = 64;
/// And not again before this.
const SWEPT_AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };
/// What took longer than this is not begun again before as much has passed: nothing of the group is heard while its thread waits for a service.
const SLOW: Duration = Duration::from_secs(5);
/// A file of a directory that could not be deleted is not tried again before the first of these, then twice as long, up to the second.
const FILE_AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Nor is any where nothing could be.
const ALL_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// So many failed, and none went: the others are not tried.
const FAILURES_MAX: usize = 16;
/// What is deleted in passing ends after so long, with what it is at: the group's thread hears nobody meanwhile.
const SWEEP_TIME: Duration = Duration::from_millis(500);
/// In a directory with more room than this nothing goes for the word of one record.
const ROOM: u64 = 256 << 20;

#[cfg(not(test))]
fn room() -> u64 {
    ROOM
}

#[cfg(test)]
thread_local! {
    /// Most tests look right after the record.
    pub(super) static WAITS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
fn room() -> u64 {
    if WAITS.get() { ROOM } else { u64::MAX }
}

/// Nor is it looked more often for who reads.
const LOOKED_AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(600) };

fn pause_after(took: Duration) -> Duration {
    if took > SLOW { took } else { SWEPT_AGAIN }
}

/// A file to be deleted.
#[derive(Clone, Debug)]
pub(super) struct Dead {
    pub(super) volume: Name,
    /// When it came to be, by the clock of the service; `None`: not known yet.
    pub(super) created_ms: Option<i64>,
    /// Its bytes, if a merge replaced it, as far as that is known.
    pub(super) merged_bytes: u64,
    /// The slot of the prune record that gave it up, or one after it; `None`: no prune says so.
    pub(super) said: Option<Slot>,
    /// The file system would not delete it.
    pub(super) refused: Option<Pause>,
}

impl Dead {
    pub(super) fn of(volume: Name) -> Self {
        Self { volume, created_ms: None, merged_bytes: 0, said: None, refused: None }
    }
}

/// What failed is not tried again before it is over, and the next one is longer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    until: Instant,
    lasts: Duration,
}

impl Pause {
    fn after(before: Option<Self>, (first, longest): (Duration, Duration), now: Instant) -> Self {
        let lasts = before.map_or(first, |before| (before.lasts * 2).min(longest));
        Self { until: now + lasts, lasts }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }
}

/// That nothing can be deleted in a directory.
#[derive(Debug, Default)]
pub(super) struct Failing {
    pause: Option<Pause>,
    /// That something could not be was said, and it still cannot.
    is_said: bool,
}

impl GroupStore {
    /// What cannot be deleted now is deleted later, and nothing else waits for that.
    pub(super) fn sweep_in_passing(&mut self) {
        if self.sweeps {
            self.sweep_or_say();
        }
    }

    /// As [`GroupStore::sweep`]. That it fails is said once, until all that failed went.
    pub fn sweep_or_say(&mut self) {
        self.sweep_or_say_as_of(Instant::now());
    }

    fn sweep_or_say_as_of(&mut self, now: Instant) {
        match self.sweep_as_of(now) {
            Ok(swept) => {
                let is_news = self.failing.is_said && (swept.deleted > 0 || swept.deferred == 0);
                if is_news && self.failing.pause.is_none() && self.dead.values().all(|dead| dead.refused.is_none()) {
                    self.failing.is_said = false;
                }
            }
            Err(error) if self.failing.is_said => {
                tracing::debug!(group = %self.names(), %error, "dead segments still cannot be deleted")
            }
            Err(error) => {
                self.failing.is_said = true;
                let then = "they are tried again, later and later; that is not said again before they went";
                tracing::warn!(group = %self.names(), %error, then, "dead segments could not be deleted yet");
            }
        }
    }

    /// Deletes what may go, unless somebody reads; finds it first, a thousand names at a time, in a bucket that was just opened. To
    /// be called now and then while [`GroupStore::is_swept`] says no.
    ///
    /// # Errors
    /// [`StoreError::Uncertain`](crate::StoreError::Uncertain), or what the file system says.
    pub fn sweep(&mut self) -> Result<Swept> {
        self.sweep_as_of(Instant::now())
    }

    /// The same by the clock of whoever asks.
    pub(super) fn sweep_as_of(&mut self, now: Instant) -> Result<Swept> {
        self.certain()?;
        self.hear_of_damage();
        let mut swept = Swept::default();
        if self.torn.is_some() {
            swept.deferred = self.dead.len();
            return Ok(swept);
        }
        if self.shared.is_dir { self.sweep_directory(now) } else { self.sweep_bucket() }
    }

    fn sweep_directory(&mut self, now: Instant) -> Result<Swept> {
        let mut swept = Swept { deferred: self.dead.len(), ..Swept::default() };
        if self.failing.pause.is_some_and(|pause| !pause.is_over(now)) {
            return Ok(swept);
        }
        let waits_from = self.waits_from();
        let waits = |dead: &Dead| dead.said.is_some_and(|said| waits_from.is_some_and(|from| from <= said));
        let began = Instant::now();
        // What fails keeps nothing else from being deleted, and is told at the end.
        let (mut failed, mut failures) = (None, 0);
        'all: loop {
            let is_due = |dead: &Dead| dead.refused.is_none_or(|pause| pause.is_over(now));
            let may_go = self.dead.iter().filter(|(part, dead)| is_due(dead) && !waits(dead) && self.image.may_go(part));
            let batch: Vec<(PartName, Name)> =
                may_go.take(DELETE_BATCH).map(|(part, dead)| (*part, dead.volume.clone())).collect();
            if batch.is_empty() {
                break;
            }
            let _guard = match DeletionGuard::try_take(self.shared.staging.root()) {
                Ok(Some(guard)) => guard,
                Ok(None) => {
                    self.deferred_since.get_or_insert(began);
                    break;
                }
                Err(error) => {
                    (failed, failures) = (failed.or(Some(error)), FAILURES_MAX);
                    break;
                }
            };
            self.deferred_since = None;
            for (part, volume) in batch {
                match block_on(self.segments.backend.delete(&self.segments.name(&volume, &part))) {
                    Ok(()) => {
                        self.segments.forget(&part);
                        self.dead.remove(&part);
                        swept.deleted += 1;
                    }
                    Err(error) => {
                        let pause = |dead: &mut Dead| dead.refused = Some(Pause::after(dead.refused, FILE_AGAIN, now));
                        self.dead.entry(part).and_modify(pause);
                        (failed, failures) = (failed.or(Some(error)), failures + 1);
                    }
                }
                let is_hopeless = swept.deleted == 0 && failures >= FAILURES_MAX;
                if is_hopeless || began.elapsed() >= SWEEP_TIME {
                    break 'all;
                }
            }
        }
        let nothing_goes = swept.deleted == 0 && (failures >= FAILURES_MAX || began.elapsed() >= SWEEP_TIME);
        let is_failing = failed.is_some() && nothing_goes;
        self.failing.pause = is_failing.then(|| Pause::after(self.failing.pause, ALL_AGAIN, now));
        swept.deferred = self.dead.len();
        if swept.deleted > 0 {
            self.shared.keep_ballast();
        }
        failed.map_or(Ok(swept), Err)
    }

    /// What the record in that slot gave up, or one after it, stays for now: it is said by one object alone.
    fn waits_from(&mut self) -> Option<Slot> {
        self.said_once.first().filter(|_| !self.dead.is_empty())?;
        if self.needs_room() || mutation::on("what is deleted hangs on one record") {
            return None;
        }
        self.said_once.look(&*self.segments.backend, &self.segments.names, self.image.state());
        self.said_once.first()
    }

    /// Whether it goes all the same: a full store takes no other record.
    fn needs_room(&self) -> bool {
        // What cannot be looked at is no reason to delete.
        self.is_short || self.space().is_ok_and(|space| space.grantable() < room())
    }

    /// In a bucket: a few at a time.
    fn sweep_bucket(&mut self) -> Result<Swept> {
        let mut swept = Swept::default();
        // What fails keeps nothing else from being deleted, and is told at the end.
        let mut failed = None;
        let lists = (self.unseen.is_some() || self.packs.unseen.is_some()) && self.list_at.is_none_or(|at| Instant::now() >= at);
        self.keep_what_may_not_go();
        let looks = self.cleared.is_empty() && self.looked_at.is_none_or(|at| at.elapsed() >= LOOKED_AGAIN);
        let may_go = !self.cleared.is_empty() || !self.cleared_packs(1).is_empty();
        let deletes = may_go && self.sweep_at.is_none_or(|at| Instant::now() >= at);
        // † What has come to lie under that address is another store's, with volumes and terms like ours.
        if (lists || looks || deletes)
            && let Err(error) = self.shared.same_place()
        {
            // Not again at once: whoever asks is a group's own thread.
            let now = Instant::now();
            (self.looked_at, self.list_at, self.sweep_at) = (Some(now), Some(now + LOOKED_AGAIN), Some(now + LOOKED_AGAIN));
            return Err(error);
        }
        if lists {
            let began = Instant::now();
            failed = self.look_for_debris().err();
            failed = self.look_for_unnamed_packs().err().or(failed);
            self.list_at = Some(Instant::now() + pause_after(began.elapsed()));
        }
        if looks {
            // After an error, too: not again at once.
            self.looked_at = Some(Instant::now());
            failed = self.clear().err().or(failed);
        }
        let may_go = !self.cleared.is_empty() || !self.cleared_packs(1).is_empty();
        if may_go && self.sweep_at.is_none_or(|at| Instant::now() >= at) {
            let of = |part: &PartName| Some((*part, self.dead.get(part)?.volume.clone()));
            let batch: Vec<(PartName, Name)> = self.cleared.iter().filter_map(of).take(DELETE_REQUESTS).collect();
            let began = Instant::now();
            let segments = Arc::clone(&self.segments);
            let backend = &*segments.backend;
            let deleted = parallel(backend, &batch, |(part, volume)| block_on(backend.delete(&self.segments.name(volume, part))));
            for ((part, _), deleted) in batch.iter().zip(deleted) {
                // One that cannot be deleted, perhaps never, comes up again with the next look.
                self.cleared.remove(part);
                match deleted {
                    Ok(()) => {
                        self.segments.forget(part);
                        self.dead.remove(part);
                        swept.deleted += 1;
                    }
                    Err(error) => failed = Some(error),
                }
            }
            let packs = self.cleared_packs(DELETE_REQUESTS - batch.len());
            let deleted = parallel(backend, &packs, |id| block_on(backend.delete(&self.segments.names.pack(*id))));
            for (id, deleted) in packs.into_iter().zip(deleted) {
                swept.deleted += usize::from(deleted.is_ok());
                self.pack_deleted(id, deleted.is_ok());
                failed = deleted.err().or(failed);
            }
            // After an error, too: not again at once.
            self.sweep_at = Some(Instant::now() + pause_after(began.elapsed()));
        }
        swept.deferred = self.deferred();
        failed.map_or(Ok(swept), Err)
    }

    /// Nothing waits for what was cleared and may not go any more, as damage was found since: it comes up again with a look after that.
    fn keep_what_may_not_go(&mut self) {
        let image = &self.image;
        if image.has_unknown() || image.is_spoiled(None, Slot(0)) {
            self.cleared.retain(|part| image.may_go(part));
            self.keep_packs_that_may_not_go();
        }
    }

    /// Looks at some more of a bucket's segments. What is there waits a day before it goes, so nothing waits for this.
    fn look_for_debris(&mut self) -> Result<()> {
        let Some(Unseen(after)) = &self.unseen else { return Ok(()) };
        let page = block_on(self.segments.backend.list(Some(&self.names().segments()), after.as_ref(), LISTED_AT_ONCE))?;
        let last = page.objects.last().map(|listed| listed.name.clone());
        let found = page.objects.iter().filter_map(|listed| self.known_segment(listed)).collect();
        self.sort_out(found);
        self.unseen = page.more.then_some(Unseen(last));
        Ok(())
    }

    /// Whether sources wait, or soon will, for what this group may have of the disk: then what was given up goes at once.
    pub fn set_short(&mut self, is_short: bool) {
        self.is_short = is_short;
    }

    /// Whether nothing is left to sweep.
    pub fn is_swept(&self) -> bool {
        self.deferred() == 0 && self.unseen.is_none() && self.packs.unseen.is_none()
    }

    /// Finds out what may be deleted in a bucket: what was given up a day ago, for those who read without a lease, and is not held
    /// by one; and orphans. It may go from then on, however long that takes: see [`crate::leases`].
    fn clear(&mut self) -> Result<()> {
        let lately = self.state().given_up_lately().map(|(layer, number)| PartName { layer, number });
        let lately: BTreeSet<PartName> = lately.collect();
        let given_up = |part: &PartName| {
            let published = self.state().published(&part.layer).filter(|known| known.given_up.contains(&part.number));
            published.map(|published| published.born)
        };
        // One that may not go, perhaps never, is in nobody's way.
        let due = self
            .dead
            .keys()
            .filter(|part| !lately.contains(*part) && self.image.may_go(part))
            .map(|part| (*part, given_up(part)));
        let due: Vec<(PartName, Option<Slot>)> = due.collect();
        if due.is_empty() && !self.packs_wait() {
            return Ok(());
        }
        let held = self.leases.look(&*self.segments.backend, &self.segments.names)?;
        self.clear_packs(&held);
        for (part, born) in due {
            // † Whoever reads a point that was given up long ago may need what replay knows nothing of any more.
            let is_read =
                self.image.state().may_be_forgotten(&part.layer) && !held.frees(part.layer.volume, born_at_least(&part.layer));
            let may_go = match (born, self.dead.get_mut(&part)) {
                (None, Some(_)) if is_read && !mutation::on("L4 a lease does not keep what was forgotten") => false,
                (Some(born), _) => held.frees(part.layer.volume, born),
                (None, Some(orphan)) => {
                    let since_ms = *orphan.created_ms.get_or_insert(held.now_ms);
                    held.now_ms.saturating_sub(since_ms) >= ORPHANS_AFTER_MS
                }
                (None, None) => false,
            };
            if may_go {
                self.cleared.insert(part);
            }
        }
        Ok(())
    }
}

/// The slot before which no layer of that key came in: those of a term come one after another, in slots after its claim's. What a merge wrote may be as old as can be.
fn born_at_least(layer: &LayerKey) -> Slot {
    match layer.merge() {
        Some(_) => Slot(0),
        None => Slot(layer.term.0.saturating_add(layer.seq.0)),
    }
}

#[cfg(test)]
#[path = "sweeping_tests.rs"]
mod tests;
