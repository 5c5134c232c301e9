//! Opening, reading and giving back, against a fake daemon.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, PATIENCE, server_hello};
use mrm_client::{
    Client, ConnectOptions, Fault, ModelKind, OpenOptions, Origin, RequestError, TensorError,
};
use mrm_proto::error::ErrorCode;
use mrm_proto::hello::features;
use mrm_proto::limits::HINT_MS_MAX;
use mrm_proto::reply::{Hinted, Listed, ModelRow, ModelState, Progress, Reply, Stated};
use mrm_proto::request::Request;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

#[test]
fn a_model_is_opened_read_and_given_back() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(1_000_000)));
    let client = fake.client();
    assert_eq!(client.server().expect("connected").daemon, "fake 1.0");
    let model = client.open("a/b").expect("opens");
    assert_eq!(
        (model.name(), model.version().0, model.origin()),
        ("a/b", 7, Origin::Hit)
    );
    assert_eq!(model.kind().expect("a table"), ModelKind::Safetensors);
    assert_eq!(model.metadata().expect("a table"), [("format", "pt")]);
    let tensors = model.tensors().expect("a table");
    let names: Vec<_> = (&tensors).into_iter().map(|t| t.name()).collect();
    assert_eq!(names, ["w", "scalar", "odd"]);

    let w = model.tensor("w").expect("is there");
    assert_eq!(w.shape(), [1, 1_000_000]);
    let values: &[f32] = w.as_slice().expect("floats");
    assert!(values.iter().enumerate().all(|(i, v)| *v == i as f32));
    assert_eq!(
        model
            .tensor("scalar")
            .expect("is there")
            .as_slice::<i64>()
            .expect("int"),
        [-9]
    );
    assert!(matches!(
        w.as_slice::<f64>(),
        Err(TensorError::DType { .. })
    ));
    let odd = model.tensor("odd").expect("is there");
    assert_eq!(odd.bytes().expect("in host memory"), [1, 2, 3, 4]);
    assert!(matches!(
        odd.as_slice::<u16>(),
        Err(TensorError::Misaligned { .. })
    ));
    assert!(matches!(
        model.tensor("none"),
        Err(TensorError::NotFound { tensors: 3, .. })
    ));

    let segment = model.segment(0).expect("one file");
    assert_eq!(segment.name(), Some("model.safetensors"));
    assert_eq!(segment.bytes().len(), 64 + 4_000_000 + 13);
    assert_eq!(segment.bytes().as_ptr() as usize % (2 << 20), 0);
    assert!(segment.fd().as_raw_fd() >= 0);
    assert!(model.segment(1).is_none());
    drop(model);
    fake.seen.wait_closed(1);
}

fn patient(fake: &Fake) -> ConnectOptions {
    let options = ConnectOptions::new().timeout(PATIENCE);
    options.socket(fake.socket())
}

#[test]
fn a_fresh_process_asks_for_its_model_along_with_its_hello() {
    let fake = Fake::start(|_, session| {
        let content = Content::sample(8);
        let (hello, _) = session.client_hello();
        // Who waited for the hello would wait in vain.
        let (id, _, _) = session.next_asking().expect("an open");
        session.send(hello, &server_hello(), &[]);
        session.grant(id, 1, 7, &content);
        session.serve_opens(&content, 2);
    });
    let opened = Client::connect_and_open_with(&patient(&fake), "a/b", &OpenOptions::new());
    let (client, model) = opened.expect("opens");
    let scalar = model.tensor("scalar").expect("is there");
    assert_eq!(scalar.as_slice::<i64>().expect("int"), [-9]);
    let again = client.open("a/b").expect("is open");
    assert_eq!(fake.seen.count(), 1, "it was asked for once");
    let other = client.open("c").expect("opens");
    drop((model, again, other));
    fake.seen.wait_closed(1);
    fake.seen.wait_closed(2);
}

