//! Which neighbouring parts of an interval are worth laying together. Pure.
//!
//! Two reasons: bytes that nothing needs, and numbers of parts. Both cost writing again what is still needed, so:
//! - What would take more than it frees is left. A part in a pack frees nothing as long as another one in it is needed: the pack is deleted as a whole.
//! - Where a quarter of the bytes comes free, it is done at any time. What is written is at most three times what it gives back.
//! - Where the interval stays as it is for long (*settled*), a dozen small parts become one, or fewer if that gives something back: each byte
//!   is written about once for each rule of the grid that thins the points around it.
//! - Where it does not, in the one before the oldest point of a policy without rules, say, parts wait until sixty-four of about a size
//!   are there, so that each byte is written few times.

use std::collections::BTreeMap;
use std::ops::Range;

use farside_ledger::PackId;

/// What one merge writes, at most, in bytes as far as that can be told before: a part, with room for what packs worse alone.
const WRITTEN_BYTES_MAX: u64 = 48 << 20;
/// And granules: see [`farside_layer::DATA_GRANULES_MAX`].
const GRANULES_MAX: u64 = 60_000;
/// And frames: see [`farside_layer::FRAMES_MAX`].
const FRAMES_MAX: u64 = 30_000;
/// Parts of one merge, at most: what its record names.
const PARTS_MAX: usize = 4096;
/// Their footers, which are in memory together.
const FOOTER_BYTES_MAX: u64 = 64 << 20;
/// A part with so many bytes, nearly all of which are needed, is left where it is.
const LARGE_BYTES: u64 = 16 << 20;
/// Bytes that come free in this many of a hundred are worth writing the rest again.
const FREED_PERCENT: u64 = 25;
/// Small parts of a settled interval become one from so many on, or if this many of a hundred of their bytes come free.
const SETTLED_PARTS: usize = 12;
const SETTLED_FREED_PERCENT: u64 = 20;
/// Of an interval that will grow, so many.
const GROWING_PARTS: usize = 64;

/// A part of an interval, as it would be merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergePiece {
    /// Bytes of its file.
    pub bytes: u64,
    /// About how many of them are needed at the interval's end.
    pub needed_bytes: u64,
    /// Granules of data that are.
    pub granules: u64,
    /// Frames that these take, at most.
    pub frames: u64,
    /// About what its footer takes in memory.
    pub footer_bytes: u64,
    /// Where it lies with others.
    pub pack: Option<PackId>,
    /// It must stay as it is.
    pub stays: bool,
}

/// What a part has around its frames: its header, the footer's head and header, its trailer.
const AROUND_BYTES: u64 = 224;

impl MergePiece {
    /// Nothing of it is needed but runs of zeroes, or of what could not be read.
    fn is_dataless(&self) -> bool {
        self.granules == 0 && self.frames > 0
    }

    fn freed(&self) -> u64 {
        self.bytes.saturating_sub(self.needed_bytes)
    }

    fn is_worth_leaving(&self) -> bool {
        self.stays || (self.bytes >= LARGE_BYTES && self.freed() * 100 < self.bytes * FREED_PERCENT)
    }
}

/// The runs of neighbours to merge, ascending and apart from each other; each becomes one part. `settled`: the interval stays as it is for
/// long.
pub fn choose_merges(pieces: &[MergePiece], settled: bool) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < pieces.len() {
        if pieces[at].is_worth_leaving() {
            at += 1;
            continue;
        }
        let (mut end, mut sum) = (at, MergePiece::default());
        while let Some(next) = pieces.get(end).filter(|next| !next.is_worth_leaving() && end - at < PARTS_MAX) {
            let more = MergePiece {
                bytes: sum.bytes + next.bytes,
                needed_bytes: sum.needed_bytes + next.needed_bytes,
                granules: sum.granules + next.granules,
                frames: sum.frames + next.frames,
                footer_bytes: sum.footer_bytes + next.footer_bytes,
                ..MergePiece::default()
            };
            let is_one = more.needed_bytes <= WRITTEN_BYTES_MAX && more.granules <= GRANULES_MAX && more.frames <= FRAMES_MAX;
            let fits = is_one && more.footer_bytes <= FOOTER_BYTES_MAX;
            if !fits && end > at {
                break;
            }
            (end, sum) = (end + 1, more);
        }
        runs.extend(worth(pieces, at..end, settled));
        at = end;
    }
    runs
}

