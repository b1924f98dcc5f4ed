//! What accepted layers touched, asked for one after another in about the order in which they were published: then each costs a step, and no
//! search of a history; and nothing is kept of it.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;

use farside_region::{LayerKey, PackedRegions, RegionRange, Slot, VolumeId};

use crate::state::{LayerFact, State};
use crate::stored::{LayerName, Stored};

/// The regions that a layer touched; of old ones more: see [`State::is_exact`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Most layers of a long history: what is kept of old ones, and of those that are small.
    Range(RegionRange),
    /// Several ranges, or none.
    Several(Arc<PackedRegions>),
}

impl Touched {
    /// Of what is packed in these bytes.
    pub(crate) fn of(packed: &[u8], all: impl FnOnce() -> PackedRegions) -> Self {
        let mut ranges = PackedRegions::ranges_in(packed);
        match (ranges.next(), ranges.next()) {
            (Some(range), None) => Self::Range(range),
            _ => Self::Several(Arc::new(all())),
        }
    }
}

/// What a layer touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTouch {
    /// Which.
    pub key: LayerKey,
    /// These.
    pub touched: Touched,
}

impl From<&LayerFact> for LayerTouch {
    fn from(layer: &LayerFact) -> Self {
        let touched = layer.touched();
        Self { key: layer.key, touched: Touched::of(touched.packed(), || touched.clone()) }
    }
}

impl From<&LayerFact> for LayerName {
    fn from(layer: &LayerFact) -> Self {
        Self(layer.key)
    }
}

/// What somebody asks of layers.
pub(crate) trait OfLayer: Stored {
    fn of(layer: &LayerFact) -> Self;
    fn key(&self) -> &LayerKey;
}

impl OfLayer for LayerTouch {
    fn of(layer: &LayerFact) -> Self {
        layer.into()
    }

    fn key(&self) -> &LayerKey {
        &self.key
    }
}

impl OfLayer for LayerName {
    fn of(layer: &LayerFact) -> Self {
        layer.into()
    }

    fn key(&self) -> &LayerKey {
        &self.0
    }
}

/// Layers by their slots, one after the other.
type Table<'s, T> = Peekable<Box<dyn Iterator<Item = (Slot, T)> + 's>>;

pub(crate) struct InTurn<'s, T> {
    state: &'s State,
    /// How far whoever asks has come in each volume.
    volumes: BTreeMap<VolumeId, Table<'s, T>>,
    /// What was asked for out of turn last.
    other: Option<T>,
}

impl<'s, T: OfLayer + 's> InTurn<'s, T> {
    pub(crate) fn new(state: &'s State) -> Self {
        Self { state, volumes: BTreeMap::new(), other: None }
    }

    /// Of an accepted layer. `slot`: in which it came in, if whoever asks knows rightly.
    pub(crate) fn find(&mut self, key: &LayerKey, slot: Slot) -> Option<&T> {
        let volume = self.state.volume(key.volume)?;
        let table = self.volumes.entry(key.volume).or_insert_with(|| {
            let rows: Box<dyn Iterator<Item = (Slot, T)>> = Box::new(volume.layers.passing_as(T::of));
            rows.peekable()
        });
        while table.next_if(|(at, _)| *at < slot).is_some() {}
        let is_it = |(at, layer): &&(Slot, T)| *at == slot && layer.key() == key;
        match table.peek().filter(is_it) {
            Some((_, layer)) => Some(layer),
            // Whoever goes back is answered all the same.
            None => {
                self.other = self.state.layer(key).map(T::of);
                self.other.as_ref()
            }
        }
    }
}

/// See [`State::layers_in_turn`].
pub struct LayersInTurn<'s>(InTurn<'s, LayerTouch>);

impl State {
    /// For whoever asks for many of them: cheapest for the layers of a volume in the order of their publication.
    pub fn layers_in_turn(&self) -> LayersInTurn<'_> {
        LayersInTurn(InTurn::new(self))
    }
}

impl LayersInTurn<'_> {
    /// What an accepted layer touched. `slot`: in which it came in, if whoever asks knows rightly.
    pub fn touched(&mut self, key: &LayerKey, slot: Slot) -> Option<&LayerTouch> {
        self.0.find(key, slot)
    }
}

impl fmt::Debug for LayersInTurn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayersInTurn").field("volumes", &self.0.volumes.keys()).finish_non_exhaustive()
    }
}
