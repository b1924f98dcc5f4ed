//! `farside failover --cohort`: every group of a cohort to its point of one cut.
//!
//! Nothing of it is kept for all of them together: each group has its own failover, which goes on by itself after a kill. Said again, it takes
//! the cut that was begun with, and goes on with the groups that are not failed over.

use std::collections::BTreeSet;
use std::time::Instant;

use farside_control::Client;
use farside_control::cohort::CohortCut;
use farside_control::failover::{FailoverRequest, FailoverStage, FailoverStatus};
use farside_control::routes::PointsQuery;
use serde::Serialize;

use super::{FailoverArgs, ask_until_through, fences, loss, not_through, steps};
use crate::args::Global;
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::print;
use crate::progress::Progress;

/// What is to be, or became, of all of them.
#[derive(Serialize)]
struct All<'a> {
    cohort: &'a str,
    cut: &'a CohortCut,
    groups: &'a [FailoverStatus],
    /// From the confirmation to targets that can be written.
    rto_ms: Option<u64>,
}

pub(super) async fn run(global: &Global, client: &Client, name: &str, args: &FailoverArgs) -> Result<(), Failure> {
    let cuts = client.cohort_cuts(name, &PointsQuery { of: None, limit: Some(u32::MAX) }).await?;
    let begun = client.failovers().await?;
    let cut = choose(&cuts, args.cut.as_deref(), &begun)
        .ok_or_else(|| no_cut(name, args.cut.as_deref(), "each group can be failed over by itself"))?;
    let requests: Vec<FailoverRequest> = cut
        .points
        .iter()
        .map(|part| FailoverRequest {
            group: part.group.clone(),
            point: Some(part.point.slot),
            cut: Some(cut.id.clone()),
            force: args.force,
            again: args.again && is_older(&begun, &part.group, part.point.slot),
            lose_staged: args.lose_staged,
            plan: true,
            ..FailoverRequest::default()
        })
        .collect();
    let (planned, refused) = plan(client, cut, (&requests, &begun), args.force).await?;
    if args.plan {
        if global.json {
            return print::json(&All { cohort: name, cut, groups: &planned, rto_ms: None });
        }
        let refused: String = refused.iter().map(|why| format!("! {why}\n")).collect();
        return print::out(&format!("{}{refused}nothing was changed\n", text_of_plan(name, cut, &planned)));
    }
    // † Not when the first are fenced: then it would be known that another cannot be.
    if !refused.is_empty() {
        let message = format!("cohort {name} is not failed over, nothing was changed: {}", refused.join("; "));
        return Err(Failure::new(
            Exit::Refused,
            message,
            "stop hosts that are connected, and name a --cut from before what was left aside or damaged; or say --force",
        ));
    }
    let fresh: Vec<&str> = planned.iter().filter(|one| one.stage == FailoverStage::Planned).map(fences).collect();
    if !fresh.is_empty() {
        if !global.json {
            eprint!("{}", text_of_plan(name, cut, &planned));
        }
        let question = format!("Fence {} and bring this cut up?", fresh.join(", "));
        confirm::confirm(&question, "nothing was changed", args.yes)?;
    }
    let since = Instant::now();
    let over = begin_all(client, name, cut, &requests).await?;
    let progress = Progress::new(global.json);
    let mut groups = Vec::new();
    for (request, now) in requests.iter().zip(over) {
        groups.push(ask_until_through(client, request, now, (&progress, global.json)).await?);
    }
    progress.finish();
    let rto_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    if global.json {
        print::json(&All { cohort: name, cut, groups: &groups, rto_ms: Some(rto_ms) })?;
    } else {
        let all: String = groups.iter().map(|one| super::done(one, None)).collect();
        print::out(&format!("{all}cohort {name} is at cut {}\nRTO {}\n", cut.id, print::duration_ms(rto_ms)))?;
    }
    planned.iter().zip(&groups).find_map(|(planned, now)| not_through(planned, now)).map_or(Ok(()), Err)
}

