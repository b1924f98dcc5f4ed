//! Points for which applications are quiesced: what their label says is what happened, and nobody stays quiesced, whoever is killed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farside_tests::mount::{FileSystem, Image, Mounted, possible};
use farside_tests::postgres::{AGREED, SUMS, Server, transaction};
use farside_tests::verify::{connect, write_noise};
use farside_tests::{Site, VolumeSpec, json, run, tool, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 16 << 20;

/// A hook that writes down what it is asked, and does what files beside it say: `NAME.fails-STAGE`, `NAME.waits` until it is gone.
fn script(site: &Site, name: &str) -> PathBuf {
    let (at, dir) = (site.path(&format!("{name}.sh")), site.path("hooks"));
    std::fs::create_dir_all(&dir).expect("mkdir");
    let text = format!(
        "#!/bin/sh\ncd {dir}\necho \"{name} $1 $FARSIDE_GROUP $FARSIDE_CUT\" | sed 's/ $//' >>log\n\
         [ $1 = post-cut ] || while [ -e {name}.waits ]; do sleep 0.05; done\n\
         if [ -e {name}.fails-$1 ]; then echo \"{name} cannot\" >&2; exit 3; fi\necho \"{name} is quiet\"\n",
        dir = dir.display()
    );
    std::fs::write(&at, text).expect("write");
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    at
}

fn configure(site: &Site, text: &str) {
    std::fs::create_dir_all(site.path("host/farsided.d")).expect("mkdir");
    std::fs::write(site.path("host/farsided.d/hooks.toml"), text).expect("write");
}

fn with_hooks(names: &[&str]) -> Site {
    let volume = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[volume("data"), volume("log")], "200ms", 1000);
    let hook =
        |name: &&str| format!("[[hook]]\ngroup = \"db\"\nname = \"{name}\"\ncommand = [\"{}\"]\n", script(&site, name).display());
    configure(&site, &names.iter().map(hook).collect::<String>());
    site.start_all();
    write_noise(&site.tap("data"), BYTES, 1, 50);
    site.wait_quiet();
    site
}

fn take(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.farside();
    command.args(["point", "take", "db"]).args(arguments);
    command
}

