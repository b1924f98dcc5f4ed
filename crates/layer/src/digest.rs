//! The three digests: of a granule, of a part's footer, of a layer.

use farside_region::{GranuleDigest, GranuleIndex, LayerKey};

/// The digest of one granule: BLAKE3, keyed with the volume's digest key, over the granule's real bytes (the last one of a
/// volume may be short; nothing is padded) and then its number (u64, little-endian), cut to 16 bytes.
///
/// The number comes last because a hash that begins with 8 odd bytes runs at a third of the speed.
pub fn granule_digest(key: &[u8; 32], granule: GranuleIndex, content: &[u8]) -> GranuleDigest {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(content);
    hasher.update(&granule.0.to_le_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    GranuleDigest(digest)
}

/// The digest of a layer: over its key and the footer digests of its parts, in order. A layer without parts has one, too.
pub fn layer_digest(key: &LayerKey, footer_digests: &[[u8; 32]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"farside layer v1\0");
    hasher.update(&key.volume.0);
    hasher.update(&key.term.0.to_le_bytes());
    hasher.update(&key.seq.0.to_le_bytes());
    hasher.update(&(footer_digests.len() as u64).to_le_bytes());
    footer_digests.iter().for_each(|d| {
        hasher.update(d);
    });
    *hasher.finalize().as_bytes()
}

/// The digest of a footer's body, which begins with the part's header.
pub(crate) fn footer_digest(body: &[u8]) -> [u8; 32] {
    *footer_hasher().update(body).finalize().as_bytes()
}

/// The same, of a body that comes in pieces.
pub(crate) fn footer_hasher() -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"farside part footer v1\0");
    hasher
}
