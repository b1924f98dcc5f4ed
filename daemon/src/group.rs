//! The control thread of a consistency group: owns the [`Source`] state machine, the switcher and the coolers, and carries out
//! what they ask for.
//!
//! It decides nothing about replication: events go in, actions come out, in order. Everything that other threads have to say
//! comes as a [`Note`] through one inbox, so that there is one owner and no lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_ledger::{CutTime, LayerKind};
use farside_region::{EpochId, Name, RegionSet, VolumeId};
use farside_replication::source::{Action, DemoteCause, Event, Limits, Report, Sample, Source, Tick};
use farside_shim::{CoolStep, Cooler, Kind, Switcher, Tracking};
use farside_wire::{PointAnswer, PointQuery, ReceiverMessage, RequestId, SourceMessage};
use tokio::sync::{oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::channel::{Nothing, Receiver, Sender, channel};
use crate::compare::{Compares, Heat};
use crate::config::{GroupConfig, VolumeConfig};
use crate::growth::Growth;
use crate::intent_file::IntentFileError;
use crate::keys::GroupKeys;
use crate::link::Link;
use crate::loss::{self, KeptBy, Loss, LossNote, Marking};
use crate::sender::{Order, Report as SenderReport};
use crate::state_dir::{Mark, StateDir};
use crate::tally::Tally;
use crate::volume::{IntentOrder, Served, Surroundings};
use crate::watch::{Bypass, Noticed, Sight};
use closing::Away;
pub(crate) use closing::{Ending, Opening};
use cohort::Cohort;
pub(crate) use notes::{Ask, Leaving, Left, Note, TakenBack};
use quiet::Quiet;
pub(crate) use quiet::Taken;

mod closing;
mod cohort;
mod notes;
mod quiet;
mod switch;

/// How often regions are offered for cooling, at most.
const COOL_EVERY: Duration = Duration::from_secs(5);
const TICK_MAX: Duration = Duration::from_millis(250);
/// How often it is said that a tap is lost, and how often what could not be kept is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// While something must be polled.
const POLL: Duration = Duration::from_millis(1);
/// And so long for the last host I/O of a planned stop.
const TAPS_WAIT: Duration = Duration::from_secs(20);
/// And for what a verify found to be noted.
const BITS_WAIT: Duration = Duration::from_secs(2);
/// A stop takes no longer, whatever does not answer, unless `stop_wait_seconds` is more than the first two.
pub(crate) const STOP_MAX: Duration = TAPS_WAIT.saturating_add(BITS_WAIT).saturating_add(closing::AT_LAST_MAX);

/// How a group stopped, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stopped {
    /// Every volume: the next start goes on at once.
    Clean,
    /// Some volume: the next start compares what was hot.
    Unclean,
    /// Some volume lost track of changes, and nothing keeps that over a reboot.
    LossUnkept,
}

/// The way into a control thread.
#[derive(Clone, Debug)]
pub(crate) struct Inbox(Sender<Note>);

impl Inbox {
    #[cfg(test)]
    pub(crate) fn pair() -> (Self, Receiver<Note>) {
        let (sender, notes) = channel();
        (Self(sender), notes)
    }

    pub(crate) fn send(&self, note: Note) {
        let _ = self.0.send(note); // the control thread outlives whoever reports to it
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// To be called before the map of a volume loses the word `clean`: a stop answers for that from here on.
    ///
    /// # Errors
    /// When the group has stopped, and has said how.
    pub(crate) fn attaches(&self, volume: Opening) -> Result<(), IntentFileError> {
        let (heard, is_heard) = channel();
        self.send(Note::Attaches(volume, heard));
        is_heard.recv().map_err(|_| IntentFileError::Stopping)
    }
}

/// A running group.
pub(crate) struct GroupHandle {
    pub(crate) inbox: Inbox,
    pub(crate) link: tokio::task::JoinHandle<()>,
    pub(crate) thread: std::thread::JoinHandle<()>,
    pub(crate) heartbeat: Arc<std::sync::atomic::AtomicU64>,
}

impl GroupHandle {
    /// Stops it in order. Waits for that.
    pub(crate) fn stop(self, configured: usize, patience: Option<Duration>) -> Ending {
        let ending = stop(&self.inbox, configured, patience);
        self.end();
        ending
    }

