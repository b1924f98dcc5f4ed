//! Reading a guest's kernel log: which of its records are trouble.
//!
//! Invariant: everything of level "error" or worse is trouble, whatever it says, and so are the kernel's own alarms on any level
//! (warnings with a trace, hung tasks, stalls, I/O errors, file systems that found something), unless the test announced it.
//! The three kernels boot without any of it, so there is no list of what may be overlooked. Deliberately not trouble: remarks
//! of level "warning", of which every boot has some.

/// One record of `/dev/kmsg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Microseconds since boot.
    pub micros: u64,
    /// What it says; further lines (`KEY=value`) are left out.
    pub text: String,
}

const ERROR: u8 = 3;

/// The kernel's alarms, on whatever level it prints them.
const ALARMS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "kernel panic",
    "Kernel panic",
    "Call Trace",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls",
    "rcu: INFO:",
    "general protection fault",
    "unable to handle",
    "I/O error",
    "Buffer I/O",
    "lost async page write",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Corruption",
    "metadata I/O",
    "Shutting down filesystem",
    "Out of memory",
    "oom-kill",
    "segfault at",
    "trap invalid opcode",
    "tainted",
];

impl Record {
    /// Parses `prio,seq,micros,flags;text`.
    pub fn parse(record: &str) -> Option<Self> {
        let (head, text) = record.split_once(';')?;
        let mut fields = head.split(',');
        let prio: u32 = fields.next()?.parse().ok()?;
        let micros = fields.nth(1)?.parse().ok()?;
        let text = text.lines().next().unwrap_or_default().to_owned();
        Some(Self { level: (prio & 7) as u8, micros, text })
    }

    /// Whether it must fail a test that did not announce it.
    pub fn is_trouble(&self) -> bool {
        let is_alarm = ALARMS.iter().any(|alarm| self.text.contains(alarm));
        is_alarm || self.level <= ERROR
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:>4}.{:06}] <{}> {}", self.micros / 1_000_000, self.micros % 1_000_000, self.level, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        Record::parse(text).expect("a record")
    }

    #[test]
    fn records_are_read_as_the_kernel_writes_them() {
        let parsed = record("28,339,5140900,-,caller=T1;nbd0: detected capacity change\n SUBSYSTEM=block\n DEVICE=b43:0\n");
        assert_eq!(parsed, Record { level: 4, micros: 5_140_900, text: "nbd0: detected capacity change".into() });
        assert_eq!(Record::parse("no record"), None);
    }

    #[test]
    fn alarms_and_errors_are_trouble_and_the_rest_is_not() {
        assert!(record("4,1,1,-;WARNING: CPU: 0 PID: 1 at fs/inode.c:1 f+0x1/0x2").is_trouble());
        assert!(record("6,1,1,-;I/O error, dev vda, sector 0 op 0x1:(WRITE)").is_trouble());
        assert!(record("3,1,1,-;anything at all").is_trouble());
        assert!(!record("6,1,1,-;EXT4-fs (vda): recovery complete").is_trouble());
        assert!(!record("4,1,1,-;a remark").is_trouble());
    }
}
