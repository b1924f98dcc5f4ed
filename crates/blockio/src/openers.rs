//! Who has a block device open without claiming it: the kernel's exclusive claim (`O_EXCL`) is granted beside them.
//!
//! It knows processes, also those in containers, as far as this process may look at them (root with CAP_SYS_PTRACE; what may
//! not be looked at is not seen). It does not know what the kernel itself has open without a claim: loop devices, NVMe targets.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::dm::DevNumber;
use crate::door::process_name;

/// How long who has a device open may be one that only looks at it.
const WAIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// Other processes that have a device or a partition of it open, as a person would say it: `process 123 (qemu-system-x86)`.
pub fn openers(device: &Path) -> Vec<String> {
    openers_but(device, |_| false)
}

fn openers_but(device: &Path, is_left_out: impl Fn(u32) -> bool) -> Vec<String> {
    let Ok(number) = DevNumber::at(device) else { return Vec::new() };
    let numbers = with_partitions(number);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    others.filter(|pid| has_open(*pid, &numbers) && !is_left_out(*pid)).map(process_name).collect()
}

/// The same without those that were killed and only wait in the kernel for what the device owes them: nothing of it reaches
/// anybody any more. For a device that nobody serves: as long as it is there they cannot end.
pub fn living_openers(device: &Path) -> Vec<String> {
    openers_but(device, is_killed)
}

/// Who has something open still after a moment, as `look` tells: whoever only looks at new devices is soon done.
pub fn open_still(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let until = Instant::now() + WAIT;
    loop {
        let openers = look();
        if openers.is_empty() || Instant::now() >= until {
            return openers;
        }
        std::thread::sleep(POLL);
    }
}

fn with_partitions(number: DevNumber) -> Vec<DevNumber> {
    let entries = std::fs::read_dir(format!("/sys/dev/block/{number}")).into_iter().flatten().flatten();
    let partitions = entries.filter(|entry| entry.path().join("partition").exists());
    let numbers = partitions.filter_map(|entry| DevNumber::parse(std::fs::read_to_string(entry.path().join("dev")).ok()?.trim()));
    numbers.chain([number]).collect()
}

/// Whether a process was sent a deadly signal that it could not take yet: the kernel then marks each of its threads with `SIGKILL`,
/// whatever the signal was.
fn is_killed(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states: Vec<String> = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).collect();
    all_await_their_end(states.iter().map(String::as_str))
}

/// † All that are left: of a process that becomes another program (exec) all threads but one are ended the same way, and it lives on.
fn all_await_their_end<'a>(states: impl Iterator<Item = &'a str>) -> bool {
    let has_ended = |state: &&str| {
        let state = state.lines().find_map(|line| line.strip_prefix("State:"));
        state.is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
    };
    let mut left = states.filter(|state| !has_ended(state)).peekable();
    left.peek().is_some() && left.all(awaits_its_end)
}

/// By `/proc/PID/status` of a thread.
fn awaits_its_end(state: &str) -> bool {
    let pending = state.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|signals| u64::from_str_radix(signals.trim(), 16).ok()).unwrap_or(0);
    pending >> (nix::libc::SIGKILL - 1) & 1 == 1
}

fn has_open(pid: u32, numbers: &[DevNumber]) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.map(|entry| entry.path()).any(|link| {
        // Only then is it looked at more closely: what lies on a network file system may not answer.
        let is_node = std::fs::read_link(&link).is_ok_and(|node| node.starts_with("/dev"));
        is_node
            && std::fs::metadata(&link)
                .is_ok_and(|node| node.file_type().is_block_device() && numbers.contains(&DevNumber::of(node.rdev())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_thread_is_told_from_others() {
        let state = |pending: &str| {
            format!("Name:\tfarsided\nState:\tD (disk sleep)\nSigQ:\t0/1\nSigPnd:\t{pending}\nShdPnd:\t0000000000000100\n")
        };
        assert!(awaits_its_end(&state("0000000000000100")));
        assert!(awaits_its_end(&state("0000000000004100")), "by another signal");
        // To a whole process, not yet given to it, or other signals.
        for other in ["0000000000000000", "0000000000004000", "0000000000000200", "", "what"] {
            assert!(!awaits_its_end(&state(other)), "{other}");
        }
        let (killed, lives) = (state("0000000000000100"), state("0000000000000000"));
        let ended = lives.replace("D (disk sleep)", "Z (zombie)");
        assert!(all_await_their_end([ended.as_str(), killed.as_str()].into_iter()), "its first thread has ended already");
        assert!(!all_await_their_end([killed.as_str(), lives.as_str()].into_iter()), "it becomes another program");
        assert!(!all_await_their_end([ended.as_str()].into_iter()) && !all_await_their_end([].into_iter()), "nothing is known");
        assert!(!is_killed(std::process::id()), "this one lives");
        let mine = std::fs::read_to_string("/proc/self/status").expect("there");
        assert!(mine.contains("\nSigPnd:\t"), "as the kernel writes it: {mine}");
    }
}
