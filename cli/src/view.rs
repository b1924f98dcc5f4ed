//! `farside point open`: a volume of a point as a block device over NBD, until the command ends.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use farside_blockio::{BlockQueue, Waker, process};
use farside_nbd::{Handle, Limits, Listener, ServeError, Server, SocketOptions};
use farside_store::LazyPointReader;
use farside_view::{Origin, Overlay, OverlayError, View, ViewQueue};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use crate::args::{Global, OpenArgs};
use crate::device::{By, Device, How, PointView, Pressed};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::hydrate::{self, Hydration};
use crate::opened::{self, Door, Ended, Opened};
use crate::{drill, print, restore, store};

/// One that was killed is waited for so long.
const PREDECESSOR_ENDS: Duration = Duration::from_secs(5);

/// Of so many layers it is looked up before a point is served what they hold: that takes no time that anybody would notice.
const INDEXED_AT_ONCE: usize = 128;
/// Of many it begins so long after the point is there, goes on after so long at most when clients wait for what they read, and looks so often
/// whether they do.
const INDEXING_BEGINS: Duration = Duration::from_secs(1);
const INDEXING_WAITS: Duration = Duration::from_millis(100);
const INDEXING_LOOKS: Duration = Duration::from_millis(5);
/// A request of the looking up that is under way is waited for so long.
const INDEXING_ENDS: Duration = Duration::from_secs(5);

/// So many requests wait for the store at once.
const THREADS: (usize, usize) = (4, 16);

/// One whose owner is gone is not taken away by force before that: what it has to flush is little.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// Of a device, in bytes: the least that a kernel has.
const BLOCK_MIN: u32 = 512;

/// Serves a point until a signal comes, or its time is over.
pub(crate) async fn open(global: &Global, hosts: &Hosts, args: OpenArgs) -> Result<(), Failure> {
    let owner = args.until_stdin_ends.then(end_of_stdin);
    let (wanted, of) = crate::resolve(args.which)?;
    let Some(of) = of else {
        let message = format!("`{wanted}` is a point of which volume?");
        return Err(Failure::new(Exit::Usage, message, "say it as VOLUME POINT, or POINT --of VOLUME"));
    };
    let location = match &args.store {
        Some(url) => store::location_of(url)?,
        None => restore::gateway_store(hosts).await?,
    };
    let reader = store::open_with(&location, args.key.keeper()?.as_ref())?;
    let chosen = store::choose(&reader, &of, wanted)?;
    let (point, id, names, hidden) = (chosen.point, chosen.volume, chosen.group.names().clone(), chosen.hidden);
    chosen.group.unlock(id)?;
    // What was replayed goes; the point holds a lock of its own.
    let base = Arc::new(chosen.group.into_point_reader_lazily(chosen.slot, id)?);
    store::say_if_unkept(&base);
    // Of few it is known at once what is where, of many later.
    let is_indexed = base.part_count() <= INDEXED_AT_ONCE;
    if is_indexed {
        base.index_all(&|| true)?;
    }
    let volume = base.volume().name.to_string();
    let socket = absolute(args.export.unwrap_or_else(|| format!("{volume}-{}.nbd", point.id).into()))?;
    let places = Places::of(args.overlay, args.hydrate, args.writable, &socket)?;
    let origin = Origin {
        store: HEXLOWER.encode(&reader.id()),
        volume: format!("{names}/{volume}"),
        volume_id: id.to_string(),
        point: point.id.to_string(),
        volume_bytes: base.geometry().volume_bytes(),
        granule_bytes: base.geometry().granule_bytes(),
    };
    let overlay = places.open(reader.root(), &origin, &base)?;
    let opened = Opened {
        volume: origin.volume.clone(),
        volume_bytes: origin.volume_bytes,
        export: opened::export_of(&socket),
        device: None,
        writable: args.writable,
        written_bytes: overlay.as_ref().map_or(0, Overlay::written_bytes),
        unreadable_bytes: if point.degraded { base.unreadable_bytes()? } else { 0 },
        overlay: places.overlay,
        hydrate: places.file,
        pid: std::process::id(),
        point,
    };
    drop(reader);
    // Nobody may read that any more, and the point is served on.
    let tell = |error: &farside_store::StoreError| {
        let _ = writeln!(std::io::stderr(), "farside: {}", Failure::from_error(Exit::Damaged, error, "").message);
    };
    let view = View::new(Arc::clone(&base), overlay, args.cache, Box::new(tell));
    let view = Arc::new(if opened.writable { view } else { view.read_only() });
    let (mut caller, mut behind) = (None, None);
    let serving = Serving {
        global,
        volume: &volume,
        socket: &socket,
        opened: &opened,
        ttl: args.ttl,
        device: args.device,
        base,
        is_indexed,
    };
    let served = serving.run(&view, owner, &mut caller, &mut behind).await;
    drop(serving);
    let hydrated = match behind {
        Some(Behind::Hydration(hydration)) => hydration.end().await,
        Some(Behind::Indexing(indexing)) => {
            indexing.end().await;
            Ok(false)
        }
        None => Ok(false),
    };
    let kept = view.flush().or_fail("what was written last may not be kept");
    let ended = Ended {
        refused: None,
        failed: [served.as_ref().err(), kept.as_ref().err(), hydrated.as_ref().err()].into_iter().flatten().next().map(said_of),
        written_bytes: view.overlay().map_or(0, Overlay::written_bytes),
        is_whole: matches!(hydrated, Ok(true)),
    };
    drop(view); // who is told may open the same again
    if let Some(caller) = caller {
        opened::tell(caller, &ended).await;
    }
    served.and(kept).and(hydrated)?;
    if !global.json {
        print::out(&format!("closed{}\n", opened.left(&ended)))?;
    }
    hidden.map_or(Ok(()), Err)
}

