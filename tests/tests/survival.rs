//! The daemon's death takes nothing with it: a keeper holds memory and sockets for the next one.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on};
use mrm_tests::node::{Node, Setup};
use mrm_tests::{eventually, model};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A keeper process that does not start the daemon again: the test does.
fn kept(setup: Setup) -> Setup {
    let mut setup = setup;
    for (variable, value) in [
        ("MRM_KEEPER_KIND", "process"),
        ("MRM_KEEPER_RESPAWN", "no"),
        ("MRM_KEEPER_FOR_MS", "5000"),
        ("MRM_KEEPER_GRACE_MS", "1000"),
    ] {
        let pair = (variable.to_owned(), value.to_owned());
        setup.environment.push(pair);
    }
    setup
}

#[test]
fn a_killed_daemon_leaves_its_models_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let setup = kept(Setup::new().model("m", &path));
    let mut node = Node::start(&setup);
    let mut holder = mrm_tests::holder::Holder::start(&node.socket());
    holder.open("held", "m");
    let charged = node.number("/host/charged_bytes");
    let instance = node.get("/v1/status")["daemon"]["instance"].clone();

    node.kill();
    holder.assert_equal("held", &[&path]);
    // Whoever reads the disk now finds nothing.
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    node.restart(&setup);
    assert_ne!(node.get("/v1/status")["daemon"]["instance"], instance);
    assert_eq!(node.number("/host/charged_bytes"), charged);
    assert_eq!(node.number("/counters/misses_total"), 0);
    std::fs::rename(dir.path().join("elsewhere"), &path).unwrap();

    let client = node.client();
    let again = client.open("m").unwrap();
    assert_eq!(again.origin(), mrm_client::Origin::Hit);
    assert_eq!(again.segment(0).unwrap().bytes(), image);
    drop(again);
    let (status, freed) = {
        eventually("the grace is over and nobody holds it", || {
            let (status, body) = node.post("/v1/models/m/evict");
            (status == 200).then_some((status, body))
        })
    };
    assert_eq!(status, 200, "{freed}");
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

#[test]
fn a_newer_daemon_takes_a_running_ones_place() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB, 4, 3);
    let setup = kept(Setup::new().model("m", &path));
    let mut old = Node::start(&setup);
    let mut holder = mrm_tests::holder::Holder::start(&old.socket());
    holder.open("held", "m");
    let charged = old.number("/host/charged_bytes");
    let mut new = mrm_tests::node::command(old.dir.path(), &setup)
        .arg("--takeover")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(old.wait().code(), Some(0));
    // The sockets were never away: this waits in their queue at worst.
    eventually("the next one serves", || {
        let daemon = old.get("/v1/status")["daemon"].clone();
        (daemon["pid"] == new.id() && daemon["state"] == "serving").then_some(())
    });
    assert_eq!(old.number("/host/charged_bytes"), charged);
    holder.assert_equal("held", &[&path]);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(new.id()).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    new.wait().unwrap();
}

#[test]
fn device_memory_outlives_the_daemon_that_filled_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = kept(gpus.setup().model("m", &path));
    let mut node = Node::start(&setup);
    let mut holder = gpus.holder(&node);
    open_on(&mut holder, "m", "m", "cuda:0");
    let charged = device_field(&node, 0, "charged_bytes");
    node.kill();
    holder.must(&json!(["device-tensors", "m"]));
    node.restart(&setup);
    assert_eq!(device_field(&node, 0, "charged_bytes"), charged);
    let mut other = gpus.holder(&node);
    let hit = open_on(&mut other, "m", "m", "cuda:0");
    assert_eq!(hit["origin"], "hit", "{hit}");
    assert_same_tensors(&mut other, "m", "m");
}
