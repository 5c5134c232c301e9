//! What long-lived daemons meet: sessions that are always in the middle of a frame, files that
//! change while somebody waits for them, reloads under pins, unread answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, List, Request, Stat};
use mrm_tests::hostile::{close, encoded, granted, open};
use mrm_tests::node::{Node, Setup, command};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal::SIGHUP;
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

#[test]
fn a_session_that_is_always_within_a_frame_goes_on() {
    let node = Node::start(&Setup::new().setting("limits.write_stall_ms = 100"));
    let mut raw = Raw::hello(&node.socket());
    let mut half = Vec::new();
    let until = Instant::now() + Duration::from_millis(500);
    let mut id = 2;
    while Instant::now() < until {
        let next = encoded(id, 0, &list(""));
        let (head, tail) = next.split_at(10);
        half.extend_from_slice(head);
        raw.stream.write_all(&half).expect("the session goes on");
        if id > 2 {
            let (answered, reply, _) = raw.reply().expect("the session goes on");
            assert!(matches!(reply, Reply::Listed(_)), "{reply:?}");
            assert_eq!(answered, RequestId(id - 1));
        }
        half = tail.to_vec();
        id += 1;
    }
}

fn list(prefix: &str) -> Request {
    Request::List(List {
        prefix: prefix.to_owned(),
        after: None,
    })
}

#[test]
fn files_of_a_version_that_is_not_wanted_any_more_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _) = model::write(dir.path(), "a.safetensors", MIB, 3, 1);
    let (b, _) = model::write(dir.path(), "b.safetensors", MIB, 3, 2);
    let setup = Setup::new()
        .setting("revalidate_ms = 0")
        .budget(MIB + MIB / 2)
        .model("a", &a)
        .model("b", &b);
    let node = Node::start_in(dir, &setup);
    let mut raw = Raw::hello(&node.socket());
    let (_lease, _fds) = granted(&mut raw, 2, "a");
    let baseline = node.fds();
    // Each state of `b` waits for room; the table, which `a` has too, keeps its version known.
    for i in 0..8 {
        raw.send(RequestId(10 + i), &open("b", 600_000), &[]);
        eventually("it waits", || {
            (node.number("/waiting") == i + 1).then_some(())
        });
        model::write(node.dir.path(), "b.safetensors", MIB, 3, 100 + i);
    }
    for i in 0..8 {
        let target = RequestId(10 + i);
        raw.send(
            RequestId::NO_REPLY,
            &Request::Cancel(Cancel { target }),
            &[],
        );
        let (_, reply, _) = raw.reply().expect("an answer");
        assert!(matches!(reply, Reply::Error(_)), "{reply:?}");
    }
    eventually("the files of `b` are closed", || {
        (node.fds() <= baseline).then_some(())
    });
}

/// Sends SIGHUP and waits until it took effect.
fn reload(node: &Node) {
    let line = "catalogue and host budget were read again";
    let seen = |node: &Node| node.log().matches(line).count();
    let before = seen(node);
    node.signal(SIGHUP);
    eventually(line, || (seen(node) > before).then_some(()));
}

fn show(node: &Node, name: &str) -> Value {
    node.get(&format!("/v1/models/{name}"))
}

fn evicted(node: &Node) -> u64 {
    node.number("/counters/evictions_total")
}

#[test]
fn a_reload_keeps_the_operators_pins() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let (eager, _) = model::write(dir.path(), "eager.safetensors", MIB, 3, 1);
    let (both, _) = model::write(dir.path(), "both.safetensors", MIB, 5, 2);
    model::write(&root, "below.safetensors", MIB, 2, 3);
    let setup = Setup::new()
        .setting(&format!("catalogue = [{{ root = {root:?} }}]"))
        .model_with("eager", &eager, "eager = true")
        .model_with("both", &both, "eager = true\npin = true");
    let node = Node::start_in(dir, &setup);
    let names = ["eager", "both", "below.safetensors"];
    for name in names {
        assert_eq!(node.post(&format!("/v1/models/{name}/pin")).0, 200);
        eventually("what is pinned is loaded", || {
            (show(&node, name)["state"] == "resident").then_some(())
        });
    }
    let loads = node.number("/counters/loads_total");
    for _ in 0..3 {
        reload(&node);
        for name in names {
            assert_eq!(show(&node, name)["pinned"], true, "{name}");
            assert_eq!(node.post(&format!("/v1/models/{name}/evict")).0, 409);
        }
    }
    node.until_idle();
    assert_eq!(evicted(&node), 0);
    assert_eq!(node.number("/counters/loads_total"), loads);

    // What the file says anew counts.
    let eager = node.dir.path().join("eager.safetensors");
    let next = Setup::new()
        .setting(&format!("catalogue = [{{ root = {root:?} }}]"))
        .model("eager", &eager);
    let _ = command(node.dir.path(), &next);
    reload(&node);
    assert_eq!(show(&node, "eager")["pinned"], false);
    assert_eq!(show(&node, "eager")["eager"], false);
}

