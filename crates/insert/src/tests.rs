//! How what the kernel shows is judged. The rest wants a kernel: `tests/vm/tests/insertion.rs`.

use super::*;

fn status(name: &str, minor: u32) -> Status {
    Status {
        name: name.to_owned(),
        uuid: String::new(),
        number: DevNumber { major: 4095, minor },
        open_count: 0,
        suspended: false,
        readonly: false,
        live: true,
        inactive: false,
    }
}

fn linear(start: u64, sectors: u64, parameters: &str) -> Target {
    Target { start, sectors, kind: LINEAR.to_owned(), parameters: parameters.to_owned() }
}

fn shown(table: &[Target], twin: Option<&[Target]>) -> Shown {
    let twin = twin.map(|table| (status("data-farside-backing", 2), table.to_vec()));
    Shown { device: status("data", 1), table: table.to_vec(), twin }
}

#[test]
fn every_shape_of_a_device_and_its_twin_has_its_state() {
    let disks = [linear(0, 80, "4094:1 2048"), linear(80, 20, "4094:2 0")];
    let other = [linear(0, 100, "4094:3 2048")];
    let tap = [linear(0, 100, "4093:7 0")];
    let small = [linear(0, 90, "4093:7 0")];
    let state = |table: &[Target], twin: Option<&[Target]>| shown(table, twin).state().ok();
    let over = DevNumber { major: 4093, minor: 7 };
    assert_eq!(state(&disks, None), Some(State::Bare));
    assert_eq!(state(&disks, Some(&disks)), Some(State::Twinned));
    assert_eq!(state(&tap, Some(&disks)), Some(State::Inserted { over }));
    assert_eq!(state(&other, Some(&disks)), Some(State::StaleTwin), "lvextend, lvchange --refresh");
    assert_eq!(state(&small, Some(&disks)), Some(State::StaleTwin), "another size");
    assert_eq!(state(&disks, Some(&[])), Some(State::StaleTwin), "a crash before the twin had a table");
    // A disk that was taken whole, and a twin that was made of it.
    let whole = [linear(0, 100, "4094:1 0")];
    assert_eq!(state(&whole, None), Some(State::Bare));
    assert_eq!(state(&whole, Some(&whole)), Some(State::Twinned));
    let part = [linear(0, 100, "4094:1 2048")];
    assert_eq!(state(&whole, Some(&part)), None, "moved on its own disk: nobody knows what the twin is worth");
}

/// `farside volume resume` said that a device stays which was held to be handed over: its tap was missed, and put back.
#[test]
fn a_device_that_is_held_is_held_whoever_says_that_it_stays() {
    let ours = Ours::default();
    assert!(!ours.is_ours());
    ours.is_held.store(true, Ordering::Relaxed);
    ours.leaves.store(true, Ordering::Relaxed);
    ours.leaves.store(false, Ordering::Relaxed);
    assert!(ours.is_ours());
    ours.is_held.store(false, Ordering::Relaxed);
    assert!(!ours.is_ours());
}

#[test]
fn what_cannot_be_mapped_through_is_refused_by_name() {
    for kind in ["striped", "thin", "cache", "snapshot-origin", "crypt", "zero"] {
        let table = [linear(0, 8, "4094:1 0"), Target { kind: kind.to_owned(), ..linear(8, 8, "4094:1 8") }];
        let error = check_device(&status("data", 1), &table).unwrap_err().to_string();
        assert!(error.starts_with(&format!("data has a {kind} target")), "{error}");
    }
    let readonly = Status { readonly: true, ..status("data", 1) };
    assert!(check_device(&readonly, &[linear(0, 8, "4094:1 0")]).is_err());
    assert!(check_device(&status("data", 1), &[]).is_err());
    assert!(check_device(&status("data", 1), &[linear(0, 8, "4094:1 0")]).is_ok());
}

/// A kernel that refuses the steps at these places, or says no to a look there, and what it was asked for.
fn exchanged(refuses: &[usize], differs: &[usize]) -> (Result<(), InsertError>, Vec<Step>) {
    let mut asked = Vec::new();
    let result = exchange("data", |step| {
        let number = asked.len();
        asked.push(step);
        let refused = || DmError::Refused { what: "change", name: "data".to_owned(), errno: Errno::EINVAL };
        if refuses.contains(&number) { Err(refused()) } else { Ok(!differs.contains(&number)) }
    });
    (result, asked)
}

#[test]
fn a_table_that_the_kernel_refuses_leaves_the_device_on_the_one_before_or_says_that_it_stands_still() {
    use Step::{Clear, Load, Look, LookAgain, Resume};
    let (result, asked) = exchanged(&[], &[]);
    assert!(result.is_ok() && asked == [Look, Load, Look, Resume, LookAgain]);
    // Nothing was suspended yet: nothing is to be resumed, and nothing is left that a later resume would put in use.
    let (result, asked) = exchanged(&[1], &[]);
    assert!(matches!(result, Err(InsertError::Refused { .. })) && asked == [Look, Load, Clear]);
    let (result, asked) = exchanged(&[1, 2], &[]);
    assert!(matches!(result, Err(InsertError::Refused { .. })) && asked == [Look, Load, Clear]);
    // Suspended, with the old table in use.
    let (result, asked) = exchanged(&[3], &[]);
    assert!(matches!(result, Err(InsertError::Refused { .. })) && asked == [Look, Load, Look, Resume, Clear, Resume]);
    // A table that could not be dropped is not tried a second time: the kernel would put it in use.
    let (result, asked) = exchanged(&[3, 4], &[]);
    let error = result.unwrap_err();
    assert!(matches!(error, InsertError::Stuck { .. }) && asked == [Look, Load, Look, Resume, Clear]);
    assert!(error.to_string().contains("data is SUSPENDED") && error.to_string().contains("dmsetup resume data"), "{error}");
    let (result, asked) = exchanged(&[3, 5], &[]);
    assert!(matches!(result, Err(InsertError::Stuck { .. })) && asked == [Look, Load, Look, Resume, Clear, Resume]);
}

#[test]
fn a_table_that_somebody_else_changed_meanwhile_stays() {
    use Step::{Clear, Load, Look, LookAgain, Resume};
    for (refuses, differs, steps) in [
        (&[][..], &[0][..], &[Look][..]),
        (&[], &[2], &[Look, Load, Look, Clear]),
        (&[], &[4], &[Look, Load, Look, Resume, LookAgain]),
    ] {
        let (result, asked) = exchanged(refuses, differs);
        assert!(matches!(result, Err(InsertError::Changed { .. })), "{result:?}");
        assert_eq!(asked, steps);
    }
    // Who cannot look does not replace.
    let (result, asked) = exchanged(&[2], &[]);
    assert!(matches!(result, Err(InsertError::Refused { .. })) && asked == [Look, Load, Look, Clear]);
}
