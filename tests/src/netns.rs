//! A network of its own for a [`Site`](crate::Site): the host and the gateway in a network namespace each, between them a
//! bridge in a third, whose port towards the gateway has a rate and a short queue. Needs root.
//!
//! ```text
//! host: eth0 ── to-host ─ bridge ─ to-gateway (token bucket) ── gateway: eth0
//! ```
//!
//! Every byte that the host sends is counted before anything can drop it, so what was sent twice is seen however it was
//! lost. Segmentation offload is off: packets are counted as they would be on a wire.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::{run, tool};

/// Where the receiver listens.
pub const GATEWAY_ADDRESS: &str = "10.77.0.2";
const HOST_ADDRESS: &str = "10.77.0.1";
/// What a full packet carries beside what QUIC delivers: Ethernet 14, IPv4 20, UDP 8, QUIC's short header about 12 and its
/// seal 16, a stream frame's head about 8.
const OVERHEAD_BYTES: u64 = 14 + 20 + 8 + 12 + 16 + 8;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A program in a namespace, which becomes it. Not by `ip -n`: that mounts things, which a root that is no mount point (a
/// chroot) refuses.
pub(crate) fn inside(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = tool("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

/// Whether this process may make one.
pub fn possible() -> bool {
    nix::unistd::geteuid().is_root()
}

/// How a link is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Somewhere on the way: packets vanish and nobody is told.
    Silent,
    /// The host's own cable: its kernel refuses to send.
    Cable,
}

/// What the host has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of Ethernet frames.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
}

impl Sent {
    /// What of it was QUIC's payload, about; too little rather than too much where packets are small.
    pub fn payload_bytes(self) -> u64 {
        self.bytes.saturating_sub(self.packets * OVERHEAD_BYTES)
    }
}

/// Three namespaces; they go with it.
#[derive(Debug)]
pub struct Network {
    /// The namespace of the protected host.
    pub host: String,
    /// The namespace of the gateway.
    pub gateway: String,
    between: String,
}

impl Network {
    /// A network whose link to the gateway carries `rate_mbit` and queues up to `queue_bytes`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn new(rate_mbit: u32, queue_bytes: u32) -> Self {
        let name = format!("farside-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let this = Self { host: format!("{name}-h"), gateway: format!("{name}-g"), between: format!("{name}-b") };
        for namespace in [&this.host, &this.gateway, &this.between] {
            run(tool("ip").args(["netns", "add", namespace]));
            run(inside(namespace, "ip").args(["link", "set", "lo", "up"]));
        }
        let between = |args: &str| {
            run(inside(&this.between, "ip").args(args.split(' ')));
        };
        between("link add bridge type bridge forward_delay 0 stp_state 0");
        between("link set bridge up");
        for (port, namespace, address) in [("to-host", &this.host, HOST_ADDRESS), ("to-gateway", &this.gateway, GATEWAY_ADDRESS)]
        {
            between(&format!("link add {port} type veth peer name eth0 netns {namespace}"));
            run(inside(namespace, "ip").args(["link", "set", "eth0", "gso_max_segs", "1"]));
            run(inside(namespace, "ip").args(["address", "add", &format!("{address}/24"), "dev", "eth0"]));
            run(inside(namespace, "ip").args(["link", "set", "eth0", "up"]));
            between(&format!("link set {port} master bridge up"));
        }
        // The bucket holds what the kernel's clock lets pass at once; at a gigabit that is some hundred packets.
        let burst = (rate_mbit * 250).max(16 << 10);
        run(inside(&this.between, "tc").args(["qdisc", "add", "dev", "to-gateway", "root", "tbf"]).args([
            "rate",
            &format!("{rate_mbit}mbit"),
            "burst",
            &burst.to_string(),
            "limit",
            &queue_bytes.to_string(),
        ]));
        this
    }

    /// Takes the link away.
    pub fn cut(&self, how: Cut) {
        self.switch(how, "0", "down");
    }

    /// Brings it back.
    pub fn mend(&self, how: Cut) {
        self.switch(how, "3", "up");
    }

    fn switch(&self, how: Cut, port_state: &str, cable: &str) {
        match how {
            Cut::Silent => run(inside(&self.between, "bridge").args(["link", "set", "dev", "to-gateway", "state", port_state])),
            Cut::Cable => run(inside(&self.host, "ip").args(["link", "set", "eth0", cable])),
        };
    }

    /// What the host has sent so far, whether it arrived or not.
    pub fn sent_by_host(&self) -> Sent {
        let statistics = self.statistics(&self.host);
        let number = |what: &str| statistics["tx"][what].as_u64().expect("a counter");
        Sent { bytes: number("bytes"), packets: number("packets") }
    }

    /// Bytes that reached the gateway so far.
    pub fn arrived_bytes(&self) -> u64 {
        self.statistics(&self.gateway)["rx"]["bytes"].as_u64().expect("a counter")
    }

    fn statistics(&self, namespace: &str) -> Value {
        let output = run(inside(namespace, "ip").args(["-j", "-s", "link", "show", "dev", "eth0"]));
        let value: Value = serde_json::from_slice(&output.stdout).expect("ip speaks JSON");
        value[0]["stats64"].clone()
    }

    /// Packets that did not fit the queue before the gateway.
    pub fn dropped_packets(&self) -> u64 {
        let output = run(inside(&self.between, "tc").args(["-j", "-s", "qdisc", "show", "dev", "to-gateway"]));
        let value: Value = serde_json::from_slice(&output.stdout).expect("tc speaks JSON");
        value[0]["drops"].as_u64().expect("a counter")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.gateway, &self.between] {
            let _ = tool("ip").args(["netns", "delete", namespace]).status();
        }
    }
}
