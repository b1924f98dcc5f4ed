//! Two sites on a private network, each a machine with a kernel of its own, and a database that goes round: PostgreSQL writes at A, whose
//! power is cut in the middle of it; B takes over and writes; A comes back, is fenced, gets what differs, and takes the history back
//! while nothing is lost. Then B is the standby of A again.
//!
//! Who asks for transactions sits at B, so what was acknowledged to him, and when by the clock of A, outlives A's power.

use std::sync::Arc;

use farside_tests::postgres::{ACCOUNTS, AGREED, SUMS, transaction};
use farside_tests::verify::Rng;
use farside_tests::wait_until;
use farside_vm::application::{ask, lay_ledger, start_server, stop_server};
use farside_vm::conformance::DEVICE;
use farside_vm::gateway::{Gateway, md5_of};
use farside_vm::protected::{CLI, is_quiet};
use farside_vm::toolbox::{AT, Toolbox};
use farside_vm::{DiskSpec, Guest, Kernel, Machine, Network};
use serde_json::Value;

const VOLUME_MIB: usize = 96;
/// What only the disk of A holds is kept there, and 64 MiB are left free.
const STATE_MIB: usize = 160;
const GRANULE_BYTES: usize = 4096;
/// How many transactions are acknowledged at A before each of two points, and after them.
const BEFORE: u64 = 20;
const AFTER: u64 = 5;
/// How many B adds before A gets what differs, and while A follows.
const AT_B: u64 = 40;
const WHILE_A_FOLLOWS: u64 = 20;
/// Rows of B that no compression makes small, and the bytes of each: with them, what comes back is hardly less than what differs.
const BALLAST_ROWS: u64 = 48;
const BALLAST_BYTES: u64 = 64 << 10;

/// The exit code of `farside status --check`.
const NOT_ADVANCING: i32 = 8;
/// The receiver's command line, at B.
const RECEIVER: &str = "farside --socket /store/receiver.sock";
const DAEMON_SOCKET: &str = "/run/farsided.sock";
/// Where B lays the branch of A.
const BRANCH: &str = "/store/branch";
const JOURNAL: &str = "/run/journal";
/// The server's clock, as `/proc` says it: hundredths of a second, cut off.
const CLOCK: &str = "split_part(pg_read_file('/proc/uptime'), ' ', 1)";
const CLOCK_STEP_NS: u64 = 10_000_000;

const CONFIGURATION: &str = r#"
[source]
name = "NAME"
state_dir = "/state/farside"
api_socket = "/run/farsided.sock"

[[group]]
name = "default"
epoch_interval = "500ms"
keep = 10000
span = "0s"
STAND_IN
"#;

/// A machine that can have the volume: A, and B beside its receiver. Debian's kernel with ublk.
fn machine(name: &'static str, network: &Network, toolbox: &Arc<Toolbox>, disk: &'static str) -> Machine {
    Machine::new(name, Kernel::Backports)
        .memory_mib(768)
        .modules(&["nbd", "ublk_drv"])
        .programs(&["farside", "farsided"])
        .debian_programs(&["mke2fs"])
        .disk(DiskSpec::blank(disk, VOLUME_MIB))
        .disk(DiskSpec::blank("state", STATE_MIB))
        .toolbox(toolbox)
        .on(network)
}

/// Makes a host's state directory, with its configuration beside it.
fn prepare(guest: &mut Guest, name: &str, stand_in: &str) {
    let state = guest.disk("state");
    guest.run(&format!("/bin/mke2fs -q -t ext4 {state} && mkdir -p /state && mount -t ext4 {state} /state"));
    let configuration = CONFIGURATION.replace("NAME", name).replace("STAND_IN", stand_in);
    guest.upload("/state/farsided.toml", configuration.as_bytes(), 0o644);
    guest.run("sync");
}

fn start_daemon(guest: &mut Guest) -> u32 {
    let daemon = guest.start_command("exec farsided --config /state/farsided.toml", "/run/daemon.log");
    wait_until("the daemon", || {
        assert!(guest.lives(daemon), "the daemon ended");
        guest.status(DAEMON_SOCKET).map(drop).ok_or("no answer")
    });
    daemon
}

fn stop_daemon(guest: &mut Guest, daemon: u32) {
    guest.run(&format!("kill {daemon}"));
    guest.wait_for_end(daemon);
}

