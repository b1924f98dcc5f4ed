//! `farside status`: one screen that says whether all is well, and if not, what to do.
//!
//! The first line is the verdict: what a person asks at 3 a.m. Everything else says why.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use farside_control::client::{Client, Daemon};
use farside_control::receiver::{ReceiverGroup, ReceiverStatus};
use farside_control::source::{Carrier, Connection, ConsistentStatus, GroupStatus, SourceStatus, VolumeState, VolumeStatus};
use farside_control::{Code, Reason, Severity};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::follower;
use crate::hosts::Hosts;
use crate::limit;
use crate::print::{self, Look, NOTHING, Table};

/// A staged lag is shown where it is less than the published one by this.
const STAGED_SHOWN_MS: u64 = 2000;
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// A daemon that hangs should be said to, soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the status, once or for ever.
pub(crate) async fn run(global: &Global, hosts: &Hosts, watch: bool, check: bool) -> Result<(), Failure> {
    let client = hosts.either().await?.with_timeout(PATIENCE);
    if watch {
        return self::watch(global, &client).await;
    }
    let status = Status::ask(&client).await?;
    if global.json {
        print::json(&status)?
    } else {
        print::out(&status.text(Look::of_stdout()))?
    }
    let verdict = status.verdict();
    match (check, verdict.severity) {
        (false, _) | (true, None | Some(Severity::Info)) => Ok(()),
        (true, Some(Severity::Warning)) => Err(Failure::new(Exit::Attention, verdict.words, "")),
        (true, Some(Severity::Error)) => Err(Failure::new(Exit::Unprotected, verdict.words, "")),
    }
}

/// Draws over what was drawn, so that nothing flickers; what does not fit the window is counted.
async fn watch(global: &Global, client: &Client) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal() && !global.json;
    let _cursor = terminal.then(Cursor::hide);
    let mut terminate = signal(SignalKind::terminate()).or_fail("signals cannot be received")?;
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        let look = Look::of_stdout();
        let text = match Status::ask(client).await {
            Ok(status) if global.json => format!("{}\n", serde_json::to_string(&status).expect("API types are always JSON")),
            Ok(status) => status.text(look),
            // Somebody who watches wants to see the daemon come back.
            Err(error) if error.is_unreachable() && !global.json => format!("{error}\n    → {}\n", error.what_to_do()),
            Err(error) => return Err(error.into()),
        };
        print::out(&if terminal { frame(&text, rows()) } else { text + if global.json { "" } else { "\n" } })?;
    }
}

fn rows() -> usize {
    terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0)).max(4)
}

/// From the top, each line to its end, and nothing below.
fn frame(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (shown, more) = if lines.len() < rows { (&lines[..], 0) } else { (&lines[..rows - 2], lines.len() + 2 - rows) };
    let mut out = "\x1b[H".to_owned();
    for line in shown {
        out.push_str(&format!("{line}\x1b[K\r\n"));
    }
    if more > 0 {
        out.push_str(&format!("… {more} more lines: farside status\x1b[K\r\n"));
    }
    out + "\x1b[J"
}

/// Hides the cursor and clears the window while it lives.
struct Cursor;

impl Cursor {
    fn hide() -> Self {
        print_raw("\x1b[?25l\x1b[2J");
        Self
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        print_raw("\x1b[?25h");
    }
}

fn print_raw(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The answer to "am I protected?".
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    /// `None`: all is well.
    severity: Option<Severity>,
    words: String,
}

impl Verdict {
    fn new(severity: Option<Severity>, words: impl Into<String>) -> Self {
        Self { severity, words: words.into() }
    }

    fn line(&self, look: Look) -> String {
        format!("{}\n", look.paint(self.severity, &self.words))
    }
}

fn worst<'a>(reasons: impl IntoIterator<Item = &'a Reason>) -> Option<Severity> {
    reasons.into_iter().map(|reason| reason.severity).filter(|severity| *severity > Severity::Info).max()
}

