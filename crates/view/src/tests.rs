use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use farside_blockio::{Extent, ExtentKind, Waker};
use farside_region::{ByteExtent, ByteOffset, Geometry, GranuleIndex, GranuleRun, RegionIndex, Slot, mutation};
use farside_store::{AlignedBytes, StoreError};
use nix::errno::Errno;
use proptest::prelude::*;

use super::*;

/// Three regions of sixteen granules, and a short granule at the end.
pub(crate) const BYTES: u64 = 3 * 16 * 4096 + 512;

/// A point in memory: what each byte is follows from its place, but for the second region, which is zeroes.
pub(crate) struct Fake {
    pub(crate) geometry: Geometry,
    reads: Arc<AtomicU64>,
    is_away: Arc<AtomicBool>,
    /// For ever.
    fails: fn(RegionIndex) -> Option<StoreError>,
    unreadable: Vec<GranuleRun>,
    lost: Arc<Mutex<Vec<GranuleRun>>>,
    /// Done in the midst of the next read.
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;

fn byte_at(offset: u64) -> u8 {
    if offset / (16 * 4096) == 1 { 0 } else { (offset / 512 % 251) as u8 + 1 }
}

pub(crate) fn below() -> Vec<u8> {
    (0..BYTES).map(byte_at).collect()
}

impl Fake {
    pub(crate) fn new() -> Self {
        let geometry = Geometry::with_shape(BYTES, 12, 4).expect("valid");
        Self {
            geometry,
            reads: Arc::default(),
            is_away: Arc::default(),
            fails: |_| None,
            unreadable: Vec::new(),
            lost: Arc::default(),
            meanwhile: Arc::default(),
        }
    }

    fn view(self, overlay: Option<&Path>) -> View<Self> {
        let overlay = overlay.map(|dir| Overlay::open(dir, &origin("1-aaaa"), &self.geometry).expect("an overlay"));
        View::new(self, overlay, 2 * 16 * 4096, Box::new(|_| {}))
    }
}

impl Base for Fake {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn is_zero(&self, region: RegionIndex) -> bool {
        region.0 == 1
    }

    fn read(&self, region: RegionIndex) -> Result<Region, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.meanwhile.lock().expect("not poisoned").take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Remote { doing: "reading", what: "an object".into(), why: "no answer".into() });
        }
        if let Some(error) = (self.fails)(region) {
            return Err(error);
        }
        let extent = self.geometry.bytes_of(self.geometry.region_run(region));
        let mut bytes = AlignedBytes::default();
        bytes.reset(extent.len as usize);
        (extent.offset.0..).zip(bytes.iter_mut()).for_each(|(at, byte)| *byte = byte_at(at));
        let unreadable = self.unreadable.clone();
        let lost = self.lost.lock().expect("not poisoned").clone();
        lost.iter().for_each(|run| {
            let hole = self.geometry.bytes_of(*run);
            let is_lost = |at: u64| hole.offset.0 <= at && at < hole.offset.0 + hole.len;
            (extent.offset.0..).zip(bytes.iter_mut()).filter(|(at, _)| is_lost(*at)).for_each(|(_, byte)| *byte = 0);
        });
        Ok(Region { bytes, unreadable, lost: (!lost.is_empty()).then_some(Lost { runs: lost, why: StoreError::Stopped }) })
    }
}

pub(crate) fn origin(point: &str) -> Origin {
    Origin {
        store: "5e".into(),
        volume: "web1/default/data".into(),
        volume_id: "01".into(),
        point: point.into(),
        volume_bytes: BYTES,
        granule_bytes: 4096,
    }
}

pub(crate) fn read(view: &View<Fake>, offset: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0xee; len as usize];
    view.read(offset, &mut out).expect("read");
    out
}

pub(crate) fn extent(offset: u64, len: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(offset), len }
}

