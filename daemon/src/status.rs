//! What people are told: the state machine's status in the API's words, with a reason and a next step for everything that is
//! not as it should be.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_control::source::{
    BackingStatus, BehindWhat, DataPathStatus, GroupStatus, LastPoint, Progress, SideBuffer, TapStatus, VolumeCounters,
    VolumeState, VolumeStatus,
};
use farside_control::{Code, Consistency, PointId, Reason, Severity};
use farside_ledger::Label;
use farside_region::LedgerPosition;
use farside_replication::source::{self, Behind, RefusedWhy, State, Trouble};
use farside_transport::{Carrier, CloseCode, Closed, NotConnected, WhyTcp};

use crate::group::{Control, Member};
use crate::loss::Loss;
use crate::state_dir::Mark;
use crate::tally::Rates;

/// A disk that takes so long for the intent map is one that does not answer.
const MAP_SILENCE: Duration = Duration::from_secs(5);

/// A point, in short.
pub(crate) fn last_point(position: &LedgerPosition, wall_ms: i64) -> LastPoint {
    let cut_wall = jiff::Timestamp::from_millisecond(wall_ms).unwrap_or_default();
    LastPoint { id: PointId::new(position.slot.0, &position.digest.0), cut_wall }
}

/// What is said of a point: in which state applications find their data, its title, and what hooks said.
pub(crate) fn said_of(label: Option<&Label>) -> (Consistency, String, String) {
    let consistency = match label.map(|label| label.consistency) {
        Some(farside_ledger::Consistency::Application) => Consistency::Application,
        Some(farside_ledger::Consistency::Cohort(_)) => Consistency::Cohort,
        Some(farside_ledger::Consistency::Crash) | None => Consistency::Crash,
    };
    let (title, hooks) = label.map(|label| (label.title.clone(), label.hooks.clone())).unwrap_or_default();
    (consistency, title, hooks)
}

impl Control {
    pub(crate) fn status(&mut self) -> GroupStatus {
        let status = self.source.status(monotonic_ns());
        for v in status.volumes.iter().filter(|v| !is_in_doubt(&v.state)) {
            if let Some(member) = self.members.get_mut(&v.volume).filter(|member| member.bypass.is_none()) {
                member.doubt = None;
            }
        }
        let side = self.shim.side_buffer_usage();
        let granules = |n: usize| n as u64 * farside_region::Geometry::GRANULE_BYTES;
        let open_bytes = status.volumes.iter().map(|v| v.open_bytes).sum();
        let rates =
            if status.connected { self.tally.rates(Instant::now(), self.bytes_read(), open_bytes) } else { Rates::default() };
        let mut volumes: Vec<VolumeStatus> = status
            .volumes
            .iter()
            .filter_map(|v| {
                let member = self.members.get(&v.volume)?;
                let verify = self.verify_status(v.volume, member);
                let backlog_bytes = self.source.backlog_bytes(v.volume, &member.served.volume.open_set());
                Some(VolumeStatus { verify, backlog_bytes, ..volume_status(self, member, v) })
            })
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let worst = volumes.iter().map(|v| &v.state).max_by_key(|s| s.rank()).cloned().unwrap_or_default();
        let backlog_bytes = volumes.iter().map(|v| v.backlog_bytes).sum();
        let newest = status.volumes.iter().filter_map(|v| v.newest_point).max_by_key(|p| p.position.slot);
        // What the store has lost of the newest content no restore brings back, however new the point is (L10).
        let lag_of = |v: &source::VolumeStatus| v.lag.filter(|_| !self.damaged.contains_key(&v.volume));
        let lag = status.volumes.iter().map(lag_of).try_fold(0, |worst, lag| lag.map(|l| worst.max(l)));
        let staged_lag =
            status.volumes.iter().map(|v| lag_of(v).and(v.staged_lag)).try_fold(0, |worst, lag| lag.map(|l| worst.max(l)));
        let behind = volumes.iter().any(|v| matches!(v.state, VolumeState::Behind { .. })) && status.receiver_trouble.is_none();
        let converging = status.volumes.iter().all(|v| v.not_converging.is_none());
        GroupStatus {
            name: self.name.to_string(),
            epoch_interval_ms: self.config.epoch_interval.as_millis() as u64,
            keep: self.config.keep,
            span_ms: self.config.span().as_millis() as u64,
            grid: self.config.grid.to_string(),
            encryption: self.around.keys.status(self.members.values().map(|member| &member.served.meta)),
            state: worst,
            lag_ms: lag.filter(|_| !volumes.is_empty()).map(|ns| ns / 1_000_000),
            staged_lag_ms: staged_lag.filter(|_| !volumes.is_empty()).map(|ns| ns / 1_000_000),
            backlog_bytes,
            rate_bytes_per_s: rates.sent_bytes_per_s,
            limit_bytes_per_s: self.around.pacer.limit(),
            dirtied_bytes_per_s: rates.dirtied_bytes_per_s,
            eta_ms: rates.eta_ms(backlog_bytes).filter(|_| behind && converging && backlog_bytes > 0),
            last_point: newest.map(|p| last_point(&p.position, p.epoch.wall_ms)),
            consistent: self.consistent_status(),
            cohort: self.cohort_status(),
            points_published: self.published,
            layers_unpublished: status.volumes.iter().map(|v| v.unpublished_layers as u64).sum(),
            reasons: group_reasons(self, &status),
            volumes,
            switches: self.tally.switches(),
            link: self.tally.link(
                status.connected,
                self.link.as_ref().map(|link| link.connection.statistics()),
                self.link.as_ref().map(|link| link.connection.peer().carrier),
            ),
            side_buffer: SideBuffer { used_bytes: granules(side.0), limit_bytes: granules(side.1) },
            cut_budget_bytes: status.cut_budget_bytes,
        }
    }
}

