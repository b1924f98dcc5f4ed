//! What is true: every version that every sector ever had, and which epoch each belongs to. The judges compare the product
//! with this and never with the product's own opinion.
//!
//! Kept per volume: for each sector its versions in the order in which they landed. An attach begins at an index; a power
//! cut that brings an older version back is one more version. Values are unique per host write (zeroes apart), so the model
//! image of a cut is: per sector the last version of that attach whose epoch is not after the cut, else what was there when
//! the attach began.

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::EpochInfo;

/// Content of a sector.
pub type Value = [u8; 16];

/// What a published layer says about a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Published {
    /// Nobody ever published it.
    Absent,
    /// This.
    Value(Value),
    /// The source could not read it.
    Unreadable,
}

/// One attach of the source, counted over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attach(pub u64);

/// One version of one sector.
#[derive(Clone, Debug)]
pub struct Version {
    /// Content.
    pub value: Value,
    /// The epoch that the write was marked in; 0 for what was there at attach.
    pub epoch: u64,
    /// When it landed, virtual microseconds.
    pub at_us: u64,
}

/// A switch of a group.
#[derive(Clone, Debug)]
pub struct Cut {
    /// In which attach.
    pub attach: Attach,
    /// The epoch it froze.
    pub epoch: u64,
    /// When the counter moved, on the source's monotonic clock.
    pub at_ns: u64,
    /// The volumes that took part in a cut; empty for a pass.
    pub members: BTreeSet<usize>,
}

/// A host write on its way, and what became of it.
#[derive(Clone, Debug)]
pub struct WriteFact {
    /// Volume.
    pub volume: usize,
    /// Sectors.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Largest epoch of a write that had been acknowledged when this was issued.
    pub floor: u64,
    /// Epoch it was marked in, once it was.
    pub epoch: Option<u64>,
    /// A piece of it is past its mark and its I/O has not ended.
    pub under_way: bool,
    /// When it was issued.
    pub issued_us: u64,
    /// When it was answered.
    pub acked_us: Option<u64>,
    /// It was answered, and had succeeded.
    pub is_done: bool,
}

#[derive(Debug)]
struct VolumeHistory {
    sectors: Vec<Vec<Version>>,
    /// Per attach, how many sectors the volume had, and the index of its first version in each.
    starts: Vec<(Attach, usize, Vec<usize>)>,
}

/// See the head of the file.
#[derive(Debug)]
pub struct Oracle {
    volumes: Vec<VolumeHistory>,
    cuts: Vec<Cut>,
    writes: BTreeMap<u64, WriteFact>,
    attach: Attach,
    acked_epoch: u64,
}

impl Oracle {
    /// Volumes of so many sectors each, all zeroes.
    pub fn new(sectors: &[usize]) -> Self {
        let zero = Version { value: [0; 16], epoch: 0, at_us: 0 };
        let volumes =
            sectors.iter().map(|&n| VolumeHistory { sectors: vec![vec![zero.clone()]; n], starts: Vec::new() }).collect();
        Self { volumes, cuts: Vec::new(), writes: BTreeMap::new(), attach: Attach(0), acked_epoch: 0 }
    }

    /// The source begins a new life; `images` are what its disks hold.
    pub fn attached(&mut self, images: &[Vec<Value>], now_us: u64) -> Attach {
        self.attach = Attach(self.attach.0 + 1);
        self.acked_epoch = 0;
        self.writes.clear();
        for (history, image) in self.volumes.iter_mut().zip(images) {
            for (versions, value) in history.sectors.iter_mut().zip(image) {
                versions.push(Version { value: *value, epoch: 0, at_us: now_us });
            }
            history.starts.push((self.attach, image.len(), history.sectors.iter().map(|v| v.len() - 1).collect()));
        }
        self.attach
    }

    /// The life of the source that is now, or was last.
    pub fn attach(&self) -> Attach {
        self.attach
    }