    /// After it has stopped.
    pub(crate) fn end(self) {
        self.link.abort();
        let _ = self.thread.join();
    }
}

/// Has a group stop in order; it can be asked meanwhile. Waits for that.
pub(crate) fn stop(inbox: &Inbox, configured: usize, patience: Option<Duration>) -> Ending {
    let (answer, answered) = channel();
    inbox.send(Note::Ask(Ask::Stop { configured, patience, answer }));
    answered.recv().unwrap_or(Ending::UNKNOWN)
}

/// Everything that a group is started with.
pub(crate) struct GroupStart {
    pub(crate) name: Name,
    pub(crate) config: GroupConfig,
    pub(crate) around: Surroundings,
    pub(crate) state: Arc<StateDir>,
    pub(crate) dial: Arc<dyn farside_transport::Dial>,
    pub(crate) instance: farside_wire::InstanceId,
}

impl GroupStart {
    /// Starts link and control thread; the group has no volumes yet.
    pub(crate) fn start(mut self) -> anyhow::Result<GroupHandle> {
        self.around.pacer = Arc::new(farside_transport::Pacer::within(&self.around.pacer));
        self.around.pacer.set(self.config.rate.bytes_per_s());
        self.around.keys =
            GroupKeys::start(self.state.path(), &self.name, self.config.encryption.clone(), self.config.stand_in_for.clone())?;
        let (sender, notes) = channel();
        let inbox = Inbox(sender);
        let (link, connector) =
            crate::link::start(&self.around.links, self.dial.clone(), self.around.pacer.clone(), inbox.clone());
        let heartbeat = Arc::new(std::sync::atomic::AtomicU64::new(monotonic_ns()));
        let cut_bytes_min = u64::from(self.around.limits.side_buffer_mib) << 19; // half the side buffer
        let limits = Limits {
            epoch_interval: self.config.epoch_interval.as_nanos() as u64,
            cut_bytes_min,
            cut_bytes_max: Limits::default().cut_bytes_max.max(cut_bytes_min),
            part_bytes: part_bytes(self.around.limits.connections),
            ..Limits::default()
        };
        let source = Source::new(farside_replication::source::Config {
            source: self.around.source.clone(),
            group: self.name.clone(),
            stands_in: self.config.stand_in_for.is_some(),
            asks_for_key: self.config.encryption.is_none(),
            instance: self.instance,
            policy: policy(&self.config),
            policy_is_said: self.config.policy_is_said,
            boot: self.around.boot,
            layer_digest: farside_layer::layer_digest,
            limits,
        });
        let shim_limits = farside_shim::Limits {
            side_buffer_bytes: (self.around.limits.side_buffer_mib as usize) << 20,
            ..farside_shim::Limits::DEFAULT
        };
        let shim = farside_shim::Group::new(&shim_limits, farside_region::Geometry::GRANULE_BYTES);
        let cool_after = Duration::from_secs(u64::from(self.around.limits.cool_after_seconds));
        let cool_every = cool_after.min(COOL_EVERY);
        let control = Control {
            name: self.name.clone(),
            config: self.config,
            around: self.around,
            state: self.state,
            inbox: inbox.clone(),
            notes,
            connector,
            switcher: Switcher::new(shim.clone()),
            shim,
            source,
            members: BTreeMap::new(),
            unkept: Vec::new(),
            away: Away::default(),
            quiet: Quiet::default(),
            cohort: Cohort::default(),
            dial: self.dial,
            instance: self.instance,
            link: None,
            key_answered: None,
            dialing: link.abort_handle(),
            actions: Vec::new(),
            cuts: HashMap::new(),
            points: HashMap::new(),
            point_requests: 0,
            next_tick: Instant::now(),
            next_cool: Instant::now() + cool_every,
            next_again: Instant::now(),
            cool_after,
            cool_every,
            stopping: false,
            hurries: false,
            published: 0,
            tally: Tally::new(),
            damaged: BTreeMap::new(),
            silent: None,
            heartbeat: heartbeat.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("group-{}", self.name.as_str().get(..8).unwrap_or(self.name.as_str())))
            .spawn(move || {
                control.run();
            })?;
        Ok(GroupHandle { inbox, link, thread, heartbeat })
    }
}

/// A volume of the group.
pub(crate) struct Member {
    pub(crate) served: Served,
    pub(crate) broken: Option<String>,
    /// Why its host has no tap.
    pub(crate) tap_lost: Option<String>,
    cooler: Cooler,
    /// Batches that wait for the cooler.
    cool: VecDeque<(RegionSet, RegionSet)>,
    flushing: bool,
    /// Bits that are being set.
    pub(crate) heats: Vec<Heat>,
    pub(crate) compares: Compares,
    pub(crate) loss: Loss,
    pub(crate) marking: Marking,
    /// Why that, or what it remembers, cannot be kept in its folder.
    pub(crate) unmarked: Option<String>,
    pub(crate) note: LossNote,
    /// What was frozen lately, and when.
    recent: VecDeque<(Instant, RegionSet)>,
    /// What bypasses the tap now.
    pub(crate) bypass: Option<Bypass>,
    pub(crate) sight: Sight,
    pub(crate) growth: Option<Growth>,
    /// Why everything is compared.
    pub(crate) doubt: Option<String>,
    leaving: Option<(Farewell, oneshot::Sender<anyhow::Result<Left>>)>,
    tap_stopped: bool,
}

/// Ends the device of a volume that could not be added, and removes its folder: by that one the next start finds a device that stays.
fn leave_nothing(dir: &Path, id: VolumeId, name: &Name, runtime_dir: &Path) {
    let ended = crate::tap::end(dir, id, name, runtime_dir);
    let result = match &ended {
        // And its group's, where that has no other.
        Ok(()) => std::fs::remove_dir_all(dir).map(|()| drop(dir.parent().map(std::fs::remove_dir))).map_err(Into::into),
        // Whoever adds it again must not believe what was begun here.
        Err(_) => Mark::TrackingLost.put(dir, true).map_err(anyhow::Error::from),
    };
    if let Err(error) = ended {
        warn!(volume = %name, "its device stays until the next start of farsided: {error:#}");
    }
    if let Err(error) = result {
        warn!(dir = %dir.display(), "what a volume that is not served left cannot be dealt with: {error:#}");
    }
}

/// What becomes of the folder of a volume that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    Removed,
    /// It is left for who opens it again.
    OpenedAgain,
    /// In a moment, by this process, over a larger backing; whoever uses its device waits.
    OpenedLarger,
    /// It is left for the next start, which finds by it the device that could not be taken away.
    DeviceStays,
}

impl Farewell {
    /// By this process.
    fn is_to_return(self) -> bool {
        match self {
            Self::OpenedAgain | Self::OpenedLarger => true,
            Self::Removed | Self::DeviceStays => false,
        }
    }
}

impl Member {
    /// It is taken out, or closed, by us.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether its device is not served any more, and nobody here did that.
    pub(crate) fn has_lost_its_tap(&self) -> bool {
        // † What says so may still be on its way here.
        self.tap_lost.is_some() || self.served.tap_lost.get().is_some()
    }

