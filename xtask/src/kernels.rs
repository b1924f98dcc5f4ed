//! The kernels and programs of the virtual machines: fetched as Debian packages through the machine's own package mirror and
//! keys, unpacked in a cache, never installed.
//!
//! apt runs with a root of its own in the cache: the machine's lists, sources and packages are neither read (beyond asking
//! which mirror it uses) nor changed. Where things lie is `farside_vm::cache`'s to say. Invariant: a tree appears in the
//! cache whole, under its version, and its link points to the newest one that was fetched.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use farside_vm::{DEBIAN_IMAGE, DEBIAN_TREE, GUEST_TREE, Kernel, cache};

/// How old the answer to "what is the newest version?" may be.
const LISTS_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What becomes one tree.
struct Tree {
    name: &'static str,
    suite: Suite,
    packages: &'static [&'static str],
    /// What they depend on comes along if its name begins so.
    follow: &'static str,
    /// What must be in it.
    must_hold: &'static [&'static str],
}

/// Of which release of Debian.
enum Suite {
    /// The machine's own.
    Own,
    OwnBackports,
    /// The backports of the next one, where the newest kernels are.
    NextBackports,
}

const CLOUD_KERNEL: &[&str] = &["linux-image-cloud-amd64"];

const TREES: &[Tree] = &[
    Tree {
        name: GUEST_TREE,
        suite: Suite::Own,
        packages: &["busybox-static", "dmsetup", "drbd-utils", "e2fsprogs", "libc6", "nbd-client"],
        follow: "lib",
        must_hold: &["bin/busybox", "lib/drbd/drbdsetup-84", "sbin/dmsetup", "sbin/drbdmeta", "sbin/mke2fs", "sbin/nbd-client"],
    },
    kernel(Kernel::Stock, Suite::Own, &["boot", "lib/modules"]),
    kernel(Kernel::Backports, Suite::OwnBackports, &["boot", "lib/modules"]),
    kernel(Kernel::Newest, Suite::NextBackports, &["usr/lib/modules"]), // the image lies beside the modules
];

const fn kernel(kernel: Kernel, suite: Suite, must_hold: &'static [&'static str]) -> Tree {
    Tree { name: kernel.name(), suite, packages: CLOUD_KERNEL, follow: "linux-", must_hold }
}

/// What the guests' Debian has beside its smallest system.
const DEBIAN_PACKAGES: &[&str] =
    &["dbus", "e2fsprogs", "iproute2", "kmod", "lvm2", "procps", "systemd", "systemd-sysv", "udev", "xfsprogs"];
const DEBIAN_SIZE: &str = "1200M";

/// Fetches what is not there or not new enough.
pub(crate) fn run() -> anyhow::Result<()> {
    let cache = cache::dir();
    std::fs::create_dir_all(&cache).with_context(|| format!("{} cannot be made", cache.display()))?;
    let lock = std::fs::File::create(cache.join("lock")).context("the cache cannot be locked")?;
    lock.lock().context("the cache cannot be locked")?;
    let mut mirror = None;
    for tree in TREES {
        let link = cache.join(tree.name);
        if is_fresh(&link) && tree.must_hold.iter().all(|name| link.join(name).exists()) {
            println!("{}: {}", tree.name, target_of(&link));
            continue;
        }
        let mirror: &Mirror = match &mirror {
            Some(mirror) => mirror,
            None => mirror.insert(Mirror::of_this_machine()?),
        };
        fetch(tree, mirror, &cache)?;
        println!("{}: {} (fetched or looked for now)", tree.name, target_of(&link));
    }
    Kernel::ALL.into_iter().try_for_each(unpack)?;
    let link = cache.join(DEBIAN_TREE);
    if !is_fresh(&link) {
        let mirror = mirror.map_or_else(Mirror::of_this_machine, Ok)?;
        debian(&mirror, &cache)?;
    }
    println!("{DEBIAN_TREE}: {}", target_of(&link));
    Ok(())
}

