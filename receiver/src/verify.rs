//! Verifying points on request: one at a time, beside everything else, for as long as somebody wants to know.
//!
//! Invariant: it only reads, through a reader's lock of its own, and never through a group's thread: a look at terabytes
//! holds up neither landing nor publication. A point is put on record as verified only if all of its members were read and nothing was
//! wrong with them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use farside_control::{
    ApiError, DAMAGE_LISTED_MAX, Damage, ErrorCode, Point, PointVerified, Run, Verification, VerificationState, VerifiedVolume,
};
use farside_ledger::{PointFilter, VerifiedHow};
use farside_region::{Name, Slot};
use farside_store::{GroupReader, Looked, PartName, PointReader, StoreError, unreadable_runs, verify_point};

use crate::group::{GroupHandle, PointChange};
use crate::points::PointsAsk;
use crate::process::Receiver;
use crate::status;

/// Nobody waits for a verification that nobody asks about.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The verifications of a receiver; the newest is kept until the next begins.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    newest: Mutex<Option<Arc<Job>>>,
}

#[derive(Debug)]
struct Job {
    id: u64,
    point: Point,
    total_bytes: u64,
    done_bytes: AtomicU64,
    stop: AtomicBool,
    asked: Mutex<Instant>,
    found: Mutex<Found>,
}

#[derive(Clone, Debug)]
struct Found {
    state: VerificationState,
    volumes: Vec<VerifiedVolume>,
    /// Points before have nothing of what is damaged.
    damaged_since: Option<Slot>,
    recorded: Option<PointVerified>,
    not_recorded: Option<String>,
}

impl Verifications {
    /// Begins to verify members of a point: all, or the one of that name.
    pub(crate) fn start(
        &self,
        receiver: &Arc<Receiver>,
        group: GroupHandle,
        point: Point,
        only: Option<&str>,
    ) -> Result<Verification, ApiError> {
        let mut newest = self.lock();
        if let Some(job) = newest.as_ref().filter(|job| job.is_running()) {
            let message = format!("point {} of {}/{} is being verified", job.point.id, job.point.source, job.point.group);
            return Err(ApiError::new(ErrorCode::Busy, message, "one at a time: try again when that is done"));
        }
        let members = point.members.iter().filter(|m| only.is_none_or(|only| m.volume == only));
        let job = Arc::new(Job {
            id: newest.as_ref().map_or(0, |job| job.id) + 1,
            total_bytes: members.map(|m| m.bytes).sum(),
            point,
            done_bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            asked: Mutex::new(Instant::now()),
            found: Mutex::new(Found {
                state: VerificationState::Running,
                volumes: Vec::new(),
                damaged_since: None,
                recorded: None,
                not_recorded: None,
            }),
        });
        let (thread_job, receiver, only) = (Arc::clone(&job), Arc::clone(receiver), only.map(str::to_owned));
        let started = std::thread::Builder::new().name("verify".to_owned()).spawn(move || {
            let ended = thread_job.run(&receiver, &group, only.as_deref());
            // What was found damaged is so, however it ended.
            if ended.is_ok() || thread_job.found().volumes.iter().any(|volume| volume.damaged_regions > 0) {
                thread_job.record(&receiver, &group);
            }
            thread_job.found().state = match ended {
                Ok(()) => VerificationState::Done,
                Err(StoreError::Stopped) => VerificationState::Stopped,
                Err(error) => VerificationState::Failed { message: error.to_string() },
            };
        });
        started.map_err(ApiError::internal)?;
        let shown = job.show();
        *newest = Some(job);
        Ok(shown)
    }

    /// How far the newest is; it goes on for a while now.
    pub(crate) fn show(&self) -> Result<Verification, ApiError> {
        let job = self.lock().clone().ok_or_else(none)?;
        *job.asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(job.show())
    }

    /// Stops the newest, if it runs.
    pub(crate) fn stop(&self) -> Result<Verification, ApiError> {
        let job = self.lock().clone().ok_or_else(none)?;
        job.stop.store(true, Ordering::Relaxed);
        Ok(job.show())
    }

