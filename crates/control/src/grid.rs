//! Which points are kept as they grow old, as people write it: `every 5s keep 10m, every 1m keep 1d`, or `none`.
//!
//! Invariant: the rules of a [`Grid`] become coarser and longer, and it reads back as it was from what it prints.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::duration::{DurationError, SPAN_MAX, duration_words, parse_duration};

/// The rules of a retention policy, from the finest to the coarsest; none: no grid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid(Vec<GridRule>);

/// Of every `every` one point, for `keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridRule {
    /// At least a second.
    pub every: Duration,
    /// As long as `every` at least, and longer than the rule before.
    pub keep: Duration,
}

/// Why a text is no grid. Rules are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// Not the words.
    #[error("rule {0}, `{1}`, is not like `every 1m keep 1d`: separate rules with commas, or say `none`")]
    Form(usize, String),
    /// Not a time.
    #[error("rule {0}: {1}")]
    Duration(usize, DurationError),
    /// Points come and go by the second.
    #[error("rule {0}, `{1}`, is too fine: use `every 1s` or more")]
    Fine(usize, GridRule),
    /// It would keep nothing.
    #[error("rule {0}, `{1}`, ends before its second point: keep at least as long as every")]
    Short(usize, GridRule),
    /// Longer than anything is kept by age.
    #[error("rule {0}, `{1}`, is too long: keep at most 10y, and pin what must stay longer")]
    Long(usize, GridRule),
    /// Not in order.
    #[error("rule {0}, `{1}`, is not coarser than the one before it: write rules from the finest to the coarsest")]
    NotCoarser(usize, GridRule),
    /// It adds nothing.
    #[error("rule {0}, `{1}`, keeps nothing longer than the one before it: let it keep longer, or leave it out")]
    NotLonger(usize, GridRule),
    /// Too many.
    #[error("{0} rules are too many: at most {max}", max = Grid::RULES_MAX)]
    TooMany(usize),
}

impl Grid {
    /// The most rules.
    pub const RULES_MAX: usize = 8;

    /// The rules.
    pub fn rules(&self) -> &[GridRule] {
        &self.0
    }

    /// The rules, as `(every, keep)`.
    pub fn pairs(&self) -> impl Iterator<Item = (Duration, Duration)> {
        self.0.iter().map(|rule| (rule.every, rule.keep))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Grid {
    type Err = GridError;

    fn from_str(text: &str) -> Result<Self, GridError> {
        if text.trim() == "none" {
            return Ok(Self::default());
        }
        let count = text.split(',').count();
        if count > Self::RULES_MAX {
            return Err(GridError::TooMany(count));
        }
        let mut rules: Vec<GridRule> = Vec::new();
        for (text, number) in text.split(',').zip(1..) {
            rules.push(read_rule(text.trim(), number, rules.last())?);
        }
        Ok(Self(rules))
    }
}

fn read_rule(text: &str, number: usize, before: Option<&GridRule>) -> Result<GridRule, GridError> {
    let words = text.strip_prefix("every ").and_then(|rest| rest.split_once(" keep "));
    let (every, keep) = words.ok_or_else(|| GridError::Form(number, text.to_owned()))?;
    let read = |text: &str| parse_duration(text.trim()).map_err(|error| GridError::Duration(number, error));
    let rule = GridRule { every: read(every)?, keep: read(keep)? };
    if rule.every < Duration::from_secs(1) {
        return Err(GridError::Fine(number, rule));
    }
    if rule.keep < rule.every {
        return Err(GridError::Short(number, rule));
    }
    if rule.keep > SPAN_MAX {
        return Err(GridError::Long(number, rule));
    }
    if before.is_some_and(|before| rule.every <= before.every) {
        return Err(GridError::NotCoarser(number, rule));
    }
    if before.is_some_and(|before| rule.keep <= before.keep) {
        return Err(GridError::NotLonger(number, rule));
    }
    Ok(rule)
}

impl fmt::Display for GridRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {} keep {}", duration_words(self.every), duration_words(self.keep))
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (at, rule) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{rule}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_meant_and_prints_as_it_reads() {
        let text = "every 5s keep 10m, every 1m keep 1d, every 1h keep 30d, every 1d keep 1y";
        let grid: Grid = text.parse().expect("a grid");
        let seconds: Vec<_> = grid.rules().iter().map(|r| (r.every.as_secs(), r.keep.as_secs())).collect();
        assert_eq!(seconds, [(5, 600), (60, 86_400), (3600, 30 * 86_400), (86_400, 365 * 86_400)]);
        assert_eq!(grid.to_string(), text);
        for (text, printed) in [
            ("none", "none"),
            (" every  90s keep 1h 30m ,every 2m keep 36h", "every 1m30s keep 1h30m, every 2m keep 1d12h"),
            ("every 1500ms keep 400d", "every 1s500ms keep 1y35d"),
        ] {
            let grid: Grid = text.parse().expect(text);
            assert_eq!(grid.to_string(), printed);
            assert_eq!(printed.parse(), Ok(grid));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_rule_and_what_to_do() {
        for (text, words) in [
            ("", "rule 1, ``, is not like"),
            ("every 1m", "rule 1, `every 1m`, is not like `every 1m keep 1d`"),
            ("every 5s keep 10m; every 1m keep 1d", "rule 1: `10m; every 1m keep 1d` is not a duration"),
            ("every 5s keep 10m,", "rule 2, ``, is not like"),
            ("every 5s keep 10m, each 1m keep 1d", "rule 2, `each 1m keep 1d`"),
            ("every 5s keep soon", "rule 1: `soon` is not a duration"),
            ("every 0s keep 1d", "rule 1, `every 0s keep 1d`, is too fine: use `every 1s`"),
            ("every 999ms keep 1d", "too fine"),
            ("every 1h keep 10m", "ends before its second point: keep at least as long"),
            ("every 1h keep 11y", "at most 10y"),
            ("every 1m keep 1d, every 5s keep 2d", "rule 2, `every 5s keep 2d`, is not coarser than the one before"),
            ("every 1m keep 1d, every 1m keep 2d", "not coarser"),
            ("every 1m keep 1d, every 1h keep 1d", "rule 2, `every 1h keep 1d`, keeps nothing longer"),
            (&["every 1s keep 1s"; 9].join(","), "9 rules are too many: at most 8"),
        ] {
            let error = text.parse::<Grid>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
