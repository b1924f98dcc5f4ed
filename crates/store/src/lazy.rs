//! The image of a point, region by region as they are asked for.
//!
//! Replay knows which regions each layer touched. So what a region holds is in the footers of those that touched it, and of these only in
//! the newest, down to where nothing below them shows: a point of a hundred thousand is opened without reading a footer.
//!
//! Invariant: the image of a region is what the image of the whole point holds there, damage included. It rests on what is held against
//! the footers before a layer is published: that its record names every region of which it has anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use farside_ledger::{Passing, State, Touched};
use farside_region::{Geometry, GranuleRun, RecordDigest, RegionIndex, RegionSet, Slot, mutation};

use crate::error::Result;
use crate::group::DigestRun;
use crate::image::{PartRuns, VolumeImage, unknown_runs};
use crate::index::{Content, Extent, PartNo, VolumeIndex};
use crate::keys::Unlocking;
use crate::liveness::{Part, Parts};
use crate::reader::{PointReader, RegionContent};
use crate::replay::parallel;

/// So many footers are read at once to begin with, and at most.
const FOOTERS_AT_ONCE: (usize, usize) = (8, 256);
/// Extents of regions' images that are kept in memory.
const EXTENTS_KEPT_MAX: usize = 256 << 10;

/// A point that is opened at once.
pub type LazyPointReader = PointReader<LazyImage>;

/// What is known of where the granules of a point lie. It grows.
#[derive(Debug)]
pub struct LazyImage {
    /// Of the volume as it is now: what is damaged may reach beyond the point's end.
    geometry: Geometry,
    /// In the order in which they lie over each other.
    laid: Vec<Laid>,
    whole: OnceLock<Arc<VolumeImage>>,
    known: Mutex<Known>,
}

/// A part of the point.
#[derive(Debug)]
struct Laid {
    no: PartNo,
    touched: MayTouch,
    /// The record that alone knows them exactly. (Few have one, and there may be a hundred thousand of these.)
    told_by: Option<Box<(Slot, RecordDigest)>>,
}

/// The regions that a layer touched, or more. `None`: nobody knows which.
type MayTouch = Option<Touched>;

fn may_touch(touched: &MayTouch, region: RegionIndex) -> bool {
    match touched {
        None => true,
        Some(Touched::Range(range)) => region.0.checked_sub(range.start.0).is_some_and(|after| after < range.count),
        Some(Touched::Several(regions)) => regions.contains(region),
    }
}

fn regions(touched: &MayTouch) -> Option<RegionSet> {
    match touched.as_ref()? {
        Touched::Range(range) => {
            let mut regions = RegionSet::new();
            regions.insert_range(*range);
            Some(regions)
        }
        Touched::Several(regions) => Some(regions.regions()),
    }
}

#[derive(Debug, Default)]
struct Known {
    images: HashMap<RegionIndex, Arc<VolumeImage>>,
    extents: usize,
}

