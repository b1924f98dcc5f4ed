//! A tap under a mounted device of the device mapper: put there and taken out again while an application writes, whatever a
//! crash left, and refused by name where it cannot be.

use farside_tests::verify::Rng;
use farside_tests::wait_until;
use farside_vm::conformance::{self, NBD, Seat, Tap, UBLK};
use farside_vm::gateway::{Gateway, md5_of};
use farside_vm::packages::{Load, status, upload, wait_quiet};
use farside_vm::protected::{CLI, Host, PROMISED, is_quiet};
use farside_vm::{DiskSpec, Kernel, Machine};

const MIB: u64 = 1 << 20;
const CYCLES: u64 = 10;
/// First sectors and lengths on the disk: two pieces, out of order.
const PIECES: [(u64, u64); 2] = [(65_536, 60_000), (2_048, 60_000)];

/// A host with `data` (dm-linear over two pieces of its disk) on which an application writes.
fn host(kernel: Kernel, driver: &'static str) -> Host {
    let mut host = Host::boot(kernel, &[driver, "dm_mod"]);
    make_device(&mut host);
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/mapper/data && mount -t ext4 /dev/mapper/data /mnt");
    host.guest.announce("block nbd"); // it says when a connection breaks; an I/O error has other words
    host.start_load();
    host
}

fn make_device(host: &mut Host) {
    let disk = host.guest.run("cat /run/backing");
    host.guest.run(&format!("printf '{}' | dmsetup create data", table_of(&disk)));
}

fn table_of(disk: &str) -> String {
    let [(first, len), (second, _)] = PIECES;
    let disk = disk.trim();
    format!("0 {len} linear {disk} {first}\\n{len} {len} linear {disk} {second}\\n")
}

fn table(host: &mut Host) -> String {
    host.guest.run("dmsetup table data")
}

/// Of the device, out of its disk's.
fn content(disk: &[u8]) -> Vec<u8> {
    let piece = |(first, len): (u64, u64)| disk[first as usize * 512..][..len as usize * 512].to_vec();
    PIECES.into_iter().flat_map(piece).collect()
}

fn insert(host: &mut Host) {
    host.guest.run(&format!("{CLI} volume add data --device /dev/mapper/data"));
}

fn remove(host: &mut Host) {
    host.guest.run(&format!("{CLI} volume remove data --yes"));
}

/// Before the gateway has anything of it, it is not taken for another one when it is added again.
fn first_point(host: &mut Host) {
    host.wait_for_group("a first point", |group| group["last_point"].is_object());
}

/// Added again, it is not taken for the one that has points already.
fn accept(host: &mut Host) {
    host.wait_for_group("a decision to be asked for", |group| group["volumes"][0]["state"]["state"] == "forked");
    host.guest.run(&format!("{CLI} volume resync data --accept forked"));
}

/// A healthy host, and one whose device was left suspended.
fn doctor(host: &mut Host) {
    let doctor = "farside doctor --config /state/farsided.toml";
    let well = host.guest.run(&format!("{doctor} --json"));
    assert!(well.contains("the tap is under /dev/mapper/data"), "{well}");
    host.guest.run("dmsetup suspend data");
    let sick = host.guest.attempt(doctor);
    assert!(sick.code == 7 && sick.stdout.contains("/dev/mapper/data is suspended"), "{sick:?}");
    host.guest.run(&format!("{doctor} --fix"));
    host.wait_for_load(10);
}

#[test]
fn ten_times_in_and_out_under_a_mounted_file_system_are_noticed_by_nobody() {
    in_and_out(Kernel::Stock, &NBD);
}

#[test]
fn ten_times_in_and_out_over_ublk_are_noticed_by_nobody() {
    in_and_out(Kernel::Backports, &UBLK);
}

