//! `farside drill`: writable clones of all volumes of a point, all of them or none, until it is stopped or its time is over. Of a cohort
//! one drill for each group, which have one owner and end together.
//!
//! The owner is the process of `drill start`. It starts one `farside point open --writable` per volume, each of which keeps what it reads
//! from being deleted. They end when their standard input does, that is, with the owner, however that ends; what is left then are files,
//! which the next `drill start` or `drill stop` sweeps. Nothing here talks to the source, and nothing is written to the store.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use farside_control::cohort::CohortCut;
use farside_control::routes::PointsQuery;
use farside_control::{Address, Point, PointRef};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DrillCommand, DrillStartArgs, Global};
use crate::device;
use crate::drill::state::{Device, Drill, Folder, Found, Owned, Stage};
use crate::failover::no_cut;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::opened::Opened;
use crate::print::{self, Table};
use crate::{opened, restore, store};

/// How soon the end of a server is seen.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(global: &Global, hosts: &Hosts, command: DrillCommand) -> Result<(), Failure> {
    match command {
        DrillCommand::Start(args) => start(global, hosts, args).await,
        DrillCommand::List { dir } => list(global, &places(dir)?),
        DrillCommand::Stop { id, all, force, dir } => {
            let ids = stop_in(&places(dir)?, id.filter(|_| !all).as_deref(), force)?;
            match (global.json, ids.is_empty()) {
                (true, _) => print::json(&ids),
                (false, true) => print::out("no drills: nothing was stopped\n"),
                (false, false) => print::out(&format!("stopped: {}\n", ids.join(", "))),
            }
        }
    }
}

/// Where drills are looked for: where it is said, or at the usual place and wherever this user has one that is served.
fn places(dir: Option<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let is_said = dir.is_some();
    let first = place(dir)?;
    let of = |opened: Opened| Some(opened.overlay?.parent()?.parent()?.to_owned());
    let served = opened::found().into_iter().filter_map(of).filter(|path| !is_said && *path != first && Folder::is_one(path));
    let others: BTreeSet<PathBuf> = served.collect();
    Ok([first].into_iter().chain(others).collect())
}

/// The command that ends one.
pub(crate) fn ended_by(id: &str, place_of: &Path) -> String {
    let elsewhere = Some(place_of).filter(|path| !place(None).is_ok_and(|usual| usual == *path));
    let said = elsewhere.map(|path| format!(" --dir {}", path.display()));
    format!("farside drill stop {id}{}", said.unwrap_or_default())
}

/// On a disk: what is written in a drill lies there.
fn place(dir: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let dir = dir.unwrap_or_else(|| match nix::unistd::geteuid() {
        user if user.is_root() => "/var/lib/farside-drill".into(),
        user => format!("/var/tmp/farside-drill-{user}").into(),
    });
    std::path::absolute(&dir).or_fail(dir.display())
}

/// A drill as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    is_interrupted: bool,
    #[serde(flatten)]
    drill: Option<&'a Drill>,
}

/// What `drill start` says when everything can be written.
#[derive(Serialize)]
struct Started<'a> {
    #[serde(flatten)]
    drill: &'a Drill,
    /// From the command's start to devices that can be written.
    rto_ms: u64,
}

/// The same of a cohort.
#[derive(Serialize)]
struct StartedAll<'a> {
    cohort: &'a str,
    cut: &'a str,
    drills: Vec<&'a Drill>,
    /// From the command's start to devices that can be written, all of them.
    rto_ms: u64,
}

/// What is opened.
struct Wanted {
    /// A cohort and its cut.
    of: Option<(String, CohortCut)>,
    /// One of each group.
    points: Vec<Point>,
    /// What is said at the end if that may be older than what is meant.
    hidden: Option<Failure>,
}

