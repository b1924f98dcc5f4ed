//! A process that has nothing but a store: on a thread of its own, of which the world lets one operation go on at a time.
//!
//! So the product's code runs as it is, and blocks; and between any two of its requests, and of its writes, anything may happen: it is killed, it
//! stalls, others go on. Only one of all threads of a run is ever at work, so the same seed tells the same story. (What it draws at random is the
//! names of its leases, and nothing goes by those.)

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use bytes::Bytes;
use farside_blockio::Identity;
use farside_region::{ByteExtent, ByteOffset, LedgerPosition, Name, RecordDigest, VolumeId, mutation};
use farside_store::{
    Backend, Created, FollowKeeper, FollowTarget, Follower, Following, GroupNames, GroupReader, Held, Leases, Next, ObjectName,
    Page, RestingGroup, RestoreTarget, Result, Seen, StoreError, StoreReader, Tried, Wanted, set_checkpoint_span,
};

use crate::follower::{Inner, Machine};
use crate::receiver::CHECKPOINT_SLOTS;
use crate::run::SHORT_MEMORY;

/// How often it is looked whether somebody else has gone on, before this thread sleeps.
const SPINS: usize = 200;

/// What a process wants to do next.
pub(super) enum Ask {
    Get(ObjectName),
    Range(ObjectName, u64, u64),
    Size(ObjectName),
    List(Option<ObjectName>, Option<ObjectName>, usize),
    Folders(ObjectName),
    Create(ObjectName, Bytes),
    Delete(ObjectName),
    /// A write or a sync of its own disk, or of what it keeps.
    Disk,
    /// To wait; with how the turn before this ended.
    Rest(Option<Turned>),
    /// A collector knows what somebody reads.
    Looked(Held),
}

/// What becomes of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// It may. `thorough`: the next look is, where there is one.
    Go {
        thorough: bool,
    },
    Bytes(Option<Bytes>),
    Size(Option<u64>),
    Page(Page),
    Folders(BTreeSet<String>),
    Created(Created),
    /// No answer.
    Failed,
    Denied,
    /// The process dies in the middle of this operation, or after it.
    Dies,
}

/// How a turn of a cascade ended.
#[derive(Debug)]
pub(super) enum Turned {
    /// There is no point for it.
    Nothing,
    /// It says that its target holds the point that it should; and what the ledger that it went by has in that slot.
    There(LedgerPosition, Option<RecordDigest>),
    /// It says so of one that it went to.
    Arrived(LedgerPosition),
    Failed(StoreError),
}

/// The store and the disk, as a process has them.
pub(super) struct Line(Arc<Desk>);

/// Where asks and answers lie, one at a time. (A channel costs more than all else of these runs.)
#[derive(Default)]
struct Desk {
    lies: Mutex<Lies>,
    changed: Condvar,
}

