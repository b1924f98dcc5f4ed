//! L2 at every moment at which the power could have gone, by the kernel's own log of what reached one disk: the volume's content
//! and the state directory lie on it side by side. Whatever the log says may be left, a region that the intent map calls clean
//! holds what is published. The published points are restored and held against the log.

use std::collections::BTreeSet;

use farside_region::intent::{IntentLayout, PageIndex, recover_header, recover_page};
use farside_region::{Geometry, RegionIndex};
use farside_tests::{run, tool};
use farside_vm::conformance::{DEVICE, NBD};
use farside_vm::log_writes::{What, WriteLog};
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use farside_vm::{DiskSpec, Kernel};
use serde_json::Value;

const CUTS: usize = 20;
const REGION: usize = 4 << 20;
const REGIONS: usize = 6;
const DATA_BYTES: usize = REGIONS * REGION;
const STATE_BYTES: usize = 32 << 20;
const BLOCK: usize = 4096;
/// The bits set in this round are lost in the test of the test.
const LOST_ROUND: usize = 7;

fn is_cold(group: &Value) -> bool {
    is_quiet(group) && group["volumes"][0]["hot_bytes"] == 0
}

/// A host whose state directory and backing are two parts of one logged disk.
fn boot() -> Host {
    let setup = Setup::new(Kernel::Stock, &[NBD.module, "dm_mod", "dm_log_writes"]);
    let both = DiskSpec::blank("both", (DATA_BYTES + STATE_BYTES) >> 20);
    let mut host = Host::with(setup.disk(both).disk(DiskSpec::blank("log", 384)));
    host.stop_daemon();
    let (both, log) = (host.guest.disk("both"), host.guest.disk("log"));
    let (data, state) = (DATA_BYTES / 512, STATE_BYTES / 512);
    host.guest.run(&format!(
        "dmsetup create logged --table '0 {} log-writes {both} {log}' && \
         dmsetup create data --table '0 {data} linear /dev/mapper/logged 0' && \
         dmsetup create state --table '0 {state} linear /dev/mapper/logged {data}' && \
         /bin/mke2fs -q -b {BLOCK} -t ext4 /dev/mapper/state && mkdir /run/new && mount -t ext4 /dev/mapper/state /run/new && \
         cp -a /state/. /run/new && umount /run/new && umount /state && mount -t ext4 /dev/mapper/state /state",
        data + state
    ));
    host.start_daemon();
    host.guest.run(&format!("{CLI} volume add data --backing /dev/mapper/data --tap {}", NBD.name));
    host
}

/// The log's words for "everything up to here is published, and nothing is hot".
fn mark(host: &mut Host, round: usize) -> String {
    let group = host.wait_for_group("the volume to be cold", is_cold);
    host.guest.run(&format!("dmsetup message logged 0 mark quiet-{round}"));
    group["last_point"]["id"].as_str().expect("a point").to_owned()
}

fn round_of(words: &str) -> Option<usize> {
    words.strip_prefix("quiet-")?.parse().ok()
}

/// One of the states in which a power cut may leave the disk.
struct Image {
    bytes: Vec<u8>,
    /// What the intent map in it says.
    hot: [bool; REGIONS],
    /// Of each region: whether it holds what was published before this round, and after it.
    is_old: [bool; REGIONS],
    is_new: [bool; REGIONS],
}

impl Image {
    fn new() -> Self {
        let bytes = vec![0; DATA_BYTES + STATE_BYTES];
        Self { bytes, hot: [true; REGIONS], is_old: [true; REGIONS], is_new: [true; REGIONS] }
    }

    fn region(&self, region: usize) -> &[u8] {
        &self.bytes[region * REGION..][..REGION]
    }

    fn compare(&mut self, regions: impl Iterator<Item = usize>, old: &[u8], new: &[u8]) {
        for region in regions {
            let of = |image: &[u8]| *self.region(region) == image[region * REGION..][..REGION];
            (self.is_old[region], self.is_new[region]) = (of(old), of(new));
        }
    }

