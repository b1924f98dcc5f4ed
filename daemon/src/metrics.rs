//! `GET /metrics`: the status in Prometheus' words. Names and units are documented in `docs/metrics.md`, which a test holds
//! against these tables.

use std::time::Duration;

use farside_control::source::{Carrier, Connection, GroupStatus, SourceStatus, VolumeStatus};
use farside_control::{Reason, Severity};
use farside_service::metrics::{In, Kind, Metric, PROCESS, Page, Process, Samples, Value, known, one};

/// The page for a status that was just made.
pub(crate) fn page(status: &SourceStatus) -> String {
    let mut page = Page::default();
    page.add(PROCESS, &[], &Process::look(env!("CARGO_PKG_VERSION"), Duration::from_millis(status.uptime_ms)));
    page.add(SOURCE, &[], status);
    for group in &status.groups {
        page.add(GROUP, &[("group", &group.name)], group);
        for volume in &group.volumes {
            page.add(VOLUME, &[("group", &group.name), ("volume", &volume.name)], volume);
        }
    }
    page.text()
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn gauge(n: u64) -> Samples {
    one(Value::Gauge(n as f64))
}

fn count(n: u64) -> Samples {
    one(Value::Count(n))
}

fn reasons(reasons: &[Reason]) -> Samples {
    let mut counts = std::collections::BTreeMap::new();
    for reason in reasons.iter().filter(|reason| reason.severity >= Severity::Warning) {
        *counts.entry(reason.code.clone()).or_insert(0u64) += 1;
    }
    counts.into_iter().map(|(code, n)| (Some(("code", code)), Value::Gauge(n as f64))).collect()
}

const SOURCE: &[Metric<SourceStatus>] = &[
    Metric {
        name: "paired",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 if this host is paired with a receiver",
        read: |s| gauge(u64::from(s.connection != Connection::NotPaired)),
    },
    Metric {
        name: "reasons",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Warnings and errors of the daemon that concern no single group, by code (`farside explain CODE`)",
        read: |s| reasons(&s.reasons),
    },
];

const GROUP: &[Metric<GroupStatus>] = &[
    Metric {
        name: "group_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Age of what a restore would bring back; absent while it cannot be known, which deserves an alarm, too",
        read: |g| known(g.lag_ms.map(seconds)),
    },
    Metric {
        name: "group_staged_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Age of what the gateway holds, published or not; less than the lag where it collects points for a bucket",
        read: |g| known(g.staged_lag_ms.map(seconds)),
    },
    Metric {
        name: "group_backlog",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Bytes that differ, or may differ, from what is published",
        read: |g| gauge(g.backlog_bytes),
    },
    Metric {
        name: "group_connected",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 while the receiver is connected",
        read: |g| gauge(u64::from(g.link.connected)),
    },
    Metric {
        name: "group_over_tcp",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 while the receiver is reached over TCP, as where UDP does not get through",
        read: |g| gauge(u64::from(g.link.carrier == Some(Carrier::Tcp))),
    },
    Metric {
        name: "group_reasons",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Warnings and errors of the group, by code (`farside explain CODE`)",
        read: |g| reasons(&g.reasons),
    },
    Metric {
        name: "group_last_point_timestamp",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "When the newest point was cut, by this host's wall clock, since 1970; an idle group makes none",
        read: |g| known(g.last_point.as_ref().map(|p| p.cut_wall.as_millisecond() as f64 / 1000.0)),
    },
    Metric {
        name: "group_points_published",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Recovery points published",
        read: |g| count(g.points_published),
    },
    Metric {
        name: "group_consistent_point_age",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Age of the newest application-consistent point; absent until there is one since the start, and without hooks",
        read: |g| known(g.consistent.as_ref().and_then(|c| c.newest_age_ms).map(seconds)),
    },
    Metric {
        name: "group_hook_failures",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Points for which applications were to be quiesced and were not, or not until the cut",
        read: |g| count(g.consistent.as_ref().map_or(0, |c| c.failures)),
    },
    Metric {
        name: "group_layers_unpublished",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Layers on their way: frozen, sent or staged, and not published; at 64 no further one begins",
        read: |g| gauge(g.layers_unpublished),
    },
    Metric {
        name: "group_epoch_interval",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "The configured least time between two cuts",
        read: |g| one(Value::Gauge(seconds(g.epoch_interval_ms))),
    },
    Metric {
        name: "group_switches",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Switches: cuts and passes",
        read: |g| count(g.switches.count),
    },
    Metric {
        name: "group_switch_grace",
        unit: In::Seconds,
        kind: Kind::Histogram,
        help: "How long a host write that overlaps another may have to wait at a switch",
        read: |g| {
            let grace = &g.switches.grace;
            let bounds = grace.bounds_us.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
            let buckets = bounds.zip(grace.counts.iter().copied()).collect();
            one(Value::Histogram { sum: grace.sum_us as f64 / 1e6, buckets })
        },
    },
    Metric {
        name: "group_demotions",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Cuts that were given up and went on as passes, by cause: no point came of them",
        read: |g| g.switches.demotions.iter().map(|(cause, n)| (Some(("cause", cause.clone())), Value::Count(*n))).collect(),
    },
    Metric {
        name: "group_cut_budget",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What a cut may presently hold; shrinks after an overflow and grows back",
        read: |g| gauge(g.cut_budget_bytes),
    },
    Metric {
        name: "group_side_buffer_used",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Memory that holds old content for a cut now",
        read: |g| gauge(g.side_buffer.used_bytes),
    },
    Metric {
        name: "group_side_buffer_limit",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "The most it may hold (`[limits] side_buffer_mib`)",
        read: |g| gauge(g.side_buffer.limit_bytes),
    },
    Metric {
        name: "group_connections",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Connections made to the receiver; more than one is a reconnect",
        read: |g| count(g.link.connections),
    },
    Metric {
        name: "group_link_sent",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Bytes sent to the receiver with all overhead of the transport, also what was sent again",
        read: |g| count(g.link.sent_bytes),
    },
    Metric {
        name: "group_link_received",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Bytes received from the receiver with all overhead",
        read: |g| count(g.link.received_bytes),
    },
    Metric {
        name: "group_link_lost_packets",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Packets that were lost and retransmitted",
        read: |g| count(g.link.lost_packets),
    },
    Metric {
        name: "group_link_round_trip",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Round-trip time to the receiver; absent without a connection",
        read: |g| known(g.link.rtt_us.map(|us| us as f64 / 1e6)),
    },
    Metric {
        name: "group_layers_read_again",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Layers of which something was read and sent again, after a reset or a loss at the receiver",
        read: |g| count(g.link.read_again),
    },
    Metric {
        name: "group_refusals",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Requests that the receiver refused",
        read: |g| count(g.link.refusals),
    },
];

const VOLUME: &[Metric<VolumeStatus>] = &[
    Metric {
        name: "volume_state",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 for the state that it is in: `Streaming`, `Behind`, `Idle`, `Paused`, `Forked`…",
        read: |v| vec![(Some(("state", v.state.word().to_owned())), Value::Gauge(1.0))],
    },
    Metric {
        name: "volume_reasons",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Warnings and errors of the volume, by code (`farside explain CODE`)",
        read: |v| reasons(&v.reasons),
    },
    Metric { name: "volume_size", unit: In::Bytes, kind: Kind::Gauge, help: "Its size", read: |v| gauge(v.bytes) },
    Metric {
        name: "volume_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "As that of its group, of this volume alone",
        read: |v| known(v.lag_ms.map(seconds)),
    },
    Metric {
        name: "volume_staged_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "As that of its group, of this volume alone",
        read: |v| known(v.staged_lag_ms.map(seconds)),
    },
    Metric {
        name: "volume_backlog",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Bytes that differ, or may differ, from what is published",
        read: |v| gauge(v.backlog_bytes),
    },
    Metric {
        name: "volume_in_last_point",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 if the newest point of its group holds it",
        read: |v| gauge(u64::from(v.in_last_point)),
    },
    Metric {
        name: "volume_hot",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What would be compared after a crash",
        read: |v| gauge(v.hot_bytes),
    },
    Metric {
        name: "volume_dirty",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Changed in the open epoch",
        read: |v| gauge(v.dirty_bytes),
    },
    Metric {
        name: "volume_unreadable",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Of the backing, could not be read; points that hold them are degraded",
        read: |v| gauge(v.unreadable_bytes),
    },
    Metric {
        name: "tap_clients",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Connections to its tap",
        read: |v| gauge(v.tap.clients.into()),
    },
    Metric {
        name: "tap_in_flight",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Host requests in flight",
        read: |v| gauge(v.tap.in_flight.into()),
    },
    Metric {
        name: "host_requests",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Host requests by `op`: read, write, flush, trim (with write-zeroes)",
        read: |v| {
            let c = &v.counters;
            let of = |op: &str, n| (Some(("op", op.to_owned())), Value::Count(n));
            vec![of("read", c.reads), of("write", c.writes), of("flush", c.flushes), of("trim", c.trims)]
        },
    },
    Metric {
        name: "host",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Their bytes, by `op`",
        read: |v| {
            let c = &v.counters;
            let of = |op: &str, n| (Some(("op", op.to_owned())), Value::Count(n));
            vec![of("read", c.read_bytes), of("write", c.written_bytes), of("trim", c.trimmed_bytes)]
        },
    },
    Metric {
        name: "host_errors",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Host requests answered with an error, the backing's own",
        read: |v| count(v.counters.errors),
    },
    Metric {
        name: "host_parks",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Host writes that waited, for a switch or for a granule being read",
        read: |v| count(v.counters.parks),
    },
    Metric {
        name: "host_saves",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Granules whose old content was saved before a newer write",
        read: |v| count(v.counters.saves),
    },
    Metric {
        name: "volume_sent",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Payload read and sent, before compression",
        read: |v| count(v.counters.sent_bytes),
    },
    Metric {
        name: "volume_wire",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "What it became on the wire",
        read: |v| count(v.counters.wire_bytes),
    },
    Metric {
        name: "volume_compared_equal",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Compared by digest and found equal, so not sent",
        read: |v| count(v.counters.equal_bytes),
    },
];

#[cfg(test)]
mod tests {
    use farside_service::metrics::{check_document, document};

    use super::*;

    #[test]
    fn the_document_says_what_is_served() {
        let rows =
            [document(PROCESS, ""), document(SOURCE, ""), document(GROUP, "`group`"), document(VOLUME, "`group`, `volume`")];
        let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        check_document(path, "farsided", &rows.concat()).expect("the document is up to date");
    }

    #[test]
    fn an_unknown_lag_is_absent_and_not_zero() {
        let volume = VolumeStatus { name: "data".into(), bytes: 7, ..VolumeStatus::default() };
        let mut group = GroupStatus { name: "db".into(), volumes: vec![volume], ..GroupStatus::default() };
        let text = |group: &GroupStatus| page(&SourceStatus { groups: vec![group.clone()], ..SourceStatus::default() });
        assert!(!text(&group).contains("farside_group_lag"), "{}", text(&group));
        assert!(text(&group).contains("farside_volume_size_bytes{group=\"db\",volume=\"data\"} 7.0"), "{}", text(&group));
        group.lag_ms = Some(1500);
        assert!(text(&group).contains("farside_group_lag_seconds{group=\"db\"} 1.5"), "{}", text(&group));
    }
}
