//! The mistakes that the gate must notice, each with what notices it.

use std::fmt;

use crate::plan::{AWAY, Fault, NASTY, OfCohort, Plan, Trial, Trouble};

/// Who notices a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtBy {
    /// The simulator, within so many seeds.
    Seeds(u64),
    /// The simulator, within so many seeds, which are too many for every day: with `FARSIDE_SIM_RARE=1`.
    Rarely(u64),
    /// A loom model of the write path, by this test.
    Loom(&'static str),
    /// A directed schedule in this crate, by this test: rare holes are written out, since chance meets them once in thousands
    /// of runs, and some rules stand behind others, so that a whole run would need several faults at once to show.
    Story(&'static str, &'static str),
}

impl fmt::Display for CaughtBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds(n) => write!(f, "the simulator, within {n} seeds"),
            Self::Rarely(n) => write!(f, "the simulator, within {n} seeds (FARSIDE_SIM_RARE=1)"),
            Self::Loom(test) => write!(f, "loom: {test} (farside-shim)"),
            Self::Story(of, test) => write!(f, "a directed schedule: {test} ({of})"),
        }
    }
}

/// Makes a plan one in which something matters often.
pub type Directed = fn(&mut Plan);

/// A plausible shortcut that loses data.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// What [`farside_region::mutation::on`] is asked for.
    pub name: &'static str,
    /// What notices it.
    pub caught_by: CaughtBy,
    /// A plan in which it matters often, where chance alone is too rare.
    pub directed: Option<Directed>,
}

const fn seeds(name: &'static str, within: u64, directed: Option<Directed>) -> Mutation {
    Mutation { name, caught_by: CaughtBy::Seeds(within), directed }
}

const fn story(name: &'static str, of: &'static str, test: &'static str) -> Mutation {
    Mutation { name, caught_by: CaughtBy::Story(of, test), directed: None }
}

