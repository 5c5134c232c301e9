//! The last few thousand things that happened, for the operator.
//!
//! The decider owns the [`EventLog`] and pushes; the status server reads pages of it.
//!
//! ```
//! use mrm_daemon::status::events::{Event, EventKind, EventLog};
//! let mut log = EventLog::default();
//! log.push(1_700_000_000_000, Event::of(EventKind::LoadDone).bytes(4096).detail("2 ms"));
//! let page = log.since(0, 10);
//! assert_eq!((page.events.len(), page.next, page.dropped), (1, 2, 0));
//! ```

use super::view::{EventView, EventsView, WhyView};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many events are kept.
pub const EVENTS_MAX: usize = 4096;
/// Longest text of an event; what is longer is cut.
pub const DETAIL_BYTES_MAX: usize = 512;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A client connected.
    SessionOpened,
    /// A client's connection ended.
    SessionClosed,
    /// An open found everything resident.
    OpenHit,
    /// An open was granted after a load that it started.
    OpenLoaded,
    /// An open was granted after a load that another started.
    OpenJoined,
    /// An open was granted after weights were copied to a device from memory.
    OpenPromoted,
    /// An open was refused or failed.
    OpenRefused,
    /// A lease was given back.
    Close,
    /// A segment is being loaded.
    LoadStarted,
    /// A segment is resident.
    LoadDone,
    /// A segment could not be loaded.
    LoadFailed,
    /// A segment was dropped from memory.
    Evicted,
    /// A model's copy on a device was dropped.
    DeviceEvicted,
    /// A model is being loaded before it is asked for.
    PrefetchStarted,
    /// What was loaded before it was asked for is used.
    PrefetchUsed,
    /// What was loaded before it was asked for was dropped without having been used.
    PrefetchWasted,
    /// The operator, or a new configuration, gave a tier another policy.
    PolicyChanged,
    /// Memory of the last daemon was taken over.
    TakenOver,
    /// A device failed: it has no models any more.
    DeviceLost,
    /// A lease was taken away with the device that it was on.
    LeaseRevoked,
    /// What is in memory turned out not to be what was loaded.
    Damaged,
    /// Host memory could not be registered for a device's copies.
    RegistrationFailed,
    /// The operator pinned a model.
    Pinned,
    /// The operator unpinned a model.
    Unpinned,
    /// No new leases from now on.
    Drain,
    /// The catalogue was read again.
    Reload,
    /// A degraded path was found.
    Degraded,
}

/// An event, before it has its number and time.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    kind: EventKind,
    model: Option<Arc<str>>,
    session: Option<u64>,
    bytes: Option<u64>,
    detail: Option<Box<str>>,
    why: Option<Box<WhyView>>,
}

impl Event {
    /// An event about nothing in particular.
    #[must_use]
    pub const fn of(kind: EventKind) -> Self {
        Self {
            kind,
            model: None,
            session: None,
            bytes: None,
            detail: None,
            why: None,
        }
    }

    /// About this model. Keep the name as an `Arc` to make this free of allocation.
    #[must_use]
    pub fn model(mut self, name: impl Into<Arc<str>>) -> Self {
        self.model = Some(name.into());
        self
    }

    /// About this session.
    #[must_use]
    pub const fn session(mut self, id: u64) -> Self {
        self.session = Some(id);
        self
    }

    /// About so much memory.
    #[must_use]
    pub const fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// With what a policy decided it by, and that in words.
    #[must_use]
    pub fn why(mut self, why: WhyView) -> Self {
        let words = why.to_string();
        self.why = Some(Box::new(why));
        self.detail(&words)
    }

    /// With a text for people, cut at [`DETAIL_BYTES_MAX`].
    #[must_use]
    pub fn detail(mut self, text: &str) -> Self {
        self.detail = Some(text[..text.floor_char_boundary_at(DETAIL_BYTES_MAX)].into());
        self
    }
}

/// The ring of events.
#[derive(Debug)]
pub struct EventLog {
    ring: VecDeque<(u64, Event)>,
    next_seq: u64,
}

impl Default for EventLog {
    /// An empty log, with its memory allocated.
    fn default() -> Self {
        Self {
            ring: VecDeque::with_capacity(EVENTS_MAX),
            next_seq: 1,
        }
    }
}

