//! Scripts: what the decider does, event by event. One file per subject.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod adopt;
mod ahead;
mod damaged;
mod device;
mod early;
mod opens;
mod operator;
mod policies;
mod reserve;
mod room;
mod show;
mod support;
mod tiers;
