//! The daemons as an operator meets them: what they log, tell systemd and show, and how they take a changed configuration.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixDatagram;

use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, json, program, run, wait_for};
use serde_json::Value;

const BYTES: u64 = 16 << 20;

fn site() -> Site {
    Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 8)
}

fn write(site: &Site, seed: u64, requests: u64) -> Verifier {
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(seed), requests);
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
    site.environment = vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "2000000".into())];
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

#[test]
fn metrics_follow_what_happens() {
    let mut site = site();
    site.start_all();
    write(&site, 3, 200);
    site.wait_quiet();
    let of = |site: &Site, socket: &str| {
        let output = run(program("farside").args(["metrics", "--socket"]).arg(site.path(socket)));
        String::from_utf8(output.stdout).expect("text")
    };
    let host = |site: &Site| of(site, "host/api.sock");
    let value = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    };
    let text = host(&site);
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(value(&text, "farside_paired"), 1.0);
    assert_eq!(value(&text, "farside_group_connected{group=\"default\"}"), 1.0);
    assert!(value(&text, "farside_group_lag_seconds{") < 60.0);
    assert!(value(&text, "farside_group_points_published_total{") >= 1.0);
    assert!(value(&text, "farside_host_requests_total{group=\"default\",volume=\"data\",op=\"write\"}") > 0.0);
    assert!(value(&text, "farside_volume_wire_bytes_total{") > 0.0);
    assert!(value(&text, "farside_process_resident_bytes") > 1e6);
    let switches = value(&text, "farside_group_switches_total{");
    assert!(switches >= 1.0);
    assert_eq!(value(&text, "farside_group_switch_grace_seconds_bucket{le=\"+Inf\",group=\"default\"}"), switches);
    let text = of(&site, "gateway/api.sock");
    assert_eq!(value(&text, "farside_source_connected{source=\"host1\"}"), 1.0);
    assert!(value(&text, "farside_group_records_total{source=\"host1\",group=\"default\",kind=\"point\"}") >= 1.0);
    assert!(value(&text, "farside_group_landed_bytes_total{") > 0.0);
    assert_eq!(value(&text, "farside_store_writable"), 1.0);

    let connections = value(&host(&site), "farside_group_connections_total{");
    site.receiver.take().expect("it runs").kill();
    site.start_receiver();
    wait_for("a reconnect that is counted", || {
        let text = host(&site);
        (value(&text, "farside_group_connections_total{") > connections && value(&text, "farside_group_connected{") == 1.0)
            .then_some(())
    });
}