fn said_of(failure: &Failure) -> String {
    failure.message.clone()
}

/// Where what is written or filled goes, and the file that it becomes.
struct Places {
    overlay: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Places {
    fn of(overlay: Option<PathBuf>, file: Option<PathBuf>, writable: bool, socket: &Path) -> Result<Self, Failure> {
        let file = file.map(absolute).transpose()?;
        let overlay = match (overlay, writable, &file) {
            (Some(dir), _, _) => Some(absolute(dir)?),
            // With and without --hydrate the same: what was written is found again.
            (None, true, _) => Some(with_ending(socket, ".overlay")),
            (None, false, Some(file)) => Some(with_ending(file, ".overlay")),
            (None, false, None) => None,
        };
        Ok(Self { overlay, file })
    }

    fn open(&self, store: Option<&Path>, origin: &Origin, base: &LazyPointReader) -> Result<Option<Overlay>, Failure> {
        let Some(dir) = &self.overlay else { return Ok(None) };
        if let Some(file) = &self.file {
            refuse_in_store(file, store, "name another one: --hydrate FILE")?;
            hydrate::refuse(file, dir)?;
        }
        let overlay = open_overlay(dir, store, origin, base)?;
        if let Some(file) = &self.file {
            let what_to_do = "name a file on a file system with hard links, where this user may write";
            overlay.try_name(file).map_err(|error| Failure::from_error(Exit::Refused, &error, what_to_do))?;
        }
        Ok(Some(overlay))
    }
}

/// What goes on while a point is served.
enum Behind {
    Hydration(Hydration),
    Indexing(Indexing),
}

/// Everything is looked up of where a point lies, so that reads need not, and holes are known.
struct Indexing {
    is_over: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Indexing {
    /// What clients read comes first, and most of all what whoever opened a point reads of it at once.
    fn start(base: Arc<LazyPointReader>, view: &Arc<PointView>) -> Result<Self, Failure> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (until, (sender, ended)) = (is_over.clone(), oneshot::channel());
        let view = Arc::downgrade(view);
        let is_fetching = move || view.upgrade().is_some_and(|view| view.is_fetching());
        let work = move || {
            let waits = |at_most: Duration, is_needed: &dyn Fn() -> bool| {
                let begun = Instant::now();
                while is_needed() && begun.elapsed() < at_most && !until.load(Ordering::Relaxed) {
                    std::thread::sleep(INDEXING_LOOKS);
                }
            };
            waits(INDEXING_BEGINS, &|| true);
            // Whoever reads meets the same errors, and hears of them.
            let _ = base.index_all(&|| {
                waits(INDEXING_WAITS, &is_fetching);
                !until.load(Ordering::Relaxed)
            });
            drop(base);
            let _ = sender.send(());
        };
        std::thread::Builder::new().name("index".into()).spawn(work).or_fail("cannot start")?;
        Ok(Self { is_over, ended })
    }

