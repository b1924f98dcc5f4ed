//! `farside`: the command line of both daemons, and of stores without a daemon.
//!
//! It decides nothing about replication: it asks, prints, and restores through `crates/store`. Text for people goes to
//! standard output, progress and errors to standard error; `--json` gives the API's own types.

mod args;
mod branch;
mod cohort;
mod completions;
mod confirm;
mod cost;
mod cutover;
mod demo;
mod device;
mod doctor;
mod drill;
mod explain;
mod failback;
mod failover;
mod failure;
mod follow;
mod follower;
mod guard;
mod hosts;
mod hydrate;
mod job;
mod kept;
mod key;
mod limit;
mod lock;
mod man;
mod opened;
mod point;
mod points;
mod print;
mod progress;
mod qcow2;
mod recover;
mod rejoin;
mod restore;
mod settle;
mod status;
mod stdout;
mod store;
mod take;
mod view;
mod volume;

use std::io::Read as _;
use std::process::ExitCode;

use clap::Parser as _;
use farside_control::source::GroupSettings;
use farside_control::{Address, PointRef};

use crate::args::{Cli, Command, Global, GroupCommand, PointCommand, StoreCommand, WhichPoint};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;

fn main() -> ExitCode {
    if let Some(code) = farside_daemon::as_helper().or_else(device::as_helper) {
        return code;
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| wrong_usage(&error));
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// What clap says, in the form that was asked for; help and version are no errors.
fn wrong_usage(error: &clap::Error) -> ! {
    let json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if !(json && error.use_stderr()) {
        error.exit();
    }
    let text = error.to_string();
    let (what, usage) = text.split_once("\n\n").unwrap_or((&text, ""));
    let usage = usage.lines().find(|line| line.starts_with("Usage: ")).unwrap_or("see farside --help");
    Failure::new(Exit::Usage, what.trim_start_matches("error: ").trim(), usage).print(true);
    std::process::exit(Exit::Usage as i32)
}

/// The daemons build their own runtimes, and `PR_SET_IO_FLUSHER` wants no thread before it: they come first.
fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Daemon { config, until_stdin_ends } => {
            farside_service::log::to_stderr();
            end_with_stdin(until_stdin_ends);
            return Ok(farside_daemon::run(&config)?);
        }
        Command::Receiver { config, until_stdin_ends } => {
            farside_service::log::to_stderr();
            end_with_stdin(until_stdin_ends);
            return Ok(farside_receiver::run(&config).map_err(anyhow::Error::from)?);
        }
        Command::Demo(args) => return demo::run(&cli.global, &args),
        Command::Explain { name } => return explain::run(&cli.global, name.as_deref()),
        Command::Doctor { fix, config } => return doctor::run(&cli.global, config.as_deref(), fix),
        Command::Man { dir } => return man::write(&dir),
        Command::Completions { dir } => return completions::write(&dir),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail("cannot start")?;
    runtime.block_on(ask(cli))
}

/// A daemon that was started for a while must not outlive who started it, however that ends: its end of the pipe closes.
fn end_with_stdin(wanted: bool) {
    if wanted {
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            std::process::exit(0);
        });
    }
}

