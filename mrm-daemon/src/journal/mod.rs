//! The journal: what the decider was told, so that what it did can be repeated.
//!
//! The decider is a function of its configuration and its events. A [`Journal`] keeps both in
//! memory, in a few dozen bytes an event. When the decider finds one of its own rules broken, the
//! journal is [dumped](dump) before the daemon aborts; an operator can have it at any time (`mrm
//! events --export`). [`replay`] runs it through a fresh decider, which stops at the same event
//! for the same reason.
//!
//! **What is guaranteed.** As long as nothing was dropped, a journal begins with the start of the
//! daemon, and a replay takes the very same decisions: it compares each grant and each load with
//! what was noted. Once the journal has outgrown its bound (`journal.bytes_max`), its oldest
//! sixteenth is dropped, and again after each sixteenth. What is left still tells what happened,
//! and is all that a simulation of policies needs ([`opens`]); but the decider's state at its
//! first event is not in it, so a replay is refused: an approximation would find rules broken that
//! were not.
//!
//! ```
//! use mrm_core::{Core, event::Event, id::{Bytes, SessionId, Tenant, Time}};
//! use mrm_daemon::journal::{Header, Journal, replay::{Options, replay}};
//!
//! let config = || mrm_core::Config::with_limit(Bytes(1 << 30));
//! let mut journal = Journal::new(Header::of(7, &config()), 1 << 20);
//! let mut core = Core::new(config());
//! let mut effects = Vec::new();
//! let opened = || Event::SessionOpened { session: SessionId(1), tenant: Tenant(1000) };
//! for (now, event) in [(Time(10), opened()), (Time(20), opened())] {
//!     journal.event(now, &event);
//!     if let Err(violation) = core.handle(now, event, &mut effects) {
//!         journal.violated(&violation);
//!     }
//! }
//! let file = journal.export()?.concat();
//! let report = replay(&file, &Options::default(), |_| {})?;
//! let stop = report.violation.expect("no session opens twice");
//! assert_eq!((stop.index, stop.now_us), (1, 20));
//! assert_eq!(Some(stop.violation), report.recorded_violation);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codec;
pub mod dump;
pub mod file;
mod header;
pub mod opens;
mod record;
pub mod replay;
mod ring;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use codec::memories;

pub use header::{CoreFacts, DeviceFacts, Header, UnknownPolicy};
pub use ring::{Broken, Journal};
