//! Accepted layers, asked for one after another in about the order in which they were published: then each costs a step, and no search of a
//! history.

use std::collections::BTreeMap;
use std::collections::btree_map::Iter;
use std::iter::Peekable;

use farside_region::{LayerKey, Seq, Slot, Term, VolumeId};

use crate::state::{LayerFact, State};

/// See [`State::layers_in_turn`].
#[derive(Debug)]
pub struct LayersInTurn<'s> {
    state: &'s State,
    volumes: BTreeMap<VolumeId, Reached<'s>>,
}

/// How far whoever asks has come in a volume.
#[derive(Debug)]
struct Reached<'s> {
    slots: Peekable<Iter<'s, (Term, Seq), Slot>>,
    layers: Peekable<Iter<'s, Slot, LayerFact>>,
}

impl State {
    /// The same as [`State::layer`], for whoever asks for many of them: cheapest for the layers of a volume in the order of their publication.
    pub fn layers_in_turn(&self) -> LayersInTurn<'_> {
        LayersInTurn { state: self, volumes: BTreeMap::new() }
    }
}

impl<'s> LayersInTurn<'s> {
    /// An accepted layer.
    pub fn layer(&mut self, key: &LayerKey) -> Option<&'s LayerFact> {
        let volume = self.state.volume(key.volume)?;
        let reached = self.volumes.entry(key.volume).or_insert_with(|| {
            let (slots, layers) = volume.in_order();
            Reached { slots: slots.peekable(), layers: layers.peekable() }
        });
        // Whoever goes back is answered all the same.
        reached.find((key.term, key.seq)).or_else(|| self.state.layer(key))
    }
}

impl<'s> Reached<'s> {
    fn find(&mut self, wanted: (Term, Seq)) -> Option<&'s LayerFact> {
        while self.slots.next_if(|(key, _)| **key < wanted).is_some() {}
        let slot = self.slots.peek().filter(|(key, _)| **key == wanted).map(|(_, slot)| **slot)?;
        while self.layers.next_if(|(at, _)| **at < slot).is_some() {}
        self.layers.peek().filter(|(at, _)| **at == slot).map(|(_, layer)| *layer)
    }
}
