//! Times as people write them, the same in every file and on every command line: `90s`, `5m`, `1h30m`, `2d`, `500ms`.
//!
//! Invariant: what is taken is a whole number of milliseconds, so it reads back as it was from wherever it is kept.

use std::time::Duration;

use jiff::SignedDuration;

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// The longest time for which points can be kept by age.
pub(crate) const SPAN_MAX: Duration = Duration::from_secs(3660 * 86_400);
const EPOCH: (Duration, Duration) = (Duration::from_millis(50), DAY);

/// Why a text is no such time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// Not a number with a unit, or several.
    #[error("`{0}` is not a duration: use for example 500ms, 90s, 5m, 1h30m or 2d")]
    Form(String),
    /// Finer than milliseconds.
    #[error("`{0}` is not a whole number of milliseconds")]
    Fine(String),
    /// Not how long points can be kept.
    #[error("`{0}` is no span: it is 0s, for by number only, or between 1s and ten years")]
    Span(String),
    /// Not how often cuts can be made.
    #[error("`{0}` is no epoch interval: it is between 50ms and 24h")]
    Epoch(String),
}

/// Any such time. Units: `ms`, `s`, `m`, `h`, `d`, which is 24 hours, and `y`, which is 365 days; larger ones come first.
///
/// # Errors
/// [`DurationError::Form`], [`DurationError::Fine`].
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let form = || DurationError::Form(text.to_owned());
    // jiff leaves years and days to calendars.
    let count = |rest, unit| match str::split_once(rest, unit) {
        Some((count, rest)) => Ok((count.trim().parse::<u32>().map_err(|_| form())?, rest.trim_start())),
        None => Ok((0, rest)),
    };
    let (years, rest) = count(text, 'y')?;
    let (days, rest) = count(rest, 'd')?;
    let whole = || YEAR.checked_mul(years)?.checked_add(DAY.checked_mul(days)?);
    let rest = match rest {
        "" if !text.is_empty() => SignedDuration::ZERO,
        rest => rest.parse::<SignedDuration>().map_err(|_| form())?,
    };
    let duration = Duration::try_from(rest).ok().and_then(|rest| rest.checked_add(whole()?)).ok_or_else(form)?;
    match duration.subsec_nanos() % 1_000_000 {
        0 => Ok(duration),
        _ => Err(DurationError::Fine(text.to_owned())),
    }
}

/// A time in the fewest words that [`parse_duration`] takes for the same.
pub fn duration_words(duration: Duration) -> String {
    let mut left_ms = duration.as_millis();
    let mut words = String::new();
    let units = [("y", YEAR.as_millis()), ("d", DAY.as_millis()), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    for (unit, unit_ms) in units {
        if left_ms >= unit_ms {
            words += &format!("{}{unit}", left_ms / unit_ms);
            left_ms %= unit_ms;
        }
    }
    if words.is_empty() { "0s".to_owned() } else { words }
}

/// How long points are kept: 0, or at least a second.
///
/// # Errors
/// See [`DurationError`].
pub fn parse_span(text: &str) -> Result<Duration, DurationError> {
    match parse_duration(text) {
        Ok(span) if span.is_zero() || (Duration::from_secs(1)..=SPAN_MAX).contains(&span) => Ok(span),
        Ok(_) | Err(DurationError::Fine(_)) => Err(DurationError::Span(text.to_owned())),
        Err(error) => Err(error),
    }
}

/// How often cuts are made.
///
/// # Errors
/// See [`DurationError`].
pub fn parse_epoch_interval(text: &str) -> Result<Duration, DurationError> {
    match parse_duration(text)? {
        interval if (EPOCH.0..=EPOCH.1).contains(&interval) => Ok(interval),
        _ => Err(DurationError::Epoch(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_it_in_many_ways() {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        for (text, want) in [
            ("0s", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("90s", Duration::from_secs(90)),
            ("1h30m", Duration::from_secs(5400)),
            ("1h 30m", Duration::from_secs(5400)),
            ("2d", hours(48)),
            ("1d12h", hours(36)),
            ("7d 1h", hours(169)),
            ("1y", hours(365 * 24)),
            ("2y1d 12h", hours(731 * 24 + 12)),
        ] {
            assert_eq!(parse_duration(text), Ok(want), "{text}");
        }
        for text in ["", "d", "5", "soon", "-1h", "1d-1h", "9999999999999999d", "1h1d", "2 days", "y", "1d1y", "9999999999y"] {
            assert_eq!(parse_duration(text), Err(DurationError::Form(text.into())), "{text}");
        }
    }

    #[test]
    fn what_would_be_cut_is_refused() {
        assert_eq!(parse_duration("500us"), Err(DurationError::Fine("500us".into())));
        for text in ["500us", "999ms", "1s500us", "4000d"] {
            assert_eq!(parse_span(text), Err(DurationError::Span(text.into())), "{text}");
        }
        assert_eq!(parse_span("1s500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_epoch_interval("49ms"), Err(DurationError::Epoch("49ms".into())));
        assert_eq!(parse_epoch_interval("2d"), Err(DurationError::Epoch("2d".into())));
        assert_eq!(parse_epoch_interval("100500us"), Err(DurationError::Fine("100500us".into())));
        assert_eq!(parse_epoch_interval("250ms"), Ok(Duration::from_millis(250)));
    }
}
