//! Source against target in memory.

mod directed;
mod random;
mod world;
