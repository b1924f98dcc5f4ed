//! The states of regions: which of them may be written without asking.
//!
//! ```text
//! COLD ──writer asks──► SETTING ──owner, after sync──► HOT ◄──writer, CAS, no I/O── COOLING ──owner, CAS as it builds──► COLD | COLD_ZERO
//!                                                       └──── cooler, when nobody mentions the region ────► COOLING
//! ```

/// Where a region is between "clean, bit clear" and "its bit is durable".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RegionState {
    /// The bit is (or is being made) clear: a writer must ask first.
    Cold = 0,
    /// As `Cold`, and its whole content is zero, on disk and published (T8). In memory only.
    ColdZero = 1,
    /// A writer asked; the owner is making the bit durable.
    Setting = 2,
    /// The bit is durable: writes go on at the price of one load.
    Hot = 3,
    /// The bit is durable, but on its way to be cleared; a writer takes it back by CAS.
    Cooling = 4,
}

impl RegionState {
    pub(crate) fn from_u8(state: u8) -> Self {
        match state {
            0 => Self::Cold,
            1 => Self::ColdZero,
            2 => Self::Setting,
            3 => Self::Hot,
            4 => Self::Cooling,
            _ => unreachable!("only states are stored"),
        }
    }
}
