//! A Debian with systemd that boots with protected disks in its fstab: by name and by UUID, after a planned reboot, after a
//! power cut, and without Farside. `docs/boot.md` says what must hold.

use farside_tests::verify::Rng;
use farside_tests::wait_for;
use farside_vm::conformance::NBD;
use farside_vm::gateway::Gateway;
use farside_vm::packages::{Load, install, status, wait_quiet};
use farside_vm::protected::PROMISED;
use farside_vm::{DiskSpec, Guest, Kernel, Machine};

/// In KiB: where the partition of the partitioned disk begins.
const PARTITION_KIB: usize = 1024;
const DATA: &str = "11111111-2222-3333-4444-555555555555";
const HOME: &str = "66666666-7777-8888-9999-aaaaaaaaaaaa";
const KEPT: &str = "bbbbbbbb-cccc-dddd-eeee-ffffffffffff";
const PART: &str = "12121212-3434-5656-7878-909090909090";
/// By its name; by the UUID of its file system, like any disk, in a partition too; in a logical volume on a tap; and one that must
/// not be used without Farside. Two of them are checked by nobody before they are mounted: each check costs a boot seconds here.
const FSTAB: &str = "/dev/farside/named /srv/named ext4 nofail 0 2\n\
                     UUID=11111111-2222-3333-4444-555555555555 /srv/data ext4 defaults 0 2\n\
                     UUID=12121212-3434-5656-7878-909090909090 /srv/part ext4 defaults 0 0\n\
                     /dev/pool/lv /srv/pool ext4 defaults 0 0\n\
                     UUID=bbbbbbbb-cccc-dddd-eeee-ffffffffffff /srv/kept ext4 nofail 0 2\n";

fn reaches(host: &mut Guest, link: &str, device: &str) {
    host.run("udevadm settle");
    assert_eq!(host.run(&format!("readlink -f {link}")), host.run(&format!("readlink -f {device}")), "{link}");
}

/// Every name of content leads to the tap, and nothing takes the disk for anything.
fn tap_is_seen(host: &mut Guest, volume: &str, uuid: &str) {
    let (tap, disk) = (format!("/dev/farside/{volume}"), host.disk(volume));
    reaches(host, &format!("/dev/disk/by-uuid/{uuid}"), &tap);
    reaches(host, &format!("/dev/disk/by-label/{volume}"), &tap);
    for command in [
        format!("blkid -U {uuid}"),
        format!("findfs UUID={uuid}"),
        format!("blkid -L {volume}"),
        format!("findfs LABEL={volume}"),
    ] {
        let found = host.run(&command);
        assert_eq!(host.run(&format!("readlink -f {found}")), host.run(&format!("readlink -f {tap}")), "{command}");
    }
    let shown = host.run(&format!("udevadm info {disk}"));
    assert!(shown.contains("SYSTEMD_READY=0") && !shown.contains("by-uuid") && !shown.contains("ID_FS_"), "{shown}");
    assert!(!shown.contains("by-label"), "{shown}");
    assert!(shown.contains(&format!("disk/by-id/virtio-{volume}")), "what it is may be seen: {shown}");
}

