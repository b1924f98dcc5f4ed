//! `farside point list`: the points of a volume or group, page by page, from a daemon or a store.
//!
//! Holds one page at a time, however many there are.

use farside_control::routes::PagesQuery;
use farside_control::{Client, POINTS_PAGE_MAX, PageMaker, Point, PointPage};
use farside_region::{Slot, VolumeId};
use farside_store::{GroupReader, PointFilter, find_points};

use crate::args::{Global, ListArgs};
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, Table};
use crate::{point, store};

/// So many fit what a person looks at.
const SHOWN: usize = 50;

/// Lists points, newest first.
pub(crate) async fn list(global: &Global, hosts: &Hosts, args: &ListArgs) -> Result<(), Failure> {
    let points = match &args.store {
        Some(url) => Points::Read(store::places(&store::open(&store::location_of(url)?)?, Some(&args.of))?),
        None => Points::Asked(hosts.either().await?),
    };
    let limit = match args.limit {
        Some(limit) => limit as usize,
        None if args.all || global.json => usize::MAX,
        None => SHOWN,
    };
    let query = PagesQuery {
        of: Some(args.of.to_string()),
        since: args.since,
        until: args.until,
        pinned: args.pinned,
        reason: args.reason.clone(),
        verified: args.verified,
        consistent: args.consistent,
        label: args.label.clone().or_else(|| args.cut.clone()),
        ..PagesQuery::default()
    };
    let mut shown: Box<dyn Shown> = if global.json { Box::new(print::JsonList::default()) } else { Box::new(Listing::default()) };
    let (count, total) = points.each_page(query, limit, &mut *shown).await?;
    if global.json {
        print::out(print::JsonList::end(count == 0))?;
    } else if count > 0 || !points.is_hiding() {
        print::out(&after(args, count, total))?;
    }
    if !points.is_hiding() {
        return Ok(());
    }
    let message = format!("not all points of {} can be seen: a ledger is damaged", args.of);
    Err(Failure::new(Exit::Damaged, message, "put back what is named above from a copy of the store; see farside store check"))
}

/// Where points come from.
enum Points {
    Asked(Client),
    Read(Vec<(GroupReader, Option<VolumeId>)>),
}

/// What is done with a page.
trait Shown {
    fn page(&mut self, points: &[Point]) -> Result<(), Failure>;
}

impl Points {
    /// Whether there may be more than what a store shows, as was said when it was opened.
    fn is_hiding(&self) -> bool {
        matches!(self, Self::Read(places) if places.iter().any(|(group, _)| group.torn().is_some()))
    }

    /// Shows the newest `limit`; gives how many that were, and how many there are.
    async fn each_page(&self, mut query: PagesQuery, limit: usize, shown: &mut dyn Shown) -> Result<(usize, u64), Failure> {
        let (mut count, mut total) = (0, 0);
        loop {
            query.limit = u32::try_from((limit - count).min(POINTS_PAGE_MAX)).ok();
            let page = match self {
                Self::Asked(client) => client.point_page(&query).await?,
                Self::Read(places) => read(places, &query)?,
            };
            page.hidden.iter().for_each(|why| store::say_hidden(why));
            total = page.total.unwrap_or(total);
            count += page.points.len();
            shown.page(&page.points)?;
            match page.next.filter(|_| count < limit && !page.points.is_empty()) {
                Some(next) => query.cursor = Some(next),
                None => return Ok((count, total)),
            }
        }
    }
}

/// The same page that a daemon makes.
fn read(places: &[(GroupReader, Option<VolumeId>)], query: &PagesQuery) -> Result<PointPage, Failure> {
    let wrong = |error: &dyn std::error::Error| Failure::new(Exit::Usage, error.to_string(), "name one volume or group");
    let mut page = PageMaker::for_query(query).map_err(|error| wrong(&error))?;
    let meant = farside_receiver::filter_of(query);
    for (group, volume) in places {
        let names = group.names();
        let filter = PointFilter { volume: *volume, ..meant.clone() };
        let below = page.below(names.source.as_str(), names.group.as_str()).map(Slot);
        let found = find_points(group.state(), &filter, below, page.limit());
        page.add(found.points.iter().map(|info| farside_receiver::point_of(names, info)), found.more, found.total);
    }
    page.page().map_err(|error| wrong(&error))
}

