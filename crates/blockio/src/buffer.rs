//! Aligned memory for direct I/O: a bounded arena, cut by a buddy scheme into owned [`Buffer`]s.
//!
//! Invariant: a byte of the arena belongs to at most one live [`Buffer`]; a dropped buffer is back in its arena. Memory is
//! always initialised (zero at first, then whatever it last held). Nothing is allocated after the arena exists; the lowest
//! free address is taken first, so a lightly loaded arena touches few pages.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Alignment in bytes of every buffer, and the smallest size that one takes from its arena.
pub const BUFFER_ALIGN: usize = 4096;

/// A bounded arena of aligned memory. Clones share it; buffers may be dropped on any thread.
#[derive(Clone)]
pub struct BufferPool {
    arena: Arc<Arena>,
}

struct Arena {
    base: NonNull<u8>,
    capacity: usize,
    order_max: u32,
    free: Mutex<FreeMap>,
    _memory: MmapMut,
}

// SAFETY: `base` points into `_memory`, which lives as long as the arena; the bytes are handed out as disjoint ranges under
// the mutex (FreeMap), so threads never share one.
unsafe impl Send for Arena {}
// SAFETY: as above; every shared field is behind the mutex or immutable.
unsafe impl Sync for Arena {}

impl BufferPool {
    /// An arena of at least `capacity` bytes whose largest buffer is `buffer_max` (rounded up to a power of two).
    ///
    /// # Errors
    /// When the address space cannot be had.
    ///
    /// # Panics
    /// When `buffer_max` is 0 or above 1 GiB.
    pub fn new(capacity: usize, buffer_max: usize) -> std::io::Result<Self> {
        assert!(buffer_max > 0 && buffer_max <= 1 << 30, "a buffer holds 1 byte to 1 GiB");
        let order_max = order_of(buffer_max);
        let block = BUFFER_ALIGN << order_max;
        let blocks = capacity.div_ceil(block).max(1);
        let capacity = blocks * block;
        let mut memory = MmapMut::map_anon(capacity)?;
        let base = NonNull::new(memory.as_mut_ptr()).expect("a mapping is not at address 0");
        let free = Mutex::new(FreeMap::new(blocks, order_max));
        Ok(Self { arena: Arc::new(Arena { base, capacity, order_max, free, _memory: memory }) })
    }

    /// A buffer of `len` bytes (content undefined but initialised), or `None` while the arena has no room for it.
    ///
    /// # Panics
    /// When `len` is above [`BufferPool::buffer_max`]: it could never be had.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        let order = order_of(len);
        assert!(order <= self.arena.order_max, "{len} bytes exceed this pool's largest buffer");
        let index = self.arena.free().take(order)?;
        let offset = (index as usize) << order;
        debug_assert!((offset + (1 << order)) * BUFFER_ALIGN <= self.arena.capacity);
        // SAFETY: the free map hands out block numbers inside the arena only (asserted above).
        let start = unsafe { self.arena.base.add(offset * BUFFER_ALIGN) };
        Some(Buffer { start, len, order, arena: Arc::clone(&self.arena) })
    }

    /// The largest buffer in bytes.
    pub fn buffer_max(&self) -> usize {
        BUFFER_ALIGN << self.arena.order_max
    }

    /// All bytes of the arena.
    pub fn capacity(&self) -> usize {
        self.arena.capacity
    }

    /// Bytes now held by buffers (rounded up to what each took).
    pub fn in_use(&self) -> usize {
        self.arena.capacity - self.arena.free().free_granules * BUFFER_ALIGN
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("capacity", &self.capacity()).field("in_use", &self.in_use()).finish()
    }
}

impl Arena {
    fn free(&self) -> std::sync::MutexGuard<'_, FreeMap> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn order_of(len: usize) -> u32 {
    len.div_ceil(BUFFER_ALIGN).max(1).next_power_of_two().trailing_zeros()
}

/// Which blocks are free, one bitmap per order; bit i of order k is the block of 2^k × 4 KiB at index i.
struct FreeMap {
    orders: Vec<FreeBits>,
    free_granules: usize,
}

struct FreeBits {
    words: Vec<u64>,
    count: usize,
    lowest: usize, // no word below this one has a bit
}

