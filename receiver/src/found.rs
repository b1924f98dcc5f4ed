//! What readings of a group's points found damaged, kept across restarts in the state directory.
//!
//! Invariant: a point counts as verified only by what was said of it after the last damage was met that it may share. The ledger keeps that a
//! point was verified, and takes nothing back; what is kept here withdraws it, until that point, or whatever replaced it, was read and is sound.

use std::collections::{BTreeMap, BTreeSet};

use farside_control::{Code, PointId, Reason, Severity, VerifiedPoint};
use farside_ledger::{Point, PointFilter, PointProof, Proofs, State, VerifiedHow};
use farside_region::Slot;
use farside_store::{PartName, PointInfo, PointsFound, find_points};
use serde::{Deserialize, Serialize};

/// The oldest ones are told apart no longer when there are more.
const FINDINGS_MAX: usize = 64;

/// What is known of a group beside what its ledger says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    /// When a point was read in full last of which nothing could be put on record, by the wall clock.
    pub(crate) unrecorded_wall_ms: Option<i64>,
    /// Oldest first.
    findings: Vec<Finding>,
    /// What was lost without a reading, as was noticed.
    lost: Option<Lost>,
    /// Parts that merges wrote and that are damaged: what they replaced is kept.
    #[serde(default)]
    pub(crate) spoiled: BTreeSet<PartName>,
    /// No file tells of it: of a store that another receiver made that is not to say that nothing was found.
    #[serde(skip)]
    pub(crate) is_untold: bool,
    /// Why it is not known what was found before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) forgotten: Option<String>,
    /// The volumes of which that is so, each with the newest point of it when that was noticed. `None`: nobody has looked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten_of: Option<BTreeMap<String, Slot>>,
    /// There is a file that tells of it, and cannot be read: it stays as long as nothing took its place.
    #[serde(skip)]
    pub(crate) is_unreadable: bool,
    /// The slot of the ledger that this was held against.
    #[serde(skip)]
    settled: Option<Slot>,
    /// The file is behind.
    #[serde(skip)]
    pub(crate) is_unsaved: bool,
}

/// Parts in whose place nothing newer lies, and which cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lost {
    /// They lie in points from here on.
    pub(crate) since: Slot,
    /// How many there are.
    pub(crate) parts: u64,
}

impl Lost {
    /// Whether these are more than were known.
    fn is_new(self, known: Option<Self>) -> bool {
        known.is_none_or(|known| self.since < known.since || self.parts > known.parts)
    }
}

/// Damage that was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finding {
    /// In this point; `None`: where, is not told apart any more.
    pub(crate) point: Option<Slot>,
    /// Points before do not have what is damaged.
    pub(crate) since: Slot,
    /// The newest slot when it was met: what was said up to there says nothing any more.
    pub(crate) head: Slot,
    /// It is said to people, until that point or a newer one was read and is sound.
    pub(crate) is_said: bool,
    /// The newest slot while it was said: who compared with the source up to there knew nothing of what lies here.
    #[serde(default)]
    pub(crate) until: Option<Slot>,
    /// The volumes of it, as far as all was read.
    #[serde(default)]
    pub(crate) volumes: BTreeSet<String>,
    /// The volumes of that point, where it is not known which of them it is.
    #[serde(default)]
    pub(crate) members: BTreeSet<String>,
    /// The point in which it was met first: what is no newer is kept. `None`: the one in which it was met, as far as is known.
    #[serde(default)]
    pub(crate) first: Option<Slot>,
    pub(crate) message: String,
    pub(crate) what_to_do: String,
}

impl Finding {
    /// One of which it is not told in which point, and which is said to nobody.
    pub(crate) fn of_any(since: Slot, message: String, what_to_do: String) -> Self {
        let (volumes, members) = (BTreeSet::new(), BTreeSet::new());
        Self { point: None, since, head: since, is_said: false, until: None, volumes, members, first: None, message, what_to_do }
    }

    /// Whether it takes back that a point was verified.
    fn withdraws(&self, how: VerifiedHow, point: Slot, said: Slot) -> bool {
        // Who compared with the source has not read what lies here.
        let unread = || how == VerifiedHow::WithSource && (self.is_said || self.until.is_some_and(|until| said <= until));
        point >= self.since && (said <= self.head || unread())
    }

