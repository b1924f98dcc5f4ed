//! Followers whose target's content is locked, round by round: by the file system, and by a program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farside_tests::verify::write_noise;
use farside_tests::{Site, json, run, tool, wait_for};
use serde_json::Value;

const BYTES: u64 = 24 << 20;

/// A file system in a file.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn xfs(scratch: &Path) -> Self {
        let (image, at) = (scratch.join("disk"), scratch.join("mnt"));
        std::fs::create_dir(&at).expect("mkdir");
        std::fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("a file");
        run(tool("mkfs.xfs").arg("-q").arg(&image));
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { at }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever used it is being killed.
        let _ = tool("umount").arg("--lazy").arg(&self.at).status();
    }
}

fn write(site: &Site, seed: u64, requests: u64) {
    write_noise(&site.tap("data"), BYTES, seed, requests);
}

fn shown(site: &Site) -> Value {
    json(&mut site.gateway(&["follower", "show", "host1-data"]))
}

/// Waits until the newest point is held, and locked if it is to be.
fn settle(site: &Site, is_locked: bool) -> String {
    site.wait_quiet();
    let newest = site.points("data").last().expect("a point")["id"].as_str().expect("text").to_owned();
    wait_for("the newest point to be held", || {
        let shown = shown(site);
        assert_ne!(shown["state"], "diverged", "{shown}");
        let last = shown["locked"].as_array().expect("a list").last().map(|one| one["id"].clone());
        let is_there = shown["state"] == "following" && shown["holds"]["id"] == newest;
        // The oldest goes last of all.
        let is_over = shown["locked"].as_array().is_some_and(|all| all.len() <= 3);
        (is_there && is_over && (!is_locked || last == Some(newest.clone().into()))).then_some(())
    });
    newest
}

#[test]
fn copies_that_share_their_blocks_are_kept_for_so_many_rounds() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root for a file system");
        return;
    }
    let mut site = Site::with_volume(BYTES, "200ms", 100);
    let disk = Disk::xfs(site.dir.path());
    let target = disk.at.join("standby.img");
    let add = |at: &Path, more: &[&str]| {
        let at = at.display().to_string();
        let mut all = vec!["follower", "add", "host1/default/data", &at];
        all.extend(more);
        site.gateway(&all).output().expect("it starts")
    };
    write(&site, 1, 50);
    site.wait_quiet();
    let refused = add(Path::new("/proc/standby.img"), &["--lock", "reflink"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("XFS and Btrfs"), "{refused:?}");
    let added = add(&target, &["--lock", "reflink", "--locked", "3"]);
    assert!(added.status.success(), "{added:?}");

    let mut points = BTreeMap::<String, Vec<u8>>::new();
    for round in 0..6 {
        write(&site, round + 2, 60);
        if round % 2 == 1 {
            // Anywhere between a point and its lock.
            site.receiver.take().expect("it runs").kill();
            site.start_receiver();
        }
        let newest = settle(&site, true);
        points.insert(newest, std::fs::read(&target).expect("the standby"));
    }
    let shown = shown(&site);
    let locked = shown["locked"].as_array().expect("a list");
    assert_eq!((locked.len(), &shown["lock"]["by"]), (3, &"reflink".into()), "{shown}");
    assert_eq!(shown["reasons"], serde_json::json!([]));
    let mut compared = 0;
    for one in locked {
        let (id, path) = (one["id"].as_str().expect("text"), Path::new(one["name"].as_str().expect("text")));
        assert_eq!(path, Path::new(&format!("{}@{id}", target.display())));
        let content = std::fs::read(path).expect("a copy");
        let image = site.path("point.img");
        site.restore("data", id, &image);
        assert!(content == std::fs::read(&image).expect("restored"), "point {id}");
        std::fs::remove_file(&image).expect("removed");
        compared += usize::from(points.get(id).is_some_and(|then| *then == content));
    }
    assert!(compared > 0, "{locked:?}");
    let files = std::fs::read_dir(&disk.at).expect("listed").count();
    assert_eq!(files, 4, "the target and its three rounds, and nothing that a kill left");
    run(&mut site.gateway(&["follower", "verify", "host1-data"]));
    let text = run(&mut site.gateway(&["follower", "show", "host1-data"]));
    assert!(String::from_utf8_lossy(&text.stdout).contains("3 of 3"), "{text:?}");
}

#[test]
fn a_program_that_fails_is_told_and_keeps_a_strict_follower_where_it_is() {
    for strict in [false, true] {
        let site = Site::with_volume(BYTES, "200ms", 100);
        let (script, works) = (site.path("lock"), site.path("works"));
        let text =
            format!("test -e {} || {{ echo 'the pool is full' >&2; exit 1; }}\necho \"snap-$FARSIDE_POINT\"\n", works.display());
        std::fs::write(&script, text).expect("written");
        std::fs::create_dir_all(site.path("gateway/receiver.d")).expect("mkdir");
        let lock = format!("[[lock]]\nname = \"thin\"\nprogram = [\"/bin/sh\", \"{}\"]\n", script.display());
        std::fs::write(site.path("gateway/receiver.d/lock.toml"), lock).expect("written");
        site.receiver.as_ref().expect("it runs").signal(libc::SIGHUP);
        write(&site, 1, 50);
        site.wait_quiet();
        let target = site.path("standby.img").display().to_string();
        let mut add = vec!["follower", "add", "host1/default/data", &target, "--lock", "thin", "--locked", "2"];
        if strict {
            add.push("--lock-strict");
        }
        wait_for("the configuration to be read", || {
            site.gateway(&add).output().expect("it starts").status.success().then_some(())
        });
        wait_for("its failure to be told", || shown(&site)["reasons"].to_string().contains("the pool is full").then_some(()));
        let first = site.points("data").last().expect("a point")["id"].clone();
        write(&site, 2, 50);
        if strict {
            site.wait_quiet();
            let failed = |shown: &Value| shown["state"] == "failed" && shown["applied"] == 1;
            wait_for("another try", || failed(&shown(&site)).then_some(()));
        } else {
            settle(&site, false);
        }
        std::fs::write(&works, "").expect("written");
        let newest = settle(&site, true);
        let locked = wait_for("no reason to be left", || {
            let shown = shown(&site);
            (shown["reasons"] == serde_json::json!([])).then(|| shown["locked"].clone())
        });
        let ids: Vec<&Value> = locked.as_array().expect("a list").iter().map(|one| &one["id"]).collect();
        assert_eq!(ids.contains(&&first), strict, "the point at which it had to stay is locked: {locked}");
        assert!(locked.to_string().contains(&format!("snap-{newest}")), "{locked}");
    }
}
