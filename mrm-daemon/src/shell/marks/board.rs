//! Which pieces of a file are there, and whether somebody is to be told. `tests/model` runs this under
//! every order in which two threads can come to see it.

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use std::ops::Range;

/// A bit for each piece, and a bell.
#[derive(Debug)]
pub(crate) struct Board {
    there: Box<[AtomicU64]>,
    /// Nobody watches, or who watches was told and did not look since. Both sides exchange it: a side
    /// that only wrote it could go on to read before the other one sees that.
    quiet: AtomicBool,
}

impl Board {
    /// A board for so many pieces, none of which is there, and which nobody watches.
    pub(crate) fn new(pieces: u64) -> Self {
        let words = pieces.div_ceil(64);
        Self {
            there: (0..words).map(|_| AtomicU64::new(0)).collect(),
            quiet: AtomicBool::new(true),
        }
    }

    /// From here on somebody wants to hear of what comes, if it is not among what he then finds: at the
    /// beginning, and each time that he was told.
    pub(crate) fn look(&self) {
        self.quiet.swap(false, Ordering::AcqRel);
    }

    /// Notes pieces; whether somebody is to be told.
    pub(crate) fn add(&self, pieces: Range<u64>) -> bool {
        for piece in pieces {
            let word = usize::try_from(piece / 64).ok();
            if let Some(word) = word.and_then(|word| self.there.get(word)) {
                // What was written before is seen by whoever sees the bit.
                word.fetch_or(1 << (piece % 64), Ordering::AcqRel);
            }
        }
        !self.quiet.swap(true, Ordering::AcqRel)
    }

    /// What is there, 64 pieces at a time.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.there.iter().map(|word| word.load(Ordering::Acquire))
    }
}
