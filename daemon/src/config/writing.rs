//! What the API writes: a file of its own for each volume and group, and one for the limits, beside those that a person writes.

use std::path::PathBuf;
use std::time::Duration;

use farside_control::{Grid, RateLimit};
use farside_region::Name;
use serde::{Deserialize, Serialize};

use super::{
    BandwidthText, Config, ConfigError, GroupConfig, GroupText, VolumeConfig, VolumeText, WindowText, sync_dir, write_atomically,
};
use crate::bandwidth::{Bandwidth, RateWindow};
use crate::hooks;

impl Config {
    /// Writes a volume's own drop-in.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn write_volume(&self, volume: &VolumeConfig) -> Result<PathBuf, ConfigError> {
        #[derive(Serialize)]
        struct File<'a> {
            volume: [&'a VolumeText; 1],
        }
        let text = VolumeText {
            name: volume.name.clone(),
            group: volume.group.clone(),
            backing: volume.backing.clone(),
            insert: volume.insert,
            tap: Some(volume.tap.to_string()),
            data_path: volume.data_path,
            queues: volume.queues,
            on_tracking_lost: volume.on_tracking_lost,
            if_absent: volume.if_absent,
        };
        let path = self.volume_path(&volume.name);
        write_atomically(&path, &toml::to_string(&File { volume: [&text] }).expect("plain data"))?;
        Ok(path)
    }

    /// Whether a volume has a file of its own in the drop-ins, which [`Config::remove_volume`] would remove.
    pub fn has_written(&self, name: &Name) -> bool {
        self.volume_path(name).exists()
    }

    fn volume_path(&self, name: &Name) -> PathBuf {
        self.drop_ins().join(format!("volume-{name}.toml"))
    }

    /// Takes a volume's file out of the drop-ins.
    ///
    /// # Errors
    /// When the volume is defined in a file that a person wrote, which is theirs to edit.
    pub fn remove_volume(&self, name: &Name) -> Result<(), ConfigError> {
        let path = self.volume_path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.drop_ins()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(ConfigError::Value {
                path: self.path.clone(),
                what: format!("volume {name} is defined in a hand-written file; take it out there, then say the same again"),
            }),
            Err(source) => Err(ConfigError::Io { verb: "remove", path, source }),
        }
    }

    /// Writes what is `said` of a group to its own drop-in, beside what that file says; it is read after the main file and wins. † Nothing else: what runs
    /// may be older than what a person has written meanwhile, and would win over it for ever.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn write_group(&self, name: &Name, said: &GroupSaid) -> Result<PathBuf, ConfigError> {
        #[derive(Serialize)]
        struct File {
            group: [GroupText; 1],
        }
        let path = self.group_path(name);
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct There {
            #[serde(default)]
            group: Vec<GroupText>,
        }
        let not_ours = |what: String| ConfigError::Value {
            path: path.clone(),
            what: format!(
                "it would be overwritten, and holds more than settings of group {name}: move that to a file of its own ({what})"
            ),
        };
        let there = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<There>(&text).map_err(|e| not_ours(e.message().to_owned()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => There::default(),
            Err(source) => return Err(ConfigError::Io { verb: "read", path, source }),
        };
        if let Some(other) = there.group.iter().find(|group| group.name != *name) {
            return Err(not_ours(format!("group {}", other.name)));
        }
        let ms = |time: &Duration| format!("{}ms", time.as_millis());
        let now = GroupText {
            name: name.clone(),
            epoch_interval: said.epoch_interval.as_ref().map(ms),
            keep: said.keep,
            span: said.span.as_ref().map(ms),
            grid: said.grid.as_ref().map(Grid::to_string),
            encryption: None,
            key: None,
            rate: said.rate.as_ref().map(RateLimit::to_string),
            stand_in_for: None,
            consistent_every: said.consistent_every.map(hooks::words_of_every),
            hook_hold: None,
            cohort_hold: None,
        };
        let text = there.group.into_iter().rev().fold(now, GroupText::over);
        write_atomically(&path, &toml::to_string(&File { group: [text] }).expect("plain data"))?;
        Ok(path)
    }

    pub(crate) fn group_path(&self, name: &Name) -> PathBuf {
        self.drop_ins().join(format!("group-{name}.toml"))
    }

    /// Writes the limits' own drop-in; it is read after the main file and wins, also where it says that there are none.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn write_bandwidth(&self, bandwidth: &Bandwidth) -> Result<PathBuf, ConfigError> {
        #[derive(Serialize)]
        struct File {
            bandwidth: BandwidthText,
        }
        let text = |window: &RateWindow| WindowText { at: window.at.to_string(), rate: window.rate.to_string() };
        let bandwidth = BandwidthText {
            rate: bandwidth.rate.0.map(|rate| rate.to_string()),
            window: bandwidth.windows.iter().map(text).collect(),
        };
        let path = self.drop_ins().join("bandwidth.toml");
        write_atomically(&path, &toml::to_string(&File { bandwidth }).expect("plain data"))?;
        Ok(path)
    }
}

/// What is said of a group through the API.
#[derive(Clone, Debug, Default)]
pub struct GroupSaid {
    /// How often a cut is tried.
    pub epoch_interval: Option<Duration>,
    /// How many points are kept at least.
    pub keep: Option<u32>,
    /// How long every point is kept.
    pub span: Option<Duration>,
    /// What is kept of older ones.
    pub grid: Option<Grid>,
    /// How fast its volumes may be sent.
    pub rate: Option<RateLimit>,
    /// How often an application-consistent point is made by itself.
    pub consistent_every: Option<Option<Duration>>,
}

impl GroupSaid {
    /// Whether it says anything of what is kept.
    pub fn is_of_policy(&self) -> bool {
        self.keep.is_some() || self.span.is_some() || self.grid.is_some()
    }

    /// Its settings with that.
    pub fn over(&self, group: GroupConfig) -> GroupConfig {
        GroupConfig {
            epoch_interval: self.epoch_interval.unwrap_or(group.epoch_interval),
            keep: self.keep.unwrap_or(group.keep),
            span_said: self.span.or(group.span_said),
            grid: self.grid.clone().unwrap_or(group.grid),
            policy_is_said: group.policy_is_said || self.is_of_policy(),
            rate: self.rate.unwrap_or(group.rate),
            consistent_every: self.consistent_every.unwrap_or(group.consistent_every),
            ..group
        }
    }
}

impl GroupText {
    /// What a later table says of the group wins.
    fn over(self, earlier: Self) -> Self {
        Self {
            name: self.name,
            epoch_interval: self.epoch_interval.or(earlier.epoch_interval),
            keep: self.keep.or(earlier.keep),
            span: self.span.or(earlier.span),
            grid: self.grid.or(earlier.grid),
            encryption: self.encryption.or(earlier.encryption),
            key: self.key.or(earlier.key),
            rate: self.rate.or(earlier.rate),
            stand_in_for: self.stand_in_for.or(earlier.stand_in_for),
            consistent_every: self.consistent_every.or(earlier.consistent_every),
            hook_hold: self.hook_hold.or(earlier.hook_hold),
            cohort_hold: self.cohort_hold.or(earlier.cohort_hold),
        }
    }
}
