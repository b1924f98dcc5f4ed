//! The key that the group is kept encrypted with at rest: had from the store, or drawn, and given to the group's hosts.
//!
//! Invariants: nothing is unwrapped or drawn on the group's own thread, and for one group, as it is configured, once at a time, however many ask; a wrapping of a key is
//! durable in the store before anybody is given it; a host that encrypts by itself does not ask, and is given nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_keys::{GroupKey, Seal, SealMode};
use farside_region::KeyId;
use farside_replication::target::{Event, SessionId};
use farside_store::{AtRestKey, GroupNames, StoreError, Unlocking};
use farside_wire::{GroupKeyAnswer, ReceiverMessage, RefusalCode};
use tokio::sync::{mpsc, oneshot};

use super::{Group, Mail, Place};
use crate::config::Config;
use crate::keys;
use crate::vault::Generation;

/// How soon it is tried again to have somebody keep the key who does not yet.
const AGAIN: Duration = Duration::from_secs(120);
/// How often those who keep it are asked whether they still can give it.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// The key; `None`: the group is not encrypted at rest. An error is for the host that asked.
pub(crate) type KeyAnswer = Result<Option<GroupKey>, String>;

/// Who wants it.
#[derive(Debug)]
pub(super) enum Asker {
    /// A source, which is answered on its session.
    Session(SessionId),
    /// A connection that pulls.
    Pull(oneshot::Sender<KeyAnswer>),
}

/// What came of asking.
#[derive(Debug)]
pub(crate) struct Obtained {
    generation: Generation,
    with: Arc<Unlocking>,
    result: Result<Option<AtRestKey>, StoreError>,
}

/// What is wrong with a key at rest.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) words: String,
    /// Nobody gives it: what is in memory of it is all there is.
    pub(crate) is_lost: bool,
}

#[derive(Debug)]
pub(super) struct AtRest {
    /// This group's own mailbox.
    mail: mpsc::WeakSender<Mail>,
    waiting: Vec<Asker>,
    /// With what it is being asked for. Who was asked by an older configuration may not have answered yet, and is not waited for.
    asked: Option<Arc<Unlocking>>,
    /// With what it was had the last time: when that is another by now, others are to keep the key.
    had_with: Option<Arc<Unlocking>>,
    /// When it is asked for again: somebody does not keep it, or it cannot be had; or all who keep it are asked whether they do.
    again: Option<Instant>,
    /// The configuration by which that was last; when it was read again, nobody waits.
    config: Option<Arc<Config>>,
    /// What is wrong with it, in words.
    trouble: Option<Trouble>,
    /// Which key that was: new volumes are taken with no other.
    had: Option<KeyId>,
}

impl AtRest {
    pub(super) fn new(mail: mpsc::WeakSender<Mail>) -> Self {
        Self { mail, waiting: Vec::new(), asked: None, had_with: None, again: None, config: None, trouble: None, had: None }
    }

    /// Why the key cannot be had, or who does not keep it.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

impl Group {
    /// Somebody wants to know whether the group is kept encrypted, and with which key.
    pub(super) fn give_key(&mut self, asker: Asker) {
        // Who asks again has one answer.
        if let Asker::Session(session) = &asker {
            self.at_rest.waiting.retain(|other| !matches!(other, Asker::Session(known) if known == session));
        }
        self.at_rest.waiting.push(asker);
        self.obtain_key();
    }

    /// The group was opened: whoever keeps its key is asked whether he can give it, also where nobody else asks.
    pub(super) fn look_for_key(&mut self) {
        self.at_rest.again = Some(Instant::now());
    }

    /// Whoever is to keep the key since the configuration was read again has it wrapped, also while nobody asks.
    pub(super) fn keep_key_as_configured(&mut self) {
        let is_current = |with: &Arc<Unlocking>| self.receiver.keys.is_current(&self.receiver.config(), &self.names, with);
        if [&self.at_rest.asked, &self.at_rest.had_with].into_iter().flatten().any(|with| !is_current(with)) {
            (self.at_rest.asked, self.at_rest.had_with, self.at_rest.had) = (None, None, None);
            return self.obtain_key();
        }
        let config = self.receiver.config();
        let is_read_again = self.at_rest.config.as_ref().is_some_and(|known| !Arc::ptr_eq(known, &config));
        if self.at_rest.again.take_if(|again| is_read_again || Instant::now() >= *again).is_some() {
            // † A key that nobody can give any more is there until this process ends, and what was written with it is not there after that.
            if let Some(with) = &self.at_rest.had_with {
                with.ask_keepers_again();
            }
            self.obtain_key();
        }
    }

    fn obtain_key(&mut self) {
        let config = self.receiver.config();
        let with = self.receiver.keys.of(&config, &self.names);
        if self.at_rest.asked.as_ref().is_some_and(|asked| Arc::ptr_eq(asked, &with)) {
            return;
        }
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => {
                let words = words.clone();
                return self.answer_all(&Err(words));
            }
        };
        let claimed = here.store.claimed_keys();
        if claimed.at_rest.is_none() && config.at_rest_of(&self.names).is_empty() {
            self.at_rest.trouble = None;
            return self.answer_all(&Ok(None));
        }
        if let (None, Some(torn)) = (&claimed.at_rest, here.store.torn()) {
            // † Perhaps a record that cannot be read says which key it has: none is drawn beside that.
            let words = torn.error(&self.names).to_string();
            return self.answer_all(&Err(words));
        }
        self.at_rest.config = Some(Arc::clone(&config));
        let Some(mail) = self.at_rest.mail.upgrade() else { return };
        let (backend, names, generation) = (here.store.backend(), self.names.clone(), here.generation);
        self.at_rest.asked = Some(Arc::clone(&with));
        self.receiver.runtime.spawn_blocking(move || {
            let result = caught(&names, || with.at_rest_key(&*backend, &names, &claimed));
            drop(backend);
            let _ = mail.blocking_send(Mail::KeyObtained { obtained: Box::new(Obtained { generation, with, result }) });
        });
    }

