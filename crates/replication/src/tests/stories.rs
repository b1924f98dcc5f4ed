//! How data would be lost: orders of events that chance meets once in thousands of seeds, written out. Each story is told
//! honestly and ends well; told with the mistake that it is about, it must end in a broken law (`mutation::tell`).
//!
//! The toy world judges: each published point against what was cut (L3), each clean region against what is published (L2).

use std::collections::BTreeMap;

use farside_ledger::{Body, Claim, EpochInfo, LayerEntry, LayerKind, Layers, PartEntry, Record, Stamp, State, Verdict};
use farside_region::{
    BootId, GranuleIndex, GranuleSet, GroupId, LayerKey, LedgerPosition, RecordDigest, RegionIndex, RegionSet, Seq, Slot, Term,
    VolumeId, mutation,
};
use farside_wire::{LayerFate, Published, ReceiverMessage, SaidEnd, SourceMessage, Staged, Void};

use super::directed::{self, Host, key};
use super::world::{Content, GRANULES, Turn, World, entry, layer_digest, meta, name, target_config, volume};
use crate::source::{self, Action, Event, PartRead, RefusedWhy, SentPart, State as Standing};
use crate::target::{self, AppendOutcome, Target};

use mutation::tell;

pub(super) const V1: VolumeId = VolumeId([1; 16]);
pub(super) const V2: VolumeId = VolumeId([2; 16]);

/// Everything goes on by itself, except…
const ALL: [Turn; 9] =
    [Turn::Switch, Turn::Header, Turn::Hot, Turn::Read, Turn::ToTarget, Turn::ToSource, Turn::Land, Turn::Append, Turn::Digests];

impl World {
    /// Lets all happen but these, until nothing does.
    pub(super) fn go_without(&mut self, held: &[Turn]) {
        while ALL.iter().filter(|turn| !held.contains(turn)).any(|turn| self.turn(*turn)) {}
    }

    /// Lets only these happen, until nothing does.
    pub(super) fn go(&mut self, turns: &[Turn]) {
        while turns.iter().any(|turn| self.turn(*turn)) {}
    }

    /// The next epoch's time has come: a switch is asked for.
    pub(super) fn interval(&mut self) {
        self.now += 50;
        self.turn(Turn::Tick);
    }

    /// Everything goes on until nothing is owed and everything is cold.
    pub(super) fn quiet(&mut self) {
        for _ in 0..200 {
            self.interval();
            self.go_without(&[]);
            [V1, V2].into_iter().for_each(|volume| self.cool_wanted(volume));
            self.go_without(&[]);
            self.check_no_false_clean();
            if self.converged() {
                return;
            }
        }
        let status = self.source.as_ref().map(|s| s.status(self.now));
        panic!("no progress: {status:#?}");
    }

    pub(super) fn land_only(&mut self, which: impl Fn(&LayerKey) -> bool) {
        while let Some(at) = self.parts.iter().position(|(_, key, ..)| which(key)) {
            let (session, key, part, content) = self.parts.remove(at);
            self.land(session, key, part, content);
        }
    }

    /// The claims that wait to be appended; layers go on waiting.
    pub(super) fn claims_only(&mut self) {
        while matches!(self.appends.front(), Some((_, Body::Claim(_)))) {
            self.append();
            self.go_without(&[Turn::Append, Turn::Switch]);
        }
    }

    pub(super) fn term(&self, n: u8) -> Term {
        self.state.volume(volume(n)).expect("claimed").term()
    }

    pub(super) fn standing(&self, n: u8) -> Standing {
        let status = self.source.as_ref().expect("it runs").status(self.now);
        status.volumes[usize::from(n) - 1].state.clone()
    }

    pub(super) fn is_refused(&self, n: u8, why: RefusedWhy) -> bool {
        self.standing(n) == Standing::Refused(why)
    }

    /// A record of somebody else comes in.
    pub(super) fn record_of_another(&mut self, body: Body) -> Verdict {
        let (slot, prev) = (self.state.next_slot(), self.state.prev());
        let stamp = Stamp { writer: [9; 16], mono_ms: self.now, wall_ms: 0 };
        let record = Record { group: GroupId([9; 16]), slot, prev, nonce: [9; 16], stamp, body };
        let verdict = self.state.apply(&record, RecordDigest([slot.0 as u8 ^ 0xa5; 32]));
        if let (Verdict::Accepted, Body::Layers(layers)) = (verdict, &record.body) {
            self.accept(layers);
        }
        self.records.push(record);
        verdict
    }

    /// The gateway's disk is replaced: what was landed and not published is gone.
    pub(super) fn lose_landing(&mut self) {
        self.disconnect();
        let published: Vec<_> = self.landed.keys().filter(|(key, _)| self.state.layer(key).is_some()).copied().collect();
        self.landed.retain(|at, _| published.contains(at));
        self.crash_target(false);
    }

