//! `farside job list`: everything long that is under way on this machine, who does it, how far it is, and what ends it.
//!
//! Jobs have no store of their own: each is kept by whoever does it, and this asks them all.

use clap::Subcommand;
use farside_control::client::Daemon;
use farside_control::failback::FailbackStage;
use farside_control::failover::FailoverStage;
use farside_control::follower::FollowerState;
use farside_control::source::{VerifyOutcome, VolumeState};
use farside_control::{Client, ClientError, ErrorCode, VerificationState};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};
use crate::{drill, failback, failover, opened};

/// `farside job …`
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List everything long that is under way on this machine, and what ends it.
    ///
    /// Asks farsided, farside-receiver, and this user's drills and open points. Whatever was begun is gone on with by who does it, also
    /// after a kill; what a dead process left is removed by the next one of its kind.
    #[command(after_long_help = "Examples:\n  farside job list\n  farside job list --json | jq '.[] | select(.why != null)'")]
    List,
}

/// Something long that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Job {
    /// What it is: `failback`, `first sync`, `drill`, …
    job: String,
    /// Of what.
    of: String,
    /// Who does it: a daemon, or a process.
    owner: String,
    /// How far.
    stage: String,
    /// How much of it is done, from 0 to 1, where that is known.
    done: Option<f64>,
    /// When it ends by itself at the latest, where that is so.
    deadline: Option<Timestamp>,
    /// Why it does not go on.
    why: Option<String>,
    /// The command that ends it; `None`: it ends when it is done.
    ended_by: Option<String>,
}

fn share(done: u64, total: u64) -> Option<f64> {
    (total > 0).then(|| done.min(total) as f64 / total as f64)
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, command: JobCommand) -> Result<(), Failure> {
    let JobCommand::List = command;
    let daemons = hosts.all().await?;
    let mut jobs = Vec::new();
    for client in &daemons {
        let asked = match client.daemon() {
            Daemon::Source => of_source(client, &mut jobs).await,
            Daemon::Receiver => of_receiver(client, &mut jobs).await,
        };
        match asked {
            // The other one may have something to say.
            Err(error) if daemons.len() > 1 && error.exit == Exit::Unreachable => eprintln!("farside: {}", error.message),
            asked => asked?,
        }
    }
    let (drills, looked) = drill::found();
    if let Err(failure) = looked {
        eprintln!("farside: {}", failure.message); // the others are said all the same
    }
    jobs.extend(drills.into_iter().map(|found| {
        let is_over = found.is_interrupted;
        let drill = found.drill.as_ref();
        Job {
            job: "drill".to_owned(),
            of: drill.map_or_else(|| NOTHING.to_owned(), |drill| drill.group.clone()),
            owner: drill.map_or_else(|| NOTHING.to_owned(), |drill| format!("process {}", drill.pid)),
            stage: match drill {
                _ if is_over => "interrupted".to_owned(),
                None => NOTHING.to_owned(),
                Some(drill) => format!("{:?}", drill.stage).to_lowercase(),
            },
            deadline: drill.map(|drill| drill.expires),
            ended_by: Some(drill::ended_by(&found.id, found.place())),
            why: found.unread,
            ..Job::default()
        }
    }));
    jobs.extend(opened::found().into_iter().map(|opened| Job {
        job: if opened.hydrate.is_some() { "hydrate" } else { "open point" }.to_owned(),
        of: format!("{}@{}", opened.volume, opened.point.id),
        owner: format!("process {}", opened.pid),
        stage: if opened.writable { "to be written" } else { "read-only" }.to_owned(),
        done: opened.hydrate.as_ref().and_then(|_| share(opened.written_bytes, opened.volume_bytes)),
        ended_by: Some(format!("farside point close {}", opened.export.trim_start_matches("nbd:"))),
        ..Job::default()
    }));
    if global.json {
        return print::json(&jobs);
    }
    if jobs.is_empty() {
        return print::out("no jobs\n");
    }
    print::out(&said(&jobs))
}

