//! The ring against real files and sockets.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::{BufferPool, FileDevice, OpenOptions, testing};

fn next(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.pop() {
            return completion;
        }
        ring.wait(None).unwrap();
    }
}

fn socket_pair() -> (SharedFd, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (Arc::new(OwnedFd::from(a)), b)
}

fn filled(byte: u8, len: usize) -> Buffer {
    let mut buffer = Buffer::alone(len).unwrap();
    buffer.fill(byte);
    buffer
}

#[test]
fn what_is_written_is_read_and_buffers_come_back() {
    let (_folder, path) = testing::file(&[0; 16384]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::new(8).unwrap();
    ring.write(Tag::queue(1), device.fd(), ByteOffset(4096), filled(7, 8192), 4096..8192, true);
    let done = next(&mut ring);
    assert_eq!((done.tag, done.result, done.buffer.unwrap().len()), (Tag::queue(1), Ok(4096), 8192));
    ring.sync_data(Tag::server(9), device.fd());
    assert_eq!(next(&mut ring).tag, Tag::server(9));
    ring.read(Tag::queue(2), device.fd(), ByteOffset(0), filled(1, 16384), 0..16384);
    let done = next(&mut ring);
    let read = done.buffer.unwrap();
    assert_eq!(done.result, Ok(16384));
    assert!(read[..4096].iter().chain(&read[8192..]).all(|&b| b == 0) && read[4096..8192].iter().all(|&b| b == 7));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_device_that_ends_early_is_an_error() {
    let (_folder, path) = testing::file(&[3; 4096]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::new(8).unwrap();
    ring.read(Tag::queue(1), device.fd(), ByteOffset(0), filled(0, 8192), 0..8192);
    assert_eq!(next(&mut ring).result, Err(Errno::EIO));
}

#[test]
fn more_operations_than_entries_all_complete() {
    let (_folder, path) = testing::file(&[0; 4096 * 100]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::new(4).unwrap();
    for i in 0..100u64 {
        ring.write(Tag::queue(i), device.fd(), ByteOffset(i * 4096), filled(i as u8 + 1, 4096), 0..4096, false);
    }
    let mut seen: Vec<_> = (0..100).map(|_| next(&mut ring)).map(|c| (c.result.unwrap(), c.tag.id)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).map(|i| (4096, i)).collect::<Vec<_>>());
    let content = std::fs::read(&path).unwrap();
    assert!(content.chunks(4096).zip(1..).all(|(block, byte)| block.iter().all(|&b| b == byte)));
}

#[test]
fn a_gather_longer_than_one_message_arrives_in_order() {
    let (fd, peer) = socket_pair();
    let mut ring = Ring::new(8).unwrap();
    let mut gather = Gather::new();
    for i in 0..150u8 {
        let buffer = gather.push_buffer(filled(i, 3000));
        gather.push_slice(buffer, 1..3000);
    }
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut &peer, &mut all).unwrap();
        all
    });
    while !gather.is_empty() {
        ring.send_gather(Tag::server(1), &fd, gather);
        let done = next(&mut ring);
        assert!(done.result.unwrap() > 0);
        gather = done.gather.unwrap();
    }
    drop(fd);
    let expected: Vec<u8> = (0..150).flat_map(|i| [i; 2999]).collect();
    assert_eq!(reader.join().unwrap(), expected);
}

#[test]
fn a_receive_gives_what_is_there_and_then_the_end() {
    let (fd, mut peer) = socket_pair();
    let mut ring = Ring::new(8).unwrap();
    ring.recv(Tag::server(1), &fd, filled(0, 100), 10..100);
    peer.write_all(b"hello").unwrap();
    let done = next(&mut ring);
    assert_eq!((done.result, &done.buffer.unwrap()[10..15]), (Ok(5), &b"hello"[..]));
    drop(peer);
    ring.recv(Tag::server(1), &fd, filled(0, 100), 0..100);
    assert_eq!(next(&mut ring).result, Ok(0));
    ring.send(Tag::server(2), &fd, filled(0, 100), 0..100);
    assert_eq!(next(&mut ring).result, Err(Errno::EPIPE));
}

