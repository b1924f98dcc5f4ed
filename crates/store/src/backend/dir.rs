//! A directory as a medium: temp file, fsync, hard link, fsync of the directory, and only then an answer.
//!
//! Owns the files under the root except landing, the locks and the ballast. Invariants: a name appears only by `link` of a
//! synced file, so it is whole at any power cut; [`Created`] is said only after the directory entry is durable; files of a
//! process that was killed lie in `tmp/`, which only the holder of `writer.lock` empties. It deliberately does not lock
//! (see `locks`), and it never overwrites (but see [`Backend::put_right`]).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Backend, Created, Listed, ObjectName, Page};
use crate::error::{Result, StoreError};
use crate::space::Allowed;

/// Names at the root that are ours and are not objects.
const RESERVED: [&str; 5] = ["tmp", "landing", "writer.lock", "reader.lock", "ballast"];
/// Open files kept for reading.
const OPEN_FILES_MAX: usize = 64;
/// After so long it is looked whether an open file still has its name: a bad one may have been replaced from a copy.
const LOOKED_AGAIN: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });
/// Directories remembered as durable.
const KNOWN_DIRS_MAX: usize = 16_384;
/// An object of so many bytes is read in pieces at once: no one processor makes the memory for all of it, and a cold disk has several requests.
const LONG_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 4 << 20 };
const PIECES: usize = 4;

/// Makes names of temporary files unique in this process, over every directory that it opens, however often. What another process left is gone
/// before the holder of `writer.lock` makes any.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The directory backend.
#[derive(Debug)]
pub struct DirBackend {
    root: PathBuf,
    root_id: (u64, u64),
    /// What the writers of parts may write, of all groups.
    allowed: Arc<Allowed>,
    inner: Mutex<Inner>,
    /// Syncs of directories that are wanted or under way.
    syncs: Mutex<HashMap<PathBuf, DirSync>>,
    synced: Condvar,
}

/// Syncs of one directory, numbered by who wants them.
#[derive(Clone, Copy, Debug, Default)]
struct DirSync {
    wanted: u64,
    done: u64,
    running: bool,
    /// Threads that have not returned.
    users: u64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Directories whose own entries are known to be durable.
    durable_dirs: HashSet<PathBuf>,
    /// Most recently used last.
    open: VecDeque<Open>,
    /// The first write or sync of a directory that failed. Nothing is acknowledged after it.
    failed: Option<(PathBuf, String)>,
    /// The next sync of this directory fails so, after it was done.
    #[cfg(test)]
    fails: Option<(PathBuf, i32)>,
}

/// A file that is kept open.
#[derive(Debug)]
struct Open {
    name: ObjectName,
    file: Arc<File>,
    looked: Instant,
}

impl Open {
    /// Whether no other file has its name by now. One that was removed can be read on.
    fn is_still_at(&self, path: &Path) -> bool {
        let id = |meta: &fs::Metadata| (meta.dev(), meta.ino());
        match (fs::metadata(path), self.file.metadata()) {
            (Ok(there), Ok(here)) => id(&there) == id(&here),
            (there, _) => there.is_err(),
        }
    }
}

impl DirBackend {
    /// The backend over an existing directory, for who writes there.
    ///
    /// # Errors
    /// When it is not a directory, or on a network file system: locks and links are not dependable there.
    pub fn open_to_write(root: &Path) -> Result<Self> {
        let dir = Self::open(root)?;
        match farside_blockio::remote_filesystem(&dir.root) {
            Ok(None) => Ok(dir),
            Ok(Some(kind)) => Err(StoreError::NetworkFs { path: dir.root, kind }),
            Err(error) => Err(StoreError::from_io("looking at", &dir.root, 0, error)),
        }
    }

