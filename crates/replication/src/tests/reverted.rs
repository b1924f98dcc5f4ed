//! L6, L7: a machine that was reverted, or cloned, with its memory holds the term under which its other self went on.

use farside_ledger::LayerKind;
use farside_region::{RegionIndex, Seq, Term};
use farside_wire::{
    CurrentVolume, LayerFate, Published, ReceiverMessage, Refusal, RefusalCode, ResumeAnswer, ResumedLayer, SourceMessage,
};

use super::directed::{Host, at, current, granules, key, layer, refused, regions};
use super::world::volume;
use crate::source::{Action, RefusedWhy};

/// What the ledger says of volume 1, with so many layers under our term.
fn with_layers(last: u64) -> Option<CurrentVolume> {
    Some(CurrentVolume { last_seq: Seq(last), ..current(1, 0, true).expect("some") })
}

/// Everything is frozen, and one layer of it begun, read or not.
fn frozen(is_read: bool) -> Host {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, granules(0, 2))]);
    if is_read {
        host.read(1, 1);
        host.read(2, 2);
        host.end();
    }
    host
}

/// The same, on a new connection.
fn begun(is_read: bool) -> Host {
    let mut host = frozen(is_read);
    host.reconnect();
    host
}

/// Its one layer is said to be published, as one of so many.
fn resume(host: &mut Host, last: u64) {
    resume_as(host, last, LayerFate::Published { position: at(2), kind: LayerKind::Fuzzy });
}

fn resume_as(host: &mut Host, last: u64, fate: LayerFate) {
    let id = host.take(|m| match m {
        SourceMessage::Resume(q) if q.volume == volume(1) => Some(q.id),
        _ => None,
    });
    let layers = vec![ResumedLayer { seq: Seq(1), fate }];
    let answer = ResumeAnswer { id, volume: volume(1), term: Some(Term(0)), last_seq: Seq(last), layers };
    host.hear(ReceiverMessage::ResumeAnswer(answer));
}

fn claims_anew(host: &mut Host) -> bool {
    host.did(|a| matches!(a, Action::KeepHot { volume: id } if *id == volume(1)).then_some(())).is_some()
}

#[test]
fn l6_layers_of_our_term_that_nobody_here_made_are_a_fork() {
    let mut host = begun(true);
    // All of them touch what is frozen here, too.
    host.answer_ledger(1, (2..11).map(|slot| layer(slot, 0, regions(0, 1))).collect(), with_layers(9), Some(10));
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L7");
}

#[test]
fn l6_layers_of_our_term_that_were_published_since_the_look_are_a_fork() {
    let mut host = begun(true);
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    resume(&mut host, 9);
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L7");
}

#[test]
fn l7_a_layer_that_is_published_before_all_of_it_was_read_here_is_compared() {
    let mut host = begun(false);
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    resume(&mut host, 1);
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    assert!(claims_anew(&mut host), "nobody here said its end");
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L7");
}

/// The same, heard as it happens.
#[test]
fn l7_a_layer_that_others_publish_while_it_is_read_here_is_compared() {
    let mut host = frozen(false);
    let published = Published { position: at(2), kind: LayerKind::Fuzzy, layers: vec![key(1, 0, 1)] };
    host.hear(ReceiverMessage::Published(published));
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    assert!(claims_anew(&mut host), "nobody here said its end");
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L7");
}

/// Or on its way to be.
#[test]
fn l7_a_layer_that_is_staged_before_all_of_it_was_read_here_is_compared() {
    let mut host = begun(false);
    host.answer_ledger(1, Vec::new(), with_layers(0), Some(1));
    let fate = LayerFate::Landing { parts: 1, end: None, staged: true };
    resume_as(&mut host, 0, fate);
    host.answer_ledger(1, Vec::new(), with_layers(0), Some(1));
    assert!(claims_anew(&mut host), "nobody here said its end");
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L7");
}

#[test]
fn a_layer_that_was_read_and_is_published_lets_go() {
    let mut host = begun(true);
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    resume(&mut host, 1);
    assert_eq!(refused(&host, 1), None);
    assert!(!claims_anew(&mut host));
    assert!(host.source.owed(volume(1)).is_empty());
}

#[test]
fn l6_a_layer_that_was_published_with_other_content_has_all_that_is_hot_compared() {
    let mut host = frozen(true);
    let refusal = Refusal { code: RefusalCode::DuplicateDiffers, volume: Some(volume(1)), text: "other content".into() };
    host.hear(ReceiverMessage::Refusal(refusal));
    host.answer_ledger(1, vec![layer(2, 0, regions(0, 1))], with_layers(1), Some(2));
    assert!(claims_anew(&mut host));
}