/// The answer of one that says that it is not what was asked for.
fn refused(command: &mut Command) -> Value {
    let output = command.arg("--json").output().expect("it starts");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// What hooks were asked since it was last forgotten.
fn log(site: &Site) -> Vec<String> {
    let text = std::fs::read_to_string(site.path("hooks/log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The same, and it is forgotten: while no hook runs.
fn asked(site: &Site) -> Vec<String> {
    let log = log(site);
    let _ = std::fs::remove_file(site.path("hooks/log")); // there may be none
    log
}

fn touch(site: &Site, name: &str) {
    std::fs::write(site.path("hooks").join(name), "").expect("write");
}

fn rub_out(site: &Site, name: &str) {
    std::fs::remove_file(site.path("hooks").join(name)).expect("it was there");
}

fn codes(site: &Site) -> Vec<String> {
    let status = site.status();
    let reasons = status["groups"][0]["reasons"].as_array().expect("a list").iter();
    reasons.map(|reason| reason["code"].as_str().expect("a word").to_owned()).collect()
}

#[test]
fn a_label_says_what_happened() {
    let site = with_hooks(&["first", "second"]);
    let both = ["first pre-cut db", "second pre-cut db", "second post-cut db taken", "first post-cut db taken"];

    let taken = json(&mut take(&site, &["--title", "before the upgrade"]));
    assert_eq!((&taken["consistency"], &taken["title"]), (&"application".into(), &"before the upgrade".into()), "{taken}");
    assert_eq!(taken["hooks"], "first: first is quiet; second: second is quiet");
    assert_eq!(asked(&site), both);
    let id = taken["point"]["id"].as_str().expect("an id").to_owned();

    // It is there, found by all that is said of it, on both sides and in the store.
    write_noise(&site.tap("log"), BYTES, 2, 50);
    site.wait_quiet();
    let list = ["point", "list", "db"];
    for filter in [&["--consistent"][..], &["--label", "UPGRADE"], &["--label", "second is"]] {
        for mut command in [site.farside(), site.gateway(&[])] {
            let found = json(command.args(list).args(filter));
            let ids: Vec<&str> = found.as_array().expect("a list").iter().map(|p| p["id"].as_str().expect("an id")).collect();
            assert_eq!(ids, [&id], "{filter:?}");
        }
    }
    let store = site.store();
    let shown = json(site.farside().args(["point", "show", "consistent", "--of", "db", "--store"]).arg(&store));
    assert_eq!((&shown["id"], &shown["consistency"]), (&id.as_str().into(), &"application".into()), "{shown}");
    assert_eq!(shown["members"].as_array().expect("a list").len(), 2, "also what nobody wrote to");
    let text = run(site.farside().args(["point", "list", "db"])).stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.lines().any(|line| line.contains(&id) && line.contains("consistent “before the upgrade”")), "{text}");
    assert!(text.lines().any(|line| !line.contains("consistent") && line.contains("data log")), "others are not: {text}");

    // Without hooks, on demand.
    let plain = json(&mut take(&site, &["--no-hooks", "--title", "plain"]));
    assert_eq!((&plain["consistency"], &plain["hooks"]), (&"crash".into(), &"".into()), "{plain}");
    assert!(asked(&site).is_empty());

    // One fails before the cut: it is said, the point is there all the same, and what was begun is ended.
    touch(&site, "second.fails-pre-cut");
    let failed = refused(&mut take(&site, &[]));
    let why = failed["hooks"].as_str().expect("text");
    assert!(failed["consistency"] == "crash" && why.contains("second") && why.contains("second cannot"), "{failed}");
    assert_eq!(
        asked(&site),
        ["first pre-cut db", "second pre-cut db", "second post-cut db not-taken", "first post-cut db not-taken"]
    );
    assert!(codes(&site).contains(&"hooks_failed".to_owned()), "{:?}", codes(&site));
    rub_out(&site, "second.fails-pre-cut");

    // One fails after it.
    touch(&site, "first.fails-post-cut");
    let failed = refused(&mut take(&site, &[]));
    assert!(failed["consistency"] == "crash" && failed["hooks"].as_str().expect("text").contains("post-cut"), "{failed}");
    rub_out(&site, "first.fails-post-cut");
    assert_eq!(asked(&site)[..4], both, "and maybe once more: it is tried again");
    assert_eq!(json(&mut take(&site, &[]))["consistency"], "application");
    wait_until("nothing to be said", || {
        let codes = codes(&site);
        if codes.is_empty() { Ok(()) } else { Err(codes.concat()) }
    });
    asked(&site);

    // By the clock.
    run(site.farside().args(["group", "set", "db", "--consistent", "10s"]));
    wait_until("one by the clock", || if log(&site) == both { Ok(()) } else { Err(log(&site).concat()) });
    run(site.farside().args(["group", "set", "db", "--consistent", "none"]));
    let unknown = site.farside().args(["point", "take", "nobody"]).output().expect("it starts");
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    site.check_store();
}

#[test]
fn nobody_stays_quiesced() {
    let mut site = with_hooks(&["first", "second"]);
    let begun = |site: &Site| {
        touch(site, "second.waits");
        let taking = take(site, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        wait_until("its hooks", || {
            let log = log(site).concat();
            if log.contains("second pre-cut") { Ok(()) } else { Err(log) }
        });
        taking
    };
    let ended = |site: &Site, how: &str| {
        wait_for("what was begun to be ended", || {
            (log(site).concat().matches(&format!("post-cut db {how}")).count() == 2).then_some(())
        });
        asked(site);
    };

    // Writes and other hosts' points wait for nothing meanwhile; a stop does not either.
    let mut taking = begun(&site);
    write_noise(&site.tap("data"), BYTES, 3, 50);
    assert!(site.status()["groups"][0]["consistent"]["now"].as_str().expect("it goes on").contains("hooks"));
    site.daemon.take().expect("it runs").stop();
    ended(&site, "not-taken");
    assert!(!taking.wait().expect("a child").success());
    rub_out(&site, "second.waits");
    site.start_daemon();
    site.wait_quiet();

    // The daemon is killed: its guard sees that.
    let mut taking = begun(&site);
    site.daemon.take().expect("it runs").kill();
    ended(&site, "not-taken");
    taking.wait().expect("a child");
    rub_out(&site, "second.waits");
    site.start_daemon();
    site.wait_quiet();

    // The guard is killed, too: the next daemon ends what was begun.
    let mut taking = begun(&site);
    let guard = guards(&site);
    assert_eq!(guard.len(), 1, "{guard:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard[0]), nix::sys::signal::Signal::SIGKILL).expect("it runs");
    // Who it had begun sees nothing of that.
    rub_out(&site, "second.waits");
    site.daemon.take().expect("it runs").kill();
    taking.wait().expect("a child");
    site.start_daemon();
    ended(&site, "not-taken");

    // A guard that is killed alone is no reason to call anything consistent.
    site.wait_quiet();
    let taking = begun(&site);
    let guard = guards(&site);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard[0]), nix::sys::signal::Signal::SIGKILL).expect("it runs");
    rub_out(&site, "second.waits");
    assert_eq!(taking.wait_with_output().expect("a child").status.code(), Some(7));
    assert!(codes(&site).contains(&"hooks_failed".to_owned()));
    ended(&site, "not-taken");
    assert_eq!(json(&mut take(&site, &[]))["consistency"], "application");
    assert_eq!(asked(&site).len(), 4);
}

#[test]
fn a_point_of_all_volumes_lacks_none_and_what_cannot_be_ended_is_tried_again() {
    let mut site = with_hooks(&["first"]);
    // What a post-cut could not end is ended as soon as it can be, and said until then.
    touch(&site, "first.fails-post-cut");
    refused(&mut take(&site, &[]));
    wait_until("it to be said", || {
        let status = site.status().to_string();
        if status.contains("what hooks quiesced may still be") { Ok(()) } else { Err(status) }
    });
    asked(&site);
    rub_out(&site, "first.fails-post-cut");
    wait_until("it to be ended", || {
        let status = site.status().to_string();
        if !status.contains("what hooks quiesced may still be") { Ok(()) } else { Err(status) }
    });
    let log = asked(&site);
    assert!(!log.is_empty() && log.iter().all(|line| line == "first post-cut db not-taken"), "{log:?}");
    assert_eq!(json(&mut take(&site, &[]))["consistency"], "application");
    asked(&site);

    site.daemon.take().expect("it runs").stop();
    std::fs::rename(site.backing("log"), site.path("aside")).expect("a file");
    site.daemon = Some(site.spawn_daemon());
    let said = wait_until("it to wait for the volume", || {
        let output = take(&site, &["--wait", "1s"]).output().expect("it starts");
        assert!(!output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("waits for log") { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("cut together") && asked(&site).is_empty(), "{said}");
    std::fs::rename(site.path("aside"), site.backing("log")).expect("a file");
    run(site.farside().arg("reload"));
    assert_eq!(json(&mut take(&site, &["--wait", "2m"]))["consistency"], "application");
}

/// Guards that are children of the site's daemon.
fn guards(site: &Site) -> Vec<i32> {
    let daemon = site.daemon.as_ref().expect("it runs").pid().to_string();
    let children = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        let words = std::fs::read(path.join("cmdline")).ok()?;
        (parent == daemon && words.windows(7).any(|w| w == b"--hooks")).then_some(pid)
    });
    children.collect()
}

/// Whether the journal of an ext4 image wants to be replayed.
fn wants_recovery(image: &Path) -> bool {
    let said = run(tool("dumpe2fs").arg("-h").arg(image)).stdout;
    String::from_utf8_lossy(&said).contains("needs_recovery")
}

#[test]
fn a_frozen_file_system_with_a_database_is_whole_in_a_point() {
    if !possible() {
        eprintln!("not run: needs root, FUSE and loop devices");
        return;
    }
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes: 192 << 20, group: "db".into() }], "200ms", 1000);
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o711)).expect("our own directory");
    let (sockets, scratch) = (site.path("sockets"), site.path("scratch"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/hooks/postgresql");
    configure(
        &site,
        &format!(
            "[[hook]]\ngroup = \"db\"\nname = \"postgresql\"\ncommand = [\"{}\", \"-h\", \"{}\"]\n\
             [[hook]]\ngroup = \"db\"\nname = \"srv\"\nfreeze = \"{}\"\n[[group]]\nname = \"db\"\nhook_hold = \"30s\"\n",
            script.display(),
            sockets.display(),
            scratch.join("mnt").display()
        ),
    );
    site.start_all();
    let mounted = Mounted::made_on_tap(&site.tap("data"), &scratch, FileSystem::Ext4);
    let server = Server::create(mounted.path(), &sockets);
    site.wait_quiet();
    for n in 1..=40 {
        server.psql(&transaction(0, n, 1, 1, 2));
    }
    let taken = json(&mut take(&site, &["--wait", "5m"]));
    let said = taken["hooks"].as_str().expect("text");
    assert!(taken["consistency"] == "application" && said.contains("checkpoint") && said.contains("srv"), "{taken}");
    // It is thawed, and goes on.
    server.psql(&transaction(0, 41, 1, 1, 2));
    let ordinary = json(&mut take(&site, &["--no-hooks", "--wait", "5m"]));

    // A server that goes away between the two is no server that was quiet.
    assert!(server.stop("immediate"));
    let failed = refused(&mut take(&site, &["--wait", "5m"]));
    assert!(failed["consistency"] == "crash" && failed["hooks"].as_str().expect("text").contains("postgresql"), "{failed}");
    std::fs::write(mounted.path().join("thawed"), "x").expect("nobody froze it, or somebody thawed it");
    drop(server);
    drop(mounted);
    site.wait_quiet();

    let copy = site.path("point.img");
    site.restore("data", ordinary["point"]["id"].as_str().expect("an id"), &copy);
    assert!(wants_recovery(&copy), "what was in use is as after a power cut");
    std::fs::remove_file(&copy).expect("restored");
    site.restore("data", taken["point"]["id"].as_str().expect("an id"), &copy);
    assert!(!wants_recovery(&copy), "what was frozen is as if it were unmounted");
    let at = site.path("restored");
    let image = Image::mount_writable(&copy, &at, FileSystem::Ext4);
    let server = Server::recover(&at, &sockets);
    assert_eq!(server.psql(SUMS), AGREED);
    assert_eq!(server.psql("SELECT count(*) FROM history"), "40");
    assert!(server.stop("fast"));
    drop(server);
    drop(image);
    site.check_store();
}

/// A user of the tap who waits for nothing while hooks take their time.
#[test]
fn who_writes_waits_for_no_hook() {
    let site = with_hooks(&["first"]);
    touch(&site, "first.waits");
    let taking = take(&site, &["--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("its hook", || log(&site).concat().contains("first pre-cut").then_some(()));
    let user = connect(&site.tap("data"));
    drop(user);
    write_noise(&site.tap("data"), BYTES, 4, 200);
    rub_out(&site, "first.waits");
    let taken = taking.wait_with_output().expect("a child");
    let taken: Value = serde_json::from_slice(&taken.stdout).expect("an answer");
    assert_eq!(taken["consistency"], "application");
    // Its point holds what was written before the cut, to the last byte.
    site.wait_quiet();
    site.check_store();
}