    /// The backend over an existing directory. Who only reads may do so from anywhere: a copy, a share.
    ///
    /// # Errors
    /// When it is not a directory.
    pub fn open(root: &Path) -> Result<Self> {
        let meta = fs::metadata(root).map_err(|e| match e.kind() {
            ErrorKind::NotFound => StoreError::Vanished { path: root.to_owned() },
            _ => StoreError::from_io("opening", root, 0, e),
        })?;
        if !meta.is_dir() {
            return Err(StoreError::from_io("opening", root, 0, io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        let root = fs::canonicalize(root).map_err(|e| StoreError::from_io("opening", root, 0, e))?;
        Ok(Self {
            root_id: (meta.dev(), meta.ino()),
            root,
            allowed: Arc::default(),
            inner: Mutex::default(),
            syncs: Mutex::default(),
            synced: Condvar::new(),
        })
    }

    /// The directory, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn allowed(&self) -> &Arc<Allowed> {
        &self.allowed
    }

    /// Empties `tmp/` of what killed processes left, and proves that hard links work. For the holder of `writer.lock` only.
    ///
    /// # Errors
    /// [`StoreError::NoHardLinks`], or what the file system says.
    pub fn prepare(&self) -> Result<()> {
        let tmp = self.root.join("tmp");
        self.make_dirs(&tmp)?;
        for entry in fs::read_dir(&tmp).map_err(|e| self.io("listing", &tmp, 0, e))? {
            let path = entry.map_err(|e| self.io("listing", &tmp, 0, e))?.path();
            fs::remove_file(&path).map_err(|e| self.io("removing", &path, 0, e))?;
        }
        let (one, two) = (self.temp_path(), self.temp_path());
        match File::create_new(&one).map_err(|e| self.io("creating", &one, 1, e)) {
            // A full store must open, so that it can be pruned. It had hard links when it was made.
            Err(StoreError::Full { .. }) => return Ok(()),
            other => drop(other?),
        }
        let first = fs::hard_link(&one, &two);
        let second = fs::hard_link(&one, &two);
        let _ = fs::remove_file(&two);
        fs::remove_file(&one).map_err(|e| self.io("removing", &one, 0, e))?;
        match (first, second) {
            (Ok(()), Err(e)) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            (Err(e), _) => match self.io("linking", &two, 1, e) {
                StoreError::Full { .. } => Ok(()),
                StoreError::Io { source, .. } => {
                    Err(StoreError::NoHardLinks { path: self.root.clone(), why: source.to_string() })
                }
                StoreError::Denied { .. } => {
                    Err(StoreError::NoHardLinks { path: self.root.clone(), why: "not permitted".into() })
                }
                other => Err(other),
            },
            (Ok(()), other) => Err(StoreError::NoHardLinks {
                path: self.root.clone(),
                why: format!("a second link of the same name was answered with {other:?}"),
            }),
        }
    }

    /// Whether the directory is still the one that was opened.
    ///
    /// # Errors
    /// [`StoreError::Vanished`], [`StoreError::Latched`].
    pub fn present(&self) -> Result<()> {
        self.in_place()?;
        self.not_latched()
    }

    fn in_place(&self) -> Result<()> {
        match fs::metadata(&self.root) {
            Ok(m) if (m.dev(), m.ino()) == self.root_id => Ok(()),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::from_io("looking at", &self.root, 0, e)),
            _ => Err(StoreError::Vanished { path: self.root.clone() }),
        }
    }

    fn not_latched(&self) -> Result<()> {
        match &self.lock().failed {
            None => Ok(()),
            Some((path, why)) => Err(StoreError::Latched { path: path.clone(), why: why.clone() }),
        }
    }

    /// The file of an object.
    pub(crate) fn path(&self, name: &ObjectName) -> Result<PathBuf> {
        let first = name.as_str().split('/').next().unwrap_or_default();
        if RESERVED.contains(&first) { Err(StoreError::BadName(name.to_string())) } else { Ok(self.root.join(name.as_str())) }
    }

    /// Makes a directory and its parents below the root, durably.
    pub(crate) fn make_dirs(&self, dir: &Path) -> Result<()> {
        if dir == self.root || self.lock().durable_dirs.contains(dir) {
            return Ok(());
        }
        let parent = dir.parent().expect("a path below the root has a parent");
        self.make_dirs(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(self.io("creating", dir, 4096, e)),
            _ => {}
        }
        // Also when it was there: whoever made it may have died before its entry was durable.
        self.sync_dir(parent)?;
        let known = &mut self.lock().durable_dirs;
        if known.len() >= KNOWN_DIRS_MAX {
            known.clear();
        }
        known.insert(dir.to_owned());
        Ok(())
    }

    /// A directory may have been removed.
    pub(crate) fn forget_dir(&self, dir: &Path) {
        self.lock().durable_dirs.remove(dir);
    }

    /// Makes a directory's entries durable, those that are there when this is called. Threads that want the same at the same
    /// time share one fsync: one that began after their entry was made. A failure latches: which entries are durable is
    /// unknown from then on.
    pub(crate) fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut syncs = self.syncs.lock().expect("nothing panics while it holds this lock");
        let entry = syncs.entry(dir.to_owned()).or_default();
        entry.wanted += 1;
        entry.users += 1;
        let mine = entry.wanted;
        loop {
            let entry = syncs.get_mut(dir).expect("it is there as long as somebody uses it");
            if entry.done >= mine {
                leave(&mut syncs, dir);
                return Ok(());
            }
            if entry.running {
                syncs = self.synced.wait(syncs).expect("nothing panics while it holds this lock");
                continue;
            }
            entry.running = true;
            let covers = entry.wanted;
            drop(syncs);
            let result = self.sync_dir_now(dir);
            syncs = self.syncs.lock().expect("nothing panics while it holds this lock");
            let entry = syncs.get_mut(dir).expect("it is there as long as somebody uses it");
            entry.running = false;
            if result.is_ok() {
                entry.done = covers;
            } // else nobody has anything of it: who waits tries himself
            leave(&mut syncs, dir);
            self.synced.notify_all();
            return result;
        }
    }

