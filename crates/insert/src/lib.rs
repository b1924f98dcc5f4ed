//! Puts a tap under a device of the device mapper that is in use, and takes it out again: `data` keeps its name, its number and
//! its mounts, and its table points to the tap instead of to its disks.
//!
//! ```text
//!            Bare ──create──► Twinned ──tap over the twin──► Twinned ──load──► Loaded ──resume──► Inserted
//!             ▲                 │  ▲                                             │                   │
//!             └──── remove ─────┘  └──────────────── clear; resume ──────────────┘                   │
//!                                  └──────────────────── load the twin's table; resume ◄─────────────┘
//! ```
//!
//! The *twin* (`data-farside-backing`) is a second device over the very extents of `data`; the daemon claims it and serves the
//! tap from it. Nothing of this is on a disk: tables live in the kernel until the next boot, so what a crash leaves is read
//! from the kernel ([`State`]), and the twin's table is how the device was before. The kernel changes tables in one call
//! (suspend, swap, resume): there is no moment between at which a killed process leaves I/O waiting, except where the new table
//! was refused, and that is what [`Insertion::prepare`] mends first.
//!
//! Invariants: only linear tables are touched, the rest is refused by name; everything that can be checked is checked before
//! the device is; a table that changed since it was looked at is not replaced. It decides nothing about trust: what was written
//! while a device was not inserted has passed no tap, and that is the daemon's matter.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farside_blockio::Buffer;
use farside_blockio::dm::{Control, DevNumber, DmError, Slot, Status, SuspendOptions, Target};
use nix::errno::Errno;
use thiserror::Error;

pub mod stack;

const TWIN_SUFFIX: &str = "-farside-backing";
const TWIN_UUID: &str = "FARSIDE-BACKING-";
const LVM_UUID: &str = "LVM-";
const LINEAR: &str = "linear";
/// How long a device may still be open in somebody's hand (udev looks at what is new) when it is removed.
const REMOVE_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// What is under way on the device ends first, on the old table. Its file system is not frozen: nobody takes a snapshot, and both tables
/// lead to the same sectors. † A freeze stops writers for as long as the page cache takes to be written, and writes it to a dead tap.
const REPLACE: SuspendOptions = SuspendOptions { skip_lockfs: true, noflush: false };

/// Why a tap is not put under a device, or not taken out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InsertError {
    /// The device mapper.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// Not one of the device mapper's.
    #[error(
        "{} is no device of the device mapper (LVM, dm-linear), so no tap can be put under it while it is in use: \
         unmount it, give it with --backing, and use /dev/farside/NAME from then on", .0.display()
    )]
    NotMapped(PathBuf),
    /// Something that cannot be mapped through.
    #[error("{name} has a {kind} target: a tap can be put under linear ones only, not under {}", meaning(kind))]
    Target {
        /// The device.
        name: String,
        /// Of the target.
        kind: String,
    },
    /// It cannot work there.
    #[error("{name} {why}")]
    Unfit {
        /// The device.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else suspended it.
    #[error("{0} is suspended, and not by Farside: dmsetup resume {0}, or wait for whoever did")]
    Halted(String),
    /// Its table is not what it was.
    #[error(
        "{name} {why}: lvextend, lvchange --refresh, pvmove or dmsetup did that; unmount it, or say `dmsetup table {name}` and ask"
    )]
    Changed {
        /// The device.
        name: String,
        /// How it looks.
        why: &'static str,
    },
    /// The tap is not what the device needs.
    #[error("{tap} cannot take the place of the disks of {name}: {why}")]
    Tap {
        /// The device.
        name: String,
        /// The tap.
        tap: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The kernel refused the new table; the old one is in use again.
    #[error("{name} is as it was: the kernel refused its new table (journalctl -k says why)")]
    Refused {
        /// The device.
        name: String,
        /// What it said.
        #[source]
        source: DmError,
    },
    /// The kernel refused the new table, and does not let the old one go on.
    #[error("{name} is SUSPENDED, whatever uses it waits: dmsetup clear {name}; dmsetup resume {name}")]
    Stuck {
        /// The device.
        name: String,
        /// What it said.
        #[source]
        source: DmError,
    },
    /// A question to the system failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn meaning(kind: &str) -> &'static str {
    match kind {
        "striped" => "stripes",
        "thin" | "thin-pool" => "thin volumes",
        "cache" | "writecache" => "cached volumes",
        "snapshot" | "snapshot-origin" | "snapshot-merge" => "volumes with snapshots",
        "mirror" | "raid" => "RAID volumes",
        "crypt" => "encrypted ones (put it under what the encryption lies on)",
        _ => "this kind",
    }
}

