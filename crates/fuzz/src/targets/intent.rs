//! What lies beside a volume at the host: pages of the intent map, its header, the masks of a clean stop; and the sets and
//! shapes that records and messages carry.

use farside_region::intent::{
    BackingIdentity, Header, HeaderState, INTENT_BLOCK_BYTES, IntentLayout, Owed, OwnFile, Page, PageBits, PageIndex,
    UncheckedOwed, recover_header, recover_page,
};
use farside_region::{
    BootId, Geometry, GranuleIndex, GranuleRun, GranuleSet, LedgerPosition, MapId, PackedRegions, RecordDigest, RegionIndex,
    RegionRange, RegionSet, Slot, Term,
};

use super::{no_seal, reads_back, small};
use crate::engine::{Outcome, Target, magnitude};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "intent-page",
        what: "two slots of a page of the intent map, from the host's disk",
        seeds: page_seeds,
        seal: |bytes| seal_blocks(bytes),
        words: &[b"FARSpage", b"FARShead"],
        bytes_max: 2 * INTENT_BLOCK_BYTES,
        memory: small(2),
        decode: page,
    },
    Target {
        name: "intent-header",
        what: "two slots of an intent map's header, from the host's disk",
        seeds: header_seeds,
        seal: |bytes| seal_blocks(bytes),
        words: &[b"FARShead", b"FARSpage"],
        bytes_max: 2 * INTENT_BLOCK_BYTES,
        memory: small(2),
        decode: header,
    },
    Target {
        name: "owed",
        what: "the masks of a clean stop, from the host's disk",
        seeds: owed_seeds,
        seal: |bytes| seal_owed(bytes),
        words: &[b"FARSowed"],
        bytes_max: 8 << 10,
        memory: small(16),
        decode: owed,
    },
    Target {
        name: "region-sets",
        what: "sets of regions and shapes of volumes, in records, messages and caches",
        seeds: set_seeds,
        seal: no_seal,
        words: &[],
        bytes_max: 4 << 10,
        memory: small(64),
        decode: sets,
    },
];

const MAP: MapId = MapId([0xa5; 16]);

/// 100 granules of 64 bytes; 7 regions of 16, the last one short.
fn geometry() -> Geometry {
    Geometry::with_shape(100 * 64, 6, 4).expect("a geometry")
}

fn layout() -> IntentLayout {
    IntentLayout::with_page_regions(&geometry(), 3)
}

/// Both checksums; a block that is cut off has none.
fn seal_blocks(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(INTENT_BLOCK_BYTES) {
        // A slot never written stays one.
        if block.iter().any(|b| *b != 0) {
            seal(block);
        }
    }
}

fn seal(bytes: &mut [u8]) {
    bytes[12..16].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
}

fn seal_owed(bytes: &mut [u8]) {
    if bytes.len() >= 64 {
        seal(bytes);
    }
}

fn two_slots(bytes: &[u8]) -> [&[u8]; 2] {
    let (a, b) = bytes.split_at(bytes.len().min(INTENT_BLOCK_BYTES));
    [a, b]
}

fn page_seeds() -> Vec<Vec<u8>> {
    let page = |seq, set: &[u32]| {
        let mut bits = PageBits::clear();
        set.iter().for_each(|i| bits.set(*i, true));
        Page { map: MAP, index: PageIndex(1), seq, bits }.encode(&layout()).0
    };
    vec![[page(4, &[0]), page(5, &[1, 2])].concat(), [page(1, &[]), [0; INTENT_BLOCK_BYTES]].concat()]
}

fn page(bytes: &[u8]) -> Outcome {
    let slots = two_slots(bytes);
    let found = recover_page(MAP, &layout(), PageIndex(1), slots);
    let regions = layout().page_run(PageIndex(1)).count;
    assert!(found.page.bits.iter().all(|i| u64::from(i) < regions), "a bit beyond the page's regions");
    match found.newest {
        None => {
            assert_eq!(found.page.bits.count(), regions, "two bad slots and yet something is clean");
            Outcome::refused("no slot is valid")
        }
        Some(slot) => {
            let encoded = found.page.encode(&layout());
            reads_back(&found.page, || Some(recover_page(MAP, &layout(), PageIndex(1), [&encoded.0, &[]]).page));
            Outcome::accepted((slot, found.page.bits.count()))
        }
    }
}

fn sample_header(state: HeaderState) -> Header {
    Header {
        map: MAP,
        seq: 9,
        state,
        term: Some(Term(3)),
        position: Some(LedgerPosition { slot: Slot(7), digest: RecordDigest([0xd1; 32]) }),
        volume_bytes: geometry().volume_bytes(),
        backing: Some(BackingIdentity { inode: 11, size: 6400, mtime: (-2, 5), ctime: (1 << 33, 6) }),
        flush_failed: Some(BootId([0xb0; 16])),
        file: Some(OwnFile { inode: 0xf1, born_ns: Some(0xf2) }),
        page_regions: 3,
    }
}

