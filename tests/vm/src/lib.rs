//! Real Debian kernels in emulated machines, for what cannot be tested on the machine that builds.
//!
//! A test makes a [`Machine`] with the disks it wants, boots it, runs commands in the [`Guest`], cuts its power and boots it
//! again; several machines share a [`Network`]. `docs/vm-tests.md` is the guide. Owned here: kernels and programs for guests
//! ([`cache`], fetched by xtask), what they boot into, the agent inside them, and the judgement of their kernels' logs
//! ([`klog`]). Deliberately not here: hardware virtualisation. Emulation runs everywhere and is the same everywhere; how fast
//! it is says nothing, so no test asserts a duration.

pub mod application;
pub mod cache;
pub mod conformance;
pub mod counted;
pub mod gateway;
mod image;
mod kernel;
pub mod klog;
pub mod log_writes;
mod machine;
mod network;
pub mod packages;
pub mod protected;
pub mod protocol;
pub mod toolbox;

pub use image::{DEBIAN_IMAGE, DEBIAN_TREE, GUEST_TREE};
pub use kernel::Kernel;
pub use machine::{Cache, DiskSpec, Guest, INSTRUCTION_NS, Machine, Output};
pub use network::{HERE, Network};
