//! Frames that break the protocol: each ends its session with its own code, and no other session.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::frame::Kind;
use mrm_proto::hello::ClientHello;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::limits::{
    FRAME_BODY_BYTES_MAX, LEASES_PER_SESSION_MAX, REQUESTS_IN_FLIGHT_MAX, VERSION_MAX,
};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, List, Request, Stat};
use mrm_tests::hostile::{
    Baseline, close, content, copies, encoded, ending, ends_session, framed, granted, header, open,
    open_files, refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{eventually, model};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

const OPEN: u16 = Kind::Open as u16;

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

fn open_body() -> Vec<u8> {
    encoded(2, 0, &open("m", 0))[24..].to_vec()
}

fn list() -> Request {
    Request::List(List {
        prefix: String::new(),
        after: None,
    })
}

#[test]
fn headers_that_break_a_rule_end_their_session() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let too_long = u32::try_from(FRAME_BODY_BYTES_MAX).unwrap() + 1;
    let mut bad_magic = encoded(2, 0, &open("m", 0));
    bad_magic[0] = b'X';
    let mut bad_framing = encoded(2, 0, &open("m", 0));
    bad_framing[3] = 2;
    let cases: Vec<(Vec<u8>, ErrorCode)> = vec![
        (bad_magic, ErrorCode::BadMagic),
        (bad_framing, ErrorCode::BadMagic),
        (
            b"GET /v1/status HTTP/1.1\r\nhost: mrm\r\n\r\n".to_vec(),
            ErrorCode::BadMagic,
        ),
        (vec![0; 64], ErrorCode::BadMagic),
        (header(OPEN, 0, 0, too_long, 0, 2), ErrorCode::FrameTooLong),
        (header(OPEN, 0, 0, u32::MAX, 0, 2), ErrorCode::FrameTooLong),
        (header(0x0002, 0, 0, 0, 0, 2), ErrorCode::UnknownKind),
        (header(0x7f10, 0, 0, 0, 0, 2), ErrorCode::UnknownKind),
        (header(OPEN, 0, 1, 0, 0, 2), ErrorCode::ReservedBits),
        (header(OPEN, 0, 0x80, 0, 0, 2), ErrorCode::ReservedBits),
        (header(OPEN, 0, 0, 0, 1, 2), ErrorCode::ReservedBits),
        (header(OPEN, 0, 0, 0, 1 << 31, 2), ErrorCode::ReservedBits),
        (header(OPEN, 254, 0, 0, 0, 2), ErrorCode::WrongFdCount),
    ];
    for (bytes, code) in cases {
        ends_session(&node, &bytes, &[], code);
        // The same as the first thing that a client says.
        let mut raw = Raw::connect(&node.socket());
        let _ = raw.send_bytes(&bytes, &[]);
        assert_eq!(ending(&mut raw).code(), Some(code));
        still_serves(&node, "m", &image);
    }
    baseline.is_restored(&node);
}

#[test]
fn frames_out_of_order_end_their_session() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    for kind in Kind::ALL
        .into_iter()
        .filter(|&kind| kind as u16 & 0x8000 != 0)
    {
        ends_session(
            &node,
            &framed(kind as u16, 0, 2, &[0xa0]),
            &[],
            ErrorCode::OutOfOrder,
        );
    }
    let hello = encoded(2, 0, &ClientHello::new("again"));
    ends_session(&node, &hello, &[], ErrorCode::OutOfOrder);
    for request in [open("m", 0), list(), close(LeaseId(1))] {
        let mut raw = Raw::connect(&node.socket());
        raw.send(RequestId(2), &request, &[]);
        raw.ends_with(ErrorCode::OutOfOrder);
    }
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

#[test]
fn versions_that_do_not_meet_are_both_named() {
    let (node, image) = node_with(&[]);
    let next = VERSION_MAX + 1;
    for (min, max) in [(next, next + 6), (0, 0), (u16::MAX, u16::MAX), (9, 0)] {
        let mut raw = Raw::connect(&node.socket());
        let hello = ClientHello {
            version_min: min,
            version_max: max,
            ..ClientHello::new("from afar")
        };
        raw.send(RequestId(1), &hello, &[]);
        let error = ending(&mut raw);
        assert_eq!(error.code(), Some(ErrorCode::VersionMismatch));
        let both = [
            format!("versions 1 to {VERSION_MAX}"),
            format!("{min} to {max}"),
        ];
        assert!(
            both.iter().all(|range| error.message.contains(range)),
            "{}",
            error.message
        );
    }
    still_serves(&node, "m", &image);
}

