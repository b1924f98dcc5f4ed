//! Files that are kept equal to points, whatever happens to the receiver or to them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use farside_control::follower::{FollowerAdd, FollowerState, FollowerStatus, Follows};
use farside_control::routes;
use farside_ledger::LayerKind;
use farside_region::GranuleIndex;

use crate::site::{Gateway, Session, Volume, granules, noise, wait_until};

const VOLUME_BYTES: usize = 64 << 20;
const GRANULE: usize = 4096;

/// What the points of a volume hold, by slot.
struct Model {
    image: Vec<u8>,
    points: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        Self { image: vec![0; VOLUME_BYTES], points: BTreeMap::new() }
    }

    async fn publish(&mut self, source: &mut Session, volume: &Volume, seq: u64, content: &[(GranuleIndex, Vec<u8>)]) -> u64 {
        let position = source.publish(volume, seq, content, LayerKind::Point).await;
        if seq == 1 {
            self.image.fill(0);
        }
        for (at, bytes) in content {
            self.image[at.0 as usize * GRANULE..][..GRANULE].copy_from_slice(bytes);
        }
        self.points.insert(position.slot.0, self.image.clone());
        position.slot.0
    }
}

/// Granules here and there in the whole volume.
fn scattered(seed: u64, count: u64) -> Vec<(GranuleIndex, Vec<u8>)> {
    let each = 16_384 / count;
    let at = |i: u64| GranuleIndex(i * each + (i * 7 + seed * 13) % each);
    (0..count).map(|i| (at(i), noise(seed, at(i), vec![0; GRANULE]))).collect()
}

fn add(target: &Path) -> FollowerAdd {
    let volume = "host1/default/data".to_owned();
    FollowerAdd {
        name: Some("copy".into()),
        volume,
        target: target.to_owned(),
        follows: Follows::Newest,
        overwrite: false,
        lock: None,
    }
}

async fn follower(gateway: &Gateway) -> FollowerStatus {
    gateway.client().follower("copy").await.expect("there")
}

async fn holds(gateway: &Gateway, slot: u64) {
    wait_until("the point to arrive", async || {
        let now = follower(gateway).await;
        assert_ne!(now.state, FollowerState::Diverged, "{now:?}");
        now.state == FollowerState::Following && now.holds.is_some_and(|point| point.id.slot == slot)
    })
    .await;
}

/// Says nothing of what is equal.
fn assert_equal(target: &Path, image: &[u8], what: &str) {
    let found = std::fs::read(target).expect("read");
    assert_eq!(found.len(), image.len(), "{what}");
    let differing = found.chunks(GRANULE).zip(image.chunks(GRANULE)).position(|(a, b)| a != b);
    assert_eq!(differing, None, "{what}: the first granule that differs");
}

/// What the state directory says that the target holds: the slot, or nothing whole.
fn noted(gateway: &Gateway) -> Option<u64> {
    let text = std::fs::read(gateway.path("state/followers/copy~holds.json")).ok()?;
    let holds: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    holds["following"]["stage"]["at"]["slot"].as_u64()
}

/// Killed before, while and after it brings a file to a point, it holds a point again, and it knows which whenever it says that it does.
#[tokio::test]
async fn a_follower_that_is_killed_anywhere_holds_a_point_again() {
    let (mut gateway, host, mut source, mut volume) = Gateway::with_claim().await;
    let mut model = Model::new();
    let target = gateway.path("copy.img");
    model.publish(&mut source, &volume, 1, &scattered(1, 4096)).await;
    gateway.client().follower_add(&add(&target)).await.expect("added");
    let mut on_its_way = 0;
    for round in 0..12 {
        let newest = model.publish(&mut source, &volume, 2, &scattered(round * 2 + 2, 2048)).await;
        let is_lucky = round % 3 == 2;
        if is_lucky {
            holds(&gateway, newest).await;
        } else {
            // As soon as it has begun, as far as can be seen.
            wait_until("its way to begin", async || {
                let now = follower(&gateway).await;
                now.total_regions > 0 || now.holds.is_some_and(|point| point.id.slot == newest)
            })
            .await;
        }
        gateway.kill();
        match noted(&gateway) {
            Some(slot) => assert_equal(&target, &model.points[&slot], &format!("round {round}, at point {slot}")),
            None => on_its_way += 1,
        }
        gateway.start().await;
        source = host.connect_when_ready("default").await;
        volume = source.claim_above("data", &volume).await;
        // Sometimes something newer is there before it is where it was going to.
        let then = model.publish(&mut source, &volume, 1, &scattered(round * 2 + 3, 1024)).await;
        holds(&gateway, then).await;
        assert_equal(&target, &model.points[&then], &format!("round {round}, after the restart"));
    }
    println!("killed on its way in {on_its_way} of 12 rounds");
    assert!(follower(&gateway).await.reasons.is_empty());
    // It is what the target was said to be, by a look at all of it.
    let client = gateway.client();
    client.follower_tell(routes::FOLLOWER_VERIFY, "copy").await.expect("begun");
    wait_until("it to be verified", async || follower(&gateway).await.verified.is_some()).await;
}

