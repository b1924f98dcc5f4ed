//! The two replication machines, each against a peer that says whatever it likes: what a message *means* must not be able to
//! break us either. The driver here is honest (it carries out actions as the daemons do); the peer is the input.
//!
//! An input is a list of operations: a byte that says which, then what it needs. A message can be *fitted*: its numbers are
//! made those of a question that was really asked, so that it gets past the first check.

use std::collections::{BTreeMap, VecDeque};

use farside_layer::layer_digest;
use farside_ledger::{CutTime, Policy, Record, Stamp, State, Verdict};
use farside_region::{
    BootId, EpochId, GranuleIndex, GranuleRun, GranuleSet, LayerKey, LedgerPosition, RegionIndex, RegionRange, RegionSet, Seq,
    Slot, Term, VolumeId,
};
use farside_replication::{source, target};
use farside_wire::{DigestRun, InstanceId, Message, ReceiverMessage, RequestId, SourceMessage, decode_payload, encode_payload};

use super::ledger::{epoch, geometry, group, meta, name, regions, volume};
use super::wire::{from_receiver, from_source};
use crate::engine::{Memory, Outcome, Target};

const MEMORY: Memory = Memory { fixed_bytes: 8 << 20, bytes_per_byte: 4096 };

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "source-machine",
        what: "replication at the source, told anything by its receiver",
        seeds: source_seeds,
        seal: super::no_seal,
        words: &[&[PLAIN], &[FITTED], &[TICK, 20, 3], &[RECONNECT], &[PERSON, 0], &[DISK, 1]],
        bytes_max: 4 << 10,
        memory: MEMORY,
        decode: source_machine,
    },
    Target {
        name: "target-machine",
        what: "replication at the receiver, told anything by a source",
        seeds: target_seeds,
        seal: super::no_seal,
        words: &[&[PLAIN], &[FITTED], &[TICK, 20, 3], &[RECONNECT], &[PERSON, 0], &[DISK, 1]],
        bytes_max: 4 << 10,
        memory: MEMORY,
        decode: target_machine,
    },
];

/// A message as it is; one made to fit. Both: length (u16 LE), bytes.
const PLAIN: u8 = 0;
const FITTED: u8 = 1;
/// Time in tenths of a second, then how much was written.
const TICK: u8 = 2;
/// The connection ends, and another begins.
const RECONNECT: u8 = 3;
/// A person or the machine itself, by the next byte.
const PERSON: u8 = 4;
/// Of the target: a part lands; of the source: the disk answers.
const DISK: u8 = 5;
const OPERATIONS: u8 = 6;

/// No operation needs as many steps.
const STEPS_MAX: usize = 20_000;

struct Operations<'a>(&'a [u8]);

impl<'a> Operations<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn payload(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (payload, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        self.0 = rest;
        Some(payload)
    }
}

fn say<M: Message>(operation: u8, message: &M) -> Vec<u8> {
    let payload = encode_payload(message).expect("it fits");
    [&[operation], &(payload.len() as u16).to_le_bytes()[..], &payload].concat()
}

/// What one of us says can be read by the other, whatever was said before.
fn is_well_said<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let payload = encode_payload(message).expect("we say nothing that does not fit a frame");
    assert_eq!(decode_payload::<M>(&payload).as_ref(), Ok(message), "we say what the other side must refuse");
}

// ---- The source ----

/// Greeting, position, claim; a first pass, a point, an answer of each kind.
fn source_seeds() -> Vec<Vec<u8>> {
    let (all, other) = (from_receiver(1), from_receiver(2));
    let each: Vec<u8> = all.iter().flat_map(|m| say(FITTED, m)).collect();
    let [hello, slice, verdict, credit] = [0, 1, 4, 6].map(|i| say(FITTED, &all[i]));
    let [slice_2, verdict_2] = [1, 4].map(|i| say(FITTED, &other[i]));
    let begin = [&hello[..], &slice, &slice_2, &verdict, &verdict_2, &credit].concat();
    let work = [[TICK, 20, 9], [TICK, 20, 0], [DISK, 1, TICK]].concat();
    let published: Vec<u8> = [7, 8, 9].iter().flat_map(|i| say(FITTED, &all[*i])).collect();
    let rest = [[TICK, 20, 5], [PERSON, 3, TICK], [20, 1, RECONNECT]].concat();
    vec![
        [&begin[..], &work, &[10, 0], &published, &rest, &hello, &say(FITTED, &all[12])].concat(),
        [&begin[..], &each].concat(),
        each,
    ]
}