#[test]
fn it_is_known_whether_somebody_waits_for_the_base() {
    let fake = Fake::new();
    let (away, meanwhile) = (fake.is_away.clone(), fake.meanwhile.clone());
    let view = Arc::new(fake.view(None));
    let during = Arc::new(AtomicBool::new(false));
    let look = |how: &dyn Fn()| {
        let (view, seen) = (view.clone(), during.clone());
        *meanwhile.lock().expect("not poisoned") = Some(Box::new(move || seen.store(view.is_fetching(), Ordering::SeqCst)));
        how();
        during.swap(false, Ordering::SeqCst)
    };
    assert!(!view.is_fetching());
    assert!(look(&|| drop(read(&view, 0, 100))));
    assert!(look(&|| view.fetch_ahead(RegionIndex(2))));
    away.store(true, Ordering::SeqCst);
    assert!(look(&|| assert_eq!(view.read(BYTES - 100, &mut [0; 100]), Err(Errno::EIO))));
    away.store(false, Ordering::SeqCst);
    assert!(!look(&|| drop(view.region_to_fill(RegionIndex(3)))), "nobody waits for what is filled");
    assert!(!view.is_fetching());
}

#[test]
fn what_is_read_is_the_point_and_nothing_is_fetched_twice_or_for_zeroes() {
    let fake = Fake::new();
    let reads = fake.reads.clone();
    let view = fake.view(None);
    assert!(read(&view, 0, BYTES) == below());
    assert_eq!(reads.load(Ordering::SeqCst), 3, "of zeroes nothing is read");
    // There is room for two of the three.
    assert!(read(&view, BYTES - 600, 600) == below()[BYTES as usize - 600..]);
    assert_eq!(reads.load(Ordering::SeqCst), 3);
    assert_eq!(read(&view, 7, 3), below()[7..10]);
    assert_eq!(reads.load(Ordering::SeqCst), 4, "the first one had to go");
    assert_eq!(view.read(BYTES - 1, &mut [0; 2]), Err(Errno::EINVAL));
    assert_eq!(view.write(0, &[0]), Err(Errno::EROFS));
    assert_eq!(view.zero(extent(0, 1), false), Err(Errno::EROFS));
    view.flush().expect("nothing is to be flushed");
}

#[test]
fn who_reads_in_sequence_finds_what_was_fetched_ahead() {
    let region = 16 * 4096;
    let fake = Fake { geometry: Geometry::with_shape(9 * region, 12, 4).expect("valid"), ..Fake::new() };
    let (reads, is_away) = (fake.reads.clone(), fake.is_away.clone());
    let view = View::new(fake, None, 16 * region, Box::new(|_| {}));
    let fetch = || view.wanted().try_iter().map(|wanted| view.fetch_ahead(wanted)).count();
    let is_right = |offset: u64| read(&view, offset, 512) == vec![byte_at(offset); 512];
    assert!(is_right(0) && is_right(2 * region) && reads.load(Ordering::SeqCst) == 2);
    assert_eq!(fetch(), 1);
    assert!(is_right(3 * region) && reads.load(Ordering::SeqCst) == 3, "it was there");
    assert_eq!(fetch(), 2);
    view.fetch_ahead(RegionIndex(4)); // it is not fetched twice
    assert_eq!(reads.load(Ordering::SeqCst), 5);
    // A store that does not answer is an error only for who reads, and nothing is fetched ahead until somebody reads in sequence again.
    is_away.store(true, Ordering::SeqCst);
    assert!(is_right(4 * region));
    assert_eq!(fetch(), 1, "the others are not tried");
    is_away.store(false, Ordering::SeqCst);
    assert!(is_right(5 * region));
    assert_eq!((fetch(), reads.load(Ordering::SeqCst)), (0, 6));
    assert!(is_right(6 * region));
    assert_eq!(fetch(), 1);
}

#[test]
fn a_view_is_fetched_ahead_until_its_last_queue_ends() {
    let view = Arc::new(Fake::new().view(None));
    let queue = || ViewQueue::new(Arc::clone(&view), 1, &Waker::new().expect("a waker")).expect("threads");
    let (socket, device) = (queue(), queue());
    drop(device);
    assert!(view.fetches_ahead(), "the other one is served on");
    drop(socket);
    assert!(!view.fetches_ahead());
}

