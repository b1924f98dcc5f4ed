//! `farside explain`: the pages of `docs/states/`, carried in the program, so that they are there on the worst day.

use farside_control::Code;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::print;

macro_rules! pages {
    ($($name:literal),+ $(,)?) => {
        /// Name and text of every page.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../docs/states/", $name, ".md")))),+];
    };
}

pages!(
    "streaming",
    "behind",
    "idle",
    "paused",
    "forked",
    "target_rewound",
    "fenced",
    "shape",
    "tracking_lost",
    "key_missing",
    "key_differs",
    "in_clear",
    "cohort_missed",
    "hooks_failed",
    "not_paired",
    "not_connected",
    "over_tcp",
    "wrong_receiver",
    "receiver_refuses",
    "version_mismatch",
    "refused_peer",
    "not_converging",
    "degraded",
    "flush_failed",
    "map_waits",
    "broken",
    "backing_grown",
    "not_served",
    "not_hidden",
    "starting",
    "group_silent",
    "stopping",
    "door_held",
    "configuration_stale",
    "gateway_full",
    "store_failed",
    "ledger_torn",
    "volume_not_in_points",
    "retention_unsaid",
    "deletion_waits",
    "publication_waits",
    "segments_damaged",
    "verification_failed",
    "follower_diverged",
    "follower_in_doubt",
    "follower_failed",
    "failed_over",
    "failing_back",
);

/// Prints a page, or what pages there are.
pub(crate) fn run(global: &Global, name: Option<&str>) -> Result<(), Failure> {
    let Some(name) = name else {
        let names: Vec<&str> = PAGES.iter().map(|(name, _)| *name).collect();
        return if global.json { print::json(&names) } else { print::out(&format!("{}\n", names.join("\n"))) };
    };
    let Some((name, text)) = page(name) else {
        return Err(Failure::new(Exit::NotFound, format!("there is no page `{name}`"), "see which there are: farside explain"));
    };
    if global.json { print::json(&serde_json::json!({"name": name, "text": text})) } else { print::out(text) }
}

/// `TargetRewound`, `target-rewound` and `target_rewound` are one name.
fn page(name: &str) -> Option<(&'static str, &'static str)> {
    let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    PAGES.iter().copied().find(|(known, _)| plain(known) == plain(name))
}

/// Whether a reason's code has a page here; a newer daemon may know more.
pub(crate) fn has_page(code: &str) -> bool {
    Code::ALL.iter().any(|known| known.word() == code)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use farside_control::source::{BehindWhat, Progress, VolumeState};

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_state_and_every_reason_has_its_page() {
        for code in Code::ALL {
            assert!(page(code.word()).is_some_and(|(name, _)| name == code.word()), "docs/states/{code}.md is missing");
        }
        let behind = VolumeState::Behind { what: BehindWhat::Comparing, progress: Progress::default() };
        let states = [
            VolumeState::Idle,
            behind,
            VolumeState::Streaming,
            VolumeState::Paused,
            VolumeState::Fenced,
            VolumeState::Forked,
            VolumeState::TargetRewound,
            VolumeState::TrackingLost,
            VolumeState::NotServed,
        ];
        for state in states {
            assert!(page(state.word()).is_some(), "{} has no page", state.word());
        }
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/states")).expect("pages") {
            let file = entry.expect("an entry").path();
            let name = file.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            assert!(page(&name).is_some(), "{name}.md is not in the program");
        }
    }

    #[test]
    fn every_page_says_cause_consequence_and_a_way_out_whose_commands_exist() {
        for (name, text) in PAGES {
            for part in ["# ", "**Cause.**", "**Consequence.**", "**Way out.**"] {
                assert!(text.contains(part), "{name} has no {part}");
            }
            let in_code = text.split("```\n").skip(1).step_by(2).flat_map(str::lines);
            let inline = text.split('`').skip(1).step_by(2).filter(|words| words.starts_with("farside explain "));
            let commands: Vec<&str> = in_code.chain(inline).filter(|line| line.starts_with("farside ")).collect();
            assert!(!commands.is_empty(), "{name} has no command");
            for command in commands {
                let words = command.split_whitespace().map(|word| word.trim_matches('\''));
                match Cli::try_parse_from(words) {
                    Err(error) if error.exit_code() != 0 => panic!("{name}: `{command}`: {error}"),
                    _ => {}
                }
                if let Some(other) = command.strip_prefix("farside explain ") {
                    assert!(page(other).is_some(), "{name} refers to {other}, which is not there");
                }
            }
        }
    }
}
