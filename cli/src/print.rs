//! How numbers, times and tables look to a person. JSON has its own way: the API types, as they are.

use std::io::{self, IsTerminal as _, Write as _};

use farside_control::source::LastPoint;
use farside_control::{Reason, Severity};
use serde::Serialize;

use crate::failure::{Failure, OrFail as _};

/// What a cell shows where there is nothing to say.
pub(crate) const NOTHING: &str = "–";

/// Prints a value as pretty JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    out(&json_text(value))
}

/// The same as text.
pub(crate) fn json_text(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).expect("API types are always JSON"))
}

/// A JSON list that is printed as its elements come.
#[derive(Debug, Default)]
pub(crate) struct JsonList {
    is_begun: bool,
}

impl JsonList {
    /// Prints the next of them.
    pub(crate) fn items(&mut self, values: &[impl Serialize]) -> Result<(), Failure> {
        let mut text = String::new();
        for value in values {
            text.push_str(if self.is_begun { ",\n  " } else { "[\n  " });
            text.push_str(&json_text(value).trim_end().replace('\n', "\n  "));
            self.is_begun = true;
        }
        out(&text)
    }

    /// What ends it.
    pub(crate) fn end(is_empty: bool) -> &'static str {
        if is_empty { "[]\n" } else { "\n]\n" }
    }
}

/// Writes to standard output; a closed pipe is a quiet end.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    if is_read(text)? { Ok(()) } else { std::process::exit(0) }
}

/// Writes to standard output; says whether there is anybody to read it.
pub(crate) fn is_read(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.or_fail("cannot write to standard output").map(|()| true),
    }
}

/// `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let rounded = (value * 10.0).round() / 10.0;
    if rounded.fract() == 0.0 || rounded >= 100.0 {
        format!("{rounded:.0} {}", UNITS[unit])
    } else {
        format!("{rounded:.1} {}", UNITS[unit])
    }
}

/// `80ms`, `1.8s`, `12s`, `3m05s`, `2h10m`, `3d04h`.
pub(crate) fn duration_ms(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..=9 => format!("{s}.{}s", ms % 1000 / 100),
        10..=59 => format!("{s}s"),
        60..=3599 => format!("{}m{:02}s", s / 60, s % 60),
        3600..=86_399 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How long ago that was, by this machine's clock.
pub(crate) fn age(at: jiff::Timestamp) -> String {
    let ms = jiff::Timestamp::now().as_millisecond().saturating_sub(at.as_millisecond());
    duration_ms(u64::try_from(ms).unwrap_or(0))
}

/// A part of a whole in percent, never rounded up to 100.
pub(crate) fn percent(done: u64, total: u64) -> String {
    if total == 0 {
        return NOTHING.to_owned();
    }
    let tenths = (u128::from(done) * 1000 / u128::from(total)).min(1000);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// A time of day in UTC, to the millisecond.
pub(crate) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
}

/// A point in a table: its id, and when it was cut.
pub(crate) fn point_cells(point: Option<&LastPoint>) -> [String; 2] {
    match point {
        Some(point) => [point.id.to_string(), time(point.cut_wall)],
        None => [NOTHING; 2].map(str::to_owned),
    }
}

/// What a text may look like: how wide, and whether in colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Columns; `None` where nobody's window ends.
    pub(crate) columns: Option<usize>,
    colour: bool,
}

impl Look {
    /// For a pipe or a file.
    pub(crate) const PLAIN: Self = Self { columns: None, colour: false };

