//! Where a store may be, as people write it: a directory, or the address of a bucket.
//!
//! Invariant: an address holds no secret; one that does is refused before anything prints it.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use farside_store::{Backend, Store, StoreError, StoreReader};
use jiff::Timestamp;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector as _, ReqwestConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientOptions, ObjectStore};
use url::Url;

use crate::bucket::{self, Bucket};
use crate::moment::Versioned;
use crate::past::{self, Locks, Past, Seen};
use crate::prompt::Prompt;

/// Names the file with credentials for a store in a bucket, where no option does.
pub const CREDENTIALS_VARIABLE: &str = "FARSIDE_STORE_CREDENTIALS";
/// How the names in a file of credentials begin.
const SERVICES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
/// What one of them must say: it lets somebody in, and names no other place.
const SECRETS: [&str; 9] = ["KEY", "SECRET", "TOKEN", "ACCOUNT", "SAS", "CLIENT", "TENANT", "AUTHORITY", "CREDENTIALS"];
/// A file of credentials is not larger.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;
/// What may stand in an address after `?`: nothing of it is secret.
const OPTIONS: [&str; 9] =
    ["endpoint", "region", "account_name", "virtual_hosted_style_request", "allow_http", "skip_signature", CHECKSUM, AS_OF, LOCK];
/// For services that take no upload with a checksum that they do not know: `none`.
const CHECKSUM: &str = "checksum";
/// A bucket that keeps versions, as it was then, or what of it is locked.
const AS_OF: &str = "as_of";
const LOCK: &str = "lock";

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory on a local file system.
    Dir(PathBuf),
    /// A prefix of a bucket.
    Bucket(Address),
}

/// The address of a prefix in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    service: Service,
    bucket: String,
    prefix: String,
    options: Vec<(String, String)>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    S3,
    Azure,
    Google,
}

/// What a file says that lets us into a bucket. Not shown by anything.
#[derive(Clone, Default)]
pub struct Credentials(Vec<(String, String)>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.0.iter().map(|(name, _)| name).collect();
        f.debug_tuple("Credentials").field(&names).finish()
    }
}

/// Why a location cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// Not how a location is written.
    #[error("`{text}` is not where a store can be: {why}")]
    Address {
        /// What was said, without what may be secret.
        text: String,
        /// Why not.
        why: String,
    },
    /// A file with credentials.
    #[error("the credentials in {path} cannot be used: {why}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Too little is known to ask the service.
    #[error("{place} cannot be reached: {why}")]
    Setup {
        /// The store.
        place: String,
        /// What is missing or wrong.
        why: String,
    },
}

