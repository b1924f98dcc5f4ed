//! The name under which the receiver files this host, where the configuration says none.
//!
//! Invariant: † it is the host's own at the first volume, and stays what it was then, whatever the host is called later: identities of volumes
//! come from it, and a name that an administrator or a DHCP server changes would leave every volume without its history.
//!
//! It is kept in the state directory. Before there are volumes it is not: a machine that is cloned to be many has none.

use std::io;
use std::path::{Path, PathBuf};

use farside_ledger::VolumeMeta;
use farside_region::{Name, NameError};
use tracing::{info, warn};

use crate::boot;
use crate::config::{ConfigError, write_atomically};
use crate::state_dir::{meta_path, volume_meta, volumes_path};

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("source-name")
}

/// The name of a host whose configuration, at `config`, says none.
///
/// # Errors
/// When it cannot be read which it was; or when it was none, and that of the host is no name of ours.
pub(crate) fn unsaid(state_dir: &Path, config: &Path) -> Result<Name, ConfigError> {
    match kept(state_dir)? {
        Some(name) => Ok(name),
        None => {
            let host = host_name();
            // Of a build that kept none.
            let earlier = boot::sources(config).into_iter().chain(host.clone().ok()).find(|name| has_volume_of(state_dir, name));
            earlier.map_or(host, Ok).map_err(|error| ConfigError::Value {
                path: config.to_owned(),
                what: format!("set `name` in [source]: the host name does not serve: {error}"),
            })
        }
    }
}

/// Says that a host is called otherwise than its volumes are filed.
pub(crate) fn say_of_another(state_dir: &Path, source: &Name) {
    let is_kept = || kept(state_dir).ok().flatten().is_some_and(|kept| kept == *source);
    let host = host_name().map_or_else(|error| format!("a name that does not serve ({error})"), |name| name.to_string());
    if host != source.as_str() && is_kept() {
        info!("this host is called {host}; its volumes are filed as {source} at the receiver, and stay so");
    }
}

/// A volume is to be made: if it is the first, its name is durable before its identity.
///
/// # Errors
/// When it is not.
pub(crate) fn before_a_volume(state_dir: &Path, source: &Name) -> Result<(), ConfigError> {
    if kept(state_dir)?.is_some() || volume_dirs(state_dir).any(|(_, dir)| meta_path(&dir).exists()) {
        return Ok(());
    }
    write_atomically(&path(state_dir), source.as_str())
}

/// A volume of that name is served.
pub(crate) fn serves(state_dir: &Path, source: &Name) {
    let keep = || match kept(state_dir)? {
        Some(kept) if kept == *source => Ok(()),
        _ => write_atomically(&path(state_dir), source.as_str()),
    };
    if let Err(error) = keep() {
        warn!("{error}: say `name = \"{source}\"` in [source], in case the host is called otherwise some day");
    }
}

/// Under which name a volume was made, as far as that can be told.
pub(crate) fn of_volume(state_dir: &Path, config: &Path, meta: &VolumeMeta, group: &Name) -> Option<Name> {
    let candidates = kept(state_dir).ok().flatten().into_iter().chain(host_name().ok()).chain(boot::sources(config));
    candidates.into_iter().find(|name| farside_ledger::volume_id(name, group, &meta.name) == meta.id)
}

fn kept(state_dir: &Path) -> Result<Option<Name>, ConfigError> {
    let path = path(state_dir);
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(name) => Ok(Some(name)),
            Err(error) => {
                let what = format!("{}: {error}; say `name` in [source]", path.display());
                Err(ConfigError::Value { path, what })
            }
        },
        // Whoever may not look into it serves nothing either: the command line, of somebody who may use the socket.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(source) => Err(ConfigError::Io { verb: "read", path, source }),
    }
}

fn has_volume_of(state_dir: &Path, source: &Name) -> bool {
    metas(state_dir).any(|(group, meta)| farside_ledger::volume_id(source, &group, &meta.name) == meta.id)
}

/// Of the volumes that were served at some time, with their groups.
fn metas(state_dir: &Path) -> impl Iterator<Item = (Name, VolumeMeta)> {
    volume_dirs(state_dir).filter_map(|(group, dir)| Some((group, volume_meta(&dir).ok()??)))
}

fn volume_dirs(state_dir: &Path) -> impl Iterator<Item = (Name, PathBuf)> {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = list(&volumes_path(state_dir)).filter_map(|folder| Some((folder.file_name()?.to_str()?.parse().ok()?, folder)));
    groups.flat_map(move |(group, folder): (Name, PathBuf)| list(&folder).map(move |dir| (group.clone(), dir)))
}

fn host_name() -> Result<Name, NameError> {
    #[cfg(test)]
    if let Some(name) = tests::HOST.take() {
        tests::HOST.set(Some(name.clone()));
        return name.parse();
    }
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().parse()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    thread_local! {
        /// What the host is called.
        pub(crate) static HOST: std::cell::Cell<Option<String>> = const { std::cell::Cell::new(None) };
    }

    #[test]
    fn a_host_without_volumes_is_called_as_it_is() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (state, config) = (dir.path().join("state"), dir.path().join("farsided.toml"));
        for host in ["a", "b"] {
            HOST.set(Some(host.to_owned()));
            assert_eq!(unsaid(&state, &config).expect("a name").as_str(), host);
        }
        let name: Name = "b".parse().expect("a name");
        std::fs::create_dir(&state).expect("made");
        before_a_volume(&state, &name).expect("written");
        for host in ["c", "not a name"] {
            HOST.set(Some(host.to_owned()));
            assert_eq!(unsaid(&state, &config).expect("a name"), name);
            before_a_volume(&state, &"c".parse().expect("a name")).expect("nothing to do");
        }
        std::fs::write(path(&state), "not a name").expect("written");
        let error = unsaid(&state, &config).expect_err("damaged").to_string();
        assert!(error.contains("source-name"), "{error}");
        std::fs::remove_file(path(&state)).expect("removed");
        assert!(unsaid(&state, &config).expect_err("none").to_string().contains("set `name` in [source]"));
    }
}
