//! `replay`: an hour of a recorded day at sixty times its speed against a real daemon, with real
//! files of scaled sizes. The load delay that clients measure has to rank policies as the simulator
//! does, which is told the same requests at the same speed and what each file takes to load.

use crate::policy::{read_days, sample_dir};
use mrm_client::Origin;
use mrm_core::id::Time;
use mrm_simulate::contender::Contender;
use mrm_simulate::engine::{Setup as Run, run};
use mrm_simulate::workload::{Request, Workload};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const POLICIES: [&str; 4] = ["random", "lru", "gdsf", "gc"];
const SPEED: u64 = 60;
const HOUR_US: u64 = 3_600_000_000;
/// Models of the node, at most, and what their files take together.
const MODELS_MAX: usize = 150;
const FILES_BYTES: u64 = 2_000_000_000;
/// What the daemon may keep of them, percent.
const CACHE_PERCENT: u64 = 20;
/// A header alone is not worth a file.
const FILE_BYTES_MIN: u64 = 100_000;
const CLIENTS: usize = 16;
/// The simulator has to see so much of a difference before an order is expected of the daemon.
const TOLD_APART: f64 = 1.10;

/// What a policy came to.
#[derive(Debug, Clone)]
struct Ranked {
    policy: &'static str,
    simulated_s: f64,
    measured_s: f64,
    simulated_misses: u64,
    measured_misses: u64,
}

/// Runs it and prints a table. Returns whether all pairs that the simulator tells apart come in
/// its order.
pub(crate) fn measure(traces: Option<&Path>) -> bool {
    let days = read_days(&traces.map_or_else(sample_dir, Path::to_owned));
    let mut hour = busiest_hour(&days.days[0].workload.subset(MODELS_MAX, 0));
    let files = tempfile::tempdir().expect("a directory");
    let mut setup = Setup::new();
    for (place, model) in hour.models.iter_mut().enumerate() {
        let name = format!("m{place}/model.safetensors");
        let (path, image) = model::write(files.path(), &name, model.bytes, 4, place as u64);
        // The kernel gives memory by pages, and the daemon charges it so.
        model.bytes = (image.len() as u64).next_multiple_of(4096);
        setup = setup.model(&model.name, &path);
    }
    calibrate(&mut hour, &setup);
    let budget = hour.all_bytes() * CACHE_PERCENT / 100;
    println!(
        "{} requests for {} models of {} MB in {} s, {} MB of memory",
        hour.requests.len(),
        hour.models.len(),
        hour.all_bytes() / 1_000_000,
        HOUR_US / SPEED / 1_000_000,
        budget / 1_000_000
    );
    let mut all = Vec::new();
    for policy in POLICIES {
        let contender: Contender = policy.parse().expect("a policy");
        let mut simulated = Run::new(&hour, contender, budget);
        simulated.timed = true;
        let simulated = run(&simulated, &mut |_| {}).expect("no rule is broken");
        let setup = setup.clone().budget(budget);
        let setup = setup.setting(&format!("host_policy = \"{policy}\""));
        let (measured_s, measured_misses) = replay(&hour, &setup);
        let delays = simulated.delays_us.iter().map(|us| *us as f64 / 1e6);
        all.push(Ranked {
            policy,
            simulated_s: delays.sum(),
            measured_s,
            simulated_misses: simulated.misses,
            measured_misses,
        });
    }
    judge(&all)
}

