//! What a disk lacks of a point, asked of the receiver region by region.
//!
//! Invariant: nothing is written that is not a part of the point's content, checked against its digests; where an answer is missing, nothing of
//! its region is written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farside_keys::{ContentKeys, GroupKey, Secret};
use farside_layer::{Footer, FrameDecoder, RunKind, granule_digest, is_zero};
use farside_region::{Geometry, GranuleDigest, GranuleIndex, GranuleRun, LedgerPosition, Name, RegionIndex, RegionSet, VolumeId};
use farside_store::{FileTarget, RestoreTarget as _, StoreError};
use farside_transport::Connection;
use farside_wire::{
    DigestRun, Features, ForkPin, InstanceId, NO_KEY, PULL_MEMBERS_MAX, PULL_OPEN_MAX, PullBegin, PullChunk, PullFork, PullPoint,
    PullQuery, PullVolumes, ReceiverMessage, RequestId, RollBackAnswer, RollBackAsk, SourceHello, SourceMessage, VersionRange,
    decode_payload, encode_payload,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::branch::{KeepError, KeptVolume};
use crate::locked;

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("the connection to the receiver ended: {0}")]
    Ended(String),
    #[error("the receiver refuses: {0}")]
    Refused(String),
    #[error("{0}")]
    NotThere(String),
    /// Of an encrypted volume, here or there. Nothing else is wrong.
    #[error("{0}")]
    NoKey(String),
    #[error("this receiver is too old for a failback: update it")]
    TooOld,
    #[error("this receiver is too old to say from where the disks went their own way: update it, or say --discard-branch")]
    NoFork,
    #[error("this receiver is too old to say what a rollback discards, and to pin it")]
    NoRollback,
    #[error("the receiver sent what does not fit: {0}")]
    Nonsense(String),
    #[error(transparent)]
    Disk(#[from] StoreError),
    #[error("{path}: {why}")]
    Io { path: String, why: std::io::Error },
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("it was told to stop")]
    Stopped,
}

impl PullError {
    fn refused(text: String) -> Self {
        if text.starts_with(NO_KEY) { Self::NoKey(text) } else { Self::Refused(text) }
    }
}

/// A receiver of which nothing comes for so long is asked over another connection.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody wants it to stop.
const LOOK: Duration = Duration::from_millis(200);

type Answer = Result<Vec<u8>, String>;

#[derive(Debug)]
struct Waiting {
    part: Vec<u8>,
    done: oneshot::Sender<Answer>,
}

/// Who waits for an answer, or a refusal in words.
type Waits<T> = Option<oneshot::Sender<Result<T, String>>>;

#[derive(Debug, Default)]
struct Open {
    regions: BTreeMap<u64, Waiting>,
    point: Waits<PullPoint>,
    key: Waits<Option<GroupKey>>,
    discards: Waits<RollBackAnswer>,
    /// Why nothing comes any more.
    ended: Option<String>,
}

/// What went over a connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) written: AtomicU64,
    /// What is kept in the branch, in bytes.
    pub(super) kept: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) total: AtomicU64,
    /// Somebody wants it to stop for a moment.
    pub(super) interrupt: AtomicU64,
}

/// A connection that pulls.
#[derive(Debug)]
pub(super) struct Puller {
    connection: Arc<dyn Connection>,
    open: Arc<Mutex<Open>>,
    asked: AtomicU64,
    traffic: Arc<Traffic>,
    reader: tokio::task::JoinHandle<()>,
    /// The receiver's.
    features: Features,
    store: [u8; 16],
    /// As it was told.
    wants: Mutex<Vec<VolumeId>>,
}

impl Drop for Puller {
    fn drop(&mut self) {
        self.reader.abort();
        self.connection.close(farside_transport::CloseCode::Done, "done");
    }
}

/// A volume that is brought to a point.
#[derive(Clone, Debug)]
pub(super) struct PulledVolume {
    pub(super) id: VolumeId,
    /// With what it is compared, and decrypted.
    pub(super) keys: ContentKeys,
    pub(super) geometry: Geometry,
    pub(super) target: Arc<FileTarget>,
    /// Regions in which the disk may not be the point yet.
    pub(super) lacks: Arc<Mutex<RegionSet>>,
    /// Where what is overwritten is kept first.
    pub(super) kept: Option<Arc<KeptVolume>>,
}

