//! The rules of the write path one by one, each with the short schedule that shows it (the rare ones are rarely met by chance).

use std::panic::{AssertUnwindSafe, catch_unwind};

use farside_region::intent::{IntentBlock, IntentLayout, Page, PageBits, PageIndex};
use farside_region::{
    ByteExtent, ByteOffset, Geometry, GranuleIndex, GranuleRun, GranuleSet, MapId, RegionIndex, RegionRange, RegionSet,
};

use crate::sync::Arc;
use crate::*;

pub(crate) const MAP: MapId = MapId([3; 16]);
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Site {
    pub(crate) group: Arc<Group>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) queue: Queue,
    pub(crate) owner: IntentOwner,
    pub(crate) connection: Arc<Connection>,
}

pub(crate) fn site_of(config: VolumeConfig, mut slots: impl FnMut(PageIndex) -> [Box<IntentBlock>; 2]) -> Site {
    let group = Group::new(&config.limits, config.geometry.granule_bytes());
    let (volume, mut queues, owner) = group.open_volume(config, Wakes::none(1), MAP, &mut slots);
    Site { group, queue: queues.remove(0), owner, connection: volume.connect(), volume }
}

pub(crate) fn blank(layout: &IntentLayout, hot: bool) -> impl FnMut(PageIndex) -> [Box<IntentBlock>; 2] + use<> {
    let layout = *layout;
    move |index| {
        let bits = if hot { PageBits::first(layout.page_run(index).count) } else { PageBits::clear() };
        let page = Page { map: MAP, index, seq: 1, bits };
        [page.encode(&layout), IntentBlock::zeroed()]
    }
}

/// A real-shaped volume of so many bytes, all cold or all hot.
pub(crate) fn site(bytes: u64, hot: bool) -> Site {
    let config = VolumeConfig::new(Geometry::new(bytes).expect("valid"));
    let slots = blank(&config.layout, hot);
    site_of(config, slots)
}

pub(crate) fn at(offset: u64, len: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(offset), len }
}

impl Site {
    pub(crate) fn commit(&mut self, ok: bool) -> usize {
        let Some(commit) = self.owner.next_commit() else { return 0 };
        self.owner.committed(ok);
        commit.writes.len()
    }

    /// Drives a request to its end, doing whatever it asks for; what it asked for.
    pub(crate) fn run(&mut self, op: Op) -> (Vec<Io>, Result<(), Failure>) {
        let mut request = self.queue.start(op).expect("inside");
        let mut ios = Vec::new();
        loop {
            match request.advance(&mut self.queue) {
                Step::Io(io) => {
                    ios.push(io);
                    request.io_done(&mut self.queue, IoResult::Done);
                }
                Step::Park(ParkKey::Intent) => assert!(self.commit(true) > 0, "parked with nothing to wait for"),
                Step::Park(key) => panic!("parks for {key:?}"),
                Step::Complete(result) => return (ios, result),
            }
        }
    }

    pub(crate) fn cool(&mut self, zero: bool) -> bool {
        let mut cooler = Cooler::new(self.volume.clone());
        let all: Vec<_> = self.volume.geometry().all_regions().iter().map(|r| (r, zero)).collect();
        cooler.begin(&mut all.into_iter());
        loop {
            match cooler.poll(&mut |_| false) {
                CoolStep::Idle => break,
                CoolStep::Wait => return false,
                CoolStep::Flush => {
                    cooler.flush_begin();
                    cooler.flush_end(true);
                }
                CoolStep::Header => cooler.header_durable(),
            }
        }
        self.commit(true) > 0
    }

    /// Publishes all that is marked, by a pass.
    pub(crate) fn publish(&mut self) {
        let mut switcher = Switcher::new(self.group.clone());
        switcher.begin(Kind::Pass, vec![Member { volume: self.volume.clone(), also: GranuleSet::new() }]).expect("free");
        assert!(switcher.poll().is_some());
    }
}

