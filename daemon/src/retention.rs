//! What the configuration says is kept of a group gives way only to a word.
//!
//! † The receiver gives up at once what less is said of, and that does not come back. A drop-in that is not there for a moment, or is empty as it is written,
//! says nothing, and without it a group has what the main file says, or the defaults. What was in force holds until a file says otherwise ([`Kept`]), over
//! restarts too, and status says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_control::{Grid, duration_words};
use farside_ledger::Policy;
use farside_region::Name;
use farside_service::said::Kept;
use serde::{Deserialize, Serialize};

use crate::config::{Config, GroupConfig, GroupSaid, PoliciesSaid, VolumeConfig, write_atomically};

const VERSION: u32 = 1;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    version: u32,
    groups: BTreeMap<Name, KeptPolicy>,
}

/// What was said of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KeptPolicy {
    keep: Option<Kept<u32>>,
    span_ms: Option<Kept<u64>>,
    grid: Option<Kept<String>>,
}

impl KeptPolicy {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What holds for want of a word.
#[derive(Debug, Default)]
pub(crate) struct Held {
    groups: BTreeMap<Name, HeldPolicy>,
    /// It cannot be read what was in force.
    pub(crate) is_unknown: bool,
    /// What there is to say about it.
    pub(crate) words: Vec<String>,
}

/// What holds of one group, and the file that said it.
#[derive(Debug, Default)]
struct HeldPolicy {
    keep: Option<(u32, PathBuf)>,
    span: Option<(Duration, PathBuf)>,
    grid: Option<(Grid, PathBuf)>,
}

impl Held {
    /// What is to be said of a group in that file, and with it what that very file said of it before: † it is there again then, and would say nothing
    /// of that.
    pub(crate) fn with(&self, group: &Name, said: GroupSaid, file: &Path) -> GroupSaid {
        fn of<T: Clone>(held: &Option<(T, PathBuf)>, file: &Path) -> Option<T> {
            held.as_ref().filter(|(_, said_it)| said_it == file).map(|(value, _)| value.clone())
        }
        let Some(held) = self.groups.get(group) else { return said };
        GroupSaid {
            keep: said.keep.or(of(&held.keep, file)),
            span: said.span.or(of(&held.span, file)),
            grid: said.grid.clone().or_else(|| of(&held.grid, file)),
            ..said
        }
    }
}

/// Takes up what the files of a configuration say, and lays over its groups what was in force and holds, where a volume that is `served` is of the group. † Before
/// that configuration is in force. `anew`: what a person has just said of a group, which the files say by now.
pub(crate) fn take_up(
    state_dir: &Path,
    config: &mut Config,
    served: &BTreeMap<Name, VolumeConfig>,
    anew: Option<(&Name, &GroupSaid)>,
) -> Held {
    let path = path(state_dir);
    let before = match read(&path) {
        Ok(before) => before,
        Err(why) => {
            // The receiver goes on with what it was told last.
            config.groups.values_mut().for_each(|group| group.policy_is_said = false);
            let words = vec![format!(
                "{}: {why}; what is to be kept of groups was in force by it, and receivers are told nothing new of that until it is mended; remove it if the \
                 configuration says all that is to be kept, and reload",
                path.display()
            )];
            return Held { words, is_unknown: true, ..Held::default() };
        }
    };
    let (now, mut held) = next(&before, config, served, anew);
    if now != before
        && let Err(error) = write_atomically(&path, &serde_json::to_string(&now).expect("plain data"))
    {
        held.words.push(format!("{error}: what is said now of what is to be kept is not known at the next start"));
    }
    held
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("retention.json")
}

fn read(path: &Path) -> Result<Known, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Known { version: VERSION, ..Known::default() }),
        Err(error) => return Err(error.to_string()),
    };
    match serde_json::from_str::<Known>(&text) {
        Ok(known) if known.version == VERSION => Ok(known),
        Ok(known) => Err(format!("it is of version {}, and this farsided knows {VERSION}", known.version)),
        Err(error) => Err(error.to_string()),
    }
}

