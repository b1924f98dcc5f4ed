//! A prefix of a bucket as a medium for objects.
//!
//! Objects are created by one request each, of any size that a part has: create-only is dependable only there, not where an
//! object is put together of several. Its futures run in a runtime of their own, so whoever drives them needs none.
//!
//! What an answer means: *exists* counts only once the object was seen, since services say the same of a create that is still
//! under way; *not found* is an object that is not there only where the bucket is; and whatever else goes wrong with a create
//! leaves open whether it was done. Every request has an end: a time for the answer, and one for each byte.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use farside_store::{Backend, Created, Listed, ObjectName, Page, Result, StoreError, block_on, end_to_end};
use futures_util::StreamExt as _;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path as Key;
use object_store::{BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::moment::GONE;
use crate::uploads::{BYTES_PER_SECOND_MIN, PATIENCE, Uploads};

/// Requests that are worth having under way at once, where many are wanted.
const REQUESTS: usize = 32;
/// MiB of objects that are being created at once: they are in memory.
const CREATING_MIB: u32 = 64;
/// What is no larger, and in memory already, takes no turn: a record, say. † Who makes one is a group's own thread, which hears nobody until that
/// is done: it waits for no segment of another group, which may take minutes.
const NO_TURN_BYTES: u64 = 8 << 20;
/// What is being read at once: what shares a slow link would share its deadline. In pieces of 64 KiB, and a request is never less than some,
/// so that there are not more than [`REQUESTS`] of them.
const READING_BYTES: u64 = 16 << 20;
const READING_PIECE: u64 = 64 << 10;
/// For a connection to come to be.
pub(crate) const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// How often a create that "exists already" is looked for before it is made again.
const CREATES_MAX: u32 = 5;
/// Longer each time.
const PAUSE: Duration = Duration::from_millis(200);

/// A prefix of a bucket.
#[derive(Debug)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    /// Empty, or with a slash at its end.
    prefix: String,
    place: String,
    /// The place, and at which service.
    service: String,
    creating: Semaphore,
    uploads: Uploads,
    reading: Semaphore,
    /// Requests that write, so far, but for those that certainly never reached the service.
    writes: Arc<AtomicU64>,
    runtime: Option<Runtime>,
    is_past: bool,
}

/// How requests are sent.
pub(crate) fn client_options() -> ClientOptions {
    // Deadlines are by size, and set here.
    ClientOptions::new().with_timeout_disabled().with_connect_timeout(CONNECTED_WITHIN)
}

/// How often a request is tried again by itself: until about half of [`PATIENCE`] is over.
pub(crate) fn retries() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(4), base: 2.0 };
    RetryConfig { backoff, max_retries: 8, retry_timeout: PATIENCE / 2 }
}

/// What drives requests.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("bucket").enable_all().build()
}

/// Waits for what has deadlines of its own, of a bucket as a whole.
pub(crate) fn wait<T: Send + 'static>(
    runtime: &Runtime,
    (doing, place): (&'static str, &str),
    request: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> Result<T> {
    match block_on(runtime.spawn(request)) {
        Ok(done) => done.map_err(|error| said(doing, place, &error)),
        Err(ended) => Err(StoreError::Remote { doing, what: place.to_owned(), why: ended.to_string() }),
    }
}

/// What the service says of a bucket as a whole.
fn said(doing: &'static str, place: &str, error: &object_store::Error) -> StoreError {
    let words = in_words(error);
    let why = words.strip_prefix("Generic S3 error: ").unwrap_or(&words).to_owned();
    let place = place.to_owned();
    match is_of_bucket(&why) {
        true => StoreError::NoBucket { place },
        false if is_denial(&why) => StoreError::RemoteDenied { place, why: short(&why) },
        false => StoreError::Remote { doing, what: place, why: short(&why) },
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // may be dropped by a thread of another runtime
        }
    }
}

