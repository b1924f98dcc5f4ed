//! A receiver in a temporary directory, and sources that speak the protocol by hand.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_control::client::{Client, Daemon};
use farside_control::receiver::ReceiverStatus;
use farside_control::routes::PointsQuery;
use farside_layer::{Compression, Encoder, PartId, PartWriter, layer_digest};
use farside_ledger::{Claim, EpochInfo, LayerKind, Policy, VolumeMeta, volume_id};
use farside_region::{
    BootId, Generation, Geometry, GranuleIndex, GranuleRun, LayerKey, LedgerPosition, Name, RegionIndex, RegionSet, Seq, Slot,
    Term, VolumeId,
};
use farside_transport::{
    CloseCode, Closed, Connection, Dial, DialError, Identity, Limits, PartSender, Pin, QuicDialer, Route, pair,
};
use farside_wire::{
    ClaimOutcome, ClaimRequest, EndMember, EpochEnd, Features, InstanceId, LayerBegin, PartHeader, ReadLedger, ReceiverMessage,
    Refusal, RequestId, Settings, SourceHello, SourceMessage, VersionRange, decode_payload, encode_payload,
};
use tokio::sync::watch;

/// How long a condition may take before a test gives up. Passing tests never see it.
const PATIENCE: Duration = Duration::from_secs(120);
const VOLUME_BYTES: u64 = 64 << 20;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Waits until `condition` holds.
pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(what, async || condition()).await;
}

/// Waits until `condition` holds.
pub(crate) async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Granules of content, from `start` on; what they hold follows from their number and `start`.
pub(crate) fn granules(start: u64, count: u64) -> Vec<(GranuleIndex, Vec<u8>)> {
    let content = |granule: u64| (0..4096_u64).map(|i| (granule * 31 + start * 7 + i * i) as u8).collect();
    (start..start + count).map(|granule| (GranuleIndex(granule), content(granule))).collect()
}

