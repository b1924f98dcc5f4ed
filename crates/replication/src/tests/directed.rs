//! Rare orders of events, written out: one rule each, by its number.

use farside_ledger::{Body, CutTime, EpochInfo, Grid, LayerKind, PartEntry, Policy, Record, Stamp, State, Verdict, VoidReason};
use farside_region::{
    BootId, EpochId, GranuleIndex, GranuleRun, GranuleSet, GroupId, LayerKey, LedgerPosition, RecordDigest, RegionIndex,
    RegionRange, RegionSet, Seq, Slot, Term, VolumeId,
};
use farside_wire::{
    ClaimOutcome, ClaimVerdict, Credit, CurrentVolume, EndMember, EpochEnd, Features, HeldLayer, InstanceId, LayerFate,
    LedgerLayer, LedgerSlice, Lost, Notice, Published, ReceiverHello, ReceiverMessage, RequestId, ResumeAnswer, ResumeQuery,
    ResumedLayer, SaidEnd, SourceHello, SourceMessage, VersionRange, Void,
};

use super::world::{GRANULES, layer_digest, meta, name, source_limits, volume};
use crate::source::{
    self, Action, Behind, DemoteCause, Ended, Event, PartRead, RefusedWhy, Sample, SentPart, Source, Start, SwitchDone, Tick,
    VolumeSetup,
};
use crate::target::{self, AppendOutcome, SessionId, Target, Ticket};

pub(super) fn at(slot: u64) -> LedgerPosition {
    LedgerPosition { slot: Slot(slot), digest: RecordDigest([slot as u8; 32]) }
}

fn everything() -> RegionSet {
    regions(0, 8)
}

pub(super) fn regions(start: u64, count: u64) -> RegionSet {
    let mut set = RegionSet::new();
    set.insert_range(RegionRange { start: RegionIndex(start), count });
    set
}

pub(super) fn granules(start: u64, count: u64) -> GranuleSet {
    let mut set = GranuleSet::new();
    set.insert_run(&super::world::geometry(), GranuleRun { start: GranuleIndex(start), count });
    set
}

pub(super) fn info(epoch: u64) -> EpochInfo {
    EpochInfo { boot: BootId([1; 16]), mono_before_ns: epoch, mono_after_ns: epoch, wall_ms: 0 }
}

