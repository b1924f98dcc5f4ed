//! Bugs that tests switch on, to prove that tests and simulator notice them. Compiled only for tests and with the feature
//! `mutations`; the product has no trace of it.

/// One shortcut that loses data.
#[cfg(any(test, feature = "mutations"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mutation {
    /// The dirty bit is set, and the write goes on, while the intent bit is still on its way to the disk.
    MarkBeforeIntent = 1 << 0,
    /// The epoch counter is read before the slot announces the mark.
    ReadThenAnnounce = 1 << 1,
    /// The cooler does not ask who still mentions a region.
    CoolMentioned = 1 << 2,
    /// The cooler does not flush the backing device.
    ClearWithoutFlush = 1 << 3,
    /// The cooler does not wait for a durable header.
    ClearBeforeHeader = 1 << 4,
    /// A writer does not take a COOLING region back, and marks on.
    ClearInCoolingWindow = 1 << 5,
    /// Commits that only clear bits are not synced ([`crate::Commit::needs_sync`] says false).
    WriteBeforeSync = 1 << 6,
    /// A page with a torn slot is taken for an empty one.
    TrustTornPage = 1 << 7,
    /// A pass (and a cut) reads without waiting for older writes in flight.
    PassWithoutDraining = 1 << 8,
    /// Sender and savers read frozen granules without claiming them.
    SaveWithoutClaim = 1 << 9,
}

/// The set of mutations switched on for a volume.
#[cfg(any(test, feature = "mutations"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutations(u32);

#[cfg(any(test, feature = "mutations"))]
impl Mutations {
    /// Just this one.
    pub fn only(mutation: Mutation) -> Self {
        Self(mutation as u32)
    }

    /// Adds one.
    #[must_use]
    pub fn with(self, mutation: Mutation) -> Self {
        Self(self.0 | mutation as u32)
    }

    pub(crate) fn has(self, mutation: Mutation) -> bool {
        self.0 & mutation as u32 != 0
    }
}

/// `mutated!(volume, Name)`: whether that mutation is on; a constant `false` in the product.
macro_rules! mutated {
    ($volume:expr, $name:ident) => {{
        #[cfg(any(test, feature = "mutations"))]
        {
            $volume.mutations.has($crate::mutation::Mutation::$name)
        }
        #[cfg(not(any(test, feature = "mutations")))]
        {
            false
        }
    }};
}
pub(crate) use mutated;
