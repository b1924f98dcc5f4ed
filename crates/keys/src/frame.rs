//! The encryption of one frame's payload: AES-256-GCM under a key of the frame's own.
//!
//! ```text
//! stored = salt (24) · ciphertext · tag (16)
//! ```
//!
//! The key is derived from the volume's content key and the salt, and used once: the nonce is zeroes. So everything rests on the
//! salt being another for every frame that differs; [`Sealer`] says how it comes about.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use farside_region::GranuleDigest;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::group::VolumeKeys;
use crate::secret::Secret;

/// What encryption adds to a payload.
pub const FRAME_OVERHEAD_BYTES: usize = SALT_BYTES + TAG_BYTES;
/// What of a frame's head is bound to its payload: all before the checksums.
pub const FRAME_HEAD_BYTES: usize = 24;
/// The first of it: room for these comes before what is encrypted.
pub const FRAME_SALT_BYTES: usize = SALT_BYTES;
/// Bytes of a [`stored_digest`].
pub const STORED_DIGEST_BYTES: usize = 16;

const SALT_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// It was not encrypted with this key, or was changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the payload does not decrypt")]
pub struct Unopened;

/// Where salts come from: 32 random bytes drawn when it was made, and a count.
///
/// A salt is a keyed hash over both, the frame's head, the digests of its granules and a checksum of what is encrypted. So should the
/// randomness ever fail (a virtual machine that was copied while it ran), two frames have the same salt only if they begin at the
/// same granule and hold the same content: then nothing is revealed that the granule digests do not say.
pub struct Sealer {
    seed: Secret,
    count: u64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Sealer {
    /// From bytes that nobody else draws: random ones.
    pub fn new(seed: Secret) -> Self {
        Self { seed, count: 0 }
    }

    fn salt(
        &mut self,
        keys: &VolumeKeys,
        head: &[u8; FRAME_HEAD_BYTES],
        digests: &[GranuleDigest],
        plain: &[u8],
    ) -> [u8; SALT_BYTES] {
        self.count = self.count.checked_add(1).expect("a 64-bit counter is never exhausted");
        let mut hasher = blake3::Hasher::new_keyed(keys.salt.bytes());
        hasher.update(self.seed.bytes());
        hasher.update(&self.count.to_le_bytes());
        hasher.update(head);
        digests.iter().for_each(|digest| {
            hasher.update(&digest.0);
        });
        // Content has one digest and may be compressed in several ways.
        hasher.update(&crc32c::crc32c(plain).to_le_bytes());
        let mut salt = [0; SALT_BYTES];
        hasher.finalize_xof().fill(&mut salt);
        salt
    }
}

impl VolumeKeys {
    /// Encrypts a payload, which is from `at` on room for a salt ([`FRAME_SALT_BYTES`]) and then what is to be encrypted; `head`
    /// says already how long it will be.
    ///
    /// # Panics
    /// When there is no room for the salt, or the payload is longer than AES-GCM allows, 64 GiB.
    pub fn seal(
        &self,
        sealer: &mut Sealer,
        head: &[u8; FRAME_HEAD_BYTES],
        digests: &[GranuleDigest],
        payload: &mut Vec<u8>,
        at: usize,
    ) {
        let (room, plain) = payload[at..].split_at_mut(SALT_BYTES);
        let salt = sealer.salt(self, head, digests, plain);
        room.copy_from_slice(&salt);
        let tag = self.frame_key(&salt).seal_in_place_separate_tag(nonce(), Aad::from(head), plain);
        payload.extend_from_slice(tag.expect("a payload is far below what AES-GCM allows").as_ref());
    }

    /// Decrypts a stored payload; what it was is appended to `out`.
    ///
    /// # Errors
    /// [`Unopened`]; `out` is as it was.
    pub fn open(&self, head: &[u8; FRAME_HEAD_BYTES], stored: &[u8], out: &mut Vec<u8>) -> Result<(), Unopened> {
        let (salt, rest) = stored.split_first_chunk::<SALT_BYTES>().ok_or(Unopened)?;
        let (cipher, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Unopened)?;
        let from = out.len();
        out.resize(from + cipher.len(), 0);
        let opened = self.frame_key(salt).open_separate_gather(nonce(), Aad::from(head), cipher, tag, &mut out[from..]);
        opened.map_err(|_| {
            out.truncate(from);
            Unopened
        })
    }

    fn frame_key(&self, salt: &[u8; SALT_BYTES]) -> LessSafeKey {
        let key = Zeroizing::new(blake3::keyed_hash(self.content.bytes(), salt));
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("32 bytes are a key of AES-256"))
    }
}

/// A key is used once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// What says without any key that a stored payload is as it was: BLAKE3, its first 16 bytes.
pub fn stored_digest(stored: &[u8]) -> [u8; STORED_DIGEST_BYTES] {
    let mut digest = [0; STORED_DIGEST_BYTES];
    digest.copy_from_slice(&blake3::hash(stored).as_bytes()[..STORED_DIGEST_BYTES]);
    digest
}
