//! A bounded queue between the decider and the threads of one lane.
//!
//! What is urgent goes first. Of what is equally urgent the tenants take turns by how much of their
//! work was done (weighted fair queueing: each piece of work is due when its tenant's share comes to
//! it), and of one tenant's the oldest goes first. Some threads take short work only, so that it
//! does not wait behind long work.

use super::rank::{Rank, Tenant, Urgency};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Tenants whose share is remembered; those beyond begin anew.
const TENANTS_MAX: usize = 1024;

/// A queue that refuses when it is full, and that ends.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Something to take for a worker of a kind, or nothing ever again.
    ready: [Condvar; 2],
    /// A worker left.
    left: Condvar,
    waiting_max: usize,
}

/// Which work a thread takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Any.
    Any,
    /// Short work.
    Short,
}

/// The order in which work is taken.
type Place = (Urgency, u64, u64);

struct State<T> {
    short: BTreeMap<Place, T>,
    long: BTreeMap<Place, T>,
    pushed: u64,
    shares: Shares,
    /// Workers that sleep, and those of them that were woken, by what they take.
    idle: [usize; 2],
    woken: [usize; 2],
    closed: bool,
    /// The workers that are still there, by index.
    workers: Vec<usize>,
}

/// When each tenant's next piece of work is due, in bytes of work done.
#[derive(Default)]
struct Shares {
    now: u64,
    due: HashMap<Tenant, u64>,
}

impl Shares {
    fn next(&mut self, rank: Rank) -> u64 {
        let due = self.due.get(&rank.tenant).copied().unwrap_or(0);
        let due = due.max(self.now).saturating_add(rank.cost());
        if self.due.len() >= TENANTS_MAX {
            let now = self.now;
            self.due.retain(|_, due| *due > now);
        }
        if self.due.len() < TENANTS_MAX {
            self.due.insert(rank.tenant, due);
        }
        due
    }
}

/// Why something was not queued; it comes back.
pub(super) enum Refused<T> {
    /// The bound is reached.
    Full(T),
    /// No more is taken.
    Closed(T),
}

impl<T> Queue<T> {
    /// An empty queue that `workers` threads will serve.
    pub(super) fn new(waiting_max: usize, workers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                short: BTreeMap::new(),
                long: BTreeMap::new(),
                pushed: 0,
                shares: Shares::default(),
                idle: [0; 2],
                woken: [0; 2],
                closed: false,
                workers: (0..workers).collect(),
            }),
            ready: [Condvar::new(), Condvar::new()],
            left: Condvar::new(),
            waiting_max,
        }
    }

    /// Queues an item. Never blocks for longer than another push or pop takes.
    pub(super) fn push(&self, rank: Rank, item: T) -> Result<(), Refused<T>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed(item));
        }
        if state.len() >= self.waiting_max {
            return Err(Refused::Full(item));
        }
        state.pushed += 1;
        let place = (rank.urgency, state.shares.next(rank), state.pushed);
        let wakes = match rank.is_short() {
            true => {
                state.short.insert(place, item);
                // Who takes anything is woken first: it may have been the last to run, and warm.
                state.wake(Takes::Any).or_else(|| state.wake(Takes::Short))
            }
            false => {
                state.long.insert(place, item);
                state.wake(Takes::Any)
            }
        };
        drop(state);
        if let Some(kind) = wakes {
            self.ready[kind as usize].notify_one();
        }
        Ok(())
    }

    /// The next item; waits for one. `None` once the queue is closed.
    pub(super) fn pop(&self, takes: Takes) -> Option<T> {
        let kind = takes as usize;
        let mut state = self.lock();
        loop {
            if let Some(item) = state.take(takes) {
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state.idle[kind] += 1;
            state = self.ready[kind]
                .wait_while(state, |state| state.woken[kind] == 0 && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            // Whoever wakes a worker has counted it out already.
            match state.woken[kind].checked_sub(1) {
                Some(rest) => state.woken[kind] = rest,
                None => state.idle[kind] = state.idle[kind].saturating_sub(1),
            }
        }
    }

    /// How many items wait.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes no more, and returns what nobody will take.
    pub(super) fn close(&self) -> VecDeque<T> {
        let mut state = self.lock();
        state.closed = true;
        let (short, long) = (
            std::mem::take(&mut state.short),
            std::mem::take(&mut state.long),
        );
        drop(state);
        self.ready.iter().for_each(Condvar::notify_all);
        short.into_values().chain(long.into_values()).collect()
    }

    /// This worker will take nothing more.
    pub(super) fn leave(&self, worker: usize) {
        let mut state = self.lock();
        state.workers.retain(|&other| other != worker);
        drop(state);
        self.left.notify_all();
    }

    /// Waits until all workers left; returns those that did not.
    pub(super) fn wait_left(&self, deadline: Instant) -> Vec<usize> {
        let mut state = self.lock();
        while !state.workers.is_empty() {
            let left_for = deadline.saturating_duration_since(Instant::now());
            if left_for.is_zero() {
                break;
            }
            state = match self.left.wait_timeout(state, left_for) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        state.workers.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of an item runs under the lock, so the state is whole whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Counts a sleeping worker out, if there is one.
    fn wake(&mut self, takes: Takes) -> Option<Takes> {
        let idle = &mut self.idle[takes as usize];
        *idle = idle.checked_sub(1)?;
        self.woken[takes as usize] += 1;
        Some(takes)
    }

    fn take(&mut self, takes: Takes) -> Option<T> {
        let short = self.short.first_key_value().map(|(place, _)| *place);
        let long = match takes {
            Takes::Any => self.long.first_key_value().map(|(place, _)| *place),
            Takes::Short => None,
        };
        let from = match (short, long) {
            (Some(short), Some(long)) if long < short => &mut self.long,
            (None, Some(_)) => &mut self.long,
            (Some(_), _) => &mut self.short,
            (None, None) => return None,
        };
        let (place, item) = from.pop_first()?;
        // What is less urgent and was put back for it does not set the clock back.
        self.shares.now = self.shares.now.max(place.1);
        Some(item)
    }
}

#[cfg(test)]
mod tests;