/// Gives up the failovers of its groups that have fenced nobody. Each is asked: how far it is may have changed since it was listed.
pub(super) async fn abort(global: &Global, client: &Client, name: &str) -> Result<(), Failure> {
    let groups = groups_of(client, name).await?;
    let (mut given_up, mut stand): (Vec<FailoverStatus>, Vec<Failure>) = Default::default();
    // † Whoever began them may begin another meanwhile: until there is none more.
    loop {
        let before = given_up.len();
        stand.clear();
        for one in client.failovers().await? {
            let group = address(&one);
            if !groups.contains(&group) || one.stage == FailoverStage::Over || one.committed {
                continue;
            }
            let request = FailoverRequest { group: group.clone(), abort: true, ..FailoverRequest::default() };
            match client.failover(&request).await.map_err(Failure::from) {
                Ok(one) => given_up.push(one),
                Err(failure) if failure.exit == Exit::NotFound => {} // somebody else was faster, or it is over
                // The one before it stands again.
                Err(_) if given_up.iter().any(|over| address(over) == group && over.generation > one.generation) => {}
                Err(failure) => stand.push(failure),
            }
        }
        if given_up.len() == before {
            break;
        }
    }
    if global.json {
        print::json(&given_up)?;
    } else if !given_up.is_empty() {
        let names: BTreeSet<String> = given_up.iter().map(address).collect();
        let names: Vec<String> = names.into_iter().collect();
        print::out(&format!("the failovers of {} were given up: nobody of them was fenced\n", names.join(", ")))?;
    }
    let Some(first) = stand.first() else {
        return match given_up.is_empty() {
            false => Ok(()),
            true => {
                let message = format!("no group of cohort {name} is being failed over");
                Err(Failure::new(Exit::NotFound, message, "`farside failover --list` lists what is"))
            }
        };
    };
    let words: Vec<&str> = stand.iter().map(|failure| failure.message.as_str()).collect();
    Err(Failure::new(first.exit, format!("not all of cohort {name} is given up: {}", words.join("; ")), first.what_to_do.clone()))
}

/// Of which group one is.
fn address(one: &FailoverStatus) -> String {
    format!("{}/{}", one.source, one.group)
}

/// As it is configured; and those of its cuts, which others may be.
async fn groups_of(client: &Client, name: &str) -> Result<BTreeSet<String>, Failure> {
    let known = client.cohorts().await?.into_iter().find(|known| known.name == name);
    let is_known = known.is_some();
    let cuts = match client.cohort_cuts(name, &PointsQuery { of: None, limit: Some(u32::MAX) }).await {
        Ok(cuts) => cuts,
        // † What cannot be told of its cuts is no reason to fence whom the configuration names.
        Err(_) if is_known => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    if !is_known && cuts.is_empty() {
        return Err(no_cut(name, None, "each group can be given up by itself"));
    }
    let configured = known.into_iter().flat_map(|known| known.groups).map(|group| group.group);
    Ok(configured.chain(cuts.into_iter().flat_map(|cut| cut.points).map(|part| part.group)).collect())
}

/// Whether a group was failed over to an older point than that, and is to be once more.
fn is_older(begun: &[FailoverStatus], group: &str, slot: u64) -> bool {
    let of_group = |one: &&FailoverStatus| group.split_once('/') == Some((&one.source, &one.group));
    begun
        .iter()
        .find(of_group)
        .is_some_and(|one| one.stage == FailoverStage::Promoted && one.point.as_ref().is_some_and(|point| point.id.slot < slot))
}

/// The one that is meant: what was said, or what was begun with, or the newest.
fn choose<'c>(cuts: &'c [CohortCut], wanted: Option<&str>, begun: &[FailoverStatus]) -> Option<&'c CohortCut> {
    if let Some(wanted) = wanted {
        return cuts.iter().find(|cut| cut.id == wanted);
    }
    // † A newer one may be whole by now, of what was staged when the first groups were fenced: they are at this one. Where something was published
    // since, it was another failover that brought them there.
    let stands = |one: &&FailoverStatus| one.stage != FailoverStage::Over && !one.committed && !one.published_since;
    let is_at = |cut: &&CohortCut| {
        begun.iter().filter(stands).any(|one| {
            let (group, at) = (address(one), one.point.as_ref().map(|point| point.id));
            cut.points.iter().any(|part| part.group == group && Some(part.point) == at)
        })
    };
    cuts.iter().find(is_at).or_else(|| cuts.first())
}