/// A source and what it said last, answered by hand.
pub(super) struct Host {
    pub(super) source: Source,
    pub(super) now: u64,
    pub(super) said: Vec<SourceMessage>,
    pub(super) did: Vec<Action>,
    pub(super) epoch: u64,
    /// What its receiver can do.
    features: Features,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::with(source_limits())
    }

    pub(super) fn with(limits: source::Limits) -> Self {
        Self::of(limits, false)
    }

    /// Of a host that stands in for another, or not.
    pub(super) fn of(limits: source::Limits, stands_in: bool) -> Self {
        Self::that(limits, stands_in, false)
    }

    /// Of a host that asks the gateway for the key of its group.
    pub(super) fn that_asks(features: Features) -> Self {
        Self { features, ..Self::that(source::Limits::default(), false, true) }
    }

    fn that(limits: source::Limits, stands_in: bool, asks_for_key: bool) -> Self {
        let config = source::Config {
            source: name("host"),
            group: name("default"),
            stands_in,
            asks_for_key,
            instance: InstanceId([1; 16]),
            boot: BootId([1; 16]),
            policy: Policy::without_grid(3, 0),
            policy_is_said: true,
            layer_digest,
            limits,
        };
        let features = Features(0);
        Self { source: Source::new(config), now: 1000, said: Vec::new(), did: Vec::new(), epoch: 0, features }
    }

    pub(super) fn add(&mut self, n: u8, confirmed: Option<u64>, position: Option<u64>, hot: RegionSet, start: Start) {
        let setup = VolumeSetup {
            meta: meta(n),
            confirmed: confirmed.map(Term),
            position: position.map(at),
            inherited: hot,
            start,
            tracking_lost: false,
            paused: false,
        };
        self.event(Event::AddVolume(Box::new(setup)));
    }

    pub(super) fn event(&mut self, event: Event) {
        self.now += 1;
        let mut actions = Vec::new();
        self.source.step(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { message, .. } => self.said.push(*message),
                Action::Report { .. } => {}
                other => self.did.push(other),
            }
        }
    }

    pub(super) fn hear(&mut self, message: ReceiverMessage) {
        self.event(Event::Message { connection: self.connection(), message: Box::new(message) });
    }

    pub(super) fn connection(&self) -> u64 {
        1 + self.epoch / 1000
    }

    pub(super) fn connect(&mut self) {
        self.connect_with(1 << 30);
    }

    pub(super) fn connect_with(&mut self, granted_bytes: u64) {
        let connection = self.connection();
        self.event(Event::Connected { connection });
        self.greet(self.features);
        self.hear(ReceiverMessage::Credit(Credit { granted_bytes }));
    }

    fn greet(&mut self, features: Features) {
        self.hear(ReceiverMessage::Hello(ReceiverHello { version: 1, features, store: [0; 16] }));
    }

    pub(super) fn reconnect(&mut self) {
        let connection = self.connection();
        self.event(Event::Disconnected { connection, how: Ended::Broken });
        self.epoch += 1000;
        self.said.clear();
        self.connect();
    }

    /// Takes the one message that this picks.
    pub(super) fn take<T>(&mut self, pick: impl Fn(&SourceMessage) -> Option<T>) -> T {
        let at = self.said.iter().position(|m| pick(m).is_some()).unwrap_or_else(|| panic!("not said: {:?}", self.said));
        pick(&self.said.remove(at)).expect("just seen")
    }

    pub(super) fn answer_ledger(&mut self, n: u8, layers: Vec<LedgerLayer>, current: Option<CurrentVolume>, head: Option<u64>) {
        self.answer_slice((n, true), layers, current, head);
    }

    /// The same, of a ledger that does not carry the position.
    pub(super) fn answer_rewound(&mut self, n: u8, current: Option<CurrentVolume>, head: u64) {
        self.answer_slice((n, false), Vec::new(), current, Some(head));
    }

    fn answer_slice(
        &mut self,
        (n, ancestor): (u8, bool),
        layers: Vec<LedgerLayer>,
        current: Option<CurrentVolume>,
        head: Option<u64>,
    ) {
        let id = self.take(|m| match m {
            SourceMessage::ReadLedger(q) if q.volume == volume(n) => Some(q.id),
            _ => None,
        });
        let head = head.map(at);
        let slice = LedgerSlice { id, volume: volume(n), ancestor, layers, more: false, head, current };
        self.hear(ReceiverMessage::LedgerSlice(slice));
    }

    pub(super) fn answer_claim(&mut self, n: u8, slot: u64) {
        let id = self.take(|m| match m {
            SourceMessage::Claim(q) if q.claim.volume.id == volume(n) => Some(q.id),
            _ => None,
        });
        let outcome = ClaimOutcome::Accepted { position: at(slot) };
        self.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(n), outcome }));
        let position = Some(at(slot));
        self.event(Event::HeaderDurable { volume: volume(n), confirmed: Some(Term(slot)), position });
    }

    pub(super) fn answer_resume(&mut self, n: u8, term: u64, fates: Vec<(u64, LayerFate)>) {
        let id = self.take(|m| match m {
            SourceMessage::Resume(q) if q.volume == volume(n) => Some(q.id),
            _ => None,
        });
        let published = fates.iter().filter(|(_, fate)| matches!(fate, LayerFate::Published { .. }));
        let last_seq = Seq(published.map(|(seq, _)| *seq).max().unwrap_or(0));
        let layers = fates.into_iter().map(|(seq, fate)| ResumedLayer { seq: Seq(seq), fate }).collect();
        let answer = ResumeAnswer { id, volume: volume(n), term: Some(Term(term)), last_seq, layers };
        self.hear(ReceiverMessage::ResumeAnswer(answer));
    }

    /// One without volumes, for a receiver that can do this.
    pub(super) fn to(features: Features) -> Self {
        Self { features, ..Self::new() }
    }

    /// Two volumes in an empty ledger, claimed at slots 0 and 1, with nothing dirty.
    pub(super) fn streaming() -> Self {
        Self::streaming_to(Features(0))
    }

    /// The same, to a receiver that can do this.
    pub(super) fn streaming_to(features: Features) -> Self {
        Self { features, ..Self::new() }.with_two_volumes()
    }

    pub(super) fn with_two_volumes(self) -> Self {
        let mut host = self;
        for n in [1, 2] {
            host.add(n, None, None, RegionSet::new(), Start::Clean);
        }
        host.connect();
        for n in [1, 2] {
            host.answer_ledger(n, Vec::new(), None, None);
            host.answer_claim(n, u64::from(n) - 1);
        }
        host
    }

    pub(super) fn tick(&mut self, dirty: &[u8]) {
        self.now += 20;
        let sample = |n: u8| Sample { dirty_bytes: u64::from(dirty.contains(&n)) * 16, ..Sample::default() };
        self.sampled([1, 2].map(|n| (volume(n), sample(n))));
    }

    pub(super) fn sampled(&mut self, volumes: impl IntoIterator<Item = (VolumeId, Sample)>) {
        let volumes = volumes.into_iter().collect();
        let time = CutTime { boot: BootId([1; 16]), mono_ns: self.now, wall_ms: 0 };
        self.event(Event::Tick(Tick { time, volumes }));
    }

    /// A tick in which the open map of the one volume holds so much.
    pub(super) fn dirt(&mut self, dirty_bytes: u64) {
        self.now += 20;
        let volumes = vec![(volume(1), Sample { dirty_bytes, ..Sample::default() })];
        let time = CutTime { boot: BootId([1; 16]), mono_ns: self.now, wall_ms: 0 };
        self.event(Event::Tick(Tick { time, volumes }));
    }

    pub(super) fn did<T>(&mut self, pick: impl Fn(&Action) -> Option<T>) -> Option<T> {
        let at = self.did.iter().position(|a| pick(a).is_some())?;
        pick(&self.did.remove(at))
    }

    /// Does the switch that was asked for, with these sets.
    pub(super) fn switch(&mut self, sets: Vec<(u8, GranuleSet)>) -> EpochId {
        self.did(|a| matches!(a, Action::Switch { .. }).then_some(())).expect("a switch");
        self.epoch += 1;
        let epoch = EpochId(self.epoch);
        let members = sets.into_iter().map(|(n, set)| (volume(n), set)).collect();
        self.event(Event::SwitchDone(SwitchDone { epoch, info: info(self.epoch), members }));
        epoch
    }

    /// Reads the part that was asked for of this volume, to its end.
    pub(super) fn read(&mut self, n: u8, footer: u8) -> LayerKey {
        self.read_without(n, footer, GranuleSet::new())
    }

    /// The same, where this could not be read.
    pub(super) fn read_without(&mut self, n: u8, footer: u8, unreadable: GranuleSet) -> LayerKey {
        self.read_as(n, footer, unreadable, RegionSet::new())
    }

    /// The same, where this could not be read, and these were read as zero.
    pub(super) fn read_as(&mut self, n: u8, footer: u8, unreadable: GranuleSet, zero_regions: RegionSet) -> LayerKey {
        let (key, part) = self
            .did(|a| match a {
                Action::ReadPart(p) if p.key.volume == volume(n) => Some((p.key, p.part)),
                _ => None,
            })
            .expect("a part to read");
        let read = PartRead {
            connection: self.connection(),
            key,
            part,
            sent: Some(SentPart { bytes: 16, footer_digest: [footer; 32] }),
            next: RegionIndex(8),
            done: true,
            cut_held: true,
            granules: 1,
            left: GranuleSet::new(),
            unreadable,
            zero_regions,
        };
        self.event(Event::PartRead(Box::new(read)));
        key
    }

    pub(super) fn end(&mut self) -> EpochEnd {
        self.take(|m| match m {
            SourceMessage::EpochEnd(end) => Some(end.clone()),
            _ => None,
        })
    }

    pub(super) fn says_no_end(&self) -> bool {
        !self.said.iter().any(|m| matches!(m, SourceMessage::EpochEnd(_)))
    }
}

pub(super) fn current(n: u8, term: u64, has_layers: bool) -> Option<CurrentVolume> {
    Some(CurrentVolume {
        meta: meta(n),
        term: Term(term),
        last_seq: Seq(0),
        has_layers,
        point_due: false,
        claimant: None,
        newest_point: None,
        tracking_lost: None,
    })
}

