//! The targets, by what they look at.
//!
//! ```
//! use mrm_fuzz::{Verdict, target};
//! assert_eq!(target::frame::run(b""), Verdict::Refused);
//! ```

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a target reports what it found by panicking"
)]

pub mod client;
pub mod config;
pub mod frame;
pub mod keeper;
pub mod message;
pub mod safetensors;
pub mod table;

use crate::Verdict;

/// Takes `N` bytes off the front of `input`; zeros where there are none.
fn take<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    let n = N.min(input.len());
    let (front, rest) = input.split_at(n);
    taken[..n].copy_from_slice(front);
    *input = rest;
    taken
}

/// Every error that people may see says something.
fn assert_says(error: &dyn std::error::Error) -> Verdict {
    assert!(!error.to_string().trim().is_empty(), "an error of no words");
    Verdict::Refused
}
