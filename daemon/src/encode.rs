//! Encodes regions for every sender of the daemon: compares, digests and compresses on threads of its own.
//!
//! Invariants: a region that was handed in comes back exactly once, whatever became of its sender, and its buffers with it: † these
//! threads give way to everybody, and never hold the lock of a pool that a sender may wait for, with host writes behind it. A region's frames depend on nothing but the region, so the order in which regions come back says nothing.
//! Bounded by its callers, whose windows bound what they hand in, what they gave up included until it is back; that comes back
//! without having been encoded. The senders themselves never encode content: their rings have reads
//! to reap that a host write may be waiting for. A region of holes is no work: to wake a thread for it takes ten times as long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use farside_blockio::process::Priority;
use farside_blockio::{Buffer, Waker};
use farside_keys::{ContentKeys, Sealer, Secret};
use farside_layer::{Compression, Encoder, FrameEncoder, Frames, is_zero};
use farside_region::{Geometry, GranuleIndex, GranuleRun, RegionIndex};

use crate::channel::{Receiver, Sender, channel};
use crate::verify::Published;

/// The threads, as long as somebody holds one of these.
#[derive(Clone, Debug)]
pub(crate) struct Encoders {
    tasks: Sender<Task>,
}

/// What was read of a run.
#[derive(Debug)]
pub(crate) enum Content {
    Read(Buffer),
    Held(Vec<u8>),
    Zero,
    Unreadable,
}

/// A region to encode.
pub(crate) struct Task {
    pub(crate) region: RegionIndex,
    pub(crate) geometry: Geometry,
    pub(crate) keys: ContentKeys,
    /// Everything that is wanted of it; in any order.
    pub(crate) runs: Vec<(GranuleRun, Content)>,
    /// What is published, granule by granule from the region's first, if what equals it is to be left out.
    pub(crate) published: Option<Vec<Published>>,
    pub(crate) compression: Compression,
    /// Comes back with it.
    pub(crate) generation: u32,
    /// Another generation there: nobody wants this one any more.
    pub(crate) wanted: Arc<AtomicU32>,
    pub(crate) done: Sender<Encoded>,
    pub(crate) waker: Waker,
}

/// A region that was encoded.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) region: RegionIndex,
    pub(crate) generation: u32,
    /// As many as were handed in.
    pub(crate) granules: u64,
    pub(crate) frames: Frames,
    /// Granules that were left out.
    pub(crate) equal: u64,
    /// The whole region was wanted, and is zeroes throughout.
    pub(crate) is_zero: bool,
    pub(crate) unreadable: Vec<GranuleRun>,
    /// What was handed in, for its sender to drop.
    pub(crate) content: Vec<(GranuleRun, Content)>,
}

impl Encoders {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let (tasks, queue) = channel();
        for i in 0..threads.max(1) {
            let queue: Receiver<Task> = queue.clone();
            let mut encoder = encoder()?;
            thread::Builder::new().name(format!("encode-{i}")).spawn(move || {
                let _ = Priority::Background.set(); // where it is refused, all threads are equal
                for task in queue.iter() {
                    encoder.set(task.compression);
                    let (done, waker) = (task.done.clone(), task.waker.clone());
                    let (encoded, again) = task.encode(encoder);
                    encoder = again;
                    if done.send(encoded).is_ok() {
                        waker.wake();
                    }
                }
            })?;
        }
        Ok(Self { tasks })
    }

    /// Gives back at once what is no work. The rest comes to where the task says.
    pub(crate) fn hand_in(&self, task: Task) -> Option<Encoded> {
        if task.is_no_work()
            && let Ok(encoder) = encoder()
        {
            return Some(task.encode(encoder).0);
        }
        self.tasks.send(task).expect("the threads live as long as this");
        None
    }
}

/// One that can encrypt, with salts that nobody else has.
fn encoder() -> std::io::Result<Encoder> {
    let seed = Secret::random().map_err(|e| std::io::Error::other(format!("no randomness: {e}")))?;
    Ok(Encoder::new(Compression::Off).sealing(Sealer::new(seed)))
}

impl Task {
    /// Whether there is nothing in it to compare, digest or compress.
    fn is_no_work(&self) -> bool {
        self.published.is_none() && self.runs.iter().all(|(_, content)| matches!(content, Content::Zero))
    }

    fn encode(mut self, encoder: Encoder) -> (Encoded, Encoder) {
        let geometry = self.geometry;
        let granules: u64 = self.runs.iter().map(|(run, _)| run.count).sum();
        let is_wanted = self.wanted.load(Ordering::Relaxed) == self.generation;
        self.runs.sort_by_key(|(run, _)| run.start);
        let runs = if is_wanted { &self.runs[..] } else { &[] };
        let whole = geometry.region_run(self.region);
        let is_zero = granules == whole.count && !runs.is_empty() && runs.iter().all(|(_, content)| content.is_zero());
        let content_bytes = runs.iter().filter_map(|(_, c)| c.data()).map(<[u8]>::len).sum();
        let mut frames = FrameEncoder::new(geometry, &self.keys, encoder, content_bytes);
        let digest_key = *self.keys.digest_key().expect("who sends a volume has its keys");
        let mut unreadable = Vec::new();
        let mut equal = 0;
        for (run, content) in runs {
            if matches!(content, Content::Unreadable) {
                unreadable.push(*run);
            }
            let differs = |i: u64| match &self.published {
                None => true,
                Some(published) => {
                    let granule = GranuleIndex(run.start.0 + i);
                    let published = published.get((granule.0 - whole.start.0) as usize).copied().unwrap_or(Published::Absent);
                    let now = content.data().map(|data| piece(&geometry, data, i, 1));
                    matches!(content, Content::Unreadable) || !published.equals(&digest_key, granule, now)
                }
            };
            let mut i = 0;
            while i < run.count {
                if !differs(i) {
                    equal += 1;
                    i += 1;
                    continue;
                }
                // Without a comparison it is one run.
                let mut end = if self.published.is_some() { i + 1 } else { run.count };
                while end < run.count && differs(end) {
                    end += 1;
                }
                let sub = GranuleRun { start: GranuleIndex(run.start.0 + i), count: end - i };
                let pushed = match content {
                    Content::Read(_) | Content::Held(_) => {
                        let data = content.data().expect("content that was read");
                        frames.push_read(sub.start, piece(&geometry, data, i, end - i))
                    }
                    Content::Zero => frames.push_zero(sub),
                    Content::Unreadable => frames.push_unreadable(sub),
                };
                pushed.expect("runs ascend");
                // What ended the run is equal, and was just looked at.
                equal += u64::from(end < run.count);
                i = end + 1;
            }
        }
        let (frames, encoder) = frames.finish();
        let Self { region, generation, runs: content, .. } = self;
        (Encoded { region, generation, granules, frames, equal, is_zero, unreadable, content }, encoder)
    }
}

