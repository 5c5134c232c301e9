//! A forked child uses the client without touching its parent's session.
//!
//! One test to a process: `fork` copies a process whose other threads vanish, so nothing else may
//! run there at the time. (The others run in processes that they start.)

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;
#[cfg(feature = "cuda")]
#[path = "machine/lent.rs"]
mod lent;
#[cfg(feature = "cuda")]
mod machine;

use fake::{Content, Fake};
use mrm_proto::request::Request;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io::{Read, Write};

#[test]
fn a_child_opens_for_itself_and_its_parent_does_not_notice() {
    // Connection 0 is the parent's, 1 the child's, 2 the grandchild's.
    let fake = Fake::start(|n, session| {
        session.hello();
        session.serve_opens(&Content::sample(600_000), 100 * (n as u64 + 1));
    });
    let client = fake.client();
    let inherited = client.open("m").expect("opens");
    let child = in_child(|| {
        let last = |model: &mrm_client::Model| {
            model
                .tensor("w")
                .ok()?
                .as_slice::<f32>()
                .ok()?
                .last()
                .copied()
        };
        if last(&inherited) != Some(599_999.0) {
            return 1;
        }
        let Ok(own) = client.open("m") else { return 2 };
        if own.same_open(&inherited) || last(&own) != Some(599_999.0) {
            return 3;
        }
        let grandchild = in_child(|| match client.open("m") {
            Ok(third) if !third.same_open(&own) && last(&third) == last(&own) => 0,
            Ok(_) => 1,
            Err(_) => 2,
        });
        if grandchild != 0 {
            return 10 + grandchild;
        }
        drop(own);
        drop(inherited.clone());
        4 * i32::from(client.open("m").is_err())
    });
    assert_eq!(child, 0);
    fake.seen.wait_closed(200);
    fake.seen.wait_closed(300);
    // The parent's session and lease are as they were, and go on working.
    let closed = |lease: u64| {
        let closes = |r: &Request| matches!(r, Request::Close(c) if c.lease.0 == lease);
        fake.seen.all().iter().any(closes)
    };
    assert!(!closed(100));
    assert!(client.open("m").expect("opens").same_open(&inherited));
    let other = client.open("other").expect("opens on the old session");
    drop(other);
    fake.seen.wait_closed(101);
    drop(inherited);
    fake.seen.wait_closed(100);
}

#[test]
fn a_child_neither_watches_nor_takes_up_its_parents_leases() {
    alone(
        "a_child_neither_watches_nor_takes_up_its_parents_leases",
        outlive_a_daemon,
    );
}

fn outlive_a_daemon() {
    let (die, dying) = std::sync::mpsc::channel::<()>();
    let dying = std::sync::Mutex::new(dying);
    let fake = Fake::start(move |n, session| {
        session.hello_as(42 + n as u64, mrm_proto::hello::features::ALL);
        if n == 0 {
            let (id, ..) = session.next_asking().expect("an open");
            session.grant(id, 1, 7, &Content::sample(8));
            let _ = dying.lock().expect("lock").recv();
            // The child has a copy of this end too.
            let _ = session.stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        while let Some((id, request, _)) = session.next() {
            match request {
                Request::Resume(resume) => {
                    session.resumed(id, resume.leases.iter().map(|_| Some(100)));
                }
                Request::Open(_) => session.grant(id, 200, 7, &Content::sample(8)),
                _ => {}
            }
        }
    });
    let client = fake.client();
    let model = client.open("m").expect("opens");
    let (mut theirs, mut ours) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let parent = |ours: &mut std::os::unix::net::UnixStream| {
        die.send(()).expect("the fake waits");
        fake.seen.wait("the parent's resume", |seen| {
            seen.iter().any(|(_, r)| matches!(r, Request::Resume(_)))
        });
        client.server().expect("connected");
        assert!(model.is_leased());
        ours.write_all(b"x").expect("the child waits");
    };
    // SAFETY: the child runs only this crate's code, which takes no lock of the parent's, and
    // leaves by `_exit` without running anything of the test harness.
    let child = match unsafe { fork() }.expect("forks") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(ours);
            let mut byte = [0];
            let waited = theirs.read_exact(&mut byte).is_ok();
            let leased = model.is_leased();
            let readable = model.tensor("w").is_ok();
            drop(model);
            drop(client);
            let wrong = !waited || leased || !readable;
            // SAFETY: ends the process at once.
            unsafe { nix::libc::_exit(i32::from(wrong)) }
        }
    };
    parent(&mut ours);
    let status = waitpid(child, None).expect("waits");
    assert_eq!(status, WaitStatus::Exited(child, 0));
    // One session after the first, and one resume: the parent's, which goes on.
    let resumes = || {
        let all = fake.seen.all();
        all.iter()
            .filter(|r| matches!(r, Request::Resume(_)))
            .count()
    };
    assert!(model.is_leased());
    drop(
        client
            .open("other")
            .expect("opens on the session that there is"),
    );
    drop(model);
    fake.seen.wait_closed(100);
    assert_eq!(resumes(), 1);
}

