//! `farside store cost`: what a store in a bucket asks of the service in a month, what it holds, and what that costs.
//!
//! A model, and no promise: requests are those that `crates/store` counts in its tests (`requests_tests.rs`), and what is stored
//! follows from how long a part is needed by some retained point. Nothing is compacted yet, so a part stays as long as one granule of it
//! is needed. Writes are taken to fall anywhere in the working set with the same chance. No bucket is changed, and none read
//! without `--store`.

use std::collections::BTreeMap;
use std::path::Path;

use farside_control::{Address, PointMember};
use farside_store::{GroupReader, PointFilter, find_points};
use serde::{Deserialize, Serialize};

use crate::args::{CostArgs, Global};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::print::{self, Table};
use crate::store;

/// The prices that are built in, and installed as an example.
const PRICES: &str = include_str!("../prices.toml");

const DAY_S: f64 = 86_400.0;
const MONTH_S: f64 = 30.0 * DAY_S;
const GIB: f64 = (1_u64 << 30) as f64;
const GRANULE_BYTES: f64 = 4096.0;
/// The largest pack of parts, which is one object; and the largest part.
const PACK_BYTES: f64 = (64_u64 << 20) as f64;
/// What one range of a restore brings: a region, less what compression saves.
const REGION_BYTES: f64 = (4_u64 << 20) as f64;
/// Records for each checkpoint, which costs so many requests more: writes, reads, deletions.
const CHECKPOINT: (f64, f64, f64, f64) = (4096.0, 3.0, 8.0, 1.0);
/// Retention looks so often whether there is something to give up.
const PRUNED_EVERY_S: f64 = 5.0;
/// A writer looks so often whether the store is still the one that it was.
const DESCRIPTION_EVERY_S: f64 = 30.0;
/// And while something waits to be deleted so often who reads: a write, a listing, a deletion.
const READERS_EVERY_S: f64 = 600.0;
/// What was given up is deleted so much later.
const DELETED_AFTER_S: f64 = DAY_S;
/// Points of a store from which its churn is taken.
const SAMPLED_POINTS: usize = 1000;

/// What is known, or taken to be so.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Plan {
    /// What the volumes change in a day.
    churn_bytes_per_day: f64,
    /// What is stored for a byte that changed.
    stored_per_byte: f64,
    /// What the volumes hold.
    size_bytes: f64,
    /// Of it, what is written again and again.
    working_set_bytes: f64,
    /// Volumes that change in every point: each has parts of its own.
    volumes: f64,
    every_s: f64,
    publish_every_s: f64,
    /// Points so far apart, up to that age.
    keep_s: Vec<(f64, f64)>,
    /// Restores of everything in a month.
    restores: f64,
}

/// What a month is.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Month {
    points: f64,
    points_kept: f64,
    publications: f64,
    put: f64,
    get: f64,
    list: f64,
    delete: f64,
    stored_bytes: f64,
    in_bytes: f64,
    out_bytes: f64,
}

/// What a service charges.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    #[serde(default)]
    note: String,
    storage_gib_month: f64,
    put_1000: f64,
    get_1000: f64,
    list_1000: f64,
    delete_1000: f64,
    out_gib: f64,
    #[serde(default)]
    in_gib: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prices {
    date: String,
    currency: String,
    service: BTreeMap<String, Service>,
}

/// A month's bill of one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bill {
    service: String,
    note: String,
    storage: f64,
    requests: f64,
    transfer: f64,
    total: f64,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Cost {
    plan: Plan,
    month: Month,
    prices_of: String,
    currency: String,
    bills: Vec<Bill>,
}

/// `farside store cost`.
pub(crate) fn run(global: &Global, args: &CostArgs) -> Result<(), Failure> {
    let prices = Prices::read(args.prices.as_deref())?;
    let plan = Plan::of(args)?;
    let month = plan.month();
    let bills: Vec<Bill> = prices.service.iter().map(|(name, service)| service.bill(name, &month)).collect();
    if global.json {
        return print::json(&Cost { plan, month, prices_of: prices.date, currency: prices.currency, bills });
    }
    print::out(&text(&plan, &month, &prices, &bills, args.prices.is_none()))
}

