//! Tracking that was lost, and who keeps that (§4.5).
//!
//! A source that cannot write its intent map says so in its state directory; where that cannot be written either it asks the
//! receiver for a ledger record. Invariant: until every bit of the volume was set durably *after* that record, no header of the
//! volume has a position above it. So whoever attaches next finds it by the question of the position rule, however little of
//! this attach is left, and nothing ever has to be withdrawn: a header that moved on vouches for every bit.

use farside_region::{Slot, VolumeId};
use farside_wire::{LedgerSlice, LossRecorded, LossReport, SourceMessage};

use super::api::{Action, Nanos};
use super::volume::{Check, HeatFor, Loss, Standing, Volume, slot_of};
use super::{Link, Source};

impl Source {
    pub(super) fn keep_loss(&mut self, id: VolumeId) {
        if let Some(volume) = self.volumes.get_mut(&id)
            && volume.loss == Loss::Kept
            && volume.standing == Standing::TrackingLost
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
            volume.loss = Loss::Kept;
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
    /// The record of a loss that this attach has to heed before it claims.
    pub(super) fn unheeded_loss(&self, slice: &LedgerSlice) -> Option<Slot> {
        let lost = slice.current.as_ref()?.tracking_lost?;
        let news = lost.0 >= slot_of(self.published) && self.heeded.is_none_or(|heeded| heeded < lost);
        (self.held.is_none() && news).then_some(lost)
    }

    /// The connection, or the term, under which it was said is gone.
    pub(super) fn loss_unsaid(&mut self) {
        if matches!(self.loss, Loss::Said(_)) {
            self.loss = Loss::Unsaid;
        }
    }
}
