//! `farside store follow`: keeps a file or a block device equal to a volume's points, on a machine that has nothing but the store.
//!
//! A gateway takes what a source sends, once; further sites follow its store (a cascade), so that the slowest target never holds a cut. By which rules a target
//! is written is `farside_store`'s, the same as for the receiver's followers. Here: the command line, what a person hears, and that a signal ends it
//! between two regions.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use farside_control::Address;
use farside_control::source::LastPoint;
use farside_store::Wanted;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Global, KeyArg};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::{confirm, guard, print, store};

mod kept;
mod run;

use kept::Kept;
use run::Run;

/// Looking for a newer point more often than this only costs.
const EVERY_MIN: Duration = Duration::from_millis(100);
/// Where what is known of a target lies, beside it.
const KEPT_BESIDE: &str = ".farside-follow";

/// `farside store follow`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The target is written in place, and only where it differs. The first time all of the point is
written; its beginning comes last, so that it does not look whole before it is. Until the target
holds a point, this command says that it does not; a power cut or a kill costs the way to that point
and nothing else: the same command goes on.

What the target holds is noted in a directory of its own: TARGET.farside-follow beside a file, for a
device the one that --state names. It belongs to the target: without it all of the target is
compared, and --overwrite must be said.

Nothing is written to the store. In a bucket the point that is being read is kept by a lease, which
is the one object that it puts there and removes; in a directory, by a lock, which does not reach
over NFS. What the target holds already is kept by nobody: retention goes on.

If somebody else writes to the target, that is noticed before anything is written over it: the
command ends with 6 and names the regions. Look at it (losetup -r, mount -o ro,noload), then say the
same with --heal. All of the target is compared with its point once a week, after a kill, and with
--verify.

Where the store is away, or its newest records cannot be read, it says so and waits; other errors end
it. As a service: systemctl enable --now farside-follow@NAME, which reads /etc/farside/follow/NAME.

Exit codes: 0 it was ended by a signal, or the one pass is done; 1 it failed; 2 the command line
makes no sense; 4 refused: the target, the key or the store is not what it should be; 5 no such
volume, or no point for the target yet; 6 the target is not what it should hold, or the store is
damaged. Only a person goes on from 2, 4 and 6.

Examples:
  farside store follow /mnt/farside web1/db/data --to /srv/standby/data.img
  farside store follow s3://points/site-1 web1/db/data --to /dev/vg/data --state /var/lib/standby/data
  farside store follow /mnt/farside web1/db/data --to /srv/standby/data-1h.img --delay 1h
  farside store follow /mnt/farside web1/db/data --to /srv/standby/data.img --once --json")]
