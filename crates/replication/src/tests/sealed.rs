//! Encrypted volumes: what is told to whom before anything is claimed, and what is never mixed.

use farside_ledger::{Body, Claim, Verdict, VoidReason, VolumeMeta};
use farside_region::{DigestKey, KeyId, RegionSet, Seal, SealMode, mutation};
use farside_wire::{
    ClaimOutcome, ClaimRequest, Features, InstanceId, ReadLedger, ReceiverMessage, RefusalCode, RequestId, SourceHello,
    SourceMessage, VersionRange,
};

use super::directed::{Gateway, Host, current, refused};
use super::world::{meta, name, volume};
use crate::source::{Action, Event, Problem, RefusedWhy, Start, VolumeSetup};
use crate::target;

fn seal(commitment: u8) -> Seal {
    Seal { mode: SealMode::EndToEnd, key: KeyId([0x4b; 16]), commitment: [commitment; 32] }
}

fn at_rest(n: u8, commitment: u8) -> VolumeMeta {
    let seal = Seal { mode: SealMode::AtRest, ..seal(commitment) };
    VolumeMeta { digest_key: DigestKey::Sealed(seal), ..meta(n) }
}

fn sealed(n: u8, commitment: u8) -> VolumeMeta {
    VolumeMeta { digest_key: DigestKey::Sealed(seal(commitment)), ..meta(n) }
}

fn setup(meta: VolumeMeta) -> Event {
    Event::AddVolume(Box::new(VolumeSetup {
        meta,
        confirmed: None,
        position: None,
        inherited: RegionSet::new(),
        start: Start::Clean,
        tracking_lost: false,
        paused: false,
    }))
}

fn host(features: Features) -> Host {
    let mut host = Host::to(features);
    host.event(setup(sealed(1, 1)));
    host.event(Event::SetWrappedKeys { wrapped: vec![vec![1], vec![2]] });
    host.connect();
    host
}

fn hung_up(host: &Host) -> bool {
    host.did.iter().any(|action| matches!(action, Action::Disconnect { why: Problem::NoSealing, .. }))
}

#[test]
fn wrapped_keys_come_before_anything_is_asked_and_claims_say_the_seal() {
    let mut host = host(Features::SEALED);
    let order: Vec<_> = host.said.iter().filter(|m| !matches!(m, SourceMessage::Settings(_) | SourceMessage::Hello(_))).collect();
    assert!(
        matches!(order[..], [SourceMessage::WrappedKey(one), SourceMessage::WrappedKey(two), SourceMessage::ReadLedger(_)] if (one[0], two[0]) == (1, 2)),
        "{order:?}"
    );
    host.answer_ledger(1, Vec::new(), None, None);
    let key = host.take(|m| match m {
        SourceMessage::Claim(q) => Some(q.claim.volume.digest_key),
        _ => None,
    });
    assert_eq!(key, DigestKey::Sealed(seal(1)));
}

/// It would take the claim for nonsense, or what is worse.
#[test]
fn a_receiver_that_knows_nothing_of_encryption_is_told_nothing() {
    let untold = |host: &Host| {
        assert!(hung_up(host));
        assert!(!host.said.iter().any(|m| matches!(m, SourceMessage::WrappedKey(_) | SourceMessage::ReadLedger(_))));
    };
    untold(&host(Features(0)));
    // One that comes later, beside volumes that are not encrypted.
    let mut later = Host::to(Features(0));
    later.connect();
    assert!(!hung_up(&later));
    later.event(setup(sealed(1, 1)));
    untold(&later);
    // And nobody is told of keys who has none.
    let mut clear = Host::to(Features::SEALED);
    clear.event(setup(meta(1)));
    clear.connect();
    assert!(!clear.said.iter().any(|m| matches!(m, SourceMessage::WrappedKey(_))));
}

/// What a host was told to encrypt would go out in clear, or content of two keys would lie in one volume.
#[test]
fn l4_a_seal_is_never_adopted() {
    let told = || {
        for (ours, theirs) in [(sealed(1, 1), meta(1)), (meta(1), sealed(1, 1)), (sealed(1, 1), sealed(1, 2))] {
            let mut host = Host::to(Features::SEALED);
            host.event(setup(ours));
            host.connect();
            let mut current = current(1, 0, false).expect("some");
            current.meta = theirs;
            host.answer_ledger(1, Vec::new(), Some(current), Some(2));
            assert_eq!(refused(&host, 1), Some(RefusedWhy::Key), "L4: parts of two keys under one volume");
            assert!(!host.said.iter().any(|m| matches!(m, SourceMessage::Claim(_))));
        }
    };
    mutation::tell(&[("an encrypted volume adopts what the ledger says", "L4: parts of two keys under one volume")], told);
}

fn answered(host: &mut Host, given: Option<VolumeMeta>) {
    let seals = given.into_iter().filter_map(|meta| Some((meta.id, *meta.digest_key.seal()?))).collect();
    host.event(Event::KeyAnswered { connection: host.connection(), seals });
}

