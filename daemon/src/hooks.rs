//! What is configured of hooks, and who runs them.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_control::parse_duration;
use farside_hooks::{Guard, Hook, Plan, What};
use farside_region::Name;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::{Config, GroupConfig};
use crate::doctor::{Finding, Verdict};
use crate::volume::Surroundings;

/// How long applications are held at most, unless that was said.
pub(crate) const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(300);
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
const EVERY_MIN: Duration = Duration::from_secs(10);
const EVERY_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Where systemd starts a guard for whoever connects: see farside-hooks.socket.
const SOCKET: &str = "/run/farside-hooks.sock";
/// What a guard is called with where no systemd starts one.
const ARGUMENT: &str = "--hooks";

/// `[[hook]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookText {
    #[serde(default = "crate::config::default_group")]
    pub(crate) group: Name,
    pub(crate) name: Name,
    command: Option<Vec<String>>,
    freeze: Option<PathBuf>,
    timeout: Option<String>,
}

impl HookText {
    /// As it is run; or the key that is wrong, and what would be right.
    pub(crate) fn hook(&self) -> Result<Hook, (&'static str, String)> {
        let what = match (&self.command, &self.freeze) {
            (Some(words), None) => {
                if !words.first().is_some_and(|program| Path::new(program).is_absolute()) {
                    return Err(("command", "is a list that begins with the absolute path of a program".into()));
                }
                What::Command(words.clone())
            }
            (None, Some(path)) if path.is_absolute() => What::Freeze(path.clone()),
            (None, Some(_)) => return Err(("freeze", "must be an absolute path: where a file system is mounted".into())),
            (Some(_), Some(_)) => return Err(("freeze", "either `command` or `freeze`: two hooks do both".into())),
            (None, None) => return Err(("name", "needs `command = [\"/PROGRAM\", …]` or `freeze = \"/MOUNT\"`".into())),
        };
        let timeout = match &self.timeout {
            None => TIMEOUT,
            Some(text) => within(text, Duration::from_secs(1), TIMEOUT_MAX).map_err(|what| ("timeout", what))?,
        };
        Ok(Hook { name: self.name.clone(), what, timeout })
    }
}

/// `consistent_every`.
pub(crate) fn parse_every(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "none" => Ok(None),
        text => within(text, EVERY_MIN, EVERY_MAX).map(Some),
    }
}

/// `hook_hold`.
pub(crate) fn parse_hold(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(1), HOLD_MAX)
}

/// `cohort_hold`.
pub(crate) fn parse_cohort_hold(text: &str) -> Result<Option<Duration>, String> {
    let max = Duration::from_micros(u64::from(farside_wire::COHORT_HOLD_US_MAX));
    match text {
        "none" => Ok(None),
        text => match parse_duration(text) {
            Ok(hold) if !hold.is_zero() && hold <= max => Ok(Some(hold)),
            Ok(_) => Err(format!("`{text}` is not between 1 ms and {} ms", max.as_millis())),
            Err(error) => Err(error.to_string()),
        },
    }
}

fn within(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|e| e.to_string())?;
    match (min..=max).contains(&duration) && duration.subsec_nanos().is_multiple_of(1_000_000) {
        true => Ok(duration),
        false => Err(format!("`{text}` is not between {} s and {} s, in whole milliseconds", min.as_secs(), max.as_secs())),
    }
}

/// As it is written in a file.
pub(crate) fn words_of_every(every: Option<Duration>) -> String {
    every.map_or_else(|| "none".to_owned(), |every| format!("{}ms", every.as_millis()))
}

/// Who runs hooks: outside of this service, and its sandbox, where systemd does that.
pub(crate) fn guard(runtime_dir: &Path) -> Guard {
    let socket = Path::new(SOCKET);
    match runtime_dir == Path::new(crate::config::RUN_DIR) && socket.exists() {
        true => Guard::Socket(socket.to_owned()),
        // Also after an upgrade.
        false => Guard::Program { program: "/proc/self/exe".into(), args: vec![ARGUMENT.to_owned()] },
    }
}

/// Where guards note what they began.
fn notes(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("hooks")
}

/// What is to be done around a cut of a group.
pub(crate) fn plan(around: &Surroundings, state_dir: &Path, group: &Name, volumes: Vec<Name>, settings: &GroupConfig) -> Plan {
    Plan {
        version: Plan::VERSION,
        group: group.clone(),
        volumes,
        hooks: settings.hooks.clone(),
        hold_ms: settings.hook_hold.as_millis() as u64,
        note: note(&around.runtime_dir, group),
        spared: vec![state_dir.to_owned(), around.runtime_dir.clone()],
    }
}

