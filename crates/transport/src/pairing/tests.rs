//! The book: what a token is good for, and what survives a restart.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::memory::name;

const NOW: u64 = 1_000_000;
const HOUR: u64 = 3600;

fn request(source: Option<&str>, replace: bool) -> TokenRequest {
    TokenRequest {
        addresses: vec!["gateway:7420".to_owned()],
        receiver: Fingerprint([0; 32]),
        lifetime_s: HOUR,
        source: source.map(name),
        replace,
    }
}

fn machine(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

struct Fixture {
    directory: tempfile::TempDir,
    book: PairingBook,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let book = PairingBook::open(&directory.path().join("pairings.json")).expect("opened");
        Self { directory, book }
    }

    fn reopened(mut self) -> Self {
        self.book = PairingBook::open(&self.directory.path().join("pairings.json")).expect("opened again");
        self
    }

    fn token(&self, source: Option<&str>, replace: bool) -> PairingToken {
        self.book.create_token(request(source, replace), NOW).expect("made")
    }

    fn redeem(&self, token: &PairingToken, as_name: &str, by: Fingerprint, now: u64) -> Result<Vec<Fingerprint>, PairingRefusal> {
        let key = token.secret.proof_key();
        self.book.redeem(&token.secret.token_id(), |k| *k == key, &name(as_name), by, now).map(|(_, replaced)| replaced)
    }
}

#[test]
fn a_token_pairs_one_machine_once_and_the_book_remembers() {
    let f = Fixture::new();
    let token = f.token(None, false);
    assert_eq!(f.book.tokens(NOW).len(), 1);
    f.redeem(&token, "db1", machine(1), NOW + 1).expect("paired");
    let f = f.reopened();
    assert_eq!(f.book.name_of(&machine(1)), Some(name("db1")));
    assert_eq!(f.book.name_of(&machine(2)), None);
    assert!(f.book.tokens(NOW).is_empty());
    let written = || std::fs::metadata(f.directory.path().join("pairings.json")).expect("the book").ino();
    let before = written();
    assert!(matches!(f.redeem(&token, "db2", machine(2), NOW + 1), Err(PairingRefusal::Used)));
    // The answer was lost and the machine repeats itself, even after the token's time.
    f.redeem(&token, "db1", machine(1), NOW + 2 * HOUR).expect("paired already");
    assert_eq!(written(), before, "what changes nothing is not written");
    assert_eq!(f.book.remove(&name("db1")).expect("written"), Some(machine(1)));
    assert_eq!(f.book.remove(&name("db1")).expect("nothing to write"), None);
    assert!(matches!(f.redeem(&token, "db1", machine(1), NOW + 1), Err(PairingRefusal::Used)), "removed means removed");
}

#[test]
fn where_a_source_came_from_is_on_record_as_long_as_it_is_paired() {
    let f = Fixture::new();
    let at = |n: u8| std::net::IpAddr::from([192, 0, 2, n]);
    for n in 1..=2 {
        let token = f.token(None, false);
        f.redeem(&token, &format!("db{n}"), machine(n), NOW).expect("paired");
    }
    let written = || std::fs::metadata(f.directory.path().join("pairings.json")).expect("the book").ino();
    (1..=5).for_each(|n| f.book.came_from(&machine(1), at(n)).expect("written"));
    f.book.came_from(&machine(2), at(9)).expect("written");
    let before = written();
    f.book.came_from(&machine(1), at(3)).expect("on record");
    f.book.came_from(&machine(7), at(7)).expect("a stranger is not recorded");
    assert_eq!(written(), before, "what changes nothing is not written");
    let f = f.reopened();
    let (one, two) = (machine(1), machine(2));
    let known = [(2, one), (3, one), (4, one), (5, one), (9, two)].map(|(n, of)| (at(n), of));
    assert_eq!(f.book.sites(), known, "the newest of each last");
    assert!(f.book.has_come_from(&machine(1), at(5)) && !f.book.has_come_from(&machine(1), at(1)));
    f.book.remove(&name("db1")).expect("written");
    assert_eq!(f.book.sites(), [(at(9), two)]);
}

#[test]
fn a_token_expires() {
    let f = Fixture::new();
    let token = f.token(None, false);
    assert!(matches!(f.redeem(&token, "db1", machine(1), NOW + HOUR), Err(PairingRefusal::Expired)));
    assert!(f.book.tokens(NOW + HOUR).is_empty());
    assert!(f.book.sources().is_empty());
}

#[test]
fn nobody_learns_about_a_token_without_its_secret() {
    let f = Fixture::new();
    let token = f.token(None, false);
    f.redeem(&token, "db1", machine(1), NOW).expect("paired");
    let id = token.secret.token_id();
    let refused = f.book.redeem(&id, |_| false, &name("db1"), machine(1), NOW);
    assert!(matches!(refused, Err(PairingRefusal::Unknown)), "used and unknown look the same");
    assert!(matches!(f.book.redeem(&[0; 8], |_| true, &name("x"), machine(3), NOW), Err(PairingRefusal::Unknown)));
    let text = std::fs::read_to_string(f.directory.path().join("pairings.json")).expect("read");
    let line = token.to_line();
    assert!(!text.contains(&line[9..]) && text.contains(&HEXLOWER.encode(&token.secret.proof_key())));
}

