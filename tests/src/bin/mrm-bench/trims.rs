//! `trims`: the experiment of the TrIMS paper (IEEE CLOUD 2019), as far as it needs no GPU.
//!
//! Its 37 small and 8 large models (tables III and IV: megabytes of weights and layers; random
//! values), a fresh process for each inference. The paper gives no times of computing; the
//! stand-in is derived from its section VI-B, where loading and initialising is 86 % of the time
//! without a manager and computing 7 %, on a machine that reads 521 MB/s.

use crate::floor::make_file;
use crate::progress::Progress;
use crate::quiet;
use crate::report::{Row, percentile};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

mod child;
mod tenants;
use child::{Child, How};

/// Name, megabytes of weights, layers.
pub(crate) const MODELS: [(&str, f64, u64); 45] = [
    ("alexnet", 238.0, 16),
    ("googlenet", 27.0, 116),
    ("caffenet", 233.0, 16),
    ("rcnn-ilsvrc13", 221.0, 16),
    ("dpn68", 49.0, 361),
    ("dpn92", 145.0, 481),
    ("inception-v3", 92.0, 472),
    ("inception-v4", 164.0, 747),
    ("inceptionbn-v2", 129.0, 416),
    ("inceptionbn-v3", 44.0, 416),
    ("inception-resnet-v2", 214.0, 1102),
    ("locationnet", 285.0, 514),
    ("nin", 29.0, 24),
    ("resnet101", 170.0, 526),
    ("resnet101-v2", 171.0, 522),
    ("resnet152", 231.0, 777),
    ("resnet152-11k", 311.0, 769),
    ("resnet152-v2", 231.0, 761),
    ("resnet18-v2", 45.0, 99),
    ("resnet200-v2", 248.0, 1009),
    ("resnet269-v2", 391.0, 1346),
    ("resnet34-v2", 84.0, 179),
    ("resnet50", 98.0, 268),
    ("resnet50-v2", 98.0, 259),
    ("resnext101", 170.0, 526),
    ("resnext101-32x4d", 170.0, 522),
    ("resnext26-32x4d", 59.0, 147),
    ("resnext50", 96.0, 271),
    ("resnext50-32x4d", 96.0, 267),
    ("squeezenet-1.0", 4.8, 52),
    ("squeezenet-1.1", 4.8, 52),
    ("vgg16", 528.0, 32),
    ("vgg16-sod", 514.0, 32),
    ("vgg16-sos", 513.0, 32),
    ("vgg19", 549.0, 38),
    ("wrn50-v2", 264.0, 267),
    ("xception", 88.0, 236),
    ("alexnet-227", 238.0, 16),
    ("alexnet-454", 770.0, 16),
    ("alexnet-681", 1694.0, 16),
    ("alexnet-908", 3010.0, 16),
    ("vgg16-224", 528.0, 32),
    ("vgg16-448", 1704.0, 32),
    ("vgg16-672", 3664.0, 32),
    ("vgg16-896", 6408.0, 32),
];
/// What a daemon makes ready for loads by default where it has 64 GiB for models: the budgets here, of one
/// model, say nothing of that.
pub(crate) const STOCK: &str = "8GiB";
/// Of the time without a manager: computing over loading (section VI-B).
const COMPUTE_PER_LOAD: f64 = 7.0 / 86.0;
/// How fast the machine of that section reads its disk (table II).
const DISK_MB_PER_S: f64 = 521.0;
/// At least this fraction of ideal, in the geometric mean of the hits.
const IDEAL_MIN: f64 = 0.95;
/// A miss, against no manager.
pub(crate) const MISS_MAX: f64 = 1.05;

pub(crate) fn measure(
    python: Option<&Path>,
    rounds: usize,
    sizes_mb: &RangeInclusive<u64>,
) -> Vec<Row> {
    let Some(python) = python else {
        println!("trims is left out: it needs a Python with safetensors (--python)");
        return Vec::new();
    };
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rows, mut fractions) = (Vec::new(), Vec::new());
    let models = within(sizes_mb);
    let mut progress = Progress::new("trims", models.len());
    for (name, megabytes, layers) in models {
        progress.next(name);
        let inference = Inference::prepare(dir.path(), python, name, megabytes, layers);
        let taken = inference.run(rounds);
        std::fs::remove_file(&inference.child.path).expect("removed");
        fractions.push(taken.fraction_of_ideal());
        rows.extend(taken.rows(name));
    }
    rows.push(mean(&fractions));
    rows.extend(tenants::measure(dir.path(), python, sizes_mb));
    rows
}

