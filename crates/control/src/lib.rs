//! The API of both daemons: JSON over HTTP over a Unix socket, versioned by its first path segment, and a client for it.
//!
//! Owns the types, the routes and the client. Invariant: whatever a daemon answers fits these types, and an older client
//! ignores fields it does not know. Imports none of our crates, so names, ids and states are plain text and numbers here;
//! the daemons translate. Serving is theirs too.
//!
//! Units are in the names: `_bytes`, `_ms`, `_ns`, `_per_s`. Wall-clock times are RFC 3339 in UTC.

pub mod client;
mod code;
pub mod cohort;
mod duration;
mod error;
pub mod failback;
pub mod failover;
pub mod follower;
mod grid;
pub mod openapi;
mod pages;
mod point;
mod rate;
pub mod receiver;
mod reload;
pub mod rollback;
pub mod routes;
pub mod source;
mod verification;
mod window;

pub use client::{Client, ClientError};
pub use code::Code;
pub use duration::{DurationError, duration_words, parse_duration, parse_epoch_interval, parse_span};
pub use error::{ApiError, ErrorCode, Reason, Severity};
pub use grid::{Grid, GridError, GridRule};
pub use pages::{POINT_PAGE_BYTES, POINTS_PAGE_MAX, PageCursor, PageCursorError, PageMaker, PointPage, TooManyGroups};
pub use point::{
    Address, AddressError, Consistency, HOLD_REASONS, HoldRequest, PIN_REASON_BYTES_MAX, PinRequest, Point, PointCut, PointId,
    PointMember, PointPin, PointRef, PointRefError, PointSearch, PointVerified, VerifiedHow, VerifiedPoint, no_such_point,
    no_such_point_of, select_point,
};
pub use rate::{Rate, RateError, RateLimit};
pub use reload::Reloaded;
pub use verification::{DAMAGE_LISTED_MAX, Damage, Run, Verification, VerificationState, VerifiedVolume};
pub use window::{Window, WindowError};

/// Where `farsided` listens unless its configuration says otherwise.
pub const SOURCE_SOCKET: &str = "/run/farside/farsided.sock";

/// Where `farside-receiver` listens unless its configuration says otherwise.
pub const RECEIVER_SOCKET: &str = "/run/farside/receiver.sock";

/// A request body larger than this is refused by a daemon.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;

/// An answer larger than this is refused by the client.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// At most this many points are listed in one answer; the newest ones.
pub const POINTS_LISTED_MAX: usize = 10_000;