impl Puller {
    /// Greets.
    pub(super) async fn begin(
        connection: Arc<dyn Connection>,
        (source, group): (&Name, &Name),
        instance: InstanceId,
        traffic: Arc<Traffic>,
    ) -> Result<Self, PullError> {
        let ended = |error: &dyn std::fmt::Display| PullError::Ended(error.to_string());
        let hello = SourceHello {
            versions: VersionRange::OURS,
            features: Features::PULL,
            instance,
            connection: 1,
            source: source.clone(),
            group: group.clone(),
        };
        let payload = encode_payload(&SourceMessage::Hello(hello)).expect("a greeting fits");
        let greeted = tokio::time::timeout(PATIENCE, async {
            connection.send(payload).await?;
            connection.recv().await
        });
        let frame = greeted.await.map_err(|_| ended(&"it does not greet"))?.map_err(|e| ended(&e))?;
        let hello = match decode_payload::<ReceiverMessage>(&frame).map_err(|e| PullError::Nonsense(e.to_string()))? {
            ReceiverMessage::Hello(hello) if hello.features.has(Features::PULL) => hello,
            ReceiverMessage::Hello(_) => return Err(PullError::TooOld),
            ReceiverMessage::Refusal(refusal) => return Err(PullError::Refused(refusal.text)),
            _ => return Err(PullError::Nonsense("a message before its greeting".to_owned())),
        };
        let open = Arc::<Mutex<Open>>::default();
        let reader = tokio::spawn(read(connection.clone(), open.clone(), traffic.clone()));
        let (asked, features, store) = (AtomicU64::new(0), hello.features, hello.store);
        Ok(Self { connection, open, asked, traffic, reader, features, store, wants: Mutex::default() })
    }

    /// Which volumes there are disks for: a point that lacks one is of no use. (An older receiver does not look at that.)
    pub(super) async fn wants(&self, volumes: Vec<VolumeId>) -> Result<(), PullError> {
        if !self.features.has(Features::PULL_VOLUMES) || volumes.len() > PULL_MEMBERS_MAX || *locked(&self.wants) == volumes {
            return Ok(());
        }
        self.send(&SourceMessage::PullVolumes(PullVolumes { volumes: volumes.clone() })).await?;
        *locked(&self.wants) = volumes;
        Ok(())
    }

    /// The newest point that can be pulled, and where it may differ from what the disks are.
    pub(super) async fn point(&self, have: Option<LedgerPosition>) -> Result<PullPoint, PullError> {
        self.asked_for(&SourceMessage::PullBegin(PullBegin { id: self.next(), have }), |open| &mut open.point).await
    }

    /// A point over which something is to be kept; `over`: no other than this one.
    pub(super) async fn fork(&self, over: Option<LedgerPosition>, pin: ForkPin) -> Result<PullPoint, PullError> {
        if !self.features.has(Features::FORK) {
            return Err(PullError::NoFork);
        }
        let question = SourceMessage::PullFork(PullFork { id: self.next(), over, pin });
        let point = self.asked_for(&question, |open| &mut open.point).await?;
        match over.is_none_or(|over| over == point.position) {
            true => Ok(point),
            false => Err(PullError::Nonsense("another point than the one that was asked for".to_owned())),
        }
    }

    /// The key with which the gateway keeps the group encrypted at rest, for as long as the disks are brought to its points.
    pub(super) async fn key(&self) -> Result<GroupKey, PullError> {
        if !self.features.has(Features::AT_REST) {
            return Err(PullError::TooOld);
        }
        self.asked_for(&SourceMessage::KeyWanted, |open| &mut open.key)
            .await?
            .ok_or_else(|| PullError::NoKey("the gateway has no key for what it says is encrypted at rest".to_owned()))
    }