fn next(
    before: &Known,
    config: &mut Config,
    served: &BTreeMap<Name, VolumeConfig>,
    anew: Option<(&Name, &GroupSaid)>,
) -> (Known, Held) {
    let Config { policies: said, groups, volumes, .. } = config;
    let there: BTreeSet<&Path> = said.iter().filter(|said| !said.is_blank).map(|said| said.file.as_path()).collect();
    let is_there = |file: &Path| there.contains(file);
    let names: BTreeSet<&Name> = before.groups.keys().chain(said.iter().flat_map(|said| said.groups.keys())).collect();
    let (mut now, mut all) = (Known { version: VERSION, ..Known::default() }, Held::default());
    for name in names {
        let of = |file: &'_ PoliciesSaid| file.groups.get(name).cloned().unwrap_or_default();
        let mut before = before.groups.get(name).cloned().unwrap_or_default();
        if let Some((_, said)) = anew.filter(|(group, _)| *group == name) {
            before.keep.take_if(|_| said.keep.is_some());
            before.span_ms.take_if(|_| said.span.is_some());
            before.grid.take_if(|_| said.grid.is_some());
        }
        let group = groups.get(name).cloned().unwrap_or_default();
        let span_default = GroupConfig { span_said: None, ..group.clone() }.span();
        let keeps = values(said, |file| of(file).keep);
        let spans = values(said, |file| of(file).span.map(ms));
        let grids = values(said, |file| of(file).grid.map(|grid| grid.to_string()));
        let (keep, holds_keep) = Kept::next(before.keep, (keeps, GroupConfig::default().keep), is_there, |a, b| *a.max(b));
        let (span_ms, holds_span) = Kept::next(before.span_ms, (spans, ms(span_default)), is_there, |a, b| *a.max(b));
        let (grid, holds_grid) = Kept::next(before.grid, (grids, Grid::default().to_string()), is_there, both);
        let held = HeldPolicy {
            keep: keep.as_ref().filter(|_| holds_keep).map(|kept| (kept.value, kept.file.clone())),
            span: span_ms.as_ref().filter(|_| holds_span).map(|kept| (Duration::from_millis(kept.value), kept.file.clone())),
            grid: grid.as_ref().filter(|_| holds_grid).and_then(|kept| Some((kept.value.parse().ok()?, kept.file.clone()))),
        };
        // Of a group that is gone it is remembered, and nobody need be told.
        if volumes.values().chain(served.values()).any(|volume| volume.group == *name) {
            let mut hold = |key: &str, value: &str, file: &Path| {
                all.words.push(format!(
                    "group {name}: {key} = {value} holds on: {} said it, and is not there (or is empty); put it back, or say what is to be kept: farside group \
                     set {name} --{key} …",
                    file.display()
                ));
            };
            held.keep.iter().for_each(|(keep, file)| hold("keep", &keep.to_string(), file));
            held.span.iter().for_each(|(span, file)| hold("span", &duration_words(*span), file));
            held.grid.iter().for_each(|(grid, file)| hold("grid", &grid.to_string(), file));
            if holds_keep || holds_span || holds_grid {
                groups.insert(name.clone(), over(group, &held));
                all.groups.insert(name.clone(), held);
            }
        }
        let kept = KeptPolicy { keep, span_ms, grid };
        if !kept.is_nothing() {
            now.groups.insert(name.clone(), kept);
        }
    }
    (now, all)
}

/// What each file says of a key, in their order.
fn values<T>(said: &[PoliciesSaid], of: impl Fn(&PoliciesSaid) -> Option<T>) -> Vec<(&Path, T)> {
    said.iter().filter_map(|file| Some((file.file.as_path(), of(file)?))).collect()
}

/// A group with what holds beside what is said of it now; of two grids the one that was in force.
fn over(group: GroupConfig, held: &HeldPolicy) -> GroupConfig {
    GroupConfig {
        keep: held.keep.as_ref().map_or(group.keep, |(keep, _)| group.keep.max(*keep)),
        span_said: held.span.as_ref().map(|(span, _)| group.span().max(*span)).or(group.span_said),
        grid: held.grid.as_ref().map_or_else(|| group.grid.clone(), |(grid, _)| grid.clone()),
        policy_is_said: true,
        ..group
    }
}

