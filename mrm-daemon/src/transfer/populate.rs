//! Allocating the pages of a segment while the first of them are filled.

use super::piece::Piece;
use super::rank::Running;
use crate::memory::{MemoryError, Populator};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// What is not allocated within so much from the beginning is allocated beside the reading. Below
/// that a thread costs more than it saves.
const AT_ONCE_BYTES: usize = 16 << 20;

/// How far the pages of an image are there, and what its load gives way to.
pub(super) struct Passage<'a> {
    gate: &'a Gate,
    running: Option<&'a Running<'a>>,
}

impl Passage<'_> {
    /// The pieces, each when its pages are there and it is the load's turn. Ends early where no more
    /// pages are to be had.
    pub(super) fn pass<'i>(
        &self,
        pieces: impl Iterator<Item = Piece<'i>> + Send,
    ) -> impl Iterator<Item = Piece<'i>> + Send {
        pieces.take_while(|piece| {
            if let Some(running) = self.running {
                running.give_way();
            }
            self.gate.wait_for(piece.pages_end())
        })
    }
}

/// How far the pages of an image are there. Reads into those that are not would fault them in one
/// by one, and as small ones.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    there: usize,
    /// No more come: the error, until it is taken.
    ended: bool,
    error: Option<MemoryError>,
    /// Nobody reads any more.
    left: bool,
}

impl Gate {
    fn at(there: usize) -> Self {
        Self {
            state: Mutex::new(State {
                there,
                ended: false,
                error: None,
                left: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Lets pieces through, as long as they give way to other loads.
    pub(super) const fn giving_way<'a>(&'a self, running: Option<&'a Running<'a>>) -> Passage<'a> {
        Passage {
            gate: self,
            running,
        }
    }

    /// Whether the pages up to `end` are there, after waiting for them.
    fn wait_for(&self, end: usize) -> bool {
        let waits = |state: &mut State| state.there < end && !state.ended;
        let state = self.changed.wait_while(self.lock(), waits);
        state.unwrap_or_else(PoisonError::into_inner).there >= end
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole between any two statements, whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, step: Result<usize, MemoryError>, is_done: bool) {
        let mut state = self.lock();
        match step {
            // The last page belongs to the image to its end.
            Ok(_) if is_done => (state.there, state.ended) = (usize::MAX, true),
            Ok(there) => state.there = there,
            Err(error) => (state.error, state.ended) = (Some(error), true),
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Runs `fill` while the rest of the pages is allocated, of which `ready_bytes` come from stock.
/// `more` is asked for memory where there is none left, and says whether it found any.
///
/// # Errors
/// If there is no memory for all pages; what `fill` returned does not matter then.
pub(super) fn filled_meanwhile<T>(
    populator: &mut Populator<'_>,
    ready_bytes: usize,
    more: &(dyn Fn() -> bool + Sync),
    fill: impl FnOnce(&Gate) -> T,
) -> Result<T, MemoryError> {
    let mut there = 0;
    while !populator.is_done() && there < ready_bytes.max(AT_ONCE_BYTES) {
        there = step(populator, more)?;
    }
    let gate = Gate::at(match populator.is_done() {
        true => usize::MAX,
        false => there,
    });
    if populator.is_done() {
        return Ok(fill(&gate));
    }
    let mut fill = Some(fill);
    let filled = std::thread::scope(|scope| {
        let allocate = || allocate(populator, more, &gate);
        let thread = Builder::new().name("mrm-pages".to_owned());
        match thread.spawn_scoped(scope, allocate) {
            Ok(_) => {
                let _left = Left(&gate);
                fill.take().map(|fill| fill(&gate))
            }
            Err(_) => None,
        }
    });
    if let Some(error) = gate.lock().error.take() {
        return Err(error);
    }
    match (filled, fill) {
        (Some(filled), _) => Ok(filled),
        // There is no thread to be had: one after the other, then.
        (None, Some(fill)) => {
            while !populator.is_done() {
                step(populator, more)?;
            }
            Ok(fill(&Gate::at(usize::MAX)))
        }
        (None, None) => Err(MemoryError::Empty),
    }
}

/// Allocates all pages, or what is wanted of them.
fn allocate(populator: &mut Populator<'_>, more: &(dyn Fn() -> bool + Sync), gate: &Gate) {
    while !populator.is_done() && !gate.lock().left {
        let step = step(populator, more);
        let failed = step.is_err();
        gate.tell(step, populator.is_done());
        if failed {
            return;
        }
    }
}

/// Ends the allocating when the reading has ended, however it did.
struct Left<'a>(&'a Gate);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.lock().left = true;
    }
}

fn step(
    populator: &mut Populator<'_>,
    more: &(dyn Fn() -> bool + Sync),
) -> Result<usize, MemoryError> {
    match populator.step() {
        Err(MemoryError::OutOfMemory { .. }) if more() => populator.step(),
        step => step,
    }
}

#[cfg(test)]
mod tests;
