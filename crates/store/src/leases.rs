//! Leases: how a reader of a store in a bucket keeps what its point needs from being deleted.
//!
//! A *reader* puts a lease that names volume and point, under a name that nobody else draws. Only when the service has acknowledged it he
//! looks at the ledger: the point must be retained, and he goes by nothing that was given up by then. He renews it by new ones, and
//! removes them when he closes, or when they have expired. A *collector* deletes a part only if a prune record that is in its slot gave it
//! up, and a listing of the leases that began after that shows none that holds it: of its volume, of a point at or above the slot
//! in which it was born, and not expired.
//!
//! Invariant: who reads with a lease that never expired finds all that his point needs. For let the listing come to a part that he
//! goes by. If his lease was acknowledged before the listing began, it is in there, and the part stays. Otherwise the prune record was in
//! its slot before he looked at the ledger, so he does not go by that part, or was refused. No time is in this argument:
//! - *A reader stalls* before he has a lease: nothing of his is held, and he has read nothing by it. Afterwards he holds until it
//!   expires. If it expired before he renewed it, he may lose his point; he gets no wrong byte, since all are held against
//!   their digests, and is told so ([`StoreError::PointDeleted`]).
//! - *A collector stalls*, or his deletions hang: what he found may go may go for ever. A lease that came later is of somebody who
//!   saw the prune record.
//! - *The PUT of a lease hangs and lands late*: it counts from its acknowledgement, and after that he looks at the ledger. Who gave it up
//!   goes by no lease, and says so; what lands is nobody's, and expires.
//! - *Two collectors*, by mistake: each keeps to this by himself, and names of deleted parts are never used again.
//! - *A listing has pages*: leases are removed only by who reads no more or has a newer one for as long as the old one held, so a listing
//!   that began while somebody was held shows at least one of his. When it is read it may be gone, if the collector stalled meanwhile: then
//!   nobody knows what he reads by now, and everything is held.
//!
//! Whether a lease has expired is told by the *service's* clock: the collector puts an object beside the leases, and a listing says how
//! much older than that each of them is. No clock of a reader or a gateway comes in, and a renewal is one PUT; by ledger time the
//! reader would have to replay the ledger to say how long he holds. A listing in which the collector's object is missing comes too late to
//! be believed. What the argument asks of a service, beyond create-only, is that an acknowledged object is in every listing that begins later.
//!
//! Who may not write there reads without a lease: [`GIVEN_UP_LATELY_MS`](farside_ledger::GIVEN_UP_LATELY_MS) is his time. Stores in directories
//! have locks instead.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use farside_ledger::{Body, RECORD_BYTES_MAX, State, decode_object, group_id, volume_id};
use farside_region::{Name, Slot, VolumeId, mutation};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Listed, ObjectName, block_on, list_all};
use crate::checkpoint;
use crate::error::{Result, StoreError};
use crate::image::GroupImage;
use crate::names::{GroupNames, GroupObject};
use crate::replay::{Replayed, get, replay};
use crate::store::{STORE_VERSION, parse_json, random};

/// A lease of ours holds for so long: a reader that died keeps garbage no longer.
const HOLD_MS: u64 = 6 * 3600 * 1000;
const HOLD: Duration = Duration::from_millis(HOLD_MS);
/// None holds longer, whatever it says or however it looks.
const HOLD_MS_MAX: u64 = 24 * 3600 * 1000;
/// There is a newer one long before the old one expires.
const RENEWED_AFTER: Duration = Duration::from_secs(30 * 60);
/// After a failure.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
/// Who closes waits no longer than this for his leases to be removed; they expire.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);
const LEASE_BYTES_MAX: u64 = 4 << 10;

/// What is in a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    format: String,
    version: u32,
    /// The volume's name.
    volume: String,
    /// The slot of the point.
    point: u64,
    hold_ms: u64,
    /// Who: for people.
    host: String,
    process: u32,
    /// When, by that machine's clock: for people.
    wall_ms: i64,
}

