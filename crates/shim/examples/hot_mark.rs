//! What tracking costs a write to a hot region, in nanoseconds: `cargo run --profile dist -p farside-shim --example hot_mark`.
//!
//! *Mark*: from a started request to its write operation (intent, announce, epoch, mark, in-flight entry, look at a cut).
//! *Whole*: the same with start and completion. Nothing is written anywhere.

use std::hint::black_box;
use std::time::{Duration, Instant};

use farside_region::intent::{IntentLayout, Page, PageBits, PageIndex};
use farside_region::{ByteExtent, ByteOffset, Geometry, MapId};
use farside_shim::{Group, IoResult, Limits, Op, Step, VolumeConfig, Wakes};

const ROUNDS: usize = 40;
const BATCH: usize = 128;

fn main() {
    let geometry = Geometry::new(64 << 30).expect("valid");
    let config = VolumeConfig::new(geometry);
    let layout: IntentLayout = config.layout;
    let page = |p: PageIndex| {
        let bits = PageBits::first(layout.page_run(p).count);
        Page { map: MapId([0; 16]), index: p, seq: 1, bits }.encode(&layout)
    };
    let group = Group::new(&Limits::DEFAULT, Geometry::GRANULE_BYTES);
    let (_volume, mut queues, _owner) = group.open_volume(config, Wakes::none(1), MapId([0; 16]), &mut |p| [page(p), page(p)]);
    let queue = &mut queues[0];
    for (name, spread) in [("one region", 1u64), ("1 GiB", 256), ("64 GiB", 16_384)] {
        let (mut marks, mut wholes) = (Vec::new(), Vec::new());
        let mut at = 1u64;
        for round in 0..ROUNDS {
            let (mut mark, start) = (Duration::ZERO, Instant::now());
            for _ in 0..64 {
                let mut requests = Vec::with_capacity(BATCH);
                for _ in 0..BATCH {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let granule = (at >> 33) % (spread * 1024);
                    let extent = ByteExtent { offset: ByteOffset(granule * 4096), len: 4096 };
                    requests.push(queue.start(Op::Write(extent, None)).expect("inside"));
                }
                let begin = Instant::now();
                for request in &mut requests {
                    assert!(matches!(black_box(request.advance(queue)), Step::Io(_)));
                }
                mark += begin.elapsed();
                for mut request in requests {
                    request.io_done(queue, IoResult::Done);
                    assert_eq!(request.advance(queue), Step::Complete(Ok(())));
                }
            }
            if round >= ROUNDS / 4 {
                marks.push(mark.as_nanos() as f64 / (64 * BATCH) as f64);
                wholes.push(start.elapsed().as_nanos() as f64 / (64 * BATCH) as f64);
            }
        }
        marks.sort_by(f64::total_cmp);
        wholes.sort_by(f64::total_cmp);
        println!(
            "random 4 KiB writes over {name:>10}: mark {:5.1} ns, whole {:5.1} ns",
            marks[marks.len() / 2],
            wholes[wholes.len() / 2]
        );
    }
}