impl EventLog {
    /// Adds an event, over the oldest if the ring is full. Returns its number, to be
    /// [announced](super::query::StatusInbox::announce).
    pub fn push(&mut self, now_unix_ms: u64, event: Event) -> u64 {
        if self.ring.len() == EVENTS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back((now_unix_ms, event));
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Number of the newest event; 0 before the first.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// At most `limit` events from the number `since` on, oldest first. A `since` from the future
    /// (a restarted daemon counts anew) gives no events and the right `next`.
    #[must_use]
    pub fn since(&self, since: u64, limit: usize) -> EventsView {
        let oldest = self.next_seq - self.ring.len() as u64;
        let wanted = since.clamp(1, self.next_seq);
        let first = wanted.max(oldest);
        // `first - oldest` is at most the ring's length.
        let skipped = usize::try_from(first - oldest).unwrap_or(usize::MAX);
        let events: Vec<EventView> = (first..)
            .zip(self.ring.iter().skip(skipped).take(limit))
            .map(|(seq, (time_ms, event))| view(seq, *time_ms, event))
            .collect();
        EventsView {
            next: first + events.len() as u64,
            dropped: first - wanted,
            events,
        }
    }
}

fn view(seq: u64, time_ms: u64, event: &Event) -> EventView {
    EventView {
        seq,
        time_ms,
        kind: event.kind,
        model: event.model.as_deref().map(str::to_owned),
        session: event.session,
        bytes: event.bytes,
        detail: event.detail.as_deref().map(str::to_owned),
        why: event.why.as_deref().cloned(),
    }
}

/// Stands in for `str::floor_char_boundary`, which the oldest supported compiler lacks.
trait FloorBoundary {
    fn floor_char_boundary_at(&self, at: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_char_boundary_at(&self, at: usize) -> usize {
        (0..=at.min(self.len()))
            .rev()
            .find(|&end| self.is_char_boundary(end))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(n: u64) -> EventLog {
        let mut log = EventLog::default();
        for i in 0..n {
            assert_eq!(log.push(i, Event::of(EventKind::OpenHit).session(i)), i + 1);
        }
        log
    }

    #[test]
    fn an_empty_log_has_nothing_and_starts_at_one() {
        let log = log_of(0);
        assert_eq!(
            log.since(0, 9),
            EventsView {
                events: vec![],
                next: 1,
                dropped: 0
            }
        );
        assert_eq!(log.last_seq(), 0);
    }

    #[test]
    fn pages_join_without_gap_or_overlap() {
        let log = log_of(10);
        let (mut next, mut seen) = (0, Vec::new());
        loop {
            let page = log.since(next, 3);
            if page.events.is_empty() {
                break;
            }
            seen.extend(page.events.iter().map(|e| e.seq));
            next = page.next;
        }
        assert_eq!(seen, (1..=10).collect::<Vec<_>>());
        assert_eq!(next, 11);
    }

    #[test]
    fn what_was_overwritten_is_counted() {
        let max = EVENTS_MAX as u64;
        let log = log_of(max + 100);
        assert_eq!(log.ring.len(), EVENTS_MAX);
        let page = log.since(0, 1);
        assert_eq!(
            (page.events[0].seq, page.next, page.dropped),
            (101, 102, 100)
        );
        assert_eq!(log.since(51, 1).dropped, 50);
        assert_eq!(log.since(101, 1).dropped, 0);
    }

    #[test]
    fn a_number_from_the_future_gives_the_right_next() {
        for since in [12, u64::MAX] {
            let page = log_of(10).since(since, 5);
            assert_eq!(
                page,
                EventsView {
                    events: vec![],
                    next: 11,
                    dropped: 0
                }
            );
        }
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        let event = Event::of(EventKind::Degraded).detail(&"é".repeat(1000));
        assert_eq!(event.detail.unwrap().len(), DETAIL_BYTES_MAX);
        assert_eq!(
            Event::of(EventKind::Drain).detail("x").detail.as_deref(),
            Some("x")
        );
    }

    #[test]
    fn kinds_are_snake_case() {
        let text = serde_json::to_string(&[EventKind::SessionOpened, EventKind::LoadFailed]);
        assert_eq!(text.unwrap(), r#"["session_opened","load_failed"]"#);
    }
}
