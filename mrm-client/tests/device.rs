//! Opening on a device, against a fake daemon and a fake driver.

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

use fake::{Content, Fake, Session, server_hello};
use lent::{Lent, TENSOR_BYTES, byte_of, name_of, read};
use machine::{Machine, inside, on_machine};
use mrm_client::device::{self, Granularity};
use mrm_client::{
    Client, CloseError, Devices, Fault, Model, NotClosed, OpenError, OpenOptions, Tier,
};
use mrm_cuda::{Context, Mechanism, probe};
use mrm_proto::frame;
use mrm_proto::hello::features;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Handed, IpcHandle, Reply, Revoked};
use mrm_proto::request::Request;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, mpsc};

const FIRST: Tier = Tier::Device(Devices::Ordinal(0));
const BEST: Tier = Tier::Best(Devices::Visible);

fn open(client: &Client, name: &str, tier: Tier) -> Result<Model, OpenError> {
    client.open_with(name, &OpenOptions::new().tier(tier))
}

/// A fake daemon that lends the same weights on each session.
fn lending(lent: Lent) -> Fake {
    Fake::start(move |n, session| {
        session.hello();
        lent.serve(session, 100 * n as u64 + 1);
    })
}

fn check_bytes(model: &Model, tensors: u64) {
    for i in 0..tensors {
        let tensor = model.tensor(&name_of(i)).expect("there");
        let pointer = tensor.device_pointer().expect("on a device");
        assert_eq!(pointer % 256, 0);
        let expected: Vec<u8> = (0..TENSOR_BYTES).map(|at| byte_of(i, at)).collect();
        assert!(read(pointer, TENSOR_BYTES) == expected, "tensor {i}");
    }
}

fn closed(fake: &Fake, lease: u64) -> bool {
    let closes = |r: &Request| matches!(r, Request::Close(c) if c.lease == LeaseId(lease));
    fake.seen.all().iter().any(closes)
}

#[test]
fn weights_are_lent_on_a_device_at_every_granularity() {
    let name = "weights_are_lent_on_a_device_at_every_granularity";
    on_machine(name, &[], |_| {
        let block = Granularity::Block { block_bytes: 4096 };
        for granularity in [Granularity::Model, block, Granularity::Tensor] {
            let fake = lending(Lent::vmm(9, granularity));
            let client = fake.client();
            let model = open(&client, "m", FIRST).expect("opens");
            let weights = model.device().expect("on a device");
            assert_eq!((weights.ordinal(), weights.granularity()), (0, granularity));
            assert_eq!(weights.uuid(), device::visible().expect("devices")[0].uuid);
            assert_eq!(model.bytes_total(), weights.bytes_total());
            assert!(model.why_host().is_none() && model.lost().is_none());
            check_bytes(&model, 9);
            assert_eq!(model.tensors().expect("a table").iter().count(), 10);
            let empty = model.tensor("empty").expect("there");
            assert_eq!((empty.device_pointer(), empty.bytes_total()), (Some(0), 0));
            let refused = model
                .tensor("t0")
                .expect("there")
                .bytes()
                .expect_err("not here");
            assert_eq!(refused.name(), "on_device");
            assert!(model.segment(0).is_none());
            model.close().expect("closes");
            fake.seen.wait_closed(1);
        }
    });
}