/// A disk with one partition.
fn partitioned(serial: &'static str, mib: usize) -> DiskSpec {
    let mut disk = DiskSpec::blank(serial, mib);
    let (first, sectors) = (PARTITION_KIB as u32 * 2, (mib as u32 - 1) * 2048);
    disk.content[446 + 4] = 0x83;
    disk.content[446 + 8..][..4].copy_from_slice(&first.to_le_bytes());
    disk.content[446 + 12..][..4].copy_from_slice(&sectors.to_le_bytes());
    disk.content[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn is_mounted_from(host: &mut Guest, at: &str, device: &str) {
    let source = host.run(&format!("findmnt --noheadings --output SOURCE {at}"));
    assert_eq!(host.run(&format!("readlink -f {source}")), host.run(&format!("readlink -f {device}")), "{at}");
}

/// The partition of the tap, and not of the disk, has the partition's file system; LVM finds the physical volume once.
fn partition_and_pool_are_seen(host: &mut Guest) {
    is_mounted_from(host, "/srv/part", "/dev/farside/part-part1");
    reaches(host, &format!("/dev/disk/by-uuid/{PART}"), "/dev/farside/part-part1");
    let disk = host.disk("part");
    let shown = host.run(&format!("udevadm info {disk}1"));
    assert!(shown.contains("SYSTEMD_READY=0") && !shown.contains("by-uuid"), "{shown}");
    is_mounted_from(host, "/srv/pool", "/dev/pool/lv");
    let below = host.run("ls /sys/block/$(basename $(readlink -f /dev/pool/lv))/slaves");
    assert_eq!(below, host.run("basename $(readlink -f /dev/farside/pool)"), "the logical volume rests on the tap");
    let volumes = host.attempt("pvs --noheadings --options pv_name,vg_name");
    assert!(volumes.stdout.lines().count() == 1 && volumes.stderr.is_empty(), "{volumes:?}");
}

/// The boot is over, and the host works on its taps.
fn comes_up_protected(host: &mut Guest) {
    host.booted();
    for (volume, uuid) in [("data", DATA), ("named", HOME), ("kept", KEPT)] {
        is_mounted_from(host, &format!("/srv/{volume}"), &format!("/dev/farside/{volume}"));
        tap_is_seen(host, volume, uuid);
    }
    partition_and_pool_are_seen(host);
    let log = host.run("journalctl -b -u farsided --no-pager");
    assert!(!log.contains("udev was not told"), "{log}");
    // Without a cycle, or systemd drops a job.
    let cycles = host.run("journalctl -b --no-pager");
    assert!(!cycles.contains("ordering cycle"), "{cycles}");
}

fn reasons(host: &mut Guest) -> String {
    wait_for("the daemon to answer", || status(host)).to_string()
}

/// How much of a volume was compared since it is served, and equal.
fn equal_bytes(host: &mut Guest, volume: &str) -> u64 {
    let shown = host.run(&format!("farside volume show {volume} --json"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    shown["counters"]["equal_bytes"].as_u64().expect("a number")
}

const HIDDEN: &str = "/etc/udev/rules.d/63-z-farside-backings.rules";

/// A volume whose file somebody deletes while its tap is mounted: its disk is not shown beside the tap.
fn stays_hidden_while_its_tap_is_used(host: &mut Guest) {
    let file = "/etc/farside/farsided.d/volume-kept.toml";
    host.run(&format!("mv {file} /root && systemctl restart farsided && udevadm settle"));
    let said = host.run("journalctl --sync && journalctl -b -u farsided --no-pager --grep 'stays hidden until the next start'");
    assert!(said.contains("virtio-kept"), "{said}");
    tap_is_seen(host, "kept", KEPT);
    host.run(&format!("mv /root/volume-kept.toml {file} && systemctl restart farsided"));
    host.run("touch /srv/kept/again && sync -f /srv/kept");
    tap_is_seen(host, "kept", KEPT);
}

/// A daemon that is started before udev has looked at a disk.
fn what_udev_has_not_seen_yet_stays_hidden(host: &mut Guest) {
    let named = host.disk("named");
    let known = format!("/run/udev/data/b$((0x$(stat -L -c %t {named}))):$((0x$(stat -L -c %T {named})))");
    host.run(&format!("systemctl stop farsided && udevadm settle && udevadm control --stop-exec-queue && rm {known}"));
    host.run("systemctl start farsided");
    host.run(&format!("grep -q 'FARSIDE_BACKING}}=\"named\"' {HIDDEN} && udevadm control --start-exec-queue"));
    host.run(&format!("udevadm trigger --settle {named}"));
    tap_is_seen(host, "named", HOME);
}

#[test]
fn what_fstab_names_comes_up_behind_farside_at_every_boot() {
    let mut gateway = Gateway::here();
    let token = gateway.token();
    let mut machine = Machine::debian("host", Kernel::Backports)
        .modules(&["ublk_drv", "dm_mod"])
        .programs(&["farside-vm-load"])
        .disk(partitioned("part", 16))
        .on_this_machine();
    for disk in ["data", "named", "kept", "pool"] {
        machine = machine.disk(DiskSpec::blank(disk, 32));
    }
    let mut host = machine.boot();
    host.booted();
    for (disk, uuid) in [("data", DATA), ("named", HOME), ("kept", KEPT)] {
        let device = host.disk(disk);
        // By itself udev hears of it soon.
        host.run(&format!("mkfs.ext4 -q -L {disk} -U {uuid} {device} && udevadm trigger --settle {device} && mkdir /srv/{disk}"));
        reaches(&mut host, &format!("/dev/disk/by-uuid/{uuid}"), &device);
    }
    let part = host.disk("part");
    host.run(&format!("mkfs.ext4 -q -U {PART} {part}1 && mkdir /srv/part /srv/pool"));
    install(&mut host, &["farside", "farsided"]);
    host.run(&format!("farside pair '{token}'"));
    let named = host.disk("named");
    host.run(&format!("farside volume add named --backing {named}"));
    host.run("farside volume add data --backing /dev/disk/by-id/virtio-data");
    host.run("farside volume add kept --backing /dev/disk/by-id/virtio-kept --if-absent refuse");
    for (volume, uuid) in [("data", DATA), ("named", HOME), ("kept", KEPT)] {
        tap_is_seen(&mut host, volume, uuid);
    }
    host.run("farside volume add part --backing /dev/disk/by-id/virtio-part");
    host.run("farside volume add pool --backing /dev/disk/by-id/virtio-pool");
    // What LVM overlooks is said, and done.
    assert!(host.run("farside doctor").contains("a physical volume on a tap would be there twice"));
    assert!(host.run("farside doctor --fix").contains("it overlooks the disks below volumes"));
    host.run("pvcreate -q /dev/farside/pool && vgcreate -q pool /dev/farside/pool && lvcreate -q -y -L 8M -n lv pool");
    host.run("mkfs.ext4 -q /dev/pool/lv");
    // LVM has the disk as soon as it is shown, which is said; a physical volume that its tap brings comes up with that.
    let add = "farside volume add pool --backing /dev/disk/by-id/virtio-pool";
    host.run("vgchange -q -an pool && farside volume remove pool --yes");
    host.wait_until("test -e /dev/pool/lv");
    let refused = host.attempt(add);
    assert!(refused.code != 0 && refused.stderr.contains("is in use by") && refused.stderr.contains("pool-lv"), "{refused:?}");
    // As at a boot: LVM remembers no other device.
    host.run(&format!("vgchange -q -an pool && rm -f /run/lvm/pvs_online/* /run/lvm/vgs_online/* && {add}"));
    host.wait_until("test -e /dev/pool/lv && farside volume resync pool --accept forked");
    for root in ["/dev/vda", "/dev/disk/by-uuid/$(findmnt -no UUID /)"] {
        let refused = host.attempt(&format!("farside volume add root --backing {root}"));
        assert!(refused.code != 0 && refused.stderr.contains("The root file system"), "{refused:?}");
    }
    host.upload("/root/fstab", FSTAB.as_bytes(), 0o644);
    host.run("cat /root/fstab >>/etc/fstab && systemctl daemon-reload && mount -a");
    for volume in ["data", "named", "kept"] {
        is_mounted_from(&mut host, &format!("/srv/{volume}"), &format!("/dev/farside/{volume}"));
    }
    partition_and_pool_are_seen(&mut host);

    // A daemon that dies or is restarted under mounted file systems changes nothing of what is seen.
    let load = Load::start(&mut host, "/srv/data");
    load.gets_on(&mut host, 16);
    host.run("systemctl kill --signal KILL farsided");
    host.wait_until("farside status --json");
    host.run("systemctl restart farsided");
    for (volume, uuid) in [("data", DATA), ("named", HOME), ("kept", KEPT)] {
        is_mounted_from(&mut host, &format!("/srv/{volume}"), &format!("/dev/farside/{volume}"));
        tap_is_seen(&mut host, volume, uuid);
    }
    let promised = load.stop(&mut host);
    wait_quiet(&mut host);
    // What a person has mounted by hand is unmounted before the daemon stops, too.
    host.run("umount /srv/named && mount /dev/farside/named /mnt && echo not synced >/mnt/late");
    host.power_off();

    // A planned reboot; then the power goes while the application writes.
    let mut host = machine.boot();
    comes_up_protected(&mut host);
    assert_eq!(host.run("cat /srv/named/late"), "not synced\n");
    let served = host.run("journalctl --sync && journalctl -b -u farsided --no-pager --grep '^served volume='");
    assert_eq!(served.matches("clean=true").count(), 5, "a planned reboot compares nothing: {served}");
    Load::check(&mut host, "/srv/data", &promised);
    Load::start(&mut host, "/srv/data").gets_on(&mut host, 16);
    let scribble = "while dd if=/dev/urandom of=/srv/named/scribble bs=64k count=32 oflag=direct conv=notrunc; do :; done";
    host.start_command(scribble, "/run/scribble.log");
    host.wait_until("grep -q 'records out' /run/scribble.log");
    let promised = host.download(PROMISED);
    assert!(host.cut_power(&mut Rng(3), 4) > 0, "nothing was in any cache: nothing is proved");
    let mut host = machine.boot();
    comes_up_protected(&mut host);
    Load::check(&mut host, "/srv/data", &promised);
    wait_quiet(&mut host);

    // A boot without Farside: by policy its disks are used as they are, or not at all.
    host.run("echo 'nonsense = 1' >>/etc/farside/farsided.toml");
    // What will not come is not waited for as long as by default.
    host.run("sed -i 's/nofail/nofail,x-systemd.device-timeout=20s/' /etc/fstab");
    host.power_off();
    let mut host = machine.boot();
    host.attempt("systemctl is-system-running --wait");
    for (volume, uuid) in [("data", DATA), ("named", HOME)] {
        let disk = host.disk(volume);
        reaches(&mut host, &format!("/dev/disk/by-uuid/{uuid}"), &disk);
    }
    let disk = host.disk("data");
    is_mounted_from(&mut host, "/srv/data", &disk);
    let part = host.disk("part");
    is_mounted_from(&mut host, "/srv/part", &format!("{part}1"));
    let (pool, below) = (host.disk("pool"), "/sys/block/$(basename $(readlink -f /dev/pool/lv))/slaves");
    host.run(&format!("findmnt /srv/pool && test -e {below}/$(basename {pool})"));
    host.run("test ! -e /dev/farside/named && ! findmnt /srv/named && ! findmnt /srv/kept");
    host.run(&format!("test ! -e /dev/disk/by-uuid/{KEPT}"));
    let said = host.run("journalctl -b -u farside-boot --no-pager");
    assert!(said.contains("volume data: farsided does not serve it") && said.contains("used without Farside"), "{said}");
    assert!(said.contains("volume kept: ") && said.contains("its policy is `refuse`"), "{said}");
    // What is used without Farside is marked before, what stays hidden stays trusted.
    let marked = "cd /var/lib/farside/volumes/default && test -e data/tracking-lost && test ! -e kept/tracking-lost";
    host.run(marked);
    // Somebody writes where nobody sees it, and mends the configuration: the disk stays its host's in this boot.
    host.run("echo changed without Farside >/srv/data/bare && sync");
    host.run("sed -i '/nonsense/d' /etc/farside/farsided.toml && sed -i 's/,x-systemd.device-timeout=20s//' /etc/fstab");
    host.wait_until("systemctl is-active farsided");
    let said = reasons(&mut host);
    assert!(said.contains("used without Farside since this host was booted"), "{said}");
    is_mounted_from(&mut host, "/srv/data", &disk);
    host.power_off();

    // With Farside again: what was changed without it is found.
    let mut host = machine.boot();
    comes_up_protected(&mut host);
    let compared = host.run("journalctl -b -u farsided --no-pager");
    assert_eq!(host.run("cat /srv/data/bare"), "changed without Farside\n");
    wait_quiet(&mut host);
    let data = equal_bytes(&mut host, "data");
    assert!(data > 16 << 20, "all of it was compared, and not {data} bytes: {compared}");

    // A person mounts a disk itself while nobody serves it.
    let disk = host.disk("kept");
    host.run(&format!("umount /srv/kept && systemctl stop farsided && mount {disk} /mnt && systemctl start farsided"));
    let said = reasons(&mut host);
    assert!(said.contains("its disk is mounted itself, and not its tap"), "{said}");
    host.run("echo around the tap >/mnt/around && umount /mnt && farside reload && udevadm settle && mount /srv/kept");
    wait_quiet(&mut host);
    let kept = equal_bytes(&mut host, "kept");
    assert!(kept > 16 << 20, "all of it was compared, and not {kept} bytes");
    assert_eq!(host.run("cat /srv/kept/around"), "around the tap\n");
    stays_hidden_while_its_tap_is_used(&mut host);
    what_udev_has_not_seen_yet_stays_hidden(&mut host);
    // What cannot be added is its host's as before.
    host.run("umount /srv/kept && farside volume remove kept --yes");
    let refused = host.attempt("farside volume add kept --backing /dev/disk/by-id/virtio-kept --tap nbd:unix:/proc/farside/kept");
    assert!(refused.code != 0, "{refused:?}");
    let disk = host.disk("kept");
    reaches(&mut host, &format!("/dev/disk/by-uuid/{KEPT}"), &disk);
    host.run("umount /srv/data");
    wait_quiet(&mut host);
    wait_quiet(&mut host);
    assert!(gateway.restore("data", "latest") == machine.disk_content("data"), "the newest point is not what the disk holds");
    host.power_off();
    gateway.shut_down();
}

/// The client says that a connection broke, each time; udev looks at a device of its that goes.
fn begins_to_boot(machine: &mut Machine) -> Guest {
    let mut host = machine.boot();
    NBD.complaints.iter().chain(&["dev nbd0, "]).for_each(|words| host.announce(words));
    host
}

fn boots(machine: &mut Machine) -> Guest {
    let mut host = begins_to_boot(machine);
    host.booted();
    host
}

/// Has the host come up without a disk, which is there again when its driver is bound to what `/run/late` names. What is mounted
/// from it is waited for less than the daemon waits.
fn comes_late_at_the_next_boot(host: &mut Guest) {
    let unit = "[Unit]\nDefaultDependencies=no\nBefore=systemd-udevd.service systemd-udev-trigger.service\n\
                [Service]\nType=oneshot\nExecStart=/bin/sh /root/late.sh\n[Install]\nWantedBy=sysinit.target\n";
    let script = "for disk in /sys/block/vd*; do if [ \"$(cat $disk/serial)\" = part ]; then \
                  basename $(readlink -f $disk/device) >/run/late; fi; done\n\
                  cat /run/late >/sys/bus/virtio/drivers/virtio_blk/unbind\n";
    host.upload("/etc/systemd/system/late.service", unit.as_bytes(), 0o644);
    host.upload("/root/late.sh", script.as_bytes(), 0o644);
    host.run("sed -i '/part/s/defaults/nofail,x-systemd.device-timeout=10s/' /etc/fstab && systemctl enable late && sync");
}

/// As Debian 12 has it: no ublk. The volume is a partition.
#[test]
fn a_partition_comes_up_behind_the_kernels_nbd_client_on_the_stock_kernel() {
    let mut machine = Machine::debian("host", Kernel::Stock).modules(&["nbd"]).disk(partitioned("part", 32));
    let mut host = boots(&mut machine);
    let disk = host.disk("part");
    host.run(&format!("mkfs.ext4 -q -U {PART} {disk}1 && udevadm trigger --settle {disk}1 && mkdir /srv/part"));
    install(&mut host, &["farside", "farsided"]);
    let by_uuid = format!("/dev/disk/by-uuid/{PART}");
    // A name that leads to the tap later is none for a disk.
    let refused = host.attempt(&format!("farside volume add data --backing {by_uuid}"));
    assert!(refused.code != 0 && refused.stderr.contains("by-id/virtio-part-part1"), "{refused:?}");
    reaches(&mut host, &by_uuid, &format!("{disk}1"));
    host.run(&format!("farside volume add data --backing {disk}1"));
    let shown = host.run("farside volume show data --json");
    assert!(shown.contains("/dev/disk/by-id/virtio-part-part1"), "the name that stays is written down: {shown}");
    host.run(&format!("echo 'UUID={PART} /srv/part ext4 defaults 0 2' >>/etc/fstab && systemctl daemon-reload && mount -a"));
    host.run("echo planned >/srv/part/planned");
    let protected = |host: &mut Guest| {
        is_mounted_from(host, "/srv/part", "/dev/farside/data");
        reaches(host, &by_uuid, "/dev/farside/data");
        assert!(host.run("readlink -f /dev/farside/data").starts_with("/dev/nbd"));
        let disk = host.disk("part");
        let shown = host.run(&format!("udevadm info {disk}1"));
        assert!(shown.contains("SYSTEMD_READY=0") && !shown.contains("by-uuid"), "{shown}");
    };
    protected(&mut host);
    host.run("systemctl kill --signal KILL farsided");
    host.wait_until("farside status --json");
    host.run("echo killed >/srv/part/killed && sync -f /srv/part");
    protected(&mut host);
    host.power_off();

    let mut host = boots(&mut machine);
    protected(&mut host);
    let served = host.run("journalctl --sync && journalctl -b -u farsided --no-pager --grep '^served volume='");
    assert!(served.contains("clean=true"), "a planned reboot compares nothing: {served}");
    assert_eq!(host.run("cat /srv/part/planned /srv/part/killed"), "planned\nkilled\n");
    host.run("echo synced >/srv/part/synced && sync -f /srv/part");
    comes_late_at_the_next_boot(&mut host);
    let scribble = "while dd if=/dev/urandom of=/srv/part/scribble bs=64k count=32 oflag=direct conv=notrunc; do :; done";
    host.start_command(scribble, "/run/scribble.log");
    host.wait_until("grep -q 'records out' /run/scribble.log");
    assert!(host.cut_power(&mut Rng(5), 4) > 0, "nothing was in any cache: nothing is proved");

    // The disk comes when the daemon has waited for it in vain, and who mounts it, too.
    let mut host = begins_to_boot(&mut machine);
    let state = host.attempt("systemctl is-system-running --wait").stdout;
    assert_eq!(state.trim(), "degraded", "a disk is missing, and that is all");
    host.run("test -s /run/late && ! findmnt /srv/part && systemctl is-active farsided");
    let said = reasons(&mut host);
    assert!(said.contains("volume data is not served") && said.contains("by-id/virtio-part-part1"), "{said}");
    host.run("cat /run/late >/sys/bus/virtio/drivers/virtio_blk/bind");
    host.wait_until("journalctl -b -u farsided --no-pager | grep -q 'it is served at last' && test -e /dev/farside/data");
    host.run("udevadm settle && { findmnt /srv/part || mount /srv/part; }");
    protected(&mut host);
    assert_eq!(host.run("cat /srv/part/synced"), "synced\n");
    let said = host.run("journalctl -b -u farside-boot --no-pager");
    assert!(said.contains("is not there") && !said.contains("used without Farside"), "{said}");
    host.run("test ! -e /var/lib/farside/volumes/default/data/tracking-lost");
    let cycles = host.run("journalctl -b --no-pager");
    assert!(!cycles.contains("ordering cycle"), "{cycles}");
    host.power_off();
}
