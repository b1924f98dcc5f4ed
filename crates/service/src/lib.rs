//! What both daemons are as services of an operating system: their log, their words with systemd, their
//! configuration files, their metrics, the socket of their API.
//!
//! Owns nothing of Farside's data and imports none of our crates. Invariant: nothing here can end or hold up a daemon: a log
//! that cannot be written and a systemd that does not listen cost words only.

pub mod files;
pub mod log;
pub mod metrics;
pub mod socket;
pub mod systemd;
