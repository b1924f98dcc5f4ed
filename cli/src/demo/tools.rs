//! The programs of the system that the demo uses: found where administrators' programs are, run with their output kept for
//! the moment they fail.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::failure::{Exit, Failure, OrFail as _};

const NEEDED: &[&str] = &["mke2fs", "debugfs", "e2fsck"];

/// What the mounted form needs beside root and /dev/fuse.
pub(crate) const MOUNTING: &[&str] = &["nbdfuse", "losetup", "mount", "umount"];

/// Refuses to begin without the programs that every form needs.
pub(crate) fn require() -> Result<(), Failure> {
    let missing: Vec<&str> = NEEDED.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        format!("the demo needs {}", missing.join(" and ")),
        "install e2fsprogs: apt-get install e2fsprogs (Debian, Ubuntu), dnf install e2fsprogs (Fedora, RHEL)",
    ))
}

/// Where a program is, with the folders searched that are not in everybody's path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A program of the system, ready for its arguments.
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Runs it; any of `accepted` exit codes is a success.
pub(crate) fn run_accepting(command: &mut Command, accepted: &[i32]) -> Result<Output, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().or_fail(format!("{name} does not start"))?;
    if output.status.code().is_some_and(|code| accepted.contains(&code)) {
        return Ok(output);
    }
    let words = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).join("\n");
    let mut last: Vec<&str> = words.lines().rev().filter(|line| !line.trim().is_empty()).take(12).collect();
    last.reverse();
    Err(Failure::new(Exit::Failed, format!("{name}: {}\n{}", output.status, last.join("\n")), ""))
}

/// Runs it; it must exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<Output, Failure> {
    run_accepting(command, &[0])
}

/// Runs it and takes what it prints.
pub(crate) fn ask(command: &mut Command) -> Result<String, Failure> {
    let output = run(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
