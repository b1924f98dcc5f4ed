//! What the protected host does: writes of all kinds and sizes, aligned to nothing but the sector, over region edges, on
//! several queues, with flushes, FUA, discards and zeroes, in bursts and pauses.

use crate::oracle::{Value, value};
use crate::rng::Rng;

/// What a request asks for, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOp {
    /// Content, unique for this request.
    Write { first: usize, count: usize, fua: bool },
    /// Content that this part of the disk had before (so that a comparison may find it equal).
    Rewrite { first: usize, count: usize },
    /// Zeroes; `no_hole` wants them allocated.
    Zero { first: usize, count: usize, fua: bool, no_hole: bool },
    /// A discard. Reads back as zeroes.
    Trim { first: usize, count: usize },
    /// Everything acknowledged before it must survive a power cut.
    Flush,
    /// A read.
    Read { first: usize, count: usize },
}

impl HostOp {
    /// The sectors it changes.
    pub fn changes(&self) -> Option<(usize, usize)> {
        match *self {
            Self::Write { first, count, .. }
            | Self::Rewrite { first, count }
            | Self::Zero { first, count, .. }
            | Self::Trim { first, count } => Some((first, count)),
            Self::Flush | Self::Read { .. } => None,
        }
    }
}

/// The mood of the host, redrawn now and then.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Sectors of each volume.
    pub sectors: Vec<usize>,
    /// Sectors in a region.
    pub region: usize,
    /// How likely a step is a host operation.
    pub rate: f64,
    /// Requests in flight per volume at most.
    pub depth: usize,
    trims: f64,
    flushes: f64,
    /// Most writes go below this sector.
    hot: usize,
    longest: usize,
}

impl Workload {
    /// A workload for volumes of these sizes.
    pub fn new(sectors: Vec<usize>, region: usize, spread: bool, rng: &mut Rng) -> Self {
        let smallest = *sectors.iter().min().expect("there are volumes");
        Self {
            region,
            rate: 0.0,
            depth: rng.pick(&[2, 6, 12]),
            trims: rng.pick(&[0.03, 0.12, 0.4]),
            flushes: rng.pick(&[0.02, 0.12]),
            hot: if spread { smallest } else { rng.pick(&[3, region + 2, smallest]).min(smallest) },
            longest: rng.pick(&[2, 6, region * 2]),
            sectors,
        }
    }

    /// Bursts, idle times.
    pub fn churn(&mut self, rng: &mut Rng) {
        self.rate = rng.pick(&[0.0, 0.02, 0.06, 0.15, 0.3]);
    }

    /// The next request: volume and operation.
    pub fn next(&self, rng: &mut Rng) -> (usize, HostOp) {
        let volume = rng.below(self.sectors.len());
        let sectors = self.sectors[volume];
        let x = rng.unit();
        if x < self.flushes {
            return (volume, HostOp::Flush);
        }
        let count = (1 + rng.below(self.longest)).min(sectors);
        let mut first = rng.below(sectors - count + 1);
        if self.hot < sectors && rng.chance(0.7) {
            first = first.min(rng.below(self.hot));
        }
        if x < self.flushes + 0.05 {
            return (volume, HostOp::Read { first, count });
        }
        if x < self.flushes + 0.05 + self.trims {
            let (first, count) = if rng.chance(0.7) {
                // Whole regions: what COLD_ZERO and "all granules" are about.
                let regions = sectors / self.region;
                let r = rng.below(regions);
                (r * self.region, self.region * (1 + rng.below((regions - r).min(2))))
            } else {
                (first, count)
            };
            let fua = rng.chance(0.1);
            let op = match rng.below(3) {
                0 => HostOp::Trim { first, count },
                1 => HostOp::Zero { first, count, fua, no_hole: false },
                _ => HostOp::Zero { first, count, fua, no_hole: rng.chance(0.5) },
            };
            return (volume, op);
        }
        if rng.chance(0.06) {
            return (volume, HostOp::Rewrite { first, count });
        }
        (volume, HostOp::Write { first, count, fua: rng.chance(0.06) })
    }

    /// The bytes of a write.
    pub fn content(tag: u64, volume: usize, first: usize, count: usize) -> Vec<u8> {
        (first..first + count).flat_map(|s| -> Value { value(tag, volume, s) }).collect()
    }
}
