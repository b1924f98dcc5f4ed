//! `cargo run --release -p xtask -- …`: everything a contributor or CI does, with one entry point.
//!
//! Here are only the words of the command line; each command is a module.

mod apart;
mod check;
mod features;
mod fuzz;
mod install;
mod kernels;
mod laws;
mod licence;
mod package;
mod sim;
mod test_all;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What contributors and CI run.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo run --release -p xtask --",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything: install what the tests need (as root on Debian), format, lints, docs, rules, tests, models, simulator, real
    /// processes.
    Test(test_all::Args),
    /// The project's rules: who imports whom, licences and sources of dependencies, forbidden words, unsafe code, laws and rules
    /// with their tests and mutations. Needs no network.
    Check,
    /// Runs the simulator: many seeds, or one with a readable trace.
    Sim(sim::SimArgs),
    /// Makes the Debian packages for hosts and gateways, in target/packages. Needs debhelper.
    Package(package::Args),
    /// Fuzzes every decoder of bytes that others hand us.
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test_all::run(&args),
        Command::Check => check::run().map(|()| println!("check: every rule holds")),
        Command::Sim(args) => sim::main(&args),
        Command::Package(args) => package::run(&args),
        Command::Fuzz(args) => fuzz::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the work tree.
fn root() -> PathBuf {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()));
    here.parent().expect("xtask is a folder of the work tree").to_owned()
}
