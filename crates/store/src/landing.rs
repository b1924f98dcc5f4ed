//! Where parts arrive: written as their bytes come, checked as they come, and listed only once they are durable.
//!
//! Owns `landing/<source>/<group>/` of a directory store, or of the staging directory of a store elsewhere. A part under way is `….partial`; when its last byte has been
//! verified it is synced, renamed to its final name and the directory synced, and only then reported. Publication links that
//! very file into the segments, or copies it to where the store is; the name in landing goes once the record is accepted. Invariants:
//! - a file under a final name is whole and was durable when it got that name (a torn tail can only be a `.partial`, which
//!   dies with the process that wrote it; what is found at start is verified again all the same);
//! - a part that has landed is never replaced: it is dropped first, or it comes under another name;
//! - parts of one layer that were dropped are not completed by a writer that began before: it is refused at its end.
//!
//! Beside its parts lies what an end message said of a layer, if `replication` had it kept: it goes before the parts do. What is worth
//! nothing any more is found out there, not here.
//!
//! Plain blocking code for blocking threads. It deliberately does not decide which parts are wanted, when a layer is staged
//! or whether a source may send: that is `replication`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use farside_blockio::is_of_medium;
use farside_layer::{Footer, PartId, PartSummary, PartVerifier, ReadFooterError, check_stored, read_footer};
use farside_ledger::{KeptEnd, PartEntry, VolumeMeta, volume_id};
use farside_region::{LayerKey, Name, Slot, Term, VolumeId};

use crate::backend::{Created, DirBackend, block_on};
use crate::error::{Result, StoreError};
use crate::image::GroupImage;
use crate::liveness::{Part, PartName};
use crate::names::{GroupNames, end_path, parse_end_path, parse_part_path, part_path};
use crate::replay::at_once_until;
use crate::segments::{FooterFault, Segments};
use crate::space::{Allowance, Space};

/// What a file takes at least.
const FILE_BYTES: u64 = 4096;
/// How much of a part may wait in memory before the kernel is asked to write it, so that the disk works while more comes and
/// the sync at the end has little left to do.
const PUSH_BYTES: u64 = 8 << 20;
/// What was kept of end messages that is taken up by a new process, in all. The rest, of what was staged last, waits for a later one, or for
/// its source.
const ENDS_BYTES_MAX: u64 = 8 << 20;
const PARTIAL: &str = ".partial";
/// Makes names of parts under way unique in this process, over every landing that it opens. What another process left is gone
/// before the first part begins.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A layer of which parts are durable in landing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LandedLayer {
    /// Which.
    pub key: LayerKey,
    /// Its durable, verified parts by number, ascending.
    pub parts: Vec<(u32, PartEntry)>,
    /// What an earlier process kept of its end message, and when the layer was staged, in milliseconds since 1970.
    pub end: Option<(KeptEnd, i64)>,
}

/// The landing of one group. Shared by the threads that write parts.
#[derive(Debug)]
pub struct Landing {
    dir: PathBuf,
    store: Arc<DirBackend>,
    /// A segment is a second name of the file here, not a copy elsewhere.
    linked: bool,
    landed: Mutex<BTreeMap<LayerKey, Layer>>,
    /// Parts that were sent elsewhere and are not published yet.
    tried: Mutex<BTreeMap<PartName, Tried>>,
}

/// What became of a part that was sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// Nobody knows.
    Asked,
    /// It is a segment there.
    Created(PartEntry),
}

#[derive(Debug, Default)]
struct Layer {
    parts: BTreeMap<u32, PartEntry>,
    /// Something is kept of its end message; what, if an earlier process kept it.
    end: Option<Option<Box<(KeptEnd, i64)>>>,
    /// The name of its volume; known once something began.
    volume: Option<Name>,
    /// Changes when parts are dropped: who began before may not finish after.
    drops: u64,
    /// Parts under way. The entry stays as long, so that `drops` is not forgotten.
    writers: u32,
    /// Those of them that began since the last drop.
    open: BTreeSet<u32>,
}

