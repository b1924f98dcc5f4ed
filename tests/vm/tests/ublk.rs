//! The ublk tap on kernels that have it: a real block device, from its geometry to the death of its server. File systems and
//! programs on it see one device and no error, whatever happens to the process behind it.

use farside_tests::verify::Rng;
use farside_tests::{Endurance, wait_until};
use farside_vm::conformance::{self, DEVICE, UBLK, boot, unmount_and_shut_down, with_load};
use farside_vm::counted::{Bare, load};
use farside_vm::gateway::{FOLDER, md5_of};
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use farside_vm::{DiskSpec, Guest, Kernel, Machine};
use serde_json::Value;

const KILLS: u64 = 20;
/// Of a daemon that stays, after eight that do not.
const STARTS: u64 = 5;
/// Entries to and returns from system calls of the thread that serves a queue, until it waits for requests.
const STEPS: u32 = 12;

/// Also between the kernel's "take over" and "resume".
fn may_die_as_it_starts(kernel: Kernel) {
    let mut host = with_load(kernel, &UBLK, 2);
    let endurance = Endurance::from_environment(kernel as u64 + 5);
    let mut rng = Rng(endurance.seed());
    let mut round = 0;
    // † From the moment the device is open to the one at which it is served, system call by system call.
    host.kill_daemon();
    for stops in 1..=STEPS {
        host.start_daemon_that_dies("/dev/ublkc0", stops);
    }
    host.start_daemon();
    host.wait_for_load(5);
    while round < STARTS || endurance.goes_on() {
        host.kill_daemon();
        for death in 0..8 {
            host.start_and_kill_daemon((round % STARTS * 8 + death) * 10_000 + rng.draw() % 10_000);
        }
        host.start_daemon();
        host.wait_for_load(5);
        round += 1;
    }
    let far = host.guest.run("grep -c 'taken over' /run/daemon.log").trim().to_owned();
    endurance.report(&format!("of {} daemons that were killed or not, {far} came so far as to serve the device", round * 9));
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
        let adds = host.guest.start_command(&add, "/run/add.log");
        let moment = round * 60_000 + rng.draw() % 60_000;
        host.guest.run(&format!("usleep {moment}"));
        host.kill_daemon();
        // It does not come to the next one.
        host.guest.wait_for_end(adds);
        host.start_daemon();
        host.guest.wait_until(&format!("{CLI} volume show data || {add}"));
        host.guest.run(&format!("dd if={DEVICE} of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null"));
        // On a slow machine who removes may be told that the device does not answer yet, and nothing else: it goes all the same.
        let remove = format!("said=$({CLI} volume remove data --yes 2>&1) || echo \"$said\" | grep 'does not answer'");
        host.guest.run(&remove);
        let gone = "test ! -e /dev/ublkb0 && test ! -e /dev/ublkc0 && test ! -e /dev/ublkc1";
        host.guest.wait_until(&format!("{gone} && ! {CLI} volume show data"));
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
    conformance::grows_with_its_backing(Kernel::Newest, &UBLK, 2);
}

#[test]
fn a_device_is_handed_over_when_nobody_uses_it() {
    conformance::is_handed_over_when_it_is_unused(Kernel::Newest, &UBLK);
}

#[test]
fn a_device_that_cannot_grow_while_it_is_used_grows_when_it_is_not() {
    conformance::grows_when_it_is_unused(Kernel::Backports, &UBLK);
}

