//! The table of decoders: what each is given, what seals it, and what must hold.
//!
//! Every function of ours that reads bytes from a peer, a local client or a disk is in here or reached by what is. Plain
//! `serde` of two or three fields in a daemon's own state directory (`store.json`, `backing.json`, a group's remembered policy)
//! is left to `serde_json`.

mod control;
mod files;
mod intent;
mod keys;
mod layer;
mod ledger;
mod machines;
mod nbd;
mod transport;
mod wire;

use crate::engine::{Memory, Target, unmeasured};

/// All targets.
pub fn all() -> Vec<Target> {
    let groups: [&[Target]; 10] = [
        intent::TARGETS,
        keys::TARGETS,
        layer::TARGETS,
        ledger::TARGETS,
        wire::TARGETS,
        machines::TARGETS,
        nbd::TARGETS,
        transport::TARGETS,
        control::TARGETS,
        files::TARGETS,
    ];
    groups.concat()
}

/// For formats that carry no checksum.
const fn no_seal(_: &mut Vec<u8>) {}

/// Memory in proportion to the input and nothing else.
const fn small(bytes_per_byte: u64) -> Memory {
    Memory { fixed_bytes: 64 << 10, bytes_per_byte }
}

/// `value` was read from somewhere; what it is written as must read as the same.
fn reads_back<T: PartialEq + std::fmt::Debug>(value: &T, again: impl FnOnce() -> Option<T>) {
    unmeasured(|| assert_eq!(Some(value), again().as_ref(), "what was read does not read the same when it is written"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Limit, Outcome};
    use crate::runner::known;

    #[test]
    fn every_seed_is_accepted_and_a_seal_changes_nothing_that_is_right() {
        for target in all() {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} begins with nothing", target.name);
            for (i, seed) in seeds.into_iter().enumerate() {
                let name = format!("{}, seed {i}", target.name);
                assert!(seed.len() <= target.bytes_max, "{name} is too long");
                let outcome = target.try_input(&seed).unwrap_or_else(|what| panic!("{name}: {what}"));
                assert!(matches!(outcome, Outcome::Accepted(_)), "{name} is refused");
                let mut sealed = seed.clone();
                (target.seal)(&mut sealed);
                assert_eq!(sealed, seed, "{name}");
            }
        }
    }

    #[test]
    fn names_are_unique_and_make_good_folders() {
        let mut names: Vec<_> = all().iter().map(|target| target.name).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')), "{names:?}");
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    }

    /// What was found once is never found again.
    #[test]
    fn past_findings_stay_mended() {
        for target in all() {
            for input in known(&target).expect("readable") {
                target.try_input(&input).unwrap_or_else(|what| panic!("{}: {what}", target.name));
            }
        }
        let folders = std::fs::read_dir(crate::runner::corpus()).expect("it is committed");
        for folder in folders.map(|entry| entry.expect("readable").file_name()) {
            let name = folder.to_string_lossy().into_owned();
            assert!(name == "README.md" || all().iter().any(|target| target.name == name), "`{name}` belongs to no target");
        }
    }

    #[test]
    fn some_inputs_of_every_target_break_nothing() {
        for target in all() {
            let limit = Limit { time: std::time::Duration::from_secs(3600), executions_max: 300 };
            if let Err(finding) = target.fuzz(1, Vec::new(), limit, None) {
                panic!("{}: {} ({:02x?})", target.name, finding.what, finding.input);
            }
        }
    }
}
