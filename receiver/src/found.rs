//! What readings of a group's points found damaged, kept across restarts in the state directory.
//!
//! Invariant: a point counts as verified only by what was said of it after the last damage was met that it may share. The ledger keeps that a
//! point was verified, and takes nothing back; what is kept here withdraws it, until that point, or whatever replaced it, was read and is sound.

use farside_control::{Code, PointId, Reason, Severity, VerifiedPoint};
use farside_ledger::{Point, PointFilter, PointProof, Proofs, State, VerifiedHow};
use farside_region::Slot;
use farside_store::{PointInfo, PointsFound, find_points};
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
    /// What was lost without a reading lies in points from here on, as was noticed.
    lost_since: Option<Slot>,
    /// Why it is not known what was found before.
    #[serde(skip)]
    pub(crate) forgotten: Option<String>,
    /// The slot of the ledger that this was held against.
    #[serde(skip)]
    settled: Option<Slot>,
    /// The file is behind.
    #[serde(skip)]
    pub(crate) is_unsaved: bool,
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
    pub(crate) message: String,
    pub(crate) what_to_do: String,
}

impl Finding {
    /// Whether it takes back that a point was verified.
    fn withdraws(&self, how: VerifiedHow, point: Slot, said: Slot) -> bool {
        // Who compared with the source has not read what lies here.
        point >= self.since && (said <= self.head || (how == VerifiedHow::WithSource && self.is_said))
    }

    /// Whether it is of any use.
    fn matters(&self, state: &State) -> bool {
        let is_there = self.is_said && state.points().range(self.since..).next().is_some();
        let last = || state.last_proofs().iter().any(|(how, last)| self.withdraws(how, last.point, last.proof.slot));
        let any = |point: &Point| point.proofs.iter().any(|(how, proof)| self.withdraws(how, point.slot, proof.slot));
        is_there || last() || state.points().range(self.since..).any(|(_, point)| any(point))
    }
}

impl Found {
    /// What was found is lost, for this reason: it may have been any point.
    pub(crate) fn forgotten(why: String) -> Self {
        let (message, what_to_do) = (String::new(), String::new());
        let any = Finding { point: None, since: Slot(0), head: Slot(u64::MAX), is_said: false, message, what_to_do };
        Self { findings: vec![any], forgotten: Some(why), ..Self::default() }
    }

    /// What a person should know.
    pub(crate) fn reason(&self) -> Option<Reason> {
        let code = Code::VerificationFailed;
        let forgotten = || {
            let message = format!("what readings found before is not known: {}", self.forgotten.as_ref()?);
            let what = "the newest point is read anew when it may be; sooner: farside point verify latest";
            Some(Reason::new(Severity::Warning, code, message, what))
        };
        let said = self.findings.iter().rev().find(|finding| finding.is_said);
        said.map(|f| Reason::new(Severity::Error, code, f.message.clone(), f.what_to_do.clone())).or_else(forgotten)
    }

    /// A point is damaged. What was found in it before is told anew.
    pub(crate) fn damaged(&mut self, finding: Finding) {
        let same = |known: &Finding| known.point.is_some() && known.point == finding.point;
        let since = self.findings.iter().filter(|known| same(known)).map(|known| known.since).fold(finding.since, Slot::min);
        self.findings.retain(|known| !same(known));
        self.findings.push(Finding { since, ..finding });
        self.forgotten = None;
        if self.findings.len() > FINDINGS_MAX {
            let oldest = self.findings.remove(0);
            let next = &mut self.findings[0];
            *next =
                Finding { point: None, since: next.since.min(oldest.since), head: next.head.max(oldest.head), ..next.clone() };
        }
        self.settled = None;
    }

    /// Parts that lie in points from a slot on are lost: no reading was needed to see that, and it is said elsewhere.
    /// `None`: nothing is.
    pub(crate) fn lost(&mut self, state: &State, since: Option<Slot>) {
        let known = std::mem::replace(&mut self.lost_since, since);
        let (Some(since), Some(head)) = (since, state.head()) else { return };
        // What is read and sound after it was noticed has nothing of it.
        if known.is_some_and(|known| known <= since) {
            return;
        }
        let (message, what_to_do) = (String::new(), String::new());
        let finding = Finding { point: None, since, head, is_said: false, message, what_to_do };
        if finding.matters(state) {
            let forgotten = self.forgotten.take();
            self.damaged(finding);
            self.forgotten = forgotten;
        }
    }

    /// A point was read in full and is sound.
    pub(crate) fn sound(&mut self, point: Slot) {
        self.forgotten = None;
        self.findings.retain(|finding| finding.point != Some(point));
        self.findings.iter_mut().filter(|finding| finding.point.is_none_or(|of| of <= point)).for_each(|f| f.is_said = false);
        self.settled = None;
    }

    /// Drops what the ledger has outlived.
    pub(crate) fn settle(&mut self, state: &State) {
        if self.findings.is_empty() || self.settled == state.head() {
            return;
        }
        self.settled = state.head();
        let last = state.last_proofs().read_back;
        for finding in &mut self.findings {
            // A repair may have cut the ledger short.
            finding.head = finding.head.min(state.head().unwrap_or(Slot(0)));
            let is_newer = |last: PointProof| last.proof.slot > finding.head && finding.point.is_none_or(|of| last.point >= of);
            finding.is_said &= !last.is_some_and(is_newer);
        }
        self.findings.retain(|finding| {
            let point = finding.point.and_then(|slot| state.points().get(&slot));
            let is_sound = point.and_then(|point| point.proofs.read_back).is_some_and(|read| read.slot > finding.head);
            !is_sound && finding.matters(state)
        });
    }

    /// Whether the file need not change.
    pub(crate) fn is_kept_as(&self, other: &Self) -> bool {
        let kept = |found: &Self| (found.unrecorded_wall_ms, found.lost_since);
        kept(self) == kept(other) && self.findings == other.findings
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
