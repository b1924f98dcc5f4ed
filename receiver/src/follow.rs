//! Followers: each has a thread, which brings its target from point to point.
//!
//! ```text
//! ask the group: which point? ──► there: wait ──► the next one
//!        │                          └── all of it is compared now and then
//!        └──► on the way ──► the target holds it
//! ```
//!
//! What a follower is lies in the state directory, `followers/NAME.json`, and what its target holds beside it, `followers/NAME~holds.json`. The
//! rules by which a target is written are `farside_store`'s. Here: which point, when, that it stays retained, and what people see.
//!
//! Invariant: a follower never holds up a group's thread, which only says where to go; and it keeps nothing from being given up but the
//! points that it holds and is on its way to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use farside_blockio::process::Priority;
use farside_control::follower::{FollowerAdd, FollowerState, FollowerStatus, Follows, LockRule, LockedPoint};
use farside_control::source::LastPoint;
use farside_control::{Address, ApiError, Code, ErrorCode, Reason, Severity};
use farside_ledger::State;
use farside_objects::Location;
use farside_region::{LedgerPosition, Name, Slot};
use farside_store::{
    FileTarget, FollowKeeper, FollowLook, FollowProgress, FollowStage, Follower, Following, GroupNames, LazyPointReader,
    StoreError, Tried, Unlocking, is_verify_due,
};
use farside_transport::Backoff;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::group::{FollowAsk, FollowError, FollowNext, GroupHandle, Mail};
use crate::keys;
use crate::locks::{self, Locked};
use crate::process::Receiver;
use crate::state_dir::{StateDir, StateError, Versioned, unsaved};
use crate::status::wall;

mod broken;
#[cfg(test)]
mod doubt_tests;
mod kept;
mod locking;
mod outlived;

use locking::{GROUP_AWAY, POINT_GONE};

/// Each has a thread and reads the store.
const FOLLOWERS_MAX: usize = 64;
/// What a host needs that pulls is kept for so long after its connection has ended: its line may have broken.
const PULLS_AGAIN: Duration = Duration::from_secs(3_600);
/// How often it is looked for a newer point.
const LOOK: Duration = Duration::from_millis(500);
/// When what failed is tried again: doubled each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Threads that read the store and write the target.
const THREADS: usize = 2;

/// Points that a host needs.
#[derive(Debug)]
struct Pulled {
    points: BTreeSet<Slot>,
    /// The connection on which it said so last.
    connection: u64,
    /// When that has ended: for how long still.
    until: Option<Instant>,
}

/// All followers of a receiver.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    all: Mutex<BTreeMap<Name, Arc<Entry>>>,
    /// Points that nothing may give up, by follower.
    kept: Mutex<BTreeMap<Name, (GroupNames, BTreeSet<Slot>)>>,
    /// What followers of an earlier process will ask for, until they do.
    unasked: Mutex<BTreeMap<Name, (GroupNames, FollowAsk)>>,
    /// One is added at a time.
    adding: Mutex<()>,
    /// Those that hosts pull.
    pulled: Mutex<BTreeMap<(GroupNames, Name), Pulled>>,
    /// Those that cannot be taken up.
    pub(crate) broken: broken::Broken,
}

/// What a follower is, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Definition {
    version: u32,
    source: Name,
    group: Name,
    volume: Name,
    target: PathBuf,
    follows: Follows,
    /// Of what the target held before it was followed.
    overwrite: bool,
    paused: bool,
    /// Its target takes the place of a source that is gone.
    #[serde(default)]
    promoted: Option<Promoted>,
    /// What its target holds is locked before it goes on.
    #[serde(default)]
    lock: Option<LockRule>,
    /// Nothing of it is written any more.
    #[serde(skip)]
    removed: bool,
}

/// What a follower's target is promoted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Promoted {
    point: Slot,
    generation: u64,
    /// It holds that point, and is the receiver's no more.
    released: bool,
}

/// What a target holds, as it is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Holds {
    version: u32,
    following: Following,
    /// When it was filled.
    filled_wall_ms: Option<i64>,
    /// When all of it was equal to what it held.
    verified_wall_ms: Option<i64>,
    /// What was locked, oldest first.
    #[serde(default)]
    locked: Vec<Locked>,
    /// The highest of the ledger when it went its last way; `None`: noted by an earlier build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

/// Of both.
pub(crate) const FOLLOWER_VERSION: u32 = 1;