/// A part on its way in. Dropping it before [`PartLander::finish`] removes what was written.
#[derive(Debug)]
pub struct PartLander {
    landing: Arc<Landing>,
    volume: Name,
    name: PartName,
    check: Check,
    partial: Partial,
    file: File,
    allowance: Allowance,
    written_bytes: u64,
    /// Of them, what the kernel was asked to write to the disk already.
    pushed_bytes: u64,
    writing: Writing,
}

/// How far a part is checked.
#[derive(Debug)]
enum Check {
    UnderWay(Box<PartVerifier>),
    Whole(PartSummary),
}

/// Counts a part under way.
#[derive(Debug)]
struct Writing {
    landing: Arc<Landing>,
    name: PartName,
    /// Of its layer, when it began.
    drops: u64,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut landed = self.landing.lock();
        if let Some(layer) = landed.get_mut(&self.name.layer) {
            layer.writers -= 1;
            if layer.drops == self.drops {
                layer.open.remove(&self.name.number);
            }
        }
        forget_if_idle(&mut landed, self.name.layer);
    }
}

fn forget_if_idle(landed: &mut BTreeMap<LayerKey, Layer>, key: LayerKey) {
    if landed.get(&key).is_some_and(|l| l.writers == 0 && l.parts.is_empty() && l.end.is_none()) {
        landed.remove(&key);
    }
}

/// Removes its file when dropped, unless that was renamed.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // what cannot be removed now is swept at the next start
    }
}

impl Landing {
    /// `linked`: the directory is that of the store itself.
    pub(crate) fn new(store: Arc<DirBackend>, linked: bool, names: &GroupNames) -> Arc<Self> {
        let dir = store.root().join("landing").join(names.source.as_str()).join(names.group.as_str());
        Arc::new(Self { dir, store, linked, landed: Mutex::default(), tried: Mutex::default() })
    }

    /// Begins to land a part: `write` its bytes, then `finish`. `volume`: what the ledger says about it.
    ///
    /// # Errors
    /// [`StoreError::Full`] when only the reserve is left, [`StoreError::BadPart`] when the part has landed or is under way
    /// and was not dropped since; or what the file system says.
    pub fn begin_part(self: &Arc<Self>, volume: &VolumeMeta, key: LayerKey, part: u32) -> Result<PartLander> {
        let mut allowance = Allowance::new(Arc::clone(self.store.allowed()));
        self.cover(&mut allowance, FILE_BYTES)?;
        let name = PartName { layer: key, number: part };
        let writing = self.begin_writing(volume, name)?;
        let target = self.path(&volume.name, &name);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = target.with_file_name(format!("{}.{part}.{serial}{PARTIAL}", key.seq));
        let parent = target.parent().expect("a part lies in a term's folder");
        let file = self.create_in(parent, &path)?;
        let id = PartId { key, part, geometry: volume.geometry };
        Ok(PartLander {
            landing: Arc::clone(self),
            volume: volume.name.clone(),
            name,
            check: Check::UnderWay(Box::new(PartVerifier::new(id, &volume.digest_key))),
            partial: Partial(path),
            file,
            allowance,
            written_bytes: 0,
            pushed_bytes: 0,
            writing,
        })
    }

