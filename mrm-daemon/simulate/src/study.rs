//! Several policies at several sizes, side by side.
//!
//! ```
//! use mrm_core::id::Time;
//! use mrm_simulate::catalogue::Model;
//! use mrm_simulate::study::{Options, study};
//! use mrm_simulate::workload::{Request, Workload};
//! let model = |name: &str| Model { name: name.into(), bytes: 10, load_us: 1_000_000, exec_us: 1 };
//! let at = |s: u64, model| Request { at: Time(s * 1_000_000), model, exec_us: 1 };
//! let workload = Workload {
//!     models: vec![model("a"), model("b")],
//!     requests: vec![at(0, 0), at(1, 1), at(2, 0), at(3, 1)],
//! };
//! let done = study(&workload, &Options::new("gc,lru".parse()?, "50%,100%".parse()?), &|_, _| {})?;
//! let misses: Vec<u64> = done.rows.iter().map(|row| row.misses).collect();
//! assert_eq!(misses, [4, 2, 4, 2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::contender::{Contender, Contenders};
use crate::engine::{Oversize, Resident, Setup, SimulationError, UPLOAD_BYTES_PER_S, run};
use crate::figures::{Row, gap_closed};
use crate::size::{MemorySize, Sizes};
use crate::workload::Workload;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is compared, and under which circumstances.
#[derive(Debug, Clone)]
pub struct Options {
    /// The policies.
    pub contenders: Contenders,
    /// The sizes.
    pub sizes: Sizes,
    /// Whether what is expected is loaded ahead. Not by those who know the future.
    pub prefetch: bool,
    /// What becomes of what can never fit.
    pub oversize: Oversize,
    /// Whether loads take their time on the clock.
    pub timed: bool,
    /// Whether to run LRU and the oracle too, for the share of the gap between them.
    pub gap: bool,
    /// Whether to write down what is resident when: at the size in the middle.
    pub timeline: bool,
    /// What an upload to a device reaches.
    pub upload_bytes_per_s: u64,
    /// Runs at a time.
    pub threads: usize,
}

impl Options {
    /// The usual circumstances.
    #[must_use]
    pub fn new(contenders: Contenders, sizes: Sizes) -> Self {
        Self {
            contenders,
            sizes,
            prefetch: false,
            oversize: Oversize::Transient,
            timed: false,
            gap: true,
            timeline: false,
            upload_bytes_per_s: UPLOAD_BYTES_PER_S,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What is resident when, of one run.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The policy.
    pub policy: String,
    /// The size.
    pub cache: String,
    /// What was resident.
    pub residents: Vec<Resident>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Study {
    /// One for each policy at each size: policy by policy, in the order of both.
    pub rows: Vec<Row>,
    /// One for each policy, if that was asked for.
    pub timelines: Vec<Timeline>,
}

/// One run of it.
#[derive(Debug, Clone)]
struct Job<'a> {
    contender: &'a Contender,
    size: &'a MemorySize,
    /// Only for the gap.
    reference: bool,
}

/// Runs all of it, several at a time. `progress` is told of requests: how many are done in all, of
/// how many; from several threads.
///
/// # Errors
/// Only where the decider itself fails.
pub fn study(
    workload: &Workload,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Study, SimulationError> {
    let references = match options.gap {
        true => vec![Contender::textbook_lru(), Contender::oracle()],
        false => Vec::new(),
    };
    let sizes = options.sizes.all();
    let own = options.contenders.all().iter().map(|one| (one, false));
    let all = own.chain(references.iter().map(|one| (one, true)));
    let jobs: Vec<Job<'_>> = all
        .flat_map(|(contender, reference)| {
            sizes.iter().map(move |size| Job {
                contender,
                size,
                reference,
            })
        })
        .collect();
    let done = run_all(workload, options, &jobs, progress)?;
    let mut study = Study::default();
    let load_s = |label: &str, size: &MemorySize| {
        let mut all = jobs.iter().zip(&done);
        let found =
            all.find(|(job, _)| job.reference && job.contender.label == label && job.size == size);
        found.map(|(_, (row, _))| row.total_load_seconds)
    };
    let (lru, oracle) = (Contender::textbook_lru(), Contender::oracle());
    for (job, (row, timeline)) in jobs.iter().zip(&done).filter(|(job, _)| !job.reference) {
        let mut row = row.clone();
        if let (Some(lru), Some(oracle)) = (
            load_s(&lru.label, job.size),
            load_s(&oracle.label, job.size),
        ) {
            row.gap_closed = gap_closed(lru, oracle, row.total_load_seconds);
        }
        if !timeline.is_empty() {
            study.timelines.push(Timeline {
                policy: row.policy.clone(),
                cache: row.cache.clone(),
                residents: timeline.clone(),
            });
        }
        study.rows.push(row);
    }
    Ok(study)
}

type Done = (Row, Vec<Resident>);

/// Takes the jobs in order, as many at a time as there are threads.
fn run_all(
    workload: &Workload,
    options: &Options,
    jobs: &[Job<'_>],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Done>, SimulationError> {
    let requests = workload.requests.len() as u64;
    let all = requests * jobs.len() as u64;
    let (next, told) = (AtomicUsize::new(0), AtomicU64::new(0));
    let results: Mutex<Vec<(usize, Result<Done, SimulationError>)>> = Mutex::new(Vec::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else {
                break;
            };
            let mut before = 0;
            let done = run_job(workload, options, job, &mut |so_far| {
                let sum = told.fetch_add(so_far - before, Ordering::Relaxed) + so_far - before;
                before = so_far;
                progress(sum, all);
            });
            let failed = done.is_err();
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.push((at, done));
            if failed {
                next.store(jobs.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.threads.min(jobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, done)| done).collect()
}

fn run_job(
    workload: &Workload,
    options: &Options,
    job: &Job<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Done, SimulationError> {
    let all_bytes = workload.all_bytes();
    let middle = options.sizes.all().get(options.sizes.all().len() / 2);
    let setup = Setup {
        device_bytes: job.size.device.map(|device| device.of(all_bytes)),
        upload_bytes_per_s: options.upload_bytes_per_s,
        prefetch: options.prefetch && !job.contender.is_oracle() && !job.reference,
        oversize: options.oversize,
        timed: options.timed,
        timeline: options.timeline && !job.reference && middle == Some(job.size),
        ..Setup::new(workload, job.contender.clone(), job.size.host.of(all_bytes))
    };
    let mut outcome = run(&setup, progress)?;
    let timeline = std::mem::take(&mut outcome.timeline);
    let bytes = setup
        .host_bytes
        .saturating_add(setup.device_bytes.unwrap_or(0));
    let names = (job.contender.label.as_str(), job.size.label.as_str());
    Ok((Row::of(names, bytes, &outcome), timeline))
}