fn asked_ledger(host: &Host) -> bool {
    host.said.iter().any(|m| matches!(m, SourceMessage::ReadLedger(_)))
}

/// In clear for ever, if it is asked for before.
#[test]
fn l4_nothing_is_claimed_before_the_answer_about_the_key() {
    let told = || {
        let mut host = Host::that_asks(Features(u64::MAX));
        host.event(setup(meta(1)));
        host.connect();
        assert!(host.said.iter().any(|m| matches!(m, SourceMessage::KeyWanted)));
        assert!(!asked_ledger(&host), "L4: asked for before the key");
        // Nor is it waited for for ever.
        let hung_up = |host: &Host| host.did.iter().any(|a| matches!(a, Action::Disconnect { why: Problem::NoKeyAnswer, .. }));
        host.now += 299 * crate::source::SECOND;
        host.tick(&[]);
        assert!(!hung_up(&host), "what keeps keys takes its time");
        host.now += crate::source::SECOND;
        host.tick(&[]);
        assert!(hung_up(&host) && !asked_ledger(&host), "L4: asked for before the key");
        answered(&mut host, Some(at_rest(1, 1)));
        assert!(asked_ledger(&host));
    };
    mutation::tell(&[("a claim before the answer about the key", "L4: asked for before the key")], told);
}

/// What a host has × what the gateway gave for it × what the ledger says of it: what it goes on with.
#[test]
fn l4_the_gateways_key_is_taken_by_who_has_none_and_by_nobody_else() {
    let (clear, other_clear) = (meta(1), VolumeMeta { digest_key: [9; 32].into(), ..meta(1) });
    let (ours, another, end_to_end) = (at_rest(1, 1), at_rest(1, 2), sealed(1, 1));
    let (no, claims) = (None, Some);
    type Row<'m> = (&'m VolumeMeta, Option<&'m VolumeMeta>, Option<&'m VolumeMeta>, Option<&'m VolumeMeta>);
    let table: [Row<'_>; 20] = [
        // The volume is new.
        (&clear, None, None, claims(&clear)),
        (&clear, Some(&ours), None, claims(&ours)),
        (&ours, Some(&ours), None, claims(&ours)),
        (&ours, Some(&another), None, claims(&another)), // it never came to a claim under the first
        (&ours, None, None, no),                         // in clear what was to be encrypted
        (&end_to_end, Some(&ours), None, claims(&end_to_end)),
        (&end_to_end, None, None, claims(&end_to_end)),
        // It is in the store in clear, and stays so.
        (&clear, None, Some(&other_clear), claims(&other_clear)),
        (&clear, Some(&ours), Some(&other_clear), claims(&other_clear)),
        (&ours, Some(&ours), Some(&clear), no),
        (&end_to_end, Some(&ours), Some(&clear), no),
        // At rest.
        (&clear, Some(&ours), Some(&ours), claims(&ours)), // a host that was built anew, or stands in
        (&clear, None, Some(&ours), no),
        (&clear, Some(&another), Some(&ours), no),
        (&ours, Some(&ours), Some(&ours), claims(&ours)),
        (&ours, None, Some(&ours), no),
        (&ours, Some(&another), Some(&ours), no),
        // End to end: a gateway must not talk anybody out of that.
        (&clear, Some(&ours), Some(&end_to_end), no),
        (&ours, Some(&ours), Some(&end_to_end), no),
        (&end_to_end, Some(&ours), Some(&end_to_end), claims(&end_to_end)),
    ];
    for (at, (here, given, there, goes_on_with)) in table.into_iter().enumerate() {
        let mut host = Host::that_asks(Features(u64::MAX));
        host.event(setup(here.clone()));
        host.connect();
        answered(&mut host, given.cloned());
        let current = there.map(|there| {
            let mut current = current(1, 0, false).expect("some");
            current.meta = there.clone();
            current
        });
        let head = current.as_ref().map(|_| 2);
        host.answer_ledger(1, Vec::new(), current, head);
        let claimed = host.said.iter().find_map(|m| match m {
            SourceMessage::Claim(q) => Some(q.claim.volume.digest_key),
            _ => None,
        });
        assert_eq!(claimed, goes_on_with.map(|meta| meta.digest_key), "row {at}");
        let why = goes_on_with.is_none().then_some(RefusedWhy::Key);
        assert_eq!(refused(&host, 1), why, "row {at}");
        // It is kept here before it is said there.
        let adopted = host.did.iter().find_map(|action| match action {
            Action::AdoptMeta { meta } => Some(meta.digest_key),
            _ => None,
        });
        assert_eq!(adopted, goes_on_with.map(|meta| meta.digest_key).filter(|key| *key != here.digest_key), "row {at}");
    }
}

