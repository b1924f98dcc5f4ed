//! Readers and collectors of a bucket, at every moment at which they may meet.

use std::sync::atomic::{AtomicBool, Ordering};

use farside_ledger::{LayerKind, Policy};
use farside_region::mutation::tell;
use farside_region::{LayerKey, RegionIndex, Seq, Term};

use super::*;
use crate::backend::faulty::{Faulty, Op, When};
use crate::backend::memory::{Memory, Met};
use crate::liveness::PartName;
use crate::testkit::{Fill, PASSED_MS, TestVolume, layers, name};
use crate::{GroupReader, GroupStore, PointReader, Severity, Store, StoreReader, check, verify_point};

const KEEP_1: Policy = Policy::without_grid(1, 0);
const HOUR_MS: u64 = 3600 * 1000;
const MINUTE_MS: u64 = 60 * 1000;

/// A receiver and its bucket. The first of two points is all of one part, of which the second takes nothing.
struct Site {
    bucket: Arc<Memory>,
    dir: tempfile::TempDir,
    group: Option<GroupStore>,
    volume: TestVolume,
    old: Slot,
    new: Slot,
}

fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

impl Site {
    fn new() -> Self {
        let bucket = Arc::new(Memory::default());
        Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
        let dir = tempfile::tempdir().expect("temp dir");
        let volume = TestVolume::new("v", 61);
        let mut site = Self { bucket, dir, group: None, volume, old: Slot(0), new: Slot(0) };
        site.restart();
        let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
        volume.claim(group);
        site.old = volume.base(group, 1);
        site.new = volume.base(group, 2);
        site
    }

    /// Shared with who meets somebody's request.
    fn shared() -> (Arc<Mutex<Self>>, Arc<Memory>) {
        let site = Self::new();
        let bucket = Arc::clone(&site.bucket);
        (Arc::new(Mutex::new(site)), bucket)
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.bucket) as Arc<dyn Backend>
    }

    fn open(&self, staging: &str) -> GroupStore {
        let store = Store::open_bucket(self.backend(), &self.dir.path().join(staging)).expect("open");
        store.group(&name("host"), &name("default")).expect("group")
    }

    fn restart(&mut self) {
        self.group = None;
        self.group = Some(self.open("staging"));
    }

    fn group(&mut self) -> &mut GroupStore {
        self.group.as_mut().expect("it runs")
    }

    /// Time passes for the receiver, which publishes something at its end.
    fn live(&mut self, ms: u64) {
        PASSED_MS.set(PASSED_MS.get() + ms);
        let group = self.group.as_mut().expect("it runs");
        self.volume.publish(group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]);
    }

    fn day(&mut self) {
        (0..25).for_each(|_| self.live(HOUR_MS));
    }

    fn prune(&mut self) {
        self.group().prune(&KEEP_1).expect("prune");
    }

    fn sweep(&mut self) -> usize {
        let mut deleted = 0;
        loop {
            match self.group().sweep().expect("sweep").deleted {
                0 => return deleted,
                some => deleted += some,
            }
        }
    }

    /// All that a collector does to the first point.
    fn collect(&mut self) -> usize {
        self.prune();
        self.day();
        self.sweep()
    }

    /// The part that the first point is.
    fn old_part(&self) -> String {
        let layer = LayerKey { volume: self.volume.id(), term: Term(0), seq: Seq(1) };
        names().segment(&name("v"), &PartName { layer, number: 0 }).to_string()
    }

    fn has_old_part(&self) -> bool {
        !self.bucket.names(&self.old_part()).is_empty()
    }

    fn replayed(&self) -> GroupReader {
        StoreReader::open_bucket(self.backend()).expect("open").group(&names()).expect("group")
    }

    fn read(&self, point: Slot) -> Result<PointReader> {
        self.replayed().point_reader(point, self.volume.id())
    }
}

fn all_of(reader: &PointReader) -> Result<Vec<u8>> {
    let (mut content, mut all) = (reader.content(), Vec::new());
    for region in 0..reader.geometry().region_count() {
        reader.read_region(RegionIndex(region), &mut content)?;
        all.extend_from_slice(&content.bytes);
    }
    Ok(all)
}

