//! Power cuts under an overlay. The disk of this test keeps what was synced; of what was written since, each sector may be there as it
//! was at any moment in between, or not at all. The power goes at any operation, also within a flush.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farside_blockio::{Buffer, Op, Payload, Request, RequestId};
use farside_region::{ByteExtent, Geometry, GranuleIndex, GranuleRun, RegionIndex, mutation};
use nix::errno::Errno;

use crate::map::{Map, MapError};
use crate::medium::Medium;
use crate::queue::Job;
use crate::tests::{BYTES, Fake, below, extent, read};
use crate::view::Turn;
use crate::{Overlay, View};

const SECTOR: usize = 512;
const MAP_BYTES: usize = 4096;

/// A small generator, so that a seed is a story.
struct Rng(u64);

impl Rng {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// How many operations there is power for, on all disks together.
#[derive(Clone, Debug)]
struct Power(Arc<Mutex<u64>>);

impl Power {
    fn is_there(&self) -> bool {
        let mut left = lock(&self.0);
        *left = left.saturating_sub(1);
        *left > 0
    }
}

/// A file on a disk that forgets. Clones share it.
#[derive(Clone)]
struct Forgetful {
    power: Power,
    content: Arc<Mutex<Content>>,
}

#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// What sectors were, one after the other, since the last sync.
    since: BTreeMap<usize, Vec<Vec<u8>>>,
    /// The next sync fails: the kernel gives up what was to be synced, and has it in its cache as if it were on the disk.
    fails: bool,
    /// The cache stays, whoever asks the kernel to forget it.
    is_stubborn: bool,
    /// Nothing is written at this place: there is no room.
    is_full_at: Option<u64>,
    /// Done while the next sync is under way.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Forgetful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forgetful")
    }
}

impl Forgetful {
    fn new(power: &Power, bytes: usize) -> Self {
        let content = Content { durable: vec![0; bytes], now: vec![0; bytes], ..Content::default() };
        Self { power: power.clone(), content: Arc::new(Mutex::new(content)) }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        lock(&self.content)
    }

    /// What is there when the power is back.
    fn power_goes(&self, rng: &mut Rng) {
        let mut content = self.content();
        let how = rng.below(4);
        for (sector, was) in std::mem::take(&mut content.since) {
            let kept = match how {
                0 => 0,
                1 => was.len() as u64,
                _ => rng.below(was.len() as u64 + 1),
            };
            if kept > 0 {
                content.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&was[kept as usize - 1]);
            }
        }
        content.now = content.durable.clone();
    }
}

