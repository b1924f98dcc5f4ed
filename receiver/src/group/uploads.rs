//! What a publication puts into a bucket, as far as the group's thread is concerned: begun here, and not waited for.
//!
//! A line that is slow, or a service that does not answer, would keep the group from hearing its sources: nothing would be staged meanwhile, and
//! the host's lag would be the bucket's. So segments go by a thread of their own, and their record follows when they are there; that is one small
//! request. Invariants:
//! - one append at a time, and in the order asked for, as the target has it: a record that needs nothing put does not overtake one that does,
//!   since the target asks for no second one before it has heard of the first;
//! - a failover that was forced, and a stop, wait for it ([`Group::without_uploads`]); one that was not forced looks again when it is over
//!   ([`Waits`](super::fence::Waits));
//! - what is over when its group was left and entered again is noted in the store that is there then, and its record is not put: the new target
//!   asks for it anew, and what it asks for waits for the end of that, so that nothing goes twice. † Where the store was opened again it may be of
//!   another moment: nothing waits for that one, it is not taken for what is there, and only known to have to go.

use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Instant;

use farside_ledger::Body;
use farside_replication::target::{Dated, Event, Ticket};
use farside_store::Uploaded;
use tokio::sync::mpsc::WeakSender;

use super::{AbortOnPanic, Group, Mail, Place};
use crate::vault::Generation;

/// One that is under way.
#[derive(Debug)]
pub(super) struct Uploading {
    generation: Generation,
    done: Receiver<Uploaded>,
    /// What follows. `None`: nobody waits for that any more.
    then: Option<(Ticket, Vec<Dated>)>,
    since: Instant,
}

/// Those of a group.
#[derive(Debug)]
pub(super) struct Uploads {
    /// This group's own mailbox, to be woken.
    mail: WeakSender<Mail>,
    under_way: Vec<Uploading>,
    /// What is to be put when what this opening of the store has under way is over.
    next: Option<(Ticket, Vec<Dated>, Instant)>,
    /// The group's thread puts everything itself, and has done so when it says so: what it is about cannot wait for its mailbox.
    waits: bool,
    /// So many points were staged as a fence last asked for their publication, and has not looked since what came of it.
    hurried: Option<usize>,
}

impl Uploads {
    pub(super) fn new(mail: WeakSender<Mail>) -> Self {
        Self { mail, under_way: Vec::new(), next: None, waits: false, hurried: None }
    }

    /// The group is left: nothing follows any more.
    pub(super) fn forget(&mut self) {
        self.under_way.iter_mut().for_each(|uploading| uploading.then = None);
        self.next = None;
        self.hurried = None;
    }

    /// Whether one is under way.
    pub(super) fn is_any(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether one is under way for that opening of the store.
    fn is_of(&self, generation: Generation) -> bool {
        self.under_way.iter().any(|uploading| uploading.generation == generation)
    }

    /// What a fence asked for is not waited for any more: whoever fences next asks anew.
    pub(super) fn is_over(&mut self) {
        self.hurried = None;
    }

    /// Whether a fence should ask for the publication of that many points that are staged: not if it just has, and none of them was published.
    pub(super) fn brings_something(&mut self, staged: usize) -> bool {
        let before = self.hurried.take();
        self.hurried = Some(staged).filter(|staged| (1..before.unwrap_or(usize::MAX)).contains(staged));
        self.hurried.is_some()
    }
}

impl Group {
    /// Begins to put what these records need, if that is so, and takes them for later. Gives back what can be appended at once.
    pub(super) fn upload_first(&mut self, ticket: Ticket, records: Vec<Dated>) -> Option<Vec<Dated>> {
        let Place::Here(here) = &mut self.place else { return Some(records) };
        if self.uploads.waits {
            return Some(records);
        }
        let bodies: Vec<&Body> = records.iter().map(|said| &said.body).collect();
        // An error is said again by the append.
        let Ok(Some(upload)) = here.store.plan_upload(&bodies) else { return Some(records) };
        if self.uploads.is_of(here.generation) {
            self.uploads.next = Some((ticket, records, Instant::now()));
            return None;
        }
        let (done, is_done) = sync_channel(1);
        let mail = self.uploads.mail.clone();
        let send = move || {
            let _guard = AbortOnPanic;
            let _ = done.send(upload.run()); // the group may be gone
            // A mailbox that is full is being read: the group looks by itself then.
            if let Some(mail) = mail.upgrade() {
                let _ = mail.try_send(Mail::Uploaded);
            }
        };
        let generation = here.generation;
        match std::thread::Builder::new().name("upload".to_owned()).spawn(send) {
            Ok(_) => {
                let (then, since) = (Some((ticket, records)), Instant::now());
                self.uploads.under_way.push(Uploading { generation, done: is_done, then, since });
                None
            }
            // (What was planned is planned again.)
            Err(error) => {
                tracing::warn!(group = %self.names, %error, "no thread to put segments: the group's own does it");
                Some(records)
            }
        }
    }

