//! The intent thread of a volume: writes pages as the owner wants them and headers as the control thread wants them, blocking.
//!
//! Commits of pages and headers take turns; of headers only the newest counts. A write that fails latches the file
//! (what a slot holds then is unknown). From then on the map is made anew beside it, with every bit set, now and then until
//! that succeeds: tracking is sound again from there, without a restart, and everything is compared (T3).
//!
//! Since when it waits for the disk is seen from outside ([`Busy`]): a disk that does not answer holds up nobody who need not wait for
//! it, and whoever does should be told.
//!
//! Invariant: what could not be written is not forgotten. The header that waited and a failed flush (T14) go into the new map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_region::{BootId, Geometry, LedgerPosition, MapId, Name, Term, VolumeId};
use farside_shim::IntentOwner;
use tracing::{error, info, warn};

use crate::channel::{Nothing, Receiver};
use crate::group::{Inbox, Note};
use crate::intent_file::IntentFile;
use crate::volume::IntentOrder;

/// When a failed map is tried again: doubled each time, up to the second.
const MEND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the header should say.
type Wanted = (Option<Term>, Option<LedgerPosition>);

/// Since when the thread is at work; 0: it waits for orders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Busy(Arc<AtomicU64>);

impl Busy {
    fn begin(&self) {
        self.0.store(monotonic_ns(), Ordering::Relaxed);
    }

    fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// For how long it has been at what it does now, if at anything.
    pub(crate) fn since(&self) -> Option<Duration> {
        let began = Some(self.0.load(Ordering::Relaxed)).filter(|began| *began > 0)?;
        Some(Duration::from_nanos(monotonic_ns().saturating_sub(began)))
    }
}

pub(crate) struct IntentThread {
    file: IntentFile,
    busy: Busy,
    owner: IntentOwner,
    orders: Receiver<IntentOrder>,
    inbox: Inbox,
    volume: (VolumeId, Name),
    geometry: Geometry,
    boot: BootId,
    header: Option<Wanted>,
    flush_failed: bool,
    /// Of a file that failed: when it is tried again, and how long was waited for that.
    mend: Option<(Instant, Duration)>,
}

impl IntentThread {
    pub(crate) fn new(
        file: IntentFile,
        owner: IntentOwner,
        orders: Receiver<IntentOrder>,
        inbox: Inbox,
        volume: (VolumeId, Name),
        geometry: Geometry,
        boot: BootId,
    ) -> Self {
        Self {
            file,
            busy: Busy::default(),
            owner,
            orders,
            inbox,
            volume,
            geometry,
            boot,
            header: None,
            flush_failed: false,
            mend: None,
        }
    }

    /// What others see of it.
    pub(crate) fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// Before it is served. † Of a map that could not be written when it was opened nothing cold may be written before it is known what keeps that.
    pub(crate) fn begin(&mut self) {
        if self.file.has_failed() {
            self.complain("the intent map", &"its file system is read-only");
        }
    }

