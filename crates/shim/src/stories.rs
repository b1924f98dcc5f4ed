//! How the write path would lose data: orders of events that chance meets once in thousands of seeds, written out. Each story
//! is told honestly and ends well; told with the mistake that it is about, it must end in a broken law (`mutation::tell`).

use farside_region::intent::{IntentBlock, IntentLayout, Page, PageBits, PageIndex, SlotIndex, recover_page};
use farside_region::mutation::tell;
use farside_region::{EpochId, Geometry, GranuleIndex, GranuleRun, GranuleSet, RegionIndex};

use crate::rules::{MAP, MIB, Site, at, blank, site, site_of};
use crate::volume::frozen_word;
use crate::*;

const R0: RegionIndex = RegionIndex(0);

impl Site {
    /// Writes where it is hot; the whole request, to its end.
    fn write(&mut self, offset: u64, len: u64) {
        assert_eq!(self.run(Op::Write(at(offset, len), None)).1, Ok(()));
    }

    /// A cooler that has a batch of one region, which waits for its flush.
    fn cooling(&self, region: RegionIndex) -> Cooler {
        let mut cooler = Cooler::new(self.volume.clone());
        cooler.begin(&mut [(region, false)].into_iter());
        cooler
    }

    fn is_hot(&self, region: RegionIndex) -> bool {
        self.volume.region_state(region) == RegionState::Hot
    }

    fn switch(&self, kind: Kind) -> (Switcher, EpochId) {
        let mut switcher = Switcher::new(self.group.clone());
        let epoch = switcher.begin(kind, vec![Member { volume: self.volume.clone(), also: GranuleSet::new() }]).expect("free");
        (switcher, epoch)
    }
}

/// All that a batch wants, given at once, flush and header included.
fn through(cooler: &mut Cooler) {
    loop {
        match cooler.poll(&mut |_| false) {
            CoolStep::Idle => return,
            CoolStep::Wait => panic!("nothing is under way"),
            CoolStep::Flush => {
                cooler.flush_begin();
                cooler.flush_end(true);
            }
            CoolStep::Header => cooler.header_durable(),
        }
    }
}

/// What of a region's bit a power cut leaves, with the slot being written torn.
fn survives(layout: &IntentLayout, slots: &[Box<IntentBlock>; 2], torn: SlotIndex, region: RegionIndex) -> bool {
    let nothing = IntentBlock::zeroed();
    let [a, b] = if torn == SlotIndex::A { [&nothing, &slots[1]] } else { [&slots[0], &nothing] };
    recover_page(MAP, layout, PageIndex(0), [&a.0, &b.0]).page.bits.get(layout.place(region).1)
}

// ---- cooling

/// A region is published and cools; its entry waits at the page's owner. A writer takes it back; that write is published, too,
/// so nobody mentions the region any more, and it cools a second time. Before the second round has flushed, the owner comes to
/// the entry of the *first*: it finds COOLING, as it expects, and clears the bit. A power cut takes the write that was
/// acknowledged, published, and still in the device's cache: old content under a clear bit.
#[test]
fn two_cooling_rounds_do_not_share_an_entry() {
    tell(&[("hole: two cooling rounds", "L2: cleared without the flush")], || {
        let mut site = site(16 * MIB, true);
        through(&mut site.cooling(R0));
        site.write(0, 4096);
        site.publish();
        let _second = site.cooling(R0);
        site.commit(true);
        assert!(site.volume.region_state(R0) != RegionState::Cold, "L2: cleared without the flush of the second round");
    });
}

/// The kernel says a failed flush once per file description. The host's own flush fails; nobody may conclude from the next
/// successful one that what was written before is on the disk.
#[test]
fn t14_after_a_failed_flush_nothing_cools() {
    let mistakes = [
        ("T14 a failed flush is forgotten", "L2: cooled over a lost write"),
        ("cool a region that somebody still mentions", "L2: cooled over a lost write"),
    ];
    tell(&mistakes, || {
        let mut site = site(16 * MIB, true);
        let mut flush = site.queue.start(Op::Flush(site.connection.clone())).expect("a flush");
        assert_eq!(flush.advance(&mut site.queue), Step::Io(Io::Flush));
        flush.io_done(&mut site.queue, IoResult::Failed(5));
        assert_eq!(flush.advance(&mut site.queue), Step::Complete(Err(Failure::FlushFailed)));
        site.cool(false);
        assert!(site.is_hot(R0), "L2: cooled over a lost write");
    });
}