#[test]
fn what_was_asked_too_early_is_given_back_and_asked_as_this_daemon_takes_it() {
    let fake = Fake::start(|_, session| {
        let content = Content::sample(8);
        let (hello, _) = session.client_hello();
        let (id, _, _) = session.next_asking().expect("an open");
        let mut hasty = server_hello();
        hasty.0.limits.wait_ms_max = 1000;
        session.send(hello, &hasty, &[]);
        session.grant(id, 1, 7, &content);
        session.serve_opens(&content, 2);
    });
    let opened = Client::connect_and_open_with(&patient(&fake), "a/b", &OpenOptions::new());
    let (_client, model) = opened.expect("opens");
    fake.seen.wait_closed(1);
    let waits: Vec<u64> = fake.seen.all().into_iter().filter_map(wait_of).collect();
    assert_eq!(waits, [30_000, 1000]);
    drop(model);
    fake.seen.wait_closed(2);
}

fn wait_of(request: Request) -> Option<u64> {
    match request {
        Request::Open(open) => Some(open.wait_ms),
        _ => None,
    }
}

#[test]
fn who_connects_and_opens_hears_why_either_fails() {
    let fake = Fake::start(|n, session| {
        let (hello, _) = session.client_hello();
        if n == 0 {
            return session.error(hello, ErrorCode::VersionMismatch, "this daemon 3 to 4");
        }
        session.send(hello, &server_hello(), &[]);
        let (id, _, _) = session.next_asking().expect("an open");
        session.error(id, ErrorCode::NoRoom, "no room");
        session.until_gone();
    });
    for code in [ErrorCode::VersionMismatch, ErrorCode::NoRoom] {
        let opened = Client::connect_and_open_with(&patient(&fake), "a/b", &OpenOptions::new());
        assert_eq!(opened.expect_err("fails").number(), code.number());
    }
    let nobody = ConnectOptions::new().socket(fake.directory().join("none"));
    let opened = Client::connect_and_open_with(&nobody, "a/b", &OpenOptions::new());
    assert_eq!(opened.expect_err("fails").name(), "no_daemon");
    let opened = Client::connect_and_open_with(&nobody, "/", &OpenOptions::new());
    assert_eq!(opened.expect_err("fails").name(), "bad_name");
}

#[test]
fn a_second_open_makes_no_round_trip_until_the_last_handle_is_gone() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
    let client = fake.client();
    let first = client.open("m").expect("opens");
    let second = client.clone().open("m").expect("opens");
    assert!(first.same_open(&second));
    assert_eq!(fake.seen.count(), 1);
    drop(first);
    assert!(client.open("m").expect("opens").same_open(&second));
    assert_eq!(fake.seen.count(), 1);
    drop(second);
    fake.seen.wait_closed(1);
    drop(client.open("m").expect("opens"));
    fake.seen.wait_closed(2);
}

#[test]
fn two_names_of_one_version_share_memory_but_not_the_lease() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
    let client = fake.client();
    let (a, b) = (
        client.open("a").expect("opens"),
        client.open("b").expect("opens"),
    );
    let start = |m: &mrm_client::Model| m.segment(0).expect("one file").bytes().as_ptr();
    assert_eq!(start(&a), start(&b));
    assert!(!a.same_open(&b));
    drop(a);
    fake.seen.wait_closed(1);
    assert_eq!(
        b.tensor("w")
            .expect("is there")
            .as_slice::<f32>()
            .expect("floats")[7],
        7.0
    );
    drop(b);
    fake.seen.wait_closed(2);
}

