use std::fs;
use std::sync::Arc;

use farside_keys::{Argon2Cost, Secret};
use farside_ledger::LayerKind;
use farside_region::Slot;

use super::*;
use crate::backend::counting::{Counting, Request};
use crate::backend::memory::Memory;
use crate::check::{Problem, Severity, check};
use crate::testkit::{Fill, GRANULE, TempStore, TestVolume, name};
use crate::{FileTarget, GroupStore, Looked, RestoreOptions, StoreReader, restore_to, verify_point};

const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 8, passes: 1, lanes: 1 };

fn group_key(byte: u8) -> GroupKey {
    GroupKey::new(Secret::new(&[byte; 32]))
}

fn key_file(store: &TempStore, byte: u8) -> Keeper {
    let path = store.dir.path().join(format!("{byte}.key"));
    fs::write(&path, [byte; 32]).expect("written");
    Keeper::File(path)
}

fn passphrase(text: &str) -> Keeper {
    Keeper::Passphrase(Some(text.to_owned().into()))
}

fn wrapped(key: &GroupKey, keeper: &Keeper) -> Vec<u8> {
    Wrapping::new(key, keeper, CHEAP).expect("wrapped").encode()
}

/// An encrypted volume with two points, and a wrapping of its key by a file.
fn store() -> (TempStore, TestVolume, Slot) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64).sealed(&group_key(1));
    let kept = group.keep_key(&wrapped(&group_key(1), &key_file(&store, 1))).expect("kept");
    assert_eq!(kept, (group_key(1).id(), 0));
    volume.claim(&mut group);
    volume.base(&mut group, 0x41);
    let runs = vec![(16, 16, Fill::Byte(0x42)), (40, 8, Fill::Zero)];
    let point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
    (store, volume, point)
}

fn opened(store: &TempStore, keeper: Option<Keeper>) -> crate::GroupReader {
    let reader = StoreReader::open(&store.path()).expect("open").with_keepers(keeper);
    reader.group(&reader.groups().expect("groups").groups[0]).expect("group")
}

#[test]
fn an_encrypted_point_is_restored_with_its_key_and_with_nothing_else() {
    let (store, volume, point) = store();
    let restored = |keeper: Option<Keeper>| {
        let group = opened(&store, keeper);
        let reader = group.point_reader(point, volume.id())?;
        let to = store.dir.path().join("restored");
        let target = FileTarget::open(&to, "v", reader.geometry().volume_bytes(), crate::Existing::Replace)?;
        restore_to(&reader, &target, &RestoreOptions::default(), &|_| true)?;
        target.finish()?;
        Ok::<_, StoreError>(fs::read(&to).expect("restored"))
    };
    let image = TestVolume::bytes(&volume.image);
    assert_eq!(restored(Some(key_file(&store, 1))).expect("its key"), image);
    let why = restored(None).expect_err("no key").to_string();
    for said in [&group_key(1).id().to_string(), "file (keys/0)", "--key file:PATH", "no key was given"] {
        assert!(why.contains(said), "{why}");
    }
    let why = restored(Some(key_file(&store, 2))).expect_err("another file").to_string();
    assert!(why.contains("this file does not open the key") && why.contains("file (keys/0)"), "{why}");
    let why = restored(Some(passphrase("x"))).expect_err("another way").to_string();
    assert!(why.contains("opens none of its wrappings"), "{why}");

    // Another passphrase is another wrapping, and no data is written again.
    let names = GroupNames::new(name("host"), name("default"));
    let reader = StoreReader::open(&store.path()).expect("open");
    let add = |bytes: &[u8]| add_wrapping(&**reader.backend(), &names, bytes).expect("kept").1;
    let second = wrapped(&group_key(1), &passphrase("correct horse"));
    assert_eq!((add(&second), add(&second)), (1, 1), "what is there is not put there again");
    assert_eq!(add(&wrapped(&group_key(1), &key_file(&store, 3))), 2);
    assert_eq!(restored(Some(passphrase("correct horse"))).expect("its passphrase"), image);
    assert_eq!(restored(Some(key_file(&store, 3))).expect("its new file"), image);

    // A wrapping that says it is of the key, and holds another, opens nothing; what is said is no damage of the volume.
    for number in 0..3 {
        fs::remove_file(store.path().join(format!("groups/host/default/keys/{number}"))).expect("there");
    }
    let why = restored(Some(key_file(&store, 1))).expect_err("no wrapping").to_string();
    assert!(why.contains("in no way that the store holds"), "{why}");
    assert_eq!(add(&wrapped(&group_key(2), &key_file(&store, 1))), 0);
    assert!(matches!(restored(Some(key_file(&store, 1))), Err(StoreError::KeyNeeded { .. })));
}

