//! The ublk tap on kernels that have it: a real block device, from its geometry to the death of its server. File systems and
//! programs on it see one device and no error, whatever happens to the process behind it.

use farside_tests::verify::Rng;
use farside_vm::Kernel;
use farside_vm::conformance::{self, DEVICE, UBLK, boot, unmount_and_shut_down};
use farside_vm::protected::{CLI, Host};

const KILLS: u64 = 20;
/// Of a daemon that stays, after eight that do not.
const STARTS: u64 = 5;

/// A host with a file system on its device, and an application that writes.
fn with_load(kernel: Kernel) -> Host {
    let mut host = boot(kernel, &UBLK);
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.start_load();
    host.wait_for_load(20);
    host
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

#[test]
fn a_device_grows_with_its_backing() {
    conformance::grows_with_its_backing(Kernel::Newest, &UBLK);
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
    conformance::lives_through_everything(Kernel::Backports, &UBLK, KILLS);
}

#[test]
fn a_ublk_device_lives_through_everything_on_the_newest() {
    conformance::lives_through_everything(Kernel::Newest, &UBLK, KILLS);
}
