//! A disk with everything a real one may do to us. The fault model, as numbered statements:
//!
//! 1. A write lands sector by sector, in any order, at any time after it was submitted; other operations on the same
//!    sectors in flight at the same time land in between. A read samples sector by sector in the same way.
//! 2. A landed write sits in a volatile cache. A power cut leaves, for each sector on its own, any of the versions since
//!    the last covering flush, or the flushed one; of a sector in flight also the new one, or a mixture (tearing).
//! 3. A flush covers exactly the operations that had completed when it was issued. A failed flush is reported once; what
//!    was in the cache then may never become durable, whatever later flushes say.
//! 4. Operations of a dead process go on and land later (ghost writes) until they all have: [`Disk::quiet`] is the door.
//! 5. A read of a bad sector fails until the sector is written; a write may fail after any part of it landed. A dead sector
//!    can neither be read nor written, for ever.
//! 6. A broken disk fails every write and every flush until it is mended; what is there can be read.
//!
//! What it does not model: silent corruption at rest (the digests of the store's segments are for that).

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

/// One operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A read, with what it saw.
    Read(Vec<u8>),
    /// A write or a flush.
    Ok,
    /// EIO.
    Failed,
}

/// A sector that one write has just changed.
#[derive(Clone, Debug)]
pub struct Landed {
    /// The write's tag, as given at submission.
    pub tag: u64,
    /// Which sector.
    pub sector: usize,
    /// Its content now.
    pub value: Vec<u8>,
    /// The number of this version.
    pub n: u64,
}

#[derive(Debug)]
enum Kind {
    Read(Vec<u8>),
    Write(Vec<u8>),
    /// Covers entries up to this number, except of the operations that were in flight then.
    Flush {
        upto: u64,
        except: BTreeSet<OpId>,
        overlapped_failure: bool,
    },
}

#[derive(Debug)]
struct Op {
    id: OpId,
    kind: Kind,
    first: usize,
    left: Vec<usize>,
    tag: u64,
    fail: bool,
}

#[derive(Clone, Debug)]
struct Version {
    n: u64,
    op: OpId,
    value: Vec<u8>,
}

/// See the head of the file. Offsets and lengths are whole sectors.
#[derive(Debug)]
pub struct Disk {
    sector_bytes: usize,
    tear_bytes: usize,
    current: Vec<Vec<u8>>,
    durable: Vec<Vec<u8>>,
    durable_n: Vec<u64>,
    newest_n: Vec<u64>,
    cache: BTreeMap<usize, Vec<Version>>,
    lost: BTreeMap<usize, u64>,
    flight: Vec<Op>,
    done: BTreeMap<OpId, Done>,
    bad: BTreeSet<usize>,
    dead: BTreeSet<usize>,
    /// Sectors that could not be read at some time.
    ever_bad: BTreeSet<usize>,
    broken: bool,
    fail_next_flush: bool,
    flush_failures: u64,
    n: u64,
    next: u64,
    changes: u64,
}

