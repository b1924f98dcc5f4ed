//! The intent thread of a volume: pages as the owner wants them, headers as the control loop wants them, in turn. A write that
//! fails latches the file; from then on the map is made anew beside it, with every bit set, until that succeeds. Where the
//! loss is recorded in the state directory, and what is trusted at a start, is here too.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use farside_region::intent::{
    Header, HeaderState, INTENT_BLOCK_BYTES, IntentLayout, Owed, Page, PageBits, PageIndex, SlotIndex, recover_header,
    recover_page,
};
use farside_region::{GranuleSet, LedgerPosition, MapId, RegionIndex, RegionSet, Term, VolumeId};
use farside_replication::source::Event;
use farside_shim::{Commit, IntentOwner, Tracking, TrackingVerdict};

use crate::disk::Done;
use crate::plan::Plan;
use crate::site::Site;
use crate::world::World;

use super::{Source, Vol};

/// A mistake of the driver: what stands in the map at a start is trusted, though the last owner's sync may have failed.
const TRUSTED: &str = "a map trusted after a failed sync";

/// Where a loss of tracking is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// By the mark in the state directory; or there is none.
    Kept,
    /// By a record of the ledger.
    AtReceiver,
    /// Nowhere: cold writes wait until then for the receiver.
    Owed { until_us: u64 },
}

/// A volume whose cold writes pass already is left alone.
fn resolve(vol: &Vol, verdict: TrackingVerdict) {
    let news = match vol.shim.tracking() {
        Tracking::Sound | Tracking::LostPassing => false,
        Tracking::LostFailing => verdict == TrackingVerdict::Pass,
        Tracking::Lost => true,
    };
    if news {
        vol.shim.resolve_tracking_lost(verdict);
    }
}

/// What the header is to say; of several that wait the newest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeaderWant {
    pub(super) confirmed: Option<Term>,
    pub(super) position: Option<LedgerPosition>,
}

/// What the control loop wants beside that.
#[derive(Debug)]
pub(super) enum IntentOrder {
    /// A flush of the backing failed (T14).
    FlushFailed,
    /// A planned stop: the masks, then the `clean` header. The answer says whether that is so.
    Clean { owed: GranuleSet, answer: Rc<Cell<Option<bool>>> },
}

/// The state of a volume's intent file.
#[derive(Debug)]
pub(super) struct IntentFile {
    pub(super) header: Header,
    newest: SlotIndex,
    failed: bool,
    flush_failed: bool,
    /// When a failed one is tried again.
    mend_at_us: u64,
    pub(super) wanted: Option<HeaderWant>,
    pub(super) orders: VecDeque<IntentOrder>,
}

impl IntentFile {
    pub(super) fn new(header: Header, newest: SlotIndex) -> Self {
        let orders = VecDeque::new();
        Self { header, newest, failed: false, flush_failed: false, mend_at_us: 0, wanted: None, orders }
    }
}

pub(super) fn layout(world: &World, site: &Site, volume: usize) -> IntentLayout {
    IntentLayout::with_page_regions(&site.geometry(volume), world.plan.page_regions)
}

/// Bytes that an intent map of this plan may need.
pub fn map_bytes(plan: &Plan) -> usize {
    let regions = *plan.regions.iter().max().expect("there are volumes");
    (2 + 2 * regions.div_ceil(u64::from(plan.page_regions)) as usize) * INTENT_BLOCK_BYTES
}

/// Makes the first intent map of every volume: all dirty, durable.
pub fn format(world: &World, site: &Site) {
    for volume in 0..site.disks.len() {
        site.is_served_whole(volume);
        let layout = layout(world, site, volume);
        let header = Header::new(MapId([volume as u8 + 1; 16]), &site.geometry(volume), &layout);
        let image = new_map(world, site, volume, &header, &|_| true);
        site.maps[volume].borrow_mut().restore(&image);
    }
}

