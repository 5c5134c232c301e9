//! Starts the daemon again after its death, where no service manager does.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Crashes older than this do not count.
const CRASHES_WITHIN: Duration = Duration::from_secs(60);
/// Exit statuses of `mrmd` that another attempt does not change: it ended as it should, its
/// configuration is wrong, or another daemon serves.
const FINAL_STATUSES: [i32; 3] = [0, 2, 3];

/// How the keeper starts the daemon again: at once the first time, later after a delay that doubles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respawn {
    /// The program. The environment is the one that the keeper was started with.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The delay after the second crash within a minute. After the first there is none.
    pub backoff_min_ms: u64,
    /// The longest delay.
    pub backoff_max_ms: u64,
    /// After so many crashes within a minute it is not started any more.
    pub crashes_max: usize,
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// It will be started again.
    Died { crashes: usize, delay_ms: u64 },
    /// It crashed too often.
    GaveUp { crashes: usize },
    /// It ended in a way that another attempt does not change.
    Final { status: i32 },
}

/// The daemon's life, as far as its keeper is concerned.
pub(super) struct Respawner {
    settings: Respawn,
    /// Of the children: the keeper itself is spared by the kernel when memory runs out.
    oom_score_adj: Option<i32>,
    watched: Option<Watched>,
    /// Children that are no longer watched, but must be waited for.
    left: Vec<Child>,
    due: Option<Instant>,
    crashes: VecDeque<Instant>,
    backoff_ms: u64,
    given_up: bool,
}

struct Watched {
    pid: i32,
    /// Readable when it has exited.
    pidfd: OwnedFd,
    child: Option<Child>,
    since: Instant,
}

impl Respawn {
    /// Starts `program` with `args`, at once and then after 100 ms to 10 s, and gives up after 8
    /// crashes in a minute.
    #[must_use]
    pub const fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self {
            program,
            args,
            backoff_min_ms: 100,
            backoff_max_ms: 10_000,
            crashes_max: 8,
        }
    }
}

impl Respawner {
    pub(super) const fn new(settings: Respawn, oom_score_adj: Option<i32>) -> Self {
        let backoff_ms = settings.backoff_min_ms;
        Self {
            settings,
            oom_score_adj,
            watched: None,
            left: Vec::new(),
            due: None,
            crashes: VecDeque::new(),
            backoff_ms,
            given_up: false,
        }
    }

    /// A daemon said hello.
    pub(super) fn came(&mut self, pid: i32, pidfd: Option<OwnedFd>, now: Instant) {
        self.due = None;
        if self.watched.as_ref().is_some_and(|known| known.pid == pid) {
            return;
        }
        let before = self.watched.take();
        self.left.extend(before.and_then(|before| before.child));
        self.watched = pidfd.map(|pidfd| Watched {
            pid,
            pidfd,
            child: None,
            since: now,
        });
    }

    /// The daemon's connection ended. Its process may still be there: only when it is not, or
    /// nobody can tell, is another one started.
    pub(super) fn went(&mut self, now: Instant) -> Option<Happened> {
        match &self.watched {
            Some(_) => None,
            None => self.crashed(now, now),
        }
    }

    /// Readable when the daemon's process has exited.
    pub(super) fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.watched.as_ref().map(|watched| watched.pidfd.as_fd())
    }

    /// When [`start`](Self::start) is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The daemon's process has exited.
    pub(super) fn exited(&mut self, now: Instant) -> Option<Happened> {
        let watched = self.watched.take()?;
        let status = watched.child.and_then(|mut child| child.wait().ok());
        match status.as_ref().and_then(ExitStatus::code) {
            Some(status) if FINAL_STATUSES.contains(&status) => {
                self.given_up = true;
                Some(Happened::Final { status })
            }
            Some(_) | None => self.crashed(watched.since, now),
        }
    }

    fn crashed(&mut self, since: Instant, now: Instant) -> Option<Happened> {
        if self.given_up {
            return None;
        }
        let long_ago = |crash: &Instant| now.duration_since(*crash) >= CRASHES_WITHIN;
        while self.crashes.front().is_some_and(long_ago) {
            self.crashes.pop_front();
        }
        if now.duration_since(since) >= CRASHES_WITHIN {
            self.backoff_ms = self.settings.backoff_min_ms;
        }
        self.crashes.push_back(now);
        let crashes = self.crashes.len();
        if crashes >= self.settings.crashes_max {
            self.given_up = true;
            return Some(Happened::GaveUp { crashes });
        }
        // The first time it is most likely an accident, and clients wait.
        let delay_ms = match crashes {
            1 => 0,
            _ => self.backoff_ms,
        };
        self.due = Some(now + Duration::from_millis(delay_ms));
        if crashes > 1 {
            let doubled = self.backoff_ms.saturating_mul(2);
            self.backoff_ms = doubled.min(self.settings.backoff_max_ms);
        }
        Some(Happened::Died { crashes, delay_ms })
    }

    /// Starts the daemon. A failure counts as a crash.
    pub(super) fn start(&mut self, now: Instant) -> Result<(), (std::io::Error, Option<Happened>)> {
        self.due = None;
        self.left
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let spawned = Command::new(&self.settings.program)
            .args(&self.settings.args)
            .stdin(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => return Err((error, self.crashed(now, now))),
        };
        if let Some(adj) = self.oom_score_adj {
            // Raising it is always permitted; if that fails the child is merely spared as we are.
            let file = format!("/proc/{}/oom_score_adj", child.id());
            let _ = std::fs::write(file, adj.to_string());
        }
        let raw = i32::try_from(child.id()).unwrap_or(0);
        let pidfd = Pid::from_raw(raw).map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK));
        match pidfd {
            Some(Ok(pidfd)) => {
                self.watched = Some(Watched {
                    pid: raw,
                    pidfd,
                    child: Some(child),
                    since: now,
                });
            }
            // Then the end of its connection is what tells.
            Some(Err(_)) | None => self.left.push(child),
        }
        Ok(())
    }
}
