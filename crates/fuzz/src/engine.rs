//! One target: its inputs, its rules, and the loop that tries to break them.
//!
//! Invariant: everything but the number of executions follows from the seed. The loop ends at the first finding, which is
//! made smaller as long as it fails in the same way. What ends the process instead (no memory, an overflowing stack, a loop
//! without end) is the runner's to notice: the input was left in the scratch file before it was tried.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mutate::{Rng, mutate};

/// Inputs kept beside the seeds.
const CORPUS_MAX: usize = 4_096;
/// Executions between two looks at the clock.
const BETWEEN_LOOKS: u64 = 64;
/// Executions that making a finding smaller may take.
const SHRINKS_MAX: usize = 20_000;

/// A decoder, and what holds for it whatever the bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called, on the command line and in `corpus/`.
    pub name: &'static str,
    /// Which bytes these are, and who hands them to us.
    pub what: &'static str,
    /// Inputs that must be accepted, from the real encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Puts lengths and checksums right; leaves alone what it cannot make sense of.
    pub seal: fn(&mut Vec<u8>),
    /// Texts and fields that the format knows.
    pub words: &'static [&'static [u8]],
    /// The longest input that is tried.
    pub bytes_max: usize,
    /// Memory that decoding may hold, in bytes.
    pub memory: Memory,
    /// Decodes; panics where an invariant does not hold.
    pub decode: fn(&[u8]) -> Outcome,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.name)
    }
}

/// What decoding may hold at once.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// However short the input is.
    pub fixed_bytes: u64,
    /// For each byte of it.
    pub bytes_per_byte: u64,
}

/// What became of an input. Inputs with equal outcomes are alike for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An error; which one.
    Refused(u64),
    /// A value; of which shape.
    Accepted(u64),
}

impl Outcome {
    /// By the words of an error, whatever numbers and names stand between them.
    pub fn refused(error: impl fmt::Display) -> Self {
        let words = unmeasured(|| error.to_string());
        let mut hasher = DefaultHasher::new();
        // Quoted pieces of the input, and keys that stand before a colon, would make every refusal a new one.
        for word in words.split(['`', '"']).step_by(2).flat_map(str::split_whitespace).take(12) {
            if word.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'\'' | b',')) {
                word.hash(&mut hasher);
            }
        }
        unmeasured(|| drop(words));
        Self::Refused(hasher.finish())
    }

    /// By whatever tells one shape from another; there should be few.
    pub fn accepted(shape: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        shape.hash(&mut hasher);
        Self::Accepted(hasher.finish())
    }
}

/// A number's size, so that shapes stay few.
pub fn magnitude(number: u64) -> u32 {
    64 - number.leading_zeros()
}

/// Work that a decoder's caller would not do: its memory does not count.
pub fn unmeasured<T>(work: impl FnOnce() -> T) -> T {
    let mut result = None;
    allocation_counter::opt_out(|| result = Some(work()));
    result.expect("it ran")
}

/// An input that breaks a rule.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The bytes.
    pub input: Vec<u8>,
    /// What happened.
    pub what: String,
}

/// What a run amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Inputs tried.
    pub executions: u64,
    /// Of these, accepted.
    pub accepted: u64,
    /// Different outcomes seen.
    pub outcomes: usize,
}

/// Executions so far, for whoever watches that they go on.
pub static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what a panic says, on the thread that panics, instead of printing it.
pub fn keep_panics_quiet() {
    panic::set_hook(Box::new(|info| {
        let words = unmeasured(|| info.to_string());
        LAST_PANIC.with(|last| *last.borrow_mut() = words);
    }));
}

impl Target {
    /// Tries one input.
    ///
    /// # Errors
    /// What rule it breaks.
    pub fn try_input(&self, input: &[u8]) -> Result<Outcome, String> {
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
        let mut result: Result<Outcome, Box<dyn Any + Send>> = Ok(Outcome::Accepted(0));
        let info = allocation_counter::measure(|| {
            result = panic::catch_unwind(AssertUnwindSafe(|| (self.decode)(input)));
        });
        let outcome = result.map_err(|payload| {
            let said = LAST_PANIC.with(|last| std::mem::take(&mut *last.borrow_mut()));
            let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            if said.is_empty() { text } else { said }
        })?;
        let allowed = self.memory.fixed_bytes + self.memory.bytes_per_byte * input.len() as u64;
        if info.bytes_max > allowed {
            return Err(format!("it holds {} bytes for an input of {}; {allowed} are allowed", info.bytes_max, input.len()));
        }
        Ok(outcome)
    }

