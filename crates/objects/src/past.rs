//! The store in a bucket as it was, and what of it is locked there.
//!
//! A *lock* is a list of objects, each by the version that it names, and a legal hold (S3's Object Lock) on each of them and on the list itself. So
//! what it names stays whatever is deleted or overwritten, also by who has the gateway's keys, until somebody who may end holds does so; and it
//! is read by the list: nothing that came since is seen. The list's name is a digest of it: whoever knows the name believes no other.
//!
//! Invariants: the holds of all objects were acknowledged before the list is put, and its own before anybody is told its name. A hold is ended only
//! of what no other lock has that is held. (The service counts none.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use farside_store::{Backend, StoreError, block_on};
use jiff::Timestamp;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::bucket::{self, Bucket};
use crate::moment::{Moment, Version, Versioned};

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

fn generic(words: String) -> Error {
    Error::Generic { store: "S3", source: words.into() }
}

/// Runs what has deadlines of its own.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    (doing, place): (&'static str, &str),
    request: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> Result<T, StoreError> {
    match block_on(runtime.spawn(request)) {
        Ok(done) => done.map_err(|error| bucket::said(doing, place, &error)),
        Err(ended) => Err(StoreError::Remote { doing, what: place.to_owned(), why: ended.to_string() }),
    }
}

fn runtime(place: &str) -> Result<Runtime, StoreError> {
    bucket::runtime().map_err(|source| StoreError::Io { doing: "starting threads for", path: place.into(), source })
}

/// The list of that name, by whichever version is it, and that version.
async fn find(service: &Versioned, below: &str, id: &str) -> object_store::Result<Option<(List, Version)>> {
    let key = format!("{below}{LOCKS}{id}{SUFFIX}");
    let found = lists(service, &key).await?;
    Ok(found.into_iter().find(|(at, _, _)| at == id).map(|(_, list, version)| (list, version)))
}

/// All lists whose keys begin with that, by all of their versions: each that is what its name says.
async fn lists(service: &Versioned, prefix: &str) -> object_store::Result<Vec<(String, List, Version)>> {
    let mut there = Vec::new();
    let each = |entry: crate::versions::Entry| {
        if let (false, true, Ok(key)) = (entry.is_deletion, entry.bytes <= LIST_BYTES_MAX, Key::parse(&entry.key)) {
            there.push(Version { key, id: entry.version });
        }
        Ok(())
    };
    service.entries(prefix, each).await?;
    let mut lists = Vec::new();
    for version in there {
        let Some(id) = version.key.filename().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
        let Some(content) = service.read(&version).await? else { continue };
        // Another one of that name is what somebody put over it.
        if id_of(&content) != id {
            continue;
        }
        let list: List = serde_json::from_slice(&content).map_err(|e| generic(format!("the lock {id} cannot be read: {e}")))?;
        if list.format != FORMAT || list.version != VERSION {
            return Err(generic(format!("the lock {id} is of a newer version: install a newer Farside to read it")));
        }
        lists.push((id.to_owned(), list, version));
    }
    Ok(lists)
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
                    let Some((list, _)) = find(&service, &of, &id).await? else {
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
        let key = Key::from(format!("{}{LOCKS}{}{SUFFIX}", self.below, lock.id));
        let (moment, versions) = (Arc::clone(&self.moment), touched.into_iter().map(|(version, _, _)| version).collect());
        self.bucket.wait("locking objects of", async move {
            moment.service.hold(versions, true, &done).await?;
            let id = moment.service.s3.put(&key, Bytes::from(content).into()).await?.version;
            let id = id.ok_or_else(|| generic("the service names no version of what was put there".to_owned()))?;
            moment.service.hold(vec![Version { key, id }], true, &|| {}).await
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

    /// Those that are held, from the oldest to the newest.
    ///
    /// # Errors
    /// What the service says.
    pub fn list(&self) -> Result<Vec<Lock>, StoreError> {
        let held = self.held()?;
        let locks: BTreeMap<_, _> = held.iter().map(|(id, list, _)| ((list.made, id), list.lock(id))).collect();
        Ok(locks.into_values().collect())
    }

    fn held(&self) -> Result<Vec<(String, List, Version)>, StoreError> {
        let (service, prefix) = (Arc::clone(&self.service), format!("{}{LOCKS}", self.below));
        self.wait("looking for locks of", async move {
            let mut held = Vec::new();
            for (id, list, version) in lists(&service, &prefix).await? {
                if service.is_held(&version).await? {
                    held.push((id, list, version));
                }
            }
            Ok(held)
        })
    }

    /// Ends one, but for objects that others have as well; how many those are. `None`: none of that name is held.
    ///
    /// # Errors
    /// What the service says. It may be said again: the list is the last that is let go.
    pub fn end(&self, id: &str, done: impl Fn() + Send + Sync + 'static) -> Result<Option<(Lock, u64)>, StoreError> {
        let mut held = self.held()?;
        let Some(at) = held.iter().position(|(other, _, _)| other == id) else { return Ok(None) };
        let (_, list, of_list) = held.swap_remove(at);
        let others: BTreeSet<Version> = held.iter().flat_map(|(_, list, _)| list.versions(&self.below)).collect();
        let (kept, ended): (Vec<_>, Vec<_>) = list.versions(&self.below).partition(|version| others.contains(version));
        let (service, lock) = (Arc::clone(&self.service), list.lock(id));
        self.wait("ending a lock of", async move {
            service.hold(ended, false, &done).await?;
            service.hold(vec![of_list.clone()], false, &|| {}).await?;
            // It says nothing any more; where retention keeps it, it stays.
            let _ = service.delete(&of_list).await;
            Ok(())
        })?;
        Ok(Some((lock, kept.len() as u64)))
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // may be dropped by a thread of another runtime
        }
    }
}