/// The hour with most requests, at speed.
fn busiest_hour(day: &Workload) -> Workload {
    let hour_of = |request: &Request| request.at.0 / HOUR_US;
    let count = |hour| {
        day.requests
            .iter()
            .filter(|one| hour_of(one) == hour)
            .count()
    };
    let hours = 0..=day.requests.last().map_or(0, hour_of);
    let busiest = hours.max_by_key(|hour| count(*hour)).expect("a request");
    let at_speed = |request: &Request| Request {
        at: Time((request.at.0 - busiest * HOUR_US) / SPEED),
        exec_us: request.exec_us / SPEED,
        ..*request
    };
    let mut hour = day.clone();
    hour.requests.retain(|request| hour_of(request) == busiest);
    hour.requests = hour.requests.iter().map(at_speed).collect();
    // What nobody asks for in this hour needs no file.
    let mut asked = vec![false; hour.models.len()];
    hour.requests
        .iter()
        .for_each(|one| asked[one.model as usize] = true);
    let mut places = vec![0; hour.models.len()];
    let mut models = Vec::new();
    for (place, model) in hour
        .models
        .into_iter()
        .enumerate()
        .filter(|(at, _)| asked[*at])
    {
        places[place] = u32::try_from(models.len()).expect("few");
        models.push(model);
    }
    let all: u64 = models.iter().map(|model| model.bytes).sum();
    for model in &mut models {
        let bytes = u128::from(model.bytes) * u128::from(FILES_BYTES) / u128::from(all.max(1));
        model.bytes = u64::try_from(bytes).expect("smaller").max(FILE_BYTES_MIN);
    }
    for request in &mut hour.requests {
        request.model = places[request.model as usize];
    }
    hour.models = models;
    hour
}

/// What each file takes to load, from a daemon that has room for all: the better of two.
fn calibrate(hour: &mut Workload, setup: &Setup) {
    let mut best = vec![u64::MAX; hour.models.len()];
    for _ in 0..2 {
        let node = Node::start(&setup.clone().budget(2 * hour.all_bytes()));
        let client = node.client();
        for (model, best) in hour.models.iter().zip(&mut best) {
            let began = Instant::now();
            client.open(&model.name).expect("opens");
            *best = (*best).min(u64::try_from(began.elapsed().as_micros()).expect("soon"));
        }
    }
    for (model, load_us) in hour.models.iter_mut().zip(best) {
        model.load_us = load_us;
    }
}

/// What requests waited for loads in sum, and how many did.
fn replay(hour: &Workload, setup: &Setup) -> (f64, u64) {
    let node = Node::start(setup);
    let (next, sums) = (AtomicUsize::new(0), Mutex::new((0.0, 0)));
    let ready = Barrier::new(CLIENTS);
    let began = Mutex::new(None);
    let client = || {
        let client = node.client();
        ready.wait();
        let began = *began
            .lock()
            .expect("whole")
            .get_or_insert_with(Instant::now);
        while let Some(request) = hour.requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let due = Duration::from_micros(request.at.0);
            thread::sleep(due.saturating_sub(began.elapsed())); // The trace's own pauses.
            let asked = Instant::now();
            let name = &hour.models[request.model as usize].name;
            let model = client.open(name).expect("opens");
            let waited_s = asked.elapsed().as_secs_f64();
            if model.origin() != Origin::Hit {
                let mut sums = sums.lock().expect("whole");
                *sums = (sums.0 + waited_s, sums.1 + 1);
            }
            thread::sleep(Duration::from_micros(request.exec_us));
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
    sums.into_inner().expect("whole")
}

fn judge(all: &[Ranked]) -> bool {
    println!(
        "{:<10} {:>14} {:>14} {:>14} {:>14}",
        "policy", "simulated s", "measured s", "misses", "measured"
    );
    for one in all {
        println!(
            "{:<10} {:>14.2} {:>14.2} {:>14} {:>14}",
            one.policy, one.simulated_s, one.measured_s, one.simulated_misses, one.measured_misses
        );
    }
    let mut holds = true;
    for (place, a) in all.iter().enumerate() {
        for b in &all[place + 1..] {
            let (more, less) = match a.simulated_s > b.simulated_s {
                true => (a, b),
                false => (b, a),
            };
            if more.simulated_s > TOLD_APART * less.simulated_s {
                let ranks = more.measured_s > less.measured_s;
                holds &= ranks;
                let verdict = if ranks {
                    "as simulated"
                } else {
                    "NOT as simulated"
                };
                println!("{} after {}: {verdict}", more.policy, less.policy);
            }
        }
    }
    holds
}
