//! Memory that is made ready before anybody wants it.
//!
//! Taking fresh memory can be slower than reading a disk. A [`Stock`] takes some ahead of need, on
//! a thread of its own and while nothing is being loaded, as *blanks*: segments without content, in
//! huge pages, that nobody outside the daemon ever had. [`Stock::allocate`] cuts one to the length
//! that is wanted, or lets it grow. What was lent never comes back here: who kept a mapping of it
//! would see what is put there next.
//!
//! The same thread puts together in huge pages, while nothing is being loaded either, what was loaded
//! into small ones because huge ones came slowly, or was taken over from another daemon, which may have
//! left it so: [`Stock::put_together`].
//!
//! Blanks are within the budget: whoever keeps the books says with [`Stock::tell`] what they leave,
//! and the stock never keeps more. It is given up where the node runs short of memory.
//!
//! ```
//! use mrm_daemon::{degraded::Degraded, memory::{charge_for, stock::Stock}};
//!
//! let stock = Stock::start(64 << 20, &Degraded::new())?;
//! stock.tell(1 << 30, 0); // the budget leaves a GiB, and nothing is being loaded
//! let mut segment = stock.allocate(5 << 20, charge_for(5 << 20), &Degraded::new())?;
//! segment.as_mut_slice().fill(7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blanks;

use self::blanks::Blanks;
pub use self::blanks::STOCK_BYTES_MAX;
use super::available::Probe;
use super::error::MemoryError;
use super::segment::{Blank, HostSegment, Reserved, Unsealed};
use crate::degraded::Degraded;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often the node's free memory is looked at while there is something to give up.
const LOOK: Duration = Duration::from_secs(1);
/// How long no load begins or ends before more is made.
const REST: Duration = Duration::from_millis(5);
/// The share of what this process may use that is left free: one in so many.
const FREE_SHARE: u64 = 16;
/// How much is made or put together before the thread looks whether something is to be loaded.
const PART_BYTES: u64 = 16 << 20;
/// Segments that wait to be put together; more stay as they are. A daemon that took over looks at all it has.
const TOGETHER_MAX: usize = 1 << 14;
/// How often a part is tried whose pages somebody uses just then, and the pause before the next time.
const TRIES_MAX: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// Blanks, and the thread that makes them.
#[derive(Debug)]
pub struct Stock {
    shared: Arc<Shared>,
    maker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something for the maker to look at.
    changed: Condvar,
    /// The maker looked, and waits.
    settled: Condvar,
    bytes_max: u64,
    probe: Probe,
    degraded: Degraded,
}

#[derive(Debug, Default)]
struct State {
    blanks: Blanks,
    /// What the maker is at.
    making_bytes: u64,
    /// Loads that wait for what there is of that.
    waiters: usize,
    /// What was told last.
    told: (u64, usize),
    /// What was told, until it proved to be too much.
    room_bytes: u64,
    loads: usize,
    /// What is in small pages, and up to where it was put together.
    scattered: VecDeque<Scattered>,
    /// What is left of the one that the maker is at, which is not among these.
    putting_bytes: u64,
    /// How often something changed, and up to which of these the maker has seen to it.
    changes: u64,
    seen: u64,
    closed: bool,
}

/// A segment in small pages.
#[derive(Debug)]
struct Scattered {
    segment: Weak<HostSegment>,
    /// Up to where it was put together.
    from: u64,
    /// How often the next part was tried.
    tries: u32,
}

/// What the maker does next.
enum Task {
    Drop(Vec<Blank>),
    Make(u64),
    PutTogether(Arc<HostSegment>, Scattered),
    Wait,
    End,
}

