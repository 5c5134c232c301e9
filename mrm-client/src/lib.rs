//! Client library of `mrmd`: opens models and lends their tensors, read-only and without a copy.
//!
//! ```no_run
//! use mrm_client::Client;
//!
//! let client = Client::connect()?;
//! let model = client.open("sentence/minilm")?;
//! let bias: &[f32] = model.tensor("pooler.dense.bias")?.as_slice()?;
//! println!("{} values, the first is {}", bias.len(), bias[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * Calls block, for a bounded time. The library starts no runtime; an async client is behind the
//!   feature `async`. A client that has models open has one thread, which sleeps until the session
//!   ends; [`ConnectOptions::reconnect`] turns it off.
//! * A [`Client`] is shared by cloning it. Requests of several threads are pipelined on one
//!   connection.
//! * While a [`Model`] of a name lives, opening that name again returns the same memory without
//!   asking the daemon.
//! * What is mapped stays readable, and stays the same, whatever happens to the daemon or the
//!   file. When the daemon dies or is replaced, the client connects anew, and a daemon that took
//!   over what the last one had goes on with the leases ([`Model::is_leased`]). An open that was
//!   pending, or comes while no daemon listens, is asked again until its wait is over.
//! * `fork`: a child may use models that it inherited, and clients, which then connect anew. It
//!   never touches its parent's connection. (Until it first uses the client it does hold a copy
//!   of that connection, as it holds the inherited mappings.) What is on a device a child cannot
//!   use, for CUDA does not survive `fork`.
//! * Weights may be opened in the memory of a device: see [`device`].

#[cfg(feature = "async")]
pub mod asynchronous;
mod client;
mod connection;
mod content;
mod desk;
pub mod device;
pub mod error;
mod files;
mod filling;
mod fork;
mod gather;
mod giving;
mod handshake;
mod inbox;
mod lease;
mod link;
pub mod locate;
mod many;
mod mapping;
pub mod model;
pub mod open;
mod outbox;
mod pace;
pub mod ready;
mod request;
mod retry;
mod roll;
mod state;
mod tables;
pub mod tensor;
mod touches;
#[cfg_attr(not(feature = "cuda"), path = "vram_absent.rs")]
mod vram;
mod watch;

pub use client::{Client, ConnectOptions};
pub use device::{CloseError, DeviceError, DeviceWeights, Devices, Tier};
pub use error::{
    ConnectError, Fault, LocalCode, OpenError, Refusal, RequestError, SegmentError, SessionError,
    TensorError,
};
pub use mapping::CopyOnWrite;
pub use model::{Model, NotClosed, Segment};
pub use mrm_proto::dtype::DType;
pub use mrm_proto::hello::ServerHello;
pub use mrm_proto::ids::{DeviceUuid, VersionId};
pub use mrm_proto::reply::{DeviceState, ModelRow, ModelState, Origin, Progress, Stated};
pub use mrm_proto::request::WaitFor;
pub use mrm_proto::table::ModelKind;
pub use open::OpenOptions;
pub use tensor::{Element, Tensor, TensorLayout, Tensors};
