//! Cutover: a group leaves this host in order. Nobody uses its volumes any more, all of it is published, and its disks are kept from everybody until
//! the group is failed back to this host, or the cutover is aborted.
//!
//! ```text
//! asked ──► HandingOver (in memory): devices are taken away, and what is owed is published ──► HandedOver (durable) ──► a failback begins
//!                       │                                                                           │
//!                       └── in use again, told to abort, too late, killed ──► served as before ◄────┘ aborted
//! ```
//!
//! Invariants:
//! - Nothing can be written from before it is said that all is published until the volumes are served again: their devices are gone first, and whoever
//!   opens them is refused.
//! - `HandedOver` is said of a group that was closed in order, and whose receiver was told that it owes nothing: whatever goes wrong before that serves
//!   the volumes again, as a restart would. A kill does the same.
//! - What the disks are is said of them while they are open and locked, as in a failback, which begins with that.
//!
//! It deliberately promotes nobody: that is a word of the gateway's, where a person sees what would be lost, which is nothing then.

use std::sync::Arc;
use std::time::Duration;

use farside_control::failback::{CutoverRequest, CutoverStep, FailbackRequest, FailbackStage, FailbackStatus};
use farside_control::source::{BehindWhat, VolumeState};
use farside_control::{ApiError, ErrorCode};
use farside_region::{Generation, Name};
use farside_replication::failback::{Branch, Stage};
use tracing::{error, info, warn};

use super::keys::{LARGER_DISK, fixed_disks, names_of, too_small};
use super::note::{Note, check_writable};
use super::pull::PullError;
use super::{Failback, SERVED, conflict, turns, unkept};
use crate::config::VolumeConfig;
use crate::group::{self, Ask, Ending, Stopped};
use crate::locked;
use crate::supervisor::{Claimed, Daemon, HeldDevice, UsedByNobody};

/// How long it may take until all is published.
pub(super) const WAIT: Duration = Duration::from_secs(300);
const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// And to hear what the newest point is, at the end.
const POINT_WAIT: Duration = Duration::from_secs(5);
/// How long an abort waits to hear whether there was a failover.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// A stop of the daemon waits so long for what it has told to hurry.
const HURRY_WAIT: Duration = Duration::from_secs(25);

impl Daemon {
    /// Begins one, or gives one up.
    ///
    /// # Errors
    /// What stands against it; nothing was changed then.
    pub(crate) async fn cutover(self: &Arc<Self>, request: &CutoverRequest) -> Result<FailbackStatus, ApiError> {
        let _one = self.failbacks.turns.of(&request.group, turns::PATIENCE).await?;
        self.refuse_unread(&request.group)?;
        match (self.failbacks.of(&request.group), request.step) {
            (None, CutoverStep::Begin) => self.begin_cutover(request).await,
            (None, CutoverStep::Abort) => {
                let what = "`farside cutover --list` lists them";
                let given_up = locked(&self.failbacks.given_up);
                Err(match given_up.iter().find(|(group, _)| group.as_str() == request.group) {
                    Some((group, why)) => {
                        ApiError::new(ErrorCode::NotFound, format!("the cutover of group {group} was given up: {why}"), what)
                    }
                    None => ApiError::not_found("cutover of group", &request.group, what),
                })
            }
            (Some(known), step) => match (known.stage(), step) {
                (Stage::HandingOver | Stage::HandedOver { .. }, CutoverStep::Begin) => Ok(known.show()),
                (Stage::HandingOver | Stage::HandedOver { .. }, CutoverStep::Abort) if request.plan => Ok(known.show()),
                (Stage::HandedOver { .. }, CutoverStep::Abort) if !request.force => {
                    self.refuse_failed_over(&known).await?;
                    self.abort_cutover(&known)
                }
                (Stage::HandingOver | Stage::HandedOver { .. }, CutoverStep::Abort) => self.abort_cutover(&known),
                _ => Err(conflict(
                    format!("group {} is being failed back", request.group),
                    "`farside failback --list` shows how far that is; --finish or --abort ends it",
                )),
            },
        }
    }

