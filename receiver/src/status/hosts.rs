//! Which hosts there are and for which groups they speak: who is connected, and who is missed.
//!
//! A host has a connection for each of its groups, and one may be refused or gone while the others stand. So what is missed is said of the
//! group; of the host only where it has no connection at all.

use std::collections::BTreeMap;
use std::time::Instant;

use farside_control::receiver::{ReceiverGroup, ReceiverSource};
use farside_control::source::Carrier;
use farside_control::{Code, Reason, Severity};
use farside_region::Name;

use super::{GroupView, millis};
use crate::door::Session;

/// When a host was heard last, and from where it is connected, while it is.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) heard: Instant,
    pub(crate) from: Option<String>,
    carrier: Option<Carrier>,
}

impl Seen {
    pub(crate) fn of(session: &Session) -> Self {
        Self { heard: session.heard(), from: Some(session.address()), carrier: Some(session.carrier()) }
    }

    /// The same of a connection that is over.
    pub(crate) fn gone(&self) -> Self {
        Self { heard: self.heard, from: None, carrier: None }
    }

    /// Whoever is connected comes first.
    pub(super) fn rank(&self) -> (bool, Instant) {
        (self.from.is_some(), self.heard)
    }
}

/// A group, and who is to publish it.
#[derive(Debug)]
pub(super) struct Spoken<'a> {
    pub(super) view: &'a GroupView,
    /// As it is shown.
    pub(super) group: ReceiverGroup,
    /// Its source, or who stands in for that; `None`: nobody is to.
    pub(super) publisher: Option<Name>,
}

impl Spoken<'_> {
    /// Whoever comes for it is turned away here: on that host there is nothing to see.
    fn is_closed(&self) -> bool {
        let closed = [Code::LedgerTorn, Code::StoreFailed].map(Code::word);
        self.group.reasons.iter().any(|reason| closed.contains(&reason.code.as_str()))
    }

    /// Who is to publish it, and has no connection for it.
    fn missed(&self) -> Option<&Name> {
        let publisher = self.publisher.as_ref().filter(|_| !self.is_closed())?;
        let is_here = self.view.hosts.get(publisher).is_some_and(|seen| seen.from.is_some());
        (!is_here).then_some(publisher)
    }

    /// Puts down who is connected for it. Of several that is who is to publish it.
    fn show_host(&mut self, now: Instant) {
        let hosts = &self.view.hosts;
        let publisher = self.publisher.as_ref().and_then(|name| hosts.get_key_value(name));
        let is_here = |(_, seen): &(&Name, &Seen)| seen.from.is_some();
        let newest = hosts.iter().max_by_key(|(_, seen)| seen.rank());
        if let Some((name, seen)) = publisher.filter(is_here).or_else(|| newest.filter(is_here)) {
            self.group.host = Some(name.to_string());
            self.group.connected_from.clone_from(&seen.from);
            self.group.carrier = seen.carrier;
        }
        let silent = if self.publisher.is_some() { publisher } else { newest };
        self.group.silent_ms = silent.map(|(_, seen)| millis(now.saturating_duration_since(seen.heard)));
    }
}

/// Every source that is paired, with its fingerprint, or has a group here.
pub(super) fn sources(paired: Vec<(Name, String)>, mut groups: Vec<Spoken<'_>>, now: Instant) -> Vec<ReceiverSource> {
    let mut hosts: BTreeMap<&Name, &Seen> = BTreeMap::new();
    for (host, seen) in groups.iter().map(|spoken| spoken.view).flat_map(|view| &view.hosts) {
        let newest = hosts.entry(host).or_insert(seen);
        if seen.rank() > newest.rank() {
            *newest = seen;
        }
    }
    let is_here = |host: &Name| hosts.get(host).is_some_and(|seen| seen.from.is_some());
    let mut sources: BTreeMap<Name, ReceiverSource> = BTreeMap::new();
    for (name, fingerprint) in paired {
        let source = ReceiverSource { name: name.to_string(), fingerprint: Some(fingerprint), ..ReceiverSource::default() };
        sources.insert(name, source);
    }
    for spoken in &mut groups {
        spoken.show_host(now);
        let of_group = missed_of_group(spoken, is_here);
        spoken.group.reasons.extend(of_group);
    }
    for (name, source) in &mut sources {
        source.reasons.extend(missed_of_host(name, &groups).filter(|_| !is_here(name)));
    }
    for spoken in groups {
        let name = &spoken.view.names.source;
        let new = || ReceiverSource { name: name.to_string(), ..ReceiverSource::default() };
        sources.entry(name.clone()).or_insert_with(new).groups.push(spoken.group);
    }
    for (name, source) in &mut sources {
        source.groups.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(seen) = hosts.get(name) {
            source.connected_from.clone_from(&seen.from);
            source.carrier = seen.carrier;
            source.silent_ms = Some(millis(now.saturating_duration_since(seen.heard)));
        }
    }
    sources.into_values().collect()
}

