//! Against servers that speak S3: one that must pass, those that must be refused, and one that fails in every way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use farside_objects::{Credentials, Location, Lock, Past};
use farside_s3_servers::{Bucket, Ending, Fault, Faults, HoldsCreateOnly, Kind, RadosGw, StripsCreateOnly, WrongInARace};
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

/// Amazon's holds create-only where it keeps versions; Ceph's does not, and is refused there as any that does not.
#[test]
fn a_bucket_that_keeps_versions_holds_a_store_where_create_only_holds() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket_with_versions();
    let holds = HoldsCreateOnly::before(&rados);
    let (location, keys) = at(&holds.bucket(), "points", dir.path());
    let id = location.init(&keys).expect("it holds there");
    assert_eq!(location.reader(&keys).expect("open").id(), id);
}

/// Later than that by the service's clock, in milliseconds since 1970: when it is.
fn tick(backend: &dyn Backend, than: i64) -> i64 {
    for number in 0.. {
        let tick = name(&format!("tick/{than}/{number}"));
        block_on(backend.create(&tick, Bytes::new())).expect("created");
        let page = block_on(backend.list(Some(&name(&format!("tick/{than}"))), None, 10_000)).expect("listed");
        let created_ms = page.objects.iter().map(|listed| listed.created_ms).max().expect("one");
        if created_ms > than {
            return created_ms;
        }
    }
    unreachable!("time goes on")
}

/// What was there, also when whoever has the keys deleted and overwrote it since.
#[test]
fn a_bucket_that_keeps_versions_is_read_as_it_was() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket_with_versions();
    let (Location::Bucket(address), keys) = at(&rados, "site-1", dir.path()) else { panic!("a bucket") };
    let now = address.bucket(&keys).expect("a bucket");
    let names = ["a/1", "a/2", "a/b/3", "c"].map(name);
    let put = |name: &ObjectName, text: &'static str| block_on(now.create(name, Bytes::from_static(text.as_bytes())));
    for name in &names {
        put(name, "first").expect("created");
    }
    block_on(now.delete(&names[3])).expect("deleted");
    // † A key with a slash at its end is another one, and takes nobody's place.
    rados.put("site-1/a/1/");
    let moment = tick(&*now, 0);
    tick(&*now, moment);
    let moment = jiff::Timestamp::from_millisecond(moment).expect("a time");
    // Whoever has the keys.
    for name in &names[..3] {
        block_on(now.delete(name)).expect("deleted");
    }
    put(&names[1], "another").expect("created anew");
    put(&name("a/9"), "later").expect("created");

    let then = address.as_of(moment);
    assert!(rados.versions().iter().any(|(key, _)| key == "site-1/a/1/"), "{:?}", rados.versions());
    assert_eq!(then.to_string().parse::<Location>().expect("an address"), Location::Bucket(then.clone()));
    let was = then.bucket(&keys).expect("listed");
    assert!(was.is_past() && was.place().ends_with(&format!("as of {moment}")));
    let all = |backend: &dyn Backend, prefix: Option<&ObjectName>, at_once| {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = block_on(backend.list(prefix, after.as_ref(), at_once)).expect("listed");
            let names_of = page.objects.iter().map(|listed| listed.name.to_string());
            names.extend(names_of.filter(|name| !name.starts_with("tick")));
            after = page.objects.last().map(|listed| listed.name.clone());
            if !page.more {
                return names;
            }
        }
    };
    for at_once in [1, 2, 100] {
        assert_eq!(all(&*was, None, at_once), ["a/1", "a/2", "a/b/3"]);
        assert_eq!(all(&*was, Some(&name("a")), at_once), ["a/1", "a/2", "a/b/3"]);
        assert_eq!(all(&*was, Some(&name("a/b")), at_once), ["a/b/3"]);
    }
    assert_eq!(block_on(was.folders(&name("a"))).expect("listed"), ["b".to_owned()].into());
    for name in &names[..3] {
        assert_eq!(block_on(was.get(name, 100)).expect("read"), Some(Bytes::from_static(b"first")));
        assert_eq!(block_on(was.get_range(name, 1, 3)).expect("read"), Bytes::from_static(b"irs"));
        assert_eq!(block_on(was.size(name)).expect("read"), Some(5));
    }
    for gone in [&names[3], &name("a/9")] {
        assert_eq!((block_on(was.size(gone)).expect("asked"), block_on(was.get(gone, 9)).expect("asked")), (None, None));
    }
    assert!(block_on(was.create(&name("x"), Bytes::new())).is_err() && block_on(was.delete(&names[0])).is_err());
    let staging = dir.path().join("staging");
    for refused in [Location::Bucket(then.clone()).init(&keys).map(drop), Location::Bucket(then).open(&keys, &staging).map(drop)]
    {
        assert!(refused.expect_err("nothing is written there").to_string().contains("read only"));
    }
    // A listing by the client does not tell that other one from it.
    assert_eq!(all(&*now, None, 100), ["a/1", "a/2", "a/9"], "nothing was changed by that");
}