impl Medium for Forgetful {
    fn get(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        out.copy_from_slice(&self.content().now[offset as usize..][..out.len()]);
        if self.power.is_there() { Ok(()) } else { Err(Errno::EIO) }
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut content = self.content();
        if content.is_full_at == Some(offset) {
            return Err(Errno::ENOSPC);
        }
        let at = offset as usize;
        content.now[at..at + bytes.len()].copy_from_slice(bytes);
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let is = content.now[sector * SECTOR..][..SECTOR].to_vec();
            content.since.entry(sector).or_default().push(is);
        }
        // Without power it may have begun.
        if self.power.is_there() { Ok(()) } else { Err(Errno::EIO) }
    }

    fn zero(&self, extent: ByteExtent, _no_hole: bool) -> Result<(), Errno> {
        self.put(extent.offset.0, &vec![0; extent.len as usize])
    }

    fn sync(&self) -> Result<(), Errno> {
        let mut content = self.content();
        if std::mem::take(&mut content.fails) {
            content.since.clear();
            return Err(Errno::EIO);
        }
        if !self.power.is_there() {
            return Err(Errno::EIO);
        }
        let synced: Vec<_> = std::mem::take(&mut content.since).into_iter().collect();
        if let Some(meanwhile) = content.meanwhile.take() {
            drop(content);
            meanwhile();
            content = self.content();
        }
        for (sector, was) in synced {
            content.durable[sector * SECTOR..][..SECTOR].copy_from_slice(was.last().expect("it was written"));
        }
        Ok(())
    }

    fn forget(&self) -> Result<(), Errno> {
        let mut content = self.content();
        if !content.is_stubborn && content.since.is_empty() {
            content.now = content.durable.clone();
        }
        Ok(())
    }

    fn next_data(&self, at: u64) -> Result<Option<u64>, Errno> {
        let content = self.content();
        let page = (at as usize / MAP_BYTES..content.now.len() / MAP_BYTES)
            .find(|page| content.now[page * MAP_BYTES..][..MAP_BYTES].iter().any(|byte| *byte != 0));
        Ok(page.map(|page| (page * MAP_BYTES).max(at as usize) as u64))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An overlay's two files, and who opens it.
struct Site {
    power: Power,
    data: Forgetful,
    map: Forgetful,
}

impl Site {
    fn new() -> Self {
        let power = Power(Arc::new(Mutex::new(u64::MAX)));
        let (data, map) = (Forgetful::new(&power, BYTES as usize), Forgetful::new(&power, MAP_BYTES));
        Self { power, data, map }
    }

    fn open(&self) -> Result<View<Fake>, MapError> {
        let fake = Fake::new();
        let overlay = Overlay::of(Box::new(self.data.clone()), Box::new(self.map.clone()), &fake.geometry)?;
        Ok(View::new(fake, Some(overlay), 1 << 20, Box::new(|_| {})))
    }

    fn power_goes(&self, rng: &mut Rng) {
        self.data.power_goes(rng);
        self.map.power_goes(rng);
        *lock(&self.power.0) = u64::MAX;
    }
}

/// What a volume is, and what each of its sectors may be after a power cut.
struct Model {
    now: Vec<u8>,
    /// By sector: as of the last flush, and each state since.
    may: Vec<Vec<Vec<u8>>>,
}

impl Model {
    fn new(now: Vec<u8>) -> Self {
        let may = now.chunks(SECTOR).map(|sector| vec![sector.to_vec()]).collect();
        Self { now, may }
    }

    fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.now[at as usize..(at + len) as usize].fill(byte);
        for sector in at as usize / SECTOR..((at + len) as usize).div_ceil(SECTOR) {
            self.may[sector].push(self.now[sector * SECTOR..][..SECTOR].to_vec());
        }
    }

    fn holds(&self, found: &[u8], seed: u64) {
        for (at, (found, may)) in found.chunks(SECTOR).zip(&self.may).enumerate() {
            assert!(may.iter().any(|state| state == found), "†: seed {seed}: sector {at} is none of its {} states", may.len());
        }
    }
}

/// As a client asks for it.
fn ask(view: &View<Fake>, op: Op, extent: ByteExtent, fua: bool, byte: u8) -> Result<(), Errno> {
    let payload = (op == Op::Write).then(|| {
        let mut buffer = Buffer::alone(extent.len as usize).expect("memory");
        buffer.fill(byte);
        Payload::Buffer(buffer)
    });
    Job::new(Request { id: RequestId(1), client: 1, op, extent, fua, payload }, Turn::waiting()).carry_out(view)
}

/// Four lives of an overlay, each ended by a power cut or a kill.
fn lives(seed: u64) {
    let (site, mut rng, mut model) = (Site::new(), Rng(seed), Model::new(below()));
    for _ in 0..4 {
        let view = site.open().expect("what was torn is no damage");
        let found = read(&view, 0, BYTES);
        model.holds(&found, seed);
        // What was found stays.
        model = Model::new(found);
        *lock(&site.power.0) = 1 + rng.below(60);
        for stamp in 1..=rng.below(30) {
            let at = rng.below(BYTES);
            let len = (1 + rng.below(3 * 4096)).min(BYTES - at);
            // Whole sectors now and then, as clients have them.
            let (at, len) = if rng.below(2) == 0 { (at, len) } else { (at / 512 * 512, 512) };
            let byte = stamp as u8 + 100;
            let (op, fua) = match rng.below(9) {
                0 | 1 => (Op::Flush, false),
                2 => (Op::WriteZeroes { no_hole: rng.below(2) == 0 }, rng.below(4) == 0),
                // Nothing changes.
                3 => match view.fill_region(RegionIndex(rng.below(4))) {
                    Ok(_) => continue,
                    Err(_) => break,
                },
                _ => (Op::Write, rng.below(8) == 0),
            };
            match op {
                Op::Flush => {}
                Op::Write => model.fill(at, len, byte),
                _ => model.fill(at, len, 0),
            }
            let done = ask(&view, op, extent(at, len), fua, byte);
            if done.is_ok() && (fua || op == Op::Flush) {
                model = Model::new(std::mem::take(&mut model.now));
            }
            if done.is_err() {
                break; // the power is gone
            }
        }
        drop(view);
        let is_kill = *lock(&site.power.0) > 0 && rng.below(3) == 0;
        match is_kill {
            true => *lock(&site.power.0) = u64::MAX,
            false => site.power_goes(&mut rng),
        }
    }
    model.holds(&read(&site.open().expect("it is whole"), 0, BYTES), seed);
}