/// Am I protected, and how far behind?
fn source_verdict(status: &SourceStatus) -> Verdict {
    use Severity::{Error, Warning};
    let volumes: Vec<&VolumeStatus> = status.groups.iter().flat_map(|group| &group.volumes).collect();
    let of_groups = status.groups.iter().flat_map(|group| &group.reasons);
    let reasons = || status.reasons.iter().chain(of_groups.clone()).chain(volumes.iter().flat_map(|volume| &volume.reasons));
    let worst = worst(reasons());
    // What a newer daemon says is not known to be harmless.
    let stops = |reason: &Reason| reason.severity == Error && Code::of(&reason.code).is_none_or(Code::stops_points);
    if matches!(status.connection, Connection::NotPaired) {
        return Verdict::new(Some(Error), "NOT PROTECTED: this host is not paired with a receiver");
    }
    if volumes.is_empty() && !status.unanswered.is_empty() {
        return Verdict::new(
            Some(worst.unwrap_or(Warning)),
            "NEEDS ATTENTION: no group answers, and how its volumes are is not known",
        );
    }
    if volumes.is_empty() {
        let words = match names_volumes(status) {
            _ if is_away(status) => "the volumes are not in use here: handed over, or being failed back",
            true => "no volume is served",
            false => "no volume is protected yet",
        };
        return Verdict::new(Some(Error), format!("NOT PROTECTED: {words}"));
    }
    // Points of a volume that was failed over are there, and are no longer this host's.
    let without = || volumes.iter().filter(|volume| !volume.in_last_point && volume.state != VolumeState::Fenced);
    let never: Vec<&str> = without().filter(|volume| is_answered(volume)).map(|volume| volume.name.as_str()).collect();
    let lag = status.groups.iter().map(|group| group.lag_ms).try_fold(0, |worst, lag| lag.map(|lag| worst.max(lag)));
    // † A group that does not answer may be the one that is behind.
    let lag = lag.filter(|_| without().next().is_none() && status.unanswered.is_empty());
    let age = lag.map_or_else(
        || "how old a restore would be is not known".to_owned(),
        |lag| format!("a restore would bring back everything up to {} ago", print::duration_ms(lag)),
    );
    if !never.is_empty() {
        let words = format!("NOT PROTECTED YET: no recovery point holds {}", never.join(", "));
        return Verdict::new(Some(worst.unwrap_or(Warning)), words);
    }
    let behind = volumes.iter().any(|volume| volume.state != VolumeState::Streaming);
    match worst {
        Some(Error) if reasons().any(stops) => {
            Verdict::new(Some(Error), format!("NOT ADVANCING: something below needs you; {age}"))
        }
        Some(_) => Verdict::new(Some(Warning), format!("NEEDS ATTENTION: {age}")),
        None if behind || lag.is_none() => Verdict::new(Some(Warning), format!("BEHIND: {age}")),
        None => Verdict::new(None, format!("PROTECTED: {age}")),
    }
}

/// Whether the receiver said which points it has of a volume. † Before it did, and where it has another history, there may be many.
fn is_answered(volume: &VolumeStatus) -> bool {
    matches!(volume.state, VolumeState::Behind { .. } | VolumeState::Streaming)
}

/// Whether there are volumes that are configured and not served.
fn names_volumes(status: &SourceStatus) -> bool {
    is_away(status) || [Code::NotServed, Code::Starting, Code::GroupSilent].into_iter().any(|code| says(status, code))
}

/// Whether volumes are kept from everybody, since their group was handed over or comes back.
fn is_away(status: &SourceStatus) -> bool {
    says(status, Code::FailingBack)
}

/// How a host is, once this group of it has answered: what is said of it is not to rest on its silence.
pub(crate) async fn source_with(client: &Client, group: &str) -> Result<SourceStatus, Failure> {
    loop {
        let status = client.source_status().await?;
        if !status.unanswered.iter().any(|silent| silent == group) {
            return Ok(status);
        }
    }
}

fn says(status: &SourceStatus, code: Code) -> bool {
    status.reasons.iter().any(|reason| reason.code == code.word())
}

/// Is everything coming in, and being kept?
fn receiver_verdict(status: &ReceiverStatus) -> Verdict {
    let of_sources = status.sources.iter().flat_map(|source| &source.reasons);
    let of_groups = status.sources.iter().flat_map(|source| &source.groups).flat_map(|group| &group.reasons);
    let of_followers = status.followers.iter().flat_map(|follower| &follower.reasons);
    match worst(status.reasons.iter().chain(of_sources).chain(of_groups).chain(of_followers)) {
        Some(Severity::Error) => Verdict::new(Some(Severity::Error), "NOT RECEIVING EVERYTHING: something below needs you"),
        Some(severity) => Verdict::new(Some(severity), "NEEDS ATTENTION: see below"),
        None if status.sources.is_empty() => Verdict::new(Some(Severity::Warning), "NOTHING TO DO: no source has paired yet"),
        None if status.sources.iter().all(|source| source.groups.is_empty()) => {
            Verdict::new(Some(Severity::Warning), "NOTHING TO DO: no source protects a volume yet")
        }
        // As after its state directory was lost: what the store holds says nothing of who may come.
        None if status.sources.iter().all(|source| source.fingerprint.is_none()) => {
            Verdict::new(Some(Severity::Warning), "NOTHING IS RECEIVED: no source of what the store holds is paired")
        }
        None => Verdict::new(None, format!("RECEIVING: {}, the store takes everything", connected(status))),
    }
}

