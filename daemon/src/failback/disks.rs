//! The disks of a failback while it holds them: open, locked, and known.
//!
//! Invariant: what is written to, or said to be a point, is the very disk that was taken, and was written to by nobody else since that was said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use farside_blockio::{Identity, Known as Recognised};
use farside_region::{LedgerPosition, Name, RegionSet};
use farside_replication::failback;
use farside_store::{FileTarget, FollowTarget as _, RestoreTarget as _, Seen};
use tracing::warn;

use super::note::Held;
use crate::locked;
use crate::supervisor::Daemon;

#[derive(Debug, Default)]
pub(super) struct Disks {
    /// Open, and locked.
    pub(super) open: BTreeMap<Name, Arc<FileTarget>>,
    /// What they are, in this process.
    pub(super) known: Option<Known>,
    /// Those that no boot shows.
    hidden: BTreeSet<Name>,
}

/// What is known of them in this process.
pub(super) type Known = failback::Known<Arc<Mutex<RegionSet>>, Seen>;

impl Disks {
    /// Nobody holds them any more.
    pub(super) fn let_go(&mut self) {
        *self = Self::default();
    }

    /// Whether all of them are open, and hidden.
    pub(super) fn have_all(&self, held: &[Held]) -> bool {
        held.iter().all(|held| self.open.contains_key(&held.name) && self.hidden.contains(&held.name))
    }

    /// Which those are that are open, as far as that can be told.
    pub(super) fn identities(&self) -> BTreeMap<Name, Identity> {
        self.open.iter().filter_map(|(name, target)| Some((name.clone(), target.identity().ok()?))).collect()
    }

    /// Opens and locks what is not; what is not wanted, or is not at its place any more, is closed. Each is hidden when it is open.
    ///
    /// † Not before: which disk has the name by now is not known, and to hide another one in its place would show the one that was taken.
    ///
    /// # Errors
    /// When one cannot be opened, or may be another disk than the one that was taken: it is not open then. When one cannot be hidden: it is, and locked,
    /// and nothing is to be written to it before another call has hidden it.
    pub(super) async fn open<F>(&mut self, group: &Name, wanted: &[Held], hide: impl Fn(Name) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        self.open.retain(|name, target| wanted.iter().any(|held| held.name == *name) && target.is_in_place());
        let before: BTreeSet<Name> = self.open.keys().cloned().collect();
        let mut opened = self.open_all(group, wanted).await;
        self.hidden.retain(|name| before.contains(name) && self.open.contains_key(name));
        let shown: Vec<Name> = self.open.keys().filter(|name| !self.hidden.contains(*name)).cloned().collect();
        for name in shown {
            match hide(name.clone()).await {
                Ok(()) => drop(self.hidden.insert(name)),
                Err(error) => opened = opened.and(Err(error)),
            }
        }
        opened
    }

    /// One that cannot be opened keeps no other one from being held.
    async fn open_all(&mut self, group: &Name, wanted: &[Held]) -> anyhow::Result<()> {
        let mut opened = Ok(());
        for held in wanted {
            if !self.open.contains_key(&held.name) {
                opened = opened.and(self.open_one(group, held).await);
            }
        }
        opened
    }

    async fn open_one(&mut self, group: &Name, held: &Held) -> anyhow::Result<()> {
        let (path, name) = (held.backing.clone(), held.name.to_string());
        let opened = tokio::task::spawn_blocking(move || {
            let target = FileTarget::open_to_follow(&path, &name, 0, false, true)?;
            anyhow::Ok((target.identity()?, target))
        });
        let (identity, target) = opened.await??;
        match held.identity.as_ref().map(|kept| kept.compare(&identity)) {
            None | Some(Recognised::Same) => {}
            Some(Recognised::Another) => {
                anyhow::bail!(
                    "{} is another disk than the one of volume {} that was taken: bring that one back, or, if this one is to be \
                         overwritten: farside failback {group} --accept-disks",
                    held.backing.display(),
                    held.name
                );
            }
            // † Names are given anew at each boot.
            Some(Recognised::Unknown) => {
                anyhow::bail!(
                    "nobody can tell whether {} is the disk of volume {} that was taken: it has no serial number, and this host was booted \
                         since. Look at it, and if it is: farside failback {group} --accept-disks",
                    held.backing.display(),
                    held.name
                );
            }
        }
        let target = tokio::task::spawn_blocking(move || target.read_anew().map(|()| target)).await??;
        self.open.insert(held.name.clone(), Arc::new(target));
        Ok(())
    }

