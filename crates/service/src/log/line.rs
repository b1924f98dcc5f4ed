//! One event as one line of text.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tracing::Level;
use tracing::field::{Field, Visit};

/// A line ends here, whatever is in it.
const LINE_BYTES_MAX: usize = 4 << 10;
/// How a pairing token begins (`farside_transport::PairingToken`).
const TOKEN_PREFIX: &str = "farside1-";
/// Fields that say whom a line is about.
const SUBJECTS: [&str; 4] = ["volume", "group", "name", "source"];

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For journald: a syslog priority in front; it has the time.
    Journal,
    /// For everything else.
    Plain {
        /// A terminal.
        colour: bool,
    },
}

impl Style {
    /// The whole line, with its end.
    pub(super) fn line(self, level: Level, text: &str) -> String {
        let (priority, word, colour) = match level {
            Level::ERROR => (3, "ERROR", "31"),
            Level::WARN => (4, "WARN", "33"),
            Level::INFO => (6, "INFO", "32"),
            Level::DEBUG => (7, "DEBUG", "34"),
            Level::TRACE => (7, "TRACE", "35"),
        };
        match self {
            Self::Journal => format!("<{priority}>{text}\n"),
            Self::Plain { colour: paint } => {
                let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
                if paint {
                    format!("\x1b[2m{now}\x1b[0m \x1b[{colour}m{word:>5}\x1b[0m {text}\n")
                } else {
                    format!("{now} {word:>5} {text}\n")
                }
            }
        }
    }
}

/// Message and fields of an event.
#[derive(Default)]
pub(super) struct Line {
    message: String,
    fields: String,
    subject: DefaultHasher,
}

impl Line {
    /// `message key=value key="two words"`, without control characters and without tokens.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}{}", self.message, self.fields);
        if text.len() > LINE_BYTES_MAX {
            let end = (0..=LINE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        without_tokens(&text)
    }

    /// Whom it is about, as a number.
    pub(super) fn subject(&self) -> u64 {
        self.subject.finish()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
}

impl Line {
    fn put(&mut self, field: &Field, value: &str) {
        if SUBJECTS.contains(&field.name()) {
            value.hash(&mut self.subject);
        }
        let value = one_line(value);
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let quote =
            value.is_empty() || (value.contains([' ', '=']) && !value.starts_with(['"', '[', '{', '(']) && !is_debug(&value));
        let _ = if quote {
            write!(self.fields, " {}=\"{}\"", field.name(), value.replace('"', "'"))
        } else {
            write!(self.fields, " {}={value}", field.name())
        };
    }
}

/// `Some(…)`, `Behind { … }`: what derives wrote needs no quotes.
fn is_debug(value: &str) -> bool {
    let word = value.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(value.len());
    value.starts_with(|c: char| c.is_ascii_uppercase()) && matches!(value[word..].trim_start().chars().next(), Some('(' | '{'))
}

/// A peer's text must not begin a line of its own, or talk to the terminal of who reads it.
fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push(' '),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn without_tokens(text: &str) -> String {
    let mut parts = text.split(TOKEN_PREFIX);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let secret = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
        out.push_str(TOKEN_PREFIX);
        out.push_str("(not shown)");
        out.push_str(&part[secret..]);
    }
    out
}
