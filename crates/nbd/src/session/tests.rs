//! The protocol, byte by byte.

use farside_blockio::QueueInfo;
use proptest::prelude::*;

use super::*;
use crate::proto::{info, option, reply};

const SIZE: u64 = 5 << 40; // beyond 2 TiB

fn device() -> QueueInfo {
    QueueInfo { size: SIZE, block_min: 512, block_preferred: 4096, readonly: false, zeroes_fast: false, trims: true }
}

fn session_of(device: QueueInfo) -> Session {
    Session::new(Export::new("disk", "a disk", device, 1 << 20).unwrap())
}

/// Feeds all bytes in pieces of `step`; what was answered, and the events other than "answer".
fn feed(session: &mut Session, mut input: &[u8], step: usize) -> (Vec<u8>, Vec<Event>) {
    let (mut out, mut events) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let piece = step.min(input.len());
        if session.payload_left() > 0 {
            let take = (piece as u64).min(session.payload_left());
            session.payload_taken(take);
            input = &input[take as usize..];
            continue;
        }
        let (consumed, event) = session.receive(&input[..piece], &mut out);
        assert!(consumed > 0 || event.is_some(), "progress");
        input = &input[consumed..];
        match event {
            Some(Event::Answer) | None => {}
            Some(over @ (Event::Abort | Event::Disconnect)) => {
                events.push(over);
                break;
            }
            Some(event) => events.push(event),
        }
    }
    (out, events)
}

fn client_flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

