//! Who may hold how much of the buffers, so that a client that takes no replies keeps nobody from theirs.
//!
//! Invariant: each of the accounts (two per connection: what it reads, what it writes) has a guarantee, whether it uses it or
//! not, and all guarantees and one longest command fit the memory together. What is beyond a guarantee comes from the rest, and
//! somebody who waits for a long command is the only one who gets more of that. Bytes are counted as the pool rounds them.

use farside_blockio::BUFFER_ALIGN;

use super::Limits;

/// Bytes that a buffer of `len` takes from its pool.
pub(super) fn footprint(len: u64) -> u64 {
    len.max(BUFFER_ALIGN as u64).next_power_of_two()
}

/// The rules; what is held is told by the caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    capacity: u64,
    guarantee: u64,
    accounts: u64,
}

impl Shares {
    /// `capacity`: of the pool, in bytes.
    pub(super) fn new(limits: &Limits, capacity: usize) -> Self {
        let accounts = 2 * limits.connections_max as u64;
        let capacity = capacity as u64;
        Self { capacity, accounts, guarantee: (capacity - u64::from(limits.payload_max)) / accounts }
    }

    /// Whether an account that holds `held` may take `more` without asking who else holds what.
    pub(super) fn guarantees(&self, held: u64, more: u64) -> bool {
        held + more <= self.guarantee
    }

    /// Whether it may take that much of the rest. `all`: what every account that holds anything holds, this one too.
    pub(super) fn spares(&self, held: u64, more: u64, all: impl Iterator<Item = u64>) -> bool {
        let beyond: u64 = all.map(|held| held.saturating_sub(self.guarantee)).sum();
        let spare = self.capacity - self.accounts * self.guarantee;
        let adds = (held + more).saturating_sub(self.guarantee) - held.saturating_sub(self.guarantee);
        beyond + adds <= spare
    }

    /// Whether an account has more than its guarantee.
    pub(super) fn exceeds(&self, held: u64) -> bool {
        held > self.guarantee
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_guarantee_holds_whatever_others_hold_and_the_rest_is_one_longest_command() {
        let limits = Limits::default();
        let shares = Shares::new(&limits, limits.buffer_bytes_max);
        assert!(shares.guarantees(0, u64::from(limits.piece_bytes_max)), "a piece for each account");
        assert!(shares.spares(0, u64::from(limits.payload_max), [].into_iter()), "the longest command fits when nobody has more");
        // Somebody holds all that is not guaranteed: no more for anybody, but each has its own.
        let hog = [33 * MIB];
        assert!(!shares.spares(0, 2 * MIB, hog.into_iter()) && !shares.spares(33 * MIB, 1, hog.into_iter()));
        assert!(shares.guarantees(0, MIB) && !shares.guarantees(MIB, 1));
        // All guarantees used and the rest taken: that is the whole memory, not a byte more.
        let all = (limits.connections_max as u64 * 2 - 1) * MIB + 33 * MIB;
        assert_eq!(all, limits.buffer_bytes_max as u64);
        assert!(shares.exceeds(MIB + 1) && !shares.exceeds(MIB));
    }

    #[test]
    fn bytes_are_counted_as_the_pool_rounds_them() {
        assert_eq!([1, 4096, 4097, 600 << 10].map(footprint), [4096, 4096, 8192, MIB]);
    }
}
