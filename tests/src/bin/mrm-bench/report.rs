//! Rows, and how they are shown.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Raw values that are kept of a case; of more, as many at even distances in the sorted ones.
const RAW_MAX: usize = 500;

/// One measured case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) bench: Cow<'static, str>,
    pub(crate) case: String,
    pub(crate) unit: Cow<'static, str>,
    /// Samples.
    pub(crate) n: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// What it is compared with, in words.
    pub(crate) floor: String,
    pub(crate) floor_p50: f64,
    /// `p50 / floor_p50`.
    pub(crate) ratio: f64,
    /// The largest ratio that is good enough; none where the figure is for information.
    pub(crate) limit: Option<f64>,
    /// What was measured, sorted.
    #[serde(default)]
    pub(crate) raw: Vec<f64>,
    /// What was measured of the floor, sorted.
    #[serde(default)]
    pub(crate) floor_raw: Vec<f64>,
}

impl Row {
    /// From samples of the case and of its floor.
    pub(crate) fn of(
        bench: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        samples: &mut [f64],
        floor: impl Into<String>,
        floor_samples: &mut [f64],
        limit: Option<f64>,
    ) -> Self {
        let (p50, p99) = (percentile(samples, 0.5), percentile(samples, 0.99));
        let (min, max) = (percentile(samples, 0.0), percentile(samples, 1.0));
        let floor_p50 = percentile(floor_samples, 0.5);
        Self {
            bench: bench.into(),
            case: case.into(),
            unit: unit.into(),
            n: samples.len(),
            p50,
            p99,
            min,
            max,
            floor: floor.into(),
            floor_p50,
            ratio: p50 / floor_p50,
            limit,
            raw: thinned(samples),
            floor_raw: thinned(floor_samples),
        }
    }

    /// From samples that may be at most `most`, whatever else was measured.
    pub(crate) fn at_most(
        bench: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        samples: &mut [f64],
        most: f64,
    ) -> Self {
        Self::of(
            bench,
            case,
            unit,
            samples,
            "at most",
            &mut [most],
            Some(1.0),
        )
    }

    /// Whether the figure is good enough.
    pub(crate) fn holds(&self) -> bool {
        self.limit.is_none_or(|limit| self.ratio <= limit)
    }
}

/// Of sorted samples: all, or as many as are kept.
fn thinned(samples: &[f64]) -> Vec<f64> {
    let kept = samples.len().min(RAW_MAX);
    let last = samples.len() - 1;
    (0..kept)
        .map(|at| samples[at * last / (kept - 1).max(1)])
        .collect()
}

pub(crate) fn percentile(samples: &mut [f64], q: f64) -> f64 {
    assert!(!samples.is_empty(), "nothing was measured");
    samples.sort_by(f64::total_cmp);
    let last = samples.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= q <= 1"
    )]
    let at = (last as f64 * q).round() as usize;
    samples[at]
}

/// A table for people.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "{:<6} {:<40} {:>5} {:>8} {:>11} {:>11} {:>11} {:>11} {:>11} {:>7} {:>7}  floor",
        "bench", "case", "unit", "n", "p50", "p99", "min", "max", "floor p50", "ratio", "limit"
    );
    for row in rows {
        let limit = row
            .limit
            .map_or_else(|| "-".to_owned(), |limit| format!("{limit:.2}"));
        let verdict = if row.holds() {
            ""
        } else {
            "  << over the limit"
        };
        println!(
            "{:<6} {:<40} {:>5} {:>8} {:>11} {:>11} {:>11} {:>11} {:>11} {:>7.2} {:>7}  {}{verdict}",
            row.bench,
            row.case,
            row.unit,
            row.n,
            figure(row.p50),
            figure(row.p99),
            figure(row.min),
            figure(row.max),
            figure(row.floor_p50),
            row.ratio,
            limit,
            row.floor,
        );
    }
    println!();
}

pub(crate) fn figure(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
