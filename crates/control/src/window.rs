//! A time of the week as people write it: `Mon-Fri 09:00-18:00`.

use std::fmt;
use std::str::FromStr;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// Hours of some days of the week, in the host's own time zone.
///
/// Written as `Mon-Fri 09:00-18:00`, `Sat,Sun 00:00-24:00`, or without days for every day. It begins with its first minute and ends
/// before its last one; one that ends before it begins (`22:00-06:00`) goes on into the next day. Case does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Bit 0 is Monday: the days on which it begins.
    days: u8,
    /// Minutes after midnight.
    from: u16,
    /// Minutes after midnight, of the same or of the next day.
    until: u16,
}

/// Why a text is no [`Window`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time of the week: use for example `Mon-Fri 09:00-18:00`, `Sat,Sun 00:00-24:00` or `22:00-06:00`")]
pub struct WindowError(String);

impl Window {
    /// Whether it is open in a minute (0 to 1439) of a day (0 is Monday).
    ///
    /// # Panics
    /// With a day that no week has.
    pub fn is_open(self, day: u8, minute: u16) -> bool {
        assert!(usize::from(day) < DAYS.len(), "a week has seven days");
        let begins_on = |day: u8| self.days & 1 << day != 0;
        match self.from < self.until {
            true => begins_on(day) && (self.from..self.until).contains(&minute),
            false => begins_on(day) && minute >= self.from || begins_on((day + 6) % 7) && minute < self.until,
        }
    }
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        parse(text).ok_or_else(|| WindowError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Window> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (days, hours) = match words[..] {
        [hours] => (0x7f, hours),
        [days, hours] => (days.split(',').try_fold(0, |days, part| Some(days | parse_days(part)?))?, hours),
        _ => return None,
    };
    let (from, until) = hours.split_once('-')?;
    let (from, until) = (parse_minute(from)?, parse_minute(until)?);
    // Midnight is the end of a day here.
    let end = if until == 0 { DAY_MINUTES } else { until };
    (from != until && from < DAY_MINUTES).then_some(Window { days, from, until: end })
}

/// `Mon` or `Fri-Sun`, also over the end of the week.
fn parse_days(text: &str) -> Option<u8> {
    let day = |text: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(text));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (day(first)?, day(last)?);
    let count = (last + DAYS.len() - first) % DAYS.len();
    Some((0..=count).fold(0, |days, after| days | 1 << ((first + after) % DAYS.len())))
}

/// `09:00`; `24:00` is the end of a day.
fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<u16>().ok())?;
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
}

/// Reads back as the same window.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0x7f {
            let mut day = 0;
            let mut comma = "";
            while day < DAYS.len() {
                let run = (day..DAYS.len()).take_while(|day| self.days & 1 << day != 0).count();
                match run {
                    0 => {}
                    1 => write!(f, "{comma}{}", DAYS[day])?,
                    _ => write!(f, "{comma}{}-{}", DAYS[day], DAYS[day + run - 1])?,
                }
                comma = if run > 0 { "," } else { comma };
                day += run.max(1);
            }
            f.write_str(" ")?;
        }
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{}", clock(self.from), clock(self.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRI: u8 = 4;
    const SAT: u8 = 5;

    #[test]
    fn a_window_is_open_when_it_says() {
        let at =
            |text: &str, day: u8, hour: u16, minute: u16| text.parse::<Window>().expect(text).is_open(day, hour * 60 + minute);
        let cases = [
            ("Mon-Fri 09:00-18:00", FRI, 9, 0, true),
            ("Mon-Fri 09:00-18:00", FRI, 8, 59, false),
            ("Mon-Fri 09:00-18:00", FRI, 17, 59, true),
            ("Mon-Fri 09:00-18:00", FRI, 18, 0, false),
            ("Mon-Fri 09:00-18:00", SAT, 12, 0, false),
            ("sat,SUN 00:00-24:00", SAT, 23, 59, true),
            ("sat,SUN 00:00-24:00", FRI, 23, 59, false),
            ("22:00-06:00", FRI, 23, 0, true),
            ("22:00-06:00", FRI, 5, 59, true),
            ("22:00-06:00", FRI, 6, 0, false),
            // It goes on into Saturday, and does not begin on it.
            ("Fri 22:00-06:00", SAT, 5, 0, true),
            ("Fri 22:00-06:00", FRI, 5, 0, false),
            ("Fri 22:00-06:00", SAT, 22, 0, false),
            // Over the end of the week.
            ("Sun 22:00-06:00", 0, 1, 0, true),
            ("Sat-Mon 10:00-11:00", 0, 10, 30, true),
            ("Sat-Mon 10:00-11:00", 1, 10, 30, false),
        ];
        for (text, day, hour, minute, open) in cases {
            assert_eq!(at(text, day, hour, minute), open, "{text} on day {day} at {hour}:{minute}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        let cases = [
            ("mon-fri 09:00-18:00", "Mon-Fri 09:00-18:00"),
            ("Sat-Mon  10:00-11:30", "Mon,Sat-Sun 10:00-11:30"),
            ("Mon-Sun 00:00-24:00", "00:00-24:00"),
            ("Wed 22:00-06:00", "Wed 22:00-06:00"),
            ("22:00-00:00", "22:00-24:00"),
        ];
        for (text, shown) in cases {
            let window: Window = text.parse().expect(text);
            assert_eq!(window.to_string(), shown);
            assert_eq!(shown.parse(), Ok(window));
        }
        let bad = [
            "",
            "09:00",
            "9:00-18:00",
            "09:00-09:00",
            "24:00-06:00",
            "25:00-26:00",
            "09:60-10:00",
            "Mo 09:00-10:00",
            "Mon-Fri",
            "Mon 09:00-10:00 x",
            "Mon, 09:00-10:00",
            "00:00-00:00",
            "+9:00-10:00",
            "09:00-24:01",
        ];
        for bad in bad {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
