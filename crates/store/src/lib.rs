//! wip
mod attempt;
mod backend;
mod error;
mod image;
mod index;
mod liveness;
mod locks;
mod names;
pub use attempt::*;
pub use backend::*;
pub use error::*;
pub use image::*;
pub use index::*;
pub use liveness::*;
pub use locks::*;
pub use names::*;
