//! `farside commit` and `farside rollback`: a failover is for good, or its source goes on with its own disks.

use clap::Args;
use farside_control::client::Daemon;
use farside_control::failover::FailoverRequest;
use farside_control::source::{Accept, ResyncRequest, VolumeState, VolumeStatus};
use farside_control::{Address, Client};
use serde::Serialize;

use crate::args::Global;
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print;

/// `farside commit`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
On the gateway, after a failover whose source is not to come back: the host that stands in has the
group for good. The failover is no warning any more, its point is kept no longer than policy says,
and the old source is refused, by name, until that is taken back with --undo. The group keeps its
name, and its points go on in one line.

Exit code 4: refused. Nobody stands in, or has published anything yet; --force.

Examples:
  farside commit web1/db --plan
  farside commit web1/db
  farside commit web1/db --undo     the old source may come back: failback, or rollback, there")]
pub(crate) struct CommitArgs {
    /// The group.
    group: Address,
    /// Take it back: the old source may come back again.
    #[arg(long)]
    undo: bool,
    /// Also where nobody publishes in place of the source.
    #[arg(long, conflicts_with = "undo")]
    force: bool,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn commit(global: &Global, hosts: &Hosts, args: CommitArgs) -> Result<(), Failure> {
    let client = hosts.gateway().await?;
    if client.daemon() != Daemon::Receiver {
        let message = "a failover is committed on the gateway, where it was begun";
        return Err(Failure::new(
            Exit::Refused,
            message,
            "run this there; on the old host: farside rollback, or farside failback",
        ));
    }
    let request = FailoverRequest {
        group: args.group.to_string(),
        commit: Some(!args.undo),
        force: args.force,
        plan: true,
        ..FailoverRequest::default()
    };
    let planned = client.failover(&request).await?;
    let (group, source) = (format!("{}/{}", planned.source, planned.group), &planned.source);
    let winner = planned.stand_in.as_deref().unwrap_or("nobody");
    let text = match args.undo {
        true => format!("{source} may take {group} back, or be brought back to it; {winner} publishes until then\n"),
        false => format!(
            "{winner} has {group} for good (generation {}); {source} is refused from then on, and what only its disks hold is in no point\n\
             what is kept of its points is what {winner} says from then on, where it says anything (keep, span and grid of its [[group]])\n",
            planned.generation
        ),
    };
    if args.plan {
        return match global.json {
            true => print::json(&planned),
            false => print::out(&format!("{text}nothing was changed\n")),
        };
    }
    if !args.undo {
        if !global.json {
            eprint!("{text}");
        }
        confirm::confirm("Keep it so?", "nothing was changed", args.yes)?;
    }
    let now = client.failover(&FailoverRequest { plan: false, ..request }).await?;
    if global.json {
        return print::json(&now);
    }
    print::out(&match args.undo {
        true => format!("{source} may come back: farside failback {0}, or farside rollback {0}, there\n", now.group),
        false => format!("committed: {winner} has {group}; on {source}: farside volume remove\n"),
    })
}

/// `farside rollback`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
On the old host, whose volumes are `Fenced`: it takes the history back and goes on with its disks
as they are. Whoever stood in is fenced. All of each volume is compared by digest, and only what
differs is sent. Volumes that were taken back before stay as they are, so the same command goes on
after a kill.

What was written to the copy is not taken over. What of it was published stays in the store as
long as policy says; to keep its last point, first, on the gateway:

  farside point pin latest --of SOURCE/GROUP

To have it on these disks instead: farside failback.

Exit code 4: refused. A volume is neither `Fenced` nor replicated, a failback of the group is not
over, or the gateway was told that the failover is for good.

Examples:
  farside rollback db --plan
  farside rollback db")]
pub(crate) struct RollbackArgs {
    /// The group, of this host.
    group: String,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// What `rollback` did, or would.
#[derive(Serialize)]
struct RolledBack<'a> {
    group: &'a str,
    /// Volumes that take the history back.
    volumes: Vec<&'a str>,
    /// Nothing was changed.
    planned: bool,
}

pub(crate) async fn rollback(global: &Global, hosts: &Hosts, args: RollbackArgs) -> Result<(), Failure> {
    let client = hosts.source();
    let all = volumes_of(&client, &args.group).await?;
    let is_back = |volume: &&VolumeStatus| {
        matches!(volume.state, VolumeState::Behind { .. } | VolumeState::Streaming | VolumeState::Paused | VolumeState::Idle)
    };
    let fenced: Vec<&VolumeStatus> = all.iter().filter(|volume| volume.state == VolumeState::Fenced).collect();
    if let Some(other) = all.iter().find(|volume| volume.state != VolumeState::Fenced && !is_back(volume)) {
        let message = format!("volume {} is {}, neither Fenced nor replicated", other.name, other.state.word());
        return Err(Failure::new(
            Exit::Refused,
            message,
            "`farside status` says what it waits for; a failback is ended by --abort",
        ));
    }
    if fenced.is_empty() {
        let message = format!("no volume of group {} is Fenced: it was not failed over, as far as this host knows", args.group);
        return Err(Failure::new(Exit::Refused, message, "nothing is to be rolled back; `farside volume list` shows the states"));
    }
    // The gateway's words are all that this host has of it; of other groups it may say the same.
    let status = client.source_status().await?;
    let this = status.groups.iter().find(|group| group.name == args.group);
    if serde_json::to_string(&this).is_ok_and(|group| group.contains("for good (farside commit)")) {
        let message = format!("group {} was failed over for good: the gateway refuses this host", args.group);
        return Err(Failure::new(Exit::Refused, message, "on the gateway: farside commit SOURCE/GROUP --undo"));
    }
    let names: Vec<&str> = fenced.iter().map(|volume| volume.name.as_str()).collect();
    let said = RolledBack { group: &args.group, volumes: names.clone(), planned: args.plan };
    let text: String = names.iter().map(|name| format!("{name}: goes on with its disk as it is\n")).collect();
    let text = format!("{text}what was written to the copy since the failover is not taken over; whoever stands in is fenced\n");
    if args.plan {
        return if global.json { print::json(&said) } else { print::out(&format!("{text}nothing was changed\n")) };
    }
    if !global.json {
        eprint!("{text}");
    }
    confirm::confirm("Take the history back?", "nothing was changed", args.yes)?;
    for (done, name) in names.iter().enumerate() {
        if let Err(error) = client.volume_resync(name, &ResyncRequest { accept: Some(Accept::Fenced) }).await {
            let failure = Failure::from(error);
            let message =
                format!("volume {name}: {}; {done} of {} volumes take the history back by now", failure.message, names.len());
            let what = format!(
                "whoever stands in publishes no more once one does: mend that, and say farside rollback {} again",
                args.group
            );
            return Err(Failure::new(failure.exit, message, what));
        }
    }
    if global.json {
        return print::json(&said);
    }
    print::out(&format!(
        "group {} takes its history back, and is compared in full (farside status)\nat the host that stood in: farside volume remove\n",
        args.group
    ))
}

async fn volumes_of(client: &Client, group: &str) -> Result<Vec<VolumeStatus>, Failure> {
    let mut all = client.volumes().await?;
    all.retain(|volume| volume.group == group);
    if all.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("there is no group {group} here"),
            "`farside status` shows the groups of this host",
        ));
    }
    Ok(all)
}
