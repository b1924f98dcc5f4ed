//! Stores in buckets: where a store may be ([`Location`]), and the backend over S3, Azure Blob and Google Cloud Storage.
//!
//! Sole importer of `object_store`, which owns signing, credentials, retries and the wire. Owned here: which address means
//! what, where credentials may come from (never from an address, and never into a log), how long a request may take, how many
//! bytes are on their way at once, and what an answer means to the store. Invariant: nothing is reported created that the
//! service did not acknowledge to *this* request, or that was not looked at since.
//!
//! It deliberately does not know ledgers or segments, and overwrites nothing but what a repair puts right.

mod bucket;
mod location;
mod moment;
mod past;
mod prompt;
mod uploads;
mod versions;

pub use bucket::Bucket;
pub use location::{Address, CREDENTIALS_VARIABLE, Credentials, Location, LocationError, OpenError};
pub use past::{Lock, Locks, Past};