pub(super) fn layer(slot: u64, term: u64, touched: RegionSet) -> LedgerLayer {
    LedgerLayer { slot: Slot(slot), term: Term(term), regions: touched }
}

pub(super) fn landing(parts: u32, end: Option<SaidEnd>, staged: bool) -> LayerFate {
    LayerFate::Landing { parts, end, staged }
}

pub(super) fn refused(host: &Host, n: u8) -> Option<RefusedWhy> {
    let status = host.source.status(host.now);
    match status.volumes[usize::from(n) - 1].state {
        source::State::Refused(why) => Some(why),
        _ => None,
    }
}

/// What nobody has said takes the place of nothing, where the receiver can tell.
#[test]
fn a_policy_that_nobody_said_is_sent_as_that() {
    let policy = Policy::without_grid(10, 1000);
    let mut host = Host::to(Features(Features::GRID.0 | Features::DEFAULTS.0));
    host.event(Event::SetPolicy { policy: policy.clone(), is_said: false });
    host.connect();
    assert!(host.said.contains(&SourceMessage::DefaultRetention(policy.clone())), "{:?}", host.said);
    host.event(Event::SetPolicy { policy: policy.clone(), is_said: true });
    assert_eq!(host.said.last(), Some(&SourceMessage::Retention(policy.clone())));

    let mut older = Host::to(Features::GRID);
    older.event(Event::SetPolicy { policy: policy.clone(), is_said: false });
    older.connect();
    assert!(older.said.contains(&SourceMessage::Retention(policy)), "it knows no other way: {:?}", older.said);
}

/// A receiver that knows no grid must not give up what the grid keeps: it is told to keep everything for as long.
#[test]
fn a_grid_is_said_to_who_knows_grids_and_to_others_as_a_span() {
    let hours = |n: u64| std::time::Duration::from_secs(3600 * n);
    let grid = Grid::of([(hours(1), hours(24)), (hours(24), hours(240))]);
    let policy = Policy { grid, ..Policy::without_grid(5, 1000) };
    let mut host = Host::new();
    host.event(Event::SetPolicy { policy: policy.clone(), is_said: true });
    host.connect();
    let settings = |m: &SourceMessage| match m {
        SourceMessage::Settings(settings) => Some((settings.keep, settings.span_ms)),
        _ => None,
    };
    assert_eq!(host.take(settings), (5, 264 * 3_600_000), "as long as the last cell is needed");
    host.event(Event::SetPolicy { policy: Policy::without_grid(6, 7), is_said: true });
    assert_eq!(host.take(settings), (6, 7));

    host.event(Event::Disconnected { connection: host.connection(), how: Ended::Broken });
    host.epoch += 1000;
    host.event(Event::SetPolicy { policy: policy.clone(), is_said: true });
    host.event(Event::Connected { connection: host.connection() });
    host.greet(Features(u64::MAX));
    let retention = |m: &SourceMessage| match m {
        SourceMessage::Retention(policy) => Some(policy.clone()),
        _ => None,
    };
    assert_eq!(host.take(retention), policy);
}

#[test]
fn the_position_rule_judges_by_the_bits_read_at_attach() {
    // (layer's term, what it touches, what was hot) → refused?
    let cases = [
        (5, regions(2, 2), regions(2, 3), None),
        (5, regions(2, 2), regions(3, 3), Some(RefusedWhy::Forked)),
        (6, regions(2, 2), regions(2, 3), Some(RefusedWhy::Forked)),
    ];
    for (term, touched, hot, expected) in cases {
        let mut host = Host::new();
        host.add(1, Some(5), Some(5), hot.clone(), Start::Clean);
        host.connect();
        host.answer_ledger(1, vec![layer(7, term, touched.clone())], current(1, term, true), Some(7));
        assert_eq!(refused(&host, 1), expected, "term {term}, touched {touched:?}, hot {hot:?}");
        if expected.is_none() {
            // After `clean`, what such a layer touched is compared in full.
            assert!(touched.iter().all(|r| host.source.mentions(volume(1), r)));
            assert!(!host.source.mentions(volume(1), RegionIndex(0)));
        }
    }
}

#[test]
pub(super) fn a_ledger_that_lost_the_position_is_rewound_and_one_without_header_is_forked() {
    let mut host = Host::new();
    host.add(1, Some(5), Some(9), everything(), Start::Unclean);
    host.connect();
    host.answer_rewound(1, None, 7);
    assert_eq!(refused(&host, 1), Some(RefusedWhy::TargetRewound));

    let mut host = Host::new();
    host.add(1, None, None, everything(), Start::Unclean);
    host.connect();
    host.answer_ledger(1, vec![layer(3, 2, regions(0, 1))], current(1, 2, true), Some(3));
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked), "T17");
}

#[test]
fn accept_sets_every_bit_before_it_claims_and_compares_all() {
    let mut host = Host::new();
    host.add(1, None, None, RegionSet::new(), Start::Unclean);
    host.connect();
    host.answer_ledger(1, vec![layer(3, 2, regions(0, 1))], current(1, 2, true), Some(3));
    host.event(Event::Accept { volume: volume(1) });
    assert!(host.said.iter().all(|m| !matches!(m, SourceMessage::ReadLedger(_) | SourceMessage::Claim(_))), "T3");
    assert!(host.did(|a| matches!(a, Action::HeatAll { .. }).then_some(())).is_some());
    host.event(Event::AllHot { volume: volume(1) });
    host.answer_ledger(1, Vec::new(), current(1, 2, true), Some(3));
    host.answer_claim(1, 4);
    assert_eq!(refused(&host, 1), None);
    assert_eq!(host.source.owed(volume(1)).granule_count(&super::world::geometry()), GRANULES);
    assert_eq!(host.source.status(host.now).volumes[0].state, source::State::Behind(Behind::Comparing));
}

#[test]
fn a_fenced_or_shrunken_volume_is_refused() {
    for (generation, bytes, expected) in [(2, GRANULES * 16, RefusedWhy::Fenced), (1, GRANULES * 32, RefusedWhy::Shape)] {
        let mut host = Host::new();
        host.add(1, None, None, everything(), Start::Unclean);
        host.connect();
        let mut theirs = current(1, 2, false).expect("some");
        theirs.meta.generation = farside_region::Generation(generation);
        theirs.meta.geometry = farside_region::Geometry::with_shape(bytes, 4, 2).expect("valid");
        host.answer_ledger(1, Vec::new(), Some(theirs), Some(2));
        assert_eq!(refused(&host, 1), Some(expected));
    }
}