#[test]
fn an_accept_gives_the_connection() {
    let folder = testing::folder();
    let path = folder.path().join("s");
    let listener: SharedFd = Arc::new(OwnedFd::from(UnixListener::bind(&path).unwrap()));
    let mut ring = Ring::new(8).unwrap();
    ring.accept(Tag::server(1), &listener);
    let _peer = UnixStream::connect(&path).unwrap();
    assert!(next(&mut ring).accepted.is_some());
    ring.accept(Tag::server(2), &listener);
    ring.cancel(Tag::server(2));
    assert_eq!(next(&mut ring).result, Err(Errno::ECANCELED));
}

#[test]
fn wakes_before_the_read_count_and_several_are_one() {
    let waker = Waker::new().unwrap();
    let mut ring = Ring::new(8).unwrap();
    waker.wake();
    waker.wake();
    ring.wake_read(Tag::server(1), &waker);
    assert!(next(&mut ring).result.is_ok());
    ring.wake_read(Tag::server(2), &waker);
    ring.wait(Some(Duration::ZERO)).unwrap();
    assert!(ring.pop().is_none(), "two wakes before one look are one");
    let other = waker.clone();
    let thread = std::thread::spawn(move || other.wake());
    assert_eq!(next(&mut ring).tag, Tag::server(2));
    thread.join().unwrap();
}

#[test]
fn a_dropped_ring_gives_buffers_back_only_when_the_kernel_has_let_go() {
    let (fd, peer) = socket_pair();
    let pool = BufferPool::new(65536, 65536).unwrap();
    let mut ring = Ring::new(8).unwrap();
    ring.recv(Tag::server(1), &fd, pool.take(65536).unwrap(), 0..65536);
    ring.wait(Some(Duration::ZERO)).unwrap();
    assert!(pool.take(1).is_none());
    drop(ring);
    assert!(pool.take(65536).is_some());
    drop(peer);
}

#[test]
fn a_descriptor_outlives_its_last_handle_while_it_is_used() {
    let (fd, mut peer) = socket_pair();
    let mut ring = Ring::new(8).unwrap();
    ring.recv(Tag::server(1), &fd, filled(0, 8), 0..8);
    drop(fd);
    peer.write_all(b"x").unwrap();
    assert_eq!(next(&mut ring).result, Ok(1));
}

#[test]
fn each_refusal_of_the_kernel_names_its_remedy() {
    let explain = |errno, setting| RingError::classify(io::Error::from_raw_os_error(errno), setting).to_string();
    assert!(explain(libc::EPERM, "2").contains("sysctl -w kernel.io_uring_disabled=0"));
    assert!(explain(libc::EPERM, "1").contains("kernel.io_uring_group"));
    assert!(explain(libc::EPERM, "0").contains("seccomp"));
    assert!(explain(libc::ENOSYS, "").contains("5.19"));
    assert!(explain(libc::ENOMEM, "0").contains("LimitMEMLOCK"));
}