/// What is missed of a group alone: its host is there, or another one than its source is to publish it.
fn missed_of_group(spoken: &Spoken<'_>, is_here: impl Fn(&Name) -> bool) -> Option<Reason> {
    let missed = spoken.missed().filter(|_| !spoken.group.is_unused())?;
    let names = &spoken.view.names;
    let (message, what) = if *missed != names.source {
        let message = format!("{missed}, which stands in for {}, is not connected for {names}", names.source);
        (message, format!("see `farside status` on {missed}: what is written there is not replicated meanwhile"))
    } else if is_here(missed) {
        let message = format!("{missed} is connected, and not for {names}: nothing of that is published");
        let what = format!(
            "see `farside status` on {missed}: the group is refused or not served there; if its volumes were removed on purpose, nothing has to be done \
             (`farside explain not_connected`)"
        );
        (message, what)
    } else {
        return None;
    };
    Some(Reason::new(Severity::Warning, Code::NotConnected, message, what))
}

/// What is said of a paired host that has no connection at all.
fn missed_of_host(name: &Name, groups: &[Spoken<'_>]) -> Option<Reason> {
    let mut own = groups.iter().filter(|spoken| spoken.view.names.source == *name).peekable();
    let has_own = own.peek().is_some();
    if own.any(|spoken| spoken.missed() == Some(name)) {
        let what = "see `farside status` on that host";
        return Some(Reason::new(Severity::Warning, Code::NotConnected, format!("{name} is not connected"), what));
    }
    // What others publish, or nobody, is said of the group; so is what is closed.
    if has_own || groups.iter().any(|spoken| spoken.publisher.as_ref() == Some(name)) {
        return None;
    }
    let what = format!("`farside volume add` on it; if it is not to protect anything: `farside-receiver unpair {name}` here");
    Some(Reason::new(Severity::Info, Code::NotConnected, format!("{name} is paired, and protects nothing here"), what))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use farside_control::receiver::ReceiverVolume;
    use farside_store::GroupNames;

    use super::*;

    fn name(name: &str) -> Name {
        name.parse().expect("a name")
    }

    fn view(source: &str, group: &str, hosts: &[(&str, bool)]) -> GroupView {
        let mut view = GroupView::new(&GroupNames::new(name(source), name(group)));
        view.group.volumes = vec![ReceiverVolume { name: "data".into(), ..ReceiverVolume::default() }];
        let seen = |from: Option<String>| Seen { heard: view.made, carrier: from.as_ref().map(|_| Carrier::Udp), from };
        let hosts = hosts.iter().map(|(host, is_here)| (name(host), seen(is_here.then(|| format!("{host}:1")))));
        view.hosts = hosts.collect();
        view
    }

    fn shown(paired: &[&str], views: &[(GroupView, Option<&str>)]) -> Vec<ReceiverSource> {
        let now = Instant::now() + Duration::from_secs(7);
        let paired = paired.iter().map(|host| (name(host), format!("of {host}")));
        let spoken = views.iter().map(|(view, to)| Spoken { view, group: view.at(now), publisher: to.map(name) });
        sources(paired.collect(), spoken.collect(), now)
    }

    fn said(reasons: &[Reason]) -> Vec<(Severity, &str)> {
        reasons.iter().map(|reason| (reason.severity, reason.message.as_str())).collect()
    }

    /// One group is refused at the door, or gone, while the other goes on.
    #[test]
    fn a_group_without_a_connection_is_missed_though_its_host_is_there() {
        let files = view("web1", "files", &[("web1", false)]);
        let views = [(view("web1", "db", &[("web1", true)]), Some("web1")), (files, Some("web1"))];
        let web1 = shown(&["web1"], &views).remove(0);
        assert!(web1.reasons.is_empty() && web1.connected_from.is_some(), "{web1:?}");
        let [db, files] = &web1.groups[..] else { panic!("{web1:?}") };
        assert!(db.reasons.is_empty() && db.connected_from.as_deref() == Some("web1:1"), "{db:?}");
        let words = "web1 is connected, and not for web1/files: nothing of that is published";
        assert_eq!(said(&files.reasons), [(Severity::Warning, words)]);
        assert!(files.connected_from.is_none() && files.silent_ms.is_some_and(|ms| ms >= 7000), "{files:?}");

        // Neither was heard since this process began.
        let views = [(view("web1", "db", &[]), Some("web1")), (view("web1", "files", &[]), Some("web1"))];
        let web1 = shown(&["web1"], &views).remove(0);
        assert_eq!(said(&web1.reasons), [(Severity::Warning, "web1 is not connected")], "once, for all of it");
        assert!(web1.groups.iter().all(|group| group.reasons.is_empty()) && web1.silent_ms.is_none(), "{web1:?}");
        let web1 = shown(&[], &views).remove(0);
        assert!(web1.reasons.is_empty(), "it was sent away: {web1:?}");
    }

    #[test]
    fn nothing_is_missed_of_a_group_that_nobody_used_or_that_is_closed_here() {
        let mut greeted = view("web1", "new", &[]);
        greeted.group.volumes.clear();
        let mut torn = view("web1", "torn", &[]);
        torn.group.reasons.push(Reason::new(Severity::Error, Code::LedgerTorn, "torn", ""));
        let here = view("web1", "db", &[("web1", true)]);
        let views = [(greeted, Some("web1")), (torn.clone(), Some("web1")), (here, Some("web1"))];
        let web1 = shown(&["web1"], &views).remove(0);
        let reasons: Vec<_> = web1.groups.iter().flat_map(|group| &group.reasons).chain(&web1.reasons).collect();
        assert!(reasons.iter().all(|reason| reason.code == "ledger_torn"), "{reasons:?}");
        let web1 = shown(&["web1"], &[(torn, Some("web1"))]).remove(0);
        assert!(web1.reasons.is_empty(), "there is nothing to see on that host: {web1:?}");
    }

    /// After a failover: the source is gone, and another host publishes its group.
    #[test]
    fn a_host_that_stands_in_is_there_and_is_missed_in_place_of_the_source() {
        let of = |is_here| [(view("web1", "db", &[("web1", false), ("web2", is_here)]), Some("web2"))];
        let [web1, web2] = &shown(&["web1", "web2"], &of(true))[..] else { panic!("two") };
        assert!(web1.reasons.is_empty() && web1.connected_from.is_none(), "nobody waits for it: {web1:?}");
        assert!(web2.reasons.is_empty() && web2.connected_from.as_deref() == Some("web2:1"), "{web2:?}");
        let db = &web1.groups[0];
        assert_eq!((db.host.as_deref(), db.connected_from.as_deref()), (Some("web2"), Some("web2:1")));
        assert!(db.reasons.is_empty(), "{db:?}");

        let [web1, web2] = &shown(&["web1", "web2"], &of(false))[..] else { panic!("two") };
        assert!(web1.reasons.is_empty() && web2.reasons.is_empty(), "said once: {web1:?} {web2:?}");
        let words = "web2, which stands in for web1, is not connected for web1/db";
        assert_eq!(said(&web1.groups[0].reasons), [(Severity::Warning, words)]);

        // The one that is fenced has come back, and replicates nothing.
        let fenced = [(view("web1", "db", &[("web1", true)]), Some("web2"))];
        let web1 = shown(&["web1", "web2"], &fenced).remove(0);
        assert!(web1.groups[0].reasons.len() == 1 && web1.groups[0].host.as_deref() == Some("web1"), "{web1:?}");
        // Nobody stands in: the failover itself is said.
        let nobody = [(view("web1", "db", &[("web1", false)]), None)];
        let web1 = shown(&["web1"], &nobody).remove(0);
        assert!(web1.reasons.is_empty() && web1.groups[0].reasons.is_empty(), "{web1:?}");
        assert!(web1.groups[0].silent_ms.is_some());
    }

    #[test]
    fn a_host_that_is_paired_and_protects_nothing_is_no_outage() {
        let views = [(view("web1", "db", &[("web1", true)]), Some("web1"))];
        let spare = shown(&["spare", "web1"], &views).remove(0);
        assert_eq!(said(&spare.reasons), [(Severity::Info, "spare is paired, and protects nothing here")]);
    }
}