/// A stand-in's disk may be larger, and have touched what is beyond ours. The connection is the whole group's.
#[test]
fn a_volume_smaller_than_what_was_published_is_refused_and_the_others_of_its_group_go_on() {
    let theirs = |generation| {
        let mut theirs = current(1, 9, true).expect("some");
        theirs.meta.generation = farside_region::Generation(generation);
        theirs.meta.geometry = farside_region::Geometry::with_shape(GRANULES * 32, 4, 2).expect("valid"); // 16 regions
        Some(theirs)
    };
    let disconnects = |a: &Action| matches!(a, Action::Disconnect { .. }).then_some(());
    for (generation, confirmed, expected) in [
        (2, Some(2), RefusedWhy::Fenced),
        (2, None, RefusedWhy::Fenced),
        (1, Some(2), RefusedWhy::Shape),
        (1, None, RefusedWhy::Shape),
    ] {
        let mut host = Host::new();
        host.add(1, confirmed, confirmed, everything(), Start::Unclean);
        host.add(2, None, None, everything(), Start::Unclean);
        host.connect();
        host.answer_ledger(1, vec![layer(10, 9, regions(0, 16))], theirs(generation), Some(10));
        assert!(host.did(disconnects).is_none(), "the receiver said nothing wrong");
        assert_eq!(refused(&host, 1), Some(expected));
        assert!(!host.source.mentions(volume(1), RegionIndex(15)));
        host.answer_ledger(2, Vec::new(), None, Some(10));
        host.answer_claim(2, 11);
        host.tick(&[2]);
        assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_some(), "the other one publishes");
        if expected == RefusedWhy::Fenced {
            // Taken back, it is still too small to publish; larger again, it is asked anew.
            host.event(Event::Accept { volume: volume(1) });
            host.event(Event::AllHot { volume: volume(1) });
            host.tick(&[]);
            host.answer_ledger(1, vec![layer(10, 9, regions(0, 16))], theirs(generation), Some(10));
            assert_eq!(refused(&host, 1), Some(RefusedWhy::Shape));
            assert!(host.did(disconnects).is_none());
        }
    }
    let mut host = Host::new();
    host.add(1, Some(2), Some(2), everything(), Start::Unclean);
    host.connect();
    host.answer_ledger(1, vec![layer(10, 9, regions(0, 17))], theirs(2), Some(10));
    assert!(host.did(disconnects).is_some(), "beyond the ledger's own volume");
}

#[test]
fn nothing_is_sent_before_the_term_is_durable() {
    let mut host = Host::new();
    host.add(1, None, None, everything(), Start::Unclean);
    host.connect();
    host.answer_ledger(1, Vec::new(), None, None);
    let id = host.take(|m| match m {
        SourceMessage::Claim(q) => Some(q.id),
        _ => None,
    });
    let outcome = ClaimOutcome::Accepted { position: at(0) };
    host.hear(ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: volume(1), outcome }));
    host.tick(&[]);
    assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_none(), "§4.5, rule 4");
    host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(0)), position: Some(at(0)) });
    assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_some());
}

#[test]
fn a_digest_key_is_adopted_before_the_claim() {
    let mut host = Host::new();
    host.add(1, Some(2), Some(2), everything(), Start::Unclean);
    host.connect();
    let mut theirs = current(1, 2, false).expect("some");
    theirs.meta.digest_key = [42; 32].into();
    host.answer_ledger(1, Vec::new(), Some(theirs), Some(2));
    let key = host.take(|m| match m {
        SourceMessage::Claim(q) => Some(q.claim.volume.digest_key),
        _ => None,
    });
    assert_eq!(key, [42; 32].into());
    assert!(host.did(|a| matches!(a, Action::AdoptMeta { .. }).then_some(())).is_some());
}

#[test]
pub(super) fn kind_and_members_are_said_once_after_the_last_read_of_every_member() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, granules(0, 2)), (2, granules(4, 1))]);
    host.read(1, 1);
    assert!(host.says_no_end(), "T10: the other member is still being read");
    host.read(2, 2);
    let end = host.end();
    assert_eq!((end.kind, end.members.len()), (LayerKind::Point, 2));
    assert!(host.did(|a| matches!(a, Action::Release { epoch: e } if *e == epoch).then_some(())).is_some());
}

#[test]
pub(super) fn an_overflow_demotes_the_whole_group_and_is_said_in_one_message() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, granules(0, 2)), (2, granules(4, 1))]);
    host.read(1, 1);
    host.event(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
    host.read(2, 2);
    let end = host.end();
    assert_eq!((end.kind, end.members.len()), (LayerKind::Fuzzy, 2), "T10");
    assert!(host.says_no_end());
}

#[test]
fn an_empty_member_has_a_layer_too() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.read(1, 1);
    let end = host.end();
    assert_eq!(end.kind, LayerKind::Point);
    assert_eq!(end.members.iter().map(|m| m.parts).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn a_layer_under_way_at_a_reset_is_read_again_as_fuzzy_and_later_ones_with_it() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, granules(0, 2))]);
    host.read(1, 1);
    host.read(2, 2);
    host.end();
    host.tick(&[1]);
    host.switch(vec![(1, granules(8, 2)), (2, granules(8, 2))]);
    host.read(1, 3);
    host.read(2, 4);
    host.end();
    host.reconnect();
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), current(n, u64::from(n) - 1, false), Some(1));
    }
    // Of volume 1's first layer nothing arrived; everything else did.
    host.answer_resume(1, 0, vec![(1, landing(0, None, false)), (2, landing(1, None, false))]);
    host.answer_resume(2, 1, vec![(1, landing(1, None, true)), (2, landing(1, None, true))]);
    let second = host.end();
    assert_eq!((second.kind, second.members.len()), (LayerKind::Fuzzy, 2), "T1: later ones too");
    assert!(host.says_no_end(), "the first is still being read");
    let key = host.read(1, 9);
    assert_eq!(key.seq, Seq(1));
    let first = host.end();
    assert_eq!((first.kind, first.members.len()), (LayerKind::Fuzzy, 2));
}