    /// A write of volume 1 is published, and its header stays where it was: it is written now and then.
    pub(super) fn publish_without_header(&mut self, granule: u64) {
        let header = self.disks[&V1].header;
        self.write(V1, granule, 101);
        self.interval();
        self.go_without(&[Turn::Header]);
        assert!(self.source.as_ref().expect("it runs").owed(V1).is_empty(), "it is not published");
        assert_eq!(self.disks[&V1].header, header, "it is not behind");
    }

    fn back_up_store(&self) -> StoreBackup {
        StoreBackup { state: self.state.clone(), image: self.image.clone(), records: self.records.clone() }
    }

    /// The store is what it was then; its receiver starts on that.
    fn put_store_back(&mut self, backup: StoreBackup) {
        self.tampered = true;
        self.disconnect();
        (self.state, self.image, self.records) = (backup.state, backup.image, backup.records);
        self.landed.retain(|(key, _), _| self.state.layer(key).is_some());
        self.target = Target::new(target_config(), &self.state, Vec::new(), &mut Vec::new());
    }
}

/// What a store held.
#[derive(Clone)]
struct StoreBackup {
    state: State,
    image: BTreeMap<VolumeId, BTreeMap<u64, u64>>,
    records: Vec<Record>,
}

impl Host {
    /// Both volumes are cut and read, and the end is said.
    pub(super) fn cut_of_both(&mut self) -> Vec<LayerKey> {
        self.tick(&[1]);
        self.switch(vec![(1, directed::granules(0, 2)), (2, directed::granules(0, 2))]);
        let layers = vec![self.read(1, 1), self.read(2, 2)];
        self.end();
        layers
    }

    pub(super) fn publish(&mut self, slot: u64, layers: &[LayerKey]) {
        self.publish_as(slot, layers, LayerKind::Point);
    }

    pub(super) fn publish_as(&mut self, slot: u64, layers: &[LayerKey], kind: LayerKind) {
        let position = LedgerPosition { slot: Slot(slot), digest: RecordDigest([slot as u8; 32]) };
        let published = Published { position, kind, layers: layers.to_vec() };
        self.hear(ReceiverMessage::Published(published));
    }
}

/// Two volumes, their first sync published and a point; everything is cold, nothing owed, and the link is up.
pub(super) fn streaming() -> World {
    let mut world = World::new(1, 2);
    world.by_hand = true;
    world.boot();
    world.connect();
    world.quiet();
    world
}

fn is_layers(body: &Body) -> bool {
    matches!(body, Body::Layers(_))
}

// ---- T1: resets

/// Cut A holds granule 0, cut B does not. The link breaks while A's part is under way and B's has landed; then the host writes
/// granule 0 again. A is read again from the disk as it is now, so the image below B is not the image that B was cut from: B
/// must not be a point any more.
#[test]
fn t1_what_lies_on_top_of_a_layer_that_is_read_again_is_no_point() {
    tell(&[("T1 later ones keep the cut", "L3: point")], || {
        let mut world = streaming();
        for (granule, value) in [(0, 101), (8, 102)] {
            world.write(V1, granule, value);
            world.interval();
            world.go_without(&[Turn::Land, Turn::Append]);
        }
        let later = world.parts.iter().map(|(_, key, ..)| key.seq).max();
        world.land_only(|key| Some(key.seq) == later);
        world.disconnect();
        world.write(V1, 0, 103);
        world.connect();
        world.quiet();
    });
}

/// The end message of A is there before its part; the link breaks; the part that is read again holds what the host wrote since,
/// and its stream is faster than the new end message. Measured by the old one it is somebody else's content: the layer would be
/// called lost, and every reset at a busy moment would cost a claim and a compare of all that is hot. Without the digest in the
/// end message as well, it would be published as the point that the old message meant.
#[test]
fn t1_an_end_message_does_not_outlive_the_parts_it_spoke_of() {
    let mistakes =
        [("END kept across a reset", "T1: a reset costs a claim"), ("END kept across a reset + END without digest", "L3: point")];
    tell(&mistakes, || {
        let mut world = streaming();
        let term = world.term(1);
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Land, Turn::Append]);
        world.disconnect();
        world.write(V1, 0, 103);
        world.connect();
        world.go(&[Turn::ToTarget, Turn::ToSource, Turn::Header]);
        world.go(&[Turn::Read]);
        world.go(&[Turn::Land, Turn::Append]);
        world.quiet();
        assert_eq!(world.term(1), term, "T1: a reset costs a claim");
    });
}

#[test]
fn t1_layers_become_staged_in_the_order_of_their_numbers() {
    tell(&[("T1 staged out of order", "T1: in order")], directed::a_point_waits_for_all_members_and_their_earlier_layers);
}

