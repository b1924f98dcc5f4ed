//! The wrapped keys of a group: `keys/<n>` in its folder, each a key of `docs/formats/keys.md`, encrypted under what somebody keeps.
//!
//! Invariant: one is durable before a claim that names its key is appended; none is ever changed. Nothing here holds a key longer than the
//! [`Unlocking`] for which it was unwrapped: a reader's, or that of a gateway which was given the key, or which drew it to encrypt a group at rest.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_keys::{
    ARGON2_DEFAULT, ContentKeys, GroupKey, Keeper, Seal, SealMode, WRAPPING_BYTES_MAX, WRAPPINGS_MAX, WrapError, Wrapping,
};
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

/// What is wrong with a wrapped key that is not what was written.
const DAMAGED: &str = "it is damaged: its digest is not that of its other fields";

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

impl StoredWrapping {
    /// What it says, if volumes of that mode in that group may have their key out of it. † A keeper opens the keys of many groups: what is
    /// another group's, or was brought by a host, gives no key at rest, whoever put it there.
    pub fn of(&self, names: &GroupNames, mode: SealMode) -> Option<&Wrapping> {
        self.wrapping.as_ref().ok().filter(|wrapping| match mode {
            SealMode::AtRest => wrapping.group() == Some(names.to_string().as_str()),
            SealMode::EndToEnd => wrapping.group().is_none(),
        })
    }

    /// What is wrong with it. Of what is not what was written, too, though it is tried: see [`Wrapping::unwrap`].
    pub fn fault(&self) -> Option<String> {
        match &self.wrapping {
            Ok(wrapping) if wrapping.is_damaged() => Some(DAMAGED.to_owned()),
            Ok(_) => None,
            Err(why) => Some(why.clone()),
        }
    }
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
    if wrapping.is_damaged() {
        return Err(bad(DAMAGED.to_owned()));
    }
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

/// What unwraps the keys of a group, at somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keepers {
    /// What he was given: for every volume.
    pub given: Vec<Keeper>,
    /// What keeps the keys with which he encrypts at rest himself. Of volumes that are encrypted end to end they are none.
    pub at_rest: Vec<Keeper>,
}

impl Keepers {
    /// Those that a volume's key may be unwrapped with.
    pub fn of(&self, mode: SealMode) -> Vec<&Keeper> {
        let at_rest = match mode {
            SealMode::AtRest => &self.at_rest[..],
            SealMode::EndToEnd => &[],
        };
        at_rest.iter().chain(&self.given).collect()
    }
}

/// What the ledger of a group says of its keys.
#[derive(Clone, Debug, Default)]
pub struct ClaimedKeys {
    /// A volume that is encrypted at rest, if there is one: new ones get the same key.
    pub at_rest: Option<VolumeMeta>,
    /// The keys of volumes that are encrypted end to end: no volume at rest gets one of these.
    pub end_to_end: BTreeSet<KeyId>,
}

impl ClaimedKeys {
    /// What these claims say; of several keys at rest that of the last one.
    pub fn of<'m>(volumes: impl Iterator<Item = &'m VolumeMeta>) -> Self {
        let mut claimed = Self::default();
        for volume in volumes {
            match volume.digest_key.seal() {
                None => {}
                Some(seal) if seal.mode == SealMode::AtRest => claimed.at_rest = Some(volume.clone()),
                Some(seal) => drop(claimed.end_to_end.insert(seal.key)),
            }
        }
        claimed
    }
}

/// The key with which a group is encrypted at rest. A wrapping of it is durable in the store.
#[derive(Debug)]
pub struct AtRestKey {
    /// For its source.
    pub key: GroupKey,
    /// It was drawn just now.
    pub is_new: bool,
    /// Which of those that are to keep it do not yet, and why. It is asked of them again the next time.
    pub unkept: Vec<String>,
}

/// What somebody was given to unwrap a group's keys with, and what came of it.
#[derive(Debug, Default)]
pub struct Unlocking {
    keepers: Keepers,
    /// After so long no other wrapping is tried, until the next time.
    patience: Option<Duration>,
    /// Held while somebody is asked, who may take his time.
    known: Mutex<Known>,
    /// What could not be had is to be tried again.
    is_mended: AtomicBool,
    /// Those who keep the key at rest are to be asked again.
    is_doubted: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    keys: Vec<GroupKey>,
    /// With this one of them the group is kept encrypted at rest: it was drawn here, or its wrapping was opened.
    at_rest: Option<KeyId>,
    /// Everybody who is to keep this one does.
    kept: Option<KeyId>,
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
    pub fn new(given: Vec<Keeper>) -> Self {
        Self { keepers: Keepers { given, at_rest: Vec::new() }, ..Self::default() }
    }

