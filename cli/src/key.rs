//! `farside key …`: key files, and the wrapped keys of a store or of a folder of `farsided`.
//!
//! A key itself is in no output and in no file that this makes: it is unwrapped, wrapped again, and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farside_control::Address;
use farside_keys::{ARGON2_DEFAULT, Argon2Cost, GroupKey, Keeper, WrapError, Wrapping};
use farside_objects::Location;
use farside_region::{KeyId, SealMode};
use farside_store::{GroupNames, Listing, ObjectName, StoreReader, add_wrapping, wrappings};
use serde::Serialize;

use crate::args::{Global, KeyCommand};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::print::{self, NOTHING, Table};
use crate::store;

/// Names a passphrase where nobody is to be asked.
const PASSPHRASE_VARIABLE: &str = "FARSIDE_PASSPHRASE";
/// Names the one that a key is wrapped with.
const NEW_PASSPHRASE_VARIABLE: &str = "FARSIDE_NEW_PASSPHRASE";

/// A wrapped key.
#[derive(Debug, Serialize)]
struct Listed {
    /// SOURCE/GROUP; `None`: of a folder.
    group: Option<String>,
    /// Its object or file.
    path: String,
    /// The key's id; `None`: it cannot be used.
    key: Option<String>,
    /// What unwraps it.
    by: Option<String>,
    /// The group that it is wrapped for alone, if it is for one.
    bound_to: Option<String>,
    /// What is wrong with it.
    message: Option<String>,
    /// The volumes that are encrypted with the key.
    volumes: Vec<String>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    path: String,
    key: Option<String>,
}

/// `farside key`.
pub(crate) fn run(global: &Global, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::New { file } => new(global, &file),
        KeyCommand::List { url, of } => list(global, &Place::of(&url, of.as_ref())?, of.as_ref()),
        KeyCommand::Copy { url, of, to } => copy(global, &store::location_of(&url)?, of.as_ref(), &to),
        KeyCommand::Wrap { url, of, key, with } => wrap(global, &Place::of(&url, of.as_ref())?, of.as_ref(), key, with),
    }
}

/// Where wrapped keys are.
enum Place {
    Store(Location),
    Folder(PathBuf),
}

impl Place {
    /// † A directory with neither in it is where a store is to be mounted, and says nothing of its keys.
    fn of(url: &str, of: Option<&Address>) -> Result<Self, Failure> {
        let folder = match store::location_of(url)? {
            Location::Dir(path) if path.is_dir() && !path.join("farside-store.json").exists() => path,
            location => return Ok(Self::Store(location)),
        };
        let message = match of {
            _ if in_folder(&folder)?.is_empty() => {
                format!("{} is neither a store nor a folder of wrapped keys (is it mounted?)", folder.display())
            }
            Some(of) => format!("{} is no store, and has no group {of}: it is a folder of wrapped keys", folder.display()),
            None => return Ok(Self::Folder(folder)),
        };
        let what_to_do =
            "name a store (mount it first), or what farsided has of a group: /var/lib/farside/keys/GROUP, without --of";
        Err(Failure::new(Exit::NotFound, message, what_to_do))
    }
}

/// The same of several.
pub(crate) fn with_passphrases(keepers: &[Keeper]) -> Result<Vec<Keeper>, Failure> {
    keepers.iter().map(|keeper| with_passphrase(keeper.clone(), &format!("What opens ({keeper}): "))).collect()
}

/// A passphrase that was not named is taken from the environment, or asked for. Whoever has a key leaves no core of its memory.
pub(crate) fn with_passphrase(keeper: Keeper, question: &str) -> Result<Keeper, Failure> {
    farside_blockio::process::refuse_core_dumps().or_fail("a core dump of this would hold the key")?;
    Passphrases::HERE.that_opens(keeper, question)
}

/// Where passphrases come from that no file holds.
#[derive(Clone, Copy)]
struct Passphrases<'p> {
    variable: &'p dyn Fn(&str) -> Option<OsString>,
    ask: &'p dyn Fn(&str) -> Result<Keeper, Failure>,
}

impl Passphrases<'static> {
    const HERE: Self = Self { variable: &|name| std::env::var_os(name), ask: &ask };
}

