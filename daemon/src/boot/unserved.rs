//! After the start of the daemon, once in a boot: what becomes of the disks of volumes that it does not serve. The unit
//! `farside-boot.service` runs it (`farsided --unserved`).
//!
//! By each volume's policy the disk stays hidden (`refuse`), or its host uses it as if there were no Farside (`bare`).
//! Invariant: before a disk is shown, the mark that has everything compared is durable, and nobody serves it: its door is held
//! from before the mark until after the note that keeps the daemon from it. What cannot be marked stays hidden.
//!
//! It needs neither a valid configuration nor a daemon: only the list that the last good start left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_blockio::{DeviceError, FileDevice, OpenOptions};
use farside_control::source::IfAbsent;
use farside_insert::stack;

use super::{Backing, List, Look, Places, have_udev_look};
use crate::channel::channel;
use crate::config::{ConfigError, RUN_DIR};
use crate::state_dir::{Mark, volumes_path};
use crate::{node, tap};

/// How long a daemon that is being started again and again, or is still at it, may take to serve a volume.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(250);
/// How long one disk may take beyond that, before the others are decided without it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// In the runtime directory: it was decided in this boot. `farside-boot.service` heeds it. † systemd starts what sysinit.target
/// wants again whenever it starts anything that needs that target, hours after the boot.
const DECIDED: &str = "boot-decided";

/// What was found of a volume.
enum Found {
    /// Its host has its tap, or has its disk already.
    Settled,
    /// Its disk is not there.
    Missing,
    /// Nobody serves it.
    Free(FileDevice),
    /// Somebody has its disk: a daemon that is about to serve it.
    Taken(DeviceError),
}

/// A disk that may be shown: marked, and with no tap.
struct Ready(Option<FileDevice>);

/// Decides for each volume, and says so. `config` is the daemon's configuration file; with `bare` every disk is shown, at once,
/// or none is.
///
/// # Errors
/// Names the volumes whose disks stay hidden, and why.
pub fn run(config: &Path, bare: bool) -> anyhow::Result<()> {
    let places = Arc::new(Places::of(config));
    let list = Arc::new(List::load(&places.list)?);
    let until = Instant::now() + if bare { Duration::ZERO } else { PATIENCE };
    if bare {
        mark_others(&list)?; // † before any disk is shown: all are, or none
    }
    let shown = decide(&list, &places, until, bare);
    if !bare && !list.volumes.is_empty() {
        let folder = Path::new(RUN_DIR);
        let noted = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(folder.join(DECIDED), ""));
        noted.unwrap_or_else(|error| eprintln!("<4>that this boot is decided cannot be noted: {error}"));
    }
    shown
}

/// Has the volumes compared of which no disk is hidden, too: whoever used them through a socket may write to their disks or files from now on.
fn mark_others(list: &List) -> anyhow::Result<()> {
    if list.state_dir.as_os_str().is_empty() {
        return Ok(()); // there is no list
    }
    let of_lists: Vec<PathBuf> = list.volumes.iter().map(|volume| volume.folder(&list.state_dir)).collect();
    let mut volumes = Vec::new();
    for group in folders_in(&volumes_path(&list.state_dir))? {
        volumes.extend(folders_in(&group)?);
    }
    for folder in volumes.iter().filter(|folder| !of_lists.contains(folder)) {
        Mark::TrackingLost
            .put(folder, true)
            .with_context(|| format!("that the volume of {} may be used without Farside cannot be kept", folder.display()))?;
    }
    Ok(())
}

/// None where it is not there.
fn folders_in(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()),
    };
    let mut paths = listed.with_context(|| format!("cannot list {}", path.display()))?;
    paths.retain(|path| path.is_dir());
    Ok(paths)
}

