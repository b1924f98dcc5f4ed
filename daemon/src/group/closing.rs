//! How volumes of a group are closed: to leave, to be opened again, at a stop; and what a stop answers for those that are not open.
//!
//! Invariant: a stop calls nothing clean whose map is not. For a member it writes that map itself. A volume that is no member at that
//! moment, because it is being closed or opened, or was closed and nobody has opened it again, is [`Away`]: from before its map loses
//! the word `clean` until it is a member, its group knows of it, and once the group has answered no opening gets so far.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_region::{GranuleSet, LedgerPosition, Name, VolumeId};
use farside_replication::source::{State, VolumeStatus};
use farside_transport::{CloseCode, Closed};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Control, Farewell, Member, Stopped};
use crate::channel::{Receiver, Sender, channel};

/// A device that does not answer is waited for so long at a stop.
const CLOSE_WAIT: Duration = Duration::from_secs(15);

/// So long a stop waits for its last word to go out.
const FAREWELL_WAIT: Duration = Duration::from_secs(3);
/// The same where a host waits for the next daemon.
const FAREWELL_SENT: Duration = Duration::from_millis(250);
/// What a stop does last of all takes no longer.
pub(super) const AT_LAST_MAX: Duration = CLOSE_WAIT.saturating_add(FAREWELL_WAIT);

/// How a group stopped, and what it owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) stopped: Stopped,
    /// All of it was published, which the receiver was told.
    pub(crate) settled: Option<Settled>,
}

impl Ending {
    /// Of a thread that does not answer.
    pub(crate) const UNKNOWN: Self = Self { stopped: Stopped::Unclean, settled: None };
}

/// All is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// The point that every volume of the group is; `None`: no one point.
    pub(crate) point: Option<LedgerPosition>,
}

/// A volume that is being opened.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) id: VolumeId,
    pub(crate) name: Name,
    /// Its folder.
    pub(crate) dir: PathBuf,
}

/// Volumes that are no members, and have been members of this run or are about to be.
#[derive(Debug, Default)]
pub(super) struct Away(BTreeMap<VolumeId, Gone>);

#[derive(Debug)]
struct Gone {
    name: Name,
    /// Its folder, if somebody is to open it (again).
    dir: Option<PathBuf>,
    /// What comes of its end: whether its map says `clean`. `None`: that says `attached`.
    closing: Option<Receiver<bool>>,
}

impl Away {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its map will say `attached`.
    pub(super) fn attaches(&mut self, opening: Opening) {
        let Opening { id, name, dir } = opening;
        self.0.insert(id, Gone { name, dir: Some(dir), closing: None });
    }

    /// It is a member.
    pub(super) fn is_back(&mut self, id: VolumeId) {
        self.0.remove(&id);
    }

    /// It is being closed; who does that says here, last of all, whether its map is clean.
    fn closes(&mut self, id: VolumeId, name: Name, dir: Option<PathBuf>) -> Sender<bool> {
        let is_over = |gone: &Gone| gone.closing.as_ref().is_none_or(|closing| !closing.is_empty());
        self.0.retain(|_, gone| gone.dir.is_some() || !is_over(gone));
        let (answer, closing) = channel();
        self.0.insert(id, Gone { name, dir, closing: Some(closing) });
        answer
    }

    /// What they add to the answer of a stop, which waits for those that are being closed.
    fn stopped(self, until: Instant) -> Stopped {
        let mut worst = Stopped::Clean;
        for Gone { name, dir, closing } in self.0.into_values() {
            let clean = closing.map(|closing| closing.recv_deadline(until));
            if matches!(clean, Some(Err(_))) {
                error!(volume = %name, "it was being closed, and its device does not answer; the process ends without waiting for it");
            }
            // Of what has left for good there is no map to be clean, nor of what was given up after it was closed.
            let is_there = dir.is_some_and(|dir| !matches!(dir.try_exists(), Ok(false)));
            if is_there && !matches!(clean, Some(Ok(true))) {
                warn!(volume = %name, "stopped before it was open (again): the next start compares what was hot");
                worst = Stopped::Unclean;
            }
        }
        worst
    }
}

impl Control {
    pub(super) fn removed(&mut self, id: VolumeId) {
        if let Some(member) = self.members.remove(&id) {
            self.close(member);
        }
    }

