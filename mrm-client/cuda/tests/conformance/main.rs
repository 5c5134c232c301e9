//! What the crate promises, across processes: on the fake driver, and on hardware unchanged
//! (`MRM_TEST_CUDA=hardware cargo test -p mrm-cuda --test conformance -- --test-threads=1`).

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod agent;
mod faults;
mod machine;
mod probe;
mod raw;
mod reclaim;
mod sharing;
mod upload;
mod uploading;

/// Not a test by itself: what the other tests start as another process.
#[test]
fn agent() {
    if std::env::var_os("MRM_CUDA_TEST_AGENT").is_some() {
        agent::serve();
    }
}
