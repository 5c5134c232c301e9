//! What an open on a device costs: one round trip, and as many calls of the driver for a thousand
//! tensors as for one.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails loudly"
)]

use mrm_proto::error::ErrorCode;
use mrm_proto::hello::{ClientHello, ServerHello, features};
use mrm_proto::ids::{DeviceUuid, RequestId};
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Devices, Open, Request};
use mrm_tests::gpus::{self, Gpus, device_field, open_on, until_at_rest};
use mrm_tests::model;
use mrm_tests::node::Node;
use mrm_tests::raw::Raw;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

fn written(tensors: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB, tensors, tensors);
    (dir, path)
}

#[test]
fn the_calls_of_an_open_do_not_grow_with_the_tensors() {
    let gpus = Gpus::new(1, 256 * MIB).logged();
    let (_one, one) = written(1);
    let (_many, many) = written(1000);
    let (_first, first) = written(3);
    let setup = gpus.setup().model("one", &one).model("many", &many);
    let node = Node::start(&setup.model("first", &first));
    let mut client = gpus.holder(&node);
    // What a process does once: initialisation, its context, the granularity of memory.
    open_on(&mut client, "first", "first", "cuda:0");
    let mut made = Vec::new();
    for name in ["one", "many"] {
        let before = gpus.calls(client.pid()).len();
        open_on(&mut client, name, name, "cuda:0");
        made.push(gpus.calls(client.pid()).split_off(before));
    }
    assert_eq!(made[0], made[1]);
    let imports = made[0]
        .iter()
        .filter(|call| *call == "cuMemImportFromShareableHandle");
    assert_eq!(imports.count(), 1, "{:?}", made[0]);
    // The same again in the same process: it is mapped already.
    let before = gpus.calls(client.pid()).len();
    for device in ["cuda:0", "cuda", "best"] {
        open_on(&mut client, device, "many", device);
    }
    let again = gpus.calls(client.pid()).split_off(before);
    assert_eq!(again, [""; 0]);
}

#[test]
fn a_hit_costs_the_daemon_no_call_of_the_driver() {
    let gpus = Gpus::new(1, 256 * MIB).logged();
    let (_dir, path) = written(100);
    let node = Node::start(&gpus.setup().model("m", &path));
    let mut client = gpus.holder(&node);
    open_on(&mut client, "m", "m", "cuda:0");
    until_at_rest(&node);
    let before = gpus.calls(node.pid()).len();
    for _ in 0..5 {
        let mut other = gpus.holder(&node);
        assert_eq!(open_on(&mut other, "m", "m", "cuda:0")["origin"], "hit");
    }
    node.post("/v1/models/m/pin");
    assert_eq!(device_field(&node, 0, "images"), 1);
    let made = gpus.calls(node.pid()).split_off(before);
    // It looks at its devices every few seconds; perhaps just now, and on the way to a call.
    let watching = [
        "cuCtxPushCurrent_v2",
        "cuMemGetInfo_v2",
        "cuStreamSynchronize",
        "cuCtxPopCurrent_v2",
    ];
    let is_watching = |call: &String| watching.contains(&call.as_str());
    assert!(made.iter().all(is_watching), "{made:?}");
    assert!(made.len() <= 12, "{made:?}");
}

/// A session that agreed on devices, or not.
fn session(node: &Node, wanted: u64) -> Raw {
    let mut raw = Raw::connect(&node.socket());
    let mut hello = ClientHello::new("raw");
    hello.features = wanted;
    raw.send(RequestId(1), &hello, &[]);
    let (header, body, _) = raw.receive().unwrap();
    let agreed = ServerHello::decode(&header, &body).unwrap().features;
    assert_eq!(agreed & features::DEVICE, wanted & features::DEVICE);
    raw
}