    /// The point in which it was met first.
    fn first(&self) -> Slot {
        self.first.or(self.point).unwrap_or(self.head)
    }

    /// Whether that a point is sound says that this is over. † Not by one without the volume that is damaged: it may be paused, removed, or compare.
    fn is_ended_by<S: AsRef<str>>(&self, point: Slot, members: &[S]) -> bool {
        let has = |volume: &String| members.iter().any(|member| member.as_ref() == volume);
        let is_known = !self.volumes.is_empty() || !self.members.is_empty();
        is_known && self.point.is_none_or(|of| of <= point) && self.volumes.iter().chain(&self.members).all(has)
    }

    /// It was said up to this slot.
    fn was_said_at(&mut self, head: Option<Slot>) {
        if self.is_said {
            self.until = self.until.max(head);
        }
    }

    /// As it is kept: up to where it is said, while it is, is known without that.
    fn kept(&self) -> Self {
        Self { until: self.until.filter(|_| !self.is_said), ..self.clone() }
    }

    /// Whether it is of any use.
    fn matters(&self, state: &State) -> bool {
        // Somebody may want that very point, whatever newer ones are.
        let is_kept = self.point.is_some_and(|point| state.points().contains_key(&point));
        let is_there = is_kept || self.is_said && state.points().range(self.since..).next().is_some();
        let last = || state.last_proofs().iter().any(|(how, last)| self.withdraws(how, last.point, last.proof.slot));
        let any = |point: &Point| point.proofs.iter().any(|(how, proof)| self.withdraws(how, point.slot, proof.slot));
        is_there || last() || state.points().range(self.since..).any(|(_, point)| any(point))
    }
}

/// The names of the volumes of a point.
fn names_of(state: &State, point: &Point) -> Vec<String> {
    let volumes = point.members.iter().filter_map(|member| state.volume(member.key.volume));
    volumes.map(|volume| volume.meta().name.to_string()).collect()
}

impl Found {
    /// What was found is lost, for this reason: it may have been any point.
    pub(crate) fn forgotten(why: String) -> Self {
        let (message, what_to_do) = (String::new(), String::new());
        let any = Finding { head: Slot(u64::MAX), ..Finding::of_any(Slot(0), message, what_to_do) };
        Self { findings: vec![any], forgotten: Some(why), is_unreadable: true, ..Self::default() }
    }

    /// No file tells of it.
    pub(crate) fn untold() -> Self {
        Self { is_untold: true, ..Self::default() }
    }

    /// No file of a group told of it, whose store another receiver made. `is_empty`: nothing is in its ledger.
    pub(crate) fn seen_first(&mut self, is_empty: bool) {
        if std::mem::take(&mut self.is_untold) && !is_empty {
            let Self { findings, forgotten, .. } = Self::forgotten("this gateway has not read it before".to_owned());
            self.findings.extend(findings);
            // There is no file that is to stay, and the next start is to know the points of now.
            self.forgotten = forgotten;
        }
    }

    /// What a person should know.
    pub(crate) fn reason(&self) -> Option<Reason> {
        let code = Code::VerificationFailed;
        let forgotten = || {
            let message = format!("what readings found before is not known: {}", self.forgotten.as_ref()?);
            let what = "the newest point is read anew when it may be, and nothing that was there is given up before; sooner: farside point verify latest --of GROUP";
            Some(Reason::new(Severity::Warning, code, message, what))
        };
        let said = self.findings.iter().rev().find(|finding| finding.is_said);
        said.map(|f| Reason::new(Severity::Error, code, f.message.clone(), f.what_to_do.clone())).or_else(forgotten)
    }

    /// Points up to here are kept while damage is said: one of them may be the last that is whole. `None`: nothing is said.
    ///
    /// † Not up to the newest point that was read: where the newest one is read every day, and is damaged every day, none would ever go.
    pub(crate) fn kept_up_to(&self) -> Option<Slot> {
        // Who does not know what was found knows no point that is not damaged, of those that were there.
        let forgotten = self.forgotten.as_ref().map(|_| self.forgotten_in().unwrap_or(Slot(u64::MAX)));
        self.findings.iter().filter(|finding| finding.is_said).map(Finding::first).max().max(forgotten)
    }

    /// The volumes of which something is said to be damaged.
    pub(crate) fn damaged_volumes(&self) -> BTreeSet<&str> {
        self.findings.iter().filter(|finding| finding.is_said).flat_map(|finding| &finding.volumes).map(String::as_str).collect()
    }

