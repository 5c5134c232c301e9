//! The budget: what is admitted, evicted, kept, waited for and refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_client::{Fault, OpenOptions};
use mrm_proto::error::ErrorCode;
use mrm_proto::ids::RequestId;
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, Open, Request};
use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, Setup, command};
use mrm_tests::raw::Raw;
use mrm_tests::{Random, eventually, model, seed};
use nix::sys::signal::Signal::SIGHUP;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Models of one size, and how much each of them is charged with its table.
struct Shelf {
    dir: tempfile::TempDir,
    models: Vec<(String, PathBuf)>,
    each: u64,
}

impl Shelf {
    fn of(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut each = 0;
        let models = names.iter().zip(100..).map(|(name, seed)| {
            let (path, image) =
                model::write(dir.path(), &format!("{name}.safetensors"), MIB, 2, seed);
            each = (image.len() as u64).next_multiple_of(PAGE) + PAGE;
            ((*name).to_owned(), path)
        });
        let models = models.collect();
        Self { dir, models, each }
    }

    fn setup(&self, rooms: u64) -> Setup {
        let setup = Setup::new().budget(self.each * rooms);
        self.models
            .iter()
            .fold(setup, |setup, (name, path)| setup.model(name, path))
    }

    /// A node with room for so many of the models.
    fn node(self, rooms: u64) -> Node {
        let setup = self.setup(rooms);
        Node::start_in(self.dir, &setup)
    }
}

fn state(node: &Node, name: &str) -> String {
    let model = node.get(&format!("/v1/models/{name}"));
    model["state"].as_str().unwrap().to_owned()
}

fn file(node: &Node, name: &str) -> PathBuf {
    node.dir.path().join(format!("{name}.safetensors"))
}

/// Opens a model, closes it, and waits until the daemon knows.
fn touch(node: &Node, name: &str) {
    let leases = node.number("/leases");
    let opened = node
        .client()
        .open(name)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    drop(opened);
    eventually("the lease is back", || {
        // Fewer, if another was on its way back when we counted.
        (node.number("/leases") <= leases).then_some(())
    });
}

/// The memory files that the daemon has open: how many, and how many bytes the kernel gave them.
fn memory_files(node: &Node) -> (u64, u64) {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", node.pid()))
        .unwrap()
        .flatten()
    {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let is_ours = target.to_string_lossy().contains("memfd:mrm");
        if is_ours && let Ok(metadata) = fs::metadata(entry.path()) {
            files.insert(metadata.ino(), metadata.blocks() * 512);
        }
    }
    (files.len() as u64, files.values().sum())
}

/// Asserts that the books and the kernel agree, once nothing moves.
fn assert_honest(node: &Node) {
    let status = node.get("/v1/status");
    let host = &status["host"];
    assert_eq!(host["freeing_bytes"], 0, "{status}");
    assert_eq!(host["charged_bytes"], host["resident_bytes"], "{status}");
    let (files, bytes) = memory_files(node);
    assert_eq!(Some(files), host["segments"].as_u64(), "{status}");
    assert_eq!(Some(bytes), host["resident_bytes"].as_u64(), "{status}");
}

