//! Events in, lines out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::limit::{BURST, SITES_MAX, WINDOW};
use super::*;

/// A log that keeps its lines, at a time of our choosing.
#[derive(Clone)]
struct Kept {
    log: Arc<Log>,
    now: Arc<Mutex<Instant>>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl<S: Subscriber> Layer<S> for Kept {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let now = *self.now.lock().expect("no panic");
        self.lines.lock().expect("no panic").extend(self.log.take(now, event));
    }
}

impl Kept {
    fn new(style: Style) -> Self {
        Self {
            log: Arc::new(Log::new(style, Sink::new(std::io::stderr()))),
            now: Arc::new(Mutex::new(Instant::now())),
            lines: Arc::default(),
        }
    }

    fn during(&self, f: impl FnOnce()) -> Vec<String> {
        tracing::subscriber::with_default(Registry::default().with(self.clone()), f);
        std::mem::take(&mut *self.lines.lock().expect("no panic"))
    }

    fn pass(&self, time: Duration) {
        *self.now.lock().expect("no panic") += time;
    }
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let kept = Kept::new(Style::Journal);
    let lines = kept.during(|| {
        tracing::error!(volume = "data", error = %"no space left", "not written");
        tracing::warn!(seconds = 3, ok = true, "slow");
        tracing::info!(state = ?Some("x y"), "state");
        tracing::debug!("detail");
    });
    assert_eq!(
        lines,
        [
            "<3>not written volume=data error=\"no space left\"\n",
            "<4>slow seconds=3 ok=true\n",
            "<6>state state=Some(\"x y\")\n",
            "<7>detail\n",
        ]
    );
    assert_eq!((kept.log.errors.load(Ordering::Relaxed), kept.log.warnings.load(Ordering::Relaxed)), (1, 1));
}

#[test]
fn elsewhere_a_line_has_its_time_and_colour_only_if_asked() {
    let lines = Kept::new(Style::Plain { colour: false }).during(|| tracing::warn!("w"));
    let (time, rest) = lines[0].split_once(' ').expect("two words");
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{lines:?}");
    assert_eq!(rest, " WARN w\n");
    let lines = Kept::new(Style::Plain { colour: true }).during(|| tracing::warn!("w"));
    assert!(lines[0].contains("\x1b[33m"), "{lines:?}");
}

#[test]
fn whatever_a_peer_says_stays_one_line() {
    let lines = Kept::new(Style::Journal).during(|| {
        tracing::info!(text = %"a\n<0>forged\x1b[2J", "refused: {}", "b\nc");
        tracing::info!(text = %"x".repeat(100_000), "long");
    });
    assert_eq!(lines[0], "<6>refused: b\\nc text=a\\n<0>forged\\u{1b}[2J\n");
    assert!(lines[1].len() < 5000 && lines[1].ends_with("…\n"), "{}", lines[1].len());
}

#[test]
fn a_token_is_never_written() {
    let token = "farside1-aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4";
    let lines = Kept::new(Style::Journal).during(|| tracing::warn!(%token, "`{token}` and {token}."));
    assert_eq!(lines, ["<4>`farside1-(not shown)` and farside1-(not shown). token=farside1-(not shown)\n"]);
}

#[test]
fn a_call_site_in_a_loop_is_cut_short_and_counted() {
    let kept = Kept::new(Style::Journal);
    let flood = |volume: &str, times: u32| kept.during(|| (0..times).for_each(|_| tracing::warn!(volume, "again")));
    assert_eq!(flood("a", BURST + 7).len(), BURST as usize);
    assert_eq!(flood("b", 3).len(), 3, "another volume is heard");
    assert_eq!(kept.log.suppressed.load(Ordering::Relaxed), 7);
    kept.pass(WINDOW);
    assert_eq!(flood("a", 2), ["<4>again volume=a suppressed=7\n", "<4>again volume=a\n"]);
    // Nothing is said any more: the count is said all the same, once.
    assert_eq!(flood("a", BURST).len(), BURST as usize - 2);
    kept.pass(WINDOW);
    let sweep = || kept.log.limiter.lock().expect("no panic").sweep(*kept.now.lock().expect("no panic"));
    assert_eq!(sweep(), [(Level::WARN, "suppressed 2 more like: again volume=a".to_owned())]);
    assert_eq!(sweep(), []);
}

#[test]
fn what_is_remembered_is_bounded() {
    let kept = Kept::new(Style::Journal);
    kept.during(|| (0..3 * SITES_MAX).for_each(|n| tracing::warn!(volume = n.to_string(), "flood")));
    assert!(kept.log.limiter.lock().expect("no panic").len() <= SITES_MAX + 1);
}

/// The first line that fits says how many did not, as the log's other lines look.
#[test]
fn a_log_that_nobody_reads_holds_up_no_thread() {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("a socket");
    let log = Log::new(Style::Journal, Sink::new(std::os::fd::OwnedFd::from(ours)));
    let lost = || log.lost.load(Ordering::Relaxed);
    while lost() == 0 {
        log.write("<6>filling\n");
    }
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| log.write("<6>lost\n")))));
    assert_eq!(lost(), 4);
    let mut read = || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut theirs, &mut bytes).expect_err("there is no more");
        String::from_utf8(bytes).expect("text")
    };
    assert!(read().lines().all(|line| line == "<6>filling"));
    log.write("<6>again\n");
    assert_eq!(read(), "<4>the log was not taken for a time: what it said meanwhile is lost lines=4\n<6>again\n");
    assert_eq!(lost(), 4);
}