/// † Every group at its point of one cut, or none: two points of two cuts may hold an effect without its cause.
async fn wanted(hosts: &Hosts, args: &DrillStartArgs) -> Result<Wanted, Failure> {
    let location = match &args.store {
        Some(url) => store::location_of(url)?,
        None => restore::gateway_store(hosts).await?,
    };
    let reader = store::open(&location)?;
    if let Some(group) = &args.group {
        let (seen, point) = store::one_point(&reader, args.point, Some(group))?;
        refuse_volume(group, &point)?;
        let hidden = store::newer_hidden(&seen, args.point, point.id);
        return Ok(Wanted { of: None, points: vec![point], hidden });
    }
    let name = args.cohort.clone().expect("a group or a cohort is asked for");
    let cuts = hosts.gateway().await?.cohort_cuts(&name, &PointsQuery { of: None, limit: Some(u32::MAX) }).await?;
    let (cut, passed_over) = choose(cuts, args.cut.as_deref());
    // It may be why there is none, too.
    passed_over.iter().for_each(|why| _ = writeln!(std::io::stderr(), "farside: {why}"));
    let cut = cut.ok_or_else(|| match passed_over.is_empty() {
        true => no_cut(&name, args.cut.as_deref(), "each group can be drilled by itself"),
        false => {
            let message = format!("cohort {name} has no whole cut that a failover would take");
            Failure::new(Exit::NotFound, message, "--cut drills one of those nevertheless")
        }
    })?;
    let mut points = Vec::new();
    for part in &cut.points {
        let group: Address = part.group.parse().or_fail(&part.group)?;
        let wanted = PointRef::Id { slot: part.point.slot, tag: Some(part.point.tag) };
        points.push(store::one_point(&reader, wanted, Some(&group))?.1);
    }
    Ok(Wanted { of: Some((name, cut)), points, hidden: None })
}

/// The one that was said; or the newest that a failover would take, and what is said of newer ones.
fn choose(mut cuts: Vec<CohortCut>, wanted: Option<&str>) -> (Option<CohortCut>, Vec<String>) {
    if let Some(wanted) = wanted {
        return (cuts.into_iter().find(|cut| cut.id == wanted), Vec::new());
    }
    let at = cuts.iter().position(|cut| cut.doubt().is_none()).unwrap_or(cuts.len());
    let passed_over =
        |cut: &CohortCut| format!("cut {} is passed over (--cut takes it): {}", cut.id, cut.doubt().unwrap_or_default());
    let said = cuts[..at].iter().map(passed_over).collect();
    ((at < cuts.len()).then(|| cuts.swap_remove(at)), said)
}

async fn start(global: &Global, hosts: &Hosts, args: DrillStartArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let Wanted { of, points, hidden } = wanted(hosts, &args).await?;
    let path = place(args.dir.clone())?;
    if args.plan {
        return plan(global, &path, (of.as_ref(), &points), args.ttl);
    }
    let folder = Folder::open(&path)?;
    sweep(&folder)?;
    let mut all = All { of, drills: Vec::new() };
    // In order, and undone as a whole: which of them failed is in the sentence.
    let begins = points.into_iter().try_for_each(|point| {
        let owned = folder.begin(|id, dir| Drill {
            id,
            group: format!("{}/{}", point.source, point.group),
            cohort: all.of.as_ref().map(|(name, _)| name.clone()),
            created: Timestamp::now(),
            expires: Timestamp::now().saturating_add(args.ttl).unwrap_or(Timestamp::MAX),
            pid: std::process::id(),
            stage: Stage::Opening,
            volumes: devices(&point, dir),
            point,
        })?;
        all.drills.push((owned, Servers::default()));
        Ok(())
    });
    drop(folder); // others may look now
    let opens = begins
        .and_then(|()| all.drills.iter_mut().try_for_each(|(owned, servers)| servers.open(global, &args, &mut owned.drill)));
    let ended = match opens {
        Ok(()) => all.serve(global, begun, (&path, args.ttl)).await,
        Err(failure) => Err(failure),
    };
    let ids: Vec<String> = all.drills.iter().map(|(owned, _)| owned.drill.id.clone()).collect();
    ended.and(all.end())?;
    if !global.json {
        print::out(&format!("drill {} is over; nothing of it is left\n", ids.join(", ")))?;
    }
    hidden.map_or(Ok(()), Err)
}

/// What one owner has: a drill, or one of each group of a cohort.
struct All {
    of: Option<(String, CohortCut)>,
    drills: Vec<(Owned, Servers)>,
}

