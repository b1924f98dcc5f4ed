//! PostgreSQL on ext4 and on XFS on the tap: clients move money between accounts and know what was committed. Every 50th
//! point is restored, its file system checked, mounted, and PostgreSQL started on it: it recovers, its checksums hold, its
//! sums agree, and everything acknowledged before the cut is there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farside_blockio::process::monotonic_ns;
use farside_tests::mount::{FileSystem, Image, Mounted, fsck_clean, possible, xfs_clean};
use farside_tests::postgres::{ACCOUNTS, AGREED, CLIENTS, SUMS, Server, transaction};
use farside_tests::verify::Rng;
use farside_tests::{Site, run, tool, wait_for};

const BYTES: u64 = 384 << 20;
/// Points under load, and how many lie between two that are opened.
const POINTS: usize = 150;
const STRIDE: usize = 50;

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
        let (a, b) = (rng.below(ACCOUNTS - 1), rng.below(ACCOUNTS - 1));
        let sql = transaction(client, n, amount, a.min(b), a.max(b) + 1);
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
    for points in 1..=POINTS as u64 {
        wait_for("points under load", || {
            assert!(!clients.iter().any(std::thread::JoinHandle::is_finished), "a client failed");
            (published() >= first + points).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().map(|client| client.join().expect("its transactions were committed")).collect()
}

/// Holds what a recovered database says against what its clients know.
fn judge(server: &Server, point: &serde_json::Value, journals: &[Journal]) {
    let id = point["id"].as_str().expect("an id");
    let ns = |field: &str| point[field].as_u64().unwrap_or_else(|| panic!("{field} in {point}"));
    let (before, after) = (ns("cut_mono_before_ns"), ns("cut_mono_after_ns"));
    assert_eq!(server.psql(SUMS), AGREED, "point {id}: the sums do not agree");
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
