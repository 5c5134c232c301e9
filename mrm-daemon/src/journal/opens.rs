//! The opens of a journal: what a simulation of other policies or sizes needs of a day.
//!
//! ```
//! use mrm_core::{Config, id::Bytes};
//! use mrm_daemon::journal::{Header, Journal, opens::opens};
//! let header = Header::of(1, &Config::with_limit(Bytes(1 << 30)));
//! let file = Journal::new(header, 1 << 20).export()?.concat();
//! assert!(opens(&file)?.is_empty(), "nothing was opened yet");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::file::{Damage, Reader};
use super::record::Record;
use mrm_core::effect::Origin;
use mrm_core::event::{Event, Wanted};
use mrm_core::id::{Bytes, ModelId, OpId, RequestId, SessionId, Time, VersionId};
use mrm_core::ledger::Tier;
use std::collections::HashMap;
use std::sync::Arc;

/// One open, whether it was granted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFact {
    /// When, since the start of the daemon;
    /// [`began_unix_us`](super::Header::began_unix_us) says when that was.
    pub at: Time,
    /// Who.
    pub session: SessionId,
    /// What.
    pub model: ModelId,
    /// Where it was wanted.
    pub wanted: Wanted,
    /// What came of it; `None` if it was refused, failed, or still waits.
    pub granted: Option<Granted>,
}

/// An open that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// When.
    pub at: Time,
    /// What it took.
    pub origin: Origin,
    /// Where it is.
    pub tier: Tier,
    /// What the model stood for.
    pub version: VersionId,
    /// The model's name, if the journal has it.
    pub name: Option<Arc<str>>,
    /// What the copy is charged, if the journal has it.
    pub bytes: Option<Bytes>,
    /// How long its last load on that tier took, from the first read to the last, if the journal
    /// has it: for a hit, what it would have cost. Microseconds.
    pub load_us: Option<u64>,
}

/// Every open of a journal, in their order. Those before what is left of it are not there.
///
/// # Errors
/// Where the file is damaged. One that was cut off tells what it has.
pub fn opens(file: &[u8]) -> Result<Vec<OpenFact>, Damage> {
    let mut reader = Reader::new(file)?;
    let mut fold = Fold::default();
    while let Some(record) = reader.next_record()? {
        fold.take(record);
    }
    Ok(fold.opens)
}

#[derive(Default)]
struct Fold {
    now: Option<Time>,
    opens: Vec<OpenFact>,
    waiting: HashMap<(SessionId, RequestId), usize>,
    known: HashMap<VersionId, (Option<Arc<str>>, Bytes, Bytes)>,
    loading: HashMap<OpId, (VersionId, Tier)>,
    loads: HashMap<(VersionId, Tier), Span>,
}

/// Loads of one copy that overlap.
struct Span {
    began: Time,
    in_flight: usize,
    took_us: Option<u64>,
}

impl Fold {
    fn take(&mut self, record: Record) {
        match record {
            Record::Chunk { now, .. } => self.now = Some(now),
            Record::Event { now, event } => {
                self.now = Some(now);
                self.event(now, event);
            }
            Record::Known {
                version,
                name,
                host,
                device,
                ..
            } => {
                let name = name.map(Arc::from);
                self.known.insert(version, (name, host, device));
            }
            Record::LoadStarted {
                op, version, tier, ..
            } => self.started(op, version, tier),
            Record::Opened {
                session,
                request,
                origin,
                tier,
                version,
            } => self.granted((session, request), origin, tier, version),
            Record::Violated { .. } | Record::End { .. } => {}
        }
    }

    fn event(&mut self, now: Time, event: Event) {
        match event {
            Event::Open {
                session,
                request,
                model,
                wanted,
                ..
            } => {
                self.waiting.insert((session, request), self.opens.len());
                self.opens.push(OpenFact {
                    at: now,
                    session,
                    model,
                    wanted,
                    granted: None,
                });
            }
            Event::Loaded { op, outcome } => {
                let span = self
                    .loading
                    .remove(&op)
                    .and_then(|copy| self.loads.get_mut(&copy));
                if let Some(span) = span {
                    span.in_flight = span.in_flight.saturating_sub(1);
                    if outcome.is_ok() {
                        span.took_us = Some(now.us_since(span.began));
                    }
                }
            }
            Event::SessionOpened { .. }
            | Event::SessionClosed { .. }
            | Event::Close { .. }
            | Event::Cancel { .. }
            | Event::Evict { .. }
            | Event::Configure { .. }
            | Event::ModelChanged { .. }
            | Event::SetLimit { .. }
            | Event::SetPolicy { .. }
            | Event::Took { .. }
            | Event::SetPrefetch(_)
            | Event::Hint { .. }
            | Event::Laid { .. }
            | Event::Unlaid { .. }
            | Event::Recall { .. }
            | Event::RecallAll(_)
            | Event::Adopt(_)
            | Event::Resume { .. }
            | Event::DeviceLost { .. }
            | Event::Damaged { .. }
            | Event::Identified { .. }
            | Event::Drain
            | Event::Resolved { .. }
            | Event::Freed { .. }
            | Event::Tick => {}
        }
    }

    fn started(&mut self, op: OpId, version: VersionId, tier: Tier) {
        self.loading.insert(op, (version, tier));
        let now = self.now.unwrap_or(Time(0));
        let span = self.loads.entry((version, tier)).or_insert(Span {
            began: now,
            in_flight: 0,
            took_us: None,
        });
        if span.in_flight == 0 {
            span.began = now;
        }
        span.in_flight += 1;
    }

    fn granted(
        &mut self,
        who: (SessionId, RequestId),
        origin: Origin,
        tier: Tier,
        version: VersionId,
    ) {
        // An open from before what is left of the journal may be granted in it.
        let Some(open) = self
            .waiting
            .remove(&who)
            .and_then(|at| self.opens.get_mut(at))
        else {
            return;
        };
        let known = self.known.get(&version);
        let load = self.loads.get(&(version, tier));
        open.granted = Some(Granted {
            at: self.now.unwrap_or(open.at),
            origin,
            tier,
            version,
            name: known.and_then(|(name, ..)| name.clone()),
            bytes: known.map(|(_, host, device)| match tier {
                Tier::Host => *host,
                Tier::Device(_) => *device,
            }),
            load_us: load.and_then(|span| span.took_us),
        });
    }
}