#[test]
fn a_cold_write_waits_for_its_bit_and_a_hot_one_does_not() {
    let mut site = site(64 * MIB, false);
    let mut request = site.queue.start(Op::Write(at(5, 4 * MIB), None)).expect("inside");
    assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
    let commit = site.owner.next_commit().expect("two regions are wanted");
    let page = farside_region::intent::UncheckedPage(&commit.writes[0].block.0);
    let page = page.check(MAP, &IntentLayout::new(site.volume.geometry()), PageIndex(0)).expect("whole");
    assert_eq!((page.seq, page.bits.iter().collect::<Vec<_>>()), (2, vec![0, 1]));
    // Written, not yet synced: still not.
    assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
    site.owner.committed(true);
    assert_eq!(request.advance(&mut site.queue), Step::Io(Io::Write(at(5, 4 * MIB))));
    request.io_done(&mut site.queue, IoResult::Done);
    assert_eq!(request.advance(&mut site.queue), Step::Complete(Ok(())));
    assert_eq!(site.run(Op::Write(at(0, 512), None)).0, [Io::Write(at(0, 512))]);
    assert!(site.owner.next_commit().is_none());
}

#[test]
fn a_request_is_completed_exactly_once() {
    let mut site = site(8 * MIB, true);
    let request = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
    assert!(catch_unwind(AssertUnwindSafe(|| drop(request))).is_err(), "a lost request goes unnoticed");
    let mut request = site.queue.start(Op::Read(at(0, 4096))).expect("inside");
    assert!(matches!(request.advance(&mut site.queue), Step::Io(Io::Read(_))));
    assert!(catch_unwind(AssertUnwindSafe(|| request.advance(&mut site.queue))).is_err());
    request.crash();
    assert!(matches!(site.queue.start(Op::Read(at(8 * MIB - 1, 2))), Err(StartError::OutOfRange)));
    assert_eq!(site.run(Op::Write(at(8 * MIB, 0), None)), (vec![], Ok(())));
}

#[test]
fn a_ten_tib_trim_is_one_commit_and_pieces() {
    let mut site = site(10 << 40, false);
    let mut request = site.queue.start(Op::Trim(at(0, 10 << 40), None)).expect("inside");
    assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
    assert_eq!(site.commit(true), 82, "all pages at once");
    let mut pieces = 0;
    while let Step::Io(Io::Zero { extent, no_hole: false }) = request.advance(&mut site.queue) {
        assert_eq!(extent, at(pieces * 64 * MIB, 64 * MIB));
        request.io_done(&mut site.queue, IoResult::Done);
        pieces += 1;
    }
    assert_eq!(pieces, (10 << 40) / (64 * MIB));
    // Whole regions need no masks.
    assert_eq!(site.volume.masks.take().map(|b| b > 0), Some(true));
    assert_eq!(site.volume.open_granules(), site.volume.geometry().granule_count());
    assert_eq!(site.volume.open_set().memory_bytes(), 32, "one range");
    // T8: cooled with zero content, the same TRIM completes at once; NO_HOLE and writes do not.
    drop(request);
    site.publish();
    assert!(site.cool(true));
    assert_eq!(site.volume.region_state(RegionIndex(7)), RegionState::ColdZero);
    assert_eq!(site.run(Op::Trim(at(0, 10 << 40), None)), (vec![], Ok(())));
    assert_eq!(site.run(Op::WriteZeroes { extent: at(4096, 4096), no_hole: true, fua: None }).0.len(), 1);
    assert_eq!(site.volume.region_state(RegionIndex(0)), RegionState::Hot);
    // Around a hot region in the middle: only that one is passed on.
    assert_eq!(site.run(Op::Write(at(20 * MIB, 4096), None)).1, Ok(()));
    let (ios, _) = site.run(Op::Trim(at(8 * MIB, 100 * MIB), None));
    assert_eq!(ios, [Io::Zero { extent: at(20 * MIB, 4 * MIB), no_hole: false }]);
}

