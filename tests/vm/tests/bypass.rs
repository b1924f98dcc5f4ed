//! What gets past a tap: the table of a device is changed behind our back, its disk is written by somebody else, it is used
//! while nobody serves it. Each is noticed and said, nothing is green meanwhile, and in the end the newest point is the disk.

use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use farside_vm::{DiskSpec, Kernel};
use serde_json::Value;

/// Where the pieces of `data` begin on the disk, in sectors.
const PIECES: [u64; 2] = [65_536, 2_048];
const FIRST: u64 = 60_000;
const SECOND: u64 = 56_000;

/// Commands that put other extents under `data`, as LVM does it; with a second piece of so many sectors.
fn change_table(kind: &str, second: u64) -> String {
    let [a, b] = PIECES;
    let table = format!("0 {FIRST} {kind} $d {a}\\n{FIRST} {second} {kind} $d {b}\\n");
    format!("d=$(cat /run/backing); printf \"{table}\" | dmsetup reload data && dmsetup resume data")
}

/// `data` with a file system on which an application writes, and a tap under it.
fn host(kernel: Kernel, driver: &'static str) -> Host {
    let mut host = Host::boot(kernel, &[driver, "dm_mod"]);
    host.guest.announce("block nbd");
    host.guest.run(&format!("dmsetup create data --notable && {}", change_table("linear", SECOND)));
    // What lies behind the file system is nobody's but this test's.
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/mapper/data 40960k && mount -t ext4 /dev/mapper/data /mnt");
    host.guest.run(&format!("{CLI} volume add data --device /dev/mapper/data"));
    host.expect_bypass();
    host.start_load();
    host.wait_for_load(10);
    host.wait_for_group("the first sync", |group| volume(group)["in_last_point"] == true);
    host
}

/// What a start says of a device that was written while nobody served it.
const USED: &str = "while nobody served it";
/// The same, of one whose superblocks say nothing.
const EARLY: &str = "written before it was opened in this boot";

/// Writes a block behind the file system, past the tap.
fn scribble(device: &str) -> String {
    format!("dd if=/dev/urandom of={device} bs=4k seek=12000 count=1 oflag=direct conv=notrunc 2>/dev/null")
}

fn volume(group: &Value) -> &Value {
    &group["volumes"][0]
}

fn state(group: &Value) -> &str {
    volume(group)["state"]["state"].as_str().unwrap_or_default()
}

/// What is said about tracking that was lost.
fn doubt(group: &Value) -> String {
    let reasons = volume(group)["reasons"].as_array().cloned().unwrap_or_default();
    reasons.iter().filter(|reason| reason["code"] == "tracking_lost").map(Value::to_string).collect()
}

/// Everything is compared and published, and it is what the disk holds.
fn assert_converges(host: &mut Host, second: u64) {
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("everything to be published", is_quiet);
    let disk = host.disk();
    let piece = |first: u64, sectors: u64| disk[first as usize * 512..][..sectors as usize * 512].to_vec();
    let content = [piece(PIECES[0], FIRST), piece(PIECES[1], second)].concat();
    host.assert_newest_point_is(&content);
    host.guest.run("mount -t ext4 /dev/mapper/data /mnt");
    host.start_load();
    host.wait_for_load(10);
}

fn rests_on_a_tap(host: &mut Host) -> bool {
    let below = host.guest.run("ls /sys/block/dm-0/slaves");
    below.starts_with("nbd") || below.starts_with("ublkb")
}

#[test]
fn a_table_that_is_changed_behind_our_back_is_noticed_and_the_tap_comes_back() {
    table_changes(host(Kernel::Stock, "nbd"));
}

#[test]
fn a_table_that_is_changed_behind_our_back_is_noticed_over_ublk() {
    table_changes(host(Kernel::Backports, "ublk_drv"));
}

