//! Decoded regions, as many as there is room for; who was used longest ago goes first.

use std::collections::HashMap;
use std::sync::Arc;

use farside_region::RegionIndex;

use crate::Region;

#[derive(Debug)]
pub(crate) struct Cache {
    regions: HashMap<RegionIndex, (Arc<Region>, u64)>,
    /// Counts uses.
    clock: u64,
    regions_max: usize,
}

impl Cache {
    /// Of at least one.
    pub(crate) fn new(regions_max: usize) -> Self {
        Self { regions: HashMap::new(), clock: 0, regions_max: regions_max.max(1) }
    }

    pub(crate) fn get(&mut self, region: RegionIndex) -> Option<Arc<Region>> {
        self.clock += 1;
        let (content, used) = self.regions.get_mut(&region)?;
        *used = self.clock;
        Some(content.clone())
    }

    pub(crate) fn put(&mut self, region: RegionIndex, content: Arc<Region>) {
        self.clock += 1;
        self.regions.insert(region, (content, self.clock));
        while self.regions.len() > self.regions_max {
            let oldest = self.regions.iter().min_by_key(|(_, (_, used))| *used).map(|(region, _)| *region);
            self.regions.remove(&oldest.expect("there is more than one"));
        }
    }
}