#[test]
fn t12_growth_sets_the_old_last_region_and_all_later_ones_before_serving() {
    let small = Geometry::with_shape(64 * 30, 6, 3).expect("valid"); // 3.75 regions
    let large = Geometry::with_shape(64 * 72, 6, 3).expect("valid"); // 9 regions
    let old = IntentLayout::with_page_regions(&small, 4);
    let layout = IntentLayout::with_page_regions(&large, 4);
    let config = VolumeConfig { layout, volume_bytes_before: small.volume_bytes(), ..VolumeConfig::new(large) };
    let mut page_0 = blank(&old, false);
    let mut site = site_of(config, |p| if p.0 == 0 { page_0(p) } else { [IntentBlock::zeroed(), IntentBlock::zeroed()] });
    let mut grown = RegionSet::new();
    grown.insert_range(RegionRange { start: RegionIndex(3), count: 6 });
    assert!(!site.volume.is_hot(&grown), "not before it is durable");
    assert_eq!(site.commit(true), 1, "new pages are all-dirty as they are");
    assert!(site.volume.is_hot(&grown));
    assert_eq!(site.volume.region_state(RegionIndex(2)), RegionState::Cold);
}

#[test]
fn t14_a_failed_flush_is_told_to_every_connection_and_keeps_regions_hot() {
    let mut site = site(16 * MIB, true);
    let other = site.volume.connect();
    let mut cooler = Cooler::new(site.volume.clone());
    assert_eq!(cooler.begin(&mut [(RegionIndex(0), false), (RegionIndex(1), false)].into_iter()), 2);
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Flush);
    cooler.flush_begin();
    // A host's flush overlaps the cooler's and takes its error: the kernel says it once.
    let mut flush = site.queue.start(Op::Flush(site.connection.clone())).expect("a flush");
    assert_eq!(flush.advance(&mut site.queue), Step::Io(Io::Flush));
    cooler.flush_end(true);
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Wait, "a flush that began before is still under way");
    flush.io_done(&mut site.queue, IoResult::Failed(5));
    assert_eq!(flush.advance(&mut site.queue), Step::Complete(Err(Failure::FlushFailed)));
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Idle, "given up");
    assert_eq!(site.volume.region_state(RegionIndex(0)), RegionState::Hot);
    assert!(site.volume.take_events().flush_failed);
    // Once per connection, by FLUSH or by FUA.
    assert_eq!(site.run(Op::Flush(site.connection.clone())).1, Ok(()));
    assert_eq!(site.run(Op::Write(at(0, 4096), Some(other.clone()))).1, Err(Failure::FlushFailed));
    assert_eq!(site.run(Op::Write(at(0, 4096), Some(other))).1, Ok(()));
    let late = site.volume.connect();
    assert_eq!(site.run(Op::Flush(late)).1, Ok(()), "one that came after it was told");
    // What was hot then never cools in this boot, nor in a later attach of it.
    site.publish();
    assert!(!site.cool(false));
    let config = VolumeConfig { flush_failed_this_boot: true, ..VolumeConfig::new(*site.volume.geometry()) };
    let slots = blank(&config.layout, true);
    assert!(!site_of(config, slots).cool(false));
}

