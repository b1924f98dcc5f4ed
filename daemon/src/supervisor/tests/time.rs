//! What a stop takes, and what systemd gives it.

use super::*;
use crate::config::LimitsConfig;

/// One disk that did not answer as its host was switched off took the stop 65 s: systemd had killed it after 60, and no other volume was clean.
#[test]
fn systemd_gives_a_stop_what_it_is_made_for() {
    let unit = include_str!("../../../systemd/farsided.service");
    let given = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("a line");
    assert_eq!(farside_control::parse_duration(given).expect("a time"), STOP_GIVEN);
    let patience = Duration::from_secs(LimitsConfig::default().stop_wait_seconds.into());
    assert!(patience < crate::group::STOP_MAX, "it is waited for beside other things");
}
