//! Warming and evicting by place: host memory, any device, the best, or a device by name.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, device_field, open_on, until_at_rest, uuid};
use mrm_tests::node::{Node, Setup, program};
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Output;

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 6 * MIB;

fn written(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let write = |(seed, name): (u64, &&str)| {
        let file = format!("{name}.safetensors");
        model::write(dir.path(), &file, 5 * MIB, 5, seed).0
    };
    let paths = (1..).zip(names).map(write).collect();
    (dir, paths)
}

/// A daemon with the models `a` and `b` on a machine with so many devices.
fn start(devices: u32) -> (tempfile::TempDir, Gpus, Node) {
    let (dir, paths) = written(&["a", "b"]);
    let gpus = Gpus::new(devices, 256 * MIB);
    let setup = gpus.setup().model("a", &paths[0]).model("b", &paths[1]);
    let node = Node::start(&setup);
    (dir, gpus, node)
}

/// A warm-up that must succeed.
fn warm(node: &Node, name: &str, tier: &str) -> Value {
    let target = format!("/v1/models/{name}/warm?wait_ms=60000&tier={tier}");
    let (status, body) = node.post(&target);
    assert_eq!(status, 200, "{tier}: {body}");
    body
}

/// An eviction that must succeed: what it freed, in bytes.
fn evict(node: &Node, name: &str, query: &str) -> u64 {
    let (status, body) = node.post(&format!("/v1/models/{name}/evict{query}"));
    assert_eq!(status, 200, "{query}: {body}");
    body["freed_bytes"].as_u64().unwrap()
}

/// A verb that must be refused: its status, code and message.
fn refused(node: &Node, target: &str) -> (u16, String, String) {
    let (status, body) = node.post(target);
    let text = |field: &str| body["error"][field].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("message"))
}

/// Where a model is: the state of its file in host memory, and the devices that have all of it.
fn places(node: &Node, name: &str) -> (String, Vec<String>) {
    let model = node.get(&format!("/v1/models/{name}"));
    let file = model["segments"][0]["state"].as_str().unwrap_or("absent");
    let resident = |device: &&Value| device["state"] == "resident";
    let devices = model["devices"].as_array().unwrap().iter();
    let uuids = devices
        .filter(resident)
        .map(|device| device["uuid"].as_str().unwrap().to_owned());
    (file.to_owned(), uuids.collect())
}

fn mrm(gpus: &Gpus, node: &Node, arguments: &[&str]) -> Output {
    let mut command = gpus.command(&program("mrm"));
    command.env("MRM_SOCKET", node.socket());
    command.env_remove("MRM_STATUS_SOCKET");
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_warm_model_on_a_device_is_a_hit_for_the_first_client() {
    let (_dir, gpus, node) = start(2);
    let warmed = warm(&node, "a", &uuid(1));
    assert_eq!(
        (&warmed["tier"], &warmed["origin"]),
        (&json!(uuid(1)), &json!("loaded"))
    );
    assert_eq!(places(&node, "a").1, [uuid(1)]);
    assert_eq!(node.number("/leases"), 0, "warming keeps no lease");
    assert_eq!(device_field(&node, 1, "charged_bytes"), IMAGE);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
    let opened = open_on(&mut gpus.holder(&node), "a", "a", "cuda");
    assert_eq!(
        (&opened["device"], &opened["origin"]),
        (&json!(uuid(1)), &json!("hit"))
    );
}

#[test]
fn each_tier_is_where_it_says() {
    let (_dir, _gpus, node) = start(2);
    let (status, body) = node.post("/v1/models/a/warm?wait_ms=60000");
    assert_eq!((status, &body["tier"]), (200, &json!("host")), "{body}");
    assert_eq!(places(&node, "a"), ("resident".to_owned(), Vec::new()));
    assert_eq!(warm(&node, "a", "host")["origin"], "hit");
    // What is in host memory is copied, and counted as such.
    let best = warm(&node, "a", "best");
    assert_eq!(
        (&best["tier"], &best["origin"]),
        (&json!(uuid(0)), &json!("promoted"))
    );
    assert_eq!(node.number("/counters/promoted_total"), 1);
    // Any device: the one that has it.
    let any = warm(&node, "a", "device");
    assert_eq!(
        (&any["tier"], &any["origin"]),
        (&json!(uuid(0)), &json!("hit"))
    );
    assert_eq!(warm(&node, "a", &uuid(1))["tier"], uuid(1));
    assert_eq!(places(&node, "a").1, [uuid(0), uuid(1)]);
    // What was warmed by nobody's wish goes where it is not named.
    assert_eq!(places(&node, "b"), ("absent".to_owned(), Vec::new()));
}

#[test]
fn the_best_is_the_host_where_no_device_has_room() {
    let (_dir, paths) = written(&["a"]);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup_of("", "enabled = \"yes\"\nbudget_bytes = \"4MiB\"");
    let node = Node::start(&setup.model("a", &paths[0]));
    assert_eq!(warm(&node, "a", "best")["tier"], "host");
    let (status, code, message) = refused(&node, "/v1/models/a/warm?tier=device");
    assert_eq!((status, code.as_str()), (507, "too_large"), "{message}");
    assert_eq!(places(&node, "a"), ("resident".to_owned(), Vec::new()));
}

#[test]
fn a_device_that_the_daemon_lacks_is_unknown() {
    let (_dir, _gpus, node) = start(1);
    for verb in ["warm", "evict"] {
        let target = format!("/v1/models/a/{verb}?tier={}", uuid(5));
        let (status, code, message) = refused(&node, &target);
        assert_eq!((status, code.as_str()), (404, "unknown_device"), "{verb}");
        assert!(
            message.contains(&uuid(5)) && message.contains(&uuid(0)),
            "{message}"
        );
    }
    let (status, code, _) = refused(&node, "/v1/models/a/warm?tier=cuda:0");
    assert_eq!((status, code.as_str()), (400, "bad_parameter"));
    assert_eq!(places(&node, "a").0, "absent", "nothing was loaded for it");
}

#[test]
fn what_has_no_tensors_is_refused_by_devices() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vocabulary.txt");
    fs::write(&file, "a\nb\n").unwrap();
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("words", &file));
    let (status, code, message) = refused(&node, "/v1/models/words/warm?tier=device");
    assert_eq!((status, code.as_str()), (422, "no_tensors"), "{message}");
    assert_eq!(warm(&node, "words", "host")["tier"], "host");
}