/// Everything but content is there without a key, and damage is seen: by the digests of what is stored.
#[test]
fn without_a_key_points_are_listed_verified_and_checked() {
    let (store, volume, point) = store();
    let group = opened(&store, None);
    assert_eq!(group.points().len(), 2);
    let found = |keeper| {
        let reader = opened(&store, keeper).point_reader_as_it_is(point, volume.id()).expect("a reader");
        let all = |_: Looked| true;
        verify_point(&reader, 2, 10, &all).expect("read")
    };
    for keeper in [None, Some(key_file(&store, 1))] {
        let sound = found(keeper);
        assert_eq!((sound.data_bytes, sound.zero_bytes, sound.damaged_regions), (56 * GRANULE, 8 * GRANULE, 0));
    }
    // And nobody reads zeroes where nothing can be decrypted.
    let opaque = group.point_reader_as_it_is(point, volume.id()).expect("a reader");
    assert!(opaque.is_opaque());
    let mut content = opaque.content();
    for region in 0..8 {
        let region = farside_region::RegionIndex(region);
        assert!(matches!(opaque.read_region(region, &mut content), Err(StoreError::KeyNeeded { .. })));
        assert!(matches!(opaque.salvage_region(region, &mut content), Err(StoreError::KeyNeeded { .. })));
    }
    let checked = |keeper| {
        let reader = StoreReader::open(&store.path()).expect("open").with_keepers(keeper);
        let report = check(&reader, &|_| true).expect("looked at");
        report.findings.into_iter().filter(|finding| finding.severity > Severity::Note).map(|f| f.problem).collect::<Vec<_>>()
    };
    assert_eq!(checked(None), []);
    assert_eq!(checked(Some(key_file(&store, 1))), []);

    let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let mut bytes = fs::read(&file).expect("read");
    let footer = farside_layer::Footer::from_tail(&bytes, bytes.len() as u64).expect("a footer");
    let frame = footer.frame_of(farside_region::GranuleIndex(8)).expect("a frame");
    bytes[frame.offset as usize + 30] ^= 1;
    fs::write(&file, &bytes).expect("written");
    for keeper in [None, Some(key_file(&store, 1))] {
        assert!(found(keeper).damaged_regions > 0, "what rots is seen without the key, too");
    }
    assert_eq!(checked(None), [Problem::SegmentCorrupt]);

    fs::remove_file(store.path().join("groups/host/default/keys/0")).expect("there");
    assert!(checked(None).contains(&Problem::Key), "nobody can restore it any more");
    fs::write(store.path().join("groups/host/default/keys/0"), b"{}").expect("written");
    assert!(checked(None).contains(&Problem::Key));
}

/// A store of several hosts: each group by whichever opens it.
#[test]
fn of_several_keys_the_one_that_fits_opens_a_group() {
    let (store, volume, point) = store();
    let opened = |bytes: &[u8]| {
        let given: Vec<Keeper> = bytes.iter().map(|byte| key_file(&store, *byte)).collect();
        let reader = StoreReader::open(&store.path()).expect("open").with_keepers(given);
        let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
        group.point_reader(point, volume.id()).map(drop)
    };
    for given in [&[1][..], &[2, 1], &[1, 2], &[4, 3, 1]] {
        opened(given).expect("one of them fits");
    }
    let why = opened(&[2, 3]).expect_err("none does").to_string();
    assert!(why.contains("does not open the key"), "{why}");
}

/// As an earlier Farside wrote it.
fn undigested(text: &str) -> String {
    format!("{}\n}}\n", &text[..text.find(",\n  \"digest\"").expect("the last one")])
}

