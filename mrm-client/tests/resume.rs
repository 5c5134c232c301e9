//! Daemons that end and come back: leases are taken up again, and nobody has to ask.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, PATIENCE, Session};
use mrm_client::{Client, ConnectOptions, Fault, Model};
use mrm_proto::error::ErrorCode;
use mrm_proto::hello::features;
use mrm_proto::ids::{RequestId, VersionId};
use mrm_proto::limits::RESUMED_MAX;
use mrm_proto::reply::{Closed, Reply};
use mrm_proto::request::{HadLease, Request};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// Tells a fake when to go on.
fn signal() -> (Sender<()>, impl Fn() + Send + Sync + 'static) {
    let (now, when): (_, Receiver<()>) = channel();
    let when = Mutex::new(when);
    let wait = move || {
        let signalled = when.lock().expect("lock").recv_timeout(PATIENCE);
        signalled.expect("the test goes on");
    };
    (now, wait)
}

/// In host memory.
fn had(version: u64) -> HadLease {
    HadLease {
        version: VersionId(version),
        device: None,
        reserve_bytes: None,
    }
}

/// Grants the next open, of whatever, as `lease` on `version`.
fn grant_next(session: &mut Session, lease: u64, version: u64, content: &Content) {
    let (id, ..) = session.next_asking().expect("an open");
    session.grant(id, lease, version, content);
}

/// Grants opens as `lease` and on, on versions equal to the leases, until the client is gone.
fn grant_all(session: &mut Session, mut lease: u64) {
    let content = Content::sample(8);
    while let Some((id, ..)) = session.next_asking() {
        session.grant(id, lease, lease, &content);
        lease += 1;
    }
}

fn is_resume(request: &Request) -> bool {
    matches!(request, Request::Resume(_))
}

fn resumes(fake: &Fake) -> usize {
    fake.seen.all().iter().filter(|r| is_resume(r)).count()
}

fn closed(fake: &Fake, lease: u64) -> bool {
    let closes = |r: &Request| matches!(r, Request::Close(c) if c.lease.0 == lease);
    fake.seen.all().iter().any(closes)
}

fn place(model: &Model) -> *const u8 {
    model.segment(0).expect("one file").bytes().as_ptr()
}

fn check_readable(model: &Model) {
    let w = model.tensor("w").expect("still there");
    assert_eq!(w.as_slice::<f32>().expect("floats")[7], 7.0);
}

#[test]
fn who_only_holds_is_resumed_without_a_call() {
    let (die, dying) = signal();
    // What was taken over is the same memory.
    let content = Content::sample(8);
    let fake = Fake::start(move |n, session| {
        if n == 0 {
            session.hello_as(42, features::ALL);
            grant_next(session, 1, 7, &content);
            grant_next(session, 2, 8, &content);
            return dying();
        }
        session.hello_as(43, features::ALL);
        let (id, instance, leases) = session.next_resume();
        assert_eq!((instance, leases), (42, vec![had(7), had(8)]));
        session.resumed(id, [Some(100), None]);
        grant_next(session, 101, 7, &content);
        grant_all(session, 200);
    });
    let client = fake.client();
    let kept = client.open("kept").expect("opens");
    let dropped = client.open("dropped").expect("opens");
    assert!(kept.is_leased() && dropped.is_leased());
    die.send(()).expect("the fake waits");
    fake.seen
        .wait("a resume", |seen| seen.iter().any(|(_, r)| is_resume(r)));
    // There is a session for others only when it has taken up what it can.
    client.server().expect("connected");
    assert!(kept.is_leased() && !dropped.is_leased());
    check_readable(&kept);
    check_readable(&dropped);

    // What was taken over stands for its name and its version as before, the other does not.
    assert!(client.open("kept").expect("opens").same_open(&kept));
    let alias = client.open("alias").expect("opens");
    assert!(!alias.same_open(&kept));
    assert_eq!(place(&alias), place(&kept));
    let anew = client.open("dropped").expect("opens");
    assert!(!anew.same_open(&dropped) && anew.is_leased());
    drop((kept, alias, dropped, anew));
    for lease in [100, 101, 200] {
        fake.seen.wait_closed(lease);
    }
    assert!(!closed(&fake, 1) && !closed(&fake, 2));
    assert_eq!(resumes(&fake), 1);
}

#[test]
fn a_version_that_was_not_taken_over_is_mapped_anew() {
    let (die, dying) = signal();
    let fake = Fake::start(move |n, session| {
        let content = Content::sample(8);
        session.hello_as(42 + n as u64, features::ALL);
        grant_next(session, 1, 7, &content);
        if n == 0 {
            return dying();
        }
        // The number means something else to this daemon.
        grant_all(session, 2);
    });
    let client = fake.client();
    let old = client.open("m").expect("opens");
    die.send(()).expect("the fake waits");
    let new = client.open("other").expect("opens");
    assert_eq!(old.version(), new.version());
    assert_ne!(place(&old), place(&new));
    assert!(!old.is_leased() && new.is_leased());
}