/// Two file systems on one device are one connection: each of their flushes overlapped the one that failed, and only one would hear of it.
#[test]
fn t14_every_flush_that_overlapped_a_failed_one_fails() {
    let config = VolumeConfig { queues: 2, ..VolumeConfig::new(Geometry::new(16 * MIB).expect("valid")) };
    let group = Group::new(&config.limits, config.geometry.granule_bytes());
    let mut slots = blank(&config.layout, true);
    let (volume, mut queues, _owner) = group.open_volume(config, Wakes::none(2), MAP, &mut slots);
    let connection = volume.connect();
    let mut flushes: Vec<_> = queues
        .iter_mut()
        .map(|queue| {
            let mut flush = queue.start(Op::Flush(connection.clone())).expect("a flush");
            assert_eq!(flush.advance(queue), Step::Io(Io::Flush));
            flush
        })
        .collect();
    let own = volume.flush_begin();
    volume.flush_end(own, false);
    for (flush, queue) in flushes.iter_mut().zip(&mut queues) {
        flush.io_done(queue, IoResult::Done);
        assert_eq!(flush.advance(queue), Step::Complete(Err(Failure::FlushFailed)));
    }
    let mut later = queues[0].start(Op::Flush(connection)).expect("a flush");
    assert_eq!(later.advance(&mut queues[0]), Step::Io(Io::Flush));
    later.io_done(&mut queues[0], IoResult::Done);
    assert_eq!(later.advance(&mut queues[0]), Step::Complete(Ok(())));
}

#[test]
fn a_hosts_flush_that_covers_them_cools_regions() {
    let mut site = site(16 * MIB, true);
    let mut cooler = Cooler::new(site.volume.clone());
    // One that began before the regions were looked at covers nothing.
    let mut early = site.queue.start(Op::Flush(site.connection.clone())).expect("a flush");
    assert_eq!(early.advance(&mut site.queue), Step::Io(Io::Flush));
    cooler.begin(&mut [(RegionIndex(0), false)].into_iter());
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Flush);
    early.io_done(&mut site.queue, IoResult::Done);
    assert_eq!(early.advance(&mut site.queue), Step::Complete(Ok(())));
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Flush);
    assert_eq!(site.run(Op::Flush(site.connection.clone())).1, Ok(()));
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Header);
    cooler.header_durable();
    assert_eq!(site.commit(true), 1);
    assert_eq!(site.volume.region_state(RegionIndex(0)), RegionState::Cold);
}

#[test]
fn a_lost_intent_map_holds_cold_writes_until_somebody_decides() {
    for verdict in [TrackingVerdict::Pass, TrackingVerdict::Fail] {
        let mut site = site(16 * MIB, false);
        assert_eq!(site.run(Op::Write(at(0, 4096), None)).1, Ok(()));
        let mut request = site.queue.start(Op::Write(at(4 * MIB, 4096), None)).expect("inside");
        assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
        site.commit(false);
        assert_eq!((site.volume.tracking(), site.volume.take_events().tracking_lost), (Tracking::Lost, true));
        assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
        assert_eq!(site.run(Op::Write(at(0, 4096), None)).1, Ok(()), "hot regions go on");
        assert!(!site.cool(false), "nothing is cleared by a lost map");
        site.volume.resolve_tracking_lost(verdict);
        match request.advance(&mut site.queue) {
            Step::Io(Io::Write(_)) if verdict == TrackingVerdict::Pass => request.crash(),
            step => assert_eq!((step, verdict), (Step::Complete(Err(Failure::TrackingLost)), TrackingVerdict::Fail)),
        }
        assert!(site.owner.next_commit().is_none(), "latched");
    }
}