#[test]
fn what_is_open_is_mapped_once_and_costs_no_more_with_many_tensors() {
    let name = "what_is_open_is_mapped_once_and_costs_no_more_with_many_tensors";
    on_machine(name, &[], |machine| {
        let calls_to_open = |tensors| {
            let fake = lending(Lent::vmm(tensors, Granularity::Model));
            let client = fake.client();
            // The first open of a client also takes the context.
            drop(open(&client, "m", FIRST).expect("opens"));
            fake.seen.wait_closed(1);
            let before = machine.calls().len();
            let first = open(&client, "m", FIRST).expect("opens");
            assert!(first.tensor("t0").is_ok());
            let calls = machine.calls().split_off(before);
            let again = open(&client, "m", Tier::Device(Devices::Visible)).expect("opens");
            assert!(again.same_open(&first));
            // Another name for the same version: a lease of its own, the same memory.
            let other = open(&client, "alias", BEST).expect("opens");
            assert!(!other.same_open(&first));
            assert_eq!(
                other.device().expect("there").allocations(),
                first.device().expect("there").allocations()
            );
            assert_eq!(machine.calls().len(), before + calls.len());
            // The memory stays as long as one of them does.
            drop((first, again));
            check_bytes(&other, tensors);
            drop(other);
            fake.seen.wait_closed(2);
            fake.seen.wait_closed(3);
            calls
        };
        let few = calls_to_open(2);
        assert_eq!(few, calls_to_open(2000));
        let imports = few
            .iter()
            .filter(|c| *c == "cuMemImportFromShareableHandle");
        assert_eq!(imports.count(), 1);
    });
}

#[test]
fn many_allocations_come_in_several_frames() {
    on_machine("many_allocations_come_in_several_frames", &[], |_| {
        let tensors = 2 * lent::PER_FRAME as u64 + 5;
        let fake = lending(Lent::vmm(tensors, Granularity::Tensor));
        let model = open(&fake.client(), "m", FIRST).expect("opens");
        let weights = model.device().expect("on a device");
        assert_eq!(weights.allocations().len() as u64, tensors);
        check_bytes(&model, tensors);
    });
}

/// A way to hand allocations out wrongly.
type Wrong = fn(&Lent, &mut Session, RequestId);

fn hand(lent: &Lent, session: &mut Session, id: RequestId, from: usize, to: usize) {
    let handed = Handed {
        from: from as u64,
        handles: Vec::new(),
    };
    session.send(id, &Reply::Handed(handed), &lent.some(from, to));
}

fn finish(lent: &Lent, session: &mut Session, id: RequestId, from: usize) {
    let mut fds = vec![lent.content.table.as_fd()];
    fds.extend(lent.some(from, lent.fds.len()));
    session.send(id, &Reply::Opened(lent.opened(9, 9)), &fds);
}

const WRONG: [(&str, Wrong); 9] = [
    ("too few", |lent, session, id| finish(lent, session, id, 1)),
    ("too many", |lent, session, id| {
        hand(lent, session, id, 0, 2);
        finish(lent, session, id, 1);
    }),
    ("a gap", |lent, session, id| {
        hand(lent, session, id, 1, 2);
        finish(lent, session, id, 2);
    }),
    ("out of order", |lent, session, id| {
        hand(lent, session, id, 0, 1);
        hand(lent, session, id, 0, 1);
    }),
    ("neither descriptors nor handles", |_, session, id| {
        let (from, handles) = (0, Vec::new());
        session.send(id, &Reply::Handed(Handed { from, handles }), &[]);
    }),
    ("handles of the other mechanism", |lent, session, id| {
        let (from, handles) = (0, vec![IpcHandle([1; 64])]);
        session.send(id, &Reply::Handed(Handed { from, handles }), &[]);
        finish(lent, session, id, 1);
    }),
    ("more than a model may have", |_, session, id| {
        for n in 0..=mrm_proto::limits::ALLOCATIONS_PER_MODEL_MAX / 4 {
            let (from, handles) = (4 * n as u64, vec![IpcHandle([1; 64]); 4]);
            session.send(id, &Reply::Handed(Handed { from, handles }), &[]);
        }
    }),
    ("allocations of host memory", |lent, session, id| {
        hand(lent, session, id, 0, 1);
        session.grant(id, 9, 9, &Content::sample(8));
    }),
    ("a device that was not asked for", |lent, session, id| {
        let mut opened = lent.opened(9, 9);
        if let Some(on_device) = &mut opened.device {
            on_device.uuid.0[3] ^= 1;
        }
        let mut fds = vec![lent.content.table.as_fd()];
        fds.extend(lent.some(0, lent.fds.len()));
        session.send(id, &Reply::Opened(opened), &fds);
    }),
];