    /// Soon: a store that does not answer is not waited for.
    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(INDEXING_ENDS, self.ended).await;
    }
}

/// A point that is ready to be served.
struct Serving<'a> {
    global: &'a Global,
    volume: &'a str,
    socket: &'a Path,
    opened: &'a Opened,
    ttl: Option<Duration>,
    /// By what it is a block device of this machine's kernel, too.
    device: Option<By>,
    base: Arc<LazyPointReader>,
    /// It is known already what is where.
    is_indexed: bool,
}

/// A server that runs.
type Running = JoinHandle<Result<(), ServeError>>;

/// How it ended.
type Served = Result<Result<(), ServeError>, JoinError>;

/// Why it is to end.
enum Asked {
    /// It has, by itself.
    Ended(Served),
    /// Somebody wants it, and waits to be told.
    AtDoor(UnixStream),
    By(SignalKind),
    /// Its time is over, or its owner is gone.
    Over,
}

/// All who may ask for its end.
struct Asks<'a> {
    server: &'a mut Running,
    door: Door,
    signals: &'a mut Signals,
    /// None once that was heard.
    over: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl Asks<'_> {
    /// Not after its server has ended.
    async fn next(&mut self) -> Asked {
        let is_over = async {
            match &mut self.over {
                Some(over) => over.await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            ended = &mut *self.server => Asked::Ended(ended),
            asked = self.door.is_asked() => Asked::AtDoor(asked),
            _ = self.signals.interrupted.recv() => Asked::By(SignalKind::interrupt()),
            _ = self.signals.terminated.recv() => Asked::By(SignalKind::terminate()),
            _ = self.signals.hung_up.recv(), if !self.signals.is_hangup_ignored => Asked::By(SignalKind::hangup()),
            () = is_over => Asked::Over,
        };
        if matches!(asked, Asked::Over) {
            self.over = None;
        }
        asked
    }

    /// Hears them while something is taken away, which becomes firmer thereby: by a signal that is among `heard` already, what is kept is
    /// given up, and by one more the program ends (`exit`). Gives what came of it, and how the server ended if that was by itself meanwhile.
    async fn while_leaving<T>(
        &mut self,
        mut leaving: JoinHandle<T>,
        (how, heard): (&Pressed, &mut Vec<SignalKind>),
        refuse: impl Fn(&str) -> Ended,
        exit: impl Fn(),
    ) -> (Result<T, JoinError>, Option<Served>) {
        loop {
            let asked = tokio::select! {
                left = &mut leaving => return (left, None),
                asked = self.next() => asked,
            };
            match asked {
                Asked::Ended(ended) => {
                    how.press(How::AtOnce); // nobody takes what is kept
                    return (leaving.await, Some(ended));
                }
                Asked::AtDoor(by) => {
                    let ended = refuse("it is being closed already");
                    drop(tokio::spawn(async move { opened::tell(by, &ended).await }));
                }
                // † Never one that comes beside another: at the end of a session SIGHUP does.
                Asked::By(signal) if heard.contains(&signal) && signal != SignalKind::hangup() => {
                    if how.now() == How::AtOnce {
                        exit();
                    }
                    how.press(How::AtOnce);
                }
                Asked::By(signal) => {
                    heard.push(signal);
                    how.press(firmness(signal));
                }
                Asked::Over => how.press(How::Firmly),
            }
        }
    }
}

