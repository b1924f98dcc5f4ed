//! Points of cuts of several groups: what is kept of them, and what is said.

use farside_control::failover::{FailoverRequest, FailoverStage};
use farside_control::routes::PointsQuery;
use farside_ledger::{CohortCut, Consistency, Label, LayerKind};
use farside_wire::SourceMessage;

use crate::site::{Gateway, Session, Volume, granules, wait_until};

pub(crate) const COHORT: &str = "[[cohort]]\nname = \"erp\"\ngroups = [\"host1/default\", \"host2/default\"]\nevery = \"1h\"\n";

/// A layer that says that it is of a cut of both.
pub(crate) async fn publish_cut(source: &mut Session, volume: &Volume, seq: u64, cut: u8) -> u64 {
    let member = source.send_layer(volume, seq, &granules(1000 * seq, 1)).await;
    let cut = CohortCut { cohort: CohortCut::cohort_id("erp"), cut: [cut; 16], groups: 2, wall_ms: 1_700_000_000_000 };
    let label = Label::new(Consistency::Cohort(cut), "", "erp");
    let end = Session::epoch_end(vec![member], LayerKind::Point);
    source.send(SourceMessage::LabelledEnd(farside_wire::LabelledEnd { label, end })).await;
    source.published(volume, seq).await.slot.0
}

async fn slots(gateway: &Gateway, group: &str) -> Vec<u64> {
    gateway.points(Some(group)).await.iter().map(|point| point.id.slot).collect()
}

