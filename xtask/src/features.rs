//! That what this program needs is built as the tests need it, too.
//!
//! Cargo builds a library once for each set of features that the packages at hand turn on in it, and all that needs it again for each. This program
//! is built alone, before the tests of all packages are; so it turns on what they do, and half of it is not built a second time.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};

/// Dependencies that are there for nothing else.
pub(crate) const ONLY_FOR_FEATURES: &[&str] = &[
    "arrayvec",
    "base64",
    "digest",
    "farside-store",
    "form_urlencoded",
    "memchr",
    "percent-encoding",
    "rustls",
    "serde_core",
    "smallvec",
    "subtle",
    "time",
    "tokio",
    "tokio-rustls",
    "tracing-core",
    "url",
];

/// Names what would be built twice.
pub(crate) fn check(found: &mut Vec<String>) -> anyhow::Result<()> {
    let (this, tests) = (turned_on(&["-p", "xtask", "-e", "normal"])?, turned_on(&["--workspace", "-e", "normal,dev"])?);
    for once in this.difference(&tests) {
        let name = once.split_once(" [").map_or(once.as_str(), |(name, _)| name);
        let others: Vec<&str> =
            tests.iter().filter(|other| other.split_once(" [").is_some_and(|(n, _)| n == name)).map(String::as_str).collect();
        found.push(format!("xtask/Cargo.toml: {once} is built again as {} for the tests", others.join(" and ")));
    }
    Ok(())
}

/// Packages, each with its features.
fn turned_on(of: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut tree = crate::test_all::cargo(&["tree", "--locked", "--prefix", "none", "--no-dedupe", "-f", "{p}\t{f}"]);
    let output = tree.args(of).output().context("cargo tree does not start")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
}

/// `name v1.2.3 (from somewhere)<TAB>feature,feature`
fn parse(line: &str) -> Option<String> {
    let (package, features) = line.split_once('\t')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?);
    Some(format!("{name} {version} [{}]", features.trim_end_matches(" (*)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_told_by_its_features() {
        assert_eq!(parse("tokio v1.2.3\tfs,net").as_deref(), Some("tokio v1.2.3 [fs,net]"));
        assert_eq!(parse("serde_derive v1.0.0 (proc-macro)\tdefault (*)").as_deref(), Some("serde_derive v1.0.0 [default]"));
        assert_eq!(parse("[dev-dependencies]"), None);
    }
}