    /// The host hands a write to the tap.
    pub fn issued(&mut self, tag: u64, volume: usize, first: usize, count: usize, now_us: u64) {
        let fact = WriteFact {
            volume,
            first,
            count,
            floor: self.acked_epoch,
            epoch: None,
            under_way: false,
            issued_us: now_us,
            acked_us: None,
            is_done: false,
        };
        self.writes.insert(tag, fact);
    }

    /// A piece of it was marked.
    ///
    /// # Errors
    /// L3: when a write that had been acknowledged before this one was issued is in a later epoch.
    pub fn marked(&mut self, tag: u64, epoch: u64) -> Result<(), String> {
        let Some(fact) = self.writes.get_mut(&tag) else { return Ok(()) };
        fact.epoch = Some(epoch);
        fact.under_way = true;
        if epoch < fact.floor {
            return Err(format!(
                "L3: write {tag} was issued after one of epoch {} was acknowledged, and was marked in epoch {epoch}",
                fact.floor
            ));
        }
        Ok(())
    }

    /// The I/O of its present piece has ended.
    pub fn piece_done(&mut self, tag: u64) {
        if let Some(fact) = self.writes.get_mut(&tag) {
            fact.under_way = false;
        }
    }

    /// A write has succeeded, as the host is told now.
    pub fn succeeded(&mut self, tag: u64) {
        if let Some(fact) = self.writes.get_mut(&tag) {
            fact.is_done = true;
        }
    }

    /// The host has its answer. An acknowledged write's last epoch is a floor for all that come after.
    pub fn acked(&mut self, tag: u64, first_epoch: Option<u64>, now_us: u64) {
        if let Some(fact) = self.writes.get_mut(&tag) {
            fact.acked_us = Some(now_us);
        }
        if let Some(epoch) = first_epoch {
            self.acked_epoch = self.acked_epoch.max(epoch);
        }
    }

    /// A write's sector landed on the disk.
    pub fn landed(&mut self, volume: usize, sector: usize, value: Value, epoch: u64, now_us: u64) {
        self.volumes[volume].sectors[sector].push(Version { value, epoch, at_us: now_us });
    }

    /// Something changed a sector behind the tap: from now on that is its content, and nobody could know.
    pub fn tampered(&mut self, volume: usize, sector: usize, value: Value) {
        self.volumes[volume].sectors[sector].push(Version { value, epoch: 0, at_us: u64::MAX });
    }

    /// Whether that happened to it last.
    pub fn is_tampered(&self, volume: usize, sector: usize) -> bool {
        self.volumes[volume].sectors[sector].last().is_some_and(|v| v.at_us == u64::MAX)
    }

    /// Whether another write of that sector has no answer yet.
    pub fn busy(&self, volume: usize, sector: usize, but: u64) -> bool {
        self.writes.iter().any(|(tag, w)| {
            *tag != but && w.volume == volume && w.acked_us.is_none() && (w.first..w.first + w.count).contains(&sector)
        })
    }

    /// What is known of a write.
    pub fn fact(&self, tag: u64) -> Option<&WriteFact> {
        self.writes.get(&tag)
    }

    /// The counter moved.
    pub fn switched(&mut self, cut: Cut) {
        self.cuts.push(cut);
    }

    /// Switches that were cuts.
    pub fn cuts_tried(&self) -> usize {
        self.cuts.iter().filter(|c| !c.members.is_empty()).count()
    }

