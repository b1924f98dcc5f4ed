//! Failback: the original is there again, and its disks are brought to what was published in its place.
//!
//! ```text
//! begun ──► Held: its disks are served by nobody ──► rounds: each newer point is put on them ──► who stands in has stopped
//!             ▲                                                                                       │ the last point
//!             └────── there is a newer point ── Returning: served with a new header, and taken back ◄─┘──► over
//! ```
//!
//! Modelled: the rounds (`daemon/src/failback`), as if each were one step, and with points that are not whole too. Not modelled: the
//! branch, what tells of strangers' writes, `--abort`. The product's own is what comes at the end: a history is taken back from the
//! point that the disks hold, and from no other.

use farside_region::LedgerPosition;

use crate::plan::Fault;
use crate::run::Run;
use crate::site::VolumeState;
use crate::source;

/// How far it is.
pub(crate) enum Failback {
    /// The disks are served by nobody.
    Held {
        /// Who stands in is to stop.
        finish: bool,
    },
    /// They are served again, each at this point when that began.
    Returning {
        /// By volume.
        at: Vec<LedgerPosition>,
    },
}

impl Run {
    /// The original's volumes are taken out of service.
    pub(crate) fn failback_begins(&mut self) {
        let world = self.world.clone();
        world.met("a failback");
        world.say(|| "a FAILBACK begins: the original's disks are held".into());
        self.hold_disks();
    }

    fn hold_disks(&mut self) {
        self.exists[0] = false;
        match self.sources[0].clone() {
            Some(source) if self.world.chance(0.5) => _ = source.meddle(Fault::Stop, 0),
            _ => self.source_ends(0, "is stopped: its disks are held"),
        }
        self.failback = Some(Failback::Held { finish: false });
    }

    /// One round, or the next step.
    pub(crate) fn failback_goes_on(&mut self) {
        let world = self.world.clone();
        if !world.chance(if world.healing.get() { 0.2 } else { 0.01 }) {
            return;
        }
        let stand_in = world.failover.borrow().as_ref().and_then(|failover| failover.stand_in);
        match (&self.failback, stand_in) {
            // A stop that nothing comes of.
            (Some(Failback::Held { .. }), _) if self.sources[0].is_some() && world.chance(0.2) => {
                self.source_ends(0, "is killed: its disks are held");
            }
            (Some(Failback::Held { .. }), _) if self.sources[0].is_some() => {}
            (Some(Failback::Held { finish: false }), _) => {
                self.disks_are_brought_up();
                if world.chance(0.3) {
                    self.failback = Some(Failback::Held { finish: true });
                }
            }
            (Some(Failback::Held { finish: true }), Some(no)) => self.stand_in_stops(no),
            (Some(Failback::Returning { at }), _) => {
                let generation = world.failover.borrow().as_ref().map_or(0, |failover| failover.generation);
                let is_newer = |volume: &usize| self.judge.newest_position(*volume) > Some(at[*volume]);
                let waits = |volume: &usize| self.judge.generation(*volume) <= generation;
                if (0..world.volumes()).filter(waits).any(|volume| is_newer(&volume)) {
                    world.met("a point is newer than what a failback brought");
                    world.say(|| "there is a NEWER POINT: the original's disks are held again".into());
                    self.exists[0] = false;
                    self.source_ends(0, "is stopped: its disks are held");
                    self.failback = Some(Failback::Held { finish: true });
                }
            }
            _ => {}
        }
    }

    /// The newest points are put on the disks. Says whether every volume has one.
    fn disks_are_brought_up(&mut self) -> bool {
        let (world, home) = (self.world.clone(), self.world.home());
        let is_quiet = home.all_disks().all(|disk| disk.borrow().quiet());
        let has_points = (0..world.volumes()).all(|volume| self.judge.newest_point(volume).is_some());
        if !is_quiet || !has_points {
            return false;
        }
        for volume in 0..world.volumes() {
            home.disks[volume].borrow_mut().restore(&self.judge.restored(volume, None));
        }
        self.judge_new_life(0, vec![None; world.volumes()]);
        true
    }

    /// Who stands in is told to stop; when that is so, the last points come, and the original is served again.
    fn stand_in_stops(&mut self, no: usize) {
        let world = self.world.clone();
        if self.exists[no] {
            let forced = self.sources[no].is_none() && world.chance(0.1) || world.chance(0.02);
            match self.sources[no].clone() {
                _ if forced => world.met("a failback does not wait for who stands in"),
                Some(source) => {
                    self.exists[no] = false;
                    source.meddle(Fault::Stop, 0);
                    return;
                }
                None => return,
            }
            self.clone_is_destroyed(no);
        }
        if self.sources[no].is_some() {
            // A stop that nothing comes of.
            if world.chance(0.2) {
                self.source_ends(no, "is killed: it was to stop");
            }
            return;
        }
        if !self.disks_are_brought_up() {
            return;
        }
        let home = world.home();
        // No header from before: nothing of the old history is trusted.
        for volume in 0..world.volumes() {
            let (bytes, was) = (home.maps[volume].borrow().image().len(), home.state_dir.borrow()[volume].clone());
            home.maps[volume].borrow_mut().restore(&vec![0; bytes]);
            let kept = VolumeState { backing: was.backing, generation: was.generation, ..VolumeState::default() };
            home.state_dir.borrow_mut()[volume] = kept;
        }
        source::format(&world, &home);
        let at = (0..world.volumes()).map(|volume| self.judge.newest_position(volume).expect("just seen")).collect::<Vec<_>>();
        world.say(|| format!("the original is SERVED AGAIN, at {:?}", at.iter().map(|at| at.slot.0).collect::<Vec<_>>()));
        self.exists[0] = true;
        world.main.set(Some(0));
        self.failback = Some(Failback::Returning { at });
    }
}