fn filled(byte: u8) -> Vec<u8> {
    TestVolume::bytes(&[Some(Fill::Byte(byte)); 61])
}

fn is_deleted(result: Result<impl Sized>) -> bool {
    match result {
        Err(error @ StoreError::PointDeleted { .. }) => {
            let words = error.to_string();
            assert!(words.contains("deleted") && words.contains("volume v") && words.contains("farside point pin"), "{words}");
            true
        }
        Err(other) => panic!("{other}"),
        Ok(_) => false,
    }
}

#[test]
fn what_was_given_up_goes_a_day_later_and_leaves_nothing_behind() {
    let mut site = Site::new();
    site.prune();
    assert_eq!(site.sweep(), 0, "somebody may read without a lease");
    (0..23).for_each(|_| site.live(HOUR_MS));
    assert_eq!(site.sweep(), 0);
    assert!(site.has_old_part() && site.bucket.names("leases").is_empty(), "it was not even looked for");
    (0..2).for_each(|_| site.live(HOUR_MS));
    assert_eq!(site.sweep(), 1);
    assert!(!site.has_old_part());
    assert_eq!(site.bucket.names("leases"), [""; 0], "the collector's clock is removed");
    assert_eq!(site.group().deferred(), 0);
    assert!(all_of(&site.read(site.new).expect("open")).expect("read") == filled(2));
}

/// The day does not begin anew, whoever opens the store: neither with each start nor where the staging directory is lost, before
/// and after checkpoints.
#[test]
fn a_receiver_that_is_restarted_every_hour_deletes_in_the_end() {
    let mut site = Site::new();
    site.prune();
    let mut lived_ms = 0;
    for hour in 0.. {
        site.restart();
        if hour == 7 {
            site.group = None;
            std::fs::remove_dir_all(site.dir.path().join("staging")).expect("lost");
            site.restart();
        }
        site.live(0);
        site.live(59 * MINUTE_MS);
        lived_ms += 59 * MINUTE_MS;
        let deleted = site.sweep();
        assert_eq!(deleted > 0, lived_ms >= 24 * HOUR_MS, "after {hour} hours");
        if deleted > 0 {
            break;
        }
        assert!(hour < 30, "never");
    }
    assert!(site.bucket.names("checkpoint/").len() > 3, "some of it is known by checkpoints only");
    assert!(!site.has_old_part());
    assert!(all_of(&site.read(site.new).expect("open")).expect("read") == filled(2));
}

/// What nothing can name any more, of a claim that is over: nobody reads it, and it waits by the service's clock.
#[test]
fn orphans_go_when_they_are_a_day_old_also_of_a_receiver_that_is_restarted() {
    let mut site = Site::new();
    site.bucket.hang(Some("/ledger/"));
    let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
    let entry = volume.land(group, &[vec![(0, 61, Fill::Byte(7))]]);
    group.append(layers(LayerKind::Point, vec![entry])).expect_err("the record hangs");
    site.bucket.hang(None);
    let orphan = names().segment(&name("v"), &PartName { layer: volume.key(volume.seq), number: 0 }).to_string();
    volume.claim(group);
    assert_eq!(site.bucket.names(&orphan), [orphan.as_str()]);
    for hour in 0..=24 {
        assert_eq!(site.sweep(), usize::from(hour == 24), "after {hour} hours");
        site.bucket.pass_ms(HOUR_MS as i64);
        site.restart();
    }
    assert!(site.bucket.names(&orphan).is_empty());
    assert!(all_of(&site.read(site.old).expect("open")).expect("read") == filled(1));
}

#[test]
fn l4_what_is_read_with_a_lease_stays_until_it_is_closed() {
    tell(&[("L4 a deletion without a look at the leases", "L4: what is read is deleted")], a_long_read);
}

