//! `farside store recover`: what a store holds, and all of it at once onto a machine that never saw Farside.
//!
//! Owns the choice of the moment: per group one point, so that volumes that were written together come back together. A volume
//! that cannot be restored from there is named and the others go on; nothing older is taken in its place unasked.
//!
//! Invariant: which points they are is noted in the directory before the first is restored. † `latest` and `-2h` are other points an hour later, and a
//! command that was killed between two volumes would go on with one of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use farside_control::{Address, Point, PointId, PointRef};
use farside_keys::Keeper;
use farside_objects::Location;
use farside_region::VolumeId;
use farside_store::{Existing, GroupReader, StoreError, StoreReader};
use serde::{Deserialize, Serialize};

use crate::args::{Global, RecoverArgs};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::print::{self, Table};
use crate::restore::{self, Options, Restored};
use crate::{guard, kept, key, point, store};

/// What a store holds of a volume.
#[derive(Debug, Serialize)]
struct Recoverable {
    /// SOURCE/GROUP/NAME.
    volume: String,
    volume_bytes: u64,
    points: usize,
    oldest: Point,
    newest: Point,
    /// How it is encrypted, if it is: `end-to-end` or `at-rest`.
    encrypted: Option<&'static str>,
    /// Why no key that was given opens it.
    locked: Option<String>,
}

/// A group of which not everything can be seen.
#[derive(Debug, Serialize)]
struct Obstacle {
    /// SOURCE/GROUP, or SOURCE/GROUP/NAME.
    what: String,
    message: String,
    /// It is damaged, and all that it says is known all the same.
    #[serde(skip)]
    hides_nothing: bool,
}

impl Obstacle {
    fn new(what: impl ToString, message: impl Into<String>) -> Self {
        Self { what: what.to_string(), message: message.into(), hides_nothing: false }
    }
}

/// What is there, for scripts.
#[derive(Debug, Default, Serialize)]
struct Inventory {
    volumes: Vec<Recoverable>,
    obstacles: Vec<Obstacle>,
}

/// What was done, for scripts.
#[derive(Debug, Default, Serialize)]
struct Recovered {
    restored: Vec<Restored>,
    /// Files that were there, complete, and were left as they are.
    kept: Vec<PathBuf>,
    obstacles: Vec<Obstacle>,
}

/// A volume to be restored.
struct Wanted {
    address: Address,
    point: PointId,
    to: PathBuf,
    /// Of which point the file is that may be there.
    found: Option<PointId>,
    /// Retention has not given it up since it was chosen.
    is_retained: bool,
}

/// What was chosen for a directory, in it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Chosen {
    store: String,
    /// The moment of each group, by SOURCE/GROUP and what was asked for.
    groups: BTreeMap<String, PointId>,
    /// The points of files, by SOURCE/GROUP/NAME: those of volumes that left their group earlier are others.
    volumes: BTreeMap<String, Choice>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Choice {
    /// What was asked for.
    asked: String,
    point: PointId,
    /// Bytes of the file that are zeroes since the store has lost them; `None`: there may be some, as it may have been named just before the end.
    #[serde(default = "nothing")]
    lost: Option<u64>,
    /// The same of what the source could not read.
    #[serde(default = "nothing")]
    unreadable: Option<u64>,
}

