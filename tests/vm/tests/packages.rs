//! The Debian packages on a real Debian with systemd, as README's "Protect a real disk" uses them: installed, paired, a disk
//! protected and mounted from fstab, upgraded under load, restored from, removed and purged.

use farside_tests::wait_for;
use farside_vm::conformance::{HOG, NO_MEMORY};
use farside_vm::packages::{Load, install, upload, wait_quiet};
use farside_vm::{DiskSpec, Guest, Kernel, Machine, Network};

/// Of each tap, the conformance suite kills twenty times.
const KILLS: u32 = 8;
const FSTAB: &str = "/dev/farside/data /srv/data ext4 nofail 0 2";

/// Nothing hides the disk, and its file system's names lead to it.
fn is_the_hosts_own(host: &mut Guest) {
    host.run("test ! -e /etc/udev/rules.d/63-z-farside-backings.rules && udevadm settle && ! ls /dev/ublkb*");
    let data = host.disk("data");
    let shown = host.run(&format!("udevadm info {data}"));
    assert!(shown.contains("by-uuid") && !shown.contains("SYSTEMD_READY=0"), "{shown}");
    host.run(&format!("test $(readlink -f $(blkid -U $(blkid -s UUID -o value {data}))) = {data}"));
}

#[test]
fn a_disk_is_protected_with_what_the_packages_bring() {
    let network = Network::new();
    let mut gateway = Machine::debian("gateway", Kernel::Stock).disk(DiskSpec::blank("store", 512)).on(&network);
    let mut machine = Machine::debian("host", Kernel::Backports)
        .modules(&["ublk_drv"])
        .programs(&["farside-vm-load"])
        .disk(DiskSpec::blank("data", 64))
        .on(&network);
    let address = gateway.address();

    // The gateway.
    let mut receiver = gateway.boot();
    receiver.booted();
    let store = receiver.disk("store");
    receiver.run(&format!("mkfs.ext4 -q {store} && mkdir /srv/points && mount {store} /srv/points"));
    install(&mut receiver, &["farside", "farside-receiver"]);
    assert_ne!(receiver.attempt("systemctl is-active farside-receiver").code, 0, "it waits for its configuration");
    receiver.run(&format!(
        "sed -i -e 's,^store = .*,store = \"/srv/points/store\",' -e 's,^# *advertise = .*,advertise = [\"{address}:7400\"],' \
         /etc/farside/receiver.toml && grep -q '^advertise' /etc/farside/receiver.toml"
    ));
    receiver.run("systemctl enable --quiet --now farside-receiver");
    let token = receiver.run("farside-receiver token").trim().to_owned();

    // The host.
    let mut host = machine.boot();
    host.booted();
    install(&mut host, &["farside", "farsided"]);
    host.run("systemctl is-active farsided");
    // Drivers are looked for at a restart only where there is none: it may have come since the boot.
    let looked = "systemctl restart farsided && systemctl show --property ConditionResult --value farside-modules";
    assert_eq!(host.run(looked).trim(), "no");
    let without = host.run(&format!("mount -t tmpfs none /sys/module && {looked}; umount /sys/module"));
    assert_eq!(without.trim(), "yes");
    host.run(&format!("farside pair '{token}'"));
    let data = host.disk("data");
    host.run(&format!("mkfs.ext4 -q {data} && mkdir /srv/data"));
    host.run(&format!("farside volume add data --backing {data}"));
    host.run("farside group set default --epoch 1s");
    // Secure Boot needs nothing: no module was loaded that is not the kernel's own (bit 12 would say so), and none of ours.
    host.run(
        "test -e /dev/farside/data && test $(($(cat /proc/sys/kernel/tainted) & 4096)) = 0 && ! grep -qi farside /proc/modules",
    );
    host.run(&format!("echo '{FSTAB}' >>/etc/fstab && systemctl daemon-reload && systemctl start srv-data.mount"));
    host.run("man -w farsided 2>/dev/null || test -e /usr/share/man/man8/farsided.8.gz");

    // Upgraded under load, twice: a pause, and no error.
    wait_quiet(&mut host);
    let load = Load::start(&mut host, "/srv/data");
    for upgrades in 1..=2 {
        load.gets_on(&mut host, 16);
        let pid = host.run("systemctl show --property MainPID farsided");
        // The command line's package is large, and an emulated machine takes long to unpack it.
        install(&mut host, if upgrades == 1 { &["farside", "farsided"] } else { &["farsided"] });
        assert_ne!(host.run("systemctl show --property MainPID farsided"), pid, "an upgrade runs the new program");
        load.gets_on(&mut host, 16);
        // The map was handed over: what is owed is known to the granule, and no hot region is compared for it.
        let taken_over = host
            .run("journalctl --sync && journalctl --unit farsided --output cat --grep '^served volume=' | grep -c clean=true");
        assert_eq!(taken_over.trim(), upgrades.to_string(), "the daemon before the upgrade did not hand its map over");
    }
    // Over a configuration with which none starts, the one that runs goes on.
    let nonsense = "/etc/farside/farsided.d/nonsense.toml";
    host.run(&format!("mkdir -p /etc/farside/farsided.d && echo 'nonsense = 1' >{nonsense}"));
    let pid = host.run("systemctl show --property MainPID farsided");
    let files = upload(&mut host, &["farsided"]);
    let upgraded = host.attempt(&format!("dpkg --install {}", files.join(" ")));
    assert!(upgraded.code == 0 && upgraded.stderr.contains("farsided: not restarted"), "{upgraded:?}");
    assert_eq!(host.run("systemctl show --property MainPID farsided"), pid, "whoever uses the tap would wait for ever");
    load.gets_on(&mut host, 16);
    host.run(&format!("rm {nonsense}"));
    // The gateway too, and the host hears nothing of it.
    let pid = receiver.run("systemctl show --property MainPID farside-receiver");
    install(&mut receiver, &["farside-receiver"]);
    assert_ne!(receiver.run("systemctl show --property MainPID farside-receiver"), pid, "an upgrade runs the new program");
    load.gets_on(&mut host, 16);
    is_frozen_for_a_point_and_never_left_so(&mut host, &load);
    load.stop(&mut host);

    // The newest point is the disk.
    host.run("umount /srv/data");
    wait_quiet(&mut host);
    receiver.run("farside restore data --point latest --to /srv/points/newest.img");
    let restored = receiver.download("/srv/points/newest.img");
    assert!(restored == machine.disk_content("data"), "the newest point is not what the disk holds");

    // Removed only when nobody uses it; purged, it leaves nothing but disks, points, and what is in neither.
    host.run("mount /srv/data");
    let refused = host.attempt("dpkg --remove farsided");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("is in use"), "{refused:?}");
    host.run("touch /srv/data/still-there && umount /srv/data");
    host.run("dpkg --remove farsided && test -d /var/lib/farside && ! systemctl is-active farsided");
    is_the_hosts_own(&mut host);
    // Installed again it takes the disk back, and compares it.
    install(&mut host, &["farsided"]);
    host.wait_until("test -e /dev/farside/data");
    host.run("systemctl restart farsided && test -e /var/lib/farside/volumes/default/data/backing.json");
    let branch = "/var/lib/farside/branches/default/20260301T120000Z-9f3c2a/data";
    host.run(&format!("mkdir -p {branch} && echo only-here >{branch}/data && cp /var/lib/dpkg/info/farsided.postrm /run/purge"));
    let purged = host.attempt("dpkg --purge farsided");
    assert_eq!(purged.code, 0, "{purged:?}");
    assert!(purged.stderr.contains("/var/lib/farside/branches is left as it is"), "{purged:?}");
    assert_eq!(host.run(&format!("cat {branch}/data && ls -A /var/lib/farside")), "only-here\nbranches\n");
    host.run(&format!("test ! -e /etc/farside && rm {branch}/data && sh /run/purge purge && test ! -e /var/lib/farside"));
    is_the_hosts_own(&mut host);
    // By its UUID, at the next boot without any of it.
    host.run("sed -i '/farside/d' /etc/fstab");
    host.run("echo \"UUID=$(blkid -s UUID -o value /dev/disk/by-id/virtio-data) /srv/data ext4 defaults 0 2\" >>/etc/fstab");
    host.power_off();
    let mut host = machine.boot();
    host.booted();
    is_the_hosts_own(&mut host);
    let data = host.disk("data");
    assert_eq!(host.run("readlink -f $(findmnt --noheadings --output SOURCE /srv/data)").trim(), data);
    host.run("umount /srv/data");
    host.run(&format!("e2fsck -fn {data} && mount {data} /srv/data && test -e /srv/data/still-there && umount /srv/data"));
    receiver.run("dpkg --purge farside-receiver && farside store check /srv/points/store");
    host.power_off();
    receiver.power_off();
}

