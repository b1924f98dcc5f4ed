//! How groups and volumes get their identities: from their names, so that a reinstalled host finds its old ledger.
//!
//! Names cannot contain a zero byte ([`Name`]), so the joined text is unambiguous.

use farside_region::{GroupId, Name, VolumeId};

/// The identity of a group of a source.
pub fn group_id(source: &Name, group: &Name) -> GroupId {
    GroupId(derive("farside group v1", &[source, group]))
}

/// The identity of a volume in a group of a source.
pub fn volume_id(source: &Name, group: &Name, volume: &Name) -> VolumeId {
    VolumeId(derive("farside volume v1", &[source, group, volume]))
}

fn derive(domain: &str, names: &[&Name]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain.as_bytes());
    for name in names {
        hasher.update(&[0]);
        hasher.update(name.as_str().as_bytes());
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}
