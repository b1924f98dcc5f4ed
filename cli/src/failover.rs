//! `farside failover`: a point of a group takes the place of a source that is gone.

use std::time::{Duration, Instant};

use clap::Args;
use farside_control::client::{ClientError, Daemon};
use farside_control::failover::{FailoverMember, FailoverRequest, FailoverStage, FailoverStatus, LeftOut};
use farside_control::follower::FollowerState;
use farside_control::routes::PointsQuery;
use farside_control::{Address, Client, ErrorCode, PointRef};
use serde::Serialize;

use crate::args::{Global, parse_cut};
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};
use crate::progress::Progress;

mod cohort;

pub(crate) use self::cohort::no_cut;

/// How often the receiver is asked how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// And while it waits for a source that may be alive.
const WAITS_AGAIN: Duration = Duration::from_millis(500);

/// `farside failover`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
It says what would be lost, and asks. Then all that the source may still publish is ended by a
record in the ledger (the source is `Fenced`, however late it wakes), the point is pinned, and
each volume that has a follower is brought to that point and let go: its target is yours. Nothing
of it needs the source, and what was begun is gone on with after a kill at any moment.

A volume without a follower is restored or opened; the commands are printed. What is written to
what was brought up is replicated nowhere until a host that has it publishes in its place:
`stand_in_for` in the [[group]] of that host's farsided.toml (and `farside reload`), then volumes
of the same names, and --stand-in HOST here. It is asked once for each volume whether its disk is
the history now: `farside volume resync NAME --accept forked` there; all of it is compared, what
differs is sent.

The way back: `farside failback GROUP` on the old host brings its disks to what was published
since; `farside rollback GROUP` there goes on with its disks as they are; `farside commit` here
says that it does not come back.

--cohort NAME brings up what was one moment on several hosts: each group its point of the newest cut
that is whole, or of --cut ID. Nobody is fenced unless all can be, as far as can be known before;
then each group has its own failover, as if it had been named, and goes on by itself. If one is not
taken after others were, no more are begun; the same command goes on with what is left, to the
same cut. --again there fails those over once more that were failed over before, and are older than
the cut. --abort with it gives up those that have fenced nobody yet, and says which have.

Just after a start of the gateway, or after its store was away, nobody is connected, alive or not:
it waits for the rest of 30 seconds then (`fence_after` in receiver.toml). A source that comes back
before it is fenced is not fenced without --force, also if it is gone again by then.

Exit code 4: refused. The source is connected, or the point is not the newest; --force.

Examples:
  farside failover web1/db --plan
  farside failover web1/db
  farside failover web1/db --point -2h --force      ransomware: to before it
  farside failover --cohort erp                     groups of several hosts, each to its point of one cut
  farside failover web1/db --stand-in web2          web2 has the disks, and publishes in its place
  farside failover web1/db --again                  web2 is gone, too: what it published is brought up
  farside failover web1/db --abort                  the store was away, and web1 is back meanwhile
  farside failover --list")]
pub(crate) struct FailoverArgs {
    /// The group.
    #[arg(required_unless_present_any = ["list", "cohort"])]
    group: Option<Address>,
    /// Every group of this cohort, each to its point of one cut: the newest that is whole, or `--cut`.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["group", "point", "stand_in", "list"])]
    cohort: Option<String>,
    /// The id of the cut, as `farside cohort cuts NAME` has it.
    #[arg(long, value_name = "ID", requires = "cohort", value_parser = parse_cut)]
    cut: Option<String>,
    /// The point: an id, `latest`, an RFC 3339 time or an age such as -5m.
    #[arg(long, default_value = "latest", allow_hyphen_values = true)]
    point: PointRef,
    /// Say what would happen and what would be lost, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Also to a point that is not the newest or not whole, and also while the source is connected.
    #[arg(long)]
    force: bool,
    /// The group, or some of the cohort, was failed over before, and what was published since is to be brought up now.
    #[arg(long)]
    again: bool,
    /// Also if points that are on the gateway cannot be published, because the store does not take them: they are lost then.
    #[arg(long)]
    lose_staged: bool,
    /// Give up a failover that has fenced nobody yet (`--list` says `fencing`); with `--cohort` those of all its groups.
    #[arg(long, conflicts_with_all = ["plan", "force", "stand_in", "again", "lose_staged", "point", "cut"])]
    abort: bool,
    /// Let this paired host publish in place of the source: the one that serves the copy from now on (`stand_in_for` in its
    /// farsided.toml). Also of a failover that was begun before.
    #[arg(long, value_name = "SOURCE")]
    stand_in: Option<String>,
    /// List failovers that are not over.
    #[arg(long, conflicts_with_all = ["group", "plan", "force", "stand_in", "again", "lose_staged", "abort"])]
    list: bool,
}

