//! Rollback: this host was failed over, and goes on with its own disks. What its stand-in published is a pinned point before that.
//!
//! Invariant: † no volume is asked to take its history back before the gateway has said that the point is pinned, or that there is none; or a person said
//! to go on without. Volumes that have it back stay as they are, so the same request goes on after a kill.
//!
//! Which point that is, the gateway says. What the stand-in has not published, nobody here can see.

use std::sync::Arc;
use std::time::Duration;

use farside_control::rollback::{RollbackKeeps, RollbackRequest, RollbackStatus};
use farside_control::source::{Accept, GroupStatus, VolumeState, VolumeStatus};
use farside_control::{ApiError, ErrorCode};
use farside_region::Name;
use farside_wire::{PullPoint, RollBackAnswer};
use tracing::warn;

use super::keys::{LARGER_DISK, too_small};
use super::pull::PullError;
use super::turns;
use crate::status::last_point;
use crate::supervisor::Daemon;

/// How long it may take until the gateway has pinned what is discarded: its store may be slow.
const PINNED_WITHIN: Duration = Duration::from_secs(30);
/// And until it has said how large the volumes are by now: nothing hangs on it but a word in time.
const SIZED_WITHIN: Duration = Duration::from_secs(10);

impl Daemon {
    /// Has the volumes of a group that are fenced take their history back, or says what that would be.
    ///
    /// # Errors
    /// What stands against it: no volume was asked then, unless it is said of which.
    pub(crate) async fn roll_back(self: &Arc<Self>, request: &RollbackRequest) -> Result<RollbackStatus, ApiError> {
        let _one = self.failbacks.turns.of(&request.group, turns::PATIENCE).await?;
        let (group, fenced) = self.fenced_of(&request.group).await?;
        self.refuse_too_small(&group, &fenced).await?;
        let mut status = RollbackStatus {
            group: group.to_string(),
            source: self.source_of(&group).to_string(),
            volumes: fenced.iter().map(Name::to_string).collect(),
            planned: request.plan,
            ..RollbackStatus::default()
        };
        let until = match self.discards(&group, !request.plan).await {
            Ok(answer) => {
                told(&mut status, &answer);
                // Forced, it discards what another promotion published, too.
                Some(answer.generation).filter(|_| !request.force)
            }
            Err(error) if request.force => {
                warn!(%group, "what a rollback discards is not pinned, as it was said: {error}");
                status.why = Some(error.to_string());
                None
            }
            Err(error) => return Err(unpinned(&group, &error)),
        };
        if request.plan {
            return Ok(status);
        }
        for (done, name) in fenced.iter().enumerate() {
            if let Err(error) = self.resync(name.as_str(), Some(Accept::Fenced), until).await {
                let message =
                    format!("volume {name}: {}; {done} of {} volumes take the history back by now", error.message, fenced.len());
                let what = format!(
                    "whoever stands in publishes no more once one does: mend that, and say farside rollback {group} again"
                );
                return Err(ApiError::new(error.code, message, what));
            }
        }
        Ok(status)
    }

    /// A volume is compared in full, as a person said that it may be. † One that takes its history back by that discards what a rollback of its group
    /// would: that is pinned first, here as there.
    ///
    /// # Errors
    /// When its state is another one, or what it discards cannot be pinned.
    pub(crate) async fn resync_as_said(&self, name: &str, accept: Option<Accept>) -> Result<(), ApiError> {
        if accept != Some(Accept::Fenced) {
            return self.resync(name, accept, None).await;
        }
        let Some((group, _)) = self.served(name).await else {
            return Err(ApiError::not_found(
                "served volume",
                name,
                "`farside volume list` says of each whether it is served, or why not",
            ));
        };
        if self.stands_in_for(&group).is_some() {
            return self.resync(name, accept, None).await;
        }
        let _one = self.failbacks.turns.of(group.as_str(), turns::PATIENCE).await?;
        let this = self.status_of(&group).await;
        let this = this.as_ref();
        refuse_for_good(&group, this)?;
        // † Only what was seen to be fenced: one that becomes so a moment later was not asked about.
        let volume = this.and_then(|this| this.volumes.iter().find(|volume| volume.name == name));
        let state = volume.map_or(VolumeState::NotServed, |volume| volume.state.clone());
        if state != VolumeState::Fenced {
            let message = format!("volume {name} is {}, not Fenced: there is nothing to accept of that", state.word());
            return Err(ApiError::new(ErrorCode::Refused, message, "`farside volume show NAME` says what it waits for"));
        }
        let answer = self.discards(&group, true).await.map_err(|error| unpinned(&group, &error))?;
        if answer.point.is_none() && answer.points > 0 {
            let message = format!(
                "what was published of group {group} since the failover would be discarded, and none of its {} points is whole: none is pinned",
                answer.points
            );
            let what = format!("`farside rollback {group}` says more, and discards them after asking");
            return Err(ApiError::new(ErrorCode::Refused, message, what));
        }
        self.resync(name, accept, Some(answer.generation)).await
    }

