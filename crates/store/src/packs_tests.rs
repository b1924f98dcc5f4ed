//! Packs, from the publication that makes them to the day after the last part in them was given up.

use std::sync::Arc;
use std::time::Duration;

use farside_ledger::{Body, LayerKind, PackId, Policy};
use farside_region::mutation::tell;
use farside_region::{RegionIndex, Slot};

use crate::backend::DirBackend;
use crate::backend::counting::Counting;
use crate::backend::memory::Memory;
use crate::group::Dated;
use crate::testkit::{Fill, PASSED_MS, Runs, TempStore, TestVolume, layers, name};
use crate::{Backend, GroupNames, GroupStore, PointReader, Problem, Remedy, Severity, Store, StoreError, StoreReader, check};

const KEEP_1: Policy = Policy::without_grid(1, 0);
const HOUR_MS: u64 = 3600 * 1000;
const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

/// A receiver and its bucket.
struct Site {
    bucket: Arc<Memory>,
    dir: tempfile::TempDir,
    group: Option<GroupStore>,
    volume: TestVolume,
}

impl Site {
    /// A volume is claimed: slot 0.
    fn new() -> Self {
        let bucket = Arc::new(Memory::default());
        Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
        let dir = tempfile::tempdir().expect("temp dir");
        let mut site = Self { bucket, dir, group: None, volume: TestVolume::new("v", 64) };
        site.restart();
        let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
        volume.claim(group);
        site
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.bucket) as Arc<dyn Backend>
    }

    fn restart(&mut self) {
        self.group = None;
        let store = Store::open_bucket(self.backend(), &self.dir.path().join("staging")).expect("open");
        self.group = Some(store.group(&name("host"), &name("default")).expect("group"));
    }

    fn group(&mut self) -> &mut GroupStore {
        self.group.as_mut().expect("it runs")
    }

    /// Lands layers of one part each; what is to be said of them, as points.
    fn land(&mut self, parts: &[(u64, u64, u8)]) -> Vec<Dated> {
        let group = self.group.as_ref().expect("it runs");
        let of = |&(start, count, byte): &(u64, u64, u8)| {
            let entry = self.volume.land(group, &[vec![(start, count, Fill::Byte(byte))]]);
            Dated { body: layers(LayerKind::Point, vec![entry]), ago: Duration::ZERO }
        };
        parts.iter().map(of).collect()
    }

    /// Publishes them together; the slots of their points.
    fn publish(&mut self, parts: &[(u64, u64, u8)]) -> Vec<Slot> {
        let said = self.land(parts);
        let appended = self.group().append_all(said).expect("appended");
        assert!(appended.iter().all(|its| its.verdict.is_done()) && appended.len() == parts.len());
        appended.into_iter().map(|its| its.position.slot).collect()
    }

    fn packs(&self) -> Vec<String> {
        self.bucket.names("/packs/")
    }

    fn segments(&self) -> Vec<String> {
        self.bucket.names("/segments/")
    }

    fn reader(&self, point: Slot) -> Result<PointReader, StoreError> {
        let group = StoreReader::open_bucket(self.backend()).expect("open").group(&names()).expect("group");
        group.point_reader(point, self.volume.id())
    }

    /// What a point holds, for whoever opens the bucket now.
    fn read(&self, point: Slot) -> Result<Vec<u8>, StoreError> {
        all_of(&self.reader(point)?)
    }

    /// Time passes for the receiver, which publishes something small, alone, at its end.
    fn live(&mut self, ms: u64) {
        PASSED_MS.set(PASSED_MS.get() + ms);
        let group = self.group.as_mut().expect("it runs");
        self.volume.publish(group, LayerKind::Fuzzy, &[vec![(63, 1, Fill::Byte(9))]]);
    }

    /// Until the head is so far on.
    fn live_until(&mut self, slot: u64) {
        while self.group().state().next_slot().0 < slot {
            self.live(1);
        }
    }

    fn day(&mut self) {
        (0..25).for_each(|_| self.live(HOUR_MS));
    }

    fn sweep(&mut self) -> usize {
        let mut deleted = 0;
        // A page of names at a time.
        for _ in 0..200 {
            deleted += self.group().sweep().expect("sweep").deleted;
        }
        deleted
    }

    fn is_sound(&self) -> bool {
        let report = check(&StoreReader::open_bucket(self.backend()).expect("open"), &|_| true).expect("checked");
        let worst = report.worst().is_none_or(|worst| worst <= Severity::Note);
        assert!(worst || std::thread::panicking(), "{:?}", report.findings);
        worst
    }
}