/// † One flipped digit of the one wrapping loses all that is encrypted, long before somebody needs it; and it is no wrong key.
#[test]
fn a_damaged_wrapping_is_found_by_a_check_and_named_by_an_opening() {
    let (store, volume, point) = store();
    let findings = |keeper| {
        let reader = StoreReader::open(&store.path()).expect("open").with_keepers(keeper);
        let report = check(&reader, &|_| true).expect("looked at");
        report.findings.into_iter().filter(|finding| finding.severity > Severity::Note).collect::<Vec<_>>()
    };
    let file = store.path().join("groups/host/default/keys/0");
    let whole = fs::read_to_string(&file).expect("a wrapping");
    let at = whole.find("\"wrapped\": \"").expect("there") + 12;
    let mut bytes = whole.clone().into_bytes();
    bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
    fs::write(&file, &bytes).expect("written");
    let found = findings(None);
    assert!(found.len() == 2 && found.iter().all(|f| f.problem == Problem::Key && f.severity == Severity::Error), "{found:?}");
    let why = opened(&store, Some(key_file(&store, 1))).point_reader(point, volume.id()).expect_err("damaged").to_string();
    assert!(why.contains("the wrapped key is damaged") && why.contains("keys/0; it is damaged"), "{why}");
    // Another one opens it: the damaged one is named all the same, for who keeps the secret of that alone.
    let names = GroupNames::new(name("host"), name("default"));
    let reader = StoreReader::open(&store.path()).expect("open");
    add_wrapping(&**reader.backend(), &names, &wrapped(&group_key(1), &key_file(&store, 3))).expect("kept");
    assert_eq!(findings(Some(key_file(&store, 3))).iter().map(|f| f.severity).collect::<Vec<_>>(), [Severity::Error]);
    opened(&store, Some(key_file(&store, 3))).point_reader(point, volume.id()).expect("the other one");
    let why = opened(&store, Some(key_file(&store, 1))).point_reader(point, volume.id()).expect_err("damaged").to_string();
    assert!(why.contains("the wrapped key is damaged"), "what the other says of this file hides it: {why}");
    // Nothing but its digest: it opens.
    fs::write(&file, whole.replace("\"digest\": \"", "\"digest\": \"0")).expect("written");
    opened(&store, Some(key_file(&store, 1))).point_reader(point, volume.id()).expect("it is all there");
    assert_eq!(findings(None).len(), 1);
    fs::write(&file, &whole).expect("put back");
    assert_eq!(findings(Some(key_file(&store, 1))), []);
    // Of an earlier Farside nobody can tell.
    fs::write(&file, undigested(&whole)).expect("written");
    assert_eq!(findings(Some(key_file(&store, 1))), []);
}

#[test]
fn a_key_that_opens_nothing_is_a_finding_of_its_own() {
    let (store, ..) = store();
    let reader = StoreReader::open(&store.path()).expect("open").with_keepers(Some(key_file(&store, 2)));
    let report = check(&reader, &|_| true).expect("looked at");
    let found: Vec<_> = report.findings.iter().map(|finding| finding.problem).collect();
    assert_eq!(found, [Problem::KeyUnopened]);
    assert!(report.findings[0].text.contains("is not known"), "{}", report.findings[0].text);
}

/// Who looks for a key asks for the first four, and for all where these do not open it; none is written over.
#[test]
fn wrapped_keys_are_asked_for_four_at_first() {
    let (counting, names) = (Counting::bucket(Arc::new(Memory::default())), GroupNames::new(name("host"), name("default")));
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("key");
    fs::write(&path, [5; 32]).expect("written");
    for number in 0..5 {
        let bytes = wrapped(&group_key(number as u8 + 1), &Keeper::File(path.clone()));
        assert_eq!(add_wrapping(&*counting, &names, &bytes).expect("kept").1, number);
        let (found, counts) = counting.during(|| wrappings(&*counting, &names).expect("read"));
        assert_eq!(found.len() as u64, number + 1);
        assert_eq!(counts.of(Request::Get) as u64, WRAPPINGS_MAX, "{number}");
        let meta = TestVolume::new("v", 64).sealed(&group_key(number as u8 + 1)).meta;
        let seal = *meta.digest_key.seal().expect("sealed");
        let (key, counts) =
            counting.during(|| unwrap(&*counting, &names, &seal, &[&Keeper::File(path.clone())], (0, None)).expect("read"));
        assert_eq!(key.expect("its key").id(), seal.key);
        assert_eq!(counts.of(Request::Get) as u64, if number < FIRST { FIRST } else { WRAPPINGS_MAX }, "{number}");
    }
    let bad = add_wrapping(&*counting, &names, b"no key").expect_err("none");
    assert!(matches!(bad, StoreError::BadKey { .. }), "{bad}");
}

