//! What a wrong or hostile peer, or a store that is not as it was left, must not be able to do to a gateway.

use farside_ledger::{Body, LayerKind, Verdict};
use farside_wire::{Lost, ReceiverMessage};

use super::directed::{Gateway, claimed, key};
use crate::target::{Action, AppendOutcome, DropWhy, Event, Report, Ticket};

fn take_append(gateway: &mut Gateway) -> Option<(Ticket, Body)> {
    let at = gateway.did.iter().position(|a| matches!(a, Action::Append { .. }))?;
    let Action::Append { ticket, body } = gateway.did.remove(at) else { unreachable!("just seen") };
    Some((ticket, *body))
}

fn lost(said: &[ReceiverMessage]) -> Vec<farside_region::LayerKey> {
    let lost = said.iter().filter_map(|m| match m {
        ReceiverMessage::Lost(Lost { layers }) => Some(layers.clone()),
        _ => None,
    });
    lost.flatten().collect()
}

/// A point of both volumes, staged; its append is under way.
fn point() -> (Gateway, Ticket) {
    let mut gateway = claimed();
    let (one, two) = (key(1, 0, 1), key(2, 1, 1));
    gateway.part(one, 0, 1);
    gateway.part(two, 0, 2);
    gateway.end(LayerKind::Point, &[(one, &[1]), (two, &[2])]);
    let (ticket, _) = take_append(&mut gateway).expect("a point");
    gateway.said();
    (gateway, ticket)
}

#[test]
fn a_record_that_can_never_be_made_loses_the_layer_to_blame_and_holds_up_nothing() {
    let (mut gateway, ticket) = point();
    let outcome = AppendOutcome::Unusable { layers: vec![key(1, 0, 1)], text: "part 0 is gone".into() };
    gateway.event(Event::Appended { ticket, outcome });
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1)], "T5");
    let dropped = |a: &Action| matches!(a, Action::Report { what: Report::Dropped { why: DropWhy::Unusable, .. }, .. });
    assert!(gateway.did.iter().any(|a| matches!(a, Action::DropLayer { key: k } if *k == key(1, 0, 1))));
    assert_eq!(gateway.did.iter().filter(|a| dropped(a)).count(), 1);
    assert!(gateway.target.trouble().is_none(), "the store is well");
    assert!(take_append(&mut gateway).is_none(), "a point without a member");
    // The source claims the volume anew and says the other member again, alone.
    gateway.end(LayerKind::Fuzzy, &[(key(2, 1, 1), &[2])]);
    assert_eq!(gateway.append().expect("at once").1, Verdict::Accepted);
    gateway.claim(1, 1);
    gateway.part(key(1, 3, 1), 0, 7);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 3, 1), &[7])]);
    assert_eq!(gateway.append().expect("goes on").1, Verdict::Accepted);
}

#[test]
fn a_record_that_can_never_be_made_loses_all_its_layers_if_none_is_to_blame() {
    let (mut gateway, ticket) = point();
    let outcome = AppendOutcome::Unusable { layers: Vec::new(), text: "too large".into() };
    gateway.event(Event::Appended { ticket, outcome });
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1), key(2, 1, 1)]);
    assert!(take_append(&mut gateway).is_none());
}

#[test]
fn one_part_landed_twice_with_other_content_is_lost() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.part(key(1, 0, 1), 0, 1);
    assert!(lost(&gateway.said()).is_empty(), "the same again");
    gateway.part(key(1, 0, 1), 0, 2);
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1)]);
    // Staged, and not yet published.
    let (mut gateway, _) = point();
    gateway.part(key(2, 1, 1), 0, 3);
    assert_eq!(lost(&gateway.said()), [key(2, 1, 1)]);
}