#[test]
fn bodies_that_do_not_decode_end_their_session() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let mut trailing = open_body();
    trailing.push(0);
    let mut cut = open_body();
    cut.pop();
    let huge_list = [b"\xa1\x01\x9b".as_slice(), &[0xff; 8]].concat();
    let huge_text = [b"\xa1\x00\x7b".as_slice(), &[0x7f; 8]].concat();
    let endless_tags = vec![0xc1; FRAME_BODY_BYTES_MAX];
    let bodies: [(u16, &[u8]); 14] = [
        (OPEN, b""),
        (OPEN, &[0xa0]),
        (OPEN, &[0x80]),
        (OPEN, &[0xff]),
        (OPEN, &[0xf6]),
        (OPEN, &trailing),
        (OPEN, &cut),
        (OPEN, b"\xa3\x00\x01\x01\x00\x02\xf4"),
        (OPEN, b"\xa3\x00\x61m\x01\x20\x02\xf4"),
        (OPEN, b"\xa3\x00\x62\xff\xfe\x01\x00\x02\xf4"),
        (OPEN, &huge_text),
        (OPEN, &endless_tags),
        (Kind::OpenFiles as u16, &huge_list),
        (Kind::Close as u16, b"\xa1\x00\x20"),
    ];
    for (kind, body) in bodies {
        ends_session(
            &node,
            &framed(kind, 0, 2, body),
            &[],
            ErrorCode::MalformedBody,
        );
    }
    let mut raw = Raw::connect(&node.socket());
    raw.send_bytes(&framed(Kind::ClientHello as u16, 0, 1, &[0xa1, 0x00]), &[])
        .unwrap();
    raw.ends_with(ErrorCode::MalformedBody);
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

#[test]
fn unknown_keys_are_skipped_however_deep_they_nest() {
    let (node, image) = node_with(&[]);
    for opening in [&b"\x81"[..], b"\xa1\x00", b"\x9f", b"\xbf\x00", b"\xc1"] {
        let mut raw = Raw::hello(&node.socket());
        let mut body = b"\xa4\x00\x61m\x01\x00\x02\xf4\x18\x63".to_vec();
        let depth = (FRAME_BODY_BYTES_MAX - 200) / 2 / opening.len();
        body.extend(opening.repeat(depth));
        body.push(0);
        if matches!(opening[0], 0x9f | 0xbf) {
            body.resize(body.len() + depth, 0xff);
        }
        raw.send_bytes(&framed(OPEN, 0, 2, &body), &[]).unwrap();
        let reply = raw.reply().expect("an answer").1;
        let refused =
            matches!(&reply, Reply::Error(e) if e.code() == Some(ErrorCode::MalformedBody));
        assert!(refused || matches!(reply, Reply::Opened(_)), "{reply:?}");
        still_serves(&node, "m", &image);
    }
}

#[test]
fn names_that_break_the_rules_are_refused_and_the_session_goes_on() {
    let (node, image) = node_with(&[]);
    let mut raw = Raw::hello(&node.socket());
    let long = "x".repeat(10_000);
    let names = [
        "",
        "..",
        ".",
        "../m",
        "a/../m",
        "/etc/passwd",
        "a//b",
        "m/",
        "m\0",
        "m\n",
        &long,
    ];
    for (i, name) in names.into_iter().enumerate() {
        for kind in [Kind::Open, Kind::OpenFiles, Kind::Stat] {
            let length = u16::try_from(name.len()).unwrap().to_be_bytes();
            let text = [&[0x79], &length[..], name.as_bytes()].concat();
            let rest: &[u8] = match kind {
                Kind::Open => b"\x01\x00\x02\xf4",
                Kind::OpenFiles => b"\x01\x80\x02\x00\x03\xf4",
                _ => b"",
            };
            let keys = match kind {
                Kind::Open => 0xa3,
                Kind::OpenFiles => 0xa4,
                _ => 0xa1,
            };
            let body = [&[keys, 0x00], &text[..], rest].concat();
            let id = 10 + i as u64;
            raw.send_bytes(&framed(kind as u16, 0, id, &body), &[])
                .unwrap();
            let (RequestId(got), Reply::Error(error), _) = raw.reply().expect("goes on") else {
                panic!("{name:?} was accepted");
            };
            assert_eq!(
                (got, error.code()),
                (id, Some(ErrorCode::BadName)),
                "{name:?}"
            );
            assert!(error.message.contains("name"), "{}", error.message);
            assert!(!error.message.contains(['\0', '\n']) && error.message.len() < 1000);
        }
    }
    granted(&mut raw, 99, "m");
    still_serves(&node, "m", &image);
}

