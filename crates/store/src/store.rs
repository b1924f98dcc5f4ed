//! A whole store, in a directory or in a bucket: what makes it one, who may open it, which groups are in it.
//!
//! Owns `farside-store.json`, the locks, `tmp/` and the ballast. A store in a bucket has a *staging directory* on its
//! receiver's host: landing and the locks are there, and nothing that cannot be had again from the sources. Invariant: a [`Store`] is held
//! by one process of this host, and everything it acknowledges is durable in a place that is still the one it opened.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use farside_ledger::{Stamp, group_id};
use farside_region::{GroupId, Name};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Created, DirBackend, ObjectName, block_on};
use crate::error::{Result, StoreError};
use crate::group::GroupStore;
use crate::locks::{ReaderLock, Readers, WriterLock};
use crate::names::{self, GroupNames};
use crate::probe;
use crate::space::Space;
use crate::spoiled::KnownDamage;

/// The version of the store's layout that this program reads and writes.
pub const STORE_VERSION: u32 = 1;
/// Kept allocated, so that a prune record can be written when the file system has nothing left.
const BALLAST_BYTES: i64 = 1 << 20;
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;
/// How long a bucket is held to be the one it was without a look.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(30);

/// `farside-store.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StoreDescription {
    format: String,
    version: u32,
    #[serde(default)]
    id: String,
}

/// `farside-proof.json` of a staging directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    service: String,
}

/// `group.json`.
#[derive(Debug, Serialize, Deserialize)]
struct GroupDescription {
    format: String,
    version: u32,
    #[serde(default)]
    id: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    group: String,
}

/// A store, opened by the one process that writes to it.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What there is in a store, as far as its folders can be looked into. What is in the way in one of them hides none of the others.
#[derive(Debug, Default)]
pub struct Listing {
    /// The groups: folders that describe themselves as such, or of which nobody can find out whether they do. Who opens one of those is told
    /// why.
    pub groups: Vec<GroupNames>,
    /// Folders without a description.
    pub strays: Vec<GroupNames>,
    /// Sources whose groups cannot be listed, and why.
    pub unlisted: Vec<(Name, StoreError)>,
}

/// What the groups of an open store have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    /// Where parts land: the store's own directory, or another one where the store is in a bucket.
    pub(crate) staging: Arc<DirBackend>,
    /// The store is that directory.
    pub(crate) is_dir: bool,
    id: [u8; 16],
    writer: [u8; 16],
    started: Instant,
    /// When a bucket was last seen to be that of this store.
    seen: Mutex<Option<Instant>>,
    _lock: WriterLock,
}

impl Store {
    /// Makes a store in a directory, which is created if its parent exists; an existing store is left as it is.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`] for a directory with other things in it; what the medium lacks; what the file system says.
    pub fn init(path: &Path) -> Result<[u8; 16]> {
        make_dir(path)?;
        let dir = DirBackend::open_to_write(path)?;
        let name = names::store_description();
        if block_on(dir.get(&name, DESCRIPTION_BYTES_MAX))?.is_none() {
            // A lost+found does not make a fresh file system somebody's.
            let ours = |n: &str| ["tmp", "landing", "writer.lock", "reader.lock", "ballast", "lost+found"].contains(&n);
            let entries = fs::read_dir(path).map_err(|e| StoreError::from_io("listing", path, 0, e))?;
            for entry in entries {
                let entry = entry.map_err(|e| StoreError::from_io("listing", path, 0, e))?;
                if !entry.file_name().to_str().is_some_and(ours) {
                    return Err(StoreError::NotAStore { path: path.to_owned() });
                }
            }
            let _lock = WriterLock::take(path)?;
            dir.prepare()?;
            let id = HEXLOWER.encode(&random()?);
            write_json(&dir, &name, &StoreDescription { format: "farside store".into(), version: STORE_VERSION, id })?;
        }
        read_store_description(&dir)
    }

