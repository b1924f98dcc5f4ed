//! `farside point …`: what can be restored, what is kept, and whether it is sound.

use std::time::Duration;

use farside_control::client::Daemon;
use farside_control::routes::{PointsQuery, UnpinQuery};
use farside_control::{
    Address, Client, Consistency, HoldRequest, PinRequest, Point, PointPin, PointRef, PointVerified, Run, Verification,
    VerificationState, VerifiedVolume,
};
use farside_keys::Keeper;
use farside_store::{Looked, StoreError};

use crate::args::{Global, KeyArg};
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, Table};
use crate::progress::Progress;
use crate::store;

/// How often the receiver is asked how far a verification is.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Runs and regions that are printed; JSON has them all.
const SHOWN_MAX: usize = 20;

/// Shows one point.
pub(crate) async fn show(
    global: &Global,
    hosts: &Hosts,
    wanted: PointRef,
    of: Option<&Address>,
    url: Option<&str>,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let (point, hidden) = match url {
        Some(url) => {
            let (group, point) = store::one_point(&store::open(&store::location_of(url)?)?, wanted, of)?;
            let hidden = store::newer_hidden(&group, wanted, point.id);
            (point, hidden)
        }
        None => {
            let query = PointsQuery { of: of.map(Address::to_string), limit: None };
            (hosts.either().await?.point(&wanted.to_string(), &query).await?, None)
        }
    };
    if global.json { print::json(&point) } else { print::out(&text(&point)) }?;
    hidden.map_or(Ok(()), Err)
}

/// `farside point pin`.
pub(crate) async fn pin(
    global: &Global,
    hosts: &Hosts,
    wanted: PointRef,
    of: Option<&Address>,
    reason: String,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let client = gateway(hosts).await?;
    let query = PointsQuery { of: of.map(Address::to_string), limit: None };
    let point = client.point_pin(&wanted.to_string(), &query, &PinRequest { reason }).await?;
    if global.json {
        return print::json(&point);
    }
    print::out(&format!(
        "point {} of {}/{}, cut {}, is kept until `farside point unpin {}`\n",
        point.id,
        point.source,
        point.group,
        print::time(point.cut_wall),
        point.id
    ))
}

/// `farside point hold`.
pub(crate) async fn hold(
    global: &Global,
    hosts: &Hosts,
    wanted: PointRef,
    of: Option<&Address>,
    case: String,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let client = gateway(hosts).await?;
    let query = PointsQuery { of: of.map(Address::to_string), limit: None };
    let point = client.point_hold(&wanted.to_string(), &query, &HoldRequest { case: case.clone() }).await?;
    if global.json {
        return print::json(&point);
    }
    print::out(&format!(
        "point {} of {}/{}, cut {}, is held for {case} until `farside point release {}` names that case\n",
        point.id,
        point.source,
        point.group,
        print::time(point.cut_wall),
        point.id
    ))
}

/// `farside point release`.
pub(crate) async fn release(
    global: &Global,
    hosts: &Hosts,
    (wanted, of): (PointRef, Option<&Address>),
    case: String,
    yes: bool,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let client = gateway(hosts).await?;
    let query = PointsQuery { of: of.map(Address::to_string), limit: None };
    let point = client.point(&wanted.to_string(), &query).await?;
    if !global.json {
        let cut = print::time(point.cut_wall);
        eprintln!("point {} of {}/{}, cut {cut}, is kept for\n{}", point.id, point.source, point.group, reasons(&point));
    }
    confirm::confirm(&format!("Release it from the hold for {case}?"), "nothing was changed", yes)?;
    // The very one that was shown: another may be the newest by now.
    let point = client.point_release(&point.id.to_string(), &query, &HoldRequest { case }).await?;
    if global.json {
        return print::json(&point);
    }
    let which = format!("point {} of {}/{} is released", point.id, point.source, point.group);
    print::out(&match point.pins.is_empty() {
        true => format!("{which}; retention decides\n"),
        false => format!("{which}, and still kept for\n{}", reasons(&point)),
    })
}

