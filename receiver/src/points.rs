//! Points, digests and old layers as a source hears of them: the wire's types made of the store's.

use farside_store::{GroupStore, PointInfo, StoreError};
use farside_wire::{DigestRun, LedgerSlice, PointMemberInfo, PointPage, PointQuery, PointQueryKind};

/// Points in one answer over the wire; large ones make it fewer.
const PAGE_POINTS_MAX: usize = 500;

pub(crate) fn wire_run(run: farside_store::DigestRun) -> DigestRun {
    match run {
        farside_store::DigestRun::Absent { granules } => DigestRun::Absent { granules },
        farside_store::DigestRun::Zero { granules } => DigestRun::Zero { granules },
        farside_store::DigestRun::Unreadable { granules } => DigestRun::Unreadable { granules },
        farside_store::DigestRun::Data(digests) => DigestRun::Data(digests),
    }
}

/// A slice of the ledger in which old layers have the regions that their records name.
///
/// # Errors
/// A record that cannot be read any more, or what the file system says.
pub(crate) fn exact_slice(store: &GroupStore, mut slice: LedgerSlice) -> Result<LedgerSlice, StoreError> {
    for layer in &mut slice.layers {
        layer.regions = store.touched(layer.slot, slice.volume)?;
    }
    Ok(slice)
}

/// The points that a source asks for, newest first.
pub(crate) fn point_page(store: &GroupStore, query: &PointQuery) -> PointPage {
    match query.kind {
        PointQueryKind::Show { point } => PointPage { points: store.point(point).iter().map(wire_point).collect(), more: false },
        PointQueryKind::List { volume, below, limit } => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, PAGE_POINTS_MAX);
            let wanted = |p: &PointInfo| volume.is_none_or(|volume| p.member(volume).is_some());
            PointPage::of(store.points_below(below).filter(wanted).map(|p| wire_point(&p)), limit)
        }
    }
}

fn wire_point(point: &PointInfo) -> farside_wire::PointInfo {
    let member = |m: &farside_store::MemberInfo| PointMemberInfo {
        name: m.name.clone(),
        layer: m.layer,
        volume_bytes: m.volume_bytes,
        unreadable_regions: u64::from(m.degraded),
    };
    farside_wire::PointInfo {
        slot: point.slot,
        digest: point.digest,
        epoch: point.epoch,
        ledger_time_ms: point.ledger_time_ms,
        pinned: !point.pins.is_empty(),
        members: point.members.iter().map(member).collect(),
    }
}
