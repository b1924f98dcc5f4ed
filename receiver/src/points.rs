//! Points, digests and old layers as a source hears of them: the wire's types made of the store's.

use farside_ledger::{PointFilter, State};
use farside_region::{LedgerPosition, Slot};
use farside_store::{GroupStore, PointInfo, PointsFound, StoreError, point_ends};
use farside_wire::{DigestRun, LedgerSlice, PointMemberInfo, PointPage, PointQuery, PointQueryKind};

use crate::found::Found;

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

/// A slice of the ledger in which old layers have the regions that their records name; of no layers if the ledger never went through `position`.
///
/// # Errors
/// A record that cannot be read any more, or what the file system says.
pub(crate) fn exact_slice(
    store: &GroupStore,
    mut slice: LedgerSlice,
    position: Option<LedgerPosition>,
) -> Result<LedgerSlice, StoreError> {
    if let Some(position) = position
        && !store.went_through(&position)?
    {
        return Ok(slice.rewound());
    }
    let forgotten = store.state().volume(slice.volume).and_then(|volume| volume.forgotten()).map(|forgotten| forgotten.slot);
    for layer in slice.layers.iter_mut().filter(|layer| Some(layer.slot) != forgotten) {
        layer.regions = store.touched(layer.slot, slice.volume)?;
    }
    Ok(slice)
}

/// Which points of a group somebody wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct PointsAsk {
    /// Those that hold the volume of this name.
    pub(crate) volume: Option<String>,
    /// Of them these. Says nothing of a volume.
    pub(crate) filter: PointFilter,
    /// Below this slot.
    pub(crate) below: Option<Slot>,
    /// At most so many, the newest.
    pub(crate) limit: usize,
}

impl PointsAsk {
    /// `None`: the group never had that volume.
    fn filter(&self, state: &State) -> Option<PointFilter> {
        let Some(name) = &self.volume else { return Some(self.filter.clone()) };
        let (volume, _) = state.volumes().find(|(_, volume)| volume.meta().name.as_str() == name)?;
        Some(PointFilter { volume: Some(volume), ..self.filter.clone() })
    }

    /// Those points.
    pub(crate) fn find(&self, state: &State, by: &Found) -> PointsFound {
        let none = || PointsFound { total: self.below.is_none().then_some(0), ..PointsFound::default() };
        self.filter(state).map_or_else(none, |filter| by.find_points(state, &filter, self.below, self.limit))
    }

    /// The oldest of all that the filter wants, and the newest.
    pub(crate) fn ends(&self, state: &State, by: &Found) -> Option<(PointInfo, PointInfo)> {
        let (mut oldest, mut newest) = point_ends(state, &self.filter(state)?)?;
        [&mut oldest, &mut newest].into_iter().for_each(|point| by.strip(point));
        Some((oldest, newest))
    }
}

/// The points that a source asks for, newest first.
pub(crate) fn point_page(store: &GroupStore, by: &Found, query: &PointQuery) -> PointPage {
    match &query.kind {
        PointQueryKind::Show { point } => {
            PointPage { points: store.point(*point).iter().map(wire_point).collect(), ..PointPage::default() }
        }
        PointQueryKind::List { filter, below, limit } => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX).clamp(1, PAGE_POINTS_MAX);
            let found = by.find_points(store.state(), filter, *below, limit);
            let mut page = PointPage::of(found.points.iter().map(wire_point), limit);
            page.more |= found.more;
            PointPage { total: found.total, ..page }
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
        label: point.label.clone(),
        ledger_time_ms: point.ledger_time_ms,
        pinned: !point.pins.is_empty(),
        members: point.members.iter().map(member).collect(),
    }
}
