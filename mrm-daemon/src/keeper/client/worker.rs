//! The thread that brings the keeper into line with what is wanted.

use super::{CURE, Ending, KeepError, Shared, Transport, lock};
use crate::degraded::Degraded;
use crate::failpoint::{self, Point};
use crate::keeper::link::LinkError;
use crate::keeper::table::Job;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first and the longest delay between attempts to start a keeper.
const RETRY_MS: (u64, u64) = (100, 10_000);
/// How often it is started again without a delay.
const RESTARTS_AT_ONCE: u32 = 3;
/// A keeper that lived so long was no failure to start one.
const SETTLED: Duration = Duration::from_secs(10);
/// The keeper's thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    transport: Box<dyn Transport>,
    degraded: Degraded,
    away: Option<Away>,
    /// When the keeper was connected to last.
    since: Instant,
    delay_ms: u64,
    /// Since the keeper last lived for long.
    restarts: u32,
    /// Entries that this keeper did not take.
    refused: u64,
}

/// There is no keeper now.
struct Away {
    why: String,
    /// Whether the one before certainly holds nothing.
    empty: bool,
    retry_at: Instant,
}

impl Worker {
    /// Over a keeper that is there.
    pub(super) fn new(
        shared: Arc<Shared>,
        transport: Box<dyn Transport>,
        degraded: Degraded,
    ) -> Self {
        Self {
            shared,
            transport,
            degraded,
            away: None,
            since: Instant::now(),
            delay_ms: RETRY_MS.0,
            restarts: 0,
            refused: 0,
        }
    }

    /// Until the keeper is stopped or left.
    pub(super) fn run(mut self) {
        loop {
            let (job, ending, replaced) = {
                let mut state = lock(&self.shared.state);
                (state.table.next(), state.ending, state.replaced)
            };
            match (job, ending) {
                // What is to be stopped need not be brought into line any more.
                (job, Some(Ending::Stop)) => {
                    self.stop(job, replaced);
                    return;
                }
                (Some(job), _) if replaced => job.end(Err(KeepError::Replaced)),
                (Some(job), _) => self.work(job),
                (None, Some(Ending::Leave)) => return,
                (None, None) => {
                    self.retry(replaced);
                    self.wait(replaced);
                }
            }
        }
    }

    fn work(&mut self, job: Job) {
        if let Some(away) = &self.away {
            let result = match &job.entry {
                None if away.empty => Ok(()),
                Some(_) | None => Err(KeepError::Away(away.why.clone())),
            };
            // What is wanted is put when there is a keeper again: it is given everything then.
            job.end(result);
            return;
        }
        let result = match &job.entry {
            Some(entry) => {
                failpoint::pass(Point::BeforePut);
                let put = self.transport.put(entry);
                failpoint::pass(Point::AfterPut);
                put
            }
            None => self.transport.remove(&job.key),
        };
        match result {
            Ok(()) => job.end(Ok(())),
            Err(LinkError::Refused(reason)) => {
                self.refused += 1;
                // A keeper that is full says so of each: the log is not filled with it.
                if self.refused.is_power_of_two() {
                    let (key, so_far) = (&job.key, self.refused);
                    self.report(format!(
                        "it does not take {key}, the next daemon will load it again ({so_far} not \
                         taken so far): {reason}"
                    ));
                }
                job.end(Err(KeepError::Refused(reason)));
            }
            Err(LinkError::Describe(error)) => {
                self.report(format!("{} cannot be described: {error}", job.key));
                job.end(Err(KeepError::Description(error.to_string())));
            }
            Err(error) => {
                lock(&self.shared.state).table.again(job);
                self.failed(&error);
            }
        }
    }

    /// The keeper did not do as it should, or is gone.
    fn failed(&mut self, error: &LinkError) {
        if let LinkError::Replaced = error {
            lock(&self.shared.state).replaced = true;
            tracing::info!("another daemon has taken the keeper over");
            return;
        }
        let why = error.to_string();
        self.report(format!("it is started again, and given everything: {why}"));
        let empty = self.transport.end();
        if self.since.elapsed() >= SETTLED {
            (self.restarts, self.delay_ms) = (0, RETRY_MS.0);
        }
        self.restarts += 1;
        let mut retry_at = Instant::now();
        if self.restarts > RESTARTS_AT_ONCE {
            // What dies as soon as it is started is not started all the time.
            retry_at += self.next_delay();
        }
        self.away = Some(Away {
            why,
            empty,
            retry_at,
        });
        self.retry(false);
    }

    /// Starts a keeper where there is none, if it is time.
    fn retry(&mut self, replaced: bool) {
        let Some(away) = &mut self.away else { return };
        let now = Instant::now();
        if replaced || away.retry_at > now {
            return;
        }
        match self.transport.start() {
            Ok(()) => {
                self.away = None;
                self.since = now;
                self.refused = 0;
                lock(&self.shared.state).table.all_again();
            }
            Err(error) => {
                away.why = error.to_string();
                let delay = self.next_delay();
                self.report(error.to_string());
                if let Some(away) = &mut self.away {
                    away.retry_at = now + delay;
                }
            }
        }
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Duration::from_millis(self.delay_ms);
        self.delay_ms = self.delay_ms.saturating_mul(2).min(RETRY_MS.1);
        delay
    }

    /// Waits for something to do, or for the keeper's end.
    fn wait(&mut self, replaced: bool) {
        if !lock(&self.shared.state).table.is_idle() {
            return;
        }
        let wake = self.shared.clone();
        let mut fds = vec![PollFd::new(&wake.wake, PollFlags::IN)];
        let watch = self.transport.watch().filter(|_| !replaced);
        fds.extend(watch.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let left = self
            .away
            .as_ref()
            .filter(|_| !replaced)
            .map(|away| away.retry_at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let polled = poll(&mut fds, timeout.as_ref());
        let said = polled.is_ok() && fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        // Emptied before the table is looked at, so that nothing is missed.
        let _ = rustix::io::read(&wake.wake, &mut [0; 8]);
        if said && let Err(error) = self.transport.unasked() {
            self.failed(&error);
        }
    }

    fn stop(&mut self, job: Option<Job>, replaced: bool) {
        let stopped = match (&self.away, replaced) {
            (None, false) => self.transport.stop(),
            (Some(_), _) | (_, true) => Ok(()),
        };
        let gone = match stopped {
            Ok(()) => !replaced,
            Err(error) => {
                self.report(format!("it did not stop: {error}"));
                self.transport.end()
            }
        };
        let result = |job: &Job| match (&job.entry, gone) {
            (None, true) => Ok(()),
            (None, false) | (Some(_), _) => Err(KeepError::Ended),
        };
        let mut next = job;
        while let Some(job) = next {
            let result = result(&job);
            job.end(result);
            next = lock(&self.shared.state).table.next();
        }
    }

    fn report(&self, cause: String) {
        tracing::warn!(%cause, "keeper");
        self.degraded.report("keeper", cause, CURE);
    }
}
