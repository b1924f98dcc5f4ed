//! Who this machine is: one key and one self-signed certificate, made at first start and kept for ever.
//!
//! Invariant: the private key is never in a file that anyone but its owner can read, and never printed. The certificate
//! carries no meaning but its fingerprint: validity, issuer and names are not looked at by anyone.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

const KEY_FILE: &str = "identity.key";
const CERTIFICATE_FILE: &str = "identity.crt";
/// No file of ours is longer; a longer one is not ours.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// The SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` shows it without colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        // The only door that rustls leaves open to its SHA-256.
        let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("it is one of TLS 1.3");
        let hash = suite.common.hash_provider.hash(certificate_der);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl FromStr for Fingerprint {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        from_hex(text).map(Self).ok_or(IdentityError::NotAFingerprint)
    }
}

/// 32 bytes from 64 hexadecimal digits.
pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A secret file can be read by others.
    #[error("{} can be read by others (mode {mode:04o}): run `chmod 600` on it, and pair anew if anyone may have read it", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret file belongs to another user.
    #[error("{} belongs to user {owner}, not to the user of this process", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A file is there but is not what it should be.
    #[error("{} is damaged: {reason}; move it away to get a new identity (and pair anew), or restore it", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is there but its key is not.
    #[error("{} is missing although the certificate is there: restore it, or move both away and pair anew", path.display())]
    KeyMissing {
        /// Where the key should be.
        path: PathBuf,
    },
    /// The key is there, and somebody knows its certificate, which is not.
    #[error("{} is missing, by which others know this machine: restore it, or move {KEY_FILE} away, too, and pair anew", path.display())]
    CertificateMissing {
        /// Where the certificate should be.
        path: PathBuf,
    },
    /// Key or certificate could not be made.
    #[error("a key could not be made: {0}")]
    Generate(String),
    /// A text that should be a fingerprint.
    #[error("a fingerprint is 64 hexadecimal digits")]
    NotAFingerprint,
}

/// A private key and its certificate. Cheap to clone; does not print its key.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.inner.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity kept in `directory`, made (with the directory, mode 0700) when there is none. `pairings`: a file that is there once
    /// somebody may have seen the certificate.
    ///
    /// # Errors
    /// When a file is damaged, missing its other half, or readable by others: nothing is repaired silently.
    pub fn load_or_create(directory: &Path, pairings: &Path) -> Result<Self, IdentityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| io_error(directory, e))?;
        let (key_path, certificate_path) = (directory.join(KEY_FILE), directory.join(CERTIFICATE_FILE));
        let certificate = read_secret(&certificate_path)?;
        let key = read_secret(&key_path)?;
        match (key, certificate) {
            (Some(key), Some(certificate)) => Self::parse(&key, &key_path, &certificate, &certificate_path),
            (None, Some(_)) => Err(IdentityError::KeyMissing { path: key_path }),
            // † A key that is in use is good for nothing without its certificate, and what is written over it is gone.
            (Some(_), None) if pairings.symlink_metadata().is_ok() => {
                Err(IdentityError::CertificateMissing { path: certificate_path })
            }
            // A key alone is a first start that was cut short: nobody has seen its certificate.
            (_, None) => {
                let (identity, key_pem, certificate_pem) = Self::generate()?;
                write_secret(&key_path, key_pem.as_bytes())?;
                write_secret(&certificate_path, certificate_pem.as_bytes())?;
                Ok(identity)
            }
        }
    }

    /// An identity that lives in memory only, for tests and benchmarks.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::generate().map(|(identity, _, _)| identity)
    }

    /// The SHA-256 of the certificate: what the other side pins.
    pub fn fingerprint(&self) -> Fingerprint {
        self.inner.fingerprint
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.inner.certificate.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.inner.key.clone_key()
    }

    fn generate() -> Result<(Self, String, String), IdentityError> {
        let failed = |e: rcgen::Error| IdentityError::Generate(e.to_string());
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let mut parameters = rcgen::CertificateParams::new(vec!["farside".to_owned()]).map_err(failed)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "farside");
        let certificate = parameters.self_signed(&key).map_err(failed)?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| IdentityError::Generate(e.to_owned()))?;
        Ok((Self::assemble(certificate.der().clone(), der), key.serialize_pem(), certificate.pem()))
    }

    fn parse(key: &[u8], key_path: &Path, certificate: &[u8], certificate_path: &Path) -> Result<Self, IdentityError> {
        let damaged = |path: &Path, reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
        let der = CertificateDer::from_pem_slice(certificate).map_err(|e| damaged(certificate_path, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| damaged(key_path, e.to_string()))?;
        let identity = Self::assemble(der, key);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::sign::CertifiedKey::from_der(vec![identity.certificate()], identity.key(), &provider)
            .map_err(|e| damaged(key_path, format!("key and certificate do not belong together ({e})")))?;
        Ok(identity)
    }

    fn assemble(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Self {
        let fingerprint = Fingerprint::of(&certificate);
        Self { inner: Arc::new(Inner { certificate, key, fingerprint }) }
    }
}

fn io_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_owned(), source }
}

