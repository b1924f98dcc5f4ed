//! A Debian with systemd comes up whole, is switched off in order, and finds again what it wrote.

use farside_vm::{DiskSpec, Kernel, Machine};

#[test]
fn debian_boots_is_switched_off_and_boots_again() {
    let mut machine = Machine::debian("debian", Kernel::Stock).modules(&["dm_mod"]).disk(DiskSpec::blank("data", 64));
    let mut guest = machine.boot();
    guest.booted();
    let data = guest.disk("data");
    guest.run(&format!("mkfs.ext4 -q -U 11111111-2222-3333-4444-555555555555 {data}"));
    guest.run("echo 'UUID=11111111-2222-3333-4444-555555555555 /srv ext4 defaults 0 2' >>/etc/fstab");
    guest.run("systemctl daemon-reload && systemctl start srv.mount && echo kept >/srv/file");
    guest.power_off();

    let mut guest = machine.boot();
    guest.booted();
    assert_eq!(guest.run("cat /srv/file"), "kept\n");
    assert_eq!(guest.run("hostname"), "debian\n");
    guest.shut_down();
}