/// Runs `body`, of the test called `name`, in a process of its own.
fn alone(name: &str, body: fn()) {
    const ALONE: &str = "MRM_FORK_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let this = std::env::current_exe().expect("this test is a file");
    let mut command = std::process::Command::new(this);
    let command = command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(ALONE, "1").output().expect("runs again");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}\n{said}\n{complained}",
        output.status
    );
}

#[cfg(feature = "cuda")]
#[test]
fn a_child_uses_nothing_that_is_on_a_device() {
    use mrm_client::{Devices, Fault, OpenOptions, Tier};
    let name = "a_child_uses_nothing_that_is_on_a_device";
    machine::on_machine(name, &[], |machine| {
        let granularity = mrm_client::device::Granularity::Model;
        let lent = lent::Lent::vmm(3, granularity);
        let fake = Fake::start(move |n, session| {
            session.hello();
            lent.serve(session, 100 * n as u64 + 1);
        });
        let client = fake.client();
        let first = |client: &mrm_client::Client| {
            let options = OpenOptions::new().tier(Tier::Device(Devices::Ordinal(0)));
            client.open_with("m", &options)
        };
        let mut inherited = Some(first(&client).expect("opens"));
        let mut other = Some(first(&fake.client()).expect("opens"));
        let calls = machine.calls().len();
        let child = in_child(|| {
            let refused = match first(&client) {
                Err(error) => error.name() == "no_device" && error.to_string().contains("fork"),
                Ok(_) => false,
            };
            if !refused {
                return 1;
            }
            // The child's copy of the last handle.
            let Some(last) = inherited.take() else {
                return 3;
            };
            if last.lost().is_some() || mrm_client::device::release_deferred() != 0 {
                return 2;
            }
            if last.close().is_err() {
                return 4;
            }
            other = None;
            // Nothing was put off either, which the child could never do.
            5 * i32::from(mrm_client::device::release_deferred() != 0)
        });
        assert_eq!(child, 0);
        // The parent's mappings, leases and sessions are as they were.
        assert_eq!(machine.calls().len(), calls);
        assert!(other.is_some_and(|model| model.lost().is_none()));
        let inherited = inherited.expect("only the child's copy was taken");
        assert!(first(&client).expect("opens").same_open(&inherited));
        inherited.close().expect("closes");
        fake.seen.wait_closed(1);
    });
}

/// Runs `work` in a forked child, and returns what it returned.
fn in_child(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs only this crate's code, which takes no lock of the parent's, and
    // leaves by `_exit` without running anything of the test harness.
    match unsafe { fork() }.expect("forks") {
        ForkResult::Parent { child } => match waitpid(child, None).expect("waits") {
            WaitStatus::Exited(_, code) => code,
            other => panic!("the child died: {other:?}"),
        },
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process at once.
            unsafe { nix::libc::_exit(code.unwrap_or(99)) }
        }
    }
}
