//! The store in a bucket as it was, and what of it is locked there.
//!
//! A *lock* is a list of objects, each by the version that it names, and a legal hold (S3's Object Lock) on each of them and on the list itself. So
//! what it names stays whatever is deleted or overwritten, also by who has the gateway's keys, until somebody who may end holds does so; and it
//! is read by the list: nothing that came since is seen. The list's name is a digest of it: whoever knows the name believes no other.
//!
//! Invariants: the holds of all objects were acknowledged before the list is put, and its own before anybody is told its name. A hold is ended only
//! of what no other lock has that is held (the service counts none), also where two do both at once: who locks puts all holds once more
//! after his list is held, and who ends looks for lists once more after he ended, so whichever is last has seen the other. Only lists that are
//! held count: others are what anybody can put there. A `lock` that was killed, and two who end at once what both have, leave holds that no list names:
//! better than to end one that is needed. (To look for these afterwards, and end them, would be one more end without a look behind it.)

use std::collections::BTreeSet;
use std::sync::Arc;

use farside_store::{Backend, StoreError};
use jiff::Timestamp;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::bucket::{self, Bucket, wait};
use crate::moment::{Moment, Version, Versioned, generic, plain};
use crate::versions::Entry;

/// The folder of lists.
const LOCKS: &str = "farside-locks/";
const SUFFIX: &str = ".json";
const FORMAT: &str = "farside lock";
const VERSION: u32 = 1;
/// None is larger: some two million objects.
const LIST_BYTES_MAX: u64 = 512 << 20;
/// How much of a list's digest is its name, in hex digits.
const ID_DIGITS: usize = 32;

/// What somebody wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// What was there at that moment, by the service's clock.
    AsOf(Timestamp),
    /// What a lock names.
    Lock(String),
    /// What is there now.
    Now,
}

/// A store in a bucket as it was. It is read by [`Past::backend`].
#[derive(Debug)]
pub struct Past {
    bucket: Arc<Bucket>,
    moment: Arc<Moment>,
    below: String,
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// Its name: 32 hex digits.
    pub id: String,
    /// Which group's point it is for.
    pub group: String,
    /// Which point.
    pub point: String,
    /// Why, for people.
    pub case: String,
    /// When, by the clock of who made it.
    pub made: Timestamp,
    /// How many objects it names.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a list says; see `docs/formats/store.md`.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    format: String,
    version: u32,
    group: String,
    point: String,
    case: String,
    made: Timestamp,
    objects: Vec<Listed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    /// Below the store's prefix.
    name: String,
    version: String,
    bytes: u64,
    at: Timestamp,
}

/// Who reads and ends locks.
#[derive(Debug)]
pub struct Locks {
    service: Arc<Versioned>,
    below: String,
    place: String,
    runtime: Option<Runtime>,
}

