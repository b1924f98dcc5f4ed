//! `farside point take`: a point now, with a title, and with applications quiesced for it.

use std::time::Duration;

use clap::Args;
use farside_control::Consistency;
use farside_control::source::{PointTaken, PointWanted};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print;

/// An answer comes so much later than the daemon stops waiting, at most.
const MARGIN: Duration = Duration::from_secs(10);

/// `farside point take`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
All volumes of the group are in the point, or none. If the group has hooks ([[hook]] in farsided.toml), each
one's pre-cut runs before the cut and its post-cut right after it, while nothing but that is waited for:
applications are held for milliseconds. If the cut does not come within hook_hold (10s, from the first
freeze, or from the last pre-cut where nothing is frozen), every post-cut runs without it. A point is called
consistent only if every hook did its part and was not over before the cut was made. If one fails the point
is made all the same, crash-consistent, says which, and the command exits with 7.

What is made by the clock: `farside group set GROUP --consistent 15m`. Retention keeps consistent points as
if there were no others: the policy holds for all points, and once more for the consistent ones alone.

Examples:
  farside point take db
  farside point take db --title \"before the upgrade\"
  farside point take db --no-hooks --wait 5m
  farside point show consistent --of db         the newest consistent point; restore, open and drill take it, too")]
pub(crate) struct TakeArgs {
    /// The group.
    pub(crate) group: String,
    /// What it is to be called, for whoever looks for it (`farside point list GROUP --label TEXT`); at most 256 bytes.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) title: String,
    /// Quiesce nothing, though the group has hooks.
    #[arg(long)]
    pub(crate) no_hooks: bool,
    /// How long to wait until it is published, 1h at most. A point that was begun is made also if nobody waits for it.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = farside_control::parse_duration)]
    pub(crate) wait: Duration,
}

/// Makes a point, and says what it became.
pub(crate) async fn run(global: &Global, hosts: &Hosts, args: &TakeArgs) -> Result<(), Failure> {
    let wanted = PointWanted {
        title: args.title.clone(),
        hooks: args.no_hooks.then_some(false),
        wait_ms: Some(u64::try_from(args.wait.as_millis()).unwrap_or(u64::MAX)),
    };
    let client = hosts.source().with_timeout(args.wait.saturating_add(MARGIN));
    let taken = client.point_take(&args.group, &wanted).await?;
    if global.json {
        print::json(&taken)?;
    } else {
        print::out(&text(&args.group, &taken))?;
    }
    match failed(&taken) {
        false => Ok(()),
        true => Err(Failure::new(
            Exit::Attention,
            format!("it is not application-consistent: {}", taken.hooks),
            "farside explain hooks_failed",
        )),
    }
}

fn failed(taken: &PointTaken) -> bool {
    taken.consistency == Consistency::Crash && !taken.hooks.is_empty()
}

fn text(group: &str, taken: &PointTaken) -> String {
    let kind = match taken.consistency {
        Consistency::Application => "application-consistent",
        _ => "crash-consistent",
    };
    let title = if taken.title.is_empty() { String::new() } else { format!(" \u{201c}{}\u{201d}", taken.title) };
    let said = if taken.hooks.is_empty() || failed(taken) { String::new() } else { format!(" ({})", taken.hooks) };
    format!(
        "point {}{title} of {group} is published, {kind}{said}; cut at {}\n",
        taken.point.id,
        print::time(taken.point.cut_wall)
    )
}
