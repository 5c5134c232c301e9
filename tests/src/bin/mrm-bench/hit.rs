//! `hit`: opening what is resident.

use crate::bare::{self, BareServer};
use crate::report::Row;
use mrm_client::Client;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::collections::HashMap;
use std::hint::black_box;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

const MODEL_BYTES: u64 = 91_000_000;
const ROUNDS: usize = 40;
const CYCLES: usize = 500;
const FRESH: usize = 200;
const REPEATS: usize = 100_000;

pub(crate) fn measure() -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = model::write(dir.path(), "m/model.safetensors", MODEL_BYTES, 103, 1);
    let node = Node::start(&Setup::new().model("m", &path));
    let client = node.client();
    drop(client.open("m").expect("loads"));
    let server = BareServer::start(dir.path(), MODEL_BYTES);
    vec![
        connected(&client, &server),
        fresh_process(&node, &server),
        repeated(&client),
    ]
}

fn connected(client: &Client, server: &BareServer) -> Row {
    let mut stream = UnixStream::connect(&server.socket).expect("connects");
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..CYCLES {
            floor.push(bare::cycle(&mut stream, server.bytes) / 1e3);
        }
        for _ in 0..CYCLES {
            ours.push(open_cycle(client, "m") / 1e3);
        }
    }
    let case = "open + first byte + close, connected, 91 MB";
    Row::of(
        "hit",
        case,
        "us",
        &mut ours,
        "bare round trip, 1 fd, mmap",
        &mut floor,
        Some(3.0),
    )
}

/// Open, read the first byte, give back: nanoseconds.
pub(crate) fn open_cycle(client: &Client, model: &str) -> f64 {
    let began = Instant::now();
    let opened = client.open(model).expect("opens");
    black_box(opened.segment(0).expect("one file").bytes()[0]);
    drop(opened);
    began.elapsed().as_nanos() as f64
}

fn fresh_process(node: &Node, server: &BareServer) -> Row {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let run = |arguments: [&str; 3]| -> f64 {
        let output = Command::new(std::env::current_exe().expect("own path"))
            .args(arguments)
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).expect("text");
        text.trim().parse::<f64>().expect("a number") / 1e3
    };
    let (bare, mrm) = (server.socket.to_str().expect("text"), node.socket());
    let bytes = server.bytes.to_string();
    for _ in 0..FRESH {
        floor.push(run(["bare-fresh", bare, &bytes]));
        ours.push(run(["fresh", mrm.to_str().expect("text"), "m"]));
    }
    let case = "the same from a fresh process, with connect";
    Row::of(
        "hit",
        case,
        "us",
        &mut ours,
        "bare, with connect",
        &mut floor,
        Some(3.0),
    )
}

/// In a fresh process: from connect to the first byte.
pub(crate) fn fresh(socket: &Path, model: &str) -> f64 {
    let began = Instant::now();
    let client = Client::connect_to(socket).expect("connects");
    open_cycle(&client, model);
    began.elapsed().as_nanos() as f64
}

fn repeated(client: &Client) -> Row {
    let held = client.open("m").expect("opens");
    let table = Mutex::new(HashMap::from([("m".to_owned(), std::sync::Arc::new(7u8))]));
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..REPEATS {
            let entry = table.lock().expect("unpoisoned").get("m").cloned();
            black_box(entry);
        }
        floor.push(began.elapsed().as_nanos() as f64 / REPEATS as f64);
        let began = Instant::now();
        for _ in 0..REPEATS {
            black_box(client.open("m").expect("opens"));
        }
        ours.push(began.elapsed().as_nanos() as f64 / REPEATS as f64);
    }
    drop(held);
    let case = "second open in the same process";
    let mut row = Row::of(
        "hit",
        case,
        "ns",
        &mut ours,
        "locked hash look-up",
        &mut floor,
        None,
    );
    // The promise is absolute: under one microsecond.
    row.limit = Some(1000.0 / row.floor_p50);
    row
}
