//! `farside restore`: a volume as it was at a point, into a file or onto a device.
//!
//! Finds the store and the point, guards the target, shows progress; reading, checking and writing are `crates/store`'s.

use std::io::IsTerminal as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use farside_control::client::Daemon;
use farside_control::{Address, Point, PointRef, Run};
use farside_keys::Keeper;
use farside_objects::Location;
use farside_store::{
    Existing, FileTarget, PointReader, RestoreOptions, RestoreReport, StoreError, check_restorable, restore_stream, restore_to,
    unreadable_runs,
};
use serde::Serialize;

use crate::args::{Global, ImageFormat, RestoreArgs};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hosts::Hosts;
use crate::progress::Progress;
use crate::stdout::Stdout;
use crate::{guard, point, print, qcow2, store};

/// What a person allows.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What unwraps the key of an encrypted volume: whichever does.
    pub(crate) keys: Vec<Keeper>,
    /// What becomes of the target's content.
    pub(crate) existing: Existing,
    /// What the source could not read may become zeroes.
    pub(crate) allow_degraded: bool,
    /// What the store has lost may become zeroes.
    pub(crate) allow_damaged: bool,
    /// What is made of it.
    pub(crate) format: ImageFormat,
    /// The same command goes on with what an attempt left, without being told to.
    pub(crate) goes_on: bool,
}

/// What was restored.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    /// The point.
    pub(crate) point: Point,
    /// Where to.
    pub(crate) to: PathBuf,
    /// Size of the volume.
    pub(crate) volume_bytes: u64,
    /// Of it, what was written: the rest is zeroes.
    pub(crate) data_bytes: u64,
    /// Of it, what a resumed restore found right and left alone.
    pub(crate) kept_bytes: u64,
    /// Of it, what the source could not read; zeroes now.
    pub(crate) unreadable_bytes: u64,
    /// Where that is.
    pub(crate) unreadable: Vec<Run>,
    /// What is there now.
    pub(crate) unreadable_filled_with: &'static str,
    /// What the store has lost; filled likewise.
    pub(crate) damaged: Vec<Run>,
    /// How long it took.
    pub(crate) took_ms: u64,
    /// How the command ends if the point may be older than what was asked for.
    #[serde(skip)]
    pub(crate) hidden: Option<Failure>,
}

/// Whether a target's name means standard output.
fn is_stdout(to: &Path) -> bool {
    to.as_os_str() == "-"
}

/// Where standard output is the volume nothing else may be written to it, and nobody wants that on a terminal.
fn refuse_stdout(global: &Global, args: &RestoreArgs) -> Result<(), Failure> {
    let usage = |message: &str, what_to_do: &str| Err(Failure::new(Exit::Usage, message, what_to_do));
    if args.resume || args.force {
        return usage("standard output holds nothing that --resume or --force could be about", "leave it out");
    }
    if global.json {
        return usage("the volume and --json cannot both go to standard output", "leave out --json, or name a file or a device");
    }
    if std::io::stdout().is_terminal() {
        return usage(
            "a volume is not written to a terminal",
            "send it into a file or a program: … --to - | zstd > data.img.zst",
        );
    }
    Ok(())
}

/// `farside restore`.
pub(crate) async fn run(global: &Global, hosts: &Hosts, args: &RestoreArgs) -> Result<(), Failure> {
    if args.format() == ImageFormat::Qcow2 {
        qcow2::refuse(&args.to, args.resume)?;
    }
    if is_stdout(&args.to) {
        refuse_stdout(global, args)?;
    }
    let location = match &args.store {
        Some(url) => store::location_of(url)?,
        None => gateway_store(hosts).await?,
    };
    let existing = match (args.resume, args.force) {
        (true, _) => Existing::Resume,
        (false, true) => Existing::Replace,
        (false, false) => Existing::Keep,
    };
    let (allow_degraded, allow_damaged) = (args.allow_degraded, args.allow_damaged);
    let options = Options {
        keys: args.key.keeper()?.into_iter().collect(),
        existing,
        allow_degraded,
        allow_damaged,
        format: args.format(),
        goes_on: false,
    };
    if is_filled_in_place(&args.to, existing) && !global.json {
        eprintln!("{} is filled in place: if this is interrupted, the same command with --resume goes on", args.to.display());
    }
    let restored = unless_interrupted(global, location, args.volume.clone(), args.point, args.to.clone(), options).await?;
    let text = text_of(&args.volume, &restored, args.resume);
    if global.json {
        print::json(&restored)?;
    } else if is_stdout(&args.to) {
        eprint!("{text}");
    } else {
        print::out(&text)?;
    }
    restored.hidden.map_or(Ok(()), Err)
}

