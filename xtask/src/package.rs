//! `xtask -- package`: the Debian packages, through Debian's own tools. `debian/rules` says what goes where.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Cargo's profile: dist is what is shipped.
    #[arg(long, default_value = SHIPPED)]
    profile: String,
    /// Take the programs as they are in target/PROFILE, instead of building them.
    #[arg(long)]
    built: bool,
}

/// The profile whose programs are shipped.
const SHIPPED: &str = "dist";

/// The command that makes the packages of the tests out of programs that an earlier step has built.
pub(crate) fn for_tests() -> Args {
    Args { profile: "release".into(), built: true }
}

/// Makes them in `target/packages`, and says their names.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    same_version()?;
    let to = crate::root().join("target/packages");
    match std::fs::remove_dir_all(&to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("old packages cannot be removed")?,
        _ => std::fs::create_dir_all(&to).with_context(|| format!("{} cannot be made", to.display()))?,
    }
    rules("clean", args, &to)?;
    rules("binary", args, &to)?;
    rules("clean", args, &to)?;
    let mut made: Vec<PathBuf> = std::fs::read_dir(&to)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    made.sort();
    if made.len() != 3 {
        bail!("{} packages were made, and not three", made.len());
    }
    made.iter().for_each(|path| println!("{}", path.display()));
    Ok(())
}

fn rules(target: &str, args: &Args, to: &std::path::Path) -> anyhow::Result<()> {
    let mut command = Command::new("debian/rules");
    command.current_dir(crate::root()).arg(target).arg(format!("PROFILE={}", args.profile)).env("TO", to);
    if args.built {
        command.arg("BUILT=1");
    }
    if args.profile != SHIPPED {
        // An emulated machine takes several times as long to unpack what is packed best.
        command.env("DPKG_DEB_COMPRESSOR_TYPE", "zstd");
    }
    let output = command.output().context("debian/rules does not start: install make and debhelper")?;
    if !output.status.success() {
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("debian/rules {target}: {}\n{said}{complained}", output.status);
    }
    Ok(())
}

/// One version everywhere: cargo's is the programs', the changelog's is the packages'.
fn same_version() -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read_to_string(crate::root().join(name)).with_context(|| format!("{name} cannot be read"));
    let (manifest, changelog) = (read("Cargo.toml")?, read("debian/changelog")?);
    let ours = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    let theirs = changelog.split(['(', ')']).nth(1);
    if ours.is_none() || ours != theirs {
        bail!("Cargo.toml has version {ours:?}, debian/changelog {theirs:?}");
    }
    Ok(())
}
