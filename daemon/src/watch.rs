//! What gets past a tap while it is served: noticed, made durable, compared.
//!
//! | Looked at | Notices |
//! |---|---|
//! | the table of the device that the tap is under | `lvextend`, `lvchange --refresh`, `pvmove`, `dmsetup reload` |
//! | what the kernel counts as written on the backing, against what we gave to it ([`farside_blockio::WriteWatch`]) | a mount of the backing, `dd` |
//! | whether the backing is there still ([`farside_blockio::Presence`]) | a disk that was pulled, or lost its path |
//! | what the kernel has counted there before the first opening of this boot, or since the disk was plugged in again ([`OpenedNote`]) | an emergency shell |
//! | what the kernel counts as written on the tap, against what the shim carried out ([`crate::canary`]) | a tap that does not track |
//!
//! Invariants: no heartbeat and no point speaks for a moment at which something may have been written past a tap. So the taps
//! are looked at between the time that a heartbeat carries and the saying of it, and after a cut was read to its end and before
//! it may be a point (one of which nothing is read: at its switch): what was well then was well at the switch, too. What is seen
//! gives up every cut that is being read, whoever saw it, and nothing is sound before it was heeded. From the first sign on everything counts as changed
//! ([`Mark::TrackingLost`]), and no bit is called hot for that before the tap is in its place again: what is written meanwhile
//! would be missed by the comparison.
//!
//! It puts nothing back by itself: [`crate::supervisor`] does, as soon as the device can carry a tap.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use farside_blockio::{Presence, Written};
use farside_region::{BootId, EpochId, Name, VolumeId};
use farside_replication::source::DemoteCause;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::backing::{Unread, read_kept};
use crate::canary::TapWatch;
use crate::config::{ConfigError, write_atomically};
use crate::group::{Control, Member};
use crate::state_dir::Mark;

/// Foreign writes are heeded once in so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a group sees and its supervisor does something about, with the volume's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// Its device does not rest on its tap any more.
    Bypassed(Name),
    /// Its backing has become larger.
    Grown(Name),
    /// Its tap has ended, and nobody here did that.
    TapLost(Name),
}

/// A device that does not rest on its tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bypass {
    /// What was seen.
    pub(crate) why: String,
    /// Why the tap is not put back yet.
    pub(crate) waits: Option<String>,
    /// Its disk is gone: until it is opened anew nothing puts that right. Nobody holds what comes back.
    pub(crate) is_gone: bool,
}

impl Control {
    /// Looks whether everything goes through the taps, and heeds what it sees. False: something did not, or one cannot say.
    pub(crate) fn look_at_taps(&mut self) -> bool {
        let sound = self.see_taps();
        let ids: Vec<VolumeId> = self.members.keys().copied().collect();
        ids.into_iter().for_each(|id| self.heed(id));
        sound
    }

    /// As [`Control::look_at_taps`], for who may not step the state machine now: what is seen is heeded at the next look, and
    /// nothing is sound until then.
    pub(crate) fn see_taps(&mut self) -> bool {
        self.members.values_mut().for_each(Member::look);
        // Who is bypassed already is in no cut any more.
        self.members.values().all(|member| member.sight.is_clear())
    }

    fn heed(&mut self, id: VolumeId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match member.sight.table.take() {
            Some(Table::Moved(why)) => {
                member.bypass = Some(Bypass { why: why.clone(), waits: None, is_gone: false });
                self.distrust(id, why);
                self.insert_again(id);
            }
            Some(Table::Gone) => {
                let why = format!("its disk {} is gone", member.served.device.path().display());
                member.bypass = Some(Bypass { why: why.clone(), waits: None, is_gone: true });
                self.distrust(id, why);
            }
            Some(Table::Back) => {
                info!(volume = %member.served.config.name, "its device rests on its tap again");
                member.bypass = None;
                self.pump_heating(id);
            }
            None => {}
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        // Who goes on writing is not compared with all the time; until it is his turn nothing is sound.
        if member.sight.heeded.is_none_or(|at| at.elapsed() >= PATIENCE)
            && let Some(why) = member.sight.written.take()
        {
            member.sight.heeded = Some(Instant::now());
            self.distrust(id, why);
        }
    }

    /// Something may have been written past the tap: no cut that is being read is a point, and everything counts as changed.
    fn distrust(&mut self, id: VolumeId, why: String) {
        let being_read: Vec<EpochId> = self.cuts.iter().filter(|(_, left)| !left.is_empty()).map(|(epoch, _)| *epoch).collect();
        being_read.into_iter().for_each(|epoch| self.demoted(epoch, DemoteCause::Member));
        let Some(member) = self.members.get_mut(&id) else { return };
        error!(volume = %member.served.config.name, "past its tap: {why}; everything will be compared");
        member.served.volume.doubt_zeroes();
        // Where this fails the loss is kept elsewhere, without its reason.
        if let Err(error) = Mark::TrackingLost.put_because(&member.served.dir, &why) {
            warn!(volume = %member.served.config.name, %error, "a loss of tracking cannot be recorded with its reason");
        }
        member.doubt = Some(why);
        self.tracking_lost(id);
    }

    /// Has the tap put under its device again, unless a person wants it as it is.
    pub(crate) fn insert_again(&self, id: VolumeId) {
        let can_be = |member: &&Member| member.bypass.as_ref().is_some_and(|bypass| !bypass.is_gone);
        let Some(member) = self.members.get(&id).filter(can_be) else { return };
        if Mark::Paused.is_set(&member.served.dir).unwrap_or(false) {
            return;
        }
        let _ = self.around.noticed.send(Noticed::Bypassed(member.served.config.name.clone())); // a daemon that stops hears nothing
    }

    /// Why the tap is not put under its device yet.
    ///
    /// # Errors
    /// When it is there.
    pub(crate) fn tap_waits(&mut self, id: VolumeId, why: String) -> anyhow::Result<()> {
        let bypass = self.members.get_mut(&id).and_then(|member| member.bypass.as_mut());
        bypass.context("nothing bypasses its tap")?.waits = Some(why);
        Ok(())
    }
}

/// What was seen at a member and not heeded yet.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    table: Option<Table>,
    written: Option<String>,
    /// When a foreign write was heeded last.
    heeded: Option<Instant>,
    /// Why one cannot look.
    pub(crate) unseen: Option<String>,
}

