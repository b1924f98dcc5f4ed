//! How long a part may be on a line that breaks before it has carried one.
//!
//! What was sent of a part is lost with its connection: over a line whose connections end before a part has arrived the same one would be sent for
//! ever. So parts become shorter where connections bring nothing whole, and longer again with what arrives. On any other line they are as long as ever:
//! each part is a file that the receiver makes durable, and an entry in its layer's record.
//!
//! Parts of several volumes need no turns here. The transport sends earlier ones first, so what is under way of short ones arrives one after the other.

use super::api::Ended;

/// So many connections in a row must have brought nothing: one that breaks under its first part, as any line may, changes nothing.
const IN_VAIN_MIN: u32 = 2;

/// What a group's line was seen to carry, over all its connections.
#[derive(Debug)]
pub(super) struct Line {
    least: u64,
    most: u64,
    /// Parts are no longer; `None`: as long as any.
    holds: Option<u64>,
    /// Connections in a row that the line ended, over which parts were begun and nothing came whole.
    in_vain: u32,
    present: Carried,
    /// The last one that the line ended, until it is known what of it arrived.
    last: Option<Carried>,
}

/// What is known of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    /// The longest part that was begun; 0: none was.
    begun: u64,
    /// A part arrived, or one was read of which nothing had to be sent.
    something: bool,
    /// Of parts that arrived.
    bytes: u64,
}

impl Line {
    /// Nothing is known of it.
    pub(super) fn new(least: u64, most: u64) -> Self {
        Self { least: least.min(most), most, holds: None, in_vain: 0, present: Carried::default(), last: None }
    }

    /// The longest part that it is known not to break under; `None`: no part is too long for it.
    pub(super) fn holds(&self) -> Option<u64> {
        self.holds
    }

    /// A part of up to so many bytes is begun.
    pub(super) fn begins(&mut self, bytes: u64) {
        self.present.begun = self.present.begun.max(bytes);
    }

    /// So much arrived over the present connection, in whole parts.
    pub(super) fn brings(&mut self, bytes: u64) {
        let carried = self.present.brings(bytes);
        self.grow(carried);
    }

    /// So much arrived over the one before.
    pub(super) fn brought(&mut self, bytes: u64) {
        let carried = self.last.get_or_insert_default().brings(bytes);
        self.grow(carried);
    }

    /// Half of what a connection has brought it may bring as one part. (Twice as long ones after each would be too long after each two.)
    fn grow(&mut self, carried: u64) {
        self.in_vain = 0;
        self.holds = self.holds.map(|bytes| bytes.max(carried / 2)).filter(|bytes| *bytes < self.most);
    }

    /// The present connection is over. What of it arrived the receiver may still say.
    pub(super) fn ends(&mut self, how: Ended) {
        let Carried { begun, something, bytes } = std::mem::take(&mut self.present);
        // One that was closed says nothing against the line.
        if (how == Ended::Broken && begun > 0) || something {
            let last = self.last.get_or_insert_default();
            last.begun = last.begun.max(begun);
            last.something |= something;
            last.bytes += bytes;
        }
    }

    /// Whether it is open what the last connection brought.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.last.is_some()
    }

    /// Nobody will say more of the last connection. Gives how long parts are from now on, if they became shorter.
    pub(super) fn judge(&mut self) -> Option<u64> {
        let last = self.last.take().filter(|last| !last.something)?;
        self.in_vain = self.in_vain.saturating_add(1);
        if self.in_vain < IN_VAIN_MIN {
            return None;
        }
        let before = self.holds.unwrap_or(self.most);
        let bytes = (before.min(last.begun) / 2).max(self.least);
        self.holds = Some(bytes);
        (bytes < before).then_some(bytes)
    }
}

impl Carried {
    fn brings(&mut self, bytes: u64) -> u64 {
        self.something = true;
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::Rng;

    const MIB: u64 = 1 << 20;

    fn line() -> Line {
        Line::new(MIB, 56 * MIB)
    }

    /// A connection that carries so much of parts that it sends one after the other, and is told of them at the end. Gives what arrived.
    fn connection(line: &mut Line, carries: u64) -> u64 {
        let size = line.holds().unwrap_or(56 * MIB);
        let mut arrived = 0;
        line.begins(size);
        while arrived + size <= carries {
            arrived += size;
            line.begins(size);
        }
        line.ends(Ended::Broken);
        if arrived > 0 {
            line.brought(arrived);
        }
        line.judge();
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
        line.brings(111 * MIB);
        assert_eq!(line.holds(), Some(111 * MIB / 2));
        line.brings(MIB);
        assert_eq!(line.holds(), None, "as long as ever");
    }

    #[test]
    fn what_says_nothing_of_the_line_changes_nothing() {
        let mut line = line();
        for _ in 0..9 {
            // None was begun; one was begun, and somebody closed it; a part was over because nothing of it had to be sent.
            line.ends(Ended::Broken);
            line.begins(56 * MIB);
            line.ends(Ended::Closed);
            assert!(!line.is_in_doubt());
            line.begins(56 * MIB);
            line.brings(0);
            line.ends(Ended::Broken);
            assert_eq!((line.judge(), line.holds()), (None, None));
            // One in between that was in vain.
            line.begins(56 * MIB);
            line.ends(Ended::Broken);
            assert_eq!((line.judge(), line.holds()), (None, None));
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
                    line.begins(1 + rng.below(before.min(56 * MIB)));
                }
                if is_begun && early {
                    line.brings(rng.below(9 * MIB));
                }
                line.ends(if is_closed { Ended::Closed } else { Ended::Broken });
                if is_begun && late {
                    line.brought(rng.below(9 * MIB));
                }
                let shorter = line.judge();
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