    /// Whether what was handed over is somebody else's by now: two hosts would serve it.
    ///
    /// # Errors
    /// It is, or nobody can be asked.
    pub(super) async fn refuse_failed_over(self: &Arc<Self>, failback: &Failback) -> Result<(), ApiError> {
        let note = locked(&failback.note).clone();
        let group = &note.group;
        let force = format!("`farside cutover {group} --abort --force` serves these disks all the same");
        let asked = async {
            let puller = self.puller(group, failback).await?;
            self.newest(failback, &puller, None).await
        };
        let point = match tokio::time::timeout(ASKED_WITHIN, asked).await {
            Ok(Ok(point)) => point,
            unheard => {
                let why = unheard.map_or_else(|_| "it does not answer".to_owned(), |error| error.expect_err("seen").to_string());
                let message =
                    format!("the gateway cannot be asked whether {group} was failed over since it was handed over: {why}");
                let what = format!("make sure that nobody serves a copy of it; then {force}");
                return Err(ApiError::new(ErrorCode::NotConnected, message, &what));
            }
        };
        let promoted = point.promotion.map_or(point.generation, |promotion| promotion.max(point.generation));
        if promoted <= Generation(note.generation) {
            return Ok(());
        }
        let message = format!("group {group} was failed over since it was handed over: its copy may be in use");
        let what =
            format!("`farside failback {group}` brings it back with what was written there; {force}, fenced, beside that copy");
        Err(ApiError::new(ErrorCode::Refused, message, &what))
    }

    pub(super) fn abort_cutover(&self, failback: &Failback) -> Result<FailbackStatus, ApiError> {
        let group = {
            let mut note = locked(&failback.note);
            if matches!(note.course.stage, Stage::HandingOver) {
                note.course.abort = true; // a kill does as much
            }
            note.group.clone()
        };
        let _ = self.tell(&group, Ask::Hurry); // what has been handed over since is seen below
        if matches!(failback.stage(), Stage::HandedOver { .. }) {
            self.change(failback, |note| note.course.abort = true).map_err(unkept)?;
        }
        failback.told.notify_one();
        Ok(failback.show())
    }

    async fn begin_cutover(self: &Arc<Self>, request: &CutoverRequest) -> Result<FailbackStatus, ApiError> {
        self.may_change()?;
        let wait = request.wait_seconds.map_or(WAIT, |seconds| Duration::from_secs(seconds.into())).min(WAIT_MAX);
        let (group, volumes) = self.configured_group(&request.group)?;
        self.may_be_handed_over(&group, &volumes).await?;
        let note = Note::new(group.clone(), volumes.iter().map(|volume| self.held(volume)).collect());
        let failback = Failback::new(self.source_of(&group), note);
        locked(&failback.note).course.stage = Stage::HandingOver;
        let puller = self.puller(&group, &failback).await.map_err(super::unreachable)?;
        let point = self.newest(&failback, &puller, None).await.map_err(super::unreachable)?;
        self.heard(&failback, &point);
        locked(&failback.note).generation = point.generation.0;
        let names: Vec<Name> = volumes.iter().map(|volume| volume.name.clone()).collect();
        // Without them it could not come back.
        let keys = self.keys_to(&failback, &puller, &point, &names).await;
        keys.map_err(super::unreachable)?;
        drop(puller);
        if request.plan {
            return Ok(FailbackStatus { stage: FailbackStage::Planned, ..failback.show() });
        }
        check_writable(&self.state_path()).map_err(|error| {
            let what = "make room there, or mend its disk, and say the same again: nothing was changed";
            ApiError::new(ErrorCode::Unavailable, format!("group {group} is not handed over: {error:#}"), what)
        })?;
        let mut claimed = self.claim_all(&group, &volumes).await?;
        let failback = Arc::new(failback);
        // † First: from here on nothing that is new to the group gets into it.
        locked(&self.failbacks.all).insert(group.clone(), failback.clone());
        let begun = self.may_change().and_then(|()| match self.others_in(&group, &names) {
            None => Ok(()),
            Some(other) => {
                let message = format!("volume {other} of the group is just being added, or is served and not configured");
                Err(conflict(message, "wait for that, and say the same again: `farside volume list`"))
            }
        });
        if let Err(why) = begun {
            locked(&self.failbacks.all).remove(&group);
            // Who was refused meanwhile.
            self.volumes_of(&group).iter().for_each(|volume| self.open_soon(&volume.name));
            return Err(why);
        }
        // The group's end is theirs.
        let ends = claimed.iter_mut().map(|(_, claimed)| claimed.takes_its_end()).filter(|is_claimed| *is_claimed).count();
        assert_eq!(ends, claimed.len(), "who claims a volume that is to be kept claims its end");
        locked(&self.failbacks.given_up).remove(&group);
        warn!(%group, "a cutover begins: its volumes are served no more");
        tokio::spawn(self.clone().hand_over(failback.clone(), claimed, wait));
        Ok(failback.show())
    }