#[test]
fn a_cut_that_arrived_whole_survives_a_reset() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, granules(0, 2))]);
    let members = vec![host.read(1, 1), host.read(2, 2)];
    host.end();
    host.reconnect();
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), current(n, u64::from(n) - 1, false), Some(1));
    }
    let said = SaidEnd { kind: LayerKind::Point, members };
    host.answer_resume(1, 0, vec![(1, landing(1, Some(said), true))]);
    // The receiver crashed between: it has the parts and no end message.
    host.answer_resume(2, 1, vec![(1, landing(1, None, false))]);
    let end = host.end();
    assert_eq!((end.kind, end.members.len()), (LayerKind::Point, 2), "T10: said again where they differ");
}

#[test]
fn staged_data_that_is_gone_means_a_new_claim_and_the_others_go_on_without() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, granules(0, 2))]);
    let keys = [host.read(1, 1), host.read(2, 2)];
    host.end();
    host.hear(ReceiverMessage::Lost(Lost { layers: vec![keys[0]] }));
    host.answer_ledger(1, Vec::new(), current(1, 0, false), Some(1));
    assert!(host.did(|a| matches!(a, Action::KeepHot { .. }).then_some(())).is_some(), "T5");
    host.event(Event::HotRegions { volume: volume(1), regions: regions(0, 1) });
    host.answer_claim(1, 2);
    let end = host.end();
    assert_eq!(end.kind, LayerKind::Fuzzy, "T11");
    assert_eq!(end.members.iter().map(|m| m.key).collect::<Vec<_>>(), [keys[1]]);
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "its maps are kept");
}

#[test]
fn a_void_term_is_claimed_again_and_keeps_the_maps() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    let key = host.read(1, 1);
    host.hear(ReceiverMessage::Void(Void { layers: vec![key] }));
    host.answer_ledger(1, Vec::new(), current(1, 7, false), Some(7));
    host.answer_claim(1, 8);
    assert_eq!(host.source.owed(volume(1)).granule_count(&super::world::geometry()), 2);
}

#[test]
fn two_that_claim_in_turns_without_a_layer_are_forked() {
    let mut host = Host::streaming();
    let mut slot = 10;
    for _ in 0..10 {
        let key = LayerKey { volume: volume(1), term: Term(if slot == 10 { 0 } else { slot - 1 }), seq: Seq(1) };
        host.hear(ReceiverMessage::Void(Void { layers: vec![key] }));
        let mut theirs = current(1, slot, false).expect("some");
        theirs.claimant = Some(InstanceId([2; 16]));
        host.answer_ledger(1, Vec::new(), Some(theirs), Some(slot));
        if refused(&host, 1).is_some() {
            break;
        }
        host.answer_claim(1, slot + 1);
        slot += 2;
    }
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
}

#[test]
fn a_point_is_due_after_a_fuzzy_end_even_if_nothing_is_dirty() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.event(Event::Demoted { epoch, why: DemoteCause::ClaimPool });
    let key = host.read(1, 1);
    let second = LayerKey { volume: volume(2), term: Term(1), seq: Seq(1) };
    host.end();
    for (slot, key) in [(2, key), (3, second)] {
        let published = Published { position: at(slot), kind: LayerKind::Fuzzy, layers: vec![key] };
        host.hear(ReceiverMessage::Published(published));
    }
    host.said.clear();
    host.tick(&[]);
    assert!(host.said.is_empty(), "no heartbeat while a point is due");
    host.switch(vec![(1, GranuleSet::new()), (2, GranuleSet::new())]);
    let end = host.end();
    assert_eq!((end.kind, end.members.len()), (LayerKind::Point, 2));
}

#[test]
fn cooling_waits_for_the_header_and_forgets_what_was_published_meanwhile() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    let key = host.read(1, 1);
    let second = LayerKey { volume: volume(2), term: Term(1), seq: Seq(1) };
    host.event(Event::CoolWanted { volume: volume(1), regions: regions(0, 2) });
    let cool = |a: &Action| match a {
        Action::Cool { regions, .. } => Some(regions.clone()),
        _ => None,
    };
    assert_eq!(host.did(cool), Some(regions(1, 1)), "region 0 is mentioned");
    let published = Published { position: at(2), kind: LayerKind::Point, layers: vec![key, second] };
    host.hear(ReceiverMessage::Published(published));
    host.event(Event::CoolWanted { volume: volume(1), regions: regions(0, 1) });
    assert_eq!(host.did(cool), None, "L2: the header does not cover the record");
    host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(0)), position: Some(at(2)) });
    assert_eq!(host.did(cool), Some(regions(0, 1)));
    // † The order was given, and before it is begun the region is written and published once more: a bit that is cleared under
    // the older header is another's change to the next attach.
    assert!(!host.source.mentions(volume(1), RegionIndex(0)));
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 1)), (2, GranuleSet::new())]);
    let (key, second) = (host.read(1, 2), LayerKey { seq: Seq(2), ..second });
    host.hear(ReceiverMessage::Published(Published { position: at(3), kind: LayerKind::Point, layers: vec![key, second] }));
    assert!(host.source.mentions(volume(1), RegionIndex(0)), "L2: the header does not cover the record");
    host.event(Event::HeaderDurable { volume: volume(1), confirmed: Some(Term(0)), position: Some(at(3)) });
    assert!(!host.source.mentions(volume(1), RegionIndex(0)));
}

#[test]
fn lag_is_the_age_of_the_newest_published_cut() {
    let mut host = Host::streaming();
    host.tick(&[]);
    let quiet = host.now - 1;
    assert_eq!(host.source.status(host.now).volumes[0].lag, Some(1), "idle: as of the last heartbeat");
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.tick(&[1]);
    assert_eq!(host.source.status(host.now).volumes[0].lag, Some(host.now - quiet), "L10: nothing newer is published");
}

#[test]
fn what_a_switch_froze_is_no_dirt_until_the_next_tick() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.event(Event::Drain);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.read(1, 1);
    let again = host.did(|a| matches!(a, Action::Switch { .. }).then_some(()));
    assert_eq!(again, None, "read before the next tick, a cut is followed by empty ones for ever");
    assert!(!host.source.settled(), "nobody has looked since");
}

#[test]
fn what_is_frozen_and_dirty_again_is_owed_once() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 4)), (2, GranuleSet::new())]);
    assert_eq!(host.source.backlog_bytes(volume(1), &GranuleSet::new()), 4 * 16);
    assert_eq!(host.source.backlog_bytes(volume(1), &granules(2, 4)), 6 * 16, "two of them are both");
    assert_eq!(host.source.backlog_bytes(volume(1), &granules(0, GRANULES)), GRANULES * 16, "never more than there is");
}