#[test]
fn without_a_device_the_cause_is_told_and_the_best_is_the_host() {
    let (_dir, paths) = written(&["a"]);
    let gpus = Gpus::new(1, 256 * MIB);
    let nowhere = tempfile::tempdir().unwrap();
    let gpus = gpus.with_library_dir(nowhere.path());
    let node = Node::start(
        &gpus
            .setup_of("", "enabled = \"auto\"")
            .model("a", &paths[0]),
    );
    for tier in ["device", &uuid(0)] {
        let target = format!("/v1/models/a/warm?tier={tier}");
        let (status, code, message) = refused(&node, &target);
        assert_eq!((status, code.as_str()), (404, "unknown_device"), "{tier}");
        assert!(message.contains("driver library"), "{tier}: {message}");
    }
    assert_eq!(warm(&node, "a", "best")["tier"], "host");
}

#[test]
fn a_model_is_evicted_from_where_it_is_named() {
    let (_dir, gpus, node) = start(2);
    for tier in ["host", &uuid(0), &uuid(1)] {
        warm(&node, "a", tier);
    }
    assert_eq!(evict(&node, "a", &format!("?tier={}", uuid(0))), IMAGE);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
    assert_eq!(places(&node, "a"), ("resident".to_owned(), vec![uuid(1)]));
    assert_eq!(evict(&node, "a", &format!("?tier={}", uuid(0))), 0);
    // A lease on a device holds nothing in host memory, and the other way round.
    let mut client = gpus.holder(&node);
    open_on(&mut client, "a", "a", &uuid(1));
    assert!(evict(&node, "a", "?tier=host") >= 5 * MIB);
    assert_eq!(places(&node, "a"), ("absent".to_owned(), vec![uuid(1)]));
    for query in ["".to_owned(), format!("?tier={}", uuid(1))] {
        let target = format!("/v1/models/a/evict{query}");
        let (status, code, message) = refused(&node, &target);
        assert_eq!((status, code.as_str()), (409, "in_use"), "{message}");
    }
    client.close("a");
    until_at_rest(&node);
    warm(&node, "a", "host");
    assert!(evict(&node, "a", "") > IMAGE, "from everywhere");
    assert_eq!(places(&node, "a"), ("absent".to_owned(), Vec::new()));
    assert_eq!(node.number("/host/charged_bytes"), 0);
    assert_eq!(device_field(&node, 1, "charged_bytes"), 0);
}

