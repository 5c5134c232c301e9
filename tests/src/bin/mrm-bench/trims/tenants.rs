//! Many at once: ten processes, popularity by a Pareto distribution, memory for 40 % of the bytes.

use super::child::{Child, How};
use super::{MODELS, STOCK, compute_ms};
use crate::report::Row;
use mrm_tests::Random;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

const AT_ONCE: usize = 10;
const INFERENCES: usize = 500;
const BUDGET_SHARE: f64 = 0.4;
/// The small ones, the first of the tables.
const SMALL: usize = 37;
const SEED: u64 = 19;

pub(super) fn measure(dir: &Path, python: &Path, sizes_mb: &RangeInclusive<u64>) -> Vec<Row> {
    let (least, most) = (*sizes_mb.start() as f64, *sizes_mb.end() as f64);
    let models: Vec<_> = MODELS[..SMALL]
        .iter()
        .filter(|(_, megabytes, _)| (least..=most).contains(megabytes))
        .collect();
    if models.is_empty() {
        return Vec::new();
    }
    let paths: Vec<PathBuf> = models
        .iter()
        .map(|(name, megabytes, layers)| {
            let bytes = (megabytes * 1e6) as u64;
            model::write_random(dir, &format!("{name}.safetensors"), bytes, *layers)
        })
        .collect();
    let all: f64 = models.iter().map(|(_, megabytes, _)| megabytes * 1e6).sum();
    let largest = models.iter().map(|(_, megabytes, _)| megabytes * 1e6);
    // With few models (`--most-mb`) the share may be less than one of them.
    let budget = largest.fold(all * BUDGET_SHARE, |most, bytes| most.max(2.0 * bytes));
    let mut setup = Setup::new().budget(budget as u64).stock(STOCK);
    for ((name, ..), path) in models.iter().zip(&paths) {
        setup = setup.model(name, path);
    }
    let node = Node::start(&setup);
    let children: Vec<Child> = models
        .iter()
        .zip(&paths)
        .map(|((name, megabytes, _), path)| Child {
            python: python.to_owned(),
            socket: node.socket(),
            path: path.clone(),
            name: (*name).to_owned(),
            compute_ms: compute_ms(*megabytes),
        })
        .collect();
    println!("trims: {INFERENCES} inferences, {AT_ONCE} at once, seed {SEED}");
    let order = order(children.len());
    let (mut ours, our_s) = run(&children, &order, How::Mrm);
    let (mut theirs, their_s) = run(&children, &order, How::Numpy);
    let what = format!("{AT_ONCE} at once, budget of 40 %");
    let floor = "safetensors.numpy, no manager";
    vec![
        Row::of(
            "trims",
            format!("{what}: load + compute"),
            "ms",
            &mut ours,
            floor,
            &mut theirs,
            None,
        ),
        Row::of(
            "trims",
            format!("{what}: {INFERENCES} inferences with their processes"),
            "s",
            &mut [our_s],
            floor,
            &mut [their_s],
            None,
        ),
    ]
}

/// Which models, in turn: weights drawn once from Pareto(1, 1), then the models by weight.
fn order(models: usize) -> Vec<usize> {
    let mut random = Random(SEED);
    let mut uniform = || (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
    let weights: Vec<f64> = (0..models).map(|_| 1.0 / (1.0 - uniform())).collect();
    let all: f64 = weights.iter().sum();
    let draw = |mut left: f64| {
        let found = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        found.unwrap_or(models - 1)
    };
    (0..INFERENCES).map(|_| draw(uniform() * all)).collect()
}

fn run(children: &[Child], order: &[usize], how: How) -> (Vec<f64>, f64) {
    let (next, taken) = (Mutex::new(order.iter()), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(at) = next.lock().expect("whole").next() else {
                        return;
                    };
                    let took = children[*at].run(how);
                    let milliseconds = took.load_ms + took.compute_ms;
                    taken.lock().expect("whole").push(milliseconds);
                }
            });
        }
    });
    (
        taken.into_inner().expect("whole"),
        began.elapsed().as_secs_f64(),
    )
}
