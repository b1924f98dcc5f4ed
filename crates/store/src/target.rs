//! What a point is restored to: a file or a block device, locked, and never one that is in use.
//!
//! Owns the checks on the target. A new file, and one that replaces another, gets its name only when it is complete; what is
//! filled where it lies (a device, or any target of a resumed restore) has its first region last, so that it does not look
//! whole before it is. Not here: who may restore where (a device that is a configured backing goes through `farsided`, T13).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use farside_blockio::{
    Identity, Users, ancestors, counts_writes, open_still, openers, openers_but, users_of_file, users_of_file_but,
};
use farside_region::{ByteExtent, ByteOffset, mutation};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use crate::aligned::ALIGN;
use crate::error::{Result, StoreError};
use crate::follower::{FollowTarget, Following, Seen};
use crate::landing::push_out;
use crate::restore::RestoreTarget;

/// What is written of a volume begins and ends at multiples of this, but for its end.
const GRANULE_BYTES: u64 = 4096;
/// Shorter writes are left to the page cache, which joins them.
const DIRECT_BYTES_MIN: usize = 128 << 10;

/// What may become of the content that a target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: a target with content is refused.
    Keep,
    /// It is lost; a file only when the new one is complete.
    Replace,
    /// It is where the restore begins: what is right stays, the rest is overwritten in place.
    Resume,
}

/// A file or block device as a target, locked.
#[derive(Debug)]
pub struct FileTarget {
    path: PathBuf,
    file: Flock<File>,
    /// The same, around the page cache, if that can be: nobody reads soon what a restore writes, and filling the cache with it
    /// costs more than the writing.
    direct: Option<File>,
    /// It reads as zeroes where nothing was written.
    zeroed: bool,
    /// The name under which a file grows until it is complete.
    partial: Option<PathBuf>,
    /// The file that it then replaces, locked.
    replaces: Option<Flock<File>>,
    existing: Existing,
}

impl FileTarget {
    /// Opens a target for a volume of that name and size: a new file, an empty one, or a device that looks empty; one with
    /// content only as `existing` says. A file that is too small grows then, a device cannot. [`Existing::Replace`]: a file
    /// is replaced only by [`FileTarget::finish`], so there must be space for both. [`Existing::Resume`]: what an earlier
    /// restore to this name left unfinished is gone on with; else the file itself is.
    ///
    /// # Errors
    /// [`StoreError::TargetTooSmall`], [`StoreError::TargetNotEmpty`], [`StoreError::TargetBusy`],
    /// [`StoreError::TargetUnsuitable`]; what the file system says.
    pub fn open(path: &Path, volume: &str, needs: u64, existing: Existing) -> Result<Self> {
        let io = |doing, e| StoreError::of_target(doing, path, e);
        if is_missing(path)? {
            refuse_lost_device(path, Path::new("/dev"))?;
            return Self::create(path, needs, needs, existing);
        }
        let (file, meta, has) = open_locked(path, Users::Writers)?;
        let kind = meta.file_type();
        let small = || StoreError::TargetTooSmall { path: path.to_owned(), has, volume: volume.to_owned(), needs };
        if kind.is_block_device() {
            if has < needs {
                return Err(small());
            }
            if existing == Existing::Keep && !device_looks_empty(&file, has).map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
            return Ok(Self::in_place(path.to_owned(), file, existing));
        }
        if existing == Existing::Keep && has > 0 {
            if !file_is_hole(&file).map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
            if has < needs {
                return Err(small());
            }
        }
        let real = fs::canonicalize(path).map_err(|e| io("opening", e))?;
        if existing == Existing::Resume && !partial_of(&real)?.exists() {
            refuse_used(path, || users_of_file(&file, Users::All))?;
            resize(&file, needs, has.max(needs)).map_err(|e| io("resizing", e))?;
            return Ok(Self::in_place(real, file, existing));
        }
        let mut new = Self::create(&real, needs, has.max(needs), existing)?;
        let _ = fchown(&*new.file, Some(meta.uid()), Some(meta.gid())); // as far as the caller may
        new.file.set_permissions(meta.permissions()).map_err(|e| io("creating", e))?;
        new.replaces = Some(file);
        Ok(new)
    }