fn a_long_read() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    assert_eq!(reader.unkept(), None);
    let leases = site.bucket.names("leases");
    assert_eq!(leases.len(), 1);
    assert_eq!(site.collect(), 0, "L4: what is read is deleted");
    site.restart();
    assert_eq!(site.sweep(), 0, "nor does another one delete it");
    assert!(all_of(&reader).expect("all is there") == filled(1));
    // What was born after the point it reads is held by nobody.
    let published: Vec<String> = site.bucket.names("/segments/");
    site.prune();
    site.day();
    assert!(site.sweep() > 10, "{published:?}");
    assert!(all_of(&reader).expect("all is there") == filled(1));
    drop(reader);
    assert_eq!(site.bucket.names("leases"), [""; 0], "removed by the reader");
    assert_eq!(site.sweep(), 1);
    assert!(!site.has_old_part());
}

/// † Somebody reads on for days: by then replay knows nothing any more of what it gave up, and what is there looks like an orphan.
#[test]
fn l4_a_lease_keeps_what_is_forgotten() {
    tell(&[("L4 a lease does not keep what was forgotten", "L4: what is read is deleted")], || {
        crate::testkit::forget_soon();
        let mut site = Site::new();
        site.bucket.pass_ms(25 * HOUR_MS as i64);
        let reader = site.read(site.old).expect("open");
        let layer = LayerKey { volume: site.volume.id(), term: Term(0), seq: Seq(1) };
        assert_eq!(site.collect(), 0);
        site.day();
        assert!(site.group().state().layer(&layer).is_none() && site.group().state().may_be_forgotten(&layer));
        assert_eq!(site.sweep(), 0, "L4: what is read is deleted");
        site.restart();
        assert_eq!(site.sweep(), 0, "L4: what is read is deleted by another one");
        assert!(all_of(&reader).expect("all is there") == filled(1));
        drop(reader);
        site.sweep();
        assert!(!site.has_old_part());
    });
}

#[test]
fn a_lease_of_a_reader_that_died_expires_by_the_services_clock_alone() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    assert_eq!(site.collect(), 0);
    site.bucket.pass_ms(HOLD_MS as i64);
    assert_eq!(site.sweep(), 0, "as long as it said");
    site.bucket.pass_ms(1);
    assert_eq!(site.sweep(), 1);
    assert_eq!(site.bucket.names("leases"), [""; 0], "the collector removes it");
    // It was not dead but stood still: it is told, and hears of no damage.
    assert!(is_deleted(all_of(&reader)));
    let mut content = reader.content();
    assert!(is_deleted(reader.salvage_region(RegionIndex(0), &mut content)), "that is nothing to be salvaged");
    assert!(is_deleted(verify_point(&reader, 2, 9, &|_| true)));
    drop(reader);
}

/// † Of what is missing nobody may say that it is damaged, only because the service does not answer when it is asked who took it.
#[test]
fn why_something_is_missing_is_asked_again_where_the_service_did_not_say() {
    let mut site = Site::new();
    let bucket = Faulty::new(site.backend());
    let group = StoreReader::open_bucket(Arc::clone(&bucket) as _).expect("open").group(&names()).expect("group");
    let reader = group.point_reader_lazily(site.old, site.volume.id()).expect("open");
    assert_eq!(site.collect(), 0);
    site.bucket.pass_ms(HOLD_MS as i64 + 1);
    assert_eq!(site.sweep(), 1);
    let mut content = reader.content();
    bucket.fail(Op::Folders, "ledger", When::Before, libc::EIO);
    let error = reader.read_region(RegionIndex(0), &mut content).expect_err("it is gone");
    assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    assert!(is_deleted(reader.read_region(RegionIndex(0), &mut content)));
}

