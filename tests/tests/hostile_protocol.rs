//! Every rule of PROTOCOL.md, broken on purpose.
//!
//! | section | what the document says | broken by |
//! |---|---|---|
//! | 1 | the end of the connection gives every lease back and drops every pending request | `what_a_session_had_ends_with_it`, `sharing::a_killed_client_is_gone_from_the_books` |
//! | 1 | the session ends with the process, also if a forked child has the socket | `sharing::a_forked_child_opens_for_itself` |
//! | 2 | magic, kind, number of descriptors, flags, reserved, length | `every_rule_has_its_error`, `hostile_frames::headers_that_break_a_rule_end_their_session` |
//! | 2 | one CBOR map; unknown keys skipped; missing keys, bytes left over | `every_rule_has_its_error`, `hostile_frames::bodies_that_do_not_decode_end_their_session` |
//! | 2 | descriptors with the first byte, as many as announced, as many as needed | `every_rule_has_its_error`, `hostile_frames::a_wrong_number_of_descriptors_ends_the_session` |
//! | 3 | hello first, once, whole, in time; versions; feature bits | `every_rule_has_its_error`, `features_are_those_that_both_know`, `hostile_limits::silence_and_half_frames_are_too_slow` |
//! | 4 | what each request may say, and of whom | `every_rule_has_its_error`, `a_cancel_reaches_only_ones_own_opens`, `hostile_isolation::a_lease_of_one_session_is_nothing_to_another` |
//! | 4 | the daemon opens no path that a client named | `isolation::another_user_changes_nothing` |
//! | 4 | segments are sealed, and open for reading only | `isolation`, `hostile_isolation` |
//! | 4 | descriptors are files that the client could read | `hostile_files::a_descriptor_that_is_no_readable_file_is_refused`, `hostile_fuse` |
//! | 5 | devices by UUID, at most 64, "else in host memory" | `every_rule_has_its_error`, `device_calls::what_names_no_device_is_refused` |
//! | 6 | Resume: what was not taken over is null | `every_rule_has_its_error`, `leases_of_nobody_are_not_taken_up` |
//! | 7 | ids: not 0, unlike those that await a reply; 0 for silent ones | `every_rule_has_its_error`, `hostile_limits::opens_in_flight_are_bounded` |
//! | 7 | requests in flight, leases, files, names, waits | `every_rule_has_its_error`, `hostile_limits` |
//! | 8 | 1xx ends the session, all others leave it | `every_rule_has_its_error` |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::hello::{ClientHello, ServerHello, features};
use mrm_proto::ids::{InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::reply::Reply;
use mrm_proto::request::{Cancel, HadLease, Request, Resume};
use mrm_tests::breaches::{self, Outcome};
use mrm_tests::hostile::{
    Baseline, NOBODY, as_user, close, encoded, granted, let_everybody_in, open, open_files,
    refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::survival::{Family, kept};
use mrm_tests::{eventually, model};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

/// A daemon with room for one of its two models, `m` and `wanted`; the image of `m`.
fn node() -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 1 << 20, 2, 1);
    let (wanted, _) = model::write(dir.path(), "wanted.safetensors", 1 << 20, 2, 2);
    let setup = Setup::new()
        .budget(3 << 19)
        .model("m", &path)
        .model("wanted", &wanted);
    let node = Node::start_in(dir, &setup);
    still_serves(&node, "m", &image);
    (node, image)
}

#[test]
fn every_rule_has_its_error() {
    let (node, image) = node();
    let baseline = Baseline::of(&node);
    let all = breaches::all("m");
    for breach in &all {
        let mut raw = breach.commit(&node.socket());
        breaches::check(breach, &mut raw);
        match breach.outcome {
            Outcome::Ends(code) => assert!(code.ends_session(), "{}", breach.rule),
            Outcome::Refused(code) => {
                assert!(!code.ends_session(), "{}", breach.rule);
                granted(&mut raw, 90, "m");
            }
            Outcome::Answered => drop(granted(&mut raw, 90, "m")),
        }
    }
    println!("{} rules broken", all.len());
    assert!(all.len() > 40);
    still_serves(&node, "m", &image);
    baseline.is_restored(&node);
}

