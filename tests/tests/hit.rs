//! What a hit may count on besides being quick.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails loudly"
)]

use mrm_client::{Fault, OpenOptions, Origin};
use mrm_proto::error::ErrorCode;
use mrm_proto::frame;
use mrm_proto::hello::features;
use mrm_proto::ids::RequestId;
use mrm_proto::limits::FDS_PER_FRAME_MAX;
use mrm_proto::name::ModelName;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Close, Open, Request};
use mrm_tests::eventually;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;

/// A node with models m0, m1 and so on, and their images.
fn node_with(models: u64) -> (tempfile::TempDir, Node, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut setup, mut images) = (Setup::new(), Vec::new());
    for i in 0..models {
        let (path, image) = model::write(dir.path(), &format!("{i}.safetensors"), 50_000, 3, i + 1);
        setup = setup.model(&format!("m{i}"), &path);
        images.push(image);
    }
    let node = Node::start(&setup);
    (dir, node, images)
}

/// One message that opens these models, with the request ids from 2 on.
fn opens(names: &[&str]) -> Vec<u8> {
    let frames = names.iter().zip(2..).map(|(name, id)| {
        let open = Open::by_name(ModelName::new(*name).unwrap());
        frame::encode(RequestId(id), 0, &Request::Open(open)).unwrap()
    });
    frames.collect::<Vec<_>>().concat()
}

#[test]
fn hits_that_were_asked_for_together_come_together_if_the_client_knows_how() {
    let (_dir, node, _) = node_with(3);
    let names = ["m0", "m1", "m2"];
    let holder = node.client();
    let held: Vec<_> = names.map(|name| holder.open(name).unwrap()).into();
    let mut raw = Raw::hello_with(&node.socket(), features::MANY);
    // What is no hit is answered by itself.
    let message = opens(&["m0", "m1", "m2", "nobody", "m0"]);
    raw.send_bytes(&message, &[]).unwrap();
    let (id, reply, fds) = raw.reply().unwrap();
    let Reply::OpenedMany(many) = reply else {
        panic!("{reply:?}")
    };
    let ids: Vec<_> = many.opens.iter().map(|one| one.request.0).collect();
    assert_eq!(
        (id, ids, fds.len()),
        (RequestId::NO_REPLY, vec![2, 3, 4, 6], 8)
    );
    for (at, one) in many.opens.iter().enumerate() {
        let bytes = held[at % 3].bytes_total();
        assert_eq!(one.opened.segments_bytes, [bytes]);
        let sizes = [one.opened.table_bytes, bytes];
        for (fd, size) in fds[2 * at..].iter().zip(sizes) {
            let stat = rustix::fs::fstat(fd).unwrap();
            assert_eq!(u64::try_from(stat.st_size).unwrap(), size);
        }
    }
    let (id, reply, _) = raw.reply().unwrap();
    assert!(matches!(reply, Reply::Error(_)), "{reply:?}");
    assert_eq!(id, RequestId(5));

    let mut plain = Raw::hello(&node.socket());
    plain.send_bytes(&opens(&names), &[]).unwrap();
    for id in 2..5 {
        let (answered, reply, fds) = plain.reply().unwrap();
        assert!(matches!(reply, Reply::Opened(_)), "{reply:?}");
        assert_eq!((answered, fds.len()), (RequestId(id), 2));
    }
    drop((raw, plain, held, holder));
    node.until_idle();
}

#[test]
fn no_frame_carries_more_descriptors_than_the_kernel_takes() {
    let (_dir, node, _) = node_with(1);
    let held = node.client().open("m0").unwrap();
    let mut raw = Raw::hello_with(&node.socket(), features::MANY);
    raw.send_bytes(&opens(&["m0"; 200]), &[]).unwrap();
    let mut ids = Vec::new();
    while ids.len() < 200 {
        let (_, reply, fds) = raw.reply().unwrap();
        match reply {
            Reply::OpenedMany(many) => {
                assert!(fds.len() <= FDS_PER_FRAME_MAX);
                assert_eq!(fds.len(), 2 * many.opens.len());
                ids.extend(many.opens.iter().map(|one| one.request.0));
            }
            // Where a read ended.
            Reply::Opened(_) => ids.push(u64::MAX),
            other => panic!("{other:?}"),
        }
    }
    drop((raw, held));
    node.until_idle();
}

#[test]
fn a_grant_that_is_given_back_while_others_wait_for_it_goes_out_first() {
    let (_dir, node, _) = node_with(2);
    let holder = node.client();
    let held = [holder.open("m0").unwrap(), holder.open("m1").unwrap()];
    let mut raw = Raw::hello_with(&node.socket(), features::MANY);
    let close = Request::Close(Close {
        lease: mrm_proto::ids::LeaseId(u64::MAX),
    });
    let message = [
        opens(&["m0", "m1"]),
        frame::encode(RequestId(9), 0, &close).unwrap(),
    ];
    raw.send_bytes(&message.concat(), &[]).unwrap();
    let (_, first, fds) = raw.reply().unwrap();
    assert!(matches!(first, Reply::OpenedMany(_)), "{first:?}");
    assert_eq!(fds.len(), 4);
    let (id, second, _) = raw.reply().unwrap();
    assert!(matches!(second, Reply::Error(_)), "{second:?}");
    assert_eq!(id, RequestId(9));
    drop((raw, held, holder));
    node.until_idle();
}

