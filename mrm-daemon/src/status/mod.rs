//! The operator's view: HTTP on a second Unix socket.

pub mod access;
pub mod events;
pub mod metrics;
pub mod query;
pub mod server;
pub mod view;