/// How many groups are connected. One that nobody misses need not be.
fn connected(status: &ReceiverStatus) -> String {
    let groups = status.sources.iter().flat_map(|source| &source.groups);
    let (all, here) = groups.fold((0, 0), |(all, here), group| (all + 1, here + usize::from(group.connected_from.is_some())));
    if here == all { "every group is connected".to_owned() } else { format!("{here} of {all} groups are connected") }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Status {
    Source(Box<SourceStatus>),
    Receiver(Box<ReceiverStatus>),
}

impl Status {
    async fn ask(client: &Client) -> Result<Self, farside_control::ClientError> {
        Ok(match client.daemon() {
            Daemon::Source => Self::Source(Box::new(client.source_status().await?)),
            Daemon::Receiver => Self::Receiver(Box::new(client.receiver_status().await?)),
        })
    }

    fn text(&self, look: Look) -> String {
        match self {
            Self::Source(status) => source(look, status),
            Self::Receiver(status) => receiver(look, status),
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Self::Source(status) => source_verdict(status),
            Self::Receiver(status) => receiver_verdict(status),
        }
    }
}

/// The words for a state, with the progress where there is one.
pub(crate) fn state(state: &VolumeState) -> String {
    match state {
        VolumeState::Behind { what, progress } if progress.total_bytes > 0 => {
            format!("Behind: {} {}", what.words(), print::percent(progress.done_bytes, progress.total_bytes))
        }
        VolumeState::Behind { what, .. } => format!("Behind: {}", what.words()),
        other => other.word().to_owned(),
    }
}

/// A source on one screen.
pub(crate) fn source(look: Look, status: &SourceStatus) -> String {
    let connection = match &status.connection {
        Connection::NotPaired => "not paired".to_owned(),
        Connection::Disconnected { receiver, error } => format!("no connection to {receiver}: {error}"),
        Connection::Connecting { receiver } => format!("not connected to {receiver} yet"),
        Connection::Connected { receiver } => {
            let is_tcp = status.groups.iter().any(|group| group.link.carrier == Some(Carrier::Tcp));
            format!("connected to {receiver}{}", if is_tcp { " over TCP" } else { "" })
        }
    };
    let mut text = source_verdict(status).line(look);
    text.push_str(&format!(
        "source {} · farsided {} · up {} · {connection}\n",
        status.source,
        status.version,
        print::duration_ms(status.uptime_ms)
    ));
    if status.groups.is_empty() && !names_volumes(status) {
        text.push_str("\nno volume is protected yet: farside volume add NAME --backing PATH\n");
    } else if !status.groups.is_empty() {
        text.push_str(&format!("\n{}", groups(&status.groups).fit(look)));
        for group in status.groups.iter().filter(|group| group.has_grid()) {
            text.push_str(&format!("group {} keeps of older points: {}\n", group.name, group.grid));
        }
        for group in status.groups.iter().filter(|group| group.limit_bytes_per_s.is_some()) {
            text.push_str(&format!("group {} sends at most {}\n", group.name, limit::rate(group.limit_bytes_per_s)));
        }
        for (group, consistent) in status.groups.iter().filter_map(|group| Some((group, group.consistent.as_ref()?))) {
            text.push_str(&format!("group {}: {}\n", group.name, quiet(consistent)));
        }
        text.extend(limit::line(&status.limits));
        for (group, encryption) in status.groups.iter().filter_map(|group| Some((group, group.encryption.as_ref()?))) {
            let key = encryption.key.as_ref().map_or("whose key is not here".to_owned(), |key| format!("key {key}"));
            text.push_str(&format!("group {} is encrypted {}, {key}\n", group.name, encryption.mode));
        }
        let protected: Vec<&VolumeStatus> = status.groups.iter().flat_map(|group| &group.volumes).collect();
        if !protected.is_empty() {
            text.push_str(&format!("\n{}", states(protected).fit(look)));
        }
    }
    let mut wrong = print::reasons_in(look, "", &status.reasons);
    for group in &status.groups {
        wrong.push_str(&print::reasons_in(look, &format!("group {}", group.name), &group.reasons));
        for volume in &group.volumes {
            wrong.push_str(&print::reasons_in(look, &format!("volume {}", volume.name), &volume.reasons));
        }
    }
    if !wrong.is_empty() {
        text.push_str(&format!("\n{wrong}"));
    }
    text
}

/// How points for which applications are quiesced get on.
fn quiet(status: &ConsistentStatus) -> String {
    let newest = match (&status.newest, status.newest_age_ms) {
        (Some(point), Some(age_ms)) => {
            format!("the newest application-consistent point is {}, {} old", point.id, print::duration_ms(age_ms))
        }
        _ if status.hooks.is_empty() => "a point was asked for".to_owned(),
        _ => "no application-consistent point since farsided started".to_owned(),
    };
    let every = match status.every_ms {
        Some(ms) => format!("; one every {}", print::duration_ms(ms)),
        None if status.hooks.is_empty() => String::new(),
        None => "; one is made when it is asked for: farside point take".to_owned(),
    };
    let now = status.now.as_ref().map_or_else(String::new, |now| format!("; the next one {now}"));
    newest + &every + &now
}

/// The worst state, and of how many if it is not everybody's.
fn group_state(group: &GroupStatus) -> String {
    let all = group.volumes.len();
    match group.volumes.iter().filter(|volume| volume.state.word() == group.state.word()).count() {
        some if some < all => format!("{} ({some} of {all})", state(&group.state)),
        _ => state(&group.state),
    }
}

/// When it is through, if it is.
fn eta(group: &GroupStatus) -> String {
    let grows = group.rate_bytes_per_s > 0 && group.dirtied_bytes_per_s >= group.rate_bytes_per_s;
    match group.eta_ms {
        Some(ms) => print::duration_ms(ms),
        None if grows && matches!(group.state, VolumeState::Behind { .. }) => "not converging".to_owned(),
        None => NOTHING.to_owned(),
    }
}

/// The age of what is published and, where the gateway holds something newer that waits to be, of that.
fn lag(published_ms: Option<u64>, staged_ms: Option<u64>) -> String {
    let published = published_ms.map_or_else(|| "?".to_owned(), print::duration_ms);
    // What differs by less is only on its way.
    let waits =
        |staged_ms: &u64| published_ms.is_none_or(|published_ms| staged_ms.saturating_add(STAGED_SHOWN_MS) <= published_ms);
    match staged_ms.filter(waits) {
        Some(staged_ms) => format!("{published} (staged {})", print::duration_ms(staged_ms)),
        None => published,
    }
}

fn groups(groups: &[GroupStatus]) -> Table {
    let mut table = Table::new(&["GROUP", "STATE", "LAG", "BACKLOG", "RATE", "ETA", "EVERY", "KEEP", "LAST POINT"]);
    for group in groups {
        table.row([
            group.name.clone(),
            group_state(group),
            lag(group.lag_ms, group.staged_lag_ms),
            print::bytes(group.backlog_bytes),
            format!("{}/s", print::bytes(group.rate_bytes_per_s)),
            eta(group),
            print::duration_ms(group.epoch_interval_ms),
            group.keep.to_string(),
            group.last_point.as_ref().map_or_else(|| NOTHING.to_owned(), |p| format!("{}  {}", p.id, print::time(p.cut_wall))),
        ]);
    }
    table
}

/// How volumes are, for the screen; where they are is in `volume list`.
fn states<'a>(volumes: impl IntoIterator<Item = &'a VolumeStatus>) -> Table {
    let mut table = Table::new(&["VOLUME", "GROUP", "STATE", "LAG", "BACKLOG", "SIZE", "CLIENTS"]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            volume.group.clone(),
            state(&volume.state),
            lag(volume.lag_ms, volume.staged_lag_ms),
            print::bytes(volume.backlog_bytes),
            print::bytes(volume.bytes),
            volume.tap.clients.to_string(),
        ]);
    }
    table
}

