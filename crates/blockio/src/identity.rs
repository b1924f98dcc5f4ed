//! Which disk or file something is: facts that stay the same across reboots, so that another one behind the same name is noticed,
//! whatever became of paths and device numbers.
//!
//! Not here: where they are kept, and what is done about a device that is another one.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::FileDevice;
use crate::process::boot_id;

/// Facts that no other device shares. A path, a name, or where a partition begins may be any other disk's tomorrow: that they are the
/// same says nothing.
const TELLING: [&str; 6] = ["inode", "wwid", "serial", "dm-uuid", "md-uuid", "loop-inode"];

/// Facts that a device never changes: of two that differ in one, one is another.
const LASTING: [&str; 10] =
    ["inode", "born", "wwid", "serial", "dm-uuid", "md-uuid", "loop-inode", "loop-born", "partition", "start"];

/// What a device is to one of which facts were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Surely that one.
    Same,
    /// Surely another one: what was kept was read, and differs in what a device never changes.
    Another,
    /// Nothing was kept, or it cannot be read, or it says too little.
    Unknown,
}

/// What is known of a backing that stays the same across reboots, by the name of the fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(BTreeMap<String, String>);

impl Identity {
    /// Asks the kernel about an open device.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(device: &FileDevice) -> std::io::Result<Self> {
        Ok(Self::of_opened(&device.metadata()?))
    }

    /// Asks the kernel about what an open file or block device says of itself.
    pub fn of_opened(metadata: &std::fs::Metadata) -> Self {
        if !metadata.file_type().is_block_device() {
            return Self(of_file(metadata));
        }
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let boot = boot_id().ok().map(|id| id.0.iter().map(|byte| format!("{byte:02x}")).collect());
        Self(of_block(Path::new("/sys/dev/block"), &format!("{major}:{minor}"), boot))
    }

    /// Whether both describe one device. Another kernel may know more facts, or fewer: what only one of them has says nothing, but that
    /// a file is no disk, and a disk none of its partitions.
    ///
    /// Decided: of two that share no telling fact (a disk without a serial number, a device of the mapper without a UUID, something
    /// else that came in its place) one is another if the kernel gave them other numbers (`diskseq`) in one boot. What was taken away
    /// and made again counts as another one then, whatever is on it: its users would have met errors without Farside, too. In another boot
    /// numbers begin anew, and there is no user any more. Where the kernel gives no such number (before 5.15) only the name is left,
    /// and another name never tells: a device of the mapper may be renamed. What lies below a device of the mapper is not looked at: its table
    /// may be changed while it is used, and whoever does that is answerable for what is there.
    pub fn compare(&self, other: &Self) -> Known {
        let equal = |fact: &str| Some(self.0.get(fact)? == other.0.get(fact)?); // `None`: not known of both
        let (is_same, differs) = (|fact: &str| equal(fact) == Some(true), |fact: &str| equal(fact) == Some(false));
        let only_one_has = |fact: &str| self.0.contains_key(fact) != other.0.contains_key(fact);
        let is_told = TELLING.iter().any(|fact| equal(fact).is_some());
        let is_empty = self.0.is_empty() || other.0.is_empty();
        let is_another = LASTING.iter().any(|fact| differs(fact))
            || (is_told && only_one_has("partition"))
            || (!is_empty && only_one_has("inode"))
            || (!is_told && is_same("boot") && differs("diskseq"));
        let is_same_by_name = is_same("boot") && is_same("name") && !only_one_has("partition");
        let is_renamed = differs("name") || differs("loop-file");
        match is_another {
            true => Known::Another,
            false if (is_told && !is_renamed) || (!is_told && is_same_by_name) => Known::Same,
            false => Known::Unknown,
        }
    }
}

fn of_file(metadata: &std::fs::Metadata) -> BTreeMap<String, String> {
    // Not the device number: it changes with the order in which disks are found. The time of birth tells a copy, and a file
    // that got a freed inode.
    let mut facts = BTreeMap::from([("inode".to_owned(), metadata.ino().to_string())]);
    if let Some(born) = metadata.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()) {
        facts.insert("born".to_owned(), format!("{}.{:09}", born.as_secs(), born.subsec_nanos()));
    }
    facts
}