/// The same, and the daemon is restarted before anything else happens: the kernel that lost the write is still the same one.
#[test]
fn t14_a_failed_flush_is_remembered_by_the_next_attach() {
    tell(&[("hole: failed flush forgotten at the next attach", "L2: cooled over a lost write")], || {
        let config = VolumeConfig { flush_failed_this_boot: true, ..VolumeConfig::new(Geometry::new(16 * MIB).expect("valid")) };
        let slots = blank(&config.layout, true);
        let mut site = site_of(config, slots);
        site.cool(false);
        assert!(site.is_hot(R0), "L2: cooled over a lost write");
    });
}

/// The cooler's flush fails, and the daemon dies before a host's flush comes that would hear of it. The successor's own flushes
/// succeed: the drive has dropped what it could not write.
#[test]
fn t14_a_failed_flush_that_nobody_was_told_of_is_told_after_a_takeover() {
    tell(&[("hole: an untold failed flush dies with its daemon", "T14: nobody was told")], || {
        let geometry = Geometry::new(16 * MIB).expect("valid");
        let config = VolumeConfig { flush_failed_this_boot: true, flush_failure_untold: true, ..VolumeConfig::new(geometry) };
        let slots = blank(&config.layout, true);
        let mut site = site_of(config, slots);
        let flush = Op::Flush(site.connection.clone());
        assert!(site.run(flush.clone()).1 == Err(Failure::FlushFailed), "T14: nobody was told");
        assert_eq!(site.run(flush).1, Ok(()), "once");
        let late = site.volume.connect();
        assert_eq!(site.run(Op::Flush(late)).1, Ok(()), "one that came after it was told");
    });
}

/// A host's flush fails, and its connection breaks before it has the answer. It asks again over the next connection, and the disk has nothing to say any
/// more.
#[test]
fn t14_a_failed_flush_whose_answer_was_never_sent_is_told_again() {
    tell(&[("hole: an answer that was never sent tells of a failed flush", "T14: nobody was told")], || {
        let mut site = site(16 * MIB, true);
        let mut flush = site.queue.start(Op::Flush(site.connection.clone())).expect("a flush");
        assert_eq!(flush.advance(&mut site.queue), Step::Io(Io::Flush));
        flush.io_done(&mut site.queue, IoResult::Failed(5));
        assert_eq!(flush.advance(&mut site.queue), Step::Complete(Err(Failure::FlushFailed)));
        site.volume.tell_failed_flush_again();
        for connection in [site.volume.connect(), site.connection.clone()] {
            assert!(site.run(Op::Flush(connection.clone())).1 == Err(Failure::FlushFailed), "T14: nobody was told");
            assert_eq!(site.run(Op::Flush(connection)).1, Ok(()), "once");
        }
        let late = site.volume.connect();
        assert_eq!(site.run(Op::Flush(late)).1, Ok(()), "one that came after it was told");
    });
}

/// A region has passed its flush and its header, and waits for the owner, when a host's flush fails. Its bit is still set on
/// disk: it was hot when the flush failed, so it stays.
#[test]
fn t14_a_failed_flush_takes_back_regions_that_are_cooling() {
    tell(&[("hole: a failed flush spares COOLING regions", "T14: cleared after a failed flush")], || {
        let mut site = site(16 * MIB, true);
        through(&mut site.cooling(R0));
        let flush = site.volume.flush_begin();
        site.volume.flush_end(flush, false);
        site.commit(true);
        assert!(site.is_hot(R0), "T14: cleared after a failed flush");
    });
}

