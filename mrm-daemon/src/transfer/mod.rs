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
//! lanes.run(Lane::Registered, completion(&events), || panic!("no such luck"));
//! assert_eq!(inbox.recv()?, Ok(42));
//! assert!(matches!(inbox.recv()?, Err(Lost::Panicked { .. })));
//! let hung = lanes.shut_down(Instant::now() + Duration::from_secs(5));
//! assert!(hung.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod completion;
mod lanes;
mod queue;

pub use completion::{Completion, Lost};
pub use lanes::{Hung, Job, Lane, Lanes, LanesConfig, LanesError};
