//! A follower that was on its way in a state directory which is older than the store.
//!
//! Invariant: † what was begun before a promotion that nobody noted here is not gone on with: its target may be what was promoted, and be in use by now.

use farside_region::Generation;
use farside_store::FollowStage;

use super::{Runner, Trouble};

impl Runner {
    /// Under which generation it was on its way when an earlier process ended; `None`: it was not, or that was asked already.
    pub(super) fn left_under(&mut self) -> Result<Option<Generation>, Trouble> {
        if self.has_looked {
            return Ok(None);
        }
        let holds = self.read_holds()?;
        let is_on_its_way = matches!(holds.following.stage, FollowStage::Applying { .. });
        Ok(holds.generation.filter(|_| is_on_its_way).map(Generation))
    }

    /// From here on it is under that one.
    pub(super) fn goes_under(&mut self, generation: Generation) -> Result<(), Trouble> {
        if self.read_holds()?.generation != Some(generation.0) {
            self.change_holds(|holds| holds.generation = Some(generation.0))?;
        }
        self.has_looked = true;
        Ok(())
    }

    /// A person decides what becomes of its target.
    pub(super) fn is_outlived(&mut self, generation: Generation) -> Trouble {
        let why = format!(
            "it was being written when a copy was promoted that this receiver does not know of (generation {generation} now; its state directory may be older than its \
             store): its target may be that copy, and be in use"
        );
        let diverge = |holds: &mut super::Holds| {
            if let FollowStage::Applying { between, to } = holds.following.stage {
                let at = between.map_or(to, |(low, _)| low);
                holds.following.stage = FollowStage::Diverged { at, regions: Vec::new(), why: why.clone() };
            }
        };
        match self.change_holds(diverge) {
            Ok(()) => Trouble::Diverged(why),
            Err(trouble) => trouble,
        }
    }
}
