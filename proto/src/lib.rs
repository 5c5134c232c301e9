//! The wire contract between `mrmd` and its clients.
//!
//! A connection is a Unix stream socket. It carries [frames](frame): a fixed header of
//! [`FRAME_HEADER_BYTES`](limits::FRAME_HEADER_BYTES) bytes, then a body of canonical CBOR maps.
//! File descriptors travel as `SCM_RIGHTS` with the first byte of the frame that names their
//! number. The first frame each way is a [hello]; afterwards the client sends
//! [requests](request) and the daemon [replies](reply), matched by request id. The prose is in
//! `PROTOCOL.md`; one frozen byte vector per message is under `golden/v1`.
//!
//! This crate does no IO and holds no unsafe code.
//!
//! ```
//! use mrm_proto::{frame, request::{Open, Request}, ids::RequestId, name::ModelName};
//!
//! let open = Request::Open(Open::by_name(ModelName::new("bert/base")?));
//! let bytes = frame::encode(RequestId(7), 0, &open)?;
//! let header = frame::Header::decode(&bytes)?;
//! assert_eq!(header.request, RequestId(7));
//! assert_eq!(Request::decode(&header, &bytes[frame::Header::BYTES..])?, open);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod dtype;
pub mod error;
pub mod frame;
pub mod hello;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod name;
pub mod reply;
pub mod request;
pub mod table;
