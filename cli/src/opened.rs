//! The points that are open on this machine. Each one has a door: a socket in a folder of its user, where others learn what is open and
//! may ask for its end.
//!
//! A line of JSON says what is open ([`Opened`]). Whoever then sends `close` hears how that ended ([`Ended`]) when everything was flushed
//! and no NBD client can come any more. One that was killed leaves a socket that refuses, which goes when it is found again.

use std::fs::DirBuilder;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream as Caller;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_control::{Address, Point};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::print::{self, Table};

/// A socket that refuses is taken for one that was left when it is so old: a younger one may be about to listen.
const LEFT_AFTER: Duration = Duration::from_secs(10);
/// One that does not say so soon what it is, is ending.
const SAYS_WITHIN: Duration = Duration::from_secs(5);
/// What it is takes less than that.
const SAYS_BYTES_MAX: u64 = 64 << 10;
/// After somebody could not be heard.
const DEAF_FOR: Duration = Duration::from_millis(100);
const CLOSE: &str = "close\n";

/// What is said as soon as clients may come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) point: Point,
    pub(crate) volume: String,
    pub(crate) volume_bytes: u64,
    /// As taps are named.
    pub(crate) export: String,
    /// Of this machine's kernel.
    pub(crate) device: Option<PathBuf>,
    pub(crate) writable: bool,
    /// Where what is written goes.
    pub(crate) overlay: Option<PathBuf>,
    /// The file that it becomes.
    pub(crate) hydrate: Option<PathBuf>,
    /// What is in the overlay when this is said.
    pub(crate) written_bytes: u64,
    /// What the source could not read: reads of it fail.
    pub(crate) unreadable_bytes: u64,
    /// Of the process that serves it.
    pub(crate) pid: u32,
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Why it has not ended at all.
    pub(crate) refused: Option<String>,
    /// What did not go as it should.
    pub(crate) failed: Option<String>,
    /// What is in the overlay now.
    pub(crate) written_bytes: u64,
    /// The file of --hydrate is there.
    pub(crate) is_whole: bool,
}

impl Opened {
    /// What is left of it, to follow on a sentence.
    pub(crate) fn left(&self, ended: &Ended) -> String {
        let bytes = print::bytes(ended.written_bytes);
        match (&self.hydrate, &self.overlay) {
            (Some(file), _) if ended.is_whole => format!("; {} is whole", file.display()),
            (Some(file), Some(dir)) => {
                format!("; {bytes} are in {}, and the same command goes on until {} is whole", dir.display(), file.display())
            }
            (None, Some(dir)) => format!("; {bytes} written over the point are in {}", dir.display()),
            (_, None) => String::new(),
        }
    }
}

/// Through which an open point is found. Dropped, it is gone.
pub(crate) struct Door {
    listener: NamedTempFile<UnixListener>,
    opened: Opened,
    written_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
    ask: mpsc::Sender<UnixStream>,
    asked: mpsc::Receiver<UnixStream>,
}

impl Door {
    /// `written_bytes`: what is in the overlay now.
    pub(crate) fn new(opened: &Opened, written_bytes: Box<dyn Fn() -> u64 + Send + Sync>) -> Result<Self, Failure> {
        Self::of(&folder(), opened, written_bytes)
    }