struct Host {
    source: source::Source,
    now: u64,
    connection: u64,
    connected: bool,
    epoch: EpochId,
    written: u8,
    asked: Vec<SourceMessage>,
    term: BTreeMap<VolumeId, Term>,
    wanted: BTreeMap<(VolumeId, Seq, u32), Box<source::ReadPart>>,
    events: VecDeque<source::Event>,
    seen: u32,
}

fn source_machine(bytes: &[u8]) -> Outcome {
    let mut host = Host::new();
    let mut operations = Operations(bytes);
    while let Some(operation) = operations.byte() {
        if host.operate(operation % OPERATIONS, &mut operations).is_none() {
            break;
        }
    }
    let status = host.source.status(host.now);
    let text = format!("{:?}", status.volumes.iter().map(|v| std::mem::discriminant(&v.state)).collect::<Vec<_>>());
    host.events.push_back(source::Event::Halt);
    host.go();
    for n in 1..=2 {
        assert!(
            host.source.owed(volume(n)).regions().last().is_none_or(|r| r.0 < geometry().region_count()),
            "more is owed than there is"
        );
    }
    Outcome::accepted((host.seen, text))
}

impl Host {
    fn new() -> Self {
        let limits = source::Limits {
            cut_bytes_min: 64,
            cut_bytes_max: 4096,
            part_bytes: 128,
            part_bytes_min: 32,
            slice_bytes: 256,
            ..source::Limits::default()
        };
        let config = source::Config {
            source: name("host"),
            group: name("db"),
            stands_in: false,
            asks_for_key: false,
            instance: InstanceId([0x11; 16]),
            boot: BootId([5; 16]),
            policy: Policy::without_grid(3, 0),
            policy_is_said: true,
            layer_digest,
            limits,
        };
        let mut host = Self {
            source: source::Source::new(config),
            now: 1,
            connection: 1,
            connected: true,
            epoch: EpochId(0),
            written: 1,
            asked: Vec::new(),
            term: BTreeMap::new(),
            wanted: BTreeMap::new(),
            events: VecDeque::new(),
            seen: 0,
        };
        for n in 1..=2 {
            let setup = source::VolumeSetup {
                meta: meta(n),
                confirmed: None,
                position: (n == 2).then_some(LedgerPosition { slot: Slot(1), digest: farside_region::RecordDigest([0xbb; 32]) }),
                inherited: regions(&[0, 3]),
                start: source::Start::Unclean,
                tracking_lost: false,
                paused: false,
            };
            host.events.push_back(source::Event::AddVolume(Box::new(setup)));
        }
        host.events.push_back(source::Event::Connected { connection: 1 });
        host.go();
        host
    }

    fn operate(&mut self, operation: u8, operations: &mut Operations<'_>) -> Option<()> {
        match operation {
            PLAIN | FITTED => {
                let Ok(mut message) = decode_payload::<ReceiverMessage>(operations.payload()?) else { return Some(()) };
                if operation == FITTED {
                    self.fit(&mut message);
                }
                self.seen |= 1 << (encode_payload(&message).ok()?.first()? % 16);
                self.events.push_back(source::Event::Message { connection: self.connection, message: Box::new(message) });
            }
            TICK => {
                self.now += u64::from(operations.byte()?) * 100_000_000;
                self.written = operations.byte()?;
                self.tick();
            }
            RECONNECT => self.reconnect(),
            PERSON => {
                let byte = operations.byte()?;
                let volume = volume(1 + byte % 2);
                self.events.push_back(match byte >> 1 & 15 {
                    0 => source::Event::Pause { volume },
                    1 => source::Event::Resume { volume },
                    2 => source::Event::Accept { volume },
                    3 => source::Event::Resync { volume },
                    4 => source::Event::Verify { volume },
                    5 => source::Event::TrackingLost { volume },
                    6 => source::Event::KeepLoss { volume },
                    7 => source::Event::FlushFailed { volume },
                    8 => source::Event::Drain,
                    9 => source::Event::RemoveVolume { volume },
                    10 => source::Event::ReaderLost { volume },
                    11 => source::Event::CoolWanted { volume, regions: regions(&[0, 1, 2, 3, 4, 5, 6, 7]) },
                    12 => source::Event::Demoted { epoch: self.epoch, why: source::DemoteCause::SideBuffer },
                    _ => return Some(()),
                });
            }
            _ => self.disk(operations.byte()?),
        }
        self.go();
        Some(())
    }

