//! The configuration is read again while the daemon runs.
//!
//! Invariant: † no volume leaves because a file is not there. A folder that is not mounted, a drop-in that an editor or a package has renamed, and
//! a volume that is not wanted any more look the same from here, and what a volume loses with its map cannot be brought back. Who wants one to go
//! says so: `farside volume remove`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use farside_control::{ApiError, Code, ErrorCode, Reason, Reloaded, Severity};
use farside_region::Name;
use farside_service::files::FileError;
use farside_service::systemd;
use tracing::{error, info, warn};

use super::{Daemon, not_kept};
use crate::config::{Config, ConfigError, GroupConfig, GroupSaid, VolumeConfig};
use crate::locked;
use crate::retention::{self, Held};

/// In what the configuration on disk is not the one that runs.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// In words.
    said: Vec<String>,
    /// Volumes that no file has any more.
    kept: BTreeSet<Name>,
    /// What holds of what is to be kept, for want of a word.
    held: Held,
}

impl Stale {
    /// With what was in force before this process and holds on.
    pub(super) fn at_the_start(state_dir: &Path, config: &mut Config) -> Self {
        let held = retention::take_up(state_dir, config, &BTreeMap::new(), None);
        held.words.iter().for_each(|what| warn!("{what}"));
        Self { held, ..Self::default() }
    }
}

impl Daemon {
    /// Takes over what changed on disk: volumes that are new are served, groups get their settings. Volumes that are gone there stay, and are named.
    /// An invalid configuration changes nothing. What can only change with a restart stays, and is named.
    pub(crate) async fn reload(self: &Arc<Self>) -> Result<Reloaded, ApiError> {
        let _one = self.begin_change().await?;
        // † Before that, "reloading" and then "ready" would end the start, whatever is still being opened.
        let said = self.ready.load(Ordering::Relaxed);
        if said {
            systemd::reloading();
        }
        let reloaded = self.take_over().await;
        if said && self.may_change().is_ok() {
            systemd::ready(&self.served_of_configured());
        }
        match &reloaded {
            Err(error) => {
                error!("the running configuration stays: {error}");
                locked(&self.stale).said = vec![format!("the configuration on disk is not valid, the one before stays: {error}")];
            }
            Ok(reloaded) => {
                let words =
                    |what: &String| format!("{what}: changed on disk; the value before stays until farsided is restarted");
                locked(&self.stale).said = reloaded.needs_restart.iter().map(words).collect();
                info!(changed = reloaded.changed.len(), "configuration read again");
                reloaded.changed.iter().for_each(|what| info!(%what, "changed"));
                reloaded.needs_restart.iter().for_each(|what| warn!(%what, "changes with the next restart only"));
                for volume in &reloaded.kept_volumes {
                    warn!(%volume, "no file has it any more; it stays in service until `farside volume remove`");
                }
                reloaded.failed.iter().for_each(|what| error!(%what, "taken over, but"));
            }
        }
        reloaded
    }

    async fn take_over(self: &Arc<Self>) -> Result<Reloaded, ApiError> {
        let old = locked(&self.config).clone();
        let invalid = |e: &dyn std::fmt::Display| {
            ApiError::new(
                ErrorCode::Conflict,
                e.to_string(),
                "mend that and reload again; until then the running configuration stays",
            )
        };
        let mut new = Config::load(&old.path).map_err(|e| invalid(&e))?;
        let gone: Vec<&VolumeConfig> = old.volumes.values().filter(|volume| !new.volumes.contains_key(&volume.name)).collect();
        // What was said of their groups is gone for the same reason, if nothing is said of them now; so is a limit that the API wrote.
        let groups = gone.iter().filter_map(|volume| old.groups.get_key_value(&volume.group));
        groups.for_each(|(name, group)| _ = new.groups.entry(name.clone()).or_insert_with(|| group.clone()));
        if !gone.is_empty() && !new.drop_ins().is_dir() {
            new.bandwidth = old.bandwidth.clone();
        }
        if let Some((kept, volume)) = gone.iter().find_map(|kept| Some((kept, new.volumes.values().find(|v| kept.collides(v))?)))
        {
            let what = format!(
                "volume {} has the backing or the tap of volume {}, which no file has any more and which is still in service",
                volume.name, kept.name
            );
            let todo = format!("`farside volume remove {}`, or put it back into its file; then reload again", kept.name);
            return Err(ApiError::new(ErrorCode::Conflict, what, todo));
        }
        let held = retention::take_up(self.state.path(), &mut new, &old.volumes, None);
        held.words.iter().for_each(|what| warn!("{what}"));
        locked(&self.stale).held = held;
        let changes = old.changes(&new);
        new.source = old.source.clone();
        new.limits = old.limits.clone();
        let kept: BTreeSet<Name> = gone.iter().map(|volume| volume.name.clone()).collect();
        for (name, old) in &old.volumes {
            new.volumes.insert(name.clone(), old.clone());
        }
        // Whose volumes they are is in their identities.
        for group in old.volumes.values().map(|volume| &volume.group) {
            new.groups.entry(group.clone()).or_default().stand_in_for = old.group(group).stand_in_for;
        }
        *locked(&self.config) = new.clone();
        let kept_volumes = kept.iter().map(Name::to_string).collect();
        locked(&self.stale).kept = kept;
        self.tell_groups();
        let failed = self.take_over_volumes(&new.volumes).await;
        Ok(Reloaded { changed: changes.live, needs_restart: changes.needs_restart, kept_volumes, failed })
    }

