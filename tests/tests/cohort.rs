//! Groups of two hosts that are cut as one, beside an application that writes at the second only what it has written at the first.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;

use farside_tests::drill::Drill;
use farside_tests::load::{self, counter_in, counter_of};
use farside_tests::verify::connect;
use farside_tests::{Endurance, Site, VolumeSpec, json, run, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 16 << 20;
const GROUPS: [&str; 2] = ["host1/default", "host2/default"];

/// Appends to a configuration.
fn add(site: &Site, name: &str, text: &str) {
    let mut file = File::options().append(true).open(site.path(name)).expect("a configuration");
    file.write_all(text.as_bytes()).expect("written");
}

fn allow(site: &Site, hold: &str) {
    let drop_in = site.path("host/farsided.d");
    std::fs::create_dir_all(&drop_in).expect("made");
    let text = format!("[[group]]\nname = \"default\"\ncohort_hold = \"{hold}\"\n");
    std::fs::write(drop_in.join("50-cohort.toml"), text).expect("written");
}

/// Two hosts of one gateway; both allow it to hold their writes for so long.
fn hosts(hold: &str) -> [Site; 2] {
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut first = Site::new(&[spec], "200ms", 1000);
    let mut second = first.another_host("host2", "200ms", 1000);
    let cohort = format!(
        "[[cohort]]\nname = \"erp\"\ngroups = [\"{}\", \"{}\"]\nevery = \"2s\"\nhold = \"{hold}\"\n",
        GROUPS[0], GROUPS[1]
    );
    add(&first, "gateway/receiver.toml", &cohort);
    allow(&first, hold);
    allow(&second, hold);
    first.start_all();
    second.start_daemon();
    second.pair();
    first.wait_quiet();
    second.wait_quiet();
    [first, second]
}

/// How the cohort is.
fn cohort(site: &Site) -> Value {
    let output = site.gateway(&["--json", "cohort", "list"]).output().expect("it runs");
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    all[0].clone()
}

fn cuts(site: &Site) -> Vec<Value> {
    json(&mut site.gateway(&["cohort", "cuts", "erp", "--limit", "1000"])).as_array().expect("a list").clone()
}

/// The point of each group in a cut.
fn points(cut: &Value) -> [String; 2] {
    let all = cut["points"].as_array().expect("points");
    assert_eq!(all.iter().map(|point| point["group"].as_str().expect("a name")).collect::<Vec<_>>(), GROUPS);
    [0, 1].map(|at| all[at]["point"].as_str().expect("an id").to_owned())
}

fn one_moment(site: &Site, cut: &Value) -> u64 {
    let [first, second] = points(cut);
    let [a, b] =
        [("host1/default/data", first), ("host2/default/data", second)].map(|(volume, point)| counter_in(site, volume, &point));
    assert!(a == b || a == b + 1, "{cut}: at {a} on the one host, and at {b} on the other");
    b
}

fn both_are_here(site: &Site) {
    wait_until("both hosts", || {
        let now = cohort(site);
        let all = now["groups"].as_array().is_some_and(|all| all.iter().all(|group| group["connected"] == true));
        if all { Ok(()) } else { Err(now.to_string()) }
    });
}

/// What the gateway's status says of cuts that were missed.
fn said(site: &Site) -> Option<String> {
    let status = json(&mut site.gateway(&["status"]));
    let all = status["reasons"].as_array().expect("reasons").clone();
    let of_cohort = all.iter().find(|reason| reason["code"] == "cohort_missed")?;
    assert_eq!(of_cohort["severity"], "warning", "{of_cohort}");
    Some(of_cohort["message"].as_str().expect("words").to_owned())
}

/// It is over with a cut that comes to something.
fn is_over(site: &Site) {
    wait_until("that nothing is said any more", || {
        run(&mut site.gateway(&["cohort", "take", "erp"]));
        said(site).map_or(Ok(()), Err)
    });
}

fn more_cuts(site: &Site, than: usize) -> Vec<Value> {
    wait_until("more cuts", || {
        let now = cuts(site);
        if now.len() > than { Ok(now) } else { Err(format!("{} of {than}: {}", now.len(), cohort(site))) }
    })
}

#[test]
fn what_a_cut_holds_of_one_host_it_holds_of_the_other() {
    let [first, second] = hosts("200ms");
    both_are_here(&first);
    let endurance = Endurance::from_environment(0);
    let writer = load::dependent_writes(first.tap("data"), second.tap("data"));
    // By where the second host is in them.
    let (mut seen, mut checked) = (BTreeSet::new(), BTreeSet::new());
    while checked.len() < 12 || endurance.goes_on() {
        run(&mut first.gateway(&["cohort", "take", "erp"]));
        let newest = wait_until("a newer cut", || {
            let newest = cuts(&first).into_iter().next().filter(|cut| !checked.contains(cut["id"].as_str().expect("an id")));
            newest.ok_or_else(|| cohort(&first).to_string())
        });
        seen.insert(one_moment(&first, &newest));
        checked.insert(newest["id"].as_str().expect("an id").to_owned());
    }
    writer.end();
    endurance.report(&format!("{} cuts of two hosts, each one moment", checked.len()));
    assert!(seen.len() > 3, "under load they differ: {seen:?}");
    let all = cuts(&first);
    // A point says which cut it is of, on both sides.
    let newest = &all[0];
    let id = newest["id"].as_str().expect("an id");
    for (at, host) in [&first, &second].into_iter().enumerate() {
        let points = points(newest);
        let of_cut = json(host.farside().args(["point", "list", "default", "--cut", id]));
        let by_gateway = json(&mut first.gateway(&["point", "list", GROUPS[at], "--cut", id]));
        for list in [of_cut, by_gateway] {
            let list = list.as_array().expect("a list").clone();
            assert!(list.len() == 1 && list[0]["id"] == *points[at] && list[0]["cut"]["id"] == id, "{list:?}");
            assert!(list[0]["cut"]["groups"] == 2 && list[0]["cut"]["at"] == newest["at"], "{list:?} of {newest}");
        }
        let shown = run(&mut first.gateway(&["point", "show", &points[at], "--of", GROUPS[at]]));
        assert!(String::from_utf8_lossy(&shown.stdout).contains(id), "{shown:?}");
    }
    for host in [&first, &second] {
        let group = host.status()["groups"][0]["cohort"].clone();
        assert!(group["cuts"].as_u64() >= Some(all.len() as u64) && group["held_us_max"].as_u64() > Some(0), "{group}");
    }
    let listed = json(first.farside().args(["point", "list", "data"]));
    let of_cohort = |point: &&Value| point["consistency"] == "cohort" && point["hooks"] == "erp";
    assert!(listed.as_array().expect("a list").iter().filter(of_cohort).count() >= all.len(), "{listed}");
    first.check_store();
}

/// A member that is gone, stopped, or never lets itself be held is named, holds up nobody, and is back by itself.
#[test]
fn a_host_that_misses_a_cut_is_named_and_holds_nobody_up() {
    let [mut first, mut second] = hosts("200ms");
    both_are_here(&first);
    let missed = |site: &Site, why: &str| {
        wait_until("the one that missed it", || {
            run(&mut site.gateway(&["cohort", "take", "erp"]));
            let trouble = cohort(site)["trouble"].clone();
            let is_it = trouble["group"] == GROUPS[1] && trouble["why"].as_str().is_some_and(|said| said.contains(why));
            // Whoever looks at nothing but the status is told, too.
            let said = said(site).filter(|said| said.contains("cohort erp") && said.contains(GROUPS[1]) && said.contains(why));
            if is_it && said.is_some() { Ok(()) } else { Err(format!("{trouble}, {said:?}")) }
        });
        let checked = site.gateway(&["status", "--check"]).output().expect("it runs");
        assert!(!checked.status.success(), "{checked:?}");
    };
    let mut client = connect(&first.tap("data"));
    let mut goes_on = |site: &Site, byte: u8| {
        client.write(0, &[byte; 4096], 0).expect("nobody is held for ever");
        site.wait_quiet();
    };

    // Stopped in the middle of whatever it does: it does not answer, and its connection stands.
    let process = second.daemon.as_ref().expect("it runs");
    process.signal(libc::SIGSTOP);
    missed(&first, "in time");
    goes_on(&first, 1);
    process.signal(libc::SIGCONT);
    both_are_here(&first);
    let known = cuts(&first).len();
    run(&mut first.gateway(&["cohort", "take", "erp"]));
    more_cuts(&first, known);
    is_over(&first);

    second.daemon.take().expect("it runs").kill();
    missed(&first, "not connected");
    goes_on(&first, 2);
    let known = cuts(&first).len();
    second.start_daemon();
    second.wait_quiet();
    both_are_here(&first);
    run(&mut first.gateway(&["cohort", "take", "erp"]));
    more_cuts(&first, known);

    // Whoever conducts dies, and knows of every cut by the ledgers.
    let known = cuts(&first);
    first.receiver.take().expect("it runs").kill();
    goes_on_without_gateway(&first);
    first.start_receiver();
    wait_for("its interface", || {
        UnixStream::connect(first.path("gateway/api.sock")).ok()?;
        Some(())
    });
    wait_until("what it knew", || {
        let output = first.gateway(&["--json", "cohort", "cuts", "erp", "--limit", "1000"]).output().expect("it runs");
        let now: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let now = now.as_array().cloned().unwrap_or_default();
        if known.iter().all(|cut| now.contains(cut)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    both_are_here(&first);
    run(&mut first.gateway(&["cohort", "take", "erp"]));
    more_cuts(&first, known.len());

    // It takes back that it may be held.
    std::fs::remove_file(second.path("host/farsided.d/50-cohort.toml")).expect("it was there");
    run(second.farside().arg("reload"));
    missed(&first, "does not let itself be cut");
}

fn goes_on_without_gateway(site: &Site) {
    connect(&site.tap("data")).write(0, &[3; 4096], 0).expect("nobody waits for a gateway");
}

/// Holds that run out before all are cut make no cut, whatever is allowed: an application waits no longer than was allowed.
#[test]
fn a_hold_is_no_longer_than_its_host_allows() {
    let [first, second] = hosts("200ms");
    allow(&second, "1ms");
    run(second.farside().arg("reload"));
    both_are_here(&first);
    let writer = load::dependent_writes(first.tap("data"), second.tap("data"));
    wait_until("cuts, or holds that ran out", || {
        run(&mut first.gateway(&["cohort", "take", "erp"]));
        let now = cohort(&first);
        let begun = now["cuts"].as_u64().unwrap_or(0) + now["missed"].as_u64().unwrap_or(0);
        if begun >= 6 { Ok(()) } else { Err(now.to_string()) }
    });
    writer.end();
    first.wait_quiet();
    cuts(&first).iter().for_each(|cut| _ = one_moment(&first, cut));
}

/// As `[[cohort]]` says now, if it says anything.
fn configure(site: &Site, groups: Option<[&str; 2]>) {
    let path = site.path("gateway/receiver.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let rest = text.split("[[cohort]]").next().expect("what is before it").to_owned();
    let cohort = groups.map_or_else(String::new, |[one, other]| {
        format!("[[cohort]]\nname = \"erp\"\ngroups = [\"{one}\", \"{other}\"]\nevery = \"1h\"\nhold = \"200ms\"\n")
    });
    std::fs::write(&path, rest + &cohort).expect("written");
    run(&mut site.gateway(&["reload"]));
}

/// † A configuration that was changed, or could not be read, gives up nothing: a person does.
#[test]
fn cuts_outlive_the_configuration_until_they_are_forgotten() {
    let [mut first, second] = hosts("200ms");
    both_are_here(&first);
    let mut clients = [&first, &second].map(|site| connect(&site.tap("data")));
    let mut byte = 0u8;
    let mut write = |first: &Site| {
        byte = byte.wrapping_add(1);
        for (client, site) in clients.iter_mut().zip([first, &second]) {
            client.write(0, &[byte; 4096], 0).expect("written");
            site.wait_quiet();
        }
    };
    // No more of them by themselves: of one that is under way when a group is taken out, the other keeps a half.
    configure(&first, Some(GROUPS));
    both_are_here(&first);
    while cuts(&first).len() < 3 {
        write(&first);
        let known = cuts(&first).len();
        // A host that is away for a moment is waited for by nobody: none comes by itself for an hour then.
        wait_until("a cut", || {
            run(&mut first.gateway(&["cohort", "take", "erp"]));
            let now = cuts(&first).len();
            if now > known { Ok(()) } else { Err(format!("{now} of {known}: {}", cohort(&first))) }
        });
    }
    // In another shape, with a group that nothing was ever sent of, and in none.
    configure(&first, Some(["host1/default", "host1/other"]));
    let known = cuts(&first);
    assert!(known.len() >= 3);
    let refused = first.gateway(&["cohort", "forget", "erp", "--yes"]).output().expect("it runs");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("is in the configuration"), "{refused:?}");
    configure(&first, None);
    assert_eq!(cuts(&first), known);

    // All else goes as the groups' policies say, also after a restart without it.
    for host in [&first, &second] {
        run(host.farside().args(["group", "set", "default", "--keep", "2"]));
    }
    let listed =
        |site: &Site, group: &str| json(&mut site.gateway(&["point", "list", group])).as_array().expect("a list").clone();
    let of_cut = |points: &[Value], cut: &Value| points.iter().any(|point| point["cut"]["id"] == cut["id"]);
    let only_cuts_are_left = |site: &Site| {
        for group in GROUPS {
            let points = listed(site, group);
            let others = points.iter().filter(|point| point["cut"].is_null()).count();
            if others > 3 {
                return Err(format!("{group}: {others} that are of no cut"));
            }
        }
        Ok(())
    };
    wait_until("others to go", || {
        write(&first);
        only_cuts_are_left(&first)
    });
    assert_eq!(cuts(&first), known, "while the gateway that saw them runs, all");
    first.receiver.take().expect("it runs").stop();
    first.start_receiver();
    wait_until("it to go on", || {
        let output = first.gateway(&["--json", "cohort", "cuts", "erp"]).output().expect("it runs");
        let now: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if now.as_array().is_some_and(|now| now.len() >= 2) { Ok(()) } else { Err(now.to_string()) }
    });
    for _ in 0..5 {
        write(&first);
    }
    wait_until("others to go as before", || {
        write(&first);
        only_cuts_are_left(&first)
    });
    for group in GROUPS {
        let points = listed(&first, group);
        assert!(known.iter().all(|cut| of_cut(&points, cut)), "whatever the policy is: {group}: {points:?}");
    }

    run(&mut first.gateway(&["cohort", "forget", "erp", "--yes"]));
    wait_until("them to go, too", || {
        write(&first);
        let left = GROUPS.map(|group| listed(&first, group).iter().filter(|point| !point["cut"].is_null()).count());
        if left == [0, 0] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let unknown = first.gateway(&["cohort", "cuts", "erp"]).output().expect("it runs");
    assert!(!unknown.status.success(), "{unknown:?}");
    first.check_store();
}

fn failovers(site: &Site) -> Value {
    json(&mut site.gateway(&["failover", "--list"]))
}

/// Both groups at one cut, however much was written since; they end together.
fn is_drilled(site: &Site, known: &[Value]) {
    let dir = site.path("drills");
    let start = |more: &[&str]| {
        let mut command = site.gateway(&["drill", "start", "--cohort", "erp"]);
        command.args(more);
        command
    };
    let planned = start(&["--plan", "--dir", dir.to_str().expect("text")]).output().expect("it runs");
    let words = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(planned.status.success() && GROUPS.iter().all(|group| words.contains(group)), "{planned:?}");
    assert!(!dir.exists(), "a plan changes nothing");
    let unknown = start(&["--cut", &"0".repeat(32)]).output().expect("it runs");
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    let older = known[1]["id"].as_str().expect("an id");
    for (cut, more) in [(&known[0], &[][..]), (&known[1], &["--cut", older])] {
        let drill = Drill::of(start(more), &dir);
        assert_eq!(drill.said["cut"], cut["id"]);
        let drills = drill.said["drills"].as_array().expect("a list");
        let at = [0, 1].map(|n| {
            assert_eq!(drills[n]["point"]["id"], points(cut)[n]);
            load::counter_at(Path::new(drills[n]["volumes"][0]["socket"].as_str().expect("a path")))
        });
        assert!(at[0] == at[1] || at[0] == at[1] + 1, "one moment: {at:?}");
        let one = drills[1]["id"].as_str().expect("an id");
        let list = ["drill", "list", "--dir", dir.to_str().expect("text")];
        assert_eq!(json(&mut site.gateway(&list)).as_array().map(Vec::len), Some(2));
        wait_for("the one to end, and the other with it", || {
            let stop = site.gateway(&["drill", "stop", one, "--dir"]).arg(&dir).output().expect("it runs");
            stop.status.success().then_some(()) // the client has just left
        });
        wait_for("both to be over", || (json(&mut site.gateway(&list)) == Value::Array(Vec::new())).then_some(()));
    }
}

/// Each group comes up as it was at one moment, though it wrote more since. Nobody is fenced while one of them cannot be, and what was begun with
/// one cut goes on with that one.
#[test]
fn a_cohort_is_failed_over_to_one_cut() {
    let [mut first, mut second] = hosts("200ms");
    both_are_here(&first);
    let targets = ["one.img", "two.img"].map(|name| first.path(name));
    for (group, target) in GROUPS.iter().zip(&targets) {
        run(&mut first.gateway(&["follower", "add", &format!("{group}/data"), target.to_str().expect("text")]));
    }
    let writer = load::dependent_writes(first.tap("data"), second.tap("data"));
    while cuts(&first).len() < 2 {
        let known = cuts(&first).len();
        run(&mut first.gateway(&["cohort", "take", "erp"]));
        more_cuts(&first, known);
    }
    // No more of them; more of everything else.
    configure(&first, None);
    writer.wait_for_more(200);
    writer.end();
    first.wait_quiet();
    second.wait_quiet();
    let known = cuts(&first);
    let older = known[1]["id"].as_str().expect("an id");
    is_drilled(&first, &known);

    let refused = |site: &Site, host: &str| {
        let output = site.gateway(&["failover", "--cohort", "erp", "--yes"]).output().expect("it runs");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words}");
        assert_eq!(failovers(site), Value::Array(Vec::new()), "nobody is fenced: {words}");
        if words.contains(&format!("{host} is connected")) { Ok(words) } else { Err(words) }
    };
    refused(&first, "host2").expect("both are alive");
    second.daemon.take().expect("it runs").kill();
    wait_until("one that is gone, and one that is not", || {
        let words = refused(&first, "host1")?;
        if words.contains("host2 is connected") { Err(words) } else { Ok(()) }
    });
    first.daemon.take().expect("it runs").kill();
    let plan = wait_until("both to be gone", || {
        let plan = json(&mut first.gateway(&["failover", "--cohort", "erp", "--plan"]));
        let all = plan["groups"].as_array().expect("groups").clone();
        if all.iter().all(|one| one["connected_from"].is_null()) { Ok(plan) } else { Err(plan.to_string()) }
    });
    assert_eq!(plan["cut"]["id"], known[0]["id"], "the newest");
    for (at, one) in plan["groups"].as_array().expect("groups").iter().enumerate() {
        assert!(one["stage"] == "planned" && one["point"]["id"] == *points(&known[0])[at], "{one}");
        assert_ne!(one["point"], one["newest"], "it wrote more since");
    }
    assert_eq!(failovers(&first), Value::Array(Vec::new()), "a plan changes nothing");

    // As long as nobody is fenced all of them can be given up; whoever waits for it is told.
    first.receiver.take().expect("it runs").kill();
    first.fence_after("1h");
    first.start_receiver();
    let mut asked = None;
    wait_until("the failovers to have begun", || {
        let piped = std::process::Stdio::piped;
        let begin = || {
            let mut asked = first.gateway(&["failover", "--cohort", "erp", "--yes"]);
            asked.stdout(piped()).stderr(piped()).spawn().expect("it starts")
        };
        let all = failovers(&first);
        if all.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["stage"] == "fencing")) {
            return Ok(());
        }
        // It ends at once where the gateway is not ready.
        if asked.get_or_insert_with(begin).try_wait().expect("our child").is_some() {
            return Err(format!("{:?}", asked.take().map(Child::wait_with_output)));
        }
        Err(all.to_string())
    });
    let waiting = asked.expect("it has begun them");
    let abort = |site: &Site| site.gateway(&["failover", "--cohort", "erp", "--abort"]).output().expect("it runs");
    let given_up = abort(&first);
    let words = String::from_utf8_lossy(&given_up.stdout).into_owned();
    assert!(given_up.status.success() && GROUPS.iter().all(|group| words.contains(group)), "{given_up:?}");
    assert_eq!(failovers(&first), Value::Array(Vec::new()));
    assert!(!waiting.wait_with_output().expect("it ends").status.success(), "nothing was brought up");
    let nothing = abort(&first);
    assert!(nothing.status.code() == Some(5) && String::from_utf8_lossy(&nothing.stderr).contains("no group of"), "{nothing:?}");
    first.fence_after("0s");
    run(&mut first.gateway(&["reload"]));

    // Whoever asked was killed after the first group, and so is the gateway.
    run(&mut first.gateway(&["failover", GROUPS[1], "--point", &points(&known[1])[1], "--force", "--yes"]));
    first.receiver.take().expect("it runs").kill();
    first.start_receiver();
    let fenced = wait_until("it to be known what is fenced", || {
        let refused = abort(&first);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        if words.contains("host2/default was failed over") { Ok(refused) } else { Err(words) }
    });
    assert_eq!(fenced.status.code(), Some(4), "{fenced:?}");
    let done = wait_until("the gateway to be there", || {
        let output = first.gateway(&["failover", "--cohort", "erp", "--yes", "--json"]).output().expect("it runs");
        let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { serde_json::from_slice::<Value>(&output.stdout).map_err(|_| words) } else { Err(words) }
    });
    assert_eq!(done["cut"]["id"], older, "the one that was begun with, and not the newest: {done}");
    let at = targets.each_ref().map(|target| counter_of(target));
    assert!(at[0] == at[1] || at[0] == at[1] + 1, "one moment: {at:?}");
    for (at, one) in done["groups"].as_array().expect("groups").iter().enumerate() {
        assert!(one["stage"] == "promoted" && one["point"]["id"] == *points(&known[1])[at], "{one}");
        assert_eq!(one["members"][0]["state"], "promoted", "{one}");
    }
    let again = json(&mut first.gateway(&["failover", "--cohort", "erp", "--cut", older, "--yes"]));
    for (one, before) in [0, 1].map(|at| (&again["groups"][at], &done["groups"][at])) {
        assert!(["stage", "point", "generation"].iter().all(|key| one[key] == before[key]), "said again, nothing is done: {one}");
    }
    let other =
        first.gateway(&["failover", "--cohort", "erp", "--cut", known[0]["id"].as_str().expect("an id"), "--yes"]).output();
    let words = String::from_utf8_lossy(&other.expect("it runs").stderr).into_owned();
    assert!(words.contains("failed over already, to another point"), "{words}");
}