/// A cut is frozen and not yet read when the link breaks, and the host goes on writing. What is read after the reconnect is a
/// mixture of before and after: fuzzy.
#[test]
fn t1_a_cut_that_a_reset_interrupts_is_no_cut() {
    tell(&[("a reset cut re-sent as a point", "L3: point")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Land, Turn::Append]);
        world.disconnect();
        world.write(V1, 0, 103);
        world.connect();
        world.quiet();
    });
}

// ---- T2, T3: what a stop and a person leave behind

/// A planned stop while a layer is staged and not published. Staged data dies with its term: if the masks of the stop do not
/// name that layer's granules, the next attach never sends them, and cools their regions.
#[test]
fn t2_a_clean_stop_owes_what_is_staged_and_not_published() {
    tell(&[("T2 masks without unpublished layers", "L2:")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Append]);
        world.stop_source();
        world.crash_target(false);
        world.boot();
        world.connect();
        world.quiet();
    });
}

/// Headers are written now and then. One that a planned stop left behind made the next attach compare what had been published since:
/// after a first sync of a large disk all of it.
#[test]
fn a_clean_stop_leaves_nothing_to_compare() {
    tell(&[], || {
        let mut world = streaming();
        world.publish_without_header(0);
        world.stop_source();
        world.boot();
        world.connect();
        world.go_without(&[Turn::Switch]);
        let source = world.source.as_ref().expect("it runs");
        assert!(source.status(world.now).volumes[0].term.is_some());
        assert!(source.owed(V1).is_empty(), "{:?}", source.owed(V1));
        world.quiet();
    });
}

/// A disk was put back from a copy; a person accepts it as it is. Comparing everything takes a while, and the host loses power
/// meanwhile. If not every bit was durable before the claim, the next attach compares the few regions that were hot and calls
/// the rest equal to what was published from the lost future.
#[test]
fn t3_accept_sets_every_bit_before_it_claims() {
    tell(&[("T3 accept without every bit", "L2:")], || {
        let mut world = rolled_back();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::Forked));
        world.to(source::Event::Accept { volume: V1 });
        world.go_without(&[Turn::Switch, Turn::Read]);
        world.crash_source();
        world.tampered = false;
        world.boot();
        world.connect();
        world.quiet();
    });
}

/// A volume whose disk and header are those of yesterday, attached again, while the ledger holds today's layer of region 2.
pub(super) fn rolled_back() -> World {
    let mut world = streaming();
    let old = world.disks[&V1].content.clone();
    let header = world.disks[&V1].header;
    world.write(V1, 8, 101);
    world.quiet();
    world.crash_source();
    let disk = world.disks.get_mut(&V1).expect("a disk");
    (disk.content, disk.header, disk.hot) = (old, header, RegionSet::new());
    world.tampered = true;
    world.boot();
    world.connect();
    world
}

// ---- §4.5: the position rule

/// The disk of yesterday again. Before the claim is made the host writes into the very region that today's layer touched, and
/// heats it. Judged by the bits that are live now, "every layer above my position touches only what is hot here" holds, and a
/// rolled-back disk goes on as if nothing had happened.
#[test]
fn position_is_judged_by_the_bits_read_at_attach() {
    tell(&[("hole: position judged by live bits", "L6: a rollback goes on silently")], || {
        let mut world = rolled_back();
        world.write(V1, 9, 500);
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::Forked), "L6: a rollback goes on silently");
    });
}

/// A clone of volume 2 claims it and publishes a layer, while the original publishes only volume 1, in a later slot. If that
/// moved the position of volume 2 as well, the original would look at the ledger above it, find nothing, and claim: two
/// histories in one chain, and what the clone wrote stays in the image under regions that are cold here.
#[test]
fn position_is_each_volumes_own() {
    let mistakes = [("hole: position of the group", "L3: point"), ("skip the position rule", "L3: point")];
    tell(&mistakes, || {
        let mut world = streaming();
        world.tampered = true;
        world.to(source::Event::Pause { volume: V2 });
        let claim = Claim { volume: meta(2), looked: world.state.head(), source: name("host") };
        assert_eq!(world.record_of_another(Body::Claim(claim)), Verdict::Accepted);
        let content: Content = vec![(12, 666)];
        let layer = fuzzy(key(2, world.term(2).0, 1), &content);
        world.landed.insert((layer.members[0].key, 0), content);
        assert_eq!(world.record_of_another(Body::Layers(layer)), Verdict::Accepted);
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[]);
        world.to(source::Event::Resume { volume: V2 });
        world.write(V2, 0, 102);
        for _ in 0..4 {
            world.interval();
            world.go_without(&[]);
        }
        assert!(world.is_refused(2, RefusedWhy::Forked), "L6: two histories");
    });
}

