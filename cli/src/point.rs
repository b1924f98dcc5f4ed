//! `farside point …`: what can be restored.

use farside_control::routes::PointsQuery;
use farside_control::{Address, Point, PointRef, select_point};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, Table};
use crate::store;

/// Lists points, newest first.
pub(crate) async fn list(
    global: &Global,
    hosts: &Hosts,
    of: &Address,
    url: Option<&str>,
    limit: Option<u32>,
) -> Result<(), Failure> {
    let points = match url {
        Some(url) => {
            let mut points = store::points(url, Some(of))?;
            points.sort_by(|a, b| b.cut_wall.cmp(&a.cut_wall).then(b.id.cmp(&a.id)));
            points.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
            points
        }
        None => hosts.either().await?.points(&PointsQuery { of: Some(of.to_string()), limit }).await?,
    };
    if global.json {
        return print::json(&points);
    }
    if points.is_empty() {
        return print::out(&format!(
            "no recovery point of {of} is known here; farside status says what is protected and what it waits for\n"
        ));
    }
    let mut table = Table::new(&["POINT", "CUT", "SOURCE", "GROUP", "MEMBERS", "LAYERS", ""]);
    for point in &points {
        table.row([
            point.id.to_string(),
            print::time(point.cut_wall),
            point.source.clone(),
            point.group.clone(),
            point.members.iter().map(|member| member.volume.as_str()).collect::<Vec<_>>().join(" "),
            takes(point.members.iter().map(|member| member.layer_bytes).sum()),
            marks(point),
        ]);
    }
    print::out(&table.to_string())
}

/// Shows one point.
pub(crate) async fn show(
    global: &Global,
    hosts: &Hosts,
    wanted: PointRef,
    of: Option<&Address>,
    url: Option<&str>,
) -> Result<(), Failure> {
    if of.is_none() && !matches!(wanted, PointRef::Id { tag: Some(_), .. }) {
        let message = format!("`{wanted}` is a point of which volume or group?");
        return Err(Failure::new(Exit::Usage, message, "say it with --of NAME, or give a whole id such as 42-9f3c2a1b"));
    }
    let point = match url {
        Some(url) => {
            let points = store::points(url, of)?;
            select_point(&points, wanted, jiff::Timestamp::now()).cloned().ok_or_else(|| no_such_point(wanted, of))?
        }
        None => {
            let query = PointsQuery { of: of.map(Address::to_string), limit: None };
            hosts.either().await?.point(&wanted.to_string(), &query).await?
        }
    };
    if global.json { print::json(&point) } else { print::out(&text(&point)) }
}

/// What to say where nothing fits.
pub(crate) fn no_such_point(wanted: PointRef, of: Option<&Address>) -> Failure {
    let whose = of.map_or_else(String::new, |of| format!(" of {of}"));
    Failure::new(
        Exit::NotFound,
        format!("there is no point `{wanted}`{whose}"),
        "see which there are: farside point list VOLUME|GROUP",
    )
}

/// Bytes in the store, where they are known.
fn takes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| print::NOTHING.to_owned(), print::bytes)
}

fn marks(point: &Point) -> String {
    [(point.pinned, "pinned"), (point.degraded, "degraded")]
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| *word)
        .collect::<Vec<_>>()
        .join(" ")
}

fn text(point: &Point) -> String {
    let mut text = format!(
        "point    {}{}\nsource   {}\ngroup    {}\ncut      {} by the source's clock\n         {} to {} ns of CLOCK_MONOTONIC in boot {}\n\n",
        point.id,
        [" ", &marks(point)].concat().trim_end(),
        point.source,
        point.group,
        print::time(point.cut_wall),
        point.cut_mono_before_ns,
        point.cut_mono_after_ns,
        point.boot,
    );
    let mut table = Table::new(&["MEMBER", "SIZE", "LAYER", "TAKES", "ID"]);
    for member in &point.members {
        table.row([
            member.volume.clone(),
            print::bytes(member.bytes),
            format!("{}/{}", member.term, member.seq),
            takes(member.layer_bytes),
            member.volume_id.clone(),
        ]);
    }
    text.push_str(&table.to_string());
    if point.degraded {
        text.push_str(
            "\n! some runs could not be read at the source\n    → restore it with --allow-degraded: they become zeroes\n",
        );
    }
    text
}
