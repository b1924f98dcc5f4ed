//! `farside cutover`: a group leaves its host in order, and nothing of it is lost.

use std::time::Duration;

use clap::{ArgGroup, Args};
use farside_control::failback::{CutoverRequest, CutoverStep, FailbackStage, FailbackStatus};
use farside_control::{Client, ClientError};
use serde::Serialize;

use crate::args::Global;
use crate::confirm;
use crate::failback::{self, ASK_AGAIN};
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print;
use crate::status;

/// `farside cutover`.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("what").args(["group", "list"]).required(true),
    after_long_help = "\
Run it on the host that has the group now, after its applications were stopped and its volumes
unmounted. A planned move has these steps:

  1. farside cutover GROUP             takes the volumes out of service here, publishes all that was
                                       written to them, and tells the gateway that this is all
  2. on the gateway: farside failover HOST/GROUP
                                       says that nothing is lost, and brings the group up there
  3. to come back: farside failback GROUP, and later --finish: only what differs crosses the network

From step 1 on nobody sees these disks here: not after a restart of farsided or of the host, and not
in the case that farsided cannot start. Of a volume that was added with --device this is the device
itself (/dev/vg/data): its tap is out from under it, a mount of it fails, also at a boot, so it wants
`nofail` in /etc/fstab, and the tap is put under it again at the end. What goes wrong before all is
published (no connection, a kill, --wait is over) serves the volumes again, as they were.

Examples:
  farside cutover db --plan
  farside cutover db
  farside cutover db --wait 1h         there is much to publish yet
  farside cutover db --abort           serve them here again; refused, if step 2 was done
  farside cutover --list

Ctrl-C ends the watching only; --abort gives it up at any moment.

Exit code 4: refused. A volume is in use, is not replicated now, or the gateway does not answer.
Exit code 1: it was begun, and given up: the volumes are served as before."
)]
pub(crate) struct CutoverArgs {
    /// The group, of this host.
    group: Option<String>,
    /// Say what would happen, and change nothing.
    #[arg(long, conflicts_with = "abort")]
    plan: bool,
    /// Give it up: serve the volumes here again.
    #[arg(long)]
    abort: bool,
    /// With --abort: also after step 2, beside the copy, where they are fenced; or if the gateway cannot be asked whether that was done.
    #[arg(long, requires = "abort")]
    force: bool,
    /// How long it may take until all is published; then it is given up.
    #[arg(long, value_name = "TIME", value_parser = farside_control::parse_span, conflicts_with_all = ["plan", "abort"])]
    wait: Option<Duration>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// List cutovers and failbacks that are not over.
    #[arg(long, conflicts_with_all = ["plan", "abort", "wait", "yes"])]
    list: bool,
}

/// What it says at its end.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    cutover: &'a FailbackStatus,
    /// Nothing of it is under way any more.
    over: bool,
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, args: CutoverArgs) -> Result<(), Failure> {
    let client = hosts.source();
    let Some(group) = args.group.filter(|_| !args.list) else { return failback::list(global, &client).await };
    let step = if args.abort { CutoverStep::Abort } else { CutoverStep::Begin };
    let wait_seconds = args.wait.map(|wait| u32::try_from(wait.as_secs().max(1)).unwrap_or(u32::MAX));
    let request = CutoverRequest { group, step, wait_seconds, force: args.force, plan: true };
    let planned = client.cutover(&request).await?;
    if args.plan {
        if global.json {
            return print::json(&planned);
        }
        return print::out(&format!("{}nothing was changed\n", plan(&planned)));
    }
    if planned.stage == FailbackStage::Planned {
        if !global.json {
            eprint!("{}", plan(&planned));
        }
        confirm::confirm("Take these volumes out of service here?", "nothing was changed", args.yes)?;
    }
    let now = client.cutover(&CutoverRequest { plan: false, ..request }).await?;
    let (last, over) = watch(global, &client, now, step).await?;
    if step == CutoverStep::Begin && last.stage != FailbackStage::HandedOver {
        let message = given_up(&client, &last).await;
        return Err(Failure::new(Exit::Failed, message, "its volumes are served here as before: farside status"));
    }
    if global.json {
        return print::json(&Done { cutover: &last, over });
    }
    let text = match step {
        CutoverStep::Abort => aborted(&last.group),
        CutoverStep::Begin => outcome(&last, &client.source_status().await?.source),
    };
    print::out(&text)
}