impl Description {
    fn of(volume: &Name, point: Slot) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            format: "farside lease".into(),
            version: STORE_VERSION,
            volume: volume.to_string(),
            point: point.0,
            hold_ms: HOLD_MS,
            host: host.trim().chars().take(64).collect(),
            process: std::process::id(),
            wall_ms: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

/// A reader's, renewed as long as it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Until it is dropped.
    ending: Option<Sender<()>>,
    ended: Mutex<Receiver<()>>,
    unkept: Arc<Mutex<Option<String>>>,
    goes_by: Arc<AtomicU64>,
}

impl Lease {
    /// Puts one; who reads looks at the ledger then. The service may not let us, or not answer: that is no reason not to read, and
    /// [`Lease::unkept`] says it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn take(backend: &Arc<dyn Backend>, names: &GroupNames, volume: &Name, point: Slot) -> Result<Self> {
        let mut keeper = Keeper::new(backend, names, volume, point);
        keeper.begin();
        let (unkept, goes_by) = (Arc::clone(&keeper.unkept), Arc::clone(&keeper.goes_by));
        let ((ending, end), (done, ended)) = (channel(), channel());
        thread::Builder::new().name("lease".into()).spawn(move || keeper.keep(&end, &done)).map_err(|source| StoreError::Io {
            doing: "starting a thread for",
            path: "a lease".into(),
            source,
        })?;
        Ok(Self { ending: Some(ending), ended: Mutex::new(ended), unkept, goes_by })
    }

    /// Its reader goes by what the ledger's slots before this one say.
    pub(crate) fn goes_by(&self, next: Slot) {
        self.goes_by.store(next.0, Ordering::Relaxed);
    }

    /// Why nothing keeps the point at the moment, if that is so.
    pub(crate) fn unkept(&self) -> Option<String> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.ending.take());
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(REMOVED_WITHIN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a lease could not be removed in time; it expires by itself");
        }
    }
}

/// Who puts, renews and removes the leases of one reader.
#[derive(Debug)]
struct Keeper {
    backend: Arc<dyn Backend>,
    names: GroupNames,
    volume: Name,
    point: Slot,
    /// What was put and is not removed, or may have been put: with when that began.
    put: VecDeque<(Instant, ObjectName)>,
    /// When the newest one that was acknowledged was begun.
    held_since: Option<Duration>,
    /// What the clock says that goes on while the machine is suspended, as the receiver's does. † By another one a lease that expired meanwhile
    /// would count as held, and nobody would look at what was given up.
    clock: fn() -> Duration,
    /// Until the next one.
    wait: Duration,
    unkept: Arc<Mutex<Option<String>>>,
    /// The slots below this one are those that the reader replayed.
    goes_by: Arc<AtomicU64>,
    /// We may not write there, and never did: no use in trying again.
    is_denied: bool,
}

impl Keeper {
    fn new(backend: &Arc<dyn Backend>, names: &GroupNames, volume: &Name, point: Slot) -> Self {
        Self {
            backend: Arc::clone(backend),
            names: names.clone(),
            volume: volume.clone(),
            point,
            put: VecDeque::new(),
            held_since: None,
            clock: since_boot,
            wait: RENEWED_AFTER,
            unkept: Arc::default(),
            goes_by: Arc::default(),
            is_denied: false,
        }
    }