    /// Whether a point was read in full since something was met that it may have, and is sound.
    pub(crate) fn is_sound(&self, point: &Point) -> bool {
        point.proofs.read_back.is_some_and(|read| self.counts(VerifiedHow::ReadBack, point.slot, read.slot))
    }

    /// What was found damaged that a point may have: it was not read since, or is not sound.
    pub(crate) fn damage_of(&self, point: &Point) -> Option<&str> {
        let is_sound_since = |head: Slot| point.proofs.read_back.is_some_and(|read| read.slot > head);
        // † That a newer one is sound says nothing of those up to the damaged one: that may be what somebody wants.
        let may_have = |finding: &&Finding| {
            let is_of_it = finding.is_said || finding.point.is_some_and(|of| point.slot <= of);
            is_of_it && finding.since <= point.slot && !is_sound_since(finding.head) && !finding.message.is_empty()
        };
        self.findings.iter().rev().find(may_have).map(|finding| finding.message.as_str())
    }

    /// Of the volumes that are not known yet the newest point that there was then.
    pub(crate) fn forgotten_in(&self) -> Option<Slot> {
        self.forgotten_of.as_ref()?.values().max().copied()
    }

    /// Whether a point of these volumes has one of which it is forgotten what was found.
    pub(crate) fn is_forgotten_of<S: AsRef<str>>(&self, members: &[S]) -> bool {
        self.forgotten_of.as_ref().is_none_or(|of| members.iter().any(|member| of.contains_key(member.as_ref())))
    }

    /// All of a point of these volumes was read, whatever came of it. † What was forgotten may be in any point of a volume up to its newest: that an older
    /// one was read, or one that does not hold the volume, says nothing of it.
    pub(crate) fn was_read<S: AsRef<str>>(&mut self, point: Slot, members: &[S]) {
        let Some(of) = &mut self.forgotten_of else { return };
        let is_in = |volume: &str| members.iter().any(|member| member.as_ref() == volume);
        of.retain(|volume, newest| *newest > point || !is_in(volume));
        if of.is_empty() {
            self.forgotten_is_over();
        }
    }

    fn forgotten_is_over(&mut self) {
        (self.forgotten, self.forgotten_of, self.is_unreadable) = (None, None, false);
    }

    /// A point is damaged. What was found in it before is told anew.
    pub(crate) fn damaged(&mut self, finding: Finding) {
        let same = |known: &Finding| known.point.is_some() && known.point == finding.point;
        let since = self.findings.iter().filter(|known| same(known)).map(|known| known.since).fold(finding.since, Slot::min);
        self.findings.retain(|known| !same(known));
        // What may be the same was met before. † Of another volume it is not.
        let (met, volumes) = (finding.point.unwrap_or(finding.head), &finding.volumes);
        let may_be_same =
            |known: &&Finding| known.is_said && (since..=met).contains(&known.first()) && known.volumes.is_superset(volumes);
        let first = self.findings.iter().filter(may_be_same).map(Finding::first).min();
        self.findings.push(Finding { since, first, ..finding });
        if self.findings.len() > FINDINGS_MAX {
            let oldest = self.findings.remove(0);
            let next = self.findings[0].clone();
            let (since, head, until) = (next.since.min(oldest.since), next.head.max(oldest.head), next.until.max(oldest.until));
            let (first, volumes) = (Some(next.first().max(oldest.first())), &next.volumes | &oldest.volumes);
            let members = &next.members | &oldest.members;
            // What is said of either is said on.
            let said = if next.is_said { next } else { oldest };
            self.findings[0] = Finding { point: None, since, head, until, volumes, members, first, ..said };
        }
        self.settled = None;
    }

    /// A point that is being read is damaged. What was said of it when all of it was read is said on.
    pub(crate) fn met(&mut self, finding: Finding) {
        let known = self.findings.iter().find(|known| known.is_said && known.point.is_some() && known.point == finding.point);
        let said = known.map(|known| (known.message.clone(), known.what_to_do.clone(), known.volumes.clone()));
        let (message, what_to_do, volumes) = said.unwrap_or((finding.message, finding.what_to_do, finding.volumes));
        self.damaged(Finding { message, what_to_do, volumes, ..finding });
    }

