//! The thread of a client: what it is, and when it ends. One test to a process, which counts its
//! threads.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, PATIENCE};
use mrm_client::{Client, ConnectOptions};
use std::time::Instant;

/// Signals that each thread called `mrm-watch` blocks, as the kernel writes them.
fn watchers() -> Vec<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("own threads");
    let blocked = |task: std::io::Result<std::fs::DirEntry>| {
        // A thread may end while it is looked at.
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            Some(line[name.len()..].trim().to_owned())
        };
        (field("Name:")? == "mrm-watch").then_some(())?;
        u64::from_str_radix(&field("SigBlk:")?, 16).ok()
    };
    tasks.filter_map(blocked).collect()
}

/// Waits until there are so many; threads name themselves, and end, in their own time.
fn wait_for(count: usize) -> Vec<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = watchers();
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?}, not {count}");
        std::thread::yield_now();
    }
}

#[test]
fn a_client_with_models_has_one_thread_that_takes_no_signals_and_ends_with_them() {
    const SIGTERM: u64 = 1 << 14;
    let fake = Fake::start(|_, session| session.serve(&Content::sample(8)));
    let lazy = ConnectOptions::new().socket(fake.socket()).reconnect(false);
    let lazy = Client::connect_with(&lazy).expect("connects");
    let held = lazy.open("m").expect("opens");
    let client = fake.client();
    assert!(watchers().is_empty(), "nothing is held that is watched");

    let models = ["a", "b"].map(|name| client.open(name).expect("opens"));
    let again = client.clone().open("c").expect("opens");
    for blocked in wait_for(1) {
        assert!(blocked & SIGTERM != 0, "{blocked:x}");
    }
    let own = nix::sys::signal::SigSet::thread_get_mask().expect("own mask");
    assert!(
        !own.contains(nix::sys::signal::SIGTERM),
        "only the thread's"
    );
    // Each client sees to its own.
    let other = fake.client();
    let elsewhere = other.open("a").expect("opens");
    wait_for(2);
    drop((other, elsewhere));
    wait_for(1);
    drop((client, models));
    fake.seen.wait_closed(2);
    assert_eq!(watchers().len(), 1, "something is held still");
    drop(again);
    wait_for(0);
    assert!(held.is_leased());
}
