//! The source's patience: one connection at a time, for ever, and a true word about why there is none now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{Backoff, CloseCode, Closed, Connection, Fingerprint, Peer};

/// First delay before trying again; doubles up to `RETRY_CAP`.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest delay before trying again.
const RETRY_CAP: Duration = Duration::from_secs(20);
/// A connection that lived this long was a success: the next failure starts from `RETRY_FIRST`.
const LIVED_LONG: Duration = Duration::from_secs(2);

/// Makes one connection.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Tries once, in bounded time.
    ///
    /// # Errors
    /// [`DialError`].
    async fn dial(&self) -> Result<Arc<dyn Connection>, DialError>;

    /// Completes when something changed (a new pairing) that makes trying at once worthwhile. Cancel-safe.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// Completes with a connection to the same peer that is to take the place of `current`, once there is a better way to it. Cancel-safe.
    async fn better(&self, _current: &dyn Connection) -> Arc<dyn Connection> {
        std::future::pending().await
    }
}

/// Dials when it may, and no sooner.
#[derive(Debug)]
pub struct DialLater<D> {
    dial: D,
    may: watch::Receiver<bool>,
}

impl<D: Dial> DialLater<D> {
    /// As `dial` does, from when on `may` is true.
    pub fn new(dial: D, may: watch::Receiver<bool>) -> Self {
        Self { dial, may }
    }
}

#[async_trait]
impl<D: Dial> Dial for DialLater<D> {
    async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
        // Nobody is left who could say it: so is whoever waits.
        let _ = self.may.clone().wait_for(|may| *may).await;
        self.dial.dial().await
    }

    async fn changed(&self) {
        self.dial.changed().await;
    }

    async fn better(&self, current: &dyn Connection) -> Arc<dyn Connection> {
        self.dial.better(current).await
    }
}

/// Why there is no connection. Each says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// There is no receiver to connect to yet.
    #[error("not paired with a receiver: run `farside-receiver token` there and `farside pair TOKEN` here")]
    NotPaired,
    /// The pairing ended, or became another, during the attempt.
    #[error("the pairing was changed during the attempt: the next one goes to whoever is paired now")]
    Replaced,
    /// The receiver's name cannot be resolved.
    #[error("the receiver's address `{address}` cannot be resolved: {reason}")]
    Unresolved {
        /// The address that was paired.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "the receiver at {address} does not answer{}: check that it runs and that UDP, or at least TCP, reaches it",
        over_tcp.as_ref().map(|said| format!(" (over TCP: {said})")).unwrap_or_default()
    )]
    Unreachable {
        /// Where it was tried.
        address: String,
        /// What was met over TCP, if it was tried and something was said.
        over_tcp: Option<String>,
    },
    /// Somebody else answers there.
    #[error(
        "{address} is not the receiver this source is paired with (certificate {found}, expected {expected}): \
             if the receiver was reinstalled, pair again"
    )]
    WrongReceiver {
        /// Where.
        address: String,
        /// The pinned certificate.
        expected: Fingerprint,
        /// The one that was shown.
        found: Fingerprint,
    },
    /// The receiver says no.
    #[error("the receiver refused: {reason}")]
    Refused {
        /// Why.
        code: CloseCode,
        /// Its words.
        reason: String,
    },
    /// Something answers, but not in our protocol or version.
    #[error("{address} does not speak this protocol version: {reason}")]
    Incompatible {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The receiver took the token but could not prove that it made it.
    #[error("the receiver at {address} could not prove that it made this token")]
    Unproven {
        /// Where.
        address: String,
    },
    /// Something on this machine failed.
    #[error("no connection can be made here: {0}")]
    Local(String),
}

/// What the connector is doing, for status.
#[derive(Clone, Debug)]
pub enum ConnectorState {
    /// Trying now.
    Dialing {
        /// Why the last attempt or connection ended, if there was one.
        last: Option<NotConnected>,
    },
    /// Waiting before the next attempt.
    Waiting {
        /// Why there is no connection.
        why: NotConnected,
        /// When the next attempt begins.
        until: Instant,
        /// Failed attempts in a row.
        failures: u32,
    },
    /// Connected.
    Connected {
        /// With whom.
        peer: Peer,
        /// Since when.
        since: Instant,
    },
}

/// Why there is no connection: none came about, or the last one ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotConnected {
    /// It was not made.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It ended.
    #[error("the connection ended: {0}")]
    Ended(#[from] Closed),
}

