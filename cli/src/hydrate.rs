//! `farside point open --hydrate`: the point becomes a plain file while it is used.
//!
//! How it is filled, and what it may be called when, is `crates/view`'s; this says how far it is and what went wrong.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use farside_store::LazyPointReader;
use farside_view::{Overlay, View};

use crate::failure::{Exit, Failure, OrFail as _};
use crate::print;
use crate::progress::Progress;

/// Fetching and writing at the same time; more would take from those who read.
const THREADS: usize = 2;
/// So much room is left to what is written over the point meanwhile, and to everybody else.
const RESERVE_BYTES: u64 = 64 << 20;

/// A file that is being filled.
#[derive(Debug)]
pub(crate) struct Hydration {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<bool, Failure>>,
}

impl Hydration {
    /// Begins, or goes on. The view has an overlay.
    pub(crate) fn start(
        view: Arc<View<Arc<LazyPointReader>>>,
        base: Arc<LazyPointReader>,
        file: PathBuf,
        json: bool,
    ) -> Result<Self, Failure> {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let work = move || {
            // All of it is wanted. What goes wrong here goes wrong again where it is said.
            let _ = base.index_all(&|| !until.load(Ordering::Relaxed));
            say_if_tight(&view, &file);
            let ended = fill(&view, &file, json, &until);
            let said = match &ended {
                Ok(true) if view.is_writable() => format!(
                    "{} is whole, and what is written here is written to it: end this before anything else writes there\n",
                    file.display()
                ),
                Ok(true) => format!("{} is whole: it needs neither the store nor this command\n", file.display()),
                Ok(false) => String::new(),
                Err(failure) => format!("farside: {}; what is there is served on\n", failure.message),
            };
            let _ = std::io::stderr().write_all(said.as_bytes()); // nobody may read that any more
            ended
        };
        let thread = std::thread::Builder::new().name("hydrate".into()).spawn(work).or_fail("cannot start")?;
        Ok(Self { is_over, thread })
    }

    /// Ends it, after the region that is under way; says whether the file is whole. Ctrl-C ends the program before.
    pub(crate) async fn end(self) -> Result<bool, Failure> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut ended = tokio::task::spawn_blocking(move || self.thread.join());
        let ended = tokio::select! {
            ended = &mut ended => ended.or_fail("cannot end")?,
            _ = tokio::signal::ctrl_c() => std::process::exit(Exit::Failed as i32),
        };
        ended.unwrap_or_else(|_| Err(Failure::new(Exit::Failed, "the file was not filled to the end", "")))
    }
}

fn fill(view: &View<Arc<LazyPointReader>>, file: &Path, json: bool, is_over: &AtomicBool) -> Result<bool, Failure> {
    let (progress, total) = (Progress::new(json), view.bytes());
    let (overlay, is_tight) = (view.overlay().expect("it is to be filled"), AtomicBool::new(false));
    let filled = view.fill(THREADS, &|there_bytes| {
        progress.set(there_bytes, total);
        if overlay.room_bytes().is_ok_and(|room| room < RESERVE_BYTES) {
            is_tight.store(true, Ordering::Relaxed);
        }
        !is_over.load(Ordering::Relaxed) && !is_tight.load(Ordering::Relaxed)
    });
    progress.finish();
    let missing = filled.or_fail(format!("{} cannot be filled", file.display()))?;
    if missing == 0 {
        let made = overlay.become_file(file);
        return made.map(|()| true).map_err(|error| Failure::from_error(Exit::Failed, &error, ""));
    }
    if is_over.load(Ordering::Relaxed) {
        return Ok(false);
    }
    if is_tight.into_inner() {
        let (room, missing) = (print::bytes(RESERVE_BYTES), print::bytes(missing));
        let message =
            format!("{} is not made: less than {room} of room are left there, and {missing} are missing", file.display());
        return Err(Failure::new(Exit::Failed, message, "make room, and give the same command again: it goes on"));
    }
    let not_fetched =
        |why: &str| format!("{} is not made: {why}, and {} were not fetched", file.display(), print::bytes(missing));
    if view.is_deleted() {
        let message = not_fetched("the store has given up the point");
        return Err(Failure::new(Exit::NotFound, message, "open another point, and pin it first: farside point pin"));
    }
    if view.is_merged() {
        let message = not_fetched("what the store keeps was merged meanwhile");
        return Err(Failure::new(Exit::Failed, message, "give the same command again: it goes on"));
    }
    let message = format!("{} is not made: {} of the volume cannot be read", file.display(), print::bytes(missing));
    let what_to_do = "put back what the store has lost, or write there (--writable), and give the same command again";
    Err(Failure::new(Exit::Damaged, message, what_to_do))
}

fn say_if_tight(view: &View<Arc<LazyPointReader>>, file: &Path) {
    let room = view.overlay().and_then(|overlay| overlay.room_bytes().ok());
    let Some(room) = room.map(|room| room.saturating_sub(RESERVE_BYTES)) else { return };
    let needed = view.fill_bytes_max();
    if needed > room {
        let (needed, room) = (print::bytes(needed), print::bytes(room));
        let said = format!("farside: {} may take {needed}, and there is room for {room}\n", file.display());
        let _ = std::io::stderr().write_all(said.as_bytes()); // nobody may read that
    }
}

/// Whether a file of this name may come out of that overlay.
pub(crate) fn refuse(file: &Path, overlay: &Path) -> Result<(), Failure> {
    if Overlay::holds(overlay, file) {
        let message = format!("{} lies in the folder of its own overlay, {}", file.display(), overlay.display());
        return Err(Failure::new(Exit::Usage, message, "name a file outside of it"));
    }
    if Overlay::tidy_away(overlay, file) || file.symlink_metadata().is_ok() {
        let what_to_do = "if an earlier --hydrate made it, it is whole: use it by itself; otherwise name another one";
        return Err(Failure::new(Exit::Refused, format!("{} is there already", file.display()), what_to_do));
    }
    let parent = file.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        let message = format!("there is no directory {}", parent.display());
        return Err(Failure::new(Exit::NotFound, message, "name a file in a directory that is there"));
    }
    // It gets its name where it is filled. The folder may not be there yet.
    let device = |path: &Path| path.ancestors().find_map(|path| path.metadata().ok()).map(|is| is.dev());
    if device(parent) == device(overlay) {
        return Ok(());
    }
    let message = format!("{} and {} are on different file systems", file.display(), overlay.display());
    Err(Failure::new(Exit::Refused, message, format!("name a folder beside the file: --overlay {}.overlay", file.display())))
}
