//! What a daemon makes of the devices that it finds when it starts.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, try_open_on, uuid};
use mrm_tests::node::{self, Node, Setup};
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const NO_VMM: &str = "MRM_FAKE_CUDA_NO_VMM";

struct Files {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB, 7, 1);
    Files { _dir: dir, path }
}

fn gpus() -> Gpus {
    Gpus::new(1, 256 * MIB)
}

/// What a daemon says that does not start.
fn refused(setup: &Setup) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = node::command(dir.path(), setup).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it started: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn assert_names(text: &str, names: &[&str]) {
    for name in names {
        assert!(text.contains(name), "{name:?} is not in {text:?}");
    }
}

/// Host memory goes on, and an open on the device says why it does not.
fn assert_host_only(gpus: &Gpus, node: &Node, why: &[&str]) {
    let mut client = gpus.holder(node);
    client.open("h", "m");
    let refused = try_open_on(&mut client, "d", "m", &uuid(0));
    assert_eq!(refused["ok"], false, "{refused}");
    assert_names(refused["message"].as_str().unwrap(), why);
    let best = open_on(&mut client, "b", "m", "best");
    assert_eq!(best["device"], Value::Null, "{best}");
    assert!(best["why_host"].is_string(), "{best}");
}

#[test]
fn legacy_sharing_when_it_is_asked_for() {
    let (files, gpus) = (files(), gpus());
    let setup = gpus.setup_of("", "enabled = \"yes\"\nsharing = \"legacy\"");
    let mut node = Node::start(&setup.model("m", &files.path));
    assert_eq!(device_field(&node, 0, "sharing"), "legacy");
    let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
    assert_eq!(open_on(&mut one, "m", "m", "cuda:0")["sharing"], "legacy");
    assert_eq!(open_on(&mut two, "m", "m", "cuda:0")["origin"], "hit");
    assert_same_tensors(&mut one, "m", "m");
    assert_same_tensors(&mut two, "m", "m");
    one.kill();
    two.close("m");
    node.until_leases(0);
    assert_eq!(node.post("/v1/models/m/evict").0, 200);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
    // Such memory is gone with the daemon, and the client can tell.
    open_on(&mut two, "m", "m", "cuda:0");
    assert_eq!(two.ask(&json!(["lost", "m"]))["ok"], false);
    node.kill();
    eventually("the client knows", || {
        (two.ask(&json!(["lost", "m"]))["ok"] == true).then_some(())
    });
}

#[test]
fn auto_falls_back_to_legacy_and_says_why() {
    let files = files();
    let import_fails = "cuMemImportFromShareableHandle:999:1+";
    let cases = [
        (NO_VMM, "1", "virtual memory"),
        ("MRM_FAKE_CUDA_NO_POSIX_FD", "1", "descriptor"),
        (
            "MRM_FAKE_CUDA_FAULTS",
            import_fails,
            "cuMemImportFromShareableHandle",
        ),
    ];
    for (variable, value, why) in cases {
        let gpus = gpus().with(variable, value);
        let node = Node::start(&gpus.setup().model("m", &files.path));
        assert_eq!(device_field(&node, 0, "sharing"), "legacy", "{variable}");
        let said = device_field(&node, 0, "sharing_why");
        assert_names(said.as_str().unwrap(), &[why]);
        let degraded = node.get("/v1/status")["degraded"].clone();
        let mut degraded = degraded.as_array().unwrap().iter();
        let path = degraded
            .find(|path| path["id"] == "device_sharing")
            .unwrap();
        assert_names(path["cause"].as_str().unwrap(), &[&uuid(0), why]);
        let mut client = gpus.holder(&node);
        open_on(&mut client, "m", "m", "cuda:0");
        assert_same_tensors(&mut client, "m", "m");
    }
}

