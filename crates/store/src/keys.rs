//! The wrapped keys of a group: `keys/<n>` in its folder, each a key of `docs/formats/keys.md`, encrypted under what somebody keeps.
//!
//! Invariant: one is durable before a claim that names its key is appended; none is ever changed. Nothing here holds a key longer than the
//! [`Unlocking`] for which it was unwrapped: a reader's, or that of a gateway which was given the key.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_keys::{ContentKeys, GroupKey, Keeper, Seal, WRAPPING_BYTES_MAX, WRAPPINGS_MAX, WrapError, Wrapping};
use farside_ledger::VolumeMeta;
use farside_region::KeyId;

use crate::backend::{Backend, Created, block_on, block_on_all};
use crate::error::{Result, StoreError};
use crate::names::GroupNames;
use crate::replay::get;

/// What could not be unwrapped is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// A service tries no other wrapping after so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many are asked for at first: as a rule the key is among them.
const FIRST: u64 = 4;

/// What lies under one of the names.
#[derive(Clone, Debug)]
pub struct StoredWrapping {
    /// Its number.
    pub number: u64,
    /// Its bytes; none, if they cannot be read.
    pub bytes: Bytes,
    /// What they say, or what is wrong with them.
    pub wrapping: Result<Wrapping, String>,
}

/// All of a group, whatever was removed between them.
///
/// # Errors
/// What the file system or the service says.
pub fn wrappings(backend: &dyn Backend, names: &GroupNames) -> Result<Vec<StoredWrapping>> {
    wrappings_in(backend, names, 0..WRAPPINGS_MAX)
}

fn wrappings_in(backend: &dyn Backend, names: &GroupNames, numbers: Range<u64>) -> Result<Vec<StoredWrapping>> {
    let mut found = Vec::new();
    let objects: Vec<_> = numbers.clone().map(|number| names.key(number)).collect();
    let asked = objects.iter().map(|name| backend.get(name, WRAPPING_BYTES_MAX as u64)).collect();
    for (number, answer) in numbers.zip(block_on_all(asked)) {
        let bytes = match answer {
            Ok(None) => continue,
            Ok(Some(bytes)) => Ok(bytes),
            Err(StoreError::Damaged { why, .. }) => Err(why),
            Err(StoreError::Unreadable { source, .. }) => Err(format!("it cannot be read: {source}")),
            Err(error) => return Err(error),
        };
        let wrapping = bytes.as_ref().map_err(Clone::clone).and_then(|b| Wrapping::decode(b).map_err(|e| e.to_string()));
        found.push(StoredWrapping { number, bytes: bytes.unwrap_or_default(), wrapping });
    }
    Ok(found)
}

/// Puts a wrapped key beside the others, durably, unless it is there already; says which key it is of, and its number.
///
/// # Errors
/// [`StoreError::BadKey`]; what the file system or the service says.
pub fn add_wrapping(backend: &dyn Backend, names: &GroupNames, bytes: &[u8]) -> Result<(KeyId, u64)> {
    let bad = |why: String| StoreError::BadKey { group: names.to_string(), why };
    let wrapping = Wrapping::decode(bytes).map_err(|e| bad(e.to_string()))?;
    let mut number = 0;
    while number < WRAPPINGS_MAX {
        let name = names.key(number);
        let there = match get(backend, &name, WRAPPING_BYTES_MAX as u64)? {
            None => match block_on(backend.create(&name, Bytes::copy_from_slice(bytes)))? {
                Created::New => return Ok((wrapping.key(), number)),
                Created::AlreadyExists => continue, // look what it is
            },
            Some(there) => there,
        };
        if there.is_ok_and(|there| there == bytes) {
            // Its writer may have died before it was durable.
            block_on(backend.sync(&names.keys()))?;
            return Ok((wrapping.key(), number));
        }
        number += 1;
    }
    Err(bad(format!("there are {WRAPPINGS_MAX} of them already; remove those that nobody uses")))
}

/// What somebody was given to unwrap a group's key with, and what came of it.
#[derive(Debug, Default)]
pub struct Unlocking {
    keeper: Option<Keeper>,
    /// After so long no other wrapping is tried, until the next time.
    patience: Option<Duration>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: Vec<GroupKey>,
    failed: Option<Failed>,
}

/// A key that could not be had a moment ago: whoever waited for the same hears that, and has nothing tried again.
#[derive(Debug)]
struct Failed {
    key: KeyId,
    at: Instant,
    stored: Vec<StoredWrapping>,
    why: String,
    /// The wrapping to begin with the next time: those before it were tried.
    next: u64,
}

impl Unlocking {
    /// Nothing is unwrapped before it is needed; then every wrapping is tried, however long that takes.
    pub fn new(keeper: Option<Keeper>) -> Self {
        Self { keeper, patience: None, known: Mutex::default() }
    }

    /// For a service, which nobody must hold up: where some wrappings take long, others are tried the next time.
    pub fn for_service(keeper: Option<Keeper>) -> Self {
        Self { patience: Some(PATIENCE), ..Self::new(keeper) }
    }

