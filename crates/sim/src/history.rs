//! The judge of L6: one writer, one history. A machine that was rolled back, cloned or installed anew, and one that meets a
//! ledger which lost records, may not go on in silence (`Forked`, `TargetRewound`) – and nobody else may be refused.
//!
//! A *life* is one history of one machine: crashes, power cuts and planned stops are part of it; a rollback, a reinstallation
//! and the birth of a clone begin another, which remembers what was published only as far as the moment it was copied from.
//! The judge knows who sent each layer, and what its sender's durable header and bits said when he claimed; it never asks the
//! product what it thinks of them.

use std::collections::BTreeMap;

use farside_ledger::{LayerFact, State};
use farside_region::{LayerKey, LedgerPosition, RegionSet, Seq, Slot, Term, VolumeId};

use crate::site::Site;
use crate::world::World;

/// What stood on a machine's disks when it asked for a volume.
#[derive(Clone, Debug, Default)]
pub struct ClaimFacts {
    /// The ledger position in the header.
    pub position: Option<LedgerPosition>,
    /// The term in the header.
    pub confirmed: Option<Term>,
    /// The regions whose bit was set when the process began.
    pub inherited: RegionSet,
    /// A person had accepted, in that step.
    pub accepted: Option<u64>,
}

/// Who sent a layer.
#[derive(Clone, Debug)]
pub struct Author {
    /// Which machine.
    pub site: usize,
    /// In which of its lives.
    pub life: u64,
    /// How it came to its claim.
    pub claim: ClaimFacts,
}

/// Why a volume was refused, as far as a judge can tell reasons apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The history is not this disk's.
    Forked,
    /// The ledger lost what was seen.
    TargetRewound,
    /// Somebody was promoted in its place.
    Fenced,
}

/// Per volume, the newest record that published something of this history.
pub type Tips = Vec<Option<LedgerPosition>>;

/// What each life knows as its own.
#[derive(Clone, Debug, Default)]
pub struct Histories {
    tips: BTreeMap<u64, Tips>,
}

impl Histories {
    /// What a life knows, for a snapshot.
    pub fn tips(&self, world: &World, life: u64) -> Tips {
        self.tips.get(&life).cloned().unwrap_or_else(|| vec![None; world.volumes()])
    }

    /// A life begins with a copy.
    pub fn begin(&mut self, life: u64, tips: Tips) {
        self.tips.insert(life, tips);
    }

    /// A layer was accepted in `slot`.
    ///
    /// # Errors
    /// L6: its author had to be refused.
    pub fn on_layer(&mut self, world: &World, state: &State, volume: usize, key: LayerKey, slot: Slot) -> Result<(), String> {
        let Some(author) = world.authors.borrow().get(&key).cloned() else {
            return Err(format!("layer {key} was published and nobody sent it"));
        };
        if key.seq == Seq(1) {
            self.may_go_on(state, volume, key, slot, &author)?;
            world.site(author.site).yes_is_over(volume, &author.claim);
        }
        if author.site > 0 {
            world.met("a clone publishes");
        }
        let digest = state.digest_at(slot).expect("the record is in the ledger");
        let tips = self.tips.entry(author.life).or_insert_with(|| vec![None; world.volumes()]);
        tips[volume] = Some(LedgerPosition { slot, digest });
        for site in world.sites() {
            if (site.no, site.life.get()) != (author.site, author.life) {
                site.taint(volume, world.step.get());
            }
        }
        Ok(())
    }

    fn may_go_on(&self, state: &State, volume: usize, key: LayerKey, slot: Slot, author: &Author) -> Result<(), String> {
        let facts = &author.claim;
        let who = || format!("L6: v{volume} of site {} goes on with layer {key}", author.site);
        if facts.accepted.is_some() {
            return Ok(());
        }
        let before: Vec<&LayerFact> = state.layers_above(key.volume, None).filter(|l| l.slot < slot).collect();
        let Some(newest) = before.last() else { return Ok(()) };
        if facts.confirmed.is_none() {
            return Err(format!("T17: {} in a ledger that has layers, without a header, and nobody was asked", who()));
        }
        if let Some(position) = facts.position
            && !state.holds(&position)
        {
            return Err(format!("{}, though the ledger lost position {} of its header: TargetRewound", who(), position.slot));
        }
        if self.knows(state, author.life, volume, newest.slot) {
            return Ok(());
        }
        let known = facts.position.map(|p| p.slot);
        let foreign = before
            .iter()
            .filter(|l| Some(l.slot) > known)
            .find(|l| Some(l.key.term) != facts.confirmed || l.touched().regions().iter().any(|r| !facts.inherited.contains(r)));
        match foreign {
            Some(layer) => Err(format!("{} after layer {} of another history: Forked", who(), layer.key)),
            None => Ok(()),
        }
    }

    /// Whether the record in a slot is the newest that this life published.
    fn knows(&self, state: &State, life: u64, volume: usize, slot: Slot) -> bool {
        let tip = self.tips.get(&life).and_then(|tips| tips[volume]);
        tip.is_some_and(|tip| tip.slot == slot && state.holds(&tip))
    }

    /// A machine says that a volume is refused.
    ///
    /// # Errors
    /// L6: there is no reason.
    pub fn on_refusal(&self, world: &World, state: &State, site: &Site, volume: usize, why: Refusal) -> Result<(), String> {
        let id: VolumeId = world.names.ids[volume];
        let start = &site.start.borrow()[volume];
        let newest = state.layers_above(id, None).last();
        let right = match why {
            Refusal::TargetRewound => {
                start.position.is_some_and(|p| !state.holds(&p)) || world.rewound_at.get() > site.attached_at.get()
            }
            Refusal::Forked => {
                let foreign = newest.is_some_and(|l| !self.knows(state, site.life.get(), volume, l.slot));
                let headless = start.confirmed.is_none() && newest.is_some();
                // Two that claim in turns need not have published anything.
                foreign || headless || world.sites().len() > 1
            }
            Refusal::Fenced => unreachable!("another judge's"),
        };
        if right { Ok(()) } else { Err(format!("L6: v{volume} of site {} says {why:?} without a reason", site.no)) }
    }
}
