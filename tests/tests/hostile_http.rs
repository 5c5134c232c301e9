//! Bad input on the status socket: a refusal or a closed connection, and the next one is served.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_tests::hostile::{Baseline, NOBODY, as_user, let_everybody_in, still_serves};
use mrm_tests::node::{Node, Setup};
use mrm_tests::{DEADLINE, Random, eventually, http, model, seed};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

fn node() -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 4096, 2, 1);
    let_everybody_in(dir.path());
    let node = Node::start_in(dir, &Setup::new().model("m", &path));
    still_serves(&node, "m", &image);
    (node, image)
}

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.status_socket()).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Everything that the daemon says until it hangs up.
fn rest_of(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("neither an answer nor an end within {DEADLINE:?}: {e}"),
    }
    String::from_utf8(answer).expect("text")
}

/// What it answers to `bytes`, after which it must hang up by itself.
fn answer_to(node: &Node, bytes: &[u8]) -> String {
    let mut stream = connect(node);
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes);
    rest_of(&mut stream)
}

fn status_of(answer: &str) -> Option<u16> {
    answer
        .strip_prefix("HTTP/1.1 ")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: mrm\r\nconnection: close\r\n{more}\r\n").into_bytes()
}

/// What is no request, and the statuses that it may get.
fn no_requests() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let long_path = format!("/{}", "a".repeat(100_000));
    let long_header = format!("x: {}\r\n", "a".repeat(100_000));
    let many_headers = "x: y\r\n".repeat(200);
    vec![
        ("a long path", get(&long_path, ""), &[414, 431]),
        ("a long header", get("/healthz", &long_header), &[431]),
        ("many headers", get("/healthz", &many_headers), &[431]),
        (
            "endless headers",
            "x: y\r\n".repeat(50_000).into_bytes(),
            &[400, 431],
        ),
        ("zeros", vec![0; 4096], &[400]),
        (
            "the protocol of clients",
            b"MRM\x01\x01\x00\x00\x00".repeat(8),
            &[400],
        ),
        (
            "tls",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(8),
            &[400],
        ),
        (
            "http/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            &[400],
        ),
        ("no version", b"GET /healthz\r\n\r\n".to_vec(), &[400]),
        (
            "bare newlines in a header",
            get("/healthz", "x: a\0b\r\n"),
            &[400],
        ),
        (
            "two lengths",
            get("/healthz", "content-length: 1\r\ncontent-length: 2\r\n"),
            &[400],
        ),
        (
            "a negative length",
            get("/healthz", "content-length: -1\r\n"),
            &[400],
        ),
        (
            "no number",
            get("/healthz", "content-length: 1e3\r\n"),
            &[400],
        ),
        (
            "a length over all",
            get("/healthz", "content-length: 99999999999999999999999\r\n"),
            &[400],
        ),
        (
            "a huge length",
            get("/healthz", "content-length: 1099511627776\r\n"),
            &[413],
        ),
    ]
}

#[test]
fn requests_that_are_none_are_answered_or_hung_up_on() {
    let (node, _) = node();
    let baseline = Baseline::of(&node);
    for (what, bytes, allowed) in no_requests() {
        let answer = answer_to(&node, &bytes);
        let status = status_of(&answer);
        // A peer that is no HTTP client may be hung up on without a word.
        assert!(
            status.is_none_or(|s| allowed.contains(&s)),
            "{what}: {answer}"
        );
        assert!(status.is_some() || answer.is_empty(), "{what}: {answer}");
        assert_eq!(
            http::request(&node.status_socket(), "GET", "/healthz").0,
            200,
            "{what}"
        );
    }
    baseline.is_restored(&node);
}

