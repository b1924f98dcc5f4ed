use std::os::unix::fs::PermissionsExt as _;

use data_encoding::HEXLOWER;
use farside_region::{GranuleDigest, VolumeId};
use proptest::prelude::*;

use super::*;

const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
const HEAD: [u8; FRAME_HEAD_BYTES] = *b"the head of a test frame";

fn group(n: u8) -> GroupKey {
    GroupKey::new(Secret::new(&[n; 32]))
}

fn keys() -> VolumeKeys {
    group(1).volume(VolumeId([2; 16]))
}

fn sealer(n: u8) -> Sealer {
    Sealer::new(Secret::new(&[n; 32]))
}

fn seal(sealer: &mut Sealer, digests: &[GranuleDigest], plain: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; FRAME_SALT_BYTES];
    payload.extend_from_slice(plain);
    keys().seal(sealer, &HEAD, digests, &mut payload, 0);
    payload
}

fn open(keys: &VolumeKeys, head: &[u8; FRAME_HEAD_BYTES], stored: &[u8]) -> Result<Vec<u8>, Unopened> {
    let mut out = b"before".to_vec();
    let opened = keys.open(head, stored, &mut out);
    assert_eq!(&out[..6], b"before");
    opened.inspect_err(|_| assert_eq!(out.len(), 6)).map(|()| out.split_off(6))
}

/// What is stored and printed for people, of a key of ones: formats do not change unnoticed.
#[test]
fn golden_bytes() {
    let (group, volume) = (group(1), keys());
    let stored = seal(&mut sealer(3), &[GranuleDigest([4; 16])], b"sixteen bytes of");
    let texts: [&[u8]; 5] = [&group.id().0, volume.digest_key(), volume.commitment(), &stored, &stored_digest(&stored)];
    assert_eq!(texts.map(|bytes| HEXLOWER.encode(bytes)), GOLDEN);
}

const GOLDEN: [&str; 5] = [
    "ecc0c128da494efa9016dab3c8513f15",
    "e15e9306aff34bcc7dd05a0ef799ca8bc7881d5a11723ecbe558b84347746488",
    "24d83816290ddc9d2e01fd341d96c32d30fdc83f7045c5b4e5065e0ee42eb9c1",
    "cbd744e5b4457393e99a06323c408dc84b7b7ba3e76808ac9a4236413d4300b8a11d21fa43641b1772d3af3887ba3271b7fd652064d75a17",
    "51b08492cd82ead76890c9e22d16ab03",
];

#[test]
fn keys_are_in_no_text() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    std::fs::write(&path, [0x41; 32]).expect("written");
    let given = Keeper::Passphrase(Some("AAAAAAAAAAAAAAAA".to_owned().into()));
    let group = GroupKey::new(Secret::new(&[0x41; 32]));
    let wrapping = Wrapping::new(&group, &Keeper::File(path), CHEAP).expect("wrapped");
    let text = format!(
        "{group:?} {:?} {:?} {given:?} {given} {:?} {:?}",
        keys(),
        ContentKeys::from(&[0x41; 32]),
        Sealer::new(Secret::new(&[0x41; 32])),
        String::from_utf8(wrapping.encode())
    );
    for secret in ["4141", "AAAA", "65, 65", "0x41"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn another_volume_or_group_has_other_keys() {
    let seal = group(1).seal(SealMode::EndToEnd, VolumeId([2; 16]));
    assert!(ContentKeys::unseal(&group(1), VolumeId([2; 16]), &seal).is_ok());
    let error = ContentKeys::unseal(&group(3), VolumeId([2; 16]), &seal).expect_err("another key");
    assert_eq!(error, WrongKey { given: group(3).id(), wanted: group(1).id() });
    assert!(ContentKeys::unseal(&group(1), VolumeId([3; 16]), &seal).is_err(), "another volume");
    let stored = seal_of(b"content");
    assert_eq!(open(&group(1).volume(VolumeId([3; 16])), &HEAD, &stored), Err(Unopened));
}

fn seal_of(plain: &[u8]) -> Vec<u8> {
    seal(&mut sealer(3), &[], plain)
}

#[test]
fn a_salt_is_never_used_for_two_contents() {
    let salts = |sealer: &mut Sealer, digest: u8, plain: &[u8]| {
        seal(sealer, &[GranuleDigest([digest; 16])], plain)[..FRAME_SALT_BYTES].to_vec()
    };
    let mut one = sealer(1);
    let (first, second) = (salts(&mut one, 0, b"a"), salts(&mut one, 0, b"a"));
    assert_ne!(first, second, "the count");
    // The randomness failed: both begin alike.
    assert_eq!(first, salts(&mut sealer(1), 0, b"a"));
    assert_ne!(first, salts(&mut sealer(1), 1, b"a"), "other content");
    assert_ne!(first, salts(&mut sealer(1), 0, b"b"), "compressed otherwise");
    assert_ne!(first, salts(&mut sealer(2), 0, b"a"), "other randomness");
}

proptest! {
    #[test]
    fn what_was_sealed_opens_and_any_change_is_noticed(
        plain in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let stored = seal_of(&plain);
        prop_assert_eq!(stored.len(), plain.len() + FRAME_OVERHEAD_BYTES);
        prop_assert_eq!(open(&keys(), &HEAD, &stored), Ok(plain));
        let mut other = stored.clone();
        other[at.index(stored.len())] ^= 1u8 << bit;
        prop_assert_eq!(open(&keys(), &HEAD, &other), Err(Unopened));
        prop_assert_ne!(stored_digest(&stored), stored_digest(&other));
        let mut head = HEAD;
        head[at.index(HEAD.len())] ^= 1u8 << bit;
        prop_assert_eq!(open(&keys(), &head, &stored), Err(Unopened));
        let cut = at.index(stored.len());
        prop_assert_eq!(open(&keys(), &HEAD, &stored[..cut]), Err(Unopened));
    }

    #[test]
    fn any_bytes_are_a_wrapping_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Wrapping::decode(&bytes).is_err());
    }
}

