//! Models that are opened by their layout: tensors one by one, sealed in the end, taken away when
//! the load fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_client::{Client, ConnectOptions, Fault, Model, OpenOptions, Origin, WaitFor};
use mrm_proto::error::ErrorCode;
use mrm_proto::ids::RequestId;
use mrm_proto::name::ModelName;
use mrm_proto::reply::{Opened, Reply};
use mrm_proto::request::{Heard, Open, Request, Stat, Touched};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::survival::{Family, failing, kept};
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal::SIGTERM;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(60);

/// A daemon whose reads do what the file `read` in `points` says.
fn node(points: &Path, setup: Setup) -> Node {
    Node::start(&failing(setup, points))
}

/// Each read takes a while from now on: the load is seen under way.
fn slow(points: &Path) {
    std::fs::write(points.join("read"), "stall 1").unwrap();
}

fn fast(points: &Path) {
    std::fs::remove_file(points.join("read")).unwrap();
}

fn by_layout(client: &Client, name: &str) -> Model {
    let options = OpenOptions::new().wait(WAIT).wait_for(WaitFor::Layout);
    client.open_with(name, &options).unwrap()
}

#[test]
fn tensors_come_one_by_one_and_are_what_the_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 65 * MIB, 16, 7);
    let node = node(&points, Setup::new().model("m", &path));
    slow(&points);
    let client = node.client();
    let opened = by_layout(&client, "m");
    assert_eq!(opened.origin(), Origin::Loaded);
    assert!(!opened.is_whole(), "it is granted before the last byte");
    assert!(opened.segment(0).is_none(), "and not lent as a whole");
    assert_eq!(opened.bytes_total(), image.len() as u64);
    let names = opened.tensor_names().unwrap();
    assert_eq!(names.len(), 16);
    let first = opened.tensor(names[0]).unwrap();
    assert_eq!(first.bytes().unwrap(), at(&image, &first));
    assert!(opened.ready(names[0]).unwrap());
    fast(&points);
    for name in names.iter().rev() {
        let tensor = opened.tensor(name).unwrap();
        assert_eq!(tensor.bytes().unwrap(), at(&image, &tensor), "{name}");
    }
    opened.wait_whole(WAIT).unwrap();
    assert!(opened.is_whole());
    assert!(opened.segment(0).unwrap().bytes() == image, "all of it");
    assert_eq!(opened.tensors().unwrap().len(), 16);
    // Who comes later finds it resident, and the same memory.
    let other = node.client().open("m").unwrap();
    assert_eq!(other.origin(), Origin::Hit);
    drop((opened, other));
    node.until_leases(0);
}

fn at<'i>(image: &'i [u8], tensor: &mrm_client::Tensor<'_>) -> &'i [u8] {
    let from = usize::try_from(tensor.offset_bytes()).unwrap();
    &image[from..from + usize::try_from(tensor.bytes_total()).unwrap()]
}

#[test]
fn who_wants_all_of_it_waits_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 33 * MIB, 4, 8);
    let node = node(&points, Setup::new().model("m", &path));
    slow(&points);
    let client = node.client();
    let early = by_layout(&client, "m");
    assert!(!early.is_whole());
    let other = node.client();
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| other.open("m").unwrap());
        // The same process's open of the name, too, which is the same model.
        let same = client.open("m").unwrap();
        assert!(same.same_open(&early) && same.is_whole());
        assert!(whole.join().unwrap().segment(0).unwrap().bytes() == image);
    });
    // A late one by the layout is a hit like any other.
    let late = by_layout(&node.client(), "m");
    assert_eq!((late.origin(), late.is_whole()), (Origin::Hit, true));
}

#[test]
fn what_is_told_to_be_whole_the_next_daemon_has() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 33 * MIB, 4, 8);
    let setup = failing(kept(Setup::new().model("m", &path)), &points);
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    slow(&points);
    let client = node.client();
    let early = by_layout(&client, "m");
    assert!(!early.is_whole());
    // It is loaded, and the keeper has yet to hear of it.
    std::fs::write(points.join("before-put"), "kill 1").unwrap();
    fast(&points);
    assert!(!node.wait().success());
    assert!(!early.is_whole(), "nobody has it but its client");
    node.restart(&setup);
    let again = client.open("m").unwrap();
    assert!(again.segment(0).unwrap().bytes() == image);
    node.until_leases(1);
    assert!(again.is_leased() && !early.is_leased());
}