    /// What could not be had is tried again as soon as it is asked for.
    pub fn forget_failures(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).failed = None;
    }

    /// Keys that are here as they are, and those of an encrypted volume where they are not.
    pub(crate) fn open(
        &self,
        keys: ContentKeys,
        backend: &dyn Backend,
        names: &GroupNames,
        volume: &VolumeMeta,
    ) -> Result<ContentKeys> {
        if matches!(keys, ContentKeys::Opaque) { self.keys(backend, names, volume) } else { Ok(keys) }
    }

    /// The keys of a volume's content; of an encrypted one, unless somebody gave a key, those of who has none.
    pub(crate) fn keys_if_given(&self, backend: &dyn Backend, names: &GroupNames, volume: &VolumeMeta) -> Result<ContentKeys> {
        match (volume.digest_key.seal(), &self.keeper) {
            (Some(seal), Some(keeper)) => self.unlock(backend, names, volume, seal, keeper),
            _ => Ok((&volume.digest_key).into()),
        }
    }

    /// The keys of a volume's content.
    pub(crate) fn keys(&self, backend: &dyn Backend, names: &GroupNames, volume: &VolumeMeta) -> Result<ContentKeys> {
        match (volume.digest_key.seal(), &self.keeper) {
            (Some(seal), None) => Err(needed(volume, seal, &wrappings(backend, names)?, "no key was given".to_owned())),
            _ => self.keys_if_given(backend, names, volume),
        }
    }

    fn unlock(
        &self,
        backend: &dyn Backend,
        names: &GroupNames,
        volume: &VolumeMeta,
        seal: &Seal,
        keeper: &Keeper,
    ) -> Result<ContentKeys> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.keys.iter().any(|key| key.id() == seal.key) {
            if let Some(failed) = known.failed.as_ref().filter(|failed| failed.key == seal.key && failed.at.elapsed() < AGAIN) {
                return Err(needed(volume, seal, &failed.stored, failed.why.clone()));
            }
            let from = known.failed.as_ref().filter(|failed| failed.key == seal.key).map_or(0, |failed| failed.next);
            match unwrap(backend, names, seal, keeper, (from, self.patience))? {
                Ok(key) => {
                    known.failed = None;
                    known.keys.push(key);
                }
                Err(Untold { stored, why, next }) => {
                    let error = needed(volume, seal, &stored, why.clone());
                    known.failed = Some(Failed { key: seal.key, at: Instant::now(), stored, why, next });
                    return Err(error);
                }
            }
        }
        let key = known.keys.iter().find(|key| key.id() == seal.key).expect("it is there, or was just put there");
        // Held against the claim before anything is decrypted.
        ContentKeys::unseal(key, volume.id, seal).map_err(|e| needed(volume, seal, &[], e.to_string()))
    }
}

/// Wrappings that do not open, why, and which is to be tried first the next time.
#[derive(Debug)]
struct Untold {
    stored: Vec<StoredWrapping>,
    why: String,
    next: u64,
}

/// The key that a volume says, out of any of its wrappings that this opens, those from a number on first. With a patience some may be left.
fn unwrap(
    backend: &dyn Backend,
    names: &GroupNames,
    seal: &Seal,
    keeper: &Keeper,
    (from, patience): (u64, Option<Duration>),
) -> Result<Result<GroupKey, Untold>> {
    // Whoever wrote the wrappings says what a passphrase costs: not of many groups at once.
    static PASSPHRASES: Mutex<()> = Mutex::new(());
    let mut why = format!("`{keeper}` opens none of its wrappings");
    let mut stored = Vec::new();
    let begun = Instant::now();
    let halves = if from == 0 { vec![0..FIRST, FIRST..WRAPPINGS_MAX] } else { vec![from..WRAPPINGS_MAX, 0..from] };
    for numbers in halves {
        let before = stored.len();
        stored.extend(wrappings_in(backend, names, numbers)?);
        let of_key = |stored: &&StoredWrapping| stored.wrapping.as_ref().is_ok_and(|wrapping| wrapping.key() == seal.key);
        for found in stored[before..].iter().filter(of_key) {
            if patience.is_some_and(|patience| begun.elapsed() >= patience) {
                let next = found.number;
                why.push_str("; it took long, and others are tried the next time");
                return Ok(Err(Untold { stored, why, next }));
            }
            let Ok(wrapping) = &found.wrapping else { continue };
            let is_costly = matches!(keeper, Keeper::Passphrase(_) | Keeper::PassphraseFile(_));
            let one = is_costly.then(|| PASSPHRASES.lock().unwrap_or_else(PoisonError::into_inner));
            let unwrapped = wrapping.unwrap(keeper);
            drop(one);
            match unwrapped {
                Ok(key) => return Ok(Ok(key)),
                Err(WrapError::OtherWay { .. }) => {}
                Err(error) => why = error.to_string(),
            }
        }
    }
    Ok(Err(Untold { stored, why, next: 0 }))
}

pub(crate) fn needed(volume: &VolumeMeta, seal: &Seal, stored: &[StoredWrapping], why: String) -> StoreError {
    let mut wrapped: Vec<String> = Vec::new();
    for stored in stored {
        match &stored.wrapping {
            Ok(wrapping) if wrapping.key() == seal.key => wrapped.push(format!("{} (keys/{})", wrapping.way(), stored.number)),
            Ok(_) => {}
            Err(why) => wrapped.push(format!("keys/{}, which cannot be used: {why}", stored.number)),
        }
    }
    let wrapped = if wrapped.is_empty() { "in no way that the store holds".to_owned() } else { wrapped.join(", ") };
    StoreError::KeyNeeded { volume: volume.name.to_string(), mode: seal.mode.word(), key: seal.key, wrapped, why }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
