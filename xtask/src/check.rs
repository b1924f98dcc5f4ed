//! `xtask check`: the rules of the project that a compiler does not know.
//!
//! Owns the import table (the one in `ARCHITECTURE.md` must say the same) and the scans of the sources. Everything is read
//! from `cargo metadata` and the work tree; nothing is downloaded. It reports all it finds, not the first thing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::features::{self, ONLY_FOR_FEATURES};
use crate::{laws, licence};

/// Who may import whom, among ourselves. Development crates may import anything; nothing imports them, but tests one of them.
const IMPORTS: &[(&str, &[&str])] = &[
    ("farside-region", &[]),
    ("farside-control", &[]),
    ("farside-service", &["farside-control"]),
    ("farside-keys", &["farside-region"]),
    ("farside-ledger", &["farside-region"]),
    ("farside-layer", &["farside-region", "farside-keys"]),
    ("farside-wire", &["farside-region", "farside-ledger"]),
    ("farside-blockio", &["farside-region"]),
    ("farside-shim", &["farside-region", "farside-blockio"]),
    ("farside-replication", &["farside-region", "farside-wire", "farside-ledger"]),
    ("farside-store", &["farside-region", "farside-layer", "farside-keys", "farside-ledger", "farside-blockio"]),
    ("farside-transport", &["farside-region", "farside-wire"]),
    ("farside-nbd", &["farside-region", "farside-blockio"]),
    ("farside-ublk", &["farside-region", "farside-blockio"]),
    ("farside-insert", &["farside-blockio"]),
    ("farside-hooks", &["farside-region"]),
    ("farside-view", &["farside-region", "farside-blockio", "farside-store"]),
    ("farside-objects", &["farside-store"]),
    (
        "farside-daemon",
        &[
            "farside-region",
            "farside-control",
            "farside-service",
            "farside-ledger",
            "farside-layer",
            "farside-keys",
            "farside-wire",
            "farside-blockio",
            "farside-shim",
            "farside-store",
            "farside-view",
            "farside-replication",
            "farside-transport",
            "farside-nbd",
            "farside-ublk",
            "farside-insert",
            "farside-hooks",
        ],
    ),
    (
        "farside-receiver",
        &[
            "farside-region",
            "farside-control",
            "farside-service",
            "farside-ledger",
            "farside-layer",
            "farside-keys",
            "farside-wire",
            "farside-blockio",
            "farside-replication",
            "farside-store",
            "farside-objects",
            "farside-transport",
            "farside-nbd",
        ],
    ),
    (
        "farside",
        &[
            "farside-region",
            "farside-control",
            "farside-service",
            "farside-store",
            "farside-keys",
            "farside-objects",
            "farside-daemon",
            "farside-receiver",
            "farside-nbd",
            "farside-ublk",
            "farside-blockio",
            "farside-view",
        ],
    ),
];

/// Development only.
const DEVELOPMENT: &[&str] =
    &["farside-sim", "farside-fuzz", "farside-tests", "farside-s3-servers", "farside-vm", "farside-bench", "xtask"];

/// The one of them that the tests of other crates may import: it imports none of ours, so it turns on no feature of theirs.
const FOR_TESTS: &str = "farside-s3-servers";

/// Crates of others that only these of ours may import (development crates aside).
const SOLE_IMPORTERS: &[(&str, &[&str])] = &[
    ("argon2", &["farside-keys"]),
    ("aws-lc-rs", &["farside-keys"]),
    ("axum", &["farside-daemon", "farside-receiver", "farside-service"]),
    ("hyper", &["farside-control", "farside-objects"]),
    ("io-uring", &["farside-blockio", "farside-ublk"]),
    ("memmap2", &["farside-blockio", "farside-ublk"]),
    ("object_store", &["farside-objects"]),
    ("prometheus-client", &["farside-service"]),
    ("quinn", &["farside-transport"]),
    ("tokio-rustls", &["farside-transport"]),
    ("rcgen", &["farside-transport"]),
    ("rustls", &["farside-transport"]),
    ("sd-notify", &["farside-service"]),
    ("tracing-subscriber", &["farside-service"]),
    ("utoipa", &["farside-control"]),
    ("zstd", &["farside-layer"]),
    ("anyhow", &["farside-daemon", "farside-receiver", "farside"]),
];

/// Crates that decide and do nothing else: no I/O, clock, thread or randomness of their own.
const PURE: &[&str] = &["crates/region", "crates/ledger", "crates/layer", "crates/wire", "crates/replication"];

