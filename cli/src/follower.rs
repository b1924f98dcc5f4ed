//! `farside follower …`: files and devices of the gateway that are kept equal to points.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use farside_control::client::Daemon;
use farside_control::follower::{FollowerAdd, FollowerState, FollowerStatus, Follows, LockRule};
use farside_control::routes::{self, PointsQuery};
use farside_control::{Address, Client, PointRef};

use crate::args::Global;
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, Look, NOTHING, Table};

/// How often the receiver is asked how far something is.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// `farside follower …`
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
A follower is a file or a block device of the gateway that the receiver keeps equal to one
volume: to its newest point, to the newest that is old enough, or to one point. It is written
in place, and only where it differs. Until it holds a point it says so; a power cut or a kill
costs the way to that point and nothing else.

Examples:
  farside follower add web1/data /srv/standby/data.img
  farside follower add web1/data /dev/vg/data-1h --delay 1h
  farside follower list
  farside follower verify web1-data")]
pub(crate) enum FollowerCommand {
    /// Keep a file or a block device equal to a volume's points.
    ///
    /// The first time all of the point is written; the beginning of the target comes last, so that it does not look whole before it is. Afterwards
    /// only what changed between two points is written. The target is the receiver's alone as long as the follower runs.
    #[command(after_long_help = "\
The path is one of the gateway's, and farside-receiver must be allowed to write there. Its
service sees no block devices unless it is told to: docs/operate.md says how.

Examples:
  farside follower add web1/data /srv/standby/data.img
  farside follower add web1/db/data /dev/vg/data --name data-standby --overwrite
  farside follower add web1/data /srv/standby/monday.img --point 42-9f3c2a1b
  farside follower add web1/data /srv/standby/data.img --lock reflink --lock-every 1h --locked 24")]
    Add {
        /// The volume.
        volume: Address,
        /// A file or a block device. A file that is not there is made.
        target: PathBuf,
        /// What to call it [default: SOURCE-VOLUME].
        #[arg(long)]
        name: Option<String>,
        /// Stay so long behind: what happens to the volume reaches the target only then. It goes by the age clock of the points, which stands
        /// still while none are published: a source that is gone does not catch up with itself.
        #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_duration, conflicts_with = "point")]
        delay: Option<Duration>,
        /// Hold this point and no other: an id, `latest`, an RFC 3339 time or an age such as -5m.
        #[arg(long, allow_hyphen_values = true)]
        point: Option<PointRef>,
        /// What the target holds may be lost. What of it is right already stays and is not written again.
        #[arg(long)]
        overwrite: bool,
        /// Lock what the target holds before it goes on: `reflink` keeps a copy beside it that shares its blocks, TARGET@POINT (a file on XFS or
        /// Btrfs); any other name is that of a `[[lock]]` in the gateway's receiver.toml, a program that has a volume manager make a snapshot.
        #[arg(long, value_name = "BY")]
        lock: Option<String>,
        /// Keep so many locked points; then the oldest goes.
        #[arg(long, value_name = "N", default_value_t = 24, requires = "lock")]
        locked: u32,
        /// Lock a point at most so often. Unless it is said: each point that the target comes to.
        #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_duration, requires = "lock")]
        lock_every: Option<Duration>,
        /// While a lock fails, stay where the target is. Without it the target goes on, and `follower show` says that the lock fails.
        #[arg(long, requires = "lock")]
        lock_strict: bool,
    },
    /// List followers: what each holds, and what it does.
    List,
    /// Show one follower.
    Show {
        /// As `follower list` names it.
        name: String,
    },
    /// Close a follower's target and leave it alone, so that it can be looked at.
    ///
    /// Look without writing (`mount -o ro,noload`, `losetup -r`): whatever is written to it is noticed when the follower goes on.
    Pause {
        /// As `follower list` names it.
        name: String,
    },
    /// Go on with a paused follower.
    Resume {
        /// As `follower list` names it.
        name: String,
    },
    /// Read all of a follower's target, and compare it with the point that it holds.
    ///
    /// Exits with 6 if it differs: then the follower is diverged, and writes no more until it is healed. The receiver does this by itself, too,
    /// once a week.
    Verify {
        /// As `follower list` names it.
        name: String,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Overwrite whatever differs in a follower's target.
    ///
    /// The way out of `DIVERGED`. What somebody else wrote to the target is lost then: it asks first.
    Heal {
        /// As `follower list` names it.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// End a follower. Its target stays as it is.
    Remove {
        /// As `follower list` names it.
        name: String,
    },
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, command: FollowerCommand) -> Result<(), Failure> {
    let client = gateway(hosts).await?;
    match command {
        FollowerCommand::Add { volume, target, name, delay, point, overwrite, lock, locked, lock_every, lock_strict } => {
            let every_ms = lock_every.map_or(0, |every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
            let lock = lock.map(|by| LockRule { by, keep: locked, every_ms, strict: lock_strict });
            let target = std::path::absolute(&target).unwrap_or(target);
            let follows = follows(&client, &volume, delay, point).await?;
            let add = FollowerAdd { name, volume: volume.to_string(), target, follows, overwrite, lock };
            let added = client.follower_add(&add).await?;
            if global.json {
                return print::json(&added);
            }
            let target = added.target.display();
            let volume = format!("{}/{}/{}", added.source, added.group, added.volume);
            print::out(&format!("{target} follows {volume} as {}\nsee how far it is: farside follower list\n", added.name))
        }
        FollowerCommand::List => {
            let all = client.followers().await?;
            match global.json {
                true => print::json(&all),
                false if all.is_empty() => print::out("no followers: farside follower add VOLUME TARGET\n"),
                false => print::out(&list(Look::of_stdout(), &all)),
            }
        }
        FollowerCommand::Show { name } => show(global, &client.follower(&name).await?),
        FollowerCommand::Pause { name } => show(global, &client.follower_tell(routes::FOLLOWER_PAUSE, &name).await?),
        FollowerCommand::Resume { name } => show(global, &client.follower_tell(routes::FOLLOWER_RESUME, &name).await?),
        FollowerCommand::Verify { name, no_wait } => verify(global, &client, &name, no_wait).await,
        FollowerCommand::Heal { name, yes } => {
            let follower = client.follower(&name).await?;
            let question = format!(
                "What somebody else wrote to {} is lost then.\nOverwrite whatever differs from a point of {}/{}/{}?",
                follower.target.display(),
                follower.source,
                follower.group,
                follower.volume
            );
            confirm::confirm(&question, "nothing was changed", yes)?;
            show(global, &client.follower_tell(routes::FOLLOWER_HEAL, &name).await?)
        }
        FollowerCommand::Remove { name } => {
            let done = client.follower_remove(&name).await?;
            if global.json { print::json(&done) } else { print::out(&format!("{}\n", done.message)) }
        }
    }
}

/// The receiver: what is asked of it cannot be had from farsided.
async fn gateway(hosts: &Hosts) -> Result<Client, Failure> {
    let client = hosts.gateway().await?;
    if client.daemon() == Daemon::Receiver {
        return Ok(client);
    }
    let message = "followers are kept by farside-receiver, on the gateway";
    Err(Failure::new(Exit::Refused, message, "run this there"))
}

async fn follows(
    client: &Client,
    volume: &Address,
    delay: Option<Duration>,
    point: Option<PointRef>,
) -> Result<Follows, Failure> {
    Ok(match (delay, point) {
        (Some(delay), _) => Follows::Behind { delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) },
        (None, Some(point)) => {
            let query = PointsQuery { of: Some(volume.to_string()), limit: None };
            Follows::Point { slot: client.point(&point.to_string(), &query).await?.id.slot }
        }
        (None, None) => Follows::Newest,
    })
}

async fn verify(global: &Global, client: &Client, name: &str, no_wait: bool) -> Result<(), Failure> {
    let before = client.follower(name).await?.verified;
    let mut follower = client.follower_tell(routes::FOLLOWER_VERIFY, name).await?;
    while !no_wait && follower.verified == before {
        match follower.state {
            FollowerState::Diverged => {
                show(global, &follower)?;
                let message = format!("{} is not what follower {name} should hold", follower.target.display());
                let what = format!("look at it first; then overwrite what differs: farside follower heal {name}");
                return Err(Failure::new(Exit::Damaged, message, what));
            }
            FollowerState::Failed | FollowerState::Paused => {
                show(global, &follower)?;
                let message = format!("follower {name} could not be verified");
                return Err(Failure::new(Exit::Failed, message, format!("see `farside follower show {name}`")));
            }
            _ => {}
        }
        tokio::time::sleep(ASK_AGAIN).await;
        follower = client.follower(name).await?;
    }
    show(global, &follower)
}

fn show(global: &Global, follower: &FollowerStatus) -> Result<(), Failure> {
    if global.json { print::json(follower) } else { print::out(&text(Look::of_stdout(), follower)) }
}

/// All followers, as a table and what is wrong.
pub(crate) fn list(look: Look, all: &[FollowerStatus]) -> String {
    let mut table = Table::new(&["FOLLOWER", "VOLUME", "TARGET", "FOLLOWS", "STATE", "HOLDS", "CUT", "VERIFIED"]);
    for one in all {
        table.row([
            one.name.clone(),
            format!("{}/{}/{}", one.source, one.group, one.volume),
            one.target.display().to_string(),
            wants(one.follows),
            state(one),
            one.holds.as_ref().map_or_else(|| NOTHING.to_owned(), |point| point.id.to_string()),
            one.holds.as_ref().map_or_else(|| NOTHING.to_owned(), |point| print::time(point.cut_wall)),
            one.verified.map_or_else(|| "never".to_owned(), print::age),
        ]);
    }
    let mut text = table.fit(look);
    let wrong: String = all.iter().map(|one| print::reasons_in(look, "", &one.reasons)).collect();
    if !wrong.is_empty() {
        text.push_str(&format!("\n{wrong}"));
    }
    text
}

fn text(look: Look, one: &FollowerStatus) -> String {
    let mut text = format!(
        "follower {}\nvolume   {}/{}/{}\ntarget   {}\nfollows  {}\nstate    {}\n",
        one.name,
        one.source,
        one.group,
        one.volume,
        one.target.display(),
        wants(one.follows),
        state(one),
    );
    for (what, point) in [("holds    ", &one.holds), ("on to    ", &one.applying)] {
        if let Some(point) = point {
            text.push_str(&format!("{what}point {}, cut {}\n", point.id, print::time(point.cut_wall)));
        }
    }
    if let Some(ms) = one.last_apply_ms {
        let took = print::duration_ms(ms);
        let written = print::bytes(one.written_bytes);
        text.push_str(&format!("written  {written} in {} steps since the receiver started, the last in {took}\n", one.applied));
    }
    let verified = one.verified.map_or_else(|| "never".to_owned(), print::time);
    text.push_str(&format!("verified {verified}\n"));
    if let Some(rule) = &one.lock {
        let every =
            if rule.every_ms == 0 { "each point".to_owned() } else { format!("one in {}", print::duration_ms(rule.every_ms)) };
        let strict = if rule.strict { ", or it stays where it is" } else { "" };
        text.push_str(&format!("locks    {every}, by {}{strict}; {} of {}\n", rule.by, one.locked.len(), rule.keep));
    }
    for locked in one.locked.iter().rev() {
        text.push_str(&format!("locked   point {}, {}: {}\n", locked.id, print::time(locked.locked), locked.name));
    }
    if !one.diverged_regions.is_empty() {
        let regions: Vec<String> = one.diverged_regions.iter().map(u64::to_string).collect();
        text.push_str(&format!("differs in regions {} (of 4 MiB), the first ones\n", regions.join(", ")));
    }
    let wrong = print::reasons_in(look, "", &one.reasons);
    if wrong.is_empty() { text } else { format!("{text}\n{wrong}") }
}

fn wants(follows: Follows) -> String {
    match follows {
        Follows::Newest => "newest".to_owned(),
        Follows::Behind { delay_ms } => format!("{} behind", print::duration_ms(delay_ms)),
        Follows::Point { slot } => format!("point {slot}"),
    }
}

fn state(one: &FollowerStatus) -> String {
    match one.state {
        FollowerState::Filling | FollowerState::Applying | FollowerState::Verifying if one.total_regions > 0 => {
            format!("{} {}", one.state.word(), print::percent(one.done_regions, one.total_regions))
        }
        other => other.word().to_owned(),
    }
}
