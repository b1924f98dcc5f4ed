//! A volume as a block device on a kernel without ublk: the kernel's own NBD client over our server, an ext4 on it, and an
//! application that must not notice how often the daemon dies.

use farside_tests::verify::Rng;
use farside_vm::Kernel;
use farside_vm::protected::{CLI, Host, is_quiet};

const KILLS: u64 = 12;

#[test]
fn an_application_notices_no_kill_of_the_daemon_and_a_power_cut_loses_nothing_that_was_synced() {
    let mut host = Host::boot(Kernel::Stock, &["nbd"]);
    host.guest.run(&format!("{CLI} volume add data --backing $(cat /run/backing) --tap nbd-device"));
    host.guest.run("test -b $(readlink -f /dev/farside/data)");
    let sys = host.guest.run("echo /sys/block/$(basename $(readlink -f /dev/farside/data))").trim().to_owned();
    assert_eq!(host.guest.run(&format!("cat {sys}/queue/write_cache")).trim(), "write back", "or nobody flushes");
    assert_eq!(host.guest.run(&format!("cat {sys}/queue/fua")).trim(), "1");
    assert_eq!(host.guest.run(&format!("cat {sys}/queue/logical_block_size")).trim(), "512");
    host.guest.run("/bin/mke2fs -q -t ext4 /dev/farside/data && mount -t ext4 -o commit=300 /dev/farside/data /mnt");
    host.wait_for_group("the first sync", is_quiet);

    // The kernel says that a connection broke, each time.
    for complaint in ["Receive control", "Send control", "Send data", "Request send", "Dead connection"] {
        host.guest.announce(&format!("block nbd0: {complaint}"));
    }
    let device = host.guest.run("readlink -f /dev/farside/data");
    host.start_load();
    for kill in 0..KILLS {
        host.wait_for_load(20);
        host.kill_daemon();
        if kill % 3 == 2 {
            host.guest.start_command("fstrim /mnt && sync", "/run/trim.log"); // waits in the kernel meanwhile
        }
        host.start_daemon();
        host.load_lives();
    }
    assert_eq!(host.guest.run("readlink -f /dev/farside/data"), device, "one device all along");
    host.guest.run("test ! -s /run/trim.log");
    // Who uses it keeps it.
    let refused = host.guest.attempt(&format!("{CLI} volume remove data --yes"));
    assert!(refused.code != 0 && refused.stderr.contains("/dev/nbd0 is in use"), "{refused:?}");

    // Beside it, and after its last sync, somebody writes past the page cache and never syncs.
    host.guest.run("dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync 2>/dev/null");
    let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=64 oflag=direct conv=notrunc; do :; done";
    host.guest.start_command(scribble, "/run/scribble.log");
    host.wait_for_load(20);
    host.stop_load();
    let rounds = host.guest.attempt("grep -c 'records out' /run/scribble.log").stdout;
    host.guest.wait_until(&format!("test $(grep -c 'records out' /run/scribble.log) -gt $(({} + 1))", rounds.trim()));
    let promised = host.guest.download("/run/progress");
    let (mut host, lost) = host.cut_power(&mut Rng(11), 4);
    assert!(lost > 0, "nothing was in any cache: nothing is proved");
    host.start_daemon();
    host.wait_for_group("everything to be published", is_quiet);
    host.guest.run("mount -t ext4 /dev/farside/data /mnt");
    host.guest.upload("/run/promised", &promised, 0o644);
    println!("{lost} blocks lost; synced: {}", host.guest.run("farside-vm-load check /mnt /run/promised"));
    host.guest.run("umount /mnt");
    host.wait_for_group("the last writes", is_quiet);
    host.assert_newest_point_is_the_disk();
    host.guest.run(&format!("{CLI} volume remove data --yes"));
    host.guest.run("test ! -e /dev/farside/data && test ! -e /sys/block/nbd0/pid");
    host.shut_down();
}
