//! Bytes that begin at a page, as writes around the page cache need them.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Alignment of such bytes, and of what is written around the page cache: enough for every device.
pub(crate) const ALIGN: usize = 4096;

/// A buffer that begins at a multiple of 4096.
#[derive(Default)]
pub struct AlignedBytes {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// So many zeroes, whatever was there.
    pub fn reset(&mut self, len: usize) {
        if !self.resize(len) {
            self.fill(0);
        }
    }

    /// So many bytes, for whoever writes all of them: of what was there before, or zeroes. Whether they are zeroes.
    pub(crate) fn resize(&mut self, len: usize) -> bool {
        let grows = self.memory.len() < len + ALIGN;
        if grows {
            self.memory = vec![0; len + ALIGN];
            self.start = self.memory.as_ptr().align_offset(ALIGN);
        }
        self.len = len;
        grows
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_begin_at_a_page_and_hold_zeroes_again() {
        let mut bytes = AlignedBytes::default();
        assert_eq!(&*bytes, &[0u8; 0]);
        for len in [1, 4096, 3, 4 << 20, 4096] {
            bytes.reset(len);
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(ALIGN)), (len, 0));
            assert!(bytes.iter().all(|b| *b == 0));
            bytes.fill(7);
        }
    }
}