#[test]
fn whenever_the_power_goes_what_was_flushed_is_there_and_the_rest_is_old_or_new() {
    let mistakes = [
        ("an overlay's bits come before its data", "†: seed"),
        ("an overlay's bits are not synced", "†: seed"),
        ("a write over a point is durable by its word", "†: seed"),
        ("a fill lies over what was written", "†: seed"),
        ("a fill takes it for zeroes where no bit is", "†: seed"),
    ];
    mutation::tell(&mistakes, || (0..300).for_each(lives));
}

#[test]
fn what_is_written_while_a_flush_syncs_has_no_durable_bit_by_that_flush() {
    mutation::tell(&[("an overlay's bits are taken after its data was synced", "†: seed")], || {
        for seed in 0..20 {
            let site = Site::new();
            let view = Arc::new(site.open().expect("new"));
            view.write(0, &[1; 4096]).expect("written");
            let other = view.clone();
            let write = move || other.write(8192, &[2; 4096]).expect("written");
            site.data.content().meanwhile = Some(Box::new(write));
            view.flush().expect("flushed");
            let mut model = Model::new(below());
            model.fill(0, 4096, 1);
            let mut model = Model::new(model.now);
            model.fill(8192, 4096, 2);
            drop(view);
            site.power_goes(&mut Rng(seed));
            model.holds(&read(&site.open().expect("whole"), 0, BYTES), seed);
        }
    });
}

/// Three pages, one for each turn: of the first flush only the first of them is written, and then there is no room.
#[test]
fn a_flush_in_turns_is_one_flush_also_after_one_that_found_no_room() {
    let geometry = Geometry::with_shape(48 << 20, 9, 4).expect("valid");
    let map_bytes = Map::new(geometry.granule_count()).file_bytes();
    assert_eq!(map_bytes, 4 * MAP_BYTES as u64);
    let power = Power(Arc::new(Mutex::new(u64::MAX)));
    let (data, map) = (Forgetful::new(&power, 48 << 20), Forgetful::new(&power, map_bytes as usize));
    let open = || Overlay::of(Box::new(data.clone()), Box::new(map.clone()), &geometry).expect("whole");
    let overlay = open();
    let granules = [0, 40_000, 70_000].map(GranuleIndex);
    for granule in granules {
        overlay.write_at(granule.0 * 512, &[7; 512]).expect("written");
        overlay.set(GranuleRun { start: granule, count: 1 });
    }
    map.content().is_full_at = Some(MAP_BYTES as u64);
    assert_eq!(overlay.flush(), Err(Errno::ENOSPC));
    map.content().is_full_at = None;
    overlay.flush().expect("there is room now");
    drop(overlay);
    data.power_goes(&mut Rng(0));
    map.power_goes(&mut Rng(0));
    let (overlay, mut found) = (open(), [0; 512]);
    for granule in granules {
        assert!(overlay.has(granule), "{granule}");
        overlay.read_at(granule.0 * 512, &mut found).expect("read");
        assert_eq!(found, [7; 512]);
    }
}

#[test]
fn after_a_sync_that_failed_nothing_is_believed_but_the_disk() {
    let mistake = "bits that an opening finds are taken for durable";
    mutation::tell(&[(mistake, "†: seed")], || {
        for is_map in [false, true] {
            let site = Site::new();
            let view = site.open().expect("new");
            view.write(0, &[1; 4096]).expect("written");
            let failing = if is_map { &site.map } else { &site.data };
            failing.content().fails = true;
            failing.content().is_stubborn = is_map;
            assert_eq!(view.flush(), Err(Errno::EIO));
            assert_eq!(view.flush(), Err(Errno::EIO), "what the kernel gave up does not come back");
            assert_eq!((view.read(0, &mut [0]), view.write(0, &[0])), (Err(Errno::EIO), Err(Errno::EIO)));
            drop(view);
            // The next process writes the same again, and is told that it is durable.
            let view = site.open().expect("it is tried again");
            view.write(0, &[3; 4096]).expect("written");
            view.flush().expect("flushed");
            let mut model = Model::new(below());
            model.fill(0, 4096, 3);
            let model = Model::new(model.now);
            drop(view);
            site.power_goes(&mut Rng(0));
            model.holds(&read(&site.open().expect("whole"), 0, BYTES), 0);
        }
    });
}