    /// Opens a target that is to be kept equal to points, where it lies. `is_new`: what it holds is nobody's yet, so there must be nothing,
    /// unless `overwrite`; a file is made then if there is none.
    ///
    /// # Errors
    /// [`StoreError::TargetTooSmall`] (a device), [`StoreError::TargetNotEmpty`], [`StoreError::TargetBusy`],
    /// [`StoreError::TargetUnsuitable`]; what the file system says.
    pub fn open_to_follow(path: &Path, volume: &str, needs: u64, is_new: bool, overwrite: bool) -> Result<Self> {
        let io = |doing, e| StoreError::of_target(doing, path, e);
        if is_missing(path)? {
            if !is_new {
                let why = "it is gone; bring it back, or end following it and begin anew".to_owned();
                return Err(StoreError::TargetUnsuitable { path: path.to_owned(), why });
            }
            refuse_lost_device(path, Path::new("/dev"))?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600).open(path).map_err(|e| io("creating", e))?;
            sync_folder_of(path)?;
        }
        let (file, meta, has) = open_locked(path, Users::All)?;
        let is_device = meta.file_type().is_block_device();
        if is_device && has < needs {
            return Err(StoreError::TargetTooSmall { path: path.to_owned(), has, volume: volume.to_owned(), needs });
        }
        if let Some(block_bytes) = is_device.then(|| logical_block_bytes(&meta)).flatten()
            && block_bytes > GRANULE_BYTES
        {
            let why =
                format!("its logical blocks have {block_bytes} bytes, and a volume is written in pieces of {GRANULE_BYTES}");
            return Err(StoreError::TargetUnsuitable { path: path.to_owned(), why });
        }
        if is_new && !overwrite {
            let empty = if is_device { device_looks_empty(&file, has) } else { file_is_hole(&file) };
            if !empty.map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
        }
        let real = if is_device { path.to_owned() } else { fs::canonicalize(path).map_err(|e| io("opening", e))? };
        Ok(Self::in_place(real, file, Existing::Resume))
    }

    /// The target in `open`, opened by [`FileTarget::open_to_follow`] if it is not, or if something else has its name by now: † what has the
    /// target's name is the target. `following`: what is known of it. `needs`: how large it must be, if that matters now.
    ///
    /// # Errors
    /// Those of [`FileTarget::open_to_follow`]; nothing is open then.
    pub fn kept_open<'t>(
        open: &'t mut Option<Self>,
        path: &Path,
        volume: &str,
        needs: Option<u64>,
        (following, overwrite): (&Following, bool),
    ) -> Result<&'t Self> {
        // Closed before another one is opened: that may be the same under its old name.
        let target = match open.take().filter(Self::is_in_place) {
            Some(target) => target,
            None => Self::open_to_follow(path, volume, needs.unwrap_or(0), *following == Following::default(), overwrite)?,
        };
        Ok(open.insert(target))
    }

    /// Makes the file of so many bytes that grows, or takes up what an earlier restore left of the first `needs`.
    fn create(path: &Path, needs: u64, bytes: u64, existing: Existing) -> Result<Self> {
        let partial = partial_of(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| fs::metadata(folder).is_err_and(|e| e.kind() == ErrorKind::NotFound)) {
            let why = format!("there is no directory {}", folder.display());
            return Err(StoreError::TargetUnsuitable { path: path.to_owned(), why });
        }
        let io = |doing, e| StoreError::of_target(doing, &partial, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let opened = options.open(&partial);
        let file = lock(&partial, opened.map_err(|e| io("creating", e))?)?;
        let left = file.metadata().map_err(|e| io("measuring", e))?;
        if !is_named(&left, &partial) {
            let why = "another restore to it has just ended".to_owned();
            return Err(StoreError::TargetBusy { path: path.to_owned(), why });
        }
        if !left.is_file() {
            return Err(StoreError::TargetUnsuitable { path: partial, why: "it is not a file".to_owned() });
        }
        let zeroed = existing != Existing::Resume || left.len() == 0;
        let keeps = if zeroed { 0 } else { needs };
        resize(&file, keeps, bytes).map_err(|e| io("resizing", e))?;
        let mut target = Self::in_place(path.to_owned(), file, existing);
        (target.zeroed, target.partial) = (zeroed, Some(partial));
        Ok(target)
    }

    /// Where it is, whatever led there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// The system's.
    pub fn handle(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Whether its path still leads to it: not where something else was put in its place, nor where its device came back as another one.
    pub fn is_in_place(&self) -> bool {
        let which = |meta: &fs::Metadata| match meta.file_type().is_block_device() {
            true => (true, meta.rdev(), 0),
            false => (false, meta.dev(), meta.ino()),
        };
        match (self.file.metadata(), fs::metadata(&self.path)) {
            // A device that went away keeps its number as long as it is open.
            (Ok(open), Ok(named)) => which(&open) == which(&named) && (open.is_file() || in_sysfs(&open).exists()),
            _ => false,
        }
    }

    /// What is written into under its own name, and may hold anything.
    fn in_place(path: PathBuf, file: Flock<File>, existing: Existing) -> Self {
        Self { path, direct: open_direct(&file), file, zeroed: false, partial: None, replaces: None, existing }
    }

    /// Whether content may be there that is right already.
    pub fn is_resumed(&self) -> bool {
        self.existing == Existing::Resume && !self.zeroed
    }

    /// Where it grows until it is complete, if that is not under its own name.
    pub fn partial(&self) -> Option<&Path> {
        self.partial.as_deref()
    }

    /// After a complete restore: gives a file its name.
    ///
    /// # Errors
    /// [`StoreError::NotNamed`] when it cannot get it, or another file came up under it meanwhile; what was restored is kept
    /// then. What the file system says.
    pub fn finish(mut self) -> Result<()> {
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let mut used = false;
        let found = fs::symlink_metadata(&self.path).ok().map(|named| (named.dev(), named.ino()));
        let is_what_it_was = |old: &File| old.metadata().is_ok_and(|old| found == Some((old.dev(), old.ino())));
        let named = match self.replaces.as_deref().filter(|_| found.is_some()) {
            // † Hours may have gone by.
            Some(old) if !is_what_it_was(old) => {
                Err(io::Error::new(ErrorKind::AlreadyExists, "another file has that name by now"))
            }
            // † Whatever came to write to the old one meanwhile would go on in a file without a name.
            Some(old) => match in_use(|| users_of_file(old, Users::Writers)) {
                Some(why) => {
                    used = true;
                    Err(io::Error::new(ErrorKind::ResourceBusy, why))
                }
                None if self.existing != Existing::Keep || file_is_hole(old).unwrap_or(false) => fs::rename(&partial, &self.path),
                None => Err(io::Error::new(ErrorKind::AlreadyExists, "something was written to it meanwhile")),
            },
            None => rename_new(&partial, &self.path),
        };
        named.map_err(|e| {
            let goes_on = used && self.existing != Existing::Keep;
            StoreError::NotNamed { path: self.path.clone(), partial: partial.clone(), why: e.to_string(), goes_on }
        })?;
        sync_folder_of(&self.path)
    }
}

/// Makes a name durable.
fn sync_folder_of(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| StoreError::of_target("syncing", parent, e))
}

