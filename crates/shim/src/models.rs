//! The five protocols under loom, over the very code that runs: switch, claim, pass, cooling, hold. Each model is small (one or two
//! regions of one granule, one or two writers) and is explored to a preemption bound of 3; each has a mutation that must make
//! it fail, so that a model that checks nothing is noticed.
//!
//! `cargo test --release -p farside-shim --features loom`

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use farside_region::intent::{IntentLayout, Page, PageBits, PageIndex};
use farside_region::{ByteExtent, ByteOffset, EpochId, Geometry, GranuleIndex, GranuleRun, GranuleSet, MapId, RegionIndex};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use crate::*;

const MAP: MapId = MapId([1; 16]);
const OLD: u64 = 1;

/// Where a driver sleeps: if a wake is ever missed, loom reports a deadlock.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn sleep(&self) {
        let mut open = self.open.lock().expect("no panic");
        while !*open {
            open = self.changed.wait(open).expect("no panic");
        }
        *open = false;
    }
}

impl Wake for Gate {
    fn wake(&self) {
        *self.open.lock().expect("no panic") = true;
        self.changed.notify_one();
    }
}

/// A queue and where its thread sleeps.
struct Lane {
    queue: Queue,
    gate: Arc<Gate>,
}

/// A volume of granules of one byte, one per region, all hot; and its backing device.
struct Site {
    group: Arc<Group>,
    volume: Arc<Volume>,
    owner: IntentOwner,
    disk: Arc<[AtomicU64]>,
    /// What the intent file durably says of region 0.
    durable: Arc<AtomicBool>,
    sender: Arc<Gate>,
}

fn site(granules: u64, queues: usize, mutations: Mutations) -> (Site, Vec<Lane>) {
    site_of(Geometry::with_shape(granules, 0, 0).expect("valid"), 0, queues, mutations)
}

/// A site of another geometry, with so many blocks of masks.
fn site_of(geometry: Geometry, mask_blocks: usize, queues: usize, mutations: Mutations) -> (Site, Vec<Lane>) {
    let granules = geometry.granule_count();
    let layout = IntentLayout::new(&geometry);
    let limits = Limits {
        in_flight_per_queue: 1,
        mask_pool_bytes: mask_blocks * 8,
        claim_pool_bytes: 16 * granules as usize,
        side_buffer_bytes: granules as usize,
        claim_run_bytes: 1,
        pass_run_bytes: 1,
        left_run_bytes: 1,
        piece_bytes: 4,
    };
    let config = VolumeConfig { layout, limits, queues, mutations, ..VolumeConfig::new(geometry) };
    let group = Group::new(&limits, 1);
    let page = Page { map: MAP, index: PageIndex(0), seq: 1, bits: PageBits::first(geometry.region_count()) };
    let gates: Vec<_> = (0..=queues).map(|_| Arc::new(Gate::default())).collect();
    let mut wakes = Wakes::none(queues);
    for (wake, gate) in wakes.queues.iter_mut().zip(&gates[1..]) {
        *wake = gate.clone();
    }
    wakes.sender = gates[0].clone();
    let (volume, queues, owner) = group.open_volume(config, wakes, MAP, &mut |_| [page.encode(&layout), page.encode(&layout)]);
    let lanes = queues.into_iter().zip(&gates[1..]).map(|(queue, gate)| Lane { queue, gate: gate.clone() }).collect();
    let disk = (0..granules).map(|_| AtomicU64::new(OLD)).collect();
    (Site { group, volume, owner, disk, durable: Arc::new(AtomicBool::new(true)), sender: gates[0].clone() }, lanes)
}

