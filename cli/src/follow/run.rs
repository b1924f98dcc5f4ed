//! Bringing a target from point to point of a store.
//!
//! ```text
//! wake the group: which point? ──► there: let it rest, wait ──► wake it again
//!        │                           └── all of it is compared now and then
//!        └──► on the way ──► the target holds it
//! ```
//!
//! Invariants: the group is awake, and so keeps what is deleted at the store waiting, only while something is read from it; nothing is written to the
//! target after it was said that this is to end. A point that is given up, or merged, on the way there is no trouble: the next one is gone to,
//! from whatever the target holds by then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use farside_blockio::process::Priority;
use farside_control::source::LastPoint;
use farside_objects::Location;
use farside_region::{LedgerPosition, Slot, VolumeId};
use farside_store::{
    FileTarget, FollowLook, FollowProgress, FollowStage, Follower, GroupReader, Next, PointFilter, RestingGroup, StoreError,
    Tried, find_points, is_verify_due,
};
use jiff::Timestamp;

use super::kept::Kept;
use super::{Event, Order, Says, Stop};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::store;

/// When what failed is tried again: doubled each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the ledger is read from its newest checkpoint on, and not from where it was left.
const LOOKED_THROUGH_EVERY: Duration = Duration::from_secs(600);
/// Threads that read the store and write the target; where requests take their time, up to as many.
const THREADS: (usize, usize) = (2, 16);
/// Of a way that is shorter than this, in regions, nobody hears how far it is.
const SHORT: u64 = 64;
/// What lies in the directory of every store.
const DESCRIPTION: &str = "farside-store.json";
/// So often in a row a point may be taken away while it is read, before that is said.
const TAKEN_MAX: u32 = 5;

/// A target that follows.
pub(super) struct Run {
    order: Order,
    kept: Kept,
    says: Says,
    stop: Arc<Stop>,
    target: Option<FileTarget>,
    group: Option<(RestingGroup, VolumeId)>,
    looked_through: Instant,
    tried: Tried,
    /// A person wants all of it to be compared.
    verify_wanted: bool,
    /// A person has given up what is in it, whatever that is.
    heal_wanted: bool,
    /// It was said what the target holds.
    is_said: bool,
    is_unkept_said: bool,
}

/// How a turn ended.
enum Turn {
    /// The target holds what it should.
    There,
    /// By now; there may be a newer one.
    Arrived,
    /// There is no point for it, in words.
    Nothing(String),
}

/// Why it ended without one.
enum Trouble {
    /// It is to end.
    Stopped,
    /// What was read was taken away meanwhile: the ledger says by what.
    Taken(Failure),
    /// It is tried again.
    Later(Failure),
    /// Only a person can help.
    Over(Failure),
}

type Tri<T> = Result<T, Trouble>;

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Later(failure)
    }
}

impl Run {
    pub(super) fn new(order: Order, kept: Kept, says: Says, stop: Arc<Stop>) -> Self {
        Self {
            order,
            kept,
            says,
            stop,
            target: None,
            group: None,
            looked_through: Instant::now(),
            tried: Tried::default(),
            verify_wanted: false,
            heal_wanted: false,
            is_said: false,
            is_unkept_said: false,
        }
    }