    /// What is discarded when this host goes on with its own disks; `pin`: and is pinned before the answer.
    pub(super) async fn roll_back(&self, pin: bool) -> Result<RollBackAnswer, PullError> {
        if !self.features.has(Features::ROLL_BACK) {
            return Err(PullError::NoRollback);
        }
        let question = SourceMessage::RollBack(RollBackAsk { id: self.next(), pin });
        let answer = self.asked_for(&question, |open| &mut open.discards).await?;
        // † What it was asked to pin, and has not pinned, is discarded for nothing.
        match answer.point {
            Some(point) if pin && !point.is_pinned => Err(PullError::Nonsense("a point that it did not pin".to_owned())),
            _ => Ok(answer),
        }
    }

    /// The store's id.
    pub(super) fn store(&self) -> [u8; 16] {
        self.store
    }

    /// Asks, and waits for the answer, which comes to that place.
    async fn asked_for<T>(
        &self,
        question: &SourceMessage,
        place: impl FnOnce(&mut Open) -> &mut Waits<T>,
    ) -> Result<T, PullError> {
        let (done, answer) = oneshot::channel();
        {
            let mut open = locked(&self.open);
            if let Some(why) = &open.ended {
                return Err(PullError::Ended(why.clone()));
            }
            *place(&mut open) = Some(done);
        }
        self.send(question).await?;
        self.answered(answer).await
    }

    /// Brings a volume to the point, several regions at once. Nothing of it is under way when this returns.
    pub(super) async fn bring(self: &Arc<Self>, volume: &PulledVolume) -> Result<(), PullError> {
        let room = Arc::new(Semaphore::new(PULL_OPEN_MAX));
        let regions = locked(&volume.lacks).clone();
        let mut tasks: JoinSet<Result<(), PullError>> = JoinSet::new();
        let mut ended = Ok(());
        for region in regions.iter() {
            let permit = room.clone().acquire_owned().await.expect("it is never closed");
            while let Some(task) = tasks.try_join_next() {
                ended = ended.and(joined(task));
            }
            if self.traffic.interrupt.load(Ordering::SeqCst) > 0 {
                ended = ended.and(Err(PullError::Stopped));
            }
            if ended.is_err() {
                break;
            }
            let (puller, volume) = (self.clone(), volume.clone());
            tasks.spawn(async move {
                let _room = permit;
                puller.bring_region(&volume, region).await
            });
        }
        // † Also after an error: what is still being written would come over what is written next.
        while let Some(task) = tasks.join_next().await {
            ended = ended.and(joined(task));
        }
        ended
    }

    async fn bring_region(&self, volume: &PulledVolume, region: RegionIndex) -> Result<(), PullError> {
        let looked = volume.clone();
        let have = blocking(move || look(&looked, region)).await?;
        let id = self.next();
        let (done, answer) = oneshot::channel();
        {
            let mut open = locked(&self.open);
            if let Some(why) = &open.ended {
                return Err(PullError::Ended(why.clone()));
            }
            open.regions.insert(id.0, Waiting { part: Vec::new(), done });
        }
        self.send(&SourceMessage::Pull(PullQuery { id, volume: volume.id, region, have })).await?;
        let part = self.answered(answer).await?;
        if !part.is_empty() {
            let volume = volume.clone();
            let (kept, written) = blocking(move || write(&volume, region, &part)).await?;
            self.traffic.kept.fetch_add(kept, Ordering::Relaxed);
            self.traffic.written.fetch_add(written, Ordering::Relaxed);
        }
        locked(&volume.lacks).remove(region);
        self.traffic.done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing more is going to be asked: the receiver need keep no point for it.
    pub(super) fn is_over(&self) {
        self.connection.close(farside_transport::CloseCode::Settled, "it is over");
    }

    fn next(&self) -> RequestId {
        RequestId(self.asked.fetch_add(1, Ordering::Relaxed) + 1)
    }

    async fn send(&self, message: &SourceMessage) -> Result<(), PullError> {
        let payload = encode_payload(message).map_err(|error| PullError::Nonsense(error.to_string()))?;
        self.traffic.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.connection.send(payload).await.map_err(|error| PullError::Ended(error.to_string()))
    }

    /// Waits for an answer as long as anything comes, and nobody wants it to stop.
    async fn answered<T>(&self, mut answer: oneshot::Receiver<Result<T, String>>) -> Result<T, PullError> {
        let (mut since, mut had) = (Instant::now(), 0);
        loop {
            match tokio::time::timeout(LOOK, &mut answer).await {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(text))) => return Err(PullError::refused(text)),
                Ok(Err(_)) => {
                    let why = locked(&self.open).ended.clone();
                    return Err(PullError::Ended(why.unwrap_or_else(|| "it closed".to_owned())));
                }
                Err(_) if self.traffic.interrupt.load(Ordering::SeqCst) > 0 => return Err(PullError::Stopped),
                Err(_) => {}
            }
            let has = self.traffic.received.load(Ordering::Relaxed);
            if std::mem::replace(&mut had, has) != has {
                since = Instant::now();
            } else if since.elapsed() >= PATIENCE {
                let why = format!("nothing came for {} s", PATIENCE.as_secs());
                self.connection.close(farside_transport::CloseCode::Done, &why);
                return Err(PullError::Ended(why));
            }
        }
    }
}

