//! How long a part may be on a line that breaks before it has carried one.
//!
//! What was sent of a part is lost with its connection: over a line whose connections end before a part has arrived the same one would be sent for
//! ever. So parts become shorter where connections bring nothing whole of a layer, and longer again with what arrives. On any other line they are as long as ever:
//! each part is a file that the receiver makes durable, and an entry in its layer's record.
//!
//! Parts of several volumes need no turns here. A connection sends earlier ones first, so what is under way of short ones arrives one after the other. (Over
//! several connections at once they share the line, which breaks under each of them the sooner.)

use std::collections::{BTreeMap, BTreeSet};

use farside_region::LayerKey;

use super::api::Ended;

/// So many connections in a row must have brought nothing of a layer of which parts were begun: one that breaks under its first part, as any line may,
/// changes nothing.
const IN_VAIN_MIN: u32 = 2;

/// So many layers are known of a connection before those that are over are forgotten.
const LAYERS_KEPT: usize = 1024;

/// What a group's line was seen to carry, over all its connections.
///
/// † What a connection brought of one layer says nothing of another's parts: small ones get through a line under which each part of a first sync breaks.
#[derive(Debug)]
pub(super) struct Line {
    least: u64,
    most: u64,
    /// Parts are no longer; `None`: as long as any.
    holds: Option<u64>,
    /// Connections that the line ended, over which parts of a layer were begun and nothing of it came whole, since something did.
    in_vain: BTreeMap<LayerKey, u32>,
    present: Carried,
    /// From so many layers of it on those that are over are forgotten.
    crowded: usize,
    /// The last ones that the line ended, until it is known what of them arrived.
    last: Option<Carried>,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Carried {
    /// The longest part of each layer that was begun.
    begun: BTreeMap<LayerKey, u64>,
    /// Layers of which a part arrived, or one was read of which nothing had to be sent.
    something: BTreeSet<LayerKey>,
    /// Of parts that arrived.
    bytes: u64,
}

impl Line {
    /// Nothing is known of it.
    pub(super) fn new(least: u64, most: u64) -> Self {
        let (in_vain, present) = (BTreeMap::new(), Carried::default());
        Self { least: least.min(most), most, holds: None, in_vain, present, crowded: LAYERS_KEPT, last: None }
    }

    /// The longest part that it is known not to break under; `None`: no part is too long for it.
    pub(super) fn holds(&self) -> Option<u64> {
        self.holds
    }

    /// A part of up to so many bytes is begun. `is_open`: of a layer, whether it is still being sent.
    pub(super) fn begins(&mut self, layer: LayerKey, bytes: u64, is_open: impl Fn(&LayerKey) -> bool) {
        // † A connection may stay for months.
        if self.present.begun.len() >= self.crowded {
            self.present.begun.retain(|layer, _| is_open(layer));
            self.present.something.retain(is_open);
            self.crowded = LAYERS_KEPT.max(2 * self.present.begun.len());
        }
        self.present.begins(layer, bytes);
    }

    /// So much of a layer arrived over the present connection, in whole parts.
    pub(super) fn brings(&mut self, layer: LayerKey, bytes: u64) {
        let carried = self.present.brings(layer, bytes);
        self.grow(layer, carried);
    }

    /// So much arrived over the one before.
    pub(super) fn brought(&mut self, layer: LayerKey, bytes: u64) {
        let carried = self.last.get_or_insert_default().brings(layer, bytes);
        self.grow(layer, carried);
    }

    /// Half of what a connection has brought it may bring as one part. (Twice as long ones after each would be too long after each two.)
    fn grow(&mut self, layer: LayerKey, carried: u64) {
        self.in_vain.remove(&layer);
        self.holds = self.holds.map(|bytes| bytes.max(carried / 2)).filter(|bytes| *bytes < self.most);
    }

    /// The present connection is over. What of it arrived the receiver may still say.
    pub(super) fn ends(&mut self, how: Ended) {
        let mut ended = std::mem::take(&mut self.present);
        // One that was closed says nothing against the line.
        if how != Ended::Broken {
            ended.begun.clear();
        }
        if ended.begun.is_empty() && ended.something.is_empty() {
            return;
        }
        let last = self.last.get_or_insert_default();
        ended.begun.into_iter().for_each(|(layer, bytes)| last.begins(layer, bytes));
        last.something.extend(ended.something);
        last.bytes = last.bytes.max(ended.bytes);
    }