/// Where a device stands, as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On its own disks, and nothing of ours is there.
    Bare,
    /// On its own disks; its twin has the same extents.
    Twinned,
    /// On its own disks; a twin has other extents, or none yet: something changed the device since, or a crash came early.
    StaleTwin,
    /// On a tap; its twin has its extents.
    Inserted {
        /// The tap.
        over: DevNumber,
    },
}

/// What the kernel shows.
#[derive(Clone, Debug)]
struct Shown {
    device: Status,
    table: Vec<Target>,
    twin: Option<(Status, Vec<Target>)>,
}

impl Shown {
    fn look(control: &Control, number: DevNumber) -> Result<Self, InsertError> {
        let gone = || InsertError::Changed { name: format!("device {number}"), why: "is gone" };
        let device = control.by_number(number)?.ok_or_else(gone)?;
        let table = control.table(&device.name, Slot::Live)?;
        let twin = match twin_status(control, &device)? {
            Some(status) => {
                let extents = control.table(&status.name, Slot::Live)?;
                Some((status, extents))
            }
            None => None,
        };
        Ok(Self { device, table, twin })
    }

    /// Judges it.
    fn state(&self) -> Result<State, InsertError> {
        let changed = |why| InsertError::Changed { name: self.device.name.clone(), why };
        let over = match &self.table[..] {
            [target] if target.start == 0 => whole(target),
            _ => None,
        };
        match (&self.twin, over) {
            (None, _) => Ok(State::Bare),
            (Some((_, extents)), _) if *extents == self.table => Ok(State::Twinned),
            (Some((twin, extents)), Some(over)) if !extents.is_empty() && size_of(extents) == size_of(&self.table) => {
                // One extent from the start of a device: a tap, unless it is a disk.
                if over == twin.number || extents.iter().any(|t| on(t) == Some(over)) {
                    return Err(changed("rests on its own twin, or on a disk of its twin"));
                }
                if stack::rests_on(over, twin.number) || !stack::has_slaves(over) {
                    return Ok(State::Inserted { over });
                }
                Ok(State::StaleTwin)
            }
            (Some(_), _) => Ok(State::StaleTwin),
        }
    }
}

/// A table, for people.
fn words_of(table: &[Target]) -> String {
    let piece = |target: &Target| match on(target) {
        Some(number) => match stack::text(number, "dm/name") {
            Some(name) => format!("/dev/mapper/{name}"),
            None => format!("device {number}"),
        },
        None => format!("a {} target", target.kind),
    };
    let mut pieces: Vec<String> = table.iter().map(piece).collect();
    pieces.dedup();
    match &pieces[..] {
        [] => "nothing".to_owned(),
        [first, second, _, ..] => format!("{first}, {second} and others"),
        few => few.join(" and "),
    }
}

/// The device of a linear target.
fn on(target: &Target) -> Option<DevNumber> {
    (target.kind == LINEAR).then(|| target.parameters.split(' ').next().and_then(DevNumber::parse)).flatten()
}

/// The device that a linear target takes from its start.
fn whole(target: &Target) -> Option<DevNumber> {
    target.parameters.ends_with(" 0").then(|| on(target)).flatten()
}

fn size_of(table: &[Target]) -> u64 {
    table.iter().map(|target| target.sectors).sum()
}

fn twin_of(name: &str) -> String {
    format!("{name}{TWIN_SUFFIX}")
}

/// What a twin says whose it is: † the device's own uuid, which stays when it is renamed, where it has one. By its name another
/// device may be called the next time.
fn twin_uuid(device: &Status) -> String {
    let key = if device.uuid.is_empty() { &device.name } else { &device.uuid };
    format!("{TWIN_UUID}{key}")
}

/// The twin of a device, however both are called by now.
fn twin_status(control: &Control, device: &Status) -> Result<Option<Status>, InsertError> {
    Ok(twins(control)?.into_iter().find(|twin| twin.uuid == twin_uuid(device)))
}

