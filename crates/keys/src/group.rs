//! A group's key and what is derived from it.

use std::fmt;
use std::sync::Arc;

use farside_region::{DigestKey, KeyId, Seal, SealMode, VolumeId};
use thiserror::Error;

use crate::secret::Secret;

/// The key of a consistency group: everything of its volumes is encrypted under keys that follow from it.
#[derive(Clone)]
pub struct GroupKey {
    key: Secret,
    id: KeyId,
}

/// Without the key.
impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GroupKey").field(&self.id).finish()
    }
}

/// The key is another than that of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the key is {given}, and the volume is encrypted with {wanted}")]
pub struct WrongKey {
    /// What was given.
    pub given: KeyId,
    /// What it takes.
    pub wanted: KeyId,
}

impl GroupKey {
    /// From its bytes.
    pub fn new(key: Secret) -> Self {
        let mut id = KeyId([0; 16]);
        id.0.copy_from_slice(&Secret::derive("farside 2026 group key id v1", &[key.bytes()]).bytes()[..16]);
        Self { key, id }
    }

    /// Drawn at random.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        Secret::random().map(Self::new)
    }

    /// What may be told of it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The keys of a volume.
    pub fn volume(&self, volume: VolumeId) -> VolumeKeys {
        let root = Secret::derive("farside 2026 volume key v1", &[self.key.bytes(), &volume.0]);
        let derive = |context| Secret::derive(context, &[root.bytes()]);
        VolumeKeys {
            digest: derive("farside 2026 volume digest key v1"),
            content: derive("farside 2026 volume content key v1"),
            salt: derive("farside 2026 volume salt key v1"),
            commitment: *derive("farside 2026 volume commitment v1").bytes(),
        }
    }

    /// What a claim says of a volume that is encrypted with this.
    pub fn seal(&self, mode: SealMode, volume: VolumeId) -> Seal {
        Seal { mode, key: self.id, commitment: self.volume(volume).commitment }
    }

    /// The key itself, for who is given it: a gateway that encrypts at rest hands it to the source, which seals with it.
    pub fn secret(&self) -> &Secret {
        &self.key
    }
}

/// The keys of one volume.
#[derive(Clone)]
pub struct VolumeKeys {
    digest: Secret,
    pub(crate) content: Secret,
    pub(crate) salt: Secret,
    commitment: [u8; 32],
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKeys")
    }
}

impl VolumeKeys {
    /// Keys the granule digests.
    pub fn digest_key(&self) -> &[u8; 32] {
        self.digest.bytes()
    }

    /// What binds a claim to these keys, and says nothing about them.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }
}

/// What somebody can do with a volume's content.
#[derive(Clone, Debug)]
pub enum ContentKeys {
    /// It is not encrypted.
    Clear(Secret),
    /// It is, and these are its keys.
    Sealed(Arc<VolumeKeys>),
    /// It is, and the keys are elsewhere: what is stored can be checked, and not read.
    Opaque,
}

impl ContentKeys {
    /// The keys of an encrypted volume, if this is its group's key.
    ///
    /// # Errors
    /// [`WrongKey`].
    pub fn unseal(key: &GroupKey, volume: VolumeId, seal: &Seal) -> Result<Self, WrongKey> {
        let keys = key.volume(volume);
        if key.id() != seal.key || keys.commitment() != &seal.commitment {
            return Err(WrongKey { given: key.id(), wanted: seal.key });
        }
        Ok(Self::Sealed(Arc::new(keys)))
    }

    /// What can be done with a volume that says this of itself, with the group's key, if that is here.
    ///
    /// # Errors
    /// [`WrongKey`]: of an encrypted volume, and another key.
    pub fn of(digest_key: &DigestKey, volume: VolumeId, key: Option<&GroupKey>) -> Result<Self, WrongKey> {
        match (digest_key, key) {
            (DigestKey::Sealed(seal), Some(key)) => Self::unseal(key, volume, seal),
            _ => Ok(digest_key.into()),
        }
    }

    /// What keys the granule digests; `None` where that is not known here.
    pub fn digest_key(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Clear(key) => Some(key.bytes()),
            Self::Sealed(keys) => Some(keys.digest_key()),
            Self::Opaque => None,
        }
    }

    /// Whether the content is encrypted.
    pub fn is_sealed(&self) -> bool {
        !matches!(self, Self::Clear(_))
    }
}

/// Not encrypted, with this digest key.
impl From<&[u8; 32]> for ContentKeys {
    fn from(digest_key: &[u8; 32]) -> Self {
        Self::Clear(Secret::new(digest_key))
    }
}

/// With a digest key that is told, or no key at all.
impl From<&DigestKey> for ContentKeys {
    fn from(digest_key: &DigestKey) -> Self {
        digest_key.clear().map_or(Self::Opaque, Self::from)
    }
}

impl From<&Self> for ContentKeys {
    fn from(keys: &Self) -> Self {
        keys.clone()
    }
}
