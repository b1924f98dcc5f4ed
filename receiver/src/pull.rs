//! The way back: hosts that pull a point, each on a connection of its own.
//!
//! Invariants: what such a connection says changes nothing in the store but pins for its host's branches, and of what it is about to discard; its point is kept from retention as long as it pulls, and for
//! a while after, since a line may break (what it is made of may be merged: the pull is refused then, and the host's next one opens the point again); it never holds up its group's thread: reading is done on blocking threads. Answers that nobody takes are
//! bounded for each host and for all, so that one that does not read holds up only itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use farside_control::PointId;
use farside_keys::{Sealer, Secret};
use farside_layer::{Compression, Encoder, PartId, PartWriter};
use farside_region::{GranuleDigest, GranuleIndex, GranuleRun, LayerKey, Name, RegionIndex, Seq, Term, VolumeId};
use farside_store::{DigestRun, LazyPointReader, StoreError, Unlocking};
use farside_transport::{CloseCode, Closed, Connection};
use farside_wire::{
    Features, ForkPin, GroupKeyAnswer, NO_KEY, PULL_CHUNK_BYTES_MAX, PULL_OPEN_MAX, PullChunk, PullFork, PullPoint, PullQuery,
    ReceiverHello, ReceiverMessage, RefusalCode, RequestId, SourceHello, SourceMessage, VersionRange, decode_payload,
    encode_payload,
};
use tokio::sync::{Semaphore, oneshot};

use crate::door::refusal;
use crate::group::{GroupHandle, Mail, PointChange, PullAsk, PullLook, PullWanted, Pullable};
use crate::keys;
use crate::process::Receiver;
use crate::rollback;

/// Regions that are being read, for all hosts together.
static REGIONS: Semaphore = Semaphore::const_new(16);
/// Those that are read or on their way: 6 MiB each at most.
static ANSWERS: Semaphore = Semaphore::const_new(64);
/// And for each host.
const ANSWERS_OF_HOST: usize = 16;
/// Connections of one host that pull.
const CONNECTIONS_OF_HOST: usize = 16;
/// A host asks for points no more often than this.
const BEGIN_AGAIN: Duration = Duration::from_millis(100);
/// One that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// A host waits no longer for a key: it would believe that nothing comes any more.
const KEY_WAIT: Duration = Duration::from_secs(40);
/// Numbers connections.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
/// Hosts that pull now.
static HOSTS: Mutex<BTreeMap<Name, Weak<Host>>> = Mutex::new(BTreeMap::new());

/// What the reasons of all pins of branches begin with.
pub(crate) const PIN_REASONS: &str = "branch of ";

/// Why a point is pinned for a branch of a host; with no name what all such reasons begin with.
pub(crate) fn pin_reason(host: &Name, branch: &str) -> String {
    format!("{PIN_REASONS}{host}: {branch}")
}

/// What differs is compressed so much: who waits for it waits for an application that is stopped.
const LEVEL: i32 = 1;

/// What all connections of a host have together.
#[derive(Debug)]
struct Host {
    answers: Semaphore,
    connections: Semaphore,
    begins: tokio::sync::Mutex<()>,
    unlocking: Arc<Semaphore>,
}

impl Host {
    fn of(name: &Name) -> Arc<Self> {
        let mut all = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, host| host.strong_count() > 0);
        let (answers, connections) = (Semaphore::new(ANSWERS_OF_HOST), Semaphore::new(CONNECTIONS_OF_HOST));
        let host =
            Arc::new(Self { answers, connections, begins: tokio::sync::Mutex::new(()), unlocking: Arc::new(Semaphore::new(1)) });
        all.insert(name.clone(), Arc::downgrade(&host));
        host
    }
}

/// Serves a connection that is there to pull, after its greeting, to its end.
pub(crate) async fn serve(receiver: Arc<Receiver>, connection: Arc<dyn Connection>, group: GroupHandle, hello: SourceHello) {
    let asker = connection.peer().name.clone();
    let host = Host::of(&asker);
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let served = match host.connections.try_acquire() {
        Ok(_one) => answer_all(&receiver, &connection, &group, ((&asker, number), &host), hello.versions).await,
        Err(_) => Err((RefusalCode::Session, format!("{CONNECTIONS_OF_HOST} connections of this host pull already"))),
    };
    let in_order = matches!(connection.close_reason(), Some(Closed::ByPeer { code: CloseCode::Settled, .. }));
    receiver.followers.release(group.names(), (&asker, number), in_order);
    match served {
        Ok(()) => {}
        Err((code, text)) => {
            tracing::warn!(source = %asker, group = %group.names(), %text, "a pull was refused");
            say(&connection, &ReceiverMessage::Refusal(refusal(code, &text))).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
            connection.close(CloseCode::Refused, &text);
        }
    }
}

