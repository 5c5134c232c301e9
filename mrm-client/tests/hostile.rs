//! Daemons that die, hang, or break the protocol: errors, never a panic, a hang or a lost lease.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, SEALED, memfd, server_hello};
use mrm_client::{Client, ConnectOptions, Fault, OpenOptions, WaitFor};
use mrm_proto::error::ErrorCode;
use mrm_proto::frame::{self, Header, Kind};
use mrm_proto::ids::RequestId;
use mrm_proto::reply::{Closed, Progress, Reply};
use mrm_proto::request::Request;
use rustix::fs::SealFlags;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A client that takes a silent daemon for hung after an instant.
fn hasty(fake: &Fake) -> Client {
    let options = ConnectOptions::new().socket(fake.socket());
    Client::connect_with(&options.reply_grace(Duration::from_millis(30))).expect("connects")
}

fn at_once() -> OpenOptions<'static> {
    OpenOptions::new().wait(Duration::ZERO)
}

#[test]
fn a_daemon_of_another_version_is_refused_with_its_own_words() {
    let fake = Fake::start(|n, session| {
        let (id, hello) = session.client_hello();
        assert_eq!((hello.version_min, hello.version_max), (1, 1));
        if n == 0 {
            let message = "the client speaks versions 1 to 1, this daemon 3 to 4";
            return session.error(id, ErrorCode::VersionMismatch, message);
        }
        let mut newer = server_hello();
        newer.0.version = 9;
        session.send(id, &newer, &[]);
    });
    for words in ["3 to 4", "version 9"] {
        let error = Client::connect_to(fake.socket()).expect_err("no common version");
        assert_eq!((error.number(), error.name()), (101, "version_mismatch"));
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_silent_daemon_does_not_hold_the_connecting_client() {
    let (done, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let fake = Fake::start(move |_, _session| {
        let _ = wait.lock().expect("lock").recv();
    });
    let options = ConnectOptions::new()
        .socket(fake.socket())
        .timeout(Duration::from_millis(20));
    let error = Client::connect_with(&options).expect_err("nobody answers");
    assert_eq!(error.name(), "connect_timed_out");
    drop(done);
}

fn frame_of(kind: Kind, id: u64, fds: u8, body: &[u8]) -> Vec<u8> {
    let body_bytes = u32::try_from(body.len()).expect("small");
    let header = Header {
        kind,
        fds,
        body_bytes,
        request: RequestId(id),
    };
    [&header.encode()[..], body].concat()
}

/// Frames that no daemon may send to a client whose one request is `id`.
fn broken_frames(id: u64, content: &Content) -> Vec<(&'static str, Vec<u8>, usize)> {
    let opened = |id: u64, fds: u8| {
        let reply = Reply::Opened(content.opened(1, 1));
        frame::encode(RequestId(id), fds, &reply).expect("encodes")
    };
    let closed =
        |id: u64| frame::encode(RequestId(id), 0, &Reply::Closed(Closed {})).expect("encodes");
    let bent = |at: usize, with: &[u8]| {
        let mut bytes = opened(id, 2);
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let mut trailing = opened(id, 2);
    trailing.push(0);
    trailing[8] += 1;
    vec![
        ("no magic", vec![b'x'; 64], 0),
        ("unknown kind", bent(4, &[0x77, 0x77]), 2),
        ("too long", bent(8, &[0xff; 4]), 2),
        ("reserved bits", bent(7, &[1]), 2),
        ("reserved word", bent(12, &[1]), 2),
        ("too many descriptors", bent(6, &[255]), 2),
        ("a request", frame_of(Kind::Stat, id, 0, &[0xa0]), 0),
        (
            "a second hello",
            frame_of(Kind::ServerHello, id, 0, &[0xa0]),
            0,
        ),
        ("no body", frame_of(Kind::Opened, id, 0, &[]), 0),
        ("no map", frame_of(Kind::Opened, id, 0, &[0xff, 0, 1]), 0),
        ("bytes after the body", trailing, 2),
        ("a reply of another kind", closed(id), 0),
        ("a reply to an unknown request", closed(id + 1), 0),
        ("a reply to nothing", closed(0), 0),
        ("fewer descriptors than announced", opened(id, 2), 1),
        ("more descriptors than announced", opened(id, 1), 2),
        ("descriptors announced, none came", opened(id, 2), 0),
        ("fewer descriptors than segments", opened(id, 1), 1),
        ("more descriptors than segments", opened(id, 3), 3),
        ("two replies", [closed(id + 7), opened(id, 2)].concat(), 2),
    ]
}

#[test]
fn broken_frames_are_errors_and_the_next_open_has_a_new_session() {
    for case in 0..broken_frames(2, &Content::sample(8)).len() {
        let fake = Fake::start(move |n, session| {
            let content = Content::sample(8);
            session.hello();
            if n > 0 {
                return session.serve_opens(&content, 1);
            }
            let (id, ..) = session.next_asking().expect("an open");
            let (_, bytes, fds) = broken_frames(id.0, &content).swap_remove(case);
            session.raw(&bytes, &vec![content.table.as_fd(); fds]);
            session.until_gone();
        });
        let client = fake.client();
        let what = broken_frames(2, &Content::sample(8))[case].0;
        let error = client.open("m").expect_err(what);
        assert_eq!(error.name(), "protocol", "{what}: {error}");
        let again = client.open("m");
        assert!(again.is_ok(), "after {what}: {again:?}");
    }
}

#[test]
fn descriptors_that_could_change_or_are_short_are_refused_and_given_back() {
    let bytes = vec![5u8; 3 << 20];
    let cases: Vec<(SealFlags, u64)> = vec![
        (SealFlags::empty(), 0),
        (SealFlags::WRITE, 0),
        (SealFlags::SHRINK | SealFlags::GROW, 0),
        (SealFlags::FUTURE_WRITE | SealFlags::SHRINK, 0),
        (SEALED, 1),
        (SEALED, 3 << 20),
    ];
    let (seals, expected) = (cases.clone(), cases.len() as u64);
    let fake = Fake::start(move |_, session| {
        session.hello();
        for (lease, (seals, extra)) in (1..).zip(seals.clone()) {
            let (id, ..) = session.next_asking().expect("an open");
            let mut content = Content::sample(8);
            content.segments = vec![(memfd(&bytes, seals), bytes.len() as u64 + extra)];
            session.grant(id, lease, lease, &content);
        }
        let (id, ..) = session.next_asking().expect("an open");
        session.grant(id, expected + 1, expected + 1, &Content::sample(8));
        session.until_gone();
    });
    let client = fake.client();
    for (lease, (seals, _)) in (1..).zip(cases) {
        let error = client.open("m").expect_err("not safe to map");
        assert_eq!(error.name(), "segment_refused", "{seals:?}: {error}");
        fake.seen.wait_closed(lease);
    }
    client.open("m").expect("the session goes on");
}

#[test]
fn a_table_that_could_change_is_refused_when_it_is_looked_at() {
    let fake = Fake::start(|_, session| {
        let mut content = Content::sample(8);
        content.table = memfd(&content.table_copy(), SealFlags::SHRINK);
        session.serve(&content);
    });
    let model = fake.client().open("m").expect("the file itself is sealed");
    assert_eq!(
        model.tensors().expect_err("not safe to map").name(),
        "segment_refused"
    );
    assert_eq!(model.segment(0).expect("one").bytes().len(), 64 + 32 + 13);
}

#[test]
fn a_grant_before_the_last_byte_that_was_not_asked_for_breaks_the_protocol() {
    for (asks, filling) in [(false, vec![0]), (false, vec![]), (true, vec![1])] {
        let fake = Fake::start(move |n, session| {
            session.hello();
            let content = Content::sample(8);
            if n == 0 {
                let (id, ..) = session.next_asking().expect("an open");
                let mut opened = content.opened(1, 7);
                opened.filling = Some(filling.clone());
                session.send(id, &Reply::Opened(opened), &content.fds());
                return session.until_gone();
            }
            session.serve_opens(&content, 2);
        });
        let client = fake.client();
        let wait_for = if asks { WaitFor::Layout } else { WaitFor::All };
        let options = OpenOptions::new().wait_for(wait_for);
        let error = client.open_with("m", &options).expect_err("not whole");
        assert_eq!(error.name(), "protocol", "{error}");
        client.open("m").expect("opens on a new session");
    }
}

#[test]
fn a_session_that_the_daemon_ends_says_why_and_the_next_call_has_a_new_one() {
    let fake = Fake::start(|n, session| {
        session.hello();
        if n > 0 {
            return session.serve_opens(&Content::sample(8), 1);
        }
        session.next_asking().expect("an open");
        session.error(
            RequestId::NO_REPLY,
            ErrorCode::TooSlow,
            "too slow, be faster",
        );
    });
    let client = fake.client();
    let error = client.open("m").expect_err("the session ends");
    assert_eq!((error.number(), error.took_effect()), (109, false));
    assert!(error.to_string().contains("be faster"), "{error}");
    client.open("m").expect("opens on a new session");
}

#[test]
fn what_is_mapped_survives_the_daemon_and_the_next_open_finds_its_successor() {
    let (die, dying) = mpsc::channel::<()>();
    let dying = Mutex::new(dying);
    let fake = Fake::start(move |n, session| {
        session.hello();
        let content = Content::sample(1_000_000);
        let (id, ..) = session.next_asking().expect("an open");
        session.grant(id, n as u64, n as u64, &content);
        if n == 0 {
            let _ = dying.lock().expect("lock").recv();
        } else {
            session.serve_opens(&content, 10);
        }
    });
    let client = fake.client();
    let old = client.open("m").expect("opens");
    die.send(()).expect("the fake waits");
    drop(die);
    let new = client.open("other").expect("opens at the successor");
    assert_eq!((old.version().0, new.version().0), (0, 1));
    let w = old.tensor("w").expect("still there");
    assert_eq!(w.as_slice::<f32>().expect("floats")[999_999], 999_999.0);
    // The old lease is gone, so the old open no longer stands for the name.
    assert!(!client.open("m").expect("opens").same_open(&old));
}

#[test]
fn a_request_whose_session_breaks_is_sent_again_and_without_patience_only_so_often() {
    let fake = Fake::start(|n, session| {
        session.hello();
        if n == 1 || n >= 5 {
            return session.serve_opens(&Content::sample(8), 1);
        }
        let _ = session.next_asking();
    });
    let client = fake.client();
    let model = client.open("m").expect("the second session answers");
    assert_eq!(fake.seen.count(), 2);
    drop(model);

    let options = ConnectOptions::new().socket(fake.socket());
    let client = Client::connect_with(&options.reconnect(false)).expect("connects");
    assert_eq!(
        client.open("m").expect_err("three sessions break").name(),
        "disconnected"
    );
    client.open("m").expect("opens at last");
}

#[test]
fn an_open_that_is_never_answered_is_cancelled_and_its_late_grant_given_back() {
    let (late, when) = mpsc::channel::<()>();
    let when = Mutex::new(when);
    let fake = Fake::start(move |_, session| {
        session.hello();
        let (id, ..) = session.next_asking().expect("an open");
        let (_, cancel, _) = session.next().expect("a cancel");
        assert!(matches!(cancel, Request::Cancel(cancel) if cancel.target == id));
        when.lock().expect("lock").recv().expect("the test goes on");
        let progress = Progress {
            loaded_bytes: 1,
            total_bytes: 2,
            eta_ms: None,
        };
        session.send(id, &Reply::Progress(progress), &[]);
        session.grant(id, 77, 7, &Content::sample(8));
        session.serve_opens(&Content::sample(8), 78);
    });
    let client = hasty(&fake);
    let error = client
        .open_with("m", &at_once())
        .expect_err("nobody answers");
    assert_eq!(error.name(), "reply_timed_out");
    assert!(error.retryable());
    late.send(()).expect("the fake waits");
    let options = OpenOptions::new();
    let model = client
        .open_with("m", &options)
        .expect("the session goes on");
    fake.seen.wait_closed(77);
    drop(model);
    fake.seen.wait_closed(78);
}

#[test]
fn a_grant_that_crosses_the_cancel_is_used() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let (id, ..) = session.next_asking().expect("an open");
        session.next().expect("a cancel");
        session.grant(id, 1, 1, &Content::sample(8));
        session.until_gone();
    });
    hasty(&fake)
        .open_with("m", &at_once())
        .expect("granted at the last moment");
    fake.seen.wait_closed(1);
}

#[test]
fn when_the_reading_thread_gives_up_another_reads_on() {
    let (late, when) = mpsc::channel::<()>();
    let when = Mutex::new(when);
    let fake = Fake::start(move |_, session| {
        session.hello();
        let mut patient = None;
        while let Some((id, request, _)) = session.next() {
            match request {
                Request::Open(open) if open.model.as_str() == "patient" => patient = Some(id),
                Request::Cancel(cancel) => {
                    session.error(cancel.target, ErrorCode::Cancelled, "cancelled");
                    when.lock().expect("lock").recv().expect("the test goes on");
                    session.grant(patient.expect("both asked"), 1, 1, &Content::sample(8));
                }
                _ => {}
            }
        }
    });
    let client = hasty(&fake);
    std::thread::scope(|scope| {
        let seen = Arc::clone(&fake.seen);
        let opens = move |n| seen.wait("opens", move |requests| requests.len() >= n);
        let hasty = scope.spawn(|| {
            let wait = OpenOptions::new().wait(Duration::from_millis(200));
            client.open_with("hasty", &wait)
        });
        opens(1);
        // "hasty" has the turn to read by now or soon; "patient" sleeps meanwhile.
        let patient = scope.spawn(|| client.open("patient"));
        let gave_up = hasty.join().expect("no panic").expect_err("cancelled");
        assert_eq!(gave_up.name(), "reply_timed_out");
        late.send(()).expect("the fake waits");
        patient.join().expect("no panic").expect("is answered");
    });
}

#[test]
fn replies_may_come_byte_by_byte() {
    let fake = Fake::start(|_, session| {
        let id = session.client_hello().0;
        let hello = frame::encode(id, 0, &server_hello()).expect("encodes");
        for byte in hello {
            session.raw(&[byte], &[]);
        }
        let (id, ..) = session.next_asking().expect("an open");
        let content = Content::sample(8);
        let reply = Reply::Opened(content.opened(1, 1));
        let bytes = frame::encode(id, 2, &reply).expect("encodes");
        session.raw(&bytes[..1], &content.fds());
        for byte in &bytes[1..] {
            session.raw(std::slice::from_ref(byte), &[]);
        }
        session.until_gone();
    });
    let model = fake.client().open("m").expect("opens");
    assert_eq!(
        model
            .tensor("scalar")
            .expect("is there")
            .as_slice::<i64>()
            .expect("int"),
        [-9]
    );
}