#[test]
fn damage_of_the_map_is_noticed() {
    mutation::tell(&[("an overlay's map is believed as it is", "damage goes unnoticed")], || {
        let site = Site::new();
        let view = site.open().expect("new");
        view.write(0, &[1; 4096]).expect("written");
        view.flush().expect("flushed");
        drop(view);
        for at in [0, 100, 504, 511] {
            site.map.content().now[at] ^= 4;
            site.map.content().is_stubborn = true;
            let Err(refused) = site.open() else { panic!("damage goes unnoticed") };
            assert!(matches!(refused, MapError::Damaged { at: 0, .. }), "{refused}");
            site.map.content().now[at] ^= 4;
        }
        assert_eq!(read(&site.open().expect("whole again"), 0, 4096), [1; 4096]);
    });
}

/// A disk is overwritten, granule by granule, and the power goes whenever it likes; begun again each time, from the first granule on.
fn overwritten(seed: u64) {
    let (site, mut rng) = (Site::new(), Rng(seed));
    let geometry = Fake::new().geometry;
    let disk = Forgetful::new(&site.power, BYTES as usize);
    let held: Vec<u8> = (0..BYTES).map(|at| if at / 4096 % 5 == 0 { 0 } else { (at / 4096) as u8 ^ 0x55 }).collect();
    *disk.content() = Content { durable: held.clone(), now: held.clone(), ..Content::default() };
    let granules: Vec<u64> = (0..geometry.granule_count()).filter(|_| rng.below(2) == 0).collect();
    let run = |granule: &u64| GranuleRun { start: GranuleIndex(*granule), count: 1 };
    let open = || Overlay::of(Box::new(site.data.clone()), Box::new(site.map.clone()), &geometry).expect("no damage");
    let mut is_over = false;
    for life in 0.. {
        let overlay = open();
        *lock(&site.power.0) = if life < 6 { 1 + rng.below(120) } else { u64::MAX };
        let pass = || {
            for some in granules.chunks(3) {
                // Also of what is overwritten already, wholly or in part.
                let runs: Vec<GranuleRun> = some.iter().map(run).collect();
                let read = |extent: ByteExtent, out: &mut [u8]| disk.get(extent.offset.0, out).map(|()| true);
                overlay.keep(&runs, read).ok()?;
                for run in &runs {
                    let extent = geometry.bytes_of(*run);
                    disk.put(extent.offset.0, &vec![0xcc; extent.len as usize]).ok()?;
                }
            }
            disk.sync().ok()
        };
        is_over |= pass().is_some();
        drop(overlay);
        if rng.below(3) > 0 {
            disk.power_goes(&mut rng);
            site.power_goes(&mut rng);
        }
        *lock(&site.power.0) = u64::MAX;
        let (overlay, found) = (open(), disk.content().now.clone());
        for granule in 0..geometry.granule_count() {
            let extent = geometry.bytes_of(run(&granule));
            let from = extent.offset.0 as usize;
            let to = from + extent.len as usize;
            let mut kept = vec![0; to - from];
            match overlay.has(GranuleIndex(granule)) {
                true => overlay.read_at(extent.offset.0, &mut kept).expect("read"),
                false => kept.copy_from_slice(&found[from..to]),
            }
            assert!(kept == held[from..to], "†: seed {seed}: granule {granule} is lost in life {life}");
        }
        // Given back, it is what it was.
        let mut again = found.clone();
        let give = |extent: ByteExtent, content: &[u8]| {
            again[extent.offset.0 as usize..][..content.len()].copy_from_slice(content);
            Ok(())
        };
        overlay.give(give).expect("given");
        assert!(again == held, "†: seed {seed}: what is given back is not what was there");
        if is_over {
            return;
        }
    }
}

#[test]
fn whenever_the_power_goes_what_is_overwritten_was_kept() {
    let mistakes = [
        ("what is kept is durable some time later", "†: seed"),
        ("what was kept before is lost to what came in its place", "†: seed"),
        ("an overlay's bits come before its data", "†: seed"),
        ("an overlay's bits are not synced", "†: seed"),
    ];
    mutation::tell(&mistakes, || (0..300).for_each(overwritten));
}
