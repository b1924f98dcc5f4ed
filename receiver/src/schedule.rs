//! Verifying points unasked: of every group the newest, every so often, one after the other.
//!
//! ```text
//! due, by the ledger ──► pin the newest point ──► read all of it ──► sound: put on record ──────┬──► unpin
//!                                                     └──► damaged: said until one is sound ────┘
//! ```
//!
//! Damage is said as soon as it is met, and with its place once all was read. A store that runs full needs what the pin keeps: the pin
//! goes, and the point is read when there is room again.
//!
//! Invariant: what is due follows from what the ledger says, so that a restart neither forgets nor begins what is done; and what is
//! read is kept by the pin alone, so that nothing else waits for this to end, but for merges of the group: they replace what a pin keeps. A verification that a restart cut short begins
//! anew, with the newest point of then; the pin that it left is taken away first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use farside_blockio::process::Priority;
use farside_control::{Code, Damage, PointId, Reason, Severity, VerifiedVolume};
use farside_ledger::{PointFilter, PointProof, VerifiedHow};
use farside_region::Slot;
use farside_store::{GroupNames, Looked, PointInfo, PointReader, StoreError};
use jiff::Timestamp;

use crate::group::{GroupHandle, PointChange};
use crate::pace::wait_until;
use crate::points::PointsAsk;
use crate::process::Receiver;
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
}

#[derive(Clone, Debug)]
struct Fault {
    reason: Reason,
    point: Slot,
    /// What the ledger said before of verifications.
    read: Option<PointProof>,
    /// The reading that met it goes on.
    is_under_way: bool,
}