    fn tick(&mut self) {
        let time = CutTime { boot: BootId([5; 16]), mono_ns: self.now, wall_ms: 0 };
        let dirty_bytes = u64::from(self.written) * 16;
        let sample = source::Sample { dirty_bytes, waits_for_disk: self.written == 7, ..source::Sample::default() };
        let volumes = (1..=2).map(|n| (volume(n), sample)).collect();
        self.events.push_back(source::Event::Tick(source::Tick { time, volumes }));
    }

    fn reconnect(&mut self) {
        if self.connected {
            self.events.push_back(source::Event::Disconnected { connection: self.connection, how: source::Ended::Broken });
        }
        self.wanted.clear();
        self.connection += 1;
        self.connected = true;
        self.events.push_back(source::Event::Connected { connection: self.connection });
    }

    /// Reads what was asked for, whole or not at all.
    fn disk(&mut self, byte: u8) {
        for (_, wanted) in std::mem::take(&mut self.wanted) {
            let (connection, key, part) = (wanted.connection, wanted.key, wanted.part);
            if byte & 1 == 0 {
                self.events.push_back(source::Event::PartAborted { connection, key, part });
                continue;
            }
            let run = geometry().region_run(wanted.from);
            if byte & 2 != 0 && wanted.from.0 < geometry().region_count() && !wanted.compare.is_empty() {
                self.events.push_back(source::Event::DigestsWanted { connection, key, part, run });
                self.wanted.insert((key.volume, key.seq, part), wanted);
                continue;
            }
            let end = wanted.until.map_or(geometry().region_count(), |r| r.0);
            self.events.push_back(source::Event::PartRead(Box::new(source::PartRead {
                connection,
                key,
                part,
                sent: (byte & 4 == 0).then_some(source::SentPart { bytes: 100, footer_digest: [byte; 32] }),
                next: RegionIndex(end),
                done: true,
                cut_held: byte & 8 == 0,
                granules: 4,
                left: GranuleSet::new(),
                unreadable: if byte & 16 == 0 { GranuleSet::new() } else { some_granules(wanted.from) },
                zero_regions: RegionSet::new(),
            })));
        }
    }

    fn go(&mut self) {
        let mut actions = Vec::new();
        for _ in 0..STEPS_MAX {
            let Some(event) = self.events.pop_front() else { return };
            self.source.step(self.now, event, &mut actions);
            for action in std::mem::take(&mut actions) {
                self.carry_out(action);
            }
        }
        panic!("it never comes to rest");
    }

    fn carry_out(&mut self, action: source::Action) {
        use source::{Action, Event};
        match action {
            Action::Send { connection, message } => {
                assert_eq!(connection, self.connection, "a message for a connection that is gone");
                is_well_said(&*message);
                self.asked.push(*message);
            }
            Action::Disconnect { connection, .. } if connection == self.connection && self.connected => {
                self.connected = false;
                self.wanted.clear();
                self.events.push_back(Event::Disconnected { connection, how: source::Ended::Closed });
            }
            Action::WriteHeader { volume, confirmed, position } => {
                self.events.push_back(Event::HeaderDurable { volume, confirmed, position });
            }
            Action::Switch { members, .. } => {
                let frozen = self.epoch;
                self.epoch = self.epoch.next();
                let mark = |member: source::SwitchMember| {
                    let mut set = member.extra;
                    if self.written > 0 {
                        let start = GranuleIndex(u64::from(self.written) % geometry().granule_count());
                        set.insert_run(&geometry(), GranuleRun { start, count: 1 });
                    }
                    (member.volume, set)
                };
                let members = members.into_iter().map(mark).collect();
                self.events.push_back(Event::SwitchDone(source::SwitchDone { epoch: frozen, info: epoch(), members }));
            }
            Action::ReadPart(read) => {
                self.wanted.insert((read.key.volume, read.key.seq, read.part), read);
            }
            Action::AbortPart { key, part } => {
                if let Some(read) = self.wanted.remove(&(key.volume, key.seq, part)) {
                    self.events.push_back(Event::PartAborted { connection: read.connection, key, part });
                }
            }
            Action::Digests { start, runs, .. } => {
                let count: u64 = runs.iter().map(DigestRun::granules).sum();
                assert!(start.0 + count <= geometry().granule_count(), "digests beyond the volume are handed on");
            }
            Action::Verify(chunk) => {
                let first = geometry().region_run(chunk.chunk.start).start.0;
                let last = geometry().region_run(RegionIndex(chunk.chunk.start.0 + chunk.chunk.count - 1)).end().0;
                let count: u64 = chunk.runs.iter().map(DigestRun::granules).sum();
                assert_eq!(count, last - first, "a chunk is verified against other granules");
                let differing = if self.written.is_multiple_of(2) { RegionSet::new() } else { regions(&[chunk.chunk.start.0]) };
                let read = source::VerifyRead { id: chunk.id, differing, ..source::VerifyRead::default() };
                self.events.push_back(Event::VerifyRead { volume: chunk.volume, read: Box::new(read) });
            }
            Action::Heat { volume, regions } => self.events.push_back(Event::Heated { volume, regions }),
            Action::HeatAll { volume } => self.events.push_back(Event::AllHot { volume }),
            Action::KeepHot { volume } => self.events.push_back(Event::HotRegions { volume, regions: regions(&[0, 3]) }),
            Action::Report { volume: Some(volume), what: source::Report::Claimed { term } } => {
                self.term.insert(volume, term);
            }
            _ => {}
        }
    }