#[test]
fn a_lease_that_is_renewed_holds_for_ever() {
    let mut site = Site::new();
    let mut keeper = Keeper::new(&site.backend(), &names(), &name("v"), site.old);
    keeper.begin();
    assert_eq!(site.collect(), 0);
    for _ in 0..10 {
        site.bucket.pass_ms(HOLD_MS as i64);
        keeper.renew();
        assert_eq!(site.sweep(), 0);
    }
    assert!(site.has_old_part());
    assert!(site.bucket.names("leases").len() <= 2, "expired ones are removed");
    // For hours nothing is acknowledged: what it has holds on.
    site.bucket.hang(Some("leases"));
    keeper.renew();
    assert_eq!((keeper.unkept().clone(), keeper.wait), (None, TRIED_AGAIN));
    site.bucket.hang(None);
    site.bucket.pass_ms(HOLD_MS as i64);
    assert_eq!(site.sweep(), 0);
    keeper.remove(|_| true);
    assert_eq!(site.sweep(), 1);
}

/// † A laptop was shut for seven hours, and the receiver went on: what expired meanwhile holds nothing, and that is said.
#[test]
fn a_lease_that_expired_while_the_machine_was_suspended_is_not_held() {
    static AWAKE_S: AtomicU64 = AtomicU64::new(1000);
    let site = Site::new();
    let mut keeper = Keeper::new(&site.backend(), &names(), &name("v"), site.old);
    keeper.clock = || Duration::from_secs(AWAKE_S.load(Ordering::Relaxed));
    keeper.begin();
    site.bucket.hang(Some("leases"));
    keeper.renew();
    assert_eq!(*keeper.unkept(), None, "it holds on");
    AWAKE_S.fetch_add(7 * 3600, Ordering::Relaxed);
    keeper.renew();
    assert!(keeper.unkept().is_some(), "it expired");
    site.bucket.hang(None);
    keeper.remove(|_| true);
}

/// Between what a reader replayed and his lease, a collector did all its work: there is no such point.
#[test]
fn who_comes_too_late_is_refused() {
    let (site, bucket) = Site::shared();
    let (group, old, volume) = {
        let site = site.lock().expect("lock");
        (site.replayed(), site.old, site.volume.id())
    };
    let collector = Arc::clone(&site);
    bucket.meet(Met::Create, When::Before, "leases/", move || assert_eq!(collector.lock().expect("lock").collect(), 1));
    assert!(is_deleted(group.point_reader(old, volume)));
    assert!(bucket.all_met());
    assert_eq!(bucket.names("leases"), [""; 0], "and keeps nothing");
}

/// † The store went back to an earlier moment and came to another point in the slot, while he had replayed what it was before: he would take the
/// content of one for the other.
#[test]
fn l6_a_point_of_another_history_in_the_same_slot_is_not_the_one_that_is_opened() {
    tell(&[("a cascade goes on from a position that the store does not hold", "another history")], || {
        let (site, mut other) = (Site::new(), Site::new());
        let group = site.replayed();
        other.live(0);
        assert_eq!((site.new, site.volume.id()), (other.new, other.volume.id()));
        for name in other.bucket.names("/ledger/").into_iter().chain(other.bucket.names("/segments/")) {
            let name = ObjectName::new(name).expect("a name");
            let content = block_on(other.bucket.get(&name, u64::MAX)).expect("read").expect("there");
            block_on(site.bucket.put_right(&name, content)).expect("put");
        }
        assert!(is_deleted(group.point_reader(site.new, site.volume.id())), "it is of another history");
        assert!(site.read(site.new).is_ok(), "who looks anew has it");
    });
}

/// His lease is there, and he has not looked at the ledger yet.
#[test]
fn a_point_that_goes_between_lease_and_look_is_refused_and_nothing_of_it_deleted_before() {
    let (site, bucket) = Site::shared();
    let (group, old, volume) = {
        let site = site.lock().expect("lock");
        (site.replayed(), site.old, site.volume.id())
    };
    let collector = Arc::clone(&site);
    bucket.meet(Met::Create, When::After, "leases/", move || {
        let mut site = collector.lock().expect("lock");
        assert_eq!(site.collect(), 0);
        assert!(site.has_old_part());
    });
    assert!(is_deleted(group.point_reader(old, volume)));
    assert!(bucket.all_met());
    let mut site = site.lock().expect("lock");
    assert_eq!(site.sweep(), 1, "he went away");
}