#[derive(Default)]
struct Lies {
    ask: Option<Ask>,
    answer: Option<Answer>,
    /// The process is dead, or is told so at what it asks next.
    is_dead: bool,
    /// Nobody asks any more.
    is_over: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Lies> {
        self.lies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(&self, mut take: impl FnMut(&mut Lies) -> Option<T>) -> T {
        // Most answers come at once.
        for _ in 0..SPINS {
            if let Some(found) = self.lies.try_lock().ok().and_then(|mut lies| take(&mut lies)) {
                return found;
            }
            std::hint::spin_loop();
        }
        let mut lies = self.lock();
        loop {
            if let Some(found) = take(&mut lies) {
                return found;
            }
            lies = self.changed.wait(lies).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Line {
    fn ask(&self, ask: Ask) -> Answer {
        let mut lies = self.0.lock();
        if lies.is_dead {
            return Answer::Dies;
        }
        lies.ask = Some(ask);
        drop(lies);
        self.0.changed.notify_all();
        self.0.wait(|lies| match lies.answer.take() {
            None if lies.is_dead => Some(Answer::Dies),
            answer => answer,
        })
    }

    /// Until it may go on; `None`: never.
    fn rest(&self, turned: Option<Turned>) -> Option<bool> {
        if let Answer::Go { thorough } = self.ask(Ask::Rest(turned)) { Some(thorough) } else { None }
    }

    fn failed(doing: &'static str, name: &ObjectName, answer: &Answer) -> StoreError {
        match answer {
            Answer::Denied => StoreError::RemoteDenied { place: "the simulator".into(), why: "AccessDenied".into() },
            _ => StoreError::Remote { doing, what: name.to_string(), why: "no answer".into() },
        }
    }
}

#[async_trait]
impl Backend for Line {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        match self.ask(Ask::Create(name.clone(), content)) {
            Answer::Created(created) => Ok(created),
            other => Err(Self::failed("creating", name, &other)),
        }
    }

    async fn adopt(&self, _: &ObjectName, _: &Path) -> Result<Created> {
        unreachable!("readers adopt nothing")
    }

    async fn get(&self, name: &ObjectName, _: u64) -> Result<Option<Bytes>> {
        match self.ask(Ask::Get(name.clone())) {
            Answer::Bytes(found) => Ok(found),
            other => Err(Self::failed("getting", name, &other)),
        }
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        match self.ask(Ask::Range(name.clone(), offset, len)) {
            Answer::Bytes(Some(found)) => Ok(found),
            Answer::Bytes(None) => Err(StoreError::NotFound { name: name.to_string(), path: self.place().into() }),
            other => Err(Self::failed("getting", name, &other)),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        match self.ask(Ask::Size(name.clone())) {
            Answer::Size(found) => Ok(found),
            other => Err(Self::failed("looking at", name, &other)),
        }
    }

    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        match self.ask(Ask::List(prefix.cloned(), after.cloned(), limit)) {
            Answer::Page(page) => Ok(page),
            other => Err(Self::failed("listing", prefix.expect("a group's folder"), &other)),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        match self.ask(Ask::Delete(name.clone())) {
            Answer::Go { .. } => Ok(()),
            other => Err(Self::failed("deleting", name, &other)),
        }
    }

    async fn sync(&self, _: &ObjectName) -> Result<()> {
        Ok(())
    }

    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        match self.ask(Ask::Folders(prefix.clone())) {
            Answer::Folders(folders) => Ok(folders),
            other => Err(Self::failed("listing", prefix, &other)),
        }
    }

    async fn put_right(&self, _: &ObjectName, _: Bytes) -> Result<()> {
        unreachable!("readers put nothing")
    }

    fn place(&self) -> String {
        "the simulator".to_owned()
    }

    fn is_late(&self) -> bool {
        true
    }

    /// One after the other.
    fn requests_at_once(&self) -> Option<usize> {
        Some(1)
    }
}

/// The disk of a process.
struct Target<'t> {
    machine: &'t Machine,
    line: &'t Line,
}

impl Target<'_> {
    /// Before whatever changes something: then it is cut short.
    fn pass(&self) {
        let lives = matches!(self.line.ask(Ask::Disk), Answer::Go { .. });
        let inner = &mut *self.machine.lock();
        if !lives && !inner.is_dead() {
            inner.left = 1;
        }
    }
}

impl RestoreTarget for Target<'_> {
    fn path(&self) -> &Path {
        self.machine.path()
    }

    fn begin(&self, first: ByteExtent) -> io::Result<()> {
        self.zero(first)?;
        self.sync()
    }

    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        self.pass();
        self.machine.write_at(offset, bytes)
    }

    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        self.pass();
        self.machine.zero(extent)
    }

    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        if self.machine.lock().is_dead() {
            return Err(Inner::dead());
        }
        self.machine.read_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass();
        self.machine.sync()
    }

    fn read_anew(&self) -> io::Result<()> {
        self.machine.read_anew()
    }
}

impl FollowTarget for Target<'_> {
    fn bytes(&self) -> io::Result<u64> {
        self.machine.bytes()
    }

    fn is_fixed(&self) -> io::Result<bool> {
        self.machine.is_fixed()
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.machine.resize(bytes)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.machine.identity()
    }

    fn seen(&self) -> io::Result<Option<Seen>> {
        self.machine.seen()
    }
}

impl FollowKeeper for Target<'_> {
    fn keep(&self, following: &Following) -> io::Result<()> {
        self.pass();
        self.machine.keep(following)
    }
}

/// What a cascade is to do.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) names: GroupNames,
    pub(super) volume: Name,
    pub(super) wanted: Wanted,
    /// A person has given up what is in the target.
    pub(super) heal: bool,
}

/// What a cascade has in memory: what `farside store follow` has.
struct Cascade {
    order: Order,
    line: Arc<Line>,
    machine: Arc<Machine>,
    group: Option<RestingGroup>,
    tried: Tried,
    /// It was not looked at yet whether the target is what it was left as.
    is_unseen: bool,
}

impl Cascade {
    fn live(mut self) {
        let mut turned = None;
        while let Some(thorough) = self.line.rest(turned.take()) {
            let end = self.turn(thorough);
            turned = Some(end.unwrap_or_else(Turned::Failed));
        }
    }

    fn turn(&mut self, thorough: bool) -> Result<Turned> {
        let group = match self.group.take() {
            Some(resting) => resting.wake(thorough)?,
            None => StoreReader::open_bucket(Arc::clone(&self.line) as _)?.group(&self.order.names)?,
        };
        let volume = group.volume(&self.order.volume)?;
        group.refuse_to_go_back(&self.machine.following().stage)?;
        if self.order.heal {
            self.with_follower(|follower| follower.heal())?;
            self.order.heal = false;
        }
        let turned = self.turn_in(&group, volume)?;
        self.group = Some(group.rest());
        Ok(turned)
    }

