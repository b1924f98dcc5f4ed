//! `farside volume rejoin`: two hosts wrote after a failover, and a person says which of them wins.
//!
//! It is `farside rollback` or `farside failback`, found by what the person knows: which disks are to live. What either would discard is shown first.

use clap::{Args, ValueEnum};
use farside_control::failback::{FailbackRequest, FailbackStatus, FailbackStep};
use farside_control::rollback::{RollbackRequest, RollbackStatus};
use serde::Serialize;

use crate::args::Global;
use crate::failback::{self, FailbackArgs};
use crate::failure::Failure;
use crate::hosts::Hosts;
use crate::print;
use crate::settle::{self, RollbackArgs};

/// `farside volume rejoin`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
On the old host, after a failover, whose volume says `Fenced`. All volumes of its group rejoin
together: they are one history.

Without --winner nothing is changed: both ways are shown, and what each of them discards.

  --winner here     these disks go on as they are, and whoever stood in is fenced. What it published
                    is pinned on the gateway first, at its newest whole point.
                    The same as: farside rollback GROUP
  --winner there    these disks are brought to what was published there; only what differs crosses
                    the network. What only they hold is kept first, as a branch. The volumes are not
                    served here until farside failback GROUP --finish.
                    The same as: farside failback GROUP

Exit code 4: refused; the reason and the next step are said. Without --winner a way that is not
possible now is shown with its reason.

Examples:
  farside volume rejoin data
  farside volume rejoin data --winner here --plan
  farside volume rejoin data --winner there")]
pub(crate) struct RejoinArgs {
    /// The volume, of this host.
    name: String,
    /// Whose content it is from now on.
    #[arg(long, value_enum, value_name = "SIDE")]
    winner: Option<Winner>,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(long, short, requires = "winner")]
    yes: bool,
}

/// `--winner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Winner {
    /// This host's disks, as they are.
    Here,
    /// What was published by whoever stood in.
    There,
}

/// Both ways, or why not.
#[derive(Debug, Serialize)]
struct Ways {
    group: String,
    here: Way<RollbackStatus>,
    there: Way<FailbackStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way<T> {
    Plan(T),
    Refused { message: String, what_to_do: String },
}

impl<T> Way<T> {
    fn of<E: Into<Failure>>(answer: Result<T, E>) -> Self {
        answer.map_or_else(
            |error| {
                let failure: Failure = error.into();
                Self::Refused { message: failure.message, what_to_do: failure.what_to_do }
            },
            Self::Plan,
        )
    }

    fn words(&self, plan: impl FnOnce(&T) -> String) -> String {
        let text = match self {
            Self::Plan(status) => plan(status),
            Self::Refused { message, what_to_do } if what_to_do.is_empty() => format!("not possible now: {message}\n"),
            Self::Refused { message, what_to_do } => format!("not possible now: {message}\n{what_to_do}\n"),
        };
        text.lines().map(|line| format!("  {line}\n")).collect()
    }
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, args: RejoinArgs) -> Result<(), Failure> {
    let group = hosts.source().volume(&args.name).await?.group;
    let RejoinArgs { winner, plan, yes, .. } = args;
    match winner {
        Some(Winner::Here) => settle::rollback(global, hosts, RollbackArgs { group, force: false, plan, yes }).await,
        Some(Winner::There) => failback::run(global, hosts, FailbackArgs::begin(group, plan, yes)).await,
        None => {
            let ways = both(hosts, group).await;
            if global.json { print::json(&ways) } else { print::out(&shown(&ways)) }
        }
    }
}

/// What either way would do.
async fn both(hosts: &Hosts, group: String) -> Ways {
    let client = hosts.source().with_timeout(settle::PINNED_WITHIN);
    let rollback = RollbackRequest { group: group.clone(), force: false, plan: true };
    let failback = FailbackRequest { group: group.clone(), step: FailbackStep::Begin, plan: true, ..FailbackRequest::default() };
    let here = Way::of(client.rollback(&rollback).await);
    Ways { group, here, there: Way::of(client.failback(&failback).await) }
}

fn shown(ways: &Ways) -> String {
    let group = &ways.group;
    format!(
        "--winner here: these disks (farside rollback {group})\n{}--winner there: what was published since (farside failback {group})\n{}nothing \
         was changed: say which side wins\n",
        ways.here.words(settle::plan),
        ways.there.words(|planned| failback::plan(planned, false)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_shown_and_one_that_is_refused_says_why() {
        let here = Way::Plan(RollbackStatus { volumes: vec!["data".into()], ..RollbackStatus::default() });
        let refused = Failure::new(crate::failure::Exit::Refused, "the gateway is away", "`farside status` says how it is");
        let ways = Ways { group: "db".into(), here, there: Way::of(Err::<FailbackStatus, _>(refused)) };
        let text = shown(&ways);
        for words in [
            "--winner here: these disks (farside rollback db)\n  data: goes on with its disk as it is\n",
            "--winner there: what was published since (farside failback db)\n  not possible now: the gateway is away\n  `farside status` says how it is\n",
            "nothing was changed: say which side wins",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let json = serde_json::to_value(&ways).expect("plain data");
        assert_eq!(json["there"]["refused"]["message"], "the gateway is away");
        assert_eq!(json["here"]["plan"]["volumes"][0], "data");
    }
}
