//! The daemons as an operator meets them: what they log, tell systemd and show, and how they take a changed configuration.

use std::os::unix::net::UnixDatagram;

use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, program, run, wait_for};

const BYTES: u64 = 16 << 20;

fn site() -> Site {
    Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 8)
}

fn write(site: &Site, seed: u64, requests: u64) -> Verifier {
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(seed);
    while client.acknowledged < requests {
        client.step(&mut rng, 4096);
    }
    client.flush();
    client
}

/// A key as code might print it: hex, or the list that `Debug` makes of bytes.
fn as_printed(bytes: &[u8]) -> [String; 2] {
    let list: Vec<String> = bytes.iter().map(ToString::to_string).collect();
    [bytes.iter().map(|b| format!("{b:02x}")).collect(), list.join(", ")]
}

#[test]
fn no_log_holds_a_secret_even_at_its_most_talkative() {
    let mut site = site();
    site.environment = vec![("FARSIDE_LOG", "trace".into())];
    site.start_receiver();
    site.start_daemon();
    let token = run(program("farside-receiver").args(["token", "--config"]).arg(site.path("gateway/receiver.toml")));
    let token = String::from_utf8(token.stdout).expect("text").trim().to_owned();
    run(site.farside().args(["pair", &token]));
    // What is refused is talked about, too.
    assert!(!site.farside().args(["pair", &token[..token.len() - 3]]).output().expect("it starts").status.success());
    write(&site, 1, 100);
    site.wait_quiet();

    let meta = std::fs::read_to_string(site.path("host/state/volumes/default/data/meta.json")).expect("the volume's meta");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    let key = meta["digest_key"].as_array().expect("a key").iter();
    let digest_key: Vec<u8> = key.map(|b| u8::try_from(b.as_u64().expect("a byte")).expect("a byte")).collect();
    let mut secrets: Vec<String> = as_printed(&digest_key).to_vec();
    secrets.push(token["farside1-".len()..][..40].to_owned());
    for state in ["host/state", "gateway/state"] {
        for file in std::fs::read_dir(site.path(state)).expect("a state directory").map(|e| e.expect("an entry").path()) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.contains("PRIVATE") {
                secrets.extend(text.lines().filter(|line| !line.starts_with("--")).map(str::to_owned));
            }
        }
    }
    assert!(secrets.len() >= 5, "a token, a digest key twice, two private keys: {}", secrets.len());
    for log in ["daemon.log", "receiver.log"] {
        let text = std::fs::read_to_string(site.path(log)).expect("a log");
        assert!(text.contains("TRACE"), "{log} is not as talkative as it can be");
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{log} holds a secret: {}…", &secret[..8.min(secret.len())]);
        }
    }
}

#[test]
fn systemd_hears_of_readiness_the_watchdog_and_the_end() {
    let mut site = site();
    let path = site.path("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    systemd.set_nonblocking(true).expect("a socket");
    site.environment = vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "200000".into())];
    let hears = |wanted: &str| {
        wait_for(wanted, || {
            let mut buffer = [0; 1024];
            let length = systemd.recv(&mut buffer).ok()?;
            String::from_utf8_lossy(&buffer[..length]).contains(wanted).then_some(())
        });
    };
    site.start_receiver();
    hears("READY=1");
    hears("WATCHDOG=1");
    hears("WATCHDOG=1");
    site.receiver.take().expect("it runs").stop();
    hears("STOPPING=1");
    site.start_daemon();
    hears("STATUS=1 of 1 volumes served");
    hears("WATCHDOG=1");
    site.daemon.take().expect("it runs").stop();
    hears("STOPPING=1");
}