/// What it says when all is up.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    failover: &'a FailoverStatus,
    /// From the confirmation to targets that can be written.
    rto_ms: u64,
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, args: FailoverArgs) -> Result<(), Failure> {
    let client = hosts.gateway().await?;
    if client.daemon() != Daemon::Receiver {
        let message = "a failover is begun on the gateway, where the copy is";
        return Err(Failure::new(Exit::Refused, message, "run this there"));
    }
    if let Some(name) = &args.cohort {
        if args.abort {
            return cohort::abort(global, &client, name).await;
        }
        return cohort::run(global, &client, name, &args).await;
    }
    let Some(group) = args.group.filter(|_| !args.list) else { return list(global, &client).await };
    let point = match args.point {
        PointRef::Latest => None,
        wanted => {
            let query = PointsQuery { of: Some(group.to_string()), limit: None };
            Some(client.point(&wanted.to_string(), &query).await?.id.slot)
        }
    };
    if args.abort {
        let over =
            client.failover(&FailoverRequest { group: group.to_string(), abort: true, ..FailoverRequest::default() }).await?;
        if global.json {
            return print::json(&over);
        }
        return print::out(&format!("the failover of {group} was given up: nobody was fenced\n"));
    }
    let request = FailoverRequest {
        group: group.to_string(),
        point,
        force: args.force,
        stand_in: args.stand_in,
        again: args.again,
        lose_staged: args.lose_staged,
        plan: true,
        ..FailoverRequest::default()
    };
    let planned = client.failover(&request).await?;
    if args.plan {
        if global.json {
            return print::json(&planned);
        }
        return print::out(&format!("{}{}nothing was changed\n", loss(&planned), steps(&planned)));
    }
    let begun = planned.stage != FailoverStage::Planned;
    if !begun {
        if !global.json {
            eprint!("{}", loss(&planned));
        }
        let question = format!("Fence {} and bring this point up?", fences(&planned));
        confirm::confirm(&question, "nothing was changed", args.yes)?;
    }
    let since = Instant::now();
    let now = client.failover(&FailoverRequest { plan: false, ..request.clone() }).await?;
    let progress = Progress::new(global.json);
    let now = ask_until_through(&client, &request, now, (&progress, global.json)).await?;
    progress.finish();
    let rto_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    if global.json {
        print::json(&Done { failover: &now, rto_ms })?;
    } else {
        print::out(&done(&now, (!begun).then_some(rto_ms)))?;
    }
    not_through(&planned, &now).map_or(Ok(()), Err)
}

/// Asks how far one is until nothing more may come.
async fn ask_until_through(
    client: &Client,
    request: &FailoverRequest,
    mut now: FailoverStatus,
    (progress, is_quiet): (&Progress, bool),
) -> Result<FailoverStatus, Failure> {
    let (mut is_said, mut why_said) = (false, None);
    while now.stage != FailoverStage::Over && is_under_way(&now) {
        if let Some(ms) = now.waits_ms.filter(|_| !is_quiet && !std::mem::replace(&mut is_said, true)) {
            eprint!("{}", waits(&now, ms));
        }
        let why = now.why.as_ref().filter(|_| now.stage == FailoverStage::Fencing && now.waits_ms.is_none());
        if let Some(why) = why.filter(|why| !is_quiet && why_said.as_ref() != Some(*why)) {
            eprintln!("{why}");
            why_said = Some(why.clone());
        }
        tokio::time::sleep(if why.is_some() || now.waits_ms.is_some() { WAITS_AGAIN } else { ASK_AGAIN }).await;
        // † Until it is fenced the same is said again, and not only asked: a source that is alive may come back, and then nothing more comes.
        let plan = now.stage != FailoverStage::Fencing;
        let again = FailoverRequest { again: false, plan, goes_on: Some(now.generation), ..request.clone() };
        now = match client.failover(&again).await {
            Err(ClientError::Api(error)) if !plan && error.code != ErrorCode::Refused => {
                client.failover(&FailoverRequest { plan: true, ..again }).await?
            }
            answer => answer?,
        };
        // A target that was never filled takes its time.
        let (mut done, mut total) = (0, 0);
        for one in now.members.iter().filter_map(|member| member.follower.as_deref()) {
            let one = client.follower(one).await?;
            (done, total) = (done + one.done_regions, total + one.total_regions);
        }
        if total > 0 {
            progress.set_regions(done, total);
        }
    }
    Ok(now)
}