impl Sight {
    fn is_clear(&self) -> bool {
        self.table.is_none() && self.written.is_none() && self.unseen.is_none()
    }

    /// Whether something was seen past the tap that nothing has kept yet. It is not seen a second time.
    pub(crate) fn is_owed(&self) -> bool {
        self.written.is_some() || matches!(self.table, Some(Table::Moved(_)))
    }
}

#[derive(Debug)]
enum Table {
    Moved(String),
    Back,
    /// And all that was below it.
    Gone,
}

impl Member {
    fn look(&mut self) {
        if self.is_leaving() {
            return;
        }
        let mut written = self.look_at_writes();
        if let Some(sectors) = self.served.tap_writes.as_mut().and_then(TapWatch::look) {
            let kib = (sectors * 512).div_ceil(1024);
            written = Some(format!("its host has written {kib} KiB on its tap that were not tracked"));
        }
        if let Some(why) = written {
            // † Now, however long it is not compared: it is not seen a second time, and after a crash nothing else would say so.
            if self.sight.written.is_none()
                && let Err(error) = Mark::TrackingLost.put_because(&self.served.dir, &why)
            {
                warn!(volume = %self.served.config.name, %error, "a loss of tracking cannot be recorded yet");
            }
            self.served.volume.doubt_zeroes();
            self.sight.written = Some(why);
        }
        self.sight.unseen = None;
        // † One that is set aside costs the others no point: it stays gone.
        if self.served.presence.as_mut().is_some_and(Presence::is_gone) {
            if self.bypass.is_none() {
                self.sight.table = Some(Table::Gone);
            }
            return;
        }
        match (self.served.bypass(), &self.bypass) {
            (Ok(None), Some(_)) => self.sight.table = Some(Table::Back),
            (Ok(Some(why)), None) => self.sight.table = Some(Table::Moved(why)),
            (Ok(_), _) => {}
            (Err(error), _) => self.sight.unseen = Some(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    /// Whether everything went through its tap, as far as was seen.
    pub(crate) fn is_sound(&self) -> bool {
        self.sight.is_clear() && self.bypass.is_none()
    }

    /// What somebody else wrote on the backing.
    fn look_at_writes(&mut self) -> Option<String> {
        let sectors = self.served.writes.as_mut()?.look()?;
        let (backing, kib) = (self.served.device.path().display(), (sectors * 512).div_ceil(1024));
        Some(format!("something that is not its tap has written on {backing} ({kib} KiB)"))
    }
}

/// What the kernel had counted as written on the backing when a volume was left, in the volume's folder. It counts under the
/// `clean` header that was written after it, in the same boot, of the same device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    boot: String,
    disk: u64,
    sectors: u64,
}

impl Left {
    const FILE: &str = "left.json";

    /// `None`: the kernel counts nothing there, or cannot tell whose count it is.
    pub(crate) fn now(written: Option<Written>, boot: BootId) -> Option<Self> {
        let Written { sectors, disk } = written?;
        Some(Self { boot: boot.to_string(), disk: disk?, sectors })
    }

    /// Keeps it, durably, or that there is nothing to keep.
    ///
    /// # Errors
    /// When an older one may be there still.
    pub(crate) fn keep(left: Option<&Self>, dir: &Path) -> Result<(), ConfigError> {
        let path = dir.join(Self::FILE);
        match left {
            Some(left) => write_atomically(&path, &serde_json::to_string(left).expect("plain fields")),
            None => match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(ConfigError::Io { verb: "remove", path, source })
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether something was written since a volume was left, as far as that can be told.
    pub(crate) fn is_passed(dir: &Path, now: Option<&Self>) -> bool {
        let differs = |left: &Self, now: &Self| left.boot == now.boot && left.disk == now.disk && left.sectors != now.sectors;
        match read_kept::<Self>(&dir.join(Self::FILE)) {
            Ok(left) => left.zip(now).is_some_and(|(left, now)| differs(&left, now)),
            Err(Unread) => true,
        }
    }
}

/// Whether somebody wrote on a backing before it was opened here: an emergency shell, or who had a disk before it was plugged in again. The kernel
/// counts from zero when it finds a device, so what it has counted before the first opening was none of ours.
///
/// A note in the runtime directory, which outlives the process and not the boot, of the disk that was opened last. It is put when what was found is
/// durable, and before anything of ours is written.
#[derive(Debug)]
pub(crate) struct OpenedNote {
    path: PathBuf,
}

impl OpenedNote {
    pub(crate) fn of(runtime_dir: &Path, volume: VolumeId) -> Self {
        Self { path: runtime_dir.join(format!("opened-{volume}")) }
    }

    fn words(written: &Written) -> String {
        written.disk.map_or_else(|| "unknown".to_owned(), |disk| disk.to_string())
    }

    /// Whether anything was written on a device, of which this is known, and which nobody opened here since it was found.
    pub(crate) fn is_too_late(&self, now: Option<&Written>) -> bool {
        let is_ours = |now: &Written| std::fs::read_to_string(&self.path).is_ok_and(|disk| disk == Self::words(now));
        now.is_some_and(|now| now.sectors > 0 && !is_ours(now))
    }

    /// It is opened.
    pub(crate) fn put(&self, now: Option<&Written>) {
        let Some(now) = now else { return };
        if let Err(error) = std::fs::write(&self.path, Self::words(now)) {
            warn!(note = %self.path.display(), %error, "cannot be written: the next start may compare everything");
        }
    }

    /// Its volume leaves.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path); // one that stays is of a volume that is not there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_a_backing_was_opened_in_this_boot_is_noticed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let note = OpenedNote::of(dir.path(), VolumeId([7; 16]));
        let found = |sectors, disk| Some(Written { sectors, disk });
        assert!(!note.is_too_late(None), "a file, or nothing is counted");
        assert!(!note.is_too_late(found(0, Some(3)).as_ref()));
        assert!(note.is_too_late(found(8, Some(3)).as_ref()), "in an emergency shell, for one");
        note.put(found(8, Some(3)).as_ref());
        assert!(!note.is_too_late(found(80, Some(3)).as_ref()), "ours, or seen by other means");
        assert!(!note.is_too_late(found(0, Some(4)).as_ref()), "plugged in again");
        assert!(note.is_too_late(found(8, Some(4)).as_ref()), "and written before it was");
        assert!(!OpenedNote::of(dir.path(), VolumeId([7; 16])).is_too_late(found(80, Some(3)).as_ref()), "another process");
        note.remove();
        assert!(note.is_too_late(found(8, None).as_ref()));
        note.put(found(8, None).as_ref());
        assert!(!note.is_too_late(found(9, None).as_ref()), "a kernel that does not number disks");
    }

    #[test]
    fn what_was_left_is_held_against_the_same_device_of_the_same_boot_only() {
        let dir = tempfile::tempdir().expect("temp dir");
        let left = |boot: u8, disk, sectors| Left { boot: BootId([boot; 16]).to_string(), disk, sectors };
        assert!(!Left::is_passed(dir.path(), Some(&left(1, 7, 100))), "nothing is known");
        Left::keep(Some(&left(1, 7, 100)), dir.path()).expect("kept");
        assert!(!Left::is_passed(dir.path(), Some(&left(1, 7, 100))));
        assert!(Left::is_passed(dir.path(), Some(&left(1, 7, 101))));
        assert!(!Left::is_passed(dir.path(), Some(&left(2, 7, 101))), "it began at zero");
        assert!(!Left::is_passed(dir.path(), Some(&left(1, 8, 101))), "another device");
        assert!(!Left::is_passed(dir.path(), None));
        std::fs::write(dir.path().join(Left::FILE), "what a later version says").expect("written");
        assert!(Left::is_passed(dir.path(), Some(&left(1, 7, 100))), "nobody knows");
        Left::keep(None, dir.path()).expect("gone");
        Left::keep(None, dir.path()).expect("gone");
        assert!(!Left::is_passed(dir.path(), Some(&left(1, 7, 101))));
    }
}