#[test]
fn passes_do_not_push_the_next_cut_away() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 2)), (2, GranuleSet::new())]);
    host.read(1, 1);
    host.event(Event::SetEpochInterval { interval: 1000 });
    let cut = host.now;
    host.now += 600;
    // More than a cut may hold: a pass, at once.
    let heavy = Sample { dirty_bytes: GRANULES * 16 * 2, ..Sample::default() };
    host.sampled([(volume(1), heavy), (volume(2), Sample::default())]);
    let kind = |a: &Action| match a {
        Action::Switch { kind, .. } => Some(*kind),
        _ => None,
    };
    let pass = host.did.iter().find_map(kind);
    assert_eq!(pass, Some(LayerKind::Fuzzy));
    host.switch(vec![(1, granules(0, 2))]);
    host.read(1, 2);
    // An interval after the last *cut* the next one is due.
    host.tick(&[1]);
    assert_eq!(host.did(kind), None, "not yet");
    host.now = cut + 1000;
    host.tick(&[1]);
    assert_eq!(host.did(kind), Some(LayerKind::Point));
}

// ---- the target

pub(super) struct Gateway {
    pub(super) target: Target,
    pub(super) state: State,
    now: u64,
    pub(super) did: Vec<target::Action>,
}

pub(super) fn gateway_config() -> target::Config {
    target::Config {
        group: GroupId([9; 16]),
        source: name("host"),
        group_name: name("default"),
        store: [7; 16],
        layer_digest,
        began: 0,
        limits: target::Limits { credit_window: 1000, credit_step: 100, ..target::Limits::default() },
    }
}

impl Gateway {
    pub(super) fn new() -> Self {
        Self::with(gateway_config().limits)
    }

    /// One with these limits.
    pub(super) fn with(limits: target::Limits) -> Self {
        let state = State::new(GroupId([9; 16]));
        let config = target::Config { limits, ..gateway_config() };
        let target = Target::new(config, &state, Vec::new(), &mut Vec::new());
        let mut gateway = Self { target, state, now: 0, did: Vec::new() };
        gateway.hello(1, 1, 1);
        gateway
    }

    pub(super) fn event(&mut self, event: target::Event) {
        self.now += 1;
        self.target.step(self.now, &self.state, event, &mut self.did);
    }

    /// Time passes.
    pub(super) fn wait(&mut self, nanos: u64) {
        self.now += nanos;
        self.event(target::Event::Tick);
    }

    /// After what the target waits for before it tries again.
    pub(super) fn later(&mut self) {
        self.now += 3 * source::SECOND;
        self.event(target::Event::Tick);
    }

    pub(super) fn hello(&mut self, session: u64, instance: u8, connection: u64) {
        let hello = SourceHello {
            versions: VersionRange::OURS,
            features: Features(0),
            instance: InstanceId([instance; 16]),
            connection,
            source: name("host"),
            group: name("default"),
        };
        self.hear(session, SourceMessage::Hello(hello));
    }

    pub(super) fn hear(&mut self, session: u64, message: SourceMessage) {
        self.event(target::Event::Message { session: SessionId(session), message: Box::new(message) });
    }

    pub(super) fn said(&mut self) -> Vec<ReceiverMessage> {
        let mut said = Vec::new();
        self.did.retain_mut(|a| match a {
            target::Action::Send { message, .. } => {
                said.push((**message).clone());
                false
            }
            _ => true,
        });
        said
    }

    /// Appends what was asked for; None when nothing was.
    pub(super) fn append(&mut self) -> Option<(Body, Verdict)> {
        let at = self.did.iter().position(|a| matches!(a, target::Action::Append { .. }))?;
        let target::Action::Append { ticket, mut records } = self.did.remove(at) else { unreachable!("just seen") };
        assert_eq!(records.len(), 1, "each record comes alone where there is no cadence");
        Some(self.append_this(ticket, records.remove(0).body))
    }

    pub(super) fn append_this(&mut self, ticket: Ticket, body: Body) -> (Body, Verdict) {
        let slot = self.state.next_slot();
        let digest = RecordDigest([slot.0 as u8; 32]);
        let stamp = Stamp { writer: [1; 16], mono_ms: slot.0, wall_ms: 0 };
        let (group, prev) = (GroupId([9; 16]), self.state.prev());
        let record = Record { group, slot, prev, nonce: [0; 16], stamp, body };
        let verdict = self.state.apply(&record, digest);
        let position = LedgerPosition { slot, digest };
        self.event(target::Event::Appended { ticket, outcome: AppendOutcome::Judged { records: vec![(position, verdict)] } });
        (record.body, verdict)
    }

    pub(super) fn claim(&mut self, session: u64, n: u8) {
        let looked = self.state.head();
        let claim = farside_ledger::Claim { volume: meta(n), looked, source: name("host") };
        self.hear(session, SourceMessage::Claim(farside_wire::ClaimRequest { id: RequestId(1), claim }));
        assert_eq!(self.append().map(|a| a.1), Some(Verdict::Accepted));
    }

    pub(super) fn part(&mut self, key: LayerKey, part: u32, footer: u8) {
        let entry = PartEntry { bytes: 16, footer_digest: [footer; 32] };
        self.event(target::Event::PartLanded { session: SessionId(1), key, part, entry });
    }

    pub(super) fn end(&mut self, kind: LayerKind, members: &[(LayerKey, &[u8])]) {
        self.hear(1, SourceMessage::EpochEnd(ending(kind, members)));
    }
}

pub(super) fn ending(kind: LayerKind, members: &[(LayerKey, &[u8])]) -> EpochEnd {
    let members = members
        .iter()
        .map(|(key, footers)| {
            let footers: Vec<[u8; 32]> = footers.iter().map(|f| [*f; 32]).collect();
            EndMember {
                key: *key,
                parts: footers.len() as u32,
                digest: layer_digest(key, &footers),
                regions: regions(0, 1),
                whole_regions: RegionSet::new(),
                unreadable_regions: RegionSet::new(),
                volume_bytes: GRANULES * 16,
            }
        })
        .collect();
    EpochEnd { kind, epoch: info(1), members }
}

pub(super) fn key(n: u8, term: u64, seq: u64) -> LayerKey {
    LayerKey { volume: volume(n), term: Term(term), seq: Seq(seq) }
}

