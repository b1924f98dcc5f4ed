//! What a host needs of a point that its disks are to be brought to: the volumes, and the keys of those that are encrypted.
//!
//! Invariant: nothing is pulled of a volume that this host encrypts, or is to encrypt, but with the key that it does that with; none is drawn for
//! it. † Whether a volume is encrypted is not the receiver's to say: by digests under a key of its own it would learn what the disks hold, and it
//! could have anything written to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farside_keys::{ContentKeys, GroupKey};
use farside_ledger::VolumeMeta;
use farside_region::{Name, Seal, SealMode, VolumeId};
use farside_wire::PullPoint;

use super::Failback;
use super::note::{Held, Note};
use super::pull::{PullError, Puller};
use crate::supervisor::Daemon;
use crate::{keys, locked};

/// What keeps the key is waited for so long: others wait for who waits.
const KEY_WAIT: Duration = Duration::from_secs(75);

/// Whether a volume's disk can be brought to its part of a point, as far as that is a matter of the point.
pub(super) fn fits(volume: &Name, point: &PullPoint) -> Result<(), String> {
    let is_there = point.members.iter().any(|member| member.meta.name == *volume);
    if is_there { Ok(()) } else { Err(format!("volume {volume} is not in point {}", point.position.slot)) }
}

/// A disk that is smaller than what its volume is by now, by whoever stands in. † A volume never shrinks again: it would be set back to an old point first,
/// or one of several be taken back without the others.
pub(super) fn too_small<'d>(disks: impl IntoIterator<Item = (&'d Name, u64)>, point: &PullPoint) -> Option<String> {
    disks.into_iter().find_map(|(name, has)| {
        let member = point.members.iter().find(|member| member.meta.name == *name)?;
        let needs = member.volume_bytes.max(member.meta.geometry.volume_bytes());
        (has < needs).then(|| format!("the disk of volume {name} has {has} bytes, and the volume has {needs} by now, as large as the disk of whoever stands in"))
    })
}

/// Disks that do not grow when they are written to, with their sizes; what cannot be looked at is said when it is opened.
pub(super) fn fixed_disks(held: &[Held]) -> impl Iterator<Item = (&Name, u64)> {
    held.iter().filter_map(|held| Some((&held.name, device_bytes(&held.backing)?)))
}

fn device_bytes(path: &Path) -> Option<u64> {
    use std::io::Seek as _;
    use std::os::unix::fs::FileTypeExt as _;
    let is_device = std::fs::metadata(path).ok()?.file_type().is_block_device();
    if !is_device {
        return None;
    }
    std::fs::File::open(path).ok()?.seek(std::io::SeekFrom::End(0)).ok()
}

/// What a person is told of it.
pub(super) const LARGER_DISK: &str =
    "make the disk larger (lvextend), or take a larger one, restore the newest point to it, and fail back with that";

pub(super) fn names_of(held: &[Held]) -> Vec<Name> {
    held.iter().map(|held| held.name.clone()).collect()
}

/// As the ledger has them.
pub(super) fn ids_of(source: &Name, note: &Note) -> Vec<VolumeId> {
    note.held().iter().map(|held| farside_ledger::volume_id(source, &note.group, &held.name)).collect()
}

/// Holds what a receiver says of a volume against what this host knows of it.
fn refuse_another_seal(told: &VolumeMeta, here: Option<Option<Seal>>, is_to_be: bool) -> Result<(), String> {
    let told_seal = told.digest_key.seal().copied();
    let is_at_rest = told_seal.is_some_and(|seal| seal.mode == SealMode::AtRest);
    // A host that is built anew has had no word of the gateway's key yet. It trusts the gateway with what is in clear, so with that, too.
    let is_new_there = is_at_rest && here == Some(None) && !is_to_be;
    let differs =
        here.is_some_and(|here| here != told_seal && !is_new_there) || (is_to_be && (told_seal.is_none() || is_at_rest));
    if !differs {
        return Ok(());
    }
    Err(format!(
        "the gateway says that volume {} is {}, and this host {}: nothing is taken of it (farside explain key_differs)",
        told.name,
        told_seal.map_or("not encrypted".to_owned(), |seal| format!("encrypted with the key {}", seal.key)),
        here.flatten().map_or_else(
            || if is_to_be { "is to encrypt it".to_owned() } else { "does not encrypt it".to_owned() },
            |seal| format!("encrypts it with the key {}", seal.key)
        )
    ))
}

