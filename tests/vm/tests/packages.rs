//! The Debian packages on a real Debian with systemd, as README's "Protect a real disk" uses them: installed, paired, a disk
//! protected and mounted from fstab, upgraded under load, restored from, removed and purged.

use std::path::PathBuf;

use farside_tests::wait_for;
use farside_vm::{DiskSpec, Guest, Kernel, Machine, Network};
use serde_json::Value;

const FSTAB: &str = "/dev/farside/data /srv/data ext4 _netdev,x-systemd.requires=farsided.service 0 2";

/// What the step `packages` made.
fn package(name: &str) -> PathBuf {
    let folder = farside_tests::bin_dir().parent().expect("programs lie in target/PROFILE").join("packages");
    let found = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.expect("a readable folder").path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_")));
    found.into_iter().find(is_it).unwrap_or_else(|| {
        panic!("{} has no {name}; make it with `cargo run --release -p xtask -- test --only packages`", folder.display())
    })
}

fn install(guest: &mut Guest, names: &[&str]) {
    for name in names {
        guest.upload(&format!("/root/{name}.deb"), &std::fs::read(package(name)).expect("readable"), 0o644);
    }
    let files: Vec<String> = names.iter().map(|name| format!("/root/{name}.deb")).collect();
    guest.run(&format!("dpkg --install {}", files.join(" ")));
}

fn status(guest: &mut Guest) -> Value {
    serde_json::from_str(&guest.run("farside status --json")).expect("status is JSON")
}

/// Everything that was written is in a point.
fn wait_quiet(host: &mut Guest) {
    wait_for("everything to be published", || {
        let status = status(host);
        let group = &status["groups"][0];
        let volume = &group["volumes"][0];
        let quiet = group["backlog_bytes"] == 0 && group["last_point"].is_object() && volume["state"]["state"] == "streaming";
        (quiet && volume["dirty_bytes"] == 0 && group["layers_unpublished"] == 0).then_some(())
    });
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
    host.run(&format!("farside pair '{token}'"));
    let data = host.disk("data");
    host.run(&format!("mkfs.ext4 -q {data} && mkdir /srv/data"));
    host.run(&format!("farside volume add data --backing {data}"));
    host.run("farside group set default --epoch 1s");
    host.run(&format!("echo '{FSTAB}' >>/etc/fstab && systemctl daemon-reload && systemctl start srv-data.mount"));
    host.run("man -w farsided 2>/dev/null || test -e /usr/share/man/man8/farsided.8.gz");

    // Upgraded under load, twice: a pause, and no error.
    let load = host.start_command("exec farside-vm-load write /srv/data /run/progress /run/stop", "/run/load.log");
    let records = |host: &mut Guest| host.attempt("wc -l </run/progress").stdout.trim().parse::<u64>().unwrap_or(0);
    for _ in 0..2 {
        let before = records(&mut host);
        wait_for("the load to get on", || (records(&mut host) > before + 16).then_some(()));
        let pid = host.run("systemctl show --property MainPID farsided");
        install(&mut host, &["farside", "farsided"]);
        assert_ne!(host.run("systemctl show --property MainPID farsided"), pid, "an upgrade runs the new program");
        let after = records(&mut host);
        wait_for("the load to get on after the upgrade", || (records(&mut host) > after + 16).then_some(()));
    }
    host.run(&format!("test -d /proc/{load} && touch /run/stop"));
    host.wait_until(&format!("test ! -d /proc/{load}"));
    assert_eq!(host.run("cat /run/load.log"), "", "the application met an error");

    // The newest point is the disk.
    host.run("umount /srv/data");
    wait_quiet(&mut host);
    receiver.run("farside restore data --point latest --to /srv/points/newest.img");
    let restored = receiver.download("/srv/points/newest.img");
    assert!(restored == machine.disk_content("data"), "the newest point is not what the disk holds");

    // Removed only when nobody uses it; purged, it leaves nothing but disks and points.
    host.run("mount /srv/data");
    let refused = host.attempt("dpkg --remove farsided");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("is in use"), "{refused:?}");
    host.run("touch /srv/data/still-there && umount /srv/data");
    host.run("dpkg --remove farsided && test -d /var/lib/farside && ! systemctl is-active farsided");
    host.run("dpkg --purge farsided && test ! -e /var/lib/farside && test ! -e /etc/farside");
    let data = host.disk("data");
    host.run(&format!("e2fsck -fn {data} && mount {data} /srv/data && test -e /srv/data/still-there && umount /srv/data"));
    receiver.run("dpkg --purge farside-receiver && farside store check /srv/points/store");
    host.power_off();
    receiver.power_off();
}