#[test]
fn holders_are_shown_with_what_they_hold_where() {
    let (_dir, gpus, node) = start(1);
    let mut client = gpus.holder(&node);
    client.open("host", "a");
    open_on(&mut client, "one", "a", "cuda:0");
    let mut other = gpus.holder(&node);
    open_on(&mut other, "two", "a", "cuda:0");
    let holders = node.get("/v1/models/a")["holders"].clone();
    let mut held: Vec<(u64, String, u64)> = holders
        .as_array()
        .unwrap()
        .iter()
        .map(|holder| {
            let number = |field: &str| holder[field].as_u64().unwrap();
            let tier = holder["tier"].as_str().unwrap().to_owned();
            (number("pid"), tier, number("leases"))
        })
        .collect();
    let (first, second) = (u64::from(client.pid()), u64::from(other.pid()));
    let mut expected = vec![
        (first, "host".to_owned(), 1),
        (first, uuid(0), 1),
        (second, uuid(0), 1),
    ];
    held.sort();
    expected.sort();
    assert_eq!(held, expected);
    let shown = said(&mrm(&gpus, &node, &["show", "a"]));
    assert!(shown.contains("WHERE") && shown.contains("host"), "{shown}");
}

#[test]
fn the_command_line_warms_and_evicts_by_place() {
    let (_dir, gpus, node) = start(2);
    let run = |arguments: &[&str]| said(&mrm(&gpus, &node, arguments));
    let warmed = run(&["warm", "a", "--device", &uuid(1)]);
    assert!(
        warmed.starts_with(&format!("a: loaded on {}", &uuid(1)[..12])),
        "{warmed}"
    );
    let json: Value =
        serde_json::from_str(&run(&["--json", "warm", "a", "--device", "any"])).unwrap();
    assert_eq!(json["results"][0]["tier"], uuid(1));
    run(&["warm", "b"]);
    let warmed = run(&["warm", "b", "--device", "best"]);
    assert!(
        warmed.starts_with("b: copied from memory to GPU-"),
        "{warmed}"
    );
    let evicted = run(&["evict", "a", "--from", &uuid(1)]);
    assert!(
        evicted.contains("evicted, 6.0 MiB freed on GPU-"),
        "{evicted}"
    );
    assert_eq!(places(&node, "a").1, Vec::<String>::new());
    let evicted = run(&["evict", "b", "--from", "host"]);
    assert!(evicted.contains("freed in host memory"), "{evicted}");
    assert_eq!(places(&node, "b").0, "absent");
    assert_eq!(places(&node, "b").1.len(), 1);
    let unknown = mrm(&gpus, &node, &["warm", "a", "--device", &uuid(7)]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let wrong = mrm(&gpus, &node, &["warm", "a", "--device", "cuda:0"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

/// A daemon that pins these models, each with where it is to be loaded.
fn pinning(gpus: &Gpus, models: &[(&str, &PathBuf, &str)]) -> Setup {
    models.iter().fold(gpus.setup(), |setup, (name, path, on)| {
        setup.model_with(name, path, &format!("pin = true\nwarm_on = \"{on}\""))
    })
}

fn until_at(node: &Node, name: &str, expected: &[String]) {
    eventually("the pinned model is there", || {
        (places(node, name).1 == expected).then_some(())
    });
}

#[test]
fn a_pinned_model_is_loaded_where_the_configuration_says() {
    let (_dir, paths) = written(&["a", "b", "c"]);
    let gpus = Gpus::new(2, 256 * MIB);
    let (one, far) = (uuid(1), uuid(9));
    let [a, b, c] = [&paths[0], &paths[1], &paths[2]];
    let setup = pinning(&gpus, &[("a", a, &one), ("b", b, "host"), ("c", c, &far)]);
    let node = Node::start(&setup);
    until_at(&node, "a", std::slice::from_ref(&one));
    eventually("the other is in host memory", || {
        (places(&node, "b").0 == "resident").then_some(())
    });
    assert_eq!(places(&node, "b").1, Vec::<String>::new());
    assert_eq!(places(&node, "c").0, "absent", "there is no such device");
    let status = node.get("/v1/status");
    let degraded = status["degraded"].as_array().unwrap().iter();
    let causes: Vec<_> = degraded
        .filter(|path| path["id"] == "warm_on")
        .map(|path| path["cause"].to_string())
        .collect();
    let [cause] = &causes[..] else {
        panic!("nobody says that a pinned model is not loaded: {status}");
    };
    assert!(cause.contains("`c`") && cause.contains(&far), "{cause}");
    // A pin holds on every tier.
    let target = format!("/v1/models/a/evict?tier={one}");
    assert_eq!(refused(&node, &target).1, "in_use");
    // A reload brings what the file says now.
    let file = node.dir.path().join("mrm.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("warm_on = \"host\"", "warm_on = \"best\"");
    fs::write(&file, text.replace(&far, &uuid(0))).unwrap();
    node.signal(Signal::SIGHUP);
    until_at(&node, "b", &[uuid(0)]);
    until_at(&node, "c", &[uuid(0)]);
    assert_eq!(places(&node, "a").1, [one]);
}
