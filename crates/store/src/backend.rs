//! Where objects live: the one seam between the store's rules and a medium.
//!
//! Owns the contract that every medium keeps (tested by [`conformance`] in each of them). Invariant: an object is never
//! changed after it was created; it exists wholly and durably, or not at all. What a backend does not know: ledgers,
//! layers, groups, who may delete what.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(test)]
pub(crate) mod counting;
mod dir;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod memory;

use std::collections::BTreeSet;
use std::fmt;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Result, StoreError};

pub use dir::DirBackend;

/// The name of an object: components of `a-z A-Z 0-9 . _ -`, none beginning with a dot, separated by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Longest name, in bytes.
    pub const BYTES_MAX: usize = 512;

    /// A checked name.
    ///
    /// # Errors
    /// [`StoreError::BadName`].
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let fits = name.len() <= Self::BYTES_MAX
            && name.split('/').all(|c| {
                !c.is_empty()
                    && c.len() <= 200
                    && !c.starts_with('.')
                    && c.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            });
        if fits { Ok(Self(name)) } else { Err(StoreError::BadName(name.chars().take(80).collect())) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What became of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is there, durably, with our content.
    New,
    /// An object of that name was there before, durably. Perhaps an earlier try of ours: get it and compare.
    AlreadyExists,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its size.
    pub bytes: u64,
    /// When it came to be, in milliseconds since 1970 by the medium's own clock, perhaps rounded to a second: to be held against
    /// others of the same medium, and never against a clock of this machine.
    pub created_ms: i64,
}

/// Some of the objects under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the backend's own order, which `after` continues.
    pub objects: Vec<Listed>,
    /// Whether there are more.
    pub more: bool,
    /// Whether there are some among them whose names no object has here. A directory does not say.
    pub strange: bool,
}

/// A medium for objects.
///
/// Every error but [`StoreError::Full`], [`StoreError::ReadOnly`] and [`StoreError::Denied`] of a create is ambiguous: the
/// object may be there, or come to be there later. Get it and compare. [`StoreError::Unreadable`] of a read is about that one
/// object: its medium fails there. Futures may be driven by any executor: a backend
/// whose client needs a runtime carries a handle to it.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// Creates an object, wholly and durably, unless one of that name exists. In a race exactly one wins, and the others
    /// hear [`Created::AlreadyExists`] only when the winner's object is durable.
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created>;

    /// Makes a finished, synced local file an object, as [`Backend::create`] would, without reading it where the medium
    /// allows. The local file stays.
    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created>;

    /// Makes finished, synced local files one object, end to end, as [`Backend::create`] would. Each has so many bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Damaged`]: a file is not there, or has not as many.
    async fn adopt_all(&self, name: &ObjectName, files: &[(PathBuf, u64)]) -> Result<Created> {
        self.create(name, end_to_end(name, files)?).await
    }

    /// The whole of an object that has at most `bytes_max` bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is larger.
    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>>;

    /// `len` bytes from `offset`; fewer where the object ends.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes>;

    /// Drops what this machine keeps in memory of an object, as far as it can: the next read is of the medium.
    async fn drop_cached(&self, _name: &ObjectName) -> Result<()> {
        Ok(())
    }

    /// The size of an object; `None` if there is none.
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// At most `limit` objects whose names begin with the components of `prefix` (all of them if `None`), those that come
    /// after `after`. An object that exists throughout is listed exactly once; one is in every listing that begins after its creation was
    /// acknowledged.
    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page>;

    /// The names of all objects directly below a prefix, in no order, and nothing else of them: where that costs less.
    async fn names(&self, prefix: &ObjectName) -> Result<Vec<ObjectName>> {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = self.list(Some(prefix), after.as_ref(), LISTED_AT_ONCE).await?;
            after = page.objects.last().map(|listed| listed.name.clone());
            let is_direct = |name: &ObjectName| {
                name.as_str().strip_prefix(prefix.as_str()).is_some_and(|rest| !rest.trim_start_matches('/').contains('/'))
            };
            names.extend(page.objects.into_iter().map(|listed| listed.name).filter(is_direct));
            if !page.more {
                return Ok(names);
            }
        }
    }

    /// Deletes an object; nothing if there is none. Durable only after [`Backend::sync`].
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Makes what is visible under a prefix durable, also if its writer died before he did.
    async fn sync(&self, prefix: &ObjectName) -> Result<()>;

    /// The components directly below a prefix under which objects lie.
    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>>;

    /// Replaces the damaged bytes of an object by those that it had: the one exception to "never changed", for a repair that can
    /// prove them.
    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()>;

    /// Where this is, for people.
    fn place(&self) -> String;

    /// The same with what else says which service it is: what one service does another need not do.
    fn service(&self) -> String {
        self.place()
    }

    /// Whether a request may come to pass after everybody gave it up: then no name is deleted that may be used again.
    fn is_late(&self) -> bool {
        false
    }

    /// Whether it is what was there at some moment: nothing of it is deleted any more, nor can anything be created.
    fn is_past(&self) -> bool {
        false
    }

    /// How many requests that write it was asked for since it was opened, if somebody bills them: not those that found no connection.
    fn writes(&self) -> u64 {
        0
    }

    /// How many requests are worth having under way at once; `None`: as many as there are processors.
    fn requests_at_once(&self) -> Option<usize> {
        None
    }
}

/// Files in memory, one behind the other.
///
/// # Errors
/// Those of [`Backend::adopt_all`].
pub fn end_to_end(name: &ObjectName, files: &[(PathBuf, u64)]) -> Result<Bytes> {
    let mut content = Vec::with_capacity(usize::try_from(files.iter().map(|(_, bytes)| bytes).sum::<u64>()).unwrap_or(0));
    for (path, bytes) in files {
        let before = content.len();
        let read = std::fs::File::open(path)
            .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, bytes + 1), &mut content));
        match read {
            Ok(_) if (content.len() - before) as u64 == *bytes => {}
            Ok(_) => return Err(StoreError::Damaged { path: path.clone(), why: format!("it has not {bytes} bytes") }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound { name: name.to_string(), path: path.clone() });
            }
            Err(source) => return Err(StoreError::Io { doing: "reading", path: path.clone(), source }),
        }
    }
    Ok(content.into())
}

/// Drives a future on this thread, which may sleep. The directory backend's futures never wait; an object store's do.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Drives several futures side by side on this thread; their values, in order. For a few: each wakes all.
pub(crate) fn block_on_all<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut values: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    block_on(poll_fn(|cx| {
        for (future, value) in futures.iter_mut().zip(&mut values) {
            if value.is_none()
                && let Poll::Ready(ready) = Pin::new(future).poll(cx)
            {
                *value = Some(ready);
            }
        }
        if values.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    }));
    values.into_iter().flatten().collect()
}

/// Of more objects it is asked again.
const LISTED_AT_ONCE: usize = 50_000;

/// Every object under a prefix, page by page.
pub(crate) fn list_all(backend: &dyn Backend, prefix: Option<&ObjectName>, mut each: impl FnMut(Listed)) -> Result<()> {
    let mut after = None;
    loop {
        let page = block_on(backend.list(prefix, after.as_ref(), LISTED_AT_ONCE))?;
        after = page.objects.last().map(|l| l.name.clone());
        page.objects.into_iter().for_each(&mut each);
        if !page.more {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_store_are_refused() {
        for bad in ["", "/", "a/", "/a", "a//b", "../a", "a/..", ".hidden", "a/.b", "a b", "ü", &"x".repeat(600)] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ObjectName::new("groups/h/g/ledger/0/17").expect("valid").as_str(), "groups/h/g/ledger/0/17");
    }
}
