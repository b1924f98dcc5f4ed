//! The command line of `farside-receiver`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config;

/// Receives the changes of protected hosts and keeps their recovery points.
///
/// Exit codes: 0 done, or stopped as asked; 1 failed (standard error says why, and what to do); 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "farside-receiver", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  farside-receiver run
      Run in the foreground, as the systemd unit does (Type=notify).
  farside-receiver token --for db1 --expires 15m
      Print one line; give it to `farside pair` on the host db1 within 15 minutes.
  farside-receiver token --address gateway.example:7400
      For a receiver behind NAT, whose own addresses are not the ones sources see.
  farside-receiver unpair db1
      Forget the host db1 and close its connections; its points stay.";

/// What `farside-receiver` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the receiver in the foreground
    ///
    /// Reads the configuration and what lies in the folder beside it that ends in .d instead of .toml (receiver.d/*.toml),
    /// makes key, certificate and store where there are none, and receives until SIGTERM. A store that is full, read-only or not mounted is reported and waited for.
    Run {
        /// The configuration file
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// Read the configuration, look at the file system of the store, say what is wrong with them, and do nothing else
        #[arg(long)]
        check: bool,
    },
    /// Print a pairing token: one line for `farside pair` on a host to be protected
    ///
    /// The token holds this receiver's address and certificate fingerprint and a secret that is good once. Whoever has it
    /// can register a source until it expires: treat it as a password. Asks the running receiver over its socket.
    Token {
        /// The configuration file of the running receiver, which names its socket
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// How long it is good for, such as 90s, 15m or 1h
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        expires: String,
        /// The only source name it is good for; any new name if left out
        #[arg(long = "for", value_name = "SOURCE")]
        source: Option<String>,
        /// Let it take over a name that is paired already, for a host that was reinstalled
        #[arg(long)]
        replace: bool,
        /// Where the source is to connect to, if the receiver cannot know (NAT)
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Send a source away: forget its certificate and close its connections
    ///
    /// For a host that was retired or stolen. Its points stay and can be restored; to come back it needs a new token. Asks the
    /// running receiver over its socket.
    Unpair {
        /// The source's name, as in `farside status`
        source: String,
        /// The configuration file of the running receiver, which names its socket
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}