#[test]
fn under_pressure_the_budget_is_never_exceeded() {
    let names: Vec<String> = (0..20).map(|i| format!("m{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let shelf = Shelf::of(&names);
    let models = json!(shelf.models);
    let node = shelf.node(4);
    let limit = node.number("/host/limit_bytes");
    let mut random = Random(seed());
    let mut clients: Vec<Holder> = (0..4).map(|_| Holder::start(&node.socket())).collect();
    for client in &mut clients {
        client.send(&json!(["churn", 40, random.next(), models]));
    }
    let (mut left, mut polls, mut most) = (clients.len(), 0_u64, 0);
    eventually("all clients are done", || {
        let status = node.get("/v1/status");
        let bytes = |field: &str| status["host"][field].as_u64().unwrap();
        let taken = bytes("charged_bytes") + bytes("freeing_bytes");
        assert!(taken <= limit, "{status}");
        (polls, most) = (polls + 1, most.max(taken));
        for client in &mut clients {
            if let Some(reply) = client.try_receive() {
                assert_eq!(reply["ok"], true, "{reply}");
                left -= 1;
            }
        }
        (left == 0).then_some(())
    });
    println!("{polls} looks, at most {most} of {limit} bytes taken");
    drop(clients);
    node.until_idle();
    assert!(node.number("/counters/evictions_total") > 0);
    assert_honest(&node);
}

#[test]
fn the_least_recently_used_goes_first() {
    let shelf = Shelf::of(&["a", "b", "c", "d", "e"]);
    let setup = shelf.setup(3).setting("host_policy = \"lru\"");
    let node = Node::start_in(shelf.dir, &setup);
    for name in ["a", "b", "c", "a", "d"] {
        touch(&node, name);
    }
    let resident = |name: &&str| state(&node, name) == "resident";
    let there = || {
        ["a", "b", "c", "d", "e"]
            .into_iter()
            .filter(resident)
            .collect::<Vec<_>>()
    };
    assert_eq!(there(), ["a", "c", "d"]);
    touch(&node, "e");
    assert_eq!(there(), ["a", "d", "e"]);
    assert_honest(&node);
}

#[test]
fn what_is_in_use_is_never_evicted() {
    let shelf = Shelf::of(&["a", "b", "c", "d", "e", "f"]);
    let others = json!(shelf.models[1..]);
    let node = shelf.node(3);
    let mut holder = Holder::start(&node.socket());
    let held = holder.open("held", "a");
    let mut churning = Holder::start(&node.socket());
    churning.must(&json!(["churn", 60, seed(), others]));
    assert!(node.number("/counters/evictions_total") > 0);
    assert_eq!(state(&node, "a"), "resident");
    holder.assert_equal("held", &[&file(&node, "a")]);
    let again = churning.open("again", "a");
    assert_eq!(
        (&again["origin"], &again["version"]),
        (&json!("hit"), &held["version"])
    );
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "big.safetensors", 4 * MIB, 2, 1);
    let node = Node::start_in(dir, &Setup::new().budget(2 * MIB).model("big", &path));
    let refused = node.client().open("big").unwrap_err();
    assert_eq!(refused.name(), "too_large");
    let text = refused.to_string();
    for part in [
        "`big`",
        "needs 4.0 MiB",
        "budget is 2.0 MiB",
        "host_budget_bytes",
    ] {
        assert!(text.contains(part), "{text}");
    }
    node.until_idle();
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

#[test]
fn no_room_names_who_holds_it() {
    let node = Shelf::of(&["a", "b", "c"]).node(2);
    let client = node.client();
    let _held = [client.open("a").unwrap(), client.open("b").unwrap()];
    let briefly = OpenOptions::new().wait(Duration::from_millis(50));
    let refused = client.open_with("c", &briefly).unwrap_err();
    assert_eq!((refused.name(), refused.retryable()), ("no_room", true));
    let text = refused.to_string();
    for part in ["`c`", "`a`", "`b`", "1 lease"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(node.number("/waiting"), 0);
    assert_eq!(state(&node, "c"), "absent");
    assert_honest(&node);
}

#[test]
fn room_that_comes_free_is_given_to_who_waits() {
    let node = Shelf::of(&["a", "b", "c"]).node(2);
    let mut holder = Holder::start(&node.socket());
    holder.open("a", "a");
    holder.open("b", "b");
    let mut waiting = Holder::start(&node.socket());
    waiting.send(&json!(["open", "c", "c", 60_000]));
    eventually("it waits for room", || {
        (node.number("/waiting") == 1).then_some(())
    });
    assert!(waiting.try_receive().is_none());
    holder.close("a");
    let granted = waiting.receive();
    assert_eq!(
        (&granted["ok"], &granted["origin"]),
        (&json!(true), &json!("loaded"))
    );
    waiting.assert_equal("c", &[&file(&node, "c")]);
    holder.assert_equal("b", &[&file(&node, "b")]);
}

#[test]
fn the_room_of_a_killed_client_is_given_to_who_waits() {
    let node = Shelf::of(&["a", "b"]).node(1);
    let mut holder = Holder::start(&node.socket());
    holder.open("a", "a");
    let mut waiting = Holder::start(&node.socket());
    waiting.send(&json!(["open", "b", "b", 60_000]));
    eventually("it waits for room", || {
        (node.number("/waiting") == 1).then_some(())
    });
    holder.kill();
    assert_eq!(waiting.receive()["ok"], true);
}

#[test]
fn an_open_that_waits_can_be_cancelled() {
    let node = Shelf::of(&["a", "b"]).node(1);
    let _held = node.client().open("a").unwrap();
    let mut raw = Raw::hello(&node.socket());
    let open = Open {
        wait_ms: 60_000,
        ..Open::by_name(ModelName::new("b").unwrap())
    };
    raw.send(RequestId(7), &Request::Open(open), &[]);
    eventually("it waits for room", || {
        (node.number("/waiting") == 1).then_some(())
    });
    raw.send(
        RequestId(8),
        &Request::Cancel(Cancel {
            target: RequestId(7),
        }),
        &[],
    );
    let mut replies = BTreeMap::new();
    for _ in 0..2 {
        let (request, reply, _) = raw.reply().unwrap();
        replies.insert(request.0, reply);
    }
    match (&replies[&7], &replies[&8]) {
        (Reply::Error(error), Reply::Cancelled(cancelled)) => {
            assert_eq!(error.code(), Some(ErrorCode::Cancelled));
            assert!(cancelled.was_pending);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(node.number("/waiting"), 0);
}

#[test]
fn an_eager_model_goes_with_its_last_lease() {
    let shelf = Shelf::of(&["a", "b"]);
    let (a, b) = (shelf.models[0].1.clone(), shelf.models[1].1.clone());
    let setup = Setup::new()
        .model_with("a", &a, "eager = true")
        .model("b", &b);
    let node = Node::start_in(shelf.dir, &setup);
    let (first, second) = (node.client(), node.client());
    let (one, two) = (first.open("a").unwrap(), second.open("a").unwrap());
    drop(one);
    touch(&node, "b");
    assert_eq!(state(&node, "a"), "resident", "somebody holds it");
    drop(two);
    eventually("it is gone", || {
        (state(&node, "a") == "absent" && node.number("/host/freeing_bytes") == 0).then_some(())
    });
    assert_eq!(
        state(&node, "b"),
        "resident",
        "others are kept until their room is wanted"
    );
    assert_honest(&node);
}

#[test]
fn a_pin_outlives_pressure_until_it_is_taken_back() {
    let node = Shelf::of(&["a", "b", "c", "d"]).node(2);
    let (status, body) = node.post("/v1/models/a/pin");
    assert_eq!((status, &body["pinned"]), (200, &json!(true)), "{body}");
    eventually("what is pinned is loaded", || {
        (state(&node, "a") == "resident").then_some(())
    });
    for name in ["b", "c", "d", "b", "c"] {
        touch(&node, name);
        assert_eq!(state(&node, "a"), "resident");
    }
    let (status, body) = node.post("/v1/models/a/evict");
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("in_use")),
        "{body}"
    );
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("pinned"),
        "{body}"
    );
    let (status, _) = node.post("/v1/models/a/unpin");
    assert_eq!(status, 200);
    for name in ["b", "c", "d"] {
        touch(&node, name);
    }
    assert_eq!(state(&node, "a"), "absent");
}

#[test]
fn the_operator_warms_and_evicts() {
    let node = Shelf::of(&["a"]).node(1);
    let (status, body) = node.post("/v1/models/a/warm?wait_ms=60000");
    assert_eq!((status, &body["origin"]), (200, &json!("loaded")), "{body}");
    assert_eq!(
        (state(&node, "a"), node.number("/leases")),
        ("resident".to_owned(), 0)
    );
    let held = node.client().open("a").unwrap();
    assert_eq!(format!("{:?}", held.origin()), "Hit");
    let (status, body) = node.post("/v1/models/a/evict");
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("in_use")),
        "{body}"
    );
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("1 lease"),
        "{body}"
    );
    drop(held);
    node.until_leases(0);
    assert!(memory_files(&node).0 > 0);
    let (status, body) = node.post("/v1/models/a/evict");
    assert_eq!(status, 200, "{body}");
    assert!(body["freed_bytes"].as_u64().unwrap() >= MIB, "{body}");
    assert_eq!(
        memory_files(&node),
        (0, 0),
        "the memory is free when the answer comes"
    );
    assert_eq!(node.number("/host/charged_bytes"), 0);
    assert_honest(&node);
}

