//! Against servers that speak S3: one that must pass, those that must be refused, and one that fails in every way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use farside_objects::{Credentials, Location};
use farside_s3_servers::{Bucket, Ending, Fault, Faults, Kind, RadosGw, StripsCreateOnly, WrongInARace};
use farside_store::{Backend, Created, ObjectName, StoreError, block_on, conformance};

/// As a person writes it, with the keys in a file.
fn at(bucket: &Bucket, prefix: &str, dir: &Path) -> (Location, Credentials) {
    let file = dir.join(format!("{}.env", bucket.name));
    let text = format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n", bucket.access_key, bucket.secret_key);
    std::fs::write(&file, text).expect("written");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let url = format!("s3://{}/{prefix}?endpoint={}&region={}", bucket.name, bucket.endpoint, Bucket::REGION);
    (url.parse().expect("an address"), Credentials::read(&file).expect("keys"))
}

fn backend(bucket: &Bucket, dir: &Path) -> Arc<dyn Backend> {
    match at(bucket, "site-1", dir) {
        (Location::Bucket(address), keys) => address.bucket(&keys).expect("a bucket"),
        (Location::Dir(dir), _) => panic!("{}", dir.display()),
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("valid")
}

#[test]
fn radosgw_is_a_backend() {
    let (bucket, dir) = (RadosGw::shared().bucket(), tempfile::tempdir().expect("temp dir"));
    conformance::run(&conformance::Fixture { open: &|| backend(&bucket, dir.path()), local: dir.path() });
}

#[test]
fn a_store_is_made_where_create_only_holds_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket();
    let (location, keys) = at(&rados, "points", dir.path());
    let id = location.init(&keys).expect("it holds there");
    assert_eq!(location.init(&keys).expect("it is there"), id);
    assert_eq!(location.reader(&keys).expect("open").id(), id);
    let store = location.open(&keys, &dir.path().join("staging")).expect("open");
    assert_eq!(store.id(), id);

    let behind = RadosGw::shared().bucket();
    let strips = StripsCreateOnly::before(&behind);
    let racy = WrongInARace::start();
    for bucket in [strips.bucket(), racy.bucket()] {
        let (location, keys) = at(&bucket, "points", dir.path());
        let refused = location.init(&keys).expect_err("two may win there").to_string();
        assert!(refused.contains("cannot hold a store") && refused.contains(&bucket.name), "{refused}");
        assert!(location.reader(&keys).is_err(), "nothing was made");
    }
}

/// Who creates a record learns from its content whose it is, whatever the answer was.
#[test]
fn a_create_that_went_wrong_is_done_or_not_and_never_somebody_elses() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let (through, direct) = (backend(&faults.bucket(), dir.path()), backend(&rados, dir.path()));
    let endings =
        [Ending::SlowDown, Ending::InternalError, Ending::Conflict, Ending::AlreadyThere, Ending::Closed, Ending::Reset];
    for (number, ending) in (0..).zip(endings) {
        for (when, wrap) in [("before", Fault::Before as fn(Ending) -> Fault), ("after", Fault::After)] {
            let at = name(&format!("ledger/{number}-{when}"));
            let tries = Arc::new(AtomicU32::new(0));
            let counted = Arc::clone(&tries);
            faults.fault(move |request| match request.kind {
                Kind::Put if counted.fetch_add(1, Ordering::Relaxed) == 0 => wrap(ending),
                _ => Fault::Pass,
            });
            let answer = block_on(through.create(&at, Bytes::from_static(b"mine")));
            let there = block_on(direct.get(&at, 100)).expect("get");
            match answer {
                Ok(Created::New) => assert_eq!(there.as_deref(), Some(b"mine".as_slice()), "{at}"),
                // Its own earlier try, perhaps: there it is.
                Ok(Created::AlreadyExists) => assert_eq!(there.as_deref(), Some(b"mine".as_slice()), "{at}"),
                Err(error) => assert!(matches!(error, StoreError::Remote { .. }), "{at}: {error}"),
            }
            assert!(tries.load(Ordering::Relaxed) >= 1, "{at}: the fault came");
            faults.fault(|_| Fault::Pass);
            assert_eq!(
                block_on(through.create(&at, Bytes::from_static(b"theirs"))).is_ok_and(|c| c == Created::New),
                there.is_none()
            );
        }
    }
}

#[test]
fn a_bucket_that_refuses_or_is_gone_is_no_empty_store() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let through = backend(&faults.bucket(), dir.path());
    for ending in [Ending::Forbidden, Ending::ExpiredToken] {
        faults.fault(
            move |request| {
                if request.kind == Kind::Head { Fault::Before(Ending::Forbidden) } else { Fault::Before(ending) }
            },
        );
        for refused in [
            block_on(through.get(&name("a"), 10)).map(drop),
            block_on(through.size(&name("a"))).map(drop),
            block_on(through.list(None, None, 10)).map(drop),
            block_on(through.create(&name("a"), Bytes::new())).map(drop),
        ] {
            assert!(matches!(refused, Err(StoreError::RemoteDenied { .. })), "{refused:?}");
        }
    }
    let gone = backend(&Bucket { name: "nobody-made-it".into(), ..rados }, dir.path());
    for missing in [
        block_on(gone.get(&name("a"), 10)).map(drop),
        block_on(gone.get_range(&name("a"), 0, 10)).map(drop),
        block_on(gone.size(&name("a"))).map(drop),
        block_on(gone.list(None, None, 10)).map(drop),
        block_on(gone.folders(&name("a"))).map(drop),
        block_on(gone.create(&name("a"), Bytes::new())).map(drop),
    ] {
        assert!(matches!(missing, Err(StoreError::NoBucket { .. })), "{missing:?}");
    }
}
