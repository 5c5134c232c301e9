//! What goes wrong, drawn from the seed.

use crate::daemon::Daemon;
use crate::fleet::{Fleet, Languages, Place};
use mrm_tests::Random;
use mrm_tests::survival::signal;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::time::{Duration, Instant};

/// The named steps of the daemon at which it can be killed (`mrm-daemon/src/failpoint.rs`).
pub(crate) const POINTS: [&str; 17] = [
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
];

/// How often each kind was done, and how often each point was reached.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    pub(crate) takeovers: u64,
    pub(crate) disk_faults: u64,
    pub(crate) reached: BTreeMap<&'static str, u64>,
}

pub(crate) struct Trouble {
    pub(crate) random: Random,
    pub(crate) done: Done,
    /// Points in the order of their turns.
    turns: VecDeque<&'static str>,
    armed: Option<(&'static str, bool, Instant)>,
    /// Who is stopped, and until when.
    stopped: Vec<(u32, Instant)>,
    /// Deaths of the daemon that a keeper may still count.
    deaths: VecDeque<Instant>,
    deaths_max: usize,
    disk_until: Option<Instant>,
    next_end: Instant,
}

impl Trouble {
    /// With at most so many deaths of the daemon a minute.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            done: Done::default(),
            turns: POINTS.into(),
            armed: None,
            stopped: Vec::new(),
            deaths: VecDeque::new(),
            deaths_max: usize::MAX,
            disk_until: None,
            next_end: Instant::now(),
        }
    }

    /// From now on at most so many deaths of the daemon a minute.
    pub(crate) fn spare(&mut self, deaths_max: usize) {
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
            self.disk_until = None;
            let _ = fs::remove_file(daemon.failpoint("read"));
            daemon.fill_disk(false);
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
        self.next_end = now + Duration::from_millis(500 + self.random.below(1_000));
        let pid = daemon.family.daemons().first().copied();
        match (self.random.below(10), pid) {
            (0 | 1, Some(pid)) if self.may_die() => {
                signal(pid, Signal::SIGKILL);
                self.done.kills += 1;
            }
            (2, Some(pid)) => {
                signal(pid, Signal::SIGSTOP);
                self.done.stops += 1;
                self.later(pid, 150);
            }
            (3, Some(_)) => {
                daemon.replace();
                self.done.takeovers += 1;
            }
            (4 | 5, _) if self.disk_until.is_none() && !self.is_armed("read") => {
                let action = ["error 3", "stall 2"][usize::from(self.random.below(2) == 0)];
                fs::write(daemon.failpoint("read"), action).expect("writes");
                daemon.fill_disk(true);
                self.disk_until = Some(now + Duration::from_millis(300));
                self.done.disk_faults += 1;
            }
            (_, _) => self.arm(daemon),
        }
    }

    /// What happens to clients.
    fn clients(&mut self, fleet: &mut Fleet, (place, languages): (&Place<'_>, &Languages)) {
        let client = usize::try_from(self.random.below(fleet.len() as u64)).expect("fits");
        match self.random.below(30) {
            0 => {
                fleet.kill(client, place, languages);
                self.done.kills += 1;
            }
            1 => {
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

    /// Arms the point whose turn it is: most kill, some stop.
    fn arm(&mut self, daemon: &mut Daemon) {
        if self.armed.is_some()
            || (self.disk_until.is_some() && self.turns.front() == Some(&"read"))
        {
            return;
        }
        if !self.may_die() {
            return;
        }
        let Some(point) = self.turns.pop_front() else {
            return;
        };
        self.turns.push_back(point);
        let kills = self.random.below(4) > 0;
        let action = if kills { "kill" } else { "stop" };
        let pass = 1 + self.random.below(3);
        // These are passed once by each daemon, or seldom.
        let once = ["adopted", "resuming", "handing-over"].contains(&point);
        let pass = if once { 1 } else { pass };
        let file = daemon.failpoint(point);
        let new = file.with_extension("new");
        fs::write(&new, format!("{action} {pass}")).expect("writes");
        fs::rename(&new, &file).expect("renames");
        self.armed = Some((point, kills, Instant::now()));
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

    /// Notices that a point was reached, or that nobody comes there.
    fn watch_point(&mut self, daemon: &Daemon) {
        let Some((point, kills, since)) = self.armed else {
            return;
        };
        if !daemon.failpoint(point).exists() {
            *self.done.reached.entry(point).or_default() += 1;
            match kills {
                true => self.done.kills += 1,
                false => self.done.stops += 1,
            }
            self.armed = None;
        } else if since.elapsed() > Duration::from_secs(2) {
            let _ = fs::remove_file(daemon.failpoint(point));
            self.armed = None;
        }
    }

    /// Everything goes on again.
    pub(crate) fn end(&mut self, daemon: &Daemon) {
        self.watch_point(daemon);
        self.armed = None;
        self.disk_until = None;
        daemon.disarm();
        daemon.fill_disk(false);
        for (pid, _) in self.stopped.drain(..) {
            signal(pid, Signal::SIGCONT);
        }
    }
}