impl Prices {
    fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let text = match file {
            Some(file) => std::fs::read_to_string(file).or_fail(file.display())?,
            None => PRICES.to_owned(),
        };
        let name = file.map_or_else(|| "the built-in table".to_owned(), |file| file.display().to_string());
        let what_to_do = "an example with all its fields is /usr/share/doc/farside/examples/prices.toml";
        let wrong = |why: String| Failure::new(Exit::Usage, format!("{name} is no table of prices: {why}"), what_to_do);
        let prices: Self = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        for (service, prices) in &prices.service {
            let Service { storage_gib_month, put_1000, get_1000, list_1000, delete_1000, out_gib, in_gib, .. } = prices;
            let all = [storage_gib_month, put_1000, get_1000, list_1000, delete_1000, out_gib, in_gib];
            if !all.iter().all(|price| price.is_finite() && **price >= 0.0) {
                return Err(wrong(format!("a price of {service} is not a number from 0 on")));
            }
        }
        match prices.service.is_empty() {
            true => Err(wrong("it names no service".to_owned())),
            false => Ok(prices),
        }
    }
}

impl Service {
    fn bill(&self, name: &str, month: &Month) -> Bill {
        let storage = month.stored_bytes / GIB * self.storage_gib_month;
        let requests = (month.put * self.put_1000
            + month.get * self.get_1000
            + month.list * self.list_1000
            + month.delete * self.delete_1000)
            / 1000.0;
        let transfer = (month.out_bytes * self.out_gib + month.in_bytes * self.in_gib) / GIB;
        Bill {
            service: name.to_owned(),
            note: self.note.clone(),
            storage,
            requests,
            transfer,
            total: storage + requests + transfer,
        }
    }
}

impl Plan {
    fn of(args: &CostArgs) -> Result<Self, Failure> {
        let usage = |message: &str, what_to_do: &str| Failure::new(Exit::Usage, message, what_to_do);
        let every_s = args.every.as_secs_f64();
        let publish_every_s = args.publish_every.unwrap_or(farside_receiver::PUBLISH_EVERY).as_secs_f64().max(every_s);
        let mut plan = Self {
            churn_bytes_per_day: 0.0,
            stored_per_byte: args.stored_percent as f64 / 100.0,
            size_bytes: 0.0,
            working_set_bytes: 0.0,
            volumes: f64::from(args.volumes),
            every_s,
            publish_every_s,
            keep_s: args.keep.pairs().map(|(every, keep)| (every.as_secs_f64().max(every_s), keep.as_secs_f64())).collect(),
            restores: f64::from(args.restores),
        };
        if plan.keep_s.is_empty() {
            return Err(usage(
                "--keep says that nothing is kept",
                "say for example --keep \"every 1m keep 1d, every 1h keep 30d\"",
            ));
        }
        if let Some(url) = &args.store {
            plan.measure(url, args.of.as_ref())?;
        }
        // What is said comes before what was found.
        if let Some(churn) = args.churn {
            plan.churn_bytes_per_day = churn.0;
        }
        if let Some(size) = args.size {
            plan.size_bytes = size as f64;
        }
        if plan.churn_bytes_per_day <= 0.0 || plan.size_bytes <= 0.0 {
            return Err(usage("how much changes, and of how much?", "say --churn 20GiB/d --size 500GiB, or --store URL"));
        }
        plan.working_set_bytes =
            args.working_set.map_or(plan.size_bytes, |bytes| bytes as f64).min(plan.size_bytes).max(GRANULE_BYTES);
        if let Some(budget) = args.publish_budget {
            plan.stretch(f64::from(budget.requests) * MONTH_S / budget.per.as_secs_f64())?;
        }
        Ok(plan)
    }

    /// Publishes as seldom as a month's budget of write requests wants.
    fn stretch(&mut self, put: f64) -> Result<(), Failure> {
        while self.month().put > put {
            self.publish_every_s *= 1.02;
            if self.publish_every_s > DAY_S {
                let message = "the budget is too small, however seldom is published";
                let what_to_do = "raise --publish-budget, or make points further apart with --every";
                return Err(Failure::new(Exit::Usage, message, what_to_do));
            }
        }
        Ok(())
    }