fn decide(list: &Arc<List>, places: &Arc<Places>, until: Instant, bare: bool) -> anyhow::Result<()> {
    // One that does not answer holds up no other.
    let (done, decided) = channel();
    for index in 0..list.volumes.len() {
        let (list, places, done) = (list.clone(), places.clone(), done.clone());
        std::thread::spawn(move || {
            let volume = &list.volumes[index];
            // With every disk or none, the others are waited for.
            let shown = match settle(volume, &list, &places, until, bare) {
                Ok(Some(ready)) if !bare => show(volume, &places, ready).map(|()| None),
                settled => settled,
            };
            let _ = done.send((index, shown)); // nobody waits any more
        });
    }
    drop(done);
    let (mut ready, mut hidden) = (Vec::new(), Vec::new());
    let mut missing: Vec<usize> = (0..list.volumes.len()).collect();
    while let Ok((index, shown)) = decided.recv_timeout((until + ANSWERS_WITHIN).saturating_duration_since(Instant::now())) {
        missing.retain(|other| *other != index);
        match shown {
            Ok(shown) => ready.extend(shown.map(|shown| (index, shown))),
            Err(error) => hidden.push((index, format!("{error:#}"))),
        }
    }
    hidden.extend(missing.into_iter().map(|index| (index, "its disk does not answer".to_owned())));
    if hidden.is_empty() {
        for (index, ready) in ready {
            if let Err(error) = show(&list.volumes[index], places, ready) {
                hidden.push((index, format!("{error:#}")));
            }
        }
    }
    hidden.sort();
    let hidden: Vec<String> =
        hidden.into_iter().map(|(index, why)| format!("volume {}: {why}", list.volumes[index].name)).collect();
    match hidden.is_empty() {
        true => Ok(()),
        false => bail!("{}", hidden.join("\n")),
    }
}

/// What becomes of a volume's disk; `None`: nothing is to be done.
fn settle(volume: &Backing, list: &List, places: &Places, until: Instant, bare: bool) -> anyhow::Result<Option<Ready>> {
    let disk = volume.path.display();
    let door = loop {
        let found = look(volume, places, bare)?;
        let late = Instant::now() >= until;
        match found {
            Found::Settled => return Ok(None),
            Found::Free(door) if late => break Some(door),
            // It may come back, and is its host's then.
            Found::Missing if late && bare => break None,
            Found::Missing if late => bail!("{disk} is not there"),
            Found::Taken(error) if late => {
                if !is_used(&volume.path) {
                    let who = if bare { "; is farsided still there, or a process of it that cannot end?" } else { "" };
                    bail!("it is not served yet: {error}{who}");
                }
                // † As a part of something that was put together before us, for one: LVM in the initramfs.
                mark(volume, list, bare).context("that its disk is used without Farside cannot be kept")?;
                if bare {
                    break None;
                }
                bail!("it is not served: {error}; everything will be compared");
            }
            // † Not while it sleeps: the daemon wants the door.
            found => {
                drop(found);
                std::thread::sleep(POLL);
            }
        }
    };
    if let Some(why) = crate::failback::why_unusable(&list.state_dir, volume.asked(&list.disks()))
        .with_context(|| format!("{disk} stays hidden, for whether it is being failed back cannot be told"))?
    {
        bail!("{disk} stays hidden, and nobody may use it: {why}");
    }
    if volume.if_absent == IfAbsent::Refuse && !bare {
        if volume.disk.is_none() {
            mark(volume, list, bare).context("that its disk, which cannot be hidden, may be used cannot be kept")?;
        }
        let seen = match volume.disk {
            Some(_) => "stays hidden, and what is to be mounted from it is not",
            None => "has nothing by which it could be hidden: leave it alone; it is compared in any case",
        };
        bail!(
            "farsided does not serve it (journalctl -b -u farsided says why), and its policy is `refuse`: {disk} {seen}. Mend that, then \
             `systemctl restart farsided`; or use the disk without Farside, which has it compared in full later: \
             `farsided --unserved --bare`"
        );
    }
    let dir = volume.folder(&list.state_dir);
    mark(volume, list, bare).with_context(|| {
        format!(
            "{disk} stays hidden: that it is used without Farside cannot be kept, and what changes would never be compared. Mend the \
             state directory; if it is lost for good, make {} anew and say `farsided --unserved --bare`: everything is compared then",
            list.state_dir.display()
        )
    })?;
    // A daemon that ended left it for the next one.
    let source = list.source.as_ref().context("its list was written by another version: start farsided once")?;
    tap::end(&dir, volume.id(source), &volume.name, Path::new(RUN_DIR)).with_context(|| {
        format!("{disk} stays hidden, for {} is used and nobody serves it", node::path(&volume.name).display())
    })?;
    Ok(Some(Ready(door)))
}

