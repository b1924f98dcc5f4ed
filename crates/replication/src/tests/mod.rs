//! Source against target in memory.

mod cadence;
mod claims;
mod cohort;
mod directed;
mod failback;
mod fencing;
mod hostile;
mod kept;
mod line;
mod loss;
mod peers;
mod quiet;
mod random;
mod resumed;
mod reverted;
mod room;
mod sealed;
mod stories;
mod verify;
pub(crate) mod world;