    /// Takes churn, size and volumes from the newest points of a store. Their layers are in stored bytes, which stand for changed ones
    /// by the share that is stored.
    fn measure(&mut self, url: &str, of: Option<&Address>) -> Result<(), Failure> {
        let places = store::places(&store::open(&store::location_of(url)?)?, of)?;
        let (mut per_day, mut size, mut volumes) = (0.0, 0.0, 0.0);
        for (group, volume) in &places {
            let Some(found) = Sampled::of(group, &PointFilter { volume: *volume, ..PointFilter::default() }) else { continue };
            per_day += found.stored_per_day;
            size += found.size_bytes;
            volumes += found.volumes;
        }
        if size == 0.0 {
            let message = format!("{url} has too few points to tell how much changes");
            return Err(Failure::new(Exit::NotFound, message, "say it: --churn 20GiB/d --size 500GiB"));
        }
        self.churn_bytes_per_day = per_day / self.stored_per_byte;
        self.size_bytes = size;
        self.volumes = volumes;
        Ok(())
    }

    /// What a month is, once things have been so for as long as points are kept.
    fn month(&self) -> Month {
        let (points, publications) = (MONTH_S / self.every_s, MONTH_S / self.publish_every_s);
        let in_bytes = self.churn_bytes_per_day * 30.0 * self.stored_per_byte;
        // A publication has one record object for all points of its time, and packs for their parts.
        let parts = publications * (in_bytes / publications / PACK_BYTES).ceil().max(1.0);
        let prunes = publications.min(MONTH_S / PRUNED_EVERY_S);
        let records = publications + prunes;
        let checkpoints = records / CHECKPOINT.0;
        let looks = MONTH_S / READERS_EVERY_S;
        let ranges = (self.size_bytes / REGION_BYTES).ceil();
        Month {
            points,
            points_kept: self.points_kept(),
            publications,
            put: parts + records + checkpoints * CHECKPOINT.1 + looks,
            get: records + checkpoints * CHECKPOINT.2 + MONTH_S / DESCRIPTION_EVERY_S + self.restores * ranges,
            list: looks,
            // In the end records go, but for those of what is kept.
            delete: parts + records + checkpoints * CHECKPOINT.3 + looks,
            stored_bytes: self.stored_bytes(),
            in_bytes,
            out_bytes: self.restores * self.size_bytes * self.stored_per_byte,
        }
    }

    fn points_kept(&self) -> f64 {
        let mut younger = 0.0;
        let tier = |&(every, keep): &(f64, f64)| {
            let count = (keep - younger) / every;
            younger = keep;
            count
        };
        self.keep_s.iter().map(tier).sum()
    }

    /// What is never written again, and every part that some point or the newest content still needs.
    fn stored_bytes(&self) -> f64 {
        let rate = self.churn_bytes_per_day / DAY_S;
        // How often a granule is written.
        let per_granule = rate / self.working_set_bytes;
        let granules = (rate * self.every_s / self.volumes / GRANULE_BYTES).clamp(1.0, PACK_BYTES / GRANULE_BYTES);
        // Whether a part is needed when each of its granules is there with this chance.
        let alive = |chance: f64| 1.0 - (1.0 - chance.clamp(0.0, 1.0)).powf(granules);
        let (mut bytes_s, mut younger) = (0.0, 0.0);
        for &(every, keep) in &self.keep_s {
            // The next point that is kept comes at any time up to `every` later.
            let share = mean(0.0, every, |gap| alive((-per_granule * gap).exp()));
            bytes_s += share * (keep - younger);
            younger = keep;
        }
        bytes_s += DELETED_AFTER_S;
        // And what is older than all points, and still the newest content.
        let rest = (granules.ln() + 20.0) / per_granule;
        if rest > younger {
            bytes_s += mean(younger, rest, |age| alive((-per_granule * age).exp())) * (rest - younger);
        }
        let still = self.size_bytes - self.working_set_bytes;
        (still + rate * bytes_s) * self.stored_per_byte
    }
}

