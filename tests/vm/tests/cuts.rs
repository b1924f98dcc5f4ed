//! Power cuts at moments that nobody chose, under file systems in use. After each: nothing but hot regions is read again, the
//! newest point is what the disk holds, and a copy of it at the gateway mounts, checks, and has what was synced.

use farside_tests::verify::Rng;
use farside_tests::{Endurance, run, tool};
use farside_vm::Kernel;
use farside_vm::conformance::{DEVICE, NBD, Tap, UBLK};
use farside_vm::protected::{CLI, Host, Setup, is_quiet};
use serde_json::Value;

const CUTS: usize = 10;
const VOLUME_BYTES: u64 = 64 << 20;
const KEPT_POINTS: u32 = 50;

/// What lies on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &[],
            Self::Xfs => &["xfs"],
        }
    }

    /// A new one, as the bytes of a disk.
    fn made(self) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a sparse file");
        match self {
            Self::Ext4 => run(tool("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image)),
            // It makes none so small, but for those who test it.
            Self::Xfs => run(tool("mkfs.xfs")
                .envs([("TEST_DIR", "x"), ("TEST_DEV", "x"), ("QA_CHECK_FS", "x")])
                .args(["-q", "-f"])
                .arg(&image)),
        };
        std::fs::read(&image).expect("an image")
    }

    /// Says whether an image is sound, without changing it.
    fn check(self) -> &'static str {
        match self {
            Self::Ext4 => "/bin/e2fsck -fn",
            Self::Xfs => "/bin/xfs_repair -n -f",
        }
    }
}

/// Restores the newest point at the gateway: it is what the disk holds, its file system recovers and is sound, and the
/// application finds what it was promised.
fn judge_newest_point(host: &mut Host, file_system: FileSystem, folder: &str) {
    host.assert_newest_point_is_the_disk_by(|gateway, copy| {
        let name = file_system.name();
        gateway.run(&format!("mkdir -p /restored && mount -t {name} -o loop {copy} /restored"));
        if !folder.is_empty() {
            gateway.run(&format!("farside-vm-load check /restored/{folder} /run/promised"));
        }
        gateway.run(&format!("umount /restored && {} {copy}", file_system.check()));
    });
}

fn hot_bytes(group: &Value) -> u64 {
    group["volumes"][0]["hot_bytes"].as_u64().expect("a number")
}

/// Streaming again after a cut: how many bytes were hot, and how many of them were read.
fn converges(host: &mut Host) -> (u64, u64) {
    host.start_daemon();
    let hot = hot_bytes(&host.wait_for_group("a status", |_| true));
    let group = host.wait_for_group("everything to be published", is_quiet);
    let read = group["volumes"][0]["counters"]["sent_bytes"].as_u64().expect("a counter");
    assert!(read <= hot, "{read} bytes were read again, {hot} were hot");
    (hot, read)
}

fn power_cuts(kernel: Kernel, tap: &Tap, file_system: FileSystem) {
    let modules = [&[tap.module], file_system.modules()].concat();
    let setup = Setup::new(kernel, &modules).content(file_system.made());
    let mut host = Host::with(setup.judging_gateway(file_system.modules()).keep(KEPT_POINTS));
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap {}", tap.name));
    host.wait_for_group("the first sync", is_quiet);
    host.wait_for_group("the volume to cool", |group| hot_bytes(group) < VOLUME_BYTES / 4);
    judge_newest_point(&mut host, file_system, "");

    let endurance = Endurance::from_environment();
    let mut rng = Rng(kernel as u64 + 71);
    let (mut cut, mut blocks_lost) = (0, 0);
    while cut < CUTS || endurance.goes_on() {
        host.guest
            .run(&format!("mount -t {} {DEVICE} /mnt && rm -rf /mnt/cut* && mkdir /mnt/cut{cut} && sync", file_system.name()));
        host.start_load_in(&format!("/mnt/cut{cut}"));
        host.scribble();
        host.wait_for_load(10 + rng.below(30));
        let promised = host.guest.download("/run/progress");
        // Now and then nothing of the caches survives, and now and then nearly everything.
        let lost;
        (host, lost) = host.cut_power(&mut rng, [4, 0, 7][cut % 3]);
        let (hot, read) = converges(&mut host);
        host.receiver.upload("/run/promised", &promised, 0o644);
        judge_newest_point(&mut host, file_system, &format!("cut{cut}"));
        println!("cut {cut}: {lost} blocks lost; {} KiB hot, {} KiB read again", hot >> 10, read >> 10);
        blocks_lost += lost;
        cut += 1;
    }
    assert!(blocks_lost > 0, "no power cut met anything that was not flushed");
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.shut_down();
}

#[test]
fn ten_power_cuts_of_an_ext4_on_the_stock_kernel() {
    power_cuts(Kernel::Stock, &NBD, FileSystem::Ext4);
}

#[test]
fn ten_power_cuts_of_an_xfs_on_backports() {
    power_cuts(Kernel::Backports, &UBLK, FileSystem::Xfs);
}

#[test]
fn ten_power_cuts_of_an_ext4_on_the_newest() {
    power_cuts(Kernel::Newest, &UBLK, FileSystem::Ext4);
}
