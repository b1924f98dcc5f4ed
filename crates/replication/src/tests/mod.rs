//! Source against target in memory.

mod random;
mod world;
