//! Runs fresh seeds for some time, or one seed aloud. See `scripts/soak`.

use clap::Parser;
use mrm_sim::campaign::{Summary, campaign, commit, regressions, seed_file, tell};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(20);
/// Seeds that fail before it gives up: more of the same tell little.
const FAILED_MAX: usize = 5;

/// Looks for seeds of the simulation that break a promise.
#[derive(Debug, Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this one seed and print all that happens.
    #[arg(long)]
    replay: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.replay {
        Some(seed) => replay(seed),
        None => soak(&args),
    }
}

#[expect(clippy::print_stdout, reason = "what it is for")]
fn replay(seed: u64) -> ExitCode {
    let mut report = mrm_sim::run_aloud(seed);
    report.lines.clear();
    let (steps, us) = (report.steps, report.us);
    println!(
        "{steps} steps in {us} us of simulated time, trace {:016x}",
        report.trace
    );
    match report.breach {
        None => ExitCode::SUCCESS,
        Some(_) => {
            print!("{}", tell(&report));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what it is for")]
#[expect(
    clippy::disallowed_methods,
    reason = "it ends after some time of the real clock"
)]
fn soak(args: &Args) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("seeds from {} on, at commit {}", args.seed, commit());
    let began = Instant::now();
    let said = Mutex::new(began);
    let enough = |so_far: &Summary| {
        if let Ok(mut said) = said.lock()
            && said.elapsed() >= SAY_EVERY
        {
            *said = Instant::now();
            println!("{} s: {}", began.elapsed().as_secs(), so_far.json());
        }
        began.elapsed().as_secs() >= args.minutes * 60 || so_far.failed.len() >= FAILED_MAX
    };
    let summary = campaign(args.seed..u64::MAX, threads, enough);
    for report in &summary.failed {
        print!("{}", tell(report));
        let kept = regressions().join(format!("{}.seed", report.seed));
        match std::fs::write(&kept, seed_file(report)) {
            Ok(()) => println!("kept: {}", kept.display()),
            Err(error) => println!("cannot keep {}: {error}", kept.display()),
        }
    }
    println!("{}", summary.json());
    if summary.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