/// There is none; `instead` of it something else can be done.
pub(crate) fn no_cut(name: &str, wanted: Option<&str>, instead: &str) -> Failure {
    let message = match wanted {
        Some(id) => format!("cohort {name} has no cut {id} of which every group has its point"),
        None => format!("cohort {name} has no cut of which every group has its point"),
    };
    Failure::new(Exit::NotFound, message, format!("`farside cohort cuts {name}` lists them; {instead}"))
}

/// What would become of each group, and why it would be refused.
async fn plan(
    client: &Client,
    cut: &CohortCut,
    (requests, begun): (&[FailoverRequest], &[FailoverStatus]),
    force: bool,
) -> Result<(Vec<FailoverStatus>, Vec<String>), Failure> {
    let (mut planned, mut refused) = (Vec::new(), Vec::new());
    for (request, part) in requests.iter().zip(&cut.points) {
        let one = client.failover(request).await.map_err(|error| {
            let failure = Failure::from(error);
            let message = format!("{}: {}; nothing was changed", part.group, failure.message);
            // What is said of one group goes for the cohort here.
            let what_to_do = match request.again || !is_older(begun, &part.group, part.point.slot) {
                true => failure.what_to_do.clone(),
                false => "--again fails over once more what is older than the cut; `farside failover --list` shows it".to_owned(),
            };
            Failure { message, what_to_do, ..failure }
        })?;
        let is_new = one.stage == FailoverStage::Planned;
        if let Some(from) = one.connected_from.as_ref().filter(|_| is_new && !force) {
            refused.push(format!("{} is connected, from {from}", fences(&one)));
        }
        // † It would be refused when the first are fenced.
        if is_new && one.aside && !force {
            refused.push(format!("point {} of {} was left aside by a failover to an older one", part.point, part.group));
        }
        if let Some(why) = one.damaged.as_ref().filter(|_| is_new && !force) {
            refused.push(format!("point {} of {} may have what was found damaged: {why}", part.point, part.group));
        }
        if one.stage == FailoverStage::Over {
            refused.push(format!("{} was failed over to it once, and that is over", part.group));
        }
        planned.push(one);
    }
    Ok((planned, refused))
}

/// Begins with each; with no more after one that is not taken.
async fn begin_all(
    client: &Client,
    name: &str,
    cut: &CohortCut,
    requests: &[FailoverRequest],
) -> Result<Vec<FailoverStatus>, Failure> {
    let mut begun: Vec<FailoverStatus> = Vec::new();
    for request in requests {
        // † Nobody else is fenced once somebody has given one of them up.
        if !begun.is_empty() {
            let now = client.failovers().await?;
            let stands =
                |one: &FailoverStatus| now.iter().any(|now| (address(now), now.generation) == (address(one), one.generation));
            if let Some(gone) = begun.iter().find(|one| !stands(one)) {
                let message = format!("the failover of {} was given up meanwhile: no other group is begun with", address(gone));
                return Err(Failure::new(Exit::Refused, message, "`farside failover --list` shows what was begun"));
            }
        }
        match client.failover(&FailoverRequest { plan: false, ..request.clone() }).await {
            Ok(one) => begun.push(one),
            // † No more is fenced than a person has seen: what has changed since the plan is his to look at.
            Err(error) => {
                let failure = Failure::from(error);
                let done: Vec<&str> = requests[..begun.len()].iter().map(|request| request.group.as_str()).collect();
                let so_far = if done.is_empty() {
                    "no other group was begun with".to_owned()
                } else {
                    format!("{} is begun with, and goes on by itself", done.join(", "))
                };
                let message = format!("{}: {}; {so_far}", request.group, failure.message);
                let what = format!(
                    "{}; `farside failover --list` shows what was begun, which this one may be, too; to go on with all: farside failover \
                     --cohort {name} --cut {}{}",
                    failure.what_to_do,
                    cut.id,
                    if requests.iter().any(|request| request.again) { " --again" } else { "" }
                );
                return Err(Failure { message, what_to_do: what.trim_start_matches("; ").to_owned(), ..failure });
            }
        }
    }
    Ok(begun)
}

