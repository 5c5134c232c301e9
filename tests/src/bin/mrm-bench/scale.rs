//! `scale`: what many models and many clients cost the daemon, and each other.

use crate::hit::open_cycle;
use crate::place::{self, Place};
use crate::report::Row;
use mrm_client::{Client, ConnectOptions};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use mrm_tests::{Random, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::time::Duration;

/// Models of the large catalogue, how many of them are resident, and clients that are connected.
const CATALOGUE: usize = 100_000;
const RESIDENT: usize = 10_000;
const CLIENTS: usize = 1_000;
/// Models of the small one.
const FEW: usize = 10;
const ROUNDS: usize = 31;
const CYCLES: usize = 200;
/// Between two opens, for the daemon to take the close: clients do not open as soon as another has closed.
const BETWEEN: Duration = Duration::from_micros(200);

/// Descriptors: two of each resident model, up to four of each client, with room for the rest.
const FILES: usize = 2 * RESIDENT + 4 * CLIENTS + 1_000;
/// With fewer the row would not be about many models.
const RESIDENT_MIN: usize = 5_000;
/// Limits of the issue.
const HIT_MAX: f64 = 1.2;
const MODELS_MB_MAX: f64 = 5.0;
const CLIENTS_MB_MAX: f64 = 20.0;
/// Models of 300 tensors that are counted, and a part of each.
const LARGE: usize = 1_000;
const TENSORS: u64 = 300;

pub(crate) fn measure() -> Vec<Row> {
    let files = descriptors();
    let resident = resident(files);
    if resident < RESIDENT_MIN {
        println!(
            "scale: left out, it needs {FILES} descriptors and may have {files} (`ulimit -Hn`)"
        );
        return Vec::new();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = costs(&dir.path().join("large"));
    rows.extend(hits(dir.path(), resident));
    rows
}

/// As many descriptors as are needed, or as many as this process may have.
fn descriptors() -> usize {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.and_then(|most| usize::try_from(most).ok());
    let all = |files: usize| {
        let files = Some(files as u64);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: files,
                maximum: files,
            },
        )
    };
    if all(FILES).is_ok() {
        return FILES;
    }
    let most = most.unwrap_or(FILES);
    all(most).map_or(0, |()| most)
}

/// How many models can be resident with so many descriptors.
fn resident(files: usize) -> usize {
    let most = (files / 2).saturating_sub((FILES - 2 * RESIDENT) / 2);
    most.min(RESIDENT)
}

/// A node with a directory of models of one tensor each, or of many.
fn node(root: &Path, models: usize, tensors: u64) -> Node {
    for i in 0..models {
        model::write_zeros(root, &format!("{i}.safetensors"), tensors * 4, tensors);
    }
    let catalogue = format!("[[catalogue]]\nroot = {root:?}");
    let setup = Setup::new()
        .setting(&format!("limits.sessions_max = {}", CLIENTS + 24))
        .setting(&format!("limits.sessions_per_uid_max = {}", CLIENTS + 24))
        .setting("revalidate_ms = 600000")
        // The record of what is decided grows to its bound, whatever it is about.
        .setting("journal.bytes_max = \"64KiB\"")
        .setting(&catalogue);
    Node::start(&setup)
}

fn client(node: &Node) -> Client {
    // A thread for each would be the bench's own cost.
    let options = ConnectOptions::new().socket(node.socket()).reconnect(false);
    Client::connect_with(&options).expect("connects")
}

/// What models and clients take of the daemon's own memory.
fn costs(root: &Path) -> Vec<Row> {
    let node = node(root, LARGE, TENSORS);
    let clients = [client(&node)];
    drop(clients[0].open("0.safetensors").expect("loads"));
    let before = node.resident_bytes();
    for i in 0..LARGE {
        drop(clients[0].open(&format!("{i}.safetensors")).expect("loads"));
    }
    let models_mb = (node.resident_bytes().saturating_sub(before)) as f64 / 1e6;
    let before = node.resident_bytes();
    let connected: Vec<Client> = (0..CLIENTS).map(|_| client(&node)).collect();
    let all = (clients.len() + connected.len()) as u64;
    eventually("all are connected", || {
        (node.number("/sessions") == all).then_some(())
    });
    let clients_mb = (node.resident_bytes().saturating_sub(before)) as f64 / 1e6;
    let models = format!("daemon's memory for {LARGE} models of {TENSORS} tensors");
    let clients = format!("daemon's memory for {CLIENTS} idle clients");
    vec![
        Row::at_most("scale", models, "MB", &mut [models_mb], MODELS_MB_MAX),
        Row::at_most("scale", clients, "MB", &mut [clients_mb], CLIENTS_MB_MAX),
    ]
}

/// One client's worth of hits, spread over many models and clients or not.
fn hits(dir: &Path, resident: usize) -> Vec<Row> {
    let (many, few) = (
        node(&dir.join("many"), CATALOGUE, 1),
        node(&dir.join("few"), FEW, 1),
    );
    let alone = client(&few);
    let crowd: Vec<Client> = (0..CLIENTS).map(|_| client(&many)).collect();
    for (client, models) in [(&alone, FEW), (&crowd[0], resident)] {
        for i in 0..models {
            drop(client.open(&format!("{i}.safetensors")).expect("loads"));
        }
    }
    // On one core, or where the kernel puts each daemon would be all that is seen.
    let core = place::two_cores().map_or(0, |(one, _)| one);
    let _here = Place::this_thread(core);
    let _daemons = [&many, &few].map(|node| Place::main_of(node.pid(), core));
    let mut random = Random(7);
    println!("scale: seed {}", random.0);
    let mut pick = |of: usize| random.below(of as u64);
    // Of the many: how many clients take turns, and how many models.
    let cases = [(CLIENTS, resident), (CLIENTS, FEW), (1, resident), (1, FEW)];
    let (mut ours, mut floor) = (cases.map(|_| Vec::new()), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..CYCLES {
            std::thread::sleep(BETWEEN);
            let name = format!("{}.safetensors", pick(FEW));
            floor.push(open_cycle(&alone, &name) / 1e3);
        }
        for ((clients, models), ours) in cases.iter().zip(&mut ours) {
            for _ in 0..CYCLES {
                std::thread::sleep(BETWEEN);
                let name = format!("{}.safetensors", pick(*models));
                let client = usize::try_from(pick(*clients)).expect("small");
                ours.push(open_cycle(&crowd[client], &name) / 1e3);
            }
        }
    }
    let all = format!("{CATALOGUE} models, {resident} resident, {CLIENTS} clients, on one core");
    let row = |(clients, models): (usize, usize), mut ours: Vec<f64>| {
        // The limit is of all of them; the others say what of it is the models', and what the clients'.
        let (case, limit) = match (clients, models) {
            (CLIENTS, models) if models == resident => (format!("hit: {all}"), Some(HIT_MAX)),
            (clients, models) => (
                format!("of these, {clients} with {models} models in turn"),
                None,
            ),
        };
        let few = format!("{FEW} models, one client");
        Row::of(
            "scale",
            case,
            "us",
            &mut ours,
            few,
            &mut floor.clone(),
            limit,
        )
    };
    cases
        .into_iter()
        .zip(ours)
        .map(|(case, ours)| row(case, ours))
        .collect()
}
