//! Several devices: which one an open gets, copies between them, and how processes name them.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, try_open_on, uuid};
use mrm_tests::node::Node;
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

fn written(name: &str, bytes: u64, seed: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), name, bytes, 9, seed);
    (dir, path)
}

/// A daemon with one model of 3 MiB on a machine whose calls are noted.
fn node(gpus: &Gpus) -> (tempfile::TempDir, Node) {
    let (dir, path) = written("m.safetensors", 3 * MIB, 1);
    let node = Node::start(&gpus.setup().model("m", &path));
    (dir, node)
}

fn count(gpus: &Gpus, node: &Node, function: &str) -> usize {
    let calls = gpus.calls(node.pid());
    calls.iter().filter(|call| *call == function).count()
}

#[test]
fn a_miss_on_one_device_that_is_a_hit_on_another_copies_between_them() {
    for sharing in ["vmm", "legacy"] {
        let gpus = Gpus::new(2, 256 * MIB).logged();
        let (_dir, path) = written("m.safetensors", 3 * MIB, 1);
        // No host copy, so that there is nothing else to copy from.
        let lines = format!("enabled = \"yes\"\nsharing = \"{sharing}\"");
        let setup = gpus.setup_of("host_budget_bytes = 2097152", &lines);
        let node = Node::start(&setup.model("m", &path));
        assert_eq!(device_field(&node, 0, "peers"), json!([uuid(1)]));
        let mut client = gpus.holder(&node);
        let first = open_on(&mut client, "zero", "m", "cuda:0");
        assert_eq!(
            (&first["origin"], &first["sharing"]),
            (&json!("loaded"), &json!(sharing))
        );
        let loads = node.number("/counters/loads_total");
        let uploads = count(&gpus, &node, "cuMemcpyHtoDAsync_v2");
        let second = open_on(&mut client, "one", "m", "cuda:1");
        assert_eq!(second["origin"], "promoted", "{second}");
        assert_eq!(second["device"], uuid(1));
        assert_eq!(
            node.number("/counters/loads_total"),
            loads,
            "no file was read"
        );
        assert_eq!(count(&gpus, &node, "cuMemcpyHtoDAsync_v2"), uploads);
        assert!(count(&gpus, &node, "cuMemcpyPeerAsync") > 0);
        let zero = client.must(&json!(["device-tensors", "zero"]));
        assert_eq!(zero, client.must(&json!(["device-tensors", "one"])));
        for device in [0, 1] {
            assert_eq!(device_field(&node, device, "charged_bytes"), 4 * MIB);
            assert_eq!(device_field(&node, device, "images"), 1);
        }
        let devices = node.get("/v1/models/m")["devices"].clone();
        assert_eq!(devices.as_array().unwrap().len(), 2, "{devices}");
    }
}

#[test]
fn devices_that_are_no_peers_copy_through_the_host() {
    let gpus = Gpus::new(2, 256 * MIB)
        .logged()
        .with("MRM_FAKE_CUDA_NO_PEER", "1");
    let (_dir, node) = node(&gpus);
    assert_eq!(device_field(&node, 0, "peers"), json!([]));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "zero", "m", "cuda:0");
    let loads = node.number("/counters/loads_total");
    assert_eq!(
        open_on(&mut client, "one", "m", "cuda:1")["origin"],
        "promoted"
    );
    assert_eq!(
        node.number("/counters/loads_total"),
        loads,
        "no file was read"
    );
    assert_eq!(count(&gpus, &node, "cuMemcpyPeerAsync"), 0);
    assert_same_tensors(&mut client, "zero", "m");
    assert_same_tensors(&mut client, "one", "m");
}

#[test]
fn any_device_is_the_one_where_the_model_is() {
    let gpus = Gpus::new(3, 256 * MIB);
    let (_dir, node) = node(&gpus);
    let mut client = gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:2");
    for tier in ["cuda", "best"] {
        let opened = open_on(&mut gpus.holder(&node), "m", "m", tier);
        assert_eq!(
            (&opened["device"], &opened["origin"]),
            (&json!(uuid(2)), &json!("hit"))
        );
    }
    let named = open_on(&mut gpus.holder(&node), "m", "m", &uuid(1));
    assert_eq!(named["device"], uuid(1));
}

