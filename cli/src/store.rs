//! Stores without a daemon: the points of a store for `--store`, `farside store check` and `farside store repair`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use data_encoding::HEXLOWER;
use farside_control::{Address, Point, PointId, PointRef};
use farside_keys::Keeper;
use farside_objects::{Credentials, Location, LocationError, OpenError};
use farside_region::{Slot, VolumeId};
use farside_store::{
    CheckReport, Finding, GroupNames, GroupReader, GroupStore, Known, PointFilter, PointReader, Problem, Repair, Severity, Store,
    StoreError, StoreReader, Torn, find_points, point_ends,
};
use serde::Serialize;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{key, point, print};

/// What a URL names.
pub(crate) fn location_of(url: &str) -> Result<Location, Failure> {
    let what_to_do = "a store is a directory (/srv/farside), or s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX";
    url.parse().map_err(|e: LocationError| Failure::from_error(Exit::Usage, &e, what_to_do))
}

/// Opens a store for reading. What lets us into a bucket comes from the environment, or the file that it names.
pub(crate) fn open(location: &Location) -> Result<StoreReader, Failure> {
    open_with(location, None)
}

/// The same, with what unwraps the keys of encrypted volumes.
pub(crate) fn open_with<'k>(location: &Location, keys: impl IntoIterator<Item = &'k Keeper>) -> Result<StoreReader, Failure> {
    if let Location::Dir(path) = location
        && !path.is_dir()
    {
        return Err(Failure::new(Exit::NotFound, format!("there is no store at {}", path.display()), "name its directory"));
    }
    Ok(location.reader(&Credentials::find(None)?)?.with_keepers(keys.into_iter().cloned()))
}

/// Says it if nothing keeps a point while it is read.
pub(crate) fn say_if_unkept<I>(point: &PointReader<I>) {
    if let Some(why) = point.unkept() {
        let text = format!(
            "farside: nothing keeps this point while it is read ({why}). Should retention give it up meanwhile, there is a day left; \
             `farside point pin` on the gateway keeps it\n"
        );
        let _ = std::io::stderr().write_all(text.as_bytes()); // the point is read all the same
    }
}

/// `farside store init`: makes a store where there is none.
pub(crate) fn init(global: &Global, url: &str) -> Result<(), Failure> {
    let location = location_of(url)?;
    let id = HEXLOWER.encode(&location.init(&Credentials::find(None)?)?);
    if global.json {
        return print::json(&Initialised { store: location.to_string(), id });
    }
    print::out(&format!("{location} is a store (id {id})\n"))
}

/// What `farside store init` says.
#[derive(Debug, Serialize)]
struct Initialised {
    store: String,
    id: String,
}

impl From<LocationError> for Failure {
    fn from(error: LocationError) -> Self {
        let what_to_do = match &error {
            LocationError::Setup { .. } => {
                "say what is missing in the environment (AWS_ACCESS_KEY_ID, …), in the file that FARSIDE_STORE_CREDENTIALS names, or \
                 after `?` in the address (endpoint, region, account_name)"
            }
            _ => "",
        };
        Self::from_error(Exit::Refused, &error, what_to_do)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Location(error) => error.into(),
            OpenError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::NoSuchGroup { .. } | StoreError::NoSuchVolume { .. } | StoreError::NoSuchPoint { .. } => Exit::NotFound,
            StoreError::Locked { .. }
            | StoreError::TargetBusy { .. }
            | StoreError::TargetUnsuitable { .. }
            | StoreError::TargetNotEmpty { .. }
            | StoreError::NotNamed { .. }
            | StoreError::TargetTooSmall { .. }
            | StoreError::Degraded { .. }
            | StoreError::NotAMember { .. }
            | StoreError::PointDeleted { .. }
            | StoreError::NotCreateOnly { .. }
            | StoreError::ForeignStaging { .. }
            | StoreError::KeyNeeded { .. }
            | StoreError::BadKey { .. }
            | StoreError::Version { .. } => Exit::Refused,
            StoreError::Corrupt { .. }
            | StoreError::Damaged { .. }
            | StoreError::Incomplete { .. }
            | StoreError::TargetUntold { .. }
            | StoreError::LedgerTorn { .. } => Exit::Damaged,
            _ => Exit::Failed,
        };
        let what_to_do = match &error {
            StoreError::Locked { .. } => "stop farside-receiver, and start it again afterwards",
            StoreError::Denied { .. } => "or, to read a copy of a store, run this as a user who may read all of it",
            StoreError::TargetUnsuitable { .. } => "name a file in a directory that is there, or a block device",
            StoreError::NotNamed { .. } => "rename it yourself, or restore elsewhere",
            StoreError::TargetNotEmpty { .. } => "say --force to overwrite it",
            StoreError::Degraded { .. } => "say --allow-degraded to have zeroes there, or take another point",
            StoreError::NoSuchPoint { .. } => "see which there are: farside point list VOLUME",
            // Also on the gateway, whose receiver gives them to nobody.
            StoreError::Remote { .. } | StoreError::RemoteDenied { .. } => {
                "a bucket's credentials come from the environment: FARSIDE_STORE_CREDENTIALS=FILE, as `store_credentials` in receiver.toml"
            }
            _ => "",
        };
        // A step that the sentence names already is not said twice.
        let what_to_do = if what_to_do.split_whitespace().any(|word| word.starts_with("--") && error.to_string().contains(word)) {
            ""
        } else {
            what_to_do
        };
        let of_object = matches!(&error, StoreError::Denied { .. } | StoreError::Unreadable { .. } | StoreError::Io { .. });
        Self { of_object, ..Self::from_error(exit, &error, what_to_do) }
    }
}

