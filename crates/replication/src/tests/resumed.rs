//! What a resume tells of the layers that were under way.

use farside_ledger::LayerKind;
use farside_region::mutation::tell;
use farside_region::{GranuleSet, LayerKey, RegionSet, Seq, Term};
use farside_wire::{CurrentVolume, LayerFate, Published, ReceiverMessage};

use super::directed::{Host, at, current, granules, layer, refused, regions};
use super::world::volume;
use crate::source::{Action, Event};

/// The word of the first one's publication is lost with the connection, and of the later one it comes before anything was asked.
#[test]
fn t8_layers_are_let_go_in_their_order_whatever_is_heard_first() {
    tell(&[("T8 a layer is let go before those below it", "T8: it was zero before")], || {
        let mut host = Host::streaming();
        let second = |seq| LayerKey { volume: volume(2), term: Term(1), seq: Seq(seq) };
        let keys = [(1, regions(0, 1)), (2, RegionSet::new())].map(|(seq, zero)| {
            host.tick(&[1]);
            host.switch(vec![(1, granules(0, 1)), (2, GranuleSet::new())]);
            let key = host.read_as(1, 1, GranuleSet::new(), zero);
            host.end();
            vec![key, second(seq)]
        });
        host.reconnect();
        host.hear(ReceiverMessage::Published(Published { position: at(3), kind: LayerKind::Point, layers: keys[1].clone() }));
        let layers = [2, 3].map(|slot| layer(slot, 0, regions(0, 1))).to_vec();
        host.answer_ledger(1, layers, current(1, 0, true).map(|current| CurrentVolume { last_seq: Seq(2), ..current }), Some(3));
        let fates = [2, 3].map(|slot| (slot - 1, LayerFate::Published { position: at(slot), kind: LayerKind::Point }));
        host.answer_resume(1, 0, fates.to_vec());
        assert_eq!(refused(&host, 1), None);
        assert!(host.source.owed(volume(1)).is_empty());

        let status = host.source.status(host.now).volumes.into_iter().find(|status| status.volume == volume(1));
        let newest = status.and_then(|status| status.newest_point).map(|point| point.position);
        host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(0)), position: Some(at(3)) });
        host.event(Event::CoolWanted { volume: volume(1), regions: regions(0, 1) });
        let cool = |a: &Action| match a {
            Action::Cool { regions, zero, .. } => Some((regions.clone(), zero.clone())),
            _ => None,
        };
        assert_eq!(host.did(cool), Some((regions(0, 1), RegionSet::new())), "T8: it was zero before");
        assert_eq!(newest, Some(at(3)));
    });
}
