//! Which daemon to ask: on the protected host farsided, on the gateway farside-receiver.

use std::path::{Path, PathBuf};

use farside_control::client::Daemon;
use farside_control::{Client, ClientError};

use crate::args::{Global, SOCKET_VARIABLE};
use crate::failure::{Exit, Failure};

/// Where the daemons are, as far as the command line says.
#[derive(Debug)]
pub(crate) struct Hosts {
    named: Option<PathBuf>,
}

impl Hosts {
    /// As the command line says.
    pub(crate) fn new(global: &Global) -> Self {
        let variable = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { named: global.socket.clone().or_else(variable) }
    }

    /// farsided, for what only it can do.
    pub(crate) fn source(&self) -> Client {
        Client::new(Daemon::Source, self.named.as_deref().unwrap_or(Daemon::Source.socket()))
    }

    /// The farsided that has this configuration, unless the command line names another.
    pub(crate) fn source_of(&self, config: &Path) -> Client {
        let configured = farside_daemon::config::Config::load(config).ok().map(|config| config.source.api_socket);
        let socket = self.named.clone().or(configured);
        Client::new(Daemon::Source, socket.as_deref().unwrap_or(Daemon::Source.socket()))
    }

    /// The socket that was named.
    pub(crate) fn named(&self) -> Option<&Path> {
        self.named.as_deref()
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

    /// The one that was named, or all that have a socket here.
    pub(crate) async fn all(&self) -> Result<Vec<Client>, ClientError> {
        if let Some(socket) = &self.named {
            return Ok(vec![Client::identify(socket).await?]);
        }
        let all = [Daemon::Source, Daemon::Receiver].into_iter().filter(|daemon| Path::exists(daemon.socket()));
        Ok(all.map(|daemon| Client::new(daemon, daemon.socket())).collect())
    }

    /// The daemon for what both can do: whoever listens on the socket that was named, else farsided where it has a socket,
    /// else farside-receiver where that has one.
    pub(crate) async fn either(&self) -> Result<Client, Failure> {
        if let Some(socket) = &self.named {
            return Ok(Client::identify(socket).await?);
        }
        // Where it cannot be looked, asking says why.
        let has_socket = |daemon: Daemon| daemon.socket().try_exists().unwrap_or(true);
        choose(has_socket(Daemon::Source), has_socket(Daemon::Receiver)).map(|daemon| Client::new(daemon, daemon.socket()))
    }
}

/// By who has a socket.
fn choose(source: bool, receiver: bool) -> Result<Daemon, Failure> {
    match (source, receiver) {
        (true, _) => Ok(Daemon::Source),
        (false, true) => Ok(Daemon::Receiver),
        (false, false) => {
            let [source, receiver] = [Daemon::Source, Daemon::Receiver];
            let message = format!(
                "neither {} nor {} runs here: there is no {} and no {}",
                source.program(),
                receiver.program(),
                source.socket().display(),
                receiver.socket().display()
            );
            let what_to_do = format!(
                "start it: systemctl start {} (on a protected host), systemctl start {} (on a gateway); or name another socket with \
                 --socket. What reads points needs neither of them with --store URL",
                source.program(),
                receiver.program()
            );
            Err(Failure::new(Exit::Unreachable, message, what_to_do))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_there_is_asked_and_where_nobody_is_both_are_named() {
        assert_eq!(choose(true, true).expect("both"), Daemon::Source);
        assert_eq!(choose(false, true).expect("a gateway"), Daemon::Receiver);
        let nobody = choose(false, false).expect_err("neither");
        assert_eq!(nobody.exit, Exit::Unreachable);
        assert!(
            nobody.what_to_do.contains("start farsided ") && nobody.what_to_do.contains("start farside-receiver "),
            "{nobody:?}"
        );
    }
}