/// Applications are quiesced by what the packages bring, under load: by a program that may change users, which the daemon's sandbox may
/// not, and by a freeze of the mounted file system. When the daemon is killed meanwhile, what it began is ended.
fn is_frozen_for_a_point_and_never_left_so(host: &mut Guest, load: &Load) {
    let hook = "#!/bin/sh\nset -e\necho $1 >>/run/asked\n[ $1 = post-cut ] || while [ -e /run/wait ]; do sleep 0.2; done\nrunuser -u nobody true\n";
    host.upload("/usr/local/bin/quiesce", hook.as_bytes(), 0o755);
    let hooks = "[[hook]]\nname = \"quiesce\"\ncommand = [\"/usr/local/bin/quiesce\"]\n[[hook]]\nname = \"srv\"\nfreeze = \"/srv/data\"\ntimeout = \"5m\"\n";
    host.upload("/etc/farside/farsided.d/hooks.toml", hooks.as_bytes(), 0o644);
    host.run("farside reload && test -x /usr/lib/farside/hooks/postgresql");
    let taken = host.run("farside point take default --title frozen --wait 10m");
    assert!(taken.contains("application-consistent") && taken.contains("srv"), "{taken}");
    assert_eq!(host.run("cat /run/asked"), "pre-cut\npost-cut\n");
    load.gets_on(host, 16);

    // A program that waits for ever is over when the daemon is gone, and so is a freeze that was asked for.
    for frozen in [false, true] {
        host.run("rm /run/asked && touch /run/wait && (farside point take default >/dev/null 2>&1 &)");
        host.wait_until("grep -q pre-cut /run/asked");
        host.run(if frozen { "rm /run/wait && sleep 0.5" } else { "true" });
        host.run("systemctl kill --kill-whom=main --signal=KILL farsided");
        host.wait_until("grep -q post-cut /run/asked");
        host.run("rm -f /run/wait");
        load.gets_on(host, 16);
    }
    host.wait_until("! systemctl --quiet is-active 'farside-hooks@*' && test -z \"$(ls /run/farside/hooks/*.json 2>/dev/null)\"");
    host.run("rm /etc/farside/farsided.d/hooks.toml && farside reload");
}