/// The groups of a store in which there is what an address names, opened, and of each the volume, if it is one. All groups, if
/// none is named.
pub(crate) fn places(store: &StoreReader, of: Option<&Address>) -> Result<Vec<(GroupReader, Option<VolumeId>)>, Failure> {
    let (mut places, mut known) = (Vec::new(), Vec::new());
    let (groups, mut hidden) = groups(store, of, as_far_as_seen)?;
    for group in groups {
        let Some(group) = hidden.unless(group) else { continue };
        let names = group.names();
        known.extend(volumes(&group).map(|(name, _)| format!("{names}/{name}")));
        let named = |name: &str| volumes(&group).find(|(volume, _)| volume == name).map(|(_, id)| id);
        let place = match of.map(|of| of.within(names.source.as_str(), names.group.as_str())) {
            None | Some(Some(None)) => Some(None),
            Some(None) => None,
            Some(Some(Some(name))) => named(name).map(Some),
        };
        places.extend(place.map(|volume| (group, volume)));
    }
    match of {
        Some(of) if places.is_empty() => Err(hidden.or_unknown(of, &known)),
        _ => {
            hidden.say();
            places.iter().for_each(|(group, _)| say_torn(group));
            Ok(places)
        }
    }
}

/// † What is damaged of the ledger hides no point that a restore would give.
fn as_far_as_seen(store: &StoreReader, names: &GroupNames) -> Result<GroupReader, StoreError> {
    let group = store.group(names)?;
    let Some((past, why)) = seen_past(store, &group) else { return Ok(group) };
    eprintln!("farside: {why}");
    Ok(past)
}

/// A group whose ledger is torn, as who opens a point of it sees it, if that is further: past a record that later ones repeat. With it,
/// what is to be said.
pub(crate) fn seen_past(store: &StoreReader, group: &GroupReader) -> Option<(GroupReader, String)> {
    let torn = group.torn()?;
    let past = store.group_to_open(group.names()).ok()?;
    let why = format!(
        "ledger of {}: the record in slot {} ({}) cannot be used: {}. Later ones repeat what it said, and points beyond it can be restored: \
         `farside store repair` puts it back, and nothing is lost",
        group.names(),
        torn.slot,
        torn.file,
        torn.why
    );
    (past.state().next_slot() > group.state().next_slot()).then_some((past, why))
}

/// † Whoever asks for the newest point gets the newest that can be seen: that it may be none of the newest is said first.
fn say_torn(group: &GroupReader) {
    if let Some(torn) = group.torn() {
        say_hidden(&torn.error(group.names()).to_string());
    }
}

/// Why there may be points that are newer than what is shown.
pub(crate) fn say_hidden(why: &str) {
    eprintln!("farside: points that are newer than what is shown may be there: {why}");
}

/// † Who asks for what is newest and goes by the exit code must not go on with what is older: done with the newest that can be seen,
/// the command ends with this.
pub(crate) fn newer_hidden(group: &GroupReader, wanted: PointRef, taken: PointId) -> Option<Failure> {
    let torn = group.torn().filter(|_| !matches!(wanted, PointRef::Id { .. }))?;
    let message = format!(
        "point {taken} may not be the one that `{wanted}` means: newer ones cannot be seen ({})",
        torn.error(group.names())
    );
    Some(Failure::new(Exit::Damaged, message, format!("mend that; or take what can be seen by its name: --point {taken}")))
}

/// The point that is meant, if a group has it.
pub(crate) fn search(group: &GroupReader, volume: Option<VolumeId>, wanted: PointRef) -> Option<Point> {
    let search = wanted.search(jiff::Timestamp::now());
    let until_wall_ms = search.until.map(|at| at.as_millisecond());
    let filter = PointFilter { volume, until_wall_ms, consistent: search.consistent, ..PointFilter::default() };
    // Below every slot: nobody wants to know how many there are.
    let found = find_points(group.state(), &filter, Some(search.below.map_or(Slot(u64::MAX), Slot)), 1);
    let found = found.points.first().map(|info| farside_receiver::point_of(group.names(), info));
    found.filter(|point| search.is_meant(point.id))
}