    /// Until it is told to end, or cannot go on.
    pub(super) fn run(mut self, heal: bool, verify: bool) -> Result<(), Failure> {
        self.verify_wanted = verify;
        if !self.order.once {
            let _ = Priority::Background.set(); // where it is refused, all threads are equal
        }
        self.heal_wanted = heal && self.kept.is_begun();
        let (mut again, mut taken) = (AGAIN.0, 0);
        while !self.stop.is_asked() {
            let trouble = match self.turn() {
                Ok(turn) => {
                    (again, taken) = (AGAIN.0, 0);
                    match turn {
                        Turn::There | Turn::Arrived if self.order.once => return Ok(()),
                        Turn::Nothing(why) if self.order.once => {
                            return Err(Failure::new(
                                Exit::NotFound,
                                why,
                                "see which there are: farside point list VOLUME --store STORE",
                            ));
                        }
                        Turn::Nothing(why) => self.says.say(&Event::Waits { why: &why, what_to_do: "" })?,
                        Turn::There => {}
                        Turn::Arrived => continue,
                    }
                    self.stop.wait(self.order.every);
                    continue;
                }
                Err(trouble) => trouble,
            };
            // The next turn opens all anew: it may be another one by then.
            self.group = None;
            match trouble {
                Trouble::Taken(_) if taken < TAKEN_MAX => taken += 1,
                // † A store that was never there is a mistake, and one that was is away.
                Trouble::Later(failure) | Trouble::Taken(failure) if !self.order.once && self.kept.is_begun() => {
                    self.target = None;
                    self.says.say(&Event::Waits { why: &failure.message, what_to_do: &failure.what_to_do })?;
                    self.stop.wait(again);
                    again = (again * 2).min(AGAIN.1);
                }
                trouble => return self.ends(trouble),
            }
        }
        self.ends(Trouble::Stopped)
    }

    /// What that is for who started it.
    fn ends(&self, trouble: Trouble) -> Result<(), Failure> {
        match trouble {
            Trouble::Stopped if self.order.once => {
                let what = "the same command goes on from here";
                Err(Failure::new(Exit::Failed, "it was ended before the target held a point", what))
            }
            Trouble::Stopped => Ok(()),
            Trouble::Taken(failure) | Trouble::Later(failure) | Trouble::Over(failure) => Err(failure),
        }
    }

    /// One way to a point, or a look whether there is one.
    fn turn(&mut self) -> Tri<Turn> {
        if matches!(self.kept.following().stage, FollowStage::Diverged { .. }) && !self.heal_wanted {
            return Err(Trouble::Over(self.diverged()));
        }
        let (group, volume) = self.wake()?;
        group.refuse_to_go_back(&self.kept.following().stage).map_err(|torn| Trouble::Later(torn.into()))?;
        if self.heal_wanted {
            self.with_follower(None, |follower| follower.heal())?;
            self.heal_wanted = false;
        }
        let turn = self.turn_in(&group, volume)?;
        let torn = group.torn().map(|torn| Failure::from(torn.error(group.names())));
        self.group = Some((group.rest(), volume));
        match (torn, &turn) {
            // What is before it was taken all the same.
            (Some(torn), Turn::There | Turn::Nothing(_)) => Err(Trouble::Later(torn)),
            (Some(torn), Turn::Arrived) if self.order.once => Err(Trouble::Later(torn)),
            _ => Ok(turn),
        }
    }

    fn turn_in(&mut self, group: &GroupReader, volume: VolumeId) -> Tri<Turn> {
        let stage = self.kept.following().stage.clone();
        let next = group.next_way(volume, self.order.wanted, &self.tried, &stage).map_err(|error| self.trouble(error))?;
        let look = match next {
            Next::Nothing(why) => return Ok(Turn::Nothing(why)),
            Next::There(at) => {
                self.look_at_target(group, volume, at)?;
                let is_unsaid = !self.is_said || self.says.is_waiting();
                let shown = shown(group, volume, at.slot);
                self.settle(group, volume, (at, &shown), is_unsaid.then_some((0, Duration::ZERO)))?;
                return Ok(Turn::There);
            }
            Next::Way(look) => look,
        };
        let shown = shown(group, volume, look.point().slot);
        if !self.is_unkept_said {
            store::say_if_unkept(look.reader());
            self.is_unkept_said = look.reader().unkept().is_some();
        }
        let filling = matches!(stage, FollowStage::Unknown | FollowStage::Applying { between: None, .. });
        let done = self.advance(group, volume, &look)?;
        if filling {
            self.kept.filled(Timestamp::now().as_millisecond())?;
        }
        self.settle(group, volume, (look.point(), &shown), Some(done))?;
        Ok(Turn::Arrived)
    }