/// A device whose twin is there.
#[derive(Debug)]
pub struct Insertion {
    control: Control,
    /// Its node by its number, which stays when it is renamed.
    device: PathBuf,
    /// As it was called at first.
    name: String,
    number: DevNumber,
    twin: Status,
    /// The device's own extents, which are the twin's.
    extents: Vec<Target>,
    ours: Ours,
}

/// Whether it is our doing that a device does not rest on its tap. † Who begins one of both ends that one only: a volume that is resumed has its
/// device leave no more, and one that is held for a failback is held on.
#[derive(Debug, Default)]
struct Ours {
    leaves: AtomicBool,
    is_held: AtomicBool,
}

impl Ours {
    fn is_ours(&self) -> bool {
        self.leaves.load(Ordering::Relaxed) || self.is_held.load(Ordering::Relaxed)
    }
}

impl Insertion {
    /// Finds the device, mends what a crash left, and makes its twin if there is none. The device's users notice nothing.
    ///
    /// `is_idle`: nobody is changing the device at this moment. Otherwise what looks half done is left alone: whoever does it
    /// may wait in the kernel for the tap that the caller is about to serve, and so would we.
    ///
    /// # Errors
    /// [`InsertError`]: why no tap can be put under it. The device is as it was.
    pub fn prepare(device: &Path, is_idle: bool) -> Result<Self, InsertError> {
        let control = Control::open()?;
        let (name, number) = find(&control, device)?;
        let mut shown = Shown::look(&control, number)?;
        if is_idle {
            finish(&control, &shown)?;
        }
        let mut state = shown.state()?;
        if let (State::StaleTwin, Some((twin, _))) = (state, &shown.twin) {
            remove(&control, &twin.name)?;
            (shown.twin, state) = (None, State::Bare);
        }
        let (twin, extents) = match (state, shown.twin) {
            (State::Bare, _) => (make_twin(&control, &shown.device, &shown.table)?, shown.table),
            (_, Some(twin)) => twin,
            (state, None) => unreachable!("{state:?} has a twin"),
        };
        Ok(Self { control, device: shown.device.node(), name, number, twin, extents, ours: Ours::default() })
    }