    /// Parts are lost: no reading was needed to see that, and it is said elsewhere. `None`: none is.
    pub(crate) fn lost(&mut self, state: &State, lost: Option<Lost>) {
        let known = std::mem::replace(&mut self.lost, lost);
        // What is read and sound after it was noticed has nothing of it.
        let Some(Lost { since, .. }) = lost.filter(|lost| lost.is_new(known)) else { return };
        let Some(head) = state.head() else { return };
        let (message, what_to_do) = (String::new(), String::new());
        let finding = Finding { head, ..Finding::of_any(since, message, what_to_do) };
        if finding.matters(state) {
            self.damaged(finding);
        }
    }

    /// A point of these volumes was read in full and is sound. `head`: the newest slot of the ledger that is known.
    pub(crate) fn sound<S: AsRef<str>>(&mut self, point: Slot, members: &[S], head: Option<Slot>) {
        self.was_read(point, members);
        self.findings.retain(|finding| finding.point != Some(point));
        for finding in self.findings.iter_mut().filter(|finding| finding.is_ended_by(point, members)) {
            finding.was_said_at(head);
            finding.is_said = false;
        }
        self.settled = None;
    }

    /// Drops what the ledger has outlived.
    pub(crate) fn settle(&mut self, state: &State) {
        if self.forgotten.is_some() {
            self.settle_forgotten(state);
        }
        if self.findings.is_empty() || self.settled == state.head() {
            return;
        }
        self.settled = state.head();
        let names = |point: &Point| names_of(state, point);
        let last = state.last_proofs().read_back;
        // Of what volumes one was that was given up since, is not known.
        let last = last.and_then(|last| Some((last, names(state.points().get(&last.point)?))));
        for finding in &mut self.findings {
            // If that point is gone, those of the next are what there is to go by.
            if finding.volumes.is_empty() && finding.members.is_empty() {
                let point = finding.point.and_then(|of| state.points().range(of..).next());
                finding.members.extend(point.into_iter().flat_map(|(_, point)| names(point)));
            }
            // A repair may have cut the ledger short.
            finding.head = finding.head.min(state.head().unwrap_or(Slot(0)));
            finding.was_said_at(state.head());
            let ends = |(last, members): &(PointProof, Vec<String>)| {
                last.proof.slot > finding.head && finding.is_ended_by(last.point, members)
            };
            finding.is_said &= !last.as_ref().is_some_and(ends);
        }
        self.findings.retain(|finding| {
            let point = finding.point.and_then(|slot| state.points().get(&slot));
            let is_sound = point.and_then(|point| point.proofs.read_back).is_some_and(|read| read.slot > finding.head);
            !is_sound && finding.matters(state)
        });
    }

    /// Notes of which volumes it is, and in which points. What none has any more is over; a repair may have cut the ledger short, too.
    fn settle_forgotten(&mut self, state: &State) {
        let names = |point: &Point| names_of(state, point);
        let is_there =
            |(volume, newest): (&String, &Slot)| state.points().get(newest).is_some_and(|point| names(point).contains(volume));
        let known = self.forgotten_of.take();
        if known.as_ref().is_some_and(|of| of.iter().all(is_there)) {
            self.forgotten_of = known;
        } else {
            let mut of = BTreeMap::new();
            for (slot, point) in state.points() {
                let is_of =
                    |volume: &String| known.as_ref().is_none_or(|known| known.get(volume).is_some_and(|newest| slot <= newest));
                of.extend(names(point).into_iter().filter(is_of).map(|volume| (volume, *slot)));
            }
            self.forgotten_of = Some(of);
        }
        let is_over = self.forgotten_of.as_ref().is_some_and(BTreeMap::is_empty);
        if is_over && !state.points().is_empty() {
            self.forgotten_is_over();
        }
    }

    /// Whether the file need not change.
    pub(crate) fn is_kept_as(&self, other: &Self) -> bool {
        let kept = |found: &Self| (found.unrecorded_wall_ms, found.lost);
        kept(self) == kept(other)
            && (&self.forgotten, &self.forgotten_of) == (&other.forgotten, &other.forgotten_of)
            && self.spoiled == other.spoiled
            && self.findings.iter().map(Finding::kept).eq(other.findings.iter().map(Finding::kept))
    }