#[test]
fn request_ids_that_break_the_rules_end_their_session() {
    let (node, image) = node_with(&[]);
    let stat = Request::Stat(Stat {
        model: ModelName::new("m").unwrap(),
    });
    for request in [open("m", 0), list(), stat, open_files("x", &[])] {
        ends_session(
            &node,
            &encoded(0, 0, &request),
            &[],
            ErrorCode::BadRequestId,
        );
    }
    // Close and cancel of nothing, unanswered, do no harm.
    let mut raw = Raw::hello(&node.socket());
    raw.send(RequestId(0), &close(LeaseId(77)), &[]);
    raw.send(
        RequestId(0),
        &Request::Cancel(Cancel {
            target: RequestId(77),
        }),
        &[],
    );
    let error = refused(&mut raw, 5, &close(LeaseId(77)), &[]);
    assert_eq!(error.code(), Some(ErrorCode::UnknownLease));
    let cancel = Request::Cancel(Cancel {
        target: RequestId(77),
    });
    assert!(matches!(raw.ask(RequestId(6), &cancel, &[]), Reply::Cancelled(c) if !c.was_pending));
    still_serves(&node, "m", &image);
}

#[test]
fn a_wrong_number_of_descriptors_ends_the_session() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let null = File::open("/dev/null").unwrap();
    let wrong = ErrorCode::WrongFdCount;
    let two = open_files("x", &["a.bin", "b.bin"]);
    // Announced, passed: less, more, none; and what takes none.
    ends_session(&node, &encoded(2, 2, &two), &copies(&null, 1), wrong);
    ends_session(&node, &encoded(2, 2, &two), &[], wrong);
    ends_session(&node, &encoded(2, 2, &two), &copies(&null, 3), wrong);
    ends_session(&node, &encoded(2, 1, &two), &copies(&null, 1), wrong);
    ends_session(&node, &encoded(2, 3, &two), &copies(&null, 3), wrong);
    ends_session(&node, &encoded(2, 0, &two), &[], wrong);
    for request in [open("m", 0), close(LeaseId(1)), list()] {
        ends_session(&node, &encoded(2, 1, &request), &copies(&null, 1), wrong);
        ends_session(&node, &encoded(2, 0, &request), &copies(&null, 1), wrong);
        ends_session(
            &node,
            &encoded(2, 253, &request),
            &copies(&null, 253),
            wrong,
        );
        ends_session(&node, &encoded(2, 0, &request), &copies(&null, 253), wrong);
    }
    // Descriptors on a later byte than the first come too late.
    let mut raw = Raw::hello(&node.socket());
    let bytes = encoded(2, 2, &two);
    raw.send_bytes(&bytes[..30], &[]).unwrap();
    // Once another is served, the daemon has read the first half by itself.
    still_serves(&node, "m", &image);
    let _ = raw.send_bytes(&bytes[30..], &copies(&null, 2));
    raw.ends_with(wrong);
    // A hello has none.
    let hello = ClientHello::new("with a gift");
    for announced in [0, 1] {
        let mut raw = Raw::connect(&node.socket());
        let _ = raw.send_bytes(&encoded(1, announced, &hello), &copies(&null, 1));
        assert_eq!(ending(&mut raw).code(), Some(wrong));
    }
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

