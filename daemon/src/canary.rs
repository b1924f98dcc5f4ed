//! Whether a tap sees what its host writes (R13): a tracker that sees nothing looks like a host that writes nothing.
//!
//! | When | What must be so |
//! |---|---|
//! | a tap was made, nobody knows it yet, and nobody uses its disk | a granule that a helper writes again as it is, through the tap's own node, is marked in the open map, and the kernel has counted it on the backing |
//! | at every look at the taps ([`crate::watch`]) | the kernel has not counted more as written on the tap than the shim has carried out |
//!
//! A tap that does not see is called so until its device is made anew: a note in the runtime directory, which outlives the process
//! and not the boot, says so to whoever takes the device over.
//!
//! Invariants: no byte changes, and nobody's write can come between the read and the write: the device is held exclusively, and
//! udev does not say yet whose it is. So a tap that was there before is never written to, since somebody may use it; nor is one that is to be put
//! under a device, whose host goes on writing to the same disk beside it: † what is old by then would take the place of an acknowledged write, and
//! after a kill the kernel would issue it again, minutes later. Only the second row speaks for these. No opening waits longer for this than [`PATIENCE`], nor at all
//! for a write that finds its intent map unwritable: that ends only when the volume is a member of its group. † But nobody is shown the
//! device before it has ended ([`crate::showing`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use farside_blockio::dm::DevNumber;
use farside_blockio::{WriteWatch, sectors_written};
use farside_region::{Geometry, GranuleIndex, VolumeId};
use farside_shim::{Tracking, Volume};
use tracing::warn;

use crate::change::Change;
use crate::channel::{Nothing, channel};
use crate::queue::Counters;
use crate::showing::FirstWrite;

/// How long an opening waits for it. What takes longer is waited for before the device is shown ([`crate::showing`]).
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const SECTOR: u64 = 512;

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Canary {
    /// It was marked, and it reached the backing.
    Seen,
    /// Nothing is known, for this reason.
    NotSent(String),
    /// The tap does not see what is written, or it does not get where it belongs.
    Unseen(String),
}

/// Sends one through a tap that nobody uses, of a volume that takes part in no switch yet. Also gives the write, if it has not ended.
pub(crate) fn send(
    tap: &Path,
    volume: &Volume,
    backing: Option<&WriteWatch>,
    runtime_dir: &Path,
) -> (Canary, Option<FirstWrite>) {
    let Some(granule) = place(volume) else { return (Canary::NotSent("everything is marked already".to_owned()), None) };
    let counted = || backing.filter(|watch| watch.is_counted()).and_then(WriteWatch::written).map(|written| written.sectors);
    let before = counted();
    let canary = match write_again(tap, granule, volume, runtime_dir) {
        Ok(Written::Ended(true)) => judge(volume, granule, before.zip(counted())),
        Ok(Written::Ended(false)) => Canary::NotSent("somebody uses it already".to_owned()),
        Ok(Written::UnderWay(first)) => return (Canary::NotSent("it has not ended yet".to_owned()), Some(first)),
        Err(error) => Canary::NotSent(format!("{error:#}")),
    };
    (canary, None)
}

/// What became of the write itself.
enum Written {
    /// False: somebody has the tap, and nothing was written.
    Ended(bool),
    UnderWay(FirstWrite),
}

/// A whole granule that is not marked yet, away from what lies at the beginning of a device.
fn place(volume: &Volume) -> Option<GranuleIndex> {
    let geometry = volume.geometry();
    let marked = volume.open_set();
    let whole = geometry.volume_bytes() / geometry.granule_bytes();
    let from_the_middle = (whole / 2..whole).chain(1..whole / 2);
    from_the_middle.map(GranuleIndex).find(|granule| !marked.contains(geometry, *granule))
}