impl Shown for print::JsonList {
    fn page(&mut self, points: &[Point]) -> Result<(), Failure> {
        self.items(points)
    }
}

/// Points as a table. What they take is known where the store is.
#[derive(Debug, Default)]
struct Listing {
    /// Of the columns, as far as they were seen.
    widths: Vec<usize>,
    is_sized: bool,
}

impl Shown for Listing {
    fn page(&mut self, points: &[Point]) -> Result<(), Failure> {
        if points.is_empty() {
            return Ok(());
        }
        let bytes = |point: &Point| point.members.iter().map(|member| member.layer_bytes).sum::<Option<u64>>();
        let mut table = Table::default();
        if self.widths.is_empty() {
            self.is_sized = points.iter().any(|point| bytes(point).is_some());
            let mut head = vec!["POINT", "CUT", "SOURCE", "GROUP", "MEMBERS"];
            head.extend(self.is_sized.then_some("LAYERS"));
            table.row([&head[..], &[""]].concat());
        }
        for point in points {
            let mut row = vec![
                point.id.to_string(),
                print::time(point.cut_wall),
                point.source.clone(),
                point.group.clone(),
                point.members.iter().map(|member| member.volume.as_str()).collect::<Vec<_>>().join(" "),
            ];
            row.extend(self.is_sized.then(|| point::takes(bytes(point))));
            row.push(point::marks(point));
            table.row(row);
        }
        print::out(&table.fit_after(print::Look::of_stdout(), &mut self.widths))
    }
}

/// What is said below the table.
fn after(args: &ListArgs, count: usize, total: u64) -> String {
    let of = &args.of;
    let within = args.since.is_some() || args.until.is_some();
    let all = !within
        && !args.pinned
        && !args.verified
        && !args.consistent
        && args.reason.is_none()
        && args.label.is_none()
        && args.cut.is_none();
    match (count, all) {
        (0, true) => {
            format!("no recovery point of {of} is known here; farside status says what is protected and what it waits for\n")
        }
        (0, false) => {
            format!(
                "no recovery point of {of} is like that; without --since, --until, --pinned, --reason, --verified, --consistent, --label and --cut all are listed\n"
            )
        }
        (count, _) if (count as u64) < total => {
            let more = "--all lists all of them, --limit COUNT so many, --since and --until those of some time";
            format!("the newest {count} of {total} recovery points; {more}\n")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command, PointCommand};

    fn args(words: &[&str]) -> ListArgs {
        let cli = Cli::try_parse_from([&["farside", "point", "list", "db"], words].concat()).expect("valid");
        let Command::Point(PointCommand::List(args)) = cli.command else { panic!("point list") };
        args
    }

    #[test]
    fn whoever_sees_not_all_of_them_is_told_how_many_there_are() {
        assert_eq!(after(&args(&[]), 50, 50), "");
        let said = after(&args(&[]), 50, 100_000);
        assert!(said.contains("the newest 50 of 100000") && said.contains("--all"), "{said}");
        assert!(after(&args(&[]), 0, 0).contains("farside status"));
        assert!(after(&args(&["--pinned"]), 0, 0).contains("--pinned"));
    }

    #[test]
    fn times_are_given_as_points_are() {
        let hour_ago = args(&["--since", "-1h"]).since.expect("a time");
        let now = jiff::Timestamp::now();
        assert!((3600..3700).contains(&(now.as_second() - hour_ago.as_second())));
        let until = args(&["--until", "2026-03-01T12:00:00+01:00"]).until.expect("a time");
        assert_eq!(until.to_string(), "2026-03-01T11:00:00Z");
        for bad in ["latest", "42", "42-9f3c2a1b", "yesterday", "1h"] {
            assert!(Cli::try_parse_from(["farside", "point", "list", "db", "--since", bad]).is_err(), "{bad}");
        }
    }
}