    /// What lets the device's users write past a tap that was put under it, in words for people; `None`: nothing does, or we are
    /// taking it out ourselves. Asks the kernel, which does no I/O for it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn bypass(&self, tap: &Path) -> Result<Option<String>, InsertError> {
        if self.ours.is_ours() {
            return Ok(None);
        }
        let over = number_of(tap)?;
        let Some(Status { name, .. }) = self.control.by_number(self.number)? else {
            let name = &self.name;
            return Ok(Some(format!("{name} is gone: it was deactivated, and may be used without a tap when it comes back")));
        };
        let table = self.control.table(&name, Slot::Live)?;
        if !matches!(&table[..], [only] if only.start == 0 && whole(only) == Some(over)) {
            return Ok(Some(format!(
                "{name} rests on {} instead of on its tap: lvextend, lvchange --refresh, pvmove or dmsetup did that",
                words_of(&table)
            )));
        }
        let twin = self.control.by_number(self.twin.number)?.map_or_else(|| self.twin.name.clone(), |twin| twin.name);
        if self.control.table(&twin, Slot::Live)? != self.extents {
            return Ok(Some(format!("{twin}, below the tap of {name}, was given another table")));
        }
        Ok(None)
    }

    /// From now on, until [`Insertion::stays`], the device may be put back on its disks: we do that.
    pub fn leaves(&self) {
        self.ours.leaves.store(true, Ordering::Relaxed);
    }

    /// It is not taken out after all.
    pub fn stays(&self) {
        self.ours.leaves.store(false, Ordering::Relaxed);
    }

    /// Whether the device is held by us, so that nobody uses it: it may be on its own disks then, whoever says that it stays.
    pub fn hold(&self, is_held: bool) {
        self.ours.is_held.store(is_held, Ordering::Relaxed);
    }

    /// Its node, which stays when the device is renamed.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The device's name for the device mapper.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The twin's node: what the tap is served from, claimed exclusively.
    pub fn twin(&self) -> PathBuf {
        self.twin.node()
    }

    /// Where it stands.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn state(&self) -> Result<State, InsertError> {
        Shown::look(&self.control, self.number)?.state()
    }

    /// What tells the device from every other one, also after a boot, if there is something.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn uuid(&self) -> Result<Option<String>, InsertError> {
        Ok(self.control.by_number(self.number)?.map(|status| status.uuid).filter(|uuid| !uuid.is_empty()))
    }

    /// Puts the tap under the device; false: it rested on a tap already, be it one that is gone. What is under way on the device ends first; new I/O waits that
    /// long.
    ///
    /// It waits for the tap: not to be called by the process that serves it.
    ///
    /// # Errors
    /// [`InsertError`]; except for [`InsertError::Stuck`] the device is on its own disks.
    pub fn insert(&self, tap: &Path) -> Result<bool, InsertError> {
        let shown = Shown::look(&self.control, self.number)?;
        let over = number_of(tap)?;
        let was_bare = match shown.state()? {
            State::Inserted { over: now } if now == over => return Ok(false),
            // Whatever was written to that one has failed: nothing waits in it, and nothing got past it.
            State::Inserted { over: now } if stack::is_dead(now) => false,
            State::Inserted { .. } => {
                return Err(InsertError::Changed { name: self.name.clone(), why: "rests on another tap" });
            }
            State::Twinned => true,
            State::Bare | State::StaleTwin => {
                return Err(InsertError::Changed { name: self.name.clone(), why: "was changed meanwhile" });
            }
        };
        if shown.device.suspended {
            return Err(InsertError::Halted(self.name.clone()));
        }
        let sectors = size_of(&shown.table);
        self.check_tap(tap, over, sectors)?;
        let table = [Target { start: 0, sectors, kind: LINEAR.to_owned(), parameters: format!("{over} 0") }];
        self.swap(&shown.device.name, &shown.table, &table)?;
        tracing::info!(device = %self.name, tap = %tap.display(), "the tap is under the device");
        Ok(was_bare)
    }

    /// Puts the device back on its own disks. The tap must be served: what is under way goes through it. It waits for that: not
    /// to be called by the process that serves it.
    ///
    /// # Errors
    /// [`InsertError`]; except for [`InsertError::Stuck`] the device is as it was.
    pub fn take_out(&self) -> Result<(), InsertError> {
        let shown = Shown::look(&self.control, self.number)?;
        match (shown.state()?, &shown.twin) {
            (State::Inserted { .. }, Some((_, extents))) => self.swap(&shown.device.name, &shown.table, extents)?,
            _ => return Ok(()),
        }
        tracing::info!(device = %self.name, "the device is on its own disks again");
        Ok(())
    }

    /// Removes the twin, which nobody may have open any more.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn remove_twin(&self) -> Result<(), InsertError> {
        let shown = Shown::look(&self.control, self.number)?;
        if matches!(shown.state()?, State::Inserted { .. }) {
            return Err(InsertError::Changed { name: shown.device.name, why: "still rests on a tap" });
        }
        // † By its twin the next start knows that it was us, and lets the device go on.
        if shown.device.suspended {
            return Err(InsertError::Halted(shown.device.name));
        }
        remove(&self.control, &self.twin.name)
    }

    /// Removes the twin of a device that was taken off its tap by somebody else, whatever that rests on now. The tap is gone. One
    /// that still rests on `tap` keeps its twin, which alone knows its extents.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn forsake_twin(&self, tap: Option<DevNumber>) -> Result<(), InsertError> {
        match (self.state(), tap) {
            (Ok(State::Inserted { over }), Some(tap)) if over == tap => Ok(()),
            _ => remove(&self.control, &self.twin.name),
        }
    }

    /// All that the kernel would only say with the device suspended, and what it would not say at all.
    fn check_tap(&self, tap: &Path, over: DevNumber, sectors: u64) -> Result<(), InsertError> {
        let wrong = |why: String| InsertError::Tap { name: self.name.clone(), tap: tap.to_owned(), why };
        let compare = |what: &str, file: &str, unit: &str| {
            let (old, new) = (stack::number(self.twin.number, file), stack::number(over, file));
            if old.is_some() && old == new {
                return Ok(());
            }
            let shown = |n: Option<u64>| n.map_or("an unknown number of".to_owned(), |n| n.to_string());
            Err(wrong(format!("its {what} has {} {unit}, and must have {}", shown(new), shown(old))))
        };
        compare("device", "size", "sectors")?;
        compare("block", "queue/logical_block_size", "bytes")?;
        if stack::number(over, "size") != Some(sectors) {
            return Err(wrong(format!("its device does not have the {sectors} sectors of the table")));
        }
        if stack::number(over, "ro") != Some(0) {
            return Err(wrong("it refuses writes".to_owned()));
        }
        // A tap that is dead would have everybody wait; one that is being removed passes all other checks.
        let read = |device: &Path| -> io::Result<Vec<u8>> {
            use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
            let mut block = Buffer::alone(4096)?;
            let file = std::fs::File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(device)?;
            file.read_exact_at(&mut block, 0)?;
            Ok(block.to_vec())
        };
        read(tap).map(drop).map_err(|error| wrong(format!("it cannot be read ({error})")))
    }

    /// Puts another table in use, or leaves the one that there is.
    ///
    /// † Only `before` is replaced: LVM may have begun and ended a command since it was looked at, and what was true of the old
    /// extents would shrink a volume that has grown, or have it written where it does not lie any more.
    fn swap(&self, name: &str, before: &[Target], table: &[Target]) -> Result<(), InsertError> {
        // † Whoever loaded a table is about to resume it: LVM, in the middle of a command.
        if self.control.status(name)?.is_some_and(|status| status.inactive) && !is_our_leftover(&self.control, name)? {
            return Err(being_changed(name));
        }
        let is_in_use = |table: &[Target]| Ok(self.control.table(name, Slot::Live)? == table);
        exchange(name, |step| match step {
            Step::Look => is_in_use(before),
            Step::LookAgain => is_in_use(table),
            Step::Load => self.control.load(name, table, false).map(|()| true),
            Step::Resume => self.control.resume(name, REPLACE).map(|()| true),
            Step::Clear => self.control.clear(name).map(|()| true),
        })
    }
}