/// The status of the group, once it satisfies a condition.
fn wait_for_group(guest: &mut Guest, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    wait_until(what, || {
        let group = guest.status(DAEMON_SOCKET).ok_or("no answer")?["groups"][0].clone();
        if condition(&group) { Ok(group) } else { Err(format!("{group:#}")) }
    })
}

fn wait_for_state(guest: &mut Guest, state: &str) {
    wait_for_group(guest, state, |group| group["volumes"][0]["state"]["state"] == state);
}

/// What a command answers with `--json`.
fn json(guest: &mut Guest, command: &str) -> Value {
    serde_json::from_str(&guest.run(&format!("{command} --json"))).expect("JSON")
}

fn newest(b: &mut Guest) -> Value {
    json(b, &format!("{RECEIVER} point show latest --of host1/default"))["id"].clone()
}

fn mount(guest: &mut Guest, device: &str) {
    guest.run(&format!("mount -t ext4 -o noatime {device} /mnt && mount -o bind /mnt {AT}/mnt"));
}

/// The database, wherever the volume's device is.
fn start_database(guest: &mut Guest, toolbox: &Toolbox, address: &str) {
    mount(guest, DEVICE);
    start_server(guest, toolbox, &format!("-c listen_addresses={address} -c autovacuum=off"));
}

fn stop_database(guest: &mut Guest, toolbox: &Toolbox) {
    stop_server(guest, toolbox);
    // The last of its processes may have taken its leave, and not be gone yet.
    guest.wait_until(&format!("umount {AT}/mnt"));
    guest.wait_until("umount /mnt");
}

/// Its transactions, of which there is none missing in between.
fn count(guest: &mut Guest, toolbox: &Toolbox) -> u64 {
    let said = ask(guest, toolbox, &format!("{SUMS}; SELECT count(*) FROM history"));
    let (sums, count) = said.trim().split_once('\n').expect("two answers");
    assert_eq!(sums, AGREED, "the sums do not agree");
    count.parse().expect("a number")
}

/// A command of the shell that asks a server for one transaction after the other, by their numbers, and writes down when each was begun
/// and acknowledged, by the server's clock.
fn client(toolbox: &Toolbox, server: &str, first: u64, last: Option<u64>) -> String {
    let others = ACCOUNTS - 1;
    let enough = last.map_or_else(|| "true".to_owned(), |last| format!("[ $n -lt {last} ]"));
    let sql = transaction(0, "$n", "$((n % 1000))", "$from", "$to");
    let psql = toolbox.postgres("psql", &format!("-X -q -A -t -v ON_ERROR_STOP=1 -d postgres -h {server}"));
    format!(
        "n={}
         while {enough}; do
             n=$((n + 1)); a=$((n * 7919 % {others})); b=$((n * 104729 % {others}))
             if [ $a -lt $b ]; then from=$a; to=$((b + 1)); else from=$b; to=$((a + 1)); fi
             echo \"SELECT 'begun', $n, {CLOCK}; {sql} SELECT 'done', $n, {CLOCK};\"
         done | {psql} >>{JOURNAL}",
        first - 1
    )
}

/// A transaction, by the clock of its server.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    /// Not before this.
    begun_ns: u64,
    /// Not after this; `None`: it was never acknowledged.
    done_ns: Option<u64>,
}

/// What the client wrote down, from the first transaction on.
fn journal(guest: &mut Guest) -> Vec<Transaction> {
    let mut all: Vec<Transaction> = Vec::new();
    let said = String::from_utf8(guest.download(JOURNAL)).expect("lines");
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let [what, number, clock] = line.split('|').collect::<Vec<_>>()[..] else { continue };
        let (seconds, hundredths) = clock.split_once('.').expect("hundredths of a second");
        let steps = seconds.parse::<u64>().expect("seconds") * 100 + hundredths.parse::<u64>().expect("hundredths");
        if what == "begun" {
            all.push(Transaction { begun_ns: steps * CLOCK_STEP_NS, done_ns: None });
        } else {
            all.last_mut().expect("it was begun").done_ns = Some((steps + 1) * CLOCK_STEP_NS);
        }
        assert_eq!(number.parse(), Ok(all.len()), "one after the other");
    }
    all
}

/// A point, by the clock of its source.
#[derive(Debug)]
struct Cut {
    id: Value,
    before_ns: u64,
    after_ns: u64,
}

