//! Who was refused at the door lately, for people: one line for each that came and why, however often.
//!
//! Invariant: bounded by number and by age. Whoever was let in afterwards, from the same place and under the same name, is not
//! listed any more; a stranger who uses that name is.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use farside_region::Name;

const SHOWN_MAX: usize = 8;
const SHOWN_FOR: Duration = Duration::from_secs(600);

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    list: Mutex<VecDeque<Refusal>>,
    count: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Refusal {
    name: Option<Name>,
    from: IpAddr,
    reason: String,
    times: u64,
    last: Instant,
}

impl Refusals {
    /// Somebody was refused.
    pub(crate) fn note(&self, name: Option<Name>, from: SocketAddr, reason: String, now: Instant) {
        self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut list = self.lock();
        let from = from.ip();
        let same = list.iter().position(|r| r.name == name && r.from == from && r.reason == reason);
        let times = same.and_then(|at| list.remove(at)).map_or(0, |known| known.times);
        if list.len() >= SHOWN_MAX {
            // Who invents names drives out his own.
            let lines = |of: IpAddr| list.iter().filter(|r| r.from == of).count() + usize::from(of == from);
            let oldest_of_most = (0..list.len()).rev().max_by_key(|at| lines(list[*at].from));
            oldest_of_most.map(|at| list.remove(at));
        }
        list.push_back(Refusal { name, from, reason, times: times + 1, last: now });
    }

    /// A source of that name was let in.
    pub(crate) fn forget(&self, name: &Name, from: IpAddr) {
        self.lock().retain(|r| r.from != from || r.name.as_ref().is_some_and(|other| other != name));
    }

    /// How many there were since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A line each, the oldest first, and under which name that was.
    pub(crate) fn lines(&self, now: Instant) -> Vec<(Option<Name>, String)> {
        let mut list = self.lock();
        list.retain(|r| now.saturating_duration_since(r.last) < SHOWN_FOR);
        let line = |r: &Refusal| {
            let who = r.name.as_ref().map_or_else(|| r.from.to_string(), |name| format!("`{name}` at {}", r.from));
            let times = if r.times > 1 { format!(" ({} times)", r.times) } else { String::new() };
            (r.name.clone(), format!("{who} was refused: {}{times}", r.reason))
        };
        list.iter().map(line).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Refusal>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_and_no_more_when_it_was_let_in() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let at = |address: &str| address.parse::<SocketAddr>().expect("an address");
        for port in 1..=3 {
            refusals.note(Some(name("op1")), at(&format!("192.0.2.1:{port}")), "no".into(), now);
        }
        refusals.note(Some(name("op1")), at("192.0.2.9:5"), "no".into(), now);
        refusals.note(None, at("192.0.2.1:5"), "garbage".into(), now);
        let lines = |now| refusals.lines(now).into_iter().map(|(_, line)| line).collect::<Vec<_>>();
        assert_eq!(lines(now)[0], "`op1` at 192.0.2.1 was refused: no (3 times)");
        assert_eq!(refusals.count(), 5);
        refusals.forget(&name("op1"), at("192.0.2.1:7").ip());
        assert_eq!(lines(now), ["`op1` at 192.0.2.9 was refused: no"], "somebody else uses that name");
        assert!(refusals.lines(now + SHOWN_FOR).is_empty());
        for n in 0..100 {
            refusals.note(None, at("192.0.2.1:5"), format!("{n}"), now);
        }
        assert_eq!(refusals.lines(now).len(), SHOWN_MAX);
    }

    #[test]
    fn a_stranger_who_invents_names_hides_nobody_else() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let note = |name: &str, at: &str| {
            let from = at.parse().expect("an address");
            refusals.note(Some(name.parse().expect("a name")), from, "no".into(), now);
        };
        note("db1", "192.0.2.1:1");
        note("db2", "192.0.2.2:1");
        (0..100).for_each(|n| note(&format!("x{n}"), "198.51.100.1:1"));
        let names: Vec<_> = refusals.lines(now).into_iter().filter_map(|(name, _)| name).collect();
        assert_eq!(names[..2].iter().map(Name::as_str).collect::<Vec<_>>(), ["db1", "db2"]);
        assert_eq!(names.last().map(Name::as_str), Some("x99"), "the newest of all");
    }
}
