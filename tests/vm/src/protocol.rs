//! What harness and agent say to each other: frames over a virtio-serial port, one request, one reply.
//!
//! A frame is the length of its head (4 bytes, little endian), the length of its payload (8 bytes), the head (postcard), the
//! payload as it is. Neither side guesses where a frame ends, so a command's output may hold anything. Nobody here defends
//! himself against the other: both come from this crate.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The name of the port on which the two talk.
pub const AGENT_PORT: &str = "farside.agent";
/// The name of the port on which the agent sends the kernel's log: records as `/dev/kmsg` gives them, each ended by a zero.
pub const LOG_PORT: &str = "farside.log";

/// From the harness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a command of the shell and wait for its end.
    Run {
        /// As given to `sh -c`.
        command: String,
    },
    /// Start a command of the shell and leave it to itself.
    Start {
        /// As given to `sh -c`; it is replaced by its last command if that is an `exec`.
        command: String,
        /// Where its output goes, appended.
        log: String,
    },
    /// Write the payload to a file.
    Write {
        /// Where; folders are made.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// Read a file.
    Read {
        /// Which.
        path: String,
    },
    /// `GET` a path of the API that is served on a socket. A program that does it takes a quarter of a second of an emulated
    /// processor, which tests that wait would take from whom they wait for.
    Get {
        /// The Unix socket.
        socket: String,
        /// The path.
        path: String,
    },
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The guest is up; said once, unasked.
    Ready,
    /// A command has ended. The payload is its standard output, then its standard error.
    Ran {
        /// Its exit code; 128 and the signal's number if it was killed.
        code: i32,
        /// How much of the payload is standard output.
        stdout: u64,
    },
    /// A command was started.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// A file was written.
    Written,
    /// A file's content, or an API's answer, is the payload.
    Content,
    /// There is no such file, or nobody answers as asked.
    Nothing,
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
}

/// Sends one frame.
///
/// # Errors
/// Those of the port.
pub fn send<T: Serialize>(to: &mut impl Write, head: &T, payload: &[u8]) -> io::Result<()> {
    let head = postcard::to_allocvec(head).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(12 + head.len());
    frame.extend((head.len() as u32).to_le_bytes());
    frame.extend((payload.len() as u64).to_le_bytes());
    frame.extend(head);
    to.write_all(&frame)?;
    to.write_all(payload)?;
    to.flush()
}

/// Receives one frame: its head and its payload.
///
/// # Errors
/// Those of the port; `InvalidData` for what is no frame.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut lengths = [0; 12];
    from.read_exact(&mut lengths)?;
    let (head, payload) = lengths.split_at(4);
    let mut head = vec![0; u32::from_le_bytes(head.try_into().expect("four bytes")) as usize];
    let mut payload = vec![0; u64::from_le_bytes(payload.try_into().expect("eight bytes")) as usize];
    from.read_exact(&mut head)?;
    from.read_exact(&mut payload)?;
    let head = postcard::from_bytes(&head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok((head, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_anything() {
        let mut wire = Vec::new();
        send(&mut wire, &Request::Read { path: "/x".into() }, &[0, 1, 2]).expect("to memory");
        send(&mut wire, &Reply::Ran { code: -1, stdout: 3 }, &[]).expect("to memory");
        let mut from = wire.as_slice();
        let first: (Request, Vec<u8>) = receive(&mut from).expect("a frame");
        assert_eq!(first, (Request::Read { path: "/x".into() }, vec![0, 1, 2]));
        let second: (Reply, Vec<u8>) = receive(&mut from).expect("a frame");
        assert_eq!(second, (Reply::Ran { code: -1, stdout: 3 }, Vec::new()));
        assert!(receive::<Reply>(&mut from).is_err(), "nothing is left");
    }
}