    /// Whether somebody has one under way.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().as_ref().is_some_and(|job| job.is_running())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Job>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn none() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no point was verified since the receiver started", "begin with farside point verify")
}

impl Job {
    fn is_running(&self) -> bool {
        self.found().state == VerificationState::Running
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) -> Verification {
        let Found { state, volumes, recorded, not_recorded, .. } = self.found().clone();
        Verification {
            id: self.id,
            point: self.point.clone(),
            state,
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            volumes,
            recorded,
            not_recorded,
        }
    }

    /// Puts it on record that all of the point is sound, if that was seen. Damage is kept and said.
    fn record(&self, receiver: &Receiver, group: &GroupHandle) {
        let Found { volumes, damaged_since, .. } = self.found().clone();
        let (looked_at, members) = (volumes.len(), self.point.members.len());
        if volumes.iter().any(|volume| volume.damaged_regions > 0) {
            receiver.schedule.damaged(receiver, group, self.point.id, &volumes, damaged_since, looked_at == members);
            return;
        }
        if looked_at < members {
            let words =
                format!("{looked_at} of {members} volumes were looked at: only a whole point is put on record as verified");
            self.found().not_recorded = Some(words);
            return;
        }
        let members: Vec<&str> = self.point.members.iter().map(|member| member.volume.as_str()).collect();
        receiver.schedule.sound(receiver, group, (Slot(self.point.id.slot), &members), |_| ());
        receiver.schedule.keep(&receiver.state_dir);
        let change = PointChange::Verified { how: VerifiedHow::ReadBack };
        let changed = receiver.runtime.block_on(group.change(self.point.id, change));
        let mut found = self.found();
        match changed {
            Ok(info) => found.recorded = info.proofs.read_back.map(|proof| status::verified(VerifiedHow::ReadBack, &proof)),
            Err(error) => found.not_recorded = Some(error.message),
        }
    }

    /// Whether the point is there still: what is missing of one that retention gave up is not damage.
    fn is_kept(&self, receiver: &Receiver, group: &GroupHandle) -> bool {
        let slot = Slot(self.point.id.slot);
        let ask = PointsAsk { volume: None, filter: PointFilter::default(), below: Some(Slot(slot.0 + 1)), limit: 1 };
        let found = receiver.runtime.block_on(group.points(ask));
        found.is_ok_and(|found| found.points.first().is_some_and(|point| point.slot == slot))
    }

    fn run(&self, receiver: &Receiver, handle: &GroupHandle, only: Option<&str>) -> Result<(), StoreError> {
        let group = receiver.vault.reader()?.group(handle.names())?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, 4);
        let wanted = || {
            let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            !self.stop.load(Ordering::Relaxed) && !receiver.is_stopping() && asked.elapsed() < FORGOTTEN_AFTER
        };
        // From which slot on it is said to be damaged. † At once: nobody may be there any more when all is read.
        let said_since = Mutex::new(None);
        let progress = |looked: Looked| {
            self.done_bytes.store(looked.done_bytes, Ordering::Relaxed);
            receiver.schedule.meet(receiver, handle, (self.point.id, looked), &said_since, || self.is_kept(receiver, handle));
            wanted()
        };
        let members: Vec<&str> = self.point.members.iter().map(|m| m.volume.as_str()).collect();
        let wanted = members.into_iter().filter(|member| only.is_none_or(|only| *member == only));
        let readers = wanted.map(|member| open_member(&group, Slot(self.point.id.slot), member));
        let spoiled = |parts| receiver.schedule.spoiled(receiver, handle, parts);
        verify_opened(readers, threads, &progress, spoiled, |volume, since| {
            let mut found = self.found();
            found.volumes.push(volume);
            found.damaged_since = found.damaged_since.into_iter().chain(since).min();
        })
    }
}

