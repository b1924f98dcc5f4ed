//! What a note says, and how a group is waited for.

use super::*;

fn names(group: &str) -> GroupNames {
    GroupNames::new("web1".parse().expect("a name"), group.parse().expect("a name"))
}

#[test]
fn said_again_with_another_point_a_failover_keeps_what_was_said_before() {
    let note = r#"{"version":1,"source":"web1","group":"db","generation":2,"wanted":5,"forced":false,"stage":"fencing","stand_in":"web2"}"#;
    let mut failover: Failover = serde_json::from_str(note).expect("a note");
    let chosen = Chosen { wanted: None, takes_degraded: Some(false), shown: None };
    failover.choose(chosen.clone(), None, &FailoverRequest { force: true, ..FailoverRequest::default() });
    assert_eq!((failover.wanted, failover.stand_in.as_ref().map(Name::as_str)), (None, Some("web2")));
    failover.choose(chosen, Some("web3".parse().expect("a name")), &FailoverRequest::default());
    assert_eq!((failover.forced, failover.stand_in.as_ref().map(Name::as_str)), (true, Some("web3")));
}

/// An unforced failover waits, and brings up what is staged above the point that was shown, too.
#[test]
fn a_failover_that_waits_is_held_to_the_point_that_a_person_forces() {
    let note = r#"{"version":1,"source":"web1","group":"db","generation":2,"wanted":null,"forced":false,"stage":"fencing","shown":{"point":42,"members":["db"]}}"#;
    let mut failover: Failover = serde_json::from_str(note).expect("a note");
    let says = |point, force, goes_on| FailoverRequest { point, force, goes_on, ..FailoverRequest::default() };
    let forced = says(Some(42), true, None);
    assert!(failover.is_held_to(&forced));
    // Whoever watches, forces nothing, or names none or another one, does not.
    for other in [says(Some(42), true, Some(2)), says(Some(42), false, None), says(None, true, None), says(Some(41), true, None)]
    {
        assert!(!failover.is_held_to(&other), "{other:?}");
    }
    failover.choose(Chosen { wanted: Some(Slot(42)), takes_degraded: Some(false), shown: None }, None, &forced);
    assert!(matches!(failover.brings_up(false), Wanted::Point(Slot(42))) && !failover.is_held_to(&forced));
}

/// † It may have fenced under the first one, whatever it is raised to: who takes it for one that fenced nobody gives it up, and lets those before it stand.
#[test]
fn a_failover_that_fences_under_a_higher_generation_may_have_fenced_under_the_first() {
    let before = r#"{"version":1,"source":"web1","group":"db","generation":2,"wanted":null,"forced":false,"stage":{"promoted":{"point":7}}}"#;
    let note = format!(
        r#"{{"version":1,"source":"web1","group":"db","generation":3,"wanted":null,"forced":false,"stage":"fencing","before":{before}}}"#
    );
    let mut failover: Failover = serde_json::from_str(&note).expect("a note");
    for raised in [4, 5] {
        failover.raise(Generation(raised));
        let kept = serde_json::to_string(&failover).expect("plain data");
        assert_eq!(serde_json::from_str::<Failover>(&kept).expect("a note"), failover);
        assert_eq!((failover.generation, failover.claims_from()), (raised, 3));
        assert!(failover.may_have_claimed(Generation(3)) && !failover.may_have_claimed(Generation(2)));
        assert_eq!([2, 3].map(|highest| failover.standing(Some(Generation(highest))).generation), [2, raised]);
    }
}

/// A group whose store hangs in the middle of a fence.
#[test]
fn a_failover_that_hangs_holds_up_no_other_and_no_command() {
    let turns = Turns::default();
    let slow = turns.of(&names("slow"));
    let _hangs = turn(&slow, &names("slow"), Duration::ZERO).expect("free");
    let other = turns.of(&names("other"));
    drop(turn(&other, &names("other"), Duration::ZERO).expect("it has nothing to do with it"));
    let again = turns.of(&names("slow"));
    let late = turn(&again, &names("slow"), Duration::from_millis(20)).expect_err("it is at work");
    assert!(late.code == ErrorCode::Unavailable && late.message.contains("web1/slow"), "{late:?}");
}

#[test]
fn a_group_that_does_not_answer_is_named() {
    let (group, _unread) = GroupHandle::unanswered(&names("db"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let late = runtime.block_on(look_within(Duration::from_millis(20), &group, Wanted::Newest)).expect_err("nobody reads it");
    assert!(late.code == ErrorCode::Unavailable && late.message.contains("web1/db does not answer"), "{late:?}");
}