fn all_of(reader: &PointReader) -> Result<Vec<u8>, StoreError> {
    let (mut content, mut all) = (reader.content(), Vec::new());
    for region in 0..reader.geometry().region_count() {
        reader.read_region(RegionIndex(region), &mut content)?;
        all.extend_from_slice(&content.bytes);
    }
    Ok(all)
}

/// What the volume holds after these parts.
fn image(parts: &[(u64, u64, u8)]) -> Vec<u8> {
    let mut image = vec![None; 64];
    for &(start, count, byte) in parts {
        image[start as usize..(start + count) as usize].fill(Some(Fill::Byte(byte)));
    }
    TestVolume::bytes(&image)
}

#[test]
fn what_is_published_together_is_one_object_that_everybody_reads() {
    let mut site = Site::new();
    let parts = [(0, 64, 1), (3, 7, 2), (20, 30, 3)];
    let points = site.publish(&parts);
    assert_eq!((site.packs().len(), site.segments().len()), (1, 0));
    assert_eq!(points, [Slot(2), Slot(3), Slot(4)], "behind the record that says where their parts lie");
    for (i, &point) in points.iter().enumerate() {
        assert_eq!(site.read(point).expect("read"), image(&parts[..=i]));
    }
    // One part alone has an object of its own; layers of several parts are packed, too.
    site.publish(&[(0, 1, 4)]);
    assert_eq!((site.packs().len(), site.segments().len()), (1, 1));
    let several: Vec<Runs> = vec![vec![(0, 8, Fill::Byte(5))], vec![(8, 8, Fill::Byte(6))], vec![(16, 8, Fill::Zero)]];
    let point = {
        let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
        volume.publish(group, LayerKind::Point, &several).position.slot
    };
    assert_eq!((site.packs().len(), site.segments().len()), (2, 1));
    let whole = TestVolume::bytes(&site.volume.image);
    assert_eq!(site.read(point).expect("read"), whole);
    assert!(site.is_sound());
    let state = site.group().state().clone();
    site.restart();
    assert_eq!(*site.group().state(), state);
    // From a checkpoint as well, which the small span of tests has made by now.
    site.live_until(40);
    let state = site.group().state().clone();
    site.restart();
    assert_eq!(*site.group().state(), state);
    assert_eq!(site.read(point).expect("read"), whole);
    assert!(site.is_sound());
}

/// † The disk of the gateway changed what lay there while the bucket was away: it was put under the right footer, and its source forgot what it had.
#[test]
fn what_rots_while_it_waits_for_the_bucket_is_had_again_from_its_source() {
    for parts in [&[(0, 8, 1)][..], &[(0, 8, 1), (8, 8, 2)][..]] {
        let mut site = Site::new();
        let said = site.land(parts);
        let landing = site.dir.path().join("staging/landing");
        let mut files = Vec::new();
        crate::landing::collect(&landing, &mut files).expect("listed");
        let file = files.iter().find(|file| file.extension().is_some_and(|number| number == "0")).expect("a part");
        let mut content = std::fs::read(file).expect("read");
        // Of its first frame, which lies behind two headers' room.
        content[140] ^= 1;
        std::fs::write(file, &content).expect("written");
        let error = site.group().append_all(said).expect_err("it is not what its source said");
        assert_eq!(error.remedy(), Remedy::Lose, "{error}");
        assert!(site.packs().is_empty() && site.segments().is_empty(), "{:?}", site.packs());
    }
}