impl Daemon {
    /// The keys with which disks are compared with a point, and brought to it.
    ///
    /// # Errors
    /// Which volume is not in it, or whose key is not here.
    pub(super) async fn keys_to(
        &self,
        failback: &Failback,
        puller: &Puller,
        point: &PullPoint,
        volumes: &[Name],
    ) -> Result<BTreeMap<Name, ContentKeys>, PullError> {
        let (group, state_path) = (locked(&failback.note).group.clone(), self.state_path());
        let is_to_be = self.group_config(&group).encryption.is_some();
        let mut all = BTreeMap::new();
        for volume in volumes {
            fits(volume, point).map_err(PullError::NotThere)?;
            let member = point.members.iter().find(|member| member.meta.name == *volume).expect("it fits");
            let meta = &member.meta;
            let here = keys::seal_here(&state_path, &group, volume);
            let here =
                here.map_err(|why| PullError::NoKey(format!("whether volume {volume} is encrypted cannot be told: {why:#}")))?;
            refuse_another_seal(meta, here, is_to_be).map_err(PullError::NoKey)?;
            let key = match meta.digest_key.seal() {
                None => None,
                Some(seal) if seal.mode == SealMode::AtRest => Some(key_at_rest(failback, puller, seal).await?),
                Some(seal) => Some(self.key_of(failback, &group, &state_path, seal).await.map_err(|why| {
                    PullError::NoKey(format!(
                        "volume {volume} is encrypted, and its key cannot be had here: {why} (farside explain key_missing)"
                    ))
                })?),
            };
            let keys = ContentKeys::of(&meta.digest_key, meta.id, key.as_ref());
            let keys =
                keys.map_err(|wrong| PullError::NoKey(format!("volume {volume}: {wrong} (farside explain key_differs)")))?;
            all.insert(volume.clone(), keys);
        }
        Ok(all)
    }

    /// The key of the group, which is kept as long as the failback. What takes too long goes on, and the next who asks has it.
    async fn key_of(&self, failback: &Failback, group: &Name, state_path: &Path, seal: &Seal) -> Result<GroupKey, String> {
        let encryption = self.group_config(group).encryption;
        let (group, state_path, wanted) = (group.clone(), state_path.to_owned(), seal.key);
        let had = async {
            let mut known = Arc::clone(&failback.key).lock_owned().await;
            if let Some(key) = known.as_ref().filter(|key| key.id() == wanted) {
                return Ok(key.clone());
            }
            let keeper = encryption.ok_or("its group has no `encryption` and `key` in the configuration")?.keeper;
            let unwrap = move || {
                let key = keys::known(&state_path, &group, &keeper, wanted).map_err(|why| format!("{why:#}"))?;
                Ok(known.insert(key).clone())
            };
            tokio::task::spawn_blocking(unwrap).await.map_err(|error| error.to_string())?
        };
        let late = || Err("what keeps it has not answered yet".to_owned());
        tokio::time::timeout(KEY_WAIT, had).await.unwrap_or_else(|_| late())
    }
}

/// The key that the gateway gives, which is kept as long as the failback, in memory.
async fn key_at_rest(failback: &Failback, puller: &Puller, seal: &Seal) -> Result<GroupKey, PullError> {
    let mut known = failback.key.lock().await;
    if let Some(key) = known.as_ref().filter(|key| key.id() == seal.key) {
        return Ok(key.clone());
    }
    Ok(known.insert(puller.key().await?).clone())
}

#[cfg(test)]
mod tests {
    use farside_keys::Secret;
    use farside_ledger::EpochInfo;
    use farside_region::{BootId, Generation, Geometry, LedgerPosition, RecordDigest, SealMode, Slot, VolumeId};
    use farside_wire::{PullMember, RequestId};

    use super::*;