    /// Why everything is to be compared of which nothing else knows: who opens the volume next must know it, too.
    fn remembers(&self) -> Option<&'static str> {
        // † Its disk shows what is on it, and whoever ended its device may have written there since.
        let untracked = "its device was ended by somebody else, and its disk was not tracked until it was served again";
        let unmarked = "what was to be compared was not marked before the volume was closed";
        let is_owed = !self.heats.is_empty() || matches!(self.loss, Loss::Owed { .. }) || self.sight.is_owed();
        self.has_lost_its_tap().then_some(untracked).or(is_owed.then_some(unmarked))
    }

    /// Has it kept, by a mark, for whoever opens the volume next. † A note is gone with the power, and after the volume is closed
    /// nobody is here who would say at a stop that there is no more than that.
    fn keep_what_it_remembers(&mut self) -> anyhow::Result<()> {
        let Some(why) = self.remembers() else { return Ok(()) };
        let kept = loss::keep(&self.served.dir, &self.note, why).and_then(|kept| match kept {
            KeptBy::Mark => Ok(()),
            KeptBy::Note(unmarked) => Err(anyhow::anyhow!("that everything must be compared cannot be kept: {unmarked}")),
        });
        self.unmarked = kept.as_ref().err().map(|error| format!("{error:#}"));
        kept
    }

    /// Whether the receiver's ledger keeps that everything must be compared. † Whatever the reason: until every bit is set its header
    /// lies below that record.
    fn is_on_record(&self) -> bool {
        self.loss == Loss::AtReceiver && self.heats.iter().any(|heat| matches!(heat, Heat::All))
    }

    /// Whether it may be called clean, once its tap has stopped. A flush that was never answered may have failed (T14); what is not
    /// durable may not be called clean.
    fn is_trusted(&self) -> bool {
        self.tap_stopped
            && self.loss == Loss::Kept
            && self.heats.is_empty()
            && !self.flushing
            && [Mark::TrackingLost, Mark::Leaving].iter().all(|mark| mark.is_set(&self.served.dir).is_ok_and(|set| !set))
    }
}

pub(crate) struct Control {
    pub(crate) name: Name,
    pub(crate) config: GroupConfig,
    pub(crate) around: Surroundings,
    state: Arc<StateDir>,
    inbox: Inbox,
    notes: Receiver<Note>,
    pub(crate) connector: watch::Receiver<farside_transport::ConnectorState>,
    /// What connects, for ever.
    dialing: tokio::task::AbortHandle,
    /// The newest connection on which the gateway said whether the group is to be encrypted at rest.
    key_answered: Option<u64>,
    pub(crate) shim: Arc<farside_shim::Group>,
    switcher: Switcher,
    pub(crate) source: Source,
    pub(crate) members: BTreeMap<VolumeId, Member>,
    /// Those that have left and are not closed before what they remember is kept. A stop knows of them.
    unkept: Vec<Member>,
    away: Away,
    quiet: Quiet,
    cohort: Cohort,
    dial: Arc<dyn farside_transport::Dial>,
    instance: farside_wire::InstanceId,
    pub(crate) link: Option<Link>,
    actions: Vec<Action>,
    /// Cuts being read: who has not been read to the end.
    pub(crate) cuts: HashMap<EpochId, BTreeSet<VolumeId>>,
    points: HashMap<RequestId, oneshot::Sender<anyhow::Result<PointAnswer>>>,
    point_requests: u64,
    next_tick: Instant,
    next_cool: Instant,
    next_again: Instant,
    cool_every: Duration,
    /// A region is offered for cooling when nothing of it was frozen for so long.
    cool_after: Duration,
    pub(crate) stopping: bool,
    /// A stop waits no more for what is not published.
    hurries: bool,
    pub(crate) published: u64,
    pub(crate) tally: Tally,
    /// Segments in the store that are damaged or missing, as the receiver of this connection last said.
    pub(crate) damaged: BTreeMap<VolumeId, u32>,
    /// The receiver says nothing, for so long: it may be gone.
    pub(crate) silent: Option<Duration>,
    heartbeat: Arc<std::sync::atomic::AtomicU64>,
}

impl Control {
    fn run(mut self) {
        loop {
            let wait = if self.must_poll() { POLL } else { self.next_tick.saturating_duration_since(Instant::now()) };
            match self.notes.recv_timeout(wait) {
                Ok(Note::Ask(Ask::Stop { configured, patience, answer })) => {
                    let ending = self.stop(configured, patience);
                    let _ = answer.send(ending);
                    return;
                }
                Ok(note) => self.hear(note),
                Err(Nothing::Yet) => {}
                Err(Nothing::Ever) => return,
            }
            self.routine();
        }
    }

    /// What is due whether or not anything was heard.
    fn routine(&mut self) {
        self.heartbeat.store(monotonic_ns(), std::sync::atomic::Ordering::Relaxed);
        if self.switcher.is_busy() {
            let early = self.switcher.poll();
            assert!(early.is_none(), "a switch is polled to its end where it begins");
        }
        let ids: Vec<VolumeId> = self.members.keys().copied().collect();
        for id in ids {
            self.pump_cooler(id);
            self.pump_heating(id);
        }
        let now = Instant::now();
        if now >= self.next_tick {
            self.next_tick = now + (self.config.epoch_interval / 4).clamp(Duration::from_millis(10), TICK_MAX);
            self.tick();
        }
        if now >= self.next_cool {
            self.next_cool = now + self.cool_every;
            self.offer_cooling(now);
        }
        self.look_after_wishes(now);
        self.look_after_cohort(now);
        if now >= self.next_again {
            self.next_again = now + AGAIN;
            self.remind_of_lost_taps();
            std::mem::take(&mut self.unkept).into_iter().for_each(|member| self.close(member));
        }
    }

    fn must_poll(&self) -> bool {
        self.switcher.is_busy()
    }

    /// One event through the state machine, and all that follows from it.
    pub(crate) fn step(&mut self, event: Event) {
        self.feed(event);
        self.carry_out();
    }

    /// One event through the state machine; what follows from it waits for [`Control::carry_out`].
    fn feed(&mut self, event: Event) {
        self.source.step(monotonic_ns(), event, &mut self.actions);
    }

