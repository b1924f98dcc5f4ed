//! Verifying points unasked: of every group the newest, every so often, one after the other.
//!
//! ```text
//! due, by the ledger ──► pin the newest point ──► read all of it ──► sound: put on record ──────┬──► unpin
//!                                                     ├──► degraded: not put on record ─────────┤
//!                                                     └──► damaged: said until one is sound ────┘
//! ```
//!
//! Damage is said and kept as soon as it is met, and with its place once all was read. A store that runs full needs what the pin keeps: the pin
//! goes, and the point is read when there is room again.
//!
//! Invariant: what is due follows from what the ledger says, and from what is kept of readings that could not be put on record
//! (`found.rs`), so that a restart neither forgets nor begins what is done; and what is read is kept by the pin alone, so that nothing else
//! waits for this to end, but for merges of the group: they replace what a pin keeps. A verification that a restart cut short begins
//! anew, with the newest point of then; the pin that it left is taken away first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use farside_blockio::process::Priority;
use farside_control::{Code, Damage, PointId, Reason, Severity, VerifiedVolume};
use farside_ledger::{PointFilter, PointProof, VerifiedHow};
use farside_region::Slot;
use farside_store::{GroupNames, Looked, PartName, PointInfo, PointReader, SpoiledParts, StoreError};
use jiff::Timestamp;

use crate::found::{Finding, Found};
use crate::group::{GroupHandle, Mail, PointChange};
use crate::pace::wait_until;
use crate::points::PointsAsk;
use crate::process::Receiver;
use crate::state_dir::StateDir;
use crate::verify::{open_member, verify_opened};

/// What the pin of a point says that is being verified. Nobody else's pin says so.
pub(crate) const PIN_REASON: &str = "farside-receiver is verifying it";
/// How often it is looked what is due.
const LOOK: Duration = Duration::from_secs(1);
/// When what could not be done is tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
/// Each time that it cannot be done it is waited for twice as long, and not longer than this.
const TRIED_AGAIN_MAX: Duration = Duration::from_secs(6 * 3600);

/// What came of it, by group, where that is not good.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    faults: Mutex<BTreeMap<GroupNames, Fault>>,
    /// What was found damaged.
    found: Mutex<BTreeMap<GroupNames, Arc<Found>>>,
    /// What readers of a group met, and its thread has not heard yet.
    met: Mutex<BTreeMap<GroupNames, SpoiledParts>>,
    /// Who writes it down, one at a time, failed last.
    is_failing: Mutex<bool>,
}

#[derive(Clone, Debug)]
struct Fault {
    reason: Reason,
    point: Slot,
    /// What the ledger said before of verifications.
    read: Option<PointProof>,
}

impl Schedule {
    /// What a person should know about a group.
    pub(crate) fn reason(&self, names: &GroupNames) -> Option<Reason> {
        self.found(names).reason().or_else(|| self.lock().get(names).map(|fault| fault.reason.clone()))
    }

    /// What readings found in a group.
    pub(crate) fn found(&self, names: &GroupNames) -> Arc<Found> {
        self.all_found().get(names).cloned().unwrap_or_default()
    }

    /// Takes up what an earlier process found.
    pub(crate) fn load(&self, state_dir: &StateDir, names: &GroupNames) {
        let told = state_dir.found(&names.source, &names.group);
        let found = told.map(|told| told.unwrap_or_else(Found::untold)).unwrap_or_else(|error| {
            tracing::error!(group = %names, %error, "what readings found before cannot be read");
            Found::forgotten(error.to_string())
        });
        self.all_found().insert(names.clone(), Arc::new(found));
    }

