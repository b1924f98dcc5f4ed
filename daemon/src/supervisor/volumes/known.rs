//! From when on the gateway is told of a group: it is kept there for ever once it was heard of, and the volume that somebody adds first may be
//! refused. What is configured is told of, served or not: a host that is silent is taken for one that is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use farside_region::Name;
use farside_transport::{Dial, DialLater};
use tokio::sync::watch;

use crate::locked;

/// Whether the gateway may be told of groups.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<BTreeMap<Name, watch::Sender<bool>>>);

impl Known {
    /// From now on.
    pub(super) fn tell_of(&self, group: &Name) {
        locked(&self.0).entry(group.clone()).or_default().send_replace(true);
    }

    /// Dials as `dial` does, and not before that.
    pub(super) fn dial(&self, group: &Name, dial: impl Dial + 'static) -> Arc<dyn Dial> {
        let may = locked(&self.0).entry(group.clone()).or_default().subscribe();
        Arc::new(DialLater::new(dial, may))
    }
}