#[test]
fn a_changed_configuration_holds_at_once_or_not_at_all() {
    let mut site = site();
    site.start_all();
    let config = site.path("host/farsided.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let reload = |json: bool| site.farside().arg("reload").args(json.then_some("--json")).output().expect("it starts");
    let said =
        |output: &std::process::Output| String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    let group = || site.status()["groups"][0].clone();

    // Invalid: the old one stays, and everything is named.
    std::fs::write(&config, text.replace("keep = 8", "keep = 9\nkepp = 3")).expect("written");
    let output = reload(false);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("farsided.toml, line ") && said(&output).contains("kepp"), "{}", said(&output));
    assert_eq!(group()["keep"], 8);
    assert_eq!(site.status()["reasons"][0]["code"], "configuration_stale");

    // Valid: at once; what cannot be is named and stays.
    let more = "[limits]\nqueue_depth = 99\n";
    std::fs::write(&config, text.replace("keep = 8", "keep = 9") + more).expect("written");
    let output = reload(true);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["changed"], serde_json::json!(["group default: keep 8 → 9"]), "{answer}");
    assert_eq!(answer["needs_restart"], serde_json::json!(["[limits] queue_depth"]), "{answer}");
    assert_eq!(group()["keep"], 9);

    // By signal as by command; a volume comes.
    let backing = site.path("host/more.img");
    std::fs::File::create(&backing).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    let volume = format!("[[volume]]\nname = \"more\"\nbacking = \"{}\"\n", backing.display());
    std::fs::create_dir_all(site.path("host/farsided.d")).expect("made");
    std::fs::write(site.path("host/farsided.d/more.toml"), volume).expect("written");
    site.daemon.as_ref().expect("it runs").signal(libc::SIGHUP);
    wait_for("the new volume", || (group()["volumes"].as_array()?.len() == 2).then_some(()));
    std::fs::remove_file(site.path("host/farsided.d/more.toml")).expect("removed");
    // † A file that is not there takes nothing out of service: a person does.
    let output = reload(false);
    let kept = "volume more: no file has it any more; it stays in service until: farside volume remove more";
    assert!(output.status.success() && said(&output).contains(kept), "{}", said(&output));
    assert_eq!(group()["volumes"].as_array().map(Vec::len), Some(2));
    let told = || {
        site.status()["reasons"].as_array().is_some_and(|all| {
            all.iter().any(|r| r["code"] == "configuration_stale" && r["message"].to_string().contains("volume more"))
        })
    };
    assert!(told(), "{}", site.status());
    let volume = format!("[[volume]]\nname = \"another\"\nbacking = \"{}\"\n", backing.display());
    std::fs::write(site.path("host/farsided.d/another.toml"), volume).expect("written");
    let output = reload(false);
    assert!(!output.status.success() && said(&output).contains("volume another has the backing"), "{}", said(&output));
    std::fs::remove_file(site.path("host/farsided.d/another.toml")).expect("removed");
    assert!(reload(false).status.success());
    run(site.farside().args(["volume", "remove", "more", "--yes"]));
    assert_eq!(group()["volumes"].as_array().map(Vec::len), Some(1));
    assert!(!told(), "{}", site.status());

    // One that cannot be served is said, by name; the others go on.
    let volume = "[[volume]]\nname = \"gone\"\nbacking = \"/nonexistent/disk\"\n";
    std::fs::write(site.path("host/farsided.d/gone.toml"), volume).expect("written");
    let output = reload(false);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("volume gone") && said(&output).contains("/nonexistent/disk"), "{}", said(&output));
    assert!(!site.path("host/state/volumes/default/gone").exists(), "what was never served has no state");
}

#[test]
fn the_receiver_reloads_too_and_reads_only_its_own_drop_ins() {
    let mut site = site();
    site.start_receiver();
    let reload = || {
        let output =
            program("farside").args(["reload", "--socket"]).arg(site.path("gateway/api.sock")).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
    };
    std::fs::create_dir_all(site.path("gateway/farsided.d")).expect("made");
    std::fs::write(site.path("gateway/farsided.d/volume.toml"), "[[volume]]\nname='a'\nbacking='/x'\n").expect("written");
    assert_eq!(reload(), (Some(0), "nothing changed\n".to_owned()));
    std::fs::create_dir_all(site.path("gateway/receiver.d")).expect("made");
    std::fs::write(site.path("gateway/receiver.d/keep.toml"), "[retention]\n\nkeep = 0\n").expect("written");
    let (code, text) = reload();
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("receiver.d/keep.toml, line 3: keep: "), "{text}");
    std::fs::write(site.path("gateway/receiver.d/keep.toml"), "[retention]\n\nkeep = 5\n[limits]\nconnections = 3\n")
        .expect("written");
    let (code, text) = reload();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("[retention] keep 10 → 5") && text.contains("! [limits] connections"), "{text}");
    site.receiver.as_ref().expect("it runs").signal(libc::SIGHUP);
    let log = || std::fs::read_to_string(site.path("receiver.log")).unwrap_or_default();
    wait_for("SIGHUP to be heard", || (log().matches("configuration read again").count() == 3).then_some(()));
}