#[test]
fn what_cannot_be_read_is_an_error_there_and_is_tried_again() {
    let mut fake = Fake::new();
    fake.unreadable = vec![GranuleRun { start: GranuleIndex(3), count: 2 }];
    let (is_away, reads) = (fake.is_away.clone(), fake.reads.clone());
    let dir = tempfile::tempdir().expect("temp dir");
    let told = Arc::new(AtomicU64::new(0));
    let overlay = Overlay::open(dir.path(), &origin("1-aaaa"), &fake.geometry).expect("an overlay");
    let tell = told.clone();
    let view = View::new(
        fake,
        Some(overlay),
        1,
        Box::new(move |_| {
            tell.fetch_add(1, Ordering::SeqCst);
        }),
    );
    is_away.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(view.read(0, &mut [0]), Err(Errno::EIO));
        assert_eq!(view.write(1, &[1]), Err(Errno::EIO), "a part of a granule needs the rest of it");
    }
    view.write(4096, &[5; 4096]).expect("a whole granule needs nothing");
    assert_eq!(told.load(Ordering::SeqCst), 1, "once is enough");
    is_away.store(false, Ordering::SeqCst);
    assert_eq!(read(&view, 0, 4096), below()[..4096]);
    assert_eq!(reads.load(Ordering::SeqCst), 5, "each failure was a try");
    // What the source could not read.
    assert_eq!(view.read(3 * 4096 - 1, &mut [0; 2]), Err(Errno::EIO));
    assert_eq!(view.read(5 * 4096 - 1, &mut [0; 2]), Err(Errno::EIO));
    assert_eq!(read(&view, 5 * 4096, 10), below()[5 * 4096..][..10]);
    view.zero(extent(3 * 4096, 2 * 4096), false).expect("whole granules");
    assert_eq!(read(&view, 3 * 4096, 2 * 4096), [0; 2 * 4096]);
}

#[test]
fn what_the_store_has_lost_is_an_error_in_its_granules_and_looked_for_again() {
    let fake = Fake::new();
    let (lost, reads) = (fake.lost.clone(), fake.reads.clone());
    *lost.lock().expect("not poisoned") = vec![GranuleRun { start: GranuleIndex(3), count: 2 }];
    let dir = tempfile::tempdir().expect("temp dir");
    let view = fake.view(Some(dir.path()));
    assert_eq!(read(&view, 0, 3 * 4096), below()[..3 * 4096]);
    assert_eq!(read(&view, 5 * 4096, 4096), below()[5 * 4096..][..4096]);
    assert_eq!(reads.load(Ordering::SeqCst), 1, "what is left is kept");
    assert_eq!(view.read(3 * 4096 - 1, &mut [0; 2]), Err(Errno::EIO));
    assert_eq!(view.read(5 * 4096 - 1, &mut [0; 2]), Err(Errno::EIO));
    assert_eq!(view.write(4 * 4096 + 1, &[1]), Err(Errno::EIO), "a part of a granule needs the rest of it");
    view.write(3 * 4096, &[9; 4096]).expect("a whole one does not");
    assert_eq!(read(&view, 0, 4 * 4096)[3 * 4096..], [9; 4096]);
    let so_far = reads.load(Ordering::SeqCst);
    lost.lock().expect("not poisoned").clear();
    assert_eq!(read(&view, 4 * 4096, 4096), below()[4 * 4096..][..4096], "it was put back");
    assert_eq!(read(&view, 0, 3 * 4096), below()[..3 * 4096]);
    assert_eq!(reads.load(Ordering::SeqCst), so_far + 1);
}

