//! `farside-receiver`: the gateway's daemon. See `farside_receiver`.

use std::process::ExitCode;

use clap::Parser as _;
use farside_control::client::{Client, ClientError, Daemon};
use farside_control::receiver::TokenRequest;
use farside_receiver::Config;
use farside_receiver::args::{Arguments, Command};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config, check: true } => check(&config),
        Command::Run { config, check: false } => {
            farside_service::log::to_stderr();
            farside_receiver::run(&config).map_err(Into::into)
        }
        Command::Token { config, expires, source, replace, address } => {
            let request = farside_control::parse_duration(&expires).map_err(anyhow::Error::from).map(|lifetime| TokenRequest {
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
            eprintln!("farside-receiver: {}", farside_service::in_words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn check(path: &std::path::Path) -> anyhow::Result<()> {
    farside_receiver::check_place(&Config::load(path)?)?;
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
