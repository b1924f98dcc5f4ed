//! `farside-receiver`: the gateway's daemon. See `farside_receiver`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farside_control::client::{Client, ClientError, Daemon};
use farside_control::receiver::TokenRequest;
use farside_receiver::{Config, config};

/// Receives the changes of protected hosts and keeps their recovery points.
///
/// Exit codes: 0 done, or stopped as asked; 1 failed (standard error says why, and what to do); 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "farside-receiver", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the receiver in the foreground
    ///
    /// Reads the configuration and the receiver.d/*.toml beside it, makes key, certificate and store where there are none, and
    /// receives until SIGTERM. A store that is full, read-only or not mounted is reported and waited for.
    Run {
        /// The configuration file
        #[arg(long, short, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// Read the configuration, say what is wrong with it, and do nothing else
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

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config, check: true } => check(&config),
        Command::Run { config, check: false } => {
            farside_service::log::to_stderr();
            farside_receiver::run(&config).map_err(Into::into)
        }
        Command::Token { config, expires, source, replace, address } => {
            let request = config::parse_duration(&expires).map_err(anyhow::Error::msg).map(|lifetime| TokenRequest {
                valid_for_ms: Some(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)),
                address,
                source,
                replace,
            });
            request.and_then(|request| token(&config, &request))
        }
        Command::Unpair { source, config } => unpair(&config, &source),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farside-receiver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &std::path::Path) -> anyhow::Result<()> {
    Config::load(path)?;
    println!("{}: valid", path.display());
    Ok(())
}

fn token(path: &std::path::Path, request: &TokenRequest) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let token = ask(config, async |client| client.token_create(request).await)?;
    println!("{}", token.token);
    Ok(())
}

fn unpair(path: &std::path::Path, source: &str) -> anyhow::Result<()> {
    let done = ask(Config::load(path)?, async |client| client.source_unpair(source).await)?;
    println!("{}", done.message);
    Ok(())
}

/// Asks the running receiver.
fn ask<A>(config: Config, question: impl AsyncFnOnce(Client) -> Result<A, ClientError>) -> anyhow::Result<A> {
    let client = Client::new(Daemon::Receiver, config.api_socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(question(client)).map_err(|error| {
        let what = error.what_to_do();
        if what.is_empty() { anyhow::anyhow!("{error}") } else { anyhow::anyhow!("{error}: {what}") }
    })
}
