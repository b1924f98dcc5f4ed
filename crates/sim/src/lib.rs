//! The simulator: the gate of Farside.
//!
//! A whole source, receiver and store in one thread and virtual time, one seed per run, on the product's own state machines
//! (`shim`, `replication`, `ledger`, `layer`, and the index of `store`). What is written here is the world around them: a
//! disk, a network and an object store that do what real ones may do, a host that writes, chance that decides what happens
//! next, faults, and judges that know the truth ([`oracle`]). First a phase in which anything may happen, then the world
//! heals, and everything must converge.
//!
//! Deliberately not here: threads that run side by side (loom models them), bytes that hostile peers invent (fuzzers and property tests do),
//! real I/O (process tests do).

pub mod cascade;
pub mod cohort;
pub mod coverage;
pub mod disk;
pub mod exec;
mod failback;
pub mod failover;
mod faults;
pub mod follower;
pub mod history;
pub mod host;
pub mod judge;
mod line;
pub mod mutations;
pub mod net;
pub mod oracle;
pub mod parts;
pub mod plan;
mod progress;
mod quiet;
pub mod receiver;
pub mod rng;
pub mod run;
mod shelf;
pub mod site;
pub mod source;
pub mod store;
pub mod succession;
pub mod sweep;
mod torn;
pub mod trace;
pub mod world;