#[test]
fn a_wrapped_key_comes_back_from_its_file_and_from_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let kms = file("kms", b"#!/bin/sh\nLC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n");
    let program = file("one-way", b"#!/bin/sh\nprintf x\nLC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n");
    let talks = file(
        "talks",
        b"#!/bin/sh\nhead -c 300000 /dev/zero >&2 || exit 9\nLC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n",
    );
    for path in [&program, &kms, &talks] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("allowed");
    }
    let keeper = |text: String| text.parse::<Keeper>().expect("a keeper");
    let of = |kind: &str, path: &std::path::Path| keeper(format!("{kind}:{}", path.display()));
    let ways = [
        (of("file", &file("one", &[7; 32])), of("file", &file("two", &[8; 32]))),
        (of("passphrase", &file("p", b"correct horse\n")), of("passphrase", &file("q", b"correct house\n"))),
        (Keeper::Passphrase(Some("correct horse".to_owned().into())), of("passphrase", &file("r", b"x"))),
        (of("command", &kms), keeper("command:head -c 32".to_owned())),
    ];
    for (right, wrong) in &ways {
        let wrapping = Wrapping::new(&group(9), right, CHEAP).expect("wrapped");
        let stored = wrapping.encode();
        let read = Wrapping::decode(&stored).expect("read back");
        assert_eq!(read, wrapping);
        assert_eq!(read.unwrap(right).expect("the right one").id(), group(9).id());
        match (read.unwrap(wrong), wrong) {
            (Err(WrapError::Wrong { key, .. }), _) => assert_eq!(key, group(9).id()),
            // It is given what it did not write, and says so.
            (Err(WrapError::Keeper(_)), Keeper::Command(_)) => {}
            (other, _) => panic!("{wrong}: {other:?}"),
        }
        for (other, _) in ways.iter().filter(|(other, _)| other.way_for_tests() != read.way()) {
            assert!(matches!(read.unwrap(other), Err(WrapError::OtherWay { .. })), "{other}");
        }
    }
    // A passphrase from a file is the same as one that is asked for.
    let wrapping = Wrapping::new(&group(9), &ways[1].0, CHEAP).expect("wrapped");
    assert_eq!(wrapping.unwrap(&ways[2].0).expect("the same words").id(), group(9).id());
    // What says more than anybody reads is not ended by that.
    Wrapping::new(&group(9), &of("command", &talks), CHEAP).expect("wrapped");
    // A program that gives something else back is found out when the key is wrapped, not when it is needed.
    let error = Wrapping::new(&group(9), &of("command", &program), CHEAP).expect_err("it does not undo what it did");
    assert!(matches!(error, WrapError::Wrong { .. }), "{error}");
    let error = Wrapping::new(&group(9), &keeper("command:sh -c cat".to_owned()), CHEAP).expect_err("cat with another name");
    assert!(error.to_string().contains("the key itself"), "{error}");
    let error = Wrapping::new(&group(9), &of("command", &dir.path().join("none")), CHEAP).expect_err("there is none");
    assert!(error.to_string().contains("none wrap` failed"), "{error}");
    assert!(Wrapping::new(&group(9), &of("file", &file("short", b"abc")), CHEAP).is_err());
    assert!(Wrapping::new(&group(9), &of("passphrase", &file("empty", b"\nsecond")), CHEAP).is_err());
    assert!(Wrapping::new(&group(9), &Keeper::Passphrase(None), CHEAP).is_err());
}

