//! The decider of `mrmd`: which bytes are in memory, who holds them, what is loaded and dropped.
//!
//! A pure state machine. [`Core::handle`] takes the time and one [`Event`] and appends
//! [`Effect`]s, each of which the shell carries out. Effects with an [`OpId`](id::OpId) settle in
//! exactly one completion event. There is no IO, clock, randomness, thread or unsafe code here;
//! the numbered invariants are in `mrm-daemon/DESIGN.md` and checked by [`invariants`].
#![forbid(unsafe_code)]

pub mod effect;
pub mod event;
pub mod id;