    /// Where readers of a group tell what they meet. The same for all its lives: a reader may outlive its group's thread.
    pub(crate) fn met_in(&self, names: &GroupNames) -> SpoiledParts {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).entry(names.clone()).or_default().clone()
    }

    /// Hears what readers met since the threads of their groups have ended, as nobody else will.
    pub(crate) fn hear_last(&self) {
        let met = std::mem::take(&mut *self.met.lock().unwrap_or_else(PoisonError::into_inner));
        for (names, met) in met {
            let spoiled = met.take();
            if !spoiled.is_empty() {
                self.change_found(&names, |found| found.spoiled.extend(spoiled));
            }
        }
    }

    /// Changes it, as it is known here; the state directory follows, see [`Schedule::keep`]. As it is then.
    pub(crate) fn change_found(&self, names: &GroupNames, change: impl FnOnce(&mut Found)) -> Arc<Found> {
        let mut all = self.all_found();
        let known = all.entry(names.clone()).or_default();
        let mut found = Found::clone(known);
        change(&mut found);
        // A file that cannot be read is not replaced before something took its place.
        let is_new = !found.is_kept_as(known)
            || (known.forgotten.is_some() && found.forgotten.is_none())
            || known.is_untold && !found.is_untold;
        found.is_unsaved = !found.is_unreadable && (is_new || known.is_unsaved);
        *known = Arc::new(found);
        Arc::clone(known)
    }

    /// Has the state directory know what is known here. Not for a group's thread: whoever publishes does not wait for that disk.
    pub(crate) fn keep(&self, state_dir: &StateDir) {
        let mut is_failing = self.is_failing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaved = |(names, found): (&GroupNames, &Arc<Found>)| found.is_unsaved.then(|| (names.clone(), Arc::clone(found)));
        let unsaved: Vec<(GroupNames, Arc<Found>)> = self.all_found().iter().filter_map(unsaved).collect();
        for (names, found) in unsaved {
            match state_dir.remember_found(&names.source, &names.group, &found) {
                Ok(()) => {
                    *is_failing = false;
                    if let Some(known) = self.all_found().get_mut(&names).filter(|known| known.is_kept_as(&found)) {
                        Arc::make_mut(known).is_unsaved = false;
                    }
                }
                Err(error) if !*is_failing => {
                    tracing::warn!(group = %names, %error, "what readings found could not be remembered yet");
                    *is_failing = true;
                }
                Err(_) => {}
            }
        }
    }

    /// A point was read and is damaged; `is_whole`: all of its volumes were.
    pub(crate) fn damaged(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        point: PointId,
        volumes: &[VerifiedVolume],
        since: Option<Slot>,
        is_whole: bool,
    ) {
        let Some((volume, first)) = volumes.iter().find_map(|volume| Some((volume, volume.damage.first()?))) else { return };
        let regions = volumes.iter().map(|volume| volume.damaged_regions).sum();
        let message = damage_in_words(group.names(), point, volume, first, regions);
        tracing::error!(group = %group.names(), %point, words = %message, "a point was read in full and is damaged");
        let what_to_do = format!(
            "see all of it: farside point verify {point}; restore another point, put the named files back from a copy of the \
             store, or have the newest content sent again: `farside volume resync NAME` on the host"
        );
        let finding = finding(receiver, group, point, since, (message, what_to_do));
        let members: Vec<String> = volumes.iter().map(|volume| volume.volume.clone()).collect();
        let volumes = volumes.iter().filter(|volume| volume.damaged_regions > 0).map(|volume| volume.volume.clone()).collect();
        self.change_found(group.names(), |found| {
            found.damaged(Finding { volumes, ..finding });
            if is_whole {
                found.was_read(Slot(point.slot), &members);
            }
        });
        self.keep(&receiver.state_dir);
    }

    /// A point that is being read is damaged from an earlier slot on than was `said`, if it is kept still: what is missing of one that was given up is not
    /// damage. Its end may never say it: the reading may be cut short.
    pub(crate) fn meet(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        (point, looked): (PointId, Looked),
        said: &Mutex<Option<Slot>>,
        is_kept: impl FnOnce() -> bool,
    ) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.damaged_since.is_some_and(|since| said.is_none_or(|said| since < said)) && is_kept() {
            *said = looked.damaged_since;
            self.met(receiver, group, point, looked);
        }
    }

    fn met(&self, receiver: &Receiver, group: &GroupHandle, point: PointId, looked: Looked) {
        let names = group.names();
        let message = format!(
            "point {point} of {names} was being read and is damaged: {} regions so far cannot be restored; which, is said when all is read",
            looked.damaged_regions
        );
        tracing::error!(group = %names, %point, words = %message, "damage was met");
        let what_to_do = format!("see all of it: farside point verify {point}; restore another point if one is needed now");
        let finding = finding(receiver, group, point, looked.damaged_since, (message, what_to_do));
        self.change_found(names, |found| found.met(finding));
        self.keep(&receiver.state_dir);
    }

    /// Parts that merges wrote were met damaged: what they replaced is to be kept.
    pub(crate) fn spoiled(&self, receiver: &Receiver, group: &GroupHandle, parts: BTreeSet<PartName>) {
        // † Also where the group is not there to hear it: it goes by this when its store is opened.
        self.change_found(group.names(), |found| found.spoiled.extend(parts.iter().copied()));
        self.keep(&receiver.state_dir);
        let _ = receiver.runtime.block_on(group.tell(Mail::Spoiled { parts }));
    }

    /// A point of these volumes was read in full and is sound.
    pub(crate) fn sound<S: AsRef<str>>(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        (point, members): (Slot, &[S]),
        change: impl FnOnce(&mut Found),
    ) {
        // All that was said up to now.
        receiver.runtime.block_on(group.clone().refresh());
        let head = group.view().head().map(Slot);
        self.change_found(group.names(), |found| {
            change(found);
            found.sound(point, members, head);
        });
        self.keep(&receiver.state_dir);
    }

    fn all_found(&self) -> MutexGuard<'_, BTreeMap<GroupNames, Arc<Found>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupNames, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a group that might be due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The newest that is on record of a point that was read in full.
    pub(crate) read: Option<PointProof>,
}