/// Debian's root file system for guests: the smallest one that boots systemd, and what a protected host has.
fn debian(mirror: &Mirror, cache: &Path) -> anyhow::Result<()> {
    let young = cache.join(format!("{DEBIAN_TREE}.new"));
    remove_tree(&young)?;
    let root = young.join("root");
    let include = format!("--include={}", DEBIAN_PACKAGES.join(","));
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &include, &mirror.release]).arg(&root).arg(&mirror.uri);
    output(&mut debootstrap).context("a Debian for the guests cannot be made (it needs root)")?;
    let listed = output(Command::new("dpkg-query").arg("--admindir").arg(root.join("var/lib/dpkg")).arg("--show"))?;
    for ballast in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"] {
        let path = root.join(ballast);
        remove_tree(&path)?;
        std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    }
    // A guest finds out at its first boot who it is.
    std::fs::write(root.join("etc/machine-id"), "uninitialized\n").context("no room for a Debian")?;
    let image = young.join(DEBIAN_IMAGE);
    output(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&image).arg(DEBIAN_SIZE))?;
    remove_tree(&root)?;
    let name = format!("{DEBIAN_TREE}@{}", fingerprint(listed));
    let place = cache.join(&name);
    remove_tree(&place)?;
    put_in_place(&young, &name, cache, DEBIAN_TREE)
}

/// Lays the kernel itself beside its image, unless it is there.
fn unpack(kernel: Kernel) -> anyhow::Result<()> {
    let (place, (image, _)) = (kernel.unpacked(), kernel.image());
    if place.exists() {
        return Ok(());
    }
    let young = PathBuf::from(format!("{}.new", place.display()));
    let bytes = std::fs::read(&image).with_context(|| format!("{} cannot be read", image.display()))?;
    let (program, packed) =
        packed_kernel(&bytes).with_context(|| format!("{} is packed in a way of its own", image.display()))?;
    std::fs::write(&young, packed).with_context(|| format!("{} cannot be written", young.display()))?;
    let unpacked = Command::new(program).arg("-dcq").arg(&young).output().with_context(|| format!("{program} does not start"))?;
    if !unpacked.status.success() || !unpacked.stdout.starts_with(b"\x7fELF") {
        bail!("{program} finds no kernel in {}: {}", image.display(), String::from_utf8_lossy(&unpacked.stderr));
    }
    std::fs::write(&young, unpacked.stdout)
        .and_then(|()| std::fs::rename(&young, &place))
        .with_context(|| format!("{} cannot be put in place", place.display()))
}

/// The packed kernel in an image, and the program that unpacks it. The layout is that of the x86 boot protocol
/// (Documentation/arch/x86/boot.rst): `setup_sects`, `payload_offset` and `payload_length`; behind what these programs pack the
/// kernel's build writes its length.
fn packed_kernel(image: &[u8]) -> Option<(&'static str, &[u8])> {
    const LENGTH: usize = 4;
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + number(0x248)?;
    let packed = image.get(start..start + number(0x24c)?.checked_sub(LENGTH)?)?;
    match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", packed)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Some(("lz4", packed)),
        _ => None,
    }
}

fn target_of(link: &Path) -> String {
    std::fs::read_link(link).map(|target| target.display().to_string()).unwrap_or_default()
}

/// A link is made anew whenever its tree was looked for.
fn is_fresh(link: &Path) -> bool {
    let age = link.symlink_metadata().and_then(|link| link.modified()).ok().and_then(|time| time.elapsed().ok());
    link.exists() && age.is_some_and(|age| age < LISTS_AGE_MAX)
}

