//! `farside status`: one screen that says whether all is well, and if not, what to do.

use std::io::IsTerminal as _;
use std::time::Duration;

use farside_control::client::{Client, Daemon};
use farside_control::receiver::ReceiverStatus;
use farside_control::source::{Connection, GroupStatus, SourceStatus, VolumeState, VolumeStatus};
use serde::Serialize;

use crate::args::Global;
use crate::failure::Failure;
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Prints the status, once or for ever.
pub(crate) async fn run(global: &Global, hosts: &Hosts, watch: bool) -> Result<(), Failure> {
    let client = hosts.either().await?;
    if !watch {
        let status = Status::ask(&client).await?;
        return if global.json { print::json(&status) } else { print::out(&status.text()) };
    }
    let terminal = std::io::stdout().is_terminal() && !global.json;
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let text = match Status::ask(&client).await {
            Ok(status) if global.json => format!("{}\n", serde_json::to_string(&status).expect("API types are always JSON")),
            Ok(status) => status.text(),
            // Somebody who watches wants to see the daemon come back.
            Err(error) if error.is_unreachable() && !global.json => format!("{error}\n    → {}\n", error.what_to_do()),
            Err(error) => return Err(error.into()),
        };
        let (before, after) = if terminal { ("\x1b[H\x1b[2J", "") } else { ("", if global.json { "" } else { "\n" }) };
        print::out(&format!("{before}{text}{after}"))?;
    }
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

    fn text(&self) -> String {
        match self {
            Self::Source(status) => source(status),
            Self::Receiver(status) => receiver(status),
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
pub(crate) fn source(status: &SourceStatus) -> String {
    let connection = match &status.connection {
        Connection::NotPaired => "not paired".to_owned(),
        Connection::Disconnected { receiver, error } => format!("no connection to {receiver}: {error}"),
        Connection::Connected { receiver } => format!("connected to {receiver}"),
    };
    let mut text = format!(
        "source {} · farsided {} · up {} · {connection}\n",
        status.source,
        status.version,
        print::duration_ms(status.uptime_ms)
    );
    if status.groups.is_empty() {
        text.push_str("\nno volume is protected yet: farside volume add NAME --backing PATH\n");
    } else {
        text.push_str(&format!("\n{}", groups(&status.groups)));
        let protected: Vec<&VolumeStatus> = status.groups.iter().flat_map(|group| &group.volumes).collect();
        if !protected.is_empty() {
            text.push_str(&format!("\n{}", volumes(protected)));
        }
    }
    let mut wrong = print::reasons("", &status.reasons);
    for group in &status.groups {
        wrong.push_str(&print::reasons(&format!("group {}", group.name), &group.reasons));
        for volume in &group.volumes {
            wrong.push_str(&print::reasons(&format!("volume {}", volume.name), &volume.reasons));
        }
    }
    if matches!(status.connection, Connection::NotPaired) {
        wrong
            .push_str("! this host is not paired\n    → on the gateway: farside-receiver token; then here: farside pair TOKEN\n");
    }
    if !wrong.is_empty() {
        text.push_str(&format!("\n{wrong}"));
    }
    text
}

fn groups(groups: &[GroupStatus]) -> Table {
    let mut table = Table::new(&["GROUP", "STATE", "LAG", "BACKLOG", "RATE", "ETA", "LAST POINT"]);
    for group in groups {
        table.row([
            group.name.clone(),
            state(&group.state),
            group.lag_ms.map_or_else(|| "?".to_owned(), print::duration_ms),
            print::bytes(group.backlog_bytes),
            format!("{}/s", print::bytes(group.rate_bytes_per_s)),
            group.eta_ms.map_or_else(|| NOTHING.to_owned(), print::duration_ms),
            group.last_point.as_ref().map_or_else(|| NOTHING.to_owned(), |p| format!("{}  {}", p.id, print::time(p.cut_wall))),
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
pub(crate) fn receiver(status: &ReceiverStatus) -> String {
    let mut text = format!(
        "receiver {} · farside-receiver {} · up {}\nstore {} · {} used, {} free{}\n",
        status.listen,
        status.version,
        print::duration_ms(status.uptime_ms),
        status.store.path.display(),
        print::bytes(status.store.used_bytes),
        print::bytes(status.store.free_bytes),
        if status.store.writable { "" } else { " · takes nothing now" },
    );
    let mut table = Table::new(&["SOURCE", "GROUP", "LAG", "POINTS", "LAST POINT", "USED", "VOLUMES", "FROM"]);
    for source in &status.sources {
        for group in &source.groups {
            table.row([
                source.name.clone(),
                group.name.clone(),
                group.lag_ms.map_or_else(|| "?".to_owned(), print::duration_ms),
                group.points.to_string(),
                group
                    .last_point
                    .as_ref()
                    .map_or_else(|| NOTHING.to_owned(), |p| format!("{}  {}", p.id, print::time(p.cut_wall))),
                print::bytes(group.used_bytes),
                group.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(" "),
                source.connected_from.clone().unwrap_or_else(|| match source.silent_ms {
                    Some(ms) => format!("silent for {}", print::duration_ms(ms)),
                    None => NOTHING.to_owned(),
                }),
            ]);
        }
    }
    if status.sources.is_empty() {
        text.push_str("\nno source has paired yet: farside-receiver token, then on the host: farside pair TOKEN\n");
    } else {
        text.push_str(&format!("\n{table}"));
    }
    let mut wrong = print::reasons("", &status.reasons);
    for source in &status.sources {
        wrong.push_str(&print::reasons(&format!("source {}", source.name), &source.reasons));
        for group in &source.groups {
            wrong.push_str(&print::reasons(&format!("{}/{}", source.name, group.name), &group.reasons));
        }
    }
    if !wrong.is_empty() {
        text.push_str(&format!("\n{wrong}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use farside_control::source::{BehindWhat, Progress};
    use farside_control::{Reason, Severity};

    use super::*;

    #[test]
    fn unknown_lag_is_not_zero() {
        let group = GroupStatus { name: "g".into(), ..GroupStatus::default() };
        let line = groups(&[group]).to_string();
        assert!(line.lines().nth(1).is_some_and(|line| line.split_whitespace().nth(2) == Some("?")), "{line}");
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let volume = VolumeStatus {
            name: "data".into(),
            state: VolumeState::Behind { what: BehindWhat::FirstSync, progress: Progress { done_bytes: 1, total_bytes: 4 } },
            reasons: vec![Reason::new(Severity::Error, "gateway_full", "the gateway is full", "free space on it")],
            ..VolumeStatus::default()
        };
        let status = SourceStatus {
            groups: vec![GroupStatus { name: "g".into(), volumes: vec![volume], ..GroupStatus::default() }],
            ..SourceStatus::default()
        };
        let text = source(&status);
        assert!(text.contains("Behind: first sync 25.0 %"), "{text}");
        assert!(text.contains("✗ volume data: the gateway is full\n    → free space on it\n"), "{text}");
        assert!(text.contains("farside-receiver token"), "{text}");
    }
}