/// A whole new map, as it is written beside an old one: of everything both slots, B the newest.
fn new_map(world: &World, site: &Site, volume: usize, header: &Header, hot: &dyn Fn(RegionIndex) -> bool) -> Vec<u8> {
    let layout = layout(world, site, volume);
    let mut image = vec![0; site.maps[volume].borrow().sectors() * INTENT_BLOCK_BYTES];
    let mut put = |offset: u64, block: &[u8]| image[offset as usize..offset as usize + block.len()].copy_from_slice(block);
    for (slot, i) in [(SlotIndex::A, 0), (SlotIndex::B, 1)] {
        put(IntentLayout::header_offset(slot).0, &Header { seq: header.seq + i, ..header.clone() }.encode().0);
        for index in (0..layout.page_count()).map(PageIndex) {
            let run = layout.page_run(index);
            let mut bits = PageBits::clear();
            (0..run.count).filter(|n| hot(RegionIndex(run.start.0 + n))).for_each(|n| bits.set(n as u32, true));
            let page = Page { map: header.map, index, seq: i, bits };
            put(layout.page_offset(index, slot).0, &page.encode(&layout).0);
        }
    }
    image
}

/// The regions whose bit stands in a map, as a start reads it.
pub(super) fn inherited(world: &World, site: &Site, volume: usize, map: MapId) -> RegionSet {
    let layout = layout(world, site, volume);
    let disk = site.maps[volume].borrow();
    let mut set = RegionSet::new();
    for index in (0..layout.page_count()).map(PageIndex) {
        let slots =
            [SlotIndex::A, SlotIndex::B].map(|s| disk.current(layout.page_offset(index, s).0 as usize / INTENT_BLOCK_BYTES));
        let found = recover_page(map, &layout, index, slots);
        found.page.bits.iter().for_each(|bit| set.insert(RegionIndex(layout.page_run(index).start.0 + u64::from(bit))));
    }
    set
}

/// What an attach does with the map that it finds, before it reads it; false: nothing can be served.
///
/// First the header is judged as the last attach left it (T2): a backing that is another one, or that somebody wrote to since
/// a clean stop, is compared in full, and that is on record before anything is written that would make the next start forget.
///
/// After a clean stop, which only a file that never failed can write, what was synced is durable. Otherwise the last owner may
/// have died with a failed sync, and no sync that says yes after that proves anything: the map is written anew, with the same
/// bits, or all if tracking was lost. So it is for a volume that has grown, with the bits of the old last region and of all that
/// is new (T12).
pub(super) fn take_over(world: &World, site: &Site, volume: usize) -> bool {
    if std::mem::take(&mut site.backings.borrow_mut()[volume].passed) {
        // "A crash now would go unnoticed": whoever read that has everything compared.
        site.state_dir.borrow_mut()[volume].tracking_lost = true;
    }
    let found = {
        let disk = site.maps[volume].borrow();
        recover_header([disk.current(0), disk.current(1)])
    };
    let Ok(Some((header, _))) = found else { return true };
    let (before, now) = (site.geometry(volume), site.geometry_found(volume));
    let grown = before != now;
    if !judge_backing(world, site, volume, &header, grown) {
        return false;
    }
    let map = site.maps[volume].borrow();
    let anew = world.plan.map_anew && header.state == HeaderState::Attached && !farside_region::mutation::on(TRUSTED);
    if !grown && (!anew || map.is_broken()) {
        return true;
    }
    if map.is_broken() {
        return false;
    }
    drop(map);
    let all = site.state_dir.borrow()[volume].tracking_lost;
    let bits = inherited(world, site, volume, header.map);
    let kept = !grown || farside_region::mutation::on("T12 growth keeps the bits that there were");
    let first_new = if kept { u64::MAX } else { before.region_count() - 1 };
    site.is_served_whole(volume);
    let header = Header { seq: header.seq + 1, state: HeaderState::Attached, volume_bytes: now.volume_bytes(), ..header };
    let image = new_map(world, site, volume, &header, &|r| all || r.0 >= first_new || bits.contains(r));
    site.maps[volume].borrow_mut().restore(&image);
    if grown {
        world.met("a volume grows");
        world.say(|| format!("v{volume} grows from {} to {} bytes", before.volume_bytes(), now.volume_bytes()));
    }
    true
}

/// Whether the last attach of a volume ended with a clean stop.
pub fn is_clean(site: &Site, volume: usize) -> bool {
    let disk = site.maps[volume].borrow();
    matches!(recover_header([disk.current(0), disk.current(1)]), Ok(Some((header, _))) if header.state == HeaderState::Clean)
}

