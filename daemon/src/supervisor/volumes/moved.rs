//! Volumes that were moved to another group in the configuration.
//!
//! † Under the other group a volume has another identity and another folder, and a device outlives the daemon that made it: the one of before is known by
//! what stands in the folder of before. Nobody would serve it any more, with whoever uses it, and it has the name that the new one is to have.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use farside_region::{Name, VolumeId};
use tracing::info;

use super::names_of;
use crate::config::VolumeConfig;
use crate::strangers::left_in;
use crate::supervisor::Daemon;
use crate::tap;

/// A folder of a volume of the same name in another group.
#[derive(Clone, Debug)]
struct Before {
    group: Name,
    dir: PathBuf,
    id: VolumeId,
}

/// Why it is not served where it is now. It is tried again: whoever uses the device may go.
#[derive(Debug)]
struct Moved {
    from: Name,
    to: Name,
    /// Its device is under the one of its disk, where it stays whoever uses that.
    is_inserted: bool,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, is_inserted } = self;
        write!(
            f,
            "it was in group {from}, and its device of then stays, whose users wait: put `group = \"{from}\"` back into its file and restart farsided"
        )?;
        match is_inserted {
            true => write!(f, "; to move it, `farside volume remove` it there, and add it to group {to}"),
            false => write!(f, "; or stop what uses the device, and it is served in group {to} by itself"),
        }
    }
}

impl Daemon {
    /// Ends the device that a volume left in another group, unless it has one where it is now. `dir`: its folder.
    ///
    /// # Errors
    /// When the device stays, as while somebody uses it.
    pub(super) async fn end_where_it_was(
        &self,
        dir: &Path,
        group: &Name,
        config: &VolumeConfig,
        id: VolumeId,
    ) -> anyhow::Result<()> {
        let name = &config.name;
        let others = left_in(&self.state.volumes(), &[dir.to_owned()]).into_iter().filter_map(|dir| {
            let (group, _) = names_of(&dir).filter(|(_, of)| of == name)?;
            Some(Before { group, id: self.id_in(&dir)?, dir })
        });
        let others: Vec<Before> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        let (now, group, name) = (dir.to_owned(), group.clone(), name.clone());
        let is_inserted = config.insert;
        let runtime_dir = self.around.runtime_dir.clone();
        let end = move || {
            if tap::may_have_device(&now, id) {
                return Ok(());
            }
            end_all(
                (&group, is_inserted),
                &others,
                |before| tap::may_have_device(&before.dir, before.id),
                |before| tap::end(&before.dir, before.id, &name, &runtime_dir),
            )
        };
        // By helpers, of which each has its time; a device whose server is gone may not answer.
        tokio::task::spawn_blocking(end).await?
    }
}

fn end_all(
    (to, is_inserted): (&Name, bool),
    others: &[Before],
    has_left: impl Fn(&Before) -> bool,
    end: impl Fn(&Before) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for before in others.iter().filter(|before| has_left(before)) {
        end(before).with_context(|| Moved { from: before.group.clone(), to: to.clone(), is_inserted })?;
        info!(dir = %before.dir.display(), "its volume is in group {to} now, and has no device of before any more");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_a_volume_left_in_other_groups_is_ended_or_says_where_it_was() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let before = |group: &str, id| Before {
            group: name(group),
            dir: Path::new("volumes").join(group).join("data"),
            id: VolumeId([id; 16]),
        };
        let others = [before("a", 1), before("b", 2), before("c", 3)];
        let ended = RefCell::new(Vec::new());
        let end = |before: &Before| {
            ended.borrow_mut().push(before.group.to_string());
            anyhow::ensure!(before.id != VolumeId([3; 16]), "something is mounted from /dev/farside/data");
            Ok(())
        };
        end_all((&name("d"), false), &others, |before| before.id == VolumeId([2; 16]), end).expect("nobody uses it");
        assert_eq!(ended.take(), ["b"], "there is nothing of the others");
        let refused =
            end_all((&name("d"), false), &others, |before| before.id != VolumeId([2; 16]), end).expect_err("it is used");
        assert_eq!(ended.take(), ["a", "c"]);
        let refused = format!("{refused:#}");
        for words in
            ["it was in group c", "put `group = \"c\"` back", "served in group d", "something is mounted from /dev/farside/data"]
        {
            assert!(refused.contains(words), "{refused}");
        }
    }
}
