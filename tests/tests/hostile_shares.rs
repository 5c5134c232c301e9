//! What one user takes of everything leaves enough for another: sessions, places in the queue,
//! passed descriptors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::ids::RequestId;
use mrm_proto::reply::Reply;
use mrm_tests::hostile::{
    NOBODY, as_user, content, copies, encoded, ending, granted, let_everybody_in, open, open_files,
    still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use std::fs::File;
use std::os::fd::AsFd;

/// Another one of those who own nothing.
const SOMEBODY: u32 = NOBODY - 1;

/// A daemon that every user may use, with room for one of its two models, `m` and `wanted`; the
/// images of both.
fn node(settings: &[&str]) -> (Node, Vec<u8>, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 1 << 20, 2, 1);
    let (wanted, other) = model::write(dir.path(), "wanted.safetensors", 1 << 20, 2, 2);
    let_everybody_in(dir.path());
    let setup = settings
        .iter()
        .fold(Setup::new().budget(3 << 19), |setup, line| {
            setup.setting(line)
        });
    let setup = setup.model("m", &path).model("wanted", &wanted);
    let node = Node::start_in(dir, &setup);
    still_serves(&node, "m", &image);
    (node, image, other)
}

#[test]
fn one_user_leaves_sessions_for_another() {
    let (node, image, _) = node(&["limits.sessions_max = 8", "limits.sessions_per_uid_max = 4"]);
    let connect = || -> Vec<Raw> { (0..4).map(|_| Raw::hello(&node.socket())).collect() };
    let Some(held) = as_user(NOBODY, connect) else {
        return;
    };
    let fifth = as_user(NOBODY, || ending(&mut Raw::connect(&node.socket()))).unwrap();
    assert_eq!(fifth.code(), Some(ErrorCode::TooManySessions));
    assert!(fifth.message.contains("65534"), "{}", fifth.message);
    as_user(SOMEBODY, || {
        let mut raw = Raw::hello(&node.socket());
        let (_, fds) = granted(&mut raw, 2, "m");
        assert!(content(&fds[1], image.len() as u64) == image);
    });
    drop(held);
    node.until_idle();
}

#[test]
fn one_user_leaves_places_in_the_queue_for_another() {
    let (node, _, wanted) = node(&["limits.waiting_max = 9"]);
    let mut holder = Raw::hello(&node.socket());
    granted(&mut holder, 2, "m");
    // From several sessions, so that it is the user's share and not a session's.
    let flood = || -> Vec<Raw> {
        let mut sessions: Vec<Raw> = (0..4).map(|_| Raw::hello(&node.socket())).collect();
        for id in 2..7 {
            for raw in &mut sessions {
                raw.send(RequestId(id), &open("wanted", 600_000), &[]);
            }
        }
        sessions
    };
    let Some(mut flooding) = as_user(NOBODY, flood) else {
        return;
    };
    // 20 were asked for; five wait, since then there are four places left.
    eventually("as many wait as there are places left", || {
        (node.number("/waiting") == 5).then_some(())
    });
    let mut refused = 0;
    for raw in &mut flooding {
        let timeout = std::time::Duration::from_millis(200);
        raw.stream.set_nonblocking(false).unwrap();
        raw.stream.set_read_timeout(Some(timeout)).unwrap();
        while rustix::net::recv(&raw.stream, &mut [0; 1], rustix::net::RecvFlags::PEEK).is_ok() {
            match raw.reply() {
                Some((_, Reply::Error(error), _)) => {
                    assert_eq!(error.code(), Some(ErrorCode::QueueFull));
                    assert!(
                        error.message.contains("of this user") && error.retryable,
                        "{}",
                        error.message
                    );
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(refused, 15);
    let ask = || {
        let mut raw = Raw::hello(&node.socket());
        raw.send(RequestId(2), &open("wanted", 600_000), &[]);
        raw
    };
    let mut other = as_user(SOMEBODY, ask).expect("we could before");
    eventually("another user's open waits", || {
        (node.number("/waiting") == 6).then_some(())
    });
    drop(holder);
    match other.reply() {
        Some((RequestId(2), Reply::Opened(_), fds)) => {
            assert!(content(&fds[1], wanted.len() as u64) == wanted);
        }
        reply => panic!("{reply:?}"),
    }
    drop((flooding, other));
    node.until_idle();
}

#[test]
fn one_user_leaves_passed_descriptors_for_another() {
    let (node, image, _) = node(&[
        "limits.idle_hello_ms = 60000",
        "limits.write_stall_ms = 60000",
    ]);
    let broken = File::open("/dev/null").unwrap();
    // Half a frame keeps its descriptors. The user goes on until it has had its share.
    let half = encoded(2, 253, &open("m", 0));
    let take_all = || {
        let mut held = Vec::new();
        for _ in 0..200 {
            let mut raw = Raw::hello(&node.socket());
            let _ = raw.send_bytes(&half[..30], &copies(&broken, 253));
            held.push(raw);
        }
        held
    };
    let Some(held) = as_user(NOBODY, take_all) else {
        return;
    };
    let told = held.iter().filter(|raw| {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(&raw.stream, &mut [0; 1], flags).is_ok_and(|(n, _)| n > 0)
    });
    let told = told.count();
    println!(
        "{told} of {} sessions were told that it is enough",
        held.len()
    );
    assert!(told > 0, "this user has had less than there is");
    let own = File::open(node.dir.path().join("m.safetensors")).unwrap();
    as_user(SOMEBODY, || {
        let mut raw = Raw::hello(&node.socket());
        let set = open_files("own", &["m.safetensors"]);
        raw.send(RequestId(2), &set, &[own.as_fd()]);
        match raw.reply() {
            Some((RequestId(2), Reply::Opened(_), fds)) => {
                assert!(content(&fds[1], image.len() as u64) == image);
            }
            other => panic!("{other:?}"),
        }
    });
    drop(held);
    node.until_idle();
}