    fn sync_dir_now(&self, dir: &Path) -> Result<()> {
        // † A descriptor opened after a failed sync is told of nothing: whoever waited for the one that failed must not find his
        // own to succeed.
        self.not_latched()?;
        // What cannot be opened was not synced, and nothing is known to have failed.
        let opened = File::open(dir).map_err(|e| self.unsynced(dir, e))?;
        self.sync_opened(&opened, dir)
    }

    fn sync_opened(&self, opened: &File, dir: &Path) -> Result<()> {
        let synced = opened.sync_all();
        #[cfg(test)]
        let synced = match self.lock().fails.take_if(|(of, _)| of == dir) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(errno)),
            None => synced,
        };
        synced.map_err(|e| {
            let why = e.to_string();
            self.lock().failed.get_or_insert((dir.to_owned(), why.clone()));
            StoreError::Latched { path: dir.to_owned(), why }
        })
    }

    /// † No space, or no right, is said of what was not done: here an entry may have been made, and is durable or is not.
    fn unsynced(&self, dir: &Path, e: io::Error) -> StoreError {
        match self.io("syncing", dir, 0, e) {
            StoreError::Full { .. } | StoreError::ReadOnly { .. } | StoreError::Denied { .. } => {
                let source = io::Error::other("it cannot be opened to be synced");
                StoreError::Io { doing: "syncing", path: dir.to_owned(), source }
            }
            other => other,
        }
    }

    /// The next sync of a directory is answered with this, as a file system does that finds no place for the entry only then.
    #[cfg(test)]
    pub(crate) fn fail_sync(&self, dir: &Path, errno: i32) {
        self.lock().fails = Some((dir.to_owned(), errno));
    }

    /// Maps an error, telling a vanished store from a missing file.
    pub(crate) fn io(&self, doing: &'static str, path: &Path, needed: u64, e: io::Error) -> StoreError {
        if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE | libc::ENOTDIR | libc::ENODEV)) {
            let here = fs::metadata(&self.root).is_ok_and(|m| (m.dev(), m.ino()) == self.root_id);
            if !here {
                return StoreError::Vanished { path: self.root.clone() };
            }
        }
        StoreError::from_io(doing, path, needed, e)
    }

    /// `None` for what is not there, as long as the store itself is.
    fn unless_missing<T>(&self, doing: &'static str, path: &Path, result: io::Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => match self.io(doing, path, 0, e) {
                vanished @ StoreError::Vanished { .. } => Err(vanished),
                _ => Ok(None),
            },
            Err(e) => Err(self.io(doing, path, 0, e)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds this lock")
    }

    fn temp_path(&self) -> PathBuf {
        let n = SERIAL.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{n}", std::process::id()))
    }

    fn write_temp(&self, temp: &Path, content: &[u8]) -> Result<()> {
        let needed = content.len() as u64;
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(|e| self.io("writing", temp, needed, e))
    }

    /// Links a synced file to its name and makes the entry durable.
    fn link(&self, from: &Path, to: &Path) -> Result<Created> {
        let parent = to.parent().expect("an object's file has a parent");
        // A directory may be removed as empty between our looking and our linking.
        for last in [false, false, true] {
            self.make_dirs(parent)?;
            match fs::hard_link(from, to) {
                Ok(()) => return self.sync_dir(parent).map(|()| Created::New),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return self.sync_dir(parent).map(|()| Created::AlreadyExists);
                }
                Err(e) if e.kind() == ErrorKind::NotFound && !last => {
                    self.lock().durable_dirs.clear();
                }
                Err(e) => return Err(self.io("linking", to, 4096, e)),
            }
        }
        unreachable!("the last turn returns")
    }

    fn open_file(&self, name: &ObjectName) -> Result<Option<Arc<File>>> {
        let path = self.path(name)?;
        let mut inner = self.lock();
        if let Some(at) = inner.open.iter().position(|open| open.name == *name) {
            let mut open = inner.open.remove(at).expect("the position was just found");
            if open.looked.elapsed() < LOOKED_AGAIN || open.is_still_at(&path) {
                open.looked = Instant::now();
                let file = Arc::clone(&open.file);
                inner.open.push_back(open);
                return Ok(Some(file));
            }
        }
        drop(inner);
        let opened = self.unless_missing("opening", &path, File::open(&path)).map_err(StoreError::while_reading)?;
        let Some(file) = opened.map(Arc::new) else { return Ok(None) };
        let mut inner = self.lock();
        if inner.open.len() >= OPEN_FILES_MAX {
            inner.open.pop_front();
        }
        inner.open.push_back(Open { name: name.clone(), file: Arc::clone(&file), looked: Instant::now() });
        Ok(Some(file))
    }

    fn walk(&self, dir: &Path, name: &str, after: Option<&str>, limit: usize, page: &mut Page) -> Result<()> {
        let mut entries = Vec::new();
        // Missing: removed as empty while we walk, or never there.
        let read = self.unless_missing("listing", dir, fs::read_dir(dir)).map_err(StoreError::while_reading)?;
        let Some(read) = read else { return Ok(()) };
        for entry in read {
            let entry = entry.map_err(|e| self.io("listing", dir, 0, e).while_reading())?;
            let Ok(part) = entry.file_name().into_string() else { continue };
            if name.is_empty() && RESERVED.contains(&part.as_str()) {
                continue;
            }
            entries.push((part, entry));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (part, entry) in entries {
            if page.more {
                return Ok(());
            }
            let full = if name.is_empty() { part.clone() } else { format!("{name}/{part}") };
            let Ok(object) = ObjectName::new(full) else { continue };
            let kind = entry.file_type().map_err(|e| self.io("listing", dir, 0, e).while_reading())?;
            // `after`, seen from this directory: this component, or nothing when it lies elsewhere.
            let (skip_before, inside) = match after {
                None => (None, None),
                Some(a) => match a.split_once('/') {
                    Some((head, rest)) => (Some(head), Some(rest)),
                    None => (Some(a), None),
                },
            };
            let order = skip_before.map_or(std::cmp::Ordering::Greater, |head| part.as_str().cmp(head));
            if order == std::cmp::Ordering::Less {
                continue;
            }
            let same = order == std::cmp::Ordering::Equal;
            if kind.is_dir() {
                let deeper = if same { inside } else { None };
                if same && inside.is_none() {
                    continue; // `after` was an object of this very name, now a directory: cannot be
                }
                self.walk(&entry.path(), object.as_str(), deeper, limit, page)?;
            } else if kind.is_file() && !(same && inside.is_none()) {
                if page.objects.len() == limit {
                    page.more = true;
                    return Ok(());
                }
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(self.io("looking at", &entry.path(), 0, e).while_reading()),
                };
                let created_ms = meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000);
                page.objects.push(Listed { name: object, bytes: meta.len(), created_ms });
            }
        }
        Ok(())
    }
}

