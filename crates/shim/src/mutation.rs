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
    /// The cooler begins a region again whose earlier entry still waits at the owner.
    CoolBesideEntry = 1 << 10,
    /// A flush that failed leaves no trace but the answer to whoever asked for it.
    FailedFlushForgotten = 1 << 11,
    /// A failed flush takes back no region that is on its way to be cleared.
    FailedFlushSparesCooling = 1 << 12,
    /// The cooler trusts its own flush though another one that overlapped it failed.
    FlushBesideFailedCounts = 1 << 13,
    /// The next attach of the same boot does not hear that a flush failed.
    FailedFlushEndsWithAttach = 1 << 14,
    /// A request looks only at the last of its regions.
    LookAtLastRegion = 1 << 15,
    /// A request that promises allocated space completes over COLD_ZERO without doing anything.
    NoHoleSkipsZero = 1 << 16,
    /// A region that was zero once cools to COLD_ZERO ever after.
    ZeroFlagOutlives = 1 << 17,
    /// Growth sets the bits of new regions only.
    OldLastStaysCold = 1 << 18,
    /// A newer write does not wait, during a grace, for older marks under way.
    NoParking = 1 << 19,
    /// A switch takes the map while marks are under way.
    NoGrace = 1 << 20,
    /// A write that finds no room for what it overwrites waits for some.
    FullBufferHolds = 1 << 21,
    /// The owner writes the slot that holds the newest image.
    NewestSlot = 1 << 22,
    /// A switch clears the marks of what it froze where writers are marking now.
    ClearedInPlace = 1 << 23,
    /// A write stays announced while it waits for older marks under way.
    WaitAnnounced = 1 << 24,
    /// A pass looks at the open map without being announced.
    LeaveOutUnannounced = 1 << 25,
    /// A write reaches the backing device, and no map.
    NoMark = 1 << 26,
    /// A failed flush that nobody was told of before the attach is told to nobody after it.
    UntoldFlushForgotten = 1 << 27,
    /// A write begins while its group is held.
    PastTheHold = 1 << 28,
    /// That a flush failed is told by an answer that nobody was sent.
    UnsentErrorIsTold = 1 << 29,
    /// What was zero is believed to be so, whoever wrote there.
    DoubtedZeroes = 1 << 30,
    /// A cut goes on whose map came to have whole regions for want of masks.
    WidenedCut = 1 << 31,
}

#[cfg(any(test, feature = "mutations"))]
impl Mutation {
    /// All of them by the names that [`farside_region::mutation`] goes by.
    const NAMED: &[(&str, Self)] = &[
        ("mark before intent", Self::MarkBeforeIntent),
        ("read-then-announce", Self::ReadThenAnnounce),
        ("cool a region that somebody still mentions", Self::CoolMentioned),
        ("clear without flush", Self::ClearWithoutFlush),
        ("clear before the header", Self::ClearBeforeHeader),
        ("clear in the cooling window", Self::ClearInCoolingWindow),
        ("next page write before the sync", Self::WriteBeforeSync),
        ("trust a torn page", Self::TrustTornPage),
        ("pass without draining", Self::PassWithoutDraining),
        ("save without claim", Self::SaveWithoutClaim),
        ("hole: two cooling rounds", Self::CoolBesideEntry),
        ("T14 a failed flush is forgotten", Self::FailedFlushForgotten),
        ("hole: a failed flush spares COOLING regions", Self::FailedFlushSparesCooling),
        ("hole: a flush beside a failed one counts", Self::FlushBesideFailedCounts),
        ("hole: failed flush forgotten at the next attach", Self::FailedFlushEndsWithAttach),
        ("hole: an untold failed flush dies with its daemon", Self::UntoldFlushForgotten),
        ("hole: a write over two regions looks at one again", Self::LookAtLastRegion),
        ("T8 a NO_HOLE request takes the COLD_ZERO way", Self::NoHoleSkipsZero),
        ("T8 the zero flag outlives its region's content", Self::ZeroFlagOutlives),
        ("T8 zeroes are believed after somebody else has written", Self::DoubtedZeroes),
        ("T12 the old last region stays as it was", Self::OldLastStaysCold),
        ("no parking on announced extents", Self::NoParking),
        ("a cut goes on for want of masks", Self::WidenedCut),
        ("no grace", Self::NoGrace),
        ("L1 a full side buffer holds the write", Self::FullBufferHolds),
        ("a page overwrites its newest slot", Self::NewestSlot),
        ("marks are cleared in place", Self::ClearedInPlace),
        ("a write waits while it is announced", Self::WaitAnnounced),
        ("a pass leaves out without being announced", Self::LeaveOutUnannounced),
        ("R13 a write is not marked", Self::NoMark),
        ("a write begins while its group is held", Self::PastTheHold),
        ("hole: an answer that was never sent tells of a failed flush", Self::UnsentErrorIsTold),
    ];
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

    /// Those that are switched on for this thread.
    pub fn of_this_thread() -> Self {
        let on = Mutation::NAMED.iter().filter(|(name, _)| farside_region::mutation::on(name));
        on.fold(Self::default(), |set, (_, mutation)| set.with(*mutation))
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
            let _ = &$volume;
            false
        }
    }};
}
pub(crate) use mutated;
