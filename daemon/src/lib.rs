//! `farsided`, the daemon of a protected host, as a library.
//!
//! Owns the process: configuration, the state directory, groups and their volumes, the API. It makes no decisions about data:
//! the write path is `farside_shim`'s, replication is `farside_replication`'s; here their events and actions meet files,
//! threads and sockets.

mod api;
pub mod args;
mod backing;
pub mod bandwidth;
pub mod boot;
mod canary;
mod change;
mod channel;
mod cohort;
mod compare;
mod compression;
pub mod config;
pub mod doctor;
mod encode;
mod failback;
mod flush_note;
mod fstab;
mod group;
mod growth;
mod hooks;
mod intent_file;
mod intent_thread;
pub mod keys;
mod link;
mod loss;
mod metrics;
#[cfg(test)]
mod mounted;
mod node;
mod queue;
mod retention;
mod sender;
mod sentinel;
mod showing;
mod source_name;
mod stacked;
pub mod state_dir;
mod status;
mod strangers;
mod supervisor;
mod tally;
pub mod tap;
mod threads;
mod verify;
mod volume;
mod watch;
mod yielding;

pub use change::as_helper;
pub use supervisor::run;

/// A lock under which nothing is ever half done: what a thread that panicked left is whole.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How `farsided` is called, for its manual page.
pub fn command_line() -> clap::Command {
    <args::Args as clap::CommandFactory>::command()
}
