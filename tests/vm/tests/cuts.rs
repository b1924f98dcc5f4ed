//! Power cuts at moments that nobody chose, under file systems in use, by PostgreSQL, fio and a writer of our own in turn. After
//! each: nothing but hot regions is read again, the newest point is what the disk holds, and a copy of it mounts in another machine,
//! checks, and has what was synced: its application says so.

use std::io::Write as _;
use std::sync::Arc;

use farside_tests::verify::Rng;
use farside_tests::{Endurance, run, tool};
use farside_vm::application::{Application, lay_ledger};
use farside_vm::conformance::{DEVICE, NBD, Tap, UBLK};
use farside_vm::protected::{CLI, Host, PROMISED, Setup, is_quiet};
use farside_vm::toolbox::{AT, Toolbox};
use farside_vm::{DiskSpec, Guest, Kernel, Machine};
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

    /// What is on a disk is sound. Here, and not in a machine: it takes a second there which takes none here.
    fn check(self, disk: &[u8]) {
        let mut image = tempfile::NamedTempFile::new().expect("a temporary file");
        image.write_all(disk).expect("room");
        match self {
            Self::Ext4 => run(tool("e2fsck").arg("-fn").arg(image.path())),
            Self::Xfs => run(tool("xfs_repair").args(["-n", "-f"]).arg(image.path())),
        };
    }
}

/// A machine that mounts what was restored, and looks what is on it.
struct Judge {
    guest: Guest,
    machine: Machine,
    file_system: FileSystem,
}

impl Judge {
    const DISK: &str = "copy";

    fn boot(file_system: FileSystem, toolbox: &Arc<Toolbox>) -> Self {
        let mut machine = Machine::new("judge", Kernel::Stock)
            .modules(file_system.modules())
            .programs(&["farside-vm-load"])
            .toolbox(toolbox)
            .disk(DiskSpec::blank(Self::DISK, VOLUME_BYTES as usize >> 20));
        let mut guest = machine.boot();
        toolbox.open(&mut guest);
        Self { guest, machine, file_system }
    }

    /// The newest point of a host is what its disk holds, its file system recovers and is sound, and the application, if there was
    /// one, finds what it was promised.
    fn judge(&mut self, host: &mut Host, application: impl FnOnce(&mut Guest)) {
        let newest = host.gateway.restore("data", "latest");
        assert!(newest == host.disk(), "the newest point is not what the disk holds");
        self.machine.lay_on_disk(Self::DISK, &newest);
        let (guest, name) = (&mut self.guest, self.file_system.name());
        let disk = guest.disk(Self::DISK);
        guest.run(&format!("mount -t {name} {disk} /mnt && mount -o bind /mnt {AT}/mnt"));
        application(guest);
        guest.wait_until(&format!("umount {AT}/mnt"));
        guest.wait_until("umount /mnt");
        self.file_system.check(&self.machine.disk_content(Self::DISK));
    }
}

fn hot_bytes(group: &Value) -> u64 {
    group["volumes"][0]["hot_bytes"].as_u64().expect("a number")
}

/// Streaming again after a cut: how many bytes were hot, and how many of them were read.
fn converges(host: &mut Host) -> (u64, u64) {
    let hot = hot_bytes(&host.start_daemon_unheard());
    let group = host.wait_for_group("everything to be published", is_quiet);
    let read = group["volumes"][0]["counters"]["sent_bytes"].as_u64().expect("a counter");
    assert!(read <= hot, "{read} bytes were read again, {hot} were hot");
    (hot, read)
}

fn power_cuts(kernel: Kernel, tap: &Tap, file_system: FileSystem) {
    const APPLICATIONS: [Application; 3] = [Application::Records, Application::Postgres, Application::Fio];
    let toolbox = Arc::new(Toolbox::fill());
    let modules = [&[tap.module], file_system.modules()].concat();
    let setup = Setup::new(kernel, &modules).content(file_system.made()).toolbox(&toolbox);
    let mut host = Host::with(setup.keep(KEPT_POINTS));
    let mut judge = Judge::boot(file_system, &toolbox);
    toolbox.open(&mut host.guest);
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap {}", tap.name));
    let mount = format!("mount -t {} {DEVICE} /mnt && mount -o bind /mnt {AT}/mnt", file_system.name());
    host.guest.run(&mount);
    lay_ledger(&mut host.guest);
    host.guest.wait_until(&format!("umount {AT}/mnt"));
    host.guest.wait_until("umount /mnt");
    host.wait_for_group("the first sync", is_quiet);
    host.wait_for_group("the volume to cool", |group| hot_bytes(group) < VOLUME_BYTES / 4);
    judge.judge(&mut host, |_| ());

    let endurance = Endurance::from_environment(kernel as u64 + 71);
    let mut rng = Rng(endurance.seed());
    let (mut cut, mut blocks_lost) = (0, 0);
    while cut < CUTS || endurance.goes_on() {
        let application = APPLICATIONS[cut % APPLICATIONS.len()];
        host.guest.run(&mount);
        application.start(&mut host, &toolbox);
        host.scribble();
        host.wait_for_load(application.enough(&mut rng));
        let promised = String::from_utf8(host.guest.download(PROMISED)).expect("lines");
        // Now and then nothing of the caches survives, and now and then nearly everything.
        let lost;
        (host, lost) = host.cut_power(&mut rng, [4, 0, 7][cut / APPLICATIONS.len() % 3]);
        toolbox.open(&mut host.guest);
        let (hot, read) = converges(&mut host);
        judge.judge(&mut host, |guest| application.judge(guest, &toolbox, &promised));
        println!("cut {cut} of {application:?}: {lost} blocks lost; {} KiB hot, {} KiB read again", hot >> 10, read >> 10);
        blocks_lost += lost;
        cut += 1;
    }
    endurance.report(&format!("{cut} power cuts, {blocks_lost} blocks lost"));
    assert!(blocks_lost > 0, "no power cut met anything that was not flushed");
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.shut_down();
    judge.guest.shut_down();
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