    fn keep(mut self, end: &Receiver<()>, done: &Sender<()>) {
        let mut waits_since = (self.clock)();
        loop {
            // Waiting stands still while the machine is suspended: time is looked at now and then.
            let left = self.wait.saturating_sub((self.clock)().saturating_sub(waits_since));
            let wait = if self.is_denied { Duration::MAX } else { left.min(TRIED_AGAIN) };
            match end.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) if (self.clock)().saturating_sub(waits_since) < self.wait => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.renew();
                    waits_since = (self.clock)();
                }
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.remove(|_| true);
        let _ = done.send(()); // perhaps nobody waits any more
    }

    /// The first one: who reads looks at the ledger himself.
    fn begin(&mut self) {
        let begun = (self.clock)();
        match self.put_one(Instant::now()) {
            Ok(()) => self.held_since = Some(begun),
            Err(error) => {
                self.is_denied = is_denial(&error);
                self.say_unkept(error.to_string());
            }
        }
    }

    /// Puts a new one; those that have expired meanwhile are of no use.
    fn renew(&mut self) {
        let (begun, since) = (Instant::now(), (self.clock)());
        let put = self.put_one(begun);
        // Until the service had acknowledged it.
        let is_held = self.held_since.is_some_and(|held| (self.clock)().saturating_sub(held) < HOLD);
        match put {
            Ok(()) => {
                self.wait = RENEWED_AFTER;
                self.held_since = Some(since);
                self.remove(|put| begun.duration_since(put) > HOLD);
                if !is_held {
                    self.hold_anew();
                }
            }
            Err(error) if is_held => {
                tracing::info!(group = %self.names, volume = %self.volume, point = %self.point, %error, "a lease could not be renewed yet");
                self.wait = TRIED_AGAIN;
            }
            Err(error) => self.say_unkept(error.to_string()),
        }
    }

    /// A lease was acknowledged after a time without one: what the point needs may have been given up before that.
    fn hold_anew(&mut self) {
        let replayed = replay(&*self.backend, &self.names, group_id(&self.names.source, &self.names.group), |_| {});
        let why = |replayed: Replayed| {
            let state = replayed.image.state();
            if !state.points().contains_key(&self.point) {
                return Some("it was given up before there was a lease");
            }
            let volume = state.volume(volume_id(&self.names.source, &self.names.group, &self.volume));
            let goes_by = Slot(self.goes_by.load(Ordering::Relaxed));
            let mut merges = volume.into_iter().flat_map(|volume| volume.merges().values());
            let is_merged = merges.any(|merge| merge.slot >= goes_by && merge.born <= self.point);
            is_merged.then_some("parts of it were merged before there was a lease: open it anew")
        };
        match replayed.map(why) {
            Ok(None) => *self.unkept() = None,
            Ok(Some(why)) => {
                self.say_unkept(why.to_owned());
                self.wait = RENEWED_AFTER; // what is left of it
            }
            Err(error) => {
                self.held_since = None; // it is asked again
                self.say_unkept(error.to_string());
            }
        }
    }

    fn unkept(&self) -> MutexGuard<'_, Option<String>> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_unkept(&mut self, why: String) {
        tracing::warn!(group = %self.names, volume = %self.volume, point = %self.point, why, "nothing keeps a point that is read");
        self.wait = TRIED_AGAIN;
        *self.unkept() = Some(why);
    }

    fn put_one(&mut self, begun: Instant) -> Result<()> {
        let name = self.names.lease(random()?);
        let mut content = serde_json::to_vec_pretty(&Description::of(&self.volume, self.point)).expect("a lease is plain text");
        content.push(b'\n');
        // Before the request: whatever the answer is, it may be there.
        self.put.push_back((begun, name.clone()));
        match block_on(self.backend.create(&name, content.into())) {
            // Nobody else draws such a name: an earlier try of this request.
            Ok(_) => Ok(()),
            Err(error) => {
                if is_denial(&error) {
                    self.put.pop_back();
                }
                Err(error)
            }
        }
    }

    fn remove(&mut self, which: impl Fn(Instant) -> bool) {
        while let Some((_, name)) = self.put.front().filter(|(put, _)| which(*put)) {
            if let Err(error) = block_on(self.backend.delete(name)) {
                tracing::debug!(lease = %name, %error, "a lease could not be removed; it expires by itself");
            }
            self.put.pop_front();
        }
    }
}

