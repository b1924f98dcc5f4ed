//! A group's key as it may be stored: encrypted under what a [`Keeper`] gives. JSON, for people too.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use data_encoding::HEXLOWER;
use farside_region::KeyId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::group::GroupKey;
use crate::keeper::{self, Keeper, KeeperError};
use crate::secret::Secret;

/// The largest wrapping, as a file.
pub const WRAPPING_BYTES_MAX: usize = 64 << 10;
/// So many wrapped keys a group may have, in a store as on its host.
pub const WRAPPINGS_MAX: u64 = 64;
/// What guessing a passphrase costs, at the least: as RFC 9106 recommends where memory is not plentiful.
pub const ARGON2_DEFAULT: Argon2Cost = Argon2Cost { memory_kib: 64 << 10, passes: 3, lanes: 4 };
/// What a wrapping may ask of whoever opens it: it may come from a store that is not trusted.
const ARGON2_MAX: Argon2Cost = Argon2Cost { memory_kib: 1 << 20, passes: 16, lanes: 64 };

const FORMAT: &str = "farside key";
/// Of a key that says nothing of a group, and of one that is bound to its group.
const VERSION: u32 = 1;
const VERSION_BOUND: u32 = 2;

/// What Argon2id takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// How often it is gone through.
    pub passes: u32,
    /// Its degree of parallelism.
    pub lanes: u32,
}

/// A group's key, wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapping {
    key: KeyId,
    group: Option<String>,
    by: By,
    /// What its file says of all others; an earlier Farside's says nothing.
    digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Passphrase { cost: Argon2Cost, salt: [u8; 16], nonce: [u8; 12], wrapped: [u8; 48] },
    File { nonce: [u8; 12], wrapped: [u8; 48] },
    Command { wrapped: Vec<u8> },
}

/// The JSON.
#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon2Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    wrapped: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Argon2Text {
    #[serde(flatten)]
    cost: Argon2Cost,
    salt: String,
}

/// Why a key cannot be wrapped or unwrapped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WrapError {
    /// These bytes are none.
    #[error("this is not a wrapped key: {0}")]
    Format(String),
    /// Written by a newer Farside: update this one.
    #[error("the wrapped key has format version {0}; this program knows those up to {VERSION_BOUND}")]
    Version(u32),
    /// It is wrapped in another way.
    #[error("the key {key} is wrapped by a {wrapped}, and a {given} was given")]
    OtherWay {
        /// Which key.
        key: KeyId,
        /// What it takes.
        wrapped: &'static str,
        /// What was given.
        given: &'static str,
    },
    /// The secret is not the one that it was wrapped with.
    #[error("this {by} does not open the key {key}")]
    Wrong {
        /// Which key.
        key: KeyId,
        /// What was given.
        by: &'static str,
    },
    /// It does not open, and is not what was written: the secret may well be the right one.
    #[error("the wrapped key is damaged: its digest is not that of its other fields; put it back from a copy ({source})")]
    Damaged {
        /// What came of it.
        source: Box<WrapError>,
    },
    /// The secret cannot be had.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The system gives none.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
    /// Too little memory, as a rule.
    #[error("Argon2id failed: {0}")]
    Argon2(argon2::Error),
}

impl Keeper {
    fn way(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Passphrase(_) | Self::PassphraseFile(_) => "passphrase",
            Self::Command(_) => "command",
        }
    }
}

impl Wrapping {
    /// Wraps a key that its host keeps: it says nothing of a group.
    ///
    /// # Errors
    /// See [`WrapError`].
    pub fn new(key: &GroupKey, keeper: &Keeper, cost: Argon2Cost) -> Result<Self, WrapError> {
        Self::of(None, key, keeper, cost)
    }

    /// Wraps a key with which a group, `SOURCE/GROUP`, is kept encrypted at rest. † One keeper keeps those of many groups: in the folder of
    /// another one this must be of no use.
    ///
    /// # Errors
    /// See [`WrapError`].
    pub fn at_rest(group: &str, key: &GroupKey, keeper: &Keeper, cost: Argon2Cost) -> Result<Self, WrapError> {
        Self::of(Some(group), key, keeper, cost)
    }