/// Nobody is to believe that he reads what was, where it is gone.
#[test]
fn a_bucket_without_versions_is_not_read_as_it_was() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket();
    let (Location::Bucket(address), keys) = at(&rados, "site-1", dir.path()) else { panic!("a bucket") };
    block_on(address.bucket(&keys).expect("a bucket").create(&name("a"), Bytes::new())).expect("created");
    let words = address.past(&keys).map(drop).expect_err("it keeps none").to_string();
    assert!(words.contains("keeps no versions"), "{words}");
}

fn content(past: &Past, of: &str) -> Option<Bytes> {
    block_on(past.backend().get(&name(of), 9)).expect("read")
}

/// † What is locked stays, and is read, whatever is deleted and overwritten by who has the keys; what is not goes, with all of its versions.
#[test]
fn what_is_locked_is_deleted_by_nobody_and_read_as_it_was() {
    let dir = tempfile::tempdir().expect("temp dir");
    let rados = RadosGw::shared().bucket_with_versions();
    let (Location::Bucket(address), keys) = at(&rados, "site-1", dir.path()) else { panic!("a bucket") };
    let now = address.bucket(&keys).expect("a bucket");
    for text in ["a", "b", "c", "d"] {
        block_on(now.create(&name(text), Bytes::from(format!("the {text}")))).expect("created");
    }
    let done = Arc::new(AtomicU32::new(0));
    let count = || {
        let done = Arc::clone(&done);
        move || {
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let lock = |of: [&str; 2]| {
        let past = address.past(&keys).expect("listed");
        for text in of.into_iter().chain(["none"]) {
            content(&past, text);
        }
        assert_eq!(past.touched(), (2, 10));
        past.lock(("web1/db".into(), of.concat()), "audit".into(), count()).expect("locked")
    };
    let (ab, bc) = (lock(["a", "b"]), lock(["b", "c"]));
    assert_eq!((ab.objects, ab.bytes, done.load(Ordering::Relaxed)), (2, 10, 4));
    let locks = address.locks(&keys).expect("a bucket");
    let listed = || locks.list().expect("listed");
    assert_eq!(listed(), (vec![ab.clone(), bc.clone()], vec![]));

    // Whoever has the keys: deletes, puts something else there, and takes away for good what nothing locks.
    let delete_all = || rados.versions().iter().filter(|(key, version)| !rados.delete_version(key, version)).count();
    let lists = [&ab, &bc].map(|lock| format!("farside-locks/{}.json", lock.id));
    for text in ["a", "b", "c", "d"].into_iter().map(name).chain(lists.iter().map(|list| name(list))) {
        block_on(now.delete(&text)).expect("marked");
    }
    assert_eq!(delete_all(), 5, "a, b, c and the lists");
    for text in ["a", &lists[0]] {
        block_on(now.put_right(&name(text), Bytes::from_static(b"{}"))).expect("put over it");
    }
    // What is called by its digest, and is no list that anybody holds.
    for list in ["{}", r#"{"format": "farside lock", "version": 2}"#] {
        let id = &blake3::hash(list.as_bytes()).to_hex()[..32];
        block_on(now.create(&name(&format!("farside-locks/{id}.json")), Bytes::from(list))).expect("created");
    }
    let read = |lock: &Lock| {
        let past = address.by_lock(&lock.id).past(&keys).expect("listed");
        ["a", "b", "c", "d"].map(|text| content(&past, text).map(|bytes| String::from_utf8(bytes.to_vec()).expect("text")))
    };
    let [a, b, c] = ["a", "b", "c"].map(|text| Some(format!("the {text}")));
    assert_eq!(read(&ab), [a.clone(), b.clone(), None, None]);
    assert_eq!(read(&bc), [None, b.clone(), c, None]);
    let by_name = address.by_lock(&ab.id);
    assert_eq!(by_name.to_string().parse::<Location>().expect("an address"), Location::Bucket(by_name));
    assert_eq!(listed(), (vec![ab.clone(), bc.clone()], vec![]));

    // What another lock has as well stays.
    assert_eq!(locks.end(&bc.id, count()).expect("ended"), Some((bc.clone(), 1)));
    assert_eq!(listed(), (vec![ab.clone()], vec![]));
    assert_eq!(locks.end(&bc.id, count()).expect("asked"), None);
    let gone = address.by_lock(&bc.id).past(&keys).map(drop).expect_err("it is no more").to_string();
    assert!(gone.contains("farside store locks"), "{gone}");
    assert_eq!(delete_all(), 3, "a, b and the list");
    assert_eq!(read(&ab), [a, b, None, None]);
    // † What it names and is gone is lost, and not what never was.
    let past = address.by_lock(&ab.id).past(&keys).expect("listed");
    assert_eq!(locks.end(&ab.id, count()).expect("ended"), Some((ab, 0)));
    assert_eq!(delete_all(), 0);
    for gone in [block_on(past.backend().get(&name("a"), 9)).map(drop), block_on(past.backend().size(&name("a"))).map(drop)] {
        assert!(matches!(gone, Err(StoreError::Unreadable { .. })), "{gone:?}");
    }
}