/// Drives one write to its end; the epoch that it belongs to.
fn write(lane: &mut Lane, disk: &[AtomicU64], granule: u64, value: u64, durable: &AtomicBool) -> EpochId {
    let Lane { queue, gate } = lane;
    let extent = ByteExtent { offset: ByteOffset(granule), len: 1 };
    let mut request = queue.start(Op::Write(extent, None)).expect("inside");
    let mut epoch = None;
    loop {
        match request.advance(queue) {
            Step::Io(Io::Write(_)) => {
                epoch = request.epoch();
                assert!(durable.load(Ordering::Acquire), "L2: written before the bit is durable");
                disk[granule as usize].swap(value, Ordering::AcqRel);
                request.io_done(queue, IoResult::Done);
            }
            Step::Io(Io::Save(_)) => {
                let old = disk[granule as usize].load(Ordering::Acquire) as u8;
                request.io_done(queue, IoResult::Data(&[old]));
            }
            Step::Io(other) => panic!("{other:?}"),
            Step::Park(_) => gate.sleep(),
            Step::Complete(result) => {
                assert_eq!(result, Ok(()));
                return epoch.expect("written");
            }
        }
    }
}

fn switch(switcher: &mut Switcher, kind: Kind, volume: &Arc<Volume>) -> Frozen {
    switcher.begin(kind, vec![Member { volume: volume.clone(), also: GranuleSet::new() }]).expect("free");
    loop {
        if let Some(frozen) = switcher.poll() {
            return frozen;
        }
        thread::yield_now();
    }
}

/// Reads a frozen epoch of one granule to its end; what it holds, or `None` if the granule is not in it.
fn read(site: &Site, frozen: &Frozen) -> Option<u64> {
    let mut reader = FrozenReader::new(site.volume.clone(), frozen.epoch, frozen.members[0].set.clone());
    let mut content = None;
    loop {
        match reader.next(RegionIndex(u64::MAX >> 8)) {
            Next::Read(run) => {
                let value = site.disk[run.start.0 as usize].load(Ordering::Acquire);
                if reader.read_done(run) == ReadVerdict::Accept {
                    content = Some(value);
                }
            }
            Next::Held(held) => content = Some(u64::from(held.data.expect("readable")[0])),
            Next::Left(_) => {}
            Next::Wait => site.sender.sleep(),
            Next::End => return content,
        }
    }
}

/// Runs a model in every order with so many preemptions; how many there were.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) -> usize {
    let orders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    let counter = orders.clone();
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let orders = orders.load(std::sync::atomic::Ordering::Relaxed);
    println!("{orders} orders");
    orders
}

fn fails(model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore(3, model))).is_err()
}

/// Two writers and a switch: every mark is in the map of the epoch that its writer read.
fn switch_model(kind: Kind, mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, queues) = site(2, 2, mutations);
        let writers: Vec<_> = queues
            .into_iter()
            .enumerate()
            .map(|(i, mut queue)| {
                let (disk, durable) = (site.disk.clone(), site.durable.clone());
                thread::spawn(move || write(&mut queue, &disk, i as u64, 2, &durable))
            })
            .collect();
        let mut switcher = Switcher::new(site.group.clone());
        let frozen = switch(&mut switcher, kind, &site.volume);
        for (i, writer) in writers.into_iter().enumerate() {
            let epoch = writer.join().expect("no panic");
            let frozen_has = frozen.members[0].set.contains(&site.volume.geometry, GranuleIndex(i as u64));
            let open_has = site.volume.open_set().contains(&site.volume.geometry, GranuleIndex(i as u64));
            assert_eq!((frozen_has, open_has), (epoch == frozen.epoch, epoch != frozen.epoch), "a mark is lost");
        }
    }
}

#[test]
fn switch_keeps_every_mark() {
    explore(3, switch_model(Kind::Pass, Mutations::default()));
}

#[test]
fn read_then_announce_loses_marks() {
    assert!(fails(switch_model(Kind::Pass, Mutations::only(Mutation::ReadThenAnnounce))));
}

/// A frozen granule, its reader, and one or two newer writers of it: the reader gets the content of the cut.
fn claim_model(writers: usize, mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, queues) = site(1, writers, mutations);
        let everything = GranuleSet::new();
        let mut switcher = Switcher::new(site.group.clone());
        let mut also = everything.clone();
        also.insert_run(&site.volume.geometry, site.volume.geometry.whole());
        switcher.begin(Kind::Cut, vec![Member { volume: site.volume.clone(), also }]).expect("free");
        let frozen = switcher.poll().expect("nobody marks");
        let handles: Vec<_> = queues
            .into_iter()
            .map(|mut queue| {
                let (disk, durable) = (site.disk.clone(), site.durable.clone());
                thread::spawn(move || write(&mut queue, &disk, 0, 2, &durable))
            })
            .collect();
        let content = read(&site, &frozen);
        assert!(switcher.conclude(frozen.epoch) == Kind::Pass || content == Some(OLD), "the point holds a newer write");
        handles.into_iter().for_each(|h| assert!(h.join().expect("no panic") > frozen.epoch));
    }
}