    /// Says what the target holds, and compares all of it if that is due. `done`: what was written for that, and how long it took, if it is to be said.
    ///
    /// † Of what is in doubt it is said only after that: somebody may have written beside an apply that a death cut short.
    fn settle(
        &mut self,
        group: &GroupReader,
        volume: VolumeId,
        (at, shown): (LedgerPosition, &LastPoint),
        done: Option<(u64, Duration)>,
    ) -> Tri<()> {
        let was_in_doubt = self.kept.following().is_in_doubt();
        if let Some(done) = done.filter(|_| !was_in_doubt) {
            self.say_held(shown, done)?;
        }
        self.verify_if_due(group, volume, (at, shown))?;
        match (was_in_doubt, self.kept.following().is_in_doubt()) {
            (true, false) => self.say_held(shown, done.unwrap_or_default()),
            // Asked for, or in doubt, and not done.
            (_, is_in_doubt) if self.order.once && (is_in_doubt || self.verify_wanted) => {
                let what = "the same command compares it with a newer one";
                Err(Trouble::Later(Failure::new(
                    Exit::Failed,
                    "the point went before all of the target was compared with it",
                    what,
                )))
            }
            _ => Ok(()),
        }
    }

    /// The group as it is now.
    fn wake(&mut self) -> Tri<(GroupReader, VolumeId)> {
        if let Some((resting, volume)) = self.group.take() {
            let thorough = self.looked_through.elapsed() >= LOOKED_THROUGH_EVERY;
            if thorough {
                self.looked_through = Instant::now();
            }
            return resting.wake(thorough).map(|group| (group, volume)).map_err(|error| self.trouble(error));
        }
        self.looked_through = Instant::now();
        // Which keys, credentials and names are wrong does not change by waiting.
        let of_opening = |failure: Failure| match failure.exit {
            Exit::Refused | Exit::Usage => Trouble::Over(failure),
            _ => Trouble::Later(failure),
        };
        if let Some(away) = self.away().filter(|_| self.kept.is_begun()) {
            return Err(Trouble::Later(away));
        }
        let opened = store::open_with(&self.order.location, self.order.key.as_ref()).map_err(of_opening)?;
        let (group, volume) = store::find_volume(&opened, &self.order.volume).map_err(of_opening)?;
        group.unlock(volume).map_err(|error| self.trouble(error))?;
        let name = group.state().volume(volume).map(|volume| volume.meta().name.to_string()).unwrap_or_default();
        let name = format!("{}/{name}", group.names());
        if !self.kept.is_begun() {
            // What can be refused is, before anything is noted.
            self.with_follower(None, |_| Ok(()))?;
        }
        self.kept.begin(&HEXLOWER.encode(&opened.id()), &name).map_err(of_opening)?;
        // It is looked for there and nowhere else from here on.
        if let Ok(address) = name.parse() {
            self.order.volume = address;
        }
        Ok((group, volume))
    }

    /// Whether the target is still what it was left as: all that tells of strangers, where it was opened anew.
    fn look_at_target(&mut self, group: &GroupReader, volume: VolumeId, at: LedgerPosition) -> Tri<()> {
        if self.target.as_ref().is_some_and(FileTarget::is_in_place) {
            return Ok(());
        }
        match group.held_point(at.slot, volume).map_err(|error| self.trouble(error))? {
            None => self.with_follower(None, |follower| follower.recognise()),
            Some(reader) => {
                let stop = Arc::clone(&self.stop);
                let heard = Heard::new(&stop, true, self.says.json);
                self.with_follower(None, |follower| {
                    follower.inspect(&reader, &|slot| group.base(slot, volume), &|progress| heard.hear(progress))
                })
            }
        }
    }

    /// Gives what was written, in bytes, and how long it took.
    fn advance(&mut self, group: &GroupReader, volume: VolumeId, look: &FollowLook) -> Tri<(u64, Duration)> {
        let begun = Instant::now();
        let needs = look.reader().geometry().volume_bytes();
        let base = |slot: Slot| group.base(slot, volume);
        let threads = look.reader().requests_at_once().unwrap_or_default().clamp(THREADS.0, THREADS.1);
        let stop = Arc::clone(&self.stop);
        let heard = Heard::new(&stop, look.regions() >= SHORT, self.says.json);
        let advanced = self
            .with_follower_of(threads, Some(needs), |follower| follower.advance(look, &base, &|progress| heard.hear(progress)));
        drop(heard);
        match advanced {
            Ok(report) => {
                self.tried.clear();
                Ok((report.written_bytes, begun.elapsed()))
            }
            Err((trouble, is_unread)) => {
                if is_unread {
                    self.tried.failed(look.point().slot);
                }
                Err(trouble)
            }
        }
    }