    /// Makes a file in a term's folder, which may be swept away, empty, between being made and being used.
    fn create_in(&self, parent: &Path, path: &Path) -> Result<File> {
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        self.store.make_dirs(parent)?;
        let file = match create() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.store.forget_dir(parent);
                self.store.make_dirs(parent)?;
                create()
            }
            other => other,
        };
        file.map_err(|e| self.store.io("creating", path, 1, e))
    }

    /// Enters a part among those under way, once.
    fn begin_writing(self: &Arc<Self>, volume: &VolumeMeta, name: PartName) -> Result<Writing> {
        let mut landed = self.lock();
        let layer = landed.entry(name.layer).or_default();
        let why = match &*layer {
            layer if layer.parts.contains_key(&name.number) => Some("it has landed before"),
            layer if layer.open.contains(&name.number) => Some("it is on its way already"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(StoreError::BadPart { layer: name.layer, part: name.number, why: why.to_owned() });
        }
        layer.volume.get_or_insert_with(|| volume.name.clone());
        layer.writers += 1;
        layer.open.insert(name.number);
        Ok(Writing { landing: Arc::clone(self), name, drops: layer.drops })
    }

    /// Layers with durable parts, for the state machine at start and for answers to a resume.
    pub fn landed(&self) -> Vec<LandedLayer> {
        let mut landed = self.lock();
        let of = |(&key, l): (&LayerKey, &mut Layer)| {
            // Handed out once: it may be long.
            let end = l.end.as_mut().and_then(Option::take).map(|end| *end);
            LandedLayer { key, parts: l.parts.iter().map(|(&n, &e)| (n, e)).collect(), end }
        };
        landed.iter_mut().map(of).filter(|layer| !layer.parts.is_empty() || layer.end.is_some()).collect()
    }

    /// Keeps what an end message said of a layer, durably, in the place of what was kept before.
    ///
    /// # Errors
    /// [`StoreError::Full`] when only the reserve is left; or what the file system says. What was kept before may be there still.
    pub(crate) fn keep_end(&self, volume: &Name, end: &KeptEnd, staged_wall_ms: i64) -> Result<()> {
        // A list that long is said again.
        let Some(bytes) = end.encode(staged_wall_ms) else { return Ok(()) };
        let mut allowance = Allowance::new(Arc::clone(self.store.allowed()));
        self.cover(&mut allowance, bytes.len() as u64 + FILE_BYTES)?;
        let target = self.dir.join(end_path(volume, &end.key));
        let parent = target.parent().expect("it lies in a term's folder");
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let partial = Partial(target.with_file_name(format!("{}.end.{serial}{PARTIAL}", end.key.seq)));
        let mut file = self.create_in(parent, &partial.0)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        written.map_err(|e| self.store.io("writing", &partial.0, bytes.len() as u64, e))?;
        fs::rename(&partial.0, &target).map_err(|e| self.store.io("renaming", &partial.0, 0, e))?;
        {
            let mut landed = self.lock();
            let layer = landed.entry(end.key).or_default();
            layer.volume.get_or_insert_with(|| volume.clone());
            layer.end = Some(None);
        }
        self.store.sync_dir(parent)
    }

    /// How many layers have durable parts, by volume.
    pub fn staged(&self) -> BTreeMap<VolumeId, u64> {
        let mut staged = BTreeMap::new();
        for (key, _) in self.lock().iter().filter(|(_, l)| !l.parts.is_empty()) {
            *staged.entry(key.volume).or_default() += 1;
        }
        staged
    }

    /// Bytes of durable parts that are not published.
    pub fn bytes(&self) -> u64 {
        self.lock().values().flat_map(|l| l.parts.values()).map(|e| e.bytes).sum()
    }

    /// Forgets an unpublished layer: its parts, landed or under way.
    ///
    /// # Errors
    /// What the file system says. The parts are forgotten all the same, and swept at the next start.
    pub(crate) fn drop_layer(&self, key: LayerKey) -> Result<()> {
        self.drop_parts(key, 0).map(drop)
    }

    /// Forgets the parts of an unpublished layer from this number on, landed or under way; says which had landed.
    ///
    /// # Errors
    /// What the file system says. The parts are forgotten all the same, and swept at the next start.
    pub(crate) fn drop_parts(&self, key: LayerKey, from: u32) -> Result<Vec<u32>> {
        let (volume, dropped, was_kept) = {
            let mut landed = self.lock();
            let Some(layer) = landed.get_mut(&key) else { return Ok(Vec::new()) };
            layer.drops += 1;
            layer.open.clear();
            let dropped = (layer.volume.clone(), layer.parts.split_off(&from), layer.end.take().is_some());
            forget_if_idle(&mut landed, key);
            dropped
        };
        let Some(volume) = volume else { return Ok(Vec::new()) };
        let folder = self.path(&volume, &PartName { layer: key, number: 0 });
        let folder = folder.parent().expect("a part lies in a term's folder").to_owned();
        let mut result = Ok(dropped.keys().copied().collect());
        if was_kept {
            let path = self.dir.join(end_path(&volume, &key));
            if let Err(e) = fs::remove_file(&path)
                && e.kind() != ErrorKind::NotFound
            {
                result = Err(self.store.io("removing", &path, 0, e));
            }
        }
        for number in dropped.into_keys() {
            self.tried().remove(&PartName { layer: key, number });
            let path = self.path(&volume, &PartName { layer: key, number });
            if let Err(e) = fs::remove_file(&path)
                && e.kind() != ErrorKind::NotFound
            {
                result = Err(self.store.io("removing", &path, 0, e));
            }
        }
        self.remove_if_empty(&folder);
        result
    }

    /// A term's folder goes with its last file. Whoever is about to make one in it makes the folder again.
    fn remove_if_empty(&self, folder: &Path) {
        if fs::remove_dir(folder).is_ok() {
            self.store.forget_dir(folder);
        }
    }

    /// A claim was accepted: nothing of the volume's older terms can be published any more (T4). Layers with a part under way
    /// are left to whoever hears of its end.
    pub(crate) fn drop_older(&self, volume: VolumeId, term: Term) {
        let of_old = |key: &LayerKey| key.volume == volume && key.term < term;
        let old: Vec<LayerKey> =
            self.lock().iter().filter(|(key, l)| of_old(key) && l.writers == 0).map(|(key, _)| *key).collect();
        for key in old {
            if let Err(error) = self.drop_layer(key) {
                tracing::warn!(%key, %error, "parts of a term that is over stay in landing until the next start");
            }
        }
    }

    /// The terms of which files lie in landing.
    pub(crate) fn terms(&self) -> Result<BTreeSet<Term>> {
        let parsed = |path: &PathBuf| parse_part_path(path.strip_prefix(&self.dir).ok()?.to_str()?);
        Ok(self.files()?.iter().filter_map(parsed).map(|(_, term, ..)| term).collect())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        collect(&self.dir, &mut files).map_err(|e| self.store.io("listing", &self.dir, 0, e).while_reading())?;
        Ok(files)
    }

    /// The file system's space.
    ///
    /// # Errors
    /// What the file system says.
    pub fn space(&self) -> Result<Space> {
        self.store.present()?;
        Space::of(self.store.root())
    }

    /// Makes landed parts segments, durably: the same files under a second name. Parts that are segments
    /// already are left alone. Only of layers that no record names: their segments may be replaced.
    pub(crate) fn adopt(&self, segments: &Segments, parts: &[(&Name, PartName, &PartEntry)]) -> Result<()> {
        // Side by side, so that those of one directory share its syncs.
        // A service that is out of reach, or that refuses, is not asked for the others as well.
        let is_away = |adopted: &Result<()>| {
            matches!(adopted, Err(StoreError::Remote { .. } | StoreError::RemoteDenied { .. } | StoreError::NoBucket { .. }))
        };
        let adopted = at_once_until(parts, is_away, |(volume, name, part)| self.adopt_part(segments, volume, name, part));
        // What was not asked for follows an error.
        adopted.into_iter().collect()
    }

    /// The file of a part that landed and was never sent elsewhere under a name of its own.
    pub(crate) fn unsent(&self, volume: &Name, name: &PartName, part: &PartEntry) -> Option<PathBuf> {
        let here = self.lock().get(&name.layer).and_then(|l| l.parts.get(&name.number).copied());
        (here == Some(*part) && !self.tried().contains_key(name)).then(|| self.path(volume, name))
    }

    fn adopt_part(&self, segments: &Segments, volume: &Name, name: &PartName, part: &PartEntry) -> Result<()> {
        let object = segments.name(volume, name);
        let missing = || StoreError::PartMissing { layer: name.layer, part: name.number };
        let here = self.lock().get(&name.layer).and_then(|l| l.parts.get(&name.number).copied());
        if here.is_none_or(|h| h != *part) {
            // Perhaps a segment already, of an attempt whose answer was lost. Its footer is checked next.
            return match block_on(segments.backend.size(&object))? {
                Some(bytes) if bytes == part.bytes => Ok(()),
                _ => Err(missing()),
            };
        }
        let file = self.path(volume, name);
        // It is not sent twice only to hear that it is there.
        let before = if self.linked { None } else { self.tried().insert(*name, Tried::Asked) };
        if before == Some(Tried::Created(*part)) {
            // By an append that failed after that.
            self.tried().insert(*name, Tried::Created(*part));
            return Ok(());
        }
        let is_there = before.is_some() && block_on(segments.backend.size(&object))?.is_some();
        if !is_there {
            if !self.linked {
                check_landed(&file, name, part)?;
            }
            match block_on(segments.backend.adopt(&object, &file)) {
                Ok(Created::New) => {
                    if !self.linked {
                        self.tried().insert(*name, Tried::Created(*part));
                    }
                    return Ok(());
                }
                Ok(Created::AlreadyExists) => {}
                Err(StoreError::NotFound { .. }) => return Err(missing()),
                Err(error) => return Err(error),
            }
        }
        if !self.linked {
            // Perhaps by an attempt whose answer was lost. Its bytes tell, not its name: a layer that was sent again has the names
            // of what it replaces. † That is never deleted to make room here: a deletion that hangs on its way could come to pass
            // once a record names what lies there then. The source claims anew instead, and no name of the new term was used.
            let whole = Part {
                name: *name,
                bytes: part.bytes,
                footer_digest: part.footer_digest,
                born: Slot(0),
                died: None,
                head_granules: 0,
                place: None,
            };
            segments.forget(name);
            return match segments.footer(volume, &whole) {
                Ok(_) => {
                    self.tried().insert(*name, Tried::Created(*part));
                    Ok(())
                }
                Err(FooterFault::Store(error)) => Err(error),
                Err(FooterFault::Damaged(_)) => {
                    self.tried().remove(name);
                    Err(missing())
                }
            };
        }
        let (one, two) = (fs::metadata(&file), fs::metadata(self.store.path(&object)?));
        let (one, two) = (one.map_err(|_| missing())?, two.map_err(|_| missing())?);
        if (one.dev(), one.ino()) == (two.dev(), two.ino()) {
            return Ok(());
        }
        // An earlier content of an unpublished layer, sent again since (T1): no record can name it.
        block_on(segments.backend.delete(&object))?;
        match block_on(segments.backend.adopt(&object, &file))? {
            Created::New => Ok(()),
            Created::AlreadyExists => Err(missing()),
        }
    }

    /// A record was accepted that names the layer: its names in landing go.
    pub(crate) fn published(&self, key: LayerKey) {
        if let Err(error) = self.drop_layer(key) {
            tracing::warn!(%key, %error, "a published layer's names stay in landing until the next start");
        }
    }

    /// The footer of a landed part.
    pub(crate) fn footer(&self, volume: &Name, part: &PartName, entry: &PartEntry) -> Result<Footer> {
        landed(&self.path(volume, part), part, entry, |file| {
            read_footer(entry.bytes, |offset, buffer| file.read_exact_at(buffer, offset))
        })
    }

    /// Looks at what an earlier process left: debris goes, whole parts are verified and listed. `sweep`: the ledger was
    /// replayed in full, so what cannot be published any more may go (T4); without it everything but debris of writers stays.
    pub(crate) fn recover(&self, segments: &Segments, image: &GroupImage, sweep: bool) -> Result<()> {
        let names = &segments.names;
        let mut ends = Vec::new();
        for path in self.files()? {
            let remove = || fs::remove_file(&path).map_err(|e| self.store.io("removing", &path, 0, e));
            let relative = path.strip_prefix(&self.dir).ok().and_then(Path::to_str).unwrap_or_default();
            if relative.ends_with(PARTIAL) {
                remove()?;
                continue;
            }
            if let Some((volume, term, seq)) = parse_end_path(relative) {
                let key = LayerKey { volume: volume_id(&names.source, &names.group, &volume), term, seq };
                match image.is_awaited(&key) {
                    true => ends.push((self.staged_wall_ms(&path)?, key, volume, path)),
                    false if sweep => remove()?,
                    false => {}
                }
                continue;
            }
            let Some((volume, term, seq, number)) = parse_part_path(relative) else { continue };
            let id = volume_id(&names.source, &names.group, &volume);
            let name = PartName { layer: LayerKey { volume: id, term, seq }, number };
            let published = image.state().layer(&name.layer).is_some();
            if published && !image.is_debris(&name) && (self.linked || !self.is_copied(segments, &volume, &name, &path)?) {
                // Its second name went missing, with an older copy of the segments, say. What is in it is checked when it is
                // read, like any segment.
                let adopted = block_on(segments.backend.adopt(&segments.name(&volume, &name), &path))?;
                if adopted == Created::AlreadyExists && !self.linked {
                    let why = "the segment in the bucket has another size than the part that landed, which stays";
                    tracing::error!(part = %path.display(), why);
                    continue;
                }
            }
            let Some(known) = image.state().volume(id).filter(|_| image.is_awaited(&name.layer)) else {
                if sweep && (published || image.is_debris(&name)) {
                    remove()?;
                }
                continue;
            };
            match verify_file(&path, known.meta(), &name) {
                Ok(entry) => {
                    let mut landed = self.lock();
                    let layer = landed.entry(name.layer).or_default();
                    layer.volume.get_or_insert(volume);
                    layer.parts.insert(number, entry);
                }
                Err(Unverified::Io(e)) => return Err(self.store.io("reading", &path, 0, e)),
                Err(Unverified::Bad(why)) => {
                    tracing::warn!(part = %path.display(), why, "a landed part does not verify and is not taken");
                    if sweep {
                        remove()?;
                    }
                }
            }
        }
        self.recover_ends(ends, sweep)?;
        self.remove_empty_folders();
        // Whoever renamed these may have died before the names were durable.
        let mut dirs = Vec::new();
        for key in self.lock().iter().filter(|(_, l)| !l.parts.is_empty() || l.end.is_some()).map(|(k, l)| (*k, l.volume.clone()))
        {
            let volume = key.1.expect("a layer that was found has a volume");
            dirs.push(self.path(&volume, &PartName { layer: key.0, number: 0 }).parent().expect("has one").to_owned());
        }
        dirs.dedup();
        for dir in dirs {
            self.store.make_dirs(&dir)?;
            self.store.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Takes up what was kept of layers that are awaited, as much as fits, in the order in which they were staged.
    fn recover_ends(&self, mut ends: Vec<(i64, LayerKey, Name, PathBuf)>, sweep: bool) -> Result<()> {
        ends.sort_by_key(|(staged_wall_ms, key, ..)| (*staged_wall_ms, *key));
        let (mut bytes, mut left) = (0, 0);
        for (_, key, volume, path) in ends {
            bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
            let fits = bytes <= ENDS_BYTES_MAX;
            left += usize::from(!fits);
            let kept = if fits { self.read_end(&path, &key)? } else { None };
            if fits && kept.is_none() {
                if sweep {
                    fs::remove_file(&path).map_err(|e| self.store.io("removing", &path, 0, e))?;
                }
                continue;
            }
            let mut landed = self.lock();
            let layer = landed.entry(key).or_default();
            layer.volume.get_or_insert(volume);
            // Also what is not taken up goes with its layer.
            layer.end = Some(kept.map(Box::new));
        }
        if left > 0 {
            let why = "more was kept of staged layers than is taken up at once";
            tracing::warn!(dir = %self.dir.display(), left, why, "some staged layers wait for their source, or for the next start");
        }
        Ok(())
    }

    /// When a layer was staged, by the file that was kept of it; what says nothing of that comes first, and is of no use.
    fn staged_wall_ms(&self, path: &Path) -> Result<i64> {
        let mut head = Vec::new();
        match File::open(path).and_then(|file| file.take(KeptEnd::HEAD_BYTES as u64).read_to_end(&mut head)) {
            Ok(_) => Ok(KeptEnd::staged_wall_ms(&head).unwrap_or(i64::MIN)),
            Err(e) if is_of_medium(&e) => Ok(i64::MIN),
            Err(e) => Err(self.store.io("reading", path, 0, e)),
        }
    }

    /// What was kept of a layer; `None`: that is of no use, and its source says it again.
    fn read_end(&self, path: &Path, key: &LayerKey) -> Result<Option<(KeptEnd, i64)>> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(KeptEnd::BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(KeptEnd::decode(&bytes).filter(|(kept, _)| kept.key == *key)),
            Err(e) if is_of_medium(&e) => Ok(None),
            Err(e) => Err(self.store.io("reading", path, 0, e)),
        }
    }

    /// Whether a segment elsewhere has the size of a file here.
    fn is_copied(&self, segments: &Segments, volume: &Name, name: &PartName, path: &Path) -> Result<bool> {
        let here = fs::metadata(path).map_err(|e| self.store.io("looking at", path, 0, e))?.len();
        Ok(block_on(segments.backend.size(&segments.name(volume, name)))? == Some(here))
    }

    /// Those of terms and volumes of which nothing is left.
    fn remove_empty_folders(&self) {
        let below = |dir: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
        };
        for volume in below(&self.dir) {
            below(&volume).iter().for_each(|term| self.remove_if_empty(term));
            self.remove_if_empty(&volume);
        }
    }

    fn path(&self, volume: &Name, part: &PartName) -> PathBuf {
        self.dir.join(part_path(volume, part))
    }

    fn cover(&self, allowance: &mut Allowance, needed: u64) -> Result<()> {
        match allowance.cover(needed, || self.space())? {
            true => Ok(()),
            false => Err(StoreError::Full { path: self.dir.clone(), needed }),
        }
    }

    fn tried(&self) -> MutexGuard<'_, BTreeMap<PartName, Tried>> {
        self.tried.lock().expect("nothing panics while it holds this lock")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LayerKey, Layer>> {
        self.landed.lock().expect("nothing panics while it holds this lock")
    }
}