pub(crate) struct FollowArgs {
    /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
    #[arg(value_name = "STORE")]
    url: String,
    /// The volume: NAME, SOURCE/NAME, GROUP/NAME or SOURCE/GROUP/NAME.
    volume: Address,
    /// A file or a block device. A file that is not there is made.
    #[arg(long, value_name = "FILE|DEVICE")]
    to: PathBuf,
    /// What opens it.
    #[command(flatten)]
    key: KeyArg,
    /// Stay so long behind: what happens to the volume reaches the target only then. It goes by the age clock of the points, which stands still while
    /// none are published. Where the store keeps points for less than this, none is ever old enough.
    #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_duration)]
    delay: Option<Duration>,
    /// Look for a newer point so often. A look is one request where there is none.
    #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_duration, default_value = "5s")]
    every: Duration,
    /// Bring the target to the point once, and end.
    #[arg(long)]
    once: bool,
    /// Compare all of the target with the point that it holds once it was brought there. Exits with 6 if it differs.
    #[arg(long)]
    verify: bool,
    /// What the target holds may be lost, the first time. What of it is right already stays and is not written again.
    #[arg(long)]
    overwrite: bool,
    /// Overwrite whatever differs in the target, also where somebody else wrote to it, or the store's history is another one now: it asks first.
    #[arg(long)]
    heal: bool,
    /// Do not ask.
    #[arg(long, short, requires = "heal")]
    yes: bool,
    /// Where what the target holds is noted [default: TARGET.farside-follow, beside a file].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// What is to be done, in full.
struct Order {
    location: farside_objects::Location,
    volume: Address,
    to: PathBuf,
    key: Option<farside_keys::Keeper>,
    wanted: Wanted,
    every: Duration,
    once: bool,
    overwrite: bool,
}

/// Follows until it is told to end.
pub(crate) async fn run(global: &Global, args: FollowArgs) -> Result<(), Failure> {
    if args.every < EVERY_MIN {
        let what = format!("say {} or more", print::duration_ms(EVERY_MIN.as_millis() as u64));
        return Err(Failure::new(
            Exit::Usage,
            format!("--every {} is too often", print::duration_ms(args.every.as_millis() as u64)),
            what,
        ));
    }
    let location = store::location_of(&args.url)?;
    let to = std::path::absolute(&args.to).or_fail(args.to.display())?;
    let state = refuse_places(&to, args.state.as_deref(), Path::new(&location.to_string()))?;
    let key = args.key.keeper()?;
    let kept = Kept::open(&state, &to)?;
    // † It would become a file in memory, and be filled. One that was begun is waited for.
    if to.starts_with("/dev") && !to.exists() && !kept.is_begun() {
        let message = format!("there is no {}", to.display());
        return Err(Failure::new(Exit::Refused, message, "name a block device that is there, or a file elsewhere"));
    }
    if args.heal {
        let question = format!(
            "What somebody else wrote to {} is lost then.\nOverwrite whatever differs from a point of {}?",
            to.display(),
            args.volume
        );
        confirm::confirm(&question, "nothing was changed", args.yes)?;
    }
    let delay_ms = args.delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    let order = Order {
        location,
        volume: args.volume,
        to,
        key,
        wanted: delay_ms.map_or(Wanted::Newest, Wanted::Behind),
        every: args.every,
        once: args.once,
        overwrite: args.overwrite || args.heal, // a person said so
    };
    let stop = Arc::new(Stop::default());
    let failed = "signals cannot be received";
    let mut terminated = signal(SignalKind::terminate()).or_fail(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).or_fail(failed)?;
    let mut work = tokio::task::spawn_blocking({
        let (stop, says) = (Arc::clone(&stop), Says::new(global.json, args.once));
        move || Run::new(order, kept, says, stop).run(args.heal, args.verify)
    });
    loop {
        let is_said_twice = tokio::select! {
            done = &mut work => return done.or_fail("following ended early")?,
            _ = terminated.recv() => { stop.ask(); false }
            _ = interrupted.recv() => stop.ask(),
        };
        if is_said_twice {
            std::process::exit(Exit::Failed as i32);
        }
    }
}

/// What must not be a target, or hold what is known of one; gives where that is.
fn refuse_places(to: &Path, state: Option<&Path>, store: &Path) -> Result<PathBuf, Failure> {
    guard::refuse(to, store)?;
    let state = match state {
        Some(state) => std::path::absolute(state).or_fail(state.display())?,
        None if to.starts_with("/dev") => {
            let message = format!("{} has nothing beside it where what it holds could be noted", to.display());
            return Err(Failure::new(Exit::Usage, message, "name a directory of its own: --state DIR"));
        }
        None => {
            let mut beside = to.as_os_str().to_owned();
            beside.push(KEPT_BESIDE);
            beside.into()
        }
    };
    guard::refuse(&state, store)?;
    Ok(state)
}

/// Whether this is to end.
#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is; whether that was said before.
    fn ask(&self) -> bool {
        let before = std::mem::replace(&mut *self.lock(), true);
        self.changed.notify_all();
        before
    }

    fn is_asked(&self) -> bool {
        *self.lock()
    }