/// That a group that was handed over is served here again.
pub(crate) fn aborted(group: &str) -> String {
    format!(
        "aborted: the volumes of {group} are served here as their disks are (farside status)\nuntil it is connected again the gateway takes it \
         for handed over: nobody should fail it over now\n"
    )
}

/// That it was given up, and why, which may have been over before it was asked for.
async fn given_up(client: &Client, last: &FailbackStatus) -> String {
    if let Some(why) = &last.why {
        return format!("the cutover of group {} was given up: {why}", last.group);
    }
    let request =
        CutoverRequest { group: last.group.clone(), step: CutoverStep::Abort, wait_seconds: None, force: false, plan: true };
    match client.cutover(&request).await {
        Err(ClientError::Api(error)) => error.message,
        _ => format!("the cutover of group {} was given up: the log of farsided says why", last.group),
    }
}

/// Until there is nothing more to wait for; how it was at last, and whether it is over.
async fn watch(
    global: &Global,
    client: &Client,
    mut now: FailbackStatus,
    step: CutoverStep,
) -> Result<(FailbackStatus, bool), Failure> {
    let mut said = None;
    loop {
        if step == CutoverStep::Begin && !matches!(now.stage, FailbackStage::HandingOver | FailbackStage::Aborting) {
            return Ok((now, false));
        }
        if !global.json && now.stage == FailbackStage::HandingOver {
            let owed = owed(client, &now.group).await?;
            if owed != said {
                if let Some(owed) = owed {
                    eprintln!("not published yet: {}", print::bytes(owed));
                }
                said = owed;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
        match client.failbacks().await?.into_iter().find(|one| one.group == now.group) {
            Some(one) => now = one,
            None => return Ok((now, true)),
        }
    }
}

/// Bytes of a group that are not published.
async fn owed(client: &Client, group: &str) -> Result<Option<u64>, Failure> {
    let status = status::source_with(client, group).await?;
    let found = status.groups.iter().find(|found| found.name == group);
    Ok(found.map(|found| found.volumes.iter().map(|volume| volume.backlog_bytes).sum()))
}

/// What would happen.
fn plan(planned: &FailbackStatus) -> String {
    let mut text = String::new();
    for member in &planned.members {
        text.push_str(&format!(
            "{}: {} ({}) is served here no more\n",
            member.volume,
            member.backing,
            print::bytes(member.bytes)
        ));
    }
    if let Some(point) = &planned.point {
        let at = format!("point {}, cut {} ({})", point.id, print::time(point.cut_wall), print::age(point.cut_wall));
        text.push_str(&format!("the newest is {at}; what was written since is published first\n"));
    }
    text
}

fn outcome(last: &FailbackStatus, host: &str) -> String {
    let group = &last.group;
    // † Who stands in publishes under the name of the source, whose group was failed over once.
    let source = last.source.as_deref().unwrap_or(host);
    let again = if source == host { "" } else { " --again" };
    let point = last
        .holds
        .as_ref()
        .map_or_else(String::new, |point| format!(", as point {}, cut {}", point.id, print::time(point.cut_wall)));
    format!(
        "{group} is handed over{point}: all that was written here is published\nnext, on the gateway: farside failover {source}/{group}{again}\nlater: \
         `farside failback {group}` brings it back here; before the failover, `farside cutover {group} --abort` serves it here again\n"
    )
}