    /// Makes a message the answer to the newest question of its kind.
    fn fit(&self, message: &mut ReceiverMessage) {
        // About the same volume, if there is one.
        let newest = |volume: VolumeId, of: fn(&SourceMessage) -> Option<(RequestId, VolumeId)>| {
            let asked = || self.asked.iter().rev().filter_map(of);
            asked().find(|(_, of)| *of == volume).or_else(|| asked().next())
        };
        let fit_key = |key: &mut LayerKey| {
            if let Some(term) = self.term.get(&key.volume) {
                key.term = *term;
            }
        };
        match message {
            ReceiverMessage::LedgerSlice(slice) => {
                let of = |m: &SourceMessage| if let SourceMessage::ReadLedger(q) = m { Some((q.id, q.volume)) } else { None };
                (slice.id, slice.volume) = newest(slice.volume, of).unwrap_or((slice.id, slice.volume));
            }
            ReceiverMessage::ClaimVerdict(verdict) => {
                let of = |m: &SourceMessage| if let SourceMessage::Claim(q) = m { Some((q.id, q.claim.volume.id)) } else { None };
                (verdict.id, verdict.volume) = newest(verdict.volume, of).unwrap_or((verdict.id, verdict.volume));
            }
            ReceiverMessage::ResumeAnswer(answer) => {
                let of = |m: &SourceMessage| if let SourceMessage::Resume(q) = m { Some((q.id, q.volume)) } else { None };
                (answer.id, answer.volume) = newest(answer.volume, of).unwrap_or((answer.id, answer.volume));
                answer.term = self.term.get(&answer.volume).copied();
            }
            ReceiverMessage::DigestAnswer(answer) => {
                let question =
                    self.asked.iter().rev().find_map(|m| if let SourceMessage::Digests(q) = m { Some(*q) } else { None });
                if let Some(q) = question {
                    (answer.id, answer.volume, answer.start) = (q.id, q.volume, q.run.start);
                    let total: u64 = answer.runs.iter().map(DigestRun::granules).fold(0, u64::saturating_add);
                    if total != q.run.count {
                        answer.runs = vec![DigestRun::Zero { granules: q.run.count }];
                    }
                }
            }
            ReceiverMessage::LossRecorded(recorded) => {
                let of = |m: &SourceMessage| if let SourceMessage::TrackingLost(q) = m { Some((q.id, q.volume)) } else { None };
                (recorded.id, recorded.volume) = newest(recorded.volume, of).unwrap_or((recorded.id, recorded.volume));
            }
            ReceiverMessage::Staged(said) => said.layers.iter_mut().for_each(fit_key),
            ReceiverMessage::Published(said) => said.layers.iter_mut().for_each(fit_key),
            ReceiverMessage::Void(said) => said.layers.iter_mut().for_each(fit_key),
            ReceiverMessage::Lost(said) => said.layers.iter_mut().for_each(fit_key),
            _ => {}
        }
    }
}

