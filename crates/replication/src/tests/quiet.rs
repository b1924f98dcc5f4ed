//! Points that are asked for, and applications that are quiesced for them.

use std::collections::BTreeSet;

use farside_ledger::{CohortCut, Consistency, Label, LayerKind, Layers};
use farside_region::{EpochId, RegionSet};
use farside_wire::{EpochEnd, Features, LabelledEnd, Published, ReceiverMessage, SourceMessage};

use super::directed::{Host, at, granules};
use super::world::{World, volume};
use crate::source::{Action, Around, DemoteCause, Ended, Event, Report, Start, Wish, WishState};

/// What hooks do in the toy world, and what may be said of it.
#[derive(Debug, Default)]
pub(super) struct Applications {
    asked: Option<u64>,
    quiet: bool,
    switched: BTreeSet<(u8, EpochId)>,
    resuming: Option<EpochId>,
    /// They were quiet from before the switch until after it.
    truly: BTreeSet<(u8, EpochId)>,
    pub(super) done: u64,
    /// Points that were called consistent.
    pub(super) consistent: u64,
}

impl Applications {
    pub(super) fn asked(&mut self, wish: u64) {
        assert!(self.asked.is_none() && !self.quiet, "quieted twice");
        self.asked = Some(wish);
    }

    pub(super) fn let_go(&mut self, epoch: Option<EpochId>) {
        assert!(std::mem::take(&mut self.quiet), "let go without having been quiet");
        self.resuming = epoch;
    }

    pub(super) fn switched(&mut self, epoch: (u8, EpochId)) {
        if self.quiet {
            self.switched.insert(epoch);
        }
    }

    /// Whoever kept them quiet is gone.
    pub(super) fn left_alone(&mut self) {
        (self.asked, self.quiet, self.resuming) = (None, false, None);
    }

    pub(super) fn are_quiet(&self) -> bool {
        self.quiet
    }

    pub(super) fn published(&mut self, epoch: (u8, EpochId), layers: &Layers, volumes: usize) {
        let Some(label) = &layers.label else { return };
        assert_eq!(layers.kind, LayerKind::Point, "fuzzy layers are called something");
        if label.consistency != Consistency::Crash {
            assert!(self.truly.contains(&epoch), "a point is called consistent, and was not");
            assert_eq!(layers.members.len(), volumes, "a consistent point lacks a volume");
            self.consistent += 1;
        }
    }
}

impl World {
    pub(super) fn wish(&mut self) {
        let hooks = self.rng.one_in(2);
        let id = self.rng.next();
        let others = self.rng.one_in(4).then(|| Around::Cohort(cohort_cut(), super::world::name("erp")));
        self.to(
            others.map_or_else(|| wish_of("wished", id, hooks), |around| Event::Wish(Wish { id, title: String::new(), around }))
        );
    }

    pub(super) fn answer_hooks(&mut self) -> bool {
        let good = !self.rng.one_in(4);
        if let Some(wish) = self.applications.asked.take() {
            self.applications.quiet = good;
            self.to(Event::Quiesced { wish, result: if good { Ok(()) } else { Err("a hook failed".to_owned()) } });
        } else if let Some(epoch) = self.applications.resuming.take() {
            let cut = *self.applications.switched.iter().rfind(|(_, id)| *id == epoch).expect("it was cut when they were quiet");
            if good {
                self.applications.truly.insert(cut);
            }
            self.to(Event::Resumed { epoch, result: if good { Ok("all".to_owned()) } else { Err("thawed".to_owned()) } });
        } else {
            return false;
        }
        true
    }
}

fn wish(id: u64, hooks: bool) -> Event {
    wish_of("upgrade", id, hooks)
}

fn wish_of(title: &str, id: u64, hooks: bool) -> Event {
    let around = if hooks { Around::Hooks } else { Around::Nothing };
    Event::Wish(Wish { id, title: title.to_owned(), around })
}

fn quiesces(host: &mut Host) -> Option<u64> {
    host.did(|a| match a {
        Action::Quiesce { wish } => Some(*wish),
        _ => None,
    })
}

fn resumes(host: &mut Host) -> Option<Option<EpochId>> {
    host.did(|a| match a {
        Action::Resume { epoch } => Some(*epoch),
        _ => None,
    })
}