#[test]
fn requests_of_several_threads_are_in_flight_together() {
    const THREADS: usize = 8;
    let fake = Fake::start(|_, session| {
        session.hello();
        // Nobody is answered before all have asked, and the last is answered first.
        let mut asked: Vec<_> = (0..THREADS)
            .map(|_| session.next_asking().expect("an open").0)
            .collect();
        let content = Content::sample(8);
        while let Some(id) = asked.pop() {
            session.grant(id, id.0, id.0, &content);
        }
        session.until_gone();
    });
    let client = fake.client();
    let models: Vec<_> = std::thread::scope(|scope| {
        let open = |i: usize| {
            scope.spawn({
                let client = client.clone();
                move || client.open(&format!("m{i}")).expect("opens")
            })
        };
        let threads: Vec<_> = (0..THREADS).map(open).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    });
    let mut versions: Vec<_> = models.iter().map(|m| m.version().0).collect();
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), THREADS);
}

#[test]
fn threads_that_open_and_drop_one_name_never_share_a_dead_lease() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
    let client = fake.client();
    let start = Arc::new(Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..300 {
                    let model = client.open("m").expect("opens");
                    let w = model.tensor("w").expect("is there");
                    assert_eq!(w.as_slice::<f32>().expect("floats")[3], 3.0);
                }
            });
        }
    });
    // Every lease that was granted was given back, once.
    fake.seen.wait("as many closes as opens", |requests| {
        let opens = requests
            .iter()
            .filter(|(_, r)| matches!(r, Request::Open(_)))
            .count();
        let mut closed: Vec<_> = requests
            .iter()
            .filter_map(|(_, r)| {
                if let Request::Close(c) = r {
                    Some(c.lease.0)
                } else {
                    None
                }
            })
            .collect();
        closed.sort_unstable();
        closed == (1..=opens as u64).collect::<Vec<_>>()
    });
}

#[test]
fn progress_reaches_the_thread_that_opens() {
    let (saw, was_seen) = mpsc::channel();
    let was_seen = Mutex::new(was_seen);
    let fake = Fake::start(move |_, session| {
        session.hello();
        let (id, request, _) = session.next_asking().expect("an open");
        assert!(matches!(request, Request::Open(open) if open.progress && open.wait_ms == 15_000));
        for loaded_bytes in [10, 90] {
            let progress = Progress {
                loaded_bytes,
                total_bytes: 100,
                eta_ms: Some(100 - loaded_bytes),
            };
            session.send(id, &Reply::Progress(progress), &[]);
            // Reports that are not read in time are merged, with each other and with the end.
            let seen = was_seen.lock().expect("whole").recv_timeout(PATIENCE);
            assert_eq!(seen, Ok(loaded_bytes));
        }
        session.grant(id, 1, 1, &Content::sample(8));
        session.until_gone();
    });
    let here = std::thread::current().id();
    let options = OpenOptions::new()
        .wait(Duration::from_secs(15))
        .on_progress(|p| {
            assert_eq!(std::thread::current().id(), here);
            saw.send(p.loaded_bytes).expect("awaited");
        });
    fake.client().open_with("m", &options).expect("opens");
}

#[test]
fn a_refusal_says_what_the_daemon_said_and_the_session_goes_on() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let (id, ..) = session.next_asking().expect("an open");
        session.error(id, ErrorCode::NoRoom, "no room for `m`: `x` is held");
        session.serve_opens(&Content::sample(8), 1);
    });
    let client = fake.client();
    let refused = client.open("m").expect_err("refused");
    assert_eq!((refused.number(), refused.name()), (501, "no_room"));
    assert_eq!(refused.to_string(), "no room for `m`: `x` is held");
    assert!(refused.retryable() && !refused.took_effect());
    assert_eq!(client.open("../m").expect_err("refused").number(), 200);
    client.open("m").expect("opens");
}

#[test]
fn files_are_passed_as_descriptors() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let (id, request, fds) = session.next_asking().expect("an open");
        let Request::OpenFiles(open) = request else {
            panic!("files")
        };
        assert_eq!(open.label.as_str(), "x.bin");
        let mut bytes = [0; 5];
        assert_eq!(rustix::io::pread(&fds[0], &mut bytes, 0), Ok(5));
        session.grant(
            id,
            5,
            1,
            &Content::of(&fake::Content::sample(1).table_copy(), &[&bytes]),
        );
        session.until_gone();
    });
    let path = fake.directory().join("x.bin");
    std::fs::write(&path, b"bytes").expect("writes");
    let model = fake.client().open_path(&path).expect("opens");
    assert_eq!(model.segment(0).expect("one").bytes(), b"bytes");
    // The table speaks of tensors that this file does not hold.
    assert!(matches!(model.tensors(), Err(TensorError::Table { .. })));
    assert!(matches!(model.tensor("w"), Err(TensorError::Table { .. })));
}