#[test]
fn a_command_that_no_driver_takes_gives_its_buffer_back_whole() {
    let (_folder, path) = testing::file(&[0; 4096]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::new(8).unwrap();
    let mut buffer = Buffer::alone(8192).unwrap();
    let start = buffer.as_ptr() as u64;
    buffer.set_len(10);
    let mut told = 0;
    ring.command(Tag::server(5), device.fd(), 0x1234, None, Some(buffer), |address| {
        told = address;
        [0; 16]
    });
    assert_eq!(told, start);
    let done = next(&mut ring);
    assert!(done.tag == Tag::server(5) && done.result.is_err());
    assert_eq!(done.buffer.unwrap().len(), 8192, "the driver may use all of it");
    ring.command(Tag::server(6), device.fd(), 0x1234, Some(7), None, |address| {
        assert_eq!(address, 0);
        [0; 16]
    });
    assert!(next(&mut ring).buffer.is_none());
}

#[test]
fn an_abandoned_ring_waits_for_nothing_and_its_buffers_are_not_used_again() {
    let pool = BufferPool::new(8192, 4096).unwrap();
    let (ours, _theirs) = socket_pair();
    let mut ring = Ring::new(8).unwrap();
    ring.recv(Tag::server(1), &ours, pool.take(4096).unwrap(), 0..4096);
    ring.wait(Some(Duration::ZERO)).unwrap();
    let _abandoned = ring.abandon();
    assert_eq!(pool.in_use(), 4096, "the kernel may still write there");
    assert_eq!(Arc::strong_count(&ours), 1, "and has its own hold of the file");
}

#[test]
fn what_is_in_flight_on_an_abandoned_ring_ends_when_it_is_closed() {
    let (ours, theirs) = socket_pair();
    let pool = BufferPool::new(8192, 4096).unwrap();
    let buffer = pool.take(4096).unwrap();
    let thread = std::thread::spawn(move || {
        let mut ring = Ring::new(8).unwrap();
        ring.recv(Tag::server(1), &ours, buffer, 0..4096);
        ring.wait(Some(Duration::ZERO)).unwrap();
        ring.abandon()
    });
    let abandoned = thread.join().unwrap();
    let has_ended = |patience: Duration| {
        let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&theirs), nix::poll::PollFlags::empty())];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::try_from(patience).unwrap()).unwrap() > 0
    };
    assert!(!has_ended(Duration::ZERO), "the thread's end ends nothing");
    abandoned.close();
    assert!(has_ended(Duration::from_secs(30)), "the kernel holds the socket no more");
}

#[test]
fn the_buffers_of_abandoned_commands_come_back_when_their_ring_is_closed() {
    let (ours, _theirs) = socket_pair();
    let pool = BufferPool::new(8192, 4096).unwrap();
    let (command, transfer) = (pool.take(4096).unwrap(), pool.take(4096).unwrap());
    let thread = std::thread::spawn(move || {
        let mut ring = Ring::new(8).unwrap();
        // No driver here keeps a command: in its place, something that does not end by itself either.
        let entry = opcode::PollAdd::new(Fd(ours.as_raw_fd()), libc::POLLIN as u32).build();
        ring.start_with(Tag::server(1), &ours, Kind::Command { buffer: Some(command) }, entry);
        ring.recv(Tag::server(2), &ours, transfer, 0..4096);
        ring.wait(Some(Duration::ZERO)).unwrap();
        ring.abandon()
    });
    let abandoned = thread.join().unwrap();
    assert_eq!(pool.in_use(), 8192, "the kernel may still write there");
    abandoned.close();
    assert_eq!(pool.in_use(), 4096, "a driver has no thread any more; a transfer may have begun");
}

#[test]
fn an_empty_slot_is_no_memory() {
    let (_folder, path) = testing::file(&[1; 8192]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::with_slots(8, 4).unwrap();
    for slot in [3, 4] {
        let pages = Pages { slot, len: 4096 };
        ring.read_pages(Tag::queue(1), device.fd(), ByteOffset(0), pages, 0..4096);
        assert_eq!(next(&mut ring).result, Err(Errno::EFAULT));
        ring.write_pages(Tag::queue(2), device.fd(), ByteOffset(0), pages, 0..4096, true);
        assert_eq!(next(&mut ring).result, Err(Errno::EFAULT));
    }
    assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 1));
}

#[test]
#[should_panic(expected = "inside its pages")]
fn nothing_goes_beyond_registered_pages() {
    let (_folder, path) = testing::file(&[1; 8192]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let mut ring = Ring::with_slots(8, 4).unwrap();
    ring.read_pages(Tag::queue(1), device.fd(), ByteOffset(0), Pages { slot: 0, len: 4096 }, 0..4097);
}
