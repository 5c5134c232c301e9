//! Worker threads, in lanes that cannot hold each other up.

use super::completion::{Completion, Lost};
use super::queue::{Queue, Refused, Takes};
use super::rank::{Rank, Urgency};
use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// What a worker runs.
pub type Job = Box<dyn FnOnce() + Send>;

/// Which threads run a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Files of the operator's catalogue.
    Registered,
    /// Files that clients passed: whoever owns their filesystem may make a read slow.
    Foreign,
    /// Giving memory back: what waits for room must not wait behind a load.
    Freeing,
}

impl Lane {
    /// The prefix of its threads' names.
    const fn thread_prefix(self) -> &'static str {
        match self {
            Self::Registered => "mrm-load",
            Self::Foreign => "mrm-foreign",
            Self::Freeing => "mrm-free",
        }
    }
}

/// How many threads and how long a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanesConfig {
    /// Threads for the operator's files.
    pub registered_threads: usize,
    /// Threads for the clients' files.
    pub foreign_threads: usize,
    /// Threads of each of these lanes that take short work only, besides those: what resolves a name
    /// or reads a small file does not wait behind large files.
    pub short_threads: usize,
    /// How much work may wait in each lane.
    pub waiting_max: usize,
}

impl Default for LanesConfig {
    fn default() -> Self {
        Self {
            registered_threads: 2,
            foreign_threads: 2,
            short_threads: 2,
            waiting_max: 4096,
        }
    }
}

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start thread {name}: {cause}; raise the daemon's TasksMax or LimitNPROC")]
pub struct LanesError {
    /// The thread.
    pub name: String,
    /// What the kernel said.
    pub cause: io::Error,
}

/// A thread that did not end in time. It goes on until its system call returns, or the process
/// ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hung {
    /// The thread.
    pub thread: String,
}

/// The worker threads. [`shut_down`](Lanes::shut_down) ends them; dropping without it only stops
/// them from taking more work.
pub struct Lanes {
    registered: Threads,
    foreign: Threads,
    freeing: Threads,
}

/// A piece of work with its completion, to be run with others.
pub struct Task(Box<dyn Work>);

impl Task {
    /// Runs `work`, and sends what it returns.
    pub fn new<T: 'static>(
        completion: Completion<T>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Self {
        Self(Box::new(Tracked { completion, work }))
    }

