//! Tracking that was lost, and where that is kept until everything has been compared (§4.5, T3).
//!
//! | Place | Survives |
//! |---|---|
//! | the mark in the volume's folder | everything |
//! | a record in the receiver's ledger, heeded at the next claim | everything; it needs the connection |
//! | a note in the runtime directory | the end of the process, not of the boot |
//!
//! The mark is tried again at every tick and at the stop, since the disk may be well by then. Invariant: a cold write is let go
//! on only when the mark or the record is there, or when neither came within [`WRITES_WAIT`] and the configuration says so;
//! the note alone is no reason, since a power cut takes it. What people are told is what is kept, no more.
//!
//! A mark is put by a thread of its own ([`Marking`]): a disk that dies slowly may take minutes for one, and systemd ends a daemon whose control
//! thread waits for it. Only at the stop it is waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use farside_region::{Name, VolumeId};
use farside_replication::source::Event;
use farside_shim::{Tracking, TrackingVerdict, Volume};
use tracing::{error, info, warn};

use crate::channel::{Nothing, Receiver, channel};
use crate::config::{ConfigError, OnTrackingLost};
use crate::group::{Control, Member};
use crate::locked;
use crate::state_dir::Mark;

/// Cold writes wait so long for the receiver, where the mark cannot be put.
const WRITES_WAIT: Duration = Duration::from_secs(5);

/// A control thread waits so long for a mark, once: a disk that is well needs no more.
const MARK_WAIT: Duration = Duration::from_secs(1);

/// The mark of a loss, while it is wanted. That it is durable late is heard late, and is as good.
///
/// † Not across its removal: what was put before that is no mark any more. So who removes it forgets this as well; what is put all the same, by a
/// thread that was under way, costs a comparison.
#[derive(Debug, Default)]
pub(crate) struct Marking {
    under_way: Option<Receiver<Result<(), ConfigError>>>,
    /// One was waited for in vain, and none is any more until one is put.
    is_late: bool,
}

impl Marking {
    /// Whether its disk has not answered yet.
    fn is_silent(&self) -> bool {
        self.under_way.is_some()
    }

    /// Puts it, or hears what came of that. `None`: nothing yet; it goes on.
    fn put(
        &mut self,
        patience: Duration,
        put: impl FnOnce() -> Result<(), ConfigError> + Send + 'static,
    ) -> Option<Result<(), ConfigError>> {
        let patience = if self.is_late || self.is_silent() { Duration::ZERO } else { patience };
        let under_way = self.under_way.take().unwrap_or_else(|| {
            let (answer, under_way) = channel();
            // Without a thread nobody answers: it is tried again.
            let _ = std::thread::Builder::new().name("mark".to_owned()).spawn(move || answer.send(put()));
            under_way
        });
        match under_way.recv_timeout(patience) {
            Ok(put) => {
                self.is_late &= put.is_err();
                Some(put)
            }
            Err(nothing) => {
                self.is_late = true;
                self.under_way = (nothing == Nothing::Yet).then_some(under_way);
                None
            }
        }
    }

    /// The mark has been removed, or is about to be.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Where a loss of tracking is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Loss {
    /// By the mark; or there is none.
    #[default]
    Kept,
    /// By the receiver; the mark is owed still.
    AtReceiver,
    /// Nowhere that survives a power cut. Cold writes wait until then, or wait no more.
    Owed { writes_wait_until: Option<Instant> },
}

impl Loss {
    /// The receiver has a record of it. True: that is news.
    fn recorded(&mut self) -> bool {
        let is_news = matches!(self, Self::Owed { .. });
        if is_news {
            *self = Self::AtReceiver;
        }
        is_news
    }