fn open_request(any_of: Vec<DeviceUuid>, else_host: bool) -> Request {
    Request::Open(Open {
        model: ModelName::new("m").unwrap(),
        wait_ms: 60_000,
        progress: false,
        devices: Some(Devices {
            any_of,
            else_host,
            reserve_bytes: None,
        }),
        wait_for: None,
        known: None,
    })
}

/// A daemon with a model of 300 tensors, and its device.
fn with_device(granularity: &str) -> (Gpus, tempfile::TempDir, Node, DeviceUuid) {
    let gpus = Gpus::new(1, 1024 * MIB);
    let (dir, path) = written(300);
    let lines = format!("granularity = \"{granularity}\"");
    let node = Node::start(&gpus.setup().model_with("m", &path, &lines));
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(hex(&gpus::uuid(0)).chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    (gpus, dir, node, DeviceUuid(uuid))
}

fn hex(uuid: &str) -> Vec<u8> {
    let digits = uuid.trim_start_matches("GPU-").bytes();
    digits.filter(|byte| *byte != b'-').collect()
}

#[test]
fn one_request_has_one_reply_with_all_that_a_client_needs() {
    for (granularity, allocations) in [("model", 1), ("tensor", 300)] {
        let (_gpus, _dir, node, uuid) = with_device(granularity);
        let mut raw = session(&node, features::DEVICE);
        for _ in ["miss", "hit"] {
            raw.send(RequestId(2), &open_request(vec![uuid], false), &[]);
            let (mut handed, mut frames) = (0, 0);
            let opened = loop {
                let (id, reply, fds) = raw.reply().unwrap();
                assert_eq!(id, RequestId(2));
                frames += 1;
                match reply {
                    Reply::Handed(batch) => {
                        assert_eq!(batch.from, handed as u64);
                        handed += fds.len();
                    }
                    Reply::Opened(opened) => {
                        handed += fds.len() - 1;
                        break opened;
                    }
                    other => panic!("{other:?}"),
                }
            };
            let on = opened.device.unwrap();
            assert_eq!((on.uuid, on.allocations_bytes.len()), (uuid, allocations));
            assert_eq!((handed, frames), (allocations, 1 + (allocations - 1) / 252));
        }
    }
}

#[test]
fn who_did_not_agree_on_devices_gets_none() {
    let (_gpus, _dir, node, uuid) = with_device("model");
    let mut raw = session(&node, features::PROGRESS);
    let asked = raw.ask(RequestId(2), &open_request(vec![uuid], false), &[]);
    match asked {
        Reply::Error(error) => assert_eq!(error.code(), Some(ErrorCode::UnknownDevice)),
        other => panic!("{other:?}"),
    }
    match raw.ask(RequestId(3), &open_request(vec![uuid], true), &[]) {
        Reply::Opened(opened) => assert_eq!(opened.device, None),
        other => panic!("{other:?}"),
    }
    assert_eq!(device_field(&node, 0, "charged_bytes"), 0);
}

#[test]
fn what_names_no_device_is_refused() {
    let (_gpus, _dir, node, uuid) = with_device("model");
    let mut raw = session(&node, features::DEVICE);
    let stranger = DeviceUuid([7; 16]);
    for any_of in [vec![], vec![stranger], vec![stranger; 64]] {
        match raw.ask(RequestId(2), &open_request(any_of, false), &[]) {
            Reply::Error(error) => assert_eq!(error.code(), Some(ErrorCode::UnknownDevice)),
            other => panic!("{other:?}"),
        }
    }
    // One that is known among many, named more than once.
    let mut many = vec![stranger; 62];
    many.extend([uuid, uuid]);
    match raw.ask(RequestId(3), &open_request(many, false), &[]) {
        Reply::Opened(opened) => assert_eq!(opened.device.unwrap().uuid, uuid),
        other => panic!("{other:?}"),
    }
    raw.send(RequestId(4), &open_request(vec![uuid; 65], false), &[]);
    raw.ends_with(ErrorCode::MalformedBody);
    node.until_idle();
}
