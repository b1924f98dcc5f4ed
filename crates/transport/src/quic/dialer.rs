//! The source's side: find the receiver, know it by its pin, say who we are.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farside_region::Name;
use quinn::{ConnectionError as QuinnError, Endpoint, TokioRuntime, TransportErrorCode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::configuration::{self, Limits, SERVER_NAME};
use super::frames::{FrameError, FrameReader, write_frame};
use super::handshake::{Answer, EXPORTER_LABEL, OPENING_BYTES_MAX, Opening, PairingProof};
use super::link::{Core, QuicConnection, translate};
use super::socket;
use crate::identity::{IdentityError, read_secret, remove_secret, write_secret};
use crate::token::{Prover, proof};
use crate::{CloseCode, Closed, Connection, Dial, DialError, Fingerprint, Identity, PairingToken};

const PIN_FORMAT: u32 = 1;
/// How long a receiver that ended the control stream has to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The receiver a source is paired with: where it is and what its certificate is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    format: u32,
    /// The receiver's name.
    pub receiver: Name,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// Where it listens: `host:port`, tried in order.
    pub addresses: Vec<String>,
}

/// Why a stored pin cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// The file is not a pin.
    #[error("{} does not describe a receiver: {reason}; pair again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Pin {
    /// A pin of a receiver.
    pub fn new(receiver: Name, fingerprint: Fingerprint, addresses: Vec<String>) -> Self {
        Self { format: PIN_FORMAT, receiver, fingerprint, addresses }
    }

    /// The pin kept in `path`; `None` before the first pairing.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn load(path: &Path) -> Result<Option<Self>, PinError> {
        let damaged = |reason: String| PinError::Damaged { path: path.to_owned(), reason };
        let Some(bytes) = read_secret(path)? else { return Ok(None) };
        let pin: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if pin.format == PIN_FORMAT { Ok(Some(pin)) } else { Err(damaged(format!("format {} is not known", pin.format))) }
    }

    /// Keeps the pin in `path`, atomically, durably, mode 0600.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PinError> {
        let bytes = serde_json::to_vec_pretty(self).expect("a pin is plain data");
        Ok(write_secret(path, &bytes)?)
    }

    /// Takes the pin in `path` away, durably; one that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be removed, or that is not durable.
    pub fn forget(path: &Path) -> Result<(), PinError> {
        Ok(remove_secret(path)?)
    }
}

/// Connects to the paired receiver, whichever it is at the moment.
#[derive(Clone, Debug)]
pub struct QuicDialer {
    identity: Identity,
    source: Name,
    pin: watch::Receiver<Option<Pin>>,
    limits: Limits,
}

impl QuicDialer {
    /// A dialer for the source of this name. It follows `pin`: a new pairing is used at once.
    pub fn new(identity: Identity, source: Name, pin: watch::Receiver<Option<Pin>>, limits: Limits) -> Self {
        Self { identity, source, pin, limits }
    }
}

#[async_trait]
impl Dial for QuicDialer {
    async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
        let mut pins = self.pin.clone();
        let pin = pins.borrow_and_update().clone().ok_or(DialError::NotPaired)?;
        let opening = Opening { source: self.source.clone(), pairing: None };
        let target = Target { addresses: &pin.addresses, fingerprint: pin.fingerprint };
        let (made, answer) = tokio::select! {
            reached = reach(&self.identity, target, &self.limits, |_| opening.clone()) => reached?,
            () = replaced(&mut pins, pin.fingerprint) => return Err(DialError::Replaced),
        };
        let Made { core, send, frames, endpoint, .. } = made;
        // However late in the attempt the pairing ended, or in the life of what came of it: nothing goes there any more.
        let watched = Arc::clone(&core);
        tokio::spawn(async move {
            tokio::select! {
                _ = watched.quinn().closed() => {}
                () = replaced(&mut pins, pin.fingerprint) => watched.close(CloseCode::Done, "not paired with this receiver any more"),
            }
        });
        Ok(QuicConnection::start(core, answer.receiver, pin.fingerprint, send, frames, Some(endpoint)))
    }

    async fn changed(&self) {
        let mut pin = self.pin.clone();
        pin.mark_unchanged();
        if pin.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Completes when it is not the receiver of that certificate that is paired. Cancel-safe.
async fn replaced(pins: &mut watch::Receiver<Option<Pin>>, fingerprint: Fingerprint) {
    if pins.wait_for(|pin| pin.as_ref().is_none_or(|pin| pin.fingerprint != fingerprint)).await.is_err() {
        std::future::pending().await // nobody changes it any more
    }
}

/// Uses a token: connects to its receiver, proves the secret, registers this source's certificate under `source`, and
/// returns the pin to keep. Using it again from the same machine succeeds (an answer may be lost).
///
/// # Errors
/// [`DialError`]; on [`DialError::Refused`] the receiver's text says what is wrong with the token.
pub async fn pair(token: &PairingToken, identity: &Identity, source: &Name, limits: &Limits) -> Result<Pin, DialError> {
    let key = token.secret.proof_key();
    let prove =
        |prover: Prover, session: &[u8; 32]| proof(&key, prover, session, &identity.fingerprint(), &token.receiver, source);
    let opening = |session: &[u8; 32]| {
        let proof = *prove(Prover::Source, session).as_bytes();
        Opening { source: source.clone(), pairing: Some(PairingProof { token_id: token.secret.token_id(), proof }) }
    };
    let target = Target { addresses: &token.addresses, fingerprint: token.receiver };
    let (mut made, answer) = reach(identity, target, limits, opening).await?;
    // blake3's comparison takes the same time whatever differs.
    let proven = answer.proof.is_some_and(|proof| prove(Prover::Receiver, &made.session) == proof);
    let address = made.core.quinn().remote_address().to_string();
    // The receiver closes when it knows that its answer was read.
    let _ = made.send.finish();
    let _ = timeout(Duration::from_secs(1), made.core.quinn().closed()).await;
    made.core.close(CloseCode::Done, "paired");
    if !proven {
        return Err(DialError::Unproven { address });
    }
    Ok(Pin::new(answer.receiver, token.receiver, token.addresses.clone()))
}

struct Target<'a> {
    addresses: &'a [String],
    fingerprint: Fingerprint,
}