#[test]
fn a_lower_budget_evicts_what_is_idle_and_waits_for_the_rest() {
    let shelf = Shelf::of(&["a", "b", "c"]);
    let (lower, full) = (shelf.setup(1), shelf.setup(3));
    let each = shelf.each;
    let node = shelf.node(3);
    let mut holder = Holder::start(&node.socket());
    holder.open("a", "a");
    for name in ["b", "c"] {
        touch(&node, name);
    }
    let set = |setup: &Setup, rooms: u64| {
        let _ = command(node.dir.path(), setup);
        node.signal(SIGHUP);
        eventually("the budget is read again", || {
            (node.number("/host/limit_bytes") == rooms * each).then_some(())
        });
    };
    set(&lower, 1);
    eventually("what is idle is freed", || {
        let host = node.get("/v1/status")["host"].clone();
        (host["charged_bytes"] == each && host["freeing_bytes"] == 0).then_some(())
    });
    assert_honest(&node);
    holder.assert_equal("a", &[&file(&node, "a")]);
    let briefly = OpenOptions::new().wait(Duration::from_millis(50));
    assert_eq!(
        node.client().open_with("b", &briefly).unwrap_err().name(),
        "no_room"
    );
    set(&full, 3);
    touch(&node, "b");
    assert_eq!(state(&node, "a"), "resident");
}