impl Stock {
    /// Starts the thread. It makes nothing before it is told of room.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(bytes_max: u64, degraded: &Degraded) -> io::Result<Self> {
        Self::start_with(bytes_max, Probe::default(), degraded)
    }

    fn start_with(bytes_max: u64, probe: Probe, degraded: &Degraded) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            settled: Condvar::new(),
            bytes_max,
            probe,
            degraded: degraded.clone(),
        });
        let its = Arc::clone(&shared);
        let maker = Builder::new()
            .name("mrm-stock".to_owned())
            .spawn(move || its.work())?;
        Ok(Self {
            shared,
            maker: Some(maker),
        })
    }

    /// Says what the budget leaves beside all that is charged, and how many loads are under way.
    /// Nothing is made while there are any: that would take from them what it is to save. Does not
    /// block.
    pub fn tell(&self, room_bytes: u64, loads: usize) {
        let mut state = self.shared.lock();
        if state.told == (room_bytes, loads) {
            return;
        }
        state.told = (room_bytes, loads);
        (state.room_bytes, state.loads) = (room_bytes, loads);
        self.shared.notify(&mut state);
    }

    /// Puts `segment` together in huge pages, some time while nothing is being loaded. Does not block.
    pub fn put_together(&self, segment: &Arc<HostSegment>) {
        let mut state = self.shared.lock();
        if state.scattered.len() < TOGETHER_MAX {
            let segment = Arc::downgrade(segment);
            let (from, tries) = (0, 0);
            state.scattered.push_back(Scattered {
                segment,
                from,
                tries,
            });
            self.shared.notify(&mut state);
        }
    }

    /// What the stock takes now, in bytes, without what loads were charged for and have not taken yet.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let state = self.shared.lock();
        let bytes = state.blanks.bytes() + state.making_bytes;
        match state.loads {
            0 => bytes,
            _ => bytes.min(state.room_bytes),
        }
    }

    /// What is still to be made or put together, with what the maker is at; 0 when it waits to be told
    /// of something.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let state = self.shared.lock();
        let at_work = state.making_bytes > 0 || state.putting_bytes > 0;
        if state.seen == state.changes && !at_work {
            return 0;
        }
        match state.loads {
            0 => {
                let missing = state
                    .blanks
                    .missing_bytes(self.shared.bytes_max.min(state.room_bytes));
                missing + state.scattered_bytes() + state.putting_bytes
            }
            _ => 0,
        }
    }

    /// As [`Unsealed::allocate`], from the stock as far as that goes. What the stock has beyond its
    /// room is given back first, and all of it where memory is short. Blocks.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`].
    pub fn allocate(
        &self,
        bytes: u64,
        charge_bytes: u64,
        degraded: &Degraded,
    ) -> Result<Unsealed, MemoryError> {
        let mut reserved = self.reserve(bytes, charge_bytes, degraded)?;
        let (_, mut populator) = reserved.parts()?;
        while !populator.is_done() {
            match populator.step() {
                Err(MemoryError::OutOfMemory { .. }) if self.give_up() => {}
                step => drop(step?),
            }
        }
        let huge = populator.finish(degraded);
        reserved.populated(huge)
    }

    /// As [`allocate`](Self::allocate), without the pages that are not in stock.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`].
    pub(crate) fn reserve(
        &self,
        bytes: u64,
        charge_bytes: u64,
        degraded: &Degraded,
    ) -> Result<Reserved, MemoryError> {
        let blank = {
            let mut state = self.shared.what_is_being_made(bytes);
            let blank = state.blanks.take(bytes);
            if blank.is_some() {
                self.shared.notify(&mut state);
            }
            blank
        };
        self.make_room();
        if let Some(blank) = blank {
            match Reserved::of_blank(blank, bytes, charge_bytes) {
                Ok(reserved) => return Ok(reserved),
                Err(error) => {
                    degraded.report(
                        "stock",
                        format!("memory made ready could not be used: {error}"),
                        "report it; fresh memory was taken instead, which may be slower",
                    );
                }
            }
        }
        match Reserved::take(bytes, charge_bytes, degraded) {
            Err(MemoryError::OutOfMemory { .. }) if self.give_up() => {
                Reserved::take(bytes, charge_bytes, degraded)
            }
            other => other,
        }
    }

    /// Gives back what the stock has beyond its room. Whoever takes memory past the stock calls this
    /// first, so that what the node has charged and what is in stock are within the budget together.
    /// Blocks.
    pub fn make_room(&self) {
        let mut state = self.shared.lock();
        let room_bytes = state.room_bytes;
        let surplus = state.blanks.over(room_bytes);
        if !surplus.is_empty() {
            self.shared.notify(&mut state);
        }
        // What is being made is given up at its next part.
        let too_much = |state: &mut State| {
            state.making_bytes > 0
                && state.blanks.bytes().saturating_add(state.making_bytes) > state.room_bytes
        };
        let state = self.shared.settled.wait_while(state, too_much);
        drop(state.unwrap_or_else(PoisonError::into_inner));
        drop(surplus);
    }

    /// Gives all blanks back at once; returns whether there were any. More are made when it is told
    /// of other room than before.
    pub fn give_up(&self) -> bool {
        let mut state = self.shared.lock();
        state.room_bytes = 0;
        let all = std::mem::take(&mut state.blanks);
        self.shared.notify(&mut state);
        drop(state);
        !all.is_empty()
    }

    /// Blocks until the maker has seen to all that it was told. For tests.
    #[cfg(test)]
    fn settle(&self) {
        let state = self.shared.lock();
        let (state, wait) = self
            .shared
            .settled
            .wait_timeout_while(state, Duration::from_secs(60), |s| s.seen < s.changes)
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!wait.timed_out(), "the maker does not settle");
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.notify(&mut state);
        drop(state);
        if let Some(maker) = self.maker.take()
            && maker.join().is_err()
        {
            tracing::error!("the thread that makes memory ready ended by a panic");
        }
    }
}

