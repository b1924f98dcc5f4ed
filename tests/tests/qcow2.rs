//! A restore into a qcow2 image: qemu-img makes it from the point itself, and it appears whole or not at all.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Process, Site, program, run, tool, wait_for};

const BYTES: u64 = 48 << 20;

fn restore(site: &Site, to: &Path, more: &[&str]) -> Command {
    let mut command = program("farside");
    command.args(["restore", "data", "--point", "latest", "--store"]).arg(site.store()).arg("--to").arg(to).args(more);
    command
}

fn ended(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    (output.status.code().expect("not killed"), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A volume with content and holes, and a point of it.
fn site() -> Site {
    let site = Site::with_volume(BYTES, "100ms", 50);
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(23);
    for _ in 0..2 {
        site.point_after("data", || {
            client.steps(&mut rng, 100);
            client.flush();
        });
    }
    site
}

/// qemu's own tools find it sound, and equal to the volume.
fn is_the_volume(image: &Path, backing: &Path) {
    run(tool("qemu-img").args(["check", "-f", "qcow2"]).arg(image));
    run(tool("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw"]).arg(image).arg(backing));
}

fn partial(image: &Path) -> PathBuf {
    format!("{}.farside-partial", image.display()).into()
}

#[test]
fn a_point_becomes_a_qcow2_image_or_nothing() {
    let mut site = site();
    let (image, backing) = (site.path("data.qcow2"), site.backing("data"));
    run(&mut restore(&site, &image, &[]));
    is_the_volume(&image, &backing);
    assert!(fs::metadata(&image).expect("meta").blocks() * 512 < BYTES, "holes are holes");
    assert!(!partial(&image).exists());

    let (code, text) = ended(&mut restore(&site, &image, &[]));
    assert!(code == 4 && text.contains("--force"), "{code}: {text}");
    run(&mut restore(&site, &image, &["--force"]));
    is_the_volume(&image, &backing);
    // The name says nothing.
    let other = site.path("data.img");
    run(&mut restore(&site, &other, &["--format", "qcow2"]));
    is_the_volume(&other, &backing);
    let raw = site.path("raw.qcow2");
    run(&mut restore(&site, &raw, &["--format", "raw"]));
    assert!(fs::read(&raw).expect("read") == fs::read(&backing).expect("read"));
    for more in [&["--resume"][..], &["--to", "-", "--format", "qcow2"]] {
        let mut command = program("farside");
        command.args(["restore", "data", "--point", "latest", "--store"]).arg(site.store());
        if more[0] == "--resume" {
            command.arg("--to").arg(&image);
        }
        let (code, text) = ended(command.args(more));
        assert_eq!(code, 2, "{text}");
    }

    // What the store has lost.
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    for segment in site.segments("data") {
        let mut bytes = fs::read(&segment).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&segment, bytes).expect("write");
    }
    let broken = site.path("broken.qcow2");
    let (code, text) = ended(&mut restore(&site, &broken, &[]));
    assert!(code == 6 && text.contains("region") && text.contains("volume data"), "{code}: {text}");
    assert!(!broken.exists() && !partial(&broken).exists(), "something of it is left");
    run(&mut restore(&site, &broken, &["--allow-damaged"]));
    run(tool("qemu-img").args(["check", "-f", "qcow2"]).arg(&broken));
}

/// A qemu-img that has written something and does not go on.
#[test]
fn a_restore_that_is_killed_leaves_nothing_that_looks_like_an_image() {
    let site = site();
    let (image, folder) = (site.path("data.qcow2"), site.path("programs"));
    fs::create_dir(&folder).expect("made");
    let (begun, hangs) = (site.path("begun"), site.path("hangs"));
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\nprintf half > \"$last\"\n: > '{}'\nread -r line < '{}'\n",
        begun.display(),
        hangs.display()
    );
    fs::write(folder.join("qemu-img"), script).expect("written");
    fs::set_permissions(folder.join("qemu-img"), fs::Permissions::from_mode(0o755)).expect("set");
    run(tool("mkfifo").arg(&hangs));
    let mut command = restore(&site, &image, &["--json"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).stdin(Stdio::null()).stdout(Stdio::null());
    let killed = Process::new(command.spawn().expect("it starts"), "farside restore");
    wait_for("qemu-img to write", || begun.exists().then_some(()));
    killed.kill();
    assert!(!image.exists(), "a half image has the name");
    fs::write(&hangs, "go on\n").expect("the program ends");

    run(&mut restore(&site, &image, &[]));
    is_the_volume(&image, &site.backing("data"));
    assert!(!partial(&image).exists());

    fs::remove_file(folder.join("qemu-img")).expect("removed");
    let missing = site.path("missing.qcow2");
    let (code, text) = ended(restore(&site, &missing, &[]).env("PATH", &folder));
    assert!(code == 4 && text.contains("qemu-utils"), "{code}: {text}");
    assert!(!missing.exists() && !partial(&missing).exists());
}