/// What to say where no group has it.
fn not_there<'g>(
    places: impl Iterator<Item = (&'g GroupReader, Option<VolumeId>)>,
    wanted: PointRef,
    of: Option<&Address>,
) -> Failure {
    let ends = places.filter_map(|(group, volume)| {
        let (oldest, newest) = point_ends(group.state(), &PointFilter { volume, ..PointFilter::default() })?;
        Some([oldest, newest].map(|info| farside_receiver::point_of(group.names(), &info)))
    });
    point::no_such_point(&ends.flatten().collect::<Vec<_>>(), wanted, of)
}

/// The one point of a volume or group that is meant, and its group.
pub(crate) fn one_point(store: &StoreReader, wanted: PointRef, of: Option<&Address>) -> Result<(GroupReader, Point), Failure> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for (group, volume) in places(store, of)? {
        match search(&group, volume, wanted) {
            Some(point) => found.push((group, point)),
            None => others.push((group, volume)),
        }
    }
    if found.len() > 1 {
        let groups: Vec<String> = found.iter().map(|(group, _)| group.names().to_string()).collect();
        let message = format!("`{wanted}` may be a point of {}", groups.join(", "));
        return Err(Failure::new(Exit::Usage, message, "say of which volume or group, with --of"));
    }
    found.pop().ok_or_else(|| not_there(others.iter().map(|(group, volume)| (group, *volume)), wanted, of))
}

/// A volume and a point of it.
pub(crate) struct Chosen {
    /// Its group.
    pub(crate) group: GroupReader,
    /// The volume.
    pub(crate) volume: VolumeId,
    /// The point, as the ledger has it.
    pub(crate) slot: Slot,
    /// And as people see it.
    pub(crate) point: Point,
    /// What is said at the end if it may be older than what is meant.
    pub(crate) hidden: Option<Failure>,
}

/// The volume that an address names, in the point of it that is meant.
pub(crate) fn choose(store: &StoreReader, of: &Address, wanted: PointRef) -> Result<Chosen, Failure> {
    let (group, volume) = find(store, of, StoreReader::group_to_open)?;
    say_torn(&group);
    let missing = || not_there([(&group, Some(volume))].into_iter(), wanted, Some(of));
    let point = search(&group, Some(volume), wanted).ok_or_else(missing)?;
    if let Some(words) = in_the_future(wanted, jiff::Timestamp::now()) {
        eprintln!("! {words}");
    }
    let slot = Slot(point.id.slot);
    let hidden = newer_hidden(&group, wanted, point.id);
    Ok(Chosen { group, volume, slot, point, hidden })
}

/// A year or a time zone that was mistyped, perhaps.
fn in_the_future(wanted: PointRef, now: jiff::Timestamp) -> Option<String> {
    match wanted {
        PointRef::At(at) if at > now => Some(format!("{at} is in the future: the newest point there is is taken")),
        _ => None,
    }
}

/// The one volume that an address names.
pub(crate) fn find_volume(store: &StoreReader, of: &Address) -> Result<(GroupReader, VolumeId), Failure> {
    find(store, of, StoreReader::group)
}

/// The same, in groups that are opened so.
fn find(store: &StoreReader, of: &Address, open: Open) -> Result<(GroupReader, VolumeId), Failure> {
    let (mut found, mut known) = (Vec::new(), Vec::new());
    let (groups, mut hidden) = groups(store, Some(of), open)?;
    for group in groups {
        let Some(group) = hidden.unless(group) else { continue };
        let names = group.names();
        let (source, group_name) = (names.source.to_string(), names.group.to_string());
        known.extend(volumes(&group).map(|(name, _)| format!("{names}/{name}")));
        let hit = volumes(&group).find(|(name, _)| of.is_volume(&source, &group_name, name)).map(|(_, id)| id);
        if let Some(id) = hit {
            found.push((group, id));
        }
    }
    match found.len() {
        // † What cannot be seen may have a volume of that name as well, and what is restored is written over something.
        1 if let Some(why) = hidden.first() => {
            let message = format!("{of} could be a volume that cannot be seen: {why}");
            Err(Failure::new(Exit::Usage, message, format!("say which: {}/{}", found[0].0.names(), of.name())))
        }
        1 => Ok(found.remove(0)),
        0 => Err(hidden.or_unknown(of, &known)),
        _ => {
            let choices: Vec<String> = found.iter().map(|(group, _)| format!("{}/{}", group.names(), of.name())).collect();
            Err(Failure::new(Exit::Usage, format!("{of} could be several volumes"), format!("say which: {}", choices.join(", "))))
        }
    }
}

/// How a group is opened.
type Open = fn(&StoreReader, &GroupNames) -> Result<GroupReader, StoreError>;
/// Opened one after another.
type Groups<'s> = Box<dyn Iterator<Item = (GroupNames, Result<GroupReader, StoreError>)> + 's>;

/// What is in the way of seeing all that a store has.
#[derive(Default)]
struct Hidden(Vec<String>);

