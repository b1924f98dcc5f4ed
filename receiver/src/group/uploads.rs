//! What a publication puts into a bucket, as far as the group's thread is concerned: begun here, and not waited for.
//!
//! A line that is slow, or a service that does not answer, would keep the group from hearing its sources: nothing would be staged meanwhile, and
//! the host's lag would be the bucket's. So segments go by a thread of their own, and their record follows when they are there; that is one small
//! request. Invariants:
//! - one append at a time, and in the order asked for, as the target has it: a record that needs nothing put does not overtake one that does,
//!   since the target asks for no second one before it has heard of the first;
//! - a failover, and a stop, wait for it ([`Group::without_uploads`]);
//! - what is over when its group was left and entered again is noted in the store that is there then, and its record is not put: the new target
//!   asks for it anew.

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
    /// The group's thread puts everything itself, and has done so when it says so: what it is about cannot wait for its mailbox.
    waits: bool,
}

impl Uploads {
    pub(super) fn new(mail: WeakSender<Mail>) -> Self {
        Self { mail, under_way: Vec::new(), waits: false }
    }

    /// The group is left: nothing follows any more.
    pub(super) fn forget(&mut self) {
        self.under_way.iter_mut().for_each(|uploading| uploading.then = None);
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
    }

    fn upload_ended(&mut self, uploading: Uploading, ended: Option<Uploaded>) {
        let Uploading { generation, then, since, .. } = uploading;
        let noted = match (&mut self.place, ended) {
            (Place::Here(here), Some(uploaded)) if here.generation == generation => here.store.uploaded(uploaded),
            _ => Ok(()),
        };
        let Some((ticket, mut records)) = then else { return };
        if let Err(error) = noted {
            let outcome = self.append_failed(error);
            self.events.push_front((Event::Appended { ticket, outcome }, None));
            return;
        }
        // When it came to be known does not change.
        let took = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        records.iter_mut().for_each(|said| said.ago = said.ago.saturating_add(took));
        self.put_records(ticket, records);
    }
}
