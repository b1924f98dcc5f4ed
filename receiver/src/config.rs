//! The receiver's configuration: one TOML file and the `conf.d/*.toml` beside it, later files over earlier ones.
//!
//! Invariant: a [`Config`] that exists was validated as a whole. It holds no secret.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_region::Name;
use farside_wire::END_MEMBERS_MAX;
use jiff::SignedDuration;
use serde::Deserialize;

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/farside/receiver.toml";
/// The UDP port sources connect to.
pub const DEFAULT_PORT: u16 = 7400;

/// Everything that the files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name that sources see; the host's name by default.
    pub name: Name,
    /// The UDP address for sources.
    pub listen: SocketAddr,
    /// Where points live: a directory on a local file system.
    pub store: PathBuf,
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
}

/// `[limits]`: bounds of memory, disk and patience.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// How often points are given up; more seldom makes fewer ledger records.
    pub interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 10, span: Duration::ZERO, interval: Duration::from_secs(5) }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Line and reason.
        source: Box<toml::de::Error>,
    },
    /// A key is unknown or has a value of the wrong sort.
    #[error("{} (with its conf.d): {reason}", path.display())]
    Content {
        /// The main file.
        path: PathBuf,
        /// Which key, and why.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    #[serde(default)]
    receiver: ReceiverTable,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    retention: RetentionTable,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReceiverTable {
    name: Option<Name>,
    listen: Option<String>,
    store: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    api_socket: Option<PathBuf>,
    api_group: Option<String>,
    advertise: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetentionTable {
    keep: Option<u32>,
    span: Option<String>,
    interval: Option<String>,
}

impl Config {
    /// Reads `path` and the `conf.d/*.toml` beside it, in the order of their names. The default file may be absent.
    ///
    /// # Errors
    /// When a file cannot be read, a key is unknown, or a value makes no sense: nothing is ignored.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let io = |path: &Path, source| ConfigError::Io { path: path.to_owned(), source };
        let mut merged = toml::Table::new();
        match std::fs::read_to_string(path) {
            Ok(text) => merge(&mut merged, parse(path, &text)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {}
            Err(e) => return Err(io(path, e)),
        }
        let folder = path.parent().unwrap_or(Path::new(".")).join("conf.d");
        let mut parts: Vec<PathBuf> = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            entries => entries
                .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>())
                .map_err(|e| io(&folder, e))?,
        };
        parts.retain(|p| p.extension().is_some_and(|e| e == "toml"));
        parts.sort();
        for part in parts {
            let text = std::fs::read_to_string(&part).map_err(|e| io(&part, e))?;
            merge(&mut merged, parse(&part, &text)?);
        }
        Self::from_table(merged).map_err(|reason| ConfigError::Content { path: path.to_owned(), reason })
    }

    fn from_table(table: toml::Table) -> Result<Self, String> {
        let files: Files = table.try_into().map_err(|e: toml::de::Error| e.message().to_owned())?;
        let Files { receiver, limits, retention } = files;
        let listen = receiver.listen.unwrap_or_else(|| format!("[::]:{DEFAULT_PORT}"));
        let listen = listen.parse().map_err(|_| format!("receiver.listen: `{listen}` is not IP:PORT"))?;
        if let Some(bad) = receiver.advertise.iter().find(|a| !is_address(a)) {
            return Err(format!("receiver.advertise: `{bad}` is not HOST:PORT"));
        }
        if receiver.advertise.len() > 16 {
            return Err("receiver.advertise: at most 16 addresses".to_owned());
        }
        let small = |name: &str, value: u64, least: u64| {
            if value < least { Err(format!("limits.{name}: at least {least}")) } else { Ok(()) }
        };
        small("receive_budget_mib", limits.receive_budget_mib.into(), 8)?;
        small("connections", limits.connections as u64, 1)?;
        small("groups_per_source", limits.groups_per_source as u64, 1)?;
        small("volumes_per_group", limits.volumes_per_group as u64, 1)?;
        small("parts_per_connection", limits.parts_per_connection.into(), 1)?;
        if limits.volumes_per_group > END_MEMBERS_MAX {
            return Err(format!("limits.volumes_per_group: at most {END_MEMBERS_MAX}, as many as a point may hold"));
        }
        small("credit_mib", limits.credit_mib.into(), 64)?;
        if limits.receive_budget_mib > 4095 {
            return Err("limits.receive_budget_mib: at most 4095".to_owned());
        }
        let default = Retention::default();
        let duration = |key: &str, text: Option<String>, default: Duration| match text {
            None => Ok(default),
            Some(text) => parse_duration(&text).map_err(|e| format!("retention.{key}: {e}")),
        };
        let retention = Retention {
            keep: retention.keep.unwrap_or(default.keep),
            span: duration("span", retention.span, default.span)?,
            interval: duration("interval", retention.interval, default.interval)?,
        };
        if retention.keep == 0 {
            return Err("retention.keep: at least 1, there is always a last good point".to_owned());
        }
        Ok(Self {
            name: receiver.name.unwrap_or_else(host_name),
            listen,
            store: receiver.store.unwrap_or_else(|| "/var/lib/farside-receiver/store".into()),
            state_dir: receiver.state_dir.unwrap_or_else(|| "/var/lib/farside-receiver/state".into()),
            api_socket: receiver.api_socket.unwrap_or_else(|| farside_control::RECEIVER_SOCKET.into()),
            api_group: receiver.api_group,
            advertise: receiver.advertise,
            limits,
            retention,
        })
    }
}

/// `90s`, `5m`, `1h30m`, `2d`.
///
/// # Errors
/// A sentence for a person.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 90s, 5m, 1h30m or 2d");
    let parsed: SignedDuration = match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => SignedDuration::from_hours(24 * i64::from(days)),
        _ => text.parse().map_err(|_| wrong())?,
    };
    Duration::try_from(parsed).map_err(|_| wrong())
}

fn parse(path: &Path, text: &str) -> Result<toml::Table, ConfigError> {
    text.parse().map_err(|e| ConfigError::Syntax { path: path.to_owned(), source: Box::new(e) })
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
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
        std::fs::create_dir(directory.path().join("conf.d")).expect("made");
        for (name, text) in parts {
            std::fs::write(directory.path().join("conf.d").join(name), text).expect("written");
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
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, word) in [
            ("[receiver]\nlsten = \"x\"", "lsten"),
            ("[receiver]\nlisten = \"nowhere\"", "receiver.listen"),
            ("[receiver]\nname = \"a b\"", "not a valid name"),
            ("[receiver]\nadvertise = [\"gateway\"]", "receiver.advertise"),
            ("[limits]\nconnections = 0", "limits.connections"),
            ("[limits]\nreceive_budget_mib = 5000", "receive_budget_mib"),
            ("[limits]\nvolumes_per_group = 65", "volumes_per_group"),
            ("[retention]\nkeep = 0", "retention.keep"),
            ("[retention]\nspan = \"soon\"", "retention.span"),
            ("[unknown]", "unknown"),
            ("[receiver", "receiver.toml"),
        ] {
            let error = load(text, &[]).expect_err(text).to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
        assert!(Config::load(Path::new("/nowhere/receiver.toml")).is_err());
    }
}
