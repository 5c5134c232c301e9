//! Clients, daemons and devices that end while a device is filled or lent.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{
    Gpus, assert_same_tensors, device_field, open_on, try_open_on, until_at_rest, uuid,
};
use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, Setup};
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
/// What a context costs on the pretended device.
const CONTEXT: u64 = 16 * MIB;
/// Each copy to a device takes so long that a test can do something meanwhile.
const SLOW: &str = "cuMemcpyHtoDAsync_v2:150000";

struct Machine {
    _dir: tempfile::TempDir,
    path: PathBuf,
    gpus: Gpus,
}

impl Machine {
    fn new(devices: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 7, 1);
        let gpus = Gpus::new(devices, 256 * MIB);
        Self {
            _dir: dir,
            path,
            gpus,
        }
    }

    /// A daemon that fills in slots of 1 MiB.
    fn setup(&self, lines: &str) -> Setup {
        let device = "enabled = \"yes\"\nstage_bytes = \"1MiB\"\nstage_slots = 2";
        self.gpus.setup_of(lines, device).model("m", &self.path)
    }

    fn slow(&self, lines: &str) -> Setup {
        let mut setup = self.setup(lines);
        let delay = ("MRM_FAKE_CUDA_DELAY_US".to_owned(), SLOW.to_owned());
        setup.environment.push(delay);
        setup
    }
}

fn until_filling(node: &Node, device: usize) {
    eventually("a device is filled", || {
        (device_field(node, device, "loading") == 1).then_some(())
    });
}

fn ask_to_open(client: &mut Holder, device: &str) {
    client.send(&json!(["open-on", "m", "m", device, 60_000]));
}

fn free_bytes(client: &mut Holder) -> u64 {
    let free = client.must(&json!(["device-free"]))["bytes"].clone();
    free.as_u64().unwrap()
}

#[test]
fn a_client_that_dies_while_its_open_is_pending_leaves_the_books_right() {
    let machine = Machine::new(1);
    let node = Node::start(&machine.slow(""));
    let mut watcher = machine.gpus.holder(&node);
    let baseline = free_bytes(&mut watcher);
    for round in 0..3 {
        let mut dying = machine.gpus.holder(&node);
        ask_to_open(&mut dying, "cuda:0");
        until_filling(&node, 0);
        // Another may wait for the same load: it gets what the first began.
        let mut joining = machine.gpus.holder(&node);
        if round > 0 {
            ask_to_open(&mut joining, "cuda:0");
            eventually("it waits, too", || {
                (node.number("/sessions") >= 2).then_some(())
            });
        }
        dying.kill();
        if round > 0 {
            let joined = joining.receive();
            assert_eq!(joined["ok"], true, "{joined}");
            assert_same_tensors(&mut joining, "m", "m");
        }
        joining.kill();
        node.until_leases(0);
        until_at_rest(&node);
        // What was read is worth keeping: the load went on.
        assert_eq!(device_field(&node, 0, "charged_bytes"), 6 * MIB);
        assert_eq!(free_bytes(&mut watcher), baseline - 6 * MIB);
        assert_eq!(node.post("/v1/models/m/evict").0, 200);
        assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
        assert_eq!(free_bytes(&mut watcher), baseline);
    }
}

#[test]
fn a_client_that_is_stopped_and_killed_with_frames_unread_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 100_000, 600, 1);
    let gpus = Gpus::new(1, 2048 * MIB);
    let lines = "granularity = \"tensor\"";
    let node = Node::start(&gpus.setup().model_with("m", &path, lines));
    let mut other = gpus.holder(&node);
    open_on(&mut other, "m", "m", "cuda:0");
    let fds = node.fds();
    for _ in 0..4 {
        let mut client = gpus.holder(&node);
        client.open("h", "m");
        client.signal(Signal::SIGSTOP);
        ask_to_open(&mut client, "cuda:0");
        client.kill();
        node.until_leases(1);
    }
    eventually("its descriptors are gone", || {
        (node.fds() <= fds).then_some(())
    });
    assert_same_tensors(&mut other, "m", "m");
}

#[test]
fn a_daemon_that_is_killed_while_it_fills_leaves_nothing_on_the_device() {
    let machine = Machine::new(1);
    let mut node = Node::start(&machine.slow(""));
    let mut watcher = machine.gpus.holder(&node);
    let baseline = free_bytes(&mut watcher);
    let mut client = machine.gpus.holder(&node);
    ask_to_open(&mut client, "cuda:0");
    until_filling(&node, 0);
    node.kill();
    assert_eq!(
        free_bytes(&mut watcher),
        baseline + CONTEXT,
        "also its context"
    );
    // The client asks again when there is a daemon again.
    drop(client);
    node.restart(&machine.setup(""));
    let mut client = machine.gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    assert_same_tensors(&mut client, "m", "m");
}