#[test]
fn allocations_that_do_not_add_up_end_the_session() {
    on_machine(
        "allocations_that_do_not_add_up_end_the_session",
        &[],
        |_| {
            for (what, wrong) in WRONG {
                let lent = Lent::vmm(3, Granularity::Tensor);
                let fake = Fake::start(move |n, session| {
                    session.hello();
                    if n > 0 {
                        return lent.serve(session, 1);
                    }
                    let (id, ..) = session.next_asking().expect("an open");
                    wrong(&lent, session, id);
                    session.until_gone();
                });
                let client = fake.client();
                let error = open(&client, "m", FIRST).expect_err(what);
                assert_eq!(error.name(), "protocol", "{what}: {error}");
                let again = open(&client, "m", FIRST).expect(what);
                check_bytes(&again, 3);
            }
        },
    );
}

#[test]
fn a_layout_that_is_not_the_tables_is_found_when_a_tensor_is_asked_for() {
    let name = "a_layout_that_is_not_the_tables_is_found_when_a_tensor_is_asked_for";
    on_machine(name, &[], |_| {
        let mut lent = Lent::vmm(3, Granularity::Tensor);
        lent.on_device.granularity = Granularity::Block { block_bytes: 8192 };
        let fake = lending(lent);
        let model = open(&fake.client(), "m", FIRST).expect("opens");
        assert_eq!(
            model.tensor("t0").expect_err("no place").name(),
            "table_damaged"
        );
    });
}

fn revoked(lease: u64) -> Vec<u8> {
    let revoked = Reply::Revoked(Revoked {
        lease: LeaseId(lease),
        number: 602,
        message: "device lost (Xid 79)".to_owned(),
    });
    frame::encode(RequestId::NO_REPLY, 0, &revoked).expect("encodes")
}

#[test]
fn a_lease_that_is_taken_away_is_noted_and_the_next_open_gets_another() {
    let name = "a_lease_that_is_taken_away_is_noted_and_the_next_open_gets_another";
    on_machine(name, &[], |_| {
        let lent = Lent::vmm(3, Granularity::Model);
        let fake = Fake::start(move |_, session| {
            session.hello();
            let (id, ..) = session.next_asking().expect("an open");
            // One that is not known, and one whose grant the client has not looked at yet.
            let opened = Reply::Opened(lent.opened(1, 7));
            let opened = frame::encode(id, 2, &opened).expect("encodes");
            let fds = [lent.content.table.as_fd(), lent.fds[0].as_fd()];
            session.raw(&revoked(4711), &[]);
            session.raw(&[opened, revoked(1)].concat(), &fds);
            let (id, ..) = session.next_asking().expect("an open");
            lent.grant(session, id, 2, 7);
            let (id, ..) = session.next_asking().expect("an open");
            session.raw(&revoked(2), &[]);
            lent.grant(session, id, 3, 7);
            lent.serve(session, 4);
        });
        let client = fake.client();
        let lost = open(&client, "m", FIRST).expect("opens");
        let why = lost.lost().expect("taken away");
        assert_eq!(why.number(), 602);
        assert!(why.to_string().contains("Xid 79"), "{why}");
        let second = open(&client, "m", FIRST).expect("opens");
        assert!(!second.same_open(&lost) && second.lost().is_none());
        let places = |model: &Model| model.device().expect("there").allocations().to_vec();
        assert_ne!(places(&second), places(&lost));
        // Taken while it is in use: neither the name nor the memory is given out again.
        let other = open(&client, "other", FIRST).expect("opens");
        assert!(second.lost().is_some() && other.lost().is_none());
        assert_ne!(places(&other), places(&second));
        assert!(!open(&client, "m", FIRST).expect("opens").same_open(&second));
        drop((lost, second, other));
        fake.seen.wait_closed(3);
        for lease in [1, 2] {
            assert!(
                !closed(&fake, lease),
                "what was taken away is not given back"
            );
        }
    });
}