impl LazyImage {
    /// Of these parts, which are so many at most. `at_hand`: the image itself, if somebody has it.
    pub(crate) fn new<'p>(
        geometry: Geometry,
        state: &State,
        parts: impl Iterator<Item = (PartNo, Passing<'p, Part>)>,
        at_most: usize,
        at_hand: Option<VolumeImage>,
    ) -> Self {
        let mut layers = state.layers_in_turn();
        let mut laid = Vec::with_capacity(at_most);
        for (no, part) in parts {
            // What a merge touched is in its record only.
            let touched = match part.name.layer.merge() {
                Some(_) => None,
                None => layers.touched(&part.name.layer, part.born).map(|layer| layer.touched.clone()),
            };
            laid.push(Laid { no, touched, told_by: Parts::told_by(state, &part).map(Box::new) });
        }
        let whole = at_hand.map_or_else(OnceLock::new, |image| Arc::new(image).into());
        Self { geometry, laid, whole, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image of a region or more, if it is known. What could not be read when the whole was indexed may be put back, so that is not.
    fn at_hand(&self, region: RegionIndex) -> Option<Arc<VolumeImage>> {
        let within = self.geometry.region_run(region);
        let whole = self.whole.get().filter(|image| image.unknown.extents(within).next().is_none());
        whole.cloned().or_else(|| self.known().images.get(&region).cloned())
    }

    fn keep(&self, region: RegionIndex, image: &Arc<VolumeImage>) {
        let known = &mut *self.known();
        if known.extents > EXTENTS_KEPT_MAX {
            *known = Known::default();
        }
        known.extents += image.index.extent_count();
        known.images.insert(region, Arc::clone(image));
    }
}

impl PointReader<LazyImage> {
    /// The same, with the keys of an encrypted volume. A program or a passphrase may take its time: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`](crate::StoreError::KeyNeeded); what the file system says.
    pub fn unlocked(mut self, unlocking: &Unlocking) -> Result<Self> {
        self.keys = unlocking.open(self.keys.clone(), &*self.segments.backend, &self.segments.names, &self.volume)?;
        Ok(self)
    }

    /// How many footers say what the point holds.
    pub fn part_count(&self) -> usize {
        self.image.laid.len()
    }

    /// Reads all footers, so that everything is known of where granules lie. Gives up when `go_on` says no.
    ///
    /// # Errors
    /// What the file system says; a damaged footer is none.
    pub fn index_all(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        if self.image.whole.get().is_none()
            && let Some(image) = self.whole_image(go_on)?
        {
            let _ = self.image.whole.set(Arc::new(image)); // two are the same
            *self.image.known() = Known::default();
        }
        Ok(())
    }

    /// With the image of the whole point.
    pub(crate) fn indexed(mut self) -> Result<PointReader> {
        let image = match self.image.whole.take() {
            Some(image) => Arc::unwrap_or_clone(image),
            None => self.whole_image(&|| true)?.expect("nobody gave it up"),
        };
        Ok(self.with_image(image))
    }

    fn whole_image(&self, go_on: &dyn Fn() -> bool) -> Result<Option<VolumeImage>> {
        self.image_of(&self.image.laid.iter().collect::<Vec<_>>(), go_on)
    }

    /// What of the point was published after a slot; `None`: `go_on` said no.
    pub(crate) fn image_since(&self, since: Slot, go_on: &dyn Fn() -> bool) -> Result<Option<VolumeImage>> {
        let is_newer = |part: &Part| {
            let is_old = part.name.layer.merge().is_some() && mutation::on("a cascade takes what was merged for old");
            part.born > since && !is_old
        };
        self.image_of(&self.image.laid.iter().filter(|laid| is_newer(self.part(laid.no))).collect::<Vec<_>>(), go_on)
    }

    fn image_of(&self, laid: &[&Laid], go_on: &dyn Fn() -> bool) -> Result<Option<VolumeImage>> {
        let mut image = VolumeImage::default();
        for laid in laid.chunks(FOOTERS_AT_ONCE.1) {
            if !go_on() {
                return Ok(None);
            }
            for (laid, runs) in laid.iter().zip(parallel(&*self.segments.backend, laid, |laid| self.runs_of(laid))) {
                let runs = runs?;
                image.lay(laid.no, &runs, &self.unknown_in(laid, &runs), |_, _| {});
            }
        }
        Ok(Some(image))
    }

    fn runs_of(&self, laid: &Laid) -> Result<PartRuns> {
        self.segments.runs(&self.volume.name, self.part(laid.no), laid.told_by.as_deref().copied())
    }

    /// The granules of which a damaged part leaves nothing known.
    fn unknown_in(&self, laid: &Laid, runs: &PartRuns) -> Vec<GranuleRun> {
        let PartRuns::Damaged { regions: of_record } = runs else { return Vec::new() };
        let regions = of_record.clone().or_else(|| regions(&laid.touched));
        unknown_runs(&self.image.geometry, regions)
    }

    /// What a region holds.
    pub(crate) fn region_image(&self, region: RegionIndex) -> Result<Arc<VolumeImage>> {
        if let Some(image) = self.image.at_hand(region) {
            return Ok(image);
        }
        let within = self.geometry().region_run(region);
        let clip = |run: GranuleRun| {
            let (start, end) = (run.start.max(within.start), run.end().min(within.end()));
            (start < end).then(|| GranuleRun { start, count: end.0 - start.0 })
        };
        let mut above = self.image.laid.iter().rev().filter(|laid| may_touch(&laid.touched, region));
        let (mut found, mut covered) = (Vec::new(), VolumeIndex::new());
        let mut at_once = self.requests_at_once().unwrap_or_default().max(FOOTERS_AT_ONCE.0);
        'down: loop {
            let batch: Vec<&Laid> = above.by_ref().take(at_once).collect();
            if batch.is_empty() {
                break;
            }
            at_once = (at_once * 4).min(FOOTERS_AT_ONCE.1);
            for (laid, runs) in batch.iter().zip(parallel(&*self.segments.backend, &batch, |laid| self.runs_of(laid))) {
                let runs = runs?;
                let unknown: Vec<GranuleRun> = self.unknown_in(laid, &runs).into_iter().filter_map(clip).collect();
                let runs = match runs {
                    PartRuns::Known(runs) => {
                        let here = runs.into_iter().filter_map(|(run, content)| Some((clip(run)?, content)));
                        PartRuns::Known(here.collect())
                    }
                    damaged @ PartRuns::Damaged { .. } => damaged,
                };
                if let PartRuns::Known(runs) = &runs {
                    for (run, content) in runs {
                        covered.apply(Extent { run: *run, part: laid.no, content: *content }, |_, _| {});
                    }
                }
                found.push((laid.no, runs, unknown));
                let newest_alone = mutation::on("L4 what lies below the newest layer of a region is left out");
                if covered.first_absent(within).is_none() || newest_alone {
                    break 'down;
                }
            }
        }
        let mut image = VolumeImage::default();
        for (no, runs, unknown) in found.iter().rev() {
            image.lay(*no, runs, unknown, |_, _| {});
        }
        let image = Arc::new(image);
        // What is damaged now may be put back.
        if image.unknown.extent_count() == 0 {
            self.image.keep(region, &image);
        }
        Ok(image)
    }

    /// Whether a region is known to be zeroes throughout. Nothing is read for this, so it is not known of a region of which nothing was
    /// read.
    pub fn is_zero(&self, region: RegionIndex) -> bool {
        self.image.at_hand(region).is_some_and(|image| image.is_zero(self.geometry().region_run(region)))
    }

    /// As [`PointReader::read_region`].
    ///
    /// # Errors
    /// As there; what the file system says.
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub fn read_region(&self, region: RegionIndex, content: &mut RegionContent) -> Result<()> {
        self.refuse_opaque()?;
        self.verify_in(&*self.region_image(region)?, region, content)
    }

    /// As [`PointReader::region_digests`].
    ///
    /// # Errors
    /// As there; what the file system says.
    pub fn region_digests(&self, region: RegionIndex) -> Result<Vec<DigestRun>> {
        self.digests_in(&*self.region_image(region)?, region)
    }

    /// As [`PointReader::salvage_region`].
    ///
    /// # Errors
    /// As there; what the file system says.
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub fn salvage_region(&self, region: RegionIndex, content: &mut RegionContent) -> Result<Vec<GranuleRun>> {
        self.refuse_opaque()?;
        self.salvage_in(&*self.region_image(region)?, region, content)
    }

    /// Bytes that the source could not read; everything is indexed for this.
    ///
    /// # Errors
    /// Those of [`PointReader::index_all`].
    pub fn unreadable_bytes(&self) -> Result<u64> {
        self.index_all(&|| true)?;
        let Some(image) = self.image.whole.get() else { return Ok(0) };
        let unreadable = image.index.extents(self.geometry().whole()).filter(|extent| extent.content == Content::Unreadable);
        Ok(unreadable.map(|extent| self.geometry().bytes_of(extent.run).len).sum())
    }
}

#[cfg(test)]
#[path = "lazy_tests.rs"]
mod tests;