fn write_again(tap: &Path, granule: GranuleIndex, volume: &Volume, runtime_dir: &Path) -> anyhow::Result<Written> {
    let bytes = volume.geometry().granule_bytes();
    let change = Change::WriteAgain { tap: tap.to_owned(), offset: granule.0 * bytes, bytes };
    let (done, end) = channel();
    let runtime_dir = runtime_dir.to_owned();
    std::thread::Builder::new().name("canary".into()).spawn(move || {
        let _ = done.send(change.make(&runtime_dir)); // whoever waited may have given up
    })?;
    let until = Instant::now() + PATIENCE;
    loop {
        match end.recv_timeout(POLL) {
            Ok(end) => return end.map(Written::Ended),
            Err(Nothing::Yet) if Instant::now() < until && volume.tracking() == Tracking::Sound => {}
            Err(Nothing::Yet) => return Ok(Written::UnderWay(FirstWrite::Sent(end))),
            Err(Nothing::Ever) => bail!("who sends it has ended"),
        }
    }
}

/// `counted`: what the kernel had counted as written on the backing before and after.
fn judge(volume: &Volume, granule: GranuleIndex, counted: Option<(u64, u64)>) -> Canary {
    let geometry: &Geometry = volume.geometry();
    if !volume.open_set().contains(geometry, granule) {
        return Canary::Unseen("what is written to it is not marked as changed".to_owned());
    }
    let sectors = geometry.granule_bytes() / SECTOR;
    match counted.map(|(before, after)| after.wrapping_sub(before)) {
        // Who writes more than that is the write watch's matter.
        Some(more) if more < sectors => {
            Canary::Unseen(format!("of {sectors} sectors that were written to it the kernel counted {more} on its backing"))
        }
        _ => Canary::Seen,
    }
}

/// The note.
#[derive(Debug)]
pub(crate) struct BlindNote {
    path: PathBuf,
}

impl BlindNote {
    pub(crate) fn of(runtime_dir: &Path, volume: VolumeId) -> Self {
        Self { path: runtime_dir.join(format!("blind-{volume}")) }
    }

    /// Why a tap does not see what is written, as far as that is known: by its first write, or, where none was sent because its
    /// device was there, by a predecessor's.
    ///
    /// # Errors
    /// When it cannot be known what a predecessor saw.
    pub(crate) fn judge(&self, first: Option<&Canary>) -> std::io::Result<Option<String>> {
        match first {
            Some(Canary::Unseen(why)) => {
                if let Err(error) = std::fs::write(&self.path, why) {
                    warn!(note = %self.path.display(), %error, "cannot be written: the next start will not know that the tap does not track");
                }
                Ok(Some(why.clone()))
            }
            Some(Canary::Seen | Canary::NotSent(_)) => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(None),
            },
            None => match std::fs::read_to_string(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                why => why.map(Some),
            },
        }
    }
}

/// The kernel's count of what was written on a tap's device, against what the shim carried out.
#[derive(Debug)]
pub(crate) struct TapWatch {
    device: DevNumber,
    /// Sectors that the kernel had counted, without what we carried out.
    before: u64,
    counters: Arc<Counters>,
}

impl TapWatch {
    /// Begins to watch a tap that serves with these counters, which began at zero with it. `None`: the kernel does not count.
    pub(crate) fn new(tap: &Path, counters: Arc<Counters>) -> Option<Self> {
        let device = DevNumber::at(tap).ok()?;
        Some(Self { device, before: sectors_written(device)?, counters })
    }

    /// Sectors that were written on the tap and passed nobody who tracks, since the last look.
    pub(crate) fn look(&mut self) -> Option<u64> {
        // The kernel counts a write when it has been answered, we before.
        let seen = sectors_written(self.device)?;
        self.judge(seen, self.counters.changed_bytes.load(Ordering::Acquire) / SECTOR)
    }

    fn judge(&mut self, seen: u64, ours: u64) -> Option<u64> {
        let untracked = seen.saturating_sub(self.before).saturating_sub(ours);
        self.before += untracked;
        Some(untracked).filter(|sectors| *sectors > 0)
    }
}

#[cfg(test)]
mod tests {
    use farside_region::intent::{IntentBlock, Page, PageBits};
    use farside_region::{ByteExtent, ByteOffset, MapId, mutation};
    use farside_shim::{Group, Io, IoResult, Op, Step, VolumeConfig, Wakes};

    use super::*;

    const GRANULE: u64 = 4096;