#[test]
fn each_process_has_numbers_of_its_own() {
    let gpus = Gpus::new(3, 256 * MIB);
    let (_dir, node) = node(&gpus);
    let mut swapped = gpus.holder_with(&node, &[(VISIBLE, "2,0")]);
    let opened = open_on(&mut swapped, "m", "m", "cuda:0");
    assert_eq!(
        (&opened["device"], &opened["ordinal"]),
        (&json!(uuid(2)), &json!(0))
    );
    assert_same_tensors(&mut swapped, "m", "m");
    let opened = open_on(&mut swapped, "n", "m", &uuid(0));
    assert_eq!(
        (&opened["device"], &opened["ordinal"]),
        (&json!(uuid(0)), &json!(1))
    );
    assert_same_tensors(&mut swapped, "n", "m");
    // What the process does not see is refused before the daemon is asked, in every spelling.
    for device in ["cuda:2", &uuid(1)] {
        let refused = try_open_on(&mut swapped, "x", "m", device);
        assert_eq!(refused["code"], "device_not_visible", "{refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.contains(device) && message.contains("\"2,0\""),
            "{message}"
        );
    }
    // A daemon with an order of its own serves them alike.
    let (_dir, path) = written("m.safetensors", 3 * MIB, 1);
    let mut setup = gpus.setup().model("m", &path);
    setup
        .environment
        .push((VISIBLE.to_owned(), "2,1".to_owned()));
    let node = Node::start(&setup);
    assert_eq!(device_field(&node, 0, "uuid"), uuid(2));
    let mut client = gpus.holder(&node);
    let opened = open_on(&mut client, "m", "m", "cuda:2");
    assert_eq!(
        (&opened["device"], &opened["ordinal"]),
        (&json!(uuid(2)), &json!(2))
    );
    assert_same_tensors(&mut client, "m", "m");
    let unknown = try_open_on(&mut client, "x", "m", "cuda:0");
    assert_eq!(unknown["code"], "unknown_device", "{unknown}");
}

#[test]
fn a_process_without_a_device_gets_host_memory_and_hears_why() {
    let gpus = Gpus::new(1, 256 * MIB);
    let (_dir, node) = node(&gpus);
    let nowhere = tempfile::tempdir().unwrap();
    let libraries = nowhere.path().to_str().unwrap();
    let cases = [
        ("LD_LIBRARY_PATH", libraries, "driver library"),
        (VISIBLE, "", "no device"),
        ("MRM_FAKE_CUDA_INIT_ERROR", "999", "999"),
    ];
    for (variable, value, why) in cases {
        let mut client = gpus.holder_with(&node, &[(variable, value)]);
        let best = open_on(&mut client, "m", "m", "best");
        assert_eq!(best["device"], Value::Null, "{best}");
        assert!(best["why_host"].as_str().unwrap().contains(why), "{best}");
        let refused = try_open_on(&mut client, "n", "m", "cuda");
        assert_eq!(refused["code"], "no_device", "{refused}");
        assert!(
            refused["message"].as_str().unwrap().contains(why),
            "{refused}"
        );
    }
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
}

#[test]
fn each_device_has_a_budget_and_an_eviction_of_its_own() {
    let gpus = Gpus::new(2, 256 * MIB);
    let (_a, a) = written("a.safetensors", 3 * MIB, 1);
    let (_b, b) = written("b.safetensors", 3 * MIB, 2);
    let small = format!("[device.gpu.\"{}\"]\nbudget_bytes = \"5MiB\"", uuid(1));
    let setup = gpus.setup_of("", &format!("enabled = \"yes\"\n{small}"));
    let node = Node::start(&setup.model("a", &a).model("b", &b));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a0", "a", "cuda:0");
    open_on(&mut client, "a1", "a", "cuda:1");
    let full = try_open_on(&mut client, "b1", "b", "cuda:1");
    assert_eq!(full["code"], "no_room", "{full}");
    // Any device: the one that has room.
    assert_eq!(open_on(&mut client, "b", "b", "cuda")["device"], uuid(0));
    client.close("a1");
    assert_eq!(
        open_on(&mut client, "b1", "b", "cuda:1")["origin"],
        "promoted"
    );
    assert_same_tensors(&mut client, "b1", "b");
    eventually("the other copy went", || {
        (node.get("/v1/models/a")["devices"].as_array()?.len() == 1).then_some(())
    });
    assert_eq!(node.get("/v1/models/a")["devices"][0]["uuid"], uuid(0));
    assert_same_tensors(&mut client, "a0", "a");
}
