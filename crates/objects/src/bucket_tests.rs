use std::sync::Arc;

use farside_store::{Backend, Store, StoreError, StoreReader, block_on, conformance};
use object_store::memory::InMemory;

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