impl Cut {
    fn of(point: &Value) -> Self {
        let ns = |field: &str| point[field].as_u64().unwrap_or_else(|| panic!("{field} in {point}"));
        Self { id: point["id"].clone(), before_ns: ns("cut_mono_before_ns"), after_ns: ns("cut_mono_after_ns") }
    }

    /// How many transactions it must hold: those that had been acknowledged.
    fn must(&self, journal: &[Transaction]) -> u64 {
        journal.iter().filter(|one| one.done_ns.is_some_and(|done| done <= self.before_ns)).count() as u64
    }

    /// And may: those that had been begun.
    fn may(&self, journal: &[Transaction]) -> u64 {
        journal.iter().filter(|one| one.begun_ns <= self.after_ns).count() as u64
    }
}

/// Every point of the group, the oldest first; all are of one boot of A.
fn cuts(b: &mut Guest) -> Vec<Cut> {
    let listed = json(b, &format!("{RECEIVER} point list host1/default"));
    let points = listed.as_array().or_else(|| listed["points"].as_array()).expect("a list of points");
    let mut cuts: Vec<Cut> = points.iter().map(Cut::of).collect();
    cuts.sort_by_key(|cut| cut.before_ns);
    cuts
}

fn acknowledged(journal: &[Transaction]) -> u64 {
    journal.iter().filter(|one| one.done_ns.is_some()).count() as u64
}

/// Bytes of granules that differ.
fn difference(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.chunks(GRANULE_BYTES).zip(b.chunks(GRANULE_BYTES));
    (pairs.filter(|(a, b)| a != b).count() * GRANULE_BYTES) as u64
}

/// Somebody writes over one file beside the database, past the page cache, and never syncs: what a power cut may lose.
fn scribble(guest: &mut Guest) {
    guest.run("dd if=/dev/zero of=/mnt/scribble bs=64k count=16 conv=fsync 2>/dev/null");
    let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=16 oflag=direct conv=notrunc; do :; done";
    guest.start_command(scribble, "/run/scribble.log");
    guest.wait_until("grep -q 'records out' /run/scribble.log");
}

/// Waits until the old host holds the newest point of the one that stands in, which is quiet, and gives what its failback says of itself.
fn follows(a: &mut Guest, b: &mut Guest) -> Value {
    wait_for_group(b, "everything at B to be published", is_quiet);
    wait_until("A to hold the newest point of B", || {
        let newest = newest(b);
        let now = json(a, &format!("{CLI} failback --list"))[0].clone();
        if now["stage"] == "following" && now["holds"]["id"] == newest { Ok(now) } else { Err(format!("{now:#}")) }
    })
}

/// The standby follows the newest point again, whatever was written to it while it was the volume.
fn follows_again(b: &mut Guest) {
    let follower = |b: &mut Guest| json(b, &format!("{RECEIVER} follower show standby"));
    b.run(&format!("{RECEIVER} follower resume standby"));
    wait_until("what was written at B to be noticed", || {
        let now = follower(b);
        if now["state"] == "diverged" { Ok(()) } else { Err(now.to_string()) }
    });
    b.run(&format!("{RECEIVER} follower heal standby --yes"));
    holds_the_newest(b);
}

fn holds_the_newest(b: &mut Guest) {
    wait_until("the standby to hold the newest point", || {
        let (newest, now) = (newest(b), json(b, &format!("{RECEIVER} follower show standby")));
        if now["state"] == "following" && now["holds"]["id"] == newest { Ok(()) } else { Err(format!("{now:#}")) }
    });
}

/// Both sites.
struct Sites {
    toolbox: Arc<Toolbox>,
    /// The machine of A, switched on or off.
    host: Machine,
    /// B, with its receiver.
    gateway: Gateway,
    address_a: String,
    address_b: String,
    /// The standby, as B names it.
    standby: String,
}

/// What B took over.
struct TakenOver {
    /// Transactions that are there.
    transactions: u64,
    /// B's daemon.
    daemon: u32,
}

