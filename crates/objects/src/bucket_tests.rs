use std::sync::Arc;

use farside_store::{Backend, Store, StoreError, StoreReader, block_on, conformance};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::*;

fn over(objects: &Arc<InMemory>, prefix: &str) -> Arc<dyn Backend> {
    let objects = Arc::clone(objects) as Arc<dyn ObjectStore>;
    Arc::new(Bucket::new(objects, prefix, format!("memory://{prefix}")).expect("threads"))
}

#[test]
fn it_is_a_backend() {
    let local = tempfile::tempdir().expect("temp dir");
    for prefix in ["", "site-1/db"] {
        let objects = Arc::new(InMemory::new());
        let open = || over(&objects, prefix);
        conformance::run(&conformance::Fixture { open: &open, local: local.path() });
    }
}

#[test]
fn a_store_in_a_bucket_is_made_once_and_opened_with_a_staging_directory_of_its_own() {
    let (objects, dir) = (Arc::new(InMemory::new()), tempfile::tempdir().expect("temp dir"));
    let open = || over(&objects, "farside");
    assert!(matches!(StoreReader::open_bucket(open()), Err(StoreError::NotAStore { .. })));
    let id = Store::init_bucket(&open()).expect("made");
    assert_eq!(Store::init_bucket(&open()).expect("there"), id);
    let store = Store::open_bucket(open(), &dir.path().join("staging")).expect("open");
    assert_eq!(store.id(), id);
    assert!(matches!(Store::open_bucket(open(), &dir.path().join("staging")), Err(StoreError::Locked { .. })));
    drop(store);
    // Copied to a service that nobody tried, which another address leads to.
    let elsewhere: Arc<dyn Backend> = Arc::new(
        Bucket::new(
            Arc::new(Peculiar { overwrites: true, ..Peculiar::over(&objects) }),
            "farside",
            "memory://farside".to_owned(),
        )
        .expect("threads")
        .at("memory://farside?endpoint=elsewhere".to_owned()),
    );
    let overwrites = Store::open_bucket(elsewhere, &dir.path().join("staging"));
    assert!(matches!(overwrites, Err(StoreError::NotCreateOnly { .. })), "{overwrites:?}");
    Store::init_bucket(&over(&objects, "another")).expect("made beside it");
    let foreign = Store::open_bucket(over(&objects, "another"), &dir.path().join("staging"));
    assert!(matches!(foreign, Err(StoreError::ForeignStaging { .. })), "{foreign:?}");
    // What lies there already is nobody's to write beside.
    block_on(over(&objects, "photos").create(&ObjectName::new("2019/x").expect("name"), Bytes::from_static(b"x"))).expect("put");
    assert!(matches!(Store::init_bucket(&over(&objects, "photos")), Err(StoreError::NotAStore { .. })));
    // Also under the names of a probe, and where no object of ours could have such a name.
    let theirs = over(&objects, "theirs");
    for at in ["probe/1", "farside-probe/mine/1"] {
        block_on(theirs.create(&ObjectName::new(at).expect("name"), Bytes::from_static(b"x"))).expect("put");
    }
    assert!(matches!(Store::init_bucket(&theirs), Err(StoreError::NotAStore { .. })));
    assert_eq!(block_on(theirs.list(None, None, 10)).expect("list").objects.len(), 2, "nothing of it was touched");
    block_on(objects.put(&Key::from("odd/holiday in 2019.jpg"), Bytes::from_static(b"x").into())).expect("put");
    assert!(matches!(Store::init_bucket(&over(&objects, "odd")), Err(StoreError::NotAStore { .. })));
    // What an interrupted probe left is in nobody's way.
    let left = format!("farside-probe/{}/3", "ab".repeat(16));
    block_on(over(&objects, "left").create(&ObjectName::new(left).expect("name"), Bytes::from_static(b"x"))).expect("put");
    Store::init_bucket(&over(&objects, "left")).expect("made");
}

/// A bucket that is out of reach for a day must not use up the requests of the next one. What may have arrived may be billed.
#[test]
fn a_request_counts_unless_no_connection_came_to_be() {
    let writes = Arc::default();
    let count = |answer: object_store::Result<()>| {
        let _ = Billed::new(&writes).answered(answer);
        writes.load(Ordering::Relaxed)
    };
    let failed = |kind| {
        let source = Box::new(HttpError::new(kind, std::io::Error::other("no")));
        Err(object_store::Error::Generic { store: "S3", source })
    };
    assert_eq!(count(failed(HttpErrorKind::Connect)), 0);
    assert_eq!(count(failed(HttpErrorKind::Timeout)), 0);
    assert_eq!(count(failed(HttpErrorKind::Interrupted)), 1, "the answer was lost, perhaps");
    let path = String::new();
    assert_eq!(count(Err(object_store::Error::PermissionDenied { path, source: "403".into() })), 2, "a refusal is an answer");
    assert_eq!(count(Ok(())), 3);
    drop(Billed::new(&writes));
    assert_eq!(writes.load(Ordering::Relaxed), 4, "given up: nobody knows");
}