impl Passphrases<'_> {
    /// What opens something: a mistake is found out at once.
    fn that_opens(&self, keeper: Keeper, question: &str) -> Result<Keeper, Failure> {
        if keeper != Keeper::Passphrase(None) {
            return Ok(keeper);
        }
        self.given(PASSPHRASE_VARIABLE)?.map_or_else(|| (self.ask)(question), Ok)
    }

    /// What a key is to be wrapped with. † One with a slip in it is wrapped and verified against itself, and nobody knows it once the other
    /// wrappings are gone: it is asked for twice. † Nor is it what opens the key now, which may be known to others.
    fn that_wraps(&self, with: Keeper, opened_by: &Keeper) -> Result<Keeper, Failure> {
        let is_asked = |keeper: &Keeper| *keeper == Keeper::Passphrase(None);
        if !is_asked(&with) {
            return Ok(with);
        }
        if let Some(given) = self.given(NEW_PASSPHRASE_VARIABLE)? {
            return Ok(given);
        }
        match self.given(PASSPHRASE_VARIABLE)? {
            Some(_) if is_asked(opened_by) => {
                let message = format!("{PASSPHRASE_VARIABLE} is what opens the key now, and is not wrapped with once more");
                let what_to_do =
                    format!("set {NEW_PASSPHRASE_VARIABLE} to the new passphrase, or name a file: --with passphrase:FILE");
                return Err(Failure::new(Exit::Usage, message, what_to_do));
            }
            Some(given) => return Ok(given),
            None => {}
        }
        let first = (self.ask)("New passphrase: ")?;
        if first != (self.ask)("The same again: ")? {
            return Err(Failure::new(Exit::Usage, "the two passphrases differ: nothing was wrapped", "say this again"));
        }
        Ok(first)
    }

    /// What a variable says.
    fn given(&self, variable: &str) -> Result<Option<Keeper>, Failure> {
        let Some(given) = (self.variable)(variable) else { return Ok(None) };
        let text = given
            .into_string()
            .map_err(|_| Failure::new(Exit::Usage, format!("{variable} is not UTF-8"), "name a file: passphrase:FILE"))?;
        Ok(Some(Keeper::Passphrase(Some(text.into()))))
    }
}

/// Asks whoever sits at the terminal.
fn ask(question: &str) -> Result<Keeper, Failure> {
    let none = || {
        let what_to_do = format!(
            "set {PASSPHRASE_VARIABLE} (what a key is to be wrapped with: {NEW_PASSPHRASE_VARIABLE}), or name a file: passphrase:FILE"
        );
        Failure::new(Exit::Usage, "there is no passphrase", what_to_do)
    };
    if !std::io::stdin().is_terminal() {
        return Err(none());
    }
    let _ = std::io::stderr().write_all(question.as_bytes());
    // It is seen if the terminal does not do it, which is better than not being able to restore.
    let echo = |how: &str| Command::new("stty").arg(how).stdin(Stdio::inherit()).status().is_ok_and(|status| status.success());
    let is_hidden = echo("-echo");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    if is_hidden {
        echo("echo");
        eprintln!();
    }
    read.or_fail("the passphrase cannot be read")?;
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    if line.is_empty() { Err(none()) } else { Ok(Keeper::Passphrase(Some(line.into()))) }
}

