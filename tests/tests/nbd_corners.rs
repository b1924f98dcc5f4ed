//! nbdsh walks the corners of the protocol on the tap, while another client's every sector is verified: what is wrong is
//! refused by its error, nobody else notices, and the volume is replicated as ever.

use std::path::Path;
use std::process::Stdio;

use farside_tests::{Site, VolumeSpec, load, tail, tool};

const BYTES: u64 = 16 << 20;
/// What the tap serves at once (`farside_nbd::Limits`).
const CLIENTS: usize = 16;

/// Each with its name; `common.py` goes before.
const CORNERS: &[(&str, &str)] = &[
    ("unaligned", include_str!("nbd_corners/unaligned.py")),
    ("beyond the end", include_str!("nbd_corners/beyond_the_end.py")),
    ("zero length", include_str!("nbd_corners/zero_length.py")),
    ("unknown command", include_str!("nbd_corners/unknown_command.py")),
    ("oversized option", include_str!("nbd_corners/oversized_option.py")),
    ("half a request", include_str!("nbd_corners/half_a_request.py")),
    ("many clients", include_str!("nbd_corners/many_clients.py")),
    ("deaf clients", include_str!("nbd_corners/deaf_clients.py")),
    ("disconnect in mid-write", include_str!("nbd_corners/disconnect_in_mid_write.py")),
];

fn nbdsh(script: &str, socket: &Path, clients: usize) -> Result<(), String> {
    let script = format!("{}\nCLIENTS = {clients}\n{script}", include_str!("nbd_corners/common.py"));
    // The system's Python has the library; another one may stand before it in the search path.
    let output = tool("nbdsh")
        .args(["-c", &script])
        .env("SOCKET", socket)
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .expect("nbdsh is installed");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn every_corner_is_refused_by_name_and_hurts_nobody_else() {
    // The corners are walked on one volume; on the other of the group, and through the same daemon, everything is verified.
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec("data"), spec("corner")], "200ms", 8);
    site.start_all();
    let writer = load::verifying(site.tap("data"), BYTES, 31);
    let mut failures = Vec::new();
    for (name, script) in CORNERS {
        if let Err(why) = nbdsh(script, &site.tap("corner"), CLIENTS) {
            failures.push(format!("{name}: {why}"));
        }
        println!("the other client is served after `{name}`?");
        writer.wait_for_more(50);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let mut client = writer.end();
    assert_eq!(client.broken, 0, "another client's corner broke this one's connection");
    client.flush();
    client.check_all();
    site.wait_quiet();
    assert_eq!(site.volume_status("corner")["tap"]["clients"], 0, "every client is gone");
    for volume in ["data", "corner"] {
        let image = site.path(&format!("{volume}.restored"));
        site.restore(volume, "latest", &image);
        let (restored, backing) = (std::fs::read(&image), std::fs::read(site.backing(volume)));
        assert!(restored.expect("restored") == backing.expect("backing"), "{volume}: source and newest point differ");
    }
    site.check_store();
    for log in ["daemon.log", "receiver.log"] {
        let text = std::fs::read_to_string(site.path(log)).expect("a log");
        assert!(!text.contains("panicked"), "{log}: {}", tail(&site.path(log)));
    }
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}
