//! Who is connected, for which group, and who is missed: the verdict of a gateway is not green while nothing is published of one of its groups.

use farside_control::failover::FailoverRequest;
use farside_control::receiver::{ReceiverGroup, ReceiverSource};
use farside_control::{Reason, Severity};
use farside_ledger::LayerKind;
use farside_region::{Generation, LedgerPosition, RecordDigest, Slot};
use farside_wire::{ReadLedger, ReceiverMessage, RequestId, SourceMessage};

use crate::site::{Gateway, Session, Volume, granules, wait_until};

async fn source(gateway: &Gateway, name: &str) -> ReceiverSource {
    gateway.status().await.sources.into_iter().find(|source| source.name == name).expect("it is paired")
}

async fn group(gateway: &Gateway, name: &str) -> ReceiverGroup {
    source(gateway, "host1").await.groups.into_iter().find(|group| group.name == name).expect("it is there")
}

fn has(reasons: &[Reason], severity: Severity, code: &str) -> bool {
    reasons.iter().any(|reason| reason.severity == severity && reason.code == code)
}

/// Asks what the ledger has above what this source saw published last. Whether it has that.
async fn has_position(session: &mut Session, volume: &Volume, position: LedgerPosition) -> bool {
    let question = ReadLedger { id: RequestId(4711), volume: volume.id, position: Some(position), after: None };
    session.send(SourceMessage::ReadLedger(question)).await;
    session
        .expect("a slice", |m| match m {
            ReceiverMessage::LedgerSlice(slice) if slice.id == RequestId(4711) => Some(slice.ancestor),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_group_that_is_gone_is_missed_while_its_host_is_there_for_another() {
    let (gateway, host, mut source_of, volume) = Gateway::with_claim().await;
    source_of.publish(&volume, 1, &granules(0, 4), LayerKind::Point).await;
    let mut files = host.connect("files").await;
    let other = files.claim("data").await;
    files.publish(&other, 1, &granules(0, 4), LayerKind::Point).await;
    wait_until("both to be there", async || group(&gateway, "files").await.connected_from.is_some()).await;
    let host1 = source(&gateway, "host1").await;
    let all = host1.groups.iter().flat_map(|group| &group.reasons).chain(&host1.reasons);
    assert!(all.clone().all(|reason| reason.severity == Severity::Info), "{:?}", all.collect::<Vec<_>>());
    drop(files);
    wait_until("one to be missed", async || has(&group(&gateway, "files").await.reasons, Severity::Warning, "not_connected"))
        .await;
    let host1 = source(&gateway, "host1").await;
    assert!(host1.connected_from.is_some() && host1.reasons.is_empty(), "{host1:?}");
    let default = group(&gateway, "default").await;
    assert!(default.connected_from.is_some() && !has(&default.reasons, Severity::Warning, "not_connected"), "{default:?}");
    drop(source_of);
    wait_until("its host to be missed", async || {
        has(&source(&gateway, "host1").await.reasons, Severity::Warning, "not_connected")
    })
    .await;
    assert!(!has(&group(&gateway, "files").await.reasons, Severity::Warning, "not_connected"), "it is said once");
}

/// The host says so itself, and replicates nothing; its connection stands.
#[tokio::test]
async fn a_source_that_saw_more_published_than_there_is_is_named_here_too() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let published = source.publish(&volume, 1, &granules(0, 4), LayerKind::Point).await;
    drop(source);
    let mut source = host.connect_when_ready("default").await;
    assert!(has_position(&mut source, &volume, published).await);
    assert!(!has(&group(&gateway, "default").await.reasons, Severity::Error, "target_rewound"));
    let newer = LedgerPosition { slot: Slot(published.slot.0 + 5), digest: RecordDigest([9; 32]) };
    assert!(!has_position(&mut source, &volume, newer).await);
    let is_rewound = async || has(&group(&gateway, "default").await.reasons, Severity::Error, "target_rewound");
    wait_until("it to be said", is_rewound).await;
    // A person has it go on from what there is.
    source.claim_above("data", &volume).await;
    wait_until("it to be over", async || !is_rewound().await).await;
}

#[tokio::test]
async fn a_host_that_stands_in_is_connected_and_one_without_volumes_is_no_outage() {
    let (gateway, _host, mut first, volume) = Gateway::with_claim().await;
    first.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(first);
    let other = gateway.pair("host2").await;
    let host2 = source(&gateway, "host2").await;
    assert!(has(&host2.reasons, Severity::Info, "not_connected") && host2.reasons.len() == 1, "{host2:?}");
    let request = FailoverRequest {
        group: "host1/default".into(),
        stand_in: Some("host2".into()),
        force: true,
        ..FailoverRequest::default()
    };
    gateway.client().failover(&request).await.expect("begun");
    wait_until("it to be missed", async || has(&group(&gateway, "default").await.reasons, Severity::Warning, "not_connected"))
        .await;
    let mut stands_in = other.connect_as("host1", "default").await;
    stands_in.claim_back("data", &volume, Generation(2)).await;
    wait_until("it to be there", async || group(&gateway, "default").await.host.as_deref() == Some("host2")).await;
    let (host1, host2) = (source(&gateway, "host1").await, source(&gateway, "host2").await);
    assert!(host1.reasons.is_empty() && host1.connected_from.is_none(), "{host1:?}");
    assert!(!has(&host1.groups[0].reasons, Severity::Warning, "not_connected"), "{host1:?}");
    assert!(host2.reasons.is_empty() && host2.connected_from.is_some(), "{host2:?}");
}
