//! The daemon's configuration: `farsided.toml` and `farsided.d/*.toml` beside it. What is on disk is the truth: the API's
//! `volume add` and `group set` write one file there, atomically, and reload.
//!
//! Invariant: a [`Config`] that exists was validated as a whole. It holds no secret.

mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_control::source::{IfAbsent, LIMIT_WINDOWS_MAX};
use farside_control::{Grid, GridError, RateError, RateLimit, WindowError, parse_epoch_interval, parse_span};
use farside_hooks::{Hook, What};
use farside_keys::Keeper;
use farside_layer::Compression;
use farside_region::{Name, SealMode};
use farside_service::files::{self, File, FileError, Step};
use farside_transport::Carriers;
use farside_ublk::QUEUES_MAX;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bandwidth::{Bandwidth, RateWindow};
use crate::compression::Choice;
use crate::hooks::{self, HookText};
use crate::keys::Encryption;
use crate::source_name;
use crate::tap::TapConfig;

pub use writing::GroupSaid;

/// Everything that the files say.
#[derive(Clone, Debug)]
pub struct Config {
    /// The main file.
    pub path: PathBuf,
    /// This host.
    pub source: SourceConfig,
    /// Consistency groups by name. A group that a volume names and nobody defines has the defaults.
    pub groups: BTreeMap<Name, GroupConfig>,
    /// Volumes by name.
    pub volumes: BTreeMap<Name, VolumeConfig>,
    /// Sizes and rates.
    pub limits: LimitsConfig,
    /// `[bandwidth]`: how fast may be sent.
    pub bandwidth: Bandwidth,
    /// What each file says of what is to be kept, in their order.
    pub(crate) policies: Vec<PoliciesSaid>,
}

/// `[source]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// The name under which the receiver files this host.
    pub name: Name,
    /// Identity, intent maps, marks.
    pub state_dir: PathBuf,
    /// The API's Unix socket.
    pub api_socket: PathBuf,
    /// A group that may use the API beside the owner.
    pub api_group: Option<String>,
    /// Names of [`farside_ublk::FAULTS`] of which a person says that this kernel does not have them, or that they may be.
    pub accept_faults: Vec<String>,
    /// What the receiver is reached over.
    pub carrier: Carriers,
}

impl SourceConfig {
    /// Where sockets lie, and what need not outlive the boot.
    pub fn runtime_dir(&self) -> &Path {
        self.api_socket.parent().unwrap_or(Path::new(RUN_DIR))
    }
}

/// `[[group]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// How often a cut is tried.
    pub epoch_interval: Duration,
    /// How many points the receiver keeps at least.
    pub keep: u32,
    /// How long it keeps every point at least, if that was said.
    pub span_said: Option<Duration>,
    /// And what it keeps of older ones.
    pub grid: Grid,
    /// Whether any of that was said.
    pub policy_is_said: bool,
    /// How its volumes are encrypted, if they are.
    pub encryption: Option<Encryption>,
    /// How fast its volumes may be sent, beside what holds for the host.
    pub rate: RateLimit,
    /// The source in whose place this host publishes the group, after a failover that lets it.
    pub stand_in_for: Option<Name>,
    /// What quiesces applications for its application-consistent points, in the order in which it is done.
    pub hooks: Vec<Hook>,
    /// How often such a point is made by itself; `None`: when one is asked for.
    pub consistent_every: Option<Duration>,
    /// How long applications are held at most.
    pub hook_hold: Duration,
    /// How long writes may be held while the group is cut as one with groups of other hosts; `None`: it never is.
    pub cohort_hold: Option<Duration>,
}

impl GroupConfig {
    /// How long every point is kept at least; zero: by number and grid only. Unless it was said: a day, or what the grid says.
    pub fn span(&self) -> Duration {
        let default = if self.grid.is_empty() { SPAN_DEFAULT } else { Duration::ZERO };
        self.span_said.unwrap_or(default)
    }
}

const SPAN_DEFAULT: Duration = Duration::from_secs(86_400);

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            epoch_interval: Duration::from_secs(1),
            keep: 10,
            span_said: None,
            grid: Grid::default(),
            policy_is_said: false,
            encryption: None,
            rate: RateLimit(None),
            stand_in_for: None,
            hooks: Vec::new(),
            consistent_every: None,
            hook_hold: hooks::HOLD,
            cohort_hold: None,
        }
    }
}

/// `[[volume]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its name, unique on this host.
    pub name: Name,
    /// The group that it is cut with.
    pub group: Name,
    /// Block device or file that holds the data.
    pub backing: PathBuf,
    /// Whether the backing is a device of the device mapper under which the tap is put, so that the host goes on using it.
    pub insert: bool,
    /// How the host reaches it.
    pub tap: TapConfig,
    /// How the data of its requests comes and goes.
    pub data_path: DataPath,
    /// Queues of its ublk device; `None`: as this host's processors.
    pub queues: Option<u16>,
    /// What happens to writes when tracking cannot be made durable anywhere.
    pub on_tracking_lost: OnTrackingLost,
    /// What becomes of its disk at a boot at which it is not served.
    pub if_absent: IfAbsent,
}

impl VolumeConfig {
    /// Where the host finds it.
    pub(crate) fn address(&self) -> String {
        match self.insert {
            true => self.backing.display().to_string(),
            false => self.tap.address(&self.name),
        }
    }

    /// Whether only one of them can be served.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        self.backing == other.backing || self.tap.collides(&other.tap)
    }
}

/// `data_path` of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    /// Without a copy where kernel and backing allow that.
    #[default]
    Auto,
    /// Copied.
    Copy,
}

