//! What objects are called (`docs/formats/store.md`). Pure.

use data_encoding::HEXLOWER;
use farside_ledger::PackId;
use farside_region::{LayerKey, Name, Seq, Slot, Term};

use crate::backend::ObjectName;
use crate::liveness::PartName;

/// Slots per folder of a ledger.
pub const SLOTS_PER_FOLDER: u64 = 4096;

/// Slots that one checkpoint of a ledger covers.
pub const CHECKPOINT_SLOTS: u64 = 4096;

/// The description of the store.
pub(crate) fn store_description() -> ObjectName {
    checked("farside-store.json".to_owned())
}

/// In a staging directory: whose it is.
pub(crate) fn staging_description() -> ObjectName {
    checked("farside-staging.json".to_owned())
}

/// In a staging directory: the service that was found to create objects only where there is none.
pub(crate) fn staging_proof() -> ObjectName {
    checked("farside-proof.json".to_owned())
}

/// One object of a probe. `of`: 32 hex digits.
pub(crate) fn probe(of: &str, round: u32) -> ObjectName {
    checked(format!("farside-probe/{of}/{round}"))
}

/// Whether that is what an object is.
pub(crate) fn is_probe(name: &ObjectName) -> bool {
    let of_probe = |rest: &str| {
        let (of, round) = rest.split_once('/')?;
        let is_hex = of.len() == 32 && of.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        number(round).filter(|_| is_hex)
    };
    name.as_str().strip_prefix("farside-probe/").and_then(of_probe).is_some()
}

/// The folder of all groups.
pub(crate) fn groups() -> ObjectName {
    checked("groups".to_owned())
}

/// The names of one group's objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupNames {
    /// The source.
    pub source: Name,
    /// The group.
    pub group: Name,
}

/// What an object in a group's folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupObject {
    /// `group.json`.
    Description,
    /// A record.
    Record(Slot),
    /// What replaces a torn one.
    RecordVoid(Slot),
    /// The root of a checkpoint.
    Checkpoint(u64),
    /// The state of a checkpoint.
    CheckpointState(u64),
    /// The digests of the records that a checkpoint covers.
    CheckpointDigests(u64),
    /// A part, of a volume of that name.
    Segment {
        /// The volume's name.
        volume: Name,
        /// The term.
        term: Term,
        /// The sequence number.
        seq: Seq,
        /// The part.
        number: u32,
    },
    /// A wrapped key; its number.
    Key(u64),
    /// Several parts, end to end.
    Pack(PackId),
    /// What a reader holds a point by; its nonce.
    Lease([u8; 16]),
    /// What tells a collector the time; its nonce.
    LeaseClock([u8; 16]),
}

impl GroupNames {
    /// Those of a group of a source.
    pub fn new(source: Name, group: Name) -> Self {
        Self { source, group }
    }

    /// `groups/<source>/<group>`.
    pub fn folder(&self) -> ObjectName {
        checked(format!("groups/{}/{}", self.source, self.group))
    }

    /// Who this group is.
    pub fn description(&self) -> ObjectName {
        self.below("group.json")
    }

    /// All records.
    pub fn ledger(&self) -> ObjectName {
        self.below("ledger")
    }

    /// Those of a folder of it.
    pub(crate) fn ledger_folder(&self, folder: u64) -> ObjectName {
        self.below(&format!("ledger/{folder}"))
    }

    /// One record.
    pub fn record(&self, slot: Slot) -> ObjectName {
        self.below(&format!("ledger/{}/{slot}", slot.0 / SLOTS_PER_FOLDER))
    }