#[test]
fn a_machine_without_memory_writes_on() {
    conformance::writes_on_without_memory(Kernel::Newest, &UBLK, 2);
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
        let mut host = boot(kernel, &UBLK, 1);
        assert_eq!(host.data_path(), way);
        let doctor = host.guest.attempt("farside doctor --config /state/farsided.toml").stdout;
        assert!(doctor.contains(&format!("data path {way}: ")), "{doctor}");
        assert_eq!(doctor.contains("kernel fault scan-under-lock"), kernel == Kernel::Backports, "{doctor}");
        if kernel == Kernel::Newest {
            let file = "/state/farsided.d/volume-data.toml";
            host.guest.run(&format!("sed -i '/^tap/a data_path = \"copy\"' {file} && grep -q '^data_path' {file}"));
            host.kill_daemon();
            host.start_daemon();
            assert_eq!(host.data_path(), "copy");
            conformance::is_a_disk(&mut host, &UBLK);
            assert!(host.copied() > 0, "a device made for zero copy stays one");
            host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
            host.start_load();
            host.kill_under_load(2);
            host.stop_load();
            host.guest.run("umount /mnt");
            host.wait_for_group("the last writes", is_quiet);
            host.assert_newest_point_is_the_disk();
            what_a_closed_volume_left_is_ended(&mut host);
        } else {
            host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE}"));
            host.wait_for_group("the file system", is_quiet);
        }
        a_point_is_a_device(&mut host);
        host.shut_down();
    }
}

const OPEN: &str = "cd /run && exec farside point open host1/default/data latest --store /run/store --json";

/// Opens the newest point of the store beside the host, as a device. Gives that, and the process that serves it.
fn open_point(guest: &mut Guest, options: &str) -> (String, u32) {
    guest.run("rm -f /run/open.log");
    let owner = guest.start_command(&format!("{OPEN} {options}"), "/run/open.log");
    let opened = wait_until("the point to be open", || {
        let said = String::from_utf8(guest.download("/run/open.log")).expect("text");
        assert!(guest.lives(owner), "it ended: {said}");
        serde_json::from_str::<Value>(&said).map_err(|_| said)
    });
    let device = opened["device"].as_str().unwrap_or_else(|| panic!("no device: {opened}")).to_owned();
    assert!(device.starts_with("/dev/ublkb"), "the kernel has ublk: {device}");
    (device, owner)
}

