//! What opens keep free of weights on a device: asked for by clients, and declared for models.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{Gpus, device_field, open_on};
use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, program};
use mrm_tests::survival::{Family, kept};
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Four tensors in 9 MiB, which the pretended device rounds up to 10.
fn written(name: &str, seed: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), name, 9 * MIB, 4, seed);
    (dir, path)
}

fn ask(holder: &mut Holder, alias: &str, name: &str, device: &str, keep_mib: u64) -> Value {
    holder.ask(&json!([
        "open-on",
        alias,
        name,
        device,
        300,
        keep_mib * MIB
    ]))
}

fn must(holder: &mut Holder, alias: &str, name: &str, device: &str, keep_mib: u64) -> Value {
    let opened = ask(holder, alias, name, device, keep_mib);
    assert_eq!(opened["ok"], true, "{opened}");
    opened
}

/// What is kept free, and all that is charged, in MiB.
fn books(node: &Node) -> (u64, u64) {
    let field = |name| device_field(node, 0, name).as_u64().unwrap();
    let (reserved, charged) = (field("reserved_bytes"), field("charged_bytes"));
    assert_eq!((reserved % MIB, charged % MIB), (0, 0));
    (reserved / MIB, charged / MIB)
}

fn until_books(node: &Node, expected: (u64, u64)) {
    eventually("the books are right", || {
        (books(node) == expected).then_some(())
    });
}

#[test]
fn what_a_client_asks_for_is_kept_free_while_it_holds_the_model_and_lives() {
    let (_dir, path) = written("m.safetensors", 7);
    let gpus = Gpus::new(1, 256 * MIB);
    let node = Node::start(&gpus.setup().model("m", &path));
    let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
    must(&mut one, "m", "m", "cuda:0", 40);
    must(&mut two, "m", "m", "cuda:0", 30);
    assert_eq!(books(&node), (70, 80));
    let listed = node.get("/v1/models/m");
    assert_eq!(listed["devices"][0]["reserved_bytes"], 70 * MIB, "{listed}");
    assert_eq!(listed["devices"][0]["bytes"], 10 * MIB, "{listed}");
    let mut status = std::process::Command::new(program("mrm"));
    let status = status
        .arg("status")
        .env("MRM_RUNTIME_DIR", node.runtime_dir());
    let text = String::from_utf8(status.output().unwrap().stdout).unwrap();
    assert!(text.contains("70.0 MiB kept free for clients"), "{text}");
    one.close("m");
    until_books(&node, (30, 40));
    two.kill();
    until_books(&node, (0, 10));
}

#[test]
fn what_the_operator_declares_is_kept_free_for_each_lease_unless_more_is_asked_for() {
    let (_dir, path) = written("m.safetensors", 7);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = gpus.setup();
    let node = Node::start(&setup.model_with("m", &path, "workspace_bytes = \"20MiB\""));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "declared", "m", "cuda:0");
    assert_eq!(books(&node), (20, 30));
    // What a client has open serves it again, unless it asks for more.
    open_on(&mut client, "again", "m", "cuda:0");
    assert_eq!(books(&node), (20, 30));
    must(&mut client, "more", "m", "cuda:0", 25);
    assert_eq!(books(&node), (45, 55));
    must(&mut client, "less", "m", "cuda:0", 5);
    assert_eq!(books(&node), (45, 55));
    let mut other = gpus.holder(&node);
    must(&mut other, "less", "m", "cuda:0", 5);
    assert_eq!(books(&node), (65, 75));
    // In host memory nothing is kept free.
    let before = node.number("/host/charged_bytes");
    client.open("host", "m");
    assert_eq!(node.number("/host/charged_bytes"), before);
    assert_eq!(books(&node), (65, 75));
}

#[test]
fn idle_models_go_for_it_and_held_ones_make_it_wait() {
    let (_dir, path) = written("m.safetensors", 7);
    let (_other_dir, other) = written("o.safetensors", 8);
    let gpus = Gpus::new(1, 256 * MIB);
    let lines = "enabled = \"yes\"\nbudget_bytes = \"40MiB\"\nuser_reserve_percent = 100";
    let setup = gpus.setup_of("", lines);
    let node = Node::start(&setup.model("m", &path).model("o", &other));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "o", "o", "cuda:0");
    client.close("o");
    until_books(&node, (0, 10));
    open_on(&mut client, "m", "m", "cuda:0");
    must(&mut client, "first", "m", "cuda:0", 26);
    assert_eq!(books(&node), (26, 36), "what nobody held has gone");
    let mut two = gpus.holder(&node);
    let refused = ask(&mut two, "second", "m", "cuda:0", 6);
    assert_eq!(refused["code"], "no_room", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("(6.0 MiB of it to stay free"), "{message}");
    let best = must(&mut two, "best", "m", "best", 6);
    assert_eq!(best["device"], Value::Null, "{best}");
    let refused = ask(&mut two, "other", "o", "cuda:0", 0);
    assert_eq!(refused["code"], "no_room", "{refused}");
    let refused = ask(&mut two, "never", "m", "cuda:0", 31);
    assert_eq!(refused["code"], "too_large", "{refused}");
    client.close("first");
    must(&mut two, "second", "m", "cuda:0", 6);
}