/// The cooler's flush and a host's overlap. The device lost a write; the kernel tells the host's flush and gives the cooler's
/// "success" in the same moment.
#[test]
fn t14_a_flush_beside_a_failed_one_counts_as_failed() {
    tell(&[("hole: a flush beside a failed one counts", "L2: cooled over a lost write")], || {
        let mut site = site(16 * MIB, true);
        let mut cooler = site.cooling(R0);
        assert_eq!(cooler.poll(&mut |_| false), CoolStep::Flush);
        cooler.flush_begin();
        let mut flush = site.queue.start(Op::Flush(site.connection.clone())).expect("a flush");
        assert_eq!(flush.advance(&mut site.queue), Step::Io(Io::Flush));
        cooler.flush_end(true);
        if cooler.poll(&mut |_| false) == CoolStep::Header {
            cooler.header_durable();
            site.commit(true);
        }
        let cold = !site.is_hot(R0) && site.volume.region_state(R0) != RegionState::Cooling;
        flush.io_done(&mut site.queue, IoResult::Failed(5));
        assert_eq!(flush.advance(&mut site.queue), Step::Complete(Err(Failure::FlushFailed)));
        assert!(!cold, "L2: cooled over a lost write");
    });
}

/// Published, and still in the device's cache.
#[test]
fn l2_cooling_flushes_first() {
    tell(&[("clear without flush", "L2: no flush was asked for")], || {
        let site = site(16 * MIB, true);
        assert_eq!(site.cooling(R0).poll(&mut |_| false), CoolStep::Flush, "L2: no flush was asked for");
    });
}

/// Published in slot 9; the header still says 5. A power cut; the next attach looks at the ledger above 5, finds a layer of a
/// region that is clean, and must think that the disk was rolled back.
#[test]
fn l2_cooling_waits_for_the_header() {
    tell(&[("clear before the header", "L2: no header was asked for")], || {
        let site = site(16 * MIB, true);
        let mut cooler = site.cooling(R0);
        if cooler.poll(&mut |_| false) == CoolStep::Flush {
            cooler.flush_begin();
            cooler.flush_end(true);
        }
        assert_eq!(cooler.poll(&mut |_| false), CoolStep::Header, "L2: no header was asked for");
    });
}

// ---- intent

/// A write over two regions: one is hot, the other is cold and asked for. While the request waits, the hot one cools. Who then
/// looks only at the one it waited for writes into a region whose bit is clear.
#[test]
fn l2_a_write_over_two_regions_looks_at_both_again() {
    tell(&[("hole: a write over two regions looks at one again", "L2: a write into a cold region")], || {
        let mut site = site(16 * MIB, false);
        site.write(0, 4096);
        site.publish();
        let mut request = site.queue.start(Op::Write(at(4 * MIB - 4096, 8192), None)).expect("inside");
        assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
        through(&mut site.cooling(R0));
        site.commit(true);
        let mut step = request.advance(&mut site.queue);
        if step == Step::Park(ParkKey::Intent) {
            site.commit(true);
            step = request.advance(&mut site.queue);
        }
        let hot = site.is_hot(R0) && site.is_hot(RegionIndex(1));
        request.crash();
        assert!(matches!(step, Step::Io(Io::Write(_))), "{step:?}");
        assert!(hot, "L2: a write into a cold region");
    });
}

/// The very first rule: the write goes on while its bit is still on its way to the disk, and power goes.
#[test]
fn l2_a_write_waits_for_its_bit() {
    tell(&[("mark before intent", "L2: a write before its bit")], || {
        let mut site = site(16 * MIB, false);
        let mut request = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        let step = request.advance(&mut site.queue);
        request.crash();
        assert_eq!(step, Step::Park(ParkKey::Intent), "L2: a write before its bit");
    });
}

/// R1: a tracker set the bit in memory first and the durable one later; a second write of the same block, between the two, was
/// acknowledged on the strength of the first one's memory. Here it waits for the same commit; so nothing but what was there
/// before can be under a clear bit.
#[test]
fn r1_a_second_write_waits_for_the_bit_that_the_first_one_asked_for() {
    tell(&[("mark before intent", "L2: the second write before the bit")], || {
        let mut site = site(16 * MIB, false);
        let mut first = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        let _ = first.advance(&mut site.queue);
        let under_way = site.owner.next_commit();
        let mut second = site.queue.start(Op::Write(at(8192, 4096), None)).expect("inside");
        let step = second.advance(&mut site.queue);
        first.crash();
        second.crash();
        assert!(under_way.is_some(), "a commit is on its way to the disk");
        assert_eq!(step, Step::Park(ParkKey::Intent), "L2: the second write before the bit");
    });
}

