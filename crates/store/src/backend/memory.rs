//! A bucket in memory, with a clock of its own, whose requests may be late, refused or met by somebody else in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::faulty::When;
use super::{Backend, Created, Listed, ObjectName, Page};
use crate::error::{Result, StoreError};

/// Few, so that every listing has some.
const PAGE: usize = 3;

/// Which request somebody comes in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Create,
    Range,
    Delete,
    /// One page.
    List,
}

type Somebody = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Memory {
    objects: Mutex<BTreeMap<ObjectName, (Bytes, i64)>>,
    now_ms: AtomicI64,
    /// Whoever waits for such a request.
    meetings: Mutex<Vec<(Met, When, String, Somebody)>>,
    /// Creates of names that contain this are not answered.
    hanging: Mutex<Option<String>>,
    /// And land later, if ever.
    on_their_way: Mutex<Vec<(ObjectName, Bytes)>>,
    /// Creates of names that contain this are refused.
    refused: Mutex<Option<String>>,
    /// Deletions of names that contain this are refused.
    kept: Mutex<Option<String>>,
    /// Names that contain this are in no listing.
    unlisted: Mutex<Option<String>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

fn is_in(which: &Mutex<Option<String>>, name: &ObjectName) -> bool {
    lock(which).as_ref().is_some_and(|part| name.as_str().contains(part))
}

impl Memory {
    /// The service's clock goes on.
    pub(crate) fn pass_ms(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// The next such request whose name, or prefix, contains `of` is met by somebody, once.
    pub(crate) fn meet(&self, request: Met, when: When, of: &str, somebody: impl FnOnce() + Send + 'static) {
        lock(&self.meetings).push((request, when, of.into(), Box::new(somebody)));
    }

    /// Whether everybody has met what he waited for.
    pub(crate) fn all_met(&self) -> bool {
        lock(&self.meetings).is_empty()
    }

    pub(crate) fn hang(&self, of: Option<&str>) {
        *lock(&self.hanging) = of.map(str::to_owned);
    }

    /// What hung lands.
    pub(crate) fn land(&self) {
        let late = std::mem::take(&mut *lock(&self.on_their_way));
        for (name, content) in late {
            lock(&self.objects).entry(name).or_insert((content, self.now_ms.load(Ordering::Relaxed)));
        }
    }

    pub(crate) fn refuse(&self, of: Option<&str>) {
        *lock(&self.refused) = of.map(str::to_owned);
    }

    pub(crate) fn keep(&self, of: Option<&str>) {
        *lock(&self.kept) = of.map(str::to_owned);
    }

    pub(crate) fn leave_out_of_listings(&self, of: Option<&str>) {
        *lock(&self.unlisted) = of.map(str::to_owned);
    }

    /// The names that contain this.
    pub(crate) fn names(&self, of: &str) -> Vec<String> {
        lock(&self.objects).keys().map(ToString::to_string).filter(|name| name.contains(of)).collect()
    }

    fn met(&self, request: Met, when: When, name: &str) {
        let mut meetings = lock(&self.meetings);
        let at = meetings.iter().position(|(met, at, of, _)| *met == request && *at == when && name.contains(of));
        let somebody = at.map(|at| meetings.remove(at).3);
        drop(meetings);
        if let Some(somebody) = somebody {
            somebody();
        }
    }
}

fn below<'n>(name: &'n ObjectName, prefix: &ObjectName) -> Option<&'n str> {
    name.as_str().strip_prefix(prefix.as_str())?.strip_prefix('/')
}

#[async_trait]
impl Backend for Memory {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        self.met(Met::Create, When::Before, name.as_str());
        if is_in(&self.refused, name) {
            return Err(StoreError::RemoteDenied { place: self.place(), why: "AccessDenied".into() });
        }
        if is_in(&self.hanging, name) {
            lock(&self.on_their_way).push((name.clone(), content));
            return Err(StoreError::Remote { doing: "creating", what: name.to_string(), why: "no answer".into() });
        }
        let created = match lock(&self.objects).entry(name.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => Created::AlreadyExists,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((content, self.now_ms.load(Ordering::Relaxed)));
                Created::New
            }
        };
        self.met(Met::Create, When::After, name.as_str());
        Ok(created)
    }

    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        let content = std::fs::read(file).map_err(|e| StoreError::from_io("reading", file, 0, e))?;
        self.create(name, content.into()).await
    }

    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        let found = lock(&self.objects).get(name).map(|(content, _)| content.clone());
        match found {
            Some(content) if content.len() as u64 > bytes_max => {
                Err(StoreError::Damaged { path: name.as_str().into(), why: "it is too large".into() })
            }
            found => Ok(found),
        }
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        self.met(Met::Range, When::Before, name.as_str());
        let Some(content) = self.get(name, u64::MAX).await? else {
            return Err(StoreError::NotFound { name: name.to_string(), path: self.place().into() });
        };
        let from = content.len().min(offset as usize);
        Ok(content.slice(from..content.len().min(from + len as usize)))
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(lock(&self.objects).get(name).map(|(content, _)| content.len() as u64))
    }

    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        let of = prefix.map_or("", ObjectName::as_str).to_owned();
        self.met(Met::List, When::Before, &of);
        let mut page = Page::default();
        for (name, (content, created_ms)) in lock(&self.objects).iter() {
            let is_wanted = prefix.is_none_or(|prefix| below(name, prefix).is_some()) && after.is_none_or(|after| name > after);
            if !is_wanted || is_in(&self.unlisted, name) {
                continue;
            }
            if page.objects.len() == limit.min(PAGE) {
                page.more = true;
                break;
            }
            page.objects.push(Listed { name: name.clone(), bytes: content.len() as u64, created_ms: *created_ms });
        }
        self.met(Met::List, When::After, &of);
        Ok(page)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.met(Met::Delete, When::Before, name.as_str());
        if is_in(&self.kept, name) {
            return Err(StoreError::Remote { doing: "deleting", what: name.to_string(), why: "legal hold".into() });
        }
        lock(&self.objects).remove(name);
        Ok(())
    }

    async fn sync(&self, _prefix: &ObjectName) -> Result<()> {
        Ok(())
    }

    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        let objects = lock(&self.objects);
        let folder = |name: &ObjectName| below(name, prefix)?.split_once('/').map(|(folder, _)| folder.to_owned());
        Ok(objects.keys().filter_map(folder).collect())
    }

    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        lock(&self.objects).insert(name.clone(), (content, self.now_ms.load(Ordering::Relaxed)));
        Ok(())
    }

    fn place(&self) -> String {
        "memory://bucket".into()
    }

    fn is_late(&self) -> bool {
        true
    }
}

#[test]
fn a_bucket_in_memory_is_a_backend() {
    let local = tempfile::tempdir().expect("temp dir");
    let bucket = std::sync::Arc::new(Memory::default());
    let open = || std::sync::Arc::clone(&bucket) as std::sync::Arc<dyn Backend>;
    super::conformance::run(&super::conformance::Fixture { open: &open, local: local.path() });
}
