//! `hit`: opening what is resident.

use crate::bare::{self, BareServer};
use crate::cost::cpu_us;
use crate::miss::free_bytes;
use crate::place::{self, Place};
use crate::quiet;
use crate::report::Row;
use mrm_client::{Client, ConnectOptions, OpenOptions};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::hint::black_box;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

/// Name, bytes, tensors. What does not fit into free memory twice is left out.
const MODELS: [(&str, u64, u64); 3] = [
    ("1MB", 1_000_000, 10),
    ("100MB", 100_000_000, 103),
    ("4GB", 4_000_000_000, 300),
];
/// The one that the cases with one size are about.
const USUAL: usize = 1;
const ROUNDS: usize = 31;
const CYCLES: usize = 300;
const FRESH: usize = 200;
const REPEATS: usize = 50_000;
const CLIENTS: usize = 8;

/// Limits, as ratios to the floor; the last two in units of their rows.
const CONNECTED_MAX: f64 = 1.3;
const AT_ONCE_MAX: f64 = 1.0 / 0.75;
const FRESH_MAX: f64 = 1.5;
const REPEATED_NS_MAX: f64 = 100.0;
const CPU_US_MAX: f64 = 10.0;

pub(crate) fn measure() -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut setup = Setup::new();
    let mut sizes = Vec::new();
    for (name, bytes, tensors) in MODELS {
        if free_bytes() < 2 * bytes {
            println!("hit: {name} is left out: less than twice its size is free");
            continue;
        }
        let path = model::write_zeros(dir.path(), &format!("{name}.safetensors"), bytes, tensors);
        setup = setup.model(name, &path);
        sizes.push((name, bytes));
    }
    let node = Node::start(&setup);
    let client = node.client();
    for (name, _) in &sizes {
        drop(client.open(name).expect("loads"));
    }
    quiet::wait(&node);
    let servers: Vec<BareServer> = sizes
        .iter()
        .map(|(_, bytes)| BareServer::start(dir.path(), *bytes))
        .collect();
    let mut rows: Vec<Row> = sizes
        .iter()
        .zip(&servers)
        .map(|((name, _), server)| connected(&client, server, name))
        .collect();
    let (name, server) = (sizes[USUAL].0, &servers[USUAL]);
    rows.extend(placed(&node, &client, server, name));
    rows.push(at_once(&node, server, name));
    rows.push(fresh_process(&node, server, name));
    rows.push(repeated(&client, name));
    rows.push(cpu(&node, &client, name));
    rows
}

/// The same with both sides of each on one core, and on two. Where the kernel puts them decides
/// more than what they do; here it puts all alike.
fn placed(node: &Node, client: &Client, server: &BareServer, model: &str) -> Vec<Row> {
    let Some((one, two)) = place::two_cores() else {
        println!("hit: the cases on one core and on two are left out: there is one");
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (theirs, words) in [(one, "on one core"), (two, "on two cores")] {
        let _here = Place::this_thread(one);
        let _servers = [node.pid(), server.pid()].map(|pid| Place::main_of(pid, theirs));
        let mut row = connected(client, server, model);
        row.case += ", ";
        row.case += words;
        rows.push(row);
    }
    rows
}

fn connected(client: &Client, server: &BareServer, model: &str) -> Row {
    let mut stream = UnixStream::connect(&server.socket).expect("connects");
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..CYCLES {
            floor.push(bare::cycle(&mut stream, server.bytes) / 1e3);
        }
        for _ in 0..CYCLES {
            ours.push(open_cycle(client, model) / 1e3);
        }
    }
    Row::of(
        "hit",
        format!("open + first byte + close, {model}"),
        "us",
        &mut ours,
        "bare round trip, 1 fd, mmap",
        &mut floor,
        Some(CONNECTED_MAX),
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

/// Microseconds an open, all clients together.
fn at_once(node: &Node, server: &BareServer, model: &str) -> Row {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let clients: Vec<Client> = (0..CLIENTS).map(|_| node.client()).collect();
    let streams = (0..CLIENTS).map(|_| UnixStream::connect(&server.socket).expect("connects"));
    let mut streams: Vec<UnixStream> = streams.collect();
    for _ in 0..ROUNDS {
        floor.push(together(&mut streams, |stream| {
            bare::cycle(stream, server.bytes);
        }));
        let mut clients: Vec<&Client> = clients.iter().collect();
        ours.push(together(&mut clients, |client| {
            open_cycle(client, model);
        }));
    }
    Row::of(
        "hit",
        format!("time per open, {CLIENTS} clients at once, {model}"),
        "us",
        &mut ours,
        "bare round trips at once",
        &mut floor,
        Some(AT_ONCE_MAX),
    )
}

fn together<C: Send>(clients: &mut [C], cycle: impl Fn(&mut C) + Sync) -> f64 {
    let (count, ready) = (clients.len(), Barrier::new(clients.len() + 1));
    let began = std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| {
                ready.wait();
                (0..CYCLES).for_each(|_| cycle(client));
            });
        }
        ready.wait();
        Instant::now()
    });
    began.elapsed().as_secs_f64() * 1e6 / (count * CYCLES) as f64
}

fn fresh_process(node: &Node, server: &BareServer, model: &str) -> Row {
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
        ours.push(run(["fresh", mrm.to_str().expect("text"), model]));
    }
    Row::of(
        "hit",
        format!("from a fresh process, with connect, {model}"),
        "us",
        &mut ours,
        "bare, with connect",
        &mut floor,
        Some(FRESH_MAX),
    )
}

/// In a fresh process: from connect to the first byte, and the end of the open.
pub(crate) fn fresh(socket: &Path, model: &str) -> f64 {
    let began = Instant::now();
    let connect = ConnectOptions::new().socket(socket);
    let opened = Client::connect_and_open_with(&connect, model, &OpenOptions::new());
    let (_client, opened) = opened.expect("opens");
    black_box(opened.segment(0).expect("one file").bytes()[0]);
    drop(opened);
    began.elapsed().as_nanos() as f64
}

fn repeated(client: &Client, model: &str) -> Row {
    let held = client.open(model).expect("opens");
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..REPEATS {
            black_box(client.open(model).expect("opens"));
        }
        ours.push(began.elapsed().as_nanos() as f64 / REPEATS as f64);
    }
    drop(held);
    let case = "second open in the same process";
    Row::at_most("hit", case, "ns", &mut ours, REPEATED_NS_MAX)
}

/// What an open and its end take of the daemon's time on a core.
fn cpu(node: &Node, client: &Client, model: &str) -> Row {
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        let before = cpu_us(node.pid());
        for _ in 0..CYCLES {
            open_cycle(client, model);
        }
        ours.push((cpu_us(node.pid()) - before) / CYCLES as f64);
    }
    let case = "daemon's CPU per open + close";
    Row::at_most("hit", case, "us", &mut ours, CPU_US_MAX)
}