/// An outage of a large part of a volume is no reason to say nothing of its damage.
#[test]
fn damage_is_said_also_after_an_outage_and_the_next_outage_too() {
    let region = 16 * 4096;
    let fake = Fake { geometry: Geometry::with_shape(1100 * region, 12, 4).expect("valid"), ..Fake::new() };
    let (is_away, lost) = (fake.is_away.clone(), fake.lost.clone());
    let told = Arc::new(AtomicU64::new(0));
    let tell = told.clone();
    let count = move |_: &StoreError| {
        tell.fetch_add(1, Ordering::SeqCst);
    };
    let view = View::new(fake, None, 1, Box::new(count));
    let read = |at: u64| view.read(at * region, &mut [0]);
    let said = || told.swap(0, Ordering::SeqCst);
    is_away.store(true, Ordering::SeqCst);
    (2..1100).for_each(|at| assert_eq!(read(at), Err(Errno::EIO)));
    assert_eq!((read(0), read(0), said()), (Err(Errno::EIO), Err(Errno::EIO), 1000), "not of more, and of none twice");
    is_away.store(false, Ordering::SeqCst);
    *lost.lock().expect("not poisoned") = vec![GranuleRun { start: GranuleIndex(2 * 16), count: 1 }];
    assert_eq!((read(2), read(2), said()), (Err(Errno::EIO), Err(Errno::EIO), 1));
    lost.lock().expect("not poisoned").clear();
    assert_eq!((read(2), read(3), said()), (Ok(()), Ok(()), 0));
    is_away.store(true, Ordering::SeqCst);
    assert_eq!((read(2), read(2), said()), (Err(Errno::EIO), Err(Errno::EIO), 1), "that is another outage");
}

#[test]
fn an_overlay_belongs_to_one_point_and_one_process() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (geometry, at) = (Fake::new().geometry, dir.path().join("deep/overlay"));
    let open = |point: &str| Overlay::open(&at, &origin(point), &geometry);
    let first = open("1-aaaa").expect("made");
    assert!(matches!(open("1-aaaa"), Err(OverlayError::InUse { .. })) && !Overlay::is_free(&at).expect("known"));
    let copies = first.copies_of_locks();
    drop(first);
    assert!(Overlay::is_free(&at).expect("known"), "a program that is just being started keeps it");
    drop(open("1-aaaa").expect("neither of its locks"));
    drop(copies);
    let another = open("2-bbbb").expect_err("of another point");
    assert!(another.to_string().contains("point 1-aaaa of web1/default/data"), "{another}");
    open("1-aaaa").expect("it is there");
    std::fs::write(at.join("map"), "short").expect("written");
    assert!(matches!(open("1-aaaa"), Err(OverlayError::Unknown { .. })));
    let text = std::fs::read_to_string(at.join("overlay.json")).expect("there");
    std::fs::write(at.join("overlay.json"), text.replace("\"version\": 2", "\"version\": 3")).expect("written");
    let newer = open("1-aaaa").expect_err("of a later program");
    assert!(newer.to_string().contains("version 3"), "{newer}");
    // Without its description it is no beginning that was interrupted: there is something in it.
    std::fs::remove_file(at.join("overlay.json")).expect("removed");
    assert!(matches!(open("1-aaaa"), Err(OverlayError::NotOne { .. })));
    assert_eq!(std::fs::read(at.join("map")).expect("there"), b"short");
    std::fs::write(at.join("map"), "").expect("written");
    assert_eq!(open("3-cccc").expect("begun anew").written_bytes(), 0);
    // Somebody's folder is none ever.
    for (name, folder) in [("thesis.tex", "a"), ("data", "b")] {
        let folder = dir.path().join(folder);
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join(name), "x").expect("written");
        assert!(matches!(Overlay::open(&folder, &origin("1-aaaa"), &geometry), Err(OverlayError::NotOne { .. })));
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 1, "nothing is made there");
    }
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).expect("made");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).expect("set");
    assert!(matches!(Overlay::open(&shared, &origin("1-aaaa"), &geometry), Err(OverlayError::OfOthers { .. })));
}

