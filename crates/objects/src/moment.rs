//! A bucket that keeps versions, as it was at a moment.
//!
//! Whoever has the keys of a gateway can delete and overwrite all that is in its bucket. Where the bucket keeps versions, that puts something
//! over what was there, and where it locks them besides (S3's Object Lock), nobody takes it away from under. So what was there is read as it was:
//! nothing has to be put back first, nothing of what happened since is believed, and it can be said again with an earlier moment.
//!
//! Invariants: a name stands for the version that was the current one at that moment by the service's clock, and for the same one however often it is
//! read; one that was deleted then, or came later, is not there. Nothing is written. Which version each name stands for is listed once, whole,
//! before anything is read.
//!
//! Objects here are created once, so what is seen is the store as somebody would have copied it at that moment, but for the precision of the service's
//! clock: Amazon's says seconds. A part may then seem to come later than the record that names it; a moment that is later by some seconds has both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use hyper::http::{Method, Request, StatusCode};
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpError, HttpRequestBody};
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::bucket::is_of_bucket;
use crate::uploads::{BYTES_PER_SECOND_MIN, PATIENCE};
use crate::versions::{Entry, Page};

/// Of a version that was there; told by these words from an object that never was.
pub(crate) const GONE: &str = "the version that was there is gone";
/// How long a signature is good: a request is sent at once.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// How long a request is tried again, and how long is waited before.
const TRIED_FOR: Duration = PATIENCE;
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// No page of a listing is larger: it has a thousand entries at most.
const PAGE_BYTES_MAX: u64 = 16 << 20;
/// Legal holds that are put at once.
const HOLDS_AT_ONCE: usize = 16;

/// What a legal hold's request says, and the MD5 of that: services want one with it.
const HOLD: [(&str, &str); 2] = [
    (
        r#"<LegalHold xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>OFF</Status></LegalHold>"#,
        "VFVLURy793Xk77f+OyG/PA==",
    ),
    (r#"<LegalHold xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>ON</Status></LegalHold>"#, "erOisiAmIIzsh/Ze2QqGXw=="),
];

/// A bucket that keeps versions, by requests that its client has not.
#[derive(Debug)]
pub(crate) struct Versioned {
    pub(crate) s3: AmazonS3,
    pub(crate) requests: HttpClient,
}

/// One version of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) key: Key,
    pub(crate) id: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) service: Versioned,
    objects: BTreeMap<Key, ObjectMeta>,
    /// Objects that somebody asked for.
    touched: Mutex<BTreeSet<Key>>,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, as it was", self.service.s3)
    }
}

impl Versioned {
    /// All versions below a prefix (empty, or with a slash at its end), and the marks of deletions: in the order of their keys, those of a key from the
    /// newest to the oldest.
    ///
    /// # Errors
    /// What the service says; the bucket keeps no versions.
    pub(crate) async fn entries(&self, prefix: &str, mut each: impl FnMut(Entry) -> Result<()> + Send) -> Result<()> {
        let (mut after, mut has_versions, mut is_empty) = (None, false, true);
        loop {
            let mut query = vec![("versions", ""), ("encoding-type", "url"), ("prefix", prefix)];
            if let Some((key, version)) = &after {
                let (key, version): (&String, &String) = (key, version);
                query.extend([("key-marker", key.as_str()), ("version-id-marker", version.as_str())]);
            }
            let page = Page::read(&self.ask(Method::GET, &Key::default(), &query, None).await?).map_err(generic)?;
            for entry in page.entries {
                (has_versions, is_empty) = (has_versions || entry.is_deletion || entry.version != "null", false);
                each(entry)?;
            }
            match page.next {
                Some(next) if after.as_ref() == Some(&next) => return Err(generic("a page of a listing comes again".to_owned())),
                Some(next) => after = Some(next),
                None if !has_versions && !is_empty => {
                    return Err(generic(
                        "this bucket keeps no versions: what was deleted or overwritten there is gone".to_owned(),
                    ));
                }
                None => return Ok(()),
            }
        }
    }

