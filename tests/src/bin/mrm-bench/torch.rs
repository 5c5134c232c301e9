//! `torch`: loading for torch in a fresh process, with and without a manager, of TrIMS' models.
//!
//! The peer is `safetensors.torch.load_file`, which maps the file and copies nothing; ours is
//! `mrm.safetensors.torch.load_file`, its replacement. A process that has imported torch forks for each load.

use crate::floor::make_file;
use crate::progress::Progress;
use crate::report::Row;
use crate::trims::{MISS_MAX, STOCK, within};
use crate::worker::Worker;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("torch.py");

pub(crate) fn measure(
    python: Option<&Path>,
    rounds: usize,
    sizes_mb: &RangeInclusive<u64>,
) -> Vec<Row> {
    let Some(python) = python.filter(|python| has_torch(python)) else {
        println!("torch is left out: it needs a Python with torch and safetensors (--python)");
        return Vec::new();
    };
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = Vec::new();
    let models = within(sizes_mb);
    let mut progress = Progress::new("torch", models.len());
    for (name, megabytes, layers) in models {
        progress.next(name);
        let bytes = (megabytes * 1e6) as u64;
        let path = model::write_random(dir.path(), &format!("{name}.safetensors"), bytes, layers);
        rows.extend(Case::start(python, name, path.clone(), bytes).measure(rounds));
        std::fs::remove_file(&path).expect("removed");
    }
    rows
}

fn has_torch(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import torch, safetensors.torch"]);
    let tried = command.stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// One model, and who loads it.
struct Case {
    name: &'static str,
    node: Node,
    path: PathBuf,
    bytes: u64,
    /// Forks for each load.
    loader: Worker,
}

impl Case {
    fn start(python: &Path, name: &'static str, path: PathBuf, bytes: u64) -> Self {
        let setup = Setup::new().model(name, &path).budget(bytes + (64 << 20));
        let setup = setup.stock(STOCK);
        let node = Node::start(&setup);
        let loader = Worker::start(python, SCRIPT, &[], &node.socket());
        Self {
            name,
            node,
            path,
            bytes,
            loader,
        }
    }

    fn measure(mut self, rounds: usize) -> Vec<Row> {
        let (mut miss, mut peer) = ([vec![], vec![]], [vec![], vec![]]);
        let mut hit = Vec::new();
        for _ in 0..rounds {
            for (at, cold) in [true, false].into_iter().enumerate() {
                make_file(&self.path, self.bytes, cold);
                peer[at].push(self.load("safetensors"));
                make_file(&self.path, self.bytes, cold);
                miss[at].push(self.load("mrm"));
                if cold {
                    self.node.evict(self.name);
                }
            }
            hit.push(self.load("mrm"));
            self.node.evict(self.name);
        }
        let [mut cold, mut cached] = miss;
        let [mut cold_peer, mut cached_peer] = peer;
        let row = |what: &str, ours: &mut Vec<f64>, theirs: &mut Vec<f64>, limit| {
            let case = format!("{}: load, {what}", self.name);
            let floor = "safetensors.torch, no manager";
            Row::of("torch", case, "ms", ours, floor, theirs, limit)
        };
        vec![
            row("miss, cold file", &mut cold, &mut cold_peer, Some(MISS_MAX)),
            row("hit, cached file", &mut hit, &mut cached_peer, None),
            row(
                "miss, cached file",
                &mut cached,
                &mut cached_peer,
                Some(MISS_MAX),
            ),
        ]
    }

    fn load(&mut self, how: &str) -> f64 {
        match how {
            "mrm" => self.loader.run(&format!("mrm\tmrm:{}", self.name)),
            how => self.loader.run(&format!("{how}\t{}", self.path.display())),
        }
    }
}
