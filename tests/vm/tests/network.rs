//! Guests on one private network reach each other, until it is cut.

use farside_vm::{Kernel, Machine, Network};

#[test]
fn two_guests_talk_until_their_network_is_cut() {
    let network = Network::new();
    let mut first = Machine::new("first", Kernel::Stock).on(&network);
    let mut second = Machine::new("second", Kernel::Stock).on(&network);
    let address = second.address();
    let (mut one, mut two) = (first.boot(), second.boot());
    two.start_command("while nc -l -p 7000 >>/run/heard; do :; done", "/run/log");
    one.wait_until(&format!("ping -c 1 -W 5 {address}"));
    one.wait_until(&format!("echo hello | nc -w 5 {address} 7000"));
    two.wait_until("grep -q hello /run/heard");
    network.cut();
    assert_ne!(one.attempt(&format!("ping -c 1 -W 1 {address}")).code, 0);
    assert!(network.frames_lost() > 0);
    network.heal();
    one.wait_until(&format!("ping -c 1 -W 5 {address}"));
    one.shut_down();
    two.shut_down();
}