    /// Wraps a key once more, for the group that this is bound to, if it is to one.
    ///
    /// # Errors
    /// See [`WrapError`].
    pub fn again(&self, key: &GroupKey, keeper: &Keeper, cost: Argon2Cost) -> Result<Self, WrapError> {
        Self::of(self.group.as_deref(), key, keeper, cost)
    }

    fn of(group: Option<&str>, key: &GroupKey, keeper: &Keeper, cost: Argon2Cost) -> Result<Self, WrapError> {
        let by = match keeper {
            Keeper::File(path) => {
                let (nonce, kek) = (random()?, file_kek(&Keeper::file(path)?));
                By::File { nonce, wrapped: wrap(&kek, nonce, &aad((key.id(), group), "file", None), key) }
            }
            Keeper::Passphrase(_) | Keeper::PassphraseFile(_) => {
                let passphrase = keeper.passphrase()?.expect("it is one");
                let (salt, nonce) = (random()?, random()?);
                let kek = passphrase_kek(&passphrase, cost, &salt)?;
                let wrapped = wrap(&kek, nonce, &aad((key.id(), group), "passphrase", Some((cost, &salt))), key);
                By::Passphrase { cost, salt, nonce, wrapped }
            }
            Keeper::Command(words) => {
                let wrapped = keeper::run(words, "wrap", &told(key, group))?;
                if wrapped.windows(32).any(|piece| piece == key.secret().bytes()) {
                    let why = "it gave back the key itself".to_owned();
                    return Err(KeeperError::Command { command: keeper::program(words), verb: "wrap", why }.into());
                }
                By::Command { wrapped: wrapped.to_vec() }
            }
        };
        let mut wrapping = Self { key: key.id(), group: group.map(str::to_owned), by, digest: None };
        wrapping.digest = Some(wrapping.digest());
        // One that cannot be unwrapped would be found out on the worst day.
        match Self::decode(&wrapping.encode()).and_then(|read| read.unwrap(keeper)) {
            Ok(again) if again.id() == key.id() => Ok(wrapping),
            Ok(_) => unreachable!("what is unwrapped has the id that the wrapping says"),
            Err(error) => Err(error),
        }
    }

    /// Which key it holds.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// The group, `SOURCE/GROUP`, that it is kept encrypted at rest with; `None`: its host keeps it, for encryption end to end. What opens
    /// was wrapped for just that.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// What a passphrase costs, as whoever wrote this says.
    pub fn cost(&self) -> Option<Argon2Cost> {
        match &self.by {
            By::Passphrase { cost, .. } => Some(*cost),
            By::File { .. } | By::Command { .. } => None,
        }
    }

