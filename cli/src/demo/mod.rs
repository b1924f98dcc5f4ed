//! `farside demo`: the whole story on this machine, told as it happens.
//!
//! A receiver and a daemon (this program, executed again) in a temporary directory; a real ext4 image protected by them; a
//! workload that changes it through the tap; the daemon killed in the middle of it; points restored and compared with what
//! the workload knows it had written. Nothing here helps the product along: it uses the configuration files, the API and the
//! restore that everybody uses.

mod blocks;
mod mounted;
mod report;
mod site;
mod tools;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use farside_control::routes::PointsQuery;
use farside_control::source::{GroupStatus, VolumeState};
use farside_control::{Address, Point, PointRef};
use farside_objects::Location;

use self::report::{Measured, Narrator, RestoreReport};
use self::site::{SOURCE, Site, VOLUME};
use self::workload::{Basic, Cut, Running, Workload, now_ns};
use crate::args::{Global, parse_bytes};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::{print, restore, status};

/// Between two looks at the status.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// At most one line about points in so long.
const LINE_INTERVAL: Duration = Duration::from_millis(900);
/// Smaller volumes cannot hold the image and the workload; larger than 2^40 bytes is not what a demo is for.
const SIZES: std::ops::RangeInclusive<u64> = (64 << 20)..=(1 << 40);

/// `farside demo`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A receiver with a local store and a daemon start in a temporary directory. A real ext4 image is
served through the tap while a workload changes it: mounted through nbdfuse and a loop device where
root and FUSE allow, otherwise as successive states of a local copy whose differing blocks are
written through the tap. Then the source is killed without mercy, the newest point and one from the
middle are restored, checked with e2fsck and compared with what the workload had written by then.

Needs mke2fs, debugfs and e2fsck (package e2fsprogs); root is not needed. Nothing is left behind, unless --keep.

Examples:
  farside demo
  farside demo --size 4GiB
  farside demo --keep            then look around: the directory and the commands to try are printed
  farside demo --basic           never mount, also where it would be possible")]
pub(crate) struct DemoArgs {
    /// Size of the volume.
    #[arg(long, default_value = "1GiB", value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Leave the directory with store, image and logs.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Do not mount the volume, also where root and FUSE would allow it.
    #[arg(long)]
    pub(crate) basic: bool,
    /// How long the workload changes the volume, in seconds.
    #[arg(long, default_value_t = 12, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(4..=600))]
    pub(crate) seconds: u32,
}

/// Tells the story.
pub(crate) fn run(global: &Global, args: &DemoArgs) -> Result<(), Failure> {
    if !SIZES.contains(&args.size) {
        return Err(Failure::new(Exit::Usage, "--size must be between 64MiB and 1TiB", ""));
    }
    tools::require()?;
    let narrator = Narrator::new(global.json);
    let mut demo = Demo::begin(narrator, args)?;
    let result = demo.tell(args);
    if args.keep {
        demo.narrator.say(&format!("kept: {}", demo.site.path("").display()));
        demo.narrator.hint(&format!("farside point list {VOLUME} --store {}", demo.site.store().display()));
        demo.narrator.hint(&format!("farside store check {}", demo.site.store().display()));
    }
    let Demo { narrator, measured, workload, site, .. } = demo;
    // From the top down: the mount goes before the tap, the tap before the directory.
    drop(workload);
    drop(site);
    result?;
    if !args.keep {
        narrator.say("nothing was left behind");
    }
    narrator.finish(&measured)
}

struct Demo {
    narrator: Narrator,
    measured: Measured,
    // Dropped before the site: the mount lies on the tap.
    workload: Option<Arc<dyn Workload>>,
    site: Site,
    scratch: PathBuf,
}

impl Demo {
    fn begin(narrator: Narrator, args: &DemoArgs) -> Result<Self, Failure> {
        let site = Site::new(args.keep)?;
        let scratch = site.path("scratch");
        std::fs::create_dir_all(&scratch).or_fail("cannot make a folder")?;
        Ok(Self { narrator, measured: Measured::default(), workload: None, site, scratch })
    }

    fn tell(&mut self, args: &DemoArgs) -> Result<(), Failure> {
        let size = args.size / 4096 * 4096;
        self.measured.volume_bytes = size;
        self.narrator.say(&format!("an ext4 image of {} with real files of this machine in it", print::bytes(size)));
        self.measured.files_bytes = workload::make_image(&self.site.backing(), size, &self.scratch)?;
        self.narrator.say("a receiver with an empty store, and a daemon that serves the image over NBD");
        let begun = Instant::now();
        self.site.start()?;
        self.narrator.say("paired: each side pinned the other's certificate");
        self.first_sync(begun)?;
        self.choose_workload(args)?;
        self.protect(args)?;
        let points = self.survivors()?;
        self.restore(&points)
    }