impl Keeper {
    fn way_for_tests(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Passphrase(_) | Self::PassphraseFile(_) => "passphrase",
            Self::Command(_) => "command",
        }
    }
}

/// One keeper keeps the keys of many groups: what was wrapped for one is of no use as another's, or as one of no group, whichever way it is wrapped.
#[test]
fn a_wrapping_at_rest_opens_as_that_of_its_group_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, kms) = (dir.path().join("file"), dir.path().join("kms"));
    std::fs::write(&file, [7; 32]).expect("written");
    std::fs::write(&kms, b"#!/bin/sh\nLC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n").expect("written");
    std::fs::set_permissions(&kms, std::fs::Permissions::from_mode(0o700)).expect("allowed");
    let ways = [
        Keeper::File(file),
        Keeper::Passphrase(Some("correct horse".to_owned().into())),
        Keeper::Command(vec![kms.display().to_string()]),
    ];
    for keeper in &ways {
        let wrapping = Wrapping::at_rest("web1/db", &group(9), keeper, CHEAP).expect("wrapped");
        let read = Wrapping::decode(&wrapping.encode()).expect("read back");
        assert!(read == wrapping && read.group() == Some("web1/db"));
        // Whoever moves one on purpose says nothing of what it was.
        let text = undigested(&wrapping);
        assert_eq!(read.unwrap(keeper).expect("its keeper").id(), group(9).id());
        let again = read.again(&group(9), &ways[0], CHEAP).expect("wrapped once more");
        assert_eq!(again.group(), Some("web1/db"), "it stays bound");
        let opened = |text: &str| Wrapping::decode(text.as_bytes()).expect("a wrapping").unwrap(keeper);
        let moved = text.replacen("web1/db", "evil/db", 1);
        assert!(matches!(opened(&moved), Err(WrapError::Wrong { .. })), "{keeper}: as another group's");
        let freed = text.replacen("\"version\": 2", "\"version\": 1", 1).replacen("  \"group\": \"web1/db\",\n", "", 1);
        assert!(matches!(opened(&freed), Err(WrapError::Wrong { .. })), "{keeper}: as one of no group");
        let free = undigested(&Wrapping::new(&group(9), keeper, CHEAP).expect("wrapped"));
        let bound = free.replacen("\"version\": 1", "\"version\": 2,\n  \"group\": \"web1/db\"", 1);
        assert!(matches!(opened(&bound), Err(WrapError::Wrong { .. })), "{keeper}: what was bound to nothing");
        let nobodys = text.replacen("  \"group\": \"web1/db\",\n", "", 1);
        assert!(matches!(Wrapping::decode(nobodys.as_bytes()), Err(WrapError::Format(_))));
    }
}

/// As an earlier Farside wrote it.
fn undigested(wrapping: &Wrapping) -> String {
    let text = String::from_utf8(wrapping.encode()).expect("JSON");
    let at = text.find(",\n  \"digest\"").expect("the last one");
    format!("{}\n}}\n", &text[..at])
}

/// What is bound, byte for byte: others unwrap it, too. An earlier Farside's is read as it ever was.
#[test]
fn golden_bytes_of_a_wrapping_at_rest() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, [7; 32]).expect("written");
    let digested = AT_REST.replace("\"\n}\n", AT_REST_DIGEST);
    for text in [AT_REST, &digested] {
        let wrapping = Wrapping::decode(text.as_bytes()).expect("whole");
        assert!(!wrapping.is_damaged(), "{text}");
        assert_eq!(wrapping.unwrap(&Keeper::File(path.clone())).expect("opens").id(), group(9).id());
        assert_eq!(wrapping.encode(), text.as_bytes());
    }
}

