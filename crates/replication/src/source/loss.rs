//! Tracking that was lost, and who keeps that (§4.5).
//!
//! A source that cannot write its intent map says so in its state directory; where that cannot be written either it asks the
//! receiver for a ledger record. Invariant: until every bit of the volume was set durably *after* that record, no header of the
//! volume has a position above it. So whoever attaches next finds it by the question of the position rule, however little of
//! this attach is left, and nothing ever has to be withdrawn: a header that moved on vouches for every bit.
//!
//! It holds because no header is asked for while a volume [is in doubt](Volume::is_in_doubt), whatever its position: not after a
//! claim, whose first layer waits for that anyway, not at a stop, not for a refusal (which has a way of its own to outlive a
//! crash). What was asked for before has a position that lay in the ledger already. A store may be put back to before the record
//! without anything else that was seen being gone, so it is said anew on every connection.
//!
//! The position rule is judged *before* a record is heeded, and rightly: from the loss until every bit is set nothing is switched,
//! so what layers above the header touched is no less hot than without one, and a layer beside that is another's history.

use farside_region::{Slot, VolumeId, mutation};
use farside_wire::{LedgerSlice, LossRecorded, LossReport, SourceMessage};

use super::api::{Action, Nanos};
use super::volume::{Check, HeatFor, Loss, Standing, Volume, slot_of};
use super::{Link, Source};

impl Source {
    pub(super) fn keep_loss(&mut self, id: VolumeId) {
        if let Some(volume) = self.volumes.get_mut(&id)
            && volume.loss == Loss::Kept
            && volume.heat.0.contains(&HeatFor::TrackingLost)
        {
            volume.loss = Loss::Unsaid;
        }
    }

    /// Asks the receiver to keep what nobody here can, under a term that is known to be current.
    pub(super) fn say_losses(&mut self, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        let unsaid: Vec<VolumeId> = self
            .volumes
            .values()
            .filter(|v| v.loss == Loss::Unsaid && matches!(v.check, Check::Confirming | Check::Checked) && v.reclaim.is_none())
            .map(Volume::id)
            .collect();
        for volume in unsaid {
            let id = self.next_request();
            let known = self.volumes.get_mut(&volume).expect("just listed");
            let Some(term) = known.held else { continue };
            known.loss = Loss::Said(id);
            self.send(SourceMessage::TrackingLost(LossReport { id, volume, term }), out);
        }
    }

    pub(super) fn loss_recorded(&mut self, recorded: LossRecorded, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&recorded.volume) else { return };
        if volume.loss == Loss::Said(recorded.id) {
            volume.loss = Loss::OnRecord;
            out.push(Action::LossKept { volume: recorded.volume });
        }
    }

    /// An attach before this one lost track: every bit first, then the ledger is looked at again. Until then the header keeps
    /// its position, so a crash in between finds the record again (T3).
    pub(super) fn heed_loss(&mut self, now: Nanos, id: VolumeId, lost: Slot, out: &mut Vec<Action>) {
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        if volume.standing == Standing::Good {
            volume.standing = Standing::TrackingLost;
        }
        volume.check = Check::Waiting { until: now };
        self.heat(now, id, HeatFor::Recorded(lost), out);
    }
}

impl Volume {
    /// Tracking was lost, in this attach or in one before, and not every bit is set yet.
    pub(super) fn is_in_doubt(&self) -> bool {
        let in_doubt = |why: &HeatFor| matches!(why, HeatFor::TrackingLost | HeatFor::Recorded(_));
        self.heat.0.iter().any(in_doubt) && !mutation::on("a header moves above a loss on record")
    }

    /// The record of a loss that this attach has to heed before it claims.
    pub(super) fn unheeded_loss(&self, slice: &LedgerSlice) -> Option<Slot> {
        let lost = slice.current.as_ref()?.tracking_lost?;
        let news = lost.0 >= slot_of(self.published) && self.heeded.is_none_or(|heeded| heeded < lost);
        (self.held.is_none() && news).then_some(lost)
    }

    /// The connection, or the term, under which it was said is gone. It is said again also where it was answered: a record that is
    /// there still is as good as a new one.
    pub(super) fn loss_unsaid(&mut self) {
        match self.loss {
            Loss::Said(_) => self.loss = Loss::Unsaid,
            Loss::OnRecord if !mutation::on("a loss on record is said once") => self.loss = Loss::Unsaid,
            Loss::OnRecord | Loss::Kept | Loss::Unsaid => {}
        }
    }
}