#[test]
fn closing_is_refused_while_a_stream_is_captured_and_the_lease_kept() {
    let name = "closing_is_refused_while_a_stream_is_captured_and_the_lease_kept";
    on_machine(name, &[], |machine| {
        let fake = lending(Lent::vmm(3, Granularity::Tensor));
        let client = fake.client();
        let capturing = "cuStreamIsCapturing:906:1+";
        let model = open(&client, "m", FIRST).expect("opens");
        machine.inject(capturing);
        let NotClosed { model, source } = model.close().expect_err("refused");
        assert!(matches!(source, CloseError::Capturing), "{source}");
        let model = model.expect("as it was");
        check_bytes(&model, 3);
        machine.inject("");
        model.close().expect("closes");
        fake.seen.wait_closed(1);

        // The same by dropping.
        let model = open(&client, "m", FIRST).expect("opens");
        machine.inject(capturing);
        drop(model);
        let other = open(&client, "other", FIRST).expect("opens");
        assert!(!closed(&fake, 2), "still mapped, so still leased");
        assert_eq!(device::release_deferred(), 1);
        machine.inject("");
        assert_eq!(device::release_deferred(), 0);
        fake.seen.wait_closed(2);
        check_bytes(&other, 3);

        // Refused in the middle: what is left is closed later, by the next open.
        machine.inject("cuStreamIsCapturing:906:2+");
        let NotClosed { model, .. } = other.close().expect_err("refused");
        assert!(model.is_none());
        machine.inject("");
        drop(open(&client, "third", FIRST).expect("opens"));
        fake.seen.wait_closed(3);
        fake.seen.wait_closed(4);
        let unmapped = machine.count("cuMemUnmap");
        assert_eq!(
            machine.count("cuMemMap"),
            unmapped + 3,
            "all but the lent ones"
        );
    });
}

#[test]
fn an_open_of_what_is_open_notices_that_the_lease_was_taken() {
    let name = "an_open_of_what_is_open_notices_that_the_lease_was_taken";
    on_machine(name, &[], |_| {
        let lent = Lent::vmm(3, Granularity::Model);
        let (now, when) = mpsc::channel();
        let (done, was_done) = mpsc::channel();
        let when = Mutex::new(when);
        let fake = Fake::start(move |_, session| {
            session.hello();
            let (id, ..) = session.next_asking().expect("an open");
            lent.grant(session, id, 1, 7);
            when.lock().expect("lock").recv().expect("the test goes on");
            session.raw(&revoked(1), &[]);
            done.send(()).expect("the test waits");
            lent.serve(session, 2);
        });
        let client = fake.client();
        let first = open(&client, "m", FIRST).expect("opens");
        assert!(open(&client, "m", FIRST).expect("opens").same_open(&first));
        now.send(()).expect("the fake waits");
        was_done.recv_timeout(fake::PATIENCE).expect("sent");
        assert!(!open(&client, "m", FIRST).expect("opens").same_open(&first));
    });
}

