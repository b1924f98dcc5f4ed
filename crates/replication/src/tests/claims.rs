//! A claim that is not taken.

use farside_ledger::VoidReason;
use farside_region::{Generation, GranuleSet, RegionSet};
use farside_wire::{
    ClaimOutcome, ClaimRequest, ClaimVerdict, Published, ReceiverMessage, Refusal, RefusalCode, RequestId, SourceMessage,
};

use super::directed::{Gateway, Host, at, granules};
use super::world::{meta, name, source_limits, volume};
use crate::source::{Action, Start};

/// One claim is refused, in words: it is said of that volume, made again, and the others go on over the same connection.
#[test]
fn a_volume_that_is_not_taken_holds_up_no_other() {
    let mut host = Host::streaming();
    host.add(3, None, None, RegionSet::new(), Start::Clean);
    host.dirt(0);
    let said = |host: &Host| host.source.status(host.now).volumes[2].claim_refused.clone();
    for _ in 0..3 {
        host.answer_ledger(3, Vec::new(), None, Some(1));
        let id = host.take(|m| match m {
            SourceMessage::Claim(q) if q.claim.volume.id == volume(3) => Some(q.id),
            _ => None,
        });
        let refusal = Refusal { code: RefusalCode::Protocol, volume: Some(volume(3)), text: "one too many".into() };
        host.hear(ReceiverMessage::Refusal(refusal));
        let outcome = ClaimOutcome::Void { reason: VoidReason::UnknownVolume(volume(3)) };
        host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(3), outcome }));
        assert_eq!(said(&host).as_deref(), Some("one too many"));
        assert!(host.did(|a| matches!(a, Action::Disconnect { .. }).then_some(())).is_none());
        host.now += source_limits().recheck;
        host.dirt(0);
    }
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.read(1, 1);
    let end = host.end();
    assert_eq!(end.members.len(), 2);
    // Nor is their lag its matter.
    let layers = end.members.iter().map(|member| member.key).collect();
    host.hear(ReceiverMessage::Published(Published { position: at(3), kind: end.kind, layers }));
    host.now += source_limits().heartbeat_interval;
    host.dirt(0);
    let heartbeat = host.take(|m| match m {
        SourceMessage::Heartbeat(heartbeat) => Some(heartbeat.clone()),
        _ => None,
    });
    assert_eq!(heartbeat.members.len(), 2);
    host.answer_ledger(3, Vec::new(), None, Some(1));
    host.answer_claim(3, 2);
    assert_eq!(said(&host), None);
}

/// The note of one volume is damaged: the others of its group go on.
#[test]
fn a_generation_that_nobody_was_given_ends_no_session() {
    let mut gateway = Gateway::new();
    let mut claim = farside_ledger::Claim { volume: meta(1), looked: None, source: name("host") };
    claim.volume.generation = Generation(u64::MAX);
    gateway.said();
    gateway.hear(1, SourceMessage::Claim(ClaimRequest { id: RequestId(7), claim }));
    let said = gateway.said();
    let is_void =
        |m: &ReceiverMessage| matches!(m, ReceiverMessage::ClaimVerdict(v) if v.id == RequestId(7) && v.volume == volume(1));
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Refusal(r) if r.volume == Some(volume(1)))), "{said:?}");
    assert!(said.iter().any(is_void), "{said:?}");
    gateway.claim(1, 2);
}
