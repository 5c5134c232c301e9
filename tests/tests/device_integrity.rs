//! What is on a device is read back and compared with what was loaded.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails loudly"
)]

use mrm_tests::gpus::{Gpus, assert_same_tensors, open_on, uuid};
use mrm_tests::node::{Node, program};
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// The outcome for each part that `mrm verify` finds, and its exit status.
fn verify(node: &Node) -> (Option<i32>, Vec<(String, String)>, Value) {
    let output = std::process::Command::new(program("mrm"))
        .args(["verify", "m", "--json", "--status-socket"])
        .arg(node.status_socket())
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let segments = document["results"][0]["segments"].as_array().unwrap();
    let word = |segment: &Value, field: &str| segment[field].as_str().unwrap().to_owned();
    let found = segments.iter();
    let mut found: Vec<_> = found
        .map(|segment| (word(segment, "part"), word(segment, "outcome")))
        .collect();
    found.sort();
    (output.status.code(), found, document)
}

fn outcomes(parts: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(part, outcome): &(&str, &str)| ((*part).to_owned(), (*outcome).to_owned());
    parts.iter().map(owned).collect()
}

/// The smallest device memory that the daemon has and that is so large: its context has more.
fn device_memory(node: &Node, bytes: u64) -> PathBuf {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let sized = fds.flatten().filter_map(|fd| {
        let target = std::fs::read_link(fd.path()).ok()?;
        let target = target.to_string_lossy();
        let length = std::fs::metadata(fd.path()).ok()?.len();
        let fits = target.starts_with("/memfd:mrm-fake-cuda:") && length >= bytes;
        fits.then(|| (length, fd.path()))
    });
    sized.min().expect("the daemon has memory of a device").1
}

#[test]
fn an_image_is_checked_with_and_without_its_host_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut holder = gpus.holder(&node);
    open_on(&mut holder, "held", "m", "cuda:0");
    let (code, found, all) = verify(&node);
    let intact = [("file", "intact"), ("image", "intact"), ("table", "intact")];
    assert_eq!((code, found), (Some(0), outcomes(&intact)), "{all}");
    // Its header is then read from the file.
    assert_eq!(node.post("/v1/models/m/evict?tier=host").0, 200);
    let (code, found, all) = verify(&node);
    let intact = [("image", "intact"), ("table", "intact")];
    assert_eq!((code, found), (Some(0), outcomes(&intact)), "{all}");
    // Without the file it cannot be told, and nobody is blamed.
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    let (code, found, all) = verify(&node);
    let unchecked = [("image", "unchecked"), ("table", "intact")];
    assert_eq!((code, found), (Some(0), outcomes(&unchecked)), "{all}");
}

#[test]
fn an_image_that_is_damaged_is_filled_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut holder = gpus.holder(&node);
    open_on(&mut holder, "held", "m", "cuda:0");
    let memory = std::fs::File::options()
        .read(true)
        .write(true)
        .open(device_memory(&node, 5 * MIB))
        .unwrap();
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 3 * MIB).unwrap();
    memory.write_all_at(&[byte[0] ^ 4], 3 * MIB).unwrap();

    let (code, found, all) = verify(&node);
    let damaged = [
        ("file", "intact"),
        ("image", "damaged"),
        ("table", "intact"),
    ];
    assert_eq!((code, found), (Some(1), outcomes(&damaged)), "{all}");
    let why = eventually("its holder is told", || {
        let told = holder.ask(&json!(["lost", "held"]));
        (told["ok"] == true).then_some(told)
    });
    assert_eq!(why["code"], 604, "{why}");
    assert!(why["message"].as_str().unwrap().contains(&uuid(0)), "{why}");
    // Its file is looked at before anything is loaded, and nothing is under way until then.
    eventually("it is filled again", || {
        let model = node.get("/v1/models/m");
        (model["devices"][0]["state"] == "resident").then_some(())
    });
    let mut other = gpus.holder(&node);
    let found = open_on(&mut other, "again", "m", "cuda:0");
    assert_eq!(
        found["origin"], "hit",
        "it was filled without being asked for: {found}"
    );
    assert_same_tensors(&mut other, "again", "m");
    holder.close("held");
    let (code, _, all) = verify(&node);
    assert_eq!(code, Some(0), "{all}");
}