/// † Which cuts are whole is in no ledger of one group: one that kept the newest of its own points would keep halves, of cuts of which the other
/// has nothing, and give up what both have.
#[tokio::test]
async fn whole_cuts_stay_after_a_start_without_their_cohort_whatever_halves_came_after_them() {
    let mut gateway = Gateway::new(COHORT);
    gateway.start().await;
    let (host1, host2) = (gateway.pair("host1").await, gateway.pair("host2").await);
    let (mut source, mut other) = (host1.connect("default").await, host2.connect("default").await);
    let (volume, other_volume) = (source.claim("data").await, other.claim("data").await);
    publish_cut(&mut other, &other_volume, 1, 1).await;
    let mut kept = Vec::new();
    for seq in 1..=4 {
        kept.insert(0, publish_cut(&mut source, &volume, seq, u8::try_from(seq).expect("few")).await);
    }
    assert_eq!(slots(&gateway, "host1/default").await, kept);

    gateway.stop();
    let configuration = gateway.path("receiver.toml");
    let text = std::fs::read_to_string(&configuration).expect("read");
    std::fs::write(&configuration, text.replace(COHORT, "")).expect("written");
    gateway.start().await;
    let mut source = host1.connect_when_ready("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.set_keep(1).await;
    source.publish(&volume, 1, &granules(5000, 1), LayerKind::Point).await;
    let newest = source.publish(&volume, 2, &granules(6000, 1), LayerKind::Point).await.slot.0;
    let only_cuts = async || slots(&gateway, "host1/default").await.len() <= 5;
    wait_until("what is of no cut to go", only_cuts).await;
    assert_eq!(slots(&gateway, "host1/default").await, [&[newest][..], &kept].concat());
    let cuts = gateway.client().cohort_cuts("erp", &PointsQuery::default()).await.expect("cuts");
    assert!(cuts.len() == 1 && cuts[0].points[0].point.slot == kept[3], "the one that is whole: {cuts:?}");

    // It is said of which cohort they are: after a rename its new name forgets nothing.
    let reason = async || {
        let groups = gateway.status().await.sources.into_iter().flat_map(|source| source.groups);
        groups.flat_map(|group| group.reasons).find(|reason| reason.message.contains("of host1/default are of cuts"))
    };
    let said = reason().await.expect("it is said");
    assert!(said.code == "deletion_waits" && said.message.starts_with("4 points") && said.message.contains("(erp)"), "{said:?}");
    assert!(said.what_to_do.contains("`farside cohort forget erp`"), "{said:?}");

    // Until a person says that nobody needs them.
    gateway.client().cohort_forget("erp").await.expect("forgotten");
    source.publish(&volume, 3, &granules(7000, 1), LayerKind::Point).await;
    wait_until("them to go", async || slots(&gateway, "host1/default").await.len() == 1).await;
    wait_until("no more to be said of them", async || reason().await.is_none()).await;
    gateway.stop();
    gateway.check_store();
}

/// † While one group of a cohort cannot be asked, the others give up nothing; a gateway that fills for that says whose ledger it is.
#[tokio::test]
async fn a_group_that_does_not_answer_is_named_as_what_pruning_waits_for() {
    let mut gateway = Gateway::new(COHORT);
    gateway.start().await;
    let (host1, host2) = (gateway.pair("host1").await, gateway.pair("host2").await);
    let (mut source, mut other) = (host1.connect("default").await, host2.connect("default").await);
    let (volume, other_volume) = (source.claim("data").await, other.claim("data").await);
    let slot = publish_cut(&mut source, &volume, 1, 1).await;
    source.publish(&volume, 2, &granules(3000, 1), LayerKind::Point).await;
    publish_cut(&mut other, &other_volume, 1, 1).await;
    gateway.stop();
    gateway.start_torn(farside_region::Slot(slot)).await;
    let named = async || {
        let reasons = gateway.status().await.reasons;
        let of_it = reasons.iter().find(|reason| reason.code == "deletion_waits").map(|reason| reason.message.clone());
        of_it.is_some_and(|words| words.contains("cohort erp") && words.contains("host1/default: its ledger is torn"))
    };
    wait_until("it to be named", named).await;
    let mut other = host2.connect_when_ready("default").await;
    let other_volume = other.claim_above("data", &other_volume).await;
    other.set_keep(1).await;
    for seq in 1..=3 {
        other.publish(&other_volume, seq, &granules(5000 * seq, 1), LayerKind::Point).await;
    }
    assert_eq!(slots(&gateway, "host2/default").await.len(), 4, "nothing is given up meanwhile");
    gateway.stop();
}

/// What the gateway calls the newest whole cut is what a failover takes: not one that a failover before was to an older point instead of.
#[tokio::test]
async fn a_cut_that_a_failover_left_aside_is_not_the_newest() {
    let mut gateway = Gateway::new(COHORT);
    gateway.start().await;
    let (host1, host2) = (gateway.pair("host1").await, gateway.pair("host2").await);
    let (mut source, mut other) = (host1.connect("default").await, host2.connect("default").await);
    let (volume, other_volume) = (source.claim("data").await, other.claim("data").await);
    let mut of_source = Vec::new();
    for seq in 1..=2 {
        let cut = u8::try_from(seq).expect("few");
        of_source.push(publish_cut(&mut source, &volume, seq, cut).await);
        publish_cut(&mut other, &other_volume, seq, cut).await;
    }
    let newest =
        async || gateway.client().cohorts().await.expect("an answer")[0].newest.clone().map(|cut| cut.points[0].point.slot);
    assert_eq!(newest().await, Some(of_source[1]));
    let group = "host1/default".to_owned();
    let older = FailoverRequest { group, point: Some(of_source[0]), force: true, ..FailoverRequest::default() };
    gateway.client().failover(&older).await.expect("begun");
    let is_over =
        async || gateway.client().failovers().await.is_ok_and(|all| all.iter().any(|one| one.stage == FailoverStage::Promoted));
    wait_until("it to be promoted", is_over).await;
    assert_eq!(newest().await, Some(of_source[0]), "the one that it is at");
    let cuts = gateway.client().cohort_cuts("erp", &PointsQuery::default()).await.expect("cuts");
    assert_eq!(cuts.iter().map(|cut| cut.points.iter().filter(|point| point.aside).count()).collect::<Vec<_>>(), [1, 0]);
    let why = cuts[0].doubt().expect("it is said");
    assert!(why.contains("host1/default was left aside"), "{why}");
    gateway.stop();
}
