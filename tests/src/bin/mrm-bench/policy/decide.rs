//! What deciding takes, and the simulator.

use super::Figure;
use super::days::Days;
use mrm_core::id::Time;
use mrm_core::policy::Choice;
use mrm_simulate::catalogue::Model;
use mrm_simulate::contender::Contender;
use mrm_simulate::engine::{Setup, run};
use mrm_simulate::workload::{Request, Workload};
use std::time::Instant;

const MODELS: u64 = 2000;
const POLICIES: [&str; 10] = [
    "lru",
    "lfu",
    "fifo",
    "random",
    "gdsf",
    "sieve",
    "s3-fifo",
    "cremebrulee",
    "gc",
    "mix",
];

pub(crate) fn measure(days: &Days, judged: Choice) -> Vec<Figure> {
    let mut figures = Vec::new();
    for policy in POLICIES {
        let [open, median, late] = decision_us(policy);
        let what = format!("a decision that evicts, {MODELS} models resident, {policy}: p50");
        figures.push(Figure::most(what, median, "us", 1000.0));
        // Whatever else runs on the machine is in it.
        figures.push(Figure::info("  p99, by the clock", late, "us"));
        let what = "  the whole open, of a processor";
        figures.push(Figure::most(what, open, "us", 1000.0));
    }
    let day = &days.days[0].workload;
    let default = Contender::choice(judged);
    let setup = Setup::new(day, default.clone(), day.all_bytes() / 10 * 3);
    let (began, cpu) = (Instant::now(), cpu_s());
    run(&setup, &mut |_| {}).expect("no rule is broken");
    let (wall_s, cpu_s) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
    let per_minute = |s: f64| day.requests.len() as f64 * 60.0 / s;
    figures.push(Figure::info(
        format!(
            "requests a minute, {}, 30 %, one thread, by the clock",
            default.label
        ),
        per_minute(wall_s),
        "a minute",
    ));
    figures.push(Figure::least(
        "  the same by the thread's time on a processor",
        per_minute(cpu_s),
        "a minute",
        1e6,
    ));
    figures
}

/// Evictions that are looked at.
const MISSES: u64 = 2000;

/// What it takes of a processor to open what is not there and to evict for it, at the median: finding
/// out what the model stands for, granting and giving back are in it. Then, at the median and the
/// 99th of a hundred, by the clock, what the one event takes with which the decider evicts.
fn decision_us(policy: &str) -> [f64; 3] {
    let model = |of: u64| Model {
        name: format!("m{of}"),
        bytes: 1_000_000 + of * 1000,
        load_us: 100_000 + of * 977 % 400_000,
        exec_us: 1000,
    };
    let models: Vec<Model> = (0..MODELS + MISSES).map(model).collect();
    let filled: u64 = models
        .iter()
        .take(MODELS as usize)
        .map(|model| model.bytes)
        .sum();
    let request = |(at, model): (u64, u64)| Request {
        at: Time(at * 1_000_000),
        model: u32::try_from(model).expect("few"),
        exec_us: 1000,
    };
    // All of them several times, in turns that differ, so that there is a history.
    let warm: Vec<u64> = (0..MODELS * 4)
        .map(|at| at * (1 + at / MODELS) % MODELS)
        .collect();
    let time = |misses: u64, clocked: bool| {
        let all = warm.iter().copied().chain(MODELS..MODELS + misses);
        let requests: Vec<Request> = (0..).zip(all).map(request).collect();
        let workload = Workload {
            models: models.clone(),
            requests,
        };
        let contender = policy.parse().expect("a policy");
        let mut setup = Setup::new(&workload, contender, filled + 500_000);
        setup.clocked = clocked;
        let began = cpu_s();
        let done = run(&setup, &mut |_| {}).expect("no rule is broken");
        assert!(done.evictions >= misses, "{policy}: nothing was evicted");
        (cpu_s() - began, done.decisions)
    };
    let mut opens: Vec<f64> = (0..5)
        .map(|_| (time(200, false).0 - time(0, false).0) / 200.0 * 1e6)
        .collect();
    let (_, decisions) = time(MISSES, true);
    assert!(decisions.len() as u64 >= MISSES, "{policy}: few decisions");
    let mut us: Vec<f64> = decisions
        .iter()
        .map(|took| took.as_secs_f64() * 1e6)
        .collect();
    [
        crate::report::percentile(&mut opens, 0.5),
        crate::report::percentile(&mut us, 0.5),
        crate::report::percentile(&mut us, 0.99),
    ]
}

/// This thread's time on a processor so far, in seconds: other work on the machine is not in it.
fn cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with it");
    let ns = text
        .split_whitespace()
        .next()
        .and_then(|ns| ns.parse::<f64>().ok());
    ns.expect("a number") / 1e9
}