/// What the kernel does with the tables of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Whether the table to be replaced is in use.
    Look,
    /// A new table is there, and not in use.
    Load,
    /// It is in use; the old one goes on where none was loaded.
    Resume,
    /// The one that is not in use is dropped.
    Clear,
    /// Whether the new table is in use.
    LookAgain,
}

/// Puts a new table in use. Where the kernel refuses it the old one is in use again, unless the kernel refuses that, too. Where
/// somebody else changed it meanwhile, his stays.
fn exchange(name: &str, mut make: impl FnMut(Step) -> Result<bool, DmError>) -> Result<(), InsertError> {
    let refused = |source| InsertError::Refused { name: name.to_owned(), source };
    let changed = || Err(InsertError::Changed { name: name.to_owned(), why: "was changed meanwhile" });
    if !make(Step::Look).map_err(refused)? {
        return changed();
    }
    if let Err(error) = make(Step::Load) {
        let _ = make(Step::Clear); // there may be nothing to clear
        return Err(refused(error));
    }
    // Loading takes memory, and so time; what is resumed next is in use whatever it replaces.
    match make(Step::Look) {
        Ok(true) => {}
        looked => {
            let _ = make(Step::Clear);
            return looked.map_err(refused).and_then(|_| changed());
        }
    }
    let Err(error) = make(Step::Resume) else {
        // Whoever loaded a table after us had his own put in use.
        return if make(Step::LookAgain).map_err(refused)? { Ok(()) } else { changed() };
    };
    // A table that does not fit is refused when the device is suspended already, with its old table in use.
    match make(Step::Clear).and_then(|_| make(Step::Resume)) {
        Ok(_) => Err(refused(error)),
        Err(source) => Err(InsertError::Stuck { name: name.to_owned(), source }),
    }
}

fn being_changed(name: &str) -> InsertError {
    let why =
        "is being changed: a table is loaded and not in use yet (`dmsetup table --inactive` shows it, `dmsetup clear` drops it)";
    InsertError::Unfit { name: name.to_owned(), why: why.to_owned() }
}

/// Whether the table that waits for a resume is one of ours: on a tap, or what the twin has. † What LVM loads is its own: it
/// resumes that in a moment, and its metadata says already that the device is so (`lvextend`, `pvmove`).
fn is_our_leftover(control: &Control, name: &str) -> Result<bool, InsertError> {
    let Some(device) = control.status(name)? else { return Ok(false) };
    let loaded = control.table(name, Slot::Inactive)?;
    if let [only] = &loaded[..]
        && only.start == 0
        && whole(only).is_some_and(stack::is_own_tap)
    {
        return Ok(true);
    }
    let is_lvms = device.uuid.starts_with(LVM_UUID);
    let extents = match twin_status(control, &device)? {
        Some(twin) => control.table(&twin.name, Slot::Live)?,
        None => return Ok(false),
    };
    Ok(!is_lvms && loaded == extents)
}