fn table_changes(mut host: Host) {
    // No tap can be put under stripes: it stays like this, and says so.
    host.guest.run(&change_table("striped 1 8", SECOND));
    let told = |group: &Value| state(group) == "tracking_lost" && doubt(group).contains("has a striped target");
    // What was cut before the change may still be on its way.
    let told = |group: &Value| told(group) && group["layers_unpublished"] == 0;
    let group = host.wait_for_group("the change to be noticed", told);
    assert!(doubt(&group).contains("data rests on a striped target instead of on its tap"), "{group}");
    assert_ne!(host.guest.attempt(&format!("{CLI} status --check")).code, 0, "not green");
    host.wait_for_load(20);
    let later = host.wait_for_group("a status", |_| true);
    assert_eq!(later["last_point"], group["last_point"], "nothing is a point that may lack what passed no tap");
    assert!(later["lag_ms"].as_u64() > group["lag_ms"].as_u64(), "{} {}", later["lag_ms"], group["lag_ms"]);
    // Like lvchange --refresh, and like lvextend.
    for second in [SECOND, SECOND + 4_000] {
        host.guest.run(&change_table("linear", second));
        let bytes = (FIRST + second) * 512;
        let back = |group: &Value| volume(group)["bytes"] == bytes && (is_comparing(group) || is_quiet(group));
        host.wait_for_group("everything to be compared", back);
        assert!(rests_on_a_tap(&mut host));
        assert_converges(&mut host, second);
    }
    // A person who took it out on purpose pauses first, and has it back when he wants.
    host.guest.run(&format!("{CLI} volume pause data"));
    host.guest.run(&change_table("linear", SECOND + 4_000));
    host.wait_for_group("the change to be noticed", |group| doubt(group).contains("while it is paused"));
    host.wait_for_load(10);
    assert!(!rests_on_a_tap(&mut host));
    host.guest.run(&format!("{CLI} volume resume data"));
    host.guest.wait_until("ls /sys/block/dm-0/slaves | grep -e nbd -e ublkb");
    assert_converges(&mut host, SECOND + 4_000);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.guest.run(&format!("{CLI} volume remove data --yes && ! dmsetup info data-farside-backing >/dev/null 2>&1"));
    host.shut_down();
}

fn is_comparing(group: &Value) -> bool {
    volume(group)["state"]["what"] == "comparing" && doubt(group).contains("everything is compared, since")
}

#[test]
fn whoever_writes_on_the_twin_is_noticed_while_it_is_served_and_while_it_is_not() {
    let mut host = host(Kernel::Stock, "nbd");
    // What an application, a trim, kills and a stop do is no false alarm.
    for round in 0..3 {
        host.guest.start_command("fstrim /mnt && sync", "/run/trim.log");
        host.wait_for_load(20);
        if round == 2 {
            host.stop_daemon()
        } else {
            host.kill_daemon()
        }
        host.start_daemon();
        host.wait_for_load(10);
    }
    assert_eq!(host.guest.attempt(&format!("grep -e 'past its tap' -e '{USED}' /run/daemon.log")).stdout, "", "a false alarm");
    // While it is served. The kernel's count of a mapped device is certain only while the host writes nothing.
    host.stop_load();
    let noticed = |group: &Value| doubt(group).contains("has written on /dev/dm-1");
    farside_tests::wait_for("the write to be noticed", || {
        host.guest.run(&scribble("/dev/dm-1"));
        host.status().filter(|status| noticed(&status["groups"][0]))
    });
    host.start_load();
    assert_converges(&mut host, SECOND);
    // Beside an application, which waits, while nobody serves.
    host.stop_daemon();
    host.guest.run(&scribble("/dev/dm-1"));
    host.start_daemon();
    let noticed = |times: u32| format!("test $(grep -c '{USED}' /run/daemon.log) = {times}");
    host.guest.run(&noticed(1));
    assert_converges(&mut host, SECOND);
    // The twin is mounted while nobody serves.
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("everything to be published", is_quiet);
    host.stop_daemon();
    host.guest.run("mount -t ext4 /dev/dm-1 /mnt && echo past the tap >/mnt/file && umount /mnt");
    host.start_daemon();
    host.guest.run(&noticed(2));
    host.guest.run("mount -t ext4 /dev/mapper/data /mnt && grep past /mnt/file");
    host.start_load();
    assert_converges(&mut host, SECOND);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.shut_down();
}