#[test]
fn many_models_are_opened_at_once_whatever_there_is_of_each() {
    let (_dir, node, images) = node_with(150);
    let client = node.client();
    let resident = client.open("m1").unwrap();
    let other = node.client();
    let names: Vec<String> = (0..150).map(|i| format!("m{i}")).collect();
    let mut asked: Vec<&str> = names.iter().map(String::as_str).collect();
    asked.extend(["nobody", "../m0", "m0"]);
    let mut kept = Vec::new();
    for (client, warm) in [(&client, false), (&other, true)] {
        let opened = client.open_many(&asked, &OpenOptions::new());
        assert_eq!(opened.len(), asked.len());
        for (i, (model, image)) in opened.iter().zip(&images).enumerate() {
            let model = model.as_ref().expect("opens");
            assert_eq!(model.name(), names[i]);
            assert_eq!(model.segment(0).unwrap().bytes(), image);
            assert!(model.is_leased());
            assert!(!warm || model.origin() == Origin::Hit);
        }
        let refused = opened[150].as_ref().expect_err("nobody has it");
        assert_eq!(refused.number(), ErrorCode::ModelNotFound.number());
        let refused = opened[151].as_ref().expect_err("no name");
        assert_eq!(refused.number(), ErrorCode::BadName.number());
        let (first, again) = (opened[0].as_ref().unwrap(), opened[152].as_ref().unwrap());
        assert!(first.same_open(again));
        assert_eq!(node.number("/leases"), 150 + u64::from(warm) * 150);
        if warm {
            continue;
        }
        assert!(opened[1].as_ref().unwrap().same_open(&resident));
        // Until the other client has them, too.
        kept.push(opened);
    }
    assert!(client.open_many(&[], &OpenOptions::new()).is_empty());
}

#[test]
fn a_daemon_that_stays_awake_after_requests_serves_many_and_sleeps_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, image) = model::write(dir.path(), "m.safetensors", 100_000, 3, 5);
    let setup = Setup::new()
        .model("m", &path)
        .setting("daemon.spin_us = 10000");
    let node = Node::start(&setup);
    let clients: Vec<_> = (0..4).map(|_| node.client()).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                for _ in 0..100 {
                    let model = client.open("m").expect("opens");
                    assert_eq!(model.segment(0).expect("a file").bytes(), image);
                }
            });
        }
    });
    // The state of a thread is the first word after its name, which is in brackets.
    let of_decider = format!("/proc/{0}/task/{0}/stat", node.pid());
    eventually("it sleeps", || {
        let stat = std::fs::read_to_string(&of_decider).expect("is there");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        rest.starts_with('S').then_some(())
    });
}

#[test]
fn what_is_opened_and_closed_in_quick_succession_is_all_given_back_soon() {
    let (_dir, node, _) = node_with(2);
    let client = node.client();
    for _ in 0..3 {
        for i in 0..2000 {
            drop(client.open(["m0", "m1"][i % 2]).expect("opens"));
        }
        // The client is still there, and says nothing more.
        node.until_leases(0);
        assert_eq!(node.number("/sessions"), 1);
    }
}

#[test]
fn a_tensor_table_does_not_travel_to_who_has_it() {
    let (_dir, node, images) = node_with(2);
    let mut raw = Raw::hello(&node.socket());
    let mut ask = |id, name, known| {
        let open = Open {
            known,
            ..Open::by_name(ModelName::new(name).unwrap())
        };
        raw.send(RequestId(id), &Request::Open(open), &[]);
        match raw.reply().unwrap() {
            (_, Reply::Opened(opened), fds) => (opened, fds.len()),
            other => panic!("{other:?}"),
        }
    };
    // One that is loaded, then hits.
    let (first, fds) = ask(2, "m0", None);
    assert_eq!(fds, 2);
    let (again, fds) = ask(3, "m0", Some(first.version));
    assert_eq!((fds, again.table_bytes), (1, 0));
    assert_eq!(again.segments_bytes, first.segments_bytes);
    // Of another version it travels, and so it does where that was not agreed on.
    let (other, fds) = ask(4, "m1", Some(first.version));
    assert_eq!((fds, other.table_bytes > 0), (2, true));
    let mut old = Raw::hello_with(&node.socket(), features::ALL & !features::KNOWN);
    let open = Open {
        known: Some(first.version),
        ..Open::by_name(ModelName::new("m0").unwrap())
    };
    old.send(RequestId(2), &Request::Open(open), &[]);
    assert_eq!(old.reply().unwrap().2.len(), 2);

    // A client sees the same tensors each time, whatever travelled.
    let client = node.client();
    for _ in 0..3 {
        let model = client.open("m1").unwrap();
        let segment = model.segments().next().unwrap();
        assert_eq!(segment.bytes(), images[1]);
        assert_eq!(model.tensors().unwrap().into_iter().count(), 3);
    }
}