    /// # Errors
    /// Which volume cannot be, and why.
    async fn may_be_handed_over(&self, group: &Name, volumes: &[VolumeConfig]) -> Result<(), ApiError> {
        for volume in volumes {
            let name = &volume.name;
            let served = self.served_volume(group, name).await;
            if served.as_ref().is_some_and(|volume| volume.unreadable_bytes > 0) {
                let message = format!("a part of the disk of volume {name} cannot be read: it is in no point, and would be lost");
                return Err(conflict(message, &format!("write it anew, or replace the disk: farside volume show {name}")));
            }
            // What is only much is published while it is waited for.
            let (what, todo) = match served.as_ref().map(|volume| &volume.state) {
                Some(VolumeState::Streaming | VolumeState::Behind { what: BehindWhat::CatchingUp, .. }) => continue,
                Some(VolumeState::Behind { what, .. }) => (what.words(), "wait until it streams"),
                Some(VolumeState::Fenced) => ("fenced: it was failed over already", "`farside failback` is what follows"),
                Some(VolumeState::Idle) => ("idle: no receiver knows of it", "see `farside status`"),
                Some(other) => (other.word(), "see what it needs"),
                None => ("not served", "see why"),
            };
            let message = format!("volume {name} is {what}: not all that was written to it can be published now");
            return Err(conflict(message, &format!("{todo}: farside volume show {name}")));
        }
        Ok(())
    }

    /// To its end: it is handed over, or served again.
    async fn hand_over(self: Arc<Self>, failback: Arc<Failback>, claimed: Vec<(Name, Claimed)>, wait: Duration) {
        let group = locked(&failback.note).group.clone();
        match self.try_to_hand_over(&group, &failback, claimed, wait).await {
            Ok(()) => info!(%group, "handed over: all of it is published, and it is served here no more"),
            Err(error) => {
                // What is wrong with that says itself elsewhere.
                let error = match check_writable(&self.state_path()) {
                    Err(unwritable) => anyhow::anyhow!("{error:#}; {unwritable:#}"),
                    Ok(()) => error,
                };
                warn!(%group, "the cutover is given up, and its volumes are served again: {error:#}");
                let why = format!("{error:#}");
                locked(&self.failbacks.given_up).insert(group, why.clone());
                locked(&failback.view).why = Some(why);
                failback.disks.lock().await.let_go();
                locked(&failback.note).course.stage = Stage::Aborting;
            }
        }
        self.fail_back(failback).await;
    }