fn fuzzy(key: LayerKey, content: &Content) -> Layers {
    let PartEntry { bytes, footer_digest } = entry(content);
    let epoch = EpochInfo { boot: BootId([2; 16]), mono_before_ns: 1, mono_after_ns: 1, wall_ms: 0 };
    let mut regions = RegionSet::new();
    content.iter().for_each(|(granule, _)| regions.insert(super::world::geometry().region_of(GranuleIndex(*granule))));
    let member = LayerEntry {
        key,
        digest: layer_digest(&key, &[footer_digest]),
        parts: vec![PartEntry { bytes, footer_digest }],
        regions,
        unreadable_regions: RegionSet::new(),
        volume_bytes: GRANULES * 16,
    };
    Layers { kind: LayerKind::Fuzzy, epoch, label: None, members: vec![member] }
}

/// Under an attached source the store is put back from a backup that is older than the source's claim. What was published since
/// is gone from it, and cold here. Without the position rule the reconnect only finds that the term is not current, and claims.
#[test]
fn t7_position_is_checked_at_every_reconnect() {
    tell(&[("T7 position not checked at reconnect", "L6: a store of yesterday")], || {
        let mut world = streaming();
        let backup = world.back_up_store();
        world.write(V1, 8, 101);
        world.quiet();
        world.crash_source();
        world.boot();
        world.connect();
        world.quiet();
        world.put_store_back(backup);
        world.connect();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::TargetRewound), "L6: a store of yesterday goes unnoticed");
    });
}

/// The same under an attached source whose header is not refreshed yet, and then the host dies. Its header is from before what
/// it saw published: that slot stands in the older store too, so the next attach would find nothing wrong and go on.
#[test]
fn l6_a_store_that_was_called_rewound_is_so_after_a_crash() {
    tell(&[("L6 a rewound store is forgotten by a crash", "L6: forgotten by a crash")], || {
        let mut world = streaming();
        let backup = world.back_up_store();
        world.write(V1, 8, 101);
        world.interval();
        world.go_without(&[]);
        assert!(world.state.head() > backup.state.head(), "it was published");
        world.put_store_back(backup);
        world.connect();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::TargetRewound), "the position rule, while it is attached");
        world.crash_source();
        world.boot();
        world.connect();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::TargetRewound), "L6: forgotten by a crash");
    });
}

/// The newer store is put back, as the person is told to: the refusal ends with the next connection, and what was written meanwhile is sent.
#[test]
fn l6_a_rewound_store_whose_newer_one_is_back_goes_on_by_itself() {
    tell(&[], || {
        let mut world = streaming();
        let older = world.back_up_store();
        world.write(V1, 8, 101);
        world.interval();
        world.go_without(&[]);
        let newer = world.back_up_store();
        assert!(newer.state.head() > older.state.head(), "it was published");
        for _ in 0..2 {
            world.put_store_back(older.clone());
            world.connect();
            world.interval();
            world.go_without(&[]);
            assert!(world.is_refused(1, RefusedWhy::TargetRewound), "the older store, each time");
        }
        world.write(V1, 0, 102);
        world.put_store_back(newer);
        world.tampered = false;
        world.connect();
        world.quiet();
        assert!(!world.is_refused(1, RefusedWhy::TargetRewound), "it goes on");
        assert!(world.publishes(1, 8, 101) && world.publishes(1, 0, 102));
    });
}

/// The same after a clean stop, which owes nothing: a header from before what was published last found itself in the older store, and
/// what that had lost was sent by nobody.
#[test]
fn l6_a_store_that_was_put_back_while_the_host_was_stopped_is_noticed() {
    tell(&[], || {
        let mut world = streaming();
        let backup = world.back_up_store();
        world.publish_without_header(8);
        world.stop_source();
        world.put_store_back(backup);
        world.boot();
        world.connect();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::TargetRewound), "L6: a store of before the stop goes unnoticed");
    });
}

/// The term is over, and the source asks for the layers above its position. Before the answer comes, one of them is acknowledged as
/// published, and its regions cool: rightly so. The answer names the same layer. Judged by the position that was asked with, it
/// touches a region that is cold and that nobody mentions, and a healthy volume is `Forked`.
#[test]
fn a_check_is_judged_by_the_position_at_the_time_of_the_answer() {
    tell(&[("hole: the position check races with cooling", "Forked for nothing")], || {
        let mut host = Host::streaming();
        let key = host.cut_of_both();
        let layers = [1, 2].map(|n| LayerKey { volume: volume(n), term: Term(u64::from(n) - 1), seq: Seq(2) }).to_vec();
        host.hear(ReceiverMessage::Void(Void { layers }));
        host.publish(2, &key);
        for n in [1, 2] {
            let layer = directed::layer(2, u64::from(n) - 1, directed::regions(0, 1));
            host.answer_ledger(n, vec![layer], directed::current(n, u64::from(n) - 1, true), Some(2));
            assert_eq!(directed::refused(&host, n), None, "Forked for nothing");
        }
    });
}

