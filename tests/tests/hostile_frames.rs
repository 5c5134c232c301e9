//! Frames that break the protocol: each ends its session with its own code, and no other session.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::frame::Kind;
use mrm_proto::hello::{ClientHello, features};
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::limits::{FRAME_BODY_BYTES_MAX, VERSION_MAX};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, List, Request, Stat};
use mrm_tests::hostile::{
    Baseline, close, content, copies, encoded, ending, ends_session, framed, granted, header, open,
    open_files, refused, still_serves,
};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use std::fs::File;
use std::io::Write;
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
        let shapes: [(Kind, u8, &[u8]); 3] = [
            (Kind::Open, 0xa3, b"\x01\x00\x02\xf4"),
            (Kind::OpenFiles, 0xa4, b"\x01\x80\x02\x00\x03\xf4"),
            (Kind::Stat, 0xa1, b""),
        ];
        for (kind, keys, rest) in shapes {
            let length = u16::try_from(name.len()).unwrap().to_be_bytes();
            let text = [&[0x79], &length[..], name.as_bytes()].concat();
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
    let mut hello = ClientHello::new("slow");
    // Each answer in a frame of its own.
    hello.features &= !features::MANY;
    let hello = encoded(1, 0, &hello);
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
