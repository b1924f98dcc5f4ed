//! A PostgreSQL server on a data directory, and a ledger in it by which anybody can tell what was committed: clients move money
//! between accounts, and each writes down what it did. Owned here: the server's programs, the ledger's schema, transaction and
//! judgement. Deliberately not here: who drives the clients, and what disks are below.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{run, tail, tool};

/// How many accounts there are.
pub const ACCOUNTS: u64 = 200;
/// How many clients may write at once.
pub const CLIENTS: u64 = 4;

const SCHEMA: &str = "
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE teller (id int PRIMARY KEY, moved bigint NOT NULL);
    CREATE TABLE history (client int, n bigint, amount bigint NOT NULL, note text, PRIMARY KEY (client, n));";

/// A query about a recovered ledger; its answer is [`AGREED`]: money is neither made nor lost, tellers and history agree, each
/// client's transactions are there without a gap, and each as it was written.
pub const SUMS: &str = "SELECT (SELECT sum(balance) FROM account), \
    (SELECT sum(moved) FROM teller) - (SELECT coalesce(sum(amount), 0) FROM history), \
    (SELECT count(*) FROM (SELECT client FROM history GROUP BY client HAVING count(*) <> max(n)) gap), \
    (SELECT count(*) FROM history WHERE note <> repeat(md5(n::text), 20)), \
    (SELECT count(*) FROM teller t WHERE moved <> (SELECT coalesce(sum(amount), 0) FROM history h WHERE h.client = t.id))";
/// What [`SUMS`] says of a sound ledger.
pub const AGREED: &str = "0|0|0|0|0";

/// A client's `n`th transaction, counted from 1, which says `n` when it is committed. Locks are taken in one order, if `from` is
/// below `to`: nobody is a deadlock's victim.
pub fn transaction(client: u64, n: impl Display, amount: impl Display, from: impl Display, to: impl Display) -> String {
    format!(
        "BEGIN; UPDATE account SET balance = balance - {amount} WHERE id = {from}; \
         UPDATE account SET balance = balance + {amount} WHERE id = {to}; \
         UPDATE teller SET moved = moved + {amount} WHERE id = {client}; \
         INSERT INTO history VALUES ({client}, {n}, {amount}, repeat(md5('{n}'), 20)); COMMIT; SELECT {n};"
    )
}

/// The folder of the newest version that is installed.
///
/// # Panics
/// When none is.
pub fn home() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed").map(|e| e.expect("an entry"));
    let newest = versions.max_by_key(|e| e.file_name().to_string_lossy().parse::<u32>().unwrap_or(0)).expect("a version");
    newest.path()
}

/// A PostgreSQL server on a data directory; killed with its owner.
#[derive(Debug)]
pub struct Server {
    data: PathBuf,
    sockets: PathBuf,
}

impl Server {
    /// One of its programs, as the user that it insists on.
    pub fn command(name: &str) -> Command {
        let mut command = tool("runuser");
        command.args(["-u", "postgres", "--"]).arg(home().join("bin").join(name)).current_dir("/");
        command
    }

    /// A new ledger in `pg` of a folder.
    ///
    /// # Panics
    /// When PostgreSQL does not run.
    pub fn create(on: &Path, sockets: &Path) -> Self {
        let data = on.join("pg");
        for dir in [&data, &sockets.to_owned()] {
            std::fs::create_dir_all(dir).expect("mkdir");
            run(tool("chown").arg("postgres").arg(dir));
        }
        run(Self::command("initdb")
            .env("TZ", "GMT")
            .args(["--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1", "-D"])
            .arg(&data));
        let this = Self { data, sockets: sockets.to_owned() };
        this.start();
        this.psql(SCHEMA);
        this.psql(&format!("INSERT INTO account SELECT i, 0 FROM generate_series(0, {}) i", ACCOUNTS - 1));
        this.psql(&format!("INSERT INTO teller SELECT i, 0 FROM generate_series(0, {}) i", CLIENTS - 1));
        this
    }

    /// What a restored point holds, if it holds a database that was ever used.
    ///
    /// # Panics
    /// When it does not start.
    pub fn recover(on: &Path, sockets: &Path) -> Self {
        let this = Self { data: on.join("pg"), sockets: sockets.to_owned() };
        // The postmaster that wrote this is not here.
        let _ = std::fs::remove_file(this.data.join("postmaster.pid"));
        this.start();
        this
    }

    fn start(&self) {
        // Small buffers and frequent checkpoints: the disk sees it all.
        let options = format!(
            "-k {} -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB -c min_wal_size=32MB -c checkpoint_timeout=30s",
            self.sockets.display()
        );
        let log = self.sockets.join("log");
        let status = Self::command("pg_ctl")
            .args(["start", "--wait", "--timeout", "180", "--silent", "-o", &options, "-l"])
            .arg(&log)
            .arg("-D")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("pg_ctl is installed");
        assert!(status.success(), "PostgreSQL does not start: {}", tail(&log));
    }

    /// Stops it, `fast` or `immediate`; says whether it did.
    pub fn stop(&self, how: &str) -> bool {
        let mut command = Self::command("pg_ctl");
        command.args(["stop", "--wait", "--timeout", "180", "--silent", "-m", how, "-D"]).arg(&self.data);
        command.stdin(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Its command line, for one client.
    pub fn client(&self) -> Command {
        let mut command = Self::command("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-h"]).arg(&self.sockets);
        command
    }

    /// What it answers to this.
    ///
    /// # Panics
    /// When it refuses.
    pub fn psql(&self, sql: &str) -> String {
        let output = run(self.client().args(["-c", sql]));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop("immediate");
    }
}