impl Sites {
    /// Site A with a database on a protected disk, and site B with a standby of it.
    fn boot() -> (Self, Guest) {
        let (toolbox, network) = (Arc::new(Toolbox::fill()), Network::new());
        let mut host = machine("a", &network, &toolbox, "data");
        let other =
            machine("b", &network, &toolbox, "standby").programs(&["farside-receiver"]).disk(DiskSpec::blank("store", 512));
        let (address_a, address_b) = (host.address(), other.address());
        let mut gateway = Gateway::emulated(other, network);
        toolbox.open(gateway.guest());
        let mut a = host.boot();
        toolbox.open(&mut a);
        prepare(&mut a, "host1", "");
        start_daemon(&mut a);
        a.run(&format!("{CLI} pair '{}'", gateway.token()));
        let data = a.disk("data");
        a.run(&format!("{CLI} volume add data --backing {data} --tap ublk"));
        let format = format!("/bin/mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 {DEVICE}");
        a.run(&format!("{format} && mount -t ext4 {DEVICE} /mnt"));
        lay_ledger(&mut a);
        a.run("echo 'host all all 10.77.0.0/24 trust' >>/mnt/pg/pg_hba.conf && umount /mnt");
        start_database(&mut a, &toolbox, &address_a);
        ask(&mut a, &toolbox, "CREATE TABLE ballast (n int PRIMARY KEY, sum text NOT NULL, bytes bytea NOT NULL)");
        wait_for_group(&mut a, "the first sync", is_quiet);
        let b = gateway.guest();
        let standby = b.disk("standby");
        b.run(&format!("{RECEIVER} follower add host1/default/data {standby} --name standby"));
        holds_the_newest(b);
        (Self { toolbox, host, gateway, address_a, address_b, standby }, a)
    }

    /// A works, points come and go, and its power is cut in the middle of it. Gives what the client saw.
    fn work_until_the_power_goes(&mut self, mut a: Guest) -> Vec<Transaction> {
        scribble(&mut a);
        let b = self.gateway.guest();
        let asking = b.start_command(&client(&self.toolbox, &self.address_a, 1, None), "/run/client.log");
        b.wait_until(&format!("test -s {JOURNAL}"));
        let more = |b: &mut Guest, transactions: u64| {
            let enough = acknowledged(&journal(b)) + transactions;
            wait_until("transactions", || {
                assert!(b.lives(asking), "the client ended: {}", String::from_utf8_lossy(&b.download("/run/client.log")));
                let now = acknowledged(&journal(b));
                if now >= enough { Ok(()) } else { Err(now) }
            });
            enough
        };
        for _ in 0..2 {
            let enough = more(b, BEFORE);
            wait_until("a point that holds them", || {
                let held = cuts(b).last().map_or(0, |cut| cut.must(&journal(b)));
                if held >= enough { Ok(()) } else { Err(held) }
            });
        }
        more(b, AFTER);
        let blocks = a.cut_power(&mut Rng(23), 4);
        assert!(blocks > 0, "nothing was in any cache: nothing is proved");
        b.run("killall psql"); // it waits for a server that is gone
        b.wait_for_end(asking);
        let journal = journal(b);
        println!("{} transactions were acknowledged at A; the power cut lost {blocks} blocks", acknowledged(&journal));
        journal
    }

    /// B takes over, once A's silence is noticed: its receiver promotes the standby, which its daemon protects in place of A's, and the
    /// database on it has what the newest point holds.
    fn fail_over(&mut self, journal: &[Transaction]) -> TakenOver {
        let b = self.gateway.guest();
        wait_until("A's silence to be noticed", || {
            let plan = json(b, &format!("{RECEIVER} failover host1/default --plan"));
            if plan["connected_from"].is_null() { Ok(()) } else { Err(plan.to_string()) }
        });
        let done = json(b, &format!("{RECEIVER} failover host1/default --yes"));
        assert_eq!((&done["stage"], &done["members"][0]["state"]), (&"promoted".into(), &"promoted".into()), "{done:#}");
        let cuts = cuts(b);
        let held = cuts.last().filter(|cut| cut.id == done["point"]["id"]).expect("the newest point");
        let (must, may) = (held.must(journal), held.may(journal));
        let points = cuts.iter().filter(|cut| cut.must(journal) > 0).count();
        assert!(must >= 2 * BEFORE && points >= 2, "{must} transactions are in the newest of {points} points");

        prepare(b, "host2", "stand_in_for = \"host1\"");
        let daemon = start_daemon(b);
        let token = self.gateway.token();
        let b = self.gateway.guest();
        b.run(&format!("{CLI} pair '{token}' && {RECEIVER} failover host1/default --stand-in host2"));
        b.run(&format!("{CLI} volume add data --backing {} --tap ublk", self.standby));
        wait_for_state(b, "forked");
        b.run(&format!("{CLI} volume resync data --accept forked"));
        start_database(b, &self.toolbox, &self.address_b);
        let transactions = count(b, &self.toolbox);
        println!(
            "B has {transactions}: {must} had been acknowledged, and {may} begun, at the cut of the newest of {points} points; promoted in {} ms",
            done["rto_ms"]
        );
        assert!((must..=may).contains(&transactions), "{transactions} transactions at B; {must} were acknowledged, {may} begun");
        TakenOver { transactions, daemon }
    }