fn in_and_out(kernel: Kernel, tap: &Tap) {
    let mut host = host(kernel, tap.module);
    let name = tap.node.strip_prefix("/dev/").expect("a node");
    let bare = table(&mut host);
    for cycle in 0..CYCLES {
        insert(&mut host);
        let below = host.guest.run("ls /sys/block/dm-0/slaves");
        assert!(below.trim() == name, "the device rests on the tap, not on {below}");
        match cycle {
            0 => first_point(&mut host),
            _ => accept(&mut host),
        }
        host.wait_for_load(10);
        if cycle == 0 {
            // † Its host writes to the disk: nothing of ours may come between.
            host.guest
                .run("grep 'no first write was tried' /run/daemon.log && ! grep 'a first write was marked' /run/daemon.log");
            doctor(&mut host);
        }
        if cycle % 3 == 2 {
            host.guest.start_command("fstrim /mnt && sync", "/run/trim.log");
            host.kill_daemon();
            host.start_daemon();
            host.wait_for_load(10);
        }
        if cycle + 1 < CYCLES {
            remove(&mut host);
            assert_eq!(table(&mut host), bare, "the device is on its own disk");
            host.guest
                .run("! dmsetup info data-farside-backing >/dev/null 2>&1 && test ! -e /sys/block/nbd0/pid -a ! -e /dev/ublkb0");
            host.wait_for_load(10);
        }
    }
    host.stop_load();
    host.guest.run("umount /mnt && test ! -s /run/trim.log");
    host.guest.run("/bin/e2fsck -fn /dev/mapper/data");
    // Above its tap it is a disk like any tap.
    let seat = Seat { device: "/dev/dm-0", backing: "/dev/dm-1", content };
    conformance::acts_as_a_disk(&mut host, tap, &seat);
    assert_newest_point_is_the_device(&mut host);

    // The power goes under an application. Without its tap at first, the device is compared in full, and has what was synced.
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/mapper/data && mount -t ext4 /dev/mapper/data /mnt && rm -f /run/progress");
    host.start_load();
    host.scribble();
    host.wait_for_load(20);
    let promised = host.guest.download(PROMISED);
    let (mut host, _) = host.cut_power(&mut Rng(13), 4);
    host.guest.announce("block nbd");
    make_device(&mut host);
    host.start_daemon();
    host.guest.wait_until(&format!("ls /sys/block/dm-0/slaves | grep -x {name}"));
    host.guest.run("grep 'everything will be compared' /run/daemon.log");
    host.guest.run("mount -t ext4 /dev/mapper/data /mnt");
    host.guest.upload("/run/promised", &promised, 0o644);
    host.guest.run("farside-vm-load check /mnt /run/promised && umount /mnt");
    assert_newest_point_is_the_device(&mut host);
    remove(&mut host);
    host.guest.run("/bin/e2fsck -fn /dev/mapper/data");
    host.shut_down();
}

fn assert_newest_point_is_the_device(host: &mut Host) {
    host.wait_for_group("everything to be published", is_quiet);
    let content = content(&host.disk());
    assert_eq!(content.len() as u64, 120_000 * 512);
    host.assert_newest_point_is(&content);
}

#[test]
fn a_crash_at_any_moment_leaves_a_device_that_works() {
    let mut host = host(Kernel::Stock, "nbd");
    let bare = table(&mut host);
    let disk = host.guest.run("cat /run/backing");
    let same = format!("printf '{}'", table_of(&disk));
    let make_twin = "dmsetup create data-farside-backing --uuid FARSIDE-BACKING-data";
    let twin = format!("{same} | {make_twin}");
    let loaded = format!("{twin}; {same} | dmsetup load data");
    let left = [
        ("a twin without a table", format!("{make_twin} --notable")),
        ("a twin", twin.clone()),
        ("a twin of what the device was before", format!("echo 0 120000 linear {} 4096 | {make_twin}", disk.trim())),
        ("a table that was never put in use", loaded.clone()),
        ("a device that was left suspended", format!("{loaded}; dmsetup suspend data")),
    ];
    for (at, (what, commands)) in left.iter().enumerate() {
        println!("{what}");
        host.guest.run(commands);
        insert(&mut host);
        match at {
            0 => first_point(&mut host),
            _ => accept(&mut host),
        }
        host.wait_for_load(10);
        remove(&mut host);
        assert_eq!(table(&mut host), bare, "{what}");
        host.wait_for_load(10);
    }
    // Suspended by a command that has given up by now, and whose volume is not configured: named, and let go on.
    println!("a device that was left suspended, of no volume");
    host.guest.run(&format!("{twin}; dmsetup suspend data"));
    let doctor = "farside doctor --config /state/farsided.toml";
    let sick = host.guest.attempt(doctor);
    assert!(sick.code == 7 && sick.stdout.contains("/dev/mapper/data is suspended"), "{sick:?}");
    host.guest.attempt(&format!("{doctor} --fix"));
    host.wait_for_load(10);
    host.guest.run("! dmsetup info data-farside-backing >/dev/null 2>&1");
    // Killed at moments that nobody chose, on the way in and on the way out. What is left of a volume that is not configured any
    // more is disconnected at the next start, perhaps under the last flush of a helper: nobody uses it then.
    host.guest.announce("dev nbd0, sector 0");
    let mut rng = Rng(5);
    for _ in 0..8 {
        for command in ["volume add data --device /dev/mapper/data", "volume remove data --yes"] {
            let pid = host.guest.start_command(&format!("{CLI} {command}"), "/run/commands.log");
            host.guest.run(&format!("usleep {}", rng.below(400_000)));
            host.kill_daemon();
            host.guest.wait_for_end(pid);
            host.start_daemon();
            host.wait_for_load(5);
        }
    }
    if host.guest.attempt(&format!("{CLI} volume show data")).code == 0 {
        remove(&mut host);
    }
    host.guest.wait_until("! dmsetup info data-farside-backing >/dev/null 2>&1 && ! cat /sys/block/nbd*/pid");
    assert_eq!(table(&mut host), bare);
    host.stop_load();
    host.guest.run("umount /mnt && /bin/e2fsck -fn /dev/mapper/data");
    host.shut_down();
}