/// What happens to host writes when the intent map cannot be written and the loss cannot be recorded either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTrackingLost {
    /// They go on; a crash now would go unnoticed, and status says so.
    #[default]
    Pass,
    /// They fail.
    Fail,
}

/// `limits.compression_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionLevel {
    /// `"auto"`: as hard as costs no time, level 1 at most.
    Auto,
    /// A zstd level; `0` sends data as it is.
    Level(i32),
}

impl Serialize for CompressionLevel {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Level(level) => serializer.serialize_i32(*level),
        }
    }
}

impl<'de> Deserialize<'de> for CompressionLevel {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected `\"auto\"` or a zstd level")]
        enum Written {
            Word(String),
            Level(i32),
        }
        match Written::deserialize(deserializer)? {
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            Written::Word(word) => Err(serde::de::Error::custom(format!("`{word}` is neither `auto` nor a zstd level"))),
            Written::Level(level) => Ok(Self::Level(level)),
        }
    }
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// How hard data is compressed on the wire and in the store.
    pub compression_level: CompressionLevel,
    /// Threads that compress for all volumes together; `0`: one for each processor, at most eight.
    pub encoder_threads: u16,
    /// Memory for the old content of granules that the host overwrites while a cut holds them.
    pub side_buffer_mib: u32,
    /// Requests that one volume serves at once.
    pub queue_depth: u16,
    /// Reads of the backing device that the sender keeps in flight.
    pub sender_depth: u16,
    /// How long a planned stop waits for what is under way to be published. What is more than a stop waits for the taps anyway has to be
    /// added to the unit's TimeoutStopSec=.
    pub stop_wait_seconds: u32,
    /// A region is clean in the intent map again when it was published and left alone for so long.
    pub cool_after_seconds: u32,
    /// Connections over UDP that carry a group to its receiver.
    pub connections: u16,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            compression_level: CompressionLevel::Auto,
            encoder_threads: 0,
            side_buffer_mib: 32,
            queue_depth: 128,
            sender_depth: 16,
            stop_wait_seconds: 10,
            connections: 1,
            cool_after_seconds: 30,
        }
    }
}

impl LimitsConfig {
    pub(crate) fn compression(&self) -> Choice {
        match self.compression_level {
            CompressionLevel::Auto => Choice::auto(),
            CompressionLevel::Level(0) => Choice::Fixed(Compression::Off),
            CompressionLevel::Level(level) => Choice::Fixed(Compression::Zstd(level)),
        }
    }

    pub(crate) fn encoder_threads(&self) -> usize {
        match self.encoder_threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(8),
            n => usize::from(n),
        }
    }
}

/// Why a configuration is refused. The running one stays.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that cannot be read, or says what cannot be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file or folder could not be written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Two files define the same thing.
    #[error("{what} is defined twice: in {} and in {}", first.display(), second.display())]
    Twice {
        /// What.
        what: String,
        /// Here,
        first: PathBuf,
        /// and there.
        second: PathBuf,
    },
    /// A value that cannot work.
    #[error("{}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        what: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    source: Option<SourceText>,
    #[serde(default)]
    group: Vec<GroupText>,
    #[serde(default)]
    volume: Vec<VolumeText>,
    #[serde(default)]
    hook: Vec<HookText>,
    limits: Option<LimitsConfig>,
    bandwidth: Option<BandwidthText>,
}