impl PartLander {
    /// Which part.
    pub fn name(&self) -> PartName {
        self.name
    }

    /// Memory that it holds now, in bytes.
    pub fn held_bytes(&self) -> usize {
        match &self.check {
            Check::UnderWay(verifier) => verifier.held_bytes(),
            Check::Whole(_) => 0,
        }
    }

    /// Takes the next bytes of the part: verified first, then written.
    ///
    /// # Errors
    /// [`StoreError::BadPart`] names what does not verify; others are the file system's. The part is lost in any case.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let Check::UnderWay(verifier) = &mut self.check else { return Err(self.bad("it was whole before".to_owned())) };
        verifier.feed(chunk).map_err(|e| self.bad(e.to_string()))?;
        self.landing.cover(&mut self.allowance, chunk.len() as u64)?;
        self.file.write_all(chunk).map_err(|e| self.landing.store.io("writing", &self.partial.0, chunk.len() as u64, e))?;
        self.allowance.used(chunk.len() as u64);
        self.written_bytes += chunk.len() as u64;
        if self.written_bytes - self.pushed_bytes >= PUSH_BYTES {
            push_out(&self.file, self.pushed_bytes, self.written_bytes - self.pushed_bytes);
            self.pushed_bytes = self.written_bytes;
        }
        Ok(())
    }

    /// Says that no more bytes come: from here on it holds no memory for what it checks.
    ///
    /// # Errors
    /// [`StoreError::BadPart`] when it is not complete.
    pub fn complete(self) -> Result<Self> {
        let Self { check, .. } = self;
        let Check::UnderWay(verifier) = check else { return Ok(Self { check, ..self }) };
        match verifier.finish() {
            Ok(summary) => Ok(Self { check: Check::Whole(summary), ..self }),
            Err(error) => Err(StoreError::BadPart { layer: self.name.layer, part: self.name.number, why: error.to_string() }),
        }
    }

    /// Ends the part: when this returns, it is whole, verified and durable under its final name.
    ///
    /// # Errors
    /// [`StoreError::BadPart`] when it is not complete, or its layer was dropped meanwhile; others are the file system's.
    pub fn finish(self) -> Result<PartEntry> {
        self.complete()?.land()
    }

    fn land(self) -> Result<PartEntry> {
        let Check::Whole(summary) = self.check else { unreachable!("it was completed") };
        let bad = |why: String| StoreError::BadPart { layer: self.name.layer, part: self.name.number, why };
        let bytes = summary.bytes;
        let entry = PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest };
        let landing = &self.landing;
        self.file.sync_data().map_err(|e| landing.store.io("syncing", &self.partial.0, bytes, e))?;
        let target = landing.path(&self.volume, &self.name);
        {
            // Under the lock, so that a drop comes wholly before or wholly after.
            let mut landed = landing.lock();
            let layer = landed.entry(self.name.layer).or_default();
            if layer.drops != self.writing.drops {
                return Err(bad("its layer was dropped while it came in".into()));
            }
            fs::rename(&self.partial.0, &target).map_err(|e| landing.store.io("renaming", &self.partial.0, 0, e))?;
        }
        landing.store.sync_dir(target.parent().expect("a part lies in a term's folder"))?;
        let mut landed = landing.lock();
        let layer = landed.entry(self.name.layer).or_default();
        if layer.drops != self.writing.drops {
            // Unless it came again since: then the name is the new one's.
            if !layer.parts.contains_key(&self.name.number) && !layer.open.contains(&self.name.number) {
                let _ = fs::remove_file(&target);
            }
            return Err(bad("its layer was dropped while it came in".into()));
        }
        layer.volume.get_or_insert(self.volume);
        layer.parts.insert(self.name.number, entry);
        Ok(entry)
    }

    fn bad(&self, why: String) -> StoreError {
        StoreError::BadPart { layer: self.name.layer, part: self.name.number, why }
    }
}

