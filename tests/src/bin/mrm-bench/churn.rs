//! `churn`: opens a second, and whether they leave anything behind in the daemon.

use crate::bare::{self, BareServer};
use crate::hit::open_cycle;
use crate::report::Row;
use mrm_client::Client;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const MODEL_BYTES: u64 = 1 << 20;
const WARM_UP: u64 = 20_000;
/// Most samples kept of one case; the rest is counted, not kept.
const SAMPLES_MAX: u64 = 200_000;
/// How often, and how far apart, the descriptors are counted.
const LOOKS: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);
/// Growth that an allocator's own noise may show.
const GROWTH_MAX: f64 = 1.10;

pub(crate) fn measure(opens: u64) -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = model::write(dir.path(), "m/model.safetensors", MODEL_BYTES, 10, 1);
    let mut setup = Setup::new().model("m", &path);
    // The record of what is decided grows to its bound; what grows beside it is what counts.
    let journal = ("MRM_JOURNAL_BYTES_MAX", "64KiB");
    let journal = (journal.0.to_owned(), journal.1.to_owned());
    setup.environment.push(journal);
    let node = Node::start(&setup);
    drop(node.client().open("m").expect("loads"));
    let server = BareServer::start(dir.path(), MODEL_BYTES);
    run_ours(&node, 64, WARM_UP);
    node.until_idle();
    let before = (node.resident_bytes(), settled_fds(&node));

    let mut rows = Vec::new();
    for clients in [1, 8, 64] {
        let (floor_rate, mut floor) = run_floor(&server, clients, opens / 20);
        let (rate, mut ours) = run_ours(&node, clients, opens / 3);
        let latency = format!("open + close, {clients} clients");
        rows.push(Row::of(
            "churn",
            latency,
            "us",
            &mut ours,
            "bare cycle",
            &mut floor,
            None,
        ));
        let (mut each, mut floor_each) = ([1e6 / rate], [1e6 / floor_rate]);
        let case = format!("time per open, {clients} clients ({rate:.0}/s)");
        rows.push(Row::of(
            "churn",
            case,
            "us",
            &mut each,
            "bare cycle",
            &mut floor_each,
            None,
        ));
    }
    node.until_idle();
    let after = (node.resident_bytes(), settled_fds(&node));
    let case = format!("daemon's own memory after {opens} opens");
    let (mut ours, mut floor) = ([after.0 as f64 / 1e6], [before.0 as f64 / 1e6]);
    let limit = Some(GROWTH_MAX);
    rows.push(Row::of(
        "churn",
        case,
        "MB",
        &mut ours,
        "before them",
        &mut floor,
        limit,
    ));
    let case = format!("daemon's descriptors after {opens} opens");
    let (mut ours, mut floor) = ([after.1 as f64], [before.1 as f64]);
    rows.push(Row::of(
        "churn",
        case,
        "fds",
        &mut ours,
        "before them",
        &mut floor,
        Some(1.0),
    ));
    rows
}

/// The fewest descriptors within a moment: asking the daemon for its books takes one by itself.
fn settled_fds(node: &Node) -> usize {
    let looks = (0..LOOKS).map(|_| {
        std::thread::park_timeout(PAUSE);
        node.fds()
    });
    looks.min().expect("some looks")
}

fn run_ours(node: &Node, clients: u64, opens: u64) -> (f64, Vec<f64>) {
    // A client a thread, each with a connection of its own.
    run(clients, opens, || {
        let client: Client = node.client();
        move || open_cycle(&client, "m") / 1e3
    })
}

fn run_floor(server: &BareServer, clients: u64, opens: u64) -> (f64, Vec<f64>) {
    run(clients, opens, || {
        let mut stream = UnixStream::connect(&server.socket).expect("connects");
        let bytes = server.bytes;
        move || bare::cycle(&mut stream, bytes) / 1e3
    })
}

/// Opens a second over all clients, and samples in microseconds.
fn run<C: FnMut() -> f64>(
    clients: u64,
    opens: u64,
    connect: impl Fn() -> C + Sync,
) -> (f64, Vec<f64>) {
    let each = (opens / clients).max(1);
    let keep = (SAMPLES_MAX / clients).max(1);
    let ready = Barrier::new(usize::try_from(clients).expect("few") + 1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut cycle = connect();
                    ready.wait();
                    let mut samples = Vec::new();
                    for i in 0..each {
                        let sample = cycle();
                        if i < keep {
                            samples.push(sample);
                        }
                    }
                    samples
                })
            })
            .collect();
        ready.wait();
        let began = Instant::now();
        let samples: Vec<f64> = workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("no panic"))
            .collect();
        (
            (each * clients) as f64 / began.elapsed().as_secs_f64(),
            samples,
        )
    })
}