/// A connection whose handshake was agreed.
struct Made {
    core: Arc<Core>,
    send: quinn::SendStream,
    frames: FrameReader,
    endpoint: Endpoint,
    session: [u8; 32],
}

/// Tries every address in turn; the most telling error is kept.
async fn reach(
    identity: &Identity,
    target: Target<'_>,
    limits: &Limits,
    opening: impl Fn(&[u8; 32]) -> Opening,
) -> Result<(Made, Answer), DialError> {
    let mut worst = None;
    for address in target.addresses {
        let resolved = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved.take(8).collect::<Vec<_>>(),
            Err(error) => {
                worst = Some(telling(worst, DialError::Unresolved { address: address.clone(), reason: error.to_string() }));
                continue;
            }
        };
        for socket_address in resolved {
            let attempt = reach_one(identity, socket_address, target.fingerprint, limits, &opening);
            match timeout(limits.handshake_timeout, attempt).await {
                Ok(Ok(made)) => return Ok(made),
                Ok(Err(error)) => worst = Some(telling(worst, error)),
                Err(_) => worst = Some(telling(worst, DialError::Unreachable { address: socket_address.to_string() })),
            }
        }
    }
    Err(worst.unwrap_or_else(|| DialError::Unreachable { address: target.addresses.join(", ") }))
}

/// Which of two errors says more about what to do.
fn telling(before: Option<DialError>, now: DialError) -> DialError {
    let rank = |error: &DialError| match error {
        DialError::Refused { .. } | DialError::Unproven { .. } => 5,
        DialError::WrongReceiver { .. } => 4,
        DialError::Incompatible { .. } => 3,
        DialError::Local(_) => 2,
        DialError::Unreachable { .. } => 1,
        _ => 0,
    };
    match before {
        Some(before) if rank(&before) > rank(&now) => before,
        _ => now,
    }
}

async fn reach_one(
    identity: &Identity,
    address: SocketAddr,
    expected: Fingerprint,
    limits: &Limits,
    opening: &impl Fn(&[u8; 32]) -> Opening,
) -> Result<(Made, Answer), DialError> {
    let local = |error: &dyn std::fmt::Display| DialError::Local(error.to_string());
    let unspecified = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let (socket, _) = socket::bind(unspecified, limits.socket_buffer_bytes).map_err(|e| local(&e))?;
    let endpoint = Endpoint::new_with_abstract_socket(configuration::endpoint(identity), None, socket, Arc::new(TokioRuntime))
        .map_err(|e| local(&e))?;
    let (config, verifier) = configuration::client(identity, expected, limits).map_err(|e| local(&e))?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|e| local(&e))?;
    let connection = connecting.await.map_err(|error| match verifier.stranger() {
        Some(found) => DialError::WrongReceiver { address: address.to_string(), expected, found },
        None => explain(address, &error),
    })?;
    let core = Core::new(connection);
    let (mut send, receive) = core.quinn().open_bi().await.map_err(|e| explain(address, &e))?;
    let mut session = [0; 32];
    core.quinn().export_keying_material(&mut session, EXPORTER_LABEL, b"").map_err(|_| local(&"TLS exports no key material"))?;
    let mut frames = FrameReader::new(receive);
    // If the write fails the connection is closed, and the read says why.
    let _ = write_frame(&mut send, opening(&session).encode()).await;
    let answer = match frames.next(OPENING_BYTES_MAX).await {
        Ok(frame) => Answer::decode(&frame),
        Err(FrameError::Lost(error)) => return Err(explain(address, &error)),
        // The control stream of a refused connection may end a packet before the connection does, which says why.
        Err(FrameError::Ended | FrameError::Torn) => match timeout(LAST_WORDS, core.quinn().closed()).await {
            Ok(error) => return Err(explain(address, &error)),
            Err(_) => None,
        },
        Err(FrameError::TooLong(_)) => None,
    };
    let garbled = || DialError::Incompatible { address: address.to_string(), reason: "its answer makes no sense".to_owned() };
    let answer = answer.ok_or_else(|| {
        core.close(CloseCode::Protocol, "the answer makes no sense");
        garbled()
    })?;
    Ok((Made { core, send, frames, endpoint, session }, answer))
}

/// Why there is no connection, when the certificate was not the reason.
fn explain(address: SocketAddr, error: &QuinnError) -> DialError {
    let incompatible = |reason: String| DialError::Incompatible { address: address.to_string(), reason };
    match error {
        QuinnError::VersionMismatch => incompatible("no QUIC version in common".to_owned()),
        QuinnError::TransportError(e) => incompatible(e.to_string()),
        QuinnError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            DialError::Refused { code: CloseCode::Overloaded, reason: "too many connections".to_owned() }
        }
        QuinnError::ConnectionClosed(close) => incompatible(close.to_string()),
        other => match translate(other) {
            Closed::ByPeer { code, reason } => DialError::Refused { code, reason },
            _ => DialError::Unreachable { address: address.to_string() },
        },
    }
}