#[test]
fn whoever_writes_on_the_disk_is_noticed_beside_a_load() {
    let mut host = Host::boot(Kernel::Newest, &["ublk_drv"]);
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing)"));
    // R13: it is sent through a tap that nobody uses yet, and only through such a one.
    let sent = |times: u32| format!("test $(grep -c 'a first write was marked' /run/daemon.log) = {times}");
    host.guest.wait_until(&sent(1));
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/farside/data 40960k && mount -t ext4 /dev/farside/data /mnt");
    host.start_load();
    for _ in 0..2 {
        host.guest.start_command("fstrim /mnt && sync", "/run/trim.log");
        host.wait_for_load(20);
        host.kill_daemon();
        host.start_daemon();
    }
    host.wait_for_load(10);
    host.guest.run(&sent(1));
    assert_eq!(host.guest.attempt(&format!("grep -e 'past its tap' -e '{USED}' /run/daemon.log")).stdout, "", "a false alarm");
    host.expect_bypass();
    // One block, beside an application that never rests, and a trim.
    let trims = "dd if=/dev/zero of=/mnt/short bs=1M count=2 2>/dev/null; sync; rm /mnt/short; sync; fstrim /mnt";
    let trims = host.guest.start_command(&format!("until test -e /run/trimmed; do {trims}; done"), "/run/trim.log");
    host.wait_for_load(10);
    host.guest.run(&format!("d=$(cat /run/backing); {}", scribble("$d")));
    host.guest.wait_until("grep 'past its tap: .*(4 KiB)' /run/daemon.log");
    host.wait_for_load(10);
    host.guest.run("touch /run/trimmed");
    host.guest.wait_until(&format!("! kill -0 {trims}"));
    assert_eq!(host.guest.run("cat /run/trim.log"), "");
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    // What comes right after another is not heeded at once. A planned stop forgets it no more than a look.
    host.guest.run(&format!("d=$(cat /run/backing); {}", scribble("$d")));
    host.guest.wait_until("test $(grep -c 'past its tap: .*(4 KiB)' /run/daemon.log) -ge 2");
    host.wait_for_group("everything to be published", is_quiet);
    host.guest.run(&format!("d=$(cat /run/backing); {}", scribble("$d")));
    host.stop_daemon();
    host.start_daemon();
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    no_mount_goes_on_over_what_somebody_else_mounted(host);
}

/// A mount that waits for a daemon remembers what its disk was. It gets no tap back once the disk itself was mounted, until nobody waits any more.
fn no_mount_goes_on_over_what_somebody_else_mounted(mut host: Host) {
    let start = "mount -t ext4 /dev/farside/data /mnt && echo ours >/mnt/ours && sync";
    let marks = |bytes: &str| format!("$({bytes} -c 8 /run/marks-* | od -An -tx1)");
    host.guest.run(start);
    // A kill before that is known would look the same, and is nobody's fault.
    host.guest.wait_until(&format!("test \"{}\" = \"{}\"", marks("head"), marks("tail")));
    host.kill_daemon();
    host.guest.run(
        "mkdir /run/other && mount -t ext4 $(cat /run/backing) /run/other && echo theirs >/run/other/theirs && umount /run/other",
    );
    host.daemon_without_its_disks();
    let refused = |group: &Value| group.to_string().contains("would write over it");
    farside_tests::wait_for("the volume to be refused", || host.status().filter(refused));
    // Only a reboot ends it.
    let wide = host.guest.disk("wide");
    host.guest.run(&format!("dd if=/dev/urandom of={wide} bs=4k count=64 oflag=direct 2>/dev/null"));
    let mut host = host.cut_power(&mut farside_tests::verify::Rng(5), 8).0;
    host.start_daemon();
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.guest.run(
        "/bin/e2fsck -fp /dev/farside/data && mount -t ext4 /dev/farside/data /mnt && cat /mnt/ours /mnt/theirs && umount /mnt",
    );
    host.wait_for_group("everything to be published", is_quiet);
    host.shut_down();
}