async fn answer_all(
    receiver: &Arc<Receiver>,
    connection: &Arc<dyn Connection>,
    group: &GroupHandle,
    ((asker, number), host): ((&Name, u64), &Arc<Host>),
    versions: VersionRange,
) -> Result<(), (RefusalCode, String)> {
    let protocol = |text: &str| (RefusalCode::Protocol, text.to_owned());
    let version = VersionRange::OURS.negotiate(versions).map_err(|error| (RefusalCode::Version, error.to_string()))?;
    let store = receiver.vault.id().ok_or_else(|| (RefusalCode::Store, "the store is not open".to_owned()))?;
    say(connection, &ReceiverMessage::Hello(ReceiverHello { version, features: Features::PULLS, store })).await;
    let open = Arc::new(Semaphore::new(PULL_OPEN_MAX));
    let mut members: Arc<Vec<Pullable>> = Arc::default();
    let mut volumes = Vec::new();
    // What encrypted members were unlocked with; and members that are not unlocked yet.
    let (mut unlocking, mut waiting): (Option<Arc<Unlocking>>, Option<Vec<Pullable>>) = (None, None);
    while let Ok(frame) = connection.recv().await {
        let message: SourceMessage = decode_payload(&frame).map_err(|error| (RefusalCode::Protocol, error.to_string()))?;
        let asked = match &message {
            SourceMessage::PullBegin(asked) => Some((asked.id, PullWanted::Newest { have: asked.have })),
            SourceMessage::PullFork(asked) => {
                let pins = match &asked.pin {
                    ForkPin::Pin(branch) => Some(branch.clone()),
                    ForkPin::Leave | ForkPin::Unpin(_) => None,
                };
                let leaves = matches!(asked.pin, ForkPin::Unpin(_));
                Some((asked.id, PullWanted::Fork { over: asked.over, pins, leaves }))
            }
            _ => None,
        };
        if let Some((id, wanted)) = asked {
            let ask = PullAsk { asker: asker.clone(), connection: number, volumes: volumes.clone(), wanted };
            let look = {
                let _one = host.begins.lock().await;
                tokio::time::sleep(BEGIN_AGAIN).await;
                look(group, ask).await.map_err(|text| (RefusalCode::Store, text))?
            };
            if let SourceMessage::PullFork(asked) = &message {
                pin(group, asker, &look, &asked.pin).await.map_err(|text| (RefusalCode::Store, text))?;
            }
            let point = told(id, &look);
            // Who has the point, or lets go of one, need not be answered what it holds.
            let is_unpinned = matches!(&message, SourceMessage::PullFork(PullFork { pin: ForkPin::Unpin(_), .. }));
            let has = matches!(&message, SourceMessage::PullBegin(asked) if asked.have == Some(look.position));
            (members, unlocking, waiting) = (Arc::default(), None, None);
            if is_unpinned || has {
                waiting = Some(look.members);
            } else {
                (members, unlocking) = unlocked(receiver, group, host, look.members).await?;
            }
            say(connection, &ReceiverMessage::PullPoint(point)).await;
            continue;
        }
        match message {
            SourceMessage::PullVolumes(asked) => volumes = asked.volumes,
            SourceMessage::RollBack(asked) => {
                let answered = {
                    let _one = host.begins.lock().await;
                    tokio::time::sleep(BEGIN_AGAIN).await;
                    rollback::answer(receiver, group, (asker, &volumes), &asked).await
                };
                let answer = answered.map_err(|text| (RefusalCode::Store, text))?;
                say(connection, &ReceiverMessage::RollBack(answer)).await;
            }
            SourceMessage::KeyWanted => {
                let late = || Err(format!("{NO_KEY}{} yet: what keeps its key has not answered", group.names()));
                let key = tokio::time::timeout(KEY_WAIT, group.key()).await.unwrap_or_else(|_| late());
                let key = key.map_err(|text| (RefusalCode::Store, text))?;
                let answer = GroupKeyAnswer(key.map(|key| *key.secret().bytes()));
                say(connection, &ReceiverMessage::GroupKey(answer)).await;
            }
            SourceMessage::Pull(query) => {
                if let Some(waiting) = waiting.take() {
                    (members, unlocking) = unlocked(receiver, group, host, waiting).await?;
                }
                if unlocking.as_ref().is_some_and(|known| !receiver.keys.is_current(&receiver.config(), group.names(), known)) {
                    return Err((
                        RefusalCode::Store,
                        format!("{NO_KEY}{} any more: the [[key]] of its group was changed in receiver.toml", query.volume),
                    ));
                }
                // Whoever asks for more than may be open waits, unread.
                let permit = Arc::clone(&open).acquire_owned().await.expect("it is never closed");
                if !members.iter().any(|member| member.told.meta.id == query.volume) {
                    return Err(protocol("a volume was asked for that is not in the point"));
                }
                let (connection, members, host) = (Arc::clone(connection), Arc::clone(&members), Arc::clone(host));
                tokio::spawn(async move {
                    let _open = permit;
                    let _one_of_host = host.answers.acquire().await.expect("it is never closed");
                    let _one = ANSWERS.acquire().await.expect("it is never closed");
                    answer(&connection, members, query).await;
                });
            }
            _ => return Err(protocol("a message that has no place on a connection that pulls")),
        }
    }
    Ok(())
}