/// Time since the machine was started, suspended or not.
fn since_boot() -> Duration {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("every kernel that this runs on has this clock");
    now.into()
}

/// Expired leases that one look removes: records wait for it.
const REMOVED_AT_ONCE: usize = 64;

/// Whether we may not write there, rather than not at the moment.
fn is_denial(error: &StoreError) -> bool {
    matches!(error, StoreError::RemoteDenied { .. } | StoreError::Denied { .. } | StoreError::ReadOnly { .. })
}

/// To be asked once a lease was acknowledged: the group replayed anew, unless nothing was given up since `state`.
///
/// # Errors
/// What the service says.
pub(crate) fn given_up_since(backend: &dyn Backend, names: &GroupNames, state: &State) -> Result<Option<GroupImage>> {
    let first = state.next_slot();
    let (mut slot, mut prev) = (first, state.prev());
    let plain = loop {
        match get(backend, &names.record(slot), RECORD_BYTES_MAX as u64)? {
            None => break block_on(backend.size(&names.record_void(slot)))?.is_none(),
            Some(Err(_)) => break false,
            Some(Ok(bytes)) => match decode_object(&bytes) {
                Ok(records) if records[0].0.prev == prev && !records.iter().any(|(r, _)| gives_up(&r.body)) => {
                    let (newest, digest) = records.last().expect("at least one");
                    (slot, prev) = (newest.slot.next(), *digest);
                }
                _ => break false,
            },
        }
    };
    // Only after that: what lies in slots that a checkpoint covers decides nothing. There is none of later ones without this one.
    if plain && !checkpoint::covers(backend, names, first)? {
        return Ok(None);
    }
    replay(backend, names, state.group(), |_| {}).map(|replayed| Some(replayed.image))
}

/// Whether a record, if it is accepted, gives parts up.
fn gives_up(body: &Body) -> bool {
    matches!(body, Body::Prune(_)) || (matches!(body, Body::Map(_)) && !mutation::on("L4 a reader does not look for merges"))
}

/// A collector's knowledge of leases.
#[derive(Debug, Default)]
pub struct Leases {
    /// What was read of those that are there: they never change. `None`: nobody knows what it holds.
    known: BTreeMap<ObjectName, Option<Description>>,
}

/// What a look at the leases gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// By the service's clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// Volume and point; all volumes and points where that is not known.
    points: Vec<(Option<VolumeId>, Slot)>,
}

impl Held {
    /// Whether somebody may read a part of a volume that was born in that slot.
    fn holds(&self, volume: VolumeId, born: Slot) -> bool {
        self.points.iter().any(|(of, point)| of.is_none_or(|of| of == volume) && born <= *point)
    }

    /// Whether a part may go that was given up before this was looked at: nobody reads it, and nobody will. `born`: in which slot that was.
    pub fn frees(&self, volume: VolumeId, born: Slot) -> bool {
        !self.holds(volume, born) || mutation::on("L4 a deletion without a look at the leases")
    }

    /// The same of anything that was born in that slot or later.
    pub(crate) fn holds_any(&self, born: Slot) -> bool {
        self.points.iter().any(|(_, point)| born <= *point)
    }
}

