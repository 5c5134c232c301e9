//! The operator's view: HTTP/1.1 on a second Unix socket.
//!
//! The [server] runs on a thread of its own and asks the decider through a bounded pipe
//! ([`query`]), so that no HTTP peer, however hostile, is on the path of an open. What it answers
//! is defined in [`view`]; who may change something, in [`access`].
//!
//! ```
//! use mrm_daemon::status::{ServeOptions, metrics::Metrics, query::{self, Query}, serve};
//! use mrm_daemon::status::view::DaemonState;
//! use std::io::{Read, Write};
//! use std::os::unix::net::{UnixListener, UnixStream};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("status.sock");
//! let (handle, mut inbox) = query::channel();
//! let options = ServeOptions::for_daemon_uid(990);
//! let server = serve(UnixListener::bind(&path)?, handle, Metrics::new()?, options)?;
//! let decider = std::thread::spawn(move || {
//!     let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//!     if let Some(Query::State { reply }) = runtime.block_on(inbox.recv()) {
//!         reply.send(Ok(DaemonState::Serving));
//!     }
//!     Ok::<(), std::io::Error>(())
//! });
//!
//! let mut stream = UnixStream::connect(&path)?;
//! stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: mrm\r\nconnection: close\r\n\r\n")?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! assert!(answer.starts_with("HTTP/1.1 200 OK"));
//! decider.join().expect("the decider did not panic")?;
//! server.shutdown(1_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = include_str!("API.md")]

pub mod access;
pub mod events;
mod fault;
pub mod metrics;
mod params;
mod pieces;
pub mod place;
pub mod query;
mod route;
pub mod server;
mod service;
mod slots;
mod stall;
#[cfg(test)]
mod tests;
pub mod view;

pub use access::Access;
pub use events::{Event, EventKind, EventLog};
pub use metrics::Metrics;
pub use place::{Place, WarmOn};
pub use query::{Query, ReplyTo, StatusHandle, StatusInbox};
pub use server::{Limits, ServeError, ServeOptions, StatusServer, serve};
