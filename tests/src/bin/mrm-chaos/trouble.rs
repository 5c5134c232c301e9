//! What goes wrong, drawn from the seed.

use crate::GRACE;
use crate::daemon::{Daemon, Edge};
use crate::fleet::{Fleet, Languages, Place};
use mrm_tests::Random;
use mrm_tests::survival::signal;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::time::{Duration, Instant};

/// The named steps of the daemon at which it can be killed (`mrm-daemon/src/failpoint.rs`).
pub(crate) const POINTS: [&str; 18] = [
    "resolved",
    "before-load",
    "read",
    "after-load",
    "before-fill",
    "after-fill",
    "before-put",
    "after-put",
    "before-grant",
    "after-grant",
    "before-let-go",
    "before-free",
    "after-free",
    "adopting",
    "adopted",
    "resuming",
    "handing-over",
    "hashed",
];

/// Those that are passed by each daemon once, or seldom: their turn comes first.
const SELDOM: [&str; 4] = ["adopted", "resuming", "handing-over", "adopting"];
/// How long to wait for a point to be reached: for those a daemon must have ended and begun.
const REACH: Duration = Duration::from_secs(3);
const REACH_SELDOM: Duration = Duration::from_secs(15);

/// How often each kind was done, and how often each point was reached.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    /// Clients that were stopped for longer than a daemon waits for them.
    pub(crate) long_stops: u64,
    pub(crate) takeovers: u64,
    pub(crate) disk_faults: u64,
    /// Times that the memory limit was drawn tight, and daemons that the kernel killed for it.
    pub(crate) squeezes: u64,
    pub(crate) memory_kills: u64,
    /// By point and action.
    pub(crate) reached: BTreeMap<String, u64>,
}

impl Done {
    /// The points that nothing ever happened at.
    pub(crate) fn never(&self) -> Vec<&'static str> {
        let was = |point: &str| self.reached.keys().any(|key| key.starts_with(point));
        POINTS
            .into_iter()
            .filter(|point| !was(&format!("{point} ")))
            .collect()
    }
}

/// What is to happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Stall,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Stall => "stall",
        }
    }
}

pub(crate) struct Trouble {
    pub(crate) random: Random,
    pub(crate) done: Done,
    /// Points in the order of their turns.
    turns: VecDeque<&'static str>,
    armed: Option<(&'static str, Action, Instant)>,
    /// Who is stopped, and until when.
    stopped: Vec<(u32, Instant)>,
    /// Deaths of the daemon that a keeper may still count.
    deaths: VecDeque<Instant>,
    deaths_max: usize,
    disk_until: Option<Instant>,
    squeezed_until: Option<Instant>,
    /// Killed for memory in this epoch, so far.
    killed: u64,
    next_end: Instant,
    /// Of the daemons of this epoch.
    edge: Edge,
    /// Every point is to be reached soon.
    hurries: bool,
}

impl Trouble {
    /// With things in an order that the seed gives; points are in a hurry if all must be reached.
    pub(crate) fn new(seed: u64, hurries: bool) -> Self {
        Self {
            random: Random(seed),
            done: Done::default(),
            turns: SELDOM
                .into_iter()
                .chain(POINTS.into_iter().filter(|point| !SELDOM.contains(point)))
                .collect(),
            armed: None,
            stopped: Vec::new(),
            deaths: VecDeque::new(),
            deaths_max: usize::MAX,
            disk_until: None,
            squeezed_until: None,
            killed: 0,
            next_end: Instant::now(),
            edge: Edge::None,
            hurries,
        }
    }

    /// From now on at most so many deaths of the daemon, a new one, a minute.
    pub(crate) fn begin(&mut self, edge: Edge, deaths_max: usize) {
        self.edge = edge;
        self.killed = 0;
        self.deaths.clear();
        self.deaths_max = deaths_max;
    }