/// The claim is accepted, a layer of the new term is sent and published, and the host dies before its header named that term.
/// The next attach finds a layer of a term that it never confirmed: proof of a second writer, which there never was.
#[test]
fn a_term_is_durable_before_its_first_layer_is_sent() {
    tell(&[("the term is used before it is durable", "was refused as Forked")], || {
        let mut world = streaming();
        world.crash_source();
        world.write(V1, 0, 101);
        world.boot();
        world.connect();
        world.interval();
        world.go_without(&[Turn::Header]);
        world.interval();
        world.go_without(&[Turn::Header]);
        world.headers.clear();
        world.crash_source();
        world.boot();
        world.connect();
        world.quiet();
    });
}

/// Cut A is staged, cut B is being switched, when the receiver loses volume 1's part of A and the volume must claim anew. What A
/// held is to be sent again, in the new term. If the claim does not wait for the switch to end, B becomes the first layer of
/// that term, as a point, over an image that lacks A.
#[test]
fn a_claim_waits_for_a_switch_of_its_volume() {
    tell(&[("hole: a claim beside a switch", "L3: point")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Append]);
        world.write(V1, 8, 102);
        world.interval();
        assert!(world.switch.is_some(), "B is asked for");
        lose_layer_of(&mut world, 1);
        world.go_without(&[Turn::Append, Turn::Switch]);
        world.claims_only();
        world.go(&[Turn::Switch]);
        world.quiet();
    });
}

/// The receiver finds that it can never publish what it has of a volume's layer, though it had called it staged.
fn lose_layer_of(world: &mut World, n: u8) {
    let (ticket, body) = world.appends.pop_front().expect("a record to be appended");
    let Body::Layers(layers) = body else { panic!("a record of layers") };
    let lost = layers.members.iter().map(|m| m.key).filter(|k| k.volume == volume(n)).collect();
    let outcome = AppendOutcome::Unusable { layers: lost, text: "part 0 cannot be read".into() };
    world.at(target::Event::Appended { ticket, outcome });
}

// ---- T5, T6, T7: staged data

/// A record is on its way to the store, and stalls there; the receiver's disk dies with what the record names. If the source
/// sent that layer again under the same name, with what the host wrote since, the record that wakes up would name content that
/// no longer exists, and be accepted.
#[test]
fn t5_staged_data_that_is_gone_means_a_new_claim() {
    tell(&[("T5 lost staged data re-sent under the same seq", "another part than the record's")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Append]);
        let (_, stalled) = world.appends.pop_front().expect("a record of the cut");
        assert!(is_layers(&stalled));
        world.lose_landing();
        world.write(V1, 0, 102);
        world.connect();
        world.interval();
        world.go_without(&[Turn::Append, Turn::Switch]);
        world.claims_only();
        world.record_of_another(stalled);
        world.quiet();
    });
}

#[test]
fn t5_an_end_message_that_does_not_match_what_landed_is_refused() {
    tell(&[("END without digest", "T5")], directed::an_end_that_does_not_match_what_landed_is_lost);
}

/// A layer that turns granule 0 from a to b is staged, not published. The host writes a again, and a person asks for a compare.
/// Compared with the published image, a is equal and left out; then the layer comes in, and b stays for ever.
#[test]
fn t6_a_compare_waits_until_nothing_is_unpublished() {
    tell(&[("T6 compare beside an unpublished layer", "L3: point")], || {
        let mut world = streaming();
        let a = world.disks[&V1].content[0];
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Append]);
        world.write(V1, 0, a);
        world.to(source::Event::Resync { volume: V1 });
        world.interval();
        world.go_without(&[Turn::Append]);
        world.quiet();
    });
}

#[test]
fn t7_a_resume_leaves_alone_what_it_does_not_name() {
    tell(&[("T7 a resume truncates what it does not name", "T7")], directed::a_resume_truncates_only_the_layers_it_names);
}

// ---- T10, T11: kind and members

/// The cut of both volumes is staged as a point when the receiver loses volume 1's layer, and volume 1 claims anew. The receiver
/// restarts, which forgets what was said. Volume 2's layer must be said again as fuzzy: as a point it would be one without the
/// member that was cut with it.
#[test]
fn t11_when_one_member_claims_anew_the_others_are_no_point_without_it() {
    tell(&[("hole: member claims anew alone", "L3: the members")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.write(V2, 0, 102);
        world.interval();
        world.go_without(&[Turn::Append]);
        lose_layer_of(&mut world, 1);
        world.go_without(&[Turn::Append, Turn::ToTarget]);
        world.crash_target(false);
        world.connect();
        world.quiet();
    });
}

