//! PostgreSQL on ext4 and on XFS on the tap: clients move money between accounts and know what was committed. Every 50th
//! point is restored, its file system checked, mounted, and PostgreSQL started on it: it recovers, its checksums hold, its
//! sums agree, and everything acknowledged before the cut is there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farside_tests::mount::{FileSystem, Image, Mounted, fsck_clean, possible, xfs_clean};
use farside_tests::verify::Rng;
use farside_tests::{Site, run, tail, tool, wait_for};

const BYTES: u64 = 384 << 20;
const CLIENTS: u64 = 4;
const ACCOUNTS: u64 = 200;
/// Points under load, and how many lie between two that are opened.
const POINTS: usize = 150;
const STRIDE: usize = 50;

const SCHEMA: &str = "
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE teller (id int PRIMARY KEY, moved bigint NOT NULL);
    CREATE TABLE history (client int, n bigint, amount bigint NOT NULL, note text, PRIMARY KEY (client, n));";

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has it");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// A PostgreSQL server on a data directory; killed with its owner.
struct Server {
    data: PathBuf,
    sockets: PathBuf,
}

impl Server {
    /// A program of the newest version that is installed, as the user that it insists on.
    fn command(name: &str) -> Command {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed").map(|e| e.expect("an entry"));
        let newest = versions.max_by_key(|e| e.file_name().to_string_lossy().parse::<u32>().unwrap_or(0)).expect("a version");
        let mut command = tool("runuser");
        command.args(["-u", "postgres", "--"]).arg(newest.path().join("bin").join(name)).current_dir("/");
        command
    }