    /// Opens an existing store for writing: this process is its receiver as long as the value lives.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::NotAStore`], [`StoreError::Version`], [`StoreError::NetworkFs`],
    /// [`StoreError::NoHardLinks`], [`StoreError::Vanished`]; what the file system says.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_over(path, |dir| dir)
    }

    /// The same, with something between us and the directory.
    pub(crate) fn open_over(path: &Path, over: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Result<Self> {
        let dir = Arc::new(DirBackend::open_to_write(path)?);
        let id = read_store_description(&*dir)?;
        let lock = WriterLock::take(dir.root())?;
        ReaderLock::prepare(dir.root())?;
        dir.prepare()?;
        let backend = over(Arc::clone(&dir) as Arc<dyn Backend>);
        Self::over(backend, dir, true, id, lock)
    }

    /// Makes a store in a bucket, once it is proved that of several who create an object at once exactly one succeeds; an
    /// existing store is left as it is. Says its id.
    ///
    /// # Errors
    /// [`StoreError::NotCreateOnly`], [`StoreError::NotAStore`] for a prefix with other things below it; what the service says.
    pub fn init_bucket(backend: &Arc<dyn Backend>) -> Result<[u8; 16]> {
        let name = names::store_description();
        if block_on(backend.get(&name, DESCRIPTION_BYTES_MAX))?.is_none() {
            // What lies there is somebody's, whatever it is called; but for what another probe left.
            let there = block_on(backend.list(None, None, 1000))?;
            if there.objects.iter().any(|listed| listed.name == name) {
                return read_store_description(&**backend); // another gateway's, just now
            }
            if there.strange || there.more || !there.objects.iter().all(|listed| names::is_probe(&listed.name)) {
                return Err(StoreError::NotAStore { path: backend.place().into() });
            }
            probe::create_only(backend)?;
            let id = HEXLOWER.encode(&random()?);
            write_json(&**backend, &name, &StoreDescription { format: "farside store".into(), version: STORE_VERSION, id })?;
        }
        read_store_description(&**backend)
    }

    /// Opens an existing store in a bucket for writing. `staging`: a directory of its own for what is on its way there, made if
    /// its parent exists; whatever is lost with it the sources send again.
    ///
    /// # Errors
    /// [`StoreError::ForeignStaging`], [`StoreError::NotAStore`], [`StoreError::Version`]; of the staging directory, those of
    /// [`Store::open`]; what the service says.
    pub fn open_bucket(backend: Arc<dyn Backend>, staging: &Path) -> Result<Self> {
        let id = read_store_description(&*backend)?;
        make_dir(staging)?;
        let dir = Arc::new(DirBackend::open_to_write(staging)?);
        let lock = WriterLock::take(dir.root())?;
        dir.prepare()?;
        let mine = HEXLOWER.encode(&id);
        let name = names::staging_description();
        let path = dir.root().join(name.as_str());
        if block_on(dir.get(&names::store_description(), DESCRIPTION_BYTES_MAX))?.is_some() {
            let found = "a store itself".to_owned();
            return Err(StoreError::ForeignStaging { path: dir.root().to_owned(), found, expected: mine });
        }
        if block_on(dir.get(&name, DESCRIPTION_BYTES_MAX))?.is_none() {
            prove(&backend, &dir)?;
            write_json(
                &*dir,
                &name,
                &StoreDescription { format: "farside staging".into(), version: STORE_VERSION, id: mine.clone() },
            )?;
        }
        let bytes = block_on(dir.get(&name, DESCRIPTION_BYTES_MAX))?.unwrap_or_default();
        let found: StoreDescription = parse_json(&path, &bytes, "farside staging")?;
        if found.id != mine {
            return Err(StoreError::ForeignStaging { path: dir.root().to_owned(), found: found.id, expected: mine });
        }
        prove(&backend, &dir)?;
        Self::over(backend, dir, false, id, lock)
    }

    fn over(backend: Arc<dyn Backend>, staging: Arc<DirBackend>, is_dir: bool, id: [u8; 16], lock: WriterLock) -> Result<Self> {
        let (started, seen) = (Instant::now(), Mutex::new(Some(Instant::now())));
        let shared = Shared { backend, staging, is_dir, id, writer: random()?, started, seen, _lock: lock };
        shared.keep_ballast();
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The store's id, drawn when it was made.
    pub fn id(&self) -> [u8; 16] {
        self.shared.id
    }

    /// Where parts land, without symbolic links: its directory, or the staging directory of one in a bucket.
    pub fn staging(&self) -> &Path {
        self.shared.staging.root()
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.shared.backend.place()
    }

    /// The groups in it, as far as its folders can be looked into.
    ///
    /// # Errors
    /// Where none can be; [`StoreError::Vanished`], [`StoreError::Latched`].
    pub fn groups(&self) -> Result<Listing> {
        list_groups(&*self.shared.backend)
    }

    /// Opens a group, which is created if it does not exist: replays its ledger, indexes its segments, sweeps what dead
    /// processes left and recovers landing. A torn ledger opens as far as it is whole; see [`GroupStore::torn`].
    ///
    /// # Errors
    /// [`StoreError::ForeignGroup`]; what the file system says.
    pub fn group(&self, source: &Name, group: &Name) -> Result<GroupStore> {
        self.group_as(source, group, KnownDamage::default(), true)
    }

    /// The same for who knows what was met damaged of it: nothing goes that may be needed for that.
    ///
    /// # Errors
    /// Those of [`Store::group`].
    pub fn group_with(&self, source: &Name, group: &Name, known: KnownDamage) -> Result<GroupStore> {
        self.group_as(source, group, known, true)
    }

    /// The same for who does not know what was met damaged, since a receiver keeps that: nothing is deleted unasked.
    ///
    /// # Errors
    /// Those of [`Store::group`].
    pub fn group_unswept(&self, source: &Name, group: &Name) -> Result<GroupStore> {
        self.group_as(source, group, KnownDamage::default(), false)
    }

    fn group_as(&self, source: &Name, group: &Name, known: KnownDamage, sweeps: bool) -> Result<GroupStore> {
        let names = GroupNames::new(source.clone(), group.clone());
        let id = group_id(source, group);
        let backend = &*self.shared.backend;
        let read = read_group_description(backend, &names);
        if matches!(read, Err(StoreError::NoSuchGroup { .. })) {
            let description = GroupDescription {
                format: "farside group".into(),
                version: STORE_VERSION,
                id: id.to_string(),
                source: source.to_string(),
                group: group.to_string(),
            };
            write_json(backend, &names.description(), &description)?;
            read_group_description(backend, &names)?; // whoever made it
        } else {
            read?;
        }
        GroupStore::open(Arc::clone(&self.shared), names, id, known, sweeps)
    }

    /// Whether the store itself is there, is the one that was opened, and answers. What is in the way of one of its groups is about that group
    /// alone then.
    ///
    /// # Errors
    /// [`StoreError::Vanished`], [`StoreError::Latched`], [`StoreError::Replaced`]; what the file system or the service says.
    pub fn look(&self) -> Result<()> {
        self.shared.staging.present()?;
        self.shared.is_same()
    }

    /// The space of the file system that parts land on.
    ///
    /// # Errors
    /// [`StoreError::Vanished`], or what the file system says.
    pub fn space(&self) -> Result<Space> {
        self.shared.staging.present()?;
        Space::of(self.staging())
    }

    /// What may be promised to sources, all together: see [`Space::grantable`].
    ///
    /// # Errors
    /// [`StoreError::Vanished`], or what the file system says.
    pub fn grantable_bytes(&self) -> Result<u64> {
        Ok(self.space()?.grantable())
    }
}

/// That the service carries out a create only where there is nothing, unless it was found to from that staging directory. † A store may have been
/// copied to another service that nobody tried, and one that overwrites loses records that were acknowledged.
fn prove(backend: &Arc<dyn Backend>, staging: &DirBackend) -> Result<()> {
    let (name, mine) = (names::staging_proof(), Proof { service: backend.service() });
    // What cannot be read proves nothing.
    let found = block_on(staging.get(&name, DESCRIPTION_BYTES_MAX)).unwrap_or_default();
    if found.and_then(|bytes| serde_json::from_slice(&bytes).ok()) == Some(mine.clone()) {
        return Ok(());
    }
    probe::create_only(backend)?;
    block_on(staging.delete(&name))?;
    write_json(staging, &name, &mine).map(drop)
}

impl Shared {
    /// How readers in this process hold off deletions.
    pub(crate) fn readers(&self) -> Readers {
        if self.is_dir { Readers::Locked(self.staging.root().to_owned()) } else { Readers::Leased }
    }

    /// Whether the store is still the one that was opened: a directory looks itself, a bucket is looked at now and then and after
    /// every error. One that was made anew under us takes what is put into it like any other.
    ///
    /// # Errors
    /// [`StoreError::Replaced`]; what the service says.
    pub(crate) fn same_place(&self) -> Result<()> {
        if self.is_dir {
            return Ok(());
        }
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_some_and(|seen| seen.elapsed() < LOOKED_AT_AGAIN) {
            return Ok(());
        }
        self.is_same()?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    fn is_same(&self) -> Result<()> {
        match read_store_description(&*self.backend) {
            Ok(id) if id == self.id => Ok(()),
            Ok(_) | Err(StoreError::NotAStore { .. }) => Err(StoreError::Replaced { place: self.backend.place() }),
            Err(error) => Err(error),
        }
    }

    /// Something went wrong there: it is looked at before the next record.
    pub(crate) fn doubt_place(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The clocks of this process, for a record.
    pub(crate) fn stamp(&self) -> Stamp {
        let since_1970 = |t: SystemTime| match t.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        #[cfg(test)]
        let mono_ms = mono_ms + crate::testkit::PASSED_MS.get();
        let wall_ms = since_1970(SystemTime::now());
        #[cfg(test)]
        let wall_ms = wall_ms.saturating_add_unsigned(crate::testkit::WALL_PASSED_MS.get());
        Stamp { writer: self.writer, mono_ms, wall_ms }
    }

    /// Gives the ballast's blocks back to the file system; false when there was none.
    pub(crate) fn release_ballast(&self) -> bool {
        fs::remove_file(self.staging.root().join("ballast")).is_ok()
    }

    /// Takes a little space for bad times, if there is some.
    pub(crate) fn keep_ballast(&self) {
        let path = self.staging.root().join("ballast");
        let roomy = Space::of(self.staging.root()).is_ok_and(|s| s.available > 4 * BALLAST_BYTES as u64);
        if path.exists() || !roomy {
            return;
        }
        let made = File::create_new(&path)
            .and_then(|file| nix::fcntl::posix_fallocate(&file, 0, BALLAST_BYTES).map_err(std::io::Error::from));
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            tracing::warn!(path = %path.display(), %error, "no space is kept for pruning a full store");
        }
    }
}

/// Makes a directory durably, unless it is there.
fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(StoreError::from_io("creating", path, 4096, e)),
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|d| d.sync_all());
    synced.map_err(|e| StoreError::from_io("syncing", parent, 0, e))
}