/// Not a test by itself: the daemon's process, whose memory others open by handles.
#[test]
fn exporter() {
    if inside("exporter").is_none() {
        return;
    }
    let lent = Lent::new(0, 3, Granularity::Tensor, Mechanism::Legacy);
    for handle in &lent.handles {
        let hex: String = handle.0.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("\nhandle {hex}");
    }
    std::io::stdout().flush().expect("says so");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The handles that the process prints.
fn handles(child: &mut std::process::Child) -> Vec<IpcHandle> {
    let lines = BufReader::new(child.stdout.as_mut().expect("a pipe")).lines();
    lines
        .map(|line| line.expect("text"))
        .filter_map(|line| {
            let hex = line.strip_prefix("handle ")?.to_owned();
            let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex");
            Some(IpcHandle(std::array::from_fn(byte)))
        })
        .take(3)
        .collect()
}

#[test]
fn memory_by_legacy_handles_is_closed_before_its_lease_and_goes_with_the_session() {
    let name = "memory_by_legacy_handles_is_closed_before_its_lease_and_goes_with_the_session";
    on_machine(name, &[], |machine| {
        let mut daemon = machine.beside("exporter", &[]);
        let mut lent = Lent::vmm(3, Granularity::Tensor);
        lent.handles = handles(&mut daemon);
        lent.fds.clear();
        lent.on_device.sharing = mrm_proto::reply::Sharing::Legacy;
        let dir = machine.dir().to_owned();
        let fake = Fake::start(move |_, session| {
            session.hello();
            let (id, ..) = session.next_asking().expect("an open");
            lent.grant(session, id, 1, 7);
            let (_, close, _) = session.next().expect("a close");
            assert!(matches!(close, Request::Close(_)));
            let log = std::fs::read_to_string(dir.join("log")).expect("a log");
            let closes = log.matches("cuIpcCloseMemHandle").count();
            let (id, ..) = session.next_asking().expect("an open");
            // As many as were closed when the lease came back.
            lent.grant(session, id, closes as u64, 7);
            let _ = session.next_asking();
        });
        let client = fake.client();
        let model = open(&client, "m", FIRST).expect("opens");
        check_bytes(&model, 3);
        drop(model);
        let model = open(&client, "m", FIRST).expect("opens");
        assert!(model.lost().is_none());
        // The fake ends the session at the next request.
        assert!(client.stat("m").is_err());
        let why = model.lost().expect("gone");
        assert_eq!(why.number(), 602);
        drop(model);
        assert_eq!(machine.count("cuIpcOpenMemHandle_v2"), 6);
        assert_eq!(machine.count("cuIpcCloseMemHandle"), 6);
        fake.seen.wait_closed(1);
        drop(daemon.stdin.take());
        daemon.wait().expect("ends");
    });
}

#[test]
fn without_a_driver_the_best_is_host_memory_and_says_why() {
    let name = "without_a_driver_the_best_is_host_memory_and_says_why";
    on_machine(name, &[("MRM_FAKE_CUDA_INIT_ERROR", "999")], |_| {
        let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
        let client = fake.client();
        let error = open(&client, "m", FIRST).expect_err("no driver");
        assert_eq!(error.name(), "no_device");
        assert!(error.to_string().contains("nvidia-smi"), "{error}");
        assert_eq!(
            fake.seen.count(),
            0,
            "the daemon is not asked for what cannot be used"
        );
        let model = open(&client, "m", BEST).expect("opens");
        let why = model.why_host().expect("says why").to_string();
        assert!(why.contains("did not initialise"), "{why}");
        assert!(model.tensor("w").expect("there").bytes().is_ok());
        let plain = client.open("m").expect("opens");
        assert!(plain.same_open(&model) && plain.why_host().is_none());
    });
}

#[test]
fn a_daemon_without_devices_is_told_from_one_that_is_full() {
    let name = "a_daemon_without_devices_is_told_from_one_that_is_full";
    on_machine(name, &[], |_| {
        for (bits, name) in [
            (features::PROGRESS, "no_device_tier"),
            (features::ALL, "gave_host"),
        ] {
            let fake = Fake::start(move |_, session| {
                let mut hello = server_hello();
                hello.0.features = bits;
                let id = session.client_hello().0;
                session.send(id, &hello, &[]);
                session.serve_opens(&Content::sample(8), 1);
            });
            let client = fake.client();
            let best = open(&client, "m", BEST).expect("opens");
            assert_eq!(best.why_host().expect("says why").name(), name);
            assert!(best.tensor("w").expect("there").bytes().is_ok());
            let error = open(&client, "m", FIRST).expect_err("no device");
            assert_eq!(error.name(), name, "{error}");
            if bits == features::ALL {
                fake.seen.wait_closed(2);
            } else {
                assert_eq!(fake.seen.count(), 1, "it would load for nothing");
            }
        }
    });
}

#[test]
fn a_device_is_one_that_this_process_sees_by_its_own_number() {
    let name = "a_device_is_one_that_this_process_sees_by_its_own_number";
    on_machine(name, &[("CUDA_VISIBLE_DEVICES", "1")], |_| {
        let uuid = device::visible().expect("devices")[0].uuid;
        assert!(uuid.to_string().starts_with("GPU-f1"), "{uuid}");
        let fake = lending(Lent::vmm(2, Granularity::Model));
        let client = fake.client();
        let model = open(&client, "m", FIRST).expect("opens");
        assert_eq!(model.device().map(|weights| weights.uuid()), Some(uuid));
        let by_uuid = open(&client, "m", Tier::Device(Devices::Uuid(uuid))).expect("opens");
        assert!(by_uuid.same_open(&model));
        let mut hidden = uuid;
        (hidden.0[0], hidden.0[15]) = (0xf0, 0xf0);
        let hidden = Devices::Uuid(hidden);
        for wrong in [Devices::Ordinal(1), hidden] {
            let error = open(&client, "m", Tier::Device(wrong)).expect_err("not visible");
            assert_eq!(error.name(), "device_not_visible");
            assert!(
                error.to_string().contains("CUDA_VISIBLE_DEVICES"),
                "{error}"
            );
        }
        assert_eq!(fake.seen.count(), 1);
    });
}

#[test]
fn whatever_call_fails_nothing_is_left_behind() {
    on_machine("whatever_call_fails_nothing_is_left_behind", &[], fail_each);
}

fn fail_each(machine: &Machine) {
    let lent = Lent::vmm(3, Granularity::Tensor);
    let driver = probe().expect("a driver");
    let context = Context::retain(driver, driver.devices().expect("devices")[0].uuid);
    let context = context.expect("a context");
    let fake = lending(lent);
    let client = fake.client();
    device::visible().expect("devices");
    let (mut lease, mut failed) = (0, 0);
    for nth in 1.. {
        let client = if nth % 2 == 0 {
            fake.client()
        } else {
            client.clone()
        };
        let before = machine.calls().len();
        machine.inject(&format!("*:4242:{nth}"));
        let opened = open(&client, "m", FIRST);
        let made = machine.calls().len() - before;
        match &opened {
            Ok(model) => check_bytes(model, 3),
            Err(error) => {
                failed += 1;
                assert_eq!(error.name(), "import_failed", "call {nth}: {error}");
                assert!(error.to_string().contains("4242"), "call {nth}: {error}");
            }
        }
        // The fault may strike the close instead: it is done again.
        drop(opened);
        machine.inject("");
        mrm_cuda::release_deferred();
        assert_eq!(device::release_deferred(), 0, "call {nth}");
        drop(client);
        lease += 1;
        fake.seen.wait("the leases back", |requests| {
            let closes = requests
                .iter()
                .filter(|(_, r)| matches!(r, Request::Close(_)));
            closes.count() == lease
        });
        if nth > made + 60 {
            assert!(failed > 10, "{failed} calls failed of {nth}");
            break;
        }
    }
    drop(client);
    let memory = context.memory().expect("answers");
    // Three allocations of the fake daemon's, of one block each, and their mappings.
    let (mapped, unmapped) = ("cuMemMap", "cuMemUnmap");
    assert_eq!(machine.succeeded(mapped), machine.succeeded(unmapped) + 3);
    assert_eq!(memory.total_bytes - memory.free_bytes, 3 * (2 << 20));
}
