//! Leases on devices when daemons end and come back, on a pretended driver.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;
#[path = "machine/lent.rs"]
mod lent;
mod machine;

use fake::{Fake, Session};
use lent::{Lent, read};
use machine::on_machine;
use mrm_client::device::Granularity;
use mrm_client::{Client, Devices, Fault, Model, OpenOptions, Tier};
use mrm_cuda::Mechanism;
use mrm_proto::frame;
use mrm_proto::hello::features;
use mrm_proto::ids::{LeaseId, RequestId, VersionId};
use mrm_proto::reply::{Reply, Resumed, Revoked, Sharing};
use mrm_proto::request::{HadLease, Request};
use std::sync::{Mutex, mpsc};

fn open(client: &Client, name: &str) -> Model {
    open_keeping(client, name, 0)
}

/// Opens with so many bytes of the device to stay free.
fn open_keeping(client: &Client, name: &str, reserve_bytes: u64) -> Model {
    let options = OpenOptions::new().tier(Tier::Device(Devices::Ordinal(0)));
    let options = options.reserve_bytes(reserve_bytes);
    client.open_with(name, &options).expect("opens")
}

fn places(model: &Model) -> Vec<(u64, u64)> {
    model.device().expect("on a device").allocations().to_vec()
}

fn grant_next(lent: &Lent, session: &mut Session, lease: u64, version: u64) {
    let (id, ..) = session.next_asking().expect("an open");
    lent.grant(session, id, lease, version);
}

fn wait_resumed(fake: &Fake, client: &Client) {
    fake.seen.wait("a resume", |seen| {
        seen.iter().any(|(_, r)| matches!(r, Request::Resume(_)))
    });
    client.server().expect("connected");
}

#[test]
fn leases_on_a_device_are_named_with_it_and_can_be_taken_away_again() {
    let name = "leases_on_a_device_are_named_with_it_and_can_be_taken_away_again";
    on_machine(name, &[], |machine| {
        let lent = Lent::vmm(3, Granularity::Model);
        let uuid = lent.on_device.uuid;
        let (die, dying) = mpsc::channel::<()>();
        let dying = Mutex::new(dying);
        let fake = Fake::start(move |n, session| {
            session.hello_as(42 + n as u64, features::ALL);
            if n == 0 {
                grant_next(&lent, session, 1, 7);
                grant_next(&lent, session, 2, 8);
                let _ = dying.lock().expect("lock").recv();
                return;
            }
            let (id, instance, leases) = session.next_resume();
            let had = |version, reserve_bytes| HadLease {
                version: VersionId(version),
                device: Some(uuid),
                reserve_bytes,
            };
            let expected = vec![had(7, None), had(8, Some(4096))];
            assert_eq!((instance, leases), (42, expected));
            // The device of the second is lost before the client has looked at its lease.
            let leases = vec![Some(LeaseId(100)), Some(LeaseId(101))];
            let resumed = Reply::Resumed(Resumed { leases });
            let revoked = Reply::Revoked(Revoked {
                lease: LeaseId(101),
                number: 602,
                message: "device lost (Xid 79)".to_owned(),
            });
            let frames = [
                frame::encode(id, 0, &resumed).expect("encodes"),
                frame::encode(RequestId::NO_REPLY, 0, &revoked).expect("encodes"),
            ];
            session.raw(&frames.concat(), &[]);
            grant_next(&lent, session, 102, 7);
            session.until_gone();
        });
        let client = fake.client();
        let (kept, lost) = (open(&client, "kept"), open_keeping(&client, "lost", 4096));
        die.send(()).expect("the fake waits");
        wait_resumed(&fake, &client);
        assert!(kept.is_leased() && kept.lost().is_none());
        assert!(!lost.is_leased());
        let why = lost.lost().expect("taken away");
        assert_eq!(why.number(), 602);
        let first = kept.tensor("t0").expect("there").device_pointer();
        assert_eq!(read(first.expect("on a device"), 4).len(), 4);
        // The same memory for another name, without another import.
        assert!(open(&client, "kept").same_open(&kept));
        let imports = machine.count("cuMemImportFromShareableHandle");
        let alias = open(&client, "alias");
        assert_eq!(places(&alias), places(&kept));
        assert_eq!(machine.count("cuMemImportFromShareableHandle"), imports);
        drop((kept, alias, lost));
        fake.seen.wait_closed(100);
        fake.seen.wait_closed(102);
        let taken = |r: &Request| matches!(r, Request::Close(c) if c.lease.0 == 101);
        assert!(!fake.seen.all().iter().any(taken));
    });
}

/// What opens asked to be kept free.
fn reserves(fake: &Fake) -> Vec<Option<u64>> {
    let requests = fake.seen.all();
    let asked = requests.iter().filter_map(|request| match request {
        Request::Open(open) => Some(open.devices.as_ref()?.reserve_bytes),
        _ => None,
    });
    asked.collect()
}

#[test]
fn only_a_daemon_that_knows_of_it_is_asked_to_keep_memory_free() {
    let name = "only_a_daemon_that_knows_of_it_is_asked_to_keep_memory_free";
    on_machine(name, &[], |_| {
        for (known, expected) in [(features::RESERVE, Some(9)), (0, None)] {
            let lent = Lent::vmm(3, Granularity::Model);
            let fake = Fake::start(move |_, session| {
                session.hello_as(42, features::ALL & !features::RESERVE | known);
                grant_next(&lent, session, 1, 7);
                grant_next(&lent, session, 2, 7);
                session.until_gone();
            });
            let client = fake.client();
            let (_kept, _plain) = (open_keeping(&client, "m", 9), open(&client, "n"));
            assert_eq!(reserves(&fake), [expected, None]);
        }
    });
}

#[test]
fn memory_by_legacy_handles_is_lost_with_the_session_and_not_asked_for() {
    let name = "memory_by_legacy_handles_is_lost_with_the_session_and_not_asked_for";
    on_machine(name, &[], |_| {
        let mut lent = Lent::new(0, 1, Granularity::Model, Mechanism::Legacy);
        // Its own handles a process may not open: nothing is mapped for a model without bytes.
        lent.on_device.allocations_bytes.clear();
        lent.handles.clear();
        let host = fake::Content::sample(8);
        assert_eq!(lent.on_device.sharing, Sharing::Legacy);
        let (die, dying) = mpsc::channel::<()>();
        let dying = Mutex::new(dying);
        let fake = Fake::start(move |n, session| {
            session.hello_as(42 + n as u64, features::ALL);
            if n == 0 {
                grant_next(&lent, session, 1, 7);
                let (id, ..) = session.next_asking().expect("an open");
                session.grant(id, 2, 8, &host);
                let _ = dying.lock().expect("lock").recv();
                return;
            }
            let (id, _, leases) = session.next_resume();
            let in_host = HadLease {
                version: VersionId(8),
                device: None,
                reserve_bytes: None,
            };
            assert_eq!(leases, [in_host]);
            session.resumed(id, [Some(100)]);
            session.until_gone();
        });
        let client = fake.client();
        let gone = open(&client, "m");
        let kept = client.open("in host memory").expect("opens");
        assert!(gone.is_leased() && gone.lost().is_none());
        die.send(()).expect("the fake waits");
        wait_resumed(&fake, &client);
        assert!(kept.is_leased() && !gone.is_leased());
        assert_eq!(gone.lost().expect("gone").number(), 602);
        drop((gone, kept));
        fake.seen.wait_closed(100);
    });
}