/// Keeps a point for a branch of that host, or does so no more.
async fn pin(group: &GroupHandle, asker: &Name, look: &PullLook, pin: &ForkPin) -> Result<(), String> {
    let reason = |branch: &Name| pin_reason(asker, branch.as_str());
    let change = match pin {
        ForkPin::Leave => return Ok(()),
        ForkPin::Pin(branch) => PointChange::OwnPin { reason: reason(branch) },
        ForkPin::Unpin(branch) => PointChange::Unpin { only: reason(branch) },
    };
    let point = PointId::new(look.position.slot.0, &look.position.digest.0);
    let changed = group.change(point, change).await;
    changed.map(drop).map_err(|error| format!("whether point {point} is pinned cannot be changed: {}", error.message))
}

/// The members with the keys of those that are encrypted, and what they were unlocked with: one task of a host at a time, since what it waits for may
/// take long.
async fn unlocked(
    receiver: &Arc<Receiver>,
    group: &GroupHandle,
    host: &Arc<Host>,
    members: Vec<Pullable>,
) -> Result<(Arc<Vec<Pullable>>, Option<Arc<Unlocking>>), (RefusalCode, String)> {
    let Some(sealed) = members.iter().find(|member| member.reader.is_sealed()) else { return Ok((Arc::new(members), None)) };
    let late = format!("{NO_KEY}{} yet: what keeps its key has not answered", sealed.told.meta.name);
    let keys = receiver.keys.of(&receiver.config(), group.names());
    let work = async {
        let permit = Arc::clone(&host.unlocking).acquire_owned().await.expect("it is never closed");
        let keys = Arc::clone(&keys);
        let unlock = move || {
            let _one = permit;
            let one = |member: Pullable| Ok(Pullable { told: member.told, reader: member.reader.unlocked(&keys)? });
            let all: Result<Vec<Pullable>, StoreError> = members.into_iter().map(one).collect();
            all.map_err(|error| keys::words_for_host(&error))
        };
        tokio::task::spawn_blocking(unlock).await.map_err(|error| error.to_string())?
    };
    let opened = tokio::time::timeout(KEY_WAIT, work).await.unwrap_or(Err(late));
    Ok((Arc::new(opened.map_err(|text| (RefusalCode::Store, text))?), Some(keys)))
}

/// What its group says of the point.
async fn look(group: &GroupHandle, ask: PullAsk) -> Result<PullLook, String> {
    let gone = |_| "the receiver is stopping".to_owned();
    let (reply, answer) = oneshot::channel();
    group.tell(Mail::Pull { ask: Box::new(ask), reply }).await.map_err(|_| gone(()))?;
    answer.await.map_err(|_| gone(()))?
}

fn told(id: RequestId, look: &PullLook) -> PullPoint {
    PullPoint {
        id,
        position: look.position,
        epoch: look.epoch,
        generation: look.generation,
        promotion: look.promotion,
        is_since: look.is_since,
        passed_over: look.passed_over,
        other: look.other.clone(),
        members: look.members.iter().map(|one| one.told.clone()).collect(),
    }
}

