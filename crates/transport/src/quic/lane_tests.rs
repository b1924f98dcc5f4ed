//! Several connections that are one: the common contract, what goes where, and how they end.

use std::sync::Arc;

use bytes::Bytes;

use super::handshake::{Lane, Opening};
use super::link::Core;
use super::tests::{Gateway, Raw, limits};
use super::{LANES_MAX, Limits};
use crate::conformance::{Ends, conformance, read_all};
use crate::memory::name;
use crate::{CloseCode, Closed, Connection, Dial};

const LANES: usize = 4;
const PART: usize = 1 << 20;

async fn until(mut is: impl FnMut() -> bool) {
    while !is() {
        tokio::task::yield_now().await;
    }
}

fn connections(end: &Arc<dyn Connection>) -> usize {
    end.statistics().connections as usize
}

async fn ends_of(gateway: &Gateway, lanes: usize, arrive: usize) -> Ends {
    let (source, _) = gateway.dialer_with("db1", lanes).await;
    let here = source.dial().await.expect("connected");
    let there = gateway.connected().await;
    until(|| connections(&here) == arrive && connections(&there) == arrive).await;
    (here, there)
}

async fn ends() -> (Ends, Gateway) {
    let gateway = Gateway::start(limits());
    (ends_of(&gateway, LANES, LANES).await, gateway)
}

conformance!(ends());

async fn send_part(from: &Arc<dyn Connection>, n: u8) {
    let mut part = from.open_part(Bytes::from(vec![n])).await.expect("opened");
    part.write(Bytes::from(vec![n; PART])).await.expect("written");
    part.finish().expect("finished");
}

async fn receive_part(to: &Arc<dyn Connection>) -> u8 {
    let mut part = to.accept_part().await.expect("a part");
    let body = read_all(part.body.as_mut()).await.expect("whole");
    assert!(body.len() == PART && body.iter().all(|byte| *byte == part.header[0]), "another part's");
    part.header[0]
}

#[tokio::test]
async fn parts_go_over_all_of_them_and_frames_over_the_first() {
    let (source, receiver, gateway) = {
        let ((source, receiver), gateway) = ends().await;
        (source, receiver, gateway)
    };
    let before = source.statistics().sent_bytes;
    let sending = tokio::spawn({
        let source = Arc::clone(&source);
        async move {
            for n in 0..2 * LANES as u8 {
                send_part(&source, n).await;
            }
        }
    });
    let mut came = Vec::new();
    for _ in 0..2 * LANES {
        came.push(receive_part(&receiver).await);
    }
    sending.await.expect("sent");
    came.sort_unstable();
    assert_eq!(came, (0..2 * LANES as u8).collect::<Vec<_>>());
    let carried = gateway.listener.carried();
    assert_eq!(carried.len(), LANES);
    assert!(carried.iter().all(|(_, bytes)| *bytes as usize >= PART), "each carried at least one: {carried:?}");
    assert!((source.statistics().sent_bytes - before) as usize >= 2 * LANES * PART, "what all have sent is counted");
}

/// Ends another connection than the first.
fn lose_one(gateway: &Gateway, receiver: &Arc<dyn Connection>) {
    let first = receiver.peer().address;
    let is_other = |(core, _): &(Arc<Core>, u64)| core.quinn().remote_address() != first;
    let (lane, _) = gateway.listener.carried().into_iter().find(is_other).expect("there are others");
    lane.quinn().close(quinn::VarInt::from_u32(0), b"");
}

#[tokio::test]
async fn one_over_which_nothing_went_ends_nobody() {
    let ((source, receiver), gateway) = ends().await;
    lose_one(&gateway, &receiver);
    until(|| connections(&source) == LANES - 1 && connections(&receiver) == LANES - 1).await;
    for n in 0..2 * LANES as u8 {
        let ((), came) = tokio::join!(send_part(&source, n), receive_part(&receiver));
        assert_eq!(came, n);
    }
    assert!(source.close_reason().is_none() && receiver.close_reason().is_none());
    assert_eq!(gateway.listener.carried().len(), LANES - 1);
}

