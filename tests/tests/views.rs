//! `farside point open`: a point is there at once, byte for byte, for several at a time; what is written over it is kept; what the store
//! has lost is an error where it lies.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use farside_tests::mount::SmallDisk;
use farside_tests::verify::{Rng, Verifier, connect};
use farside_tests::{Process, Site, program, wait_for};
use serde_json::Value;

const BYTES: u64 = 48 << 20;
const MIB: u64 = 1 << 20;

/// A command that serves, and what it said at its start.
struct Opened {
    process: Process,
    said: Value,
}

fn command(site: &Site, point: &str, socket: &Path, more: &[&str]) -> Command {
    let mut command = program("farside");
    command.args(["point", "open", &format!("data@{point}"), "--json", "--store"]).arg(site.store());
    command.arg("--export").arg(format!("nbd:{}", socket.display())).args(more);
    command
}

fn open(site: &Site, point: &str, socket: &Path, more: &[&str]) -> Opened {
    let mut child: Child =
        command(site, point, socket, more).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut said = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    // One object, over several lines.
    while serde_json::from_str::<Value>(&said).is_err() {
        assert!(output.read_line(&mut said).expect("text") > 0, "it ended and said {said:?}");
    }
    Opened { process: Process::new(child, "farside point open"), said: serde_json::from_str(&said).expect("JSON") }
}