    /// B goes on from what it has, with transactions and with rows that are large.
    fn work_at_b(&mut self, from: u64) {
        let b = self.gateway.guest();
        b.run(&format!("rm {JOURNAL}"));
        b.run(&client(&self.toolbox, &self.address_b, from + 1, Some(from + AT_B)));
        let bytes = "string_agg(decode(md5(n || '-' || i), 'hex'), ''::bytea ORDER BY i)";
        let rows = format!("generate_series(1, {BALLAST_ROWS}) n, generate_series(1, {}) i", BALLAST_BYTES / 16);
        let insert = format!(
            "INSERT INTO ballast SELECT n, md5(bytes), bytes FROM (SELECT n, {bytes} AS bytes FROM {rows} GROUP BY n) made"
        );
        ask(b, &self.toolbox, &insert);
        ask(b, &self.toolbox, "CHECKPOINT");
        b.run("sync");
    }

    /// The power of A is back. Its daemon finds that it was failed over, and publishes nothing.
    fn revive(&mut self) -> (Guest, u32) {
        let mut a = self.host.boot();
        self.toolbox.open(&mut a);
        let state = a.disk("state");
        a.run(&format!("mkdir -p /state && mount -t ext4 {state} /state"));
        let daemon = start_daemon(&mut a);
        wait_for_state(&mut a, "fenced");
        let said = a.attempt(&format!("{CLI} status --check"));
        assert!(said.code == NOT_ADVANCING && said.stdout.starts_with("NOT ADVANCING"), "{said:?}");
        for words in
            ["volume data: another copy of this volume was promoted", "farside failback default", "farside explain fenced"]
        {
            assert!(said.stdout.contains(words), "{said:?}");
        }
        (a, daemon)
    }

    /// What differs comes back to A, which follows then.
    fn fail_back(&mut self, a: &mut Guest) {
        let b = self.gateway.guest();
        wait_for_group(b, "everything at B to be published", is_quiet);
        let before = self.host.disk_content("data");
        let failback = a.start_command(&format!("exec {CLI} failback default --yes"), "/run/failback.log");
        let now = follows(a, b);
        a.wait_for_end(failback);
        a.run("grep -q ', and follow$' /run/failback.log");
        let after = self.gateway.disk_content("standby");
        assert!(self.host.disk_content("data") == after, "A follows, and is not what B has");
        let changed = difference(&before, &after);
        let of = |field: &str| now[field].as_u64().unwrap_or_else(|| panic!("{field} in {now}"));
        let (received, written) = (of("received_bytes"), of("written_bytes"));
        println!(
            "failback: {received} bytes came over the network and {written} were written for {changed} that differ (x {:.3} and x {:.3}); {} kept of A",
            received as f64 / changed as f64,
            written as f64 / changed as f64,
            of("kept_bytes")
        );
        let incompressible = BALLAST_ROWS * BALLAST_BYTES;
        assert!(received > incompressible && changed > incompressible, "more than that is new");
        assert!(received * 10 <= changed * 11, "{received} bytes came over the network for {changed} that differ");
        assert!(written * 10 <= changed * 11, "{written} bytes were written for {changed} that differ");
    }