/// Whatever fails: parts are not sent again that are there, and nothing is named that is not.
#[test]
fn a_pack_whose_record_failed_is_named_by_the_next_attempt() {
    let mut site = Site::new();
    let parts = [(0, 64, 1), (3, 7, 2), (20, 30, 3)];
    let said = site.land(&parts);
    site.bucket.refuse(Some("/packs/"));
    site.group().append_all(said.clone()).expect_err("refused");
    assert_eq!(site.packs().len(), 0);
    site.bucket.refuse(Some("/ledger/"));
    site.group().append_all(said.clone()).expect_err("refused");
    let there = site.packs();
    assert_eq!(there.len(), 1);
    site.bucket.refuse(Some("/packs/"));
    // In pieces, and after somebody else's record.
    let pin = |site: &mut Site| {
        let point = site.group().state().points().keys().next().copied();
        let pin = farside_ledger::Pin { point: point.expect("a point"), reason: "kept".into() };
        site.group().append(Body::Pin(pin)).expect("pinned");
    };
    site.group().append_all(said[..1].to_vec()).expect("a part of it");
    pin(&mut site);
    let points = site.group().append_all(said[1..].to_vec()).expect("the rest");
    assert_eq!((site.packs(), site.segments().len()), (there, 0), "no part was sent again");
    site.bucket.refuse(None);
    assert_eq!(site.read(points[1].position.slot).expect("read"), image(&parts));
    assert!(site.is_sound());
}

/// A pack goes with the last part in it, a day later and not before; what is dead in it is known.
#[test]
fn l4_a_pack_goes_a_day_after_the_last_part_in_it_was_given_up() {
    let needed = ("L4 a pack goes while a part in it is needed", "the newest point holds a part in it");
    let leases = ("L4 a pack goes without a look at the leases", "somebody reads it");
    tell(&[needed, leases], || {
        let mut site = Site::new();
        let points = site.publish(&[(0, 64, 1), (0, 30, 2), (30, 20, 3)]);
        let dead = site.group().dead_bytes();
        // The base is needed for what nobody wrote since; the second layer is not.
        site.publish(&[(0, 30, 4)]);
        site.group().prune(&KEEP_1).expect("pruned");
        assert_eq!(site.group().points().len(), 1);
        assert!(site.group().dead_bytes() > dead, "they take room in a pack of which something is needed");
        site.day();
        site.sweep();
        assert_eq!(site.packs().len(), 1, "the newest point holds a part in it");
        let newest = site.group().points()[0].slot;
        assert!(site.read(newest).is_ok());
        // Somebody reads that; then all of it is written again.
        let reading = site.reader(newest).expect("reader");
        let before = all_of(&reading).expect("read");
        site.publish(&[(0, 64, 5)]);
        site.group().prune(&KEEP_1).expect("pruned");
        site.live_until(150);
        site.sweep();
        assert_eq!(site.packs().len(), 1, "given up just now");
        site.day();
        site.sweep();
        assert_eq!(site.packs().len(), 1, "somebody reads it");
        assert_eq!(all_of(&reading).expect("somebody reads it"), before);
        // Whoever starts now knows it all the same.
        site.restart();
        site.sweep();
        assert_eq!(site.packs().len(), 1, "somebody reads it");
        drop(reading);
        site.sweep();
        site.bucket.pass_ms(YEAR_MS);
        site.sweep();
        assert_eq!(site.packs().len(), 0);
        assert!(site.group().is_swept() && site.is_sound());
        assert!(matches!(site.read(points[0]), Err(StoreError::NoSuchPoint { .. })));
    });
}

/// A record that hung on its way names a pack which nobody knows any more, as late as it likes.
#[test]
fn t4_a_pack_that_a_record_may_still_name_stays() {
    let named = ("T4 a pack that a record may still name goes", "a record may still name it");
    tell(&[named], || {
        let mut site = Site::new();
        let parts = [(0, 64, 1), (3, 7, 2)];
        let said = site.land(&parts);
        site.bucket.hang(Some("/ledger/"));
        site.group().append_all(said).expect_err("no answer");
        site.bucket.hang(None);
        assert_eq!(site.packs().len(), 1);
        // Another process, another staging directory, any time.
        std::fs::remove_dir_all(site.dir.path().join("staging")).expect("lost");
        site.restart();
        site.bucket.pass_ms(YEAR_MS);
        site.sweep();
        site.bucket.pass_ms(YEAR_MS);
        site.sweep();
        assert_eq!(site.packs().len(), 1, "a record may still name it");
        site.bucket.land();
        site.group().catch_up().expect("it landed");
        let point = *site.group().state().points().keys().next_back().expect("two points");
        assert_eq!(site.read(point).expect("read"), image(&parts));
        assert!(site.is_sound());
    });
}