impl Leases {
    /// Looks which leases hold, and removes those that have expired. What was given up before this began and is not held may be
    /// deleted from now on, whenever that is.
    ///
    /// # Errors
    /// Nothing is known then: what the service says, also that its listing is not up to date.
    pub fn look(&mut self, backend: &dyn Backend, names: &GroupNames) -> Result<Held> {
        let clock = names.lease_clock(random()?);
        block_on(backend.create(&clock, Vec::new().into()))?;
        let mut listed = Vec::new();
        let whole = list_all(backend, Some(&names.leases()), |object| listed.push(object));
        if let Err(error) = block_on(backend.delete(&clock)) {
            tracing::debug!(object = %clock, %error, "left to the next look");
        }
        whole?;
        let now_ms = listed.iter().find(|object| object.name == clock).map(|object| object.created_ms);
        let now_ms = now_ms.ok_or_else(|| StoreError::Remote {
            doing: "listing",
            what: format!("{}/{}", backend.place(), names.leases()),
            why: "what was put before is not in it, so nobody knows who reads and nothing is deleted".to_owned(),
        })?;
        self.known.retain(|name, _| listed.iter().any(|object| object.name == *name));
        let (mut points, mut over) = (Vec::new(), Vec::new());
        for Listed { name, created_ms, .. } in listed {
            let age_ms = u64::try_from(now_ms.saturating_sub(created_ms)).unwrap_or(0);
            match names.parse(&name) {
                Some(GroupObject::LeaseClock(_)) if age_ms > HOLD_MS_MAX => over.push(name), // of a collector that died
                Some(GroupObject::Lease(_)) => {
                    let Some(lease) = self.read(backend, &name)? else {
                        // Who renews removes what has expired: a newer one of his may hold, which this listing is too old to show.
                        points.push((None, Slot(u64::MAX)));
                        continue;
                    };
                    match expires_after_ms(lease) < age_ms {
                        true => over.push(name),
                        false => points.push(holds(names, lease)),
                    }
                }
                _ => {}
            }
        }
        over.truncate(REMOVED_AT_ONCE);
        for name in over {
            tracing::info!(object = %name, "a lease has expired");
            if let Err(error) = block_on(backend.delete(&name)) {
                tracing::debug!(object = %name, %error, "left to the next look");
            }
        }
        Ok(Held { now_ms, points })
    }

    /// `None`: it was removed meanwhile.
    fn read(&mut self, backend: &dyn Backend, name: &ObjectName) -> Result<Option<&Option<Description>>> {
        if !self.known.contains_key(name) {
            let Some(found) = read(backend, name)? else { return Ok(None) };
            self.known.insert(name.clone(), found);
        }
        Ok(self.known.get(name))
    }
}

/// A lease that is there; `Some(None)`: it says nothing that we understand.
fn read(backend: &dyn Backend, name: &ObjectName) -> Result<Option<Option<Description>>> {
    let Some(bytes) = get(backend, name, LEASE_BYTES_MAX)? else { return Ok(None) };
    let read = bytes.map_err(|why| StoreError::Damaged { path: name.as_str().into(), why });
    let read = read.and_then(|bytes| parse_json(Path::new(name.as_str()), &bytes, "farside lease"));
    if let Err(error) = &read {
        tracing::warn!(lease = %name, %error, "it is taken to hold everything until it expires");
    }
    Ok(Some(read.ok()))
}

/// What a lease of that age says, for people; `None`: it was removed meanwhile.
pub(crate) fn in_words(backend: &dyn Backend, name: &ObjectName, age_ms: u64) -> Result<Option<String>> {
    let Some(lease) = read(backend, name)? else { return Ok(None) };
    let end =
        if expires_after_ms(&lease) < age_ms { "has expired and goes when segments are deleted" } else { "keeps what it needs" };
    Ok(Some(match lease {
        Some(Description { volume, point, host, process, .. }) => {
            format!("lease {name}: process {process} of {host} reads point {point} of volume {volume}; it {end}")
        }
        None => format!("lease {name} says nothing that this Farside understands; it {end}"),
    }))
}

/// How old a lease may become, in milliseconds.
fn expires_after_ms(lease: &Option<Description>) -> u64 {
    lease.as_ref().map_or(HOLD_MS_MAX, |lease| lease.hold_ms.min(HOLD_MS_MAX))
}

fn holds(names: &GroupNames, lease: &Option<Description>) -> (Option<VolumeId>, Slot) {
    let known = lease.as_ref().and_then(|lease| Some((lease.volume.parse().ok()?, Slot(lease.point))));
    match known {
        Some((volume, point)) => (Some(volume_id(&names.source, &names.group, &volume)), point),
        None => (None, Slot(u64::MAX)),
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