impl Standing {
    /// Whether its newest point should be read now. A time that has not come yet is not believed. `unrecorded_ms`: when one was read
    /// that could not be put on record.
    fn is_due(self, every: Duration, now_ms: i64, unrecorded_ms: Option<i64>) -> bool {
        let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
        let recorded_ms = self.read.map(|read| read.proof.wall_ms);
        let newest = [recorded_ms, unrecorded_ms].into_iter().flatten().filter(|then| *then <= now_ms).max();
        newest.is_none_or(|then| now_ms.saturating_sub(then) >= every_ms)
    }

    /// Whether the point, or a newer one, was found sound since.
    fn is_over(self, fault: &Fault) -> bool {
        let before = fault.read.map(|read| read.proof.slot);
        self.read.is_some_and(|read| Some(read.proof.slot) > before && read.point >= fault.point)
    }
}

/// Verifies until the receiver stops.
pub(crate) fn start(receiver: Arc<Receiver>) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("schedule".to_owned()).spawn(move || {
        let _ = Priority::Idle.set(); // where it is refused, all threads are equal
        let mut runner = Runner { receiver, retry_at: BTreeMap::new(), failures: BTreeMap::new(), tidied: BTreeSet::new() };
        while !runner.receiver.is_stopping() {
            runner.look();
            thread::sleep(LOOK);
        }
    })
}

struct Runner {
    receiver: Arc<Receiver>,
    retry_at: BTreeMap<GroupNames, Instant>,
    /// How often it could not be done, one after the other.
    failures: BTreeMap<GroupNames, u32>,
    /// Groups in which no pin of another life is left.
    tidied: BTreeSet<GroupNames>,
}

/// How a look at a point ended.
#[derive(Debug)]
enum Ended {
    Sound,
    /// Nothing is wrong with what its source could read.
    Degraded,
    /// As is said by now.
    Damaged,
    /// Somebody gave the point up, or the process stops.
    Abandoned,
}

