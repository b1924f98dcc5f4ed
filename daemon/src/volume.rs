//! One protected volume while it is served: its door, its map, its threads.
//!
//! | Thread | Owns |
//! |---|---|
//! | queue, one for each queue of the tap | a ring of the tap and the backing, [`ShimQueue`] |
//! | intent | the intent file: pages as the owner wants them, headers as the control thread wants them |
//! | sender | the ring of the pipeline ([`crate::sender`]) |
//!
//! Order of an opening, each step before the next: the backing's door; the intent map's; the map synced and read; the header
//! `attached` durable; only then the tap (L2, L11, T2).

use std::fmt;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_blockio::process::Priority;
use farside_blockio::{DeviceEngine, DeviceError, FileDevice, Identity, Known, OpenOptions, Presence, Ring, Waker, WriteWatch};
use farside_insert::{InsertError, Insertion, State, stack};
use farside_ledger::VolumeMeta;
use farside_region::intent::{BackingIdentity, HeaderState};
use farside_region::{BootId, Generation, Geometry, GranuleSet, LedgerPosition, MapId, Name, Term};
use farside_replication::source::{Start, VolumeSetup};
use farside_shim::{Group, Tracking, Volume, Wake, Wakes};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::backing;
use crate::boot::{self, Backings};
use crate::canary::{self, BlindNote, Canary, TapWatch};
use crate::change::{self, Change};
use crate::channel::{Sender, channel};
use crate::config::{Config, ConfigError, LimitsConfig, OnTrackingLost, STATE_DIR, VolumeConfig, write_atomically};
use crate::encode::Encoders;
use crate::flush_note::FlushNote;
use crate::group::{Inbox, Note, Opening};
use crate::intent_file::{IntentFile, IntentFileError};
use crate::intent_thread::{Busy, IntentThread};
use crate::keys::{GroupKeys, sentinel_key};
use crate::locked;
use crate::loss::{self, LossNote, Unkept};
use crate::node::{self, Place};
use crate::queue::{Counters, Orders, RingWake, ShimQueue};
use crate::sender::{Order, SenderThread, SentCounters};
use crate::sentinel::{Guard, MarksNote, Sentinels};
use crate::source_name;
use crate::stacked;
use crate::state_dir::{Mark, MetaError, damaged_meta_path, is_read_only, keep_volume_meta, kept_volume_meta, meta_path};
use crate::tap::{self, Ended, Prepared};
use crate::threads::Threads;
use crate::watch::{Left, Noticed, OpenedNote};

/// How long a disk that was there before may take to appear: less than the service has to be ready.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// How long somebody may look at a disk that was never served.
const STRANGERS_WAIT: Duration = Duration::from_secs(5);
const DISK_POLL: Duration = Duration::from_millis(50);

/// Why everything is compared, where [`Known::Another`].
const ANOTHER_DISK: &str = "another disk was found at its name";

/// The same, where [`Mark::Leaving`] was left.
const WAS_LEAVING: &str = "it was being taken out of service, and who did that did not get to its end";

/// In a volume's folder: what tells the device that its tap was put under.
const DEVICE_FILE: &str = "device";

/// What every volume of a daemon shares.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) source: Name,
    pub(crate) boot: BootId,
    pub(crate) limits: LimitsConfig,
    pub(crate) api_group: Option<String>,
    pub(crate) accepted_faults: Vec<String>,
    /// Gone at the next boot.
    pub(crate) runtime_dir: PathBuf,
    /// Where everything to do with the gateway runs.
    pub(crate) links: tokio::runtime::Handle,
    /// How fast all volumes together may send; of a group: its own, within that.
    pub(crate) pacer: Arc<farside_transport::Pacer>,
    /// What is known of the way to the receiver.
    pub(crate) route: farside_transport::Route,
    /// Who encodes for all senders.
    pub(crate) encoders: Encoders,
    /// The key of the group.
    pub(crate) keys: Arc<GroupKeys>,
    /// What was seen at volumes and is beyond their groups.
    pub(crate) noticed: tokio::sync::mpsc::UnboundedSender<Noticed>,
    /// What the next boot knows of the volumes' disks.
    pub(crate) backings: Arc<Backings>,
    /// As it is now.
    pub(crate) config: Arc<std::sync::Mutex<Config>>,
    pub(crate) unkept: Arc<Unkept>,
}

/// What the intent thread is asked for.
pub(crate) enum IntentOrder {
    /// The owner has something.
    Commit,
    /// A header; [`Note::HeaderDurable`] follows.
    Header { confirmed: Option<Term>, position: Option<LedgerPosition> },
    /// A backing flush failed in this boot (T14).
    FlushFailed,
    /// Try now whether a failed map can be made anew. [`Note::MapMended`] or [`Note::MapStillFails`] follows if it had failed.
    Mend,
    /// The end of a planned stop; answered, and the thread ends.
    Clean { owed: GranuleSet, backing: Option<BackingIdentity>, answer: Sender<bool> },
    /// End without a word: the header stays `attached`.
    Quit,
}

/// A volume that is served.
pub(crate) struct Served {
    pub(crate) config: VolumeConfig,
    pub(crate) meta: VolumeMeta,
    pub(crate) dir: PathBuf,
    pub(crate) device: FileDevice,
    pub(crate) volume: Arc<Volume>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sent: Arc<SentCounters>,
    pub(crate) tap: tap::Handle,
    /// Of the tap, under the device that the host uses.
    pub(crate) insertion: Option<Arc<Insertion>>,
    /// What the kernel counts as written on the backing.
    pub(crate) writes: Option<WriteWatch>,
    /// Of a backing that is a block device.
    pub(crate) presence: Option<Presence>,
    guard: Option<Guard>,
    /// The tap's node and number, where it is under a device.
    under: Option<(PathBuf, DevNumber)>,
    /// What the kernel counts as written on the tap.
    pub(crate) tap_writes: Option<TapWatch>,
    /// Why its device is not served any more, if nobody here did that.
    pub(crate) tap_lost: Arc<OnceLock<String>>,
    /// Why the tap is known not to see what is written.
    pub(crate) blind: Option<String>,
    /// What is seen of the intent thread.
    pub(crate) map_busy: Busy,
    orders: Arc<Orders>,
    threads: Threads,
    /// By an attach before this one.
    flush_failed_this_boot: bool,
    flushes: Arc<FlushNote>,
    runtime_dir: PathBuf,
    boot: BootId,
}