impl FreeMap {
    fn new(blocks: usize, order_max: u32) -> Self {
        let orders = (0..=order_max).map(|order| FreeBits::new(blocks << (order_max - order))).collect();
        let mut map = Self { orders, free_granules: blocks << order_max };
        for block in 0..blocks {
            map.orders[order_max as usize].set(block as u32);
        }
        map
    }

    fn take(&mut self, order: u32) -> Option<u32> {
        let from = (order..self.orders.len() as u32).find(|&k| self.orders[k as usize].count > 0)?;
        let mut index = self.orders[from as usize].take_lowest();
        for lower in (order..from).rev() {
            index *= 2;
            self.orders[lower as usize].set(index + 1);
        }
        self.free_granules -= 1 << order;
        Some(index)
    }

    fn give(&mut self, mut order: u32, mut index: u32) {
        self.free_granules += 1 << order;
        while (order as usize) < self.orders.len() - 1 && self.orders[order as usize].clear(index ^ 1) {
            index /= 2;
            order += 1;
        }
        self.orders[order as usize].set(index);
    }
}

impl FreeBits {
    fn new(bits: usize) -> Self {
        Self { words: vec![0; bits.div_ceil(64)], count: 0, lowest: 0 }
    }

    fn set(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        assert!(self.words[word] & bit == 0, "a block is given back once");
        self.words[word] |= bit;
        self.count += 1;
        self.lowest = self.lowest.min(word);
    }

    fn clear(&mut self, index: u32) -> bool {
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.count -= usize::from(was);
        was
    }

    fn take_lowest(&mut self) -> u32 {
        while self.words[self.lowest] == 0 {
            self.lowest += 1;
        }
        let bit = self.words[self.lowest].trailing_zeros();
        let index = self.lowest as u32 * 64 + bit;
        self.clear(index);
        index
    }
}

/// Aligned bytes with one owner. Moves into an operation of a [`crate::Ring`] and comes back in its completion; goes back to
/// its arena when dropped.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    order: u32,
    arena: Arc<Arena>,
}

