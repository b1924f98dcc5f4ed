//! A point as one stream of bytes, from the first to the last: what pipes and other programs take.
//!
//! Regions are read and checked by several threads and written in order by the caller's. Worker *w* of *t* reads the regions
//! w, w + t, …, each through a channel of its own that holds one, so the memory is bounded by two regions for each thread
//! whatever the reader of the stream does. Unlike `restore`, the first region cannot come last: whoever reads the stream
//! must hold what he has for nothing until it ended without an error.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use farside_region::{ByteExtent, RegionIndex};

use crate::error::{Result, StoreError};
use crate::index::Content;
use crate::reader::{PointReader, RegionContent};
use crate::restore::{RestoreOptions, RestoreReport, check_restorable, read_or_salvage};

/// Zeroes that are written at a time.
const ZEROES: &[u8] = &[0; 256 << 10];

/// A region on its way.
struct Piece {
    /// Nothing when all of it is zeroes.
    content: Option<RegionContent>,
    lost: Vec<ByteExtent>,
}

/// Writes a point's bytes to `out`, all of them, in order. [`RestoreOptions::resume`] says nothing here. `progress` hears how
/// many bytes of the volume are written; `false` stops it. `name` is the stream's, for messages.
///
/// # Errors
/// As [`crate::restore_to`]; what `out` says, as an error of the target `name`. What was written then is the volume's first part.
pub fn restore_stream(
    reader: &PointReader,
    (name, out): (&Path, &mut dyn Write),
    options: &RestoreOptions,
    progress: &dyn Fn(u64) -> bool,
) -> Result<RestoreReport> {
    check_restorable(reader, options)?;
    let regions = reader.geometry().region_count();
    let threads = options.threads_for(reader).max(1) as u64;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for worker in 0..threads.min(regions) {
            let (pieces, taken) = sync_channel(0);
            let (back, spare) = sync_channel(1);
            let mine = (worker..regions).step_by(threads as usize);
            scope.spawn(move || read(reader, options, mine, &pieces, &spare));
            workers.push((taken, back));
        }
        // Whoever still reads when this ends early finds nobody to give it to.
        write(reader, &workers, (name, out), progress)
    })
}

/// Reads every one of `regions`, in order; ends after an error, and when nobody takes them any more.
fn read(
    reader: &PointReader,
    options: &RestoreOptions,
    regions: impl Iterator<Item = u64>,
    pieces: &SyncSender<Result<Piece>>,
    spare: &Receiver<RegionContent>,
) {
    for region in regions.map(RegionIndex) {
        let piece = if reader.is_zero(region) {
            Ok(Piece { content: None, lost: Vec::new() })
        } else {
            let mut content = spare.try_recv().unwrap_or_else(|_| reader.content());
            let lost = read_or_salvage(reader, region, &mut content, options.allow_damaged);
            lost.map(|lost| Piece { content: Some(content), lost })
        };
        let is_end = piece.is_err();
        if pieces.send(piece).is_err() || is_end {
            return;
        }
    }
}

fn write(
    reader: &PointReader,
    workers: &[(Receiver<Result<Piece>>, SyncSender<RegionContent>)],
    (name, out): (&Path, &mut dyn Write),
    progress: &dyn Fn(u64) -> bool,
) -> Result<RestoreReport> {
    let geometry = reader.geometry();
    let failed = |error| StoreError::of_target("writing", name, error);
    let mut report = RestoreReport::default();
    for region in 0..geometry.region_count() {
        let extent = geometry.bytes_of(geometry.region_run(RegionIndex(region)));
        let (taken, back) = &workers[region as usize % workers.len()];
        let piece = taken.recv().expect("a worker ends after its last region or after an error, which ends this")?;
        match piece.content {
            None => {
                report.count(Content::Zero, extent.len);
                write_zeroes(out, extent.len).map_err(failed)?;
            }
            Some(content) => {
                content.runs.iter().for_each(|(run, kind)| report.count(*kind, geometry.bytes_of(*run).len));
                out.write_all(&content.bytes).map_err(failed)?;
                let _ = back.try_send(content);
            }
        }
        report.damaged.extend(piece.lost);
        if !progress(extent.offset.0 + extent.len) {
            return Err(StoreError::Stopped);
        }
    }
    out.flush().map_err(failed)?;
    Ok(report)
}

fn write_zeroes(out: &mut dyn Write, mut bytes: u64) -> std::io::Result<()> {
    while bytes > 0 {
        let now = bytes.min(ZEROES.len() as u64);
        out.write_all(&ZEROES[..now as usize])?;
        bytes -= now;
    }
    Ok(())
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
