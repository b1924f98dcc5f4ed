//! `farside store lock`, `locks` and `unlock`: what of a store in a bucket nobody takes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use farside_control::{Address, PointRef};
use farside_objects::{Address as BucketAddress, Credentials, Location, Lock, OpenError};
use farside_region::Slot;
use farside_store::{StoreError, StoreReader};
use serde::Serialize;

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::print::{self, Look, Table};
use crate::{confirm, store};

/// A line for so many objects.
const SAID_EVERY: u64 = 1000;

const RIGHTS: &str = "the bucket must have S3's Object Lock (asked for when it is made), and the keys the right to list and read versions, and to put and \
                      read legal holds: see operate.md, \"Against somebody who has the keys\"";

/// `farside store lock`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A lock is a legal hold (S3's Object Lock) on every object that the point needs, each by the version
that is there now, and on a list of them, whose digest is the lock's name. It does not end by
itself, and is no part of the group's retention: the gateway may give the point up, and somebody who
has the gateway's keys may delete and overwrite whatever he likes. With the name it is read as it is
now (that point: of others only what they share with it is there). Verifying it tells that it is whole:

  farside point verify 42-9f3c2a1b --of web1/db --store 's3://BUCKET/PREFIX?lock=NAME'
  farside restore web1/db/data --point 42-9f3c2a1b --store 's3://BUCKET/PREFIX?lock=NAME' --to FILE

Take other keys for it than the gateway's: those need no right to put or to end holds.

Examples:
  farside store lock s3://points/site-1 --of web1/db --point latest --case \"audit 2026-17\"
  farside store locks s3://points/site-1
  farside store unlock s3://points/site-1 00112233445566778899aabbccddeeff")]
pub(crate) struct LockArgs {
    /// The store: s3://BUCKET/PREFIX, perhaps as it was (?as_of=…).
    url: String,
    /// Of which group (or volume: the whole point is locked).
    #[arg(long, value_name = "SOURCE/GROUP")]
    of: Address,
    /// Which point of it.
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    point: PointRef,
    /// Why, for whoever wonders later.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    case: String,
}

/// What `farside store lock` and `unlock` say.
#[derive(Debug, Serialize)]
struct Said<'s> {
    #[serde(flatten)]
    lock: &'s Lock,
    /// By which it is read.
    store: String,
    /// Objects that other locks have as well.
    kept: u64,
}

fn bucket_of(url: &str) -> Result<BucketAddress, Failure> {
    match store::location_of(url)? {
        Location::Bucket(address) => Ok(address),
        Location::Dir(path) => {
            let message = format!("{} is a directory: locks are made in buckets", path.display());
            Err(Failure::new(Exit::Usage, message, "farside point hold, on the gateway, keeps a point in any store"))
        }
    }
}

/// With what the service must let us do.
fn explained(error: impl Into<OpenError>) -> Failure {
    let error = error.into();
    let is_refusal = matches!(&error, OpenError::Store(StoreError::Remote { .. } | StoreError::RemoteDenied { .. }));
    let mut failure = Failure::from(error);
    if is_refusal {
        failure.what_to_do = RIGHTS.to_owned();
    }
    failure
}

/// Says now and then how far it is.
fn counting(global: &Global, what: &'static str) -> impl Fn() + Send + Sync + 'static {
    let (done, is_silent) = (Arc::new(AtomicU64::new(0)), global.json);
    move || {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if !is_silent && done.is_multiple_of(SAID_EVERY) {
            eprintln!("{done} objects {what}");
        }
    }
}

/// `farside store lock`.
pub(crate) fn run(global: &Global, args: &LockArgs) -> Result<(), Failure> {
    let address = bucket_of(&args.url)?;
    let past = address.past(&Credentials::find(None)?).map_err(explained)?;
    let (group, point) = {
        let store = StoreReader::open_bucket(past.backend())?;
        let (group, point) = store::one_point(&store, args.point, Some(&args.of))?;
        (group.names().clone(), point)
    };
    // What was asked for to find it is of others, too.
    past.forget_touched();
    StoreReader::open_bucket(past.backend())?.ask_for_all_of(&group, Slot(point.id.slot))?;
    let (objects, bytes) = past.touched();
    if !global.json {
        eprintln!("locking {objects} objects ({}) that point {} of {group} needs", print::bytes(bytes), point.id);
    }
    let of = (group.to_string(), point.id.to_string());
    let lock = past.lock(of, args.case.clone(), counting(global, "are locked")).map_err(explained)?;
    let store = address.by_lock(&lock.id).to_string();
    if global.json {
        return print::json(&Said { lock: &lock, store, kept: 0 });
    }
    print::out(&format!(
        "point {} of {}, cut {}, is locked as {}: whatever is deleted or overwritten from now on, it is read by\n  --point {} --store '{store}'\n",
        lock.point,
        lock.group,
        print::time(point.cut_wall),
        lock.id,
        lock.point
    ))
}

/// `farside store locks`.
pub(crate) fn list(global: &Global, url: &str) -> Result<(), Failure> {
    let (locks, unread) = bucket_of(url)?.locks(&Credentials::find(None)?)?.list().map_err(explained)?;
    unread.iter().for_each(|why| eprintln!("farside: a lock that cannot be read: {why}"));
    if global.json {
        return print::json(&locks);
    }
    if locks.is_empty() {
        return print::out("no lock is held there; `farside store lock` makes one\n");
    }
    let mut table = Table::new(&["LOCK", "POINT", "OF", "MADE", "OBJECTS", "BYTES", "CASE"]);
    for lock in &locks {
        let (made, objects) = (print::time(lock.made), lock.objects.to_string());
        table
            .row([&lock.id, &lock.point, &lock.group, &made, &objects, &print::bytes(lock.bytes), &lock.case].map(String::clone));
    }
    print::out(&table.fit(Look::of_stdout()))
}

/// `farside store unlock`.
pub(crate) fn unlock(global: &Global, url: &str, id: &str, yes: bool) -> Result<(), Failure> {
    let address = bucket_of(url)?;
    let locks = address.locks(&Credentials::find(None)?)?;
    let none = || {
        let message = format!("no lock {id} is held there");
        Failure::new(Exit::NotFound, message, "see which there are: farside store locks")
    };
    let lock = locks.list().map_err(explained)?.0.into_iter().find(|lock| lock.id == id).ok_or_else(none)?;
    if !global.json {
        let case = if lock.case.is_empty() { String::new() } else { format!(", for {}", lock.case) };
        eprintln!("lock {id} keeps point {} of {}, made {}{case}", lock.point, lock.group, print::time(lock.made));
    }
    confirm::confirm("End it?", "nothing was changed", yes)?;
    let (lock, kept) = locks.end(id, counting(global, "are held no more")).map_err(explained)?.ok_or_else(none)?;
    if global.json {
        return print::json(&Said { lock: &lock, store: address.to_string(), kept });
    }
    let rest = match kept {
        0 => String::new(),
        kept => format!("; {kept} are held by other locks"),
    };
    print::out(&format!("lock {id} has ended: {} objects are held no more{rest}\n", lock.objects - kept))
}
