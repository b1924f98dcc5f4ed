//! `farsided`: the daemon of a protected host. See `farside_daemon`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use farside_daemon::args::Args;
use farside_daemon::boot::order;
use farside_daemon::config::Config;

fn main() -> ExitCode {
    if let Some(code) = farside_daemon::as_helper() {
        return code;
    }
    if let Some(code) = as_generator() {
        return code;
    }
    let args = Args::parse();
    farside_service::log::to_stderr();
    let result = if args.check {
        Config::load(&args.config).map(|config| is_valid(&config)).map_err(Into::into)
    } else if args.unserved {
        farside_daemon::boot::unserved::run(&args.config, args.bare)
    } else {
        farside_daemon::run(&args.config)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farsided: {}", farside_service::in_words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Says so; and what it names and this host does not have, which may come before farsided starts.
fn is_valid(config: &Config) {
    println!("{}: valid", config.path.display());
    let group = config.source.api_group.as_deref();
    if let Some(Err(error)) = group.map(|group| farside_service::socket::group(&config.source.api_socket, group)) {
        eprintln!("farsided: {error}; until then nobody can ask it anything, and volumes whose tap is a socket are not served");
    }
}

/// If systemd started this process as one of its generators: does that, and says how it ended.
fn as_generator() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().map(PathBuf::from);
    if arguments.next()?.file_name()? != order::NAME {
        return None;
    }
    let done = arguments.next().map(|folder| order::generate(&folder));
    Some(match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{}: {error:#}", order::NAME);
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{} is for systemd: it wants the folder to write to", order::NAME);
            ExitCode::FAILURE
        }
    })
}
