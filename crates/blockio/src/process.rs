//! Settings of the whole process that keep a block server alive under memory pressure, and the two clocks of a boot.
//!
//! Each setting may lack privilege; then its error says what that costs and what grants it. The caller warns and goes on.

use std::io;

use farside_region::BootId;
use nix::errno::Errno;
use thiserror::Error;

/// A setting that could not be made. The process works without it, with the stated cost.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingError {
    /// Memory stays swappable.
    #[error(
        "memory is not locked ({source}): under memory pressure a host write may wait for swap. \
         Grant CAP_IPC_LOCK or raise the limit (systemd: LimitMEMLOCK=infinity)"
    )]
    LockMemory {
        /// What mlockall said.
        #[source]
        source: io::Error,
    },
    /// The calling thread could not give up a privilege.
    #[error("this thread cannot give up CAP_SYS_ADMIN")]
    Privilege {
        /// What capget or capset said.
        #[source]
        source: io::Error,
    },
    /// A core dump may be written to what this process serves.
    #[error("core dumps are not refused ({source}): one that is written to a volume of this process would wait for it")]
    CoreDump {
        /// What prctl said.
        #[source]
        source: io::Error,
    },
    /// The calling thread waits for the processor like any other, or holds up those that should not.
    #[error(
        "the kernel gives this thread no other priority ({source}): where processors are busy, a host write waits for one. Raise the \
         limit (systemd: LimitNICE=-20)"
    )]
    Priority {
        /// What sched_setattr said.
        #[source]
        source: io::Error,
    },
    /// Allocations by this process may wait for I/O that it serves itself.
    #[error(
        "PR_SET_IO_FLUSHER is not set ({source}): memory reclaim may wait for I/O that this process itself must do. \
         Grant CAP_SYS_RESOURCE (systemd: AmbientCapabilities=CAP_SYS_RESOURCE)"
    )]
    IoFlusher {
        /// What prctl said.
        #[source]
        source: io::Error,
    },
}

/// From how many bytes on an allocation is a mapping of its own, which is empty until it is touched and goes back when it is freed.
/// More than what a region takes when it is encoded, which would be mapped and emptied again for each.
const MAPPED_FROM: libc::c_int = 8 << 20;

/// Has the allocator map every large allocation, and keep no more than this of what is freed on top of an arena. Of itself glibc
/// stops that after the first large one was freed: later ones lie in arenas, which zero them, so that every page of them is touched
/// (and locked) and never goes back. The receive buffer of a QUIC endpoint, of which nearly all is never used, then costs 18 MiB for
/// each thread that ever dialled. Call it before any thread starts.
pub fn map_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers only; glibc knows both settings, so it cannot fail.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_FROM);
    }
}

/// Keeps every page that is touched from now on in memory (`MCL_ONFAULT`: untouched ones cost nothing).
///
/// # Errors
/// [`SettingError::LockMemory`], with the remedy.
pub fn lock_memory() -> Result<(), SettingError> {
    // With a finite limit the call itself may work, and every large mapping after it would fail.
    let (limit, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK)
        .map_err(|errno| SettingError::LockMemory { source: errno.into() })?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if limit != libc::RLIM_INFINITY && !has_capability(&status, CAP_IPC_LOCK) {
        return Err(SettingError::LockMemory { source: Errno::EPERM.into() });
    }
    // SAFETY: mlockall takes flags only and touches no memory of ours.
    let rc = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if rc == 0 { Ok(()) } else { Err(SettingError::LockMemory { source: io::Error::last_os_error() }) }
}

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether `/proc/self/status` shows an effective capability.
fn has_capability(status: &str, capability: u32) -> bool {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> capability & 1 == 1)
}

/// Marks the calling thread, and every thread it starts later, as one that serves block I/O: call it before any thread starts.
///
/// # Errors
/// [`SettingError::IoFlusher`], with the remedy.
pub fn set_io_flusher() -> Result<(), SettingError> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes integers only.
    let rc = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    if rc == 0 { Ok(()) } else { Err(SettingError::IoFlusher { source: io::Error::last_os_error() }) }
}

/// How a thread stands to all others where there are fewer processors than work.
///
/// † Weight alone (nice) says who runs longer, not who runs first: a thread that wakes up waits until the one on its processor has
/// had its slice, 1.4 ms on two processors and up to 3 on more, as often as a request changes threads. Since Linux 6.12 a
/// thread may ask for a slice of its own, and one with a shorter slice interrupts one with a longer. Older kernels do not look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A host's request waits for it: as the kernel's own threads of the block layer (`kblockd`). Not of real time, which would
    /// starve whatever shares the processor with a busy disk, and which the kernel stops for 50 ms in each second.
    Urgent,
    /// It computes, and nobody waits for it but the far side. It never idles for others altogether (`SCHED_IDLE`): the lag would grow
    /// without bound, and so would the time for which it holds a lock that it shares with threads of the other kinds.
    Background,
    /// Nobody waits for it at all: as [`Priority::Background`], and its reads come after everybody else's, where the disk's I/O scheduler
    /// tells them apart.
    Idle,
}

/// The shortest and the longest slice that the kernel gives.
const SLICE_NS_MIN: u64 = 100_000;
const SLICE_NS_MAX: u64 = 100_000_000;