fn new(global: &Global, file: &Path) -> Result<(), Failure> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut from| std::io::Read::read_exact(&mut from, &mut bytes))
        .or_fail("there is no randomness")?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut made = made.map_err(|e| {
        Failure::new(
            Exit::Refused,
            format!("{} cannot be made: {e}", file.display()),
            "name a file that is not there, in a directory that is",
        )
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let kept = made.write_all(&bytes).and_then(|()| made.sync_all());
    kept.and_then(|()| std::fs::File::open(folder)?.sync_all()).or_fail("the key file may not be whole: remove it")?;
    if global.json {
        return print::json(&Made { path: file.display().to_string(), key: None });
    }
    print::out(&format!(
        "{} holds a new key. Keep a copy where neither this machine nor the store can take it away: what is encrypted is lost without it\n",
        file.display()
    ))
}

/// The groups of a store that are meant.
fn groups(store: &StoreReader, of: Option<&Address>) -> Result<Vec<GroupNames>, Failure> {
    let Listing { groups: all, mut unlisted, .. } = store.groups()?;
    let is_meant = |names: &GroupNames| of.is_none_or(|of| of.is_group(names.source.as_str(), names.group.as_str()));
    let groups: Vec<GroupNames> = all.iter().filter(|names| is_meant(names)).cloned().collect();
    match (groups.is_empty(), of) {
        // Among those may be what is meant.
        (true, _) | (_, None) if !unlisted.is_empty() => Err(unlisted.remove(0).1.into()),
        (true, Some(of)) => {
            let known: Vec<String> = all.iter().map(ToString::to_string).collect();
            Err(Failure::new(Exit::NotFound, format!("the store has no group {of}"), format!("it has: {}", known.join(", "))))
        }
        _ => Ok(groups),
    }
}

/// The one group that is meant.
fn group(store: &StoreReader, of: Option<&Address>) -> Result<GroupNames, Failure> {
    let groups = groups(store, of)?;
    if let [names] = &groups[..] {
        return Ok(names.clone());
    }
    let known: Vec<String> = groups.iter().map(ToString::to_string).collect();
    let what_to_do = format!("name one of them: --of {}", known.first().map_or("SOURCE/GROUP", String::as_str));
    Err(Failure::new(Exit::Usage, format!("the store has {} groups: {}", known.len(), known.join(", ")), what_to_do))
}

fn copy(global: &Global, location: &Location, of: Option<&Address>, folder: &Path) -> Result<(), Failure> {
    let store = store::open(location)?;
    let names = group(&store, of)?;
    // † With the key of a group at rest a host would encrypt end to end what its gateway can read.
    let mut there = wrappings(&**store.backend(), &names)?;
    there.retain(|stored| stored.wrapping.as_ref().ok().and_then(Wrapping::group).is_none());
    if there.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("group {names} has no wrapped keys of a host: nothing of it is encrypted end to end"),
            "see which there are: farside key list",
        ));
    }
    let failed =
        |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"), "run this as the user that runs farsided");
    let has = in_folder(folder)?;
    let unusable: Vec<String> = there
        .iter()
        .filter_map(|stored| Some(format!("{} cannot be used, and was left: {}", names.key(stored.number), stored.fault()?)))
        .collect();
    if unusable.len() == there.len() {
        let message = format!("no wrapped key of group {names} can be used: {}", unusable.join("; "));
        return Err(Failure::new(Exit::Damaged, message, "put them back from a copy of the store, or from the host's folder"));
    }
    there.retain(|stored| stored.fault().is_none());
    // † farsided takes the first that it can unwrap: one of another key would have it encrypt with that.
    let group = store.group(&names)?;
    let seals = group.state().volumes().filter_map(|(_, v)| v.meta().digest_key.seal());
    let sealed: BTreeSet<KeyId> = seals.filter(|seal| seal.mode == SealMode::EndToEnd).map(|seal| seal.key).collect();
    // † Anybody who paired may have put a wrapping of his own: where something is encrypted, only that key's count.
    if !sealed.is_empty() {
        there.retain(|stored| stored.wrapping.as_ref().is_ok_and(|wrapping| sealed.contains(&wrapping.key())));
        if there.is_empty() {
            let message = format!("the store holds no wrapped key of a host that group {names} is encrypted with");
            let what_to_do = "put it back from a copy of the store, or from the folder of the host that it was encrypted on";
            return Err(Failure::new(Exit::Damaged, message, what_to_do));
        }
    }
    let known = |key: &KeyId| {
        sealed.contains(key) || there.iter().any(|stored| stored.wrapping.as_ref().is_ok_and(|wrapping| wrapping.key() == *key))
    };
    let strange = has.iter().find_map(|(number, _, wrapping)| {
        let key = wrapping.as_ref().ok().map(Wrapping::key).filter(|key| !known(key))?;
        Some((folder.join(number.to_string()), key))
    });
    if let Some((path, key)) = strange {
        let message = format!("{} is of the key {key}, which is none of group {names} in this store", path.display());
        return Err(Failure::new(Exit::Refused, message, "if nothing is encrypted with it, move it away, and say this again"));
    }
    let (mut made, mut text) = (Vec::new(), String::new());
    unusable.iter().for_each(|line| text.push_str(&format!("! {line}\n")));
    for (stored, wrapping) in there.iter().filter_map(|stored| Some((stored, stored.wrapping.as_ref().ok()?))) {
        if has.iter().any(|(_, has, _)| *has == stored.bytes) {
            continue;
        }
        let path = farside_daemon::keys::add_bytes(folder, &stored.bytes).map_err(failed)?.display().to_string();
        text.push_str(&format!("the key {}, wrapped by {}, is in {path}\n", wrapping.key(), wrapping.way()));
        made.push(Made { path, key: Some(wrapping.key().to_string()) });
    }
    if global.json {
        return print::json(&made);
    }
    if made.is_empty() {
        text.push_str(&format!("{} has all of them already\n", folder.display()));
    }
    print::out(&text)
}