    /// What becomes of cold writes; `None`: they wait, while somebody may keep it yet (`connected`: the receiver, or a disk that has not answered).
    fn verdict(&mut self, connected: bool, now: Instant, on_tracking_lost: OnTrackingLost) -> Option<TrackingVerdict> {
        let Self::Owed { writes_wait_until } = self else {
            // † Also of what is lost by now: no header moves above the receiver's record before every bit is set.
            return Some(TrackingVerdict::Pass);
        };
        if connected && writes_wait_until.is_some_and(|until| now < until) {
            return None;
        }
        *writes_wait_until = None;
        Some(match on_tracking_lost {
            OnTrackingLost::Fail => TrackingVerdict::Fail,
            OnTrackingLost::Pass => TrackingVerdict::Pass,
        })
    }
}

/// Volumes that are closed but for what their next opening must know, which can be kept nowhere, and why.
#[derive(Debug, Default)]
pub(crate) struct Unkept(Mutex<BTreeMap<Name, String>>);

impl Unkept {
    pub(crate) fn why(&self, name: &Name) -> Option<String> {
        locked(&self.0).get(name).cloned()
    }

    pub(crate) fn set(&self, name: &Name, why: Option<String>) {
        match why {
            Some(why) => locked(&self.0).insert(name.clone(), why),
            None => locked(&self.0).remove(name),
        };
    }
}

/// The note in the runtime directory.
pub(crate) struct LossNote {
    path: PathBuf,
}

impl LossNote {
    pub(crate) fn of(runtime_dir: &Path, volume: VolumeId) -> Self {
        Self { path: runtime_dir.join(format!("tracking-lost-{volume}")) }
    }

    pub(crate) fn is_there(&self) -> std::io::Result<bool> {
        self.path.try_exists()
    }

    pub(crate) fn put(&self) -> std::io::Result<()> {
        std::fs::File::create(&self.path).map(drop)
    }

    /// Only when the mark has been put, or every bit has.
    pub(crate) fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(note = %self.path.display(), %error, "cannot be removed: the next start compares everything once more");
            }
            _ => {}
        }
    }
}

/// What says that everything must be compared.
#[derive(Debug)]
#[must_use]
pub(crate) enum KeptBy {
    Mark,
    /// Enough for this boot; and why there is no mark.
    Note(ConfigError),
}

/// Has whoever opens a volume next compare everything: by the mark, else by the note.
///
/// # Errors
/// When neither can be put.
pub(crate) fn keep(dir: &Path, note: &LossNote, why: &str) -> anyhow::Result<KeptBy> {
    let Err(error) = Mark::TrackingLost.put_because(dir, why) else { return Ok(KeptBy::Mark) };
    warn!(dir = %dir.display(), %error, "that tracking was lost cannot be recorded here");
    note.put().with_context(|| format!("nothing keeps that everything must be compared ({error})"))?;
    Ok(KeptBy::Note(error))
}

impl Control {
    /// The intent map failed. May be heard several times of one loss.
    pub(crate) fn tracking_lost(&mut self, id: VolumeId) {
        if !self.members.contains_key(&id) {
            return;
        }
        self.step(Event::TrackingLost { volume: id });
        let connected = self.link.is_some();
        let patience = self.marks_wait();
        let member = self.members.get_mut(&id).expect("looked at above");
        let Err(error) = member.put_mark(patience) else { return };
        let name = &member.served.config.name;
        let connected = connected || member.marking.is_silent();
        if member.loss == Loss::Kept {
            error!(volume = %name, %error, "that tracking was lost cannot be recorded here; the receiver is asked to keep it");
            if let Err(error) = member.note.put() {
                warn!(volume = %name, %error, "nor can it be noted in the runtime directory");
            }
            member.loss = Loss::Owed { writes_wait_until: connected.then(|| Instant::now() + WRITES_WAIT) };
        }
        member.decide(connected);
        self.step(Event::KeepLoss { volume: id });
    }

