//! Groups that the gateway keeps encrypted at rest: who is given which key, what is refused, and whom the waiting for it holds up.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use farside_keys::{GroupKey, Secret};
use farside_region::{DigestKey, SealMode, VolumeId};
use farside_wire::{
    ClaimOutcome, ClaimVerdict, GroupKeyAnswer, ReadLedger, ReceiverMessage, RefusalCode, RequestId, SourceMessage,
};

use crate::site::{Gateway, Session, wait_for, wait_until};

/// A gateway whose keys a program keeps, which waits until there is a file `go`, and says when it was asked to wrap. `scratch` is in clear.
async fn gateway() -> Gateway {
    let mut gateway = Gateway::new("[[at_rest]]\nof = \"host1/scratch\"\nkeys = []\n");
    let (program, home) = (gateway.path("keeper"), gateway.path(""));
    let script = format!(
        "#!/bin/sh\ncd {}\ncase $1 in\nwrap) echo asked >> asked; while [ ! -e go ]; do sleep 0.05; done; base64 ;;\n*) base64 -d ;;\nesac\n",
        home.display()
    );
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let file = gateway.path("receiver.d");
    fs::create_dir(&file).expect("made");
    let text = format!("[[at_rest]]\nkeys = [\"command:{}\"]\n", program.display());
    fs::write(file.join("at-rest.toml"), text).expect("written");
    gateway.start().await;
    gateway
}

async fn answer(session: &mut Session) -> GroupKeyAnswer {
    let answer = |m| match m {
        ReceiverMessage::GroupKey(answer) => Some(answer),
        _ => None,
    };
    session.expect("an answer about the key", answer).await
}

fn sealed(key: &GroupKey, id: VolumeId) -> DigestKey {
    DigestKey::Sealed(key.seal(SealMode::AtRest, id))
}

async fn given(session: &mut Session) -> GroupKey {
    GroupKey::new(Secret::new(&answer(session).await.0.expect("a key")))
}

#[tokio::test]
async fn one_key_is_given_to_all_who_ask_and_nobody_is_held_up_by_who_keeps_it() {
    let gateway = gateway().await;
    let host = gateway.pair("host1").await;
    let mut first = host.connect("default").await;
    let mut second = host.connect_of_run("default", 1).await;
    for session in [&mut first, &mut second] {
        session.send(SourceMessage::KeyWanted).await;
    }
    wait_for("the program to be asked", || gateway.path("asked").exists()).await;
    // The group goes on meanwhile, and so do others.
    let question = ReadLedger { id: RequestId(99), volume: VolumeId([1; 16]), position: None, after: None };
    second.send(SourceMessage::ReadLedger(question)).await;
    second.expect("a slice of the ledger", |m| matches!(m, ReceiverMessage::LedgerSlice(_)).then_some(())).await;
    let mut scratch = host.connect("scratch").await;
    scratch.send(SourceMessage::KeyWanted).await;
    assert!(answer(&mut scratch).await.0.is_none(), "it is kept in clear");
    scratch.claim("data").await;
    fs::write(gateway.path("go"), "").expect("written");
    let key = given(&mut first).await;
    assert_eq!(given(&mut second).await.id(), key.id(), "a second key was drawn");
    assert_eq!(fs::read_to_string(gateway.path("asked")).expect("it was asked").lines().count(), 1);
    assert!(
        gateway.path("store/groups/host1/default/keys/0").exists() && !gateway.path("store/groups/host1/default/keys/1").exists()
    );

    // Its claim is taken without another word; a new volume in clear is not.
    first.claim_raw("data", |claim| claim.volume.digest_key = sealed(&key, claim.volume.id)).await;
    first.expect("a verdict", |m| matches!(m, ReceiverMessage::ClaimVerdict(_)).then_some(())).await;
    let status = gateway.status().await;
    let groups = &status.sources.iter().find(|source| source.name == "host1").expect("it").groups;
    let kept = groups.iter().find(|group| group.name == "default").expect("it").volumes[0].encryption.clone();
    assert_eq!(kept.as_deref(), Some("at-rest"));
    first.claim_raw("other", |_| {}).await;
    let refusal = first.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Protocol);
    assert!(refusal.text.contains("`other`") && refusal.text.contains("[[at_rest]]"), "{}", refusal.text);

    // Nor is one with another key than was given; and who pulls is given the key as well.
    let mut third = host.connect_of_run("default", 2).await;
    let strange = GroupKey::new(Secret::new(&[9; 32]));
    third.claim_raw("other", |claim| claim.volume.digest_key = sealed(&strange, claim.volume.id)).await;
    assert!(third.refusal().await.text.contains("a key that this gateway did not give"));
    let mut pulling = host.pulling("host1", "default").await;
    pulling.send(SourceMessage::KeyWanted).await;
    assert_eq!(given(&mut pulling).await.id(), key.id());

    // † Nobody keeps it any more: it is in the gateway's memory, and the next start has nothing.
    let trouble = async || {
        let status = gateway.status().await;
        let groups = status.sources.iter().flat_map(|source| &source.groups);
        let reasons = groups.flat_map(|group| &group.reasons);
        reasons.filter(|reason| reason.code == "key_missing").map(|reason| reason.message.clone()).collect::<String>()
    };
    assert_eq!(trouble().await, "");
    let script = fs::read(gateway.path("keeper")).expect("read");
    fs::write(gateway.path("keeper"), "#!/bin/sh\nexit 1\n").expect("written");
    gateway.client().reload().await.expect("read again");
    wait_until("that to be said", async || trouble().await.contains("is not kept by everybody")).await;
    fs::write(gateway.path("keeper"), script).expect("written");
    gateway.client().reload().await.expect("read again");
    wait_until("nothing to be said", async || trouble().await.is_empty()).await;
    gateway.check_store();
}

