//! Segments, opened with the product's own reader: for the judges and for the receiver's index.

use std::rc::Rc;

use farside_layer::{Footer, FrameDecoder, PartId, PartVerifier, RunKind};
use farside_region::{Geometry, GranuleRun, LayerKey, Slot};
use farside_store::{GroupImage, Part, PartRuns};

use crate::oracle::Published;
use crate::world::{SegmentKey, World};

/// What a run of a part holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes.
    Data(Vec<u8>),
    /// Zeroes.
    Zero,
    /// Could not be read at the source.
    Unreadable,
}

/// A part, verified and unpacked.
pub type Unpacked = Rc<Vec<(GranuleRun, Content)>>;

/// Checks every digest of a part and unpacks it.
///
/// # Errors
/// What is wrong with it.
pub fn unpack(bytes: &[u8], key: LayerKey, part: u32, geometry: &Geometry, digest_key: &[u8; 32]) -> Result<Unpacked, String> {
    let mut verifier = PartVerifier::new(PartId { key, part, geometry: *geometry }, digest_key);
    verifier.feed(bytes).map_err(|e| e.to_string())?;
    verifier.finish().map_err(|e| e.to_string())?;
    let footer = Footer::from_tail(bytes, bytes.len() as u64).map_err(|e| e.to_string())?;
    let mut decoder = FrameDecoder::new(digest_key);
    let mut all = Vec::new();
    for frame in footer.frames() {
        let content = match frame.kind {
            RunKind::Zero => Content::Zero,
            RunKind::Unreadable => Content::Unreadable,
            RunKind::Data => {
                let at = frame.offset as usize;
                let mut out = Vec::new();
                let stored = &bytes[at..at + frame.stored_bytes as usize];
                decoder.decode(&footer, frame, stored, &mut out).map_err(|e| e.to_string())?;
                Content::Data(out)
            }
        };
        all.push((frame.run, content));
    }
    Ok(Rc::new(all))
}

/// The segment of a part, unpacked. The world remembers what it unpacked, never that the segment exists.
///
/// # Errors
/// When it is not in the store, or damaged.
pub fn segment(world: &World, key: LayerKey, part: u32) -> Result<Unpacked, String> {
    let volume = world.volume_of(key.volume).ok_or("a layer of a volume that does not exist")?;
    let name: SegmentKey = (volume, key.term.0, key.seq.0, part);
    let store = world.store.borrow();
    let bytes = store
        .segment(&name)
        .ok_or_else(|| format!("segment {}.{}.{part} of v{volume} is not in the store", key.term, key.seq))?;
    if let Some(known) = world.unpacked.borrow().get(&name) {
        return Ok(known.clone());
    }
    let shape = world.shape(volume, key.term);
    let unpacked = unpack(bytes, key, part, &shape, &world.names.digest_key(key.volume))?;
    world.unpacked.borrow_mut().insert(name, unpacked.clone());
    Ok(unpacked)
}

/// What an index wants to know of a part.
///
/// # Errors
/// As [`segment`].
pub fn runs(world: &World, key: LayerKey, part: u32) -> Result<PartRuns, String> {
    let kind = |content: &Content| match content {
        Content::Data(_) => farside_store::Content::Data,
        Content::Zero => farside_store::Content::Zero,
        Content::Unreadable => farside_store::Content::Unreadable,
    };
    Ok(PartRuns::Known(segment(world, key, part)?.iter().map(|(run, content)| (*run, kind(content))).collect()))
}

/// [`runs`] for [`GroupImage::apply`].
///
/// # Errors
/// As [`segment`].
pub fn runs_of(world: &World, part: &Part) -> Result<PartRuns, String> {
    runs(world, part.name.layer, part.name.number)
}

/// The image of a volume at a retained point (`None`: the head), read as a restore would: by the product's index, from the
/// segments that exist.
///
/// # Errors
/// When a segment is gone or damaged, or lacks what the index says it has.
pub fn read_image(world: &World, group: &GroupImage, volume: usize, slot: Option<Slot>) -> Result<Vec<Published>, String> {
    let (id, geometry) = (world.names.ids[volume], world.names.geometry[volume]);
    let slot = slot.unwrap_or(Slot(u64::MAX));
    let image = group.image_at(id, slot, |_, part| runs(world, part.name.layer, part.name.number))?;
    let mut out = vec![Published::Absent; world.home().disks[volume].borrow().sectors()];
    for extent in image.index.extents(geometry.whole()) {
        let part = group.parts().get(extent.part).ok_or("the index names a part that was given up")?;
        let unpacked = segment(world, part.name.layer, part.name.number)?;
        for granule in extent.run.start.0..extent.run.end().0 {
            let one = GranuleRun { start: farside_region::GranuleIndex(granule), count: 1 };
            let (run, content) = unpacked
                .iter()
                .rev()
                .find(|(run, _)| run.overlaps(&one))
                .ok_or_else(|| format!("the index says that {} holds granule {granule}; it does not", part.name))?;
            let shape = world.shape(volume, part.name.layer.term);
            crate::judge::put(&mut out, &shape, one, &cut(content, &shape, *run, one));
        }
    }
    Ok(out)
}

/// A granule of a run.
pub fn cut(content: &Content, geometry: &Geometry, run: GranuleRun, one: GranuleRun) -> Content {
    let Content::Data(data) = content else { return content.clone() };
    let (all, wanted) = (geometry.bytes_of(run), geometry.bytes_of(one));
    let at = (wanted.offset.0 - all.offset.0) as usize;
    Content::Data(data[at..at + wanted.len as usize].to_vec())
}
