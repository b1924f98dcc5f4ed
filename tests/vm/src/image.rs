//! What a guest boots into: an initramfs with busybox, the agent, programs with the libraries they load, and modules; some
//! guests go on into Debian's root file system, which `xtask` makes, with our programs in `/run/farside-vm`.
//!
//! Programs of Debian come from the cache with the libraries that were fetched with them; ours come from cargo with the
//! libraries of the machine that built them. Where both bring one, ours wins: a C library serves what was linked against an
//! older one, not the other way round. Everything is root's and lies in one folder for programs and one for libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::kernel::Kernel;

/// The name of the guests' programs in the cache.
pub const GUEST_TREE: &str = "guest";
/// The name, in the cache, of the folder of Debian's root file system.
pub const DEBIAN_TREE: &str = "debian";
/// The file in it: an ext4 image.
pub const DEBIAN_IMAGE: &str = "root.ext4";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// What process 1 does first, whatever follows: modules (the agent speaks through one), name, network.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/root
busybox mkdir -p /proc /sys /dev /run /tmp /root /mnt /etc /var/log
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox mkdir -p /dev/shm
busybox mount -t tmpfs -o mode=0755 tmpfs /run
for module in $(busybox cat /modules/order); do
    busybox insmod /modules/$module || echo "<3>module $module cannot be loaded" >/dev/kmsg
done
busybox hostname "$farside_host"
busybox ip link set lo up
if [ -n "$farside_address" ]; then
    busybox ip address add "$farside_address/24" dev eth0
    busybox ip link set eth0 up
fi
"#;

/// The agent, and when that ends, so does the guest. There is no udev: without being told so, dmsetup leaves the nodes in
/// `/dev/mapper` to it, and whoever writes there makes a file.
const IN_MEMORY: &str = r#"export DM_DISABLE_UDEV=1
busybox mount -t tmpfs tmpfs /tmp
farside-vm-agent || echo "<3>the agent has failed" >/dev/kmsg
busybox poweroff -f
"#;

/// Debian's own process 1, on the disk "root". What is ours comes along in `/run`: nothing of it is on the disk.
const INTO_DEBIAN: &str = r#"busybox mkdir /root-of-debian
for disk in /sys/block/*; do
    if [ "$(busybox cat $disk/serial 2>/dev/null)" = root ]; then
        busybox mount -t ext4 /dev/${disk##*/} /root-of-debian || echo "<3>the root cannot be mounted" >/dev/kmsg
    fi
