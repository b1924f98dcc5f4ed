//! A real server that is right when it is asked one after the other and wrong in a race: s3s-fs, which looks whether the object is there,
//! takes the data in, and renames its file over whatever is there by then. It runs in this process.

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;

use crate::loopback::Loopback;
use crate::{ACCESS_KEY, Bucket, SECRET_KEY, endpoint};

/// Two of those who create an object at once may both be told that they did.
#[derive(Debug)]
pub struct WrongInARace {
    front: Loopback,
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
        Self { front: Loopback::serve(move |_| service.clone()), _folder: folder }
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
        Bucket::create(self.front.address(), &[])
    }
}
