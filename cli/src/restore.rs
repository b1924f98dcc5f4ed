//! `farside restore`: a volume as it was at a point, into a file or onto a device.
//!
//! Finds the store and the point, guards the target, shows progress; reading, checking and writing are `crates/store`'s.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use farside_control::client::Daemon;
use farside_control::{Address, Point, PointRef, Run, select_point};
use farside_daemon::config::{Config, ConfigError};
use farside_service::files::FileError;
use farside_store::{Existing, FileTarget, RestoreOptions, check_restorable, restore_to, unreadable_runs};
use serde::Serialize;

use crate::args::{Global, RestoreArgs};
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::progress::Progress;
use crate::{point, print, store};

/// The configuration of a farsided on this machine, whose backings are not to be written behind its back.
const SOURCE_CONFIGURATION: &str = "/etc/farside/farsided.toml";

/// What a person allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// What becomes of the target's content.
    pub(crate) existing: Existing,
    /// What the source could not read may become zeroes.
    pub(crate) allow_degraded: bool,
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
    /// How long it took.
    pub(crate) took_ms: u64,
}

/// `farside restore`.
pub(crate) async fn run(global: &Global, hosts: &Hosts, args: &RestoreArgs) -> Result<(), Failure> {
    let path = match &args.store {
        Some(url) => store::path_of(url)?,
        None => gateway_store(hosts).await?,
    };
    let existing = match (args.resume, args.force) {
        (true, _) => Existing::Resume,
        (false, true) => Existing::Replace,
        (false, false) => Existing::Keep,
    };
    let options = Options { existing, allow_degraded: args.allow_degraded };
    let progress = Progress::new(global.json);
    let restored = restore(&path, &args.volume, args.point, &args.to, options, &|done, total| progress.set(done, total))?;
    progress.finish();
    if global.json {
        return print::json(&restored);
    }
    let mut text = format!(
        "{} as of {} (point {}) is in {}: {} of {}, the rest zeroes, in {}\n",
        args.volume,
        print::time(restored.point.cut_wall),
        restored.point.id,
        restored.to.display(),
        print::bytes(restored.data_bytes),
        print::bytes(restored.volume_bytes),
        print::duration_ms(restored.took_ms),
    );
    if args.resume {
        text.push_str(&format!("{} were right already and left alone\n", print::bytes(restored.kept_bytes)));
    }
    if restored.unreadable_bytes > 0 {
        let runs = restored.unreadable.iter().map(|run| (run.offset_bytes, run.bytes));
        text.push_str(&point::unreadable_text(args.volume.name(), runs, restored.unreadable_bytes));
        text.push_str("  they are zeroes now\n");
    }
    print::out(&text)
}

/// Where this gateway keeps its points.
async fn gateway_store(hosts: &Hosts) -> Result<PathBuf, Failure> {
    let client = hosts.either().await?;
    if client.daemon() == Daemon::Source {
        return Err(Failure::new(
            Exit::Refused,
            "restoring on the protected host, through the connection, comes in a later version",
            "restore on the gateway, or name a store that this machine can read: --store /srv/farside",
        ));
    }
    Ok(client.receiver_status().await?.store.path)
}

/// Restores a point of a volume. `progress` hears bytes done and in all, from any thread.
pub(crate) fn restore(
    path: &Path,
    volume: &Address,
    wanted: PointRef,
    to: &Path,
    options: Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Restored, Failure> {
    let begun = Instant::now();
    refuse_backing(to, Path::new(SOURCE_CONFIGURATION))?;
    let reader = store::open(path)?;
    let (group, id) = store::find_volume(&reader, volume)?;
    let infos = group.points();
    let candidates: Vec<Point> = infos
        .iter()
        .filter(|info| info.member(id).is_some())
        .map(|info| farside_receiver::point_of(group.names(), info))
        .collect();
    let chosen = select_point(&candidates, wanted, jiff::Timestamp::now());
    let chosen = chosen.ok_or_else(|| point::no_such_point(wanted, Some(volume)))?;
    let info = infos.iter().find(|info| info.slot.0 == chosen.id.slot).expect("it was chosen among these");
    let point_reader = group.point_reader(info.slot, id)?;
    let total = point_reader.geometry().volume_bytes();
    let settings = RestoreOptions { allow_degraded: options.allow_degraded, ..RestoreOptions::default() };
    check_restorable(&point_reader, &settings)?;
    let target = FileTarget::open(to, volume.name(), total, options.existing)?;
    let settings = RestoreOptions { resume: target.is_resumed(), ..settings };
    let report = restore_to(&point_reader, &target, &settings, &|done| {
        progress(done, total);
        true
    })?;
    target.finish()?;
    Ok(Restored {
        point: chosen.clone(),
        to: to.to_owned(),
        volume_bytes: total,
        data_bytes: report.data_bytes,
        kept_bytes: report.kept_bytes,
        unreadable_bytes: report.unreadable_bytes,
        unreadable: unreadable_runs(&point_reader).iter().map(|r| Run { offset_bytes: r.offset.0, bytes: r.len }).collect(),
        unreadable_filled_with: "zeroes",
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// A volume's backing is written by its daemon only, which then knows that everything changed. A running one holds its lock;
/// this is for the one that does not run just now.
fn refuse_backing(to: &Path, configuration: &Path) -> Result<(), Failure> {
    let config = match Config::load(configuration) {
        Ok(config) => config,
        // No daemon here.
        Err(ConfigError::File(FileError::Io { path, source }))
            if path == configuration && source.kind() == ErrorKind::NotFound =>
        {
            return Ok(());
        }
        Err(error) => {
            return Err(Failure::new(
                Exit::Refused,
                format!("whether {} is a volume's backing cannot be told: {error}", to.display()),
                "mend the configuration of farsided, or run this as a user who may read it",
            ));
        }
    };
    let Ok(target) = std::fs::metadata(to) else { return Ok(()) };
    let is_target = |backing: &Path| std::fs::metadata(backing).is_ok_and(|backing| same(&backing, &target));
    match config.volumes.values().find(|volume| is_target(&volume.backing)) {
        Some(volume) => Err(Failure::new(
            Exit::Refused,
            format!("{} is the backing of volume {}: writing there would go unnoticed by farsided", to.display(), volume.name),
            "restore into a file or another device, and copy from there through the volume's tap",
        )),
        None => Ok(()),
    }
}

/// Whether two are the same file or device, whatever their names.
fn same(one: &Metadata, two: &Metadata) -> bool {
    if one.file_type().is_block_device() && two.file_type().is_block_device() {
        return one.rdev() == two.rdev();
    }
    (one.dev(), one.ino()) == (two.dev(), two.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_used_refuses_and_none_does_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let configuration = dir.path().join("farsided.toml");
        let to = dir.path().join("out");
        assert!(refuse_backing(&to, &configuration).is_ok(), "no daemon here");
        std::fs::write(&configuration, "not = [").expect("write");
        let refused = refuse_backing(&to, &configuration).expect_err("it cannot be told");
        assert!(refused.exit == Exit::Refused && refused.message.contains("farsided.toml"), "{refused:?}");
    }

    #[test]
    fn a_file_is_the_same_under_every_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        std::fs::write(&a, "x").expect("write");
        std::fs::write(&c, "x").expect("write");
        std::fs::hard_link(&a, &b).expect("link");
        let [a, b, c] = [a, b, c].map(|path| std::fs::metadata(path).expect("meta"));
        assert!(same(&a, &b) && !same(&a, &c));
    }
}