impl Served {
    /// Opens everything and serves the tap.
    ///
    /// # Errors
    /// Whatever keeps the volume from being served, with the volume's name and the remedy. Nothing was served then.
    pub(crate) fn open(
        mut config: VolumeConfig,
        dir: PathBuf,
        group: &Arc<Group>,
        around: &Surroundings,
        inbox: &Inbox,
    ) -> anyhow::Result<(Self, Box<VolumeSetup>)> {
        let device = device_of(&config, &dir);
        let named = std::mem::replace(&mut config.backing, device);
        wait_for_disk(&config, &dir);
        let insertion = config.insert.then(|| prepare_insertion(&config, &named, &dir, around)).transpose()?;
        let opened = Self::open_over(insertion.clone(), config, dir, group, around, inbox);
        if opened.is_err()
            && let Some(insertion) = insertion
        {
            // † A helper of a killed predecessor may still be putting a tap under the device, and nothing but its lock shows that.
            let removed = match change::is_idle(&around.runtime_dir, insertion.device()) {
                Ok(true) => insertion.remove_twin().map_err(anyhow::Error::from),
                Ok(false) => Err(anyhow::anyhow!("an earlier farsided is still changing its table")),
                Err(error) => Err(error),
            };
            removed.unwrap_or_else(|error| warn!("the twin of {} stays: {error:#}", insertion.name()));
        }
        opened
    }