/// Opens `b` while `a` takes all room, changes `b`'s file, makes room; returns the answer.
fn changed_while_waiting(change: impl FnOnce(&std::path::Path)) -> (Node, Value) {
    let node = Shelf::of(&["a", "b"]).node(1);
    let mut holder = Holder::start(&node.socket());
    holder.open("a", "a");
    let mut waiting = Holder::start(&node.socket());
    waiting.send(&json!(["open", "b", "b", 60_000]));
    eventually("it waits for room", || {
        (node.number("/waiting") == 1).then_some(())
    });
    change(&file(&node, "b"));
    holder.close("a");
    let answer = waiting.receive();
    (node, answer)
}

#[test]
fn a_file_that_shrank_since_it_was_looked_at_is_refused() {
    let (node, answer) = changed_while_waiting(|path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(MIB / 2).unwrap();
    });
    assert_eq!(answer["code"], "source_changed", "{answer}");
    node.until_idle();
    assert_eq!(
        node.number("/host/charged_bytes"),
        node.number("/host/resident_bytes")
    );
    assert_ne!(state(&node, "b"), "resident");
    let (_, image) = model::write(node.dir.path(), "b.safetensors", MIB, 2, 9);
    let opened = node.client().open("b").unwrap();
    assert_eq!(
        opened.segment(0).unwrap().bytes(),
        image,
        "the next open looks again"
    );
}

#[test]
fn a_file_that_is_gone_leaves_nothing_behind() {
    let (node, answer) = changed_while_waiting(|path| fs::remove_file(path).unwrap());
    // It was open already: what it held may be lent, or the change of its state be noticed.
    println!("removed while waiting: {answer}");
    assert!(
        answer["ok"] == true || answer["code"] == "source_changed",
        "{answer}"
    );
    node.until_idle();
    let (status, _) = node.post("/v1/models/b/evict");
    assert_eq!(status, 200);
    let gone = node.client().open("b").unwrap_err();
    assert_eq!(gone.name(), "source_missing", "{gone}");
    node.until_idle();
    assert_honest(&node);
}
