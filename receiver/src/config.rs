//! The receiver's configuration: one TOML file and the drop-ins `receiver.d/*.toml` beside it, later files over earlier ones.
//!
//! Invariant: a [`Config`] that exists was validated as a whole. It holds no secret.

use farside_control::{Grid, GridError, Rate, RateError, parse_duration, parse_span};
use farside_keys::Keeper;
use farside_ledger::{Grid as Rules, Policy};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_objects::{Location, LocationError};
use farside_region::Name;
use farside_service::files::{self, File, FileError, Step};
use farside_store::{GroupNames, Keepers};
use farside_wire::{COHORT_HOLD_US_MAX, END_MEMBERS_MAX};
use serde::Deserialize;

use crate::floor::FloorSaid;
use crate::locks::{LockProgram, REFLINK};

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/farside/receiver.toml";
/// More often is no use to anybody.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// How long points that are staged wait for others, unless something else is said.
pub const PUBLISH_EVERY: Duration = Duration::from_secs(30);
/// A store holds 64 wrapped keys of a group, and hosts and people put some there, too.
const AT_REST_KEEPERS_MAX: usize = 8;
/// The fewest requests of a budget: with fewer, what cannot wait takes all of them.
const PUBLISH_BUDGET_MIN: u32 = 100;
/// How long a source that is alive may take to come back: its longest pause is 20 seconds, and then it dials.
pub const FENCE_AFTER: Duration = Duration::from_secs(30);
const FENCE_AFTER_MAX: Duration = Duration::from_secs(3600);
/// The longest that staged points may wait for others.
const PUBLISH_EVERY_MAX: Duration = Duration::from_secs(3600);
/// The UDP port sources connect to.
pub const DEFAULT_PORT: u16 = 7400;

/// How long a program that locks may take, unless something else is said.
/// Of a cohort whose configuration does not say it.
const COHORT_EVERY: Duration = Duration::from_secs(60);
const COHORT_HOLD: Duration = Duration::from_millis(20);
const COHORT_GROUPS_MAX: usize = 256;
/// `every` is at least so many times `hold`.
const COHORT_HOLDS_APART: u32 = 10;
const DAY: Duration = Duration::from_secs(86_400);
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// What a person said about TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenTcp {
    /// It is not listened to.
    Nowhere,
    /// There, and nowhere else.
    At(SocketAddr),
}

/// Everything that the files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name that sources see; the host's name by default.
    pub name: Name,
    /// The UDP address for sources.
    pub listen: SocketAddr,
    /// The TCP address for those whose UDP does not get through. `None`: that of `listen`, if it can be had.
    pub listen_tcp: Option<ListenTcp>,
    /// Where points live: a directory on a local file system, or a bucket.
    pub store: Location,
    /// For a store in a bucket: where parts land on their way there.
    pub staging: PathBuf,
    /// What lets us into a bucket: a file of `NAME=VALUE` lines. Without: the environment, or the machine's metadata.
    pub store_credentials: Option<PathBuf>,
    /// For a store in a bucket: how long points that are staged wait for others, to be published together; zero = not at all.
    pub publish_every: Duration,
    /// For a store in a bucket: how many write requests may be made; publication waits for that.
    pub publish_budget: Option<PublishBudget>,
    /// How long a failover waits for a source that may be in its pause, before it fences it.
    pub fence_after: Duration,
    /// Identity and pairings.
    pub state_dir: PathBuf,
    /// The API's Unix socket.
    pub api_socket: PathBuf,
    /// A group that may use the API beside the owner.
    pub api_group: Option<String>,
    /// `host:port` under which sources reach this receiver, best first; goes into tokens.
    pub advertise: Vec<String>,
    /// Bounds.
    pub limits: Limits,
    /// What is kept where a source says nothing.
    pub retention: Retention,
    /// Programs that lock what followers hold.
    pub locks: Vec<LockProgram>,
    /// What unwraps the keys of encrypted groups that this gateway was given.
    pub keys: Vec<GivenKey>,
    /// Which groups it encrypts at rest itself.
    pub at_rest: Vec<AtRest>,
    /// Groups of several hosts that are cut as one.
    pub cohorts: Vec<Cohort>,
    /// How often points are verified.
    pub verify: Verify,
    /// See [`Merge`].
    pub merge: Merge,
}

/// `[[key]]`: what unwraps the key of an encrypted group, for what is done with its content here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenKey {
    /// Which group; `None`: each that has no entry of its own.
    pub of: Option<GroupNames>,
    /// What unwraps it.
    pub keeper: Keeper,
}

/// `[[cohort]]`: groups of several hosts that are cut as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cohort {
    /// What it is called.
    pub name: Name,
    /// Its groups, at least two.
    pub groups: Vec<GroupNames>,
    /// How often they are cut.
    pub every: Duration,
    /// How long their hosts' writes are held for that, at most; a host may allow less.
    pub hold: Duration,
}

/// `[[at_rest]]`: groups that this gateway keeps encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRest {
    /// Which group; `None`: each that has no entry of its own.
    pub of: Option<GroupNames>,
    /// Who keeps the key that it draws for each, every one of them the same; none: it is kept in clear.
    pub keepers: Vec<Keeper>,
}

/// So many write requests in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishBudget {
    /// How many.
    pub requests: u32,
    /// In which time.
    pub per: Duration,
}

impl std::str::FromStr for PublishBudget {
    type Err = String;

    /// `2000 per day`, `60000 per month`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not like `2000 per day` or `60000 per month`");
        let (requests, per) = text.split_once(" per ").ok_or_else(wrong)?;
        let days = match per {
            "day" => 1,
            "month" => 30,
            _ => return Err(wrong()),
        };
        let requests: u32 = requests.parse().map_err(|_| wrong())?;
        if requests / days < PUBLISH_BUDGET_MIN {
            return Err(format!("at least {PUBLISH_BUDGET_MIN} requests a day: claims, retention and leases take some of them"));
        }
        Ok(Self { requests, per: Duration::from_secs(u64::from(days) * 86_400) })
    }
}

/// `[limits]`: bounds of memory, disk and patience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for parts on their way in, all sources together.
    pub receive_budget_mib: u32,
    /// Connections of all sources together.
    pub connections: usize,
    /// Groups of one source. It makes one connection for each.
    pub groups_per_source: usize,
    /// Volumes of one group.
    pub volumes_per_group: usize,
    /// Parts of one connection that land at once, while there are few connections.
    pub parts_per_connection: u32,
    /// What one connection may have under way to the disk.
    pub credit_mib: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            receive_budget_mib: 64,
            connections: 128,
            groups_per_source: 32,
            volumes_per_group: 64,
            parts_per_connection: 16,
            credit_mib: 256,
        }
    }
}