/// A host that has a key of its own, or met a gateway that knows nothing of this, asks for none and takes none.
#[test]
fn who_did_not_ask_takes_no_key() {
    for mut host in [Host::to(Features(u64::MAX)), Host::that_asks(Features::SEALED)] {
        host.event(setup(meta(1)));
        host.connect();
        assert!(!host.said.iter().any(|m| matches!(m, SourceMessage::KeyWanted)));
        answered(&mut host, Some(at_rest(1, 1)));
        host.answer_ledger(1, Vec::new(), None, None);
        let key = host.take(|m| match m {
            SourceMessage::Claim(q) => Some(q.claim.volume.digest_key),
            _ => None,
        });
        assert_eq!(key, meta(1).digest_key);
    }
    let mut host = Host::that_asks(Features::SEALED);
    host.event(setup(at_rest(1, 1)));
    host.connect();
    assert!(hung_up(&host) && !asked_ledger(&host));
}

fn hello(gateway: &mut Gateway, session: u64, features: Features) {
    let (source, group) = (name("host"), name("default"));
    let instance = InstanceId([session as u8; 16]);
    let hello = SourceHello { versions: VersionRange::OURS, features, instance, connection: 1, source, group };
    gateway.hear(session, SourceMessage::Hello(hello));
}

fn claim(gateway: &mut Gateway, session: u64, volume: VolumeMeta) {
    let claim = Claim { volume, looked: gateway.state.head(), source: name("host") };
    gateway.hear(session, SourceMessage::Claim(ClaimRequest { id: RequestId(1), claim }));
}

fn closed(gateway: &Gateway, session: u64) -> bool {
    gateway.did.iter().any(|a| matches!(a, target::Action::CloseSession { session: s, .. } if s.0 == session))
}

/// A gateway that claims first, and loses the wrapping in a power cut, has volumes that nobody can ever read.
#[test]
fn l4_a_key_is_in_the_store_before_a_claim_that_names_it() {
    let told = || {
        let mut gateway = Gateway::new();
        hello(&mut gateway, 2, Features::SEALED);
        claim(&mut gateway, 2, sealed(1, 1));
        assert!(gateway.append().is_none(), "L4: claimed with a key that is nowhere");
        assert!(closed(&gateway, 2));

        hello(&mut gateway, 3, Features::SEALED);
        gateway.hear(3, SourceMessage::WrappedKey(vec![7]));
        let kept =
            |a: &target::Action| matches!(a, target::Action::KeepKey { session, wrapped } if session.0 == 3 && *wrapped == [7]);
        assert!(gateway.did.iter().any(kept));
        gateway.event(target::Event::KeyKept { key: KeyId([0x4b; 16]) });
        claim(&mut gateway, 3, sealed(1, 1));
        let (body, verdict) = gateway.append().expect("a claim");
        assert!(matches!(body, Body::Claim(claim) if claim.volume == sealed(1, 1)));
        assert_eq!(verdict, Verdict::Accepted);
        // Another seal is void, and takes no slot.
        claim(&mut gateway, 3, sealed(1, 2));
        assert!(gateway.append().is_none());
        let said = gateway.said();
        let void = ClaimOutcome::Void { reason: VoidReason::ClaimDigestKey };
        let void = |m: &ReceiverMessage| matches!(m, ReceiverMessage::ClaimVerdict(v) if v.outcome == void);
        assert!(said.iter().any(void), "{said:?}");
    };
    mutation::tell(&[("a claim before its wrapped key", "L4: claimed with a key that is nowhere")], told);
}

/// An old source would read another answer out of it.
#[test]
fn a_source_that_knows_nothing_of_encryption_is_refused_by_name() {
    let mut gateway = Gateway::new();
    hello(&mut gateway, 2, Features::SEALED);
    gateway.event(target::Event::KeyKept { key: KeyId([0x4b; 16]) });
    claim(&mut gateway, 2, sealed(1, 1));
    gateway.append().expect("a claim");
    gateway.said();
    hello(&mut gateway, 3, Features(0));
    let question = ReadLedger { id: RequestId(9), volume: volume(1), position: None, after: None };
    gateway.hear(3, SourceMessage::ReadLedger(question));
    let said = gateway.said();
    let refused = said.iter().find_map(|m| match m {
        ReceiverMessage::Refusal(refusal) => Some(refusal),
        _ => None,
    });
    let refused = refused.unwrap_or_else(|| panic!("{said:?}"));
    assert_eq!(refused.code, RefusalCode::Version);
    assert!(refused.text.contains("is encrypted"), "{}", refused.text);
    assert!(closed(&gateway, 3));
    hello(&mut gateway, 4, Features::SEALED);
    gateway.event(target::Event::KeyKept { key: KeyId([0x4b; 16]) });
    claim(&mut gateway, 2, at_rest(2, 1));
    gateway.append().expect("a claim");
    gateway.hear(4, SourceMessage::ReadLedger(ReadLedger { volume: volume(2), ..question }));
    assert!(closed(&gateway, 4), "it would take the mode for nonsense");
    gateway.hear(2, SourceMessage::ReadLedger(question));
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::LedgerSlice(_))));
}
