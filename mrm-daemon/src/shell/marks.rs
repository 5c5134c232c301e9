//! How much is there of a file that is being loaded: written by the threads that read it, read by
//! the decider's.

mod board;

use crate::degraded::Degraded;
use crate::memory::lend_unfilled;
use crate::transfer::{Onlooker, PIECE_BYTES};
use board::Board;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A file of fewer bytes is lent when it is filled: that is soon enough.
pub(super) const EARLY_BYTES_MIN: u64 = 2 * PIECE_BYTES;

/// What is there of one segment.
#[derive(Debug)]
pub(super) struct Marks {
    bytes: u64,
    board: Board,
    /// The memory, for those who may read while it is filled.
    fd: Mutex<Lendable>,
    began: Instant,
    first: OnceLock<Duration>,
}

/// Whether the memory of a load can be lent.
#[derive(Debug, Default)]
enum Lendable {
    #[default]
    NotYet,
    Is(Arc<OwnedFd>),
    /// It was thrown away.
    NoMore,
}

impl Marks {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            board: Board::new(bytes.div_ceil(PIECE_BYTES)),
            fd: Mutex::default(),
            began: Instant::now(),
            first: OnceLock::new(),
        }
    }

    /// The length of the segment.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memory, once it can be lent.
    pub(super) fn fd(&self) -> Option<Arc<OwnedFd>> {
        match &*self.lendable() {
            Lendable::Is(fd) => Some(Arc::clone(fd)),
            Lendable::NotYet | Lendable::NoMore => None,
        }
    }

    fn lendable(&self) -> MutexGuard<'_, Lendable> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the first piece took.
    pub(super) fn first(&self) -> Option<Duration> {
        self.first.get().copied()
    }

    /// Somebody is to hear of what comes from now on; what is there already, he looks for next. Again
    /// each time that he was told.
    pub(super) fn look(&self) {
        self.board.look();
    }

    /// The pieces that are there and not in `sent`, as ranges of bytes, at most `ranges_max`; they
    /// are in `sent` then.
    pub(super) fn since(&self, sent: &mut [u64], ranges_max: usize) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for ((word, there), sent) in (0..).zip(self.board.words()).zip(sent) {
            let mut new = there & !*sent;
            while new != 0 {
                let bit = u64::from(new.trailing_zeros());
                let start = (word * 64 + bit) * PIECE_BYTES;
                let end = (start + PIECE_BYTES).min(self.bytes);
                let full = ranges.len() == ranges_max;
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ if full => return ranges,
                    Some(_) | None => ranges.push(start..end),
                }
                new &= new - 1;
                *sent |= 1 << bit;
            }
        }
        ranges
    }

    /// Room for what was sent of it: nothing yet.
    pub(super) fn none_sent(&self) -> Box<[u64]> {
        self.board.words().map(|_| 0).collect()
    }

    /// Notes pieces; whether the decider's thread is to be told.
    fn add(&self, bytes: &Range<u64>) -> bool {
        let pieces = bytes.start / PIECE_BYTES..bytes.end.div_ceil(PIECE_BYTES);
        let is_to_be_told = self.board.add(pieces);
        self.first.get_or_init(|| self.began.elapsed());
        is_to_be_told
    }
}

/// What a load tells the decider's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Its memory may be lent.
    Laid,
    /// More of it is there.
    More,
    /// It was thrown away: nobody may be lent it any more.
    Unlaid,
}

/// Looks on while a file is loaded.
pub(super) struct Watcher<T: Fn(Told) + Sync> {
    pub(super) marks: Arc<Marks>,
    pub(super) tell: T,
    pub(super) degraded: Degraded,
}

impl<T: Fn(Told) + Sync> Onlooker for Watcher<T> {
    fn begun(&self, fd: BorrowedFd<'_>) {
        match lend_unfilled(fd) {
            Ok(fd) => {
                let mut lendable = self.marks.lendable();
                if matches!(*lendable, Lendable::NotYet) {
                    *lendable = Lendable::Is(Arc::new(fd));
                    drop(lendable);
                    (self.tell)(Told::Laid);
                }
            }
            Err(error) => {
                self.degraded.report(
                    "early_grants",
                    format!("memory that is being filled cannot be lent: {error}"),
                    "run Linux 5.1 or later with /proc; until then opens wait for all of a model",
                );
            }
        }
    }

    fn filled(&self, bytes: Range<u64>) {
        if self.marks.add(&bytes) {
            (self.tell)(Told::More);
        }
    }

    fn thrown_away(&self) {
        // The memory goes with it, but for what clients have of it.
        let before = std::mem::replace(&mut *self.marks.lendable(), Lendable::NoMore);
        if let Lendable::Is(_) = before {
            (self.tell)(Told::Unlaid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const P: u64 = PIECE_BYTES;

    #[test]
    fn what_is_new_is_told_once_and_in_runs() {
        let marks = Marks::new(70 * P + 5);
        let mut sent = marks.none_sent();
        assert!(marks.since(&mut sent, 9).is_empty());
        for piece in [0, 1, 63, 64, 70] {
            marks.add(&(piece * P..((piece + 1) * P).min(marks.bytes())));
        }
        let end = 70 * P + 5;
        assert_eq!(
            marks.since(&mut sent, 9),
            [0..2 * P, 63 * P..65 * P, 70 * P..end]
        );
        assert!(marks.since(&mut sent, 9).is_empty());
        marks.add(&(2 * P..4 * P));
        marks.add(&(9 * P..10 * P));
        assert_eq!(
            marks.since(&mut sent, 1),
            std::slice::from_ref(&(2 * P..4 * P))
        );
        assert_eq!(
            marks.since(&mut sent, 1),
            std::slice::from_ref(&(9 * P..10 * P))
        );
    }

    #[test]
    fn nobody_is_told_before_somebody_watches_and_then_once_until_it_is_looked_at() {
        let marks = Marks::new(9 * P);
        assert!(!marks.add(&(0..P)));
        marks.look();
        assert!(marks.add(&(P..2 * P)));
        assert!(!marks.add(&(2 * P..3 * P)));
        marks.look();
        assert!(marks.add(&(3 * P..4 * P)));
    }

    #[test]
    fn memory_is_lent_once_and_for_reading() {
        let fd =
            rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a memfd");
        rustix::fs::ftruncate(&fd, 3 * P).expect("a length");
        let told = Mutex::new(Vec::new());
        let tell = |what| told.lock().expect("whole").push(what);
        let marks = Arc::new(Marks::new(3 * P));
        let watcher = Watcher {
            marks: Arc::clone(&marks),
            tell: &tell,
            degraded: Degraded::new(),
        };
        use std::os::fd::AsFd;
        watcher.begun(fd.as_fd());
        watcher.begun(fd.as_fd());
        assert_eq!(*told.lock().expect("whole"), [Told::Laid]);
        let lent = marks.fd().expect("lent");
        let mode = rustix::fs::fcntl_getfl(&lent).expect("flags");
        assert_eq!(
            mode & rustix::fs::OFlags::ACCMODE,
            rustix::fs::OFlags::RDONLY
        );
        assert!(rustix::io::write(&fd, b"x").is_err(), "sealed");
        drop(lent);
        watcher.thrown_away();
        watcher.thrown_away();
        watcher.begun(fd.as_fd());
        assert_eq!(*told.lock().expect("whole"), [Told::Laid, Told::Unlaid]);
        assert!(marks.fd().is_none());
    }
}