/// Asks the kernel to begin writing a range of a file to its disk. A hint: what becomes of it shows at the sync.
pub(crate) fn push_out(file: &File, offset: u64, bytes: u64) {
    let (offset, bytes) = (offset as libc::off_t, bytes as libc::off_t);
    let _ = nix::fcntl::posix_fadvise(file, offset, bytes, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// What is in the file of a landed part, as `read` reads it.
fn landed(
    path: &Path,
    part: &PartName,
    entry: &PartEntry,
    read: impl FnOnce(&File) -> std::result::Result<Footer, ReadFooterError<std::io::Error>>,
) -> Result<Footer> {
    let io = |doing, error| StoreError::from_io(doing, path, 0, error);
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(StoreError::PartMissing { layer: part.layer, part: part.number });
        }
        other => other.map_err(|e| io("opening", e))?,
    };
    let bad = |why: String| StoreError::BadPart { layer: part.layer, part: part.number, why };
    match read(&file) {
        Ok(footer) if footer.summary().footer_digest == entry.footer_digest => Ok(footer),
        Ok(_) => Err(bad("it is not the part that landed".into())),
        Err(ReadFooterError::Read(e)) if is_of_medium(&e) => Err(bad(format!("it cannot be read: {e}"))),
        Err(ReadFooterError::Read(e)) if e.kind() == ErrorKind::UnexpectedEof => {
            Err(bad("it is shorter than what landed".into()))
        }
        Err(ReadFooterError::Read(e)) => Err(io("reading", e)),
        Err(e) => Err(bad(e.to_string())),
    }
}

