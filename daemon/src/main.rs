//! `farsided`: the daemon of a protected host. See `farside_daemon`.

use std::process::ExitCode;

use clap::Parser as _;
use farside_daemon::args::Args;

fn main() -> ExitCode {
    if let Some(code) = farside_daemon::as_helper() {
        return code;
    }
    let args = Args::parse();
    farside_service::log::to_stderr();
    let result = if args.check {
        farside_daemon::config::Config::load(&args.config)
            .map(|_| println!("{}: valid", args.config.display()))
            .map_err(Into::into)
    } else {
        farside_daemon::run(&args.config)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farsided: {error:#}");
            ExitCode::FAILURE
        }
    }
}