// SAFETY: a buffer owns its range of the arena alone (FreeMap), like a Box<[u8]>.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A zeroed buffer with an arena of its own, for start-up and for blocking users; never on a queue thread.
    ///
    /// # Errors
    /// When the address space cannot be had.
    pub fn alone(len: usize) -> std::io::Result<Self> {
        let pool = BufferPool::new(len.max(1), len.max(1))?;
        Ok(pool.take(len).expect("a new arena holds its one buffer"))
    }

    /// How far [`Buffer::set_len`] may grow it.
    pub fn capacity(&self) -> usize {
        BUFFER_ALIGN << self.order
    }

    /// Changes the visible length; bytes that come into view hold whatever was there.
    ///
    /// # Panics
    /// When `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer's length fits its capacity");
        self.len = len;
    }

    /// Where the kernel shall read or write. `range` is checked.
    pub(crate) fn kernel_ptr(&mut self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.len, "an operation stays inside its buffer");
        // SAFETY: range.start ≤ len ≤ capacity, so the address is inside this buffer's part of the arena.
        unsafe { self.start.as_ptr().add(range.start) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` ≤ capacity initialised bytes that this buffer alone owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let offset = self.start.as_ptr() as usize - self.arena.base.as_ptr() as usize;
        let index = (offset / BUFFER_ALIGN) >> self.order;
        self.arena.free().give(self.order, index as u32);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity()).finish()
    }
}

/// Bytes to be sent in order, from several buffers: what a `sendmsg` takes.
#[derive(Debug, Default)]
pub struct Gather {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) slices: Vec<(u32, Range<usize>)>, // buffer number, bytes of it
    pub(crate) first: usize,                     // slices before it are sent
}

impl Gather {
    /// Slices that one operation sends at most; a longer gather takes several.
    pub const SLICES_MAX: usize = 64;

    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a buffer and returns its number for [`Gather::push_slice`].
    pub fn push_buffer(&mut self, buffer: Buffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    /// Adds bytes of a buffer that is in the gather; bytes that continue the last slice extend it.
    ///
    /// # Panics
    /// When the buffer or the range does not exist.
    pub fn push_slice(&mut self, buffer: usize, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.buffers[buffer].len(), "a slice lies inside its buffer");
        if range.is_empty() {
            return;
        }
        if let Some((number, last)) = self.slices[self.first..].last_mut()
            && *number as usize == buffer
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        self.slices.push((buffer as u32, range));
    }

    /// The buffer of that number, to fill it before its slices are pushed.
    pub fn buffer_mut(&mut self, buffer: usize) -> &mut Buffer {
        &mut self.buffers[buffer]
    }

    /// Bytes not yet sent.
    pub fn remaining(&self) -> usize {
        self.slices[self.first..].iter().map(|(_, range)| range.len()).sum()
    }

    /// Slices not yet sent.
    pub fn slices_remaining(&self) -> usize {
        self.slices.len() - self.first
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.first == self.slices.len()
    }

    /// Notes that `sent` bytes went out.
    ///
    /// # Panics
    /// When that is more than was left.
    pub fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let (_, range) = &mut self.slices[self.first];
            if sent < range.len() {
                range.start += sent;
                return;
            }
            sent -= range.len();
            self.first += 1;
        }
    }

    /// Forgets everything but the first `buffers`; the others go back to their arenas, the gather's own memory is kept.
    pub fn clear(&mut self, buffers: usize) {
        self.buffers.truncate(buffers);
        self.slices.clear();
        self.first = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_disjoint_and_bounded() {
        let pool = BufferPool::new(64 << 10, 16 << 10).unwrap();
        assert_eq!((pool.capacity(), pool.buffer_max()), (64 << 10, 16 << 10));
        let mut held = Vec::new();
        for i in 0..16u8 {
            let mut buffer = pool.take(4096).unwrap();
            buffer.fill(i);
            assert_eq!(buffer.as_ptr() as usize % BUFFER_ALIGN, 0);
            held.push(buffer);
        }
        assert!(pool.take(1).is_none());
        for (i, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|&b| b == i as u8), "buffer {i} was overwritten");
        }
        drop(held);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn freed_neighbours_merge_up_to_the_largest_block() {
        let pool = BufferPool::new(16 << 10, 16 << 10).unwrap();
        let mut held: Vec<_> = (0..4).map(|_| pool.take(4096).unwrap()).collect();
        held.swap(1, 3);
        held.swap(0, 2);
        assert!(pool.take(8192).is_none());
        drop(held);
        assert_eq!(pool.take(16 << 10).map(|b| b.len()), Some(16 << 10));
    }

    #[test]
    fn the_lowest_address_is_taken_first() {
        let pool = BufferPool::new(1 << 20, 64 << 10).unwrap();
        let first = pool.take(100).unwrap().as_ptr();
        for _ in 0..1000 {
            assert_eq!(pool.take(100).unwrap().as_ptr(), first);
        }
    }

    #[test]
    fn an_odd_mix_never_overlaps_and_all_comes_back() {
        let pool = BufferPool::new(1 << 20, 256 << 10).unwrap();
        let mut held: Vec<Buffer> = Vec::new();
        let mut x = 12345u64;
        for _ in 0..20_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if x >> 63 == 0 && !held.is_empty() {
                held.swap_remove((x >> 33) as usize % held.len());
            } else if let Some(buffer) = pool.take(1 + (x >> 40) as usize % (256 << 10)) {
                let start = buffer.as_ptr() as usize;
                let end = start + buffer.capacity();
                assert!(held.iter().all(|b| b.as_ptr() as usize >= end || b.as_ptr() as usize + b.capacity() <= start));
                held.push(buffer);
            }
            let used: usize = held.iter().map(Buffer::capacity).sum();
            assert_eq!(pool.in_use(), used);
        }
        held.clear();
        assert_eq!(pool.in_use(), 0);
        let whole: Vec<_> = (0..4).map(|_| pool.take(256 << 10).unwrap()).collect();
        assert_eq!(whole.len(), 4);
    }

    #[test]
    fn a_gather_joins_adjacent_slices_and_advances_across_them() {
        let mut gather = Gather::new();
        let a = gather.push_buffer(Buffer::alone(100).unwrap());
        let b = gather.push_buffer(Buffer::alone(100).unwrap());
        gather.push_slice(a, 0..16);
        gather.push_slice(a, 16..32);
        gather.push_slice(b, 10..20);
        assert_eq!((gather.slices_remaining(), gather.remaining()), (2, 42));
        gather.advance(33);
        assert_eq!((gather.slices_remaining(), gather.remaining()), (1, 9));
        gather.advance(9);
        assert!(gather.is_empty());
    }
}
