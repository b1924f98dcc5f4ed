//! Groups of two hosts with kernels and clocks of their own, cut as one: a number is written at the second host only after the first host's disk
//! has called it durable, and no cut holds it there without holding it here.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use farside_tests::{Endurance, wait_until};
use farside_vm::conformance::DEVICE;
use farside_vm::gateway::{FOLDER, Gateway};
use farside_vm::protected::{CLI, is_quiet};
use farside_vm::toolbox::Toolbox;
use farside_vm::{DiskSpec, Guest, HERE, Kernel, Machine};
use serde_json::Value;

const VOLUME_MIB: usize = 4;
/// Cuts that are looked at.
const CUTS: usize = 20;
const RECEIVER: &str = "farside --socket $GATEWAY/receiver.sock";
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
         epoch_interval = \"1s\"\nkeep = 100\nspan = \"0s\"\ncohort_hold = \"300ms\"\n"
    )
}

/// A host with a volume, whose clock says something.
fn protected(name: &'static str, clock: &str, gateway: &mut Gateway, toolbox: &Arc<Toolbox>) -> Guest {
    let mut machine = Machine::new(name, Kernel::Backports)
        .memory_mib(512)
        .modules(&["ublk_drv"])
        .programs(&["farside", "farsided", "farside-vm-load"])
        .disk(DiskSpec::blank("data", VOLUME_MIB))
        .toolbox(toolbox)
        .on_this_machine();
    let mut guest = machine.boot();
    guest.run(&format!("date -s '{clock}' && mkdir -p /run/state"));
    guest.upload("/run/farsided.toml", configuration(name).as_bytes(), 0o644);
    let daemon = guest.start_command("exec farsided --config /run/farsided.toml", "/run/daemon.log");
    wait_until("the daemon", || {
        assert!(guest.lives(daemon), "the daemon ended");
        guest.status(DAEMON_SOCKET).map(drop).ok_or("no answer")
    });
    guest.run(&format!("{CLI} pair '{}'", gateway.token()));
    let data = guest.disk("data");
    guest.run(&format!("{CLI} volume add data --backing {data} --tap ublk"));
    wait_until("the first sync", || {
        let group = guest.status(DAEMON_SOCKET).ok_or("no answer")?["groups"][0].clone();
        if is_quiet(&group) { Ok(()) } else { Err(format!("{group:#}")) }
    });
    guest
}

/// Connects two hosts, which cannot reach each other, at this port of ours, until one of them goes.
fn introduce() -> u16 {
    fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
    fn carry(mut from: &TcpStream, mut to: &TcpStream) {
        // Whatever ended it, the other end hears of it.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        let [one, other] = [(); 2].map(|()| accept(&listener).expect("a connection"));
        thread::scope(|scope| {
            scope.spawn(|| carry(&one, &other));
            carry(&other, &one);
        });
    });
    port
}

/// How far a host had come in its point of a cut.
fn counter(gateway: &mut Gateway, cut: &Value, at: usize) -> u64 {
    let point = &cut["points"][at];
    let (group, id) = (point["group"].as_str().expect("a group"), point["point"].as_str().expect("a point"));
    let one = format!("{FOLDER}/one.img");
    let restore = format!("farside restore {group}/data --point {id} --store {FOLDER}/store --to {one} >/dev/null");
    let counter = gateway.run(&format!("{restore} && farside-vm-load counter {one} && rm {one}"));
    counter.trim().parse().expect("a number")
}

#[test]
fn a_cut_of_two_hosts_is_one_moment_whatever_their_clocks_say() {
    let toolbox = Arc::new(Toolbox::fill());
    let mut gateway = Gateway::here();
    // Years apart, and before and after the gateway's.
    let [mut a, mut b] = [("host1", "2031-05-04 03:02:01"), ("host2", "2019-02-03 04:05:06")]
        .map(|(name, clock)| protected(name, clock, &mut gateway, &toolbox));
    gateway.run(&format!("mkdir {FOLDER}/receiver.d && cat > {FOLDER}/receiver.d/50-cohort.toml <<'EOF'\n{COHORT}\nEOF"));
    gateway.run(&format!("{RECEIVER} reload"));

    let there = format!("{HERE}:{}", introduce());
    let counted = b.start_command(&format!("exec farside-vm-load counts {there} {DEVICE}"), "/run/counts.log");
    let counting = a.start_command(&format!("exec farside-vm-load count {DEVICE} tcp:{there} /run/counted 1"), "/run/count.log");
    let endurance = Endurance::from_environment(0);
    let (mut seen, mut checked) = (BTreeSet::new(), HashSet::new());
    while checked.len() < CUTS || endurance.goes_on() {
        gateway.run(&format!("{RECEIVER} cohort take erp >/dev/null"));
        let cut = wait_until("a cut", || {
            assert!(a.lives(counting) && b.lives(counted), "nobody counts any more");
            // Its exit code says whether all is well.
            let said = gateway.run(&format!("{RECEIVER} --json cohort cuts erp --limit 1 || true"));
            let newest = serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}"))[0].clone();
            let is_new = newest["id"].as_str().is_some_and(|id| checked.insert(id.to_owned()));
            if is_new { Ok(newest) } else { Err(gateway.run(&format!("{RECEIVER} --json cohort list || true"))) }
        });
        let [here, there] = [0, 1].map(|at| counter(&mut gateway, &cut, at));
        assert!(here == there || here == there + 1, "{cut}: at {here} on the one host, and at {there} on the other");
        seen.insert(there);
    }
    endurance.report(&format!("{} cuts of two machines, each one moment, at {} numbers", checked.len(), seen.len()));
    assert!(seen.len() > CUTS / 2, "under load they differ: {seen:?}");
    a.run(&format!("kill {counting}"));
    b.wait_for_end(counted);
    a.shut_down();
    b.shut_down();
    gateway.shut_down();
}
