//! The threads of a volume, and the ways to give them orders.
//!
//! Invariant: when this is gone, so are they, and what they held: the rings, the map's lock. Nobody needs to say so on the way out of
//! an opening that failed between two of them.

use std::thread::JoinHandle;

use farside_blockio::{Abandoned, Waker};

use crate::channel::Sender;
use crate::sender::Order;
use crate::tap;
use crate::volume::IntentOrder;

pub(crate) struct Threads {
    pub(crate) tap: tap::Handle,
    pub(crate) sender: Sender<Order>,
    pub(crate) sender_waker: Waker,
    pub(crate) intent: Sender<IntentOrder>,
    pub(crate) queue_threads: Vec<JoinHandle<Option<Abandoned>>>,
    pub(crate) sender_thread: Option<JoinHandle<()>>,
    pub(crate) intent_thread: Option<JoinHandle<()>>,
}

impl Threads {
    /// Gives the sender an order.
    pub(crate) fn send(&self, order: Order) {
        let _ = self.sender.send(order); // its thread outlives us, or has reported why not
        self.sender_waker.wake();
    }

    /// Gives the intent thread an order.
    pub(crate) fn intent(&self, order: IntentOrder) {
        let _ = self.intent.send(order);
    }

    /// Whether a thread of the tap is over, by a stop or because it could not begin.
    pub(crate) fn tap_has_ended(&self) -> bool {
        self.queue_threads.is_empty() || self.queue_threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends the queues: the host is served no more, until its device is served again, also by this process. Waits for the device.
    pub(crate) fn end_queues(&mut self) {
        self.abandon_queues().into_iter().for_each(Abandoned::close);
    }

    /// Ends the queues of a process that ends, which need not be waited for as long. Gives what ends with it. Waits for the device.
    pub(crate) fn abandon_queues(&mut self) -> Vec<Abandoned> {
        self.tap.stop();
        self.queue_threads.drain(..).filter_map(|thread| thread.join().ok().flatten()).collect()
    }

    /// Ends all of them. Waits for the device.
    pub(crate) fn end(&mut self) {
        self.end_queues();
        self.send(Order::Quit);
        self.intent(IntentOrder::Quit);
        for thread in [self.sender_thread.take(), self.intent_thread.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    use farside_blockio::{Buffer, Ring, Tag};
    use farside_nbd::Server;

    use super::*;
    use crate::channel::{Nothing, Receiver, channel};

    /// Threads of a volume that has none yet, and what they would be told.
    fn threads() -> (Threads, Receiver<Order>, Receiver<IntentOrder>) {
        let (sender, orders) = channel();
        let (intent, intent_orders) = channel();
        let waker = || Waker::new().expect("an eventfd");
        let (_, tap) = Server::new(None, "data", "", farside_nbd::Limits::default(), waker());
        let (tap, sender_waker, queue_threads) = (tap::Handle::Nbd(tap), waker(), Vec::new());
        let threads = Threads { tap, sender, sender_waker, intent, queue_threads, sender_thread: None, intent_thread: None };
        (threads, orders, intent_orders)
    }

    #[test]
    fn what_was_begun_of_an_opening_that_failed_ends() {
        let (held, is_held) = channel::<()>();
        let (mut threads, _orders, orders) = threads();
        let intent = threads.intent.clone();
        threads.intent_thread = Some(std::thread::spawn(move || {
            let _map = held;
            while !matches!(orders.recv(), Ok(IntentOrder::Quit) | Err(_)) {}
        }));
        // The thread of the sender cannot be had: those who may still ask for a commit have their way to the thread, too.
        drop(threads);
        assert_eq!(is_held.try_recv(), Err(Nothing::Ever), "the map is free");
        drop(intent);
    }

    /// What a queue thread left with the kernel stayed there when an opening failed after it: the next one of the same process met a
    /// device that was served.
    #[test]
    fn what_a_queue_left_in_flight_has_ended_too() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        theirs.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let (mut threads, _orders, _intent) = threads();
        threads.queue_threads.push(std::thread::spawn(move || {
            let (ours, mut ring) = (Arc::new(OwnedFd::from(ours)), Ring::new(8).expect("a ring"));
            ring.recv(Tag::server(1), &ours, Buffer::alone(4096).expect("memory"), 0..4096);
            ring.wait(Some(Duration::ZERO)).expect("begun");
            Some(ring.abandon())
        }));
        drop(threads);
        assert_eq!(theirs.read(&mut [0]).expect("the kernel holds the other end no more"), 0);
    }
}
