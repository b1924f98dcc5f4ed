//! The keys of encrypted groups that this gateway was given, or that it draws itself to keep groups encrypted at rest: for what is done with their
//! content here.
//!
//! Invariants: without a `[[key]]` of a group nothing here can read what its host encrypts, and what needs that says so; a key is held no longer than
//! the configuration names what unwraps it; and nothing is unwrapped on a group's own thread, since a program that keeps keys may take its time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use farside_ledger::VolumeMeta;
use farside_region::SealMode;
use farside_store::{GroupNames, Keepers, StoreError, Unlocking};
use farside_wire::NO_KEY;

use crate::config::Config;

/// What was unwrapped so far.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    given: Mutex<BTreeMap<GroupNames, Given>>,
}

/// What unwraps a group's key, and what came of that.
type Given = (Keepers, Arc<Unlocking>);

impl Keys {
    /// Forgets what the configuration does not name any more.
    pub(crate) fn keep_those_of(&self, config: &Config) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|names, (keepers, _)| *keepers == config.keepers_of(names));
        // Whoever mended something reads the configuration again.
        given.values().for_each(|(_, unlocking)| unlocking.forget_failures());
    }

    /// For a group, as the configuration has it now.
    pub(crate) fn of(&self, config: &Config, names: &GroupNames) -> Arc<Unlocking> {
        let keepers = config.keepers_of(names);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match given.get(names) {
            Some((known, unlocking)) if *known == keepers => Arc::clone(unlocking),
            _ => {
                let unlocking = Arc::new(Unlocking::for_service(keepers.clone()));
                given.insert(names.clone(), (keepers, Arc::clone(&unlocking)));
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
        let is_it = |(keepers, known): &Given| *keepers == config.keepers_of(names) && Arc::ptr_eq(known, unlocking);
        given.get(names).is_some_and(is_it)
    }
}

/// Whether this gateway has something that may unwrap the key of a volume that is encrypted like that.
pub(crate) fn is_given(config: &Config, names: &GroupNames, mode: SealMode) -> bool {
    !config.keepers_of(names).of(mode).is_empty()
}

/// Why nothing can be done with the content of a group's volume, if it is encrypted and this gateway was not given the key.
pub(crate) fn none_given(config: &Config, names: &GroupNames, volume: &VolumeMeta) -> Option<String> {
    let seal = volume.digest_key.seal().filter(|seal| !is_given(config, names, seal.mode))?;
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

/// Why a host that asked for the key of its group is not given it. The rest is for the gateway's log, as above.
pub(crate) fn no_key_for_host(names: &GroupNames, error: &StoreError) -> String {
    match error {
        StoreError::KeyNeeded { key, .. } => format!(
            "the gateway cannot unwrap the key {key}, with which it keeps {names} encrypted at rest: its log says why. Bring back what unwraps it, in \
             [[at_rest]] or as [[key]] of its receiver.toml, and `farside reload` there"
        ),
        StoreError::BadKey { .. } => format!(
            "the gateway is to keep {names} encrypted at rest, and a key for that cannot be kept: its log says why. Mend `keys` of [[at_rest]] in its \
             receiver.toml, and `farside reload` there"
        ),
        other => other.to_string(),
    }
}

/// What a store says, in words for who can give this gateway a key.
pub(crate) fn words(error: &StoreError) -> String {
    let StoreError::KeyNeeded { volume, mode, key, wrapped, why } = error else { return error.to_string() };
    format!(
        "volume {volume} is encrypted {mode} with the key {key}, and this gateway cannot read it: name what unwraps it in receiver.toml, as a [[key]] of the \
         group (or in its [[at_rest]], of what is encrypted there), and `farside reload`; or restore the volume with its key. The key is wrapped by: {wrapped}. Now: {why}"
    )
}

#[cfg(test)]
mod tests {
    use farside_keys::Keeper;

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