const AT_REST_DIGEST: &str = r#"",
  "digest": "05107c18eebf8a5c911692e3cd46ef4079fece7fe2dec387e68e4ea2b9305df6"
}
"#;

const AT_REST: &str = r#"{
  "format": "farside key",
  "version": 2,
  "key": "84beafd342f9bc45169b4570c4598adf",
  "group": "web1/db",
  "by": "file",
  "nonce": "2b92f6a1e33f58f842355ed2",
  "wrapped": "7fb46fe313ec17fc447ba30661d180eae9753e874b21a987de9ee87bef0b4407749f9a80ab389be1733e031147d346f3"
}
"#;

/// The digest of what a passphrase wraps, byte for byte.
#[test]
fn golden_digest_of_what_a_passphrase_wraps() {
    let wrapping = Wrapping::decode(BY_PASSPHRASE.as_bytes()).expect("a wrapping");
    assert!(!wrapping.is_damaged());
    assert_eq!(wrapping.encode(), BY_PASSPHRASE.as_bytes());
}

const BY_PASSPHRASE: &str = r#"{
  "format": "farside key",
  "version": 1,
  "key": "84beafd342f9bc45169b4570c4598adf",
  "by": "passphrase",
  "argon2id": {
    "memory_kib": 65536,
    "passes": 3,
    "lanes": 4,
    "salt": "12121212121212121212121212121212"
  },
  "nonce": "2b92f6a1e33f58f842355ed2",
  "wrapped": "7fb46fe313ec17fc447ba30661d180eae9753e874b21a987de9ee87bef0b4407749f9a80ab389be1733e031147d346f3",
  "digest": "8b0a474cee1ab8d93fcbfe7f218a703e85b223a66a1ffb1077299574df3ba5c6"
}
"#;