    /// A volume whose regions are all hot, and a write to one granule through its queue, as a tap does it.
    fn after_a_write(at: GranuleIndex) -> Arc<Volume> {
        let config = VolumeConfig::new(Geometry::new(16 << 20).expect("valid"));
        let (layout, map) = (config.layout, MapId([3; 16]));
        let group = Group::new(&config.limits, GRANULE);
        let mut pages = |index| {
            let page = Page { map, index, seq: 1, bits: PageBits::first(layout.page_run(index).count) };
            [page.encode(&layout), IntentBlock::zeroed()]
        };
        let (volume, mut queues, _owner) = group.open_volume(config, Wakes::none(1), map, &mut pages);
        let mut queue = queues.remove(0);
        let extent = ByteExtent { offset: ByteOffset(at.0 * GRANULE), len: GRANULE };
        let mut request = queue.start(Op::Write(extent, None)).expect("inside");
        loop {
            match request.advance(&mut queue) {
                Step::Io(Io::Write(_)) => request.io_done(&mut queue, IoResult::Done),
                Step::Complete(result) => break result.expect("nothing fails here"),
                step => panic!("{step:?}"),
            }
        }
        volume
    }

    #[test]
    fn r13_a_tap_that_does_not_see_is_called_so_until_its_device_is_made_anew() {
        let dir = tempfile::tempdir().expect("temp dir");
        let judge = |volume: u8, first: Option<Canary>| {
            BlindNote::of(dir.path(), VolumeId([volume; 16])).judge(first.as_ref()).expect("known") // each a process of its own
        };
        assert_eq!(judge(1, None), None, "nothing was ever seen");
        let why = Some("nothing was marked".to_owned());
        assert_eq!(judge(1, Some(Canary::Unseen("nothing was marked".to_owned()))), why);
        assert_eq!(judge(1, None), why, "its device is taken over");
        assert_eq!(judge(1, None), why, "and again");
        assert_eq!(judge(2, None), None, "another volume's");
        assert_eq!(judge(1, Some(Canary::NotSent("somebody uses it already".to_owned()))), None, "its device was made anew");
        assert_eq!(judge(1, Some(Canary::Seen)), None);
        assert_eq!(judge(1, None), None);
        // One that cannot be read is not called absent.
        std::fs::create_dir(dir.path().join(format!("blind-{}", VolumeId([3; 16])))).expect("made");
        BlindNote::of(dir.path(), VolumeId([3; 16])).judge(None).expect_err("neither yes nor no");
    }

    #[test]
    fn r13_a_tap_that_does_not_mark_is_noticed() {
        mutation::tell(&[("R13 a write is not marked", "R13: not marked")], || {
            let granule = GranuleIndex(2048);
            let volume = after_a_write(granule);
            assert_eq!(judge(&volume, granule, Some((100, 108))), Canary::Seen, "R13: not marked");
        });
    }

    #[test]
    fn r13_what_does_not_reach_the_backing_is_noticed() {
        let granule = GranuleIndex(2048);
        let volume = after_a_write(granule);
        assert!(matches!(judge(&volume, granule, Some((100, 100))), Canary::Unseen(why) if why.contains("counted 0 on")));
        assert_eq!(judge(&volume, granule, None), Canary::Seen, "the kernel does not count there");
        assert!(matches!(judge(&volume, GranuleIndex(7), None), Canary::Unseen(_)), "another granule's mark proves nothing");
    }

    #[test]
    fn it_is_sent_where_nothing_is_marked_and_not_to_the_first_granule() {
        let volume = after_a_write(GranuleIndex(2048));
        assert_eq!(place(&volume), Some(GranuleIndex(2049)));
        let mut all = farside_region::GranuleSet::default();
        all.insert_whole(volume.geometry().all_regions());
        volume.mark_open(&all);
        assert_eq!(place(&volume), None);
    }

    #[test]
    fn r13_what_the_kernel_counts_on_a_tap_was_carried_out_by_the_shim() {
        let device = DevNumber { major: 4095, minor: 1 };
        let mut watch = TapWatch { device, before: 1000, counters: Arc::default() };
        assert_eq!(watch.judge(1000, 16), None, "carried out, and not answered yet");
        assert_eq!(watch.judge(1016, 16), None);
        assert_eq!(watch.judge(1024, 16), Some(8), "nobody has seen these");
        assert_eq!(watch.judge(1024, 16), None, "said once");
        assert_eq!(watch.judge(1040, 32), None);
        assert_eq!(watch.look(), None, "a device that is not there");
    }
}
