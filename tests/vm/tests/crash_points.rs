//! Every moment at which the power could have gone, by the kernel's own log of what reached the disk: at each of them the
//! file system recovers and holds every file that was synced by then. The same check notices writes that a lying disk lost.

use std::path::Path;

use farside_tests::{run, tool};
use farside_vm::log_writes::{CrashPoint, What, WriteLog};
use farside_vm::{DiskSpec, Kernel, Machine};

const FILES: usize = 40;
/// The writes of this file are lost in the test of the test.
const LOST_FILE: usize = 17;

fn name_of(number: usize) -> String {
    format!("file-{number:03}")
}

/// What the guest's shell writes: the file's name, 500 times.
fn content_of(number: usize) -> String {
    format!("{}\n", name_of(number)).repeat(500)
}

/// Whether the disk at a crash point recovers and holds what was synced.
fn judge(point: &CrashPoint<'_>, image: &Path) -> Result<(), String> {
    std::fs::write(image, point.disk).expect("room");
    let recovered = tool("e2fsck").args(["-E", "journal_only", "-p"]).arg(image).output().expect("e2fsck");
    let checked = tool("e2fsck").arg("-fn").arg(image).output().expect("e2fsck");
    if !checked.status.success() {
        return Err(format!("entry {}: {recovered:?}\n{}", point.number, String::from_utf8_lossy(&checked.stdout)));
    }
    for (number, mark) in point.marks.iter().filter(|mark| **mark != "dm-log-writes-end").enumerate() {
        assert_eq!(*mark, name_of(number), "marks come in order");
    }
    let Some(number) = point.marks.iter().rposition(|mark| mark.starts_with("file-")) else { return Ok(()) };
    let shown = run(tool("debugfs").args(["-R", &format!("cat /{}", name_of(number))]).arg(image));
    if shown.stdout != content_of(number).as_bytes() {
        return Err(format!("entry {}: {} was synced and is not there", point.number, name_of(number)));
    }
    Ok(())
}

#[test]
fn ext4_holds_what_was_synced_at_every_crash_point_and_a_lie_is_noticed() {
    let mut machine = Machine::new("crash-points", Kernel::Stock)
        .modules(&["dm-mod", "dm-log-writes"])
        .debian_programs(&["dmsetup", "mke2fs"])
        .disk(DiskSpec::blank("disk", 24))
        .disk(DiskSpec::blank("log", 128));
    let mut guest = machine.boot();
    let (disk, log) = (guest.disk("disk"), guest.disk("log"));
    guest.run(&format!("/bin/mke2fs -q -t ext4 -E lazy_itable_init=0 {disk} && sync"));
    let mut before = machine.disk_content("disk");
    guest.run(&format!("dmsetup create logged --table \"0 $(blockdev --getsz {disk}) log-writes {disk} {log}\""));
    guest.run("mount -t ext4 /dev/mapper/logged /mnt");
    guest.run(&format!(
        "for i in $(seq -w 0 {:03}); do \
            yes file-$i | head -n 500 | dd of=/mnt/file-$i conv=fsync 2>/dev/null && dmsetup message logged 0 mark file-$i; \
         done",
        FILES - 1
    ));
    guest.run("umount /mnt && dmsetup remove logged");
    guest.shut_down();

    let content = machine.disk_content("log");
    let log = WriteLog::parse(&content).expect("a log");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    let mut honest = before.clone();
    let mut points = 0;
    log.replay(
        &mut honest,
        |_| false,
        |point| {
            points += 1;
            judge(&point, &image).unwrap_or_else(|error| panic!("{error}"));
        },
    );
    assert!(points >= FILES, "{points} crash points for {FILES} files: something was not flushed");
    assert!(honest == machine.disk_content("disk"), "the log's end is not what the disk holds");

    let mark = |number| log.entries().iter().position(|entry| entry.what == What::Mark(name_of(number))).expect("it was said");
    let lost = mark(LOST_FILE - 1)..mark(LOST_FILE);
    let mut noticed = 0;
    log.replay(
        &mut before,
        |number| lost.contains(&number),
        |point| {
            // The lie is told when the file is said to be synced; the points up to the next file are enough.
            if point.number > lost.end && point.marks.len() == LOST_FILE + 1 {
                noticed += usize::from(judge(&point, &image).is_err());
            }
        },
    );
    assert!(noticed > 0, "writes that were acknowledged were lost, and no crash point shows it");
    println!("{points} crash points of {} entries", log.entries().len());
}