impl Choice {
    /// † Where its file, which is there, is not the volume: it would pass for whole.
    fn flaws(&self, file: &Path, allow_degraded: bool) -> Vec<String> {
        let (file, point) = (file.display(), self.point);
        let holds = |bytes: Option<u64>| {
            bytes.map_or_else(|| "may hold zeroes".to_owned(), |bytes| format!("holds {} of zeroes", print::bytes(bytes)))
        };
        let lost = Some(self.lost).filter(|lost| *lost != Some(0)).map(|lost| {
            let holds = holds(lost);
            format!("{file} {holds} where the store has lost the content of point {point}: remove it to have it restored anew")
        });
        let unreadable = Some(self.unreadable).filter(|unreadable| *unreadable != Some(0) && !allow_degraded).map(|unreadable| {
            let holds = holds(unreadable);
            format!(
                "{file} {holds} where the source could not be read (point {point}): say --allow-degraded if that may be, or remove it to have \
                 another point restored"
            )
        });
        lost.into_iter().chain(unreadable).collect()
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what a field begins with")]
fn nothing() -> Option<u64> {
    Some(0)
}

impl Chosen {
    const FILE: &str = "recover.json";

    fn read(to: &Path, location: &Location) -> Result<Self, Failure> {
        let (path, store) = (to.join(Self::FILE), location.to_string());
        let known: Self = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).or_fail(format!("{} does not say what was begun there", path.display()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { store, ..Self::default() }),
            Err(error) => return Err(error).or_fail(format!("{} cannot be read", path.display())),
        };
        // † Of a directory out of which all was taken nothing is gone on with: what was the newest then is not now.
        let files = std::fs::read_dir(to).or_fail(format!("{} cannot be read", to.display()))?;
        if files.flatten().all(|file| file.file_name() == Self::FILE) {
            return Ok(Self { store, ..Self::default() });
        }
        if known.store != store {
            let message = format!("{} is of another store: {}", to.display(), known.store);
            return Err(Failure::new(Exit::Refused, message, "name another directory: --to"));
        }
        Ok(known)
    }

    fn keep(&self, to: &Path) -> io::Result<()> {
        std::fs::create_dir_all(to)?;
        kept::write(to, Self::FILE, self)
    }
}

/// `farside store recover`.
pub(crate) async fn run(global: &Global, args: &RecoverArgs) -> Result<(), Failure> {
    let location = store::location_of(&args.url)?;
    let keys = key::with_passphrases(&args.key)?;
    let store = store::open_with(&location, &keys)?;
    match &args.to {
        None => list(global, &location, &store, args),
        Some(to) => restore_all(global, &location, &store, args, (keys, to)).await,
    }
}

/// Calls `each` for every group that can be seen at all; what is in the way is collected.
fn groups(store: &StoreReader, obstacles: &mut Vec<Obstacle>, mut each: impl FnMut(&GroupReader)) -> Result<(), Failure> {
    let listing = store.groups()?;
    for (source, error) in &listing.unlisted {
        obstacles.push(Obstacle::new(source, format!("its groups cannot be listed: {error}")));
    }
    for names in listing.strays {
        let file = names.description();
        let message = match store.group_as_listed(&names) {
            Ok(group) => {
                let past = look(store, &group, obstacles);
                each(past.as_ref().unwrap_or(&group));
                format!(
                    "{file} is missing, and what there is was read by its names; put that back from a copy of the store, or from a group of the same names in another store"
                )
            }
            Err(StoreError::NoSuchGroup { .. }) => format!(
                "{file} and the whole ledger are missing, so nothing says what lies there: put both back from a copy of the store"
            ),
            Err(error) => format!("{file} is missing: put it back from a copy of the store ({error})"),
        };
        obstacles.push(Obstacle::new(names, message));
    }
    for names in listing.groups {
        // From a copy that was never completed, perhaps: whatever is missing is to be said.
        match store.group_as_listed(&names) {
            Ok(group) => {
                let past = look(store, &group, obstacles);
                each(past.as_ref().unwrap_or(&group));
            }
            Err(error) => obstacles.push(Obstacle::new(names, error.to_string())),
        }
    }
    Ok(())
}

/// What is missing of the ledger of a group. Gives the group as a restore sees it, if that is further.
fn look(store: &StoreReader, group: &GroupReader, obstacles: &mut Vec<Obstacle>) -> Option<GroupReader> {
    let names = group.names();
    if let Some((past, why)) = store::seen_past(store, group) {
        obstacles.push(Obstacle { hides_nothing: true, ..Obstacle::new(names, why) });
        obstacles.extend(past.torn().map(|torn| Obstacle::new(names, torn.error(names).to_string())));
        return Some(past);
    }
    if let Some(torn) = group.torn() {
        obstacles.push(Obstacle::new(names, torn.error(names).to_string()));
        return None;
    }
    let message = match group.lacks_ledger() {
        Ok(false) => return None,
        Ok(true) => format!("{} is empty, and segments are there: put it back from a copy of the store", names.ledger()),
        Err(error) => error.to_string(),
    };
    obstacles.push(Obstacle::new(names, message));
    None
}

/// What is said of a store of which everything can be had, and which is damaged.
fn mendable(location: &Location) -> Failure {
    let message = format!("a ledger in {location} is damaged; no point is lost, or left out");
    let what_to_do = match location {
        Location::Bucket(_) => {
            "nothing has to be done before a restore; a repair of what is in a bucket comes in a later version"
        }
        _ => "`farside store repair` puts back what is named above",
    };
    Failure::new(Exit::Damaged, message, what_to_do)
}

/// The volumes of a group that are wanted: their names, and their points in the order of their slots.
fn volumes(group: &GroupReader, only: &[Address]) -> Vec<(String, VolumeId, Vec<Point>)> {
    let points = group.points();
    let (source, name) = (group.names().source.as_str(), group.names().group.as_str());
    let wanted =
        |volume: &str| only.is_empty() || only.iter().any(|of| of.is_group(source, name) || of.is_volume(source, name, volume));
    let of = |(name, id): (String, _)| {
        let with_it = points.iter().filter(|info| info.member(id).is_some());
        (name, id, with_it.map(|info| farside_receiver::point_of(group.names(), info)).collect())
    };
    store::volumes(group).filter(|(name, _)| wanted(name)).map(of).collect()
}

fn list(global: &Global, location: &Location, store: &StoreReader, args: &RecoverArgs) -> Result<(), Failure> {
    let mut inventory = Inventory::default();
    let mut without = Vec::new();
    groups(store, &mut inventory.obstacles, |group| {
        for (name, id, points) in volumes(group, &args.only) {
            let volume = format!("{}/{name}", group.names());
            let encrypted = mode(group, id);
            // Nobody who wants to see what there is is asked for keys.
            let locked = if args.key.is_empty() { None } else { locked(group, id) };
            let (Some(oldest), Some(newest)) = (points.first().cloned(), points.last().cloned()) else {
                without.push(volume);
                continue;
            };
            let member = newest.members.iter().find(|member| member.volume == name);
            let volume_bytes = member.map_or(0, |member| member.bytes);
            inventory.volumes.push(Recoverable { volume, volume_bytes, points: points.len(), oldest, newest, encrypted, locked });
        }
    })?;
    let (is_damaged, is_hidden) =
        (!inventory.obstacles.is_empty(), inventory.obstacles.iter().any(|obstacle| !obstacle.hides_nothing));
    without.into_iter().for_each(|what| {
        inventory.obstacles.push(Obstacle::new(what, "has no recovery point: its first sync never ended"));
    });
    if inventory.volumes.is_empty() {
        refuse_nothing(location, args, &inventory.obstacles)?;
    }
    // Whoever relies on what is listed relies on all of it.
    let seen = || match is_damaged {
        true if !is_hidden => Err(mendable(location)),
        true => {
            let what_to_do =
                "put back what is named above from a copy of the store; the rest can be restored. See farside store check";
            Err(Failure::new(Exit::Damaged, format!("not everything in {location} can be seen"), what_to_do))
        }
        false => Ok(()),
    };
    if global.json {
        print::json(&inventory)?;
        return seen();
    }
    let mut table = Table::new(&["VOLUME", "SIZE", "POINTS", "OLDEST", "NEWEST", ""]);
    for volume in &inventory.volumes {
        table.row([
            volume.volume.clone(),
            print::bytes(volume.volume_bytes),
            volume.points.to_string(),
            print::time(volume.oldest.cut_wall),
            print::time(volume.newest.cut_wall),
            volume.notes(),
        ]);
    }
    print::out(&table.fit(print::Look::of_stdout()))?;
    say(&inventory.obstacles);
    for volume in &inventory.volumes {
        volume.locked.iter().for_each(|why| eprintln!("! {}: {why}", volume.volume));
    }
    let is_encrypted = inventory.volumes.iter().any(|volume| volume.encrypted.is_some());
    let (key, keys) = if is_encrypted { (" --key KEY", " --key KEY (more than one, if it takes them)") } else { ("", "") };
    print::out(&format!(
        "restore all of it: farside store recover '{location}' --to DIRECTORY{keys}\none of them: farside restore VOLUME --store '{location}' --point latest --to FILE{key}\n"
    ))?;
    seen()
}

impl Recoverable {
    fn notes(&self) -> String {
        let degraded = self.newest.degraded.then(|| "degraded".to_owned());
        let encrypted = self.encrypted.map(|mode| match self.locked {
            Some(_) => format!("encrypted {mode}, and not opened by these keys"),
            None => format!("encrypted {mode}"),
        });
        degraded.into_iter().chain(encrypted).collect::<Vec<_>>().join(", ")
    }
}

/// How a volume is encrypted.
fn mode(group: &GroupReader, volume: VolumeId) -> Option<&'static str> {
    group.state().volume(volume)?.meta().digest_key.seal().map(|seal| seal.mode.word())
}

