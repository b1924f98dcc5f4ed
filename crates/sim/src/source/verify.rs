//! Reads cold regions in place for a verify and holds them against the published digests (T6). Each region is judged by its
//! state after its content was read and compared.

use std::rc::Rc;

use farside_layer::{granule_digest, is_zero};
use farside_region::{GranuleIndex, GranuleRun, RegionIndex, RegionSet, mutation};
use farside_replication::source::{Event, VerifyChunk, VerifyRead};
use farside_shim::RegionState;
use farside_wire::DigestRun;

use super::{Source, Vol};

/// What is published of a granule.
enum Published {
    Digest([u8; 16]),
    Zero,
    Nothing,
}

impl Source {
    pub(super) async fn verifies(self: Rc<Self>, v: usize) {
        let steps = self.world.steps();
        let vol = &self.volumes[v];
        loop {
            steps.pause().await;
            steps.until(|| vol.verify.borrow().is_some()).await;
            let chunk = vol.verify.take().expect("just seen");
            self.world.met("verify of a chunk");
            let read = self.verify_chunk(vol, &chunk).await;
            self.push(Event::VerifyRead { volume: chunk.volume, read: Box::new(read) });
        }
    }

    async fn verify_chunk(&self, vol: &Vol, chunk: &VerifyChunk) -> VerifyRead {
        let geometry = self.site.geometry(vol.index);
        let published: Vec<Published> = chunk.runs.iter().flat_map(expand).collect();
        let first = geometry.region_run(chunk.chunk.start).start.0;
        let (mut differing, mut unreadable, mut hot) = (RegionSet::new(), RegionSet::new(), RegionSet::new());
        for region in (0..chunk.chunk.count).map(|i| RegionIndex(chunk.chunk.start.0 + i)) {
            let (mut same, mut readable) = (true, true);
            let run = geometry.region_run(region);
            for granule in run.start.0..run.end().0 {
                self.world.steps().pause().await;
                match self.read_bytes(vol, GranuleRun { start: GranuleIndex(granule), count: 1 }).await {
                    None => readable = false,
                    Some(data) => {
                        same &= mutation::on("verify takes what it reads for what is published")
                            || match published[(granule - first) as usize] {
                                Published::Digest(digest) => {
                                    granule_digest(chunk.digest_key.clear().expect("not encrypted"), GranuleIndex(granule), &data)
                                        == farside_region::GranuleDigest(digest)
                                }
                                Published::Zero => is_zero(&data),
                                Published::Nothing => false,
                            }
                    }
                }
            }
            if !matches!(vol.shim.region_state(region), RegionState::Cold | RegionState::ColdZero) {
                hot.insert(region);
            } else if !same {
                differing.insert(region);
            } else if !readable {
                unreadable.insert(region);
            }
        }
        VerifyRead { id: chunk.id, hot, differing, unreadable }
    }
}

fn expand(run: &DigestRun) -> impl Iterator<Item = Published> + '_ {
    (0..run.granules()).map(move |i| match run {
        DigestRun::Zero { .. } => Published::Zero,
        DigestRun::Data(digests) => Published::Digest(digests[i as usize].0),
        DigestRun::Absent { .. } | DigestRun::Unreadable { .. } => Published::Nothing,
    })
}
