//! What the other side of a stream socket has not taken yet.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Bytes that were sent and that the other side does not have: for TCP, what its kernel has not acknowledged; for a Unix socket, about what its
/// program has not read.
///
/// # Errors
/// ioctl(2)'s: that it is no socket.
pub fn untaken_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int, which is there.
    unsafe { ioctl::untaken(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
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
        assert!(untaken_bytes(&ours).expect("a socket") > 0);
        theirs.read_exact(&mut [0; 100]).expect("read");
        assert_eq!(untaken_bytes(&ours).expect("a socket"), 0);
        let file = tempfile::tempfile().expect("a file");
        untaken_bytes(&file).expect_err("no socket");
    }

    #[test]
    fn a_kernel_takes_it_for_a_program() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let _theirs = listener.accept().expect("accepted");
        ours.write_all(&[1; 100]).expect("sent");
        while untaken_bytes(&ours).expect("a socket") > 0 {
            std::thread::yield_now();
        }
    }
}