impl Disk {
    /// A disk of zeroes, durable. `tear_bytes` is the largest unit that a power cut cannot tear. (Intent pages of a simulated
    /// volume have a few bits, all of them in the first real sector: they tear at 16 bytes, as full pages do at 512.)
    pub fn new(bytes: usize, sector_bytes: usize, tear_bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(sector_bytes) && sector_bytes.is_multiple_of(tear_bytes), "whole sectors");
        let sectors = vec![vec![0; sector_bytes]; bytes / sector_bytes];
        Self {
            sector_bytes,
            tear_bytes,
            durable_n: vec![0; sectors.len()],
            newest_n: vec![0; sectors.len()],
            durable: sectors.clone(),
            current: sectors,
            cache: BTreeMap::new(),
            lost: BTreeMap::new(),
            flight: Vec::new(),
            done: BTreeMap::new(),
            bad: BTreeSet::new(),
            dead: BTreeSet::new(),
            ever_bad: BTreeSet::new(),
            broken: false,
            fail_next_flush: false,
            flush_failures: 0,
            n: 0,
            next: 0,
            changes: 0,
        }
    }

    /// Number of sectors.
    pub fn sectors(&self) -> usize {
        self.current.len()
    }

    /// Bytes in a sector.
    pub fn sector_bytes(&self) -> usize {
        self.sector_bytes
    }

    /// Grows by every change of what the disk holds or may hold; for checkers that look only when there is news.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn submit(&mut self, kind: Kind, first: usize, count: usize, tag: u64) -> OpId {
        assert!(first + count <= self.current.len(), "beyond the disk: sectors {first}+{count}");
        self.next += 1;
        self.changes += 1;
        let id = OpId(self.next);
        self.flight.push(Op { id, kind, first, left: (first..first + count).collect(), tag, fail: false });
        id
    }

    fn span(&self, offset: u64, len: usize) -> (usize, usize) {
        let s = self.sector_bytes as u64;
        assert!(
            offset.is_multiple_of(s) && (len as u64).is_multiple_of(s) && len > 0,
            "O_DIRECT: {offset}+{len} is not aligned to {s}"
        );
        ((offset / s) as usize, len / self.sector_bytes)
    }

    /// Starts a write. `tag` comes back with each sector that it lands.
    ///
    /// # Panics
    /// When it is not aligned or beyond the end, as all of these.
    pub fn write(&mut self, offset: u64, data: Vec<u8>, tag: u64) -> OpId {
        let (first, count) = self.span(offset, data.len());
        self.submit(Kind::Write(data), first, count, tag)
    }

    /// Starts a read.
    pub fn read(&mut self, offset: u64, len: usize) -> OpId {
        let (first, count) = self.span(offset, len);
        self.submit(Kind::Read(vec![0; len]), first, count, 0)
    }

    /// Starts a flush.
    pub fn flush(&mut self) -> OpId {
        let except = self.flight.iter().filter(|o| matches!(o.kind, Kind::Write(_))).map(|o| o.id).collect();
        let upto = self.n;
        self.submit(Kind::Flush { upto, except, overlapped_failure: false }, 0, 0, 0)
    }

    /// How an operation ended, once.
    pub fn take(&mut self, id: OpId) -> Option<Done> {
        self.done.remove(&id)
    }

    /// Operations submitted and not complete.
    pub fn in_flight(&self) -> Vec<OpId> {
        self.flight.iter().map(|o| o.id).collect()
    }

    /// The door (L11): nothing that anybody submitted is still to land.
    pub fn quiet(&self) -> bool {
        self.flight.is_empty()
    }

    /// Forgets answers that nobody is left to take. The operations themselves go on: ghosts.
    pub fn orphan(&mut self) {
        self.done.clear();
    }

    /// Lets one operation go on: all of it, or a part of its sectors. Returns the sectors that a write changed.
    ///
    /// # Panics
    /// When there is no such operation.
    pub fn advance(&mut self, id: OpId, whole: bool, rng: &mut Rng) -> Vec<Landed> {
        let at = self.flight.iter().position(|o| o.id == id).expect("the operation is in flight");
        let mut op = self.flight.swap_remove(at);
        self.changes += 1;
        let mut landed = Vec::new();
        let steps = if whole || op.left.len() < 2 { op.left.len() } else { 1 + rng.below(op.left.len() - 1) };
        for _ in 0..steps {
            let sector = op.left.swap_remove(rng.below(op.left.len()));
            let at = (sector - op.first) * self.sector_bytes;
            match &mut op.kind {
                Kind::Read(buf) => {
                    op.fail |= self.is_bad(sector);
                    buf[at..at + self.sector_bytes].copy_from_slice(&self.current[sector]);
                }
                Kind::Write(data) => {
                    let dead = self.dead.contains(&sector);
                    op.fail |= dead || self.broken;
                    if dead || (op.fail && rng.chance(0.5)) {
                        continue;
                    }
                    let value = data[at..at + self.sector_bytes].to_vec();
                    self.land(op.id, sector, value.clone());
                    landed.push(Landed { tag: op.tag, sector, value, n: self.n });
                }
                Kind::Flush { .. } => {}
            }
        }
        if !op.left.is_empty() {
            self.flight.push(op);
            return landed;
        }
        let result = match op.kind {
            _ if op.fail => Done::Failed,
            Kind::Read(buf) => Done::Read(buf),
            Kind::Write(_) => Done::Ok,
            Kind::Flush { upto, except, overlapped_failure } => self.finish_flush(upto, &except, overlapped_failure),
        };
        self.done.insert(op.id, result);
        landed
    }

    fn land(&mut self, op: OpId, sector: usize, value: Vec<u8>) {
        self.n += 1;
        self.current[sector].clone_from(&value);
        self.newest_n[sector] = self.n;
        self.bad.remove(&sector);
        self.cache.entry(sector).or_default().push(Version { n: self.n, op, value });
    }

    fn finish_flush(&mut self, upto: u64, except: &BTreeSet<OpId>, overlapped_failure: bool) -> Done {
        if self.fail_next_flush || self.broken {
            self.fail_next_flush = false;
            self.flush_failures += 1;
            for (sector, versions) in &self.cache {
                let newest = versions.last().map_or(0, |v| v.n);
                self.lost.insert(*sector, newest);
            }
            for op in &mut self.flight {
                if let Kind::Flush { overlapped_failure, .. } = &mut op.kind {
                    *overlapped_failure = true;
                }
            }
            return Done::Failed;
        }
        // A flush that overlapped a failed one may say success: the error was already reported. It made nothing durable.
        if overlapped_failure {
            return Done::Ok;
        }
        for (&sector, versions) in &mut self.cache {
            let lost = self.lost.get(&sector).copied().unwrap_or(0);
            let covered = |v: &Version| v.n <= upto && v.n > lost && !except.contains(&v.op);
            if let Some(last) = versions.iter().rposition(covered) {
                self.durable[sector].clone_from(&versions[last].value);
                self.durable_n[sector] = versions[last].n;
                versions.drain(..=last);
            }
        }
        self.cache.retain(|_, v| !v.is_empty());
        Done::Ok
    }

    /// The power goes: every sector becomes one of what it may be, nothing is in flight any more.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        let cache = std::mem::take(&mut self.cache);
        for (sector, versions) in cache {
            let older = self.durable[sector].clone();
            let chosen = match rng.below(4) {
                0 => older.clone(),
                1 => versions[rng.below(versions.len())].value.clone(),
                2 => versions[versions.len() - 1].value.clone(),
                _ => self.torn(&older, &versions[rng.below(versions.len())].value, rng),
            };
            self.durable[sector] = chosen;
        }
        for op in std::mem::take(&mut self.flight) {
            if let Kind::Write(data) = &op.kind {
                for sector in op.left {
                    let at = (sector - op.first) * self.sector_bytes;
                    let new = data[at..at + self.sector_bytes].to_vec();
                    let older = self.durable[sector].clone();
                    match rng.below(5) {
                        0 | 1 => self.durable[sector] = new,
                        2 => self.durable[sector] = self.torn(&older, &new, rng),
                        _ => {}
                    }
                }
            }
        }
        self.done.clear();
        self.lost.clear();
        self.fail_next_flush = false;
        self.current = self.durable.clone();
        self.changes += 1;
        self.n += 1;
        self.durable_n.fill(self.n);
        self.newest_n.fill(self.n);
    }

    /// Old and new, mixed at the tear unit.
    fn torn(&self, old: &[u8], new: &[u8], rng: &mut Rng) -> Vec<u8> {
        let mut out = old.to_vec();
        for at in (0..out.len()).step_by(self.tear_bytes) {
            if rng.chance(0.5) {
                out[at..at + self.tear_bytes].copy_from_slice(&new[at..at + self.tear_bytes]);
            }
        }
        out
    }

    /// What is read from now on is what lies on the medium, where that is all that can be had: what a failed flush could not write is lost.
    pub fn read_anew(&mut self) {
        for (sector, n) in std::mem::take(&mut self.lost) {
            let Some(versions) = self.cache.get_mut(&sector) else { continue };
            versions.retain(|version| version.n > n);
            let newest = versions.last().map_or(&self.durable[sector], |version| &version.value);
            self.current[sector].clone_from(newest);
        }
        self.cache.retain(|_, versions| !versions.is_empty());
    }

    /// What a failed flush left in doubt is what later flushes cover again. For a process that died before it could make the
    /// failure durable: nobody can know of it any more, and a rule that cannot be kept is not judged.
    pub fn forgive(&mut self) {
        self.lost.clear();
    }

    /// Everything a sector may hold after a power cut now, torn versions left out; `true` when it may also be torn.
    pub fn candidates(&self, sector: usize) -> (Vec<&[u8]>, bool) {
        let mut all: Vec<&[u8]> = vec![&self.durable[sector]];
        all.extend(self.cache.get(&sector).into_iter().flatten().map(|v| v.value.as_slice()));
        for op in &self.flight {
            if let Kind::Write(data) = &op.kind
                && op.left.contains(&sector)
            {
                let at = (sector - op.first) * self.sector_bytes;
                all.push(&data[at..at + self.sector_bytes]);
            }
        }
        all.push(&self.current[sector]);
        all.sort_unstable();
        all.dedup();
        let may_tear = all.len() > 1 && self.tear_bytes < self.sector_bytes;
        (all, may_tear)
    }

    /// Whether something from this sector on was written and not flushed, and nothing is under way.
    pub fn waits_for_a_flush(&self, from: usize) -> bool {
        self.quiet() && self.cache.range(from..).next().is_some()
    }

    /// What a sector surely holds, also after a power cut; `None` when that is open.
    pub fn certain(&self, sector: usize) -> Option<&[u8]> {
        (!self.cache.contains_key(&sector) && !self.pending(sector)).then(|| self.durable[sector].as_slice())
    }

    /// What a read of one sector sees.
    pub fn current(&self, sector: usize) -> &[u8] {
        &self.current[sector]
    }

    /// All bytes, as a read sees them now.
    pub fn image(&self) -> Vec<u8> {
        self.current.concat()
    }

    /// The number of the newest version of each sector, and of the durable one, for the judge of flushes.
    pub fn versions(&self) -> (&[u64], &[u64]) {
        (&self.newest_n, &self.durable_n)
    }

    /// The numbers of the sectors that an operation in flight has still to change.
    pub fn pending(&self, sector: usize) -> bool {
        self.flight.iter().any(|o| matches!(o.kind, Kind::Write(_)) && o.left.contains(&sector))
    }

    /// Puts content there as if it had always been (a new disk, a copy).
    pub fn set(&mut self, offset: u64, data: &[u8]) {
        let (first, count) = self.span(offset, data.len());
        for i in 0..count {
            let value = data[i * self.sector_bytes..(i + 1) * self.sector_bytes].to_vec();
            self.current[first + i].clone_from(&value);
            self.durable[first + i] = value;
        }
        self.changes += 1;
    }

    /// Becomes what it was, whole and durable, with nothing in flight.
    ///
    /// # Panics
    /// When the image has another size.
    pub fn restore(&mut self, image: &[u8]) {
        self.cache.clear();
        self.flight.clear();
        self.done.clear();
        self.lost.clear();
        self.bad.clear();
        self.fail_next_flush = false;
        self.broken = false;
        assert_eq!(image.len(), self.current.len() * self.sector_bytes, "an image of this disk");
        self.set(0, image);
        self.n += 1;
        self.durable_n.fill(self.n);
        self.newest_n.fill(self.n);
    }

    /// From now on reads of this sector fail, until it is written.
    pub fn spoil(&mut self, sector: usize) {
        self.bad.insert(sector);
        self.ever_bad.insert(sector);
        self.changes += 1;
    }

    /// From now on this sector can neither be read nor written.
    pub fn kill_sector(&mut self, sector: usize) {
        self.dead.insert(sector);
        self.spoil(sector);
    }

    /// Whether that happened to it.
    pub fn is_dead(&self, sector: usize) -> bool {
        self.dead.contains(&sector)
    }

    /// Whether some sector of a range could not be read at some time.
    pub fn was_bad(&self, sectors: std::ops::Range<usize>) -> bool {
        self.ever_bad.range(sectors).next().is_some()
    }

    /// From now on every write and flush fails.
    pub fn break_writes(&mut self) {
        self.broken = true;
    }

    /// Whether that is so.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether reads of this sector fail.
    pub fn is_bad(&self, sector: usize) -> bool {
        self.bad.contains(&sector) || self.dead.contains(&sector)
    }

    /// Everything works again, but for dead sectors.
    pub fn mend(&mut self) {
        self.bad.clear();
        self.broken = false;
        self.fail_next_flush = false;
        self.changes += 1;
    }

    /// It is replaced by a sound one that holds the same.
    pub fn replace(&mut self) {
        self.bad.clear();
        self.dead.clear();
        self.broken = false;
    }

    /// Flushes that failed so far.
    pub fn flush_failures(&self) -> u64 {
        self.flush_failures
    }

    /// Whether that version of a sector was in the cache when a flush failed: no later flush speaks of it.
    pub fn in_doubt(&self, sector: usize, n: u64) -> bool {
        self.lost.get(&sector).is_some_and(|lost| n <= *lost)
    }

    /// Whether some operation has failed and nobody was told yet.
    pub fn has_bad_news(&self) -> bool {
        self.done.values().any(|d| *d == Done::Failed)
    }

    /// The next flush to end fails.
    pub fn fail_flush(&mut self) {
        self.fail_next_flush = true;
    }

    /// A write in flight will fail, after a part of it may have landed. False when there is none.
    pub fn fail_a_write(&mut self, rng: &mut Rng) -> bool {
        let writes: Vec<usize> = (0..self.flight.len()).filter(|&i| matches!(self.flight[i].kind, Kind::Write(_))).collect();
        if writes.is_empty() {
            return false;
        }
        let i = rng.pick(&writes);
        self.flight[i].fail = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new(64, 16, 16)
    }

    fn land(d: &mut Disk, id: OpId, rng: &mut Rng) -> Done {
        d.advance(id, true, rng);
        d.take(id).expect("complete")
    }

    #[test]
    fn a_power_cut_loses_what_was_acknowledged_and_not_flushed_and_nothing_that_was() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let (mut d, mut r) = (disk(), Rng::new(seed));
            let a = d.write(0, vec![1; 16], 0);
            assert_eq!(land(&mut d, a, &mut r), Done::Ok);
            let f = d.flush();
            assert_eq!(land(&mut d, f, &mut r), Done::Ok);
            let b = d.write(0, vec![2; 16], 0);
            assert_eq!(land(&mut d, b, &mut r), Done::Ok);
            d.power_cut(&mut r);
            outcomes.insert(d.current(0)[0]);
        }
        assert_eq!(outcomes, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_flush_covers_only_what_had_completed_when_it_was_issued() {
        let (mut d, mut r) = (disk(), Rng::new(1));
        let early = d.write(0, vec![1; 16], 0);
        let f = d.flush();
        d.advance(early, true, &mut r);
        land(&mut d, f, &mut r);
        assert_eq!(d.candidates(0).0.len(), 2, "the write in flight at the flush is not covered");
        let f = d.flush();
        land(&mut d, f, &mut r);
        assert_eq!(d.candidates(0).0, [&[1u8; 16][..]]);
    }

    #[test]
    fn a_failed_flush_is_reported_once_and_what_it_had_stays_in_doubt() {
        let (mut d, mut r) = (disk(), Rng::new(1));
        let w = d.write(0, vec![1; 16], 0);
        land(&mut d, w, &mut r);
        d.fail_flush();
        let (f, g) = (d.flush(), d.flush());
        assert_eq!(land(&mut d, f, &mut r), Done::Failed);
        assert_eq!(land(&mut d, g, &mut r), Done::Ok, "it overlapped: success, and nothing is durable");
        let h = d.flush();
        assert_eq!(land(&mut d, h, &mut r), Done::Ok);
        assert_eq!(d.candidates(0).0.len(), 2);
        let w = d.write(0, vec![3; 16], 0);
        land(&mut d, w, &mut r);
        let h = d.flush();
        land(&mut d, h, &mut r);
        assert_eq!(d.candidates(0).0, [&[3u8; 16][..]], "a new write and its own flush end the doubt");
    }

    #[test]
    fn overlapping_writes_mix_by_sector_and_ghosts_keep_the_door_shut() {
        let mut mixed = false;
        for seed in 0..64 {
            let (mut d, mut r) = (disk(), Rng::new(seed));
            let (a, b) = (d.write(0, vec![1; 48], 0), d.write(0, vec![2; 48], 0));
            d.orphan();
            assert!(!d.quiet());
            d.advance(a, false, &mut r);
            d.advance(b, true, &mut r);
            if d.in_flight().contains(&a) {
                d.advance(a, true, &mut r);
            }
            assert!(d.quiet());
            let image = d.image();
            mixed |= image[..48].contains(&1) && image[..48].contains(&2);
        }
        assert!(mixed);
    }
}