    /// Believes what is known of the disks, or else what was noted, only as far as nobody can have written to them since.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(super) async fn believe(&mut self, noted: Option<(LedgerPosition, &[Held])>) -> anyhow::Result<()> {
        let seen = self.sync_and_see().await?;
        if let Some(known) = self.known.take() {
            self.known = known.still(&seen);
            if self.known.is_none() {
                warn!("somebody wrote to a disk that is held, or it cannot be told: all is compared");
            }
            return Ok(());
        }
        let Some((at, held)) = noted else { return Ok(()) };
        self.known = Known::noted(at, |name| as_left(held, name), seen);
        Ok(())
    }

    /// They are that point, as of this look at them; `None`: nothing is known of them.
    pub(super) fn are(&mut self, at: Option<LedgerPosition>, seen: &BTreeMap<Name, Option<Seen>>) {
        self.known = at.map(|at| Known::all(at, seen.clone()));
    }

    /// What tells whether somebody writes to them from now on.
    ///
    /// # Errors
    /// What the disks say. What was written and could not be made durable is not in the cache any more then.
    pub(super) async fn sync_and_see(&self) -> anyhow::Result<BTreeMap<Name, Option<Seen>>> {
        let open = self.open.clone();
        let look = tokio::task::spawn_blocking(move || {
            let look = |(name, target): (Name, Arc<FileTarget>)| {
                if let Err(error) = target.sync() {
                    // † It would be read back as if it were on the disk.
                    let _ = target.read_anew();
                    return Err(error);
                }
                Ok((name, target.seen()?))
            };
            open.into_iter().map(look).collect::<std::io::Result<BTreeMap<_, _>>>()
        });
        Ok(look.await??)
    }

    /// Whether there is a region that is not the point which they are said to be.
    pub(super) fn lacks_something(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.lacks.values().any(|lacks| !locked(lacks).is_empty()))
    }
}

impl Daemon {
    /// Opens the disks of a failback; see [`Disks::open`]. Devices of inserted volumes are on their own disks then, which have no other way, and hidden
    /// at a boot.
    pub(super) async fn open_disks(&self, disks: &mut Disks, group: &Name, held: &[Held]) -> anyhow::Result<()> {
        let mut volumes = self.volumes_of(group);
        volumes.retain(|volume| volume.insert && held.iter().any(|held| held.name == volume.name));
        let (mut left, mut held) = (Ok(()), held.to_vec());
        for volume in volumes.iter().filter(|volume| !disks.open.contains_key(&volume.name)) {
            // One that comes late keeps no other one from being held.
            if let Err(error) = self.leave_one_way(volume).await {
                held.retain(|held| held.name != volume.name);
                left = left.and(Err(error));
            }
        }
        let hide = async |name: Name| match volumes.iter().find(|volume| volume.name == name) {
            Some(volume) => self.hide_device(volume).await,
            None => Ok(()), // it has been hidden since it was served first
        };
        disks.open(group, &held, hide).await.and(left)
    }
}

/// How a disk was left by a process before this one. † Nobody had it locked since: where the kernel does not count, whoever wrote left no trace.
fn as_left(held: &[Held], name: &Name) -> Option<Seen> {
    held.iter().find(|held| held.name == *name)?.seen.clone().filter(Seen::tells_of_writes)
}

