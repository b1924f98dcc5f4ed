//! Lines that break before they have carried a part.

use farside_region::mutation::tell;
use farside_region::{GranuleSet, RegionIndex, RegionSet};

use super::directed::{self, Host};
use super::world::{GRANULES, Turn, World, source_limits, volume};
use crate::source::{self, Action, Event, PartRead, SentPart};

const VOLUME_BYTES: u64 = GRANULES * 16;
const REGION_BYTES: u64 = 4 * 16;

/// A part may hold a whole volume; the least is a region.
fn limits() -> source::Limits {
    source::Limits {
        part_bytes: VOLUME_BYTES,
        part_bytes_min: REGION_BYTES,
        slice_bytes: 1 << 20,
        slice_time: 1 << 40,
        layer_parts_max: 1024,
        ..source_limits()
    }
}

/// Each connection carries so much, and breaks under the next region.
struct Line {
    world: World,
    carries: u64,
    at: u64,
    connections: u64,
}

impl Line {
    fn new(volumes: u8, carries: u64) -> Self {
        Self::of(limits(), volumes, carries)
    }

    fn of(limits: source::Limits, volumes: u8, carries: u64) -> Self {
        let mut world = World::with(7, volumes, limits);
        world.by_hand = true;
        world.boot();
        world.connect();
        Self { world, carries, at: 0, connections: 1 }
    }

    fn breaks(&mut self) {
        self.world.disconnect();
        self.connects();
    }

    fn connects(&mut self) {
        self.world.connect();
        self.at = self.world.carried_bytes;
        self.connections += 1;
    }

    /// Everything happens once. What is on its way lands before more is read: earlier parts go first.
    fn goes_on(&mut self) {
        let turns =
            [Turn::Tick, Turn::Switch, Turn::Header, Turn::Hot, Turn::Digests, Turn::Append, Turn::ToTarget, Turn::ToSource];
        self.world.now += 1;
        turns.iter().for_each(|turn| while self.world.turn(*turn) && !matches!(turn, Turn::Tick) {});
        self.world.turn(Turn::Read);
        match self.world.carried_bytes - self.at > self.carries {
            true => self.breaks(),
            false => while self.world.turn(Turn::Land) {},
        }
    }

    /// Until there is a point of all that is written; at most so many connections long.
    fn until_a_point(&mut self, connections: u64) {
        for _ in 0..10_000 {
            self.goes_on();
            assert!(self.connections <= connections, "no part of it arrived, or not enough of them: {}", self.world.parts_landed);
            if self.world.points > 0 && self.world.source.as_ref().is_some_and(source::Source::settled) {
                return;
            }
        }
        panic!("no point, and no end of a connection");
    }
}

/// A connection carries two regions and a half, and a part is eight.
#[test]
fn a_line_that_breaks_under_a_part_brings_points_all_the_same() {
    tell(&[("parts are as long on a line that breaks under them", "no part of it arrived")], || {
        // One to be forgiven, two that shorten parts to two regions, and four that bring them.
        Line::new(1, REGION_BYTES * 5 / 2).until_a_point(8);
    });
}

/// So it is of the parts of many volumes, one of which alone is more than the line carries.
#[test]
fn a_line_that_breaks_under_parts_of_many_volumes_brings_points_all_the_same() {
    tell(&[("parts are as long on a line that breaks under them", "no part of it arrived")], || {
        Line::new(6, REGION_BYTES * 5 / 2).until_a_point(40);
    });
}

fn parts_of(line: &mut Line) -> u64 {
    let before = line.world.parts_landed;
    line.until_a_point(line.connections);
    line.world.parts_landed - before
}

/// Reads some of the first part, whatever becomes of it.
fn under_a_part(line: &mut Line) {
    let before = line.world.carried_bytes;
    for _ in 0..100 {
        if line.world.carried_bytes > before {
            break;
        }
        line.goes_on();
    }
    assert!(line.world.carried_bytes > before && line.world.parts_landed == 0, "it is under its first part");
}

/// A line that broke once, and a receiver that is started anew again and again, are sent no more parts than any other.
#[test]
fn a_line_that_broke_once_is_sent_no_more_parts_than_before() {
    let as_ever = parts_of(&mut Line::new(2, u64::MAX));
    let mut once = Line::new(2, u64::MAX);
    under_a_part(&mut once);
    once.breaks();
    assert_eq!(parts_of(&mut once), as_ever, "after one break");
    let mut anew = Line::new(2, u64::MAX);
    for _ in 0..5 {
        under_a_part(&mut anew);
        anew.world.crash_target(false);
        anew.connects();
    }
    assert_eq!(parts_of(&mut anew), as_ever, "after a receiver that died");
}

/// What was written meanwhile goes into one cut, whose record lists its parts: it has no more than a layer may have, however little the line is known
/// to carry.
#[test]
fn a_layer_has_room_for_its_parts_on_such_a_line_too() {
    let mut line = Line::of(source::Limits { layer_parts_max: 4, ..limits() }, 1, REGION_BYTES * 3 / 2);
    line.until_a_point(20);
    line.carries = u64::MAX;
    (0..GRANULES).for_each(|granule| line.world.write(volume(1), granule, 100 + granule));
    assert_eq!(parts_of(&mut line), 4);
}

/// † Parts of one volume get through, and none of the other's, as of a first sync beside small points: those become shorter all the same.
#[test]
fn what_gets_through_of_one_volume_excuses_no_part_of_another() {
    let mut host = Host::with(source::Limits { part_bytes: 16 << 20, part_bytes_min: 16, ..source_limits() }).with_two_volumes();
    host.tick(&[1]);
    host.switch(vec![(1, directed::granules(0, 8 * 4)), (2, directed::granules(0, 8 * 4))]);
    let order = |host: &mut Host, n: u8| {
        host.did(|a| match a {
            Action::ReadPart(p) if p.key.volume == volume(n) => Some((p.connection, p.key, p.part, p.from, p.bytes_max)),
            _ => None,
        })
    };
    let mut sizes = Vec::new();
    for arrived in 0..6 {
        sizes.push(order(&mut host, 1).expect("it is read on").4);
        let (connection, key, part, from, _) = order(&mut host, 2).expect("it is read on");
        assert_eq!(part, arrived, "from where it was");
        let read = PartRead {
            connection,
            key,
            part,
            sent: Some(SentPart { bytes: 16, footer_digest: [1; 32] }),
            next: RegionIndex(from.0 + 1),
            done: false,
            cut_held: true,
            granules: 1,
            left: GranuleSet::new(),
            unreadable: GranuleSet::new(),
            zero_regions: RegionSet::new(),
        };
        host.event(Event::PartRead(Box::new(read)));
        host.reconnect();
        host.did.clear();
        for n in [1, 2] {
            host.answer_ledger(n, Vec::new(), directed::current(n, u64::from(n) - 1, false), Some(1));
        }
        // The one of which nothing is there is heard first.
        host.answer_resume(1, 0, vec![(1, directed::landing(0, None, false))]);
        host.answer_resume(2, 1, vec![(1, directed::landing(arrived + 1, None, false))]);
    }
    assert!(
        sizes[1] == sizes[0] && sizes.is_sorted_by(|one, next| one >= next),
        "one that breaks under it is any line: {sizes:?}"
    );
    assert!(sizes[5] <= sizes[0] / 8, "{sizes:?}");
}