fn group_reasons(control: &Control, status: &source::Status) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !status.connected {
        reasons.extend(last_end(control).as_ref().and_then(why_not_connected));
    }
    if let Some(Carrier::Tcp(Some(why))) = control.link.as_ref().map(|link| link.connection.peer().carrier)
        && why != WhyTcp::Asked
    {
        let todo = "let UDP through to the receiver's port, which takes less of both machines; it is tried again by itself";
        let message = format!("the receiver is reached over TCP: {why}");
        reasons.push(Reason::new(Severity::Info, Code::OverTcp, message, todo));
    }
    if let Some(why) = control.why_not_sent() {
        let todo = "everything is served and tracked, and nothing is sent: mend that; what waits for a key or a program is tried again by \
                    itself, for what the configuration says restart farsided (`farside explain key_missing`)";
        reasons.push(Reason::new(Severity::Error, Code::KeyMissing, why, todo));
    }
    if let Some(silent) = control.silent {
        let message = format!("the receiver has said nothing for {} s", silent.as_secs());
        let todo = "it was killed, or the network between is down: that is known in a few seconds, and tried again by itself";
        reasons.push(Reason::new(Severity::Warning, Code::NotConnected, message, todo));
    }
    if let Some(why) = control.why_still_quiesced() {
        let todo = "end that by hand if it does not end by itself (`farside explain hooks_failed`)";
        let message = format!("what hooks quiesced may still be: {why}");
        reasons.push(Reason::new(Severity::Error, Code::HooksFailed, message, todo));
    }
    if let Some(failed) = control.hooks_failure() {
        let todo =
            "mend what the hook says, then try: farside point take GROUP; points are made meanwhile, crash-consistent ones";
        reasons.push(Reason::new(Severity::Warning, Code::HooksFailed, failed.why.clone(), todo));
    }
    let is_full = |v: &source::VolumeStatus| v.state == State::Behind(Behind::GatewayFull);
    if let Some(trouble) = &status.receiver_trouble {
        reasons.push(trouble_reason(trouble, status.volumes.iter().any(is_full)));
    }
    reasons
}