/// A point of both volumes was published; volume 1 has heard so, volume 2 has not, when the store is put back to what it was
/// before. Volume 1 is refused. Volume 2, whose parts are still there, may go on, but not with a point of itself alone.
#[test]
fn t11_a_point_that_the_store_forgot_is_not_said_again_by_half_of_its_members() {
    tell(&[("T11 a point is said again by half of its members", "half a point")], || {
        let mut host = Host::streaming();
        host.tick(&[1]);
        host.switch(vec![(1, directed::granules(0, 2)), (2, directed::granules(0, 2))]);
        let keys = [host.read(1, 1), host.read(2, 2)];
        host.end();
        let known = |host: &mut Host, n: u8| {
            host.answer_ledger(n, Vec::new(), directed::current(n, u64::from(n) - 1, false), Some(1));
        };
        host.reconnect();
        known(&mut host, 1);
        let published = LayerFate::Published { position: directed::at(2), kind: LayerKind::Point };
        host.answer_resume(1, 0, vec![(1, published)]);
        host.reconnect();
        known(&mut host, 2);
        host.answer_resume(2, 1, vec![(1, directed::landing(1, None, true))]);
        let end = host.end();
        assert_eq!(end.members.iter().map(|m| m.key).collect::<Vec<_>>(), [keys[1]]);
        assert_eq!(end.kind, LayerKind::Fuzzy, "half a point");
    });
}

/// Both volumes' layers of a demoted cut are staged, and the record of volume 1 is in, at a reset.
fn half_published_pass() -> (Host, [LayerKey; 2]) {
    let mut host = Host::streaming();
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, directed::granules(0, 2)), (2, directed::granules(0, 2))]);
    host.event(source::Event::Demoted { epoch, why: source::DemoteCause::SideBuffer });
    let keys = [host.read(1, 1), host.read(2, 2)];
    assert_eq!(host.end().kind, LayerKind::Fuzzy);
    host.hear(ReceiverMessage::Staged(Staged { layers: keys.to_vec() }));
    let published = Published { position: directed::at(2), kind: LayerKind::Fuzzy, layers: vec![keys[0]] };
    host.hear(ReceiverMessage::Published(published));
    host.reconnect();
    host.answer_ledger(2, Vec::new(), directed::current(2, 1, false), Some(2));
    host.did.clear();
    (host, keys)
}

/// Layers of a pass are published one by one: that volume 1's is, is no reason to read again what volume 2 had staged, and lost,
/// under the name that a record of its first content may still come in with.
#[test]
fn t5_what_a_half_published_pass_had_staged_and_lost_is_claimed_anew() {
    tell(&[("T5 lost staged data re-sent under the same seq", "T5")], || {
        let (mut host, keys) = half_published_pass();
        host.answer_resume(2, 1, vec![(1, directed::landing(0, None, false))]);
        let again = host.did(|a| matches!(a, source::Action::ReadPart(part) if part.key == keys[1]).then_some(()));
        assert!(again.is_none(), "T5: read again under the same name");
        assert!(host.said.iter().any(|m| matches!(m, SourceMessage::ReadLedger(q) if q.volume == V2)), "T5: claims anew");
    });
}

#[test]
fn the_end_of_a_half_published_pass_that_is_known_is_not_said_again() {
    let (mut host, keys) = half_published_pass();
    let said = SaidEnd { kind: LayerKind::Fuzzy, members: keys.to_vec() };
    host.answer_resume(2, 1, vec![(1, directed::landing(1, Some(said), true))]);
    assert!(host.says_no_end());
}

#[test]
fn t10_a_demoted_epoch_is_said_in_one_message() {
    tell(
        &[("T10 a demoted epoch is said per member", "T10")],
        directed::an_overflow_demotes_the_whole_group_and_is_said_in_one_message,
    );
}

#[test]
fn t10_kind_and_members_are_said_together() {
    let story = directed::kind_and_members_are_said_once_after_the_last_read_of_every_member;
    tell(&[("kind said per member", "(Point, 1)")], story);
}

// ---- L5, L7, L8, L9, L10, T17

/// An idle host: its first sync is a pass, and nothing is ever written again. Without a cut of nothing after it, weeks of sync
/// end in an image that no point names.
#[test]
fn l5_the_last_pass_of_an_idle_host_is_followed_by_a_point() {
    tell(&[("hole: no point after the last pass", "L5: nothing to restore")], || {
        let world = streaming();
        let restorable = world.state.volumes().all(|(_, known)| !known.ends_fuzzy());
        assert!(restorable, "L5: nothing to restore");
    });
}

