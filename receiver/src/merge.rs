//! Merging parts that history no longer tells apart: of every group an interval at a time, beside everything else.
//!
//! ```text
//! look (group) ──► find: read footers ──► write one part ──► judge (group): its record, or a decree over it ──► the next
//! ```
//!
//! Invariant: it never holds up a group's thread, which only hands out what to look at and puts the record; and it keeps to its rate. What a
//! stop or a lost store cuts short is decreed away by whoever opens the group next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use farside_blockio::process::Priority;
use farside_store::{GroupNames, SpoiledLook, StoreError};
use tokio::sync::oneshot;

use crate::group::{GroupHandle, Mail, MergeNext};
use crate::keys;
use crate::pace::wait_until;
use crate::process::Receiver;

/// Where nothing is merged any more: how often it is looked whether something is left of merges that came to nothing.
const LEFT: Duration = Duration::from_secs(3600);
/// How often it is looked whether anything is due.
const LOOK: Duration = Duration::from_millis(200);

/// Merges until the receiver stops.
pub(crate) fn start(receiver: Arc<Receiver>) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("merge".to_owned()).spawn(move || {
        let _ = Priority::Idle.set(); // where it is refused, all threads are equal
        let mut runner = Runner { receiver, looked: BTreeMap::new(), busy: BTreeSet::new() };
        while !runner.receiver.is_stopping() {
            runner.look();
            thread::sleep(LOOK);
        }
    })
}

/// How often it is looked for what can be merged; `None`: never.
fn every(receiver: &Receiver) -> Option<Duration> {
    let config = receiver.config();
    config.merge.every_for(&config.store)
}

struct Runner {
    receiver: Arc<Receiver>,
    /// When there was nothing to do in a group.
    looked: BTreeMap<GroupNames, Instant>,
    /// Groups in which there may be more to do.
    busy: BTreeSet<GroupNames>,
}

impl Runner {
    fn look(&mut self) {
        let every = every(&self.receiver).unwrap_or(LEFT);
        let groups = self.receiver.roster.all();
        self.looked.retain(|names, _| groups.iter().any(|group| group.names() == names));
        for group in groups {
            // Not so soon after a start, either.
            let looked = self.looked.get(group.names()).copied().unwrap_or(self.receiver.started);
            if (!self.busy.contains(group.names()) && looked.elapsed() < every) || self.receiver.is_stopping() {
                continue;
            }
            // One interval, then the next group's turn; where there is nothing to do, not again at once.
            match self.merge(&group) {
                true => {
                    self.busy.insert(group.names().clone());
                }
                false => {
                    self.busy.remove(group.names());
                    self.looked.insert(group.names().clone(), Instant::now());
                }
            }
        }
    }

    /// Looks at an interval of a group; says whether there may be more to do.
    fn merge(&self, group: &GroupHandle) -> bool {
        let look = match self.ask(group, |reply| Mail::MergeNext { reply }) {
            Some(MergeNext::Look(look)) => look,
            Some(MergeNext::Spoiled(look)) => {
                self.look_at_spoiled(group, &look);
                return false;
            }
            Some(MergeNext::Again) => return true,
            Some(MergeNext::Nothing) | None => return false,
        };
        let keys = self.receiver.keys.of(&self.receiver.config(), group.names());
        let (volume, point) = (look.volume(), look.point());
        // What is not done to its end is looked at again.
        let again = || {
            let _ = self.ask(group, |reply| Mail::MergeAgain { volume, point, reply });
        };
        let look = match look.unlocked(&keys) {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!(group = %group.names(), error = keys::words(&error), "what might be merged could not be read");
                again();
                return false;
            }
        };
        let (paced, is_sealed) = (Paced::new(&self.receiver), look.is_sealed());
        // What was given and is taken away is used no more.
        let is_given = || !is_sealed || self.receiver.keys.is_current(&self.receiver.config(), group.names(), &keys);
        let goes_on = |bytes: u64| paced.goes_on(bytes) && is_given();
        let found = match look.find(&goes_on) {
            Ok(found) => found,
            Err(error) => {
                if !matches!(error, StoreError::Stopped) {
                    tracing::warn!(group = %group.names(), %error, "what might be merged could not be read");
                }
                again();
                return false;
            }
        };
        let mut merged = false;
        for merge in &found.merges {
            let tried = match look.write(merge, &goes_on) {
                Ok(tried) => tried,
                Err(error) => {
                    tracing::warn!(group = %group.names(), %error, "nothing can be merged");
                    again();
                    return false;
                }
            };
            if let Err(error) = &tried.written {
                tracing::warn!(group = %group.names(), %error, "parts were not merged");
            }
            // What is damaged is so the next time, and spoils no other merge.
            let damaged = matches!(tried.written, Err(StoreError::NotMerged { .. }));
            let failed = tried.written.is_err();
            // Also what failed: something of it may lie in the store.
            let goes_on = self.ask(group, |reply| Mail::Merged { tried: Box::new(tried), reply });
            if !damaged && (failed || goes_on != Some(true)) {
                again();
                return false;
            }
            merged |= !damaged;
        }
        // † Where none of so many could be merged, none can the next time: what is beyond them waits until the interval has grown.
        if found.more && merged {
            again();
        }
        true
    }

    /// Looks whether parts that are known to be damaged are sound again.
    fn look_at_spoiled(&self, group: &GroupHandle, look: &SpoiledLook) {
        let paced = Paced::new(&self.receiver);
        let parts = look.sound(&|bytes| paced.waits(bytes, || true));
        if !parts.is_empty() {
            tracing::info!(group = %group.names(), parts = parts.len(), "parts that were damaged are sound again");
            let _ = self.ask(group, |reply| Mail::Sound { parts, reply });
        }
    }

    /// Asks a group; `None`: it is gone, or has lost its store meanwhile.
    fn ask<T>(&self, group: &GroupHandle, mail: impl FnOnce(oneshot::Sender<T>) -> Mail) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.receiver.runtime.block_on(async {
            group.tell(mail(reply)).await.ok()?;
            answer.await.ok()
        })
    }
}

/// Bytes read and written, no more in a second than the configuration says.
struct Paced<'r> {
    receiver: &'r Receiver,
    until: std::cell::Cell<Instant>,
}

impl<'r> Paced<'r> {
    fn new(receiver: &'r Receiver) -> Self {
        Self { receiver, until: std::cell::Cell::new(Instant::now()) }
    }

    /// Waits for as long as so many bytes more take; says whether to go on merging.
    fn goes_on(&self, bytes: u64) -> bool {
        self.waits(bytes, || every(self.receiver).is_some())
    }

    /// The same, for as long as that says so.
    fn waits(&self, bytes: u64, is_wanted: impl Fn() -> bool) -> bool {
        // The rate may be another one by now.
        let rate = self.receiver.config().merge.rate.bytes_per_s();
        let until = self.until.get().max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.until.set(until);
        wait_until(until, &|| !self.receiver.is_stopping() && is_wanted())
    }
}