impl Hidden {
    /// The group, unless it cannot be opened.
    fn unless(&mut self, group: (GroupNames, Result<GroupReader, StoreError>)) -> Option<GroupReader> {
        let (names, opened) = group;
        opened.inspect_err(|error| self.0.push(format!("{names}: {error}"))).ok()
    }

    fn first(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    /// To whoever looks at the rest.
    fn say(&self) {
        self.0.iter().for_each(|why| eprintln!("farside: not everything can be seen: {why}"));
    }

    /// What is asked for is not among what can be seen.
    fn or_unknown(&self, of: &Address, known: &[String]) -> Failure {
        match self.first() {
            None => unknown(of, known),
            Some(why) => {
                let message = format!("{of} is not among what can be seen of the store ({why})");
                Failure::new(Exit::Failed, message, "mend that, or name another: farside point list --store")
            }
        }
    }
}

/// The groups that an address may be in. One that it names is not looked for among the others, nor are those opened.
fn groups<'s>(store: &'s StoreReader, of: Option<&Address>, open: Open) -> Result<(Groups<'s>, Hidden), Failure> {
    let named = of.and_then(Address::source_and_group);
    let named = named.and_then(|(source, group)| Some(GroupNames::new(source.parse().ok()?, group.parse().ok()?)));
    if let (Some(of), Some(names)) = (of, named) {
        match open(store, &names) {
            Ok(group) if names_it(of, &group) => return Ok((Box::new(std::iter::once((names, Ok(group)))), Hidden::default())),
            Ok(_) | Err(StoreError::NoSuchGroup { .. }) => {} // what there is instead is said
            Err(error) => return Err(error.into()),
        }
    }
    let listing = store.groups()?;
    let unlisted = |(source, error): &(_, StoreError)| format!("the groups of {source} cannot be listed: {error}");
    let hidden = Hidden(listing.unlisted.iter().map(unlisted).collect());
    let opened = move |names: GroupNames| {
        let group = open(store, &names);
        (names, group)
    };
    // † One whose description is lost may have a volume of that name as well. (What is no group has no ledger.)
    let strays = listing.strays.into_iter().map(opened);
    let strays = strays.filter(|(_, group)| !matches!(group, Err(StoreError::NoSuchGroup { .. })));
    Ok((Box::new(listing.groups.into_iter().map(opened).chain(strays)), hidden))
}

fn unknown(of: &Address, known: &[String]) -> Failure {
    let there = if known.is_empty() { "nothing yet".to_owned() } else { known.join(", ") };
    Failure::new(Exit::NotFound, format!("the store holds no {of}"), format!("it holds {there}"))
}

/// The volumes that a group ever had.
pub(crate) fn volumes(group: &GroupReader) -> impl Iterator<Item = (String, VolumeId)> + '_ {
    group.state().volumes().map(|(id, volume)| (volume.meta().name.to_string(), id))
}

fn names_it(of: &Address, group: &GroupReader) -> bool {
    let (source, name) = (group.names().source.to_string(), group.names().group.to_string());
    of.is_group(&source, &name) || volumes(group).any(|(volume, _)| of.is_volume(&source, &name, &volume))
}

/// `farside store check`: says what is wrong, changes nothing.
pub(crate) fn check(global: &Global, url: &str, keys: &[Keeper]) -> Result<(), Failure> {
    let location = location_of(url)?;
    let store = open_with(&location, &key::with_passphrases(keys)?)?;
    let progress = Progress::new(global.json);
    let report = farside_store::check(&store, &|bytes| {
        progress.count(bytes);
        true
    })?;
    progress.finish();
    if global.json {
        print::json(&CheckJson::new(&report))?;
    } else {
        print::out(&check_text(&report))?;
    }
    verdict(&report, &location)
}

/// How a check ends: by the kinds of what was found.
fn verdict(report: &CheckReport, location: &Location) -> Result<(), Failure> {
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let kinds: Vec<Problem> = errors.map(|finding| finding.problem).filter(|kind| *kind != Problem::Unchecked).collect();
    if kinds.is_empty() {
        return match (is_unopened(report), unchecked(report)) {
            (true, _) => Err(unopened(location)),
            (false, 0) => Ok(()),
            (false, _) => {
                let message = format!("not all of the store at {location} could be checked");
                let what_to_do = "nothing that was checked is damaged; check again as a user who may read all of it";
                Err(Failure::new(Exit::Failed, message, what_to_do))
            }
        };
    }
    if kinds.iter().all(|kind| *kind == Problem::Key) {
        let message = format!("wrapped keys in the store at {location} are damaged or missing");
        let what_to_do = "put them back as said above, before the last one that opens is gone: without any nothing that is encrypted can be restored";
        return Err(Failure::new(Exit::Damaged, message, what_to_do));
    }
    let is_content = |kind: &Problem| {
        matches!(kind, Problem::SegmentMissing | Problem::SegmentCorrupt | Problem::LayerDigest | Problem::PointIncomplete)
    };
    let what_to_do = if kinds.contains(&Problem::LedgerTorn) {
        "put the ledger's file back from a copy of the store, or run farside store repair; other points can be restored"
    } else if kinds.iter().any(is_content) {
        "points that are not named, or whose content is whole, can be restored; `farside volume resync NAME` on the source reads the store's bytes and sends what is damaged of its newest content again"
    } else {
        "do what is said above, of each finding"
    };
    let findings = if kinds.len() == 1 { "one finding" } else { &format!("{} findings", kinds.len()) };
    Err(Failure::new(Exit::Damaged, format!("the store at {location} is damaged: {findings}"), what_to_do))
}