#[test]
fn a_map_made_anew_brings_tracking_back_with_every_bit_set() {
    for verdict in [None, Some(TrackingVerdict::Pass), Some(TrackingVerdict::Fail)] {
        let mut site = site(64 * MIB, false);
        site.volume.take_events();
        let mut request = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
        assert_eq!(site.commit(false), 1);
        assert_eq!(site.volume.tracking(), Tracking::Lost);
        // A wish that came after the failure: nobody fulfils it by this map.
        site.volume.heat(&[RegionIndex(9)].into_iter().collect());
        site.volume.watch_heat();
        if let Some(verdict) = verdict {
            site.volume.resolve_tracking_lost(verdict);
        }
        assert_eq!(site.commit(true), 0, "a failed map is not written");
        site.owner.made_anew(MapId([4; 16]));
        assert_eq!(site.volume.tracking(), Tracking::Sound);
        // A verdict on the loss that comes late does not take it back.
        site.volume.resolve_tracking_lost(TrackingVerdict::Fail);
        assert!(site.volume.take_events().heated, "whoever waits for bits hears of it");
        let all: RegionSet = site.volume.geometry().all_regions().iter().collect();
        assert!(site.volume.is_hot(&all), "{verdict:?}");
        assert!(matches!(request.advance(&mut site.queue), Step::Io(_)), "{verdict:?}: the write that waited goes on");
        request.io_done(&mut site.queue, IoResult::Done);
        assert_eq!(request.advance(&mut site.queue), Step::Complete(Ok(())));
        site.publish();
        // And the map works on: cooling writes the other slot of the new one.
        let mut cooler = Cooler::new(site.volume.clone());
        assert_eq!(cooler.begin(&mut std::iter::once((RegionIndex(3), false))), 1);
        loop {
            match cooler.poll(&mut |_| false) {
                CoolStep::Idle => break,
                CoolStep::Flush => {
                    cooler.flush_begin();
                    cooler.flush_end(true);
                }
                CoolStep::Header => cooler.header_durable(),
                CoolStep::Wait => panic!("nobody marks"),
            }
        }
        let commit = site.owner.next_commit().expect("a page");
        let layout = IntentLayout::new(site.volume.geometry());
        let page = farside_region::intent::UncheckedPage(&commit.writes[0].block.0);
        let page = page.check(MapId([4; 16]), &layout, PageIndex(0)).expect("of the new map");
        assert_eq!((page.seq, page.bits.count(), page.bits.get(3)), (2, 15, false), "{verdict:?}");
        assert_eq!(commit.writes[0].slot, farside_region::intent::SlotIndex::A);
        site.owner.committed(true);
        assert_eq!(site.volume.region_state(RegionIndex(3)), RegionState::Cold);
    }
}

#[test]
fn t14_a_failed_flush_of_the_cooler_is_counted_once_and_gives_the_batch_up() {
    let mut site = site(16 * MIB, true);
    assert_eq!(site.run(Op::Write(at(0, MIB), None)).1, Ok(()));
    site.publish();
    let mut cooler = Cooler::new(site.volume.clone());
    cooler.begin(&mut [(RegionIndex(0), false)].into_iter());
    while cooler.poll(&mut |_| false) != CoolStep::Flush {}
    cooler.flush_begin();
    // As a queue says it, which sees the end.
    let flush = site.volume.flush_begin();
    site.volume.flush_end(flush, false);
    cooler.flush_failed();
    assert_eq!(site.volume.flush_failures(), 1);
    assert_eq!(cooler.poll(&mut |_| false), CoolStep::Idle);
    assert_eq!(site.volume.region_state(RegionIndex(0)), RegionState::Hot);
}

#[test]
fn l1_nobody_waits_for_a_reader_that_was_given_up() {
    for is_handed_out in [true, false] {
        let mut site = site(16 * MIB, true);
        assert_eq!(site.run(Op::Write(at(0, MIB), None)).1, Ok(()));
        let mut switcher = Switcher::new(site.group.clone());
        let member = Member { volume: site.volume.clone(), also: GranuleSet::new() };
        let epoch = switcher.begin(Kind::Cut, vec![member]).expect("free");
        let frozen = switcher.poll().expect("no grace");
        let mut reader = FrozenReader::new(site.volume.clone(), epoch, frozen.members[0].set.clone());
        if is_handed_out {
            let Next::Read(_) = reader.next(RegionIndex(9)) else { panic!("nothing to read") };
            let mut waits = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
            assert_eq!(waits.advance(&mut site.queue), Step::Park(ParkKey::Claim));
            reader.abandon();
            assert_eq!(waits.advance(&mut site.queue), Step::Io(Io::Write(at(0, 4096))));
            waits.io_done(&mut site.queue, IoResult::Done);
            assert_eq!(waits.advance(&mut site.queue), Step::Complete(Ok(())));
        } else {
            reader.abandon();
        }
        // Who has nobody waiting for him costs no cut: another reader may still make it a point.
        assert_eq!(switcher.is_cut(epoch), !is_handed_out);
        assert_eq!(site.volume.take_events().overflowed, is_handed_out.then_some(epoch));
    }
}