/// Whether `value` is what `schema` says; `at` is where, for the message.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().expect("a name");
        return fits(document, &document["components"]["schemas"][name], value, at);
    }
    let any = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(any) = any {
        let faults: Vec<String> = any.iter().filter_map(|one| fits(document, one, value, at).err()).collect();
        return if faults.len() < any.len() { Ok(()) } else { Err(faults.join(" / ")) };
    }
    for one in schema["allOf"].as_array().into_iter().flatten() {
        fits(document, one, value, at)?;
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !kinds.contains(&kind) {
        return Err(format!("{at} is {value}, not {kinds:?}"));
    }
    if let (Some(known), Some(one)) = (schema["enum"].as_array(), value.as_str())
        && !known.iter().any(|k| k == one)
    {
        return Err(format!("{at} is `{one}`, not one of {known:?}"));
    }
    for (n, one) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], one, &format!("{at}[{n}]"))?;
    }
    for (key, one) in value.as_object().into_iter().flatten() {
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) => return Err(format!("{at}.{key} is not described")),
            (Value::Null, more) => fits(document, more, one, &format!("{at}.{key}"))?,
            (known, _) => fits(document, known, one, &format!("{at}.{key}"))?,
        }
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(key).is_none() {
            return Err(format!("{at} has no {key}"));
        }
    }
    Ok(())
}

/// One request over a Unix socket; the answer's status and body.
fn ask(socket: &std::path::Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the daemon listens");
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    let request = format!("{head}content-type: application/json\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an HTTP status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let from = body.find(['{', '[']).expect("JSON");
    let to = body.rfind(['}', ']']).expect("JSON");
    (status, serde_json::from_str(&body[from..=to]).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}")))
}

#[test]
fn answers_of_running_daemons_are_what_the_documents_say() {
    let mut site = site();
    site.start_all();
    write(&site, 5, 100);
    site.wait_quiet();
    let point = site.points("data")[0]["id"].as_str().expect("an id").to_owned();
    let host = [
        ("GET", "/v1/status", "/v1/status", ""),
        ("GET", "/v1/volumes", "/v1/volumes", ""),
        ("GET", "/v1/volumes/{volume}", "/v1/volumes/data", ""),
        ("GET", "/v1/points", "/v1/points?of=data", ""),
        ("GET", "/v1/points/{point}", "/v1/points/latest?of=data", ""),
        ("PATCH", "/v1/groups/{group}", "/v1/groups/default", "{\"keep\":9}"),
        ("POST", "/v1/volumes/{volume}/pause", "/v1/volumes/data/pause", ""),
        ("POST", "/v1/volumes/{volume}/resume", "/v1/volumes/data/resume", ""),
        ("POST", "/v1/volumes/{volume}/resync", "/v1/volumes/data/resync", "{}"),
        ("POST", "/v1/reload", "/v1/reload", ""),
        // And what is refused.
        ("GET", "/v1/volumes/{volume}", "/v1/volumes/nothing", ""),
        ("POST", "/v1/pair", "/v1/pair", "{\"token\":\"nonsense\"}"),
        ("POST", "/v1/pair", "/v1/pair", "not JSON"),
        ("POST", "/v1/volumes", "/v1/volumes", "{\"name\":\"data\",\"backing\":\"/x\"}"),
    ];
    let pin = format!("/v1/points/{point}/pin");
    let gateway = [
        ("GET", "/v1/status", "/v1/status", ""),
        ("GET", "/v1/points", "/v1/points", ""),
        ("GET", "/v1/points/{point}", "/v1/points/latest?of=data", ""),
        ("POST", "/v1/points/{point}/pin", &pin, "{\"reason\":\"test\"}"),
        ("DELETE", "/v1/points/{point}/pin", &pin, ""),
        ("POST", "/v1/tokens", "/v1/tokens", "{}"),
        ("POST", "/v1/reload", "/v1/reload", ""),
        ("GET", "/v1/points", "/v1/points?limit=many", ""),
    ];
    let mut kinds = std::collections::BTreeSet::new();
    for (program, socket, requests) in
        [("farsided", "host/api.sock", &host[..]), ("farside-receiver", "gateway/api.sock", &gateway)]
    {
        let document = format!("{}/../docs/api/{program}.json", env!("CARGO_MANIFEST_DIR"));
        let document: Value = serde_json::from_str(&std::fs::read_to_string(document).expect("a document")).expect("JSON");
        for (method, template, path, body) in requests {
            let (status, answer) = ask(&site.path(socket), method, path, body);
            let operation = &document["paths"][template][method.to_lowercase()];
            let response = if status == 200 { "200" } else { "default" };
            kinds.insert((program, response));
            let schema = &operation["responses"][response]["content"]["application/json"]["schema"];
            assert!(schema.is_object(), "{method} {template} has no schema for {response}");
            fits(&document, schema, &answer, "answer")
                .unwrap_or_else(|why| panic!("{method} {path} → {status}: {why}\n{answer}"));
        }
    }
    assert_eq!(kinds.len(), 4, "both daemons did and refused something: {kinds:?}");
}

/// A daemon that still waits for a device is told apart from one that failed, and is told to stop like any other.
#[test]
fn a_start_that_waits_for_a_device_says_so_and_can_be_stopped() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec("data"), spec("other")], "200ms", 8);
    let path = site.path("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    systemd.set_nonblocking(true).expect("a socket");
    site.environment = vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "2000000".into())];
    let hears = || {
        let mut buffer = [0; 1024];
        systemd.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let holder = std::fs::File::open(site.backing("data")).expect("there");
    holder.lock().expect("free");
    let log = || std::fs::read_to_string(site.path("daemon.log")).unwrap_or_default();
    let mut daemon = site.spawn_daemon();
    wait_for("the other volume", || std::os::unix::net::UnixStream::connect(site.tap("other")).ok());
    let list = || {
        let output = site.farside().args(["volume", "list", "--json"]).output().expect("it starts");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
    };
    let listed = wait_for("both to be listed", || list().filter(|v| v.as_array().is_some_and(|v| v.len() == 2)));
    assert_eq!((&listed[0]["name"], &listed[0]["state"]["state"]), (&"data".into(), &"not_served".into()), "{listed}");
    wait_for("the log to say what it waits for", || log().contains("is in use by").then_some(()));
    let pause = site.farside().args(["volume", "pause", "data"]).output().expect("it starts");
    // It is watched already, and not ready: a reload does not make it so.
    wait_for("the watchdog to be fed", || hears().filter(|said| said.contains("WATCHDOG=1")));
    let reload = site.farside().arg("reload").output().expect("it starts");
    let heard: Vec<String> = std::iter::from_fn(hears).collect();
    // Its patience may be over on a machine that is slow enough; then there is nothing to see here.
    let gave_up = || log().contains("waited ");
    if !gave_up() {
        assert_eq!(listed[0]["reasons"][0]["code"], "starting", "{listed}");
        assert!(String::from_utf8_lossy(&pause.stderr).contains("being opened"), "{pause:?}");
        assert!(reload.status.success(), "{reload:?}");
        assert!(!heard.iter().any(|said| said.contains("READY=1") || said.contains("RELOADING=1")), "{heard:?}");
        daemon.signal(libc::SIGTERM);
        let late = gave_up();
        wait_for("the stop", || (!daemon.is_running()).then_some(()));
        assert!(late || !gave_up(), "the stop waited for the device: {}", log());
    }
    drop(holder);
}

