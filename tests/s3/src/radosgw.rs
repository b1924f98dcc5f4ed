//! The reference: Ceph's RadosGW over a cluster of one monitor and one disk, each a process, without authentication between them.
//! What a bucket promises is kept by Ceph's own gateway and object daemon, as in a large cluster.
//!
//! Debian's packages `ceph-mon`, `ceph-osd`, `radosgw` and `ceph-common` have the programs (`xtask test --only install`). Any
//! user may run them. No systemd, no `/etc/ceph`, no `/var/lib/ceph`: everything is in one folder.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::keeper::Keeper;
use crate::{ACCESS_KEY, Bucket, SECRET_KEY, endpoint, http};

/// Below the ports that the kernel gives to clients: nobody gets one of them between our look and the daemon's.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A Ceph with an S3 gateway, which ends when this is dropped or the process ends.
#[derive(Debug)]
pub struct RadosGw {
    /// Ends it.
    _keeper: Keeper,
    address: SocketAddr,
}

impl RadosGw {
    /// The one of this process, started by whoever asks first.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RadosGw> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts one, and waits until it serves.
    ///
    /// # Panics
    /// When a daemon ends or does not come up, with the last lines of every log.
    pub fn start() -> Self {
        let mut keeper = Keeper::new("farside-radosgw-");
        let [monitor, gateway] = [free_port(), free_port()].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let [cluster, disk] = [(); 2].map(|()| uuid());
        std::fs::write(keeper.folder().join("ceph.conf"), configuration(&cluster, monitor, gateway)).expect("written");

        for data in ["mon", "osd", "gateway"] {
            std::fs::create_dir(keeper.folder().join(data)).expect("a folder");
        }
        keeper.run(&format!("monmaptool --create --fsid {cluster} --addv a [v2:{monitor}] monmap"));
        keeper.run("ceph-mon -c ceph.conf -i a --mkfs --monmap monmap");
        keeper.start("mon", "ceph-mon -c ceph.conf -f -i a");
        keeper.wait_for("the monitor's port", || TcpStream::connect(monitor).map_err(|_| "nobody listens"));
        keeper.run(&format!("ceph -c ceph.conf osd new {disk}"));
        keeper.run(&format!("ceph-osd -c ceph.conf -i 0 --mkfs --osd-uuid {disk}"));
        keeper.start("osd", "ceph-osd -c ceph.conf -f -i 0");
        // Before the gateway, so that one of them alone makes the pools.
        keeper.run(&format!(
            "radosgw-admin -c ceph.conf user create --uid tests --display-name tests --access-key {ACCESS_KEY} --secret-key {SECRET_KEY}"
        ));
        keeper.start("gateway", "radosgw -c ceph.conf -f -n client.gateway");
        keeper.wait_for("the gateway's answer", || {
            let answer = http::plain(gateway, &format!("GET / HTTP/1.1\r\nhost: {gateway}")).map_err(|_| "nobody listens")?;
            if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err("another answer") }
        });
        Self { _keeper: keeper, address: gateway }
    }

    /// `http://ADDRESS:PORT`
    pub fn endpoint(&self) -> String {
        endpoint(self.address)
    }

    /// Whose key [`Self::secret_key`] is.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// What requests are signed with.
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// A new bucket, which nobody else has.
    ///
    /// # Panics
    /// When the gateway refuses.
    pub fn bucket(&self) -> Bucket {
        Bucket::create(self.address, &[])
    }

    /// The same, which keeps versions of what is deleted or overwritten, and locks those that it is told to (S3's Object Lock).
    ///
    /// # Panics
    /// As [`Self::bucket`].
    pub fn bucket_with_versions(&self) -> Bucket {
        Bucket::create(self.address, &[("x-amz-bucket-object-lock-enabled", "true")])
    }
}

/// Every path is relative to the folder in which all of them run. What says how often something is looked for is there for the start: by
/// Ceph's own numbers, which suit a cluster of many disks, it takes three times as long.
fn configuration(cluster: &str, monitor: SocketAddr, gateway: SocketAddr) -> String {
    format!(
        "[global]
        fsid = {cluster}
        mon host = v2:{monitor}
        public addr = 127.0.0.1
        auth cluster required = none
        auth service required = none
        auth client required = none
        # Without it, clients without keys look for a monitor for ever.
        ms mon client mode = crc
        run dir = .
        log file = $name.log
        admin socket =
        crash dir = crash

        osd pool default size = 1
        osd pool default pg num = 4
        osd pool default pg autoscale mode = off
        osd crush chooseleaf type = 0
        mon allow pool size one = true
        mon data = mon
        mon data avail crit = 0
        paxos propose interval = 0.02
        paxos min wait = 0.01
        mon tick interval = 1
        objecter tick interval = 0.1

        osd data = osd
        osd tick interval = 0.1
        osd memory target = 939524096
        # A sparse file.
        bluestore block size = 17179869184
        bluestore fsck on mkfs = false
        bdev aio poll ms = 5

        rgw data = gateway
        rgw frontends = beast endpoint={gateway}
        rgw enable lc threads = false
        rgw override bucket index max shards = 1
        "
    )
    .lines()
    .map(|line| format!("{}\n", line.trim()))
    .collect()
}

/// A port on which nobody listens. Each process begins its search elsewhere, and none is given twice.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = u32::from(PORTS.end - PORTS.start);
    let begin = std::process::id().wrapping_mul(64);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports = (0..ports).map(|_| begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % ports);
    let mut free = ports.map(|offset| PORTS.start + u16::try_from(offset).expect("within the range")).filter(is_free);
    free.next().expect("one of 12,000 ports is free")
}

fn uuid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("every Linux makes some").trim().to_owned()
}