/// What was restored, for people.
pub(crate) fn text_of(volume: &Address, restored: &Restored, resumed: bool) -> String {
    let mut text = format!(
        "{} as of {} (point {}) is in {}: {} of {}, the rest zeroes, in {}\n",
        volume,
        print::time(restored.point.cut_wall),
        restored.point.id,
        if is_stdout(&restored.to) { "standard output".to_owned() } else { restored.to.display().to_string() },
        print::bytes(restored.data_bytes),
        print::bytes(restored.volume_bytes),
        print::duration_ms(restored.took_ms),
    );
    if resumed {
        text.push_str(&format!("{} were right already and left alone\n", print::bytes(restored.kept_bytes)));
    }
    if restored.unreadable_bytes > 0 {
        let what =
            format!("! volume {}: {} could not be read at the source", volume.name(), print::bytes(restored.unreadable_bytes));
        text.push_str(&point::runs_text(&what, &restored.unreadable));
        text.push_str("  they are zeroes now\n");
    }
    if !restored.damaged.is_empty() {
        let bytes = restored.damaged.iter().map(|run| run.bytes).sum();
        let what = format!("✗ volume {}: the store has lost {}", volume.name(), print::bytes(bytes));
        text.push_str(&point::runs_text(&what, &restored.damaged));
        text.push_str("  they are zeroes now\n");
    }
    text
}

/// The restore on a thread of its own, so that Ctrl-C is heard: what it leaves then is said. A second one ends the program.
pub(crate) async fn unless_interrupted(
    global: &Global,
    location: Location,
    volume: Address,
    point: PointRef,
    to: PathBuf,
    options: Options,
) -> Result<Restored, Failure> {
    let progress = Arc::new(Progress::new(global.json));
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut work = tokio::task::spawn_blocking({
        let (progress, interrupted) = (progress.clone(), interrupted.clone());
        move || {
            restore(&location, &volume, point, &to, &options, &|done, total| {
                progress.set(done, total);
                !interrupted.load(Ordering::Relaxed)
            })
        }
    });
    let restored = loop {
        tokio::select! {
            restored = &mut work => break restored.or_fail("the restore ended early")?,
            signal = tokio::signal::ctrl_c() => {
                signal.or_fail("signals cannot be received")?;
                if interrupted.swap(true, Ordering::Relaxed) {
                    std::process::exit(Exit::Failed as i32);
                }
            }
        }
    };
    progress.finish();
    restored
}

/// Where this gateway keeps its points.
pub(crate) async fn gateway_store(hosts: &Hosts) -> Result<Location, Failure> {
    let client = hosts.either().await?;
    if client.daemon() == Daemon::Source {
        return Err(Failure::new(
            Exit::Refused,
            "restoring on the protected host, through the connection, comes in a later version",
            "restore on the gateway, or name a store that this machine can read: --store /srv/farside",
        ));
    }
    store::location_of(&client.receiver_status().await?.store.path.to_string_lossy())
}

