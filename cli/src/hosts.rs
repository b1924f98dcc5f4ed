//! Which daemon to ask: on the protected host farsided, on the gateway farside-receiver.

use std::path::{Path, PathBuf};

use farside_control::client::Daemon;
use farside_control::{Client, ClientError};

use crate::args::Global;

/// Where the daemons are, as far as the command line says.
#[derive(Debug)]
pub(crate) struct Hosts {
    named: Option<PathBuf>,
}

impl Hosts {
    /// As the command line says.
    pub(crate) fn new(global: &Global) -> Self {
        Self { named: global.socket.clone() }
    }

    /// farsided, for what only it can do.
    pub(crate) fn source(&self) -> Client {
        Client::new(Daemon::Source, self.named.as_deref().unwrap_or(Daemon::Source.socket()))
    }

    /// farside-receiver, for what only it can do; farsided, where only that has a socket, to be told so.
    pub(crate) async fn gateway(&self) -> Result<Client, ClientError> {
        if let Some(socket) = &self.named {
            return Client::identify(socket).await;
        }
        let has_socket = |daemon: Daemon| -> bool { Path::exists(daemon.socket()) };
        let daemon = if has_socket(Daemon::Source) && !has_socket(Daemon::Receiver) { Daemon::Source } else { Daemon::Receiver };
        Ok(Client::new(daemon, daemon.socket()))
    }

    /// The daemon for what both can do: whoever listens on the socket that was named, else farsided where it has a socket,
    /// else farside-receiver where that has one.
    pub(crate) async fn either(&self) -> Result<Client, ClientError> {
        if let Some(socket) = &self.named {
            return Client::identify(socket).await;
        }
        let has_socket = |daemon: Daemon| -> bool { Path::exists(daemon.socket()) };
        let daemon = if !has_socket(Daemon::Source) && has_socket(Daemon::Receiver) { Daemon::Receiver } else { Daemon::Source };
        Ok(Client::new(daemon, daemon.socket()))
    }
}