/// Which key is missing to read a volume. What else is in the way is met when it is read.
fn locked(group: &GroupReader, volume: VolumeId) -> Option<String> {
    match group.unlock(volume) {
        Err(error @ StoreError::KeyNeeded { .. }) => Some(error.to_string()),
        _ => None,
    }
}

fn say(obstacles: &[Obstacle]) {
    for Obstacle { what, message, .. } in obstacles {
        eprintln!("! {what}: {message}");
    }
}

/// There is nothing that could be restored.
fn refuse_nothing(location: &Location, args: &RecoverArgs, obstacles: &[Obstacle]) -> Result<(), Failure> {
    say(obstacles);
    let (exit, what_to_do) = match (obstacles.is_empty(), args.only.is_empty()) {
        (true, true) => (Exit::NotFound, "nothing was published into it yet, or it is not the store that you mean"),
        (true, false) => (Exit::NotFound, "see what is in it: the same command without --only"),
        (false, _) => (Exit::Damaged, "see farside store check"),
    };
    let what = if args.only.is_empty() { "no point" } else { "no point of these" };
    Err(Failure::new(exit, format!("{location} holds {what} that could be restored"), what_to_do))
}

async fn restore_all(
    global: &Global,
    location: &Location,
    store: &StoreReader,
    args: &RecoverArgs,
    (keys, to): (Vec<Keeper>, &Path),
) -> Result<(), Failure> {
    guard::refuse(to, Path::new(&location.to_string()))?;
    let mut done = Recovered::default();
    let mut chosen = Chosen::read(to, location)?;
    let (wanted, locked) = choose(store, args, to, (&mut chosen, &mut done.obstacles))?;
    let (missing, is_locked, is_whole) = (keyless(&locked), !locked.is_empty(), done.obstacles.is_empty());
    let (mut damaged, mut is_unread) = (done.obstacles.iter().any(|obstacle| !obstacle.hides_nothing), false);
    done.obstacles.extend(locked);
    if wanted.is_empty() && is_locked && is_whole {
        say(&done.obstacles);
        return Err(missing);
    }
    if wanted.is_empty() {
        refuse_nothing(location, args, &done.obstacles)?;
    }
    chosen.keep(to).or_fail(format!("{} cannot be written", to.display()))?;
    let (allow_degraded, allow_damaged) = (args.allow_degraded, args.allow_damaged);
    let format = crate::args::ImageFormat::Raw;
    let options = Options { keys, existing: Existing::Resume, allow_degraded, allow_damaged, format, goes_on: true };
    let in_folder = to.to_owned();
    let mut given_up = None;
    for Wanted { address, point, to, found, is_retained } in wanted {
        if to.exists() {
            let file = to.display();
            if found == Some(point) && !global.json {
                print::out(&format!("{address}: {file} is there already, of point {point}, and stays as it is\n"))?;
            }
            let choice = chosen.volumes.get(&address.to_string()).filter(|choice| choice.point == point && found == Some(point));
            for message in choice.into_iter().flat_map(|choice| choice.flaws(&to, allow_degraded)) {
                damaged = true;
                done.obstacles.push(Obstacle::new(&address, message));
            }
            if found != Some(point) {
                let of = found.map_or_else(|| "nobody noted of which point".to_owned(), |found| format!("of point {found}"));
                let message = format!("{file} is there already, {of}, and stays as it is: point {point} was to be restored");
                damaged = true;
                done.obstacles.push(Obstacle::new(&address, message));
            }
            done.kept.push(to);
            continue;
        }
        if !is_retained {
            given_up = Some(point);
            let message = format!("point {point}, which was begun in {}, is not kept any more", in_folder.display());
            done.obstacles.push(Obstacle::new(&address, message));
            continue;
        }
        let folder = to.parent().expect("below the directory that was named");
        std::fs::create_dir_all(folder).map_err(|e| {
            Failure::new(Exit::Failed, format!("{} cannot be made: {e}", folder.display()), "name a directory with room: --to")
        })?;
        let wanted = PointRef::Id { slot: point.slot, tag: Some(point.tag) };
        match restore::unless_interrupted(global, location.clone(), address.clone(), wanted, to, options.clone()).await {
            Ok(restored) => {
                if !global.json {
                    print::out(&restore::text_of(&address, &restored, false))?;
                }
                damaged |= !restored.damaged.is_empty();
                if let Some(choice) = chosen.volumes.get_mut(&address.to_string()) {
                    choice.lost = Some(restored.damaged.iter().map(|run| run.bytes).sum());
                    choice.unreadable = Some(restored.unreadable_bytes);
                    chosen.keep(&in_folder).or_fail(format!("{} cannot be written", in_folder.display()))?;
                }
                done.restored.push(restored);
            }
            Err(failure) if ends_all(&failure) => return Err(failure),
            Err(failure) => {
                damaged |= !failure.of_object;
                is_unread |= failure.of_object;
                let message = format!("point {point}: {}", failure.message);
                done.obstacles.push(Obstacle::new(&address, message));
            }
        }
    }
    say(&done.obstacles);
    let restored = done.restored.len() + done.kept.len();
    if global.json {
        print::json(&done)?;
    } else {
        let volumes = if restored == 1 { "1 volume is" } else { &format!("{restored} volumes are") };
        print::out(&format!("{volumes} in {}\n", to.display()))?;
    }
    if !damaged && is_unread {
        let message = format!("not everything in {location} could be read");
        let what_to_do = "mend what is named above, and say the same again: files that are complete stay as they are";
        return Err(Failure::new(Exit::Failed, message, what_to_do));
    }
    if !damaged && !is_whole {
        return Err(mendable(location));
    }
    if let Some(point) = given_up.filter(|_| !damaged) {
        let message = format!("retention gave up point {point} since it was begun in {}", to.display());
        let what_to_do = "recover all of it, as of one moment, into another directory (--to); or into this one what is missing, of another point: --point POINT --only VOLUME";
        return Err(Failure::new(Exit::NotFound, message, what_to_do));
    }
    if !damaged {
        // Nothing is wrong with them.
        return if is_locked { Err(missing) } else { Ok(()) };
    }
    let message = format!("not everything in {location} could be restored");
    let what_to_do = "what is named above may be whole in an older point (--point -1h --only VOLUME), or in part: --allow-damaged, --allow-degraded";
    Err(Failure::new(Exit::Damaged, message, what_to_do))
}

