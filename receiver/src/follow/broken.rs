//! Followers of an earlier process that cannot be taken up: a file of theirs is damaged, or of a later version.
//!
//! Invariant: which points they hold is not known, so none that they may hold is given up; and no other follower takes the place of their files.

use std::sync::Mutex;

use farside_control::{Code, Reason, Severity};
use farside_region::Name;
use farside_store::GroupNames;

use super::lock;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Broken(Mutex<Vec<Lost>>);

/// One; `None`: that cannot be read, either.
#[derive(Debug)]
struct Lost {
    name: Option<Name>,
    group: Option<GroupNames>,
    words: String,
}

impl Broken {
    pub(super) fn add(&self, name: Option<&Name>, group: Option<GroupNames>, words: String) {
        tracing::error!(%words, "a follower cannot be taken up");
        lock(&self.0).push(Lost { name: name.cloned(), group, words });
    }

    pub(super) fn reasons(&self) -> Vec<Reason> {
        let what = "its target is left alone, and no point is given up that it may hold; mend that, or put the file back, and restart \
                    farside-receiver. Without it: move the file away, restart farside-receiver, and begin anew with `farside follower add --overwrite`";
        lock(&self.0).iter().map(|lost| Reason::new(Severity::Error, Code::FollowerFailed, &lost.words, what)).collect()
    }

    /// Whether all points of a group may be held by one of them.
    pub(crate) fn may_hold(&self, names: &GroupNames) -> bool {
        lock(&self.0).iter().any(|lost| lost.group.as_ref().is_none_or(|group| group == names))
    }

    /// What stands against another one of that name.
    pub(super) fn of(&self, name: &Name) -> Option<String> {
        lock(&self.0).iter().find(|lost| lost.name.as_ref() == Some(name)).map(|lost| lost.words.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::doubt_tests::{definition, name};
    use super::super::{Followers, kept};
    use super::*;
    use crate::state_dir::StateDir;

    #[test]
    fn what_one_may_hold_that_cannot_be_read_is_kept_and_its_name_is_taken() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state_dir = StateDir::open(directory.path()).expect("free");
        let load = || {
            let followers = Followers::default();
            followers.load(&state_dir);
            followers
        };
        kept::begin(&state_dir, &name("standby"), &definition("/dev/vg/standby")).expect("written");
        let its = definition("/dev/vg/standby").names();
        let another = GroupNames { source: name("host9"), group: name("other") };
        assert!(!load().broken.may_hold(&its));
        let newer = "{\"version\":9999}";
        std::fs::write(directory.path().join("followers/standby~holds.json"), newer).expect("written");
        let followers = load();
        assert!(followers.broken.may_hold(&its) && !followers.broken.may_hold(&another), "it is known of which group it is");
        std::fs::write(directory.path().join("followers/standby.json"), newer).expect("written");
        let followers = load();
        assert!(followers.broken.may_hold(&its) && followers.broken.may_hold(&another));
        assert!(followers.broken.of(&name("standby")).is_some() && followers.broken.of(&name("more")).is_none());
        assert!(followers.reasons()[0].what_to_do.contains("no point is given up"));
    }
}