    /// Whether it counts that a point was verified, as was said in a slot.
    fn counts(&self, how: VerifiedHow, point: Slot, said: Slot) -> bool {
        !self.findings.iter().any(|finding| finding.withdraws(how, point, said))
    }

    /// Takes from a point what it was verified by and does not count.
    pub(crate) fn strip(&self, point: &mut PointInfo) {
        let slot = point.slot;
        let counts = |how, said: Slot| !point.degraded && self.counts(how, slot, said);
        let proofs = point.proofs;
        point.proofs = Proofs {
            read_back: proofs.read_back.filter(|proof| counts(VerifiedHow::ReadBack, proof.slot)),
            with_source: proofs.with_source.filter(|proof| counts(VerifiedHow::WithSource, proof.slot)),
        };
    }

    /// As [`find_points`], by what counts.
    pub(crate) fn find_points(&self, state: &State, filter: &PointFilter, below: Option<Slot>, limit: usize) -> PointsFound {
        let limit_here = if filter.verified { usize::MAX } else { limit };
        let mut found = find_points(state, filter, below, limit_here);
        found.points.iter_mut().for_each(|point| self.strip(point));
        if filter.verified {
            found.points.retain(|point| point.proofs.iter().next().is_some());
            found.total = found.total.map(|_| found.points.len() as u64);
            found.more = found.points.len() > limit;
            found.points.truncate(limit);
        }
        found
    }