    /// Whether it is open what the last connection brought.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.last.is_some()
    }

    /// Nobody will say more of the last connection. Gives how long parts are from now on, if they became shorter. `is_open`: of a layer, whether it is
    /// still being sent.
    pub(super) fn judge(&mut self, is_open: impl Fn(&LayerKey) -> bool) -> Option<u64> {
        let Carried { begun, something, bytes } = self.last.take()?;
        self.in_vain.retain(|layer, _| is_open(layer));
        let before = self.holds.unwrap_or(self.most);
        let mut holds = None;
        // Where twice as much of others arrived, that part was not too long.
        let starves =
            |(layer, longest): &(LayerKey, u64)| !something.contains(layer) && is_open(layer) && longest / 2 >= bytes / 4;
        for (layer, longest) in begun.into_iter().filter(starves) {
            let in_vain = self.in_vain.entry(layer).or_default();
            *in_vain = in_vain.saturating_add(1);
            // (Of parts that are as short as any the line says nothing that would help.)
            if *in_vain >= IN_VAIN_MIN && longest > self.least {
                holds = holds.max(Some((before.min(longest) / 2).max(self.least)));
            }
        }
        let holds = holds.filter(|holds| *holds < before)?;
        self.holds = Some(holds);
        Some(holds)
    }
}

impl Carried {
    fn begins(&mut self, layer: LayerKey, bytes: u64) {
        let longest = self.begun.entry(layer).or_default();
        *longest = bytes.max(*longest);
    }

