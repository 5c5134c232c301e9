//! Policies of a live daemon: changed while it runs, explained, and what is loaded ahead.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_client::Fault;
use mrm_proto::error::ErrorCode;
use mrm_proto::hello::features;
use mrm_proto::ids::RequestId;
use mrm_proto::limits::{HINT_MS_MAX, HINTS_PER_USER_MAX};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Hint, Request};
use mrm_tests::node::{Node, Setup, command, program};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A daemon with room for two of the models `a`, `b` and `c`.
fn node(settings: &[&str]) -> (Node, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new().budget(5 * MIB / 2);
    for line in settings {
        setup = setup.setting(line);
    }
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let (path, _) = model::write(dir.path(), &format!("{name}.safetensors"), MIB, 3, seed);
        setup = setup.model(name, &path);
    }
    let node = Node::start_in(dir, &setup);
    (node, setup)
}

fn events(node: &Node, kind: &str) -> Vec<Value> {
    let events = node.get("/v1/events?since=0&limit=1024");
    let events = events["events"].as_array().unwrap().iter();
    events
        .filter(|event| event["kind"] == kind)
        .cloned()
        .collect()
}

fn mrm(node: &Node, arguments: &[&str]) -> String {
    let output = Command::new(program("mrm"))
        .env("MRM_SOCKET", node.socket())
        .env_remove("MRM_STATUS_SOCKET")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn open(node: &Node, name: &str) {
    drop(node.client().open(name).unwrap());
}

fn state(node: &Node, name: &str) -> Value {
    node.get(&format!("/v1/models/{name}"))["state"].clone()
}

#[test]
fn an_eviction_says_by_what_it_was_chosen() {
    let (node, _) = node(&["host_policy = \"lfu\""]);
    for name in ["a", "a", "b"] {
        open(&node, name);
    }
    let shown = mrm(&node, &["show", "b"]);
    assert!(
        shown.contains("KEPT IN") && shown.contains("0 of 1"),
        "{shown}"
    );
    let worth = node.get("/v1/models/a")["worth"].clone();
    assert_eq!(worth[0]["tier"], "host");
    assert_eq!(
        (&worth[0]["policy"], &worth[0]["worth"]),
        (&json!("lfu"), &json!(2.0))
    );

    open(&node, "c");
    let evicted = events(&node, "evicted");
    assert_eq!(evicted.len(), 1, "{evicted:?}");
    assert_eq!(evicted[0]["model"], "b");
    let why = &evicted[0]["why"];
    assert_eq!(
        (&why["policy"], &why["tier"]),
        (&json!("lfu"), &json!("host"))
    );
    assert_eq!(
        (&why["worth"], &why["candidates"]),
        (&json!(1.0), &json!(2))
    );
    assert_eq!(why["compared"], json!({"model": "a", "worth": 2.0}));
    let detail = evicted[0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("lfu on host: worth 1"), "{detail}");

    // What somebody asks for is no policy's doing.
    node.until_leases(0);
    mrm(&node, &["evict", "a"]);
    assert_eq!(events(&node, "evicted")[1]["why"], Value::Null);
}

#[test]
fn an_operator_changes_policies_and_a_reload_takes_new_ones() {
    let (node, setup) = node(&["host_policy = \"lru\""]);
    assert!(mrm(&node, &["policy"]).contains("the same"));
    let changed = mrm(&node, &["policy", "random", "seed=7"]);
    assert!(
        changed.contains("random,seed=7") && changed.contains("lru"),
        "{changed}"
    );
    let policy = || node.get("/v1/policy")["tiers"][0].clone();
    assert_eq!(policy()["differs"], true);
    let detail = events(&node, "policy_changed")[0]["detail"].clone();
    assert_eq!(detail, "random,seed=7 on host");
    let json: Value = serde_json::from_str(&mrm(&node, &["policy", "--json"])).unwrap();
    assert_eq!(json["tiers"][0]["configured"], "lru");
    open(&node, "a");

    // A reload that says nothing new of it leaves it.
    let reload = |setup: &Setup| {
        let before = node.log().matches("were read again").count();
        drop(command(node.dir.path(), setup));
        node.signal(SIGHUP);
        eventually("a reload", || {
            (node.log().matches("were read again").count() > before).then_some(())
        });
    };
    reload(&setup);
    assert_eq!(policy()["policy"], "random,seed=7");
    let mut other = setup.clone();
    other.settings = other.settings.replace("lru", "gc");
    other
        .settings
        .push_str("[prefetch]\nenabled = \"yes\"\nshare_percent = 5\n");
    reload(&other);
    assert_eq!(
        (&policy()["policy"], &policy()["differs"]),
        (&json!("gc"), &json!(false))
    );
    let prefetch = node.get("/v1/policy")["prefetch"].clone();
    assert_eq!(
        (&prefetch["enabled"], &prefetch["share_percent"]),
        (&json!(true), &json!(5))
    );
    mrm(&node, &["policy", "s3-fifo", "--tier", "host"]);
    assert_eq!(policy()["policy"], "s3-fifo");
    mrm(&node, &["policy", "configured"]);
    assert_eq!(policy()["policy"], "gc");
    open(&node, "b");
}

#[test]
fn an_announced_model_is_there_when_it_is_opened() {
    let (node, _) = node(&[]);
    let told = mrm(&node, &["hint", "a", "--in", "30s"]);
    assert!(told.contains("a: expected in 30"), "{told}");
    eventually("the model", || {
        (state(&node, "a") == "resident").then_some(())
    });
    let started = events(&node, "prefetch_started");
    assert_eq!((started.len(), &started[0]["model"]), (1, &json!("a")));
    assert_eq!(started[0]["why"]["policy"], "hint");
    assert_eq!(
        started[0]["why"]["compared"],
        json!({"model": null, "worth": 0.0})
    );
    open(&node, "a");
    assert_eq!(node.get("/v1/status")["counters"]["hits_total"], 1);
    assert_eq!(events(&node, "prefetch_used").len(), 1);
    let prefetch = node.get("/v1/policy")["prefetch"].clone();
    assert_eq!(
        (&prefetch["used_total"], &prefetch["hints"]),
        (&json!(1), &json!(0))
    );
    let (status, error) = node.post("/v1/models/nobody/hint");
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[test]
fn a_client_announces_what_it_will_open() {
    let (node, _) = node(&[]);
    let client = node.client();
    client.hint("a", Duration::from_secs(30)).unwrap();
    eventually("the model", || {
        (state(&node, "a") == "resident").then_some(())
    });
    open(&node, "a");
    assert_eq!(events(&node, "prefetch_used").len(), 1);
    let error = client.hint("nobody", Duration::ZERO).unwrap_err();
    assert_eq!(error.number(), ErrorCode::ModelNotFound.number(), "{error}");

    // Who is many sessions is one user all the same. Nothing of it comes within two minutes.
    let far = Duration::from_secs(3600);
    let names: Vec<String> = (0..=HINTS_PER_USER_MAX).map(|n| format!("m{n}")).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new().budget(MIB);
    let (path, _) = model::write(dir.path(), "m.safetensors", 4096, 1, 1);
    for name in &names {
        setup = setup.model(name, &path);
    }
    let node = Node::start_in(dir, &setup);
    let (last, others) = names.split_last().unwrap();
    for name in others {
        node.client().hint(name, far).unwrap();
    }
    let error = node.client().hint(last, far).unwrap_err();
    assert_eq!(error.number(), ErrorCode::Exhausted.number(), "{error}");
    assert!(error.retryable());
    // What was said before may be said anew.
    node.client().hint(&names[0], far).unwrap();
    assert_eq!(node.get("/v1/policy")["prefetch"]["hints"], 128);
}

#[test]
fn a_hint_that_was_not_agreed_on_or_looks_too_far_ends_the_session() {
    let (node, _) = node(&[]);
    let hint = |in_ms| {
        Request::Hint(Hint {
            model: ModelName::new("a").unwrap(),
            in_ms,
        })
    };
    let mut old = Raw::hello_with(&node.socket(), features::ALL & !features::HINT);
    old.send(RequestId(2), &hint(0), &[]);
    old.ends_with(ErrorCode::MalformedBody);
    let mut far = Raw::hello(&node.socket());
    assert!(matches!(
        far.ask(RequestId(2), &hint(HINT_MS_MAX), &[]),
        Reply::Hinted(_)
    ));
    far.send(RequestId(3), &hint(HINT_MS_MAX + 1), &[]);
    far.ends_with(ErrorCode::MalformedBody);
    let mut silent = Raw::hello(&node.socket());
    silent.send(RequestId::NO_REPLY, &hint(0), &[]);
    silent.ends_with(ErrorCode::BadRequestId);
}

/// What is remembered of `a`: uses, and the seconds since the last.
fn remembered(node: &Node) -> Option<f64> {
    node.get("/v1/models/a")["worth"][0]["factors"]["uses"].as_f64()
}

#[test]
fn uses_are_remembered_over_a_restart() {
    let (mut node, setup) = node(&["host_policy = \"gc\""]);
    for _ in 0..4 {
        open(&node, "a");
    }
    assert_eq!(remembered(&node), Some(4.0));
    node.signal(SIGTERM);
    assert!(node.wait().success());
    node.restart(&setup);
    // Not resident any more, and known all the same.
    open(&node, "a");
    assert_eq!(remembered(&node), Some(5.0));
    let degraded = node.get("/v1/status")["degraded"].to_string();
    assert!(!degraded.contains("statistics"), "{degraded}");

    // A damaged file is told of, and done without.
    node.signal(SIGTERM);
    assert!(node.wait().success());
    let file = node.runtime_dir().join("statistics");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    node.restart(&setup);
    let degraded = node.get("/v1/status")["degraded"].to_string();
    assert!(degraded.contains("its checksum is another"), "{degraded}");
    open(&node, "a");
    assert_eq!(remembered(&node), Some(1.0));
}

#[test]
fn what_is_announced_does_not_displace_what_is_held() {
    let (node, _) = node(&[]);
    let client = node.client();
    let (_a, _b) = (client.open("a").unwrap(), client.open("b").unwrap());
    mrm(&node, &["hint", "c"]);
    // The answer to a hint comes after the first look.
    open(&node, "a");
    assert_eq!(events(&node, "prefetch_started").len(), 0);
    assert_eq!(state(&node, "c"), "absent");
}