fn header_seeds() -> Vec<Vec<u8>> {
    let full = sample_header(HeaderState::Clean).encode().0;
    let first = Header::new(MAP, &geometry(), &layout()).encode().0;
    vec![[full, first].concat(), [first, [0; INTENT_BLOCK_BYTES]].concat()]
}

fn header(bytes: &[u8]) -> Outcome {
    match recover_header(two_slots(bytes)) {
        Err(error) => Outcome::refused(error),
        Ok(None) => Outcome::refused("no slot is valid"),
        Ok(Some((header, slot))) => {
            let encoded = header.encode();
            reads_back(&header, || Some(recover_header([&encoded.0, &[]]).ok()??.0));
            let there = [
                header.term.is_some(),
                header.position.is_some(),
                header.backing.is_some(),
                header.flush_failed.is_some(),
                header.file.is_some(),
            ];
            Outcome::accepted((slot, header.state, there))
        }
    }
}

fn owed_seeds() -> Vec<Vec<u8>> {
    let mut set = GranuleSet::new();
    set.insert_whole(RegionRange { start: RegionIndex(1), count: 2 });
    set.insert_run(&geometry(), GranuleRun { start: GranuleIndex(64), count: 3 });
    set.insert_run(&geometry(), GranuleRun { start: GranuleIndex(97), count: 3 });
    vec![Owed { map: MAP, header_seq: 9, set }.encode(), Owed { map: MAP, header_seq: 9, set: GranuleSet::new() }.encode()]
}

fn owed(bytes: &[u8]) -> Outcome {
    let header = sample_header(HeaderState::Clean);
    match UncheckedOwed(bytes).check(&header, &geometry()) {
        Err(error) => Outcome::refused(error),
        Ok(owed) => {
            let regions = owed.set.regions();
            assert!(regions.last().is_none_or(|r| r.0 < geometry().region_count()), "a region beyond the volume");
            assert!(owed.set.granule_count(&geometry()) <= geometry().granule_count(), "more granules than there are");
            reads_back(&owed, || UncheckedOwed(&owed.encode()).check(&header, &geometry()).ok());
            Outcome::accepted((regions.range_count(), regions.len()))
        }
    }
}

fn set_seeds() -> Vec<Vec<u8>> {
    let set: RegionSet = [0, 1, 2, 9, 40, 41, 5_000].into_iter().map(RegionIndex).collect();
    let part = |bytes: Vec<u8>| [(bytes.len() as u16).to_le_bytes().to_vec(), bytes].concat();
    let bytes = |value: Result<Vec<u8>, postcard::Error>| part(value.expect("plain data"));
    vec![
        [
            bytes(postcard::to_allocvec(&set)),
            bytes(postcard::to_allocvec(&PackedRegions::from(&set))),
            bytes(postcard::to_allocvec(&geometry())),
        ]
        .concat(),
    ]
}

fn sets(bytes: &[u8]) -> Outcome {
    let mut rest = bytes;
    let mut shape = Vec::new();
    for which in 0..3 {
        let Some((length, tail)) = rest.split_first_chunk::<2>() else { return Outcome::refused("cut off") };
        let (part, tail) = tail.split_at(tail.len().min(u16::from_le_bytes(*length).into()));
        rest = tail;
        match which {
            0 => {
                let Ok(set) = postcard::from_bytes::<RegionSet>(part) else { return Outcome::refused("no set") };
                assert!(set.ranges().all(|r| r.count > 0), "an empty range");
                assert_eq!(set.range_count() == 0, set.is_empty());
                assert_eq!(set.ranges().map(|r| r.count).sum::<u64>(), set.len());
                let packed = PackedRegions::from(&set);
                assert_eq!(packed.regions(), set, "packing changed it");
                reads_back(&set, || postcard::from_bytes(&postcard::to_allocvec(&set).ok()?).ok());
                shape.push(set.range_count());
            }
            1 => {
                let Ok(packed) = postcard::from_bytes::<PackedRegions>(part) else { return Outcome::refused("nothing packed") };
                let (ranges, hull) = (packed.ranges().count(), packed.hull());
                assert!(hull.range_count() <= 1 && packed.ranges().all(|r| r.count == 0 || hull.contains(r.start)));
                assert!(packed.regions().len() <= hull.regions().len());
                shape.push(ranges);
            }
            _ => {
                let Ok(geometry) = postcard::from_bytes::<Geometry>(part) else { return Outcome::refused("no shape") };
                let last = RegionIndex(geometry.region_count() - 1);
                let run = geometry.region_run(last);
                assert_eq!(run.end().0, geometry.granule_count(), "the last region does not end with the volume");
                assert_eq!(geometry.bytes_of(geometry.whole()).len, geometry.volume_bytes());
                reads_back(&geometry, || postcard::from_bytes(&postcard::to_allocvec(&geometry).ok()?).ok());
                shape.push(magnitude(geometry.region_count()) as usize);
            }
        }
    }
    Outcome::accepted(shape.into_iter().map(|n| n.min(8)).collect::<Vec<_>>())
}