    fn brings(&mut self, layer: LayerKey, bytes: u64) -> u64 {
        self.something.insert(layer);
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::Rng;
    use farside_region::{Seq, Term, VolumeId};

    const MIB: u64 = 1 << 20;

    fn layer(volume: u8) -> LayerKey {
        LayerKey { volume: VolumeId([volume; 16]), term: Term(1), seq: Seq(1) }
    }

    fn line() -> Line {
        Line::new(MIB, 56 * MIB)
    }

    /// A connection that carries so much of parts that it sends one after the other, and is told of them at the end. Gives what arrived.
    fn connection(line: &mut Line, carries: u64) -> u64 {
        let size = line.holds().unwrap_or(56 * MIB);
        let mut arrived = 0;
        line.begins(layer(1), size, |_| true);
        while arrived + size <= carries {
            arrived += size;
            line.begins(layer(1), size, |_| true);
        }
        line.ends(Ended::Broken);
        if arrived > 0 {
            line.brought(layer(1), arrived);
        }
        line.judge(|_| true);
        arrived
    }

    #[test]
    fn parts_get_shorter_by_half_and_longer_with_what_arrives() {
        let mut line = line();
        let sizes: Vec<_> = (0..9)
            .map(|_| {
                connection(&mut line, 3 * MIB);
                line.holds().map(|bytes| bytes >> 10)
            })
            .collect();
        let halves = [56 << 9, 56 << 8, 56 << 7, 56 << 6, 56 << 5].map(Some);
        assert_eq!(sizes[0], None, "one that breaks under its first part is any line");
        assert_eq!(sizes[1..6], halves);
        assert_eq!(sizes[6..], [halves[4]; 3], "and stay as long as is good for the line");
        line.brings(layer(1), 111 * MIB);
        assert_eq!(line.holds(), Some(111 * MIB / 2));
        line.brings(layer(1), MIB);
        assert_eq!(line.holds(), None, "as long as ever");
    }

    /// † Small parts of another volume get through, or all of it is equal, while none of a first sync does.
    #[test]
    fn what_gets_through_of_one_layer_excuses_no_other() {
        let mut line = line();
        for round in 0..9 {
            line.begins(layer(1), 56 * MIB, |_| true);
            line.begins(layer(2), MIB / 8, |_| true);
            line.brings(layer(2), MIB / 8);
            line.brings(layer(3), 0);
            line.ends(Ended::Broken);
            assert_eq!(line.judge(|_| true).is_some(), (1..=6).contains(&round), "{round}: {line:?}");
        }
        assert_eq!(line.holds(), Some(MIB));
        // One that is gone counts no more.
        line.judge(|_| false);
        line.begins(layer(9), 1, |_| true);
        line.ends(Ended::Broken);
        line.judge(|key| *key == layer(9));
        assert_eq!(line.in_vain.keys().collect::<Vec<_>>(), [&layer(9)]);
    }

    /// A connection may stay for months, and each point is another layer.
    #[test]
    fn what_is_known_of_a_connection_is_bounded() {
        let mut line = line();
        for seq in 0..20_000 {
            let this = LayerKey { seq: Seq(seq), ..layer(1) };
            line.begins(this, MIB, |key| key.seq.0 + 9 > seq);
            line.brings(this, MIB);
        }
        let Carried { begun, something, .. } = &line.present;
        assert!(begun.len() <= LAYERS_KEPT && something.len() <= LAYERS_KEPT, "{} {}", begun.len(), something.len());
    }

    /// A line that flaps twice under a small part, and carries long ones in between.
    #[test]
    fn a_small_part_that_is_lost_beside_long_ones_that_arrive_shortens_none() {
        let mut line = line();
        for _ in 0..9 {
            line.begins(layer(1), 56 * MIB, |_| true);
            line.brings(layer(1), 50 * MIB);
            line.begins(layer(2), 2 * MIB, |_| true);
            line.ends(Ended::Broken);
            assert_eq!((line.judge(|_| true), line.holds()), (None, None));
        }
    }

    #[test]
    fn what_says_nothing_of_the_line_changes_nothing() {
        let mut line = line();
        for _ in 0..9 {
            // None was begun; one was begun, and somebody closed it; a part was over because nothing of it had to be sent.
            line.ends(Ended::Broken);
            line.begins(layer(1), 56 * MIB, |_| true);
            line.ends(Ended::Closed);
            assert!(!line.is_in_doubt());
            line.begins(layer(1), 56 * MIB, |_| true);
            line.brings(layer(1), 0);
            line.ends(Ended::Broken);
            assert_eq!((line.judge(|_| true), line.holds()), (None, None));
            // One in between that was in vain.
            line.begins(layer(1), 56 * MIB, |_| true);
            line.ends(Ended::Broken);
            assert_eq!((line.judge(|_| true), line.holds()), (None, None));
        }
    }

    /// Whatever a line carries, if it is more than the least part: soon something arrives, and in the long run a good part of what could.
    #[test]
    fn every_line_that_carries_the_least_part_gets_on() {
        let mut rng = Rng(0x5eed);
        for _ in 0..2_000 {
            let mut line = line();
            let carries = MIB + rng.below(80 * MIB);
            let arrived: Vec<_> = (0..60).map(|_| connection(&mut line, carries)).collect();
            let first = arrived.iter().position(|bytes| *bytes > 0);
            assert!(first.is_some_and(|at| at <= 8), "{carries}: {arrived:?}");
            let sum: u64 = arrived[8..].iter().sum();
            assert!(sum * 3 >= carries * 52, "{carries}: {arrived:?}");
        }
    }

    /// And whatever happens: parts are never shorter than the least, nor longer than the most; and they get shorter only after two connections in a row
    /// that the line ended under a part, and that brought nothing.
    #[test]
    fn parts_get_shorter_for_that_reason_only() {
        let mut rng = Rng(0xfa12_51de);
        for _ in 0..2_000 {
            let mut line = line();
            let mut in_vain = 0;
            for _ in 0..40 {
                let before = line.holds().unwrap_or(u64::MAX);
                let (is_begun, is_closed) = (!rng.one_in(4), rng.one_in(4));
                let (early, late) = (rng.one_in(4), rng.one_in(4));
                if is_begun {
                    line.begins(layer(1), 1 + rng.below(before.min(56 * MIB)), |_| true);
                }
                if is_begun && early {
                    line.brings(layer(1), rng.below(9 * MIB));
                }
                line.ends(if is_closed { Ended::Closed } else { Ended::Broken });
                if is_begun && late {
                    line.brought(layer(1), rng.below(9 * MIB));
                }
                let shorter = line.judge(|_| true);
                match (is_begun && (early || late), is_begun && !is_closed) {
                    (true, _) => in_vain = 0,
                    (false, is_in_vain) => in_vain += u32::from(is_in_vain),
                }
                let after = line.holds().unwrap_or(u64::MAX);
                assert!(line.holds().is_none_or(|bytes| (MIB..56 * MIB).contains(&bytes)));
                assert!(after >= before || in_vain >= 2, "{line:?}");
                assert_eq!(shorter.is_some(), after < before);
            }
        }
    }
}
