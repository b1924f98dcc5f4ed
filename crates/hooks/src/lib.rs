//! Hooks: what quiesces applications around a cut, so that a point is consistent for them too.
//!
//! ```text
//!  farsided                      guard (a process of its own, for one cut)
//!  Plan ───────────────────────► note; pre-cut of hook 1, 2, …, n
//!       ◄─────────────────────── Ran, Ran, …; Ready
//!  (makes the cut)               holds, at most `hold_ms`
//!  {"cut":"taken"} ────────────► post-cut of hook n, …, 2, 1; note removed
//!       ◄─────────────────────── Ran, Ran, …; Ended { held, why }
//! ```
//!
//! The law of this crate is a thaw that cannot be forgotten: **whatever dies, hangs or is late, everything that was begun is ended.**
//! - farsided dies or gives up: the guard sees the end of its input, stops what runs and ends what was begun.
//! - A hook hangs: it is over time, its process group is killed, and its post-cut runs with those of all before it.
//! - farsided is slow: the hold runs out ([`Plan::hold_ms`] has the rule), and the guard ends everything by itself.
//! - The guard is killed: its note says what was begun. The next guard with the same note ends that before it begins anything, and
//!   [`resume_forgotten`] does it at any time.
//!
//! Owns the protocol (one JSON value a line, in [`Plan`], [`Ran`] and `plan.rs`), the guard ([`guard_main`]), its note, and farsided's
//! end of the line ([`Run`]). It deliberately does not know what a cut is, or whether a point needs hooks.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod command;
mod forgotten;
mod freeze;
mod guard;
mod kernel;
mod note;
mod plan;
mod run;
mod wait;

#[cfg(test)]
mod tests;

pub use forgotten::{Forgotten, resume_forgotten};
pub use guard::guard_main;
pub use plan::{HOLD_MAX, Hook, LINE_BYTES_MAX, Plan, PlanError, Ran, Stage, TIMEOUT_MAX, What};
pub use run::{Guard, Outcome, RESUME_WAIT, Run, resume};