#[test]
fn what_is_zeroes_already_takes_no_room() {
    let dir = tempfile::tempdir().expect("temp dir");
    let view = Fake::new().view(Some(dir.path()));
    let region = 16 * 4096;
    view.zero(extent(region, region), false).expect("zeroed");
    assert_eq!(view.overlay().expect("one").written_bytes(), 0);
    view.zero(extent(region, 4096), true).expect("its space is wanted");
    view.write(region + 4096, &[1; 4096]).expect("written");
    view.zero(extent(region, region), false).expect("zeroed");
    assert_eq!(read(&view, region, region), vec![0; region as usize]);
    let mut out = Vec::new();
    view.extents(extent(0, BYTES), 9, &mut out).expect("told");
    assert_eq!(out, [Extent { len: BYTES, kind: ExtentKind::Data }], "what was written is no hole, whatever it is");
    let mut out = Vec::new();
    Fake::new().view(None).extents(extent(512, BYTES - 512), 2, &mut out).expect("told");
    let hole = Extent { len: region, kind: ExtentKind::Hole };
    assert_eq!(out, [Extent { len: region - 512, kind: ExtentKind::Data }, hole], "at most two");
    let mut out = Vec::new();
    Fake::new().view(None).extents(extent(512, BYTES - 512), 1, &mut out).expect("told");
    assert_eq!(out, [Extent { len: region - 512, kind: ExtentKind::Data }], "what comes after the hole is not next to it");
}

#[test]
fn a_trim_fetches_nothing_and_leaves_parts_of_granules() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Fake::new();
    fake.is_away.store(true, Ordering::SeqCst);
    let (reads, is_away) = (fake.reads.clone(), fake.is_away.clone());
    let view = fake.view(Some(dir.path()));
    view.trim(extent(100, 3 * 4096)).expect("a hint");
    view.trim(extent(3 * 4096 + 512, 1024)).expect("less than a granule");
    view.trim(extent(BYTES - 4096 - 512, 4096 + 512)).expect("its last granule is short, and whole");
    assert_eq!(reads.load(Ordering::SeqCst), 0);
    assert_eq!(view.overlay().expect("one").written_bytes(), 4 * 4096);
    is_away.store(false, Ordering::SeqCst);
    let mut expected = below();
    expected[4096..3 * 4096].fill(0);
    expected[BYTES as usize - 4096 - 512..].fill(0);
    assert!(read(&view, 0, BYTES) == expected);
    // Zeroes are no hint.
    view.zero(extent(100, 1), false).expect("zeroed");
    assert_eq!(read(&view, 99, 3), [expected[99], 0, expected[101]]);
    assert_eq!((view.trim(extent(0, BYTES + 1)), view.trim(extent(u64::MAX, 2))), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
}

#[test]
fn a_point_becomes_a_file_with_what_was_written_before_meanwhile_and_later() {
    mutation::tell(&[("a fill lies over what was written", "what was written")], || {
        let dir = tempfile::tempdir().expect("temp dir");
        let (folder, file) = (dir.path().join("overlay"), dir.path().join("data.img"));
        let fake = Fake::new();
        let (meanwhile, region) = (fake.meanwhile.clone(), RegionIndex(0));
        let view = Arc::new(fake.view(Some(folder.as_path())));
        view.write(4096, &[1; 4096]).expect("written, and nothing is fetched for it");
        let other = view.clone();
        let write = move || other.write(3 * 4096, &[2; 8192]).expect("written in the midst of a fill");
        *meanwhile.lock().expect("not poisoned") = Some(Box::new(write));
        let mut expected = below();
        expected[4096..8192].fill(1);
        expected[3 * 4096..][..8192].fill(2);
        view.fill_region(region).expect("filled");
        assert!(read(&view, 0, 16 * 4096) == expected[..16 * 4096], "what was written is gone");
        assert!(matches!(view.overlay().expect("one").become_file(&file), Err(OverlayError::NotWhole { .. })));
        assert_eq!(view.fill(3, &|_| true), Ok(0));
        view.overlay().expect("one").become_file(&file).expect("whole");
        assert!(std::fs::read(&file).expect("there") == expected, "what was written is not in the file");
        assert!(!folder.exists());
        view.write(BYTES - 512, &[3; 512]).expect("it is open still");
        view.flush().expect("flushed");
        expected[BYTES as usize - 512..].fill(3);
        assert!(read(&view, 0, BYTES) == expected && std::fs::read(&file).expect("there") == expected);
    });
}

