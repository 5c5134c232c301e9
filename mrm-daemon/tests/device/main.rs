//! The device backend against the fake driver: each test runs in a process of its own, on a
//! pretended machine of its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod faults;
mod feeding;
mod filling;
mod machine;
mod model;
mod reclaiming;
mod registering;
mod starting;

/// Not a test by itself: what the self-test's child processes run.
#[test]
fn self_test_child() {
    if machine::inside() {
        assert_eq!(
            mrm_daemon::device::self_test::child_main(),
            std::process::ExitCode::SUCCESS
        );
    }
}
