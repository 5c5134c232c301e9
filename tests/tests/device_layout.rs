//! How models are divided into allocations on a device: `granularity`, and what cannot be laid out.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on, try_open_on};
use mrm_tests::node::Node;
use mrm_tests::{Random, model};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
/// What the pretended device rounds allocations up to.
const UNIT: u64 = 2 * MIB;
/// More than the descriptors of one frame.
const MANY: usize = 260;

/// Writes tensors of these sizes, of bytes, one behind the other: at odd places mostly.
fn write_bytes(dir: &Path, file: &str, sizes: &[usize], seed: u64) -> PathBuf {
    let mut header = Map::new();
    let mut at = 0;
    for (index, bytes) in sizes.iter().enumerate() {
        let offsets = [at, at + bytes];
        let entry = json!({"dtype": "U8", "shape": [bytes], "data_offsets": offsets});
        header.insert(format!("t{index:05}"), entry);
        at += bytes;
    }
    let mut data = vec![0; at];
    Random(seed).fill(&mut data);
    let text = Value::Object(header).to_string();
    let path = dir.join(file);
    fs::write(&path, model::with_header(text.as_bytes(), &data)).unwrap();
    path
}

/// What the documentation of `granularity = "block"` says, anew.
fn blocks(sizes: &[u64], block_bytes: u64) -> Vec<u64> {
    let mut blocks: Vec<u64> = Vec::new();
    for bytes in sizes {
        let within = blocks.last().map(|end| end.next_multiple_of(256) + bytes);
        match (within, blocks.last_mut()) {
            (Some(end), Some(last)) if end <= block_bytes => *last = end,
            _ => blocks.push(*bytes),
        }
    }
    blocks
}

#[test]
fn each_model_has_the_granularity_that_its_entry_says() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [
        700_001, 300_000, 5, 1_500_000, 3_000_001, 9, 2_000_000, 90_000,
    ];
    let in_blocks = blocks(&sizes.map(|bytes| bytes as u64), 2 * MIB);
    assert!((3..sizes.len()).contains(&in_blocks.len()), "{in_blocks:?}");
    let path = |name: &str, seed| write_bytes(dir.path(), name, &sizes, seed);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup_of(
        "",
        "enabled = \"yes\"\ngranularity = \"block\"\nblock_bytes = \"2MiB\"",
    );
    let node = Node::start(
        &setup
            .model_with(
                "whole",
                &path("a.safetensors", 1),
                "granularity = \"model\"",
            )
            .model("blocks", &path("b.safetensors", 2))
            .model_with(
                "each",
                &path("c.safetensors", 3),
                "granularity = \"tensor\"",
            ),
    );
    let mut client = gpus.holder(&node);
    let rounded = |bytes: u64| bytes.next_multiple_of(UNIT);
    let whole: u64 = sizes
        .iter()
        .map(|bytes| bytes.next_multiple_of(256) as u64)
        .sum();
    let expected = [
        ("whole", 1, rounded(whole)),
        (
            "blocks",
            in_blocks.len(),
            in_blocks.iter().map(|bytes| rounded(*bytes)).sum(),
        ),
        (
            "each",
            sizes.len(),
            sizes.iter().map(|bytes| rounded(*bytes as u64)).sum(),
        ),
    ];
    let mut charged = 0;
    for (name, allocations, bytes) in expected {
        let opened = open_on(&mut client, name, name, "cuda:0");
        assert_eq!(opened["allocations"], allocations, "{name}");
        assert_same_tensors(&mut client, name, name);
        charged += bytes;
        assert_eq!(device_field(&node, 0, "charged_bytes"), charged, "{name}");
    }
    assert_eq!(device_field(&node, 0, "granularity"), "block");
    assert_eq!(device_field(&node, 0, "block_bytes"), 2 * MIB);
}

#[test]
fn one_file_may_be_on_the_device_in_two_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_bytes(dir.path(), "m.safetensors", &[3, 5, 7], 4);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup().model("whole", &path);
    let node = Node::start(&setup.model_with("each", &path, "granularity = \"tensor\""));
    let mut client = gpus.holder(&node);
    assert_eq!(open_on(&mut client, "a", "whole", "cuda")["allocations"], 1);
    assert_eq!(open_on(&mut client, "b", "each", "cuda")["allocations"], 3);
    assert_same_tensors(&mut client, "a", "whole");
    assert_same_tensors(&mut client, "b", "each");
    assert_eq!(device_field(&node, 0, "charged_bytes"), 4 * UNIT);
}