    /// Mutates until `seconds` are over, or `executions_max` inputs were tried; begins with `known` (findings of the past) and
    /// the seeds. Every input is written to `scratch` before it is tried.
    ///
    /// # Errors
    /// The first finding, made small.
    pub fn fuzz(&self, seed: u64, known: Vec<Vec<u8>>, limit: Limit, scratch: Option<&File>) -> Result<Tally, Finding> {
        let mut run = Run { target: self, scratch, tally: Tally::default(), seen: HashSet::new() };
        let mut corpus = (self.seeds)();
        corpus.extend(known);
        for input in &corpus {
            run.attempt(input)?;
        }
        let kept = corpus.len();
        let mut rng = Rng::new(seed ^ hash_of(self.name));
        let begun = Instant::now();
        let mut input = Vec::new();
        while run.tally.executions < limit.executions_max {
            if run.tally.executions.is_multiple_of(BETWEEN_LOOKS) && begun.elapsed() >= limit.time {
                break;
            }
            // What is new is looked at more often.
            let base = if rng.one_in(3) { corpus.len() - 1 - rng.below(corpus.len().min(32)) } else { rng.below(corpus.len()) };
            let other = rng.below(corpus.len());
            input.clear();
            input.extend_from_slice(&corpus[base]);
            mutate(&mut rng, &mut input, &corpus[other], self.words, self.bytes_max);
            if !rng.one_in(16) {
                (self.seal)(&mut input);
                input.truncate(self.bytes_max);
            }
            if run.attempt(&input)? {
                if corpus.len() - kept < CORPUS_MAX {
                    corpus.push(input.clone());
                } else {
                    let place = kept + rng.below(CORPUS_MAX);
                    corpus[place].clone_from(&input);
                }
            }
        }
        run.tally.outcomes = run.seen.len();
        Ok(run.tally)
    }

    /// Takes away what a finding does not need, while `fails` says that it still is one.
    pub fn shrink(&self, input: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        let (mut best, mut left) = (input, SHRINKS_MAX);
        let mut holds = |candidate: &mut Vec<u8>| {
            left = left.saturating_sub(1);
            if left == 0 {
                return None;
            }
            if fails(candidate) {
                return Some(true);
            }
            (self.seal)(candidate);
            Some(fails(candidate))
        };
        let mut size = best.len().next_power_of_two();
        while size > 0 {
            let mut at = 0;
            while at < best.len() {
                let mut candidate = best.clone();
                candidate.drain(at..(at + size).min(best.len()));
                match holds(&mut candidate) {
                    None => return best,
                    Some(true) if candidate.len() < best.len() => best = candidate,
                    Some(_) => at += size,
                }
            }
            size /= 2;
        }
        for at in 0..best.len() {
            let mut candidate = best.clone();
            if at < candidate.len() && candidate[at] != 0 {
                candidate[at] = 0;
                match holds(&mut candidate) {
                    None => return best,
                    Some(true) if candidate.len() == best.len() => best = candidate,
                    Some(_) => {}
                }
            }
        }
        best
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// After so long,
    pub time: Duration,
    /// or so many inputs.
    pub executions_max: u64,
}

struct Run<'a> {
    target: &'a Target,
    scratch: Option<&'a File>,
    tally: Tally,
    seen: HashSet<Outcome>,
}

impl Run<'_> {
    /// Tries an input; says whether its outcome is new.
    fn attempt(&mut self, input: &[u8]) -> Result<bool, Finding> {
        if let Some(scratch) = self.scratch {
            leave(scratch, input);
        }
        self.tally.executions += 1;
        match self.target.try_input(input) {
            Ok(outcome) => {
                self.tally.accepted += u64::from(matches!(outcome, Outcome::Accepted(_)));
                Ok(self.seen.insert(outcome))
            }
            Err(what) => {
                let sort = sort_of(&what);
                let fails = |candidate: &[u8]| self.target.try_input(candidate).is_err_and(|other| sort_of(&other) == sort);
                let input = self.target.shrink(input.to_vec(), fails);
                Err(Finding { input, what })
            }
        }
    }
}