/// What was refused leaves nothing: no group on the host, and none on the gateway, which would keep it for ever.
#[test]
fn a_group_whose_first_volume_was_refused_is_nowhere() {
    let mut site = site();
    site.start_all();
    let add = |name: &str, group: &str, backing: &std::path::Path| {
        site.farside().args(["volume", "add", name, "--group", group, "--backing"]).arg(backing).output().expect("it starts")
    };
    let refused = add("other", "unlucky", &site.path("nowhere.img"));
    assert!(!refused.status.success(), "{refused:?}");
    let backing = site.path("other.img");
    std::fs::File::create(&backing).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    let added = add("other", "lucky", &backing);
    assert!(added.status.success(), "{added:?}");
    let groups = wait_for("the gateway to know the other group", || {
        let groups = json(&mut site.gateway(&["status"]))["sources"].to_string();
        groups.contains("\"lucky\"").then_some(groups)
    });
    assert!(!groups.contains("unlucky"), "{groups}");
    let found =
        run(std::process::Command::new("find").arg(site.path("host")).arg(site.path("gateway")).args(["-name", "*unlucky*"]));
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "something of it is left");
}

/// A first sync of a history of its own would never become what a stand-in is to be.
#[test]
fn a_volume_of_a_stand_in_that_was_not_read_yet_is_not_added() {
    let mut site = site();
    site.start_all();
    let backing = site.path("other.img");
    std::fs::File::create(&backing).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    let add = || {
        let mut add = site.farside();
        add.args(["volume", "add", "other", "--group", "stand", "--backing"]).arg(&backing).output().expect("it starts")
    };
    let file = site.path("host/farsided.toml");
    let toml = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, format!("{toml}\n[[group]]\nname = \"stand\"\nstand_in_for = \"host9\"\n")).expect("written");
    let refused = add();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("`stand_in_for` of group stand") && words.contains("farside reload"), "{refused:?}");
    assert!(!site.path("host/state/volumes/stand").exists(), "something of it is left");
    run(site.farside().arg("reload"));
    let added = add();
    assert!(added.status.success(), "{added:?}");
}

