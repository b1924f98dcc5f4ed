//! L6: a copy was promoted in this one's place.

use farside_region::mutation::tell;
use farside_region::{Generation, LedgerPosition, RecordDigest, RegionSet, Slot, Term};
use farside_wire::{ClaimOutcome, ClaimVerdict, CurrentVolume, NewestPoint, ReceiverMessage, RequestId, SourceMessage};

use super::directed::{Gateway, Host, at, current, layer, refused, regions};
use super::world::volume;
use crate::failback::taken_back_at;
use crate::source::{Action, Ended, Event, RefusedWhy, Start};

fn promoted(generation: u64) -> Option<CurrentVolume> {
    let mut theirs = current(1, 9, true).expect("some");
    theirs.meta.generation = Generation(generation);
    Some(theirs)
}

fn fenced() -> Host {
    let mut host = Host::new();
    host.add(1, None, None, RegionSet::new(), Start::Unclean);
    host.connect();
    // What the other one published since is no fork of ours.
    host.answer_ledger(1, vec![layer(10, 9, regions(0, 1))], promoted(2), Some(10));
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));
    assert!(host.said.iter().all(|m| !matches!(m, SourceMessage::Claim(_))), "nothing is claimed");
    host
}

fn claim(host: &mut Host) -> Option<(RequestId, Generation)> {
    let said = host.said.iter().find_map(|m| match m {
        SourceMessage::Claim(q) => Some((q.id, q.claim.volume.generation)),
        _ => None,
    });
    host.said.retain(|m| !matches!(m, SourceMessage::Claim(_)));
    said
}

fn kept_generation(host: &mut Host) -> Option<Generation> {
    host.did(|a| match a {
        Action::AdoptMeta { meta } => Some(meta.generation),
        _ => None,
    })
}

/// It stays so on every connection; and only a person ends it, with every bit set, and above the other one, who is fenced then.
#[test]
fn l6_who_was_fenced_comes_back_on_a_persons_word_and_fences_the_other() {
    tell(&[("L6 who takes a history back fences nobody", "the other one goes on")], || {
        let mut host = fenced();
        for _ in 0..3 {
            host.tick(&[]);
            host.reconnect();
            assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None));
        }
        host.event(Event::Accept { volume: volume(1) });
        assert!(claim(&mut host).is_none() && host.did(|a| matches!(a, Action::HeatAll { .. }).then_some(())).is_some(), "T3");
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
        let (id, generation) = claim(&mut host).expect("claimed");
        assert_eq!(generation, Generation(3), "the other one goes on");
        let outcome = ClaimOutcome::Accepted { position: at(11) };
        host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(1), outcome }));
        host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(11)), position: Some(at(11)) });
        let kept = kept_generation(&mut host);
        assert_eq!(kept, Some(Generation(3)), "also after a restart");
    });
}

/// A host that dies as it takes its history back is Fenced once more, or has it: never Forked by what its stand-in published.
#[test]
fn l6_a_generation_is_kept_with_its_term() {
    tell(&[("L6 a generation is kept before its term", "a crash now would make a fork")], || {
        for is_heard in [true, false] {
            let mut host = fenced();
            host.event(Event::Accept { volume: volume(1) });
            host.event(Event::AllHot { volume: volume(1) });
            host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
            let (mut id, generation) = claim(&mut host).expect("claimed");
            if !is_heard {
                host.reconnect();
                let own = promoted(3).map(|own| CurrentVolume { claimant: Some(farside_wire::InstanceId([1; 16])), ..own });
                host.answer_ledger(1, Vec::new(), own, Some(11));
                id = claim(&mut host).expect("claimed again").0;
            }
            let outcome = ClaimOutcome::Accepted { position: at(12) };
            host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(1), outcome }));
            assert_eq!(kept_generation(&mut host), None, "a crash now would make a fork");
            host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(8)), position: Some(at(9)) });
            assert_eq!(kept_generation(&mut host), None, "of another term");
            host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(12)), position: Some(at(12)) });
            assert_eq!(kept_generation(&mut host), Some(generation));
        }
    });
}

