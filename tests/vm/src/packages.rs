//! Our Debian packages in a guest that runs Debian, and what its command line says.

use std::path::PathBuf;

use farside_tests::{is_quiet, wait_for, wait_until};
use serde_json::Value;

use crate::Guest;
use crate::protected::PROMISED;

/// Finds a package that the step `packages` made.
///
/// # Errors
/// Says how to make it.
pub fn find(name: &str) -> Result<PathBuf, String> {
    let folder = farside_tests::bin_dir().parent().expect("programs lie in target/PROFILE").join("packages");
    let found = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.expect("a readable folder").path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_")));
    let how = "make it with `cargo run --release -p xtask -- test --only packages`";
    found.into_iter().find(is_it).ok_or_else(|| format!("{} has no {name}; {how}", folder.display()))
}

/// Installs them.
///
/// # Panics
/// When one was not made, or cannot be installed.
pub fn install(guest: &mut Guest, names: &[&str]) {
    let files = upload(guest, names);
    guest.run(&format!("dpkg --install {}", files.join(" ")));
}

/// Puts them into `/root`, and gives their paths.
///
/// # Panics
/// When one was not made.
pub fn upload(guest: &mut Guest, names: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for name in names {
        let file = format!("/root/{name}_vm.deb");
        guest.upload(&file, &std::fs::read(find(name).unwrap_or_else(|what| panic!("{what}"))).expect("readable"), 0o644);
        files.push(file);
    }
    files
}

/// What a protected host says of itself, if its daemon answers.
pub fn status(host: &mut Guest) -> Option<Value> {
    host.status("/run/farside/farsided.sock")
}

/// Everything that was written is in a point, on every volume of every group.
///
/// # Panics
/// When it does not come to that.
pub fn wait_quiet(host: &mut Guest) {
    wait_until("everything to be published", || is_quiet(status(host).ok_or("no answer")?));
}

/// An application that writes into a file system, and remembers what it was promised.
#[derive(Debug)]
pub struct Load {
    pid: u32,
}

impl Load {
    /// Begins to write in a folder, some of the time and with the time that nobody else wants: its machine has one processor, the
    /// threads of the kernel and the daemon that its writes need have no low priority, and what a test does beside it shall get on.
    pub fn start(host: &mut Guest, folder: &str) -> Self {
        let load = format!("exec nice -n 19 farside-vm-load write {folder} {PROMISED} /run/stop 40");
        Self { pid: host.start_command(&load, "/run/load.log") }
    }

    /// Waits until it has got on by so many writes.
    ///
    /// # Panics
    /// When it has not.
    pub fn gets_on(&self, host: &mut Guest, writes: u64) {
        let before = host.lines(PROMISED);
        wait_for("the load to get on", || (host.lines(PROMISED) > before + writes).then_some(()));
    }

    /// Ends it. Returns what it was promised.
    ///
    /// # Panics
    /// When it has met an error.
    pub fn stop(self, host: &mut Guest) -> Vec<u8> {
        host.run(&format!("test -d /proc/{} && touch /run/stop", self.pid));
        host.wait_for_end(self.pid);
        assert_eq!(host.run("cat /run/load.log; rm /run/stop"), "", "the application met an error");
        host.download(PROMISED)
    }

    /// Whether what it was promised is there.
    ///
    /// # Panics
    /// When it is not.
    pub fn check(host: &mut Guest, folder: &str, promised: &[u8]) {
        host.upload("/run/promised", promised, 0o644);
        host.run(&format!("farside-vm-load check {folder} /run/promised"));
    }
}
