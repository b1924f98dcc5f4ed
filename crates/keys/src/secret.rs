//! Bytes that are in no text and are overwritten when they are dropped.

use std::fmt;

use zeroize::Zeroizing;

/// 32 secret bytes, on the heap: a value that is moved leaves no copy behind.
#[derive(Clone)]
pub struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    /// From bytes; the caller's copy is the caller's to overwrite.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Box::new(Zeroizing::new(*bytes)))
    }

    /// Drawn at random.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut secret = Self::new(&[0; 32]);
        getrandom::fill(&mut secret.0[..])?;
        Ok(secret)
    }

    /// BLAKE3's key derivation over several pieces.
    pub(crate) fn derive(context: &'static str, material: &[&[u8]]) -> Self {
        let mut hasher = Zeroizing::new(blake3::Hasher::new_derive_key(context));
        material.iter().for_each(|piece| {
            hasher.update(piece);
        });
        let mut secret = Self::new(&[0; 32]);
        Zeroizing::new(hasher.finalize_xof()).fill(&mut secret.0[..]);
        secret
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
