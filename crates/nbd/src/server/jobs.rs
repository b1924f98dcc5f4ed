//! What is running: jobs, their pieces, and the tables that hold them.

use farside_blockio::Buffer;

/// A client's command that the queue works on.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) connection: u32,
    pub(super) cookie: u64,
    pub(super) kind: JobKind,
    /// Of all jobs of the server, the how-manieth.
    pub(super) turn: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
    /// Pieces in the queue.
    pub(super) outstanding: u32,
    /// Whether pieces are still to be submitted.
    pub(super) more: bool,
    /// Whether nobody waits for the answer.
    pub(super) silent: bool,
    /// The first error of a piece, as the protocol numbers it.
    pub(super) error: Option<u32>,
    /// Head of the list of pieces of a [`JobKind::ReadWhole`], in order.
    pub(super) first_piece: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobKind {
    /// Each piece is a chunk of the reply as soon as it is there.
    ReadInChunks,
    /// All pieces are one reply.
    ReadWhole,
    /// No data comes back.
    Change,
}

/// A request of the queue; its number is the request's id.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) job: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) buffer: Option<Buffer>,
    pub(super) next: Option<u32>,
}

/// Values with stable small numbers.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = Some(value);
                number
            }
            None => {
                self.entries.push(Some(value));
                self.entries.len() as u32 - 1
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut T {
        self.entries[number as usize].as_mut().expect("a number that is in use")
    }

    pub(super) fn remove(&mut self, number: u32) -> T {
        let value = self.entries[number as usize].take().expect("a number that is in use");
        self.free.push(number);
        value
    }
}

/// Whether all bytes are zero; answers at the first that is not.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<8>();
    words.chunks(64).all(|chunk| chunk.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0)
        && tail.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0u8; 4096 + 3];
        assert!(is_zero(&bytes));
        for at in [0, 7, 8, 511, 512, 4095, 4096, 4098] {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn numbers_are_reused() {
        let mut slab = Slab::with_capacity(2);
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!((slab.remove(a), slab.len()), ('a', 1));
        assert_eq!(slab.insert('c'), a);
        assert_eq!(*slab.get_mut(b), 'b');
    }
}