    fn turn_in(&mut self, group: &GroupReader, volume: VolumeId) -> Result<Turned> {
        let stage = self.machine.following().stage;
        match group.next_way(volume, self.order.wanted, &self.tried, &stage)? {
            Next::Nothing(_) => Ok(Turned::Nothing),
            Next::There(at) => {
                if std::mem::take(&mut self.is_unseen)
                    && let Some(reader) = group.held_point(at.slot, volume)?
                {
                    self.with_follower(|follower| follower.inspect(&reader, &|slot| group.base(slot, volume), &|_| true))?;
                }
                self.verify_if_in_doubt(group, volume, at)?;
                Ok(Turned::There(at, group.state().digest_at(at.slot)))
            }
            Next::Way(look) => {
                let base = |slot| group.base(slot, volume);
                let advanced = self.with_follower(|follower| follower.advance(&look, &base, &|_| true));
                match advanced {
                    Ok(_) => self.tried.clear(),
                    Err(error) => {
                        if error.is_unread() {
                            self.tried.failed(look.point().slot);
                        }
                        return Err(error);
                    }
                }
                let at = look.point();
                drop(look);
                self.verify_if_in_doubt(group, volume, at)?;
                Ok(Turned::Arrived(at))
            }
        }
    }

    fn verify_if_in_doubt(&self, group: &GroupReader, volume: VolumeId, at: LedgerPosition) -> Result<()> {
        if !self.machine.following().is_in_doubt() {
            return Ok(());
        }
        // If it is gone, the next one is compared.
        let Some(reader) = group.held_point(at.slot, volume)? else { return Ok(()) };
        self.with_follower(|follower| follower.verify(&reader, &|slot| group.base(slot, volume), &|_| true))
    }

    fn with_follower<T>(&self, work: impl FnOnce(&mut Follower<'_>) -> Result<T>) -> Result<T> {
        let target = Target { machine: &self.machine, line: &self.line };
        work(&mut Follower::new(&target, &target, self.machine.following(), 1))
    }
}

/// The world's end of a process.
pub(super) struct Process {
    desk: Arc<Desk>,
    /// What it waits for; there is always something, as long as it lives.
    pub(super) waits: Option<Ask>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

impl Process {
    /// Begins to follow.
    pub(super) fn cascade(order: Order, machine: &Arc<Machine>) -> Self {
        let machine = Arc::clone(machine);
        let live = |line| Cascade { order, line, machine, group: None, tried: Tried::default(), is_unseen: true }.live();
        Self::start("cascade", live)
    }

    /// Looks who reads, again and again.
    pub(super) fn collector(names: GroupNames) -> Self {
        Self::start("collector", move |line: Arc<Line>| {
            let mut leases = Leases::default();
            while line.rest(None).is_some() {
                // Whatever it was: nothing is known then, and nothing deleted.
                if let Ok(held) = leases.look(&*line, &names) {
                    line.ask(Ask::Looked(held));
                }
            }
        })
    }

    fn start(name: &str, live: impl FnOnce(Arc<Line>) + Send + 'static) -> Self {
        let (desk, mistakes) = (Arc::new(Desk::default()), mutation::all());
        let line = Line(Arc::clone(&desk));
        let run = move || {
            farside_ledger::Memory::set(Some(SHORT_MEMORY));
            mutation::set(&mistakes.iter().map(String::as_str).collect::<Vec<_>>());
            set_checkpoint_span(CHECKPOINT_SLOTS);
            live(Arc::new(line));
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread can be started");
        let mut process = Self { desk, waits: None, thread: Some(thread) };
        process.waits = process.next();
        process
    }

    /// What it wants next; `None`: it has ended.
    fn next(&self) -> Option<Ask> {
        self.desk.wait(|lies| match lies.ask.take() {
            None if lies.is_over => Some(None),
            None => None,
            ask => Some(ask),
        })
    }

    /// Lets its operation come to this end, and waits until it wants something else. False: it has ended by itself.
    pub(super) fn answer(&mut self, answer: Answer) -> bool {
        self.desk.lock().answer = Some(answer);
        self.desk.changed.notify_all();
        self.waits = self.next();
        self.waits.is_some()
    }

    /// It dies at what it waits for, and is gone when this returns. False: it had panicked.
    pub(super) fn die(&mut self) -> bool {
        self.desk.lock().is_dead = true;
        self.desk.changed.notify_all();
        // Until nobody is there any more who could ask.
        while self.next().is_some() {}
        self.waits = None;
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.die();
    }
}
