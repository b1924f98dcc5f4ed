//! `farside volume …`: what is protected.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use farside_control::source::{
    Accept, IfAbsent, ResyncRequest, VerifyOutcome, VerifyStatus, VolumeAdd, VolumeState, VolumeStatus,
};
use farside_control::{Address, Client, Code, PointRef};

use crate::args::{AcceptArg, Global, IfAbsentArg, VolumeCommand};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::progress::Progress;
use crate::{print, rejoin, settle, status};

/// How often a verify is looked at.
const VERIFY_INTERVAL: Duration = Duration::from_millis(500);

/// Carries out one of them.
pub(crate) async fn run(global: &Global, hosts: &Hosts, command: VolumeCommand) -> Result<(), Failure> {
    let client = hosts.source();
    let (volume, done) = match command {
        VolumeCommand::Add { name, backing, device, group, tap, if_absent } => {
            let if_absent = match if_absent {
                IfAbsentArg::Bare => IfAbsent::Bare,
                IfAbsentArg::Refuse => IfAbsent::Refuse,
            };
            let insert = device.is_some();
            let backing = absolute(&device.or(backing).expect("one of both is required"))?;
            let volume = client.volume_add(&VolumeAdd { name, group, backing, insert, tap, if_absent }).await?;
            udev_has_seen_it();
            let (name, backing) = (&volume.name, volume.backing.path.display());
            let done = match insert {
                true => format!("volume {name} is protected: go on using {backing}"),
                false => format!("volume {name} is served at {}; use that, not {backing}", volume.tap.address),
            };
            (volume, done)
        }
        VolumeCommand::List => {
            let volumes = client.volumes().await?;
            return if global.json {
                print::json(&volumes)
            } else if volumes.is_empty() {
                print::out("no volume is protected yet: farside volume add NAME --backing PATH\n")
            } else {
                let wrong: String = volumes.iter().map(|v| print::reasons("", &v.reasons)).collect();
                let gap = if wrong.is_empty() { "" } else { "\n" };
                print::out(&format!("{}{gap}{wrong}", status::volumes(&volumes).fit(print::Look::of_stdout())))
            };
        }
        VolumeCommand::Show { name } => {
            let volume = client.volume(&name).await?;
            return if global.json { print::json(&volume) } else { print::out(&show(&volume)) };
        }
        VolumeCommand::Remove { name, yes } => {
            let question = format!(
                "Whatever uses the tap of {name} loses it. Its points stay in the store, but this host forgets that they are its \
                 own:\nadded again under this name, it is `Forked` until `farside volume resync {name} --accept forked`, which \
                 compares everything.\nStop serving and protecting {name}?"
            );
            confirm(&question, &format!("volume {name} was not removed"), yes)?;
            let done = client.volume_remove(&name).await?;
            return if global.json {
                print::json(&done)
            } else {
                print::out(&format!(
                    "volume {name} is no longer served or protected; its points stay in the store\n(added again under this name it \
                     needs: farside volume resync {name} --accept forked)\n"
                ))
            };
        }
        VolumeCommand::Pause { name } => {
            let volume = client.volume_pause(&name).await?;
            (volume, format!("volume {name} is paused: served and tracked, not replicated"))
        }
        VolumeCommand::Resume { name } => {
            // Other states may hide that a person paused it, too.
            let before = client.volume(&name).await?.state;
            let ran = matches!(before, VolumeState::Idle | VolumeState::Behind { .. } | VolumeState::Streaming);
            let volume = client.volume_resume(&name).await?;
            let done = if ran { "was not paused: nothing changes" } else { "goes on replicating" };
            (volume, format!("volume {name} {done}"))
        }
        VolumeCommand::Rejoin(args) => return rejoin::run(global, hosts, args).await,
        VolumeCommand::Verify { name, detach } => return verify(global, &client, &name, detach).await,
        VolumeCommand::Resync { name, accept } => {
            let accept = accept.map(|accept| match accept {
                AcceptArg::Forked => Accept::Forked,
                AcceptArg::TargetRewound => Accept::TargetRewound,
                AcceptArg::Fenced => Accept::Fenced,
                AcceptArg::TrackingLost => Accept::TrackingLost,
            });
            let client = client.with_timeout(settle::PINNED_WITHIN);
            let volume = client.volume_resync(&name, &ResyncRequest { accept }).await?;
            (volume, format!("volume {name} will be compared in full; what differs is sent"))
        }
    };
    if global.json { print::json(&volume) } else { print::out(&format!("{done}\n{}", print::reasons("", &volume.reasons))) }
}