impl Runner {
    fn look(&mut self) {
        self.receiver.schedule.keep(&self.receiver.state_dir);
        let groups = self.receiver.roster.all();
        for group in groups.iter().filter(|group| group.view().standing.is_some()) {
            let names = group.names();
            if !self.tidied.contains(names) && self.tidy(group).is_ok() {
                self.tidied.insert(names.clone());
            }
            // Somebody asked for it.
            let mut faults = self.receiver.schedule.lock();
            if faults.get(names).is_some_and(|fault| group.view().standing.is_some_and(|standing| standing.is_over(fault))) {
                faults.remove(names);
            }
        }
        let Some(every) = self.every() else {
            // What is known to be damaged is so also where nothing is looked at any more.
            return self.receiver.schedule.lock().retain(|_, fault| fault.reason.severity == Severity::Error);
        };
        let is_early = self.receiver.started.elapsed() < self.receiver.config().verify.after_start;
        if is_early || self.receiver.verifications.is_running() {
            return;
        }
        let is_full = self.receiver.is_full();
        let now_ms = Timestamp::now().as_millisecond();
        let due = groups.into_iter().filter_map(|group| {
            let standing = group.view().standing?;
            let waits = self.retry_at.get(group.names()).is_some_and(|at| *at > Instant::now());
            let found = self.receiver.schedule.found(group.names());
            // † On a full disk as well where that alone has anything given up.
            let is_due = found.forgotten.is_some() || !is_full && standing.is_due(every, now_ms, found.unrecorded_wall_ms);
            (!waits && self.tidied.contains(group.names()) && is_due).then_some((standing, group))
        });
        if let Some((_, group)) = due.min_by_key(|(standing, _)| standing.read.map(|read| read.proof.wall_ms)) {
            self.verify(&group, every);
        }
    }

    fn every(&self) -> Option<Duration> {
        let config = self.receiver.config();
        config.verify.every_for(&config.store)
    }

    /// Takes away the pins that a process left that ended while it verified.
    fn tidy(&self, group: &GroupHandle) -> Result<(), String> {
        let filter = PointFilter { pinned: true, reason: Some(PIN_REASON.to_owned()), ..PointFilter::default() };
        let ask = PointsAsk { filter, limit: usize::MAX, ..PointsAsk::default() };
        let found = self.receiver.runtime.block_on(group.points(ask))?;
        for point in found.points.iter().filter(|point| our_pin(point).is_some()) {
            self.unpin(group, id_of(point))?;
        }
        Ok(())
    }

    fn unpin(&self, group: &GroupHandle, point: PointId) -> Result<(), String> {
        let change = PointChange::Unpin { only: PIN_REASON.to_owned() };
        self.receiver.runtime.block_on(group.change(point, change)).map(drop).map_err(|error| error.message)
    }

