//! A paired source that floods, asks and never reads, or is sent away: memory stays within what the limits say, and others
//! are served.

use bytes::Bytes;
use farside_layer::{Compression, Encoder, PartId, PartWriter, layer_digest};
use farside_ledger::LayerKind;
use farside_region::{Geometry, GranuleIndex, GranuleRun, RegionIndex, RegionRange, RegionSet};
use farside_transport::{CloseCode, Closed};
use farside_wire::{DigestQuery, EndMember, RefusalCode, RequestId, SourceMessage};

use crate::site::{Gateway, Session, Source, Volume, granules, noise, wait_until};

/// What the program and the allocator need beside what is counted.
const SLACK_BYTES: u64 = 64 << 20;

/// Somebody else publishes a point.
async fn others_are_served(gateway: &Gateway, name: &str) {
    let good = gateway.pair(name).await;
    let mut source = good.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
}

/// Asks for the digests of a whole volume, so many times, and reads no answer.
async fn ask(source: &mut Session, volume: &Volume, times: u64) {
    let run = GranuleRun { start: GranuleIndex(0), count: (64 << 20) / 4096 };
    for id in 0..times {
        source.send(SourceMessage::Digests(DigestQuery { id: RequestId(id), volume: volume.id, term: volume.term, run })).await;
    }
}

/// A volume whose digests take more than 128 KiB an answer.
async fn with_content(host: &Source) -> Volume {
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.publish_at_once(&volume, &[1], 8_000).await;
    volume
}

#[tokio::test]
async fn sources_that_ask_and_never_read_hold_little_memory() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let volume = with_content(&host).await;
    let before = gateway.resident_bytes_max();
    let mut asking = Vec::new();
    for run in 1..=4 {
        asking.push(host.connect_of_run("default", run).await);
    }
    for source in &mut asking {
        ask(source, &volume, 1_000).await;
    }
    for source in &asking {
        match source.closed().await {
            Closed::ByPeer { code: CloseCode::Overloaded, reason } => assert!(reason.contains("read"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    others_are_served(&gateway, "host2").await;
    // All answers that wait, and for each connection what is being written and is not acknowledged.
    let bound = (64 << 20) + 4 * (5 << 20) + SLACK_BYTES;
    let grown = gateway.resident_bytes_max() - before;
    assert!(grown <= bound, "{} MiB more than before", grown >> 20);
}

/// It has been closed, and goes on keeping its connection alive.
#[tokio::test]
async fn a_closed_source_that_does_not_read_is_gone_soon() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let volume = with_content(&host).await;
    let mut source = host.connect("default").await;
    ask(&mut source, &volume, 180).await;
    source.send_raw(b"\xff\xff\xff").await;
    assert!(matches!(source.closed().await, Closed::ByPeer { .. }));
    let gone = async || gateway.status().await.sources[0].connected_from.is_none();
    wait_until("it to be gone", gone).await;
}

/// As after an outage: what was written everywhere since makes parts of many frames, and as many come at once as may.
#[tokio::test]
async fn parts_of_many_frames_that_come_at_once_keep_within_their_memory_and_none_is_sent_away() {
    const PARTS: u32 = 16;
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let geometry = Geometry::new(4 << 30).expect("a geometry");
    let volume = source.claim_of("data", geometry).await;
    let (mut parts, mut digests, mut at) = (Vec::new(), Vec::new(), 0);
    for part in 0..PARTS {
        let id = PartId { key: volume.key(1), part, geometry };
        let mut writer = PartWriter::new(id, &volume.meta.digest_key, Encoder::new(Compression::Off));
        while writer.push_unreadable(GranuleRun { start: GranuleIndex(at), count: 1 }).is_ok() {
            at += 2;
        }
        let (bytes, summary, _) = writer.finish();
        parts.push(bytes);
        digests.push(summary.footer_digest);
    }
    let mut streams = Vec::new();
    for (part, bytes) in (0..).zip(&parts) {
        streams.push(source.begin_part(&volume, 1, part, &bytes[..bytes.len() - 1]).await);
    }
    for (mut stream, bytes) in streams.into_iter().zip(&parts) {
        stream.write(Bytes::copy_from_slice(&bytes[bytes.len() - 1..])).await.expect("it is wanted");
        stream.finish().expect("it is wanted");
    }
    let regions: RegionSet = (0..geometry.region_count()).map(RegionIndex).collect();
    let member = EndMember {
        key: volume.key(1),
        parts: PARTS,
        digest: layer_digest(&volume.key(1), &digests),
        regions: regions.clone(),
        whole_regions: RegionSet::default(),
        unreadable_regions: regions,
        volume_bytes: geometry.volume_bytes(),
    };
    source.end(vec![member], LayerKind::Fuzzy).await;
    source.published(&volume, 1).await;
    let budget = gateway.status().await.receive_budget;
    assert!(budget.used_bytes_max <= budget.limit_bytes, "{budget:?}");
}

/// The first layer never comes, and thousands of regions are named for each of those after it.
#[tokio::test]
async fn a_flood_of_end_messages_takes_bounded_memory() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let huge = Geometry::with_shape(4 << 50, 12, 10).expect("a geometry");
    let volume = source.claim_of("data", huge).await;
    let regions: RegionSet = (0..150_000).map(|i| RegionIndex(i * 6_000)).collect();
    let before = gateway.resident_bytes_max();
    for seq in 2..120 {
        let member = EndMember {
            regions: regions.clone(),
            whole_regions: RegionSet::default(),
            unreadable_regions: RegionSet::default(),
            volume_bytes: huge.volume_bytes(),
            ..volume.part(seq, &granules(0, 1)).1
        };
        source.end(vec![member], LayerKind::Fuzzy).await;
    }
    match source.closed().await {
        Closed::ByPeer { reason, .. } => assert!(reason.contains("too many regions"), "{reason}"),
        other => panic!("{other:?}"),
    }
    others_are_served(&gateway, "host2").await;
    // Eight for what is kept of end messages, two for frames that wait, and one of them taken apart.
    let bound = (8 << 20) + (2 << 20) + SLACK_BYTES;
    let grown = gateway.resident_bytes_max() - before;
    assert!(grown <= bound, "{} MiB more than before", grown >> 20);
}

/// Layers without parts need no credit. What they touched would be remembered for ever.
#[tokio::test]
async fn endless_records_take_bounded_memory_also_after_a_restart() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let huge = Geometry::with_shape(4 << 50, 12, 10).expect("a geometry");
    let volume = source.claim_of("data", huge).await;
    let before = gateway.resident_bytes_max();
    for seq in 1..60 {
        let mut regions: RegionSet = (0..100_000).map(|i| RegionIndex(i * 6_000 + seq)).collect();
        regions.insert_range(RegionRange { start: RegionIndex(0), count: 1 });
        let member = volume.empty_layer(seq, regions, huge.volume_bytes());
        source.end(vec![member], LayerKind::Fuzzy).await;
        source.published(&volume, seq).await;
    }
    let bound = farside_ledger::TOUCHED_BYTES_MAX as u64 + (8 << 20) + (2 << 20) + SLACK_BYTES;
    let grown = gateway.resident_bytes_max() - before;
    assert!(grown <= bound, "{} MiB more than before", grown >> 20);
    gateway.stop();
    gateway.start().await;
    host.connect_when_ready("default").await;
    assert!(gateway.resident_bytes_max() <= before + bound, "{} MiB", gateway.resident_bytes_max() >> 20);
}