    /// What unwraps it: `file`, `passphrase` or `command`.
    pub fn way(&self) -> &'static str {
        match &self.by {
            By::Passphrase { .. } => "passphrase",
            By::File { .. } => "file",
            By::Command { .. } => "command",
        }
    }

    /// Whether it is not what was written. Of one without a digest, an earlier Farside's, nobody can tell.
    pub fn is_damaged(&self) -> bool {
        self.digest.as_ref().is_some_and(|digest| *digest != self.digest())
    }

    /// The key. † A damaged one is tried all the same: where nothing but its digest is damaged it opens, and may be the last one.
    ///
    /// # Errors
    /// [`WrapError::Wrong`]; [`WrapError::Damaged`]; see [`WrapError`].
    pub fn unwrap(&self, keeper: &Keeper) -> Result<GroupKey, WrapError> {
        self.opened(keeper).map_err(|error| match error {
            WrapError::Wrong { .. } | WrapError::Keeper(KeeperError::Command { .. }) if self.is_damaged() => {
                WrapError::Damaged { source: Box::new(error) }
            }
            error => error,
        })
    }

    fn opened(&self, keeper: &Keeper) -> Result<GroupKey, WrapError> {
        let other = || WrapError::OtherWay { key: self.key, wrapped: self.way(), given: keeper.way() };
        let wrong = || WrapError::Wrong { key: self.key, by: keeper.way() };
        let of = (self.key, self.group());
        let secret = match (&self.by, keeper) {
            (By::File { nonce, wrapped }, Keeper::File(path)) => {
                unwrap(&file_kek(&Keeper::file(path)?), *nonce, &aad(of, "file", None), wrapped)
            }
            (By::Passphrase { cost, salt, nonce, wrapped }, _) => {
                let kek = passphrase_kek(&keeper.passphrase()?.ok_or_else(other)?, *cost, salt)?;
                unwrap(&kek, *nonce, &aad(of, "passphrase", Some((*cost, salt))), wrapped)
            }
            (By::Command { wrapped }, Keeper::Command(words)) => {
                let plain = keeper::run(words, "unwrap", wrapped)?;
                let key = plain.first_chunk().map(|bytes| GroupKey::new(Secret::new(bytes)));
                let key = key.filter(|key| told(key, self.group())[..] == plain[..]);
                key.map(|key| key.secret().clone())
            }
            _ => return Err(other()),
        };
        secret.map(GroupKey::new).filter(|key| key.id() == self.key).ok_or_else(wrong)
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&self.text()).expect("plain data always serialises into memory");
        bytes.push(b'\n');
        bytes
    }

    /// The digest of all fields but that.
    fn digest(&self) -> String {
        let text = self.text();
        let mut lines = format!("format={}\nversion={}\nkey={}\n", text.format, text.version, text.key);
        let mut line = |name: &str, value: Option<String>| lines.extend(value.map(|value| format!("{name}={value}\n")));
        line("group", text.group);
        line("by", Some(text.by));
        if let Some(Argon2Text { cost, salt }) = text.argon2id {
            line("memory_kib", Some(cost.memory_kib.to_string()));
            line("passes", Some(cost.passes.to_string()));
            line("lanes", Some(cost.lanes.to_string()));
            line("salt", Some(salt));
        }
        line("nonce", text.nonce);
        line("wrapped", Some(text.wrapped));
        HEXLOWER.encode(blake3::hash(lines.as_bytes()).as_bytes())
    }

    fn text(&self) -> Text {
        let (argon2id, nonce, wrapped) = match &self.by {
            By::Passphrase { cost, salt, nonce, wrapped } => {
                (Some(Argon2Text { cost: *cost, salt: HEXLOWER.encode(salt) }), Some(nonce), &wrapped[..])
            }
            By::File { nonce, wrapped } => (None, Some(nonce), &wrapped[..]),
            By::Command { wrapped } => (None, None, &wrapped[..]),
        };
        Text {
            format: FORMAT.to_owned(),
            version: if self.group.is_some() { VERSION_BOUND } else { VERSION },
            key: self.key.to_string(),
            group: self.group.clone(),
            by: self.way().to_owned(),
            argon2id,
            nonce: nonce.map(|nonce| HEXLOWER.encode(nonce)),
            wrapped: HEXLOWER.encode(wrapped),
            digest: self.digest.clone(),
        }
    }

    /// Reads a wrapping from its file.
    ///
    /// # Errors
    /// [`WrapError::Format`], [`WrapError::Version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WrapError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let bad = |why: &str| WrapError::Format(why.to_owned());
        if bytes.len() > WRAPPING_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| WrapError::Format(e.to_string()))?;
        if head.format != FORMAT {
            return Err(bad(&format!("it is a {}", head.format)));
        }
        if !matches!(head.version, VERSION | VERSION_BOUND) {
            return Err(WrapError::Version(head.version));
        }
        let text: Text = serde_json::from_slice(bytes).map_err(|e| WrapError::Format(e.to_string()))?;
        let group = match head.version {
            VERSION => None,
            _ => Some(text.group.clone().ok_or_else(|| bad("`group` is missing"))?),
        };
        let key = KeyId(fixed(&text.key).ok_or_else(|| bad("`key` is not 32 hex digits"))?);
        let nonce = || text.nonce.as_deref().and_then(fixed).ok_or_else(|| bad("`nonce` is not 24 hex digits"));
        let wrapped = || fixed(&text.wrapped).ok_or_else(|| bad("`wrapped` is not 96 hex digits"));
        let by = match text.by.as_str() {
            "passphrase" => {
                let argon2id = text.argon2id.as_ref().ok_or_else(|| bad("`argon2id` is missing"))?;
                let salt = fixed(&argon2id.salt).ok_or_else(|| bad("`salt` is not 32 hex digits"))?;
                let (cost, max) = (argon2id.cost, ARGON2_MAX);
                if cost.memory_kib > max.memory_kib || cost.passes > max.passes || cost.lanes > max.lanes {
                    return Err(bad("Argon2id would take more than is reasonable"));
                }
                By::Passphrase { cost, salt, nonce: nonce()?, wrapped: wrapped()? }
            }
            "file" => By::File { nonce: nonce()?, wrapped: wrapped()? },
            "command" => {
                let wrapped = HEXLOWER.decode(text.wrapped.as_bytes()).map_err(|_| bad("`wrapped` is not hex digits"))?;
                By::Command { wrapped }
            }
            other => return Err(bad(&format!("it is wrapped by `{other}`"))),
        };
        Ok(Self { key, group, by, digest: text.digest })
    }
}