/// The content of a file that only its owner may read; `None` when there is no such file.
pub(crate) fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    read_secret_at_most(path, PEM_BYTES_MAX)
}

/// As [`read_secret`], for files that may be longer.
pub(crate) fn read_secret_at_most(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, e)),
    };
    let metadata = file.metadata().map_err(|e| io_error(path, e))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    let (owner, own) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if owner != own && own != 0 {
        return Err(IdentityError::Foreign { path: path.to_owned(), owner });
    }
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(|e| io_error(path, e))?;
    if content.len() as u64 > bytes_max {
        return Err(IdentityError::Damaged { path: path.to_owned(), reason: format!("it is longer than {bytes_max} bytes") });
    }
    Ok(Some(content))
}

/// Replaces a file atomically and durably; nobody but the owner can read it, at any moment.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    };
    write().map_err(|e| io_error(path, e))
}

/// Removes a file durably; one that is not there is no error.
pub(crate) fn remove_secret(path: &Path) -> Result<(), IdentityError> {
    let remove = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    };
    remove().map_err(|e| io_error(path, e))
}

/// The format of a file of ours, if that is a later one than is known. † Such a file is whole, and what was added to it is no damage.
pub(crate) fn later_format(bytes: &[u8], known: u32) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Which {
        format: u32,
    }
    serde_json::from_slice(bytes).ok().map(|Which { format }| format).filter(|format| *format > known)
}

/// What is said of it, behind its name.
pub(crate) fn later_words(found: u32, known: u32) -> String {
    format!(
        "was written by a later version of Farside (format {found}, and this one reads {known}): it is whole. Install that version again; nothing is to be removed"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn load(directory: &Path) -> Result<Identity, IdentityError> {
        Identity::load_or_create(directory, &directory.join("pairings.json"))
    }

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = directory.path().join("state");
        let first = load(&state).expect("made");
        let second = load(&state).expect("loaded");
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.key(), second.key());
        for file in [KEY_FILE, CERTIFICATE_FILE] {
            let mode = fs::metadata(state.join(file)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        load(directory.path()).expect("made");
        fs::set_permissions(directory.path().join(KEY_FILE), fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = load(directory.path()).expect_err("refused");
        assert!(matches!(error, IdentityError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn half_an_identity_is_not_replaced_silently() {
        let directory = tempfile::tempdir().expect("tempdir");
        let first = load(directory.path()).expect("made");
        fs::rename(directory.path().join(KEY_FILE), directory.path().join("kept")).expect("moved");
        assert!(matches!(load(directory.path()), Err(IdentityError::KeyMissing { .. })));

        let other = tempfile::tempdir().expect("tempdir");
        load(other.path()).expect("made");
        fs::copy(other.path().join(KEY_FILE), directory.path().join(KEY_FILE)).expect("copied");
        assert!(matches!(load(directory.path()), Err(IdentityError::Damaged { .. })));

        fs::write(directory.path().join(KEY_FILE), "nonsense").expect("written");
        assert!(matches!(load(directory.path()), Err(IdentityError::Damaged { .. })));

        // A key without its certificate is a first start that was cut short.
        fs::rename(directory.path().join("kept"), directory.path().join(KEY_FILE)).expect("moved");
        fs::remove_file(directory.path().join(CERTIFICATE_FILE)).expect("removed");
        let pairings = directory.path().join("pairings.json");
        fs::write(&pairings, "{}").expect("written");
        assert!(matches!(load(directory.path()), Err(IdentityError::CertificateMissing { .. })), "somebody knows it");
        fs::remove_file(pairings).expect("removed");
        let anew = load(directory.path()).expect("made anew");
        assert_ne!(anew.fingerprint(), first.fingerprint());
    }

    #[test]
    fn fingerprints_are_sha_256_in_hex() {
        let empty = Fingerprint::of(b"");
        assert_eq!(empty.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(empty.to_string().parse::<Fingerprint>().expect("parsed"), empty);
        for bad in ["", "e3", &"g".repeat(64), &"e".repeat(65), &"e".repeat(63)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
