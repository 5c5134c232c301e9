//! Weights in device memory over real processes, on the fake driver.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, try_open_on};
use mrm_tests::node::Node;
use mrm_tests::{eventually, model};
use serde_json::json;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

fn written(name: &str, bytes: u64, tensors: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), name, bytes, tensors, 7);
    (dir, path)
}

#[test]
fn a_device_hit_a_host_hit_and_a_miss() {
    let (_dir, path) = written("m.safetensors", 5 * MIB, 37);
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut one = gpus.holder(&node);
    let mut two = gpus.holder(&node);

    let missed = open_on(&mut one, "m", "m", "cuda:0");
    assert_eq!(missed["origin"], "loaded", "{missed}");
    assert_same_tensors(&mut one, "m", "m");
    let charged = device_field(&node, 0, "charged_bytes");
    assert_eq!(charged, 6 * MIB, "rounded up to what the device hands out");

    let hit = open_on(&mut two, "m", "m", "cuda");
    assert_eq!(hit["origin"], "hit", "{hit}");
    assert_eq!(
        (&hit["device"], &hit["allocations"]),
        (&missed["device"], &json!(1))
    );
    assert_same_tensors(&mut two, "m", "m");
    assert_eq!(
        device_field(&node, 0, "charged_bytes"),
        charged,
        "one copy for both"
    );
    assert_eq!(device_field(&node, 0, "leases"), 2);

    one.close("m");
    two.close("m");
    eventually("nobody holds it", || {
        (node.number("/leases") == 0).then_some(())
    });
    let (status, body) = node.post("/v1/models/m/evict");
    assert_eq!(status, 200, "{body}");
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);

    let warm = one.must(&json!(["open", "h", "m", 60_000]));
    assert_eq!(warm["origin"], "loaded");
    let promoted = open_on(&mut one, "m", "m", "best");
    assert_eq!(promoted["origin"], "promoted", "{promoted}");
    assert_same_tensors(&mut one, "m", "m");
}

#[test]
fn the_dead_leave_nothing_on_the_device() {
    let (_dir, path) = written("m.safetensors", 9 * MIB, 11);
    let gpus = Gpus::new(1, 256 * MIB);
    let mut node = Node::start(&gpus.setup().model("m", &path));
    let mut watcher = gpus.holder(&node);
    let free = |watcher: &mut mrm_tests::holder::Holder| {
        watcher.must(&json!(["device-free"]))["bytes"]
            .as_u64()
            .unwrap()
    };
    let baseline = free(&mut watcher);
    let mut clients: Vec<_> = (0..4).map(|_| gpus.holder(&node)).collect();
    for client in &mut clients {
        open_on(client, "m", "m", "cuda:0");
    }
    // Four contexts, and one copy of the weights.
    let taken = baseline - free(&mut watcher);
    assert_eq!(taken, 4 * 16 * MIB + 10 * MIB);
    for client in &mut clients[1..] {
        client.kill();
    }
    eventually("the books are right", || {
        (device_field(&node, 0, "leases") == 1).then_some(())
    });
    // The daemon dies; the last client still reads what it has.
    node.kill();
    clients[0].must(&json!(["device-tensors", "m"]));
    clients[0].kill();
    // What the daemon's own context took is free as well.
    assert_eq!(free(&mut watcher), baseline + 16 * MIB);
}

#[test]
fn a_lost_device_takes_its_tier_out_and_the_host_goes_on() {
    let (_dir, path) = written("m.safetensors", 3 * MIB, 5);
    let gpus = Gpus::new(2, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    gpus.faults_of(node.pid(), "lost:719@0");
    // The next use of the device shows it: here a look at how it is, at the latest.
    eventually("the device is lost", || {
        (device_field(&node, 0, "state") == "lost").then_some(())
    });
    eventually("the lease is revoked", || {
        let lost = client.ask(&json!(["lost", "m"]));
        (lost["ok"] == true && lost["code"] == 602).then_some(())
    });
    assert_eq!(device_field(&node, 0, "leases"), 0);
    let refused = try_open_on(&mut client, "again", "m", "cuda:0");
    assert_eq!(
        (&refused["ok"], &refused["code"]),
        (&json!(false), &json!("device_lost"))
    );
    let host = open_on(&mut client, "host", "m", "best");
    assert_ne!(
        host["device"],
        device_field(&node, 0, "uuid"),
        "another device, or the host"
    );
    open_on(&mut client, "other", "m", "cuda:1");
    assert_same_tensors(&mut client, "other", "m");
}
