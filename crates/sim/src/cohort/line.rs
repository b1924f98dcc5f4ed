//! The connections on which the machines of one group are cut as one with others: each ordered, and complete while it lives.
//!
//! When one ends, each side learns of it in its own time. The source hears nothing of it any more; of what it had said, whoever conducts may
//! still hear the beginning, also after a newer connection stands.

use std::collections::VecDeque;

use farside_wire::{CohortAsk, CohortSay, ReceiverMessage, SourceMessage, decode_payload, encode_payload};

use crate::rng::Rng;

/// A host that reads nothing for so long has gone, as the gateway sees it.
const ASKS_MAX: usize = 16;

#[derive(Debug)]
struct Line {
    number: u64,
    site: usize,
    /// It is over: nothing more gets into it.
    is_dead: bool,
    source_knows: bool,
    gateway_knows: bool,
    /// Its number at the gateway, once that has heard of it.
    here: Option<u64>,
    asks: VecDeque<Vec<u8>>,
    says: VecDeque<Vec<u8>>,
}

/// What the gateway hears of a group.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A connection stands. Its number is the gateway's.
    Joined(u64),
    /// Something is said over it.
    Said(u64, CohortSay),
    /// It ended.
    Left(u64),
}

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Lines {
    /// Somebody conducts, and is reached.
    pub is_open: bool,
    last: u64,
    lines: Vec<Line>,
}

impl Lines {
    fn line(&self, number: u64) -> Option<&Line> {
        self.lines.iter().find(|line| line.number == number)
    }

    fn line_mut(&mut self, number: u64) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.number == number)
    }

    fn end(&mut self, which: impl Fn(&Line) -> bool) {
        for line in self.lines.iter_mut().filter(|line| which(line)) {
            line.is_dead = true;
            line.asks.clear();
        }
    }

    fn forget(&mut self) {
        self.lines.retain(|line| !(line.is_dead && line.source_knows && line.gateway_knows));
    }

    // The source's end.

    /// A machine connects.
    pub fn connect(&mut self, site: usize) -> u64 {
        self.last += 1;
        let number = self.last;
        let (asks, says) = (VecDeque::new(), VecDeque::new());
        self.lines.push(Line { number, site, is_dead: false, source_knows: false, gateway_knows: false, here: None, asks, says });
        number
    }

    /// The source finds its connection gone.
    pub fn is_lost(&self, number: u64) -> bool {
        self.line(number).is_none_or(|line| line.is_dead)
    }

    /// The source is done with one.
    pub fn hang_up(&mut self, number: u64) {
        self.end(|line| line.number == number);
        self.lines.iter_mut().filter(|line| line.number == number).for_each(|line| line.source_knows = true);
        self.forget();
    }

    /// All of a machine whose process is gone.
    pub fn machine_ends(&mut self, site: usize) {
        self.end(|line| line.site == site);
        self.lines.iter_mut().filter(|line| line.site == site).for_each(|line| line.source_knows = true);
        self.forget();
    }

    /// Whether something arrived for a source.
    pub fn has_ask(&self, number: u64) -> bool {
        self.line(number).is_some_and(|line| !line.asks.is_empty())
    }

    /// What arrived for a source.
    pub fn take_ask(&mut self, number: u64) -> Option<CohortAsk> {
        let bytes = self.line_mut(number)?.asks.pop_front()?;
        match decode_payload(&bytes) {
            Ok(ReceiverMessage::Cohort(ask)) => Some(ask),
            other => panic!("what a conductor asks is read as {other:?}"),
        }
    }

    /// A source answers.
    pub fn say(&mut self, number: u64, say: CohortSay) {
        if let Some(line) = self.line_mut(number).filter(|line| !line.is_dead) {
            line.says.push_back(encode_payload(&SourceMessage::Cohort(say)).expect("an answer fits a frame").to_vec());
        }
    }

    // The gateway's end.

    /// One of them breaks: nothing that is on its way to the source gets there, and of what is on its way to the gateway the beginning.
    pub fn one_breaks(&mut self, rng: &mut Rng) -> bool {
        let alive: Vec<u64> = self.lines.iter().filter(|line| !line.is_dead).map(|line| line.number).collect();
        if alive.is_empty() {
            return false;
        }
        let number = rng.pick(&alive);
        self.end(|line| line.number == number);
        if let Some(line) = self.line_mut(number) {
            line.says.truncate(rng.below(line.says.len() + 1));
        }
        true
    }

    /// Whoever conducted is gone.
    pub fn gateway_ends(&mut self) {
        self.is_open = false;
        self.end(|_| true);
        self.lines.iter_mut().for_each(|line| line.gateway_knows = true);
        self.forget();
    }

    /// Something of a group that reaches the gateway now, from any of its connections; `next`: the gateway's next number.
    pub fn hear(&mut self, next: &mut u64, rng: &mut Rng) -> Option<Heard> {
        let with_news = |line: &Line| !line.gateway_knows && (line.is_dead || line.here.is_none() || !line.says.is_empty());
        let all: Vec<usize> = (0..self.lines.len()).filter(|i| with_news(&self.lines[*i])).collect();
        if all.is_empty() {
            return None;
        }
        let at = rng.pick(&all);
        let line = &mut self.lines[at];
        let Some(here) = line.here else {
            *next += 1;
            line.here = Some(*next);
            let (number, here) = (line.number, *next);
            // The gateway closes the one before.
            self.end(|line| line.here.is_some() && line.number != number);
            return Some(Heard::Joined(here));
        };
        match line.says.pop_front() {
            Some(bytes) => match decode_payload(&bytes) {
                Ok(SourceMessage::Cohort(say)) => Some(Heard::Said(here, say)),
                other => panic!("what a source says is read as {other:?}"),
            },
            None => {
                line.gateway_knows = true;
                self.forget();
                Some(Heard::Left(here))
            }
        }
    }

    /// The newest connection that the gateway has heard of, if it stands as far as it knows.
    pub fn newest(&self) -> Option<u64> {
        self.lines.iter().filter(|line| !line.gateway_knows).filter_map(|line| line.here).max()
    }

    /// The gateway asks a source. False: that connection is not the newest, or takes nothing.
    pub fn ask(&mut self, here: u64, ask: CohortAsk) -> bool {
        let newest = self.lines.iter().filter_map(|line| line.here).max();
        let line = self.lines.iter_mut().find(|line| line.here == Some(here));
        let Some(line) = line.filter(|line| !line.gateway_knows && newest == Some(here)) else { return false };
        if line.asks.len() >= ASKS_MAX {
            return false;
        }
        if line.is_dead {
            return true; // it is lost, as what is sent into a connection that broke
        }
        line.asks.push_back(encode_payload(&ReceiverMessage::Cohort(ask)).expect("a question fits a frame").to_vec());
        true
    }
}
