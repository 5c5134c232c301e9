//! Staying awake for a moment after a request, in case the next one comes at once.
//!
//! Waking a thread that sleeps on another core costs more than all the rest of a hit. A loop that
//! goes on polling instead of sleeping answers without that; it takes a core for as long.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Keeps the loop of the decider's thread from sleeping. Cheap to clone, bound to its thread.
#[derive(Clone)]
pub(crate) struct Spin(Option<Rc<Inner>>);

struct Inner {
    time: Duration,
    until: Cell<Instant>,
    asked: Notify,
}

impl Spin {
    /// Stays awake for `spin_us` microseconds after each request; 0 means not at all. Must be
    /// called within the loop that is to stay awake.
    pub(crate) fn start(spin_us: u64) -> Self {
        if spin_us == 0 {
            return Self(None);
        }
        let inner = Rc::new(Inner {
            time: Duration::from_micros(spin_us),
            until: Cell::new(Instant::now()),
            asked: Notify::new(),
        });
        tokio::task::spawn_local(run(Rc::clone(&inner)));
        Self(Some(inner))
    }

    /// Requests were handled just now.
    pub(crate) fn handled(&self) {
        if let Some(inner) = &self.0 {
            inner.until.set(Instant::now() + inner.time);
            inner.asked.notify_one();
        }
    }
}

async fn run(inner: Rc<Inner>) {
    loop {
        inner.asked.notified().await;
        while Instant::now() < inner.until.get() {
            // The loop looks at sockets and timers before it comes back, and does not sleep.
            tokio::task::yield_now().await;
        }
    }
}