    /// Closes a volume that has left.
    pub(super) fn close(&mut self, mut member: Member) {
        let is_to_return = member.leaving.as_ref().is_some_and(|(farewell, _)| farewell.is_to_return());
        // † What came up since it was let go: who opens it again hears of it in no other way.
        let name = member.served.config.name.clone();
        if is_to_return && let Err(error) = member.keep_what_it_remembers() {
            error!(volume = %name, "it is not closed before its loss is kept, and its users wait: {error:#}");
            self.around.unkept.set(&name, member.unmarked.clone());
            return self.unkept.push(member);
        }
        self.around.unkept.set(&name, None);
        let leaving = member.leaving.take();
        let trusted = member.remembers().is_none() && member.is_trusted();
        let Member { served, note, .. } = member;
        let ended = self.away.closes(served.meta.id, name.clone(), is_to_return.then(|| served.dir.clone()));
        // Not here: what is in flight in a device that does not answer would hold up the whole group.
        std::thread::spawn(move || {
            let mut clean = false;
            let result = match leaving {
                Some((Farewell::OpenedAgain, _)) => served.close_for_another(),
                Some((Farewell::OpenedLarger, _)) => {
                    // All that nobody knows to be published is hot (L2).
                    let mut owed = GranuleSet::new();
                    served.volume.hot_regions().ranges().for_each(|range| owed.insert_whole(range));
                    clean = served.close_for_successor(trusted.then_some(owed));
                    Ok(())
                }
                Some((Farewell::DeviceStays, _)) => {
                    served.close();
                    Ok(())
                }
                _ => {
                    let result = served.close_and_remove();
                    note.remove();
                    result
                }
            };
            match (&result, &leaving) {
                (Err(error), _) => error!(volume = %name, "{error:#}"),
                (Ok(()), Some((Farewell::OpenedAgain | Farewell::OpenedLarger, _))) => {
                    info!(volume = %name, "closed, to be opened again")
                }
                (Ok(()), Some((Farewell::DeviceStays, _))) => info!(volume = %name, "closed; its device stays for now"),
                (Ok(()), _) => info!(volume = %name, "removed; its points stay in the store"),
            }
            if let Some((_, reply)) = leaving {
                let _ = reply.send(Ok(result)); // whoever waited may have given up
            }
            let _ = ended.send(clean); // only a stop waits for it
        });
    }

    /// Whoever takes the history over waits for this word, and for nothing less: that a connection ended says nothing of what its host owes. Nor is it
    /// said where a configured volume is not served here, or does not stream: what is not read owes all that was written to it.
    ///
    /// † The word goes out before the process ends, whoever else keeps the processors busy: the task that is given ends when it has. Where a host
    /// waits for the next daemon that takes no network (L1); it is waited for a peer that asks again only where none does.
    pub(super) fn say_whether_all_is_published(
        &mut self,
        configured: usize,
        waited_for: bool,
    ) -> Option<(Settled, JoinHandle<()>)> {
        let volumes = self.source.status(monotonic_ns()).volumes;
        let all = configured > 0 && volumes.len() == configured && self.away.is_empty() && self.unkept.is_empty();
        // † What cannot be read is owed by nobody, and is in no point.
        let is_whole = |volume: &VolumeStatus| volume.state == State::Streaming && volume.unreadable_bytes == 0;
        let settled = all && self.source.settled() && volumes.iter().all(is_whole);
        if !settled {
            return None;
        }
        // It must not come back as somebody who owes.
        self.dialing.abort();
        let link = self.link.as_ref()?;
        link.connection.close(CloseCode::Settled, "all is published, and this host stops");
        // † It may have ended a moment ago, of which nobody has heard here yet: then nobody was told.
        if !matches!(link.connection.close_reason(), Some(Closed::Here { code: CloseCode::Settled, .. })) {
            return None;
        }
        let told = link.connection.clone();
        let farewell = self.around.links.spawn(async move {
            let said = match waited_for {
                true => timeout(FAREWELL_SENT, told.sent()).await,
                false => timeout(FAREWELL_WAIT, told.told()).await,
            };
            if said.is_err() {
                warn!("the gateway may not have heard that all is published: there was no time to send it");
            }
        });
        let newest = |volume: &VolumeStatus| volume.newest_point.map(|point| point.position);
        let point = newest(&volumes[0]).filter(|point| volumes.iter().all(|volume| newest(volume) == Some(*point)));
        Some((Settled { point }, farewell))
    }

    /// Each on a thread of its own, and joined last: a device that does not answer must not keep the others from their `clean`.
    pub(super) fn close_members(&mut self) -> Stopped {
        let (mut closing, unkept) = (Vec::new(), std::mem::take(&mut self.unkept));
        let members = std::mem::take(&mut self.members).into_iter().map(|(id, member)| {
            let mut owed = self.source.owed(id);
            owed.union_with(&member.served.volume.open_set());
            (member, Some(owed))
        });
        // What those owe nobody knows any more.
        for (mut member, owed) in members.chain(unkept.into_iter().map(|member| (member, None))) {
            let name = member.served.config.name.clone();
            // † Before the header says anything: what was seen is not seen again.
            let kept = member.keep_what_it_remembers();
            if let Err(error) = &kept {
                error!(volume = %name, "{error:#}");
            }
            let is_kept = kept.is_ok() || member.is_on_record();
            let trusted = is_kept && member.is_trusted();
            let (answer, answered) = channel();
            std::thread::spawn(move || answer.send(member.served.close_at_stop(owed.filter(|_| trusted))));
            closing.push((name, is_kept, answered));
        }
        let patience = Instant::now() + CLOSE_WAIT;
        let mut worst = Stopped::Clean;
        for (name, is_kept, answered) in closing {
            match answered.recv_deadline(patience) {
                Ok(true) => {}
                Ok(false) => {
                    warn!(volume = %name, "stopped, but not cleanly: the next start compares what was hot");
                    worst = worst.max(Stopped::Unclean);
                }
                Err(_) => {
                    error!(volume = %name, "its device does not answer; the process ends without waiting for it");
                    worst = worst.max(Stopped::Unclean);
                }
            }
            if !is_kept {
                error!(
                    volume = %name,
                    "that tracking was lost is kept nowhere that survives a reboot: after it run `farside volume resync {name}`"
                );
                worst = Stopped::LossUnkept;
            }
        }
        worst.max(std::mem::take(&mut self.away).stopped(patience))
    }
}
