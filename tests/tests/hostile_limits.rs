//! Clients that take too much: of time, of replies, of leases, of sessions. Each bound has its code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::hello::ClientHello;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::limits::{LEASES_PER_SESSION_MAX, REQUESTS_IN_FLIGHT_MAX};
use mrm_proto::reply::Reply;
use mrm_proto::request::{List, Request};
use mrm_tests::hostile::{
    Baseline, close, copies, encoded, ending, granted, open, open_files, refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use std::fs::File;
use std::io::{Read, Write};

/// A daemon with the small model `m`, resident, and its image.
fn node_with(settings: &[&str]) -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 4096, 2, 1);
    let setup = settings
        .iter()
        .fold(Setup::new(), |setup, line| setup.setting(line));
    let node = Node::start_in(dir, &setup.model("m", &path));
    still_serves(&node, "m", &image);
    (node, image)
}

fn list() -> Request {
    Request::List(List {
        prefix: String::new(),
        after: None,
    })
}

#[test]
fn silence_and_half_frames_are_too_slow() {
    let (node, image) = node_with(&["limits.idle_hello_ms = 200", "limits.write_stall_ms = 200"]);
    let baseline = Baseline::of(&node);
    Raw::connect(&node.socket()).ends_with(ErrorCode::TooSlow);
    let hello = encoded(1, 0, &ClientHello::new("slow"));
    for part in [&hello[..1], &hello[..24], &hello[..hello.len() - 1]] {
        let mut raw = Raw::connect(&node.socket());
        raw.send_bytes(part, &[]).unwrap();
        raw.ends_with(ErrorCode::TooSlow);
    }
    let open = encoded(2, 0, &open("m", 0));
    for part in [&open[..1], &open[..24], &open[..open.len() - 1]] {
        let mut raw = Raw::hello(&node.socket());
        raw.send_bytes(part, &[]).unwrap();
        raw.ends_with(ErrorCode::TooSlow);
    }
    // Half of a frame that brought descriptors.
    let null = File::open("/dev/null").unwrap();
    let mut raw = Raw::hello(&node.socket());
    let set = encoded(2, 2, &open_files("x", &["a", "b"]));
    raw.send_bytes(&set[..30], &copies(&null, 2)).unwrap();
    raw.ends_with(ErrorCode::TooSlow);
    // A session that owes nothing may be silent: it outlives one that is refused meanwhile.
    let mut idle = Raw::hello(&node.socket());
    Raw::connect(&node.socket()).ends_with(ErrorCode::TooSlow);
    granted(&mut idle, 2, "m");
    drop(idle);
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

/// Whole frames keep coming, though each read may end inside of one.
#[test]
fn a_busy_session_is_not_taken_for_a_slow_one() {
    let (node, _) = node_with(&["limits.write_stall_ms = 300"]);
    let raw = Raw::hello(&node.socket());
    let mut reader = raw.stream.try_clone().unwrap();
    let mut writer = raw.stream.try_clone().unwrap();
    let silent = encoded(0, 0, &close(LeaseId(9)));
    let burst = silent.repeat(997);
    let feeding = std::thread::spawn(move || {
        let until = std::time::Instant::now() + std::time::Duration::from_millis(1500);
        while std::time::Instant::now() < until {
            if writer.write_all(&burst).is_err() {
                return false;
            }
        }
        writer.write_all(&encoded(7, 0, &list())).is_ok()
    });
    let mut head = [0; 24];
    let answered = reader.read_exact(&mut head).is_ok();
    assert!(feeding.join().unwrap() && answered, "the session was ended");
    let id = u64::from_le_bytes(head[16..].try_into().unwrap());
    assert_eq!(
        id, 7,
        "the first frame should be the answer to the last request"
    );
}

#[test]
fn who_never_reads_loses_the_session_and_no_one_waits() {
    let (node, image) = node_with(&["limits.write_stall_ms = 300"]);
    let baseline = Baseline::of(&node);
    let grown_from = node.resident_bytes();
    for request in [open("m", 0), list(), open("missing", 0)] {
        let mut raw = Raw::hello(&node.socket());
        let one = std::time::Duration::from_secs(1);
        raw.stream.set_write_timeout(Some(one)).unwrap();
        let mut id = 2;
        while id < 50_000 {
            let burst: Vec<u8> = (id..id + 100)
                .flat_map(|i| encoded(i, 0, &request))
                .collect();
            id += 100;
            if raw.stream.write_all(&burst).is_err() {
                break;
            }
        }
        still_serves(&node, "m", &image);
        node.until_idle();
        drop(raw);
    }
    baseline.is_restored(&node);
    node.grew_less_than(16 << 20, grown_from);
}

#[test]
fn opens_in_flight_are_bounded() {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (held, image) = model::write(dir.path(), "held.safetensors", 1 << 20, 2, 1);
    let (wanted, _) = model::write(dir.path(), "wanted.safetensors", 1 << 20, 2, 2);
    let setup = Setup::new()
        .budget(3 << 19)
        .model("held", &held)
        .model("wanted", &wanted);
    let node = Node::start_in(dir, &setup);
    still_serves(&node, "held", &image);
    let baseline = Baseline::of(&node);
    let mut holder = Raw::hello(&node.socket());
    granted(&mut holder, 2, "held");

    let mut raw = Raw::hello(&node.socket());
    for id in 0..REQUESTS_IN_FLIGHT_MAX as u64 {
        raw.send(RequestId(2 + id), &open("wanted", 600_000), &[]);
    }
    eventually("all of them wait", || {
        (node.number("/waiting") == 256).then_some(())
    });
    // A request id that is taken, in another session that stays well below the bound.
    let mut twice = Raw::hello(&node.socket());
    twice.send(RequestId(2), &open("wanted", 600_000), &[]);
    twice.send(RequestId(2), &open("wanted", 600_000), &[]);
    twice.ends_with(ErrorCode::BadRequestId);
    // What needs no room is answered meanwhile.
    raw.send(RequestId(5000), &list(), &[]);
    assert!(matches!(
        raw.reply(),
        Some((RequestId(5000), Reply::Listed(_), _))
    ));
    for id in 1000..1044 {
        let _ = raw.send_bytes(&encoded(id, 0, &open("wanted", 600_000)), &[]);
    }
    raw.ends_with(ErrorCode::TooManyInFlight);
    eventually("nobody waits", || {
        (node.number("/waiting") == 0).then_some(())
    });
    drop(holder);
    still_serves(&node, "held", &image);
    baseline.is_restored(&node);
}

#[test]
fn leases_of_a_session_are_bounded() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let mut raw = Raw::hello(&node.socket());
    let mut last = None;
    let mut id = 2;
    let mut held = 0;
    while held < LEASES_PER_SESSION_MAX {
        let batch = (LEASES_PER_SESSION_MAX - held).min(64);
        let burst: Vec<u8> = (0..batch as u64)
            .flat_map(|i| encoded(id + i, 0, &open("m", 0)))
            .collect();
        raw.stream.write_all(&burst).unwrap();
        for _ in 0..batch {
            let reply = raw.reply().expect("a grant").1;
            let Reply::Opened(opened) = reply else {
                panic!("{reply:?}");
            };
            last = Some(opened.lease);
        }
        id += batch as u64;
        held += batch;
    }
    let error = refused(&mut raw, 90_000, &open("m", 0), &[]);
    assert_eq!(error.code(), Some(ErrorCode::TooManyLeases));
    assert!(
        error.message.contains("4096") && error.message.contains("close"),
        "{}",
        error.message
    );
    assert_eq!(node.number("/leases"), 4096);
    let closed = raw.ask(RequestId(90_001), &close(last.expect("many")), &[]);
    assert!(matches!(closed, Reply::Closed(_)));
    granted(&mut raw, 90_002, "m");
    still_serves(&node, "m", &image);
    drop(raw);
    baseline.is_restored(&node);
}