/// A region is past everything but its page's owner when a write comes. If the write does not take it back from COOLING, the
/// owner clears the bit beside it.
#[test]
fn l2_a_writer_takes_a_cooling_region_back() {
    tell(&[("clear in the cooling window", "L2: cleared beside a write")], || {
        let mut site = site(16 * MIB, true);
        through(&mut site.cooling(R0));
        let mut request = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        assert!(matches!(request.advance(&mut site.queue), Step::Io(Io::Write(_))));
        site.commit(true);
        let hot = site.is_hot(R0);
        request.crash();
        assert!(hot, "L2: cleared beside a write");
    });
}

/// Power goes while a page's image is on its way. The slot under it is torn, so it must not be the one that holds the newest
/// image: a write was acknowledged on the strength of that.
#[test]
fn l2_a_torn_write_of_a_page_leaves_its_newest_image_whole() {
    tell(&[("a page overwrites its newest slot", "L2: an acknowledged bit is torn")], || {
        let geometry = Geometry::new(64 * MIB).expect("valid");
        let layout = IntentLayout::new(&geometry);
        let config = VolumeConfig::new(geometry);
        let page = |seq| Page { map: MAP, index: PageIndex(0), seq, bits: PageBits::clear() }.encode(&layout);
        let mut slots = [page(2), page(1)];
        let mut site = site_of(config, |_| [page(2), page(1)]);
        for region in 0..3 {
            let mut request = site.queue.start(Op::Write(at(region * 4 * MIB, 4096), None)).expect("inside");
            assert_eq!(request.advance(&mut site.queue), Step::Park(ParkKey::Intent));
            let commit = site.owner.next_commit().expect("a region is wanted");
            let write = &commit.writes[0];
            let acknowledged = (0..region).all(|r| survives(&layout, &slots, write.slot, RegionIndex(r)));
            slots[usize::from(write.slot == SlotIndex::B)] = write.block.clone();
            site.owner.committed(true);
            request.crash();
            assert!(acknowledged, "L2: an acknowledged bit is torn");
        }
    });
}

/// A volume of 3¾ regions grows. Its last region was clean up to the old end; beyond it lies what nobody ever published.
#[test]
fn t12_growth_sets_the_bit_of_the_old_last_region() {
    tell(&[("T12 the old last region stays as it was", "T12: the rest of the old last region")], || {
        let small = Geometry::with_shape(64 * 30, 6, 3).expect("valid");
        let large = Geometry::with_shape(64 * 72, 6, 3).expect("valid");
        let layout = IntentLayout::with_page_regions(&large, 16);
        let config = VolumeConfig { layout, volume_bytes_before: small.volume_bytes(), ..VolumeConfig::new(large) };
        let mut site = site_of(config, blank(&layout, false));
        site.commit(true);
        assert!(site.is_hot(RegionIndex(3)), "T12: the rest of the old last region is never sent");
    });
}

/// The region was zero, cooled to COLD_ZERO, was written, and cooled again. A TRIM must reach the device: whoever remembers
/// only that it once was zero answers "zeroed" over the host's data.
#[test]
fn t8_what_was_zero_once_is_not_zero_for_ever() {
    tell(&[("T8 the zero flag outlives its region's content", "T8: trimmed, and still there")], || {
        let mut site = site(16 * MIB, true);
        site.cool(true);
        assert_eq!(site.volume.region_state(R0), RegionState::ColdZero);
        site.write(0, 4096);
        site.publish();
        site.cool(false);
        let (ios, _) = site.run(Op::Trim(at(0, 4096), None));
        assert_eq!(ios.len(), 1, "T8: trimmed, and still there");
    });
}

/// `fallocate` without a hole promises that a later write finds room. Over a region that is zero because it is a hole, "nothing
/// to do" breaks that promise.
#[test]
fn t8_a_no_hole_request_always_reaches_the_device() {
    tell(&[("T8 a NO_HOLE request takes the COLD_ZERO way", "T8: nothing was allocated")], || {
        let mut site = site(16 * MIB, true);
        site.cool(true);
        let (ios, _) = site.run(Op::WriteZeroes { extent: at(0, 4096), no_hole: true, fua: None });
        assert_eq!(ios.len(), 1, "T8: nothing was allocated");
    });
}

