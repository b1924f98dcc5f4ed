//! A gateway that has no more room: what was begun comes to an end all the same, and its room back.

use farside_ledger::LayerKind;
use farside_region::{GranuleSet, RegionIndex, RegionSet};
use farside_wire::{Notice, ReceiverMessage};

use super::directed::{Host, granules, regions};
use super::world::{source_limits, volume};
use crate::source::{Action, Event, PartRead, Sample, SentPart, Start};

/// † What is unfinished takes room until it is published, and is published when it is finished: many volumes, each with a slice that has neither
/// enough in it nor credit for more, filled a gateway for ever.
#[test]
fn a_slice_that_waits_for_credit_ends_when_its_time_has_come() {
    let mut host = Host::new();
    host.add(1, None, None, RegionSet::new(), Start::Clean);
    host.connect_with(30);
    host.answer_ledger(1, Vec::new(), None, None);
    host.answer_claim(1, 0);
    host.sampled([(volume(1), Sample { dirty_bytes: 1 << 30, ..Sample::default() })]);
    host.switch(vec![(1, granules(0, 8 * 4))]);
    let part = |action: &Action| match action {
        Action::ReadPart(part) => Some((part.key, part.part)),
        _ => None,
    };
    let (key, number) = host.did(part).expect("a part to read");
    let read = PartRead {
        connection: host.connection(),
        key,
        part: number,
        sent: Some(SentPart { bytes: 16, footer_digest: [1; 32] }),
        next: RegionIndex(1),
        done: false,
        cut_held: false,
        granules: 4,
        left: GranuleSet::new(),
        unreadable: GranuleSet::new(),
        zero_regions: RegionSet::new(),
    };
    host.event(Event::PartRead(Box::new(read)));
    host.hear(ReceiverMessage::Notice(Notice::GatewayFull { free_bytes: 14, reserve_bytes: 64 }));
    host.sampled([(volume(1), Sample::default())]);
    assert!(host.did(part).is_none(), "what is left is of no use");
    assert!(host.says_no_end(), "there may be more in time");
    host.now += source_limits().slice_time;
    host.sampled([(volume(1), Sample::default())]);
    let end = host.end();
    assert_eq!((end.kind, end.members[0].key, end.members[0].parts), (LayerKind::Fuzzy, key, 1));
    assert_eq!(end.members[0].regions, regions(0, 1), "what was read, and the next slice goes on from there");
}