    async fn try_to_hand_over(
        self: &Arc<Self>,
        group: &Name,
        failback: &Arc<Failback>,
        claimed: Vec<(Name, Claimed)>,
        wait: Duration,
    ) -> anyhow::Result<()> {
        let names: Vec<Name> = claimed.iter().map(|(name, _)| name.clone()).collect();
        let withdrawn = tokio::task::spawn_blocking(move || {
            let withdraw = |(name, claimed): (Name, Claimed)| {
                claimed.withdraw(&name).map_err(|error| error.context(format!("the device of volume {name} stays")))
            };
            claimed.into_iter().map(withdraw).collect::<anyhow::Result<Vec<_>>>()
        });
        let withdrawn = withdrawn.await.map_err(anyhow::Error::from).flatten();
        // Also where one stays: those that were taken away are made again by an opening.
        let patience = if withdrawn.is_ok() { wait } else { Duration::ZERO };
        let ending = self.stop_group(group, failback, patience).await;
        self.are_held(group, &names);
        let devices = withdrawn?;
        let Ending { stopped, settled } = ending;
        let Some(settled) = settled else {
            match locked(&failback.note).course.abort {
                true => anyhow::bail!("it was aborted"),
                false => {
                    anyhow::bail!("not all of it was published within {} s, or the gateway could not be told", wait.as_secs())
                }
            }
        };
        anyhow::ensure!(stopped == Stopped::Clean, "it could not be closed in order: the log says of which volume");
        let mut disks = failback.disks.lock().await;
        let held = locked(&failback.note).held();
        let let_go = move || devices.into_iter().flatten().map(HeldDevice::let_go).collect::<anyhow::Result<Vec<_>>>();
        let devices = tokio::task::spawn_blocking(let_go).await??;
        self.open_disks(&mut disks, group, &held).await?;
        devices.iter().try_for_each(UsedByNobody::was_left_alone)?;
        let (identities, seen) = (disks.identities(), disks.sync_and_see().await?);
        // † The gateway's word, not ours, for what the newest point is: what is pulled later is what differs from that.
        let told = async { self.puller(group, failback).await?.point(None).await };
        // Nor is it waited for: that it was handed over must be durable soon.
        let at = match tokio::time::timeout(POINT_WAIT, told).await.unwrap_or_else(|_| Err(PullError::Ended("no answer".into())))
        {
            Ok(point) => {
                self.heard(failback, &point);
                let is_it =
                    settled.point == Some(point.position) && point.generation == Generation(locked(&failback.note).generation);
                is_it.then(|| (&point).into())
            }
            Err(error) => {
                warn!(%group, %error, "the point that was handed over is not known: all is compared when it comes back");
                None
            }
        };
        disks.are(settled.point.filter(|_| at.is_some()), &seen);
        let is_aborted = {
            // Nobody aborts it in between.
            let mut note = locked(&failback.note);
            anyhow::ensure!(!held.is_empty() && note.held() == held, "a volume of it was removed meanwhile");
            let mut handed_over = note.clone();
            for held in &mut handed_over.volumes {
                held.identity = identities.get(&held.name).cloned().or(held.identity.take());
                held.seen = seen.get(&held.name).cloned().flatten();
            }
            handed_over.course.stage = Stage::HandedOver { at };
            if !note.course.abort {
                handed_over.keep(&self.state_path())?;
                *note = handed_over;
            }
            note.course.abort
        };
        anyhow::ensure!(!is_aborted, "it was aborted");
        locked(&failback.view).taken = true;
        Ok(())
    }

    /// Stops one group in order, which answers meanwhile, and has none.
    async fn stop_group(&self, group: &Name, failback: &Failback, patience: Duration) -> Ending {
        let Some(inbox) = self.inbox_of(group) else { return Ending::UNKNOWN };
        let configured = self.volumes_of(group).len();
        let mut stop = tokio::task::spawn_blocking(move || group::stop(&inbox, configured, Some(patience)));
        let ending = loop {
            match tokio::time::timeout(SERVED, &mut stop).await {
                Ok(ending) => break ending,
                // Said once, it may be heard before the stop that is meant.
                Err(_) if locked(&failback.note).course.abort => drop(self.tell(group, Ask::Hurry)),
                Err(_) => {}
            }
        };
        if let Some(handle) = self.forget_group(group) {
            let _ = tokio::task::spawn_blocking(move || handle.end()).await;
        }
        ending.unwrap_or(Ending::UNKNOWN)
    }

    /// Groups that are being handed over.
    pub(crate) fn handing_over(&self) -> Vec<Name> {
        let all = locked(&self.failbacks.all);
        all.iter().filter(|(_, one)| matches!(one.stage(), Stage::HandingOver)).map(|(name, _)| name.clone()).collect()
    }

    /// What is being handed over is closed as it is, because the daemon stops.
    pub(crate) async fn hurry_cutovers(&self) {
        let all: Vec<Arc<Failback>> = locked(&self.failbacks.all).values().cloned().collect();
        let until = tokio::time::Instant::now() + HURRY_WAIT;
        for one in all.iter().filter(|one| matches!(one.stage(), Stage::HandingOver)) {
            let group = locked(&one.note).group.clone();
            let _ = self.tell(&group, Ask::Hurry); // it may just have stopped
            while matches!(one.stage(), Stage::HandingOver) && tokio::time::Instant::now() < until {
                tokio::time::sleep(SERVED).await;
            }
            if matches!(one.stage(), Stage::HandingOver) {
                error!(%group, "its cutover does not end");
            }
        }
    }