/// `[retention]`: how many points are kept, in the ledger's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many points of every volume.
    pub keep: u32,
    /// And all that are younger than this.
    pub span: Duration,
    /// And of older ones so many.
    pub grid: Grid,
    /// How often points are given up; more seldom makes fewer ledger records.
    pub interval: Duration,
    /// Whatever a source says, so many of every volume stay: who took over a host must not be able to give up its history.
    pub at_least_keep: u32,
    /// And all that are younger than this.
    pub at_least_span: Duration,
    /// And of older ones so many.
    pub at_least_grid: Grid,
}

impl Retention {
    /// What is kept where a source says nothing.
    pub fn policy(&self) -> Policy {
        Policy::of(self.keep, self.span, self.grid.pairs())
    }

    /// What is kept where a source wants `policy`.
    pub fn floor(&self, policy: &Policy) -> Policy {
        Policy::of(self.at_least_keep, self.at_least_span, self.at_least_grid.pairs()).union(policy)
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            keep: 10,
            span: Duration::ZERO,
            grid: Grid::default(),
            interval: Duration::from_secs(5),
            at_least_keep: 1,
            at_least_span: Duration::ZERO,
            at_least_grid: Grid::default(),
        }
    }
}

/// `[verify]`: how often the newest point of each group is read in full and checked, unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// How often, where the store is a directory; `None`: never.
    pub every: Option<Duration>,
    /// How often, where it is in a bucket; `None`: never.
    pub every_in_bucket: Option<Duration>,
    /// How much content is read.
    pub rate: Rate,
    /// How long after its start the receiver begins: whatever made it start again has the disk to itself.
    pub after_start: Duration,
}

impl Verify {
    /// How often, for this store.
    pub fn every_for(&self, store: &Location) -> Option<Duration> {
        match store {
            Location::Dir(_) => self.every,
            Location::Bucket(_) => self.every_in_bucket,
        }
    }
}

impl Default for Verify {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            every: Some(DAY),
            every_in_bucket: Some(30 * DAY),
            rate: Rate::from_bytes_per_s(20 << 20).expect("in range"),
            after_start: Duration::from_secs(600),
        }
    }
}

/// `[merge]`: how parts that points no longer tell apart are laid together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// How often it is looked for such parts; `None`: never.
    pub every: Option<Duration>,
    /// The same of a store in a bucket, where it costs requests and what they send.
    pub every_in_bucket: Option<Duration>,
    /// How much is read and written.
    pub rate: Rate,
}

impl Merge {
    /// How often, for this store.
    pub fn every_for(&self, store: &Location) -> Option<Duration> {
        match store {
            Location::Dir(_) => self.every,
            Location::Bucket(_) => self.every_in_bucket,
        }
    }
}

impl Default for Merge {
    fn default() -> Self {
        // ARCHITECTURE.md says why.
        Self {
            every: Some(Duration::from_secs(300)),
            every_in_bucket: None,
            rate: Rate::from_bytes_per_s(20 << 20).expect("in range"),
        }
    }
}

/// Why a configuration is refused. The running one stays.
pub type ConfigError = FileError;

