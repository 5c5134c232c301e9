//! Users who share nothing on devices: copies of their own, which nobody else is ever lent.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_proto::error::ErrorCode;
use mrm_proto::hello::{ClientHello, ServerHello, features};
use mrm_proto::ids::{InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::name::ModelName;
use mrm_proto::reply::{Opened, Origin, Reply};
use mrm_proto::request::{Devices, HadLease, Open, Request, Resume};
use mrm_tests::gpus::{Gpus, device_field, uuid};
use mrm_tests::hostile::{NOBODY, as_user, close, let_everybody_in};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::survival::{Family, kept};
use mrm_tests::{eventually, model};
use std::os::fd::OwnedFd;

const MIB: u64 = 1 << 20;
/// Two users who share nothing, and one who shares.
const ANN: u32 = NOBODY - 1;
const BOB: u32 = NOBODY - 2;
const EVE: u32 = NOBODY - 3;
/// What the model takes on a device.
const IMAGE: u64 = 10 * MIB;

/// A daemon with a device of which models may have `budget_mib`, that every user may use, and the
/// model `m`.
fn node(gpus: &Gpus, budget_mib: u64, change: impl Fn(Setup) -> Setup) -> (Node, Setup) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 9 * MIB, 5, 1);
    let_everybody_in(dir.path());
    let lines = format!(
        "enabled = \"yes\"\nbudget_bytes = \"{budget_mib}MiB\"\nprivate_uids = [\"{ANN}\", \"{BOB}\"]"
    );
    let setup = change(gpus.setup_of("", &lines).model("m", &path));
    (Node::start_in(dir, &setup), setup)
}

/// A session of the user `uid`; `None` if we cannot be one.
fn session(node: &Node, uid: u32) -> Option<Raw> {
    as_user(uid, || Raw::hello(&node.socket()))
}

fn on_device(wait_ms: u64) -> Request {
    let devices = Devices {
        any_of: vec![uuid(0).parse().unwrap()],
        else_host: false,
        reserve_bytes: None,
    };
    Request::Open(Open {
        wait_ms,
        devices: Some(devices),
        ..Open::by_name(ModelName::new("m").unwrap())
    })
}

/// Opens `m` on the device: the grant, and the allocation.
fn opened(raw: &mut Raw, id: u64) -> (Opened, OwnedFd) {
    raw.send(RequestId(id), &on_device(60_000), &[]);
    match raw.reply() {
        Some((_, Reply::Opened(opened), mut fds)) if opened.device.is_some() => {
            (opened, fds.pop().unwrap())
        }
        other => panic!("not granted on the device: {other:?}"),
    }
}

/// Which memory is behind a descriptor: allocations of the pretended driver are files.
fn memory(fd: &OwnedFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

fn charged(node: &Node) -> u64 {
    device_field(node, 0, "charged_bytes").as_u64().unwrap()
}

#[test]
fn two_users_have_two_copies_and_two_processes_of_one_user_one() {
    let gpus = Gpus::new(1, 256 * MIB);
    let (node, _) = node(&gpus, 128, |setup| setup);
    let Some(mut ann) = session(&node, ANN) else {
        return;
    };
    let mut ann_again = session(&node, ANN).unwrap();
    let mut bob = session(&node, BOB).unwrap();
    let mut eve = session(&node, EVE).unwrap();
    let (first, of_ann) = opened(&mut ann, 2);
    assert_eq!(first.origin, Origin::Loaded);
    let (second, of_ann_again) = opened(&mut ann_again, 2);
    assert_eq!(second.origin, Origin::Hit);
    assert_eq!(memory(&of_ann), memory(&of_ann_again));
    assert_eq!(charged(&node), IMAGE);
    let host = node.number("/host/charged_bytes");

    // Filled from the same files in host memory, but on the device it is another copy.
    let (third, of_bob) = opened(&mut bob, 2);
    assert_eq!(third.origin, Origin::Promoted);
    let (fourth, of_eve) = opened(&mut eve, 2);
    assert_eq!(fourth.origin, Origin::Promoted);
    let mut seen = [&of_ann, &of_bob, &of_eve].map(memory).to_vec();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 3, "three users, three copies");
    assert_eq!(charged(&node), 3 * IMAGE);
    assert_eq!(node.number("/host/charged_bytes"), host);
    // Another who shares shares with her.
    let mut other = session(&node, NOBODY).unwrap();
    let (fifth, shared) = opened(&mut other, 2);
    assert_eq!(
        (fifth.origin, memory(&shared)),
        (Origin::Hit, memory(&of_eve))
    );

    // The operator sees whose each is, and can let it go.
    let names = node.get("/v1/models").to_string();
    for label in [format!("m (uid {ANN})"), format!("m (uid {BOB})")] {
        assert!(names.contains(&label), "{label}: {names}");
    }
    let place = uuid(0);
    let path = format!("/v1/models/m%20(uid%20{BOB})/evict?wait_ms=60000&tier={place}");
    let busy = node.post(&path);
    assert_eq!(busy.0, 409, "{}", busy.1);
    bob.send(RequestId(9), &close(third.lease), &[]);
    assert!(matches!(bob.reply(), Some((_, Reply::Closed(_), _))));
    eventually("the copy goes", || {
        (node.post(&path).0 == 200).then_some(())
    });
    assert_eq!(charged(&node), 2 * IMAGE);
}