/// What is not well at the receiver. `waits`: a volume has something to send, and cannot.
fn trouble_reason(trouble: &Trouble, waits: bool) -> Reason {
    let room = "make room on the disk of the gateway's store, or keep fewer points; the rest follows by itself";
    match trouble {
        Trouble::Full { free_bytes, reserve_bytes } => {
            // Where nothing waits for it nothing is late.
            let severity = if waits { Severity::Error } else { Severity::Warning };
            let message = format!(
                "the disk of the gateway's store is full: {} MiB left above the {} MiB that it keeps for its ledger; existing points are intact",
                free_bytes >> 20,
                reserve_bytes >> 20
            );
            Reason::new(severity, Code::GatewayFull, message, room)
        }
        Trouble::Crowded { free_bytes } => {
            let message = format!(
                "it waits for room at the gateway: the disk of its store has {} MiB left, which other groups were granted; existing points are intact",
                free_bytes >> 20
            );
            Reason::new(Severity::Warning, Code::GatewayFull, message, room)
        }
        Trouble::StoreFailed { text } => {
            let message = format!("the gateway cannot publish: {text}");
            let todo = "look at `farside status` at the gateway; the rest follows by itself";
            Reason::new(Severity::Error, Code::StoreFailed, message, todo)
        }
        other => Reason::new(
            Severity::Error,
            Code::StoreFailed,
            format!("the gateway says {other:?}"),
            "look at `farside status` at the gateway",
        ),
    }
}

/// What a person can do about it depends on who says no.
fn why_not_connected(why: &NotConnected) -> Option<Reason> {
    use Severity::{Error, Warning};
    use farside_transport::DialError as D;
    let again = "changes are remembered and sent when the receiver is back; check the receiver and the network between";
    let pair = "make a token at the gateway (`farside-receiver token`), then here: farside pair TOKEN";
    let full = "make room on the disk of the gateway's store, or keep fewer points (`farside group set NAME --keep N --span 1h`); the connection comes again by itself";
    let versions = "install the same version on both sides, the receiver first";
    let words = "do as it says, on the gateway or here: it is tried again by itself (`farside status` there shows the group)";
    let refused = |code: CloseCode| match code {
        CloseCode::Incompatible => Some((Error, Code::VersionMismatch, versions)),
        CloseCode::NotPaired | CloseCode::WrongName => Some((Error, Code::ReceiverRefuses, pair)),
        CloseCode::Full => Some((Error, Code::GatewayFull, full)),
        CloseCode::Overloaded => Some((Warning, Code::ReceiverRefuses, "raise the limits in the receiver's configuration")),
        _ => None,
    };
    let (severity, code, todo) = match why {
        // Said once for the host.
        NotConnected::Dial(D::NotPaired) => return None,
        NotConnected::Dial(D::WrongReceiver { .. }) => {
            (Error, Code::WrongReceiver, "find out which machine answers there; if it is yours, pair again")
        }
        NotConnected::Dial(D::Incompatible { .. }) => (Error, Code::VersionMismatch, versions),
        NotConnected::Dial(D::Refused { code, .. }) => refused(*code).unwrap_or((Warning, Code::NotConnected, again)),
        // It was told so in words, and went.
        NotConnected::Ended(Closed::Here { code: CloseCode::Refused, .. }) => (Error, Code::ReceiverRefuses, words),
        NotConnected::Ended(Closed::ByPeer { code: CloseCode::Refused, .. }) => (Warning, Code::NotConnected, words),
        NotConnected::Ended(closed) => closed.code().and_then(refused).unwrap_or((Warning, Code::NotConnected, again)),
        NotConnected::Dial(_) => (Warning, Code::NotConnected, again),
    };
    Some(Reason::new(severity, code, why.to_string(), todo))
}