/// Somebody opens a point while a collector lists leases, page by page, or between that and its deletions.
#[test]
fn l4_who_opens_a_point_while_a_collector_looks_finds_all_of_it_or_is_refused() {
    tell(&[("L4 a lease without a look at the ledger", "L4: a point is open that is being deleted")], opened_meanwhile);
}

fn opened_meanwhile() {
    for (request, when, of) in
        [(Met::List, When::Before, "/leases"), (Met::List, When::After, "/leases"), (Met::Delete, When::Before, "/segments/")]
    {
        for is_old in [true, false] {
            let (site, bucket) = Site::shared();
            let (group, point, volume) = {
                let site = site.lock().expect("lock");
                // Known from before anything was given up.
                (site.replayed(), if is_old { site.old } else { site.new }, site.volume.id())
            };
            let read = Arc::new(AtomicBool::new(false));
            let done = Arc::clone(&read);
            let others: Vec<Keeper> = (0..5)
                .map(|_| {
                    let mut keeper = Keeper::new(&(Arc::clone(&bucket) as Arc<dyn Backend>), &names(), &name("w"), Slot(900));
                    keeper.begin();
                    keeper
                })
                .collect();
            bucket.meet(request, when, of, move || {
                let opened = group.point_reader(point, volume);
                if is_old {
                    assert!(is_deleted(opened), "L4: a point is open that is being deleted ({request:?})");
                } else {
                    assert!(all_of(&opened.expect("retained")).expect("all is there") == filled(2));
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut site = site.lock().expect("lock");
            assert_eq!(site.collect(), 1, "leases of another volume hold nothing");
            assert!(read.load(Ordering::Relaxed) && bucket.all_met());
            drop(others);
        }
    }
}

/// A listing has pages: one who renews in between is in it by one of his leases.
#[test]
fn who_renews_while_a_collector_looks_is_seen() {
    let mut site = Site::new();
    let mut keeper = Keeper::new(&site.backend(), &names(), &name("v"), site.old);
    keeper.begin();
    let keeper = Arc::new(Mutex::new(keeper));
    site.prune();
    site.day();
    for round in 0..40 {
        site.bucket.pass_ms(HOLD_MS as i64 / 2);
        // Of another volume, and enough for four pages.
        (0..12).for_each(|_| Keeper::new(&site.backend(), &names(), &name("w"), Slot(900)).begin());
        for _ in 0..round % 4 {
            site.bucket.meet(Met::List, When::After, "/leases", || {});
        }
        let renewing = Arc::clone(&keeper);
        site.bucket.meet(Met::List, When::After, "/leases", move || renewing.lock().expect("lock").renew());
        assert_eq!(site.sweep(), 0, "round {round}");
        assert!(site.bucket.all_met());
    }
    assert!(site.has_old_part());
}

/// Its reader waited in vain, and reads without: what lands is nobody's and expires.
#[test]
fn a_lease_that_lands_late_keeps_nobody_and_expires() {
    let mut site = Site::new();
    site.bucket.hang(Some("leases/"));
    let reader = site.read(site.old).expect("it is no reason not to read");
    assert!(reader.unkept().expect("said").contains("no answer"));
    assert!(all_of(&reader).expect("read") == filled(1));
    drop(reader);
    site.bucket.hang(None);
    site.bucket.land();
    assert_eq!(site.bucket.names("leases").len(), 1);
    assert_eq!(site.collect(), 0);
    site.bucket.pass_ms(HOLD_MS as i64 + 1);
    assert_eq!(site.sweep(), 1);
    assert_eq!(site.bucket.names("leases"), [""; 0]);
}

/// A reader whose first lease was not acknowledged has one later: the ledger says whether that was in time.
#[test]
fn a_lease_after_a_time_without_one_counts_if_the_point_is_still_there() {
    for is_late in [false, true] {
        let mut site = Site::new();
        site.bucket.hang(Some("leases/"));
        let mut keeper = Keeper::new(&site.backend(), &names(), &name("v"), site.old);
        keeper.begin();
        assert!(keeper.unkept().is_some() && !keeper.is_denied);
        if is_late {
            site.prune();
        }
        site.bucket.hang(None);
        for _ in 0..2 {
            keeper.renew();
            assert_eq!(keeper.unkept().as_ref().map(|why| why.contains("given up")), is_late.then_some(true));
        }
    }
}

#[test]
fn who_may_not_write_reads_and_is_told_that_nothing_keeps_his_point() {
    let mut site = Site::new();
    site.bucket.refuse(Some("leases/"));
    let reader = site.read(site.old).expect("open");
    assert!(reader.unkept().expect("said").contains("AccessDenied"));
    site.bucket.refuse(None);
    site.prune();
    (0..23).for_each(|_| site.live(HOUR_MS));
    assert_eq!(site.sweep(), 0);
    assert!(all_of(&reader).expect("within the day") == filled(1));
    site.day();
    assert_eq!(site.sweep(), 1);
    assert!(is_deleted(all_of(&reader)));
    // What is damaged is still called so.
    let other = site.read(site.new).expect("open");
    for lost in site.bucket.names("/segments/") {
        block_on(site.bucket.delete(&ObjectName::new(lost).expect("name"))).expect("lost");
    }
    assert!(matches!(all_of(&other), Err(StoreError::Corrupt { .. })));
}

/// Between the listing and the reading of what it shows a collector may stall for hours, in which a reader renews what he holds.
#[test]
fn a_lease_that_is_gone_when_it_is_read_holds_everything() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    site.prune();
    site.day();
    let bucket = Arc::clone(&site.bucket);
    site.bucket.meet(Met::List, When::After, "leases", move || {
        let old = bucket.names("/leases/").into_iter().find(|name| !name.ends_with(".now")).expect("a lease");
        let old = ObjectName::new(old).expect("name");
        let content = block_on(bucket.get(&old, LEASE_BYTES_MAX)).expect("read").expect("there");
        block_on(bucket.create(&names().lease([9; 16]), content)).expect("renewed");
        block_on(bucket.delete(&old)).expect("removed");
    });
    assert_eq!((site.sweep(), site.bucket.all_met()), (0, true));
    assert!(all_of(&reader).expect("all is there") == filled(1));
    block_on(site.bucket.delete(&names().lease([9; 16]))).expect("removed");
    assert_eq!(site.sweep(), 1);
}

/// A service may keep an object for years, whoever wants it deleted.
#[test]
fn what_cannot_be_deleted_keeps_nothing_else() {
    let mut site = Site::new();
    let (group, volume) = (site.group.as_mut().expect("it runs"), &mut site.volume);
    volume.base(group, 3);
    site.prune();
    site.day();
    let (kept, before) = (site.old_part(), site.bucket.names("/segments/").len());
    site.bucket.keep(Some(&kept));
    for _ in 0..3 {
        let error = site.group().sweep().expect_err("one of them stays").to_string();
        assert!(error.contains("legal hold") && error.contains(&kept), "{error}");
        assert_eq!(site.bucket.names("/segments/").len(), before - 1, "the other one is gone");
    }
    site.bucket.keep(None);
    assert_eq!((site.sweep(), site.has_old_part()), (1, false));
}

/// Two receivers by mistake: each looks for itself.
#[test]
fn of_two_collectors_neither_deletes_what_is_read() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    assert_eq!(site.collect(), 0);
    let mut second = site.open("another");
    let swept = second.sweep().expect("sweep");
    assert_eq!((swept.deleted, swept.deferred), (0, 1));
    assert!(all_of(&reader).expect("all is there") == filled(1));
    drop(reader);
    assert_eq!(second.sweep().expect("sweep").deleted, 1);
    assert_eq!(site.sweep(), 1, "what is gone is deleted again");
}

/// Where listings come late, who reads is not known.
#[test]
fn a_listing_without_what_was_just_put_is_not_believed() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    site.prune();
    site.day();
    site.bucket.leave_out_of_listings(Some("leases/"));
    let error = site.group().sweep().expect_err("nobody knows who reads");
    assert!(error.to_string().contains("nothing is deleted"), "{error}");
    assert!(all_of(&reader).expect("all is there") == filled(1));
    site.bucket.leave_out_of_listings(None);
    assert_eq!(site.sweep(), 0);
    drop(reader);
    assert_eq!(site.sweep(), 1);
    assert_eq!(site.bucket.names("leases"), [""; 0]);
}