done
busybox mkdir -p /run/farside-vm /run/systemd/system/sysinit.target.wants
busybox cp /ours/* /run/farside-vm/
busybox cp /farside-vm-agent.service /run/systemd/system/
busybox chmod 0644 /run/systemd/system/farside-vm-agent.service
busybox ln -s ../farside-vm-agent.service /run/systemd/system/sysinit.target.wants/
# The network is up already; who waits for networkd to say so waits for two minutes. The others have nothing to do with disks and the
# life of services, and cost an emulated processor seconds at every boot.
for unit in systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
    e2scrub_reap.service getty.target systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-network-generator.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service modprobe@configfs.service modprobe@drm.service \
    modprobe@efi_pstore.service modprobe@fuse.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount; do
    busybox ln -s /dev/null /run/systemd/system/$unit
done
busybox echo "$farside_host" >/root-of-debian/etc/hostname
# It has been booted before, as a host has: a first boot goes through every unit.
if [ "$(busybox cat /root-of-debian/etc/machine-id)" = uninitialized ]; then
    busybox sed s/-//g /proc/sys/kernel/random/uuid >/root-of-debian/etc/machine-id
fi
for folder in dev proc sys run; do
    busybox mount --move /$folder /root-of-debian/$folder
done
exec busybox switch_root /root-of-debian /sbin/init
"#;

/// It speaks as early as there are devices, and is there until systemd's final kill. † By itself systemd stops a unit of which the
/// kernel has killed a process for memory: to a test that looks like a machine that hangs.
const AGENT_UNIT: &str = "[Unit]
Description=What the tests speak with
DefaultDependencies=no
IgnoreOnIsolate=yes
[Service]
ExecStart=/run/farside-vm/farside-vm-agent
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/farside-vm
OOMScoreAdjust=-1000
OOMPolicy=continue
TasksMax=infinity
";

/// A program of the guests' tree in the cache.
///
/// # Panics
/// When it was not fetched.
pub(crate) fn guest_program(name: &str) -> PathBuf {
    let tree = cache::tree(GUEST_TREE);
    let names = ["bin", "sbin", "usr/bin", "usr/sbin", "lib/drbd"].map(|folder| format!("{folder}/{name}"));
    cache::first_of(&tree, &names.each_ref().map(String::as_str))
        .unwrap_or_else(|| panic!("{} has no program {name}", tree.display()))
}

/// Where a guest goes on after its initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Userland {
    /// It stays there.
    InMemory,
    /// Debian, on a disk.
    Debian,
}

/// The initramfs of a guest: `ours` are programs that cargo built, `theirs` names of programs in the cache.
///
/// # Panics
/// When something is missing.
pub(crate) fn initramfs(userland: Userland, kernel: Kernel, modules: &[&str], ours: &[PathBuf], theirs: &[&str]) -> Vec<u8> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for program in std::iter::once(&"busybox").chain(theirs) {
        let path = guest_program(program);
        for (name, library) in libraries_in_cache(&path) {
            files.insert(name, read(&library));
        }
        files.insert(format!("bin/{program}"), read(&path));
    }
    for program in ours {
        for (name, library) in libraries_here(program) {
            files.insert(name, read(&library));
        }
        let name = program.file_name().and_then(|name| name.to_str()).expect("a program has a name");
        let folder = if userland == Userland::Debian { "ours" } else { "bin" };
        files.insert(format!("{folder}/{name}"), stripped(program));
    }
    let mut order = String::new();
    for (name, content) in kernel.modules(modules) {
        order += &format!("{name}.ko\n");
        files.insert(format!("modules/{name}.ko"), content);
    }
    files.insert("modules/order".into(), order.into_bytes());
    let rest = match userland {
        Userland::InMemory => IN_MEMORY,
        Userland::Debian => {
            files.insert("farside-vm-agent.service".into(), AGENT_UNIT.into());
            INTO_DEBIAN
        }
    };
    files.insert("init".into(), [INIT, rest].concat().into_bytes());
    pack(&files)
}

/// Without its debug information, which a guest would only have to load.
fn stripped(program: &Path) -> Vec<u8> {
    let to = tempfile::NamedTempFile::new().expect("a temporary file");
    let status = Command::new("strip").arg("-o").arg(to.path()).arg(program).status().expect("binutils are installed");
    assert!(status.success(), "{} cannot be stripped", program.display());
    std::fs::read(to.path()).expect("just written")
}

/// The libraries of a program in the cache: the tree's own loader says which it would load.
fn libraries_in_cache(program: &Path) -> Vec<(String, PathBuf)> {
    let tree = cache::tree(GUEST_TREE);
    let loader = tree.join(LIBRARIES[0]).join("ld-linux-x86-64.so.2"); // the link in lib64 is absolute: it leads out of the tree
    let path = LIBRARIES.map(|folder| tree.join(folder).display().to_string()).join(":");
    libraries(Command::new(&loader).args(["--library-path", &path, "--list"]).arg(program), &loader)
}

/// The libraries of a program that was built here.
pub(crate) fn libraries_here(program: &Path) -> Vec<(String, PathBuf)> {
    let loader = Path::new("/").join(LOADER);
    libraries(Command::new(&loader).arg("--list").arg(program), &loader)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, line by line; nothing for a static program, which the loader refuses.
fn libraries(command: &mut Command, loader: &Path) -> Vec<(String, PathBuf)> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("not found"), "{command:?}: {text}");
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for line in text.lines() {
        let Some((name, path)) = line.trim().split_once(" => ") else { continue };
        let path = path.split(" (").next().expect("a first part");
        if !name.contains('/') {
            found.push((format!("lib/x86_64-linux-gnu/{name}"), PathBuf::from(path)));
        }
    }
    if !found.is_empty() {
        found.push((LOADER.to_owned(), loader.to_owned()));
    }
    found
}

/// The archive that a kernel unpacks (`newc`). Its end is aligned: an archive that follows an unaligned one is dropped without
/// a word.
fn pack(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const LINK: u32 = 0o120_777;
    let mut archive = Archive { bytes: Vec::new(), inode: 0 };
    let mut folders: Vec<&str> = Vec::new();
    for name in files.keys() {
        for (at, _) in name.match_indices('/') {
            if !folders.contains(&&name[..at]) {
                folders.push(&name[..at]);
            }
        }
    }
    folders.iter().for_each(|folder| archive.add(folder, FOLDER, &[]));
    files.iter().for_each(|(name, content)| archive.add(name, PROGRAM, content));
    archive.add("bin/sh", LINK, b"busybox");
    archive.add("TRAILER!!!", 0, &[]);
    archive.bytes.resize(archive.bytes.len().next_multiple_of(512), 0);
    archive.bytes
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0]
            .map(|f| format!("{f:08x}"));
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.concat().bytes());
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_expects() {
        let files = BTreeMap::from([("bin/x".to_owned(), b"content".to_vec()), ("init".to_owned(), Vec::new())]);
        let archive = pack(&files);
        assert_eq!(archive.len() % 512, 0);
        let heads: Vec<usize> = archive.windows(6).enumerate().filter(|(_, w)| *w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 5, "a folder, two files, a link, the end");
        assert!(heads.iter().all(|at| at % 4 == 0), "each begins on a multiple of four: {heads:?}");
        let name = |at: usize| archive[at + 110..].split(|b| *b == 0).next().expect("a name").to_vec();
        assert_eq!(name(heads[0]), b"bin", "a folder comes before what lies in it");
        assert_eq!(&archive[heads[1] + 54..heads[1] + 62], b"00000007", "the length of bin/x");
    }
}