/// Whether nothing has that name, not even a symbolic link.
fn is_missing(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(StoreError::of_target("opening", path, e)),
        Ok(_) => Ok(false),
    }
}

/// † A device that is not there would become a file in memory, be filled, and be gone with the next boot. A file system below the folder of
/// `devices`, as `/dev/shm`, is one like others.
fn refuse_lost_device(path: &Path, devices: &Path) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_of = |devices: &fs::Metadata| fs::metadata(folder).is_ok_and(|folder| folder.dev() == devices.dev());
    let is_below = || fs::canonicalize(folder).ok().zip(fs::canonicalize(devices).ok()).is_some_and(|(f, d)| f.starts_with(d));
    if fs::metadata(devices).is_ok_and(|devices| is_of(&devices)) && is_below() {
        let why = format!("there is no such device, and a file in {} would be one in memory", devices.display());
        return Err(StoreError::TargetUnsuitable { path: path.to_owned(), why });
    }
    Ok(())
}

/// Opens what is there for one alone: a file or a block device, what it is, and its size.
/// Which users of a file keep it from being one: `users`.
fn open_locked(path: &Path, users: Users) -> Result<(Flock<File>, fs::Metadata, u64)> {
    let io = |doing, e| StoreError::of_target(doing, path, e);
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            StoreError::TargetUnsuitable { path: path.to_owned(), why: "it is a symbolic link to nothing".to_owned() }
        }
        _ => io("opening", e),
    })?;
    let kind = meta.file_type();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if kind.is_block_device() {
        options.custom_flags(libc::O_EXCL);
    } else if !kind.is_file() {
        let why = "it is neither a file nor a block device".to_owned();
        return Err(StoreError::TargetUnsuitable { path: path.to_owned(), why });
    }
    let mut file = lock(path, open_alone(path, &options)?)?;
    // The claim is granted beside a virtual machine or a database that has the device open and claims nothing, and the lock of a file beside
    // a virtual machine, which has locked it otherwise, and a loop device.
    refuse_used(path, || if kind.is_block_device() { openers(path) } else { users_of_file(&file, users) })?;
    let has = file.seek(SeekFrom::End(0)).map_err(|e| io("measuring", e))?;
    Ok((file, meta, has))
}