/// Has everything of a volume compared. † Its folder is never made here: where it is missing, the state directory is not mounted, or lost, unless a person
/// says that it is there: of a volume whose folder is gone nothing is trusted.
fn mark(volume: &Backing, list: &List, bare: bool) -> Result<(), ConfigError> {
    match list.state_dir.is_dir() && bare {
        true => super::mark(&list.state_dir, volume),
        false => Mark::TrackingLost.put(&volume.folder(&list.state_dir), true),
    }
}

/// Has a disk be its host's.
fn show(volume: &Backing, places: &Places, Ready(door): Ready) -> anyhow::Result<()> {
    let disk = volume.path.display();
    places.put_note(&volume.name).with_context(|| format!("{disk} stays hidden: that it is used cannot be noted"))?;
    let Some(door) = door else { return Ok(()) };
    drop(door);
    have_udev_look(&volume.path, Look::Found).with_context(|| format!("udev is not told that {disk} may be shown"))?;
    eprintln!(
        "<4>volume {}: farsided does not serve it; {disk} is used without Farside until the next boot, and compared then",
        volume.name
    );
    Ok(())
}

/// Whether something of its host's holds a disk as it is.
fn is_used(device: &Path) -> bool {
    let held = |number: DevNumber| {
        let mut holders = std::fs::read_dir(format!("/sys/dev/block/{number}/holders")).into_iter().flatten();
        holders.next().is_some()
    };
    is_mounted(device) || DevNumber::at(device).is_ok_and(held)
}