#[test]
fn a_cut_is_read_by_exactly_one() {
    explore(4, claim_model(1, Mutations::default()));
}

#[test]
fn a_cut_is_read_by_exactly_one_of_three() {
    explore(2, claim_model(2, Mutations::default()));
}

#[test]
fn save_without_claim_tears() {
    assert!(fails(claim_model(1, Mutations::only(Mutation::SaveWithoutClaim))));
}

/// A writer, a switch and a reader: what is published and what is still marked cover what is on the device; a cut holds the
/// write exactly if it read the old epoch.
fn read_model(kind: Kind, mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, mut queues) = site(1, 1, mutations);
        let mut queue = queues.remove(0);
        let (disk, durable) = (site.disk.clone(), site.durable.clone());
        let writer = thread::spawn(move || write(&mut queue, &disk, 0, 2, &durable));
        let mut switcher = Switcher::new(site.group.clone());
        let frozen = switch(&mut switcher, kind, &site.volume);
        let content = read(&site, &frozen);
        let concluded = switcher.conclude(frozen.epoch);
        let epoch = writer.join().expect("no panic");
        let published = content.unwrap_or(OLD);
        let open = site.volume.open_set().contains(&site.volume.geometry, GranuleIndex(0));
        assert!(open || published == 2, "a change is neither published nor marked");
        if concluded == Kind::Cut {
            assert_eq!(published == 2, epoch == frozen.epoch, "the point is not the cut");
        }
    }
}

#[test]
fn a_pass_forgets_nothing() {
    explore(5, read_model(Kind::Pass, Mutations::default()));
}

#[test]
fn a_cut_forgets_nothing() {
    explore(5, read_model(Kind::Cut, Mutations::default()));
}

#[test]
fn a_pass_without_draining_forgets() {
    assert!(fails(read_model(Kind::Pass, Mutations::only(Mutation::PassWithoutDraining))));
}

/// A pass that is still read while the map that was open at its beginning is frozen, emptied, and its block of masks taken for
/// another region: what nobody marked again is read.
fn left_out_model(mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, _queues) = site_of(Geometry::with_shape(4, 0, 1).expect("valid"), 1, 1, mutations);
        let g = site.volume.geometry;
        let only = |granule| {
            let mut set = GranuleSet::new();
            set.insert_run(&g, GranuleRun { start: GranuleIndex(granule), count: 1 });
            set
        };
        let mut switcher = Switcher::new(site.group.clone());
        switcher.begin(Kind::Pass, vec![Member { volume: site.volume.clone(), also: only(0) }]).expect("free");
        let frozen = switcher.poll().expect("nobody marks");
        site.volume.mark_open(&only(1));
        let volume = site.volume.clone();
        let reader = thread::spawn(move || {
            let mut reader = FrozenReader::new(volume, frozen.epoch, frozen.members[0].set.clone());
            matches!(reader.next(RegionIndex(1)), Next::Read(_))
        });
        switch(&mut switcher, Kind::Pass, &site.volume);
        site.volume.mark_open(&only(2));
        assert!(reader.join().expect("no panic"), "a granule is neither read nor marked");
    }
}

#[test]
fn a_pass_leaves_out_only_what_is_marked() {
    explore(5, left_out_model(Mutations::default()));
}

#[test]
fn a_pass_that_leaves_out_unannounced_forgets() {
    assert!(fails(left_out_model(Mutations::only(Mutation::LeaveOutUnannounced))));
}

