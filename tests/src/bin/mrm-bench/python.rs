//! `python`: the same hit through Python, against what its users would do otherwise.

use crate::floor::make_warm;
use crate::miss::free_bytes;
use crate::quiet;
use crate::report::Row;
use crate::worker::Worker;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::ffi::OsStr;
use std::path::Path;

const SCRIPT: &str = include_str!("python.py");
/// What a node must have free for a model: the page cache, the daemon and `load_file` each have it,
/// and the last for a moment twice.
const COPIES: u64 = 4;

/// A model, and how much of its peer's time each case may take.
struct Case {
    size: &'static str,
    bytes: u64,
    tensors: u64,
    /// Of `load_file`, to have arrays.
    arrays_max: Option<f64>,
    /// Of `numpy.memmap`, with every page read.
    touched_max: Option<f64>,
}

const CASES: [Case; 5] = [
    Case {
        size: "91 MB",
        bytes: 91_000_000,
        tensors: 103,
        arrays_max: Some(1.0 / 50.0),
        touched_max: None,
    },
    Case {
        size: "98 MB",
        bytes: 98_000_000,
        tensors: 268,
        arrays_max: None,
        touched_max: Some(0.5),
    },
    Case {
        size: "528 MB",
        bytes: 528_000_000,
        tensors: 32,
        arrays_max: Some(1.0 / 200.0),
        touched_max: None,
    },
    Case {
        size: "1.3 GB",
        bytes: 1_300_000_000,
        tensors: 300,
        arrays_max: None,
        touched_max: Some(0.9),
    },
    Case {
        size: "4 GB",
        bytes: 4_000_000_000,
        tensors: 300,
        arrays_max: Some(1.0 / 1000.0),
        touched_max: Some(0.6),
    },
];

/// `python` has numpy and the packages `mrm` and `safetensors`.
pub(crate) fn measure(python: Option<&Path>, rounds: usize, most_mb: u64) -> Vec<Row> {
    let Some(python) = python else {
        panic!("no Python with numpy and safetensors: start it as `scripts/bench python`");
    };
    let fits = |case: &&Case| {
        let fits = case.bytes <= most_mb * 1_000_000 && case.bytes * COPIES <= free_bytes();
        if !fits {
            let size = case.size;
            println!("python: {size} is left out, as --most-mb or the free memory says");
        }
        fits
    };
    let cases = CASES.iter().filter(fits);
    cases
        .flat_map(|case| case.measure(python, rounds))
        .collect()
}

impl Case {
    fn measure(&self, python: &Path, rounds: usize) -> Vec<Row> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = model::write_random(dir.path(), "m/model.safetensors", self.bytes, self.tensors);
        let node = Node::start(&Setup::new().model("m", &path));
        drop(node.client().open("m").expect("loads"));
        quiet::wait(&node);
        make_warm(&path);
        let args = [path.as_os_str(), OsStr::new("m")];
        let start = || Worker::start(python, SCRIPT, &args, &node.socket());
        let (mut ours, mut peer) = (start(), start());
        let mut rows = Vec::new();
        if let Some(limit) = self.arrays_max {
            let (mut one, mut all, mut load) = (vec![], vec![], vec![]);
            for _ in 0..rounds {
                load.push(peer.run("load"));
                one.push(ours.run("open-one"));
                all.push(ours.run("open-all"));
            }
            let mut row = |what: &str, mut samples: Vec<f64>| {
                let case = format!("{what}, {}", self.size);
                let floor = "safetensors.numpy.load_file";
                let limit = Some(limit);
                Row::of("python", case, "ms", &mut samples, floor, &mut load, limit)
            };
            rows.push(row("open to an array", one));
            rows.push(row("open to all arrays", all));
        }
        if let Some(limit) = self.touched_max {
            let (mut touched, mut mapped) = (vec![], vec![]);
            for _ in 0..rounds {
                mapped.push(peer.run("map-touch"));
                touched.push(ours.run("open-touch"));
            }
            let case = format!("open to arrays, every page, {}", self.size);
            rows.push(Row::of(
                "python",
                case,
                "ms",
                &mut touched,
                "numpy.memmap",
                &mut mapped,
                Some(limit),
            ));
        }
        rows
    }
}