/// Connects, again and again.
pub struct Connector {
    dial: Arc<dyn Dial>,
    backoff: Backoff,
    random: fn() -> u64,
    state: watch::Sender<ConnectorState>,
    current: Option<(Arc<dyn Connection>, Instant)>,
    /// What takes its place.
    next: Option<Arc<dyn Connection>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that has not tried yet.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self::with_backoff(dial, Backoff::new(RETRY_FIRST, RETRY_CAP))
    }

    /// As [`Connector::new`], with other delays.
    pub fn with_backoff(dial: Arc<dyn Dial>, backoff: Backoff) -> Self {
        let (state, _) = watch::channel(ConnectorState::Dialing { last: None });
        Self { dial, backoff, random, state, current: None, next: None }
    }

    /// What it is doing; follows every change.
    pub fn state(&self) -> watch::Receiver<ConnectorState> {
        self.state.subscribe()
    }

    /// Waits for the current connection (if any) to end, then tries until there is a new one. Cancel-safe: called again, it
    /// goes on from where it was, except that an attempt under way starts over.
    pub async fn next(&mut self) -> Arc<dyn Connection> {
        if let Some((connection, since)) = &self.current {
            let why = NotConnected::Ended(connection.closed().await);
            if since.elapsed() >= LIVED_LONG {
                self.backoff.reset();
            }
            self.current = None;
            match self.next.take() {
                Some(next) if next.close_reason().is_none() => return self.connected(next),
                _ => self.pause(why).await,
            }
        }
        loop {
            self.state.send_modify(|state| *state = ConnectorState::Dialing { last: why_of(state) });
            match self.dial.dial().await {
                Ok(connection) => return self.connected(connection),
                // Whoever is paired now was not tried yet.
                Err(DialError::Replaced) => self.backoff.reset(),
                Err(error) => self.pause(NotConnected::Dial(error)).await,
            }
        }
    }

    /// Waits until there is a better way than the current connection, makes one there that [`Connector::next`] gives out, and closes the
    /// current one. To be awaited beside its use. Cancel-safe.
    pub async fn switch(&mut self) {
        let Some((current, _)) = &self.current else { return std::future::pending().await };
        let next = self.dial.better(&**current).await;
        let words = format!("it goes on over {}", next.peer().carrier);
        self.next = Some(next);
        current.close(CloseCode::Done, &words);
    }

    fn connected(&mut self, connection: Arc<dyn Connection>) -> Arc<dyn Connection> {
        let (since, peer) = (Instant::now(), connection.peer().clone());
        tracing::info!(peer = %peer.name, address = %peer.address, over = %peer.carrier, "connected");
        self.state.send_replace(ConnectorState::Connected { peer, since });
        self.current = Some((Arc::clone(&connection), since));
        connection
    }

    /// Says why, and waits the next delay or until something changed.
    async fn pause(&mut self, why: NotConnected) {
        let failures = self.backoff.failures();
        let delay = self.backoff.next((self.random)());
        let repeated = why_of(&self.state.borrow()).as_ref() == Some(&why);
        match (&why, repeated) {
            (NotConnected::Dial(DialError::NotPaired), _) | (_, true) => tracing::debug!(%why, ?delay, "not connected"),
            _ => tracing::warn!(%why, ?delay, "not connected"),
        }
        self.state.send_replace(ConnectorState::Waiting { why, until: Instant::now() + delay, failures });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.dial.changed() => self.backoff.reset(),
        }
    }
}

fn why_of(state: &ConnectorState) -> Option<NotConnected> {
    match state {
        ConnectorState::Dialing { last } => last.clone(),
        ConnectorState::Waiting { why, .. } => Some(why.clone()),
        ConnectorState::Connected { .. } => None,
    }
}

fn random() -> u64 {
    // Without randomness there is still back-off, only no jitter.
    getrandom::u64().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Network;

    fn quick(network: &Network) -> Connector {
        Connector::with_backoff(Arc::new(network.dialer()), Backoff::new(Duration::ZERO, Duration::ZERO))
    }

    #[tokio::test]
    async fn what_may_not_dial_yet_dials_when_it_may() {
        let network = Network::new("source", "receiver");
        let (may, told) = watch::channel(false);
        let later = DialLater::new(network.dialer(), told);
        let mut dialed = std::pin::pin!(later.dial());
        let is_pending = std::future::poll_fn(|cx| std::task::Poll::Ready(dialed.as_mut().poll(cx).is_pending())).await;
        assert!(is_pending, "it was not told to");
        may.send_replace(true);
        dialed.await.expect("connected");
    }

    #[tokio::test]
    async fn it_comes_back_after_every_kind_of_end() {
        let network = Network::new("source", "receiver");
        let mut connector = quick(&network);
        for round in 0..3 {
            let here = connector.next().await;
            let there = network.accept().await;
            assert!(
                matches!(&*connector.state().borrow(), ConnectorState::Connected { peer, .. } if peer.name.as_str() == "receiver")
            );
            match round {
                0 => network.cut(),
                1 => there.close(CloseCode::ShuttingDown, "restart"),
                _ => here.close(CloseCode::Done, "done"),
            }
        }
        let _connection = connector.next().await;
    }

    #[tokio::test]
    async fn it_says_why_and_goes_on() {
        let network = Network::new("source", "receiver");
        let refusal = DialError::Refused { code: CloseCode::NotPaired, reason: "who are you".to_owned() };
        network.refuse(Some(refusal.clone()));
        let mut connector = quick(&network);
        let mut state = connector.state();
        let task = tokio::spawn(async move { connector.next().await });
        let seen = state
            .wait_for(|s| matches!(s, ConnectorState::Waiting { why: NotConnected::Dial(e), .. } if *e == refusal))
            .await
            .map(|s| s.clone());
        assert!(seen.is_ok());
        network.refuse(None);
        task.await.expect("connected at last");
    }

    struct Unpaired {
        paired: watch::Receiver<bool>,
        network: Network,
    }

    #[async_trait]
    impl Dial for Unpaired {
        async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
            if *self.paired.borrow() { self.network.dialer().dial().await } else { Err(DialError::NotPaired) }
        }

        async fn changed(&self) {
            let mut paired = self.paired.clone();
            if paired.wait_for(|paired| *paired).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The delay is an hour: only the change can end it.
    #[tokio::test]
    async fn a_new_pairing_is_used_at_once() {
        let (pair, paired) = watch::channel(false);
        let dial = Arc::new(Unpaired { paired, network: Network::new("source", "receiver") });
        let hour = Duration::from_secs(3600);
        let mut connector = Connector::with_backoff(dial, Backoff::new(hour, hour));
        let mut state = connector.state();
        let task = tokio::spawn(async move { connector.next().await });
        let waiting = state.wait_for(|s| matches!(s, ConnectorState::Waiting { .. })).await.map(|s| s.clone());
        assert!(waiting.is_ok());
        pair.send_replace(true);
        task.await.expect("connected");
    }
}