/// † One flipped digit loses all that is encrypted with the key, and looked like a wrong key.
#[test]
fn a_damaged_wrapping_is_not_taken_for_a_wrong_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let kms = dir.path().join("kms");
    std::fs::write(&kms, b"#!/bin/sh\nLC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n").expect("written");
    std::fs::set_permissions(&kms, std::fs::Permissions::from_mode(0o700)).expect("allowed");
    let keepers = [Keeper::Passphrase(Some("correct horse".to_owned().into())), Keeper::Command(vec![kms.display().to_string()])];
    for keeper in keepers {
        let wrapping = Wrapping::new(&group(9), &keeper, CHEAP).expect("wrapped");
        let text = String::from_utf8(wrapping.encode()).expect("JSON");
        assert!(!wrapping.is_damaged());
        let hex: Vec<usize> = text.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let fields = ["key", "salt", "nonce", "wrapped", "digest"];
        let places: Vec<usize> = fields.iter().filter_map(|field| text.find(&format!("\"{field}\": \""))).collect();
        assert_eq!(places.len(), if keeper.way_for_tests() == "command" { 3 } else { 5 });
        for place in &places {
            // Behind the name.
            let at = *hex.iter().find(|at| *at > place).expect("a digit");
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let read = Wrapping::decode(&bytes).expect("it has all that it should");
            assert!(read.is_damaged(), "{}", String::from_utf8_lossy(&bytes));
            match read.unwrap(&keeper) {
                // † Nothing but the digest is damaged, and it may be the only one.
                Ok(key) => assert!(key.id() == group(9).id() && Some(place) == places.last()),
                Err(error) => {
                    assert!(matches!(error, WrapError::Damaged { .. }) && Some(place) != places.last(), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_wrapping_that_was_changed_says_so() {
    let keeper = Keeper::Passphrase(Some("correct horse".to_owned().into()));
    let text = undigested(&Wrapping::new(&group(9), &keeper, CHEAP).expect("wrapped"));
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        Wrapping::decode(text.replacen(from, to, 1).as_bytes())
    };
    assert!(matches!(with("\"version\": 1", "\"version\": 3"), Err(WrapError::Version(3))));
    assert!(matches!(with("farside key", "farside group"), Err(WrapError::Format(_))));
    assert!(matches!(with("\"memory_kib\": 64", "\"memory_kib\": 99999999"), Err(WrapError::Format(_))));
    // What Argon2id is to take is bound: whoever changes it changes nothing but that it does not open.
    let cheaper = with("\"memory_kib\": 64", "\"memory_kib\": 72").expect("a wrapping");
    assert!(matches!(cheaper.unwrap(&keeper), Err(WrapError::Wrong { .. })));
    let other = with(&group(9).id().to_string(), &group(8).id().to_string()).expect("a wrapping");
    assert!(matches!(other.unwrap(&keeper), Err(WrapError::Wrong { .. })));
}

#[test]
fn keepers_are_named_as_people_do() {
    for text in ["file:/etc/key", "passphrase:/etc/words", "passphrase", "command:kms"] {
        assert_eq!(text.parse::<Keeper>().expect("a keeper").to_string(), text);
    }
    for text in ["", "file", "file:", "command: ", "http://x", "key:/etc/key"] {
        assert!(text.parse::<Keeper>().is_err(), "{text}");
    }
}

/// † What is said of a keeper stands in logs, and in what everybody may read of a status.
#[test]
fn what_a_program_is_called_with_is_in_no_text() {
    let keeper: Keeper = "command:sh -c false hunter2".parse().expect("a keeper");
    assert_eq!(keeper.to_string(), "command:sh …");
    assert_eq!(keeper, Keeper::Command(["sh", "-c", "false", "hunter2"].map(str::to_owned).to_vec()), "it is called with it");
    let failed = Wrapping::new(&group(9), &keeper, CHEAP).expect_err("it fails");
    assert!(failed.to_string().contains("`sh … wrap` failed"), "{failed}");
    let leaks: Keeper = "command:sh -c cat hunter2".parse().expect("a keeper");
    let leaked = Wrapping::new(&group(9), &leaks, CHEAP).expect_err("it gives the key back");
    for text in [format!("{keeper:?}"), format!("{failed} {failed:?}"), format!("{leaked} {leaked:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// † A hung file system, or a pipe that nobody writes to, held up whoever waits for the key for ever.
#[test]
fn a_file_that_does_not_answer_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for path in [std::path::Path::new("/dev/zero"), dir.path(), &pipe] {
        for keeper in [Keeper::File(path.to_owned()), Keeper::PassphraseFile(path.to_owned())] {
            let error = Wrapping::new(&group(9), &keeper, CHEAP).expect_err("it is no file");
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
    }

    let path = dir.path().join("hung");
    std::fs::write(&path, [7; 32]).expect("written");
    let (answer, server) = std::sync::mpsc::channel::<()>();
    let hung = move |_: &std::path::Path| {
        let _ = server.recv();
        Ok(zeroize::Zeroizing::default())
    };
    let error = keeper::read_within(std::time::Duration::from_millis(1), &path, hung).expect_err("it hangs");
    assert!(error.to_string().contains("hung") && error.to_string().contains("no answer"), "{error}");
    // It is not tried again while it hangs, and is as soon as it does not.
    let hangs = || Keeper::file(&path).is_err_and(|error| matches!(error, KeeperError::Unanswered { .. }));
    assert!(hangs() && hangs());
    drop(answer);
    while hangs() {
        std::thread::yield_now();
    }
    assert_eq!(Keeper::file(&path).expect("it answers")[..], [7; 32]);
}

/// A key program that is asked at every try must leave nothing behind at any, however it ends.
#[test]
fn what_a_program_started_ends_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let pid = dir.path().join("pid");
    for end in ["exit 1", "exec cat"] {
        // It holds the standard error open, as what nobody thought of does.
        let script = format!("sleep 100000 </dev/null >/dev/null & echo $! > {}; {end}", pid.display());
        let words = ["sh".to_owned(), "-c".to_owned(), script];
        assert_eq!(keeper::run_with(&words, "wrap", b"a key", true).is_ok(), end != "exit 1");
        let pid = std::fs::read_to_string(&pid).expect("it started one");
        let status = format!("/proc/{}/stat", pid.trim());
        // Ended, if perhaps nobody has taken note of it yet.
        let has_ended = || !std::fs::read_to_string(&status).is_ok_and(|status| !status.contains(") Z "));
        let ended = (0..10_000).any(|_| has_ended() || (std::thread::sleep(std::time::Duration::from_millis(1)), false).1);
        assert!(ended, "{end}: {status}");
    }
}