#[test]
fn each_daemon_is_asked_for_what_the_last_one_counted() {
    let (die, dying) = signal();
    let fake = Fake::start(move |n, session| {
        let content = Content::sample(8);
        session.hello_as(42 + n as u64, features::ALL);
        match n {
            0 => {
                grant_next(session, 1, 1, &content);
                grant_next(session, 2, 2, &content);
                grant_next(session, 3, 3, &content);
            }
            1 => {
                let (id, instance, leases) = session.next_resume();
                assert_eq!((instance, leases), (42, vec![had(1), had(2), had(3)]));
                session.resumed(id, [Some(11), None, Some(13)]);
                grant_next(session, 14, 4, &content);
                // Of the three, one is given back to this daemon.
                let (_, close, _) = session.next().expect("a close");
                assert!(matches!(close, Request::Close(close) if close.lease.0 == 11));
            }
            _ => {
                let (id, instance, leases) = session.next_resume();
                assert_eq!((instance, leases), (43, vec![had(3), had(4)]));
                session.resumed(id, [Some(23), Some(24)]);
                return grant_all(session, 30);
            }
        }
        dying();
    });
    let client = fake.client();
    let mut models: Vec<_> = ["a", "b", "c"]
        .map(|name| client.open(name).expect("opens"))
        .into();
    die.send(()).expect("the fake waits");
    models.push(client.open("d").expect("opens at the second"));
    drop(models.remove(0));
    fake.seen.wait_closed(11);
    die.send(()).expect("the fake waits");
    fake.seen.wait("two resumes", |seen| {
        seen.iter().filter(|(_, r)| is_resume(r)).count() == 2
    });
    client.server().expect("connected");
    let leased: Vec<_> = models.iter().map(Model::is_leased).collect();
    assert_eq!(leased, [false, true, true]);
    drop(models);
    fake.seen.wait_closed(23);
    fake.seen.wait_closed(24);
}

#[test]
fn more_than_fit_one_request_are_named_in_several() {
    const LEASES: usize = RESUMED_MAX + 5;
    let (die, dying) = signal();
    let fake = Fake::start(move |n, session| {
        session.hello_as(42 + n as u64, features::ALL);
        if n == 0 {
            let content = Content::sample(8);
            for lease in 1..=LEASES as u64 {
                grant_next(session, lease, 7, &content);
            }
            return dying();
        }
        let mut first = 10_000;
        for expected in [RESUMED_MAX, 5] {
            let (id, instance, leases) = session.next_resume();
            assert_eq!((instance, leases), (42, vec![had(7); expected]));
            session.resumed(id, (first..).take(expected).map(Some));
            first += expected as u64;
        }
        session.until_gone();
    });
    let client = fake.client();
    let open = |i| client.open(&format!("m{i}")).expect("opens");
    let models: Vec<_> = (0..LEASES).map(open).collect();
    die.send(()).expect("the fake waits");
    fake.seen.wait("two resumes", |seen| {
        seen.iter().filter(|(_, r)| is_resume(r)).count() == 2
    });
    client.server().expect("connected");
    assert!(models.iter().all(Model::is_leased));
    drop(models);
    fake.seen.wait("every close", |seen| {
        let lease = |r: &Request| match r {
            Request::Close(close) => Some(close.lease.0),
            _ => None,
        };
        let mut closed: Vec<_> = seen.iter().filter_map(|(_, r)| lease(r)).collect();
        closed.sort_unstable();
        closed.into_iter().eq((10_000..).take(LEASES))
    });
}

/// What a daemon says.
type Answer = fn(&mut Session);