/// Whether the backing is the one that was left, as it was left: if not, everything will be compared. False when that cannot be
/// put on record: then nothing is served.
fn judge_backing(world: &World, site: &Site, volume: usize, header: &Header, grown: bool) -> bool {
    use farside_region::mutation::on;
    let identity = site.backings.borrow()[volume].identity;
    let is_other = site.state_dir.borrow()[volume].backing != identity && !on("another disk is taken for the one that was there");
    let clean = header.state == HeaderState::Clean && !(grown && on("the backing is judged after the map has grown"));
    let touched = clean
        && header.backing != site.backing_identity(world, volume)
        && !on("T2 a backing that changed after a clean stop is trusted");
    let recorded = !(is_other || touched)
        || site.write_state(volume, |s| {
            s.tracking_lost = true;
            s.backing = identity;
        });
    if recorded {
        if touched {
            world.met("a changed backing is noticed");
        }
        if is_other {
            world.met("another disk is noticed");
        }
        site.backings.borrow_mut()[volume].meddled = false;
    }
    recorded
}

/// Whether recovery sees a region's bit whatever a power cut leaves of its page's two slots.
///
/// # Errors
/// Says in which case it does not.
pub fn bit_surely_durable(world: &World, site: &Site, volume: usize, region: RegionIndex) -> Result<(), String> {
    let layout = layout(world, site, volume);
    let (index, bit) = layout.place(region);
    let map = site.maps[volume].borrow();
    let Ok(Some((header, _))) = recover_header([map.current(0), map.current(1)]) else { return Ok(()) };
    let torn = [0u8; INTENT_BLOCK_BYTES];
    let slots = [SlotIndex::A, SlotIndex::B].map(|slot| {
        let sector = (layout.page_offset(index, slot).0 as usize) / INTENT_BLOCK_BYTES;
        let (mut all, may_tear) = map.candidates(sector);
        if may_tear {
            all.push(&torn);
        }
        all
    });
    for a in &slots[0] {
        for b in &slots[1] {
            let found = recover_page(header.map, &layout, index, [a, b]);
            if !found.page.bits.get(bit) {
                return Err(format!(
                    "its page {index} may be recovered with sequence {} from slot {:?}, where the bit is clear",
                    found.page.seq, found.newest
                ));
            }
        }
    }
    Ok(())
}

impl Source {
    /// The intent thread's whole life.
    pub(super) async fn intents(self: Rc<Self>, v: usize, mut owner: IntentOwner) {
        let (vol, steps) = (&self.volumes[v], self.world.steps());
        loop {
            let order = vol.intent.borrow_mut().orders.pop_front();
            if let Some(order) = order {
                self.obey(vol, &mut owner, order).await;
                continue;
            }
            let rung = vol.owner_bell.rung();
            let worked = [
                self.commit_pages(vol, &mut owner).await,
                self.write_wanted_header(vol, &mut owner).await,
                self.mend_if_due(vol, &mut owner).await,
            ];
            if worked.contains(&true) {
                continue;
            }
            steps.until(|| vol.owner_bell.rung() != rung || self.has_intent_work(vol)).await;
            steps.pause().await;
        }
    }

    fn has_intent_work(&self, vol: &Vol) -> bool {
        let file = vol.intent.borrow();
        let header = file.wanted.is_some() && !file.failed;
        header || !file.orders.is_empty() || (file.failed && self.world.now_us.get() >= file.mend_at_us)
    }

    async fn commit_pages(&self, vol: &Vol, owner: &mut IntentOwner) -> bool {
        let Some(commit) = owner.next_commit() else { return false };
        let ok = self.write_pages(vol, &commit).await;
        // First the owner, so that whoever hears of it finds tracking lost.
        owner.committed(ok);
        if !ok {
            self.complain(vol, owner);
        }
        true
    }

    async fn write_pages(&self, vol: &Vol, commit: &Commit) -> bool {
        let v = vol.index;
        if vol.intent.borrow().failed {
            return false;
        }
        self.say(|| {
            let pages: Vec<_> = commit.writes.iter().map(|w| format!("{}{:?}", w.page, w.slot)).collect();
            format!("v{v} intent pages {}", pages.join(" "))
        });
        let mut ops = Vec::new();
        for write in &commit.writes {
            ops.push(self.site.maps[v].borrow_mut().write(write.offset.0, write.block.0.to_vec(), 0));
            self.world.steps().pause().await;
        }
        let mut ok = true;
        for op in ops {
            ok &= self.site.map(&self.world, v, op).await == Done::Ok;
        }
        if commit.needs_sync() {
            ok &= self.sync_map(v).await;
        }
        self.world.steps().pause().await;
        vol.intent.borrow_mut().failed |= !ok;
        ok
    }

