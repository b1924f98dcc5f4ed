//! What a host does while things happen to its volumes: loads that run on threads of their own until they are ended, and say
//! then what they have written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::verify::{Rng, Verifier, connect};
use crate::{Site, wait_for};

/// Counters of [`dependent_writes`] go round so many places, so far apart; the newest wins.
const PLACES: u64 = 64;
const PLACE_BYTES: u64 = 16 << 10;

/// A load under way.
#[derive(Debug)]
pub struct Load<T> {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Load<T> {
    /// `step` does some requests and gives how many were acknowledged so far; `end` makes of it what is left.
    fn start<S: 'static>(begin: impl FnOnce() -> S + Send + 'static, step: fn(&mut S) -> u64, end: fn(S) -> T) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || {
                let mut state = begin();
                while !stop.load(Ordering::Relaxed) {
                    acknowledged.store(step(&mut state), Ordering::Relaxed);
                }
                end(state)
            })
        };
        Self { stop, acknowledged, thread }
    }

    /// It goes on.
    ///
    /// # Panics
    /// When it ended by itself, which it does only by finding something wrong.
    pub fn assert_running(&self) {
        assert!(!self.thread.is_finished(), "the load found something wrong");
    }

    /// Waits until so many more requests were acknowledged.
    ///
    /// # Panics
    /// As [`Load::assert_running`], and when it takes too long.
    pub fn wait_for_more(&self, requests: u64) {
        let from = self.acknowledged.load(Ordering::Relaxed);
        wait_for("the load to make progress", || {
            self.assert_running();
            (self.acknowledged.load(Ordering::Relaxed) > from + requests).then_some(())
        });
    }

    /// Ends it.
    ///
    /// # Panics
    /// When it found something wrong.
    pub fn end(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load found nothing wrong")
    }
}

/// A verifying client that does whatever comes to its mind.
pub fn verifying(socket: PathBuf, bytes: u64, seed: u64) -> Load<Verifier> {
    Load::start(
        move || (Verifier::new(&socket, bytes), Rng(seed)),
        |(client, rng)| {
            client.step(rng, 4096);
            client.acknowledged
        },
        |(client, _)| client,
    )
}

/// Counts in two volumes: in the second only after the first has acknowledged it. Ends with the last number.
pub fn dependent_writes(first: PathBuf, second: PathBuf) -> Load<u64> {
    Load::start(
        move || (connect(&first), connect(&second), 0u64),
        |(first, second, n)| {
            *n += 1;
            let mut block = vec![0; 4096];
            block[..8].copy_from_slice(&n.to_le_bytes());
            for client in [first, second] {
                client.write(*n % PLACES * PLACE_BYTES, &block, 0).expect("a write");
            }
            *n
        },
        |(_, _, n)| n,
    )
}

/// How far [`dependent_writes`] had come in a point of one of its volumes.
///
/// # Panics
/// When the point cannot be restored.
pub fn counter_in(site: &Site, volume: &str, point: &str) -> u64 {
    let image = site.path("counter.img");
    site.restore(volume, point, &image);
    let counter = counter_of(&image);
    std::fs::remove_file(image).expect("restored");
    counter
}

/// The same of a disk that is served at a socket.
///
/// # Panics
/// When it cannot be read.
pub fn counter_at(socket: &Path) -> u64 {
    let mut bytes = vec![0; (PLACES * PLACE_BYTES) as usize];
    connect(socket).read(0, &mut bytes).expect("read");
    newest_in(&bytes)
}

/// The same of a file that holds one of them.
///
/// # Panics
/// When it cannot be read.
pub fn counter_of(image: &Path) -> u64 {
    newest_in(&std::fs::read(image).expect("an image"))
}

fn newest_in(bytes: &[u8]) -> u64 {
    let places = bytes.chunks(PLACE_BYTES as usize).take(PLACES as usize);
    places.map(|place| u64::from_le_bytes(place[..8].try_into().expect("8 bytes"))).max().expect("64 places")
}