#[test]
fn a_mechanism_that_is_wanted_and_not_there_refuses_the_device() {
    let files = files();
    for (variable, sharing) in [(NO_VMM, "vmm"), ("MRM_FAKE_CUDA_NO_IPC", "legacy")] {
        let gpus = gpus().with(variable, "1");
        let with = |enabled: &str| {
            let lines = format!("enabled = \"{enabled}\"\nsharing = \"{sharing}\"");
            gpus.setup_of("", &lines).model("m", &files.path)
        };
        let node = Node::start(&with("auto"));
        assert_eq!(device_field(&node, 0, "state"), "refused");
        let cause = device_field(&node, 0, "cause");
        assert_names(cause.as_str().unwrap(), &[sharing]);
        assert_host_only(&gpus, &node, &[]);
        assert_names(
            &refused(&with("yes")),
            &["device.enabled", &uuid(0), sharing],
        );
    }
}

/// A machine, what `/v1/status` calls it, and what its cause has in it.
fn broken_drivers() -> Vec<(Gpus, &'static str, &'static str)> {
    let nowhere = tempfile::tempdir().unwrap();
    let without = gpus().with_library_dir(nowhere.path());
    let old = gpus().with("MRM_FAKE_CUDA_DRIVER_VERSION", "11030");
    vec![
        (without, "no_driver", "libcuda.so.1"),
        (
            gpus().with("MRM_FAKE_CUDA_INIT_ERROR", "34"),
            "stub",
            "stub",
        ),
        (
            gpus().with("MRM_FAKE_CUDA_DEVICES", "0"),
            "no_device",
            "no device",
        ),
        (
            gpus().with("CUDA_VISIBLE_DEVICES", ""),
            "no_device",
            "CUDA_VISIBLE_DEVICES",
        ),
        (old, "too_old", "11.3"),
        (
            gpus().without_symbols(&["cuMemGetInfo_v2"]),
            "symbol_missing",
            "cuMemGetInfo_v2",
        ),
        (
            gpus().with("MRM_FAKE_CUDA_INIT_ERROR", "999"),
            "init_failed",
            "999",
        ),
        (
            gpus().with("MRM_FAKE_CUDA_INIT_ERROR", "4242"),
            "init_failed",
            "4242",
        ),
    ]
}

#[test]
fn each_way_in_which_a_driver_can_fail_is_told_apart() {
    let files = files();
    for (gpus, state, cause) in broken_drivers() {
        let with = |enabled: &str| {
            let lines = format!("enabled = \"{enabled}\"");
            gpus.setup_of("", &lines).model("m", &files.path)
        };
        let node = Node::start(&with("auto"));
        let driver = node.get("/v1/status")["devices"]["driver"].clone();
        assert_eq!(driver["state"], state, "{driver}");
        assert_names(driver["cause"].as_str().unwrap(), &[cause]);
        let cure = driver["cure"].as_str().unwrap().to_owned();
        assert!(!cure.is_empty(), "{driver}");
        assert_host_only(&gpus, &node, &[]);
        assert_names(&refused(&with("yes")), &["device.enabled", cause, &cure]);
    }
}

#[test]
fn a_daemon_that_uses_no_devices_does_not_look_for_them() {
    let (files, gpus) = (files(), gpus().logged());
    let setup = gpus.setup_of("", "enabled = \"no\"");
    let node = Node::start(&setup.model("m", &files.path));
    let driver = node.get("/v1/status")["devices"]["driver"].clone();
    assert_eq!(driver["state"], "disabled", "{driver}");
    assert_host_only(&gpus, &node, &["device tier"]);
    assert_eq!(gpus.calls(node.pid()), [""; 0]);
}

#[test]
fn settings_that_no_device_can_have_are_refused() {
    let gpus = Gpus::new(2, 256 * MIB);
    let with = |lines: &str| gpus.setup_of("", &format!("enabled = \"yes\"\n{lines}"));
    let slice = "uuids = [\"MIG-f06d726d-face-4cda-8000-0000000000f0\"]";
    assert_names(
        &refused(&with(slice)),
        &["device.uuids", "MIG slice", "whole device"],
    );
    let large = with("budget_bytes = \"300MiB\"");
    let total = (256 * MIB).to_string();
    assert_names(
        &refused(&large),
        &["device.budget_bytes", "300MiB", &total, &uuid(0)],
    );
    let own = format!("[device.gpu.\"{}\"]\nbudget_bytes = \"1GiB\"", uuid(1));
    assert_names(&refused(&with(&own)), &["1GiB", &total, &uuid(1)]);
    let nothing = format!("[device.gpu.\"{}\"]\nreserve_bytes = \"256MiB\"", uuid(0));
    assert_names(&refused(&with(&nothing)), &[&uuid(0), "256MiB", "leave 0"]);
    let absent = format!("uuids = [\"{}\"]", uuid(7));
    assert_names(
        &refused(&with(&absent)),
        &[&uuid(7), "not visible", "device.enabled"],
    );
}

