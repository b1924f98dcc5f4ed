//! How a volume is divided: bytes into granules, granules into regions.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ByteExtent, ByteOffset, GranuleIndex, GranuleRun, RegionIndex, RegionRange};

/// The shape of one volume.
///
/// Real volumes use 4 KiB granules and 4 MiB regions ([`Geometry::new`]). Tests and the simulator use smaller ones
/// ([`Geometry::with_shape`]), so that a whole volume fits a screen. The last granule may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Geometry {
    volume_bytes: u64,
    granule_shift: u8,
    region_shift: u8,
}

/// As encoded: (volume bytes, log2 of a granule's bytes, log2 of a region's bytes). Checked like a new geometry.
type Fields = (u64, u8, u8);

impl From<Geometry> for Fields {
    fn from(g: Geometry) -> Self {
        (g.volume_bytes, g.granule_shift, g.region_shift)
    }
}

impl TryFrom<Fields> for Geometry {
    type Error = GeometryError;

    fn try_from((volume_bytes, granule_shift, region_shift): Fields) -> Result<Self, GeometryError> {
        let granules = region_shift.checked_sub(granule_shift).ok_or(GeometryError::Shape(region_shift))?;
        Self::with_shape(volume_bytes, granule_shift, granules)
    }
}

/// Why a volume cannot have a geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// No bytes.
    #[error("the volume is empty")]
    Empty,
    /// Larger than the slot word can name (2^40 granules).
    #[error("the volume has {0} bytes; at most 2^52 are supported")]
    TooLarge(u64),
    /// A region has more granules than a [`crate::GranuleMask`] holds, or fewer than one.
    #[error("a region cannot hold 2^{0} granules")]
    Shape(u8),
}

impl Geometry {
    /// Bytes in a granule of a real volume.
    pub const GRANULE_BYTES: u64 = 1 << 12;
    /// Bytes in a region of a real volume.
    pub const REGION_BYTES: u64 = 1 << 22;
    /// The most granules that a region can have.
    pub const REGION_GRANULES_MAX: usize = 1024;

    /// The geometry of a real volume of so many bytes.
    ///
    /// # Errors
    /// When it is empty or larger than 4 PiB.
    pub fn new(volume_bytes: u64) -> Result<Self, GeometryError> {
        Self::with_shape(volume_bytes, 12, 10)
    }

    /// Granules of `2^granule_shift` bytes, regions of `2^region_granules_shift` granules.
    ///
    /// # Errors
    /// When it is empty, too large, or a region would hold more than 1024 granules.
    pub fn with_shape(volume_bytes: u64, granule_shift: u8, region_granules_shift: u8) -> Result<Self, GeometryError> {
        if volume_bytes == 0 {
            return Err(GeometryError::Empty);
        }
        if region_granules_shift > 10 || granule_shift > 20 {
            return Err(GeometryError::Shape(region_granules_shift));
        }
        if volume_bytes > 1 << 52 || volume_bytes.div_ceil(1 << granule_shift) > 1 << 40 {
            return Err(GeometryError::TooLarge(volume_bytes));
        }
        Ok(Self { volume_bytes, granule_shift, region_shift: granule_shift + region_granules_shift })
    }

    /// The same shape with another size.
    ///
    /// # Errors
    /// Those of [`Geometry::with_shape`].
    pub fn resized(&self, volume_bytes: u64) -> Result<Self, GeometryError> {
        Self::with_shape(volume_bytes, self.granule_shift, self.region_shift - self.granule_shift)
    }

    /// Size of the volume in bytes.
    pub fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Bytes in a granule.
    #[inline]
    pub fn granule_bytes(&self) -> u64 {
        1 << self.granule_shift
    }

    /// Bytes in a region.
    #[inline]
    pub fn region_bytes(&self) -> u64 {
        1 << self.region_shift
    }

    /// Granules in a whole region.
    #[inline]
    pub fn region_granules(&self) -> u64 {
        1 << (self.region_shift - self.granule_shift)
    }

    /// Number of regions; the last may be short.
    #[inline]
    pub fn region_count(&self) -> u64 {
        self.volume_bytes.div_ceil(self.region_bytes())
    }