fn labelled(host: &mut Host) -> (Label, EpochEnd) {
    host.take(|m| match m {
        SourceMessage::LabelledEnd(LabelledEnd { label, end }) => Some((label.clone(), end.clone())),
        _ => None,
    })
}

fn says_no_end(host: &Host) -> bool {
    host.says_no_end() && !host.said.iter().any(|m| matches!(m, SourceMessage::LabelledEnd(_)))
}

impl Host {
    /// Does a switch that freezes nothing, and takes the end that is said of it.
    fn switch_and_end(&mut self, sets: Vec<(u8, farside_region::GranuleSet)>) -> Vec<farside_region::LayerKey> {
        self.switch(sets);
        labelled(self).1.members.iter().map(|m| m.key).collect()
    }
}

/// A host that was asked for a point and has quieted what writes, up to the switch and its answer.
fn cut_in_quiet(host: &mut Host) -> EpochId {
    host.event(wish(7, true));
    assert_eq!(quiesces(host), Some(7));
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    assert_eq!(resumes(host), None, "not before the switch");
    let epoch = host.switch(vec![(1, granules(1, 1)), (2, granules(0, 0))]);
    assert_eq!(resumes(host), Some(Some(epoch)), "in the same step");
    epoch
}

#[test]
fn a_point_is_called_consistent_when_it_is_known_that_it_is() {
    let mut host = Host::streaming_to(Features::LABELS);
    host.event(wish(7, true));
    assert_eq!(quiesces(&mut host), Some(7));
    host.tick(&[1]);
    let switch = |a: &Action| matches!(a, Action::Switch { .. }).then_some(());
    assert_eq!(host.did(switch), None, "no other cut begins that this one would have to wait for");
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    let epoch = host.switch(vec![(1, granules(1, 1)), (2, granules(0, 0))]);
    assert_eq!(resumes(&mut host), Some(Some(epoch)));
    host.read(1, 1);
    assert!(says_no_end(&host), "nobody knows yet whether they were quiet until after the switch");
    host.event(Event::Resumed { epoch, result: Ok("srv, postgresql".to_owned()) });
    let (label, end) = labelled(&mut host);
    assert_eq!(label, Label::new(Consistency::Application, "upgrade", "srv, postgresql"));
    assert_eq!((end.kind, end.members.len()), (LayerKind::Point, 2));
    let layers = end.members.iter().map(|m| m.key).collect();
    assert_eq!(host.source.wishes().len(), 1);
    host.hear(ReceiverMessage::Published(Published { position: at(5), kind: LayerKind::Point, layers }));
    assert!(host.source.wishes().is_empty(), "it is fulfilled");
}

#[test]
fn what_was_not_quiet_until_the_end_is_not_called_consistent() {
    let mut host = Host::streaming_to(Features::LABELS);
    let epoch = cut_in_quiet(&mut host);
    host.read(1, 1);
    host.event(Event::Resumed { epoch, result: Err("somebody thawed /srv".to_owned()) });
    let (label, _) = labelled(&mut host);
    assert_eq!(label, Label::new(Consistency::Crash, "upgrade", "somebody thawed /srv"));
}

#[test]
fn hooks_that_fail_leave_a_point_that_says_so() {
    let mut host = Host::streaming_to(Features::LABELS);
    host.event(wish(7, true));
    assert_eq!(quiesces(&mut host), Some(7));
    host.event(Event::Quiesced { wish: 7, result: Err("postgresql: exit status 1".to_owned()) });
    host.switch(vec![(1, granules(0, 0)), (2, granules(0, 0))]);
    assert_eq!(resumes(&mut host), None, "they are not kept quiet");
    let (label, end) = labelled(&mut host);
    assert_eq!(label, Label::new(Consistency::Crash, "upgrade", "postgresql: exit status 1"));
    assert_eq!(end.members.len(), 2, "also where nothing was written");
}