    fn open_over(
        insertion: Option<Arc<Insertion>>,
        config: VolumeConfig,
        dir: PathBuf,
        group: &Arc<Group>,
        around: &Surroundings,
        inbox: &Inbox,
    ) -> anyhow::Result<(Self, Box<VolumeSetup>)> {
        let name = config.name.clone();
        refuse_own_tap(&dir)?;
        refuse_own_needs(&config, &dir, around)?;
        stacked::refuse(&config, insertion.as_ref().map(|insertion| insertion.twin()).as_deref())?;
        around.backings.refuse_bare(&config)?;
        // Whatever was written before this passed no tap.
        let bypassed = match &insertion {
            Some(insertion) => !matches!(insertion.state()?, State::Inserted { .. }),
            None => false,
        };
        let backing = insertion.as_ref().map_or_else(|| config.backing.clone(), |insertion| insertion.twin());
        let device = match FileDevice::open(&backing, OpenOptions::at_once()) {
            Err(error @ DeviceError::Busy { .. }) if boot::unserved::is_mounted(&backing) => {
                // Whatever comes of this opening: what is written there passes no tap.
                Mark::TrackingLost.put(&dir, true)?;
                return Err(error).context("its disk is mounted itself, and not its tap; everything will be compared");
            }
            Err(DeviceError::Busy { path, holder, .. }) => {
                let (path, mut options) = (path.display(), OpenOptions::daemon());
                if !meta_path(&dir).exists() {
                    options.wait = STRANGERS_WAIT; // no predecessor: a person waits for the answer
                }
                info!(volume = %name, "{path} is in use by {holder}: waiting for that, up to {} s", options.wait.as_secs());
                FileDevice::open(&backing, options).inspect_err(|error| {
                    // † Whoever has a disk may write on it: LVM that an initramfs put together, for one.
                    let is_disk = config.tap.is_device() && !config.insert;
                    if is_disk
                        && matches!(error, DeviceError::Busy { .. })
                        && let Err(error) = Mark::TrackingLost.put(&dir, true)
                    {
                        error!(volume = %name, %error, "that its disk is used by somebody else cannot be kept: `farside volume verify` it later");
                    }
                })?
            }
            device => device?,
        };
        refuse_file_of_the_system(&config.backing, &device, around)?;
        around.backings.take(&config, &around.source)?;
        let geometry = Geometry::new(device.size()).with_context(|| config.backing.display().to_string())?;
        let identity = Identity::of(&device).with_context(|| format!("cannot look at {}", config.backing.display()))?;
        let known = backing::known(&identity, &dir);
        if known == Known::Unknown && !meta_path(&dir).exists() {
            // † The kernel's NBD clients go by the volume's name: one of that name, with a state directory of its own, would be served over this disk.
            // Before anything is kept by which the next opening would take the volume for a known one.
            let id = farside_ledger::volume_id(&around.source, &config.group, &config.name);
            tap::end(&dir, id, &config.name, &around.runtime_dir).context(AnotherDisk::Unknown)?;
        }
        let meta = load_meta(&dir, &config, around, geometry)?;
        let sentinel_key = sentinel_key(meta.id);
        let mut fresh = [0; 16];
        getrandom::fill(&mut fresh).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let passes = config.on_tracking_lost == OnTrackingLost::Pass;
        let mut is_noted = false;
        // An earlier run of this boot lost track, and could say so only there.
        let note = LossNote::of(&around.runtime_dir, meta.id);
        if note.is_there().context("cannot look for a note of lost tracking in the runtime directory")? {
            warn!(volume = %name, "tracking was lost before this start: everything will be compared");
            match Mark::TrackingLost.put(&dir, true) {
                // It says so of what is served without a map, too.
                Err(ConfigError::Io { source, .. }) if passes && is_read_only(&source) => is_noted = true,
                put => put.map(|()| note.remove())?,
            }
        }
        if Mark::Leaving.is_set(&dir)? {
            warn!(volume = %name, "{WAS_LEAVING}: everything will be compared");
            Mark::TrackingLost.put_because(&dir, WAS_LEAVING)?;
            Mark::Leaving.put(&dir, false)?;
        }
        // All marks come before anything is written that would make the next start forget the reason: the map grown, the
        // header `attached`, the new identity kept.
        if known == Known::Another {
            // † Before anything else: wherever this ends, nothing is believed of what is there.
            warn!(volume = %name, "{ANOTHER_DISK}: everything will be compared");
            Mark::TrackingLost.put_because(&dir, ANOTHER_DISK)?;
            end_device_of_another_disk(&dir, &meta, around)?;
        }
        // The door is ours: what a predecessor wrote has landed, and we have written nothing yet.
        let (writes, presence) = (WriteWatch::new(&device), Presence::of(&device));
        let (kept, is_unread) = Sentinels::kept(&dir).map_or((None, true), |kept| (kept, false));
        let written = writes.as_ref().and_then(WriteWatch::written);
        let now = Left::now(written, around.boot);
        let in_this_boot = OpenedNote::of(&around.runtime_dir, meta.id);
        let since_found = written.filter(|_| writes.as_ref().is_some_and(WriteWatch::begins_at_zero));
        let mut too_late = false;
        let mut used = is_unread.then_some("what was kept of its file systems cannot be read");
        let mut refused = None;
        let mut touched = false;
        let opening = Opening { id: meta.id, name: name.clone(), dir: dir.clone() };
        let opened = IntentFile::open(&dir, &geometry, MapId(fresh), &mut |header| {
            let as_left = header.backing == device.identity_found() && !Left::is_passed(&dir, now.as_ref());
            let was_clean = header.state == HeaderState::Clean;
            touched = was_clean && !as_left;
            let again = kept.as_ref().map(|kept| kept.look_again(&device, header.volume_bytes, &sentinel_key));
            let mut is_certain = false;
            if let (Some(kept), Some(Ok(Some(now)))) = (&kept, again) {
                used = now.differ(kept, was_clean);
                let is_kept = was_clean || MarksNote::is_settled(&around.runtime_dir, meta.id);
                is_certain = is_kept && now.is_whole() && kept.is_whole();
            }
            if header.volume_bytes < geometry.volume_bytes() {
                inbox.attaches(opening.clone())?; // a larger map is not `clean`
            }
            too_late = in_this_boot.is_too_late(since_found.as_ref());
            let why = match (bypassed, known, touched, used) {
                (true, ..) => "its device was used without a tap",
                (_, Known::Another, ..) => return Ok(()), // marked already
                (_, Known::Unknown, ..) => "it is not known whether this is the backing that the volume had before",
                (_, _, true, _) => "the backing changed while nobody served it",
                (.., Some(used)) => used,
                _ if too_late => "its backing was written before it was opened in this boot, or since it was plugged in again",
                _ => return Ok(()),
            };
            warn!(volume = %name, "{why}: everything will be compared");
            Mark::TrackingLost.put_because(&dir, why)?;
            // Before the map is grown, which the next opening could not tell from a crash. Whose device does not rest on its tap waits for nobody.
            let waits = used.filter(|_| is_certain && !bypassed);
            refused = waits.and_then(|used| refuse_whoever_waits(used, &name, insertion.as_deref()).err());
            if refused.is_some() { Err(IntentFileError::Refused) } else { Ok(()) }
        });
        if let Some(refused) = refused {
            return Err(refused);
        }
        let (mut file, found) = match opened {
            Err(error) if passes && error.is_read_only() => IntentFile::open_unwritable(&dir, &geometry).map_err(|_| error)?,
            opened => opened?,
        };
        if is_noted && !file.has_failed() {
            Mark::TrackingLost.put(&dir, true)?;
            note.remove();
        }
        in_this_boot.put(since_found.as_ref());
        match backing::keep(&identity, &dir) {
            // † L1: which boot it was, and by which number, says nothing that the next start must know.
            Err(error) if known == Known::Same => warn!(volume = %name, %error, "what is known of the backing cannot be kept"),
            kept => kept?,
        }
        let before = found.header.as_ref();
        let touched = touched || known != Known::Same || bypassed || used.is_some() || too_late;
        // † A flush that failed may have lost what the drive's cache still showed when it was compared: no clean stop of the
        // same boot vouches for that, only a compare in the next one (T14).
        let noted = FlushNote::open(&around.runtime_dir, meta.id);
        let flushes = Arc::new(noted.with_context(|| format!("no note can be kept in {}", around.runtime_dir.display()))?);
        let owed = found.owed.filter(|_| !touched && before.is_none_or(|h| h.flush_failed.is_none()) && !flushes.any());
        // Before the host can write there.
        let sentinels = Sentinels::look(&device, &sentinel_key).unwrap_or_else(|error| {
            warn!(volume = %name, %error, "superblocks cannot be read: a use of the device behind our back may go unnoticed");
            None
        });
        // Everything that may fail for a reason that a person mends comes before the header says `attached` and before the
        // first thread: a failed opening leaves nothing behind that holds a door.
        if flushes.is_untold() {
            warn!(volume = %name, "a flush of the backing failed that nobody was told of: the next flush of its users fails");
        }
        drop(Ring::new(8)?); // the queue and sender threads will want one each
        let prepared = Prepared::new(&config, &dir, meta.id, &device, around)?;
        let engines = (0..prepared.queues()).map(|_| DeviceEngine::new(device.clone())).collect::<Result<Vec<_>, _>>()?;
        let volume_bytes_before = before.map_or(geometry.volume_bytes(), |h| h.volume_bytes);
        let flush_failed_this_boot = flushes.any() || before.is_some_and(|h| h.flush_failed == Some(around.boot));
        let (confirmed, position) = (before.and_then(|h| h.term), before.and_then(|h| h.position));
        inbox.attaches(opening)?;
        if !file.has_failed() {
            file.write_header(|h| {
                h.state = HeaderState::Attached;
                h.backing = None;
                h.flush_failed = h.flush_failed.filter(|b| *b == around.boot);
            })?;
        }
        // Only now: what an opening that failed found is what a clean stop left.
        let marks_kept = Sentinels::keep_or_forget(sentinels.as_ref(), &dir, false);
        if let Err(error) = &marks_kept {
            warn!(volume = %name, %error, "superblocks cannot be kept: the next start may compare everything");
        }

        let wakers = engines.iter().map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
        let sender_waker = Waker::new()?;
        let (intent, intent_orders) = channel();
        let (sender, sender_orders) = channel();
        let id = meta.id;
        let wakes = Wakes {
            queues: wakers.iter().map(|waker| Arc::new(RingWake(waker.clone())) as Arc<dyn Wake>).collect(),
            sender: Arc::new(RingWake(sender_waker.clone())),
            owner: Arc::new(CommitWake(intent.clone())),
            control: Arc::new(ControlWake(inbox.clone(), id)),
        };
        let shim_limits = farside_shim::Limits {
            side_buffer_bytes: (around.limits.side_buffer_mib as usize) << 20,
            in_flight_per_queue: (around.limits.queue_depth as usize).max(2),
            ..farside_shim::Limits::DEFAULT
        };
        let shim_config = farside_shim::VolumeConfig {
            volume_bytes_before,
            flush_failed_this_boot,
            flush_failure_untold: flushes.is_untold(),
            limits: shim_limits,
            queues: wakers.len(),
            ..farside_shim::VolumeConfig::new(geometry)
        };
        let mut slots = found.slots;
        let map = file.header().map;
        let (volume, queues, owner) = group.open_volume(shim_config, wakes, map, &mut |page| {
            std::mem::replace(&mut slots[page.0 as usize], std::array::from_fn(|_| farside_region::intent::IntentBlock::zeroed()))
        });
        if let Some(owed) = &owed {
            volume.mark_open(owed);
        }
        let mut setup = Box::new(VolumeSetup {
            meta: meta.clone(),
            confirmed,
            position,
            inherited: found.hot,
            start: if owed.is_some() { Start::Clean } else { Start::Unclean },
            tracking_lost: Mark::TrackingLost.is_set(&dir)? || file.has_failed(),
            paused: Mark::Paused.is_set(&dir)?,
        });

        let (counters, sent) = (Arc::new(Counters::default()), Arc::new(SentCounters::default()));
        let guard = sentinels.map(|kept| {
            let note = MarksNote::begin(&around.runtime_dir, id, marks_kept.is_ok())?;
            Guard::start(&device, &dir, sentinel_key, kept, note, name.as_str())
        });
        let guard = guard.transpose()?;
        // The first queue's: a flush of the backing covers what all of them have completed.
        let orders = Arc::new(Orders::default());
        let client = prepared.has_one_client().then(|| volume.connect());
        let mut shim_queues = Vec::with_capacity(queues.len());
        for (at, (queue, engine)) in queues.into_iter().zip(engines).enumerate() {
            let flushed = inbox.clone();
            shim_queues.push(ShimQueue::new(
                queue,
                engine,
                tap::depth(&around.limits),
                if at == 0 { orders.clone() } else { Arc::new(Orders::default()) },
                Box::new(move |ok| flushed.send(Note::Flushed(id, ok))),
                counters.clone(),
                guard.as_ref().map(Guard::bell),
                flushes.clone(),
                client.clone(),
            )?);
        }
        let (taps, tap) = prepared.ready(&name, &around.limits, wakers);

        let spawn =
            |what: &str| std::thread::Builder::new().name(format!("{what}-{}", name.as_str().get(..8).unwrap_or(name.as_str())));
        let mut threads = Threads {
            tap: tap.clone(),
            sender,
            sender_waker: sender_waker.clone(),
            intent,
            queue_threads: Vec::with_capacity(taps.len()),
            sender_thread: None,
            intent_thread: None,
        };
        let mut thread = IntentThread::new(file, owner, intent_orders, inbox.clone(), (id, name.clone()), geometry, around.boot);
        let map_busy = thread.busy();
        thread.begin();
        threads.intent_thread = Some({
            spawn("intent").spawn(move || {
                let _ = Priority::Urgent.set(); // writes to cold regions wait for it
                thread.run();
            })?
        });
        let pipeline = SenderThread {
            id: meta.id,
            keys: around.keys.clone(),
            volume: volume.clone(),
            device: device.clone(),
            depth: around.limits.sender_depth as usize,
            host: tap.clone(),
            encoders: around.encoders.clone(),
            compression: around.limits.compression(),
            orders: sender_orders,
            waker: sender_waker,
            report: Box::new({
                let inbox = inbox.clone();
                move |report| inbox.send(Note::Sender(id, report))
            }),
            links: around.links.clone(),
            pacer: around.pacer.clone(),
            counters: sent.clone(),
        };
        threads.sender_thread = Some({
            let (inbox, name) = (inbox.clone(), name.clone());
            spawn("send").spawn(move || {
                if let Err(error) = pipeline.run() {
                    error!(volume = %name, %error, "the sender stopped; the host is served on, nothing is replicated");
                    inbox.send(Note::SenderEnded(id, error.to_string()));
                }
            })?
        });
        let serving = Arc::new(AtomicUsize::new(taps.len()));
        for (server, queue) in taps.into_iter().zip(shim_queues) {
            let (inbox, name, tap, serving) = (inbox.clone(), name.clone(), tap.clone(), serving.clone());
            threads.queue_threads.push(spawn("queue").spawn(move || {
                let _ = Priority::Urgent.set(); // `farside doctor` says where it is refused
                let abandoned = server.run(queue).unwrap_or_else(|Ended { why, under_way, abandoned }| {
                    // † The kernel gives what was under way to the next process only, once this one is gone.
                    assert!(
                        !under_way || tap.is_stopping(),
                        "the tap of volume {name} stopped serving, and only another process can go on: {why:#}"
                    );
                    error!(volume = %name, "the tap is not served, or has not ended in order: {why:#}");
                    tap.stop(); // a device is served whole, or waits for the next daemon
                    abandoned.map(|abandoned| *abandoned)
                });
                if serving.fetch_sub(1, Ordering::AcqRel) == 1 {
                    inbox.send(Note::TapStopped(id));
                }
                abandoned
            })?);
        }
        let mut served = Self {
            config,
            meta,
            dir,
            device,
            volume,
            counters,
            sent,
            tap,
            insertion,
            writes,
            presence,
            guard,
            under: None,
            tap_writes: None,
            tap_lost: Arc::default(),
            blind: None,
            map_busy,
            orders,
            threads,
            flush_failed_this_boot,
            flushes,
            runtime_dir: around.runtime_dir.clone(),
            boot: around.boot,
        };
        let (inbox, volume, tap_lost) = (inbox.clone(), served.config.name.clone(), served.tap_lost.clone());
        let lost = move |why: String| {
            error!(%volume, "{why}");
            let _ = tap_lost.set(why.clone()); // the first reason is as good
            // † Nobody may hear it yet, as the volume is not its group's yet.
            inbox.send(Note::TapLost(id, why));
        };
        let put_there = match served.appear(&around.runtime_dir, lost) {
            Ok(put_there) => put_there,
            Err(error) => {
                served.close();
                return Err(error);
            }
        };
        setup.tracking_lost |= served.blind.is_some();
        // A helper of a killed predecessor that was taking it out said so before it began.
        if put_there && !bypassed && !setup.tracking_lost {
            // † Somebody took the tap out since we looked: what was written meanwhile passed nobody.
            let why = "its tap was taken out while it was being opened";
            error!(volume = %name, "past its tap: {why}; everything will be compared");
            setup.tracking_lost = true;
            if let Err(error) = loss::keep(&served.dir, &note, why) {
                warn!(volume = %name, "{error:#}");
            }
        }
        let tap = served.config.address();
        info!(volume = %name, bytes = geometry.volume_bytes(), %tap, clean = owed.is_some(), "served");
        Ok((served, setup))
    }

