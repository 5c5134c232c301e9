//! `share`: what many holders of one model take together.

use crate::report::Row;
use mrm_client::Client;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

const MODEL_BYTES: u64 = 1_000_000_000;
/// What each process may take for itself.
const OWN_BYTES: u64 = 2_000_000;

pub(crate) fn measure() -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, image) = model::write(dir.path(), "m/model.safetensors", MODEL_BYTES, 300, 1);
    let bytes = image.len() as u64;
    drop(image);
    let node = Node::start(&Setup::new().model("m", &path).budget(4 * MODEL_BYTES));
    drop(node.client().open("m").expect("loads"));
    [1, 8, 64]
        .into_iter()
        .map(|holders| held_by(&node, holders, bytes))
        .collect()
}

fn held_by(node: &Node, count: u64, bytes: u64) -> Row {
    let holders: Vec<Holder> = (0..count).map(|_| Holder::start(&node.socket())).collect();
    let holders: Vec<Holder> = holders.into_iter().map(Holder::until_ready).collect();
    let total: u64 = holders
        .iter()
        .map(|holder| pss_bytes(holder.child.id()))
        .sum();
    assert_eq!(
        node.number("/leases"),
        count,
        "each process holds one lease"
    );
    drop(holders);
    node.until_idle();
    let mut ours = [total as f64 / 1e6];
    let mut floor = [(bytes + count * OWN_BYTES) as f64 / 1e6];
    let limit = (1.02 * bytes as f64 + (count * OWN_BYTES) as f64) / 1e6 / floor[0];
    let case = format!("sum of PSS, {count} processes hold 1 GB");
    Row::of(
        "share",
        case,
        "MB",
        &mut ours,
        "the model + 2 MB a process",
        &mut floor,
        Some(limit),
    )
}

struct Holder {
    child: Child,
    // Its end is the sign to let go.
    _stdin: ChildStdin,
}

impl Holder {
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .arg("hold")
            .arg(socket)
            .arg("m")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdin = child.stdin.take().expect("piped");
        Self {
            child,
            _stdin: stdin,
        }
    }

    fn until_ready(mut self) -> Self {
        let mut line = String::new();
        let stdout = self.child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it says that it holds");
        assert_eq!(line, "holding\n");
        self
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of a process: opens, touches every page, holds.
pub(crate) fn hold(socket: &Path, model: &str) {
    let client = Client::connect_to(socket).expect("connects");
    let opened = client.open(model).expect("opens");
    for segment in opened.segments() {
        for at in (0..segment.bytes().len()).step_by(4096) {
            black_box(segment.bytes()[at]);
        }
    }
    println!("holding");
    let _ = std::io::stdin().read(&mut [0]);
}

/// Proportional set size of a process (`proc_pid_smaps_rollup(5)`).
pub(crate) fn pss_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("is there");
    let line = text
        .lines()
        .find(|line| line.starts_with("Pss:"))
        .expect("a line");
    line.split_whitespace()
        .nth(1)
        .expect("a number")
        .parse::<u64>()
        .expect("a number")
        * 1024
}
