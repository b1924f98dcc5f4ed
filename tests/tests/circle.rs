//! A database goes round: from a site whose power goes to the one that has the copy, and back with what differs. At each turn it
//! starts by itself, its sums agree, and it holds every transaction that it must.

use std::os::unix::fs::PermissionsExt as _;

use farside_blockio::process::monotonic_ns;
use farside_tests::mount::{Mounted, possible};
use farside_tests::postgres::{AGREED, SUMS, Server, transaction};
use farside_tests::power::{Disk, formatted};
use farside_tests::verify::Rng;
use farside_tests::{Site, VolumeSpec, json, run, tool, wait_until};
use serde_json::Value;

const BYTES: u64 = 192 << 20;
const GRANULE_BYTES: usize = 4096;

/// When a transaction was begun, and when it was acknowledged.
type Journal = Vec<(u64, u64)>;

/// One client's transactions, from the `first` on, until `enough` or until one is not acknowledged; which one was begun last.
fn work(server: &Server, first: u64, enough: impl Fn(u64) -> bool) -> (Journal, u64) {
    let mut journal = Journal::new();
    for n in first.. {
        let begun = monotonic_ns();
        let done = server.client().args(["-c", &transaction(0, n, 7, 1, 2)]).output().expect("psql is installed");
        if !done.status.success() {
            return (journal, begun);
        }
        journal.push((begun, monotonic_ns()));
        if enough(n) {
            return (journal, u64::MAX);
        }
    }
    unreachable!("numbers do not end")
}

fn count(server: &Server) -> u64 {
    assert_eq!(server.psql(SUMS), AGREED, "the sums do not agree");
    server.psql("SELECT count(*) FROM history").parse().expect("a number")
}

/// Bytes of granules that differ.
fn difference(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.chunks(GRANULE_BYTES).zip(b.chunks(GRANULE_BYTES));
    (pairs.filter(|(a, b)| a != b).count() * GRANULE_BYTES) as u64
}

/// The database of a host, as it finds it on its disk.
fn recovered(site: &Site) -> (Server, Mounted) {
    let mounted = Mounted::on_tap(&site.tap("data"), &site.path("scratch"));
    let server = Server::recover(mounted.path(), &site.path("sockets"));
    (server, mounted)
}

fn let_through(site: &Site) {
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o711)).expect("our own directory");
    std::fs::create_dir_all(site.path("sockets")).expect("mkdir");
    run(tool("chown").arg("postgres").arg(site.path("sockets")));
}