#[test]
fn what_cannot_be_inserted_is_refused_by_name_and_left_alone() {
    let mut host = Host::boot(Kernel::Stock, &["nbd", "dm_mod", "dm_snapshot"]);
    let disk = host.guest.run("cat /run/backing").trim().to_owned();
    let (half, at) = (8 * MIB / 512, 4096);
    for (name, table, words) in [
        ("stripes", format!("0 {half} striped 2 64 {disk} {at} {disk} {}", at + half), "has a striped target"),
        ("origin", format!("0 {half} snapshot-origin {disk}"), "has a snapshot-origin target"),
        ("broken", format!("0 {half} error"), "has a error target"),
    ] {
        host.guest.run(&format!("echo {table} | dmsetup create {name}"));
        let before = host.guest.run("dmsetup table");
        let refused = host.guest.attempt(&format!("{CLI} volume add {name} --device /dev/mapper/{name}"));
        assert!(refused.code != 0 && refused.stderr.contains(words), "{refused:?}");
        assert_eq!(host.guest.run("dmsetup table"), before);
        host.guest.run(&format!("dmsetup remove {name}"));
    }
    let refused = host.guest.attempt(&format!("{CLI} volume add plain --device {disk}"));
    assert!(refused.code != 0 && refused.stderr.contains("no device of the device mapper"), "{refused:?}");
    let volumes = host.guest.run(&format!("{CLI} volume list --json"));
    assert_eq!(volumes.trim(), "[]", "nothing was added");
    host.shut_down();
}

/// What README says, line by line.
fn commands_of_the_readme() -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let block = readme.split("**A mounted volume of LVM**").nth(1).expect("it has such a part");
    let block = block.split("```").nth(1).expect("with a block");
    block.lines().filter(|line| !line.is_empty()).collect()
}

/// What LVM's device rests on.
const BELOW: &str = "ls /sys/block/$(basename $(readlink -f /dev/vg/home))/slaves";

#[test]
fn a_mounted_volume_of_lvm_is_protected_with_the_three_commands_of_the_readme() {
    let mut gateway = Gateway::here();
    let token = gateway.token();
    let mut machine = Machine::debian("host", Kernel::Stock)
        .modules(&["nbd", "dm_mod"])
        .programs(&["farside-vm-load"])
        .disk(DiskSpec::blank("data", 64))
        .on_this_machine();
    let mut host = machine.boot();
    host.booted();
    host.announce("block nbd");
    host.announce("dev nbd0, "); // udev looks at the tap's own node as it goes
    let disk = host.disk("data");
    host.run(&format!("pvcreate -q {disk} && vgcreate -q vg {disk} && lvcreate -q -y -n home -L 32M vg"));
    host.run("mkfs.ext4 -q /dev/vg/home && mkdir /srv/home && mount /dev/vg/home /srv/home");
    upload(&mut host, &["farside", "farsided"]);
    let load = Load::start(&mut host, "/srv/home");
    let commands = commands_of_the_readme();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        host.run(&format!("cd /root && {}", command.replace("THE LINE", &token)));
    }
    assert!(host.run(BELOW).starts_with("nbd"), "its tap is under it");
    // Swap and what a boot needs are refused by name.
    host.run("lvcreate -q -y -n swap -L 8M vg && mkswap -q /dev/vg/swap && swapon /dev/vg/swap");
    let refused = host.attempt("farside volume add swap --device /dev/vg/swap");
    assert!(refused.code != 0 && refused.stderr.contains("swapoff"), "{refused:?}");
    host.run("swapoff /dev/vg/swap");
    // The power goes. After the boot LVM has its volume on its own disk, perhaps before farsided comes, and what was synced is there.
    host.run("sync");
    load.gets_on(&mut host, 16);
    let scribble = "cd /srv/home; while dd if=/dev/urandom of=scribble bs=64k count=16 oflag=direct conv=notrunc; do :; done";
    host.start_command(scribble, "/run/scribble.log");
    host.wait_until("grep -q 'records out' /run/scribble.log");
    let promised = host.download(PROMISED);
    assert!(host.cut_power(&mut Rng(17), 4) > 0, "nothing was in any cache: nothing is proved");
    let mut host = machine.boot();
    ["block nbd", "dev nbd0, "].iter().for_each(|words| host.announce(words));
    host.booted();
    host.wait_until(&format!("{BELOW} | grep nbd"));
    host.run("journalctl --sync && journalctl -b -u farsided --no-pager --grep 'its device was used without a tap: everything will be compared'");
    host.run("mount /dev/vg/home /srv/home");
    Load::check(&mut host, "/srv/home", &promised);
    let load = Load::start(&mut host, "/srv/home");
    load.gets_on(&mut host, 16);
    load.stop(&mut host);
    host.run("umount /srv/home");
    wait_quiet(&mut host);
    let here = host.run("dd if=/dev/vg/home bs=1M iflag=direct 2>/dev/null | md5sum");
    let newest = md5_of(&gateway.restore("home", "latest"));
    assert!(here.split(' ').next() == Some(&newest), "the newest point is not what the volume holds");
    let said = status(&mut host).expect("it answers").to_string();
    assert!(!said.contains("tracking_lost"), "what was compared is not in doubt any more: {said}");
    is_handed_over_and_comes_back(&mut host, &mut gateway);
    host.run("farside volume remove home --yes && e2fsck -fn /dev/vg/home");
    host.power_off();
    gateway.shut_down();
}

