//! `GET /metrics`: the status in Prometheus' words. Names and units are documented in `docs/metrics.md`, which a test holds
//! against these tables.

use std::collections::BTreeMap;
use std::time::Duration;

use farside_control::cohort::CohortTally;
use farside_control::receiver::{ReceiverGroup, ReceiverSource, ReceiverStatus};
use farside_control::{Reason, Severity};
use farside_service::metrics::{In, Kind, Metric, PROCESS, Page, Process, Samples, Value, known, one};

/// The page for a status that was just made.
pub(crate) fn page(status: &ReceiverStatus) -> String {
    let mut page = Page::default();
    page.add(PROCESS, &[], &Process::look(env!("CARGO_PKG_VERSION"), Duration::from_millis(status.uptime_ms)));
    page.add(RECEIVER, &[], status);
    for cohort in &status.cohorts {
        page.add(COHORT, &[("cohort", &cohort.name)], cohort);
    }
    for source in &status.sources {
        page.add(SOURCE, &[("source", &source.name)], source);
        // † One without a lag deserves an alarm.
        for group in source.groups.iter().filter(|group| !group.is_unused()) {
            page.add(GROUP, &[("source", &source.name), ("group", &group.name)], group);
        }
    }
    page.text()
}

fn gauge(n: u64) -> Samples {
    one(Value::Gauge(n as f64))
}

fn count(n: u64) -> Samples {
    one(Value::Count(n))
}

fn reasons(reasons: &[Reason]) -> Samples {
    let mut counts = BTreeMap::new();
    for reason in reasons.iter().filter(|reason| reason.severity >= Severity::Warning) {
        *counts.entry(reason.code.clone()).or_insert(0u64) += 1;
    }
    counts.into_iter().map(|(code, n)| (Some(("code", code)), Value::Gauge(n as f64))).collect()
}

const RECEIVER: &[Metric<ReceiverStatus>] = &[
    Metric {
        name: "reasons",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Warnings and errors of the receiver and its store, by code (`farside explain CODE`)",
        read: |r| reasons(&r.reasons),
    },
    Metric {
        name: "store_writable",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 while the store takes new layers",
        read: |r| gauge(u64::from(r.store.writable)),
    },
    Metric {
        name: "store_free",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What its file system has left for sources, the reserve not counted",
        read: |r| gauge(r.store.free_bytes),
    },
    Metric {
        name: "store_reserve",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What is kept free for ledgers and pruning, so that a full disk can be got out of",
        read: |r| gauge(r.store.reserve_bytes),
    },
    Metric {
        name: "store_used",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What published segments take",
        read: |r| gauge(r.store.used_bytes),
    },
    Metric {
        name: "store_landing",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What landed and is not published yet",
        read: |r| gauge(r.store.landing_bytes),
    },
    Metric {
        name: "receive_budget_used",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Memory that holds parts on their way to the disk",
        read: |r| gauge(r.receive_budget.used_bytes),
    },
    Metric {
        name: "receive_budget_limit",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "The most it may hold",
        read: |r| gauge(r.receive_budget.limit_bytes),
    },
    Metric {
        name: "refused_peers",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Strangers and others that were refused at the door",
        read: |r| count(r.refused_peers),
    },
];

const COHORT: &[Metric<CohortTally>] = &[
    Metric {
        name: "cohort_missed",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Cuts of groups of several hosts as one that came to nothing, because a group missed them",
        read: |c| count(c.missed),
    },
    Metric {
        name: "cohort_held",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "How long writes were held for the last cut, at the host that held them longest; absent while there is none",
        read: |c| known(c.held_us.map(|us| us as f64 / 1_000_000.0)),
    },
    Metric {
        name: "cohort_newest_cut_timestamp",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "When the newest cut was begun of which every group has its point, none of them left aside or known to be damaged, by this machine's clock, since 1970; absent if there is none",
        read: |c| known(c.newest_at.map(|at| at.as_millisecond() as f64 / 1000.0)),
    },
];

const SOURCE: &[Metric<ReceiverSource>] = &[
    Metric {
        name: "source_connected",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 while it is connected",
        read: |s| gauge(u64::from(s.connected_from.is_some())),
    },
    Metric {
        name: "source_silent",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "How long nothing was heard of it; absent if nothing was since the receiver started",
        read: |s| known(s.silent_ms.map(|ms| ms as f64 / 1000.0)),
    },
];

