//! What a device wants of whoever uses it, beyond size and alignment: what a tap in front of it repeats to the host.
//!
//! Invariant: only advice. Every number is a power of two or zero, so that a tap can hand it on; what the kernel does not tell
//! has the value that costs least when it is wrong.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::{DeviceKind, FileDevice, door};

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What the medium writes at once; at least the alignment.
    pub physical_block: u32,
    /// The smallest request that costs no reading before writing; at least `physical_block`.
    pub io_min: u32,
    /// What it is fastest with; 0: nothing in particular.
    pub io_opt: u32,
    /// Whether seeking costs time.
    pub rotational: bool,
    /// What zeroing frees at once.
    pub discard_granularity: u32,
    /// What memory must be aligned to that is read or written without a copy; a power of two up to a page.
    pub memory_align: u32,
    /// Whether what is being written must not change until it is (checksums, parity).
    pub stable_writes: bool,
}

/// A file's: that of the page cache below.
const FILE_BLOCK: u32 = 4096;
const PAGE: u32 = 4096;
/// What the kernel asks for where a driver says nothing.
const MEMORY_ALIGN: u32 = 512;

impl FileDevice {
    /// What it says of itself; never fails, since it is advice.
    pub fn topology(&self) -> Topology {
        let least = match self.kind() {
            DeviceKind::File => FILE_BLOCK.max(self.block_min()),
            DeviceKind::Block => self.block_min(),
        };
        let queue = (self.kind() == DeviceKind::Block).then(|| self.metadata().ok().and_then(|m| queue_of(m.rdev()))).flatten();
        Topology::read(queue.as_deref(), least)
    }
}

impl Topology {
    fn read(queue: Option<&Path>, least: u32) -> Self {
        let told = |name: &str| {
            let value = queue.and_then(|queue| door::sysfs_u64(&queue.join(name).to_string_lossy()))?;
            u32::try_from(value).ok().filter(|value| *value > 0)
        };
        let power = |value: u32| 1 << value.ilog2();
        let physical_block = told("physical_block_size").map_or(least, power).clamp(least, 1 << 16);
        Self {
            physical_block,
            io_min: told("minimum_io_size").map_or(physical_block, power).max(physical_block),
            // Anything but a power of two (stripes over three disks) cannot be handed on.
            io_opt: told("optimal_io_size").filter(|value| value.is_power_of_two()).unwrap_or(0),
            rotational: told("rotational").is_some(),
            discard_granularity: told("discard_granularity").map_or(physical_block, power).max(least),
            // The kernel shows a mask.
            memory_align: told("dma_alignment").map_or(MEMORY_ALIGN, |mask| (power(mask) << 1).min(PAGE)),
            stable_writes: told("stable_writes").is_some(),
        }
    }
}

/// The folder in which the kernel shows the limits of a block device, or of the disk that it is a partition of.
pub(crate) fn queue_of(device: u64) -> Option<PathBuf> {
    let of = |device: u64| format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let shown = PathBuf::from(of(device));
    [shown.join("queue"), shown.join("../queue")].into_iter().find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &str)], least: u32) -> Topology {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in values {
            std::fs::write(folder.path().join(name), format!("{value}\n")).unwrap();
        }
        Topology::read(Some(folder.path()), least)
    }

    #[test]
    fn what_the_kernel_says_is_handed_on() {
        let raid = [
            ("physical_block_size", "4096"),
            ("minimum_io_size", "65536"),
            ("optimal_io_size", "262144"),
            ("rotational", "1"),
            ("discard_granularity", "65536"),
            ("dma_alignment", "1023"),
            ("stable_writes", "1"),
        ];
        let topology = Topology {
            physical_block: 4096,
            io_min: 65536,
            io_opt: 262_144,
            rotational: true,
            discard_granularity: 65536,
            memory_align: 1024,
            stable_writes: true,
        };
        assert_eq!(read(&raid, 512), topology);
    }

    #[test]
    fn what_it_does_not_say_or_cannot_be_handed_on_harms_nobody() {
        let plain = Topology {
            physical_block: 512,
            io_min: 512,
            io_opt: 0,
            rotational: false,
            discard_granularity: 512,
            memory_align: 512,
            stable_writes: false,
        };
        assert_eq!(read(&[], 512), plain);
        let odd = [("minimum_io_size", "0"), ("optimal_io_size", "786432"), ("rotational", "0"), ("physical_block_size", "x")];
        assert_eq!(read(&odd, 512), plain);
        assert_eq!(read(&[("dma_alignment", "3")], 512).memory_align, 4);
        assert_eq!(read(&[("dma_alignment", "65535")], 512).memory_align, 4096, "no more than a page");
        assert_eq!(Topology::read(None, 4096).physical_block, 4096);
        assert_eq!(read(&[("physical_block_size", "512")], 4096).physical_block, 4096, "never below the alignment");
    }
}