#[test]
fn a_pin_of_what_is_not_there_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let setup = Setup::new().setting(&format!("catalogue = [{{ root = {root:?} }}]"));
    let node = Node::start_in(dir, &setup);
    assert_eq!(node.post("/v1/models/later.safetensors/pin").0, 200);
    node.until_idle();
    let row = show(&node, "later.safetensors");
    assert_eq!(
        (&row["pinned"], &row["state"]),
        (&true.into(), &"absent".into())
    );
    assert_eq!(
        node.get("/v1/models")["models"].as_array().unwrap().len(),
        1
    );
    assert_eq!(node.post("/v1/models/later.safetensors/unpin").0, 200);
    assert!(
        node.get("/v1/models")["models"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn answers_that_nobody_reads_take_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 1, 1);
    let patient = Setup::new().setting("limits.write_stall_ms = 600000");
    let long = |i: usize| format!("{i}{}", "/x".repeat(400));
    let setup = (0..256).fold(patient, |setup, i| setup.model(&long(i), &path));
    let node = Node::start_in(dir, &setup);
    let before = node.resident_bytes();
    let mut sessions: Vec<Raw> = (0..16).map(|_| Raw::hello(&node.socket())).collect();
    let burst: Vec<u8> = (2..42).flat_map(|i| encoded(i, 0, &list(""))).collect();
    for raw in &mut sessions {
        raw.stream.write_all(&burst).unwrap();
    }
    // Two questions of each wait for a fresh listing, whenever there is one; the rest is not read
    // yet. Others are served meanwhile, and nobody loses an answer by being slow.
    let mut other = Raw::hello(&node.socket());
    let (opened, _) = granted(&mut other, 2, &long(0));
    assert!(opened.lease > LeaseId(0));
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < 20 * MIB, "grew by {grown} bytes");
    for raw in &mut sessions {
        let mut answered: Vec<u64> = (2..42)
            .map(|_| {
                let (id, reply, _) = raw.reply().expect("an answer");
                assert!(matches!(reply, Reply::Listed(_)), "{reply:?}");
                id.0
            })
            .collect();
        answered.sort_unstable();
        assert!(answered.into_iter().eq(2..42), "each is answered once");
    }
}

#[test]
fn what_is_given_back_before_it_was_sent_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 1, 1);
    let setup = Setup::new()
        .setting("limits.write_stall_ms = 600000")
        .model_with("m", &path, "eager = true");
    let node = Node::start_in(dir, &setup);
    let mut raw = Raw::hello(&node.socket());
    let name = ModelName::new("m").unwrap();
    let mut burst: Vec<u8> = (2..900)
        .flat_map(|i| {
            encoded(
                i,
                0,
                &Request::Stat(Stat {
                    model: name.clone(),
                }),
            )
        })
        .collect();
    burst.extend(encoded(1000, 0, &open("m", 0)));
    raw.stream.write_all(&burst).unwrap();
    node.until_leases(1);
    raw.stream
        .write_all(&encoded(0, 0, &close(LeaseId(1))))
        .unwrap();
    eventually("its memory is gone", || {
        (node.number("/host/segments") == 0 && node.number("/leases") == 0).then_some(())
    });
    let memory = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links
            .filter(|link| link.to_string_lossy().contains("memfd:"))
            .count()
    };
    eventually("nothing is held for the answer", || {
        (memory() == 0).then_some(())
    });
}
