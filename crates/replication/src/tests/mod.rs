//! Source against target in memory.

mod directed;
mod hostile;
mod random;
mod stories;
mod verify;
mod world;