    pub(crate) fn of(folder: &Path, opened: &Opened, written_bytes: Box<dyn Fn() -> u64 + Send + Sync>) -> Result<Self, Failure> {
        let failed = |what| format!("{} cannot be {what}", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(folder).or_fail(failed("made"))?;
        if !is_ours(folder).or_fail(failed("looked at"))? {
            let message = format!("{} is not a folder of this user alone", folder.display());
            return Err(Failure::new(Exit::Refused, message, "remove it"));
        }
        let listener = tempfile::Builder::new().prefix("").suffix(".sock").make_in(folder, |path| UnixListener::bind(path));
        let (ask, asked) = mpsc::channel(1);
        Ok(Self { listener: listener.or_fail(failed("used"))?, opened: opened.clone(), written_bytes, ask, asked })
    }

    fn says(&self) -> String {
        let now = Opened { written_bytes: (self.written_bytes)(), ..self.opened.clone() };
        serde_json::to_string(&now).expect("it is JSON") + "\n"
    }

    /// The next who asks for its end, to be told of that. Given up, it loses nobody.
    pub(crate) async fn is_asked(&mut self) -> UnixStream {
        loop {
            tokio::select! {
                Some(caller) = self.asked.recv() => return caller,
                caller = self.listener.as_file().accept() => match caller {
                    Ok((caller, _)) => drop(tokio::spawn(hear(caller, self.says(), self.ask.clone()))),
                    // Perhaps there is no descriptor left for it just now.
                    Err(_) => tokio::time::sleep(DEAF_FOR).await,
                }
            }
        }
    }
}

async fn hear(mut caller: UnixStream, says: String, ask: mpsc::Sender<UnixStream>) {
    let mut word = String::new();
    let said = caller.write_all(says.as_bytes()).await;
    let mut limited = tokio::io::BufReader::new(&mut caller).take(CLOSE.len() as u64);
    if said.is_ok() && limited.read_line(&mut word).await.is_ok() && word == CLOSE {
        let _ = ask.send(caller).await; // whose end is not heard any more sees that it is gone
    }
}

/// Tells who asked.
pub(crate) async fn tell(mut caller: UnixStream, ended: &Ended) {
    let mut text = serde_json::to_string(ended).expect("it is JSON");
    text.push('\n');
    let _ = caller.write_all(text.as_bytes()).await; // he may have lost patience
}

/// Whether a folder is of this user alone: what is in it can be believed.
fn is_ours(folder: &Path) -> io::Result<bool> {
    let is = std::fs::symlink_metadata(folder)?;
    Ok(is.is_dir() && is.uid() == nix::unistd::geteuid().as_raw() && is.mode() & 0o077 == 0)
}

/// Of this user, and the same from every session of his.
fn folder() -> PathBuf {
    let user = nix::unistd::geteuid();
    let session = PathBuf::from(format!("/run/user/{user}"));
    match () {
        () if user.is_root() => "/run/farside-open".into(),
        () if session.is_dir() => session.join("farside-open"),
        () => format!("/tmp/farside-open-{user}").into(),
    }
}

/// One that was found.
struct Found {
    opened: Opened,
    door: BufReader<Caller>,
}

/// Points that this user has open on this machine.
pub(crate) fn found() -> Vec<Opened> {
    find().into_iter().map(|found| found.opened).collect()
}

fn find() -> Vec<Found> {
    let folder = Some(folder()).filter(|folder| is_ours(folder).unwrap_or(false));
    let doors = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let mut found: Vec<Found> = doors.filter_map(|door| ask(&door.path()).ok()).collect();
    found.sort_by(|a, b| a.opened.export.cmp(&b.opened.export));
    found
}

fn ask(path: &Path) -> io::Result<Found> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let door = Caller::connect(path).inspect_err(|error| {
        let age = std::fs::symlink_metadata(path).and_then(|is| is.modified()).ok().and_then(|made| made.elapsed().ok());
        if error.kind() == io::ErrorKind::ConnectionRefused && age.is_some_and(|age| age > LEFT_AFTER) {
            let _ = std::fs::remove_file(path);
        }
    })?;
    door.set_read_timeout(Some(SAYS_WITHIN))?;
    let mut door = BufReader::new(door);
    let mut line = String::new();
    (&mut door).take(SAYS_BYTES_MAX).read_line(&mut line)?;
    Ok(Found { opened: serde_json::from_str(&line)?, door })
}