fn volume_status(control: &Control, member: &Member, v: &source::VolumeStatus) -> VolumeStatus {
    let served = &member.served;
    let geometry = served.volume.geometry();
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let c = &served.counters;
    let tap = served.tap.load();
    VolumeStatus {
        name: v.name.to_string(),
        group: control.name.to_string(),
        id: v.volume.to_string(),
        bytes: geometry.volume_bytes(),
        tap: TapStatus {
            address: served.config.address(),
            clients: tap.clients,
            in_flight: tap.in_flight as u32,
            queues: served.tap.queues(),
            data_path: served.tap.data_path().map(|choice| DataPathStatus {
                name: choice.path.as_str().to_owned(),
                why: choice.why.clone(),
                copied: served.tap.copied(),
            }),
        },
        backing: BackingStatus {
            path: served.config.backing.clone(),
            kind: match served.device.kind() {
                farside_blockio::DeviceKind::Block => "block device".to_owned(),
                farside_blockio::DeviceKind::File => "file".to_owned(),
            },
            block_bytes: served.device.block_min(),
        },
        if_absent: served.config.if_absent,
        state: state_of(v, ended_full(control)),
        in_last_point: v.newest_point.is_some(),
        hot_bytes: (hot_regions(&served.volume) * geometry.region_bytes()).min(geometry.volume_bytes()),
        dirty_bytes: v.open_bytes.min(geometry.volume_bytes()),
        backlog_bytes: 0,
        lag_ms: v.lag.filter(|_| !control.damaged.contains_key(&v.volume)).map(|ns| ns / 1_000_000),
        staged_lag_ms: v.staged_lag.filter(|_| !control.damaged.contains_key(&v.volume)).map(|ns| ns / 1_000_000),
        unreadable_bytes: v.unreadable_bytes,
        counters: VolumeCounters {
            reads: load(&c.reads),
            read_bytes: load(&c.read_bytes),
            writes: load(&c.writes),
            written_bytes: load(&c.written_bytes),
            flushes: load(&c.flushes),
            trims: load(&c.trims),
            trimmed_bytes: load(&c.trimmed_bytes),
            errors: load(&c.errors),
            sent_bytes: load(&served.sent.read_bytes),
            wire_bytes: load(&served.sent.wire_bytes),
            equal_bytes: load(&served.sent.equal_bytes),
            parks: load(&c.parks),
            saves: load(&c.saves),
        },
        verify: None,
        reasons: volume_reasons(member, v, control),
    }
}

/// With which code a connection is ended for that: [`why_not_connected`] tells by it a gateway that does not want this host from one that makes no sense.
pub(crate) fn close_code(problem: &source::Problem) -> CloseCode {
    match problem {
        source::Problem::Refused { code: farside_wire::RefusalCode::Unknown, .. } => CloseCode::Refused,
        _ => CloseCode::Protocol,
    }
}

/// Why there is no connection, where there is none.
fn last_end(control: &Control) -> Option<NotConnected> {
    use farside_transport::ConnectorState as C;
    match &*control.connector.borrow() {
        C::Waiting { why, .. } | C::Dialing { last: Some(why) } => Some(why.clone()),
        _ => None,
    }
}

/// Whether the last connection ended since what was sent had no room at the gateway: the next one comes at once, and may end so, too.
fn ended_full(control: &Control) -> bool {
    matches!(last_end(control), Some(NotConnected::Ended(closed)) if closed.code() == Some(CloseCode::Full))
}

/// `ended_full`: the gateway had no room, and ended the connection.
fn state_of(v: &source::VolumeStatus, ended_full: bool) -> VolumeState {
    let progress = v.reading.map_or(Progress::default(), |p| Progress { done_bytes: p.done_bytes, total_bytes: p.total_bytes });
    let behind = |what| VolumeState::Behind { what, progress };
    match &v.state {
        // Served, tracked, and once claimed: what is missing is the receiver.
        State::Idle if v.term.is_some() && ended_full => behind(BehindWhat::GatewayFull),
        State::Idle if v.term.is_some() => behind(BehindWhat::CatchingUp),
        State::Idle => VolumeState::Idle,
        State::Behind(Behind::FirstSync) => behind(BehindWhat::FirstSync),
        State::Behind(Behind::Comparing) => behind(BehindWhat::Comparing),
        State::Behind(Behind::GatewayFull) => behind(BehindWhat::GatewayFull),
        State::Behind(Behind::StoreFailed) => behind(BehindWhat::StoreFailed),
        State::Behind(_) => behind(BehindWhat::CatchingUp),
        State::Streaming => VolumeState::Streaming,
        State::Paused => VolumeState::Paused,
        State::TrackingLost => VolumeState::TrackingLost,
        State::Refused(RefusedWhy::TargetRewound) => VolumeState::TargetRewound,
        State::Refused(RefusedWhy::Fenced) => VolumeState::Fenced,
        State::Refused(_) => VolumeState::Forked,
    }
}

