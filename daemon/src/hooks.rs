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
pub(crate) fn plan(runtime_dir: &Path, group: &Name, volumes: Vec<Name>, hooks: &[Hook], hold: Duration) -> Plan {
    Plan {
        version: Plan::VERSION,
        group: group.clone(),
        volumes,
        hooks: hooks.to_vec(),
        hold_ms: hold.as_millis() as u64,
        note: notes(runtime_dir).join(format!("{group}.json")),
    }
}

/// What speaks against freezing what hooks would freeze: † farsided could not write there itself, and with it whoever writes to a volume.
pub(crate) fn objection(hooks: &[Hook], ours: &[&Path]) -> Option<String> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    hooks.iter().find_map(|hook| {
        let What::Freeze(mount) = &hook.what else { return None };
        let on_it = ours.iter().find(|path| device(path).is_some_and(|its| device(mount) == Some(its)))?;
        let (name, mount) = (&hook.name, mount.display());
        Some(format!("hook {name} would freeze {mount}, where farsided has its own {}: it cannot be frozen", on_it.display()))
    })
}

/// What the hooks of a configuration want, as far as it can be told without running them.
pub(crate) fn examine(config: &Config) -> Vec<Finding> {
    let ours = [config.source.state_dir.as_path(), config.source.runtime_dir()];
    let of_group = |(group, settings): (&Name, &GroupConfig)| {
        let finding = |hook: &Hook| {
            let subject = format!("hook {} of group {group}", hook.name);
            match wrong_with(hook).or_else(|| objection(std::slice::from_ref(hook), &ours)) {
                Some(why) => Finding::new(subject, Verdict::Missing, why),
                None => Finding::new(subject, Verdict::Good, "it is there; `farside point take` tries it"),
            }
        };
        settings.hooks.iter().map(finding).collect::<Vec<_>>()
    };
    config.groups.iter().flat_map(of_group).collect()
}

fn wrong_with(hook: &Hook) -> Option<String> {
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
                _ => None,
            }
        }
    }
}

/// Ends what guards began that were killed.
pub(crate) fn resume_forgotten(runtime_dir: &Path) {
    let notes = notes(runtime_dir);
    let is_left =
        std::fs::read_dir(&notes).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_note(&entry.path()))));
    if !is_left {
        return;
    }
    let all = farside_hooks::resume(&guard(runtime_dir), &notes).unwrap_or_else(|error| {
        // As this process, then: some of it may be of use.
        warn!("hooks are run without a guard of their own: {error}");
        farside_hooks::resume_forgotten(&notes)
    });
    for forgotten in all {
        match forgotten.failed {
            None => info!(note = %forgotten.note.display(), "what was quiesced when the last guard of hooks was killed goes on"),
            Some(why) => {
                warn!(note = %forgotten.note.display(), "what was quiesced when the last guard of hooks was killed may still be: {why}");
            }
        }
    }
}

fn is_note(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json")
}

/// If this process was started to run hooks: does that.
pub(crate) fn as_guard() -> Option<std::process::ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == ARGUMENT && arguments.next().is_none()).then(farside_hooks::guard_main)
}
