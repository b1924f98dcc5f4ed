//! What every tap must be, whatever driver stands behind it: a disk like its backing, which outlives its server and loses
//! nothing that was synced. One suite, called by the tests of each tap; [`Tap`] holds what differs between them.
//!
//! Deliberately not here: how a device is made and taken away under faults, which is each driver's own story.

use farside_tests::verify::Rng;
use serde_json::Value;

use crate::protected::{CLI, Host, Setup, is_quiet};
use crate::{Guest, Kernel};

/// The volume's device, as its users name it.
pub const DEVICE: &str = "/dev/farside/data";

/// Takes all memory until it is killed for it.
pub const HOG: &str = "echo 1000 > /proc/self/oom_score_adj; exec tail /dev/zero";

/// What a kernel says then. Every other alarm has words of its own beside its trace.
pub const NO_MEMORY: [&str; 4] = ["Out of memory: Killed process", "oom-kill", "Call Trace:", "Not tainted"];

const BIG_BLOCK: &str = "4096";

/// A tap, and what its driver cannot do like others.
#[derive(Clone, Copy, Debug)]
pub struct Tap {
    /// As `volume add --tap` calls it.
    pub name: &'static str,
    /// The kernel's module.
    pub module: &'static str,
    /// The node of the first device.
    pub node: &'static str,
    /// What of `/sys/block/*/queue` is the backing's.
    pub as_backing: &'static [&'static str],
    /// Whether the device zeroes without being written zeroes.
    pub zeroes: bool,
    /// What the kernel says when a server dies.
    pub complaints: &'static [&'static str],
}

/// The ublk tap.
pub const UBLK: Tap = Tap {
    name: "ublk",
    module: "ublk_drv",
    node: "/dev/ublkb0",
    as_backing: &[
        "logical_block_size",
        "physical_block_size",
        "minimum_io_size",
        "optimal_io_size",
        "rotational",
        "discard_granularity",
    ],
    zeroes: true,
    complaints: &[],
};

/// The kernel's own NBD client over the NBD tap. It says that a connection broke, each time.
pub const NBD: Tap = Tap {
    name: "nbd-device",
    module: "nbd",
    node: "/dev/nbd0",
    as_backing: &["logical_block_size", "physical_block_size", "minimum_io_size", "rotational"],
    zeroes: false,
    complaints: &[
        "block nbd0: Receive",
        "block nbd0: Send control",
        "block nbd0: Send data",
        "block nbd0: Request send",
        "block nbd0: Dead connection",
    ],
};

/// A host of so many processors with its volume behind this tap.
///
/// # Panics
/// When something does not come up.
pub fn boot(kernel: Kernel, tap: &Tap, processors: u32) -> Host {
    protect(Setup::new(kernel, &[tap.module]).processors(processors), tap)
}

/// This host with its volume behind this tap.
///
/// # Panics
/// When something does not come up.
pub fn protect(setup: Setup, tap: &Tap) -> Host {
    let mut host = Host::with(setup);
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap {}", tap.name));
    tap.complaints.iter().for_each(|words| host.guest.announce(words));
    host
}

/// A host with a file system on its device, and an application that writes.
///
/// # Panics
/// When something does not come up.
pub fn with_load(kernel: Kernel, tap: &Tap, processors: u32) -> Host {
    let mut host = boot(kernel, tap, processors);
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.start_load();
    host.wait_for_load(20);
    host
}

fn queue_file(guest: &mut Guest, device: &str, file: &str) -> String {
    guest.run(&format!("cat /sys/block/$(basename $(readlink -f {device}))/queue/{file}")).trim().to_owned()
}

/// What lies there, read past every cache.
fn digest(guest: &mut Guest, device: &str) -> String {
    guest.run(&format!("dd if={device} bs=1M skip=8 count=16 iflag=direct 2>/dev/null | md5sum"))
}