fn volume_reasons(member: &Member, v: &source::VolumeStatus, control: &Control) -> Vec<Reason> {
    let segments_damaged = control.damaged.get(&v.volume).copied().unwrap_or(0);
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    use Severity::{Error, Warning};
    let mut reasons: Vec<Reason> = member.growth_reason().into_iter().collect();
    let (name, group) = (&member.served.config.name, &member.served.config.group);
    let mut say = |severity, code: Code, message: String, todo: &str| {
        reasons.push(Reason::new(severity, code, message, todo.replace("NAME", name.as_str()).replace("GROUP", group.as_str())));
    };
    let compared = "everything is compared by itself then; points appear again after that, the older ones stay good";
    if let Some(why) = member.served.tap.lacks_its_name() {
        let message = format!("its device is served, but has no name yet: {why}");
        say(
            Warning,
            Code::Starting,
            message,
            "see the kernel's log for its disk, and the volume's other reasons; it is shown by itself then",
        );
    }
    if let Some(why) = &member.sight.unseen {
        let message = format!("whether something goes past its tap cannot be seen: {why}");
        say(Warning, Code::TrackingLost, message, "no point is made meanwhile; see the kernel's log, or restart farsided");
    }
    if let Some(gone) = member.bypass.as_ref().filter(|bypass| bypass.is_gone) {
        let message = format!("{}: what its host reads and writes fails, and points are made without it", gone.why);
        let todo = "attach the disk again (mount nothing of it by its own name), stop what uses the volume, then restart farsided; everything is \
                    compared then";
        say(Error, Code::NotServed, message, todo);
    } else if let Some(bypass) = &member.bypass {
        let waits = bypass.waits.as_ref().map(|why| format!(" (not yet: {why})")).unwrap_or_default();
        let todo = match Mark::Paused.is_set(&member.served.dir).unwrap_or(false) {
            _ if member.served.blind.is_some() => {
                "its host goes on, older points stay good, and no new one is made: restart farsided once the device is not in use; if it is \
                 said again, another `tap` may do (farside doctor)"
                    .into()
            }
            true => {
                "its tap is not put back while it is paused: `farside volume resume NAME`, or `farside volume remove NAME`".into()
            }
            false => format!(
                "its tap is put under it again by itself{waits}; {compared}. To have it out: `farside volume remove NAME`"
            ),
        };
        say(Error, Code::TrackingLost, format!("{}: what is written there is not replicated", bypass.why), &todo);
    } else if let Some(doubt) = member.doubt.as_ref().filter(|_| is_in_doubt(&v.state)) {
        let severity = if v.state == State::TrackingLost { Error } else { Warning };
        let todo = "wait: older points stay good, and new ones follow when all is compared";
        say(severity, Code::TrackingLost, format!("everything is compared, since {doubt}"), todo);
    }
    if let Some(why) = &v.claim_refused {
        say(
            Error,
            Code::ReceiverRefuses,
            format!("the receiver does not take it: {why}"),
            "do as it says; it is tried again by itself, and the others of its group go on. One volume too many: raise the limit in receiver.toml there, or \
             `farside volume remove NAME`, and add it to another group",
        );
    }
    if v.is_in_clear {
        say(
            Warning,
            Code::InClear,
            "the gateway keeps new volumes encrypted, and this one is in its store in clear".into(),
            "it goes on as it is; to have it encrypted, remove it and add it under another name, with a first sync (`farside explain in_clear`)",
        );
    }
    let dir = member.served.dir.display();
    let unmarked = member.unmarked.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    match &v.state {
        // That was said.
        State::TrackingLost if member.loss == Loss::Kept && (member.bypass.is_some() || member.doubt.is_some()) => {}
        State::Refused(RefusedWhy::Forked) => say(
            Error,
            Code::Forked,
            "what was published is not this disk's history: it was rolled back, cloned, or its tracking state is gone".into(),
            "make sure that no other host serves this volume; then `farside volume resync NAME --accept forked` continues the \
             published history from this disk as it is, comparing everything",
        ),
        State::Refused(RefusedWhy::TargetRewound) => say(
            Error,
            Code::TargetRewound,
            "the store is older than what this host saw published: the gateway or its store was rolled back".into(),
            "bring the newer store back; or `farside volume resync NAME --accept rewound` goes on from the older one",
        ),
        // † Only the source takes a history back, by failback or otherwise.
        State::Refused(RefusedWhy::Fenced) if control.config.stand_in_for.is_some() => say(
            Error,
            Code::Fenced,
            "another copy of this volume was promoted, or its source has its history back: this host stands in no more".into(),
            "see `farside failover --list` at the gateway. If this host has the copy that was brought up last: `farside volume resync NAME --accept fenced` \
             publishes it under that promotion; otherwise `farside volume remove NAME`",
        ),
        State::Refused(RefusedWhy::Fenced) => say(
            Error,
            Code::Fenced,
            "another copy of this volume was promoted".into(),
            "this host serves its own disk and replicates nothing; decide which side lives: if the copy, `farside failback GROUP` brings what \
             was published there to this host; if this one, `farside rollback GROUP` pins what was published there, and takes the history back",
        ),
        State::Refused(RefusedWhy::Shape) => say(
            Error,
            Code::Shape,
            "the volume is smaller than what was published".into(),
            "give the space back, or remove the volume and add it under another name",
        ),
        State::Refused(RefusedWhy::Key) => say(
            Error,
            Code::KeyDiffers,
            "the volume is encrypted in the store and not here, or here and not there, or with another key, or the gateway does not give its key".into(),
            "a volume keeps the key that it began with: bring its wrapped key and the configuration back, here or on the gateway, or remove the volume and add \
             it under another name (`farside explain key_differs`)",
        ),
        State::TrackingLost => say(
            Error,
            Code::TrackingLost,
            match member.loss {
                Loss::Kept => "the intent map could not be written; that is recorded, and everything will be compared".to_owned(),
                Loss::AtReceiver => format!(
                    "that tracking was lost cannot be recorded here{unmarked}, only at the receiver, which has it: everything will be \
                     compared"
                ),
                Loss::Owed { .. } => format!(
                    "that tracking was lost can be recorded neither here{unmarked} nor at the receiver: a power cut or reboot now \
                     would go unnoticed"
                ),
            },
            &match member.loss {
                Loss::Kept | Loss::AtReceiver => format!(
                    "make room on the disk that holds {dir}, or mend it; the map is made anew by itself and everything compared. \
                     `farside volume resync NAME --accept tracking-lost` tries at once"
                ),
                Loss::Owed { .. } => format!(
                    "make room on the disk that holds {dir}, or mend it, or the connection: both are tried again by themselves. \
                     After a reboot before that: `farside volume resync NAME`"
                ),
            },
        ),
        State::Behind(Behind::GatewayFull) => say(
            Error,
            Code::GatewayFull,
            "the receiver's disk is full; existing points are intact".into(),
            "make room at the gateway, or keep fewer points (`farside group set NAME --keep N --span 1h`); the rest follows by itself",
        ),
        State::Behind(Behind::StoreFailed) => say(
            Error,
            Code::StoreFailed,
            "the receiver cannot publish".into(),
            "look at `farside status` at the gateway; existing points are intact",
        ),
        State::Paused => say(Warning, Code::Paused, "paused by a person".into(), "`farside volume resume NAME`"),
        _ => {}
    }
    if let Some(n) = v.not_converging {
        let (sent, wire) = (load(&member.served.sent.read_bytes), load(&member.served.sent.wire_bytes));
        let (message, todo) = not_converging(&n, sent, wire);
        say(Warning, Code::NotConverging, message, &todo);
    }
    if v.unreadable_bytes > 0 {
        let message =
            format!("{} KiB of the backing cannot be read; points that hold them are degraded", v.unreadable_bytes >> 10);
        say(
            Error,
            Code::Degraded,
            message,
            "replace or mend the disk; it is read again with the next change, or now by `farside volume resync NAME`",
        );
    }
    if segments_damaged > 0 {
        let message = format!(
            "segments of it are damaged or missing in the store ({segments_damaged} at least): points that need them cannot be \
             restored in full, and none that may be the last whole one is pruned meanwhile"
        );
        let todo = "`farside volume resync NAME` sends what they held again; on the gateway `farside store check` names them, and \
                    its disk must be looked after";
        say(Error, Code::SegmentsDamaged, message, todo);
    }
    if v.flush_failed {
        let message = "a flush of the backing failed: what was written since the one before may be lost at a power cut".into();
        say(Error, Code::FlushFailed, message, "check the disk; regions stay hot until the next boot");
    }
    if let Some(since) = member.served.map_busy.since().filter(|since| *since >= MAP_SILENCE) {
        let message = format!(
            "its intent map has waited {} s for the disk that holds {dir}: writes to regions that were not written lately wait, all \
             others go on",
            since.as_secs()
        );
        say(
            Error,
            Code::MapWaits,
            message,
            "see what the kernel says of that disk (journalctl -k); what waits goes on when it answers",
        );
    }
    if let Some(message) = control.around.backings.seen(name) {
        let todo = "a mount by UUID may find it before its tap is there: give the disk a serial number (libvirt: <serial>), and name \
                    /dev/farside/NAME in /etc/fstab";
        say(Warning, Code::NotHidden, message, todo);
    }
    if let Some(why) = &member.tap_lost {
        let again =
            "it is served again by itself; whatever had its device mounted or open must open it anew (umount, then mount)";
        let (not_yet, todo) = match &member.unmarked {
            None => (String::new(), again.to_owned()),
            Some(why) => {
                let todo = format!("make room on the disk that holds {dir}, or mend it: then {again}");
                (format!("; nor is it served again yet: {why}"), todo)
            }
        };
        say(Error, Code::NotServed, format!("its host is not served: {why}{not_yet}"), &todo);
    }
    if let Some(why) = &member.broken {
        say(Error, Code::Broken, format!("a thread of this volume ended: {why}"), "restart farsided");
    }
    reasons
}