#[test]
fn a_load_that_fails_takes_back_what_it_lent() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, _) = model::write(dir.path(), "m.safetensors", 65 * MIB, 16, 9);
    let node = node(&points, Setup::new().model("m", &path));
    slow(&points);
    let client = node.client();
    let opened = by_layout(&client, "m");
    let names = opened.tensor_names().unwrap();
    opened.tensor(names[0]).unwrap();
    std::fs::write(points.join("read"), "error 1").unwrap();
    let failed = opened.wait_whole(WAIT).unwrap_err();
    assert_eq!(
        failed.number(),
        ErrorCode::SourceUnreadable.number(),
        "{failed}"
    );
    assert!(failed.retryable() && !opened.is_leased());
    // What was there stays readable; the rest is never lent.
    assert!(opened.ready(names[0]).unwrap());
    assert!(opened.tensor(names[15]).is_err());
    fast(&points);
    let again = by_layout(&client, "m");
    again.wait_whole(WAIT).unwrap();
    assert!(!again.same_open(&opened));
}

#[test]
fn a_daemon_that_dies_leaves_what_was_told_and_the_model_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 65 * MIB, 16, 10);
    let setup = failing(Setup::new().model("m", &path), &points);
    let mut node = Node::start(&setup);
    slow(&points);
    let options = ConnectOptions::new().socket(node.socket()).wait(WAIT);
    let client = Client::connect_with(&options).unwrap();
    let opened = by_layout(&client, "m");
    let names = opened.tensor_names().unwrap();
    opened.tensor(names[0]).unwrap();
    node.kill();
    assert!(opened.tensor(names[15]).is_err(), "nobody fills it");
    let first = opened.tensor(names[0]).unwrap();
    assert_eq!(first.bytes().unwrap(), at(&image, &first));
    fast(&points);
    node.restart(&setup);
    let again = by_layout(&client, "m");
    again.wait_whole(WAIT).unwrap();
    assert!(!again.same_open(&opened) && !opened.is_whole());
    assert!(again.segment(0).unwrap().bytes() == image);
}

#[test]
fn the_order_of_use_is_learned_for_the_next_load_and_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, _) = model::write(dir.path(), "m.safetensors", 65 * MIB, 16, 11);
    let setup = failing(Setup::new().model("m", &path), &points);
    let mut node = Node::start(&setup);
    let client = node.client();
    let opened = by_layout(&client, "m");
    let names: Vec<String> = opened
        .tensor_names()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    // Backwards: all of them, so that it is told at once.
    for name in names.iter().rev() {
        opened.tensor(name).unwrap();
    }
    drop(opened);
    // Every byte is there before the load is over.
    eventually("the lease is gone, and the load is over", || {
        (node.number("/leases") + node.number("/loading") == 0).then_some(())
    });
    let (status, body) = node.post("/v1/models/m/evict?wait_ms=60000");
    assert_eq!(status, 200, "{body}");
    let last_comes_first = |client: &Client| {
        slow(&points);
        let opened = by_layout(client, "m");
        opened.tensor(&names[15]).unwrap();
        assert!(
            !opened.ready(&names[4]).unwrap(),
            "the last tensor came before the others"
        );
        fast(&points);
        opened.wait_whole(WAIT).unwrap();
    };
    last_comes_first(&client);
    drop(client);
    node.signal(SIGTERM);
    assert!(node.wait().success());
    node.restart(&setup);
    last_comes_first(&node.client());
}

