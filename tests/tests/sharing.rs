//! One copy on a node: whatever the route, whoever asks, whoever dies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_client::{Client, Fault, ModelKind, OpenOptions};
use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, Setup};
use mrm_tests::{checksum, eventually, model};
use nix::sys::signal::Signal::SIGSTOP;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn holder(node: &Node) -> Holder {
    Holder::start(&node.socket())
}

/// How many loads of files the daemon began.
fn loads(node: &Node) -> usize {
    let events = node.get("/v1/events?since=0&limit=1024");
    let events = events["events"].as_array().unwrap();
    events
        .iter()
        .filter(|event| event["kind"] == "load_started")
        .count()
}

fn digests(node: &Node, name: &str) -> Vec<Value> {
    let model = node.get(&format!("/v1/models/{name}"));
    let segments = model["segments"].as_array().unwrap();
    segments
        .iter()
        .map(|segment| segment["digest"].clone())
        .collect()
}

/// Name, shape and checksum of each tensor, by a reading of the header that is not ours.
fn expected_tensors(images: &[&[u8]]) -> BTreeMap<String, Value> {
    let mut expected = BTreeMap::new();
    for image in images {
        let length = u64::from_le_bytes(image[..8].try_into().unwrap());
        let data = 8 + usize::try_from(length).unwrap();
        let header: BTreeMap<String, Value> = serde_json::from_slice(&image[8..data]).unwrap();
        for (name, entry) in header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
        {
            let at = |i: usize| {
                data + usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap()
            };
            let sum = checksum(&image[at(0)..at(1)]);
            expected.insert(name, json!([entry["dtype"], entry["shape"], sum]));
        }
    }
    expected
}

#[test]
fn every_route_to_one_content_shares_one_copy() {
    let dir = dir();
    let (path, image) = model::write(dir.path(), "m.safetensors", 8 * MIB, 5, 11);
    let other = |file: &str| dir.path().join(file);
    fs::hard_link(&path, other("hard.safetensors")).unwrap();
    symlink(&path, other("soft.safetensors")).unwrap();
    fs::copy(&path, other("copy.safetensors")).unwrap();
    let mut setup = Setup::new().model("name", &path).model("again", &path);
    for file in ["hard", "soft", "copy"] {
        setup = setup.model(file, &other(&format!("{file}.safetensors")));
    }
    let node = Node::start_in(dir, &setup);
    let path = node.dir.path().join("m.safetensors");
    let names = ["name", "again", "hard", "soft", "copy"];
    let mut holders: Vec<Holder> = names.iter().map(|_| holder(&node)).collect();
    for (holder, name) in holders.iter_mut().zip(names) {
        holder.open("m", name);
    }
    // Descriptors of the file itself, of its copy, and of a file with the same bytes elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let passed = [
        path.clone(),
        node.dir.path().join("copy.safetensors"),
        elsewhere.path().join("x.safetensors"),
    ];
    fs::write(&passed[2], &image).unwrap();
    for file in &passed {
        let mut by_fd = holder(&node);
        by_fd.must(&json!(["path", "m", file]));
        holders.push(by_fd);
    }
    for holder in &mut holders {
        holder.assert_equal("m", &[&path]);
    }
    let all: BTreeSet<String> = names
        .iter()
        .map(|name| digests(&node, name)[0].to_string())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    eventually("second copies are freed", || {
        (node.number("/host/freeing_bytes") == 0).then_some(())
    });
    let resident = node.number("/host/resident_bytes");
    let bytes = image.len() as u64;
    assert!(
        resident < bytes + bytes / 4,
        "{resident} bytes are resident for one model of {bytes}"
    );
    assert_eq!(node.number("/leases"), 8);
    assert_eq!(
        loads(&node),
        3,
        "the file, and two files whose bytes had to be read to be known"
    );
}

#[test]
fn two_first_opens_at_the_same_time_load_once() {
    let dir = dir();
    let (path, _) = model::write(dir.path(), "m.safetensors", 32 * MIB, 5, 12);
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    let mut both = [holder(&node), holder(&node)];
    for holder in &mut both {
        holder.send(&json!(["open", "m", "m", 60_000]));
    }
    let origins = both
        .each_mut()
        .map(|holder| holder.receive()["origin"].as_str().unwrap().to_owned());
    println!("origins: {origins:?}");
    assert_eq!(loads(&node), 1);
    assert_eq!(
        origins.iter().filter(|origin| *origin == "loaded").count(),
        1,
        "{origins:?}"
    );
    for holder in &mut both {
        holder.assert_equal("m", &[&path]);
    }
}