/// Daemons that take nothing up, and whether the session goes on.
fn unhelpful() -> [(&'static str, Answer, bool); 5] {
    let refuses: Answer = |session| {
        session.hello_as(43, features::ALL);
        let (id, ..) = session.next_resume();
        session.error(id, ErrorCode::NotPermitted, "not for you");
    };
    let knows_nothing_of_it: Answer = |session| {
        session.hello_as(43, features::ALL & !features::RESUME);
    };
    let hangs_up: Answer = |session| {
        session.hello_as(43, features::ALL);
        session.next_resume();
        session.error(RequestId::NO_REPLY, ErrorCode::MalformedBody, "no");
    };
    let miscounts: Answer = |session| {
        session.hello_as(43, features::ALL);
        let (id, ..) = session.next_resume();
        session.resumed(id, [Some(5), Some(6)]);
        session.until_gone();
    };
    let mixes_up: Answer = |session| {
        session.hello_as(43, features::ALL);
        let (id, ..) = session.next_resume();
        session.send(id, &Reply::Closed(Closed {}), &[]);
        session.until_gone();
    };
    [
        ("refuses", refuses, true),
        ("knows nothing of it", knows_nothing_of_it, true),
        ("hangs up", hangs_up, false),
        ("miscounts", miscounts, false),
        ("mixes up", mixes_up, false),
    ]
}

#[test]
fn a_daemon_that_takes_nothing_up_leaves_what_is_mapped() {
    for (what, answer, goes_on) in unhelpful() {
        let (die, dying) = signal();
        let fake = Fake::start(move |n, session| {
            if n == 0 {
                session.hello_as(42, features::ALL);
                grant_next(session, 1, 7, &Content::sample(8));
                return dying();
            }
            if n == 1 {
                answer(session);
                if !goes_on {
                    return;
                }
            } else {
                session.hello_as(44, features::ALL);
            }
            // Named once and never again.
            let (id, request, _) = session.next().expect("an open");
            assert!(matches!(request, Request::Open(_)), "{request:?}");
            session.grant(id, 10, 10, &Content::sample(8));
            session.until_gone();
        });
        let client = fake.client();
        let held = client.open("m").expect("opens");
        die.send(()).expect("the fake waits");
        let opened = match client.open("other") {
            Err(error) if !goes_on => {
                assert!(!error.retryable(), "{what}: {error}");
                client.open("other")
            }
            opened => opened,
        };
        let other = opened.expect(what);
        assert!(other.is_leased() && !held.is_leased(), "{what}");
        check_readable(&held);
        drop((held, other));
        fake.seen.wait_closed(10);
        assert!(!closed(&fake, 1), "{what}");
    }
}

#[test]
fn what_is_closed_while_it_is_taken_up_is_given_back() {
    let (die, dying) = signal();
    let (close, when_closed) = signal();
    let fake = Fake::start(move |n, session| {
        session.hello_as(42 + n as u64, features::ALL);
        if n == 0 {
            grant_next(session, 1, 7, &Content::sample(8));
            return dying();
        }
        let (id, ..) = session.next_resume();
        when_closed();
        session.resumed(id, [Some(100)]);
        session.until_gone();
    });
    let client = fake.client();
    let model = client.open("m").expect("opens");
    die.send(()).expect("the fake waits");
    fake.seen
        .wait("a resume", |seen| seen.iter().any(|(_, r)| is_resume(r)));
    drop(model);
    close.send(()).expect("the fake waits");
    fake.seen.wait_closed(100);
    drop(client);
}

#[test]
fn models_that_outlive_their_client_are_resumed_too() {
    let (die, dying) = signal();
    let fake = Fake::start(move |n, session| {
        session.hello_as(42 + n as u64, features::ALL);
        if n == 0 {
            grant_next(session, 1, 7, &Content::sample(8));
            return dying();
        }
        let (id, ..) = session.next_resume();
        session.resumed(id, [Some(100)]);
        session.until_gone();
    });
    let model = fake.client().open("m").expect("opens");
    die.send(()).expect("the fake waits");
    fake.seen
        .wait("a resume", |seen| seen.iter().any(|(_, r)| is_resume(r)));
    drop(model);
    // Whoever is first, this or the answer: it is given back under its new number.
    fake.seen.wait_closed(100);
    assert!(!closed(&fake, 1));
}

#[test]
fn opens_in_flight_are_asked_again_of_the_next_daemon() {
    let fake = Fake::start(move |n, session| {
        session.hello_as(42 + n as u64, features::ALL);
        match n {
            // Dies with two opens pending; the next ones at once.
            0 => {
                session.next_asking().expect("an open");
                session.next_asking().expect("another");
            }
            1..4 => {}
            _ => grant_all(session, 1),
        }
    });
    let client = fake.client();
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let client = &client;
            scope.spawn(move || client.open(name).expect("opens at last"));
        }
    });
}

#[test]
fn opens_wait_for_a_daemon_that_is_away_or_about_to_go() {
    let (gone, going) = channel();
    let fake = Fake::start(move |n, session| match n {
        0 => {
            session.hello_as(42, features::ALL);
            for _ in 0..5 {
                let (id, ..) = session.next_asking().expect("an open");
                session.error(id, ErrorCode::Draining, "about to exit");
            }
            gone.send(()).expect("the test waits");
        }
        // Nobody is there yet.
        1..5 => {}
        _ => {
            session.hello_as(43, features::ALL);
            grant_all(session, 1);
        }
    });
    fake.client().open("m").expect("opens at the next daemon");
    going.recv_timeout(PATIENCE).expect("the first daemon went");
}