    fn read_map(&mut self, map: &[usize]) {
        let geometry = Geometry::new(DATA_BYTES as u64).expect("whole granules");
        let layout = IntentLayout::new(&geometry);
        let block = |i: usize| &self.bytes[map[i]..][..BLOCK];
        self.hot = match recover_header([block(0), block(1)]) {
            Ok(Some((header, _))) => {
                let page = recover_page(header.map, &layout, PageIndex(0), [block(2), block(3)]).page;
                std::array::from_fn(|region| page.bits.get(layout.place(RegionIndex(region as u64)).1))
            }
            _ => [true; REGIONS], // a person is asked, and everything is compared
        };
    }
}

/// What is wrong at any moment of the log, if entries are lost that a lying disk would lose.
fn false_cleans(bytes: &[u8], map: &[usize], published: &[Vec<u8>], lose: impl Fn(usize) -> bool) -> (Vec<String>, usize) {
    let log = WriteLog::parse(bytes).expect("a log");
    // What is there at most: everything that was written. At least: what was flushed, or written with FUA.
    let (mut most, mut least) = (Image::new(), Image::new());
    let mut pending: Vec<(usize, usize, Option<usize>)> = Vec::new();
    let (mut wrong, mut moments, mut round) = (Vec::new(), 0, None);
    let mut touched = [false; REGIONS];
    let apply = |image: &mut Image, (at, len, from): (usize, usize, Option<usize>)| match from {
        Some(from) => image.bytes[at..at + len].copy_from_slice(&bytes[from..from + len]),
        None => image.bytes[at..at + len].fill(0),
    };
    let regions_of = |(at, len, _): &(usize, usize, Option<usize>)| {
        let end = (at + len).min(DATA_BYTES).div_ceil(REGION);
        *at / REGION..if *at < DATA_BYTES { end } else { at / REGION }
    };
    for (number, entry) in log.entries().iter().enumerate() {
        let write = match &entry.what {
            What::Mark(words) => {
                round = round_of(words).or(round);
                touched = [false; REGIONS];
                None
            }
            _ if lose(number) => None,
            What::Write { at, from } => Some((*at as usize, from.len(), Some(from.start))).filter(|write| write.1 > 0),
            What::Discard(range) => Some((range.start as usize, (range.end - range.start) as usize, None)),
        };
        let mut stale: BTreeSet<usize> = BTreeSet::new();
        let mut settled: BTreeSet<usize> = BTreeSet::new();
        if entry.flush {
            for write in pending.drain(..) {
                apply(&mut least, write);
                settled.extend(regions_of(&write));
            }
        }
        if let Some(write) = write {
            apply(&mut most, write);
            stale.extend(regions_of(&write));
            if entry.fua {
                apply(&mut least, write);
                settled.extend(regions_of(&write));
            } else {
                pending.push(write);
            }
        }
        most.read_map(map);
        least.read_map(map);
        let Some(round) = round.filter(|round| round + 1 < published.len()) else { continue };
        if matches!(&entry.what, What::Mark(_)) {
            (stale, settled) = ((0..REGIONS).collect(), (0..REGIONS).collect());
        }
        most.compare(stale.iter().copied(), &published[round], &published[round + 1]);
        least.compare(settled.iter().copied(), &published[round], &published[round + 1]);
        moments += 1;
        for (region, touched) in touched.iter_mut().enumerate() {
            let is_written = stale.contains(&region) && !matches!(&entry.what, What::Mark(_));
            *touched |= is_written;
            if is_written && !least.hot[region] {
                wrong.push(format!("entry {number}: region {region} is written before its bit is durable"));
            }
            // A bit that is clear in what is left, whichever of the two that is.
            if most.hot[region] && least.hot[region] {
                continue;
            }
            let holds = |image: &Image| if *touched { image.is_new[region] } else { image.is_old[region] };
            if !holds(&most) || !holds(&least) {
                wrong.push(format!("entry {number}: region {region} is clean and not what is published"));
            }
        }
    }
    (wrong, moments)
}