/// Volumes as a table.
pub(crate) fn volumes<'a>(volumes: impl IntoIterator<Item = &'a VolumeStatus>) -> Table {
    let mut table = Table::new(&["VOLUME", "GROUP", "STATE", "SIZE", "HOT", "CLIENTS", "TAP", "BACKING"]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            volume.group.clone(),
            state(&volume.state),
            print::bytes(volume.bytes),
            print::bytes(volume.hot_bytes),
            volume.tap.clients.to_string(),
            volume.tap.address.clone(),
            volume.backing.path.display().to_string(),
        ]);
    }
    table
}

/// A receiver on one screen.
pub(crate) fn receiver(look: Look, status: &ReceiverStatus) -> String {
    let mut text = receiver_verdict(status).line(look);
    text.push_str(&format!(
        "receiver {} · farside-receiver {} · up {}\nstore {} · {} used, {} landing, {} free and {} in reserve{}\n",
        status.listen,
        status.version,
        print::duration_ms(status.uptime_ms),
        status.store.path.display(),
        print::bytes(status.store.used_bytes),
        print::bytes(status.store.landing_bytes),
        print::bytes(status.store.free_bytes),
        print::bytes(status.store.reserve_bytes),
        if status.store.writable { "" } else { " · takes nothing now" },
    ));
    let mut table = Table::new(&["SOURCE", "GROUP", "LAG", "POINTS", "LAST POINT", "VERIFIED", "USED", "VOLUMES", "FROM"]);
    for source in &status.sources {
        if source.groups.is_empty() {
            let none = NOTHING.to_owned();
            let from = from(None, source.connected_from.as_deref(), source.carrier, source.silent_ms);
            let [group, lag, points, last, verified, used, volumes] = std::array::from_fn(|_| none.clone());
            table.row([source.name.clone(), group, lag, points, last, verified, used, volumes, from]);
        }
        for group in &source.groups {
            let host = group.host.as_deref().filter(|host| *host != source.name);
            table.row([
                source.name.clone(),
                group.name.clone(),
                if group.is_unused() { NOTHING.to_owned() } else { lag(group.lag_ms, group.staged_lag_ms) },
                group.points.to_string(),
                group
                    .last_point
                    .as_ref()
                    .map_or_else(|| NOTHING.to_owned(), |p| format!("{}  {}", p.id, print::time(p.cut_wall))),
                group.last_verified.map_or_else(|| "never".to_owned(), |p| print::age(p.cut_wall)),
                print::bytes(group.used_bytes),
                group.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(" "),
                from(host, group.connected_from.as_deref(), group.carrier, group.silent_ms),
            ]);
        }
    }
    if status.sources.is_empty() {
        text.push_str("\nno source has paired yet: farside-receiver token, then on the host: farside pair TOKEN\n");
    } else {
        text.push_str(&format!("\n{}", table.fit(look)));
    }
    for (source, group) in status.sources.iter().flat_map(|source| source.groups.iter().map(move |group| (source, group))) {
        text.extend(encrypted(group).map(|how| format!("{}/{} is kept {how}\n", source.name, group.name)));
    }
    if !status.followers.is_empty() {
        text.push_str(&format!("\n{}", follower::list(look, &status.followers)));
    }
    let mut wrong = print::reasons_in(look, "", &status.reasons);
    for source in &status.sources {
        wrong.push_str(&print::reasons_in(look, &format!("source {}", source.name), &source.reasons));
        for group in &source.groups {
            wrong.push_str(&print::reasons_in(look, &format!("{}/{}", source.name, group.name), &group.reasons));
        }
    }
    if !wrong.is_empty() {
        text.push_str(&format!("\n{wrong}"));
    }
    text
}