    /// As standard output is now. Colours only on a terminal, and not where `NO_COLOR` is set.
    pub(crate) fn of_stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        let said_no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0).max(40));
        Self { columns, colour: !said_no && !dumb }
    }

    /// In the colour of a severity; `None` is well.
    pub(crate) fn paint(self, severity: Option<Severity>, text: &str) -> String {
        let code = match severity {
            None => "32",
            Some(Severity::Info) => "36",
            Some(Severity::Warning) => "33",
            Some(Severity::Error) => "31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A paragraph broken at words, its further lines indented.
    fn wrap(self, first: &str, indent: &str, text: &str) -> String {
        let columns = self.columns.unwrap_or(usize::MAX);
        let (mut out, mut line) = (String::new(), first.to_owned());
        for word in text.split(' ') {
            let length = line.chars().count() + 1 + word.chars().count();
            let is_begun = line.trim_end().chars().count() > indent.len().max(first.trim_end().chars().count());
            if length > columns && is_begun {
                out.push_str(line.trim_end());
                out.push('\n');
                line = indent.to_owned();
            }
            if !(line.ends_with(' ') || line.is_empty()) {
                line.push(' ');
            }
            line.push_str(word);
        }
        out + line.trim_end() + "\n"
    }
}

/// Columns aligned to their widest cell; the last one hangs free.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The text within so many columns: the widest cells are cut until it fits.
    pub(crate) fn fit(&self, look: Look) -> String {
        self.fit_after(look, &mut Vec::new())
    }

    /// The same of a part of a table, whose columns had so many characters in the parts before it.
    pub(crate) fn fit_after(&self, look: Look, before: &mut Vec<usize>) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        before.resize(count.max(before.len()), 0);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        for (column, widest) in before.iter_mut().enumerate() {
            *widest = width(column).unwrap_or(0).max(*widest);
        }
        let mut widths = before.clone();
        let all = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * count.saturating_sub(1);
        while look.columns.is_some_and(|columns| all(&widths) > columns) {
            let widest = widths.iter_mut().max().expect("there is a column");
            if *widest <= 8 {
                break;
            }
            *widest -= 1;
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let cell = cut(cell, widths[column]);
                line.push_str(&cell);
                line.push_str(&" ".repeat(widths[column] - cell.chars().count() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The beginning and the end of a text, with `…` between, if it is longer than `width`.
fn cut(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= width || width == 0 {
        return text.to_owned();
    }
    let end = (width - 1) / 2;
    chars[..width - 1 - end].iter().chain(['…'].iter()).chain(&chars[chars.len() - end..]).collect()
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.fit(Look::PLAIN))
    }
}

/// Reasons as lines: a mark for the severity, whose, what, and the next step below.
pub(crate) fn reasons(subject: &str, reasons: &[Reason]) -> String {
    reasons_in(Look::PLAIN, subject, reasons)
}

/// [`reasons`] as they should look.
pub(crate) fn reasons_in(look: Look, subject: &str, reasons: &[Reason]) -> String {
    let mut text = String::new();
    for reason in reasons {
        let mark = match reason.severity {
            Severity::Info => "i",
            Severity::Warning => "!",
            Severity::Error => "✗",
        };
        let colon = if subject.is_empty() { "" } else { ": " };
        let words = look.wrap("  ", "  ", &format!("{subject}{colon}{}", reason.message));
        text.push_str(&format!("{} {}", look.paint(Some(reason.severity), mark), &words[2..]));
        if !reason.what_to_do.is_empty() {
            text.push_str(&look.wrap("    → ", "      ", &reason.what_to_do));
        }
        if crate::explain::has_page(&reason.code) {
            text.push_str(&format!("      more: farside explain {}\n", reason.code));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_people_write_them() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (10 << 40, "10 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (ms, text) in [
            (0, "0ms"),
            (840, "840ms"),
            (1_840, "1.8s"),
            (9_999, "9.9s"),
            (59_999, "59s"),
            (185_000, "3m05s"),
            (7_800_000, "2h10m"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(duration_ms(ms), text);
        }
        assert_eq!((percent(999_999, 1_000_000), percent(1, 1), percent(0, 0)), ("99.9 %".into(), "100.0 %".into(), "–".into()));
    }

    #[test]
    fn tables_line_up_by_characters_not_bytes() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["–é", "x"]);
        table.row(["abc", "y"]);
        assert_eq!(table.to_string(), "A    B\n–é   x\nabc  y\n");
    }

    #[test]
    fn a_narrow_window_cuts_the_widest_cells_and_wraps_words() {
        let look = Look { columns: Some(40), colour: false };
        let mut table = Table::new(&["VOLUME", "STATE", "BACKING"]);
        table.row(["data", "Streaming", "/dev/mapper/a-very-long-volume-group-name/data"]);
        let text = table.fit(look);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.contains('…') && text.contains("data    Streaming"), "{text}");
        let reason =
            Reason::new(Severity::Warning, farside_control::Code::Paused, "a b ".repeat(30).trim(), "c d ".repeat(30).trim());
        let text = reasons_in(look, "volume data", &[reason]);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(
            text.starts_with("! volume data: a b") && text.contains("\n    → c d") && text.contains("explain paused"),
            "{text}"
        );
    }

    #[test]
    fn colour_is_only_where_it_was_asked_for() {
        assert_eq!(Look::PLAIN.paint(Some(Severity::Error), "x"), "x");
        assert_eq!(Look { columns: None, colour: true }.paint(None, "x"), "\x1b[32mx\x1b[0m");
    }
}