/// `farside point opened`.
pub(crate) fn list(global: &Global) -> Result<(), Failure> {
    let found = find();
    if global.json {
        return print::json(&found.iter().map(|found| &found.opened).collect::<Vec<_>>());
    }
    if found.is_empty() {
        return print::out("this user has no point open on this machine\n");
    }
    print::out(&table(&found).fit(print::Look::of_stdout()))
}

fn table(found: &[Found]) -> Table {
    let mut table = Table::new(&["VOLUME", "POINT", "CUT", "SIZE", "", "AT"]);
    for Found { opened, .. } in found {
        let mut how = if opened.writable { "to be written".to_owned() } else { "read-only".to_owned() };
        if opened.overlay.is_some() {
            let share = opened.written_bytes.min(opened.volume_bytes) as f64 / opened.volume_bytes.max(1) as f64;
            how.push_str(&match opened.hydrate {
                Some(_) => format!(", {:.0} % of its file", (100.0 * share).floor()),
                None => format!(", {} written", print::bytes(opened.written_bytes)),
            });
        }
        let (cut, size) = (print::time(opened.point.cut_wall), print::bytes(opened.volume_bytes));
        let device = opened.device.as_ref().map(|device| device.display().to_string());
        let at = device.as_ref().unwrap_or(&opened.export);
        table.row([opened.volume.as_str(), &opened.point.id.to_string(), &cut, &size, &how, at]);
    }
    table
}

/// `farside point close`.
pub(crate) fn close(global: &Global, what: &str) -> Result<(), Failure> {
    let mut found = find();
    found.retain(|found| is_meant(&found.opened, what));
    if found.len() > 1 {
        let message = format!("`{what}` is open more than once:\n{}", table(&found));
        return Err(Failure::new(Exit::Refused, message, "name the socket"));
    }
    let Some(Found { opened, mut door }) = found.pop() else {
        let message = format!("this user has nothing open on this machine that `{what}` names");
        return Err(Failure::new(Exit::NotFound, message, "see what is open: farside point opened"));
    };
    let mut line = String::new();
    let heard = door.get_ref().set_read_timeout(None).and_then(|()| door.get_mut().write_all(CLOSE.as_bytes()));
    let heard = heard.and_then(|()| door.read_line(&mut line));
    let name = format!("{} at {}", opened.volume, opened.point.id);
    let ended: Ended = match heard.map(|_| serde_json::from_str(&line)) {
        Ok(Ok(ended)) => ended,
        _ => {
            let message = format!("{name} does not say how it ended");
            return Err(Failure::new(Exit::Failed, message, "see what the command said that had it open"));
        }
    };
    if let Some(refused) = &ended.refused {
        return Err(Failure::new(Exit::Refused, format!("{name} stays open: {refused}"), ""));
    }
    if let Some(failed) = &ended.failed {
        return Err(Failure::new(Exit::Failed, format!("{name} is closed: {failed}"), ""));
    }
    if global.json {
        return print::json(&ended);
    }
    print::out(&format!("{name} is closed{}\n", opened.left(&ended)))
}

/// By its socket, its volume, or its volume and its point.
fn is_meant(opened: &Opened, what: &str) -> bool {
    let path = what.strip_prefix("nbd:").unwrap_or(what);
    let path = std::path::absolute(path.strip_prefix("unix:").unwrap_or(path));
    if path.is_ok_and(|path| opened.export == export_of(&path) || opened.device.as_ref() == Some(&path)) {
        return true;
    }
    let (volume, point) = what.split_once('@').map_or((what, None), |(volume, point)| (volume, Some(point)));
    let name = opened.volume.rsplit('/').next().unwrap_or_default();
    volume.parse().is_ok_and(|of: Address| of.is_volume(&opened.point.source, &opened.point.group, name))
        && point.is_none_or(|point| opened.point.id.to_string() == point)
}

/// As taps are named.
pub(crate) fn export_of(socket: &Path) -> String {
    format!("nbd:unix:{}", socket.display())
}