#[test]
fn a_daemon_that_is_told_to_end_ends_while_it_fills() {
    for lines in ["drain_ms = 1", "drain_ms = 60000"] {
        let machine = Machine::new(1);
        let mut node = Node::start(&machine.slow(lines));
        let mut client = machine.gpus.holder(&node);
        // It asks again until then: another daemon may come.
        client.send(&json!(["open-on", "m", "m", "cuda:0", 5_000]));
        until_filling(&node, 0);
        node.signal(Signal::SIGTERM);
        let answered = client.receive();
        assert_eq!(answered["ok"], false, "{answered}");
        client.kill();
        assert!(node.wait().success(), "{lines}");
        assert!(!node.log().contains("panicked"));
    }
}

#[test]
fn a_drain_waits_for_leases_on_devices() {
    let machine = Machine::new(1);
    let mut node = Node::start(&machine.setup("drain_ms = 60000"));
    let (mut one, mut two) = (machine.gpus.holder(&node), machine.gpus.holder(&node));
    open_on(&mut one, "m", "m", "cuda:0");
    // Connected before: a daemon that drains takes no new sessions.
    two.open("h", "m");
    two.close("h");
    assert_eq!(node.post("/v1/drain").0, 200);
    let refused = try_open_on(&mut two, "m", "m", "cuda:0");
    assert_eq!(refused["code"], "draining", "{refused}");
    assert_eq!(device_field(&node, 0, "leases"), 1);
    one.must(&json!(["device-tensors", "m"]));
    one.close("m");
    assert!(node.wait().success());
}

#[test]
fn a_device_that_is_lost_answers_those_who_wait_for_it() {
    let machine = Machine::new(2);
    let node = Node::start(&machine.slow(""));
    let mut other = machine.gpus.holder(&node);
    let mut clients = [machine.gpus.holder(&node), machine.gpus.holder(&node)];
    for client in &mut clients {
        ask_to_open(client, "cuda:0");
    }
    until_filling(&node, 0);
    machine.gpus.faults_of(node.pid(), "lost:719@0");
    for client in &mut clients {
        let answered = client.receive();
        assert_eq!(answered["code"], "device_lost", "{answered}");
        let message = answered["message"].as_str().unwrap();
        assert!(
            message.contains(&uuid(0)) && message.contains("719"),
            "{message}"
        );
    }
    until_at_rest(&node);
    for field in ["charged_bytes", "leases", "images", "loading"] {
        assert_eq!(device_field(&node, 0, field), 0, "{field}");
    }
    let opened = open_on(&mut other, "m", "m", "cuda");
    assert_eq!(opened["device"], uuid(1), "any device is one that is left");
    assert_same_tensors(&mut other, "m", "m");
}

#[test]
fn a_device_that_is_lost_is_served_again_by_the_next_daemon() {
    let machine = Machine::new(1);
    let mut node = Node::start(&machine.setup(""));
    let mut client = machine.gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    assert_eq!(node.post("/v1/models/m/pin").0, 200);
    machine.gpus.faults_of(node.pid(), "lost:214");
    eventually("the lease is revoked", || {
        let lost = client.ask(&json!(["lost", "m"]));
        (lost["ok"] == true && lost["message"].as_str()?.contains("214")).then_some(())
    });
    until_at_rest(&node);
    assert_eq!(device_field(&node, 0, "state"), "lost");
    assert_eq!(
        device_field(&node, 0, "charged_bytes"),
        0,
        "not even what is pinned"
    );
    assert_eq!(device_field(&node, 0, "free_bytes"), Value::Null);
    let shown = node.get("/v1/models/m");
    assert_eq!(
        (&shown["pinned"], &shown["state"]),
        (&json!(true), &json!("resident"))
    );
    let best = open_on(&mut client, "best", "m", "best");
    assert_eq!(
        (&best["device"], &best["origin"]),
        (&Value::Null, &json!("hit"))
    );
    node.kill();
    node.restart(&machine.setup(""));
    // The client's own driver was never at fault; it asks the new daemon.
    open_on(&mut client, "again", "m", "cuda:0");
    assert_same_tensors(&mut client, "again", "m");
    assert_eq!(client.ask(&json!(["lost", "again"]))["ok"], false);
}