#[test]
fn names_and_machines_are_taken_over_only_on_purpose() {
    let f = Fixture::new();
    f.redeem(&f.token(None, false), "db1", machine(1), NOW).expect("paired");
    assert!(matches!(f.redeem(&f.token(Some("db2"), false), "db1", machine(2), NOW), Err(PairingRefusal::OtherSource { .. })));
    assert!(matches!(f.redeem(&f.token(None, false), "db1", machine(2), NOW), Err(PairingRefusal::NameTaken(_))));
    assert!(matches!(f.redeem(&f.token(None, false), "db9", machine(1), NOW), Err(PairingRefusal::MachineTaken(_))));
    assert_eq!(f.redeem(&f.token(None, false), "db1", machine(1), NOW).expect("the same again"), []);
    assert_eq!(f.redeem(&f.token(Some("db1"), true), "db1", machine(2), NOW).expect("replaced"), [machine(1)]);
    assert_eq!(f.book.name_of(&machine(1)), None);
    assert_eq!(f.redeem(&f.token(None, true), "db3", machine(2), NOW).expect("renamed"), [machine(2)]);
    let sources = f.reopened().book.sources();
    assert_eq!(sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["db3"]);
}

#[test]
fn tokens_are_bounded_and_forgotten_in_the_end() {
    let f = Fixture::new();
    for _ in 0..3 {
        f.token(None, false);
    }
    f.book.create_token(request(None, false), NOW + HOUR + MEMORY_S).expect("made");
    assert_eq!(f.book.lock().tokens.len(), 1, "the expired ones were forgotten");
    f.book.lock().tokens.resize_with(TOKENS_MAX, || TokenEntry {
        id: String::new(),
        proof_key: HEXLOWER.encode(&[0; 32]),
        expires_unix_s: u64::MAX,
        source: None,
        replace: false,
        used_by: None,
    });
    assert!(matches!(f.book.create_token(request(None, false), NOW), Err(BookError::TooManyTokens)));
}

#[test]
fn unusable_addresses_are_refused() {
    let f = Fixture::new();
    for bad in ["", "host", "host:", ":7420", "host:70000", "a b:1", &format!("{}:1", "x".repeat(300))] {
        let request = TokenRequest { addresses: vec![bad.to_owned()], ..request(None, false) };
        assert!(matches!(f.book.create_token(request, NOW), Err(BookError::Address(_))), "{bad}");
    }
    let none = TokenRequest { addresses: Vec::new(), ..request(None, false) };
    assert!(f.book.create_token(none, NOW).is_err());
}

/// Whoever goes back to an older version is not told to move the pairings away.
#[test]
fn what_a_later_version_wrote_is_not_called_damaged() {
    let f = Fixture::new();
    f.token(None, false);
    let path = f.directory.path().join("pairings.json");
    let good = std::fs::read_to_string(&path).expect("read");
    for later in ["\"format\": 2", "\"format\": 2, \"more\": {}"] {
        std::fs::write(&path, good.replace("\"format\": 1", later)).expect("written");
        let error = PairingBook::open(&path).expect_err("it is of a later version");
        let words = error.to_string();
        assert!(matches!(error, BookError::Later { found: 2, .. }), "{error:?}");
        assert!(words.contains("pairings.json") && words.contains("later version") && !words.contains("move it"), "{words}");
    }
    let pin = f.directory.path().join("receiver.json");
    let kept = crate::Pin::new("gw".parse().expect("a name"), machine(1), vec!["gw:1".to_owned()]);
    kept.save(&pin).expect("written");
    let good = std::fs::read_to_string(&pin).expect("read");
    std::fs::write(&pin, good.replace("\"format\": 1", "\"format\": 7, \"more\": {}")).expect("written");
    let words = crate::Pin::load(&pin).expect_err("it is of a later version").to_string();
    assert!(words.contains("later version") && !words.contains("pair again"), "{words}");
    std::fs::write(&pin, "{").expect("written");
    let words = crate::Pin::load(&pin).expect_err("it is damaged").to_string();
    assert!(words.contains("put it back"), "{words}");
}

#[test]
fn a_damaged_or_exposed_book_is_refused_by_name() {
    let f = Fixture::new();
    f.token(None, false);
    let path = f.directory.path().join("pairings.json");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    let good = std::fs::read_to_string(&path).expect("read");
    for bad in [
        &good[..good.len() / 2],
        &good.replace("\"format\": 1", "\"format\": 0"),
        &good.replace("proof_key\": \"", "proof_key\": \"x"),
    ] {
        std::fs::write(&path, bad).expect("written");
        let error = PairingBook::open(&path).expect_err("it is damaged");
        assert!(
            matches!(error, BookError::Damaged { .. }) && error.to_string().contains("farside-receiver token --for"),
            "{error}"
        );
    }
    std::fs::write(&path, &good).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(matches!(PairingBook::open(&path), Err(BookError::File(IdentityError::Exposed { .. }))));
}

#[test]
fn what_could_not_be_written_did_not_happen() {
    let f = Fixture::new();
    let token = f.token(None, false);
    // A directory in the place of the temporary file: no write can succeed, whoever runs the test.
    std::fs::create_dir_all(f.directory.path().join("pairings.tmp/x")).expect("made");
    assert!(matches!(f.redeem(&token, "db1", machine(1), NOW), Err(PairingRefusal::Storage(_))));
    assert!(f.book.sources().is_empty());
    std::fs::remove_dir_all(f.directory.path().join("pairings.tmp")).expect("removed");
    f.redeem(&token, "db1", machine(1), NOW).expect("paired now");
}
