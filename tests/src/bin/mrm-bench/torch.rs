//! `torch`: loading for torch in a fresh process, with and without a manager, of TrIMS' models.
//!
//! The peer is `safetensors.torch.load_file`, which maps the file and copies nothing; ours is
//! `mrm.safetensors.torch.load_file`, its replacement. A process that has imported torch forks for each load.

use crate::floor::{make_cold, make_warm};
use crate::report::Row;
use crate::trims::{MISS_MAX, within};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::io::{BufRead, BufReader, Lines, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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
    for (name, megabytes, layers) in within(sizes_mb) {
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
    loader: Loader,
}

impl Case {
    fn start(python: &Path, name: &'static str, path: PathBuf, bytes: u64) -> Self {
        let setup = Setup::new().model(name, &path).budget(bytes + (64 << 20));
        let node = Node::start(&setup);
        let loader = Loader::start(python, &node.socket());
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
                self.file(cold);
                peer[at].push(self.load("safetensors"));
                self.file(cold);
                miss[at].push(self.load("mrm"));
                if cold {
                    self.evict();
                }
            }
            hit.push(self.load("mrm"));
            self.evict();
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

    fn file(&self, cold: bool) {
        match cold {
            true => make_cold(&self.path, self.bytes),
            false => make_warm(&self.path),
        }
    }

    fn evict(&self) {
        self.node.until_leases(0);
        let path = format!("/v1/models/{}/evict?wait_ms=60000", self.name);
        let (status, body) = self.node.post(&path);
        assert_eq!(status, 200, "{body}");
    }
}

/// The process that forks for each load.
struct Loader {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Loader {
    fn start(python: &Path, socket: &Path) -> Self {
        let mut command = Command::new(python);
        command
            .args(["-W", "ignore", "-c", SCRIPT])
            .env("OMP_NUM_THREADS", "1")
            .env("MRM_SOCKET", socket);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().expect("starts");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut loader = Self {
            process,
            input,
            output,
        };
        assert_eq!(loader.line(), "ready");
        loader
    }

    /// Milliseconds that a load took.
    fn run(&mut self, what: &str) -> f64 {
        writeln!(self.input, "{what}").expect("it reads");
        self.line().parse().expect("a number")
    }

    fn line(&mut self) -> String {
        self.output.next().expect("it goes on").expect("text")
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
