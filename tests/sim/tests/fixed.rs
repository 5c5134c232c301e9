//! The seeds that every test run takes: the first ones, and those that once failed.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and says how much it did"
)]

use mrm_sim::campaign::{Summary, campaign, kept_seeds, tell};
use mrm_sim::reached::Reached;
use mrm_sim::run_twice;
use std::ops::Range;

/// As many as two cores do in well under a minute.
const SEEDS: Range<u64> = 1..1001;
const THREADS: usize = 2;

fn fail(summary: &Summary) {
    let told: String = summary.failed.iter().map(tell).collect();
    assert!(told.is_empty(), "{told}");
}

#[test]
fn the_fixed_seeds_break_no_promise_and_reach_everything() {
    let summary = campaign(SEEDS, THREADS, |so_far| !so_far.failed.is_empty());
    println!(
        "{} {} segments read; {:?}; {:?}",
        summary.json(),
        summary.reads,
        summary.mishaps,
        summary.reached
    );
    fail(&summary);
    assert_eq!(summary.seeds, SEEDS.end - SEEDS.start);
    // Runs in which little happens find little.
    let rare: Vec<_> = summary
        .mishaps
        .iter()
        .filter(|(_, count)| **count < 5)
        .collect();
    assert!(rare.is_empty(), "hardly ever goes wrong: {rare:?}");
    let counts = Reached::ALL.map(|name| (name, summary.reached.count(name)));
    let rare: Vec<_> = counts.iter().filter(|(_, count)| *count < 5).collect();
    assert!(rare.is_empty(), "hardly ever reached: {rare:?}");
}

#[test]
fn seeds_that_once_failed_do_no_more() {
    let kept = kept_seeds().expect("seeds that can be read");
    let mut summary = Summary::default();
    for (path, seed) in kept {
        println!("{}", path.display());
        summary.add(run_twice(seed));
    }
    fail(&summary);
}
