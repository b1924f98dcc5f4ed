//! A bandwidth as people write it: bits of a link (`20Mbit`), or bytes of a disk (`5MiB`).

use std::fmt;
use std::str::FromStr;

/// The least that makes sense: below it not even heartbeats and digests of an idle host are timely.
const BYTES_PER_S_MIN: u64 = 8_000;
const BYTES_PER_S_MAX: u64 = 1 << 40;

/// A bandwidth, from 64kbit to about 8Tbit.
///
/// Written as `64kbit`, `20Mbit`, `1Gbit` (powers of 1000, case does not matter), `5MB` (likewise) or `5MiB` (powers of 1024),
/// each with or without `/s`. A number without a unit is refused: half of the world would mean bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// Why a text is no [`Rate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// Not a number with a unit.
    #[error("`{0}` is not a rate: use for example 20Mbit, 1Gbit or 5MiB")]
    Form(String),
    /// Too little or too much.
    #[error("`{0}` is not between 64kbit and 8Tbit")]
    Range(String),
}

impl Rate {
    /// `None` where it is out of range.
    pub fn from_bytes_per_s(bytes: u64) -> Option<Self> {
        (BYTES_PER_S_MIN..=BYTES_PER_S_MAX).contains(&bytes).then_some(Self(bytes))
    }

    /// In bytes per second.
    pub fn bytes_per_s(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let form = || RateError::Form(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_suffix("/s").unwrap_or(&lower);
        let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
        let count: u128 = lower[..digits].parse().map_err(|_| form())?;
        let bits: u128 = match lower[digits..].trim_start() {
            "bit" => 1,
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            "b" => 8,
            "kb" => 8_000,
            "mb" => 8_000_000,
            "gb" => 8_000_000_000,
            "kib" => 8 << 10,
            "mib" => 8 << 20,
            "gib" => 8 << 30,
            _ => return Err(form()),
        };
        let bytes = count.checked_mul(bits).map(|bits| bits / 8).and_then(|bytes| u64::try_from(bytes).ok());
        bytes.and_then(Self::from_bytes_per_s).ok_or_else(|| RateError::Range(text.to_owned()))
    }
}

/// In the largest unit that it is a whole number of, of bits unless only one of bytes is round; reads back as the same rate.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 * 8;
        if !bits.is_multiple_of(1_000_000)
            && let Some((unit, size)) =
                [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)].into_iter().find(|(_, size)| self.0.is_multiple_of(*size))
        {
            return write!(f, "{}{unit}", self.0 / size);
        }
        let units = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
        let (unit, size) = units.into_iter().find(|(_, size)| bits.is_multiple_of(*size)).expect("one bit divides all");
        write!(f, "{}{unit}", bits / size)
    }
}

/// A [`Rate`], or `none`: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit(pub Option<Rate>);

impl RateLimit {
    /// In bytes per second; `None`: as fast as it goes.
    pub fn bytes_per_s(self) -> Option<u64> {
        self.0.map(Rate::bytes_per_s)
    }
}

impl FromStr for RateLimit {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        match text.trim().eq_ignore_ascii_case("none") {
            true => Ok(Self(None)),
            false => text.parse().map(|rate| Self(Some(rate))),
        }
    }
}

/// Reads back as the same limit.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_bytes_mean_what_they_say() {
        let cases = [
            ("20Mbit", 2_500_000),
            ("20mbit/s", 2_500_000),
            ("1Gbit", 125_000_000),
            ("64 kbit", 8_000),
            ("5MiB", 5 << 20),
            ("5MB/s", 5_000_000),
            ("8000B", 8_000),
        ];
        for (text, bytes) in cases {
            let rate: Rate = text.parse().expect(text);
            assert_eq!(rate.bytes_per_s(), bytes, "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text} → {rate}");
        }
        assert_eq!(Rate::from_bytes_per_s(2_500_000).expect("valid").to_string(), "20Mbit");
        assert_eq!(Rate::from_bytes_per_s(5 << 20).expect("valid").to_string(), "5MiB");
        assert_eq!(Rate::from_bytes_per_s(8_000).expect("valid").to_string(), "64kbit");
        for text in ["none", "20Mbit"] {
            assert_eq!(text.parse::<RateLimit>().expect(text).to_string(), text);
        }
        for bad in ["20", "", "Mbit", "20Mbps?", "-1Mbit", "1.5Gbit", "20M"] {
            assert!(matches!(bad.parse::<Rate>(), Err(RateError::Form(_))), "{bad}");
        }
        for bad in ["63kbit", "0Mbit", "99999999Gbit", "340282366920938463463374607431768211455GiB"] {
            assert!(matches!(bad.parse::<Rate>(), Err(RateError::Range(_))), "{bad}");
        }
    }
}