/// The second, if the first keeps nothing that it does not.
fn both(one: &String, other: &String) -> String {
    let of = |text: &str| text.parse::<Grid>().map(|grid| Policy::of(0, Duration::ZERO, grid.pairs()));
    match (of(one), of(other)) {
        (Ok(a), Ok(b)) if b.union(&a).grid == b.grid => other.clone(),
        _ => format!("{one}, {other}"),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of configuration, and the state directory of a host that reads it.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().expect("tempdir"));
            std::fs::create_dir_all(host.path("farsided.d")).expect("made");
            std::fs::create_dir(host.path("state")).expect("made");
            host.says("farsided.toml", "keep = 12");
            host
        }

        fn path(&self, file: &str) -> PathBuf {
            self.0.path().join(file)
        }

        fn says(&self, file: &str, keys: &str) {
            let source = match file {
                "farsided.toml" => {
                    "[source]\nname = \"web1\"\n[[volume]]\nname = \"data\"\ngroup = \"db\"\nbacking = \"/dev/x\"\n"
                }
                _ => "",
            };
            std::fs::write(self.path(file), format!("{source}[[group]]\nname = \"db\"\n{keys}\n")).expect("written");
        }

        fn config(&self) -> Config {
            Config::load(&self.path("farsided.toml")).expect("valid")
        }

        /// A reload or a start: keep, seconds of span, rules of the grid; and how many keys hold on.
        fn reads(&self) -> ((u32, u64, usize), usize) {
            let mut config = self.config();
            let words = take_up(&self.path("state"), &mut config, &BTreeMap::new(), None).words;
            assert!(words.iter().all(|words| words.contains("farsided.d/x.toml said it")), "{words:?}");
            let db = config.group(&"db".parse().expect("a name"));
            ((db.keep, db.span().as_secs(), db.grid.pairs().count()), words.len())
        }
    }

    #[test]
    fn what_is_to_be_kept_holds_on_while_the_file_that_said_it_is_away() {
        let host = Host::new();
        assert_eq!(host.reads(), ((12, 86_400, 0), 0));
        host.says("farsided.d/x.toml", "keep = 20\nspan = \"365d\"\ngrid = \"every 1h keep 30d, every 1d keep 1y\"");
        let whole = (20, 365 * 86_400, 2);
        assert_eq!(host.reads(), (whole, 0));
        std::fs::rename(host.path("farsided.d/x.toml"), host.path("away")).expect("moved");
        assert_eq!(host.reads(), (whole, 3));
        assert_eq!(host.reads(), (whole, 3), "nor is it forgotten");
        // It is being written.
        std::fs::write(host.path("farsided.d/x.toml"), "\n").expect("written");
        assert_eq!(host.reads(), (whole, 3));
        // More of one is taken up.
        host.says("farsided.toml", "keep = 30");
        assert_eq!(host.reads(), ((30, whole.1, 2), 2));
        std::fs::rename(host.path("away"), host.path("farsided.d/x.toml")).expect("moved");
        assert_eq!(host.reads(), (whole, 0), "the file that is there again says it");
        // In the file that said it: less, and nothing.
        host.says("farsided.d/x.toml", "keep = 2\nspan = \"1h\"");
        assert_eq!(host.reads(), ((2, 3600, 0), 0));
    }

    #[test]
    fn a_person_lowers_it_by_saying_so() {
        let host = Host::new();
        host.says("farsided.d/x.toml", "keep = 20\nspan = \"365d\"");
        host.reads();
        std::fs::remove_file(host.path("farsided.d/x.toml")).expect("removed");
        assert_eq!(host.reads(), ((20, 365 * 86_400, 0), 2));
        let said = GroupSaid { span: Some(Duration::from_secs(86_400)), ..GroupSaid::default() };
        host.config().write_group(&"db".parse().expect("a name"), &said).expect("written");
        assert_eq!(host.reads(), ((20, 86_400, 0), 1));
        host.says("farsided.toml", "keep = 11");
        assert_eq!(host.reads(), ((11, 86_400, 0), 0), "the main file says another number");
    }

    /// What a person edited and has not reloaded yet was written over, for ever, by what ran.
    #[test]
    fn only_what_is_said_through_the_api_is_written() {
        let host = Host::new();
        let running = host.config();
        host.says("farsided.toml", "keep = 12\nspan = \"365d\"");
        let said = GroupSaid { epoch_interval: Some(Duration::from_millis(500)), ..GroupSaid::default() };
        running.write_group(&"db".parse().expect("a name"), &said).expect("written");
        assert_eq!(host.reads(), ((12, 365 * 86_400, 0), 0));
    }

    #[test]
    fn what_cannot_be_read_tells_receivers_nothing() {
        let host = Host::new();
        host.says("farsided.d/x.toml", "span = \"365d\"");
        host.reads();
        let good = std::fs::read(path(&host.path("state"))).expect("it is kept");
        for text in ["{", r#"{"version": 2, "groups": {}}"#] {
            std::fs::write(path(&host.path("state")), text).expect("written");
            let mut config = host.config();
            let words = take_up(&host.path("state"), &mut config, &BTreeMap::new(), None).words;
            assert!(words[0].contains("retention.json") && words.len() == 1, "{words:?}");
            assert!(config.groups.values().all(|group| !group.policy_is_said));
        }
        std::fs::write(path(&host.path("state")), good).expect("mended");
        assert_eq!(host.reads(), ((12, 365 * 86_400, 0), 0));
    }
}
