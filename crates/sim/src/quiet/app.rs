//! An application: writes its next number in one place and then, when that is durable, in another one. Between two numbers it can be held, and
//! both places have the same one then.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{APPS, end_of};
use crate::host::HostOp;
use crate::source::Source;
use crate::world::World;

/// What is held although nobody is at work with it.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// For so long it could have been tried to end it, since the last try.
    pub(super) idle_us: u64,
    pub(super) tries: u32,
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct App {
    pub(super) no: usize,
    /// Whether it is to begin no other number.
    pub(super) is_asked: bool,
    /// The number of the hold, while it is held.
    pub(super) held: Option<u64>,
    /// It takes no post-cut until then.
    pub(super) stuck_until_us: u64,
    pub(super) left: Option<Left>,
    number: u64,
    /// The number that a request wrote, by its tag.
    written: BTreeMap<u64, u64>,
    doing: Doing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// The number is to be written there.
    Wants(usize),
    UnderWay {
        half: usize,
        tag: u64,
        process: u64,
    },
}

impl App {
    pub(super) fn new(no: usize) -> Self {
        Self {
            no,
            is_asked: false,
            held: None,
            stuck_until_us: 0,
            left: None,
            number: 0,
            written: BTreeMap::new(),
            doing: Doing::Nothing,
        }
    }

    /// Volume and sector of one of its places.
    pub(super) fn place(&self, world: &World, half: usize) -> (usize, usize) {
        let last = world.volumes() - 1;
        let volume = if half == 0 { 0 } else { last };
        let from_end = if last == 0 { half * APPS + self.no } else { self.no };
        (volume, end_of(world, volume) - 1 - from_end)
    }

    /// The number that a place's content is; 0: none yet.
    pub(super) fn number_of(&self, content: &[u8]) -> Option<u64> {
        if content.iter().all(|byte| *byte == 0) {
            return Some(0);
        }
        let tag = u64::from_le_bytes(content[..8].try_into().ok()?);
        self.written.get(&tag).copied()
    }

    /// Whether it is held is found out here: after what it does, and after what it is asked for.
    pub(super) fn settles(&mut self, holds: &mut u64) {
        if self.is_asked && self.doing == Doing::Nothing && self.held.is_none() {
            *holds += 1;
            self.held = Some(*holds);
        }
    }

    pub(super) fn let_go(&mut self) {
        (self.is_asked, self.held) = (false, None);
    }
}

/// Hears of what it wrote, or writes.
pub(super) fn go_on(world: &World, source: Option<&Rc<Source>>, no: usize) {
    let mut all = world.applications.borrow_mut();
    let all = &mut *all;
    let app = &mut all.apps[no];
    let site = world.home();
    match app.doing {
        // (What is to converge must rest.)
        Doing::Nothing if app.is_asked || world.healing.get() => {}
        Doing::Nothing => {
            app.number += 1;
            app.doing = Doing::Wants(0);
        }
        Doing::Wants(half) => {
            let (volume, sector) = app.place(world, half);
            let op = HostOp::Write { first: sector, count: 1, fua: true };
            if let Some(tag) = source.and_then(|source| source.host(volume, op)) {
                app.written.insert(tag, app.number);
                app.doing = Doing::UnderWay { half, tag, process: site.attached_at.get() };
            }
        }
        Doing::UnderWay { half, tag, process } => {
            let is_same = site.source_alive.get() && site.attached_at.get() == process;
            let oracle = site.oracle.borrow();
            let fact = oracle.fact(tag).filter(|_| is_same);
            match fact.filter(|fact| fact.acked_us.is_some()) {
                Some(fact) if fact.is_done && half == 0 => app.doing = Doing::Wants(1),
                Some(fact) if fact.is_done => app.doing = Doing::Nothing,
                Some(_) => app.doing = Doing::Wants(half),
                // Of a daemon that is gone nobody hears: it is written again.
                None if !is_same => app.doing = Doing::Wants(half),
                None => {}
            }
        }
    }
    app.settles(&mut all.holds);
}
