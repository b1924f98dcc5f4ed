//! wip
mod backend;
mod error;
mod locks;
pub use backend::*;
pub use error::*;
pub use locks::*;
