//! The mistakes that the gate must notice, each with what notices it.

use std::fmt;

use crate::plan::{Fault, Plan};

/// Who notices a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtBy {
    /// The simulator, within so many seeds.
    Seeds(u64),
    /// A loom model of the named crate, by this test.
    Loom(&'static str),
}

impl fmt::Display for CaughtBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds(n) => write!(f, "the simulator, within {n} seeds"),
            Self::Loom(test) => write!(f, "loom: {test}"),
        }
    }
}

/// A plausible shortcut that loses data.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// What [`farside_region::mutation::on`] is asked for.
    pub name: &'static str,
    /// What notices it.
    pub caught_by: CaughtBy,
    /// A plan in which it matters often, where chance alone is too rare.
    pub directed: Option<fn(&mut Plan)>,
}

const fn seeds(name: &'static str, within: u64, directed: Option<fn(&mut Plan)>) -> Mutation {
    Mutation { name, caught_by: CaughtBy::Seeds(within), directed }
}

fn only(plan: &mut Plan, faults: &[Fault]) {
    plan.faults = faults.iter().map(|f| (*f, 1.0)).collect();
    plan.fault_rate = 0.01;
    plan.steady = true;
}

/// One volume, one page, writes everywhere, so that regions of the page cool and heat one by one.
fn one_page(plan: &mut Plan, faults: &[Fault]) {
    only(plan, faults);
    plan.regions = vec![8];
    plan.page_regions = 8;
    plan.spread = true;
    plan.tight = false;
}

/// Attaches come and go while records take long: layers of one term are staged when the next is claimed.
fn slow_store(plan: &mut Plan) {
    only(plan, &[Fault::Crash, Fault::Reset]);
    plan.regions = vec![3, 3, 3];
    plan.fault_rate = 0.008;
    plan.boot_rate = 0.5;
    plan.store_speed = Some(0.1);
}

/// Connections end often while many layers are sent and none is published: epochs pile up at every stage.
fn resets(plan: &mut Plan, faults: &[Fault]) {
    only(plan, faults);
    plan.regions = vec![3, 4];
    plan.fault_rate = 0.015;
    plan.store_speed = Some(0.05);
    plan.receiver_rate = 0.1;
    plan.tight = false;
}

/// All of them: the list.
pub const MUTATIONS: &[Mutation] = &[
    seeds("mark before intent", 200, Some(|p| only(p, &[Fault::Crash, Fault::Power]))),
    Mutation {
        name: "read-then-announce",
        caught_by: CaughtBy::Loom("read_then_announce_loses_marks (farside-shim)"),
        directed: None,
    },
    seeds("cool a region that somebody still mentions", 200, None),
    seeds("clear without flush", 400, Some(|p| only(p, &[Fault::Power]))),
    seeds("clear before the header", 400, Some(|p| only(p, &[Fault::Crash, Fault::Power]))),
    seeds("clear in the cooling window", 400, None),
    seeds("next page write before the sync", 400, Some(|p| one_page(p, &[Fault::Reset]))),
    seeds("trust a torn page", 400, Some(|p| one_page(p, &[Fault::Power]))),
    seeds("pass without draining", 400, None),
    seeds("save without claim", 400, None),
    seeds("publish one volume at a time", 200, None),
    seeds("a layer retried at a later slot", 400, None),
    seeds("staged data carried across a term", 400, Some(slow_store)),
    seeds("accept a void record", 400, Some(slow_store)),
    seeds("a reset cut re-sent as a point", 400, Some(|p| only(p, &[Fault::Reset]))),
    seeds("retained points as the only roots", 400, None),
    seeds("ghost write on the map", 400, Some(|p| only(p, &[Fault::Crash]))),
    // Of the fine print (DESIGN §10), those that show in whole runs; `replication` has directed schedules for the rarest.
    seeds("T17 no header, layers there: not refused", 400, Some(|p| only(p, &[Fault::Reinstall]))),
    seeds("T6 compare beside an unpublished layer", 800, Some(|p| resets(p, &[Fault::Reset, Fault::Resync]))),
    seeds("T7 position not checked at reconnect", 800, Some(|p| only(p, &[Fault::StoreRollback, Fault::Reset]))),
    seeds("skip the position rule", 400, Some(|p| only(p, &[Fault::Rollback, Fault::Stop]))),
    seeds("hole: no point after the last pass", 400, None),
    seeds("kind said per member", 400, None),
    seeds("hole: member claims anew alone", 1000, Some(|p| resets(p, &[Fault::Reset, Fault::ReceiverPower]))),
];
