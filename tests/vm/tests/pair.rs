//! A protected host and its gateway, each a machine with a kernel of its own: the volume is a real block device of the host's
//! kernel (NBD), its file system ext4. The host loses its power in the middle of writing; afterwards the newest point is what
//! its disk holds, and every file that was synced is in it.

use farside_tests::verify::Rng;
use farside_tests::{run, tool, wait_for};
use farside_vm::gateway::Gateway;
use farside_vm::protected::is_quiet;
use farside_vm::{DiskSpec, Guest, Kernel, Machine, Network};
use serde_json::Value;

const VOLUME_MIB: usize = 64;
const FILES: usize = 20;

const HOST_CONFIGURATION: &str = r#"
[source]
name = "host1"
state_dir = "/state/farside"
api_socket = "/run/farsided.sock"

[[group]]
name = "default"
epoch_interval = "500ms"
keep = 10000
span = "0s"

[[volume]]
name = "data"
group = "default"
backing = "BACKING"
tap = "nbd:unix:/run/data.nbd"
"#;

fn name_of(number: usize) -> String {
    format!("file-{number:04}")
}

fn gateway(network: &Network) -> Machine {
    Machine::new("gateway", Kernel::Stock)
        .modules(&["nbd"])
        .programs(&["farside", "farside-receiver"])
        .debian_programs(&["mke2fs"])
        .disk(DiskSpec::blank("store", 512))
        .on(network)
}

fn host(network: &Network) -> Machine {
    Machine::new("host", Kernel::Stock)
        .modules(&["nbd"])
        .programs(&["farside", "farsided"])
        .debian_programs(&["mke2fs", "nbd-client"])
        .disk(DiskSpec::blank("data", VOLUME_MIB))
        .disk(DiskSpec::blank("state", 32))
        .on(network)
}

/// Mounts the state directory and starts the daemon; then the kernel's NBD client makes a block device of the tap.
fn start_daemon(guest: &mut Guest) {
    let (state, data) = (guest.disk("state"), guest.disk("data"));
    guest.run(&format!("mkdir -p /state && mount -t ext4 {state} /state"));
    guest.upload("/etc/farsided.toml", HOST_CONFIGURATION.replace("BACKING", &data).as_bytes(), 0o644);
    guest.start_command("exec farsided --config /etc/farsided.toml", "/run/daemon.log");
    guest.wait_until("test -S /run/data.nbd");
    guest.run("nbd-client -unix /run/data.nbd /dev/nbd0 -name data");
}

/// The status of the volume's group, once it satisfies a condition.
fn wait_for_group(guest: &mut Guest, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || guest.status("/run/farsided.sock").map(|status| status["groups"][0].clone()).filter(&condition))
}

/// Writes files, each synced before the next.
fn write_files(count: usize) -> String {
    format!(
        "for i in $(seq -w 0 {:04}); do \
            yes file-$i | head -n 2000 | dd of=/mnt/file-$i conv=fsync 2>/dev/null || exit 1; \
         done",
        count - 1
    )
}

/// Starts a drill. Gives its block device, and the process that owns it.
fn start_drill(gateway: &mut Guest) -> (String, u32) {
    let command = "exec farside drill start host1/default --store /store/store --dir /store/drills --device --json";
    gateway.run("rm -f /run/drill.log");
    let owner = gateway.start_command(command, "/run/drill.log");
    let drill = wait_for("the drill to be ready", || {
        let said = String::from_utf8(gateway.download("/run/drill.log")).expect("text");
        assert!(gateway.lives(owner), "the drill ended: {said}");
        serde_json::from_str::<Value>(&said).ok()
    });
    (drill["volumes"][0]["node"].as_str().expect("a device").to_owned(), owner)
}

