//! `farside failback`: a host that was failed over gets what its stand-in published since, and takes its history back.

use std::time::Duration;

use clap::{ArgGroup, Args};
use farside_control::Client;
use farside_control::failback::{BranchKeeps, FailbackMember, FailbackRequest, FailbackStage, FailbackStatus, FailbackStep};
use farside_control::source::VolumeState;
use serde::Serialize;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};
use crate::progress::Progress;
use crate::{confirm, cutover, status};

/// How often it is asked how far it is.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(100);

/// `farside failback`.
#[derive(Args, Debug, Default)]
#[command(
    group = ArgGroup::new("what").args(["group", "list"]).required(true),
    after_long_help = "\
Run it on the old host, whose volumes are all `Fenced`, or whose group was handed over by `farside
cutover`. The way back has three steps:

  1. farside failback GROUP            takes its volumes out of service here, and brings their
                                       disks to the newest point that the stand-in published: only
                                       what differs crosses the network. Then newer points are
                                       followed. The stand-in serves, and publishes, meanwhile.
  2. on the stand-in: stop the applications, wait for lag 0 (farside status), stop farsided
  3. farside failback GROUP --finish   brings the disks to the last point, serves the volumes,
                                       and takes the history back. The stand-in is `Fenced` then.

What these disks hold and no point does (the last writes before the failover, and all that came
after it here) is kept first: `farside branch list` shows it. --discard-branch does not keep it.

It goes on by itself after a kill or a reboot at any moment; Ctrl-C ends the watching only. The
volumes are served by nobody here from step 1 to step 3: stop what uses them, and unmount. Of a
volume that was added with --device that is the device itself (/dev/vg/data): its tap is out from
under it, a mount of it fails, also at a boot, so it wants `nofail` in /etc/fstab.

Everything of the volumes is compared by digest once, and read here in full for that; then only
what points touched since.

Examples:
  farside failback db --plan
  farside failback db
  farside failback db --finish
  farside failback db --abort          serve them as the disks are, fenced as before; as they
                                       were, if what only they hold is still being kept
  farside failback db --accept-disks   a disk was replaced, or has no serial number after a reboot
  farside failback --list

--finish waits until the stand-in has stopped in order, and said that all of it is published;
--force does not, where it burnt down, and loses what it had not published. Where the gateway is not
there either, the volumes are served as the point that their disks are; the history is taken back
when it is there, by itself, and this command ends with exit code 3 before that.

Exit code 4: refused. A volume is not `Fenced`, nor handed over, is in use, or nothing was
published since the failover (--force takes the point of the failover itself)."
)]
pub(crate) struct FailbackArgs {
    /// The group, of this host.
    group: Option<String>,
    /// Say what would happen, and change nothing.
    #[arg(long, conflicts_with_all = ["finish", "abort"])]
    plan: bool,
    /// Bring the disks to the last point, serve the volumes again, and take the history back.
    #[arg(long, conflicts_with = "abort")]
    finish: bool,
    /// Give it up: serve the volumes as their disks are.
    #[arg(long)]
    abort: bool,
    /// The disks that are at their places now are meant, though others were taken, or nobody can tell: all of them are compared,
    /// and overwritten where they differ.
    #[arg(long, conflicts_with_all = ["plan", "finish", "abort", "force"])]
    accept_disks: bool,
    /// Also where nothing was published since the failover; with --finish also while another host may publish more.
    #[arg(long, conflicts_with = "abort")]
    force: bool,
    /// Keep nothing of what these disks hold and no point does: it is overwritten where it differs.
    #[arg(long, conflicts_with_all = ["finish", "abort", "accept_disks"])]
    discard_branch: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// List failbacks, and cutovers, that are not over.
    #[arg(long, conflicts_with_all = ["plan", "force", "finish", "abort", "accept_disks", "discard_branch", "yes"])]
    list: bool,
}

impl FailbackArgs {
    /// To begin one.
    pub(crate) fn begin(group: String, plan: bool, yes: bool) -> Self {
        Self { group: Some(group), plan, yes, ..Self::default() }
    }
}

/// What it says at its end.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    failback: &'a FailbackStatus,
    /// Nothing of it is under way any more.
    over: bool,
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, args: FailbackArgs) -> Result<(), Failure> {
    let client = hosts.source();
    let Some(group) = args.group.filter(|_| !args.list) else { return list(global, &client).await };
    let step = match (args.finish, args.abort, args.accept_disks) {
        (true, ..) => FailbackStep::Finish,
        (_, true, _) => FailbackStep::Abort,
        (.., true) => FailbackStep::AcceptDisks,
        _ => FailbackStep::Begin,
    };
    let (force, discard_branch) = (args.force, args.discard_branch);
    let request = FailbackRequest { group, step, force, discard_branch, plan: true };
    let planned = client.failback(&request).await?;
    if args.plan {
        if global.json {
            return print::json(&planned);
        }
        return print::out(&format!("{}nothing was changed\n", plan(&planned, discard_branch)));
    }
    match step {
        FailbackStep::Begin if planned.stage == FailbackStage::Planned => {
            if !global.json {
                eprint!("{}", plan(&planned, discard_branch));
            }
            let question = match discard_branch {
                true => "Take these volumes out of service, and overwrite what was never published of them?",
                false => "Take these volumes out of service, and overwrite their disks?",
            };
            confirm::confirm(question, "nothing was changed", args.yes)?;
        }
        FailbackStep::Begin if discard_branch => {
            let question = "Keep no more of what these disks hold and no point does, and overwrite it?";
            confirm::confirm(question, "nothing was changed", args.yes)?;
        }
        FailbackStep::Finish if args.force => {
            // † Who stands in is known from the gateway alone, and it may be away.
            let other = planned.other.as_deref().unwrap_or("the host that stands in, if there is one,");
            let question = format!("{other} may have more to publish: what is in no point by then is lost to this host. Finish?");
            confirm::confirm(&question, "it follows on", args.yes)?;
        }
        FailbackStep::AcceptDisks => {
            if !global.json {
                eprint!("{}", plan(&planned, discard_branch));
            }
            confirm::confirm("Overwrite what is on these disks now?", "nothing was changed", args.yes)?;
        }
        FailbackStep::Begin | FailbackStep::Finish | FailbackStep::Abort => {}
    }
    let now = client.failback(&FailbackRequest { plan: false, ..request.clone() }).await?;
    let (last, end) = watch(global, &client, now, step).await?;
    if global.json {
        return print::json(&Done { failback: &last, over: end != End::Follows });
    }
    // What was handed over, and to nobody's failback, was not fenced.
    if end == End::Aborted && matches!(planned.stage, FailbackStage::HandingOver | FailbackStage::HandedOver) {
        return print::out(&cutover::aborted(&last.group));
    }
    print::out(&outcome(&last, end))
}

/// How what was watched ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is not over: the disks follow.
    Follows,
    /// The volumes are served and published here.
    Back,
    /// It was given up.
    Aborted,
}

/// How one ended that is not there any more. † What is said of it sends people to take down the host that stands in.
async fn ended(client: &Client, last: &FailbackStatus, step: FailbackStep) -> Result<End, Failure> {
    let group = &last.group;
    if step != FailbackStep::Abort && last.stage == FailbackStage::Aborting {
        let message = format!("the failback of group {group} was given up from elsewhere");
        return Err(Failure::new(Exit::Failed, message, "its volumes are served as their disks are, fenced: farside status"));
    }
    let status = status::source_with(client, group).await?;
    let volumes: Vec<_> = status.groups.iter().filter(|one| one.name == *group).flat_map(|one| &one.volumes).collect();
    let is_back = |member: &FailbackMember| {
        let state = volumes.iter().find(|volume| volume.name == member.volume).map(|volume| &volume.state);
        // One that was taken back a moment ago may have lost its gateway since.
        let is_returned =
            last.stage == FailbackStage::Returning && matches!(state, Some(VolumeState::Idle | VolumeState::Paused));
        is_returned || matches!(state, Some(VolumeState::Behind { .. } | VolumeState::Streaming))
    };
    let are_back = !last.members.is_empty() && last.members.iter().all(is_back);
    if step == FailbackStep::Abort {
        // What was handed over was never failed over, as far as is known here.
        let is_published = |member: &&FailbackMember| {
            let state = volumes.iter().find(|volume| volume.name == member.volume).map(|volume| &volume.state);
            matches!(state, Some(VolumeState::Behind { .. } | VolumeState::Streaming))
        };
        let published = last.members.iter().find(is_published).filter(|_| last.stage == FailbackStage::Returning);
        let Some(member) = published else { return Ok(End::Aborted) };
        let message = format!("the failback of group {group} was not given up: volume {} is published here", member.volume);
        return Err(Failure::new(Exit::Failed, message, "`farside status` says how the others are"));
    }
    if are_back {
        return Ok(End::Back);
    }
    let message = format!("the failback of group {group} is not there any more, and its volumes are not published here");
    Err(Failure::new(Exit::Failed, message, "`farside status` says how they are; remove nothing at the host that stands in"))
}

/// Until there is nothing more to wait for; how it was at last, and how it ended.
async fn watch(
    global: &Global,
    client: &Client,
    mut now: FailbackStatus,
    step: FailbackStep,
) -> Result<(FailbackStatus, End), Failure> {
    let progress = Progress::new(global.json);
    let mut said = None;
    let end = loop {
        if matches!(step, FailbackStep::Begin | FailbackStep::AcceptDisks) && now.stage == FailbackStage::Following {
            break End::Follows;
        }
        if now.why != said && !global.json {
            if let Some(why) = &now.why {
                eprintln!("waiting: {why}");
            }
            said.clone_from(&now.why);
        }
        // † Whoever finishes without a word of the gateway may never have one again.
        if step == FailbackStep::Finish && now.without_gateway {
            let message = format!("the failback of group {} is not over, and needs the gateway", now.group);
            let what = format!(
                "it goes on by itself when that is there: farside failback --list; to give it up: farside failback {} --abort",
                now.group
            );
            return Err(Failure::new(Exit::Unreachable, message, what));
        }
        if matches!(now.stage, FailbackStage::Keeping | FailbackStage::Pulling) && now.total_regions > 0 {
            progress.set_regions(now.done_regions, now.total_regions);
        }
        tokio::time::sleep(ASK_AGAIN).await;
        match client.failbacks().await?.into_iter().find(|one| one.group == now.group) {
            Some(one) => now = one,
            None => break ended(client, &now, step).await?,
        }
    };
    progress.finish();
    Ok((now, end))
}

pub(crate) async fn list(global: &Global, client: &Client) -> Result<(), Failure> {
    let all = client.failbacks().await?;
    if global.json {
        return print::json(&all);
    }
    if all.is_empty() {
        return print::out("no cutovers, no failbacks\n");
    }
    let mut table = Table::new(&["GROUP", "STAGE", "POINT", "CUT", "DONE", "RECEIVED"]);
    for one in &all {
        let [point, cut] = print::point_cells(one.point.as_ref());
        table.row([
            one.group.clone(),
            stage(one).to_owned(),
            point,
            cut,
            match one.stage {
                FailbackStage::Keeping | FailbackStage::Pulling if one.total_regions > 0 => {
                    print::percent(one.done_regions, one.total_regions)
                }
                _ => NOTHING.to_owned(),
            },
            print::bytes(one.received_bytes),
        ]);
    }
    let waiting = all.iter().filter_map(|one| Some(format!("! {}: {}\n", one.group, one.why.as_ref()?)));
    print::out(&format!("{table}{}", waiting.collect::<String>()))
}

pub(crate) fn stage(one: &FailbackStatus) -> &'static str {
    match one.stage {
        FailbackStage::Planned => "planned",
        FailbackStage::HandingOver => "handing over",
        FailbackStage::HandedOver => "handed over",
        FailbackStage::Taking => "taking",
        FailbackStage::Keeping if one.finishing => "keeping, finishing",
        FailbackStage::Keeping => "keeping",
        FailbackStage::Pulling if one.finishing => "pulling, finishing",
        FailbackStage::Pulling => "pulling",
        FailbackStage::Following if one.finishing => "finishing",
        FailbackStage::Following => "following",
        FailbackStage::Returning => "returning",
        FailbackStage::Aborting => "aborting",
    }
}

/// What would happen.
pub(crate) fn plan(planned: &FailbackStatus, discard_branch: bool) -> String {
    let group = &planned.group;
    let mut text = planned.point.as_ref().map_or_else(String::new, |point| {
        let whose = if planned.is_since {
            "published since the failover"
        } else {
            "what was failed over to: nothing that holds all its volumes was published since"
        };
        format!("{group} to point {}, cut {} ({}), {whose}\n", point.id, print::time(point.cut_wall), print::age(point.cut_wall))
    });
    for member in &planned.members {
        text.push_str(&format!(
            "{}: {} ({}) is overwritten where it differs\n",
            member.volume,
            member.backing,
            print::bytes(member.bytes)
        ));
    }
    text.push_str(&match planned.keeps {
        _ if discard_branch => "what only these disks hold is lost\n".to_owned(),
        BranchKeeps::Unknown | BranchKeeps::Discarded => "what only these disks hold, and no point does, is lost\n".to_owned(),
        BranchKeeps::Nothing => {
            "these disks are a point: what else is on them by now, and no point holds, is kept first\n".to_owned()
        }
        BranchKeeps::Wanted | BranchKeeps::Keeping | BranchKeeps::Kept => format!(
            "what only these disks hold is kept first{} (farside branch list)\n",
            planned.over.as_ref().map_or_else(String::new, |over| format!(", over point {}", over.id))
        ),
    });
    text.push_str("the volumes are not served here until --finish or --abort\n");
    if let Some(other) = &planned.other {
        text.push_str(&format!("{other} serves the copy now, and goes on until --finish\n"));
    }
    if let Some(why) = &planned.why {
        text.push_str(&format!("! {why}; without --force this is refused\n"));
    }
    text
}

fn outcome(last: &FailbackStatus, end: End) -> String {
    let group = &last.group;
    let point = |at: Option<&farside_control::source::LastPoint>| {
        at.map_or_else(|| "no one point".to_owned(), |point| format!("point {}, cut {}", point.id, print::time(point.cut_wall)))
    };
    let kept = last.branch.as_ref().map_or_else(String::new, |branch| format!("; what they held is branch {branch}"));
    let moved = format!("{} received, {} written{kept}", print::bytes(last.received_bytes), print::bytes(last.written_bytes));
    match end {
        End::Follows => {
            let who = last.other.as_deref().unwrap_or("the host that stands in");
            format!(
                "the disks of {group} are {} ({moved}), and follow\nnext: stop the applications on {who}, wait there for lag 0 (farside \
                 status), stop farsided there; then, here: farside failback {group} --finish\n",
                point(last.holds.as_ref().or(last.point.as_ref()))
            )
        }
        End::Aborted => {
            let kept = last.branch.as_ref().filter(|_| last.keeps == BranchKeeps::Kept);
            let kept = kept
                .map_or_else(String::new, |branch| format!("; what only they held before is branch {branch}, and not on them"));
            format!("aborted: the volumes of {group} are served as their disks are{kept}, fenced (farside explain fenced)\n")
        }
        End::Back => format!(
            "{group} is back, from {} ({moved}): its volumes are served and published here; all of it is compared once (farside \
             status)\nat the host that stood in: farside volume remove\n",
            point(last.holds.as_ref().or(last.point.as_ref()))
        ),
    }
}
