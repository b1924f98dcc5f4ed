//! The engine against a real file, with each way of zeroing.

use super::*;
use crate::{OpenOptions, testing};

const BLOCK: u64 = 4096;

fn engine(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf, DeviceEngine, Ring) {
    let (folder, path) = testing::file(content);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    (folder, path, DeviceEngine::new(device).unwrap(), Ring::new(16).unwrap())
}

fn finish(engine: &mut DeviceEngine, ring: &mut Ring, count: usize) -> Vec<DeviceDone> {
    let mut done = Vec::new();
    while done.len() < count {
        ring.wait(None).unwrap();
        while let Some(completion) = ring.pop() {
            done.extend(engine.complete(ring, completion));
        }
    }
    done.sort_by_key(|done| done.id);
    done
}

fn zero(offset: u64, len: u64, keep_space: bool, durable: bool) -> DeviceOp {
    DeviceOp::Zero { extent: ByteExtent { offset: ByteOffset(offset), len }, keep_space, durable }
}

#[test]
fn every_way_of_zeroing_zeroes_exactly_the_extent() {
    for (punch, zero_range) in [(true, true), (false, true), (false, false)] {
        for (keep_space, durable) in [(false, false), (true, false), (false, true), (true, true)] {
            let (_folder, path, mut engine, mut ring) = engine(&[9; 3 << 20]);
            (engine.punch, engine.zero_range) = (engine.punch && punch, zero_range);
            engine.submit(&mut ring, 5, zero(BLOCK, (2 << 20) + BLOCK, keep_space, durable));
            let done = finish(&mut engine, &mut ring, 1);
            assert_eq!((done[0].id, done[0].result), (5, Ok(())));
            let content = std::fs::read(&path).unwrap();
            let zeroed = BLOCK as usize..(2 << 20) + 2 * BLOCK as usize;
            let wrong = content.iter().enumerate().find(|(at, byte)| (**byte == 0) != zeroed.contains(at));
            assert_eq!(wrong, None, "punch {punch} range {zero_range} keep {keep_space} durable {durable}");
        }
    }
}

#[test]
fn writes_of_zeroes_take_turns_and_mix_with_transfers() {
    let (_folder, path, mut engine, mut ring) = engine(&[9; 8 << 20]);
    (engine.punch, engine.zero_range) = (false, false);
    for i in 0..6u64 {
        engine.submit(&mut ring, i, zero(i << 20, (1 << 20) - BLOCK, false, i % 2 == 0));
    }
    let mut buffer = Buffer::alone(BLOCK as usize).unwrap();
    buffer.fill(4);
    engine.submit(&mut ring, 6, DeviceOp::Write { offset: ByteOffset(7 << 20), buffer, durable: true });
    engine.submit(&mut ring, 7, DeviceOp::Flush);
    let done = finish(&mut engine, &mut ring, 8);
    assert!(done.iter().zip(0..).all(|(done, id)| done.id == id && done.result.is_ok()));
    assert_eq!(done[6].buffer.as_ref().map(|b| b.len()), Some(BLOCK as usize));
    let content = std::fs::read(&path).unwrap();
    for megabyte in 0..6usize {
        let part = &content[megabyte << 20..][..1 << 20];
        let (zeroes, rest) = part.split_at((1 << 20) - BLOCK as usize);
        assert!(zeroes.iter().all(|&b| b == 0) && rest.iter().all(|&b| b == 9), "megabyte {megabyte}");
    }
    assert!(content[7 << 20..][..BLOCK as usize].iter().all(|&b| b == 4));
}

#[test]
fn an_error_passes_through_with_the_buffer() {
    let (_folder, path, _engine, mut ring) = engine(&[9; 8192]);
    drop(_engine);
    let device = FileDevice::open(&path, OpenOptions { readonly: true, ..OpenOptions::at_once() }).unwrap();
    let mut engine = DeviceEngine::new(device).unwrap();
    let buffer = Buffer::alone(4096).unwrap();
    engine.submit(&mut ring, 1, DeviceOp::Write { offset: ByteOffset(0), buffer, durable: false });
    engine.submit(&mut ring, 2, DeviceOp::Read { offset: ByteOffset(8192), buffer: Buffer::alone(4096).unwrap() });
    let done = finish(&mut engine, &mut ring, 2);
    assert_eq!((done[0].result, done[0].buffer.is_some()), (Err(Errno::EBADF), true));
    assert_eq!((done[1].result, done[1].buffer.is_some()), (Err(Errno::EIO), true));
}
