//! The journal in memory: chunks of frames, of which the oldest goes when there are too many.

use super::codec::{Written, beginning_of};
use super::file;
use super::header::Header;
use super::record::{Record, noted, put_event_record, put_frame, put_record};
use bytes::Bytes;
use mrm_core::effect::Effect;
use mrm_core::event::{Event, Part, Resolution};
use mrm_core::id::{self, ModelId, OpId, Time, VersionId};
use std::collections::{BTreeMap, VecDeque};

/// In how many chunks the journal is kept.
const CHUNKS: usize = 16;
/// Longest name that is kept; models have no longer ones.
const NAME_BYTES_MAX: usize = 1024;

/// What the decider was told, and what came of it, as far back as there is room.
#[derive(Debug)]
pub struct Journal {
    header: Header,
    chunk_bytes_max: usize,
    full: VecDeque<Bytes>,
    chunk: Vec<u8>,
    /// Frames in `chunk`.
    frames: u32,
    /// Number of the next event.
    index: u64,
    now: Time,
    /// What is being resolved.
    resolving: BTreeMap<OpId, (ModelId, Option<String>)>,
    known: BTreeMap<VersionId, Known>,
    /// Why it cannot be written any more.
    broken: Option<String>,
}

/// What is told of a version again in each chunk.
#[derive(Debug, Clone)]
struct Known {
    model: Option<ModelId>,
    name: Option<String>,
    host: id::Bytes,
    device: id::Bytes,
}

/// Why there is no journal to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal could not be kept: {0}")]
pub struct Broken(String);

impl Journal {
    /// An empty journal whose chunks take `bytes_max` of memory at most, but for the frame that
    /// fills one. An export copies the last of its sixteen chunks.
    #[must_use]
    pub fn new(header: Header, bytes_max: usize) -> Self {
        let mut journal = Self {
            header,
            chunk_bytes_max: bytes_max / CHUNKS,
            full: VecDeque::new(),
            chunk: Vec::new(),
            frames: 0,
            index: 0,
            now: Time(0),
            resolving: BTreeMap::new(),
            known: BTreeMap::new(),
            broken: None,
        };
        journal.begin_chunk();
        journal
    }

    /// Notes an event. To be called before the decider is told: what breaks a rule must be in it.
    pub fn event(&mut self, now: Time, event: &Event) {
        if self.chunk.len() >= self.chunk_bytes_max {
            self.end_chunk();
        }
        let after_us = now.us_since(self.now);
        let place = self.next_place();
        let written = put_frame(&mut self.chunk, place, |out| {
            put_event_record(out, after_us, event)
        });
        self.note(written);
        // What a reader will add up to.
        self.now = Time(self.now.0.saturating_add(after_us));
        self.index += 1;
        match event {
            Event::Resolved { op, outcome } => {
                if let (Some((model, name)), Ok(found)) = (self.resolving.remove(op), outcome) {
                    self.learn(found, Some(model), name);
                }
            }
            Event::Adopt(adoption) => self.learn(&adoption.resolution, adoption.model, None),
            Event::SessionOpened { .. }
            | Event::SessionClosed { .. }
            | Event::Open { .. }
            | Event::Close { .. }
            | Event::Cancel { .. }
            | Event::Evict { .. }
            | Event::Configure { .. }
            | Event::ModelChanged { .. }
            | Event::SetLimit { .. }
            | Event::Resume { .. }
            | Event::DeviceLost { .. }
            | Event::Damaged { .. }
            | Event::Identified { .. }
            | Event::Drain
            | Event::SetPolicy { .. }
            | Event::Took { .. }
            | Event::SetPrefetch(_)
            | Event::Hint { .. }
            | Event::Laid { .. }
            | Event::Unlaid { .. }
            | Event::Recall { .. }
            | Event::RecallAll(_)
            | Event::Loaded { .. }
            | Event::Freed { .. }
            | Event::Tick => {}
        }
    }

