//! Samples, and how long to sample.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Of samples in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Summary {
    /// Of at least one sample; of none, not a number.
    pub(crate) fn of(mut samples_us: Vec<f64>) -> Self {
        samples_us.sort_by(f64::total_cmp);
        Self {
            n: samples_us.len(),
            p50_us: percentile(&samples_us, 50),
            p99_us: percentile(&samples_us, 99),
        }
    }
}

/// The nearest rank, of sorted samples.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The median of what `work` returns in `rounds` rounds.
pub(crate) fn median<E>(rounds: usize, mut work: impl FnMut() -> Result<f64, E>) -> Result<f64, E> {
    let mut samples = (0..rounds).map(|_| work()).collect::<Result<Vec<_>, _>>()?;
    samples.sort_by(f64::total_cmp);
    Ok(percentile(&samples, 50))
}

/// How often to repeat: until the time is over, but at least and at most so often.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Rounds {
    pub(crate) least: usize,
    pub(crate) most: usize,
    pub(crate) time_ms: u64,
}

impl Rounds {
    /// Whether to go on after `done` rounds since `start`.
    pub(crate) fn go_on(&self, done: usize, start: Instant) -> bool {
        let in_time = start.elapsed() < Duration::from_millis(self.time_ms);
        done < self.least || (done < self.most && in_time)
    }
}

/// How long `work` takes, in microseconds, and what it returns.
pub(crate) fn timed_us<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed().as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let summary = Summary::of(samples);
        assert_eq!(
            (summary.n, summary.p50_us, summary.p99_us),
            (200, 100.0, 198.0)
        );
        assert_eq!(Summary::of(vec![7.0]).p99_us, 7.0);
        assert!(Summary::of(Vec::new()).p50_us.is_nan());
    }

    #[test]
    fn rounds_have_a_least_and_a_most() {
        let rounds = |time_ms| Rounds {
            least: 2,
            most: 4,
            time_ms,
        };
        let now = Instant::now();
        assert!(rounds(0).go_on(1, now) && !rounds(0).go_on(2, now));
        assert!(rounds(600_000).go_on(3, now) && !rounds(600_000).go_on(4, now));
    }
}
