//! The receiver's side of one group.

mod api;

use farside_ledger::State;

use crate::source::Nanos;

pub use api::{Action, AppendOutcome, Config, DropWhy, Event, LandedLayer, Limits, Report, SessionId, Ticket};

/// Decides for one group at the receiver. The ledger's replayed state is the store's; each step sees the newest.
#[derive(Debug)]
pub struct Target {
    config: Config,
}

impl Target {
    /// Takes up a group with what its landing holds. Layers that no longer can be published are dropped (T4): call only
    /// after a replay that verified every slot up to the highest.
    pub fn new(config: Config, state: &State, landed: Vec<LandedLayer>, actions: &mut Vec<Action>) -> Self {
        let _ = (state, landed, actions);
        Self { config }
    }

    /// Takes one event; appends what is to be done.
    pub fn step(&mut self, now: Nanos, state: &State, event: Event, actions: &mut Vec<Action>) {
        let _ = (now, state, event, actions, &self.config);
    }

    /// Connections that greeted.
    pub fn sessions(&self) -> Vec<SessionId> {
        Vec::new()
    }

    /// Bytes of parts that were granted and have not landed; never grant the same disk twice.
    pub fn granted_bytes(&self) -> u64 {
        0
    }
}
