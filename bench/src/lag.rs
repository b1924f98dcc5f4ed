//! Lag against write rate: how far behind the newest point is while something writes random 64 KiB blocks at a steady rate.

use std::time::{Duration, Instant};

use anyhow::Result;
use farside_tests::Site;
use farside_tests::verify::{Rng, connect};

use crate::measure::median_and_most;
use crate::report::{LagRow, Report};

const BYTES: u64 = 1 << 30;
const BLOCK: usize = 64 << 10;

pub(crate) fn run(seconds: u64, report: &mut Report) -> Result<()> {
    let site = Site::with_volume(BYTES, "1s", 4);
    for rate in [1, 10, 50, 100, 200, 400] {
        eprintln!("lag at {rate} MiB/s …");
        site.wait_quiet();
        report.lagged(at_rate(&site, rate, Duration::from_secs(seconds))?);
    }
    Ok(())
}

fn at_rate(site: &Site, mib_per_s: u64, time: Duration) -> Result<LagRow> {
    let mut client = connect(&site.tap("data"));
    let mut rng = Rng(mib_per_s);
    let mut block = vec![0; BLOCK];
    let points = |site: &Site| site.status()["groups"][0]["points_published"].as_u64().unwrap_or(0);
    let before = points(site);
    let (start, mut written, mut next_look) = (Instant::now(), 0u64, Duration::ZERO);
    let (mut lags, mut backlog_max) = (Vec::new(), 0);
    while start.elapsed() < time {
        let due = start.elapsed().as_micros() as u64 * (mib_per_s << 20) / 1_000_000;
        if written >= due {
            std::thread::sleep(Duration::from_millis(1));
        } else {
            block.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
            client.write(rng.below(BYTES / BLOCK as u64) * BLOCK as u64, &block, 0)?;
            written += BLOCK as u64;
        }
        if start.elapsed() >= next_look {
            next_look += Duration::from_millis(500);
            let status = site.status();
            lags.extend(status["groups"][0]["lag_ms"].as_u64());
            backlog_max = backlog_max.max(status["groups"][0]["backlog_bytes"].as_u64().unwrap_or(0));
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let (lag_median_ms, lag_max_ms) = median_and_most(lags);
    Ok(LagRow {
        asked_mib_per_s: mib_per_s,
        written_mib_per_s: written as f64 / f64::from(1 << 20) / elapsed,
        lag_median_ms,
        lag_max_ms,
        backlog_max_mib: backlog_max >> 20,
        points: points(site) - before,
    })
}
