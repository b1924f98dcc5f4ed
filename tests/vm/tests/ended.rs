//! Devices that somebody else takes away, disks that come late, and what lies on pools and caches.

use farside_vm::conformance::{NBD, Tap, UBLK};
use farside_vm::protected::{CLI, Host, is_quiet};
use farside_vm::{Guest, Kernel};

const MIB: u64 = 1 << 20;
/// First sectors and lengths on the disk: two pieces, out of order.
const PIECES: [(u64, u64); 2] = [(65_536, 60_000), (2_048, 60_000)];

fn make_device(host: &mut Host) {
    make_device_with(host, "");
}

fn make_device_with(host: &mut Host, options: &str) {
    let disk = host.guest.run("cat /run/backing");
    host.guest.run(&format!("printf '{}' | dmsetup create data {options}", table_of(&disk)));
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

fn assert_newest_point_is_the_device(host: &mut Host) {
    host.wait_for_group("everything to be published", is_quiet);
    let content = content(&host.disk());
    assert_eq!(content.len() as u64, 120_000 * 512);
    host.assert_newest_point_is(&content);
}

/// A host whose volume lies on a device of the mapper, and is published.
fn with_a_device() -> Host {
    let mut host = Host::boot(Kernel::Backports, &["ublk_drv", "dm_mod"]);
    make_device_with(&mut host, "--uuid one");
    host.guest.run(&format!("{CLI} volume add data --backing /dev/mapper/data"));
    host.wait_for_group("the first sync", is_quiet);
    host
}

#[test]
fn a_disk_that_comes_late_is_served_as_soon_as_it_is_there() {
    let mut host = with_a_device();
    host.kill_daemon();
    host.guest.wait_until("dmsetup remove data");
    // As at a boot whose disk is slower than a start may wait.
    host.daemon_without_its_disks();
    host.guest.wait_until("grep -q 'not served: ' /run/daemon.log");
    make_device_with(&mut host, "--uuid one");
    // Whoever writes now waits until it is served.
    write(&mut host, "/dev/farside/data", 200);
    assert_newest_point_is_the_device(&mut host);
    host.shut_down();
}

/// A disk that keeps the first write of ours: nobody finds the device before, since that write would come after his.
#[test]
fn r13_a_device_has_no_name_before_its_first_write_has_ended() {
    let mut host = Host::boot(Kernel::Backports, &["ublk_drv", "dm_mod", "dm_delay"]);
    let disk = host.guest.run("cat /run/backing");
    let disk = disk.trim();
    let len = PIECES[0].1;
    host.guest.run(&format!("echo '0 {len} delay {disk} 0 0 {disk} 0 100000000' | dmsetup create data --uuid one"));
    host.guest.run(&format!("{CLI} volume add data --backing /dev/mapper/data"));
    host.guest.run("ls /dev/ublkb0 && test ! -e /dev/farside/data");
    let shown = host.guest.run(&format!("{CLI} volume show data"));
    assert!(shown.contains("has no name yet: a first write to it has not ended"), "{shown}");
    // What is suspended lets go of what it kept.
    host.guest.run(&format!("echo '0 {len} linear {disk} 0' | dmsetup load data && dmsetup suspend data && dmsetup resume data"));
    host.guest.wait_until("test -b /dev/farside/data");
    host.guest.run("grep -q 'its device has its name now' /run/daemon.log");
    write(&mut host, "/dev/farside/data", 20);
    host.wait_for_group("everything to be published", is_quiet);
    let content = host.disk()[..len as usize * 512].to_vec();
    host.assert_newest_point_is(&content);
    let shown = host.guest.run(&format!("{CLI} volume show data"));
    assert!(!shown.contains("has no name"), "{shown}");
    host.shut_down();
}

/// A daemon that is started again finds another disk under the volume's name. Its users would write what they remember of the disk
/// before over it.
#[test]
fn whoever_uses_a_device_never_goes_on_over_another_disk() {
    let mut host = with_a_device();
    let user = host.guest.start_command("exec sleep 1000 </dev/farside/data", "/run/user.log");
    host.guest.wait_until(&format!("readlink /proc/{user}/fd/0 | grep -q ublkb"));
    // What a file of ours has lost is no reason to leave him without his disk.
    host.kill_daemon();
    host.guest.run("echo '{' >/state/farside/volumes/default/data/backing.json");
    host.start_daemon();
    host.guest.run("grep -q 'it is not known whether this is the backing' /run/daemon.log");
    write(&mut host, "/dev/farside/data", 100);
    assert_newest_point_is_the_device(&mut host);

    host.kill_daemon();
    host.guest.wait_until("dmsetup remove data");
    make_device_with(&mut host, "--uuid another");
    host.daemon_without_its_disks();
    host.guest.wait_until("grep -q 'another disk was found at its name.*is open in' /run/daemon.log");
    host.guest.run("test -e /state/farside/volumes/default/data/tracking-lost && grep -q one /state/farside/volumes/default/data/backing.json");
    host.guest.run(&format!("kill {user}"));
    host.guest.wait_for_end(user);
    host.guest.run(&format!("{CLI} reload"));
    write(&mut host, "/dev/farside/data", 300);
    assert_newest_point_is_the_device(&mut host);
    host.shut_down();
}

/// A volume over a whole disk.
const PLAIN: &str = "/dev/farside/plain";

/// `ublk del`, `nbd-client -d`: whoever uses the device meets errors, and then there is one again.
fn ended_by_somebody_else(kernel: Kernel, tap: &Tap, end: &str) -> Host {
    let mut host = Host::boot(kernel, &[tap.module, "dm_mod", "loop"]);
    tap.complaints.iter().for_each(|words| host.guest.announce(words));
    host.guest.announce("block nbd");
    host.guest.announce("I/O error");
    host.guest.run(&format!("{CLI} volume add plain --backing $(cat /run/backing) --tap {}", tap.name));
    host.wait_for_group("the first sync", is_quiet);
    host.guest.run(end);
    host.guest.wait_until("grep -q 'served anew' /run/daemon.log || grep -q 'disconnected by somebody else' /run/daemon.log");
    host.guest.wait_until(&reads(PLAIN));
    write(&mut host, PLAIN, 100);
    host.wait_for_group("what was written since", is_quiet);
    // The kernel itself claims nothing.
    host.guest.run(&format!("losetup /dev/loop0 {PLAIN}"));
    let refused = host.guest.attempt(&format!("{CLI} volume remove plain --yes"));
    assert!(refused.code != 0 && refused.stderr.contains("loop device /dev/loop0"), "{refused:?}");
    host.guest.run("losetup -d /dev/loop0");
    // The device of a volume that is not configured any more goes with the next start, perhaps under one who was killed as he waited
    // for it: he ends when it does.
    host.guest.run("kill -STOP $(pidof farsided)");
    let waits =
        host.guest.start_command(&format!("exec dd if={PLAIN} of=/dev/null bs=4k count=1 iflag=direct"), "/run/waits.log");
    host.guest.wait_until(&format!("grep -q 'State:.D' /proc/{waits}/status"));
    host.guest.run(&format!("kill -9 {waits}"));
    host.kill_daemon();
    assert!(host.guest.lives(waits), "he waits");
    host.guest.run("mv /state/farsided.d/volume-plain.toml /run/");
    host.start_daemon();
    host.guest.wait_for_end(waits);
    host.guest.wait_until("test -z \"$(ls /dev/ublkb* /sys/block/nbd*/pid 2>/dev/null)\"");
    host.guest.wait_until(&format!("mv /run/volume-plain.toml /state/farsided.d/; {CLI} reload && {CLI} volume show plain"));
    write(&mut host, PLAIN, 300);
    host.wait_for_group("what was written since", is_quiet);
    host.guest.run(&format!("{CLI} volume remove plain --yes"));
    host
}

fn write(host: &mut Host, device: &str, at: u32) {
    host.guest.run(&format!("dd if=/dev/urandom of={device} bs=64k seek={at} count=20 oflag=direct 2>/dev/null"));
}

/// One that is dead has no content, and perhaps no error either.
fn reads(device: &str) -> String {
    format!("test $(dd if={device} bs=4k count=1 iflag=direct 2>/dev/null | wc -c) = 4096")
}

#[test]
fn a_ublk_device_that_somebody_else_ends_is_made_again() {
    let end = "farside-vm-bench end $(readlink -f /dev/farside/* | tr -dc 0-9)";
    let mut host = ended_by_somebody_else(Kernel::Backports, &UBLK, end);
    // One that is under a device which stays in use.
    make_device(&mut host);
    host.guest.start_command("exec sleep 1000 </dev/mapper/data", "/run/user.log");
    insert(&mut host);
    host.wait_for_group("the first sync", is_quiet);
    host.guest.run(end);
    host.guest.wait_until(&reads("/dev/mapper/data"));
    write(&mut host, "/dev/mapper/data", 200);
    assert_newest_point_is_the_device(&mut host);
    remove(&mut host);
    let disk = host.guest.run("cat /run/backing");
    assert_eq!(table(&mut host).lines().count(), 2, "it is on {disk} again");
    host.shut_down();
}

#[test]
fn an_nbd_device_that_somebody_else_ends_is_made_again() {
    ended_by_somebody_else(Kernel::Stock, &NBD, "nbd-client -d $(readlink -f /dev/farside/*) >/dev/null").shut_down();
}

/// A device of the device mapper is not taken, with these words, and stays as it is.
fn refused(guest: &mut Guest, name: &str, words: &str) {
    let before = guest.run("dmsetup table");
    let refused = guest.attempt(&format!("{CLI} volume add {name} --device /dev/mapper/{name}"));
    assert!(refused.code != 0 && refused.stderr.contains(words), "{refused:?}");
    assert_eq!(guest.run("dmsetup table"), before);
}

#[test]
fn thin_cached_and_mirrored_volumes_and_what_farsided_needs_are_refused_by_name() {
    const MODULES: [&str; 8] = ["nbd", "dm_mod", "dm_thin_pool", "dm_cache", "dm_cache_smq", "dm_raid", "raid1", "dm_mirror"];
    let mut host = Host::boot(Kernel::Stock, &MODULES);
    let disk = host.guest.run("cat /run/backing").trim().to_owned();
    let half = 8 * MIB / 512;
    // What LVM makes of thin and cached volumes.
    let part = |name: &str, at: u64, len: u64| format!("echo 0 {len} linear {disk} {at} | dmsetup create {name}");
    for (name, at, len) in [("meta", 0, 8192), ("pooled", 8192, 32_768), ("meta2", 40_960, 8192), ("fast", 49_152, 16_384)] {
        host.guest.run(&part(name, at, len));
    }
    let mapper = "/dev/mapper";
    host.guest.run(&format!("echo 0 32768 thin-pool {mapper}/meta {mapper}/pooled 128 0 | dmsetup create pool"));
    host.guest.run("dmsetup message pool 0 'create_thin 0'");
    host.guest.run(&format!("echo 0 {half} thin {mapper}/pool 0 | dmsetup create thin"));
    let cache = format!("0 {half} cache {mapper}/meta2 {mapper}/fast {disk} 512 1 writethrough smq 0");
    host.guest.run(&format!("echo {cache} | dmsetup create cached"));
    refused(&mut host.guest, "thin", "a thin target: a tap can be put under linear ones only, not under thin volumes");
    refused(&mut host.guest, "pool", "a thin-pool target: a tap can be put under linear ones only, not under thin volumes");
    refused(&mut host.guest, "cached", "a cache target: a tap can be put under linear ones only, not under cached volumes");
    host.guest.run("dmsetup remove cached && dmsetup remove thin && dmsetup remove pool");
    // And of mirrored ones, of both kinds.
    for (name, table) in [
        ("raid", format!("raid raid1 4 0 nosync region_size 1024 2 - {mapper}/meta - {mapper}/meta2")),
        ("mirror", format!("mirror core 2 1024 nosync 2 {mapper}/meta 0 {mapper}/meta2 0")),
    ] {
        host.guest.run(&format!("echo 0 8192 {table} | dmsetup create {name}"));
        let words = format!("a {name} target: a tap can be put under linear ones only, not under RAID volumes");
        refused(&mut host.guest, name, &words);
        host.guest.run(&format!("dmsetup remove {name}"));
    }
    // What farsided itself needs.
    host.guest.run(&format!(
        "/bin/mke2fs -q -t ext4 {mapper}/pooled && mkdir -p /etc/farside && mount -t ext4 {mapper}/pooled /etc/farside"
    ));
    let refused = host.guest.attempt(&format!("{CLI} volume add needs --device {mapper}/pooled"));
    assert!(refused.code != 0 && refused.stderr.contains("/etc/farside lies on /dev/mapper/pooled"), "{refused:?}");
    host.guest.run(
        "umount /etc/farside && dmsetup remove meta && dmsetup remove meta2 && dmsetup remove pooled && dmsetup remove fast",
    );
    let volumes = host.guest.run(&format!("{CLI} volume list --json"));
    assert_eq!(volumes.trim(), "[]", "nothing was added");
    host.shut_down();
}