#[test]
fn nobody_waits_longer_than_asked_or_without_having_asked() {
    let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
    let connect = |options: ConnectOptions| Client::connect_with(&options.socket(fake.socket()));
    let patient = connect(ConnectOptions::new()).expect("connects");
    let hasty = connect(ConnectOptions::new().reconnect(false)).expect("connects");
    // The sessions go on; that nobody listens any more matters to new ones.
    fake.hide();
    assert_eq!(
        connect(ConnectOptions::new()).expect_err("nobody").name(),
        "no_daemon"
    );
    fake.show();
    drop((patient, hasty));

    let fake = Fake::start(|n, session| {
        if n < 2 {
            session.hello();
            session.next_asking();
        }
    });
    let connect = |options: ConnectOptions| Client::connect_with(&options.socket(fake.socket()));
    let patient = connect(ConnectOptions::new().reconnect(true)).expect("connects");
    let hasty = connect(ConnectOptions::new().reconnect(false)).expect("connects");
    fake.hide();
    // An hour: without patience it is not waited for.
    let hour = || mrm_client::OpenOptions::new().wait(std::time::Duration::from_secs(3600));
    let error = hasty.open_with("m", &hour()).expect_err("nobody is there");
    assert_eq!(error.name(), "no_daemon");
    let instant = mrm_client::OpenOptions::new().wait(std::time::Duration::from_millis(30));
    let error = patient
        .open_with("m", &instant)
        .expect_err("nobody is there");
    assert_eq!(error.name(), "no_daemon");
    assert!(error.retryable());
}

#[test]
fn connecting_waits_for_a_daemon_if_asked_to() {
    let fake = Fake::start(|n, session| {
        if n > 3 {
            session.serve(&Content::sample(8));
        }
    });
    let options = ConnectOptions::new().socket(fake.socket());
    let error = Client::connect_with(&options).expect_err("not up yet");
    assert_eq!(error.name(), "disconnected");
    let client = Client::connect_with(&options.wait(PATIENCE)).expect("is up at last");
    client.open("m").expect("opens");
}

#[test]
fn without_the_thread_the_next_call_takes_up_what_is_held() {
    let (die, dying) = signal();
    let (gone, going) = channel();
    let connections = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&connections);
    let fake = Fake::start(move |n, session| {
        *counted.lock().expect("lock") += 1;
        session.hello_as(42 + n as u64, features::ALL);
        if n == 0 {
            grant_next(session, 1, 7, &Content::sample(8));
            dying();
            let _ = session.stream.shutdown(std::net::Shutdown::Both);
            return gone.send(()).expect("the test waits");
        }
        let (id, instance, leases) = session.next_resume();
        assert_eq!((instance, leases), (42, vec![had(7)]));
        session.resumed(id, [Some(100)]);
        grant_all(session, 200);
    });
    let options = ConnectOptions::new().socket(fake.socket());
    let client = Client::connect_with(&options.reconnect(false)).expect("connects");
    let model = client.open("m").expect("opens");
    die.send(()).expect("the fake waits");
    going.recv_timeout(PATIENCE).expect("gone");
    assert_eq!(*connections.lock().expect("lock"), 1);
    client.open("other").expect("opens");
    assert_eq!(*connections.lock().expect("lock"), 2);
    assert!(model.is_leased());
    drop(model);
    fake.seen.wait_closed(100);
}

#[test]
fn a_daemon_that_never_comes_back_is_looked_for_ever_more_seldom() {
    let (die, dying) = signal();
    let (came, coming) = channel();
    let fake = Fake::start(move |n, session| {
        if n == 0 {
            session.hello();
            grant_next(session, 1, 7, &Content::sample(8));
            return dying();
        }
        // Hangs up on everybody.
        let _ = came.send(std::time::Instant::now());
    });
    let client = fake.client();
    let model = client.open("m").expect("opens");
    die.send(()).expect("the fake waits");
    let arrivals: Vec<_> = (0..7)
        .map(|_| coming.recv_timeout(PATIENCE).expect("goes on trying"))
        .collect();
    // Between one and the next lies at least half of 20 ms, 40 ms, ... 640 ms, and no machine is so
    // slow that a pause gets shorter.
    for (pause, pair) in (0..).map(|i| 10 << i).zip(arrivals.windows(2)) {
        let between = pair[1].duration_since(pair[0]);
        let slack = std::time::Duration::from_millis(pause / 2);
        assert!(
            between >= slack,
            "{between:?} after a pause of {pause} ms or more"
        );
    }
    check_readable(&model);
    // Not leased, and not lost either.
    assert!(!model.is_leased() && model.lost().is_none());
}
