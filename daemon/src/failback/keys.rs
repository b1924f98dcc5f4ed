//! What a host needs of a point that its disks are to be brought to: the volumes, and the keys of those that are encrypted.
//!
//! Invariant: nothing is pulled of an encrypted volume but with the key that this host encrypts it with itself; none is drawn for that.

use std::collections::BTreeMap;

use farside_keys::ContentKeys;
use farside_region::Name;
use farside_wire::PullPoint;

use super::Failback;
use super::note::Held;
use crate::supervisor::Daemon;
use crate::{keys, locked};

/// Whether a volume's disk can be brought to its part of a point, as far as that is a matter of the point.
pub(super) fn fits(volume: &Name, point: &PullPoint) -> Result<(), String> {
    let is_there = point.members.iter().any(|member| member.meta.name == *volume);
    if is_there { Ok(()) } else { Err(format!("volume {volume} is not in point {}", point.position.slot)) }
}

pub(super) fn names_of(held: &[Held]) -> Vec<Name> {
    held.iter().map(|held| held.name.clone()).collect()
}

impl Daemon {
    /// The keys with which disks are compared with a point, and brought to it.
    ///
    /// # Errors
    /// Which volume is not in it, or whose key is not here.
    pub(super) async fn keys_to(
        &self,
        failback: &Failback,
        point: &PullPoint,
        volumes: &[Name],
    ) -> Result<BTreeMap<Name, ContentKeys>, String> {
        let mut all = BTreeMap::new();
        for volume in volumes {
            fits(volume, point)?;
            let member = point.members.iter().find(|member| member.meta.name == *volume).expect("it fits");
            let meta = &member.meta;
            let key = match meta.digest_key.seal() {
                None => None,
                Some(_) => Some(self.key_of(failback).await.map_err(|why| {
                    format!("volume {volume} is encrypted, and its key cannot be had here: {why} (farside explain key_missing)")
                })?),
            };
            let keys = ContentKeys::of(&meta.digest_key, meta.id, key.as_ref());
            all.insert(volume.clone(), keys.map_err(|wrong| format!("volume {volume}: {wrong} (farside explain key_differs)"))?);
        }
        Ok(all)
    }

    /// The key of the group, which is kept as long as the failback.
    async fn key_of(&self, failback: &Failback) -> Result<farside_keys::GroupKey, String> {
        let mut known = failback.key.lock().await;
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let group = locked(&failback.note).group.clone();
        let encryption = self.group_config(&group).encryption;
        let keeper = encryption.ok_or("its group has no `encryption` and `key` in the configuration")?.keeper;
        let state_path = self.state_path();
        let unwrap = move || keys::known(&state_path, &group, &keeper).map_err(|why| format!("{why:#}"));
        let key = tokio::task::spawn_blocking(unwrap).await.map_err(|error| error.to_string())??;
        Ok(known.insert(key).clone())
    }
}