/// What it is if the point lacks a volume that the plan had, or not every follower holds it.
fn not_through(planned: &FailoverStatus, now: &FailoverStatus) -> Option<Failure> {
    let was_there = |left: &&LeftOut| !planned.left_out.iter().any(|known| known.volume == left.volume);
    if let Some(left) = now.left_out.iter().find(was_there) {
        let group = format!("{}/{}", now.source, now.group);
        let message = format!("{} is fenced, and volume {} is not in the point that was brought up", now.source, left.volume);
        let what = format!("restore that volume from an older point: farside point list {group}/{}", left.volume);
        return Some(Failure::new(Exit::Failed, message, what));
    }
    let member = now.members.iter().find(|m| m.follower.is_some() && m.state != Some(FollowerState::Promoted))?;
    let message = format!("{} is fenced, and the follower of {} does not hold the point", now.source, member.volume);
    let what = format!("see `farside follower show {}`; or restore the volume", member.follower.as_deref().unwrap_or(NOTHING));
    Some(Failure::new(Exit::Failed, message, what))
}

/// Whether something may still come.
fn is_under_way(now: &FailoverStatus) -> bool {
    let waits = |state: FollowerState| {
        !matches!(state, FollowerState::Promoted | FollowerState::Diverged | FollowerState::Failed | FollowerState::Paused)
    };
    now.stage != FailoverStage::Promoted || now.members.iter().any(|member| member.state.is_some_and(waits))
}

async fn list(global: &Global, client: &Client) -> Result<(), Failure> {
    let all = client.failovers().await?;
    if global.json {
        return print::json(&all);
    }
    if all.is_empty() {
        return print::out("no failovers\n");
    }
    let mut table = Table::new(&["GROUP", "STAGE", "GENERATION", "POINT", "CUT"]);
    for one in &all {
        let [point, cut] = print::point_cells(one.point.as_ref());
        table.row([
            format!("{}/{}", one.source, one.group),
            if one.committed { "committed".to_owned() } else { stage(one.stage).to_owned() },
            one.generation.to_string(),
            point,
            cut,
        ]);
    }
    let members: String = all.iter().map(|one| format!("\n{}", steps(one))).collect();
    print::out(&format!("{table}{members}"))
}

pub(crate) fn stage(stage: FailoverStage) -> &'static str {
    match stage {
        FailoverStage::Planned => "planned",
        FailoverStage::Fencing => "fencing",
        FailoverStage::Fenced => "fenced",
        FailoverStage::Promoted => "promoted",
        FailoverStage::Over => "over",
    }
}

