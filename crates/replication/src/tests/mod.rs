//! Source against target in memory.

mod directed;
mod hostile;
mod loss;
mod peers;
mod random;
mod stories;
mod verify;
mod world;
