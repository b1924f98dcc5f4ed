//! Random changes of bytes that keep most of what makes them look right.
//!
//! Invariant: the same generator and the same inputs give the same changes, on every machine. It knows nothing of any format
//! but the words that a target gives it; checksums are the target's seal.

use farside_tests::verify;

/// A small generator: enough to choose changes, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(verify::Rng);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(verify::Rng(seed))
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0.draw()
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.draw() % end as u64) as usize }
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// From 1 to half of 2 to the power of `bits`, and small numbers far more often.
    fn few(&mut self, bits: usize) -> usize {
        let end = 1 << self.below(bits);
        1 + self.below(end)
    }

    /// One of a list that is not empty.
    ///
    /// # Panics
    /// When it is empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        assert!(!list.is_empty(), "nothing to pick from");
        &list[self.below(list.len())]
    }
}

/// Numbers at which arithmetic goes wrong.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    1023,
    1024,
    1025,
    4095,
    4096,
    4097,
    32_767,
    32_768,
    65_535,
    65_536,
    (1 << 20) - 1,
    1 << 20,
    (1 << 22) + 1,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    1 << 52,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Changes `input` in one to a few places; it stays at most `bytes_max` long. `other` is another input to take pieces from,
/// `words` are texts or fields that the format knows.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], bytes_max: usize) {
    for _ in 0..rng.few(4) {
        once(rng, input, other, words);
        input.truncate(bytes_max);
    }
}

fn once(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    let len = input.len();
    match rng.below(13) {
        0 if len > 0 => input[rng.below(len)] ^= 1 << rng.below(8),
        1 if len > 0 => input[rng.below(len)] = rng.draw() as u8,
        2 if len > 0 => {
            let (at, step) = (rng.below(len), 1 + rng.below(16) as u8);
            input[at] = if rng.one_in(2) { input[at].wrapping_add(step) } else { input[at].wrapping_sub(step) };
        }
        3 => overwrite_number(rng, input),
        4 => {
            let number = varint(*rng.pick(EDGES));
            let at = rng.below(len + 1);
            // In the place of one that is there, or before it.
            let end = if rng.one_in(3) { at } else { end_of_varint(input, at) };
            input.splice(at..end, number);
        }
        5 if len > 0 => {
            let at = rng.below(len);
            let end = at + 1 + rng.below((len - at).min(32));
            input.drain(at..end);
        }
        6 => {
            let at = rng.below(len + 1);
            let bytes: Vec<u8> = (0..1 + rng.below(16)).map(|_| rng.draw() as u8).collect();
            input.splice(at..at, bytes);
        }
        7 if len > 0 => {
            let piece = piece(rng, input, 64);
            let at = rng.below(len + 1);
            input.splice(at..at, piece.repeat(rng.few(6)));
        }
        8 if len > 0 => {
            let piece = piece(rng, input, 64);
            write_at(input, rng.below(len), &piece);
        }
        9 if !other.is_empty() => {
            let piece = piece(rng, other, 256);
            let at = rng.below(len + 1);
            if rng.one_in(2) {
                input.splice(at..at, piece);
            } else {
                write_at(input, at, &piece);
            }
        }
        10 if !other.is_empty() => {
            input.truncate(rng.below(len + 1));
            input.extend_from_slice(&other[rng.below(other.len())..]);
        }
        11 if !words.is_empty() => {
            let word = *rng.pick(words);
            let at = rng.below(len + 1);
            if rng.one_in(2) {
                input.splice(at..at, word.iter().copied());
            } else {
                write_at(input, at, word);
            }
        }
        12 => input.truncate(rng.below(len + 1)),
        _ => input.push(rng.draw() as u8),
    }
}

/// An edge, or a little beside it, as a fixed number of bytes of either order, aligned more often than not.
fn overwrite_number(rng: &mut Rng, input: &mut [u8]) {
    let width = 1 << rng.below(4);
    if input.len() < width {
        return;
    }
    let mut at = rng.below(input.len() - width + 1);
    if !rng.one_in(3) {
        at -= at % width;
    }
    let number = match rng.below(3) {
        0 => rng.draw() >> rng.below(64),
        1 => rng.pick(EDGES).wrapping_add(rng.below(5) as u64).wrapping_sub(2),
        _ => *rng.pick(EDGES),
    };
    let bytes = number.to_le_bytes();
    let field = &mut input[at..at + width];
    field.copy_from_slice(&bytes[..width]);
    if rng.one_in(2) {
        field.reverse();
    }
}

fn piece(rng: &mut Rng, from: &[u8], bytes_max: usize) -> Vec<u8> {
    let at = rng.below(from.len());
    let len = 1 + rng.below((from.len() - at).min(bytes_max));
    from[at..at + len].to_vec()
}

fn write_at(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(input.len());
    input.splice(at..end, bytes.iter().copied());
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn end_of_varint(input: &[u8], at: usize) -> usize {
    let more = input[at..].iter().take(9).take_while(|byte| **byte >= 0x80).count();
    (at + more + 1).min(input.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_changes_within_the_limit() {
        let run = |seed| {
            let (mut rng, mut input) = (Rng::new(seed), b"the first input".to_vec());
            for _ in 0..10_000 {
                mutate(&mut rng, &mut input, b"another one", &[b"word", b"longer word"], 300);
                assert!(input.len() <= 300);
            }
            input
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn every_change_copes_with_no_bytes_at_all() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            mutate(&mut rng, &mut Vec::new(), &[], &[], 64);
        }
    }
}
