//! Many clients at once, on devices that hold fewer models than are wanted: whatever is lent is
//! right, and in the end the books are empty.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, until_at_rest};
use mrm_tests::holder::Holder;
use mrm_tests::node::Node;
use mrm_tests::{Random, model, seed};
use serde_json::{Map, Value, json};

const MIB: u64 = 1 << 20;
const MODELS: u64 = 5;
const CLIENTS: u64 = 5;
const ROUNDS: u64 = 25;

fn free_bytes(client: &mut Holder) -> Vec<u64> {
    let free = |device| {
        client.must(&json!(["device-free", device]))["bytes"]
            .as_u64()
            .unwrap()
    };
    [0, 1].map(free).to_vec()
}

fn churn(sharing: &str, granularity: &str, host_lines: &str) {
    let mut random = Random(seed());
    let dir = tempfile::tempdir().unwrap();
    let gpus = Gpus::new(2, 512 * MIB);
    let lines = format!(
        "enabled = \"yes\"\nsharing = \"{sharing}\"\ngranularity = \"{granularity}\"\n\
         block_bytes = \"1MiB\"\nstage_bytes = \"256KiB\"\nbudget_bytes = \"14MiB\""
    );
    let mut setup = gpus.setup_of(host_lines, &lines);
    // The host has room for all when the expectations are read.
    let mut plain = gpus.setup();
    for i in 0..MODELS {
        let (bytes, tensors) = (MIB + random.below(3 * MIB), 1 + random.below(3));
        let name = format!("m{i}");
        let file = format!("{name}.safetensors");
        let (path, _) = model::write(dir.path(), &file, bytes, tensors, random.next());
        setup = setup.model(&name, &path);
        plain = plain.model(&name, &path);
    }
    let mut expected = Map::new();
    {
        let node = Node::start(&plain);
        let mut client = gpus.holder(&node);
        for i in 0..MODELS {
            let name = format!("m{i}");
            client.open(&name, &name);
            let read = client.must(&json!(["tensors", name]));
            expected.insert(name, read["tensors"].clone());
        }
    }
    let node = Node::start(&setup);
    let mut watcher = gpus.holder(&node);
    let _contexts = free_bytes(&mut watcher);
    let baseline = free_bytes(&mut watcher);
    let devices = json!(["cuda:0", "cuda:1", "cuda", "best", "best:cuda:0"]);
    let mut clients: Vec<Holder> = (0..CLIENTS).map(|_| gpus.holder(&node)).collect();
    for client in &mut clients {
        client.send(&json!([
            "churn-on",
            ROUNDS,
            random.next() >> 1,
            expected,
            devices
        ]));
    }
    // One dies in the midst of it.
    clients.pop().unwrap().kill();
    let mut on_device = 0;
    for client in &mut clients {
        let reply = client.receive();
        assert_eq!(reply["ok"], true, "{reply}");
        on_device += reply["on_device"].as_u64().unwrap();
    }
    assert!(on_device > ROUNDS, "{on_device} opens were on a device");
    drop(clients);
    assert_nothing_is_left(&node);
    assert_eq!(free_bytes(&mut watcher), baseline);
}

fn assert_nothing_is_left(node: &Node) {
    node.until_idle();
    until_at_rest(node);
    for i in 0..MODELS {
        let (status, body) = node.post(&format!("/v1/models/m{i}/evict"));
        assert!(status == 200 || status == 404, "{body}");
    }
    let status = node.get("/v1/status");
    assert_eq!(status["host"]["charged_bytes"], 0);
    for device in status["devices"]["devices"].as_array().unwrap() {
        let sums = [
            "charged_bytes",
            "resident_bytes",
            "freeing_bytes",
            "images",
            "leases",
        ];
        for sum in sums {
            assert_eq!(device[sum], Value::from(0), "{sum}: {device}");
        }
    }
}

#[test]
fn models_by_vmm() {
    churn("vmm", "model", "");
}

#[test]
fn blocks_by_vmm_past_a_small_host() {
    churn("vmm", "block", "host_budget_bytes = 6291456");
}

#[test]
fn tensors_by_legacy_handles() {
    churn("legacy", "tensor", "host_budget_bytes = 12582912");
}
