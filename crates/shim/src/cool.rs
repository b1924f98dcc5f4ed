//! Cooling: taking back the intent bits of regions that nobody mentions.

use farside_region::RegionIndex;

use crate::{Volume, sync::Arc};

/// What the cooler needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoolStep {
    /// Nothing under way.
    Idle,
    /// Writers are in their marks; poll again.
    Wait,
    /// A backing flush: [`Cooler::flush_begin`], flush, [`Cooler::flush_end`]. (Or poll again later: a host's flush that
    /// covers it is used.)
    Flush,
    /// A durable header whose position covers the records that published these regions; then [`Cooler::header_durable`].
    Header,
}

/// The cooler of one volume; owned by the control thread.
#[derive(Debug)]
pub struct Cooler {}

impl Cooler {
    /// The cooler of a volume; make one only.
    pub fn new(_volume: Arc<Volume>) -> Self {
        todo!()
    }

    /// Begins a batch: those of the candidates that are hot, not flush-failed, mentioned neither by the volume nor by the
    /// caller, and not still waiting at the owner. `zero`: the published content of the whole region is zero and this attach
    /// read or zeroed it (T8). Returns how many are cooling.
    ///
    /// # Panics
    /// While a batch is under way.
    pub fn begin(&mut self, _candidates: &mut dyn Iterator<Item = (RegionIndex, bool)>) -> usize {
        todo!()
    }

    /// Goes on. `mentioned`: whether replication still mentions a region: layers not known published, compare set, unreadable
    /// runs, frozen sets. It must speak of *now*.
    pub fn poll(&mut self, _mentioned: &mut dyn FnMut(RegionIndex) -> bool) -> CoolStep {
        todo!()
    }

    /// The flush is about to be issued.
    pub fn flush_begin(&mut self) {
        todo!()
    }

    /// The flush ended. After a failure the batch is given up.
    pub fn flush_end(&mut self, _ok: bool) {
        todo!()
    }

    /// The header is durable: the batch goes to the owner.
    pub fn header_durable(&mut self) {
        todo!()
    }
}
