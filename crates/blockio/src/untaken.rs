//! What the other side of a stream socket has not taken yet.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether the other side has all that was sent: by TCP, whether its kernel has acknowledged it; over a Unix socket, whether its program has read it.
///
/// † Where that was closed without having read it, nothing is left of it to be counted, but an error that the next read would meet.
///
/// # Errors
/// The system's: that it is no socket.
pub fn is_taken(socket: impl AsFd) -> io::Result<bool> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int, which is there.
    unsafe { ioctl::untaken(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    let mut looked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut looked, PollTimeout::ZERO)?;
    let is_broken = looked[0].revents().is_none_or(|events| events.contains(PollFlags::POLLERR));
    Ok(bytes == 0 && !is_broken)
}

mod ioctl {
    nix::ioctl_read_bad!(untaken, libc::TIOCOUTQ, libc::c_int); // SIOCOUTQ
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_read_is_taken() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(&[1; 100]).expect("sent");
        assert!(!is_taken(&ours).expect("a socket"));
        theirs.read_exact(&mut [0; 100]).expect("read");
        assert!(is_taken(&ours).expect("a socket"));
        drop(theirs);
        assert!(is_taken(&ours).expect("a socket"), "it had read all");
        let file = tempfile::tempfile().expect("a file");
        is_taken(&file).expect_err("no socket");
    }

    /// † Beside what it has sent itself, which is read before anything shows that.
    #[test]
    fn what_was_thrown_away_unread_is_not_taken() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&[2; 100]).expect("sent");
        ours.write_all(&[1; 100]).expect("sent");
        drop(theirs);
        assert!(!is_taken(&ours).expect("a socket"));
    }

    #[test]
    fn a_kernel_takes_it_for_a_program() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let _theirs = listener.accept().expect("accepted");
        ours.write_all(&[1; 100]).expect("sent");
        while !is_taken(&ours).expect("a socket") {
            std::thread::yield_now();
        }
    }
}
