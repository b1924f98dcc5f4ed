//! The listening Unix socket: who may connect, and what happens to the file that a dead server left.
//!
//! Invariant: the socket appears under its name with its final mode and owner, never before; a live server's is not taken over, nor is one
//! that is just being made.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_blockio::SharedFd;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, socket};
use thiserror::Error;

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Who may connect, and where.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// Of the socket; its folder must exist.
    pub path: PathBuf,
    /// A group (name or number) whose members may connect too; otherwise only the owner.
    pub group: Option<String>,
}

/// Why there is no socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A living server has it.
    #[error("{path} is served by a running process: stop that one, or choose another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{path} exists and is not a socket: remove it, or choose another path")]
    NotASocket {
        /// The socket.
        path: PathBuf,
    },
    /// The group does not exist.
    #[error("there is no group {group:?} for the socket {path}")]
    NoSuchGroup {
        /// The socket.
        path: PathBuf,
        /// As configured.
        group: String,
    },
    /// The kernel refused.
    #[error("cannot {what} the socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket; dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    fd: SharedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(options: &SocketOptions) -> Result<Self, ListenError> {
        let path = &options.path;
        let failed = |what| move |source: io::Error| ListenError::Io { path: path.clone(), what, source };
        let _alone = Making::begin(path)?;
        remove_stale(path)?;
        let gid = options.group.as_deref().map(|group| group_id(path, group)).transpose()?;
        let young = young_name(path);
        match std::fs::remove_file(&young) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
            _ => {}
        }
        let fd = bind_only(&young).map_err(failed("bind"))?;
        let finish = || {
            std::fs::set_permissions(&young, std::fs::Permissions::from_mode(if gid.is_some() { 0o660 } else { 0o600 }))?;
            if let Some(gid) = gid {
                std::os::unix::fs::chown(&young, None, Some(gid))?;
            }
            let metadata = std::fs::symlink_metadata(&young)?;
            std::fs::rename(&young, path)?;
            nix::sys::socket::listen(&fd, Backlog::new(128)?)?; // nobody can connect before this
            Ok((metadata.dev(), metadata.ino()))
        };
        let identity = finish().map_err(|error: io::Error| {
            let _ = std::fs::remove_file(&young);
            failed("set up")(error)
        })?;
        Ok(Self { fd: Arc::new(fd), path: path.clone(), identity })
    }

    /// The same, where a predecessor may have been killed: its socket answers until the kernel has torn down its ring. Blocks for so
    /// long at most.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_after_another(options: &SocketOptions, patience: Duration) -> Result<Self, ListenError> {
        let until = Instant::now() + patience;
        loop {
            match Self::bind(options) {
                Err(ListenError::InUse { .. }) if Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
                result => return result,
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> &SharedFd {
        &self.fd
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// How many clients are connected to the socket of a [`Listener`] at `path`, in this process or another one of this network namespace.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn clients_of(path: &Path) -> io::Result<usize> {
    let list = std::fs::read("/proc/net/unix")?;
    // It goes by the name under which it was bound; what a client has is nameless.
    let bound = young_name(path);
    let is_one = |line: &&[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        fields.nth(5) == Some(b"03") && line.ends_with(bound.as_os_str().as_bytes()) && is_whole(line, &bound)
    };
    Ok(list.split(|byte| *byte == b'\n').filter(is_one).count())
}

/// Whether all of the line's last field is this path, which may have spaces in it.
fn is_whole(line: &[u8], path: &Path) -> bool {
    line.len().checked_sub(path.as_os_str().len() + 1).is_some_and(|before| line[before] == b' ')
}

fn bind_only(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    nix::sys::socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Held by who makes a socket, since nothing tells one that is being made from one that was left. Its file goes with it.
struct Making {
    file: PathBuf,
    lock: File,
}

impl Making {
    fn begin(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { path: path.to_owned(), what: "lock", source };
        let file = with_ending(path, ".farside-making");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        loop {
            let lock = options.open(&file).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ListenError::InUse { path: path.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            let locked = lock.metadata().map_err(failed)?;
            // Its last holder may have removed it meanwhile.
            if std::fs::symlink_metadata(&file).is_ok_and(|is| (is.dev(), is.ino()) == (locked.dev(), locked.ino())) {
                return Ok(Self { file, lock });
            }
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.lock.metadata().is_ok_and(|lock| lock.is_file() && lock.len() == 0) {
            let _ = std::fs::remove_file(&self.file); // while it is locked
        }
    }
}

fn young_name(path: &Path) -> PathBuf {
    with_ending(path, ".new")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let removed = std::fs::remove_file(path);
            removed.map_err(|source| ListenError::Io { path: path.to_owned(), what: "remove the stale", source })
        }
        _ => Err(ListenError::InUse { path: path.to_owned() }),
    }
}

fn group_id(path: &Path, group: &str) -> Result<u32, ListenError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        _ => Err(ListenError::NoSuchGroup { path: path.to_owned(), group: group.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn options(path: PathBuf) -> SocketOptions {
        SocketOptions { path, group: None }
    }

    #[test]
    fn the_socket_is_private_and_disappears_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        let listener = Listener::bind(&options(path.clone())).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn who_is_connected_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b nbd");
        // As a listener of ours does it.
        let listener = UnixListener::bind(young_name(&path)).unwrap();
        std::fs::rename(young_name(&path), &path).unwrap();
        assert_eq!(clients_of(&path).unwrap(), 0);
        let client = UnixStream::connect(&path).unwrap();
        let served = listener.accept().unwrap();
        assert_eq!(clients_of(&path).unwrap(), 1);
        assert_eq!(clients_of(&folder.path().join("b nbd")).unwrap(), 0);
        drop((client, served));
        assert_eq!(clients_of(&path).unwrap(), 0);
    }

    #[test]
    fn a_group_may_be_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        let group = Some(nix::unistd::getgid().as_raw().to_string());
        let _listener = Listener::bind(&SocketOptions { path: path.clone(), group }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        let unknown = SocketOptions { path: folder.path().join("other"), group: Some("no such group".into()) };
        assert!(matches!(Listener::bind(&unknown), Err(ListenError::NoSuchGroup { .. })));
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        let dead = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&options(path.clone())), Err(ListenError::InUse { .. })));
        drop(dead);
        let listener = Listener::bind(&options(path.clone())).unwrap();
        assert!(matches!(Listener::bind(&options(path.clone())), Err(ListenError::InUse { .. })));
        drop(listener);
        std::fs::write(&path, b"mine").unwrap();
        assert!(matches!(Listener::bind(&options(path.clone())), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    /// Each could take the other's, not listening yet, for one that was left.
    #[test]
    fn of_two_who_listen_at_once_one_does_and_the_other_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        for round in 0..300 {
            if round % 2 == 0 {
                drop(UnixListener::bind(&path).unwrap());
            }
            let begin = Barrier::new(2);
            let bind = || {
                begin.wait();
                Listener::bind(&options(path.clone()))
            };
            let (one, other) = thread::scope(|scope| {
                let other = scope.spawn(bind);
                (bind(), other.join().unwrap())
            });
            let (Ok(listener), Err(refused)) = (if one.is_ok() { (one, other) } else { (other, one) }) else {
                panic!("round {round}: both, or none");
            };
            assert!(matches!(refused, ListenError::InUse { .. }), "round {round}: {refused:?}");
            let is = std::fs::metadata(&path).unwrap();
            assert_eq!((is.dev(), is.ino()), listener.identity, "round {round}");
            assert!(UnixStream::connect(&path).is_ok(), "round {round}");
            drop(listener);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "round {round}");
        }
    }
}