/// Ends what a crash left half way: a table that was loaded and not put in use, a device that was left suspended. Its old table
/// is in use then: see [`Insertion::swap`].
fn finish(control: &Control, shown: &Shown) -> Result<(), InsertError> {
    let name = &shown.device.name;
    if shown.device.inactive {
        if !is_our_leftover(control, name)? {
            return match shown.device.suspended {
                true => Err(InsertError::Halted(name.clone())),
                false => Ok(()), // whoever loaded it resumes it
            };
        }
        tracing::warn!(device = %name, "a table that was loaded and not put in use is dropped");
        control.clear(name)?;
    }
    if shown.device.suspended {
        // Ours only where it has a twin.
        if shown.twin.is_none() {
            return Err(InsertError::Halted(name.clone()));
        }
        tracing::warn!(device = %name, "it was left suspended: it goes on with the table that it has");
        control.resume(name, SuspendOptions::default())?;
    }
    Ok(())
}

/// What the kernel shows of a device that was given by its path.
fn look_at(device: &Path) -> Result<(Control, Shown), InsertError> {
    let control = Control::open()?;
    let (_, number) = find(&control, device)?;
    let shown = Shown::look(&control, number)?;
    Ok((control, shown))
}

/// Ends what a crash left half way, as [`Insertion::prepare`] does, and no more.
///
/// # Errors
/// [`InsertError`].
pub fn mend(device: &Path) -> Result<(), InsertError> {
    let (control, shown) = look_at(device)?;
    finish(&control, &shown)
}

/// Whether a tap could be put under a device at this moment, or is there: nobody is changing it, and it can be mapped through.
///
/// # Errors
/// [`InsertError`]: why not.
pub fn is_ready(device: &Path) -> Result<(), InsertError> {
    let (_, shown) = look_at(device)?;
    let name = &shown.device.name;
    if matches!(shown.state(), Ok(State::Inserted { .. })) {
        return Ok(());
    }
    if shown.device.suspended {
        return Err(InsertError::Halted(name.clone()));
    }
    if shown.device.inactive {
        return Err(being_changed(name));
    }
    check_device(&shown.device, &shown.table)
}

/// Whether a table of ours was loaded for a device and never put in use.
///
/// # Errors
/// [`InsertError`].
pub fn is_half_done(device: &Path) -> Result<bool, InsertError> {
    let (control, shown) = look_at(device)?;
    Ok(shown.device.inactive && is_our_leftover(&control, &shown.device.name)?)
}

/// Whether a device is suspended.
///
/// # Errors
/// [`InsertError`].
pub fn is_halted(device: &Path) -> Result<bool, InsertError> {
    Ok(look_at(device)?.1.device.suspended)
}

/// Removes the twin of a device that is on its own disks, if it has one: those have one way left then.
///
/// # Errors
/// [`InsertError`], also where the device rests on a tap.
pub fn remove_twin_of(device: &Path) -> Result<(), InsertError> {
    let (control, shown) = look_at(device)?;
    if matches!(shown.state()?, State::Inserted { .. }) {
        return Err(InsertError::Changed { name: shown.device.name, why: "still rests on a tap" });
    }
    finish(&control, &shown)?;
    shown.twin.map_or(Ok(()), |(twin, _)| remove(&control, &twin.name))
}

/// The device that has a uuid, by its node; `None`: there is none.
///
/// # Errors
/// [`InsertError`].
pub fn by_uuid(uuid: &str) -> Result<Option<PathBuf>, InsertError> {
    let control = Control::open()?;
    Ok(all(&control)?.into_iter().find(|device| device.uuid == uuid).map(|device| device.node()))
}

/// A device whose twin is there, and that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its name for the device mapper.
    pub name: String,
    /// What tells it from every other one; may be empty.
    pub uuid: String,
    /// Which it is, if it is there.
    pub number: Option<DevNumber>,
    /// Where it stands, if that makes sense.
    pub state: Option<State>,
    /// Whether it was left suspended, so that whatever uses it waits.
    pub is_halted: bool,
}