fn list(global: &Global, place: &Place, of: Option<&Address>) -> Result<(), Failure> {
    let mut listed = Vec::new();
    let of_wrapping = |wrapping: &Result<Wrapping, String>| match wrapping {
        Ok(wrapping) => {
            let bound_to = wrapping.group().map(str::to_owned);
            let damage = wrapping.is_damaged().then(|| "damaged: put it back from a copy".to_owned());
            (Some(wrapping.key().to_string()), Some(wrapping.way().to_owned()), bound_to, damage)
        }
        Err(why) => (None, None, None, Some(why.clone())),
    };
    match place {
        Place::Folder(folder) => {
            for (number, _, wrapping) in in_folder(folder)? {
                let (key, by, bound_to, message) = of_wrapping(&wrapping);
                let path = folder.join(number.to_string()).display().to_string();
                listed.push(Listed { group: None, path, key, by, bound_to, message, volumes: Vec::new() });
            }
        }
        Place::Store(location) => {
            let store = store::open(location)?;
            for names in groups(&store, of)? {
                let group = store.group(&names)?;
                let mut volumes: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for (_, volume) in group.state().volumes() {
                    if let Some(seal) = volume.meta().digest_key.seal() {
                        volumes.entry(seal.key.to_string()).or_default().push(volume.meta().name.to_string());
                    }
                }
                for stored in wrappings(&**store.backend(), &names)? {
                    let (key, by, bound_to, message) = of_wrapping(&stored.wrapping);
                    let volumes = key.as_ref().and_then(|key| volumes.get(key)).cloned().unwrap_or_default();
                    let path = names.key(stored.number).to_string();
                    let group = names.to_string();
                    let stray = bound_to.as_ref().filter(|bound_to| **bound_to != group);
                    let message = message.or(stray.map(|other| format!("for {other}: it opens nothing here")));
                    listed.push(Listed { group: Some(group), path, key, by, bound_to, message, volumes });
                }
            }
        }
    }
    if global.json {
        return print::json(&listed);
    }
    if listed.is_empty() {
        return print::out("there are no wrapped keys\n");
    }
    let mut table = Table::new(&["WRAPPED KEY", "KEY", "BY", "FOR", "VOLUMES"]);
    for wrapped in listed {
        let by = wrapped.message.or(wrapped.by).unwrap_or_default();
        let bound_to = wrapped.bound_to.unwrap_or_else(|| NOTHING.to_owned());
        table.row([wrapped.path, wrapped.key.unwrap_or_default(), by, bound_to, wrapped.volumes.join(", ")]);
    }
    print::out(&table.fit(print::Look::of_stdout()))
}

fn in_folder(folder: &Path) -> Result<farside_daemon::keys::InFolder, Failure> {
    farside_daemon::keys::wrappings(folder)
        .map_err(|e| Failure::new(Exit::Failed, format!("{e:#}"), "run this as the user that runs farsided"))
}

/// Unwraps every key that this opens, each once, and once for each group that it is bound to.
fn unwrap<'w>(all: impl Iterator<Item = &'w Wrapping>, keeper: &Keeper) -> Result<Vec<(&'w Wrapping, GroupKey)>, Failure> {
    let mut why = format!("{keeper} opens none of the wrapped keys there");
    let mut keys: Vec<(&Wrapping, GroupKey)> = Vec::new();
    for wrapping in all {
        if keys.iter().any(|(known, _)| known.key() == wrapping.key() && known.group() == wrapping.group()) {
            continue;
        }
        match wrapping.unwrap(keeper) {
            Ok(key) => keys.push((wrapping, key)),
            Err(WrapError::OtherWay { .. }) => {}
            Err(error) => why = error.to_string(),
        }
    }
    if keys.is_empty() { Err(Failure::new(Exit::Refused, why, "see which there are: farside key list")) } else { Ok(keys) }
}