    /// The one switch in the interval that a record names, of any of these attaches.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn cut_between(&self, epoch: &EpochInfo) -> Result<&Cut, String> {
        let (before_ns, after_ns) = (epoch.mono_before_ns, epoch.mono_after_ns);
        let mut found = self.cuts.iter().filter(|c| (before_ns..=after_ns).contains(&c.at_ns));
        match (found.next(), found.next()) {
            (Some(cut), None) => Ok(cut),
            (None, _) => Err(format!("the point says it was cut between {before_ns} and {after_ns} ns, but no switch was then")),
            (Some(_), Some(_)) => Err(format!("more than one switch fits {before_ns}..{after_ns} ns")),
        }
    }

    /// The model image of a cut, sector by sector.
    ///
    /// # Panics
    /// When there was no such attach.
    pub fn image(&self, volume: usize, attach: Attach, epoch: u64) -> Vec<Value> {
        let history = &self.volumes[volume];
        let at = history.starts.iter().position(|s| s.0 == attach).expect("a cut belongs to an attach");
        let (_, sectors, start) = &history.starts[at];
        let end = history.starts.get(at + 1).map(|s| &s.2);
        (0..*sectors)
            .map(|s| {
                let versions = &history.sectors[s][start[s]..end.map_or(history.sectors[s].len(), |e| e[s])];
                versions.iter().rev().find(|v| v.epoch <= epoch).unwrap_or(&versions[0]).value
            })
            .collect()
    }

    /// Writes of this life of which a piece was marked in an epoch up to this one, and has not ended.
    pub fn in_flight_upto(&self, volume: usize, epoch: u64) -> Vec<u64> {
        self.writes
            .iter()
            .filter(|(_, w)| w.volume == volume && w.under_way && w.epoch.is_some_and(|e| e <= epoch))
            .map(|(tag, _)| *tag)
            .collect()
    }

    /// Whether an image holds everything that had been acknowledged by a moment: for each sector, a version that is not
    /// older than the newest one that had been acknowledged then. Names the first sector that does not.
    ///
    /// # Errors
    /// L10, with the sector.
    pub fn holds_by(&self, volume: usize, image: &[Published], by_us: u64) -> Result<(), String> {
        // Looked for once: there are many writes, and few of them are under way.
        let is_unsettled = |w: &&WriteFact| w.volume == volume && w.acked_us.is_none_or(|t| t > by_us);
        let unsettled: Vec<&WriteFact> = self.writes.values().filter(is_unsettled).collect();
        for (s, versions) in self.volumes[volume].sectors.iter().enumerate() {
            // What landed by then and is covered by an acknowledgement by then: unacknowledged writes may be missing.
            let settled = versions.iter().rposition(|v| v.at_us <= by_us && is_settled(&unsettled, s, v)).unwrap_or(0);
            let fine = match image[s] {
                Published::Absent => versions[settled..].iter().any(|v| v.value == [0; 16]),
                Published::Unreadable => true,
                Published::Value(got) => versions[settled..].iter().any(|v| v.value == got),
            };
            if !fine {
                return Err(format!("sector {s} holds {:?}, but {:?} had been acknowledged", image[s], versions[settled].value));
            }
        }
        Ok(())
    }
}

/// A sector's content for a host write: who wrote it and where, so that a trace can be read.
pub fn value(tag: u64, volume: usize, sector: usize) -> Value {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&tag.to_le_bytes());
    out[8] = volume as u8 + 1;
    out[9..13].copy_from_slice(&(sector as u32).to_le_bytes());
    out[13..].copy_from_slice(b"far");
    out
}

/// `w17` for a value of host write 17, `0` for zeroes.
pub fn show(value: &Value) -> String {
    if *value == [0; 16] {
        return "0".to_owned();
    }
    let tag = u64::from_le_bytes(value[..8].try_into().expect("eight bytes"));
    if value[13..] == *b"far" { format!("w{tag}") } else { format!("{value:02x?}") }
}

/// A version of a write that was still unacknowledged does not count. Writes of earlier lives are settled by the attach.
fn is_settled(unsettled: &[&WriteFact], sector: usize, version: &Version) -> bool {
    let is_of = |w: &&&WriteFact| (w.first..w.first + w.count).contains(&sector) && w.issued_us <= version.at_us;
    !unsettled.iter().filter(is_of).any(|w| w.epoch == Some(version.epoch))
}