    /// Drops it, and sends why it is not done.
    pub fn lost(self, lost: Lost) {
        self.0.give_up(lost);
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

/// Work that was queued; see [`Lanes::raise`].
#[derive(Clone)]
pub struct Ticket {
    lane: Lane,
    rank: Rank,
    urgency: Arc<AtomicU8>,
    task: Arc<Mutex<Option<Box<dyn Work>>>>,
}

impl Ticket {
    /// Whether no thread has taken it yet.
    fn waits(&self) -> bool {
        let task = self.task.lock();
        task.unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("lane", &self.lane)
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}

/// The threads of one lane, and what waits for them.
pub(crate) struct Threads {
    queue: Arc<Queue<Box<dyn Work>>>,
    workers: Vec<JoinHandle<()>>,
}

impl Lanes {
    /// Starts the threads: at least one in each lane.
    ///
    /// # Errors
    /// If the system has no thread left; those already started end.
    pub fn start(config: LanesConfig) -> Result<Self, LanesError> {
        let lane = |lane: Lane, threads: usize| {
            let (prefix, short) = (lane.thread_prefix(), config.short_threads);
            Threads::start_with(prefix, (threads, short), config.waiting_max)
        };
        Ok(Self {
            registered: lane(Lane::Registered, config.registered_threads)?,
            foreign: lane(Lane::Foreign, config.foreign_threads)?,
            freeing: Threads::start(Lane::Freeing.thread_prefix(), 1, config.waiting_max)?,
        })
    }

    /// Runs `work` on a thread of the lane and sends what it returns. Never blocks. `completion`
    /// is settled exactly once, on this thread if the lane does not take the work. What `work`
    /// holds is dropped before that, so work of the lane [`Freeing`](Lane::Freeing) has its effect
    /// even if it is not taken.
    pub fn run<T: 'static>(
        &self,
        lane: Lane,
        completion: Completion<T>,
        work: impl FnOnce() -> T + Send + 'static,
    ) {
        self.threads(lane).run(completion, work);
    }

    /// Runs several pieces of work, one after the other, on a thread of the lane, in their place among
    /// other work; before them `first`. Each is settled as with [`run`](Self::run), as soon as it is
    /// done. What is returned can give them a better place.
    pub fn run_all(&self, lane: Lane, rank: Rank, first: Option<Job>, tasks: Vec<Task>) -> Ticket {
        let tasks = tasks.into_iter().map(|task| task.0).collect();
        let batch: Box<dyn Work> = Box::new(Batch { first, tasks });
        let ticket = Ticket {
            lane,
            rank,
            urgency: Arc::new(AtomicU8::new(rank.urgency as u8)),
            task: Arc::new(Mutex::new(Some(batch))),
        };
        self.queue_up(&ticket, rank);
        ticket
    }

    /// What still waits is at least as urgent as `urgency` from now on.
    pub fn raise(&self, ticket: &Ticket, urgency: Urgency) {
        let before = ticket.urgency.fetch_min(urgency as u8, Ordering::Relaxed);
        if (urgency as u8) < before && ticket.waits() {
            let rank = Rank {
                urgency,
                ..ticket.rank
            };
            // Whichever of its places comes first runs it, and the other finds nothing to do.
            self.queue_up(ticket, rank);
        }
    }

    fn queue_up(&self, ticket: &Ticket, rank: Rank) {
        let place = Box::new(Shared(Arc::clone(&ticket.task)));
        match self.threads(ticket.lane).push(rank, place) {
            Ok(()) => {}
            // It has a place already, if not so good a one.
            Err((place, Lost::QueueFull { .. })) if rank != ticket.rank => drop(place),
            Err((place, lost)) => place.give_up(lost),
        }
    }

    /// Runs `job`, which answers to nobody, on a thread of the lane. Never blocks. A panic ends
    /// only the job.
    ///
    /// # Errors
    /// If as much waits as may wait, or the lanes are shut down; `job` was dropped then.
    pub fn submit(&self, lane: Lane, job: Job) -> Result<(), Lost> {
        self.threads(lane)
            .push(Rank::default(), Box::new(Untracked(job)))
            .map_err(|(_, lost)| lost)
    }

    /// How much work waits in the lane.
    #[must_use]
    pub fn waiting(&self, lane: Lane) -> usize {
        self.threads(lane).waiting()
    }

    /// Gives up what waits, and waits for what runs until `deadline`; returns what still ran then.
    pub fn shut_down(self, deadline: Instant) -> Vec<Hung> {
        Threads::shut_down([self.registered, self.foreign, self.freeing], deadline)
    }

    const fn threads(&self, lane: Lane) -> &Threads {
        match lane {
            Lane::Registered => &self.registered,
            Lane::Foreign => &self.foreign,
            Lane::Freeing => &self.freeing,
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("registered_waiting", &self.waiting(Lane::Registered))
            .field("foreign_waiting", &self.waiting(Lane::Foreign))
            .field("freeing_waiting", &self.waiting(Lane::Freeing))
            .finish()
    }
}

impl Threads {
    /// Starts at least one thread, each called `prefix` and its number.
    pub(crate) fn start(
        prefix: &str,
        threads: usize,
        waiting_max: usize,
    ) -> Result<Self, LanesError> {
        Self::start_with(prefix, (threads, 0), waiting_max)
    }

    /// As [`start`](Self::start), and so many more threads for short work alone.
    fn start_with(
        prefix: &str,
        (threads, short): (usize, usize),
        waiting_max: usize,
    ) -> Result<Self, LanesError> {
        let threads = threads.max(1);
        let queue = Arc::new(Queue::new(waiting_max, threads + short));
        let mut started = Self {
            queue,
            workers: Vec::with_capacity(threads + short),
        };
        for index in 0..threads + short {
            let name = format!("{prefix}-{index}");
            let queue = Arc::clone(&started.queue);
            let takes = if index < threads {
                Takes::Any
            } else {
                Takes::Short
            };
            let worker = Builder::new()
                .name(name.clone())
                .spawn(move || work_through(&queue, index, takes))
                .map_err(|cause| LanesError { name, cause })?;
            started.workers.push(worker);
        }
        Ok(started)
    }

    /// As [`Lanes::run`].
    pub(crate) fn run<T: 'static>(
        &self,
        completion: Completion<T>,
        work: impl FnOnce() -> T + Send + 'static,
    ) {
        let task = Box::new(Tracked { completion, work });
        if let Err((task, lost)) = self.push(Rank::default(), task) {
            task.give_up(lost);
        }
    }

    /// As [`Lanes::shut_down`], of several at once.
    pub(crate) fn shut_down<const N: usize>(lanes: [Self; N], deadline: Instant) -> Vec<Hung> {
        for threads in &lanes {
            threads.close();
        }
        lanes
            .into_iter()
            .flat_map(|threads| threads.join(deadline))
            .collect()
    }

    /// How much work waits.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn push(&self, rank: Rank, task: Box<dyn Work>) -> Result<(), (Box<dyn Work>, Lost)> {
        self.queue
            .push(rank, task)
            .map_err(|refused| match refused {
                Refused::Full(task) => (
                    task,
                    Lost::QueueFull {
                        waiting: self.queue.len(),
                    },
                ),
                Refused::Closed(task) => (task, Lost::ShuttingDown),
            })
    }

    fn close(&self) {
        for task in self.queue.close() {
            task.give_up(Lost::ShuttingDown);
        }
    }

    fn join(mut self, deadline: Instant) -> Vec<Hung> {
        let busy = self.queue.wait_left(deadline);
        let mut hung = Vec::new();
        for (index, worker) in std::mem::take(&mut self.workers).into_iter().enumerate() {
            if busy.contains(&index) {
                let thread = worker.thread().name().unwrap_or("unnamed").to_owned();
                hung.push(Hung { thread });
            } else if worker.join().is_err() {
                tracing::error!(index, "a worker thread ended by a panic");
            }
        }
        hung
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a worker thread does.
fn work_through(queue: &Queue<Box<dyn Work>>, index: usize, takes: Takes) {
    struct Leave<'a>(&'a Queue<Box<dyn Work>>, usize);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.leave(self.1);
        }
    }
    let _leave = Leave(queue, index);
    while let Some(task) = queue.pop(takes) {
        // What the task shares with others it shares through types that survive a panic.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task.run())) {
            tracing::error!(message = message(panic.as_ref()), "a job panicked");
        }
    }
}