/// The circle of a mounted volume of LVM: refused while it is in use; then its device is on its own disks and nobody's, is failed over, comes back, and
/// is mounted with what was on it, over its tap.
fn is_handed_over_and_comes_back(host: &mut farside_vm::Guest, gateway: &mut Gateway) {
    host.announce("Can't open blockdev");
    host.run("mount /dev/vg/home /mnt && head -c 3000000 /dev/urandom > /mnt/kept && cp /mnt/kept /root/kept && sync");
    let group: serde_json::Value = serde_json::from_str(&host.run("farside volume list --json")).expect("JSON");
    let group = group[0]["group"].as_str().expect("it has a group").to_owned();
    let refused = host.attempt(&format!("farside cutover {group} --yes"));
    assert!(refused.code == 4 && refused.stderr.contains("volume home is in use"), "{refused:?}");
    assert!(host.run(BELOW).starts_with("nbd"), "nothing was changed");
    host.run("umount /mnt");
    wait_quiet(host);
    let source = status(host).expect("it answers")["source"].as_str().expect("a name").to_owned();
    let is_nobodys = |host: &mut farside_vm::Guest| {
        assert!(!host.run(BELOW).contains("nbd"), "a tap is under it");
        assert_eq!(host.attempt("dmsetup ls | grep farside-backing").stdout, "", "its disks have another way");
        assert_ne!(host.attempt("mount /dev/vg/home /mnt").code, 0, "it is mounted");
    };
    // Aborted, it is as it was.
    host.run(&format!("farside cutover {group} --yes --wait 1h"));
    is_nobodys(host);
    host.run(&format!("farside cutover {group} --abort"));
    host.wait_until(&format!("{BELOW} | grep nbd"));
    wait_quiet(host);
    let done = host.run(&format!("farside cutover {group} --yes --wait 1h"));
    assert!(done.contains("is handed over"), "{done}");
    is_nobodys(host);
    // Killed, it stays nobody's.
    host.run("systemctl kill -s KILL farsided");
    host.wait_until("farside cutover --list | grep 'handed over'");
    is_nobodys(host);
    let receiver = format!("farside --socket {}/receiver.sock", farside_vm::gateway::FOLDER);
    // A farewell is one packet: where it is lost, the gateway needs a while to notice.
    wait_until("the gateway to see that the host has left", || {
        let plan = gateway.run(&format!("{receiver} failover {source}/{group} --plan --json"));
        let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
        if plan["connected_from"].is_null() { Ok(()) } else { Err(plan.to_string()) }
    });
    gateway.run(&format!("{receiver} failover {source}/{group} --yes"));
    host.run(&format!("farside failback {group} --yes --force"));
    is_nobodys(host);
    host.run(&format!("farside failback {group} --finish --force --yes"));
    host.wait_until(&format!("{BELOW} | grep nbd"));
    host.run("mount /dev/vg/home /mnt && cmp /mnt/kept /root/kept && rm /mnt/kept && umount /mnt");
    wait_quiet(host);
    let here = host.run("dd if=/dev/vg/home bs=1M iflag=direct 2>/dev/null | md5sum");
    let newest = md5_of(&gateway.restore("home", "latest"));
    assert!(here.split(' ').next() == Some(&newest), "the newest point is not what the volume holds");
}
