//! Room on a device: its budget, what is dropped for it, and what others take of the memory.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{
    Gpus, assert_same_tensors, device_field, open_on, try_open_on, until_at_rest, uuid,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::{Random, eventually, model};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
/// Bytes of each model; on a device it takes `IMAGE`.
const MODEL: u64 = 5 * MIB;
const IMAGE: u64 = 6 * MIB;

struct Models {
    dir: tempfile::TempDir,
}

impl Models {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (seed, name) in (1..).zip(["a", "b", "c"]) {
            model::write(dir.path(), &format!("{name}.safetensors"), MODEL, 5, seed);
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.safetensors"))
    }

    fn in_setup(&self, setup: Setup) -> Setup {
        let names = ["a", "b", "c"].into_iter();
        names.fold(setup, |setup, name| setup.model(name, &self.path(name)))
    }
}

fn gpus() -> Gpus {
    Gpus::new(1, 256 * MIB)
}

/// A daemon whose device holds two of the three models.
fn room_for_two(models: &Models, gpus: &Gpus) -> Node {
    let budget = 2 * IMAGE + MIB;
    let lines = format!("enabled = \"yes\"\npolicy = \"lru\"\nbudget_bytes = {budget}");
    Node::start(&models.in_setup(gpus.setup_of("", &lines)))
}

fn charged(node: &Node) -> u64 {
    device_field(node, 0, "charged_bytes").as_u64().unwrap()
}

fn counter(node: &Node, name: &str) -> u64 {
    node.number(&format!("/counters/{name}"))
}

#[test]
fn what_is_dropped_stays_in_host_memory() {
    let (models, gpus) = (Models::new(), gpus());
    let node = room_for_two(&models, &gpus);
    let mut client = gpus.holder(&node);
    for name in ["a", "b", "c"] {
        assert_eq!(open_on(&mut client, name, name, "cuda")["origin"], "loaded");
        assert_same_tensors(&mut client, name, name);
        client.close(name);
    }
    until_at_rest(&node);
    assert_eq!(charged(&node), 2 * IMAGE, "the first went");
    let devices = |name: &str| node.get(&format!("/v1/models/{name}"))["devices"].clone();
    assert_eq!(devices("a"), json!([]));
    assert_eq!(devices("b")[0]["state"], "resident");
    let loads = counter(&node, "loads_total");
    assert_eq!(open_on(&mut client, "a", "a", "cuda")["origin"], "promoted");
    assert_same_tensors(&mut client, "a", "a");
    assert_eq!(counter(&node, "loads_total"), loads, "no file was read");
    until_at_rest(&node);
    assert_eq!(devices("b"), json!([]), "the one that was used longest ago");
    assert_eq!(
        node.get("/v1/models/b")["state"],
        "resident",
        "in host memory"
    );
}