/// What a queue holds.
trait Work: Send {
    /// Does it.
    fn run(self: Box<Self>);
    /// Drops it, then says why it is not done.
    fn give_up(self: Box<Self>, lost: Lost);
}

struct Tracked<T, F> {
    completion: Completion<T>,
    work: F,
}

impl<T, F: FnOnce() -> T + Send> Work for Tracked<T, F> {
    fn run(self: Box<Self>) {
        let Self { completion, work } = *self;
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => completion.done(result),
            Err(panic) => {
                let message = message(panic.as_ref()).to_owned();
                tracing::error!(message, "a piece of work panicked");
                completion.lost(Lost::Panicked { message });
            }
        }
    }

    fn give_up(self: Box<Self>, lost: Lost) {
        let Self { completion, work } = *self;
        drop(work);
        completion.lost(lost);
    }
}

/// A task that waits in several places, and is done in the first that comes.
struct Shared(Arc<Mutex<Option<Box<dyn Work>>>>);

impl Shared {
    fn take(&self) -> Option<Box<dyn Work>> {
        // Nothing runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Work for Shared {
    fn run(self: Box<Self>) {
        if let Some(task) = self.take() {
            task.run();
        }
    }

    fn give_up(self: Box<Self>, lost: Lost) {
        if let Some(task) = self.take() {
            task.give_up(lost);
        }
    }
}

/// Several tasks, done one after the other.
struct Batch {
    first: Option<Job>,
    tasks: Vec<Box<dyn Work>>,
}

impl Work for Batch {
    fn run(self: Box<Self>) {
        if let Some(first) = self.first
            && let Err(panic) = catch_unwind(AssertUnwindSafe(first))
        {
            tracing::error!(message = message(panic.as_ref()), "a job panicked");
        }
        for task in self.tasks {
            task.run();
        }
    }

    fn give_up(self: Box<Self>, lost: Lost) {
        drop(self.first);
        for task in self.tasks {
            task.give_up(lost.clone());
        }
    }
}

struct Untracked(Job);

impl Work for Untracked {
    fn run(self: Box<Self>) {
        (self.0)();
    }

    fn give_up(self: Box<Self>, _: Lost) {}
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