    fn verify(&mut self, group: &GroupHandle, every: Duration) {
        let names = group.names();
        let newest = PointsAsk { limit: 1, ..PointsAsk::default() };
        // If the store is away, that is said elsewhere.
        let first =
            |ask| self.receiver.runtime.block_on(group.points(ask)).ok().and_then(|found| found.points.into_iter().next());
        let mut point = first(newest);
        let found = self.receiver.schedule.found(names);
        let is_of_it = |point: &PointInfo| {
            let members: Vec<&str> = point.members.iter().map(|member| member.name.as_str()).collect();
            found.is_forgotten_of(&members)
        };
        // What is forgotten of a volume that is in no newer point only that one tells. On a full disk it is one that is kept anyway, whatever is pinned.
        // Where that fails, the newest is read between.
        let is_full = self.receiver.is_full();
        let wants_older = found.forgotten.is_some() && (is_full || !self.failures.contains_key(names));
        if let Some(of_then) =
            found.forgotten_in().filter(|_| wants_older && point.as_ref().is_some_and(|newest| is_full || !is_of_it(newest)))
        {
            point = first(PointsAsk { below: Some(of_then.next()), limit: 1, ..PointsAsk::default() });
        }
        let Some(point) = point else {
            self.retry_at.insert(names.clone(), Instant::now() + TRIED_AGAIN);
            return;
        };
        let (id, read) = (id_of(&point), group.view().standing.and_then(|standing| standing.read));
        let ended = self.pin_and_read(group, &point);
        if let Err(error) = self.unpin(group, id) {
            tracing::warn!(group = %names, point = %id, %error, "the pin of a point that was verified could not be withdrawn yet");
            self.tidied.remove(names);
        }
        if ended.is_ok() {
            self.failures.remove(names);
        }
        // What it could not end, as of a ledger that is torn, is not read for without a pause.
        let is_forgotten = || self.receiver.schedule.found(names).forgotten.is_some();
        let again = |every: Duration| if is_forgotten() { every.max(TRIED_AGAIN) } else { every.min(TRIED_AGAIN) };
        let (reason, again) = match ended {
            Ok(Ended::Sound) => {
                tracing::info!(group = %names, point = %id, "the point was read in full and is sound");
                self.read_through(group, Some(&point), false);
                (None, again(every))
            }
            Ok(Ended::Degraded) => {
                tracing::info!(group = %names, point = %id, "the point was read in full and is as its source could read it: it is degraded");
                self.read_through(group, Some(&point), true);
                (None, again(every))
            }
            Ok(Ended::Abandoned) => (None, TRIED_AGAIN),
            Ok(Ended::Damaged) => {
                self.read_through(group, None, true);
                (None, every.max(TRIED_AGAIN))
            }
            Err(error) => {
                tracing::warn!(group = %names, point = %id, %error, "a point could not be verified");
                let words = format!("point {id} of {names} could not be verified: {error}");
                let what = "it is tried again; if it stays so, see the receiver's log";
                let failures = self.failures.entry(names.clone()).or_default();
                *failures += 1;
                let again = TRIED_AGAIN.saturating_mul(1 << (*failures - 1).min(16)).min(TRIED_AGAIN_MAX);
                (Some(Reason::new(Severity::Warning, Code::VerificationFailed, words, what)), again)
            }
        };
        self.retry_at.insert(names.clone(), Instant::now() + again);
        if let Some(reason) = reason {
            let fault = Fault { reason, point: point.slot, read };
            self.receiver.schedule.lock().insert(names.clone(), fault);
        }
    }

    /// A point was read to its end; the one that is `sound`, if it is.
    fn read_through(&self, group: &GroupHandle, sound: Option<&PointInfo>, is_unrecorded: bool) {
        let (schedule, names) = (&self.receiver.schedule, group.names());
        schedule.lock().remove(names);
        let note = |found: &mut Found| found.unrecorded_wall_ms = is_unrecorded.then(|| Timestamp::now().as_millisecond());
        match sound {
            Some(point) => {
                let members: Vec<&str> = point.members.iter().map(|member| member.name.as_str()).collect();
                schedule.sound(&self.receiver, group, (point.slot, &members), note);
            }
            None => {
                schedule.change_found(names, note);
                schedule.keep(&self.receiver.state_dir);
            }
        }
    }