#[test]
fn a_device_that_is_not_there_does_not_take_the_others_with_it() {
    let (files, gpus) = (files(), Gpus::new(2, 256 * MIB));
    let lines = format!(
        "enabled = \"yes\"\nuuids = [\"{}\", \"{}\"]\n\
         [device.gpu.\"{}\"]\nbudget_bytes = \"8MiB\"",
        uuid(7),
        uuid(1),
        uuid(1)
    );
    let node = Node::start(&gpus.setup_of("", &lines).model("m", &files.path));
    let state = |at| {
        (
            device_field(&node, at, "uuid"),
            device_field(&node, at, "state"),
        )
    };
    assert_eq!(state(0), (json!(uuid(1)), json!("ready")));
    assert_eq!(state(1), (json!(uuid(7)), json!("refused")));
    assert_eq!(device_field(&node, 0, "budget_bytes"), 8 * MIB);
    let mut client = gpus.holder(&node);
    // Visible to the client, and none of the daemon's.
    let unknown = try_open_on(&mut client, "m", "m", "cuda:0");
    assert_eq!(unknown["code"], "unknown_device", "{unknown}");
    assert_names(
        unknown["message"].as_str().unwrap(),
        &[&uuid(0), &uuid(1), "host memory"],
    );
    assert_eq!(
        open_on(&mut client, "m", "m", "cuda:1")["device"],
        json!(uuid(1))
    );
    assert_eq!(
        open_on(&mut client, "n", "m", "cuda")["device"],
        json!(uuid(1))
    );
}

#[test]
fn whatever_call_fails_while_it_starts_the_daemon_serves() {
    let (files, gpus) = (files(), gpus().logged());
    let setup = |faults: &str| {
        let mut setup = gpus.setup_of("", "").model("m", &files.path);
        let variable = "MRM_FAKE_CUDA_FAULTS".to_owned();
        setup.environment.push((variable, faults.to_owned()));
        setup
    };
    let node = Node::start(&setup(""));
    let functions: BTreeSet<String> = gpus.calls(node.pid()).into_iter().collect();
    drop(node);
    assert!(functions.len() > 20, "{functions:?}");
    let codes = [999, 2, 719, 1, 46, 3, 4242, 100, 214, 101, 700, 200, 201];
    for (function, code) in functions.iter().zip(codes.iter().cycle()) {
        let case = format!("{function}:{code}");
        let node = Node::start(&setup(&case));
        let calls = gpus.calls_since(node.pid(), 0);
        assert!(
            calls.contains(&(function.clone(), *code)),
            "{case} did not strike"
        );
        let found = node.get("/v1/status")["devices"].clone();
        // Served, or explained: the driver as a whole, or the one device.
        let causes = [&found["driver"]["cause"], &found["devices"][0]["cause"]];
        let is_served = found["devices"][0]["state"] == "ready";
        let explained = causes.iter().any(|cause| cause.is_string());
        assert!(is_served || explained, "{case}: {found}");
        let mut client = gpus.holder(&node);
        client.open("h", "m");
        let opened = client.ask(&json!(["open-on", "d", "m", "cuda:0", 60_000]));
        if is_served && code != &719 && code != &214 && code != &700 && code != &46 {
            assert_eq!(opened["ok"], true, "{case}: {opened}");
            assert_same_tensors(&mut client, "d", "m");
        } else if opened["ok"] == false {
            let message = opened["message"].as_str().unwrap();
            assert!(message.len() > 20, "{case}: {opened}");
        }
    }
}