/// What was not checked, or not to its end.
fn unchecked(report: &CheckReport) -> usize {
    report.findings.iter().filter(|finding| finding.problem == Problem::Unchecked).count()
}

/// Whether a key was given that does not open all that is encrypted.
fn is_unopened(report: &CheckReport) -> bool {
    report.findings.iter().any(|finding| finding.problem == Problem::KeyUnopened)
}

fn unopened(location: &Location) -> Failure {
    let message = format!("what was given as --key does not open all that is encrypted in the store at {location}");
    Failure::new(
        Exit::Refused,
        message,
        "give those that do (farside key list; --key may be repeated), or none: then only stored bytes are checked",
    )
}

/// What `farside store repair` did.
#[derive(Debug, Serialize)]
struct Repaired {
    group: String,
    /// The slot whose record was mended, if one was.
    mended: Option<u64>,
    /// The slots that were voided.
    voided: Vec<u64>,
    /// Those of them that were recovery points.
    points: Vec<u64>,
}

/// `farside store repair`: mends or voids records that cannot be used, group by group, each after asking.
pub(crate) fn repair(global: &Global, url: &str, only: Option<&Address>, yes: bool) -> Result<(), Failure> {
    let location = location_of(url)?;
    open(&location)?;
    let Location::Dir(path) = location else {
        // Nothing would keep a receiver from writing meanwhile.
        let message = format!("repairing a store in a bucket ({location}) comes in a later version");
        return Err(Failure::new(Exit::Refused, message, "put the object back from another version or copy of the bucket"));
    };
    refuse_another_owner(&path)?;
    let store = Store::open(&path)?;
    let mut done = Vec::new();
    let repaired = repair_groups(global, &store, only, yes, &mut done);
    // † What was given up is said, whatever came after it.
    match done.is_empty() {
        true if repaired.is_err() => {}
        _ if global.json => print::json(&done)?,
        true => print::out("every ledger is whole: nothing to repair\n")?,
        false => print::out(&done.iter().map(Repaired::text).collect::<String>())?,
    }
    repaired
}

fn repair_groups(
    global: &Global,
    store: &Store,
    only: Option<&Address>,
    yes: bool,
    done: &mut Vec<Repaired>,
) -> Result<(), Failure> {
    let mut found = false;
    let mut listing = store.groups()?;
    for names in listing.groups {
        if only.is_some_and(|only| !only.is_group(names.source.as_str(), names.group.as_str())) {
            continue;
        }
        found = true;
        let mut group = store.group_unswept(&names.source, &names.group)?;
        while let Some(plan) = group.repair_plan().map_err(|error| unreadable(error, group.torn()))? {
            if !yes && !agreed(global, &group, &plan)? {
                let message = format!("the ledger of {names} stays as it is");
                return Err(Failure::new(Exit::Refused, message, "put the file back from a copy of the store, if there is one"));
            }
            group.repair_as(&plan).map_err(|error| unreadable(error, group.torn()))?;
            done.push(Repaired::new(names.to_string(), &plan));
        }
    }
    if !(found && only.is_some())
        && let Some((_, error)) = listing.unlisted.pop()
    {
        return Err(error.into());
    }
    if let Some(only) = only.filter(|_| !found) {
        return Err(Failure::new(Exit::NotFound, format!("the store has no group {only}"), "say it as SOURCE/GROUP"));
    }
    Ok(())
}

/// The files that a repair makes must be the receiver's.
fn refuse_another_owner(path: &Path) -> Result<(), Failure> {
    let owner = std::fs::metadata(path).map(|meta| meta.uid());
    let owner = owner.map_err(|e| Failure::from_error(Exit::Failed, &e, "name the directory of a store"))?;
    if nix::unistd::geteuid().as_raw() == owner {
        return Ok(());
    }
    let message = format!("{} belongs to user {owner}: files made by another could not be read by the receiver", path.display());
    Err(Failure::new(Exit::Refused, message, format!("run it as that user: sudo -u '#{owner}' farside store repair …")))
}