/// The mean of a function that falls.
fn mean(from: f64, to: f64, function: impl Fn(f64) -> f64) -> f64 {
    const STEPS: u32 = 2000;
    let step = (to - from) / f64::from(STEPS);
    (0..STEPS).map(|i| function(from + (f64::from(i) + 0.5) * step)).sum::<f64>() / f64::from(STEPS)
}

/// What the newest points of a group say.
struct Sampled {
    stored_per_day: f64,
    size_bytes: f64,
    volumes: f64,
}

impl Sampled {
    /// `None`: fewer than two points.
    fn of(group: &GroupReader, filter: &PointFilter) -> Option<Self> {
        // What old layers held is forgotten with them.
        let forgotten = group.state().volumes().filter_map(|(_, volume)| Some(volume.forgotten()?.slot)).max();
        let mut found = find_points(group.state(), filter, None, SAMPLED_POINTS).points;
        found.retain(|point| forgotten.is_none_or(|forgotten| point.slot >= forgotten));
        let points: Vec<_> = found.iter().map(|info| farside_receiver::point_of(group.names(), info)).collect();
        let (newest, oldest) = (points.first()?, points.last()?);
        let passed_s = newest.ledger_time_ms.checked_sub(oldest.ledger_time_ms).filter(|ms| *ms > 0)? as f64 / 1000.0;
        let wanted = |member: &&PointMember| filter.volume.is_none_or(|volume| member.volume_id == volume.to_string());
        // Of all layers in that time: retention has thinned the points, and between two of them are others. The oldest one's came before.
        let (from, until) = (found.last()?.slot, found.first()?.slot);
        let volumes = group.state().volumes().map(|(id, _)| id).filter(|id| filter.volume.is_none_or(|volume| volume == *id));
        let layers = volumes.flat_map(|id| group.state().layers_above(id, Some(from)).filter(|layer| layer.slot <= until));
        let stored: u64 = layers.map(|layer| layer.bytes).sum();
        let members: Vec<&PointMember> = newest.members.iter().filter(wanted).collect();
        Some(Self {
            stored_per_day: stored as f64 / passed_s * DAY_S,
            size_bytes: members.iter().map(|member| member.bytes as f64).sum(),
            volumes: members.len().max(1) as f64,
        })
    }
}

/// A rate as people write it: `20GiB/d`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Churn(f64);

/// Bytes per second, minute, hour or day.
pub(crate) fn parse_churn(text: &str) -> Result<Churn, String> {
    let wrong = || format!("`{text}` is no rate: use for example 20GiB/d, 500MiB/h or 1MiB/s");
    let (bytes, per) = text.split_once('/').ok_or_else(wrong)?;
    let times = match per {
        "s" => DAY_S,
        "m" | "min" => 1440.0,
        "h" => 24.0,
        "d" => 1.0,
        _ => return Err(wrong()),
    };
    let bytes = crate::args::parse_bytes(bytes).map_err(|_| wrong())?;
    Ok(Churn(bytes as f64 * times))
}