/// Verifies the members of a point, all or the one named, in turn. `progress` hears how far all of them are together; `found`
/// what came out, volume by volume.
///
/// # Errors
/// [`StoreError::NoSuchPoint`], [`StoreError::NoSuchVolume`], [`StoreError::Stopped`]; what the file system says.
pub fn verify_members(
    group: &GroupReader,
    point: Slot,
    members: &[&str],
    only: Option<&str>,
    threads: usize,
    progress: &(dyn Fn(Looked) -> bool + Sync),
    mut found: impl FnMut(VerifiedVolume),
) -> Result<(), StoreError> {
    let wanted = members.iter().filter(|m| only.is_none_or(|only| **m == only));
    verify_opened(wanted.map(|member| open_member(group, point, member)), threads, progress, |_| (), |volume, _| found(volume))
}

/// A volume of a point, with what is damaged of it.
pub(crate) fn open_member(group: &GroupReader, point: Slot, member: &str) -> Result<PointReader, StoreError> {
    let unknown = || StoreError::NoSuchVolume { volume: member.to_owned(), known: String::new() };
    let name: Name = member.parse().map_err(|_| unknown())?;
    group.point_reader_as_it_is(point, group.volume(&name)?)
}

/// As [`verify_members`], of volumes that are opened, or are when it is their turn. `found` hears, too, before which slot no point has
/// anything of what is damaged, if something is; `spoiled` hears which parts of merges are, also of a reading that is cut short.
pub(crate) fn verify_opened(
    readers: impl IntoIterator<Item = Result<PointReader, StoreError>>,
    threads: usize,
    progress: &(dyn Fn(Looked) -> bool + Sync),
    spoiled: impl Fn(BTreeSet<PartName>) + Sync,
    mut found: impl FnMut(VerifiedVolume, Option<Slot>),
) -> Result<(), StoreError> {
    let mut before = Looked::default();
    for reader in readers {
        let reader = reader?;
        let together = |looked: Looked| Looked {
            done_bytes: before.done_bytes + looked.done_bytes,
            read_bytes: before.read_bytes + looked.read_bytes,
            damaged_regions: before.damaged_regions + looked.damaged_regions,
            damaged_since: before.damaged_since.into_iter().chain(looked.damaged_since).min(),
        };
        // † At once: what is to be kept for them may be due to be deleted before all is read.
        let tell = || Some(reader.take_spoiled()).filter(|parts| !parts.is_empty()).into_iter().for_each(&spoiled);
        let verified = verify_point(&reader, threads, DAMAGE_LISTED_MAX, &|looked| {
            if looked.damaged_regions > 0 {
                tell();
            }
            progress(together(looked))
        });
        tell(); // however it ended
        let verified = verified?;
        before = together(Looked {
            done_bytes: reader.geometry().volume_bytes(),
            read_bytes: verified.data_bytes,
            damaged_regions: verified.damaged_regions,
            damaged_since: verified.damaged_since,
        });
        let since = verified.damaged_since;
        found(shown(&reader, verified), since);
    }
    Ok(())
}

/// What was found, as the API shows it.
fn shown(reader: &PointReader, verified: farside_store::Verified) -> VerifiedVolume {
    let geometry = reader.geometry();
    let unreadable = unreadable_runs(reader);
    VerifiedVolume {
        volume: reader.volume().name.to_string(),
        bytes: geometry.volume_bytes(),
        data_bytes: verified.data_bytes,
        damaged_regions: verified.damaged_regions,
        damage: verified
            .damage
            .into_iter()
            .map(|damage| Damage {
                region: damage.region.0,
                offset_bytes: geometry.bytes_of(geometry.region_run(damage.region)).offset.0,
                segment: damage.segment,
                message: damage.why,
            })
            .collect(),
        unreadable_bytes: unreadable.iter().map(|run| run.len).sum(),
        unreadable: unreadable.iter().take(DAMAGE_LISTED_MAX).map(|r| Run { offset_bytes: r.offset.0, bytes: r.len }).collect(),
    }
}