    /// The newest point that was read in full here; where none was, the newest of which its source says that it is equal.
    pub(crate) fn last_verified(&self, state: &State) -> Option<VerifiedPoint> {
        let is_whole = |slot: Slot| state.points().get(&slot).is_none_or(|point| !point.degraded);
        let (how, newest) = [VerifiedHow::ReadBack, VerifiedHow::WithSource].into_iter().find_map(|how| {
            let counts = |it: &PointProof| is_whole(it.point) && self.counts(how, it.point, it.proof.slot);
            let last = *state.last_proofs().by(how)?;
            let of = |point: &Point| {
                let proof = *point.proofs.by(how)?;
                Some(PointProof { point: point.slot, cut_wall_ms: point.epoch.wall_ms, proof })
            };
            let older = || state.points().values().rev().filter_map(of).find(counts);
            Some((how, Some(last).filter(counts).or_else(older)?))
        })?;
        Some(VerifiedPoint {
            id: PointId::new(newest.point.0, &state.digest_at(newest.point)?.0),
            cut_wall: crate::status::wall(newest.cut_wall_ms),
            verified: crate::status::verified(how, &newest.proof),
            retained: state.points().contains_key(&newest.point),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(point: u64, since: u64, head: u64, message: &str) -> Finding {
        let (message, what_to_do) = (message.to_owned(), String::new());
        Finding {
            point: Some(Slot(point)),
            since: Slot(since),
            head: Slot(head),
            is_said: true,
            until: None,
            volumes: BTreeSet::new(),
            members: BTreeSet::from(["a".to_owned()]),
            first: None,
            message,
            what_to_do,
        }
    }

    /// Its volume was paused, and points without it were sound: that ended what was said, and retention gave up the last whole one of it.
    #[test]
    fn a_sound_point_without_the_damaged_volume_ends_nothing_of_it() {
        let mut found = Found::default();
        let volumes = BTreeSet::from(["a".to_owned()]);
        found.damaged(Finding { volumes, members: BTreeSet::new(), ..finding(20, 9, 20, "damaged") });
        found.sound(Slot(30), &["b"], Some(Slot(31)));
        assert_eq!(found.kept_up_to(), Some(Slot(20)));
        assert!(found.reason().is_some() && found.damaged_volumes().contains("a"));
        found.sound(Slot(40), &["a", "b"], Some(Slot(41)));
        assert!(found.kept_up_to().is_none() && found.damaged_volumes().is_empty());
        // Of a reading that was cut short, which has not seen which volume it is.
        found.met(Finding { members: BTreeSet::from(["a".to_owned(), "b".to_owned()]), ..finding(50, 9, 50, "damaged") });
        found.sound(Slot(60), &["b"], Some(Slot(61)));
        assert_eq!(found.kept_up_to(), Some(Slot(50)));
        // Nobody knows of what volumes that point was.
        found.met(Finding { members: BTreeSet::new(), ..finding(50, 9, 50, "damaged") });
        found.sound(Slot(70), &["a", "b"], Some(Slot(71)));
        assert_eq!(found.kept_up_to(), Some(Slot(50)));
    }

    /// A gateway that was made anew gave up what the one before kept for a rotten part.
    #[test]
    fn what_no_file_tells_of_points_that_another_receiver_made_is_not_nothing() {
        let (mut new, mut old) = (Found::untold(), Found::untold());
        new.seen_first(true);
        assert!(new.forgotten.is_none() && new.kept_up_to().is_none());
        old.seen_first(false);
        assert!(old.kept_up_to() == Some(Slot(u64::MAX)) && old.reason().is_some() && !old.is_untold);
        old.forgotten_of = Some(BTreeMap::from([("a".to_owned(), Slot(20))]));
        // The next start does not begin anew with what came in since.
        let text = serde_json::to_string(&old).expect("written");
        let again: Found = serde_json::from_str(&text).expect("read");
        assert!(again.is_kept_as(&old) && again.kept_up_to() == Some(Slot(20)) && !again.is_unreadable);
        old.sound(Slot(20), &["a"], Some(Slot(21)));
        assert!(old.forgotten.is_none());
        old.seen_first(false);
        assert!(old.forgotten.is_none(), "it has been read since");
    }

    /// Somebody verified an old point, and what may have been the last whole ones went before the newest was read.
    #[test]
    fn what_was_forgotten_is_so_until_the_newest_point_of_then_is_read() {
        let of = |all: &[(&str, u64)]| Some(all.iter().map(|(volume, slot)| ((*volume).to_owned(), Slot(*slot))).collect());
        let forgotten = || Found { forgotten_of: of(&[("a", 20)]), ..Found::forgotten("its file is gone".to_owned()) };
        let mut found = forgotten();
        found.sound(Slot(5), &["a"], Some(Slot(21)));
        found.damaged(finding(7, 2, 22, "damaged"));
        found.was_read(Slot(7), &["a"]);
        found.met(finding(20, 2, 23, "damaged"));
        assert!(found.forgotten.is_some() && found.kept_up_to() == Some(Slot(20)));
        found.sound(Slot(20), &["a"], Some(Slot(24)));
        assert!(found.forgotten.is_none() && found.kept_up_to().is_none());
        let mut found = forgotten();
        found.damaged(finding(25, 9, 25, "damaged"));
        assert!(found.forgotten.is_some(), "one volume of it was read");
        found.was_read(Slot(25), &["a"]);
        assert!(found.forgotten.is_none() && found.kept_up_to() == Some(Slot(25)));
        // † A volume that was paused: what may be the last whole ones of it went when another was read.
        let mut found = Found { forgotten_of: of(&[("a", 20), ("b", 20), ("gone", 9)]), ..forgotten() };
        found.sound(Slot(30), &["b"], Some(Slot(31)));
        assert!(found.kept_up_to() == Some(Slot(20)) && found.is_forgotten_of(&["a"]) && !found.is_forgotten_of(&["b"]));
        found.sound(Slot(40), &["a", "b"], Some(Slot(41)));
        assert_eq!((found.kept_up_to(), found.forgotten_in()), (Some(Slot(9)), Some(Slot(9))), "that is in no newer one");
        found.sound(Slot(9), &["a", "gone"], Some(Slot(41)));
        assert!(found.forgotten.is_none() && found.kept_up_to().is_none());
    }

    /// What a source had said of an older point while damage was known counted again as soon as a newer point was sound.
    #[test]
    fn who_compared_with_the_source_while_damage_was_said_has_not_read_it() {
        let mut found = Found::default();
        found.damaged(finding(20, 5, 20, "damaged"));
        let counts = |found: &Found, how, said| found.counts(how, Slot(10), Slot(said));
        assert!(!counts(&found, VerifiedHow::WithSource, 30) && counts(&found, VerifiedHow::ReadBack, 30));
        found.sound(Slot(25), &["a", "b"], Some(Slot(30)));
        assert!(found.reason().is_none(), "it is not said any more");
        assert!(!counts(&found, VerifiedHow::WithSource, 30), "it was said then");
        assert!(counts(&found, VerifiedHow::WithSource, 31) && counts(&found, VerifiedHow::ReadBack, 30));
        assert!(found.counts(VerifiedHow::WithSource, Slot(4), Slot(30)), "it has nothing of what is damaged");
    }

    /// What is older than damage is kept; where the newest point is read every day, that stays what it was.
    #[test]
    fn up_to_where_points_are_kept_follows_no_reading_of_the_same_damage() {
        let of = |volumes: &[&str], point, since| {
            let volumes = volumes.iter().map(|volume| (*volume).to_owned()).collect();
            Finding { volumes, members: BTreeSet::new(), ..finding(point, since, point, "damaged") }
        };
        let mut found = Found::default();
        assert_eq!(found.kept_up_to(), None);
        found.damaged(of(&["a"], 10, 3));
        found.met(of(&[], 20, 3));
        found.damaged(of(&["a"], 20, 3));
        assert_eq!(found.kept_up_to(), Some(Slot(10)));
        found.damaged(of(&["a", "b"], 520, 3));
        assert_eq!(found.kept_up_to(), Some(Slot(520)), "another volume is damaged as well");
        found.damaged(of(&["a", "b"], 521, 3));
        assert_eq!(found.kept_up_to(), Some(Slot(520)));
        found.damaged(of(&["a"], 530, 525));
        assert_eq!(found.kept_up_to(), Some(Slot(530)), "it came to be later");
        found.sound(Slot(530), &["a", "b"], Some(Slot(531)));
        assert_eq!(found.kept_up_to(), None);
        // Of a build that did not say it.
        let text = r#"{"point": 20, "since": 3, "head": 21, "is_said": true, "message": "damaged", "what_to_do": ""}"#;
        let earlier: Finding = serde_json::from_str(text).expect("as it was");
        let known = Found { findings: vec![earlier], ..Found::default() };
        assert_eq!(known.kept_up_to(), Some(Slot(20)));
    }

    /// While it is said the ledger goes on, and the file need not follow.
    #[test]
    fn up_to_where_something_is_said_is_kept_when_it_ends() {
        let mut said = Found::default();
        said.damaged(finding(20, 5, 20, "damaged"));
        let mut later = said.clone();
        later.findings[0].was_said_at(Some(Slot(29)));
        assert!(later.is_kept_as(&said) && later.findings != said.findings);
        said.sound(Slot(25), &["a", "b"], Some(Slot(30)));
        later.sound(Slot(25), &["a", "b"], Some(Slot(31)));
        assert!(!later.is_kept_as(&said));
    }

    #[test]
    fn what_is_met_while_a_point_is_read_takes_no_place_from_what_was_said() {
        let mut found = Found::default();
        found.met(finding(20, 9, 20, "some"));
        assert_eq!(found.reason().expect("said").message, "some");
        found.damaged(finding(20, 9, 21, "all of it"));
        found.met(finding(20, 12, 25, "some"));
        assert_eq!((found.findings.len(), found.reason().expect("said").message.as_str()), (1, "all of it"));
        assert!(!found.counts(VerifiedHow::ReadBack, Slot(9), Slot(25)), "the smaller slot, and the newest head");
        // Another point is another finding.
        found.met(finding(30, 12, 30, "another"));
        assert_eq!(found.reason().expect("said").message, "another");
        found.sound(Slot(30), &["a", "b"], Some(Slot(31)));
        assert!(found.reason().is_none() && found.findings.len() == 1, "the newer one is sound, and what is older is not said");
    }

    #[test]
    fn more_findings_than_are_told_apart_are_said_and_withdraw_as_all_of_them() {
        let mut found = Found::default();
        found.damaged(finding(1, 1, 100, "the oldest"));
        for point in 2..=FINDINGS_MAX as u64 + 1 {
            found.damaged(Finding { is_said: false, ..finding(point, point, point, "") });
        }
        assert_eq!(found.findings.len(), FINDINGS_MAX);
        assert_eq!(found.reason().expect("said on").message, "the oldest");
        assert!(!found.counts(VerifiedHow::ReadBack, Slot(1), Slot(100)));
    }

    #[test]
    fn what_is_lost_after_something_was_is_new() {
        let lost = |since, parts| Lost { since: Slot(since), parts };
        assert!(lost(5, 1).is_new(None) && !lost(5, 1).is_new(Some(lost(5, 1))));
        assert!(lost(5, 2).is_new(Some(lost(5, 1))) && lost(4, 1).is_new(Some(lost(5, 1))));
        assert!(!lost(7, 1).is_new(Some(lost(5, 2))), "some of it was covered by newer layers");
    }
}
