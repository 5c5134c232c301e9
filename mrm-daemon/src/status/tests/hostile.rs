//! Peers that send too much, too little, nonsense, or nothing.

use super::Rig;
use super::http::{Peer, request};
use crate::status::Limits;
use std::time::{Duration, Instant};

#[test]
fn headers_over_the_bound_are_refused() {
    let rig = Rig::new();
    let long = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    for bytes in [long, many] {
        let mut peer = rig.connect();
        // The server may close before it has read all.
        _ = peer.send(bytes.as_bytes());
        assert_eq!(peer.answer(false).status, 431);
        assert!(peer.at_end());
    }
    assert_eq!(rig.get("/healthz").status, 200);
}

#[test]
fn nonsense_is_refused_and_closed() {
    let rig = Rig::new();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"mrm\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\n\n",
    ] {
        let mut peer = rig.connect();
        peer.send(bytes).unwrap();
        let answer = peer.answer(false);
        assert_eq!(answer.status, 400, "{}", bytes.escape_ascii());
        assert!(peer.at_end());
    }
    assert!(rig.fake.asked().is_empty());
    assert_eq!(rig.get("/healthz").status, 200);
}

#[test]
fn bodies_are_ignored_up_to_the_bound() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    let head = |bytes| {
        format!("POST /v1/models/m/pin HTTP/1.1\r\nhost: mrm\r\ncontent-length: {bytes}\r\n\r\n")
    };
    peer.send((head(65_536) + &"x".repeat(65_536)).as_bytes())
        .unwrap();
    assert_eq!(peer.answer(true).status, 200);
    peer.send(head(65_537).as_bytes()).unwrap();
    assert_too_large(peer);

    let mut peer = rig.connect();
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let head = "POST /v1/drain HTTP/1.1\r\nhost: mrm\r\ntransfer-encoding: chunked\r\n\r\n";
    peer.send(head.as_bytes()).unwrap();
    for _ in 0..5 {
        // The server may answer and close before it has read all.
        _ = peer.send(chunk.as_bytes());
    }
    assert_too_large(peer);
    assert_eq!(
        rig.fake.asked(),
        ["pin m true"],
        "what is refused is not done"
    );
}

fn assert_too_large(mut peer: Peer) {
    let answer = peer.answer(true);
    assert_eq!(
        (answer.status, answer.error().as_str()),
        (413, "body_too_large")
    );
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(peer.at_end());
}

#[test]
fn slow_headers_slow_bodies_and_idle_connections_end() {
    let rig = Rig::with(Limits {
        header_read_timeout_ms: 30,
        ..Limits::default()
    });
    let mut silent = rig.connect();
    assert!(silent.at_end());

    let mut slow = rig.connect();
    slow.send(b"GET /healthz HT").unwrap();
    assert!(slow.at_end());

    let mut idle = rig.connect();
    assert_eq!(idle.ask("GET", "/healthz").status, 200);
    assert!(idle.at_end());

    let mut body = rig.connect();
    body.send(b"POST /v1/drain HTTP/1.1\r\nhost: mrm\r\ncontent-length: 9\r\n\r\nx")
        .unwrap();
    let answer = body.answer(true);
    assert_eq!(
        (answer.status, answer.error().as_str()),
        (408, "body_too_slow")
    );
    assert!(body.at_end());
    assert!(rig.fake.asked().is_empty());
}

#[test]
fn a_peer_that_does_not_read_is_dropped() {
    let rig = Rig::with(Limits {
        write_stall_ms: 30,
        ..Limits::default()
    });
    let mut peer = rig.connect();
    let ask = request("GET", "/v1/models?prefix=huge&limit=1024");
    // Each answer has some 400 kB: the second does not fit the socket's buffer. The writes fail
    // once the server has closed; the deadline of the socket bounds this loop.
    let refused = loop {
        if let Err(error) = peer.send(ask.as_bytes()) {
            break error.kind();
        }
    };
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(
        matches!(refused, BrokenPipe | ConnectionReset),
        "{refused:?}"
    );
    assert_eq!(rig.get("/healthz").status, 200);
}

#[test]
fn connections_over_the_bound_are_told_and_places_come_back() {
    let rig = Rig::with(Limits {
        connections_max: 2,
        ..Limits::default()
    });
    let mut held = [rig.connect(), rig.connect()];
    for peer in &mut held {
        assert_eq!(peer.ask("GET", "/healthz").status, 200);
    }
    let mut third = rig.connect();
    let answer = third.answer(true);
    assert_eq!(
        (answer.status, answer.error().as_str()),
        (503, "too_many_connections")
    );
    assert!(third.at_end());
    assert_eq!(held[0].ask("GET", "/healthz").status, 200);

    drop(held);
    let deadline = Instant::now() + Duration::from_secs(60);
    while try_get(&rig) != Some(200) {
        assert!(Instant::now() < deadline, "no place came back");
        std::thread::yield_now();
    }
}

/// `None` when turned away before the request was written.
fn try_get(rig: &Rig) -> Option<u16> {
    let mut peer = rig.connect();
    peer.send(request("GET", "/healthz").as_bytes()).ok()?;
    Some(peer.answer(true).status)
}

#[test]
fn peers_that_vanish_at_any_byte_do_no_harm() {
    let rig = Rig::new();
    let ask = request("GET", "/v1/events?since=1&wait_ms=30000");
    for end in 0..=ask.len() {
        let mut peer = rig.connect();
        peer.send(&ask.as_bytes()[..end]).unwrap();
    }
    assert_eq!(rig.get("/healthz").status, 200);
}

/// Counts descriptors, so it runs in a process where no other test opens any.
#[test]
fn a_thousand_connections_leak_no_descriptor() {
    const ALONE: &str = "MRM_TEST_ALONE";
    const NAME: &str = "status::tests::hostile::a_thousand_connections_leak_no_descriptor";
    if std::env::var_os(ALONE).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = child
            .args([NAME, "--exact", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ended.stdout);
        let why = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.success() && text.contains("1 passed"),
            "{text}{why}"
        );
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The first runtime of a process opens a pair for signals, and keeps it.
    drop(Rig::new());
    let before = descriptors();
    let mut rig = Rig::new();
    let targets = [
        "/v1/status",
        "/metrics",
        "/nothing",
        "/v1/models?limit=x",
        "/v1/models/none",
    ];
    let one = |rig: &Rig, round: usize| {
        let target = targets[round % targets.len()];
        let ask = format!("GET {target} HTTP/1.1\r\nhost: mrm\r\nconnection: close\r\n\r\n");
        let mut peer = rig.connect();
        peer.send(ask.as_bytes()).unwrap();
        peer.answer(true);
        assert!(peer.at_end());
    };
    one(&rig, 0);
    let running = descriptors();
    for round in 0..1000 {
        one(&rig, round);
        // The server shuts a connection down just before it closes it: one may be on its way.
        assert!(descriptors() <= running + 1, "round {round}");
    }
    let mut kept = rig.connect();
    for round in 0..1000 {
        kept.ask("GET", targets[round % targets.len()]);
    }
    drop(kept);
    rig.server.take().unwrap().shutdown(60_000);
    drop(rig);
    assert_eq!(descriptors(), before);
}
