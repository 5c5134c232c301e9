//! The daemon as a library: `mrmd` is a thin caller of [`serve::run`], and tests embed it.
//!
//! One thread decides: it accepts connections, reads requests, steps the pure
//! [`mrm_core::Core`], and writes replies. What blocks runs on the worker threads of [`transfer`];
//! the operator's HTTP runs on a thread of its own in [`status`].

pub mod catalogue;
pub mod config;
pub mod degraded;
pub mod device;
mod failpoint;
pub mod format;
pub mod integrity;
pub mod journal;
pub mod keeper;
mod listener;
pub mod memory;
pub mod peer;
pub mod runtime;
pub mod serve;
mod session;
mod shell;
pub mod source;
mod spin;
pub mod statistics;
pub mod status;
pub mod transfer;
mod turns;
mod watched;
pub mod wire;