/// Who is at the keyboard can be told that it is in use.
fn firmness(signal: SignalKind) -> How {
    if signal == SignalKind::interrupt() { How::Kindly } else { How::Firmly }
}

impl Serving<'_> {
    /// Until a signal comes, somebody asks for the end (`caller`, who is to be told), its time is over, or its `owner` is gone. Its socket
    /// and its device are gone then. What fills it meanwhile begins when it is served.
    async fn run(
        &self,
        view: &Arc<PointView>,
        owner: Option<oneshot::Receiver<()>>,
        caller: &mut Option<UnixStream>,
        behind: &mut Option<Behind>,
    ) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let waker = Waker::new().or_fail("cannot start")?;
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(THREADS.0, THREADS.1);
        let options = SocketOptions { path: self.socket.to_owned(), group: None };
        let listener = tokio::task::spawn_blocking(move || Listener::bind_after_another(&options, PREDECESSOR_ENDS));
        let listener = listener.await.or_fail("cannot start")?;
        let listener =
            listener.map_err(|error| Failure::from_error(Exit::Refused, &error, "name another one: --export nbd:unix:PATH"))?;
        let description = format!("{} at {}", self.opened.volume, self.opened.point.id);
        let (server, handle) = Server::new(listener, self.volume, &description, Limits::default(), waker.clone());
        let (tell, told) = oneshot::channel();
        let (viewed, is_device) = (view.clone(), self.device.is_some());
        let make = move || ViewQueue::new(viewed, threads, &waker);
        let mut server: Running = tokio::task::spawn_blocking(move || serve(server, make, is_device, tell));
        let block = told.await.or_fail("cannot start")?.or_fail("no threads to serve it with")?.max(BLOCK_MIN);
        let over = match self.attach(view, &handle, (block, threads)).await {
            Ok(device) => self.until_over(view, device, &mut server, owner, &mut signals, (&mut *caller, behind)).await,
            Err(failure) => Err(failure),
        };
        let ended = match over {
            Ok(Some(ended)) => ended,
            over => {
                handle.stop();
                let ended = tokio::select! {
                    ended = &mut server => ended,
                    // Twice is meant.
                    _ = signals.interrupted.recv() => self.exit(),
                };
                over?;
                ended
            }
        };
        ended.or_fail("serving ended early")?.or_fail("it cannot be served")
    }

    async fn attach(&self, view: &Arc<PointView>, server: &Handle, how: (u32, usize)) -> Result<Option<Device>, Failure> {
        let Some(by) = self.device else { return Ok(None) };
        let (view, server) = (view.clone(), server.clone());
        let attached = tokio::task::spawn_blocking(move || Device::attach(by, &view, &server, how)).await;
        attached.or_fail("cannot start")?.map(Some)
    }

    /// Says where it is, and waits until it is to end, and may. Gives how its server ended if that was by itself.
    async fn until_over(
        &self,
        view: &Arc<PointView>,
        mut device: Option<Device>,
        server: &mut Running,
        owner: Option<oneshot::Receiver<()>>,
        signals: &mut Signals,
        (caller, behind): (&mut Option<UnixStream>, &mut Option<Behind>),
    ) -> Result<Option<Served>, Failure> {
        let opened = Opened { device: device.as_ref().map(|device| device.path().to_owned()), ..self.opened.clone() };
        let overlaid = view.clone();
        let written_bytes = move || overlaid.overlay().map_or(0, Overlay::written_bytes);
        let door = Door::new(&opened, Box::new(written_bytes.clone()))?;
        // Whoever comes now is served; after an error here nobody is.
        let said = if self.global.json { print::json_text(&opened) } else { text(&opened) };
        if !print::is_read(&said)? {
            return Ok(None); // nobody learns where it is
        }
        *behind = match &self.opened.hydrate {
            Some(file) => {
                let hydration = Hydration::start(view.clone(), self.base.clone(), file.clone(), self.global.json)?;
                Some(Behind::Hydration(hydration))
            }
            None if self.is_indexed => None,
            None => Some(Behind::Indexing(Indexing::start(self.base.clone(), view)?)),
        };
        let (is_of_drill, ttl) = (owner.is_some(), self.ttl);
        let over = async move {
            let is_late = async {
                match ttl {
                    Some(ttl) => tokio::time::sleep(ttl).await,
                    None => std::future::pending().await,
                }
            };
            let is_owner_gone = async {
                match owner {
                    Some(owner) => drop(owner.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = is_late => {}
                () = is_owner_gone => {}
            }
        };
        let mut asks = Asks { server, door, signals, over: Some(Box::pin(over)) };
        let refuse =
            |why: &str| Ended { refused: Some(why.to_owned()), failed: None, written_bytes: written_bytes(), is_whole: false };
        loop {
            let mut heard = Vec::new();
            let (by, mut how) = match asks.next().await {
                Asked::Ended(ended) => return Ok(Some(ended)), // a device goes with it
                Asked::AtDoor(by) => (Some(by), How::Kindly),
                Asked::By(signal) => {
                    heard.push(signal);
                    (None, firmness(signal))
                }
                Asked::Over => (None, How::Firmly),
            };
            let failure = loop {
                let pressed = Arc::new(Pressed::new(how));
                let leaving = self.leave(device, is_of_drill, pressed.clone());
                let (left, ended) = asks.while_leaving(leaving, (&pressed, &mut heard), refuse, || self.exit()).await;
                let left = left.or_fail("cannot end");
                if let Some(ended) = ended {
                    *caller = by;
                    return Ok(Some(ended));
                }
                match left? {
                    (_, Ok(())) => {
                        *caller = by;
                        return Ok(None);
                    }
                    (stays, Err(failure)) => {
                        let is_final = how == How::Firmly || pressed.now() != How::Firmly;
                        (device, how) = (stays, pressed.now());
                        if is_final {
                            break failure;
                        }
                    }
                }
            };
            if how > How::Kindly {
                *caller = by;
                return Err(failure); // it is taken away all the same, and what it kept is lost
            }
            match by {
                Some(by) => opened::tell(by, &refuse(&said_of(&failure))).await,
                None => {
                    let _ = writeln!(std::io::stderr(), "farside: it stays open: {}", said_of(&failure));
                }
            }
        }
    }

    /// In a thread of its own: what the device keeps is written by the server meanwhile. With one server of a drill all of it ends.
    fn leave(
        &self,
        mut device: Option<Device>,
        is_of_drill: bool,
        how: Arc<Pressed>,
    ) -> JoinHandle<(Option<Device>, Result<(), Failure>)> {
        let socket = self.socket.to_owned();
        tokio::task::spawn_blocking(move || {
            let may = if is_of_drill && how.now() == How::Kindly { drill::refuse_end_of(&socket) } else { Ok(()) };
            let left = may.and_then(|()| device.as_mut().map_or(Ok(()), |device| device.detach(&how)));
            (device, left)
        })
    }

    /// Whatever is not over: somebody does not want to wait any longer.
    fn exit(&self) -> ! {
        let _ = std::fs::remove_file(self.socket);
        std::process::exit(Exit::Failed as i32)
    }
}

/// Serves a queue that is made here, and whose smallest block is told. `is_device`: to this kernel.
fn serve<Q: BlockQueue>(
    server: Server,
    make: impl FnOnce() -> io::Result<Q>,
    is_device: bool,
    tell: oneshot::Sender<io::Result<u32>>,
) -> Result<(), ServeError> {
    if is_device {
        // † As for ublk: for this thread and those of the queue, which it starts.
        let _ = process::set_io_flusher();
    }
    match make() {
        Ok(queue) => {
            let _ = tell.send(Ok(queue.info().block_min)); // somebody waits for it
            server.run(queue).map(drop)
        }
        Err(error) => {
            let _ = tell.send(Err(error));
            Ok(())
        }
    }
}

struct Signals {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
    is_hangup_ignored: bool,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let of = |kind| signal(kind).or_fail("signals cannot be received");
        let is_hangup_ignored = is_hangup_ignored(); // before it is received
        let (interrupted, terminated, hung_up) =
            (of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?);
        Ok(Self { interrupted, terminated, hung_up, is_hangup_ignored })
    }
}

