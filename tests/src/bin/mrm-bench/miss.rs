//! `miss`: opening what is not in memory, from a file that is in the page cache or not.

use crate::floor::{copy_mapped, make_file, populated, read_direct};
use crate::hit::open_cycle;
use crate::progress::Progress;
use crate::quiet;
use crate::report::Row;
use crate::trims::STOCK;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 15;
/// Bytes and tensors.
const MODELS: [(&str, u64, u64); 4] = [
    ("1 MB", 1_000_000, 10),
    ("100 MB", 100_000_000, 103),
    ("1 GB", 1_000_000_000, 300),
    ("4 GB", 4_000_000_000, 300),
];
/// What a node must have free for a model: it is there in the page cache, in the floor's memory and in
/// the daemon's.
const COPIES: u64 = 4;
/// Prints the milliseconds that loading takes, after the imports.
const PEER: &str = "
import sys, time
from safetensors.numpy import load_file
start = time.perf_counter()
tensors = load_file(sys.argv[1])
first = next(iter(tensors.values())).reshape(-1)[0]
print((time.perf_counter() - start) * 1e3)
";

/// `python` has the `safetensors` package, if there is one.
pub(crate) fn measure(python: Option<&Path>) -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = Vec::new();
    let mut progress = Progress::new("miss", MODELS.len() * 2);
    for (size, bytes, tensors) in MODELS {
        let free = free_bytes();
        if bytes * COPIES > free {
            println!("miss: {size} is left out: {free} bytes of memory are free");
            continue;
        }
        let path = model::write_random(dir.path(), "m/model.safetensors", bytes, tensors);
        let file = std::fs::File::open(&path).expect("opens");
        file.sync_all().expect("on disk");
        let bytes = file.metadata().expect("stat").len();
        let setup = Setup::new().model("m", &path).stock(STOCK);
        let node = Node::start(&setup);
        let case = Case {
            size,
            path,
            bytes,
            node,
        };
        for cold in [true, false] {
            progress.next(&case.what(cold));
            rows.extend(case.measure(cold, python));
        }
    }
    rows
}

struct Case {
    size: &'static str,
    path: PathBuf,
    bytes: u64,
    node: Node,
}

impl Case {
    fn measure(&self, cold: bool, python: Option<&Path>) -> Vec<Row> {
        let client = self.node.client();
        let (mut ours, mut ready, mut fresh, mut peer) = (vec![], vec![], vec![], vec![]);
        let mut memory = populated(self.bytes);
        let read = |into: &mut [u8]| match cold {
            true => read_direct(&self.path, self.bytes, into),
            false => copy_mapped(&self.path, self.bytes, into),
        };
        for _ in 0..ROUNDS {
            make_file(&self.path, self.bytes, cold);
            ready.push(milliseconds(|| read(&mut memory)));
            make_file(&self.path, self.bytes, cold);
            fresh.push(milliseconds(|| read(&mut populated(self.bytes))));
            make_file(&self.path, self.bytes, cold);
            quiet::wait(&self.node);
            ours.push(open_cycle(&client, "m") / 1e6);
            if let Some(python) = python {
                make_file(&self.path, self.bytes, cold);
                peer.push(self.peer(python));
            }
            self.node.evict("m");
        }
        let case = self.what(cold);
        let row = |floor: &str, samples: &mut [f64], limit| {
            Row::of(
                "miss",
                &case,
                "ms",
                &mut ours.clone(),
                floor,
                samples,
                limit,
            )
        };
        let (how, limit) = match cold {
            true => ("direct read", 1.10),
            false => ("copy by two threads", 1.15),
        };
        // Below that, messages count for more than bytes.
        let limit = (self.bytes > 10_000_000).then_some(limit);
        let mut rows = vec![
            row(&format!("{how}, prepared memory"), &mut ready, limit),
            row(&format!("{how}, fresh memory"), &mut fresh, None),
        ];
        if !peer.is_empty() {
            rows.push(row("safetensors.numpy.load_file", &mut peer, Some(1.05)));
        }
        rows
    }

    fn what(&self, cold: bool) -> String {
        let state = if cold { "cold" } else { "cached" };
        format!("first open, {}, {state} file", self.size)
    }

    fn peer(&self, python: &Path) -> f64 {
        let run = Command::new(python)
            .args(["-c", PEER])
            .arg(&self.path)
            .output();
        let output = run.expect("starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        text.trim().parse().expect("a number")
    }
}

/// What the machine says that could be taken.
pub(crate) fn free_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("proc is mounted");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1e3
}