    /// Tries the marks that are owed, and ends the waiting of cold writes whose time has come.
    pub(crate) fn settle_losses(&mut self) {
        let connected = self.link.is_some();
        let mut patience = self.marks_wait();
        for member in self.members.values_mut().filter(|m| m.loss != Loss::Kept) {
            if member.put_mark(patience).is_err() {
                let is_silent = member.marking.is_silent();
                member.decide(connected || is_silent);
                patience = if is_silent { Duration::ZERO } else { patience };
            }
        }
    }

    /// Many volumes may have lost track by one disk that does not answer: the first of them is waited for.
    fn marks_wait(&self) -> Duration {
        let is_any_silent = self.members.values().any(|member| member.marking.is_silent());
        if is_any_silent { Duration::ZERO } else { MARK_WAIT }
    }

    /// The receiver's ledger has it.
    pub(crate) fn loss_kept(&mut self, id: VolumeId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        // It says so on every connection.
        if member.loss.recorded() {
            info!(volume = %member.served.config.name, "the receiver keeps that tracking was lost");
            resolve(&member.served.volume, TrackingVerdict::Pass);
        }
    }
}

impl Member {
    /// # Errors
    /// It is not there: why not, or why that is not known.
    fn put_mark(&mut self, patience: Duration) -> Result<(), String> {
        let dir = self.served.dir.clone();
        let put = match self.marking.put(patience, move || Mark::TrackingLost.put(&dir, true)) {
            Some(put) => put.map_err(|error| error.to_string()),
            // What was said of the one before is no worse.
            None => Err(self.unmarked.take().unwrap_or_else(|| "its disk does not answer".to_owned())),
        };
        self.unmarked = put.as_ref().err().cloned();
        put?;
        self.note.remove();
        self.loss = Loss::Kept;
        resolve(&self.served.volume, TrackingVerdict::Pass);
        Ok(())
    }

    /// What becomes of cold writes while there is no mark.
    fn decide(&mut self, connected: bool) {
        if let Some(verdict) = self.loss.verdict(connected, Instant::now(), self.served.config.on_tracking_lost) {
            resolve(&self.served.volume, verdict);
        }
    }
}