/// A machine that took the group back, under term 9, and whose meta.json was lost since: what raised the generation is its own claim.
#[test]
fn l6_who_forgot_its_own_generation_is_not_fenced_by_itself() {
    let attached = |term: u64, position: u64, ancestor: bool| {
        let mut host = Host::new();
        host.add(1, Some(term), Some(position), RegionSet::new(), Start::Clean);
        host.connect();
        match ancestor {
            true => host.answer_ledger(1, Vec::new(), promoted(3), Some(10)),
            false => host.answer_rewound(1, promoted(3), 10),
        }
        (refused(&host, 1), kept_generation(&mut host))
    };
    assert_eq!(attached(9, 10, true), (None, Some(Generation(3))));
    // Of another claim it is somebody else's, and what this ledger never went through says nothing.
    let fenced = (Some(RefusedWhy::Fenced), None);
    assert_eq!(attached(8, 10, true), fenced);
    assert_eq!(attached(9, 10, false), fenced);
    assert_eq!(attached(9, 8, true), fenced);
}

/// A yes to one promotion is no yes to the next.
#[test]
fn l6_a_later_promotion_is_asked_about_again() {
    tell(&[("L6 a yes to one promotion holds for the next", "nobody said yes to that")], || {
        let mut host = fenced();
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(4), Some(12));
        assert!(claim(&mut host).is_none(), "nobody said yes to that");
        assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));
        // Nor if it comes between the look and the claim.
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(4), Some(12));
        let (id, generation) = claim(&mut host).expect("claimed");
        assert_eq!(generation, Generation(5));
        let reason = farside_ledger::VoidReason::Fenced { current: Generation(6) };
        let verdict = ClaimVerdict { id, volume: volume(1), outcome: ClaimOutcome::Void { reason } };
        host.hear(ReceiverMessage::ClaimVerdict(verdict));
        assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));
    });
}

/// A disk that was brought to a point of the copy takes the history back from that point, and not over what came after it.
#[test]
fn l6_what_was_published_since_is_not_taken_back() {
    tell(&[("L6 what was published since is taken back, too", "it would be overwritten")], || {
        let mut host = fenced();
        let with_newest = |slot: u64| {
            let epoch = farside_ledger::EpochInfo {
                boot: farside_region::BootId([1; 16]),
                mono_before_ns: 1,
                mono_after_ns: 2,
                wall_ms: 3,
            };
            let newest_point = Some(NewestPoint { position: at(slot), epoch });
            promoted(2).map(|theirs| CurrentVolume { newest_point, ..theirs })
        };
        for _ in 0..2 {
            host.event(Event::TakeBack { volume: volume(1), at: at(10) });
            host.event(Event::AllHot { volume: volume(1) });
            host.answer_ledger(1, Vec::new(), with_newest(11), Some(11));
            assert!(claim(&mut host).is_none(), "it would be overwritten");
            assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));
        }
        host.event(Event::TakeBack { volume: volume(1), at: at(11) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), with_newest(11), Some(11));
        // Nor if it comes between the look and the claim.
        let (id, generation) = claim(&mut host).expect("claimed");
        assert_eq!(generation, Generation(3));
        let reason = farside_ledger::VoidReason::ClaimOvertaken { last_layer: Slot(12) };
        let verdict = ClaimVerdict { id, volume: volume(1), outcome: ClaimOutcome::Void { reason } };
        host.hear(ReceiverMessage::ClaimVerdict(verdict));
        host.tick(&[]);
        host.answer_ledger(1, Vec::new(), with_newest(12), Some(12));
        assert!(claim(&mut host).is_none(), "it would be overwritten");
        assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));

        // It had claimed already, and a crash took its header: it is asked as a fork then, and the same holds.
        let mut host = Host::new();
        host.add(1, None, None, RegionSet::new(), Start::Unclean);
        host.connect();
        let ours = |slot| {
            with_newest(slot).map(|mut theirs| {
                theirs.meta.generation = Generation(1);
                theirs
            })
        };
        host.answer_ledger(1, vec![layer(10, 9, regions(0, 1))], ours(10), Some(10));
        for (newest, claims) in [(11, false), (10, true)] {
            assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
            host.event(Event::TakeBack { volume: volume(1), at: at(10) });
            host.event(Event::AllHot { volume: volume(1) });
            host.answer_ledger(1, Vec::new(), ours(newest), Some(newest));
            assert_eq!(claim(&mut host).is_some(), claims, "it would be overwritten");
        }
    });
}