/// A device over a tap, as its users see it.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// The device.
    pub device: &'a str,
    /// What is below the tap, byte by byte.
    pub backing: &'a str,
    /// The device's content, out of that of the host's data disk.
    pub content: fn(&[u8]) -> Vec<u8>,
}

/// A tap that is a disk by itself.
///
/// # Panics
/// When it is none.
pub fn is_a_disk(host: &mut Host, tap: &Tap) {
    let backing = host.guest.run("cat /run/backing").trim().to_owned();
    acts_as_a_disk(host, tap, &Seat { device: DEVICE, backing: &backing, content: <[u8]>::to_vec });
    big_blocks(host, tap);
}

/// Geometry and limits, data and alignment, flushes, discards. Writes over whatever is there.
///
/// # Panics
/// When it is no disk.
pub fn acts_as_a_disk(host: &mut Host, tap: &Tap, seat: &Seat<'_>) {
    geometry(&mut host.guest, tap, seat.device, seat.backing);
    data(&mut host.guest, seat);
    durability(host, seat);
    zeroes(&mut host.guest, seat);
}

fn geometry(guest: &mut Guest, tap: &Tap, device: &str, backing: &str) {
    guest.run(&format!("test -b $(readlink -f {device})"));
    for file in tap.as_backing {
        assert_eq!(queue_file(guest, device, file), queue_file(guest, backing, file), "{file}");
    }
    let promises_zeroes = if tap.zeroes { &["discard_max_bytes", "write_zeroes_max_bytes"][..] } else { &["discard_max_bytes"] };
    for file in promises_zeroes {
        assert_ne!(queue_file(guest, device, file), "0", "{file}");
    }
    assert_eq!(queue_file(guest, device, "write_cache"), "write back", "or nobody flushes");
    assert_eq!(queue_file(guest, device, "fua"), "1");
    let mut size = |device: &str| guest.run(&format!("blockdev --getsize64 {device}"));
    assert_eq!(size(device), size(backing));
}

/// What is written to the device lies on its backing, where it was written: in requests longer than any limit, unaligned ones
/// through the page cache, and single sectors. There is nothing behind its end.
fn data(guest: &mut Guest, seat: &Seat<'_>) {
    let device = seat.device;
    guest.run(&format!("dd if=/dev/urandom of={device} bs=8M seek=1 count=2 oflag=direct 2>/dev/null"));
    guest.run(&format!("dd if=/dev/urandom of={device} bs=777 seek=12345 count=1000 conv=fsync 2>/dev/null"));
    guest.run(&format!("dd if=/dev/urandom of={device} bs=512 seek=30001 count=77 oflag=direct 2>/dev/null"));
    assert_eq!(digest(guest, device), digest(guest, seat.backing));
    let odd = guest.attempt(&format!("farside-vm-load put {device} 4096 700 fua"));
    assert!(odd.code != 0 && odd.stderr.contains("Invalid argument"), "part of a sector: {odd:?}");
    let size = guest.run(&format!("blockdev --getsize64 {device}")).trim().to_owned();
    let behind = guest.attempt(&format!("farside-vm-load put {device} {size} 4096 fua"));
    assert!(behind.code != 0 && behind.stderr.contains("No space left"), "behind its end: {behind:?}");
}

/// What was synced survives the power, on the disk itself; what was written with FUA, too.
fn durability(host: &mut Host, seat: &Seat<'_>) {
    for (how, at, bytes) in [("flush", 40 << 20, 1 << 20), ("fua", 44 << 20, 64 << 10)] {
        host.guest.run(&format!("farside-vm-load put {} {at} {bytes} {how}", seat.device));
        let (seen, durable) = ((seat.content)(&host.disk()), (seat.content)(&host.durable()));
        let range = at..at + bytes;
        assert!(seen[range.clone()].iter().any(|byte| *byte != 0), "{how}: nothing was written");
        assert!(seen[range.clone()] == durable[range], "{how}: what was synced would not survive");
    }
}