    /// A new database on a file system that is mounted.
    fn create(on: &Path, sockets: &Path) -> Self {
        let data = on.join("pg");
        for dir in [&data, &sockets.to_owned()] {
            std::fs::create_dir_all(dir).expect("mkdir");
            run(tool("chown").arg("postgres").arg(dir));
        }
        run(Self::command("initdb")
            .args(["--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data));
        let this = Self { data, sockets: sockets.to_owned() };
        this.start();
        this.psql(SCHEMA);
        this.psql(&format!("INSERT INTO account SELECT i, 0 FROM generate_series(0, {}) i", ACCOUNTS - 1));
        this.psql(&format!("INSERT INTO teller SELECT i, 0 FROM generate_series(0, {}) i", CLIENTS - 1));
        this
    }

    /// What a restored point holds, if it holds a database that was ever used.
    fn recover(on: &Path, sockets: &Path) -> Self {
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

    fn stop(&self, how: &str) -> bool {
        let mut command = Self::command("pg_ctl");
        command.args(["stop", "--wait", "--timeout", "180", "--silent", "-m", how, "-D"]).arg(&self.data);
        command.stdin(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn client(&self) -> Command {
        let mut command = Self::command("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-h"]).arg(&self.sockets);
        command
    }

    fn psql(&self, sql: &str) -> String {
        let output = run(self.client().args(["-c", sql]));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop("immediate");
    }
}

/// One client: when each of its transactions began, and when it was acknowledged.
#[derive(Default)]
struct Journal {
    begun: Vec<u64>,
    acknowledged: Vec<u64>,
}

/// `psql` as a child that answers each transaction.
struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(server: &Server) -> Self {
        let mut child = server.client().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql is installed");
        let (input, output) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        Self { child, input, output }
    }

    /// Moves money from one account to another and writes it down twice; back when it is committed.
    fn transact(&mut self, client: u64, n: u64, rng: &mut Rng) {
        let amount = rng.below(1000);
        // Locks are taken in one order: nobody is a deadlock's victim.
        let (a, b) = (rng.below(ACCOUNTS - 1), rng.below(ACCOUNTS - 1));
        let (from, to) = (a.min(b), a.max(b) + 1);
        let sql = format!(
            "BEGIN; UPDATE account SET balance = balance - {amount} WHERE id = {from}; \
             UPDATE account SET balance = balance + {amount} WHERE id = {to}; \
             UPDATE teller SET moved = moved + {amount} WHERE id = {client}; \
             INSERT INTO history VALUES ({client}, {n}, {amount}, repeat(md5('{n}'), 20)); COMMIT; SELECT {n};"
        );
        writeln!(self.input, "{sql}").and_then(|()| self.input.flush()).expect("psql reads");
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("psql answers") > 0, "psql ended");
        assert_eq!(line.trim(), n.to_string(), "a transaction failed");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the clients work until there are points enough.
fn load(site: &Site, server: &Server) -> Vec<Journal> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (stop, mut session) = (stop.clone(), Session::open(server));
            std::thread::spawn(move || {
                let (mut journal, mut rng) = (Journal::default(), Rng(client));
                while !stop.load(Ordering::Relaxed) {
                    journal.begun.push(monotonic_ns());
                    session.transact(client, journal.begun.len() as u64, &mut rng);
                    journal.acknowledged.push(monotonic_ns());
                }
                journal
            })
        })
        .collect();
    let published = || site.status()["groups"][0]["points_published"].as_u64().expect("a number");
    let first = published();
    wait_for("points under load", || {
        assert!(!clients.iter().any(std::thread::JoinHandle::is_finished), "a client failed");
        (published() >= first + POINTS as u64).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().map(|client| client.join().expect("its transactions were committed")).collect()
}

/// Holds what a recovered database says against what its clients know.
fn judge(server: &Server, point: &serde_json::Value, journals: &[Journal]) {
    let id = point["id"].as_str().expect("an id");
    let ns = |field: &str| point[field].as_u64().unwrap_or_else(|| panic!("{field} in {point}"));
    let (before, after) = (ns("cut_mono_before_ns"), ns("cut_mono_after_ns"));
    let sums = server.psql(
        "SELECT (SELECT sum(balance) FROM account), (SELECT sum(moved) FROM teller) - (SELECT coalesce(sum(amount), 0) FROM history),
         (SELECT count(*) FROM (SELECT client FROM history GROUP BY client HAVING count(*) <> max(n)) gap),
         (SELECT count(*) FROM history WHERE note <> repeat(md5(n::text), 20)),
         (SELECT count(*) FROM teller t WHERE moved <> (SELECT coalesce(sum(amount), 0) FROM history h WHERE h.client = t.id))",
    );
    assert_eq!(sums, "0|0|0|0|0", "point {id}: the sums do not agree");
    for (client, journal) in journals.iter().enumerate() {
        let found: u64 = server.psql(&format!("SELECT count(*) FROM history WHERE client = {client}")).parse().expect("a number");
        let must = journal.acknowledged.iter().filter(|&&t| t < before).count() as u64;
        let may = journal.begun.iter().filter(|&&t| t < after).count() as u64;
        assert!(
            (must..=may).contains(&found),
            "point {id} holds {found} transactions of client {client}; {must} were acknowledged before its cut, {may} begun"
        );
    }
}

fn a_ledger_on(file_system: FileSystem) {
    if !possible() {
        eprintln!("not run: needs root, FUSE and loop devices");
        return;
    }
    let mut site = Site::with_volume(BYTES, "100ms", 100_000);
    // The database's own user must be able to go through.
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o711)).expect("our own directory");
    let sockets = site.path("sockets");
    let (journals, first) = {
        let mounted = Mounted::made_on_tap(&site.tap("data"), &site.path("scratch"), file_system);
        let server = Server::create(mounted.path(), &sockets);
        run(&mut tool("sync"));
        site.wait_quiet();
        let first = site.points("data").len();
        let journals = load(&site, &server);
        drop(server);
        (journals, first)
    };
    let transactions: usize = journals.iter().map(|j| j.acknowledged.len()).sum();
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill(); // the source is gone; only the store is left

    let points = site.points("data");
    let chosen: Vec<_> = points.iter().skip(first).step_by(STRIDE).chain(points.last()).collect();
    assert!(chosen.len() > POINTS / STRIDE, "{} points, {} before the load", points.len(), first);
    for point in &chosen {
        let (copy, at) = (site.path("point.img"), site.path("restored"));
        site.restore("data", point["id"].as_str().expect("an id"), &copy);
        match file_system {
            FileSystem::Ext4 => fsck_clean(&copy),
            FileSystem::Xfs => xfs_clean(&copy, &at),
        }
        let image = Image::mount_writable(&copy, &at, file_system);
        let server = Server::recover(&at, &sockets);
        judge(&server, point, &journals);
        assert!(server.stop("fast"), "a recovered server stops cleanly");
        run(Server::command("pg_checksums").args(["--check", "-D"]).arg(at.join("pg")));
        drop(server);
        drop(image);
        std::fs::remove_file(copy).expect("restored");
    }
    println!("{}: {transactions} transactions, {} points, {} opened", file_system.name(), points.len(), chosen.len());
    site.check_store();
}

#[test]
fn every_fiftieth_point_of_a_ledger_on_ext4_opens_and_agrees() {
    a_ledger_on(FileSystem::Ext4);
}

#[test]
fn every_fiftieth_point_of_a_ledger_on_xfs_opens_and_agrees() {
    a_ledger_on(FileSystem::Xfs);
}