    /// What replaces a torn record.
    pub fn record_void(&self, slot: Slot) -> ObjectName {
        self.below(&format!("ledger/{}/{slot}.void", slot.0 / SLOTS_PER_FOLDER))
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> ObjectName {
        self.below("checkpoint")
    }

    /// The root of one.
    pub fn checkpoint(&self, number: u64) -> ObjectName {
        self.below(&format!("checkpoint/{number}"))
    }

    /// Its state.
    pub fn checkpoint_state(&self, number: u64) -> ObjectName {
        self.below(&format!("checkpoint/{number}.state"))
    }

    /// The digests of the records that it covers.
    pub fn checkpoint_digests(&self, number: u64) -> ObjectName {
        self.below(&format!("checkpoint/{number}.digests"))
    }

    /// All segments.
    pub fn segments(&self) -> ObjectName {
        self.below("segments")
    }

    /// Those of a volume of that name.
    pub(crate) fn segments_of(&self, volume: &Name) -> ObjectName {
        self.below(&format!("segments/{volume}"))
    }

    pub(crate) fn segments_of_term(&self, volume: &Name, term: Term) -> ObjectName {
        self.below(&format!("segments/{volume}/{term}"))
    }

    /// One part of a layer of a volume of that name.
    pub fn segment(&self, volume: &Name, part: &PartName) -> ObjectName {
        self.below(&format!("segments/{}", part_path(volume, part)))
    }

    /// All wrapped keys.
    pub fn keys(&self) -> ObjectName {
        self.below("keys")
    }

    /// One wrapped key.
    pub fn key(&self, number: u64) -> ObjectName {
        self.below(&format!("keys/{number}"))
    }

    /// All packs.
    pub fn packs(&self) -> ObjectName {
        self.below("packs")
    }

    /// One pack. They are listed by the slots for which they were put.
    pub fn pack(&self, id: PackId) -> ObjectName {
        self.below(&format!("packs/{}", HEXLOWER.encode(&id.0)))
    }

    /// All leases.
    pub fn leases(&self) -> ObjectName {
        self.below("leases")
    }

    /// One lease. `nonce`: random, never used again.
    pub fn lease(&self, nonce: [u8; 16]) -> ObjectName {
        self.below(&format!("leases/{}", HEXLOWER.encode(&nonce)))
    }

    /// What is put beside the leases to learn what time it is there. `nonce`: as that of a lease.
    pub fn lease_clock(&self, nonce: [u8; 16]) -> ObjectName {
        self.below(&format!("leases/{}.now", HEXLOWER.encode(&nonce)))
    }

    /// What an object is, from its name; `None` if it is none of ours.
    pub fn parse(&self, name: &ObjectName) -> Option<GroupObject> {
        let rest = name.as_str().strip_prefix(self.folder().as_str())?.strip_prefix('/')?;
        if rest == "group.json" {
            return Some(GroupObject::Description);
        }
        if let Some(rest) = rest.strip_prefix("ledger/") {
            let (folder, file) = rest.split_once('/')?;
            let (file, void) = file.strip_suffix(".void").map_or((file, false), |f| (f, true));
            let slot = number(file)?;
            if number(folder)? != slot / SLOTS_PER_FOLDER {
                return None;
            }
            return Some(if void { GroupObject::RecordVoid(Slot(slot)) } else { GroupObject::Record(Slot(slot)) });
        }
        if let Some(rest) = rest.strip_prefix("checkpoint/") {
            return Some(match rest.split_once('.') {
                None => GroupObject::Checkpoint(number(rest)?),
                Some((at, "state")) => GroupObject::CheckpointState(number(at)?),
                Some((at, "digests")) => GroupObject::CheckpointDigests(number(at)?),
                Some(_) => return None,
            });
        }
        if let Some(rest) = rest.strip_prefix("keys/") {
            return number(rest).map(GroupObject::Key);
        }
        if let Some(rest) = rest.strip_prefix("packs/") {
            return Some(GroupObject::Pack(PackId(HEXLOWER.decode(rest.as_bytes()).ok()?.try_into().ok()?)));
        }
        if let Some(rest) = rest.strip_prefix("leases/") {
            let clock = rest.strip_suffix(".now");
            let nonce = HEXLOWER.decode(clock.unwrap_or(rest).as_bytes()).ok()?.try_into().ok()?;
            return Some(if clock.is_some() { GroupObject::LeaseClock(nonce) } else { GroupObject::Lease(nonce) });
        }
        let (volume, term, seq, number) = parse_part_path(rest.strip_prefix("segments/")?)?;
        Some(GroupObject::Segment { volume, term, seq, number })
    }

    fn below(&self, rest: &str) -> ObjectName {
        checked(format!("groups/{}/{}/{rest}", self.source, self.group))
    }
}

impl std::fmt::Display for GroupNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.source, self.group)
    }
}

/// `<volume>/<term>/<seq>.<part>`: below `segments`, and below a group's folder in landing.
pub(crate) fn part_path(volume: &Name, part: &PartName) -> String {
    let LayerKey { term, seq, .. } = part.layer;
    format!("{volume}/{term}/{seq}.{}", part.number)
}

/// The inverse of [`part_path`].
pub(crate) fn parse_part_path(path: &str) -> Option<(Name, Term, Seq, u32)> {
    let mut pieces = path.split('/');
    let volume = pieces.next()?.parse().ok()?;
    let term = Term(number(pieces.next()?)?);
    let (seq, part) = pieces.next()?.split_once('.')?;
    let (seq, part) = (Seq(number(seq)?), u32::try_from(number(part)?).ok()?);
    pieces.next().is_none().then_some((volume, term, seq, part))
}