fn some_granules(region: RegionIndex) -> GranuleSet {
    let mut set = GranuleSet::new();
    if region.0 < geometry().region_count() {
        set.insert_whole(RegionRange { start: region, count: 1 });
    }
    set
}

// ---- The target ----

fn target_seeds() -> Vec<Vec<u8>> {
    let all = from_source();
    let each: Vec<u8> = all.iter().flat_map(|m| say(FITTED, m)).collect();
    let [hello, claim_1, claim_2, point, fuzzy] = [0, 2, 3, 5, 6].map(|i| say(FITTED, &all[i]));
    let begin = [&hello[..], &claim_1, &claim_2].concat();
    let part = [DISK, 0, DISK, 1];
    vec![
        [&begin[..], &part, &point, &[TICK, 20, 0], &part, &fuzzy, &[RECONNECT], &hello, &say(FITTED, &all[8])].concat(),
        [&begin[..], &each].concat(),
        each,
    ]
}

fn grantable(free_bytes: u64) -> target::Event {
    target::Event::Grantable { free_bytes, disk_bytes: free_bytes, spare_bytes: free_bytes + (1 << 25), reserve_bytes: 1 << 26 }
}

struct Gateway {
    target: target::Target,
    state: State,
    now: u64,
    session: target::SessionId,
    events: VecDeque<target::Event>,
    seen: u32,
    appended: u32,
}

fn target_machine(bytes: &[u8]) -> Outcome {
    let mut gateway = Gateway::new();
    let mut operations = Operations(bytes);
    while let Some(operation) = operations.byte() {
        if gateway.operate(operation % OPERATIONS, &mut operations).is_none() {
            break;
        }
    }
    let points = gateway.state.points().len().min(8);
    let _ = (gateway.target.trouble(), gateway.target.granted_bytes(), gateway.target.unpublished());
    for n in 1..=2 {
        let _ = gateway.target.quiet(&gateway.state, volume(n));
    }
    Outcome::accepted((gateway.seen, gateway.appended.min(16), points))
}

impl Gateway {
    fn new() -> Self {
        let limits = target::Limits { record_interval: 0, ..target::Limits::default() };
        let config = target::Config {
            group: group(),
            source: name("host"),
            group_name: name("db"),
            store: [9; 16],
            layer_digest,
            began: 0,
            limits,
        };
        let state = State::new(group());
        let target = target::Target::new(config, &state, Vec::new(), &mut Vec::new());
        let session = target::SessionId(1);
        let mut gateway = Self { target, state, now: 1, session, events: VecDeque::new(), seen: 0, appended: 0 };
        gateway.events.push_back(grantable(1 << 30));
        gateway.go();
        gateway
    }

    fn operate(&mut self, operation: u8, operations: &mut Operations<'_>) -> Option<()> {
        match operation {
            PLAIN | FITTED => {
                let Ok(mut message) = decode_payload::<SourceMessage>(operations.payload()?) else { return Some(()) };
                if operation == FITTED {
                    self.fit(&mut message);
                }
                self.seen |= 1 << (encode_payload(&message).ok()?.first()? % 16);
                self.events.push_back(target::Event::Message { session: self.session, message: Box::new(message) });
            }
            TICK => {
                self.now += u64::from(operations.byte()?) * 100_000_000;
                operations.byte()?;
                self.events.push_back(target::Event::Tick);
            }
            RECONNECT => self.end_session(true),
            PERSON => {
                let byte = operations.byte()?;
                let free_bytes = u64::from(byte) << 24;
                self.events.push_back(grantable(free_bytes));
            }
            _ => {
                let byte = operations.byte()?;
                let of = volume(1 + byte % 2);
                let Some(known) = self.state.volume(of) else { return Some(()) };
                let key = known.next_key();
                let key = LayerKey { seq: Seq(key.seq.0 + u64::from(byte >> 1 & 3)), ..key };
                let (part, session) = (u32::from(byte >> 3 & 1), self.session);
                // The gateway asks before it lets a part in.
                if self.target.accepts_part(&self.state, session, key, part).is_err() {
                    return Some(());
                }
                self.events.push_back(if byte & 0x80 == 0 {
                    let entry = farside_ledger::PartEntry { bytes: 100, footer_digest: [byte >> 4; 32] };
                    target::Event::PartLanded { session, key, part, entry }
                } else {
                    target::Event::PartFailed { session, key, part, why: "it does not verify".into() }
                });
            }
        }
        self.go();
        Some(())
    }