impl Bucket {
    /// A prefix of what `objects` gives. `place`: how messages call it.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str, place: String) -> std::io::Result<Self> {
        Ok(Self::in_runtime(objects, prefix, place, runtime()?))
    }

    pub(crate) fn in_runtime(objects: Arc<dyn ObjectStore>, prefix: &str, place: String, runtime: Runtime) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let creating = Semaphore::new(CREATING_MIB as usize);
        let reading = Semaphore::new((READING_BYTES / READING_PIECE) as usize);
        Self {
            objects,
            prefix,
            service: place.clone(),
            place,
            creating,
            uploads: Uploads::default(),
            reading,
            writes: Arc::default(),
            runtime: Some(runtime),
            is_past: false,
        }
    }

    /// The same, of what was and changes no more.
    pub(crate) fn past(mut self) -> Self {
        self.is_past = true;
        self
    }

    /// Waits for what has deadlines of its own.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        doing: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T> {
        wait(self.runtime.as_ref().expect("it is there until the drop"), (doing, &self.place), request)
    }

    /// The same, as that of another service is told from it.
    #[must_use]
    pub fn at(mut self, service: String) -> Self {
        self.service = service;
        self
    }

    fn key(&self, name: &ObjectName) -> Key {
        Key::from(format!("{}{name}", self.prefix))
    }

    /// Runs a request of so many bytes to its end, or its deadline.
    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        of: &str,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, Failed> {
        self.run_within(PATIENCE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN), doing, of, request).await
    }

    async fn run_within<T: Send + 'static>(
        &self,
        patience: Duration,
        doing: &'static str,
        of: &str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, Failed> {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let done = runtime.spawn(async move { tokio::time::timeout(patience, request).await }).await;
        let what = || format!("{}/{of}", self.place);
        match done {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(self.failed(doing, what(), error)),
            Ok(Err(_)) => {
                let why = format!("no answer within {} seconds", patience.as_secs());
                Err(Failed::Store(StoreError::Remote { doing, what: what(), why }))
            }
            Err(ended) => Err(Failed::Store(StoreError::Remote { doing, what: what(), why: ended.to_string() })),
        }
    }

    fn failed(&self, doing: &'static str, what: String, error: object_store::Error) -> Failed {
        let why = in_words(&error);
        let place = self.place.clone();
        // One object that the service has put away, or whose own key is gone. The rest of the store goes on. † Of what is written that is a matter of the
        // bucket; and a key that we may not use is one of our credentials.
        let is_of_object = matches!(doing, "reading" | "looking at") && is_of_object(&why);
        Failed::Store(match error {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Generic { .. }
            | object_store::Error::AlreadyExists { .. }
                if is_of_object =>
            {
                StoreError::Unreadable { path: what.into(), source: std::io::Error::other(short(&why)) }
            }
            // Of a listing, the kind of an error says nothing.
            object_store::Error::NotFound { .. } | object_store::Error::Generic { .. } if is_of_bucket(&why) => {
                StoreError::NoBucket { place }
            }
            object_store::Error::Generic { .. } if is_denial(&why) => StoreError::RemoteDenied { place, why: short(&why) },
            object_store::Error::NotFound { .. } => return Failed::Missing,
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
                return Failed::Exists(StoreError::Remote { doing, what, why: short(&why) });
            }
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::RemoteDenied { place, why: short(&why) }
            }
            _ => StoreError::Remote { doing, what, why: short(&why) },
        })
    }

    /// Waits, whoever drives this.
    async fn pause(&self, time: Duration) {
        let runtime = self.runtime.as_ref().expect("it is there until the drop");
        let _ = runtime.spawn(async move { tokio::time::sleep(time).await }).await;
    }

    /// Leave to have so many bytes of that object in memory.
    ///
    /// # Errors
    /// The service did not answer somebody who had his turn before.
    async fn permit(&self, name: &ObjectName, bytes: u64) -> Result<SemaphorePermit<'_>> {
        let permits = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX).clamp(1, CREATING_MIB);
        let late = self.uploads.late_ones();
        let permit = self.creating.acquire_many(permits).await.expect("it is never closed");
        if self.uploads.late_ones() == late {
            return Ok(permit);
        }
        let why = "the service did not answer another upload in time".to_owned();
        Err(StoreError::Remote { doing: "creating", what: format!("{}/{name}", self.place), why })
    }

    async fn put(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        let bytes = content.len() as u64;
        for attempt in 0..CREATES_MAX {
            let (objects, key, content) = (Arc::clone(&self.objects), self.key(name), content.clone());
            let billed = Billed::new(&self.writes);
            let (patience, began) = (self.uploads.patience(bytes), Instant::now());
            let created = self.run_within(patience, "creating", name.as_str(), async move {
                billed.answered(objects.put_opts(&key, content.into(), PutMode::Create.into()).await)
            });
            match created.await {
                Ok(_) => {
                    self.uploads.through(bytes, began.elapsed());
                    return Ok(Created::New);
                }
                // Of a name that is free, if the other create comes to nothing.
                Err(Failed::Exists(_)) => {
                    if self.size(name).await?.is_some() {
                        return Ok(Created::AlreadyExists);
                    }
                    self.pause(PAUSE * (attempt + 1)).await;
                }
                Err(Failed::Missing) => return Err(StoreError::NoBucket { place: self.place.clone() }),
                Err(Failed::Store(error)) => {
                    if began.elapsed() >= patience {
                        self.uploads.late();
                    }
                    return Err(error);
                }
            }
        }
        let why = "the service says that it exists, and does not give it".to_owned();
        Err(StoreError::Remote { doing: "creating", what: format!("{}/{name}", self.place), why })
    }

    /// `None` if there is no such object.
    async fn read(&self, name: &ObjectName, range: Option<GetRange>, bytes_max: u64) -> Result<Option<(Bytes, u64)>> {
        let (objects, key) = (Arc::clone(&self.objects), self.key(name));
        let read = self.run("reading", name.as_str(), bytes_max, async move {
            let found = objects.get_opts(&key, GetOptions { range, ..GetOptions::default() }).await?;
            let size = found.meta.size;
            // Larger than anybody wants: what it holds is of no use.
            let content = if found.range.end - found.range.start > bytes_max { Bytes::new() } else { found.bytes().await? };
            Ok((content, size))
        });
        match read.await {
            Ok(found) => Ok(Some(found)),
            Err(Failed::Missing) => Ok(None),
            Err(Failed::Exists(error) | Failed::Store(error)) => Err(error),
        }
    }
}