/// L9: who sends more than he was granted would take what others were granted. He loses his connection instead, while his parts
/// are on their way: what was sent and not ended is counted nowhere else.
#[tokio::test]
async fn a_source_that_sends_more_than_it_was_granted_loses_its_connection_only() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
    // Each of them is less than the 32 MiB that every connection is granted at first.
    let mut parts = Vec::new();
    for part in 0..4 {
        let content: Vec<_> = granules(u64::from(part) * 3_072, 3_072).into_iter().map(|(at, c)| (at, noise(2, at, c))).collect();
        let (bytes, _) = volume.part_of(2, part, &content);
        parts.push(source.begin_part(&volume, 2, part, &bytes[..bytes.len() - 1]).await);
    }
    match source.closed().await {
        Closed::ByPeer { code: CloseCode::Protocol, reason } => assert!(reason.contains("granted"), "{reason}"),
        other => panic!("{other:?}"),
    }
    others_are_served(&gateway, "host2").await;
    // He may come again, as anybody who made a mistake.
    let mut source = host.connect_when_ready("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
}

#[tokio::test]
async fn a_source_can_be_sent_away_and_its_points_stay() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
    let words = gateway.run_and_fail(&["unpair", "host2", "--config", "receiver.toml"]);
    assert!(words.contains("host2"), "{words}");
    assert!(gateway.run_well(&["unpair", "host1", "--config", "receiver.toml"]).contains("points stay"));
    assert!(matches!(source.closed().await, Closed::ByPeer { code: CloseCode::NotPaired, .. }));
    assert!(host.dial().await.expect_err("it is not known any more").to_string().contains("does not know the source"));
    let status = gateway.status().await;
    assert_eq!((status.sources[0].name.as_str(), &status.sources[0].fingerprint), ("host1", &None));
    assert_eq!(gateway.points(Some("host1/default")).await.len(), 1);
    // With a new token it comes back, without taking anything over.
    gateway.pair("host1").await.connect("default").await;
}

/// Names that were only tried do not count against a source for ever.
#[tokio::test]
async fn empty_groups_give_way_to_others() {
    let mut gateway = Gateway::new("[limits]\ngroups_per_source = 2\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut kept = host.connect("kept").await;
    kept.claim("data").await;
    for name in ["one", "two", "three"] {
        // It may take a moment until the end of the one before is known.
        drop(host.connect_when_ready(name).await);
    }
    let names: Vec<String> = gateway.status().await.sources[0].groups.iter().map(|g| g.name.clone()).collect();
    assert_eq!(names, ["kept", "three"]);
}

/// It is told which versions are spoken here, and not that it sent garbage.
#[tokio::test]
async fn a_source_of_a_later_version_is_told_of_the_version() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut session = host.greet_as_later_version("default").await;
    let refusal = session.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Version);
    assert!(refusal.text.contains("speaks versions 1..=2"), "{}", refusal.text);
}