/// From where whoever speaks for a group is connected; `host`: who that is, if it is not the source.
fn from(host: Option<&str>, address: Option<&str>, carrier: Option<Carrier>, silent_ms: Option<u64>) -> String {
    let host = host.map_or_else(String::new, |host| format!("{host} "));
    match (address, carrier, silent_ms) {
        (Some(address), Some(Carrier::Tcp), _) => format!("{host}{address} over TCP"),
        (Some(address), ..) => format!("{host}{address}"),
        (None, _, Some(ms)) => format!("silent for {}", print::duration_ms(ms)),
        (None, _, None) => NOTHING.to_owned(),
    }
}

/// How the volumes of a group lie in the store, if some are encrypted.
fn encrypted(group: &ReceiverGroup) -> Option<String> {
    let mut ways: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for volume in &group.volumes {
        ways.entry(volume.encryption.as_deref().unwrap_or("in clear")).or_default().push(&volume.name);
    }
    let words = |way: &str| if way == "in clear" { way.to_owned() } else { format!("encrypted {way}") };
    match ways.len() {
        0 => None,
        1 => ways.keys().find(|way| **way != "in clear").map(|way| words(way)),
        _ => Some(
            ways.iter().map(|(way, names)| format!("{} ({})", words(way), names.join(", "))).collect::<Vec<_>>().join(" and "),
        ),
    }
}