async fn ask(cli: Cli) -> Result<(), Failure> {
    let hosts = Hosts::new(&cli.global);
    match cli.command {
        Command::Pair { token } => pair(&cli.global, &hosts, token).await,
        Command::Unpair { yes } => unpair(&cli.global, &hosts, yes).await,
        Command::Status { watch, check } => status::run(&cli.global, &hosts, watch, check).await,
        Command::Reload => reload(&cli.global, &hosts).await,
        Command::Metrics => print::out(&hosts.either().await?.metrics().await?),
        Command::Limit(command) => limit::run(&cli.global, &hosts, command).await,
        Command::Group(GroupCommand::Set { name, epoch, keep, span, grid, rate, consistent }) => {
            let epoch_interval_ms = epoch.map(|epoch| u64::try_from(epoch.as_millis()).expect("checked when parsed"));
            let span_ms = span.map(|span| u64::try_from(span.as_millis()).expect("checked when parsed"));
            let (grid, rate) = (grid.map(|grid| grid.to_string()), rate.map(|rate| rate.to_string()));
            let settings = GroupSettings { epoch_interval_ms, keep, span_ms, grid, rate, consistent_every: consistent };
            group_set(&cli.global, &hosts, &name, &settings).await
        }
        Command::Volume(command) => volume::run(&cli.global, &hosts, command).await,
        Command::Point(PointCommand::List(args)) => points::list(&cli.global, &hosts, &args).await,
        Command::Point(PointCommand::Show { which, store }) => {
            let (point, of) = resolve(which)?;
            point::show(&cli.global, &hosts, point, of.as_ref(), store.as_deref()).await
        }
        Command::Point(PointCommand::Pin { which, reason }) => {
            let (point, of) = resolve(which)?;
            point::pin(&cli.global, &hosts, point, of.as_ref(), reason).await
        }
        Command::Point(PointCommand::Unpin { which, all, yes }) => {
            let (point, of) = resolve(which)?;
            point::unpin(&cli.global, &hosts, (point, of.as_ref()), all, yes).await
        }
        Command::Point(PointCommand::Hold { which, case }) => {
            let (point, of) = resolve(which)?;
            point::hold(&cli.global, &hosts, point, of.as_ref(), case).await
        }
        Command::Point(PointCommand::Release { which, case, yes }) => {
            let (point, of) = resolve(which)?;
            point::release(&cli.global, &hosts, (point, of.as_ref()), case, yes).await
        }
        Command::Point(PointCommand::Verify { which, against_source: true, .. }) => {
            let (point, of) = resolve(which)?;
            volume::verify_group(&cli.global, &hosts, point, of.as_ref()).await
        }
        Command::Point(PointCommand::Verify { which, store, key, against_source: false }) => {
            let (point, of) = resolve(which)?;
            point::verify(&cli.global, &hosts, point, of.as_ref(), store.as_deref(), &key).await
        }
        Command::Point(PointCommand::Take(args)) => take::run(&cli.global, &hosts, &args).await,
        Command::Point(PointCommand::Opened) => opened::list(&cli.global),
        Command::Point(PointCommand::Close { what }) => opened::close(&cli.global, &what),
        Command::Point(PointCommand::Open(args)) => view::open(&cli.global, &hosts, args).await,
        Command::Drill(command) => drill::run(&cli.global, &hosts, command).await,
        Command::Failover(args) => failover::run(&cli.global, &hosts, args).await,
        Command::Cutover(args) => cutover::run(&cli.global, &hosts, args).await,
        Command::Commit(args) => settle::commit(&cli.global, &hosts, args).await,
        Command::Rollback(args) => settle::rollback(&cli.global, &hosts, args).await,
        Command::Job(command) => job::run(&cli.global, &hosts, command).await,
        Command::Branch(command) => branch::run(&cli.global, &hosts, command).await,
        Command::Failback(args) => failback::run(&cli.global, &hosts, args).await,
        Command::Cohort(command) => cohort::run(&cli.global, &hosts, command).await,
        Command::Follower(command) => follower::run(&cli.global, &hosts, command).await,
        Command::Restore(args) => restore::run(&cli.global, &hosts, &args).await,
        Command::Key(command) => key::run(&cli.global, command),
        Command::Store(StoreCommand::Init { url }) => store::init(&cli.global, &url),
        Command::Store(StoreCommand::Recover(args)) => recover::run(&cli.global, &args).await,
        Command::Store(StoreCommand::Follow(args)) => follow::run(&cli.global, args).await,
        Command::Store(StoreCommand::Cost(args)) => cost::run(&cli.global, &args),
        Command::Store(StoreCommand::Check { url, key }) => store::check(&cli.global, &url, &key),
        Command::Store(StoreCommand::Lock(args)) => lock::run(&cli.global, &args),
        Command::Store(StoreCommand::Locks { url }) => lock::list(&cli.global, &url),
        Command::Store(StoreCommand::Unlock { url, lock, yes }) => lock::unlock(&cli.global, &url, &lock, yes),
        Command::Store(StoreCommand::Repair { url, group, yes }) => store::repair(&cli.global, &url, group.as_ref(), yes),
        Command::Daemon { .. }
        | Command::Receiver { .. }
        | Command::Demo(_)
        | Command::Explain { .. }
        | Command::Doctor { .. }
        | Command::Man { .. }
        | Command::Completions { .. } => {
            unreachable!("ran before there was a runtime")
        }
    }
}

