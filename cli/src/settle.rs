//! `farside commit` and `farside rollback`: a failover is for good, or its source goes on with its own disks.

use std::time::Duration;

use clap::Args;
use farside_control::Address;
use farside_control::client::Daemon;
use farside_control::failover::FailoverRequest;
use farside_control::rollback::{RollbackKeeps, RollbackRequest, RollbackStatus};

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

What was written to the copy is discarded. What of it was published is shown by --plan, and its
newest whole point is pinned on the gateway before any volume takes its history back:

  farside point open SOURCE/VOLUME POINT          on the gateway: look into it
  farside point unpin POINT --of SOURCE/GROUP     when it is needed no more

What was not published is on the disks of the host that stood in, and nowhere else.

To have it on these disks instead: farside failback.

Exit code 4: refused. A volume is neither `Fenced` nor replicated, a failback of the group is not
over, the gateway was told that the failover is for good, or it cannot be asked what is discarded,
or cannot pin it (--force goes on without).

Examples:
  farside rollback db --plan
  farside rollback db
  farside rollback db --force      the gateway is lost, or cannot pin: what it has of the copy goes
                                   as policy says")]
pub(crate) struct RollbackArgs {
    /// The group, of this host.
    pub(crate) group: String,
    /// Also where the gateway cannot say what is discarded, or cannot pin it.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// A gateway whose store is slow pins within that, and volumes are asked after it.
pub(crate) const PINNED_WITHIN: Duration = Duration::from_secs(90);

pub(crate) async fn rollback(global: &Global, hosts: &Hosts, args: RollbackArgs) -> Result<(), Failure> {
    let client = hosts.source().with_timeout(PINNED_WITHIN);
    let request = RollbackRequest { group: args.group, force: args.force, plan: true };
    let planned = client.rollback(&request).await?;
    if args.plan {
        return match global.json {
            true => print::json(&planned),
            false => print::out(&format!("{}nothing was changed\n", plan(&planned))),
        };
    }
    if !global.json {
        eprint!("{}", plan(&planned));
    }
    confirm::confirm("Take the history back?", "nothing was changed", args.yes)?;
    let now = client.rollback(&RollbackRequest { plan: false, ..request }).await?;
    if global.json {
        return print::json(&now);
    }
    print::out(&format!(
        "{}group {} takes its history back, and is compared in full (farside status)\nat the host that stood in: farside volume remove\n",
        kept(&now),
        now.group
    ))
}

/// What would happen.
pub(crate) fn plan(planned: &RollbackStatus) -> String {
    let mut text: String = planned.volumes.iter().map(|name| format!("{name}: goes on with its disk as it is\n")).collect();
    let other = planned.other.as_deref().unwrap_or("whoever stands in");
    let published = match planned.points {
        1 => "1 point".to_owned(),
        points => format!("{points} points"),
    };
    text.push_str(&match (planned.keeps, &planned.point) {
        (RollbackKeeps::Unknown, _) => {
            let why = planned.why.as_deref().unwrap_or("the gateway does not say");
            format!("discarded: what was published since the failover, unseen and unpinned: {why}\n")
        }
        (RollbackKeeps::Nothing, _) | (_, None) if planned.points == 0 => {
            "nothing was published since the failover: no point is discarded\n".to_owned()
        }
        (RollbackKeeps::Nothing, _) | (_, None) => {
            format!("discarded: {published} that {other} published since the failover; none is whole, and none is pinned\n")
        }
        (keeps, Some(point)) => {
            let pinned = if keeps == RollbackKeeps::Pinned { "is pinned" } else { "is pinned first" };
            let (at, age, ways) = (print::time(point.cut_wall), print::age(point.cut_wall), ways(planned, &point.id.to_string()));
            format!(
                "discarded: {published} that {other} published since the failover; the newest whole one is {}, cut {at} ({age}), and {pinned} on \
                 the gateway:\n{ways}",
                point.id
            )
        }
    });
    if let Some(newest) = planned.newest {
        text.push_str(&format!(
            "point {newest} is newer: its source could not read all of it, it lacks a volume, or a failover left it aside; it goes as policy says \
             (farside point show {newest} --of {}/{}, on the gateway)\n",
            planned.source, planned.group
        ));
    }
    if planned.other_connected {
        text.push_str(&format!(
            "{other} is connected: what it publishes until it is fenced is discarded, too; the pin goes with the last point of it\n"
        ));
    }
    text.push_str(&format!(
        "what {other} has not published is on its disks only, and nobody knows here how much that is; it is fenced then\n"
    ));
    text
}

/// What is pinned by now.
fn kept(now: &RollbackStatus) -> String {
    match (now.keeps, &now.point) {
        (RollbackKeeps::Pinned, Some(point)) => {
            format!("point {} is pinned on the gateway\n{}", point.id, ways(now, &point.id.to_string()))
        }
        (RollbackKeeps::Unknown, _) => {
            "what was published since the failover is not pinned, and goes as policy says\n".to_owned()
        }
        _ => String::new(),
    }
}

/// What to do with that point.
fn ways(of: &RollbackStatus, point: &str) -> String {
    let (source, group) = (&of.source, &of.group);
    let open = of.volumes.iter().map(|volume| format!("  farside point open {source}/{group}/{volume} {point}\n"));
    format!("{}  farside point unpin {point} --of {source}/{group}      when it is needed no more\n", open.collect::<String>())
}

#[cfg(test)]
mod tests {
    use farside_control::PointId;
    use farside_control::source::LastPoint;

    use super::*;

    fn status(keeps: RollbackKeeps) -> RollbackStatus {
        let is_there = matches!(keeps, RollbackKeeps::Wanted | RollbackKeeps::Pinned);
        let point = LastPoint { id: PointId::new(45, &[0xab; 32]), cut_wall: jiff::Timestamp::UNIX_EPOCH };
        RollbackStatus {
            group: "db".into(),
            source: "web1".into(),
            volumes: vec!["data".into()],
            keeps,
            point: Some(point).filter(|_| is_there),
            points: if is_there { 12 } else { 0 },
            other: Some("web2".into()),
            ..RollbackStatus::default()
        }
    }

    #[test]
    fn a_plan_says_what_is_discarded_and_how_it_is_read_and_let_go_of() {
        let wanted = plan(&status(RollbackKeeps::Wanted));
        let point = PointId::new(45, &[0xab; 32]).to_string();
        for words in [
            "data: goes on with its disk as it is",
            "discarded: 12 points that web2 published since the failover",
            "is pinned first on the gateway",
            &format!("farside point open web1/db/data {point}"),
            &format!("farside point unpin {point} --of web1/db"),
            "what web2 has not published is on its disks only",
        ] {
            assert!(wanted.contains(words), "{words}: {wanted}");
        }
        let nothing = plan(&status(RollbackKeeps::Nothing));
        assert!(nothing.contains("nothing was published since the failover") && !nothing.contains("pinned"), "{nothing}");
        let newer = plan(&RollbackStatus { newest: Some(46), other_connected: true, ..status(RollbackKeeps::Pinned) });
        assert!(newer.contains("point 46 is newer") && newer.contains("web2 is connected"), "{newer}");
        let unknown = plan(&RollbackStatus { why: Some("it is away".into()), other: None, ..status(RollbackKeeps::Unknown) });
        assert!(
            unknown.contains("unseen and unpinned: it is away") && unknown.contains("what whoever stands in has not published"),
            "{unknown}"
        );
        assert!(kept(&status(RollbackKeeps::Unknown)).contains("not pinned"));
        assert!(kept(&status(RollbackKeeps::Pinned)).contains("is pinned on the gateway"));
    }
}
