//! The floor of retention: what `[retention] at_least_*` keeps whatever a source says, remembered in the state directory.
//!
//! Invariant: † a floor that was in force gives way only to a word ([`Kept`]), over restarts too, and status says what holds for want of one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use farside_ledger::{Grid, Policy};
use farside_service::said::Kept;
use serde::{Deserialize, Serialize};

use crate::config::{Changes, Config};
use crate::state_dir::StateDir;

/// What one file of the configuration says of the floor.
#[derive(Clone, Debug)]
pub(crate) struct FloorSaid {
    pub(crate) file: PathBuf,
    /// It has not a word of anything: it is being written.
    pub(crate) is_blank: bool,
    pub(crate) keep: Option<u32>,
    pub(crate) span_ms: Option<u64>,
    pub(crate) grid: Option<Grid>,
}

/// A floor that is in force, as far as it is above the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptFloor {
    keep: Option<Kept<u32>>,
    span_ms: Option<Kept<u64>>,
    grid: Option<Kept<Grid>>,
}

/// What holds of an earlier configuration.
#[derive(Debug, Default)]
pub(crate) struct Floor {
    now: Mutex<Holds>,
}

#[derive(Debug, Default)]
struct Holds {
    /// It cannot be read what was in force: nothing is given up.
    is_unknown: bool,
    /// Beside the floor of the configuration that runs.
    beside: Option<Policy>,
}

/// What is to be said about it.
#[derive(Debug, Default)]
pub(crate) struct FloorNews {
    /// The keys of which more holds than the configuration says.
    keys: Vec<&'static str>,
    pub(crate) words: Vec<String>,
}

impl FloorNews {
    /// Takes out what does not come about.
    pub(crate) fn correct(&self, changes: &mut Changes) {
        changes.live.retain(|change| !self.keys.iter().any(|key| change.starts_with(&format!("[retention] {key} "))));
    }
}

impl Floor {
    /// What is kept where a source wants `policy`; `None`: it is not known.
    pub(crate) fn over(&self, config: &Config, policy: &Policy) -> Option<Policy> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = config.retention.floor(policy);
        (!now.is_unknown).then(|| now.beside.as_ref().map_or(floor.clone(), |beside| beside.union(&floor)))
    }

    /// Takes up what the files say. † Before the configuration that they make is in force.
    pub(crate) fn take_up(&self, state_dir: &StateDir, said: &[FloorSaid]) -> FloorNews {
        let before = match state_dir.floor() {
            Ok(before) => before,
            Err(error) => {
                self.now.lock().unwrap_or_else(PoisonError::into_inner).is_unknown = true;
                let words = format!(
                    "{error}: what [retention] at_least_… was in force is not known, and no point is given up until it is; mend the file, \
                     or, if it is damaged and the configuration says all that is to be kept, remove it"
                );
                tracing::error!("{words}");
                return FloorNews { keys: Vec::new(), words: vec![words] };
            }
        };
        let (kept, beside, mut news) = next(before.clone().unwrap_or_default(), said);
        if before.unwrap_or_default() != kept
            && let Err(error) = state_dir.remember_floor(&kept)
        {
            let words = format!("{error}: what [retention] at_least_… says now is not known at the next start");
            news.words.push(words);
        }
        news.words.iter().for_each(|words| tracing::warn!("{words}"));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Holds { is_unknown: false, beside };
        news
    }
}