fn opt(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// Splits answers to options into (option, type, data).
fn answers(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        let len = word(16) as usize;
        all.push((word(8), word(12), bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    all
}

fn kinds(bytes: &[u8]) -> Vec<(u32, u32)> {
    answers(bytes).into_iter().map(|(option, kind, _)| (option, kind)).collect()
}

/// A session that has chosen everything and is in transmission.
fn transmitting(device: QueueInfo, structured: bool) -> Session {
    let mut session = session_of(device);
    let mut input = client_flags(3);
    if structured {
        input.extend(opt(option::STRUCTURED_REPLY, &[]));
        input.extend(opt(option::SET_META_CONTEXT, &meta_data("disk", &["base:allocation"])));
    }
    input.extend(opt(option::GO, &go_data("disk", &[])));
    feed(&mut session, &input, usize::MAX);
    assert!(session.transmitting());
    session
}

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(0x1122_3344_5566_7788u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

const COOKIE: u64 = 0x1122_3344_5566_7788;

fn one(session: &mut Session, input: &[u8]) -> Event {
    let (out, mut events) = feed(session, input, usize::MAX);
    assert_eq!((out.len(), events.len()), (0, 1));
    events.remove(0)
}

fn extent(offset: u64, len: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(offset), len }
}

#[test]
fn the_greeting_is_fixed_newstyle_without_zeroes() {
    assert_eq!(&Session::greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn go_describes_the_export_in_golden_bytes() {
    for step in [1, 3, usize::MAX] {
        let mut session = session_of(device());
        let mut input = client_flags(3);
        input.extend(opt(option::GO, &go_data("disk", &[info::BLOCK_SIZE, info::NAME, 99])));
        let (out, events) = feed(&mut session, &input, step);
        assert!(events.is_empty() && session.transmitting());
        let flags = 0b1101_0110_1101u16;
        let mut export = vec![0, 0];
        export.extend(SIZE.to_be_bytes());
        export.extend(flags.to_be_bytes());
        let block_size = vec![0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 0, 16, 0, 0];
        let go = option::GO;
        assert_eq!(answers(&out), [(go, 3, export), (go, 3, block_size), (go, 3, b"\x00\x01disk".to_vec()), (go, 1, vec![])]);
    }
}

#[test]
fn a_read_only_export_offers_no_changes_and_structured_replies_offer_df() {
    let mut session = session_of(QueueInfo { readonly: true, ..device() });
    let mut input = client_flags(3);
    input.extend(opt(option::STRUCTURED_REPLY, &[]));
    input.extend(opt(option::INFO, &go_data("", &[])));
    let (out, _) = feed(&mut session, &input, 7);
    assert!(!session.transmitting(), "INFO does not begin");
    let export = &answers(&out)[1].2;
    assert_eq!(u16::from_be_bytes([export[10], export[11]]), 0b101_1000_1111);
}

#[test]
fn export_name_begins_with_and_without_padding() {
    for (client, len) in [(1, 10 + 124), (3, 10)] {
        let mut session = session_of(device());
        let mut input = client_flags(client);
        input.extend(opt(option::EXPORT_NAME, b"disk"));
        let (out, events) = feed(&mut session, &input, 1);
        assert_eq!((out.len(), out[..8].to_vec(), events.len()), (len, SIZE.to_be_bytes().to_vec(), 0));
        assert!(session.transmitting());
    }
    let mut session = session_of(device());
    let mut input = client_flags(3);
    input.extend(opt(option::EXPORT_NAME, b"other"));
    assert_eq!(feed(&mut session, &input, 1), (vec![], vec![Event::Abort]));
}

#[test]
fn options_that_are_wrong_are_answered_and_the_handshake_goes_on() {
    let cases: Vec<(u32, Vec<u8>, u32)> = vec![
        (option::STARTTLS, vec![], reply::ERR_UNSUP),
        (11, vec![], reply::ERR_UNSUP),
        (0xffff_ffff, vec![1, 2, 3], reply::ERR_UNSUP),
        (option::LIST, vec![1], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![1], reply::ERR_INVALID),
        (option::GO, vec![], reply::ERR_INVALID),
        (option::GO, vec![0xff; 4], reply::ERR_INVALID),
        (option::GO, [go_data("disk", &[1]), vec![0]].concat(), reply::ERR_INVALID),
        (option::GO, go_data("other", &[]), reply::ERR_UNKNOWN),
        (option::INFO, go_data(&"x".repeat(4097), &[]), reply::ERR_TOO_BIG),
        (option::SET_META_CONTEXT, meta_data("disk", &["base:allocation"]), reply::ERR_INVALID), // not structured yet
        (option::LIST_META_CONTEXT, vec![0, 0, 0, 9], reply::ERR_INVALID),
        (option::GO, vec![0; handshake::OPTION_MAX + 1], reply::ERR_TOO_BIG),
    ];
    for step in [1, 1000, usize::MAX] {
        let mut session = session_of(device());
        feed(&mut session, &client_flags(3), step);
        for (option, data, expected) in &cases {
            let (out, events) = feed(&mut session, &opt(*option, data), step);
            assert_eq!((kinds(&out), events), (vec![(*option, *expected)], vec![]), "option {option}");
        }
        let (out, _) = feed(&mut session, &opt(option::GO, &go_data("disk", &[])), step);
        assert_eq!(kinds(&out).last(), Some(&(option::GO, reply::ACK)));
        assert!(session.transmitting());
    }
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    let huge = [b"IHAVEOPT".to_vec(), vec![0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat();
    let long_name = [b"IHAVEOPT".to_vec(), vec![0, 0, 0, 1, 0, 0, 0x10, 1]].concat();
    for bytes in [b"GET / HTTP/1.1\r\n".to_vec(), huge, long_name] {
        let mut session = session_of(device());
        feed(&mut session, &client_flags(3), 1);
        assert_eq!(feed(&mut session, &bytes, 1).1, [Event::Abort]);
        assert_eq!(feed(&mut session, b"more", 4).1, [Event::Abort], "it stays over");
    }
    assert_eq!(feed(&mut session_of(device()), &client_flags(4), 1).1, [Event::Abort], "an unknown client flag");
}

#[test]
fn abort_is_acknowledged_and_list_names_the_export() {
    let mut session = session_of(device());
    let input = [client_flags(3), opt(option::LIST, &[]), opt(option::ABORT, &[])].concat();
    let (out, events) = feed(&mut session, &input, 1);
    let answers = answers(&out);
    assert_eq!(answers[0], (option::LIST, reply::SERVER, b"\x00\x00\x00\x04diska disk".to_vec()));
    assert_eq!(kinds(&out)[1..], [(option::LIST, reply::ACK), (option::ABORT, reply::ACK)]);
    assert_eq!(events, [Event::Disconnect]);
}

#[test]
fn contexts_are_listed_chosen_and_unchosen() {
    let mut session = session_of(device());
    feed(&mut session, &[client_flags(3), opt(option::STRUCTURED_REPLY, &[])].concat(), 1);
    let mut ask = |option, queries: &[&str]| answers(&feed(&mut session, &opt(option, &meta_data("", queries)), 1).0);
    let list = option::LIST_META_CONTEXT;
    let set = option::SET_META_CONTEXT;
    let context = |option, id: u8| (option, 4, [&[0, 0, 0, id], &b"base:allocation"[..]].concat());
    let ack = |option| (option, 1, vec![]);
    assert_eq!(ask(list, &[]), [context(list, 0), ack(list)]);
    assert_eq!(ask(list, &["base:"]), [context(list, 0), ack(list)]);
    assert_eq!(ask(list, &["qemu:dirty-bitmap:x"]), [ack(list)]);
    assert_eq!(ask(set, &["base:"]), [ack(set)]);
    assert_eq!(ask(set, &["x-y:z", "base:allocation", "base:allocation"]), [context(set, 1), ack(set)]);
    assert_eq!(ask(set, &[]), [ack(set)]);
    feed(&mut session, &opt(option::GO, &go_data("", &[])), 1);
    let event = one(&mut session, &request(command::BLOCK_STATUS, 0, 0, 512));
    assert_eq!(event, Event::Reply(Head::error(COOKIE, error::EINVAL, true)), "the last choice was none");
}

#[test]
fn good_commands_are_given_with_their_flags() {
    use Command::*;
    let (at, far) = (extent(512, 1024), extent(SIZE - 512, 512));
    let cases = [
        (request(command::READ, 0, 512, 1024), Read { extent: at, whole: false }),
        (request(command::READ, command_flag::DF, SIZE - 512, 512), Read { extent: far, whole: true }),
        (request(command::FLUSH, 0, 0, 0), Flush),
        (request(command::FLUSH, command_flag::FUA, 0, 0), Flush),
        (request(command::TRIM, command_flag::FUA, 512, 1024), Trim { extent: at, fua: true }),
        (request(command::WRITE_ZEROES, command_flag::NO_HOLE, 512, 1024), WriteZeroes { extent: at, fua: false, no_hole: true }),
        (
            request(command::WRITE_ZEROES, 0, 0, 0xffff_fe00),
            WriteZeroes { extent: extent(0, 0xffff_fe00), fua: false, no_hole: false },
        ),
        (request(command::BLOCK_STATUS, command_flag::REQ_ONE, 512, 1024), BlockStatus { extent: at, one: true }),
    ];
    let mut session = transmitting(device(), true);
    for (bytes, command) in cases {
        assert_eq!(one(&mut session, &bytes), Event::Command { cookie: COOKIE, command });
    }
    let write = [request(command::WRITE, command_flag::FUA, 512, 1024), vec![7; 1024]].concat();
    for step in [1, 100, usize::MAX] {
        let (_, events) = feed(&mut session, &[write.clone(), write.clone()].concat(), step);
        let expected = Event::Command { cookie: COOKIE, command: Write { extent: at, fua: true } };
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(|event| *event == expected));
    }
}

#[test]
fn every_bad_command_gets_the_error_that_the_specification_names() {
    let (r, w, t, z, b) = (command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES, command::BLOCK_STATUS);
    let cases = [
        (request(r, 0, 1, 512), error::EINVAL),                        // unaligned offset
        (request(r, 0, 0, 513), error::EINVAL),                        // unaligned length
        (request(r, 0, SIZE, 512), error::EINVAL),                     // beyond the end
        (request(r, 0, u64::MAX - 511, 1024), error::EINVAL),          // overflow
        (request(r, 0, 0, (1 << 20) + 512), error::EINVAL),            // longer than the limit
        (request(r, command_flag::NO_HOLE, 0, 512), error::EINVAL),    // a flag of another command
        (request(w, 0, SIZE, 512), error::ENOSPC),                     // beyond the end
        (request(w, 0, SIZE - 512, 1024), error::ENOSPC),              // across the end
        (request(w, 0, u64::MAX - 511, 1024), error::ENOSPC),          // overflow
        (request(w, 0, 3, 512), error::EINVAL),                        // unaligned
        (request(w, 0x8000, 0, 512), error::EINVAL),                   // unknown flag
        (request(w, 0, 0, (1 << 20) + 512), error::EINVAL),            // longer than the limit
        (request(t, 0, SIZE, 512), error::EINVAL),                     // beyond the end
        (request(t, command_flag::NO_HOLE, 0, 512), error::EINVAL),    // a flag of another command
        (request(z, 0, SIZE - 512, 1024), error::ENOSPC),              // beyond the end
        (request(z, command_flag::FAST_ZERO, 0, 512), error::ENOTSUP), // not fast here
        (request(b, 0, 0, 0), error::EINVAL),                          // nothing to describe
        (request(b, 0, SIZE, 512), error::EINVAL),                     // beyond the end
        (request(command::FLUSH, 0, 512, 0), error::EINVAL),           // a flush has no extent
        (request(command::CACHE, 0, SIZE, 512), error::EINVAL),        // beyond the end
        (request(8, 0, 0, 512), error::EINVAL),                        // unknown
        (request(0xffff, 0, 0, 512), error::EINVAL),                   // unknown
    ];
    for structured in [true, false] {
        let mut session = transmitting(device(), structured);
        for (bytes, error) in &cases {
            let kind = u16::from_be_bytes([bytes[6], bytes[7]]);
            let len = u32::from_be_bytes(bytes[24..28].try_into().unwrap());
            let payload = if kind == w { vec![0; len as usize] } else { vec![] };
            let event = one(&mut session, &[bytes.clone(), payload].concat());
            let error = if kind == b && !structured { error::EINVAL } else { *error };
            let expected = if structured && (kind == r || kind == b) {
                Head::error(COOKIE, error, true)
            } else {
                Head::simple(COOKIE, error)
            };
            assert_eq!(event, Event::Reply(expected), "{bytes:?}");
            assert!(session.transmitting() && session.payload_left() == 0);
        }
    }
}

#[test]
fn df_without_structured_replies_is_refused() {
    let event = one(&mut transmitting(device(), false), &request(command::READ, command_flag::DF, 0, 512));
    assert_eq!(event, Event::Reply(Head::simple(COOKIE, error::EINVAL)));
}

#[test]
fn a_read_only_device_refuses_changes_after_reading_their_payload() {
    let mut session = transmitting(QueueInfo { readonly: true, ..device() }, true);
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let payload = if kind == command::WRITE { vec![0; 512] } else { vec![] };
        let event = one(&mut session, &[request(kind, 0, 0, 512), payload].concat());
        assert_eq!(event, Event::Reply(Head::simple(COOKIE, error::EPERM)));
    }
    assert!(matches!(one(&mut session, &request(command::FLUSH, 0, 0, 0)), Event::Command { .. }));
}

#[test]
fn a_fast_device_takes_fast_zeroes() {
    let mut session = transmitting(QueueInfo { zeroes_fast: true, ..device() }, true);
    let event = one(&mut session, &request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512));
    assert!(matches!(event, Event::Command { .. }));
}

#[test]
fn nothing_to_do_is_done() {
    let mut session = transmitting(device(), true);
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert_eq!(one(&mut session, &request(kind, 0, 512, 0)), Event::Reply(Head::simple(COOKIE, 0)));
    }
    assert_eq!(one(&mut session, &request(command::CACHE, 0, 512, 512)), Event::Reply(Head::simple(COOKIE, 0)));
    let none = Head::chunk(COOKIE, chunk::NONE, true, 0);
    assert_eq!(one(&mut session, &request(command::READ, 0, 512, 0)), Event::Reply(none));
}

#[test]
fn garbage_and_farewells_end_the_transmission() {
    let mut garbage = request(command::READ, 0, 0, 512);
    garbage[0] ^= 1;
    assert_eq!(feed(&mut transmitting(device(), true), &garbage, 5).1, [Event::Abort]);
    let farewell = request(command::DISC, 0, 0, 0);
    assert_eq!(feed(&mut transmitting(device(), true), &farewell, 5).1, [Event::Disconnect]);
    let endless = request(command::WRITE, 0, 0, u32::MAX);
    assert_eq!(feed(&mut transmitting(device(), true), &endless, 28).1, [Event::Abort]);
}

#[test]
fn heads_are_golden() {
    let hex = |head: Head| head.as_bytes().iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(Head::simple(1, 28)), "674466980000001c0000000000000001");
    assert_eq!(
        hex(Head::data(2, 0x1000, 512, false)),
        "668e33ef0000000100000000000000020000020800000000000010 00".replace(' ', "")
    );
    assert_eq!(
        hex(Head::hole(2, 0x1000, 512, true)),
        "668e33ef00010002000000000000000 20000000c000000000000100000000200".replace(' ', "")
    );
    assert_eq!(hex(Head::error(3, 22, true)), "668e33ef00018001000000000000000300000006000000160000");
    assert_eq!(hex(Head::error_at(3, 5, 512, false)), "668e33ef0000800200000000000000030000000e0000000500000000000000000200");
    assert_eq!(hex(Head::block_status(4, 2)), "668e33ef00010005000000000000000400000014 00000001".replace(' ', ""));
    assert_eq!(Head::error_at(0, 0, 0, false).as_bytes().len(), Head::LEN_MAX);
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(go_data("disk", &[1, 2, 3])),
        Just(meta_data("disk", &["base:allocation", "base:"])),
    ];
    (prop_oneof![0u32..13, any::<u32>()], data).prop_map(|(option, data)| opt(option, &data))
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![0u32..4096, Just(512), any::<u32>()];
    let offset = prop_oneof![0u64..8192, Just(512u64), any::<u64>(), Just(SIZE - 512)];
    let kind = prop_oneof![9 => 0u16..9, 1 => any::<u16>()];
    (kind, prop_oneof![Just(0u16), 0u16..32, any::<u16>()], offset, len).prop_map(|(kind, flags, offset, len)| {
        let payload = if kind == command::WRITE { len.min(1 << 16) } else { 0 };
        [request(kind, flags, offset, len), vec![0x5a; payload as usize]].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// However the bytes are cut, the same comes of them; and every command that is given may be run as it is.
    #[test]
    fn cutting_the_stream_changes_nothing(
        options in proptest::collection::vec(any_option(), 0..6),
        begin in any::<bool>(),
        requests in proptest::collection::vec(any_request(), 0..12),
        garbage in proptest::collection::vec(any::<u8>(), 0..60),
        step in 1usize..70,
    ) {
        let mut input = client_flags(3);
        options.iter().for_each(|option| input.extend(option));
        if begin {
            input.extend(opt(option::GO, &go_data("disk", &[])));
            requests.iter().for_each(|request| input.extend(request));
        }
        input.extend(garbage);
        let whole = feed(&mut session_of(device()), &input, usize::MAX);
        let cut = feed(&mut session_of(device()), &input, step);
        prop_assert_eq!(&whole, &cut);
        for event in whole.1 {
            let Event::Command { command, .. } = event else { continue };
            let (extent, limit) = match command {
                Command::Read { extent, .. } | Command::Write { extent, .. } => (extent, 1 << 20),
                Command::Trim { extent, .. } | Command::WriteZeroes { extent, .. } => (extent, u64::from(u32::MAX)),
                Command::BlockStatus { extent, .. } => (extent, u64::from(u32::MAX)),
                Command::Flush => continue,
            };
            prop_assert!(extent.len > 0 && extent.len <= limit && extent.len % 512 == 0 && extent.offset.0 % 512 == 0);
            prop_assert!(extent.offset.0 + extent.len <= SIZE);
        }
    }

    /// Random bytes never make it panic, nor answer at length.
    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40) {
        let (out, _) = feed(&mut session_of(device()), &noise, step);
        prop_assert!(out.len() < 4096);
    }
}