#[test]
fn a_use_of_the_disk_between_two_boots_is_noticed() {
    let mut host = Host::boot(Kernel::Stock, &["nbd"]);
    let mut rng = farside_tests::verify::Rng(3);
    host.guest.announce("block nbd");
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap nbd-device"));
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/farside/data 40960k");
    for (what, used) in [
        ("nothing", None),
        ("a check that replays the journal", Some("/bin/e2fsck -p $d")),
        ("a mount", Some("mount -t ext4 $d /mnt && echo rescued >/mnt/file && umount /mnt")),
        ("a block behind the file system", Some(scribble("$d").as_str())),
    ] {
        println!("power cut, then {what}");
        host.guest.run("mount -t ext4 /dev/farside/data /mnt");
        host.start_load();
        host.wait_for_load(20);
        host = host.cut_power(&mut rng, 4).0;
        host.guest.announce("block nbd");
        if let Some(used) = used {
            host.guest.attempt(&format!("d=$(cat /run/backing); {used}"));
        }
        host.start_daemon();
        let said = if what.starts_with("a block") { EARLY } else { USED };
        let noticed = host.guest.attempt(&format!("grep -e '{said}' -e '{EARLY}' /run/daemon.log")).stdout;
        assert_eq!(!noticed.is_empty(), used.is_some(), "{noticed}");
        host.wait_for_group("everything to be published", is_quiet);
        host.assert_newest_point_is_the_disk();
        host.guest.run("/bin/e2fsck -p /dev/farside/data || test $? = 1");
    }
    // After a clean stop.
    host.wait_for_group("everything to be published", is_quiet);
    host.stop_daemon();
    host.start_daemon();
    let noticed = format!("grep -c -e '{USED}' -e '{EARLY}' /run/daemon.log");
    assert_eq!(host.guest.attempt(&noticed).stdout.trim(), "1", "that was the block before");
    host.stop_daemon();
    // A power cut wants something to lose; nothing of the volume is.
    let wide = host.guest.disk("wide");
    host.guest.run(&format!("dd if=/dev/urandom of={wide} bs=4k count=64 oflag=direct 2>/dev/null"));
    host = host.cut_power(&mut rng, 8).0;
    host.guest.run("/bin/e2fsck -fp $(cat /run/backing) || test $? = 1");
    host.start_daemon();
    host.guest.run(&format!("grep '{USED}' /run/daemon.log"));
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    another_state_directory_gets_no_device_that_is_used(&mut host);
    host.shut_down();
}

/// A configuration with the same names, a state directory of its own and another disk: the device that waits is not its.
fn another_state_directory_gets_no_device_that_is_used(host: &mut Host) {
    host.guest.announce("block nbd");
    host.guest.run("mount -t ext4 /dev/farside/data /mnt");
    host.kill_daemon();
    let (wide, other) = (host.guest.disk("wide"), "/run/other");
    host.guest.run(&format!(
        "mkdir -p {other}/farsided.d && sed 's,/state/farside,{other}/state,' /state/farsided.toml >{other}/farsided.toml && \
         sed 's,^backing = .*,backing = \"{wide}\",' /state/farsided.d/volume-data.toml >{other}/farsided.d/volume-data.toml && \
         grep -q {wide} {other}/farsided.d/volume-data.toml"
    ));
    let daemon = host.guest.start_command(&format!("exec farsided --config {other}/farsided.toml"), "/run/other.log");
    host.guest.wait_until("grep -q 'does not know over which disk' /run/other.log");
    host.guest.attempt(&format!("{CLI} reload")); // nor when it is asked once more
    host.guest.run(&format!("! grep 'served volume=' /run/other.log; kill {daemon}"));
    host.guest.wait_for_end(daemon);
    host.start_daemon();
    host.guest.run("umount /mnt");
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
}

