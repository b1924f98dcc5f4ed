//! A backend that fails on command: before the work was done, or after it, when the caller cannot know.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Created, ObjectName, Page};
use crate::error::{Result, StoreError};

/// Which call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Adopt,
    Get,
    Range,
    Size,
    Delete,
    Folders,
}

/// Whether the work was done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// One failure to come: of the first such call whose name contains `of`.
struct Fault {
    op: Op,
    of: String,
    when: When,
    errno: i32,
}

/// Wraps a backend.
pub(crate) struct Faulty {
    inner: Arc<dyn Backend>,
    faults: Mutex<Vec<Fault>>,
    /// Objects that were read, in full.
    pub(crate) gets: std::sync::atomic::AtomicUsize,
    /// Counts down over all calls that change something; at 0 the process "dies": that call and all later ones fail.
    death: Mutex<Option<(u32, When)>>,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::default(), gets: std::sync::atomic::AtomicUsize::new(0), death: Mutex::default() })
    }

    pub(crate) fn fail(&self, op: Op, of: &str, when: When, errno: i32) {
        self.faults.lock().expect("lock").push(Fault { op, of: of.into(), when, errno });
    }

    /// From the call after so many that change something, nothing works any more.
    pub(crate) fn die_after(&self, calls: u32, when: When) {
        *self.death.lock().expect("lock") = Some((calls, when));
    }

    /// Whether that came to pass.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(*self.death.lock().expect("lock"), Some((0, When::Before)))
    }

    fn take(&self, op: Op, name: &ObjectName) -> Option<(When, StoreError)> {
        if let Some((left, when)) = &mut *self.death.lock().expect("lock") {
            if *left == 0 {
                let error =
                    StoreError::from_io("dying at", Path::new(name.as_str()), 1, std::io::Error::from_raw_os_error(libc::EIO));
                return Some((std::mem::replace(when, When::Before), error));
            }
            *left -= u32::from(matches!(op, Op::Create | Op::Adopt | Op::Delete));
        }
        let mut faults = self.faults.lock().expect("lock");
        let at = faults.iter().position(|f| f.op == op && name.as_str().contains(&f.of))?;
        let fault = faults.remove(at);
        let error = std::io::Error::from_raw_os_error(fault.errno);
        let error = StoreError::from_io("injecting", Path::new(name.as_str()), 1, error);
        Some((fault.when, if matches!(op, Op::Get | Op::Range | Op::Size | Op::Folders) { error.while_reading() } else { error }))
    }
}

macro_rules! perhaps {
    ($self:ident, $op:expr, $name:expr, $work:expr) => {
        match $self.take($op, $name) {
            None => $work.await,
            Some((When::Before, error)) => Err(error),
            Some((When::After, error)) => {
                $work.await?;
                Err(error)
            }
        }
    };
}

#[async_trait]
impl Backend for Faulty {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        perhaps!(self, Op::Create, name, self.inner.create(name, content))
    }
    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        perhaps!(self, Op::Adopt, name, self.inner.adopt(name, file))
    }
    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        self.gets.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        perhaps!(self, Op::Get, name, self.inner.get(name, bytes_max))
    }
    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        perhaps!(self, Op::Range, name, self.inner.get_range(name, offset, len))
    }
    async fn drop_cached(&self, name: &ObjectName) -> Result<()> {
        self.inner.drop_cached(name).await
    }
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        perhaps!(self, Op::Size, name, self.inner.size(name))
    }
    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        self.inner.list(prefix, after, limit).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<()> {
        perhaps!(self, Op::Delete, name, self.inner.delete(name))
    }
    async fn sync(&self, prefix: &ObjectName) -> Result<()> {
        self.inner.sync(prefix).await
    }
    async fn folders(&self, prefix: &ObjectName) -> Result<std::collections::BTreeSet<String>> {
        perhaps!(self, Op::Folders, prefix, self.inner.folders(prefix))
    }
    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        self.inner.put_right(name, content).await
    }
    fn place(&self) -> String {
        self.inner.place()
    }
}
