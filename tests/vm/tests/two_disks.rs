//! Two disks with dependent writes: a number is written to the second one only after the first has called it durable. Every
//! point keeps to that, also those that a power cut left, and those after it; and by the kernel's own log of both disks, each point
//! is what they held at one moment.

use std::collections::HashSet;

use farside_tests::verify::Rng;
use farside_vm::conformance::{NBD, UBLK};
use farside_vm::gateway::FOLDER;
use farside_vm::log_writes::{What, WriteLog};
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use farside_vm::{DiskSpec, Kernel};
use serde_json::Value;

const MIB: usize = 16;
/// How far points that are looked at lie apart.
const STRIDE: usize = 3;
const POINTS: u64 = 12;
/// Of each disk whose writes the kernel logs: more than all places that are counted in, and less than makes a test slow.
const LOGGED_MIB: usize = 4;
/// How far apart `farside-vm-load count` writes.
const PLACE: usize = 16 << 10;

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
        let one = format!("{FOLDER}/one.img");
        let restore = format!("farside restore {volume} --point {point} --store {FOLDER}/store --to {one} >/dev/null");
        let counter = host.gateway.run(&format!("{restore} && farside-vm-load counter {one} && rm {one}"));
        counter.trim().parse::<u64>().expect("a number")
    };
    (of("log"), of("data"))
}

/// The newest first.
fn points_of_both(host: &mut Host) -> Vec<String> {
    let listed = host.gateway.run(&format!("farside point list data --store {FOLDER}/store --json"));
    let listed: Value = serde_json::from_str(&listed).expect("points");
    let points = listed.as_array().or_else(|| listed["points"].as_array()).expect("a list of points");
    let both = points.iter().filter(|point| point["members"].as_array().is_some_and(|members| members.len() == 2));
    both.map(|point| point["id"].as_str().expect("an id").to_owned()).collect()
}

fn stop_counting(host: &mut Host) {
    host.guest.run("kill $(pidof farside-vm-load)");
    host.guest.wait_until("! pidof farside-vm-load >/dev/null");
    host.wait_for_group("everything to be published", is_quiet);
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
    stop_counting(&mut host);

    let ids = points_of_both(&mut host);
    assert!(ids.len() as u64 >= 2 * POINTS, "{} points of both", ids.len());
    let mut seen = Vec::new();
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

/// What is at each place of a disk on which somebody counts.
fn numbers(disk: &[u8]) -> Vec<u8> {
    disk.chunks(PLACE).flat_map(|place| place[..8].to_vec()).collect()
}

#[test]
fn every_point_is_what_the_kernels_log_says_both_disks_held_at_one_moment() {
    let setup = Setup::new(Kernel::Stock, &[NBD.module, "dm_mod", "dm_log_writes"]).content(vec![0; (2 * LOGGED_MIB) << 20]);
    let mut host = Host::with(setup.disk(DiskSpec::blank("write-log", 256)));
    host.guest.announce("block nbd");
    let (write_log, sectors) = (host.guest.disk("write-log"), (LOGGED_MIB << 20) / 512);
    host.guest.run(&format!(
        "dmsetup create both --table \"0 {} log-writes $(cat /run/backing) {write_log}\" && \
         dmsetup create log --table '0 {sectors} linear /dev/mapper/both 0' && \
         dmsetup create data --table '0 {sectors} linear /dev/mapper/both {sectors}'",
        2 * sectors
    ));
    for volume in ["log", "data"] {
        host.guest.run(&format!("{CLI} volume add {volume} --backing /dev/mapper/{volume} --tap {}", NBD.name));
    }
    host.wait_for_group("the first sync", is_quiet);
    count(&mut host, 1);
    stop_counting(&mut host);
    for volume in ["log", "data"] {
        host.guest.run(&format!("{CLI} volume remove {volume} --yes"));
    }
    host.stop_daemon();
    host.guest.run("dmsetup remove data && dmsetup remove log && dmsetup remove both");

    let content = host.machine.disk_content("write-log");
    let mut disks = vec![0; (2 * LOGGED_MIB) << 20];
    let mut moments = HashSet::from([numbers(&disks)]);
    let log = WriteLog::parse(&content).expect("a log");
    for entry in log.entries() {
        if let What::Write { at, from } = &entry.what {
            disks[*at as usize..][..from.len()].copy_from_slice(&content[from.clone()]);
            moments.insert(numbers(&disks));
        }
    }
    assert!(disks == host.disk(), "the log's end is not what the disk holds");

    let mut points: Vec<[Vec<u8>; 2]> = Vec::new();
    for point in points_of_both(&mut host) {
        points.push(["log", "data"].map(|volume| host.gateway.restore(volume, &point)));
    }
    assert!(points.len() as u64 >= POINTS, "{} points of both", points.len());
    for (at, [log, data]) in points.iter().enumerate() {
        let both = [log.as_slice(), data].concat();
        assert!(moments.contains(&numbers(&both)), "point {at}, counted from the newest, is no moment of both disks");
    }
    // One disk of the newest point beside the other one of the oldest is no moment, and that is noticed.
    let torn = [points[0][0].as_slice(), &points[points.len() - 1][1]].concat();
    assert!(!moments.contains(&numbers(&torn)), "two points put together count as a moment");
    println!("{} points, {} moments of {} entries", points.len(), moments.len(), log.entries().len());
    host.end_without_daemon();
}