fn zeroes(guest: &mut Guest, seat: &Seat<'_>) {
    let device = seat.device;
    let before = digest(guest, device);
    guest.run(&format!("blkdiscard -o 9437184 -l 4194304 {device}"));
    guest.run(&format!("fallocate -z -o 15728640 -l 1048576 {device} 2>/dev/null || blkdiscard -o 15728640 -l 1048576 {device}"));
    for (from, mib) in [(9, 4), (15, 1)] {
        let read = format!("dd if={device} bs=1M skip={from} count={mib} iflag=direct 2>/dev/null | tr -d '\\0' | wc -c");
        assert_eq!(guest.run(&read).trim(), "0", "what was discarded or zeroed at {from} MiB reads as zeroes");
    }
    assert_ne!(digest(guest, device), before);
    assert_eq!(digest(guest, device), digest(guest, seat.backing));
}

/// A backing whose sectors have 4 KiB has a device whose sectors do.
fn big_blocks(host: &mut Host, tap: &Tap) {
    let backing = host.guest.disk("wide");
    host.guest.run(&format!("{CLI} volume add wide --backing {backing} --tap {}", tap.name));
    let (guest, device) = (&mut host.guest, "/dev/farside/wide");
    geometry(guest, tap, device, &backing);
    assert_eq!(queue_file(guest, device, "logical_block_size"), BIG_BLOCK);
    let half = guest.attempt(&format!("farside-vm-load put {device} 4096 512 fua"));
    assert!(half.code != 0 && half.stderr.contains("Invalid argument"), "an eighth of a sector: {half:?}");
    guest.run(&format!("dd if=/dev/urandom of={device} bs=4k seek=3 count=5 oflag=direct 2>/dev/null"));
    let mut head = |device: &str| guest.run(&format!("dd if={device} bs=4k count=16 iflag=direct 2>/dev/null | md5sum"));
    assert_eq!(head(device), head(&backing));
    guest.run(&format!("{CLI} volume remove wide --yes"));
    guest.run(&format!("test ! -e {device}"));
}

/// A virtual machine or a database has the device open and claims nothing: to it, too, a planned stop is a pause, and nobody
/// takes the device away.
fn stays_with_whoever_has_it_open(host: &mut Host) {
    let writes = "dd if=/dev/urandom of=/run/piece bs=4k count=1 && dd if=/run/piece bs=4k conv=fsync,notrunc >&3";
    let waits = "touch /run/open; until test -e /run/go; do usleep 20000; done";
    let user = host.guest.start_command(&format!("exec 3<>{DEVICE}; {waits}; {writes} && touch /run/written"), "/run/open.log");
    host.guest.wait_until("test -e /run/open");
    let refused = host.guest.attempt(&format!("{CLI} volume remove data --yes"));
    assert!(refused.code != 0 && refused.stderr.contains("is open in process"), "{refused:?}");
    host.stop_daemon();
    host.start_daemon();
    host.guest.run("touch /run/go");
    host.guest.wait_for_end(user);
    host.guest.run(&format!("test -e /run/written && dd if={DEVICE} bs=4k count=1 iflag=direct 2>/dev/null | cmp - /run/piece"));
}

/// Everything that may happen to a tap under a mounted file system: deaths, a planned stop, somebody who would take it away,
/// the power.
///
/// # Panics
/// When somebody notices.
pub fn lives_through_everything(kernel: Kernel, tap: &Tap, kills: u64) {
    let mut host = boot(kernel, tap, 2);
    is_a_disk(&mut host, tap);
    stays_with_whoever_has_it_open(&mut host);
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 -o commit=300 {DEVICE} /mnt"));
    host.wait_for_group("the first sync", is_quiet);

    let device = host.guest.run(&format!("readlink -f {DEVICE}"));
    host.start_load();
    host.kill_under_load(kills);
    assert_eq!(host.guest.run(&format!("readlink -f {DEVICE}")), device, "one device all along");
    // A planned stop is a pause, too.
    host.stop_daemon();
    host.start_daemon();
    host.wait_for_load(20);
    // Who uses it keeps it.
    let refused = host.guest.attempt(&format!("{CLI} volume remove data --yes"));
    assert!(refused.code != 0 && refused.stderr.contains(&format!("{} is in use", tap.node)), "{refused:?}");

    let mut host = loses_its_power(host, tap, &mut Rng(11));
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.guest.run(&format!("test ! -e {DEVICE} && test ! -s {} && ! cat /sys/block/nbd*/pid 2>/dev/null", tap.node));
    host.shut_down();
}