    async fn sync_map(&self, v: usize) -> bool {
        let op = self.site.maps[v].borrow_mut().flush();
        self.site.map(&self.world, v, op).await == Done::Ok
    }

    async fn write_wanted_header(&self, vol: &Vol, owner: &mut IntentOwner) -> bool {
        let wanted = vol.intent.borrow().wanted;
        let Some(want) = wanted.filter(|_| !vol.intent.borrow().failed) else { return false };
        let ok = self.write_header(vol, |h| (h.term, h.position) = (want.confirmed, want.position)).await;
        if ok {
            self.header_is_durable(vol, want);
        } else {
            self.complain(vol, owner);
        }
        true
    }

    fn header_is_durable(&self, vol: &Vol, want: HeaderWant) {
        let mut file = vol.intent.borrow_mut();
        file.wanted = file.wanted.filter(|newer| *newer != want);
        let HeaderWant { confirmed, position } = want;
        self.push(Event::HeaderDurable { volume: self.id_of(vol), confirmed, position });
    }

    fn id_of(&self, vol: &Vol) -> VolumeId {
        self.world.names.ids[vol.index]
    }

    /// One header write: to the older slot, synced.
    pub(super) async fn write_header(&self, vol: &Vol, change: impl FnOnce(&mut Header)) -> bool {
        let (mut header, slot) = {
            let file = vol.intent.borrow();
            if file.failed {
                return false;
            }
            (file.header.clone(), file.newest.other())
        };
        change(&mut header);
        header.seq += 1;
        self.say(|| {
            let (state, seq, term, position) = (header.state, header.seq, header.term, header.position.map(|p| p.slot.0));
            format!("v{} header {state:?} seq {seq} term {term:?} position {position:?}", vol.index)
        });
        let block = header.encode().0.to_vec();
        let op = self.site.maps[vol.index].borrow_mut().write(IntentLayout::header_offset(slot).0, block, 0);
        let mut ok = self.site.map(&self.world, vol.index, op).await == Done::Ok;
        ok &= self.sync_map(vol.index).await;
        let mut file = vol.intent.borrow_mut();
        file.failed |= !ok;
        if ok {
            (file.header, file.newest) = (header, slot);
            self.note_header(vol.index, &file.header);
        }
        ok
    }

    /// What the judge of histories goes by.
    fn note_header(&self, v: usize, header: &Header) {
        let start = &mut self.site.start.borrow_mut()[v];
        (start.confirmed, start.position) = (header.term, header.position);
    }

    async fn obey(&self, vol: &Vol, owner: &mut IntentOwner, order: IntentOrder) {
        match order {
            IntentOrder::FlushFailed => {
                vol.intent.borrow_mut().flush_failed = true;
                let boot = self.site.boot.get();
                if !self.write_header(vol, |h| h.flush_failed = Some(boot)).await {
                    self.complain(vol, owner);
                }
            }
            IntentOrder::Clean { owed, answer } => {
                while self.commit_pages(vol, owner).await {}
                let ok = self.write_clean(vol, owed).await;
                answer.set(Some(ok));
            }
        }
    }

    /// First the masks of what is owed, then the header that vouches for them (T2).
    async fn write_clean(&self, vol: &Vol, owed: GranuleSet) -> bool {
        let v = vol.index;
        self.say(|| format!("v{v} owes {} granules", owed.granule_count(&self.site.geometry(v))));
        let (map, header_seq) = {
            let file = vol.intent.borrow();
            (file.header.map, file.header.seq + 1)
        };
        if !self.site.write_state(v, |s| s.owed = Some(Owed { map, header_seq, set: owed }.encode())) {
            return false;
        }
        self.world.steps().pause().await;
        let wanted = vol.intent.borrow_mut().wanted.take();
        let backing = self.site.backing_identity(&self.world, v);
        self.write_header(vol, |h| {
            h.state = HeaderState::Clean;
            h.backing = backing;
            if let Some(want) = wanted {
                (h.term, h.position) = (want.confirmed, want.position);
            }
        })
        .await
    }