    /// Number of granules; the last may be short.
    #[inline]
    pub fn granule_count(&self) -> u64 {
        self.volume_bytes.div_ceil(self.granule_bytes())
    }

    /// All of it, as granules.
    pub fn whole(&self) -> GranuleRun {
        GranuleRun { start: GranuleIndex(0), count: self.granule_count() }
    }

    /// The region that holds a granule.
    #[inline]
    pub fn region_of(&self, granule: GranuleIndex) -> RegionIndex {
        RegionIndex(granule.0 >> (self.region_shift - self.granule_shift))
    }

    /// The granule's place inside its region.
    #[inline]
    pub fn granule_in_region(&self, granule: GranuleIndex) -> usize {
        (granule.0 & (self.region_granules() - 1)) as usize
    }

    /// The granules of a region that exist (fewer in a short last one).
    ///
    /// # Panics
    /// When the region is beyond the volume.
    #[inline]
    pub fn region_run(&self, region: RegionIndex) -> GranuleRun {
        assert!(region.0 < self.region_count(), "region {region} is beyond the volume");
        let start = region.0 << (self.region_shift - self.granule_shift);
        GranuleRun { start: GranuleIndex(start), count: self.region_granules().min(self.granule_count() - start) }
    }

    /// The bytes of a run, cut at the end of the volume.
    ///
    /// # Panics
    /// When the run is beyond the volume.
    #[inline]
    pub fn bytes_of(&self, run: GranuleRun) -> ByteExtent {
        let offset = run.start.0 << self.granule_shift;
        assert!(run.end().0 <= self.granule_count(), "run {run:?} is beyond the volume");
        ByteExtent { offset: ByteOffset(offset), len: (run.count << self.granule_shift).min(self.volume_bytes - offset) }
    }

    /// The granules that an extent touches, edges included. `None` when it is empty or goes beyond the volume.
    #[inline]
    pub fn granules_of(&self, extent: ByteExtent) -> Option<GranuleRun> {
        let end = extent.offset.0.checked_add(extent.len)?;
        if extent.len == 0 || end > self.volume_bytes {
            return None;
        }
        let first = extent.offset.0 >> self.granule_shift;
        let last = (end - 1) >> self.granule_shift;
        Some(GranuleRun { start: GranuleIndex(first), count: last - first + 1 })
    }

    /// The regions that a run of granules touches.
    #[inline]
    pub fn regions_of(&self, run: GranuleRun) -> RegionRange {
        if run.count == 0 {
            return RegionRange { start: RegionIndex(0), count: 0 };
        }
        let first = self.region_of(run.start).0;
        let last = self.region_of(GranuleIndex(run.end().0 - 1)).0;
        RegionRange { start: RegionIndex(first), count: last - first + 1 }
    }

    /// All regions.
    pub fn all_regions(&self) -> RegionRange {
        RegionRange { start: RegionIndex(0), count: self.region_count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_geometry_is_refused() {
        for bad in [(0, 12, 22), (1 << 30, 200, 210), (1 << 30, 12, 11), (1 << 30, 12, 24), (u64::MAX, 12, 22)] {
            assert!(Geometry::try_from(bad).is_err(), "{bad:?}");
        }
        let good = Geometry::new(5000).expect("valid");
        assert_eq!(Geometry::try_from(Fields::from(good)), Ok(good));
    }

    #[test]
    fn a_short_last_granule_and_region_are_counted_and_cut() {
        let g = Geometry::new(Geometry::REGION_BYTES + 5000).expect("valid");
        assert_eq!((g.region_count(), g.granule_count()), (2, 1026));
        assert_eq!(g.region_run(RegionIndex(1)), GranuleRun { start: GranuleIndex(1024), count: 2 });
        assert_eq!(g.bytes_of(g.region_run(RegionIndex(1))).len, 5000);
        assert_eq!(g.granules_of(ByteExtent { offset: ByteOffset(4095), len: 2 }).expect("inside").count, 2);
        assert_eq!(g.granules_of(ByteExtent { offset: ByteOffset(g.volume_bytes()), len: 1 }), None);
        assert_eq!(g.granules_of(ByteExtent { offset: ByteOffset(u64::MAX), len: 2 }), None);
    }
}