    /// For a service, which nobody must hold up: where some wrappings take long, others are tried the next time.
    pub fn for_service(keepers: Keepers) -> Self {
        Self { keepers, patience: Some(PATIENCE), ..Self::default() }
    }

    /// What could not be had is tried again as soon as it is asked for. Nobody is waited for.
    pub fn forget_failures(&self) {
        self.is_mended.store(true, Ordering::Relaxed);
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
        match volume.digest_key.seal() {
            Some(seal) if !self.keepers.of(seal.mode).is_empty() => self.unlock(backend, names, volume, seal),
            _ => Ok((&volume.digest_key).into()),
        }
    }

    /// The keys of a volume's content.
    pub(crate) fn keys(&self, backend: &dyn Backend, names: &GroupNames, volume: &VolumeMeta) -> Result<ContentKeys> {
        match volume.digest_key.seal() {
            Some(seal) if self.keepers.of(seal.mode).is_empty() => {
                Err(needed(volume, seal, &wrappings(backend, names)?, "no key was given".to_owned()))
            }
            _ => self.keys_if_given(backend, names, volume),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_mended.swap(false, Ordering::Relaxed) {
            known.failed = None;
        }
        if self.is_doubted.swap(false, Ordering::Relaxed) {
            known.kept = None;
        }
        known
    }

    /// The key with which new volumes of a group are encrypted at rest, drawn if there was none; `None`: they are not. Everybody in
    /// [`Keepers::at_rest`] keeps it then, or is named. One at a time draws. A program or a passphrase takes its time.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`], of volumes that are there; [`StoreError::BadKey`] where a new one cannot be kept; what the file system or the
    /// service says.
    pub fn at_rest_key(&self, backend: &dyn Backend, names: &GroupNames, claimed: &ClaimedKeys) -> Result<Option<AtRestKey>> {
        let mut known = self.lock();
        let (key, is_new) = match claimed.at_rest.as_ref().and_then(|volume| Some((volume, volume.digest_key.seal()?))) {
            Some((volume, seal)) => {
                let key = self.unlocked(&mut known, backend, names, volume, seal)?;
                // † A host that has not the key may claim what it likes: it cannot say what only the key says of the volume.
                let is_its = ContentKeys::unseal(&key, volume.id, seal).is_ok();
                if !is_its || claimed.end_to_end.contains(&seal.key) {
                    let why = "its claim is not made with that key, or its key is that of volumes which are encrypted end to end";
                    return Err(needed(volume, seal, &wrappings(backend, names)?, why.to_owned()));
                }
                (key, false)
            }
            None if self.keepers.at_rest.is_empty() => return Ok(None),
            None => match self.drawn_before(&known, backend, names, &claimed.end_to_end)? {
                Some(key) => (key, false),
                None => (self.draw(backend, names)?, true),
            },
        };
        if !known.keys.iter().any(|other| other.id() == key.id()) {
            known.keys.push(key.clone());
        }
        known.at_rest = Some(key.id());
        // Whoever put what was found there may have died before it was durable, and a claim is to name the key now.
        block_on(backend.sync(&names.keys()))?;
        let mut unkept = Vec::new();
        if !is_new && known.kept != Some(key.id()) {
            unkept = self.keep(backend, names, &key)?;
        }
        known.kept = unkept.is_empty().then_some(key.id());
        Ok(Some(AtRestKey { key, is_new, unkept }))
    }

    /// The next time all who are to keep the key are asked again whether they can give it: what one of them kept may be gone since. Nobody is
    /// waited for now.
    pub fn ask_keepers_again(&self) {
        self.is_doubted.store(true, Ordering::Relaxed);
    }

    /// A key that was drawn for the group before any volume was claimed with it.
    fn drawn_before(
        &self,
        known: &Known,
        backend: &dyn Backend,
        names: &GroupNames,
        end_to_end: &BTreeSet<KeyId>,
    ) -> Result<Option<GroupKey>> {
        let begun = Instant::now();
        let stored = wrappings(backend, names)?;
        let ours = || stored.iter().filter_map(|stored| stored.of(names, SealMode::AtRest));
        let of_none = || ours().filter(|wrapping| !end_to_end.contains(&wrapping.key()));
        for wrapping in of_none() {
            if let Some(key) = known.keys.iter().find(|key| known.at_rest == Some(key.id()) && key.id() == wrapping.key()) {
                return Ok(Some(key.clone()));
            }
        }
        for keeper in nearest_first(&self.keepers.at_rest) {
            for wrapping in of_none().filter(|wrapping| !is_dear(wrapping)) {
                if self.patience.is_some_and(|patience| begun.elapsed() >= patience) {
                    let why = "what is there takes too long to be opened: remove what nobody uses (farside key list)".to_owned();
                    return Err(StoreError::BadKey { group: names.to_string(), why });
                }
                if let Ok(key) = opened(wrapping, keeper) {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }

    /// A new key. † Nothing of it is in the store before everybody who is to keep it has wrapped it: who configured two ways to it relies on both.
    fn draw(&self, backend: &dyn Backend, names: &GroupNames) -> Result<GroupKey> {
        let bad = |why: String| StoreError::BadKey { group: names.to_string(), why };
        let key = GroupKey::random().map_err(|error| bad(format!("no randomness: {error}")))?;
        let group = names.to_string();
        let wrap = |keeper| Wrapping::at_rest(&group, &key, keeper, ARGON2_DEFAULT).map_err(|error| bad(error.to_string()));
        let wrapped: Vec<Wrapping> = self.keepers.at_rest.iter().map(wrap).collect::<Result<_>>()?;
        for wrapping in wrapped {
            add_wrapping(backend, names, &wrapping.encode())?;
        }
        Ok(key)
    }

    /// Has everybody keep a key who is to; says who does not.
    fn keep(&self, backend: &dyn Backend, names: &GroupNames, key: &GroupKey) -> Result<Vec<String>> {
        let stored = wrappings(backend, names)?;
        let ours = stored.iter().filter_map(|stored| stored.of(names, SealMode::AtRest));
        let of_key: Vec<_> = ours.filter(|wrapping| wrapping.key() == key.id() && !is_dear(wrapping)).collect();
        let (begun, mut unkept) = (Instant::now(), Vec::new());
        for keeper in nearest_first(&self.keepers.at_rest) {
            let is_spent = || self.patience.is_some_and(|patience| begun.elapsed() >= patience);
            if is_spent() {
                unkept.push(format!("`{keeper}` was not asked: the others took too long"));
                continue;
            }
            if of_key.iter().any(|wrapping| !is_spent() && opened(wrapping, keeper).is_ok()) {
                continue;
            }
            // † Not all were tried: it may be there, and would be there twice after each such start.
            if is_spent() {
                unkept.push(format!("`{keeper}` was not asked of all that is there: that took too long"));
                continue;
            }
            let wrapped = Wrapping::at_rest(&names.to_string(), key, keeper, ARGON2_DEFAULT).map_err(|error| error.to_string());
            let kept = wrapped.and_then(|made| add_wrapping(backend, names, &made.encode()).map_err(|error| error.to_string()));
            unkept.extend(kept.err());
        }
        Ok(unkept)
    }

    fn unlock(&self, backend: &dyn Backend, names: &GroupNames, volume: &VolumeMeta, seal: &Seal) -> Result<ContentKeys> {
        let key = self.unlocked(&mut self.lock(), backend, names, volume, seal)?;
        // Held against the claim before anything is decrypted.
        ContentKeys::unseal(&key, volume.id, seal).map_err(|e| needed(volume, seal, &[], e.to_string()))
    }

    fn unlocked(
        &self,
        known: &mut Known,
        backend: &dyn Backend,
        names: &GroupNames,
        volume: &VolumeMeta,
        seal: &Seal,
    ) -> Result<GroupKey> {
        if !known.keys.iter().any(|key| key.id() == seal.key) {
            if let Some(failed) = known.failed.as_ref().filter(|failed| failed.key == seal.key && failed.at.elapsed() < AGAIN) {
                return Err(needed(volume, seal, &failed.stored, failed.why.clone()));
            }
            let from = known.failed.as_ref().filter(|failed| failed.key == seal.key).map_or(0, |failed| failed.next);
            match unwrap(backend, names, seal, &self.keepers.of(seal.mode), (from, self.patience))? {
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
        Ok(known.keys.iter().find(|key| key.id() == seal.key).expect("it is there, or was just put there").clone())
    }
}

/// Wrappings that do not open, why, and which is to be tried first the next time.
#[derive(Debug)]
struct Untold {
    stored: Vec<StoredWrapping>,
    why: String,
    next: u64,
}

/// The key that a volume says, out of any of its wrappings that one of these opens, those from a number on first. With a patience some may be left.
fn unwrap(
    backend: &dyn Backend,
    names: &GroupNames,
    seal: &Seal,
    keepers: &[&Keeper],
    (from, patience): (u64, Option<Duration>),
) -> Result<Result<GroupKey, Untold>> {
    let named: Vec<String> = keepers.iter().map(|keeper| format!("`{keeper}`")).collect();
    let opens = if keepers.len() == 1 { "opens" } else { "open" };
    let mut why = format!("{} {opens} none of its wrappings", named.join(" and "));
    let (mut stored, mut is_damaged) = (Vec::new(), false);
    let begun = Instant::now();
    let halves = if from == 0 { vec![0..FIRST, FIRST..WRAPPINGS_MAX] } else { vec![from..WRAPPINGS_MAX, 0..from] };
    for numbers in halves {
        let before = stored.len();
        stored.extend(wrappings_in(backend, names, numbers)?);
        let of_key = |stored: &&StoredWrapping| stored.of(names, seal.mode).is_some_and(|wrapping| wrapping.key() == seal.key);
        for found in stored[before..].iter().filter(of_key) {
            if patience.is_some_and(|patience| begun.elapsed() >= patience) {
                let next = found.number;
                why.push_str("; it took long, and others are tried the next time");
                return Ok(Err(Untold { stored, why, next }));
            }
            let Ok(wrapping) = &found.wrapping else { continue };
            for keeper in keepers {
                match opened(wrapping, keeper) {
                    Ok(key) => return Ok(Ok(key)),
                    Err(WrapError::OtherWay { .. }) => {}
                    Err(error @ WrapError::Damaged { .. }) => {
                        is_damaged = true;
                        why = error.to_string();
                    }
                    // What others say of their own hides no damage.
                    Err(error) if !is_damaged => why = error.to_string(),
                    Err(_) => {}
                }
            }
        }
    }
    Ok(Err(Untold { stored, why, next: 0 }))
}

/// What a keeper opens, of passphrases one at a time. † Whoever wrote the wrappings says what one costs: not of many groups at once.
fn opened(wrapping: &Wrapping, keeper: &Keeper) -> Result<GroupKey, WrapError> {
    static PASSPHRASES: Mutex<()> = Mutex::new(());
    let is_costly = wrapping.cost().is_some() && matches!(keeper, Keeper::Passphrase(_) | Keeper::PassphraseFile(_));
    let _one = is_costly.then(|| PASSPHRASES.lock().unwrap_or_else(PoisonError::into_inner));
    wrapping.unwrap(keeper)
}

/// Programs last: one that hangs takes the time of all who come after it.
fn nearest_first(keepers: &[Keeper]) -> impl Iterator<Item = &Keeper> {
    let is_program = |keeper: &&Keeper| matches!(keeper, Keeper::Command(_));
    keepers.iter().filter(move |keeper| !is_program(keeper)).chain(keepers.iter().filter(is_program))
}

/// Whether it takes more than what is made here: no gateway wrote it, and it is opened for nobody but who names its key.
fn is_dear(wrapping: &Wrapping) -> bool {
    let ours = ARGON2_DEFAULT;
    wrapping.cost().is_some_and(|cost| cost.memory_kib > ours.memory_kib || cost.passes > ours.passes || cost.lanes > ours.lanes)
}

pub(crate) fn needed(volume: &VolumeMeta, seal: &Seal, stored: &[StoredWrapping], why: String) -> StoreError {
    let mut wrapped: Vec<String> = Vec::new();
    for stored in stored {
        let number = stored.number;
        match (&stored.wrapping, stored.fault()) {
            (Ok(wrapping), None) if wrapping.key() == seal.key => wrapped.push(format!("{} (keys/{number})", wrapping.way())),
            (Ok(_), None) => {}
            (Ok(wrapping), Some(why)) => wrapped.push(format!("{} (keys/{number}; {why})", wrapping.way())),
            (Err(why), _) => wrapped.push(format!("keys/{number}, which cannot be used: {why}")),
        }
    }
    let wrapped = if wrapped.is_empty() { "in no way that the store holds".to_owned() } else { wrapped.join(", ") };
    StoreError::KeyNeeded { volume: volume.name.to_string(), mode: seal.mode.word(), key: seal.key, wrapped, why }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
