//! What of a store may go that others read: what was given up, by the product's [`Leases`](farside_store::Leases), and checkpoints.
//!
//! Only where the plan has somebody who reads: else what was given up goes at once. Without the day that a part stays after it was given up for
//! those who have no lease: leases alone are to keep what is read.

use farside_ledger::{CheckpointPlace, CheckpointRoot, EncodedCheckpoint, Record};
use farside_region::Slot;
use farside_store::{GroupImage, Held, PartName};

use super::{CHECKPOINT_SLOTS, Receiver, layer_key, new_group};
use crate::exec::Owner;
use crate::shelf::group_names;
use crate::world::{SegmentKey, World};

/// A deletion hangs for so long at most, in microseconds.
const DELETION_HANGS_US: usize = 200_000;

/// Where a part that was given up was born; `None`: no record names it.
fn given_up(group: &GroupImage, part: &PartName) -> Option<Slot> {
    let published = group.state().published(&part.layer).filter(|known| known.given_up.contains(&part.number));
    published.map(|published| published.born)
}

fn debris(world: &World, group: &GroupImage) -> Vec<(SegmentKey, PartName)> {
    let store = world.store.borrow();
    let named = |name: &SegmentKey| (*name, PartName { layer: layer_key(world, name), number: name.3 });
    store.names().map(named).filter(|(_, part)| group.is_debris(part)).collect()
}

/// What is in the store and nobody reads: but for what somebody may, if there is somebody.
pub(super) fn unread_debris(world: &World, group: &GroupImage) -> Vec<SegmentKey> {
    let is_unread = |(_, part): &(SegmentKey, PartName)| world.plan.cascades == 0 || given_up(group, part).is_none();
    debris(world, group).into_iter().filter(is_unread).map(|(name, _)| name).collect()
}

/// Writes the checkpoints below a slot that are not there yet: as well those that receivers before this one died over.
pub(super) fn write_checkpoints(world: &World, end: u64) {
    if world.plan.cascades == 0 {
        return;
    }
    let names = group_names(world);
    let (mut group, mut previous) = (new_group(world), [0; 32]);
    for number in 0..end / CHECKPOINT_SLOTS {
        let place = CheckpointPlace { number, slots: CHECKPOINT_SLOTS };
        let (root, state) = (names.checkpoint(number), names.checkpoint_state(number));
        let there = world.store.borrow().other(root.as_str()).map(|root| root.bytes.clone());
        let bytes = there.unwrap_or_else(|| {
            for bytes in
                &world.store.borrow().ledger()[group.state().next_slot().0 as usize..((number + 1) * CHECKPOINT_SLOTS) as usize]
            {
                let (record, digest) = Record::decode(bytes).expect("the ledger of the simulator never rots");
                group.replay(&record, digest);
            }
            let encoded = EncodedCheckpoint::new(place, previous, group.state(), &group.parts().to_checkpoint());
            let mut store = world.store.borrow_mut();
            store.create_other(state.as_str(), encoded.state, world.service_ms());
            store.create_other(root.as_str(), encoded.root.clone(), world.service_ms());
            world.met("a checkpoint is written");
            encoded.root
        });
        match CheckpointRoot::decode(&bytes, world.names.group_id, place) {
            Ok((_, digest)) => previous = digest,
            Err(error) => return world.fail(format!("checkpoint {number} cannot be read: {error}")),
        }
    }
}

impl Receiver {
    /// Which process this is.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// What was given up and is still there, with the slot in which it was born.
    pub(crate) fn given_up(&self) -> Vec<(SegmentKey, PartName, Slot)> {
        let group = self.group.borrow();
        let all = debris(&self.world, &group).into_iter();
        all.filter_map(|(name, part)| Some((name, part, given_up(&group, &part)?))).collect()
    }

    /// Deletes what a look at the leases freed: some time.
    pub(crate) fn delete_freed(&self, due: Vec<(SegmentKey, PartName, Slot)>, held: &Held) {
        for (name, part, born) in due {
            if !held.frees(part.layer.volume, born) {
                self.world.met("a lease keeps what was given up");
                continue;
            }
            let world = self.world.clone();
            let at_us = world.now_us.get() + if world.chance(0.2) { world.dice(DELETION_HANGS_US) as u64 } else { 0 };
            self.world.spawn(self.owner, "delete", async move {
                let steps = world.steps();
                steps.pause().await;
                steps.until(|| world.now_us.get() >= at_us).await;
                world.say(|| format!("segment {name:?} is deleted"));
                world.met("a collector deletes");
                world.store.borrow_mut().delete(&name);
            });
        }
    }
}
