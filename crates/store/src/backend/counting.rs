//! A backend that counts what is asked of it, for tests: how many requests of which kind for which sort of object, and how many of
//! them had to wait for one another.
//!
//! What is counted is what a service bills: a listing once for each thousand names. What one thread asks for waits for what it
//! asked for before; what is asked for side by side (`replay::parallel`) waits only for what was asked for before that began, however many
//! threads there happen to be.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Created, ObjectName, Page};
use crate::error::Result;

/// Names that services give in one answer.
const LISTED_AT_ONCE: usize = 1000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    /// A whole object.
    Get,
    /// A range of one.
    Range,
    /// Whether there is one.
    Head,
    /// Its creation.
    Put,
    /// A thousand names.
    List,
    /// Its deletion.
    Delete,
}

/// Of which sort of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Sort {
    /// `farside-store.json`, `group.json`, and folders of groups.
    Description,
    /// A record, or what replaces one.
    Ledger,
    /// The root or the state of a checkpoint.
    Checkpoint,
    /// A part.
    Segment,
    /// Several.
    Pack,
    /// None of these.
    Other,
}

impl Sort {
    fn of(name: Option<&ObjectName>) -> Self {
        let mut pieces = name.map_or("", |name| name.as_str()).split('/');
        match (pieces.next(), pieces.next(), pieces.next(), pieces.next()) {
            (_, _, _, Some("ledger")) => Self::Ledger,
            (_, _, _, Some("checkpoint")) => Self::Checkpoint,
            (_, _, _, Some("segments")) => Self::Segment,
            (_, _, _, Some("packs")) => Self::Pack,
            (Some("farside-store.json"), ..) | (Some("groups"), _, _, None | Some("group.json")) => Self::Description,
            _ => Self::Other,
        }
    }
}

/// What was asked for during some work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// How many requests of each kind, for each sort of object.
    pub(crate) requests: BTreeMap<(Request, Sort), u32>,
    /// The longest chain of requests each of which had to wait for the one before.
    pub(crate) chain: u32,
}

impl Counts {
    /// All requests.
    pub(crate) fn total(&self) -> u32 {
        self.requests.values().sum()
    }

    /// Those of a kind.
    pub(crate) fn of(&self, request: Request) -> u32 {
        self.requests.iter().filter(|((kind, _), _)| *kind == request).map(|(_, count)| count).sum()
    }
}

/// Passes another backend off as a bucket, and counts what is asked of it.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: Arc<dyn Backend>,
    counts: Mutex<Counts>,
    meeting: Mutex<Meeting>,
    range_bytes: AtomicU64,
}

/// Ranges that are answered only when so many have been asked for at once.
#[derive(Debug, Default)]
struct Meeting {
    wanted: usize,
    waiting: Vec<Waker>,
}

impl Counting {
    /// Over any backend.
    pub(crate) fn bucket(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { inner, counts: Mutex::default(), meeting: Mutex::default(), range_bytes: AtomicU64::default() })
    }

    /// How many bytes of ranges were asked for so far.
    pub(crate) fn range_bytes(&self) -> u64 {
        self.range_bytes.load(Ordering::Relaxed)
    }

    /// From now on no range is answered before so many are asked for at once; then all are.
    pub(crate) fn meet(&self, ranges: usize) {
        self.meeting.lock().expect("lock").wanted = ranges;
    }

    /// Waits for the others of a meeting.
    async fn met(&self) {
        let mut is_counted = false;
        poll_fn(|cx| {
            let meeting = &mut *self.meeting.lock().expect("lock");
            if meeting.wanted == 0 {
                return Poll::Ready(());
            }
            // Who is asked again is in the list with his old waker, which is as good: one thread drives him.
            if !is_counted {
                is_counted = true;
                meeting.waiting.push(cx.waker().clone());
            }
            if meeting.waiting.len() < meeting.wanted {
                return Poll::Pending;
            }
            meeting.wanted = 0;
            meeting.waiting.drain(..).for_each(Waker::wake);
            Poll::Ready(())
        })
        .await;
    }

    /// What some work asks for. No other work may go on meanwhile.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Counts) {
        WAITED.set(0);
        *self.counts.lock().expect("lock") = Counts::default();
        let done = work();
        (done, self.counts.lock().expect("lock").clone())
    }

    fn count(&self, request: Request, name: Option<&ObjectName>, times: usize) {
        let times = u32::try_from(times).expect("not so many");
        let waited = WAITED.get() + times;
        WAITED.set(waited);
        let mut counts = self.counts.lock().expect("lock");
        *counts.requests.entry((request, Sort::of(name))).or_default() += times;
        counts.chain = counts.chain.max(waited);
    }
}

thread_local! {
    /// How many requests the work of this thread has waited for, one after another.
    static WAITED: Cell<u32> = const { Cell::new(0) };
}

/// Pieces of work that wait for nothing but what came before all of them.
#[derive(Debug)]
pub(crate) struct SideBySide {
    begun: u32,
    longest: AtomicU32,
}

impl SideBySide {
    /// What this thread has waited for, each of them has.
    pub(crate) fn begin() -> Self {
        Self { begun: WAITED.get(), longest: AtomicU32::new(WAITED.get()) }
    }

    /// One of them, on any thread.
    pub(crate) fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        WAITED.set(self.begun);
        let done = work();
        self.longest.fetch_max(WAITED.get(), Ordering::Relaxed);
        done
    }

    /// Whoever goes on has waited for all of them, and for what he asked for meanwhile.
    pub(crate) fn end(self) {
        WAITED.set(WAITED.get().max(self.longest.into_inner()));
    }
}

#[async_trait]
impl Backend for Counting {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        self.count(Request::Put, Some(name), 1);
        self.inner.create(name, content).await
    }
    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        self.count(Request::Put, Some(name), 1);
        self.inner.adopt(name, file).await
    }
    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        self.count(Request::Get, Some(name), 1);
        self.inner.get(name, bytes_max).await
    }
    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        self.count(Request::Range, Some(name), 1);
        self.range_bytes.fetch_add(len, Ordering::Relaxed);
        self.met().await;
        self.inner.get_range(name, offset, len).await
    }
    async fn drop_cached(&self, name: &ObjectName) -> Result<()> {
        self.inner.drop_cached(name).await
    }
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let size = self.inner.size(name).await?;
        // Services say no more than "no" to a HEAD: what is not there is asked for in full.
        self.count(Request::Head, Some(name), if size.is_none() { 2 } else { 1 });
        Ok(size)
    }
    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        let page = self.inner.list(prefix, after, limit).await?;
        self.count(Request::List, prefix, page.objects.len().div_ceil(LISTED_AT_ONCE).max(1));
        Ok(page)
    }
    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.count(Request::Delete, Some(name), 1);
        self.inner.delete(name).await
    }
    async fn sync(&self, prefix: &ObjectName) -> Result<()> {
        self.inner.sync(prefix).await // asks a service for nothing
    }
    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        self.count(Request::List, Some(prefix), 1);
        self.inner.folders(prefix).await
    }
    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        self.count(Request::Put, Some(name), 1);
        self.inner.put_right(name, content).await
    }
    fn place(&self) -> String {
        self.inner.place()
    }
    fn is_late(&self) -> bool {
        true
    }
    fn requests_at_once(&self) -> Option<usize> {
        Some(32)
    }
}
