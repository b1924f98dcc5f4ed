//! Followers of whose targets nobody can be sure.

use farside_region::RecordDigest;
use farside_store::FollowKeeper as _;

use super::*;

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(super) fn definition(target: &str) -> Definition {
    Definition {
        version: FOLLOWER_VERSION,
        source: name("web1"),
        group: name("db"),
        volume: name("data"),
        target: target.into(),
        follows: Follows::Newest,
        overwrite: true,
        paused: false,
        promoted: None,
        lock: None,
        removed: false,
    }
}

fn following(in_doubt: bool) -> Following {
    let text = format!(r#"{{"stage":"unknown","volume_bytes":0,"in_doubt":{in_doubt}}}"#);
    serde_json::from_str(&text).expect("what is kept")
}

/// Three of one volume: `a` and `c` were killed in the middle of an apply.
fn three(state_dir: &StateDir) -> Followers {
    for (follower, in_doubt) in [("a", true), ("b", false), ("c", true)] {
        kept::begin(state_dir, &name(follower), &definition(&format!("/srv/{follower}"))).expect("written");
        let holds = Holds { version: FOLLOWER_VERSION, following: following(in_doubt), ..Holds::default() };
        state_dir.remember_follower_holds(&name(follower), &holds).expect("written");
    }
    let followers = Followers::default();
    followers.load(state_dir);
    followers
}

fn doubts(shown: &FollowerStatus) -> Vec<&Reason> {
    shown.reasons.iter().filter(|reason| reason.code == Code::FollowerInDoubt.word()).collect()
}

#[test]
fn a_doubt_is_said_from_the_start_until_all_was_compared() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state_dir = StateDir::open(directory.path()).expect("free");
    let followers = three(&state_dir);
    let of = |follower| followers.show_one(follower).expect("it is there");
    let shown = of("a");
    let said = doubts(&shown);
    assert!(matches!(&said[..], [one] if one.severity == Severity::Warning && one.message.contains("/srv/a")), "{said:?}");
    assert!(doubts(&of("b")).is_empty());
    let entry = followers.entry("a").expect("it is there");
    lock(&entry.definition).promoted = Some(Promoted { point: Slot(7), generation: 2, released: true });
    let shown = of("a");
    assert!(doubts(&shown)[0].what_to_do.contains("before you rely on it"), "{shown:?}");
    lock(&entry.definition).promoted = None;
    let keep = |in_doubt| {
        let keeper = Keeper { state_dir: &state_dir, entry: &entry, holds: Holds::default() };
        keeper.keep(&following(in_doubt)).expect("written");
        doubts(&of("a")).len()
    };
    assert_eq!((keep(false), keep(true)), (0, 1));
}

#[test]
fn one_that_is_in_doubt_is_promoted_where_there_is_no_better_one() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state_dir = StateDir::open(directory.path()).expect("free");
    let followers = three(&state_dir);
    let names = GroupNames { source: name("web1"), group: name("db") };
    let best = || followers.of_volume(&names, "data", 2).expect("there are three").name;
    assert_eq!(best(), "b");
    lock(&followers.entry("b").expect("it is there").view).state = FollowerState::Failed;
    assert_eq!(best(), "a", "what cannot go on is worse than a doubt");
    lock(&followers.entry("a").expect("it is there").view).state = FollowerState::Diverged;
    assert_eq!(best(), "c");
}

/// The failover waited for hours, beside one that held the point.
#[test]
fn one_that_is_filled_for_the_first_time_is_promoted_where_there_is_no_better_one() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state_dir = StateDir::open(directory.path()).expect("free");
    let followers = three(&state_dir);
    let names = GroupNames { source: name("web1"), group: name("db") };
    let best = || followers.of_volume(&names, "data", 2).expect("there are three").name;
    let keep = |follower: &str, stage: FollowStage| {
        let entry = followers.entry(follower).expect("it is there");
        let mut following = following(follower != "b");
        following.stage = stage;
        Keeper { state_dir: &state_dir, entry: &entry, holds: Holds::default() }.keep(&following).expect("written");
    };
    let point = LedgerPosition { slot: Slot(7), digest: RecordDigest([7; 32]) };
    keep("b", FollowStage::Applying { between: None, to: point });
    assert_eq!(best(), "b", "none holds anything, and it is in no doubt");
    keep("c", FollowStage::At(point));
    assert_eq!(best(), "c", "it may hold the point");
    keep("a", FollowStage::Applying { between: Some((point, point)), to: point });
    assert_eq!(best(), "a", "as good, and first by name");
}

/// † After a kill in the middle, what its owner had written to its target was overwritten: nothing said any more that it had diverged.
#[test]
fn of_one_that_is_being_removed_nothing_is_left_but_what_its_target_holds() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state_dir = StateDir::open(directory.path()).expect("free");
    drop(three(&state_dir));
    // In the place of what its target holds: what cannot be removed.
    let holds = directory.path().join("followers/a~holds.json");
    std::fs::remove_file(&holds).expect("it was there");
    std::fs::create_dir(&holds).expect("made");
    state_dir.forget_follower(&name("a")).expect_err("a folder is no file");
    let left: Vec<_> = state_dir.followers().expect("listed").into_iter().map(|(follower, _)| follower).collect();
    assert_eq!(left, [name("b"), name("c")]);
}