/// The models of these sizes, in megabytes.
pub(crate) fn within(sizes_mb: &RangeInclusive<u64>) -> Vec<(&'static str, f64, u64)> {
    let (least, most) = (*sizes_mb.start() as f64, *sizes_mb.end() as f64);
    let (within, others): (Vec<_>, Vec<_>) = MODELS
        .into_iter()
        .partition(|(_, megabytes, _)| (least..=most).contains(megabytes));
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|(name, ..)| *name).collect();
        let names = names.join(", ");
        println!("left out, below --least-mb or above --most-mb: {names}");
    }
    within
}

/// Milliseconds that computing on a model of this size stands in for.
pub(crate) fn compute_ms(megabytes: f64) -> f64 {
    megabytes / DISK_MB_PER_S * 1e3 * COMPUTE_PER_LOAD
}

/// As a ratio of times, so that less is better as everywhere: at most 1 / 0.95.
fn mean(fractions: &[f64]) -> Row {
    let sum: f64 = fractions.iter().map(|fraction| fraction.ln()).sum();
    let mean = (sum / fractions.len() as f64).exp();
    let case = format!("hit, geometric mean of {} models", fractions.len());
    let floor = format!("loading in no time (fraction of ideal {mean:.3})");
    let limit = Some(1.0 / IDEAL_MIN);
    Row::of(
        "trims",
        case,
        "x",
        &mut [1.0 / mean],
        floor,
        &mut [1.0],
        limit,
    )
}

struct Inference {
    node: Node,
    child: Child,
    bytes: u64,
}

#[derive(Default)]
struct Taken {
    hit: Vec<f64>,
    hit_all: Vec<f64>,
    ideal: Vec<f64>,
    miss: [Vec<f64>; 2],
    numpy: [Vec<f64>; 2],
}

impl Inference {
    fn prepare(dir: &Path, python: &Path, name: &str, megabytes: f64, layers: u64) -> Self {
        let bytes = (megabytes * 1e6) as u64;
        let path: PathBuf = model::write_random(dir, &format!("{name}.safetensors"), bytes, layers);
        let setup = Setup::new().model(name, &path).budget(bytes + (64 << 20));
        let setup = setup.stock(STOCK);
        let node = Node::start(&setup);
        let child = Child {
            python: python.to_owned(),
            socket: node.socket(),
            path,
            name: name.to_owned(),
            compute_ms: compute_ms(megabytes),
        };
        let bytes = std::fs::metadata(&child.path).expect("is there").len();
        Self { node, child, bytes }
    }

    fn run(&self, rounds: usize) -> Taken {
        let mut taken = Taken::default();
        let [numpy, mrm, ideal] = [How::Numpy, How::Mrm, How::Ideal];
        for _ in 0..rounds {
            // Started together, and idle before the first begins.
            let each = [numpy, mrm, numpy, mrm, mrm, ideal].map(|how| self.child.start(how));
            let mut each = each.map(child::Started::ready).into_iter();
            let mut run = || each.next().expect("one for each").run();
            for (at, cold) in [true, false].into_iter().enumerate() {
                make_file(&self.child.path, self.bytes, cold);
                taken.numpy[at].push(run().load_ms);
                make_file(&self.child.path, self.bytes, cold);
                taken.miss[at].push(run().load_ms);
                if cold {
                    self.node.evict(&self.child.name);
                }
            }
            // Of what is in memory for a while, which is in huge pages by then.
            quiet::wait(&self.node);
            let hit = run();
            taken.hit.push(hit.load_ms);
            taken.hit_all.push(hit.load_ms + hit.compute_ms);
            let ideal = run();
            taken.ideal.push(ideal.load_ms + ideal.compute_ms);
            self.node.evict(&self.child.name);
        }
        taken
    }
}

impl Taken {
    fn fraction_of_ideal(&self) -> f64 {
        percentile(&mut self.ideal.clone(), 0.5) / percentile(&mut self.hit_all.clone(), 0.5)
    }

    fn rows(mut self, name: &str) -> Vec<Row> {
        let hit = format!("{name}: end to end, hit");
        let ideal = "loading in no time";
        let mut rows = vec![Row::of(
            "trims",
            hit,
            "ms",
            &mut self.hit_all,
            ideal,
            &mut self.ideal,
            None,
        )];
        let [cold, cached] = self.miss;
        let [cold_numpy, cached_numpy] = self.numpy;
        for (state, mut ours, mut theirs) in
            [("cold", cold, cold_numpy), ("cached", cached, cached_numpy)]
        {
            let case = format!("{name}: load, miss, {state} file");
            let floor = "safetensors.numpy, no manager";
            let limit = Some(MISS_MAX);
            rows.push(Row::of(
                "trims",
                case,
                "ms",
                &mut ours,
                floor,
                &mut theirs,
                limit,
            ));
        }
        rows
    }
}