#[tokio::test]
async fn the_last_word_is_sent_before_it_is_called_sent() {
    let ((source, receiver), _gateway) = ends().await;
    source.close(CloseCode::Settled, "all is published");
    source.sent().await;
    // Nothing is done here any more.
    std::mem::forget(source);
    assert!(matches!(receiver.closed().await, Closed::ByPeer { code: CloseCode::Settled, .. }));
}

#[tokio::test]
async fn whichever_ends_first_ends_all() {
    // One of the others, over which something went.
    let ((source, receiver), gateway) = ends().await;
    for n in 0..LANES as u8 {
        let ((), came) = tokio::join!(send_part(&source, n), receive_part(&receiver));
        assert_eq!(came, n);
    }
    lose_one(&gateway, &receiver);
    for end in [&source, &receiver] {
        match end.closed().await {
            Closed::Broken(why) => assert!(why.contains("another connection that carried parts of it ended"), "{why}"),
            // The other side was faster.
            Closed::ByPeer { code: CloseCode::Internal, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    until(|| gateway.listener.carried().is_empty()).await;

    // The first, by either side: its word is what counts, whatever arrives before it.
    for by_source in [true, false] {
        let ((source, receiver), gateway) = ends().await;
        let (closing, told) = if by_source { (source, receiver) } else { (receiver, source) };
        closing.close(CloseCode::Settled, "all is published");
        assert!(matches!(closing.closed().await, Closed::Here { code: CloseCode::Settled, .. }));
        let said = told.closed().await;
        assert!(matches!(&said, Closed::ByPeer { code: CloseCode::Settled, reason } if reason == "all is published"), "{said:?}");
        assert!(told.accept_part().await.is_err() && told.open_part(Bytes::new()).await.is_err());
        until(|| gateway.listener.carried().is_empty()).await;
    }
}

#[tokio::test]
async fn nobody_joins_the_connection_of_another_or_one_that_is_not_there() {
    let gateway = Gateway::start(limits());
    let (source, me) = gateway.dialer_with("db1", 1).await;
    let (_, other) = gateway.dialer_with("db2", 1).await;
    let here = source.dial().await.expect("connected");
    let there = gateway.connected().await;
    let open = async |who, lane: Lane| {
        let (identity, source) = if who == 1 { (&me, "db1") } else { (&other, "db2") };
        let raw = Raw::connect(&gateway, identity).await;
        let (mut send, receive) = raw.connection.open_bi().await.expect("opened");
        let opening = Opening { source: name(source), pairing: None, lane: Some(lane) };
        super::frames::write_frame(&mut send, opening.encode()).await.expect("written");
        (raw, send, receive)
    };
    assert_eq!(open(1, Lane::Joins([7; 16])).await.0.closed_with().await, CloseCode::Done, "nobody leads by that id");
    let (leading, _send, _receive) = open(1, Lane::Leads([7; 16])).await;
    let led = gateway.connected().await;
    assert_eq!(open(2, Lane::Joins([7; 16])).await.0.closed_with().await, CloseCode::Done, "it is another's");
    assert_eq!(connections(&led), 1);

    // Not more than there may be.
    let mut joined = Vec::new();
    for n in 1..LANES_MAX {
        joined.push(open(1, Lane::Joins([7; 16])).await);
        until(|| connections(&led) == n + 1).await;
    }
    assert_eq!(open(1, Lane::Joins([7; 16])).await.0.closed_with().await, CloseCode::Overloaded);
    assert_eq!(connections(&led), LANES_MAX);
    assert!(leading.connection.close_reason().is_none() && led.close_reason().is_none());
    here.send(Bytes::from_static(b"undisturbed")).await.expect("sent");
    assert_eq!(there.recv().await.expect("received"), "undisturbed");
}

#[tokio::test]
async fn where_there_is_little_room_it_goes_on_with_one() {
    let gateway = Gateway::start(Limits { connections_per_source: 4, ..limits() });
    let (source, receiver) = ends_of(&gateway, LANES, 2).await;
    send_part(&source, 3).await;
    assert_eq!(receive_part(&receiver).await, 3);
    assert!(source.close_reason().is_none() && receiver.close_reason().is_none());
    assert_eq!(gateway.listener.carried().len(), 2, "half of the room");
}