    /// Shows the volume to the host. Nothing was read for replication yet: what the host wrote up to here counts. Gives whether the
    /// tap was put under the host's device now.
    fn appear(&mut self, runtime_dir: &Path, lost: impl Fn(String) + Send + 'static) -> anyhow::Result<bool> {
        let name = &self.config.name;
        let place = Place { inserted: self.insertion.is_some() };
        let mut canary = None;
        let send = |tap: &Path| {
            let (sent, first) = match &self.insertion {
                // † Its host goes on writing to the same disk on the device's own table: what was read a moment ago is old by now.
                Some(_) => (Canary::NotSent("its host writes to the device meanwhile".to_owned()), None),
                None => canary::send(tap, &self.volume, self.writes.as_ref(), runtime_dir),
            };
            canary = Some(sent);
            first
        };
        let shown = self.tap.appear((name, self.meta.id), &self.device, place, lost, send)?;
        self.tap_writes = shown.as_deref().and_then(|tap| TapWatch::new(tap, self.counters.clone()));
        let note = BlindNote::of(runtime_dir, self.meta.id);
        let blind =
            shown.as_ref().map_or(Ok(None), |_| note.judge(canary.as_ref())).context("what a first write showed is unknown")?;
        match &canary {
            Some(Canary::Seen) => info!(volume = %name, "a first write was marked, and reached the backing"),
            Some(Canary::NotSent(why)) => info!(volume = %name, %why, "no first write was tried"),
            Some(Canary::Unseen(_)) | None => {}
        }
        if let Some(why) = blind {
            let why = format!("its tap does not see what is written: {why}");
            error!(volume = %name, "{why}");
            Mark::TrackingLost.put_because(&self.dir, &why)?;
            // † Where its device rests on it already, requests wait for it.
            let waits = |insertion: &Arc<Insertion>| canary.is_none() && matches!(insertion.state(), Ok(State::Inserted { .. }));
            if self.insertion.as_ref().is_some_and(|insertion| !waits(insertion)) {
                self.give_up_tap();
                bail!("{why}; its device stays on its own disks");
            }
            // Its host is served, and nothing is believed.
            self.blind = Some(why);
        }
        let (Some(insertion), Some(shown)) = (&self.insertion, shown) else { return Ok(false) };
        // Also where it is there already: what a killed predecessor began may only end now that the tap is served again, and
        // may end with the device on its own disks. (That it was to be so was marked before: everything is compared then.)
        let change = Change::Insert { device: insertion.device().to_owned(), tap: shown.clone() };
        let put_there = change.make(runtime_dir).inspect_err(|_| {
            // A device that rests on this tap already is not given up: its requests wait for a successor.
            self.give_up_tap();
        })?;
        let number = DevNumber::at(&shown).with_context(|| format!("cannot look at {}", shown.display()))?;
        self.under = Some((shown, number));
        Ok(put_there)
    }