/// Two writers of one granule, a cut and its reader: a newer write never lands before an older one that is still on its way.
fn grace_model(mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, queues) = site(1, 2, mutations);
        let writers: Vec<_> = queues
            .into_iter()
            .zip([2, 3])
            .map(|(mut queue, value)| {
                let (disk, durable) = (site.disk.clone(), site.durable.clone());
                thread::spawn(move || (write(&mut queue, &disk, 0, value, &durable), value))
            })
            .collect();
        let mut switcher = Switcher::new(site.group.clone());
        let frozen = switch(&mut switcher, Kind::Cut, &site.volume);
        let content = read(&site, &frozen);
        let is_cut = switcher.conclude(frozen.epoch) == Kind::Cut;
        let writes: Vec<_> = writers.into_iter().map(|w| w.join().expect("no panic")).collect();
        let mut fits: Vec<_> = writes.iter().filter(|(epoch, _)| *epoch == frozen.epoch).map(|(_, value)| *value).collect();
        if fits.is_empty() {
            fits.push(OLD);
        }
        assert!(!is_cut || fits.contains(&content.unwrap_or(OLD)), "the point is not the cut: {content:?} of {fits:?}");
    }
}

#[test]
fn a_newer_write_waits_for_announced_ones() {
    explore(3, grace_model(Mutations::default()));
}

/// Two newer writers of one granule in the grace of a cut, each announced and each waiting for the other; and the grace waits
/// for both.
#[test]
fn writers_that_wait_while_announced_wait_for_ever() {
    assert!(fails(grace_model(Mutations::only(Mutation::WaitAnnounced))));
}

/// A hot region that nobody mentions is cooled, `batches` times, while a writer comes and the owner commits: no write reaches
/// the device before its bit is durable, and a region ends cold only if nobody wrote it since its flush.
fn cooling_model(batches: usize, mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, mut lanes) = site(1, 1, mutations);
        let Site { volume, mut owner, disk, durable, .. } = site;
        let mut lane = lanes.remove(0);
        let done = Arc::new(AtomicBool::new(false));
        let writer = {
            let (disk, durable, done) = (disk.clone(), durable.clone(), done.clone());
            thread::spawn(move || {
                write(&mut lane, &disk, 0, 2, &durable);
                done.store(true, Ordering::Release);
            })
        };
        let mut cooler = Cooler::new(volume.clone());
        for _ in 0..batches {
            cooler.begin(&mut [(RegionIndex(0), false)].into_iter());
            loop {
                match cooler.poll(&mut |_| false) {
                    CoolStep::Idle => break,
                    CoolStep::Wait => thread::yield_now(),
                    CoolStep::Flush => {
                        cooler.flush_begin();
                        cooler.flush_end(true);
                    }
                    CoolStep::Header => cooler.header_durable(),
                }
            }
            commit(&mut owner, &durable);
        }
        // To set anew for a writer that came meanwhile.
        while !done.load(Ordering::Acquire) {
            commit(&mut owner, &durable);
            thread::yield_now();
        }
        writer.join().expect("no panic");
        commit(&mut owner, &durable);
        let cold = volume.region_state(RegionIndex(0)) != RegionState::Hot;
        assert!(!cold || disk[0].load(Ordering::Acquire) == OLD, "false-clean");
    }
}

/// As above, once, with a thread for the owner. The writer's mark keeps the region from cooling a second time, so what a stale
/// entry at the owner could clear is exactly the region that the writer took back (ABA).
fn owner_model(mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (site, mut lanes) = site(1, 1, mutations);
        let Site { volume, mut owner, disk, durable, .. } = site;
        let mut cooler = Cooler::new(volume.clone());
        cooler.begin(&mut [(RegionIndex(0), false)].into_iter());
        assert_eq!(cooler.poll(&mut |_| false), CoolStep::Flush);
        cooler.flush_begin();
        cooler.flush_end(true);
        assert_eq!(cooler.poll(&mut |_| false), CoolStep::Header);
        cooler.header_durable();
        // The owner has an entry. A writer takes the region back and is done; the cooler begins anew, and gets stuck before its
        // flush: from here on nothing may clear the bit.
        let owning = {
            let durable = durable.clone();
            thread::spawn(move || {
                commit(&mut owner, &durable);
                owner
            })
        };
        assert!(
            volume.is_hot(&[RegionIndex(0)].into_iter().collect()) || volume.region_state(RegionIndex(0)) == RegionState::Cold
        );
        let was_hot = volume.region_state(RegionIndex(0)) == RegionState::Hot;
        let begun = was_hot && cooler.begin(&mut [(RegionIndex(0), false)].into_iter()) == 1;
        owning.join().expect("no panic");
        if begun {
            assert_eq!(volume.region_state(RegionIndex(0)), RegionState::Cooling, "cleared by the entry of an earlier batch");
            assert!(durable.load(Ordering::Acquire));
        }
        drop((disk, lanes.pop()));
    }
}