/// What is lost.
fn loss(planned: &FailoverStatus) -> String {
    let group = format!("{}/{}", planned.source, planned.group);
    let Some(point) = &planned.point else { return format!("{group} has no point\n") };
    let mut text =
        format!("{group} to point {}, cut {} ({})\n", point.id, print::time(point.cut_wall), print::age(point.cut_wall));
    text.push_str(&degraded(planned));
    let is_newest = planned.newest.as_ref() == Some(point);
    text.push_str(&match planned.lag_ms.filter(|_| is_newest) {
        _ if planned.all_published && planned.damaged.is_none() => {
            format!("{} had published all when it stopped: nothing is lost, unless it served again since\n", fences(planned))
        }
        Some(ms) => format!("what was written in the last {} may be lost to the copy\n", print::duration_ms(ms)),
        None => "what was written after that is lost to the copy\n".to_owned(),
    });
    match (&planned.connected_from, planned.silent_ms) {
        (Some(from), _) => text.push_str(&format!(
            "! {} is connected, from {from}: without --force this is refused while it is (a planned move: farside cutover, on that host)\n",
            fences(planned)
        )),
        (None, Some(ms)) => text.push_str(&format!("{} has been silent for {}\n", fences(planned), print::duration_ms(ms))),
        (None, None) => text.push_str(&format!("{} was not heard of since the receiver started\n", fences(planned))),
    }
    if let Some(ms) = planned.waits_ms {
        text.push_str(&waits(planned, ms));
    }
    if let Some(newest) = planned.newest.as_ref().filter(|newest| *newest != point) {
        text.push_str(&format!("! not the newest: that is {}, cut {}\n", newest.id, print::time(newest.cut_wall)));
    }
    if planned.aside {
        text.push_str("! an earlier failover left that point aside, and was to an older one: without --force this is refused\n");
    }
    text.push_str(&left_out(planned));
    text.push_str(&doubts(planned));
    text
}

/// Who is fenced by it: after a failover that is the host that stands in. (An older receiver does not say.)
fn fences(one: &FailoverStatus) -> &str {
    one.fences.as_deref().unwrap_or(&one.source)
}

/// Which targets nobody can be sure of.
fn doubts(one: &FailoverStatus) -> String {
    let line = |member: &FailoverMember| {
        format!(
            "! {} is in doubt: an apply of follower {} was cut short, and what it holds was not compared since (farside explain follower_in_doubt)\n",
            member.target.as_ref().map_or_else(|| member.volume.clone(), |target| target.display().to_string()),
            member.follower.as_deref().unwrap_or(NOTHING)
        )
    };
    one.members.iter().filter(|member| member.in_doubt).map(line).collect()
}

/// Which volumes its point does not have.
fn left_out(one: &FailoverStatus) -> String {
    let line = |left: &LeftOut| {
        let newest = left.newest.as_ref().map_or_else(
            || "no point holds it".to_owned(),
            |point| format!("its own newest is {}, cut {}", point.id, print::time(point.cut_wall)),
        );
        format!("! volume {} is not in it: {newest}\n", left.volume)
    };
    one.left_out.iter().map(line).collect()
}

/// That its point is not whole, if it is not, or may not be.
fn degraded(one: &FailoverStatus) -> String {
    let mut text = String::new();
    if let Some(why) = &one.damaged {
        text.push_str(&format!("! that point may have what was found damaged: {why}\n"));
    }
    if one.degraded {
        let what = "could not read all of that point: what is missing cannot be read of the copy (--allow-degraded)";
        text.push_str(&format!("! {} {what}\n", one.source));
    }
    text
}

/// How long it takes before anything is fenced, and why.
fn waits(one: &FailoverStatus, ms: u64) -> String {
    format!(
        "! {0} may be alive: the gateway opened its group, or ended its connections, a moment ago. It is fenced in {1}, by itself, unless it comes back; \
         --force fences it at once\n",
        fences(one),
        print::duration_ms(ms)
    )
}

/// What becomes of each volume.
fn steps(one: &FailoverStatus) -> String {
    let mut text = one.stand_in.as_ref().map_or_else(String::new, |host| {
        format!(
            "{}/{}: {host} may publish in its place (stand_in_for = \"{}\" in its [[group]])\n",
            one.source, one.group, one.source
        )
    });
    if let Some(why) = &one.why {
        text.push_str(&format!("! {}/{}: not all can be told now: {why}\n", one.source, one.group));
    }
    for member in &one.members {
        let volume = format!("{}/{}/{}", one.source, one.group, member.volume);
        let point = one.point.as_ref().map_or_else(|| "latest".to_owned(), |point| point.id.to_string());
        text.push_str(&match (&member.target, &member.follower, member.state) {
            (Some(target), Some(_), Some(FollowerState::Promoted)) => format!("{volume}: {} is yours\n", target.display()),
            (Some(target), Some(follower), state) => {
                let state_word = state.map_or(NOTHING, FollowerState::word);
                let line = format!("{volume}: {} by follower {follower} ({state_word})\n", target.display());
                match state.and_then(|state| held_up(state, follower)) {
                    Some(way_out) => format!("{line}    {way_out}\n    without it, {}", without_follower(&volume, &point)),
                    None => line,
                }
            }
            _ => format!("{volume}: no follower; {}", without_follower(&volume, &point)),
        });
    }
    text
}