/// `rate` left out: no limit.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BandwidthText {
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    #[serde(default)]
    window: Vec<WindowText>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowText {
    at: String,
    rate: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceText {
    name: Option<Name>,
    state_dir: Option<PathBuf>,
    api_socket: Option<PathBuf>,
    api_group: Option<String>,
    #[serde(default)]
    accept_faults: Vec<String>,
    #[serde(default)]
    carrier: Carriers,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupText {
    name: Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stand_in_for: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistent_every: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook_hold: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cohort_hold: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeText {
    name: Name,
    #[serde(default = "default_group")]
    group: Name,
    backing: PathBuf,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    insert: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tap: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    data_path: DataPath,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queues: Option<u16>,
    #[serde(default)]
    on_tracking_lost: OnTrackingLost,
    #[serde(default)]
    if_absent: IfAbsent,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn default_group() -> Name {
    "default".parse().expect("a valid name")
}

/// Where things are when no file says otherwise.
pub(crate) const STATE_DIR: &str = "/var/lib/farside";
pub(crate) const RUN_DIR: &str = "/run/farside";

impl Config {
    /// Reads the main file and its drop-ins.
    ///
    /// # Errors
    /// Names the file, and the line and key where one is at fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut merge = Merge::default();
        for file in files::read(path, false)? {
            merge.add(file)?;
        }
        merge.finish(path)
    }

    /// The folder in which the API writes.
    pub fn drop_ins(&self) -> PathBuf {
        files::drop_ins(&self.path)
    }

    /// What differs in `new`: what can hold at once, and what only a restart can change.
    pub fn changes(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        let restart = &mut changes.needs_restart;
        let mut fixed = |key: &str, same: bool| {
            if !same {
                restart.push(key.to_owned());
            }
        };
        fixed("[source] name", self.source.name == new.source.name);
        fixed("[source] state_dir", self.source.state_dir == new.source.state_dir);
        fixed("[source] api_socket", self.source.api_socket == new.source.api_socket);
        fixed("[source] api_group", self.source.api_group == new.source.api_group);
        fixed("[source] accept_faults", self.source.accept_faults == new.source.accept_faults);
        fixed("[source] carrier", self.source.carrier == new.source.carrier);
        for key in limits_that_differ(&self.limits, &new.limits) {
            fixed(&format!("[limits] {key}"), false);
        }
        for (name, old) in &self.volumes {
            let Some(new) = new.volumes.get(name) else { continue };
            fixed(&format!("volume {name}: group (stop what uses its device before that)"), old.group == new.group);
            fixed(&format!("volume {name}: backing"), old.backing == new.backing && old.insert == new.insert);
            fixed(&format!("volume {name}: tap"), old.tap == new.tap);
            fixed(&format!("volume {name}: data_path"), old.data_path == new.data_path);
            fixed(&format!("volume {name}: queues"), old.queues == new.queues);
            fixed(&format!("volume {name}: on_tracking_lost"), old.on_tracking_lost == new.on_tracking_lost);
            fixed(&format!("volume {name}: if_absent"), old.if_absent == new.if_absent);
        }
        let added = new.volumes.keys().filter(|name| !self.volumes.contains_key(*name));
        changes.live.extend(added.map(|name| format!("volume {name}: added")));
        let groups: BTreeSet<&Name> = self.groups.keys().chain(new.groups.keys()).collect();
        for name in groups {
            let (old, new) = (self.group(name), new.group(name));
            fixed(&format!("group {name}: encryption or key"), old.encryption == new.encryption);
            let is_used = self.volumes.values().any(|volume| volume.group == *name);
            fixed(&format!("group {name}: stand_in_for"), old.stand_in_for == new.stand_in_for || !is_used);
            let mut changed = |what: &str, old: String, new: String| {
                if old != new {
                    changes.live.push(format!("group {name}: {what} {old} → {new}"));
                }
            };
            changed("epoch_interval", format!("{:?}", old.epoch_interval), format!("{:?}", new.epoch_interval));
            changed("keep", old.keep.to_string(), new.keep.to_string());
            changed("span", format!("{:?}", old.span()), format!("{:?}", new.span()));
            changed("grid", old.grid.to_string(), new.grid.to_string());
            changed("rate", old.rate.to_string(), new.rate.to_string());
            let every = |config: &GroupConfig| hooks::words_of_every(config.consistent_every);
            changed("consistent_every", every(&old), every(&new));
            changed("cohort_hold", format!("{:?}", old.cohort_hold), format!("{:?}", new.cohort_hold));
            if (&old.hooks, old.hook_hold) != (&new.hooks, new.hook_hold) {
                changes.live.push(format!("group {name}: hooks"));
            }
        }
        if self.bandwidth != new.bandwidth {
            changes.live.push(format!("[bandwidth] rate {} → {}", self.bandwidth.words(), new.bandwidth.words()));
        }
        changes
    }

    /// A group's settings, by default or as said.
    pub fn group(&self, name: &Name) -> GroupConfig {
        self.groups.get(name).cloned().unwrap_or_default()
    }

    /// A volume's tap as written, or the one that it has when none is.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn tap(&self, volume: &Name, insert: bool, text: Option<&str>) -> Result<TapConfig, String> {
        let default = if insert { "nbd-device" } else { "nbd" };
        let tap = TapConfig::parse(text.unwrap_or(default), self.source.runtime_dir().join(format!("{volume}.nbd")))?;
        match insert && !tap.is_device() {
            true => Err(format!("`{tap}` is no block device, so it cannot be put under one: use {default}")),
            false => Ok(tap),
        }
    }
}

/// `encryption` and `key` of a group; or which of them is wrong, and how.
fn encryption(mode: &str, key: &str) -> Result<Encryption, (&'static str, String)> {
    if mode != SealMode::EndToEnd.word() {
        return Err(("encryption", format!("`{mode}` is none that this version knows: say \"{}\"", SealMode::EndToEnd.word())));
    }
    let keeper = Keeper::for_service(key).map_err(|why| ("key", why))?;
    Ok(Encryption { mode: SealMode::EndToEnd, keeper })
}

/// What one file says of what is to be kept of groups.
#[derive(Clone, Debug)]
pub(crate) struct PoliciesSaid {
    pub(crate) file: PathBuf,
    /// It has not a word of anything: it is being written.
    pub(crate) is_blank: bool,
    pub(crate) groups: BTreeMap<Name, PolicySaid>,
}

/// What it says of one.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicySaid {
    pub(crate) keep: Option<u32>,
    pub(crate) span: Option<Duration>,
    pub(crate) grid: Option<Grid>,
}

/// What has been read so far, and where.
#[derive(Default)]
struct Merge {
    source: Option<(SourceText, PathBuf)>,
    limits: Option<(LimitsConfig, PathBuf)>,
    groups: BTreeMap<Name, GroupConfig>,
    volumes: BTreeMap<Name, (VolumeText, Faults)>,
    /// Each of a group.
    hooks: Vec<(Name, Hook, Faults)>,
    /// Groups that this host is to publish in another one's place.
    stand_ins: Vec<(Name, Faults)>,
    bandwidth: Bandwidth,
    policies: Vec<PoliciesSaid>,
}

/// Says what is wrong with a volume, a hook or a group, and where it was written.
type Faults = Box<dyn Fn(&str, String) -> FileError>;

/// Those of the one at that place of its kind.
fn faults_of(file: &std::rc::Rc<File<FileText>>, kind: &'static str, at: usize, name: &Name) -> Faults {
    let (file, name) = (file.clone(), name.clone());
    Box::new(move |key, what| file.fault(&[Step::Key(kind), Step::At(at), Step::Key(key)], format!("{kind} {name}: {what}")))
}

impl Merge {
    fn add(&mut self, mut file: File<FileText>) -> Result<(), ConfigError> {
        let text = std::mem::take(&mut file.content);
        let path = file.path.clone();
        if let Some(source) = text.source {
            let relative = |dir: &Option<PathBuf>| dir.as_ref().is_some_and(|dir| !dir.is_absolute());
            for (key, dir) in [("state_dir", &source.state_dir), ("api_socket", &source.api_socket)] {
                if relative(dir) {
                    return Err(file.fault(&[Step::Key("source"), Step::Key(key)], "must be an absolute path").into());
                }
            }
            let is_known = |name: &String| farside_ublk::FAULTS.iter().any(|fault| fault.name == name);
            if let Some(unknown) = source.accept_faults.iter().find(|name| !is_known(name)) {
                let known: Vec<&str> = farside_ublk::FAULTS.iter().map(|fault| fault.name).collect();
                let what = format!("`{unknown}` is no fault that is known: {}", known.join(", "));
                return Err(file.fault(&[Step::Key("source"), Step::Key("accept_faults")], what).into());
            }
            let old = self.source.replace((source, path.clone()));
            twice("[source]", old.map(|x| x.1), &path)?;
        }
        if let Some(limits) = text.limits {
            check_limits(&limits, |key, what| file.fault(&[Step::Key("limits"), Step::Key(key)], what))?;
            let old = self.limits.replace((limits, path.clone()));
            twice("[limits]", old.map(|x| x.1), &path)?;
        }
        let mut policies = PoliciesSaid { file: path, is_blank: file.is_blank(), groups: BTreeMap::new() };
        let file = std::rc::Rc::new(file);
        for (at, g) in text.group.into_iter().enumerate() {
            let group = self.groups.entry(g.name.clone()).or_default();
            let fault = |key, what: String| {
                file.fault(&[Step::Key("group"), Step::At(at), Step::Key(key)], format!("group {}: {what}", g.name))
            };
            group.policy_is_said |= g.keep.is_some() || g.span.is_some() || g.grid.is_some();
            if let Some(text) = &g.epoch_interval {
                group.epoch_interval = parse_epoch_interval(text).map_err(|e| fault("epoch_interval", e.to_string()))?;
            }
            let said = policies.groups.entry(g.name.clone()).or_default();
            if let Some(keep) = g.keep {
                if keep == 0 {
                    return Err(fault("keep", "must be at least 1".into()).into());
                }
                (group.keep, said.keep) = (keep, Some(keep));
            }
            if let Some(text) = &g.span {
                said.span = Some(parse_span(text).map_err(|e| fault("span", e.to_string()))?);
                group.span_said = said.span;
            }
            if let Some(text) = &g.grid {
                group.grid = text.parse().map_err(|e: GridError| fault("grid", e.to_string()))?;
                said.grid = Some(group.grid.clone());
            }
            if let Some(text) = &g.rate {
                group.rate = text.parse().map_err(|e: RateError| fault("rate", e.to_string()))?;
            }
            if let Some(source) = &g.stand_in_for {
                group.stand_in_for = Some(source.clone());
                self.stand_ins.push((g.name.clone(), faults_of(&file, "group", at, &g.name)));
            }
            if let Some(text) = &g.consistent_every {
                group.consistent_every = hooks::parse_every(text).map_err(|what| fault("consistent_every", what))?;
            }
            if let Some(text) = &g.hook_hold {
                group.hook_hold = hooks::parse_hold(text).map_err(|what| fault("hook_hold", what))?;
            }
            if let Some(text) = &g.cohort_hold {
                group.cohort_hold = hooks::parse_cohort_hold(text).map_err(|what| fault("cohort_hold", what))?;
            }
            match (&g.encryption, &g.key) {
                (None, None) => {}
                (Some(mode), Some(key)) => group.encryption = Some(encryption(mode, key).map_err(|(at, what)| fault(at, what))?),
                (Some(_), None) => {
                    return Err(fault("encryption", format!("needs `key` beside it: {}", Keeper::SERVICE_WORDS)).into());
                }
                (None, Some(_)) => return Err(fault("key", "needs `encryption = \"end-to-end\"` beside it".into()).into()),
            }
        }
        if let Some(said) = text.bandwidth {
            self.bandwidth = bandwidth(&said, |steps, what| file.fault(&[&[Step::Key("bandwidth")], steps].concat(), what))?;
        }
        for (at, h) in text.hook.into_iter().enumerate() {
            let fault = faults_of(&file, "hook", at, &h.name);
            let hook = h.hook().map_err(|(key, what)| fault(key, what))?;
            self.hooks.push((h.group, hook, fault));
        }
        for (at, v) in text.volume.into_iter().enumerate() {
            let faults = faults_of(&file, "volume", at, &v.name);
            if let Some((other, _)) = self.volumes.get(&v.name) {
                return Err(faults(
                    "name",
                    format!("is defined twice; the other one has the backing {}", other.backing.display()),
                )
                .into());
            }
            self.volumes.insert(v.name.clone(), (v, faults));
        }
        self.policies.push(policies);
        Ok(())
    }

    fn finish(mut self, path: &Path) -> Result<Config, ConfigError> {
        let source = self.source.take().map(|x| x.0);
        let get = |f: fn(&SourceText) -> Option<PathBuf>| source.as_ref().and_then(f);
        let api_socket = get(|s| s.api_socket.clone()).unwrap_or_else(|| Path::new(RUN_DIR).join("farsided.sock"));
        let state_dir = get(|s| s.state_dir.clone()).unwrap_or_else(|| STATE_DIR.into());
        let said = source.as_ref().and_then(|s| s.name.clone());
        let source = SourceConfig {
            name: said.map_or_else(|| source_name::unsaid(&state_dir, path, &self.groups), Ok)?,
            state_dir,
            api_group: source.as_ref().and_then(|s| s.api_group.clone()),
            accept_faults: source.as_ref().map_or_else(Vec::new, |s| s.accept_faults.clone()),
            carrier: source.as_ref().map_or_else(Carriers::default, |s| s.carrier),
            api_socket,
        };
        // † Whoever stands in discards nothing by what a person says, as the disks it compares are copies; this host's own are not.
        for (group, fault) in &self.stand_ins {
            if self.groups.get(group).is_some_and(|group| group.stand_in_for.as_ref() == Some(&source.name)) {
                let what = format!("{} is this host itself: take it out, or name the host whose copy this one has", source.name);
                return Err(fault("stand_in_for", what).into());
            }
        }
        for (group, hook, fault) in std::mem::take(&mut self.hooks) {
            // † Also of a group that nobody names: its last volume may have been taken out, and that must keep no other from being served.
            let hooks = &mut self.groups.entry(group.clone()).or_default().hooks;
            if hooks.iter().any(|other| other.name == hook.name) {
                return Err(fault("name", format!("group {group} has a hook of that name already")).into());
            }
            hooks.push(hook);
        }
        // What is frozen is frozen for the shortest time, and no other hook waits to write there.
        let of_all = self.groups.values_mut().map(|group| &mut group.hooks);
        of_all.for_each(|hooks| hooks.sort_by_key(|hook| matches!(hook.what, What::Freeze(_))));
        let mut config = Config {
            path: path.to_owned(),
            source,
            groups: self.groups,
            volumes: BTreeMap::new(),
            limits: self.limits.map(|x| x.0).unwrap_or_default(),
            bandwidth: self.bandwidth,
            policies: self.policies,
        };
        let mut backings = BTreeSet::new();
        for (name, (v, fault)) in self.volumes {
            let tap = config.tap(&name, v.insert, v.tap.as_deref()).map_err(|what| fault("tap", what))?;
            if !v.backing.is_absolute() {
                return Err(fault("backing", "must be an absolute path".into()).into());
            }
            if !backings.insert(v.backing.clone()) {
                return Err(fault("backing", format!("{} backs another volume already", v.backing.display())).into());
            }
            if v.queues.is_some_and(|queues| !(1..=QUEUES_MAX).contains(&queues)) {
                return Err(fault("queues", format!("must be from 1 to {QUEUES_MAX}")).into());
            }
            if v.queues.is_some() && tap != TapConfig::Ublk {
                return Err(fault("queues", format!("the tap {tap} has one queue: only `ublk` has more")).into());
            }
            if config.volumes.values().any(|other| other.tap.collides(&tap)) {
                return Err(fault("tap", format!("{tap} serves another volume already")).into());
            }
            config.volumes.insert(
                name.clone(),
                VolumeConfig {
                    name,
                    group: v.group,
                    backing: v.backing,
                    insert: v.insert,
                    tap,
                    data_path: v.data_path,
                    queues: v.queues,
                    on_tracking_lost: v.on_tracking_lost,
                    if_absent: v.if_absent,
                },
            );
        }
        Ok(config)
    }
}

/// What a reload finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Holds from now on.
    pub live: Vec<String>,
    /// Holds after a restart.
    pub needs_restart: Vec<String>,
}