    /// Keeps the disks until somebody says what becomes of them. `Ok`: the stage is another one, or it is over.
    pub(super) async fn wait_for_a_word(self: &Arc<Self>, failback: &Arc<Failback>) -> anyhow::Result<()> {
        while self.is_known(failback) {
            let note = locked(&failback.note).clone();
            let Stage::HandedOver { at } = &note.course.stage else { return Ok(()) };
            let mut disks = failback.disks.lock().await;
            if note.course.abort {
                disks.let_go();
                return self.turn(failback, Stage::Aborting);
            }
            let held = note.held();
            if !disks.have_all(&held) {
                let opened = self.open_disks(&mut disks, &note.group, &held).await;
                self.note_identities(failback, &disks)?; // also of those that could be
                opened?;
                disks.believe(at.as_ref().map(|at| (at.position, &held[..]))).await?;
            }
            drop(disks);
            locked(&failback.view).taken = true;
            self.check_configured(&note.group, &held)?;
            failback.told.notified().await;
        }
        Ok(())
    }

    /// The group that was handed over was failed over, and comes back: its disks are what was handed over, and follow what was published since.
    pub(super) async fn begin_from_handed_over(
        self: &Arc<Self>,
        failback: &Arc<Failback>,
        request: &FailbackRequest,
    ) -> Result<FailbackStatus, ApiError> {
        let note = locked(&failback.note).clone();
        let Stage::HandedOver { at } = note.course.stage.clone() else { return Ok(failback.show()) };
        let (group, held) = (&note.group, note.held());
        refuse_aborted(&note)?;
        let puller = self.puller(group, failback).await.map_err(super::unreachable)?;
        let point = self.newest(failback, &puller, None).await.map_err(super::unreachable)?;
        self.heard(failback, &point);
        let promoted = point.promotion.map_or(point.generation, |promotion| promotion.max(point.generation));
        if promoted <= Generation(note.generation) {
            return Err(conflict(
                format!("group {group} was not failed over since it was handed over: there is nothing to fail back"),
                &format!("`farside cutover {group} --abort` serves it here again; `farside failover` on the gateway moves it"),
            ));
        }
        if let Some(why) = too_small(fixed_disks(&held), &point) {
            return Err(conflict(why, LARGER_DISK));
        }
        self.keys_to(failback, &puller, &point, &names_of(&held)).await.map_err(super::unreachable)?;
        drop(puller);
        let refused = super::refuse_unpublished(group, &point, request.force);
        if request.plan {
            let why = refused.err().map(|error| error.message);
            return Ok(FailbackStatus { stage: FailbackStage::Planned, generation: promoted.0, why, ..failback.show() });
        }
        refused?;
        // Nobody opens them meanwhile; a kill in between has them compared, whatever is said next.
        let disks = failback.disks.lock().await;
        // † Who was told to abort may have begun to serve them while the gateway was asked: nobody would serve them any more.
        refuse_aborted(&locked(&failback.note))?;
        for held in note.held() {
            self.take_for_failback(group, &held.name).await.map_err(ApiError::internal)?;
        }
        let branch = if request.discard_branch {
            Branch::Discarded
        } else {
            Branch::Wanted { base: at.clone().or_else(|| note.course.branch.base().cloned()) }
        };
        let mut is_taken_up = false;
        self.change(failback, |note| is_taken_up = note.take_up(promoted, branch)).map_err(unkept)?;
        drop(disks);
        if !is_taken_up {
            return Err(aborted(group));
        }
        failback.told.notify_one();
        Ok(failback.show())
    }
}

fn refuse_aborted(note: &Note) -> Result<(), ApiError> {
    if note.is_handed_over() { Ok(()) } else { Err(aborted(&note.group)) }
}

fn aborted(group: &Name) -> ApiError {
    let what = "`farside cutover --list` shows when its volumes are served again; a group that was failed over meanwhile says `Fenced` then, and `farside failback` follows";
    conflict(format!("the cutover of group {group} is being aborted"), what)
}
