//! What the status server asks the decider, and the pipe between their threads.
//!
//! One variant per question, each with the [`ReplyTo`] of its own answer, so that the decider's
//! `match` cannot answer with the wrong type. Peers without permission never get this far.
//!
//! ```
//! use mrm_daemon::status::{query::{self, Query}, view::DaemonState};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! let (handle, mut inbox) = query::channel();
//! let decider = async {
//!     while let Some(query) = inbox.recv().await {
//!         match query {
//!             Query::State { reply } => reply.send(Ok(DaemonState::Serving)),
//!             other => drop(other), // unanswered: the asker gets an error at once
//!         }
//!     }
//! };
//! let asker = async move { handle.ask(5_000, |reply| Query::State { reply }).await };
//! let (_, answer) = tokio::join!(decider, asker);
//! assert_eq!(answer, Ok(DaemonState::Serving));
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

use super::place::{Place, WarmOn};
use super::view::{
    DaemonState, Drained, EventsView, Evicted, Hinted, ModelDetailView, ModelsView, Pinned,
    PoliciesView, SessionsView, StatusView, Verified, Warmed,
};
use bytes::Bytes;
use mrm_core::policy::Choice;
use mrm_proto::error::ErrorReply;
use mrm_proto::name::ModelName;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Most questions that may lie in the pipe.
pub const QUERIES_MAX: usize = 64;

/// Everything that the status server asks. Reads first; verbs, which need permission, after.
#[derive(Debug)]
pub enum Query {
    /// The phase only: for the health probes.
    State {
        /// Where the answer goes.
        reply: ReplyTo<DaemonState>,
    },
    /// The whole picture.
    Status {
        /// Where the answer goes.
        reply: ReplyTo<StatusView>,
    },
    /// One page of models, in the order of their names.
    Models {
        /// Only names that begin with this.
        prefix: String,
        /// Only names after this one.
        after: Option<String>,
        /// At most so many rows; at least 1.
        limit: usize,
        /// Where the answer goes.
        reply: ReplyTo<ModelsView>,
    },
    /// One model.
    Model {
        /// Which.
        name: ModelName,
        /// Where the answer goes.
        reply: ReplyTo<ModelDetailView>,
    },
    /// All sessions.
    Sessions {
        /// Where the answer goes.
        reply: ReplyTo<SessionsView>,
    },
    /// Events from a number on: [`EventLog::since`](super::events::EventLog::since).
    Events {
        /// The first number wanted.
        since: u64,
        /// At most so many; at least 1.
        limit: usize,
        /// Where the answer goes.
        reply: ReplyTo<EventsView>,
    },
    /// The journal, in pieces that make up one file. Needs permission: it tells who opened what.
    Journal {
        /// Where the answer goes.
        reply: ReplyTo<Vec<Bytes>>,
    },
    /// The policies of all tiers.
    Policies {
        /// Where the answer goes.
        reply: ReplyTo<PoliciesView>,
    },
    /// Another policy. Needs permission.
    SetPolicy {
        /// For which tier; `None`: for all.
        on: Option<Place>,
        /// Which; `None`: the configured one.
        to: Option<Choice>,
        /// Where the answer goes.
        reply: ReplyTo<PoliciesView>,
    },
    /// A model will be opened soon.
    Hint {
        /// Which.
        name: ModelName,
        /// When.
        in_ms: u64,
        /// Where the answer goes.
        reply: ReplyTo<Hinted>,
    },
    /// Pin or unpin a model.
    Pin {
        /// Which.
        name: ModelName,
        /// Whether it shall be pinned.
        on: bool,
        /// Where the answer goes.
        reply: ReplyTo<Pinned>,
    },
    /// Load a model. Answered when it is resident, or with `timed_out` after `wait_ms`.
    Warm {
        /// Which.
        name: ModelName,
        /// Where.
        on: WarmOn,
        /// How long the answer may take.
        wait_ms: u64,
        /// Where the answer goes.
        reply: ReplyTo<Warmed>,
    },
    /// Drop a model from memory. Answered when the memory is free.
    Evict {
        /// Which.
        name: ModelName,
        /// From where; `None`: from everywhere.
        from: Option<Place>,
        /// Where the answer goes.
        reply: ReplyTo<Evicted>,
    },
    /// Compare what is in memory with what was loaded. Answered when all of it was read.
    Verify {
        /// Of which model; `None`: everything.
        name: Option<ModelName>,
        /// Where the answer goes.
        reply: ReplyTo<Verified>,
    },
    /// Take no new leases, and exit when the last is given back.
    Drain {
        /// Where the answer goes.
        reply: ReplyTo<Drained>,
    },
}

impl Query {
    /// Whether whoever asked is gone, so that nobody wants the answer any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::State { reply } => reply.is_abandoned(),
            Self::Status { reply } => reply.is_abandoned(),
            Self::Models { reply, .. } => reply.is_abandoned(),
            Self::Model { reply, .. } => reply.is_abandoned(),
            Self::Sessions { reply } => reply.is_abandoned(),
            Self::Events { reply, .. } => reply.is_abandoned(),
            Self::Journal { reply } => reply.is_abandoned(),
            Self::Policies { reply } => reply.is_abandoned(),
            Self::SetPolicy { reply, .. } => reply.is_abandoned(),
            Self::Hint { reply, .. } => reply.is_abandoned(),
            Self::Pin { reply, .. } => reply.is_abandoned(),
            Self::Warm { reply, .. } => reply.is_abandoned(),
            Self::Evict { reply, .. } => reply.is_abandoned(),
            Self::Verify { reply, .. } => reply.is_abandoned(),
            Self::Drain { reply } => reply.is_abandoned(),
        }
    }
}