/// Findings of one sort differ in numbers only.
fn sort_of(what: &str) -> String {
    let place = what.lines().next().unwrap_or_default();
    place.chars().filter(|c| !c.is_ascii_digit() || place.contains(".rs:")).collect()
}

/// `length (u32 LE) ‖ bytes`: one write, and nothing to be truncated.
fn leave(scratch: &File, input: &[u8]) {
    let mut bytes = Vec::with_capacity(4 + input.len());
    bytes.extend_from_slice(&(input.len() as u32).to_le_bytes());
    bytes.extend_from_slice(input);
    scratch.write_all_at(&bytes, 0).expect("the scratch file can be written");
}

/// What `leave` left.
pub fn left_in(scratch: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = scratch.split_first_chunk::<4>()?;
    rest.get(..u32::from_le_bytes(*length) as usize).map(<[u8]>::to_vec)
}

fn hash_of(text: &str) -> u64 {
    u64::from_le_bytes(*blake3::hash(text.as_bytes()).as_bytes().first_chunk().expect("a hash has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight bytes that are summed up, and then some that are believed: with faults behind the sum.
    fn planted(bytes: &[u8]) -> Outcome {
        let Some((sum, rest)) = bytes.split_first() else { return Outcome::refused("empty") };
        if *sum != rest.iter().fold(0, |a: u8, b| a.wrapping_add(*b)) {
            return Outcome::refused("the sum is wrong");
        }
        let Some((kind, rest)) = rest.split_first() else { return Outcome::refused("no kind") };
        match kind {
            1 => Outcome::accepted(1),
            2 if rest.len() > 3 => panic!("planted: {} bytes of kind two", rest.len()),
            _ => Outcome::refused("unknown kind"),
        }
    }

    fn greedy(bytes: &[u8]) -> Outcome {
        let wanted = bytes.iter().map(|b| usize::from(*b)).sum::<usize>() << 8;
        Outcome::accepted(std::hint::black_box(vec![1_u8; wanted]).len() > 1)
    }

    fn target(decode: fn(&[u8]) -> Outcome) -> Target {
        let seal = |bytes: &mut Vec<u8>| {
            if let Some((sum, rest)) = bytes.split_first_mut() {
                *sum = rest.iter().fold(0, |a: u8, b| a.wrapping_add(*b));
            }
        };
        Target {
            name: "planted",
            what: "a decoder with faults",
            seeds: || vec![vec![1, 1]],
            seal,
            words: &[],
            bytes_max: 64,
            memory: Memory { fixed_bytes: 4096, bytes_per_byte: 16 },
            decode,
        }
    }

    const SOME: Limit = Limit { time: Duration::from_secs(3600), executions_max: 200_000 };

    #[test]
    fn a_fault_behind_a_checksum_is_found_and_made_small() {
        let finding = target(planted).fuzz(1, Vec::new(), SOME, None).expect_err("it is there");
        assert!(finding.what.contains("planted"), "{}", finding.what);
        assert_eq!(finding.input.len(), 6, "sum, kind and four bytes: {:?}", finding.input);
        let again = target(planted).fuzz(1, Vec::new(), SOME, None).expect_err("it is there");
        assert_eq!(again.input, finding.input, "the seed decides");
    }

    #[test]
    fn memory_that_the_input_does_not_pay_for_is_a_finding() {
        let finding = target(greedy).fuzz(1, Vec::new(), SOME, None).expect_err("it is there");
        assert!(finding.what.contains("bytes for an input of"), "{}", finding.what);
        let patient = Target { memory: Memory { fixed_bytes: 1 << 24, bytes_per_byte: 0 }, ..target(greedy) };
        let tally = patient.fuzz(1, Vec::new(), Limit { executions_max: 1_000, ..SOME }, None).expect("nothing");
        assert_eq!(tally.executions, 1_000);
    }

    #[test]
    fn what_was_found_once_is_tried_first() {
        let finding = target(planted).fuzz(1, vec![vec![6, 2, 1, 1, 1, 1]], Limit { executions_max: 0, ..SOME }, None);
        assert!(finding.expect_err("known").what.contains("planted"));
    }

    #[test]
    fn what_is_left_for_a_process_that_ends_can_be_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        leave(file.as_file(), b"longer than what follows");
        leave(file.as_file(), b"short");
        assert_eq!(left_in(&std::fs::read(file.path()).expect("read")), Some(b"short".to_vec()));
        assert_eq!(left_in(&[9, 0, 0, 0, 1]), None);
    }
}
