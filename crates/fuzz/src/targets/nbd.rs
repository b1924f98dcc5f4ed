//! A local client of the tap: handshake, options, requests.

use farside_blockio::QueueInfo;
use farside_nbd::proto::{self, option};
use farside_nbd::{Command, Event, Export, Session};

use super::{no_seal, small};
use crate::engine::{Outcome, Target};

pub(super) const TARGETS: &[Target] = &[Target {
    name: "nbd-client",
    what: "all that a local NBD client says, from its first byte",
    seeds,
    seal: no_seal,
    words: &[
        b"IHAVEOPT",
        &[0x25, 0x60, 0x95, 0x13],
        &[0, 0, 0, 1],
        &[0, 0, 0, 7],
        &[0, 0, 0, 8],
        &[0, 0, 0, 10],
        b"base:allocation",
        b"disk",
    ],
    bytes_max: 4 << 10,
    // The longest option that is looked at; answers.
    memory: small(64),
    decode: session,
}];

const SIZE: u64 = (1 << 20) + 512;
const PAYLOAD_MAX: u32 = 64 << 10;
const BLOCK: u32 = 512;

fn be(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn an_option(number: u32, data: &[u8]) -> Vec<u8> {
    be(&[b"IHAVEOPT", &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data])
}

fn request(flags: u16, kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [&proto::REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    be(&[&head, &7_u64.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()])
}

/// A whole conversation: every option, then every command.
fn seeds() -> Vec<Vec<u8>> {
    let name = be(&[&4_u32.to_be_bytes(), b"disk"]);
    let go = be(&[&name, &[0, 2, 0, 1, 0, 2]]);
    let contexts = be(&[&name, &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), b"base:allocation"]);
    let flags = 3_u32.to_be_bytes().to_vec();
    let options = [
        an_option(option::LIST, &[]),
        an_option(option::INFO, &go),
        an_option(option::STRUCTURED_REPLY, &[]),
        an_option(option::LIST_META_CONTEXT, &contexts),
        an_option(option::SET_META_CONTEXT, &contexts),
        an_option(option::STARTTLS, &[]),
        an_option(option::GO, &go),
    ]
    .concat();
    let requests = [
        request(1, proto::command::WRITE, 4096, 512),
        vec![0xab; 512],
        request(4, proto::command::READ, 0, 1024),
        request(0, proto::command::FLUSH, 0, 0),
        request(1, proto::command::TRIM, 512, 1024),
        request(3, proto::command::WRITE_ZEROES, 1024, 65_536),
        request(8, proto::command::BLOCK_STATUS, 0, 4096),
        request(0, proto::command::CACHE, 0, 4096),
        request(0, proto::command::DISC, 0, 0),
    ]
    .concat();
    let old = an_option(option::EXPORT_NAME, b"disk");
    let plain = [request(0, proto::command::READ, 0, 512), request(0, proto::command::DISC, 0, 0)].concat();
    vec![
        [flags.clone(), options, requests].concat(),
        [flags.clone(), old, plain].concat(),
        [flags, an_option(option::ABORT, &[])].concat(),
    ]
}

fn export() -> Export {
    let info = QueueInfo { size: SIZE, block_min: BLOCK, block_preferred: 4096, readonly: false, zeroes_fast: true, trims: true };
    Export::new("disk", "for the fuzzer", info, PAYLOAD_MAX).expect("an export")
}

fn session(bytes: &[u8]) -> Outcome {
    let mut session = Session::new(export());
    let step = 1 + bytes.len() % 61;
    let (mut out, mut commands, mut answers) = (Vec::new(), 0_u32, 0_u32);
    let (mut at, mut end) = (0, 0);
    loop {
        if session.payload_left() > 0 {
            let take = (bytes.len() - at).min(session.payload_left() as usize);
            if take == 0 {
                return Outcome::refused("it ends in a payload");
            }
            session.payload_taken(take as u64);
            at += take;
            end = end.max(at);
            continue;
        }
        end = end.max(at).max((at + step).min(bytes.len()));
        let (consumed, event) = session.receive(&bytes[at..end], &mut out);
        assert!(consumed <= end - at, "it takes more than it was given");
        at += consumed;
        answers += u32::from(!out.is_empty());
        assert!(out.len() <= 64 << 10, "an answer of {} bytes", out.len());
        out.clear();
        match event {
            Some(Event::Command { command, .. }) => {
                check(&command);
                commands += 1;
            }
            Some(Event::Disconnect) => return Outcome::accepted((session.structured(), commands.min(9), answers.min(9))),
            Some(Event::Abort) => return Outcome::refused("hung up on"),
            Some(Event::Answer | Event::Reply(_)) => {}
            None if end == bytes.len() => {
                return Outcome::refused(if session.transmitting() { "it ends" } else { "it ends early" });
            }
            None => assert_eq!(at, end, "it neither takes what there is nor says why"),
        }
        if at == bytes.len() && session.payload_left() == 0 {
            return Outcome::refused(if session.transmitting() { "it ends" } else { "it ends early" });
        }
    }
}

/// What a driver is given can be carried out.
fn check(command: &Command) {
    let (extent, bounded) = match command {
        Command::Read { extent, .. } | Command::Write { extent, .. } => (extent, true),
        Command::Trim { extent, .. } | Command::WriteZeroes { extent, .. } | Command::BlockStatus { extent, .. } => {
            (extent, false)
        }
        Command::Flush => return,
    };
    let end = extent.offset.0.checked_add(extent.len).expect("an extent that overflows");
    assert!(extent.len > 0 && end <= SIZE, "{command:?} is not inside the export");
    assert!(!bounded || extent.len <= u64::from(PAYLOAD_MAX), "{command:?} is too long");
    assert!((extent.offset.0 | extent.len).is_multiple_of(u64::from(BLOCK)), "{command:?} is not aligned");
}