/// A point is a device that ends with its server: what is restored from it, byte for byte; what was written to it is there when it is
/// opened again; it does not go while it is used, and it is gone, with its number, however its server ends.
fn a_point_is_a_device(host: &mut Host) {
    let restored = md5_of(&host.gateway.restore("data", "latest"));
    host.gateway.run(&format!("tar -C {FOLDER} -cf {FOLDER}/store.tar store"));
    let store = host.gateway.download("store.tar");
    let guest = &mut host.guest;
    guest.upload("/run/store.tar", &store, 0o600);
    guest.run("tar -C /run -xf /run/store.tar && rm /run/store.tar");
    let queue = |guest: &mut Guest, device: &str, file: &str| {
        guest.run(&format!("cat /sys/block/{}/queue/{file}", device.trim_start_matches("/dev/"))).trim().to_owned()
    };

    let (device, owner) = open_point(guest, "--device");
    guest.announce(&device["/dev/".len()..]); // its users see errors below
    let number = device.trim_start_matches("/dev/ublkb").to_owned();
    let is_there = format!("test -e {device} -o -e /dev/ublkc{number}");
    let read = guest.run(&format!("dd if={device} bs=1M iflag=direct 2>/dev/null | md5sum"));
    assert_eq!(read.split(' ').next(), Some(&*restored), "it is not what is restored");
    for (what, value) in [("getro", 1), ("getss", 512), ("getsize64", 64 << 20)] {
        assert_eq!(guest.run(&format!("blockdev --{what} {device}")).trim(), value.to_string(), "{what}");
    }
    assert_eq!(queue(guest, &device, "discard_max_bytes"), "0");
    assert_ne!(guest.attempt(&format!("dd if=/dev/zero of={device} bs=4k count=1 oflag=direct")).code, 0);
    guest.run(&format!("farside point close {device} && ! {is_there}"));
    guest.wait_for_end(owner);

    let (device, owner) = open_point(guest, "--writable --device=ublk");
    for (file, value) in [("write_cache", "write back"), ("fua", "1"), ("discard_granularity", "4096")] {
        assert_eq!(queue(guest, &device, file), value, "{file}");
    }
    guest.run(&format!("mount -t ext4 {device} /mnt && dd if=/dev/urandom of=/mnt/tried bs=64k count=32 conv=fsync 2>/dev/null"));
    let tried = guest.run("md5sum </mnt/tried");
    let refused = guest.attempt(&format!("farside point close {device}"));
    assert!(refused.code == 4 && refused.stderr.contains("is in use: unmount it"), "{refused:?}");
    guest.run("umount /mnt");
    let user = guest.start_command(&format!("exec sleep 1000 <{device}"), "/run/user.log");
    guest.wait_until(&format!("readlink /proc/{user}/fd/0 | grep -q ublkb"));
    let refused = guest.attempt(&format!("farside point close {device}"));
    assert!(refused.code == 4 && refused.stderr.contains(&format!("is open in process {user}")), "{refused:?}");
    guest.run(&format!("kill {user}"));
    guest.wait_for_end(user);
    guest.run(&format!("farside point close {device} && ! {is_there}"));
    guest.wait_for_end(owner);

    // Killed while it is mounted and read: the disk goes by itself, and what is left of it with the next one.
    let (device, owner) = open_point(guest, "--writable --device");
    guest.run(&format!("mount -t ext4 {device} /mnt && test \"$(md5sum </mnt/tried)\" = '{}'", tried.trim()));
    let reader = format!("while dd if={device} of=/dev/null bs=256k iflag=direct 2>/dev/null; do :; done");
    let reader = guest.start_command(&reader, "/run/reader.log");
    guest.run(&format!("kill -9 {owner}"));
    guest.wait_for_end(owner);
    guest.wait_for_end(reader);
    guest.wait_until(&format!("test ! -e {device}"));
    guest.run(&format!("umount /mnt && {is_there} && farside drill stop --all --dir /run/drills && ! {is_there}"));

    // Asked for its end while it is mounted and read: what was synced is kept, and its users see errors.
    let (device, owner) = open_point(guest, "--writable --device");
    guest.run(&format!("mount -t ext4 {device} /mnt && echo kept >/mnt/kept && sync"));
    let reader = format!("while dd if={device} of=/dev/null bs=256k iflag=direct 2>/dev/null; do :; done");
    let reader = guest.start_command(&reader, "/run/reader.log");
    guest.run(&format!("kill {owner}"));
    guest.wait_for_end(owner);
    guest.wait_for_end(reader);
    guest.run(&format!("umount /mnt && ! {is_there}"));
    let (device, owner) = open_point(guest, "--writable --device");
    guest.run(&format!("mount -t ext4 {device} /mnt && grep -qx kept /mnt/kept && umount /mnt"));
    guest.run(&format!("farside point close {device} && ! {is_there}"));
    guest.wait_for_end(owner);
}