#[test]
fn a_database_goes_to_the_other_site_and_comes_back() {
    if !possible() {
        eprintln!("not run: needs root, FUSE and loop devices");
        return;
    }
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut a = Site::new(&[spec], "200ms", 1000);
    let_through(&a);
    let mut disk = Disk::new(&a.path("disk"), formatted(a.dir.path(), BYTES));
    std::fs::remove_file(a.backing("data")).expect("made with the site");
    std::os::unix::fs::symlink(disk.device(), a.backing("data")).expect("a link");
    a.start_all();

    // Site A works, and site B has a copy.
    let mounted = Mounted::on_tap(&a.tap("data"), &a.path("scratch"));
    let server = Server::create(mounted.path(), &a.path("sockets"));
    run(tool("sync").arg("-f").arg(mounted.path())); // what was made it does not sync
    a.wait_quiet();
    let target = a.path("standby.img");
    run(&mut a.gateway(&["follower", "add", "host1/default/data", target.to_str().expect("text")]));

    // Its power goes while it works.
    let (journal, begun_last) = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&server, 1, |_| false));
        wait_until("transactions", || {
            let done: u64 = server.psql("SELECT count(*) FROM history").parse().expect("a number");
            if done >= 40 { Ok(()) } else { Err(done) }
        });
        // And a point that holds some of them.
        let points = a.points("data").len();
        wait_until("a point after that", || {
            let now = a.points("data").len();
            if now > points + 1 { Ok(()) } else { Err(now) }
        });
        let daemon = a.daemon.take().expect("it runs");
        daemon.signal(libc::SIGSTOP);
        disk.cut(&mut Rng(7), 4);
        daemon.kill();
        working.join().expect("it was cut off")
    });
    drop(server);
    drop(mounted);
    disk.unplug();

    // Site B takes over, and serves what the newest point held: all that was acknowledged before its cut.
    let done = wait_until("the gateway to notice the silence", || {
        let output = a.gateway(&["failover", "host1/default", "--yes", "--json"]).output().expect("it starts");
        if output.status.success() {
            return Ok(serde_json::from_slice::<Value>(&output.stdout).expect("an answer"));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is alive, or was seconds ago"), "{said}");
        Err(said)
    });
    assert_eq!(done["stage"], "promoted", "{done}");
    let id = done["point"]["id"].as_str().unwrap_or_else(|| panic!("a point in {done}"));
    let point = json(&mut a.gateway(&["point", "show", id, "--of", "host1/default"]));
    let ns = |field: &str| point[field].as_u64().unwrap_or_else(|| panic!("{field} in {point}"));
    let (before, after) = (ns("cut_mono_before_ns"), ns("cut_mono_after_ns"));
    let mut b = a.another_host("host2", "200ms", 100);
    let_through(&b);
    std::fs::rename(&target, b.backing("data")).expect("the disk is given to it");
    let file = b.path("host/farsided.toml");
    let toml = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, toml.replace("epoch_interval", "stand_in_for = \"host1\"\nepoch_interval")).expect("written");
    b.start_daemon();
    b.pair();
    run(&mut a.gateway(&["failover", "host1/default", "--stand-in", "host2"]));
    b.wait_for_state("data", "forked");
    run(b.farside().args(["volume", "resync", "data", "--accept", "forked"]));
    let (server, mounted) = recovered(&b);
    let found = count(&server);
    let must = journal.iter().filter(|(_, acknowledged)| *acknowledged < before).count() as u64;
    let may = journal.iter().map(|(begun, _)| *begun).chain([begun_last]).filter(|begun| *begun < after).count() as u64;
    assert!(
        (must..=may).contains(&found) && found > 0,
        "{found} transactions; {must} were acknowledged before the cut, {may} begun"
    );

    // It works there, while the old host comes back: that is fenced, and what it holds is replaced by what it lacks.
    let (more, _) = work(&server, found + 1, |n| n == found + 60);
    assert_eq!(more.len(), 60);
    disk.switch_on();
    a.start_daemon();
    a.wait_for_state("data", "fenced");
    b.wait_quiet();
    let differs = difference(&disk.content(), &std::fs::read(b.backing("data")).expect("a disk"));
    run(a.farside().args(["failback", "default", "--yes"]));
    let failback = |site: &Site| -> Value { json(site.farside().args(["failback", "--list"]))[0].clone() };
    let newest = |site: &Site| site.points("data").last().expect("a point")["id"].clone();
    let now = wait_until("the old host to follow", || {
        let now = failback(&a);
        if now["stage"] == "following" && now["holds"]["id"] == newest(&a) { Ok(now) } else { Err(now.to_string()) }
    });
    let received = now["received_bytes"].as_u64().expect("a number");
    println!("{found} of {} transactions; {received} bytes came back for {differs} that differ", journal.len());
    assert!(received * 10 <= differs * 11 + (1 << 20), "{received} bytes were received for {differs} that differ");

    // The planned way back loses nothing.
    assert!(server.stop("fast"));
    drop(server);
    drop(mounted);
    b.wait_quiet();
    b.daemon.take().expect("it runs").stop();
    run(a.farside().args(["failback", "default", "--finish"]));
    a.wait_quiet();
    assert!(disk.content() == std::fs::read(b.backing("data")).expect("a disk"), "the sites differ");
    let (server, mounted) = recovered(&a);
    assert_eq!(count(&server), found + 60, "transactions of the other site are lost");
    assert_eq!(work(&server, found + 61, |_| true).0.len(), 1, "it goes on");
    assert!(server.stop("fast"));
    drop(server);
    drop(mounted);
    a.wait_quiet();
    a.check_store();
    // Before its disk.
    a.daemon.take().expect("it runs").stop();
}
