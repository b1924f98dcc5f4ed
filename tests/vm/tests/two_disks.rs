//! Two disks with dependent writes: a number is written to the second one only after the first has called it durable. Every
//! point keeps to that, also those that a power cut left, and those after it.

use farside_tests::verify::Rng;
use farside_vm::conformance::UBLK;
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use farside_vm::{DiskSpec, Kernel};
use serde_json::Value;

const MIB: usize = 16;
/// How far points that are looked at lie apart.
const STRIDE: usize = 3;
const POINTS: u64 = 12;

fn published(host: &mut Host) -> u64 {
    host.wait_for_group("a status", |_| true)["points_published"].as_u64().expect("a number")
}

/// Counts from a number on until so many points more are published, and goes on.
fn count(host: &mut Host, from: u64) {
    let before = published(host);
    host.guest.run("rm -f /run/counted");
    let count = format!("exec farside-vm-load count /dev/farside/log /dev/farside/data /run/counted {from}");
    host.guest.start_command(&count, "/run/count.log");
    host.wait_for_group("points under load", |group| group["points_published"].as_u64() >= Some(before + POINTS));
    host.guest.run("test ! -s /run/count.log && kill -0 $(pidof farside-vm-load)");
}

/// How far both disks had come in a point.
fn counters(host: &mut Host, point: &str) -> (u64, u64) {
    let mut of = |volume: &str| {
        let restore = format!("farside restore {volume} --point {point} --store /store/store --to /store/one.img >/dev/null");
        let counter = host.receiver.run(&format!("{restore} && farside-vm-load counter /store/one.img && rm /store/one.img"));
        counter.trim().parse::<u64>().expect("a number")
    };
    (of("log"), of("data"))
}

#[test]
fn every_point_satisfies_the_dependency_of_two_disks() {
    let setup = Setup::new(Kernel::Newest, &[UBLK.module]).content(vec![0; MIB << 20]);
    let mut host = Host::with(setup.disk(DiskSpec::blank("log", MIB)));
    let log = host.guest.disk("log");
    host.guest.run(&format!("{CLI} volume add log --backing {log} --tap ublk"));
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap ublk"));
    host.wait_for_group("the first sync", is_quiet);
    count(&mut host, 1);
    let promised = host.guest.run("tail -n 1 /run/counted").trim().parse::<u64>().expect("a number");
    // Something to lose beside what is always durable.
    let other = host.guest.disk("wide");
    host.guest.run(&format!("dd if=/dev/urandom of={other} bs=64k count=64 oflag=direct 2>/dev/null"));
    let (mut host, _) = host.cut_power(&mut Rng(5), 4);
    host.start_daemon();
    host.wait_for_group("everything to be published", is_quiet);
    host.assert_newest_point_is_the_disk();
    let newest = host.wait_for_group("a status", |_| true)["last_point"]["id"].as_str().expect("a point").to_owned();
    let after_the_cut = counters(&mut host, &newest);
    assert!(after_the_cut.1 >= promised, "{promised} was durable on both, and {after_the_cut:?} is in the newest point");
    count(&mut host, after_the_cut.0);
    host.guest.run("kill $(pidof farside-vm-load)");
    host.guest.wait_until("! pidof farside-vm-load >/dev/null");
    host.wait_for_group("everything to be published", is_quiet);

    let listed = host.receiver.run("farside point list data --store /store/store --json");
    let listed: Value = serde_json::from_str(&listed).expect("points");
    let points = listed.as_array().or_else(|| listed["points"].as_array()).expect("a list of points");
    let both = points.iter().filter(|point| point["members"].as_array().is_some_and(|members| members.len() == 2));
    let ids: Vec<&str> = both.map(|point| point["id"].as_str().expect("an id")).collect();
    assert!(ids.len() as u64 >= 2 * POINTS, "{} points of both", ids.len());
    let mut seen = Vec::new();
    // The newest first.
    for id in ids.iter().step_by(STRIDE).chain(ids.last()) {
        let (log, data) = counters(&mut host, id);
        assert!(log == data || log == data + 1, "point {id}: the first disk is at {log}, the second at {data}");
        seen.push(data);
    }
    println!("{} points: {seen:?}", ids.len());
    assert!(seen.is_sorted_by(|newer, older| newer >= older), "points go back in time");
    assert!(seen[0] > after_the_cut.1, "nothing was counted after the cut");
    host.shut_down();
}