#[test]
fn more_allocations_than_a_frame_has_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_bytes(dir.path(), "m.safetensors", &[1001; MANY], 5);
    for sharing in ["vmm", "legacy"] {
        let gpus = Gpus::new(1, 2048 * MIB);
        let lines = format!("enabled = \"yes\"\ngranularity = \"tensor\"\nsharing = \"{sharing}\"");
        let node = Node::start(&gpus.setup_of("", &lines).model("m", &path));
        let baseline = node.fds();
        let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
        for (client, origin) in [(&mut one, "loaded"), (&mut two, "hit")] {
            let opened = open_on(client, "m", "m", "cuda:0");
            assert_eq!(opened["allocations"], MANY);
            assert_eq!(
                (&opened["origin"], &opened["sharing"]),
                (&json!(origin), &json!(sharing))
            );
            assert_same_tensors(client, "m", "m");
        }
        assert_eq!(device_field(&node, 0, "charged_bytes"), MANY as u64 * UNIT);
        drop((one, two));
        node.until_idle();
        assert_eq!(node.post("/v1/models/m/evict").0, 200);
        // What the first fill made stays: a stream, a ring of staging buffers.
        assert!(
            node.fds() < baseline + 40,
            "{} after {baseline}",
            node.fds()
        );
    }
}

#[test]
fn what_has_too_many_allocations_says_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_bytes(dir.path(), "m.safetensors", &[16; 4097], 6);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup().model("fine", &path);
    let node = Node::start(&setup.model_with("m", &path, "granularity = \"tensor\""));
    let mut client = gpus.holder(&node);
    let refused = try_open_on(&mut client, "m", "m", "cuda:0");
    assert_eq!(refused["code"], "too_many_allocations", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("4096") && message.contains("granularity"),
        "{message}"
    );
    assert_eq!(refused["retryable"], false);
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
    let host = open_on(&mut client, "best", "m", "best");
    assert_eq!(host["device"], Value::Null, "{host}");
    assert!(host["why_host"].is_string(), "{host}");
    assert_eq!(
        open_on(&mut client, "fine", "fine", "cuda:0")["allocations"],
        1
    );
    assert_same_tensors(&mut client, "fine", "fine");
}

#[test]
fn a_file_of_no_known_format_has_nothing_for_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut client = gpus.holder(&node);
    let refused = try_open_on(&mut client, "m", "m", "cuda:0");
    assert_eq!(refused["code"], "no_tensors", "{refused}");
    assert!(
        refused["message"].as_str().unwrap().contains("host memory"),
        "{refused}"
    );
    let host = open_on(&mut client, "m", "m", "best");
    assert_eq!(host["device"], Value::Null, "{host}");
    client.assert_equal("m", &[&path]);
}

#[test]
fn tensors_at_odd_places_and_of_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let odd = [1, 0, 255, 256, 257, 0, 0, 65_537, 3, 1 << 20, 0];
    let odd = write_bytes(dir.path(), "odd.safetensors", &odd, 8);
    let empty = write_bytes(dir.path(), "empty.safetensors", &[0, 0], 9);
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(
        &gpus
            .setup()
            .model("odd", &odd)
            .model_with("each", &odd, "granularity = \"tensor\"")
            .model("empty", &empty),
    );
    let mut client = gpus.holder(&node);
    for (name, allocations) in [("odd", 1), ("each", 7), ("empty", 0)] {
        let opened = open_on(&mut client, name, name, "cuda:0");
        assert_eq!(opened["allocations"], allocations, "{name}");
        assert_same_tensors(&mut client, name, name);
        assert_eq!(
            open_on(&mut gpus.holder(&node), name, name, "cuda:0")["origin"],
            "hit"
        );
    }
}

#[test]
fn the_shards_of_a_model_become_one_image() {
    let dir = tempfile::tempdir().unwrap();
    model::write_sharded(&dir.path().join("m"), 5, 700_000, 10);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup().model("m", &dir.path().join("m"));
    let node = Node::start(&setup);
    let mut client = gpus.holder(&node);
    assert_eq!(open_on(&mut client, "m", "m", "cuda:0")["allocations"], 1);
    assert_same_tensors(&mut client, "m", "m");
    assert_eq!(device_field(&node, 0, "images"), 1);
}