    /// The thread's whole life.
    pub(crate) fn run(mut self) {
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(order) => {
                        self.busy.begin();
                        if !self.obey(order) {
                            return;
                        }
                    }
                    Err(Nothing::Ever) => return,
                    Err(Nothing::Yet) => break,
                }
            }
            // One of each in turn: cold writes without end must not keep the header waiting, nor a header them for long.
            self.busy.begin();
            let worked = [self.commit_pages(), self.write_header(), self.mend_if_due()];
            if worked.contains(&true) {
                continue;
            }
            self.busy.end();
            match self.next_order() {
                Ok(order) => {
                    self.busy.begin();
                    if !self.obey(order) {
                        return;
                    }
                }
                Err(Nothing::Yet) => {}
                Err(Nothing::Ever) => return,
            }
        }
    }

    fn next_order(&self) -> Result<IntentOrder, Nothing> {
        match self.mend {
            Some((at, _)) => self.orders.recv_deadline(at),
            None => self.orders.recv(),
        }
    }

    /// One commit; false: nothing was asked for.
    fn commit_pages(&mut self) -> bool {
        let Some(commit) = self.owner.next_commit() else { return false };
        let result = self.file.write_pages(&commit);
        // First the owner, so that whoever hears of it finds tracking lost.
        self.owner.committed(result.is_ok());
        if let Err(error) = &result {
            self.complain("the intent map", error);
        }
        true
    }

    fn mend_if_due(&mut self) -> bool {
        let due = self.mend.is_some_and(|(at, _)| Instant::now() >= at);
        if due {
            self.try_to_mend();
        }
        due
    }

    /// Writes the header that waits; false: there is none, or no file for it.
    fn write_header(&mut self) -> bool {
        let Some((confirmed, position)) = self.header.filter(|_| !self.file.has_failed()) else { return false };
        match self.file.write_header(|h| (h.term, h.position) = (confirmed, position)) {
            Ok(()) => {
                self.header = None;
                self.inbox.send(Note::HeaderDurable { volume: self.volume.0, confirmed, position });
            }
            Err(error) => self.complain("the header", &error),
        }
        true
    }

    /// False: the thread ends.
    fn obey(&mut self, order: IntentOrder) -> bool {
        match order {
            IntentOrder::Commit => {}
            IntentOrder::Header { confirmed, position } => self.header = Some((confirmed, position)),
            IntentOrder::FlushFailed => {
                self.flush_failed = true;
                let boot = self.boot;
                if let Err(error) = self.file.write_header(|h| h.flush_failed = Some(boot)) {
                    self.complain("a failed flush", &error);
                }
            }
            IntentOrder::Mend if self.file.has_failed() => self.try_to_mend(),
            IntentOrder::Mend => {}
            IntentOrder::Clean { owed, backing, answer } => {
                while self.commit_pages() {}
                let result = self.file.write_clean(owed, backing, self.header.take());
                if let Err(error) = &result {
                    self.complain("the clean stop", error);
                }
                let _ = answer.send(result.is_ok());
            }
            IntentOrder::Quit => return false,
        }
        true
    }

    fn complain(&mut self, what: &str, error: &dyn std::fmt::Display) {
        if self.mend.is_none() {
            error!(volume = %self.volume.1, %error, "{what} cannot be made durable: tracking is lost until it can");
            self.mend = Some((Instant::now() + MEND.0, MEND.0));
        }
        // † Also when only the header failed: with every region hot nobody would find out by a page.
        self.owner.lose();
        self.inbox.send(Note::MapFailed(self.volume.0));
    }

    fn try_to_mend(&mut self) {
        let mut id = [0; 16];
        let made = getrandom::fill(&mut id).map_err(|e| e.to_string()).and_then(|()| {
            let (header, flush_failed) = (self.header, self.flush_failed.then_some(self.boot));
            let change = |h: &mut farside_region::intent::Header| {
                if let Some((term, position)) = header {
                    (h.term, h.position) = (term, position);
                }
                h.flush_failed = flush_failed.or(h.flush_failed);
            };
            self.file.make_anew(&self.geometry, MapId(id), change).map_err(|e| e.to_string())
        });
        match made {
            Ok(()) => {
                self.mend = None;
                self.owner.made_anew(MapId(id));
                info!(volume = %self.volume.1, "the intent map was made anew; everything is compared");
                self.inbox.send(Note::MapMended(self.volume.0));
                if let Some((confirmed, position)) = self.header.take() {
                    self.inbox.send(Note::HeaderDurable { volume: self.volume.0, confirmed, position });
                }
            }
            Err(why) => {
                let waited = self.mend.map_or(MEND.0, |(_, waited)| waited);
                let wait = (waited * 2).min(MEND.1);
                warn!(volume = %self.volume.1, %why, again_in_s = wait.as_secs(), "the intent map still cannot be written");
                self.mend = Some((Instant::now() + wait, wait));
                self.inbox.send(Note::MapStillFails(self.volume.0, why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use farside_region::{RecordDigest, RegionSet, Slot};
    use farside_shim::{Tracking, TrackingVerdict, Volume, VolumeConfig, Wakes};

    use super::*;
    use crate::channel::{Sender, channel};

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const BOOT: BootId = BootId([2; 16]);

    struct Running {
        volume: std::sync::Arc<Volume>,
        orders: Sender<IntentOrder>,
        notes: Receiver<Note>,
        busy: Busy,
        thread: std::thread::JoinHandle<()>,
    }

    /// A thread over a map in which everything is cold, and whose file has failed if `failed`.
    fn start(dir: &std::path::Path, failed: bool) -> Running {
        let geometry = Geometry::new(40 << 20).expect("valid");
        let (mut file, found) = IntentFile::open(dir, &geometry, MapId([1; 16]), &mut |_| Ok(())).expect("created");
        drop(found);
        if failed {
            file.fail();
        }
        let config = VolumeConfig::new(geometry);
        let group = farside_shim::Group::new(&config.limits, geometry.granule_bytes());
        let (orders, from_control) = channel();
        let (wakes, commit) = (Wakes::none(1), orders.clone());
        struct Commit(Sender<IntentOrder>);
        impl farside_shim::Wake for Commit {
            fn wake(&self) {
                let _ = self.0.send(IntentOrder::Commit);
            }
        }
        let wakes = Wakes { owner: std::sync::Arc::new(Commit(commit)), ..wakes };
        let layout = farside_region::intent::IntentLayout::new(&geometry);
        let map = file.header().map;
        let (volume, _, owner) = group.open_volume(config, wakes, map, &mut |index| {
            let bits = farside_region::intent::PageBits::clear();
            let page = farside_region::intent::Page { map, index, seq: 9, bits };
            [page.encode(&layout), farside_region::intent::IntentBlock::zeroed()]
        });
        let (inbox, notes) = Inbox::pair();
        let name = "data".parse().expect("a name");
        let thread = IntentThread::new(file, owner, from_control, inbox, (VOLUME, name), geometry, BOOT);
        let busy = thread.busy();
        let thread = std::thread::spawn(move || thread.run());
        Running { volume, orders, notes, busy, thread }
    }

    fn hear(notes: &Receiver<Note>, wanted: impl Fn(&Note) -> bool) -> Note {
        loop {
            let note = notes.recv_timeout(Duration::from_secs(60)).expect("the thread says it");
            if wanted(&note) {
                return note;
            }
        }
    }

    #[test]
    fn t3_a_map_that_failed_is_made_anew_with_every_bit_set_and_the_header_that_waited() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let run = start(dir.path(), true);
        let position = Some(LedgerPosition { slot: Slot(8), digest: RecordDigest([8; 32]) });
        run.orders.send(IntentOrder::Header { confirmed: Some(Term(5)), position }).expect("it runs");
        run.volume.heat(&[farside_region::RegionIndex(2)].into_iter().collect());
        hear(&run.notes, |n| matches!(n, Note::MapFailed(_)));
        run.volume.resolve_tracking_lost(TrackingVerdict::Pass);
        hear(&run.notes, |n| matches!(n, Note::MapMended(_)));
        assert_eq!(run.volume.tracking(), Tracking::Sound);
        let durable = hear(&run.notes, |n| matches!(n, Note::HeaderDurable { .. }));
        assert!(matches!(durable, Note::HeaderDurable { confirmed: Some(Term(5)), .. }));
        run.orders.send(IntentOrder::Quit).expect("it runs");
        run.thread.join().expect("ended");
        // What a crash now leaves: a whole map, all dirty, at the position that waited.
        let geometry = Geometry::new(40 << 20).expect("valid");
        let (_, found) = IntentFile::open(dir.path(), &geometry, MapId([2; 16]), &mut |_| Ok(())).expect("opened");
        let header = found.header.expect("there");
        assert_eq!((header.term, header.position), (Some(Term(5)), position));
        assert_ne!(header.map, MapId([1; 16]), "a page of the old map is never taken for one of the new");
        let all: RegionSet = geometry.all_regions().iter().collect();
        assert_eq!(found.hot, all);
    }

    /// Nobody could tell a volume whose cold writes waited for a disk from one that had none.
    #[test]
    fn a_disk_that_does_not_answer_is_seen_and_so_is_its_answer() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let run = start(dir.path(), true);
        let wait_until = |is_it: &dyn Fn(Option<Duration>) -> bool| {
            let began = Instant::now();
            while !is_it(run.busy.since()) {
                assert!(began.elapsed() < Duration::from_secs(60), "{:?}", run.busy.since());
                std::thread::yield_now();
            }
        };
        // Where the new map should be is something that waits for a reader.
        let gate = dir.path().join("intent.new");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
        run.orders.send(IntentOrder::Mend).expect("it runs");
        wait_until(&|since| since.is_some_and(|since| since > Duration::from_millis(200)));
        drop(std::fs::File::open(gate).expect("opened"));
        hear(&run.notes, |n| matches!(n, Note::MapStillFails(..)));
        wait_until(&|since| since.is_none());
        run.orders.send(IntentOrder::Quit).expect("it runs");
        run.thread.join().expect("ended");
    }

    #[test]
    fn a_map_that_cannot_be_made_anew_says_why_and_is_tried_again_when_asked() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let run = start(dir.path(), true);
        // A folder in the way of the new file.
        std::fs::create_dir(dir.path().join("intent.new")).expect("mkdir");
        run.orders.send(IntentOrder::Mend).expect("it runs");
        let Note::MapStillFails(_, why) = hear(&run.notes, |n| matches!(n, Note::MapStillFails(..))) else { unreachable!() };
        assert!(why.contains("intent"), "{why}");
        assert_eq!(run.volume.tracking(), Tracking::Sound, "nobody wrote yet: nothing is lost");
        // A header that cannot be written is a loss too, though every page may be well.
        run.orders.send(IntentOrder::Header { confirmed: Some(Term(1)), position: None }).expect("it runs");
        run.orders.send(IntentOrder::FlushFailed).expect("it runs");
        hear(&run.notes, |n| matches!(n, Note::MapFailed(_)));
        assert_eq!(run.volume.tracking(), Tracking::Lost);
        std::fs::remove_dir(dir.path().join("intent.new")).expect("rmdir");
        run.orders.send(IntentOrder::Mend).expect("it runs");
        hear(&run.notes, |n| matches!(n, Note::MapMended(_)));
        run.orders.send(IntentOrder::Quit).expect("it runs");
        run.thread.join().expect("ended");
    }
}