/// A volume that cannot be opened is shown with its reason, and can be removed.
#[test]
fn a_volume_that_is_not_served_is_listed_with_its_reason_and_can_be_removed() {
    let mut site = site();
    site.start_all();
    let backing = site.path("other.img");
    std::fs::File::create(&backing).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    run(site.farside().args(["volume", "add", "other", "--backing"]).arg(&backing));
    site.daemon.take().expect("it runs").stop();
    std::fs::rename(&backing, site.path("elsewhere.img")).expect("renamed");
    site.start_daemon();
    let shown = || {
        let output = run(site.farside().args(["volume", "show", "other"]));
        String::from_utf8(output.stdout).expect("text")
    };
    let text = wait_for("the reason", || Some(shown()).filter(|text| text.contains("cannot open")));
    assert!(text.contains("NotServed") && text.contains("other.img"), "{text}");
    let list = String::from_utf8(run(site.farside().args(["volume", "list"])).stdout).expect("text");
    assert!(list.contains("NotServed") && list.contains("cannot open"), "{list}");
    // Its file is not there: that takes nothing out of service.
    let reload = || site.farside().arg("reload").output().expect("it starts");
    let (drop_in, aside) = (site.path("host/farsided.d/volume-other.toml"), site.path("host/aside.toml"));
    let mark = site.path("host/state/volumes/default/other/tracking-lost");
    assert!(!mark.exists(), "it was stopped cleanly");
    std::fs::rename(&drop_in, &aside).expect("renamed");
    let kept = reload();
    assert_eq!(kept.status.code(), Some(1), "its backing is gone still");
    assert!(String::from_utf8_lossy(&kept.stdout).contains("volume other: no file has it any more"), "{kept:?}");
    assert!(!mark.exists(), "nobody else has it");
    // A start that does not know it does: whoever wrote to it meanwhile is found out.
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    wait_for("L2: its map may be out of date from now on", || mark.exists().then_some(()));
    std::fs::rename(&aside, &drop_in).expect("renamed");
    assert_eq!(site.farside().arg("reload").output().expect("it starts").status.code(), Some(1), "its backing is gone still");
    assert!(mark.exists());
    run(site.farside().args(["volume", "remove", "other", "--yes"]));
    assert!(!site.path("host/state/volumes/default/other").exists(), "no state is left to meet a new one of that name");
    let missing = site.farside().args(["volume", "show", "other"]).output().expect("it starts");
    assert_eq!(missing.status.code(), Some(5), "{missing:?}");
    site.daemon.take().expect("it runs").stop();
}

