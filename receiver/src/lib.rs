//! `farside-receiver`, the gateway's daemon, as a library.
//!
//! Owns the process: configuration, the state directory, the door for sources, one thread per group, landing, the API. It
//! makes no decisions about data: what is staged and published is decided by `farside_replication::target`, kept by
//! `farside_store`; here their events and actions meet sockets, threads and files.
//!
//! | File | Owns |
//! |---|---|
//! | `args` | the command line |
//! | `config` | the configuration files |
//! | `state_dir` | lock, identity, pairings, what is remembered per group |
//! | `process` | start, stop, signals, readiness |
//! | `vault` | the open store, and opening it again after it failed |
//! | `door` | connections of sources: which group one is for, frames, parts |
//! | `landing` | one part's way from its stream into the store |
//! | `group` | a group's thread: `Target` and `GroupStore` together |
//! | `points` | points, digests and old layers as sources hear of them |
//! | `pace` | how often something may happen |
//! | `budget` | how many requests a bucket may be asked for |
//! | `roster` | which groups there are |
//! | `verify` | points being read in full, on request |
//! | `schedule` | the same unasked, when it is due |
//! | `merge` | parts that history no longer tells apart become one |
//! | `keys` | keys of encrypted groups that this gateway was given |
//! | `follow` | followers: files and devices that are kept equal to points |
//! | `locks` | what a follower holds is kept under another name, round by round |
//! | `floor` | what retention keeps at least, whatever files are away |
//! | `pull` | hosts that are brought to a point, over the network |
//! | `rollback` | what a host discards that goes on with its own disks is pinned |
//! | `failover` | a copy takes the place of a source that is gone |
//! | `status`, `metrics`, `api` | what is shown, and where |
//!
//! Invariant: whatever a source sends, memory and files stay within [`Limits`], and no source can hold up another's group.

mod api;
pub mod args;
mod budget;
mod cohort;
pub mod config;
mod door;
mod failover;
mod floor;
mod follow;
mod found;
mod group;
mod keys;
mod landing;
mod locks;
mod merge;
mod metrics;
mod pace;
mod points;
pub mod process;
mod pull;
mod refusals;
mod rollback;
mod roster;
mod schedule;
mod state_dir;
mod status;
mod vault;
mod verify;

pub use api::filter_of;
pub use config::{Config, ConfigError, GivenKey, Limits, Merge, PUBLISH_EVERY, PublishBudget, Retention, Verify};
pub use locks::LockProgram;
pub use process::{RunError, run};
pub use status::point as point_of;
pub use vault::check_place;

/// How `farside-receiver` is called, for its manual page.
pub fn command_line() -> clap::Command {
    <args::Arguments as clap::CommandFactory>::command()
}
pub use verify::verify_members;