fn bandwidth(said: &BandwidthText, fault: impl Fn(&[Step<'_>], String) -> FileError) -> Result<Bandwidth, FileError> {
    let rate = said.rate.as_deref().unwrap_or("none").parse();
    let rate = rate.map_err(|e: RateError| fault(&[Step::Key("rate")], e.to_string()))?;
    if said.window.len() > LIMIT_WINDOWS_MAX {
        return Err(fault(
            &[Step::Key("window"), Step::At(LIMIT_WINDOWS_MAX)],
            format!("there may be {LIMIT_WINDOWS_MAX} windows"),
        ));
    }
    let window = |(at, said): (usize, &WindowText)| {
        let fault = |key, what| fault(&[Step::Key("window"), Step::At(at), Step::Key(key)], what);
        Ok(RateWindow {
            at: said.at.parse().map_err(|e: WindowError| fault("at", e.to_string()))?,
            rate: said.rate.parse().map_err(|e: RateError| fault("rate", e.to_string()))?,
        })
    };
    Ok(Bandwidth { rate, windows: said.window.iter().enumerate().map(window).collect::<Result<_, _>>()? })
}

/// The keys of `[limits]` that differ.
fn limits_that_differ(old: &LimitsConfig, new: &LimitsConfig) -> Vec<String> {
    let table = |limits: &LimitsConfig| toml::Table::try_from(limits).expect("plain numbers");
    let (old, new) = (table(old), table(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

fn check_limits(limits: &LimitsConfig, fault: impl Fn(&str, String) -> FileError) -> Result<(), FileError> {
    let range = |what: &str, ok: bool, range: &str| if ok { Ok(()) } else { Err(fault(what, format!("must be {range}"))) };
    if let CompressionLevel::Level(level) = limits.compression_level {
        range("compression_level", (-7..=19).contains(&level), "`\"auto\"` or -7 to 19, 0 for none")?;
    }
    range("connections", (1..=8).contains(&limits.connections), "1 to 8")?;
    range("encoder_threads", limits.encoder_threads <= 64, "0 to 64, 0 for one per processor")?;
    range("side_buffer_mib", (1..=16384).contains(&limits.side_buffer_mib), "1 to 16384")?;
    range("queue_depth", (1..=1024).contains(&limits.queue_depth), "1 to 1024")?;
    range("sender_depth", (1..=128).contains(&limits.sender_depth), "1 to 128")?;
    range("cool_after_seconds", (1..=86_400).contains(&limits.cool_after_seconds), "1 to 86400")
}

fn twice(what: &str, first: Option<PathBuf>, second: &Path) -> Result<(), ConfigError> {
    match first {
        None => Ok(()),
        Some(first) => Err(ConfigError::Twice { what: what.to_owned(), first, second: second.to_owned() }),
    }
}

/// Temp file, fsync, rename, fsync of the folder.
pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<(), ConfigError> {
    let dir = path.parent().expect("a file has a folder");
    let io = |verb, source| ConfigError::Io { verb, path: path.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(|e| io("create the folder of", e))?;
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| io("write beside", e))?;
    temp.write_all(text.as_bytes()).map_err(|e| io("write", e))?;
    temp.as_file().sync_all().map_err(|e| io("sync", e))?;
    temp.persist(path).map_err(|e| io("replace", e.error))?;
    sync_dir(dir)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), ConfigError> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|source| ConfigError::Io {
        verb: "sync",
        path: dir.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::SOCKET_PATH_MAX;

    fn load(main: &str, more: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("farsided.toml");
        std::fs::write(&path, main).expect("write");
        for (name, text) in more {
            std::fs::create_dir_all(dir.path().join("farsided.d")).expect("mkdir");
            std::fs::write(dir.path().join("farsided.d").join(name), text).expect("write");
        }
        Config::load(&path)
    }

    #[test]
    fn files_merge_and_defaults_fill() {
        let c = load(
            "[source]\nname='h1'\n[[group]]\nname='db'\nepoch_interval='2s'\n",
            &[
                ("volume-a.toml", "[[volume]]\nname='a'\ngroup='db'\nbacking='/dev/a'\n"),
                ("group-db.toml", "[[group]]\nname='db'\nkeep=3\n"),
            ],
        )
        .expect("valid");
        let db = c.group(&"db".parse().expect("name"));
        assert_eq!((db.epoch_interval, db.keep), (Duration::from_secs(2), 3));
        assert_eq!(c.volumes.values().next().expect("one").tap.to_string(), "nbd:unix:/run/farside/a.nbd");
    }

    #[test]
    fn the_shipped_configuration_is_valid() {
        let c = load(include_str!("../farsided.toml"), &[]).expect("valid");
        assert_eq!(c.limits, LimitsConfig::default());
        // Every line that is commented out is valid too, and is the default where it says so.
        let lines = include_str!("../farsided.toml").lines();
        let key = |l: &str| l.split_once(" = ").is_some_and(|(k, _)| k.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let uncommented = |l: &str| l.strip_prefix("# ").filter(|l| key(l) || l.starts_with("[[")).map(str::to_owned);
        let all: Vec<String> = lines.map(|l| uncommented(l).unwrap_or_else(|| l.to_owned())).collect();
        let c = load(&all.join("\n"), &[]).expect("valid without its comments");
        assert_eq!((&c.limits, c.volumes.len()), (&LimitsConfig::default(), 1));
        assert_eq!(c.bandwidth.words(), "none, Mon-Fri 09:00-18:00 20Mbit");
        let (source, default) = (&c.source, load("", &[]).expect("valid").source);
        assert_eq!((&source.state_dir, &source.api_socket), (&default.state_dir, &default.api_socket));
        let said = GroupConfig { span_said: Some(SPAN_DEFAULT), policy_is_said: true, ..GroupConfig::default() };
        let encryption = encryption("end-to-end", "file:/etc/farside/db.key").ok();
        assert_eq!(
            c.groups.values().collect::<Vec<_>>(),
            [&GroupConfig {
                encryption,
                stand_in_for: "web1".parse().ok(),
                cohort_hold: Some(Duration::from_millis(20)),
                consistent_every: Some(Duration::from_secs(900)),
                hooks: c.groups.values().next().expect("one").hooks.clone(),
                ..said.clone()
            }]
        );
        let hooks: Vec<&str> = c.groups.values().flat_map(|group| &group.hooks).map(|hook| hook.name.as_str()).collect();
        assert_eq!(hooks, ["postgresql", "srv"]);
        let with_grid = GroupConfig { grid: "every 1m keep 1d".parse().expect("a grid"), ..said.clone() };
        let spans = [GroupConfig::default(), GroupConfig { span_said: None, ..with_grid.clone() }, with_grid].map(|g| g.span());
        assert_eq!(spans, [SPAN_DEFAULT, Duration::ZERO, SPAN_DEFAULT], "without a word of it, and it is kept to if said");
        // Every key there is.
        let table = toml::Table::try_from(&c.limits).expect("plain numbers");
        let more = [
            "name",
            "state_dir",
            "api_socket",
            "api_group",
            "epoch_interval",
            "keep",
            "encryption",
            "key",
            "rate",
            "at",
            "backing",
            "tap",
            "on_tracking_lost",
            "if_absent",
            "consistent_every",
            "hook_hold",
            "cohort_hold",
            "command",
            "freeze",
            "timeout",
        ];
        for key in table.keys().map(String::as_str).chain(more) {
            assert!(all.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not in the shipped file");
        }
    }

    #[test]
    fn the_unit_lets_the_daemon_write_its_drop_ins() {
        let unit = include_str!("../systemd/farsided.service");
        let config = unit.split("--config ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a path");
        let folder = files::drop_ins(Path::new(config));
        let writable = unit.lines().find_map(|line| line.strip_prefix("ReadWritePaths=-")).expect("a line");
        assert!(folder.starts_with(writable), "{} is not below {writable}", folder.display());
    }

    #[test]
    fn a_tap_is_a_word_or_an_address_and_serves_one_volume() {
        let tap = |text: &str| {
            let volume = format!("[[volume]]\nname='a'\nbacking='/dev/a'\ntap='{text}'\n");
            load(&volume, &[]).map(|c| c.volumes.into_values().next().expect("one").tap.to_string())
        };
        assert_eq!(tap("nbd").expect("valid"), "nbd:unix:/run/farside/a.nbd");
        assert_eq!(tap("nbd:unix:/x").expect("valid"), "nbd:unix:/x");
        for wrong in ["nbd:unix:x", "nbd:/x", "", &format!("nbd:unix:/{}", "x".repeat(SOCKET_PATH_MAX))] {
            let error = tap(wrong).expect_err(wrong).to_string();
            assert!(error.contains("tap: volume a: "), "{error}");
        }
        let two =
            "[[volume]]\nname='a'\nbacking='/dev/a'\n[[volume]]\nname='b'\nbacking='/dev/b'\ntap='nbd:unix:/run/farside/a.nbd'\n";
        assert!(load(two, &[]).expect_err("one socket").to_string().contains("serves another volume"));
    }

    #[test]
    fn every_fault_names_the_file_and_the_thing() {
        for (main, more, words) in [
            ("[source]\nname='a/b'\n", vec![], "a/b"),
            ("nonsense = 1\n", vec![], "nonsense"),
            ("[[group]]\nname='g'\nepoch_interval='fast'\n", vec![], "fast"),
            ("[[group]]\nname='g'\nkeep=0\n", vec![], "keep"),
            ("[[volume]]\nname='a'\nbacking='rel'\n", vec![], "absolute"),
            ("[[volume]]\nname='a'\nbacking='/x'\ntap='tcp:1'\n", vec![], "nbd:unix"),
            ("[[volume]]\nname='a'\nbacking='/x'\n", vec![("z.toml", "[[volume]]\nname='a'\nbacking='/y'\n")], "twice"),
            ("[source]\nname='h'\nstate_dir='rel'\n", vec![], "state_dir: must be an absolute path"),
            ("[[volume]]\nname='a'\nbacking='/x'\n[[volume]]\nname='b'\nbacking='/x'\n", vec![], "another volume"),
            ("[[group]]\nname='g'\nencryption='end-to-end'\n", vec![], "`key`"),
            ("[[group]]\nname='g'\nkey='file:/k'\n", vec![], "`encryption"),
            ("[[group]]\nname='g'\nencryption='at-rest'\nkey='file:/k'\n", vec![], "at-rest"),
            ("[[group]]\nname='g'\nencryption='end-to-end'\nkey='/k'\n", vec![], "names no key"),
            ("[[group]]\nname='g'\nencryption='end-to-end'\nkey='file:k'\n", vec![], "absolute"),
            ("[[group]]\nname='g'\nencryption='end-to-end'\nkey='command:kms x'\n", vec![], "absolute"),
            ("[[group]]\nname='g'\nencryption='end-to-end'\nkey='passphrase'\n", vec![], "nobody is there"),
            ("[[group]]\nname='g'\nrate='20'\n", vec![], "rate: group g: `20` is not a rate"),
            ("[[group]]\nname='g'\nconsistent_every='1s'\n", vec![], "consistent_every: group g: `1s` is not between 10 s and"),
            ("[[hook]]\nname='h'\n", vec![], "hook h: needs `command"),
            ("[[hook]]\nname='h'\ncommand=['x']\n", vec![], "command: hook h: is a list that begins with the absolute path"),
            ("[[hook]]\nname='h'\nfreeze='srv'\n", vec![], "freeze: hook h: must be an absolute path"),
            ("[[hook]]\nname='h'\nfreeze='/a'\ncommand=['/b']\n", vec![], "two hooks do both"),
            ("[[hook]]\nname='h'\nfreeze='/a'\ntimeout='2d'\n", vec![], "timeout: hook h: `2d` is not between 1 s and 3600 s"),
            (
                "[[group]]\nname='default'\n[[hook]]\nname='h'\nfreeze='/a'\n[[hook]]\nname='h'\nfreeze='/b'\n",
                vec![],
                "a hook of that name already",
            ),
            ("[bandwidth]\nrate='fast'\n", vec![], "rate: `fast`"),
            ("[[bandwidth.window]]\nat='Mon-Fri'\nrate='20Mbit'\n", vec![], "at: `Mon-Fri` is no time of the week"),
            ("[[bandwidth.window]]\nat='09:00-18:00'\nrate='none'\n", vec![], "rate: `none` is not a rate"),
            (
                "[source]\nname='w'\n[[group]]\nname='g'\nstand_in_for='w'\n",
                vec![],
                "stand_in_for: group g: w is this host itself",
            ),
            ("[limits]\nqueue_depth=0\n", vec![], "queue_depth"),
            ("[limits]\ncool_after_seconds=0\n", vec![], "cool_after_seconds"),
        ] {
            let error = load(main, &more).expect_err(main).to_string();
            assert!(error.contains(words) && error.contains(".toml, line "), "{main}: {error}");
        }
        for (key, text, words) in [
            ("span", "500us", "span: group g: `500us` is no span: it is 0s, for by number only, or between 1s and ten years"),
            ("span", "2 days", "use for example 500ms, 90s, 5m, 1h30m or 2d"),
            ("epoch_interval", "50500us", "is not a whole number of milliseconds"),
        ] {
            let error = load(&format!("[[group]]\nname='g'\n{key}='{text}'\n"), &[]).expect_err(text).to_string();
            assert!(error.contains("farsided.toml, line 3: ") && error.contains(words), "{error}");
        }
        let config = load("[[group]]\nname='g'\nspan='2d'\n", &[]).expect("valid");
        assert_eq!(config.group(&"g".parse().expect("name")).span(), Duration::from_secs(2 * 86_400));
        let error =
            load("", &[("z.toml", "[[group]]\nname='a'\n\n[[group]]\nname='g'\nkeep=0\n")]).expect_err("keep").to_string();
        assert!(error.contains("farsided.d/z.toml, line 6: keep: group g: must be at least 1"), "{error}");
    }

    #[test]
    fn a_reload_says_by_name_what_changes_now_and_what_with_a_restart() {
        let volume = "[[volume]]\nname='a'\ngroup='f'\nbacking='/dev/a'\n";
        let old = load(&format!("[source]\nname='h'\n[[group]]\nname='g'\nkeep=3\n{volume}"), &[]).expect("valid");
        assert_eq!(old.changes(&old), Changes::default());
        let new = load(
            "[source]\nname='h2'\napi_group='ops'\ncarrier='tcp'\n[limits]\nqueue_depth=7\n[[group]]\nname='g'\nkeep=4\nepoch_interval='2s'\n\
             encryption='end-to-end'\nkey='file:/k'\n[[volume]]\nname='a'\nbacking='/dev/a2'\n[[volume]]\nname='b'\nbacking='/dev/b'\n",
            &[],
        )
        .expect("valid");
        let changes = old.changes(&new);
        assert_eq!(changes.live, ["volume b: added", "group g: epoch_interval 1s → 2s", "group g: keep 3 → 4"]);
        let restart = [
            "[source] name",
            "[source] api_group",
            "[source] carrier",
            "[limits] queue_depth",
            "volume a: group (stop what uses its device before that)",
            "volume a: backing",
            "group g: encryption or key",
        ];
        assert_eq!(changes.needs_restart, restart);
        assert!(!new.changes(&old).live.iter().any(|what| what.contains("volume b")), "it stays");
    }

    #[test]
    fn what_the_api_writes_is_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("farsided.toml");
        std::fs::write(&path, "[source]\nname='h'\n[[group]]\nname='g'\n[[hook]]\ngroup='g'\nname='srv'\nfreeze='/srv'\n")
            .expect("write");
        let c = Config::load(&path).expect("valid");
        let v = VolumeConfig {
            name: "a".parse().expect("name"),
            group: "g".parse().expect("name"),
            backing: "/dev/a".into(),
            insert: false,
            tap: TapConfig::Nbd { socket: "/tmp/a.nbd".into() },
            data_path: DataPath::Copy,
            queues: None,
            on_tracking_lost: OnTrackingLost::Fail,
            if_absent: IfAbsent::Refuse,
        };
        c.write_volume(&v).expect("written");
        // Said there by a person, after the start.
        std::fs::write(
            c.drop_ins().join("group-g.toml"),
            "[[group]]\nname='g'\nkeep=3\n[[group]]\nname='g'\nencryption='end-to-end'\nkey='passphrase:/etc/farside/words'\nstand_in_for='w'\nhook_hold='3s'\ncohort_hold='15ms'\n",
        )
        .expect("written");
        let said = GroupSaid {
            epoch_interval: Some(Duration::from_millis(250)),
            keep: Some(4),
            span: Some(Duration::from_secs(90)),
            grid: "every 5s keep 10m, every 1m keep 1y".parse().ok(),
            rate: "5Mbit".parse().ok(),
            consistent_every: Some(Some(Duration::from_secs(900))),
        };
        c.write_group(&v.group, &said).expect("written");
        let other = GroupSaid { epoch_interval: said.epoch_interval, ..GroupSaid::default() };
        c.write_group(&v.group, &other).expect("what was said before stays");
        // What is not the group's is nobody's to overwrite.
        let (other, text) = (c.drop_ins().join("group-h.toml"), "[[group]]\nname='i'\nkeep=3\n");
        std::fs::write(&other, text).expect("written");
        let refused = c.write_group(&"h".parse().expect("a name"), &said).expect_err("it holds something else");
        assert!(refused.to_string().contains("group i"), "{refused}");
        assert_eq!(std::fs::read_to_string(&other).expect("there"), text);
        std::fs::remove_file(&other).expect("removed");
        let window = |at: &str, rate: &str| RateWindow { at: at.parse().expect(at), rate: rate.parse().expect(rate) };
        let windows = vec![window("Mon-Fri 09:00-18:00", "20Mbit"), window("22:00-06:00", "1Gbit")];
        for bandwidth in [Bandwidth { rate: "5MiB".parse().expect("a rate"), windows }, Bandwidth::default()] {
            c.write_bandwidth(&bandwidth).expect("written");
            assert_eq!(Config::load(&path).expect("valid").bandwidth, bandwidth);
        }
        let c = Config::load(&path).expect("valid");
        assert_eq!(c.volumes[&v.name], v);
        assert_eq!(
            c.group(&v.group),
            GroupConfig {
                epoch_interval: Duration::from_millis(250),
                keep: 4,
                span_said: Some(Duration::from_secs(90)),
                grid: "every 5s keep 10m, every 1m keep 1y".parse().expect("a grid"),
                policy_is_said: true,
                encryption: encryption("end-to-end", "passphrase:/etc/farside/words").ok(),
                stand_in_for: "w".parse().ok(),
                rate: "5Mbit".parse().expect("a rate"),
                hooks: c.group(&v.group).hooks,
                consistent_every: Some(Duration::from_secs(900)),
                hook_hold: Duration::from_secs(3),
                cohort_hold: Some(Duration::from_millis(15)),
            }
        );
        assert_eq!(c.group(&v.group).hooks.len(), 1);
        c.remove_volume(&v.name).expect("removed");
        assert!(Config::load(&path).expect("valid").volumes.is_empty());
    }
}