/// An owner's end, however it comes: his end of the pipe closes.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(());
        std::thread::sleep(ENDS_WITHIN);
        std::process::exit(Exit::Failed as i32);
    });
    told
}

/// Whether who started this (`nohup`) wants it to go on without a terminal.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn open_overlay(dir: &Path, store: Option<&Path>, origin: &Origin, base: &LazyPointReader) -> Result<Overlay, Failure> {
    // Its folder may not be there yet: what `..` would mean then is not known.
    if dir.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::new(Exit::Usage, format!("{} goes up", dir.display()), "name the folder without `..`"));
    }
    refuse_in_store(dir, store, "name another folder: --overlay DIRECTORY")?;
    Overlay::open(dir, origin, base.geometry()).map_err(|error| {
        let (exit, what_to_do) = match &error {
            OverlayError::InUse { .. } => (Exit::Refused, "end the other one, or name another folder: --overlay DIRECTORY"),
            OverlayError::OfAnother { .. } => {
                (Exit::Refused, "open that point, name another folder with --overlay, or remove this one and what was written")
            }
            OverlayError::BecameFile { .. } => (
                Exit::Refused,
                "use that file by itself, and remove the folder; or give the same command with --hydrate and that name",
            ),
            OverlayError::OfOthers { .. } => (Exit::Refused, "name a folder of your own: --overlay DIRECTORY"),
            OverlayError::NotOne { .. } => (Exit::Refused, "name an empty folder, or one that is not there"),
            _ => (Exit::Failed, ""),
        };
        Failure::from_error(exit, &error, what_to_do)
    })
}