/// A volume that passes, or fails, already is left alone, but for failing writes that may pass now.
fn resolve(volume: &Volume, verdict: TrackingVerdict) {
    let news = match volume.tracking() {
        Tracking::Sound | Tracking::LostPassing => false,
        Tracking::LostFailing => verdict == TrackingVerdict::Pass,
        Tracking::Lost => true,
    };
    if news {
        volume.resolve_tracking_lost(verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_compared_is_kept_in_one_place_or_the_other() {
        let dir = tempfile::tempdir().expect("temp dir");
        let missing = dir.path().join("missing");
        let note = LossNote::of(dir.path(), VolumeId([7; 16]));
        assert!(matches!(keep(dir.path(), &note, "why").expect("kept"), KeptBy::Mark));
        assert!(Mark::TrackingLost.is_set(dir.path()).expect("known") && !note.is_there().expect("asked"));
        let KeptBy::Note(unmarked) = keep(&missing, &note, "why").expect("kept") else { panic!("there is no such folder") };
        assert!(unmarked.to_string().contains("missing/tracking-lost"), "{unmarked}");
        assert!(note.is_there().expect("asked"));
        let nowhere = LossNote::of(&missing, VolumeId([7; 16]));
        assert!(keep(&missing, &nowhere, "why").is_err(), "nobody would know");
    }

    /// The disk of the state directory answered nothing for half a minute, and systemd ended the daemon, whose control thread waited for it.
    #[test]
    fn a_mark_whose_disk_does_not_answer_holds_up_nobody_and_is_heard_of_when_it_does() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (gate, path) = (dir.path().join("tracking-lost"), dir.path().to_owned());
        // Where the mark should be is something that waits for a reader.
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let mut marking = Marking::default();
        let mut put = |marking: &mut Marking| {
            let path = path.clone();
            marking.put(Duration::from_millis(10), move || Mark::TrackingLost.put(&path, true))
        };
        assert!(put(&mut marking).is_none() && marking.is_silent());
        let heard = |marking: &mut Marking, put: &mut dyn FnMut(&mut Marking) -> Option<Result<(), ConfigError>>| {
            let began = Instant::now();
            loop {
                match put(marking) {
                    Some(heard) => return heard,
                    None => assert!(began.elapsed() < Duration::from_secs(60), "nothing is heard of it"),
                }
                std::thread::yield_now();
            }
        };
        drop(std::fs::File::open(&gate).expect("opened"));
        heard(&mut marking, &mut put).expect_err("nobody can sync that");
        assert!(!marking.is_silent());
        std::fs::remove_file(&gate).expect("removed");
        heard(&mut marking, &mut put).expect("the disk is well");
        assert!(Mark::TrackingLost.is_set(dir.path()).expect("known") && !marking.is_silent());
    }

    /// † Everything was compared and the mark withdrawn before it was heard that it had been put: a loss after that has none.
    #[test]
    fn a_mark_that_was_put_before_it_was_withdrawn_is_none_of_a_later_loss() {
        let mut marking = Marking::default();
        let (go_on, may_go_on) = channel::<()>();
        let late = move || {
            let _ = may_go_on.recv();
            Ok(())
        };
        assert!(marking.put(Duration::ZERO, late).is_none());
        go_on.send(()).expect("it waits");
        marking.forget();
        let (_stays, never) = channel::<()>();
        let silent = move || {
            let _ = never.recv();
            Ok(())
        };
        assert!(marking.put(Duration::from_millis(100), silent).is_none(), "that of another loss");
    }

    /// The map failed, was made anew and failed once more before anybody had compared anything, and the receiver was away by then: what it
    /// had recorded the first time speaks of the second, too, and writes that nobody had decided about waited until it was back.
    #[test]
    fn cold_writes_wait_for_a_record_and_not_for_a_second_one() {
        let now = Instant::now();
        for policy in [OnTrackingLost::Pass, OnTrackingLost::Fail] {
            assert_eq!(Loss::AtReceiver.verdict(false, now, policy), Some(TrackingVerdict::Pass));
            let mut owed = Loss::Owed { writes_wait_until: Some(now + WRITES_WAIT) };
            assert_eq!(owed.verdict(true, now, policy), None);
            let verdict = match policy {
                OnTrackingLost::Pass => TrackingVerdict::Pass,
                OnTrackingLost::Fail => TrackingVerdict::Fail,
            };
            let mut late = owed;
            assert_eq!(late.verdict(true, now + WRITES_WAIT, policy), Some(verdict));
            assert_eq!(owed.verdict(false, now, policy), Some(verdict), "nobody is asked");
            assert_eq!(owed.verdict(true, now, policy), Some(verdict), "they waited once");
        }
    }

    /// The log said at every reconnect that the receiver keeps a loss.
    #[test]
    fn a_record_is_news_once_in_a_loss() {
        let mut loss = Loss::Owed { writes_wait_until: None };
        assert!(loss.recorded() && loss == Loss::AtReceiver);
        assert!(!loss.recorded() && loss == Loss::AtReceiver, "said again, by the next connection");
        loss = Loss::Kept;
        assert!(!loss.recorded() && loss == Loss::Kept, "the mark has taken its place");
        loss = Loss::Owed { writes_wait_until: None };
        assert!(loss.recorded(), "another loss");
    }

    #[test]
    fn a_note_is_there_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let note = LossNote::of(dir.path(), VolumeId([7; 16]));
        assert!(!note.is_there().expect("asked"));
        note.remove();
        note.put().expect("put");
        assert!(LossNote::of(dir.path(), VolumeId([7; 16])).is_there().expect("asked"));
        assert!(!LossNote::of(dir.path(), VolumeId([8; 16])).is_there().expect("asked"), "another volume's");
        note.remove();
        assert!(!note.is_there().expect("asked"));
    }
}