/// Devices whose twin is there and that are none of `kept`. Without a device mapper there are none.
///
/// # Errors
/// [`InsertError`].
pub fn strays(kept: &[PathBuf]) -> Result<Vec<Stray>, InsertError> {
    let control = match Control::open() {
        Err(DmError::NoControl(_)) => return Ok(Vec::new()),
        control => control?,
    };
    Ok(strays_of(&control, kept)?.into_iter().map(|(_, _, stray)| stray).collect())
}

/// Each with its twin, and whether the device may rest on a tap, which nobody but that twin can serve.
fn strays_of(control: &Control, kept: &[PathBuf]) -> Result<Vec<(Status, bool, Stray)>, InsertError> {
    let kept: Vec<DevNumber> = kept.iter().filter_map(|device| find(control, device).ok()).map(|(_, number)| number).collect();
    let devices = all(control)?;
    let twins = twins(control)?;
    let mut strays = Vec::new();
    for twin in &twins {
        let device = devices.iter().find(|device| twin_uuid(device) == twin.uuid);
        if device.is_some_and(|device| kept.contains(&device.number)) {
            continue;
        }
        let state = device.and_then(|device| Shown::look(control, device.number).and_then(|shown| shown.state()).ok());
        let is_needed = match device {
            Some(_) => matches!(state, Some(State::Inserted { .. }) | None),
            // † Renamed, where nothing but its name told whose it was.
            None => rests_on_a_tap_without_a_twin(control, &devices, &twins)?,
        };
        let was = twin.name.strip_suffix(TWIN_SUFFIX).unwrap_or(&twin.name).to_owned();
        let (name, uuid) = device.map_or((was, String::new()), |device| (device.name.clone(), device.uuid.clone()));
        let number = device.map(|device| device.number);
        let is_halted = device.is_some_and(|device| device.suspended);
        strays.push((twin.clone(), is_needed, Stray { name, uuid, number, state, is_halted }));
    }
    Ok(strays)
}