    fn carry_out(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.act(action);
            }
        }
    }

    fn hear(&mut self, note: Note) {
        match note {
            Note::Shim(id) => self.shim_events(id),
            Note::HeaderDurable { volume, confirmed, position } => {
                self.step(Event::HeaderDurable { volume, confirmed, position })
            }
            Note::Sender(id, report) => self.sender_report(id, report),
            Note::Flushed(id, ok) => {
                if let Some(member) = self.members.get_mut(&id).filter(|m| m.flushing) {
                    member.flushing = false;
                    if ok { member.cooler.flush_end(true) } else { member.cooler.flush_failed() }
                }
            }
            Note::MapFailed(id) => self.tracking_lost(id),
            Note::MapMended(id) => self.pump_heating(id),
            Note::MapStillFails(id, why) => self.answer_resyncs(id, |name| {
                Err(anyhow::anyhow!("the intent map of {name} still cannot be written: {why}; it is tried again by itself"))
            }),
            Note::TapStopped(id) => self.tap_stopped(id),
            Note::TapLost(id, why) => self.tap_lost(id, why),
            Note::SenderEnded(id, why) => {
                self.with(id, |m| m.broken = Some(format!("nothing of it is replicated any more: {why}")));
                self.step(Event::ReaderLost { volume: id });
            }
            Note::Attaches(volume, heard) => {
                self.away.attaches(volume);
                let _ = heard.send(()); // it waits for that
            }
            Note::Connected(link) => {
                if let Some(why) = self.why_not_sent() {
                    return self.hang_up(&link, &why, self.around.keys.is_asked());
                }
                let connection = link.number;
                self.tally.connected();
                self.link = Some(link);
                let wrapped = self.around.keys.wrapped();
                self.step(Event::SetWrappedKeys { wrapped });
                self.step(Event::Connected { connection });
            }
            Note::Disconnected(connection, how) => {
                if let Some(link) = self.link.take_if(|link| link.number == connection) {
                    self.tally.disconnected(link.connection.statistics());
                }
                self.disconnected(connection, how);
            }
            Note::Message(connection, message) => match *message {
                ReceiverMessage::Points(answer) => {
                    if let Some(reply) = self.points.remove(&answer.id) {
                        let _ = reply.send(Ok(answer));
                    }
                }
                ReceiverMessage::GroupKey(answer) => self.key_given(connection, answer.0.as_ref()),
                ReceiverMessage::Damage(damage) => {
                    self.damaged = damage.volumes.iter().map(|damaged| (damaged.volume, damaged.segments)).collect();
                }
                _ => self.step(Event::Message { connection, message }),
            },
            Note::Quiesced(attempt, result) => self.quiesced(attempt, result),
            Note::Resumed(epoch, result) => self.resumed(epoch, result),
            Note::LeftOver(why) => self.left_over(why),
            Note::CohortUp(number) => self.cohort_is_up(number),
            Note::CohortAsks(number, ask) => self.cohort_asks(number, ask),
            Note::CohortEnded(number, why) => self.cohort_ended(number, why),
            Note::Opened(opened, reply) => {
                let (served, setup) = *opened;
                if self.stopping {
                    std::thread::spawn(move || served.close());
                    let _ = reply.send(Err(anyhow::anyhow!("farsided is stopping")));
                } else {
                    self.add(served, setup);
                    let _ = reply.send(Ok(()));
                }
            }
            Note::Ask(ask) => self.answer(ask),
        }
    }

    fn disconnected(&mut self, connection: u64, how: farside_replication::source::Ended) {
        // What was read ahead is forgotten before the machine may order a part anew: orders keep their order.
        self.members.values().for_each(|m| m.served.send(Order::Forget));
        self.points.clear();
        self.damaged.clear();
        self.step(Event::Disconnected { connection, how });
    }

    /// The gateway answered whether it wants the group encrypted at rest.
    fn key_given(&mut self, connection: u64, key: Option<&[u8; 32]>) {
        let Some(link) = self.link.as_ref().filter(|link| link.number == connection) else { return };
        if let Err(why) = self.around.keys.give(key) {
            return self.hang_up(link, &why, false);
        }
        self.key_answered = Some(connection);
        self.say_seals();
    }

    /// What that makes of the volumes that are here.
    fn say_seals(&mut self) {
        let Some(connection) = self.key_answered else { return };
        let seals = self.around.keys.seals(self.members.keys().copied());
        self.step(Event::KeyAnswered { connection, seals });
    }

    /// What speaks against sending anything of this group, as far as keys go.
    pub(crate) fn why_not_sent(&self) -> Option<String> {
        self.around.keys.objection(self.members.values().map(|member| &member.served.meta))
    }

    /// It is tried again by itself, as after any end of a connection.
    fn hang_up(&self, link: &Link, why: &str, is_soon: bool) {
        match is_soon {
            true => info!(group = %self.name, "nothing is sent yet: {why}"),
            false => error!(group = %self.name, "nothing is sent: {why}"),
        }
        link.connection.close(farside_transport::CloseCode::Done, "the host has not the key that it takes, or another one");
    }

    fn shim_events(&mut self, id: VolumeId) {
        let Some(member) = self.members.get(&id) else { return };
        let events = member.served.volume.take_events();
        if let Some(epoch) = events.overflowed {
            self.demoted(epoch, DemoteCause::SideBuffer);
        }
        if events.flush_failed {
            let name = &self.members[&id].served.config.name;
            error!(volume = %name, "a flush of the backing failed: nothing that was written since the one before is surely durable");
            self.members[&id].served.intent(IntentOrder::FlushFailed);
            self.step(Event::FlushFailed { volume: id });
        }
        if events.tracking_lost {
            self.tracking_lost(id);
        }
    }

    pub(crate) fn demoted(&mut self, epoch: EpochId, why: DemoteCause) {
        self.switcher.demote(epoch);
        self.cuts.remove(&epoch);
        self.step(Event::Demoted { epoch, why });
    }

    fn sender_report(&mut self, id: VolumeId, report: SenderReport) {
        let current = self.link.as_ref().map(|l| l.number);
        match report {
            SenderReport::Read { connection, epoch, mut read } if Some(connection) == current => {
                read.cut_held = self.cut_held(id, epoch, read.done);
                self.step(Event::PartRead(read));
            }
            SenderReport::Aborted { connection, key, part } => self.step(Event::PartAborted { connection, key, part }),
            SenderReport::DigestsWanted { connection, key, part, run } => {
                self.step(Event::DigestsWanted { connection, key, part, run });
            }
            SenderReport::Verified(read) => self.step(Event::VerifyRead { volume: id, read }),
            SenderReport::Read { .. } => debug!("a part of a connection that is gone"),
        }
    }

    /// Whether what was just read was held by a cut. At the end of the last member the cut is concluded: after that it can no
    /// longer overflow, and may be announced as a point.
    fn cut_held(&mut self, id: VolumeId, epoch: EpochId, done: bool) -> bool {
        let Some(left) = self.cuts.get_mut(&epoch) else { return false };
        if done {
            left.remove(&id);
        }
        if !left.is_empty() {
            let held = self.switcher.is_cut(epoch);
            if !held {
                self.demoted(epoch, DemoteCause::SideBuffer);
            }
            return held;
        }
        // † What went past a tap was not held back by the cut.
        if !self.look_at_taps() {
            if self.cuts.contains_key(&epoch) {
                self.demoted(epoch, DemoteCause::Member);
            }
            return false;
        }
        let held = self.switcher.conclude(epoch) == Kind::Cut;
        if !held {
            self.demoted(epoch, DemoteCause::SideBuffer);
        }
        held
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { connection, message } => {
                if let Some(link) = self.link.as_ref().filter(|l| l.number == connection) {
                    match farside_wire::encode_payload(&*message) {
                        Ok(payload) => link.send(payload),
                        Err(error) => {
                            error!(group = %self.name, %error, "a message does not fit a frame");
                            link.connection.close(farside_transport::CloseCode::Internal, &error.to_string());
                        }
                    }
                }
            }
            Action::Disconnect { connection, why } => {
                if let Some(link) = self.link.as_ref().filter(|l| l.number == connection) {
                    warn!(group = %self.name, %why, "the connection is closed");
                    link.connection.close(crate::status::close_code(&why), &why.to_string());
                }
            }
            Action::WriteHeader { volume, confirmed, position } => {
                self.with(volume, |m| m.served.intent(IntentOrder::Header { confirmed, position }));
            }
            Action::Switch { kind, members } => self.switch(kind, members),
            Action::Demote { epoch, .. } => {
                self.switcher.demote(epoch);
                self.cuts.remove(&epoch);
            }
            Action::Release { epoch } => {
                self.cuts.remove(&epoch);
                self.switcher.release(epoch);
            }
            Action::ReadPart(order) => {
                let Some(link) = self.link.as_ref().filter(|l| l.number == order.connection) else { return };
                let connection = link.connection.clone();
                self.with(order.key.volume, |m| m.served.send(Order::Read(order, connection)));
            }
            Action::FinishPart { key, part } => self.with(key.volume, |m| m.served.send(Order::Finish(key, part))),
            Action::AbortPart { key, part } => self.with(key.volume, |m| m.served.send(Order::Abort(key, part))),
            Action::Digests { key, part, start, runs } => {
                self.with(key.volume, |m| m.served.send(Order::Digests(key, part, start, runs)));
            }
            Action::Cool { volume, regions, zero } => {
                self.with(volume, |m| m.cool.push_back((regions, zero)));
                self.pump_cooler(volume);
            }
            Action::HeatAll { volume } => self.with(volume, |m| m.heats.push(Heat::All)),
            Action::Heat { volume, regions } => self.with(volume, |m| m.heats.push(Heat::Regions(regions))),
            Action::Verify(chunk) => self.with(chunk.volume, |m| m.served.send(Order::Verify(chunk))),
            Action::KeepHot { volume } => {
                if let Some(member) = self.members.get(&volume) {
                    let regions = member.served.volume.hot_regions();
                    self.source.step(monotonic_ns(), Event::HotRegions { volume, regions }, &mut self.actions);
                }
            }
            Action::AdoptMeta { meta } => {
                let name = self.name.clone();
                self.with(meta.id, |m| {
                    if let Err(error) = m.served.adopt(*meta) {
                        error!(group = %name, volume = %m.served.config.name, %error, "the ledger's identity cannot be kept");
                    }
                });
            }
            Action::WithdrawTrackingLost { volume } => self.with(volume, |m| {
                // † Only bits that are durable count: while the map cannot be written "hot" is in memory alone, and the mark
                // is all that the next start has. So it is of what was seen since.
                if m.served.volume.tracking() != Tracking::Sound || m.sight.is_owed() {
                    return;
                }
                (m.loss, m.unmarked) = (Loss::Kept, None);
                m.marking.forget();
                m.note.remove();
                if let Err(error) = Mark::TrackingLost.put(&m.served.dir, false) {
                    warn!(volume = %m.served.config.name, %error, "the mark stays: the next start compares again");
                }
            }),
            Action::Quiesce { wish } => self.quiesce(wish),
            Action::CanCut { wish } => self.can_cut(wish),
            Action::Resume { epoch } => self.resume(epoch),
            Action::LossKept { volume } => self.loss_kept(volume),
            Action::Removed { volume } => self.removed(volume),
            Action::Report { volume, what } => self.report(volume, what),
            other => error!(group = %self.name, ?other, "an action that this daemon does not know"),
        }
    }

    fn with(&mut self, id: VolumeId, f: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(&id) {
            f(member);
        }
    }

    fn tick(&mut self) {
        let time = CutTime { boot: self.around.boot, mono_ns: monotonic_ns(), wall_ms: wall_ms() };
        // † T is read before the maps (T15): what is acknowledged after T may be missing from them, what was before cannot.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let mut volumes: Vec<_> = self.members.iter().map(|(id, m)| (*id, sample(&m.served))).collect();
        // Also behind T, and before anything is said of it. What is not surely sound is not quiet.
        self.look_at_taps();
        for (id, sample) in &mut volumes {
            if !self.members.get(id).is_some_and(Member::is_sound) {
                sample.in_flight = sample.in_flight.max(1);
            }
        }
        let open_bytes = volumes.iter().map(|(_, sample)| sample.dirty_bytes).sum();
        self.step(Event::Tick(Tick { time, volumes }));
        self.look_for_growth();
        self.keep_verify_results();
        self.settle_losses();
        let received = self.link.as_ref().map(|link| link.connection.statistics().received_bytes);
        self.silent = self.tally.silent(Instant::now(), received);
        if let Some(silent) = self.silent {
            let seconds = silent.as_secs();
            for (_, reply) in self.points.drain() {
                let _ = reply.send(Err(anyhow::anyhow!("the receiver has said nothing for {seconds} s")));
            }
        }
        let sent = self.bytes_read();
        self.tally.moment(Instant::now(), sent, open_bytes);
    }

    /// What the senders of all members read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.members.values().map(|m| m.served.sent.read_bytes.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    fn offer_cooling(&mut self, now: Instant) {
        let ids: Vec<VolumeId> = self.members.keys().copied().collect();
        let cool_after = self.cool_after;
        for volume in ids {
            let member = self.members.get_mut(&volume).expect("just listed");
            while member.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > cool_after) {
                member.recent.pop_front();
            }
            let busy = !member.cool.is_empty() || member.flushing || !member.heats.is_empty();
            if busy || !member.cooler.is_idle() || self.link.is_none() {
                continue;
            }
            let mut regions = member.served.volume.hot_regions();
            member.recent.iter().for_each(|(_, set)| regions.subtract(set));
            regions.subtract(&member.served.volume.open_set().regions());
            if !regions.is_empty() {
                self.step(Event::CoolWanted { volume, regions });
            }
        }
    }

    fn pump_cooler(&mut self, id: VolumeId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let source = &self.source;
        loop {
            match member.cooler.poll(&mut |region| source.mentions(id, region)) {
                CoolStep::Idle => match member.cool.pop_front() {
                    None => return,
                    Some((regions, zero)) => {
                        let mut candidates = regions.iter().filter(|r| !source.mentions(id, *r)).map(|r| (r, zero.contains(r)));
                        let cooling = member.cooler.begin(&mut candidates);
                        debug!(volume = %member.served.config.name, cooling, "cooling");
                    }
                },
                CoolStep::Wait => return,
                CoolStep::Flush => {
                    if !member.flushing && !member.served.is_stopping() {
                        member.flushing = true;
                        member.cooler.flush_begin();
                        member.served.order_flush();
                    }
                    return;
                }
                // The state machine offers regions only under a durable header that covers what published them.
                CoolStep::Header => member.cooler.header_durable(),
            }
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            // Whoever wanted it has given up.
            Ask::Status(reply) if reply.is_closed() => {}
            Ask::Status(reply) => {
                self.tick(); // what was acknowledged before the question is in the answer
                let _ = reply.send(self.status());
            }
            Ask::Add(_, reply) if self.stopping => {
                let _ = reply.send(Err(anyhow::anyhow!("farsided is stopping")));
            }
            Ask::Add(config, reply) => self.open(config, reply),
            Ask::Leave(id, farewell, reply) => self.let_go(id, farewell, reply),
            Ask::Growth(id, reply) => {
                let _ = reply.send(self.growth(id));
            }
            Ask::GrowthWaits(id, why, reply) => {
                let _ = reply.send(self.growth_waits(id, why));
            }
            Ask::TapLost(id, reply) => {
                let is_lost = self.members.get(&id).is_some_and(|member| member.tap_lost.is_some());
                let _ = reply.send(if is_lost { Ok(()) } else { Err(anyhow::anyhow!("its tap serves")) });
            }
            Ask::TapWaits(id, why, reply) => {
                let _ = reply.send(self.tap_waits(id, why));
            }
            Ask::Leaving(id, reply) => {
                let leaving = self.members.get(&id).map(|member| {
                    let served = &member.served;
                    Leaving { tap: served.tap.clone(), insertion: served.insertion.clone(), dir: served.dir.clone() }
                });
                let _ = reply.send(leaving.ok_or_else(|| anyhow::anyhow!("the volume is not served")));
            }
            Ask::Pause(id, pause, reply) => {
                let _ = reply.send(self.pause(id, pause));
            }
            Ask::StandAside(id, aside, reply) => {
                let _ = reply.send(self.stand_aside(id, aside));
            }
            Ask::Resync(volume, accept, until, reply) => self.resync(volume, accept, until, reply),
            Ask::TakeBack(volume, generation, at, reply) => self.take_back(volume, generation, at, reply),
            Ask::Withdraw(volume, from, reply) => drop(reply.send(Ok(self.withdraw(volume, from)))),
            Ask::Verify(volume, reply) => {
                let _ = reply.send(self.verify(volume));
            }
            Ask::Settings(config) => {
                self.step(Event::SetEpochInterval { interval: config.epoch_interval.as_nanos() as u64 });
                self.step(Event::SetPolicy { policy: policy(&config), is_said: config.policy_is_said });
                self.around.keys.is_configured(config.encryption.as_ref());
                if self.config.rate != config.rate {
                    self.around.pacer.set(config.rate.bytes_per_s());
                }
                self.config = config;
            }
            Ask::Take(title, hooks, reply) => self.take(title, hooks, reply),
            Ask::Points(kind, reply) => match &self.link {
                None => {
                    let _ = reply.send(Err(anyhow::anyhow!("not connected to the receiver")));
                }
                Some(link) => {
                    self.point_requests += 1;
                    let id = RequestId(self.point_requests);
                    match farside_wire::encode_payload(&SourceMessage::Points(PointQuery { id, kind })) {
                        Ok(payload) => {
                            self.points.retain(|_, waiting| !waiting.is_closed());
                            self.points.insert(id, reply);
                            link.send(payload);
                        }
                        Err(error) => {
                            let _ = reply.send(Err(error.into()));
                        }
                    }
                }
            },
            Ask::Hurry => self.hurries = self.stopping,
            Ask::Stop { .. } => unreachable!("handled by the loop"),
        }
    }

    /// Opens a volume on a thread of its own: its doors may be shut for a while, and the group must go on.
    fn open(&mut self, config: VolumeConfig, reply: oneshot::Sender<anyhow::Result<()>>) {
        let (shim, around, inbox) = (self.shim.clone(), self.around.clone(), self.inbox.clone());
        let (state, group) = (self.state.clone(), self.name.clone());
        let (name, id) = (config.name.clone(), farside_ledger::volume_id(&self.around.source, &config.group, &config.name));
        std::thread::spawn(move || {
            let (dir, is_new) = match state.volume_dir(&group, &name) {
                Ok(found) => found,
                Err(error) => return drop(reply.send(Err(error.into()))), // who asked may have gone
            };
            match Served::open(config, dir.clone(), &shim, &around, &inbox) {
                Ok(opened) => inbox.send(Note::Opened(Box::new(opened), reply)),
                Err(error) => {
                    // What was never served has no state, and must not meet any when it is added again.
                    if is_new {
                        leave_nothing(&dir, id, &name, &around.runtime_dir);
                    }
                    let _ = reply.send(Err(error));
                }
            }
        });
    }

    fn add(&mut self, served: Served, setup: Box<farside_replication::source::VolumeSetup>) {
        let member = Member {
            cooler: Cooler::new(served.volume.clone()),
            broken: None,
            tap_lost: None,
            cool: VecDeque::new(),
            flushing: false,
            heats: Vec::new(),
            compares: Compares::load(&served.dir),
            loss: Loss::Kept,
            marking: Marking::default(),
            unmarked: None,
            bypass: None,
            sight: Sight::default(),
            growth: None,
            doubt: setup.tracking_lost.then(|| {
                let reason = Mark::TrackingLost.reason(&served.dir);
                reason.unwrap_or_else(|| "tracking was lost before this start".to_owned())
            }),
            note: LossNote::of(&self.around.runtime_dir, setup.meta.id),
            served,
            recent: VecDeque::new(),
            leaving: None,
            tap_stopped: false,
        };
        let id = setup.meta.id;
        self.members.insert(id, member);
        self.away.is_back(id);
        // † Before the machine hears of a volume of which nothing may be sent.
        if let Some(why) = self.why_not_sent()
            && let Some(link) = self.link.take()
        {
            self.hang_up(&link, &why, false);
            self.tally.disconnected(link.connection.statistics());
            self.disconnected(link.number, farside_replication::source::Ended::Closed);
        }
        self.step(Event::AddVolume(setup));
        self.say_seals(); // before the machine hears what the ledger says of it
        let member = self.members.get_mut(&id).expect("just inserted");
        // Their notes came before it was a member.
        let lost = member.served.tap_lost.get().cloned();
        if member.served.tap_has_ended() {
            self.tap_stopped(id);
        }
        if let Some(why) = lost {
            self.tap_lost(id, why);
        }
        self.shim_events(id); // arms its bell, and hears what came before
    }

    fn pause(&mut self, id: VolumeId, pause: bool) -> anyhow::Result<()> {
        let member = self.members.get(&id).ok_or_else(|| anyhow::anyhow!("the volume is not served"))?;
        Mark::Paused.put(&member.served.dir, pause)?;
        self.stand_aside(id, pause)
    }

    fn stand_aside(&mut self, id: VolumeId, aside: bool) -> anyhow::Result<()> {
        let member = self.members.get(&id).ok_or_else(|| anyhow::anyhow!("the volume is not served"))?;
        // A person may have paused it before: it is what it was.
        let pause = aside || Mark::Paused.is_set(&member.served.dir)?;
        if let Some(insertion) = member.served.insertion.as_ref().filter(|_| !pause) {
            insertion.stays();
        }
        self.step(if pause { Event::Pause { volume: id } } else { Event::Resume { volume: id } });
        if !pause {
            self.insert_again(id);
        }
        Ok(())
    }

    fn let_go(&mut self, id: VolumeId, farewell: Farewell, reply: oneshot::Sender<anyhow::Result<Left>>) {
        let Some(member) = self.members.get_mut(&id) else {
            let _ = reply.send(Err(anyhow::anyhow!("the volume is not served")));
            return;
        };
        // † Before it takes its tap from anybody: whoever uses that would wait for as long as this cannot be kept.
        if farewell.is_to_return()
            && let Err(error) = member.keep_what_it_remembers()
        {
            let _ = reply.send(Err(error.context("it is not closed")));
            return;
        }
        member.leaving = Some((farewell, reply));
        member.served.stop_tap();
        let is_stopped = member.tap_stopped;
        // † Before the machine forgets it: a point of all volumes that is waited for is none without it.
        self.say_what_is_lacking();
        if is_stopped {
            self.step(Event::RemoveVolume { volume: id });
        }
    }

    fn tap_stopped(&mut self, id: VolumeId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.tap_stopped = true;
        if member.leaving.is_some() {
            self.step(Event::RemoveVolume { volume: id });
        } else if !member.served.tap.is_meant_to_end() {
            error!(volume = %member.served.config.name, "its device is gone, and farsided did not end it; it is served anew");
            self.tap_lost(id, "its device was ended by somebody else".to_owned());
        }
    }

    /// What its host asked for has failed, or waits: the volume is closed, and opened again.
    fn tap_lost(&mut self, id: VolumeId, why: String) {
        self.with(id, |member| member.tap_lost = Some(why));
        self.remind_of_lost_taps();
    }

    /// † Said as long as it is so: who is told may be busy with opening the volume, or with taking it away, which may fail; and
    /// nothing is closed before what it remembers is kept.
    fn remind_of_lost_taps(&self) {
        for member in self.members.values().filter(|member| member.tap_lost.is_some() && !member.is_leaving()) {
            let _ = self.around.noticed.send(Noticed::TapLost(member.served.config.name.clone())); // a daemon that stops hears nothing
        }
    }

    fn report(&mut self, volume: Option<VolumeId>, what: Report) {
        let name = volume.and_then(|v| self.members.get(&v)).map_or(&self.name, |m| &m.served.config.name).clone();
        match what {
            Report::Published { position, kind, members } => {
                self.published += u64::from(kind == LayerKind::Point);
                debug!(%name, slot = %position.slot, ?kind, members, "published");
            }
            Report::WishDone { wish, point, label } => self.wish_done(wish, &point, label.as_deref()),
            Report::WishDropped { wish, why } if self.cohort_wish_dropped(wish, &why) => {}
            Report::WishDropped { wish, why } => self.end_wish(wish, Err(anyhow::anyhow!(why))),
            Report::HooksFailed { why } => self.hooks_failed(why),
            Report::State(state) => info!(%name, ?state, "state"),
            Report::Demoted { epoch, why } => {
                self.tally.demoted(why);
                debug!(%name, %epoch, ?why, "a cut was given up");
            }
            Report::Claimed { term } => info!(%name, %term, "claimed"),
            Report::ReadAgain { key, from_part } => {
                self.tally.read_again();
                info!(%name, layer = %key, from_part, "what was not staged is read again");
            }
            Report::Refused { code, text } => {
                self.tally.refused();
                warn!(%name, ?code, %text, "the receiver refused");
            }
            other => info!(%name, ?other, "replication"),
        }
    }

    /// A planned stop: taps first, then as much published as patience allows, then exactly what is owed is written down.
    fn stop(&mut self, configured: usize, patience: Option<Duration>) -> Ending {
        self.stopping = true;
        self.members.values().for_each(|m| m.served.stop_tap());
        // Who waits for the next daemon does not wait for the network (L1): what is not published is owed.
        let waited_for = self.members.values().any(|m| m.served.tap.leaves_its_host_waiting());
        let seconds = if waited_for { 0 } else { self.around.limits.stop_wait_seconds };
        let is_patient = patience.is_some();
        let patience = Instant::now() + patience.unwrap_or(Duration::from_secs(u64::from(seconds)));
        // Host I/O in a device that does not answer keeps its own volume from `clean`, and nobody else.
        let taps_until = Instant::now() + TAPS_WAIT;
        self.listen_until(|c| c.members.values().all(|m| m.tap_stopped), Some(taps_until));
        // What a verify found to differ becomes owed when its bit is durable.
        let patience_for_bits = Instant::now() + BITS_WAIT;
        self.listen_until(|c| !c.members.keys().any(|id| c.source.is_heating(*id)), Some(patience_for_bits));
        // What was acknowledged up to now is in the samples by which "settled" is judged.
        self.tick();
        self.step(Event::Drain);
        self.keep_verify_results();
        let is_lost = |c: &Self| c.link.is_none() && !is_patient;
        let is_over = |c: &Self| c.link.is_some() && c.source.settled();
        self.listen_until(|c| c.hurries || is_lost(c) || is_over(c), Some(patience));
        let (settled, farewell) = self.say_whether_all_is_published(configured, waited_for).unzip();
        self.listen_until(|c| !c.source.switching(), None);
        self.step(Event::Halt);
        self.settle_losses();
        let stopped = self.close_members();
        if let Some(farewell) = farewell {
            let _ = self.around.links.block_on(farewell); // it has its own limit
        }
        Ending { stopped, settled }
    }

    fn listen_until(&mut self, done: impl Fn(&Self) -> bool, deadline: Option<Instant>) {
        while !done(self) && deadline.is_none_or(|d| Instant::now() < d) {
            match self.notes.recv_timeout(Duration::from_millis(10)) {
                // Whoever says it once more does not want to wait.
                Ok(Note::Ask(Ask::Stop { .. })) => self.hurries = true,
                Err(Nothing::Yet) => {}
                Ok(note) => self.hear(note),
                Err(Nothing::Ever) => return,
            }
            self.routine();
        }
    }
}

// What the configuration takes can be said.
const _: () = assert!(farside_control::Grid::RULES_MAX <= farside_ledger::Grid::RULES_SAID_MAX);

/// † A part goes over one connection, and the next one begins when that has room for the end of this one: where there are several, no part
/// is longer than what one may have under way, or they would be used one after the other.
fn part_bytes(connections: u16) -> u64 {
    if connections > 1 { 8 << 20 } else { Limits::default().part_bytes }
}

fn policy(config: &GroupConfig) -> farside_ledger::Policy {
    farside_ledger::Policy::of(config.keep, config.span(), config.grid.pairs())
}

fn sample(served: &Served) -> Sample {
    let volume = &served.volume;
    // The fence of `open_is_empty` orders this look behind T.
    let granules = if volume.open_is_empty() { 0 } else { volume.open_granules().max(1) };
    let dirty_bytes = granules * volume.geometry().granule_bytes();
    Sample {
        dirty_bytes,
        in_flight: volume.in_flight() as u64,
        waits_for_disk: served.sent.waits_for_disk.load(std::sync::atomic::Ordering::Relaxed),
    }
}

/// Milliseconds since 1970, for people.
pub(crate) fn wall_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