impl Priority {
    /// The calling thread's, from now on, and that of the threads that it starts from now on.
    ///
    /// # Errors
    /// [`SettingError::Priority`].
    pub fn set(self) -> Result<(), SettingError> {
        let (policy, nice, slice_ns) = match self {
            Self::Urgent => (libc::SCHED_OTHER, -20, SLICE_NS_MIN),
            Self::Background => (libc::SCHED_BATCH, 10, SLICE_NS_MAX),
            Self::Idle => {
                idle_io()?;
                (libc::SCHED_BATCH, 19, SLICE_NS_MAX)
            }
        };
        let attributes = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: policy as u32,
            sched_flags: 0,
            sched_nice: nice,
            sched_priority: 0,
            sched_runtime: slice_ns,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: sched_setattr reads one sched_attr of the size that it says, a live local; 0 is the calling thread, and no flags.
        let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if rc == 0 { Ok(()) } else { Err(SettingError::Priority { source: io::Error::last_os_error() }) }
    }
}

/// The calling thread's I/O comes after everybody else's, and that of the threads that it starts from now on.
fn idle_io() -> Result<(), SettingError> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: ioprio_set takes integers only; 0 is the calling thread.
    let rc = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE) };
    if rc == 0 { Ok(()) } else { Err(SettingError::Priority { source: io::Error::last_os_error() }) }
}

/// Has the kernel write no core dump of this process, whatever catches those elsewhere: the process would have to serve the
/// disk on which its own dump is written, or the pages of the program that takes it.
///
/// # Errors
/// [`SettingError::CoreDump`].
pub fn refuse_core_dumps() -> Result<(), SettingError> {
    // SAFETY: this prctl takes integers only.
    let rc = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    if rc == 0 { Ok(()) } else { Err(SettingError::CoreDump { source: io::Error::last_os_error() }) }
}

/// Has the calling thread, and every thread it starts later, act without CAP_SYS_ADMIN.
///
/// # Errors
/// [`SettingError::Privilege`].
pub fn give_up_administration() -> Result<(), SettingError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    // Effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63.
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: capget writes two sets of three words through the second pointer and the version it knows through the first; both
    // are to live locals of that layout.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    sets[0][0] &= !(1 << CAP_SYS_ADMIN);
    // SAFETY: capset reads what capget wrote, from the same live locals.
    if got == 0 && unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } == 0 {
        return Ok(());
    }
    Err(SettingError::Privilege { source: io::Error::last_os_error() })
}

/// The kernel's random identity of this boot.
///
/// # Errors
/// When `/proc` is not mounted or says something unexpected.
pub fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    parse_boot_id(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("boot_id is {text:?}")))
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: Vec<u8> =
        text.bytes().filter(|&b| b != b'-').map(|b| (b as char).to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let mut bytes = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(BootId(bytes))
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock that every process of this boot shares.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The text of an errno without allocating: what a status line shows.
pub fn errno_text(errno: Errno) -> &'static str {
    errno.desc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_twice_and_the_clock_does_not_go_back() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        let (a, b) = (monotonic_ns(), monotonic_ns());
        assert!(0 < a && a <= b);
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK) && !has_capability(status, 13) && !has_capability("", CAP_IPC_LOCK));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_large_allocation_is_empty_until_it_is_touched_also_the_second_time() {
        const BYTES: usize = 18 << 20;
        map_large_allocations();
        for _ in 0..2 {
            let large = std::hint::black_box(vec![0_u8; BYTES]);
            let page = large.as_ptr().align_offset(4096);
            let mut resident = vec![0_u8; BYTES / 4096 - 1];
            // SAFETY: the pages lie within `large`, and there is a byte for each.
            let rc =
                unsafe { libc::mincore(large[page..].as_ptr().cast_mut().cast(), resident.len() * 4096, resident.as_mut_ptr()) };
            assert_eq!(rc, 0, "{}", io::Error::last_os_error());
            // Beside the allocator's own words there may be a huge page.
            assert!(resident[1024..].iter().all(|page| page & 1 == 0), "pages were touched");
        }
    }

    #[test]
    fn a_thread_gives_up_administration_for_itself_alone() {
        let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let before = has_capability(&status(), CAP_SYS_ADMIN);
        std::thread::spawn(move || {
            give_up_administration().unwrap();
            assert!(!has_capability(&status(), CAP_SYS_ADMIN));
        })
        .join()
        .unwrap();
        assert_eq!(has_capability(&status(), CAP_SYS_ADMIN), before);
    }

    #[test]
    fn a_thread_that_computes_gives_way_and_others_do_not() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, after_name) = stat.rsplit_once(')').unwrap();
            let field = |at| after_name.split_whitespace().nth(at).unwrap().parse::<i32>().unwrap();
            (field(16), field(38))
        };
        let before = nice();
        std::thread::spawn(move || {
            Priority::Background.set().unwrap();
            assert_eq!(nice(), (10, libc::SCHED_BATCH));
            let inherited = std::thread::spawn(nice).join().unwrap();
            assert_eq!(inherited, (10, libc::SCHED_BATCH), "who starts threads must not be one of these");
        })
        .join()
        .unwrap();
        assert_eq!(nice(), before);
    }

    #[test]
    fn a_boot_id_is_sixteen_bytes_of_hex() {
        assert!(parse_boot_id("01234567-89ab-cdef-0123-456789abcdef").is_some());
        assert!(parse_boot_id("01234567-89ab-cdef-0123-456789abcde").is_none());
        assert!(parse_boot_id("g1234567-89ab-cdef-0123-456789abcdef").is_none());
    }
}