#[test]
fn a_client_that_reads_nothing_is_told_little_and_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let path = model::write_zeros(dir.path(), "m.safetensors", 600 * MIB, 4);
    let node = node(&points, Setup::new().budget(1 << 30).model("m", &path));
    slow(&points);
    let mut raw = Raw::hello(&node.socket());
    let open = Open {
        wait_ms: 60_000,
        wait_for: Some(WaitFor::Layout),
        ..Open::by_name(ModelName::new("m").unwrap())
    };
    raw.send(RequestId(1), &Request::Open(open), &[]);
    let (id, reply, fds) = raw.reply().unwrap();
    let Reply::Opened(opened) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (id, opened.filling.as_deref(), fds.len()),
        (RequestId(1), Some(&[0][..]), 2)
    );
    fast(&points);
    eventually("the load ends", || {
        (node.get("/v1/models/m")["state"] == "resident").then_some(())
    });
    // Four frames that were not read, and the last.
    let mut frames = 0;
    loop {
        let (id, reply, _) = raw.reply().unwrap();
        let Reply::Ready(ready) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((id, ready.lease), (RequestId(0), opened.lease));
        frames += 1;
        if ready.sealed == [0] {
            break;
        }
    }
    assert!((1..=5).contains(&frames), "{frames} frames");
    // What is said of leases that are not there is passed over.
    let lease = opened.lease;
    raw.send(RequestId(0), &Request::Heard(Heard { lease }), &[]);
    let tensors = vec![3, 9999, 3, 0];
    raw.send(
        RequestId(0),
        &Request::Touched(Touched { lease, tensors }),
        &[],
    );
    let stat = Request::Stat(Stat {
        model: ModelName::new("m").unwrap(),
    });
    let stated = raw.ask(RequestId(2), &stat, &[]);
    assert!(
        matches!(stated, Reply::Stated(_)),
        "the session goes on: {stated:?}"
    );
}

/// Opens `model` by its layout; the lease, which segments are being filled, and the descriptors.
fn open_raw(raw: &mut Raw, id: u64, name: &str) -> (Opened, Vec<OwnedFd>) {
    let open = Open {
        wait_ms: 60_000,
        wait_for: Some(WaitFor::Layout),
        ..Open::by_name(ModelName::new(name).unwrap())
    };
    raw.send(RequestId(id), &Request::Open(open), &[]);
    let (_, reply, fds) = raw.reply().unwrap();
    let Reply::Opened(opened) = reply else {
        panic!("{reply:?}")
    };
    (opened, fds)
}

#[test]
fn who_pins_pages_of_what_is_being_filled_loses_his_lease_and_nobody_else_his_model() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    // Many slow pieces: what is pinned is pinned long before the last of them.
    let path = model::write_zeros(dir.path(), "m.safetensors", 300 * MIB, 4);
    let (other, _) = model::write(dir.path(), "o.safetensors", 33 * MIB, 4, 13);
    let setup = Setup::new().budget(1 << 30);
    let setup = setup.model("m", &path).model("o", &other);
    let node = node(&points, setup);
    slow(&points);
    let mut raw = Raw::hello(&node.socket());
    let (opened, fds) = open_raw(&mut raw, 1, "m");
    assert_eq!(opened.filling.as_deref(), Some(&[0][..]));
    // What is pinned must be there: a page that is not has nothing to pin.
    loop {
        let (_, reply, _) = raw.reply().unwrap();
        let Reply::Ready(ready) = reply else {
            panic!("{reply:?}")
        };
        if ready.ranges.iter().any(|range| range.from == 0) {
            break;
        }
        let lease = opened.lease;
        raw.send(RequestId(0), &Request::Heard(Heard { lease }), &[]);
    }
    let (_pipe, writer) = std::io::pipe().unwrap();
    let moved = rustix::fs::sendfile(&writer, &fds[1], Some(&mut 0), 4096);
    assert_eq!(moved, Ok(4096));
    fast(&points);
    let honest = node.client().open("m").unwrap();
    assert!(honest.segment(0).unwrap().bytes() == std::fs::read(&path).unwrap());
    let revoked = loop {
        match raw.reply().unwrap() {
            (_, Reply::Ready(ready), _) => assert!(ready.sealed.is_empty(), "never whole"),
            (_, Reply::Revoked(revoked), _) => break revoked,
            (_, reply, _) => panic!("{reply:?}"),
        }
    };
    assert_eq!(revoked.lease, opened.lease);
    assert!(revoked.message.contains("pinned"), "{}", revoked.message);
    let degraded = node.get("/v1/status")["degraded"].to_string();
    assert!(degraded.contains("early_pinned"), "{degraded}");
    // Its user gets nothing early for a while, but all of everything.
    let (whole, _) = open_raw(&mut raw, 2, "o");
    assert_eq!(whole.filling, None);
    node.until_leases(2);
}