#[test]
fn features_are_those_that_both_know() {
    let (node, _) = node();
    for (offered, agreed) in [
        (0, 0),
        (features::PROGRESS, features::PROGRESS),
        (1 << 63, 0),
        // No device is here.
        (features::DEVICE, 0),
    ] {
        let mut raw = Raw::connect(&node.socket());
        let hello = ClientHello {
            features: offered,
            ..ClientHello::new("from the future")
        };
        raw.send(RequestId(1), &hello, &[]);
        let (header, body, _) = raw.receive().expect("a hello");
        let reply = ServerHello::decode(&header, &body).expect("a hello");
        assert_eq!(reply.features, agreed, "of {offered:#x}");
        granted(&mut raw, 2, "m");
    }
    let all = ClientHello {
        features: u64::MAX,
        ..ClientHello::new("with all there ever will be")
    };
    let mut raw = Raw::connect(&node.socket());
    raw.send(RequestId(1), &all, &[]);
    let (header, body, _) = raw.receive().expect("a hello");
    let reply = ServerHello::decode(&header, &body).expect("a hello");
    assert_eq!(reply.features & !features::ALL, 0);
}

#[test]
fn what_a_session_had_ends_with_it() {
    let (node, image) = node();
    let mut holder = Raw::hello(&node.socket());
    granted(&mut holder, 2, "m");
    let mut waiting = Raw::hello(&node.socket());
    for id in 2..10 {
        waiting.send(RequestId(id), &open("wanted", 600_000), &[]);
    }
    eventually("they wait", || (node.number("/waiting") == 8).then_some(()));
    // In the middle of a frame, too.
    let half = encoded(20, 0, &open("wanted", 0));
    waiting.stream.write_all(&half[..30]).unwrap();
    drop(waiting);
    eventually("nobody waits", || {
        (node.number("/waiting") == 0).then_some(())
    });
    assert_eq!(node.number("/leases"), 1);
    drop(holder);
    node.until_idle();
    still_serves(&node, "m", &image);
}

#[test]
fn a_cancel_reaches_only_ones_own_opens() {
    let (node, _) = node();
    let mut holder = Raw::hello(&node.socket());
    granted(&mut holder, 2, "m");
    let mut waiting = Raw::hello(&node.socket());
    waiting.send(RequestId(5), &open("wanted", 600_000), &[]);
    eventually("it waits", || (node.number("/waiting") == 1).then_some(()));
    let cancel = Request::Cancel(Cancel {
        target: RequestId(5),
    });
    let mut stranger = Raw::hello(&node.socket());
    let reply = stranger.ask(RequestId(2), &cancel, &[]);
    assert!(matches!(reply, Reply::Cancelled(it) if !it.was_pending));
    assert_eq!(node.number("/waiting"), 1);
    // The open is answered, and then the cancel.
    waiting.send(RequestId(6), &cancel, &[]);
    let (id, reply, _) = waiting.reply().expect("an answer");
    assert_eq!(id, RequestId(5));
    assert!(matches!(reply, Reply::Error(error) if error.code() == Some(ErrorCode::Cancelled)));
    let (id, reply, _) = waiting.reply().expect("an answer");
    assert_eq!(id, RequestId(6));
    assert!(matches!(reply, Reply::Cancelled(it) if it.was_pending));
}

