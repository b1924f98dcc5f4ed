//! The Unix socket of a daemon's API.
//!
//! Invariant: it is never open to others than its owner and group, not even between bind and chmod; the socket of a daemon
//! that lives is not taken away, and nothing but a socket is removed.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, socket};
use nix::unistd::{Gid, Group};

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The system says no.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody answers there.
    #[error("{} is served by another process: stop it first, or choose another `api_socket`", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// The name belongs to something else.
    #[error("{} exists and is not a socket: remove it, or choose another `api_socket`", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// `api_group`.
    #[error("there is no group `{name}` on this host: make it (groupadd {name}), or change `api_group`")]
    NoSuchGroup {
        /// Its name.
        name: String,
    },
}

/// The group of that name.
///
/// # Errors
/// When there is none, or nobody can say: of a socket at `path`.
pub fn group(path: &Path, name: &str) -> Result<Gid, SocketError> {
    let found = Group::from_name(name).map_err(|e| SocketError::Io { path: path.to_owned(), source: e.into() })?;
    found.map(|group| group.gid).ok_or_else(|| SocketError::NoSuchGroup { name: name.to_owned() })
}

/// Listens on `path`: mode 0600, or 0660 for a group. A dead daemon's socket is replaced.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path, group: Option<&str>) -> Result<UnixListener, SocketError> {
    let failed = |source: io::Error| SocketError::Io { path: path.to_owned(), source };
    let group = group.map(|name| self::group(path, name)).transpose()?;
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken { path: path.to_owned() });
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(SocketError::NotASocket { path: path.to_owned() }),
    }
    // Not by the mask of the process: other threads make files meanwhile.
    let bound = || -> io::Result<UnixListener> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(group) = group {
            nix::unistd::chown(path, None, Some(group))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        }
        nix::sys::socket::listen(&fd, Backlog::MAXALLOWABLE)?; // nobody can connect before this
        Ok(fd.into())
    };
    bound().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("run/api.sock");
        let first = listen(&path, None).expect("free");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen(&path, None), Err(SocketError::Taken { .. })));
        drop(first);
        listen(&path, None).expect("its owner is dead");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "precious").expect("written");
        assert!(matches!(listen(&path, None), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
        let error = listen(&dir.path().join("b.sock"), Some("no-such-group-here")).expect_err("no group");
        assert!(error.to_string().contains("no-such-group-here"), "{error}");
    }
}