#[test]
fn one_user_keeps_no_more_than_his_share_free() {
    let (_dir, path) = written("m.safetensors", 7);
    let gpus = Gpus::new(1, 256 * MIB);
    let lines = "enabled = \"yes\"\nbudget_bytes = \"100MiB\"\nuser_reserve_percent = 30";
    let node = Node::start(&gpus.setup_of("", lines).model("m", &path));
    let (mut one, mut two) = (gpus.holder(&node), gpus.holder(&node));
    let refused = ask(&mut one, "m", "m", "cuda:0", 31);
    assert_eq!(refused["code"], "too_large", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("device.user_reserve_percent"), "{message}");
    must(&mut one, "m", "m", "cuda:0", 20);
    let refused = ask(&mut two, "m", "m", "cuda:0", 11);
    assert_eq!(refused["code"], "no_room", "{refused}");
    must(&mut two, "m", "m", "cuda:0", 10);
    assert_eq!(books(&node), (30, 40));
}

#[test]
fn who_comes_back_to_the_next_daemon_has_it_kept_free_again() {
    let (_dir, path) = written("m.safetensors", 7);
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = kept(gpus.setup().model("m", &path));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut client = gpus.holder(&node);
    must(&mut client, "m", "m", "cuda:0", 40);
    assert_eq!(books(&node), (40, 50));
    node.kill();
    node.restart(&setup);
    until_books(&node, (40, 50));
    client.close("m");
    until_books(&node, (0, 10));
}

fn mrm(node: &Node, args: &[&str]) -> String {
    let mut run = std::process::Command::new(program("mrm"));
    run.args(args).env("MRM_RUNTIME_DIR", node.runtime_dir());
    let output = run.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What is known of a model's opens on devices, in MiB.
fn lately(node: &Node, name: &str) -> u64 {
    let model = node.get(&format!("/v1/models/{name}"));
    model["reserve_lately_bytes"].as_u64().unwrap() / MIB
}

fn on_device(node: &Node, name: &str) -> bool {
    let model = node.get(&format!("/v1/models/{name}"));
    model["devices"][0]["state"] == "resident"
}

/// Opens a model on the device, however long its load takes.
fn patient(holder: &mut Holder, name: &str, keep_mib: u64) {
    let opened = holder.ask(&json!([
        "open-on",
        name,
        name,
        "cuda:0",
        30_000,
        keep_mib * MIB
    ]));
    assert_eq!(opened["ok"], true, "{opened}");
}

#[test]
fn what_was_kept_free_of_late_counts_when_a_model_is_loaded_ahead_also_after_a_restart() {
    let (_dir, path) = written("m.safetensors", 7);
    let (_other_dir, other) = written("o.safetensors", 8);
    let (_small_dir, small) = written("p.safetensors", 9);
    let gpus = Gpus::new(1, 256 * MIB);
    let lines = "enabled = \"yes\"\nbudget_bytes = \"40MiB\"\nuser_reserve_percent = 100";
    let setup = gpus.setup_of("", lines);
    let setup = setup
        .model("m", &path)
        .model("o", &other)
        .model("p", &small);
    let mut node = Node::start(&setup);
    let mut client = gpus.holder(&node);
    patient(&mut client, "m", 26);
    client.close("m");
    patient(&mut client, "p", 0);
    client.close("p");
    assert_eq!((lately(&node, "m"), lately(&node, "p")), (26, 0));
    let shown = mrm(&node, &["show", "m"]);
    assert!(shown.contains("26.0 MiB on devices"), "{shown}");
    drop(client);
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.wait().success());
    node.restart(&setup);
    assert_eq!((lately(&node, "m"), lately(&node, "p")), (26, 0));

    // What is loaded ahead comes to where it was used last, since the start.
    let mut client = gpus.holder(&node);
    for name in ["m", "p"] {
        patient(&mut client, name, 0);
        client.close(name);
        node.until_leases(0);
        mrm(&node, &["evict", name]);
    }
    // While `o` is held there is room for the weights of `m`, and not for its work.
    open_on(&mut client, "o", "o", "cuda:0");
    mrm(&node, &["hint", "m", "--in", "60s"]);
    mrm(&node, &["hint", "p", "--in", "60s"]);
    eventually("the one that needs no room to work", || {
        on_device(&node, "p").then_some(())
    });
    assert!(!on_device(&node, "m"));
    client.close("o");
    node.until_leases(0);
    mrm(&node, &["evict", "o"]);
    mrm(&node, &["evict", "p"]);
    eventually("the other", || on_device(&node, "m").then_some(()));
    assert_eq!(books(&node).0, 0, "it is not kept free before it is opened");
}