fn rests_on_a_tap_without_a_twin(control: &Control, devices: &[Status], twins: &[Status]) -> Result<bool, InsertError> {
    for device in devices.iter().filter(|device| twins.iter().all(|twin| twin.uuid != twin_uuid(device))) {
        if let [only] = &control.table(&device.name, Slot::Live)?[..]
            && only.start == 0
            && whole(only).is_some_and(stack::is_own_tap)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where a device stands, for who only wants to know.
///
/// # Errors
/// [`InsertError`].
pub fn state_of(device: &Path) -> Result<State, InsertError> {
    look_at(device)?.1.state()
}

/// Removes the twins that nobody uses and whose device rests on no tap: what a crash left. `kept` are devices whose twin stays.
/// One that was left suspended goes on first: † by its twin alone it is known that we did that. Gives the names of what is gone.
/// Without a device mapper there are none.
///
/// `is_idle`: whether nobody changes that device's table at this moment. † Who was killed while he put a tap under it is in the kernel still, which may
/// finish that: nothing shows it meanwhile, and without the twin the device would rest on a tap that nobody can serve.
///
/// # Errors
/// [`InsertError`].
pub fn sweep(kept: &[PathBuf], is_idle: impl Fn(DevNumber) -> bool) -> Result<Vec<String>, InsertError> {
    let control = match Control::open() {
        Err(DmError::NoControl(_)) => return Ok(Vec::new()),
        control => control?,
    };
    let mut gone = Vec::new();
    for (twin, is_needed, stray) in strays_of(&control, kept)? {
        if twin.open_count > 0 || is_needed || stray.number.is_some_and(|number| !is_idle(number)) {
            continue;
        }
        if stray.is_halted
            && let Err(error) = control.status(&stray.name).map_err(InsertError::from).and_then(|device| match device {
                Some(device) => finish(&control, &Shown::look(&control, device.number)?),
                None => Ok(()),
            })
        {
            tracing::error!(device = %stray.name, "it is suspended, and whatever uses it waits: {error}");
            continue;
        }
        // † What was under way when it was looked at may have come to its end since.
        let is_on_its_disks = |number| {
            let shown = Shown::look(&control, number)?;
            Ok::<_, InsertError>(!shown.device.suspended && !matches!(shown.state()?, State::Inserted { .. }))
        };
        if stray.number.is_none_or(|number| is_on_its_disks(number).unwrap_or(false)) && control.remove(&twin.name).is_ok() {
            gone.push(twin.name);
        }
    }
    Ok(gone)
}

fn all(control: &Control) -> Result<Vec<Status>, InsertError> {
    let mut devices = Vec::new();
    for (name, _) in control.list()? {
        devices.extend(control.status(&name)?); // it may be gone by now
    }
    Ok(devices)
}

/// The twins that we made.
fn twins(control: &Control) -> Result<Vec<Status>, InsertError> {
    let mut devices = all(control)?;
    devices.retain(|device| device.name.ends_with(TWIN_SUFFIX) && device.uuid.starts_with(TWIN_UUID));
    Ok(devices)
}

fn number_of(device: &Path) -> Result<DevNumber, InsertError> {
    let io = |source| InsertError::Io { what: "look at", path: device.to_owned(), source };
    let metadata = std::fs::metadata(device).map_err(io)?;
    if !metadata.file_type().is_block_device() {
        return Err(InsertError::NotMapped(device.to_owned()));
    }
    Ok(DevNumber::of(metadata.rdev()))
}

fn find(control: &Control, device: &Path) -> Result<(String, DevNumber), InsertError> {
    let number = number_of(device)?;
    let not_mapped = || InsertError::NotMapped(device.to_owned());
    if !stack::is_mapped(number) {
        return Err(not_mapped());
    }
    let status = control.by_number(number)?.ok_or_else(not_mapped)?;
    if status.name.ends_with(TWIN_SUFFIX) && status.uuid.starts_with(TWIN_UUID) {
        let why = "is the twin that Farside made of another device: give that one".to_owned();
        return Err(InsertError::Unfit { name: status.name, why });
    }
    Ok((status.name, number))
}

/// Refuses what cannot be mapped through.
fn check_device(device: &Status, table: &[Target]) -> Result<(), InsertError> {
    let unfit = |why: &str| InsertError::Unfit { name: device.name.clone(), why: why.to_owned() };
    if table.is_empty() {
        return Err(unfit("has no table: activate it first"));
    }
    if let Some(target) = table.iter().find(|target| target.kind != LINEAR) {
        return Err(InsertError::Target { name: device.name.clone(), kind: target.kind.clone() });
    }
    if table.iter().filter_map(on).any(is_pvmove) {
        return Err(unfit("is being moved by pvmove: a tap can be put under it when that has ended, or was aborted"));
    }
    if device.readonly {
        return Err(unfit("is read-only: nothing changes there"));
    }
    if stack::text(device.number, "queue/zoned").is_some_and(|zoned| zoned != "none") {
        return Err(unfit("is zoned, which a tap is not"));
    }
    if table.iter().filter_map(on).any(stack::is_own_tap) {
        return Err(unfit("rests on a tap of Farside, and its twin is gone: dmsetup table shows on which"));
    }
    Ok(())
}

/// LVM moves extents through a device of its own, which goes when it has ended, and may be held by nobody then.
fn is_pvmove(device: DevNumber) -> bool {
    let name = stack::text(device, "dm/name").unwrap_or_default();
    let is_lvm = stack::text(device, "dm/uuid").is_some_and(|uuid| uuid.starts_with(LVM_UUID));
    is_lvm && name.rsplit('-').next().is_some_and(|part| part.starts_with("pvmove"))
}

fn make_twin(control: &Control, device: &Status, table: &[Target]) -> Result<Status, InsertError> {
    check_device(device, table)?;
    let name = twin_of(&device.name);
    if let Some(other) = control.status(&name)? {
        // † For one, of a device that had this name before: that one may rest on the tap that would be taken over.
        let why = format!("cannot have a twin: there is a {name} that belongs to something else (uuid {})", other.uuid);
        return Err(InsertError::Unfit { name: device.name.clone(), why });
    }
    let made = control.create(&name, &twin_uuid(device))?;
    let filled = control.load(&name, table, false).and_then(|()| control.resume_unseen(&name, SuspendOptions::default()));
    if let Err(error) = filled {
        let _ = control.remove(&name); // it was ours alone
        return Err(error.into());
    }
    Ok(made)
}

fn remove(control: &Control, name: &str) -> Result<(), InsertError> {
    let began = Instant::now();
    loop {
        match control.remove(name) {
            Err(error) if error.errno() == Some(Errno::EBUSY) && began.elapsed() < REMOVE_MAX => std::thread::sleep(POLL),
            Err(error) if error.errno() == Some(Errno::ENXIO) => return Ok(()),
            removed => return Ok(removed?),
        }
    }
}

#[cfg(test)]
mod tests;
