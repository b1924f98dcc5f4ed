//! The receiver's book of who may connect: paired sources, and tokens that were given out.
//!
//! Invariants: a change is durable before anyone is told of it; a name belongs to one certificate and a certificate to one
//! name; a token pairs one certificate, once. The file is 0600 and holds no secret of a token, only a key derived from it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use farside_region::Name;
use serde::{Deserialize, Serialize};

use crate::identity::{IdentityError, from_hex, later_format, later_words, read_secret_at_most, write_secret};
use crate::token::Secret;
use crate::{CloseCode, Fingerprint, PairingToken};

const BOOK_BYTES_MAX: u64 = 16 << 20;
const FORMAT: u32 = 1;
const TOKENS_MAX: usize = 1_000;
const SOURCES_MAX: usize = 10_000;
/// Addresses that are remembered of one source.
pub(crate) const SITES_MAX: usize = 4;
/// How long a token that is used or expired is remembered, so that its bearer is told which.
const MEMORY_S: u64 = 7 * 24 * 3600;

/// Which token to make.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Where the receiver can be reached: `host:port`, at most 16, each at most 255 bytes.
    pub addresses: Vec<String>,
    /// The receiver's certificate.
    pub receiver: Fingerprint,
    /// How long it is good for, in seconds.
    pub lifetime_s: u64,
    /// The only name it is good for, if any.
    pub source: Option<Name>,
    /// Whether it may take over a name that is paired already.
    pub replace: bool,
}

/// A source that may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairedSource {
    /// Its name.
    pub name: Name,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// When it was paired, in Unix seconds on the receiver's clock.
    pub paired_unix_s: u64,
    /// Where it came from since, as the door counts addresses: the newest last, at most [`SITES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sites: Vec<IpAddr>,
}

/// A token that could still be used, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutstandingToken {
    /// Tells tokens apart; not secret.
    pub id: String,
    /// Unix seconds on the receiver's clock.
    pub expires_unix_s: u64,
    /// The only name it is good for, if any.
    pub source: Option<Name>,
    /// Whether it may take over a name.
    pub replace: bool,
}

/// Why the book cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// The file could not be read or written, or others may read it.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// The file is not a book of pairings.
    #[error(
        "{} is not a list of pairings: {reason}. Put it back from a copy; or move it away, start again, and pair every host anew: \
         farside-receiver token --for NAME here, farside pair TOKEN there",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A later version wrote it.
    #[error("{} {}", path.display(), later_words(*found, FORMAT))]
    Later {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// There are too many tokens that nobody used.
    #[error("{TOKENS_MAX} tokens are outstanding already: let some expire")]
    TooManyTokens,
    /// An address of the request is unusable.
    #[error("`{0}` is not an address: use host:port")]
    Address(String),
    /// The system gave no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
}

/// Why a bearer of a token was not let in. Its text is sent to the bearer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PairingRefusal {
    /// No such token, or the proof is wrong (which the bearer is not told apart).
    #[error("this receiver does not know the token")]
    Unknown,
    /// Somebody used it before.
    #[error("this token was used before")]
    Used,
    /// Too late.
    #[error("this token expired")]
    Expired,
    /// The token is for another name.
    #[error("this token was made for the source `{expected}`, not for `{found}`")]
    OtherSource {
        /// The name in the token.
        expected: Name,
        /// The name that came.
        found: Name,
    },
    /// The name is another machine's.
    #[error("the name `{0}` is paired with another machine: choose another `source.name`, or make a token with `--replace`")]
    NameTaken(Name),
    /// The machine has another name here.
    #[error("this machine is paired already, as `{0}`: make a token with `--replace` to rename it")]
    MachineTaken(Name),
    /// The book is full.
    #[error("this receiver has {SOURCES_MAX} paired sources, which is its limit")]
    Full,
    /// The receiver could not write its book.
    #[error("the receiver could not record the pairing")]
    Storage(#[source] BookError),
}