/// Staged is durable at the receiver, and not published: it dies with its term, or with the receiver's disk.
#[test]
fn l7_staged_clears_nothing() {
    tell(&[("L7 staged clears", "L2:")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go_without(&[Turn::Append]);
        world.cool_wanted(V1);
        world.check_no_false_clean();
        world.quiet();
    });
}

/// The store takes no record for an hour, and the host goes on writing: epochs wait, and so few of them that memory is bounded.
#[test]
fn l8_a_store_that_takes_nothing_does_not_pile_up_epochs() {
    tell(&[("L8 epochs pile up", "L8: 7 layers")], || {
        let mut world = streaming();
        for value in 0..20 {
            world.write(V1, value % GRANULES, 1000 + value);
            world.interval();
            world.go_without(&[Turn::Append]);
            let layers = world.target.unpublished().0 / 2;
            assert!(layers <= super::world::source_limits().unpublished_layers_max, "L8: {layers} layers of each volume");
        }
        world.quiet();
    });
}

/// A peer says that a volume of 512 bytes has 2^60 regions; believed, that would be in the ledger for ever.
#[test]
fn l9_an_end_message_is_held_against_the_claim() {
    tell(&[("L9 an end message is believed", "L9: a region beyond the volume")], || {
        let mut gateway = directed::claimed();
        gateway.part(key(1, 0, 1), 0, 1);
        let mut end = directed::ending(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
        end.members[0].whole_regions.insert(RegionIndex(1 << 60));
        gateway.hear(1, SourceMessage::EpochEnd(end));
        let appended = gateway.append();
        assert!(appended.is_none(), "L9: a region beyond the volume is recorded");
    });
}

/// The last tick found nothing dirty, since a switch took it all; nothing of that is published. Lag goes on growing.
#[test]
fn l10_lag_counts_from_what_is_published() {
    tell(&[("L10 quiet beside an unpublished layer", "L10: lag")], || {
        let mut host = Host::streaming();
        host.tick(&[]);
        host.cut_of_both();
        host.tick(&[]);
        let first = host.source.status(host.now).volumes[0].lag;
        host.tick(&[]);
        let later = host.source.status(host.now).volumes[0].lag;
        assert!(later > first, "L10: lag {first:?} → {later:?} while a layer waits");
    });
}

#[test]
fn t17_a_volume_without_header_whose_ledger_has_layers_is_forked() {
    let story = directed::a_ledger_that_lost_the_position_is_rewound_and_one_without_header_is_forked;
    tell(&[("T17 no header, layers there: not refused", "T17")], story);
}

/// A burst is in a cut, and the line breaks before it carried a whole part of it, again and again. What arrived of a part goes with its
/// connection: the same would be sent for ever, and no cut could begin beside it.
#[test]
fn what_is_read_again_gets_over_a_slow_line_that_breaks() {
    tell(&[("a slow part ends of a slice only", "no part of it arrived")], || {
        let slice_time = source::Limits::default().slice_time;
        let mut host = Host::streaming();
        host.tick(&[1]);
        host.switch(vec![(1, directed::granules(0, 8 * 4)), (2, GranuleSet::new())]);
        let mut arrived = 0;
        for connection in 0.. {
            assert!(connection < 8, "no part of it arrived, or not enough of them: {arrived}");
            let order = |host: &mut Host| {
                host.did(|a| match a {
                    Action::ReadPart(p) if p.key.volume == volume(1) => Some((p.key, p.part, p.from)),
                    _ => None,
                })
            };
            let (key, part, from) = order(&mut host).expect("it is read on");
            assert_eq!(part, arrived, "from where it was");
            // Two regions in this time, and it breaks before there are four.
            host.now += slice_time;
            host.tick(&[]);
            let next = RegionIndex((from.0 + 2).min(8));
            if host.did(|a| matches!(a, Action::FinishPart { .. }).then_some(())).is_some() || next.0 == 8 {
                let read = PartRead {
                    connection: host.connection(),
                    key,
                    part,
                    sent: Some(SentPart { bytes: 16, footer_digest: [1; 32] }),
                    next,
                    done: next.0 == 8,
                    cut_held: true,
                    granules: 1,
                    left: GranuleSet::new(),
                    unreadable: GranuleSet::new(),
                    zero_regions: RegionSet::new(),
                };
                host.event(Event::PartRead(Box::new(read)));
                arrived += 1;
                if next.0 == 8 {
                    break;
                }
                order(&mut host).expect("the next part");
            }
            host.reconnect();
            host.did.clear();
            for n in [1, 2] {
                host.answer_ledger(n, Vec::new(), directed::current(n, u64::from(n) - 1, false), Some(1));
            }
            host.answer_resume(1, 0, vec![(1, directed::landing(arrived, None, false))]);
            host.answer_resume(2, 1, vec![(1, directed::landing(0, None, false))]);
        }
        let end = host.end();
        assert_eq!((end.kind, end.members[0].parts), (LayerKind::Fuzzy, 4));
    });
}

/// A volume joins a group of busy ones. In a cut, its first sync holds up every point of the others until it is done; in a pass
/// beside them, a part of it as big as all the credit there is does the same, and the next part after it.
#[test]
fn a_first_sync_holds_up_nobody_elses_points() {
    let mistakes =
        [("a first sync joins the cut", "a first sync is a pass"), ("a pass takes all the credit", "waits for the pass")];
    tell(&mistakes, || {
        let limits = source::Limits { part_bytes: 56 << 20, slice_bytes: 1 << 30, ..super::world::source_limits() };
        let mut host = Host::with(limits);
        host.add(1, None, None, directed::regions(0, 8), source::Start::Unclean);
        host.add(2, None, None, RegionSet::new(), source::Start::Clean);
        host.connect_with(32 << 20);
        for n in [1, 2] {
            host.answer_ledger(n, Vec::new(), None, None);
            host.answer_claim(n, u64::from(n) - 1);
        }
        host.tick(&[2]);
        let kinds = |host: &Host| -> Vec<LayerKind> {
            host.did.iter().filter_map(|a| if let source::Action::Switch { kind, .. } = a { Some(*kind) } else { None }).collect()
        };
        assert_eq!(kinds(&host), [LayerKind::Fuzzy], "a first sync is a pass");
        host.switch(vec![(1, directed::granules(0, 32))]);
        host.tick(&[2]);
        host.switch(vec![(2, directed::granules(0, 1))]);
        let is_read = |host: &mut Host, n: u8| {
            host.did(|a| matches!(a, source::Action::ReadPart(part) if part.key.volume == volume(n)).then_some(())).is_some()
        };
        assert!(is_read(&mut host, 1), "the pass is read");
        assert!(is_read(&mut host, 2), "the cut waits for the pass");
    });
}

/// A cut is over its time: one member is read, the other's part goes over a slow line, behind others. It is waited for, as long
/// as it takes; only one that waits long for its disk is given up, all its waits together: a disk that answers every half minute
/// would keep the others' points back for as many days.
#[test]
fn a_slow_line_is_not_taken_for_a_hung_disk() {
    tell(&[("a slow line is a hung disk", "the line is slow")], || {
        let mut host = Host::streaming();
        host.tick(&[1]);
        host.switch(vec![(1, directed::granules(0, 2)), (2, directed::granules(0, 2))]);
        host.read(2, 2);
        let asked_anew = |host: &Host| host.said.iter().any(|m| matches!(m, SourceMessage::ReadLedger(_)));
        let mut goes_on = |ticks: u64, waits_for_disk: &dyn Fn(u64) -> bool| {
            for i in 0..ticks {
                host.now += 400;
                let sample = source::Sample { waits_for_disk: waits_for_disk(i), ..source::Sample::default() };
                host.sampled([(V1, sample), (V2, source::Sample::default())]);
            }
            asked_anew(&host)
        };
        assert!(!goes_on(100, &|_| false), "the line is slow");
        assert!(!goes_on(100, &|i| i % 2 == 0), "the disk is well: what is asked of it has come the next time");
        assert!(!goes_on(7, &|_| true), "it may take a while");
        assert!(!goes_on(10, &|_| false), "the line again");
        assert!(goes_on(3, &|_| true), "that was too long, all together, and the others' points wait");
    });
}

/// What was landed under an old term has taken all that may be granted, and the host has rebooted. That data is dead, but only
/// the new claim lets it go: a gateway that keeps the claim waiting for room stays full for ever.
#[test]
fn l5_a_full_store_takes_the_claim_that_frees_it() {
    tell(&[("L5 a full store takes no claim", "the claim waits for room")], || {
        let mut gateway = directed::claimed();
        gateway.part(key(1, 0, 1), 0, 1);
        let full = target::Event::Grantable { free_bytes: 0, disk_bytes: 0, spare_bytes: 32 << 20, reserve_bytes: 64 << 20 };
        gateway.event(full);
        gateway.hello(2, 2, 1);
        let claim = Claim { volume: meta(1), looked: gateway.state.head(), source: name("host") };
        let request = farside_wire::ClaimRequest { id: farside_wire::RequestId(1), claim };
        gateway.hear(2, SourceMessage::Claim(request));
        let appended = gateway.append().map(|a| a.1);
        assert_eq!(appended, Some(Verdict::Accepted), "the claim waits for room");
        let freed = |a: &target::Action| matches!(a, target::Action::DropLayer { key: k } if *k == key(1, 0, 1));
        assert!(gateway.did.iter().any(freed), "what the old term left goes");
    });
}
