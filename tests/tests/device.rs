//! Weights in device memory over real processes, on the fake driver.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, try_open_on};
use mrm_tests::node::{Node, command};
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
    node.until_leases(0);
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

#[test]
fn a_file_that_changes_is_another_version_on_the_device() {
    let (dir, path) = written("m.safetensors", 3 * MIB, 5);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup_of("revalidate_ms = 0", "enabled = \"yes\"");
    let node = Node::start(&setup.model("m", &path));
    let (mut old, mut new) = (gpus.holder(&node), gpus.holder(&node));
    let first = open_on(&mut old, "m", "m", "cuda:0");
    let before = old.must(&json!(["device-tensors", "m"]));
    // Replaced, as deployments do: the old file stays as it is for who has it.
    let (next, _) = model::write(dir.path(), "next.safetensors", 3 * MIB, 5, 8);
    std::fs::rename(next, &path).unwrap();
    let second = open_on(&mut new, "m", "m", "cuda:0");
    assert_ne!(first["version"], second["version"]);
    assert_same_tensors(&mut new, "m", "m");
    assert_ne!(new.must(&json!(["device-tensors", "m"])), before);
    assert_eq!(old.must(&json!(["device-tensors", "m"])), before);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 8 * MIB);
    drop((old, new));
    node.until_idle();
    assert_eq!(node.post("/v1/models/m/evict").0, 200);
    // The old version is nobody's any more, and idle: it goes when the room is needed.
    assert_eq!(device_field(&node, 0, "images"), 1);
}

#[test]
fn files_that_a_client_passes_are_put_on_devices_like_others() {
    let (_dir, path) = written("m.safetensors", 3 * MIB, 5);
    let gpus = Gpus::new(2, 256 * MIB);
    // Past the host: it has no room for the model.
    for lines in ["", "host_budget_bytes = 2097152"] {
        let setup = gpus.setup_of(lines, "enabled = \"yes\"");
        let node = Node::start(&setup);
        let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
        let opened = one.must(&json!(["path-on", "m", path, "cuda:0"]));
        assert_eq!(opened["origin"], "loaded", "{opened}");
        let opened = two.must(&json!(["path-on", "m", path, "cuda"]));
        assert_eq!(opened["origin"], "hit", "{opened}");
        let opened = two.must(&json!(["path-on", "n", path, "cuda:1"]));
        assert_eq!(opened["origin"], "promoted", "{opened}");
        let read = one.must(&json!(["device-tensors", "m"]));
        for alias in ["m", "n"] {
            assert_eq!(two.must(&json!(["device-tensors", alias])), read);
        }
    }
}

#[test]
fn a_reload_changes_the_budgets_of_devices() {
    let (_dir, path) = written("m.safetensors", 5 * MIB, 5);
    let gpus = Gpus::new(1, 256 * MIB);
    let with = |budget: &str| {
        let lines = format!("enabled = \"yes\"\nbudget_bytes = \"{budget}\"");
        gpus.setup_of("", &lines).model("m", &path)
    };
    let node = Node::start(&with("100MiB"));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    let reload = |budget: &str, bytes: u64| {
        let _ = command(node.dir.path(), &with(budget));
        node.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the budget is another", || {
            (device_field(&node, 0, "budget_bytes") == bytes).then_some(())
        });
    };
    // What is leased stays, and goes when it is given back.
    reload("4MiB", 4 * MIB);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 6 * MIB);
    client.must(&json!(["device-tensors", "m"]));
    client.close("m");
    eventually("what is too much goes", || {
        (device_field(&node, 0, "charged_bytes") == 0).then_some(())
    });
    assert_eq!(
        try_open_on(&mut client, "m", "m", "cuda:0")["code"],
        "too_large"
    );
    // One that cannot be is refused, and all stays as it was.
    let _ = command(node.dir.path(), &with("1GiB"));
    node.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("it is refused", || {
        node.log().contains("1GiB").then_some(())
    });
    assert_eq!(device_field(&node, 0, "budget_bytes"), 4 * MIB);
    reload("8MiB", 8 * MIB);
    assert_eq!(
        open_on(&mut client, "m", "m", "cuda:0")["origin"],
        "promoted"
    );
    assert_same_tensors(&mut client, "m", "m");
}
