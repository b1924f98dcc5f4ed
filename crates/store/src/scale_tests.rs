//! A day of points, one a second: how long what is done with all of them takes. A thousand points unless it is asked for more,
//! since it makes two files for each: `FARSIDE_POINTS=86400 cargo test --release -p farside-store a_day_of_points -- --nocapture`

use std::fs;
use std::path::Path;
use std::time::Instant;

use farside_ledger::{Grid, LayerEntry, LayerKind, PartEntry, Policy, Stamp, State, group_id};
use farside_region::{GranuleIndex, GranuleRun, RegionIndex, RegionSet, Slot, Term};

use crate::attempt::Attempt;
use crate::liveness::PartName;
use crate::names::GroupNames;
use crate::testkit::{Fill, TempStore, TestVolume, granule, layers, name};

const GRANULES: u64 = 256;

/// Writes the ledger and the segments of a volume with a point a second, without syncing anything. Point `i` holds `i` in
/// granule `i` (modulo).
fn make(store: &TempStore, points: u64) -> TestVolume {
    drop(store.group());
    let names = GroupNames::new(name("host"), name("default"));
    let mut state = State::new(group_id(&names.source, &names.group));
    let mut volume = TestVolume::new("v", GRANULES);
    let put = |file: &Path, bytes: &[u8]| {
        fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
        fs::write(file, bytes).expect("write");
    };
    let mut append = |body, second: u64| {
        let stamp = Stamp { writer: [1; 16], mono_ms: second * 1000, wall_ms: second as i64 * 1000 };
        let Attempt { records, bytes } = Attempt::new(&state, body, [0; 16], stamp).expect("a record");
        let (record, digest) = &records[0];
        put(&store.path().join(names.record(record.slot).as_str()), &bytes);
        assert!(state.apply(record, *digest).is_done());
    };
    append(volume.claim_body(None), 0);
    volume.term = Term(0);
    for i in 0..points {
        let key = volume.key(i + 1);
        let run = if i == 0 { (0, GRANULES, Fill::Byte(0)) } else { (i % GRANULES, 1, Fill::Byte(i as u8)) };
        let (bytes, summary) = volume.part(key, 0, &[run]);
        let part = PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest };
        put(&store.path().join(names.segment(&volume.meta.name, &PartName { layer: key, number: 0 }).as_str()), &bytes);
        let mut regions = RegionSet::new();
        regions.insert_range(volume.meta.geometry.regions_of(GranuleRun { start: GranuleIndex(run.0), count: run.1 }));
        let entry = LayerEntry {
            digest: farside_layer::layer_digest(&key, &[part.footer_digest]),
            key,
            parts: vec![part],
            regions,
            unreadable_regions: RegionSet::new(),
            volume_bytes: volume.meta.geometry.volume_bytes(),
        };
        append(layers(LayerKind::Point, vec![entry]), i);
    }
    volume
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = work();
    println!("{what}: {:.3} s", begun.elapsed().as_secs_f64());
    value
}

#[test]
fn a_day_of_points_is_nothing_special() {
    let points = std::env::var("FARSIDE_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000_u64);
    let store = TempStore::new();
    let volume = timed("making the files", || make(&store, points));
    let mut group = timed("opening", || store.group());
    assert_eq!(group.state().points().len() as u64, points);
    let all = Policy::without_grid(10, points * 1000);
    assert!(timed("nothing to prune", || group.prune_plan(&all)).is_none());
    let most = Policy::without_grid(10, (points - 300) * 1000);
    let gone = timed("pruning 300 points", || group.prune(&most)).expect("prune");
    assert!((299..=301).contains(&gone), "{gone}");
    let keep = u32::try_from(points / 2).expect("not so many");
    assert!(timed("half of them kept by number", || group.prune_plan(&Policy::without_grid(keep, 0))).is_some());
    let hours = |n: u64| std::time::Duration::from_secs(3600 * n);
    let grid = Policy { grid: Grid::of([(hours(1) / 1200, hours(1)), (hours(1), hours(9000))]), ..Policy::without_grid(10, 0) };
    assert!(timed("thinned out by a grid", || group.prune_plan(&grid)).is_some());
    timed("listing all", || group.points().len());
    let middle = Slot(points / 2);
    let reader = timed("opening a point in the middle", || group.point_reader(middle, volume.id())).expect("reader");
    let mut content = reader.content();
    reader.read_region(RegionIndex(0), &mut content).expect("read");
    // Layer i + 1 is in slot i + 1: the newest one up to the middle that wrote granule 3.
    let i = (0..points / 2).rev().find(|i| i % GRANULES == 3).expect("there is one");
    assert_eq!(content.bytes[3 * 512..4 * 512], granule(3, i as u8));
    drop((reader, group));
    drop(timed("opening again", || store.group()));
}
