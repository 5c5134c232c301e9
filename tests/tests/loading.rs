//! Loads: the memory that is ready for them, how they were read, and what they are expected to take.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_tests::node::{Node, Setup};
use mrm_tests::{eventually, http, model};
use std::sync::Mutex;

const MIB: u64 = 1 << 20;

/// What the books and the stock take together, which is never more than the limit.
fn taken(node: &Node) -> u64 {
    let status = node.get("/v1/status");
    let host = |key: &str| status["host"][key].as_u64().unwrap();
    let sum = host("charged_bytes") + host("freeing_bytes") + host("stock_bytes");
    assert!(sum <= host("limit_bytes"), "{status}");
    sum
}

fn metrics(node: &Node) -> String {
    http::request(&node.status_socket(), "GET", "/metrics").1
}

fn stock(node: &Node) -> u64 {
    node.number("/host/stock_bytes")
}

#[test]
fn memory_is_made_ready_within_the_budget_and_given_up_when_models_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let (small, image) = model::write(dir.path(), "small.safetensors", 20 * MIB, 7, 1);
    let (large, large_image) = model::write(dir.path(), "large.safetensors", 70 * MIB, 7, 2);
    let setup = Setup::new()
        .budget(100 * MIB)
        .stock("96MiB")
        .model("small", &small)
        .model("large", &large);
    let node = Node::start(&setup);
    // Two of 16 MiB and one of 64.
    eventually("the stock is full", || {
        (stock(&node) == 96 * MIB).then_some(())
    });
    let client = node.client();
    let held = client.open("small").unwrap();
    assert!(held.segment(0).unwrap().bytes() == image);
    taken(&node);
    // What is left of the budget, to the last blank that fits.
    eventually("the stock is what has room", || {
        taken(&node);
        (stock(&node) == 64 * MIB || stock(&node) == 32 * MIB).then_some(())
    });
    let both = client.open("large").unwrap();
    assert!(both.segment(0).unwrap().bytes() == large_image);
    taken(&node);
    eventually("nothing is left for a stock", || {
        (stock(&node) == 0).then_some(())
    });
    drop((held, both));
    node.until_leases(0);
    let (status, body) = node.post("/v1/models/large/evict?wait_ms=60000");
    assert_eq!(status, 200, "{body}");
    eventually("there is a stock again", || {
        taken(&node);
        (stock(&node) > 0).then_some(())
    });
    let metrics = metrics(&node);
    assert!(metrics.contains("mrm_host_stock_bytes "), "{metrics}");
}

#[test]
fn a_drain_gives_the_stock_back() {
    let setup = Setup::new().budget(100 * MIB).stock("32MiB");
    let node = Node::start(&setup);
    eventually("a stock", || (stock(&node) == 32 * MIB).then_some(()));
    let held = node.client();
    assert_eq!(node.post("/v1/drain").0, 200);
    drop(held);
    let mut node = node;
    assert!(node.wait().success());
}

#[test]
fn each_load_says_how_it_was_read_and_is_compared_with_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 20 * MIB, 7, 1);
    let node = Node::start(&Setup::new().model("m", &path));
    let before = node.get("/v1/models/m");
    assert!(before["eta_ms"].is_null(), "{before}");
    let seen = Mutex::new(Vec::new());
    let how = mrm_client::OpenOptions::new().on_progress(|p| seen.lock().unwrap().push(p));
    let held = node.client().open_with("m", &how).unwrap();
    let detail = node.get("/v1/models/m");
    let way = detail["segments"][0]["way"].as_str().unwrap();
    let ways = ["cached", "direct_ring", "direct_threads", "buffered"];
    assert!(ways.contains(&way), "{detail}");
    assert!(detail["eta_ms"].is_null(), "{detail}");
    let metrics = metrics(&node);
    let line = format!("mrm_load_ways_total{{way=\"{way}\"}} 1");
    assert!(metrics.contains(&line), "{metrics}");
    assert!(
        metrics.contains("mrm_load_prediction_ratio_count 1"),
        "{metrics}"
    );
    // A load may be over before anybody was told of it.
    for progress in seen.lock().unwrap().iter() {
        assert!(progress.total_bytes >= 20 * MIB, "{progress:?}");
    }
    drop(held);
}

#[test]
fn small_files_are_loaded_together_and_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let shards = model::write_sharded(dir.path(), 24, 100_000, 3);
    let node = Node::start(&Setup::new().model("m", dir.path()));
    let client = node.client();
    let held = client.open("m").unwrap();
    let detail = node.get("/v1/models/m");
    let files = detail["segments"].as_array().unwrap();
    assert!(files.len() >= 24, "{detail}");
    for (at, file) in files.iter().enumerate() {
        let is_it = |(name, _): &&(String, Vec<u8>)| file["name"] == name.as_str();
        let (name, image) = shards.iter().find(is_it).unwrap();
        assert!(held.segment(at).unwrap().bytes() == *image, "{name}");
        // Read ahead all together, then from the page cache one by one.
        assert_eq!(file["way"], "buffered", "{detail}");
    }
    assert_eq!(node.number("/counters/loads_total"), files.len() as u64);
}