    fn give_up_tap(&self) {
        let name = &self.config.name;
        let gone = self.tap.claim().and_then(|unused| self.tap.withdraw(name, unused));
        gone.unwrap_or_else(|error| warn!(volume = %name, "its tap stays: {error:#}"));
    }

    /// How many bytes its host could see, if those are more than it does. `None`: or that is no size of a volume.
    pub(crate) fn could_grow_to(&self) -> Option<u64> {
        let now = self.device.size_now().ok().filter(|_| self.insertion.is_none())?;
        let is_whole = now.is_multiple_of(u64::from(self.device.block_min()));
        let bytes = self.volume.geometry().volume_bytes();
        (is_whole && (now > bytes || now == bytes && self.tap.is_small())).then_some(now)
    }

    /// Whether an opening of this volume would open the disk that it is served from: a name may have got another one.
    pub(crate) fn is_at_its_name(&self) -> bool {
        self.insertion.is_some() || self.device.is_at(&self.config.backing).unwrap_or(false)
    }

    /// What lets the users of its device write past the tap.
    ///
    /// # Errors
    /// When that cannot be known.
    pub(crate) fn bypass(&self) -> Result<Option<String>, InsertError> {
        if self.blind.is_some() {
            return Ok(self.blind.clone());
        }
        match (&self.insertion, &self.under) {
            (Some(insertion), Some((tap, _))) => insertion.bypass(tap),
            _ => Ok(None),
        }
    }

    /// Gives the sender an order.
    pub(crate) fn send(&self, order: Order) {
        self.threads.send(order);
    }

    /// Gives the intent thread an order.
    pub(crate) fn intent(&self, order: IntentOrder) {
        self.threads.intent(order);
    }

    /// Asks the queue for a flush of the backing; [`Note::Flushed`] follows.
    pub(crate) fn order_flush(&self) {
        self.orders.flush();
        self.tap.wake();
    }

    /// Keeps the ledger's digest key from now on.
    pub(crate) fn adopt(&mut self, meta: VolumeMeta) -> anyhow::Result<()> {
        keep_volume_meta(&self.dir, &meta)?;
        self.meta = meta;
        Ok(())
    }