/// Content that does not compress.
pub(crate) fn noise(seq: u64, at: GranuleIndex, mut content: Vec<u8>) -> Vec<u8> {
    let mut state = (seq << 32 | at.0).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for byte in &mut content {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    content
}

pub(crate) struct Gateway {
    directory: Arc<tempfile::TempDir>,
    /// Where its own files are; the store may be somebody else's.
    home: PathBuf,
    child: Option<Child>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Gateway {
    /// Writes the configuration; starts nothing.
    pub(crate) fn new(more: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let home = directory.path().to_owned();
        Self::at(directory, home, more)
    }

    /// One that runs; the host `host1`, paired; its connection for the group `default`; and the volume `data` that it claimed.
    pub(crate) async fn with_claim() -> (Self, Source, Session, Volume) {
        let mut gateway = Self::new("");
        gateway.start().await;
        let host = gateway.pair("host1").await;
        let mut source = host.connect("default").await;
        let volume = source.claim("data").await;
        (gateway, host, source, volume)
    }

    /// Whether it says that the ledger of its first group is torn.
    pub(crate) async fn says_torn(&self) -> bool {
        self.status().await.sources[0].groups[0].reasons.iter().any(|reason| reason.code == "ledger_torn")
    }

    /// Tears a record of the ledger while nobody serves it, starts, and waits until that is said: the record's file, and what was in it.
    pub(crate) async fn start_torn(&mut self, slot: Slot) -> (PathBuf, Vec<u8>) {
        let record = self.path(&format!("store/groups/host1/default/ledger/0/{slot}"));
        let good = std::fs::read(&record).expect("read");
        std::fs::write(&record, &good[..20]).expect("torn");
        self.start().await;
        wait_until("the torn record to be named", async || self.says_torn().await).await;
        (record, good)
    }

    /// Another receiver with the same store.
    pub(crate) fn beside(&self) -> Self {
        let home = self.directory.path().join("beside");
        std::fs::create_dir(&home).expect("made");
        Self::at(Arc::clone(&self.directory), home, "")
    }

    fn at(directory: Arc<tempfile::TempDir>, home: PathBuf, more: &str) -> Self {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port").port();
        let text = format!(
            "[receiver]\nname = \"gateway\"\nlisten = \"127.0.0.1:{port}\"\nstore = \"{}\"\nstate_dir = \"{}\"\napi_socket = \"{}\"\n{more}",
            directory.path().join("store").display(),
            home.join("state").display(),
            home.join("api.sock").display(),
        );
        std::fs::write(home.join("receiver.toml"), text).expect("written");
        Self { directory, home, child: None }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.home.join(file)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farside-receiver"));
        command.args(arguments).current_dir(&self.home).stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).expect("a log");
        let child = self.command(&["run", "--config", "receiver.toml"]).stderr(log).spawn().expect("started");
        self.child = Some(child);
        let client = self.client();
        let deadline = Instant::now() + PATIENCE;
        while client.receiver_status().await.is_err() {
            let child = self.child.as_mut().expect("just started");
            assert!(child.try_wait().expect("our child").is_none(), "it ended: {}", self.log());
            assert!(Instant::now() < deadline, "it does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our child");
        child.wait().expect("our child");
    }

    /// SIGTERM; it must end well.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our child");
        let status = child.wait().expect("our child");
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs the program with arguments it must refuse; its words.
    pub(crate) fn run_and_fail(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("started");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Runs the program with arguments that it must take; its words.
    pub(crate) fn run_well(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("started");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Takes the store away while it runs, puts another directory in its place once that is noticed, and waits until its only group is open there.
    pub(crate) async fn put_in_its_place(&self, other: &Path) {
        let opened = || self.log().matches("the group is open").count();
        let before = opened();
        std::fs::rename(self.path("store"), self.path("away")).expect("taken away");
        wait_until("that to be noticed", async || !self.status().await.store.writable).await;
        std::fs::rename(other, self.path("store")).expect("put in its place");
        wait_until("its group to be open", async || opened() > before).await;
    }

    /// What the store holds now.
    pub(crate) fn copy_of_store(&self) -> PathBuf {
        let copy = self.path("copy");
        let copied = Command::new("cp").arg("-a").args([self.path("store"), copy.clone()]).status().expect("started");
        assert!(copied.success(), "{copied}");
        copy
    }

    /// The most memory that the process has had so far, in bytes.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// `farside-receiver token`.
    pub(crate) fn token(&self, arguments: &[&str]) -> String {
        let output = self.command(&["token", "--config", "receiver.toml"]).args(arguments).output().expect("started");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Daemon::Receiver, self.path("api.sock"))
    }

    pub(crate) async fn status(&self) -> ReceiverStatus {
        self.client().receiver_status().await.expect("it answers")
    }

    pub(crate) async fn points(&self, of: Option<&str>) -> Vec<farside_control::Point> {
        let query = PointsQuery { of: of.map(str::to_owned), limit: None };
        self.client().points(&query).await.unwrap_or_default()
    }

    /// A source of this name, with a new identity.
    pub(crate) async fn pair(&self, source: &str) -> Source {
        let stranger = Source::stranger(self);
        stranger.pair(&self.token(&[]), source).await.expect("paired")
    }

    /// File names in landing below a volume's folder, of all terms.
    pub(crate) fn landed_files(&self, volume: &str) -> Vec<String> {
        let folder = self.directory.path().join("store/landing").join(volume);
        let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
        let files = list(&folder).iter().flat_map(|term| list(term)).collect::<Vec<_>>();
        files.iter().filter_map(|f| Some(f.file_name()?.to_str()?.to_owned())).collect()
    }

    /// Every digest and every reference in the store.
    pub(crate) fn check_store(&self) {
        let store = farside_store::StoreReader::open(&self.directory.path().join("store")).expect("opened");
        let report = farside_store::check(&store, &|_| true).expect("checked");
        // What was given up goes once another record has come.
        let is_whole = report.findings.iter().all(|finding| finding.problem == farside_store::Problem::AwaitsDeletion);
        assert!(is_whole && report.records > 0, "{report:?}");
    }
}

/// A machine that may connect.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    identity: Identity,
    name: Name,
    pin: Option<Pin>,
}

impl Source {
    pub(crate) fn stranger(_gateway: &Gateway) -> Self {
        Self { identity: Identity::ephemeral().expect("an identity"), name: name("stranger"), pin: None }
    }

    pub(crate) async fn pair(&self, token: &str, source: &str) -> Result<Self, DialError> {
        let token = token.parse().expect("a token");
        let pin = pair(&token, &self.identity, &name(source), &Route::default(), &Limits::default()).await?;
        Ok(Self { identity: self.identity.clone(), name: name(source), pin: Some(pin) })
    }

    /// Where it believes the receiver to be.
    pub(crate) fn receiver(&self) -> std::net::SocketAddr {
        self.pin.as_ref().expect("paired").addresses[0].parse().expect("an address")
    }

    /// Looks for its receiver elsewhere.
    pub(crate) fn at(&self, address: std::net::SocketAddr) -> Self {
        let mut pin = self.pin.clone().expect("paired");
        pin.addresses = vec![address.to_string()];
        Self { pin: Some(pin), ..self.clone() }
    }

    /// Knows where the receiver is, as `other` does.
    pub(crate) fn with_pin(self, other: &Self) -> Self {
        Self { pin: other.pin.clone(), ..self }
    }

    pub(crate) async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
        let pin = watch::channel(self.pin.clone()).1;
        QuicDialer::new(self.identity.clone(), self.name.clone(), pin, Route::default(), Limits::default()).dial().await
    }

    pub(crate) async fn raw(&self) -> Arc<dyn Connection> {
        self.dial().await.expect("connected")
    }

    /// Connects and greets; whatever the answer.
    pub(crate) async fn hello_as(&self, source: &str, group: &str) -> Session {
        self.hello_of_run(source, group, 0).await
    }

    /// As another run of the same source: both stand side by side.
    pub(crate) async fn connect_of_run(&self, group: &str, run: u8) -> Session {
        let mut session = self.hello_of_run(self.name.as_str(), group, run).await;
        session.expect("a greeting", |m| matches!(m, ReceiverMessage::Hello(_)).then_some(())).await;
        session
    }

    async fn hello_of_run(&self, source: &str, group: &str, run: u8) -> Session {
        let mut instance: [u8; 16] = self.identity.fingerprint().0[..16].try_into().expect("16 bytes");
        instance[0] ^= run;
        self.hello_with(source, group, InstanceId(instance), Features::OURS).await
    }

    /// Connects to pull, and greets; whatever the answer.
    pub(crate) async fn pull_hello(&self, source: &str, group: &str) -> Session {
        self.hello_with(source, group, InstanceId([7; 16]), Features::PULL).await
    }

    /// Connects to be cut with others, and greets; whatever the answer.
    pub(crate) async fn cohort_hello(&self, source: &str, group: &str) -> Session {
        self.hello_with(source, group, InstanceId([8; 16]), Features::COHORT).await
    }

    /// Connects to pull, and is let in.
    pub(crate) async fn pulling(&self, source: &str, group: &str) -> Session {
        let mut session = self.pull_hello(source, group).await;
        session.expect("a greeting", |m| matches!(m, ReceiverMessage::Hello(_)).then_some(())).await;
        session
    }

    /// As a later version that has more in its greeting; whatever the answer.
    pub(crate) async fn greet_as_later_version(&self, group: &str) -> Session {
        let session = Session { connection: self.raw().await, source: self.name.clone(), group: name(group), requests: 0 };
        let hello = SourceMessage::Hello(SourceHello {
            versions: VersionRange { min: 1, max: 2 },
            features: Features::OURS,
            instance: InstanceId([9; 16]),
            connection: next_connection(),
            source: self.name.clone(),
            group: name(group),
        });
        let payload = [&encode_payload(&hello).expect("encoded")[..], &[1, 2, 3]].concat();
        session.connection.send(Bytes::from(payload)).await.expect("sent");
        session
    }

    async fn hello_with(&self, source: &str, group: &str, instance: InstanceId, features: Features) -> Session {
        let mut session = Session { connection: self.raw().await, source: name(source), group: name(group), requests: 0 };
        let hello = SourceHello {
            versions: VersionRange::OURS,
            features,
            instance,
            connection: next_connection(),
            source: name(source),
            group: name(group),
        };
        session.send(SourceMessage::Hello(hello)).await;
        session
    }

    /// Connects and is let in.
    pub(crate) async fn connect(&self, group: &str) -> Session {
        let mut session = self.hello_as(self.name.as_str(), group).await;
        session.expect("a greeting", |m| matches!(m, ReceiverMessage::Hello(_)).then_some(())).await;
        session
    }

    /// Connects in place of another, and is let in.
    pub(crate) async fn connect_as(&self, source: &str, group: &str) -> Session {
        let mut session = self.hello_as(source, group).await;
        session.expect("a greeting", |m| matches!(m, ReceiverMessage::Hello(_)).then_some(())).await;
        session
    }

    /// Connects until it is let in: the group may still be opening.
    pub(crate) async fn connect_when_ready(&self, group: &str) -> Session {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let session = self.hello_as(self.name.as_str(), group).await;
            if let Ok(frame) = session.connection.recv().await
                && matches!(decode_payload(&frame), Ok(ReceiverMessage::Hello(_)))
            {
                return session;
            }
            assert!(Instant::now() < deadline, "never let in");
        }
    }
}