#[test]
fn a_rewritten_file_is_another_version() {
    let dir = dir();
    let (path, old) = model::write(dir.path(), "m.safetensors", MIB, 3, 13);
    let kept = dir.path().join("kept");
    fs::write(&kept, &old).unwrap();
    let node = Node::start_in(
        dir,
        &Setup::new().setting("revalidate_ms = 0").model("m", &path),
    );
    let (mut first, mut second) = (holder(&node), holder(&node));
    let before = first.open("m", "m");
    let (_, new) = model::write(node.dir.path(), "m.safetensors", MIB, 3, 14);
    assert_eq!(old.len(), new.len());
    let after = second.open("m", "m");
    assert_ne!(before["version"], after["version"]);
    second.assert_equal("m", &[&path]);
    first.assert_equal("m", &[&kept]);
    assert_eq!(node.number("/leases"), 2);
    // Replaced by renaming, and shorter.
    let (shorter, _) = model::write(node.dir.path(), "next", MIB / 2, 3, 15);
    fs::rename(shorter, &path).unwrap();
    let mut third = holder(&node);
    third.open("m", "m");
    third.assert_equal("m", &[&path]);
    first.assert_equal("m", &[&kept]);
}

#[test]
fn a_sharded_model_has_every_byte_and_tensor() {
    let dir = dir();
    let files = model::write_sharded(&dir.path().join("big"), 5, 3 * MIB + 4096, 16);
    let folder = dir.path().join("big");
    let node = Node::start_in(dir, &Setup::new().model("big", &folder));
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| folder.join(name)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let shards: Vec<&[u8]> = files[..5].iter().map(|(_, image)| &image[..]).collect();
    let expected = json!(expected_tensors(&shards));
    let (mut by_name, mut by_fd) = (holder(&node), holder(&node));
    by_name.open("m", "big");
    by_fd.must(&json!(["path", "m", folder]));
    for holder in [&mut by_name, &mut by_fd] {
        holder.assert_equal("m", &paths);
        assert_eq!(holder.must(&json!(["tensors", "m"]))["tensors"], expected);
    }
    assert_eq!(loads(&node), 6, "each shard and the index, once");
}

#[test]
fn tensors_are_those_of_the_file() {
    let dir = dir();
    let (path, image) = model::write(dir.path(), "m.safetensors", 5 * MIB, 37, 17);
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    let mut holder = holder(&node);
    holder.open("m", "m");
    let tensors = holder.must(&json!(["tensors", "m"]));
    assert_eq!(tensors["tensors"], json!(expected_tensors(&[&image])));
}

#[test]
fn any_other_file_is_one_opaque_blob() {
    let dir = dir();
    let path = dir.path().join("weights.bin");
    let bytes: Vec<u8> = (0..3 * MIB + 123).map(|i| (i % 251) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let node = Node::start_in(dir, &Setup::new().model("blob", &path));
    let client = node.client();
    for blob in [
        client.open("blob").unwrap(),
        client.open_path(&path).unwrap(),
    ] {
        assert_eq!(blob.kind().unwrap(), ModelKind::Opaque);
        assert_eq!(blob.tensors().unwrap().len(), 0);
        assert_eq!(blob.segment(0).unwrap().bytes(), bytes);
    }
    assert_eq!(loads(&node), 1);
}

#[test]
fn a_hub_cache_is_served_by_its_own_names() {
    let dir = dir();
    let cache = dir.path().join("hub");
    let model = cache.join("models--org--tiny");
    let (blob, image) = model::write(&model, "blobs/0a1b", MIB, 2, 18);
    for (revision, target) in [("aaaa", "../../blobs/0a1b"), ("bbbb", "../../blobs/0a1b")] {
        let snapshot = model.join("snapshots").join(revision);
        fs::create_dir_all(&snapshot).unwrap();
        symlink(target, snapshot.join("model.safetensors")).unwrap();
    }
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), "aaaa").unwrap();
    let root = format!("[[catalogue]]\nroot = {cache:?}");
    let node = Node::start_in(dir, &Setup::new().setting(&root));
    let client = node.client();
    for name in ["org/tiny", "org/tiny@bbbb"] {
        let opened = client.open(name).unwrap();
        assert_eq!(opened.segment(0).unwrap().bytes(), image, "{name}");
        assert_eq!(opened.tensors().unwrap().len(), 2);
    }
    assert_eq!(loads(&node), 1, "revisions share {}", blob.display());
}

