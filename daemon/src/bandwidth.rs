//! What this host may send: always, or by the hour of the week.
//!
//! Invariant: what is in force is what the configuration says of this minute, within five seconds of a change of either, also where the
//! clock is set. Of several windows that are open the first one holds; where none is, the host's own rate.

use std::sync::OnceLock;

use farside_control::{Rate, RateLimit, Window};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `[bandwidth]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Where no window says otherwise.
    pub rate: RateLimit,
    /// What holds at times.
    pub windows: Vec<RateWindow>,
}

/// `[[bandwidth.window]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateWindow {
    /// When.
    pub at: Window,
    /// What then.
    pub rate: Rate,
}

impl Bandwidth {
    /// What holds in a minute (0 to 1439) of a day (0 is Monday).
    pub fn at(&self, day: u8, minute: u16) -> RateLimit {
        let open = self.windows.iter().find(|window| window.at.is_open(day, minute));
        open.map_or(self.rate, |window| RateLimit(Some(window.rate)))
    }

    pub(crate) fn now(&self) -> RateLimit {
        if self.windows.is_empty() {
            return self.rate;
        }
        let (day, minute) = wall_clock(Timestamp::now());
        self.at(day, minute)
    }

    /// As one line: `20Mbit, Mon-Fri 09:00-18:00 5Mbit`.
    pub(crate) fn words(&self) -> String {
        let windows = self.windows.iter().map(|window| format!(", {} {}", window.at, window.rate));
        windows.fold(self.rate.to_string(), |words, window| words + &window)
    }
}

/// Day (0 is Monday) and minute of the host's own time zone, as it was when this was first asked.
fn wall_clock(now: Timestamp) -> (u8, u16) {
    // † Files of the time zone may lie on a disk that waits for us: they are read once, and not while the clock is looked at.
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    let local = now.to_zoned(ZONE.get_or_init(TimeZone::system).clone());
    let day = local.weekday().to_monday_zero_offset().unsigned_abs();
    (day, u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_window_holds_and_the_rate_otherwise() {
        let rate = |text: &str| text.parse::<Rate>().expect(text);
        let window = |at: &str, text: &str| RateWindow { at: at.parse().expect(at), rate: rate(text) };
        let bandwidth = Bandwidth {
            rate: RateLimit(Some(rate("1Gbit"))),
            windows: vec![window("Mon-Fri 12:00-13:00", "100Mbit"), window("Mon-Fri 09:00-18:00", "20Mbit")],
        };
        let cases = [
            (0, 8 * 60 + 59, "1Gbit"),
            (0, 9 * 60, "20Mbit"),
            (0, 12 * 60, "100Mbit"),
            (0, 13 * 60, "20Mbit"),
            (5, 12 * 60, "1Gbit"),
        ];
        for (day, minute, holds) in cases {
            assert_eq!(bandwidth.at(day, minute).to_string(), holds, "day {day}, minute {minute}");
        }
        assert_eq!(Bandwidth::default().at(0, 0), RateLimit(None));
        assert_eq!(bandwidth.words(), "1Gbit, Mon-Fri 12:00-13:00 100Mbit, Mon-Fri 09:00-18:00 20Mbit");
    }

    #[test]
    fn the_wall_clock_is_read_in_whole_minutes_of_a_week() {
        let (day, minute) = wall_clock("2026-11-23T12:34:56Z".parse().expect("a time"));
        // Whatever the time zone: a Sunday, Monday or Tuesday.
        assert!([6, 0, 1].contains(&day) && minute < 1440, "{day} {minute}");
    }
}