/// While one who keeps keys does not answer, another one is named, and the configuration is read again: he is asked, and nobody waits for the first.
#[tokio::test]
async fn who_does_not_answer_is_replaced_by_a_reload() {
    let gateway = gateway().await;
    let host = gateway.pair("host1").await;
    let mut session = host.connect("default").await;
    session.send(SourceMessage::KeyWanted).await;
    wait_for("the program to be asked", || gateway.path("asked").exists()).await;
    let file = gateway.path("key");
    fs::write(&file, [7; 32]).expect("written");
    let text = format!("[[at_rest]]\nkeys = [\"file:{}\"]\n", file.display());
    fs::write(gateway.path("receiver.d").join("at-rest.toml"), text).expect("written");
    gateway.client().reload().await.expect("read again");
    let key = given(&mut session).await;
    // What comes of the first is nobody's.
    fs::write(gateway.path("go"), "").expect("written");
    wait_for("what the program wrapped", || gateway.path("store/groups/host1/default/keys/1").exists()).await;
    let mut second = host.connect_of_run("default", 1).await;
    second.send(SourceMessage::KeyWanted).await;
    assert_eq!(given(&mut second).await.id(), key.id());
    second.claim_raw("data", |claim| claim.volume.digest_key = sealed(&key, claim.volume.id)).await;
    second.expect("a verdict", |m| matches!(m, ReceiverMessage::ClaimVerdict(_)).then_some(())).await;
    gateway.check_store();
}

/// Who keeps the key fails: what is not wrapped is given to nobody, and what a program says stays on the gateway.
#[tokio::test]
async fn a_key_that_nobody_keeps_is_not_given() {
    let gateway = gateway().await;
    let host = gateway.pair("host1").await;
    let script = "#!/bin/sh\necho secret words >&2\nexit 1\n";
    fs::write(gateway.path("keeper"), script).expect("written");
    for session in [host.connect("default").await, host.pulling("host1", "default").await] {
        let mut session = session;
        session.send(SourceMessage::KeyWanted).await;
        let refusal = session.refusal().await;
        assert_eq!(refusal.code, RefusalCode::Store);
        assert!(refusal.text.contains("[[at_rest]]") && !refusal.text.contains("secret words"), "{}", refusal.text);
    }
    assert!(gateway.log().contains("secret words"));
    assert!(!gateway.path("store/groups/host1/default/keys/0").exists());
}

/// Who is to keep the key since the ledger tore was never asked, and nobody said so: with the keeper of before all points were lost.
#[tokio::test]
async fn the_key_of_a_torn_group_is_kept_by_whoever_is_named_since() {
    let mut gateway = gateway().await;
    fs::write(gateway.path("go"), "").expect("written");
    let host = gateway.pair("host1").await;
    let mut session = host.connect("default").await;
    session.send(SourceMessage::KeyWanted).await;
    let key = given(&mut session).await;
    let mut newest = None;
    for volume in ["data", "other"] {
        session.claim_raw(volume, |claim| claim.volume.digest_key = sealed(&key, claim.volume.id)).await;
        let accepted = |m| match m {
            ReceiverMessage::ClaimVerdict(ClaimVerdict { outcome: ClaimOutcome::Accepted { position }, .. }) => {
                Some(position.slot)
            }
            _ => None,
        };
        newest = Some(session.expect("a verdict", accepted).await);
    }
    gateway.stop();
    gateway.start_torn(newest.expect("claimed")).await;
    let (program, file) = (gateway.path("keeper"), gateway.path("key"));
    fs::write(&file, [7; 32]).expect("written");
    let text = format!("[[at_rest]]\nkeys = [\"command:{}\", \"file:{}\"]\n", program.display(), file.display());
    fs::write(gateway.path("receiver.d/at-rest.toml"), text).expect("written");
    gateway.client().reload().await.expect("read again");
    wait_for("the key to be kept by both", || gateway.path("store/groups/host1/default/keys/1").exists()).await;
}
