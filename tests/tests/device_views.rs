//! What operators see of devices: status, metrics, events and the command line.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, device_field, open_on, try_open_on, until_at_rest, uuid};
use mrm_tests::node::{Node, program};
use mrm_tests::{eventually, http, model};
use serde_json::{Value, json};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 6 * MIB;

/// A daemon with the models `a` and `b`, of which the first of two devices holds one.
fn start() -> (tempfile::TempDir, Gpus, Node) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, seed| -> PathBuf {
        model::write(dir.path(), &format!("{name}.safetensors"), 5 * MIB, 5, seed).0
    };
    let (a, b) = (write("a", 1), write("b", 2));
    let gpus = Gpus::new(2, 256 * MIB);
    let own = format!("[device.gpu.\"{}\"]\nbudget_bytes = \"8MiB\"", uuid(0));
    let setup = gpus.setup_of("", &format!("enabled = \"yes\"\n{own}"));
    let node = Node::start(&setup.model("a", &a).model("b", &b));
    (dir, gpus, node)
}

fn metric(node: &Node, name: &str, device: usize) -> Option<f64> {
    let (status, text) = http::request(&node.status_socket(), "GET", "/metrics");
    assert_eq!(status, 200);
    let start = format!("mrm_device_{name}{{device=\"{}\"}} ", uuid(device));
    let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(line.parse().unwrap())
}

fn kinds(node: &Node) -> Vec<(String, Option<String>)> {
    let events = node.get("/v1/events?since=0")["events"].clone();
    let events = events.as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    events
        .map(|event| (text(&event["kind"]).unwrap(), text(&event["model"])))
        .collect()
}

fn count(node: &Node, kind: &str) -> usize {
    kinds(node)
        .iter()
        .filter(|(found, _)| found == kind)
        .count()
}

fn mrm(gpus: &Gpus, node: &Node, arguments: &[&str]) -> String {
    let mut command = gpus.command(&program("mrm"));
    command.env("MRM_SOCKET", node.socket());
    let output = command
        .env_remove("MRM_STATUS_SOCKET")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn promotions_and_evictions_are_counted_and_told() {
    let (_dir, gpus, node) = start();
    let mut client = gpus.holder(&node);
    client.open("h", "a");
    assert_eq!(
        open_on(&mut client, "a", "a", "cuda:0")["origin"],
        "promoted"
    );
    client.close("a");
    open_on(&mut client, "b", "b", "cuda:0");
    until_at_rest(&node);
    let told = kinds(&node);
    let has = |kind: &str, model: &str| told.contains(&(kind.to_owned(), Some(model.to_owned())));
    assert!(
        has("open_promoted", "a") && has("device_evicted", "a"),
        "{told:?}"
    );
    assert!(has("open_loaded", "b") && !has("evicted", "a"), "{told:?}");
    assert_eq!(node.number("/counters/promoted_total"), 1);
    for (name, value) in [
        ("ready", 1.0),
        ("lost", 0.0),
        ("images", 1.0),
        ("leases", 1.0),
        ("charged_bytes", IMAGE as f64),
        ("budget_bytes", (8 * MIB) as f64),
        ("memory_bytes", (256 * MIB) as f64),
        ("fills_total", 2.0),
        ("fill_failures_total", 0.0),
        ("promotions_total", 1.0),
        ("evictions_total", 1.0),
        ("evicted_bytes_total", IMAGE as f64),
        ("fill_duration_seconds_count", 2.0),
        ("context_bytes", (16 * MIB) as f64),
    ] {
        assert_eq!(metric(&node, name, 0), Some(value), "{name}");
    }
    assert_eq!(metric(&node, "images", 1), Some(0.0));
    let failing = "cuMemcpyHtoDAsync_v2:999:1+";
    gpus.faults_of(node.pid(), failing);
    assert_eq!(
        try_open_on(&mut client, "x", "a", "cuda:1")["code"],
        "device_failed"
    );
    assert_eq!(metric(&node, "fill_failures_total", 1), Some(1.0));
}

#[test]
fn the_command_line_shows_where_models_are() {
    let (_dir, gpus, node) = start();
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", "cuda:1");
    let status = mrm(&gpus, &node, &["status"]);
    for part in [&uuid(0)[..12], &uuid(1)[..12], "lent by vmm", "1 lease"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let listed: Value = serde_json::from_str(&mrm(&gpus, &node, &["--json", "ls"])).unwrap();
    let a = &listed["models"][0];
    assert_eq!((&a["name"], &a["leases"]), (&json!("a"), &json!(1)));
    let on = &a["devices"][0];
    assert_eq!(
        (&on["uuid"], &on["state"]),
        (&json!(uuid(1)), &json!("resident"))
    );
    assert_eq!((&on["bytes"], &on["leases"]), (&json!(IMAGE), &json!(1)));
    assert_eq!(listed["models"][1]["devices"], json!([]));
    for arguments in [&["ls"][..], &["show", "a"]] {
        let shown = mrm(&gpus, &node, arguments);
        assert!(shown.contains(&uuid(1)[..12]), "{shown}");
        assert!(!shown.contains(&uuid(0)[..12]), "{shown}");
    }
}

#[test]
fn the_loss_of_a_device_is_told_everywhere() {
    let (_dir, gpus, node) = start();
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", "cuda:0");
    gpus.faults_of(node.pid(), "lost:719@0");
    eventually("the device is lost", || {
        (device_field(&node, 0, "state") == "lost").then_some(())
    });
    until_at_rest(&node);
    for kind in ["device_lost", "lease_revoked", "device_evicted"] {
        assert_eq!(count(&node, kind), 1, "{kind}: {:?}", kinds(&node));
    }
    for (name, value) in [("lost", 1.0), ("ready", 0.0), ("revoked_leases_total", 1.0)] {
        assert_eq!(metric(&node, name, 0), Some(value), "{name}");
    }
    assert_eq!(metric(&node, "free_bytes", 0), None, "nobody knows");
    let status = node.get("/v1/status");
    let degraded = status["degraded"].as_array().unwrap();
    let path = degraded
        .iter()
        .find(|path| path["id"] == "device_lost")
        .unwrap();
    let cause = path["cause"].as_str().unwrap();
    assert!(cause.contains(&uuid(0)) && cause.contains("719"), "{cause}");
    let shown = mrm(&gpus, &node, &["status"]);
    assert!(shown.contains("lost") && shown.contains("719"), "{shown}");
    let failed = client.ask(&json!(["open-on", "x", "b", "cuda:0", 300]));
    assert_eq!(failed["code"], "device_lost", "{failed}");
    assert_eq!(count(&node, "open_refused"), 1);
}