#[test]
fn sessions_are_bounded_in_all_and_of_one_user() {
    for settings in [
        &["limits.sessions_per_uid_max = 4"][..],
        &["limits.sessions_max = 4", "limits.sessions_per_uid_max = 4"],
    ] {
        let (node, image) = node_with(settings);
        let baseline = Baseline::of(&node);
        let mut held: Vec<Raw> = (0..4).map(|_| Raw::hello(&node.socket())).collect();
        let mut refused = Raw::connect(&node.socket());
        let error = ending(&mut refused);
        assert_eq!(error.code(), Some(ErrorCode::TooManySessions));
        assert!(
            error.retryable && error.message.contains("raise limits."),
            "{}",
            error.message
        );
        for raw in &mut held {
            granted(raw, 2, "m");
        }
        held.pop();
        eventually("a place is free", || {
            (node.number("/sessions") == 3).then_some(())
        });
        still_serves(&node, "m", &image);
        drop(held);
        baseline.is_restored(&node);
    }
}

#[test]
fn a_flood_of_opens_and_closes_leaves_nothing() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let mut raw = Raw::hello(&node.socket());
    for round in 0..2000_u64 {
        let (opened, _) = granted(&mut raw, 2 + round, "m");
        // Given back unanswered, twice, and once more for one that never was.
        for lease in [opened.lease, opened.lease, LeaseId(u64::MAX)] {
            raw.send(RequestId(0), &close(lease), &[]);
        }
    }
    let error = refused(&mut raw, 9_999, &close(LeaseId(1)), &[]);
    assert_eq!(error.code(), Some(ErrorCode::UnknownLease));
    assert_eq!(node.number("/leases"), 0);
    still_serves(&node, "m", &image);
    drop(raw);
    baseline.is_restored(&node);
}