/// The groups of a store: the folders of a source and a group that describe themselves as such.
pub(crate) fn list_groups(backend: &dyn Backend) -> Result<Listing> {
    let root = names::groups();
    let below = |folder: &ObjectName| -> Result<BTreeSet<Name>> {
        Ok(block_on(backend.folders(folder))?.iter().filter_map(|name| name.parse().ok()).collect())
    };
    let mut listing = Listing::default();
    for source in below(&root)? {
        let folder = ObjectName::new(format!("{root}/{source}"))?;
        let groups = match below(&folder) {
            Err(error) if !is_of_store(&error) => {
                listing.unlisted.push((source, error));
                continue;
            }
            other => other?,
        };
        for names in groups.into_iter().map(|group| GroupNames::new(source.clone(), group)) {
            match block_on(backend.size(&names.description())) {
                Ok(None) => listing.strays.push(names),
                Err(error) if is_of_store(&error) => return Err(error),
                // Whoever opens it meets that error, if it is still there.
                Ok(Some(_)) | Err(_) => listing.groups.push(names),
            }
        }
    }
    Ok(listing)
}

/// Whether what was met in one folder is said of the whole store.
fn is_of_store(error: &StoreError) -> bool {
    matches!(error, StoreError::Vanished { .. } | StoreError::Latched { .. } | StoreError::NoBucket { .. })
}

