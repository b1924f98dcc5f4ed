//! What every carrier must do, run against each of them.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    CloseCode, Closed, Connection, ConnectionError, FRAME_BYTES_MAX, HEADER_BYTES_MAX, PartError, PartReceiver, TrySendError,
};

/// Two ends of one connection: the source's and the receiver's.
pub(crate) type Ends = (Arc<dyn Connection>, Arc<dyn Connection>);

pub(crate) async fn read_all(body: &mut dyn PartReceiver) -> Result<Vec<u8>, PartError> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.next(10_000).await? {
        assert!(chunk.len() <= 10_000);
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

pub(crate) async fn frames_arrive_in_order((source, receiver): Ends) {
    let lengths = [0, 1, 1023, 1024, 1025, 70_000, FRAME_BYTES_MAX];
    let frames: Vec<Bytes> = (0..200).map(|i| Bytes::from(vec![i as u8; lengths[i % lengths.len()]])).collect();
    for (from, to) in [(&source, &receiver), (&receiver, &source)] {
        let (from, sent) = (Arc::clone(from), frames.clone());
        let task = tokio::spawn(async move {
            for frame in sent {
                from.send(frame).await.expect("sent");
            }
        });
        for (i, frame) in frames.iter().enumerate() {
            assert!(to.recv().await.expect("received") == *frame, "frame {i}");
        }
        task.await.expect("joined");
    }
}

pub(crate) async fn what_is_too_long_is_not_sent((source, receiver): Ends) {
    let long = Bytes::from(vec![0; FRAME_BYTES_MAX + 1]);
    assert!(matches!(source.send(long.clone()).await, Err(ConnectionError::FrameTooLong { .. })));
    assert!(matches!(source.try_send(long), Err(TrySendError::Connection(ConnectionError::FrameTooLong { .. }))));
    let header = Bytes::from(vec![0; HEADER_BYTES_MAX + 1]);
    assert!(matches!(source.open_part(header).await, Err(ConnectionError::HeaderTooLong { .. })));
    source.try_send(Bytes::from_static(b"still here")).expect("queued");
    assert_eq!(receiver.recv().await.expect("received"), "still here");
}

pub(crate) async fn a_full_queue_gives_the_frame_back((source, _receiver): Ends) {
    let frame = Bytes::from(vec![1; FRAME_BYTES_MAX]);
    let refused = (0..1000).find_map(|_| source.try_send(frame.clone()).err());
    assert_eq!(refused, Some(TrySendError::Full(frame)), "the queue is bounded");
}

pub(crate) async fn a_cancelled_recv_loses_nothing((source, receiver): Ends) {
    let mut received = 0_u32;
    let sender = tokio::spawn({
        let source = Arc::clone(&source);
        async move {
            for i in 0..100_u32 {
                let mut frame = vec![0; 50_000];
                frame[..4].copy_from_slice(&i.to_le_bytes());
                source.send(frame.into()).await.expect("sent");
            }
        }
    });
    while received < 100 {
        tokio::select! {
            biased;
            frame = receiver.recv() => {
                assert_eq!(frame.expect("received")[..4], received.to_le_bytes());
                received += 1;
            }
            () = tokio::task::yield_now() => {}
        }
    }
    sender.await.expect("joined");
}

pub(crate) async fn parts_carry_header_and_body((source, receiver): Ends) {
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
    for length in [0, 1, 3_000_000] {
        let header = Bytes::from(vec![9; if length == 1 { HEADER_BYTES_MAX } else { 3 }]);
        let (sender, sent, head) = (Arc::clone(&source), body[..length].to_vec(), header.clone());
        let task = tokio::spawn(async move {
            let mut part = sender.open_part(head).await.expect("opened");
            for chunk in sent.chunks(100_000) {
                part.write(Bytes::copy_from_slice(chunk)).await.expect("written");
            }
            part.finish().expect("finished");
        });
        let mut part = receiver.accept_part().await.expect("accepted");
        assert_eq!(part.header, header);
        assert!(read_all(&mut *part.body).await.expect("whole") == body[..length], "{length} bytes");
        assert_eq!(part.body.next(1).await, Ok(None), "the end stays the end");
        task.await.expect("joined");
    }
}

pub(crate) async fn parts_do_not_wait_for_each_other((source, receiver): Ends) {
    let mut slow = source.open_part(Bytes::from_static(b"slow")).await.expect("opened");
    slow.write(Bytes::from_static(b"begun")).await.expect("written");
    let first = receiver.accept_part().await.expect("accepted");
    let mut fast = source.open_part(Bytes::from_static(b"fast")).await.expect("opened");
    fast.write(Bytes::from_static(b"all")).await.expect("written");
    fast.finish().expect("finished");
    let mut second = receiver.accept_part().await.expect("accepted");
    assert_eq!((&first.header[..], &second.header[..]), (&b"slow"[..], &b"fast"[..]));
    assert_eq!(read_all(&mut *second.body).await.expect("whole"), b"all");
}

/// A body that ends early must never look whole.
pub(crate) async fn a_part_given_up_is_not_a_part((source, receiver): Ends) {
    for explicitly in [true, false] {
        let mut part = source.open_part(Bytes::from_static(b"h")).await.expect("opened");
        part.write(Bytes::from_static(b"torn")).await.expect("written");
        let mut incoming = receiver.accept_part().await.expect("accepted");
        if explicitly {
            part.reset()
        } else {
            drop(part)
        }
        assert_eq!(read_all(&mut *incoming.body).await, Err(PartError::Reset));
    }
}

pub(crate) async fn a_receiver_may_stop_a_part((source, receiver): Ends) {
    let mut part = source.open_part(Bytes::from_static(b"h")).await.expect("opened");
    drop(receiver.accept_part().await.expect("accepted"));
    let error = loop {
        if let Err(error) = part.write(Bytes::from(vec![0; 100_000])).await {
            break error;
        }
    };
    assert_eq!(error, PartError::Stopped);
    source.send(Bytes::from_static(b"and on")).await.expect("sent");
    assert_eq!(receiver.recv().await.expect("received"), "and on");
}

pub(crate) async fn a_close_is_told_with_its_words((source, receiver): Ends) {
    let mut part = source.open_part(Bytes::from_static(b"h")).await.expect("opened");
    part.write(Bytes::from_static(b"torn")).await.expect("written");
    let mut incoming = receiver.accept_part().await.expect("accepted");
    receiver.close(CloseCode::Refused, "the store is full");
    receiver.close(CloseCode::Done, "the first counts");
    let by_peer = Closed::ByPeer { code: CloseCode::Refused, reason: "the store is full".to_owned() };
    let here = Closed::Here { code: CloseCode::Refused, reason: "the store is full".to_owned() };
    assert_eq!(source.closed().await, by_peer);
    assert_eq!(source.close_reason(), Some(by_peer.clone()));
    assert_eq!(source.recv().await, Err(by_peer.clone().into()));
    assert_eq!(source.open_part(Bytes::new()).await.err(), Some(by_peer.clone().into()));
    assert_eq!(source.accept_part().await.err(), Some(by_peer.clone().into()));
    assert_eq!(part.write(Bytes::from_static(b"x")).await, Err(by_peer.clone().into()));
    assert_eq!(part.finish(), Err(by_peer.into()));
    assert_eq!(receiver.closed().await, here);
    assert!(read_all(&mut *incoming.body).await.is_err());
    while receiver.send(Bytes::from_static(b"x")).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn dropping_the_last_handle_closes((source, receiver): Ends) {
    // Before the handshake is confirmed a close may be lost with it; an answer confirms it.
    for (from, to) in [(&source, &receiver), (&receiver, &source)] {
        from.send(Bytes::from_static(b"hello")).await.expect("sent");
        assert_eq!(to.recv().await.expect("received"), "hello");
    }
    drop(source);
    let closed = receiver.closed().await;
    assert!(matches!(closed, Closed::ByPeer { code: CloseCode::Done, .. }), "{closed:?}");
}

/// Runs every check on fresh ends.
macro_rules! conformance {
    ($ends:expr) => {
        conformance!($ends, frames_arrive_in_order, what_is_too_long_is_not_sent, a_full_queue_gives_the_frame_back,
            a_cancelled_recv_loses_nothing, parts_carry_header_and_body, parts_do_not_wait_for_each_other,
            a_part_given_up_is_not_a_part, a_receiver_may_stop_a_part, a_close_is_told_with_its_words,
            dropping_the_last_handle_closes);
    };
    ($ends:expr, $($check:ident),*) => {
        $(
            #[tokio::test]
            async fn $check() {
                let (ends, _kept) = $ends.await;
                $crate::conformance::$check(ends).await;
            }
        )*
    };
}
pub(crate) use conformance;