impl Content {
    fn data(&self) -> Option<&[u8]> {
        match self {
            Self::Read(buffer) => Some(buffer),
            Self::Held(data) => Some(data),
            Self::Zero | Self::Unreadable => None,
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Self::Zero => true,
            Self::Unreadable => false,
            Self::Read(_) | Self::Held(_) => self.data().is_some_and(is_zero),
        }
    }
}

/// The bytes of `count` granules from the i-th of a run's content.
fn piece<'a>(geometry: &Geometry, data: &'a [u8], i: u64, count: u64) -> &'a [u8] {
    let size = geometry.granule_bytes() as usize;
    &data[i as usize * size..data.len().min((i + count) as usize * size)]
}

#[cfg(test)]
mod tests {
    use farside_layer::{PartAssembler, PartId};
    use farside_region::{LayerKey, Seq, Term, VolumeId};

    use super::*;

    fn task(done: &Sender<Encoded>, runs: Vec<(GranuleRun, Content)>, generation: u32, wanted: &Arc<AtomicU32>) -> Task {
        Task {
            region: RegionIndex(1),
            geometry: Geometry::new(8 << 20).expect("valid"),
            keys: (&[7; 32]).into(),
            runs,
            published: None,
            compression: Compression::Off,
            generation,
            wanted: wanted.clone(),
            done: done.clone(),
            waker: Waker::new().expect("an eventfd"),
        }
    }

    #[test]
    fn buffers_are_dropped_by_whom_they_belong_to() {
        let encoders = Encoders::start(1).expect("a thread");
        let (done, encoded) = channel();
        let wanted = Arc::new(AtomicU32::new(4));
        let pool = farside_blockio::BufferPool::new(8192, 4096).expect("memory");
        let first = Geometry::new(8 << 20).expect("valid").region_run(RegionIndex(1)).start;
        for generation in [3, 4] {
            let read = Content::Read(pool.take(4096).expect("room"));
            encoders.hand_in(task(&done, vec![(GranuleRun { start: first, count: 1 }, read)], generation, &wanted));
        }
        drop((encoders, done));
        let back: Vec<_> = encoded.iter().collect();
        assert_eq!(pool.in_use(), 8192, "an encoder's thread may be stopped at any moment: it never has the pool's lock");
        drop(back);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn holes_are_back_at_once_and_as_a_thread_would_have_encoded_them() {
        let geometry = Geometry::new(8 << 20).expect("valid");
        let encoders = Encoders::start(1).expect("a thread");
        let (done, encoded) = channel();
        let (wanted, run) = (Arc::default(), geometry.region_run(RegionIndex(1)));
        let hand_in = |content| encoders.hand_in(task(&done, vec![(run, content)], 0, &wanted));
        let now = hand_in(Content::Zero).expect("no work");
        assert!(hand_in(Content::Held(vec![0; 4 << 20])).is_none());
        let read = encoded.recv().expect("a thread");
        assert!(now.is_zero && read.is_zero);
        assert_eq!((now.granules, read.granules), (run.count, run.count));
        let part = |encoded: Encoded| {
            let (volume, term, seq) = (VolumeId([1; 16]), Term(1), Seq(1));
            let mut part = PartAssembler::new(PartId { key: LayerKey { volume, term, seq }, part: 0, geometry }, false);
            part.append(encoded.frames).expect("the first");
            part.finish().0
        };
        assert_eq!(part(now), part(read));
        // What is published of it has to be looked at.
        let mut compared = task(&done, vec![(run, Content::Zero)], 0, &wanted);
        compared.published = Some(vec![Published::Absent; run.count as usize]);
        assert!(encoders.hand_in(compared).is_none());
    }

    #[test]
    fn what_was_given_up_comes_back_once_and_unencoded() {
        let geometry = Geometry::new(8 << 20).expect("valid");
        let encoders = Encoders::start(1).expect("a thread");
        let (done, encoded) = channel();
        let wanted = Arc::new(AtomicU32::new(4));
        let run = geometry.region_run(RegionIndex(1));
        for generation in [3, 4] {
            encoders.hand_in(task(&done, vec![(run, Content::Unreadable)], generation, &wanted));
        }
        drop((encoders, done));
        let back: Vec<_> = encoded.iter().map(|e| (e.generation, e.granules, e.is_zero, e.unreadable)).collect();
        assert_eq!(back, [(3, run.count, false, vec![]), (4, run.count, false, vec![run])]);
    }
}
