//! A real server that is right when it is asked one after the other and wrong in a race: s3s-fs, which looks whether the object is there,
//! takes the data in, and renames its file over whatever is there by then. It runs in this process.

use std::sync::atomic::{AtomicU32, Ordering};

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;

use crate::loopback::Loopback;
use crate::{Bucket, endpoint};

const ACCESS_KEY: &str = "FARSIDETESTACCESSKEY";
const SECRET_KEY: &str = "known-to-everybody";

/// Two of those who create an object at once may both be told that they did.
#[derive(Debug)]
pub struct WrongInARace {
    front: Loopback,
    buckets: AtomicU32,
    /// Removed when nobody writes into it any more: fields go in their order.
    _folder: TempDir,
}

impl WrongInARace {
    /// Starts one in a new folder.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("farside-s3s-fs-").tempdir().expect("a temporary directory");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        Self { front: Loopback::serve(move |_| service.clone()), buckets: AtomicU32::new(0), _folder: folder }
    }

    /// `http://ADDRESS:PORT`
    pub fn endpoint(&self) -> String {
        endpoint(self.front.address())
    }

    /// A new bucket, which nobody else has.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn bucket(&self) -> Bucket {
        let name = format!("bucket-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
        Bucket { endpoint: self.endpoint(), access_key, secret_key, name }.create()
    }
}
