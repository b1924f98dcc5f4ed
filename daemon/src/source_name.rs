//! The name under which the receiver files this host, where the configuration says none.
//!
//! Invariant: † it is the host's own at the first volume, and stays what it was then, whatever the host is called later: identities of volumes
//! come from it, and a name that an administrator or a DHCP server changes would leave every volume without its history.
//!
//! It is kept in the state directory. Before there are volumes it is not: a machine that is cloned to be many has none.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use farside_ledger::VolumeMeta;
use farside_region::{Name, NameError};
use tracing::{info, warn};

use crate::boot;
use crate::config::{ConfigError, GroupConfig, write_atomically};
use crate::state_dir::{meta_path, volume_meta, volumes_path};

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("source-name")
}

/// The name of a host whose configuration, at `config` and with these groups, says none.
///
/// # Errors
/// When it cannot be told which it was; or when it was none, and that of the host is no name of ours.
pub(crate) fn unsaid(state_dir: &Path, config: &Path, groups: &BTreeMap<Name, GroupConfig>) -> Result<Name, ConfigError> {
    let kept = match kept(state_dir) {
        Ok(Some(name)) => return Ok(name),
        kept => kept,
    };
    let host = host_name();
    // Of a build that kept none, or where what is kept is damaged: the identities of the volumes tell. † Not of those whose place is taken here.
    let is_another = |name: &Name| groups.values().any(|group| group.stand_in_for.as_ref() == Some(name));
    let mut earlier = boot::sources(config).into_iter().chain(host.clone().ok());
    let earlier = earlier.find(|name| !is_another(name) && has_volume_of(state_dir, name));
    let value = |what| ConfigError::Value { path: config.to_owned(), what };
    match (kept, earlier) {
        (Ok(_), Some(name)) => Ok(name),
        (Ok(_), None) => host.map_err(|error| value(format!("set `name` in [source]: the host name does not serve: {error}"))),
        (Err(error), Some(name)) => {
            warn!("{error}; it is {name} by the identities of the volumes, and is kept anew as soon as one is served");
            Ok(name)
        }
        // † Another name would leave every volume without its history.
        (Err(error), None) => Err(value(format!(
            "set `name` in [source] to the name under which the receiver files this host (`farside status` on the gateway shows it): it \
             cannot be told here: {error}"
        ))),
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
    // What is damaged says nothing, and keeps no volume from being served of which a person, or another volume, says whose it is.
    let is_kept = kept(state_dir).is_ok_and(|kept| kept.is_some());
    if is_kept || volume_dirs(state_dir).any(|(_, dir)| meta_path(&dir).exists()) {
        return Ok(());
    }
    write_atomically(&path(state_dir), source.as_str())
}

/// A volume of that name is served.
pub(crate) fn serves(state_dir: &Path, source: &Name) {
    if kept(state_dir).is_ok_and(|kept| kept.as_ref() == Some(source)) {
        return;
    }
    if let Err(error) = write_atomically(&path(state_dir), source.as_str()) {
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
            Err(error) => Err(ConfigError::Value { path, what: format!("it is damaged: {error}") }),
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
    use farside_region::{DigestKey, Generation, Geometry};

    use super::*;

    thread_local! {
        /// What the host is called.
        pub(crate) static HOST: std::cell::Cell<Option<String>> = const { std::cell::Cell::new(None) };
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    /// The folder of a volume that was made under that name, in that group.
    fn volume_of(state_dir: &Path, (source, group): (&str, &str)) {
        let id = farside_ledger::volume_id(&name(source), &name(group), &name("data"));
        let geometry = Geometry::new(1 << 20).expect("a size");
        let digest_key = DigestKey::Clear([1; 32]);
        let meta = VolumeMeta { id, name: name("data"), geometry, digest_key, generation: Generation(1) };
        let folder = volumes_path(state_dir).join(group).join("data");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(meta_path(&folder), serde_json::to_string(&meta).expect("JSON")).expect("written");
    }

    #[test]
    fn a_host_without_volumes_is_called_as_it_is() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (state, config) = (dir.path().join("state"), dir.path().join("farsided.toml"));
        let unsaid = || unsaid(&state, &config, &BTreeMap::new());
        for host in ["a", "b"] {
            HOST.set(Some(host.to_owned()));
            assert_eq!(unsaid().expect("a name").as_str(), host);
        }
        std::fs::create_dir(&state).expect("made");
        before_a_volume(&state, &name("b")).expect("written");
        for host in ["c", "not a name"] {
            HOST.set(Some(host.to_owned()));
            assert_eq!(unsaid().expect("a name"), name("b"));
            before_a_volume(&state, &name("c")).expect("nothing to do");
        }
        std::fs::remove_file(path(&state)).expect("removed");
        assert!(unsaid().expect_err("none").to_string().contains("set `name` in [source]"));
    }

    /// A file of one word kept every volume of a host from being served, and the way out that it named led nowhere.
    #[test]
    fn a_name_that_cannot_be_read_is_told_by_the_volumes_or_by_a_person() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (state, config) = (dir.path(), dir.path().join("farsided.toml"));
        let unsaid = |groups: &BTreeMap<Name, GroupConfig>| unsaid(state, &config, groups);
        let none = BTreeMap::new();
        HOST.set(Some("a".to_owned()));
        let damage: [fn(&Path); 3] = [
            |file| std::fs::write(file, "").expect("written"),
            |file| std::fs::write(file, b"\xff\0").expect("written"),
            // Neither there nor not there: a link that leads to itself.
            |file| std::os::unix::fs::symlink("source-name", file).expect("linked"),
        ];
        for damage in damage {
            let _ = std::fs::remove_dir_all(state.join("volumes"));
            let spoil = || {
                std::fs::remove_file(path(state)).unwrap_or_default();
                damage(&path(state));
            };
            spoil();
            let error = unsaid(&none).expect_err("there is no volume").to_string();
            assert!(error.contains("source-name") && error.contains("set `name` in [source]"), "{error}");
            // A person says it.
            before_a_volume(state, &name("b")).expect("written");
            assert_eq!(kept(state).expect("read"), Some(name("b")));
            // What is there is of another name.
            spoil();
            volume_of(state, ("z", "db"));
            unsaid(&none).expect_err("nobody says whose it is");
            // Nor is this host the one in whose place it stands.
            let stands_in = GroupConfig { stand_in_for: Some(name("a")), ..GroupConfig::default() };
            volume_of(state, ("a", "other"));
            unsaid(&BTreeMap::from([(name("other"), stands_in)])).expect_err("that is another host");
            assert_eq!(unsaid(&none).expect("the volume says it"), name("a"));
            before_a_volume(state, &name("a")).expect("nothing to do");
            serves(state, &name("a"));
            assert_eq!(std::fs::read_to_string(path(state)).expect("kept anew"), "a");
        }
    }
}