#[test]
fn a_lease_that_nobody_understands_holds_everything_for_a_day() {
    let newer = br#"{"format": "farside lease", "version": 2, "points": [1], "hold_ms": 99999999999}"#;
    let forever = br#"{"format": "farside lease", "version": 1, "volume": "v", "point": 900, "hold_ms": 99999999999, "host": "", "process": 0, "wall_ms": 0}"#;
    for content in [&newer[..], &forever[..], b"", &[b' '; 5000]] {
        let mut site = Site::new();
        block_on(site.bucket.create(&names().lease([7; 16]), content.to_vec().into())).expect("put");
        block_on(site.bucket.create(&names().lease_clock([7; 16]), Vec::new().into())).expect("put");
        assert_eq!(site.collect(), 0);
        site.bucket.pass_ms(HOLD_MS_MAX as i64 + 1);
        assert_eq!(site.sweep(), 1);
        assert_eq!(site.bucket.names("leases"), [""; 0], "with what a collector left");
    }
}

#[test]
fn a_check_names_who_reads() {
    let mut site = Site::new();
    let reader = site.read(site.old).expect("open");
    let found = |site: &Site| {
        let report = check(&StoreReader::open_bucket(site.backend()).expect("open"), &|_| true).expect("check");
        assert!(report.worst().is_none_or(|worst| worst == Severity::Note), "{report:?}");
        report.findings.into_iter().map(|finding| finding.text).filter(|text| text.contains("lease")).collect::<Vec<_>>()
    };
    let texts = found(&site);
    let words = format!("process {} of ", std::process::id());
    assert!(texts.len() == 1 && texts[0].contains(&words) && texts[0].contains("keeps what it needs"), "{texts:?}");
    assert!(texts[0].contains(&format!("point {} of volume v", site.old)), "{texts:?}");
    site.bucket.pass_ms(HOLD_MS as i64 + 1);
    site.live(0);
    let texts = found(&site);
    assert!(texts.len() == 1 && texts[0].contains("has expired"), "{texts:?}");
    drop(reader);
    assert_eq!(found(&site), [""; 0]);
}

