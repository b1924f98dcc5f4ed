//! Big programs for guests, on a disk that is only read: PostgreSQL and fio of the machine that tests, which has them for the
//! tests of processes anyway, with the libraries that they load and a ledger that nobody has written to yet.
//!
//! A guest sees a small system of its own at [`AT`] and enters it by `chroot`; what it does not need of it is never loaded.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use farside_tests::postgres::{self, Server};
use farside_tests::{run, tool};
use tempfile::TempDir;

use crate::Guest;
use crate::image::{guest_program, libraries_here};

/// Where a guest has it, once it was opened.
pub const AT: &str = "/toolbox";
/// The name of its disk.
pub(crate) const SERIAL: &str = "toolbox";

const IMAGE_SIZE: &str = "400M";
const SETPRIV: &str = "/usr/bin/setpriv";

/// An image of it.
#[derive(Debug)]
pub struct Toolbox {
    dir: TempDir,
    /// The folder of PostgreSQL's programs.
    programs: PathBuf,
    user: (u32, u32),
}

impl Toolbox {
    /// Fills one.
    ///
    /// # Panics
    /// When PostgreSQL, fio or a tool to make a file system is not installed.
    pub fn fill() -> Self {
        let dir = tempfile::Builder::new().prefix("farside-vm-toolbox-").tempdir().expect("a temporary directory");
        // The database's own user must be able to go through.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).expect("our own directory");
        let root = dir.path().join("root");
        for folder in ["bin", "dev", "etc", "mnt", "proc", "run"] {
            std::fs::create_dir_all(root.join(folder)).expect("room");
        }
        let programs = postgres::home().join("bin");
        let of_postgres = ["pg_amcheck", "pg_checksums", "pg_ctl", "postgres", "psql"].map(|name| programs.join(name));
        for program in of_postgres.iter().chain(&[PathBuf::from("/usr/bin/fio"), SETPRIV.into()]) {
            place(&root, program);
        }
        let share = Path::new("/usr/share/postgresql").join(postgres::home().file_name().expect("a version"));
        for folder in [postgres::home().join("lib"), share] {
            let to = root.join(folder.strip_prefix("/").expect("absolute")).parent().expect("a folder").to_owned();
            std::fs::create_dir_all(&to).expect("room");
            run(tool("cp").arg("-a").arg(folder).arg(to));
        }
        std::fs::copy(guest_program("busybox"), root.join("bin/busybox")).expect("room");
        std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("room");

        let server = Server::create(dir.path(), &dir.path().join("sockets"));
        server.psql("CREATE EXTENSION amcheck");
        assert!(server.stop("fast"), "PostgreSQL stops");
        let cluster = dir.path().join("pg");
        let owner = cluster.metadata().expect("just made");
        let user = (owner.uid(), owner.gid());
        run(tool("mv").arg(cluster).arg(root.join("ledger")));
        std::fs::write(root.join("etc/passwd"), format!("postgres:x:{}:{}::/:/bin/sh\n", user.0, user.1)).expect("room");
        run(tool("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(&root)
            .arg(dir.path().join("image"))
            .arg(IMAGE_SIZE));
        std::fs::remove_dir_all(root).expect("our own folder");
        Self { dir, programs, user }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Makes it usable in a guest that has its disk. Whoever mounts something at `/mnt` binds it into `AT/mnt` himself.
    ///
    /// # Panics
    /// When it is not.
    pub fn open(&self, guest: &mut Guest) {
        let disk = guest.disk(SERIAL);
        guest.run(&format!("mkdir -p {AT} /run/pg && chmod 1777 /dev/shm && chown {}:{} /run/pg", self.user.0, self.user.1));
        guest.run(&format!("mount -t ext4 -o ro {disk} {AT}"));
        for folder in ["dev", "proc", "run"] {
            guest.run(&format!("mount -o bind /{folder} {AT}/{folder}"));
        }
    }

    /// A command of the shell that runs one of PostgreSQL's programs, as its user.
    pub fn postgres(&self, program: &str, arguments: &str) -> String {
        let (uid, gid) = self.user;
        format!(
            "chroot {AT} {SETPRIV} --reuid {uid} --regid {gid} --clear-groups {}/{program} {arguments}",
            self.programs.display()
        )
    }
}

/// A program at its place, with its libraries.
fn place(root: &Path, program: &Path) {
    let copy = |from: &Path, to: &Path| {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("room");
        std::fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    };
    copy(program, program);
    for (name, library) in libraries_here(program) {
        copy(&library, Path::new(&name));
    }
}