const GROUP: &[Metric<ReceiverGroup>] = &[
    Metric {
        name: "group_connected",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "1 while a host is connected for it: its source, or one that stands in",
        read: |g| gauge(u64::from(g.connected_from.is_some())),
    },
    Metric {
        name: "group_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Age of what a restore would bring back, by this machine's clock; absent while it cannot be known",
        read: |g| known(g.lag_ms.map(|ms| ms as f64 / 1000.0)),
    },
    Metric {
        name: "group_staged_lag",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "Age of the newest point that is staged whole and waits to be published; absent while none does",
        read: |g| known(g.staged_lag_ms.map(|ms| ms as f64 / 1000.0)),
    },
    Metric {
        name: "group_unpublished",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "For how long the oldest of what is staged has waited to be published; absent while nothing does",
        read: |g| known(g.unpublished_ms.map(|ms| ms as f64 / 1000.0)),
    },
    Metric {
        name: "group_reasons",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Warnings and errors of the group, by code (`farside explain CODE`)",
        read: |g| reasons(&g.reasons),
    },
    Metric {
        name: "group_points",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Recovery points that are kept",
        read: |g| gauge(g.points),
    },
    Metric {
        name: "group_last_point_timestamp",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "When the newest point was cut, by the source's wall clock, since 1970; an idle group makes none",
        read: |g| known(g.last_point.as_ref().map(|p| p.cut_wall.as_millisecond() as f64 / 1000.0)),
    },
    Metric {
        name: "group_verified_point_timestamp",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "When the newest point that was verified was cut, by the source's wall clock, since 1970; absent if none was",
        read: |g| known(g.last_verified.map(|p| p.cut_wall.as_millisecond() as f64 / 1000.0)),
    },
    Metric {
        name: "group_verified_timestamp",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "When that point was verified, by this machine's wall clock, since 1970",
        read: |g| known(g.last_verified.map(|p| p.verified.at.as_millisecond() as f64 / 1000.0)),
    },
    Metric {
        name: "group_ledger_head",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "The highest slot of its ledger",
        read: |g| known(g.head_slot.map(|slot| slot as f64)),
    },
    Metric {
        name: "group_used",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What its published segments take",
        read: |g| gauge(g.used_bytes),
    },
    Metric {
        name: "group_dead",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Of these, what nothing needs any more",
        read: |g| gauge(g.dead_bytes),
    },
    Metric {
        name: "group_landing",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "What landed and is not published yet",
        read: |g| gauge(g.landing_bytes),
    },
    Metric {
        name: "group_layers_staged",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Layers that are durable here and not published",
        read: |g| gauge(g.volumes.iter().map(|volume| volume.staged).sum()),
    },
    Metric {
        name: "group_parts_landed",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Parts that landed",
        read: |g| count(g.counters.parts),
    },
    Metric {
        name: "group_landed",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "Their bytes",
        read: |g| count(g.counters.part_bytes),
    },
    Metric {
        name: "group_parts_failed",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Parts that did not land: torn, wrong, or not to be written",
        read: |g| count(g.counters.parts_failed),
    },
    Metric {
        name: "group_records",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Records that published layers, by `kind`: point, pass",
        read: |g| {
            let of = |kind: &str, n| (Some(("kind", kind.to_owned())), Value::Count(n));
            vec![of("point", g.counters.points_published), of("pass", g.counters.passes_published)]
        },
    },
    Metric {
        name: "group_publications",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Objects of the ledger that these records lie in",
        read: |g| count(g.counters.publications),
    },
    Metric {
        name: "group_prunes",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Prune records",
        read: |g| count(g.counters.prunes),
    },
    Metric {
        name: "group_merges",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Merges of parts that points no longer tell apart",
        read: |g| count(g.counters.merges),
    },
    Metric {
        name: "group_merge_written",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "What was written for merges",
        read: |g| count(g.counters.merge_written_bytes),
    },
    Metric {
        name: "group_merge_freed",
        unit: In::Bytes,
        kind: Kind::Counter,
        help: "What merges free once what they replaced is deleted, less what they wrote. Of a pack in which something else is needed nothing is freed",
        read: |g| count(g.counters.merge_freed_bytes),
    },
    Metric {
        name: "group_connections",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Connections of its source; more than one is a reconnect",
        read: |g| count(g.counters.connections),
    },
];

#[cfg(test)]
mod tests {
    use farside_service::metrics::{check_document, document};

    use super::*;

    #[test]
    fn the_document_says_what_is_served() {
        let rows = [
            document(PROCESS, ""),
            document(RECEIVER, ""),
            document(COHORT, "`cohort`"),
            document(SOURCE, "`source`"),
            document(GROUP, "`source`, `group`"),
        ];
        let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        check_document(path, "farside-receiver", &rows.concat()).expect("the document is up to date");
    }

    #[test]
    fn a_group_in_which_nothing_ever_was_is_not_alarmed_about() {
        let page_of = |group: ReceiverGroup| {
            let source = ReceiverSource { name: "web".into(), groups: vec![group], ..ReceiverSource::default() };
            page(&ReceiverStatus { sources: vec![source], ..ReceiverStatus::default() })
        };
        let unused = || ReceiverGroup { name: "default".into(), ..ReceiverGroup::default() };
        assert!(!page_of(unused()).contains("group=\"default\""), "{}", page_of(unused()));
        // One whose volume is on its way has nothing to restore, and one that cannot be read may have anything.
        let reasons = vec![Reason::new(Severity::Error, farside_control::Code::StoreFailed, "away", "")];
        for group in [ReceiverGroup { head_slot: Some(0), ..unused() }, ReceiverGroup { reasons, ..unused() }] {
            assert!(page_of(group.clone()).contains("group=\"default\""), "{group:?}");
        }
    }

    #[test]
    fn an_unknown_lag_is_absent_and_not_zero() {
        let mut group = ReceiverGroup { name: "db".into(), points: 3, head_slot: Some(7), ..ReceiverGroup::default() };
        let text = |group: &ReceiverGroup| {
            let source = ReceiverSource { name: "web".into(), groups: vec![group.clone()], ..ReceiverSource::default() };
            page(&ReceiverStatus { sources: vec![source], ..ReceiverStatus::default() })
        };
        assert!(!text(&group).contains("farside_group_lag"), "{}", text(&group));
        assert!(text(&group).contains("farside_group_points{source=\"web\",group=\"db\"} 3.0"), "{}", text(&group));
        group.lag_ms = Some(1500);
        assert!(text(&group).contains("farside_group_lag_seconds{source=\"web\",group=\"db\"} 1.5"), "{}", text(&group));
    }
}
