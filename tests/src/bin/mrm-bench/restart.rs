//! `restart`: how soon all is as before when a daemon or a client is killed, and what the keeper costs.

use crate::report::Row;
use mrm_client::{Client, Model, Origin};
use mrm_tests::node::{Node, Setup};
use mrm_tests::survival::{
    Family, kept, private_bytes, respawned, segments, signal, status, until_kept,
};
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Twenty of half a gigabyte: 10 GB.
const MODELS: u64 = 20;
const MODEL_BYTES: u64 = 512_000_000;
/// Daemons that are killed. Each is the first of its keeper to die: after more within a minute a keeper
/// waits.
const KILLS: u64 = 5;
const CLIENT_KILLS: u64 = 20;
/// Loads with and without a keeper.
const LOADS: u64 = 100;
const LOAD_BYTES: u64 = 1 << 20;
/// A daemon serves its first hit again within this many ms.
const AGAIN_MS: f64 = 250.0;
/// The lease of a killed client is gone within this many ms.
const GONE_MS: f64 = 100.0;

pub(crate) fn measure() -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = restarts(dir.path());
    rows.extend(clients(dir.path()));
    rows.extend(loads(dir.path()));
    rows
}

/// A daemon with all of the models resident, which its keeper brings back.
fn node_of(dir: &Path) -> (Node, Family) {
    // The room of two more, so that nothing is evicted.
    let mut setup = Setup::new().budget((MODELS + 2) * MODEL_BYTES);
    for at in 0..MODELS {
        let path = dir.join(format!("m{at}.safetensors"));
        // Of zeros, but each with another header: no two are one content.
        if !path.exists() {
            model::write_zeros(dir, &format!("m{at}.safetensors"), MODEL_BYTES, 100 + at);
        }
        setup = setup.model(&format!("m{at}"), &path);
    }
    let node = Node::start(&respawned(setup));
    let family = Family::of(node.dir.path());
    let client = node.client();
    for at in 0..MODELS {
        drop(client.open(&format!("m{at}")).expect("loads"));
    }
    until_kept(&family, node.pid());
    (node, family)
}

/// What was measured of daemons that were killed, in ms.
#[derive(Default)]
struct Killed {
    /// Until a client that was not there before had its first hit.
    fresh: Vec<f64>,
    /// Until one that was there had another hit.
    held: Vec<f64>,
    /// Until its lease was counted again.
    counted: Vec<f64>,
    keeper_kb: Vec<f64>,
    resident_bytes: u64,
}

fn restarts(dir: &Path) -> Vec<Row> {
    let mut killed = Killed::default();
    for kill in 0..KILLS {
        restart(dir, &format!("m{}", kill % MODELS), &mut killed);
    }
    let gb = killed.resident_bytes as f64 / 1e9;
    let with = |what: &str| format!("{what}, {gb:.1} GB resident");
    let info = |what, unit, mut of: Vec<f64>, floor| {
        Row::of(
            "restart",
            with(what),
            unit,
            &mut of,
            "limit",
            &mut [floor],
            None,
        )
    };
    let mut worst = [killed.fresh.iter().copied().fold(0.0, f64::max)];
    let slowest = with("the slowest first hit");
    vec![
        info("first hit after a kill", "ms", killed.fresh, AGAIN_MS),
        info("of a client that was there", "ms", killed.held, AGAIN_MS),
        info("its lease is counted", "ms", killed.counted, AGAIN_MS),
        Row::at_most("restart", slowest, "ms", &mut worst, AGAIN_MS),
        info("keeper's own memory", "kB", killed.keeper_kb, 1_000.0),
    ]
}

fn restart(dir: &Path, name: &str, killed: &mut Killed) {
    let (node, family) = node_of(dir);
    let client = node.client();
    let _model = client.open("m0").expect("is resident");
    let keeper = family.until_keeper();
    killed.keeper_kb.push(private_bytes(keeper) as f64 / 1e3);
    killed.resident_bytes = segments(keeper).values().sum();
    let began = Instant::now();
    signal(node.pid(), Signal::SIGKILL);
    // One that comes now, and one that was there before.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| hit(began, || node_client(&node), name));
        let same = hit(began, || Some(client.clone()), "m7");
        killed.held.push(same);
        killed.fresh.push(other.join().expect("no thread fails"));
    });
    eventually("leases are counted again", || {
        let leases = status(&node)?["leases"].as_u64()?;
        (leases == 1).then_some(())
    });
    killed.counted.push(began.elapsed().as_secs_f64() * 1e3);
}

fn node_client(node: &Node) -> Option<Client> {
    Client::connect_to(node.socket()).ok()
}

/// Milliseconds until a model could be opened, which was resident, and read.
fn hit(began: Instant, client: impl Fn() -> Option<Client>, name: &str) -> f64 {
    let until = began + Duration::from_secs(30);
    while Instant::now() < until {
        let opened = client().and_then(|client| client.open(name).ok());
        if let Some(model) = opened {
            assert_eq!(model.origin(), Origin::Hit, "{name}");
            std::hint::black_box(first_byte(&model));
            return began.elapsed().as_secs_f64() * 1e3;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("{name} cannot be opened again");
}

fn first_byte(model: &Model) -> u8 {
    model.segment(0).expect("host memory").bytes()[0]
}

fn clients(dir: &Path) -> Vec<Row> {
    let (path, _) = model::write(dir, "held.safetensors", 1 << 20, 10, 1);
    let node = Node::start(&Setup::new().model("m", &path));
    let mut gone = Vec::new();
    for _ in 0..CLIENT_KILLS {
        let mut holder = mrm_tests::holder::Holder::start(&node.socket());
        holder.open("held", "m");
        assert_eq!(node.number("/leases"), 1);
        let began = Instant::now();
        signal(holder.pid(), Signal::SIGKILL);
        while status(&node).expect("serves")["leases"] != 0 {
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "it is still there"
            );
        }
        gone.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let mut worst = [gone.iter().copied().fold(0.0, f64::max)];
    let case = "a killed client's lease is gone";
    let slowest = "the slowest of them";
    vec![
        Row::of(
            "restart",
            case,
            "ms",
            &mut gone,
            "limit",
            &mut [GONE_MS],
            None,
        ),
        Row::at_most("restart", slowest, "ms", &mut worst, GONE_MS),
    ]
}

/// What a load takes with a keeper, and without.
fn loads(dir: &Path) -> Vec<Row> {
    let (path, _) = model::write(dir, "load.safetensors", LOAD_BYTES, 10, 1);
    let setup = Setup::new().model("m", &path);
    let with = Node::start(&kept(setup.clone()));
    let _family = Family::of(with.dir.path());
    let without = Node::start(&setup);
    let (ours, floor) = (with.client(), without.client());
    let (mut kept_us, mut bare_us) = (Vec::new(), Vec::new());
    for _ in 0..LOADS {
        for (node, client, us) in [
            (&with, &ours, &mut kept_us),
            (&without, &floor, &mut bare_us),
        ] {
            let began = Instant::now();
            let model = client.open("m").expect("loads");
            us.push(began.elapsed().as_secs_f64() * 1e6);
            assert_ne!(model.origin(), Origin::Hit, "it was evicted");
            drop(model);
            eventually("it is evicted", || {
                (node.post("/v1/models/m/evict").0 == 200).then_some(())
            });
        }
    }
    let case = "a load of 1 MiB with a keeper";
    let floor = "without one";
    vec![Row::of(
        "restart",
        case,
        "us",
        &mut kept_us,
        floor,
        &mut bare_us,
        None,
    )]
}