#[test]
fn a_refusal_names_the_holders_and_the_device() {
    let (models, gpus) = (Models::new(), gpus());
    let node = room_for_two(&models, &gpus);
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", "cuda");
    assert_eq!(node.post("/v1/models/a/pin").0, 200);
    client.close("a");
    open_on(&mut client, "b", "b", "cuda");
    let full = try_open_on(&mut client, "c", "c", "cuda");
    assert_eq!(full["code"], "no_room", "{full}");
    assert_eq!(full["retryable"], true);
    let message = full["message"].as_str().unwrap();
    for part in [
        "`c`",
        "6.0 MiB",
        &uuid(0),
        "`a`",
        "pinned",
        "`b`",
        "1 lease",
        "device.budget_bytes",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(charged(&node), 2 * IMAGE);
    // Who takes what there is gets host memory: the device stays full.
    let best = client.must(&json!(["open-on", "best", "c", "best", 60_000]));
    assert_eq!(best["device"], Value::Null, "{best}");
    assert!(best["why_host"].is_string(), "{best}");
    assert_eq!(node.post("/v1/models/a/unpin").0, 200);
    assert_eq!(open_on(&mut client, "c", "c", "cuda")["origin"], "promoted");
}

#[test]
fn what_waits_for_room_gets_it_when_another_closes() {
    let (models, gpus) = (Models::new(), gpus());
    let node = room_for_two(&models, &gpus);
    let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
    open_on(&mut one, "a", "a", "cuda");
    open_on(&mut one, "b", "b", "cuda");
    two.send(&json!(["open-on", "c", "c", "cuda", 60_000]));
    eventually("it waits", || (node.number("/waiting") == 1).then_some(()));
    assert!(two.try_receive().is_none());
    one.close("a");
    let opened = two.receive();
    assert_eq!(opened["ok"], true, "{opened}");
    assert_same_tensors(&mut two, "c", "c");
    // And when the process that held the memory dies.
    two.send(&json!(["open-on", "a", "a", "cuda", 60_000]));
    eventually("it waits", || (node.number("/waiting") == 1).then_some(()));
    one.kill();
    let opened = two.receive();
    assert_eq!(opened["origin"], "promoted", "{opened}");
    assert_same_tensors(&mut two, "a", "a");
}

#[test]
fn what_is_too_large_is_told_so_at_once() {
    let (models, gpus) = (Models::new(), gpus());
    let setup = gpus.setup_of("", "enabled = \"yes\"\nbudget_bytes = \"4MiB\"");
    let node = Node::start(&models.in_setup(setup));
    let mut client = gpus.holder(&node);
    let refused = client.ask(&json!(["open-on", "a", "a", "cuda", 60_000]));
    assert_eq!(refused["code"], "too_large", "{refused}");
    let message = refused["message"].as_str().unwrap();
    for part in ["`a`", "6.0 MiB", "4.0 MiB", &uuid(0), "device.budget_bytes"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let best = open_on(&mut client, "a", "a", "best");
    assert_eq!(best["device"], Value::Null, "{best}");
    assert_eq!(charged(&node), 0);
}

#[test]
fn a_host_without_room_is_passed_by() {
    let (models, gpus) = (Models::new(), gpus());
    let setup = gpus.setup_of("host_budget_bytes = 2097152", "enabled = \"yes\"");
    let node = Node::start(&models.in_setup(setup));
    let mut client = gpus.holder(&node);
    for name in ["a", "b"] {
        let opened = open_on(&mut client, name, name, "cuda");
        assert_eq!(opened["origin"], "loaded", "{opened}");
        until_at_rest(&node);
        assert!(
            node.number("/host/charged_bytes") < MIB,
            "nothing but tables"
        );
    }
    let refused = client.ask(&json!(["open", "h", "a", 1000]));
    assert_eq!(refused["code"], "too_large", "{refused}");
    // The bytes are right: compared with what a daemon with room reads.
    let node = Node::start(&models.in_setup(gpus.setup()));
    let mut other = gpus.holder(&node);
    for name in ["a", "b"] {
        let direct = client.must(&json!(["device-tensors", name]));
        other.open(name, name);
        assert_eq!(direct, other.must(&json!(["tensors", name])), "{name}");
    }
}

#[test]
fn an_allocation_that_fails_is_an_event() {
    let (models, gpus) = (Models::new(), gpus());
    let node = Node::start(&models.in_setup(gpus.setup()));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", "cuda");
    client.close("a");
    open_on(&mut client, "b", "b", "cuda");
    // Another process takes all but less than a model: contexts are 16 MiB each.
    let mut other = gpus.holder(&node);
    let free = other.must(&json!(["device-free"]))["bytes"]
        .as_u64()
        .unwrap();
    let taken = other.must(&json!(["device-take", free - 4 * MIB]))["pointer"].clone();
    // What nobody holds goes for it.
    let opened = open_on(&mut client, "c", "c", "cuda");
    assert_eq!(opened["origin"], "loaded", "{opened}");
    assert_same_tensors(&mut client, "c", "c");
    assert_eq!(node.get("/v1/models/a")["devices"], json!([]));
    // Now all is held: the refusal says by whom, and that others have the rest.
    let full = try_open_on(&mut client, "a", "a", "cuda");
    assert_eq!(full["code"], "no_room", "{full}");
    let message = full["message"].as_str().unwrap();
    for part in [&uuid(0), "`b`", "`c`", "other processes"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let field = |name: &str| device_field(&node, 0, name).as_u64().unwrap();
    assert_eq!(field("charged_bytes"), 2 * IMAGE);
    assert!(field("limit_bytes") < 3 * IMAGE, "{}", field("limit_bytes"));
    assert_eq!(field("budget_bytes"), 256 * MIB * 9 / 10);
    // An open that waits gets what the other gives back.
    client.send(&json!(["open-on", "a", "a", "cuda", 60_000]));
    other.must(&json!(["device-give", taken]));
    let opened = client.receive();
    assert_eq!(opened["ok"], true, "{opened}");
    assert_same_tensors(&mut client, "a", "a");
    eventually("the limit is back", || {
        (field("limit_bytes") > 100 * MIB).then_some(())
    });
}

#[test]
fn a_driver_that_says_that_it_has_no_memory_is_believed() {
    let (models, gpus) = (Models::new(), gpus());
    let node = Node::start(&models.in_setup(gpus.setup()));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", "cuda");
    client.close("a");
    until_at_rest(&node);
    // Once: what is idle goes, and the second try succeeds.
    gpus.faults_of(node.pid(), "cuMemCreate:2");
    open_on(&mut client, "b", "b", "cuda");
    assert_same_tensors(&mut client, "b", "b");
    assert_eq!(node.get("/v1/models/a")["devices"], json!([]));
    // From now on, with nothing left to drop: a refusal, and the books are right.
    gpus.faults_of(node.pid(), "cuMemCreate:2:1+");
    let full = try_open_on(&mut client, "c", "c", "cuda");
    assert_eq!(full["code"], "no_room", "{full}");
    assert!(full["message"].as_str().unwrap().contains("`b`"), "{full}");
    until_at_rest(&node);
    assert_eq!(charged(&node), IMAGE);
    gpus.faults_of(node.pid(), "");
    open_on(&mut client, "c", "c", "cuda");
    assert_same_tensors(&mut client, "c", "c");
}

#[test]
fn what_a_failed_fill_had_already_is_not_taken_for_others() {
    let (models, gpus) = (Models::new(), gpus());
    let pieces = models.path("pieces");
    let tensors: Vec<_> = (0..4)
        .map(|i| model::Tensor::f32(&format!("t{i}"), &[MIB / 4], &mut Random(i)))
        .collect();
    fs::write(&pieces, model::safetensors(&tensors)).unwrap();
    let setup = models.in_setup(gpus.setup());
    let node = Node::start(&setup.model_with("pieces", &pieces, "granularity = \"tensor\""));
    let mut client = gpus.holder(&node);
    for name in ["a", "b"] {
        open_on(&mut client, name, name, "cuda");
        client.close(name);
    }
    // Room for three of the four pieces, of 2 MiB each.
    let mut other = gpus.holder(&node);
    let free = other.must(&json!(["device-free"]))["bytes"]
        .as_u64()
        .unwrap();
    other.must(&json!(["device-take", free - 6 * MIB]));
    assert_eq!(
        open_on(&mut client, "p", "pieces", "cuda")["allocations"],
        4
    );
    assert_same_tensors(&mut client, "p", "pieces");
    let devices = |name: &str| node.get(&format!("/v1/models/{name}"))["devices"].clone();
    assert_eq!(devices("a"), json!([]));
    assert_eq!(devices("b")[0]["state"], "resident", "one was enough");
}