    #[test]
    fn what_is_encrypted_here_is_not_clear_because_a_receiver_says_so() {
        let id = VolumeId([3; 16]);
        let seal = |byte: u8| GroupKey::new(Secret::new(&[byte; 32])).seal(SealMode::EndToEnd, id);
        let meta = |digest_key| VolumeMeta {
            id,
            name: "data".parse().expect("a name"),
            geometry: Geometry::new(64 << 20).expect("a geometry"),
            digest_key,
            generation: Generation(1),
        };
        let (clear, sealed) = (meta([7; 32].into()), meta(farside_region::DigestKey::Sealed(seal(1))));
        let ours = Some(Some(seal(1)));
        let at_rest = Seal { mode: SealMode::AtRest, ..seal(2) };
        let kept = meta(farside_region::DigestKey::Sealed(at_rest));
        for here in [Some(Some(at_rest)), Some(None), None] {
            assert!(refuse_another_seal(&kept, here, false).is_ok(), "{here:?}");
        }
        assert!(refuse_another_seal(&sealed, ours, true).is_ok() && refuse_another_seal(&clear, Some(None), false).is_ok());
        // A host that is built anew has no files of it yet.
        assert!(refuse_another_seal(&sealed, None, true).is_ok() && refuse_another_seal(&clear, None, false).is_ok());
        for (told, here, is_to_be) in [
            (&clear, ours, true),
            (&clear, ours, false),
            (&clear, None, true),
            (&sealed, Some(None), false),
            (&sealed, Some(Some(seal(2))), true),
            (&clear, Some(Some(at_rest)), false),
            (&kept, Some(Some(seal(1))), true),
            (&kept, Some(None), true),
            (&kept, None, true),
        ] {
            let why = refuse_another_seal(told, here, is_to_be).expect_err("it differs");
            assert!(why.contains("key_differs") && why.contains("data"), "{why}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_clear() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (group, volume): (Name, Name) = ("db".parse().expect("a name"), "data".parse().expect("a name"));
        let here = || keys::seal_here(dir.path(), &group, &volume);
        assert_eq!(here().expect("nothing is there"), None);
        let folder = crate::state_dir::volumes_path(dir.path()).join("db/data");
        std::fs::create_dir_all(&folder).expect("mkdir");
        let id = VolumeId([3; 16]);
        let seal = GroupKey::new(Secret::new(&[1; 32])).seal(SealMode::EndToEnd, id);
        for (digest_key, wanted) in [(farside_region::DigestKey::Sealed(seal), Some(seal)), ([7; 32].into(), None)] {
            let (name, geometry) = (volume.clone(), Geometry::new(64 << 20).expect("a geometry"));
            let meta = VolumeMeta { id, name, geometry, digest_key, generation: Generation(1) };
            std::fs::write(folder.join("meta.json"), serde_json::to_vec(&meta).expect("plain data")).expect("written");
            assert_eq!(here().expect("it is whole"), Some(wanted));
        }
        std::fs::write(folder.join("meta.json"), "{").expect("written");
        assert!(here().expect_err("it is not whole").to_string().contains("meta.json"));
    }

    /// Its point from before the failover would have fitted, and the disks been set back to it for nothing.
    #[test]
    fn a_disk_that_is_smaller_than_its_volume_by_now_is_named() {
        let id = VolumeId([3; 16]);
        let (name, other): (Name, Name) = ("data".parse().expect("a name"), "log".parse().expect("a name"));
        let point = |point_bytes: u64, claimed_bytes: u64| PullPoint {
            id: RequestId(1),
            position: LedgerPosition { slot: Slot(9), digest: RecordDigest([9; 32]) },
            epoch: EpochInfo { boot: BootId([0; 16]), mono_before_ns: 0, mono_after_ns: 0, wall_ms: 0 },
            generation: Generation(2),
            promotion: None,
            is_since: true,
            passed_over: None,
            other: None,
            members: vec![PullMember {
                meta: VolumeMeta {
                    id,
                    name: name.clone(),
                    geometry: Geometry::new(claimed_bytes).expect("a geometry"),
                    digest_key: [7; 32].into(),
                    generation: Generation(2),
                },
                volume_bytes: point_bytes,
                touched: None,
            }],
        };
        let (small, large) = (64 << 20, 68 << 20);
        let is_named = |has: u64, point: &PullPoint| too_small([(&other, 0), (&name, has)], point).is_some();
        assert!(!is_named(small, &point(small, small)) && !is_named(large, &point(small, large)));
        assert!(is_named(small, &point(large, large)));
        assert!(is_named(small, &point(small, large)), "nothing of it was published yet, and it is claimed");
        let words = too_small([(&name, small)], &point(large, large)).expect("named");
        assert!(words.contains("volume data has 67108864 bytes") && words.contains("71303168"), "{words}");
    }
}