#[cfg(test)]
mod tests {
    use farside_control::receiver::ReceiverSource;
    use farside_control::source::{BehindWhat, Progress};

    use super::*;

    #[test]
    fn how_a_group_is_kept_is_said_where_it_is_not_in_clear() {
        let volume = |name: &str, how: Option<&str>| farside_control::receiver::ReceiverVolume {
            name: name.into(),
            encryption: how.map(Into::into),
            ..Default::default()
        };
        let group = |volumes| ReceiverGroup { volumes, ..ReceiverGroup::default() };
        assert_eq!(encrypted(&group(vec![])), None);
        assert_eq!(encrypted(&group(vec![volume("a", None)])), None);
        let how = encrypted(&group(vec![volume("a", Some("at-rest")), volume("b", Some("at-rest"))]));
        assert_eq!(how.as_deref(), Some("encrypted at-rest"));
        let mixed = encrypted(&group(vec![volume("a", Some("at-rest")), volume("old", None)])).expect("some");
        assert_eq!(mixed, "encrypted at-rest (a) and in clear (old)");
    }

    #[test]
    fn unknown_lag_is_not_zero() {
        let group = GroupStatus { name: "g".into(), ..GroupStatus::default() };
        let line = groups(&[group]).to_string();
        assert!(line.lines().nth(1).is_some_and(|line| line.split_whitespace().nth(2) == Some("?")), "{line}");
    }

    #[test]
    fn a_backlog_that_grows_has_no_time_at_which_it_ends() {
        let behind = VolumeState::Behind { what: BehindWhat::CatchingUp, progress: Progress::default() };
        let group = |rate_bytes_per_s, dirtied_bytes_per_s, eta_ms| GroupStatus {
            state: behind.clone(),
            rate_bytes_per_s,
            dirtied_bytes_per_s,
            eta_ms,
            ..GroupStatus::default()
        };
        assert_eq!(eta(&group(2, 1, Some(90_000))), print::duration_ms(90_000));
        assert_eq!(eta(&group(2, 2, None)), "not converging");
        assert_eq!(eta(&group(0, 0, None)), NOTHING, "nothing is known yet");
        assert_eq!(eta(&GroupStatus { state: VolumeState::Streaming, ..group(2, 3, None) }), NOTHING, "cuts keep up");
    }

    #[test]
    fn one_paused_volume_is_not_a_paused_group() {
        let volume = |state| VolumeStatus { state, ..VolumeStatus::default() };
        let volumes = vec![volume(VolumeState::Streaming), volume(VolumeState::Paused)];
        let mut group = GroupStatus { name: "g".into(), state: VolumeState::Paused, volumes, ..GroupStatus::default() };
        assert_eq!(group_state(&group), "Paused (1 of 2)");
        group.volumes.remove(0);
        assert_eq!(group_state(&group), "Paused");
    }

    #[test]
    fn a_volume_that_is_being_opened_is_not_called_none() {
        let reason = Reason::new(Severity::Warning, Code::Starting, "volume data is being opened", "wait");
        let status = SourceStatus {
            connection: Connection::Connected { receiver: "gw".into() },
            reasons: vec![reason],
            ..SourceStatus::default()
        };
        let text = source(Look::PLAIN, &status);
        assert!(text.contains("no volume is served") && !text.contains("volume add"), "{text}");
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let volume = VolumeStatus {
            name: "data".into(),
            state: VolumeState::Behind { what: BehindWhat::FirstSync, progress: Progress { done_bytes: 1, total_bytes: 4 } },
            reasons: vec![Reason::new(Severity::Error, Code::GatewayFull, "the gateway is full", "free space on it")],
            ..VolumeStatus::default()
        };
        let status = SourceStatus {
            groups: vec![GroupStatus { name: "g".into(), volumes: vec![volume], ..GroupStatus::default() }],
            ..SourceStatus::default()
        };
        let text = source(Look::PLAIN, &status);
        assert!(text.contains("Behind: first sync 25.0 %"), "{text}");
        assert!(text.contains("✗ volume data: the gateway is full\n    → free space on it\n"), "{text}");
        assert!(text.contains("more: farside explain gateway_full"), "{text}");
    }

