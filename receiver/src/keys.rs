//! The keys of encrypted groups that this gateway was given, for what is done with their content here.
//!
//! Invariants: without a `[[key]]` of a group nothing here can read what it sends, and what needs that says so; a key is held no longer than
//! the configuration names what unwraps it; and nothing is unwrapped on a group's own thread, since a program that keeps keys may take its time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use farside_keys::Keeper;
use farside_ledger::VolumeMeta;
use farside_store::{GroupNames, StoreError, Unlocking};
use farside_wire::NO_KEY;

use crate::config::Config;

/// What was unwrapped so far.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    given: Mutex<BTreeMap<GroupNames, Given>>,
}

/// What unwraps a group's key, and what came of that.
type Given = (Option<Keeper>, Arc<Unlocking>);

impl Keys {
    /// Forgets what the configuration does not name any more.
    pub(crate) fn keep_those_of(&self, config: &Config) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|names, (keeper, _)| keeper.as_ref() == config.keeper_of(names));
        // Whoever mended something reads the configuration again.
        given.values().for_each(|(_, unlocking)| unlocking.forget_failures());
    }

    /// For a group, as the configuration has it now.
    pub(crate) fn of(&self, config: &Config, names: &GroupNames) -> Arc<Unlocking> {
        let keeper = config.keeper_of(names);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match given.get(names) {
            Some((known, unlocking)) if known.as_ref() == keeper => Arc::clone(unlocking),
            _ => {
                let unlocking = Arc::new(Unlocking::for_service(keeper.cloned()));
                given.insert(names.clone(), (keeper.cloned(), Arc::clone(&unlocking)));
                unlocking
            }
        }
    }
}

impl Keys {
    /// Whether the configuration still says what this was made of.
    pub(crate) fn is_current(&self, config: &Config, names: &GroupNames, unlocking: &Arc<Unlocking>) -> bool {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // † Who looked into a configuration that is just being replaced may have put its keeper back.
        let is_it = |(keeper, known): &Given| keeper.as_ref() == config.keeper_of(names) && Arc::ptr_eq(known, unlocking);
        given.get(names).is_some_and(is_it)
    }
}

/// Why nothing can be done with the content of a group's volume, if it is encrypted and this gateway was not given the key.
pub(crate) fn none_given(config: &Config, names: &GroupNames, volume: &VolumeMeta) -> Option<String> {
    let seal = volume.digest_key.seal().filter(|_| config.keeper_of(names).is_none())?;
    Some(format!(
        "volume {} is encrypted, and this gateway was not given its key: name what unwraps the key {} in receiver.toml, as a [[key]] of \"{names}\" (farside \
         key list shows how it is wrapped), and `farside reload`",
        volume.name, seal.key
    ))
}

/// What a store says, for a host. What a program said that keeps keys, and how it is called, is for the gateway's log.
pub(crate) fn words_for_host(error: &StoreError) -> String {
    let StoreError::KeyNeeded { volume, key, .. } = error else { return error.to_string() };
    tracing::warn!(volume, error = words(error), "a host cannot be answered");
    format!(
        "{NO_KEY}{volume}, which is encrypted: name what unwraps the key {key} in its receiver.toml, as a [[key]] of the group, and reload it; its log says \
         more. Or restore the volume with its key"
    )
}

/// What a store says, in words for who can give this gateway a key.
pub(crate) fn words(error: &StoreError) -> String {
    let StoreError::KeyNeeded { volume, mode, key, wrapped, why } = error else { return error.to_string() };
    format!(
        "volume {volume} is encrypted {mode} with the key {key}, and this gateway cannot read it: name what unwraps it in receiver.toml, as a [[key]] of the \
         group, and `farside reload`; or restore the volume with its key. The key is wrapped by: {wrapped}. Now: {why}"
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
        assert!(keys.is_current(&with("/a"), &names, &first) && !keys.is_current(&with("/b"), &names, &first));
        assert!(!Arc::ptr_eq(&first, &keys.of(&with("/b"), &names)));
        assert!(!keys.is_current(&with("/a"), &names, &first));
        keys.keep_those_of(&Config::default());
        assert_eq!(Arc::strong_count(&first), 1, "nothing here holds it any more");
    }
}