    /// Whether [`Served::stop_tap`] was called, or the tap has ended by itself: nothing may be asked of its queue any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.tap.is_stopping() || self.tap_has_ended()
    }

    /// Whether a thread of the tap is over, by a stop or because it could not begin.
    pub(crate) fn tap_has_ended(&self) -> bool {
        self.threads.tap_has_ended()
    }

    /// Stops taking requests; [`Note::TapStopped`] follows when the last one is answered.
    pub(crate) fn stop_tap(&self) {
        self.tap.stop();
    }

    /// The last step of a planned stop, after the tap has stopped: flush, masks of what is owed, `clean`. With `None` the header
    /// is left `attached`. Gives whether it is clean. Waits for the device; call it on a thread of its own.
    pub(crate) fn close_at_stop(mut self, owed: Option<GranuleSet>) -> bool {
        drop(self.threads.abandon_queues());
        self.end_at_stop(owed)
    }

    /// As [`Served::close_at_stop`], for a successor in this process: the device that its host goes on using is free for that.
    pub(crate) fn close_for_successor(mut self, owed: Option<GranuleSet>) -> bool {
        self.threads.end_queues();
        self.end_at_stop(owed)
    }

    fn end_at_stop(mut self, owed: Option<GranuleSet>) -> bool {
        let clean = owed.is_some_and(|owed| self.write_clean(owed));
        self.finish();
        clean
    }

    fn write_clean(&mut self, owed: GranuleSet) -> bool {
        let bytes = owed.granule_count(self.volume.geometry()) * self.volume.geometry().granule_bytes();
        let flush = self.volume.flush_begin();
        let flushed = self.device.sync_data();
        if flushed.is_err() {
            self.flushes.failed();
        }
        self.volume.flush_end(flush, flushed.is_ok());
        if let Err(error) = &flushed {
            error!(volume = %self.config.name, %error, "the backing cannot be flushed: the next start compares what was hot");
            self.intent(IntentOrder::FlushFailed);
        }
        let may = flushed.is_ok()
            && !self.flush_failed_this_boot
            && self.volume.flush_failures() == 0
            && self.volume.tracking() == Tracking::Sound;
        if !may {
            return false;
        }
        // † A disk without a cache of its own is flushed with success also where it is gone.
        if self.presence.as_mut().is_some_and(Presence::is_gone) {
            error!(volume = %self.config.name, "its disk is gone: the next start compares what was hot");
            return false;
        }
        if let Some(guard) = self.guard.take() {
            guard.end();
        }
        let sentinels = Sentinels::look(&self.device, &sentinel_key(self.meta.id)).ok().flatten();
        if let Err(error) = Sentinels::keep_or_forget(sentinels.as_ref(), &self.dir, true) {
            error!(volume = %self.config.name, %error, "superblocks cannot be kept: the next start compares what was hot");
            return false;
        }
        // † Before the look: what somebody writes after that is more than this, and the next start sees it.
        let left = Left::now(self.writes.as_ref().and_then(WriteWatch::written), self.boot);
        if self.writes.as_mut().and_then(WriteWatch::look).is_some() {
            error!(volume = %self.config.name, "past its tap: its backing was written as it stopped; everything will be compared");
            let marked = Mark::TrackingLost.put_because(&self.dir, "the backing was written by somebody else as it stopped");
            marked.unwrap_or_else(|error| error!(volume = %self.config.name, %error, "nor can that be recorded"));
            return false;
        }
        if let Err(error) = Left::keep(left.as_ref(), &self.dir) {
            error!(volume = %self.config.name, %error, "how the backing was left cannot be kept: the next start compares what was hot");
            return false;
        }
        let backing = self.device.identity_now().ok().flatten();
        let (answer, answered) = channel();
        self.intent(IntentOrder::Clean { owed, backing, answer });
        let clean = answered.recv().unwrap_or(false);
        if clean {
            info!(volume = %self.config.name, owed_bytes = bytes, "stopped cleanly");
        }
        clean
    }

    /// Ends the threads with the header left `attached`: the next start compares. Waits for the device. One that stays may be served
    /// again by this process.
    pub(crate) fn close(mut self) {
        self.threads.end_queues();
        self.finish();
    }

    /// Ends the threads, and removes the volume's folder before the door is opened: nobody else uses it in between.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub(crate) fn close_and_remove(mut self) -> anyhow::Result<()> {
        self.finish();
        let Self { dir, device, insertion, flushes, runtime_dir, meta, .. } = self;
        flushes.leave();
        OpenedNote::of(&runtime_dir, meta.id).remove();
        MarksNote::remove(&runtime_dir, meta.id);
        std::fs::remove_dir_all(&dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
        drop(device);
        insertion.map_or(Ok(()), |insertion| insertion.remove_twin()).context("its device's twin cannot be removed")
    }

    /// Ends the threads, with the folder as it is: somebody opens the volume again. A device that somebody took off its tap needs
    /// no twin then.
    ///
    /// # Errors
    /// When the twin cannot be removed.
    pub(crate) fn close_for_another(mut self) -> anyhow::Result<()> {
        self.finish();
        let Self { device, insertion, under, .. } = self;
        drop(device);
        let tap = under.map(|(_, number)| number);
        insertion.map_or(Ok(()), |insertion| insertion.forsake_twin(tap)).context("its device's twin cannot be removed")
    }

    fn finish(&mut self) {
        self.threads.end_queues();
        if let Some(guard) = self.guard.take() {
            guard.end();
        }
        self.threads.end();
    }
}

/// The daemon starts early in a boot: the disk of a volume that was served before may come later. What was never served is not
/// waited for.
fn wait_for_disk(config: &VolumeConfig, dir: &Path) {
    let until = Instant::now() + DISK_WAIT;
    while meta_path(dir).exists() && config.backing.starts_with("/dev") && !config.backing.exists() && Instant::now() < until {
        std::thread::sleep(DISK_POLL);
    }
}

