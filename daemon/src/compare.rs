//! What a person asks to be compared, and the setting of bits that comes before any of it: `verify`, `resync`, `--accept`.
//!
//! Invariants: a resync is answered "yes" only when every bit is durable, so that no crash forgets it (T3); nothing is called
//! hot while the intent map cannot be written. Nobody is polled: the shim tells when bits became durable.

use farside_blockio::process::monotonic_ns;
use farside_control::source::{Accept, ByteRange, VerifyOutcome, VerifyStatus};
use farside_region::{Generation, Geometry, LedgerPosition, RegionSet, Slot, VolumeId};
use farside_replication::failback::taken_back_at;
use farside_replication::source::{self, Event, RefusedWhy, State};
use farside_shim::Tracking;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::config::write_atomically;
use crate::group::{Control, Member, TakenBack};
use crate::volume::IntentOrder;

/// Ranges of differing bytes that a result names.
const RANGES_MAX: usize = 64;
const RESULT: &str = "verify.json";

/// Bits that are being set.
#[derive(Debug)]
pub(crate) enum Heat {
    All,
    Regions(RegionSet),
}

/// What a member remembers of verifies and resyncs.
#[derive(Debug, Default)]
pub(crate) struct Compares {
    /// Whoever waits for every bit to be set.
    resyncs: Vec<oneshot::Sender<anyhow::Result<()>>>,
    /// When the verify under way was asked for, on the wall.
    verifying_since: Option<jiff::Timestamp>,
    /// The newest one that ended.
    last: Option<VerifyStatus>,
}