    fn pin_and_read(&self, group: &GroupHandle, point: &PointInfo) -> Result<Ended, String> {
        let id = id_of(point);
        let change = |change| self.receiver.runtime.block_on(group.change(id, change)).map_err(|error| error.message);
        let pin = || PointChange::OwnPin { reason: PIN_REASON.to_owned() };
        let pinned = our_pin(&change(pin())?);
        let is_ours = || matches!(change(pin()), Ok(info) if our_pin(&info) == pinned);
        let (volumes, since) = match self.read(group, point, &is_ours) {
            Ok(read) => read,
            Err(StoreError::Stopped) => return Ok(Ended::Abandoned),
            Err(error) => return Err(error.to_string()),
        };
        if volumes.iter().all(|volume| volume.damaged_regions == 0) {
            if point.degraded {
                return Ok(Ended::Degraded);
            }
            change(PointChange::Verified { how: VerifiedHow::ReadBack })?;
            return Ok(Ended::Sound);
        }
        // A person may have withdrawn all pins meanwhile: then what is missing was given up.
        if !is_ours() {
            return Ok(Ended::Abandoned);
        }
        self.receiver.schedule.damaged(&self.receiver, group, id, &volumes, since, true);
        Ok(Ended::Damaged)
    }

    /// `is_kept`: whether the pin is there still, so that what is missing was not given up.
    fn read(
        &self,
        group: &GroupHandle,
        point: &PointInfo,
        is_kept: &(dyn Fn() -> bool + Sync),
    ) -> Result<(Vec<VerifiedVolume>, Option<Slot>), StoreError> {
        let readers = self.open(group, point)?;
        let paced = Mutex::new((Instant::now(), 0));
        let is_forgotten = self.receiver.schedule.found(group.names()).forgotten.is_some();
        let goes_on = || !self.receiver.is_stopping() && self.every().is_some() && (is_forgotten || !self.receiver.is_full());
        // From which slot on it is said to be damaged.
        let said_since = Mutex::new(None);
        let progress = |looked: Looked| {
            self.receiver.schedule.meet(&self.receiver, group, (id_of(point), looked), &said_since, is_kept);
            // This may take days, and what others met meanwhile, in any group, is to outlive a power cut.
            self.receiver.schedule.keep(&self.receiver.state_dir);
            // Of what came since: the rate may have been another one before.
            let rate = self.receiver.config().verify.rate.bytes_per_s();
            let (since, so_far) = *paced.lock().unwrap_or_else(PoisonError::into_inner);
            let until = since + Duration::from_secs_f64(looked.read_bytes.saturating_sub(so_far) as f64 / rate as f64);
            *paced.lock().unwrap_or_else(PoisonError::into_inner) = (until.max(Instant::now()), looked.read_bytes);
            wait_until(until, &goes_on)
        };
        let (mut volumes, mut damaged_since) = (Vec::new(), None);
        let spoiled = |parts| self.receiver.schedule.spoiled(&self.receiver, group, parts);
        verify_opened(readers.into_iter().map(Ok), 1, &progress, spoiled, |volume, since| {
            volumes.push(volume);
            damaged_since = damaged_since.into_iter().chain(since).min();
        })?;
        Ok((volumes, damaged_since))
    }

    /// † All volumes are opened while deletions are held off: the images are made from footers that the pin does not keep, and one that is
    /// deleted meanwhile would look like damage. Then the pin is enough.
    fn open(&self, group: &GroupHandle, point: &PointInfo) -> Result<Vec<PointReader>, StoreError> {
        // After the pin is in the ledger, which is replayed here.
        let reader = self.receiver.vault.reader()?.group(group.names())?;
        let members = point.members.iter().map(|member| open_member(&reader, point.slot, member.name.as_str()));
        let opened: Vec<PointReader> = members.collect::<Result<_, _>>()?;
        Ok(opened.into_iter().map(PointReader::kept_by_a_pin).collect())
    }
}

/// What is damaged of a point, as far as is known of the ledger.
fn finding(
    receiver: &Receiver,
    group: &GroupHandle,
    point: PointId,
    since: Option<Slot>,
    (message, what_to_do): (String, String),
) -> Finding {
    // All that was said up to now.
    receiver.runtime.block_on(group.clone().refresh());
    // Of a group whose store is away it is not known; who knows the ledger puts it right (`Found::settle`).
    let head = group.view().head().map_or(Slot(u64::MAX), |head| Slot(head.max(point.slot)));
    let (point, since) = (Slot(point.slot), since.unwrap_or(Slot(0)));
    let any = Finding::of_any(since, message, what_to_do);
    Finding { point: Some(point), head, is_said: true, ..any }
}