    /// Notes what the decider made of it: opens that were granted, loads that were started, and
    /// the names of what is resolved. A replay compares the first two, the last is for people and
    /// simulators.
    pub fn effects(&mut self, effects: &[Effect], name: impl Fn(ModelId) -> Option<String>) {
        for effect in effects {
            if let Some(record) = noted(effect) {
                self.record(&record);
            }
            match effect {
                Effect::Resolve { op, model } => {
                    let name = name(*model);
                    let name = name.map(|name| beginning_of(&name, NAME_BYTES_MAX).to_owned());
                    self.resolving.insert(*op, (*model, name));
                }
                Effect::Forget { version } => drop(self.known.remove(version)),
                Effect::Load { .. }
                | Effect::Free { .. }
                | Effect::Adopted { .. }
                | Effect::Reply { .. }
                | Effect::Revoke { .. } => {}
            }
        }
    }

    /// Notes which rule the last event broke.
    pub fn violated(&mut self, violation: &mrm_core::violation::Violation) {
        self.record(&Record::Violated {
            violation: violation.to_string(),
        });
    }

    /// The whole journal, in pieces that make up a [`file`](mod@super::file).
    ///
    /// # Errors
    /// When it could not be kept.
    pub fn export(&self) -> Result<Vec<Bytes>, Broken> {
        if let Some(cause) = &self.broken {
            return Err(Broken(cause.clone()));
        }
        let mut end = Vec::new();
        let record = Record::End { index: self.index };
        let written = put_frame(&mut end, self.frames, |out| {
            put_record(out, &record, self.now)
        });
        written.map_err(|error| Broken(error.to_string()))?;
        let beginning = file::beginning(&self.header).map_err(Broken)?;
        let mut pieces = vec![Bytes::from(beginning)];
        pieces.extend(self.full.iter().cloned());
        pieces.push(Bytes::copy_from_slice(&self.chunk));
        pieces.push(Bytes::from(end));
        Ok(pieces)
    }

    /// How many events were noted since the start.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.index
    }

    /// Whether nothing was noted yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.index == 0
    }

    fn learn(&mut self, found: &Resolution, model: Option<ModelId>, name: Option<String>) {
        let sum = |of: fn(Part) -> bool| {
            let facts = found.segments.iter().filter(|fact| of(fact.part));
            facts.map(|fact| fact.charge).sum()
        };
        let known = Known {
            model,
            name,
            host: sum(|part| part != Part::Image),
            device: sum(|part| part == Part::Image),
        };
        self.record(&known.record(found.version));
        self.known.insert(found.version, known);
    }

    fn record(&mut self, record: &Record) {
        let (place, now) = (self.next_place(), self.now);
        let written = put_frame(&mut self.chunk, place, |out| put_record(out, record, now));
        self.note(written);
    }

    fn begin_chunk(&mut self) {
        self.frames = 0;
        self.record(&Record::Chunk {
            index: self.index,
            now: self.now,
        });
    }

    fn end_chunk(&mut self) {
        // The frame that fills it goes beyond; growing for that would double what it takes.
        let next = Vec::with_capacity(self.chunk_bytes_max + self.chunk_bytes_max / 16);
        let mut full = std::mem::replace(&mut self.chunk, next);
        full.shrink_to_fit();
        self.full.push_back(Bytes::from(full));
        if self.full.len() >= CHUNKS {
            self.full.pop_front();
        }
        self.begin_chunk();
        // Half a chunk of them at most, so that events have the other half.
        let known = std::mem::take(&mut self.known);
        for (version, known) in &known {
            if self.chunk.len() >= self.chunk_bytes_max / 2 {
                break;
            }
            self.record(&known.record(*version));
        }
        self.known = known;
    }

    const fn next_place(&mut self) -> u32 {
        let place = self.frames;
        self.frames = self.frames.wrapping_add(1);
        place
    }

    fn note(&mut self, written: Written) {
        // Writing to memory does not fail; if it did, a journal with a hole would only mislead.
        if let Err(error) = written {
            self.broken.get_or_insert_with(|| error.to_string());
        }
    }
}

impl Known {
    fn record(&self, version: VersionId) -> Record {
        Record::Known {
            version,
            model: self.model,
            name: self.name.clone(),
            host: self.host,
            device: self.device,
        }
    }
}