/// What a point is kept for, a line each.
fn reasons(point: &Point) -> String {
    let reason = |pin: &PointPin| if pin.reason.is_empty() { "no reason given".to_owned() } else { pin.reason.clone() };
    point.pins.iter().map(|pin| format!("  {}\n", reason(pin))).collect()
}

/// `farside point unpin`.
pub(crate) async fn unpin(
    global: &Global,
    hosts: &Hosts,
    (wanted, of): (PointRef, Option<&Address>),
    all: bool,
    yes: bool,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let client = gateway(hosts).await?;
    let of = of.map(Address::to_string);
    let mut wanted = wanted.to_string();
    if all {
        let mut point = client.point(&wanted, &PointsQuery { of: of.clone(), limit: None }).await?;
        point.pins.retain(|pin| pin.case().is_none());
        if !global.json {
            eprint!("point {} of {}/{} is kept for\n{}", point.id, point.source, point.group, reasons(&point));
        }
        confirm::confirm("Withdraw all of these?", "nothing was changed", yes)?;
        // The very one that was shown: another may be the newest by now.
        wanted = point.id.to_string();
    }
    let point = client.point_unpin(&wanted, &UnpinQuery { of, all }).await?;
    if global.json {
        return print::json(&point);
    }
    let which = format!("point {} of {}/{}", point.id, point.source, point.group);
    print::out(&match point.pins.is_empty() {
        true => format!("{which} has no pins: retention decides\n"),
        false if point.pins.iter().all(|pin| pin.case().is_some()) => {
            format!("{which} stays under legal hold (farside point release, with --case)\n{}", reasons(&point))
        }
        false => format!("{which} is still kept, by the gateway (--all withdraws that, too), for\n{}", reasons(&point)),
    })
}

/// `farside point verify`.
pub(crate) async fn verify(
    global: &Global,
    hosts: &Hosts,
    wanted: PointRef,
    of: Option<&Address>,
    url: Option<&str>,
    key: &KeyArg,
) -> Result<(), Failure> {
    say_of_what(wanted, of)?;
    let progress = Progress::new(global.json);
    let (verified, hidden) = match url {
        Some(url) => verify_here(url, key.keeper()?.as_ref(), wanted, of, &progress)?,
        None if key.is_given() => {
            let message = "the gateway is given no key: it checks what it holds without one";
            return Err(Failure::new(Exit::Usage, message, "leave out --key, or name the store as well: --store /srv/farside"));
        }
        None => (verify_there(&gateway(hosts).await?, wanted, of, &progress).await?, None),
    };
    progress.finish();
    if global.json {
        print::json(&verified)?;
    } else {
        print::out(&verified_text(&verified))?;
    }
    match &verified.state {
        VerificationState::Done if verified.is_sound() => hidden.map_or(Ok(()), Err),
        VerificationState::Done => {
            let regions: u64 = verified.volumes.iter().map(|v| v.damaged_regions).sum();
            let message = format!("point {} is damaged: {regions} regions cannot be restored", verified.point.id);
            let what_to_do = "take another point, or put the named files back from a copy of the store; `farside volume resync` on the source sends its newest content again";
            Err(Failure::new(Exit::Damaged, message, what_to_do))
        }
        VerificationState::Failed { message } => Err(Failure::new(Exit::Failed, message, "see `farside status` on the gateway")),
        _ => Err(Failure::new(Exit::Failed, "the verification was stopped before it was done", "start it again")),
    }
}

