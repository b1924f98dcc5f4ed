use std::fs;

use farside_ledger::{Body, LayerKind, Pin, Policy};
use farside_region::{RegionIndex, Slot};

use super::*;
use crate::testkit::{Fill, TempStore, TestVolume, granule};
use crate::{ReaderLock, Severity};

fn base(store: &TempStore) -> (TestVolume, Vec<Slot>) {
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let first = volume.base(&mut group, 1);
    let second = volume.publish(&mut group, LayerKind::Point, &[vec![(20, 4, Fill::Byte(2))]]).position.slot;
    (volume, vec![first, second])
}

fn checked(store: &TempStore) -> CheckReport {
    check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check")
}

fn segment(store: &TempStore, volume: &TestVolume, file: &str) -> std::path::PathBuf {
    store.path().join(format!("groups/host/default/segments/v/{}/{file}", volume.term))
}

#[test]
fn a_sound_store_has_no_findings_also_beside_its_receiver() {
    let store = TempStore::new();
    base(&store);
    let _receiver = store.open();
    let report = checked(&store);
    assert_eq!(report.findings, []);
    assert_eq!((report.groups, report.records, report.points, report.segments), (1, 3, 2, 2));
    assert!(report.segment_bytes > 0 && report.dead_bytes == 0);
}

#[test]
fn flipped_bits_are_named_by_volume_points_and_region() {
    let store = TempStore::new();
    let (volume, points) = base(&store);
    // Stored raw or compressed, the frame of granules 16..24 is region 2; of it, only the first point needs 20..24.
    let path = segment(&store, &volume, "1.0");
    let good = fs::read(&path).expect("read");
    let mut regions = std::collections::BTreeSet::new();
    for at in (0..good.len()).step_by(good.len() / 61) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).expect("write");
        let report = checked(&store);
        assert!(!report.findings.is_empty(), "byte {at} was not noticed");
        for finding in &report.findings {
            assert_eq!((finding.problem, finding.volume.clone()), (Problem::SegmentCorrupt, Some(volume.meta.name.clone())));
            if let Some(region) = finding.region {
                assert_eq!((finding.severity, finding.head), (Severity::Error, true), "{finding:?}");
                assert_eq!(finding.points, points, "{finding:?}");
                regions.insert(region);
            }
        }
    }
    assert_eq!(regions, (0..8).map(RegionIndex).collect(), "every region was named");
}

/// † Of a file that every point needs it was said that none does, which is to say that it may be deleted.
#[test]
fn damage_where_no_reader_looks_names_the_points_that_need_the_file() {
    let store = TempStore::new();
    let (volume, points) = base(&store);
    let path = segment(&store, &volume, "1.0");
    let good = fs::read(&path).expect("read");
    let flipped = [&[good[0] ^ 1], &good[1..]].concat();
    let longer = [&good[..], b"0123456"].concat();
    for bad in [flipped, longer] {
        fs::write(&path, &bad).expect("write");
        let findings = checked(&store).findings;
        let [finding] = &findings[..] else { panic!("one finding: {findings:?}") };
        assert_eq!((finding.severity, finding.problem), (Severity::Error, Problem::SegmentCorrupt), "{finding:?}");
        assert!(finding.points == points && finding.head && finding.region.is_none(), "{finding:?}");
        assert!(finding.text.contains("its content is whole") && !finding.text.contains("no retained point"), "{finding:?}");
    }
}

/// What could not be read was called damaged.
#[test]
fn what_cannot_be_looked_at_is_told_from_what_is_damaged() {
    let store = TempStore::new();
    let (volume, _) = base(&store);
    let path = segment(&store, &volume, "1.0");
    fs::remove_file(&path).expect("removed");
    // As root nothing is without permission.
    fs::create_dir(&path).expect("made");
    let found: Vec<_> = checked(&store).findings.iter().map(|f| (f.severity, f.problem)).collect();
    assert_eq!(found, [(Severity::Error, Problem::Unchecked)]);
    let denied = StoreError::Denied { path: path.clone() };
    let unreadable = StoreError::Unreadable { path, source: std::io::Error::from_raw_os_error(libc::EIO) };
    assert_eq!([unchecked(&denied), unchecked(&unreadable)], [Problem::Unchecked, Problem::Description]);
}

/// † What is staged of a group that lost its description was said to be of no group, and to be deleted.
#[test]
fn a_group_without_its_description_is_read_by_its_names_and_its_landing_is_not_to_be_deleted() {
    let store = TempStore::new();
    let (_, points) = base(&store);
    for group in ["host/default", "host/gone"] {
        fs::create_dir_all(store.path().join("landing").join(group)).expect("made");
    }
    let open = || crate::StoreReader::open(&store.path()).expect("open");
    let names = open().groups().expect("groups").groups.remove(0);
    fs::remove_file(store.path().join("groups/host/default/group.json")).expect("there");
    let found: Vec<_> = checked(&store).findings.into_iter().map(|f| (f.severity, f.object.unwrap_or_default())).collect();
    let missing = (Severity::Error, "groups/host/default/group.json".to_owned());
    assert_eq!(found, [missing, (Severity::Warning, "landing/host/gone".to_owned())]);

    assert_eq!(open().groups().expect("groups").strays, std::slice::from_ref(&names));
    let group = open().group(&names).expect("by its names");
    assert_eq!(group.points().iter().map(|point| point.slot).collect::<Vec<_>>(), points);
    assert!(!group.lacks_ledger().expect("looked at"));
    drop(group);
    // Under other names its records are not its.
    let other = GroupNames::new("host".parse().expect("a name"), "other".parse().expect("a name"));
    fs::rename(store.path().join("groups/host/default"), store.path().join("groups/host/other")).expect("renamed");
    let group = open().group_as_listed(&other).expect("it has a ledger");
    assert!(group.torn().is_some() && group.points().is_empty());
    fs::remove_dir_all(store.path().join("groups/host/other/ledger")).expect("removed");
    assert!(matches!(open().group(&other), Err(StoreError::NoSuchGroup { .. })), "nothing says what is there");
}