/// With `O_EXCL`, of a device: nobody else may claim it.
fn open_alone(path: &Path, options: &OpenOptions) -> Result<File> {
    options.open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            let why = "it is mounted, or part of another device (see `lsblk` and /sys/block/*/holders)".to_owned();
            StoreError::TargetBusy { path: path.to_owned(), why }
        }
        _ => StoreError::of_target("opening", path, e),
    })
}

/// What somebody else has opened for this process, kept for it alone as long as this is there.
#[derive(Debug)]
pub struct OutputHold {
    /// `None`: its file system knows no locks.
    _lock: Option<Flock<File>>,
    _claim: Option<File>,
}

impl OutputHold {
    /// Of a file or a device of that name. Whoever opened it, and waits for this process, has it open as well, and is no user.
    ///
    /// # Errors
    /// [`StoreError::TargetBusy`]; what the file system says.
    pub fn of(out: &File, name: &Path) -> Result<Self> {
        let io = |doing, e| StoreError::of_target(doing, name, e);
        let is_device = out.metadata().map_err(|e| io("measuring", e))?.file_type().is_block_device();
        let ancestors = ancestors();
        let is_ours = |pid: u32| ancestors.contains(&pid);
        refuse_used(name, || match is_device {
            true => openers_but(name, is_ours),
            false => users_of_file_but(out, Users::Writers, is_ours),
        })?;
        if is_device {
            let claim = open_alone(name, OpenOptions::new().read(true).custom_flags(libc::O_EXCL))?;
            return Ok(Self { _lock: None, _claim: Some(claim) });
        }
        match lock(name, out.try_clone().map_err(|e| io("locking", e))?) {
            Ok(lock) => Ok(Self { _lock: Some(lock), _claim: None }),
            Err(busy @ StoreError::TargetBusy { .. }) => Err(busy),
            Err(_) => Ok(Self { _lock: None, _claim: None }), // a file system that knows no locks
        }
    }
}

/// Refuses a target that somebody has open still, as `look` tells.
fn refuse_used(path: &Path, look: impl Fn() -> Vec<String>) -> Result<()> {
    in_use(look).map_or(Ok(()), |why| Err(StoreError::TargetBusy { path: path.to_owned(), why }))
}

/// Who has it open still, as `look` tells.
fn in_use(look: impl Fn() -> Vec<String>) -> Option<String> {
    let openers = open_still(look);
    (!openers.is_empty()).then(|| format!("it is open in {}: stop that first", openers.join(", ")))
}

/// Where the kernel says what it knows of a device.
fn in_sysfs(device: &fs::Metadata) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device.rdev()), libc::minor(device.rdev())))
}

/// The smallest piece that a device, or the one that it is a partition of, can write.
fn logical_block_bytes(device: &fs::Metadata) -> Option<u64> {
    let queues = ["queue", "../queue"].map(|queue| in_sysfs(device).join(queue).join("logical_block_size"));
    queues.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Another description of an open file, for writes around the page cache.
fn open_direct(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Renames to a name that nothing has yet.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    // A file system that cannot do it in one step.
    match fs::symlink_metadata(to) {
        Err(e) if e.kind() == ErrorKind::NotFound => fs::rename(from, to),
        Err(e) => Err(e),
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
    }
}

/// What is not finished is not left behind, unless somebody means to go on with it.
impl Drop for FileTarget {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial
            && self.existing != Existing::Resume
        {
            let _ = fs::remove_file(partial);
        }
    }
}

impl RestoreTarget for FileTarget {
    fn path(&self) -> &Path {
        &self.path
    }

