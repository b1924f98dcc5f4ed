//! Generic netlink, as much of it as the commands of one family need: a request, its acknowledgement, the attributes of its
//! answer. Formats are the kernel's `netlink.h` and `genetlink.h`, in the machine's own byte order.
//!
//! Invariant: whatever comes is read within its bounds; an answer to something else is passed over. It does not listen to
//! multicasts.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket};

const HEADER_LEN: usize = 16;
const GENERIC_HEADER_LEN: usize = 4;
const ALIGN: usize = 4;
/// Longest answer that is taken; the kernel's are a page or two.
const ANSWER_MAX: usize = 32 << 10;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = !(3 << 14);

/// The family that knows the others.
mod control {
    pub(super) const ID: u16 = 16;
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
}

/// Attributes of a message, as bytes.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.push(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.push(kind, &value.to_ne_bytes())
    }

    /// With the NUL that the kernel wants.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        self.push(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.push(kind | NLA_F_NESTED, &inner.0)
    }

    fn push(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("attributes of ours are short");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }
}

/// The first attribute of a kind.
pub(super) fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some(head) = bytes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let found = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(ALIGN)..)?;
    }
    None
}

/// An open conversation with one family.
#[derive(Debug)]
pub(super) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    sequence: u32,
}

impl Family {
    /// Looks a family up by its name.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has none of that name.
    pub(super) fn open(name: &str, version: u8) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut family = Self { socket, id: control::ID, version: 1, sequence: 0 };
        let answer = family.ask(control::GET_FAMILY, Attributes::default().text(control::FAMILY_NAME, name))?;
        let id = find(&answer, control::FAMILY_ID).and_then(|value| value.first_chunk()).ok_or(Errno::EPROTO)?;
        family.id = u16::from_ne_bytes(*id);
        family.version = version;
        Ok(family)
    }

    /// Gives a command and waits until it is done. Returns the attributes of the answer; empty when the kernel only
    /// acknowledges.
    ///
    /// # Errors
    /// The kernel's word.
    pub(super) fn ask(&mut self, command: u8, attributes: Attributes) -> Result<Vec<u8>, Errno> {
        self.sequence += 1;
        let request = message(self.id, self.sequence, [command, self.version], &attributes);
        sendto(self.socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for (kind, payload) in messages(&buffer[..len], self.sequence) {
                if kind == NLMSG_ERROR {
                    let code = payload.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or(Errno::EPROTO)?;
                    return if code == 0 { Ok(answer) } else { Err(Errno::from_raw(code.saturating_neg())) };
                }
                answer = payload.get(GENERIC_HEADER_LEN..).unwrap_or_default().to_vec();
            }
        }
    }
}

fn message(family: u16, sequence: u32, [command, version]: [u8; 2], attributes: &Attributes) -> Vec<u8> {
    let len = HEADER_LEN + GENERIC_HEADER_LEN + attributes.0.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&(len as u32).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes()); // the port: the kernel knows it
    bytes.extend_from_slice(&[command, version, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// Type and payload of the messages that answer a request.
fn messages(mut bytes: &[u8], sequence: u32) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            let (len, answers) = (word(0)? as usize, word(8)? == sequence);
            let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
            let payload = bytes.get(HEADER_LEN..len)?;
            bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
            if answers {
                return Some((kind, payload));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::default().u32(1, 77);
        let bytes = Attributes::default().text(2, "nbd").nested(7, inner).u64(4, 5).0;
        assert_eq!(find(&bytes, 2), Some(&b"nbd\0"[..]));
        let nested = find(&bytes, 7).unwrap();
        assert_eq!(find(nested, 1), Some(&77u32.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, 4), Some(&5u64.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, 9), None);
        assert_eq!(bytes.len() % ALIGN, 0);
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        let mut bytes = Attributes::default().u32(1, 77).u32(2, 78).0;
        for len in [0u16, 3, 9, 4000, u16::MAX] {
            bytes[..2].copy_from_slice(&len.to_ne_bytes());
            let _ = find(&bytes, 2);
        }
        let mut answer = message(9, 3, [1, 1], &Attributes::default().u32(1, 7));
        assert_eq!(messages(&answer, 3).count(), 1);
        assert_eq!(messages(&answer, 4).count(), 0, "it answers something else");
        for len in [0u32, 15, 16, 4000, u32::MAX] {
            answer[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(messages(&answer, 3).count() <= 2);
        }
    }

    #[test]
    fn a_family_that_does_not_exist_is_said_so() {
        let unknown = Family::open("farside-no-such", 1).expect_err("nobody has that name");
        assert_eq!(unknown, Errno::ENOENT);
        Family::open("nlctrl", 2).expect("every kernel has it");
    }
}