    /// A write of the map failed: tracking is lost until the map is made anew, also when only the header failed.
    fn complain(&self, vol: &Vol, owner: &mut IntentOwner) {
        self.mend_later(vol);
        owner.lose();
        self.tracking_lost(vol);
    }

    fn mend_later(&self, vol: &Vol) {
        vol.intent.borrow_mut().mend_at_us = self.world.now_us.get() + 6_000;
    }

    async fn mend_if_due(&self, vol: &Vol, owner: &mut IntentOwner) -> bool {
        let v = vol.index;
        if !vol.intent.borrow().failed || self.world.now_us.get() < vol.intent.borrow().mend_at_us {
            return false;
        }
        self.world.steps().pause().await;
        if self.site.maps[v].borrow().is_broken() {
            self.mend_later(vol);
            return true;
        }
        let wanted = {
            let mut file = vol.intent.borrow_mut();
            let map = MapId(self.world.rng.borrow_mut().bytes16());
            let mut header = Header { map, seq: file.header.seq + 1, state: HeaderState::Attached, ..file.header.clone() };
            if let Some(want) = file.wanted {
                (header.term, header.position) = (want.confirmed, want.position);
            }
            if file.flush_failed {
                header.flush_failed = Some(self.site.boot.get());
            }
            let image = new_map(&self.world, &self.site, v, &header, &|_| true);
            self.site.maps[v].borrow_mut().restore(&image);
            (file.header, file.newest) = (Header { seq: header.seq + 1, ..header }, SlotIndex::B);
            file.failed = false;
            self.note_header(v, &file.header);
            file.wanted
        };
        self.say(|| format!("v{v} its intent map is made anew"));
        self.world.met("intent map made anew");
        owner.made_anew(vol.intent.borrow().header.map);
        if let Some(want) = wanted {
            self.header_is_durable(vol, want);
        }
        true
    }

    /// The intent map, or the header, could not be written: the loss is recorded in the state directory before a cold write
    /// may go on. While it cannot be, the receiver is asked to keep it, and cold writes wait, boundedly; then they fail.
    pub(super) fn tracking_lost(&self, vol: &Vol) {
        let durable = self.put_mark(vol);
        self.say(|| format!("v{} loses tracking, recorded: {durable}", vol.index));
        self.world.met("tracking lost");
        if !durable && vol.loss.get() == Loss::Kept {
            let patience = if self.conn.get().is_some() { 20_000 } else { 0 };
            vol.loss.set(Loss::Owed { until_us: self.world.now_us.get() + patience });
        }
        self.lose_patience(vol);
        self.push(Event::TrackingLost { volume: self.id_of(vol) });
        if !durable {
            self.push(Event::KeepLoss { volume: self.id_of(vol) });
        }
    }

    /// A loss of tracking that could not be recorded is tried again.
    pub(super) fn record_losses(&self) {
        for vol in self.volumes.iter().filter(|v| v.loss.get() != Loss::Kept) {
            if !self.put_mark(vol) {
                self.lose_patience(vol);
            }
        }
    }

    fn put_mark(&self, vol: &Vol) -> bool {
        let durable = self.site.write_state(vol.index, |s| s.tracking_lost = true);
        if durable {
            vol.loss.set(Loss::Kept);
            self.site.backings.borrow_mut()[vol.index].passed = false;
            resolve(vol, TrackingVerdict::Pass);
        }
        durable
    }

    fn lose_patience(&self, vol: &Vol) {
        match vol.loss.get() {
            Loss::Owed { until_us } if self.world.now_us.get() >= until_us => resolve(vol, TrackingVerdict::Fail),
            // No header moves above that record before every bit is set: it speaks of what is lost by now, too.
            Loss::AtReceiver => resolve(vol, TrackingVerdict::Pass),
            Loss::Owed { .. } | Loss::Kept => {}
        }
    }

    /// The receiver's ledger has it: that is as good as the mark.
    pub(super) fn loss_kept(&self, vol: &Vol) {
        if vol.loss.get() != Loss::Kept {
            self.say(|| format!("v{} the receiver keeps that tracking was lost", vol.index));
            self.world.met("a loss is kept by the receiver");
            vol.loss.set(Loss::AtReceiver);
            self.site.backings.borrow_mut()[vol.index].passed = false;
            resolve(vol, TrackingVerdict::Pass);
        }
    }
}
