//! S3 servers on loopback, for tests: real ones that nobody here wrote, started and ended by the test.
//!
//! | What | Create-only | Use |
//! |---|---|---|
//! | [`RadosGw`] | holds in every race | the reference: whoever stores in S3 must pass against it |
//! | [`StripsCreateOnly`] | is ignored: the header is lost on the way to the server behind | must be refused |
//! | [`HoldsCreateOnly`] | holds, and keeps versions: Ceph's gateway does not hold it where it keeps them | what is read as it was, or locked |
//! | [`WrongInARace`] | holds one after the other, not in a race | must be refused |
//! | [`Faults`] | as the server behind | answers late, wrongly, twice or never, as the test says |
//!
//! A [`Bucket`] is all that a client needs to know. Every test makes its own; one RadosGW is enough for all tests of a program
//! ([`RadosGw::shared`]). Nothing here outlives the test's process, also if that is killed (`keeper`). All of it may be called
//! from async code and from threads without a runtime. Imports none of our crates.

mod faults;
mod http;
mod keeper;
mod loopback;
mod racy;
mod radosgw;
mod signature;
mod strips;
mod versioned;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use faults::{Counts, Ending, Fault, Faults, Kind, RequestInfo};
pub use racy::WrongInARace;
pub use radosgw::RadosGw;
pub use strips::StripsCreateOnly;
pub use versioned::HoldsCreateOnly;

/// Who uses the servers.
const ACCESS_KEY: &str = "FARSIDETESTACCESSKEY";
const SECRET_KEY: &str = "known-to-everybody";

/// How long a condition may take before a test gives up. Long, since the machine may be slow; passing tests never see it.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long to wait before asking again.
const POLL: Duration = Duration::from_millis(20);

/// A bucket, and what a client needs to use it. Addressed by path (`ENDPOINT/NAME/KEY`), without encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// `http://ADDRESS:PORT`
    pub endpoint: String,
    /// Who asks.
    pub access_key: String,
    /// By which it is believed.
    pub secret_key: String,
    /// Its name.
    pub name: String,
}

impl Bucket {
    /// What every signature names. The servers here take any.
    pub const REGION: &'static str = "us-east-1";

    /// Where the server listens.
    fn address(&self) -> SocketAddr {
        let address = self.endpoint.strip_prefix("http://").and_then(|address| address.parse().ok());
        address.unwrap_or_else(|| panic!("{} is not an endpoint of ours", self.endpoint))
    }

    /// The same bucket, seen through what listens there.
    fn through(&self, address: SocketAddr) -> Self {
        Self { endpoint: endpoint(address), ..self.clone() }
    }

    /// Makes a new one on a server. No two of a process have the same name.
    ///
    /// # Panics
    /// When the server refuses.
    fn create(on: SocketAddr, headers: &[(&str, &str)]) -> Self {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let name = format!("bucket-{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
        let bucket = Self { endpoint: endpoint(on), access_key, secret_key, name };
        let answer =
            http::signed("PUT", &bucket, (&format!("/{}", bucket.name), ""), headers).unwrap_or_else(|e| panic!("{on}: {e}"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{on} makes no bucket: {answer}");
        bucket
    }

    /// The versions of all objects, the first thousand, marks of deletions among them: the key, and the version's name.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn versions(&self) -> Vec<(String, String)> {
        let answer = http::signed("GET", self, (&format!("/{}", self.name), "versions="), &[]).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let text = |entry: &str, tag: &str| {
            let (_, rest) = entry.split_once(&format!("<{tag}>"))?;
            Some(rest.split_once("</")?.0.to_owned())
        };
        let entries = answer.split("<Key>").skip(1).map(|entry| format!("<Key>{entry}"));
        entries.map(|entry| text(&entry, "Key").zip(text(&entry, "VersionId")).expect("a version")).collect()
    }

    /// Puts an object of nothing, under whatever name.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn put(&self, key: &str) {
        let answer = http::signed("PUT", self, (&format!("/{}/{key}", self.name), ""), &[]).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// Deletes an object: where versions are kept, that puts a mark over it.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn delete(&self, key: &str) {
        let answer = http::signed("DELETE", self, (&format!("/{}/{key}", self.name), ""), &[]).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }

    /// Deletes one version for good, as who has the keys may, if nothing locks it; whether that was so.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn delete_version(&self, key: &str, version: &str) -> bool {
        let (path, query) = (format!("/{}/{key}", self.name), format!("versionId={version}"));
        let answer = http::signed("DELETE", self, (&path, &query), &[]).expect("an answer");
        answer.starts_with("HTTP/1.1 204 ")
    }
}

fn endpoint(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Waits until `condition` gives something, as the other tests do.
///
/// # Panics
/// When it does not within [`PATIENCE`], with what there was last.
fn wait_until<T, S: Display>(what: &str, mut condition: impl FnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(instead) => assert!(Instant::now() < deadline, "gave up waiting for {what}: {instead}"),
        }
        std::thread::park_timeout(POLL);
    }
}