fn fetch(tree: &Tree, mirror: &Mirror, cache: &Path) -> anyhow::Result<()> {
    let apt = Apt::new(cache, &mirror.suite(&tree.suite)?, &mirror.uri)?;
    let packages = apt.closure(tree)?;
    let first = packages.get(tree.packages[0]).context("a tree has a first package")?;
    let version = if tree.packages.len() == 1 {
        first.version.clone()
    } else {
        fingerprint(packages.iter().map(|(name, package)| (name, &package.version)).collect::<Vec<_>>())
    };
    let name = format!("{}@{version}", tree.name);
    let place = cache.join(&name);
    if place.exists() {
        return point_to(&name, cache, tree.name);
    }
    let young = cache.join(format!("{name}.new"));
    remove_tree(&young)?;
    std::fs::create_dir_all(&young).with_context(|| format!("{} cannot be made", young.display()))?;
    apt.unpack(&packages, &young)?;
    if let Some(missing) = tree.must_hold.iter().find(|name| !young.join(name).exists()) {
        bail!("{} was fetched, and there is no {missing} in it", tree.name);
    }
    put_in_place(&young, &name, cache, tree.name)
}

fn put_in_place(young: &Path, name: &str, cache: &Path, tree: &str) -> anyhow::Result<()> {
    let place = cache.join(name);
    std::fs::rename(young, &place).with_context(|| format!("{} cannot be put in place", place.display()))?;
    point_to(name, cache, tree)
}

/// The newest tree of its name is this one from now on.
fn point_to(name: &str, cache: &Path, tree: &str) -> anyhow::Result<()> {
    let link = cache.join(format!("{tree}.link"));
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(name, &link).with_context(|| format!("{} cannot be made", link.display()))?;
    std::fs::rename(&link, cache.join(tree)).with_context(|| format!("{} cannot be put in place", link.display()))
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// One word for many.
fn fingerprint(what: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Where this machine gets its packages from.
pub(crate) struct Mirror {
    uri: String,
    release: String,
}

impl Mirror {
    /// As apt is configured here.
    pub(crate) fn of_this_machine() -> anyhow::Result<Self> {
        let os = std::fs::read_to_string("/etc/os-release").context("what this system is cannot be read")?;
        let field =
            |name: &str| os.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_matches('"').to_owned());
        let release = field("VERSION_CODENAME=").filter(|_| field("ID=").as_deref() == Some("debian"));
        let release = release.context("kernels are fetched with the apt of a Debian; this system is none")?;
        let targets = output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let uri = targets.lines().find_map(|line| line.strip_prefix(&format!("{release} main ")));
        let uri = uri.with_context(|| format!("apt has no source for {release} main"))?.to_owned();
        Ok(Self { uri, release })
    }

    /// The line of a sources list that adds the backports of this machine's release.
    pub(crate) fn backports_line(&self) -> String {
        format!("deb {} {}-backports main\n", self.uri, self.release)
    }

    /// The suite's name for apt's `-t`.
    pub(crate) fn backports(&self) -> String {
        format!("{}-backports", self.release)
    }

    fn suite(&self, suite: &Suite) -> anyhow::Result<String> {
        const RELEASES: [&str; 3] = ["bookworm", "trixie", "forky"];
        match suite {
            Suite::Own => Ok(self.release.clone()),
            Suite::OwnBackports => Ok(self.backports()),
            Suite::NextBackports => {
                let next = RELEASES.iter().skip_while(|name| **name != self.release).nth(1);
                next.map(|name| format!("{name}-backports"))
                    .with_context(|| format!("nobody knows what follows {}", self.release))
            }
        }
    }
}

struct Package {
    version: String,
    depends: Vec<String>,
}

/// apt, looking at one suite and at nothing else of this machine.
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new(cache: &Path, suite: &str, uri: &str) -> anyhow::Result<Self> {
        let root = cache.join("apt").join(suite);
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(root.join(folder)).with_context(|| format!("{} cannot be filled", root.display()))?;
        }
        std::fs::write(root.join("status"), "")
            .and_then(|()| std::fs::write(root.join("sources"), format!("deb {uri} {suite} main\n")))
            .with_context(|| format!("{} cannot be filled", root.display()))?;
        let apt = Self { root };
        output(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: String| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| self.root.join(name).display().to_string();
        option("Dir::Etc::SourceList", path("sources"));
        option("Dir::Etc::SourceParts", "-".into());
        option("Dir::State", path("state"));
        option("Dir::State::status", path("status"));
        option("Dir::Cache", path("cache"));
        option("Acquire::Languages", "none".into());
        option("APT::Sandbox::User", "".into());
        command.stdin(Stdio::null());
        command
    }

    /// The packages of a tree, with what they depend on.
    fn closure(&self, tree: &Tree) -> anyhow::Result<BTreeMap<String, Package>> {
        let mut found = BTreeMap::new();
        let mut wanted: Vec<String> = tree.packages.iter().map(|name| (*name).to_owned()).collect();
        while let Some(name) = wanted.pop() {
            if found.contains_key(&name) {
                continue;
            }
            let Some(package) = self.package(&name)? else {
                if tree.packages.contains(&name.as_str()) {
                    bail!("{} has no package {name}", self.root.display());
                }
                continue; // of another suite: what a kernel wants of the system around it
            };
            wanted.extend(package.depends.iter().filter(|name| name.starts_with(tree.follow)).cloned());
            found.insert(name, package);
        }
        Ok(found)
    }

    fn package(&self, name: &str) -> anyhow::Result<Option<Package>> {
        let shown =
            self.command("apt-cache").args(["show", "--no-all-versions", name]).output().context("apt-cache does not start")?;
        let text = String::from_utf8_lossy(&shown.stdout);
        Ok(parse_package(&text))
    }

    /// Downloads packages and unpacks them all into one folder.
    fn unpack(&self, packages: &BTreeMap<String, Package>, to: &Path) -> anyhow::Result<()> {
        let downloads = self.root.join("download");
        remove_tree(&downloads)?;
        std::fs::create_dir_all(&downloads).context("no room for packages")?;
        let names = packages.iter().map(|(name, package)| format!("{name}={}", package.version));
        output(self.command("apt-get").args(["download", "-qq"]).args(names).current_dir(&downloads))?;
        for file in std::fs::read_dir(&downloads).context("no room for packages")? {
            output(Command::new("dpkg-deb").arg("-x").arg(file?.path()).arg(to))?;
        }
        remove_tree(&downloads)
    }
}