    /// B works on, then stops in order; A has all of it, serves it, and takes the history back.
    fn cut_over(&mut self, a: &mut Guest, taken: &TakenOver) -> u64 {
        let b = self.gateway.guest();
        let all = taken.transactions + AT_B + WHILE_A_FOLLOWS;
        b.run(&client(&self.toolbox, &self.address_b, taken.transactions + AT_B + 1, Some(all)));
        assert_eq!(count(b, &self.toolbox), all);
        stop_database(b, &self.toolbox);
        follows(a, b);
        stop_daemon(b, taken.daemon);
        a.run(&format!("{CLI} failback default --finish"));
        wait_for_group(a, "the history to be taken back", is_quiet);
        a.run(&format!("{CLI} volume verify data"));
        let (at_a, at_b) = (self.host.disk_content("data"), self.gateway.disk_content("standby"));
        let digests = [at_a, at_b, self.gateway.restore("data", "latest")].map(|content| md5_of(&content));
        assert!(digests.iter().all(|digest| *digest == digests[0]), "A, B and the newest point differ: {digests:?}");
        start_database(a, &self.toolbox, &self.address_a);
        assert_eq!(count(a, &self.toolbox), all, "transactions are lost");
        let sound = format!("SELECT count(*) FROM ballast WHERE md5(bytes) = sum AND length(bytes) = {BALLAST_BYTES}");
        assert_eq!(ask(a, &self.toolbox, &sound).trim(), BALLAST_ROWS.to_string());
        all
    }

    /// A works, B may publish nothing any more and lets go of the volume, and its disk is the standby again.
    fn begin_anew(&mut self, a: &mut Guest, all: u64) {
        let b = self.gateway.guest();
        b.run(&client(&self.toolbox, &self.address_a, all + 1, Some(all + AFTER)));
        start_daemon(b);
        wait_for_group(b, "B to be refused", |group| group.to_string().contains("no failover lets it stand in for that one"));
        b.run(&format!("{CLI} volume remove data --yes"));
        assert_eq!(count(a, &self.toolbox), all + AFTER);
        stop_database(a, &self.toolbox);
        wait_for_group(a, "everything at A to be published", is_quiet);
        follows_again(b);
        assert!(self.host.disk_content("data") == self.gateway.disk_content("standby"), "the standby is not what A has");
    }

    /// What A had acknowledged, and no point held, is not lost either: A kept it, as a branch, before its disk was overwritten. B opens that
    /// over the point that it took over, and a database starts on it.
    fn open_the_branch(&mut self, a: &mut Guest, journal: &[Transaction]) {
        let kept = json(a, &format!("{CLI} branch list"))[0].clone();
        assert!(kept["whole"] == true && kept["trouble"].is_null(), "{kept:#}");
        let text = |of: &Value| of.as_str().unwrap_or_else(|| panic!("text in {kept:#}")).to_owned();
        let b = self.gateway.guest();
        for file in ["data", "lock", "map", "overlay.json"] {
            let content = a.download(&format!("{}/data/{file}", text(&kept["path"])));
            b.upload(&format!("{BRANCH}/{file}"), &content, 0o600);
        }
        let open = format!("{RECEIVER} point open host1/default/data {} --store /store/store", text(&kept["over"]["id"]));
        let opened =
            b.start_command(&format!("cd /run && exec {open} --writable --overlay {BRANCH} --device --json"), "/run/branch.log");
        let device = wait_until("the branch to be open", || {
            let said = String::from_utf8(b.download("/run/branch.log")).expect("text");
            assert!(b.lives(opened), "{said}");
            serde_json::from_str::<Value>(&said).map(|opened| text(&opened["device"])).map_err(|_| said)
        });
        mount(b, &device);
        start_server(b, &self.toolbox, "");
        let found = count(b, &self.toolbox);
        let (acknowledged, begun) = (acknowledged(journal), journal.len() as u64);
        println!("the branch of A has {found}, of {acknowledged} that were acknowledged");
        assert!((acknowledged..=begun).contains(&found), "{found} transactions; {acknowledged} were acknowledged, {begun} begun");
        stop_database(b, &self.toolbox);
        b.run(&format!("kill {opened}"));
        b.wait_for_end(opened);
    }
}

#[test]
fn a_database_goes_to_the_other_site_when_the_power_is_cut_and_comes_back_whole() {
    let (mut sites, a) = Sites::boot();
    let journal = sites.work_until_the_power_goes(a);
    let taken = sites.fail_over(&journal);
    sites.work_at_b(taken.transactions);
    let (mut a, daemon) = sites.revive();
    sites.fail_back(&mut a);
    let all = sites.cut_over(&mut a, &taken);
    sites.begin_anew(&mut a, all);
    sites.open_the_branch(&mut a, &journal);
    a.run(&format!("{CLI} volume remove data --yes"));
    stop_daemon(&mut a, daemon);
    a.shut_down();
    sites.gateway.guest().run("killall farsided && while pidof farsided; do :; done >/dev/null");
    sites.gateway.shut_down();
}