impl PairingRefusal {
    /// The code to close with.
    pub fn code(&self) -> CloseCode {
        match self {
            Self::Unknown | Self::Used => CloseCode::TokenUnknown,
            Self::Expired => CloseCode::TokenExpired,
            Self::OtherSource { .. } => CloseCode::TokenOtherSource,
            Self::NameTaken(_) | Self::MachineTaken(_) => CloseCode::NameTaken,
            Self::Full => CloseCode::Overloaded,
            Self::Storage(_) => CloseCode::Internal,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    format: u32,
    sources: Vec<PairedSource>,
    tokens: Vec<TokenEntry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    id: String,
    proof_key: String,
    expires_unix_s: u64,
    source: Option<Name>,
    replace: bool,
    used_by: Option<Fingerprint>,
}

/// The book, in memory and in its file. Its methods block on the disk: call the changing ones from blocking threads.
#[derive(Debug)]
pub struct PairingBook {
    path: PathBuf,
    book: Mutex<Book>,
    /// Who changes it.
    changing: Mutex<()>,
}

impl PairingBook {
    /// Opens the book at `path`; an absent file is an empty book.
    ///
    /// # Errors
    /// When the file is damaged or others may read it.
    pub fn open(path: &Path) -> Result<Self, BookError> {
        let damaged = |reason: String| BookError::Damaged { path: path.to_owned(), reason };
        let book = match read_secret_at_most(path, BOOK_BYTES_MAX)? {
            None => Book { format: FORMAT, sources: Vec::new(), tokens: Vec::new() },
            Some(bytes) => match later_format(&bytes, FORMAT) {
                Some(found) => return Err(BookError::Later { path: path.to_owned(), found }),
                None => serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?,
            },
        };
        if book.format != FORMAT {
            return Err(damaged(format!("there is no format {}", book.format)));
        }
        let keys_valid = book.tokens.iter().all(|t| from_hex(&t.proof_key).is_some());
        let unique =
            |i: usize, s: &PairedSource| book.sources[..i].iter().all(|o| o.name != s.name && o.fingerprint != s.fingerprint);
        if !keys_valid || !book.sources.iter().enumerate().all(|(i, s)| unique(i, s)) {
            return Err(damaged("a key is damaged, or a name or certificate appears twice".to_owned()));
        }
        Ok(Self { path: path.to_owned(), book: Mutex::new(book), changing: Mutex::default() })
    }

    /// Makes a token and remembers it durably.
    ///
    /// # Errors
    /// When the book cannot be written, too many tokens are outstanding, or an address is unusable.
    pub fn create_token(&self, request: TokenRequest, now_unix_s: u64) -> Result<PairingToken, BookError> {
        let usable = |a: &String| {
            let (host, port) = a.rsplit_once(':').unwrap_or_default();
            !host.is_empty() && a.len() <= 255 && a.bytes().all(|b| b.is_ascii_graphic()) && port.parse::<u16>().is_ok()
        };
        if let Some(bad) = request.addresses.iter().find(|a| !usable(a)) {
            return Err(BookError::Address(bad.clone()));
        }
        if request.addresses.is_empty() || request.addresses.len() > 16 {
            return Err(BookError::Address(format!("{} addresses", request.addresses.len())));
        }
        let secret = Secret::generate().map_err(BookError::Randomness)?;
        let expires_unix_s = now_unix_s.saturating_add(request.lifetime_s);
        let entry = TokenEntry {
            id: HEXLOWER.encode(&secret.token_id()),
            proof_key: HEXLOWER.encode(&secret.proof_key()),
            expires_unix_s,
            source: request.source.clone(),
            replace: request.replace,
            used_by: None,
        };
        self.change(|book| {
            book.tokens.retain(|t| t.expires_unix_s.saturating_add(MEMORY_S) > now_unix_s);
            if book.tokens.len() >= TOKENS_MAX {
                return Err(BookError::TooManyTokens);
            }
            book.tokens.push(entry);
            Ok(())
        })?;
        Ok(PairingToken {
            addresses: request.addresses,
            receiver: request.receiver,
            secret,
            expires_unix_s,
            source: request.source,
            replace: request.replace,
        })
    }

    /// Pairs the bearer of a token, durably. `proves` says whether the bearer proved to know the secret behind a proof key.
    /// A bearer who was paired by this very token and repeats itself (its answer was lost) succeeds again. Returns the
    /// proof key, and the certificates that this pairing replaced.
    ///
    /// # Errors
    /// [`PairingRefusal`]; nothing has changed then.
    pub(crate) fn redeem(
        &self,
        token_id: &[u8; 8],
        proves: impl FnOnce(&[u8; 32]) -> bool,
        name: &Name,
        fingerprint: Fingerprint,
        now_unix_s: u64,
    ) -> Result<([u8; 32], Vec<Fingerprint>), PairingRefusal> {
        let id = HEXLOWER.encode(token_id);
        let entry = self.lock().tokens.iter().find(|t| t.id == id).cloned().ok_or(PairingRefusal::Unknown)?;
        let key = from_hex(&entry.proof_key).expect("checked when the book was opened");
        if !proves(&key) {
            return Err(PairingRefusal::Unknown);
        }
        let outcome = self.change(|book| Ok(book.pair(&id, name, fingerprint, now_unix_s)));
        outcome.map_err(PairingRefusal::Storage)?.map(|replaced| (key, replaced))
    }

    /// The name under which a certificate is paired.
    pub fn name_of(&self, fingerprint: &Fingerprint) -> Option<Name> {
        self.lock().sources.iter().find(|s| s.fingerprint == *fingerprint).map(|s| s.name.clone())
    }

    /// Whether it is on record that a source came from there.
    pub(crate) fn has_come_from(&self, fingerprint: &Fingerprint, site: IpAddr) -> bool {
        self.lock().sources.iter().find(|s| s.fingerprint == *fingerprint).is_some_and(|s| s.sites.contains(&site))
    }

    /// Records that a paired source came from there: † who guards the door has to know it in its next life, too, when all come at once.
    ///
    /// # Errors
    /// When the book cannot be written.
    pub(crate) fn came_from(&self, fingerprint: &Fingerprint, site: IpAddr) -> Result<(), BookError> {
        self.change(|book| {
            let source = book.sources.iter_mut().find(|s| s.fingerprint == *fingerprint);
            if let Some(source) = source.filter(|source| !source.sites.contains(&site)) {
                source.sites.push(site);
                let many = source.sites.len().saturating_sub(SITES_MAX);
                source.sites.drain(..many);
            }
            Ok(())
        })
    }

    /// Where paired sources came from, and which: of each its newest after all older ones.
    pub(crate) fn sites(&self) -> Vec<(IpAddr, Fingerprint)> {
        let book = self.lock();
        let aged = |age: usize| {
            let one = move |source: &PairedSource| Some((*source.sites.iter().rev().nth(age)?, source.fingerprint));
            book.sources.iter().filter_map(one)
        };
        (0..SITES_MAX).rev().flat_map(aged).collect()
    }

    /// All paired sources, in the order of pairing.
    pub fn sources(&self) -> Vec<PairedSource> {
        self.lock().sources.clone()
    }

    /// All tokens that could still be used.
    pub fn tokens(&self, now_unix_s: u64) -> Vec<OutstandingToken> {
        let usable = |t: &&TokenEntry| t.used_by.is_none() && t.expires_unix_s > now_unix_s;
        let show = |t: &TokenEntry| OutstandingToken {
            id: t.id.clone(),
            expires_unix_s: t.expires_unix_s,
            source: t.source.clone(),
            replace: t.replace,
        };
        self.lock().tokens.iter().filter(usable).map(show).collect()
    }

    /// Forgets a source durably; gives back its certificate, if it was there. Its open connections are not touched.
    ///
    /// # Errors
    /// When the book cannot be written.
    pub fn remove(&self, name: &Name) -> Result<Option<Fingerprint>, BookError> {
        self.change(|book| {
            let at = book.sources.iter().position(|s| s.name == *name);
            Ok(at.map(|at| book.sources.remove(at).fingerprint))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a copy, writes it, and only then lets it be seen.
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> Result<T, BookError>) -> Result<T, BookError> {
        // † Whoever only looks does not wait for a disk: runtimes' threads do.
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.lock().clone();
        let mut next = current.clone();
        let outcome = change(&mut next)?;
        let [before, after] = [&current, &next].map(|book| serde_json::to_vec_pretty(book).expect("a book is plain data"));
        // A token that is tried again and again is no reason to write.
        if before != after {
            write_secret(&self.path, &after)?;
            *self.lock() = next;
        }
        Ok(outcome)
    }
}

impl Book {
    fn pair(
        &mut self,
        id: &str,
        name: &Name,
        fingerprint: Fingerprint,
        now_unix_s: u64,
    ) -> Result<Vec<Fingerprint>, PairingRefusal> {
        let token = self.tokens.iter_mut().find(|t| t.id == id).ok_or(PairingRefusal::Unknown)?;
        let same = |s: &PairedSource| s.name == *name && s.fingerprint == fingerprint;
        match token.used_by {
            Some(user) if user == fingerprint && self.sources.iter().any(same) => return Ok(Vec::new()),
            Some(_) => return Err(PairingRefusal::Used),
            None if token.expires_unix_s <= now_unix_s => return Err(PairingRefusal::Expired),
            None => {}
        }
        if let Some(expected) = token.source.as_ref().filter(|expected| *expected != name) {
            return Err(PairingRefusal::OtherSource { expected: expected.clone(), found: name.clone() });
        }
        if !token.replace {
            if self.sources.iter().any(|s| s.name == *name && s.fingerprint != fingerprint) {
                return Err(PairingRefusal::NameTaken(name.clone()));
            }
            if let Some(other) = self.sources.iter().find(|s| s.name != *name && s.fingerprint == fingerprint) {
                return Err(PairingRefusal::MachineTaken(other.name.clone()));
            }
        }
        if self.sources.len() >= SOURCES_MAX {
            return Err(PairingRefusal::Full);
        }
        token.used_by = Some(fingerprint);
        let gone = |s: &PairedSource| s.name == *name || s.fingerprint == fingerprint;
        // Also what this machine was under another name.
        let replaced = self.sources.iter().filter(|s| gone(s) && !same(s)).map(|s| s.fingerprint).collect();
        self.sources.retain(|s| !gone(s));
        self.sources.push(PairedSource { name: name.clone(), fingerprint, paired_unix_s: now_unix_s, sites: Vec::new() });
        Ok(replaced)
    }
}

#[cfg(test)]
mod tests;