/// Slots are decided once: far enough on nothing can name it.
#[test]
fn a_pack_that_no_record_can_name_any_more_goes_after_a_day() {
    let mut site = Site::new();
    let said = site.land(&[(0, 64, 1), (3, 7, 2)]);
    site.bucket.refuse(Some("/ledger/"));
    site.group().append_all(said).expect_err("refused");
    site.bucket.refuse(None);
    assert_eq!(site.packs().len(), 1);
    // Another claim: what had landed is void.
    let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
    volume.claim(group);
    volume.base(group, 1);
    site.live_until(100);
    site.bucket.pass_ms(YEAR_MS);
    site.sweep();
    assert_eq!(site.packs().len(), 1, "a record may still name it");
    site.live_until(130);
    site.sweep();
    site.restart();
    site.sweep();
    assert_eq!(site.packs().len(), 0, "by those who know of it, and by those who find it");
    assert!(site.is_sound());
}

/// The store was opened again, and had looked at all that there is, when an upload for the opening before came to its end.
#[test]
fn what_was_put_for_an_opening_before_goes_where_no_record_names_it() {
    let mut site = Site::new();
    let parts = [(0, 64, 1), (3, 7, 2)];
    let said = site.land(&parts);
    let bodies: Vec<&Body> = said.iter().map(|said| &said.body).collect();
    let upload = site.group().plan_upload(&bodies).expect("planned").expect("something is to be put");
    site.restart();
    site.sweep();
    assert!(site.group().is_swept() && site.packs().is_empty());
    let uploaded = upload.run();
    assert_eq!(site.packs().len(), 1);
    site.group().uploaded_elsewhere(uploaded);
    // It is not taken for what is there: that opening may have been of another moment.
    let points = site.group().append_all(said).expect("appended");
    assert_eq!(site.packs().len(), 2, "it is put again");
    assert_eq!(site.read(points[1].position.slot).expect("read"), image(&parts));
    site.live_until(130);
    site.sweep();
    site.bucket.pass_ms(YEAR_MS);
    site.sweep();
    assert_eq!(site.packs().len(), 1, "nothing names it, and nothing can");
    assert!(site.is_sound());
}

/// A pack says of which slot it is: a ledger that ends before that has lost its end.
#[test]
fn a_ledger_that_lost_its_newest_records_is_known_by_a_pack() {
    let mut site = Site::new();
    site.publish(&[(0, 64, 1), (3, 7, 2)]);
    let second = site.group().state().next_slot();
    site.publish(&[(0, 9, 3), (3, 7, 4)]);
    site.group = None;
    let lost = site.bucket.names("/ledger/");
    for object in lost.iter().filter(|object| !object.ends_with("/0")) {
        crate::block_on(site.bucket.delete(&crate::ObjectName::new(object.as_str()).expect("a name"))).expect("delete");
    }
    for object in site.bucket.names("/checkpoint/") {
        crate::block_on(site.bucket.delete(&crate::ObjectName::new(object.as_str()).expect("a name"))).expect("delete");
    }
    site.restart();
    let torn = site.group().torn().cloned().expect("torn");
    assert_eq!((torn.slot, torn.lost_claim.map(|term| term.0 + 1)), (Slot(1), Some(second.0)));
    let report = check(&StoreReader::open_bucket(site.backend()).expect("open"), &|_| true).expect("checked");
    assert!(
        report.findings.iter().any(|f| f.problem == Problem::LedgerTorn && f.text.contains("pack ")),
        "{:?}",
        report.findings
    );
    site.sweep();
    assert_eq!(site.packs().len(), 2, "nobody judges them");
    site.group().repair_torn().expect("given up");
    assert!(site.group().torn().is_none() && site.group().state().next_slot() >= second);
}