impl Versioned for Definition {
    const READS: u32 = FOLLOWER_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl Versioned for Holds {
    const READS: u32 = FOLLOWER_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl Definition {
    fn names(&self) -> GroupNames {
        GroupNames { source: self.source.clone(), group: self.group.clone() }
    }

    /// Whether the target is to be left alone.
    fn is_released(&self) -> bool {
        self.paused || self.promoted.is_some_and(|promoted| promoted.released)
    }
}

/// A follower, and how to talk to its thread.
#[derive(Debug)]
struct Entry {
    name: Name,
    definition: Mutex<Definition>,
    orders: Mutex<Orders>,
    ordered: Condvar,
    view: Mutex<View>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Orders {
    remove: bool,
    verify: bool,
    heal: bool,
    /// Something changed: do not wait any longer.
    wake: bool,
}

/// What people see of it.
#[derive(Clone, Debug, Default)]
struct View {
    state: FollowerState,
    holds: Option<LastPoint>,
    applying: Option<LastPoint>,
    progress: FollowProgress,
    applied: u64,
    written_bytes: u64,
    last_apply: Option<Duration>,
    verified_wall_ms: Option<i64>,
    diverged: Vec<u64>,
    words: Option<String>,
    locked: Vec<Locked>,
    /// Why what it holds is not locked.
    unlocked: Option<String>,
    /// Somebody else may have written to the target beside an apply that was cut short, and all of it was not compared since.
    in_doubt: bool,
    /// The target holds something of points, and not just anything.
    has_content: bool,
}

fn has_content(following: &Following) -> bool {
    matches!(following.stage, FollowStage::At(_) | FollowStage::Applying { between: Some(_), .. })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followers {
    /// Takes up those of an earlier process. To be called before any group is opened: what they hold is kept from here on.
    pub(crate) fn load(&self, state_dir: &StateDir) {
        let found = state_dir.followers().unwrap_or_else(|error| {
            self.broken.add(None, None, error.to_string());
            Vec::new()
        });
        for (name, definition) in found {
            let group = definition.as_ref().ok().map(Definition::names);
            let read = definition.and_then(|definition| Ok((state_dir.follower_holds(&name)?.unwrap_or_default(), definition)));
            match read {
                Ok((holds, definition)) => {
                    let is_its_hosts = definition.promoted.is_some_and(|promoted| promoted.released);
                    let points = if is_its_hosts { BTreeSet::new() } else { holds.following.stage.points().collect() };
                    let kept = (definition.names(), points);
                    lock(&self.kept).insert(name.clone(), kept);
                    let stage = holds.following.stage.clone();
                    let ask = FollowAsk::new(&name, definition.volume.clone(), definition.follows, stage);
                    if definition.promoted.is_none() {
                        lock(&self.unasked).insert(name.clone(), (definition.names(), ask));
                    }
                    let entry = Entry::new(name.clone(), definition);
                    {
                        let mut view = lock(&entry.view);
                        (view.in_doubt, view.has_content) = (holds.following.is_in_doubt(), has_content(&holds.following));
                        view.locked = holds.locked;
                    }
                    lock(&self.all).insert(name, Arc::new(entry));
                }
                Err(error) => self.broken.add(Some(&name), group, format!("follower {name}: {error}")),
            }
        }
    }

    /// Those that could not be taken up.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        self.broken.reasons()
    }

    /// Starts their threads.
    pub(crate) fn start(receiver: &Arc<Receiver>) -> std::io::Result<()> {
        let all: Vec<Arc<Entry>> = lock(&receiver.followers.all).values().cloned().collect();
        all.into_iter().try_for_each(|entry| entry.start(receiver))
    }

    /// From here on nothing gives up these points, and may give up those before.
    pub(crate) fn keep(&self, follower: &Name, points: BTreeSet<Slot>) {
        lock(&self.unasked).remove(follower);
        if let Some((_, kept)) = lock(&self.kept).get_mut(follower) {
            *kept = points;
        }
    }

    /// The points of a group that its followers will ask for that have not asked yet: a target may be away for long, and whoever waits until a
    /// point is old enough waits for one that policy alone would give up.
    pub(crate) fn unasked(&self, names: &GroupNames, state: &State) -> BTreeSet<Slot> {
        let unasked = lock(&self.unasked);
        unasked.values().filter(|(of, _)| of == names).flat_map(|(_, ask)| ask.points(state)).collect()
    }

    /// The points of a group that nothing may give up.
    pub(crate) fn kept(&self, names: &GroupNames) -> BTreeSet<Slot> {
        let mut all: BTreeSet<Slot> =
            lock(&self.kept).values().filter(|(of, _)| of == names).flat_map(|(_, kept)| kept.iter().copied()).collect();
        let mut pulled = lock(&self.pulled);
        let now = Instant::now();
        pulled.retain(|_, pulled| pulled.until.is_none_or(|until| until > now));
        all.extend(pulled.iter().filter(|((of, _), _)| of == names).flat_map(|(_, pulled)| pulled.points.iter().copied()));
        all
    }

    /// A host that pulls needs these points of a group, and none other.
    pub(crate) fn hold(&self, names: &GroupNames, (host, connection): (&Name, u64), points: BTreeSet<Slot>) {
        lock(&self.pulled).insert((names.clone(), host.clone()), Pulled { points, connection, until: None });
    }

    /// That connection has ended: in order, or it may come back. † By then the host may have another one.
    pub(crate) fn release(&self, names: &GroupNames, (host, connection): (&Name, u64), in_order: bool) {
        let (mut all, key) = (lock(&self.pulled), (names.clone(), host.clone()));
        let Some(pulled) = all.get_mut(&key).filter(|pulled| pulled.connection == connection) else { return };
        match in_order {
            true => drop(all.remove(&key)),
            false => pulled.until = Some(Instant::now() + PULLS_AGAIN),
        }
    }

    /// All, by name.
    pub(crate) fn show(&self) -> Vec<FollowerStatus> {
        lock(&self.all).values().map(|entry| entry.show()).collect()
    }

    /// One.
    pub(crate) fn show_one(&self, name: &str) -> Result<FollowerStatus, ApiError> {
        Ok(self.entry(name)?.show())
    }

    fn entry(&self, name: &str) -> Result<Arc<Entry>, ApiError> {
        let known = lock(&self.all).iter().find(|(known, _)| known.as_str() == name).map(|(_, entry)| Arc::clone(entry));
        known.ok_or_else(|| ApiError::not_found("follower", name, "`farside follower list` lists them"))
    }

    /// Has a follower compare its target now.
    pub(crate) fn verify(&self, name: &str) -> Result<FollowerStatus, ApiError> {
        let entry = self.entry(name)?;
        entry.refuse_paused()?;
        entry.order(|orders| orders.verify = true);
        Ok(entry.show())
    }

    /// Has a follower overwrite whatever differs in its target.
    pub(crate) fn heal(&self, name: &str) -> Result<FollowerStatus, ApiError> {
        let entry = self.entry(name)?;
        entry.refuse_paused()?;
        {
            let mut view = lock(&entry.view);
            (view.state, view.words, view.holds) = (FollowerState::Waiting, None, None);
        }
        entry.order(|orders| orders.heal = true);
        Ok(entry.show())
    }

    /// The follower whose target takes the place of a volume at the failover of that generation, if there is one: the one that was told
    /// to, or one that is to hold the newest point.
    pub(crate) fn of_volume(&self, names: &GroupNames, volume: &str, generation: u64) -> Option<FollowerStatus> {
        let entries: Vec<Arc<Entry>> = lock(&self.all).values().cloned().collect();
        let of_it = || entries.iter().filter(|entry| entry.is_of(names, volume));
        let told = of_it().find(|entry| entry.promoted_at() == Some(generation));
        let best = || of_it().filter(|entry| entry.may_be_promoted(generation)).min_by_key(|entry| entry.shortcoming());
        told.or_else(best).map(|entry| entry.show())
    }

    /// Has one follower of each of these volumes of a group hold that point, and let go of its target then.
    pub(crate) fn promote(
        &self,
        receiver: &Receiver,
        names: &GroupNames,
        (point, members): (Slot, &[String]),
        generation: u64,
    ) -> Result<(), StateError> {
        let mut entries: Vec<Arc<Entry>> = lock(&self.all).values().cloned().collect();
        // Of several of one volume, one that is well.
        entries.sort_by_key(|entry| entry.shortcoming());
        let of_group = || entries.iter().filter(|entry| lock(&entry.definition).names() == *names);
        // Those that were told before a kill.
        let told = of_group().filter(|entry| entry.promoted_at() == Some(generation));
        let mut volumes: BTreeSet<Name> = told.map(|entry| lock(&entry.definition).volume.clone()).collect();
        for entry in of_group().filter(|entry| entry.may_be_promoted(generation)) {
            {
                let mut definition = lock(&entry.definition);
                // One of another volume has nothing to hold there, and goes on.
                if definition.removed || !members.iter().any(|member| member == definition.volume.as_str()) {
                    continue;
                }
                if !volumes.insert(definition.volume.clone()) {
                    continue;
                }
                let promoted = Some(Promoted { point, generation, released: false });
                let changed = Definition { promoted, ..definition.clone() };
                entry.change(&receiver.state_dir, &mut definition, changed)?;
            }
            entry.begins_anew();
            entry.order(|orders| orders.wake = true);
        }
        Ok(())
    }

    /// The failover of that generation is over: whoever was to hold its point, and has not come to it, follows as before.
    pub(crate) fn end_promotions(&self, receiver: &Receiver, names: &GroupNames, generation: u64) -> Result<(), StateError> {
        let entries: Vec<Arc<Entry>> = lock(&self.all).values().cloned().collect();
        for entry in entries {
            {
                let mut definition = lock(&entry.definition);
                let is_over = |promoted: Promoted| !promoted.released && promoted.generation <= generation;
                if definition.names() != *names || !definition.promoted.is_some_and(is_over) {
                    continue;
                }
                let changed = Definition { promoted: None, ..definition.clone() };
                entry.change(&receiver.state_dir, &mut definition, changed)?;
            }
            entry.begins_anew();
            entry.order(|orders| orders.wake = true);
        }
        Ok(())
    }

    /// Pauses a follower, or ends its pause. Blocking.
    pub(crate) fn pause(&self, receiver: &Receiver, name: &str, paused: bool) -> Result<FollowerStatus, ApiError> {
        let entry = self.entry(name)?;
        {
            let mut definition = lock(&entry.definition);
            // Whoever goes on follows again, whatever its target was promoted to; but not before it was handed over.
            let promoted = definition.promoted.filter(|promoted| paused || !promoted.released);
            let changed = Definition { paused, promoted, ..definition.clone() };
            if !entry.change(&receiver.state_dir, &mut definition, changed).map_err(unsaved)? {
                return Err(ApiError::not_found("follower", name, "it is being removed; `farside follower list` lists them"));
            }
        }
        if !paused {
            entry.begins_anew();
        }
        entry.order(|orders| orders.wake = true);
        // Until its target is closed it is not what was asked for.
        let until = Instant::now() + Duration::from_secs(10);
        while paused && lock(&entry.view).state != FollowerState::Paused && Instant::now() < until && !receiver.is_stopping() {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(entry.show())
    }

    /// Ends a follower; its target stays as it is. Blocking.
    pub(crate) fn remove(&self, receiver: &Receiver, name: &str) -> Result<(), ApiError> {
        let entry = self.entry(name)?;
        entry.order(|orders| orders.remove = true);
        // † What its thread keeps after its files are gone would be taken for the next one's of that name.
        if let Some(thread) = lock(&entry.thread).take()
            && thread.join().is_err()
        {
            tracing::error!(follower = name, "the follower's thread panicked");
        }
        entry.forget(&receiver.state_dir).map_err(|error| {
            let what = "it follows no more, and may be there again when the receiver is started: see its state directory, and say the same again";
            ApiError::new(ErrorCode::Unavailable, error.to_string(), what)
        })?;
        lock(&self.all).remove(&entry.name);
        lock(&self.kept).remove(&entry.name);
        lock(&self.unasked).remove(&entry.name);
        Ok(())
    }

    /// Waits until no target is written to any more; the receiver is stopping. Blocking.
    pub(crate) fn stop(&self) {
        let all: Vec<Arc<Entry>> = lock(&self.all).values().cloned().collect();
        all.iter().for_each(|entry| entry.ordered.notify_all());
        for entry in all {
            let thread = lock(&entry.thread).take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!(follower = %entry.name, "the follower's thread panicked");
            }
        }
    }

    /// Begins a follower. Blocking.
    pub(crate) fn add(receiver: &Arc<Receiver>, add: FollowerAdd) -> Result<FollowerStatus, ApiError> {
        let bad = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::BadRequest, error.to_string(), "");
        let address: Address = add.volume.parse().map_err(|error| bad(&error))?;
        let (group, volume, bytes) = one_volume(receiver, &address)?;
        let names = group.names().clone();
        let name = add.name.unwrap_or_else(|| format!("{}-{volume}", names.source));
        let name: Name = name.parse().map_err(|error| bad(&error))?;
        if !add.target.is_absolute() {
            let message = format!("{} is not a whole path", add.target.display());
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                message,
                "say where it is from / on: the gateway has its own working directory",
            ));
        }
        // † Not the lock of all: a disk that does not answer would hold up whoever asks for anything of followers.
        let _one = lock(&receiver.followers.adding);
        let all: BTreeMap<Name, Arc<Entry>> = lock(&receiver.followers.all).clone();
        if all.contains_key(&name) {
            let message = format!("there is a follower {name} already");
            return Err(ApiError::new(ErrorCode::Conflict, message, "give this one another name: --name NAME"));
        }
        if let Some(words) = receiver.followers.broken.of(&name) {
            let what = "give this one another name (--name NAME), or move that file away and restart farside-receiver";
            return Err(ApiError::new(ErrorCode::Conflict, words, what));
        }
        if all.len() >= FOLLOWERS_MAX {
            let message = format!("this receiver has {FOLLOWERS_MAX} followers, which is its limit");
            return Err(ApiError::new(ErrorCode::Conflict, message, "end one that is not needed: farside follower remove NAME"));
        }
        if let Some(other) = all.values().find(|other| is_same(&lock(&other.definition).target, &add.target)) {
            let message = format!("{} is the target of follower {}", add.target.display(), other.name);
            return Err(ApiError::new(ErrorCode::Conflict, message, "give this one a target of its own"));
        }
        refuse_own(receiver, &add.target)?;
        if let Some(rule) = &add.lock {
            locks::check(&receiver.config().locks, rule, &add.target).map_err(|words| {
                ApiError::new(ErrorCode::Conflict, words, "see docs/operate.md, `Locked points`, or leave --lock out")
            })?;
        }
        let definition = Definition {
            version: FOLLOWER_VERSION,
            source: names.source.clone(),
            group: names.group.clone(),
            volume: volume.clone(),
            target: add.target,
            follows: add.follows,
            overwrite: add.overwrite,
            paused: false,
            promoted: None,
            lock: add.lock,
            removed: false,
        };
        lock(&receiver.followers.kept).insert(name.clone(), (names, BTreeSet::new()));
        let tried = try_target(receiver, &group, &name, &definition, bytes);
        let kept = tried.and_then(|()| kept::begin(&receiver.state_dir, &name, &definition).map_err(unsaved));
        if let Err(error) = kept {
            lock(&receiver.followers.kept).remove(&name);
            return Err(error);
        }
        let entry = Arc::new(Entry::new(name.clone(), definition));
        lock(&receiver.followers.all).insert(name, Arc::clone(&entry));
        entry.start(receiver).map_err(ApiError::internal)?;
        Ok(entry.show())
    }
}