    /// † What is told of the groups that answered is not told of all.
    #[test]
    fn of_a_group_that_does_not_answer_nothing_is_promised() {
        let reason = Reason::new(Severity::Warning, Code::GroupSilent, "group db did not answer", "look");
        let mut status = SourceStatus { unanswered: vec!["db".into()], reasons: vec![reason], ..protected() };
        let verdict = source_verdict(&status);
        assert_eq!(verdict.words, "NEEDS ATTENTION: how old a restore would be is not known");
        status.groups.clear();
        assert!(source_verdict(&status).words.starts_with("NEEDS ATTENTION: no group answers"));
        assert!(!source(Look::PLAIN, &status).contains("volume add"));
    }

    fn protected() -> SourceStatus {
        let volume =
            VolumeStatus { name: "data".into(), state: VolumeState::Streaming, in_last_point: true, ..VolumeStatus::default() };
        let group = GroupStatus {
            name: "g".into(),
            lag_ms: Some(1200),
            state: VolumeState::Streaming,
            volumes: vec![volume],
            ..GroupStatus::default()
        };
        let connection = Connection::Connected { receiver: "gw".into() };
        SourceStatus { groups: vec![group], connection, ..SourceStatus::default() }
    }

    #[test]
    fn the_first_line_never_says_protected_when_something_is_wrong() {
        let verdict = |change: fn(&mut SourceStatus)| {
            let mut status = protected();
            change(&mut status);
            source_verdict(&status)
        };
        let well = verdict(|_| {});
        assert_eq!((well.severity, &well.words[..10]), (None, "PROTECTED:"));
        type Wrong = (fn(&mut SourceStatus), Severity, &'static str);
        let fenced: fn(&mut SourceStatus) = |s| {
            let volume = &mut s.groups[0].volumes[0];
            (volume.state, volume.in_last_point) = (VolumeState::Fenced, false); // as after a boot: its points are others' now
            volume.reasons.push(Reason::new(Severity::Error, Code::Fenced, "promoted", ""));
        };
        let wrongs: [Wrong; 12] = [
            (fenced, Severity::Error, "NOT ADVANCING"),
            (|s| s.connection = Connection::NotPaired, Severity::Error, "NOT PROTECTED"),
            (|s| s.groups.clear(), Severity::Error, "NOT PROTECTED"),
            (|s| s.groups[0].volumes[0].in_last_point = false, Severity::Warning, "NOT PROTECTED YET"),
            (|s| s.groups[0].lag_ms = None, Severity::Warning, "BEHIND"),
            (|s| s.groups[0].volumes[0].state = VolumeState::Paused, Severity::Warning, "BEHIND"),
            (
                |s| s.groups[0].reasons.push(Reason::new(Severity::Warning, Code::NotConnected, "gone", "")),
                Severity::Warning,
                "NEEDS ATTENTION",
            ),
            (
                |s| s.groups[0].volumes[0].reasons.push(Reason::new(Severity::Error, Code::Forked, "forked", "")),
                Severity::Error,
                "NOT ADVANCING",
            ),
            (|s| s.reasons.push(Reason::new(Severity::Error, Code::NotServed, "volume x", "")), Severity::Error, "NOT ADVANCING"),
            // Points are made all the same.
            (
                |s| s.groups[0].reasons.push(Reason::new(Severity::Error, Code::HooksFailed, "still quiesced", "")),
                Severity::Warning,
                "NEEDS ATTENTION",
            ),
            (
                |s| {
                    let reasons = &mut s.groups[0].volumes[0].reasons;
                    reasons.push(Reason::new(Severity::Error, Code::HooksFailed, "still quiesced", ""));
                    reasons.push(Reason::new(Severity::Error, Code::KeyMissing, "no key", ""));
                },
                Severity::Error,
                "NOT ADVANCING",
            ),
            (
                |s| {
                    let reasons = &mut s.groups[0].reasons;
                    reasons.push(Reason::new(Severity::Error, Code::HooksFailed, "", ""));
                    reasons[0].code = "of_tomorrow".into();
                },
                Severity::Error,
                "NOT ADVANCING",
            ),
        ];
        for (change, severity, words) in wrongs {
            let verdict = verdict(change);
            assert_eq!(verdict.severity, Some(severity), "{verdict:?}");
            assert!(verdict.words.starts_with(words), "{verdict:?}");
        }
        // † Nobody who has points is told that there never were any.
        for state in [VolumeState::Idle, VolumeState::TargetRewound, VolumeState::Forked, VolumeState::TrackingLost] {
            let mut status = protected();
            let volume = &mut status.groups[0].volumes[0];
            (volume.state, volume.in_last_point) = (state, false);
            let verdict = source_verdict(&status);
            assert_eq!(verdict.severity, Some(Severity::Warning), "{verdict:?}");
            assert!(verdict.words.starts_with("BEHIND: how old a restore would be is not known"), "{verdict:?}");
        }
    }

    /// A host has a connection for each of its groups.
    #[test]
    fn a_gateway_is_not_green_while_a_group_is_missed_whose_host_is_there() {
        let group = |name: &str, address: Option<&str>| ReceiverGroup {
            name: name.into(),
            points: 1,
            connected_from: address.map(Into::into),
            silent_ms: Some(90_000),
            ..ReceiverGroup::default()
        };
        let source = |groups| ReceiverSource {
            name: "web1".into(),
            fingerprint: Some("f0".into()),
            connected_from: Some("10.0.0.1:1".into()),
            groups,
            ..ReceiverSource::default()
        };
        let status = |groups| ReceiverStatus { sources: vec![source(groups)], ..ReceiverStatus::default() };
        let well = status(vec![group("db", Some("10.0.0.1:1")), group("files", Some("10.0.0.1:2"))]);
        assert_eq!(receiver_verdict(&well).severity, None);
        assert!(receiver_verdict(&well).words.contains("every group is connected"));
        let unused = status(vec![group("db", Some("10.0.0.1:1")), group("old", None)]);
        let said = receiver_verdict(&unused);
        assert!(said.severity.is_none() && said.words.contains("1 of 2 groups are connected"), "{said:?}");
        let mut unpaired = status(vec![group("db", None)]);
        (unpaired.sources[0].fingerprint, unpaired.sources[0].connected_from) = (None, None);
        let said = receiver_verdict(&unpaired);
        assert!(said.severity == Some(Severity::Warning) && said.words.contains("NOTHING IS RECEIVED"), "{said:?}");
        let mut missed = group("files", None);
        missed.reasons.push(Reason::new(Severity::Warning, Code::NotConnected, "not for web1/files", ""));
        let status_of_two = status(vec![group("db", Some("10.0.0.1:1")), missed]);
        assert_eq!(receiver_verdict(&status_of_two).severity, Some(Severity::Warning));
        let text = receiver(Look::PLAIN, &status_of_two);
        let row = |group: &str| text.lines().find(|line| line.split_whitespace().nth(1) == Some(group)).unwrap_or_default();
        assert!(row("db").ends_with("10.0.0.1:1") && row("files").contains("silent for"), "{text}");
        let stands_in = ReceiverGroup { host: Some("web2".into()), ..group("db", Some("10.0.0.2:1")) };
        assert!(receiver(Look::PLAIN, &status(vec![stands_in])).contains("web2 10.0.0.2:1"));
    }

    #[test]
    fn a_host_that_is_paired_and_protects_nothing_has_its_line() {
        let idle = |name: &str| ReceiverSource {
            name: name.into(),
            reasons: vec![Reason::new(Severity::Info, Code::NotConnected, "spare is paired, and protects nothing here", "")],
            ..ReceiverSource::default()
        };
        let status = ReceiverStatus { sources: vec![idle("spare")], ..ReceiverStatus::default() };
        assert_eq!(receiver_verdict(&status).severity, Some(Severity::Warning), "nothing is received");
        let text = receiver(Look::PLAIN, &status);
        assert!(text.lines().any(|line| line.starts_with("spare ")) && text.contains("protects nothing here"), "{text}");
    }

    #[test]
    fn a_frame_fits_its_window_and_wipes_what_was_there() {
        let text = (0..50).map(|n| format!("line {n}\n")).collect::<String>();
        let frame = super::frame(&text, 10);
        assert_eq!(frame.matches("\r\n").count(), 9, "{frame:?}");
        assert!(
            frame.starts_with("\x1b[Hline 0\x1b[K") && frame.contains("42 more lines") && frame.ends_with("\x1b[J"),
            "{frame:?}"
        );
        assert!(!super::frame("a\n", 10).contains("more"));
    }
}
