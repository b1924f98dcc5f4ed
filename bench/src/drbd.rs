//! DRBD over the host's data disk, its notes on a disk of their own; and its peer, on the gateway's machine.
//!
//! It is the one of Debian's kernels (8.4), set up by its own programs without the scripts around them.

use farside_tests::wait_for;
use farside_vm::protected::{Host, Setup, VOLUME_MIB};
use farside_vm::{DiskSpec, Guest};

pub(crate) const DEVICE: &str = "/dev/drbd0";
/// Where its notes are: at the host, and at the peer.
pub(crate) const NOTES: &str = "notes";
const PEER_NOTES: &str = "peer-notes";
const PEER_DATA: &str = "peer";
const PORT: u16 = 7789;

/// What both ends need.
pub(crate) fn prepare(setup: Setup) -> Setup {
    setup
        .gateway_modules(&["drbd"])
        .debian_programs(&["drbdsetup-84", "drbdmeta"])
        .gateway_disk(DiskSpec::blank(PEER_DATA, VOLUME_MIB))
        .gateway_disk(DiskSpec::blank(PEER_NOTES, 16))
}

/// Makes [`DEVICE`] at the host, and a peer that has nothing.
pub(crate) fn up(host: &mut Host) {
    attach(&mut host.guest, "data", NOTES);
    host.guest.run("drbdsetup-84 primary 0 --force");
    attach(host.gateway.guest(), PEER_DATA, PEER_NOTES);
}

/// Connects them and waits until the peer has everything. By protocol `A` a write is answered when it is on the disk here and on
/// its way there; by `C`, when it is on both disks.
pub(crate) fn connect(host: &mut Host, protocol: char) {
    let [here, there] = host.addresses().map(|address| format!("ipv4:{address}:{PORT}"));
    host.guest.run(&format!("drbdsetup-84 connect r0 {here} {there} --protocol={protocol}"));
    host.gateway.guest().run(&format!("drbdsetup-84 connect r0 {there} {here} --protocol={protocol}"));
    wait_for("DRBD's peer to have everything", || {
        (host.guest.run("drbdsetup-84 dstate 0").trim() == "UpToDate/UpToDate").then_some(())
    });
}

/// From now on what is written is marked, for the next time.
pub(crate) fn disconnect(host: &mut Host) {
    let [here, there] = host.addresses().map(|address| format!("ipv4:{address}:{PORT}"));
    host.guest.run(&format!("drbdsetup-84 disconnect {here} {there}"));
    host.gateway.guest().run(&format!("drbdsetup-84 disconnect {there} {here} || true")); // it may have noticed already
}

/// Takes it away at both.
pub(crate) fn down(host: &mut Host) {
    host.guest.run("drbdsetup-84 secondary 0 && drbdsetup-84 down r0");
    host.gateway.guest().run("drbdsetup-84 down r0");
}

fn attach(guest: &mut Guest, data: &str, notes: &str) {
    let (data, notes) = (guest.disk(data), guest.disk(notes));
    // What it or somebody else left there means nothing.
    guest.run(&format!("mkdir -p /var/lock && dd if=/dev/zero of={notes} bs=1M count=16 oflag=direct 2>/dev/null"));
    guest.run(&format!("drbdmeta --force 0 v08 {notes} flex-external create-md"));
    guest.run("drbdsetup-84 new-resource r0 && drbdsetup-84 new-minor r0 0 0");
    // The first sync takes what the network gives.
    guest.run(&format!("drbdsetup-84 attach 0 {data} {notes} flexible --c-plan-ahead=0 --resync-rate=1048576 --c-min-rate=0"));
    guest.run("test -b /dev/drbd0 || mknod /dev/drbd0 b 147 0");
}
