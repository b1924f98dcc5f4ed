//! The key of a group whose volumes are encrypted: its wrappings in the state directory, who unwraps it, and what speaks against sending.
//!
//! Invariants: a key is drawn once, and a wrapping of it is durable here before a volume is told that it is encrypted with it. Without the
//! key volumes are served and tracked, and nothing is sent; nothing of an encrypted volume ever goes out in clear, nor of one that is to
//! be. It deliberately knows no store: what lies here is handed to the gateway with every connection.
//!
//! A group without `encryption` takes the key that its gateway gives, if that encrypts at rest: for its memory, and nowhere else; it is asked for
//! with every connection. Whoever has a key of his own takes none.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_control::source::EncryptionStatus;
use farside_keys::{
    ARGON2_DEFAULT, ContentKeys, GroupKey, Keeper, Secret, WRAPPING_BYTES_MAX, WRAPPINGS_MAX, WrapError, Wrapping,
};
use farside_ledger::VolumeMeta;
use farside_region::{DigestKey, KeyId, Name, Seal, SealMode, VolumeId};
use tracing::{error, info};

use crate::config::sync_dir;
use crate::state_dir::{MetaError, damaged_meta_path, volume_meta, volume_path, volumes_path};

/// A key that could not be had is asked for again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// How often the log is told that it is missing still.
const SAID_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Who needs it at once waits no longer than this.
const PATIENCE: Duration = Duration::from_secs(75);

/// A gateway gives a group one key, and after a change of stores another one. What was given stays as long as something may be encrypted with it.
const GIVEN_MAX: usize = 16;

/// `encryption` and `key` of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// Who has the key.
    pub mode: SealMode,
    /// What unwraps it.
    pub keeper: Keeper,
}

/// A volume cannot begin: its group is encrypted, and the key is not here. It is asked for until it is.
#[derive(Debug, thiserror::Error)]
#[error("the key of group {group} cannot be had: {why}")]
pub(crate) struct KeyMissing {
    group: Name,
    why: String,
}

/// What the log was told of a key that is missing. Status says it as long as it is so.
#[derive(Debug, Default)]
struct Said(Option<(String, Instant)>);

impl Said {
    /// Whether to say it: for the first time, when it is something else by now, and now and then.
    fn is_news(&mut self, why: &str, now: Instant) -> bool {
        let is_known = matches!(&self.0, Some((said, at)) if said == why && now.saturating_duration_since(*at) < SAID_AGAIN);
        if !is_known {
            self.0 = Some((why.to_owned(), now));
        }
        !is_known
    }
}

/// What a group has of its key.
#[derive(Debug)]
pub(crate) struct GroupKeys {
    encryption: Option<Encryption>,
    group: Name,
    /// The host whose group it is, if that is another one.
    stands_in_for: Option<Name>,
    state_dir: PathBuf,
    held: Mutex<Held>,
    given: Mutex<Given>,
    changed: Condvar,
    /// The configuration says something else by now.
    outdated: AtomicBool,
}

/// What the gateway gave.
#[derive(Debug, Default)]
struct Given {
    keys: BTreeMap<KeyId, GroupKey>,
    /// On the newest connection.
    newest: Option<KeyId>,
}

#[derive(Debug)]
enum Held {
    /// For the first time.
    Asked,
    Here(GroupKey),
    /// And is asked for again.
    Missing(String),
}

/// Where the wrapped keys of a group are in a state directory.
pub fn folder(state_dir: &Path, group: &Name) -> PathBuf {
    state_dir.join("keys").join(group.as_str())
}

/// The wrapped keys in a folder: number, bytes, and what they say or what is wrong with them.
pub type InFolder = Vec<(u64, Vec<u8>, Result<Wrapping, String>)>;