/// Nobody helps it: systemd starts it again, beside an application that writes and, now and then, a program that takes all
/// memory while nobody serves what is to be written back.
#[test]
fn a_daemon_that_is_killed_is_back_by_itself_also_without_memory() {
    let mut machine = Machine::debian("host", Kernel::Backports)
        .modules(&["ublk_drv"])
        .programs(&["farside-vm-load"])
        .disk(DiskSpec::blank("data", 64));
    let mut host = machine.boot();
    NO_MEMORY.iter().for_each(|words| host.announce(words));
    host.booted();
    install(&mut host, &["farside", "farsided"]);
    let data = host.disk("data");
    host.run(&format!("mkfs.ext4 -q {data} && mkdir /srv/data && farside volume add data --backing {data}"));
    host.run("mount /dev/farside/data /srv/data");
    let load = Load::start(&mut host, "/srv/data");
    let mut dirties = None;
    for kill in 1..=KILLS {
        load.gets_on(&mut host, 8);
        let restarts = host.run("systemctl show --property NRestarts farsided");
        if kill == 1 {
            waits_for_no_memory(&mut host);
            // Its memory is what hosts write: no core of it is kept, also where one would be. (Not SEGV: Rust's handler of it, which looks
            // for a stack that overflowed, only goes away for the first.)
            host.run("prlimit --core=unlimited --pid $(systemctl show --property MainPID --value farsided)");
            host.run("systemctl kill --signal ABRT farsided");
        } else if kill % 4 == 0 {
            let dirty = "dd if=/dev/zero of=/srv/data/dirty bs=1M count=16 conv=notrunc 2>&1";
            dirties = Some(host.start_command(dirty, "/run/dirty.log"));
            let hog = host.attempt(&format!("systemctl kill --signal KILL farsided; {HOG}"));
            assert_eq!(hog.code, 128 + 9, "it was killed: {hog:?}");
        } else {
            host.run("systemctl kill --signal KILL farsided");
        }
        wait_for("systemd to start it again", || {
            (host.run("systemctl show --property NRestarts farsided") != restarts).then_some(())
        });
        host.wait_until("farside status --json");
    }
    let promised = load.stop(&mut host);
    host.wait_for_end(dirties.expect("there were some"));
    let said = host.run("cat /run/dirty.log");
    assert!(!said.contains("error"), "{said}");
    let ends = host.run("journalctl --sync && journalctl -b -u farsided --no-pager --grep 'Main process exited'");
    assert!(ends.contains("code=killed, status=6/ABRT") && !ends.contains("code=dumped"), "{ends}");
    waits_for_no_memory(&mut host);
    host.run("umount /srv/data && mount /dev/farside/data /srv/data");
    Load::check(&mut host, "/srv/data", &promised);
    host.run("umount /srv/data");
    six_busy_taps_are_left_in_order(host, &mut machine);
}