/// How a point is had where no target is brought up.
fn without_follower(volume: &str, point: &str) -> String {
    format!(
        "at once: farside point open {volume} {point} --writable --device\n    or in full: farside restore {volume} --point {point} --to TARGET\n"
    )
}

/// What a person does about a target that is not brought up by itself.
fn held_up(state: FollowerState, follower: &str) -> Option<String> {
    match state {
        FollowerState::Diverged => Some(format!(
            "somebody else wrote to it, and it is left alone: if that is worth nothing, farside follower heal {follower} brings it up, and overwrites what \
             differs (farside follower show {follower}; farside explain follower_diverged)"
        )),
        FollowerState::Failed => {
            Some(format!("farside follower show {follower} says why: it is brought up by itself when that is mended"))
        }
        FollowerState::Paused => Some(format!("it is paused: farside follower resume {follower} has it brought up")),
        _ => None,
    }
}

fn done(now: &FailoverStatus, rto_ms: Option<u64>) -> String {
    let group = format!("{}/{}", now.source, now.group);
    let point = now.point.as_ref().map_or_else(|| NOTHING.to_owned(), |point| point.id.to_string());
    format!(
        "{group} was failed over to point {point}; {} is fenced (generation {})\n{}{}{}{}{}\n{}the way back, on {}: farside failback {}; or, with \
         its disks as they are: farside rollback {}; if it is not to come back: farside commit {group}\n",
        now.source,
        now.generation,
        degraded(now),
        left_out(now),
        doubts(now),
        steps(now),
        rto_ms.map_or_else(String::new, |ms| format!("RTO {}\n", print::duration_ms(ms))),
        match &now.stand_in {
            Some(_) => String::new(),
            None => format!(
                "what is written there is replicated nowhere until its host stands in: farside failover {group} --stand-in HOST (see \
                 --help)\n"
            ),
        },
        now.source,
        now.group,
        now.group
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_brought_up_comes_with_what_to_do_and_with_what_does_without_it() {
        let member = |state| FailoverMember {
            volume: "data".to_owned(),
            follower: Some("web1-data".to_owned()),
            target: Some("/srv/data.img".into()),
            state: Some(state),
            ..FailoverMember::default()
        };
        let said = |state| {
            let one = FailoverStatus {
                source: "web1".into(),
                group: "db".into(),
                members: vec![member(state)],
                ..FailoverStatus::default()
            };
            steps(&one)
        };
        let diverged = said(FollowerState::Diverged);
        assert!(
            diverged.contains("farside follower heal web1-data") && diverged.contains("explain follower_diverged"),
            "{diverged}"
        );
        assert!(diverged.contains("farside restore web1/db/data --point latest --to TARGET"), "{diverged}");
        assert!(said(FollowerState::Paused).contains("farside follower resume web1-data"));
        assert!(said(FollowerState::Failed).contains("farside follower show web1-data"));
        assert_eq!(said(FollowerState::Promoted), "web1/db/data: /srv/data.img is yours\n");
    }

    #[test]
    fn a_target_in_doubt_is_named_before_it_is_promoted_and_after() {
        let member = |volume: &str, in_doubt| FailoverMember {
            volume: volume.to_owned(),
            follower: Some(format!("web1-{volume}")),
            target: Some(format!("/srv/{volume}.img").into()),
            state: Some(FollowerState::Promoted),
            in_doubt,
            ..FailoverMember::default()
        };
        let point = serde_json::from_value(serde_json::json!({"id": "7-00000000", "cut_wall": "2026-01-01T00:00:00Z"}));
        let one = FailoverStatus {
            source: "web1".to_owned(),
            group: "db".to_owned(),
            point: Some(point.expect("a point")),
            members: vec![member("data", true), member("log", false)],
            ..FailoverStatus::default()
        };
        for said in [loss(&one), done(&one, None)] {
            assert!(said.contains("! /srv/data.img is in doubt: an apply of follower web1-data"), "{said}");
            assert!(!said.contains("log.img is in doubt"), "{said}");
        }
    }
}
