//! The journal of a running `mrmd`: what was opened, how large it was, and what its loads took.

use super::{Asked, Builder, Recorded, Trace, TraceOptions};
use crate::catalogue::{BadInput, Catalogue, Model};
use mrm_core::id::Time;
use mrm_daemon::journal::file::Reader;
use mrm_daemon::journal::opens::{Granted, OpenFact, opens};
use std::collections::BTreeMap;
use std::path::Path;

/// For how long a request holds its model where nothing is known about that.
const HELD_US: u64 = 1_000_000;
/// What is taken for true of loads where the journal has none, in bytes a microsecond.
const BYTES_PER_US: f64 = 1000.0;

/// What is known of one model.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    bytes: u64,
    load_us: Option<u64>,
}

pub(super) fn read(file: &Path, bytes: &[u8]) -> Result<Trace, BadInput> {
    let damaged = |damage: mrm_daemon::journal::file::Damage| {
        BadInput::whole(file, format!("the journal is damaged {damage}"))
    };
    let reader = Reader::new(bytes).map_err(damaged)?;
    let core = reader.header().core.clone();
    let facts = opens(bytes).map_err(damaged)?;
    let mut fold = Fold::default();
    for fact in &facts {
        fold.take(fact)
            .map_err(|what| BadInput::whole(file, what))?;
    }
    if fold.builder.trace.requests.is_empty() {
        return Err(BadInput::whole(
            file,
            "nothing was opened in this journal yet",
        ));
    }
    let models = fold.models().map_err(|what| BadInput::whole(file, what))?;
    let mut trace = fold.builder.trace;
    if fold.unknown > 0 {
        trace.notes.push(format!(
            "{} opens left out: they were refused, failed or still wait, so that nobody knows their size",
            fold.unknown
        ));
    }
    trace.notes.push(format!(
        "a journal does not tell how long leases lasted: {} s is taken for each",
        HELD_US / 1_000_000
    ));
    trace.recorded = Some(Recorded {
        models,
        budget_bytes: core.limit_bytes,
        policy: core.policy,
    });
    Ok(trace)
}

struct Fold {
    builder: Builder,
    seen: BTreeMap<u32, Seen>,
    began: Option<Time>,
    unknown: u64,
    /// Bytes and microseconds of all loads that are known.
    loaded: (f64, f64),
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            builder: Builder::new(&TraceOptions::default()),
            seen: BTreeMap::new(),
            began: None,
            unknown: 0,
            loaded: (0.0, 0.0),
        }
    }
}

impl Fold {
    fn take(&mut self, fact: &OpenFact) -> Result<(), String> {
        let known = fact.granted.as_ref();
        let known = known.and_then(|granted| Some((granted, granted.bytes?.0)));
        let Some((granted, bytes)) = known.filter(|(_, bytes)| *bytes > 0) else {
            self.unknown += 1;
            return Ok(());
        };
        let name = self.builder.name(&name_of(fact, granted))?;
        let seen = self.seen.entry(name).or_default();
        // The last is the nearest to what would be loaded now.
        seen.bytes = bytes;
        if let Some(load_us) = granted.load_us {
            seen.load_us = Some(load_us);
            self.loaded.0 += bytes as f64;
            self.loaded.1 += load_us as f64;
        }
        // Of the days before the daemon started nothing is told.
        let began = *self.began.get_or_insert(fact.at);
        self.builder.push(Asked {
            at: Time(fact.at.us_since(began)),
            name,
            exec_us: None,
        })
    }

    /// What was opened, as a catalogue. A load that is not known takes as long, by its bytes, as
    /// the others did.
    fn models(&mut self) -> Result<Catalogue, String> {
        let mut models = Catalogue::default();
        let (bytes, us) = self.loaded;
        let us_per_byte = if bytes > 0.0 {
            us / bytes
        } else {
            1.0 / BYTES_PER_US
        };
        let mut guessed = 0u64;
        for (name, seen) in &self.seen {
            guessed += u64::from(seen.load_us.is_none());
            let guess = || (seen.bytes as f64 * us_per_byte).round() as u64;
            models.add(Model {
                name: self.builder.trace.names[*name as usize].clone(),
                bytes: seen.bytes,
                load_us: seen.load_us.unwrap_or_else(guess),
                exec_us: HELD_US,
            })?;
        }
        if guessed > 0 {
            self.builder.trace.notes.push(format!(
                "the loads of {guessed} models fell out of the journal: as long by their bytes as the others' is taken"
            ));
        }
        Ok(models)
    }
}

fn name_of(fact: &OpenFact, granted: &Granted) -> String {
    let unnamed = || format!("model {}", fact.model.0);
    granted.name.as_deref().map_or_else(unnamed, str::to_owned)
}