/// What can be refused at once is.
fn try_target(
    receiver: &Receiver,
    group: &GroupHandle,
    name: &Name,
    definition: &Definition,
    bytes: u64,
) -> Result<(), ApiError> {
    let ask = FollowAsk::new(name, definition.volume.clone(), definition.follows, FollowStage::Unknown);
    match (ask_group(receiver, group, |reply| Mail::Follow { ask: Box::new(ask), reply }), definition.follows) {
        (Err(FollowError::NoKey(why)), _) => {
            return Err(ApiError::new(ErrorCode::Conflict, why, "a follower holds plain content"));
        }
        (Ok(FollowNext::Look(look, ..)), _) => {
            if let Err(error @ StoreError::KeyNeeded { .. }) = look.unlocked(&receiver.keys.of(&receiver.config(), group.names()))
            {
                return Err(ApiError::new(ErrorCode::Conflict, keys::words(&error), "a follower holds plain content"));
            }
        }
        (Ok(FollowNext::Nothing(why)), Follows::Point { .. }) => {
            return Err(ApiError::new(ErrorCode::NotFound, why, "see `farside point list`"));
        }
        _ => {}
    }
    let opened = FileTarget::open_to_follow(&definition.target, definition.volume.as_str(), bytes, true, definition.overwrite);
    opened.map(drop).map_err(|error| {
        let (code, what) = match &error {
            StoreError::TargetNotEmpty { .. } => (ErrorCode::Conflict, "say --overwrite if what it holds may be lost"),
            StoreError::TargetTooSmall { .. } => (ErrorCode::Conflict, "give it a larger one"),
            StoreError::TargetBusy { .. } => (ErrorCode::Busy, "end what uses it first"),
            _ => (ErrorCode::Conflict, "the target belongs to the gateway, and its service must be allowed to write there"),
        };
        let message = match &error {
            StoreError::TargetNotEmpty { path } => format!("{} is not empty", path.display()),
            other => other.to_string(),
        };
        ApiError::new(code, message, what)
    })
}