    /// Goes on with what has ended.
    pub(super) fn look_at_uploads(&mut self) {
        let mut at = 0;
        while let Some(uploading) = self.uploads.under_way.get(at) {
            match uploading.done.try_recv() {
                Err(TryRecvError::Empty) => at += 1,
                ended => {
                    let uploading = self.uploads.under_way.remove(at);
                    self.upload_ended(uploading, ended.ok());
                }
            }
        }
        self.begin_next();
    }

    /// Begins what has waited, where that is over.
    fn begin_next(&mut self) {
        let Place::Here(here) = &self.place else { return };
        if !self.uploads.is_of(here.generation)
            && let Some((ticket, records, since)) = self.uploads.next.take()
        {
            self.append(ticket, aged(records, since));
        }
    }

    /// Does something in which all that is published is published when [`Group::work`] returns. Waits for what is under way.
    pub(super) fn without_uploads<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.uploads.waits, true);
        self.end_uploads();
        let done = work(self);
        self.uploads.waits = before;
        done
    }

    fn end_uploads(&mut self) {
        for uploading in std::mem::take(&mut self.uploads.under_way) {
            let ended = uploading.done.recv().ok();
            self.upload_ended(uploading, ended);
        }
        self.begin_next();
    }

    fn upload_ended(&mut self, uploading: Uploading, ended: Option<Uploaded>) {
        let Uploading { generation, then, since, .. } = uploading;
        let noted = match (&mut self.place, ended) {
            (Place::Here(here), Some(uploaded)) if here.generation == generation => here.store.uploaded(uploaded),
            (Place::Here(here), Some(uploaded)) => {
                here.store.uploaded_elsewhere(uploaded);
                Ok(())
            }
            _ => Ok(()),
        };
        let Some((ticket, records)) = then else { return };
        if let Err(error) = noted {
            let outcome = self.append_failed(error);
            self.events.push_front((Event::Appended { ticket, outcome }, None));
            return;
        }
        self.put_records(ticket, aged(records, since));
    }
}

/// When it came to be known does not change while it waits.
fn aged(mut records: Vec<Dated>, since: Instant) -> Vec<Dated> {
    let took = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
    records.iter_mut().for_each(|said| said.ago = said.ago.saturating_add(took));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_asks_for_what_is_staged_as_long_as_that_brings_something_and_then_says_so_once() {
        let (mail, _mailbox) = tokio::sync::mpsc::channel(1);
        let mut uploads = Uploads::new(mail.downgrade());
        assert!(!uploads.brings_something(0), "nothing is staged");
        assert!(uploads.brings_something(3) && uploads.brings_something(2), "one was published");
        assert!(!uploads.brings_something(2), "none was: it is said");
        assert!(uploads.brings_something(2), "and tried again");
        assert!(!uploads.brings_something(0), "all were");
        assert!(uploads.brings_something(2));
        uploads.forget();
        assert!(uploads.brings_something(2), "whatever another opening of the group could not");
        uploads.is_over();
        assert!(uploads.brings_something(5), "whatever came of another failover");
    }
}