#[test]
fn lists_are_read_page_by_page() {
    let fake = Fake::start(|_, session| {
        session.hello();
        while let Some((id, request, _)) = session.next_asking() {
            let name = |text: &str| mrm_proto::name::ModelName::new(text).expect("a name");
            let row = |text: &str| ModelRow {
                name: name(text),
                registered: true,
                state: ModelState::Absent,
                bytes: 0,
                leases: 0,
                pinned: false,
                devices: None,
            };
            let reply = match request {
                Request::List(list) => Reply::Listed(match list.after {
                    None => Listed {
                        models: vec![row("a"), row("b")],
                        more: true,
                    },
                    Some(_) => Listed {
                        models: vec![row("c")],
                        more: false,
                    },
                }),
                Request::Hint(hint) => {
                    assert_eq!(hint.in_ms, HINT_MS_MAX, "cut to what a daemon takes");
                    Reply::Hinted(Hinted {})
                }
                _ => Reply::Stated(Stated {
                    row: row("a"),
                    version: None,
                    digests: vec![],
                }),
            };
            session.send(id, &reply, &[]);
        }
    });
    let client = fake.client();
    let names: Vec<_> = client
        .list("")
        .expect("lists")
        .iter()
        .map(|row| row.name.to_string())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(client.stat("a").expect("is there").row.name.as_str(), "a");
    client.hint("a", Duration::MAX).expect("is noted");
    assert!(matches!(
        client.hint("/", Duration::ZERO),
        Err(RequestError::BadName { .. })
    ));
}

#[test]
fn a_daemon_that_takes_no_hints_is_not_sent_any() {
    let fake = Fake::start(|_, session| {
        let id = session.client_hello().0;
        let mut hello = fake::server_hello();
        hello.0.features &= !features::HINT;
        session.send(id, &hello, &[]);
        session.until_gone();
    });
    let error = fake.client().hint("a", Duration::ZERO).expect_err("is old");
    assert!(matches!(&error, RequestError::NoHints(_)), "{error}");
    assert!(error.to_string().contains("update it"), "{error}");
    assert_eq!(error.number(), ErrorCode::VersionMismatch.number());
}

#[test]
fn no_more_requests_are_in_flight_than_the_daemon_allows() {
    let fake = Fake::start(|_, session| {
        let id = session.client_hello().0;
        let mut hello = fake::server_hello();
        hello.0.limits.requests_in_flight_max = 2;
        session.send(id, &hello, &[]);
        let content = Content::sample(8);
        let mut in_flight = Vec::new();
        for lease in 1..=20u64 {
            session.stream.set_nonblocking(false).expect("blocking");
            in_flight.push(session.next_asking().expect("an open").0);
            assert!(in_flight.len() <= 2);
            if in_flight.len() == 2 || lease == 20 {
                for id in in_flight.drain(..) {
                    session.grant(id, id.0, id.0, &content);
                }
            }
        }
        session.until_gone();
    });
    let client = fake.client();
    std::thread::scope(|scope| {
        for i in 0..20 {
            let client = &client;
            scope.spawn(move || client.open(&format!("m{i}")).expect("opens"));
        }
    });
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    let options = ConnectOptions::new().socket("/nonexistent/mrmd.sock");
    let error = mrm_client::Client::connect_with(&options).expect_err("nobody there");
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/mrmd.sock") && text.contains("MRM_SOCKET"),
        "{text}"
    );
}
