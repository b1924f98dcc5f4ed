//! R1 to R4 on a real kernel: how trackers of others lost writes at a power cut. The state disk's flushes are held where the
//! moment matters, so nothing is left to chance.

use farside_tests::verify::Rng;
use farside_vm::Kernel;
use farside_vm::conformance::{self, DEVICE, UBLK};
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// Published, and nothing hot: whatever is written next finds its region clean.
fn is_cold(group: &Value) -> bool {
    is_quiet(group) && group["volumes"][0]["hot_bytes"] == 0
}

fn boot() -> Host {
    let mut host = conformance::protect(Setup::new(Kernel::Newest, &[UBLK.module]), &UBLK);
    host.wait_for_group("the volume to be cold", is_cold);
    host
}

/// A write of 64 KiB that says so when the device has called it durable.
fn start_write(host: &mut Host, at_mib: usize, name: &str) {
    let write = format!("farside-vm-load put {DEVICE} {} 65536 fua && touch /run/{name}", at_mib * MIB);
    host.guest.start_command(&write, "/run/put.log");
}

fn write(host: &mut Host, at_mib: usize) {
    host.guest.run(&format!("farside-vm-load put {DEVICE} {} 65536 fua", at_mib * MIB));
}

/// Takes the power; beside whatever there is to lose, somebody writes to a disk of no interest and never syncs. Of what was not
/// synced, each block stays with `kept` chances in eight.
fn cut(mut host: Host, kept: u64) -> Host {
    let other = host.guest.disk("wide");
    host.guest.run(&format!("dd if=/dev/urandom of={other} bs=64k count=64 oflag=direct 2>/dev/null"));
    host.cut_power(&mut Rng(kept + 1), kept).0
}

/// Started and published again after a cut: what the disk holds, from no more than the hot regions. Gives their bytes at the start.
fn converges(host: &mut Host) -> u64 {
    let hot = host.start_daemon_unheard()["volumes"][0]["hot_bytes"].as_u64().expect("a number");
    let group = host.wait_for_group("everything to be published", is_quiet);
    let read = group["volumes"][0]["counters"]["sent_bytes"].as_u64().expect("a counter");
    assert!(read <= hot, "{read} bytes were read again, {hot} were hot");
    host.assert_newest_point_is_the_disk();
    hot
}

/// Two writes to one clean region while the commit of its bit is under way and does not end. Neither is on the disk, let alone
/// acknowledged, before the bit is durable; whichever part of this a power cut leaves, the newest point is what the disk holds.
#[test]
fn r1_no_write_passes_the_commit_of_its_regions_bit() {
    let mut host = boot();
    let holds = |host: &Host, at_mib: usize| host.disk()[at_mib * MIB..][..65536].iter().any(|byte| *byte != 0);
    for (round, kept) in [0, 4, 8].into_iter().enumerate() {
        let at = 8 + 8 * round;
        host.machine.hold_flushes("state");
        start_write(&mut host, at, "first");
        host.machine.wait_until_held("state");
        start_write(&mut host, at + 1, "second");
        host.guest.wait_until(&format!("awk '{{ exit $2 != 2 }}' /sys/block/$(basename $(readlink -f {DEVICE}))/inflight"));
        host.guest.run("test ! -e /run/first -a ! -e /run/second");
        assert!(!holds(&host, at) && !holds(&host, at + 1), "a write is on the disk before its region's bit is durable");
        host = cut(host, kept);
        converges(&mut host);
        assert!(!holds(&host, at), "it never came so far");
        host.wait_for_group("the volume to be cold", is_cold);
    }
    // The commit ends: both are acknowledged, and the region is hot when the power comes back.
    host.machine.hold_flushes("state");
    start_write(&mut host, 32, "first");
    host.machine.wait_until_held("state");
    start_write(&mut host, 33, "second");
    host.gateway.cut(); // nothing of it is published
    host.machine.let_go("state");
    host.guest.wait_until("test -e /run/first -a -e /run/second");
    host = cut(host, 0);
    assert!(converges(&mut host) > 0, "the region was written, and is not hot");
    assert!(holds(&host, 32) && holds(&host, 33));
    host.shut_down();
}

/// R2: an epoch that was frozen and one that was open when the power went. R3: a pause, and its end, on either side of each.
#[test]
fn r2_r3_what_was_open_or_paused_is_compared_whenever_the_power_goes() {
    let mut host = boot();
    let published = |host: &mut Host| host.wait_for_group("a status", |_| true)["points_published"].as_u64().expect("a number");
    // R2: the gateway is out of reach, so one epoch is frozen and stays so, and the next is open.
    let before = published(&mut host);
    host.gateway.cut();
    write(&mut host, 4);
    host.wait_for_group("an epoch to be frozen", |group| group["backlog_bytes"] != 0 || group["layers_unpublished"] != 0);
    write(&mut host, 12);
    assert_eq!(published(&mut host), before);
    host = cut(host, 0);
    assert!(converges(&mut host) >= 8 << 20, "two regions were written");

    for step in 0..4 {
        host.wait_for_group("the volume to be cold", is_cold);
        let at = |host: Host, here: usize| match here == step {
            true => {
                let mut host = cut(host, [4, 0][step % 2]);
                host.start_daemon();
                host
            }
            false => host,
        };
        host.guest.run(&format!("{CLI} volume pause data"));
        host = at(host, 0);
        write(&mut host, 20 + step);
        host = at(host, 1);
        // A planned restart while it is paused.
        host.stop_daemon();
        host.start_daemon();
        write(&mut host, 28 + step);
        host = at(host, 2);
        host.guest.run(&format!("{CLI} volume resume data"));
        host = at(host, 3);
        host.wait_for_group("everything to be published", is_quiet);
        host.assert_newest_point_is_the_disk();
    }
    host.shut_down();
}

/// R4: after a crash the gateway is another one, which has nothing. It gets everything, also of what was clean here.
#[test]
fn r4_a_new_gateway_after_a_crash_gets_everything() {
    let mut host = boot();
    (0..60).step_by(7).for_each(|at| write(&mut host, at));
    host.wait_for_group("the volume to be cold", is_cold);
    write(&mut host, 40);
    host = cut(host, 4);
    host.gateway.replace();
    host.start_daemon();
    host.pair();
    let refused = |group: &Value| {
        let state = group["volumes"][0]["state"]["state"].as_str().unwrap_or_default().to_owned();
        (state == "target_rewound" || state == "forked", state)
    };
    let group = host.wait_for_group("a decision to be asked for, or all to be sent", |group| refused(group).0 || is_quiet(group));
    if let (true, state) = refused(&group) {
        let accept = if state == "forked" { "forked" } else { "rewound" };
        host.guest.run(&format!("{CLI} volume resync data --accept {accept}"));
    }
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.shut_down();
}
