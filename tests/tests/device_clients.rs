//! Clients whose driver fails, or who do on a device what they should not.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, uuid};
use mrm_tests::holder::Holder;
use mrm_tests::node::Node;
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;
/// Of these the process recovers. (46 sticks on the pretended driver unless told otherwise.)
const PASSING: [&str; 10] = [
    "1", "2", "3", "46:once", "100", "101", "200", "201", "999", "4242",
];
/// Of these a process does not recover.
const LASTING: [u32; 3] = [214, 700, 719];

fn start(sharing: &str) -> (tempfile::TempDir, Gpus, Node) {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB, 5, 1);
    let gpus = Gpus::new(1, 256 * MIB).logged();
    let lines = format!("enabled = \"yes\"\nsharing = \"{sharing}\"");
    let setup = gpus.setup_of("", &lines);
    let node = Node::start(&setup.model_with("m", &path, "pin = true"));
    (dir, gpus, node)
}

fn until_no_lease(node: &Node, case: &str) {
    eventually(case, || (node.number("/leases") == 0).then_some(()));
}

/// Opens and closes. What is not granted is explained; what cannot be closed is closed later.
fn open_and_close(client: &mut Holder, case: &str) -> Value {
    let opened = client.ask(&json!(["open-on", "m", "m", "cuda:0", 60_000]));
    if opened["ok"] == true {
        let closed = client.ask(&json!(["close-checked", "m"]));
        assert!(
            closed["ok"] == true || closed["code"] == "close_refused",
            "{case}: {closed}"
        );
        return closed;
    }
    let code = opened["code"].as_str().unwrap();
    assert!(
        ["import_failed", "no_device"].contains(&code),
        "{case}: {opened}"
    );
    let message = opened["message"].as_str().unwrap();
    assert!(
        message.contains(case.split(':').next().unwrap()),
        "{case}: {opened}"
    );
    opened
}

/// What a client that has a context calls to open and to close, each function once.
fn functions(gpus: &Gpus, client: &mut Holder) -> BTreeSet<String> {
    open_and_close(client, "before");
    let from = gpus.log_bytes();
    open_and_close(client, "counting");
    let calls = gpus.calls_since(client.pid(), from);
    calls.into_iter().map(|(function, _)| function).collect()
}

fn every_call_may_fail(sharing: &str) {
    let (_dir, gpus, node) = start(sharing);
    let mut client = gpus.holder(&node);
    let functions = functions(&gpus, &mut client);
    assert!(functions.len() > 4, "{functions:?}");
    let mut cases = 0;
    for function in &functions {
        for code in PASSING {
            let number: u32 = code.trim_end_matches(":once").parse().unwrap();
            for nth in 1.. {
                let case = format!("{function}:{number}:{nth}:once");
                let from = gpus.log_bytes();
                gpus.faults_of(client.pid(), &case);
                open_and_close(&mut client, &case);
                gpus.faults_of(client.pid(), "");
                assert_eq!(client.must(&json!(["deferred"]))["left"], 0, "{case}");
                until_no_lease(&node, &case);
                cases += 1;
                let calls = gpus.calls_since(client.pid(), from);
                if !calls.contains(&(function.clone(), number)) {
                    break;
                }
            }
        }
        open_on(&mut client, "m", "m", "cuda:0");
        assert_same_tensors(&mut client, "m", "m");
        client.close("m");
        until_no_lease(&node, function);
    }
    assert!(
        cases >= 2 * PASSING.len() * functions.len(),
        "{cases} cases"
    );
    // Nothing of all that stayed mapped: the memory is free when the daemon lets go of it.
    let before = client.must(&json!(["device-free"]))["bytes"]
        .as_u64()
        .unwrap();
    assert_eq!(node.post("/v1/models/m/unpin").0, 200);
    assert_eq!(node.post("/v1/models/m/evict").0, 200);
    let after = client.must(&json!(["device-free"]))["bytes"]
        .as_u64()
        .unwrap();
    assert_eq!(after - before, 4 * MIB);
}