/// † Before a landed part goes to where its source forgets it for: its disk may have changed it since it was verified, and until then it can be had
/// again.
///
/// # Errors
/// [`StoreError::PartMissing`], [`StoreError::BadPart`], or what the file system says.
pub(crate) fn check_landed(path: &Path, part: &PartName, entry: &PartEntry) -> Result<()> {
    landed(path, part, entry, |file| check_stored(entry.bytes, |offset, buffer| file.read_exact_at(buffer, offset))).map(drop)
}

enum Unverified {
    Io(std::io::Error),
    Bad(String),
}

/// Reads a whole part and checks every byte of it.
fn verify_file(path: &Path, volume: &VolumeMeta, name: &PartName) -> Result<PartEntry, Unverified> {
    let failed = |e: std::io::Error| match is_of_medium(&e) {
        true => Unverified::Bad(format!("it cannot be read: {e}")),
        false => Unverified::Io(e),
    };
    let mut file = File::open(path).map_err(failed)?;
    let id = PartId { key: name.layer, part: name.number, geometry: volume.geometry };
    let mut verifier = PartVerifier::new(id, &volume.digest_key);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => verifier.feed(&buffer[..n]).map_err(|e| Unverified::Bad(e.to_string()))?,
        }
    }
    let summary = verifier.finish().map_err(|e| Unverified::Bad(e.to_string()))?;
    Ok(PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest })
}

/// All files below a directory that may not exist.
pub(crate) fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
#[path = "landing_tests.rs"]
mod tests;
