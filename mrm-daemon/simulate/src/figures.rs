//! What came of a run, in numbers.
//!
//! ```
//! use mrm_simulate::figures::gap_closed;
//! assert_eq!(gap_closed(100.0, 50.0, 60.0), Some(0.8));
//! assert_eq!(gap_closed(100.0, 100.0, 100.0), None, "there is no gap");
//! ```

use crate::engine::Outcome;
use serde::Serialize;

/// The figures of one policy at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The policy, as it was asked for.
    pub policy: String,
    /// The size, as it was asked for.
    pub cache: String,
    /// The size: host memory, and that of the device.
    pub cache_bytes: u64,
    /// Whether what was expected was loaded ahead.
    pub prefetch: bool,
    /// Requests that were served.
    pub requests: u64,
    /// Requests for models that can never fit, where those are refused.
    pub refused: u64,
    /// Requests that had to wait for a load.
    pub misses: u64,
    /// `misses` by `requests`.
    pub object_miss_ratio: f64,
    /// The same by bytes: of the models of each.
    pub byte_miss_ratio: f64,
    /// What requests waited for loads, in sum.
    pub total_load_seconds: f64,
    /// What they waited for room, in sum.
    pub total_wait_seconds: f64,
    /// The delay of a request until it has its model, on average over all.
    pub mean_s: f64,
    /// That of the median request.
    pub p50_s: f64,
    /// That of the request that is worse than 99 of 100.
    pub p99_s: f64,
    /// `total_load_seconds` by the time for which models were held.
    pub load_over_exec: Option<f64>,
    /// The share of the gap from `lru` to `cremebrulee-oracle` in `total_load_seconds`; null where
    /// there is none.
    pub gap_closed: Option<f64>,
    /// Versions that were dropped for want of room.
    pub evictions: u64,
    /// Models that were loaded ahead.
    pub prefetches: u64,
    /// Those of them that were used before they were dropped.
    pub prefetches_used: u64,
    /// What loading ahead took, in sum: nobody waited for it.
    pub prefetch_load_seconds: f64,
}

impl Row {
    /// The figures of a run.
    #[must_use]
    pub fn of((policy, cache): (&str, &str), cache_bytes: u64, outcome: &Outcome) -> Self {
        let ratio = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let requests = outcome.requests as f64;
        let load_s = outcome.load_us as f64 / 1e6;
        let exec_s = outcome.exec_us as f64 / 1e6;
        let delays: u128 = outcome.delays_us.iter().map(|us| u128::from(*us)).sum();
        Self {
            policy: policy.to_owned(),
            cache: cache.to_owned(),
            cache_bytes,
            prefetch: outcome.prefetch,
            requests: outcome.requests,
            refused: outcome.refused,
            misses: outcome.misses,
            object_miss_ratio: ratio(outcome.misses as f64, requests),
            byte_miss_ratio: ratio(outcome.missed_bytes as f64, outcome.bytes as f64),
            total_load_seconds: load_s,
            total_wait_seconds: outcome.wait_us as f64 / 1e6,
            mean_s: ratio(delays as f64 / 1e6, requests),
            p50_s: outcome.delay_s(0.50),
            p99_s: outcome.delay_s(0.99),
            load_over_exec: (exec_s > 0.0).then(|| load_s / exec_s),
            gap_closed: None,
            evictions: outcome.evictions,
            prefetches: outcome.prefetches,
            prefetches_used: outcome.prefetches_used,
            prefetch_load_seconds: outcome.prefetch_us as f64 / 1e6,
        }
    }
}

/// The share of the gap from `lru` to `oracle`, both in load seconds, that `own` closes.
#[must_use]
pub fn gap_closed(lru: f64, oracle: f64, own: f64) -> Option<f64> {
    let gap = lru - oracle;
    (gap > 0.0).then(|| (lru - own) / gap)
}