impl Credentials {
    /// Reads a file of `NAME=VALUE` lines, with the names of environment variables that the service's own tools know
    /// (`AWS_ACCESS_KEY_ID`, `AZURE_STORAGE_ACCOUNT_KEY`, `GOOGLE_SERVICE_ACCOUNT_KEY`); empty lines and `#` lines are skipped.
    ///
    /// # Errors
    /// [`LocationError::Credentials`]: it cannot be read, anybody else may read it, or a line says nothing.
    pub fn read(path: &Path) -> Result<Self, LocationError> {
        let refused = |why: String| LocationError::Credentials { path: path.to_owned(), why };
        let meta = std::fs::metadata(path).map_err(|e| refused(e.to_string()))?;
        if !meta.is_file() || meta.len() > CREDENTIALS_BYTES_MAX {
            return Err(refused("it is not a small file".to_owned()));
        }
        if meta.permissions().mode() & 0o027 != 0 {
            return Err(refused(format!("others on this machine may read or change it; say: chmod 600 {}", path.display())));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refused(e.to_string()))?;
        let mut pairs = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself may be a secret.
            let (name, value) =
                line.split_once('=').ok_or_else(|| refused(format!("line {number} is not of the form NAME=VALUE")))?;
            // What looks otherwise may be a secret that was torn apart.
            let is_known = |name: &str| {
                let plain = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
                plain
                    && SERVICES.iter().any(|service| name.starts_with(service))
                    && SECRETS.iter().any(|word| name.contains(word))
            };
            if !is_known(name.trim()) {
                return Err(refused(format!(
                    "line {number} does not begin with a name of credentials, like AWS_ACCESS_KEY_ID, \
                     AZURE_STORAGE_ACCOUNT_KEY or GOOGLE_SERVICE_ACCOUNT_KEY; endpoint and region belong into the address"
                )));
            }
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            pairs.push((name.trim().to_ascii_lowercase(), unquoted.to_owned()));
        }
        Ok(Self(pairs))
    }

    /// Those of a file; else of the file that `FARSIDE_STORE_CREDENTIALS` names; else none, and the service's own environment
    /// variables and the machine's metadata are asked.
    ///
    /// # Errors
    /// [`LocationError::Credentials`].
    pub fn find(path: Option<&Path>) -> Result<Self, LocationError> {
        let variable = std::env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from);
        match path.or(variable.as_deref()) {
            Some(path) => Self::read(path),
            None => Ok(Self::default()),
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        // Without what may be a secret: all before an `@`, all after a `?`.
        let shown = text.split_once('?').map_or(text, |(before, _)| before);
        let shown = match (shown.split_once("://"), shown.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
            _ => shown.to_owned(),
        };
        let refused = |why: &str| LocationError::Address { text: shown.clone(), why: why.to_owned() };
        let Some((scheme, _)) = text.split_once("://") else {
            return if text.is_empty() { Err(refused("it is empty")) } else { Ok(Self::Dir(text.into())) };
        };
        if scheme == "file" {
            return match text.strip_prefix("file://").filter(|path| path.starts_with('/')) {
                Some(path) => Ok(Self::Dir(path.into())),
                None => Err(refused("write it as file:///srv/farside")),
            };
        }
        let service = match scheme {
            "s3" => Service::S3,
            "az" | "azure" => Service::Azure,
            "gs" => Service::Google,
            _ => return Err(refused("it is none of a directory, file:///DIRECTORY, s3://, az:// and gs://BUCKET/PREFIX")),
        };
        let url = Url::parse(text).map_err(|e| refused(&e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("an address holds no credentials: they come from the environment or a file"));
        }
        let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refused("it names no bucket"))?;
        if !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(refused("a bucket's name holds letters, digits, `.`, `_` and `-`"));
        }
        if url.port().is_some() || url.fragment().is_some() {
            return Err(refused("after the bucket comes a prefix; a server is named by ?endpoint=https://HOST:PORT"));
        }
        let prefix = url.path().trim_matches('/');
        let plain = |c: &str| {
            !c.is_empty()
                && !c.starts_with('.')
                && c.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !prefix.is_empty() && !prefix.split('/').all(plain) {
            return Err(refused(
                "its prefix may hold letters, digits, `.`, `_`, `-` and `/`, and no component begins with a dot",
            ));
        }
        let (mut options, mut seen) = (Vec::new(), Seen::Now);
        for (name, value) in url.query_pairs() {
            let name = name.replace('-', "_").to_ascii_lowercase();
            if !OPTIONS.contains(&name.as_str()) {
                let known = OPTIONS.join(", ");
                return Err(refused(&format!("it may say {known} after `?`, and never credentials")));
            }
            let is_server = |url: &Url| {
                let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
                matches!(url.scheme(), "http" | "https") && url.has_host() && bare && url.fragment().is_none()
            };
            if name == CHECKSUM && (service != Service::S3 || value != "none") {
                return Err(refused("of checksums it may say none, in s3://, where the service takes no upload with one"));
            }
            if name == "endpoint" && !Url::parse(&value).is_ok_and(|url| is_server(&url)) {
                return Err(refused("its endpoint is not like https://HOST:PORT; an address holds no credentials"));
            }
            if name == AS_OF || name == LOCK {
                if service != Service::S3 {
                    return Err(refused("as_of and lock are for s3:// only: versions of others are not read"));
                }
                if seen != Seen::Now {
                    return Err(refused("it names one moment (as_of), or one lock"));
                }
                seen = if name == AS_OF {
                    // A plus is a space in an address.
                    let moment = value.replace(' ', "+").parse::<Timestamp>();
                    Seen::AsOf(moment.map_err(|_| refused("as_of is a moment like 2026-11-28T22:00:00Z"))?)
                } else if past::is_id(&value) {
                    Seen::Lock(value.into_owned())
                } else {
                    return Err(refused("a lock is 32 hex digits; `farside store locks` shows them"));
                };
                continue;
            }
            options.push((name, value.into_owned()));
        }
        Ok(Self::Bucket(Address { service, bucket: bucket.to_owned(), prefix: prefix.to_owned(), options, seen }))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => path.display().fmt(f),
            Self::Bucket(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())?;
        let seen = match &self.seen {
            Seen::AsOf(moment) => Some((AS_OF.to_owned(), moment.to_string())),
            Seen::Lock(id) => Some((LOCK.to_owned(), id.clone())),
            Seen::Now => None,
        };
        for (i, (name, value)) in self.options.iter().chain(&seen).enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl Address {
    fn place(&self) -> String {
        let scheme = match self.service {
            Service::S3 => "s3",
            Service::Azure => "az",
            Service::Google => "gs",
        };
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{scheme}://{}{slash}{}", self.bucket, self.prefix)
    }

    /// The bucket. Asks nothing of the service yet, unless it is to be seen as it was, or what of it is locked: that is listed.
    ///
    /// # Errors
    /// [`LocationError::Setup`]: an option or a credential makes no sense, or one is missing; what the service says of its versions.
    pub fn bucket(&self, credentials: &Credentials) -> Result<Arc<dyn Backend>, OpenError> {
        if self.seen != Seen::Now {
            return Ok(self.past(credentials)?.backend());
        }
        let objects = self.objects(credentials).map_err(|e| self.setup(e))?;
        let bucket = Bucket::new(objects, &self.prefix, self.place()).map_err(|e| self.setup(e))?;
        Ok(Arc::new(bucket.at(self.to_string())))
    }

    /// The bucket as it was at the moment that the address says, or what the lock names that it says, or as it is now and stays.
    ///
    /// # Errors
    /// Those of [`Address::bucket`].
    pub fn past(&self, credentials: &Credentials) -> Result<Past, OpenError> {
        let place = match &self.seen {
            Seen::AsOf(moment) => format!("{} as of {moment}", self.place()),
            Seen::Lock(id) => format!("{} by its lock {id}", self.place()),
            Seen::Now => self.place(),
        };
        Ok(Past::of(self.versioned(credentials)?, &self.prefix, self.seen.clone(), place)?)
    }

    /// Its locks.
    ///
    /// # Errors
    /// [`LocationError::Setup`]; threads cannot be started.
    pub fn locks(&self, credentials: &Credentials) -> Result<Locks, OpenError> {
        Ok(Locks::of(self.versioned(credentials)?, &self.prefix, self.place())?)
    }

    fn versioned(&self, credentials: &Credentials) -> Result<Versioned, LocationError> {
        if self.service != Service::S3 {
            return Err(self.setup("versions of objects are read, and locked, in s3:// only"));
        }
        let (s3, requests) = self.s3(credentials).map_err(|e| self.setup(e))?;
        Ok(Versioned { s3, requests })
    }

    /// The same address at a moment.
    #[must_use]
    pub fn as_of(&self, moment: Timestamp) -> Self {
        Self { seen: Seen::AsOf(moment), ..self.clone() }
    }

    /// The same address, of what a lock names.
    #[must_use]
    pub fn by_lock(&self, id: &str) -> Self {
        Self { seen: Seen::Lock(id.to_owned()), ..self.clone() }
    }

    fn setup(&self, why: impl fmt::Display) -> LocationError {
        LocationError::Setup { place: self.place(), why: why.to_string() }
    }

    /// What is written to is as it is now.
    fn refuse_past(&self) -> Result<(), LocationError> {
        match self.seen {
            Seen::Now => Ok(()),
            _ => Err(self.setup("what it held at a moment (as_of), or what is locked (lock), is read only")),
        }
    }

    fn s3(&self, credentials: &Credentials) -> Result<(AmazonS3, HttpClient), object_store::Error> {
        let mut builder = if credentials.0.is_empty() { AmazonS3Builder::from_env() } else { AmazonS3Builder::new() };
        for (name, value) in self.pairs(credentials) {
            // The variable for S3 alone would come before the address otherwise.
            let key = if name == "endpoint" { "aws_endpoint_url_s3" } else { name };
            builder = builder.with_config(key.parse::<AmazonS3ConfigKey>()?, value);
        }
        let builder = builder.with_bucket_name(&self.bucket);
        // Amazon takes nothing into a bucket that locks what comes without a checksum of this kind; it is the one that is signed.
        let builder = builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_unsigned_payload(false);
        let builder = match self.option(CHECKSUM) {
            Some("none") => builder,
            _ => builder.with_checksum_algorithm(Checksum::SHA256),
        };
        let (plain, client) = self.client();
        let prompt = plain.and_then(|endpoint| Prompt::to(endpoint, bucket::CONNECTED_WITHIN));
        let (requests, builder) = match prompt {
            Some(prompt) => (prompt.connect(&client)?, builder.with_http_connector(prompt)),
            None => (ReqwestConnector::default().connect(&client)?, builder),
        };
        Ok((builder.with_client_options(client).with_retry(bucket::retries()).build()?, requests))
    }

    fn option(&self, wanted: &str) -> Option<&str> {
        self.options.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    /// What the service's client is told: of the credentials, and of the address. Keys of a file are not mixed with those of the environment.
    fn pairs<'p>(&'p self, credentials: &'p Credentials) -> impl Iterator<Item = &'p (String, String)> {
        credentials.0.iter().chain(self.options.iter().filter(|(name, _)| ![CHECKSUM, "allow_http"].contains(&name.as_str())))
    }

    /// An endpoint that is spoken to unencrypted, and how: only where somebody says so, by the endpoint's own scheme or otherwise.
    fn client(&self) -> (Option<&str>, ClientOptions) {
        let option = |wanted: &str| self.option(wanted);
        let plain = option("endpoint").filter(|endpoint| endpoint.starts_with("http://"));
        let may_be_plain = option("allow_http").map_or(plain.is_some(), |value| value == "true");
        (plain.filter(|_| may_be_plain), bucket::client_options().with_allow_http(may_be_plain))
    }

    fn objects(&self, credentials: &Credentials) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
        let (alone, (_, client)) = (!credentials.0.is_empty(), self.client());
        let pairs = || self.pairs(credentials);
        Ok(match self.service {
            Service::S3 => Arc::new(self.s3(credentials)?.0),
            Service::Azure => {
                let mut builder = if alone { MicrosoftAzureBuilder::new() } else { MicrosoftAzureBuilder::from_env() };
                for (name, value) in pairs() {
                    builder = builder.with_config(name.parse::<AzureConfigKey>()?, value);
                }
                let builder = builder.with_container_name(&self.bucket);
                Arc::new(builder.with_client_options(client).with_retry(bucket::retries()).build()?)
            }
            Service::Google => {
                let mut builder = if alone { GoogleCloudStorageBuilder::new() } else { GoogleCloudStorageBuilder::from_env() };
                for (name, value) in pairs() {
                    let name = if name == "endpoint" { "google_base_url" } else { name };
                    builder = builder.with_config(name.parse::<GoogleConfigKey>()?, value);
                }
                let builder = builder.with_bucket_name(&self.bucket);
                Arc::new(builder.with_client_options(client).with_retry(bucket::retries()).build()?)
            }
        })
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Where it is.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Location {
    /// Opens the store for reading.
    ///
    /// # Errors
    /// Those of [`StoreReader::open`] and [`StoreReader::open_bucket`], [`LocationError`].
    pub fn reader(&self, credentials: &Credentials) -> Result<StoreReader, OpenError> {
        Ok(match self {
            Self::Dir(path) => StoreReader::open(path)?,
            Self::Bucket(address) => StoreReader::open_bucket(address.bucket(credentials)?)?,
        })
    }

    /// Makes a store, unless there is one; says its id.
    ///
    /// # Errors
    /// Those of [`Store::init`] and [`Store::init_bucket`], [`LocationError`].
    pub fn init(&self, credentials: &Credentials) -> Result<[u8; 16], OpenError> {
        Ok(match self {
            Self::Dir(path) => Store::init(path)?,
            Self::Bucket(address) => {
                address.refuse_past()?;
                Store::init_bucket(&address.bucket(credentials)?)?
            }
        })
    }

    /// Opens the store for writing. `staging`: see [`Store::open_bucket`]; a directory needs none.
    ///
    /// # Errors
    /// Those of [`Store::open`] and [`Store::open_bucket`], [`LocationError`].
    pub fn open(&self, credentials: &Credentials, staging: &Path) -> Result<Store, OpenError> {
        Ok(match self {
            Self::Dir(path) => Store::open(path)?,
            Self::Bucket(address) => {
                address.refuse_past()?;
                Store::open_bucket(address.bucket(credentials)?, staging)?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Location, String> {
        text.parse().map_err(|e: LocationError| e.to_string())
    }

    #[test]
    fn addresses_are_what_people_write() {
        assert_eq!(parsed("/srv/farside"), Ok(Location::Dir("/srv/farside".into())));
        assert_eq!(parsed("store"), Ok(Location::Dir("store".into())));
        assert_eq!(parsed("file:///srv/farside"), Ok(Location::Dir("/srv/farside".into())));
        for (text, shown) in [
            ("s3://points", "s3://points"),
            ("s3://points/", "s3://points"),
            ("s3://points/site-1/db?region=eu-1", "s3://points/site-1/db?region=eu-1"),
            ("az://points/a?account-name=acme", "az://points/a?account_name=acme"),
            ("gs://points/a", "gs://points/a"),
            ("s3://points/a?checksum=none", "s3://points/a?checksum=none"),
            ("s3://points?endpoint=http://127.0.0.1:80", "s3://points?endpoint=http://127.0.0.1:80"),
            ("s3://points/a?as-of=2026-11-28T23:00:00+01:00&region=eu-1", "s3://points/a?region=eu-1&as_of=2026-11-28T22:00:00Z"),
        ] {
            let location = parsed(text).expect(text);
            assert_eq!(location.to_string(), shown);
            assert_eq!(parsed(shown), Ok(location), "what is shown means the same");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_secrets_are_not_shown() {
        for (bad, why) in [
            ("", "empty"),
            ("file://srv", "file:///"),
            ("ftp://points/a", "none of a directory"),
            ("s3:///a", "bucket"),
            ("s3://points:80/a", "endpoint"),
            ("s3://points/../a?x", "after `?`"),
            ("s3://points/a b", "prefix may hold"),
            ("s3://points/.hidden", "begins with a dot"),
            ("s3://me:hunter2@points/a", "no credentials"),
            ("s3://points/a?secret_access_key=hunter2", "never credentials"),
            ("s3://points/a?endpoint=http://me:hunter2@host", "no credentials"),
            ("s3://points/a?endpoint=me:hunter2@host:9000", "no credentials"),
            ("s3://a%2Fb/c", "bucket's name"),
            ("s3://points/a?as_of=yesterday", "a moment like"),
            ("s3://points/a?checksum=md5", "may say none"),
            ("s3://points/a?lock=17", "32 hex digits"),
            ("s3://points/a?as_of=2026-11-28T22:00:00Z&lock=00112233445566778899aabbccddeeff", "one moment"),
            ("az://points/a?as_of=2026-11-28T22:00:00Z", "s3:// only"),
        ] {
            let words = parsed(bad).expect_err(bad);
            assert!(words.contains(why), "{bad}: {words}");
            assert!(!words.contains("hunter2"), "{words}");
        }
    }

    #[test]
    fn a_file_of_credentials_is_for_its_owner() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("keys");
        std::fs::write(&path, "# of the gateway\n\nAWS_ACCESS_KEY_ID=abc\nAWS_SECRET_ACCESS_KEY = \"hunter2\"\n").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).expect("chmod");
        assert!(Credentials::read(&path).expect_err("open to all").to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let read = Credentials::read(&path).expect("read");
        assert_eq!(read.0[1], ("aws_secret_access_key".to_owned(), "hunter2".to_owned()));
        assert!(!format!("{read:?}").contains("hunter2"), "{read:?}");
        std::fs::write(&path, "hunter2\n").expect("write");
        let words = Credentials::read(&path).expect_err("no name").to_string();
        assert!(words.contains("line 1") && !words.contains("hunter2"), "{words}");
        std::fs::write(&path, "hunter2hunter2==\n").expect("write");
        let words = Credentials::read(&path).expect_err("a secret alone").to_string();
        assert!(words.contains("line 1") && !words.contains("hunter2"), "{words}");
    }
}