/// Whether a volume that is served could be closed and opened with so many bytes, as far as that can be told while it is served:
/// its host would wait for an opening that fails.
///
/// # Errors
/// Why not.
pub(crate) fn could_be_opened_again(config: &VolumeConfig, dir: &Path, around: &Surroundings, bytes: u64) -> anyhow::Result<()> {
    refuse_own_tap(dir)?;
    refuse_own_needs(config, dir, around)?;
    stacked::refuse(config, None)?;
    IntentFile::has_room(dir, &Geometry::new(bytes)?).context("no room for a larger intent map")
}

/// Invariant: whoever uses a device goes on over the disk that he began with, or waits. A mounted file system writes what it
/// remembers of its disk, and over another one that is the end of what is there. So over a disk that is surely another a device is
/// made anew, and where the one that there was cannot be ended, nothing is served. What is only not known to be the same is
/// compared in full, and served: a file of ours that is damaged is no reason to leave a host without its disk.
///
/// # Errors
/// Who uses it, or why that cannot be known in time.
fn end_device_of_another_disk(dir: &Path, meta: &VolumeMeta, around: &Surroundings) -> anyhow::Result<()> {
    tap::end(dir, meta.id, &meta.name, &around.runtime_dir).context(AnotherDisk::Found)
}

/// Why a volume is not served whose device is used over another disk. A person decides which of them goes: it is not tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnotherDisk {
    /// In the place of the one that it had.
    Found,
    /// Nobody knows which one it had.
    Unknown,
}

impl fmt::Display for AnotherDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self, Self::Unknown) {
            return f.write_str(
                "a device of a volume of this name is used, and this state directory does not know over which disk: stop what uses it, then \
                 farside reload; or serve it with the state directory that it had",
            );
        }
        write!(
            f,
            "{ANOTHER_DISK}, and whoever uses its device would go on over it: give the volume the disk or file that it had, or stop \
             what uses the device; then farside reload (everything is compared then)"
        )
    }
}

/// † A file system that is mounted from the volume's device, and waits for a daemon, has in memory what its disk was: where somebody mounted or checked
/// the disk itself meanwhile, what it writes next tears both apart.
fn refuse_whoever_waits(used: &'static str, name: &Name, insertion: Option<&Insertion>) -> anyhow::Result<()> {
    let device = insertion.map_or_else(|| node::path(name), |insertion| insertion.device().to_owned());
    let is_there = |number| insertion.is_some() || stack::is_own_tap(number);
    match DevNumber::at(&device).is_ok_and(is_there) {
        true => tap::awaited_by_nobody(&device).context(UsedMeanwhile(used)),
        false => Ok(()),
    }
}

/// Why a volume is not served whose disk was used meanwhile. It is tried again: whoever waits may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsedMeanwhile(&'static str);

impl fmt::Display for UsedMeanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, and whoever uses its device since before that would write over it what he remembers: stop what uses the device, or reboot where that \
             hangs. It is served by itself as soon as nobody does, and everything is compared",
            self.0
        )
    }
}

/// The map must never lie on what it describes: a write of it would wait for itself.
fn refuse_own_tap(dir: &Path) -> anyhow::Result<()> {
    if stack::devices_of(dir).into_iter().any(stack::rests_on_own_tap) {
        bail!("the state directory {} lies on a volume that farsided itself serves: put it on another disk", dir.display());
    }
    Ok(())
}

/// † Who may have a file served writes to it as root, and by what lies there farsided, or the host, is told what to run. By what was opened: a name may lead
/// elsewhere a moment later.
fn refuse_file_of_the_system(backing: &Path, opened: &FileDevice, around: &Surroundings) -> anyhow::Result<()> {
    let ours = {
        let running = locked(&around.config);
        [running.source.state_dir.clone(), running.drop_ins(), running.path.clone()]
    };
    // What else there is the service may not write to.
    let systems = ["/etc", "/proc", "/run", "/sys", "/var/lib/dpkg", "/var/spool"].map(PathBuf::from);
    let file = std::fs::read_link(format!("/proc/self/fd/{}", opened.fd().as_raw_fd())).context("/proc is not there")?;
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match ours.iter().chain(&systems).find(|folder| file.starts_with(real(folder))) {
        Some(folder) => bail!(
            "{} lies in {}: a file there is no volume's data. Give the volume a block device, or a file in a folder of its own",
            backing.display(),
            folder.display()
        ),
        None => Ok(()),
    }
}

/// What we need to serve a device must not lie on it: after a crash we would wait for ourselves.
fn refuse_own_needs(config: &VolumeConfig, dir: &Path, around: &Surroundings) -> anyhow::Result<()> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let device = std::fs::metadata(&config.backing).with_context(|| format!("cannot open {}", config.backing.display()))?;
    if !device.file_type().is_block_device() {
        return Ok(());
    }
    let number = DevNumber::of(device.rdev());
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin"));
    // The unit has systemd mount the last two before it starts us, wherever the state is.
    let ours = [Path::new("/"), &program, dir, &around.runtime_dir, Path::new(STATE_DIR), Path::new("/etc/farside")];
    if let Some(path) = ours.iter().find(|path| stack::path_rests_on(path, number)) {
        bail!(
            "{} lies on {}: farsided needs it to serve that very device, and would wait for itself after a crash. \
             The root file system and the state directory cannot be protected in place",
            path.display(),
            config.backing.display()
        );
    }
    let backing = config.backing.display();
    if let Some((swap, _)) = stack::swaps().into_iter().find(|(_, on)| stack::rests_on(*on, number)) {
        bail!(
            "the host swaps to {swap} on {backing}: a start of farsided after a crash may need the memory that waits for its own tap. \
             `swapoff {swap}`, and keep swap on a disk that is not protected: nothing in it is worth replicating"
        );
    }
    if !config.insert && is_own_tap(number) {
        bail!("{backing} is a tap of farsided: give the disk below by a name under /dev/disk/by-id; other names lead to the tap");
    }
    // † The tap shows the same content: once it is there, such a name leads to the tap, and after a crash we would serve ourselves.
    if !config.insert && config.tap.is_device() && boot::names_content(&config.backing) {
        let name = boot::lasting_name(number);
        let instead = name
            .map_or_else(|| "a name below /dev/disk/by-id or /dev/disk/by-path".to_owned(), |name| name.display().to_string());
        bail!(
            "{backing} names a disk by what is on it, which its tap shows as well: such a name leads to the tap. Give {instead}"
        );
    }
    Ok(())
}