fn only(plan: &mut Plan, faults: &[Fault]) {
    plan.faults = faults.iter().map(|f| (*f, 1.0)).collect();
    plan.fault_rate = 0.01;
    plan.steady = true;
    plan.map_anew = faults.contains(&Fault::MapError);
    plan.killed_unsynced = false;
    plan.smaller.clear();
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

/// Two compactors merge by chance, whatever else happens.
pub fn merging(plan: &mut Plan) {
    plan.compactors = 2;
}

/// The group is failed over, again and again, beside whatever else happens.
pub fn failovers(plan: &mut Plan) {
    let elsewhere = |fault: &Fault| NASTY.contains(fault) || AWAY.contains(fault) || *fault == Fault::Past;
    plan.faults.retain(|(fault, _)| !elsewhere(fault));
    plan.faults.extend([(Fault::Promote, 1.5), (Fault::Rejoin, 0.5)]);
    plan.fault_rate = plan.fault_rate.max(0.006);
    plan.boot_rate = plan.boot_rate.max(0.05);
    plan.receiver_rate = plan.receiver_rate.max(0.02);
    plan.trial = Trial::None;
    plan.full = false;
    plan.state_dir_fills = false;
    plan.smaller.clear();
    plan.steps = 4000;
}

/// Disks follow the volumes, whatever else happens, and are handed over when a point is promoted.
pub fn following(plan: &mut Plan) {
    failovers(plan);
    plan.follows = true;
    plan.keep = 3;
}

/// Machines with nothing but the store follow the volumes, beside failovers, merges, and retention that keeps next to nothing.
pub fn cascades(plan: &mut Plan) {
    failovers(plan);
    // Most often much is published.
    if plan.queues > 1 {
        only(plan, &[Fault::Crash, Fault::Reset, Fault::ReceiverCrash, Fault::ReceiverPower, Fault::StalledWriter, Fault::Pin]);
        plan.fault_rate = 0.004;
        plan.boot_rate = 0.5;
        plan.receiver_rate = 0.1;
        plan.publish_every = 0;
        plan.store_speed = None;
        plan.tight = false;
    }
    plan.cascades = 3;
    plan.compactors = 1;
    plan.keep = 1;
    plan.span_ms = 0;
}

/// The same without failovers, and the store goes back to an earlier moment.
pub fn rewound_cascades(plan: &mut Plan) {
    only(plan, &[Fault::StoreRollback, Fault::Reset, Fault::ReceiverCrash]);
    plan.trial = Trial::None;
    plan.full = false;
    plan.cascades = 2;
    plan.keep = 2;
    plan.span_ms = 0;
}

/// Applications are quiesced around cuts, while hooks fail, guards and daemons die, and cuts are given up.
pub fn hooks(plan: &mut Plan) {
    cohorts(plan);
    plan.cohort = None;
    plan.faults.push((Fault::Hooks, 4.0));
    plan.fault_rate = 0.006;
    plan.boot_rate = 0.2;
    plan.receiver_rate = plan.receiver_rate.max(0.05);
    plan.steps = 4000;
    plan.hooks = true;
}

/// Several hosts whose groups are cut as one, and which die, hang and are cut off at any moment. None goes back to an earlier one: what was
/// complete is there for ever.
pub fn cohorts(plan: &mut Plan) {
    let elsewhere = |fault: &Fault| NASTY.contains(fault) || AWAY.contains(fault) || *fault == Fault::Past;
    let sick = |fault: &Fault| {
        matches!(fault, Fault::FlushError | Fault::WriteError | Fault::ReadError | Fault::DeadSector | Fault::MapError)
    };
    plan.faults.retain(|(fault, _)| !elsewhere(fault) && !sick(fault));
    plan.fault_rate = plan.fault_rate.min(0.008) / 2.0;
    plan.boot_rate = plan.boot_rate.max(0.1);
    plan.receiver_rate = plan.receiver_rate.max(0.03);
    plan.regions.truncate(2);
    plan.steady = true;
    plan.trial = Trial::None;
    plan.full = false;
    plan.state_dir_fills = false;
    plan.killed_unsynced = false;
    plan.smaller.clear();
    plan.cohort = Some(OfCohort::default());
}

/// The same where next to nothing goes wrong but with the cuts.
pub fn calm_cohorts(plan: &mut Plan) {
    cohorts(plan);
    plan.faults.clear();
    plan.tight = false;
    plan.cohort = Some(OfCohort { trouble: Trouble::Seldom, ..OfCohort::default() });
}

/// The same where the gateway has its troubles, retention by itself keeps next to nothing, and some of what is cut cannot be read.
pub fn kept_cohorts(plan: &mut Plan) {
    calm_cohorts(plan);
    plan.faults = vec![(Fault::ReadError, 1.0)];
    plan.fault_rate = 0.0003;
    plan.receiver_rate = 0.005;
    plan.store_speed = None;
    plan.keep = 1;
    plan.span_ms = 0;
    plan.publish_every = 0;
    plan.cohort = Some(OfCohort { trouble: Trouble::Gateway, ..OfCohort::default() });
}

/// Of those, runs in which much cannot be read.
fn unread_cohorts(plan: &mut Plan) {
    kept_cohorts(plan);
    plan.fault_rate = 0.002;
}

/// Of those, runs in which the original is brought to what was published since, again and again.
pub fn failbacks(plan: &mut Plan) {
    failovers(plan);
    only(plan, &[Fault::Promote, Fault::Rejoin, Fault::Reset]);
    plan.faults[1].1 = 3.0;
    plan.boot_rate = 0.5;
    plan.receiver_rate = 0.1;
    plan.fails_back = true;
}

/// Of those, runs in which syncs fail, also those of strangers who write to its disks.
pub fn unsynced_failbacks(plan: &mut Plan) {
    failbacks(plan);
    only(plan, &[Fault::Promote, Fault::Rejoin, Fault::FlushError]);
    plan.faults[0].1 = 2.0;
    plan.fault_rate = 0.03;
}

/// Of those, runs in which records of a receiver that died wake up beside its successor's.
fn overtaken_fences(plan: &mut Plan) {
    failovers(plan);
    only(plan, &[Fault::Promote, Fault::Rejoin, Fault::StalledWriter]);
    plan.faults[1].1 = 2.0;
    plan.faults[2].1 = 6.0;
    plan.fault_rate = 0.015;
    plan.boot_rate = 0.5;
}

/// They do, and the ledger loses records.
fn torn_merges(plan: &mut Plan) {
    only(plan, &[Fault::TornLedger, Fault::ReceiverCrash]);
    plan.compactors = 2;
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

/// The intent map fails now and then, and the power goes.
fn map_errors(plan: &mut Plan) {
    only(plan, &[Fault::MapError, Fault::Power, Fault::Crash]);
    plan.fault_rate = 0.015;
    plan.spread = true;
}

/// Backings are written past their taps, nothing but the ledger keeps that, and volumes are claimed anew.
fn past_the_tap(plan: &mut Plan) {
    only(plan, &[Fault::Past, Fault::ReceiverPower, Fault::Power]);
    plan.faults[0].1 = 4.0;
    plan.fault_rate = 0.008;
    plan.state_dir_fills = true;
    plan.boot_rate = 0.5;
    plan.receiver_rate = 0.1;
}

/// Volumes grow, as files or as block devices, while nobody serves them.
fn grows(plan: &mut Plan, files: bool) {
    only(plan, &[Fault::Grow]);
    plan.smaller = plan.regions.iter().map(|regions| (regions - 1) * 4 - 2).collect();
    plan.files = files;
}

/// Something happens to files while nobody serves them.
fn files(plan: &mut Plan, fault: Fault) {
    only(plan, &[fault]);
    plan.files = true;
}

/// The source dies between the write of an intent page and its sync, again and again.
pub fn killed_unsynced(plan: &mut Plan) {
    one_page(plan, &[Fault::Crash]);
    plan.killed_unsynced = true;
    plan.boot_rate = 0.5;
}

const SIM: &str = "farside-sim";
const SHIM: &str = "farside-shim";
const CORE: &str = "farside-replication";
const LEDGER: &str = "farside-ledger";
const STORE: &str = "farside-store";
/// A power cut at every operation of a follower.
const FOLLOWER_POWER: &str = "follower_tests::whenever_the_power_goes_a_follower_says_what_it_holds_and_arrives";
const DAEMON: &str = "farside-daemon";
const KEPT: &str = "kept::mistakes_of_what_is_kept_are_noticed";
const VIEW: &str = "farside-view";

/// Plans that the gate runs beside those of chance, by name.
pub const PLANS: &[(&str, Directed)] = &[
    ("merges", merging),
    ("failovers", failovers),
    ("failbacks", failbacks),
    ("unsynced-failbacks", unsynced_failbacks),
    ("followers", following),
    ("cascades", cascades),
    ("rewound-cascades", rewound_cascades),
    ("cohorts", cohorts),
    ("calm-cohorts", calm_cohorts),
    ("kept-cohorts", kept_cohorts),
    ("hooks", hooks),
];

/// All of them. `xtask check` holds this list against the sources and against the tables in `ARCHITECTURE.md`.
pub const MUTATIONS: &[Mutation] = &[
    seeds("mark before intent", 200, Some(|p| only(p, &[Fault::Crash, Fault::Power]))),
    Mutation { name: "read-then-announce", caught_by: CaughtBy::Loom("models::read_then_announce_loses_marks"), directed: None },
    Mutation {
        name: "a write waits while it is announced",
        caught_by: CaughtBy::Loom("models::writers_that_wait_while_announced_wait_for_ever"),
        directed: None,
    },
    Mutation {
        name: "a pass leaves out without being announced",
        caught_by: CaughtBy::Loom("models::a_pass_that_leaves_out_unannounced_forgets"),
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
    // Of the rules T1 to T17, those that show in whole runs.
    seeds("T17 no header, layers there: not refused", 400, Some(|p| only(p, &[Fault::Reinstall]))),
    seeds("T6 compare beside an unpublished layer", 3000, Some(|p| resets(p, &[Fault::Reset, Fault::Resync]))),
    seeds("T7 position not checked at reconnect", 800, Some(|p| only(p, &[Fault::StoreRollback, Fault::Reset]))),
    seeds("skip the position rule", 400, Some(|p| only(p, &[Fault::Rollback, Fault::Stop]))),
    seeds("hole: no point after the last pass", 400, None),
    seeds("kind said per member", 400, None),
    seeds("a region is called whole of which granules were left out", 1500, None),
    story(
        "T11 a point is said again by half of its members",
        CORE,
        "stories::t11_a_point_that_the_store_forgot_is_not_said_again_by_half_of_its_members",
    ),
    seeds("hole: member claims anew alone", 2000, Some(|p| resets(p, &[Fault::Reset, Fault::ReceiverPower]))),
    seeds("T2 start without attached", 800, Some(|p| only(p, &[Fault::Stop, Fault::Crash]))),
    Mutation {
        name: "T2 clean without flush",
        caught_by: CaughtBy::Rarely(4000),
        directed: Some(|p| one_page(p, &[Fault::Stop, Fault::Power])),
    },
    seeds("T9 holes asked before the claim", 800, None),
    // The header's own sync stands behind it.
    story("hole: successor does not sync the map first", SIM, "a_successor_that_trusts_a_page_before_it_is_durable_is_noticed"),
    // The write path.
    story("hole: two cooling rounds", SHIM, "stories::two_cooling_rounds_do_not_share_an_entry"),
    story("T14 a failed flush is forgotten", SHIM, "stories::t14_after_a_failed_flush_nothing_cools"),
    story("hole: a failed flush spares COOLING regions", SHIM, "stories::t14_a_failed_flush_takes_back_regions_that_are_cooling"),
    story("hole: a flush beside a failed one counts", SHIM, "stories::t14_a_flush_beside_a_failed_one_counts_as_failed"),
    story(
        "hole: failed flush forgotten at the next attach",
        SHIM,
        "stories::t14_a_failed_flush_is_remembered_by_the_next_attach",
    ),
    story(
        "hole: an untold failed flush dies with its daemon",
        SHIM,
        "stories::t14_a_failed_flush_that_nobody_was_told_of_is_told_after_a_takeover",
    ),
    story(
        "hole: an answer that was never sent tells of a failed flush",
        SHIM,
        "stories::t14_a_failed_flush_whose_answer_was_never_sent_is_told_again",
    ),
    story("hole: a write over two regions looks at one again", SHIM, "stories::l2_a_write_over_two_regions_looks_at_both_again"),
    story(
        "T8 zeroes are believed after somebody else has written",
        SHIM,
        "stories::t8_what_somebody_else_may_have_written_is_not_zero",
    ),
    story("T8 a NO_HOLE request takes the COLD_ZERO way", SHIM, "stories::t8_a_no_hole_request_always_reaches_the_device"),
    story("T8 the zero flag outlives its region's content", SHIM, "stories::t8_what_was_zero_once_is_not_zero_for_ever"),
    story("T12 the old last region stays as it was", SHIM, "stories::t12_growth_sets_the_bit_of_the_old_last_region"),
    story("a cut goes on for want of masks", SHIM, "stories::l3_a_cut_ends_where_masks_run_out_in_its_grace"),
    story("no parking on announced extents", SHIM, "stories::l3_a_newer_write_waits_for_older_marks_that_overlap"),
    story("no grace", SHIM, "stories::l3_a_switch_waits_for_marks_under_way"),
    story("L1 a full side buffer holds the write", SHIM, "stories::l1_a_write_that_finds_no_room_gives_the_cut_up"),
    story("a page overwrites its newest slot", SHIM, "stories::l2_a_torn_write_of_a_page_leaves_its_newest_image_whole"),
    story("marks are cleared in place", SHIM, "stories::l2_marks_of_the_next_epoch_survive_the_switch"),
    // Source and target.
    story("T1 later ones keep the cut", CORE, "stories::t1_what_lies_on_top_of_a_layer_that_is_read_again_is_no_point"),
    story("END kept across a reset", CORE, "stories::t1_an_end_message_does_not_outlive_the_parts_it_spoke_of"),
    story(
        "what was kept of a layer is believed whatever lies below it",
        CORE,
        "cadence::t1_what_was_kept_of_a_layer_counts_on_the_content_below_it_only",
    ),
    story("END without digest", CORE, "stories::t5_an_end_message_that_does_not_match_what_landed_is_refused"),
    story("T1 staged out of order", CORE, "stories::t1_layers_become_staged_in_the_order_of_their_numbers"),
    story("T2 masks without unpublished layers", CORE, "stories::t2_a_clean_stop_owes_what_is_staged_and_not_published"),
    story("T3 accept without every bit", CORE, "stories::t3_accept_sets_every_bit_before_it_claims"),
    story("T5 lost staged data re-sent under the same seq", CORE, "stories::t5_staged_data_that_is_gone_means_a_new_claim"),
    story("T6 verify lets its regions cool", CORE, "random::mistakes_are_seen"),
    story("a point is called consistent before it is known", CORE, "random::mistakes_are_seen"),
    story("T6 verify sends before the bit is durable", CORE, "verify::mistakes_are_seen"),
    story("T7 a resume truncates what it does not name", CORE, "stories::t7_a_resume_leaves_alone_what_it_does_not_name"),
    story(
        "T8 a layer is let go before those below it",
        CORE,
        "resumed::t8_layers_are_let_go_in_their_order_whatever_is_heard_first",
    ),
    story("T10 a demoted epoch is said per member", CORE, "stories::t10_a_demoted_epoch_is_said_in_one_message"),
    story("hole: position judged by live bits", CORE, "stories::position_is_judged_by_the_bits_read_at_attach"),
    story("hole: position of the group", CORE, "stories::position_is_each_volumes_own"),
    story(
        "hole: the position check races with cooling",
        CORE,
        "stories::a_check_is_judged_by_the_position_at_the_time_of_the_answer",
    ),
    story("hole: a claim beside a switch", CORE, "stories::a_claim_waits_for_a_switch_of_its_volume"),
    story("the term is used before it is durable", CORE, "stories::a_term_is_durable_before_its_first_layer_is_sent"),
    story("an attach after a crash compares nothing", CORE, "peers::r2_what_an_interrupted_epoch_had_marked_is_compared"),
    story("L7 staged clears", CORE, "stories::l7_staged_clears_nothing"),
    story("L8 epochs pile up", CORE, "stories::l8_a_store_that_takes_nothing_does_not_pile_up_epochs"),
    story("L9 an end message is believed", CORE, "stories::l9_an_end_message_is_held_against_the_claim"),
    story("L10 quiet beside an unpublished layer", CORE, "stories::l10_lag_counts_from_what_is_published"),
    // The ledger's replay.
    story("a claim without the slot up to which it looked", LEDGER, "stories::l6_a_claim_names_the_slot_up_to_which_it_looked"),
    // Promotion, and the way back. (Each has a directed schedule as well, in `ledger` or `replication`.)
    seeds("L6 a lower generation claims", 800, Some(failovers)),
    seeds("L6 a promotion outranks one volume of the group", 800, Some(failovers)),
    seeds("L6 a promotion fences the volumes of its point only", 100, Some(failovers)),
    seeds("L6 a history that was taken back is called fenced", 400, Some(failovers)),
    seeds("L6 what a failover left aside is brought up by the next one", 1000, Some(failbacks)),
    seeds("L6 what a failover left aside is forgotten once its history is taken back", 3000, Some(failbacks)),
    seeds("L6 a fence that was overtaken goes on as it was", 4000, Some(overtaken_fences)),
    story("L6 what was published since is taken back, too", CORE, "fencing::l6_what_was_published_since_is_not_taken_back"),
    story(
        "L6 a yes that comes late drops what the one before was about",
        CORE,
        "fencing::l6_what_is_said_twice_of_a_history_holds_as_it_was_said",
    ),
    story("L6 what was given up is taken back all the same", CORE, "fencing::l6_what_was_given_up_is_not_taken_back"),
    seeds("L6 a claim whose verdict was lost is another's promotion", 600, Some(failovers)),
    story("L6 a generation is kept before its term", CORE, "fencing::l6_a_generation_is_kept_with_its_term"),
    seeds("L6 who claimed is forgotten with its line", 2000, Some(failovers)),
    seeds("L6 a stand-in fences the promotion", 100, Some(failovers)),
    seeds("L6 who takes a history back fences nobody", 100, Some(failovers)),
    seeds("L6 a yes to one promotion holds for the next", 100, Some(failovers)),
    story("a claim gives a volume another key or seal", LEDGER, "stories::l4_a_volume_keeps_its_digest_key_or_its_seal"),
    story("an encrypted volume adopts what the ledger says", CORE, "sealed::l4_a_seal_is_never_adopted"),
    story("a claim before the answer about the key", CORE, "sealed::l4_nothing_is_claimed_before_the_answer_about_the_key"),
    story("a claim before its wrapped key", CORE, "sealed::l4_a_key_is_in_the_store_before_a_claim_that_names_it"),
    story("L6 a rewound store is forgotten by a crash", CORE, "stories::l6_a_store_that_was_called_rewound_is_so_after_a_crash"),
    story(
        "L6 all between an old layer's regions is touched",
        CORE,
        "hostile::the_position_rule_is_asked_with_what_old_layers_really_touched",
    ),
    Mutation {
        name: "a write begins while its group is held",
        caught_by: CaughtBy::Loom("models::a_write_past_the_hold_is_cut_without_what_it_followed"),
        directed: None,
    },
    // Cuts of several hosts. (The first three are noticed in `replication`'s own small world as well.)
    seeds("a cohort is cut before all of it is held", 60, Some(calm_cohorts)),
    seeds("a cohort forgives a hold that ran out", 60, Some(calm_cohorts)),
    seeds("a hold that ran out is said to have stood", 60, Some(calm_cohorts)),
    seeds("a cut of which nothing more is heard is one", 20, Some(cohorts)),
    seeds("a hold lasts as long as is asked for", 40, Some(calm_cohorts)),
    seeds("holds follow each other at once", 40, Some(calm_cohorts)),
    story(
        "a host says that it is ready before it may hold again",
        CORE,
        "cohort::hosts_that_may_be_held_a_little_apart_are_cut_as_one_all_the_same",
    ),
    seeds("a cut that lacks a group is whole", 40, Some(cohorts)),
    seeds("what could not be read in full is part of a cut", 60, Some(unread_cohorts)),
    seeds("a group gives up points by its own ledger alone", 40, Some(kept_cohorts)),
    seeds("what is kept for cuts is nothing before it is known", 60, Some(kept_cohorts)),
    story("the newest cut is the one that the clock says", CORE, KEPT),
    story("a cut of a group that does not answer is given up", CORE, KEPT),
    story("R13 a write is not marked", DAEMON, "canary::tests::r13_a_tap_that_does_not_mark_is_noticed"),
    story("a slow line is a hung disk", CORE, "stories::a_slow_line_is_not_taken_for_a_hung_disk"),
    story(
        "L8 what a dead run was granted is kept",
        CORE,
        "hostile::what_a_killed_daemon_was_granted_is_free_as_soon_as_its_successor_has_claimed",
    ),
    seeds("L5 a full store takes no claim", 50, Some(|p| p.full = true)),
    story("a pass takes all the credit", CORE, "stories::a_first_sync_holds_up_nobody_elses_points"),
    story("a slow part ends of a slice only", CORE, "stories::what_is_read_again_gets_over_a_slow_line_that_breaks"),
    story(
        "parts are as long on a line that breaks under them",
        CORE,
        "line::a_line_that_breaks_under_a_part_brings_points_all_the_same",
    ),
    story("unreadable anew puts off every retry", CORE, "loss::a_dead_sector_that_is_written_puts_off_nobody_elses_retry"),
    story(
        "a region that is read again in part is not retried",
        CORE,
        "loss::what_was_written_where_nothing_could_be_read_does_not_stay_degraded",
    ),
    story("what a pass left out of a retry is not retried", CORE, "loss::what_a_pass_left_out_of_a_retry_does_not_stay_degraded"),
    story("what an end has no room for is not retried", CORE, "loss::what_an_end_has_no_room_for_is_said_by_a_later_one"),
    story("a first sync joins the cut", CORE, "stories::a_first_sync_holds_up_nobody_elses_points"),
    story("T11 a duplicate is not compared", LEDGER, "stories::t11_the_same_name_with_another_content_is_no_duplicate"),
    story(
        "T15 heartbeats of an old term count",
        LEDGER,
        "stories::t15_a_heartbeat_speaks_for_the_current_term_and_its_newest_layer",
    ),
    story(
        "T15 a heartbeat below a layer counts",
        LEDGER,
        "stories::t15_a_heartbeat_speaks_for_the_current_term_and_its_newest_layer",
    ),
    story("T16 prune unchecked at its slot", LEDGER, "stories::t16_a_prune_is_judged_at_its_own_slot"),
    story("L5 K counts per group", LEDGER, "stories::l5_newer_points_count_only_if_they_hold_the_member_and_are_whole"),
    story("L5 degraded points count for K", LEDGER, "stories::l5_newer_points_count_only_if_they_hold_the_member_and_are_whole"),
    story("L5 a degraded point stands for a cell with sound ones", LEDGER, "grid::l5_a_sound_point_stands_for_its_cell"),
    story("L5 silence ages points", LEDGER, "grid::l5_neither_silence_nor_a_clock_ages_points"),
    story("L5 a wall clock ages points", LEDGER, "grid::l5_neither_silence_nor_a_clock_ages_points"),
    // The store.
    story(
        "L4 all between an old layer's regions is unknown",
        STORE,
        "damage_tests::a_damaged_footer_of_an_old_layer_spoils_its_own_regions_only",
    ),
    story(
        "L4 what lies below the newest layer of a region is left out",
        STORE,
        "lazy_tests::l4_a_region_asks_for_the_footers_that_it_needs_and_no_other",
    ),
    story("L4 content is not checked where it is read", STORE, "group_tests::l4_rot_is_never_read_as_content"),
    story(
        "L4 a deletion without a look at the leases",
        STORE,
        "lease_tests::l4_what_is_read_with_a_lease_stays_until_it_is_closed",
    ),
    story(
        "L4 a lease without a look at the ledger",
        STORE,
        "lease_tests::l4_who_opens_a_point_while_a_collector_looks_finds_all_of_it_or_is_refused",
    ),
    // What becomes of parts that are laid together.
    seeds("a merge forgets zeroes", 400, Some(merging)),
    seeds("what a merge replaced goes before a checkpoint covers it", 400, Some(torn_merges)),
    story("L4 rot in a merged part keeps nothing", STORE, "rot_tests::l4_what_rotted_after_a_merge_keeps_what_it_replaced"),
    story("L6 a merge is of any history", STORE, "rot_tests::l6_a_merge_of_another_history_is_put_on_no_record"),
    story("a merge holds deletions up while it waits", STORE, "merge_tests::a_merge_that_waits_holds_up_no_deletion"),
    story("a merge across a retained point", STORE, "image_tests::a_merge_across_a_point_would_take_from_it_what_it_shows"),
    story("a merge of what a pinned point needs", STORE, "loss_tests::l4_a_pin_keeps_the_parts_of_a_reader_without_a_lease"),
    story("a merge whose point is gone", STORE, "image_tests::a_merge_without_its_point_would_take_what_another_point_shows"),
    story("a merge of parts that are gone", STORE, "image_tests::a_merge_of_what_is_gone_would_bring_it_back"),
    story("what a merge wrote goes without a decree", STORE, "image_tests::a_record_after_its_decree_would_name_what_is_deleted"),
    story("a map record accepted after its decree", STORE, "image_tests::a_record_after_its_decree_would_name_what_is_deleted"),
    story("a prune takes a merged part of a retained point", STORE, "image_tests::a_merged_part_stays_with_its_point"),
    story("L4 a reader does not look for merges", STORE, "merge_tests::l4_who_opens_a_point_after_a_merge_goes_by_the_new_parts"),
    story(
        "L4 who waits for a point looks at the ledger before he keeps what it names",
        STORE,
        "resting_tests::what_is_given_up_after_the_look_stays_until_it_was_read",
    ),
    // What replay forgets.
    story("a merge is believed however long ago it began", LEDGER, "memory::a_merge_is_named_soon_after_it_began_or_never"),
    story(
        "what is forgotten of a ledger is believed",
        STORE,
        "follower_tests::who_holds_a_forgotten_point_of_another_history_is_told",
    ),
    story(
        "a record goes that replay remembers",
        STORE,
        "trimming_tests::records_that_nobody_asks_for_go_and_the_group_is_what_it_was",
    ),
    story("records go for a checkpoint that nobody read back", STORE, "trimming_tests::nothing_goes_without_what_stands_for_it"),
    story("what is deleted hangs on one record", STORE, "damage_tests::nothing_goes_for_the_word_of_the_newest_record_alone"),
    story("L4 what is forgotten is an orphan", STORE, "loss_tests::a_damaged_part_of_a_merge_keeps_nothing_else_from_going"),
    story(
        "L6 what a repair gave up tells of old positions",
        STORE,
        "follower_tests::a_forgotten_point_that_a_repair_gave_up_is_of_another_history",
    ),
    story("L4 a lease does not keep what was forgotten", STORE, "lease_tests::l4_a_lease_keeps_what_is_forgotten"),
    story(
        "L6 a position that is forgotten is believed",
        CORE,
        "hostile::l6_a_position_that_is_forgotten_is_held_against_its_record",
    ),
    story("L6 what was forgotten touched nothing", CORE, "hostile::l6_what_was_forgotten_may_have_touched_anything_between"),
    story("a repair goes on with what nobody agreed to", STORE, "group_tests::a_repair_does_what_was_planned_and_no_more"),
    story("a repair joins two histories", STORE, "repeats_tests::l6_a_repair_joins_no_two_histories"),
    story(
        "a repair puts a void in the place of what was given up",
        STORE,
        "repeats_tests::what_was_voided_is_not_mended_by_what_repeats_its_void",
    ),
    story("a resumed restore believes the cache", STORE, "restore_tests::what_a_failed_sync_lost_is_restored_again"),
    story("T4 sweep everything that no record names", STORE, "group_tests::t4_what_a_record_may_still_name_is_not_swept"),
    story("a record put below a checkpoint counts", STORE, "checkpoint_tests::l6_a_record_put_below_a_checkpoint_is_nothing"),
    story(
        "what lies in a slot counts, whatever checkpoint covers it",
        STORE,
        "checkpoint_tests::l6_a_slot_below_a_checkpoint_is_decided_by_it",
    ),
    story(
        "L4 a pack goes while a part in it is needed",
        STORE,
        "packs_tests::l4_a_pack_goes_a_day_after_the_last_part_in_it_was_given_up",
    ),
    story(
        "L4 a pack goes without a look at the leases",
        STORE,
        "packs_tests::l4_a_pack_goes_a_day_after_the_last_part_in_it_was_given_up",
    ),
    story("T4 a pack that a record may still name goes", STORE, "packs_tests::t4_a_pack_that_a_record_may_still_name_stays"),
    story("a repeated record counts without the chain", LEDGER, "repeats::l6_what_is_of_another_chain_is_not_repeated"),
    story("T13 a restore shares its target", STORE, "restore_tests::t13_a_restore_has_its_target_alone"),
    // What is kept equal to a point.
    seeds("a follower writes before it says so", 100, Some(following)),
    seeds("a follower arrives before the flush", 100, Some(following)),
    seeds("a follower takes what it began for done", 100, Some(following)),
    story("a follower goes back as it goes on", STORE, FOLLOWER_POWER),
    story("a follower does not look for strangers", STORE, "follower_tests::a_follower_notices_who_else_wrote_to_its_target"),
    story("a follower doubts nothing that it was writing", STORE, "follower_tests::what_a_death_leaves_in_doubt_is_compared"),
    story("a follower believes the cache after a failed sync", STORE, "follower_tests::what_a_failed_sync_lost_is_written_again"),
    story(
        "a follower writes to whatever has its target's name",
        STORE,
        "follower_tests::another_disk_of_that_name_is_not_written_to",
    ),
    // The same by who has nothing but the store.
    seeds("a cascade looks before it takes its lease", 400, Some(cascades)),
    seeds("a cascade trusts its look after its lease ran out", 200, Some(cascades)),
    seeds("a cascade goes on from a position that the store does not hold", 400, Some(rewound_cascades)),
    seeds("a cascade takes what was merged for old", 400, Some(cascades)),
    seeds("a cascade wakes by what it knew", 50, Some(cascades)),
    // What is written over a point.
    story(
        "an overlay's bits come before its data",
        VIEW,
        "power_tests::whenever_the_power_goes_what_was_flushed_is_there_and_the_rest_is_old_or_new",
    ),
    story(
        "an overlay's bits are not synced",
        VIEW,
        "power_tests::whenever_the_power_goes_what_was_flushed_is_there_and_the_rest_is_old_or_new",
    ),
    story("what is kept is durable some time later", VIEW, "power_tests::whenever_the_power_goes_what_is_overwritten_was_kept"),
    story(
        "what was kept before is lost to what came in its place",
        VIEW,
        "power_tests::whenever_the_power_goes_what_is_overwritten_was_kept",
    ),
    story(
        "a write over a point is durable by its word",
        VIEW,
        "power_tests::whenever_the_power_goes_what_was_flushed_is_there_and_the_rest_is_old_or_new",
    ),
    story(
        "an overlay's bits are taken after its data was synced",
        VIEW,
        "power_tests::what_is_written_while_a_flush_syncs_has_no_durable_bit_by_that_flush",
    ),
    story(
        "bits that an opening finds are taken for durable",
        VIEW,
        "power_tests::after_a_sync_that_failed_nothing_is_believed_but_the_disk",
    ),
    story(
        "a fill lies over what was written",
        VIEW,
        "tests::a_point_becomes_a_file_with_what_was_written_before_meanwhile_and_later",
    ),
    story(
        "a fill takes it for zeroes where no bit is",
        VIEW,
        "power_tests::whenever_the_power_goes_what_was_flushed_is_there_and_the_rest_is_old_or_new",
    ),
    story("an overlay's map is believed as it is", VIEW, "power_tests::damage_of_the_map_is_noticed"),
    // What becomes of disks that are held.
    seeds("what a failback overwrote is not put back", 1500, Some(failbacks)),
    seeds("a part of a point is served", 1500, Some(failbacks)),
    seeds("what a stranger wrote is not kept", 1500, Some(failbacks)),
    story("what was begun with a part of a point is put back", CORE, "failback::mistakes_of_a_course_are_noticed"),
    story("a failback overwrites what is still to be kept", CORE, "failback::mistakes_of_a_course_are_noticed"),
    seeds("what is about to be served is not looked at again", 1500, Some(failbacks)),
    story("a point that was begun is taken for done", CORE, "failback::mistakes_of_a_course_are_noticed"),
    seeds("a failback does not look for strangers", 1500, Some(failbacks)),
    seeds("what a disk lacked of one point is forgotten at the next", 1500, Some(failbacks)),
    seeds("a failback believes the cache after a failed sync", 1500, Some(failbacks)),
    seeds("a failback believes the cache of who was there before", 1500, Some(unsynced_failbacks)),
    // What becomes of applications that are quiesced.
    story(
        "a late answer of an earlier attempt is believed",
        CORE,
        "quiet::tests::nobody_is_waited_for_for_ever_and_what_comes_late_is_of_nobody",
    ),
    seeds("who let go before the cut is believed to have held", 200, Some(hooks)),
    story(
        "a post-cut that is not over in time counts as over",
        CORE,
        "quiet::tests::nobody_is_waited_for_for_ever_and_what_comes_late_is_of_nobody",
    ),
    seeds("a guard that does not answer is waited for", 200, Some(hooks)),
    seeds("what is left is looked for once", 200, Some(hooks)),
    story(
        "the next look is as late as the last one was",
        CORE,
        "quiet::tests::what_is_left_next_is_looked_for_soon_however_long_the_last_one_took",
    ),
    // What happens while nobody serves a volume.
    seeds("T12 growth keeps the bits that there were", 400, Some(|p| grows(p, false))),
    seeds("the backing is judged after the map has grown", 400, Some(|p| grows(p, true))),
    seeds("T2 a backing that changed after a clean stop is trusted", 400, Some(|p| files(p, Fault::Offline))),
    seeds("another disk is taken for the one that was there", 400, Some(|p| files(p, Fault::Swap))),
    seeds("verify takes what it reads for what is published", 100, Some(|p| p.trial = Trial::Tampered)),
    seeds("a recorded loss of tracking is not heeded", 400, Some(past_the_tap)),
    seeds("a header moves above a loss on record", 1000, Some(past_the_tap)),
    story("a loss on record is said once", CORE, "loss::a_loss_that_the_store_has_forgotten_is_said_again"),
    story("a claim overtakes a loss", CORE, "loss::a_claim_that_has_not_seen_a_loss_is_void"),
    seeds("a claim that was lost is not looked for", 800, Some(|p| only(p, &[Fault::TornLedger, Fault::Crash]))),
    seeds("a map trusted after a failed sync", 800, Some(map_errors)),
    seeds("tracking-lost withdrawn while the map cannot be written", 800, Some(map_errors)),
];