#[tokio::test]
async fn whoever_writes_to_a_target_is_noticed_and_overwritten_only_on_a_persons_word() {
    let (mut gateway, _host, mut source, volume) = Gateway::with_claim().await;
    let mut model = Model::new();
    let target = gateway.path("copy.img");
    let client = gateway.client();
    let first = model.publish(&mut source, &volume, 1, &scattered(1, 512)).await;
    client.follower_add(&add(&target)).await.expect("added");
    holds(&gateway, first).await;
    assert_equal(&target, &model.points[&first], "the first point");

    // While it is paused the target is nobody's, and that is no free pass.
    let paused = client.follower_tell(routes::FOLLOWER_PAUSE, "copy").await.expect("paused");
    assert_eq!(paused.state, FollowerState::Paused);
    assert!(client.follower_tell(routes::FOLLOWER_HEAL, "copy").await.is_err(), "not while it is paused");
    let stranger = std::fs::OpenOptions::new().write(true).open(&target).expect("open");
    stranger.write_all_at(b"a stranger was here", 9 * (4 << 20) + 12_345).expect("written");
    drop(stranger);
    let second = model.publish(&mut source, &volume, 2, &granules(0, 40)).await;
    client.follower_tell(routes::FOLLOWER_RESUME, "copy").await.expect("goes on");
    wait_until("it to be noticed", async || follower(&gateway).await.state == FollowerState::Diverged).await;
    let diverged = follower(&gateway).await;
    assert_eq!((&diverged.diverged_regions[..], diverged.holds), (&[9][..], None));
    assert_eq!(diverged.reasons[0].code, "follower_diverged");
    let status = gateway.status().await;
    assert_eq!(status.followers.iter().map(|one| one.state).collect::<Vec<_>>(), [FollowerState::Diverged]);

    // It stays so, also after a restart, and nothing is overwritten.
    gateway.stop();
    gateway.start().await;
    wait_until("it to be known again", async || follower(&gateway).await.state == FollowerState::Diverged).await;
    let mut expected = model.points[&first].clone();
    expected[9 * (4 << 20) + 12_345..][..19].copy_from_slice(b"a stranger was here");
    assert_equal(&target, &expected, "nothing was overwritten");

    client.follower_tell(routes::FOLLOWER_HEAL, "copy").await.expect("healed");
    holds(&gateway, second).await;
    assert_equal(&target, &model.points[&second], "what differed was overwritten");
    let healed = follower(&gateway).await;
    assert!(healed.reasons.is_empty() && healed.diverged_regions.is_empty(), "{healed:?}");
    assert!(healed.written_bytes < 10 << 20, "what was right stayed: {}", healed.written_bytes);
}

/// Also where no newer point comes: whoever relies on a standby does so when its source is silent.
#[tokio::test]
async fn a_target_that_is_replaced_or_was_written_to_is_noticed_without_a_newer_point() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    let mut model = Model::new();
    let target = gateway.path("copy.img");
    let client = gateway.client();
    let first = model.publish(&mut source, &volume, 1, &scattered(1, 512)).await;
    client.follower_add(&add(&target)).await.expect("added");
    holds(&gateway, first).await;
    let becomes = async |gateway: &Gateway, state: FollowerState, words: &str| {
        wait_until(words, async || {
            let now = follower(gateway).await;
            now.state == state && now.holds.is_none() && now.reasons[0].message.contains(words)
        })
        .await;
    };
    let heal = async |gateway: &Gateway| {
        gateway.client().follower_tell(routes::FOLLOWER_HEAL, "copy").await.expect("healed");
        holds(gateway, first).await;
        assert_equal(&target, &model.points[&first], "what has its name is the point");
    };

    let other = gateway.path("other.img");
    std::fs::copy(&target, &other).expect("copied");
    std::fs::rename(&other, &target).expect("put in its place");
    becomes(&gateway, FollowerState::Diverged, "another file or device has its name").await;
    heal(&gateway).await;
    std::fs::rename(&target, &other).expect("taken away");
    becomes(&gateway, FollowerState::Failed, "it is gone").await;
    std::fs::rename(&other, &target).expect("put back");
    holds(&gateway, first).await;

    // Neither file times nor anything else says which of two is right: all is looked at.
    gateway.kill();
    let stranger = std::fs::OpenOptions::new().write(true).open(&target).expect("open");
    stranger.write_all_at(b"a stranger was here", 9 * (4 << 20) + 12_345).expect("written");
    drop(stranger);
    gateway.start().await;
    becomes(&gateway, FollowerState::Diverged, "the first is region 9").await;
    heal(&gateway).await;
    drop(host);
}