/// † A device was taken off its tap, written, and put back. Its host zeroes, is told that it is done, and reads what was written past the tap.
#[test]
fn t8_what_somebody_else_may_have_written_is_not_zero() {
    tell(&[("T8 zeroes are believed after somebody else has written", "T8: zeroed, and still there")], || {
        let mut site = site(16 * MIB, true);
        site.cool(true);
        site.volume.doubt_zeroes();
        let (ios, _) = site.run(Op::Trim(at(0, 4096), None));
        assert_eq!(ios.len(), 1, "T8: zeroed, and still there");
    });
}

// ---- switch, claim, save

/// A queue thread has read the counter and is about to mark when the switch comes. Without the grace the map is taken before
/// that mark is in it, and the write is in neither epoch.
#[test]
fn l3_a_switch_waits_for_marks_under_way() {
    tell(&[("no grace", "L3: a mark is lost")], || {
        let site = site(16 * MIB, true);
        let run = GranuleRun { start: GranuleIndex(3), count: 1 };
        site.volume.announce(0, Some(run));
        let epoch = site.group.epoch();
        let (mut switcher, _) = site.switch(Kind::Pass);
        let early = switcher.poll();
        site.volume.map_of(epoch).mark(&site.volume.masks, &site.volume.geometry, run);
        site.volume.idle(0);
        let frozen = early.or_else(|| switcher.poll()).expect("the mark is over");
        assert!(frozen.members[0].set.contains(site.volume.geometry(), run.start), "L3: a mark is lost");
    });
}

/// In the grace of a cut an older write has announced itself and is not registered yet. A newer write of the same granule that
/// does not wait saves what is there *before* the older one lands, and the point misses a write that was before the cut.
#[test]
fn l3_a_newer_write_waits_for_older_marks_that_overlap() {
    tell(&[("no parking on announced extents", "L3: an older write is overtaken")], || {
        let config = VolumeConfig { queues: 2, ..VolumeConfig::new(Geometry::new(16 * MIB).expect("valid")) };
        let group = Group::new(&config.limits, config.geometry.granule_bytes());
        let mut slots = blank(&config.layout, true);
        let (volume, mut queues, _owner) = group.open_volume(config, Wakes::none(2), MAP, &mut slots);
        let run = GranuleRun { start: GranuleIndex(0), count: 1 };
        volume.announce(0, Some(run));
        let mut switcher = Switcher::new(group);
        let mut also = GranuleSet::new();
        also.insert_run(volume.geometry(), run);
        switcher.begin(Kind::Cut, vec![Member { volume: volume.clone(), also }]).expect("free");
        let mut newer = queues[1].start(Op::Write(at(0, 4096), None)).expect("inside");
        let step = newer.advance(&mut queues[1]);
        newer.crash();
        volume.idle(0);
        assert_eq!(step, Step::Park(ParkKey::Grace), "L3: an older write is overtaken");
    });
}

/// No mask is left for an older write that is announced in the grace of a cut: all of its region counts as older. A newer write of another granule
/// there has passed by then, and nobody saved what it overwrites.
#[test]
fn l3_a_cut_ends_where_masks_run_out_in_its_grace() {
    tell(&[("a cut goes on for want of masks", "L3: a newer write is in the cut")], || {
        let limits = Limits { mask_pool_bytes: 0, ..Limits::DEFAULT };
        let config = VolumeConfig { queues: 2, limits, ..VolumeConfig::new(Geometry::new(16 * MIB).expect("valid")) };
        let group = Group::new(&config.limits, config.geometry.granule_bytes());
        let mut slots = blank(&config.layout, true);
        let (volume, mut queues, _owner) = group.open_volume(config, Wakes::none(2), MAP, &mut slots);
        let older = GranuleRun { start: GranuleIndex(0), count: 1 };
        volume.announce(0, Some(older));
        let epoch = group.epoch();
        let mut switcher = Switcher::new(group);
        switcher.begin(Kind::Cut, vec![Member { volume: volume.clone(), also: GranuleSet::new() }]).expect("free");
        let mut newer = queues[1].start(Op::Write(at(8192, 4096), None)).expect("inside");
        assert_eq!(newer.advance(&mut queues[1]), Step::Io(Io::Write(at(8192, 4096))), "nothing is in its way");
        volume.mark(epoch, older);
        volume.idle(0);
        let frozen = switcher.poll().expect("nobody marks");
        newer.crash();
        assert!(frozen.members[0].set.contains(volume.geometry(), GranuleIndex(2)), "all of the region");
        assert!(!volume.holds_cut(epoch), "L3: a newer write is in the cut");
    });
}