fn next_connection() -> u64 {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A claimed volume.
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) term: Term,
    pub(crate) meta: VolumeMeta,
}

impl Volume {
    pub(crate) fn key(&self, seq: u64) -> LayerKey {
        LayerKey { volume: self.id, term: self.term, seq: Seq(seq) }
    }

    /// What an end message says of a layer without parts.
    pub(crate) fn empty_layer(&self, seq: u64, regions: RegionSet, volume_bytes: u64) -> EndMember {
        EndMember {
            key: self.key(seq),
            parts: 0,
            digest: layer_digest(&self.key(seq), &[]),
            regions,
            whole_regions: RegionSet::default(),
            unreadable_regions: RegionSet::default(),
            volume_bytes,
        }
    }

    /// The only part of a layer: its bytes, and what the end message says of the layer.
    pub(crate) fn part(&self, seq: u64, content: &[(GranuleIndex, Vec<u8>)]) -> (Vec<u8>, EndMember) {
        self.part_of(seq, 0, content)
    }

    /// The same, under any number.
    pub(crate) fn part_of(&self, seq: u64, part: u32, content: &[(GranuleIndex, Vec<u8>)]) -> (Vec<u8>, EndMember) {
        let geometry = self.meta.geometry;
        let id = PartId { key: self.key(seq), part, geometry };
        let mut writer = PartWriter::new(id, &self.meta.digest_key, Encoder::new(Compression::Zstd(1)));
        let (mut regions, mut unreadable_regions) = (RegionSet::default(), RegionSet::default());
        let mut bytes = Vec::new();
        let (mut at, end) = (GranuleIndex(0), geometry.whole().end());
        // The first layer holds the whole volume: zeroes where nothing else is.
        let zeroes = |writer: &mut PartWriter, from: GranuleIndex, to: GranuleIndex| {
            if seq == 1 && from < to {
                writer.push_zero(GranuleRun { start: from, count: to.0 - from.0 }).expect("there is room");
            }
        };
        for (granule, content) in content {
            zeroes(&mut writer, at, *granule);
            // Without content: the source could not read it.
            if content.is_empty() {
                writer.push_unreadable(GranuleRun { start: *granule, count: 1 }).expect("there is room");
                unreadable_regions.insert(geometry.region_of(*granule));
            } else {
                writer.push_data(*granule, content).expect("there is room");
            }
            regions.insert(geometry.region_of(*granule));
            bytes.extend(writer.take_chunk());
            at = GranuleIndex(granule.0 + 1);
        }
        zeroes(&mut writer, at, end);
        if seq == 1 {
            regions = (0..geometry.region_count()).map(RegionIndex).collect();
        }
        let (tail, summary, _) = writer.finish();
        bytes.extend(tail);
        let member = EndMember {
            key: self.key(seq),
            parts: 1,
            digest: layer_digest(&self.key(seq), &[summary.footer_digest]),
            regions,
            whole_regions: RegionSet::default(),
            unreadable_regions,
            volume_bytes: VOLUME_BYTES,
        };
        (bytes, member)
    }
}