impl Compares {
    /// With the result that an earlier run of the daemon left.
    pub(crate) fn load(dir: &std::path::Path) -> Self {
        let last = std::fs::read(dir.join(RESULT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { last, ..Self::default() }
    }
}

impl Control {
    /// Goes on with the setting of bits: all that is asked for, or what can be set now.
    pub(crate) fn pump_heating(&mut self, id: VolumeId) {
        let Some(member) = self.members.get_mut(&id).filter(|m| !m.heats.is_empty()) else { return };
        let volume = member.served.volume.clone();
        // While the map cannot be written "hot" is in memory alone; it goes on when the map has been made anew. While the tap is
        // bypassed nothing would be found by comparing; it goes on when the volume has been opened anew.
        if volume.tracking() != Tracking::Sound || member.bypass.is_some() {
            return;
        }
        volume.watch_heat();
        let (mut done, mut left) = (Vec::new(), Vec::new());
        for heat in std::mem::take(&mut member.heats) {
            let mut all = RegionSet::new();
            let regions = match &heat {
                Heat::Regions(regions) => regions,
                Heat::All => {
                    all.insert_range(volume.geometry().all_regions());
                    &all
                }
            };
            // Asked each time: a region that was cooling when it was asked for may have become cold since.
            volume.heat(regions);
            if volume.is_hot(regions) { done.push(heat) } else { left.push(heat) }
        }
        member.heats = left;
        for heat in done {
            match heat {
                Heat::Regions(regions) => self.step(Event::Heated { volume: id, regions }),
                Heat::All => {
                    self.step(Event::AllHot { volume: id });
                    self.answer_resyncs(id, |_| Ok(()));
                }
            }
        }
    }

    pub(crate) fn answer_resyncs(&mut self, id: VolumeId, answer: impl Fn(&str) -> anyhow::Result<()>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let name = member.served.config.name.to_string();
        for waiting in std::mem::take(&mut member.compares.resyncs) {
            let _ = waiting.send(answer(&name));
        }
    }

    /// Checks that the person means the state that there is; answers once every bit is durable.
    pub(crate) fn resync(
        &mut self,
        id: VolumeId,
        accept: Option<Accept>,
        until: Option<Generation>,
        reply: oneshot::Sender<anyhow::Result<()>>,
    ) {
        self.resync_by(id, (accept, until), None, reply);
    }

    /// `by`: what says it, if not what follows from the volume's state.
    fn resync_by(
        &mut self,
        id: VolumeId,
        (accept, until): (Option<Accept>, Option<Generation>),
        by: Option<Event>,
        reply: oneshot::Sender<anyhow::Result<()>>,
    ) {
        let status = self.source.status(monotonic_ns());
        let Some(volume) = status.volumes.into_iter().find(|v| v.volume == id) else {
            let _ = reply.send(Err(anyhow::anyhow!("the volume is not served")));
            return;
        };
        let event = promoted_again(until, volume.fenced_by).map_or_else(|| resync_event(&volume.state, accept, id), Err);
        match event {
            Err(why) => {
                let _ = reply.send(Err(anyhow::anyhow!("volume {}: {why}", volume.name)));
            }
            Ok(event) => {
                let Some(member) = self.members.get_mut(&id) else { return };
                member.compares.resyncs.push(reply);
                match event.map(|event| by.unwrap_or(event)) {
                    Some(event) => self.step(event),
                    // Everything is compared as soon as the map can be written: try now, not when its turn comes.
                    None => self.members[&id].served.intent(IntentOrder::Mend),
                }
                self.pump_heating(id);
            }
        }
    }

    /// As [`Control::resync`] of what is `Fenced` by that promotion, or `Forked`, as long as the newest point is that one, or one that was passed over.
    pub(crate) fn take_back(
        &mut self,
        id: VolumeId,
        from: Generation,
        (at, passes): (LedgerPosition, Option<Slot>),
        reply: oneshot::Sender<anyhow::Result<TakenBack>>,
    ) {
        let status = self.source.status(monotonic_ns());
        let Some(volume) = status.volumes.into_iter().find(|v| v.volume == id) else {
            let _ = reply.send(Err(anyhow::anyhow!("the volume is not served")));
            return;
        };
        let accept = match (volume.state, volume.fenced_by) {
            (State::Refused(RefusedWhy::Fenced), Some(by)) if by != from => return drop(reply.send(Ok(TakenBack::From(by)))),
            (State::Refused(RefusedWhy::Fenced), _) => Accept::Fenced,
            (State::Refused(RefusedWhy::Forked), _) => Accept::Forked,
            _ => return drop(reply.send(Err(anyhow::anyhow!("the volume is neither fenced nor forked")))),
        };
        let Some(at) = taken_back_at(volume.refused_at, at, passes) else { return drop(reply.send(Ok(TakenBack::Newer))) };
        let (done, begun) = oneshot::channel();
        let _ = reply.send(Ok(TakenBack::Begun(begun)));
        self.resync_by(id, (Some(accept), None), Some(Event::TakeBack { volume: id, at }), done);
    }

    /// What was said of a refusal holds no more. `false`: the history was taken back from that promotion by it, or may have been. `was_asked`: by an earlier
    /// process, which may not have lived to hear that its claim was taken; only the ledger tells.
    pub(crate) fn withdraw(&mut self, id: VolumeId, (from, was_asked): (Generation, bool)) -> bool {
        let status = self.source.status(monotonic_ns());
        let volume = status.volumes.iter().find(|volume| volume.volume == id);
        let is_fenced = volume.is_some_and(|v| v.state == State::Refused(RefusedWhy::Fenced) && v.fenced_by == Some(from));
        let may_have = self.source.may_have_taken_back(id, from) || (was_asked && !is_fenced);
        if !may_have {
            self.step(Event::Withdraw { volume: id });
        }
        !may_have
    }

    pub(crate) fn verify(&mut self, id: VolumeId) -> anyhow::Result<VerifyStatus> {
        let status = self.source.status(monotonic_ns());
        let volume = status.volumes.into_iter().find(|v| v.volume == id);
        let volume = volume.ok_or_else(|| anyhow::anyhow!("the volume is not served"))?;
        let refused = |why: &str| anyhow::anyhow!("volume {} cannot be verified: {why}", volume.name);
        match &volume.state {
            State::Refused(_) => return Err(refused("what is published is not its history; `farside status` says what to do")),
            State::TrackingLost => return Err(refused("its tracking was lost; everything is going to be compared")),
            // It would wait without end.
            State::Paused => return Err(refused(&format!("it is paused; say first: farside volume resume {}", volume.name))),
            _ if self.stopping => return Err(refused("farsided is stopping")),
            _ => {}
        }
        let running = self.source.verify_report(id).is_some_and(|r| r.ended.is_none());
        if let Some(member) = self.members.get_mut(&id).filter(|_| !running) {
            member.compares.verifying_since = Some(jiff::Timestamp::now());
        }
        self.step(Event::Verify { volume: id });
        Ok(self.members.get(&id).and_then(|m| self.verify_status(id, m)).expect("it was just begun"))
    }

    /// The verify under way, or the newest result.
    pub(crate) fn verify_status(&self, id: VolumeId, member: &Member) -> Option<VerifyStatus> {
        let report = self.source.verify_report(id).filter(|_| member.compares.verifying_since.is_some());
        match (report, member.compares.verifying_since) {
            (Some(report), Some(since)) => Some(verify_status(report, since, member.served.volume.geometry())),
            _ => member.compares.last.clone(),
        }
    }

    /// Results are kept across restarts: who asked may look later.
    pub(crate) fn keep_verify_results(&mut self) {
        let ended = |id: &VolumeId| self.source.verify_report(*id).is_some_and(|r| r.ended.is_some());
        let ids: Vec<VolumeId> =
            self.members.iter().filter(|(id, m)| m.compares.verifying_since.is_some() && ended(id)).map(|(id, _)| *id).collect();
        for id in ids {
            let status = self.verify_status(id, &self.members[&id]);
            let member = self.members.get_mut(&id).expect("just listed");
            member.compares.verifying_since = None;
            member.compares.last = status;
            let (Some(result), name) = (&member.compares.last, &member.served.config.name) else { continue };
            tell(name.as_str(), result);
            let text = serde_json::to_string(result).expect("plain data");
            if let Err(error) = write_atomically(&member.served.dir.join(RESULT), &text) {
                warn!(volume = %name, %error, "the result of the verify is kept until farsided ends, not longer");
            }
        }
    }
}

fn tell(name: &str, result: &VerifyStatus) {
    let VerifyStatus { outcome, cold_bytes, hot_bytes, differing_bytes, unreadable_bytes, .. } = result;
    match outcome {
        VerifyOutcome::Done if *differing_bytes == 0 && *unreadable_bytes > 0 => {
            warn!(volume = %name, cold_bytes, hot_bytes, unreadable_bytes, "verified: what could be read is equal to what is published");
        }
        VerifyOutcome::Done if *differing_bytes == 0 => {
            info!(volume = %name, cold_bytes, hot_bytes, "verified: equal to what is published");
        }
        VerifyOutcome::Done => {
            error!(volume = %name, differing_bytes, ranges = ?result.differing, "verified: what was called clean differed; it is sent");
        }
        outcome => warn!(volume = %name, ?outcome, cold_bytes, "a verify ended early"),
    }
}

/// † What is discarded of a later promotion than the one that was looked at, nobody has pinned.
fn promoted_again(until: Option<Generation>, fenced_by: Option<Generation>) -> Option<String> {
    let (until, by) = (until?, fenced_by?);
    (by > until).then(|| {
        format!(
            "it is Fenced by generation {}, and what is pinned was published under generation {}: it was promoted again, or taken back here before \
             the state was lost; say the same again, and if that is no use, farside rollback GROUP --force discards what is unpinned",
            by.0, until.0
        )
    })
}

/// What is to be done for a resync in this state; `None`: to mend the map. Or why it makes no sense, and what would.
fn resync_event(state: &State, accept: Option<Accept>, volume: VolumeId) -> Result<Option<Event>, String> {
    let accepts = |word: &str, what: &str| format!("it is {what}; if you have understood what that means: --accept {word}");
    match (state, accept) {
        (State::Refused(RefusedWhy::Forked), Some(Accept::Forked))
        | (State::Refused(RefusedWhy::TargetRewound), Some(Accept::TargetRewound))
        | (State::Refused(RefusedWhy::Fenced), Some(Accept::Fenced)) => Ok(Some(Event::Accept { volume })),
        (State::TrackingLost, Some(Accept::TrackingLost)) => Ok(None),
        (State::Refused(RefusedWhy::Forked), _) => Err(accepts("forked", "Forked")),
        (State::Refused(RefusedWhy::TargetRewound), _) => Err(accepts("rewound", "TargetRewound")),
        (State::TrackingLost, _) => {
            Err(accepts("tracking-lost", "TrackingLost, and compares everything by itself once its map can be written"))
        }
        (State::Refused(RefusedWhy::Fenced), _) => Err(accepts("fenced", "Fenced: another copy of it was promoted")),
        (State::Refused(RefusedWhy::Key), _) => {
            Err("it is encrypted in another way in the store: `farside explain key_differs`".into())
        }
        (State::Refused(_), _) => {
            Err("it became smaller than what was published, or has another shape: give the space back, or remove it and add it \
                 under another name"
                .into())
        }
        (_, Some(_)) => Err("there is nothing to accept in its state; leave --accept out to compare everything".into()),
        (_, None) => Ok(Some(Event::Resync { volume })),
    }
}

fn verify_status(report: &source::VerifyReport, since: jiff::Timestamp, geometry: &Geometry) -> VerifyStatus {
    use source::VerifyOutcome as O;
    let bytes = |set: &RegionSet| (set.len() * geometry.region_bytes()).min(geometry.volume_bytes());
    let range = |r: farside_region::RegionRange| {
        let offset = r.start.0 * geometry.region_bytes();
        ByteRange { offset, bytes: (r.count * geometry.region_bytes()).min(geometry.volume_bytes() - offset) }
    };
    let took = |ended: u64| jiff::SignedDuration::from_nanos(ended.saturating_sub(report.started) as i64);
    VerifyStatus {
        outcome: match report.outcome {
            O::Running => VerifyOutcome::Running,
            O::Done => VerifyOutcome::Done,
            O::Superseded => VerifyOutcome::Superseded,
            O::Refused => VerifyOutcome::Refused,
            _ => VerifyOutcome::Stopped,
        },
        started: since,
        ended: report.ended.and_then(|ended| since.checked_add(took(ended)).ok()),
        done_bytes: report.done_bytes(),
        total_bytes: report.total_bytes,
        cold_bytes: report.cold_bytes,
        hot_bytes: report.hot_bytes,
        differing_bytes: bytes(&report.differing),
        differing: report.differing.ranges().take(RANGES_MAX).map(range).collect(),
        unreadable_bytes: bytes(&report.unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_is_done_only_in_the_state_that_the_person_names() {
        let v = VolumeId([1; 16]);
        let (forked, rewound) = (State::Refused(RefusedWhy::Forked), State::Refused(RefusedWhy::TargetRewound));
        let all = [None, Some(Accept::Forked), Some(Accept::TargetRewound), Some(Accept::Fenced), Some(Accept::TrackingLost)];
        let right = |state: &State| all.iter().filter(|a| resync_event(state, **a, v).is_ok()).copied().collect::<Vec<_>>();
        assert_eq!(right(&forked), [Some(Accept::Forked)]);
        assert_eq!(right(&rewound), [Some(Accept::TargetRewound)]);
        assert_eq!(right(&State::TrackingLost), [Some(Accept::TrackingLost)]);
        assert_eq!(right(&State::Refused(RefusedWhy::Fenced)), [Some(Accept::Fenced)]);
        for state in [State::Streaming, State::Idle, State::Paused] {
            assert_eq!(right(&state), [None]);
        }
        let words = resync_event(&forked, None, v).expect_err("not by itself");
        assert!(words.contains("--accept forked"), "{words}");
    }

    #[test]
    fn what_a_later_promotion_published_is_not_discarded_for_what_is_pinned_of_an_earlier_one() {
        let again = |until: Option<u64>, by: Option<u64>| promoted_again(until.map(Generation), by.map(Generation));
        for (until, by) in [(None, Some(9)), (Some(5), None), (Some(5), Some(5)), (Some(5), Some(4))] {
            assert_eq!(again(until, by), None);
        }
        let words = again(Some(5), Some(6)).expect("nobody was asked about it");
        assert!(words.contains("generation 6") && words.contains("generation 5") && words.contains("--force"), "{words}");
    }
}
