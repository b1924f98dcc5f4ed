//! The keys of encrypted groups that this gateway was given, for what is done with their content here.
//!
//! Invariants: without a `[[key]]` of a group nothing here can read what it sends, and what needs that says so; a key is held no longer than
//! the configuration names what unwraps it; and nothing is unwrapped on a group's own thread, since a program that keeps keys may take its time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use farside_keys::Keeper;
use farside_store::{GroupNames, StoreError, Unlocking};

use crate::config::Config;

/// What was unwrapped so far.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    given: Mutex<BTreeMap<GroupNames, (Option<Keeper>, Arc<Unlocking>)>>,
}

impl Keys {
    /// Forgets what the configuration does not name any more.
    pub(crate) fn keep_those_of(&self, config: &Config) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|names, (keeper, _)| keeper.as_ref() == config.keeper_of(names));
    }

    /// For a group, as the configuration has it now.
    pub(crate) fn of(&self, config: &Config, names: &GroupNames) -> Arc<Unlocking> {
        let keeper = config.keeper_of(names);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match given.get(names) {
            Some((known, unlocking)) if known.as_ref() == keeper => Arc::clone(unlocking),
            _ => {
                let unlocking = Arc::new(Unlocking::new(keeper.cloned()));
                given.insert(names.clone(), (keeper.cloned(), Arc::clone(&unlocking)));
                unlocking
            }
        }
    }
}

/// What a store says, in words for who can give this gateway a key.
pub(crate) fn words(error: &StoreError) -> String {
    let StoreError::KeyNeeded { volume, mode, key, wrapped, why } = error else { return error.to_string() };
    format!(
        "volume {volume} is encrypted {mode} with the key {key}, and this gateway cannot read it: {why}. The key is wrapped by: {wrapped}. Name \
         what unwraps it in receiver.toml (a [[key]] with `of` and `key`) and reload the receiver; or restore the volume with its key"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GivenKey;

    #[test]
    fn a_key_is_held_as_long_as_the_configuration_names_it() {
        let name = |text: &str| text.parse().expect("a name");
        let names = GroupNames::new(name("web"), name("db"));
        let with = |path: &str| {
            let keeper = Keeper::File(path.into());
            Config { keys: vec![GivenKey { of: Some(names.clone()), keeper }], ..Config::default() }
        };
        let keys = Keys::default();
        let first = keys.of(&with("/a"), &names);
        assert!(Arc::ptr_eq(&first, &keys.of(&with("/a"), &names)), "unwrapped once");
        assert!(!Arc::ptr_eq(&first, &keys.of(&with("/b"), &names)));
        keys.keep_those_of(&Config::default());
        assert_eq!(Arc::strong_count(&first), 1, "nothing here holds it any more");
    }
}
