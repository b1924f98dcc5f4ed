//! Devices and their door, on real files.

use std::os::unix::fs::FileExt;

use super::*;
use crate::testing;

fn readonly() -> OpenOptions {
    OpenOptions { readonly: true, ..OpenOptions::at_once() }
}

#[test]
fn a_file_is_discovered_and_used_with_direct_io() {
    let (_folder, path) = testing::file(&[5; 1 << 20]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    assert_eq!((device.size(), device.kind(), device.readonly()), (1 << 20, DeviceKind::File, false));
    assert!(device.block_min().is_power_of_two() && (512..=4096).contains(&device.block_min()));
    let mut buffer = Buffer::alone(8192).unwrap();
    device.read_exact_at(ByteOffset(4096), &mut buffer).unwrap();
    assert!(buffer.iter().all(|&b| b == 5));
    buffer.fill(6);
    device.write_all_at(ByteOffset(8192), &buffer).unwrap();
    device.sync_data().unwrap();
    assert_eq!(std::fs::read(&path).unwrap().iter().filter(|&&b| b == 6).count(), 8192);
    let beyond = device.read_exact_at(ByteOffset((1 << 20) - 4096), &mut buffer).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    let flags = nix::fcntl::fcntl(&**device.fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_ne!(flags & libc::FD_CLOEXEC, 0, "a child must not inherit the door");
}

#[test]
fn the_door_admits_one_and_names_who_stands_in_it() {
    let (_folder, path) = testing::file(&[0; 4096]);
    let first = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let clone = first.clone();
    drop(first);
    for options in [OpenOptions::at_once(), readonly()] {
        let Err(DeviceError::Busy { holder, .. }) = FileDevice::open(&path, options) else { panic!("a clone holds the door") };
        assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    }
    drop(clone);
    FileDevice::open(&path, OpenOptions::at_once()).unwrap();
}

#[test]
fn a_successor_waits_until_the_door_is_free() {
    let (_folder, path) = testing::file(&[0; 4096]);
    let first = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || FileDevice::open(path, OpenOptions::daemon()).map(|device| device.size())
    });
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), 4096);
}

#[test]
fn a_name_that_leads_to_another_device_is_noticed() {
    let (folder, path) = testing::file(&[0; 4096]);
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    assert!(device.is_at(&path).unwrap());
    std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    assert!(device.is_at(&path).is_err() && device.is_at(&folder.path().join("elsewhere")).unwrap());
    std::fs::write(&path, [0; 4096]).unwrap();
    assert!(!device.is_at(&path).unwrap());
}

/// † Who opens it and fails then, leaves it as it was left: otherwise the next one takes us for a stranger.
#[test]
fn an_opening_leaves_a_file_as_it_was() {
    let (_folder, path) = testing::file(&[0; 4096]);
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let engine = crate::DeviceEngine::new(device.clone()).unwrap();
    assert!(device.identity_found().is_some() && device.identity_now().unwrap() == device.identity_found());
    assert_eq!(engine.zeroes_fast(), device.punches());
}

#[test]
fn readers_share_and_keep_writers_out() {
    let (_folder, path) = testing::file(&[0; 4096]);
    let first = FileDevice::open(&path, readonly()).unwrap();
    let second = FileDevice::open(&path, readonly()).unwrap();
    assert!(first.readonly() && !second.punches());
    assert!(matches!(FileDevice::open(&path, OpenOptions::at_once()), Err(DeviceError::Busy { .. })));
}

#[test]
fn what_cannot_be_a_device_is_refused_by_name() {
    let folder = testing::folder();
    assert!(matches!(FileDevice::open(folder.path(), readonly()), Err(DeviceError::Kind { .. })));
    assert!(matches!(FileDevice::open("/dev/null", readonly()), Err(DeviceError::Kind { .. })));
    assert!(matches!(FileDevice::open(folder.path().join("none"), readonly()), Err(DeviceError::Open { .. })));
    let error = FileDevice::open("/proc/version", readonly()).unwrap_err();
    assert!(matches!(error, DeviceError::NoDirectIo { .. }), "{error}");
    assert!(error.to_string().contains("a file system of type 0x9fa0"), "{error}");
}

#[test]
fn a_size_that_direct_io_cannot_reach_is_refused() {
    let (_folder, path) = testing::file(&[0; 4096 + 100]);
    let error = FileDevice::open(&path, OpenOptions::at_once()).unwrap_err();
    assert!(matches!(error, DeviceError::Size { size: 4196, .. }), "{error}");
}

#[test]
fn holes_are_found_and_data_is_never_called_a_hole() {
    let (_folder, path) = testing::file(&[]);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(&[1; 65536], 2 << 20).unwrap();
    file.write_all_at(&[1; 65536], 5 << 20).unwrap();
    file.sync_all().unwrap();
    let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
    let query = |offset, len, max| {
        let mut out = vec![Extent { len: 1, kind: ExtentKind::Data }];
        device.extents(ByteExtent { offset: ByteOffset(offset), len }, max, &mut out).unwrap();
        out.split_off(1)
    };
    let whole = query(0, 10 << 20, 100);
    assert_eq!(whole.iter().map(|e| e.len).sum::<u64>(), 10 << 20);
    assert!(whole.iter().all(|e| e.len % u64::from(device.block_min()) == 0));
    let mut at = 0;
    for extent in &whole {
        let covers = |data: u64| at <= data && data + 65536 <= at + extent.len;
        if extent.kind == ExtentKind::Data {
            assert!(covers(2 << 20) || covers(5 << 20) || whole.len() == 1);
        }
        at += extent.len;
    }
    assert_eq!(whole.len(), 5, "this file system tells holes");
    assert_eq!(query(0, 10 << 20, 2).len(), 2);
    assert_eq!(query(2 << 20, 4096, 100), [Extent { len: 4096, kind: ExtentKind::Data }]);
    assert_eq!(query(3 << 20, 4096, 100), [Extent { len: 4096, kind: ExtentKind::Hole }]);
    assert!(query(3 << 20, 0, 100).is_empty());
}

#[test]
fn blocking_zeroes_zero_exactly_the_extent() {
    for keep_space in [false, true] {
        let (_folder, path) = testing::file(&[7; 65536]);
        let device = FileDevice::open(&path, OpenOptions::at_once()).unwrap();
        device.zero(ByteExtent { offset: ByteOffset(8192), len: 16384 }, keep_space).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert!(content.iter().enumerate().all(|(at, &b)| (b == 0) == (8192..24576).contains(&at)));
    }
}