#[test]
fn every_call_of_a_client_may_fail() {
    every_call_may_fail("vmm");
}

#[test]
fn every_call_of_a_client_with_legacy_handles_may_fail() {
    every_call_may_fail("legacy");
}

#[test]
fn a_client_whose_context_is_spoilt_harms_only_itself() {
    let (_dir, gpus, node) = start("vmm");
    let mut well = gpus.holder(&node);
    let functions = functions(&gpus, &mut gpus.holder(&node));
    open_on(&mut well, "m", "m", "cuda:0");
    for (function, code) in functions.iter().zip(LASTING.iter().cycle()) {
        let mut client = gpus.holder(&node);
        open_and_close(&mut client, "before");
        let case = format!("{function}:{code}");
        let from = gpus.log_bytes();
        gpus.faults_of(client.pid(), &case);
        open_and_close(&mut client, &case);
        let calls = gpus.calls_since(client.pid(), from);
        assert!(
            calls.contains(&(function.clone(), *code)),
            "{case} did not strike"
        );
        client.must(&json!(["open", "h", "m", 60_000]));
        client.kill();
        eventually(&case, || (node.number("/leases") == 1).then_some(()));
        assert_eq!(device_field(&node, 0, "state"), "ready", "{case}");
    }
    assert_same_tensors(&mut well, "m", "m");
}

#[test]
fn a_client_that_cannot_begin_says_so_and_takes_the_host() {
    let (_dir, gpus, node) = start("vmm");
    open_on(&mut gpus.holder(&node), "m", "m", "cuda:0");
    let mut client = gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    let calls: BTreeSet<String> = gpus.calls(client.pid()).into_iter().collect();
    client.kill();
    assert!(calls.len() > 15, "{calls:?}");
    for (function, code) in calls.iter().zip(PASSING.iter().cycle()) {
        let faults = format!("{function}:{code}");
        let mut client = gpus.holder_with(&node, &[("MRM_FAKE_CUDA_FAULTS", &faults)]);
        let opened = client.ask(&json!(["open-on", "m", "m", "cuda:0", 60_000]));
        if opened["ok"] == false {
            let code = opened["code"].as_str().unwrap();
            let clear = ["no_device", "device_not_visible", "import_failed"];
            assert!(clear.contains(&code), "{faults}: {opened}");
        }
        client.must(&json!(["open", "h", "m", 60_000]));
        drop(client);
        until_no_lease(&node, &faults);
        // Whoever takes what there is gets it, but for what fails after the daemon gave a device.
        let mut client = gpus.holder_with(&node, &[("MRM_FAKE_CUDA_FAULTS", &faults)]);
        let best = client.ask(&json!(["open-on", "m", "m", "best", 60_000]));
        assert!(
            best["ok"] == true || best["code"] == "import_failed",
            "{faults}: {best}"
        );
        drop(client);
        until_no_lease(&node, &faults);
    }
}

#[test]
fn who_writes_through_a_mapping_harms_only_itself() {
    let (_dir, gpus, node) = start("vmm");
    let (mut good, mut bad) = (gpus.holder(&node), gpus.holder(&node));
    open_on(&mut good, "m", "m", "cuda:0");
    open_on(&mut bad, "m", "m", "cuda:0");
    assert_eq!(device_field(&node, 0, "leases"), 2);
    bad.send(&json!(["device-write", "m"]));
    eventually("it is dead", || {
        (device_field(&node, 0, "leases") == 1).then_some(())
    });
    assert_eq!(bad.try_receive(), None, "the write was not refused");
    assert_same_tensors(&mut good, "m", "m");
    let mut next = gpus.holder(&node);
    assert_eq!(open_on(&mut next, "m", "m", &uuid(0))["origin"], "hit");
    assert_same_tensors(&mut next, "m", "m");
}
