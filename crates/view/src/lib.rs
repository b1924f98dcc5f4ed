//! A recovery point as a block device: what is read comes out of the store, what is written goes to a folder of its own.
//!
//! [`View`] answers reads at once at any size and history: a region is fetched, checked and decoded when somebody wants it, and kept
//! within a limit; who reads in sequence finds it there. Writes go to an [`Overlay`], a folder that outlives the process; without one the view is read-only.
//! [`View::fill`] brings the rest of the point there, too, until the folder's file is the whole volume. [`ViewQueue`] makes a view the queue
//! of a tap.
//!
//! Invariants:
//! - every byte that is read was checked against the digest computed at the source, or was written here;
//! - what the source could not read is `EIO` there, and so is what the store has lost, granule by granule as far as it can tell; what is
//!   lost is read again when it is asked for again;
//! - each sector of an overlay is what the point holds or what was written, whatever interrupts it ([`Overlay`]).
//!
//! It does not decide which point, where its clients are, or for how long.

mod ahead;
mod cache;
mod fetches;
mod fill;
mod map;
mod medium;
mod overlay;
#[cfg(test)]
mod power_tests;
mod queue;
mod rounds;
#[cfg(test)]
mod tests;
mod view;

pub use map::MapError;
pub use medium::Medium;
pub use overlay::{Origin, Overlay, OverlayError};
pub use queue::ViewQueue;
pub use view::{Base, Lost, Region, View};