/// † A file that cannot be read now may be the last that repeats the torn record: it is not to be removed before that is mended.
fn unreadable(error: StoreError, torn: Option<&Torn>) -> Failure {
    let what_to_do = match (&error, torn) {
        (StoreError::Unreadable { path, .. }, Some(torn)) if path.ends_with(&torn.file) => {
            "or, if there is none, remove the file, and repair again: it is given up then".to_owned()
        }
        (StoreError::Unreadable { .. }, Some(torn)) => format!(
            "do not remove it: it may hold what mends the record in slot {} ({}). Repair again, as it may be read then; or copy what can be read of it off that \
             disk (ddrescue), put that in its place, and repair again",
            torn.slot, torn.file
        ),
        _ => return error.into(),
    };
    Failure { what_to_do, ..Failure::from(error) }
}

/// Says what would be done and asks.
fn agreed(global: &Global, group: &GroupStore, plan: &Repair) -> Result<bool, Failure> {
    if global.json || !std::io::stdin().is_terminal() {
        return Err(unasked(&group.names().to_string(), plan));
    }
    eprintln!("{}", plan_text(&group.names().to_string(), plan));
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::from_error(Exit::Failed, &e, "say --yes"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// † Whoever says --yes next is to know what it gives up.
fn unasked(group: &str, plan: &Repair) -> Failure {
    let message = format!("{}\nrepairing the ledger of {group} must be agreed to", plan_text(group, plan));
    Failure::new(Exit::Refused, message, "run it on a terminal, or say --yes")
}

/// What would be done, for a person who decides.
fn plan_text(group: &str, plan: &Repair) -> String {
    match plan {
        Repair::Mend { slot, file, by: Known::PutBack } => {
            format!("{group}: the record in slot {slot} ({file}) was put back meanwhile. It is kept as it is; nothing is lost.")
        }
        Repair::Mend { slot, file, by: Known::OneBit } => {
            format!("{group}: one bit of the record in slot {slot} ({file}) is wrong. It is put right; nothing is lost.")
        }
        Repair::Mend { slot, file, by: Known::Repeated(other) } => {
            format!(
                "{group}: the record in slot {slot} ({file}) is damaged or missing; the one in slot {other} repeats what it said. It is put there again; nothing is lost."
            )
        }
        Repair::Void { first, last, says } => {
            let mut text = format!("{group}: the ledger cannot be used from slot {first} on. These records are given up:\n");
            for record in says {
                text.push_str(&format!("  slot {} ({}) {}\n", record.slot, record.file, record.text));
            }
            let points = says.iter().filter(|r| r.is_point).count();
            text.push_str(&format!(
                "{points} recovery points in slots {first} to {last} cannot be restored any more; points before slot {first} stay.\n\
                 The source will say TargetRewound until `farside volume resync NAME --accept rewound`.\n\
                 If a copy of the store has the file of slot {first}, put that back instead."
            ));
            text
        }
    }
}

impl Repaired {
    fn new(group: String, plan: &Repair) -> Self {
        match plan {
            Repair::Mend { slot, .. } => Self { group, mended: Some(slot.0), voided: Vec::new(), points: Vec::new() },
            Repair::Void { says, .. } => Self {
                group,
                mended: None,
                voided: says.iter().map(|r| r.slot.0).collect(),
                points: says.iter().filter(|r| r.is_point).map(|r| r.slot.0).collect(),
            },
        }
    }

    fn text(&self) -> String {
        let group = &self.group;
        if let Some(slot) = self.mended {
            return format!("{group}: the record in slot {slot} is what it was; nothing is lost\n");
        }
        let (first, last) = (self.voided.first().unwrap_or(&0), self.voided.last().unwrap_or(&0));
        format!("{group}: slots {first} to {last} are void, {} points with them; the ledger goes on\n", self.points.len())
    }
}

/// A [`CheckReport`] for scripts.
#[derive(Serialize)]
struct CheckJson {
    groups: u64,
    records: u64,
    points: u64,
    segments: u64,
    segment_bytes: u64,
    dead_bytes: u64,
    dead_ratio: f64,
    unnamed_bytes: u64,
    findings: Vec<FindingJson>,
}

#[derive(Serialize)]
struct FindingJson {
    severity: &'static str,
    problem: String,
    group: String,
    volume: Option<String>,
    points: Vec<u64>,
    spoils_newest_content: bool,
    region: Option<u64>,
    object: Option<String>,
    message: String,
}

impl CheckJson {
    fn new(report: &CheckReport) -> Self {
        Self {
            groups: report.groups,
            records: report.records,
            points: report.points,
            segments: report.segments,
            segment_bytes: report.segment_bytes,
            dead_bytes: report.dead_bytes,
            dead_ratio: report.dead_ratio(),
            unnamed_bytes: report.unnamed_bytes,
            findings: report.findings.iter().map(FindingJson::new).collect(),
        }
    }
}

impl FindingJson {
    fn new(finding: &Finding) -> Self {
        Self {
            severity: severity_word(finding.severity),
            problem: snake_case(&format!("{:?}", finding.problem)),
            group: finding.group.clone(),
            volume: finding.volume.as_ref().map(ToString::to_string),
            points: finding.points.iter().map(|slot| slot.0).collect(),
            spoils_newest_content: finding.head,
            region: finding.region.map(|region| region.0),
            object: finding.object.clone(),
            message: finding.text.clone(),
        }
    }
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn check_text(report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.severity {
            Severity::Note => "i",
            Severity::Warning => "!",
            Severity::Error => "✗",
        };
        // The sentence names volume, points, region and file itself.
        text.push_str(&format!("{mark} {}: {}\n", finding.group, finding.text));
    }
    let checked = match unchecked(report) {
        0 => "every byte checked".to_owned(),
        left_out => format!("and {left_out} not checked, or not to the end (see above)"),
    };
    text.push_str(&format!(
        "{} groups, {} points, {} ledger records, {} segments of {}, {checked}\n{} of it dead ({:.1} %), {} not named by any record\n",
        report.groups,
        report.points,
        report.records,
        report.segments,
        print::bytes(report.segment_bytes),
        print::bytes(report.dead_bytes),
        report.dead_ratio() * 100.0,
        print::bytes(report.unnamed_bytes),
    ));
    // † Nobody who gave a key is to think that it opens what it does not.
    if report.worst().is_none_or(|worst| worst < Severity::Error) && !is_unopened(report) {
        text.push_str("every published point can be restored\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use farside_ledger::{Body, Pin};

    use super::*;

    /// A mistyped year restored the newest point without a word.
    #[test]
    fn a_time_that_has_not_come_is_said() {
        let now: jiff::Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        let said = |text: &str| in_the_future(text.parse().expect("a point"), now);
        assert!(said("2062-03-01T12:00:00Z").is_some_and(|words| words.contains("is in the future")));
        assert_eq!((said("2026-03-01T12:00:00Z"), said("latest"), said("-5m")), (None, None, None));
    }

    /// The advice was to remove it, and with it the torn record and all after that were given up.
    #[test]
    fn a_file_that_may_mend_the_torn_record_is_not_to_be_removed() {
        let (slot, file) = (Slot(7), "groups/h/g/ledger/0/7".to_owned());
        let torn = Torn { slot, file, why: String::new(), newer: false, lost_claim: None, checkpoint: None };
        let advice = |slot: u64| {
            let path = format!("/srv/farside/groups/h/g/ledger/0/{slot}").into();
            let source = std::io::Error::from_raw_os_error(libc::EIO);
            unreadable(StoreError::Unreadable { path, source }, Some(&torn)).what_to_do
        };
        assert!(advice(7).contains("it is given up then"));
        let other = advice(9);
        assert!(other.starts_with("do not remove it") && other.contains("slot 7"), "{other}");
    }

    #[test]
    fn a_store_is_a_directory_or_in_a_bucket() {
        assert_eq!(location_of("/srv/farside").expect("a path"), Location::Dir("/srv/farside".into()));
        assert_eq!(location_of("file:///srv/farside").expect("a path"), Location::Dir("/srv/farside".into()));
        assert_eq!(location_of("s3://bucket/x").expect("a bucket").to_string(), "s3://bucket/x");
        assert_eq!(location_of("file://srv").expect_err("no path").exit, Exit::Usage);
        assert_eq!(location_of("ftp://srv/x").expect_err("no store").exit, Exit::Usage);
    }

    /// A store with a group of 70 records, and their folder.
    fn of_70_records() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("made");
        Store::init(dir.path()).expect("made");
        let store = Store::open(dir.path()).expect("open");
        let mut group = store.group(&"web".parse().expect("a name"), &"db".parse().expect("a name")).expect("made");
        for slot in 0..70 {
            let pin = Pin { point: Slot(slot), reason: "kept".to_owned() };
            group.append(Body::Pin(pin)).expect("appended");
        }
        let records = dir.path().join("groups/web/db/ledger/0");
        (dir, records)
    }

    /// † `store recover` and `point list` ended before a record without which a restore had every byte, and took what was older.
    #[test]
    fn a_lost_record_that_later_ones_repeat_hides_nothing() {
        let (dir, records) = of_70_records();
        for lost in ["30", "0"] {
            let good = std::fs::read(records.join(lost)).expect("read");
            std::fs::remove_file(records.join(lost)).expect("removed");
            let store = StoreReader::open(dir.path()).expect("open");
            let names = store.groups().expect("listed").groups.remove(0);
            let listed = store.group_as_listed(&names).expect("there");
            assert!(listed.torn().is_some());
            let (past, why) = seen_past(&store, &listed).expect("later ones repeat it");
            assert!(why.contains("farside store repair") && why.contains("nothing is lost"), "{why}");
            let seen = as_far_as_seen(&store, &names).expect("there");
            assert_eq!([past.state().next_slot(), seen.state().next_slot()], [Slot(70); 2]);
            assert!(past.torn().is_none() && seen.torn().is_none());
            std::fs::write(records.join(lost), good).expect("put back");
        }
        std::fs::write(records.join("69"), "torn").expect("written");
        let store = StoreReader::open(dir.path()).expect("open");
        let names = store.groups().expect("listed").groups.remove(0);
        let listed = store.group_as_listed(&names).expect("there");
        assert!(seen_past(&store, &listed).is_none(), "nothing repeats the newest");
    }

    /// † `restore --point latest` exited with 0, with an older point.
    #[test]
    fn whoever_asks_for_the_newest_ends_with_damage_where_newer_ones_cannot_be_seen() {
        let (dir, records) = of_70_records();
        let opened = || {
            let store = StoreReader::open(dir.path()).expect("open");
            store.group_to_open(&store.groups().expect("listed").groups[0]).expect("there")
        };
        let taken = PointId { slot: 60, tag: 0x9f3c_2a1b };
        assert!(newer_hidden(&opened(), PointRef::Latest, taken).is_none());
        std::fs::write(records.join("69"), "").expect("cut");
        let torn = opened();
        for wanted in [PointRef::Latest, PointRef::Consistent, "-1h".parse().expect("an age")] {
            let failure = newer_hidden(&torn, wanted, taken).expect("it may be older");
            assert!(failure.exit == Exit::Damaged && failure.message.contains("60-9f3c2a1b"), "{failure:?}");
        }
        assert!(newer_hidden(&torn, PointRef::Id { slot: 60, tag: None }, taken).is_none(), "that is the one that was asked for");
    }

    #[test]
    fn findings_come_with_group_and_severity() {
        let finding = Finding {
            severity: Severity::Error,
            problem: Problem::SegmentCorrupt,
            group: "web/default".into(),
            volume: "data".parse().ok(),
            points: vec![farside_region::Slot(3), farside_region::Slot(5)],
            head: true,
            region: Some(farside_region::RegionIndex(7)),
            object: None,
            text: "a bit flipped".into(),
        };
        let report = CheckReport { findings: vec![finding], ..CheckReport::default() };
        let text = check_text(&report);
        assert!(text.starts_with("✗ web/default: a bit flipped\n"), "{text}");
        assert!(!text.contains("can be restored"), "{text}");
        assert_eq!(CheckJson::new(&report).findings[0].problem, "segment_corrupt");
    }

    /// A missing permission was called damage, and who stumbled over it was sent to read all of a volume again.
    #[test]
    fn a_check_ends_by_the_kinds_of_what_it_found() {
        let location: Location = "/srv/farside".parse().expect("a path");
        let ends = |kinds: &[Problem]| {
            let of = |problem: &Problem| Finding {
                severity: Severity::Error,
                problem: *problem,
                group: "web/default".into(),
                volume: None,
                points: Vec::new(),
                head: false,
                region: None,
                object: None,
                text: "it is named".into(),
            };
            let report = CheckReport { findings: kinds.iter().map(of).collect(), ..CheckReport::default() };
            (verdict(&report, &location), check_text(&report))
        };
        assert!(ends(&[]).0.is_ok());
        let (ended, text) = ends(&[Problem::Unchecked]);
        let failure = ended.expect_err("not all was looked at");
        assert!(failure.exit == Exit::Failed && !failure.message.contains("damaged"), "{failure:?}");
        assert!(!failure.what_to_do.contains("resync") && !text.contains("every byte checked"), "{failure:?}: {text}");
        for (kinds, word) in [
            (&[Problem::SegmentCorrupt, Problem::Unchecked][..], "volume resync"),
            (&[Problem::LedgerTorn, Problem::SegmentCorrupt], "store repair"),
            (&[Problem::Key], "put them back"),
            (&[Problem::Checkpoint], "said above"),
        ] {
            let failure = ends(kinds).0.expect_err("damaged");
            assert!(failure.exit == Exit::Damaged && failure.what_to_do.contains(word), "{failure:?}");
            assert_eq!(failure.what_to_do.contains("resync"), word == "volume resync", "{failure:?}");
        }
    }

    #[test]
    fn who_cannot_be_asked_is_told_what_a_repair_would_do() {
        let plan = Repair::Mend { slot: Slot(3), file: "groups/web/db/ledger/0/3".into(), by: Known::OneBit };
        let said = unasked("web/db", &plan);
        assert!(said.message.contains("the record in slot 3") && said.message.contains("must be agreed to"), "{said:?}");
        assert_eq!(said.exit, Exit::Refused);
    }

    #[test]
    fn who_gave_another_key_is_not_told_that_points_can_be_restored() {
        let finding = Finding {
            severity: Severity::Warning,
            problem: Problem::KeyUnopened,
            group: "web/default".into(),
            volume: "data".parse().ok(),
            points: Vec::new(),
            head: false,
            region: None,
            object: None,
            text: "this file does not open the key".into(),
        };
        assert!(check_text(&CheckReport::default()).contains("can be restored"));
        let report = CheckReport { findings: vec![finding], ..CheckReport::default() };
        assert!(is_unopened(&report) && !check_text(&report).contains("every published point"));
        assert_eq!(CheckJson::new(&report).findings[0].problem, "key_unopened");
    }
}