#[test]
fn content_without_any_ledger_is_told_from_a_group_that_is_new() {
    let store = TempStore::new();
    let names = store.group().names().clone();
    let lacks = || {
        let reader = crate::StoreReader::open(&store.path()).expect("open");
        reader.group_as_listed(&names).expect("a group").lacks_ledger().expect("looked at")
    };
    assert!(!lacks(), "it is new");
    base(&store);
    assert!(!lacks());
    fs::remove_dir_all(store.path().join("groups/host/default/ledger")).expect("removed");
    assert!(lacks());
}

#[test]
fn what_is_missing_torn_left_over_or_foreign_is_told_apart() {
    let store = TempStore::new();
    let (mut volume, points) = base(&store);
    let folder = segment(&store, &volume, "");
    fs::copy(folder.join("1.0"), folder.join("1.9")).expect("orphan");
    fs::copy(folder.join("1.0"), folder.join("3.0")).expect("staged");
    fs::write(store.path().join("groups/host/default/notes.txt"), "x").expect("foreign");
    let problems = |report: &CheckReport| report.findings.iter().map(|f| (f.severity, f.problem)).collect::<Vec<_>>();
    let before = store.files("");
    assert_eq!(
        problems(&checked(&store)),
        [(Severity::Warning, Problem::Foreign), (Severity::Warning, Problem::Orphan), (Severity::Note, Problem::Staged)]
    );
    assert_eq!(store.files(""), before, "nothing was changed");

    let mut group = store.group();
    volume.base(&mut group, 5);
    let reader = ReaderLock::share(&store.path()).expect("lock");
    group.prune(&Policy::without_grid(1, 0)).expect("prune");
    drop((group, reader));
    let report = checked(&store);
    let waiting = report.findings.iter().filter(|f| f.problem == Problem::AwaitsDeletion).count();
    assert_eq!(waiting, 2, "{:?}", report.findings);

    drop(store.group()); // sweeps
    fs::remove_file(folder.join("3.0")).expect("remove");
    let report = checked(&store);
    let missing = &report.findings[0];
    assert_eq!((missing.severity, missing.problem), (Severity::Error, Problem::SegmentMissing));
    assert!(!missing.points.contains(&points[0]) && missing.points.len() == 1, "{missing:?}");

    let record = store.path().join("groups/host/default/ledger/0/0");
    let mut bytes = fs::read(&record).expect("read");
    bytes[40] ^= 1;
    fs::write(&record, bytes).expect("write");
    let report = checked(&store);
    assert!(report.findings.iter().any(|f| f.problem == Problem::LedgerTorn && f.text.contains("slot 0")), "{report:?}");
}

#[test]
fn the_dead_ratio_counts_what_the_next_prune_gives_up() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let first = volume.base(&mut group, 1);
    group.append(Body::Pin(Pin { point: first, reason: "kept".into() })).expect("pin");
    volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(0, 64, Fill::Byte(2))]]);
    volume.base(&mut group, 3);
    drop(group);
    let report = checked(&store);
    assert!(report.dead_ratio() > 0.3 && report.dead_ratio() < 0.4, "one of three: {}", report.dead_ratio());
    let reader = crate::StoreReader::open(&store.path()).expect("open");
    let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
    let id = group.volume(&volume.meta.name).expect("found");
    let point = group.point_reader(first, id).expect("reader");
    let mut content = point.content();
    point.read_region(RegionIndex(0), &mut content).expect("read");
    assert_eq!(content.bytes[512..1024], granule(1, 1));
    let error = group.volume(&crate::testkit::name("w")).expect_err("none").to_string();
    assert!(error.contains("it has: v"), "{error}");
}

/// However many bad sectors a source has, what is lost is said.
#[test]
fn the_worst_findings_are_listed_first_and_what_is_left_out_is_counted() {
    let names = GroupNames::new("host".parse().expect("valid"), "default".parse().expect("valid"));
    let of = |severity, text: String| Finding { severity, text, ..finding(&names, Problem::PointDegraded) };
    let mut findings: Vec<Finding> = (0..FINDINGS_MAX + 5).map(|i| of(Severity::Warning, i.to_string())).collect();
    findings.push(of(Severity::Error, "a segment is gone".to_owned()));
    findings.push(of(Severity::Note, "it waits".to_owned()));
    let listed = worst_of(findings, &names);
    assert_eq!(listed.len(), FINDINGS_MAX + 1);
    assert_eq!((listed[0].severity, listed[0].text.as_str()), (Severity::Error, "a segment is gone"));
    let last = listed.last().expect("many");
    assert!(last.severity == Severity::Warning && last.text.starts_with("7 more findings"), "{}", last.text);
    assert_eq!(worst_of(listed[..3].to_vec(), &names).len(), 3);
}