pub(super) fn claimed() -> Gateway {
    let mut gateway = Gateway::new();
    gateway.claim(1, 1);
    gateway.claim(1, 2);
    gateway.did.clear();
    gateway
}

#[test]
pub(super) fn a_point_waits_for_all_members_and_their_earlier_layers() {
    let mut gateway = claimed();
    let members = [(key(1, 0, 2), &[3][..]), (key(2, 1, 1), &[2][..])];
    gateway.end(LayerKind::Point, &members);
    gateway.part(key(2, 1, 1), 0, 2);
    gateway.part(key(1, 0, 2), 0, 3);
    assert!(gateway.append().is_none(), "layer 1 of volume 1 is missing");
    assert_eq!(gateway.said().iter().filter(|m| matches!(m, ReceiverMessage::Staged(_))).count(), 1, "T1: in order");
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    let (body, verdict) = gateway.append().expect("the fuzzy one first");
    assert!(matches!(body, Body::Layers(l) if l.kind == LayerKind::Fuzzy) && verdict == Verdict::Accepted);
    let (body, verdict) = gateway.append().expect("then the point");
    assert!(matches!(body, Body::Layers(l) if l.kind == LayerKind::Point && l.members.len() == 2));
    assert_eq!(verdict, Verdict::Accepted);
}

#[test]
pub(super) fn an_end_that_does_not_match_what_landed_is_lost() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[9])]);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Lost(_))), "T5");
    assert!(gateway.did.iter().any(|a| matches!(a, target::Action::DropLayer { .. })));
    assert!(gateway.append().is_none());
}

#[test]
fn only_point_may_become_fuzzy_and_never_back() {
    let mut gateway = claimed();
    let both = [(key(1, 0, 1), &[1][..]), (key(2, 1, 1), &[2][..])];
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Point, &both);
    gateway.end(LayerKind::Fuzzy, &both);
    let (body, _) = gateway.append().expect("volume 1 alone");
    assert!(matches!(body, Body::Layers(l) if l.kind == LayerKind::Fuzzy));
    gateway.part(key(2, 1, 1), 0, 2);
    assert!(matches!(gateway.append(), Some((Body::Layers(l), _)) if l.kind == LayerKind::Fuzzy));
}

#[test]
fn a_new_claim_voids_what_was_staged_and_a_retry_under_the_old_term() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.hello(2, 2, 1);
    gateway.claim(2, 1);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Void(v) if v.layers == [key(1, 0, 1)])));
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Void(_))));
    assert!(gateway.append().is_none());
}

#[test]
fn a_newer_connection_of_the_same_run_ends_the_older_and_an_older_one_is_refused() {
    let mut gateway = claimed();
    gateway.hello(5, 1, 3);
    assert!(gateway.did.iter().any(|a| matches!(a, target::Action::CloseSession { session: SessionId(1), .. })));
    gateway.hello(6, 1, 2);
    assert_eq!(gateway.target.sessions(), [SessionId(5)]);
}

#[test]
fn a_duplicate_is_success_if_it_is_the_same_and_refused_by_name_if_not() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    gateway.append().expect("a record");
    gateway.said();
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Published(p) if p.position.slot == Slot(2))), "T11");
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[2])]);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Refusal(_))));
    assert!(!gateway.did.iter().any(|a| matches!(a, target::Action::DropLayer { .. })), "published data stays");
}

#[test]
pub(super) fn a_resume_truncates_only_the_layers_it_names() {
    let mut gateway = claimed();
    for (seq, part) in [(1, 0), (1, 1), (1, 3), (2, 0)] {
        gateway.part(key(1, 0, seq), part, part as u8);
    }
    let layers = vec![HeldLayer { seq: Seq(1), parts: 9 }];
    gateway.hear(1, SourceMessage::Resume(ResumeQuery { id: RequestId(3), volume: volume(1), term: Term(0), layers }));
    let dropped: Vec<_> = gateway.did.iter().filter(|a| matches!(a, target::Action::DropParts { .. })).collect();
    assert!(matches!(dropped[..], [target::Action::DropParts { key: k, from: 2 }] if *k == key(1, 0, 1)), "T7");
    let answer = gateway.said().into_iter().find_map(|m| match m {
        ReceiverMessage::ResumeAnswer(a) => Some(a),
        _ => None,
    });
    assert_eq!(answer.expect("an answer").layers[0].fate, landing(2, None, false));
}

#[test]
fn a_full_gateway_says_so_and_grants_again_when_there_is_room() {
    let mut gateway = claimed();
    let room = |free_bytes| target::Event::Grantable {
        free_bytes,
        disk_bytes: free_bytes,
        spare_bytes: free_bytes + 32,
        reserve_bytes: 64,
    };
    gateway.said();
    gateway.event(room(16));
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Credit(c) if c.granted_bytes == 16)), "{said:?}");
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Notice(Notice::GatewayFull { .. }))), "{said:?}");
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.event(room(10_000));
    let said = gateway.said();
    // What landed (16), and a window of a step (100) that grew by what was used.
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Credit(c) if c.granted_bytes == 132)), "{said:?}");
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Notice(Notice::Ready))));
}

#[test]
fn a_source_tells_a_full_gateway_from_one_that_others_have_the_room_of() {
    let mut host = Host::new();
    [1, 2].into_iter().for_each(|n| host.add(n, None, None, RegionSet::new(), Start::Clean));
    host.connect_with(1);
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), None, None);
        host.answer_claim(n, u64::from(n) - 1);
    }
    let trouble = |host: &Host| host.source.status(host.now).receiver_trouble;
    let state = |host: &Host| host.source.status(host.now).volumes[0].state.clone();
    let notice = |free_bytes| ReceiverMessage::Notice(Notice::GatewayFull { free_bytes, reserve_bytes: 64 });
    host.tick(&[]);
    let well = state(&host);
    host.hear(notice(1 << 30));
    host.now += 60_000_000_000;
    host.tick(&[]);
    assert_eq!((trouble(&host), state(&host)), (None, well.clone()), "it has nothing to send, and waits for nothing");
    host.tick(&[1]);
    assert_eq!(trouble(&host), Some(source::Trouble::Crowded { free_bytes: 1 << 30 }));
    assert_ne!(state(&host), source::State::Behind(source::Behind::GatewayFull));
    host.hear(ReceiverMessage::Credit(Credit { granted_bytes: 2 }));
    assert_eq!(trouble(&host), None, "it gets on");
    host.hear(notice(0));
    assert_eq!(trouble(&host), Some(source::Trouble::Full { free_bytes: 0, reserve_bytes: 64 }));
    assert_eq!(state(&host), source::State::Behind(source::Behind::GatewayFull));
    host.hear(ReceiverMessage::Notice(Notice::Ready));
    assert_eq!(trouble(&host), None);
}

