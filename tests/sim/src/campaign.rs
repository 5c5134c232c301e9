//! Many seeds, on a few threads. Which thread runs a seed makes no difference to it.

use crate::mishap::Mishap;
use crate::reached::Reached;
use crate::{Report, run_twice};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What many runs come to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Seeds that were run, each twice.
    pub seeds: u64,
    /// Events that deciders took in.
    pub steps: u64,
    /// How often something went wrong around them.
    pub faults: u64,
    /// What deciders asked for.
    pub reached: Reached,
    /// Segments that clients read and found right.
    pub reads: u64,
    /// How often each thing went wrong.
    pub mishaps: BTreeMap<Mishap, u64>,
    /// The runs that broke a promise.
    pub failed: Vec<Report>,
}

impl Summary {
    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let first = self.failed.iter().map(|report| report.seed).min();
        let first = first.map_or_else(|| "null".to_owned(), |seed| seed.to_string());
        format!(
            "{{\"seeds\":{},\"steps\":{},\"faults\":{},\"violations\":{},\"first_bad_seed\":{first}}}",
            self.seeds,
            self.steps,
            self.faults,
            self.failed.len()
        )
    }

    /// Takes a run in.
    pub fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.faults += report.faults;
        self.reached.add(&report.reached);
        self.reads += report.reads;
        for (mishap, count) in &report.mishaps {
            *self.mishaps.entry(*mishap).or_default() += count;
        }
        if report.breach.is_some() {
            self.failed.push(report);
        }
    }
}

/// Runs these seeds, each twice, on so many threads, until `enough` says so of what was run so far.
#[must_use]
pub fn campaign(
    seeds: Range<u64>,
    threads: usize,
    enough: impl Fn(&Summary) -> bool + Sync,
) -> Summary {
    let (next, summary) = (AtomicU64::new(seeds.start), Mutex::new(Summary::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let report = run_twice(seed);
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.add(report);
                    if enough(&summary) {
                        return;
                    }
                }
            });
        }
    });
    summary.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What to say of a run that broke a promise.
#[must_use]
pub fn tell(report: &Report) -> String {
    let breach = report
        .breach
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut text = format!("seed {} at commit {}: {breach}\n", report.seed, commit());
    for line in &report.lines {
        text += &format!("    {line}\n");
    }
    text + &format!("again: scripts/soak --replay {}\n", report.seed)
}

/// What to keep of a run that broke a promise: its seed, then for people how it went.
#[must_use]
pub fn seed_file(report: &Report) -> String {
    let breach = report
        .breach
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let (seed, commit) = (report.seed, commit());
    format!(
        "{seed}\n# found at commit {commit}\n# {}\n",
        breach.replace('\n', " ")
    )
}

/// The seeds that are kept, with the names of their files.
///
/// # Errors
/// When they cannot be read, or a file does not begin with a number.
pub fn kept_seeds() -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(regressions())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "seed")
        {
            let text = std::fs::read_to_string(&path)?;
            let seed = text
                .lines()
                .next()
                .and_then(|line| line.trim().parse().ok());
            let seed = seed.ok_or(std::io::ErrorKind::InvalidData)?;
            kept.push((path, seed));
        }
    }
    kept.sort();
    Ok(kept)
}

/// Where seeds are kept.
#[must_use]
pub fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// The commit that is checked out, if git knows.
#[must_use]
pub fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]);
    let said = git.output().ok().filter(|said| said.status.success());
    said.map_or_else(
        || "unknown".to_owned(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}