    /// The group of a volume that is served, and how it is.
    async fn served(&self, name: &str) -> Option<(Name, VolumeState)> {
        let (name, group, _) = self.find(name).ok()?;
        let state = self.volume_state(&group, &name).await?;
        Some((group, state))
    }

    /// The volumes of a group that would take their history back.
    ///
    /// # Errors
    /// When there are none, or one is in a state that is another matter.
    async fn fenced_of(&self, wanted: &str) -> Result<(Name, Vec<Name>), ApiError> {
        let (group, configured) = self.configured_group(wanted)?;
        if let Some(source) = self.stands_in_for(&group) {
            let message = format!("this host stands in for {source}: only {source} takes the history of group {group} back");
            let what = "farside volume resync NAME --accept fenced publishes its disks under the failover that stands, if it may";
            return Err(ApiError::new(ErrorCode::Refused, message, what));
        }
        let this = self.status_of(&group).await;
        let this = this.as_ref();
        let served = |name: &Name| this?.volumes.iter().find(|volume| volume.name == name.as_str());
        let known: Vec<(Name, Option<&VolumeStatus>)> =
            configured.iter().map(|volume| (volume.name.clone(), served(&volume.name))).collect();
        let fenced = fenced_among(&group, &known)?;
        refuse_for_good(&group, this)?;
        Ok((group, fenced))
    }

    /// † One volume would take its history back, and another could not: neither host would publish the group.
    ///
    /// # Errors
    /// When a disk is smaller than its volume by now. Where the gateway cannot say that, whoever asks it next says what stands against it.
    async fn refuse_too_small(&self, group: &Name, fenced: &[Name]) -> Result<(), ApiError> {
        let asked = tokio::time::timeout(SIZED_WITHIN, self.asked_for_newest(group)).await;
        let Ok(Ok(point)) = asked else { return Ok(()) };
        let this = self.status_of(group).await;
        let volumes = this.iter().flat_map(|found| &found.volumes);
        let sizes: Vec<(&Name, u64)> =
            volumes.filter_map(|volume| Some((fenced.iter().find(|name| name.as_str() == volume.name)?, volume.bytes))).collect();
        match too_small(sizes, &point) {
            None => Ok(()),
            Some(why) => Err(ApiError::new(ErrorCode::Refused, why, LARGER_DISK)),
        }
    }

    async fn asked_for_newest(&self, group: &Name) -> Result<PullPoint, PullError> {
        let source = self.source_of(group);
        let puller = self.puller_of((&source, group), Arc::default()).await?;
        let point = puller.point(None).await?;
        puller.is_over();
        Ok(point)
    }

    /// What the gateway says is discarded; with `pin`, after it was pinned.
    async fn discards(&self, group: &Name, pin: bool) -> Result<RollBackAnswer, PullError> {
        let late = || Err(PullError::Ended(format!("it does not answer within {} s", PINNED_WITHIN.as_secs())));
        tokio::time::timeout(PINNED_WITHIN, self.asked_what_is_discarded(group, pin)).await.unwrap_or_else(|_| late())
    }

    async fn asked_what_is_discarded(&self, group: &Name, pin: bool) -> Result<RollBackAnswer, PullError> {
        let source = self.source_of(group);
        let puller = self.puller_of((&source, group), Arc::default()).await?;
        let volumes = self.volumes_of(group);
        puller.wants(volumes.iter().map(|volume| farside_ledger::volume_id(&source, group, &volume.name)).collect()).await?;
        let answer = puller.roll_back(pin).await?;
        puller.is_over();
        Ok(answer)
    }
}

/// A group that was failed over for good takes nothing back.
fn refuse_for_good(group: &Name, this: Option<&GroupStatus>) -> Result<(), ApiError> {
    // The gateway's words are all that this host has of it; of other groups it may say the same.
    if !serde_json::to_string(&this).is_ok_and(|group| group.contains("for good (farside commit)")) {
        return Ok(());
    }
    let message = format!("group {group} was failed over for good: the gateway refuses this host");
    Err(ApiError::new(ErrorCode::Refused, message, "on the gateway: farside commit SOURCE/GROUP --undo"))
}

/// Which of these take their history back.
fn fenced_among(group: &Name, volumes: &[(Name, Option<&VolumeStatus>)]) -> Result<Vec<Name>, ApiError> {
    let refused = |message: String, what: &str| Err(ApiError::new(ErrorCode::Refused, message, what));
    let state = |volume: Option<&VolumeStatus>| volume.map_or(VolumeState::NotServed, |volume| volume.state.clone());
    let mut fenced = Vec::new();
    for (name, volume) in volumes {
        match state(*volume) {
            VolumeState::Fenced => fenced.push(name.clone()),
            VolumeState::Behind { .. } | VolumeState::Streaming | VolumeState::Paused | VolumeState::Idle => {}
            other => {
                let message = format!("volume {name} is {}, neither Fenced nor replicated", other.word());
                return refused(message, "`farside status` says what it waits for; a failback is ended by --abort");
            }
        }
    }
    if fenced.is_empty() {
        let message = format!("no volume of group {group} is Fenced: it was not failed over, as far as this host knows");
        return refused(message, "nothing is to be rolled back; `farside volume list` shows the states");
    }
    Ok(fenced)
}