/// What is in a folder of wrapped keys, by number; nothing, if there is none.
///
/// # Errors
/// When it cannot be looked at.
pub fn wrappings(folder: &Path) -> anyhow::Result<InFolder> {
    let mut found = Vec::new();
    for number in 0..WRAPPINGS_MAX {
        let path = folder.join(number.to_string());
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
            Ok(meta) if meta.len() > WRAPPING_BYTES_MAX as u64 => {
                found.push((number, Vec::new(), Err("it is too long".to_owned())))
            }
            Ok(_) => {
                let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                let wrapping = Wrapping::decode(&bytes).map_err(|e| e.to_string());
                found.push((number, bytes, wrapping));
            }
        }
    }
    Ok(found)
}

/// Puts a wrapped key into a folder, durably, under the first number that is free.
///
/// # Errors
/// When it cannot be written, or there are too many.
pub fn add(folder: &Path, wrapping: &Wrapping) -> anyhow::Result<PathBuf> {
    add_bytes(folder, &wrapping.encode())
}

/// The same, as somebody else wrapped it.
///
/// # Errors
/// Those of [`add`].
pub fn add_bytes(folder: &Path, wrapping: &[u8]) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = || format!("a wrapped key cannot be kept in {}", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(wrapping).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
    for number in 0..WRAPPINGS_MAX {
        let path = folder.join(number.to_string());
        match file.persist_noclobber(&path) {
            Ok(_) => {
                sync_folders(folder)?;
                return Ok(path);
            }
            Err(taken) if taken.error.kind() == std::io::ErrorKind::AlreadyExists => file = taken.file,
            Err(failure) => return Err(failure.error).with_context(failed),
        }
    }
    bail!("{} holds {WRAPPINGS_MAX} wrapped keys already: remove those that nobody uses", folder.display())
}

/// The key of a group that has one already, out of its wrapped keys in a state directory. None is drawn. A program or a passphrase takes its time.
///
/// # Errors
/// Why it cannot be had.
pub(crate) fn known(state_dir: &Path, group: &Name, keeper: &Keeper, wanted: KeyId) -> anyhow::Result<GroupKey> {
    let folder = folder(state_dir, group);
    let mut there = wrappings(&folder)?;
    there.retain(|(.., wrapping)| wrapping.as_ref().map_or(true, |wrapping| wrapping.key() == wanted || wrapping.is_damaged()));
    if there.is_empty() {
        bail!(
            "{} holds nothing that is wrapped of the key {wanted} (farside key copy brings it from the store)",
            folder.display()
        );
    }
    unwrap(&folder, &there, keeper)
}

/// Whether a volume of this host is encrypted, as its files say; `None`: there are none.
///
/// # Errors
/// When they cannot be read: then nobody can tell.
pub(crate) fn seal_here(state_dir: &Path, group: &Name, volume: &Name) -> anyhow::Result<Option<Option<Seal>>> {
    let meta = volume_meta(&volume_path(state_dir, group, volume))?;
    Ok(meta.map(|meta| meta.digest_key.seal().copied()))
}

fn unwrap(folder: &Path, there: &InFolder, keeper: &Keeper) -> anyhow::Result<GroupKey> {
    let (mut why, mut is_damaged) = (format!("{keeper} unwraps none of the keys in {}", folder.display()), false);
    for (number, _, wrapping) in there {
        match wrapping.as_ref().map(|wrapping| wrapping.unwrap(keeper)) {
            Ok(Ok(key)) => return Ok(key),
            Ok(Err(WrapError::OtherWay { .. })) => {}
            Ok(Err(error @ WrapError::Damaged { .. })) => {
                is_damaged = true;
                why = format!("{}: {error}", folder.join(number.to_string()).display());
            }
            // What others say of their own hides no damage.
            _ if is_damaged => {}
            Ok(Err(error)) => why = error.to_string(),
            Err(error) => why = format!("{} cannot be used: {error}", folder.join(number.to_string()).display()),
        }
    }
    bail!(why)
}

/// A folder of wrapped keys, and those in which it may be new.
fn sync_folders(folder: &Path) -> anyhow::Result<()> {
    // A relative one has ancestors of no name.
    let folder = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
    folder.ancestors().take(3).try_for_each(|dir| sync_dir(dir).map_err(Into::into))
}

