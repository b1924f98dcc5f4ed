//! The threads of a volume, and the ways to give them orders.
//!
//! Invariant: when this is gone, so are they, and what they held: the rings, the map's lock. Nobody needs to say so on the way out of
//! an opening that failed between two of them.

use std::thread::JoinHandle;

use crossbeam::channel::Sender;
use farside_blockio::{Abandoned, Waker};

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

    /// Ends the queues: the host is served no more. Gives what a process that lives on must close before the device can be served
    /// again. Waits for the device.
    pub(crate) fn end_queues(&mut self) -> Vec<Abandoned> {
        self.tap.stop();
        self.queue_threads.drain(..).filter_map(|thread| thread.join().ok().flatten()).collect()
    }

    /// Ends all of them. Waits for the device.
    pub(crate) fn end(&mut self) {
        drop(self.end_queues());
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
    use crossbeam::channel::unbounded;
    use farside_nbd::Server;

    use super::*;

    #[test]
    fn what_was_begun_of_an_opening_that_failed_ends() {
        let (held, is_held) = unbounded::<()>();
        let (sender, _orders) = unbounded();
        let (intent, orders) = unbounded();
        let (_, tap) = Server::new(None, "data", "", farside_nbd::Limits::default(), Waker::new().expect("an eventfd"));
        let (sender_waker, queue_threads) = (Waker::new().expect("an eventfd"), Vec::new());
        let tap = tap::Handle::Nbd(tap);
        let mut threads = Threads {
            tap,
            sender,
            sender_waker,
            intent: intent.clone(),
            queue_threads,
            sender_thread: None,
            intent_thread: None,
        };
        threads.intent_thread = Some(std::thread::spawn(move || {
            let _map = held;
            while !matches!(orders.recv(), Ok(IntentOrder::Quit) | Err(_)) {}
        }));
        // The thread of the sender cannot be had: those who may still ask for a commit have their way to the thread, too.
        drop(threads);
        assert_eq!(is_held.try_recv(), Err(crossbeam::channel::TryRecvError::Disconnected), "the map is free");
        drop(intent);
    }
}
