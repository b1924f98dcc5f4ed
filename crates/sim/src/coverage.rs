//! What the gate's seeds must meet: every fault of the plan, and every action that the state machines may ask for. A fault that
//! never strikes and an order that is never given prove nothing.

use farside_replication::{source, target};

use crate::plan::Fault;

/// Every fault, by the name under which [`crate::world::World::met`] counts it.
pub const FAULTS: &[(Fault, &str)] = &[
    (Fault::Crash, "fault: crash"),
    (Fault::Power, "fault: power"),
    (Fault::Stop, "fault: stop"),
    (Fault::Reset, "fault: reset"),
    (Fault::Partition, "fault: partition"),
    (Fault::ReceiverCrash, "fault: receiver crash"),
    (Fault::ReceiverPower, "fault: receiver power"),
    (Fault::ReadError, "fault: read error"),
    (Fault::DeadSector, "fault: dead sector"),
    (Fault::Hang, "fault: hang"),
    (Fault::MapError, "fault: map error"),
    (Fault::StoreFull, "fault: store full"),
    (Fault::Slow, "fault: slow"),
    (Fault::ClockJump, "fault: clock jump"),
    (Fault::StalledWriter, "fault: stalled writer"),
    (Fault::WriteError, "fault: write error"),
    (Fault::FlushError, "fault: flush error"),
    (Fault::Demote, "fault: demote"),
    (Fault::Pause, "fault: pause"),
    (Fault::Pin, "fault: pin"),
    (Fault::Resync, "fault: resync"),
    (Fault::Verify, "fault: verify"),
    (Fault::Rollback, "fault: rollback"),
    (Fault::Reinstall, "fault: reinstall"),
    (Fault::Clone, "fault: clone"),
    (Fault::StoreRollback, "fault: store rollback"),
    (Fault::Grow, "fault: grow"),
    (Fault::Offline, "fault: offline"),
    (Fault::Swap, "fault: swap"),
    (Fault::Past, "fault: past the tap"),
    (Fault::TornLedger, "fault: torn ledger"),
];

/// What happens only in runs that are about it.
pub const RARE_FAULTS: &[(Fault, &str)] =
    &[(Fault::Promote, "fault: promote"), (Fault::Rejoin, "fault: rejoin"), (Fault::Hooks, "fault: hooks")];

/// The name under which a fault is counted.
///
/// # Panics
/// When it is neither in [`FAULTS`] nor in [`RARE_FAULTS`].
pub fn name_of(fault: Fault) -> &'static str {
    FAULTS.iter().chain(RARE_FAULTS).find(|f| f.0 == fault).map(|f| f.1).expect("every fault has a name")
}

/// What a source may ask its driver for, and must in the gate.
pub const SOURCE_ACTIONS: &[&str] = &[
    "source: Send",
    "source: WriteHeader",
    "source: Switch",
    "source: Demote",
    "source: Release",
    "source: ReadPart",
    "source: FinishPart",
    "source: AbortPart",
    "source: Digests",
    "source: Cool",
    "source: Verify",
    "source: Heat",
    "source: HeatAll",
    "source: KeepHot",
    "source: LossKept",
    "source: WithdrawTrackingLost",
    "source: Removed",
    "source: Report",
];

/// The same of a target.
pub const TARGET_ACTIONS: &[&str] = &[
    "target: Send",
    "target: CloseSession",
    "target: Append",
    "target: Submitted",
    "target: DropLayer",
    "target: DropParts",
    "target: ReadDigests",
    "target: Policy",
    "target: Prune",
    "target: Report",
];

/// The name of an action; `None`: the simulator does not know it, and so cannot carry it out.
pub(crate) fn of_source(action: &source::Action) -> Option<&'static str> {
    use source::Action as A;
    Some(match action {
        A::Send { .. } => "source: Send",
        A::Disconnect { .. } => "source: Disconnect",
        A::WriteHeader { .. } => "source: WriteHeader",
        A::Switch { .. } => "source: Switch",
        A::Demote { .. } => "source: Demote",
        A::Release { .. } => "source: Release",
        A::ReadPart(_) => "source: ReadPart",
        A::FinishPart { .. } => "source: FinishPart",
        A::AbortPart { .. } => "source: AbortPart",
        A::Digests { .. } => "source: Digests",
        A::Cool { .. } => "source: Cool",
        A::Verify(_) => "source: Verify",
        A::Heat { .. } => "source: Heat",
        A::HeatAll { .. } => "source: HeatAll",
        A::KeepHot { .. } => "source: KeepHot",
        A::AdoptMeta { .. } => "source: AdoptMeta",
        A::LossKept { .. } => "source: LossKept",
        A::WithdrawTrackingLost { .. } => "source: WithdrawTrackingLost",
        A::Removed { .. } => "source: Removed",
        A::Quiesce { .. } => "source: Quiesce",
        A::CanCut { .. } => "source: CanCut",
        A::Resume { .. } => "source: Resume",
        A::Report { .. } => "source: Report",
        _ => return None,
    })
}

/// See [`of_source`].
pub(crate) fn of_target(action: &target::Action) -> Option<&'static str> {
    use target::Action as A;
    Some(match action {
        A::Send { .. } => "target: Send",
        A::CloseSession { .. } => "target: CloseSession",
        A::Append { .. } => "target: Append",
        A::Submitted { .. } => "target: Submitted",
        A::DropLayer { .. } => "target: DropLayer",
        A::DropParts { .. } => "target: DropParts",
        A::KeepEnd { .. } => "target: KeepEnd",
        A::ReadDigests { .. } => "target: ReadDigests",
        A::AnswerPoints { .. } => "target: AnswerPoints",
        A::Policy { .. } => "target: Policy",
        A::Prune => "target: Prune",
        A::AnswerLedger { .. } => "target: AnswerLedger",
        A::Report { .. } => "target: Report",
        _ => return None,
    })
}
