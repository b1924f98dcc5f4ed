//! A receiver that stands still (SIGSTOP) under full write load: every write completes, memory stays flat, the state says
//! `Behind`, and when it goes on again, `Streaming`.

use std::time::{Duration, Instant};

use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, wait_for};

const BYTES: u64 = 64 << 20;

#[test]
fn a_receiver_that_stands_still_costs_lag_and_nothing_else() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(11);
    client.steps(&mut rng, 500);
    site.wait_quiet();
    let receiver = site.receiver.as_ref().expect("it runs");
    receiver.signal(libc::SIGSTOP);
    // The load runs for 30 s: that is what is tested, not a deadline.
    let until = Instant::now() + Duration::from_secs(30);
    let middle = Instant::now() + Duration::from_secs(15);
    let mut rss_middle = None;
    while Instant::now() < until {
        client.step(&mut rng, 4096);
        if rss_middle.is_none() && Instant::now() > middle {
            rss_middle = Some(site.daemon.as_ref().expect("it runs").rss_kib());
        }
    }
    assert_eq!(client.broken, 0, "a write did not complete");
    let (middle, end) = (rss_middle.expect("sampled"), site.daemon.as_ref().expect("it runs").rss_kib());
    assert!(end < middle + 16 * 1024, "memory grew from {middle} to {end} KiB while the receiver stood still");
    wait_for("`Behind`", || (site.volume_status("data")["state"]["state"] == "behind").then_some(()));
    site.receiver.as_ref().expect("it runs").signal(libc::SIGCONT);
    site.check_newest("data", &mut client);
}