fn look(volume: &Backing, places: &Places, bare: bool) -> anyhow::Result<Found> {
    if places.is_bare(&volume.name) {
        return Ok(Found::Settled);
    }
    // Not for writing: udev looks anew at what was open for that, and a disk's partitions go and come with it.
    match FileDevice::open(&volume.path, OpenOptions { readonly: true, ..OpenOptions::at_once() }) {
        // Its tap may be there; nobody serves it.
        Ok(door) => Ok(Found::Free(door)),
        Err(DeviceError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(error @ DeviceError::Busy { .. }) => {
            let has_tap = node::path(&volume.name).exists() && !is_used(&volume.path);
            Ok(held(error, has_tap, bare))
        }
        Err(error) => Err(error).context("its disk cannot be looked at"),
    }
}

/// Of a disk that somebody holds. † Who wants it bare must not take that for done: a daemon that was killed holds it as well, as long as a request to any of
/// its disks does not end, and then it is used without a mark.
fn held(error: DeviceError, has_tap: bool, bare: bool) -> Found {
    if has_tap && !bare { Found::Settled } else { Found::Taken(error) }
}

/// Whether a device, or a part of it, is mounted as it is: what happens to it there passes no tap.
pub(crate) fn is_mounted(device: &Path) -> bool {
    DevNumber::at(device).is_ok_and(is_number_mounted)
}

/// Whether a device, or a part of it, is mounted as it is, or swap.
pub(super) fn is_in_use(number: DevNumber) -> bool {
    is_number_mounted(number) || is_swapped_to(number)
}

fn is_number_mounted(number: DevNumber) -> bool {
    mounted_on(number).any(|mounted| !stack::rests_on_own_tap(mounted))
}

/// What is mounted from a device, directly or through others.
fn mounted_on(number: DevNumber) -> impl Iterator<Item = DevNumber> {
    // A service does not see all of them.
    let host = std::fs::read_to_string("/proc/1/mountinfo");
    let mounts = host.or_else(|_| std::fs::read_to_string("/proc/self/mountinfo")).unwrap_or_default();
    stack::mounted(&mounts).into_iter().filter(move |mounted| stack::rests_on(*mounted, number))
}

/// Whether something is mounted from a device, or swaps to it, be it a tap of ours.
pub(crate) fn holds_a_mount(number: DevNumber) -> bool {
    mounted_on(number).next().is_some() || is_swapped_to(number)
}

fn is_swapped_to(number: DevNumber) -> bool {
    stack::swaps().into_iter().any(|(_, swap)| stack::rests_on(swap, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, disk: &Path, if_absent: IfAbsent) -> Backing {
        let serial = super::super::Disk { key: "ID_SERIAL".into(), value: "x".into(), partition: None };
        let (name, group) = (name.parse().expect("a name"), "default".parse().expect("a name"));
        Backing { name, group, path: disk.to_owned(), if_absent, source: None, disk: Some(serial) }
    }

    /// A volume whose disk is a file, which nobody has.
    fn place(dir: &Path, if_absent: IfAbsent) -> (Places, List) {
        let disk = dir.join("disk");
        std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
        let volumes = vec![volume("no-such-volume-anywhere", &disk, if_absent)];
        let places = Places { list: dir.join("boot.json"), rules: dir.join("x.rules"), notes: dir.join("bare") };
        (places, List { state_dir: dir.join("state"), source: Some("host".parse().expect("a name")), volumes })
    }

    fn decide(places: &Places, list: &List, bare: bool) -> anyhow::Result<()> {
        let ready = settle(&list.volumes[0], list, places, Instant::now(), bare)?;
        ready.map_or(Ok(()), |ready| show(&list.volumes[0], places, ready))
    }

    #[test]
    fn what_cannot_be_marked_stays_hidden() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, list) = place(dir.path(), IfAbsent::Bare);
        for bare in [false, true] {
            let error = format!("{:#}", decide(&places, &list, bare).expect_err("there is no state directory"));
            assert!(error.contains("stays hidden") && error.contains("state directory"), "{error}");
            assert!(!places.is_bare(&list.volumes[0].name) && !dir.path().join("state").exists());
        }
        // It was lost, and a person says so; at a boot nobody does.
        std::fs::create_dir(dir.path().join("state")).expect("made");
        decide(&places, &list, false).expect_err("the volume's folder is not there");
        assert!(!places.is_bare(&list.volumes[0].name));
        decide(&places, &list, true).expect_err("udev is not told of a file");
        assert!(places.is_bare(&list.volumes[0].name));
    }

    /// `apt remove` counted the disks of a killed daemon that could not end as settled: they were used bare, and nothing was compared.
    #[test]
    fn a_disk_that_is_held_is_settled_only_where_its_tap_may_serve_on() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let disk = dir.path().join("disk");
        std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
        let _held = FileDevice::open(&disk, OpenOptions::at_once()).expect("free");
        let busy = || FileDevice::open(&disk, OpenOptions::at_once()).expect_err("taken");
        assert!(matches!(held(busy(), true, false), Found::Settled));
        assert!(matches!(held(busy(), true, true), Found::Taken(_)) && matches!(held(busy(), false, false), Found::Taken(_)));
    }

    /// `apt remove` said of all volumes that they will be compared, and marked those alone whose taps are devices.
    #[test]
    fn volumes_of_which_no_disk_is_hidden_are_compared_too() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (_, list) = place(dir.path(), IfAbsent::Bare);
        mark_others(&List::default()).expect("no daemon ever started here");
        mark_others(&list).expect("there is no state directory, and so no volume");
        let (name, group) = ("socket".parse().expect("a name"), "default".parse().expect("a name"));
        let folders = [list.volumes[0].folder(&list.state_dir), crate::state_dir::volume_path(&list.state_dir, &group, &name)];
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).expect("made"));
        mark_others(&list).expect("marked");
        let marked = folders.map(|folder| Mark::TrackingLost.is_set(&folder).expect("readable"));
        assert_eq!(marked, [false, true], "whose disk is hidden is marked by who shows it");
    }

    /// It was said that everything is compared, and nothing was marked.
    #[test]
    fn what_cannot_be_marked_is_not_called_compared() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, mut list) = place(dir.path(), IfAbsent::Refuse);
        list.volumes[0].disk = None;
        let error = format!("{:#}", decide(&places, &list, false).expect_err("there is no state directory"));
        assert!(error.contains("cannot be kept") && !error.contains("compared in any case"), "{error}");
    }

    #[test]
    fn every_disk_is_shown_or_none() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, mut list) = place(dir.path(), IfAbsent::Bare);
        list.volumes.push(volume("no-such-disk-anywhere", &dir.path().join("missing"), IfAbsent::Bare));
        let folders: Vec<_> = list.volumes.iter().map(|volume| volume.folder(&list.state_dir)).collect();
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).expect("made"));
        let names: Vec<_> = list.volumes.iter().map(|volume| volume.name.clone()).collect();
        let (list, places) = (Arc::new(list), Arc::new(places));
        let all = |bare| super::decide(&list, &places, Instant::now(), bare);
        // One is held by who knows whom.
        let door = FileDevice::open(&list.volumes[0].path, OpenOptions::at_once()).expect("free");
        let error = all(true).expect_err("one is taken").to_string();
        assert!(error.contains("not served yet") && names.iter().all(|name| !places.is_bare(name)), "{error}");
        drop(door);
        // A disk that is not there keeps no other from its host, nor itself when it comes back.
        let error = all(true).expect_err("udev is not told of a file").to_string();
        assert!(!error.contains("no-such-disk-anywhere") && names.iter().all(|name| places.is_bare(name)), "{error}");
        assert!(folders.iter().all(|folder| Mark::TrackingLost.is_set(folder).expect("asked")));
    }

    #[test]
    fn a_disk_that_cannot_be_hidden_is_marked_where_it_is_to_be_left_alone() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, mut list) = place(dir.path(), IfAbsent::Refuse);
        let folder = list.volumes[0].folder(&list.state_dir);
        std::fs::create_dir_all(&folder).expect("made");
        decide(&places, &list, false).expect_err("refused");
        assert!(!Mark::TrackingLost.is_set(&folder).expect("asked"));
        list.volumes[0].disk = None;
        let error = decide(&places, &list, false).expect_err("refused").to_string();
        assert!(error.contains("leave it alone") && Mark::TrackingLost.is_set(&folder).expect("asked"), "{error}");
    }

    #[test]
    fn the_policy_decides_and_a_person_above_it() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, list) = place(dir.path(), IfAbsent::Refuse);
        let folder = dir.path().join("state/volumes/default/no-such-volume-anywhere");
        std::fs::create_dir_all(&folder).expect("made");
        let name = &list.volumes[0].name;
        let error = decide(&places, &list, false).expect_err("refused").to_string();
        assert!(error.contains("`refuse`") && error.contains("--unserved --bare"), "{error}");
        assert!(!places.is_bare(name) && !Mark::TrackingLost.is_set(&folder).expect("asked"));
        // Somebody has it: it is not shown either.
        let door = FileDevice::open(&list.volumes[0].path, OpenOptions::at_once()).expect("free");
        decide(&places, &list, true).expect_err("taken");
        assert!(!places.is_bare(name));
        drop(door);
        // A file is no device that udev could look at; it was noted before.
        decide(&places, &list, true).expect_err("udev is not told of a file");
        assert!(places.is_bare(name) && Mark::TrackingLost.is_set(&folder).expect("asked"));
        decide(&places, &list, false).expect("it is settled");
    }
}
