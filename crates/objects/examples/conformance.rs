//! Holds a service to what a store needs of it, in a bucket that exists: the suite that the tests run against Ceph's gateway, for services
//! that they do not run.
//!
//! ```text
//! cargo run --release -p farside-objects --example conformance -- az://container/empty-prefix
//! ```
//!
//! Keys are taken from where `farside store init` takes them. The prefix must be empty, and holds the suite's objects afterwards.

use farside_objects::{Credentials, Location};
use farside_store::conformance;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("say of which bucket, like s3://bucket/prefix")?;
    let Location::Bucket(address) = url.parse::<Location>()? else {
        return Err(format!("{url} is no bucket").into());
    };
    let keys = Credentials::find(None)?;
    let local = tempfile::tempdir()?;
    conformance::run(&conformance::Fixture {
        open: &|| address.bucket(&keys).expect("what is needed to ask the service"),
        local: local.path(),
    });
    println!("{url} does what a store needs");
    Ok(())
}
