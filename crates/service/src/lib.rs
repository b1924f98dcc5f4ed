//! What both daemons are as services of an operating system: their log, their words with systemd, their
//! configuration files, their metrics, the socket of their API and HTTP on it.
//!
//! Owns nothing of Farside's data and imports the API's types only. Invariant: nothing here can end or hold up a daemon: a log
//! that cannot be written and a systemd that does not listen cost words only.

pub mod clients;
pub mod files;
pub mod http;
pub mod log;
pub mod metrics;
pub mod socket;
pub mod systemd;