/// Whether what is at a disk's place now is the one that was taken, beyond doubt.
pub(super) fn is_same(held: &Held) -> bool {
    let opened = FileTarget::open_to_follow(&held.backing, held.name.as_str(), 0, false, true);
    let found = opened.ok().and_then(|target| target.identity().ok());
    found.zip(held.identity.as_ref()).is_some_and(|(found, kept)| kept.compare(&found) == Recognised::Same)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use farside_region::{RecordDigest, Slot};

    use super::*;

    fn held(path: &std::path::Path, identity: Option<Identity>) -> Held {
        Held::of("data", path, identity)
    }

    async fn hidden(_: Name) -> anyhow::Result<()> {
        Ok(())
    }

    /// A device that had got the name of the one that was taken was hidden in its place, before anybody looked which it was: at the next boot the one
    /// with a part of a point was shown.
    #[tokio::test]
    async fn what_came_in_place_of_a_disk_is_not_hidden_and_what_cannot_be_hidden_is_locked_all_the_same() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (path, aside) = (dir.path().join("disk"), dir.path().join("aside"));
        let group: Name = "db".parse().expect("a name");
        std::fs::write(&path, vec![7; 1 << 20]).expect("written");
        let asked = std::cell::RefCell::new(Vec::new());
        let hide = async |name: Name| {
            asked.borrow_mut().push(name);
            anyhow::ensure!(asked.borrow().len() > 1, "no room for a rule");
            Ok(())
        };
        let mut disks = Disks::default();
        let refused = disks.open(&group, &[held(&path, None)], hide).await.expect_err("it cannot be hidden").to_string();
        assert!(refused.contains("no room") && disks.open.len() == 1, "{refused}");
        assert!(!disks.have_all(&[held(&path, None)]), "nothing is done with it");
        for _ in 0..2 {
            disks.open(&group, &[held(&path, None)], hide).await.expect("opened");
            assert_eq!((disks.have_all(&[held(&path, None)]), asked.borrow().len()), (true, 2), "hidden once");
        }
        let identity = disks.identities().into_values().next();
        std::fs::copy(&path, &aside).expect("copied");
        std::fs::rename(&aside, &path).expect("put in its place");
        disks.open(&group, &[held(&path, identity)], hide).await.expect_err("it is another file");
        assert_eq!(asked.borrow().len(), 2, "it is hidden");
    }

    /// Whatever came in place of a disk is neither written to nor taken for it; what somebody wrote to is no point.
    #[tokio::test]
    async fn a_disk_that_was_replaced_or_written_to_is_not_believed() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (path, aside) = (dir.path().join("disk"), dir.path().join("aside"));
        let group: Name = "db".parse().expect("a name");
        std::fs::write(&path, vec![7; 1 << 20]).expect("written");
        let mut disks = Disks::default();
        disks.open(&group, &[held(&path, None)], hidden).await.expect("opened");
        let identity = disks.identities().into_values().next();
        assert!(identity.is_some(), "it is kept from here on");
        let mut one = held(&path, identity);
        disks.open(&group, &[one.clone()], hidden).await.expect("open");
        let at = LedgerPosition { slot: Slot(7), digest: RecordDigest([1; 32]) };
        one.seen = disks.sync_and_see().await.expect("seen").into_values().next().expect("one");
        disks.believe(Some((at, &[one.clone()]))).await.expect("looked at");
        assert_eq!(disks.known.as_ref().map(|known| known.at), Some(at));

        let stranger = std::fs::File::options().write(true).open(&path).expect("open");
        stranger.write_all_at(b"a stranger", 12_345).expect("written");
        disks.believe(Some((at, &[one.clone()]))).await.expect("looked at");
        assert!(disks.known.is_none(), "somebody wrote to it");
        disks.believe(Some((at, &[one.clone()]))).await.expect("looked at");
        assert!(disks.known.is_none(), "nor is what was noted believed");

        // Nor is anything believed of a device on which nothing is counted.
        one.seen = Some(Seen { since: "this boot".to_owned(), marks: "16 0".to_owned() });
        assert_eq!(as_left(&[one.clone()], &one.name), one.seen);
        one.seen = Some(Seen { since: "this boot".to_owned(), marks: String::new() });
        assert_eq!(as_left(&[one.clone()], &one.name), None);

        // A copy of it, of the same content.
        std::fs::copy(&path, &aside).expect("copied");
        std::fs::rename(&aside, &path).expect("put in its place");
        let refused = disks.open(&group, &[one.clone()], hidden).await.expect_err("it is another file").to_string();
        assert!(refused.contains("--accept-disks"), "{refused}");
        assert!(disks.open.is_empty(), "the one that has no name any more is let go");
        one.identity = None;
        disks.open(&group, &[one], hidden).await.expect("accepted");
    }
}
