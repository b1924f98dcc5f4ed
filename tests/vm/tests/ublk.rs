//! The ublk tap on kernels that have it: a real block device, from its geometry to the death of its server. File systems and
//! programs on it see one device and no error, whatever happens to the process behind it.

use farside_tests::verify::Rng;
use farside_vm::protected::{CLI, Host, is_quiet};
use farside_vm::{Guest, Kernel};

const KILLS: u64 = 20;
/// Of a daemon that stays, after eight that do not.
const STARTS: u64 = 5;
const DEVICE: &str = "/dev/farside/data";

fn boot(kernel: Kernel) -> Host {
    let mut host = Host::boot(kernel, &["ublk_drv"]);
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing)"));
    host
}

fn queue_file(guest: &mut Guest, device: &str, file: &str) -> String {
    guest.run(&format!("cat /sys/block/$(basename $(readlink -f {device}))/queue/{file}")).trim().to_owned()
}

/// Geometry, unaligned writes through the page cache, direct ones, zeroing and discarding.
fn is_a_disk(guest: &mut Guest) {
    let data = guest.run("cat /run/backing").trim().to_owned();
    let same =
        ["logical_block_size", "physical_block_size", "minimum_io_size", "optimal_io_size", "rotational", "discard_granularity"];
    for file in same {
        assert_eq!(queue_file(guest, DEVICE, file), queue_file(guest, &data, file), "{file}");
    }
    for file in ["discard_max_bytes", "write_zeroes_max_bytes"] {
        assert_ne!(queue_file(guest, DEVICE, file), "0", "{file}");
    }
    assert_eq!(queue_file(guest, DEVICE, "write_cache"), "write back", "or nobody flushes");
    assert_eq!(queue_file(guest, DEVICE, "fua"), "1");
    let size = |guest: &mut Guest, device: &str| guest.run(&format!("blockdev --getsize64 {device}"));
    assert_eq!(size(guest, DEVICE), size(guest, &data));
    // What is written to the device lies on its backing, read past every cache, where it was written.
    let digest = |guest: &mut Guest, device: &str| {
        guest.run(&format!("dd if={device} bs=1M skip=8 count=16 iflag=direct 2>/dev/null | md5sum"))
    };
    guest.run(&format!("dd if=/dev/urandom of={DEVICE} bs=1M seek=8 count=16 oflag=direct 2>/dev/null"));
    guest.run(&format!("dd if=/dev/urandom of={DEVICE} bs=777 seek=12345 count=1000 conv=fsync 2>/dev/null"));
    guest.run(&format!("dd if=/dev/urandom of={DEVICE} bs=512 seek=30001 count=77 oflag=direct 2>/dev/null"));
    assert_eq!(digest(guest, DEVICE), digest(guest, &data));
    let before = digest(guest, DEVICE);
    guest.run(&format!("blkdiscard -o 9437184 -l 4194304 {DEVICE}"));
    guest.run(&format!("fallocate -z -o 15728640 -l 1048576 {DEVICE} 2>/dev/null || blkdiscard -o 15728640 -l 1048576 {DEVICE}"));
    for (from, mib) in [(9, 4), (15, 1)] {
        let read = format!("dd if={DEVICE} bs=1M skip={from} count={mib} iflag=direct 2>/dev/null | tr -d '\\0' | wc -c");
        assert_eq!(guest.run(&read).trim(), "0", "what was discarded or zeroed at {from} MiB reads as zeroes");
    }
    assert_ne!(digest(guest, DEVICE), before);
    assert_eq!(digest(guest, DEVICE), digest(guest, &data));
}