/// Whether a target is filled where it lies, so that an attempt that ends early leaves it half done.
fn is_filled_in_place(to: &Path, existing: Existing) -> bool {
    existing == Existing::Resume || std::fs::metadata(to).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// A failure in mid-restore says what is left on the target.
fn incomplete(to: &Path, options: &Options, failure: Failure) -> Failure {
    if options.goes_on {
        let left = format!("the same command goes on where this ended; {} has its name only once it is whole", to.display());
        let what_to_do = if failure.what_to_do.is_empty() { left } else { format!("{}; {left}", failure.what_to_do) };
        return Failure { what_to_do, ..failure };
    }
    if !is_filled_in_place(to, options.existing) {
        let left = format!("nothing of it was kept: {} is as it was", to.display());
        return if failure.what_to_do.is_empty() { Failure { what_to_do: left, ..failure } } else { failure };
    }
    let left = format!(
        "{} is incomplete now and does not look like the volume; the same command with --resume goes on with it",
        to.display()
    );
    let what_to_do = if failure.what_to_do.is_empty() { left } else { format!("{}; {left}", failure.what_to_do) };
    Failure { what_to_do, ..failure }
}

/// What was restored whole and could not get its name is not begun anew.
fn not_named(options: &Options, error: StoreError) -> Failure {
    let goes_on = matches!(error, StoreError::NotNamed { goes_on: true, .. });
    let failure = Failure::from(error);
    let what_to_do = match (goes_on, options.goes_on, options.existing) {
        (false, ..) => return failure,
        (true, true, _) => "then the same command goes on with it",
        (true, false, Existing::Resume) => "then the same command with --resume goes on with it",
        (true, false, _) => "then the same command with --resume in place of --force goes on with it",
    };
    Failure { what_to_do: what_to_do.to_owned(), ..failure }
}

/// Writes a point to a file, a device or standard output.
fn write_out(
    point: &PointReader,
    volume: &str,
    (to, stdout): (&Path, Option<Stdout>),
    options: &Options,
    progress: &(dyn Fn(u64, u64) -> bool + Sync),
) -> Result<RestoreReport, Failure> {
    let total = point.geometry().volume_bytes();
    let settings = RestoreOptions {
        allow_degraded: options.allow_degraded,
        allow_damaged: options.allow_damaged,
        ..RestoreOptions::default()
    };
    check_restorable(point, &settings)?;
    if let Some(mut out) = stdout {
        let report = restore_stream(point, out.writer(), &settings, &|done| progress(done, total));
        let written = report.map_err(Failure::from).and_then(|report| out.finish().map(|()| report));
        let left = "what was written so far is only the beginning of the volume: throw it away";
        return written.map_err(|failure| Failure { what_to_do: left.to_owned(), ..failure });
    }
    let target = FileTarget::open(to, volume, total, options.existing)?;
    let settings = RestoreOptions { resume: target.is_resumed(), ..settings };
    let report = restore_to(point, &target, &settings, &|done| progress(done, total));
    let report = report.map_err(|error| incomplete(to, options, error.into()))?;
    target.finish().map_err(|error| not_named(options, error))?;
    Ok(report)
}

/// Restores a point of a volume. `progress` hears bytes done and in all, from any thread; false from it ends the restore.
pub(crate) fn restore(
    store: &Location,
    volume: &Address,
    wanted: PointRef,
    to: &Path,
    options: &Options,
    progress: &(dyn Fn(u64, u64) -> bool + Sync),
) -> Result<Restored, Failure> {
    let begun = Instant::now();
    let place = store.to_string();
    let stdout = if is_stdout(to) {
        Some(Stdout::open(Path::new(&place))?)
    } else {
        guard::refuse(to, Path::new(&place))?;
        None
    };
    let store::Chosen { group, volume: id, slot, point: chosen, hidden } =
        store::choose(&store::open_with(store, &options.keys)?, volume, wanted)?;
    group.unlock(id)?;
    let point_reader = Arc::new(match options.allow_damaged {
        true => group.point_reader_as_it_is(slot, id)?,
        false => group.point_reader(slot, id)?,
    });
    store::say_if_unkept(&point_reader);
    let report = match options.format {
        ImageFormat::Raw => write_out(&point_reader, volume.name(), (to, stdout), options, progress)?,
        ImageFormat::Qcow2 => qcow2::write_out(&point_reader, volume.name(), to, options, progress)?,
    };
    let total = point_reader.geometry().volume_bytes();
    Ok(Restored {
        point: chosen,
        to: to.to_owned(),
        volume_bytes: total,
        data_bytes: report.data_bytes,
        kept_bytes: report.kept_bytes,
        unreadable_bytes: report.unreadable_bytes,
        unreadable: unreadable_runs(&point_reader).iter().map(|r| Run { offset_bytes: r.offset.0, bytes: r.len }).collect(),
        unreadable_filled_with: "zeroes",
        damaged: report.damaged.iter().map(|r| Run { offset_bytes: r.offset.0, bytes: r.len }).collect(),
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        hidden,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `store recover` has no --resume, and was told to say it on a full disk.
    #[test]
    fn what_ended_early_says_which_command_goes_on() {
        let said = |existing, goes_on| {
            let (allow_degraded, allow_damaged, format) = (false, false, ImageFormat::Raw);
            let options = Options { keys: Vec::new(), existing, allow_degraded, allow_damaged, format, goes_on };
            let full = Failure::new(Exit::Failed, "no space left on device", "");
            incomplete(Path::new("/none/data.img"), &options, full).what_to_do
        };
        assert!(said(Existing::Keep, false).contains("as it was"));
        assert!(said(Existing::Resume, false).contains("the same command with --resume"));
        let recovered = said(Existing::Resume, true);
        assert!(recovered.contains("the same command goes on") && !recovered.contains("--resume"), "{recovered}");
    }

    /// The same command again cut to nothing what hours had restored.
    #[test]
    fn what_is_whole_and_only_lacks_its_name_is_gone_on_with() {
        let said = |existing, goes_on, used| {
            let (allow_degraded, allow_damaged, format) = (false, false, ImageFormat::Raw);
            let options = Options { keys: Vec::new(), existing, allow_degraded, allow_damaged, format, goes_on };
            let (path, partial) = ("/none/data.img".into(), "/none/data.img.farside-partial".into());
            not_named(&options, StoreError::NotNamed { path, partial, why: "it is open".to_owned(), goes_on: used }).what_to_do
        };
        assert!(said(Existing::Replace, false, true).contains("--resume in place of --force"));
        assert!(!said(Existing::Resume, true, true).contains("--resume"));
        // † What came up there meanwhile would be overwritten.
        assert!(!said(Existing::Keep, false, false).contains("--resume"));
    }
}
