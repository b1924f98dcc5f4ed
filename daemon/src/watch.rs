//! What gets past a tap while it is served: noticed, made durable, compared.
//!
//! | Looked at | Notices |
//! |---|---|
//! | the table of the device that the tap is under | `lvextend`, `lvchange --refresh`, `pvmove`, `dmsetup reload` |
//! | what the kernel counts as written on the backing, against what we gave to it ([`WriteWatch`]) | a mount of the backing, `dd` |
//!
//! Invariants: no heartbeat and no point speaks for a moment at which something may have been written past a tap. So the taps
//! are looked at between the time that a heartbeat carries and the saying of it, and after a cut was read to its end and before
//! it may be a point: what was well then was well at the switch, too. From the first sign on everything counts as changed
//! ([`Mark::TrackingLost`]), and no bit is called hot for that before the tap is in its place again: what is written meanwhile
//! would be missed by the comparison.
//!
//! It puts nothing back by itself: [`crate::supervisor`] does, as soon as the device can carry a tap.

use std::path::Path;

use anyhow::Context as _;
use farside_blockio::{WriteWatch, Written};
use farside_region::{BootId, VolumeId};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::config::{ConfigError, write_atomically};
use crate::group::{Control, Member};
use crate::state_dir::Mark;

/// A device that does not rest on its tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bypass {
    /// What was seen.
    pub(crate) why: String,
    /// Why the tap is not put back yet.
    pub(crate) waits: Option<String>,
}

impl Control {
    /// Looks whether everything goes through the taps. False: something did not, or one cannot say.
    pub(crate) fn look_at_taps(&mut self) -> bool {
        let (mut moved, mut written, mut back, mut unseen) = (Vec::new(), Vec::new(), Vec::new(), false);
        for (id, member) in &mut self.members {
            written.extend(member.look_at_writes().map(|why| (*id, why)));
            if member.is_leaving() {
                continue;
            }
            match (member.served.bypass(), &member.bypass) {
                (Ok(None), Some(_)) => back.push(*id),
                (Ok(_), Some(_)) => {}
                (Ok(found), None) => moved.extend(found.map(|why| (*id, why))),
                (Err(error), _) => {
                    warn!(volume = %member.served.config.name, "its device cannot be looked at: {error:#}");
                    unseen = true;
                }
            }
        }
        let sound = written.is_empty() && back.is_empty() && !unseen;
        for id in back {
            let member = self.members.get_mut(&id).expect("just seen");
            info!(volume = %member.served.config.name, "its device rests on its tap again");
            member.bypass = None;
            self.pump_heating(id);
        }
        for (id, why) in written {
            self.distrust(id, why);
        }
        for (id, why) in moved {
            let member = self.members.get_mut(&id).expect("just seen");
            member.bypass = Some(Bypass { why: why.clone(), waits: None });
            self.distrust(id, why);
            self.insert_again(id);
        }
        sound && self.members.values().all(|member| member.bypass.is_none())
    }

    /// Something may have been written past the tap: everything counts as changed.
    fn distrust(&mut self, id: VolumeId, why: String) {
        let Some(member) = self.members.get_mut(&id) else { return };
        error!(volume = %member.served.config.name, "past its tap: {why}; everything will be compared");
        // Where this fails the loss is kept elsewhere, without its reason.
        if let Err(error) = Mark::TrackingLost.put_because(&member.served.dir, &why) {
            warn!(volume = %member.served.config.name, %error, "a loss of tracking cannot be recorded with its reason");
        }
        member.doubt = Some(why);
        self.tracking_lost(id);
    }

    /// Has the tap put under its device again, unless a person wants it as it is.
    pub(crate) fn insert_again(&self, id: VolumeId) {
        let Some(member) = self.members.get(&id).filter(|member| member.bypass.is_some()) else { return };
        if Mark::Paused.is_set(&member.served.dir).unwrap_or(false) {
            return;
        }
        let _ = self.around.bypassed.send(member.served.config.name.clone()); // a daemon that stops hears nothing
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

impl Member {
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
    pub(crate) fn now(watch: Option<&WriteWatch>, boot: BootId) -> Option<Self> {
        let Written { sectors, disk } = watch?.written()?;
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
        let left = std::fs::read(dir.join(Self::FILE)).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        matches!((left, now), (Some(left), Some(now)) if left.boot == now.boot && left.disk == now.disk && left.sectors != now.sectors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        Left::keep(None, dir.path()).expect("gone");
        Left::keep(None, dir.path()).expect("gone");
        assert!(!Left::is_passed(dir.path(), Some(&left(1, 7, 101))));
    }
}