/// One that was interrupted, found no space, or lost the store, says so for all that come after it.
fn ends_all(failure: &Failure) -> bool {
    !failure.of_object && ![Exit::Damaged, Exit::Refused, Exit::NotFound].contains(&failure.exit)
}

/// What no key that was given opens is left out, and is no damage.
fn keyless(locked: &[Obstacle]) -> Failure {
    let volumes: Vec<&str> = locked.iter().map(|obstacle| obstacle.what.as_str()).collect();
    let message = format!("no key that was given opens {}", volumes.join(", "));
    Failure::new(Exit::Refused, message, "give what opens them as well, and say the same again: --key KEY, once for each")
}

/// Of every group the point that is meant, and what it holds. And what is encrypted, and opened by none of the keys.
fn choose(
    store: &StoreReader,
    args: &RecoverArgs,
    to: &Path,
    (chosen, obstacles): (&mut Chosen, &mut Vec<Obstacle>),
) -> Result<(Vec<Wanted>, Vec<Obstacle>), Failure> {
    let (mut wanted, mut unknown, mut keyless) = (Vec::new(), Vec::new(), Vec::new());
    let asked = args.point.to_string();
    groups(store, obstacles, |group| {
        let names = group.names();
        let all: Vec<Point> = group.points().iter().map(|info| farside_receiver::point_of(names, info)).collect();
        let file = |name: &str| to.join(names.source.as_str()).join(names.group.as_str()).join(format!("{name}.img"));
        let moment = format!("{names} {asked}");
        let begun = chosen.groups.get(&moment).copied();
        let of_all = match begun {
            Some(begun) => all.iter().find(|point| point.id == begun).cloned(),
            None => store::search(group, None, args.point),
        };
        if let (None, Some(point)) = (begun, &of_all) {
            chosen.groups.insert(moment, point.id);
        }
        let mut here = Vec::new();
        for (name, id, points) in volumes(group, &args.only) {
            if let Some(message) = locked(group, id).filter(|_| !points.is_empty()) {
                keyless.push(Obstacle::new(format!("{names}/{name}"), message));
                continue;
            }
            // Who left the group earlier is in none of its newer points: then it is the newest that holds it.
            let holds = |point: &Point| point.members.iter().any(|member| member.volume == name);
            // But not if the point that the others are of is gone.
            let is_gone = begun.is_some() && of_all.is_none();
            let own = || store::search(group, Some(id), args.point).filter(|_| !is_gone);
            let volume = format!("{names}/{name}");
            let known = chosen.volumes.get(&volume);
            let found = known.map(|choice| choice.point);
            let noted = known.filter(|choice| choice.asked == asked).map(|choice| choice.point);
            match noted.or_else(|| Some(of_all.clone().filter(holds).or_else(own)?.id)) {
                Some(point) => {
                    let address = volume.parse().expect("names of a store are those of addresses");
                    let file = file(&name);
                    let is_retained = points.iter().any(|info| info.id == point);
                    wanted.push(Wanted { address, point, to: file.clone(), found, is_retained });
                    let is_degraded = points.iter().any(|info| info.id == point && info.degraded);
                    here.push((volume, file, point, is_degraded));
                }
                None => unknown.push(volume),
            }
        }
        // What is there is what it was.
        for (volume, _, point, is_degraded) in here.into_iter().filter(|(_, file, ..)| !file.exists()) {
            let unless = |may_be: bool| if may_be { None } else { nothing() };
            let (lost, unreadable) = (unless(args.allow_damaged), unless(args.allow_degraded && is_degraded));
            chosen.volumes.insert(volume, Choice { asked: asked.clone(), point, lost, unreadable });
        }
    })?;
    obstacles.extend(unknown.into_iter().map(|what| Obstacle::new(what, point::no_such_point(&[], args.point, None).message)));
    Ok((wanted, keyless))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One file that this user may not read kept back every volume that comes after it.
    #[test]
    fn only_what_is_of_all_volumes_ends_a_recovery() {
        let path = PathBuf::from("/store/segments/1.0");
        let denied = Failure::from(StoreError::Denied { path: path.clone() });
        assert!(!ends_all(&denied) && denied.exit == Exit::Failed, "{denied:?}");
        assert!(denied.what_to_do.contains("a copy"), "{denied:?}");
        let source = io::Error::from_raw_os_error(libc::EISDIR);
        assert!(!ends_all(&StoreError::Io { doing: "reading", path: path.clone(), source }.into()));
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        let full = StoreError::Target { doing: "writing", path, source, hint: "" };
        assert!(ends_all(&full.into()) && ends_all(&StoreError::Stopped.into()));
    }

    /// What was restored with `--allow-degraded` was said to be there already, and no more, when the same was said again without.
    #[test]
    fn a_file_with_zeroes_for_what_could_not_be_read_is_not_passed_for_whole() {
        let point = PointId { slot: 7, tag: 0x9f3c_2a1b };
        let noted = |lost, unreadable| Choice { asked: "latest".to_owned(), point, lost, unreadable };
        let flaws = |choice: &Choice, allow_degraded| choice.flaws(Path::new("data.img"), allow_degraded).join("; ");
        let said = flaws(&noted(Some(0), Some(8192)), false);
        assert!(said.contains("data.img holds 8 KiB of zeroes where the source could not be read"), "{said}");
        assert_eq!(flaws(&noted(Some(0), Some(8192)), true), "", "that is allowed");
        let killed = flaws(&noted(Some(0), None), false);
        assert!(killed.contains("may hold zeroes where the source could not be read"), "{killed}");
        let both = flaws(&noted(None, None), false);
        assert!(both.contains("the store has lost") && both.contains("could not be read"), "{both}");
        assert_eq!(flaws(&noted(Some(0), Some(0)), false), "");
    }
}