/// The same of landing, which no backend looks into.
pub(crate) fn folders_in_landing(folder: &Path) -> Result<BTreeSet<GroupNames>> {
    let mut groups = BTreeSet::new();
    for source in folders(folder)? {
        for group in folders(&folder.join(source.as_str()))? {
            groups.insert(GroupNames::new(source.clone(), group));
        }
    }
    Ok(groups)
}

fn folders(dir: &Path) -> Result<Vec<Name>> {
    let io = |e| StoreError::from_io("listing", dir, 0, e).while_reading();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        let is_dir = entry.file_type().map_err(io)?.is_dir();
        names.extend(entry.file_name().to_str().filter(|_| is_dir).and_then(|n| n.parse().ok()));
    }
    Ok(names)
}

/// The id of the store in a place.
pub(crate) fn read_store_description(backend: &dyn Backend) -> Result<[u8; 16]> {
    let name = names::store_description();
    let place = PathBuf::from(backend.place());
    let path = place.join(name.as_str());
    let Some(bytes) = block_on(backend.get(&name, DESCRIPTION_BYTES_MAX))? else {
        return Err(StoreError::NotAStore { path: place });
    };
    let found: StoreDescription = parse_json(&path, &bytes, "farside store")?;
    id_of(&found.id).ok_or_else(|| StoreError::Damaged { path, why: "its id is not 32 hex digits".into() })
}

/// Checks that a group's folder describes itself as that group.
pub(crate) fn read_group_description(dir: &dyn Backend, names: &GroupNames) -> Result<GroupId> {
    let name = names.description();
    let expected = group_id(&names.source, &names.group);
    let Some(bytes) = block_on(dir.get(&name, DESCRIPTION_BYTES_MAX))? else {
        let (source_name, group) = (names.source.to_string(), names.group.to_string());
        return Err(StoreError::NoSuchGroup { source_name, group, known: String::new() });
    };
    let path = PathBuf::from(name.as_str());
    let found: GroupDescription = parse_json(&path, &bytes, "farside group")?;
    let id = id_of(&found.id).map(GroupId);
    let id = id.ok_or_else(|| StoreError::Damaged { path, why: "its id is not 32 hex digits".into() })?;
    if id != expected {
        return Err(StoreError::ForeignGroup { file: name.to_string(), expected, found: id });
    }
    Ok(id)
}