/// What is lost of each, and what becomes of its volumes.
fn text_of_plan(name: &str, cut: &CohortCut, planned: &[FailoverStatus]) -> String {
    let mut text = format!("cohort {name} to cut {}, begun {} ({})\n", cut.id, print::time(cut.at), print::age(cut.at));
    for one in planned {
        let group = address(one);
        text.push_str(&match one.stage {
            FailoverStage::Planned => format!("\n{}{}", loss(one), steps(one)),
            stage => format!("\n{group} is failed over to it already ({})\n{}", super::stage(stage), steps(one)),
        });
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use farside_control::PointId;
    use farside_control::cohort::CohortPoint;
    use farside_control::source::LastPoint;

    use super::*;

    fn point(slot: u64) -> PointId {
        PointId { slot, tag: 1 }
    }

    fn cut(n: u64) -> CohortCut {
        let part = |group: &str, slot| CohortPoint { group: group.to_owned(), point: point(slot), aside: false, damaged: None };
        let at = jiff::Timestamp::from_second(1_700_000_000 + i64::try_from(n).expect("few")).expect("a time");
        CohortCut { id: format!("{n:032x}"), at, points: vec![part("a/g", n), part("b/g", 100 + n)] }
    }

    fn failover(source: &str, slot: u64, stage: FailoverStage) -> FailoverStatus {
        let point = LastPoint { id: point(slot), cut_wall: jiff::Timestamp::UNIX_EPOCH };
        FailoverStatus { source: source.into(), group: "g".into(), stage, point: Some(point), ..FailoverStatus::default() }
    }

    #[test]
    fn who_says_it_again_means_the_cut_that_was_begun_with() {
        let cuts = [cut(3), cut(2), cut(1)];
        let chosen =
            |wanted: Option<&str>, begun: &[FailoverStatus]| choose(&cuts, wanted, begun).map(|cut| cut.points[0].point.slot);
        assert_eq!(chosen(None, &[]), Some(3), "the newest");
        assert_eq!(chosen(None, &[failover("b", 102, FailoverStage::Fencing)]), Some(2), "a newer one was whole meanwhile");
        assert_eq!(chosen(None, &[failover("b", 102, FailoverStage::Over)]), Some(3), "that is history");
        let settled = FailoverStatus { committed: true, ..failover("b", 102, FailoverStage::Promoted) };
        assert_eq!(chosen(None, &[settled]), Some(3));
        let stood_in = FailoverStatus { published_since: true, ..failover("b", 102, FailoverStage::Promoted) };
        assert_eq!(chosen(None, &[stood_in]), Some(3), "it went on since");
        assert_eq!(chosen(None, &[failover("c", 102, FailoverStage::Promoted)]), Some(3), "of another group");
        assert_eq!(chosen(Some(&cuts[2].id), &[failover("b", 102, FailoverStage::Promoted)]), Some(1), "as it was said");
        assert_eq!(chosen(Some("00"), &[]), None);
        assert_eq!(choose(&[], None, &[]), None);
    }

    #[test]
    fn only_what_is_older_than_the_cut_is_failed_over_again() {
        let older = |slot, stage| is_older(&[failover("b", 102, stage)], "b/g", slot);
        assert!(older(103, FailoverStage::Promoted));
        assert!(!older(102, FailoverStage::Promoted), "it is at this cut");
        assert!(!older(103, FailoverStage::Fencing), "it goes on");
        assert!(!is_older(&[failover("b", 102, FailoverStage::Promoted)], "a/g", 103), "it was never failed over");
    }

    #[test]
    fn each_group_says_what_it_loses() {
        let mut later = failover("b", 102, FailoverStage::Planned);
        later.newest = Some(LastPoint { id: point(140), cut_wall: jiff::Timestamp::UNIX_EPOCH });
        let text = text_of_plan("erp", &cut(2), &[failover("a", 2, FailoverStage::Promoted), later]);
        assert!(text.contains("a/g is failed over to it already (promoted)"), "{text}");
        assert!(text.contains("b/g to point 102-00000001") && text.contains("is lost to the copy"), "{text}");
        assert!(text.contains("! not the newest: that is 140-00000001"), "{text}");
    }
}