fn resolve(which: WhichPoint) -> Result<(PointRef, Option<Address>), Failure> {
    which.resolve().map_err(|what| Failure::new(Exit::Usage, what, "say it as VOLUME POINT, or POINT --of VOLUME"))
}

async fn pair(global: &Global, hosts: &Hosts, token: String) -> Result<(), Failure> {
    let token = if token == "-" {
        let mut text = String::new();
        std::io::stdin().lock().take(64 << 10).read_to_string(&mut text).or_fail("cannot read the token from standard input")?;
        text
    } else {
        token
    };
    if token.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the token is empty", "print one on the gateway: farside-receiver token"));
    }
    let paired = hosts.source().pair(&token).await?;
    if global.json {
        return print::json(&paired);
    }
    print::out(&format!(
        "paired with {}\n  receiver  {}\n  this host {}\n",
        paired.receiver, paired.receiver_fingerprint, paired.source_fingerprint
    ))
}

async fn unpair(global: &Global, hosts: &Hosts, yes: bool) -> Result<(), Failure> {
    let question = "The volumes are served and tracked on, but nothing is replicated until this host is paired again.\nForget the \
                    receiver?";
    confirm::confirm(question, "this host stays paired", yes)?;
    let done = hosts.source().unpair().await?;
    if global.json {
        return print::json(&done);
    }
    print::out(&format!(
        "{}\nthe receiver still knows this host: there, `farside-receiver unpair` has it forget it\n",
        done.message
    ))
}

async fn reload(global: &Global, hosts: &Hosts) -> Result<(), Failure> {
    let client = hosts.either().await?;
    let reloaded = client.reload().await?;
    if global.json {
        print::json(&reloaded)?;
    } else {
        let mut text = String::new();
        reloaded.changed.iter().for_each(|what| text.push_str(&format!("{what}\n")));
        for what in &reloaded.needs_restart {
            text.push_str(&format!(
                "! {what}: changes with the next restart only (systemctl restart {})\n",
                client.daemon().program()
            ));
        }
        for volume in &reloaded.kept_volumes {
            text.push_str(&format!(
                "! volume {volume}: no file has it any more; it stays in service until: farside volume remove {volume}\n"
            ));
        }
        if text.is_empty() && reloaded.failed.is_empty() {
            text.push_str("nothing changed\n");
        }
        print::out(&text)?;
    }
    if reloaded.failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        format!("taken over, except: {}", reloaded.failed.join("; ")),
        "mend that, then: farside reload",
    ))
}

async fn group_set(global: &Global, hosts: &Hosts, name: &str, settings: &GroupSettings) -> Result<(), Failure> {
    let group = hosts.source().group_set(name, settings).await?;
    if global.json {
        return print::json(&group);
    }
    let epoch = print::duration_ms(group.epoch_interval_ms);
    let (kept, others) = match group.span_ms {
        0 => (String::new(), "the others, also of today's,"),
        span => (format!(", each for at least {}", print::duration_ms(span)), "older ones"),
    };
    let older = if group.has_grid() { format!("; of {others} {}", group.grid) } else { String::new() };
    let limit = group.limit_bytes_per_s;
    let sent = if limit.is_some() { format!("; sent at {} at most", limit::rate(limit)) } else { String::new() };
    let every = group.consistent.as_ref().and_then(|consistent| consistent.every_ms);
    let quiet = every.map_or_else(String::new, |ms| format!("; application-consistent every {}", print::duration_ms(ms)));
    print::out(&format!(
        "group {}: cut at most every {epoch}, at least {} points kept{kept}{older}{sent}{quiet}\n",
        group.name, group.keep
    ))
}
