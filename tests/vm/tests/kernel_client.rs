//! A volume as a block device on a kernel without ublk: the kernel's own NBD client over our server, an ext4 on it, and an
//! application that must not notice how often the daemon dies.

use farside_vm::Kernel;
use farside_vm::conformance::{self, NBD};

const KILLS: u64 = 20;

#[test]
fn an_application_notices_no_kill_of_the_daemon_and_a_power_cut_loses_nothing_that_was_synced() {
    conformance::lives_through_everything(Kernel::Stock, &NBD, KILLS);
}

#[test]
fn a_device_grows_with_its_backing() {
    conformance::grows_with_its_backing(Kernel::Stock, &NBD, 1);
}

#[test]
fn a_device_is_handed_over_when_nobody_uses_it() {
    conformance::is_handed_over_when_it_is_unused(Kernel::Stock, &NBD);
}

#[test]
fn a_machine_without_memory_writes_on() {
    conformance::writes_on_without_memory(Kernel::Stock, &NBD, 1);
}