/// The power goes under an application and under somebody who writes and never syncs. The host boots, converges, and has its
/// file system mounted with everything that was synced.
fn loses_its_power(mut host: Host, tap: &Tap, rng: &mut Rng) -> Host {
    host.scribble();
    host.wait_for_load(20);
    let promised = host.guest.download("/run/progress");
    let (mut host, lost) = host.cut_power(rng, 4);
    tap.complaints.iter().for_each(|words| host.guest.announce(words));
    host.start_daemon();
    let group = host.wait_for_group("everything to be published", is_quiet);
    println!("{lost} blocks lost; {} bytes read again", group["volumes"][0]["counters"]["sent_bytes"]);
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("/bin/e2fsck -p {DEVICE}; /bin/e2fsck -fn {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.guest.upload("/run/promised", &promised, 0o644);
    println!("synced: {}", host.guest.run("farside-vm-load check /mnt /run/promised"));
    host
}

/// Memory can only be had by writing to the device, which takes memory: neither the daemon's nor the driver's way may wait for it.
///
/// # Panics
/// When somebody does, or the killer takes the wrong one.
pub fn writes_on_without_memory(kernel: Kernel, tap: &Tap, processors: u32) {
    let mut host = with_load(kernel, tap, processors);
    NO_MEMORY.iter().for_each(|words| host.guest.announce(words));
    for _ in 0..2 {
        host.guest.run("for pid in $(pidof farsided); do echo -1000 > /proc/$pid/oom_score_adj; done");
        // Dirty pages of the file system beside a program that takes all memory until it is killed.
        let dirties =
            host.guest.start_command("dd if=/dev/zero of=/mnt/dirty bs=1M count=16 conv=notrunc 2>&1", "/run/dirty.log");
        let hog = host.guest.attempt(HOG);
        assert_eq!(hog.code, 128 + 9, "it was killed: {hog:?}");
        host.guest.run("echo 3 > /proc/sys/vm/drop_caches");
        host.load_lives();
        host.wait_for_load(10);
        host.kill_daemon();
        host.start_daemon();
        host.guest.wait_for_end(dirties);
        let said = host.guest.run("cat /run/dirty.log");
        assert!(!said.contains("error"), "{said}");
    }
    unmount_and_shut_down(host);
}

/// A backing that is a part of the disk, and can become more of it.
#[derive(Debug)]
struct Part {
    disk: String,
}

impl Part {
    /// The whole disk.
    const SECTORS: u64 = 131_072;
    const NODE: &str = "/dev/mapper/part";

    fn make(guest: &mut Guest, sectors: u64) -> Self {
        let part = Self { disk: guest.run("cat /run/backing").trim().to_owned() };
        guest.run(&format!("{} | dmsetup create --noudevsync part", part.table(sectors)));
        part
    }

    fn table(&self, sectors: u64) -> String {
        format!("echo 0 {sectors} linear {} 0", self.disk)
    }

    /// As `lvextend` does it.
    fn grow(&self, guest: &mut Guest, sectors: u64) {
        guest.run(&format!("{} | dmsetup reload part && dmsetup resume --noudevsync part", self.table(sectors)));
    }
}

/// A host of so many processors with an application on a volume over a part of its disk.
fn on_a_part(kernel: Kernel, tap: &Tap, processors: u32, sectors: u64) -> (Host, Part) {
    let mut host = Host::with(Setup::new(kernel, &[tap.module, "dm_mod"]).processors(processors));
    tap.complaints.iter().for_each(|words| host.guest.announce(words));
    let part = Part::make(&mut host.guest, sectors);
    host.guest.run(&format!("{CLI} volume add data --backing {} --tap {}", Part::NODE, tap.name));
    host.guest.run(&format!("/bin/mke2fs -q -t ext4 {DEVICE} && mount -t ext4 {DEVICE} /mnt"));
    host.start_load();
    host.wait_for_load(20);
    (host, part)
}

/// Everybody sees that size.
fn is_as_large(host: &mut Host, sectors: u64) {
    let bytes = sectors * 512;
    host.guest.wait_until(&format!("test $(blockdev --getsize64 {DEVICE}) = {bytes}"));
    let shown = host.guest.run(&format!("cat /sys/block/$(basename $(readlink -f {DEVICE}))/size"));
    assert_eq!(shown.trim(), sectors.to_string());
    host.wait_for_group("the volume to have its new size", |group| group["volumes"][0]["bytes"] == bytes);
}

fn file_system_bytes(guest: &mut Guest) -> u64 {
    let blocks = guest.run("stat -f -c '%b %S' /mnt");
    blocks.split_whitespace().map(|number| number.parse::<u64>().expect("a number")).product()
}

/// The backing is a part of the disk, and becomes more of it under a mounted file system, which uses it all at once: while its
/// daemon runs, while it dies of it, and while there is none.
///
/// # Panics
/// When somebody notices, or what is new cannot be used or is not replicated.
pub fn grows_with_its_backing(kernel: Kernel, tap: &Tap, processors: u32) {
    let (mut host, part) = on_a_part(kernel, tap, processors, Part::SECTORS / 2);
    host.wait_for_group("the first sync", |group| group["volumes"][0]["state"]["state"] == "streaming");
    let before = file_system_bytes(&mut host.guest);
    part.grow(&mut host.guest, Part::SECTORS * 3 / 4);
    is_as_large(&mut host, Part::SECTORS * 3 / 4);
    host.load_lives();
    assert_eq!(host.guest.attempt("grep 'everything will be compared' /run/daemon.log").stdout, "", "what is cold stays cold");
    host.guest.run(&format!("resize2fs {DEVICE} 2>&1"));
    assert!(file_system_bytes(&mut host.guest) > before, "the file system is as small as it was");
    host.guest.run("dd if=/dev/urandom of=/mnt/new bs=1M count=12 conv=fsync 2>/dev/null");
    host.wait_for_load(20);
    // What sends gives way to an application that never rests. Beside it, on one emulated processor, each pass took so long that the next one
    // was too big for a cut again, for minutes.
    host.guest.run("kill -STOP $(pidof farside-vm-load)");
    host.wait_for_group("a point of what is new", |group| group["volumes"][0]["state"]["state"] == "streaming");
    host.guest.run("kill -CONT $(pidof farside-vm-load)");
    // Wherever it is with it when it dies, the next one begins with the new size.
    part.grow(&mut host.guest, Part::SECTORS * 7 / 8);
    host.guest.wait_until("test $(grep -c 'closed, to be opened again' /run/daemon.log) -ge 2");
    host.kill_daemon();
    host.start_daemon();
    is_as_large(&mut host, Part::SECTORS * 7 / 8);
    host.stop_daemon();
    part.grow(&mut host.guest, Part::SECTORS);
    host.start_daemon();
    is_as_large(&mut host, Part::SECTORS);
    host.guest.run(&format!("resize2fs {DEVICE} 2>&1"));
    host.wait_for_load(20);
    host.guest.run("dd if=/dev/urandom of=/mnt/newer bs=1M count=12 conv=fsync 2>/dev/null");
    unmount_and_shut_down(host);
}

/// Where a device cannot grow while it is used: it is said, nothing happens to its users, and a reload makes it anew when there
/// are none.
///
/// # Panics
/// When somebody notices, or what is new cannot be used or is not replicated.
pub fn grows_when_it_is_unused(kernel: Kernel, tap: &Tap) {
    let (mut host, part) = on_a_part(kernel, tap, 1, Part::SECTORS / 2);
    let is_said = |group: &Value| {
        let reasons = group["volumes"][0]["reasons"].as_array();
        reasons.is_some_and(|reasons| reasons.iter().any(|reason| reason["code"] == "backing_grown"))
    };
    part.grow(&mut host.guest, Part::SECTORS);
    host.wait_for_group("the growth to be said", is_said);
    let refused = host.guest.attempt(&format!("{CLI} reload"));
    assert!(refused.stdout.contains("has not grown") || refused.stderr.contains("has not grown"), "{refused:?}");
    is_as_large_as_it_was(&mut host);
    host.wait_for_load(20);
    // Nor does a restart, which takes the size of the backing for the volume.
    host.stop_daemon();
    host.start_daemon();
    is_as_large_as_it_was(&mut host);
    host.wait_for_group("the growth to be said", is_said);
    host.wait_for_load(20);
    host.stop_load();
    host.guest.run(&format!("umount /mnt && {CLI} reload"));
    is_as_large(&mut host, Part::SECTORS);
    host.guest.run(&format!("mount -t ext4 {DEVICE} /mnt && resize2fs {DEVICE} 2>&1"));
    host.guest.run("dd if=/dev/urandom of=/mnt/new bs=1M count=20 conv=fsync 2>/dev/null");
    let grown = host.wait_for_group("nothing to be said any more", |group| !is_said(group));
    assert_eq!(grown["volumes"][0]["bytes"], Part::SECTORS * 512);
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}

/// A mounted volume is not handed over, one that nobody uses is: its device goes, its disk is nobody's, and when that is aborted all is as before.
///
/// # Panics
/// When it is taken from its users, given to others, or does not come back.
pub fn is_handed_over_when_it_is_unused(kernel: Kernel, tap: &Tap) {
    let (mut host, _part) = on_a_part(kernel, tap, 1, Part::SECTORS);
    let streams = |group: &Value| group["volumes"][0]["state"]["state"] == "streaming";
    host.wait_for_group("the first sync", streams);
    let refused = host.guest.attempt(&format!("{CLI} cutover default --yes"));
    assert!(refused.code == 4 && refused.stderr.contains("volume data stays"), "{refused:?}");
    host.wait_for_load(20);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    let done = host.guest.run(&format!("{CLI} cutover default --yes --wait 1h"));
    assert!(done.contains("is handed over"), "{done}");
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("test ! -e {DEVICE}"));
    host.guest.announce("Can't open blockdev");
    let stranger = host.guest.attempt(&format!("mount -t ext4 {} /mnt", Part::NODE));
    assert_ne!(stranger.code, 0, "its disk is mounted: {stranger:?}");
    host.guest.run(&format!("{CLI} cutover default --abort"));
    host.guest.run(&format!("mount -t ext4 {DEVICE} /mnt && rm -rf /mnt/*"));
    assert_eq!(host.guest.attempt("grep 'everything will be compared' /run/daemon.log").stdout, "", "what is cold stays cold");
    host.start_load();
    unmount_and_shut_down(host);
}

fn is_as_large_as_it_was(host: &mut Host) {
    let bytes = host.guest.run(&format!("blockdev --getsize64 {DEVICE}"));
    assert_eq!(bytes.trim(), (Part::SECTORS / 2 * 512).to_string());
}

/// Ends an application that has met no error, and its host; the newest point is what the disk holds.
///
/// # Panics
/// When it has, or the point is something else.
pub fn unmount_and_shut_down(mut host: Host) {
    host.wait_for_load(20);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}
