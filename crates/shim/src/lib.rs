//! The write path of a protected volume, sans-I/O over atomics: intent, mark, claim and save; the switch; heating and cooling.
//!
//! Nobody in here reads a disk, a clock or a socket, starts a thread or waits. A driver (a queue thread, the simulator, a loom
//! model) asks a token or an owner what to do next, does it, and tells the result:
//!
//! | Who drives | What | Loop |
//! |---|---|---|
//! | queue thread, one per [`Queue`] | [`Request`] | `advance` → [`Step::Io`] → do it → `io_done` → `advance` … → [`Step::Complete`] |
//! | intent thread, one per volume | [`IntentOwner`] | `next_commit` → write the slots, fdatasync → `committed` |
//! | control thread, one per group | [`Switcher`], [`Cooler`], [`Group::hold`] | `begin` → `poll` until [`Frozen`] … `conclude`, `release` |
//! | sender thread, one per volume | [`FrozenReader`] | `next` → read → `read_done` |
//!
//! Whoever has to wait is called back through its [`Wake`] as soon as asking again may help.
//!
//! Invariants (DESIGN §2): a region's intent bit is durable before a write of it reaches the backing device (L2); a cut holds
//! exactly the requests that read the epoch counter before the switch (L3); no host write waits for the network (L1); all
//! memory is allocated when the volume is opened (L8).
//!
//! Memory order: relaxed, acquire and release accesses, and explicit `fence(SeqCst)` where an announcement must be ordered
//! before a read of something else. No SeqCst *accesses*: loom would treat them as weaker than they are.
//!
//! Deliberately not here: what the backing device is, how layers are made and sent, when to switch, what is known published.
//! The caller's [`Cooler::poll`] predicate says what replication still mentions.

mod bell;
mod claims;
mod cool;
mod epoch_map;
mod frozen;
mod hold;
mod in_flight;
mod intent;
mod limits;
#[cfg(all(test, feature = "loom"))]
mod models;
mod mutation;
mod pool;
mod queue;
mod request;
#[cfg(all(test, not(feature = "loom")))]
mod rules;
mod save;
mod side_buffer;
mod states;
#[cfg(all(test, not(feature = "loom")))]
mod stories;
mod switch;
mod sync;
#[cfg(all(test, not(feature = "loom")))]
mod tests;
mod volume;

pub use bell::{NoWake, Wake};
pub use cool::{CoolStep, Cooler};
pub use frozen::{FrozenReader, HeldRun, Next, ReadVerdict};
pub use hold::HoldId;
pub use intent::{Commit, IntentOwner, PageWrite};
pub use limits::Limits;
#[cfg(any(test, feature = "mutations"))]
pub use mutation::{Mutation, Mutations};
pub use queue::{Connection, Queue, StartError};
pub use request::{Failure, Io, IoResult, Op, ParkKey, Request, Step};
pub use states::RegionState;
pub use switch::{Frozen, FrozenVolume, Group, Kind, Member, SwitchError, Switcher};
pub use volume::{Tracking, TrackingVerdict, Volume, VolumeConfig, VolumeEvents, Wakes};