#[test]
fn lvm_takes_the_tap_out_and_it_comes_back() {
    let setup = Setup::new(Kernel::Stock, &["nbd", "dm_mod", "dm_mirror"]).debian().disk(DiskSpec::blank("second", 64));
    let mut host = Host::with(setup);
    host.guest.booted();
    host.guest.announce("block nbd");
    host.guest.announce("dev nbd0, "); // udev looks at the tap's own node as it goes
    host.expect_bypass();
    let second = host.guest.disk("second");
    host.guest.run(&format!("pvcreate -q $(cat /run/backing) {second} && vgcreate -q vg $(cat /run/backing) {second}"));
    host.guest
        .run("lvcreate -q -y -n data -L 32M vg $(cat /run/backing) && mkfs.ext4 -q /dev/vg/data && mount /dev/vg/data /mnt");
    host.guest.run(&format!("{CLI} volume add data --device /dev/vg/data"));
    host.start_load();
    host.wait_for_load(10);
    host.wait_for_group("the first sync", |group| volume(group)["in_last_point"] == true);
    let commands = [
        "lvchange --refresh vg/data".to_owned(),
        "lvextend -q -r -L +8M vg/data $(cat /run/backing)".to_owned(),
        format!("pvmove -q -i 1 -n vg/data $(cat /run/backing) {second}"),
    ];
    for (command, bytes) in commands.iter().zip([32u64 << 20, 40 << 20, 40 << 20]) {
        let seen = host.guest.run("grep -c 'past its tap' /run/daemon.log || true").trim().parse::<u64>().expect("a number");
        host.guest.run(command);
        host.guest.wait_until(&format!("test $(grep -c 'past its tap' /run/daemon.log) -gt {seen}"));
        host.guest.wait_until("ls /sys/block/$(basename $(readlink -f /dev/vg/data))/slaves | grep nbd");
        host.wait_for_load(10);
        host.stop_load();
        host.guest.run("umount /mnt");
        host.wait_for_group("everything to be published", |group| is_quiet(group) && volume(group)["bytes"] == bytes);
        host.assert_newest_point_reads_as("/dev/vg/data");
        host.guest.run("mount /dev/vg/data /mnt");
        host.start_load();
        host.wait_for_load(10);
    }
    assert_eq!(host.guest.run("lvs --noheadings -o devices vg/data").trim(), format!("{second}(0)"), "it was moved");
    // It is renamed, and another one gets its name: whoever serves next finds the one that waits.
    host.guest.run("lvrename -q vg data moved && lvcreate -q -y -n data -L 8M vg $(cat /run/backing)");
    host.guest.wait_until("ls /sys/block/$(basename $(readlink -f /dev/vg/moved))/slaves | grep nbd");
    host.wait_for_load(10);
    host.kill_daemon();
    host.start_daemon();
    host.wait_for_load(10);
    host.guest.run("grep 'its device was renamed' /run/daemon.log");
    assert!(!host.guest.run("ls /sys/block/$(basename $(readlink -f /dev/vg/data))/slaves").contains("nbd"), "another volume");
    // Its file is deleted by hand, and farsided dies: what waits is named, and served again.
    let doctor = "farside doctor --config /state/farsided.toml";
    let well = host.guest.run(&format!("{doctor} --json"));
    assert!(well.contains("service of data") && well.contains("the tap is under /dev/dm-"), "{well}");
    host.guest.run("rm /state/farsided.d/volume-data.toml");
    host.kill_daemon();
    let sick = host.guest.attempt(doctor);
    assert!(sick.code == 7 && sick.stdout.contains("belongs to volume data, whose file is gone"), "{sick:?}");
    host.guest.run(&format!("{doctor} --fix; grep /dev/mapper/vg-moved /state/farsided.d/volume-data.toml"));
    host.start_daemon();
    host.wait_for_load(10);
    host.stop_load();
    host.guest.run("umount /mnt");
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_reads_as("/dev/vg/moved");
    host.guest.run(&format!("{CLI} volume remove data --yes && e2fsck -fn /dev/vg/moved && lvremove -q -y vg/moved vg/data"));
    host.shut_down();
}