/// Not compared to the end, or nobody knows.
fn is_in_doubt(state: &State) -> bool {
    !matches!(state, State::Streaming | State::Behind(Behind::FirstSync | Behind::CatchingUp))
}

/// What the host dirties and what gets through, and which number would help. `sent` bytes of content became `wire` bytes so far.
fn not_converging(n: &source::NotConverging, sent: u64, wire: u64) -> (String, String) {
    let on_wire =
        |bytes: u64| u64::try_from(u128::from(bytes) * u128::from(wire.max(1)) / u128::from(sent.max(1))).unwrap_or(u64::MAX);
    let mbit = |bytes_per_s: u64| (bytes_per_s.saturating_mul(8)).div_ceil(1_000_000).max(1);
    let message = format!(
        "not converging: the host changes {} MiB/s and {} MiB/s get through, so the backlog does not shrink",
        n.dirty_bytes_per_s >> 20,
        n.sent_bytes_per_s >> 20
    );
    // A fifth more than what is changed, so that the backlog shrinks too.
    let needed = on_wire(n.dirty_bytes_per_s.saturating_mul(6) / 5);
    let todo = format!(
        "about {} Mbit/s would do (now {}): a faster line or gateway, or `farside limit clear` if there is a limit; or, where \
         changes hit the same places, [limits] side_buffer_mib = {}",
        mbit(needed),
        mbit(on_wire(n.sent_bytes_per_s)),
        (n.needed_cut_bytes >> 20).max(1).saturating_mul(2)
    );
    (message, todo)
}