/// Somebody took wrappings away: what lies behind the gap opens the key all the same, and is listed.
#[test]
fn a_wrapping_behind_a_gap_is_found() {
    let (store, volume, point) = store();
    let names = GroupNames::new(name("host"), name("default"));
    let reader = StoreReader::open(&store.path()).expect("open");
    for number in 1..6_u8 {
        let bytes = wrapped(&group_key(1), &passphrase(&number.to_string()));
        assert_eq!(add_wrapping(&**reader.backend(), &names, &bytes).expect("kept").1, u64::from(number));
    }
    for number in 0..5 {
        fs::remove_file(store.path().join(names.key(number).as_str())).expect("removed");
    }
    let listed = wrappings(&**reader.backend(), &names).expect("listed");
    assert_eq!(listed.iter().map(|stored| stored.number).collect::<Vec<_>>(), [5]);
    opened(&store, Some(passphrase("5"))).point_reader(point, volume.id()).expect("its key is there");
    let why = opened(&store, Some(passphrase("4"))).point_reader(point, volume.id()).expect_err("taken away").to_string();
    assert!(why.contains("keys/5"), "{why}");
}

/// Whoever keeps keys is asked once by all who want the same at once, and not again at once when it fails.
#[test]
fn a_program_that_fails_is_not_started_by_each_who_waits_for_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = TempStore::new();
    let (program, count) = (store.dir.path().join("keeper"), store.dir.path().join("count"));
    let script =
        format!("#!/bin/sh\nif [ $1 = wrap ]; then cat; else echo asked >> {}; echo away >&2; exit 1; fi\n", count.display());
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let keeper = Keeper::Command(vec![program.display().to_string()]);
    // As it once was: it unwraps what it has just wrapped, or nothing is kept.
    let wrapping =
        format!(r#"{{"format":"farside key","version":1,"key":"{}","by":"command","wrapped":"00"}}"#, group_key(1).id());
    let mut group = store.group();
    group.keep_key(wrapping.as_bytes()).expect("kept");
    let mut volume = TestVolume::new("v", 64).sealed(&group_key(1));
    volume.claim(&mut group);
    let point = volume.base(&mut group, 0x41);
    let unlocking = Unlocking::new(vec![keeper]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let reader = group.reader_of_kept(point, volume.id()).expect("a reader");
            let unlocking = &unlocking;
            scope.spawn(move || {
                let refused = reader.unlocked(unlocking).expect_err("it fails").to_string();
                assert!(refused.contains("away") && refused.contains("command (keys/0)"), "{refused}");
            });
        }
    });
    assert_eq!(fs::read_to_string(count).expect("it was asked").lines().count(), 1);
}

/// Wrappings that take long keep no other from being tried, the next time.
#[test]
fn who_has_no_patience_goes_on_where_he_was() {
    let store = TempStore::new();
    let mut group = store.group();
    let (file, names) = (key_file(&store, 1), GroupNames::new(name("host"), name("default")));
    for byte in [2, 3, 1] {
        group.keep_key(&wrapped(&group_key(1), &key_file(&store, byte))).expect("kept");
    }
    let reader = StoreReader::open(&store.path()).expect("open");
    let volume = TestVolume::new("v", 64).sealed(&group_key(1));
    let seal = *volume.meta.digest_key.seal().expect("sealed");
    let tried = |from, patience| unwrap(&**reader.backend(), &names, &seal, &[&file], (from, patience)).expect("read");
    assert_eq!(tried(0, None).expect("its key").id(), seal.key);
    let left = tried(0, Some(Duration::ZERO)).expect_err("none was tried");
    assert!(left.next == 0 && left.why.contains("the next time"), "{left:?}");
    assert_eq!(tried(2, None).expect("the one that it begins with").id(), seal.key);
    assert_eq!(tried(3, None).expect("those before it are tried as well").id(), seal.key);
}

fn at_rest(keepers: &[Keeper]) -> Unlocking {
    Unlocking::for_service(Keepers { given: Vec::new(), at_rest: keepers.to_vec() })
}

fn told(group: &GroupStore, unlocking: &Unlocking) -> crate::Result<Option<AtRestKey>> {
    unlocking.at_rest_key(&*group.backend(), group.names(), &group.claimed_keys())
}