/// Where one answer goes. Dropping it unused tells the asker that there will be none.
#[derive(Debug)]
pub struct ReplyTo<T>(oneshot::Sender<Result<T, ErrorReply>>);

impl<T> ReplyTo<T> {
    /// Answers. Never blocks; an asker who is gone is no error.
    pub fn send(self, answer: Result<T, ErrorReply>) {
        drop(self.0.send(answer));
    }

    /// Whether the asker is gone.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The decider answered: no.
    #[error("{}", .0.message)]
    Refused(ErrorReply),
    /// The pipe stayed full: the question was not asked.
    #[error("the daemon is too busy: {QUERIES_MAX} status requests wait already; try again")]
    Busy,
    /// Asked, and not answered in time.
    #[error("the daemon did not answer within {waited_ms} ms; try again")]
    NoAnswer {
        /// How long the server waited.
        waited_ms: u64,
    },
    /// The decider has ended or dropped the question.
    #[error("the daemon is stopping; ask its successor")]
    Gone,
}

/// The server's end: asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatusHandle {
    queries: mpsc::Sender<Query>,
    last_seq: watch::Sender<u64>,
}

/// The decider's end: is asked.
#[derive(Debug)]
pub struct StatusInbox {
    queries: mpsc::Receiver<Query>,
    last_seq: watch::Sender<u64>,
}

/// A pipe.
#[must_use]
pub fn channel() -> (StatusHandle, StatusInbox) {
    let (tx, rx) = mpsc::channel(QUERIES_MAX);
    let last_seq = watch::Sender::new(0);
    let handle = StatusHandle {
        queries: tx,
        last_seq: last_seq.clone(),
    };
    (
        handle,
        StatusInbox {
            queries: rx,
            last_seq,
        },
    )
}

impl StatusHandle {
    /// Asks, and waits for the answer, at most `timeout_ms` in all.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask<T>(
        &self,
        timeout_ms: u64,
        query: impl FnOnce(ReplyTo<T>) -> Query,
    ) -> Result<T, AskError> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout_ms);
        let slot = match tokio::time::timeout_at(deadline, self.queries.reserve()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(AskError::Gone),
            Err(_) => return Err(AskError::Busy),
        };
        let (tx, rx) = oneshot::channel();
        slot.send(query(ReplyTo(tx)));
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(Ok(answer)) => answer.map_err(AskError::Refused),
            Ok(Err(_)) => Err(AskError::Gone),
            Err(_) => Err(AskError::NoAnswer {
                waited_ms: timeout_ms,
            }),
        }
    }

    /// To be told of events from now on. Subscribe before asking for the events so far.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last_seq.subscribe()
    }
}

impl StatusInbox {
    /// The next question whose asker still waits; `None` once the server is gone.
    /// Cancel-safe.
    pub async fn recv(&mut self) -> Option<Query> {
        loop {
            match self.queries.recv().await {
                Some(query) if query.is_abandoned() => {}
                other => return other,
            }
        }
    }

    /// The sender behind [`announce`](Self::announce), for whoever pushes to the log.
    #[must_use]
    pub fn announcer(&self) -> watch::Sender<u64> {
        self.last_seq.clone()
    }

    /// Wakes whoever follows the events. To be called after pushing to the log; costs next to
    /// nothing while nobody follows.
    pub fn announce(&self, last_seq: u64) {
        if self.last_seq.receiver_count() > 0 {
            self.last_seq.send_replace(last_seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_dropped_question_is_an_error_at_once() {
        block_on(async {
            let (handle, mut inbox) = channel();
            let decider = async { drop(inbox.recv().await) };
            let ask = handle.ask(3_600_000, |reply| Query::State { reply });
            let ((), answer) = tokio::join!(decider, ask);
            assert_eq!(answer, Err(AskError::Gone));
        });
    }

    #[test]
    fn a_silent_decider_is_a_timeout_and_its_question_is_skipped_later() {
        block_on(async {
            let (handle, mut inbox) = channel();
            let answer = handle.ask(1, |reply| Query::Drain { reply }).await;
            assert_eq!(answer, Err(AskError::NoAnswer { waited_ms: 1 }));
            drop(handle);
            assert!(
                inbox.recv().await.is_none(),
                "a stale drain must not be carried out"
            );
        });
    }

    #[test]
    fn a_full_pipe_is_busy_and_bounded() {
        block_on(async {
            let (handle, _inbox) = channel();
            let mut kept = Vec::new();
            for _ in 0..QUERIES_MAX {
                let (tx, rx) = oneshot::channel();
                handle
                    .queries
                    .try_send(Query::State { reply: ReplyTo(tx) })
                    .unwrap();
                kept.push(rx);
            }
            let answer = handle.ask(1, |reply| Query::State { reply }).await;
            assert_eq!(answer, Err(AskError::Busy));
        });
    }

    #[test]
    fn a_subscriber_hears_of_what_comes_after() {
        block_on(async {
            let (handle, inbox) = channel();
            inbox.announce(1);
            let mut news = handle.subscribe();
            assert!(!news.has_changed().unwrap());
            inbox.announce(2);
            news.changed().await.unwrap();
            assert_eq!(*news.borrow(), 2);
        });
    }
}