/// An object that has so many bytes, and is whole. Whatever else there is to say of it, who reads it in one go says.
fn read_in_pieces(file: &File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; bytes];
    let piece_bytes = bytes.div_ceil(PIECES).max(1);
    std::thread::scope(|scope| {
        let read = |(at, piece): (usize, &mut [u8])| file.read_exact_at(piece, (at * piece_bytes) as u64);
        let mut pieces = content.chunks_mut(piece_bytes).enumerate();
        let first = pieces.next();
        // Where there is no thread for it, whoever asks has the rest read in one go.
        let others = pieces.map(|piece| std::thread::Builder::new().spawn_scoped(scope, move || read(piece)));
        let others: Vec<_> = others.collect::<io::Result<_>>()?;
        let all = first.map_or(Ok(()), read);
        others.into_iter().map(|other| other.join().expect("such a thread does not panic")).fold(all, Result::and)
    })?;
    Ok(content)
}

#[async_trait]
impl Backend for DirBackend {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        let path = self.path(name)?;
        self.present()?;
        self.make_dirs(&self.root.join("tmp"))?;
        let temp = self.temp_path();
        let result = self.write_temp(&temp, &content).and_then(|()| self.link(&temp, &path));
        let _ = fs::remove_file(&temp); // debris is swept at the next start
        result
    }

    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        let path = self.path(name)?;
        self.present()?;
        self.link(file, &path)
    }

    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        let path = self.path(name)?;
        let file = self.unless_missing("opening", &path, File::open(&path)).map_err(StoreError::while_reading)?;
        let Some(file) = file else { return Ok(None) };
        let has = file.metadata().map_err(|e| self.io("looking at", &path, 0, e).while_reading())?.len();
        if (LONG_BYTES..=bytes_max).contains(&has)
            && let Ok(content) = read_in_pieces(&file, usize::try_from(has).expect("an object fits memory"))
        {
            return Ok(Some(content.into()));
        }
        // Read in one go, and in another that finds its end.
        let mut content = Vec::with_capacity(usize::try_from(has.min(bytes_max)).expect("an object fits memory") + 1);
        let read = file.take(bytes_max + 1).read_to_end(&mut content);
        read.map_err(|e| self.io("reading", &path, 0, e).while_reading())?;
        if content.len() as u64 > bytes_max {
            return Err(StoreError::Damaged { path, why: format!("it has more than {bytes_max} bytes") });
        }
        Ok(Some(content.into()))
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        let Some(file) = self.open_file(name)? else {
            return Err(StoreError::NotFound { name: name.to_string(), path: self.root.clone() });
        };
        let path = self.path(name)?;
        let has = file.metadata().map_err(|e| self.io("looking at", &path, 0, e).while_reading())?.len();
        let len = len.min(has.saturating_sub(offset));
        let mut content = vec![0; usize::try_from(len).expect("a range fits memory")];
        file.read_exact_at(&mut content, offset).map_err(|e| self.io("reading", &path, 0, e).while_reading())?;
        Ok(content.into())
    }

    async fn drop_cached(&self, name: &ObjectName) -> Result<()> {
        let Some(file) = self.open_file(name)? else { return Ok(()) };
        // What was synced is clean, and so can be dropped; where a file system does not care, nothing is lost.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let path = self.path(name)?;
        let meta = self.unless_missing("looking at", &path, fs::metadata(&path)).map_err(StoreError::while_reading)?;
        Ok(meta.filter(fs::Metadata::is_file).map(|m| m.len()))
    }

    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        let mut page = Page::default();
        let (dir, name) = match prefix {
            None => (self.root.clone(), ""),
            Some(p) => (self.path(p)?, p.as_str()),
        };
        let after = match after.map(ObjectName::as_str) {
            None => None,
            Some(a) if name.is_empty() => Some(a),
            Some(a) => match a.strip_prefix(name).and_then(|a| a.strip_prefix('/')) {
                Some(inside) => Some(inside),
                None if a < name => None,
                None => return Ok(page),
            },
        };
        self.present()?;
        self.walk(&dir, name, after, limit, &mut page)?;
        Ok(page)
    }

    /// Without looking at each, which a cold disk takes its time for.
    async fn names(&self, prefix: &ObjectName) -> Result<Vec<ObjectName>> {
        let dir = self.path(prefix)?;
        self.present()?;
        let failed = |e| self.io("listing", &dir, 0, e).while_reading();
        let read = self.unless_missing("listing", &dir, fs::read_dir(&dir)).map_err(StoreError::while_reading)?;
        let mut names = Vec::new();
        for entry in read.into_iter().flatten() {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.extend(ObjectName::new(format!("{prefix}/{name}")).ok());
            }
        }
        Ok(names)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let path = self.path(name)?;
        // † What this store needs no more, an older copy of it may need: one that was put in its place since the last look, among thousands of deletions.
        self.in_place()?;
        self.lock().open.retain(|open| open.name != *name);
        if self.unless_missing("removing", &path, fs::remove_file(&path))?.is_none() {
            return Ok(());
        }
        // An empty directory goes too; the one above holds few entries and may stay.
        let parent = path.parent().expect("an object's file has a parent");
        if parent != self.root && fs::remove_dir(parent).is_ok() {
            self.lock().durable_dirs.remove(parent);
        }
        Ok(())
    }

    async fn sync(&self, prefix: &ObjectName) -> Result<()> {
        self.present()?;
        let mut at = self.path(prefix)?;
        loop {
            match File::open(&at) {
                Ok(file) => self.sync_opened(&file, &at)?,
                Err(e) if e.kind() == ErrorKind::NotFound && at != self.root => {}
                Err(e) => return Err(self.unsynced(&at, e)),
            }
            if at == self.root {
                return Ok(());
            }
            at = at.parent().expect("a path below the root has a parent").to_owned();
        }
    }

    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        let dir = self.path(prefix)?;
        self.present()?;
        let failed = |e| self.io("listing", &dir, 0, e).while_reading();
        let read = self.unless_missing("listing", &dir, fs::read_dir(&dir)).map_err(StoreError::while_reading)?;
        let mut names = BTreeSet::new();
        for entry in read.into_iter().flatten() {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    /// Whole at any power cut.
    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        let path = self.path(name)?;
        self.present()?;
        self.make_dirs(&self.root.join("tmp"))?;
        let temp = self.temp_path();
        let result = self
            .write_temp(&temp, &content)
            .and_then(|()| fs::rename(&temp, &path).map_err(|e| self.io("renaming", &path, content.len() as u64, e)))
            .and_then(|()| self.sync_dir(path.parent().expect("an object's file has a parent")));
        let _ = fs::remove_file(&temp); // debris is swept at the next start
        result
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

/// One thread less wants a directory synced.
fn leave(syncs: &mut HashMap<PathBuf, DirSync>, dir: &Path) {
    if let Some(entry) = syncs.get_mut(dir) {
        entry.users -= 1;
        if entry.users == 0 {
            syncs.remove(dir);
        }
    }
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