fn refuse_in_store(path: &Path, store: Option<&Path>, what_to_do: &str) -> Result<(), Failure> {
    let real = path.ancestors().find_map(|path| path.canonicalize().ok());
    if real.is_some_and(|real| store.is_some_and(|store| real.starts_with(store))) {
        return Err(Failure::new(Exit::Refused, format!("{} lies in the store itself", path.display()), what_to_do));
    }
    Ok(())
}

fn text(opened: &Opened) -> String {
    let how = if opened.writable { "to be written" } else { "read-only" };
    let mut text = format!(
        "{} as of {} (point {}, {}) is open, {how}, at {}\n",
        opened.volume,
        print::time(opened.point.cut_wall),
        opened.point.id,
        print::bytes(opened.volume_bytes),
        opened.device.as_ref().map_or(opened.export.clone(), |device| device.display().to_string()),
    );
    if let Some(dir) = &opened.overlay {
        let (what, holds) =
            (if opened.writable { "what is written" } else { "what is filled" }, print::bytes(opened.written_bytes));
        text.push_str(&format!("  {what} goes to {}, which holds {holds}\n", dir.display()));
    }
    if let Some(file) = &opened.hydrate {
        text.push_str(&format!("  it becomes {}, in the background\n", file.display()));
    }
    if opened.unreadable_bytes > 0 {
        let bytes = print::bytes(opened.unreadable_bytes);
        text.push_str(&format!("! {bytes} could not be read at the source; reads of them fail\n"));
    }
    text.push_str("  Ctrl-C closes it\n");
    text
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).or_fail(path.display())
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use farside_blockio::MemQueue;
    use nix::sys::signal::{self as sent, raise};

    use super::*;

    /// What it does waits for a store, perhaps, that does not answer.
    #[tokio::test]
    async fn who_asks_while_a_device_is_taken_away_is_heard() {
        let dir = tempfile::tempdir().expect("temp dir");
        let opened: Opened = serde_json::from_value(serde_json::json!({
            "point": {
                "id": farside_control::PointId { slot: 7, tag: 1 }, "source": "host1", "group": "db",
                "cut_wall": jiff::Timestamp::UNIX_EPOCH, "cut_mono_before_ns": 0, "cut_mono_after_ns": 0, "boot": "",
                "ledger_time_ms": 0, "members": [],
            },
            "volume": "host1/db/data", "volume_bytes": 4096, "export": "nbd:unix:/data.nbd", "writable": true, "written_bytes": 0,
            "unreadable_bytes": 0, "pid": 1,
        }))
        .expect("as it is said");
        let doors = dir.path().join("doors");
        let door = Door::of(&doors, &opened, Box::new(|| 0)).expect("a door");
        let at = std::fs::read_dir(&doors).expect("there").next().expect("one").expect("read").path();
        let mut signals = Signals::new().expect("received");
        let mut server: Running = tokio::spawn(std::future::pending());
        let over = Box::pin(std::future::ready(()));
        let mut asks = Asks { server: &mut server, door, signals: &mut signals, over: Some(over) };

        let how = Arc::new(Pressed::new(How::Kindly));
        let of = how.clone();
        let leaving = tokio::task::spawn_blocking(move || {
            while of.now() != How::AtOnce {
                std::thread::yield_now();
            }
        });
        let of = how.clone();
        let others = std::thread::spawn(move || {
            let mut at_door = BufReader::new(std::os::unix::net::UnixStream::connect(at).expect("it listens"));
            let mut said = String::new();
            at_door.read_line(&mut said).expect("said");
            at_door.get_mut().write_all(b"close\n").expect("heard");
            said.clear();
            at_door.read_line(&mut said).expect("said");
            while of.now() != How::Firmly {
                std::thread::yield_now(); // its time is over
            }
            raise(sent::Signal::SIGTERM).expect("raised");
            raise(sent::Signal::SIGINT).expect("raised");
            serde_json::from_str::<Ended>(&said).expect("as it is said")
        });
        let mut heard = vec![SignalKind::interrupt()];
        let refuse = |why: &str| Ended { refused: Some(why.to_owned()), failed: None, written_bytes: 0, is_whole: false };
        let (left, ended) = asks.while_leaving(leaving, (&how, &mut heard), refuse, || panic!("twice, not more")).await;
        left.expect("no panic");
        assert!(ended.is_none() && asks.over.is_none());
        assert_eq!(others.join().expect("no panic").refused.as_deref(), Some("it is being closed already"));
    }

    /// Memory that the kernel gave the server of a device could be what it wanted to write to that device first.
    #[test]
    fn who_serves_a_device_of_this_kernel_asks_for_no_memory_that_only_the_device_can_free() {
        const MEMALLOC_NOIO: u64 = 0x0008_0000;
        let is_marked = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("there");
            let (_, fields) = stat.rsplit_once(") ").expect("its name is in brackets");
            fields.split(' ').nth(6).expect("flags").parse::<u64>().expect("a number") & MEMALLOC_NOIO != 0
        };
        let dir = tempfile::tempdir().expect("temp dir");
        let serve_as = |is_device| {
            let options = SocketOptions { path: dir.path().join("socket"), group: None };
            let listener = Listener::bind_after_another(&options, Duration::ZERO).expect("bound");
            let (server, _) = Server::new(listener, "data", "", Limits::default(), Waker::new().expect("a waker"));
            let (tell, mut told) = oneshot::channel();
            let (mark, marked) = std::sync::mpsc::channel();
            let make = move || {
                // As the threads of a queue.
                let of_queue = std::thread::spawn(is_marked).join().expect("it ends");
                mark.send((is_marked(), of_queue)).expect("heard");
                Err::<MemQueue, _>(io::Error::other("that is all"))
            };
            std::thread::spawn(move || serve(server, make, is_device, tell))
                .join()
                .expect("it ends")
                .expect("nothing was served");
            assert!(told.try_recv().expect("told").is_err());
            marked.recv().expect("made")
        };
        assert_eq!(serve_as(false), (false, false));
        let may = std::thread::spawn(|| process::set_io_flusher().is_ok()).join().expect("it ends");
        assert_eq!(serve_as(true), (may, may), "as far as this user may");
    }
}