/// What the daemon must be for the kernel, whoever started it: every thread of it allocates without waiting for I/O that it would have to
/// serve itself (`PR_SET_IO_FLUSHER`), its memory is locked, the OOM killer passes it by, and no control group limits it.
fn waits_for_no_memory(host: &mut Guest) {
    // Of linux/sched.h: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
    const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;
    let pid = host.run("systemctl show --property MainPID --value farsided").trim().to_owned();
    // One that ends meanwhile has no flags any more.
    let threads = host.run(&format!("cat /proc/{pid}/task/*/stat 2>/dev/null; test -d /proc/{pid}"));
    let flags = |stat: &str| stat.rsplit_once(") ")?.1.split(' ').nth(6)?.parse::<u64>().ok();
    for stat in threads.lines() {
        assert_eq!(flags(stat).expect("flags") & IO_FLUSHER, IO_FLUSHER, "{stat}");
    }
    assert!(threads.lines().count() > 2, "it has threads: {threads}");
    assert_eq!(host.run(&format!("cat /proc/{pid}/oom_score_adj")).trim(), "-1000");
    let locked = host.run(&format!("sed -n 's/^VmLck:[^0-9]*//p' /proc/{pid}/status"));
    assert!(!locked.trim().is_empty() && locked.trim() != "0 kB", "{locked}");
    let limits = "for limit in memory.max memory.high cpu.max; do test ! -e $limit || cut -d' ' -f1 $limit; done";
    let limits =
        host.run(&format!("cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup) && test -e memory.max && {limits}"));
    assert!(limits.lines().all(|limit| limit == "max"), "{limits}");
}

/// A host is switched off while six taps are busy: half of them mounted by hand, half of them used as they are, by services that write
/// until they are stopped. Nobody's write waits for ever, and nothing is compared at the next boot.
fn six_busy_taps_are_left_in_order(mut host: Guest, machine: &mut Machine) {
    const TAPS: u32 = 6;
    for tap in 1..=TAPS {
        let file = format!("/srv/tap{tap}.img");
        host.run(&format!("truncate -s 8M {file} && farside volume add tap{tap} --backing {file} --tap ublk"));
        let device = format!("/dev/farside/tap{tap}");
        // systemd unmounts only when those are gone that say what they use.
        let (target, uses) = match tap % 2 {
            0 => (device, String::new()),
            _ => {
                host.run(&format!("mkfs.ext4 -q {device} && mkdir /srv/tap{tap} && mount {device} /srv/tap{tap}"));
                (format!("/srv/tap{tap}/file"), format!("--property RequiresMountsFor=/srv/tap{tap}"))
            }
        };
        let write = format!(
            "while dd if=/dev/urandom of={target} bs=64k count=16 conv=notrunc,fsync 2>/dev/null; do echo >/run/wrote{tap}; done"
        );
        host.run(&format!("systemd-run --quiet --unit busy{tap} {uses} sh -c '{write}'"));
    }
    for tap in 1..=TAPS {
        host.wait_until(&format!("test -e /run/wrote{tap}"));
    }
    host.power_off();
    let mut host = machine.boot();
    host.booted();
    // The service is ready before a device that is slow to answer is served.
    let served = "journalctl --sync && journalctl -b -u farsided --no-pager --grep '^served volume='";
    host.wait_until(&format!("test $({served} | wc -l) -ge {}", 1 + TAPS));
    let served = host.run(served);
    assert_eq!(served.matches("clean=true").count(), 1 + TAPS as usize, "a planned end compares nothing: {served}");
    for tap in (1..=TAPS).step_by(2) {
        host.run(&format!("e2fsck -fn /dev/farside/tap{tap}"));
    }
    host.power_off();
}