/// Begins a verify, or joins the one under way, and waits for its end.
async fn verify(global: &Global, client: &Client, name: &str, detach: bool) -> Result<(), Failure> {
    let begun = client.volume_verify(name).await?;
    let mut volume = begun.clone();
    let progress = (!detach).then(|| Progress::new(global.json));
    let result = loop {
        let state = the_verify(&begun, &volume)?;
        let Some(progress) = progress.as_ref().filter(|_| state.outcome == VerifyOutcome::Running) else { break state };
        progress.set(state.done_bytes, state.total_bytes);
        tokio::time::sleep(VERIFY_INTERVAL).await;
        volume = client.volume(name).await?;
    };
    if let Some(progress) = &progress {
        progress.finish();
    }
    let failure = failure_of(name, &result);
    // What is a failure in words is a result for programs, as far as it is one at all.
    if global.json && matches!(result.outcome, VerifyOutcome::Running | VerifyOutcome::Done) {
        print::json(&result)?;
    } else if failure.is_none() {
        print::out(&verified(name, &result))?;
    }
    failure.map_or(Ok(()), Err)
}

/// How the verify is that was begun. † Where it ended with its daemon, or its volume was opened anew, the newest result is of another one, and may say that
/// all is well.
fn the_verify(begun: &VolumeStatus, now: &VolumeStatus) -> Result<VerifyStatus, Failure> {
    // A group that does not answer says nothing of it: it is as it was.
    let is_silent = now.reasons.iter().any(|reason| reason.code == Code::GroupSilent.word());
    let now = if is_silent { begun } else { now };
    let started = begun.verify.as_ref().map(|verify| verify.started);
    now.verify.clone().filter(|verify| Some(verify.started) == started).ok_or_else(|| {
        let message = format!(
            "the verify of {} ended early: farsided was started anew meanwhile, or has opened the volume anew; or somebody began another one",
            begun.name
        );
        Failure::new(Exit::Failed, message, "begin it again: what was found until then is in the log of farsided")
    })
}

/// Why a verify did not end well.
fn failure_of(name: &str, result: &VerifyStatus) -> Option<Failure> {
    let early =
        |exit, why: &str, what_to_do: &str| Failure::new(exit, format!("the verify of {name} ended early: {why}"), what_to_do);
    match result.outcome {
        // † What differs where nobody could read is not known: that is not a volume of which all is well.
        VerifyOutcome::Done if result.differing_bytes == 0 && result.unreadable_bytes > 0 => Some(Failure::new(
            Exit::Attention,
            verified(name, result).trim_end(),
            "the disk does not give them: `farside explain degraded`; then begin it again",
        )),
        VerifyOutcome::Running | VerifyOutcome::Done if result.differing_bytes == 0 => None,
        VerifyOutcome::Running | VerifyOutcome::Done => {
            let text = verified(name, result);
            Some(Failure::new(
                Exit::Damaged,
                text.trim_end(),
                "it has been sent. If somebody may have written to the disk itself, past the tap, that was it; if nobody did, report this with the \
                 daemon's log: it must not happen",
            ))
        }
        VerifyOutcome::Superseded => Some(early(Exit::Refused, "everything is compared anyway", "look at `farside status`")),
        VerifyOutcome::Refused => {
            Some(early(Exit::Refused, "the volume refuses to go on", "`farside status` says why, and what to do"))
        }
        VerifyOutcome::Stopped => Some(early(Exit::Failed, "farsided was stopped", "begin it again when it runs")),
    }
}