/// A service with ways of its own.
#[derive(Debug)]
struct Peculiar {
    objects: Arc<InMemory>,
    /// It lists from the start, wherever it is asked to begin, as Azurite does.
    from_the_start: bool,
    /// It creates an object also where there is one.
    overwrites: bool,
    /// Large objects that it takes at once.
    large: Semaphore,
}

impl Peculiar {
    fn over(objects: &Arc<InMemory>) -> Self {
        let large = Semaphore::new(Semaphore::MAX_PERMITS);
        Self { objects: Arc::clone(objects), from_the_start: false, overwrites: false, large }
    }
}

impl std::fmt::Display for Peculiar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Peculiar {
    async fn put_opts(&self, at: &Key, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let is_large = payload.content_length() > 16 << 20;
        let _let = if is_large { Some(self.large.acquire().await.expect("open")) } else { None };
        let mode = if self.overwrites { PutMode::Overwrite } else { options.mode.clone() };
        self.objects.put_opts(at, payload, PutOptions { mode, ..options }).await
    }

    async fn put_multipart_opts(&self, at: &Key, options: PutMultipartOptions) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.objects.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.objects.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Key>, after: &Key) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        if self.from_the_start { self.list(prefix) } else { self.objects.list_with_offset(prefix, after) }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[test]
fn a_service_that_lists_from_the_start_is_a_backend() {
    let local = tempfile::tempdir().expect("temp dir");
    let objects: Arc<dyn ObjectStore> = Arc::new(Peculiar { from_the_start: true, ..Peculiar::over(&Arc::default()) });
    let open = || -> Arc<dyn Backend> {
        Arc::new(Bucket::new(Arc::clone(&objects), "site-1", "memory://".to_owned()).expect("threads"))
    };
    conformance::run(&conformance::Fixture { open: &open, local: local.path() });
}

/// A key of the service that we may not use was taken for a rotten disk: new credentials were not read before a restart. And one archived object, of a
/// service that says so otherwise, ended the check of a whole store.
#[test]
fn what_is_one_objects_and_what_is_ours_are_told_apart() {
    use object_store::Error::{AlreadyExists, Generic, PermissionDenied};
    let bucket = Bucket::new(Arc::new(InMemory::new()), "site-1", "memory://".to_owned()).expect("threads");
    let (path, of) = (|| "segments/1".to_owned(), |words: &str| words.to_owned().into());
    let failed = |doing, error| match bucket.failed(doing, "segments/1".to_owned(), error) {
        super::Failed::Store(error) => error,
        super::Failed::Exists(error) => error,
        super::Failed::Missing => panic!("it is there"),
    };
    let denied = "AccessDenied: User x is not authorized to perform: kms:GenerateDataKey on resource arn:aws:kms:y";
    for doing in ["reading", "creating"] {
        let error = failed(doing, PermissionDenied { path: path(), source: of(denied) });
        assert!(matches!(error, StoreError::RemoteDenied { .. }), "{doing}: {error:?}");
    }
    let archived = [
        PermissionDenied { path: path(), source: of("InvalidObjectState: it is archived") },
        Generic { store: "S3", source: of("KMS.DisabledException: the key is disabled") },
        AlreadyExists { path: path(), source: of("BlobArchived: this operation is not permitted on an archived blob") },
    ];
    for error in archived {
        let error = failed("reading", error);
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error:?}");
    }
    let error = failed("creating", Generic { store: "S3", source: of("KMS.DisabledException: the key is disabled") });
    assert!(matches!(error, StoreError::Remote { .. }), "{error:?}");
}

/// A group whose record waited behind the segments of another one heard nobody for minutes, and fenced a source that had come back meanwhile.
#[test]
fn a_record_does_not_wait_for_the_segments_of_another_group() {
    let service = Arc::new(Peculiar { large: Semaphore::new(0), ..Peculiar::over(&Arc::default()) });
    let objects = Arc::clone(&service) as Arc<dyn ObjectStore>;
    let bucket = &Bucket::new(objects, "site-1", "memory://".to_owned()).expect("threads");
    let name = |text: &str| ObjectName::new(text).expect("a name");
    std::thread::scope(|threads| {
        let large = threads.spawn(|| block_on(bucket.create(&name("segments/large"), vec![7; 64 << 20].into())));
        while bucket.creating.available_permits() > 0 {
            std::thread::yield_now();
        }
        let (done, is_done) = std::sync::mpsc::channel();
        threads.spawn(move || done.send(block_on(bucket.create(&name("ledger/7"), vec![7; 400].into()))));
        let record = is_done.recv_timeout(Duration::from_secs(30));
        service.large.add_permits(1);
        assert!(matches!(record, Ok(Ok(Created::New))), "{record:?}");
        assert!(matches!(large.join().expect("no panic"), Ok(Created::New)));
    });
}
