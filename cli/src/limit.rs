//! `farside limit`: how fast this host may send, always or by the hour of the week.

use farside_control::source::{LimitWindow, Limits};
use farside_control::{Rate, Window};

use crate::args::{Global, LimitCommand};
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print;

pub(crate) async fn run(global: &Global, hosts: &Hosts, command: LimitCommand) -> Result<(), Failure> {
    let client = hosts.source();
    let limits = match command {
        LimitCommand::Show => client.limits().await?,
        LimitCommand::Set { rate, at: None } => {
            let limits = Limits { rate_bytes_per_s: Some(rate.bytes_per_s()), ..client.limits().await? };
            client.limits_set(&limits).await?
        }
        LimitCommand::Set { rate, at: Some(at) } => {
            let mut limits = client.limits().await?;
            set(&mut limits, at, rate);
            client.limits_set(&limits).await?
        }
        LimitCommand::Clear { at: None } => client.limits_set(&Limits::default()).await?,
        LimitCommand::Clear { at: Some(at) } => {
            let mut limits = client.limits().await?;
            if !clear(&mut limits, at) {
                let there = limits.windows.iter().map(|window| window.at.as_str()).collect::<Vec<_>>().join("; ");
                let todo = if there.is_empty() { "there is none at all".to_owned() } else { format!("there is: {there}") };
                return Err(Failure::new(Exit::Failed, format!("no limit holds at {at}"), todo));
            }
            client.limits_set(&limits).await?
        }
    };
    match global.json {
        true => print::json(&limits),
        false => print::out(&text(&limits)),
    }
}

fn is_at(window: &LimitWindow, at: Window) -> bool {
    window.at.parse() == Ok(at)
}

/// In its place if it is there, last otherwise.
fn set(limits: &mut Limits, at: Window, rate: Rate) {
    let window = LimitWindow { at: at.to_string(), rate_bytes_per_s: rate.bytes_per_s() };
    match limits.windows.iter_mut().find(|there| is_at(there, at)) {
        Some(there) => *there = window,
        None => limits.windows.push(window),
    }
}

/// Whether there was such a window.
fn clear(limits: &mut Limits, at: Window) -> bool {
    let before = limits.windows.len();
    limits.windows.retain(|window| !is_at(window, at));
    limits.windows.len() < before
}

/// As people write it.
pub(crate) fn rate(bytes_per_s: Option<u64>) -> String {
    let rate = bytes_per_s.and_then(Rate::from_bytes_per_s);
    rate.map_or_else(|| "no limit".to_owned(), |rate| format!("{rate}/s"))
}

fn text(limits: &Limits) -> String {
    let mut text = format!("rate: {}\n", rate(limits.rate_bytes_per_s));
    for window in &limits.windows {
        text.push_str(&format!("{}: {}\n", window.at, rate(Some(window.rate_bytes_per_s))));
    }
    if !limits.windows.is_empty() {
        text.push_str(&format!("now: {}\n", rate(limits.now_bytes_per_s)));
    }
    text
}

/// A line of `farside status`, if there is something to be said.
pub(crate) fn line(limits: &Limits) -> Option<String> {
    match (limits.now_bytes_per_s, limits.windows.is_empty()) {
        (None, true) => None,
        (now, true) => Some(format!("this host sends at most {}\n", rate(now))),
        (None, false) => Some("this host sends as fast as it goes at this hour (farside limit show)\n".to_owned()),
        (now, false) => Some(format!("this host sends at most {} at this hour (farside limit show)\n", rate(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_set_once_and_cleared_by_its_name() {
        let at = |text: &str| text.parse::<Window>().expect(text);
        let rate = |text: &str| text.parse::<Rate>().expect(text);
        let mut limits = Limits { rate_bytes_per_s: Some(125_000_000), ..Limits::default() };
        set(&mut limits, at("mon-fri 09:00-18:00"), rate("20Mbit"));
        set(&mut limits, at("22:00-06:00"), rate("5MiB"));
        set(&mut limits, at("Mon-Fri  09:00-18:00"), rate("30Mbit"));
        limits.now_bytes_per_s = Some(3_750_000);
        assert_eq!(text(&limits), "rate: 1Gbit/s\nMon-Fri 09:00-18:00: 30Mbit/s\n22:00-06:00: 5MiB/s\nnow: 30Mbit/s\n");
        assert_eq!(line(&limits).expect("said"), "this host sends at most 30Mbit/s at this hour (farside limit show)\n");
        assert!(!clear(&mut limits, at("Mon 09:00-18:00")));
        assert!(clear(&mut limits, at("Mon-Fri 09:00-18:00")));
        assert!(clear(&mut limits, at("22:00-06:00")) && limits.windows.is_empty());
        assert_eq!(line(&Limits::default()), None);
    }
}