/// `farside point verify … --against-source`: every volume of the group, by digests.
pub(crate) async fn verify_group(global: &Global, hosts: &Hosts, wanted: PointRef, of: Option<&Address>) -> Result<(), Failure> {
    if wanted != PointRef::Latest {
        let message = format!("`{wanted}` cannot be compared with what its volumes hold now: only the newest point can");
        let what_to_do = "say `latest`; or, on the gateway, leave --against-source out: the point is read in full there";
        return Err(Failure::new(Exit::Usage, message, what_to_do));
    }
    let client = hosts.source();
    let (source, volumes) = (client.source_status().await?.source, client.volumes().await?);
    let is_meant = |volume: &&VolumeStatus| {
        of.is_none_or(|of| of.is_group(&source, &volume.group) || of.is_volume(&source, &volume.group, &volume.name))
    };
    let groups: BTreeSet<&str> = volumes.iter().filter(is_meant).map(|volume| volume.group.as_str()).collect();
    let group = match groups.first() {
        Some(group) if groups.len() == 1 => *group,
        Some(_) => return Err(Failure::new(Exit::Usage, "the volumes are of several groups", "say which, with --of GROUP")),
        None => {
            return Err(Failure::new(
                Exit::NotFound,
                "there is no such volume or group here",
                "see which there are: farside status",
            ));
        }
    };
    let names: Vec<&str> = volumes.iter().filter(|volume| volume.group == group).map(|volume| volume.name.as_str()).collect();
    let mut begun = Vec::new();
    for name in &names {
        begun.push(client.volume_verify(name).await?);
    }
    let progress = Progress::new(global.json);
    let results: Vec<(&str, VerifyStatus)> = loop {
        let now = client.volumes().await?;
        let mut all = Vec::new();
        for (name, begun) in names.iter().zip(&begun) {
            // Removed meanwhile: nothing would ever come of it.
            let volume = now.iter().find(|volume| volume.name == *name).ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("volume {name} was removed while it was verified"), "say it again")
            })?;
            all.push((*name, the_verify(begun, volume)?));
        }
        if all.iter().all(|(_, result)| result.outcome != VerifyOutcome::Running) {
            break all;
        }
        let sum = |of: fn(&VerifyStatus) -> u64| all.iter().map(|(_, result)| of(result)).sum::<u64>();
        progress.set(sum(|result| result.done_bytes), sum(|result| result.total_bytes));
        tokio::time::sleep(VERIFY_INTERVAL).await;
    };
    progress.finish();
    if global.json {
        print::json(&results.iter().map(|(name, result)| (*name, result)).collect::<BTreeMap<_, _>>())?;
    } else {
        results.iter().try_for_each(|(name, result)| print::out(&verified(name, result)))?;
    }
    if let Some(failure) = results.iter().find_map(|(name, result)| failure_of(name, result)) {
        return Err(failure);
    }
    if global.json {
        return Ok(());
    }
    print::out("the gateway puts it on record of the newest point that has all of this, which may be the next one\n")
}

/// A verify in words.
fn verified(name: &str, v: &VerifyStatus) -> String {
    let at = v.ended.unwrap_or(v.started);
    let head = match v.outcome {
        VerifyOutcome::Running => format!("{name} is being verified, {}", print::percent(v.done_bytes, v.total_bytes)),
        VerifyOutcome::Done => format!("{name} was verified, {}", print::time(at)),
        VerifyOutcome::Superseded | VerifyOutcome::Refused | VerifyOutcome::Stopped => {
            format!("the verify of {name} ended early, {}", print::time(at))
        }
    };
    let mut text = format!(
        "{head}: {} compared in place, {} that changed lately compared as it is sent\n",
        print::bytes(v.cold_bytes),
        print::bytes(v.hot_bytes)
    );
    if v.differing_bytes == 0 && v.unreadable_bytes == 0 && v.outcome == VerifyOutcome::Done {
        text += "everything that was called clean is what is published\n";
    }
    if v.differing_bytes > 0 {
        let ranges: Vec<String> = v.differing.iter().take(8).map(|r| format!("{}+{}", r.offset, print::bytes(r.bytes))).collect();
        text += &format!("{} were called clean and differed, at {}\n", print::bytes(v.differing_bytes), ranges.join(", "));
    }
    if v.unreadable_bytes > 0 {
        text += &format!("{} lie in regions that could not be read in full\n", print::bytes(v.unreadable_bytes));
    }
    text
}

/// A mount by UUID that follows at once finds the tap, and not the disk below.
fn udev_has_seen_it() {
    let here = std::path::Path::new("/run/udev/control").exists();
    // Where that takes too long, the mount is refused, since the disk is held.
    let _ = here.then(|| std::process::Command::new("udevadm").args(["settle", "--timeout=10"]).status());
}

/// The daemon has another working directory than the person who types.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Failure> {
    std::path::absolute(path).or_fail(format!("cannot make {} absolute", path.display()))
}