/// One request that writes. It counts however it ends, also given up without an answer, unless no connection came to be.
struct Billed {
    writes: Arc<AtomicU64>,
    counts: bool,
}

impl Billed {
    fn new(writes: &Arc<AtomicU64>) -> Self {
        Self { writes: Arc::clone(writes), counts: true }
    }

    fn answered<T>(mut self, answer: object_store::Result<T>) -> object_store::Result<T> {
        self.counts = !answer.as_ref().is_err_and(is_unreached);
        answer
    }
}

impl Drop for Billed {
    fn drop(&mut self) {
        if self.counts {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether there was no connection to send a request on. (A request has no time limit of its own, so what timed out is the connection.)
fn is_unreached(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return matches!(http.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout);
        }
        cause = error.source();
    }
    false
}

/// Why a request failed.
enum Failed {
    Missing,
    /// What a create means by it; of any other request the service is busy with the object, or does not give it out.
    Exists(StoreError),
    Store(StoreError),
}

#[async_trait]
impl Backend for Bucket {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        let bytes = content.len() as u64;
        let _permit = if bytes > NO_TURN_BYTES { Some(self.permit(name, bytes).await?) } else { None };
        self.put(name, content).await
    }

    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => StoreError::NotFound { name: name.to_string(), path: file.to_owned() },
            _ => StoreError::Io { doing: "reading", path: file.to_owned(), source },
        };
        let _permit = self.permit(name, std::fs::metadata(file).map_err(failed)?.len()).await?;
        self.put(name, std::fs::read(file).map_err(failed)?.into()).await
    }

    async fn adopt_all(&self, name: &ObjectName, files: &[(PathBuf, u64)]) -> Result<Created> {
        let _permit = self.permit(name, files.iter().map(|(_, bytes)| bytes).sum()).await?;
        self.put(name, end_to_end(name, files)?).await
    }

    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        match self.read(name, None, bytes_max).await? {
            Some((_, size)) if size > bytes_max => Err(StoreError::Damaged {
                path: format!("{}/{name}", self.place).into(),
                why: format!("it has more than {bytes_max} bytes"),
            }),
            found => Ok(found.map(|(content, _)| content)),
        }
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        let missing = || StoreError::NotFound { name: name.to_string(), path: self.place.clone().into() };
        if len == 0 {
            return self.size(name).await?.map(|_| Bytes::new()).ok_or_else(missing);
        }
        let pieces = len.clamp(READING_BYTES / REQUESTS as u64, READING_BYTES).div_ceil(READING_PIECE) as u32;
        let _turn = self.reading.acquire_many(pieces).await.expect("it is never closed");
        match self.read(name, Some(GetRange::Bounded(offset..offset.saturating_add(len))), len).await {
            Ok(found) => found.map(|(content, _)| content).ok_or_else(missing),
            // Services refuse a range that begins at the end.
            Err(error) => match self.size(name).await? {
                None => Err(missing()),
                Some(size) if offset >= size => Ok(Bytes::new()),
                Some(_) => Err(error),
            },
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let (objects, key) = (Arc::clone(&self.objects), self.key(name));
        let head = self.run("looking at", name.as_str(), 0, async move { objects.head(&key).await.map(|meta| meta.size) });
        match head.await {
            Ok(size) => Ok(Some(size)),
            // Such an answer has no body that would tell a missing bucket from a missing object, or why we may not.
            Err(Failed::Missing | Failed::Store(StoreError::RemoteDenied { .. })) => {
                self.read(name, None, 0).await.map(|found| found.map(|(_, size)| size))
            }
            Err(Failed::Exists(error) | Failed::Store(error)) => Err(error),
        }
    }

    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        let under = match prefix {
            Some(prefix) => Some(self.key(prefix)),
            None if self.prefix.is_empty() => None,
            None => Some(Key::from(self.prefix.trim_end_matches('/'))),
        };
        let of = prefix.map_or(String::new(), ToString::to_string);
        let (objects, after, below) = (Arc::clone(&self.objects), after.map(|name| self.key(name)), self.prefix.clone());
        let listed = self.run("listing", &of, (limit as u64).saturating_mul(1 << 10), async move {
            let mut stream = match &after {
                Some(after) => objects.list_with_offset(under.as_ref(), after),
                None => objects.list(under.as_ref()),
            };
            let (mut found, mut strange) = (Vec::new(), false);
            while let Some(object) = stream.next().await.transpose()? {
                // Some services begin at the start whatever they are asked: that costs time, and must never be a page that comes again.
                if after.as_ref().is_some_and(|after| object.location.as_ref() <= after.as_ref()) {
                    continue;
                }
                let name = object.location.as_ref().strip_prefix(&below).map(ObjectName::new);
                match name {
                    Some(Ok(name)) => {
                        found.push(Listed { name, bytes: object.size, created_ms: object.last_modified.timestamp_millis() })
                    }
                    _ => strange = true, // nobody's here
                }
                if found.len() > limit {
                    break;
                }
            }
            Ok((found, strange))
        });
        let (mut found, strange) = match listed.await {
            Ok(found) => found,
            Err(Failed::Missing) => return Err(StoreError::NoBucket { place: self.place.clone() }),
            Err(Failed::Exists(error) | Failed::Store(error)) => return Err(error),
        };
        let more = found.len() > limit;
        found.truncate(limit);
        Ok(Page { objects: found, more, strange })
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let (objects, key) = (Arc::clone(&self.objects), self.key(name));
        match self.run("deleting", name.as_str(), 0, async move { objects.delete(&key).await }).await {
            Ok(()) | Err(Failed::Missing) => Ok(()),
            Err(Failed::Exists(error) | Failed::Store(error)) => Err(error),
        }
    }

    /// What a service has acknowledged is durable.
    async fn sync(&self, _prefix: &ObjectName) -> Result<()> {
        Ok(())
    }

    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        let (objects, key) = (Arc::clone(&self.objects), self.key(prefix));
        let listed = self.run("listing", prefix.as_str(), 1 << 20, async move { objects.list_with_delimiter(Some(&key)).await });
        match listed.await {
            Ok(found) => Ok(found.common_prefixes.iter().filter_map(|p| Some(p.filename()?.to_owned())).collect()),
            Err(Failed::Missing) => Err(StoreError::NoBucket { place: self.place.clone() }),
            Err(Failed::Exists(error) | Failed::Store(error)) => Err(error),
        }
    }

    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        let (objects, key, bytes) = (Arc::clone(&self.objects), self.key(name), content.len() as u64);
        let billed = Billed::new(&self.writes);
        let put =
            self.run("writing", name.as_str(), bytes, async move { billed.answered(objects.put(&key, content.into()).await) });
        match put.await {
            Ok(_) => Ok(()),
            Err(Failed::Exists(error) | Failed::Store(error)) => Err(error),
            Err(Failed::Missing) => Err(StoreError::NoBucket { place: self.place.clone() }),
        }
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn service(&self) -> String {
        self.service.clone()
    }

    fn is_late(&self) -> bool {
        true
    }

    fn is_past(&self) -> bool {
        self.is_past
    }

    fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    fn requests_at_once(&self) -> Option<usize> {
        Some(REQUESTS)
    }
}

/// Whether *not found* is about the bucket, by the words of S3, Azure and Google.
pub(crate) fn is_of_bucket(words: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"].iter().any(|sign| words.contains(sign))
}

/// Whether an error is that we may not, by the words of S3 and Azure; an expired token is said to be a bad request.
fn is_denial(words: &str) -> bool {
    [
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "AuthenticationFailed",
        "AuthorizationFailure",
    ]
    .iter()
    .any(|sign| words.contains(sign))
}

/// Whether we may not because of this one object: it lies in an archive, a key of its own is gone, or it is gone itself, where what was is read.
fn is_of_object(words: &str) -> bool {
    !words.contains("AccessDenied")
        && ["InvalidObjectState", "BlobArchived", "KMS.", GONE].iter().any(|sign| words.contains(sign))
}

/// An error with all its causes.
fn in_words(error: &object_store::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}

/// What a person can use of it: a service's code and message, or the last cause.
fn short(words: &str) -> String {
    let tag = |name: &str| {
        let (_, rest) = words.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim().to_owned())
    };
    match (tag("Code"), tag("Message").filter(|m| !m.is_empty())) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => words.chars().take(400).collect(),
    }
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