/// Several records are one object, whose name tells only where they begin: what was put for the slot behind them was called a lost end of the ledger.
#[test]
fn a_pack_of_a_publication_under_way_is_no_lost_end_of_the_ledger() {
    let mut site = Site::new();
    site.publish(&[(0, 64, 1), (3, 7, 2)]);
    let store = StoreReader::open_bucket(site.backend()).expect("open");
    let goes_on = std::sync::Mutex::new(Some(&mut site));
    let report = check(&store, &|_| {
        // The ledger was read.
        if let Some(site) = goes_on.lock().expect("whole").take() {
            site.publish(&[(0, 9, 3), (3, 7, 4), (5, 6, 5)]);
            let said = site.land(&[(0, 33, 6), (3, 7, 7)]);
            let bodies: Vec<&Body> = said.iter().map(|said| &said.body).collect();
            let upload = site.group().plan_upload(&bodies).expect("planned").expect("something is to be put");
            upload.run();
        }
        true
    });
    assert!(goes_on.lock().expect("whole").is_none());
    let findings = report.expect("checked").findings;
    assert!(findings.iter().any(|f| f.problem == Problem::Staged && f.text.contains("pack ")), "{findings:?}");
    assert!(findings.iter().all(|f| f.severity != crate::Severity::Error), "{findings:?}");
}

/// One that is put under its own name by an attempt that failed, and lies in a pack then, is there twice.
#[test]
fn a_part_that_lies_in_a_pack_needs_no_object_of_its_own() {
    let mut site = Site::new();
    site.publish(&[(0, 64, 1)]);
    let said = site.land(&[(3, 7, 2)]);
    site.bucket.refuse(Some("/ledger/"));
    site.group().append_all(said.clone()).expect_err("refused");
    site.bucket.refuse(None);
    assert_eq!(site.segments().len(), 2);
    // Another process does not know what was tried.
    site.restart();
    let mut both = said;
    both.extend(site.land(&[(20, 30, 3)]));
    site.group().append_all(both).expect("appended");
    assert_eq!((site.packs().len(), site.segments().len()), (1, 2));
    site.restart();
    site.sweep();
    site.bucket.pass_ms(YEAR_MS);
    site.sweep();
    assert_eq!(site.segments().len(), 1, "the base");
    assert!(site.is_sound());
    let newest = site.group().points().last().expect("points").slot;
    assert_eq!(site.read(newest).expect("read"), image(&[(0, 64, 1), (3, 7, 2), (20, 30, 3)]));
}

/// The page of formats is enough: a reader in another language restores what lies in packs, and names what is damaged.
#[test]
fn a_reader_that_was_written_from_the_documents_finds_parts_in_packs() {
    let store = TempStore::new();
    let backend = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let opened = Store::open_bucket(backend, &store.dir.path().join("staging")).expect("open");
    let mut group = opened.group(&name("host"), &name("default")).expect("group");
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let runs: Vec<Runs> = vec![vec![(0, 30, Fill::Byte(1))], vec![(30, 34, Fill::Byte(2))], vec![(8, 3, Fill::Byte(3))]];
    let first = volume.publish(&mut group, LayerKind::Point, &runs).position.slot;
    let whole = TestVolume::bytes(&volume.image);
    volume.publish(&mut group, LayerKind::Point, &[vec![(1, 1, Fill::Byte(4))], vec![(9, 1, Fill::Byte(5))]]);
    assert_eq!((store.files("groups/host/default/packs").len(), store.files("groups/host/default/segments").len()), (2, 0));
    drop(group);
    let restored = |to: &str| {
        let to = store.dir.path().join(to);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/independent/reader.py");
        let mut python = std::process::Command::new("/usr/bin/python3");
        python.arg(script).arg(store.path()).args(["host/default/v", &first.to_string()]).arg(&to);
        let output = python.output().expect("python3 is installed");
        std::fs::read(&to).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(restored("whole").expect("restored") == whole);
    // The first pack: of the first point.
    let pack = store.path().join(&store.files("groups/host/default/packs")[0]);
    let mut bytes = std::fs::read(&pack).expect("read");
    bytes[200] ^= 4;
    std::fs::write(&pack, bytes).expect("written");
    let refused = restored("damaged").expect_err("it is not what was published");
    assert!(refused.contains("packs/0000000000000001") && !refused.contains("Traceback"), "{refused}");
}

#[test]
fn names_say_from_which_slot_on_they_may_be_named() {
    let pack = PackId::new(Slot(100), [7; 8]);
    let may: Vec<u64> = (0..400).filter(|slot| pack.may_be_named_in(Slot(*slot))).collect();
    assert_eq!((may.first(), may.last(), may.len()), (Some(&100), Some(&163), 64));
    assert!(!pack.is_decided(Slot(227)) && pack.is_decided(Slot(228)));
}