fn show(volume: &VolumeStatus) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |key: &str, value: String| lines.push((key.to_owned(), value));
    if volume.state == VolumeState::NotServed {
        let backing = volume.backing.path.display();
        let (state, reasons) = (status::state(&volume.state), print::reasons("", &volume.reasons));
        let [name, id, group, tap] = [&volume.name, &volume.id, &volume.group, &volume.tap.address];
        return format!(
            "volume   {name}\nid       {id}\ngroup    {group}\nstate    {state}\nbacking  {backing}\ntap      {tap}\n{reasons}"
        );
    }
    line("volume", volume.name.clone());
    line("id", volume.id.clone());
    line("group", volume.group.clone());
    line("state", status::state(&volume.state));
    line("size", format!("{} ({} bytes)", print::bytes(volume.bytes), volume.bytes));
    line(
        "backing",
        format!(
            "{} ({}, blocks of {})",
            volume.backing.path.display(),
            volume.backing.kind,
            print::bytes(volume.backing.block_bytes.into())
        ),
    );
    line("tap", format!("{} ({} clients, {} requests in flight)", volume.tap.address, volume.tap.clients, volume.tap.in_flight));
    if let Some(queues) = volume.tap.queues {
        line("queues", queues.to_string());
    }
    if let Some(path) = &volume.tap.data_path {
        line("data path", format!("{}: {}", path.name, path.why));
    }
    let if_absent = match volume.if_absent {
        IfAbsent::Bare => "bare: its disk is used as it is, and compared later",
        IfAbsent::Refuse => "refuse: its disk stays hidden",
    };
    line("at a boot without Farside", if_absent.to_owned());
    line("in the last point", if volume.in_last_point { "yes" } else { "no" }.to_owned());
    line("hot", format!("{} would be compared after a crash", print::bytes(volume.hot_bytes)));
    line("dirty", format!("{} changed in the open epoch", print::bytes(volume.dirty_bytes)));
    let counters = &volume.counters;
    line("reads", format!("{} ({})", counters.reads, print::bytes(counters.read_bytes)));
    line("writes", format!("{} ({})", counters.writes, print::bytes(counters.written_bytes)));
    line("trims", format!("{} ({})", counters.trims, print::bytes(counters.trimmed_bytes)));
    line("flushes", counters.flushes.to_string());
    line("errors", counters.errors.to_string());
    line("sent", format!("{} as {} on the wire", print::bytes(counters.sent_bytes), print::bytes(counters.wire_bytes)));
    line("compared equal", print::bytes(counters.equal_bytes));
    line("waited", format!("{} writes, for a switch or a granule being read", counters.parks));
    line("saved", format!("{} granules before they were overwritten", counters.saves));
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let text: String = lines.iter().map(|(key, value)| format!("{key:width$}  {value}\n")).collect();
    let verified = volume.verify.as_ref().map_or_else(String::new, |v| verified(&volume.name, v));
    text + &verified + &print::reasons("", &volume.reasons)
}

#[cfg(test)]
mod tests {
    use farside_control::{Reason, Severity};

    use super::*;

    /// It said that everything is what is published, and exited with 0.
    #[test]
    fn a_volume_that_could_not_be_read_in_full_is_not_called_equal() {
        let done = VerifyStatus { outcome: VerifyOutcome::Done, cold_bytes: 1 << 20, ..VerifyStatus::default() };
        let equal = "everything that was called clean is what is published";
        assert!(failure_of("data", &done).is_none() && verified("data", &done).contains(equal));
        let unreadable = VerifyStatus { unreadable_bytes: 4096, ..done.clone() };
        let failure = failure_of("data", &unreadable).expect("nobody knows what is there");
        assert_eq!(failure.exit, Exit::Attention);
        assert!(failure.message.contains("4 KiB lie in regions that could not be read"), "{failure:?}");
        assert!(!failure.message.contains(equal), "{failure:?}");
        // What is known to differ counts for more.
        let differs = VerifyStatus { differing_bytes: 4096, ..unreadable.clone() };
        let failure = failure_of("data", &differs).expect("it differs");
        assert!(failure.exit == Exit::Damaged && failure.message.contains("could not be read"), "{failure:?}");
        let running = VerifyStatus { outcome: VerifyOutcome::Running, ..unreadable };
        assert!(failure_of("data", &running).is_none(), "it is only begun");
    }

    #[test]
    fn a_verify_goes_on_while_its_group_does_not_answer() {
        let verify = Some(VerifyStatus { outcome: VerifyOutcome::Running, ..VerifyStatus::default() });
        let begun = VolumeStatus { name: "data".into(), verify: verify.clone(), ..VolumeStatus::default() };
        let reason = Reason::new(Severity::Warning, Code::GroupSilent, "group db did not answer", "look");
        let silent = VolumeStatus { reasons: vec![reason], verify: None, ..begun.clone() };
        assert_eq!(the_verify(&begun, &silent).ok(), verify);
        assert!(the_verify(&begun, &VolumeStatus { verify: None, ..begun.clone() }).is_err(), "it is not known there");
    }
}
