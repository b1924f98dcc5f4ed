//! Many seeds of the toy world: faults first, then heal and demand convergence.

use farside_region::mutation;

use super::world::{GRANULES, World, source_limits, volume};
use crate::source;

const VOLUMES: u8 = 2;

/// Of every other seed parts become shorter where connections break under them, which they do all the time.
fn least_part(seed: u64) -> u64 {
    let limits = source_limits();
    if seed.is_multiple_of(2) { limits.part_bytes_min } else { limits.part_bytes }
}

fn run(seed: u64, trace: bool, part_bytes_min: u64) -> World {
    let mut world = World::new(seed, VOLUMES);
    world.limits.part_bytes_min = part_bytes_min;
    world.trace = trace;
    let calm = world.rng.one_in(4);
    let writes = [3, 8, 25, 60][world.rng.below(4) as usize];
    let mut value = 100;
    world.boot();
    world.connect();
    for _ in 0..3000 {
        world.step();
        if world.rng.one_in(writes) {
            value += 1;
            let id = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            let granule = world.rng.below(GRANULES);
            let value = if world.rng.one_in(4) { 0 } else { value };
            if world.source.is_some() {
                world.write(id, granule, value);
            }
        }
        if world.source.is_some() && world.rng.one_in(200) {
            world.wish();
        }
        if !calm {
            fault(&mut world);
        }
        world.check_no_false_clean();
    }
    world.heal(40_000);
    world
}

fn fault(world: &mut World) {
    match world.rng.below(1600) {
        0..8 => world.disconnect(),
        8..10 => world.crash_source(),
        10..12 if world.source.is_some() => world.stop_source(),
        12..15 => {
            let lose = world.rng.one_in(2);
            world.crash_target(lose);
        }
        15 => world.disk_room = [0, 100, 1 << 40][world.rng.below(3) as usize],
        16..18 => {
            let volume = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            let granule = world.rng.below(GRANULES);
            world.disks.get_mut(&volume).expect("a disk").bad.insert(granule);
        }
        18..20 => {
            let volume = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            let pause = world.rng.one_in(2);
            world.to(if pause { source::Event::Pause { volume } } else { source::Event::Resume { volume } });
        }
        20 => {
            let volume = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            world.to(source::Event::Resync { volume });
        }
        21..29 => {
            let volume = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            world.to(source::Event::Verify { volume });
        }
        29..60 if world.source.is_none() => world.boot(),
        60..120 if world.connection.is_none() && world.source.is_some() => world.connect(),
        120..123 => {
            let volume = volume(1 + world.rng.below(u64::from(VOLUMES)) as u8);
            let (granule, value) = (world.rng.below(GRANULES), 1_000_000 + world.rng.below(1 << 20));
            let marked = world.rng.one_in(3);
            world.lose_track(volume, granule, value, marked);
            world.hot_from = world.now + [0, 50, 600][world.rng.below(3) as usize];
        }
        _ => {}
    }
    if world.source.is_none() && world.rng.one_in(40) {
        world.boot();
    }
}

/// Also R8: parts arrive in any order, over resets, and what they make up is the cut (many paths put together wrongly).
#[test]
fn every_seed_publishes_true_points_and_converges() {
    let (mut points, mut fuzzy, mut wishes, mut consistent) = (0, 0, 0, 0);
    let seeds = std::env::var("SEEDS").map_or(300, |n| n.parse().expect("a number"));
    for seed in 1..=seeds {
        let result = std::panic::catch_unwind(|| run(seed, false, least_part(seed)));
        let world = result.unwrap_or_else(|_| panic!("seed {seed}"));
        points += world.points;
        fuzzy += world.fuzzy;
        wishes += world.applications.done;
        consistent += world.applications.consistent;
        assert_eq!((world.verified, world.cold_differs), (1, 0), "seed {seed}: a volume that healed is verified, and equal");
    }
    assert!(points > 2000 && fuzzy > 300, "{points} points, {fuzzy} fuzzy: the world is too quiet to prove anything");
    assert!(wishes > 300 && consistent > 100, "{wishes} wishes came true, {consistent} points were called consistent");
}

/// `SEED=n cargo test -p farside-replication one_seed -- --nocapture` prints what happens in a seed.
#[test]
fn one_seed_with_a_trace() {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("a number");
        run(seed, true, least_part(seed));
    }
}

/// Each mistake, made on purpose, must be seen by some seed.
#[test]
fn mistakes_are_seen() {
    let mistakes = [
        "a reset cut re-sent as a point",
        "cool a region that somebody still mentions",
        "clear before the header",
        "publish one volume at a time",
        "a layer retried at a later slot",
        "staged data carried across a term",
        "accept a void record",
        "kind said per member",
        "T6 verify lets its regions cool",
        "a recorded loss of tracking is not heeded",
        "a point is called consistent before it is known",
    ];
    for mistake in mistakes {
        let seen = (1..=2000).find(|&seed| {
            std::panic::catch_unwind(|| {
                mutation::set(&[mistake]);
                run(seed, false, source_limits().part_bytes)
            })
            .is_err()
        });
        mutation::set(&[]);
        assert!(seen.is_some(), "{mistake}: no seed saw it");
    }
}
