//! Each kernel boots, has what later tests need of it, and says nothing that nobody expects.

use farside_vm::{DiskSpec, Guest, Kernel, Machine};

fn smoke(kernel: Kernel, more_modules: &[&'static str], check: impl FnOnce(&mut Guest)) {
    let (_, release) = kernel.image();
    let mut machine = Machine::new("smoke", kernel)
        .modules(&["dm-mod", "dm-log-writes", "nbd"])
        .modules(more_modules)
        .debian_programs(&["dmsetup"])
        .disk(DiskSpec::blank("small", 8))
        .disk(DiskSpec { logical_block: 4096, ..DiskSpec::blank("large-blocks", 8) });
    let mut guest = machine.boot();
    assert_eq!(guest.run("uname -r").trim(), release);
    let (small, large_blocks) = (guest.disk("small"), guest.disk("large-blocks"));
    for (disk, block) in [(&small, "512"), (&large_blocks, "4096")] {
        assert_eq!(guest.run(&format!("blockdev --getsz {disk}")).trim(), "16384");
        assert_eq!(guest.run(&format!("blockdev --getss {disk}")).trim(), block);
        let cache = guest.run(&format!("cat /sys/block/{}/queue/write_cache", disk.trim_start_matches("/dev/")));
        assert_eq!(cache.trim(), "write back");
    }
    guest.run(&format!("dmsetup create half --table '0 8192 linear {small} 8192'"));
    guest.run("test -b /dev/mapper/half");
    guest.run("echo through dm >/tmp/line && dd if=/tmp/line of=/dev/mapper/half conv=fsync");
    assert_eq!(guest.run(&format!("dd if={small} bs=4096 skip=1024 count=1 | head -c 10")), "through dm");
    assert_eq!(guest.run("cat /sys/block/nbd0/size").trim(), "0");
    check(&mut guest);
    guest.shut_down();
}

#[test]
fn the_stock_kernel_has_device_mapper_and_nbd_and_no_ublk() {
    smoke(Kernel::Stock, &[], |guest| {
        assert!(guest.run("uname -r").starts_with("6.1."));
        assert_ne!(guest.attempt("ls /dev/ublk-control").code, 0);
    });
}

#[test]
fn the_kernel_of_the_backports_has_ublk() {
    smoke(Kernel::Backports, &["ublk_drv"], |guest| {
        guest.run("test -c /dev/ublk-control");
    });
}

#[test]
fn the_newest_kernel_has_ublk() {
    smoke(Kernel::Newest, &["ublk_drv"], |guest| {
        guest.run("test -c /dev/ublk-control");
    });
}