    /// One moment, in which something may begin or end.
    pub(crate) fn moment(
        &mut self,
        daemon: &mut Daemon,
        fleet: &mut Fleet,
        (place, languages): (&Place<'_>, &Languages),
    ) {
        let now = Instant::now();
        self.stopped.retain(|(pid, until)| {
            let over = *until <= now;
            if over {
                signal(*pid, Signal::SIGCONT);
            }
            !over
        });
        if self.disk_until.is_some_and(|until| until <= now) {
            self.mend_disk(daemon);
        }
        if self.squeezed_until.is_some_and(|until| until <= now) {
            self.release(daemon);
        }
        self.watch_point(daemon);
        if !self
            .stopped
            .iter()
            .any(|(pid, _)| daemon.family.daemons().contains(pid))
        {
            daemon.tend();
        }
        self.clients(fleet, (place, languages));
        if self.next_end > now {
            return;
        }
        // A daemon has some time between two ends.
        let least = if self.hurries { 200 } else { 500 };
        self.next_end = now + Duration::from_millis(least + self.random.below(2 * least));
        let pid = daemon.family.daemons().first().copied();
        match (self.random.below(12), pid) {
            (0, Some(pid)) if self.may_die() => {
                signal(pid, Signal::SIGKILL);
                self.done.kills += 1;
            }
            (1, Some(pid)) => {
                signal(pid, Signal::SIGSTOP);
                self.done.stops += 1;
                self.later(pid, 150);
            }
            (2, Some(_)) if self.deaths_max > 0 => {
                daemon.replace();
                self.done.takeovers += 1;
            }
            (3 | 4, _) if self.disk_until.is_none() && !self.is_armed("read") => {
                self.harm_disk(daemon);
            }
            (5 | 6, _) if self.squeezed_until.is_none() => self.squeeze(daemon),
            (7, _) => crate::models::forget(place.models),
            (_, _) => self.arm(daemon),
        }
    }

    /// Reads fail or stall for a moment, and a small filesystem is full.
    fn harm_disk(&mut self, daemon: &Daemon) {
        let actions = ["error 1", "error 3", "stall 1", "stall 2"];
        let at = usize::try_from(self.random.below(actions.len() as u64)).expect("fits");
        fs::write(daemon.failpoint("read"), actions[at]).expect("writes");
        daemon.fill_disk(true);
        self.disk_until = Some(Instant::now() + Duration::from_millis(300));
        self.done.disk_faults += 1;
    }

    fn mend_disk(&mut self, daemon: &Daemon) {
        self.disk_until = None;
        let _ = fs::remove_file(daemon.failpoint("read"));
        if fs::remove_file(daemon.failpoint("read.done")).is_ok() {
            *self
                .done
                .reached
                .entry("read error".to_owned())
                .or_default() += 1;
        }
        daemon.fill_disk(false);
    }

    /// Draws the memory limit tight, where there is one: a load finds no memory, or the kernel kills.
    fn squeeze(&mut self, daemon: &Daemon) {
        let Some(group) = &daemon.group else { return };
        // Less than a daemon leaves free by itself, or so little that the kernel has to kill.
        let most = [2 << 20, 96 << 20][usize::from(self.random.below(2) == 0)];
        group.squeeze(self.random.below(most));
        let ms = 100 + self.random.below(700);
        self.squeezed_until = Some(Instant::now() + Duration::from_millis(ms));
        self.done.squeezes += 1;
    }

    fn release(&mut self, daemon: &Daemon) {
        self.squeezed_until = None;
        if let Some(group) = &daemon.group {
            group.release();
            let killed = group.kills();
            self.done.memory_kills += killed.saturating_sub(self.killed);
            self.killed = killed;
        }
    }

    /// What happens to clients.
    fn clients(&mut self, fleet: &mut Fleet, (place, languages): (&Place<'_>, &Languages)) {
        let client = usize::try_from(self.random.below(fleet.len() as u64)).expect("fits");
        match self.random.below(600) {
            0 => {
                fleet.signal(client, Signal::SIGSTOP);
                fleet.make_late(client);
                self.done.long_stops += 1;
                let after = GRACE + Duration::from_millis(self.random.below(2_000));
                self.stopped
                    .push((fleet.pid(client), Instant::now() + after));
            }
            1..20 => {
                fleet.kill(client, place, languages);
                self.done.kills += 1;
            }
            20..40 => {
                fleet.signal(client, Signal::SIGSTOP);
                self.done.stops += 1;
                self.later(fleet.pid(client), 200);
            }
            _ => {}
        }
    }

    fn is_armed(&self, point: &str) -> bool {
        self.armed.is_some_and(|(armed, _, _)| armed == point)
    }

    fn may_die(&mut self) -> bool {
        let now = Instant::now();
        while self
            .deaths
            .front()
            .is_some_and(|at| now - *at > Duration::from_secs(61))
        {
            self.deaths.pop_front();
        }
        let may = self.deaths.len() < self.deaths_max;
        if may {
            self.deaths.push_back(now);
        }
        may
    }

    fn later(&mut self, pid: u32, ms: u64) {
        let after = Duration::from_millis(1 + self.random.below(ms));
        self.stopped.push((pid, Instant::now() + after));
    }

    /// Arms the point whose turn it is: most kill, some stop or stall.
    fn arm(&mut self, daemon: &mut Daemon) {
        if self.armed.is_some() {
            return;
        }
        let Some(point) = self.next_point() else {
            return;
        };
        self.turns.push_back(point);
        let seldom = SELDOM.contains(&point);
        let action = match self.random.below(6) {
            0 => Action::Stall,
            1 => Action::Stop,
            _ => Action::Kill,
        };
        if (seldom || action == Action::Kill) && !self.may_die() {
            return;
        }
        let pass = if seldom { 1 } else { 1 + self.random.below(3) };
        let file = daemon.failpoint(point);
        let new = file.with_extension("new");
        fs::write(&new, format!("{} {pass}", action.as_str())).expect("writes");
        fs::rename(&new, &file).expect("renames");
        self.armed = Some((point, action, Instant::now()));
        match point {
            // Nobody comes here unless a daemon begins or ends.
            "adopting" | "adopted" | "resuming" => {
                self.deaths.push_back(Instant::now());
                if let Some(pid) = daemon.family.daemons().first() {
                    signal(*pid, Signal::SIGKILL);
                    self.done.kills += 1;
                }
            }
            "handing-over" => {
                daemon.replace();
                self.done.takeovers += 1;
            }
            _ => {}
        }
    }

    /// The point whose turn it is, of those that this daemon comes to. In a hurry, those come first
    /// that nothing has happened at, and of those the one that others do not come to.
    fn next_point(&mut self) -> Option<&'static str> {
        let never = self.done.never();
        let is_missing = |point: &str| self.hurries && never.contains(&point);
        let may = |point: &str| {
            self.edge.comes_to(point) && !(point == "read" && self.disk_until.is_some())
        };
        let turns = self
            .turns
            .iter()
            .enumerate()
            .filter(|(_, point)| may(point));
        let (at, _) = turns.min_by_key(|(_, point)| {
            match (is_missing(point), Edge::None.comes_to(point)) {
                (true, false) => 0,
                (true, true) => 1,
                (false, _) => 2,
            }
        })?;
        self.turns.remove(at)
    }

    /// Notices that a point was reached, or that nobody comes there.
    fn watch_point(&mut self, daemon: &Daemon) {
        let Some((point, action, since)) = self.armed else {
            return;
        };
        let file = daemon.failpoint(point);
        let reached = match action {
            Action::Kill | Action::Stop => !file.exists(),
            Action::Stall => file.with_extension("done").exists(),
        };
        if reached {
            let what = format!("{point} {}", action.as_str());
            *self.done.reached.entry(what).or_default() += 1;
            match action {
                Action::Kill => self.done.kills += 1,
                Action::Stop => self.done.stops += 1,
                Action::Stall => {}
            }
        }
        let patience = match SELDOM.contains(&point) {
            true => REACH_SELDOM,
            false => REACH,
        };
        if reached || since.elapsed() > patience {
            let _ = fs::remove_file(&file);
            let _ = fs::remove_file(file.with_extension("done"));
            self.armed = None;
        }
    }

    /// Everything goes on again.
    pub(crate) fn end(&mut self, daemon: &Daemon) {
        self.watch_point(daemon);
        self.armed = None;
        self.mend_disk(daemon);
        self.release(daemon);
        daemon.disarm();
        for (pid, _) in self.stopped.drain(..) {
            signal(pid, Signal::SIGCONT);
        }
    }
}
