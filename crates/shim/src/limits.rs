//! Every bound of the write path, in one place (L8).

/// The bounds of one volume (side buffer: of one group). The defaults fit a volume of terabytes; pools are never made larger
/// than the volume can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that one queue may have between mark and completion.
    pub in_flight_per_queue: usize,
    /// Bytes of granule masks. Exhausted: the region counts as "all granules".
    pub mask_pool_bytes: usize,
    /// Bytes of claim states of a cut. Exhausted: the group's epoch is demoted.
    pub claim_pool_bytes: usize,
    /// Bytes of content saved before it was overwritten, per group. Exhausted: the group's epoch is demoted.
    pub side_buffer_bytes: usize,
    /// The longest run that is claimed and read in one go, in bytes.
    pub claim_run_bytes: u64,
    /// The longest run of a pass that is read in one go, in bytes.
    pub pass_run_bytes: u64,
    /// The shortest run that a pass leaves out because it was marked again, in bytes. Reading on through shorter ones costs the
    /// disk less than stopping at each.
    pub left_run_bytes: u64,
    /// TRIM, WRITE_ZEROES and long writes are marked and passed on in pieces of at most this many bytes.
    pub piece_bytes: u64,
}

impl Limits {
    /// What production uses.
    pub const DEFAULT: Self = Self {
        in_flight_per_queue: 256,
        mask_pool_bytes: 16 << 20,
        claim_pool_bytes: 16 << 20,
        side_buffer_bytes: 32 << 20,
        claim_run_bytes: 64 << 10,
        pass_run_bytes: 1 << 20,
        left_run_bytes: 32 << 10,
        piece_bytes: 64 << 20,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Granules that a slot word can announce (15 bits).
pub(crate) const ANNOUNCE_GRANULES_MAX: u64 = (1 << 15) - 1;

const _: () = {
    let l = Limits::DEFAULT;
    let granule = farside_region::Geometry::GRANULE_BYTES;
    assert!(l.piece_bytes / granule < ANNOUNCE_GRANULES_MAX, "a piece, with a granule cut at either end, fits a slot word");
    assert!(l.claim_run_bytes <= 64 * granule, "a claim never crosses more than one word of the mask");
    assert!(l.side_buffer_bytes as u64 >= 64 * l.claim_run_bytes, "every queue can save at full depth for a while");
    assert!(l.in_flight_per_queue <= 1 << 15);
};