fn stored(group: &GroupStore) -> Vec<KeyId> {
    let all = wrappings(&*group.backend(), group.names()).expect("read");
    all.into_iter().map(|stored| stored.wrapping.expect("whole").key()).collect()
}

/// Two keys in one group would be two things to lose; and whoever was named to keep it and does not is missed on the worst day.
#[test]
fn a_key_at_rest_is_drawn_once_and_kept_by_everybody_who_is_to() {
    let store = TempStore::new();
    let mut group = store.group();
    let (first, second, third) = (key_file(&store, 1), key_file(&store, 2), key_file(&store, 3));
    assert!(told(&group, &at_rest(&[])).expect("nothing to do").is_none() && stored(&group).is_empty());
    // One who is to keep it cannot: nothing is in the store.
    let away = Keeper::File(store.dir.path().join("away"));
    told(&group, &at_rest(&[first.clone(), away.clone()])).expect_err("the second keeps nothing");
    assert!(stored(&group).is_empty(), "half of what was configured");

    let unlocking = at_rest(&[first.clone(), second.clone()]);
    let drawn = told(&group, &unlocking).expect("drawn").expect("a key");
    let id = drawn.key.id();
    assert!(drawn.is_new && drawn.unkept.is_empty() && stored(&group) == [id, id]);
    // The same process, another one, and one that died between the two.
    let again = told(&group, &unlocking).expect("known").expect("a key");
    assert!(again.key.id() == id && !again.is_new && stored(&group).len() == 2);
    fs::remove_file(store.path().join(group.names().key(1).as_str())).expect("removed");
    let after = told(&group, &at_rest(&[first.clone(), second.clone()])).expect("found").expect("a key");
    assert!(after.key.id() == id && !after.is_new && stored(&group) == [id, id]);

    // Another keeper: the same key, before a volume has it and after.
    let mut volume = TestVolume::new("v", 64).sealed_as(SealMode::AtRest, &drawn.key);
    volume.claim(&mut group);
    let rotated = told(&group, &at_rest(&[third.clone(), second.clone(), away])).expect("the second opens it").expect("a key");
    assert!(rotated.key.id() == id && rotated.unkept.len() == 1 && stored(&group) == [id, id, id], "{:?}", rotated.unkept);
    // Nobody who has it: another one is not drawn in its place.
    let refused = told(&group, &at_rest(&[key_file(&store, 9)])).expect_err("it is wrapped by others").to_string();
    assert!(refused.contains("at-rest") && refused.contains(&id.to_string()), "{refused}");
    assert_eq!(stored(&group).len(), 3);
    // Not configured any more: who was given it goes on.
    let given = Unlocking::for_service(Keepers { given: vec![third], at_rest: Vec::new() });
    assert_eq!(told(&group, &given).expect("unwrapped").expect("a key").key.id(), id);
}

/// A gateway that encrypts at rest has not been given what hosts encrypt themselves, whatever opens it.
#[test]
fn what_keeps_keys_at_rest_opens_nothing_that_is_encrypted_end_to_end() {
    let store = TempStore::new();
    let mut group = store.group();
    let file = key_file(&store, 1);
    group.keep_key(&wrapped(&group_key(1), &file)).expect("kept");
    let mut volume = TestVolume::new("v", 64).sealed(&group_key(1));
    volume.claim(&mut group);
    let point = volume.base(&mut group, 0x41);
    let reader = || group.reader_of_kept(point, volume.id()).expect("a reader");
    let refused = reader().unlocked(&at_rest(std::slice::from_ref(&file))).expect_err("it is the host's").to_string();
    assert!(refused.contains("no key was given"), "{refused}");
    let given = Unlocking::for_service(Keepers { given: vec![file.clone()], at_rest: Vec::new() });
    assert!(!reader().unlocked(&given).expect("it was given").is_opaque());
    // Nor is that key given to anybody.
    let drawn = told(&group, &at_rest(&[file])).expect("drawn").expect("a key");
    assert!(drawn.is_new && drawn.key.id() != group_key(1).id());
}