async fn of_source(client: &Client, jobs: &mut Vec<Job>) -> Result<(), Failure> {
    let owner = client.daemon().program().to_owned();
    for one in client.failbacks().await? {
        let is_cutover = matches!(one.stage, FailbackStage::HandingOver | FailbackStage::HandedOver);
        let verb = if is_cutover { "cutover" } else { "failback" };
        jobs.push(Job {
            job: verb.to_owned(),
            of: one.group.clone(),
            owner: owner.clone(),
            stage: failback::stage(&one).to_owned(),
            done: matches!(one.stage, FailbackStage::Keeping | FailbackStage::Pulling)
                .then(|| share(one.done_regions, one.total_regions))
                .flatten(),
            ended_by: (one.stage != FailbackStage::Aborting).then(|| format!("farside {verb} {} --abort", one.group)),
            why: one.why,
            deadline: None,
        });
    }
    for volume in client.volumes().await? {
        if let VolumeState::Behind { what, progress } = &volume.state {
            jobs.push(Job {
                job: what.words().to_owned(),
                of: format!("{}/{}", volume.group, volume.name),
                owner: owner.clone(),
                stage: volume.state.word().to_owned(),
                done: share(progress.done_bytes, progress.total_bytes),
                ended_by: Some(format!("farside volume pause {}", volume.name)),
                ..Job::default()
            });
        }
        if let Some(verify) = volume.verify.filter(|verify| verify.outcome == VerifyOutcome::Running) {
            jobs.push(Job {
                job: "verify".to_owned(),
                of: format!("{}/{}", volume.group, volume.name),
                owner: owner.clone(),
                stage: "comparing".to_owned(),
                done: share(verify.done_bytes, verify.total_bytes),
                ..Job::default()
            });
        }
    }
    Ok(())
}

async fn of_receiver(client: &Client, jobs: &mut Vec<Job>) -> Result<(), Failure> {
    let owner = client.daemon().program().to_owned();
    // One that is for good is no job any more.
    for one in client.failovers().await?.into_iter().filter(|one| !one.committed) {
        let group = format!("{}/{}", one.source, one.group);
        let ended_by = match one.stage {
            FailoverStage::Planned | FailoverStage::Fencing => Some(format!("farside failover {group} --abort")),
            FailoverStage::Promoted => {
                Some(format!("on {}: farside failback {} (or rollback); or farside commit {group}", one.source, one.group))
            }
            FailoverStage::Fenced | FailoverStage::Over => None,
        };
        jobs.push(Job {
            job: "failover".to_owned(),
            of: group,
            owner: owner.clone(),
            stage: failover::stage(one.stage).to_owned(),
            why: one.why,
            ended_by,
            ..Job::default()
        });
    }
    let works = |state| matches!(state, FollowerState::Filling | FollowerState::Applying | FollowerState::Verifying);
    for one in client.followers().await?.into_iter().filter(|one| works(one.state)) {
        jobs.push(Job {
            job: "follower".to_owned(),
            of: one.name.clone(),
            owner: owner.clone(),
            stage: one.state.word().to_owned(),
            done: share(one.done_regions, one.total_regions),
            ended_by: Some(format!("farside follower pause {}", one.name)),
            ..Job::default()
        });
    }
    match client.verification().await {
        Ok(one) if one.state == VerificationState::Running => jobs.push(Job {
            job: "point verify".to_owned(),
            of: one.point.id.to_string(),
            owner,
            stage: "reading".to_owned(),
            done: share(one.done_bytes, one.total_bytes),
            ..Job::default()
        }),
        Ok(_) => {}
        // There was none yet.
        Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn said(jobs: &[Job]) -> String {
    let mut table = Table::new(&["JOB", "OF", "BY", "STAGE", "DONE", "UNTIL", "ENDED BY"]);
    for job in jobs {
        table.row([
            job.job.clone(),
            job.of.clone(),
            job.owner.clone(),
            job.stage.clone(),
            job.done.map_or_else(|| NOTHING.to_owned(), |done| format!("{:.0} %", (100.0 * done).floor())),
            job.deadline.map_or_else(|| NOTHING.to_owned(), print::time),
            job.ended_by.clone().unwrap_or_else(|| NOTHING.to_owned()),
        ]);
    }
    let waiting = jobs.iter().filter_map(|job| Some(format!("! {} of {}: {}\n", job.job, job.of, job.why.as_ref()?)));
    format!("{table}{}", waiting.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_listed_with_what_ends_them_and_why_they_wait() {
        let failback = Job {
            job: "failback".to_owned(),
            of: "db".to_owned(),
            owner: "farsided".to_owned(),
            stage: "keeping".to_owned(),
            done: share(3, 4),
            why: Some("no room".to_owned()),
            ended_by: Some("farside failback db --abort".to_owned()),
            deadline: None,
        };
        let verify = Job { job: "verify".to_owned(), of: "db/data".to_owned(), ..Job::default() };
        let text = said(&[failback, verify]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("75 %") && lines[1].contains("farside failback db --abort"), "{text}");
        assert!(lines[2].contains("verify") && lines[3] == "! failback of db: no room", "{text}");
        assert_eq!((share(1, 0), share(9, 4)), (None, Some(1.0)));
    }
}
