//! What a drill costs who is protected: latency of paced writes and lag without one, with one that is written to, and with another server
//! on the same machine that is written to in the same way. Gateway, drill and host share this machine here, which is worse than it is where each has its
//! own: the last of the three tells what of the difference is the machine's.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use farside_tests::drill::Drill;
use farside_tests::{Site, VolumeSpec};

use crate::image;
use crate::measure::{installed, median_and_most};
use crate::report::{DrillRow, Report};
use crate::tap::{BYTES, PACE, PACED, fio, has_nbd_engine, qemu_nbd};

/// In turns, so that what else this machine does hits all alike.
const TURNS: usize = 3;

/// What is written to beside the source.
pub(crate) const NONE: &str = "nothing";
pub(crate) const DRILL: &str = "a drill, farside";
pub(crate) const OTHER: &str = "a file, qemu-nbd";

pub(crate) fn run(seconds: u64, report: &mut Report) -> Result<()> {
    if !has_nbd_engine() || !installed("qemu-nbd") {
        report.left_out("fio with its NBD engine, or qemu-nbd, is not installed: nothing about drills");
        return Ok(());
    }
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "1s", 4);
    image::fill_noise(&site.backing("data"), BYTES)?;
    site.start_all();
    let (file, socket) = (site.path("other.img"), site.path("other.nbd"));
    std::fs::File::create(&file)?.set_len(BYTES)?;
    image::fill_noise(&file, BYTES)?;
    let drills = site.path("drills");
    for turn in 1..=TURNS {
        eprintln!("drills, turn {turn} of {TURNS} …");
        site.wait_quiet();
        report.drilled(beside(&site, NONE, None, seconds)?);
        site.wait_quiet();
        let drill = Drill::start(&site, "host1/default", &drills, &[]);
        report.drilled(beside(&site, DRILL, Some(&drill.socket("data")), seconds)?);
        drill.owner.stop();
        site.wait_quiet();
        let _server = qemu_nbd(&file, &socket, false)?;
        report.drilled(beside(&site, OTHER, Some(&socket), seconds)?);
    }
    Ok(())
}

/// Paced writes of the source, and the lag meanwhile, beside as many paced writes to another device.
fn beside(site: &Site, what: &'static str, other: Option<&Path>, seconds: u64) -> Result<DrillRow> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = other.map(|socket| scope.spawn(move || fio(&PACED, what, socket, seconds, Some(PACE))));
        let lags = scope.spawn(|| {
            let mut lags = Vec::new();
            while !over.load(Ordering::Relaxed) {
                lags.extend(site.status()["groups"][0]["lag_ms"].as_u64());
                std::thread::sleep(Duration::from_millis(250));
            }
            lags
        });
        let row = fio(&PACED, "farside", &site.tap("data"), seconds, Some(PACE));
        over.store(true, Ordering::Relaxed);
        let (lag_median_ms, lag_max_ms) = median_and_most(lags.join().expect("no panic"));
        let other = others.map(|others| others.join().expect("no panic")).transpose()?;
        let row = row?;
        Ok(DrillRow {
            beside: what,
            p50_us: row.p50_us,
            p99_us: row.p99_us,
            p999_us: row.p999_us,
            lag_median_ms,
            lag_max_ms,
            other_iops: other.map(|row| row.iops),
        })
    })
}