/// Said twice, the second time while the ledger is asked already, it holds as it was said.
#[test]
fn l6_what_is_said_twice_of_a_history_holds_as_it_was_said() {
    tell(&[("L6 a yes that comes late drops what the one before was about", "it would be overwritten")], || {
        let mut host = fenced();
        host.event(Event::TakeBack { volume: volume(1), at: at(10) });
        host.event(Event::AllHot { volume: volume(1) });
        host.event(Event::TakeBack { volume: volume(1), at: at(10) });
        let epoch =
            farside_ledger::EpochInfo { boot: farside_region::BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 3 };
        let newest_point = Some(NewestPoint { position: at(11), epoch });
        let newer = promoted(2).map(|theirs| CurrentVolume { newest_point, ..theirs });
        host.answer_ledger(1, Vec::new(), newer, Some(11));
        assert!(claim(&mut host).is_none(), "it would be overwritten");
        assert_eq!(refused(&host, 1), Some(RefusedWhy::Fenced));
    });
}

/// A claim that was taken, and whose verdict a broken line took, is this host's own, and no promotion that a person has to be asked about.
#[test]
fn l6_a_claim_whose_verdict_was_lost_is_ones_own() {
    tell(&[("L6 a claim whose verdict was lost is another's promotion", "nobody else was promoted")], || {
        let mut host = fenced();
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
        let claimed = claim(&mut host).expect("claimed").1;
        host.reconnect();
        let by = |instance| promoted(3).map(|theirs| CurrentVolume { claimant: Some(instance), ..theirs });
        host.answer_ledger(1, Vec::new(), by(farside_wire::InstanceId([1; 16])), Some(11));
        assert_eq!(refused(&host, 1), None, "nobody else was promoted");
        assert_eq!(claim(&mut host).map(|(_, generation)| generation), Some(claimed));

        // Another's of the same number is another's.
        let mut host = fenced();
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
        claim(&mut host).expect("claimed");
        host.reconnect();
        host.answer_ledger(1, Vec::new(), by(farside_wire::InstanceId([0xEE; 16])), Some(11));
        assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None));
    });
}

/// The line breaks while the record of a claim is being put: whoever asks next is told whose it is.
#[test]
fn l6_who_claimed_is_known_when_its_line_is_gone() {
    tell(&[("L6 who claimed is forgotten with its line", "its own claim would fence it")], || {
        let mut gateway = Gateway::new();
        let claim = farside_ledger::Claim { volume: super::world::meta(1), looked: None, source: super::world::name("host") };
        gateway.hear(1, SourceMessage::Claim(farside_wire::ClaimRequest { id: RequestId(1), claim }));
        gateway.event(crate::target::Event::Closed { session: crate::target::SessionId(1) });
        assert_eq!(gateway.append().map(|appended| appended.1), Some(farside_ledger::Verdict::Accepted));
        gateway.hello(2, 1, 2);
        let question = farside_wire::ReadLedger { id: RequestId(2), volume: volume(1), position: None, after: None };
        gateway.hear(2, SourceMessage::ReadLedger(question));
        let current = gateway.said().into_iter().find_map(|m| match m {
            ReceiverMessage::LedgerSlice(slice) => slice.current,
            _ => None,
        });
        let claimant = current.expect("it is claimed").claimant;
        assert_eq!(claimant, Some(farside_wire::InstanceId([1; 16])), "its own claim would fence it");
    });
}

/// A yes to a fork is no yes to a promotion.
#[test]
fn l6_a_yes_to_something_else_does_not_end_it() {
    let mut host = Host::new();
    host.add(1, None, None, RegionSet::new(), Start::Unclean);
    host.connect();
    host.answer_ledger(1, vec![layer(3, 2, regions(0, 1))], current(1, 2, true), Some(3));
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
    assert!(host.source.is_refused(), "a copy would take the place of the host in its cohort");
    host.event(Event::Accept { volume: volume(1) });
    host.event(Event::AllHot { volume: volume(1) });
    assert!(!host.source.is_refused());
    host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
    assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None));
}

/// A host that stands in for the source publishes under the promotion itself, on a person's word; whoever takes the history back fences it.
#[test]
fn l6_a_stand_in_publishes_under_the_promotion_and_is_fenced_by_the_next() {
    tell(&[("L6 a stand-in fences the promotion", "under the promotion itself")], || {
        let mut host = Host::of(super::world::source_limits(), true);
        host.add(1, None, None, RegionSet::new(), Start::Unclean);
        host.connect();
        host.answer_ledger(1, vec![layer(10, 9, regions(0, 1))], promoted(2), Some(10));
        // It may be any disk.
        assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Forked), None));
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
        let (id, generation) = claim(&mut host).expect("claimed");
        assert_eq!(generation, Generation(2), "under the promotion itself");
        let outcome = ClaimOutcome::Accepted { position: at(11) };
        host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(1), outcome }));
        host.reconnect();
        host.answer_ledger(1, Vec::new(), promoted(3), Some(12));
        assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None));
    });
}

