//! Applications on a file system at `/mnt`, as a power cut meets them, and each one's own judgement of what it left.
//!
//! A host starts one and keeps a list of what it was promised; whoever restores a copy asks the application whether that copy
//! keeps the promises. Each writes a line to [`PROMISED`] for whatever was synced.

use std::fmt::Write as _;

use farside_tests::postgres::{ACCOUNTS, AGREED, SUMS, transaction};
use farside_tests::verify::Rng;

use crate::protected::{Host, PROMISED};
use crate::toolbox::{AT, Toolbox};
use crate::{Guest, Output};

const CLIENTS: u64 = 2;
/// Little memory, and so few and small files of its log that there is something else on the disk, too.
const SERVER: &str = "-k /run/pg -c listen_addresses= -c shared_buffers=8MB -c max_wal_size=6MB -c min_wal_size=2MB \
    -c checkpoint_timeout=30s -c max_connections=8 -c wal_level=minimal -c max_wal_senders=0 -c huge_pages=off -c jit=off";
const CLIENT: &str = "-X -q -A -t -v ON_ERROR_STOP=1 -h /run/pg -d postgres";

/// fio's runs go round so many files, and so many of the newest are read again. More than that are not begun in between.
const FIO_FILES: u64 = 16;
const FIO_READ: u64 = 3;
/// How many there are at most before the power goes.
const FIO_RUNS: u64 = 240;
/// Before it begins with the first it prepares all that one fio was told of, which takes an emulated processor seconds if they are many.
const FIO_RUNS_AT_ONCE: usize = 12;
const FIO: &str = "--rw=randwrite --bs=4k --size=64k --ioengine=libaio --iodepth=4 --thread --verify=pattern --verify_fatal=1 --verify_state_save=0";

/// One run of fio. It has a pattern of its own: an older one's is not taken for it.
fn fio_run(n: u64) -> String {
    format!(" --name=run{n} --filename=/mnt/fio.{} --randseed={n} --verify_pattern=0x{}%o", n % FIO_FILES, 10_000_000 + n)
}

/// What writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// `farside-vm-load`.
    Records,
    /// PostgreSQL, with a ledger in `/mnt/pg`.
    Postgres,
    /// fio, which writes a file, syncs it, and goes on with the next one.
    Fio,
}

impl Application {
    /// How many promises are worth a cut. A run of fio takes an emulated processor ten seconds or more.
    pub fn enough(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Records => 5 + rng.below(15),
            Self::Postgres => 3 + rng.below(12),
            Self::Fio => 1 + rng.below(3),
        }
    }

    /// Starts it at `/mnt`, on what an earlier one left there.
    ///
    /// # Panics
    /// When it does not come up: nothing was lost that may be.
    pub fn start(self, host: &mut Host, toolbox: &Toolbox) {
        match self {
            Self::Records => {
                host.guest.run("rm -rf /mnt/records && mkdir /mnt/records && sync");
                host.start_load_in("/mnt/records");
            }
            Self::Postgres => {
                start_server(&mut host.guest, toolbox, "");
                let done = "SELECT coalesce(max(n), 0) FROM generate_series(0, 1) c LEFT JOIN history ON client = c GROUP BY c ORDER BY c";
                let done = ask(&mut host.guest, toolbox, done);
                let mut all = String::new();
                for (client, done) in done.lines().enumerate() {
                    let _ = writeln!(all, "sh /run/client {client} {done} &");
                }
                host.guest.upload("/run/client", client_script(toolbox).as_bytes(), 0o755);
                host.start_application(&format!("{all} wait"));
            }
            Self::Fio => {
                let writes = "--direct=1 --end_fsync=1 --do_verify=0 --stonewall";
                let run = |n| format!("{} --exec_postrun='(echo {n} >>{PROMISED})'", fio_run(n));
                let runs: Vec<String> = (1..=FIO_RUNS).map(run).collect();
                let fio = |runs: &[String]| {
                    format!("/usr/bin/fio --name=global {FIO} {writes}{} >fio.out 2>&1 || exit\n", runs.concat())
                };
                let all: String = runs.chunks(FIO_RUNS_AT_ONCE).map(fio).collect();
                host.guest.upload("/run/fio", format!("cd /run\n{all}").as_bytes(), 0o755);
                host.start_application(&format!("chroot {AT} /bin/sh /run/fio; cat /run/fio.out"));
            }
        }
    }

    /// A copy of the file system at `/mnt` keeps what was promised, and finds nothing wrong with itself.
    ///
    /// # Panics
    /// With what is wrong.
    pub fn judge(self, guest: &mut Guest, toolbox: &Toolbox, promised: &str) {
        match self {
            Self::Records => {
                guest.upload(PROMISED, promised.as_bytes(), 0o644);
                guest.run(&format!("farside-vm-load check /mnt/records {PROMISED}"));
            }
            Self::Postgres => judge_ledger(guest, toolbox, promised),
            Self::Fio => {
                let newest = promised.lines().filter_map(|line| line.parse::<u64>().ok()).max().expect("a run of fio");
                let runs: String = (newest.saturating_sub(FIO_READ - 1).max(1)..=newest).map(fio_run).collect();
                guest.run(&format!("chroot {AT} /usr/bin/fio --name=global {FIO} --verify_only=1{runs}"));
            }
        }
    }
}