/// The newest point as a block device of the gateway's kernel: mounted, written, refused to go while it is used, and gone afterwards;
/// also when its owner, or everybody, is killed.
fn is_drilled(gateway: &mut Guest) {
    // Users of a device that is torn away see errors.
    gateway.announce("nbd0");
    let is_there = "test -e /sys/block/nbd0/pid";
    let stop = "farside drill stop --all --dir /store/drills";
    let mount = |gateway: &mut Guest, device: &str| {
        gateway.run(&format!("mount -t ext4 {device} /mnt && test $(grep -cx file-0000 /mnt/file-0000) = 2000"));
        gateway.run("dd if=/dev/urandom of=/mnt/drilled bs=64k count=32 conv=fsync 2>/dev/null");
    };
    let (device, owner) = start_drill(gateway);
    mount(gateway, &device);
    let refused = gateway.attempt(stop);
    assert!(refused.code == 4 && refused.stderr.contains(&format!("is in use at {device}")), "{refused:?}");
    let refused = gateway.attempt(&format!("farside point close {device}"));
    assert!(refused.code == 4 && refused.stderr.contains(&format!("stays open: {device} is in use")), "{refused:?}");
    gateway.run("echo still served >/mnt/served && umount /mnt");
    gateway.run(&format!("{stop} && ! {is_there} && test -z \"$(ls /store/drills)\""));
    gateway.wait_for_end(owner);

    // Another one knows nothing of it. Its owner is killed: its device goes, and whoever uses it sees that.
    let (device, owner) = start_drill(gateway);
    gateway.run(&format!("mount -t ext4 {device} /mnt && test ! -e /mnt/drilled"));
    gateway.run(&format!("kill -9 {owner}"));
    gateway.wait_until(&format!("! dd if={device} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null"));
    gateway.run("umount /mnt");
    gateway.wait_until(&format!("! {is_there}"));
    gateway.wait_until(stop);

    // Everybody is killed: what is left goes with the next one.
    let (_, owner) = start_drill(gateway);
    gateway.run("killall -9 farside");
    gateway.wait_for_end(owner);
    gateway.run(is_there);
    gateway.wait_until(stop);
    gateway.run(&format!("! {is_there} && test -z \"$(ls /store/drills)\""));
}

/// On the gateway, whose receiver runs there.
const FARSIDE: &str = "farside --socket /store/receiver.sock";

/// What the follower says of itself.
fn follower(gateway: &mut Guest) -> Value {
    serde_json::from_str(&gateway.run(&format!("{FARSIDE} follower show standby --json"))).expect("JSON")
}

/// Waits until the standby holds the newest point of a quiet host.
fn wait_for_standby(gateway: &mut Guest) {
    wait_for("the standby to hold the newest point", || {
        let newest: Value =
            serde_json::from_str(&gateway.run(&format!("{FARSIDE} point show latest --of data --json"))).expect("JSON");
        let now = follower(gateway);
        (now["state"] == "following" && now["holds"]["id"] == newest["id"]).then_some(())
    });
}

/// The worst day: a disk of the gateway follows the host's volume; the host loses its power, the disk takes its place and is written to; the host comes
/// back, is fenced and keeps serving its own, and takes its history back.
#[test]
fn a_host_that_loses_its_power_is_failed_over_to_a_standby_disk_and_comes_back() {
    let network = Network::new();
    let (gateway, mut host) = (gateway(&network).disk(DiskSpec::blank("standby", VOLUME_MIB)), host(&network));
    let mut gateway = Gateway::emulated(gateway, network);
    let mut source = host.boot();
    let state = source.disk("state");
    source.run(&format!("/bin/mke2fs -q -t ext4 {state}"));
    start_daemon(&mut source);
    source.run(&format!("farside --socket /run/farsided.sock pair '{}'", gateway.token()));
    source.run("/bin/mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 -o commit=300 /dev/nbd0 /mnt");
    source.run("dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync");
    wait_for_group(&mut source, "the first sync", is_quiet);
    let far = gateway.guest();
    let standby = far.disk("standby");
    far.run(&format!("{FARSIDE} follower add host1/data {standby} --name standby"));
    source.run(&write_files(FILES));
    wait_for_group(&mut source, "all files to be published", is_quiet);
    wait_for_standby(far);
    far.announce("Can't open blockdev");
    let refused = far.attempt(&format!("mount -t ext4 {standby} /mnt"));
    assert!(refused.code != 0, "it is the receiver's alone");

    let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=64 oflag=direct conv=notrunc; do :; done";
    source.start_command(scribble, "/run/scribble.log");
    let rounds = source.wait_until("grep -c 'records out' /run/scribble.log");
    source.wait_until(&format!("test $(grep -c 'records out' /run/scribble.log) -gt $(({} + 1))", rounds.trim()));
    source.cut_power(&mut Rng(11), 4);

    let done: Value =
        serde_json::from_str(&far.run(&format!("{FARSIDE} failover host1/default --yes --force --json"))).expect("JSON");
    assert_eq!((&done["stage"], &done["members"][0]["state"]), (&"promoted".into(), &"promoted".into()));
    println!("writable {} ms after the word", done["rto_ms"]);
    far.run(&format!("mount -t ext4 {standby} /mnt"));
    let all_there =
        format!("for i in $(seq -w 0 {:04}); do test $(grep -cx file-$i /mnt/file-$i) = 2000 || exit 1; done", FILES - 1);
    far.run(&all_there);
    far.run("echo written far away >/mnt/far && sync && umount /mnt");

    let mut source = host.boot();
    start_daemon(&mut source);
    wait_for_group(&mut source, "the host to be fenced", |group| group["volumes"][0]["state"]["state"] == "fenced");
    source.run(&format!("mount -t ext4 /dev/nbd0 /mnt && {all_there} && test ! -e /mnt/far && umount /mnt"));
    wait_for_group(&mut source, "it to stay so", |group| group["volumes"][0]["state"]["state"] == "fenced");
    source.run("farside --socket /run/farsided.sock volume resync data --accept fenced");
    wait_for_group(&mut source, "the history to be taken back", is_quiet);
    let restored = gateway.restore("data", "latest");
    assert!(restored == host.disk_content("data"), "the newest point is not what the disk holds");

    // What was written far away is overwritten when a person says so, and not before.
    let far = gateway.guest();
    far.run(&format!("{FARSIDE} follower resume standby"));
    wait_for("what was written to be noticed", || (follower(far)["state"] == "diverged").then_some(()));
    far.run(&format!("{FARSIDE} follower heal standby --yes"));
    wait_for_standby(far);
    far.run(&format!("{FARSIDE} follower verify standby"));
    source.run("nbd-client -d /dev/nbd0");
    source.run("killall farsided && while pidof farsided; do :; done >/dev/null");
    source.shut_down();
    gateway.shut_down();
}