impl State {
    /// What is still to be put together.
    fn scattered_bytes(&self) -> u64 {
        let left = |one: &Scattered| {
            let bytes = one.segment.upgrade().map_or(0, |segment| segment.bytes());
            bytes.saturating_sub(one.from)
        };
        self.scattered.iter().map(left).sum()
    }

    /// The next part to put together.
    fn next_scattered(&mut self) -> Option<(Arc<HostSegment>, Scattered)> {
        while let Some(next) = self.scattered.pop_front() {
            // What was evicted meanwhile is nobody's any more.
            if let Some(segment) = next.segment.upgrade() {
                return Some((segment, next));
            }
        }
        None
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements, whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, state: &mut State) {
        state.changes += 1;
        self.changed.notify_all();
    }

    /// Before a load of `bytes` takes from the stock: has the maker give what it is at as far as it is, if
    /// that is the best for this load. It takes a moment, and to make it again would take longer.
    fn what_is_being_made(&self, bytes: u64) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let there = state.blanks.best(bytes).map_or(0, |(_, size)| size);
        if bytes < PART_BYTES || there >= bytes || there >= state.making_bytes {
            return state;
        }
        state.waiters += 1;
        let making = |state: &mut State| state.making_bytes > 0;
        let waited = self.settled.wait_while(state, making);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiters -= 1;
        state
    }

    /// What the maker's thread does.
    fn work(&self) {
        let mut beside_since: Option<Instant> = None;
        let mut beside_a_load = false;
        loop {
            let mut state = self.lock();
            let changes = state.changes;
            let was_beside = std::mem::replace(&mut beside_a_load, state.loads > 0);
            if was_beside && !beside_a_load && !state.closed {
                // Whoever waits for what was just loaded is not to wait for this thread, too.
                let rest = self.changed.wait_timeout_while(state, REST, |state| {
                    state.changes == changes && !state.closed
                });
                state = rest.unwrap_or_else(PoisonError::into_inner).0;
                if state.changes != changes {
                    continue;
                }
            }
            // To ask the kernel takes dozens of calls: not at each beginning of a load.
            let is_lately = beside_since.is_none_or(|at| at.elapsed() < LOOK);
            let (free, wanted) = if state.loads > 0 && is_lately {
                beside_since.get_or_insert_with(Instant::now);
                (u64::MAX, 0)
            } else {
                drop(state);
                let limit = self.probe.limit().bytes;
                let found = (self.probe.free().bytes, limit / FREE_SHARE);
                beside_since = None;
                state = self.lock();
                found
            };
            match self.next(&mut state, free, wanted) {
                Task::End => return,
                Task::Drop(blanks) => {
                    drop(state);
                    drop(blanks);
                }
                Task::Make(bytes) => {
                    state.making_bytes = bytes;
                    drop(state);
                    self.make(bytes);
                }
                Task::PutTogether(segment, part) => {
                    state.putting_bytes = segment.bytes().saturating_sub(part.from);
                    drop(state);
                    self.put_part_together(segment, part);
                }
                Task::Wait => self.wait(state, changes),
            }
        }
    }

    fn next(&self, state: &mut State, free: u64, wanted: u64) -> Task {
        if state.closed {
            return Task::End;
        }
        let short = wanted.saturating_sub(free);
        let allowed = state.blanks.bytes().saturating_sub(short);
        // A load that was charged is about to take what is beyond the room, or gives it back.
        let room = match state.loads {
            0 => self.bytes_max.min(state.room_bytes),
            _ => self.bytes_max,
        };
        let over = state.blanks.over(room.min(allowed));
        if !over.is_empty() {
            return Task::Drop(over);
        }
        if state.loads > 0 {
            return Task::Wait;
        }
        // Half as much again, so that what is made now is not given up in a moment.
        let can_make = |bytes: &u64| free >= wanted + wanted / 2 + bytes;
        if let Some(bytes) = state.blanks.missing(room).filter(can_make) {
            return match state.blanks.bytes().saturating_add(bytes) <= room {
                true => Task::Make(bytes),
                false => Task::Drop(state.blanks.beyond(room)),
            };
        }
        if free < wanted + PART_BYTES {
            return Task::Wait;
        }
        match state.next_scattered() {
            Some((segment, part)) => Task::PutTogether(segment, part),
            None => Task::Wait,
        }
    }

    /// Takes `segment`: if it was evicted meanwhile, its memory goes here and not on a thread that others
    /// wait for.
    fn put_part_together(&self, segment: Arc<HostSegment>, mut part: Scattered) {
        let outcome = segment.put_together(part.from, PART_BYTES);
        let mut state = self.lock();
        state.putting_bytes = 0;
        match outcome {
            Ok(None) => {}
            Ok(Some(to)) => {
                (part.from, part.tries) = (to, 0);
                state.scattered.push_front(part);
            }
            // Its pages are read just then, or none is free: soon again, the others first.
            Err(_) if part.tries < TRIES_MAX => {
                part.tries += 1;
                state.scattered.push_back(part);
                drop(state);
                // Nobody's memory is kept for the pause.
                drop(segment);
                drop(self.changed.wait_timeout(self.lock(), TRY_PAUSE));
            }
            Err(error) => segment.stays_scattered(&error),
        }
    }

    fn make(&self, bytes: u64) {
        let go_on = || {
            let state = self.lock();
            let fits = state.blanks.bytes().saturating_add(bytes) <= state.room_bytes;
            fits && state.loads == 0 && state.waiters == 0 && !state.closed
        };
        let made = Blank::make((bytes, PART_BYTES as usize), go_on, &self.degraded);
        let mut state = self.lock();
        state.making_bytes = 0;
        match made {
            // It may have more than its room now; the next look sees to that.
            Ok(Some(blank)) => state.blanks.push(blank),
            Ok(None) => {}
            Err(error) => {
                self.degraded.report(
                    "stock",
                    format!("no memory could be made ready: {error}"),
                    "give the node more free memory; loads take fresh memory, which may be slower",
                );
                // Not again before something else is told.
                state.room_bytes = 0;
            }
        }
        drop(state);
        self.settled.notify_all();
    }

    fn wait(&self, mut state: MutexGuard<'_, State>, changes: u64) {
        state.seen = changes;
        self.settled.notify_all();
        if state.changes != changes {
            return;
        }
        let waits = |state: &mut State| state.changes == changes;
        if state.blanks.is_empty() && state.scattered.is_empty() {
            drop(self.changed.wait_while(state, waits));
        } else {
            // Nobody says when the node's memory runs short.
            drop(self.changed.wait_timeout_while(state, LOOK, waits));
        }
    }
}

#[cfg(test)]
mod tests;