/// The receiver does it; we ask how far it is.
async fn verify_there(
    client: &Client,
    wanted: PointRef,
    of: Option<&Address>,
    progress: &Progress,
) -> Result<Verification, Failure> {
    let query = PointsQuery { of: of.map(Address::to_string), limit: None };
    let begun = client.point_verify(&wanted.to_string(), &query).await?;
    loop {
        let now = client.verification().await?;
        if now.id != begun.id {
            let message = format!("point {} is no longer being verified: the receiver was restarted", begun.point.id);
            return Err(Failure::new(Exit::Failed, message, "start it again"));
        }
        if now.state != VerificationState::Running {
            return Ok(now);
        }
        progress.set(now.done_bytes, now.total_bytes);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Without a daemon.
fn verify_here(
    url: &str,
    key: Option<&Keeper>,
    wanted: PointRef,
    of: Option<&Address>,
    progress: &Progress,
) -> Result<(Verification, Option<Failure>), Failure> {
    let (group, point) = store::one_point(&store::open_with(&store::location_of(url)?, key)?, wanted, of)?;
    let hidden = store::newer_hidden(&group, wanted, point.id);
    let only = of.filter(|a| !a.is_group(&point.source, &point.group)).map(Address::name);
    let members: Vec<&str> = point.members.iter().map(|m| m.volume.as_str()).collect();
    let total_bytes = point.members.iter().filter(|m| only.is_none_or(|only| m.volume == only)).map(|m| m.bytes).sum();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
    let mut volumes: Vec<VerifiedVolume> = Vec::new();
    let slot = farside_region::Slot(point.id.slot);
    let heard = |looked: Looked| {
        progress.set(looked.done_bytes, total_bytes);
        true
    };
    let ended: Result<(), StoreError> =
        farside_receiver::verify_members(&group, slot, &members, only, threads, &heard, |volume| volumes.push(volume));
    ended?;
    // Who only reads writes no record.
    let not_recorded = Some("--store only reads: on the gateway, `farside point verify` puts it on record".to_owned());
    let state = VerificationState::Done;
    let verified =
        Verification { id: 0, point, state, done_bytes: total_bytes, total_bytes, volumes, recorded: None, not_recorded };
    Ok((verified, hidden))
}

fn verified_text(verified: &Verification) -> String {
    let point = &verified.point;
    let mut text = String::new();
    for volume in &verified.volumes {
        for damage in volume.damage.iter().take(SHOWN_MAX) {
            let file = if damage.segment.is_empty() { String::new() } else { format!("segment {}: ", damage.segment) };
            text.push_str(&format!(
                "✗ volume {}, point {}, region {} (at {}): {file}{}\n",
                volume.volume,
                point.id,
                damage.region,
                print::bytes(damage.offset_bytes),
                damage.message
            ));
        }
        let more = volume.damaged_regions.saturating_sub(volume.damage.len().min(SHOWN_MAX) as u64);
        if more > 0 {
            text.push_str(&format!("✗ volume {}, point {}: {more} more regions\n", volume.volume, point.id));
        }
        if volume.unreadable_bytes > 0 {
            let bytes = print::bytes(volume.unreadable_bytes);
            let what = format!("! volume {}: {bytes} could not be read at the source", volume.volume);
            text.push_str(&runs_text(&what, &volume.unreadable));
        }
        let verdict = if volume.damaged_regions == 0 { "every granule has its digest" } else { "damaged" };
        text.push_str(&format!(
            "volume {} in point {}: {} of content in {}: {verdict}\n",
            volume.volume,
            point.id,
            print::bytes(volume.data_bytes),
            print::bytes(volume.bytes)
        ));
    }
    if let Some(recorded) = verified.recorded {
        text.push_str(&format!("point {} is on record as verified: {}\n", point.id, verified_words(recorded)));
    }
    if let Some(why) = verified.not_recorded.as_ref().filter(|_| verified.is_sound()) {
        text.push_str(&format!("not on record as verified: {why}\n"));
    }
    text
}

fn verified_words(verified: PointVerified) -> String {
    format!("{}, {}", verified.how.words(), print::time(verified.at))
}

/// What is missing, each run with its place, as far as a screen has room.
pub(crate) fn runs_text(what: &str, runs: &[Run]) -> String {
    let mut text = format!("{what}:\n");
    for run in runs.iter().take(SHOWN_MAX) {
        let last = run.offset_bytes + run.bytes.saturating_sub(1);
        text.push_str(&format!("    bytes {} to {last} ({})\n", run.offset_bytes, print::bytes(run.bytes)));
    }
    if runs.len() > SHOWN_MAX {
        text.push_str(&format!("    and {} more runs: --json lists them\n", runs.len() - SHOWN_MAX));
    }
    text
}

/// The receiver: what is asked of it cannot be had from farsided.
async fn gateway(hosts: &Hosts) -> Result<Client, Failure> {
    let client = hosts.gateway().await?;
    if client.daemon() == Daemon::Receiver {
        return Ok(client);
    }
    let message = "points are pinned and verified on the gateway, where the store is";
    let what_to_do = "run this there; or, to verify, name a store that this machine can read: --store /srv/farside";
    Err(Failure::new(Exit::Refused, message, what_to_do))
}

/// A point that is not named by a whole id is one of something.
fn say_of_what(wanted: PointRef, of: Option<&Address>) -> Result<(), Failure> {
    if of.is_some() || matches!(wanted, PointRef::Id { tag: Some(_), .. }) {
        return Ok(());
    }
    let message = format!("`{wanted}` is a point of which volume or group?");
    Err(Failure::new(Exit::Usage, message, "say it with --of NAME, or give a whole id such as 42-9f3c2a1b"))
}

/// What to say where nothing fits.
pub(crate) fn no_such_point(points: &[Point], wanted: PointRef, of: Option<&Address>) -> Failure {
    farside_control::no_such_point(points, wanted, of.map(Address::to_string).as_deref()).into()
}

/// Bytes in the store, where they are known.
pub(crate) fn takes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| print::NOTHING.to_owned(), print::bytes)
}

