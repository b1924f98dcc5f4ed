//! Where the kernels and the guests' programs are: Debian packages, unpacked side by side, never into this machine.
//!
//! `xtask` fetches them (its step `kernels`) and tests read them; both find them by the functions here. The layout:
//! `NAME/` is a link to `NAME@VERSION/`, the unpacked tree of the newest version that was fetched; it appears whole. Tests
//! need no network and never fetch anything themselves.

use std::path::{Path, PathBuf};

/// The environment variable that names the folder; without it, the user's cache folder is taken.
pub const CACHE: &str = "FARSIDE_VM_CACHE";

/// The folder of everything that was fetched.
///
/// # Panics
/// When neither [`CACHE`], `XDG_CACHE_HOME` nor `HOME` is set.
pub fn dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(CACHE)
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("farside-vm")))
        .or_else(|| Some(variable("HOME")?.join(".cache/farside-vm")))
        .unwrap_or_else(|| panic!("set {CACHE} to a folder for kernels"))
}

/// The tree of this name.
///
/// # Panics
/// When it was not fetched.
pub(crate) fn tree(name: &str) -> PathBuf {
    let tree = dir().join(name);
    assert!(
        tree.exists(),
        "{} is not there; fetch it with `cargo run --release -p xtask -- test --only kernels`",
        tree.display()
    );
    tree.canonicalize().expect("it exists")
}

/// The first of these that exists below a tree.
pub(crate) fn first_of(tree: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| tree.join(name)).find(|path| path.exists())
}
