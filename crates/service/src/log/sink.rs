//! What the log's lines are written to.
//!
//! Invariant: who logs does not wait for who reads. † journald may keep its files on a volume that we serve: once its buffer were full, a
//! write that waits for it would hold up every thread that logs, and with them the writes that journald itself waits for. A line
//! for which there is no room is lost and counted; nothing is kept, so nothing grows. What is no stream at all, a regular
//! file, is as slow as its disk: the kernel offers no other way.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;

/// A pipe that is ready takes so much without waiting: PIPE_BUF (pipe(7)).
const PIECE_BYTES: usize = 4096;

/// Where lines go, and what of them did not get there.
pub(super) struct Sink {
    fd: Box<dyn AsFd + Send>,
    way: Way,
    /// The last that was written is not the end of a line.
    is_torn: bool,
    /// Lines that were not written, or not in full, since that was last said.
    unsaid: u64,
}

/// How it is written to without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the journal's: each send says that it does not wait.
    Socket,
    /// It was opened again, and never waits.
    Own,
    /// In pieces, each after a look whether it is ready.
    Looked,
}

impl Sink {
    pub(super) fn new(fd: impl AsFd + Send + 'static) -> Self {
        let kind = fstat(fd.as_fd()).map_or(SFlag::empty(), |s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT);
        let own = match kind {
            SFlag::S_IFIFO | SFlag::S_IFCHR => opened_again(fd.as_fd()),
            _ => None,
        };
        let (fd, way): (Box<dyn AsFd + Send>, Way) = match own {
            Some(own) => (Box::new(own), Way::Own),
            None => (Box::new(fd), if kind == SFlag::S_IFSOCK { Way::Socket } else { Way::Looked }),
        };
        Self { fd, way, is_torn: false, unsaid: 0 }
    }

    /// Writes a line, after what is to be said of those before it that were lost; or counts it as lost.
    pub(super) fn line(&mut self, line: &str, of_lost: impl FnOnce(u64) -> String) -> bool {
        let is_written = self.say_lost(of_lost) && self.put(line.as_bytes()).is_ok();
        self.unsaid += u64::from(!is_written);
        is_written
    }

    /// Says what was lost, if something was. False: that cannot be written either.
    pub(super) fn say_lost(&mut self, of_lost: impl FnOnce(u64) -> String) -> bool {
        if self.unsaid > 0 {
            if self.put(of_lost(self.unsaid).as_bytes()).is_err() {
                return false;
            }
            self.unsaid = 0;
        }
        true
    }