/// A volume's name finds its group as well; a drill of less than was asked for, or of more, is none.
fn refuse_volume(group: &Address, point: &Point) -> Result<(), Failure> {
    if group.is_group(&point.source, &point.group) {
        return Ok(());
    }
    let message = format!("{group} is a volume of group {}/{}", point.source, point.group);
    Err(Failure::new(
        Exit::Usage,
        message,
        format!("a drill has all of it: farside drill start {}/{}", point.source, point.group),
    ))
}

fn devices(point: &Point, dir: &Path) -> Vec<Device> {
    let one = |volume: &String| Device {
        volume: volume.clone(),
        socket: dir.join(format!("{volume}.nbd")),
        node: None,
        overlay: dir.join(format!("{volume}.nbd.overlay")),
    };
    point.members.iter().map(|member| one(&member.volume)).collect()
}

fn plan(
    global: &Global,
    path: &Path,
    (of, points): (Option<&(String, CohortCut)>, &[Point]),
    ttl: Duration,
) -> Result<(), Failure> {
    let dir = path.join("ID");
    if global.json {
        let ttl_ms = ttl.as_millis() as u64;
        let one = |point: &Point| serde_json::json!({ "point": point, "volumes": devices(point, &dir), "ttl_ms": ttl_ms });
        return match of {
            None => points.first().map_or(Ok(()), |point| print::json(&one(point))),
            Some((cohort, cut)) => {
                let drills: Vec<_> = points.iter().map(one).collect();
                print::json(&serde_json::json!({ "cohort": cohort, "cut": cut.id, "drills": drills }))
            }
        };
    }
    let mut text = String::new();
    if let Some((cohort, cut)) = of {
        text.push_str(&format!("cohort {cohort} at cut {}, begun {}\n", cut.id, print::time(cut.at)));
    }
    for point in points {
        text.push_str(&format!("point {} of {}/{}, {}\n", point.id, point.source, point.group, print::time(point.cut_wall)));
    }
    let folders = if points.len() == 1 { "a folder" } else { "a folder for each group" };
    text.push_str(&format!("1. make {folders} below {}, and note there what is done\n", path.display()));
    let mut steps = 2..;
    for (point, device) in points.iter().flat_map(|point| devices(point, &dir).into_iter().map(move |device| (point, device))) {
        let whose = if points.len() == 1 { String::new() } else { format!(" of {}/{}", point.source, point.group) };
        let n = steps.next().unwrap_or_default();
        text.push_str(&format!("{n}. open {}{whose} to be written, at {}\n", device.volume, device.socket.display()));
    }
    let ttl = print::duration_ms(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let n = steps.next().unwrap_or_default();
    text.push_str(&format!("{n}. after {ttl}, or when it is stopped: end all of them, and remove what was made\n"));
    text.push_str("nothing was changed\n");
    print::out(&text)
}

/// One `farside point open` per volume. Each ends with its standard input.
#[derive(Default)]
struct Servers(Vec<(String, Child)>);

impl Servers {
    fn open(&mut self, global: &Global, args: &DrillStartArgs, drill: &mut Drill) -> Result<(), Failure> {
        let program = std::env::current_exe().or_fail("this program is not found")?;
        for device in &mut drill.volumes {
            let Device { volume, socket, overlay, node } = device;
            let mut command = Command::new(&program);
            command.args(["point", "open", "--json", "--writable", "--until-stdin-ends"]);
            command.arg(format!("{}/{volume}@{}", drill.group, drill.point.id));
            command.arg("--export").arg(opened::export_of(socket)).arg("--overlay").arg(overlay);
            if let Some(by) = args.device {
                command.arg(format!("--device={}", by.as_str()));
            }
            if let Some(url) = &args.store {
                command.args(["--store", url]);
            }
            if let Some(key) = &args.key {
                command.args(["--key", key]);
            }
            if let Some(socket) = &global.socket {
                command.arg("--socket").arg(socket);
            }
            // Of a group of its own: Ctrl-C is the owner's, and no end of a server.
            let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().or_fail(&*volume)?;
            let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            self.0.push((volume.clone(), child));
            let mut said = String::new();
            *node = loop {
                if let Ok(opened) = serde_json::from_str::<Opened>(&said) {
                    break opened.device;
                }
                let Some(Ok(line)) = lines.next() else {
                    let message = format!("{volume} of drill {} cannot be opened; what was open is closed again", drill.id);
                    return Err(Failure::new(Exit::Failed, message, "the reason is above"));
                };
                said.push_str(&line);
            };
        }
        Ok(())
    }

    /// The first that ended by itself.
    fn ended(&mut self) -> Option<String> {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        self.0.iter_mut().find_map(|(volume, child)| ended(child).then(|| volume.clone()))
    }

    fn end(&mut self) {
        self.0.iter_mut().for_each(|(_, child)| drop(child.stdin.take()));
        self.0.iter_mut().for_each(|(_, child)| drop(child.wait()));
    }
}

impl All {
    /// Until it is stopped, its time is over, or a volume is not served any more.
    async fn serve(&mut self, global: &Global, begun: Instant, (path, ttl): (&Path, Duration)) -> Result<(), Failure> {
        let of = |kind| signal(kind).or_fail("signals cannot be received");
        let (mut interrupted, mut terminated) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
        self.drills.iter_mut().try_for_each(|(owned, _)| owned.advance(Stage::Ready))?;
        let rto_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let said = self.said(global.json, path, rto_ms);
        if !print::is_read(&said)? {
            return Ok(()); // nobody learns where it is
        }
        let drills = &mut self.drills;
        let used: Vec<Drill> = drills.iter().map(|(owned, _)| owned.drill.clone()).collect();
        let ended = async {
            loop {
                if let Some(volume) = drills.iter_mut().find_map(|(_, servers)| servers.ended()) {
                    return volume;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let over = tokio::time::sleep(ttl.saturating_sub(begun.elapsed()));
        tokio::pin!(ended, over);
        let mut is_meant = false;
        loop {
            tokio::select! {
                volume = &mut ended => {
                    let message = format!("{volume} is not served any more: the drill ends as a whole");
                    return Err(Failure::new(Exit::Failed, message, "start another one"));
                }
                _ = interrupted.recv() => match used.iter().try_for_each(refuse_used) {
                    Err(used) if !is_meant => {
                        is_meant = true;
                        let _ = writeln!(std::io::stderr(), "farside: {}; Ctrl-C again ends it nevertheless", used.message);
                    }
                    _ => return Ok(()),
                },
                _ = terminated.recv() => return Ok(()),
                () = &mut over => return Ok(()),
            }
        }
    }

    fn said(&self, json: bool, path: &Path, rto_ms: u64) -> String {
        let drills = || self.drills.iter().map(|(owned, _)| &owned.drill);
        let text_of_all = || drills().map(|drill| text(&Started { drill, rto_ms }, path)).collect::<String>();
        match &self.of {
            None if json => drills().map(|drill| print::json_text(&Started { drill, rto_ms })).collect(),
            Some((cohort, cut)) if json => {
                print::json_text(&StartedAll { cohort, cut: &cut.id, drills: drills().collect(), rto_ms })
            }
            Some((cohort, cut)) => {
                format!("cohort {cohort} at cut {}; to stop one of its drills stops all\n{}", cut.id, text_of_all())
            }
            None => text_of_all(),
        }
    }

    /// Nothing of it is left; as far as that goes, whatever fails.
    fn end(self) -> Result<(), Failure> {
        let mut drills = self.drills;
        let stopped: Vec<_> = drills.iter_mut().map(|(owned, _)| owned.advance(Stage::Stopping)).collect();
        drills.iter_mut().for_each(|(_, servers)| servers.end());
        let removed: Vec<_> = drills.into_iter().map(|(owned, _)| owned.remove()).collect();
        stopped.into_iter().chain(removed).collect()
    }
}

fn text(started: &Started<'_>, path: &Path) -> String {
    let drill = started.drill;
    let mut text = format!("drill {} of {} at {}: ", drill.id, drill.group, print::time(drill.point.cut_wall));
    text.push_str(&format!("devices writable after {} ms (RTO)\n", started.rto_ms));
    for Device { volume, socket, node, .. } in &drill.volumes {
        text.push_str(&match node {
            Some(node) => format!("  {volume}  {}\n", node.display()),
            None => format!("  {volume}  nbd-client -unix {} /dev/nbdN -b 512\n", socket.display()),
        });
    }
    text.push_str(&format!("  until {}, Ctrl-C, or: {}\n", print::time(drill.expires), ended_by(&drill.id, path)));
    text
}

/// Those that this user has at the usual place, and those that are served from elsewhere; and what is wrong where they cannot be looked for.
pub(crate) fn found() -> (Vec<Found>, Result<(), Failure>) {
    match places(None) {
        Ok(places) => found_in(&places),
        Err(failure) => (Vec::new(), Err(failure)),
    }
}

fn found_in(places: &[PathBuf]) -> (Vec<Found>, Result<(), Failure>) {
    let (mut found, mut looked) = (Vec::new(), Ok(()));
    for path in places.iter().filter(|path| path.exists()) {
        match Folder::open(path).and_then(|folder| folder.find()) {
            Ok(here) => found.extend(here),
            Err(failure) => looked = looked.and(Err(failure)),
        }
    }
    (found, looked)
}

fn list(global: &Global, places: &[PathBuf]) -> Result<(), Failure> {
    match found_in(places) {
        (found, Err(failure)) if found.is_empty() => Err(failure),
        (found, looked) => show(global, places, &found).and(looked),
    }
}

fn show(global: &Global, places: &[PathBuf], found: &[Found]) -> Result<(), Failure> {
    if global.json {
        let listed = |one: &Found| {
            serde_json::to_value(Listed { id: &one.id, is_interrupted: one.is_interrupted, drill: one.drill.as_ref() })
        };
        let all: Result<Vec<_>, _> = found.iter().map(listed).collect();
        return print::json(&all.expect("it is JSON"));
    }
    if found.is_empty() {
        let place = places.first().map_or_else(|| print::NOTHING.to_owned(), |path| path.display().to_string());
        return print::out(&format!(
            "this user has no drill on this machine, in {place} (what one that was killed has left elsewhere: --dir DIRECTORY)\n"
        ));
    }
    let mut table = Table::new(&["DRILL", "GROUP", "POINT", "STAGE", "EXPIRES"]);
    for one in found {
        let of = |say: fn(&Drill) -> String| one.drill.as_ref().map_or_else(|| print::NOTHING.to_owned(), say);
        let stage = if one.is_interrupted { "interrupted".to_owned() } else { of(|drill| format!("{:?}", drill.stage)) };
        let (group, point) = (of(|drill| drill.group.clone()), of(|drill| drill.point.id.to_string()));
        table.row([one.id.clone(), group, point, stage, of(|drill| print::time(drill.expires))]);
    }
    let elsewhere = found.iter().filter(|one| places.first().is_some_and(|usual| one.place() != usual));
    let ways: String =
        elsewhere.map(|one| format!("{} is kept elsewhere: {}\n", one.id, ended_by(&one.id, one.place()))).collect();
    print::out(&format!("{}{ways}", table.fit(print::Look::of_stdout())))
}

/// What dead owners left.
fn sweep(folder: &Folder) -> Result<(), Failure> {
    // Of servers that were killed themselves. What cannot be taken away is tried again the next time; its users see errors already.
    let _ = device::sweep();
    folder.find()?.iter().filter(|found| found.is_interrupted).try_for_each(|found| folder.sweep(found))
}

/// One, or all.
fn stop_in(places: &[PathBuf], id: Option<&str>, force: bool) -> Result<Vec<String>, Failure> {
    let Some(id) = id else {
        let (mut stopped, mut ended) = (Vec::new(), Ok(()));
        for path in places {
            match stop(path, None, force) {
                Ok(ids) => stopped.extend(ids),
                Err(failure) => ended = ended.and(Err(failure)),
            }
        }
        return ended.map(|()| stopped);
    };
    let (found, looked) = found_in(places);
    let Some(found) = found.into_iter().find(|found| found.id == id) else {
        looked?;
        let message = format!("this user has no drill {id} on this machine");
        let what = "see what there is: farside drill list; where it was started with --dir, say the same here";
        return Err(Failure::new(Exit::NotFound, message, what));
    };
    stop(found.place(), Some(id), force)
}

fn stop(path: &Path, id: Option<&str>, force: bool) -> Result<Vec<String>, Failure> {
    let folder = Folder::open(path)?;
    let _ = device::sweep(); // as above
    let mut found = folder.find()?;
    // † Those of a cohort end together: who uses one of them is asked about, too.
    let pid_of = |one: &Found| one.drill.as_ref().filter(|_| !one.is_interrupted).map(|drill| drill.pid);
    let owner = found.iter().find(|found| id == Some(&found.id)).and_then(pid_of);
    found.retain(|found| id.is_none_or(|id| found.id == id) || (owner.is_some() && pid_of(found) == owner));
    for one in found.iter().filter(|one| !one.is_interrupted && !force) {
        one.drill.as_ref().map_or(Ok(()), refuse_used)?;
    }
    let (left, mut running): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.is_interrupted);
    // Nobody can be asked to end those, and so they are not waited for.
    running.retain(|one| !one.is_unknown());
    left.into_iter().try_for_each(|one| folder.sweep(one))?;
    let owners: BTreeMap<u32, &str> =
        running.iter().filter_map(|one| one.drill.as_ref()).map(|one| (one.pid, one.id.as_str())).collect();
    for (pid, id) in owners {
        let pid = Pid::from_raw(i32::try_from(pid).or_fail(format!("the owner of drill {id}"))?);
        kill(pid, Signal::SIGTERM).or_fail(format!("the owner of drill {id} cannot be asked"))?;
    }
    drop(folder);
    running.iter().try_for_each(|one| one.wait())?;
    // One that was still opening dies of the signal, and leaves what it has made.
    let folder = Folder::open(path)?;
    let is_meant = |one: &&Found| running.iter().any(|meant| meant.id == one.id) && one.is_interrupted;
    folder.find()?.iter().filter(is_meant).try_for_each(|one| folder.sweep(one))?;
    if let Some(unknown) = found.iter().find(|one| one.is_unknown()) {
        return Err(unknown.unknown());
    }
    Ok(found.iter().map(|one| one.id.clone()).collect())
}

/// Refuses to end one server of a drill while somebody uses that drill, or one that ends with it: it is not less than `drill stop`.
///
/// † For that server, which must not wait for its own device: whether that one is used it knows as it takes it away.
pub(crate) fn refuse_end_of(socket: &Path) -> Result<(), Failure> {
    let place = socket.parent().and_then(Path::parent).filter(|place| Folder::is_one(place));
    let found = place.map_or(Ok(Vec::new()), |place| Folder::open(place)?.find())?;
    let drills = || found.iter().filter(|one| !one.is_interrupted).filter_map(|one| one.drill.as_ref());
    let Some(of) = drills().find(|drill| drill.volumes.iter().any(|device| device.socket == socket)) else { return Ok(()) };
    let ends = ended_by(&of.id, place.unwrap_or(Path::new("")));
    let mut together = drills().filter(|drill| drill.pid == of.pid);
    together.try_for_each(|drill| refuse_used_but(drill, Some(socket))).map_err(|used| Failure {
        message: format!(
            "all of drill {} ends with it, and {}. Unmount and disconnect it, or end the drill: {ends}",
            of.id, used.message
        ),
        ..used
    })
}

fn refuse_used(drill: &Drill) -> Result<(), Failure> {
    refuse_used_but(drill, None)
}

/// `own`: the socket of who asks, whose device is not looked at.
fn refuse_used_but(drill: &Drill, own: Option<&Path>) -> Result<(), Failure> {
    for device in &drill.volumes {
        let Device { volume, socket, node, .. } = device;
        let clients = farside_nbd::clients_of(socket).or_fail("whether a device is in use is not known")?;
        let used = match node {
            Some(node) if own != Some(socket) && device::is_used(node)? => Some(node),
            _ => Some(socket).filter(|_| clients > 0),
        };
        if let Some(used) = used {
            let message = format!("{volume} of drill {} is in use at {}", drill.id, used.display());
            return Err(Failure::new(Exit::Refused, message, "unmount and disconnect it, or end it nevertheless: --force"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use farside_blockio::{MemQueue, QueueInfo, Waker};
    use farside_control::PointId;
    use farside_control::cohort::CohortPoint;
    use farside_nbd::{Limits, Server};

    use super::*;

    /// A rehearsal is of what a failover would bring up.
    #[test]
    fn a_cut_that_a_failover_refuses_is_passed_over_and_said() {
        let cut = |id: &str, aside, damaged: Option<&str>| {
            let part = |group: &str, aside, damaged: Option<&str>| CohortPoint {
                group: group.to_owned(),
                point: PointId { slot: 7, tag: 1 },
                aside,
                damaged: damaged.map(str::to_owned),
            };
            let points = vec![part("a/g", false, None), part("b/g", aside, damaged)];
            CohortCut { id: id.to_owned(), points, ..CohortCut::default() }
        };
        let cuts = || {
            vec![cut("4", true, None), cut("3", false, Some("a segment is gone")), cut("2", false, None), cut("1", false, None)]
        };
        let (chosen, said) = choose(cuts(), None);
        assert_eq!(chosen.map(|cut| cut.id).as_deref(), Some("2"));
        assert_eq!(said.len(), 2);
        assert!(said[0].starts_with("cut 4 is passed over") && said[0].contains("b/g was left aside"), "{said:?}");
        assert!(said[1].contains("a segment is gone"), "{said:?}");
        let named = choose(cuts(), Some("4"));
        assert_eq!((named.0.map(|cut| cut.id).as_deref(), named.1.len()), (Some("4"), 0), "as it was said");
        let none = choose(cuts()[..2].to_vec(), None);
        assert!(none.0.is_none() && none.1.len() == 2);
        assert!(choose(cuts(), Some("9")).0.is_none());
    }

    #[test]
    fn no_server_of_a_drill_ends_while_a_client_is_connected_to_one_that_ends_with_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let place = dir.path().join("drills");
        let folder = Folder::open(&place).expect("a folder");
        let point: Point = serde_json::from_value(serde_json::json!({
            "id": PointId { slot: 7, tag: 1 }, "source": "host1", "group": "db", "cut_wall": Timestamp::UNIX_EPOCH,
            "cut_mono_before_ns": 0, "cut_mono_after_ns": 0, "boot": "", "ledger_time_ms": 0, "members": [],
        }))
        .expect("a point");
        let begin = |volumes: &[&str]| {
            let device = |dir: &Path, volume: &str| Device {
                volume: volume.to_owned(),
                socket: dir.join(format!("{volume}.nbd")),
                node: Some("/dev/no-such-device".into()),
                overlay: dir.join("overlay"),
            };
            let of = |id, dir: &Path| Drill {
                id,
                group: "host1/db".into(),
                cohort: None,
                point: point.clone(),
                created: Timestamp::now(),
                expires: Timestamp::now(),
                pid: std::process::id(),
                stage: Stage::Ready,
                volumes: volumes.iter().map(|volume| device(dir, volume)).collect(),
            };
            folder.begin(of).expect("begun")
        };
        // Of a cohort: they have one owner.
        let (one, two) = (begin(&["log", "data"]), begin(&["other"]));
        drop(folder);
        let socket = |owned: &Owned, at: usize| owned.drill.volumes[at].socket.clone();
        let (log, data, other) = (socket(&one, 0), socket(&one, 1), socket(&two, 0));
        let options = farside_nbd::SocketOptions { path: data.clone(), group: None };
        let listener = farside_nbd::Listener::bind(&options).expect("it listens");
        let (server, handle) = Server::new(listener, "data", "", Limits::default(), Waker::new().expect("a waker"));
        let info =
            QueueInfo { size: 4096, block_min: 512, block_preferred: 4096, readonly: false, zeroes_fast: false, trims: false };
        let server = std::thread::spawn(move || server.run(MemQueue::new(info)).map(drop));
        let has_clients = |count| {
            while farside_nbd::clients_of(&data).expect("known") != count {
                std::thread::yield_now();
            }
        };
        for socket in [&log, &data, &other] {
            refuse_end_of(socket).expect("nobody uses it");
        }
        let client = std::os::unix::net::UnixStream::connect(&data).expect("connected");
        has_clients(1);
        for (socket, owned) in [(&log, &one), (&data, &one), (&other, &two)] {
            let refused = refuse_end_of(socket).expect_err("it is in use").message;
            let ends = format!("farside drill stop {} --dir {}", owned.drill.id, place.display());
            assert!(refused.contains("data of drill") && refused.ends_with(&ends), "{refused}");
        }
        refuse_end_of(&place.join("elsewhere.nbd")).expect("it is of no drill");
        drop(client);
        has_clients(0);
        refuse_end_of(&log).expect("nobody uses it any more");
        handle.stop();
        server.join().expect("no panic").expect("it ends");
    }
}
