//! The ublk tap on kernels that have it: a real block device, from its geometry to the death of its server. File systems and
//! programs on it see one device and no error, whatever happens to the process behind it.

use farside_tests::verify::Rng;
use farside_vm::conformance::{self, DEVICE, UBLK, boot, unmount_and_shut_down};
use farside_vm::counted::{Bare, load};
use farside_vm::protected::{CLI, Host, is_quiet};
use farside_vm::{DiskSpec, Guest, Kernel, Machine};

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

/// What the kernel can do decides how data comes and goes, unless the configuration does, which also holds for a device that was
/// made otherwise: then each request is copied by itself.
#[test]
fn a_data_path_is_chosen_shown_and_kept() {
    for (kernel, way) in [(Kernel::Backports, "copy"), (Kernel::Newest, "zero copy")] {
        let mut host = boot(kernel, &UBLK);
        assert_eq!(host.data_path(), way);
        let doctor = host.guest.attempt("farside doctor --config /state/farsided.toml").stdout;
        assert!(doctor.contains(&format!("data path {way}: ")), "{doctor}");
        assert_eq!(doctor.contains("kernel fault scan-under-lock"), kernel == Kernel::Backports, "{doctor}");
        if kernel == Kernel::Newest {
            let file = "/state/farsided.d/volume-data.toml";
            host.guest.run(&format!("sed -i '/^tap/a data_path = \"copy\"' {file} && grep -q '^data_path' {file}"));
            host.kill_daemon();
            host.start_daemon();
            for made_for in ["zero copy", "copy"] {
                assert_eq!(host.data_path(), "copy");
                conformance::is_a_disk(&mut host, &UBLK);
                assert_eq!(host.copied() > 0, made_for == "zero copy", "a device made for {made_for}");
                host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
                host.start_load();
                host.kill_under_load(2);
                host.stop_load();
                host.guest.run("umount /mnt");
                host.stop_daemon(); // takes the device away, which nobody uses
                host.start_daemon();
            }
            host.wait_for_group("the last writes", is_quiet);
            host.assert_newest_point_is_the_disk();
            host.shut_down();
        } else {
            host.shut_down();
        }
    }
}

/// Pages beyond the ring's table cannot be registered, as where memory is short: those requests are copied, among others that
/// are not.
#[test]
fn what_cannot_be_registered_is_copied() {
    let disk = DiskSpec::blank("data", 64);
    let mut machine = Machine::new("host", Kernel::Newest).modules(&["ublk_drv"]).programs(&["farside-vm-bench"]).disk(disk);
    let mut guest = machine.boot();
    let data = guest.disk("data");
    let bare = Bare::serve(&mut guest, &data, "slots=2");
    assert_eq!(bare.way, "zero copy");
    let write = |at: u32| format!("dd if=/dev/urandom of={} bs=64k seek={at} count=100 oflag=direct 2>/dev/null", bare.path);
    guest.run(&format!("{} & {} & {} & {} & wait", write(0), write(100), write(200), write(300)));
    load(&mut guest, &bare.path, "write-4096-32 1");
    guest.run(&format!("dd if=/dev/urandom of={} bs=777 seek=12345 count=3000 conv=fsync 2>/dev/null", bare.path));
    let digest = |guest: &mut Guest, device: &str| {
        let part =
            |at: u32| format!("dd if={device} bs=256k skip={at} count=64 iflag=direct 2>/dev/null | md5sum > /run/part{at}");
        guest.run(&format!("{} & {} & {} & {} & wait; cat /run/part*", part(0), part(64), part(128), part(192)))
    };
    assert_eq!(digest(&mut guest, &bare.path), digest(&mut guest, &data));
    let [requests, errors, copied] = bare.stop(&mut guest);
    println!("{copied} of {requests} requests were copied");
    assert!(errors == 0 && 0 < copied && copied < requests, "{copied} of {requests}, {errors} errors");
    guest.shut_down();
}

/// Counted by the kernel: tracking changes costs the thread that serves a device no system call.
#[test]
fn a_request_costs_no_more_system_calls_than_one_that_is_only_passed_on() {
    let mut host = Host::boot(Kernel::Newest, &["ublk_drv"]);
    let data = host.guest.run("cat /run/backing").trim().to_owned();
    const WORKLOADS: [&str; 3] = ["write-4096-1 1", "write-4096-32 1", "read-4096-32 1"];
    let bare = Bare::serve(&mut host.guest, &data, "");
    let thread = bare.thread(&mut host.guest);
    let passed_on = WORKLOADS.map(|load_of| {
        let (load, counts) = thread.count(&mut host.guest, |guest| load(guest, &bare.path, load_of));
        counts.system_calls as f64 / load.operations as f64
    });
    bare.stop(&mut host.guest);
    host.guest.run(&format!("{CLI} volume add data --backing {data}"));
    host.wait_for_group("the first sync", is_quiet);
    let thread = host.queue_thread();
    for (load_of, passed_on) in WORKLOADS.into_iter().zip(passed_on) {
        let (load, counts) = thread.count(&mut host.guest, |guest| load(guest, DEVICE, load_of));
        let ours = counts.system_calls as f64 / load.operations as f64;
        println!("{load_of}: {ours:.2} system calls for each request; passed on: {passed_on:.2}");
        assert!(ours <= passed_on + 1.0, "{load_of}: {ours} for each request, and {passed_on} for one that is passed on");
    }
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}
