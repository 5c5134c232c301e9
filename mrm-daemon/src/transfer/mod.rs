//! Blocking work: worker threads in lanes, and the loading of files into segments.
//!
//! The decider never blocks. What does (opening, reading, hashing, freeing) is [`run`](Lanes::run)
//! on the threads of a [`Lane`], and ends in exactly one [`Completion`], whatever happens: a
//! result, a panic, a full queue or a shutdown.
//!
//! ```
//! use mrm_daemon::transfer::{Completion, Lane, Lanes, LanesConfig, Lost};
//! use std::{sync::mpsc, time::{Duration, Instant}};
//!
//! let lanes = Lanes::start(LanesConfig { registered_threads: 1, ..LanesConfig::default() })?;
//! let (events, inbox) = mpsc::channel();
//! let completion = |events: &mpsc::Sender<_>| {
//!     let events = events.clone();
//!     Completion::new(move |outcome: Result<u32, Lost>| drop(events.send(outcome)))
//! };
//! lanes.run(Lane::Registered, completion(&events), || 42);
//! assert_eq!(inbox.recv()?, Ok(42));
//! lanes.run(Lane::Registered, completion(&events), || panic!("no such luck"));
//! assert!(matches!(inbox.recv()?, Err(Lost::Panicked { .. })));
//! let hung = lanes.shut_down(Instant::now() + Duration::from_secs(5));
//! assert!(hung.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What such work loads, it [`load`]s:
//!
//! ```
//! use mrm_daemon::{degraded::Degraded, source::{FileSource, Source}};
//! use mrm_daemon::transfer::{Order, load};
//! use std::{path::Path, sync::atomic::{AtomicBool, AtomicU64, Ordering}};
//!
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("weights"), b"weights")?;
//! let source = FileSource::registered(dir.path(), Path::new("weights"))?;
//! let identity = source.identity()?;
//! let (progress, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
//! let order = Order::new(&source, identity, &progress, &cancel);
//! let loaded = load(&order, &Degraded::new())?;
//! assert_eq!(loaded.digest, Some(*blake3::hash(b"weights").as_bytes()));
//! assert_eq!((loaded.segment.bytes(), progress.load(Ordering::Relaxed)), (7, 7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod completion;
mod direct;
mod error;
mod fill;
mod hash;
mod lanes;
mod load;
mod piece;
mod populate;
mod queue;
mod rank;
mod read;
mod ring;
mod stream;

pub use completion::{Completion, Lost};
pub use direct::ReadWay;
pub use error::LoadError;
pub(crate) use lanes::Threads;
pub use lanes::{Hung, Job, Lane, Lanes, LanesConfig, LanesError, Task, Ticket};
pub use load::{Loaded, Onlooker, Order, load, load_from};
pub(crate) use load::{ended, other_header, unchanged};
pub use rank::{Rank, Tenant, Turn, Turns, Urgency};
pub(crate) use read::read_ahead;
/// The size of the pieces that a file is read in, in bytes; the last may be shorter.
pub const PIECE_BYTES: u64 = read::CHUNK_BYTES as u64;

pub(crate) use read::{Buffered, Reader};