fn text(plan: &Plan, month: &Month, prices: &Prices, bills: &[Bill], built_in: bool) -> String {
    let bytes = |bytes: f64| print::bytes(bytes as u64);
    let mut text = format!(
        "{} change in a day of {} ({} of it again and again), {:.0} % of that is stored\n\
         a point every {}, published every {}; {:.0} points are kept\n\n",
        bytes(plan.churn_bytes_per_day),
        bytes(plan.size_bytes),
        bytes(plan.working_set_bytes),
        plan.stored_per_byte * 100.0,
        print::duration_ms((plan.every_s * 1000.0) as u64),
        print::duration_ms((plan.publish_every_s * 1000.0) as u64),
        month.points_kept,
    );
    let mut table = Table::new(&["A MONTH", ""]);
    for (what, count) in [("PUT", month.put), ("GET", month.get), ("LIST", month.list), ("DELETE", month.delete)] {
        table.row([what.to_owned(), format!("{count:.0}")]);
    }
    let amounts = [("written", month.in_bytes), ("read", month.out_bytes), ("stored", month.stored_bytes)];
    amounts.into_iter().for_each(|(what, amount)| table.row([what.to_owned(), bytes(amount)]));
    text.push_str(&format!("{table}\n"));
    let currency = prices.currency.as_str();
    let mut table = Table::new(&["SERVICE", "STORAGE", "REQUESTS", "TRANSFER", currency, ""]);
    for bill in bills {
        let cells = [bill.storage, bill.requests, bill.transfer, bill.total].map(|amount| format!("{amount:.2}"));
        table.row([bill.service.clone()].into_iter().chain(cells).chain([bill.note.clone()]));
    }
    text.push_str(&table.to_string());
    let where_from = match built_in {
        true => {
            "the prices are built in, as of that date, and were not looked up: check them, and use your own with --prices FILE"
        }
        false => "the prices are those of your table",
    };
    text.push_str(&format!(
        "\nPrices of {}: {where_from}.\nA model: writes fall anywhere in the working set, and a part is stored as long as one granule of it is needed.\n",
        prices.date
    ));
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command, StoreCommand};

    fn plan(words: &[&str]) -> Result<Plan, Failure> {
        let cli = Cli::try_parse_from([&["farside", "store", "cost"], words].concat()).expect("valid");
        let Command::Store(StoreCommand::Cost(args)) = cli.command else { panic!("store cost") };
        Plan::of(&args)
    }

    const USUAL: [&str; 8] =
        ["--churn", "20GiB/d", "--size", "500GiB", "--every", "5s", "--keep", "every 5s keep 10m, every 1h keep 30d"];

    #[test]
    fn requests_follow_from_publications() {
        let often = plan(&[&USUAL[..], &["--publish-every", "5s"]].concat()).expect("a plan").month();
        // 30 days of points each five seconds; a part, a record and a record that gives one up for each.
        assert_eq!((often.points, often.publications), (518_400.0, 518_400.0));
        let checkpoints = 2.0 * 518_400.0 / 4096.0;
        assert!((often.put - (3.0 * 518_400.0 + 3.0 * checkpoints + 4320.0)).abs() < 1.0, "{often:?}");
        assert_eq!((often.list, often.out_bytes), (4320.0, 0.0));
        assert!((often.points_kept - (120.0 + 30.0 * 24.0 - 1.0 / 6.0)).abs() < 0.001, "{often:?}");
        // Less often published: the same bytes, and fewer packs and records.
        let seldom = plan(&[&USUAL[..], &["--publish-every", "1m"]].concat()).expect("a plan").month();
        assert_eq!((seldom.points, seldom.publications, seldom.in_bytes), (518_400.0, 43_200.0, often.in_bytes));
        let checkpoints = 2.0 * 43_200.0 / 4096.0;
        assert!((seldom.put - (3.0 * 43_200.0 + 3.0 * checkpoints + 4320.0)).abs() < 1.0, "{seldom:?}");
        // Within a budget, and not much less often than it allows.
        let budget = plan(&[&USUAL[..], &["--publish-budget", "5000 per day"]].concat()).expect("a plan").month();
        assert!(
            budget.put <= 150_000.0 && budget.put > 145_000.0 && budget.publications < seldom.publications * 1.2,
            "{budget:?}"
        );
        let failure = plan(&[&USUAL[..], &["--publish-budget", "120 per day"]].concat()).expect_err("leases take more");
        assert!(failure.message.contains("too small"), "{}", failure.message);
        // As the gateway does it, unless it is told otherwise.
        assert_eq!(plan(&USUAL).expect("a plan").month().publications, 86_400.0);
        // More than a pack holds.
        let much = plan(&[
            "--churn",
            "100MiB/s",
            "--size",
            "1TiB",
            "--every",
            "5s",
            "--publish-every",
            "5s",
            "--keep",
            "every 5s keep 10m",
            "--stored",
            "100",
        ]);
        let much = much.expect("a plan").month();
        assert!((much.put - (8.0 + 2.0) * 518_400.0).abs() < 6000.0, "{much:?}");
        let restored = plan(&[&USUAL[..], &["--publish-every", "5s", "--restores", "2"]].concat()).expect("a plan").month();
        assert_eq!((restored.out_bytes, restored.get - often.get), (500.0 * GIB, 2.0 * 128_000.0));
    }

    #[test]
    fn what_is_stored_grows_with_what_is_kept_and_is_never_less_than_the_volume() {
        let stored = |more: &[&str], keep: &str| {
            let words =
                [&["--churn", "20GiB/d", "--size", "500GiB", "--stored", "100", "--every", "5s", "--keep", keep], more].concat();
            plan(&words).expect("a plan").month().stored_bytes
        };
        // Writes all over the volume: parts are needed for months, for what nobody has written again.
        let (day, year) = (stored(&[], "every 5s keep 1d"), stored(&[], "every 5s keep 1y"));
        assert!(day >= 500.0 * GIB && year > 2.0 * day && year > 365.0 * 20.0 * GIB, "{day} {year}");
        // A small set that is written again and again: a day of it, one until it is deleted, and what lies still.
        let hot = stored(&["--working-set", "1GiB"], "every 5s keep 1d");
        assert!((499.0 + 38.0..499.0 + 46.0).contains(&(hot / GIB)), "{}", hot / GIB);
        // With all between two points of a day overwritten, coarse points hold little of it.
        let coarse = stored(&["--working-set", "1GiB"], "every 1d keep 30d");
        let fine = stored(&["--working-set", "1GiB"], "every 5s keep 30d");
        assert!(coarse < fine, "{coarse} {fine}");
    }

    #[test]
    fn the_built_in_table_says_of_when_it_is_and_others_are_read() {
        let prices = Prices::read(None).expect("prices");
        let bills: Vec<Bill> =
            prices.service.iter().map(|(name, service)| service.bill(name, &plan(&USUAL).expect("a plan").month())).collect();
        let said = text(&plan(&USUAL).expect("a plan"), &plan(&USUAL).expect("a plan").month(), &prices, &bills, true);
        assert!(said.contains("2025-01") && said.contains("check them") && said.contains("s3-standard"), "{said}");
        let s3 = bills.iter().find(|bill| bill.service == "s3-standard").expect("there is one");
        assert!(s3.requests > 1.0 && s3.requests < 2.0 && s3.total > s3.storage + s3.requests - 0.01, "{s3:?}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let own = "date = \"today\"\ncurrency = \"EUR\"\n[service.ours]\nstorage_gib_month = 1\nput_1000 = 0\nget_1000 = 0\nlist_1000 = 0\ndelete_1000 = 0\nout_gib = 0\n";
        std::fs::write(file.path(), own).expect("written");
        assert_eq!(Prices::read(Some(file.path())).expect("prices").currency, "EUR");
        for wrong in [
            own.replace("= 1\n", "= -1\n"),
            own.replace("out_gib", "out_gb"),
            "date = 1".to_owned(),
            own.replace("= 1\n", "= nan\n"),
        ] {
            std::fs::write(file.path(), wrong).expect("written");
            let failure = Prices::read(Some(file.path())).expect_err("no prices");
            assert!(failure.message.contains("no table of prices"), "{}", failure.message);
        }
    }

    #[test]
    fn what_is_missing_is_asked_for() {
        for words in [
            &["--churn", "20GiB/d", "--every", "5s", "--keep", "every 5s keep 10m"][..],
            &["--size", "1GiB", "--every", "5s", "--keep", "every 5s keep 10m"],
        ] {
            let failure = plan(words).expect_err("it is not enough");
            assert!(failure.what_to_do.contains("--churn"), "{}", failure.what_to_do);
        }
        assert_eq!(parse_churn("1MiB/s"), Ok(Churn((86_400_u64 << 20) as f64)));
        assert_eq!(parse_churn("24GiB/d"), parse_churn("1GiB/h"));
        for wrong in ["", "20GiB", "20/y", "/d", "x/d", "-1GiB/d"] {
            assert!(parse_churn(wrong).is_err(), "{wrong}");
        }
    }
}
