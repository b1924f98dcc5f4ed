//! The memory carrier keeps the common contract, and its controls break what they say.

use super::*;
use crate::conformance::{Ends, conformance};

async fn ends() -> (Ends, Network) {
    let network = Network::new("source", "receiver");
    let source = network.dialer().dial().await.expect("connected");
    let receiver = network.accept().await;
    assert_eq!((source.peer().name.as_str(), receiver.peer().name.as_str()), ("receiver", "source"));
    ((source, receiver), network)
}

conformance!(ends());

#[tokio::test]
async fn a_cut_is_seen_at_both_ends() {
    let ((source, receiver), network) = ends().await;
    network.cut();
    assert_eq!((source.closed().await, receiver.closed().await), (Closed::TimedOut, Closed::TimedOut));
    assert_eq!(source.send(Bytes::new()).await, Err(Closed::TimedOut.into()));
    let again = network.dialer().dial().await.expect("connected");
    let _there = network.accept().await;
    assert_eq!(again.close_reason(), None);
}

#[tokio::test]
async fn parts_are_reset_and_the_connection_lives() {
    let ((source, receiver), network) = ends().await;
    let mut part = source.open_part(Bytes::new()).await.expect("opened");
    part.write(Bytes::from_static(b"torn")).await.expect("written");
    let mut incoming = receiver.accept_part().await.expect("accepted");
    network.reset_parts();
    assert_eq!(incoming.body.next(10).await, Err(PartError::Reset));
    assert_eq!(part.write(Bytes::new()).await, Err(PartError::Stopped));
    source.send(Bytes::from_static(b"on")).await.expect("sent");
    assert_eq!(receiver.recv().await.expect("received"), "on");
}