/// Whose `data` a file is by accident, or by a person's own link, is still an overlay.
#[test]
fn only_a_folder_that_became_the_file_is_tidied_away() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (folder, file, link) = (dir.path().join("overlay"), dir.path().join("data.img"), dir.path().join("mine.img"));
    let open = || Overlay::open(&folder, &origin("1-aaaa"), &Fake::new().geometry);
    let view = Arc::new(Fake::new().view(Some(folder.as_path())));
    view.write(4096, &[1; 4096]).expect("written");
    view.flush().expect("flushed");
    std::fs::hard_link(folder.join("data"), &link).expect("linked");
    for name in [&link, &folder.join("data")] {
        assert!(!Overlay::tidy_away(&folder, name) && folder.join("map").exists(), "{}", name.display());
    }
    assert!(Overlay::holds(&folder, &folder.join("data")) && !Overlay::holds(&folder, &link));
    std::fs::remove_file(&link).expect("removed");

    // Killed after the link: the folder is there still.
    assert_eq!(view.fill(2, &|_| true), Ok(0));
    let kept = dir.path().join("kept");
    assert!(std::process::Command::new("cp").arg("-al").args([&folder, &kept]).status().expect("it starts").success());
    view.overlay().expect("one").become_file(&file).expect("whole");
    drop(view);
    std::fs::write(kept.join("whole"), file.as_os_str().as_encoded_bytes()).expect("written");
    std::fs::rename(&kept, &folder).expect("as it was before it was tidied away");
    let became = open().expect_err("it is a file by now");
    assert!(matches!(&became, OverlayError::BecameFile { file: it, .. } if *it == file), "{became}");
    let lock = std::fs::File::open(folder.join("lock")).expect("there");
    lock.lock().expect("locked");
    assert!(!Overlay::tidy_away(&folder, &file), "somebody has it open");
    drop(lock);
    assert!(Overlay::tidy_away(&folder, &file) && !folder.exists() && file.exists());
}

/// Who moved the folder of an overlay that is open, and made another one there, keeps that.
#[test]
fn another_overlay_in_the_place_of_one_does_not_become_its_file() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (folder, file) = (dir.path().join("overlay"), dir.path().join("data.img"));
    let view = Fake::new().view(Some(folder.as_path()));
    assert_eq!(view.fill(2, &|_| true), Ok(0));
    std::fs::rename(&folder, dir.path().join("moved")).expect("moved");
    let other = Overlay::open(&folder, &origin("1-aaaa"), &Fake::new().geometry).expect("another");
    assert!(view.overlay().expect("one").become_file(&file).is_err() && !file.exists());
    drop(other);
    Overlay::open(&folder, &origin("1-aaaa"), &Fake::new().geometry).expect("it is as it was");
}

#[test]
fn a_fill_goes_on_where_it_was_and_begins_with_what_is_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let view = Fake::new().view(Some(dir.path())).read_only();
    assert!(!view.is_writable());
    assert_eq!((view.write(0, &[0]), view.trim(extent(0, 4096))), (Err(Errno::EROFS), Err(Errno::EROFS)));
    read(&view, 2 * 16 * 4096, 1);
    // The third region, which is in the cache, and then the first one.
    let regions = AtomicU64::new(0);
    let missing = view.fill(1, &|_| regions.fetch_add(1, Ordering::SeqCst) < 2).expect("it was ended early");
    assert_eq!(missing, 17 * 4096);
    drop(view);
    let fake = Fake::new();
    let reads = fake.reads.clone();
    let view = fake.view(Some(dir.path())).read_only();
    assert!(read(&view, 0, 16 * 4096) == below()[..16 * 4096] && read(&view, 32 * 4096, 4096) == below()[32 * 4096..][..4096]);
    assert_eq!(reads.load(Ordering::SeqCst), 0, "it is there");
    assert_eq!(view.fill(1, &|_| true), Ok(0));
    assert_eq!(reads.load(Ordering::SeqCst), 1, "of the last region, which is short");
}