#[test]
fn wrong_paths_names_and_methods_have_their_own_code() {
    let (node, _) = node();
    let long = format!("/v1/models/{}", "a".repeat(5000));
    let cases: [(&str, &str, u16, &str); 24] = [
        ("GET", "/", 404, "unknown_route"),
        ("GET", "/v1", 404, "unknown_route"),
        ("GET", "/v1/status/", 404, "unknown_route"),
        ("GET", "//v1/status", 404, "unknown_route"),
        ("GET", "/v1/../etc/passwd", 404, "unknown_route"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, "unknown_route"),
        ("DELETE", "/v1/status", 405, "method_not_allowed"),
        ("PUT", "/v1/models/m", 405, "method_not_allowed"),
        ("BREW", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/status", 405, "method_not_allowed"),
        ("GET", "/v1/drain", 405, "method_not_allowed"),
        ("TRACE", "/v1/status", 405, "method_not_allowed"),
        ("POST", "/v1/models/m/explode", 405, "method_not_allowed"),
        ("POST", "/v1/models/nothing/pin", 404, "model_not_found"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
        ("GET", "/v1/models/%zz", 400, "bad_name"),
        ("GET", "/v1/models/%", 400, "bad_name"),
        ("GET", "/v1/models/%ff%fe", 400, "bad_name"),
        ("GET", "/v1/models/a%00b", 400, "bad_name"),
        ("GET", "/v1/models/a%0ab", 400, "bad_name"),
        ("GET", "/v1/models/%2e%2e/m", 400, "bad_name"),
        ("GET", &long, 400, "bad_name"),
        ("GET", "/v1/models?limit=-1", 400, "bad_parameter"),
        ("GET", "/v1/events?since=x", 400, "bad_parameter"),
    ];
    for (method, path, status, code) in cases {
        let (got, body) = http::request(&node.status_socket(), method, path);
        assert_eq!(got, status, "{method} {path}: {body}");
        let error: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(error["error"]["code"], code, "{method} {path}: {body}");
        assert!(
            error["error"]["message"]
                .as_str()
                .is_some_and(|text| text.len() < 2000)
        );
    }
    let huge = "/v1/models?limit=18446744073709551615&after=zzz&prefix=%F0%9F%A6%80";
    assert_eq!(http::request(&node.status_socket(), "GET", huge).0, 200);
}

#[test]
fn slow_peers_are_hung_up_on_and_nobody_waits() {
    let (node, image) = node();
    let baseline = Baseline::of(&node);
    let head = "POST /v1/models/m/pin HTTP/1.1\r\nhost: mrm\r\n";
    let beginnings = [
        "".to_owned(),
        "G".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost".to_owned(),
        format!("{head}content-length: 10\r\n\r\nabc"),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\nab"),
        "GET /healthz HTTP/1.1\r\nhost: mrm\r\n\r\n".to_owned(),
    ];
    let mut slow: Vec<UnixStream> = beginnings.iter().map(|_| connect(&node)).collect();
    for (stream, text) in slow.iter_mut().zip(&beginnings) {
        stream.write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(
        http::request(&node.status_socket(), "GET", "/healthz").0,
        200
    );
    still_serves(&node, "m", &image);
    for (mut stream, text) in slow.into_iter().zip(beginnings) {
        let answer = rest_of(&mut stream);
        let whole = text.starts_with("GET") && text.ends_with("\r\n\r\n");
        assert_eq!(status_of(&answer) == Some(200), whole, "{text:?}: {answer}");
    }
    let pinned = node.get("/v1/models/m");
    assert_eq!(
        pinned["pinned"], false,
        "half a request took effect: {pinned}"
    );
    baseline.is_restored(&node);
}

#[test]
fn a_body_without_an_end_is_refused() {
    let (node, _) = node();
    let baseline = Baseline::of(&node);
    let mut stream = connect(&node);
    let head =
        "POST /v1/models/m/unpin HTTP/1.1\r\nhost: mrm\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    for _ in 0..1000 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let answer = rest_of(&mut stream);
    assert!(matches!(status_of(&answer), Some(413) | None), "{answer}");
    assert_eq!(
        http::request(&node.status_socket(), "GET", "/healthz").0,
        200
    );
    drop(stream);
    baseline.is_restored(&node);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (node, _) = node();
    let paths = ["/healthz", "/v1/models/nothing", "/v1/sessions", "/nowhere"];
    let codes = [200, 404, 200, 404];
    let mut text = String::new();
    for i in 0..400 {
        let last = if i == 399 {
            "connection: close\r\n"
        } else {
            ""
        };
        text += &format!("GET {} HTTP/1.1\r\nhost: mrm\r\n{last}\r\n", paths[i % 4]);
    }
    let mut stream = connect(&node);
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(text.as_bytes()));
    let answer = rest_of(&mut stream);
    writing.join().unwrap().expect("all was taken");
    let statuses: Vec<u16> = answer
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|part| part[..3].parse().unwrap())
        .collect();
    let expected: Vec<u16> = (0..400).map(|i| codes[i % 4]).collect();
    assert_eq!(statuses, expected);
}

#[test]
fn who_never_reads_answers_is_let_go() {
    let (node, _) = node();
    let baseline = Baseline::of(&node);
    let mut stream = connect(&node);
    stream
        .set_write_timeout(Some(std::time::Duration::from_millis(500)))
        .unwrap();
    let burst = "GET /metrics HTTP/1.1\r\nhost: mrm\r\n\r\n".repeat(100);
    let mut sent = 0;
    while sent < 10_000 && stream.write_all(burst.as_bytes()).is_ok() {
        sent += 100;
    }
    assert!(
        sent < 10_000,
        "the daemon read on although nobody reads its answers"
    );
    let grown_from = node.resident_bytes();
    assert_eq!(
        http::request(&node.status_socket(), "GET", "/healthz").0,
        200
    );
    baseline.is_restored(&node);
    node.grew_less_than(8 << 20, grown_from);
    drop(stream);
}

#[test]
fn idle_connections_of_one_user_do_not_lock_out_the_operator() {
    let (node, _) = node();
    let baseline = Baseline::of(&node);
    as_user(NOBODY, || {
        let mut idle: Vec<UnixStream> = (0..100).map(|_| connect(&node)).collect();
        let mut refused = 0;
        for stream in &mut idle[16..] {
            let answer = rest_of(stream);
            assert_eq!(status_of(&answer), Some(503), "{answer}");
            assert!(answer.contains("too_many_connections"), "{answer}");
            refused += 1;
        }
        assert_eq!(refused, 84);
        std::thread::scope(|scope| {
            // A thread of ours is that user as well; the operator's part is tested below.
            let asked = scope
                .spawn(|| answer_to(&node, &get("/healthz", "")))
                .join()
                .unwrap();
            assert_eq!(status_of(&asked), Some(503));
        });
    });
    baseline.is_restored(&node);
    let (go, told) = std::sync::mpsc::channel::<()>();
    let (ready, begun) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let node = &node;
        let holding = scope.spawn(move || {
            as_user(NOBODY, move || {
                let idle: Vec<UnixStream> = (0..100).map(|_| connect(node)).collect();
                ready.send(()).unwrap();
                let _ = told.recv();
                drop(idle);
            })
            .is_some()
        });
        // An error: there is no other user here, and the thread has ended.
        let _ = begun.recv();
        for _ in 0..20 {
            assert_eq!(
                http::request(&node.status_socket(), "GET", "/healthz").0,
                200
            );
        }
        drop(go);
        holding.join().unwrap();
    });
    baseline.is_restored(&node);
}