/// `<volume>/<term>/<seq>.end`: what was said of a layer, below a group's folder in landing.
pub(crate) fn end_path(volume: &Name, layer: &LayerKey) -> String {
    format!("{volume}/{}/{}.end", layer.term, layer.seq)
}

/// The inverse of [`end_path`].
pub(crate) fn parse_end_path(path: &str) -> Option<(Name, Term, Seq)> {
    let (volume, rest) = path.split_once('/')?;
    let (term, seq) = rest.strip_suffix(".end")?.split_once('/')?;
    Some((volume.parse().ok()?, Term(number(term)?), Seq(number(seq)?)))
}

/// A decimal number as we write it: no sign, no leading zero.
fn number(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

fn checked(name: String) -> ObjectName {
    ObjectName::new(name).expect("names and numbers make object names")
}

#[cfg(test)]
mod tests {
    use farside_region::VolumeId;

    use super::*;

    #[test]
    fn every_name_is_read_back_as_what_it_is() {
        let names = GroupNames::new("host-1".parse().expect("name"), "db".parse().expect("name"));
        let volume: Name = "data.0".parse().expect("name");
        let layer = LayerKey { volume: VolumeId([1; 16]), term: Term(5000), seq: Seq(17) };
        let segment = names.segment(&volume, &PartName { layer, number: 3 });
        assert_eq!(segment.as_str(), "groups/host-1/db/segments/data.0/5000/17.3");
        assert_eq!(names.record(Slot(5000)).as_str(), "groups/host-1/db/ledger/1/5000");
        assert_eq!(names.record_void(Slot(0)).as_str(), "groups/host-1/db/ledger/0/0.void");
        let parsed = GroupObject::Segment { volume, term: Term(5000), seq: Seq(17), number: 3 };
        assert_eq!(names.parse(&segment), Some(parsed));
        assert_eq!(names.parse(&names.record(Slot(5000))), Some(GroupObject::Record(Slot(5000))));
        assert_eq!(names.parse(&names.record_void(Slot(9))), Some(GroupObject::RecordVoid(Slot(9))));
        assert_eq!(names.parse(&names.description()), Some(GroupObject::Description));
        assert_eq!(names.checkpoint(7).as_str(), "groups/host-1/db/checkpoint/7");
        assert_eq!(names.checkpoint_state(7).as_str(), "groups/host-1/db/checkpoint/7.state");
        assert_eq!(names.parse(&names.checkpoint(7)), Some(GroupObject::Checkpoint(7)));
        assert_eq!(names.parse(&names.checkpoint_state(0)), Some(GroupObject::CheckpointState(0)));
        assert_eq!(names.parse(&names.checkpoint_digests(12)), Some(GroupObject::CheckpointDigests(12)));
        assert_eq!(names.key(12).as_str(), "groups/host-1/db/keys/12");
        assert_eq!(names.parse(&names.key(12)), Some(GroupObject::Key(12)));
        assert_eq!(names.lease([0xab; 16]).as_str(), format!("groups/host-1/db/leases/{}", "ab".repeat(16)));
        assert_eq!(names.lease_clock([7; 16]).as_str(), format!("groups/host-1/db/leases/{}.now", "07".repeat(16)));
        assert_eq!(names.parse(&names.lease([0xab; 16])), Some(GroupObject::Lease([0xab; 16])));
        assert_eq!(names.parse(&names.lease_clock([7; 16])), Some(GroupObject::LeaseClock([7; 16])));
        let pack = PackId::new(Slot(0x1234), [0xcd; 8]);
        assert_eq!(names.pack(pack).as_str(), "groups/host-1/db/packs/0000000000001234cdcdcdcdcdcdcdcd");
        assert_eq!(names.parse(&names.pack(pack)), Some(GroupObject::Pack(pack)));
        assert_eq!(pack.slot(), Slot(0x1234));
        for stray in [
            "packs/0000000000001234CDCDCDCDCDCDCDCD",
            "packs/00",
            "packs/x/0000000000001234cdcdcdcdcdcdcdcd",
            "leases/ab",
            "leases/ABABABABABABABABABABABABABABABAB",
            "leases/abababababababababababababababab.then",
            "keys/01",
            "keys/1.json",
            "checkpoint/07",
            "checkpoint/x.state",
            "checkpoint/1/2",
            "ledger/0/5000",
            "ledger/0/05",
            "ledger/0/5x",
            "segments/v/1/2",
            "segments/v/1/2.3.4",
            "x",
        ] {
            assert_eq!(names.parse(&names.below(stray)), None, "{stray}");
        }
    }
}