fn id_of(point: &PointInfo) -> PointId {
    PointId::new(point.slot.0, &point.digest.0)
}

/// The slot of the pin that is there for the time of a verification.
fn our_pin(point: &PointInfo) -> Option<Slot> {
    point.pins.iter().find(|(_, reason)| reason == PIN_REASON).map(|(slot, _)| *slot)
}

fn damage_in_words(names: &GroupNames, id: PointId, volume: &VerifiedVolume, first: &Damage, regions: u64) -> String {
    let place = if first.segment.is_empty() { String::new() } else { format!("segment {}: ", first.segment) };
    format!(
        "point {id} of {names} was read in full and is damaged: {regions} regions cannot be restored, the first of them region {} of \
         volume {}: {place}{}",
        first.region, volume.volume, first.message
    )
}

#[cfg(test)]
mod tests {
    use farside_ledger::Proof;
    use farside_region::{LayerKey, MergeId, VolumeId};

    use super::*;

    /// It would go with the process, and the next one delete what that part replaced.
    #[test]
    fn what_a_reader_meets_when_its_group_has_ended_is_heard_all_the_same() {
        let names = GroupNames::new("host1".parse().expect("a name"), "db".parse().expect("a name"));
        let schedule = Schedule::default();
        let reader = schedule.met_in(&names);
        let part = PartName { layer: LayerKey::of_merge(VolumeId([1; 16]), MergeId::new(Slot(9), 5)), number: 0 };
        drop(schedule.met_in(&names));
        reader.add([part]);
        assert!(schedule.found(&names).spoiled.is_empty());
        schedule.hear_last();
        let found = schedule.found(&names);
        assert!(found.spoiled.contains(&part) && found.is_unsaved);
    }

    #[test]
    fn what_is_due_follows_from_the_newest_record_and_a_clock_that_jumps_costs_one_look() {
        const DAY: Duration = Duration::from_secs(86_400);
        let read = |slot, point, wall_ms| {
            Some(PointProof { point: Slot(point), cut_wall_ms: 0, proof: Proof { slot: Slot(slot), wall_ms } })
        };
        let due = |then: Option<i64>, now_ms| Standing { read: then.and_then(|then| read(9, 1, then)) }.is_due(DAY, now_ms, None);
        assert!(due(None, 0), "never yet");
        assert!(!due(Some(1000), 1000) && !due(Some(1000), 86_400_999));
        assert!(due(Some(1000), 86_401_000));
        assert!(due(Some(1000), 999), "of the future: once, then its record is of now");
        assert!(!due(Some(999), 999));
        assert!(!Standing { read: read(9, 1, 1) }.is_due(Duration::MAX, i64::MAX, None));
        // One that was read and not put on record was read.
        let unrecorded = |then| Standing { read: read(9, 1, 1000) }.is_due(DAY, 90_000_000, then);
        assert!(unrecorded(None) && !unrecorded(Some(80_000_000)) && unrecorded(Some(99_000_000)), "of the future");

        let reason = Reason::new(Severity::Error, Code::VerificationFailed, "damaged", "");
        let fault = |read| Fault { reason: reason.clone(), point: Slot(5), read };
        assert!(!Standing { read: None }.is_over(&fault(None)) && Standing { read: read(9, 5, 0) }.is_over(&fault(None)));
        let fault = fault(read(9, 5, 0));
        assert!(!Standing { read: read(9, 5, 0) }.is_over(&fault), "from before");
        assert!(!Standing { read: read(12, 4, 0) }.is_over(&fault), "an older point says nothing of this one");
        assert!(Standing { read: read(12, 7, 0) }.is_over(&fault));
    }
}
