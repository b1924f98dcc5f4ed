//! The names of everything that can be wrong, in one place: each has a page in `docs/states/`, which `farside explain` prints.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)+) => {
        /// What a [`Reason`](crate::Reason) is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it is written in JSON, in metrics, and after `farside explain`.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

codes! {
    /// No `farside pair` yet.
    NotPaired = "not_paired",
    /// The other side is not reached.
    NotConnected = "not_connected",
    /// Packets travel over TCP, since UDP does not get through.
    OverTcp = "over_tcp",
    /// Somebody else answers at the receiver's address.
    WrongReceiver = "wrong_receiver",
    /// The receiver does not let this host in.
    ReceiverRefuses = "receiver_refuses",
    /// The two sides speak different versions.
    VersionMismatch = "version_mismatch",
    /// Somebody was refused at the receiver's door.
    RefusedPeer = "refused_peer",
    /// The configuration on disk is not the one that runs.
    ConfigurationStale = "configuration_stale",
    /// A configured volume is not served.
    NotServed = "not_served",
    /// The disk of a volume can be mounted past its tap at a boot.
    NotHidden = "not_hidden",
    /// A configured volume was not opened yet.
    Starting = "starting",
    /// The thread of a group does not answer.
    GroupSilent = "group_silent",
    /// The daemon is stopping.
    Stopping = "stopping",
    /// A person paused it.
    Paused = "paused",
    /// Histories have parted.
    Forked = "forked",
    /// The store is older than it was.
    TargetRewound = "target_rewound",
    /// Another copy was promoted.
    Fenced = "fenced",
    /// The volume became smaller.
    Shape = "shape",
    /// The backing became larger, and the tap did not.
    BackingGrown = "backing_grown",
    /// The key of an encrypted group is not there.
    KeyMissing = "key_missing",
    /// Groups of several hosts were not cut as one.
    CohortMissed = "cohort_missed",
    /// Applications were not quiesced for a point.
    HooksFailed = "hooks_failed",
    /// A volume was encrypted in another way before.
    KeyDiffers = "key_differs",
    /// The gateway encrypts what it keeps, and this volume began without.
    InClear = "in_clear",
    /// Changes may be unknown.
    TrackingLost = "tracking_lost",
    /// The host changes more than can be sent.
    NotConverging = "not_converging",
    /// Parts of the backing cannot be read.
    Degraded = "degraded",
    /// The backing could not be flushed.
    FlushFailed = "flush_failed",
    /// The intent map waits for its disk.
    MapWaits = "map_waits",
    /// A thread of a volume ended.
    Broken = "broken",
    /// The receiver's disk takes no more.
    GatewayFull = "gateway_full",
    /// The receiver's store cannot be used.
    StoreFailed = "store_failed",
    /// A group makes points without one of its volumes.
    VolumeNotInPoints = "volume_not_in_points",
    /// Nobody has said how many points are to be kept, where there are older ones.
    RetentionUnsaid = "retention_unsaid",
    /// What is dead cannot be deleted yet.
    DeletionWaits = "deletion_waits",
    /// Points wait to be published, since the bucket's requests are used up.
    PublicationWaits = "publication_waits",
    /// Files of the store do not verify.
    SegmentsDamaged = "segments_damaged",
    /// A record of a ledger does not verify.
    LedgerTorn = "ledger_torn",
    /// A point was read in full and is damaged, or could not be read.
    VerificationFailed = "verification_failed",
    /// Somebody else wrote to the target of a follower.
    FollowerDiverged = "follower_diverged",
    /// Somebody else may have written to the target of a follower beside an apply that was cut short.
    FollowerInDoubt = "follower_in_doubt",
    /// A follower cannot go on.
    FollowerFailed = "follower_failed",
    /// A copy was promoted.
    FailedOver = "failed_over",
    /// A group is being failed back.
    FailingBack = "failing_back",
}

impl Code {
    /// The one that is written so.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.word() == word)
    }

    /// Whether what it is said of gets no new point that could be restored in full, as long as it is so; where it says no more than that
    /// something else is wrong, points go on.
    pub fn stops_points(self) -> bool {
        match self {
            Self::NotPaired
            | Self::NotConnected
            | Self::WrongReceiver
            | Self::ReceiverRefuses
            | Self::VersionMismatch
            | Self::NotServed
            | Self::Starting
            | Self::GroupSilent
            | Self::Stopping
            | Self::Paused
            | Self::Forked
            | Self::TargetRewound
            | Self::Fenced
            | Self::Shape
            | Self::KeyMissing
            | Self::KeyDiffers
            | Self::TrackingLost
            | Self::NotConverging
            | Self::Broken
            | Self::GatewayFull
            | Self::StoreFailed
            | Self::VolumeNotInPoints
            | Self::PublicationWaits
            // New points lie above what is damaged.
            | Self::SegmentsDamaged
            | Self::Degraded
            | Self::LedgerTorn
            | Self::FailedOver
            | Self::FailingBack => true,
            Self::OverTcp
            | Self::RefusedPeer
            | Self::ConfigurationStale
            | Self::NotHidden
            | Self::BackingGrown
            | Self::CohortMissed
            | Self::HooksFailed
            | Self::InClear
            | Self::FlushFailed
            | Self::MapWaits
            | Self::RetentionUnsaid
            | Self::DeletionWaits
            | Self::VerificationFailed
            | Self::FollowerDiverged
            | Self::FollowerInDoubt
            | Self::FollowerFailed => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