/// A volume was closed to be made larger, cannot be opened for now, and its file goes meanwhile: whoever uses its device waits and is served on,
/// and the device goes when a person says so.
fn what_a_closed_volume_left_is_ended(host: &mut Host) {
    let (file, folder) = ("/state/farsided.d/volume-brief.toml", "/state/farside/volumes/default/brief");
    host.guest.run(&format!("truncate -s 4M /state/brief.img && {CLI} volume add brief --backing /state/brief.img --tap ublk"));
    host.wait_for_group("the first sync", is_quiet);
    let device = host.guest.run("readlink -f /dev/farside/brief").trim().to_owned();
    assert!(device.starts_with("/dev/ublkb"), "{device}");
    let user = host.guest.start_command("exec sleep 1000 </dev/farside/brief", "/run/user.log");
    host.guest.wait_until(&format!("readlink /proc/{user}/fd/0 | grep -q ublkb"));
    // What an opening needs, and who serves has open.
    let shown = host.guest.run(&format!("{CLI} volume show brief --json"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let note = format!("/run/flushes-{}", shown["id"].as_str().expect("an id"));
    host.guest.run(&format!("test -f {note} && rm {note} && mkdir {note} && truncate -s 8M /state/brief.img"));
    host.guest.wait_until("grep -q 'its host waits: no note can be kept' /run/daemon.log");
    let said = host.guest.attempt(&format!("mv {file} /run/ && {CLI} reload"));
    assert!(said.stdout.contains("volume brief: no file has it any more"), "{said:?}");
    host.guest.run(&format!("test -e {device} && rmdir {note}"));
    host.guest.wait_until(&format!("test $(dd if={device} bs=4k count=1 iflag=direct 2>/dev/null | wc -c) = 4096"));
    host.guest.run(&format!("kill {user}"));
    host.guest.wait_for_end(user);
    host.guest.wait_until(&format!("{CLI} volume remove brief --yes"));
    host.guest.wait_until(&format!("test ! -e {device} && test ! -e {folder}"));
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

/// The daemon's own flush fails, nobody else flushes, and the daemon dies. Whoever flushes next hears of it, once, although the
/// disk is well again: it has dropped what it could not write.
#[test]
fn a_failed_flush_that_nobody_was_told_of_is_told_after_a_takeover() {
    let mut host = Host::boot(Kernel::Newest, &[UBLK.module, "dm_mod", "dm_flakey"]);
    host.guest.announce("I/O error");
    let data = host.guest.run("cat /run/backing").trim().to_owned();
    let table = |kind: &str, rest: &str| format!("echo 0 65536 {kind} {data} 0 {rest} | dmsetup");
    let turn_into = |host: &mut Host, kind: &str, rest: &str| {
        let reload = format!("{} reload part && dmsetup suspend --noflush --nolockfs part", table(kind, rest));
        host.guest.run(&format!("{reload} && dmsetup resume --noudevsync part"));
    };
    host.guest.run(&format!("{} create --noudevsync part", table("linear", "")));
    host.guest.run(&format!("{CLI} volume add data --backing /dev/mapper/part --tap ublk"));
    host.wait_for_group("the first sync", is_quiet);
    // Nothing is flushed before it is published, and nothing is published now.
    host.guest.run(&format!("{CLI} volume pause data"));
    host.guest.run(&format!("dd if=/dev/urandom of={DEVICE} bs=64k seek=100 count=4 oflag=direct 2>/dev/null"));
    turn_into(&mut host, "flakey", "0 1000000 1 error_writes");
    host.guest.run(&format!("{CLI} volume resume data"));
    host.wait_for_group("a flush to fail", |group| {
        let reasons = group["volumes"][0]["reasons"].as_array();
        reasons.is_some_and(|reasons| reasons.iter().any(|reason| reason["code"] == "flush_failed"))
    });
    host.kill_daemon();
    turn_into(&mut host, "linear", "");
    host.start_daemon();
    let put = format!("farside-vm-load put {DEVICE} 4194304 4096 flush");
    let told = host.guest.attempt(&put);
    assert!(told.code != 0 && told.stderr.contains("Input/output error"), "{told:?}");
    host.guest.run(&put);
    host.wait_for_group("the last writes", is_quiet);
    // Nor after another takeover.
    host.kill_daemon();
    host.start_daemon();
    host.guest.run(&put);
    host.wait_for_group("the last writes", is_quiet);
    host.shut_down();
}

/// Two that count: each number is written at one place through one queue, and only then at another through the other queue. No point
/// has the second without the first, whatever dies.
#[test]
fn every_point_satisfies_the_dependency_across_queues() {
    const MIB: usize = 16;
    let half = MIB << 19;
    let mut host = Host::with(Setup::new(Kernel::Newest, &[UBLK.module]).processors(2).content(vec![0; MIB << 20]));
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap ublk"));
    assert_eq!(host.queue_threads().number(), 2, "a queue for each processor");
    host.wait_for_group("the first sync", is_quiet);
    host.guest.run(&format!("{CLI} group set default --epoch 200ms"));
    // At places that are not each other's, in regions that are.
    let hops = [(0, 0), (4096, 1)];
    for (at, cpu) in hops {
        let hop = format!("exec farside-vm-load hop {DEVICE} {at} {cpu} /run/hops.{cpu} 1");
        host.guest.start_command(&hop, &format!("/run/hop.{cpu}.log"));
    }
    let mut ids: Vec<String> = Vec::new();
    for round in 0..3 {
        let before = ids.len();
        while ids.len() < before + 5 {
            let group = host.wait_for_group("a point under load", |group| {
                group["last_point"]["id"].as_str().is_some_and(|id| ids.last().is_none_or(|last| last != id))
            });
            ids.push(group["last_point"]["id"].as_str().expect("a point").to_owned());
        }
        if round < 2 {
            host.kill_daemon();
            host.start_daemon();
        }
    }
    for (_, cpu) in hops {
        assert_eq!(host.guest.run(&format!("cat /run/hop.{cpu}.log")), "");
    }
    host.guest.run("kill $(pidof farside-vm-load)");
    host.guest.wait_until("! pidof farside-vm-load >/dev/null");
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    let mut seen = Vec::new();
    for id in ids {
        let restore = format!("farside restore data --point {id} --store {FOLDER}/store --to {FOLDER}/one.img >/dev/null");
        let count = |at: usize| format!("farside-vm-load counter {FOLDER}/one.img {at}");
        let all: Vec<String> = hops.iter().flat_map(|(at, _)| [count(*at), count(*at + half)]).collect();
        let said = host.gateway.run(&format!("{restore} && {} && rm {FOLDER}/one.img", all.join(" && ")));
        let counted: Vec<u64> = said.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        for pair in counted.chunks(2) {
            assert!(pair[0] == pair[1] || pair[0] == pair[1] + 1, "point {id}: {counted:?}");
        }
        seen.push(counted);
    }
    println!("{seen:?}");
    assert!(seen.last().expect("points")[0] > seen[0][0], "nothing was counted");
    host.shut_down();
}

/// Counted by the kernel: tracking changes costs the thread that serves a device no system call.
#[test]
fn a_request_costs_no_more_system_calls_than_one_that_is_only_passed_on() {
    let mut host = Host::with(Setup::new(Kernel::Newest, &["ublk_drv"]).processors(2));
    let data = host.guest.run("cat /run/backing").trim().to_owned();
    const WORKLOADS: [&str; 3] = ["write-4096-1 1", "write-4096-32 1", "read-4096-32 1"];
    let bare = Bare::serve(&mut host.guest, &data, "");
    let threads = bare.threads(&mut host.guest);
    let passed_on = WORKLOADS.map(|load_of| {
        let (load, counts) = threads.count(&mut host.guest, |guest| load(guest, &bare.path, load_of));
        counts.system_calls as f64 / load.operations as f64
    });
    bare.stop(&mut host.guest);
    host.guest.run(&format!("{CLI} volume add data --backing {data}"));
    host.wait_for_group("the first sync", is_quiet);
    // A write to a cold region waits for the map, which has a price of its own: none is cold, and none cools.
    host.guest.run(&format!("{CLI} volume pause data"));
    host.guest.run(&format!("for mib in $(seq 0 4 63); do dd if={DEVICE} of={DEVICE} bs=4k count=1 skip=$((mib * 256)) seek=$((mib * 256)) iflag=direct oflag=direct 2>/dev/null; done"));
    let threads = host.queue_threads();
    for (load_of, passed_on) in WORKLOADS.into_iter().zip(passed_on) {
        let (load, counts) = threads.count(&mut host.guest, |guest| load(guest, DEVICE, load_of));
        let ours = counts.system_calls as f64 / load.operations as f64;
        println!("{load_of}: {ours:.2} system calls for each request; passed on: {passed_on:.2}");
        assert!(ours <= passed_on + 1.0, "{load_of}: {ours} for each request, and {passed_on} for one that is passed on");
    }
    host.guest.run(&format!("{CLI} volume resume data"));
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}