    /// Writes what a person says of a group, and returns how it is then: what is kept of it as the files say, and what holds beside them.
    ///
    /// # Errors
    /// The files are not valid, or cannot be written; nothing has changed then.
    pub(super) fn write_group(&self, running: &Config, name: &Name, said: GroupSaid) -> Result<GroupConfig, ApiError> {
        let invalid = |error: ConfigError| match &error {
            ConfigError::File(FileError::Io { .. }) => not_kept(&error),
            _ => ApiError::new(
                ErrorCode::Conflict,
                error.to_string(),
                "mend that file first: what holds by the others cannot be told without it",
            ),
        };
        let take_up = |anew: Option<(&Name, &GroupSaid)>| {
            let mut on_disk = Config::load(&running.path)?;
            let held = retention::take_up(self.state.path(), &mut on_disk, &running.volumes, anew);
            Ok((on_disk.group(name), held))
        };
        // † As they are now: what one said that is away, or empty, since the last reload would be forgotten with what is written.
        let (_, held) = take_up(None).map_err(invalid)?;
        if held.is_unknown && said.is_of_policy() {
            return Err(ApiError::new(ErrorCode::Conflict, held.words.concat(), "mend it, or remove it, then: farside reload"));
        }
        let written = held.with(name, said.clone(), &running.group_path(name));
        running.write_group(name, &written).map_err(|error| not_kept(&error))?;
        let group = written.over(running.group(name));
        let (on_disk, held) = take_up(Some((name, &said))).map_err(invalid)?;
        locked(&self.stale).held = held;
        // Another file may be read after it, and say it otherwise.
        Ok(GroupConfig {
            keep: if said.keep.is_some() { on_disk.keep } else { group.keep },
            span_said: if said.span.is_some() { on_disk.span_said } else { group.span_said },
            grid: if said.grid.is_some() { on_disk.grid } else { group.grid },
            ..group
        })
    }

    /// A volume was taken out of service by a person.
    pub(super) fn is_stale_no_more(&self, name: &Name) {
        locked(&self.stale).kept.remove(name);
    }

    /// What a person should know of the files.
    pub(super) fn not_as_on_disk(&self) -> Vec<Reason> {
        let stale = locked(&self.stale);
        let said = stale.said.iter().map(|what| {
            let todo = "mend it, then: farside reload; or restart farsided for what only a restart can change";
            Reason::new(Severity::Warning, Code::ConfigurationStale, what, todo)
        });
        let kept = stale.kept.iter().map(|name| {
            let what = format!(
                "volume {name}: no file of the configuration has it any more; it stays in service until farsided is restarted"
            );
            let todo =
                format!("put its file back, then: farside reload; or take it out of service: farside volume remove {name}");
            Reason::new(Severity::Warning, Code::ConfigurationStale, what, todo)
        });
        let held = stale.held.words.iter().map(|what| {
            Reason::new(
                Severity::Warning,
                Code::ConfigurationStale,
                what,
                "put the file back, then: farside reload; or say what is to be kept",
            )
        });
        said.chain(kept).chain(held).collect()
    }
}

impl Config {
    /// Whether the files, read again, have that volume.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(super) fn is_in_a_file(&self, name: &Name) -> Result<bool, ConfigError> {
        Self::load(&self.path).map(|config| config.volumes.contains_key(name))
    }
}