#[test]
fn nobody_is_kept_quiet_for_what_cannot_be_cut() {
    let mut host = Host::streaming_to(Features::LABELS);
    host.event(wish(7, true));
    assert_eq!(quiesces(&mut host), Some(7));
    let connection = host.connection();
    host.event(Event::Disconnected { connection, how: Ended::Broken });
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    assert_eq!(resumes(&mut host), Some(None));
    assert_eq!(host.source.wishes()[0].tries, 1, "it is tried again");

    let mut host = Host::streaming_to(Features::LABELS);
    host.event(Event::Pause { volume: volume(2) });
    host.event(wish(7, true));
    host.tick(&[1]);
    assert_eq!(quiesces(&mut host), None, "a volume is in the way");
    let status = &host.source.wishes()[0];
    assert!(matches!(&status.state, WishState::Waiting(volumes) if volumes.len() == 1), "{status:?}");
}

#[test]
fn a_cut_that_is_given_up_is_tried_again_with_its_hooks() {
    let mut host = Host::streaming_to(Features::LABELS);
    let epoch = cut_in_quiet(&mut host);
    host.event(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
    host.read(1, 1);
    assert_eq!(host.end().kind, LayerKind::Fuzzy, "what is no point waits for no hook");
    host.event(Event::Resumed { epoch, result: Ok("all".to_owned()) });
    assert_eq!(quiesces(&mut host), None, "not at once");
    // Meanwhile it keeps nobody else waiting.
    host.event(wish(8, false));
    let layers: Vec<_> = host.switch_and_end(vec![(1, granules(0, 0)), (2, granules(0, 0))]);
    host.hear(ReceiverMessage::Published(Published { position: at(6), kind: LayerKind::Point, layers }));
    assert_eq!(host.source.wishes().iter().map(|wish| wish.id).collect::<Vec<_>>(), [7]);
    host.now += crate::source::SECOND * 100;
    host.tick(&[]);
    assert_eq!(quiesces(&mut host), Some(7));
}

#[test]
fn a_stop_keeps_nobody_quiet_and_waits_for_no_wish() {
    let mut host = Host::streaming_to(Features::LABELS);
    host.event(wish(7, true));
    host.event(wish(8, false));
    assert_eq!(quiesces(&mut host), Some(7));
    host.event(Event::Drain);
    assert!(host.source.wishes().is_empty());
    host.tick(&[1]);
    host.switch(vec![(1, granules(1, 1)), (2, granules(0, 0))]);
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    assert_eq!(resumes(&mut host), Some(None));
    host.read(1, 1);
    assert_eq!(host.end().kind, LayerKind::Point, "without a label");
}

#[test]
fn a_receiver_that_knows_no_labels_gets_the_point_all_the_same() {
    let mut host = Host::streaming();
    host.event(wish(7, false));
    host.switch(vec![(1, granules(0, 0)), (2, granules(0, 0))]);
    let layers: Vec<_> = host.end().members.iter().map(|m| m.key).collect();
    let mut actions = Vec::new();
    let published = Published { position: at(5), kind: LayerKind::Point, layers };
    let message = Box::new(ReceiverMessage::Published(published));
    host.source.step(host.now, Event::Message { connection: host.connection(), message }, &mut actions);
    let label = actions.iter().find_map(|action| match action {
        Action::Report { what: Report::WishDone { label, .. }, .. } => label.as_ref(),
        _ => None,
    });
    assert!(label.is_some_and(|label| label.hooks.contains("keeps no labels")), "{label:?}");
}

#[test]
fn a_point_without_a_volume_of_the_group_is_none_of_all() {
    let mut host = Host::streaming_to(Features::LABELS);
    host.event(Event::Lacks { volumes: vec!["log".parse().expect("a name")] });
    host.event(wish(7, true));
    assert_eq!(quiesces(&mut host), None);
    assert!(matches!(&host.source.wishes()[0].state, WishState::Waiting(volumes) if volumes.len() == 1));
    host.event(Event::Lacks { volumes: Vec::new() });
    assert_eq!(quiesces(&mut host), Some(7));
    // Who asked has gone: it is not tried again for nobody.
    host.event(Event::ForgetWish { wish: 7 });
    host.event(Event::Pause { volume: volume(2) });
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    assert_eq!(resumes(&mut host), Some(None));
    assert!(host.source.wishes().is_empty());
}

#[test]
fn wishes_wait_for_volumes_and_are_bounded() {
    let mut host = Host::to(Features::LABELS);
    (0..40).for_each(|id| host.event(wish(id, false)));
    assert_eq!(host.source.wishes().len(), 16);
    host.event(Event::ForgetWish { wish: 3 });
    assert_eq!(host.source.wishes().len(), 15);
    host.add(1, None, None, RegionSet::new(), Start::Clean);
    host.tick(&[]);
    assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_none(), "not without a connection");
}

