//! What is to be kept in the state directory for a thread that must go on: a control thread owns the switch, the heartbeats and the
//! answers to people, of all volumes of its group, and systemd ends a daemon in which one is silent.
//!
//! Invariants: what is asked for is done in that order; nobody waits longer than so, and behind somebody who has waited in vain nobody
//! waits at all. Whoever hears an error knows that it is not surely done. What was not begun by then is never done, what was begun may
//! be done later: so only that is asked for here which may. (A mark that is put for nothing costs a comparison; one whose removal was
//! begun was to be removed.)
//!
//! Deliberately not here: what the protocol waits for in any case, the intent map and its header. Those have a thread for each volume.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded, unbounded};

use crate::config::{ConfigError, write_atomically};
use crate::locked;
use crate::state_dir::Mark;

/// What a healthy disk needs for a sync beside a load, and much less than what a control thread may be silent for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// The way to the thread, which ends with the last of these.
#[derive(Clone, Debug)]
pub(crate) struct Scribe {
    jobs: Sender<Job>,
    line: Arc<Mutex<Line>>,
    patience: Duration,
}

#[derive(Debug, Default)]
struct Line {
    /// Asked for and not over.
    len: usize,
    /// Somebody has waited in vain since there was nothing to do.
    is_late: bool,
}

impl Scribe {
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(patience: Duration) -> io::Result<Self> {
        let (sender, jobs) = unbounded::<Job>();
        let line = Arc::<Mutex<Line>>::default();
        let scribe = Self { jobs: sender, line: line.clone(), patience };
        std::thread::Builder::new().name("scribe".to_owned()).spawn(move || {
            for job in jobs {
                job();
                let mut line = locked(&line);
                line.len -= 1;
                line.is_late &= line.len > 0;
            }
        })?;
        Ok(scribe)
    }

    /// Sets or withdraws a mark.
    ///
    /// # Errors
    /// As [`Mark::put`], and when that takes too long.
    pub(crate) fn mark(&self, mark: Mark, volume_dir: &Path, set: bool) -> Result<(), ConfigError> {
        let dir = volume_dir.to_owned();
        self.make("mark", &mark.path(volume_dir), move || mark.put(&dir, set))
    }

    /// Sets a mark with its reason.
    ///
    /// # Errors
    /// As [`Mark::put`], and when that takes too long.
    pub(crate) fn mark_because(&self, mark: Mark, volume_dir: &Path, why: &str) -> Result<(), ConfigError> {
        let (dir, why) = (volume_dir.to_owned(), why.to_owned());
        self.make("mark", &mark.path(volume_dir), move || mark.put_because(&dir, &why))
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// When it is not durable, or that takes too long.
    pub(crate) fn write(&self, path: &Path, text: String) -> Result<(), ConfigError> {
        let file = path.to_owned();
        self.make("write", path, move || write_atomically(&file, &text))
    }

    fn make(
        &self,
        verb: &'static str,
        path: &Path,
        work: impl FnOnce() -> Result<(), ConfigError> + Send + 'static,
    ) -> Result<(), ConfigError> {
        let silent = || {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("its disk has not answered for {:?}", self.patience));
            Err(ConfigError::Io { verb, path: path.to_owned(), source })
        };
        let mut line = locked(&self.line);
        if line.is_late {
            return silent();
        }
        line.len += 1;
        drop(line);
        let (answer, answered) = bounded(1);
        let is_taken = Arc::new(AtomicBool::new(false));
        let take = is_taken.clone();
        let job = move || {
            if !take.swap(true, Ordering::SeqCst) {
                let _ = answer.send(work()); // who asked may have given up
            }
        };
        self.jobs.send(Box::new(job)).expect("the thread lives as long as somebody may ask it");
        answered.recv_timeout(self.patience).unwrap_or_else(|_| {
            is_taken.store(true, Ordering::SeqCst); // from here on it is not begun any more
            let mut line = locked(&self.line);
            line.is_late = line.len > 0;
            // It may have ended just now.
            answered.try_recv().unwrap_or_else(|_| silent())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// Something that takes as long as it is not let go.
    fn slow(scribe: &Scribe) -> (mpsc::Sender<()>, Result<(), ConfigError>) {
        let (go_on, may_go_on) = mpsc::channel();
        let made = scribe.make("mark", Path::new("slow"), move || {
            let _ = may_go_on.recv(); // or nobody waits for it
            Ok(())
        });
        (go_on, made)
    }

    #[test]
    fn who_has_waited_in_vain_is_the_only_one_and_what_was_not_begun_never_is() {
        let dir = tempfile::tempdir().expect("temp dir");
        let late = Scribe::start(Duration::from_millis(1)).expect("a thread");
        let is_set = || Mark::TrackingLost.is_set(dir.path()).expect("asked");
        let (go_on, made) = slow(&late);
        let said = made.expect_err("its disk is silent").to_string();
        assert!(said.contains("cannot mark slow") && said.contains("has not answered"), "{said}");
        // One with all the time in the world does not wait behind it.
        let patient = Scribe { patience: LONG, ..late.clone() };
        patient.mark(Mark::TrackingLost, dir.path(), true).expect_err("nobody waits for that disk");
        assert_eq!(locked(&late.line).len, 1, "nor does what he wants");
        go_on.send(()).expect("it waits");
        while locked(&late.line).len > 0 {
            std::thread::yield_now();
        }
        assert!(!is_set());
        patient.mark(Mark::TrackingLost, dir.path(), true).expect("the disk is well");
        assert!(is_set());
        patient.mark_because(Mark::TrackingLost, dir.path(), "so").expect("marked");
        assert_eq!(Mark::TrackingLost.reason(dir.path()).as_deref(), Some("so"));
        patient.mark(Mark::TrackingLost, dir.path(), false).expect("withdrawn");
        patient.mark(Mark::TrackingLost, &dir.path().join("missing"), true).expect_err("as the disk says");
        patient.write(&dir.path().join("file"), "text".to_owned()).expect("written");
        assert!(!is_set() && std::fs::read(dir.path().join("file")).expect("there") == b"text");
    }

    /// Two ask at once: who gives up in the line is not served when his turn comes.
    #[test]
    fn who_gives_up_in_the_line_is_passed_over() {
        let dir = tempfile::tempdir().expect("temp dir");
        let patient = Scribe::start(LONG).expect("a thread");
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let first = std::thread::spawn({
            let scribe = patient.clone();
            move || {
                scribe.make("mark", Path::new("slow"), move || {
                    let _ = may_go_on.recv(); // or nobody waits for it
                    Ok(())
                })
            }
        });
        while locked(&patient.line).len == 0 {
            std::thread::yield_now();
        }
        let late = Scribe { patience: Duration::from_millis(1), ..patient.clone() };
        late.mark(Mark::TrackingLost, dir.path(), true).expect_err("it is not his turn");
        go_on.send(()).expect("it waits");
        first.join().expect("it ended").expect("it was done");
        while locked(&patient.line).len > 0 {
            std::thread::yield_now();
        }
        assert!(!Mark::TrackingLost.is_set(dir.path()).expect("asked"), "he was told that it is not done");
    }
}
