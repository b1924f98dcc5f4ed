//! Points, digests and old layers as a source hears of them: the wire's types made of the store's.

use farside_ledger::{PointFilter, State};
use farside_region::{LedgerPosition, RegionSet, Slot};
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
/// † Nor if that, or what a layer touched, is in records that cannot be read any more: whoever is told that it never did stays as it is until a
/// person has all of it compared, or until the records are back. An error would end its session each time that it comes, and the store of
/// everybody be opened anew.
///
/// # Errors
/// What the file system says.
pub(crate) fn exact_slice(
    store: &GroupStore,
    slice: LedgerSlice,
    position: Option<LedgerPosition>,
) -> Result<LedgerSlice, StoreError> {
    let volume = slice.volume;
    let forgotten = store.state().volume(volume).and_then(|volume| volume.forgotten()).map(|forgotten| forgotten.slot);
    let touched = |slot| if Some(slot) == forgotten { Ok(None) } else { store.touched(slot, volume).map(Some) };
    exact(slice, position, |position| store.went_through(position), touched)
}

fn exact(
    mut slice: LedgerSlice,
    position: Option<LedgerPosition>,
    went_through: impl Fn(&LedgerPosition) -> Result<bool, StoreError>,
    touched: impl Fn(Slot) -> Result<Option<RegionSet>, StoreError>,
) -> Result<LedgerSlice, StoreError> {
    let mut tell = || {
        if let Some(position) = position
            && !went_through(&position)?
        {
            return Ok(false);
        }
        for layer in &mut slice.layers {
            if let Some(regions) = touched(layer.slot)? {
                layer.regions = regions;
            }
        }
        Ok(true)
    };
    match tell() {
        Ok(true) => Ok(slice),
        Ok(false) => Ok(slice.rewound()),
        Err(error @ StoreError::Inconsistent { .. }) => {
            tracing::error!(%error, "a host is told that the store is older than what it saw published");
            Ok(slice.rewound())
        }
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use farside_region::{RecordDigest, RegionIndex, Term, VolumeId};
    use farside_wire::{LedgerLayer, RequestId};

    use super::*;

    fn regions(of: &[u64]) -> RegionSet {
        let mut set = RegionSet::default();
        of.iter().for_each(|region| set.insert(RegionIndex(*region)));
        set
    }

    fn unreadable<T>() -> Result<T, StoreError> {
        Err(StoreError::Inconsistent { group: "web1/default".to_owned(), why: "neither record can be read".to_owned() })
    }

    fn gone<T>() -> Result<T, StoreError> {
        Err(StoreError::Io {
            doing: "reading",
            path: "/srv".into(),
            source: std::io::Error::from(std::io::ErrorKind::StorageFull),
        })
    }

    #[test]
    fn l6_what_nobody_can_tell_of_old_records_is_a_store_that_is_older_and_no_error() {
        let layers = [3, 9].map(|slot| LedgerLayer { slot: Slot(slot), term: Term(1), regions: RegionSet::default() });
        let slice = LedgerSlice {
            id: RequestId(1),
            volume: VolumeId([1; 16]),
            ancestor: true,
            layers: layers.to_vec(),
            more: true,
            head: None,
            current: None,
        };
        let position = Some(LedgerPosition { slot: Slot(2), digest: RecordDigest([2; 32]) });
        let touched = |slot: Slot| Ok((slot == Slot(3)).then(|| regions(&[7])));

        let told = exact(slice.clone(), position, |_| Ok(true), touched).expect("told");
        assert!(told.ancestor && told.more);
        assert_eq!(told.layers.iter().map(|layer| layer.regions.clone()).collect::<Vec<_>>(), [regions(&[7]), regions(&[])]);

        assert_eq!(exact(slice.clone(), position, |_| Ok(false), touched).expect("told"), slice.clone().rewound());
        assert_eq!(exact(slice.clone(), position, |_| unreadable(), touched).expect("told"), slice.clone().rewound());
        // No layer of which is not known what it touched is named, nor those before it.
        assert_eq!(exact(slice.clone(), position, |_| Ok(true), |_| unreadable()).expect("told"), slice.clone().rewound());
        // A disk that fails says nothing of what the ledger went through.
        assert!(exact(slice.clone(), position, |_| gone(), touched).is_err());
        assert!(exact(slice, position, |_| Ok(true), |_| gone()).is_err());
    }
}