fn lives_through_everything(kernel: Kernel) {
    let mut host = boot(kernel);
    host.guest.run(&format!("test -b $(readlink -f {DEVICE})"));
    is_a_disk(&mut host.guest);
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.wait_for_group("the first sync", is_quiet);

    let device = host.guest.run(&format!("readlink -f {DEVICE}"));
    host.start_load();
    for kill in 0..KILLS {
        host.wait_for_load(20);
        host.kill_daemon();
        if kill % 3 == 2 {
            host.guest.start_command("fstrim /mnt && sync", "/run/trim.log"); // waits in the kernel meanwhile
        }
        host.start_daemon();
        host.load_lives();
    }
    host.wait_for_load(20);
    assert_eq!(host.guest.run(&format!("readlink -f {DEVICE}")), device, "one device all along");
    host.guest.run("test ! -s /run/trim.log");
    // A planned stop is a pause, too.
    host.stop_daemon();
    host.start_daemon();
    host.wait_for_load(20);
    // Who uses it keeps it.
    let refused = host.guest.attempt(&format!("{CLI} volume remove data --yes"));
    assert!(refused.code != 0 && refused.stderr.contains("/dev/ublkb0 is in use"), "{refused:?}");

    // Somebody else writes past the page cache and never syncs.
    host.guest.run("dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync 2>/dev/null");
    let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=64 oflag=direct conv=notrunc; do :; done";
    host.guest.start_command(scribble, "/run/scribble.log");
    host.wait_for_load(20);
    host.guest.wait_until("grep -q 'records out' /run/scribble.log");
    let promised = host.guest.download("/run/progress");
    let (mut host, lost) = host.cut_power(&mut Rng(11), 4);
    assert!(lost > 0, "nothing was in any cache: nothing is proved");
    host.start_daemon();
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("/bin/e2fsck -p {DEVICE}; /bin/e2fsck -fn {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.guest.upload("/run/promised", &promised, 0o644);
    println!("{lost} blocks lost; synced: {}", host.guest.run("farside-vm-load check /mnt /run/promised"));
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.guest.run(&format!("test ! -e {DEVICE} && test ! -e /dev/ublkb0 && test ! -e /dev/ublkc0"));
    host.shut_down();
}

/// A host with a file system on its device, and an application that writes.
fn with_load(kernel: Kernel) -> Host {
    let mut host = boot(kernel);
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.start_load();
    host.wait_for_load(20);
    host
}

fn unmount_and_shut_down(mut host: Host) {
    host.wait_for_load(20);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}

/// Also between the kernel's "take over" and "resume".
fn may_die_as_it_starts(kernel: Kernel) {
    let mut host = with_load(kernel);
    let mut rng = Rng(kernel as u64 + 5);
    for round in 0..STARTS {
        host.kill_daemon();
        for death in 0..8 {
            host.start_and_kill_daemon((round * 8 + death) * 10_000 + rng.draw() % 10_000);
        }
        host.start_daemon();
        host.wait_for_load(5);
    }
    let far = host.guest.run("grep -c 'taken over' /run/daemon.log").trim().to_owned();
    println!("of {} daemons that were killed or not, {far} came so far as to serve the device", STARTS * 9);
    unmount_and_shut_down(host);
}

#[test]
fn a_daemon_may_die_at_any_moment_of_its_start_on_backports() {
    may_die_as_it_starts(Kernel::Backports);
}

#[test]
fn a_daemon_may_die_at_any_moment_of_its_start_on_the_newest() {
    may_die_as_it_starts(Kernel::Newest);
}

/// A device that was made and not started, or started and not shown, is taken up by the next attempt; none is left over.
fn may_die_as_it_makes_a_device(kernel: Kernel) {
    let mut host = Host::boot(kernel, &["ublk_drv"]);
    let mut rng = Rng(3);
    let add = format!("{CLI} volume add data --backing $(cat /run/backing)");
    for round in 0..10 {
        host.guest.start_command(&add, "/run/add.log");
        let moment = round * 60_000 + rng.draw() % 60_000;
        host.guest.run(&format!("usleep {moment}"));
        host.kill_daemon();
        host.start_daemon();
        host.guest.wait_until(&format!("{CLI} volume show data || {add}"));
        host.guest.run(&format!("dd if={DEVICE} of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null"));
        host.guest.run(&format!("{CLI} volume remove data --yes"));
        host.guest.run("test ! -e /dev/ublkb0 && test ! -e /dev/ublkc0 && test ! -e /dev/ublkc1");
    }
    host.shut_down();
}

#[test]
fn a_daemon_may_die_as_it_makes_a_device_on_backports() {
    may_die_as_it_makes_a_device(Kernel::Backports);
}

#[test]
fn a_daemon_may_die_as_it_makes_a_device_on_the_newest() {
    may_die_as_it_makes_a_device(Kernel::Newest);
}

/// The backing is a part of the disk, and becomes more of it under a mounted file system.
#[test]
fn a_device_grows_with_its_backing() {
    let mut host = Host::boot(Kernel::Newest, &["ublk_drv", "dm_mod"]);
    let data = host.guest.run("cat /run/backing").trim().to_owned();
    let table = |sectors: u64| format!("echo 0 {sectors} linear {data} 0");
    host.guest.run(&format!("{} | dmsetup create --noudevsync part", table(65536)));
    host.guest.run(&format!("{CLI} volume add data --backing /dev/mapper/part"));
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.start_load();
    host.wait_for_load(20);
    host.guest.run(&format!("{} | dmsetup reload part && dmsetup resume --noudevsync part", table(131_072)));
    host.stop_daemon();
    host.start_daemon();
    host.wait_for_load(20);
    assert_eq!(host.guest.run(&format!("blockdev --getsize64 {DEVICE}")).trim(), (131_072u64 * 512).to_string());
    // What is new can be used, and is replicated.
    host.guest.run(&format!("dd if=/dev/urandom of={DEVICE} bs=1M seek=40 count=8 conv=notrunc,fsync 2>/dev/null"));
    unmount_and_shut_down(host);
}

/// Memory can only be had by writing to the device, which takes memory: neither the daemon's nor the driver's way may wait for it.
#[test]
fn a_machine_without_memory_writes_on() {
    let mut host = with_load(Kernel::Newest);
    // Every other alarm has words of its own beside its trace.
    for complaint in ["Out of memory: Killed process", "oom-kill", "Call Trace:", "Not tainted"] {
        host.guest.announce(complaint);
    }
    for _ in 0..2 {
        host.guest.run("for pid in $(pidof farsided); do echo -1000 > /proc/$pid/oom_score_adj; done");
        // Dirty pages of the file system beside a program that takes all memory until it is killed.
        host.guest.start_command("dd if=/dev/zero of=/mnt/dirty bs=1M count=16 conv=notrunc", "/run/dirty.log");
        let hog = host.guest.attempt("echo 1000 > /proc/self/oom_score_adj; tail /dev/zero");
        assert_eq!(hog.code, 128 + 9, "it was killed: {hog:?}");
        host.guest.run("echo 3 > /proc/sys/vm/drop_caches");
        host.load_lives();
        host.wait_for_load(10);
        host.kill_daemon();
        host.start_daemon();
    }
    unmount_and_shut_down(host);
}

#[test]
fn a_ublk_device_lives_through_everything_on_backports() {
    lives_through_everything(Kernel::Backports);
}

#[test]
fn a_ublk_device_lives_through_everything_on_the_newest() {
    lives_through_everything(Kernel::Newest);
}