    fn say_held(&mut self, point: &LastPoint, (written_bytes, took): (u64, Duration)) -> Tri<()> {
        self.is_said = true;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let (volume, to) = (&self.order.volume.to_string(), &*self.order.to);
        self.says.say(&Event::Holds { volume, to, point, written_bytes, took_ms }).map_err(Trouble::Over)
    }

    /// Compares all of the target with the point that it holds, if that is due.
    fn verify_if_due(&mut self, group: &GroupReader, volume: VolumeId, (at, shown): (LedgerPosition, &LastPoint)) -> Tri<()> {
        let now_ms = Timestamp::now().as_millisecond();
        let is_doubted = self.verify_wanted || self.kept.following().is_in_doubt();
        if !is_doubted && !is_verify_due(self.kept.was_whole_ms(), now_ms) {
            return Ok(());
        }
        let Some(reader) = group.held_point(at.slot, volume).map_err(|error| self.trouble(error))? else {
            return Ok(()); // the next one can be compared
        };
        let stop = Arc::clone(&self.stop);
        let heard = Heard::new(&stop, true, self.says.json);
        self.with_follower(None, |follower| {
            follower.verify(&reader, &|slot| group.base(slot, volume), &|progress| heard.hear(progress))
        })?;
        drop(heard);
        self.verify_wanted = false;
        self.kept.verified(now_ms)?;
        let (volume, to) = (&self.order.volume.to_string(), &*self.order.to);
        if self.order.once && self.says.json {
            return Ok(()); // one answer
        }
        self.says.say(&Event::Verified { volume, to, point: shown }).map_err(Trouble::Over)
    }