/// Nothing keeps what a check has not looked at yet: it may take longer than the day that is left.
#[test]
fn what_is_given_up_and_deleted_while_a_check_looks_is_no_damage() {
    for requests in 0..4 {
        let (site, bucket) = Site::shared();
        let (reader, old_part) = {
            let site = site.lock().expect("lock");
            (StoreReader::open_bucket(site.backend()).expect("open"), site.old_part())
        };
        // The first is for the footer.
        (0..requests).for_each(|_| bucket.meet(Met::Range, When::Before, &old_part, || {}));
        let collector = Arc::clone(&site);
        bucket.meet(Met::Range, When::Before, &old_part, move || assert_eq!(collector.lock().expect("lock").collect(), 1));
        let report = check(&reader, &|_| true).expect("check");
        assert!(report.worst().is_none_or(|worst| worst == Severity::Note), "after {requests} requests: {report:?}");
        assert!(bucket.all_met() || requests > 1, "it was deleted meanwhile");
        // What goes without that is.
        let newest = bucket.names("/segments/").pop().expect("a segment");
        block_on(bucket.delete(&ObjectName::new(newest.clone()).expect("name"))).expect("lost");
        let report = check(&reader, &|_| true).expect("check");
        let worst = report.findings.first().expect("a finding");
        assert_eq!((worst.severity, worst.object.as_deref()), (Severity::Error, Some(newest.as_str())), "{report:?}");
    }
}
