//! The judge of promotions (L6): who may publish, and when that ends.
//!
//! - A volume's generation never becomes lower. A machine claims a volume only if it knows of every promotion of that volume before:
//!   a person who knew said that it goes on, or it took part in that promotion's history.
//! - What a machine publishes lies in a term that it claimed itself, which is the newest of that volume.
//! - Once a failover is said to be done, whoever does not know of it publishes nothing, of any volume.
//! - Who takes a history back from a point that his disk was brought to does so only if there is none after it.
//!
//! The judge goes by what machines asked for, what persons said, and the records themselves; never by what the product thinks of them.

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{LayerKey, Slot};

use crate::site::Site;
use crate::world::World;

/// See the head of the file.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    volumes: BTreeMap<usize, Newest>,
    /// By site and volume: the generation of its newest accepted claim.
    earned: BTreeMap<(usize, usize), u64>,
    /// Of the last failover that was said to be done.
    promoted: u64,
}

/// The newest accepted claim of a volume.
#[derive(Clone, Debug)]
struct Newest {
    generation: u64,
    term: u64,
    /// Who asked for it; nobody did of those by which the gateway fences.
    by: BTreeSet<Asker>,
    /// The step at which it came, and the process that put it.
    put: (u64, [u8; 16]),
}

/// Who asked for a claim of a volume under a generation, having looked up to a slot.
pub type Claimants = BTreeMap<(usize, u64, Option<Slot>), BTreeSet<Asker>>;

/// A process of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asker {
    /// The machine.
    pub site: usize,
    /// The step at which the process began.
    pub attached_at: u64,
}

/// An accepted claim.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Of which volume.
    pub volume: usize,
    /// Where.
    pub slot: Slot,
    /// Under which generation.
    pub generation: u64,
    /// Who asked for one like it; nobody: the gateway put it.
    pub by: BTreeSet<Asker>,
    /// The receiver's process that put it.
    pub writer: [u8; 16],
}

impl Succession {
    /// The generation of a volume; 0: nobody claimed it yet.
    pub fn generation(&self, volume: usize) -> u64 {
        self.volumes.get(&volume).map_or(0, |newest| newest.generation)
    }

    /// The newest promotion that a machine knows of.
    fn knows(&self, world: &World, site: usize, volume: usize) -> u64 {
        let permitted = world.site(site).permitted.borrow()[volume];
        permitted.max(self.earned.get(&(site, volume)).copied().unwrap_or(0))
    }

    /// A claim was accepted. `newest`: the newest point that holds the volume.
    ///
    /// # Errors
    /// L6: nobody may have made it.
    pub fn on_claim(&mut self, world: &World, claimed: Claimed, newest: Option<Slot>) -> Result<(), String> {
        let Claimed { volume, slot, generation, by, writer } = claimed;
        let before = self.generation(volume);
        let who = || format!("the claim of v{volume} in slot {slot} under generation {generation}");
        if generation < before {
            return Err(format!("L6: {} was accepted, and the volume is at generation {before}", who()));
        }
        let may = |site: &usize| self.knows(world, *site, volume) >= before;
        let rightful: Vec<usize> = by.iter().map(|by| by.site).filter(may).collect();
        if !by.is_empty() && rightful.is_empty() {
            return Err(format!("L6: {} is of {by:?}, who did not know of generation {before}", who()));
        }
        for site in rightful {
            let at = world.site(site).takes_back.borrow_mut()[volume].take();
            if let Some(at) = at
                && newest > Some(at)
            {
                return Err(format!("L6: {} takes back point {at}, and {newest:?} was published after it", who()));
            }
            self.earned.insert((site, volume), generation);
        }
        self.volumes.insert(volume, Newest { generation, term: slot.0, by, put: (world.step.get(), writer) });
        Ok(())
    }

    /// A layer was accepted.
    ///
    /// # Errors
    /// L6: its author may not publish.
    pub fn on_layer(&self, world: &World, volume: usize, key: LayerKey) -> Result<(), String> {
        let site = world.authors.borrow().get(&key).map_or(0, |author| author.site);
        let who = || format!("L6: layer {key} of v{volume}, of site {site}, was published");
        let Some(newest) = self.volumes.get(&volume) else { return Err(format!("{}, and nobody claimed it", who())) };
        if newest.term != key.term.0 {
            return Err(format!("{}, and the newest claim is in slot {}", who(), newest.term));
        }
        if newest.by.iter().all(|by| by.site != site) {
            return Err(format!("{}, and its term was claimed by {:?}", who(), newest.by));
        }
        if self.knows(world, site, volume) < self.promoted {
            return Err(format!("{} after generation {} was promoted", who(), self.promoted));
        }
        Ok(())
    }

    /// A machine says that a volume is fenced.
    ///
    /// # Errors
    /// L6: there is no reason: nobody was promoted, or this very process was, as the receiver knows.
    pub fn on_fenced(&self, world: &World, site: &Site, volume: usize) -> Result<(), String> {
        let Some(newest) = self.volumes.get(&volume) else { return Ok(()) };
        let kept = site.state_dir.borrow()[volume].generation.max(1);
        let (entered_at, writer) = world.entered.get();
        let (told, told_at) = world.told.get();
        let is_known = newest.put.0 > entered_at && newest.put.1 == writer;
        // (Between the record and that, the simulator's receiver answers; the product's does not.)
        let is_told = told >= newest.term && told_at < site.connected_at.get();
        let is_own = newest.by.contains(&site.asker()) && is_known && is_told;
        if newest.generation > kept && !is_own {
            return Ok(());
        }
        let by: Vec<usize> = newest.by.iter().map(|by| by.site).collect();
        let what = format!("the claim in slot {} under generation {}, of {by:?}", newest.term, newest.generation);
        Err(format!("L6: v{volume} of site {} says Fenced without a reason: the newest is {what}", site.no))
    }

    /// A failover is said to be done.
    ///
    /// # Errors
    /// L6: somebody may still publish.
    pub fn on_promoted(&mut self, generation: u64) -> Result<(), String> {
        self.promoted = generation;
        let below = self.volumes.iter().find(|(_, newest)| newest.generation < generation);
        if let Some((volume, newest)) = below {
            return Err(format!("L6: generation {generation} was promoted, and v{volume} is at {}", newest.generation));
        }
        let held = self.volumes.iter().find(|(_, newest)| !newest.by.is_empty());
        held.map_or(Ok(()), |(volume, newest)| {
            Err(format!("L6: generation {generation} was promoted, and v{volume} was claimed last by {:?}", newest.by))
        })
    }
}