impl GroupKeys {
    /// Of no group.
    pub(crate) fn none() -> Arc<Self> {
        Self::of(Path::new("/"), &"none".parse().expect("a name"), None, None)
    }

    fn of(state_dir: &Path, group: &Name, encryption: Option<Encryption>, stands_in_for: Option<Name>) -> Arc<Self> {
        let (group, state_dir) = (group.clone(), state_dir.to_owned());
        Arc::new(Self {
            encryption,
            group,
            stands_in_for,
            state_dir,
            held: Mutex::new(Held::Asked),
            given: Mutex::default(),
            changed: Condvar::new(),
            outdated: AtomicBool::new(false),
        })
    }

    /// Asks for the key of a group, if it has one, until it is here. `stands_in_for`: the host whose group it is, if that is another one.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        state_dir: &Path,
        group: &Name,
        encryption: Option<Encryption>,
        stands_in_for: Option<Name>,
    ) -> std::io::Result<Arc<Self>> {
        let keys = Self::of(state_dir, group, encryption, stands_in_for);
        if keys.encryption.is_some() {
            let weak = Arc::downgrade(&keys);
            std::thread::Builder::new().name("key".to_owned()).spawn(move || Self::ask(&weak))?;
        }
        Ok(keys)
    }

    fn ask(weak: &Weak<Self>) {
        let mut said = Said::default();
        while let Some(keys) = weak.upgrade() {
            let held = match keys.obtain() {
                Ok(key) => {
                    info!(group = %keys.group, key = %key.id(), "the key of the group is here");
                    Held::Here(key)
                }
                Err(why) => {
                    let why = format!("{why:#}");
                    if said.is_news(&why, Instant::now()) {
                        error!(group = %keys.group, "the key of the group cannot be had, and nothing is sent: {why}");
                    }
                    Held::Missing(why)
                }
            };
            let is_here = matches!(held, Held::Here(_));
            *keys.lock() = held;
            keys.changed.notify_all();
            if is_here {
                return;
            }
            drop(keys);
            std::thread::sleep(AGAIN);
        }
    }

    fn obtain(&self) -> anyhow::Result<GroupKey> {
        let Encryption { keeper, .. } = self.encryption.as_ref().context("the group is not encrypted")?;
        let folder = folder(&self.state_dir, &self.group);
        let there = wrappings(&folder)?;
        if there.is_empty() {
            return self.draw(&folder, keeper);
        }
        // Who wrote one may have died before it was durable, and a volume may come to depend on it now.
        for (number, ..) in &there {
            std::fs::File::open(folder.join(number.to_string()))
                .and_then(|file| file.sync_all())
                .context("a wrapped key cannot be synced")?;
        }
        sync_folders(&folder)?;
        unwrap(&folder, &there, keeper)
    }

    /// A new key, for a group that never had one.
    fn draw(&self, folder: &Path, keeper: &Keeper) -> anyhow::Result<GroupKey> {
        if let Some(volume) = self.sealed_volume()? {
            bail!(
                "volume {volume} is encrypted, and {} holds no wrapped key: put it back as {}/0, from a copy or from the store \
                 (groups/SOURCE/{}/keys/0)",
                folder.display(),
                folder.display(),
                self.group
            );
        }
        if let Some(host) = &self.stands_in_for {
            // † A key of its own would be another one than that of the history which it goes on with.
            bail!(
                "the group of {host} that this host stands in for has its key already: put what is wrapped of it into {folder} (on the gateway: \
                 farside key copy STORE --of {host}/{group} --to FOLDER)",
                folder = folder.display(),
                group = self.group
            );
        }
        let key = GroupKey::random().map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let path = add(folder, &Wrapping::new(&key, keeper, ARGON2_DEFAULT)?)?;
        info!(group = %self.group, key = %key.id(), "a key was drawn for the group; it is kept, wrapped, in {}", path.display());
        Ok(key)
    }

    /// A volume of the group that was told to be encrypted here.
    fn sealed_volume(&self) -> anyhow::Result<Option<String>> {
        let group = volumes_path(&self.state_dir).join(self.group.as_str());
        let entries = match std::fs::read_dir(&group) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries.with_context(|| group.display().to_string())?,
        };
        for entry in entries {
            let entry = entry.with_context(|| group.display().to_string())?;
            // One that cannot be read is nothing that was encrypted by a key that is gone: its opening says what is wrong. † One that is
            // damaged may be, and it is made anew.
            let is_sealed = match volume_meta(&entry.path()) {
                Err(MetaError::Damaged { .. }) => true,
                Ok(Some(meta)) => meta.digest_key.seal().is_some_and(|seal| seal.mode == SealMode::EndToEnd),
                Ok(None) | Err(MetaError::Io { .. }) => false,
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_sealed {
                return Ok(Some(name));
            }
            if damaged_meta_path(&entry.path()).exists() {
                return Ok(Some(format!(
                    "{name} (its meta.json was damaged; if it never was encrypted, remove its meta.json.damaged)"
                )));
            }
        }
        Ok(None)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first answer about the key is here, but not for ever.
    pub(crate) fn wait(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut held = self.lock();
        while self.encryption.is_some() && matches!(*held, Held::Asked) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            held = self.changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn key(&self) -> Result<GroupKey, String> {
        match &*self.lock() {
            Held::Here(key) => Ok(key.clone()),
            Held::Asked => Err("it is being unwrapped".to_owned()),
            Held::Missing(why) => Err(why.clone()),
        }
    }

    fn missing(&self, why: String) -> KeyMissing {
        KeyMissing { group: self.group.clone(), why }
    }

    /// What the configuration says now. Keys are those of the start; no volume begins under others than it is to have.
    pub(crate) fn is_configured(&self, encryption: Option<&Encryption>) {
        self.outdated.store(self.encryption.as_ref() != encryption, Ordering::Relaxed);
    }

    /// Whether nothing speaks against sending but that the key is not here yet, for the first time.
    pub(crate) fn is_asked(&self) -> bool {
        self.encryption.is_some() && matches!(*self.lock(), Held::Asked)
    }

    /// How a new volume is protected. Of a group that is encrypted its key must be here for that.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn of_new_volume(&self, id: VolumeId) -> anyhow::Result<DigestKey> {
        if self.outdated.load(Ordering::Relaxed) {
            bail!(
                "`encryption` or `key` of group {} changed in the configuration, which counts from the next start on: restart farsided \
                 (systemctl restart farsided), then add the volume",
                self.group
            );
        }
        let Some(encryption) = &self.encryption else {
            let mut key = [0; 32];
            while key == [0; 32] {
                getrandom::fill(&mut key).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?; // zeroes are no key
            }
            return Ok(DigestKey::Clear(key));
        };
        self.wait(PATIENCE);
        let key = self.key().map_err(|why| self.missing(why))?;
        Ok(DigestKey::Sealed(key.seal(encryption.mode, id)))
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the gateway answered about the key of the group.
    ///
    /// # Errors
    /// Why it is not taken.
    pub(crate) fn give(&self, bytes: Option<&[u8; 32]>) -> Result<(), String> {
        if let Some(Encryption { mode, .. }) = &self.encryption {
            // † Or whoever runs the gateway could have it encrypted with a key that he knows.
            return Err(format!(
                "the gateway gave a key for group {}, which this host encrypts {} itself: it is not taken",
                self.group,
                mode.word()
            ));
        }
        let mut given = self.given();
        given.newest = None;
        let Some(bytes) = bytes else { return Ok(()) };
        let key = GroupKey::new(Secret::new(bytes));
        let id = key.id();
        if !given.keys.contains_key(&id) {
            if given.keys.len() >= GIVEN_MAX {
                return Err(format!(
                    "the gateway gave {GIVEN_MAX} keys for group {} since farsided was started: restart it",
                    self.group
                ));
            }
            info!(group = %self.group, key = %id, "the gateway keeps the group encrypted at rest, and gave the key");
            given.keys.insert(id, key);
        }
        given.newest = Some(id);
        Ok(())
    }

    /// What the key that the gateway gave on the newest connection makes of these volumes.
    pub(crate) fn seals(&self, volumes: impl Iterator<Item = VolumeId>) -> BTreeMap<VolumeId, Seal> {
        let given = self.given();
        let Some(key) = given.newest.and_then(|id| given.keys.get(&id)) else { return BTreeMap::new() };
        volumes.map(|id| (id, key.seal(SealMode::AtRest, id))).collect()
    }

    /// For people.
    pub(crate) fn status<'m>(&self, mut volumes: impl Iterator<Item = &'m VolumeMeta>) -> Option<EncryptionStatus> {
        if let Some(Encryption { mode, .. }) = &self.encryption {
            return Some(EncryptionStatus { mode: mode.word().to_owned(), key: self.key().ok().map(|key| key.id().to_string()) });
        }
        let seal = volumes.find_map(|volume| volume.digest_key.seal().filter(|seal| seal.mode == SealMode::AtRest))?;
        let key = self.given().keys.contains_key(&seal.key).then(|| seal.key.to_string());
        Some(EncryptionStatus { mode: seal.mode.word().to_owned(), key })
    }

    /// Why nothing of these volumes may be sent now; `None`: it may.
    pub(crate) fn objection<'m>(&self, mut volumes: impl Iterator<Item = &'m VolumeMeta>) -> Option<String> {
        let key = match (&self.encryption, self.key()) {
            (None, _) => None,
            (Some(_), Ok(key)) => Some(key),
            (Some(_), Err(why)) => return Some(self.missing(why).to_string()),
        };
        volumes.find_map(|volume| match (&volume.digest_key, &key) {
            (DigestKey::Clear(_), None) => None,
            (DigestKey::Clear(_), Some(_)) => Some(format!(
                "volume {} was begun without encryption, and its group is to be encrypted: encryption begins with a first sync, of a volume \
                 under another name",
                volume.name
            )),
            // Its key is the gateway's to give; nothing is asked of the volume before.
            (DigestKey::Sealed(seal), None) if seal.mode == SealMode::AtRest => None,
            (DigestKey::Sealed(seal), Some(_)) if seal.mode == SealMode::AtRest => Some(format!(
                "volume {} is kept encrypted at rest by its gateway, and its group is to be encrypted end to end: that begins with a first sync, of a \
                 volume under another name",
                volume.name
            )),
            (DigestKey::Sealed(_), None) => {
                Some(format!("volume {} is encrypted, and its group has no `encryption` and `key` any more", volume.name))
            }
            (DigestKey::Sealed(seal), Some(key)) => {
                ContentKeys::unseal(key, volume.id, seal).err().map(|wrong| format!("volume {}: {wrong}", volume.name))
            }
        })
    }

    /// The keys of a volume's content.
    ///
    /// # Panics
    /// When there was an [objection](Self::objection).
    pub(crate) fn content_keys(&self, id: VolumeId, digest_key: &DigestKey) -> ContentKeys {
        if let (None, Some(seal)) = (&self.encryption, digest_key.seal().filter(|seal| seal.mode == SealMode::AtRest)) {
            let given = self.given();
            let key = given.keys.get(&seal.key).expect("nothing is sent before the gateway gave the key, and it stays");
            return ContentKeys::unseal(key, id, seal).expect("a seal is taken over only with the key that was given for it");
        }
        let key = self.encryption.as_ref().map(|_| self.key().expect("nothing is sent before the key is here, and it stays"));
        assert!(key.is_none() || digest_key.seal().is_some(), "a volume of an encrypted group is not sent in clear");
        let keys = ContentKeys::of(digest_key, id, key.as_ref()).expect("nothing is sent of a volume with another key");
        assert!(!matches!(keys, ContentKeys::Opaque), "nothing is sent of an encrypted volume without its key");
        keys
    }

    /// What the gateway's store is to keep. What cannot be read, or is damaged, is left out: the store has what it had.
    pub(crate) fn wrapped(&self) -> Vec<Vec<u8>> {
        if self.encryption.is_none() {
            return Vec::new();
        }
        let found = wrappings(&folder(&self.state_dir, &self.group)).unwrap_or_else(|error| {
            error!(group = %self.group, "the wrapped keys cannot be read: {error:#}");
            Vec::new()
        });
        let of = folder(&self.state_dir, &self.group);
        let is_whole = |(number, _, wrapping): &(u64, Vec<u8>, Result<Wrapping, String>)| {
            let Ok(wrapping) = wrapping else { return false };
            if wrapping.is_damaged() {
                let path = of.join(number.to_string());
                error!(group = %self.group, "the wrapped key {} is damaged, and not given to the gateway: put it back from the store", path.display());
            }
            !wrapping.is_damaged()
        };
        found.into_iter().filter(is_whole).map(|(_, bytes, _)| bytes).collect()
    }
}