/// A write of the next epoch marks while the switch of this one is not over. Clearing "what was frozen" in the map that is open
/// by then takes that mark with it.
#[test]
fn l2_marks_of_the_next_epoch_survive_the_switch() {
    tell(&[("marks are cleared in place", "L2: a mark is forgotten")], || {
        let mut site = site(16 * MIB, true);
        site.write(0, 4096);
        let (mut switcher, _) = site.switch(Kind::Pass);
        site.write(0, 4096);
        switcher.poll().expect("nobody marks");
        assert!(site.volume.open_set().contains(site.volume.geometry(), GranuleIndex(0)), "L2: a mark is forgotten");
    });
}

/// An older write is in flight, slowly, on a granule that a pass reads. Its mark is in this frozen set and nowhere else: read
/// before it lands, its content is never sent.
#[test]
fn l2_a_pass_drains_what_it_reads() {
    tell(&[("pass without draining", "L2: read before it landed")], || {
        let mut site = site(16 * MIB, true);
        let mut slow = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        assert!(matches!(slow.advance(&mut site.queue), Step::Io(Io::Write(_))));
        let (mut switcher, epoch) = site.switch(Kind::Pass);
        let frozen = switcher.poll().expect("no slot is marking");
        let mut reader = FrozenReader::new(site.volume.clone(), epoch, frozen.members[0].set.clone());
        let next = reader.next(RegionIndex(4));
        slow.crash();
        assert!(matches!(next, Next::Wait), "L2: read before it landed");
    });
}

/// The sender has claimed a granule of a cut and its read is under way; a newer write that saves and goes on without asking
/// overwrites what is being read. Torn, with a perfectly valid digest.
#[test]
fn l3_exactly_one_reads_a_frozen_granule() {
    tell(&[("save without claim", "L3: overwritten while it is read")], || {
        let mut site = site(16 * MIB, true);
        site.write(0, 4096);
        let (mut switcher, epoch) = site.switch(Kind::Cut);
        let frozen = switcher.poll().expect("nobody marks");
        let mut reader = FrozenReader::new(site.volume.clone(), epoch, frozen.members[0].set.clone());
        assert!(matches!(reader.next(RegionIndex(4)), Next::Read(_)));
        let mut newer = site.queue.start(Op::Write(at(0, 4096), None)).expect("inside");
        let step = newer.advance(&mut site.queue);
        newer.crash();
        assert_eq!(step, Step::Park(ParkKey::Claim), "L3: overwritten while it is read");
    });
}

/// The receiver is slow, the side buffer full of what it has not fetched. The write that finds no room gives the cut up and
/// goes on; if it waited for room, production would wait for the network.
#[test]
fn l1_a_write_that_finds_no_room_gives_the_cut_up() {
    tell(&[("L1 a full side buffer holds the write", "L1: a host write waits")], || {
        let geometry = Geometry::new(16 * MIB).expect("valid");
        let limits = Limits { side_buffer_bytes: 4096, ..Limits::DEFAULT };
        let config = VolumeConfig { limits, ..VolumeConfig::new(geometry) };
        let slots = blank(&config.layout, true);
        let mut site = site_of(config, slots);
        site.write(0, MIB);
        let (mut switcher, epoch) = site.switch(Kind::Cut);
        switcher.poll().expect("nobody marks");
        let mut write = site.queue.start(Op::Write(at(0, MIB), None)).expect("inside");
        let step = write.advance(&mut site.queue);
        write.crash();
        assert_eq!(step, Step::Io(Io::Write(at(0, MIB))), "L1: a host write waits");
        assert_ne!(site.volume.frozen.load(crate::sync::Ordering::Relaxed), frozen_word(epoch, crate::volume::CUT));
    });
}