fn wrap(global: &Global, place: &Place, of: Option<&Address>, key: Keeper, with: Keeper) -> Result<(), Failure> {
    let made = match place {
        Place::Folder(folder) => {
            let there = in_folder(folder)?.into_iter().filter_map(|(.., wrapping)| wrapping.ok()).collect();
            WrapAll { there, key, with, cost: ARGON2_DEFAULT }.put(Passphrases::HERE, |wrapping| {
                let path = farside_daemon::keys::add(folder, wrapping);
                path.map(|path| path.display().to_string())
                    .map_err(|e| Failure::new(Exit::Failed, format!("{e:#}"), "run this as the user that runs farsided"))
            })?
        }
        Place::Store(location) => {
            let store = store::open(location)?;
            let names = &group(&store, of)?;
            // † What is bound to another group somebody brought here who may be able to open what is made of it.
            let is_its = |wrapping: &Wrapping| wrapping.group().is_none_or(|group| group == names.to_string());
            let all = wrappings(&**store.backend(), names)?.into_iter().filter_map(|stored| stored.wrapping.ok());
            let there = all.filter(is_its).collect();
            WrapAll { there, key, with, cost: ARGON2_DEFAULT }.put(Passphrases::HERE, |wrapping| {
                let (_, number) = add_wrapping(&**store.backend(), names, &wrapping.encode())?;
                if let Location::Dir(root) = location {
                    give_to_owner(root, &[names.keys(), names.key(number)]);
                }
                Ok(names.key(number).to_string())
            })?
        }
    };
    if global.json {
        return print::json(&made.made);
    }
    let mut text = String::new();
    for Made { path, key } in &made.made {
        let key = key.as_deref().unwrap_or_default();
        text.push_str(&format!("the key {key} is wrapped once more, in {path}; the other wrappings stay\n"));
    }
    for id in &made.left {
        text.push_str(&format!("! the key {id}, which is there as well, is not opened by this, and was not wrapped\n"));
    }
    if let Place::Store(_) = place {
        text.push_str("  another store does not have it: what farsided keeps for every store is in /var/lib/farside/keys/GROUP on the host\n");
    }
    print::out(&text)
}

/// Every key of a place that `key` opens, to be wrapped with `with` as well.
struct WrapAll {
    there: Vec<Wrapping>,
    key: Keeper,
    with: Keeper,
    /// Of a passphrase.
    cost: Argon2Cost,
}

/// What came of it.
struct WrappedAll {
    made: Vec<Made>,
    /// Keys that are there and were not opened.
    left: BTreeSet<KeyId>,
}

impl WrapAll {
    /// `put` keeps a wrapping, and says where.
    fn put(
        self,
        passphrases: Passphrases<'_>,
        put: impl Fn(&Wrapping) -> Result<String, Failure>,
    ) -> Result<WrappedAll, Failure> {
        farside_blockio::process::refuse_core_dumps().or_fail("a core dump of this would hold the key")?;
        let keys = unwrap(self.there.iter(), &passphrases.that_opens(self.key.clone(), "Passphrase: ")?)?;
        let with = passphrases.that_wraps(self.with, &self.key)?;
        let mut left: BTreeSet<KeyId> = self.there.iter().map(Wrapping::key).collect();
        let mut made = Vec::new();
        for (of, key) in &keys {
            // One at rest stays bound to its group.
            let wrapping = of
                .again(key, &with, self.cost)
                .map_err(|error| Failure::from_error(Exit::Refused, &error, "nothing was changed"))?;
            made.push(Made { path: put(&wrapping)?, key: Some(key.id().to_string()) });
            left.remove(&key.id());
        }
        Ok(WrappedAll { made, left })
    }
}

