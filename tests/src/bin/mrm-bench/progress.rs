//! What is measured just now, for whoever watches a benchmark that takes minutes.

use std::time::Instant;

/// A line on the standard error for each thing that is measured.
pub(crate) struct Progress {
    bench: &'static str,
    of: usize,
    done: usize,
    began: Instant,
}

impl Progress {
    /// Of so many things.
    pub(crate) fn new(bench: &'static str, of: usize) -> Self {
        Self {
            bench,
            of,
            done: 0,
            began: Instant::now(),
        }
    }

    /// Says that `what` is next.
    pub(crate) fn next(&mut self, what: &str) {
        self.done += 1;
        let Self {
            bench, of, done, ..
        } = self;
        let seconds = self.began.elapsed().as_secs();
        eprintln!("{bench}: {done} of {of}, {what} (after {seconds} s)");
    }
}
