//! Keys: what a group's volumes are encrypted with, and how that key is kept (`docs/formats/keys.md`).
//!
//! Owns [`GroupKey`] (drawn at random, never stored as it is), [`VolumeKeys`] (derived from it), the encryption of a frame
//! ([`VolumeKeys::seal`], [`VolumeKeys::open`]), [`Wrapping`] (a group key as it may be stored) and [`Keeper`] (what unwraps it: a
//! passphrase, a file, a command).
//!
//! Invariants:
//! - No two frames are encrypted with the same key and nonce: see [`Sealer`].
//! - A key that unwraps is the one that was wanted: its id is compared before anything is decrypted with it.
//! - Keys are in no text that this crate makes, `Debug` included, and are overwritten when they are dropped.
//!
//! It deliberately does not know where wrappings are stored, or who is asked for which key.

mod frame;
mod group;
mod keeper;
mod secret;
mod wrapping;

#[cfg(test)]
mod tests;

pub use farside_region::{Seal, SealMode};
pub use frame::{FRAME_HEAD_BYTES, FRAME_OVERHEAD_BYTES, FRAME_SALT_BYTES, STORED_DIGEST_BYTES, Sealer, Unopened, stored_digest};
pub use group::{ContentKeys, GroupKey, VolumeKeys, WrongKey};
pub use keeper::{Keeper, KeeperError, ParseKeeperError};
pub use secret::Secret;
pub use wrapping::{ARGON2_DEFAULT, Argon2Cost, WRAPPING_BYTES_MAX, WRAPPINGS_MAX, WrapError, Wrapping};