/// Many groups share what there is: that one of them has little of it says nothing of the disk.
#[test]
fn a_gateway_says_what_its_disk_has_for_all_and_says_it_again_when_that_is_nothing() {
    let mut gateway = claimed();
    let room =
        |free_bytes, disk_bytes| target::Event::Grantable { free_bytes, disk_bytes, spare_bytes: 1 << 30, reserve_bytes: 64 };
    gateway.said();
    let notice = |gateway: &mut Gateway| {
        gateway.said().into_iter().find_map(|m| match m {
            ReceiverMessage::Notice(Notice::GatewayFull { free_bytes, .. }) => Some(free_bytes),
            _ => None,
        })
    };
    gateway.event(room(16, 1 << 30));
    assert_eq!(notice(&mut gateway), Some(1 << 30), "others have it");
    gateway.event(room(16, 1 << 29));
    assert_eq!(notice(&mut gateway), None, "that was said");
    gateway.event(room(0, 1000));
    assert_eq!(notice(&mut gateway), Some(1000), "now it is full");
}

#[test]
fn a_remainder_too_small_to_be_of_use_is_topped_up_with_little() {
    let mut gateway = claimed();
    let room = |free_bytes| target::Event::Grantable {
        free_bytes,
        disk_bytes: free_bytes,
        spare_bytes: free_bytes + 32,
        reserve_bytes: 64,
    };
    gateway.event(room(16));
    gateway.said();
    // Less than a step (100), and the source is not dry.
    gateway.event(room(40));
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Credit(c) if c.granted_bytes == 40)), "{said:?}");
}

#[test]
fn a_store_that_fails_is_tried_again_and_sources_are_told() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    let take = |g: &mut Gateway| {
        let at = g.did.iter().position(|a| matches!(a, target::Action::Append { .. }))?;
        let target::Action::Append { ticket, .. } = g.did.remove(at) else { unreachable!("just seen") };
        Some(ticket)
    };
    let ticket = take(&mut gateway).expect("an append");
    let outcome = AppendOutcome::Failed { text: "read-only file system".into() };
    gateway.event(target::Event::Appended { ticket, outcome });
    assert!(take(&mut gateway).is_none(), "not at once");
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Notice(Notice::StoreFailed { .. }))));
    gateway.later();
    assert_eq!(gateway.append().expect("tried again").1, Verdict::Accepted);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Notice(Notice::Ready))));
}

#[test]
fn a_stalled_writers_record_makes_the_retry_a_duplicate() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    let at = gateway.did.iter().position(|a| matches!(a, target::Action::Append { .. })).expect("an append");
    let target::Action::Append { ticket, mut records } = gateway.did.remove(at) else { unreachable!("just seen") };
    let body = records.remove(0).body;
    // The record lands without an answer, and then lands again in a later slot.
    let slot = gateway.state.next_slot();
    let stamp = Stamp { writer: [1; 16], mono_ms: 9, wall_ms: 0 };
    let (group, prev) = (GroupId([9; 16]), gateway.state.prev());
    let record = Record { group, slot, prev, nonce: [1; 16], stamp, body: body.clone() };
    assert_eq!(gateway.state.apply(&record, RecordDigest([77; 32])), Verdict::Accepted);
    let (_, verdict) = gateway.append_this(ticket, body);
    assert_eq!(verdict, Verdict::Void(VoidReason::Duplicate));
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Published(p) if p.position.slot == slot)), "{said:?}");
}

#[test]
fn an_unknown_volume_id_is_not_accepted() {
    let gateway = claimed();
    let stranger = LayerKey { volume: VolumeId([77; 16]), ..key(1, 0, 1) };
    assert!(gateway.target.accepts_part(&gateway.state, SessionId(1), stranger, 0).is_err());
    assert!(gateway.target.accepts_part(&gateway.state, SessionId(1), key(1, 0, 1), 0).is_ok());
    assert!(gateway.target.accepts_part(&gateway.state, SessionId(9), key(1, 0, 1), 0).is_err());
    assert!(gateway.target.accepts_part(&gateway.state, SessionId(1), key(1, 5, 1), 0).is_err());
}

#[test]
fn a_point_that_is_due_is_asked_for_once_until_it_is_published() {
    let mut host = Host::new();
    host.add(1, Some(5), Some(5), RegionSet::new(), Start::Clean);
    host.connect();
    let due = CurrentVolume { point_due: true, ..current(1, 5, true).expect("some") };
    host.answer_ledger(1, Vec::new(), Some(due), Some(5));
    host.answer_claim(1, 6);
    host.tick(&[]);
    host.switch(vec![(1, GranuleSet::new())]);
    assert_eq!(host.end().kind, LayerKind::Point);
    // Its record takes long, and the daemon is being stopped: cuts are tried at once then.
    host.event(Event::Drain);
    host.tick(&[]);
    host.tick(&[]);
    let again = host.did(|a| matches!(a, Action::Switch { .. }).then_some(()));
    assert_eq!(again, None, "an empty point behind an empty point pushes real ones out of the store");
    assert!(!host.source.settled(), "a stop waits for the one that is on its way");
    let key = LayerKey { volume: volume(1), term: Term(6), seq: Seq(1) };
    host.hear(ReceiverMessage::Published(Published { position: at(7), kind: LayerKind::Point, layers: vec![key] }));
    host.tick(&[]);
    assert!(host.source.settled());
}

#[test]
fn a_side_buffer_larger_than_a_cut_may_be_ends_nothing() {
    let mut host = Host::with(source::Limits { cut_bytes_min: 1 << 30, cut_bytes_max: 16, ..source_limits() });
    host.add(1, None, None, RegionSet::new(), Start::Clean);
    host.connect();
    host.answer_ledger(1, Vec::new(), None, None);
    host.answer_claim(1, 0);
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, granules(0, 2))]);
    host.event(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
    assert_eq!(host.source.status(host.now).cut_budget_bytes, 1 << 30);
}