/// What the description of a group, which says by its id that it is this one, calls it wrongly. Nothing depends on that.
pub(crate) fn mislabelled(dir: &dyn Backend, names: &GroupNames) -> Result<Option<String>> {
    let name = names.description();
    let Some(bytes) = block_on(dir.get(&name, DESCRIPTION_BYTES_MAX))? else { return Ok(None) };
    let found: GroupDescription = parse_json(Path::new(name.as_str()), &bytes, "farside group")?;
    let is_so = found.source == names.source.as_str() && found.group == names.group.as_str();
    let text = || {
        let damaged =
            format!("{name} says `{}/{}`, which its id does not: some of its bytes have changed", found.source, found.group);
        format!("{damaged}; put it back from a copy of the store")
    };
    Ok((!is_so).then(text))
}

/// Reads the version before anything else, so that a newer description is refused by its version and not by its fields.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8], format: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let head: Head = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if head.format != format {
        return Err(damaged(format!("it says `{}`, not `{format}`", head.format.chars().take(40).collect::<String>())));
    }
    if head.version != STORE_VERSION {
        return Err(StoreError::Version { path: path.to_owned(), found: head.version, known: STORE_VERSION });
    }
    serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))
}

fn write_json<T: Serialize>(backend: &dyn Backend, name: &ObjectName, value: &T) -> Result<Created> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("a description is plain text");
    bytes.push(b'\n');
    block_on(backend.create(name, bytes.into()))
}

/// 16 random bytes.
pub(crate) fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| {
        StoreError::from_io("reading", Path::new("the kernel's random numbers"), 0, std::io::Error::other(e.to_string()))
    })?;
    Ok(bytes)
}

fn id_of(text: &str) -> Option<[u8; 16]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{TempStore, name};

    #[test]
    fn the_descriptions_are_these_bytes() {
        let store = TempStore::new();
        let open = store.open();
        let text = fs::read_to_string(store.path().join("farside-store.json")).expect("read");
        let id = HEXLOWER.encode(&open.id());
        assert_eq!(text, format!("{{\n  \"format\": \"farside store\",\n  \"version\": 1,\n  \"id\": \"{id}\"\n}}\n"));
        drop(open.group(&name("host"), &name("db")).expect("group"));
        let text = fs::read_to_string(store.path().join("groups/host/db/group.json")).expect("read");
        let golden = "{\n  \"format\": \"farside group\",\n  \"version\": 1,\n  \"id\": \"GROUP\",\n  \"source\": \"host\",\n  \"group\": \"db\"\n}\n";
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"farside group v1\0host\0db");
        assert_eq!(text, golden.replace("GROUP", &HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])));
        assert_eq!(open.groups().expect("groups").groups, [GroupNames::new(name("host"), name("db"))]);
    }

    /// One description that could not be looked at hid every group of the store.
    #[test]
    fn what_cannot_be_looked_at_hides_no_group() {
        use crate::backend::faulty::{Faulty, Op, When};

        let store = TempStore::new();
        let open = store.open();
        for (source, group) in [("host", "db"), ("host", "web"), ("other", "db")] {
            drop(open.group(&name(source), &name(group)).expect("group"));
        }
        fs::create_dir_all(store.path().join("groups/host/stray")).expect("made");
        let faulty = Faulty::new(Arc::new(DirBackend::open(&store.path()).expect("open")));
        faulty.fail(Op::Size, "host/db/group.json", When::Before, libc::EACCES);
        faulty.fail(Op::Folders, "groups/other", When::Before, libc::EACCES);
        let listing = list_groups(&*faulty).expect("the others");
        assert_eq!(listing.groups, ["db", "web"].map(|group| GroupNames::new(name("host"), name(group))));
        assert_eq!(listing.strays, [GroupNames::new(name("host"), name("stray"))]);
        assert!(
            matches!(&listing.unlisted[..], [(source, StoreError::Denied { .. })] if *source == name("other")),
            "{listing:?}"
        );
        faulty.fail(Op::Folders, "groups", When::Before, libc::EACCES);
        assert!(list_groups(&*faulty).is_err(), "nothing can be seen");
    }
}