    /// All of one version, which has so many bytes; `None`: there is none.
    ///
    /// # Errors
    /// What the service says.
    pub(crate) async fn read(&self, version: &Version, bytes: u64) -> Result<Option<Bytes>> {
        let options = GetOptions { version: Some(version.id.clone()), ..GetOptions::default() };
        let read = async { self.s3.get_opts(&version.key, options).await?.bytes().await };
        match in_time(bytes, read).await {
            Ok(content) => Ok(Some(content)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an object; which version it is.
    ///
    /// # Errors
    /// What the service says; it keeps no versions.
    pub(crate) async fn put(&self, key: Key, content: Bytes) -> Result<Version> {
        let put = in_time(content.len() as u64, self.s3.put(&key, content.into())).await?;
        let id = put.version.ok_or_else(|| generic("the service names no version of what was put there".to_owned()))?;
        Ok(Version { key, id })
    }

    /// Puts or ends the legal holds of versions. The service does not count them.
    ///
    /// # Errors
    /// What it says; some may have been put or ended.
    pub(crate) async fn hold(&self, versions: Vec<Version>, is_held: bool, done: &(dyn Fn() + Sync)) -> Result<()> {
        let (content, md5) = HOLD[usize::from(is_held)];
        let one = |Version { key, id }: Version| async move {
            match self.ask(Method::PUT, &key, &[("legal-hold", ""), ("versionId", &id)], Some((content, md5))).await {
                // What is gone needs no end.
                Err(Error::NotFound { .. }) if !is_held => {}
                answer => drop(answer?),
            }
            done();
            Ok(())
        };
        stream::iter(versions).map(one).buffer_unordered(HOLDS_AT_ONCE).try_collect().await
    }

    /// Whether a version is under legal hold; not if it is gone.
    ///
    /// # Errors
    /// What the service says.
    pub(crate) async fn is_held(&self, version: &Version) -> Result<bool> {
        match self.ask(Method::GET, &version.key, &[("legal-hold", ""), ("versionId", &version.id)], None).await {
            Ok(answer) => Ok(String::from_utf8_lossy(&answer).contains("<Status>ON</Status>")),
            // Nor is one on which none was ever put.
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a version for good.
    ///
    /// # Errors
    /// What the service says: it may be locked.
    pub(crate) async fn delete(&self, version: &Version) -> Result<()> {
        self.ask(Method::DELETE, &version.key, &[("versionId", &version.id)], None).await.map(drop)
    }

    /// One request that the client has not, signed as its own are, and tried again as those are.
    async fn ask(
        &self,
        method: Method,
        key: &Key,
        query: &[(&str, &str)],
        content: Option<(&'static str, &str)>,
    ) -> Result<Bytes> {
        let (begun, mut pause) = (Instant::now(), PAUSE);
        loop {
            let failed = match tokio::time::timeout(PATIENCE, self.ask_once(&method, key, query, content)).await {
                Ok(Ok((status, body))) if status.is_success() => return Ok(body),
                Ok(Ok((status, body))) => {
                    let words = String::from_utf8_lossy(&body[..body.len().min(4096)]).into_owned();
                    if status == StatusCode::NOT_FOUND && !words.contains("NoSuchBucket") {
                        return Err(Error::NotFound { path: key.to_string(), source: words.into() });
                    }
                    let error = generic(if words.is_empty() { format!("the service answers with {status}") } else { words });
                    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                        return Err(error);
                    }
                    error
                }
                Ok(Err(error)) => error,
                Err(_) => generic(format!("no answer within {} seconds", PATIENCE.as_secs())),
            };
            if begun.elapsed() + pause > TRIED_FOR {
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn ask_once(
        &self,
        method: &Method,
        key: &Key,
        query: &[(&str, &str)],
        content: Option<(&'static str, &str)>,
    ) -> Result<(StatusCode, Bytes)> {
        let options = SignedUrlOptions::new().with_query(query.iter().copied());
        let url = self.s3.signed_url_opts(method.clone(), key, SIGNED_FOR, &options).await?;
        let mut request = Request::builder().method(method).uri(url.as_str());
        let mut body = HttpRequestBody::empty();
        if let Some((content, md5)) = content {
            request = request.header("content-md5", md5);
            body = content.to_owned().into();
        }
        let request = request.body(body).map_err(|e| generic(e.to_string()))?;
        let failed = |error: HttpError| Error::Generic { store: "S3", source: Box::new(error) };
        let answer = self.requests.execute(request).await.map_err(failed)?;
        let (status, mut stream, mut all) = (answer.status(), answer.into_body().bytes_stream(), Vec::new());
        while let Some(bytes) = stream.try_next().await.map_err(failed)? {
            all.extend_from_slice(&bytes);
            if all.len() as u64 > PAGE_BYTES_MAX {
                return Err(generic(format!("an answer of more than {PAGE_BYTES_MAX} bytes")));
            }
        }
        Ok((status, all.into()))
    }
}

impl Moment {
    /// What a bucket held at a moment, in milliseconds since 1970, by all versions below a prefix.
    ///
    /// # Errors
    /// Those of [`Versioned::entries`].
    pub(crate) async fn at(service: Versioned, prefix: &str, at_ms: i64) -> Result<Self> {
        let (mut objects, mut decided) = (BTreeMap::new(), None);
        let each = |entry: Entry| {
            // The newest one that is old enough decides.
            if decided.as_ref() == Some(&entry.key) {
                return Ok(());
            }
            let key = plain(&entry.key);
            let found = meta(key.clone().unwrap_or_default(), entry.version, entry.bytes, &entry.at)?;
            if found.last_modified.timestamp_millis() <= at_ms {
                decided = Some(entry.key);
                objects.extend(key.filter(|_| !entry.is_deletion).map(|key| (key, found)));
            }
            Ok(())
        };
        service.entries(prefix, each).await?;
        Ok(Self { service, objects, touched: Mutex::default() })
    }

    /// What somebody listed.
    ///
    /// # Errors
    /// A time is none.
    pub(crate) fn of(service: Versioned, listed: impl Iterator<Item = (Version, u64, String)>) -> Result<Self> {
        let each =
            |(version, bytes, at): (Version, u64, String)| Ok((version.key.clone(), meta(version.key, version.id, bytes, &at)?));
        Ok(Self { service, objects: listed.map(each).collect::<Result<_>>()?, touched: Mutex::default() })
    }

    /// What somebody asked for, and found: which version, of how many bytes, from when.
    pub(crate) fn touched(&self) -> Vec<(Version, u64, i64)> {
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |key: &Key| {
            let meta = self.objects.get(key)?;
            let version = Version { key: key.clone(), id: meta.version.clone()? };
            Some((version, meta.size, meta.last_modified.timestamp_millis()))
        };
        touched.iter().filter_map(one).collect()
    }

    /// Begins to note anew.
    pub(crate) fn forget_touched(&self) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn version(&self, key: &Key) -> Result<&ObjectMeta> {
        self.objects
            .get(key)
            .ok_or_else(|| Error::NotFound { path: key.to_string(), source: "there was no such object at that moment".into() })
    }
}

/// What is no name of an object of a store is nobody's here. † Nor is one with a slash at its end, which a key is not told from without.
pub(crate) fn plain(key: &str) -> Option<Key> {
    Key::parse(key).ok().filter(|plain| plain.as_ref() == key)
}

/// Within what so many bytes may take.
async fn in_time<T>(bytes: u64, request: impl Future<Output = Result<T>>) -> Result<T> {
    let patience = PATIENCE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
    let late = |_| generic(format!("no answer within {} seconds", patience.as_secs()));
    tokio::time::timeout(patience, request).await.map_err(late)?
}

fn meta(location: Key, version: String, size: u64, at: &str) -> Result<ObjectMeta> {
    let last_modified = at.parse().map_err(|_| generic(format!("the time of a version is none: {at}")))?;
    Ok(ObjectMeta { location, last_modified, size, e_tag: None, version: Some(version) })
}

/// An error of which there is no more than its words.
pub(crate) fn generic(words: String) -> Error {
    Error::Generic { store: "S3", source: words.into() }
}

fn read_only<T>() -> Result<T> {
    Err(Error::NotSupported { source: "what a bucket held at a moment is read only".into() })
}

#[async_trait]
impl ObjectStore for Moment {
    async fn put_opts(&self, _: &Key, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        read_only()
    }

    async fn put_multipart_opts(&self, _: &Key, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        read_only()
    }

    async fn get_opts(&self, location: &Key, mut options: GetOptions) -> Result<GetResult> {
        let version = self.version(location)?.version.clone();
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(location.clone());
        options.version = version;
        match self.service.s3.get_opts(location, options).await {
            // † What is gone that was there is lost; it is not what never was. Else a ledger would end earlier without a word.
            Err(Error::NotFound { path, source }) if !is_of_bucket(&source.to_string()) => {
                Err(Error::PermissionDenied { path, source: format!("{GONE}: {source}").into() })
            }
            answer => answer,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        locations.map(|_| read_only()).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let found: Vec<_> = self.below(prefix, None).cloned().map(Ok).collect();
        stream::iter(found).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Key>, offset: &Key) -> BoxStream<'static, Result<ObjectMeta>> {
        let found: Vec<_> = self.below(prefix, Some(offset)).cloned().map(Ok).collect();
        stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let (mut objects, mut folders) = (Vec::new(), BTreeSet::new());
        for meta in self.below(prefix, None) {
            let mut rest = match prefix {
                Some(prefix) => meta.location.prefix_match(prefix).into_iter().flatten().collect::<Vec<_>>(),
                None => meta.location.parts().collect(),
            };
            if rest.len() > 1 {
                rest.truncate(1);
                let folder = prefix.into_iter().flat_map(Key::parts).chain(rest);
                folders.insert(folder.collect::<Key>());
            } else {
                objects.push(meta.clone());
            }
        }
        Ok(ListResult { common_prefixes: folders.into_iter().collect(), objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Key, _: &Key, _: CopyOptions) -> Result<()> {
        read_only()
    }
}

impl Moment {
    fn below<'m>(&'m self, prefix: Option<&'m Key>, after: Option<&'m Key>) -> impl Iterator<Item = &'m ObjectMeta> {
        let from = match (prefix, after) {
            (Some(prefix), Some(after)) if after < prefix => Bound::Included(prefix),
            (_, Some(after)) => Bound::Excluded(after),
            (Some(prefix), None) => Bound::Included(prefix),
            (None, None) => Bound::Unbounded,
        };
        let is_below = move |meta: &&ObjectMeta| {
            prefix.is_none_or(|prefix| meta.location.prefix_matches(prefix) && meta.location != *prefix)
        };
        let begins = move |meta: &&ObjectMeta| prefix.is_none_or(|prefix| meta.location.as_ref().starts_with(prefix.as_ref()));
        self.objects.range::<Key, _>((from, Bound::Unbounded)).map(|(_, meta)| meta).take_while(begins).filter(is_below)
    }
}