    pub(super) fn key_obtained(&mut self, obtained: Obtained) {
        let Obtained { generation, with, result } = obtained;
        if self.at_rest.asked.take_if(|asked| Arc::ptr_eq(asked, &with)).is_none() {
            return; // another configuration has others asked since
        }
        let is_here = matches!(&self.place, Place::Here(here) if here.generation == generation);
        let is_current = self.receiver.keys.is_current(&self.receiver.config(), &self.names, &with);
        if !is_here || !is_current {
            // Of a store, or by a configuration, of before.
            self.at_rest.again = Some(Instant::now());
            if !self.at_rest.waiting.is_empty() {
                self.obtain_key();
            }
            return;
        }
        self.at_rest.had_with = Some(with);
        let before = self.at_rest.trouble.take();
        let keepers = self.receiver.config().at_rest_of(&self.names).len();
        self.at_rest.trouble = match &result {
            Ok(None) => None,
            Ok(Some(key)) if key.unkept.is_empty() => None,
            Ok(Some(key)) => {
                let words = format!(
                    "the key with which {} is encrypted at rest is not kept by everybody: {}",
                    self.names,
                    key.unkept.join("; ")
                );
                Some(Trouble { words, is_lost: key.unkept.len() >= keepers })
            }
            Err(error) => {
                let words =
                    format!("the key with which {} is encrypted at rest cannot be had: {}", self.names, keys::words(error));
                Some(Trouble { words, is_lost: true })
            }
        };
        if before.is_some() && self.at_rest.trouble.is_none() {
            tracing::info!(group = %self.names, "everybody keeps the key that the group is encrypted with at rest");
        }
        let again = if self.at_rest.trouble.is_some() { AGAIN } else { LOOKED_AT_AGAIN };
        self.at_rest.again = (!matches!(&result, Ok(None))).then(|| Instant::now() + again);
        let answer = match result {
            Ok(None) => {
                self.at_rest.had = None;
                Ok(None)
            }
            Ok(Some(AtRestKey { key, is_new, unkept })) => {
                let (group, id) = (&self.names, key.id());
                if is_new {
                    tracing::info!(%group, key = %id, "a key was drawn, with which the group is kept encrypted at rest");
                }
                unkept.iter().for_each(|why| {
                    tracing::warn!(%group, key = %id, %why, "the key that the group is encrypted with at rest is not kept by everybody yet");
                });
                self.happened(Event::KeyKept { key: id });
                self.at_rest.had = Some(id);
                Ok(Some(key))
            }
            Err(error) => {
                tracing::error!(group = %self.names, error = keys::words(&error), "the key that the group is encrypted with at rest cannot be had");
                let words = keys::no_key_for_host(&self.names, &error);
                let is_in_clear = self.is_in_clear();
                if !matches!(error, StoreError::KeyNeeded { .. } | StoreError::BadKey { .. }) {
                    self.store_error(&error);
                }
                // What is in clear goes on so; new volumes are refused.
                if is_in_clear { Ok(None) } else { Err(words) }
            }
        };
        self.answer_all(&answer);
    }

    /// Whether the ledger has volumes, and none of them is encrypted at rest.
    fn is_in_clear(&self) -> bool {
        let Place::Here(here) = &self.place else { return false };
        here.store.claimed_keys().at_rest.is_none() && here.store.state().volumes().next().is_some()
    }

    /// Whether a new volume may be claimed with this seal: with the key that hosts are given now, if it is one at rest.
    pub(super) fn may_begin_with(&self, seal: &Seal) -> bool {
        seal.mode != SealMode::AtRest || self.at_rest.had == Some(seal.key)
    }

    fn answer_all(&mut self, answer: &KeyAnswer) {
        for asker in std::mem::take(&mut self.at_rest.waiting) {
            match asker {
                Asker::Pull(reply) => drop(reply.send(answer.clone())),
                Asker::Session(session) => {
                    let Some(link) = self.sessions.get(&session).cloned() else { continue };
                    match answer {
                        Ok(key) => {
                            let key = key.as_ref().map(|key| *key.secret().bytes());
                            link.send(&ReceiverMessage::GroupKey(GroupKeyAnswer(key)));
                        }
                        Err(words) => self.turn_away(&link, RefusalCode::Store, words),
                    }
                }
            }
        }
    }
}

/// Asks for the key. † Whoever waits for it is answered, and it is asked for again, whatever becomes of the asking.
fn caught(
    names: &GroupNames,
    ask: impl FnOnce() -> Result<Option<AtRestKey>, StoreError>,
) -> Result<Option<AtRestKey>, StoreError> {
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask));
    asked.unwrap_or_else(|_| {
        let why = "asking for it panicked: the log says where, and it is tried again".to_owned();
        Err(StoreError::BadKey { group: names.to_string(), why })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_a_key_is_answered_also_when_the_asking_panics() {
        let name = |text: &str| text.parse().expect("a name");
        let names = GroupNames::new(name("web1"), name("db"));
        let error = caught(&names, || panic!("a program that nobody thought of")).expect_err("it panicked");
        assert!(matches!(&error, StoreError::BadKey { group, .. } if group == "web1/db"), "{error}");
        assert!(caught(&names, || Ok(None)).expect("asked").is_none());
    }
}