    /// `None` until the volume was opened, which a daemon that answers may still be at.
    fn group_if_open(&self) -> Result<Option<GroupStatus>, Failure> {
        Ok(self.site.block_on(self.site.host().source_status())?.groups.into_iter().next())
    }

    fn group(&self) -> Result<GroupStatus, Failure> {
        self.group_if_open()?.ok_or_else(|| Failure::new(Exit::Failed, "the daemon has no group", ""))
    }

    fn first_sync(&mut self, begun: Instant) -> Result<(), Failure> {
        let bar = self.narrator.bar();
        loop {
            self.site.check_interrupt()?;
            self.site.check_children()?;
            let group = self.group_if_open()?;
            if let Some(VolumeState::Behind { progress, .. }) = group.as_ref().map(|group| &group.state) {
                bar.set(progress.done_bytes, progress.total_bytes);
            }
            if let Some((group, point)) = group.as_ref().and_then(|group| Some((group, group.last_point.as_ref()?))) {
                bar.finish();
                self.measured.first_sync_ms = elapsed_ms(begun);
                if let Some(volume) = group.volumes.first() {
                    self.measured.first_sync_bytes = volume.counters.sent_bytes;
                    self.measured.first_sync_wire_bytes = volume.counters.wire_bytes;
                }
                self.narrator.say(&format!(
                    "first sync done in {}, {} on the wire; the first point is {}",
                    print::duration_ms(self.measured.first_sync_ms),
                    print::bytes(self.measured.first_sync_wire_bytes),
                    point.id
                ));
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(600) {
                let group = self.group()?;
                let message = format!("no point after 10 minutes; the volume is {}", status::state(&group.state));
                return Err(Failure::new(Exit::Failed, message, "run it again with --keep and look at the logs"));
            }
            self.site.pause(LOOK_INTERVAL);
        }
    }

    fn choose_workload(&mut self, args: &DemoArgs) -> Result<(), Failure> {
        let obstacle = if args.basic { Some("--basic".to_owned()) } else { mounted::obstacle() };
        let obstacle = match obstacle {
            None => match mounted::Mounted::new(&self.site.tap(), &self.scratch) {
                Ok(mounted) => {
                    self.narrator.say("mounted through nbdfuse and a loop device; files are written, synced and removed on it");
                    self.measured.form = "files on the mounted file system";
                    self.workload = Some(Arc::new(mounted));
                    return Ok(());
                }
                Err(failure) => failure.message,
            },
            Some(obstacle) => obstacle,
        };
        self.narrator.say(&format!(
            "not mounted ({obstacle}): debugfs makes the changes in a local copy, block by block they go through the tap"
        ));
        self.measured.form = "states made by debugfs, written through the tap";
        self.workload = Some(Arc::new(Basic::new(&self.site.backing(), self.site.tap(), self.scratch.join("basic"))?));
        Ok(())
    }

    fn workload(&self) -> Arc<dyn Workload> {
        self.workload.clone().expect("chosen before it is used")
    }

    /// Watches points appear while the volume changes, then kills the daemon.
    fn protect(&mut self, args: &DemoArgs) -> Result<(), Failure> {
        let before = self.group()?;
        let wire_before: u64 = before.volumes.iter().map(|volume| volume.counters.wire_bytes).sum();
        self.narrator.say(&format!(
            "{} s of changes; a point is cut every {}:",
            args.seconds,
            print::duration_ms(before.epoch_interval_ms)
        ));
        let workload = self.workload();
        let mut running = Running::start(workload.clone());
        let begun = Instant::now();
        let mut lags = Vec::new();
        let mut last_line: Option<Instant> = None;
        while begun.elapsed() < Duration::from_secs(args.seconds.into()) {
            self.site.check_interrupt()?;
            self.site.check_children()?;
            running.check()?;
            let group = self.group()?;
            lags.extend(group.lag_ms);
            if let Some(point) = &group.last_point
                && last_line.is_none_or(|at| at.elapsed() >= LINE_INTERVAL)
            {
                last_line = Some(Instant::now());
                let lag = group.lag_ms.map_or_else(|| "?".to_owned(), print::duration_ms);
                let (written, backlog) = (print::bytes(workload.written_bytes()), print::bytes(group.backlog_bytes));
                let count = group.points_published.saturating_sub(before.points_published);
                self.narrator.detail(&format!(
                    "{:<12} newest {:<16} lag {lag:<6} {count:>3} points  written {written:<9} backlog {backlog:<9} {}",
                    status::state(&group.state),
                    point.id.to_string(),
                    group.reasons.first().map_or("", |reason| reason.message.as_str()),
                ));
            }
            self.site.pause(LOOK_INTERVAL);
        }
        let after = self.group()?;
        self.measured.workload_ms = elapsed_ms(begun);
        self.measured.wire_bytes = after.volumes.iter().map(|volume| volume.counters.wire_bytes).sum::<u64>() - wire_before;
        self.measured.points = after.points_published.saturating_sub(before.points_published);
        self.measured.set_lags(lags);
        [self.measured.source_usage, self.measured.receiver_usage] = self.site.usage();
        // Mercy would be to wait for a quiet moment.
        let patience = Instant::now() + Duration::from_secs(5);
        while !workload.is_writing() && Instant::now() < patience {
            std::thread::yield_now();
        }
        let killed_ns = now_ns();
        self.site.kill_source();
        self.narrator.say("kill -9: the source is dead, in the middle of a write");
        running.end();
        self.measured.written_bytes = workload.written_bytes();
        self.measured.killed_ns = killed_ns;
        Ok(())
    }

    /// What the receiver has, now that the source is gone.
    fn survivors(&mut self) -> Result<Vec<Point>, Failure> {
        let query = PointsQuery { of: Some(format!("{SOURCE}/{VOLUME}")), limit: None };
        let points = self.site.block_on(self.site.gateway().points(&query))?;
        let Some(newest) = points.first() else {
            return Err(Failure::new(
                Exit::Damaged,
                "the receiver lists no point",
                "this is a bug; run the demo with --keep and report it",
            ));
        };
        let lost_ms = self.measured.killed_ns.saturating_sub(newest.cut_mono_after_ns) / 1_000_000;
        self.measured.lost_ms = lost_ms;
        self.narrator.say(&format!(
            "the receiver holds {} points; the newest is {} old",
            points.len(),
            print::duration_ms(lost_ms)
        ));
        Ok(points)
    }

    fn restore(&mut self, points: &[Point]) -> Result<(), Failure> {
        let workload = self.workload();
        let whole = |point: &&Point| workload.is_between_rounds(cut_of(point));
        // Newest first: the middle of those that lie between two rounds.
        let between: Vec<&Point> = points.iter().skip(1).filter(whole).collect();
        let mut chosen = vec![("the newest point", &points[0])];
        if !whole(&&points[0])
            && let Some(point) = between.first()
        {
            chosen.push(("the newest point between two states", point));
        }
        match between.get(between.len() / 2) {
            Some(point) => chosen.push(("a point from the middle", point)),
            None => self.narrator.say("there was only one point to restore: a longer --seconds makes more"),
        }
        for (what, point) in chosen {
            let report = self.restore_one(what, point, workload.as_ref())?;
            self.measured.restores.push(report);
        }
        Ok(())
    }

    fn restore_one(&mut self, what: &'static str, point: &Point, workload: &dyn Workload) -> Result<RestoreReport, Failure> {
        self.site.check_interrupt()?;
        let image = self.scratch.join("restored.img");
        let volume: Address = format!("{SOURCE}/{VOLUME}").parse().expect("our own names");
        let wanted = PointRef::Id { slot: point.id.slot, tag: Some(point.id.tag) };
        let begun = Instant::now();
        let bar = self.narrator.bar();
        let options = restore::Options {
            keys: Vec::new(),
            existing: farside_store::Existing::Keep,
            allow_degraded: false,
            allow_damaged: false,
            format: crate::args::ImageFormat::Raw,
            goes_on: false,
        };
        let restored = restore::restore(&Location::Dir(self.site.store()), &volume, wanted, &image, &options, &|done, total| {
            bar.set(done, total);
            true
        })?;
        bar.finish();
        let took_ms = elapsed_ms(begun);
        let finding = workload.compare(cut_of(point), &image, &self.scratch)?;
        std::fs::remove_file(&image).or_fail("cannot remove the restored image")?;
        let clean = if finding.file_system_checked { ", e2fsck finds nothing" } else { "" };
        self.narrator.say(&format!(
            "{what}, {}: restored in {}, holds {}, equal ({}){clean}",
            point.id,
            print::duration_ms(took_ms),
            finding.state,
            finding.compared
        ));
        Ok(RestoreReport {
            what,
            point: point.id,
            took_ms,
            volume_bytes: restored.volume_bytes,
            written_bytes: restored.data_bytes,
            state: finding.state,
            compared: finding.compared,
            file_system_checked: finding.file_system_checked,
        })
    }
}

fn cut_of(point: &Point) -> Cut {
    Cut { before_ns: point.cut_mono_before_ns, after_ns: point.cut_mono_after_ns }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