fn commit(owner: &mut IntentOwner, durable: &AtomicBool) {
    if let Some(commit) = owner.next_commit() {
        let layout = IntentLayout::new(&Geometry::with_shape(1, 0, 0).expect("valid"));
        let page = farside_region::intent::UncheckedPage(&commit.writes[0].block.0).check(MAP, &layout, PageIndex(0));
        durable.store(page.expect("whole").bits.get(0), Ordering::Release);
        owner.committed(true);
    }
}

#[test]
fn cooling_never_overtakes_a_writer() {
    explore(4, cooling_model(1, Mutations::default()));
}

#[test]
fn cooling_twice_never_overtakes_a_writer() {
    explore(3, cooling_model(2, Mutations::default()));
}

#[test]
fn an_entry_at_the_owner_clears_its_own_batch_only() {
    explore(5, owner_model(Mutations::default()));
}

#[test]
fn clearing_in_the_cooling_window_is_false_clean() {
    assert!(fails(cooling_model(1, Mutations::only(Mutation::ClearInCoolingWindow))));
}

/// Two hosts, and an application that writes at the second when its write at the first is complete. Somebody holds both, switches both,
/// and asks both whether the hold lasted, while a timer may end the first. Cuts of which it did are one moment.
fn hold_model(believes_expired: bool, cuts_early: bool, mutations: Mutations) -> impl Fn() + Sync + Send + 'static {
    move || {
        let (sites, lanes): (Vec<_>, Vec<_>) = (0..2).map(|_| site(1, 1, mutations)).unzip();
        let durable = Arc::new(AtomicBool::new(true));
        let disks: Vec<_> = sites.iter().map(|site| site.disk.clone()).collect();
        let application = thread::spawn(move || {
            let mut epochs =
                lanes.into_iter().flatten().zip(&disks).map(|(mut lane, disk)| write(&mut lane, disk, 0, 2, &durable));
            (epochs.next().expect("one"), epochs.next().expect("and another"))
        });
        let cut = |site: &Site, hold: HoldId| {
            let mut switcher = Switcher::new(site.group.clone());
            let epoch = switcher.begin(Kind::Cut, Vec::new()).expect("free");
            (epoch, site.group.let_go(hold))
        };
        let first = sites[0].group.hold().expect("free");
        let early = cuts_early.then(|| cut(&sites[0], first));
        let second = sites[1].group.hold().expect("free");
        let group = sites[1].group.clone();
        let timer = thread::spawn(move || group.let_go(second));
        let (cut_of_first, first_lasted) = early.unwrap_or_else(|| cut(&sites[0], first));
        let (cut_of_second, second_lasted) = cut(&sites[1], second);
        let expired = timer.join().expect("no panic");
        assert_ne!(expired, second_lasted, "a hold is ended once");
        let (a, b) = application.join().expect("no panic: nobody sleeps for ever");
        if first_lasted && (second_lasted || believes_expired) {
            assert!(a <= cut_of_first || b > cut_of_second, "the second write is in the cut, and the first is not");
        }
    }
}

#[test]
fn groups_that_are_held_are_cut_as_one() {
    explore(2, hold_model(false, false, Mutations::default()));
}

#[test]
fn a_write_past_the_hold_is_cut_without_what_it_followed() {
    assert!(fails(hold_model(false, false, Mutations::only(Mutation::PastTheHold))));
}

#[test]
fn a_hold_that_ran_out_proves_nothing() {
    assert!(fails(hold_model(true, false, Mutations::default())));
}

#[test]
fn a_cut_before_all_are_held_proves_nothing() {
    assert!(fails(hold_model(false, true, Mutations::default())));
}