/// What a pure crate's product code must not mention.
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::net",
    "thread::spawn",
    "thread::sleep",
    "std::process",
    "SystemTime",
    "Instant::now",
    "getrandom",
    "tokio::",
    "nix::",
    "libc::",
];

/// What the daemon must not use, and what would come of it.
const NOT_FOR_THE_DAEMON: &[(&str, &str)] =
    &[("passing_pages", "what a host puts in its pages after a switch would be in the cut before it (L3)")];

/// Where threads run that a host's request waits for, and whoever shares something with them.
const WRITE_PATH: &[&str] = &["crates/shim/src/", "crates/blockio/src/", "crates/nbd/src/", "ublk/src/", "daemon/src/"];

/// How threads wait there without sleeping. `std::sync::mpsc` does, inside; so does all of crossbeam.
const AWAKE: &[&str] = &["yield_now", "spin_loop", "crossbeam", "std::sync::mpsc", "ArrayQueue", "SegQueue"];

/// Models, which are no part of what is shipped; and who makes a device of the kernel's client, which serves no request.
const MAY_WAIT_AWAKE: &[&str] = &["crates/shim/src/models.rs", "crates/nbd/src/kernel.rs"];

/// The only places that may contain unsafe code.
const UNSAFE_ROOMS: &[&str] = &["crates/blockio/", "ublk/", "crates/hooks/src/kernel.rs"];

const FILE_LINES_MAX: usize = 1200;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    id: String,
    version: String,
    source: Option<String>,
    license: Option<String>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Checks every rule.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = crate::root();
    let metadata = metadata(&root)?;
    let sources = Sources::read(&root)?;
    let mut found = Vec::new();
    check_imports(&metadata, &mut found);
    check_dependencies(&metadata, &root, &mut found);
    check_lints(&metadata, &mut found);
    check_unused(&metadata, &root, &sources, &mut found);
    check_pure(&sources, &mut found);
    check_unsafe(&sources, &mut found);
    check_daemon(&sources, &mut found);
    check_write_path(&sources, &mut found);
    check_words(&sources, &mut found);
    check_shape(&sources, &mut found);
    laws::check(&sources, &mut found);
    features::check(&mut found)?;
    if found.is_empty() {
        return Ok(());
    }
    for finding in &found {
        eprintln!("check: {finding}");
    }
    bail!("{} findings", found.len())
}

fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .context("cargo metadata does not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata says something unexpected")
}

impl Package {
    /// The dependencies that are there for what they do.
    fn used(&self) -> impl Iterator<Item = &Dependency> {
        let is_for_features = |name: &str| self.name == "xtask" && ONLY_FOR_FEATURES.contains(&name);
        self.dependencies.iter().filter(move |dependency| !is_for_features(&dependency.name))
    }
}

impl Metadata {
    fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}

fn check_imports(metadata: &Metadata, found: &mut Vec<String>) {
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let ours: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    for package in metadata.members() {
        let name = package.name.as_str();
        if name == FOR_TESTS && package.dependencies.iter().any(|dependency| ours.contains(dependency.name.as_str())) {
            found.push(format!("{name} imports a crate of ours, whose tests may import it"));
        }
        if DEVELOPMENT.contains(&name) {
            continue;
        }
        let Some(allowed) = table.get(name) else {
            found.push(format!("{name} is not in the import table"));
            continue;
        };
        for dependency in &package.dependencies {
            let import = dependency.name.as_str();
            let is_for_tests = dependency.kind.as_deref() == Some("dev");
            if DEVELOPMENT.contains(&import) && !(is_for_tests && import == FOR_TESTS) {
                found.push(format!("{name} imports {import}, which is for development only"));
            }
            if is_for_tests {
                continue;
            }
            if ours.contains(import) && !allowed.contains(&import) {
                found.push(format!("{name} may not import {import}"));
            }
            if let Some((_, importers)) = SOLE_IMPORTERS.iter().find(|(sole, _)| *sole == import)
                && !importers.contains(&name)
            {
                found.push(format!("{name} may not import {import}; only {importers:?} may"));
            }
        }
    }
    for (name, _) in IMPORTS.iter().filter(|(name, _)| !ours.contains(name)) {
        found.push(format!("the import table names {name}, which does not exist"));
    }
}