/// What a reload finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Holds from now on.
    pub live: Vec<String>,
    /// Holds after a restart.
    pub needs_restart: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileText {
    receiver: ReceiverTable,
    limits: LimitsTable,
    retention: RetentionTable,
    verify: VerifyTable,
    merge: MergeTable,
    lock: Vec<LockTable>,
    key: Vec<KeyTable>,
    at_rest: Vec<AtRestTable>,
    cohort: Vec<CohortTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CohortTable {
    name: Name,
    groups: Vec<String>,
    every: Option<String>,
    hold: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtRestTable {
    of: Option<String>,
    keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyTable {
    of: String,
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockTable {
    name: Name,
    program: Vec<String>,
    timeout: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReceiverTable {
    name: Option<Name>,
    listen: Option<String>,
    listen_tcp: Option<String>,
    store: Option<String>,
    staging: Option<PathBuf>,
    store_credentials: Option<PathBuf>,
    publish_every: Option<String>,
    publish_budget: Option<String>,
    fence_after: Option<String>,
    state_dir: Option<PathBuf>,
    api_socket: Option<PathBuf>,
    api_group: Option<String>,
    advertise: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsTable {
    receive_budget_mib: Option<u32>,
    connections: Option<usize>,
    groups_per_source: Option<usize>,
    volumes_per_group: Option<usize>,
    parts_per_connection: Option<u32>,
    credit_mib: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetentionTable {
    keep: Option<u32>,
    span: Option<String>,
    grid: Option<String>,
    interval: Option<String>,
    at_least_keep: Option<u32>,
    at_least_span: Option<String>,
    at_least_grid: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VerifyTable {
    every: Option<String>,
    every_in_bucket: Option<String>,
    rate: Option<String>,
    after_start: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MergeTable {
    every: Option<String>,
    every_in_bucket: Option<String>,
    rate: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: host_name(),
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
            listen_tcp: None,
            store: Location::Dir("/var/lib/farside-receiver/store".into()),
            staging: "/var/lib/farside-receiver/staging".into(),
            store_credentials: None,
            publish_every: PUBLISH_EVERY,
            publish_budget: None,
            fence_after: FENCE_AFTER,
            state_dir: "/var/lib/farside-receiver/state".into(),
            api_socket: farside_control::RECEIVER_SOCKET.into(),
            api_group: None,
            advertise: Vec::new(),
            limits: Limits::default(),
            retention: Retention::default(),
            verify: Verify::default(),
            merge: Merge::default(),
            locks: Vec::new(),
            keys: Vec::new(),
            at_rest: Vec::new(),
            cohorts: Vec::new(),
        }
    }
}

/// `HOST/GROUP`.
fn names_of(text: &str) -> Option<GroupNames> {
    let (source, group) = text.split_once('/')?;
    Some(GroupNames::new(source.parse().ok()?, group.parse().ok()?))
}

impl Config {
    /// Reads `path` and its drop-ins, in the order of their names. The default file may be absent.
    ///
    /// # Errors
    /// When a file cannot be read, a key is unknown, or a value makes no sense, with file, line and key: nothing is ignored.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::load_said(path)?.0)
    }

    /// And what each file says of the floor of retention, in their order.
    pub(crate) fn load_said(path: &Path) -> Result<(Self, Vec<FloorSaid>), ConfigError> {
        let (mut config, mut floor) = (Self::default(), Vec::new());
        for mut file in files::read::<FileText>(path, path == Path::new(DEFAULT_PATH))? {
            let FileText { receiver, limits, retention, verify, merge, lock, key, at_rest, cohort } =
                std::mem::take(&mut file.content);
            config.lay_receiver(&file, receiver)?;
            config.lay_limits(&file, &limits)?;
            floor.push(config.lay_retention(&file, retention)?);
            config.lay_verify(&file, &verify)?;
            config.lay_merge(&file, &merge)?;
            config.lay_locks(&file, lock)?;
            config.lay_keys(&file, key)?;
            config.lay_at_rest(&file, at_rest)?;
            config.lay_cohorts(&file, cohort)?;
        }
        Ok((config, floor))
    }

    fn lay_receiver(&mut self, file: &File<FileText>, table: ReceiverTable) -> Result<(), ConfigError> {
        let fault = |key: &str, what: String| file.fault(&[Step::Key("receiver"), Step::Key(key)], what);
        if let Some(listen) = table.listen {
            self.listen = listen.parse().map_err(|_| fault("listen", format!("`{listen}` is not IP:PORT")))?;
        }
        if let Some(listen) = table.listen_tcp {
            self.listen_tcp = Some(match (listen.as_str(), listen.parse()) {
                ("none", _) => ListenTcp::Nowhere,
                (_, Ok(address)) => ListenTcp::At(address),
                (_, Err(_)) => return Err(fault("listen_tcp", format!("`{listen}` is neither IP:PORT nor `none`"))),
            });
        }
        if let Some(advertise) = table.advertise {
            if let Some(bad) = advertise.iter().find(|a| !is_address(a)) {
                return Err(fault("advertise", format!("`{bad}` is not HOST:PORT")));
            }
            if advertise.len() > 16 {
                return Err(fault("advertise", "at most 16 addresses".into()));
            }
            self.advertise = advertise;
        }
        if let Some(store) = table.store {
            let location: Location = store.parse().map_err(|e: LocationError| fault("store", e.to_string()))?;
            if matches!(&location, Location::Dir(path) if !path.is_absolute()) {
                return Err(fault("store", format!("`{location}` is not an absolute path")));
            }
            self.store = location;
        }
        let mut credentials = self.store_credentials.take().unwrap_or_default();
        let paths = [
            ("staging", table.staging, &mut self.staging),
            ("store_credentials", table.store_credentials, &mut credentials),
            ("state_dir", table.state_dir, &mut self.state_dir),
            ("api_socket", table.api_socket, &mut self.api_socket),
        ];
        for (key, said, here) in paths {
            let Some(said) = said else { continue };
            if !said.is_absolute() {
                return Err(fault(key, format!("`{}` is not an absolute path", said.display())));
            }
            *here = said;
        }
        self.store_credentials = Some(credentials).filter(|path| !path.as_os_str().is_empty());
        if let Some(every) = table.publish_every {
            let every = parse_span(&every).map_err(|e| fault("publish_every", e.to_string()))?;
            if every > PUBLISH_EVERY_MAX {
                return Err(fault("publish_every", "at most 1h: until then what is staged is on one disk only".into()));
            }
            self.publish_every = every;
        }
        if let Some(budget) = table.publish_budget {
            let parsed = (budget != "none").then(|| budget.parse::<PublishBudget>()).transpose();
            self.publish_budget = parsed.map_err(|e| fault("publish_budget", e))?;
        }
        if let Some(after) = table.fence_after {
            let after = parse_span(&after).map_err(|e| fault("fence_after", e.to_string()))?;
            if after > FENCE_AFTER_MAX {
                return Err(fault("fence_after", "at most 1h: a failover waits so long after a start of the gateway".into()));
            }
            self.fence_after = after;
        }
        self.name = table.name.unwrap_or_else(|| self.name.clone());
        self.api_group = table.api_group.or_else(|| self.api_group.take());
        Ok(())
    }

    fn lay_limits(&mut self, file: &File<FileText>, table: &LimitsTable) -> Result<(), ConfigError> {
        let limits = &mut self.limits;
        limits.receive_budget_mib = table.receive_budget_mib.unwrap_or(limits.receive_budget_mib);
        limits.connections = table.connections.unwrap_or(limits.connections);
        limits.groups_per_source = table.groups_per_source.unwrap_or(limits.groups_per_source);
        limits.volumes_per_group = table.volumes_per_group.unwrap_or(limits.volumes_per_group);
        limits.parts_per_connection = table.parts_per_connection.unwrap_or(limits.parts_per_connection);
        limits.credit_mib = table.credit_mib.unwrap_or(limits.credit_mib);
        let range = |key: &str, value: u64, least: u64, most: u64| {
            let ok = (least..=most).contains(&value);
            let what = if value < least { format!("at least {least}") } else { format!("at most {most}") };
            if ok { Ok(()) } else { Err(file.fault(&[Step::Key("limits"), Step::Key(key)], what)) }
        };
        range("receive_budget_mib", limits.receive_budget_mib.into(), 8, 4095)?;
        range("connections", limits.connections as u64, 1, u64::MAX)?;
        range("groups_per_source", limits.groups_per_source as u64, 1, u64::MAX)?;
        // As many as a point may hold.
        range("volumes_per_group", limits.volumes_per_group as u64, 1, END_MEMBERS_MAX as u64)?;
        range("parts_per_connection", limits.parts_per_connection.into(), 1, u64::MAX)?;
        range("credit_mib", limits.credit_mib.into(), 64, u64::MAX)
    }

    fn lay_retention(&mut self, file: &File<FileText>, table: RetentionTable) -> Result<FloorSaid, ConfigError> {
        let fault = |key: &str, what: String| file.fault(&[Step::Key("retention"), Step::Key(key)], what);
        let retention = &mut self.retention;
        if table.keep == Some(0) {
            return Err(fault("keep", "at least 1, there is always a last good point".into()));
        }
        retention.keep = table.keep.unwrap_or(retention.keep);
        if let Some(span) = table.span {
            retention.span = parse_span(&span).map_err(|e| fault("span", e.to_string()))?;
        }
        if let Some(grid) = table.grid {
            retention.grid = grid.parse().map_err(|e: GridError| fault("grid", e.to_string()))?;
        }
        let mut said = FloorSaid {
            file: file.path.clone(),
            is_blank: file.is_blank(),
            keep: table.at_least_keep,
            span_ms: None,
            grid: None,
        };
        if let Some(grid) = table.at_least_grid {
            retention.at_least_grid = grid.parse().map_err(|e: GridError| fault("at_least_grid", e.to_string()))?;
            said.grid = Some(Rules::of(retention.at_least_grid.pairs()));
        }
        if let Some(interval) = table.interval {
            retention.interval = parse_duration(&interval).map_err(|e| fault("interval", e.to_string()))?;
        }
        retention.at_least_keep = table.at_least_keep.unwrap_or(retention.at_least_keep);
        if let Some(span) = table.at_least_span {
            retention.at_least_span = parse_span(&span).map_err(|e| fault("at_least_span", e.to_string()))?;
            said.span_ms = Some(u64::try_from(retention.at_least_span.as_millis()).unwrap_or(u64::MAX));
        }
        Ok(said)
    }

    fn lay_verify(&mut self, file: &File<FileText>, table: &VerifyTable) -> Result<(), ConfigError> {
        let fault = |key: &str, what: String| file.fault(&[Step::Key("verify"), Step::Key(key)], what);
        let every = |key: &str, said: &str| parse_every(said).map_err(|what| fault(key, what));
        let verify = &mut self.verify;
        if let Some(said) = &table.every {
            verify.every = every("every", said)?;
        }
        if let Some(said) = &table.every_in_bucket {
            verify.every_in_bucket = every("every_in_bucket", said)?;
        }
        if let Some(said) = &table.rate {
            verify.rate = said.parse().map_err(|e: RateError| fault("rate", e.to_string()))?;
        }
        if let Some(said) = &table.after_start {
            verify.after_start = parse_span(said).map_err(|e| fault("after_start", e.to_string()))?;
        }
        Ok(())
    }

    fn lay_merge(&mut self, file: &File<FileText>, table: &MergeTable) -> Result<(), ConfigError> {
        let fault = |key: &str, what: String| file.fault(&[Step::Key("merge"), Step::Key(key)], what);
        let every = |key: &str, said: &str| parse_every(said).map_err(|what| fault(key, what));
        if let Some(said) = &table.every {
            self.merge.every = every("every", said)?;
        }
        if let Some(said) = &table.every_in_bucket {
            self.merge.every_in_bucket = every("every_in_bucket", said)?;
        }
        if let Some(said) = &table.rate {
            self.merge.rate = said.parse().map_err(|e: RateError| fault("rate", e.to_string()))?;
        }
        Ok(())
    }

    fn lay_locks(&mut self, file: &File<FileText>, tables: Vec<LockTable>) -> Result<(), ConfigError> {
        for (at, table) in tables.into_iter().enumerate() {
            let fault = |key: &str, what: String| file.fault(&[Step::Key("lock"), Step::At(at), Step::Key(key)], what);
            if table.name.as_str() == REFLINK {
                return Err(fault("name", format!("`{REFLINK}` is the file system's own way")));
            }
            if !table.program.first().is_some_and(|program| Path::new(program).is_absolute()) {
                return Err(fault("program", "a program, by its whole path, and its arguments".to_owned()));
            }
            let timeout = match table.timeout.as_deref().map(parse_span) {
                None => LOCK_TIMEOUT,
                Some(Ok(timeout)) if (Duration::from_secs(1)..=LOCK_TIMEOUT_MAX).contains(&timeout) => timeout,
                Some(Ok(_)) => return Err(fault("timeout", "1s to 1h".to_owned())),
                Some(Err(error)) => return Err(fault("timeout", error.to_string())),
            };
            // A later file's replaces it.
            self.locks.retain(|other| other.name != table.name.as_str());
            self.locks.push(LockProgram { name: table.name.to_string(), program: table.program, timeout });
        }
        Ok(())
    }

    fn lay_keys(&mut self, file: &File<FileText>, tables: Vec<KeyTable>) -> Result<(), ConfigError> {
        let mut here = Vec::new();
        for (at, table) in tables.into_iter().enumerate() {
            let fault = |key: &str, what: String| file.fault(&[Step::Key("key"), Step::At(at), Step::Key(key)], what);
            let of = group_or_all(&table.of).map_err(|what| fault("of", what))?;
            let keeper = Keeper::for_service(&table.key).map_err(|what| fault("key", what))?;
            if here.contains(&of) {
                return Err(fault("of", format!("`{}` has a key in this file already", table.of)));
            }
            here.push(of.clone());
            // A later file's replaces it.
            self.keys.retain(|other| other.of != of);
            self.keys.push(GivenKey { of, keeper });
        }
        Ok(())
    }

    fn lay_at_rest(&mut self, file: &File<FileText>, tables: Vec<AtRestTable>) -> Result<(), ConfigError> {
        let mut here = Vec::new();
        for (at, table) in tables.into_iter().enumerate() {
            let fault = |key: &str, what: String| file.fault(&[Step::Key("at_rest"), Step::At(at), Step::Key(key)], what);
            let said = table.of.as_deref().unwrap_or("*");
            let of = group_or_all(said).map_err(|what| fault("of", what))?;
            let keepers: Result<Vec<Keeper>, String> = table.keys.iter().map(|text| Keeper::for_service(text)).collect();
            let keepers = keepers.map_err(|what| fault("keys", what))?;
            if keepers.len() > AT_REST_KEEPERS_MAX {
                return Err(fault("keys", format!("at most {AT_REST_KEEPERS_MAX}")));
            }
            if here.contains(&of) {
                return Err(fault("of", format!("`{said}` is in this file already")));
            }
            here.push(of.clone());
            // A later file's replaces it.
            self.at_rest.retain(|other| other.of != of);
            self.at_rest.push(AtRest { of, keepers });
        }
        Ok(())
    }

    fn lay_cohorts(&mut self, file: &File<FileText>, tables: Vec<CohortTable>) -> Result<(), ConfigError> {
        for (at, table) in tables.into_iter().enumerate() {
            let fault = |key: &str, what: String| file.fault(&[Step::Key("cohort"), Step::At(at), Step::Key(key)], what);
            let mut groups = Vec::new();
            for said in &table.groups {
                let names = names_of(said).ok_or_else(|| fault("groups", format!("`{said}` is not HOST/GROUP")))?;
                if groups.contains(&names) {
                    return Err(fault("groups", format!("`{said}` is there twice")));
                }
                // † Each group has one hold at a time, and each of its points is one of one cohort.
                let others = self.cohorts.iter().filter(|other| other.name != table.name);
                if let Some(other) = others.into_iter().find(|other| other.groups.contains(&names)) {
                    return Err(fault("groups", format!("`{said}` is in cohort {} already", other.name)));
                }
                groups.push(names);
            }
            if !(2..=COHORT_GROUPS_MAX).contains(&groups.len()) {
                return Err(fault("groups", format!("2 to {COHORT_GROUPS_MAX} groups, each as HOST/GROUP")));
            }
            let every = match table.every.as_deref().map(parse_span) {
                None => COHORT_EVERY,
                Some(Ok(every)) if (Duration::from_secs(1)..=DAY).contains(&every) => every,
                Some(Ok(_)) => return Err(fault("every", "1s to 1d".to_owned())),
                Some(Err(error)) => return Err(fault("every", error.to_string())),
            };
            let max = Duration::from_micros(u64::from(COHORT_HOLD_US_MAX));
            let hold = match table.hold.as_deref().map(parse_duration) {
                None => COHORT_HOLD,
                Some(Ok(hold)) if !hold.is_zero() && hold <= max => hold,
                Some(Ok(_)) => return Err(fault("hold", format!("1ms to {}ms", max.as_millis()))),
                Some(Err(error)) => return Err(fault("hold", error.to_string())),
            };
            // The hosts would refuse to be held so often.
            if every < hold * COHORT_HOLDS_APART {
                return Err(fault("hold", format!("at most a {COHORT_HOLDS_APART}th of `every`, {} ms", every.as_millis() / 10)));
            }
            // A later file's replaces it.
            self.cohorts.retain(|other| other.name != table.name);
            self.cohorts.push(Cohort { name: table.name, groups, every, hold });
        }
        Ok(())
    }

    /// The cohort of a group, if it is in one.
    pub fn cohort_of(&self, names: &GroupNames) -> Option<&Cohort> {
        self.cohorts.iter().find(|cohort| cohort.groups.contains(names))
    }

    /// What unwraps the keys of a group here.
    pub fn keepers_of(&self, names: &GroupNames) -> Keepers {
        let of = |wanted: Option<&GroupNames>| self.keys.iter().find(|given| given.of.as_ref() == wanted);
        let given = of(Some(names)).or_else(|| of(None)).map(|given| given.keeper.clone()).into_iter().collect();
        Keepers { given, at_rest: self.at_rest_of(names).to_vec() }
    }

    /// Who keeps the key of a group that is to be encrypted at rest; nobody: it is not.
    pub fn at_rest_of(&self, names: &GroupNames) -> &[Keeper] {
        let of = |wanted: Option<&GroupNames>| self.at_rest.iter().find(|said| said.of.as_ref() == wanted);
        of(Some(names)).or_else(|| of(None)).map_or(&[], |said| &said.keepers)
    }

    /// This configuration with what can change while the receiver runs taken from `new`, and what that is.
    #[must_use]
    pub fn take_over(&self, new: &Self) -> (Self, Changes) {
        let (mut changes, mut next) = (Changes::default(), self.clone());
        let mut fixed = |key: &str, same: bool| {
            if !same {
                changes.needs_restart.push(key.to_owned());
            }
        };
        fixed("[receiver] name", self.name == new.name);
        fixed("[receiver] listen", self.listen == new.listen);
        fixed("[receiver] listen_tcp", self.listen_tcp == new.listen_tcp);
        fixed("[receiver] store", self.store == new.store);
        fixed("[receiver] staging", self.staging == new.staging);
        fixed("[receiver] store_credentials", self.store_credentials == new.store_credentials);
        fixed("[receiver] publish_every", self.publish_every == new.publish_every);
        fixed("[receiver] state_dir", self.state_dir == new.state_dir);
        fixed("[receiver] api_socket", self.api_socket == new.api_socket);
        fixed("[receiver] api_group", self.api_group == new.api_group);
        fixed("[limits] receive_budget_mib", self.limits.receive_budget_mib == new.limits.receive_budget_mib);
        fixed("[limits] connections", self.limits.connections == new.limits.connections);
        fixed("[limits] parts_per_connection", self.limits.parts_per_connection == new.limits.parts_per_connection);
        fixed("[limits] credit_mib", self.limits.credit_mib == new.limits.credit_mib);
        let mut live = |key: &str, old: String, new: String| {
            if old != new {
                changes.live.push(format!("{key} {old} → {new}"));
            }
        };
        // Without a program's arguments: some are secrets.
        let locks = |config: &Self| {
            listed(config.locks.iter().map(|lock| {
                let program = lock.program.first().map_or("", String::as_str);
                format!("{} ({program}, at most {:?})", lock.name, lock.timeout)
            }))
        };
        let words = |kept: Vec<(&Option<GroupNames>, Vec<&Keeper>)>| {
            let one = |(of, keepers): &(&Option<GroupNames>, Vec<&Keeper>)| {
                let of = of.as_ref().map_or("*".to_owned(), ToString::to_string);
                format!("{of} {}", keepers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "))
            };
            listed(kept.iter().map(one))
        };
        let keys = |config: &Self| words(config.keys.iter().map(|key| (&key.of, vec![&key.keeper])).collect());
        let changed = |is_same: bool, text: String| if is_same { text } else { format!("{text} (changed)") };
        live("[[lock]]", locks(self), changed(self.locks == new.locks, locks(new)));
        live("[[key]]", keys(self), changed(self.keys == new.keys, keys(new)));
        let at_rest = |config: &Self| words(config.at_rest.iter().map(|one| (&one.of, one.keepers.iter().collect())).collect());
        live("[[at_rest]]", at_rest(self), changed(self.at_rest == new.at_rest, at_rest(new)));
        let cohorts = |config: &Self| {
            listed(config.cohorts.iter().map(|one| {
                let groups: Vec<_> = one.groups.iter().map(ToString::to_string).collect();
                format!("{} ({}; every {:?}, hold {:?})", one.name, groups.join(" "), one.every, one.hold)
            }))
        };
        live("[[cohort]]", cohorts(self), cohorts(new));
        live("[receiver] advertise", listed(self.advertise.iter().cloned()), listed(new.advertise.iter().cloned()));
        let number = |n: usize| n.to_string();
        live("[limits] groups_per_source", number(self.limits.groups_per_source), number(new.limits.groups_per_source));
        live("[limits] volumes_per_group", number(self.limits.volumes_per_group), number(new.limits.volumes_per_group));
        let budget = |budget: Option<PublishBudget>| {
            budget.map_or_else(|| "none".to_owned(), |b| format!("{} per {:?}", b.requests, b.per))
        };
        live("[receiver] publish_budget", budget(self.publish_budget), budget(new.publish_budget));
        live("[receiver] fence_after", format!("{:?}", self.fence_after), format!("{:?}", new.fence_after));
        live("[retention] keep", self.retention.keep.to_string(), new.retention.keep.to_string());
        live("[retention] span", format!("{:?}", self.retention.span), format!("{:?}", new.retention.span));
        live("[retention] grid", self.retention.grid.to_string(), new.retention.grid.to_string());
        live("[retention] interval", format!("{:?}", self.retention.interval), format!("{:?}", new.retention.interval));
        let (old_floor, new_floor) = (&self.retention, &new.retention);
        live("[retention] at_least_keep", old_floor.at_least_keep.to_string(), new_floor.at_least_keep.to_string());
        live("[retention] at_least_span", format!("{:?}", old_floor.at_least_span), format!("{:?}", new_floor.at_least_span));
        live("[retention] at_least_grid", old_floor.at_least_grid.to_string(), new_floor.at_least_grid.to_string());
        let (old_verify, new_verify) = (&self.verify, &new.verify);
        let every = |every: Option<Duration>| every.map_or_else(|| "never".to_owned(), |every| format!("{every:?}"));
        live("[verify] every", every(old_verify.every), every(new_verify.every));
        live("[verify] every_in_bucket", every(old_verify.every_in_bucket), every(new_verify.every_in_bucket));
        live("[verify] rate", old_verify.rate.to_string(), new_verify.rate.to_string());
        live("[verify] after_start", format!("{:?}", old_verify.after_start), format!("{:?}", new_verify.after_start));
        live("[merge] every", every(self.merge.every), every(new.merge.every));
        live("[merge] every_in_bucket", every(self.merge.every_in_bucket), every(new.merge.every_in_bucket));
        live("[merge] rate", self.merge.rate.to_string(), new.merge.rate.to_string());
        next.locks.clone_from(&new.locks);
        next.keys.clone_from(&new.keys);
        next.at_rest.clone_from(&new.at_rest);
        next.cohorts.clone_from(&new.cohorts);
        next.advertise.clone_from(&new.advertise);
        next.publish_budget = new.publish_budget;
        next.fence_after = new.fence_after;
        next.limits.groups_per_source = new.limits.groups_per_source;
        next.limits.volumes_per_group = new.limits.volumes_per_group;
        next.retention = new.retention.clone();
        next.verify = new.verify.clone();
        next.merge = new.merge.clone();
        (next, changes)
    }
}

/// How often something is done, or "never".
fn parse_every(said: &str) -> Result<Option<Duration>, String> {
    match said {
        "never" => Ok(None),
        said => match parse_span(said) {
            Ok(every) if every >= EVERY_MIN => Ok(Some(every)),
            Ok(_) => Err("at least 1s; \"never\" turns it off".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

fn listed(words: impl Iterator<Item = String>) -> String {
    format!("[{}]", words.collect::<Vec<_>>().join(", "))
}

fn group_or_all(text: &str) -> Result<Option<GroupNames>, String> {
    match (text, names_of(text)) {
        ("*", _) => Ok(None),
        (_, Some(names)) => Ok(Some(names)),
        (said, None) => Err(format!("`{said}` is neither HOST/GROUP nor `*`")),
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// The host's name as far as it can be one of ours.
pub(crate) fn host_name() -> Name {
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let fitting: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).take(64).collect();
    fitting.trim_start_matches(['.', '-']).parse().unwrap_or_else(|_| "receiver".parse().expect("a valid name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(main: &str, parts: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("receiver.toml");
        std::fs::write(&path, main).expect("written");
        std::fs::create_dir(directory.path().join("receiver.d")).expect("made");
        for (name, text) in parts {
            std::fs::write(directory.path().join("receiver.d").join(name), text).expect("written");
        }
        Config::load(&path)
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = load("", &[]).expect("valid");
        assert_eq!(config.listen, "[::]:7400".parse().expect("an address"));
        assert_eq!((config.limits, config.retention), (Limits::default(), Retention::default()));
    }

    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let shipped = include_str!("../receiver.toml");
        // Commented out or not, it is the default.
        assert_eq!(load(shipped, &[]).expect("valid"), Config::default());
        let is_key = |l: &str| l.split_once(" = ").is_some_and(|(k, _)| k.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let bare = |l: &str| l.strip_prefix("# ").filter(|l| is_key(l) || l.starts_with('[')).unwrap_or(l).to_owned();
        let all: Vec<String> = shipped.lines().map(bare).collect();
        let config = load(&all.join("\n"), &[]).expect("valid without its comments");
        let Config { name, api_group, advertise, store_credentials, .. } = config.clone();
        let examples = api_group.is_some() && !advertise.is_empty() && store_credentials.is_some();
        assert!(examples, "these have no default, only an example");
        assert_eq!(config.listen_tcp, Some(ListenTcp::At(config.listen)), "where it is if nothing is said");
        assert_eq!(config.locks.iter().map(|lock| lock.timeout).collect::<Vec<_>>(), [LOCK_TIMEOUT]);
        let (listen_tcp, locks, keys) = (config.listen_tcp, config.locks.clone(), config.keys.clone());
        let (at_rest, cohorts) = (config.at_rest.clone(), config.cohorts.clone());
        assert_eq!((keys.len(), at_rest.len(), at_rest[0].keepers.len()), (1, 1, 2), "examples");
        assert!(matches!(&cohorts[..], [Cohort { every: COHORT_EVERY, hold: COHORT_HOLD, .. }]), "an example with defaults");
        let examples = Config { keys, at_rest, cohorts, locks, ..Config::default() };
        let default = Config { name, api_group, advertise, store_credentials, listen_tcp, ..examples };
        assert_eq!(config, default);
        for key in [
            "name",
            "listen",
            "listen_tcp",
            "store",
            "staging",
            "store_credentials",
            "publish_every",
            "publish_budget",
            "fence_after",
            "state_dir",
            "api_socket",
            "api_group",
            "advertise",
            "receive_budget_mib",
            "connections",
            "groups_per_source",
            "volumes_per_group",
            "parts_per_connection",
            "credit_mib",
            "keep",
            "span",
            "grid",
            "at_least_keep",
            "at_least_span",
            "at_least_grid",
            "interval",
            "every",
            "every_in_bucket",
            "rate",
            "after_start",
            "of",
            "key",
            "keys",
        ] {
            assert!(all.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not in the shipped file");
        }
    }

    #[test]
    fn parts_are_laid_over_the_main_file_in_order() {
        let main = "[receiver]\nname = \"gw\"\nlisten = \"127.0.0.1:1\"\n[retention]\nkeep = 3\nspan = \"2d\"";
        let parts = [
            ("20-b.toml", "[retention]\nkeep = 5"),
            ("10-a.toml", "[receiver]\nlisten = \"127.0.0.1:2\"\n[retention]\nkeep = 4"),
            ("not-toml.bak", "nonsense ["),
        ];
        let config = load(main, &parts).expect("valid");
        assert_eq!((config.name.as_str(), config.listen.port()), ("gw", 2));
        assert_eq!(config.retention.keep, 5);
        assert_eq!(config.retention.span, Duration::from_secs(2 * 86_400));
    }

    #[test]
    fn a_reload_says_by_name_what_changes_now_and_what_with_a_restart() {
        let old = load("", &[]).expect("valid");
        let text = "[receiver]\nlisten=\"127.0.0.1:1\"\nadvertise=[\"gw:1\"]\n[limits]\ncredit_mib=64\nvolumes_per_group=2\n\
                    [retention]\nkeep=3";
        let new = load(text, &[]).expect("valid");
        let (next, changes) = old.take_over(&new);
        assert_eq!(changes.needs_restart, ["[receiver] listen", "[limits] credit_mib"]);
        let live = ["[receiver] advertise [] → [gw:1]", "[limits] volumes_per_group 64 → 2", "[retention] keep 10 → 3"];
        assert_eq!(changes.live, live);
        assert_eq!((next.listen, next.retention.keep, next.limits.credit_mib), (old.listen, 3, old.limits.credit_mib));
        // What waits for a restart is said again, what holds is not.
        assert_eq!(next.take_over(&new).1, Changes { live: Vec::new(), ..changes });
        assert_eq!(old.take_over(&old), (old.clone(), Changes::default()));
        // In words, and without what may be a secret.
        let lists = "[[lock]]\nname = \"snap\"\nprogram = [\"/bin/snap\", \"hunter2\"]\n\
                     [[cohort]]\nname = \"erp\"\ngroups = [\"a/b\", \"c/d\"]\nevery = \"1m\"\nhold = \"200ms\"";
        let changes = old.take_over(&load(lists, &[]).expect("valid")).1;
        assert!(changes.live[0].starts_with("[[lock]] [] → [snap (/bin/snap, at most ") && !changes.live[0].contains("hunter2"));
        assert_eq!(changes.live[1], "[[cohort]] [] → [erp (a/b c/d; every 60s, hold 200ms)]");
    }

    #[test]
    fn a_key_is_of_one_group_or_of_each_that_has_none() {
        let of = |group: &str| GroupNames::new("web".parse().expect("a name"), group.parse().expect("a name"));
        let main = "[[key]]\nof = \"*\"\nkey = \"file:/all\"\n[[key]]\nof = \"web/db\"\nkey = \"file:/old\"";
        let config = load(main, &[("10-db.toml", "[[key]]\nof = \"web/db\"\nkey = \"file:/db\"")]).expect("valid");
        let keeper = |group: &str| config.keepers_of(&of(group)).given.first().map(ToString::to_string);
        assert_eq!((keeper("db").as_deref(), keeper("scratch").as_deref()), (Some("file:/db"), Some("file:/all")));
        assert_eq!(load("", &[]).expect("valid").keepers_of(&of("db")), Keepers::default());
    }

    /// Who says less than that something is to be in clear has it encrypted.
    #[test]
    fn what_is_encrypted_at_rest_is_all_of_it_but_what_is_said() {
        let of = |group: &str| GroupNames::new("web".parse().expect("a name"), group.parse().expect("a name"));
        let main = "[[at_rest]]\nkeys = [\"file:/a\", \"file:/b\"]\n[[at_rest]]\nof = \"web/scratch\"\nkeys = []";
        let config = load(main, &[("10.toml", "[[at_rest]]\nof = \"web/db\"\nkeys = [\"file:/c\"]")]).expect("valid");
        let words = |config: &Config, group| config.at_rest_of(&of(group)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(words(&config, "web"), ["file:/a", "file:/b"]);
        assert_eq!(words(&config, "db"), ["file:/c"]);
        assert!(words(&config, "scratch").is_empty() && words(&load("", &[]).expect("valid"), "web").is_empty());
        assert_eq!(config.keepers_of(&of("db")).at_rest.len(), 1);
        // It holds from now on, and is said without what may be a secret.
        let program = load("[[at_rest]]\nkeys = [\"command:/kms --token hunter2\"]", &[]).expect("valid");
        let (next, changes) = config.take_over(&program);
        assert_eq!(next.at_rest, program.at_rest);
        assert!(changes.needs_restart.is_empty() && changes.live.len() == 1, "{changes:?}");
        assert!(changes.live[0].ends_with("[* command:/kms …] (changed)") && !changes.live[0].contains("hunter2"), "{changes:?}");
    }

    #[test]
    fn a_budget_is_of_a_day_or_of_a_month() {
        let budget = |text: &str| load(&format!("[receiver]\npublish_budget = \"{text}\""), &[]).expect("valid").publish_budget;
        let days = |n: u64| Duration::from_secs(n * 86_400);
        assert_eq!(budget("2000 per day"), Some(PublishBudget { requests: 2000, per: days(1) }));
        assert_eq!(budget("60000 per month"), Some(PublishBudget { requests: 60_000, per: days(30) }));
        assert_eq!(budget("none"), None);
    }

    #[test]
    fn what_a_source_asks_for_is_kept_beside_what_the_gateway_insists_on() {
        let text = "[retention]\nat_least_keep=5\nat_least_span=\"1h\"\nat_least_grid=\"every 1m keep 2d, every 1h keep 30d\"";
        let retention = load(text, &[]).expect("valid").retention;
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let grid = farside_ledger::Grid::of([
            (Duration::from_secs(5), minutes(1)),
            (minutes(1), minutes(2)),
            (minutes(1440), minutes(90_000)),
        ]);
        let kept = retention.floor(&Policy { grid, ..Policy::without_grid(1, u64::MAX) });
        assert_eq!((kept.keep, kept.span_ms), (5, u64::MAX));
        let rules: Vec<_> = kept.grid.rules().iter().map(|r| (r.every_ms / 1000, r.keep_ms / 60_000)).collect();
        assert_eq!(rules, [(5, 1), (60, 2880), (3600, 43_200), (86_400, 90_000)]);
        assert_eq!(retention.floor(&Policy::without_grid(9, 0)).span_ms, 3_600_000);
        assert_eq!(retention.policy(), Policy::without_grid(10, 0), "and says nothing of those who said nothing");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, word) in [
            ("[receiver]\nlsten = \"x\"", "lsten"),
            ("[receiver]\nlisten = \"nowhere\"", "receiver.toml, line 2: listen: "),
            ("[[lock]]\nname = \"reflink\"\nprogram = [\"/x\"]", "receiver.toml, line 2: name: "),
            ("[[lock]]\nname = \"x\"\nprogram = [\"x\"]", "receiver.toml, line 3: program: "),
            ("[[lock]]\nname = \"x\"\nprogram = [\"/x\"]\ntimeout = \"2d\"", "receiver.toml, line 4: timeout: "),
            ("[[cohort]]\nname = \"c\"\ngroups = [\"a/b\"]", "receiver.toml, line 3: groups: 2 to 256 groups"),
            ("[[cohort]]\nname = \"c\"\ngroups = [\"a/b\", \"c\"]", "receiver.toml, line 3: groups: `c` is not HOST/GROUP"),
            ("[[cohort]]\nname = \"c\"\ngroups = [\"a/b\", \"a/b\"]", "receiver.toml, line 3: groups: `a/b` is there twice"),
            (
                "[[cohort]]\nname = \"c\"\ngroups = [\"a/b\", \"c/d\"]\n[[cohort]]\nname = \"d\"\ngroups = [\"c/d\", \"e/f\"]",
                "receiver.toml, line 6: groups: `c/d` is in cohort c already",
            ),
            (
                "[[cohort]]\nname = \"c\"\ngroups = [\"a/b\", \"c/d\"]\nevery = \"1s\"\nhold = \"200ms\"",
                "receiver.toml, line 5: hold: at most a 10th of `every`, 100 ms",
            ),
            ("[[key]]\nof = \"db\"\nkey = \"file:/x\"", "receiver.toml, line 2: of: `db` is neither HOST/GROUP nor `*`"),
            (
                "[[key]]\nof = \"*\"\nkey = \"file:/x\"\n[[key]]\nof = \"*\"\nkey = \"file:/y\"",
                "line 5: of: `*` has a key in this file already",
            ),
            ("[[key]]\nof = \"a/b\"\nkey = \"passphrase\"", "receiver.toml, line 3: key: nobody is there"),
            ("[[key]]\nof = \"a/b\"\nkey = \"file:x\"", "receiver.toml, line 3: key: must be an absolute path"),
            ("[[at_rest]]\nof = \"db\"\nkeys = []", "receiver.toml, line 2: of: `db` is neither HOST/GROUP nor `*`"),
            ("[[at_rest]]\nkeys = []\n[[at_rest]]\nof = \"*\"\nkeys = []", "line 4: of: `*` is in this file already"),
            ("[[at_rest]]\nkeys = [\"file:/x\", \"passphrase\"]", "receiver.toml, line 2: keys: nobody is there"),
            ("[[at_rest]]\nof = \"*\"", "missing field `keys`"),
            ("[receiver]\nlisten_tcp = \"7400\"", "receiver.toml, line 2: listen_tcp: "),
            ("[receiver]\nname = \"a b\"", "not a valid name"),
            ("[receiver]\nadvertise = [\"gateway\"]", "line 2: advertise: "),
            ("[receiver]\nstore = \"points\"", "line 2: store: `points` is not an absolute path"),
            ("[receiver]\nstore = \"ftp://x\"", "line 2: store: `ftp://x` is not where a store can be"),
            ("[receiver]\nstore = \"s3://me:hunter2@x\"", "an address holds no credentials"),
            ("[receiver]\npublish_budget = \"many\"", "line 2: publish_budget: `many` is not like `2000 per day`"),
            ("[receiver]\npublish_budget = \"2000 per month\"", "line 2: publish_budget: at least 100 requests a day"),
            ("[limits]\nconnections = 0", "line 2: connections: at least 1"),
            ("[limits]\nreceive_budget_mib = 5000", "receive_budget_mib"),
            ("[limits]\nvolumes_per_group = 65", "volumes_per_group"),
            ("[retention]\nkeep = 0", "line 2: keep: "),
            ("[retention]\n\nspan = \"soon\"", "line 3: span: "),
            ("[retention]\ngrid = \"every 1m\"", "line 2: grid: rule 1, `every 1m`, is not like `every 1m keep 1d`"),
            ("[retention]\nat_least_grid = \"every 1h keep 1d, every 1m keep 2d\"", "line 2: at_least_grid: rule 2"),
            ("[verify]\nevery = \"often\"", "line 2: every: "),
            ("[verify]\nevery = \"0s\"", "line 2: every: at least 1s"),
            ("[verify]\nrate = \"fast\"", "line 2: rate: `fast` is not a rate"),
            ("[merge]\nevery = \"0s\"", "line 2: every: at least 1s"),
            ("[merge]\nevery_in_bucket = \"0s\"", "line 2: every_in_bucket: at least 1s"),
            ("[merge]\nrate = \"fast\"", "line 2: rate: `fast` is not a rate"),
            ("[unknown]", "unknown"),
            ("[receiver", "receiver.toml"),
        ] {
            let error = load(text, &[]).expect_err(text).to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
        assert!(Config::load(Path::new("/nowhere/receiver.toml")).is_err());
    }

    #[test]
    fn what_costs_nothing_is_merged_unless_it_is_said_otherwise() {
        let dir = Location::Dir("/srv/farside".into());
        let bucket: Location = "s3://points/prefix".parse().expect("a bucket");
        let merge = |text: &str| load(text, &[]).expect(text).merge;
        assert_eq!(merge("").every_for(&dir), Some(Duration::from_secs(300)));
        assert_eq!(merge("").every_for(&bucket), None);
        let other = merge("[merge]\nevery = \"never\"\nevery_in_bucket = \"1h\"");
        assert_eq!(other.every_for(&dir), None);
        assert_eq!(other.every_for(&bucket), Some(Duration::from_secs(3600)));
    }
}