/// The host forgets its receiver: asked first, replicated no more, and paired again as if nothing had been.
#[test]
fn unpair_forgets_the_receiver_and_another_pairing_goes_on() {
    let mut site = site();
    site.start_all();
    site.wait_quiet();
    let unpair =
        |args: &[&str]| site.farside().arg("unpair").args(args).stdin(std::process::Stdio::null()).output().expect("it starts");
    assert_eq!(unpair(&[]).status.code(), Some(2), "nobody was there to be asked");
    assert_eq!(site.status()["connection"]["state"], "connected");
    assert!(unpair(&["--yes"]).status.success());
    assert!(!site.path("host/state/receiver.json").exists());
    wait_for("the connection to end", || (site.status()["groups"][0]["link"]["connected"] == false).then_some(()));
    assert_eq!(site.status()["connection"]["state"], "not_paired");
    assert_eq!(unpair(&["--yes"]).status.code(), Some(4), "twice is once too often");
    write(&site, 5, 50);
    // Not after a restart either.
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    assert_eq!(site.status()["connection"]["state"], "not_paired");
    site.pair();
    site.wait_quiet();
    // † What is needed to replicate keeps no tap from being served.
    site.daemon.take().expect("it runs").stop();
    std::fs::write(site.path("host/state/receiver.json"), b"{").expect("written");
    site.start_daemon();
    farside_tests::markers::write(&site, "data", BYTES, 1 << 20, 6);
    let reasons = site.status()["reasons"].to_string();
    assert!(reasons.contains("not_paired") && reasons.contains("receiver.json does not describe a receiver"), "{reasons}");
    assert!(
        site.farside().args(["unpair", "--yes"]).status().expect("it starts").success(),
        "what cannot be read is forgotten, too"
    );
    assert!(!site.path("host/state/receiver.json").exists());
    site.pair();
    site.wait_quiet();
    let key = site.path("host/state/identity.key");
    let content = std::fs::read(&key).expect("read");
    for damage in [&content[..content.len() / 2], b""] {
        site.daemon.take().expect("it runs").stop();
        std::fs::write(&key, damage).expect("written");
        site.start_daemon();
        farside_tests::markers::write(&site, "data", BYTES, 1 << 20, 7);
        let reasons = site.status()["reasons"].to_string();
        assert!(reasons.contains("not_paired") && reasons.contains("identity.key is damaged"), "{reasons}");
        let paired = site.farside().args(["pair", "farside1-token"]).output().expect("it starts");
        assert_eq!(paired.status.code(), Some(4), "nobody would know who was paired");
        assert!(site.path("host/state/receiver.json").exists(), "it is whom the key, once it is back, is known to");
    }
    site.daemon.take().expect("it runs").stop();
    std::fs::write(&key, content).expect("put back");
    let (certificate, kept) = (key.with_extension("crt"), key.with_extension("kept"));
    std::fs::rename(&certificate, &kept).expect("moved");
    site.start_daemon();
    let reasons = site.status()["reasons"].to_string();
    assert!(reasons.contains("not_paired") && reasons.contains("identity.crt is missing"), "{reasons}");
    site.daemon.take().expect("it runs").stop();
    // Its key is there still.
    std::fs::rename(&kept, &certificate).expect("put back");
    site.start_daemon();
    site.wait_quiet();
    site.daemon.take().expect("it runs").stop();
}

/// What `docs/operate.md` says of a host that is no more.
#[test]
fn the_points_of_a_retired_host_go_while_the_receiver_is_stopped() {
    let mut site = site();
    site.start_all();
    let mut retired = site.another_host("host2", "200ms", 8);
    retired.start_daemon();
    retired.pair();
    write(&retired, 1, 50);
    retired.wait_quiet();
    retired.daemon.take().expect("it runs").stop();
    let unpair = |name: &str| {
        run(program("farside-receiver").args(["unpair", name, "--config"]).arg(site.path("gateway/receiver.toml")));
    };
    unpair("host2");
    site.receiver.take().expect("it runs").stop();
    for folder in ["groups", "landing"] {
        let of_it = site.store().join(folder).join("host2");
        assert!(of_it.exists() || folder == "landing", "it had points");
        let _ = std::fs::remove_dir_all(of_it);
    }
    site.start_receiver();
    write(&site, 2, 50);
    site.wait_quiet();
    run(&mut site.farside_at_store(&["store", "check"]));
    let shown = json(&mut site.gateway(&["status"])).to_string();
    assert!(shown.contains("host1") && !shown.contains("host2"), "{shown}");
    // It comes back after all: nothing of it passes for what there was.
    retired.start_daemon();
    retired.pair();
    wait_for("its volume to be refused", || retired.status().to_string().contains("\"target_rewound\"").then_some(()));
    run(retired.farside().args(["volume", "resync", "data", "--accept", "rewound"]));
    retired.wait_quiet();
    run(&mut site.farside_at_store(&["store", "check"]));
    retired.daemon.take().expect("it runs").stop();
}