/// † One keeper keeps the keys of all groups. A host that can read the store hands its gateway another host's wrapped key as its own; and who can
/// write the store gives a new host a key that he knows.
#[test]
fn a_wrapping_of_another_group_gives_no_key_at_rest() {
    let store = TempStore::new();
    let opened = store.open();
    let (file, names) = (key_file(&store, 1), GroupNames::new(name("evil"), name("default")));
    let group = opened.group(&name("host"), &name("default")).expect("a group");
    let its = told(&group, &at_rest(std::slice::from_ref(&file))).expect("drawn").expect("a key").key.id();
    let taken = wrappings(&*group.backend(), group.names()).expect("read").remove(0).bytes;
    let mut evil = opened.group(&names.source, &names.group).expect("a group");
    // As a host brings it, and as it comes into the store by who can write it.
    let refused = evil.keep_key(&taken).expect_err("no host has it").to_string();
    assert!(refused.contains("host/default") && refused.contains("at rest"), "{refused}");
    add_wrapping(&*evil.backend(), &names, &taken).expect("put");
    // With another name, with a digest of what it was and without, and as one that says nothing of a group.
    let text = String::from_utf8(taken.to_vec()).expect("JSON").replace("host/default", "evil/default");
    let refused = add_wrapping(&*evil.backend(), &names, text.as_bytes()).expect_err("it is not what was written").to_string();
    assert!(refused.contains("it is damaged"), "{refused}");
    add_wrapping(&*evil.backend(), &names, undigested(&text).as_bytes()).expect("put");
    evil.keep_key(&wrapped(&group_key(1), &file)).expect("kept");
    let given = told(&evil, &at_rest(&[file])).expect("drawn").expect("a key");
    assert!(given.is_new && given.key.id() != its && given.key.id() != group_key(1).id());
}

/// † Whoever wrote a wrapping says what its passphrase costs: a gateway pays no more than for its own where nobody named that key.
#[test]
fn a_wrapping_that_costs_more_than_ours_is_not_tried_for_a_key_at_rest() {
    let store = TempStore::new();
    let group = store.group();
    let keeper = passphrase("correct horse");
    let dear = Argon2Cost { memory_kib: 8, passes: ARGON2_DEFAULT.passes + 1, lanes: 1 };
    let bytes = Wrapping::at_rest("host/default", &group_key(1), &keeper, dear).expect("wrapped").encode();
    add_wrapping(&*group.backend(), group.names(), &bytes).expect("put");
    let unlocking = at_rest(std::slice::from_ref(&keeper));
    let drawn = told(&group, &unlocking).expect("drawn").expect("a key");
    assert!(drawn.is_new && drawn.key.id() != group_key(1).id(), "it was opened");
    // A dear one of the very key is not opened either: it is wrapped anew.
    let id = drawn.key.id();
    let path = |number| store.path().join(group.names().key(number).as_str());
    let again = Wrapping::at_rest("host/default", &drawn.key, &keeper, dear).expect("wrapped").encode();
    let file = key_file(&store, 1);
    let by_file = Wrapping::at_rest("host/default", &drawn.key, &file, CHEAP).expect("wrapped").encode();
    fs::write(path(0), again).expect("written");
    fs::write(path(1), by_file).expect("written");
    let kept = told(&group, &at_rest(&[file, keeper])).expect("the file opens it").expect("a key");
    assert!(kept.key.id() == id && kept.unkept.is_empty() && stored(&group) == [id, id, id]);
}

/// A configuration is read again, and a group goes on, while somebody who keeps a key does not answer.
#[test]
fn who_asks_anew_does_not_wait_for_who_is_being_asked() {
    let unlocking = at_rest(&[]);
    let mut known = unlocking.known.lock().expect("nobody asks");
    unlocking.forget_failures();
    unlocking.ask_keepers_again();
    // What comes of it is of before.
    let key = group_key(1).id();
    known.kept = Some(key);
    known.failed = Some(super::Failed { key, at: Instant::now(), stored: Vec::new(), why: String::new(), next: 0 });
    drop(known);
    let known = unlocking.lock();
    assert!(known.kept.is_none() && known.failed.is_none());
}

#[test]
fn programs_are_asked_last() {
    let keepers = ["command:/opt/kms --slow", "file:/a", "command:/opt/other", "file:/b"];
    let keepers: Vec<Keeper> = keepers.iter().map(|keeper| keeper.parse().expect("a keeper")).collect();
    let order: Vec<&Keeper> = super::nearest_first(&keepers).collect();
    assert_eq!(order, [&keepers[1], &keepers[3], &keepers[0], &keepers[2]]);
}