/// An outage is no damage: who fills waits for its end, or for his own.
#[test]
fn a_store_that_does_not_answer_is_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Fake::new();
    let is_away = fake.is_away.clone();
    is_away.store(true, Ordering::SeqCst);
    let view = fake.view(Some(dir.path()));
    let heard = AtomicU64::new(0);
    let missing = view.fill(2, &|_| heard.fetch_add(1, Ordering::SeqCst) < 50).expect("it was ended early");
    assert_eq!(missing, BYTES.div_ceil(4096) * 4096 - 16 * 4096, "zeroes are known without it");
    let heard = AtomicU64::new(0);
    let go_on = |_| {
        if heard.fetch_add(1, Ordering::SeqCst) == 50 {
            is_away.store(false, Ordering::SeqCst);
        }
        true
    };
    assert_eq!(view.fill(2, &go_on), Ok(0));
}

/// It would be asked without end otherwise, and without a pause while somebody writes.
#[test]
fn what_is_no_outage_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let denied = |region: RegionIndex| (region.0 == 2).then(|| StoreError::Denied { path: "/store/part".into() });
    let fake = Fake { fails: denied, ..Fake::new() };
    let reads = fake.reads.clone();
    let view = fake.view(Some(dir.path()));
    let heard = AtomicU64::new(0);
    let missing = view.fill(2, &|_| heard.fetch_add(1, Ordering::SeqCst) < 1000);
    assert!(missing == Ok(16 * 4096) && heard.into_inner() < 1000, "{missing:?}");
    assert_eq!(reads.load(Ordering::SeqCst), 4, "that one is tried again, since others could be read");

    let dir = tempfile::tempdir().expect("temp dir");
    let deleted = |_| Some(StoreError::PointDeleted { volume: "data".into(), point: Slot(1), slot: Slot(2) });
    let fake = Fake { fails: deleted, ..Fake::new() };
    let reads = fake.reads.clone();
    let view = fake.view(Some(dir.path()));
    let heard = AtomicU64::new(0);
    let missing = view.fill(1, &|_| {
        let so_far = heard.fetch_add(1, Ordering::SeqCst);
        view.write((32 + so_far) * 4096, &[1; 4096]).expect("written");
        so_far < 15
    });
    assert_eq!(missing, Ok((49 - 16 - 5) * 4096), "but for the zeroes, and what was written");
    assert_eq!((reads.load(Ordering::SeqCst), view.is_deleted()), (3, true));
}

#[test]
fn a_store_that_does_not_answer_is_left_alone_for_a_while_whoever_writes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Fake::new();
    fake.is_away.store(true, Ordering::SeqCst);
    let reads = fake.reads.clone();
    let view = fake.view(Some(dir.path()));
    // Through the volume it hears of each region, and of its end; and at least once before it begins anew.
    let (each, heard) = (5, AtomicU64::new(0));
    let missing = view.fill(1, &|_| {
        let so_far = heard.fetch_add(1, Ordering::SeqCst);
        if so_far.is_multiple_of(each) {
            view.write((32 + so_far / each) * 4096, &[1; 4096]).expect("written");
        }
        so_far < 60
    });
    assert!(missing.is_ok_and(|missing| missing > 0));
    let turns = reads.load(Ordering::SeqCst).div_ceil(3);
    assert!(turns <= 10, "{turns}");
}

