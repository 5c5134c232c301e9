//! Bugs planted in the decider, each of which the fixed seeds must find.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what was found where"
)]

use mrm_core::planted::{Bug, plant};
use mrm_sim::breach::Rule;
use mrm_sim::run;

/// The fixed seeds of `tests/fixed.rs` begin here; that many are tried for a bug.
const FIRST: u64 = 1;
const SEEDS: u64 = 1000;

/// The first seed that finds a bug, and how.
fn find(bug: Bug) -> Option<(u64, Rule, String)> {
    plant(Some(bug));
    let found = (FIRST..FIRST + SEEDS).find_map(|seed| {
        let breach = run(seed).breach?;
        Some((seed, breach.rule, breach.what))
    });
    plant(None);
    found
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match find(bug) {
            Some((seed, rule, what)) => {
                let what: String = what.chars().take(90).collect();
                println!("{bug:?}: seed {seed}, {rule:?}: {what}");
            }
            None => missed.push(bug),
        }
    }
    assert_eq!(
        missed,
        [],
        "not found by seeds {FIRST} to {}",
        FIRST + SEEDS - 1
    );
}

#[test]
fn without_a_bug_nothing_is_found() {
    plant(None);
    assert_eq!((FIRST..FIRST + 10).find_map(|seed| run(seed).breach), None);
}
