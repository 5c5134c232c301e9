//! The sample of this repository: it reads, and policies come in the order that whole traces show.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_simulate::catalogue::Catalogue;
use mrm_simulate::figures::Row;
use mrm_simulate::study::{Options, study};
use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Workload};
use std::fs::File;
use std::path::Path;

fn sample(catalogue: &str) -> Workload {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    let open = |name: &str| File::open(dir.join(name)).expect(name);
    let name = "azure2019_requests_s0.csv.gz";
    let trace = Trace::read(name.as_ref(), open(name), &TraceOptions::default()).unwrap();
    let name = format!("azure2019_models_{catalogue}.csv");
    let models = Catalogue::read(name.as_ref(), open(&name)).unwrap();
    let (workload, notes) = Workload::of(&trace, &models, &Binding::default()).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    workload
}

fn rows(workload: &Workload, policies: &str, sizes: &str) -> Vec<Row> {
    let options = Options::new(policies.parse().unwrap(), sizes.parse().unwrap());
    study(workload, &options, &|_, _| {}).unwrap().rows
}

#[test]
fn policies_come_in_the_order_of_what_they_know() {
    for catalogue in ["C1_s0", "C2_s0"] {
        let workload = sample(catalogue);
        assert_eq!(
            (workload.models.len(), workload.requests.len()),
            (60, 16_692)
        );
        let rows = rows(&workload, "cremebrulee-oracle,gc,lru", "20%");
        let load_s: Vec<f64> = rows.iter().map(|row| row.total_load_seconds).collect();
        assert!(load_s.is_sorted(), "{catalogue}: {load_s:?}");
        assert_eq!(rows[0].gap_closed, Some(1.0), "{catalogue}");
        assert!(rows[1].gap_closed > Some(0.5), "{catalogue}: {rows:?}");
    }
}

#[test]
fn a_row_has_the_keys_that_programs_read() {
    let rows = rows(&sample("C1_s0"), "gc", "100%");
    let row = serde_json::to_value(&rows[0]).unwrap();
    for key in [
        "policy",
        "cache",
        "object_miss_ratio",
        "byte_miss_ratio",
        "total_load_seconds",
        "mean_s",
        "p50_s",
        "p99_s",
        "load_over_exec",
        "gap_closed",
    ] {
        assert!(row.get(key).is_some(), "{key}: {row}");
    }
    // All fits: each model is loaded once, by whatever policy.
    assert_eq!(row["misses"], 60);
    assert!(row["gap_closed"].is_null(), "there is no gap");
}

#[test]
fn what_is_loaded_ahead_is_mostly_used_and_spares_waiting() {
    let workload = sample("C1_s0");
    let mut options = Options::new("mix,belady".parse().unwrap(), "20%".parse().unwrap());
    options.gap = false;
    let without = study(&workload, &options, &|_, _| {}).unwrap().rows;
    options.prefetch = true;
    let with = study(&workload, &options, &|_, _| {}).unwrap().rows;
    let (with_it, alone) = (&with[0], &without[0]);
    assert!(
        with_it.total_load_seconds < 0.95 * alone.total_load_seconds,
        "{with_it:?}"
    );
    assert!(with_it.prefetches > 100, "{with_it:?}");
    assert!(
        with_it.prefetches_used * 4 > with_it.prefetches * 3,
        "{with_it:?}"
    );
    // A fifth of a day's seconds.
    assert!(
        with_it.prefetch_load_seconds < 0.2 * 86_400.0,
        "{with_it:?}"
    );
    assert_eq!(alone.prefetches, 0);
    assert_eq!(
        with[1].prefetches, 0,
        "who knows the future loads nothing ahead"
    );
}
