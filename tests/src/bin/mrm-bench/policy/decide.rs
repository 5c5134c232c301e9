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
        let what = format!("an open that evicts one of {MODELS} models, {policy}");
        figures.push(Figure::most(what, decision_us(policy), "us", 1000.0));
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

/// What it takes of a processor to open what is not there and to evict for it, at the median.
/// Finding out what the model stands for, granting and giving back are in it: a decision alone
/// takes less.
fn decision_us(policy: &str) -> f64 {
    let model = |of: u64| Model {
        name: format!("m{of}"),
        bytes: 1_000_000 + of * 1000,
        load_us: 100_000 + of * 977 % 400_000,
        exec_us: 1000,
    };
    let models: Vec<Model> = (0..MODELS + 200).map(model).collect();
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
    let time = |misses: u64| {
        let all = warm.iter().copied().chain(MODELS..MODELS + misses);
        let requests: Vec<Request> = (0..).zip(all).map(request).collect();
        let workload = Workload {
            models: models.clone(),
            requests,
        };
        let contender = policy.parse().expect("a policy");
        let setup = Setup::new(&workload, contender, filled + 500_000);
        let began = cpu_s();
        let done = run(&setup, &mut |_| {}).expect("no rule is broken");
        assert!(done.evictions >= misses, "{policy}: nothing was evicted");
        cpu_s() - began
    };
    let mut samples: Vec<f64> = (0..5)
        .map(|_| (time(200) - time(0)) / 200.0 * 1e6)
        .collect();
    crate::report::percentile(&mut samples, 0.5)
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
