//! Source against target in memory.

mod directed;
mod hostile;
mod loss;
mod random;
mod stories;
mod verify;
mod world;