/// The one volume that an address names.
fn one_volume(receiver: &Receiver, address: &Address) -> Result<(GroupHandle, Name, u64), ApiError> {
    let mut found = Vec::new();
    for group in receiver.roster.all() {
        receiver.runtime.block_on(group.clone().refresh());
        let view = group.view();
        found.extend(view.volumes_of(address).map(|(volume, bytes)| (group.clone(), volume, bytes)));
    }
    match found.len() {
        0 => Err(ApiError::not_found("volume", &address.to_string(), "`farside status` lists what the store holds")),
        1 => {
            let (group, volume, bytes) = found.remove(0);
            let volume = volume.parse().map_err(ApiError::internal)?;
            Ok((group, volume, bytes))
        }
        _ => {
            let all: Vec<_> = found.iter().map(|(group, volume, _)| format!("{}/{volume}", group.names())).collect();
            let message = format!("`{address}` may be {}", all.join(", "));
            Err(ApiError::new(ErrorCode::BadRequest, message, "say which: SOURCE/GROUP/VOLUME"))
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

/// What must not be a target: a device that is not there, and the receiver's own files.
fn refuse_own(receiver: &Receiver, target: &Path) -> Result<(), ApiError> {
    // † A service with a /dev of its own would make a file there, and fill it.
    if target.starts_with("/dev") && !target.exists() {
        let message = format!("there is no {}, as far as farside-receiver sees", target.display());
        let what =
            "its service sees no block devices unless it is told to: `systemctl edit farside-receiver`, see docs/operate.md";
        return Err(ApiError::new(ErrorCode::Conflict, message, what));
    }
    let config = receiver.config();
    let store = match &config.store {
        Location::Dir(path) => Some(path.clone()),
        Location::Bucket(_) => None,
    };
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let folder = real(target).or_else(|| target.parent().and_then(real));
    for own in store.iter().chain([&config.staging, &config.state_dir]) {
        if folder.as_ref().zip(real(own)).is_some_and(|(folder, own)| folder.starts_with(own)) {
            let message = format!("{} lies in {}, which is the receiver's own", target.display(), own.display());
            return Err(ApiError::new(ErrorCode::Conflict, message, "give it another place"));
        }
    }
    Ok(())
}

fn ask_group<T>(
    receiver: &Receiver,
    group: &GroupHandle,
    mail: impl FnOnce(oneshot::Sender<Result<T, FollowError>>) -> Mail,
) -> Result<T, FollowError> {
    let gone = || FollowError::Away("the group was closed meanwhile".to_owned());
    let (reply, answer) = oneshot::channel();
    receiver.runtime.block_on(async {
        group.tell(mail(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    })
}

impl Entry {
    fn new(name: Name, definition: Definition) -> Self {
        let (orders, ordered, view, thread) = (Mutex::default(), Condvar::new(), Mutex::default(), Mutex::default());
        Self { name, definition: Mutex::new(definition), orders, ordered, view, thread }
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut lock(&self.orders));
        self.ordered.notify_all();
    }

    fn refuse_paused(&self) -> Result<(), ApiError> {
        let definition = lock(&self.definition);
        if !definition.is_released() {
            return Ok(());
        }
        let what = if !definition.paused { "promoted: its target is not the receiver's" } else { "paused" };
        let message = format!("follower {} is {what}", self.name);
        Err(ApiError::new(ErrorCode::Conflict, message, format!("first: farside follower resume {}", self.name)))
    }

    fn is_of(&self, names: &GroupNames, volume: &str) -> bool {
        let definition = lock(&self.definition);
        definition.names() == *names && definition.volume.as_str() == volume
    }

    /// Why another one is rather promoted: the least is the best. One that cannot go on as it is holds no point; one that is filled for the first
    /// time will in hours, perhaps; one that is in doubt may.
    fn shortcoming(&self) -> impl Ord + use<> {
        let view = lock(&self.view);
        (matches!(view.state, FollowerState::Diverged | FollowerState::Failed), !view.has_content, view.in_doubt)
    }

    /// What was wrong with it before is not said of what it does from here on.
    fn begins_anew(&self) {
        let mut view = lock(&self.view);
        (view.state, view.words, view.unlocked) = (FollowerState::Waiting, None, None);
    }

    /// The generation of the failover for which it was promoted.
    fn promoted_at(&self) -> Option<u64> {
        lock(&self.definition).promoted.map(|promoted| promoted.generation)
    }

    /// At the failover of that generation. † Not what was handed over before, though the source took its history back: who has it may use it. What
    /// never came to the point of an earlier one is no different from any other.
    fn may_be_promoted(&self, generation: u64) -> bool {
        let definition = lock(&self.definition);
        let is_free = definition.promoted.is_none_or(|promoted| !promoted.released && promoted.generation < generation);
        !definition.removed && !definition.paused && is_free && definition.follows == Follows::Newest
    }

    fn show(&self) -> FollowerStatus {
        let (definition, view) = (lock(&self.definition).clone(), lock(&self.view).clone());
        let mut reasons = Vec::new();
        let name = &self.name;
        if let Some(words) = &view.words {
            reasons.push(match view.state {
                FollowerState::Diverged => {
                    let what = format!(
                        "look at it first (`farside follower pause {name}` lets go of it): if it is in use, `farside follower remove {name}` leaves it \
                         as it is; if not, `farside follower heal {name}` overwrites what differs"
                    );
                    Reason::new(Severity::Error, Code::FollowerDiverged, format!("follower {name}: {words}"), what)
                }
                FollowerState::Waiting => {
                    Reason::new(Severity::Info, Code::FollowerFailed, format!("follower {name} waits: {words}"), "it goes on by itself")
                }
                _ => {
                    let what = "it is tried again and again; mend that, or end it: farside follower remove";
                    Reason::new(Severity::Error, Code::FollowerFailed, format!("follower {name}: {words}"), format!("{what} {name}"))
                }
            });
        }
        if let Some(words) = view.unlocked.as_ref().filter(|_| !definition.is_released()) {
            let what =
                "the target goes on without it, and it is tried again; mend that, or begin the follower anew without --lock";
            let words = format!("what follower {name} holds is not locked: {words}");
            reasons.push(Reason::new(Severity::Warning, Code::FollowerFailed, words, what));
        }
        if view.in_doubt {
            let words = format!(
                "follower {name}: an apply was cut short, and nobody can tell whether somebody else wrote to {} beside it",
                definition.target.display()
            );
            let what = if definition.is_released() {
                "look at what it holds before you rely on it, or restore the point beside it"
            } else {
                "all of it is compared by itself as soon as it holds a point; a promotion does not wait for that"
            };
            reasons.push(Reason::new(Severity::Warning, Code::FollowerInDoubt, words, what));
        }
        let whole = |one: &Locked| {
            let (id, locked) = (one.id(), wall(one.wall_ms));
            one.name.clone().filter(|_| one.is_sure()).map(|name| LockedPoint { id, locked, name })
        };
        // While it follows it is undone by itself.
        let left = view.locked.iter().filter(|one| !one.is_sure() && definition.is_released());
        reasons.extend(left.map(|one| {
            let words = format!("a lock of point {} was begun by follower {name}, and may be there", one.id());
            let what = format!("it is undone when the follower goes on; otherwise it is yours to remove ({})", one.whose());
            Reason::new(Severity::Info, Code::FollowerFailed, words, what)
        }));
        FollowerStatus {
            lock: definition.lock,
            locked: view.locked.iter().filter_map(whole).collect(),
            name: name.to_string(),
            source: definition.source.to_string(),
            group: definition.group.to_string(),
            volume: definition.volume.to_string(),
            target: definition.target,
            follows: definition.follows,
            state: view.state,
            holds: view.holds,
            applying: view.applying,
            done_regions: view.progress.done,
            total_regions: view.progress.of,
            applied: view.applied,
            written_bytes: view.written_bytes + view.progress.written_bytes,
            last_apply_ms: view.last_apply.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            verified: view.verified_wall_ms.map(wall),
            diverged_regions: view.diverged,
            reasons,
        }
    }

    fn start(self: &Arc<Self>, receiver: &Arc<Receiver>) -> std::io::Result<()> {
        let (receiver, entry) = (Arc::clone(receiver), Arc::clone(self));
        let thread = thread::Builder::new().name(format!("f:{}", self.name)).spawn(move || {
            let _ = Priority::Background.set(); // where it is refused, all threads are equal
            let mut runner = Runner {
                receiver,
                entry,
                holds: None,
                has_looked: false,
                target: None,
                verify_wanted: false,
                backoff: Backoff::new(AGAIN.0, AGAIN.1),
                tried: Tried::default(),
                lock_pause: Backoff::new(AGAIN.0, AGAIN.1),
                no_lock_until: None,
            };
            runner.run();
        })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }
}

/// A follower's thread.
struct Runner {
    receiver: Arc<Receiver>,
    entry: Arc<Entry>,
    /// As it is kept; `None` before it was read.
    holds: Option<Holds>,
    /// What an earlier process left may be gone on with.
    has_looked: bool,
    target: Option<FileTarget>,
    /// A person wants all of the target to be compared, when it holds what it should.
    verify_wanted: bool,
    backoff: Backoff,
    /// Points that could not be read.
    tried: Tried,
    /// A lock that failed is not tried before.
    no_lock_until: Option<Instant>,
    lock_pause: Backoff,
}

/// Why a turn ended without a point.
#[derive(Debug)]
enum Trouble {
    /// It was told to stop, or to do something else.
    Stopped,
    /// In words.
    Words(String),
    /// The point could not be read.
    Unread(String),
    /// Somebody else wrote to the target.
    Diverged(String),
}

/// Keeps what a target holds.
struct Keeper<'k> {
    state_dir: &'k StateDir,
    entry: &'k Entry,
    /// With what it held before.
    holds: Holds,
}

impl FollowKeeper for Keeper<'_> {
    fn keep(&self, following: &Following) -> std::io::Result<()> {
        let holds = Holds { version: FOLLOWER_VERSION, following: following.clone(), ..self.holds.clone() };
        self.state_dir.remember_follower_holds(&self.entry.name, &holds).map_err(std::io::Error::other)?;
        let mut view = lock(&self.entry.view);
        (view.in_doubt, view.has_content) = (following.is_in_doubt(), has_content(following));
        Ok(())
    }
}

impl Runner {
    fn run(&mut self) {
        while !self.is_over() {
            let (is_released, is_paused) = {
                let definition = lock(&self.entry.definition);
                (definition.is_released(), definition.paused)
            };
            if is_released {
                self.target = None;
                self.verify_wanted = false;
                {
                    let mut orders = lock(&self.entry.orders);
                    (orders.verify, orders.heal) = (false, false);
                }
                let state = if is_paused { FollowerState::Paused } else { FollowerState::Promoted };
                self.show(|view| (view.state, view.words, view.applying) = (state, None, None));
                self.wait(LOOK);
                continue;
            }
            match self.turn() {
                Ok(wait) => {
                    self.backoff.reset();
                    self.wait(wait);
                }
                Err(Trouble::Stopped) => self.wait(LOOK),
                Err(Trouble::Diverged(words)) => {
                    let stage = self.holds.as_ref().map(|holds| holds.following.stage.clone());
                    let Some(FollowStage::Diverged { regions, at, .. }) = stage else { continue };
                    // To look at what it should be.
                    self.receiver.followers.keep(&self.entry.name, BTreeSet::from([at.slot]));
                    self.show(|view| {
                        (view.state, view.words) = (FollowerState::Diverged, Some(words));
                        (view.applying, view.holds) = (None, None);
                        view.diverged = regions.iter().map(|region| region.0).collect();
                    });
                    self.wait(AGAIN.1);
                }
                Err(Trouble::Words(words) | Trouble::Unread(words)) => {
                    if lock(&self.entry.view).words.as_ref() != Some(&words) {
                        tracing::warn!(follower = %self.entry.name, %words, "a follower cannot go on");
                    }
                    self.show(|view| (view.state, view.words) = (FollowerState::Failed, Some(words)));
                    self.target = None; // it may be another one by then
                    let wait = self.backoff.next(0);
                    self.wait(wait);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.receiver.is_stopping() || lock(&self.entry.orders).remove
    }

    fn show(&self, change: impl FnOnce(&mut View)) {
        change(&mut lock(&self.entry.view));
    }

    /// Waits, unless there is something to do.
    fn wait(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut orders = lock(&self.entry.orders);
        while !(orders.wake || orders.remove || orders.verify || orders.heal || self.receiver.is_stopping()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            orders = self.entry.ordered.wait_timeout(orders, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        orders.wake = false;
    }

    fn read_holds(&mut self) -> Result<&mut Holds, Trouble> {
        if self.holds.is_none() {
            let name = &self.entry.name;
            let read = self.receiver.state_dir.follower_holds(name).map_err(|error| Trouble::Words(error.to_string()))?;
            let holds = read.unwrap_or_default();
            self.show(|view| view.verified_wall_ms = holds.verified_wall_ms);
            self.holds = Some(holds);
        }
        Ok(self.holds.as_mut().expect("just read"))
    }

    /// One way to a point, or one look at all of the target; says how long to wait for the next.
    fn turn(&mut self) -> Result<Duration, Trouble> {
        let stage = self.read_holds()?.following.stage.clone();
        let heal = {
            let mut orders = lock(&self.entry.orders);
            self.verify_wanted |= std::mem::take(&mut orders.verify);
            std::mem::take(&mut orders.heal)
        };
        if heal {
            self.tried.clear();
            self.with_follower(None, |follower| follower.heal())?;
            self.show(|view| (view.words, view.holds, view.diverged) = (None, None, Vec::new()));
            return Ok(Duration::ZERO);
        }
        if let FollowStage::Diverged { why, .. } = stage {
            return Err(Trouble::Diverged(why));
        }
        let (group, volume, follows) = {
            let definition = lock(&self.entry.definition);
            let promoted = definition.promoted.map(|promoted| Follows::Point { slot: promoted.point.0 });
            (definition.names(), definition.volume.clone(), (promoted.unwrap_or(definition.follows), promoted.is_some()))
        };
        let (follows, again) = follows;
        let roster = self.receiver.roster.all();
        let Some(group) = roster.into_iter().find(|handle| *handle.names() == group) else {
            return Err(Trouble::Words(format!("the store has no group {group}, or cannot be read")));
        };
        if let FollowStage::At(at) = &stage {
            self.lock_step(&group, *at)?;
        }
        let avoid = self.tried.avoid();
        let left_under = self.left_under()?;
        let ask = FollowAsk { avoid, again, left_under, ..FollowAsk::new(&self.entry.name, volume, follows, stage.clone()) };
        match ask_group(&self.receiver, &group, |reply| Mail::Follow { ask: Box::new(ask), reply }).map_err(trouble)? {
            // Somebody waits for it.
            FollowNext::Nothing(why) if again => Err(Trouble::Words(why)),
            FollowNext::Nothing(why) => {
                self.show(|view| (view.state, view.words, view.applying) = (FollowerState::Waiting, Some(why), None));
                Ok(LOOK)
            }
            FollowNext::There(point) => {
                let FollowStage::At(at) = stage else { return Ok(LOOK) };
                self.look_at_target(&group, at)?;
                self.show(|view| {
                    (view.state, view.words, view.applying) = (FollowerState::Following, None, None);
                    view.holds = Some(point);
                });
                if self.is_verify_due() {
                    self.verify(&group, at)?;
                }
                Ok(LOOK)
            }
            FollowNext::Outlived(generation) => Err(self.is_outlived(generation)),
            FollowNext::Look(look, point, generation) => {
                self.goes_under(generation)?;
                let keys = self.receiver.keys.of(&self.receiver.config(), group.names());
                let look = look.unlocked(&keys).map_err(of_store)?;
                if self.receiver.is_stopping() {
                    return Err(Trouble::Stopped);
                }
                let filling = matches!(stage, FollowStage::Unknown | FollowStage::Applying { between: None, .. });
                self.show(|view| {
                    view.state = if filling { FollowerState::Filling } else { FollowerState::Applying };
                    view.applying = Some(point.clone());
                    view.words = None;
                    // What it held it holds until something is written; nobody can rely on it.
                    view.holds = None;
                });
                self.advance(&group, (&look, &keys), &point, filling)?;
                match again {
                    true => self.release(look.point().slot)?,
                    // Where there is always a newer one, too.
                    false if self.is_verify_due() => self.verify(&group, look.point())?,
                    false => {}
                }
                Ok(Duration::ZERO)
            }
        }
    }

    /// Whether the target is still what it was left as: where its path still leads to it, that is looked at when something is written; and all
    /// that tells of strangers, where it was opened anew.
    fn look_at_target(&mut self, group: &GroupHandle, at: LedgerPosition) -> Result<(), Trouble> {
        if self.target.as_ref().is_some_and(FileTarget::is_in_place) {
            return Ok(());
        }
        self.inspect_target(group, at, false)
    }

    /// The same, wherever it is. `whole`: not without its point.
    fn inspect_target(&mut self, group: &GroupHandle, at: LedgerPosition, whole: bool) -> Result<(), Trouble> {
        let (receiver, entry) = (Arc::clone(&self.receiver), Arc::clone(&self.entry));
        let volume = lock(&entry.definition).volume.clone();
        match open_base(&receiver, group, &volume, at.slot) {
            Err(StoreError::NoSuchPoint { .. }) if whole => Err(Trouble::Words(POINT_GONE.to_owned())),
            Err(StoreError::Stopped) if whole && goes_on(&receiver, &entry) => Err(Trouble::Words(GROUP_AWAY.to_owned())),
            Err(StoreError::NoSuchPoint { .. }) => self.with_follower(None, |follower| follower.recognise()),
            other => {
                let reader = other.map_err(of_store)?;
                let progress = |progress: FollowProgress| {
                    // All of it, for one after the machine was booted: nothing tells who wrote to it.
                    let mut view = lock(&entry.view);
                    (view.state, view.progress) = (FollowerState::Verifying, progress);
                    drop(view);
                    goes_on(&receiver, &entry) && is_given(&receiver, group, &reader)
                };
                let again = |slot: Slot| open_base(&receiver, group, &volume, slot);
                self.with_follower(None, |follower| follower.inspect(&reader, &again, &progress))
            }
        }
    }

    fn advance(
        &mut self,
        group: &GroupHandle,
        (look, keys): (&FollowLook, &Arc<Unlocking>),
        point: &LastPoint,
        is_filling: bool,
    ) -> Result<(), Trouble> {
        let begun = Instant::now();
        let (receiver, entry) = (Arc::clone(&self.receiver), Arc::clone(&self.entry));
        let volume = lock(&entry.definition).volume.clone();
        let base = |slot: Slot| open_base(&receiver, group, &volume, slot);
        let is_sealed = look.reader().is_sealed();
        let progress = |progress: FollowProgress| {
            lock(&entry.view).progress = progress;
            // What was given and is taken away is used no more.
            goes_on(&receiver, &entry) && (!is_sealed || receiver.keys.is_current(&receiver.config(), group.names(), keys))
        };
        let slot = look.point().slot;
        let report = self
            .with_follower(Some(look.reader().geometry().volume_bytes()), |follower| follower.advance(look, &base, &progress));
        match report {
            Ok(report) => {
                self.tried.clear();
                if is_filling {
                    self.change_holds(|holds| holds.filled_wall_ms = Some(Timestamp::now().as_millisecond()))?;
                }
                self.show(|view| {
                    view.progress = FollowProgress::default();
                    view.applied += 1;
                    view.written_bytes += report.written_bytes;
                    view.last_apply = Some(begun.elapsed());
                    (view.state, view.holds, view.applying) = (FollowerState::Following, Some(point.clone()), None);
                });
                tracing::debug!(follower = %self.entry.name, point = %point.id, bytes = report.written_bytes, "a follower holds a point");
                Ok(())
            }
            Err(trouble) => {
                self.show(|view| view.progress = FollowProgress::default());
                if let Trouble::Unread(_) = &trouble {
                    self.tried.failed(slot);
                }
                Err(trouble)
            }
        }
    }

    /// The target holds this point: it is let go, if that is what it is promoted to.
    fn release(&mut self, at: Slot) -> Result<(), Trouble> {
        self.target = None;
        let mut definition = lock(&self.entry.definition);
        // † The failover may be over since, or another one wants another point.
        let Some(promoted) = definition.promoted.filter(|promoted| promoted.point == at) else { return Ok(()) };
        let changed = Definition { promoted: Some(Promoted { released: true, ..promoted }), ..definition.clone() };
        let kept = self.entry.change(&self.receiver.state_dir, &mut definition, changed);
        if !kept.map_err(|error| Trouble::Words(error.to_string()))? {
            return Err(Trouble::Stopped);
        }
        // Its target is its host's: what it held stays no longer than policy says.
        self.receiver.followers.keep(&self.entry.name, BTreeSet::new());
        let in_doubt = self.holds.as_ref().is_some_and(|holds| holds.following.is_in_doubt());
        tracing::warn!(follower = %self.entry.name, target = %definition.target.display(), in_doubt, "the target of a follower was promoted");
        Ok(())
    }

    fn is_verify_due(&self) -> bool {
        let Some(holds) = &self.holds else { return false };
        if self.verify_wanted || holds.following.is_in_doubt() {
            return true;
        }
        is_verify_due([holds.verified_wall_ms, holds.filled_wall_ms], Timestamp::now().as_millisecond())
    }

    fn verify(&mut self, group: &GroupHandle, at: LedgerPosition) -> Result<(), Trouble> {
        let (receiver, entry) = (Arc::clone(&self.receiver), Arc::clone(&self.entry));
        let volume = lock(&entry.definition).volume.clone();
        let reader = match open_base(&receiver, group, &volume, at.slot) {
            Err(StoreError::NoSuchPoint { .. }) => return Ok(()), // the next one can be compared
            other => other.map_err(of_store)?,
        };
        self.show(|view| view.state = FollowerState::Verifying);
        let progress = |progress: FollowProgress| {
            lock(&entry.view).progress = progress;
            // † Whoever waits for a promotion does not wait for this.
            goes_on(&receiver, &entry) && lock(&entry.definition).promoted.is_none() && is_given(&receiver, group, &reader)
        };
        let now_ms = Timestamp::now().as_millisecond();
        let again = |slot: Slot| open_base(&receiver, group, &volume, slot);
        let compared = self.with_follower(None, |follower| follower.verify(&reader, &again, &progress));
        self.show(|view| view.progress = FollowProgress::default());
        compared?;
        self.verify_wanted = false;
        self.change_holds(|holds| holds.verified_wall_ms = Some(now_ms))?;
        self.show(|view| view.verified_wall_ms = Some(now_ms));
        tracing::info!(follower = %self.entry.name, point = at.slot.0, "all of a follower's target is what it should be");
        Ok(())
    }

    fn change_holds(&mut self, change: impl FnOnce(&mut Holds)) -> Result<(), Trouble> {
        let mut kept = Holds { version: FOLLOWER_VERSION, ..self.read_holds()?.clone() };
        change(&mut kept);
        let written = self.receiver.state_dir.remember_follower_holds(&self.entry.name, &kept);
        written.map_err(|error| Trouble::Words(error.to_string()))?;
        // † What is not durable is not known.
        self.holds = Some(kept);
        Ok(())
    }

    /// Does something with the target, which is opened for that if it is not open; what is known of it then is what was kept. `needs`: how
    /// large it must be.
    fn with_follower<T>(
        &mut self,
        needs: Option<u64>,
        work: impl FnOnce(&mut Follower<'_>) -> Result<T, StoreError>,
    ) -> Result<T, Trouble> {
        let holds = self.read_holds()?.clone();
        let following = holds.following.clone();
        let (path, volume, overwrite) = {
            let definition = lock(&self.entry.definition);
            (definition.target.clone(), definition.volume.clone(), definition.overwrite)
        };
        let opened = FileTarget::kept_open(&mut self.target, &path, volume.as_str(), needs, (&following, overwrite));
        // Where there is none, nothing holds anything.
        let target = opened.inspect_err(|_| lock(&self.entry.view).holds = None).map_err(of_store)?;
        let keeper = Keeper { state_dir: &self.receiver.state_dir, entry: &self.entry, holds };
        let mut follower = Follower::new(target, &keeper, following, THREADS);
        let done = work(&mut follower);
        let following = follower.following().clone();
        self.read_holds()?.following = following;
        done.map_err(of_store)
    }
}

fn goes_on(receiver: &Receiver, entry: &Entry) -> bool {
    !receiver.is_stopping() && !lock(&entry.definition).is_released() && {
        let orders = lock(&entry.orders);
        !orders.remove && !orders.heal
    }
}

/// Whether what is read may still be read here.
fn is_given(receiver: &Receiver, group: &GroupHandle, reader: &LazyPointReader) -> bool {
    reader.seal_mode().is_none_or(|mode| keys::is_given(&receiver.config(), group.names(), mode))
}

fn open_base(receiver: &Receiver, group: &GroupHandle, volume: &Name, point: Slot) -> Result<LazyPointReader, StoreError> {
    let asked = ask_group(receiver, group, |reply| Mail::FollowBase { volume: volume.clone(), point, reply });
    let reader = asked.map_err(|error| match error {
        FollowError::Store(error) => error,
        FollowError::Away(_) | FollowError::NoKey(_) => StoreError::Stopped,
    })?;
    reader.unlocked(&receiver.keys.of(&receiver.config(), group.names()))
}

fn trouble(error: FollowError) -> Trouble {
    match error {
        FollowError::Away(words) | FollowError::NoKey(words) => Trouble::Words(words),
        FollowError::Store(error) => of_store(error),
    }
}

fn of_store(error: StoreError) -> Trouble {
    match error {
        StoreError::Stopped => Trouble::Stopped,
        StoreError::TargetDiverged { why, .. } => Trouble::Diverged(why),
        StoreError::Corrupt { .. } | StoreError::Incomplete { .. } | StoreError::Degraded { .. } => {
            Trouble::Unread(error.to_string())
        }
        other => Trouble::Words(keys::words(&other)),
    }
}