/// Where the volume's intent map lies on the disk, block by block.
fn place_of(map: &str, disk: &[u8]) -> Vec<usize> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("state");
    std::fs::write(&image, &disk[DATA_BYTES..]).expect("room");
    run(tool("e2fsck").args(["-y", "-E", "journal_only"]).arg(&image));
    let path = map.trim().strip_prefix("/state").expect("in the state directory");
    let shown = run(tool("debugfs").args(["-R", &format!("blocks {path}")]).arg(&image)).stdout;
    let blocks = String::from_utf8(shown).expect("numbers");
    let blocks: Vec<usize> = blocks.split_whitespace().map(|n| n.parse::<usize>().expect("a block")).collect();
    assert_eq!(blocks.len(), 4, "two headers and two images of one page");
    blocks.into_iter().map(|block| DATA_BYTES + block * BLOCK).collect()
}

#[test]
fn at_every_moment_around_twenty_cuts_what_is_clean_is_published() {
    let mut host = boot();
    let map = host.guest.wait_until("find /state/farside -name intent | grep .");
    let mut points = vec![mark(&mut host, 0)];
    for round in 1..=CUTS {
        // Three regions of six, each in one way: durable by itself, by a flush, by nobody.
        for (i, how) in ["fua", "flush", "nothing"].into_iter().enumerate() {
            let at = (round + 2 * i) % REGIONS * REGION + round * (128 << 10);
            host.guest.run(&format!("farside-vm-load put {DEVICE} {at} 131072 {how}"));
        }
        points.push(mark(&mut host, round));
    }
    let place = place_of(&map, &host.machine.disk_content("both"));
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.stop_daemon();
    host.guest.run("umount /state && dmsetup remove data && dmsetup remove state && dmsetup remove logged");
    let bytes = host.machine.disk_content("log");

    // What was published at each mark is what the log says was there.
    let mut published = Vec::new();
    let (mut disk, mut writes) = (vec![0; DATA_BYTES], 0);
    for entry in WriteLog::parse(&bytes).expect("a log").entries() {
        match &entry.what {
            What::Write { at, from } if (*at as usize) < DATA_BYTES => {
                disk[*at as usize..][..from.len()].copy_from_slice(&bytes[from.clone()]);
                writes += 1;
            }
            What::Mark(words) if round_of(words).is_some() => published.push(disk.clone()),
            _ => {}
        }
    }
    assert_eq!(published.len(), CUTS + 1);
    assert!(published.windows(2).all(|pair| pair[0] != pair[1]), "a round wrote nothing");
    for (point, image) in points.iter().zip(&published) {
        host.assert_point_is(point, image);
    }

    let (wrong, moments) = false_cleans(&bytes, &place, &published, |_| false);
    assert!(wrong.is_empty(), "{} of {moments} moments:\n{}", wrong.len(), wrong.join("\n"));
    println!("{moments} moments, {writes} writes of the volume");

    // A disk that loses what it was told of the map is noticed.
    let log = WriteLog::parse(&bytes).expect("a log");
    let at = |round| log.entries().iter().position(|e| e.what == What::Mark(format!("quiet-{round}"))).expect("it was said");
    let lost = at(LOST_ROUND)..at(LOST_ROUND + 1);
    let is_of_the_map = |number: usize| match &log.entries()[number].what {
        What::Write { at, .. } => place.contains(&(*at as usize)),
        _ => false,
    };
    let (wrong, _) = false_cleans(&bytes, &place, &published, |number| lost.contains(&number) && is_of_the_map(number));
    assert!(!wrong.is_empty(), "the map of a whole round was lost, and nobody noticed");
    host.end_without_daemon();
}