/// What a follower holds retention leaves alone, and gives up once nothing holds it.
#[tokio::test]
async fn a_follower_of_one_point_keeps_it_and_one_that_waits_says_so() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.set_keep(1).await;
    let mut model = Model::new();
    let client = gateway.client();
    let first = model.publish(&mut source, &volume, 1, &scattered(1, 64)).await;
    let target = gateway.path("copy.img");
    let one = FollowerAdd { follows: Follows::Point { slot: first }, ..add(&target) };
    client.follower_add(&one).await.expect("added");
    let late = FollowerAdd { name: None, follows: Follows::Behind { delay_ms: 3_600_000 }, ..add(&gateway.path("late.img")) };
    let late = client.follower_add(&late).await.expect("added").name;
    assert_eq!(late, "host1-data");
    holds(&gateway, first).await;
    let retained =
        async |gateway: &Gateway| -> Vec<u64> { gateway.points(None).await.iter().map(|point| point.id.slot).collect() };
    let (mut second, mut third) = (0, 0);
    for (seq, slot) in [(2, &mut second), (3, &mut third)] {
        *slot = model.publish(&mut source, &volume, seq, &scattered(seq, 64)).await;
    }
    wait_until("what nobody needs to be given up", async || !retained(&gateway).await.contains(&second)).await;
    assert_eq!(retained(&gateway).await, [third, first]);
    let waits = client.follower(&late).await.expect("there");
    assert_eq!(
        (waits.state, &waits.reasons[0].message[..]),
        (FollowerState::Waiting, "follower host1-data waits: no point of data is old enough yet")
    );

    // It is kept by what lies in the state directory, before anything else is.
    gateway.kill();
    gateway.start().await;
    holds(&gateway, first).await;
    assert_equal(&target, &model.points[&first], "the first point");
    let done = client.follower_remove("copy").await.expect("removed");
    assert!(done.message.contains("stays as it is"), "{}", done.message);
    // † It is the next one that will be old enough: were it given up, and the next after it, none ever would be.
    let mut source = host.connect_when_ready("default").await;
    source.set_keep(1).await;
    let volume = source.claim_above("data", &volume).await;
    let fourth = model.publish(&mut source, &volume, 1, &scattered(4, 64)).await;
    wait_until("what nobody needs to be given up", async || !retained(&gateway).await.contains(&third)).await;
    assert_eq!(retained(&gateway).await, [fourth, first]);
    // † Nor does it go because the follower has not asked yet: it is paused, or its target is away.
    client.follower_tell(routes::FOLLOWER_PAUSE, &late).await.expect("paused");
    gateway.kill();
    gateway.start().await;
    let mut source = host.connect_when_ready("default").await;
    source.set_keep(1).await;
    let volume = source.claim_above("data", &volume).await;
    let fifth = model.publish(&mut source, &volume, 1, &scattered(5, 64)).await;
    wait_until("what nobody needs to be given up", async || !retained(&gateway).await.contains(&fourth)).await;
    assert_eq!(retained(&gateway).await, [fifth, first]);
    client.follower_remove(&late).await.expect("removed");
    wait_until("it to be given up", async || gateway.points(None).await.iter().all(|point| point.id.slot != first)).await;
    assert_equal(&target, &model.points[&first], "its target stays");

    // The next one of that name knows nothing of it.
    let refused = client.follower_add(&add(&target)).await.expect_err("not empty").to_string();
    assert!(refused.contains("is not empty"), "{refused}");
    client.follower_add(&FollowerAdd { overwrite: true, ..add(&target) }).await.expect("added");
    holds(&gateway, fifth).await;
    assert_equal(&target, &model.points[&fifth], "the newest point");
    // What was right there already was left alone.
    assert!(follower(&gateway).await.written_bytes < 9 << 20);
}

#[tokio::test]
async fn a_target_that_makes_no_sense_is_refused_by_name() {
    let (gateway, _host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    let client = gateway.client();
    let full = gateway.path("full.img");
    std::fs::write(&full, b"something").expect("written");
    let used = gateway.path("used.img");
    client.follower_add(&FollowerAdd { name: Some("other".into()), ..add(&used) }).await.expect("added");
    let state: PathBuf = gateway.path("state/x.img");
    let asked = [
        (add(&full), "is not empty"),
        (add(&used), "is the target of follower other"),
        (add(&state), "which is the receiver's own"),
        (add(Path::new("/dev/no-such-device")), "there is no /dev/no-such-device"),
        (add(Path::new("relative.img")), "is not a whole path"),
        (add(&gateway.path("nowhere/x.img")), "nowhere/x.img"),
        (add(Path::new("/dev/null")), "neither a file nor a block device"),
        (FollowerAdd { volume: "host1/default/nothing".into(), ..add(&full) }, "there is no volume"),
        (FollowerAdd { follows: Follows::Point { slot: 999 }, ..add(&gateway.path("new.img")) }, "point 999 is not there"),
        (FollowerAdd { name: Some("other".into()), ..add(&full) }, "there is a follower other already"),
        (FollowerAdd { name: Some("../x".into()), ..add(&full) }, "../x"),
    ];
    for (request, words) in asked {
        let refused = client.follower_add(&request).await.expect_err(words).to_string();
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(std::fs::read(&full).expect("read"), b"something");
    assert_eq!(client.followers().await.expect("listed").len(), 1);
    assert!(client.follower("nobody").await.is_err());
}