#[test]
fn the_operators_own_idle_connections_end_and_make_room() {
    let (node, image) = node();
    let baseline = Baseline::of(&node);
    let idle: Vec<UnixStream> = (0..100).map(|_| connect(&node)).collect();
    still_serves(&node, "m", &image);
    eventually("idle connections are ended", || {
        let answer = answer_to(&node, &get("/healthz", ""));
        (status_of(&answer) == Some(200)).then_some(())
    });
    drop(idle);
    baseline.is_restored(&node);
}

#[test]
fn another_user_may_look_and_not_change() {
    let (node, image) = node();
    as_user(NOBODY, || {
        let verbs = [
            "models/m/pin",
            "models/m/unpin",
            "models/m/warm",
            "models/m/evict",
            "drain",
        ];
        for verb in verbs.into_iter().chain(["models/nothing/pin"]) {
            let (status, body) = node.post(&format!("/v1/{verb}"));
            assert_eq!(
                (status, body["error"]["code"].as_str()),
                (403, Some("not_permitted"))
            );
            let message = body["error"]["message"].as_str().unwrap_or_default();
            assert!(
                message.contains("65534") && message.contains("status_group"),
                "{message}"
            );
        }
        for path in [
            "/v1/status",
            "/v1/models",
            "/v1/sessions",
            "/v1/events",
            "/metrics",
        ] {
            assert_eq!(
                http::request(&node.status_socket(), "GET", path).0,
                200,
                "{path}"
            );
        }
    });
    let model = node.get("/v1/models/m");
    assert_eq!(
        (&model["pinned"], &model["state"]),
        (&false.into(), &"resident".into())
    );
    still_serves(&node, "m", &image);
}

/// Random damage to good requests: never a hang, never a crash.
#[test]
fn damaged_requests_do_no_harm() {
    let (node, image) = node();
    let baseline = Baseline::of(&node);
    let mut random = Random(seed());
    for _ in 0..300 {
        let path = [
            "/v1/models/m",
            "/v1/events?since=0&limit=2",
            "/metrics",
            "/v1/sessions",
        ][usize::try_from(random.below(4)).unwrap()];
        let mut bytes = get(path, "content-length: 3\r\n");
        bytes.extend(b"abc");
        for _ in 0..=random.below(3) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] ^= 1 << random.below(8);
        }
        let mut stream = connect(&node);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        rest_of(&mut stream);
    }
    still_serves(&node, "m", &image);
    assert_eq!(
        http::request(&node.status_socket(), "GET", "/healthz").0,
        200
    );
    baseline.is_restored(&node);
}
