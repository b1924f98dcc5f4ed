//! Groups of two hosts with kernels and clocks of their own, cut as one: a number is written at the second host only after the first host's disk
//! has called it durable, and no cut holds it there without holding it here.

use std::collections::BTreeSet;
use std::sync::Arc;

use farside_tests::{Endurance, wait_until};
use farside_vm::conformance::DEVICE;
use farside_vm::gateway::Gateway;
use farside_vm::protected::{CLI, is_quiet};
use farside_vm::toolbox::Toolbox;
use farside_vm::{DiskSpec, Guest, Kernel, Machine, Network};
use serde_json::Value;

const VOLUME_MIB: usize = 4;
/// Cuts that are looked at.
const CUTS: usize = 10;
const PORT: u16 = 7500;
const RECEIVER: &str = "farside --socket /store/receiver.sock";
const DAEMON_SOCKET: &str = "/run/farsided.sock";

const COHORT: &str = r#"
[[cohort]]
name = "erp"
groups = ["host1/default", "host2/default"]
every = "3s"
hold = "300ms"
"#;

fn configuration(name: &str) -> String {
    format!(
        "[source]\nname = \"{name}\"\nstate_dir = \"/run/state\"\napi_socket = \"{DAEMON_SOCKET}\"\n[[group]]\nname = \"default\"\n\
         epoch_interval = \"1s\"\nkeep = 10000\nspan = \"0s\"\ncohort_hold = \"300ms\"\n"
    )
}

fn machine(name: &'static str, network: &Network, toolbox: &Arc<Toolbox>) -> Machine {
    Machine::new(name, Kernel::Backports)
        .memory_mib(512)
        .modules(&["ublk_drv"])
        .programs(&["farside", "farsided", "farside-vm-load"])
        .debian_programs(&["mke2fs"])
        .disk(DiskSpec::blank("data", VOLUME_MIB))
        .toolbox(toolbox)
        .on(network)
}

/// A host with a volume.
fn protect(guest: &mut Guest, name: &str, token: &str) {
    guest.run("mkdir -p /run/state");
    guest.upload("/run/farsided.toml", configuration(name).as_bytes(), 0o644);
    let daemon = guest.start_command("exec farsided --config /run/farsided.toml", "/run/daemon.log");
    wait_until("the daemon", || {
        assert!(guest.lives(daemon), "the daemon ended");
        guest.status(DAEMON_SOCKET).map(drop).ok_or("no answer")
    });
    guest.run(&format!("{CLI} pair '{token}'"));
    let data = guest.disk("data");
    guest.run(&format!("{CLI} volume add data --backing {data} --tap ublk"));
    wait_until("the first sync", || {
        let group = guest.status(DAEMON_SOCKET).ok_or("no answer")?["groups"][0].clone();
        if is_quiet(&group) { Ok(()) } else { Err(format!("{group:#}")) }
    });
}

fn json(guest: &mut Guest, arguments: &str) -> Value {
    // Its exit code says whether all is well.
    let said = guest.run(&format!("{RECEIVER} --json {arguments} || true"));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// How far a host had come in its point of a cut.
fn counter(gateway: &mut Guest, cut: &Value, at: usize) -> u64 {
    let point = &cut["points"][at];
    let (group, id) = (point["group"].as_str().expect("a group"), point["point"].as_str().expect("a point"));
    let restore = format!("farside restore {group}/data --point {id} --store /store/store --to /store/one.img >/dev/null");
    let counter = gateway.run(&format!("{restore} && farside-vm-load counter /store/one.img && rm /store/one.img"));
    counter.trim().parse().expect("a number")
}

#[test]
fn a_cut_of_two_hosts_is_one_moment_whatever_their_clocks_say() {
    let (toolbox, network) = (Arc::new(Toolbox::fill()), Network::new());
    let mut first = machine("a", &network, &toolbox);
    let second = machine("b", &network, &toolbox).programs(&["farside-receiver"]).disk(DiskSpec::blank("store", 256));
    let address = second.address();
    let mut gateway = Gateway::emulated(second, network);
    let tokens = [gateway.token(), gateway.token()];
    let mut a = first.boot();
    // Years apart, and backwards.
    a.run("date -s '2031-05-04 03:02:01'");
    protect(&mut a, "host1", &tokens[0]);
    let b = gateway.guest();
    protect(b, "host2", &tokens[1]);
    b.run("mkdir -p /store/receiver.d");
    b.upload("/store/receiver.d/50-cohort.toml", COHORT.as_bytes(), 0o644);
    b.run(&format!("{RECEIVER} reload"));

    let server = b.start_command(&format!("exec farside-vm-load counts {PORT} {DEVICE}"), "/run/counts.log");
    wait_until("who counts", || {
        assert!(b.lives(server), "it ended");
        let listens = b.run("cat /proc/net/tcp").contains(&format!(":{PORT:04X} 00000000:0000 0A"));
        if listens { Ok(()) } else { Err("not yet") }
    });
    let counting =
        a.start_command(&format!("exec farside-vm-load count {DEVICE} tcp:{address}:{PORT} /run/counted 1"), "/run/count.log");
    let endurance = Endurance::from_environment(0);
    let (mut seen, mut checked) = (BTreeSet::new(), 0);
    let mut last = String::new();
    while checked < CUTS || endurance.goes_on() {
        b.run(&format!("{RECEIVER} cohort take erp >/dev/null"));
        let cut = wait_until("a cut", || {
            assert!(a.lives(counting) && b.lives(server), "nobody counts any more");
            let newest = json(b, "cohort cuts erp --limit 1")[0].clone();
            match newest["id"].as_str() {
                Some(id) if id != last => Ok(newest),
                _ => Err(json(b, "cohort list").to_string()),
            }
        });
        last = cut["id"].as_str().expect("an id").to_owned();
        let [here, there] = [0, 1].map(|at| counter(b, &cut, at));
        assert!(here == there || here == there + 1, "{cut}: at {here} on the one host, and at {there} on the other");
        seen.insert(there);
        checked += 1;
    }
    endurance.report(&format!("{checked} cuts of two machines, each one moment: {seen:?}"));
    assert!(seen.len() > 2, "under load they differ: {seen:?}");
    a.run(&format!("kill {counting}"));
    b.wait_for_end(server);
    a.shut_down();
    gateway.shut_down();
}