#[test]
fn what_cannot_be_read_keeps_the_file_away_until_it_is_written() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (folder, file) = (dir.path().join("overlay"), dir.path().join("data.img"));
    let mut fake = Fake::new();
    fake.unreadable = vec![GranuleRun { start: GranuleIndex(3), count: 2 }];
    let lost = fake.lost.clone();
    *lost.lock().expect("not poisoned") = vec![GranuleRun { start: GranuleIndex(40), count: 1 }];
    let view = fake.view(Some(folder.as_path()));
    assert_eq!(view.fill(2, &|_| true), Ok(3 * 4096));
    assert_eq!(view.read(3 * 4096, &mut [0]), Err(Errno::EIO));
    view.write(3 * 4096, &[1; 8192]).expect("written");
    lost.lock().expect("not poisoned").clear();
    assert_eq!(view.fill(2, &|_| true), Ok(0));
    std::fs::write(&file, "somebody's").expect("written");
    view.overlay().expect("one").become_file(&file).expect_err("it is somebody's");
    assert!(!Overlay::tidy_away(&folder, &file) && std::fs::read(&file).expect("there") == b"somebody's");
    std::fs::remove_file(&file).expect("removed");
    // As a power cut leaves it in the midst of that.
    std::fs::hard_link(folder.join("data"), &file).expect("made");
    assert!(!Overlay::tidy_away(&folder, &file), "it is open");
    drop(view);
    assert!(Overlay::tidy_away(&folder, &file) && !folder.exists());
    let mut expected = below();
    expected[3 * 4096..5 * 4096].fill(1);
    assert!(std::fs::read(&file).expect("there") == expected);
}

#[derive(Clone, Debug)]
enum Do {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
    /// Closed in order, or as a process that was killed.
    Again(bool),
}

fn deeds() -> impl Strategy<Value = Vec<Do>> {
    let place = (0..BYTES, 1..3 * 4096u64);
    let one = prop_oneof![
        6 => (place.clone(), 1..=u8::MAX).prop_map(|((at, len), byte)| Do::Write(at, len, byte)),
        2 => (place, any::<bool>()).prop_map(|((at, len), no_hole)| Do::Zero(at, len, no_hole)),
        1 => Just(Do::Flush),
        1 => any::<bool>().prop_map(Do::Again),
    ];
    prop::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done: what is read is what was written last, and what was flushed is there in every later process; what was not is
    /// there too, or is what was there before.
    #[test]
    fn a_view_reads_what_was_written_and_keeps_what_was_flushed(deeds in deeds()) {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut view = Fake::new().view(Some(dir.path()));
        let mut now = below();
        // By granule, what it may be after a kill: as of the last flush, or as at any time since.
        let mut maybe: Vec<Vec<Vec<u8>>> = now.chunks(4096).map(|granule| vec![granule.to_vec()]).collect();
        for deed in deeds {
            match deed {
                Do::Write(at, len, byte) => {
                    let len = len.min(BYTES - at);
                    view.write(at, &vec![byte; len as usize]).expect("written");
                    now[at as usize..(at + len) as usize].fill(byte);
                }
                Do::Zero(at, len, no_hole) => {
                    let len = len.min(BYTES - at);
                    view.zero(extent(at, len), no_hole).expect("zeroed");
                    now[at as usize..(at + len) as usize].fill(0);
                }
                Do::Flush => {
                    view.flush().expect("flushed");
                    maybe.iter_mut().for_each(Vec::clear);
                }
                Do::Again(in_order) => {
                    if in_order {
                        view.flush().expect("flushed");
                        maybe.iter_mut().for_each(Vec::clear);
                    }
                    drop(view);
                    view = Fake::new().view(Some(dir.path()));
                    let found = read(&view, 0, BYTES);
                    for (at, (granule, maybe)) in found.chunks(4096).zip(&maybe).enumerate() {
                        let known = now.chunks(4096).nth(at).expect("there");
                        prop_assert!(granule == known || maybe.iter().any(|m| m == granule), "granule {at}");
                    }
                    now = found;
                    maybe.iter_mut().for_each(Vec::clear);
                }
            }
            for (granule, maybe) in now.chunks(4096).zip(&mut maybe) {
                if maybe.last().is_none_or(|last| last != granule) {
                    maybe.push(granule.to_vec());
                }
            }
            prop_assert!(read(&view, 0, BYTES) == now);
        }
    }
}
