//! Promotion, as far as replay decides it: which generation a promotion outranks, and the claims that end what those below it may publish.
//!
//! Deliberately not here: who is asked before, what becomes of what is staged, and in which order records are put (`receiver`).

use farside_region::{Generation, mutation};

use crate::record::{Claim, VolumeMeta};
use crate::state::State;

impl State {
    /// The highest generation of all volumes, which the next promotion must outrank: a source may have taken back some of them only.
    pub fn highest_generation(&self) -> Generation {
        let generations = self.volumes().map(|(_, volume)| volume.meta().generation);
        let highest =
            if mutation::on("L6 a promotion outranks one volume of the group") { generations.last() } else { generations.max() };
        highest.unwrap_or(Generation(1))
    }

    /// The generation under which a failover fences that was asked for under this one, above all that there was then: that one, unless a source
    /// may have taken its history back under the same number since. Its claims would be mistaken for the fence.
    pub fn fencing_generation(&self, asked: Generation) -> Generation {
        let highest = self.highest_generation();
        // Before the first promotion nobody has anything to take back: what is claimed under the second generation is the fence.
        let is_fence =
            highest == asked && asked <= Generation(2) || mutation::on("L6 a history that was taken back is called fenced");
        if highest < asked || is_fence { asked } else { Generation(highest.0.saturating_add(1)) }
    }

    /// A claim under that generation for each volume that is below it: once they are accepted, whoever claimed those volumes under a lower
    /// one publishes nothing and claims nothing any more. All volumes that were ever claimed are meant, also those that no point holds.
    pub fn claims_below(&self, generation: Generation) -> impl Iterator<Item = Claim> {
        let newest =
            mutation::on("L6 a promotion fences the volumes of its point only").then(|| self.points().values().next_back());
        let is_meant = move |id| newest.is_none_or(|point| point.is_some_and(|p| p.members.iter().any(|m| m.key.volume == id)));
        let below = self.volumes().filter(move |(id, volume)| volume.meta().generation < generation && is_meant(*id));
        below.map(move |(_, volume)| Claim {
            volume: VolumeMeta { generation, ..volume.meta().clone() },
            looked: self.head(),
            source: volume.source().clone(),
        })
    }
}