fn check_dependencies(metadata: &Metadata, root: &Path, found: &mut Vec<String>) {
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for package in &metadata.packages {
        let Some(source) = &package.source else {
            if !package.manifest_path.starts_with(root) {
                found.push(format!("{} comes from {}, outside the work tree", package.name, package.manifest_path.display()));
            }
            continue;
        };
        if !(source.starts_with("registry+") && source.ends_with("rust-lang/crates.io-index")) {
            found.push(format!("{} {} does not come from crates.io but from {source}", package.name, package.version));
        }
        let licence = package.license.as_deref().unwrap_or("none said");
        if !licence::is_allowed(licence) {
            found.push(format!("{} {} has a licence that is not allowed: {licence}", package.name, package.version));
        }
    }
    let ours: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let direct: BTreeSet<&str> = metadata
        .members()
        .flat_map(Package::used)
        .map(|dependency| dependency.name.as_str())
        .filter(|name| !ours.contains(name))
        .collect();
    for name in direct.iter().filter(|name| !architecture.contains(&format!("`{name}`"))) {
        found.push(format!("ARCHITECTURE.md gives no reason for the dependency `{name}`"));
    }
}

fn check_lints(metadata: &Metadata, found: &mut Vec<String>) {
    for package in metadata.members() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
        if !manifest.contains("[lints]\nworkspace = true") {
            found.push(format!("{} does not take the workspace's lints", package.name));
        }
    }
}

/// A dependency that no source file of its package mentions is one too many.
fn check_unused(metadata: &Metadata, root: &Path, sources: &Sources, found: &mut Vec<String>) {
    for package in metadata.members() {
        let folder = package.manifest_path.parent().and_then(|folder| folder.strip_prefix(root).ok());
        let Some(folder) = folder.and_then(Path::to_str) else { continue };
        let texts: Vec<&str> =
            sources.rust().filter(|(name, _)| name.starts_with(&format!("{folder}/"))).map(|(_, text)| text).collect();
        for dependency in package.used() {
            let ident = dependency.name.replace('-', "_");
            let ways = [format!("{ident}::"), format!("use {ident}"), format!("derive({ident}")];
            if !texts.iter().any(|text| ways.iter().any(|way| text.contains(way))) {
                found.push(format!("{} depends on {} and does not use it", package.name, dependency.name));
            }
        }
    }
}

/// Every file that git knows, with its text where it is text.
pub(crate) struct Sources {
    files: Vec<(String, String)>,
}

impl Sources {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git does not start")?;
        if !output.status.success() {
            bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
        let mut files = Vec::new();
        for name in names.split_terminator('\0') {
            // A file that was deleted and not yet committed is still listed; one that is not text has no words.
            if let Ok(text) = std::fs::read_to_string(root.join(name)) {
                files.push((name.to_owned(), text));
            }
        }
        Ok(Self { files })
    }

    /// These, for tests.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect() }
    }

    /// The text of one file.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, text)| text.as_str())
    }

    /// Every Rust source, with its name.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter(|(name, _)| name.ends_with(".rs")).map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

/// The lines of a source before its tests (which come last in a file), without comments.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !(line.trim_start().starts_with("#[cfg(") && line.contains("test")))
        .map(|(at, line)| (at + 1, line.split_once("//").map_or(line, |(code, _)| code)))
}

/// By where it lies.
pub(crate) fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.ends_with("_tests.rs") || name.contains("/tests/") || name.contains("/benches/")
}

fn check_pure(sources: &Sources, found: &mut Vec<String>) {
    for (name, text) in sources.rust() {
        if is_test_file(name) || !PURE.iter().any(|dir| name.starts_with(&format!("{dir}/src/"))) {
            continue;
        }
        for (at, line) in product_lines(text) {
            for word in IMPURE_WORDS.iter().filter(|word| line.contains(*word)) {
                found.push(format!("{name}:{at}: a pure crate mentions {word}"));
            }
        }
    }
}

fn check_unsafe(sources: &Sources, found: &mut Vec<String>) {
    for (name, text) in sources.rust() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split_once("//").map_or(*line, |(code, _)| code);
            let opens = [concat!("unsafe", " {"), concat!("unsafe", " fn"), concat!("unsafe", " impl")];
            let allows = code.contains(concat!("allow(unsafe", "_code)")) || code.contains(concat!("expect(unsafe", "_code)"));
            let is_unsafe = opens.iter().any(|word| code.contains(word));
            if !(is_unsafe || allows) {
                continue;
            }
            if !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
                found.push(format!("{name}:{}: unsafe code outside its rooms", at + 1));
            } else if is_unsafe
                && !lines[at.saturating_sub(8)..=at].iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
            {
                found.push(format!("{name}:{}: unsafe code without its SAFETY line", at + 1));
            }
        }
    }
}

fn check_daemon(sources: &Sources, found: &mut Vec<String>) {
    for (name, text) in sources.rust().filter(|(name, _)| name.starts_with("daemon/")) {
        for (at, line) in product_lines(text) {
            for (word, what) in NOT_FOR_THE_DAEMON.iter().filter(|(word, _)| line.contains(word)) {
                found.push(format!("{name}:{at}: the daemon uses `{word}`: {what}"));
            }
        }
    }
}