    fn end_session(&mut self, closed: bool) {
        if closed {
            self.events.push_back(target::Event::Closed { session: self.session });
        }
        self.session = target::SessionId(self.session.0 + 1);
    }

    fn go(&mut self) {
        let mut actions = Vec::new();
        for _ in 0..STEPS_MAX {
            let Some(event) = self.events.pop_front() else { return };
            self.target.step(self.now, &self.state, event, &mut actions);
            for action in std::mem::take(&mut actions) {
                self.carry_out(action);
            }
        }
        panic!("it never comes to rest");
    }

    fn carry_out(&mut self, action: target::Action) {
        use target::{Action, AppendOutcome, Event};
        match action {
            Action::Send { message, .. } => is_well_said(&*message),
            Action::CloseSession { session, .. } if session == self.session => self.end_session(false),
            Action::Append { ticket, records } => {
                let stamp = Stamp { writer: [1; 16], mono_ms: self.now / 1_000_000, wall_ms: 0 };
                let mut judged = Vec::new();
                let mut outcome = None;
                for target::Dated { body, .. } in records {
                    let (slot, prev) = (self.state.next_slot(), self.state.prev());
                    let record = Record { group: group(), slot, prev, nonce: [0; 16], stamp, body };
                    match record.encode() {
                        Err(error) => {
                            assert!(judged.is_empty(), "what cannot be written was composed with others");
                            outcome = Some(AppendOutcome::Unusable { layers: Vec::new(), text: error.to_string() });
                        }
                        Ok(encoded) => {
                            let verdict = self.state.apply(&record, encoded.digest);
                            self.appended += u32::from(verdict == Verdict::Accepted);
                            judged.push((LedgerPosition { slot, digest: encoded.digest }, verdict));
                        }
                    }
                }
                let outcome = outcome.unwrap_or(AppendOutcome::Judged { records: judged });
                self.events.push_back(Event::Appended { ticket, outcome });
            }
            Action::ReadDigests { session, id, volume, run } => {
                // The store answers "absent" for what is beyond the volume.
                assert!(self.state.volume(volume).is_some(), "digests of a volume that nobody claimed");
                let runs = Ok(vec![DigestRun::Absent { granules: run.count }]);
                self.events.push_back(Event::Digests { session, id, volume, start: run.start, runs });
            }
            _ => {}
        }
    }

    /// Makes a message speak of the claims that stand, and of the layers that come next.
    fn fit(&self, message: &mut SourceMessage) {
        let standing = |volume: VolumeId| self.state.volume(volume).map(|v| (v.term(), v.last_seq()));
        match message {
            SourceMessage::Claim(request) => request.claim.looked = self.state.head(),
            SourceMessage::ReadLedger(query) if query.position.is_some() => query.position = self.state.position(),
            SourceMessage::Heartbeat(heartbeat) => {
                if let Some(position) = self.state.position() {
                    heartbeat.position = position;
                }
                for (volume, term) in &mut heartbeat.members {
                    *term = standing(*volume).map_or(*term, |(term, _)| term);
                }
            }
            SourceMessage::EpochEnd(end) => {
                for member in &mut end.members {
                    if let Some((term, last)) = standing(member.key.volume) {
                        (member.key.term, member.key.seq) = (term, Seq(last.0.saturating_add(member.key.seq.0)));
                        let parts = vec![[0_u8; 32]; (member.parts as usize).min(2)];
                        member.digest = layer_digest(&member.key, &parts);
                    }
                }
            }
            SourceMessage::Resume(query) => query.term = standing(query.volume).map_or(query.term, |(term, _)| term),
            SourceMessage::Digests(query) => query.term = standing(query.volume).map_or(query.term, |(term, _)| term),
            SourceMessage::Compared(said) => {
                said.term = standing(said.volume).map_or(said.term, |(term, _)| term);
                said.position = self.state.position().unwrap_or(said.position);
            }
            SourceMessage::TrackingLost(report) => report.term = standing(report.volume).map_or(report.term, |(term, _)| term),
            SourceMessage::LayerBegin(begin) => {
                begin.key.term = standing(begin.key.volume).map_or(begin.key.term, |(term, _)| term);
            }
            _ => {}
        }
    }
}