/// Puts a ledger on the file system at `/mnt`.
///
/// # Panics
/// When there is no room.
pub fn lay_ledger(guest: &mut Guest) {
    guest.run(&format!("cp -a {AT}/ledger /mnt/pg && sync"));
}

/// Starts PostgreSQL on a ledger, with `more` options than all have. The server that wrote it is not here, whatever its lock says.
///
/// # Panics
/// When it does not come up.
pub fn start_server(guest: &mut Guest, toolbox: &Toolbox, more: &str) {
    let options = format!("start --wait --timeout 180 --silent -D /mnt/pg -l /run/pg/log -o '{SERVER} {more}'");
    let start = toolbox.postgres("pg_ctl", &options);
    guest.run(&format!("rm -f /mnt/pg/postmaster.pid; {start} >/run/pg/start 2>&1 </dev/null || {{ cat /run/pg/*; false; }}"));
}

/// Ends it in order.
///
/// # Panics
/// When it does not end.
pub fn stop_server(guest: &mut Guest, toolbox: &Toolbox) {
    guest.run(&toolbox.postgres("pg_ctl", "stop --wait --timeout 180 --silent -m fast -D /mnt/pg"));
}

/// What it answers to a query, in which there are no double quotes.
///
/// # Panics
/// When it refuses.
pub fn ask(guest: &mut Guest, toolbox: &Toolbox, query: &str) -> String {
    guest.run(&toolbox.postgres("psql", &format!("{CLIENT} -c \"{query}\"")))
}

/// Sends transactions for ever, from the one after `$2`, as client `$1`, and writes down which were acknowledged.
fn client_script(toolbox: &Toolbox) -> String {
    let others = ACCOUNTS - 1;
    let transactions = (0..CLIENTS).map(|client| {
        let sql = transaction(client, "$n", "$((n % 1000))", "$from", "$to");
        format!("{client}) echo \"{sql}\";;\n")
    });
    format!(
        "client=$1; n=$2\n\
         while :; do\n\
             n=$((n + 1)); a=$((n * 7919 % {others})); b=$((n * 104729 % {others}))\n\
             if [ $a -lt $b ]; then from=$a; to=$((b + 1)); else from=$b; to=$((a + 1)); fi\n\
             case $client in\n{}esac\n\
         done | {} | while read -r done; do echo \"$client $done\" >>{PROMISED}; done\n",
        transactions.collect::<String>(),
        toolbox.postgres("psql", CLIENT),
    )
}

/// It recovers; sums agree, everything acknowledged is there, indexes and tables agree, and every page's checksum is right.
fn judge_ledger(guest: &mut Guest, toolbox: &Toolbox, promised: &str) {
    start_server(guest, toolbox, "");
    let said = ask(guest, toolbox, &format!("{SUMS}; SELECT client, count(*) FROM history GROUP BY client"));
    let (sums, found) = said.split_once('\n').expect("two answers");
    assert_eq!(sums, AGREED, "the sums do not agree");
    for client in 0..CLIENTS {
        let of_client = |line: &str, between: char| {
            let (name, number) = line.split_once(between)?;
            (name.parse() == Ok(client)).then(|| number.parse::<u64>().ok())?
        };
        let promised = promised.lines().filter_map(|line| of_client(line, ' ')).max().unwrap_or(0);
        let found = found.lines().find_map(|line| of_client(line, '|')).unwrap_or(0);
        assert!(found >= promised, "{promised} transactions of client {client} were acknowledged, {found} are there");
    }
    let check: Output = guest.attempt(&toolbox.postgres("pg_amcheck", "-h /run/pg -d postgres --heapallindexed -t public.*"));
    assert!(check.code == 0 && check.stdout.is_empty() && check.stderr.is_empty(), "pg_amcheck: {check:?}");
    stop_server(guest, toolbox);
    guest.run(&toolbox.postgres("pg_checksums", "--check -D /mnt/pg"));
}