fn below(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

fn id_of(list: &[u8]) -> String {
    blake3::hash(list).to_hex()[..ID_DIGITS].to_owned()
}

/// Whether that may be a lock's name.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

fn runtime(place: &str) -> Result<Runtime, StoreError> {
    bucket::runtime().map_err(|source| StoreError::Io { doing: "starting threads for", path: place.into(), source })
}

/// A version that may be a list.
struct Candidate {
    /// Of what its name is to be the digest.
    id: String,
    version: Version,
    bytes: u64,
}

/// All that lies under such names, those of a name from the newest to the oldest.
async fn candidates(service: &Versioned, prefix: &str) -> object_store::Result<Vec<Candidate>> {
    let mut there = Vec::new();
    let each = |entry: Entry| {
        let key = plain(&entry.key).filter(|_| !entry.is_deletion && entry.bytes <= LIST_BYTES_MAX);
        let id = key.as_ref().and_then(|key| key.filename()?.strip_suffix(SUFFIX)).map(str::to_owned);
        if let (Some(key), Some(id)) = (key, id) {
            there.push(Candidate { id, version: Version { key, id: entry.version }, bytes: entry.bytes });
        }
        Ok(())
    };
    service.entries(prefix, each).await?;
    Ok(there)
}

/// The list; `None`: it is another, which somebody put over it, or gone.
async fn read(service: &Versioned, Candidate { id, version, bytes }: &Candidate) -> object_store::Result<Option<List>> {
    let Some(content) = service.read(version, *bytes).await?.filter(|content| id_of(content) == *id) else { return Ok(None) };
    let list: List = serde_json::from_slice(&content).map_err(|e| generic(format!("the lock {id} cannot be read: {e}")))?;
    match list.format == FORMAT && list.version == VERSION {
        true => Ok(Some(list)),
        false => Err(generic(format!("the lock {id} is of a newer version: install a newer Farside to read it"))),
    }
}

/// The list of that name. † What was put over it is never read before it, and cannot keep it from being read.
async fn find(service: &Versioned, below: &str, id: &str) -> object_store::Result<Option<List>> {
    let mut failed = None;
    for candidate in candidates(service, &format!("{below}{LOCKS}{id}{SUFFIX}")).await?.iter().rev().filter(|c| c.id == id) {
        match read(service, candidate).await {
            Ok(Some(list)) => return Ok(Some(list)),
            Ok(None) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// Lists that are held: others are what anybody can put there. `Err`: one that cannot be read, in words.
async fn held(service: &Versioned, below: &str) -> object_store::Result<Vec<Result<Held, String>>> {
    let mut held = Vec::new();
    for candidate in candidates(service, &format!("{below}{LOCKS}")).await? {
        if !service.is_held(&candidate.version).await? {
            continue;
        }
        match read(service, &candidate).await {
            Ok(Some(list)) => held.push(Ok(Held { id: candidate.id, list, version: candidate.version })),
            Ok(None) => {}
            Err(error) => held.push(Err(format!("{}: {error}", candidate.id))),
        }
    }
    Ok(held)
}

/// A list that is held.
struct Held {
    id: String,
    list: List,
    version: Version,
}

impl List {
    fn lock(&self, id: &str) -> Lock {
        Lock {
            id: id.to_owned(),
            group: self.group.clone(),
            point: self.point.clone(),
            case: self.case.clone(),
            made: self.made,
            objects: self.objects.len() as u64,
            bytes: self.objects.iter().map(|object| object.bytes).sum(),
        }
    }

    fn versions<'l>(&'l self, below: &'l str) -> impl Iterator<Item = Version> + 'l {
        self.objects.iter().map(move |object| Version { key: key_of(below, &object.name), id: object.version.clone() })
    }
}

fn key_of(below: &str, name: &str) -> Key {
    Key::from(format!("{below}{name}"))
}

impl Past {
    /// Lists what is to be seen.
    ///
    /// # Errors
    /// What the service says; there is no such lock; threads cannot be started.
    pub(crate) fn of(service: Versioned, prefix: &str, seen: Seen, place: String) -> Result<Self, StoreError> {
        let runtime = runtime(&place)?;
        let of = below(prefix);
        let listed = async move {
            match seen {
                Seen::AsOf(moment) => Moment::at(service, &of, moment.as_millisecond()).await,
                Seen::Now => Moment::at(service, &of, i64::MAX).await,
                Seen::Lock(id) => {
                    let Some(list) = find(&service, &of, &id).await? else {
                        return Err(generic(format!("there is no lock {id}; `farside store locks` shows those that there are")));
                    };
                    let one = |object: Listed| {
                        let version = Version { key: key_of(&of, &object.name), id: object.version };
                        (version, object.bytes, object.at.to_string())
                    };
                    Moment::of(service, list.objects.into_iter().map(one))
                }
            }
        };
        let moment = Arc::new(wait(&runtime, ("listing versions of", &place), listed)?);
        let bucket = Arc::new(Bucket::in_runtime(Arc::clone(&moment) as _, prefix, place, runtime).past());
        Ok(Self { bucket, moment, below: below(prefix) })
    }

    /// It, to be read.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.bucket) as _
    }

    /// How many objects were read so far, and their bytes.
    pub fn touched(&self) -> (u64, u64) {
        let touched = self.moment.touched();
        (touched.len() as u64, touched.iter().map(|(_, bytes, _)| bytes).sum())
    }

    /// Begins to note anew.
    pub fn forget_touched(&self) {
        self.moment.forget_touched();
    }

    /// Locks every object that was read so far, by the version that was read. `done`: once for each.
    ///
    /// # Errors
    /// What the service says: perhaps that the bucket has no Object Lock, or that these keys may not. Holds may have been put by then, without a list;
    /// said again, they are put again.
    pub fn lock(&self, of: (String, String), case: String, done: impl Fn() + Send + Sync + 'static) -> Result<Lock, StoreError> {
        let touched = self.moment.touched();
        let listed = |(version, bytes, at_ms): &(Version, u64, i64)| Listed {
            name: version.key.as_ref().strip_prefix(&self.below).unwrap_or(version.key.as_ref()).to_owned(),
            version: version.id.clone(),
            bytes: *bytes,
            at: Timestamp::from_millisecond(*at_ms).unwrap_or_default(),
        };
        let ((group, point), made) = (of, Timestamp::now());
        let objects = touched.iter().map(listed).collect();
        let list = List { format: FORMAT.to_owned(), version: VERSION, group, point, case, made, objects };
        let content = serde_json::to_vec_pretty(&list).expect("a list is plain text");
        let lock = list.lock(&id_of(&content));
        if content.len() as u64 > LIST_BYTES_MAX {
            let why = format!("a list of {} objects is too large to lock", lock.objects);
            return Err(StoreError::Remote { doing: "locking objects of", what: self.bucket.place(), why });
        }
        let key = Key::from(format!("{}{LOCKS}{}{SUFFIX}", self.below, lock.id));
        let moment = Arc::clone(&self.moment);
        let versions: Vec<Version> = touched.into_iter().map(|(version, _, _)| version).collect();
        self.bucket.wait("locking objects of", async move {
            let service = &moment.service;
            service.hold(versions.clone(), true, &done).await?;
            let list = service.put(key, content.into()).await?;
            service.hold(vec![list], true, &|| {}).await?;
            // † Whoever ended another lock meanwhile, and had not seen this one, has ended holds of both.
            service.hold(versions, true, &|| {}).await
        })?;
        Ok(lock)
    }
}

impl Locks {
    pub(crate) fn of(service: Versioned, prefix: &str, place: String) -> Result<Self, StoreError> {
        let runtime = Some(runtime(&place)?);
        Ok(Self { service: Arc::new(service), below: below(prefix), place, runtime })
    }

    fn wait<T: Send + 'static>(
        &self,
        doing: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        wait(self.runtime.as_ref().expect("it is there until the drop"), (doing, &self.place), request)
    }

    /// Those that are held, from the oldest to the newest; and of those whose list cannot be read, why.
    ///
    /// # Errors
    /// What the service says.
    pub fn list(&self) -> Result<(Vec<Lock>, Vec<String>), StoreError> {
        let (mut locks, mut unread) = (Vec::new(), Vec::new());
        for held in self.held()? {
            match held {
                Ok(held) => locks.push(held.list.lock(&held.id)),
                Err(why) => unread.push(why),
            }
        }
        locks.sort_by(|one, other| (one.made, &one.id).cmp(&(other.made, &other.id)));
        Ok((locks, unread))
    }

    fn held(&self) -> Result<Vec<Result<Held, String>>, StoreError> {
        let (service, below) = (Arc::clone(&self.service), self.below.clone());
        self.wait("looking for locks of", async move { held(&service, &below).await })
    }

    /// Ends one, but for objects that others have as well; how many those are. `None`: none of that name is held.
    ///
    /// # Errors
    /// What the service says; a list of another lock cannot be read. It may be said again: until it succeeded, the lock is listed, and holds
    /// less than it says.
    pub fn end(&self, id: &str, done: impl Fn() + Send + Sync + 'static) -> Result<Option<(Lock, u64)>, StoreError> {
        let (service, below, id) = (Arc::clone(&self.service), self.below.clone(), id.to_owned());
        self.wait("ending a lock of", async move {
            let (mine, others) = one_of(&service, &below, &id).await?;
            let Some(mine) = mine else { return Ok(None) };
            let versions: Vec<Version> = mine.list.versions(&below).collect();
            let ended = versions.iter().filter(|version| !others.contains(version)).cloned();
            service.hold(ended.collect(), false, &done).await?;
            // † One that was made meanwhile may have had them as held already; also where this was begun before, and broke off here.
            let (_, others) = one_of(&service, &below, &id).await?;
            let kept: Vec<Version> = versions.into_iter().filter(|version| others.contains(version)).collect();
            service.hold(kept.clone(), true, &|| {}).await?;
            service.hold(vec![mine.version.clone()], false, &|| {}).await?;
            // It says nothing any more; where retention keeps it, it stays.
            let _ = service.delete(&mine.version).await;
            Ok(Some((mine.list.lock(&id), kept.len() as u64)))
        })
    }
}

/// The lock of that name, if it is held, and what all others name.
async fn one_of(service: &Versioned, below: &str, id: &str) -> object_store::Result<(Option<Held>, BTreeSet<Version>)> {
    let (mut mine, mut others) = (None, BTreeSet::new());
    for held in held(service, below).await? {
        let held = held.map_err(|why| generic(format!("what another lock has as well is not known: {why}")))?;
        match held.id == id {
            true => mine = Some(held),
            false => others.extend(held.list.versions(below)),
        }
    }
    Ok((mine, others))
}

impl Drop for Locks {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // may be dropped by a thread of another runtime
        }
    }
}