#[test]
fn overflow_demotes_the_cut_and_the_write_goes_on() {
    let config = VolumeConfig {
        limits: Limits { side_buffer_bytes: 2 * 4096, ..Limits::DEFAULT },
        ..VolumeConfig::new(Geometry::new(16 * MIB).expect("valid"))
    };
    let slots = blank(&config.layout, true);
    let mut site = site_of(config, slots);
    assert_eq!(site.run(Op::Write(at(0, 4 * MIB), None)).1, Ok(()));
    let mut switcher = Switcher::new(site.group.clone());
    let members = || vec![Member { volume: site.volume.clone(), also: GranuleSet::new() }];
    let epoch = switcher.begin(Kind::Cut, members()).expect("free");
    let frozen = switcher.poll().expect("no grace");
    assert_eq!(switcher.begin(Kind::Pass, members()), Err(SwitchError::StillFrozen(0)));
    let mut reader = FrozenReader::new(site.volume.clone(), epoch, frozen.members[0].set.clone());
    let Next::Read(run) = reader.next(RegionIndex(9)) else { panic!("nothing to read") };
    assert_eq!(run, GranuleRun { start: GranuleIndex(0), count: 16 });
    // A small write saves what it overwrites; an unreadable one is an unreadable run.
    let mut small = site.queue.start(Op::Write(at(MIB, 4096), None)).expect("inside");
    assert_eq!(small.advance(&mut site.queue), Step::Io(Io::Save(at(MIB, 4096))));
    small.io_done(&mut site.queue, IoResult::Failed(5));
    assert_eq!(small.advance(&mut site.queue), Step::Io(Io::Write(at(MIB, 4096))));
    small.io_done(&mut site.queue, IoResult::Done);
    assert_eq!(small.advance(&mut site.queue), Step::Complete(Ok(())));
    assert!(switcher.is_cut(epoch));
    // One on a granule that the sender reads waits for it.
    let mut waits = site.queue.start(Op::Write(at(0, 512), None)).expect("inside");
    assert_eq!(waits.advance(&mut site.queue), Step::Park(ParkKey::Claim));
    // One that does not fit gives the cut up, and goes on.
    let mut large = site.queue.start(Op::Write(at(2 * MIB, MIB), None)).expect("inside");
    assert_eq!(large.advance(&mut site.queue), Step::Io(Io::Write(at(2 * MIB, MIB))));
    assert_eq!(site.volume.take_events().overflowed, Some(epoch));
    assert!(!switcher.is_cut(epoch));
    assert_eq!(waits.advance(&mut site.queue), Step::Io(Io::Write(at(0, 512))));
    assert_eq!(reader.read_done(run), ReadVerdict::Reread);
    switcher.demote(epoch);
    assert!(switcher.is_busy() && switcher.poll().is_none() && !switcher.is_busy());
    assert_eq!(site.group.side_buffer_usage().0, 0, "saved granules are freed");
    // The reader goes on as a pass, over everything that was not accepted, in longer runs; what was written again is
    // the next epoch's, but for single granules, at which it does not stop.
    assert_eq!(reader.remaining().granule_count(site.volume.geometry()), 1024);
    let (mut read, mut left) = (0, 0);
    loop {
        match reader.next(RegionIndex(9)) {
            Next::Left(run) => left += run.count,
            Next::Read(run) => {
                read += run.count;
                assert_eq!(reader.read_done(run), ReadVerdict::Accept);
            }
            Next::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((read, left), (1024 - 256, 256));
    assert_eq!(switcher.conclude(epoch), Kind::Pass);
    large.crash();
    waits.crash();
}

#[test]
fn a_save_over_a_bad_sector_costs_one_granule() {
    for given_up in [false, true] {
        let mut site = site(16 * MIB, true);
        assert_eq!(site.run(Op::Write(at(0, 64 << 10), None)).1, Ok(()));
        let mut switcher = Switcher::new(site.group.clone());
        switcher.begin(Kind::Cut, vec![Member { volume: site.volume.clone(), also: GranuleSet::new() }]).expect("free");
        let frozen = switcher.poll().expect("no grace");
        let mut reader = FrozenReader::new(site.volume.clone(), frozen.epoch, frozen.members[0].set.clone());
        let mut write = site.queue.start(Op::Write(at(0, 64 << 10), None)).expect("inside");
        assert_eq!(write.advance(&mut site.queue), Step::Io(Io::Save(at(0, 64 << 10))));
        write.io_done(&mut site.queue, IoResult::Failed(5));
        let mut singly = 0;
        loop {
            match write.advance(&mut site.queue) {
                Step::Io(Io::Save(extent)) => {
                    assert_eq!(extent, at(singly * 4096, 4096));
                    let content = [singly as u8; 4096];
                    let bad = singly == 5;
                    write.io_done(&mut site.queue, if bad { IoResult::Failed(5) } else { IoResult::Data(&content) });
                    singly += 1;
                    if given_up && singly == 7 {
                        switcher.demote(frozen.epoch);
                    }
                }
                step => break assert_eq!(step, Step::Io(Io::Write(at(0, 64 << 10)))),
            }
        }
        assert_eq!(singly, if given_up { 7 } else { 16 }, "what is given up needs no reading");
        let mut unreadable = Vec::new();
        let mut held = 0;
        while let Next::Held(found) = reader.next(RegionIndex(9)) {
            held += found.run.count;
            match found.data {
                None => unreadable.push(found.run),
                Some(data) => assert!(data.chunks(4096).zip(found.run.start.0..).all(|(d, g)| d[0] == g as u8)),
            }
        }
        if !given_up {
            assert_eq!((held, unreadable), (16, vec![GranuleRun { start: GranuleIndex(5), count: 1 }]));
        }
        write.crash();
    }
}

#[test]
fn a_hung_older_write_holds_the_sender_and_newer_writes_but_not_the_switch() {
    let mut site = site(16 * MIB, true);
    let mut hung = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
    assert!(matches!(hung.advance(&mut site.queue), Step::Io(_)));
    let mut switcher = Switcher::new(site.group.clone());
    switcher.begin(Kind::Cut, vec![Member { volume: site.volume.clone(), also: GranuleSet::new() }]).expect("free");
    let frozen = switcher.poll().expect("no slot is marking");
    let mut reader = FrozenReader::new(site.volume.clone(), frozen.epoch, frozen.members[0].set.clone());
    assert!(matches!(reader.next(RegionIndex(9)), Next::Wait));
    let mut newer = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
    assert_eq!(newer.advance(&mut site.queue), Step::Park(ParkKey::Drain));
    hung.io_done(&mut site.queue, IoResult::Failed(5));
    assert_eq!(hung.advance(&mut site.queue), Step::Complete(Err(Failure::Backing(5))));
    assert!(matches!(reader.next(RegionIndex(0)), Next::End), "nothing below the limit");
    let Next::Read(run) = reader.next(RegionIndex(9)) else { panic!("drained") };
    assert_eq!(newer.advance(&mut site.queue), Step::Park(ParkKey::Claim));
    assert_eq!(reader.read_done(run), ReadVerdict::Accept);
    assert!(matches!(newer.advance(&mut site.queue), Step::Io(Io::Write(_))));
    assert!(matches!(reader.next(RegionIndex(9)), Next::End));
    assert_eq!(switcher.conclude(frozen.epoch), Kind::Cut);
    switcher.release(frozen.epoch);
    while switcher.is_busy() {
        assert!(switcher.poll().is_none());
    }
    newer.crash();
}

#[test]
fn what_a_switch_adds_is_frozen_with_it() {
    for kind in [Kind::Cut, Kind::Pass] {
        let mut site = site(16 * MIB, true);
        let mut also = GranuleSet::new();
        also.insert_whole(RegionRange { start: RegionIndex(2), count: 1 });
        let mut switcher = Switcher::new(site.group.clone());
        switcher.begin(kind, vec![Member { volume: site.volume.clone(), also: also.clone() }]).expect("free");
        assert_eq!(switcher.poll().expect("no grace").members[0].set, also);
        let (ios, _) = if kind == Kind::Pass { site.run(Op::Write(at(8 * MIB, 4096), None)) } else { (vec![], Ok(())) };
        assert_eq!(ios.len(), (kind == Kind::Pass) as usize);
        if kind == Kind::Cut {
            let mut write = site.queue.start(Op::Write(at(8 * MIB, 4096), None)).expect("inside");
            assert_eq!(write.advance(&mut site.queue), Step::Io(Io::Save(at(8 * MIB, 4096))));
            write.crash();
        }
    }
}

#[test]
fn a_torn_page_is_all_dirty() {
    let layout = IntentLayout::new(&Geometry::new(64 * MIB).expect("valid"));
    let torn = |mutations| {
        let config = VolumeConfig { mutations, ..VolumeConfig::new(Geometry::new(64 * MIB).expect("valid")) };
        let mut whole = blank(&layout, false);
        let site = site_of(config, |p| {
            let [mut a, b] = whole(p);
            a.0[100] ^= 1;
            [a, b]
        });
        site.volume.hot_regions().len()
    };
    assert_eq!(torn(Mutations::default()), 16);
    assert_eq!(torn(Mutations::only(Mutation::TrustTornPage)), 0, "the mutation is what it says");
}

#[test]
fn marks_of_a_clean_stop_come_back() {
    let site = site(64 * MIB, true);
    let mut owed = GranuleSet::new();
    owed.insert_whole(RegionRange { start: RegionIndex(1), count: 3 });
    owed.insert_run(site.volume.geometry(), GranuleRun { start: GranuleIndex(7000), count: 300 });
    site.volume.mark_open(&owed);
    assert_eq!(site.volume.open_set(), owed);
    assert_eq!(site.volume.open_granules(), owed.granule_count(site.volume.geometry()));
}

#[test]
fn an_empty_wait_is_armed_and_rung() {
    struct Count(std::sync::atomic::AtomicU32);
    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(0.into()));
    let config = VolumeConfig::new(Geometry::new(16 * MIB).expect("valid"));
    let group = Group::new(&config.limits, 4096);
    let mut wakes = Wakes::none(1);
    wakes.queues = vec![count.clone()];
    let (_, mut queues, mut owner) = group.open_volume(config.clone(), wakes, MAP, &mut blank(&config.layout, false));
    let rung = || count.0.load(std::sync::atomic::Ordering::Relaxed);
    let mut request = queues[0].start(Op::Write(at(0, 4096), None)).expect("inside");
    assert_eq!(request.advance(&mut queues[0]), Step::Park(ParkKey::Intent));
    assert_eq!(rung(), 0);
    assert!(owner.next_commit().is_some());
    owner.committed(true);
    assert_eq!(rung(), 1);
    assert!(matches!(request.advance(&mut queues[0]), Step::Io(_)));
    request.io_done(&mut queues[0], IoResult::Done);
    assert_eq!(request.advance(&mut queues[0]), Step::Complete(Ok(())));
    assert_eq!(rung(), 1, "nobody sleeps, nobody is woken");
}
