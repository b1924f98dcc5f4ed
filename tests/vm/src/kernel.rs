//! The kernels that guests run, and their modules.
//!
//! A kernel package brings no `modules.dep` (its installation would make one), so what a module needs is read from the
//! module itself. Invariant: [`Kernel::modules`] gives every module after those it needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache;

/// Where a package has its modules.
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];

/// A kernel that Debian ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Of Debian 12: 6.1, without ublk.
    Stock,
    /// Of Debian 12's backports: 6.12, with ublk.
    Backports,
    /// The newest one that is packaged for Debian: 7 and up.
    Newest,
}

impl Kernel {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Stock, Self::Backports, Self::Newest];

    /// The name of its tree in the cache.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stock => "kernel-stock",
            Self::Backports => "kernel-backports",
            Self::Newest => "kernel-newest",
        }
    }

    /// Its image and its release, as `uname -r` says it.
    ///
    /// # Panics
    /// When it was not fetched.
    pub fn image(self) -> (PathBuf, String) {
        let tree = cache::tree(self.name());
        let folder = MODULES.iter().find_map(|folder| std::fs::read_dir(tree.join(folder)).ok()?.next());
        let folder = folder.unwrap_or_else(|| panic!("no kernel in {}", tree.display())).expect("a readable folder");
        let release = folder.file_name().into_string().expect("a release is text");
        // In the package of the image, or beside the modules.
        let image = [tree.join(format!("boot/vmlinuz-{release}")), folder.path().join("vmlinuz")];
        let image = image.into_iter().find(|path| path.exists());
        (image.unwrap_or_else(|| panic!("no image of {release} in {}", tree.display())), release)
    }

    /// The kernel itself, unpacked, beside its package's files: an emulated processor takes a quarter of a boot to unpack it.
    ///
    /// # Panics
    /// When it was not fetched.
    pub fn unpacked(self) -> PathBuf {
        let (_, release) = self.image();
        cache::tree(self.name()).join(format!("vmlinux-{release}"))
    }

    /// These modules and all that they need, each after what it needs: name and content, not compressed. What is built into
    /// the kernel is left out.
    ///
    /// # Panics
    /// When the kernel knows no module of a name.
    pub fn modules(self, wanted: &[&str]) -> Vec<(String, Vec<u8>)> {
        let (_, release) = self.image();
        let tree = cache::tree(self.name());
        let folder = MODULES.iter().map(|folder| tree.join(folder).join(&release)).find(|path| path.exists());
        let folder = folder.expect("the release is a folder's name");
        let mut shelf = Shelf { files: BTreeMap::new(), builtin: builtin(&folder), taken: Vec::new() };
        collect(&folder, &mut shelf.files);
        for name in wanted {
            shelf.take(name, &release);
        }
        shelf.taken
    }
}

/// A module's name as it is compared: `dm-mod` and `dm_mod` are one.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/drivers/md/dm-mod.ko.xz` → `dm_mod`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz")).map(plain)
}

fn builtin(folder: &Path) -> Vec<String> {
    let list = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    list.lines().filter_map(|line| name_of(Path::new(line))).collect()
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files);
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
}

struct Shelf {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    /// Each after what it needs.
    taken: Vec<(String, Vec<u8>)>,
}

impl Shelf {
    fn take(&mut self, name: &str, release: &str) {
        let name = plain(name);
        if self.builtin.contains(&name) || self.taken.iter().any(|(taken, _)| *taken == name) {
            return;
        }
        let path = self.files.get(&name).unwrap_or_else(|| panic!("kernel {release} has no module {name}"));
        let content = unpacked(path);
        for needed in needed_by(&content) {
            self.take(&needed, release);
        }
        self.taken.push((name, content));
    }
}

/// A module's content; compressed ones are unpacked by busybox, which is fetched with the kernels.
fn unpacked(path: &Path) -> Vec<u8> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let busybox = crate::image::guest_program("busybox");
    let output = Command::new(busybox).arg("xzcat").arg(path).stdin(Stdio::null()).output().expect("busybox starts");
    assert!(output.status.success(), "{} cannot be unpacked: {output:?}", path.display());
    output.stdout
}

/// What a module says it depends on (`depends=a,b` among the zero-ended strings of its `.modinfo`).
fn needed_by(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&value[..end]);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        assert_eq!(needed_by(b"\x7fELF..\0license=GPL\0depends=dm-mod,libcrc32c\0retpoline=Y\0"), ["dm-mod", "libcrc32c"]);
        assert_eq!(needed_by(b"\0depends=\0name=x\0"), [""; 0]);
    }

    #[test]
    fn a_module_is_known_by_its_plain_name() {
        assert_eq!(name_of(Path::new("kernel/drivers/md/dm-mod.ko.xz")).as_deref(), Some("dm_mod"));
        assert_eq!(name_of(Path::new("modules.builtin")), None);
    }
}