/// What a guard notes of a group: it is there as long as something is not ended.
pub(crate) fn note(runtime_dir: &Path, group: &Name) -> PathBuf {
    notes(runtime_dir).join(format!("{group}.json"))
}

/// Longer than hooks take, whatever they do.
pub(crate) fn patience(hooks: &[Hook]) -> Duration {
    hooks.iter().map(|hook| hook.timeout * 3 + Duration::from_secs(30)).sum::<Duration>() + Duration::from_secs(30)
}

/// What the hooks of a configuration want, as far as it can be told without running them.
pub(crate) fn examine(config: &Config) -> Vec<Finding> {
    let ours = [config.source.state_dir.as_path(), config.source.runtime_dir()];
    let of_group = |(group, settings): (&Name, &GroupConfig)| {
        let finding = |hook: &Hook| {
            let subject = format!("hook {} of group {group}", hook.name);
            match wrong_with(hook, &ours) {
                Some(why) => Finding::new(subject, Verdict::Missing, why),
                None => Finding::new(subject, Verdict::Good, "it is there; `farside point take` tries it"),
            }
        };
        let subject = || format!("group {group}");
        let has_volumes = config.volumes.values().any(|volume| volume.group == *group);
        let unused = "it has hooks and no volume: is that its name?";
        let unused = (!settings.hooks.is_empty() && !has_volumes).then(|| Finding::new(subject(), Verdict::Warning, unused));
        let idle = "consistent_every is set, and no [[hook]] would quiesce anything: no such point is made";
        let is_idle = settings.hooks.is_empty() && settings.consistent_every.is_some();
        let idle = is_idle.then(|| Finding::new(subject(), Verdict::Warning, idle));
        settings.hooks.iter().map(finding).chain(unused).chain(idle).collect::<Vec<_>>()
    };
    config.groups.iter().flat_map(of_group).collect()
}

fn wrong_with(hook: &Hook, ours: &[&Path]) -> Option<String> {
    match &hook.what {
        What::Command(words) => {
            let program = words.first()?;
            match std::fs::metadata(program) {
                Ok(meta) if meta.is_file() && meta.mode() & 0o111 != 0 => None,
                Ok(_) => Some(format!("{program} is no program: chmod +x")),
                Err(error) => Some(format!("{program}: {error}")),
            }
        }
        What::Freeze(mount) => {
            let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev());
            match (device(mount), mount.parent().map(device)) {
                (Err(error), _) => Some(format!("{}: {error}", mount.display())),
                (Ok(its), Some(Ok(around))) if its == around => Some(format!("nothing is mounted at {}", mount.display())),
                // † farsided could not write there itself, and with it whoever writes to a volume.
                (Ok(its), _) => {
                    let own = ours.iter().find(|path| device(path).is_ok_and(|device| device == its))?;
                    Some(format!("{} cannot be frozen: farsided itself writes to {}", mount.display(), own.display()))
                }
            }
        }
    }
}

/// The notes that there are.
pub(crate) fn noted(runtime_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(notes(runtime_dir)).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_note(path)).collect()
}

/// Of which group a note is.
pub(crate) fn group_of(note: &Path) -> Option<Name> {
    note.file_stem().filter(|_| is_note(note))?.to_str()?.parse().ok()
}

/// Ends what guards began that were killed, or could not end it, but for those that live; what still may be quiesced, by its note, and why.
pub(crate) fn resume_forgotten(runtime_dir: &Path) -> Vec<(PathBuf, String)> {
    if noted(runtime_dir).is_empty() {
        return Vec::new();
    }
    let notes = notes(runtime_dir);
    let all = farside_hooks::resume(&guard(runtime_dir), &notes).unwrap_or_else(|error| {
        // As this process, then: some of it may be of use.
        warn!("hooks are run without a guard of their own: {error}");
        farside_hooks::resume_forgotten(&notes)
    });
    for done in all.iter().filter(|forgotten| forgotten.failed.is_none()) {
        info!(note = %done.note.display(), "what a guard of hooks had quiesced, and could not end, goes on");
    }
    all.into_iter().filter_map(|forgotten| Some((forgotten.note, forgotten.failed?))).collect()
}

fn is_note(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json")
}

/// If this process was started to run hooks: does that.
pub(crate) fn as_guard() -> Option<std::process::ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == ARGUMENT && arguments.next().is_none()).then(farside_hooks::guard_main)
}
