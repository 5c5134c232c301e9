//! What goes first, and who gives way.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Work up to that many bytes is short: it never waits behind what is longer.
const SHORT_BYTES: u64 = 16 << 20;
/// What a piece of work takes beside its bytes, as bytes: opening, allocating, telling.
const FIXED_BYTES: u64 = 256 << 10;
/// How long one piece of a load waits for loads that are more urgent: it goes on slowly, but never
/// stands still for as long as they last.
const GIVES_WAY_FOR: Duration = Duration::from_millis(100);

/// How soon something is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Urgency {
    /// A client waits for it.
    #[default]
    Foreground,
    /// The operator asked for it.
    Warm,
    /// Nobody asked for it yet.
    Ahead,
}

impl Urgency {
    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Foreground,
            1 => Self::Warm,
            _ => Self::Ahead,
        }
    }
}

/// For whom something is done: a uid, or the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tenant(pub u32);

/// The place of a piece of work among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rank {
    /// What is more urgent goes first.
    pub urgency: Urgency,
    /// Tenants share what is equally urgent.
    pub tenant: Tenant,
    /// How much is to be read; 0 if nothing is.
    pub bytes: u64,
}

impl Rank {
    /// Whether it may be done by threads that are kept for short work.
    pub(super) const fn is_short(self) -> bool {
        self.bytes <= SHORT_BYTES
    }

    pub(super) const fn cost(self) -> u64 {
        self.bytes.saturating_add(FIXED_BYTES)
    }
}

/// The loads that run, by their urgency: those that are less urgent give way to the others.
#[derive(Debug, Default)]
pub struct Turns {
    running: Mutex<[usize; 3]>,
    changed: Condvar,
}

/// The turns of one load. Its urgency can be raised while it runs.
#[derive(Debug, Clone)]
pub struct Turn {
    turns: Arc<Turns>,
    urgency: Arc<AtomicU8>,
}

/// A load that runs.
pub(super) struct Running<'a> {
    turn: &'a Turn,
    as_urgent: Mutex<Urgency>,
}

impl Turn {
    /// The turns of a load of this urgency among the loads of `turns`.
    #[must_use]
    pub fn new(turns: &Arc<Turns>, urgency: Urgency) -> Self {
        Self {
            turns: Arc::clone(turns),
            urgency: Arc::new(AtomicU8::new(urgency as u8)),
        }
    }

    /// How urgent it is now.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        Urgency::of(self.urgency.load(Ordering::Relaxed))
    }

    /// From now on it is at least as urgent as `urgency`.
    pub fn raise(&self, urgency: Urgency) {
        // Under the lock, so that whoever is about to wait sees it.
        let running = self.turns.lock();
        self.urgency.fetch_min(urgency as u8, Ordering::Relaxed);
        drop(running);
        self.turns.changed.notify_all();
    }

    /// The load begins.
    pub(super) fn begin(&self) -> Running<'_> {
        let urgency = self.urgency();
        self.turns.lock()[urgency as usize] += 1;
        Running {
            turn: self,
            as_urgent: Mutex::new(urgency),
        }
    }
}

impl Running<'_> {
    /// Before each piece: waits while a load that is more urgent runs, but not for long.
    pub(super) fn give_way(&self) {
        let urgency = self.turn.urgency();
        if urgency == Urgency::Foreground {
            return self.count_as(urgency, &mut self.turn.turns.lock());
        }
        let until = Instant::now() + GIVES_WAY_FOR;
        let mut running = self.turn.turns.lock();
        loop {
            let urgency = self.turn.urgency();
            self.count_as(urgency, &mut running);
            let above = running.iter().take(urgency as usize).sum::<usize>();
            let left = until.saturating_duration_since(Instant::now());
            if above == 0 || left.is_zero() {
                return;
            }
            running = match self.turn.turns.changed.wait_timeout(running, left) {
                Ok((running, _)) => running,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Counts it where it belongs since it was raised.
    fn count_as(&self, urgency: Urgency, running: &mut [usize; 3]) {
        let mut before = self
            .as_urgent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *before != urgency {
            running[*before as usize] = running[*before as usize].saturating_sub(1);
            running[urgency as usize] += 1;
            *before = urgency;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let urgency = *self
            .as_urgent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut running = self.turn.turns.lock();
        running[urgency as usize] = running[urgency as usize].saturating_sub(1);
        drop(running);
        self.turn.turns.changed.notify_all();
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, [usize; 3]> {
        // Numbers are whole whatever panicked.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_gives_way_to_a_client_and_not_to_another_warm_up() {
        let turns = Arc::new(Turns::default());
        let (warm, other) = (
            Turn::new(&turns, Urgency::Warm),
            Turn::new(&turns, Urgency::Warm),
        );
        let client = Turn::new(&turns, Urgency::Foreground);
        let (warm_runs, _other_runs) = (warm.begin(), other.begin());
        warm_runs.give_way();
        let client_runs = client.begin();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| warm_runs.give_way());
            client_runs.give_way();
            drop(client_runs);
            waits
                .join()
                .expect("it goes on when the client's load has ended");
        });
    }

    #[test]
    fn what_stays_more_urgent_for_long_does_not_stop_the_others() {
        let turns = Arc::new(Turns::default());
        let (warm, client) = (
            Turn::new(&turns, Urgency::Warm),
            Turn::new(&turns, Urgency::Foreground),
        );
        let (warm_runs, _client_runs) = (warm.begin(), client.begin());
        // It returns although the client's load never ends.
        warm_runs.give_way();
    }

    #[test]
    fn a_load_that_is_raised_counts_as_what_it_became() {
        let turns = Arc::new(Turns::default());
        let (raised, warm) = (
            Turn::new(&turns, Urgency::Ahead),
            Turn::new(&turns, Urgency::Warm),
        );
        let (raised_runs, _warm_runs) = (raised.begin(), warm.begin());
        raised.raise(Urgency::Foreground);
        raised.raise(Urgency::Warm);
        raised_runs.give_way();
        assert_eq!(raised.urgency(), Urgency::Foreground);
        assert_eq!(*turns.lock(), [1, 1, 0]);
        drop(raised_runs);
        assert_eq!(*turns.lock(), [0, 1, 0]);
    }
}