    fn begin(&self, first: ByteExtent) -> io::Result<()> {
        if self.zeroed || first.len == 0 {
            return Ok(()); // it has no name yet
        }
        self.zero(first)?;
        self.sync()
    }

    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset.0)
    }

    fn is_hole(&self, extent: ByteExtent) -> io::Result<bool> {
        match lseek(&*self.file, extent.offset.0 as libc::off_t, Whence::SeekData) {
            Err(Errno::ENXIO) => Ok(true),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
            Ok(data) => Ok(data as u64 >= extent.offset.0 + extent.len),
        }
    }

    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        let fits = offset.0.is_multiple_of(ALIGN as u64)
            && bytes.len().is_multiple_of(ALIGN)
            && bytes.as_ptr().align_offset(ALIGN) == 0
            && bytes.len() >= DIRECT_BYTES_MIN;
        if let Some(direct) = self.direct.as_ref().filter(|_| fits) {
            match direct.write_all_at(bytes, offset.0) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {} // coarser than a page: through the cache
                other => return other,
            }
        }
        self.file.write_all_at(bytes, offset.0)
    }

    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        if self.zeroed || extent.len == 0 {
            return Ok(());
        }
        let (offset, len) = (extent.offset.0 as libc::off_t, extent.len as libc::off_t);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(&*self.file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => self.write_zeroes(extent),
            Err(e) => Err(e.into()),
        }
    }

    fn done(&self, region: ByteExtent) {
        push_out(&self.file, region.offset.0, region.len); // what went through the cache
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn read_anew(&self) -> io::Result<()> {
        // Only what is clean leaves the cache; what cannot be written is so after its error was heard.
        if let Err(error) = self.sync() {
            tracing::warn!(target = %self.path.display(), %error, "what was written there before may be lost: it is looked at anew");
        }
        Ok(posix_fadvise(&*self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

impl FollowTarget for FileTarget {
    fn bytes(&self) -> io::Result<u64> {
        (&*self.file).seek(SeekFrom::End(0))
    }

    fn is_fixed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.file_type().is_block_device())
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::of_opened(&self.file.metadata()?))
    }

    fn seen(&self) -> io::Result<Option<Seen>> {
        let meta = self.file.metadata()?;
        if !meta.file_type().is_block_device() {
            let (changed, written) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
            let marks = format!("{}:{} {} {changed:?} {written:?}", meta.dev(), meta.ino(), meta.len());
            return Ok(Some(Seen { since: String::new(), marks }));
        }
        let number = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let folder = in_sysfs(&meta);
        let Some(marks) = written(&folder) else { return Ok(None) };
        // Another disk may have the number by now, and a disk that came back counts from zero.
        let sequence = ["diskseq", "../diskseq"].iter().find_map(|name| fs::read_to_string(folder.join(name)).ok());
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Some(Seen { since: format!("{} {number:?} {}", boot.trim(), sequence.unwrap_or_default().trim()), marks }))
    }
}

/// What the kernel has counted on a device: sectors that were written, and that were discarded. † Not requests: the device mapper and loop devices
/// count a flush as one, so that each sync of ours would look like somebody else's write. Nothing where it was told not to count: the numbers stand
/// still then, whoever writes.
fn written(folder: &Path) -> Option<String> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    if !counts_writes(folder) {
        return Some(String::new());
    }
    let counted: Vec<&str> = stat.split_whitespace().collect();
    Some([6, 13].iter().filter_map(|field| counted.get(*field).copied()).collect::<Vec<_>>().join(" "))
}

impl FileTarget {
    fn write_zeroes(&self, extent: ByteExtent) -> io::Result<()> {
        let zeroes = vec![0; extent.len.min(1 << 20) as usize];
        let (mut at, end) = (extent.offset.0, extent.offset.0 + extent.len);
        while at < end {
            let now = (end - at).min(zeroes.len() as u64);
            self.file.write_all_at(&zeroes[..now as usize], at)?;
            at += now;
        }
        Ok(())
    }
}

/// Where a file grows until it is complete.
fn partial_of(path: &Path) -> Result<PathBuf> {
    let name = path.file_name();
    let name = name.ok_or_else(|| StoreError::TargetUnsuitable { path: path.to_owned(), why: "it has no file name".into() })?;
    let mut partial = name.to_owned();
    partial.push(".farside-partial");
    Ok(path.with_file_name(partial))
}

