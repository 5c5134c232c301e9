//! What a stock holds: which sizes there are to be, and which of them serves a load best.

use super::super::pages::HUGE_PAGE_BYTES;
use super::super::segment::Blank;

/// The sizes of blanks, and how many there are of each, if there is room.
const CLASSES: [(u64, usize); 8] = [
    (16 << 20, 4),
    (64 << 20, 1),
    (128 << 20, 1),
    (256 << 20, 1),
    (512 << 20, 1),
    (1 << 30, 1),
    (2 << 30, 1),
    (4 << 30, 1),
];
/// A blank is not cut to less than one in so many parts of it. What is cut off is soon cleared again, since
/// the kernel has it at hand; to leave the load without would cost it more.
const CUT_MAX: u64 = 16;

/// All that a stock can hold: more is of no use to it.
pub const STOCK_BYTES_MAX: u64 = {
    let (mut sum, mut at) = (0, 0);
    while at < CLASSES.len() {
        let (bytes, count) = CLASSES[at];
        sum += bytes * count as u64;
        at += 1;
    }
    sum
};

/// Those that were made, in no order.
#[derive(Debug, Default)]
pub(super) struct Blanks(pub(super) Vec<Blank>);

impl Blanks {
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(Blank::bytes).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, blank: Blank) {
        self.0.push(blank);
    }

    /// Takes out the blank that saves most.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Blank> {
        let (at, _) = self.best(bytes)?;
        Some(self.0.swap_remove(at))
    }

    /// The place and size of the blank that saves most: the smallest that is large enough and not much too
    /// large, else the largest that can grow.
    pub(super) fn best(&self, bytes: u64) -> Option<(usize, u64)> {
        if bytes < HUGE_PAGE_BYTES {
            return None;
        }
        let enough = bytes..=bytes.saturating_mul(CUT_MAX);
        let sizes = || self.0.iter().map(Blank::bytes).enumerate();
        let fitting = sizes().filter(|(_, size)| enough.contains(size));
        let smaller = sizes().filter(|&(_, size)| size < bytes);
        fitting
            .min_by_key(|&(_, size)| size)
            .or_else(|| smaller.max_by_key(|&(_, size)| size))
    }

    /// Takes out what is beyond `bytes_max`, the largest first.
    pub(super) fn over(&mut self, bytes_max: u64) -> Vec<Blank> {
        let mut over = Vec::new();
        self.0.sort_by_key(Blank::bytes);
        while self.bytes() > bytes_max {
            over.extend(self.0.pop());
        }
        over
    }

    /// The size of the smallest blank that is missing of those wanted.
    pub(super) fn missing(&self, bytes_max: u64) -> Option<u64> {
        let mut wanted = wanted(bytes_max);
        let missing = wanted.find(|&(bytes, count)| self.count(bytes) < count);
        missing.map(|(bytes, _)| bytes)
    }

    /// All that is missing of what is wanted.
    pub(super) fn missing_bytes(&self, bytes_max: u64) -> u64 {
        let missing =
            |(bytes, count): (u64, usize)| bytes * count.saturating_sub(self.count(bytes)) as u64;
        wanted(bytes_max).map(missing).sum()
    }

    /// Takes out what is beyond those wanted.
    pub(super) fn beyond(&mut self, bytes_max: u64) -> Vec<Blank> {
        let mut left: Vec<(u64, usize)> = wanted(bytes_max).collect();
        let is_wanted = |blank: &Blank| {
            let same = left.iter_mut().find(|(bytes, _)| *bytes == blank.bytes());
            same.is_some_and(|(_, count)| match count.checked_sub(1) {
                Some(others) => {
                    *count = others;
                    true
                }
                None => false,
            })
        };
        let (kept, beyond) = std::mem::take(&mut self.0).into_iter().partition(is_wanted);
        self.0 = kept;
        beyond
    }

    fn count(&self, bytes: u64) -> usize {
        let same = self.0.iter().filter(|blank| blank.bytes() == bytes);
        same.count()
    }
}

/// How many blanks of each class there are to be in so many bytes: a small one, and beside it the largest
/// that fit, since what was evicted last for want of room tells how large the next load may be.
pub(super) fn wanted(bytes_max: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut counts = [0; CLASSES.len()];
    let mut left = bytes_max;
    let mut want = |at: usize, most: usize| {
        let (bytes, _) = CLASSES[at];
        while counts[at] < most && bytes <= left {
            counts[at] += 1;
            left -= bytes;
        }
    };
    want(0, 1);
    for (at, (_, most)) in CLASSES.into_iter().enumerate().rev() {
        want(at, most);
    }
    let counted = CLASSES.into_iter().zip(counts);
    counted.map(|((bytes, _), count)| (bytes, count))
}