/// One that stood in before, and is let in again after the next promotion, takes that one up on a person's word; it takes no history back.
#[test]
fn l6_a_stand_in_that_published_before_fences_no_later_promotion() {
    tell(&[("L6 a stand-in fences the promotion", "under the later promotion itself")], || {
        let mut host = Host::of(super::world::source_limits(), true);
        host.add(1, Some(9), Some(10), RegionSet::new(), Start::Unclean);
        host.connect();
        let later = || promoted(3).map(|current| CurrentVolume { term: Term(11), ..current });
        host.answer_ledger(1, Vec::new(), later(), Some(12));
        assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None), "a person is asked");
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), later(), Some(12));
        assert_eq!(claim(&mut host).expect("claimed").1, Generation(3), "under the later promotion itself");
    });
}

/// A person gives up what he said while the line is down: nothing is claimed by it when that is back. What was claimed already is said to be.
#[test]
fn l6_what_was_given_up_is_not_taken_back() {
    tell(&[("L6 what was given up is taken back all the same", "it was given up")], || {
        // Before every bit is set, and after.
        for all_hot in [false, true] {
            let mut host = fenced();
            host.event(Event::TakeBack { volume: volume(1), at: at(10) });
            if all_hot {
                host.event(Event::AllHot { volume: volume(1) });
            }
            host.event(Event::Disconnected { connection: host.connection(), how: Ended::Broken });
            assert!(!host.source.may_have_taken_back(volume(1), Generation(2)));
            host.event(Event::Withdraw { volume: volume(1) });
            host.event(Event::AllHot { volume: volume(1) });
            host.reconnect();
            assert_eq!((refused(&host, 1), claim(&mut host)), (Some(RefusedWhy::Fenced), None), "it was given up");
            // It may be said anew.
            host.event(Event::Accept { volume: volume(1) });
            host.event(Event::AllHot { volume: volume(1) });
            host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
            assert_eq!(claim(&mut host).expect("claimed").1, Generation(3));
        }
        let mut host = fenced();
        host.event(Event::Accept { volume: volume(1) });
        host.event(Event::AllHot { volume: volume(1) });
        host.answer_ledger(1, Vec::new(), promoted(2), Some(10));
        let (id, generation) = claim(&mut host).expect("claimed");
        for _ in 0..2 {
            assert!(host.source.may_have_taken_back(volume(1), Generation(2)), "there is no verdict yet");
            host.event(Event::Withdraw { volume: volume(1) });
            assert_eq!(refused(&host, 1), None);
        }
        let outcome = ClaimOutcome::Accepted { position: at(11) };
        host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(1), outcome }));
        assert!(host.source.may_have_taken_back(volume(1), Generation(2)), "it is claimed");
        host.event(Event::Withdraw { volume: volume(1) });
        assert_eq!((refused(&host, 1), generation), (None, Generation(3)));
    });
}

/// What could not be read of the newest points, and was passed over on a person's word, is in nobody's way; anything after that is.
#[test]
fn a_history_is_taken_back_over_what_was_passed_over_and_nothing_else() {
    let position = |slot| LedgerPosition { slot: Slot(slot), digest: RecordDigest([1; 32]) };
    let back = |newest: u64, passes: Option<u64>| {
        taken_back_at(Some(position(newest)), position(10), passes.map(Slot)).map(|newest| newest.slot.0)
    };
    assert_eq!((back(10, None), back(10, Some(12))), (Some(10), Some(10)));
    assert_eq!((back(12, None), back(11, Some(12)), back(12, Some(12))), (None, Some(11), Some(12)));
    assert_eq!((back(13, Some(12)), back(9, Some(12))), (None, None), "nobody has seen that one");
    let another = LedgerPosition { digest: RecordDigest([2; 32]), ..position(10) };
    assert_eq!(
        (taken_back_at(Some(another), position(10), Some(Slot(12))), taken_back_at(None, position(10), None)),
        (None, None)
    );
}
