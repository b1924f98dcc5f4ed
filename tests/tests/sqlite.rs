//! A real database on a real file system on the tap. Every restored point holds every transaction that was acknowledged
//! before its cut, and no half of a later one; the file system is clean once its journal is replayed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use farside_blockio::process::monotonic_ns;
use farside_tests::mount::{Image, Mounted, fsck_clean, possible};
use farside_tests::{Site, run, tool, wait_for};

const BYTES: u64 = 128 << 20;

/// The `sqlite3` shell as a child that answers each transaction.
struct Database {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Database {
    fn open(file: &Path) -> Self {
        let mut child = tool("sqlite3")
            .arg("-batch")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sqlite3 is installed");
        let (input, output) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        let mut this = Self { child, input, output };
        assert_eq!(this.ask("PRAGMA journal_mode=WAL;"), "wal");
        this.ask("PRAGMA synchronous=FULL; CREATE TABLE a(n INTEGER PRIMARY KEY, x TEXT); CREATE TABLE b(n INTEGER PRIMARY KEY, x TEXT); SELECT 'ready';");
        this
    }

    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql}").and_then(|()| self.input.flush()).expect("sqlite3 reads");
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("sqlite3 answers") > 0, "sqlite3 ended at: {sql}");
        line.trim().to_owned()
    }

    /// One transaction over two tables; back when it is durable.
    fn transact(&mut self, n: u64) {
        let sql = format!(
            "BEGIN; INSERT INTO a VALUES({n}, hex(randomblob(700))); INSERT INTO b SELECT n, x FROM a WHERE n={n}; COMMIT; SELECT {n};"
        );
        assert_eq!(self.ask(&sql), n.to_string());
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_point_holds_what_was_acknowledged_before_its_cut() {
    if !possible() {
        eprintln!("not run: needs root, FUSE and loop devices");
        return;
    }
    let mut site = Site::with_volume(BYTES, "250ms", 400);
    let image = site.path("fs.img");
    std::fs::File::create(&image).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-d", "/etc/alternatives"]).arg(&image));
    let uri = format!("nbd+unix:///?socket={}", site.tap("data").display());
    run(tool("nbdcopy").args(["--flush"]).arg(&image).arg(&uri));
    site.wait_quiet();

    let (mut begun, mut acknowledged) = (Vec::new(), Vec::new());
    // Those before may be of a file system that is being copied.
    let first = site.points("data").len();
    {
        let mounted = Mounted::on_tap(&site.tap("data"), &site.path("scratch"));
        let mut database = Database::open(&mounted.path().join("test.db"));
        // Some two dozen points under load, however long they take here.
        wait_for("points under load", || {
            for _ in 0..40 {
                begun.push(monotonic_ns());
                database.transact(begun.len() as u64);
                acknowledged.push(monotonic_ns());
            }
            (site.points("data").len() >= first + 24).then_some(())
        });
        drop(database);
    }
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill(); // the source is gone; only the store is left

    let points = site.points("data");
    let under_load: Vec<_> = points[first..].iter().rev().take(30).step_by(4).collect();
    let mut checked = 0;
    for point in under_load {
        let id = point["id"].as_str().expect("an id");
        let (before, after) = (ns(point, "cut_mono_before_ns"), ns(point, "cut_mono_after_ns"));
        assert!(before <= after && after > 0, "{point}");
        let copy = site.path("point.img");
        site.restore("data", id, &copy);
        fsck_clean(&copy);
        let at = site.path("restored");
        let mount = Image::mount(&copy, &at);
        let Some(rows) = rows_of(&at, &site.path("db")) else {
            let none = acknowledged.first().is_none_or(|&t| t >= before);
            assert!(none, "point {id} holds no database, though a transaction was acknowledged before it");
            drop(mount);
            std::fs::remove_file(copy).expect("restored");
            continue;
        };
        drop(mount);
        let must = acknowledged.iter().filter(|&&t| t < before).count() as u64;
        let may = begun.iter().filter(|&&t| t < after).count() as u64;
        assert!(
            (must..=may).contains(&rows),
            "point {id} holds {rows} transactions; {must} were acknowledged before its cut, {may} begun"
        );
        std::fs::remove_file(copy).expect("restored");
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} points held a database");
}

fn ns(point: &serde_json::Value, field: &str) -> u64 {
    point[field].as_u64().unwrap_or_else(|| panic!("{field} in {point}"))
}

/// The number of whole transactions in the database of a mounted point; `None` when there is no database yet.
fn rows_of(mounted: &Path, scratch: &Path) -> Option<u64> {
    let _ = std::fs::remove_dir_all(scratch);
    std::fs::create_dir_all(scratch).expect("mkdir");
    // The log is replayed at opening, which writes: on a copy.
    for name in ["test.db", "test.db-wal"] {
        if mounted.join(name).exists() {
            std::fs::copy(mounted.join(name), scratch.join(name)).expect("copied");
        }
    }
    if !scratch.join("test.db").exists() {
        return None;
    }
    let sql = "PRAGMA integrity_check; SELECT count(*) FROM sqlite_master WHERE name IN ('a','b');";
    let output = run(tool("sqlite3").arg("-batch").arg(scratch.join("test.db")).arg(sql));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("ok"), "the database is damaged: {text}");
    if lines.next() != Some("2") {
        return None;
    }
    let sql =
        "SELECT count(*), max(n), (SELECT count(*) FROM b), (SELECT count(*) FROM a JOIN b USING (n) WHERE a.x = b.x) FROM a;";
    let output = run(tool("sqlite3").arg("-batch").arg(scratch.join("test.db")).arg(sql));
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<u64> = text.trim().split('|').map(|n| n.parse().unwrap_or(0)).collect();
    assert!(numbers.iter().all(|n| *n == numbers[0]), "half a transaction, or a gap: {text}");
    Some(numbers[0])
}