#[test]
fn a_name_that_looks_like_anothers_copy_opens_nothing() {
    let gpus = Gpus::new(1, 256 * MIB);
    let (node, _) = node(&gpus, 128, |setup| setup);
    let Some(mut ann) = session(&node, ANN) else {
        return;
    };
    let _held = opened(&mut ann, 2);
    for uid in [ANN, BOB, EVE] {
        let mut raw = session(&node, uid).unwrap();
        let Request::Open(open) = on_device(1000) else {
            panic!("an open")
        };
        let name = ModelName::new(format!("m (uid {ANN})")).unwrap();
        for devices in [open.devices.clone(), None] {
            let open = Open {
                devices,
                wait_ms: 1000,
                ..Open::by_name(name.clone())
            };
            let reply = raw.ask(RequestId(3), &Request::Open(open), &[]);
            let Reply::Error(error) = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(error.code(), Some(ErrorCode::ModelNotFound));
        }
    }
}

#[test]
fn private_copies_keep_within_the_budget_and_go_when_their_room_is_needed() {
    let gpus = Gpus::new(1, 256 * MIB);
    let (node, _) = node(&gpus, 2 * IMAGE / MIB - 1, |setup| setup);
    let Some(mut ann) = session(&node, ANN) else {
        return;
    };
    let mut bob = session(&node, BOB).unwrap();
    let (held, _) = opened(&mut ann, 2);
    let refused = bob.ask(RequestId(2), &on_device(100), &[]);
    let Reply::Error(error) = refused else {
        panic!("there is no room for two: {refused:?}")
    };
    assert_eq!(error.code(), Some(ErrorCode::NoRoom), "{}", error.message);
    assert_eq!(charged(&node), IMAGE);
    ann.send(RequestId(3), &close(held.lease), &[]);
    assert!(matches!(ann.reply(), Some((_, Reply::Closed(_), _))));
    let (others, _) = opened(&mut bob, 3);
    assert_eq!(others.origin, Origin::Promoted);
    assert_eq!(charged(&node), IMAGE);
}

/// A session of the user `uid`, and the instance of the daemon.
fn session_and_instance(node: &Node, uid: u32) -> Option<(Raw, InstanceId)> {
    as_user(uid, || {
        let mut raw = Raw::connect(&node.socket());
        let hello = ClientHello {
            features: features::ALL & !features::MANY,
            ..ClientHello::new("comes back")
        };
        raw.send(RequestId(1), &hello, &[]);
        let (header, body, _) = raw.receive().unwrap();
        let instance = ServerHello::decode(&header, &body).unwrap().instance;
        (raw, instance)
    })
}

fn resumed(raw: &mut Raw, instance: InstanceId, version: VersionId) -> Option<LeaseId> {
    let device = Some(uuid(0).parse().unwrap());
    let leases = vec![HadLease {
        version,
        device,
        reserve_bytes: None,
    }];
    let reply = raw.ask(
        RequestId(50),
        &Request::Resume(Resume { instance, leases }),
        &[],
    );
    let Reply::Resumed(resumed) = reply else {
        panic!("{reply:?}")
    };
    resumed.leases[0]
}

#[test]
fn the_next_daemon_lends_a_private_copy_to_its_user_alone() {
    let gpus = Gpus::new(1, 256 * MIB);
    let (mut node, setup) = node(&gpus, 128, kept);
    let _family = Family::of(node.dir.path());
    let Some((mut ann, instance)) = session_and_instance(&node, ANN) else {
        return;
    };
    let (first, of_ann) = opened(&mut ann, 2);
    let (mut bob, _) = session_and_instance(&node, BOB).unwrap();
    assert_eq!(resumed(&mut bob, instance, first.version), None);
    node.kill();
    node.restart(&setup);
    let (mut bob, _) = session_and_instance(&node, BOB).unwrap();
    assert_eq!(resumed(&mut bob, instance, first.version), None);
    let (mut ann, _) = session_and_instance(&node, ANN).unwrap();
    assert!(resumed(&mut ann, instance, first.version).is_some());
    assert_eq!(charged(&node), IMAGE);
    let (hit, again) = opened(&mut ann, 2);
    assert_eq!(
        (hit.origin, hit.version, memory(&again)),
        (Origin::Hit, first.version, memory(&of_ann))
    );
    for (mut raw, id) in [(bob, 3), (session(&node, EVE).unwrap(), 3)] {
        let (other, memory_of_other) = opened(&mut raw, id);
        assert_ne!(other.version, first.version);
        assert_ne!(memory(&memory_of_other), memory(&of_ann));
    }
}