/// Kills the holder; returns how long the books took to forget it.
fn kill_and_time(node: &Node, holder: &mut Holder) -> std::time::Duration {
    let pid = u64::from(holder.pid());
    let began = Instant::now();
    holder.kill();
    eventually("the dead client is off the books", || {
        let sessions = node.get("/v1/sessions");
        let sessions = sessions["sessions"].as_array().unwrap();
        let there = sessions
            .iter()
            .any(|session| session["pid"].as_u64() == Some(pid));
        (!there && node.number("/leases") == 0).then_some(())
    });
    began.elapsed()
}

#[test]
fn a_killed_client_is_gone_from_the_books() {
    let dir = dir();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 3, 19);
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    let mut plain = holder(&node);
    plain.open("m", "m");
    assert_eq!(
        node.get("/v1/sessions")["sessions"][0]["models"][0]["name"],
        "m"
    );
    println!(
        "killed: released after {:?}",
        kill_and_time(&node, &mut plain)
    );

    // A child keeps the socket open, and the client is stopped when it is killed.
    let mut forked = holder(&node);
    forked.open("m", "m");
    let child = forked.fork_idle();
    forked.signal(SIGSTOP);
    println!(
        "killed, with a forked child: released after {:?}",
        kill_and_time(&node, &mut forked)
    );
    nix::sys::signal::kill(child, None).expect("the child lives on");
    node.until_idle();
}

#[test]
fn a_forked_child_opens_for_itself() {
    let dir = dir();
    let (a, _) = model::write(dir.path(), "a.safetensors", MIB, 3, 20);
    let (b, _) = model::write(dir.path(), "b.safetensors", MIB, 3, 21);
    let node = Node::start_in(dir, &Setup::new().model("a", &a).model("b", &b));
    let mut parent = holder(&node);
    parent.open("a", "a");
    for (name, file) in [("b", &b), ("a", &a)] {
        parent.must(&json!(["fork-open", "a", name, [file]]));
        node.until_leases(1);
        parent.assert_equal("a", &[&a]);
    }
    parent.open("b", "b");
    assert_eq!(node.number("/leases"), 2);
    assert_eq!(
        node.number("/sessions"),
        1,
        "the parent's session is the one it had"
    );
    parent.close("a");
    node.until_leases(1);
}

#[test]
fn clients_outlive_a_killed_daemon_and_find_the_next() {
    let dir = dir();
    let (a, image) = model::write(dir.path(), "a.safetensors", 4 * MIB, 3, 22);
    let (b, other) = model::write(dir.path(), "b.safetensors", MIB, 3, 23);
    let setup = Setup::new().model("a", &a).model("b", &b);
    let mut node = Node::start_in(dir, &setup);
    let client: Client = node.client();
    let mut process = holder(&node);
    let held = client.open("a").unwrap();
    process.open("a", "a");
    node.kill();
    assert_eq!(held.segment(0).unwrap().bytes(), image);
    process.assert_equal("a", &[&a]);
    let soon = OpenOptions::new().wait(Duration::from_millis(200));
    let nobody = client.open_with("b", &soon).unwrap_err();
    assert!(nobody.retryable(), "{nobody}");

    node.restart(&setup);
    process.open("b", "b");
    process.assert_equal("b", &[&b]);
    let again = client.open("b").unwrap();
    assert_eq!(again.segment(0).unwrap().bytes(), other);
    // The old lease died with the old daemon: the name is opened anew, not served from it.
    let renewed = client.open("a").unwrap();
    assert_eq!(renewed.segment(0).unwrap().bytes(), image);
    assert!(!renewed.same_open(&held));
    assert_eq!(node.number("/leases"), 3);
    drop((held, renewed, again, client, process));
    node.until_idle();
}