fn cohort_cut() -> CohortCut {
    CohortCut { cohort: CohortCut::cohort_id("erp"), cut: [7; 16], groups: 2, wall_ms: 5 }
}

fn can_cut(host: &mut Host) -> Option<u64> {
    host.did(|a| match a {
        Action::CanCut { wish } => Some(*wish),
        _ => None,
    })
}

/// A host that is ready to be cut with others.
fn ready_for_others(features: Features) -> Host {
    let mut host = Host::streaming_to(features);
    let around = Around::Cohort(cohort_cut(), super::world::name("erp"));
    host.event(Event::Wish(Wish { id: 7, title: String::new(), around }));
    assert_eq!((can_cut(&mut host), quiesces(&mut host)), (Some(7), None), "no hook runs for it");
    host
}

fn cut_with_others(host: &mut Host) -> EpochId {
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    let epoch = host.switch(vec![(1, granules(1, 1)), (2, granules(0, 0))]);
    assert_eq!(resumes(host), Some(Some(epoch)), "in the same step: writes are held");
    host.read(1, 1);
    epoch
}

#[test]
fn a_point_is_called_one_of_a_cohort_when_all_were_held() {
    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    host.tick(&[1]);
    let switch = |a: &Action| matches!(a, Action::Switch { .. }).then_some(());
    assert_eq!(host.did(switch), None, "no other cut begins that this one would have to wait for");
    let epoch = cut_with_others(&mut host);
    assert!(says_no_end(&host), "nobody knows yet whether the others were cut while all were held");
    host.event(Event::Resumed { epoch, result: Ok(String::new()) });
    let (label, end) = labelled(&mut host);
    assert_eq!(label, Label::new(Consistency::Cohort(cohort_cut()), "", "erp"));
    assert_eq!((end.kind, end.members.len()), (LayerKind::Point, 2));
}

fn ends_without_a_label(host: &mut Host) -> EpochEnd {
    host.take(|m| match m {
        SourceMessage::EpochEnd(end) => Some(end.clone()),
        SourceMessage::LabelledEnd(end) => panic!("{end:?}"),
        _ => None,
    })
}

#[test]
fn a_cut_that_others_missed_is_an_ordinary_one() {
    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    let epoch = cut_with_others(&mut host);
    host.event(Event::Resumed { epoch, result: Err("another group missed it".to_owned()) });
    let end = ends_without_a_label(&mut host);
    assert_eq!(end.kind, LayerKind::Point);
    let layers = end.members.iter().map(|m| m.key).collect();
    host.hear(ReceiverMessage::Published(Published { position: at(5), kind: LayerKind::Point, layers }));
    assert!(host.source.wishes().is_empty(), "who conducts begins another");

    // To a receiver that would not know what to do with it nothing is said of it.
    let mut host = ready_for_others(Features::LABELS);
    let epoch = cut_with_others(&mut host);
    host.event(Event::Resumed { epoch, result: Ok(String::new()) });
    ends_without_a_label(&mut host);
}

#[test]
fn a_cut_with_others_is_tried_once() {
    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    host.event(Event::Quiesced { wish: 7, result: Err("another group missed it".to_owned()) });
    assert!(host.source.wishes().is_empty() && resumes(&mut host).is_none(), "it waits for nothing any more");

    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    let connection = host.connection();
    host.event(Event::Disconnected { connection, how: Ended::Broken });
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    assert_eq!(resumes(&mut host), Some(None), "nobody is held for what cannot be cut");
    assert!(host.source.wishes().is_empty());

    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    host.event(Event::Quiesced { wish: 7, result: Ok(()) });
    let epoch = host.switch(vec![(1, granules(1, 1)), (2, granules(0, 0))]);
    assert_eq!(resumes(&mut host), Some(Some(epoch)));
    host.event(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
    assert!(host.source.wishes().is_empty(), "not one that was given up, either");

    let mut host = ready_for_others(Features::LABELS_OF_COHORTS);
    host.event(Event::Drain);
    assert!(host.source.wishes().is_empty(), "a stop waits for nobody");
}
