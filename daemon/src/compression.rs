//! How hard to compress, when nobody has said: as hard as costs no time.
//!
//! Where the encoders are what a sender waits for, less work per byte sends more; where the line is, there is time for more. Regions
//! say which of the two it was. What is neither (a small cut is read, encoded and gone before anybody waits) changes nothing.
//!
//! It never goes beyond where it begins: a line also looks slow when a gateway on the same processors has none left, and more
//! work then made a first sync a tenth slower.

use farside_layer::Compression;

/// From fast to thorough, where it begins. Faster ones hardly save anything, and slower ones gain little on what disks hold.
const LEVELS: [i32; 5] = [-6, -4, -2, -1, 1];
/// So many regions in a row have to agree before something changes.
const AGREED: i32 = 4;

/// One sender's choice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice {
    /// The configuration's.
    Fixed(Compression),
    /// Its own.
    Auto {
        /// Index into the levels.
        at: usize,
        /// Regions in a row that wanted more (positive) or less (negative).
        votes: i32,
    },
}

/// What a sender waited for before a region entered its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waited {
    /// The connection took nothing more.
    pub(crate) for_line: bool,
    /// Regions stood in line for an encoder.
    pub(crate) for_encoders: bool,
}

impl Choice {
    pub(crate) fn auto() -> Self {
        Self::Auto { at: LEVELS.len() - 1, votes: 0 }
    }

    pub(crate) fn now(&self) -> Compression {
        match self {
            Self::Fixed(compression) => *compression,
            Self::Auto { at, .. } => Compression::Zstd(LEVELS[*at]),
        }
    }

    pub(crate) fn region(&mut self, waited: Waited) {
        let Self::Auto { at, votes } = self else { return };
        *votes = match (waited.for_line, waited.for_encoders) {
            (true, false) => (*votes).max(0) + 1,
            (false, true) => (*votes).min(0) - 1,
            _ => 0,
        };
        if *votes >= AGREED {
            (*at, *votes) = ((*at + 1).min(LEVELS.len() - 1), 0);
        } else if *votes <= -AGREED {
            (*at, *votes) = (at.saturating_sub(1), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Waited = Waited { for_line: true, for_encoders: false };
    const ENCODERS: Waited = Waited { for_line: false, for_encoders: true };

    fn after(waits: impl IntoIterator<Item = Waited>) -> Compression {
        let mut choice = Choice::auto();
        waits.into_iter().for_each(|waited| choice.region(waited));
        choice.now()
    }

    #[test]
    fn slow_encoders_get_less_work_and_a_slow_line_gives_it_back() {
        assert_eq!(after([]), Compression::Zstd(1));
        assert_eq!(after([LINE; 1000]), Compression::Zstd(1));
        assert_eq!(after([ENCODERS; 1000]), Compression::Zstd(-6));
        assert_eq!(after([[ENCODERS; 1000], [LINE; 1000]].concat()), Compression::Zstd(1));
    }

    #[test]
    fn nothing_changes_where_nobody_waits_or_they_take_turns() {
        assert_eq!(after([Waited::default(); 1000]), Compression::Zstd(1));
        assert_eq!(after([Waited { for_line: true, for_encoders: true }; 1000]), Compression::Zstd(1));
        assert_eq!(after([[LINE, ENCODERS]; 500].concat()), Compression::Zstd(1));
        assert_eq!(after([[LINE, LINE, LINE, ENCODERS]; 250].concat()), Compression::Zstd(1));
    }

    #[test]
    fn what_the_configuration_says_stays() {
        let mut choice = Choice::Fixed(Compression::Off);
        (0..1000).for_each(|_| choice.region(ENCODERS));
        assert_eq!(choice.now(), Compression::Off);
    }
}
