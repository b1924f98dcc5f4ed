//! The harness itself: what a guest's kernel complains of fails the test, unless the test said so before; no guest outlives its
//! owner.

use std::panic::{AssertUnwindSafe, catch_unwind};

use farside_vm::{DiskSpec, Kernel, Machine};

/// As the kernel would say it.
const COMPLAINT: &str = "echo '<3>blk_update_request: I/O error, dev nothing' >/dev/kmsg";

#[test]
fn a_complaint_of_the_kernel_fails_the_test_unless_it_was_announced() {
    let mut machine = Machine::new("judge", Kernel::Stock).disk(DiskSpec::blank("disk", 8));
    let mut guest = machine.boot();
    guest.announce("I/O error, dev nothing");
    guest.run(COMPLAINT);
    guest.shut_down();

    let mut guest = machine.boot();
    guest.run(COMPLAINT);
    let judged = catch_unwind(AssertUnwindSafe(|| guest.shut_down()));
    let message = *judged.expect_err("nobody announced it").downcast::<String>().expect("a message");
    assert!(message.contains("I/O error, dev nothing"), "{message}");
}

#[test]
fn a_command_and_a_file_come_through_as_they_are() {
    let mut guest = Machine::new("agent", Kernel::Stock).boot();
    let output = guest.attempt("printf 'a\\000b'; echo wrong >&2; exit 7");
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "a\0b", "wrong\n"));
    assert_eq!(guest.attempt("kill -9 $$").code, 128 + 9);
    let content: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 251) as u8).collect();
    guest.upload("/run/some/where/file", &content, 0o600);
    assert_eq!(guest.run("stat -c '%a %s' /run/some/where/file").trim(), format!("600 {}", content.len()));
    assert!(guest.download("/run/some/where/file") == content, "the file came back changed");
    guest.start_command("echo begun; exec sleep 1000", "/run/log");
    guest.wait_until("grep -q begun /run/log");
    guest.shut_down();
}

#[test]
fn a_guest_ends_with_the_thread_that_booted_it() {
    let booted = std::thread::spawn(|| {
        let mut machine = Machine::new("orphan", Kernel::Stock);
        (machine.boot(), machine)
    });
    let (mut guest, _machine) = booted.join().expect("it comes up");
    let waiting = catch_unwind(AssertUnwindSafe(|| guest.attempt("sleep 100000")));
    let message = *waiting.expect_err("nobody is there to answer").downcast::<String>().expect("a message");
    assert!(message.contains("gives no answer"), "{message}");
}