/// What keys the digests that are kept of superblocks, in the state directory. No secret: who can read them can read the disk. It follows from the
/// id alone: a volume may take over another digest key, or a seal, and is not another disk for that.
pub(crate) fn sentinel_key(id: VolumeId) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&id.0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn key_file(dir: &Path, byte: u8) -> Encryption {
        let path = dir.join(format!("{byte}.key"));
        std::fs::write(&path, [byte; 32]).expect("written");
        Encryption { mode: SealMode::EndToEnd, keeper: Keeper::File(path) }
    }

    fn started(dir: &Path, encryption: Encryption) -> Arc<GroupKeys> {
        let keys = GroupKeys::start(dir, &name("db"), Some(encryption), None).expect("a thread");
        keys.wait(PATIENCE);
        keys
    }

    fn meta(digest_key: DigestKey) -> VolumeMeta {
        let geometry = farside_region::Geometry::new(1 << 20).expect("valid");
        let generation = farside_region::Generation(1);
        VolumeMeta { id: VolumeId([3; 16]), name: name("data"), geometry, digest_key, generation }
    }

    #[test]
    fn the_gateways_key_is_for_who_has_none_of_his_own() {
        let dir = tempfile::tempdir().expect("temp dir");
        let keys = GroupKeys::start(dir.path(), &name("db"), None, None).expect("none is needed");
        let id = VolumeId([3; 16]);
        assert!(keys.seals([id].into_iter()).is_empty());
        keys.give(Some(&[7; 32])).expect("taken");
        let seal = keys.seals([id].into_iter())[&id];
        assert_eq!(seal.mode, SealMode::AtRest);
        let volume = meta(DigestKey::Sealed(seal));
        assert_eq!(keys.objection([&volume].into_iter()), None);
        assert!(keys.content_keys(id, &volume.digest_key).is_sealed());
        let shown = keys.status([&volume].into_iter()).expect("encrypted");
        assert_eq!((shown.mode.as_str(), shown.key), ("at-rest", Some(seal.key.to_string())));
        // Another connection, to a gateway that encrypts nothing: what is under way ends with the key that it has.
        keys.give(None).expect("taken");
        assert!(keys.seals([id].into_iter()).is_empty() && keys.content_keys(id, &volume.digest_key).is_sealed());
        // It is nowhere but in memory.
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
        let again = GroupKeys::start(dir.path(), &name("db"), None, None).expect("none is needed");
        assert_eq!(again.objection([&volume].into_iter()), None, "it is asked for");
        assert_eq!(again.status([&volume].into_iter()).expect("encrypted").key, None);
        // Whoever gives many is not believed.
        let why = (1..=GIVEN_MAX as u8 + 1).find_map(|byte| again.give(Some(&[byte; 32])).err()).expect("too many");
        assert!(why.contains("restart it"), "{why}");

        let own = started(dir.path(), key_file(dir.path(), 1));
        let why = own.give(Some(&[7; 32])).expect_err("it has its own");
        assert!(why.contains("end-to-end") && own.seals([id].into_iter()).is_empty(), "{why}");
        assert!(own.give(None).is_err());
        let why = own.objection([&volume].into_iter()).expect("it began at rest");
        assert!(why.contains("at rest"), "{why}");
    }

    #[test]
    fn a_missing_key_is_said_once_and_then_rarely() {
        let (mut said, begin) = (Said::default(), Instant::now());
        let day = (0..86_400).step_by(20).map(|s| begin + Duration::from_secs(s));
        assert_eq!(day.filter(|now| said.is_news("no such file", *now)).count(), 4);
        let later = begin + Duration::from_secs(86_381);
        assert!(said.is_news("it does not open the key", later) && !said.is_news("it does not open the key", later));
    }

    /// What was drawn is found again, by whoever unwraps it, and nobody draws another in its place.
    #[test]
    fn a_key_is_drawn_once() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = started(dir.path(), key_file(dir.path(), 1));
        let sealed = first.of_new_volume(VolumeId([3; 16])).expect("the key is here");
        let volume = meta(sealed);
        assert_eq!(first.objection([&volume].into_iter()), None);
        assert_eq!(first.wrapped().len(), 1);

        let again = started(dir.path(), key_file(dir.path(), 1));
        assert_eq!(again.of_new_volume(VolumeId([3; 16])).expect("the key is here"), sealed);
        assert!(again.content_keys(volume.id, &sealed).is_sealed());

        let other = started(dir.path(), key_file(dir.path(), 2));
        let why = other.objection([&volume].into_iter()).expect("another file");
        assert!(why.contains("does not open the key"), "{why}");
        assert_eq!(wrappings(&folder(dir.path(), &name("db"))).expect("read").len(), 1, "nothing was drawn");

        // Another wrapping of the same key.
        let key = first.key().expect("here");
        let second = key_file(dir.path(), 2);
        add(&folder(dir.path(), &name("db")), &Wrapping::new(&key, &second.keeper, ARGON2_DEFAULT).expect("wrapped"))
            .expect("kept");
        let both = started(dir.path(), second);
        assert_eq!(both.objection([&volume].into_iter()), None);
        assert_eq!(both.wrapped().len(), 2);

        // Its folder is gone, and a volume was told that it is encrypted.
        std::fs::remove_dir_all(folder(dir.path(), &name("db"))).expect("removed");
        let of_volume = volumes_path(dir.path()).join("db").join("data");
        std::fs::create_dir_all(&of_volume).expect("made");
        std::fs::write(of_volume.join("meta.json"), serde_json::to_string(&volume).expect("text")).expect("written");
        let gone = started(dir.path(), key_file(dir.path(), 1));
        let why = gone.objection([&volume].into_iter()).expect("no key");
        assert!(why.contains("put it back"), "{why}");
        assert!(!folder(dir.path(), &name("db")).exists(), "nothing was drawn");
    }

    #[test]
    fn nothing_goes_out_in_clear_that_is_to_be_encrypted_and_the_other_way_round() {
        let dir = tempfile::tempdir().expect("temp dir");
        let keys = started(dir.path(), key_file(dir.path(), 1));
        let none = GroupKeys::none();
        let (clear, sealed) = (meta([7; 32].into()), meta(keys.of_new_volume(VolumeId([3; 16])).expect("the key is here")));
        assert_eq!(none.objection([&clear].into_iter()), None);
        let why = keys.objection([&sealed, &clear].into_iter()).expect("it is not encrypted");
        assert!(why.contains("without encryption"), "{why}");
        let why = none.objection([&clear, &sealed].into_iter()).expect("it is encrypted");
        assert!(why.contains("`encryption`"), "{why}");
        assert!(matches!(none.of_new_volume(VolumeId([3; 16])).expect("random"), DigestKey::Clear(_)));
        // A group that runs, and is to be encrypted from the next start on: nothing begins in clear meanwhile.
        none.is_configured(Some(&key_file(dir.path(), 1)));
        let why = none.of_new_volume(VolumeId([4; 16])).expect_err("not in clear").to_string();
        assert!(why.contains("restart farsided"), "{why}");
        none.is_configured(None);
        none.of_new_volume(VolumeId([4; 16])).expect("as it was");
    }
}