fn next(before: KeptFloor, said: &[FloorSaid]) -> (KeptFloor, Option<Policy>, FloorNews) {
    let there: BTreeSet<&Path> = said.iter().filter(|said| !said.is_blank).map(|said| said.file.as_path()).collect();
    let is_there = |file: &Path| there.contains(file);
    let keeps = said.iter().filter_map(|said| Some((said.file.as_path(), said.keep?))).collect();
    let spans = said.iter().filter_map(|said| Some((said.file.as_path(), said.span_ms?))).collect();
    let grids = said.iter().filter_map(|said| Some((said.file.as_path(), said.grid.clone()?))).collect();
    let both = |a: &Grid, b: &Grid| {
        let of = |grid: &Grid| Policy { keep: 0, span_ms: 0, grid: grid.clone() };
        // In either order, since only rules count: more of them, or for longer.
        of(b).union(&of(a)).grid
    };
    let (keep, holds_keep) = Kept::next(before.keep, (keeps, 1), is_there, |a, b| *a.max(b));
    let (span_ms, holds_span) = Kept::next(before.span_ms, (spans, 0), is_there, |a, b| *a.max(b));
    let (grid, holds_grid) = Kept::next(before.grid, (grids, Grid::default()), is_there, both);

    let (mut beside, mut news) = (Policy::without_grid(0, 0), FloorNews::default());
    let mut hold = |key: &'static str, value: String, file: &Path| {
        let words = format!(
            "[retention] {key} = {value} holds on: {} said it, and is not there (or is empty); put it back, or say in it, or anew in another \
             file, what is to be kept at least",
            file.display()
        );
        news.keys.push(key);
        news.words.push(words);
    };
    if let Some(kept) = keep.as_ref().filter(|_| holds_keep) {
        beside.keep = kept.value;
        hold("at_least_keep", kept.value.to_string(), &kept.file);
    }
    if let Some(kept) = span_ms.as_ref().filter(|_| holds_span) {
        beside.span_ms = kept.value;
        hold("at_least_span", format!("{:?}", Duration::from_millis(kept.value)), &kept.file);
    }
    if let Some(kept) = grid.as_ref().filter(|_| holds_grid) {
        beside.grid = kept.value.clone();
        hold("at_least_grid", format!("{} rules", kept.value.rules().len()), &kept.file);
    }
    let beside = (!news.keys.is_empty()).then_some(beside);
    (KeptFloor { keep, span_ms, grid }, beside, news)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of configuration, and the state directory of a receiver that reads it.
    struct Gateway {
        directory: tempfile::TempDir,
        floor: Floor,
    }

    impl Gateway {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("tempdir");
            std::fs::create_dir(directory.path().join("receiver.d")).expect("made");
            Self { directory, floor: Floor::default() }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.directory.path().join(file)
        }

        fn says(&self, file: &str, keys: &str) {
            std::fs::write(self.path(file), format!("[retention]\n{keys}\n")).expect("written");
        }

        /// A reload: what is kept of a host that wants one point, and how many keys hold on.
        fn reload(&self) -> (Policy, usize) {
            let (config, said) = Config::load_said(&self.path("receiver.toml")).expect("valid");
            let state_dir = StateDir::open(&self.path("state")).expect("free");
            let news = self.floor.take_up(&state_dir, &said);
            let named = news.words.iter().filter(|words| words.contains("receiver.d/x.toml said it")).count();
            assert_eq!(named, news.keys.len(), "{news:?}");
            let floor = self.floor.over(&config, &Policy::without_grid(1, 0)).expect("known");
            (floor, news.keys.len())
        }

        fn restart(&mut self) -> (Policy, usize) {
            self.floor = Floor::default();
            self.reload()
        }
    }

    #[test]
    fn a_floor_holds_on_while_the_file_that_said_it_is_away() {
        let mut gateway = Gateway::new();
        gateway.says("receiver.toml", "at_least_keep = 3");
        gateway.says("receiver.d/x.toml", "at_least_keep = 9\nat_least_span = \"1h\"\nat_least_grid = \"every 1h keep 30d\"");
        let (whole, held) = gateway.reload();
        assert_eq!((whole.keep, whole.span_ms, whole.grid.rules().len(), held), (9, 3_600_000, 1, 0));
        std::fs::rename(gateway.path("receiver.d/x.toml"), gateway.path("away")).expect("moved");
        assert_eq!(gateway.reload(), (whole.clone(), 3));
        assert_eq!(gateway.restart(), (whole.clone(), 3), "nor does a restart forget it");
        // It is being written.
        std::fs::write(gateway.path("receiver.d/x.toml"), "\n").expect("written");
        assert_eq!(gateway.reload(), (whole.clone(), 3));
        // What is said of another key lets go of none.
        gateway.says("receiver.toml", "at_least_keep = 3\nkeep = 20");
        assert_eq!(gateway.restart(), (whole.clone(), 3));
        // More of one is taken up.
        gateway.says("receiver.toml", "at_least_keep = 10");
        assert_eq!(gateway.reload(), (Policy { keep: 10, ..whole.clone() }, 2));
        std::fs::rename(gateway.path("away"), gateway.path("receiver.d/x.toml")).expect("moved");
        assert_eq!(gateway.reload(), (Policy { keep: 9, ..whole }, 0), "the file that is there again says it");
    }

    #[test]
    fn a_person_lowers_it_by_saying_so() {
        let mut gateway = Gateway::new();
        gateway.says("receiver.toml", "at_least_span = \"1m\"");
        let high = "at_least_keep = 9\nat_least_span = \"1h\"\nat_least_grid = \"every 1h keep 30d\"";
        gateway.says("receiver.d/x.toml", high);
        gateway.reload();
        // In the file that said it: less, and nothing.
        gateway.says("receiver.d/x.toml", "at_least_keep = 2");
        assert_eq!(gateway.reload(), (Policy::without_grid(2, 60_000), 0));
        gateway.says("receiver.d/x.toml", high);
        gateway.reload();
        // Or anew in another, when it is gone.
        std::fs::remove_file(gateway.path("receiver.d/x.toml")).expect("removed");
        gateway.says("receiver.toml", "at_least_keep = 1\nat_least_span = \"1m\"");
        let (floor, held) = gateway.reload();
        assert_eq!((floor.keep, floor.span_ms, held), (1, 3_600_000, 2), "the minute was said before, beside the hour");
        gateway.says("receiver.d/y.toml", "at_least_span = \"1m\"\nat_least_grid = \"none\"");
        assert_eq!(gateway.restart(), (Policy::without_grid(1, 60_000), 0));
        std::fs::remove_file(gateway.path("receiver.d/y.toml")).expect("removed");
        assert_eq!(gateway.restart(), (Policy::without_grid(1, 60_000), 0), "the main file says as much");
    }

    #[test]
    fn what_cannot_be_read_gives_up_nothing() {
        let gateway = Gateway::new();
        gateway.says("receiver.toml", "at_least_keep = 3");
        gateway.reload();
        let path = gateway.path("state/retention-floor.json");
        let good = std::fs::read(&path).expect("it is kept");
        for text in ["{", r#"{"version": 2, "floor": {}}"#] {
            std::fs::write(&path, text).expect("written");
            let (config, said) = Config::load_said(&gateway.path("receiver.toml")).expect("valid");
            let news = gateway.floor.take_up(&StateDir::open(&gateway.path("state")).expect("free"), &said);
            assert!(news.words[0].contains("retention-floor.json") && news.words[0].contains("no point is given up"), "{news:?}");
            assert_eq!(gateway.floor.over(&config, &Policy::without_grid(1, 0)), None);
        }
        std::fs::write(&path, good).expect("mended");
        assert_eq!(gateway.reload(), (Policy::without_grid(3, 0), 0));
    }
}