impl Schedule {
    /// What a person should know about a group.
    pub(crate) fn reason(&self, names: &GroupNames) -> Option<Reason> {
        self.lock().get(names).map(|fault| fault.reason.clone())
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
    /// Whether its newest point should be read now. A time that has not come yet is not believed.
    fn is_due(self, every: Duration, now_ms: i64) -> bool {
        let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
        let then = |read: PointProof| read.proof.wall_ms;
        self.read.map(then).is_none_or(|then| then > now_ms || now_ms.saturating_sub(then) >= every_ms)
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
    /// What is wrong, in words.
    Damaged(String),
    /// Somebody gave the point up, or the process stops.
    Abandoned,
}

impl Runner {
    fn look(&mut self) {
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
        if is_early || self.receiver.verifications.is_running() || self.receiver.is_full() {
            return;
        }
        let now_ms = Timestamp::now().as_millisecond();
        let due = groups.into_iter().filter_map(|group| {
            let standing = group.view().standing?;
            let waits = self.retry_at.get(group.names()).is_some_and(|at| *at > Instant::now());
            (!waits && self.tidied.contains(group.names()) && standing.is_due(every, now_ms)).then_some((standing, group))
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
        let change = PointChange::Unpin { only: Some(PIN_REASON.to_owned()) };
        self.receiver.runtime.block_on(group.change(point, change)).map(drop).map_err(|error| error.message)
    }

    fn verify(&mut self, group: &GroupHandle, every: Duration) {
        let names = group.names();
        let newest = PointsAsk { limit: 1, ..PointsAsk::default() };
        let point = match self.receiver.runtime.block_on(group.points(newest)) {
            Ok(found) => found.points.into_iter().next(),
            Err(_) => None, // the store is away, which is said elsewhere
        };
        let Some(point) = point else {
            self.retry_at.insert(names.clone(), Instant::now() + TRIED_AGAIN);
            return;
        };
        let (id, read) = (id_of(&point), group.view().standing.and_then(|standing| standing.read));
        let ended = self.pin_and_read(group, &point);
        // What was said meanwhile is said anew, in full, if it was so.
        {
            let mut faults = self.receiver.schedule.lock();
            if faults.get(names).is_some_and(|fault| fault.is_under_way) {
                faults.remove(names);
            }
        }
        if let Err(error) = self.unpin(group, id) {
            tracing::warn!(group = %names, point = %id, %error, "the pin of a point that was verified could not be withdrawn yet");
            self.tidied.remove(names);
        }
        if ended.is_ok() {
            self.failures.remove(names);
        }
        let (reason, again) = match ended {
            Ok(Ended::Sound) => {
                tracing::info!(group = %names, point = %id, "the point was read in full and is sound");
                self.receiver.schedule.lock().remove(names);
                (None, every.min(TRIED_AGAIN))
            }
            Ok(Ended::Abandoned) => (None, TRIED_AGAIN),
            Ok(Ended::Damaged(words)) => {
                tracing::error!(group = %names, point = %id, %words, "a point was read in full and is damaged");
                let what = format!(
                    "see all of it: farside point verify {id}; restore another point, put the named files back from a copy of the \
                     store, or have the newest content sent again: `farside volume resync NAME` on the host"
                );
                let reason = Reason::new(Severity::Error, Code::VerificationFailed, words, what);
                (Some(reason), every.max(TRIED_AGAIN))
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
            let mut faults = self.receiver.schedule.lock();
            // That it could not be read this time does not mend what was damaged.
            let is_worse = faults.get(names).is_some_and(|known| known.reason.severity > reason.severity);
            if !is_worse {
                faults.insert(names.clone(), Fault { reason, point: point.slot, read, is_under_way: false });
            }
        }
    }

    /// Says that a point is damaged which is being read. `read`: what the ledger says of those before.
    fn say_early(&self, group: &GroupHandle, point: &PointInfo, regions: u64) {
        let (names, id) = (group.names(), id_of(point));
        let mut faults = self.receiver.schedule.lock();
        if faults.get(names).is_some_and(|known| known.reason.severity == Severity::Error) {
            return; // said, with its place
        }
        let words = format!(
            "point {id} of {names} is being read and is damaged: {regions} regions so far cannot be restored; which, is said when all was read"
        );
        tracing::error!(group = %names, point = %id, %words, "damage was met");
        let what = format!("see all of it: farside point verify {id}; restore another point if one is needed now");
        let reason = Reason::new(Severity::Error, Code::VerificationFailed, words, what);
        let read = group.view().standing.and_then(|standing| standing.read);
        faults.insert(names.clone(), Fault { reason, point: point.slot, read, is_under_way: true });
    }

    fn pin_and_read(&self, group: &GroupHandle, point: &PointInfo) -> Result<Ended, String> {
        let id = id_of(point);
        let change = |change| self.receiver.runtime.block_on(group.change(id, change)).map_err(|error| error.message);
        let pin = || PointChange::Pin { reason: PIN_REASON.to_owned() };
        let pinned = our_pin(&change(pin())?);
        let is_ours = || matches!(change(pin()), Ok(info) if our_pin(&info) == pinned);
        let volumes = match self.read(group, point, &is_ours) {
            Ok(volumes) => volumes,
            Err(StoreError::Stopped) => return Ok(Ended::Abandoned),
            Err(error) => return Err(error.to_string()),
        };
        let Some((volume, damage)) = volumes.iter().find_map(|volume| Some((volume, volume.damage.first()?))) else {
            change(PointChange::Verified { how: VerifiedHow::ReadBack })?;
            return Ok(Ended::Sound);
        };
        // A person may have withdrawn all pins meanwhile: then what is missing was given up.
        if !is_ours() {
            return Ok(Ended::Abandoned);
        }
        let regions: u64 = volumes.iter().map(|volume| volume.damaged_regions).sum();
        Ok(Ended::Damaged(damage_in_words(group.names(), id, volume, damage, regions)))
    }

    /// `is_kept`: whether the pin is there still, so that what is missing was not given up.
    fn read(
        &self,
        group: &GroupHandle,
        point: &PointInfo,
        is_kept: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<VerifiedVolume>, StoreError> {
        let readers = self.open(group, point)?;
        let paced = Mutex::new((Instant::now(), 0));
        let goes_on = || !self.receiver.is_stopping() && self.every().is_some() && !self.receiver.is_full();
        let is_said = AtomicBool::new(false);
        let progress = |looked: Looked| {
            if looked.damaged_regions > 0 && !is_said.swap(true, Ordering::Relaxed) && is_kept() {
                self.say_early(group, point, looked.damaged_regions);
            }
            // Of what came since: the rate may have been another one before.
            let rate = self.receiver.config().verify.rate.bytes_per_s();
            let (since, so_far) = *paced.lock().unwrap_or_else(PoisonError::into_inner);
            let until = since + Duration::from_secs_f64(looked.read_bytes.saturating_sub(so_far) as f64 / rate as f64);
            *paced.lock().unwrap_or_else(PoisonError::into_inner) = (until.max(Instant::now()), looked.read_bytes);
            wait_until(until, &goes_on)
        };
        let mut volumes = Vec::new();
        verify_opened(readers.into_iter().map(Ok), 1, &progress, |volume| volumes.push(volume))?;
        Ok(volumes)
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

    use super::*;

    #[test]
    fn what_is_due_follows_from_the_newest_record_and_a_clock_that_jumps_costs_one_look() {
        const DAY: Duration = Duration::from_secs(86_400);
        let read = |slot, point, wall_ms| {
            Some(PointProof { point: Slot(point), cut_wall_ms: 0, proof: Proof { slot: Slot(slot), wall_ms } })
        };
        let due = |then: Option<i64>, now_ms| Standing { read: then.and_then(|then| read(9, 1, then)) }.is_due(DAY, now_ms);
        assert!(due(None, 0), "never yet");
        assert!(!due(Some(1000), 1000) && !due(Some(1000), 86_400_999));
        assert!(due(Some(1000), 86_401_000));
        assert!(due(Some(1000), 999), "of the future: once, then its record is of now");
        assert!(!due(Some(999), 999));
        assert!(!Standing { read: read(9, 1, 1) }.is_due(Duration::MAX, i64::MAX));

        let reason = Reason::new(Severity::Error, Code::VerificationFailed, "damaged", "");
        let fault = |read| Fault { reason: reason.clone(), point: Slot(5), read, is_under_way: false };
        assert!(!Standing { read: None }.is_over(&fault(None)) && Standing { read: read(9, 5, 0) }.is_over(&fault(None)));
        let fault = fault(read(9, 5, 0));
        assert!(!Standing { read: read(9, 5, 0) }.is_over(&fault), "from before");
        assert!(!Standing { read: read(12, 4, 0) }.is_over(&fault), "an older point says nothing of this one");
        assert!(Standing { read: read(12, 7, 0) }.is_over(&fault));
    }
}
