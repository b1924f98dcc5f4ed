//! A power cut loses what was not flushed and nothing else; and a disk that lies about its cache is caught by the same check.

use farside_tests::verify::Rng;
use farside_vm::{Cache, DiskSpec, Kernel, Machine};

const RECORDS: usize = 64;

/// Writes numbered records, each synced before the next, while somebody else writes without ever syncing; then the power goes.
/// Returns how many records were acknowledged and which of them are there afterwards.
fn records_after_a_cut(cache: Cache) -> (usize, usize) {
    let mut machine = Machine::new("power", Kernel::Stock)
        .disk(DiskSpec { cache, ..DiskSpec::blank("disk", 16) })
        .disk(DiskSpec::blank("other", 16));
    let mut guest = machine.boot();
    let (disk, other) = (guest.disk("disk"), guest.disk("other"));
    guest.start_command(&format!("while dd if=/dev/urandom of={other} bs=64k count=64 oflag=direct; do :; done"), "/run/noise");
    guest.run(&format!(
        "for i in $(seq 1 {RECORDS}); do \
            printf 'record %05d\\n' $i | dd of={disk} bs=4096 seek=$i conv=notrunc,fsync 2>/dev/null && echo $i >/run/acknowledged; \
         done"
    ));
    let acknowledged: usize = guest.run("cat /run/acknowledged").trim().parse().expect("a number");
    let mut rng = Rng(1);
    let lost = guest.cut_power(&mut rng, 0);
    assert!(lost > 0, "nothing was in any cache: nothing is proved");

    let mut guest = machine.boot();
    let disk = guest.disk("disk");
    let found = guest
        .run(&format!("for i in $(seq 1 {RECORDS}); do dd if={disk} bs=4096 skip=$i count=1 2>/dev/null | head -c 12; done"));
    guest.shut_down();
    let found = (1..=RECORDS).filter(|number| found.contains(&format!("record {number:05}"))).count();
    (acknowledged, found)
}

#[test]
fn what_was_synced_survives_a_power_cut() {
    assert_eq!(records_after_a_cut(Cache::Volatile), (RECORDS, RECORDS));
}

#[test]
fn a_disk_that_lies_about_its_cache_is_caught() {
    let (acknowledged, found) = records_after_a_cut(Cache::Lying);
    assert_eq!(acknowledged, RECORDS);
    assert!(found < acknowledged, "the check that must catch a lying disk finds nothing wrong with it");
}