    /// What can be written now of a line, which begins as one whatever is there.
    fn put(&mut self, line: &[u8]) -> nix::Result<()> {
        if self.is_torn {
            self.piece(b"\n")?;
        }
        let mut rest = line;
        while !rest.is_empty() {
            let taken = self.piece(rest)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Writes some bytes, at least one, without waiting.
    fn piece(&mut self, bytes: &[u8]) -> nix::Result<usize> {
        let fd = self.fd.as_fd();
        let taken = loop {
            let done = match self.way {
                Way::Socket => send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
                Way::Own => write(fd, bytes),
                Way::Looked => is_ready(fd).and_then(|()| write(fd, &bytes[..bytes.len().min(PIECE_BYTES)])),
            };
            match done {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::EIO),
                done => break done?,
            }
        };
        self.is_torn = bytes[taken - 1] != b'\n';
        Ok(taken)
    }
}

/// The same pipe or terminal, never waiting. Being ready promises a pipe's room only as long as no other process writes into it, and of a
/// terminal less than a line. O_NONBLOCK on what we were given would hold for all who have it: shells, hooks, the other end.
fn opened_again(fd: BorrowedFd<'_>) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    // Without the permission: by looking whether it is ready.
    OpenOptions::new().write(true).custom_flags(flags.bits()).open(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// An error: it takes nothing now. (One whose reader is gone is ready, and says so when it is written to.)
fn is_ready(fd: BorrowedFd<'_>) -> nix::Result<()> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO)? {
        0 => Err(Errno::EAGAIN),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lost(n: u64) -> String {
        format!("<4>lost={n}\n")
    }

    /// A sink of each kind that nobody reads, with its other end, from which a read does not wait.
    fn unread() -> Vec<(Sink, File)> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("a socket");
        let mut all = vec![(Sink::new(OwnedFd::from(ours)), File::from(OwnedFd::from(theirs)))];
        for is_own in [true, false] {
            let (theirs, ours) = std::io::pipe().expect("a pipe");
            let theirs = File::from(OwnedFd::from(theirs));
            let path = format!("/proc/self/fd/{}", theirs.as_raw_fd());
            let theirs = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).expect("a pipe");
            all.push(match is_own {
                true => (Sink::new(ours), theirs),
                false => (Sink { fd: Box::new(ours), way: Way::Looked, is_torn: false, unsaid: 0 }, theirs),
            });
        }
        assert_eq!(all.iter().map(|(sink, _)| sink.way).collect::<Vec<_>>(), [Way::Socket, Way::Own, Way::Looked]);
        all
    }

    /// All that is there by now.
    fn read(from: &mut File) -> String {
        let mut bytes = Vec::new();
        let ended = from.read_to_end(&mut bytes).map_err(|error| error.kind());
        assert_eq!(ended, Err(std::io::ErrorKind::WouldBlock));
        String::from_utf8(bytes).expect("text")
    }

    /// A journald that hung took every thread with it that had something to say.
    #[test]
    fn who_logs_does_not_wait_for_who_reads_and_what_was_lost_is_said() {
        for bytes in [20, 1000, 4093, 6000, 12_000] {
            for (mut sink, mut theirs) in unread() {
                let line = "x".repeat(bytes) + "\n";
                let (mut fitted, mut failed) = (0_usize, 0);
                while failed < 3 {
                    *if sink.line(&line, lost) { &mut fitted } else { &mut failed } += 1;
                }
                let mut text = read(&mut theirs);
                assert!(sink.line("<6>again\n", lost), "{:?} {bytes}", sink.way);
                assert!(sink.line("<6>and again\n", lost), "{:?} {bytes}", sink.way);
                text += &read(&mut theirs);
                // A short line may have found room where a long one did not.
                let said = text.lines().filter_map(|had| had.strip_prefix("<4>lost=")?.parse::<usize>().ok()).sum::<usize>();
                let whole = text.lines().filter(|had| had.len() == bytes).count();
                assert_eq!((whole, said), (fitted, failed), "{:?} {bytes}", sink.way);
                let mut last = text.lines().rev();
                assert_eq!([last.next(), last.next()], [Some("<6>and again"), Some("<6>again")], "{:?} {bytes}", sink.way);
                let is_count = |had: &str| had.starts_with("<4>lost=");
                assert!(last.next().is_some_and(is_count), "{:?} {bytes}", sink.way);
                let are_lines = |had: &str| had.bytes().all(|byte| byte == b'x') || is_count(had);
                assert!(last.all(are_lines), "{:?} {bytes}: half a line ends before the next", sink.way);
            }
        }
    }

    #[test]
    fn half_a_line_gets_its_end_before_the_next() {
        for (mut sink, mut theirs) in unread().into_iter().skip(1) {
            // 16 pages, and 10,000 bytes do not fill them: the seventh is cut.
            let line = "x".repeat(9_999) + "\n";
            while sink.line(&line, lost) {}
            assert!(sink.is_torn, "{:?}", sink.way);
            read(&mut theirs);
            assert!(sink.line("<6>again\n", lost));
            assert_eq!(read(&mut theirs), "\n<4>lost=1\n<6>again\n", "{:?}", sink.way);
        }
    }

    #[test]
    fn a_reader_that_is_gone_and_a_file_hold_up_nobody() {
        for (mut sink, theirs) in unread() {
            drop(theirs);
            assert!(!sink.line("x\n", lost) && !sink.line("x\n", lost));
            assert_eq!(sink.unsaid, 2, "and no signal ends us");
        }
        let mut file = tempfile::tempfile().expect("temp file");
        let mut sink = Sink::new(file.try_clone().expect("a file"));
        assert!(sink.line(&("x".repeat(10_000) + "\n"), lost) && sink.line("y\n", lost));
        file.rewind().expect("a file");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "x".repeat(10_000) + "\ny\n");
    }
}
