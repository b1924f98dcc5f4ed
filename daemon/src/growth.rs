//! A backing that has become larger under a volume that is served.
//!
//! | The tap is | The volume becomes larger |
//! |---|---|
//! | `ublk` of a kernel that can change the size of a device (6.16), or `nbd-device` | at once: it is closed and opened again by this process ([`crate::supervisor`]), and its host waits meanwhile, as at a restart |
//! | `ublk` of an older kernel | at a reload, if nobody uses the device: it is made anew |
//! | `nbd` | at the next start: its clients hear a size once |
//!
//! Invariant: nobody can write beyond the old end before the larger intent map is durable, with the old last region and all that
//! is new set (T12). There is one way to that, the opening of a volume, whoever begins it: so here is only seen that there is
//! something to be opened larger. What cannot be opened larger for a reason that shows beforehand is not closed: its host would
//! wait for it.
//!
//! It deliberately does nothing about a backing that became smaller: what is beyond its end fails there, and the next opening
//! refuses it. Under a device that the tap was put under, growth is a bypass ([`crate::watch`]).

use anyhow::Context as _;
use farside_control::{Code, Reason, Severity};
use farside_region::VolumeId;
use tracing::info;

use crate::group::{Control, Member};
use crate::loss::Loss;
use crate::tap::Way;
use crate::watch::Noticed;

/// A volume that is smaller than its backing, or its device smaller than the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Bytes of the backing.
    pub(crate) to: u64,
    pub(crate) way: Way,
    /// Why it has not grown yet.
    waits: Option<String>,
}

impl Control {
    /// Looks at the sizes of all backings.
    pub(crate) fn look_for_growth(&mut self) {
        for member in self.members.values_mut().filter(|member| !member.is_leaving()) {
            if member.look_for_growth() {
                let _ = self.around.noticed.send(Noticed::Grown(member.served.config.name.clone())); // a daemon that stops hears nothing
            }
        }
    }

    /// # Errors
    /// When nothing has grown, or it must stay as it is for now.
    pub(crate) fn growth(&mut self, id: VolumeId) -> anyhow::Result<Growth> {
        let member = self.members.get_mut(&id).context("the volume is not served")?;
        if member.look_for_growth() {
            let _ = self.around.noticed.send(Noticed::Grown(member.served.config.name.clone())); // as above
        }
        member.may_be_reopened()?;
        member.growth.clone().context("its backing has not grown")
    }

    /// Why it has not grown yet.
    ///
    /// # Errors
    /// When nothing is to grow.
    pub(crate) fn growth_waits(&mut self, id: VolumeId, why: String) -> anyhow::Result<()> {
        let growth = self.members.get_mut(&id).and_then(|member| member.growth.as_mut());
        growth.context("nothing is to grow")?.waits = Some(why);
        Ok(())
    }
}

impl Member {
    /// Whether there is something to be opened larger that was not seen before.
    fn look_for_growth(&mut self) -> bool {
        let served = &self.served;
        let seen = served.could_grow_to().map(|to| Growth { to, way: served.tap.way_to_grow(), waits: None });
        let is_new = match (&seen, &mut self.growth) {
            (Some(seen), Some(known)) if seen.to == known.to => return false,
            (Some(Growth { to, way, .. }), _) => {
                let bytes = served.volume.geometry().volume_bytes();
                info!(volume = %served.config.name, bytes, to, "its backing has grown");
                *way == Way::Takeover && self.growth.is_none() // who saw it before is at it
            }
            (None, _) => false,
        };
        self.growth = seen;
        is_new
    }

    /// Whether it can be closed and opened again without a loss of what a person asked for.
    ///
    /// # Errors
    /// Why not now.
    fn may_be_reopened(&self) -> anyhow::Result<()> {
        // † Who uses its tap would go on over another disk.
        anyhow::ensure!(self.served.is_at_its_name(), "{} is another disk now", self.served.config.backing.display());
        anyhow::ensure!(self.heats.is_empty(), "a compare that was asked for has not begun");
        anyhow::ensure!(self.loss == Loss::Kept, "that tracking was lost is not recorded here yet");
        // † The next opening finds the device in use, and tries no first write on it.
        anyhow::ensure!(self.served.blind.is_none(), "its tap does not see what is written");
        anyhow::ensure!(!self.has_lost_its_tap(), "its device was ended by somebody else, and is made again first");
        anyhow::ensure!(self.broken.is_none() && !self.served.is_stopping(), "it is not served as it should be");
        Ok(())
    }

    /// What a person must know of it.
    pub(crate) fn growth_reason(&self) -> Option<Reason> {
        let Growth { to, way, waits } = self.growth.as_ref()?;
        let todo = match (way, waits) {
            (Way::Takeover, None) => return None, // in a moment
            (Way::Takeover, Some(why)) => format!("it is made larger by itself as soon as that can be (not yet: {why})"),
            (Way::NewDevice, None) => {
                "this kernel changes no size of a ublk device (6.16 and newer do): when nobody uses the device, \
                                       `farside reload` makes it anew"
                    .to_owned()
            }
            (Way::NewDevice, Some(why)) => format!("`farside reload` makes its device anew when nobody uses it (not yet: {why})"),
            (Way::NextStart, _) => "its clients see it when farsided is restarted and they connect again".to_owned(),
        };
        let what = format!("its backing has grown to {to} bytes, and its tap shows the old size");
        Some(Reason::new(Severity::Warning, Code::BackingGrown, what, todo))
    }
}