async fn answer(connection: &Arc<dyn Connection>, members: Arc<Vec<Pullable>>, query: PullQuery) {
    let id = query.id;
    let one = REGIONS.acquire().await.expect("it is never closed");
    let made = tokio::task::spawn_blocking(move || {
        let member = members.iter().find(|member| member.told.meta.id == query.volume).expect("it was looked for");
        difference(&member.reader, query.volume, query.region, &query.have)
    });
    let made = made.await;
    drop(one); // who reads its answers slowly holds up nobody
    let part = match made.map_err(|error| error.to_string()).and_then(|made| made.map_err(|error| error.to_string())) {
        Ok(part) => part,
        Err(text) => {
            tracing::warn!(%text, "what a host wants to pull cannot be read");
            say(connection, &ReceiverMessage::Refusal(refusal(RefusalCode::Store, &text))).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
            return connection.close(CloseCode::Refused, &text);
        }
    };
    let part_bytes = u32::try_from(part.len()).expect("a part of one region is small");
    if part.is_empty() {
        return say(connection, &ReceiverMessage::Pulled(PullChunk { id, part_bytes, bytes: Vec::new() })).await;
    }
    for piece in part.chunks(PULL_CHUNK_BYTES_MAX) {
        say(connection, &ReceiverMessage::Pulled(PullChunk { id, part_bytes, bytes: piece.to_vec() })).await;
    }
}

/// Waits while the other side does not read. What it does not hear is noticed by its connection's end.
async fn say(connection: &Arc<dyn Connection>, message: &ReceiverMessage) {
    match encode_payload(message) {
        Ok(payload) => {
            if tokio::time::timeout(PATIENCE, connection.send(payload)).await.is_err() {
                connection.close(CloseCode::Overloaded, "this host does not read what it asked for");
            }
        }
        Err(error) => connection.close(CloseCode::Internal, &error.to_string()),
    }
}

/// Why a region cannot be told.
#[derive(Debug, thiserror::Error)]
enum DifferenceError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("region {0} is not in the point as it was asked for")]
    Shape(RegionIndex),
    #[error("what differs in region {0} cannot be encoded")]
    Encode(RegionIndex),
}

/// A part with the granules of a region that are not as they are somewhere else; empty where all are.
fn difference(
    reader: &LazyPointReader,
    volume: VolumeId,
    region: RegionIndex,
    have: &[farside_wire::DigestRun],
) -> Result<Vec<u8>, DifferenceError> {
    let geometry = *reader.geometry();
    if region.0 >= geometry.region_count() {
        return Err(DifferenceError::Shape(region));
    }
    let run = geometry.region_run(region);
    let theirs: Vec<Held> = have.iter().flat_map(held_there).collect();
    let ours: Vec<Held> = reader.region_digests(region)?.iter().flat_map(held_here).collect();
    if theirs.len() as u64 != run.count || ours.len() as u64 != run.count {
        return Err(DifferenceError::Shape(region));
    }
    let differs: Vec<bool> = theirs.iter().zip(&ours).map(|(theirs, ours)| theirs != ours || *ours == Held::Nothing).collect();
    if !differs.contains(&true) {
        return Ok(Vec::new());
    }
    let mut content = reader.content();
    reader.read_region(region, &mut content)?;
    let id = PartId { key: LayerKey { volume, term: Term(1), seq: Seq(1) }, part: 0, geometry };
    let mut encoder = Encoder::new(Compression::Zstd(LEVEL));
    if reader.is_sealed() {
        // What is encrypted where it is kept is encrypted for who asks, too: of use to hosts that have its key.
        encoder = encoder.sealing(Sealer::new(Secret::random().map_err(|_| DifferenceError::Encode(region))?));
    }
    let mut part = PartWriter::new(id, reader.keys(), encoder);
    let mut at = 0;
    for same in differs.chunk_by(|a, b| a == b) {
        let here = GranuleRun { start: GranuleIndex(run.start.0 + at), count: same.len() as u64 };
        at += here.count;
        if same[0] {
            let extent = geometry.bytes_of(here);
            let from = (extent.offset.0 - geometry.bytes_of(run).offset.0) as usize;
            let bytes = &content.bytes[from..from + extent.len as usize];
            part.push_read(here.start, bytes).map_err(|_| DifferenceError::Encode(region))?;
        }
    }
    let (bytes, _, _) = part.finish();
    Ok(bytes)
}

/// What a granule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Zero,
    Data(GranuleDigest),
    /// Nothing that could be equal to anything.
    Nothing,
}

fn held_there(run: &farside_wire::DigestRun) -> Vec<Held> {
    match run {
        farside_wire::DigestRun::Zero { granules } => vec![Held::Zero; *granules as usize],
        farside_wire::DigestRun::Data(digests) => digests.iter().copied().map(Held::Data).collect(),
        other => vec![Held::Nothing; other.granules() as usize],
    }
}

fn held_here(run: &DigestRun) -> Vec<Held> {
    match run {
        DigestRun::Zero { granules } => vec![Held::Zero; *granules as usize],
        DigestRun::Data(digests) => digests.iter().copied().map(Held::Data).collect(),
        DigestRun::Absent { granules } | DigestRun::Unreadable { granules } => vec![Held::Nothing; *granules as usize],
    }
}