/// Version and dependencies (of alternatives the first) as `apt-cache show` prints them.
fn parse_package(text: &str) -> Option<Package> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let version = field("Version")?.to_owned();
    let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(field).flat_map(|list| list.split(','));
    let depends =
        depends.filter_map(|one| one.split([' ', '|', '(', ':']).find(|word| !word.is_empty())).map(str::to_owned).collect();
    Some(Package { version, depends })
}

/// Runs a command that must succeed. Returns what it printed.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} prints no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_where_its_kernel_is() {
        let mut image = vec![0; 4096];
        let (zstd, begin) = (b"\x28\xb5\x2f\xfdpacked", 2 * 512 + 100);
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(zstd.len() as u32 + 4).to_le_bytes());
        assert_eq!(packed_kernel(&image), None, "it is packed by nobody");
        image[begin..begin + zstd.len()].copy_from_slice(zstd);
        assert_eq!(packed_kernel(&image), Some(("zstd", &zstd[..])));
        assert_eq!(packed_kernel(&image[..1500]), Some(("zstd", &zstd[..])));
        assert_eq!(packed_kernel(&image[..begin + 8]), None, "it is cut off");
    }

    #[test]
    fn a_package_names_what_it_needs() {
        let text =
            "Package: x\nVersion: 6.12-1\nDepends: kmod, linux-base (>= 4.3~), linux-a:any | linux-b\nPre-Depends: libc6\n";
        let package = parse_package(text).expect("a package");
        assert_eq!(package.version, "6.12-1");
        assert_eq!(package.depends, ["libc6", "kmod", "linux-base", "linux-a"]);
        assert!(parse_package("").is_none());
    }
}