/// A connection for a group.
pub(crate) struct Session {
    connection: Arc<dyn Connection>,
    source: Name,
    group: Name,
    requests: u64,
}

impl Session {
    pub(crate) async fn send(&mut self, message: SourceMessage) {
        let payload = encode_payload(&message).expect("a message");
        let _ = self.connection.send(payload).await; // a refusal shows when something is expected
    }

    /// The first message that `wanted` takes; others are skipped.
    pub(crate) async fn expect<T>(&mut self, what: &str, wanted: impl Fn(ReceiverMessage) -> Option<T>) -> T {
        let search = async {
            loop {
                let frame = self.connection.recv().await.unwrap_or_else(|e| panic!("{what} was expected: {e}"));
                let message: ReceiverMessage = decode_payload(&frame).expect("a message");
                let shown = format!("{message:?}");
                if let Some(found) = wanted(message) {
                    return found;
                }
                assert!(!shown.starts_with("Refusal"), "{what} was expected: {shown}");
            }
        };
        tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("gave up waiting for {what}"))
    }

    pub(crate) async fn refusal(&mut self) -> Refusal {
        self.expect("a refusal", |m| match m {
            ReceiverMessage::Refusal(refusal) => Some(refusal),
            _ => None,
        })
        .await
    }

    pub(crate) async fn closed(&self) -> Closed {
        tokio::time::timeout(PATIENCE, self.connection.closed()).await.expect("it is closed in time")
    }

    /// Its last word: it owes nothing.
    pub(crate) fn settle(&self) {
        self.connection.close(CloseCode::Settled, "it owes nothing");
    }

    /// Sends a claim for a volume, changed as a test likes.
    pub(crate) async fn claim_raw(&mut self, volume: &str, change: impl FnOnce(&mut Claim)) -> VolumeMeta {
        self.requests += 1;
        let meta = VolumeMeta {
            id: volume_id(&self.source, &self.group, &name(volume)),
            name: name(volume),
            geometry: Geometry::new(VOLUME_BYTES).expect("a geometry"),
            digest_key: [5; 32].into(),
            generation: Generation(1),
        };
        let mut claim = Claim { volume: meta.clone(), looked: None, source: self.source.clone() };
        change(&mut claim);
        self.send(SourceMessage::Claim(ClaimRequest { id: RequestId(self.requests), claim })).await;
        meta
    }

    /// Claims a volume that nobody claimed before.
    pub(crate) async fn claim(&mut self, volume: &str) -> Volume {
        let meta = self.claim_raw(volume, |_| {}).await;
        self.claimed(meta).await
    }

    /// Claims a volume of another size that nobody claimed before.
    pub(crate) async fn claim_of(&mut self, volume: &str, geometry: Geometry) -> Volume {
        let mut meta = self.claim_raw(volume, |claim| claim.volume.geometry = geometry).await;
        meta.geometry = geometry;
        self.claimed(meta).await
    }

    /// Sends what is not a message.
    pub(crate) async fn send_raw(&mut self, frame: &'static [u8]) {
        let _ = self.connection.send(Bytes::from_static(frame)).await;
    }

    /// Claims a volume anew, having looked at everything that a former claim can have published.
    pub(crate) async fn claim_above(&mut self, volume: &str, former: &Volume) -> Volume {
        let head = self.head(former).await;
        let meta = self.claim_raw(volume, |claim| claim.looked = head).await;
        self.claimed(meta).await
    }

    /// The newest slot of the ledger.
    pub(crate) async fn head(&mut self, volume: &Volume) -> Option<Slot> {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.send(SourceMessage::ReadLedger(ReadLedger { id, volume: volume.id, position: None, after: None })).await;
        let slice = self.expect("a slice of the ledger", |m| match m {
            ReceiverMessage::LedgerSlice(slice) => Some(slice.head),
            _ => None,
        });
        slice.await.map(|head| head.slot)
    }

    /// Claims a volume anew, above whoever was promoted in its place.
    pub(crate) async fn claim_back(&mut self, volume: &str, former: &Volume, generation: Generation) -> Volume {
        let head = self.head(former).await;
        let change = |claim: &mut Claim| (claim.looked, claim.volume.generation) = (head, generation);
        let mut meta = self.claim_raw(volume, change).await;
        meta.generation = generation;
        self.claimed(meta).await
    }

    async fn claimed(&mut self, meta: VolumeMeta) -> Volume {
        let outcome = self
            .expect("a verdict", |m| match m {
                ReceiverMessage::ClaimVerdict(verdict) => Some(verdict.outcome),
                _ => None,
            })
            .await;
        let ClaimOutcome::Accepted { position } = outcome else { panic!("{outcome:?}") };
        Volume { id: meta.id, term: Term(position.slot.0), meta }
    }

    pub(crate) async fn send_part(&mut self, volume: &Volume, seq: u64, part: u32, bytes: &[u8]) {
        let header = PartHeader { key: volume.key(seq), part }.encode();
        let mut stream = self.connection.open_part(Bytes::copy_from_slice(&header)).await.expect("opened");
        for chunk in bytes.chunks(30_000) {
            if stream.write(Bytes::copy_from_slice(chunk)).await.is_err() {
                return;
            }
        }
        let _ = stream.finish();
    }

    pub(crate) async fn begin_part_and_reset(&mut self, volume: &Volume, seq: u64, part: u32, bytes: &[u8]) {
        self.begin_part(volume, seq, part, bytes).await.reset();
    }

    /// Begins a part and leaves it to the caller; it may break off at once.
    pub(crate) async fn begin_part(&mut self, volume: &Volume, seq: u64, part: u32, bytes: &[u8]) -> Box<dyn PartSender> {
        let header = PartHeader { key: volume.key(seq), part }.encode();
        let mut stream = self.connection.open_part(Bytes::copy_from_slice(&header)).await.expect("opened");
        let _ = stream.write(Bytes::copy_from_slice(bytes)).await;
        stream
    }

    /// Says all that made a layer a point, whatever the answers.
    pub(crate) async fn play(&mut self, volume: &Volume, seq: u64, bytes: &[u8], member: &EndMember) {
        let claim = Claim { volume: volume.meta.clone(), looked: None, source: self.source.clone() };
        self.send(SourceMessage::Claim(ClaimRequest { id: RequestId(1), claim })).await;
        self.send(SourceMessage::LayerBegin(LayerBegin { key: volume.key(seq) })).await;
        self.send_part(volume, seq, 0, bytes).await;
        self.end(vec![member.clone()], LayerKind::Point).await;
    }

    /// Announces a layer and sends its part.
    pub(crate) async fn send_layer(&mut self, volume: &Volume, seq: u64, content: &[(GranuleIndex, Vec<u8>)]) -> EndMember {
        let (bytes, member) = volume.part(seq, content);
        self.send(SourceMessage::LayerBegin(LayerBegin { key: volume.key(seq) })).await;
        self.send_part(volume, seq, 0, &bytes).await;
        member
    }

    pub(crate) async fn end(&mut self, members: Vec<EndMember>, kind: LayerKind) {
        self.send(SourceMessage::EpochEnd(Self::epoch_end(members, kind))).await;
    }

    pub(crate) fn epoch_end(members: Vec<EndMember>, kind: LayerKind) -> EpochEnd {
        let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 10, mono_after_ns: 20, wall_ms: 1_700_000_000_000 };
        EpochEnd { kind, epoch, members }
    }

    pub(crate) async fn published(&mut self, volume: &Volume, seq: u64) -> LedgerPosition {
        let key = volume.key(seq);
        self.expect("a publication", |m| match m {
            ReceiverMessage::Published(published) if published.layers.contains(&key) => Some(published.position),
            _ => None,
        })
        .await
    }

    /// A whole layer of one volume, to its publication.
    pub(crate) async fn publish(
        &mut self,
        volume: &Volume,
        seq: u64,
        content: &[(GranuleIndex, Vec<u8>)],
        kind: LayerKind,
    ) -> LedgerPosition {
        let member = self.send_layer(volume, seq, content).await;
        self.end(vec![member], kind).await;
        self.published(volume, seq).await
    }

    /// Many layers whose parts are sent at once, to the publication of the last.
    pub(crate) async fn publish_at_once(&mut self, volume: &Volume, layers: &[u64], granules_each: u64) {
        let mut members = Vec::new();
        let mut tasks = Vec::new();
        for &seq in layers {
            let content: Vec<_> = granules(0, granules_each).into_iter().map(|(at, c)| (at, noise(seq, at, c))).collect();
            let (bytes, member) = volume.part(seq, &content);
            members.push(member);
            let header = PartHeader { key: volume.key(seq), part: 0 }.encode();
            let connection = Arc::clone(&self.connection);
            tasks.push(tokio::spawn(async move {
                let mut stream = connection.open_part(Bytes::copy_from_slice(&header)).await.expect("opened");
                for chunk in bytes.chunks(100_000) {
                    stream.write(Bytes::copy_from_slice(chunk)).await.expect("written");
                }
                stream.finish().expect("finished");
            }));
        }
        for member in members {
            self.end(vec![member], LayerKind::Fuzzy).await;
        }
        for task in tasks {
            task.await.expect("sent");
        }
        self.published(volume, *layers.last().expect("there are layers")).await;
    }

    /// What a host says of which nobody has said anything.
    pub(crate) async fn set_default_keep(&mut self, keep: u32) {
        self.send(SourceMessage::DefaultRetention(Policy::without_grid(keep, 0))).await;
    }

    pub(crate) async fn set_keep(&mut self, keep: u32) {
        self.send(SourceMessage::Settings(Settings { keep, span_ms: 0 })).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(CloseCode::Done, "done");
    }
}