    /// Waits for so long, or until it is to end.
    fn wait(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut asked = self.lock();
        while !*asked {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            asked = self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What is said, a line of JSON each for scripts.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'e> {
    /// The target holds a point, whole.
    Holds { volume: &'e str, to: &'e Path, point: &'e LastPoint, written_bytes: u64, took_ms: u64 },
    /// All of it was compared with that point.
    Verified { volume: &'e str, to: &'e Path, point: &'e LastPoint },
    /// It does not go on just now, and why.
    Waits { why: &'e str, what_to_do: &'e str },
}

/// Who says it.
#[derive(Debug)]
struct Says {
    json: bool,
    once: bool,
    /// What it waits for, as was said last: not again and again.
    waits: Option<String>,
}

impl Says {
    fn new(json: bool, once: bool) -> Self {
        Self { json, once, waits: None }
    }

    /// Whether the last that was said is that something is waited for.
    fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    fn say(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let text = self.text(event);
        match event {
            Event::Waits { why, .. } if self.waits.as_deref() == Some(why) => return Ok(()),
            Event::Waits { why, .. } => self.waits = Some((*why).to_owned()),
            _ => self.waits = None,
        }
        match (self.json, event) {
            // Alone it is as other commands have it.
            (true, event) if self.once => print::json(event),
            (true, event) => print::out(&format!("{}\n", serde_json::to_string(event).expect("it is JSON"))),
            (false, Event::Waits { .. }) => {
                eprint!("{text}");
                Ok(())
            }
            (false, _) => print::out(&text),
        }
    }

    fn text(&self, event: &Event<'_>) -> String {
        match event {
            Event::Holds { volume, to, point, written_bytes, took_ms } => format!(
                "{} holds {volume} as of {} (point {}): {} written in {}\n",
                to.display(),
                print::time(point.cut_wall),
                point.id,
                print::bytes(*written_bytes),
                print::duration_ms(*took_ms)
            ),
            Event::Verified { volume, to, point } => {
                format!(
                    "{} was compared, and is {volume} as of {} (point {})\n",
                    to.display(),
                    print::time(point.cut_wall),
                    point.id
                )
            }
            Event::Waits { why, what_to_do: "" } => format!("farside: waits: {why}\n"),
            Event::Waits { why, what_to_do } => format!("farside: waits: {why}\n         {what_to_do}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_device_is_not_kept_in_dev() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = dir.path().join("store");
        std::fs::create_dir(&store).expect("mkdir");
        std::fs::write(store.join("farside-store.json"), "{}").expect("written");
        let refused = |to: &Path, state: Option<&Path>| refuse_places(to, state, &store).map_err(|failure| failure.exit);
        assert_eq!(refused(Path::new("/dev/null"), None), Err(Exit::Usage));
        assert_eq!(refused(Path::new("/dev/null"), Some(&store.join("a/b/state"))), Err(Exit::Refused), "not made in it, either");
        assert_eq!(refused(Path::new("/dev/null"), Some(dir.path())), Ok(dir.path().to_owned()));
        assert_eq!(refused(Path::new("/dev/null"), Some(&store.join("state"))), Err(Exit::Refused));
        assert_eq!(refused(&store.join("x"), None), Err(Exit::Refused));
        let to = dir.path().join("data.img");
        assert_eq!(refused(&to, None), Ok(dir.path().join("data.img.farside-follow")));
    }

    #[test]
    fn whoever_waits_hears_that_it_is_to_end() {
        let stop = Stop::default();
        stop.wait(Duration::from_millis(1));
        assert!(!stop.ask() && stop.ask());
        stop.wait(Duration::from_secs(3600));
    }

    #[test]
    fn the_same_is_waited_for_in_silence() {
        let mut says = Says::new(false, false);
        for (why, then) in [("a", Some("a")), ("a", Some("a")), ("b", Some("b"))] {
            says.say(&Event::Waits { why, what_to_do: "" }).expect("said");
            assert_eq!(says.waits.as_deref(), then);
        }
        let event = Event::Waits { why: "the store is away", what_to_do: "mount it" };
        assert_eq!(says.text(&event), "farside: waits: the store is away\n         mount it\n");
        let json = serde_json::to_value(&event).expect("JSON");
        assert_eq!((&json["event"], &json["why"]), (&"waits".into(), &"the store is away".into()));
    }
}