/// Counts without touching: a status query must not take cooling regions back.
fn hot_regions(volume: &farside_shim::Volume) -> u64 {
    use farside_shim::RegionState::{Cold, ColdZero};
    let hot = |r: &farside_region::RegionIndex| !matches!(volume.region_state(*r), Cold | ColdZero);
    volume.geometry().all_regions().iter().filter(hot).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is the gateway's disk, and neither the network nor this host.
    #[test]
    fn a_full_gateway_is_named_with_its_way_out_also_where_it_ended_the_connection() {
        let full = Trouble::Full { free_bytes: 1 << 20, reserve_bytes: 64 << 20 };
        let said = trouble_reason(&full, true);
        assert_eq!((said.severity, said.code.as_str()), (Severity::Error, "gateway_full"), "{said:?}");
        assert!(said.message.contains("1 MiB left above the 64 MiB") && said.what_to_do.contains("fewer points"), "{said:?}");
        assert_eq!(trouble_reason(&full, false).severity, Severity::Warning, "nothing is late");
        let crowded = trouble_reason(&Trouble::Crowded { free_bytes: 1 << 30 }, true);
        assert!(crowded.severity == Severity::Warning && !crowded.message.contains("full"), "{crowded:?}");

        let reason = "the store's file system is full at /srv/store".to_owned();
        let ended = |code| NotConnected::Ended(Closed::ByPeer { code, reason: reason.clone() });
        let said = why_not_connected(&ended(CloseCode::Full)).expect("a reason");
        assert_eq!((said.severity, said.code.as_str()), (Severity::Error, "gateway_full"), "{said:?}");
        assert!(said.message.contains("/srv/store") && said.what_to_do.contains("make room"), "{said:?}");
        let said = why_not_connected(&ended(CloseCode::Refused)).expect("a reason");
        assert!(said.code == "not_connected" && !said.what_to_do.contains("network"), "{said:?}");
    }

    /// A stand-in after the failback, say: nothing is wrong with its pairing, nor with the network.
    #[test]
    fn who_is_refused_with_words_is_told_to_do_as_they_say() {
        let problem = |code| source::Problem::Refused { code, text: "web1/db is not failed over".into() };
        let unknown = problem(farside_wire::RefusalCode::Unknown);
        assert!(!unknown.to_string().contains("pair"), "{unknown}");
        assert_eq!(close_code(&unknown), CloseCode::Refused);
        assert_eq!(close_code(&problem(farside_wire::RefusalCode::Store)), CloseCode::Protocol);
        let ended = Closed::Here { code: CloseCode::Refused, reason: unknown.to_string() };
        let said = why_not_connected(&NotConnected::Ended(ended)).expect("a reason");
        assert_eq!((said.severity, said.code.as_str()), (Severity::Error, "receiver_refuses"), "{said:?}");
        assert!(said.message.contains("web1/db is not failed over") && said.what_to_do.contains("do as it says"), "{said:?}");
    }

    #[test]
    fn not_converging_names_the_number_that_would_help() {
        let mib = 1 << 20;
        let n = source::NotConverging { dirty_bytes_per_s: 10 * mib, sent_bytes_per_s: 5 * mib, needed_cut_bytes: 100 * mib };
        // Half of it is compressed away.
        let (message, todo) = not_converging(&n, 1000, 500);
        assert!(message.contains("10 MiB/s") && message.contains("5 MiB/s"), "{message}");
        assert!(todo.contains("about 51 Mbit/s would do (now 21)") && todo.contains("side_buffer_mib = 200"), "{todo}");
        // Nothing was sent yet: no division by zero, no nonsense.
        let (_, todo) = not_converging(&n, 0, 0);
        assert!(todo.contains("Mbit/s"), "{todo}");
    }
}
