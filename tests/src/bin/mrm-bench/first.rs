//! `first`: a tensor of a cold model before all of it is read.

use crate::floor::make_cold;
use crate::miss::free_bytes;
use crate::quiet;
use crate::report::Row;
use mrm_client::{Client, OpenOptions, WaitFor};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes, tensors.
const MODEL: (u64, u64) = (4_000_000_000, 300);
/// What a node must have free: it is there in the daemon, and passes through the page cache.
const COPIES: u64 = 2;
const WAIT: Duration = Duration::from_secs(600);
/// The largest share of the time to all that the first tensor may take.
const FIRST_MAX: f64 = 0.05;

pub(crate) fn measure(rounds: usize, most_mb: u64) -> Vec<Row> {
    let (bytes, tensors) = (MODEL.0.min(most_mb * 1_000_000), MODEL.1);
    let size = format!("{:.1} GB", bytes as f64 / 1e9);
    if bytes * COPIES > free_bytes() {
        println!("first: {size} is left out: less than twice its size is free");
        return Vec::new();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = model::write_random(dir.path(), "m/model.safetensors", bytes, tensors);
    let file = std::fs::File::open(&path).expect("opens");
    file.sync_all().expect("on disk");
    let bytes = file.metadata().expect("stat").len();
    let node = Node::start(&Setup::new().model("m", &path));
    let client = node.client();
    let prepare = || {
        node.evict("m");
        make_cold(&path, bytes);
        quiet::wait(&node);
    };
    let (mut first, mut last, mut all) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        prepare();
        let (one, whole) = by_layout(&client);
        first.push(one);
        last.push(whole);
        prepare();
        all.push(of_all(&client));
    }
    let case = |what: &str| format!("{what}, {size}, cold file");
    let against = "open that waits for all";
    let row = |what: &str, mut samples: Vec<f64>, limit| {
        let mut all = all.clone();
        Row::of(
            "first",
            case(what),
            "ms",
            &mut samples,
            against,
            &mut all,
            limit,
        )
    };
    vec![
        row("open by the layout + first tensor", first, Some(FIRST_MAX)),
        row("open by the layout, until all is there", last, None),
    ]
}

/// Milliseconds to the first byte of the first tensor, and until all is there.
fn by_layout(client: &Client) -> (f64, f64) {
    let options = OpenOptions::new().wait(WAIT).wait_for(WaitFor::Layout);
    let began = Instant::now();
    let model = client.open_with("m", &options).expect("opens");
    assert!(!model.is_whole(), "it was not cold");
    let tensor = model.tensor("layer.0.weight").expect("comes");
    black_box(tensor.bytes().expect("in host memory")[0]);
    let first = began.elapsed();
    model.wait_whole(WAIT).expect("comes");
    (
        first.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3,
    )
}

fn of_all(client: &Client) -> f64 {
    let options = OpenOptions::new().wait(WAIT);
    let began = Instant::now();
    let model = client.open_with("m", &options).expect("opens");
    let tensor = model.tensor("layer.0.weight").expect("is there");
    black_box(tensor.bytes().expect("in host memory")[0]);
    began.elapsed().as_secs_f64() * 1e3
}