#[test]
fn as_many_descriptors_as_a_frame_holds_are_refused_by_name_and_the_session_goes_on() {
    let (node, image) = node_with(&[]);
    let baseline = Baseline::of(&node);
    let null = File::open("/dev/null").unwrap();
    let mut raw = Raw::hello(&node.socket());
    for (id, count) in [(2, 253), (3, 250), (4, 251)] {
        let names: Vec<String> = (0..count).map(|i| format!("{i}.bin")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error = refused(
            &mut raw,
            id,
            &open_files("x", &names),
            &copies(&null, count),
        );
        // What is wrong first is said first: too many, or not one of them a file.
        let expected = if count > 250 {
            ErrorCode::BadFileSet
        } else {
            ErrorCode::NotRegularFile
        };
        assert_eq!(error.code(), Some(expected), "{}", error.message);
    }
    granted(&mut raw, 9, "m");
    drop(raw);
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

/// Frames with many descriptors each may arrive in one read.
#[test]
fn descriptors_of_pipelined_frames_are_not_taken_for_too_many() {
    let (node, _) = node_with(&[]);
    let null = File::open("/dev/null").unwrap();
    let names: Vec<String> = (0..200).map(|i| format!("{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let set = open_files("x", &names);
    // A filler that makes the first read end inside of the first set.
    let filler = Request::List(List {
        prefix: "x".repeat(3500),
        after: None,
    });
    let mut raw = Raw::hello(&node.socket());
    node.signal(nix::sys::signal::Signal::SIGSTOP);
    raw.send(RequestId(2), &filler, &[]);
    for id in 3..8 {
        raw.send(RequestId(id), &set, &copies(&null, 200));
    }
    node.signal(nix::sys::signal::Signal::SIGCONT);
    for _ in 2..8 {
        let (RequestId(id), reply, _) = raw.reply().expect("the session goes on");
        assert!(id >= 2, "{reply:?}");
    }
}

#[test]
fn frames_may_come_byte_by_byte_or_many_at_once() {
    let (node, image) = node_with(&[]);
    let mut raw = Raw::connect(&node.socket());
    let hello = encoded(1, 0, &ClientHello::new("slow"));
    for byte in hello.iter().chain(&encoded(2, 0, &open("m", 0))) {
        raw.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(raw.receive().expect("a hello").0.kind, Kind::ServerHello);
    let (_, reply, fds) = raw.reply().expect("a grant");
    assert!(matches!(reply, Reply::Opened(_)));
    assert!(content(&fds[1], image.len() as u64) == image);

    let count = 200;
    let burst: Vec<u8> = (0..count)
        .flat_map(|i| encoded(10 + i, 0, &open("m", 0)))
        .collect();
    raw.stream.write_all(&burst).unwrap();
    for _ in 0..count {
        let (_, reply, fds) = raw.reply().expect("each is answered");
        assert!(
            matches!(reply, Reply::Opened(_)) && fds.len() == 2,
            "{reply:?}"
        );
    }
    let last = encoded(999, 0, &list());
    let mut hello_and_more = encoded(1, 0, &ClientHello::new("hasty"));
    hello_and_more.extend(&last);
    let mut raw = Raw::connect(&node.socket());
    raw.stream.write_all(&hello_and_more).unwrap();
    assert_eq!(raw.receive().expect("a hello").0.kind, Kind::ServerHello);
    assert!(matches!(raw.reply().expect("a list").1, Reply::Listed(_)));
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
    let grown = node.resident_bytes().saturating_sub(grown_from);
    assert!(grown < 16 << 20, "grew by {grown} bytes");
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
            match raw.reply().expect("a grant").1 {
                Reply::Opened(opened) => last = Some(opened.lease),
                other => panic!("{other:?}"),
            }
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

/// Any prefix of good frames with any byte changed: an answer or an end, never a hang or a crash.
#[test]
fn damaged_frames_get_an_answer_or_an_end() {
    let (node, image) = node_with(&["limits.write_stall_ms = 50"]);
    let baseline = Baseline::of(&node);
    let mut random = mrm_tests::Random(mrm_tests::seed());
    let null = File::open("/dev/null").unwrap();
    for _ in 0..300 {
        let mut raw = Raw::hello(&node.socket());
        let mut bytes = encoded(2, 0, &open("m", 0));
        bytes.extend(encoded(3, 0, &list()));
        bytes.extend(encoded(4, 0, &close(LeaseId(random.below(8)))));
        for _ in 0..=random.below(3) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] ^= 1 << random.below(8);
        }
        let fds = usize::try_from(random.below(2)).unwrap();
        let _ = raw.send_bytes(&bytes, &vec![null.as_fd(); fds]);
        // Half a frame is ended by the daemon, whole frames by us.
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        while raw.receive().is_some() {}
    }
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}