/// The bytes that go once nothing names the parts of a run any more: those of the parts that lie alone, and of packs all parts of which are
/// in the run. `pieces`: all that are left of the packs that they lie in.
pub fn freed_by(pieces: &[MergePiece], run: &Range<usize>) -> u64 {
    let sums = |pieces: &[MergePiece]| {
        let mut sums: BTreeMap<Option<PackId>, u64> = BTreeMap::new();
        pieces.iter().for_each(|piece| *sums.entry(piece.pack).or_default() += piece.bytes);
        sums
    };
    let of_run = sums(&pieces[run.clone()]);
    if of_run.keys().all(Option::is_none) {
        return of_run.values().sum();
    }
    let all = sums(pieces);
    of_run.into_iter().filter(|(pack, bytes)| pack.is_none() || all.get(pack) == Some(bytes)).map(|(_, bytes)| bytes).sum()
}

/// What of such a run is worth it.
fn worth(pieces: &[MergePiece], run: Range<usize>, settled: bool) -> Option<Range<usize>> {
    let sum = |run: &Range<usize>, of: &dyn Fn(&MergePiece) -> u64| pieces[run.clone()].iter().map(of).sum::<u64>();
    // † One alone without data has the same around it as before: it would be written anew as it is, for ever.
    let around = |run: &Range<usize>| if run.len() == 1 && pieces[run.start].is_dataless() { AROUND_BYTES } else { 0 };
    // More than what is written for it.
    let net = |run: &Range<usize>| freed_by(pieces, run).checked_sub(sum(run, &|piece| piece.needed_bytes) + around(run));
    let frees = |run: &Range<usize>, percent| {
        let freed = net(run).unwrap_or(0);
        freed > 0 && freed * 100 >= sum(run, &|piece| piece.bytes) * percent
    };
    if frees(&run, FREED_PERCENT)
        || (settled
            && run.len() > 1
            && ((run.len() >= SETTLED_PARTS && net(&run).is_some()) || frees(&run, SETTLED_FREED_PERCENT)))
    {
        return Some(run);
    }
    if settled {
        return None;
    }
    // One that outweighs all that come after it waits for more of its size.
    let mut tail = run;
    while tail.len() >= GROWING_PARTS {
        if pieces[tail.start].needed_bytes * 4 <= sum(&tail, &|piece| piece.needed_bytes) && net(&tail).is_some() {
            return Some(tail);
        }
        tail.start += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn piece(mib: u64, needed_percent: u64) -> MergePiece {
        let bytes = mib * MIB;
        MergePiece {
            bytes,
            needed_bytes: bytes * needed_percent / 100,
            granules: mib * 256,
            frames: mib * 4,
            ..MergePiece::default()
        }
    }

    #[test]
    fn small_neighbours_of_a_settled_interval_become_one() {
        let twelve = vec![piece(1, 95); 12];
        assert_eq!(choose_merges(&twelve, true), vec![0..12]);
        assert_eq!(choose_merges(&twelve, false), vec![], "they will be closed in again soon");
        assert_eq!(choose_merges(&twelve[..3], true), vec![], "three that are needed throughout");
        assert_eq!(choose_merges(&[piece(1, 78); 2], true), vec![0..2], "two that give something back");
        assert_eq!(choose_merges(&[piece(1, 100)], true), vec![]);
    }

    #[test]
    fn a_quarter_that_comes_free_is_worth_it_at_any_time() {
        for settled in [false, true] {
            assert_eq!(choose_merges(&[piece(60, 50)], settled), vec![0..1]);
            assert_eq!(choose_merges(&[piece(60, 90)], settled), vec![]);
            let between = [piece(60, 95), piece(60, 30), piece(2, 70), piece(60, 90), piece(1, 10)];
            assert_eq!(choose_merges(&between, settled), vec![1..3, 4..5], "large parts that are needed stay where they are");
        }
    }

    #[test]
    fn what_is_written_fits_one_part() {
        let many = vec![piece(10, 70); 20];
        let runs = choose_merges(&many, true);
        assert_eq!(runs.iter().map(ExactSizeIterator::len).sum::<usize>(), 20);
        for run in runs {
            let needed: u64 = many[run].iter().map(|piece| piece.needed_bytes).sum();
            assert!(needed <= WRITTEN_BYTES_MAX);
        }
        let frames = vec![MergePiece { frames: FRAMES_MAX / 2, ..piece(1, 50) }; 5];
        assert_eq!(choose_merges(&frames, true), vec![0..2, 2..4, 4..5]);
        assert_eq!(choose_merges(&vec![piece(0, 0); PARTS_MAX + 16], true), vec![0..PARTS_MAX, PARTS_MAX..PARTS_MAX + 16]);
    }

    #[test]
    fn an_interval_that_grows_is_written_a_few_times() {
        let mut parts: Vec<MergePiece> = Vec::new();
        let (mut written, mut came, mut most) = (0, 0, 0);
        for _ in 0..4096 {
            parts.push(MergePiece { bytes: 4096, needed_bytes: 4096, granules: 1, frames: 1, ..MergePiece::default() });
            came += 4096;
            while let Some(run) = choose_merges(&parts, false).into_iter().next() {
                let bytes = parts[run.clone()].iter().map(|piece| piece.bytes).sum();
                written += bytes;
                let granules = parts[run.clone()].iter().map(|piece| piece.granules).sum();
                parts.splice(
                    run,
                    [MergePiece { bytes, needed_bytes: bytes, granules, frames: granules, ..MergePiece::default() }],
                );
            }
            most = most.max(parts.len());
        }
        assert!(written <= 4 * came, "{written} written for {came}");
        assert!(most <= 256, "{most} parts at once");
    }

    #[test]
    fn parts_in_packs_free_nothing_as_long_as_others_in_them_are_needed() {
        let pack = |slot, piece: MergePiece| MergePiece { pack: Some(PackId::new(farside_region::Slot(slot), [1; 8])), ..piece };
        let (one, two) = (pack(1, piece(1, 10)), pack(2, piece(1, 10)));
        assert_eq!(choose_merges(&[one, one, two, two], true), vec![0..4]);
        assert_eq!(freed_by(&[one, one, two, two], &(0..3)), 2 * MIB);
        // Another one lies with them that stays.
        let stays = MergePiece { stays: true, ..one };
        assert_eq!(choose_merges(&[one, one, two, two, stays], true), vec![0..4], "two MiB, for less than half a one");
        assert_eq!(freed_by(&[one, one, two, two, stays], &(0..4)), 2 * MIB);
        assert_eq!(choose_merges(&[one, one, stays], true), vec![]);
        assert_eq!(choose_merges(&vec![pack(3, piece(1, 95)); 13][..12], true), vec![0..12], "a pack of twelve");
        let mut thirteen = vec![pack(3, piece(1, 95)); 13];
        thirteen[12].stays = true;
        assert_eq!(choose_merges(&thirteen, true), vec![], "it would take more than it frees");
        assert_eq!(choose_merges(&[piece(1, 10), one, stays], true), vec![0..2], "what lies alone pays for it");
    }

    #[test]
    fn the_footers_of_a_run_have_a_bound() {
        let large = MergePiece { footer_bytes: FOOTER_BYTES_MAX / 3, ..piece(4, 10) };
        assert_eq!(choose_merges(&[large; 8], true), vec![0..3, 3..6, 6..8]);
    }

    #[test]
    fn what_must_stay_parts_the_runs() {
        let stays = MergePiece { stays: true, ..piece(1, 0) };
        assert_eq!(choose_merges(&[piece(1, 50), stays, piece(1, 50), piece(1, 50)], true), vec![0..1, 2..4]);
    }
}
