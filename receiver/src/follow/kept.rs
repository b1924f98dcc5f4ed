//! How what a follower is changes: durably, and then in memory.
//!
//! Invariant: † of a follower that is being removed nothing is written any more, whoever still has it at hand: at the next start its target would be
//! followed again, which may be somebody else's by then.

use farside_region::Name;

use super::{Definition, Entry, lock};
use crate::state_dir::{StateDir, StateError};

impl Entry {
    /// Makes it what `changed` says, under the lock of what it was. `false`: it is being removed, and nothing was changed.
    ///
    /// # Errors
    /// [`StateError`]: it is what it was.
    pub(super) fn change(
        &self,
        state_dir: &StateDir,
        definition: &mut Definition,
        changed: Definition,
    ) -> Result<bool, StateError> {
        if definition.removed {
            return Ok(false);
        }
        state_dir.remember_follower(&self.name, &changed, Some(definition))?;
        *definition = changed;
        Ok(true)
    }

    /// Removes its files. Its thread has ended.
    ///
    /// # Errors
    /// [`StateError`]: some of it may be there at the next start. It does nothing any more, and can be removed again.
    pub(super) fn forget(&self, state_dir: &StateDir) -> Result<(), StateError> {
        lock(&self.definition).removed = true;
        state_dir.forget_follower(&self.name)
    }
}

/// Begins one. † What is known of the target of one whose file was lost is not known of this one's.
pub(super) fn begin(state_dir: &StateDir, name: &Name, definition: &Definition) -> Result<(), StateError> {
    state_dir.forget_follower_holds(name)?;
    state_dir.remember_follower(name, definition, None)
}

#[cfg(test)]
mod tests {
    use super::super::doubt_tests::{definition, name};
    use super::*;

    /// A pause that was on its way when the follower was removed.
    #[test]
    fn one_that_was_removed_is_not_there_again_at_the_next_start() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state_dir = StateDir::open(directory.path()).expect("free");
        let definition = definition("/dev/vg/standby");
        begin(&state_dir, &name("standby"), &definition).expect("written");
        let entry = Entry::new(name("standby"), definition);
        let pause = || {
            let mut definition = lock(&entry.definition);
            let changed = Definition { paused: true, ..definition.clone() };
            entry.change(&state_dir, &mut definition, changed).expect("written")
        };
        assert!(pause());
        assert!(matches!(&state_dir.followers().expect("read")[..], [(_, Ok(kept))] if kept.paused && !kept.removed));
        entry.forget(&state_dir).expect("removed");
        assert!(!pause() && state_dir.followers().expect("read").is_empty());
        assert!(!entry.may_be_promoted(2));
    }
}