fn fixed<const N: usize>(hex: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

fn random<const N: usize>() -> Result<[u8; N], WrapError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(WrapError::Randomness)?;
    Ok(bytes)
}

fn file_kek(bytes: &Zeroizing<Vec<u8>>) -> Secret {
    Secret::derive("farside 2026 key file v1", &[bytes])
}

fn passphrase_kek(passphrase: &Zeroizing<Vec<u8>>, cost: Argon2Cost, salt: &[u8; 16]) -> Result<Secret, WrapError> {
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(WrapError::Argon2)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut kek = Secret::new(&[0; 32]);
    argon2.hash_password_into(passphrase, salt, kek.bytes_mut()).map_err(WrapError::Argon2)?;
    Ok(kek)
}

/// What a wrapping binds beside the key: which key it is, how it is wrapped, and at rest of which group.
fn aad((key, group): (KeyId, Option<&str>), by: &str, argon2: Option<(Argon2Cost, &[u8; 16])>) -> Vec<u8> {
    let head: &[u8] = if group.is_some() { b"farside key v2\0" } else { b"farside key v1\0" };
    let mut bytes = [head, &key.0[..], by.as_bytes(), b"\0"].concat();
    if let Some(group) = group {
        bytes.extend_from_slice(group.as_bytes());
        bytes.push(0);
    }
    if let Some((cost, salt)) = argon2 {
        [cost.memory_kib, cost.passes, cost.lanes].iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
        bytes.extend_from_slice(salt);
    }
    bytes
}

/// What a program is given to be wrapped: the key, and at rest what says of which group it is. † That is with the key, and not beside it: nobody
/// but the program must be able to put it there.
fn told(key: &GroupKey, group: Option<&str>) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(64)); // so that it is not moved as it grows
    bytes.extend_from_slice(key.secret().bytes());
    if let Some(group) = group {
        bytes.extend_from_slice(
            Secret::derive("farside 2026 group key at rest v1", &[key.secret().bytes(), group.as_bytes()]).bytes(),
        );
    }
    bytes
}

fn gcm(kek: &Secret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, kek.bytes()).expect("32 bytes are a key of AES-256"))
}

fn wrap(kek: &Secret, nonce: [u8; 12], aad: &[u8], key: &GroupKey) -> [u8; 48] {
    let mut wrapped = [0; 48];
    let (cipher, room) = wrapped.split_at_mut(32);
    cipher.copy_from_slice(key.secret().bytes());
    let tag = gcm(kek).seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), cipher);
    room.copy_from_slice(tag.expect("32 bytes are far below what AES-GCM allows").as_ref());
    wrapped
}

fn unwrap(kek: &Secret, nonce: [u8; 12], aad: &[u8], wrapped: &[u8; 48]) -> Option<Secret> {
    let mut plain = Secret::new(&[0; 32]);
    let (cipher, tag) = wrapped.split_at(32);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let opened = gcm(kek).open_separate_gather(nonce, Aad::from(aad), cipher, tag, plain.bytes_mut());
    opened.ok().map(|()| plain)
}
