use std::fs;
use std::io;

use farside_ledger::LayerKind;
use farside_region::Slot;

use super::*;
use crate::StoreReader;
use crate::testkit::{Fill, GRANULE, TempStore, TestVolume, name};

const OUT: &str = "standard output";

/// 13 regions: data, zeroes throughout, both, a short end.
fn store() -> (TempStore, TestVolume, Slot) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 100);
    volume.claim(&mut group);
    let base = vec![(0, 30, Fill::Byte(1)), (30, 50, Fill::Zero), (80, 20, Fill::Byte(2))];
    volume.publish(&mut group, LayerKind::Point, &[base]);
    let point = volume.publish(&mut group, LayerKind::Point, &[vec![(3, 2, Fill::Zero), (41, 1, Fill::Byte(3))]]);
    (store, volume, point.position.slot)
}

fn reader(store: &TempStore, point: Slot) -> PointReader {
    let reader = StoreReader::open(&store.path()).expect("open");
    let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
    group.point_reader_as_it_is(point, group.volume(&name("v")).expect("found")).expect("reader")
}

/// Takes so many bytes, then is gone.
struct Pipe {
    bytes: Vec<u8>,
    room: usize,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = bytes.len().min(self.room - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..now]);
        if now == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(now) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options(threads: usize) -> RestoreOptions {
    RestoreOptions { threads, ..RestoreOptions::default() }
}

#[test]
fn a_point_is_one_stream_with_any_number_of_threads() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let wanted = TestVolume::bytes(&volume.image);
    for threads in [0, 1, 2, 5, 13, 40] {
        let (mut out, heard) = (Vec::new(), std::cell::Cell::new(0));
        let progress = |bytes| {
            assert!(heard.replace(bytes) < bytes, "it only grows");
            true
        };
        let report = restore_stream(&reader, (Path::new(OUT), &mut out), &options(threads), &progress).expect("streamed");
        assert!(out == wanted, "{threads} threads");
        assert_eq!(heard.get(), wanted.len() as u64);
        assert_eq!((report.data_bytes, report.zero_bytes), (49 * GRANULE, 51 * GRANULE));
    }
}

/// Every thread ends, whichever region the trouble is in, and however far the others have come.
#[test]
fn a_reader_that_leaves_and_a_person_who_interrupts_end_it_anywhere() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let wanted = TestVolume::bytes(&volume.image);
    for room in (0..wanted.len()).step_by(700) {
        let mut pipe = Pipe { bytes: Vec::new(), room };
        let error = restore_stream(&reader, (Path::new(OUT), &mut pipe), &options(4), &|_| true).expect_err("gone");
        assert!(error.to_string().contains(OUT), "{error}");
        assert!(pipe.bytes == wanted[..room], "in order, up to where the reader left");
        let stopped = restore_stream(&reader, (Path::new(OUT), &mut Vec::new()), &options(4), &|bytes| bytes < room as u64);
        assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
    }
}

#[test]
fn damage_ends_the_stream_before_it_or_is_zeroes_if_that_is_allowed() {
    let (store, volume, point) = store();
    let path = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let good = fs::read(&path).expect("read");
    let footer = farside_layer::Footer::from_tail(&good, good.len() as u64).expect("a footer");
    let frame = *footer.frame_of(farside_region::GranuleIndex(85)).expect("a frame");
    let mut bad = good;
    bad[frame.offset as usize + 2] ^= 8;
    fs::write(&path, bad).expect("rot");
    let reader = reader(&store, point);
    let wanted = TestVolume::bytes(&volume.image);
    let mut out = Vec::new();
    let error = restore_stream(&reader, (Path::new(OUT), &mut out), &options(3), &|_| true).expect_err("damaged");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(out.len() < wanted.len() && wanted.starts_with(&out), "only what is right");
    let mut out = Vec::new();
    let allowed = RestoreOptions { allow_damaged: true, ..options(3) };
    let report = restore_stream(&reader, (Path::new(OUT), &mut out), &allowed, &|_| true).expect("what is left");
    let mut left = wanted;
    for run in &report.damaged {
        left[run.offset.0 as usize..][..run.len as usize].fill(0);
    }
    assert!(!report.damaged.is_empty() && out == left, "{:?}", report.damaged);
}