/// † A thread that waits awake for another one's unfinished change keeps the processor, which that one may need; where it outranks it, for
/// ever. A host's request waits for both.
fn check_write_path(sources: &Sources, found: &mut Vec<String>) {
    for (name, text) in sources.rust().filter(|(name, _)| WRITE_PATH.iter().any(|dir| name.starts_with(dir))) {
        if is_test_file(name) || MAY_WAIT_AWAKE.contains(&name) {
            continue;
        }
        for (at, line) in product_lines(text) {
            // A task of tokio's that yields does not keep its thread, whose others run.
            let line = line.replace("tokio::task::yield_now", "");
            for word in AWAKE.iter().filter(|word| line.contains(*word)) {
                found.push(format!("{name}:{at}: `{word}` waits without sleeping; see `daemon/src/channel.rs`"));
            }
        }
    }
}

/// What no file of the project may contain. Each is put together here, so that this file does not contain it either.
fn forbidden_words() -> Vec<(String, &'static str)> {
    vec![
        (["/wo", "rk/"].concat(), "a path of somebody's machine"),
        (["/fa", "rm/"].concat(), "a path of somebody's machine"),
        (["/ho", "me/"].concat(), "a path of somebody's machine"),
        (["../sha", "red"].concat(), "something outside the project"),
        (["deb.deb", "ian.org"].concat(), "a package registry"),
        (["static.cra", "tes.io"].concat(), "a package registry"),
        (["index.cra", "tes.io"].concat(), "a package registry"),
        (["pypi", ".org"].concat(), "a package registry"),
        (["npm", "js.org"].concat(), "a package registry"),
        (["todo", "!("].concat(), "something unfinished"),
        (["unimplemented", "!("].concat(), "something unfinished"),
        (["FIX", "ME"].concat(), "something unfinished"),
        (["#[ign", "ore"].concat(), "a test that does not run"),
        (["BEGIN PRIVATE", " KEY"].concat(), "a secret"),
    ]
}

fn check_words(sources: &Sources, found: &mut Vec<String>) {
    let words = forbidden_words();
    for (name, text) in sources.files.iter().filter(|(name, _)| name != "Cargo.lock") {
        for (at, line) in text.lines().enumerate() {
            for (word, what) in words.iter().filter(|(word, _)| line.contains(word.as_str())) {
                found.push(format!("{name}:{}: `{word}` is {what}", at + 1));
            }
        }
    }
}

fn check_shape(sources: &Sources, found: &mut Vec<String>) {
    for (name, text) in sources.rust() {
        if !text.starts_with("//!") && !is_test_file(name) {
            found.push(format!("{name}: the first lines must say what the file owns (//!)"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{name}: {lines} lines; split it"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_bites() {
        let unsafe_line = concat!("//! x\n", "fn f() { unsafe", " { g() } }\n");
        let unfinished = format!("//! x\nfn f() {{ {}) }}\n", ["todo", "!("].concat());
        type Rule = fn(&Sources, &mut Vec<String>);
        let cases: &[(Rule, &str, &str, &str)] = &[
            (check_pure, "crates/wire/src/lib.rs", "//! x\nuse std::fs::File;\n", "std::fs"),
            (check_unsafe, "crates/shim/src/lib.rs", unsafe_line, "outside its rooms"),
            (check_unsafe, "crates/blockio/src/lib.rs", unsafe_line, "SAFETY"),
            (check_daemon, "daemon/src/tap.rs", "//! x\nfn f(s: Server) { s.passing_pages(); }\n", "(L3)"),
            (check_write_path, "daemon/src/queue.rs", "//! x\nuse crossbeam::queue::ArrayQueue;\n", "without sleeping"),
            (check_words, "README.md", &unfinished, "unfinished"),
            (check_shape, "cli/src/x.rs", "fn f() {}\n", "must say what the file owns"),
        ];
        for (rule, name, text, words) in cases {
            let mut found = Vec::new();
            rule(&Sources::of(&[(name, text)]), &mut found);
            assert!(found.iter().any(|finding| finding.contains(words)), "{name}: {found:?}");
        }
    }

    #[test]
    fn tests_and_comments_of_a_pure_crate_may_say_anything() {
        let text = "//! std::fs\nfn f() {} // std::fs\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        let mut found = Vec::new();
        check_pure(&Sources::of(&[("crates/wire/src/lib.rs", text), ("crates/wire/src/x/tests.rs", "use std::fs;")]), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
