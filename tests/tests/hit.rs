//! What a hit may count on besides being quick.

#![allow(clippy::expect_used, reason = "a test fails loudly")]

use mrm_tests::eventually;
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};

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
