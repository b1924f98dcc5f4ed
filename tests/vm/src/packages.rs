//! Our Debian packages in a guest that runs Debian, and what its command line says.

use std::path::PathBuf;

use farside_tests::wait_for;
use serde_json::Value;

use crate::Guest;

/// A package that the step `packages` made.
fn package(name: &str) -> PathBuf {
    let folder = farside_tests::bin_dir().parent().expect("programs lie in target/PROFILE").join("packages");
    let found = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.expect("a readable folder").path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_")));
    found.into_iter().find(is_it).unwrap_or_else(|| {
        panic!("{} has no {name}; make it with `cargo run --release -p xtask -- test --only packages`", folder.display())
    })
}

/// Installs them.
///
/// # Panics
/// When one was not made, or cannot be installed.
pub fn install(guest: &mut Guest, names: &[&str]) {
    for name in names {
        guest.upload(&format!("/root/{name}.deb"), &std::fs::read(package(name)).expect("readable"), 0o644);
    }
    let files: Vec<String> = names.iter().map(|name| format!("/root/{name}.deb")).collect();
    guest.run(&format!("dpkg --install {}", files.join(" ")));
}

/// What a protected host says of itself, if its daemon answers.
pub fn status(host: &mut Guest) -> Option<Value> {
    serde_json::from_str(&host.attempt("farside status --json").stdout).ok()
}

/// Everything that was written is in a point, on every volume of every group.
///
/// # Panics
/// When it does not come to that.
pub fn wait_quiet(host: &mut Guest) {
    wait_for("everything to be published", || {
        let status = status(host)?;
        let groups = status["groups"].as_array().filter(|groups| !groups.is_empty())?;
        let quiet = |volume: &Value| volume["state"]["state"] == "streaming" && volume["dirty_bytes"] == 0;
        let all_quiet = groups.iter().all(|group| {
            let volumes = group["volumes"].as_array().is_some_and(|volumes| volumes.iter().all(quiet));
            volumes && group["backlog_bytes"] == 0 && group["last_point"].is_object() && group["layers_unpublished"] == 0
        });
        all_quiet.then_some(())
    });
}