#[test]
fn a_host_that_loses_its_power_is_restored_with_all_that_was_synced() {
    let network = Network::new();
    let (gateway, mut host) = (gateway(&network), host(&network));
    let mut gateway = Gateway::emulated(gateway, network);
    let mut source = host.boot();
    let state = source.disk("state");
    source.run(&format!("/bin/mke2fs -q -t ext4 {state}"));
    start_daemon(&mut source);
    source.run(&format!("farside --socket /run/farsided.sock pair '{}'", gateway.token()));
    // The file system flushes when somebody syncs, and hardly otherwise.
    source.run("/bin/mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 -o commit=300 /dev/nbd0 /mnt");
    source.run("dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync");
    wait_for_group(&mut source, "the first sync", is_quiet);

    // Somebody writes past the page cache and never syncs; beside him, files are written and synced.
    let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=64 oflag=direct conv=notrunc; do :; done";
    source.start_command(scribble, "/run/scribble.log");
    source.run(&write_files(FILES));
    let rounds = source.wait_until("grep -c 'records out' /run/scribble.log");
    source.wait_until(&format!("test $(grep -c 'records out' /run/scribble.log) -gt $(({} + 1))", rounds.trim()));
    let lost = source.cut_power(&mut Rng(7), 4);
    assert!(lost > 0, "nothing was in any cache: nothing is proved");

    let mut source = host.boot();
    start_daemon(&mut source);
    let hot = wait_for_group(&mut source, "the volume to be compared", |group| group["volumes"][0]["hot_bytes"].is_u64());
    let group = wait_for_group(&mut source, "everything to be published", is_quiet);
    let restored = gateway.restore("data", "latest");
    assert!(restored == host.disk_content("data"), "the newest point is not what the disk holds");
    println!(
        "{lost} blocks lost; {} hot, {} sent",
        hot["volumes"][0]["hot_bytes"], group["volumes"][0]["counters"]["sent_bytes"]
    );
    source.run("nbd-client -d /dev/nbd0");
    source.run("killall farsided && while pidof farsided; do :; done >/dev/null");
    source.shut_down();
    is_drilled(gateway.guest());
    gateway.shut_down();

    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    std::fs::write(&image, &restored).expect("room");
    tool("e2fsck").args(["-E", "journal_only", "-p"]).arg(&image).output().expect("e2fsck");
    run(tool("e2fsck").arg("-fn").arg(&image));
    for number in 0..FILES {
        let shown = run(tool("debugfs").args(["-R", &format!("cat /{}", name_of(number))]).arg(&image));
        assert!(shown.stdout == format!("{}\n", name_of(number)).repeat(2000).as_bytes(), "{} was synced", name_of(number));
    }
}
