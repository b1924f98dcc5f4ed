//! `farside cohort`: groups of several hosts that are cut as one.

use clap::Subcommand;
use farside_control::cohort::{CohortCut, CohortStatus};
use farside_control::routes::PointsQuery;

use crate::args::Global;
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};

/// `farside cohort`.
#[derive(Subcommand, Debug)]
#[command(after_long_help = "\
A cohort is named in the gateway's receiver.toml ([[cohort]]: its groups, how often, how long
writes may be held), and each of its hosts allows it (`cohort_hold` in the [[group]] of its
farsided.toml). All of its groups are held, all are cut, and all are let go, within milliseconds.
Their points of one cut are one moment: what an application wrote at one host because of what it
had written at another is in them only together with that. If one group misses it, the cut is none
of the cohort; each group goes on having its own points.

Examples:
  farside cohort list
  farside cohort take erp
  farside cohort cuts erp")]
pub(crate) enum CohortCommand {
    /// Show the cohorts of this gateway, and what keeps one from being cut.
    List,
    /// List the newest cuts of which every group has its point.
    ///
    /// By the ledgers of the groups, and not by what receiver.toml says now: a cut stays one of those groups that were cut then, also when a
    /// group was added to the cohort or taken out, or the cohort is in the configuration no more. A point's record says of how many groups its
    /// cut is, and not of which: a cut is listed if exactly so many have a point of it.
    Cuts {
        /// The cohort.
        cohort: String,
        /// So many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Keep the points of a cohort that is no more as all others.
    ///
    /// What was kept of a cohort when its `[[cohort]]` was taken out of receiver.toml is kept on: no newer cut comes that it would make room for,
    /// and a file that cannot be read must not give up anything. This gives its points to the policies of their groups, which may prune most of
    /// them soon; pinned ones stay. Refused while the configuration has a cohort of that name, and over when it has one again.
    Forget {
        /// The cohort.
        cohort: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Cut a cohort now, whatever its interval.
    Take {
        /// The cohort.
        cohort: String,
    },
}

/// Runs it.
pub(crate) async fn run(global: &Global, hosts: &Hosts, command: CohortCommand) -> Result<(), Failure> {
    let receiver = hosts.gateway().await?;
    match command {
        CohortCommand::List => {
            let cohorts = receiver.cohorts().await?;
            if global.json { print::json(&cohorts) } else { print::out(&list(&cohorts)) }?;
            match cohorts.iter().any(|cohort| cohort.trouble.is_some() || cohort.unknown.is_some()) {
                true => {
                    Err(Failure::new(Exit::Attention, "a cohort is not cut as it should be", "farside explain cohort_missed"))
                }
                false => Ok(()),
            }
        }
        CohortCommand::Cuts { cohort, limit } => {
            let query = PointsQuery { of: None, limit: Some(limit) };
            let cuts = receiver.cohort_cuts(&cohort, &query).await?;
            if global.json { print::json(&cuts) } else { print::out(&text_of_cuts(&cohort, &cuts)) }
        }
        CohortCommand::Forget { cohort, yes } => {
            if receiver.cohorts().await?.iter().all(|known| known.name != cohort) {
                let cuts = receiver.cohort_cuts(&cohort, &PointsQuery::default()).await.unwrap_or_default();
                if let (Some(newest), false) = (cuts.first(), global.json) {
                    eprintln!("the newest whole cut of {cohort} is {}, begun {}", newest.id, print::time(newest.at));
                }
                let question = format!("Keep the points of {cohort} no longer than all others of their groups?");
                confirm::confirm(&question, "nothing was changed", yes)?;
            }
            let done = receiver.cohort_forget(&cohort).await?;
            if global.json { print::json(&done) } else { print::out(&format!("{}\n", done.message)) }
        }
        CohortCommand::Take { cohort } => {
            let done = receiver.cohort_take(&cohort).await?;
            if global.json { print::json(&done) } else { print::out(&format!("{}\n", done.message)) }
        }
    }
}

fn list(cohorts: &[CohortStatus]) -> String {
    if cohorts.is_empty() {
        return "no cohorts: receiver.toml has no [[cohort]]\n".to_owned();
    }
    let mut table = Table::new(&["COHORT", "GROUP", "HOST", "EVERY", "CUTS", "MISSED", "HELD", "NEWEST"]);
    for cohort in cohorts {
        for (at, group) in cohort.groups.iter().enumerate() {
            let of_cohort = |text: String| if at == 0 { text } else { String::new() };
            let held = cohort.held_us.map_or_else(|| NOTHING.to_owned(), |us| format!("{:.1} ms", us as f64 / 1000.0));
            let newest = cohort.newest.as_ref().map_or_else(|| NOTHING.to_owned(), |cut| print::time(cut.at));
            table.row(vec![
                of_cohort(cohort.name.clone()),
                group.group.clone(),
                if group.connected { "here" } else { "away" }.to_owned(),
                of_cohort(print::duration_ms(cohort.every_ms)),
                of_cohort(cohort.cuts.to_string()),
                of_cohort(cohort.missed.to_string()),
                of_cohort(held),
                of_cohort(newest),
            ]);
        }
    }
    let mut text = table.to_string();
    for cohort in cohorts {
        if let Some(trouble) = &cohort.trouble {
            let group = trouble.group.as_ref().map(|group| format!(" {group}:")).unwrap_or_default();
            text.push_str(&format!("\n! {}:{group} {} ({})\n", cohort.name, trouble.why, print::time(trouble.at)));
        }
        if let Some(why) = &cohort.unknown {
            text.push_str(&format!("\n! {}: its points cannot be told: {why}\n", cohort.name));
        }
    }
    text
}

fn text_of_cuts(name: &str, cuts: &[CohortCut]) -> String {
    if cuts.is_empty() {
        return format!("cohort {name} has no cut of which every group has its point\n");
    }
    let mut table = Table::new(&["CUT", "BEGUN", "GROUP", "POINT"]);
    for cut in cuts {
        for (at, point) in cut.points.iter().enumerate() {
            let (id, time) = if at == 0 { (cut.id.clone(), print::time(cut.at)) } else { (String::new(), String::new()) };
            table.row(vec![id, time, point.group.clone(), point.point.to_string()]);
        }
    }
    let doubts = cuts.iter().flat_map(|cut| cut.points.iter().filter_map(move |point| Some((cut, point.doubt()?))));
    let doubts: String = doubts.map(|(cut, why)| format!("! cut {}: {why}\n", cut.id)).collect();
    let gap = if doubts.is_empty() { "" } else { "\n" };
    format!("{table}{gap}{doubts}")
}