/// The facts about `major:minor` below `/sys/dev/block`. Only where the kernel knows nothing better, its name.
fn of_block(sys: &Path, number: &str, boot: Option<String>) -> BTreeMap<String, String> {
    let at = sys.join(number);
    let mut facts = BTreeMap::new();
    let text = |path: PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let partition = text(at.join("partition"));
    // A partition's folder lies in its disk's.
    let disk =
        if partition.is_some() { std::fs::canonicalize(&at).ok().and_then(|p| p.parent().map(Path::to_owned)) } else { None };
    let disk = disk.unwrap_or_else(|| at.clone());
    for (fact, path) in [
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("serial", "serial"),
        ("serial", "device/serial"),
        ("dm-uuid", "dm/uuid"),
        ("md-uuid", "md/uuid"),
        ("loop-file", "loop/backing_file"),
    ] {
        if let Some(value) = text(disk.join(path)) {
            facts.entry(fact.to_owned()).or_insert(value);
        }
    }
    if let Some(file) = facts.get("loop-file").map(PathBuf::from)
        && let Ok(metadata) = std::fs::metadata(&file)
    {
        // A path is not a file.
        facts.extend(of_file(&metadata).into_iter().map(|(fact, value)| (format!("loop-{fact}"), value)));
    }
    if facts.is_empty()
        && let Some(name) =
            text(at.join("dm/name")).or_else(|| Some(std::fs::canonicalize(&at).ok()?.file_name()?.to_str()?.to_owned()))
    {
        facts.insert("name".to_owned(), name);
    }
    // Which disk has a name, or a number, is true for one boot.
    if let Some(boot) = boot {
        facts.insert("boot".to_owned(), boot);
        facts.extend(text(disk.join("diskseq")).map(|seq| ("diskseq".to_owned(), seq)));
    }
    if let Some(partition) = partition {
        facts.insert("partition".to_owned(), partition);
        facts.extend(text(at.join("start")).map(|start| ("start".to_owned(), start)));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(facts: &[(&str, &str)]) -> Identity {
        Identity(facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_device_is_the_same_another_or_one_of_which_too_little_is_known() {
        use Known::{Another, Same, Unknown};
        let disk = &[("wwid", "naa.1"), ("serial", "A")][..];
        let partition = |fact, value, start| vec![(fact, value), ("partition", "1"), ("start", start)];
        let named = |name, boot, seq: Option<&'static str>| {
            let facts = [("name", name), ("boot", boot)];
            facts.into_iter().chain(seq.map(|seq| ("diskseq", seq))).collect::<Vec<_>>()
        };
        let numbered = |fact, value, boot, seq| vec![(fact, value), ("boot", boot), ("diskseq", seq)];
        for (kept, now, known) in [
            (disk, &[("wwid", "naa.1"), ("serial", "A"), ("start", "0")][..], Same), // another kernel knows more
            (disk, &[("wwid", "naa.1"), ("serial", "B")], Another),
            (disk, &[("name", "sdb")], Unknown), // nothing in common proves nothing
            (&[("inode", "7"), ("born", "1.0")], &[("inode", "7"), ("born", "2.0")], Another), // a freed inode
            (&[("dm-uuid", "LVM-1")], &[("dm-uuid", "LVM-2")], Another),
            // A path is not a file, and a file may be renamed.
            (&[("loop-file", "/a")], &[("loop-file", "/a")], Unknown),
            (&[("loop-file", "/a"), ("loop-inode", "7")], &[("loop-file", "/b"), ("loop-inode", "7")], Unknown),
            (&[("loop-file", "/a"), ("loop-inode", "7")], &[("loop-file", "/a"), ("loop-inode", "8")], Another),
            (&partition("serial", "A", "2048"), &partition("serial", "A", "2048"), Same),
            (&partition("serial", "A", "2048"), &partition("serial", "A", "4096"), Another), // other sectors
            (&partition("name", "vdb", "2048"), &partition("serial", "B", "2048"), Unknown), // every disk has such a partition
            (&partition("serial", "A", "2048"), &[("serial", "A")], Another),                // all of its disk
            // A file is no disk; of what cannot be asked nothing is known.
            (&[("inode", "7"), ("born", "1.0")], &[("serial", "A")], Another),
            (&[("inode", "7")], &[], Unknown),
            // In one boot the kernel numbers what it finds; what lasts counts for more.
            (&numbered("serial", "A", "x", "3"), &numbered("serial", "A", "x", "4"), Same), // taken away, and back
            (&numbered("serial", "A", "x", "3"), &numbered("serial", "A", "y", "3"), Same),
            (&numbered("serial", "A", "x", "3"), &numbered("wwid", "B", "x", "4"), Another),
            (&numbered("serial", "A", "x", "3"), &numbered("wwid", "B", "y", "4"), Unknown),
            (&numbered("name", "vdb", "x", "3"), &numbered("serial", "B", "x", "4"), Another),
            (&named("vdb", "x", None), &[("serial", "B"), ("boot", "x")], Unknown),
            // Of which only names are known.
            (&named("vdb", "x", Some("3")), &named("vdb", "x", Some("3")), Same),
            (&named("vdb", "x", Some("3")), &named("vdb", "x", Some("4")), Another), // taken away, and one came
            (&named("vdb", "x", Some("3")), &named("vdb", "y", Some("4")), Unknown), // they begin anew at a boot
            (&named("vdb", "x", Some("3")), &named("vdb", "y", Some("3")), Unknown),
            (&named("one", "x", Some("3")), &named("two", "x", Some("3")), Unknown), // renamed
            (&named("vdb", "x", None), &named("vdb", "x", None), Same),
            (&named("vdb", "x", None), &named("vdc", "x", None), Unknown),
        ] {
            assert_eq!(identity(kept).compare(&identity(now)), known, "{kept:?} and {now:?}");
            assert_eq!(identity(now).compare(&identity(kept)), known, "{now:?} and {kept:?}");
        }
    }

    #[test]
    fn a_copy_of_a_file_is_another_file_and_a_renamed_one_is_not() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let path = |name: &str| dir.path().join(name);
        let of = |name: &str| {
            let device = FileDevice::open(path(name), crate::OpenOptions::at_once()).expect("opened");
            Identity::of(&device).expect("asked")
        };
        std::fs::write(path("a"), vec![7; 1 << 20]).expect("written");
        let before = of("a");
        std::fs::rename(path("a"), path("b")).expect("renamed");
        assert_eq!(before.compare(&of("b")), Known::Same);
        std::fs::copy(path("b"), path("c")).expect("copied");
        assert_eq!(before.compare(&of("c")), Known::Another);
    }

    #[test]
    fn disks_are_told_by_what_they_are_not_by_where_they_are() {
        let sys = tempfile::tempdir().expect("temp dir");
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        let boot = |n: u8| Some(format!("boot {n}"));
        write("disks/sda/device/wwid", "naa.5000\n");
        write("disks/sda/sda2/partition", "2\n");
        write("disks/sda/sda2/start", "4096\n");
        write("disks/sda/diskseq", "7\n");
        write("disks/vdb/size", "1\n");
        for (number, at) in [("8:0", "disks/sda"), ("8:2", "disks/sda/sda2"), ("254:16", "disks/vdb")] {
            std::os::unix::fs::symlink(sys.path().join(at), sys.path().join(number)).expect("linked");
        }
        assert_eq!(
            Identity(of_block(sys.path(), "8:0", boot(1))),
            identity(&[("wwid", "naa.5000"), ("boot", "boot 1"), ("diskseq", "7")])
        );
        assert_eq!(
            Identity(of_block(sys.path(), "8:2", boot(2))),
            identity(&[("wwid", "naa.5000"), ("boot", "boot 2"), ("diskseq", "7"), ("partition", "2"), ("start", "4096")])
        );
        let nameless = |n| Identity(of_block(sys.path(), "254:16", boot(n)));
        assert_eq!(nameless(1).compare(&nameless(1)), Known::Same);
        assert_eq!(nameless(1).compare(&nameless(2)), Known::Unknown, "a name says nothing after a reboot");
    }
}