fn told(status: &mut RollbackStatus, answer: &RollBackAnswer) {
    status.keeps = match &answer.point {
        None => RollbackKeeps::Nothing,
        Some(point) if point.is_pinned => RollbackKeeps::Pinned,
        Some(_) => RollbackKeeps::Wanted,
    };
    status.point = answer.point.as_ref().map(|point| last_point(&point.position, point.epoch.wall_ms));
    (status.points, status.newest) = (answer.points, answer.newest.map(|newest| newest.0));
    status.other = answer.other.as_ref().and_then(|other| other.name.as_ref()).map(Name::to_string);
    status.other_connected = answer.other.as_ref().is_some_and(|other| other.connected);
}

/// What is discarded is not safe: nothing is taken back.
fn unpinned(group: &Name, error: &PullError) -> ApiError {
    let message =
        format!("what was published of group {group} since the failover cannot be pinned before it is discarded: {error}");
    let first = match error {
        PullError::Ended(_) => "`farside status` says how the gateway is",
        PullError::NoRollback => "update the gateway",
        _ => "`farside status` on the gateway says how it is",
    };
    let what = format!(
        "{first}; mend that, and say the same again. `farside rollback {group} --force` discards it unpinned: what is in the store stays as long as \
         policy says"
    );
    ApiError::new(ErrorCode::Refused, message, what)
}

#[cfg(test)]
mod tests {
    use farside_ledger::EpochInfo;
    use farside_region::{BootId, Generation, LedgerPosition, RecordDigest, Slot};
    use farside_wire::{PullOther, RequestId, RollBackPoint};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn only_what_is_fenced_takes_its_history_back_and_nothing_beside_what_is_another_matter() {
        let of = |state: VolumeState| VolumeStatus { state, ..VolumeStatus::default() };
        let (fenced, back, forked) = (of(VolumeState::Fenced), of(VolumeState::Streaming), of(VolumeState::Forked));
        let among = |volumes: &[(&str, Option<&VolumeStatus>)]| {
            let volumes: Vec<_> = volumes.iter().map(|(volume, state)| (name(volume), *state)).collect();
            fenced_among(&name("db"), &volumes)
        };
        let both = among(&[("data", Some(&fenced)), ("log", Some(&back))]).expect("the other one is back already");
        assert_eq!(both, [name("data")]);
        let words = |volumes: &[(&str, Option<&VolumeStatus>)]| {
            let refused = among(volumes).expect_err("refused");
            assert_eq!(refused.code, ErrorCode::Refused);
            refused.message
        };
        assert!(words(&[("data", Some(&back))]).contains("no volume of group db is Fenced"));
        assert!(words(&[("data", Some(&fenced)), ("log", Some(&forked))]).contains("volume log is Forked"));
        assert!(words(&[("data", Some(&fenced)), ("log", None)]).contains("volume log is NotServed"));
    }

    #[test]
    fn what_the_gateway_says_is_shown_and_what_it_cannot_say_refuses() {
        let position = LedgerPosition { slot: Slot(45), digest: RecordDigest([0xbb; 32]) };
        let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 1_000 };
        let other = Some(PullOther { name: Some(name("web2")), connected: true });
        let answer = |point: Option<bool>| RollBackAnswer {
            id: RequestId(1),
            generation: Generation(2),
            point: point.map(|is_pinned| RollBackPoint { position, epoch, is_pinned }),
            points: 12,
            newest: Some(Slot(46)),
            other: other.clone(),
        };
        for (point, keeps) in
            [(None, RollbackKeeps::Nothing), (Some(false), RollbackKeeps::Wanted), (Some(true), RollbackKeeps::Pinned)]
        {
            let mut status = RollbackStatus::default();
            told(&mut status, &answer(point));
            assert_eq!((status.keeps, status.point.as_ref().map(|point| point.id.slot)), (keeps, point.map(|_| 45)));
            assert_eq!((status.points, status.newest, status.other.as_deref()), (12, Some(46), Some("web2")));
        }
        for error in [PullError::Ended("it is away".into()), PullError::NoRollback, PullError::Refused("full".into())] {
            let refused = unpinned(&name("db"), &error);
            assert!(refused.code == ErrorCode::Refused && refused.message.contains(&error.to_string()), "{refused:?}");
            assert!(refused.what_to_do.contains("--force"), "{refused:?}");
        }
    }
}