/// Whether a file that was opened and then locked still has the name under which it was opened. Whoever held the lock before
/// may have given it its own name meanwhile: then it is his, and complete.
fn is_named(file: &fs::Metadata, name: &Path) -> bool {
    fs::symlink_metadata(name).is_ok_and(|named| (named.dev(), named.ino()) == (file.dev(), file.ino()))
}

/// Gives a file a length; beyond its first `keeps` bytes it reads as zeroes then.
fn resize(file: &File, keeps: u64, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() > keeps {
        file.set_len(keeps)?;
    }
    file.set_len(bytes)
}

fn lock(path: &Path, file: File) -> Result<Flock<File>> {
    let shared = mutation::on("T13 a restore shares its target");
    let how = if shared { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
    Flock::lock(file, how).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => {
            StoreError::TargetBusy { path: path.to_owned(), why: "another process has it locked (a daemon, or a restore)".into() }
        }
        e => StoreError::of_target("locking", path, e.into()),
    })
}

/// Whether a file has no data anywhere.
fn file_is_hole(file: &File) -> io::Result<bool> {
    match lseek(file, 0, Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(true),
        Ok(_) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether a device holds zeroes where things usually begin: both ends, and 64 places between.
fn device_looks_empty(file: &File, bytes: u64) -> io::Result<bool> {
    const ENDS: u64 = 4 << 20;
    let mut places = vec![(0, ENDS.min(bytes)), (bytes.saturating_sub(ENDS), ENDS.min(bytes))];
    places.extend((1..64).map(|i| (bytes / 64 * i / 4096 * 4096, 4096)).filter(|(at, len)| at + len <= bytes));
    for (at, len) in places {
        let mut content = vec![0; len as usize];
        file.read_exact_at(&mut content, at)?;
        if content.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device on which the kernel counts nothing looked like one to which nobody had written: what a stranger wrote there while nobody held it was
    /// taken for a part of the point that it was.
    #[test]
    fn a_device_on_which_nothing_is_counted_tells_nothing() {
        let device = tempfile::tempdir().expect("temp dir");
        fs::create_dir(device.path().join("queue")).expect("made");
        fs::write(device.path().join("stat"), "1 0 8 0 2 0 16 0 0 0 0 0 0 4 0\n").expect("written");
        for (switch, counted) in [("1\n", "16 4"), ("0\n", "")] {
            fs::write(device.path().join("queue/iostats"), switch).expect("written");
            let marks = written(device.path()).expect("it is there");
            assert_eq!(marks, counted);
            assert_eq!(Seen { since: "this boot".to_owned(), marks }.tells_of_writes(), !counted.is_empty());
        }
    }

    /// A device that was not there became a file in memory, which a restore filled, and said that all was well.
    #[test]
    fn a_device_that_is_not_there_is_not_made_as_a_file() {
        let missing = |path: &Path| {
            for existing in [Existing::Keep, Existing::Replace, Existing::Resume] {
                match FileTarget::open(path, "v", 4096, existing) {
                    Err(StoreError::TargetUnsuitable { why, .. }) => assert!(why.contains("no such device"), "{why}"),
                    other => panic!("{}: {other:?}", path.display()),
                }
            }
            let followed = FileTarget::open_to_follow(path, "v", 4096, true, false);
            assert!(matches!(followed, Err(StoreError::TargetUnsuitable { .. })), "{followed:?}");
            assert!(!path.exists());
        };
        missing(Path::new("/dev/farside-no-such-disk"));
        let dir = tempfile::tempdir().expect("temp dir");
        std::os::unix::fs::symlink("/dev", dir.path().join("link")).expect("link");
        missing(&dir.path().join("link/farside-no-such-disk"));

        let (devices, below, beside) = (dir.path().join("devices"), dir.path().join("devices/mapper"), dir.path().join("beside"));
        fs::create_dir_all(&below).expect("made");
        assert!(
            refuse_lost_device(&devices.join("sda"), &devices).is_err()
                && refuse_lost_device(&below.join("lv"), &devices).is_err()
        );
        assert!(refuse_lost_device(&beside, &devices).is_ok() && refuse_lost_device(Path::new("file"), &devices).is_ok());
        if Path::new("/proc/self").exists() {
            assert!(refuse_lost_device(Path::new("/proc/x"), Path::new("/")).is_ok(), "another file system below it");
        }
    }

    /// A virtual machine locks its image otherwise than by `flock`, other programs not at all: what was written after a restore had taken the name
    /// away from under them was gone.
    #[test]
    fn a_file_that_somebody_uses_is_refused_and_keeps_its_name() {
        use nix::fcntl::{FcntlArg, fcntl};
        use std::process::{Command, Stdio};

        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("vm.img");
        fs::write(&path, vec![7; 1 << 16]).expect("written");
        let user = || {
            let file = File::options().read(true).write(true).open(&path).expect("open");
            Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("it starts")
        };
        let end = |mut user: std::process::Child| user.kill().and_then(|()| user.wait()).expect("it ends");
        let refused = |opened: Result<FileTarget>, by: &str| {
            let error = opened.expect_err("somebody uses it");
            assert!(matches!(&error, StoreError::TargetBusy { why, .. } if why.contains(by)), "{error}");
        };
        let all = |by: &str| {
            refused(FileTarget::open(&path, "v", 1 << 16, Existing::Replace), by);
            refused(FileTarget::open(&path, "v", 1 << 16, Existing::Resume), by);
            refused(FileTarget::open_to_follow(&path, "v", 1 << 16, true, true), by);
        };
        let first = user();
        all("(sleep)");
        end(first);

        // Of a process that may not be looked at only its lock is seen.
        let locked = File::options().read(true).write(true).open(&path).expect("open");
        let mut lock =
            libc::flock { l_type: libc::F_RDLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 100, l_len: 1, l_pid: 0 };
        fcntl(&locked, FcntlArg::F_OFD_SETLK(&lock)).expect("locked");
        all("locked it");
        lock.l_type = libc::F_UNLCK as i16;
        fcntl(&locked, FcntlArg::F_OFD_SETLK(&lock)).expect("unlocked");

        // Who only reads keeps nothing from being replaced, and goes on with the old one; it does keep a file from being changed under it.
        let file = File::open(&path).expect("open");
        let reader = Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("it starts");
        refused(FileTarget::open(&path, "v", 1 << 16, Existing::Resume), "(sleep)");
        refused(FileTarget::open_to_follow(&path, "v", 1 << 16, true, true), "(sleep)");
        let copy = dir.path().join("copy.img");
        fs::rename(&path, &copy).and_then(|()| fs::hard_link(&copy, &path)).expect("another name for it");
        FileTarget::open(&path, "v", 1 << 16, Existing::Replace).and_then(FileTarget::finish).expect("nobody may write to it");
        assert!(fs::read(&copy).expect("read") == vec![7; 1 << 16] && fs::read(&path).expect("read") == vec![0; 1 << 16]);
        fs::rename(&copy, &path).expect("as it was");
        end(reader);

        // This process itself may have it open. And who comes to it during the restore keeps it.
        let target = FileTarget::open(&path, "v", 1 << 16, Existing::Replace).expect("nobody uses it");
        let second = user();
        let error = target.finish().expect_err("somebody uses it");
        assert!(matches!(&error, StoreError::NotNamed { why, goes_on: true, .. } if why.contains("(sleep)")), "{error}");
        assert!(fs::read(&path).expect("read") == vec![7; 1 << 16] && partial_of(&path).expect("a name").exists());
        end(second);
        // What was restored is gone on with, beside the old one, though somebody reads that.
        fs::write(partial_of(&path).expect("a name"), vec![1; 1 << 16]).expect("restored");
        let file = File::open(&path).expect("open");
        let reader = Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("it starts");
        let target = FileTarget::open(&path, "v", 1 << 16, Existing::Resume).expect("nobody may write to it");
        assert!(target.is_resumed());
        target.finish().expect("named");
        end(reader);
        assert!(fs::read(&path).expect("read") == vec![1; 1 << 16]);
    }

    /// Two restores to one new file: the second opened what the first then completed.
    #[test]
    fn a_file_that_got_its_name_meanwhile_is_not_taken_for_an_unfinished_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (partial, name) = (dir.path().join("x.farside-partial"), dir.path().join("x"));
        let second = File::create_new(&partial).expect("create");
        assert!(is_named(&second.metadata().expect("meta"), &partial));
        fs::rename(&partial, &name).expect("the first one ends");
        assert!(!is_named(&second.metadata().expect("meta"), &partial));
        File::create_new(&partial).expect("a third one begins");
        assert!(!is_named(&second.metadata().expect("meta"), &partial));
    }
}