fn joined(ended: Result<Result<(), PullError>, tokio::task::JoinError>) -> Result<(), PullError> {
    ended.map_err(|_| PullError::Stopped)?
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, PullError> + Send + 'static) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PullError::Stopped)?
}

/// Takes answers until the connection ends, and ends who still waits.
async fn read(connection: Arc<dyn Connection>, open: Arc<Mutex<Open>>, traffic: Arc<Traffic>) {
    let why = loop {
        let frame = match connection.recv().await {
            Ok(frame) => frame,
            Err(error) => break error.to_string(),
        };
        traffic.received.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let mut open = locked(&open);
        match decode_payload::<ReceiverMessage>(&frame) {
            Ok(ReceiverMessage::Pulled(chunk)) => take(&mut open, chunk),
            Ok(ReceiverMessage::PullPoint(point)) => {
                if let Some(waiting) = open.point.take() {
                    let _ = waiting.send(Ok(point));
                }
            }
            Ok(ReceiverMessage::GroupKey(answer)) => {
                if let Some(waiting) = open.key.take() {
                    let _ = waiting.send(Ok(answer.0.map(|bytes| GroupKey::new(Secret::new(&bytes)))));
                }
            }
            Ok(ReceiverMessage::RollBack(answer)) => {
                if let Some(waiting) = open.discards.take() {
                    let _ = waiting.send(Ok(answer));
                }
            }
            Ok(ReceiverMessage::Refusal(refusal)) => {
                if let Some(waiting) = open.discards.take() {
                    let _ = waiting.send(Err(refusal.text.clone()));
                }
                if let Some(waiting) = open.key.take() {
                    let _ = waiting.send(Err(refusal.text.clone()));
                }
                if let Some(waiting) = open.point.take() {
                    let _ = waiting.send(Err(refusal.text.clone()));
                }
                for (_, waiting) in std::mem::take(&mut open.regions) {
                    let _ = waiting.done.send(Err(refusal.text.clone()));
                }
                break refusal.text;
            }
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    connection.close(farside_transport::CloseCode::Done, "nothing more is read");
    let mut open = locked(&open);
    (open.ended, open.point, open.key, open.discards) = (Some(why), None, None, None);
    open.regions.clear();
}

fn take(open: &mut Open, chunk: PullChunk) {
    let PullChunk { id, part_bytes, bytes } = chunk;
    let Some(waiting) = open.regions.get_mut(&id.0) else { return };
    waiting.part.extend_from_slice(&bytes);
    let (have, all) = (waiting.part.len(), part_bytes as usize);
    if have < all && !bytes.is_empty() {
        return;
    }
    let Some(Waiting { part, done }) = open.regions.remove(&id.0) else { return };
    let _ = done.send(if have == all { Ok(part) } else { Err("an answer of another length than it said".to_owned()) });
}

/// No content has it, but for one chance in 2^128.
const NEVER: GranuleDigest = GranuleDigest([0x5a; 16]);

/// What a region of the disk is, as digests.
fn look(volume: &PulledVolume, region: RegionIndex) -> Result<Vec<DigestRun>, PullError> {
    let (run, extent) = extent_of(&volume.geometry, region);
    let key = volume.keys.digest_key().expect("nothing is pulled without its keys");
    let mut bytes = vec![0; extent.1];
    if let Err(why) = volume.target.read_at(farside_region::ByteOffset(extent.0), &mut bytes) {
        // What cannot be read is equal to nothing; to write it may mend it.
        warn!(path = %volume.target.path().display(), %region, %why, "cannot be read, and is written in full");
        return Ok(vec![DigestRun::Data(vec![NEVER; run.count as usize])]);
    }
    let mut runs: Vec<DigestRun> = Vec::new();
    for (granule, content) in (run.start.0..).zip(bytes.chunks(volume.geometry.granule_bytes() as usize)) {
        if is_zero(content) {
            match runs.last_mut() {
                Some(DigestRun::Zero { granules }) => *granules += 1,
                _ => runs.push(DigestRun::Zero { granules: 1 }),
            }
            continue;
        }
        let digest = granule_digest(key, GranuleIndex(granule), content);
        match runs.last_mut() {
            Some(DigestRun::Data(digests)) => digests.push(digest),
            _ => runs.push(DigestRun::Data(vec![digest])),
        }
    }
    Ok(runs)
}

/// A region's granules, and where its bytes are: offset and length.
fn extent_of(geometry: &Geometry, region: RegionIndex) -> (GranuleRun, (u64, usize)) {
    let run = geometry.region_run(region);
    let extent = geometry.bytes_of(run);
    (run, (extent.offset.0, extent.len as usize))
}

/// Writes what a part holds of a region; says how much was kept of what was there, and how much was written. All of it is checked first.
fn write(volume: &PulledVolume, region: RegionIndex, part: &[u8]) -> Result<(u64, u64), PullError> {
    let nonsense = |why: &dyn std::fmt::Display| PullError::Nonsense(format!("region {region}: {why}"));
    let footer = Footer::from_tail(part, part.len() as u64).map_err(|e| nonsense(&e))?;
    let (run, _) = extent_of(&volume.geometry, region);
    // † Nothing of an encrypted volume is taken in clear: only who has its key can have made it then.
    let is_sealed = volume.keys.is_sealed();
    if footer.is_sealed() != is_sealed || footer.id().key.volume != volume.id || footer.id().geometry != volume.geometry {
        return Err(nonsense(&"a part of something else"));
    }
    let mut decoder = FrameDecoder::new(&volume.keys);
    let mut pieces: Vec<(GranuleRun, Option<Vec<u8>>)> = Vec::new();
    for frame in footer.frames() {
        if frame.run.start < run.start || frame.run.end() > run.end() {
            return Err(nonsense(&"a frame beyond it"));
        }
        match frame.kind {
            RunKind::Zero => pieces.push((frame.run, None)),
            RunKind::Unreadable => return Err(nonsense(&"it could not be read")),
            RunKind::Data => {
                let (from, len) = (frame.offset as usize, frame.stored_bytes as usize);
                let stored = part.get(from..from.saturating_add(len)).ok_or_else(|| nonsense(&"a frame beyond its part"))?;
                let mut content = Vec::new();
                decoder.decode(&footer, frame, stored, &mut content).map_err(|e| nonsense(&e))?;
                pieces.push((frame.run, Some(content)));
            }
        }
    }
    let runs: Vec<GranuleRun> = pieces.iter().map(|(run, _)| *run).collect();
    let kept = match &volume.kept {
        // † Durable before anything of it is overwritten.
        Some(kept) => kept.keep(&volume.target, &volume.geometry, &runs)?,
        None => 0,
    };
    let io = |why| PullError::Io { path: volume.target.path().display().to_string(), why };
    let mut written = 0;
    for (run, content) in pieces {
        let extent = volume.geometry.bytes_of(run);
        match content {
            Some(content) => volume.target.write_at(extent.offset, &content).map_err(io)?,
            None => volume.target.zero(extent).map_err(io)?,
        }
        written += extent.len;
    }
    volume.target.done(volume.geometry.bytes_of(run));
    Ok((kept, written))
}