/// What root makes in a store must be the receiver's: it reads all wrapped keys before it takes another one.
fn give_to_owner(root: &Path, objects: &[ObjectName]) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(owner) = std::fs::metadata(root) else { return };
    for object in objects {
        // Whoever is not root is the owner already, or could not have made it.
        let _ = std::os::unix::fs::chown(root.join(object.as_str()), Some(owner.uid()), Some(owner.gid()));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Keeper {
        Keeper::Passphrase(Some(text.to_owned().into()))
    }

    /// Wraps a key that "old" opens, as somebody says it who has these variables set, and answers what he is asked.
    fn wrapped(key: &Keeper, with: &str, set: &[(&str, &str)], answers: &[&str]) -> Result<Wrapping, Failure> {
        let group_key = GroupKey::random().expect("randomness");
        let there = vec![Wrapping::new(&group_key, &passphrase("old"), CHEAP).expect("wrapped")];
        let answers = RefCell::new(answers.iter());
        let made = RefCell::new(None);
        let passphrases = Passphrases {
            variable: &|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()),
            ask: &|question| Ok(passphrase(answers.borrow_mut().next().unwrap_or_else(|| panic!("asked for {question}")))),
        };
        let all = WrapAll { there, key: key.clone(), with: with.parse().expect("a keeper"), cost: CHEAP };
        all.put(passphrases, |wrapping| {
            *made.borrow_mut() = Some(wrapping.clone());
            Ok(String::new())
        })?;
        assert_eq!(answers.into_inner().next(), None, "not asked");
        Ok(made.into_inner().expect("it was put somewhere"))
    }

    /// † "There are no wrapped keys", said of a store that is not mounted, has somebody take what is encrypted for lost, or for not encrypted.
    #[test]
    fn a_directory_without_keys_is_no_folder_of_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let (url, group) = (dir.path().to_str().expect("text"), "web1/db".parse().expect("an address"));
        std::fs::write(dir.path().join("notes"), "").expect("written");
        for of in [None, Some(&group)] {
            let refused = Place::of(url, of).err().expect("nothing is mounted there");
            assert!(refused.exit == Exit::NotFound && refused.message.contains("is it mounted?"), "{refused:?}");
        }
        let wrapping = Wrapping::new(&GroupKey::random().expect("randomness"), &passphrase("old"), CHEAP).expect("wrapped");
        farside_daemon::keys::add(dir.path(), &wrapping).expect("kept");
        assert!(matches!(Place::of(url, None), Ok(Place::Folder(folder)) if folder == dir.path()));
        let refused = Place::of(url, Some(&group)).err().expect("it has no groups");
        assert!(refused.message.contains("no store"), "{refused:?}");
        std::fs::write(dir.path().join("farside-store.json"), "{}").expect("written");
        assert!(matches!(Place::of(url, Some(&group)), Ok(Place::Store(_))));
    }

    /// † What is wrapped with a slip in it is found out when it is needed, and nothing else may open the key by then.
    #[test]
    fn a_new_passphrase_is_asked_for_twice() {
        let asked = Keeper::Passphrase(None);
        let made = wrapped(&asked, "passphrase", &[], &["old", "new", "new"]).expect("wrapped");
        assert!(made.unwrap(&passphrase("new")).is_ok());
        let refused = wrapped(&asked, "passphrase", &[], &["old", "new", "nwe"]).expect_err("a slip");
        assert!(refused.exit == Exit::Usage && refused.message.contains("differ"), "{refused:?}");
    }

    /// † A passphrase that others know is given up for another one: the same once more would be no change, and said to be one.
    #[test]
    fn one_variable_does_not_name_the_old_passphrase_and_the_new_one() {
        let (asked, old) = (Keeper::Passphrase(None), (PASSPHRASE_VARIABLE, "old"));
        let refused = wrapped(&asked, "passphrase", &[old], &[]).expect_err("it is the old one");
        assert!(refused.exit == Exit::Usage && refused.what_to_do.contains(NEW_PASSPHRASE_VARIABLE), "{refused:?}");
        let new = (NEW_PASSPHRASE_VARIABLE, "new");
        let made = wrapped(&asked, "passphrase", &[old, new], &[]).expect("wrapped");
        assert!(made.unwrap(&passphrase("new")).is_ok() && made.unwrap(&passphrase("old")).is_err());
        // Where something else opens the key, either names the new one.
        for set in [&[(PASSPHRASE_VARIABLE, "new")][..], &[(PASSPHRASE_VARIABLE, "other"), new]] {
            let made = wrapped(&passphrase("old"), "passphrase", set, &[]).expect("wrapped");
            assert!(made.unwrap(&passphrase("new")).is_ok(), "{set:?}");
        }
    }
}