/// Whether it is what one of the names leads to that we give to taps.
fn is_own_tap(number: DevNumber) -> bool {
    let mut names = std::fs::read_dir(node::FOLDER).into_iter().flatten().flatten();
    names.any(|name| DevNumber::at(&name.path()).is_ok_and(|tap| tap == number))
}

/// Makes the twin of a device that the host goes on using, unless we could not live on top of it. `named`: as it is configured.
fn prepare_insertion(config: &VolumeConfig, named: &Path, dir: &Path, around: &Surroundings) -> anyhow::Result<Arc<Insertion>> {
    refuse_own_needs(config, dir, around)?;
    let is_idle = change::is_idle(&around.runtime_dir, &config.backing)?;
    let insertion = Insertion::prepare(&config.backing, is_idle)?;
    if let Some(uuid) = insertion.uuid()? {
        let device = KnownDevice { uuid, path: named.to_owned() };
        if KnownDevice::of(dir).as_ref() != Some(&device) {
            write_atomically(&dir.join(DEVICE_FILE), &serde_json::to_string(&device).context("it is plain text")?)?;
        }
    }
    Ok(Arc::new(insertion))
}

/// The device that a volume's tap was put under last, in the volume's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownDevice {
    /// What tells it from every other one.
    pub(crate) uuid: String,
    /// As it was configured then.
    path: PathBuf,
}

impl KnownDevice {
    /// `None`: there was none, or nothing tells it from others.
    pub(crate) fn of(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(DEVICE_FILE)).ok()?).ok()
    }
}

/// The device under which a volume's tap belongs. † One that was renamed since is still the one: whatever uses it may wait for us,
/// and what has its name by now is another.
pub(crate) fn device_of(config: &VolumeConfig, dir: &Path) -> PathBuf {
    let named = config.backing.clone();
    let Some(known) = KnownDevice::of(dir).filter(|_| config.insert) else { return named };
    let Some(was) = farside_insert::by_uuid(&known.uuid).ok().flatten() else { return named };
    let is_same = matches!((DevNumber::at(&was), DevNumber::at(&named)), (Ok(was), Ok(named)) if was == named);
    // A person may have named another device on purpose, but not while this one waits.
    let is_meant = known.path == named || matches!(farside_insert::state_of(&was), Ok(State::Inserted { .. }));
    if is_same || !is_meant {
        return named;
    }
    let (old, now) = (named.display(), was.display());
    warn!(volume = %config.name, "its device was renamed: it is {now} now, and not {old}. Correct `backing` in its file in farsided.d");
    was
}

/// What the volume was told to be at its first start, with its size of today.
fn load_meta(dir: &Path, config: &VolumeConfig, around: &Surroundings, geometry: Geometry) -> anyhow::Result<VolumeMeta> {
    let path = meta_path(dir);
    let id = farside_ledger::volume_id(&around.source, &config.group, &config.name);
    let known = match kept_volume_meta(dir) {
        // Name and identity are the configuration's, the key is the ledger's; a lower generation than the ledger's is refused there.
        Err(error @ MetaError::Damaged { .. }) => {
            let aside = damaged_meta_path(dir);
            let kept =
                std::fs::rename(&path, &aside).map_or_else(|error| format!("lost ({error})"), |()| aside.display().to_string());
            warn!(
                volume = %config.name,
                "{error}. It is made anew, and the volume is served; what was in it is in {kept}. If the volume is called Fenced now, and no \
                 copy of it was promoted: `farside explain fenced`"
            );
            None
        }
        known => known?,
    };
    match known {
        Some((meta, has_checksum)) => {
            if meta.id != id {
                let (config_path, state_dir, own) = {
                    let config = locked(&around.config);
                    (config.path.clone(), config.source.state_dir.clone(), config.source.name.clone())
                };
                let name = source_name::of_volume(&state_dir, &config_path, &meta, &config.group);
                if name.as_ref() == Some(&around.source) {
                    bail!(
                        "{} is that of volume {}: put this volume's own file back; without a copy move it away, and it is made anew",
                        path.display(),
                        meta.name
                    );
                }
                if name.as_ref() == Some(&own) {
                    bail!(
                        "{} is of this host's own history of group {}, from before it was to stand in for {}: take `stand_in_for` out of that group and restart \
                         farsided; or remove the volume and add it, and it publishes under {}",
                        path.display(),
                        config.group,
                        around.source,
                        around.source
                    );
                }
                if let Some(name) = name {
                    bail!(
                        "{} is of source {name}, and this host is {} now: say `name = \"{name}\"` in [source] of {} and restart farsided; \
                         or remove the volume and add it, and it is another one",
                        path.display(),
                        around.source,
                        config_path.display()
                    );
                }
                bail!(
                    "{} belongs to another source, group or volume name: a volume is renamed by removing and adding it; if it is the host \
                     that was renamed, say its old `name` in [source] of {} and restart farsided",
                    path.display(),
                    config_path.display()
                );
            }
            // Of a build that kept none; it is served as well where that cannot be made up for.
            if !has_checksum && let Err(error) = keep_volume_meta(dir, &meta) {
                warn!(volume = %config.name, "{} is without a checksum still: {error:#}", path.display());
            }
            Ok(VolumeMeta { geometry, ..meta })
        }
        None => {
            let digest_key = around.keys.of_new_volume(id)?;
            let meta = VolumeMeta { id, name: config.name.clone(), geometry, digest_key, generation: Generation(1) };
            keep_volume_meta(dir, &meta)?;
            Ok(meta)
        }
    }
}

struct CommitWake(Sender<IntentOrder>);

impl Wake for CommitWake {
    fn wake(&self) {
        let _ = self.0.send(IntentOrder::Commit);
    }
}

struct ControlWake(Inbox, farside_region::VolumeId);

impl Wake for ControlWake {
    fn wake(&self) {
        self.0.send(Note::Shim(self.1));
    }
}