pub(crate) fn marks(point: &Point) -> String {
    let consistent = point.consistency == Consistency::Application;
    // A hook that failed is to be seen among points that are as they should be.
    let failed = point.consistency == Consistency::Crash && !point.hooks.is_empty();
    let is_held = point.pins.iter().any(|pin| pin.case().is_some());
    let marks = [
        (consistent, "consistent"),
        (point.consistency == Consistency::Cohort, "cohort"),
        (failed, "hook failed"),
        (is_held, "held"),
        (point.pinned && !is_held, "pinned"),
        (point.degraded, "degraded"),
        (!point.verified.is_empty(), "verified"),
    ];
    let words = marks.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect::<Vec<_>>().join(" ");
    match point.title.is_empty() {
        true => words,
        false => format!("{words} \u{201c}{}\u{201d}", point.title).trim_start().to_owned(),
    }
}

fn text(point: &Point) -> String {
    let mut text = format!(
        "point    {}{}\nsource   {}\ngroup    {}\ncut      {} by the source's clock\n         {} to {} ns of CLOCK_MONOTONIC in boot {}\n\n",
        point.id,
        [" ", &marks(point)].concat().trim_end(),
        point.source,
        point.group,
        print::time(point.cut_wall),
        point.cut_mono_before_ns,
        point.cut_mono_after_ns,
        point.boot,
    );
    let sized = point.members.iter().any(|member| member.layer_bytes.is_some());
    let mut head = vec!["MEMBER", "SIZE", "LAYER"];
    head.extend(sized.then_some("TAKES"));
    let mut table = Table::new(&[&head[..], &["ID"]].concat());
    for member in &point.members {
        let mut row = vec![member.volume.clone(), print::bytes(member.bytes), format!("{}/{}", member.term, member.seq)];
        row.extend(sized.then(|| takes(member.layer_bytes)));
        row.push(member.volume_id.clone());
        table.row(row);
    }
    text.push_str(&table.to_string());
    if !point.hooks.is_empty() {
        let what = match point.consistency {
            Consistency::Application => "hooks",
            Consistency::Cohort => "cut as one with the groups of its cohort",
            _ => "! hooks",
        };
        text.push_str(&format!("\n{what}: {}\n", point.hooks));
    }
    if let Some(cut) = &point.cut {
        text.push_str(&format!("\ncut of several groups: {}, of {} groups, begun {}\n", cut.id, cut.groups, print::time(cut.at)));
        text.push_str("    → one moment only if all of them have a point of it: farside cohort cuts NAME, on the gateway\n");
    }
    for verified in &point.verified {
        text.push_str(&format!("\nverified: {}\n", verified_words(*verified)));
    }
    for pin in &point.pins {
        let reason = if pin.reason.is_empty() { "no reason given" } else { &pin.reason };
        text.push_str(&format!("\npinned: {reason}\n"));
    }
    if point.degraded {
        text.push_str(
            "\n! some runs could not be read at the source\n    → restore it with --allow-degraded: they become zeroes, and are listed\n",
        );
    }
    text
}
