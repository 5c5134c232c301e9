//! A bounded queue between the decider and the threads of one lane.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A queue that refuses when it is full, and that ends.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Something to take, or nothing ever again.
    ready: Condvar,
    /// A worker left.
    left: Condvar,
    waiting_max: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
    /// The workers that are still there, by index.
    workers: Vec<usize>,
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
                waiting: VecDeque::new(),
                closed: false,
                workers: (0..workers).collect(),
            }),
            ready: Condvar::new(),
            left: Condvar::new(),
            waiting_max,
        }
    }

    /// Queues an item. Never blocks for longer than another push or pop takes.
    pub(super) fn push(&self, item: T) -> Result<(), Refused<T>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed(item));
        }
        if state.waiting.len() >= self.waiting_max {
            return Err(Refused::Full(item));
        }
        state.waiting.push_back(item);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// The oldest item; waits for one. `None` once the queue is closed.
    pub(super) fn pop(&self) -> Option<T> {
        let state = self.lock();
        let mut state = self
            .ready
            .wait_while(state, |state| state.waiting.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting.pop_front()
    }

    /// How many items wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Takes no more, and returns what nobody will take.
    pub(super) fn close(&self) -> VecDeque<T> {
        let mut state = self.lock();
        state.closed = true;
        let rest = std::mem::take(&mut state.waiting);
        drop(state);
        self.ready.notify_all();
        rest
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