fn refused(site: &Site, point: &str, socket: &Path, more: &[&str]) -> (i32, String) {
    let output = command(site, point, socket, more).stdin(Stdio::null()).output().expect("it starts");
    (output.status.code().expect("not killed"), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// All of what a socket serves.
fn content(socket: &Path) -> Vec<u8> {
    let mut client = connect(socket);
    let mut bytes = vec![0; client.size() as usize];
    for (at, piece) in (0..).step_by(MIB as usize).zip(bytes.chunks_mut(MIB as usize)) {
        client.read(at, piece).expect("it is read");
    }
    bytes
}

/// Writes, and gives the next point and what it holds.
fn point_with(site: &Site, write: impl FnOnce()) -> (String, Vec<u8>) {
    let point = site.point_after("data", write);
    (point["id"].as_str().expect("an id").to_owned(), fs::read(site.backing("data")).expect("read"))
}

fn folder_of(socket: &Path) -> PathBuf {
    format!("{}.overlay", socket.display()).into()
}

#[test]
fn points_are_open_at_once_and_what_is_written_over_one_is_kept() {
    let mut site = Site::with_volume(BYTES, "100ms", 1000);
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(11));
    let points = [300, 60, 60].map(|requests| {
        point_with(&site, || {
            client.steps(&mut rng, requests);
            client.flush();
        })
    });
    let [(first, first_content), (second, second_content), _] = &points;
    let (reads, writes) = (site.path("first.nbd"), site.path("second.nbd"));
    let view = open(&site, first, &reads, &[]);
    let opened = open(&site, second, &writes, &["--writable"]);
    assert_eq!((&view.said["writable"], &opened.said["writable"]), (&Value::from(false), &Value::from(true)));
    assert_eq!(opened.said["written_bytes"], 0);
    assert!(content(&reads) == *first_content, "what the first point holds");
    assert!(content(&writes) == *second_content, "what the second point holds");
    connect(&reads).write(0, &[1; 512], 0).expect_err("it is read-only");

    // A part of a granule, several regions, zeroes; flushed. And then something that nobody flushed.
    let mut expected = second_content.clone();
    let mut client = connect(&writes);
    let mut put = |at: usize, bytes: &[u8]| {
        client.write(at as u64, bytes, 0).expect("written");
        expected[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(512, &[0xa1; 1024]);
    put((4 << 20) - 8192, &vec![0xa2; 16384]);
    put(BYTES as usize - 4096, &[0xa3; 4096]);
    client.write_zeroes(9 << 20, 3 << 20, 0).expect("zeroed");
    expected[9 << 20..12 << 20].fill(0);
    client.trim(20 << 20, 4096).expect("trimmed");
    expected[20 << 20..][..4096].fill(0);
    client.flush().expect("durable");
    assert!(content(&writes) == expected);
    client.write(30 << 20, &[0xa4; 4096], 0).expect("written");
    opened.process.kill();
    drop(client);

    // It goes on where it was; nobody else has it meanwhile, and it fits no other point.
    let opened = open(&site, second, &writes, &["--writable"]);
    assert!(opened.said["written_bytes"].as_u64() >= Some(3 << 20), "{}", opened.said);
    let now = content(&writes);
    let at = 30 << 20;
    assert!(now[at..at + 4096] == [0xa4; 4096] || now[at..at + 4096] == expected[at..at + 4096], "neither before nor after");
    expected[at..at + 4096].copy_from_slice(&now[at..at + 4096]);
    assert!(now == expected, "what was flushed was lost");
    let overlay = folder_of(&writes);
    let overlay = overlay.to_str().expect("text");
    let third = site.path("third.nbd");
    for (point, says) in [(second, "in use by another process"), (first, "was written over point")] {
        let (code, text) = refused(&site, point, &third, &["--writable", "--overlay", overlay]);
        assert!(code == 4 && text.contains(says), "{code}: {text}");
    }
    let (code, text) = refused(&site, second, &writes, &[]);
    assert!(code == 4 && text.contains("second.nbd"), "a socket that is served is not taken away: {text}");
    let inside = site.store().join("overlay");
    let (code, text) = refused(&site, second, &third, &["--writable", "--overlay", inside.to_str().expect("text")]);
    assert!(code == 4 && text.contains("in the store itself") && !inside.exists(), "{code}: {text}");
    let (code, text) = refused(&site, "999999", &third, &[]);
    assert_eq!(code, 5, "{text}");

    // The point itself is as it was, also for who has it open.
    assert!(content(&reads) == *first_content);
    let another = open(&site, second, &third, &["--ttl", "1h"]);
    assert!(content(&third) == *second_content);
    for opened in [view, opened, another] {
        opened.process.stop();
    }
    assert!(!reads.exists() && !writes.exists() && !third.exists(), "a socket is left");
    // Its time is over before anybody came.
    let mut short = open(&site, second, &third, &["--ttl", "1ms"]).process;
    wait_for("its end", || (!short.is_running()).then_some(()));
    assert!(!third.exists(), "it did not end in order");
    site.receiver.take().expect("it runs").stop();
    site.check_store();
}

#[test]
fn a_view_that_is_closed_leaves_no_socket_and_what_was_written_is_kept() {
    let site = Site::with_volume(BYTES, "100ms", 50);
    let mut client = connect(&site.tap("data"));
    let (point, _) = &point_with(&site, || {
        client.write(0, &[1; 4096], 0).expect("written");
        client.flush().expect("durable");
    });
    let farside = |args: &[&str]| program("farside").args(args).stdin(Stdio::null()).output().expect("it starts");
    // Only what this site has open: others of this user may have something open, too.
    let opened = || {
        let output = farside(&["point", "opened", "--json"]);
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let folder = format!("nbd:unix:{}", site.path("").display());
        let here = |one: &&Value| one["export"].as_str().is_some_and(|export| export.starts_with(&folder));
        all.iter().filter(here).map(|one| one["pid"].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    let (reads, writes) = (site.path("reads.nbd"), site.path("writes.nbd"));
    let mut reading = open(&site, point, &reads, &[]).process;
    let mut writing = open(&site, point, &writes, &["--writable"]).process;
    assert_eq!(opened(), [&reading, &writing].map(|process| u64::from(process.pid())));
    connect(&writes).write(4096, &[2; 4096], 0).expect("written, and not flushed");

    let closed = farside(&["point", "close", reads.to_str().expect("text")]);
    assert!(closed.status.success() && String::from_utf8_lossy(&closed.stdout).contains(" is closed"), "{closed:?}");
    assert!(!reads.exists());
    let closed = farside(&["point", "close", "--json", &format!("nbd:{}", writes.display())]);
    let ended: Value = serde_json::from_slice(&closed.stdout).expect("JSON");
    assert!(ended["failed"].is_null() && ended["written_bytes"] == 4096, "{ended}");
    assert!(!writes.exists() && opened().is_empty());
    for process in [&mut reading, &mut writing] {
        wait_for("its end", || (!process.is_running()).then_some(()));
    }
    let nothing = farside(&["point", "close", writes.to_str().expect("text")]);
    assert_eq!(nothing.status.code(), Some(5), "{nothing:?}");

    // By its name; it was killed before, which leaves its door behind.
    open(&site, point, &writes, &["--writable"]).process.kill();
    assert!(opened().is_empty() && writes.exists());
    let mut writing = open(&site, point, &writes, &["--writable"]);
    assert_eq!(writing.said["written_bytes"], 4096);
    let source = writing.said["point"]["source"].as_str().expect("a name").to_owned();
    assert_eq!(farside(&["point", "close", &format!("{source}/data@1-00000000")]).status.code(), Some(5));
    let closed = farside(&["point", "close", &format!("{source}/data@{point}")]);
    assert!(closed.status.success(), "{closed:?}");
    wait_for("its end", || (!writing.process.is_running()).then_some(()));
    assert!(!writes.exists());

    // Nobody hears where it is: it ends, and leaves nothing.
    let (heard, says) = std::io::pipe().expect("a pipe");
    drop(heard);
    let mut unheard = command(&site, point, &reads, &[]).stdin(Stdio::null()).stdout(says).spawn().expect("it starts");
    assert!(unheard.wait().expect("it ends").success());
    assert!(!reads.exists() && opened().is_empty());
}

#[test]
fn a_point_becomes_a_file_while_it_is_used_and_killed() {
    let mut site = Site::with_volume(BYTES, "100ms", 50);
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(13));
    let (point, mut expected) = point_with(&site, || {
        client.steps(&mut rng, 400);
        client.flush();
    });
    let (reads, writes) = (site.path("reads.nbd"), site.path("writes.nbd"));
    let (copy, image) = (site.path("copy.img"), site.path("image.img"));
    let hydrated = |file: &Path| ["--hydrate".to_owned(), file.to_str().expect("text").to_owned()];
    let made = |file: &Path| wait_for("the file", || file.exists().then_some(()));

    // Read-only: a copy of the point, with its socket and its folder beside it.
    let [flag, file] = hydrated(&copy);
    let opened = open(&site, &point, &reads, &[&flag, &file]);
    assert_eq!((&opened.said["writable"], &opened.said["hydrate"]), (&Value::from(false), &Value::from(file.as_str())));
    connect(&reads).write(0, &[1; 512], 0).expect_err("it is read-only");
    made(&copy);
    assert!(fs::read(&copy).expect("read") == expected && content(&reads) == expected);
    opened.process.stop();
    assert!(!folder_of(&copy).exists());
    let (code, text) = refused(&site, &point, &reads, &[&flag, &file]);
    assert!(code == 4 && text.contains("is there already"), "{code}: {text}");

    // Written meanwhile, flushed, killed again and again until it is there.
    let [flag, file] = hydrated(&image);
    for stamp in 1..=3u8 {
        let opened = open(&site, &point, &writes, &["--writable", &flag, &file]);
        let mut client = connect(&writes);
        let at = rng.below(BYTES / 512) * 512;
        client.write(at, &[stamp; 512], 0).expect("written");
        client.flush().expect("durable");
        expected[at as usize..][..512].fill(stamp);
        assert!(content(&writes) == expected, "after {stamp} kills");
        if stamp < 3 {
            opened.process.kill();
            if !image.exists() {
                continue;
            }
            assert!(fs::read(&image).expect("read") == expected, "a file that is there is whole");
            break;
        }
        made(&image);
        client.write(0, &[0xfe; 512], 0).expect("it is open still");
        expected[..512].fill(0xfe);
        opened.process.stop();
        assert!(!folder_of(&writes).exists());
        break;
    }
    // It needs nobody any more.
    site.receiver.take().expect("it runs").stop();
    fs::remove_dir_all(site.store()).expect("removed");
    assert!(fs::read(&image).expect("read") == expected);
}

#[test]
fn a_disk_without_room_is_not_filled_up_and_later_it_goes_on() {
    let site = Site::with_volume(BYTES, "100ms", 50);
    let mut client = connect(&site.tap("data"));
    let (mut noise, mut rng) = (Vec::new(), Rng(14));
    noise.resize_with(24 << 20, || rng.draw() as u8);
    let (point, expected) = point_with(&site, || {
        client.write(8 << 20, &noise, 0).expect("written");
        client.flush().expect("durable");
    });
    let (disk, socket) = (site.path("small"), site.path("small.nbd"));
    fs::create_dir(&disk).expect("made");
    let Some(small) = SmallDisk::mount(&disk, "70m") else { return };
    let file = disk.join("image");
    let flags = ["--hydrate", file.to_str().expect("text")];
    let mut child =
        command(&site, &point, &socket, &flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    let process = Process::new(child, "farside point open");
    assert!(lines.any(|line| line.contains("may take ") && line.contains("there is room for ")));
    assert!(lines.any(|line| line.contains("is not made: less than 64 MiB of room")));
    assert!(!file.exists() && content(&socket) == expected, "it is served on");
    let opened: Value =
        serde_json::from_slice(&program("farside").args(["point", "opened", "--json"]).output().expect("it starts").stdout)
            .expect("JSON");
    let opened = opened.as_array().expect("a list").iter().find(|one| one["hydrate"] == flags[1]).expect("it is open");
    let written = opened["written_bytes"].as_u64().expect("a number");
    assert!(0 < written && written < BYTES, "{opened}");
    process.kill();

    small.resize("300m");
    let opened = open(&site, &point, &socket, &flags);
    assert_eq!(opened.said["written_bytes"], written, "it goes on");
    wait_for("the file", || file.exists().then_some(()));
    assert!(fs::read(&file).expect("read") == expected);
    opened.process.stop();
}

#[test]
fn what_the_store_has_lost_is_an_error_where_it_lies() {
    let site = Site::with_volume(BYTES, "100ms", 50);
    let mut client = connect(&site.tap("data"));
    site.wait_quiet();
    // One region of noise, and no other point that holds as much.
    let (mut noise, mut rng) = (Vec::new(), Rng(12));
    noise.resize_with(4 << 20, || rng.draw() as u8);
    let (first, expected) = &point_with(&site, || {
        client.write(8 << 20, &noise, 0).expect("written");
        client.flush().expect("durable");
    });
    let largest = site.largest_segment("data");
    let mut bytes = fs::read(&largest).expect("read");
    let middle = bytes.len() / 2; // of 4 MiB of content
    bytes[middle] ^= 0x10;
    fs::write(&largest, &bytes).expect("written");

    let socket = site.path("damaged.nbd");
    let opened = open(&site, first, &socket, &[]);
    let mut client = connect(&socket);
    let (mut lost, mut buffer) = (Vec::new(), vec![0; 4096]);
    for at in (0..BYTES).step_by(4096) {
        match client.read(at, &mut buffer) {
            Ok(()) => assert!(buffer == expected[at as usize..][..4096], "at {at}"),
            Err(_) => lost.push(at),
        }
    }
    let frame = 64 * 4096; // granules are stored in such groups
    assert_eq!(lost.len(), 64, "one flipped bit is one frame: {lost:?}");
    assert!(lost[0] >= 8 << 20 && lost[0].is_multiple_of(frame) && lost[63] == lost[0] + 63 * 4096, "{lost:?}");
    // Put back, it is there again, without being opened anew.
    bytes[middle] ^= 0x10;
    fs::write(&largest, &bytes).expect("written");
    assert!(content(&socket) == *expected);
    opened.process.stop();
}