/// Whoever guesses gets no memory: of another run's versions nothing, and of this one's a lease at
/// most on what is in the catalogue, which counts as its own.
#[test]
fn leases_of_nobody_are_not_taken_up() {
    let (node, image) = node();
    let mut raw = Raw::connect(&node.socket());
    raw.send(RequestId(1), &ClientHello::new("guesses"), &[]);
    let (header, body, _) = raw.receive().expect("a hello");
    let own = ServerHello::decode(&header, &body).expect("a hello");
    for instance in [own.instance, InstanceId(0), InstanceId(u64::MAX)] {
        let leases = (0..64).map(|version| HadLease {
            version: VersionId(version),
            device: None,
            reserve_bytes: None,
        });
        let resume = Request::Resume(Resume {
            instance,
            leases: leases.collect(),
        });
        raw.send(RequestId(2), &resume, &[]);
        let Some((_, Reply::Resumed(resumed), fds)) = raw.reply() else {
            panic!("not answered");
        };
        assert!(fds.is_empty());
        assert_eq!(resumed.leases.len(), 64);
        let got: Vec<LeaseId> = resumed.leases.into_iter().flatten().collect();
        assert!(got.is_empty() || instance == own.instance, "{instance:?}");
        assert_eq!(node.number("/leases"), got.len() as u64);
        for lease in got {
            raw.send(RequestId(0), &close(lease), &[]);
        }
    }
    let error = refused(&mut raw, 3, &close(LeaseId(u64::MAX)), &[]);
    assert_eq!(error.code(), Some(ErrorCode::UnknownLease));
    assert_eq!(node.number("/leases"), 0);

    // Nor does it fill the operator's log.
    let lines = || node.log().lines().count();
    let before = lines();
    let leases = vec![
        HadLease {
            version: VersionId(u64::MAX),
            device: None,
            reserve_bytes: None
        };
        2048
    ];
    for id in 10..400 {
        let request = Request::Resume(Resume {
            instance: own.instance,
            leases: leases.clone(),
        });
        assert!(matches!(
            raw.ask(RequestId(id), &request, &[]),
            Reply::Resumed(_)
        ));
    }
    let grown = lines() - before;
    assert!(grown < 300, "{grown} lines");
    still_serves(&node, "m", &image);
}

/// A number is no proof: who did not pass a file gets no lease on it, which would keep it in memory.
#[test]
fn what_another_user_passed_cannot_be_taken_up_by_its_number() {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, _) = model::write(dir.path(), "secret.safetensors", 1 << 20, 2, 3);
    let (listed, _) = model::write(dir.path(), "listed.safetensors", 1 << 20, 2, 4);
    let_everybody_in(dir.path());
    let setup = kept(Setup::new().model("listed", &listed));
    let mut node = Node::start_in(dir, &setup);
    let _family = Family::of(node.dir.path());
    let mut owner = Raw::hello(&node.socket());
    let file = File::open(path).unwrap();
    let pass = open_files("secret", &["secret.safetensors"]);
    owner.send(RequestId(2), &pass, &[file.as_fd()]);
    let Some((_, Reply::Opened(secret), _)) = owner.reply() else {
        panic!("not granted")
    };
    let (listed, _) = granted(&mut owner, 3, "listed");
    let own = instance_of(&node);
    for _ in 0..2 {
        let ask = |uid: u32| {
            as_user(uid, || {
                let mut raw = Raw::hello(&node.socket());
                let leases = resumed(&mut raw, own, [secret.version, listed.version]);
                (raw, leases)
            })
        };
        let Some((_stranger, [secret_too, listed_too])) = ask(NOBODY) else {
            return;
        };
        assert_eq!(secret_too, None, "it was never his");
        assert!(listed_too.is_some(), "anybody may open that");
        let (_, again) = ask(0).expect("we are root");
        assert!(again[0].is_some(), "it is his who passed it");
        // Nor does the next daemon forget whose it is.
        node.kill();
        node.restart(&setup);
    }
}

fn instance_of(node: &Node) -> InstanceId {
    let mut raw = Raw::connect(&node.socket());
    raw.send(RequestId(1), &ClientHello::new("asks"), &[]);
    let (header, body, _) = raw.receive().expect("a hello");
    ServerHello::decode(&header, &body)
        .expect("a hello")
        .instance
}

fn resumed(raw: &mut Raw, instance: InstanceId, versions: [VersionId; 2]) -> [Option<LeaseId>; 2] {
    let leases = versions.map(|version| HadLease {
        version,
        device: None,
        reserve_bytes: None,
    });
    let leases = leases.to_vec();
    let request = Request::Resume(Resume { instance, leases });
    let reply = raw.ask(RequestId(50), &request, &[]);
    let Reply::Resumed(resumed) = reply else {
        panic!("{reply:?}")
    };
    resumed.leases.try_into().expect("two")
}