    fn with_follower<T>(&mut self, needs: Option<u64>, work: impl FnOnce(&mut Follower<'_>) -> Result<T, StoreError>) -> Tri<T> {
        self.with_follower_of(THREADS.0, needs, work).map_err(|(trouble, _)| trouble)
    }

    /// Does something with the target, which is opened for that if it is not open. What went wrong comes with whether the point could not be read.
    fn with_follower_of<T>(
        &mut self,
        threads: usize,
        needs: Option<u64>,
        work: impl FnOnce(&mut Follower<'_>) -> Result<T, StoreError>,
    ) -> Result<T, (Trouble, bool)> {
        let following = self.kept.following().clone();
        // † Once it was begun, nothing is made in its place: its file system may not be mounted, its device may be away.
        let is_gone = || std::fs::metadata(&self.order.to).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if self.kept.is_begun() && is_gone() {
            self.target = None;
            let message = format!("{} is not there just now", self.order.to.display());
            let what =
                format!("bring it back: then this goes on by itself; or to begin anew, remove {}", self.kept.dir().display());
            return Err((Trouble::Later(Failure::new(Exit::NotFound, message, what)), false));
        }
        let opened = FileTarget::kept_open(
            &mut self.target,
            &self.order.to,
            self.order.volume.name(),
            needs,
            (&following, self.order.overwrite),
        );
        let done = opened.map(|target| {
            let keeper = self.kept.keeper();
            let mut follower = Follower::new(target, &keeper, following, threads);
            let done = work(&mut follower);
            (done, follower.following().clone())
        });
        let done = match done {
            Ok((done, following)) => {
                self.kept.is(following);
                done
            }
            Err(error) => Err(error),
        };
        done.map_err(|error| {
            let is_unread = error.is_unread();
            (self.trouble(error), is_unread)
        })
    }

    fn trouble(&self, error: StoreError) -> Trouble {
        let what_to_do = match &error {
            StoreError::Stopped => return Trouble::Stopped,
            StoreError::TargetDiverged { .. } => return Trouble::Over(self.diverged()),
            taken if taken.is_taken() => return Trouble::Taken(error.into()),
            StoreError::TargetNotEmpty { path } => {
                let message = format!("{} is not empty", path.display());
                return Trouble::Over(Failure::new(Exit::Refused, message, "say --overwrite if what it holds may be lost"));
            }
            StoreError::TargetTooSmall { .. } => "give it a larger one, or make it larger: then the same command goes on",
            StoreError::TargetOfAnotherHistory { .. } => "then say the same with --heal",
            StoreError::TargetUnsuitable { .. } if self.kept.is_begun() => {
                let what = format!("to begin anew with what is there now, remove {}", self.kept.dir().display());
                return Trouble::Over(Failure { what_to_do: what, ..error.into() });
            }
            // Whoever only looks at it is soon done.
            StoreError::TargetBusy { .. } if self.kept.is_begun() && !self.order.once => {
                return Trouble::Later(Failure {
                    what_to_do: "end what uses it: then this goes on by itself".to_owned(),
                    ..error.into()
                });
            }
            StoreError::TargetBusy { .. } => "end what uses it first",
            StoreError::TargetUnsuitable { .. }
            | StoreError::KeyNeeded { .. }
            | StoreError::BadKey { .. }
            | StoreError::Version { .. } => "",
            StoreError::Degraded { .. } => {
                return Trouble::Later(Failure { what_to_do: "the next point may be whole".to_owned(), ..error.into() });
            }
            _ => return Trouble::Later(self.away().unwrap_or_else(|| error.into())),
        };
        let failure = Failure::from(error);
        let exit = if failure.exit == Exit::Failed { Exit::Refused } else { failure.exit };
        let what_to_do = if what_to_do.is_empty() { failure.what_to_do } else { what_to_do.to_owned() };
        Trouble::Over(Failure { exit, what_to_do, ..failure })
    }

    /// Where a directory was mounted that held the store there is none.
    fn away(&self) -> Option<Failure> {
        let Location::Dir(path) = &self.order.location else { return None };
        let is_there = path.join(DESCRIPTION).exists();
        let message = format!("there is no store in {} just now", path.display());
        (!is_there).then(|| Failure::new(Exit::NotFound, message, "mount it again: then this goes on by itself"))
    }

    /// Somebody else wrote to the target.
    fn diverged(&self) -> Failure {
        let to = self.order.to.display();
        let (mut message, mut named) = (format!("{to} is not what it should be"), String::new());
        if let FollowStage::Diverged { why, regions, .. } = &self.kept.following().stage {
            message = format!("{message}: {why}");
            let regions: Vec<String> = regions.iter().map(ToString::to_string).collect();
            if !regions.is_empty() {
                named = format!(" It differs in regions {} (of 4 MiB), the first ones.", regions.join(", "));
            }
        }
        let what = "look at it first (losetup -r, mount -o ro,noload); then the same command with --heal overwrites what differs";
        Failure::new(Exit::Damaged, format!("{message}. Nothing more is written to it.{named}"), what)
    }
}

/// Hears how far something is, and says whether it may go on.
struct Heard<'h> {
    stop: &'h Stop,
    progress: Option<Progress>,
}

impl<'h> Heard<'h> {
    fn new(stop: &'h Stop, is_long: bool, json: bool) -> Self {
        Self { stop, progress: is_long.then(|| Progress::new(json)) }
    }

    fn hear(&self, now: FollowProgress) -> bool {
        if let Some(progress) = &self.progress {
            progress.set_regions(now.done, now.of);
        }
        !self.stop.is_asked()
    }
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.finish();
        }
    }
}

/// A point that is in the ledger, as people see it.
fn shown(group: &GroupReader, volume: VolumeId, slot: Slot) -> LastPoint {
    let filter = PointFilter { volume: Some(volume), ..PointFilter::default() };
    let found = find_points(group.state(), &filter, Some(slot.next()), 1);
    let point = farside_receiver::point_of(group.names(), found.points.first().expect("it was found there"));
    LastPoint { id: point.id, cut_wall: point.cut_wall }
}
