//! Who was asked for when, in the formats in which that is recorded.
//!
//! | format | begins with |
//! |---|---|
//! | requests | `t_s,model` |
//! | counts per minute | `minute,func,count` |
//! | Azure Functions 2019, as published | `HashOwner,HashApp,HashFunction,Trigger,1,2,...` |
//! | Azure Functions 2021, as published | `app,func,end_timestamp,duration` |
//! | the journal of an `mrmd` (`mrm events --export`) | its own mark |
//!
//! Each may be compressed by gzip. Where a minute's requests are only counted, they come in random
//! order and evenly spaced, as CremeBrulee has it.
//!
//! ```
//! use mrm_simulate::trace::{Trace, TraceOptions};
//! let text = "minute,func,count\n0,a,2\n1,b,1\n";
//! let trace = Trace::read("day.csv".as_ref(), text.as_bytes(), &TraceOptions::default())?;
//! let at: Vec<u64> = trace.requests.iter().map(|request| request.at.0 / 1_000_000).collect();
//! assert_eq!(at, [0, 30, 60]);
//! # Ok::<(), mrm_simulate::catalogue::BadInput>(())
//! ```

mod azure;
#[cfg(feature = "journal")]
mod journal;
mod minutes;
mod requests;

use crate::catalogue::{BadInput, Catalogue};
use crate::text::Lines;
use mrm_core::id::Time;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Most requests that are read: 24 bytes each.
pub const REQUESTS_MAX: usize = 100_000_000;

/// How a journal begins.
const JOURNAL: &[u8] = b"MRMJRNL\n";

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// When, since the trace began.
    pub at: Time,
    /// What, by its place in [`Trace::names`].
    pub name: u32,
    /// For how long it held the model in microseconds, where the trace says so.
    pub exec_us: Option<u64>,
}

/// What a journal knows besides its requests.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The models that it loaded, as large and as slow as they were.
    pub models: Catalogue,
    /// The host budget, bytes.
    pub budget_bytes: u64,
    /// The host's policy.
    pub policy: String,
}

/// A recorded trace.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The names of what was asked for.
    pub names: Vec<String>,
    /// The requests, in order of time.
    pub requests: Vec<Asked>,
    /// What was left out or guessed, for people.
    pub notes: Vec<String>,
    /// Of a journal: what else it knows.
    pub recorded: Option<Recorded>,
    /// Whether its names are the hashes of an anonymous data set, which no catalogue has.
    pub anonymous: bool,
}

/// How a trace is read.
#[derive(Debug, Clone, Copy)]
pub struct TraceOptions {
    /// For the order within a minute.
    pub seed: u64,
    /// Leave out what CremeBrulee leaves out: what is asked for more often than by 95 % of all
    /// that is asked for, and what is asked for once.
    pub trim: bool,
    /// Most requests.
    pub requests_max: usize,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            trim: false,
            requests_max: REQUESTS_MAX,
        }
    }
}

impl Trace {
    /// Reads a trace of whatever format it has.
    ///
    /// # Errors
    /// The line that is wrong: not of its format, a time that is negative or goes back, too many.
    pub fn read(file: &Path, from: impl Read, options: &TraceOptions) -> Result<Self, BadInput> {
        let mut lines = Lines::new(file, from)?;
        if lines.peek()?.starts_with(JOURNAL) {
            #[cfg(feature = "journal")]
            return journal::read(file, &lines.rest()?);
            #[cfg(not(feature = "journal"))]
            return Err(BadInput::whole(file, "this build reads no journals"));
        }
        let head = lines.next_line()?.unwrap_or_default().to_owned();
        let mut trace = if head == "t_s,model" {
            requests::read(lines, options)?
        } else if head == "minute,func,count" {
            minutes::read(lines, options)?
        } else if head.starts_with("HashOwner,HashApp,HashFunction,Trigger,1") {
            minutes::read_published(lines, options)?
        } else if head == "app,func,end_timestamp,duration" {
            azure::read(lines, options)?
        } else {
            return Err(BadInput::whole(file, UNKNOWN));
        };
        if trace.requests.is_empty() {
            return Err(BadInput::whole(file, "it has no request"));
        }
        if options.trim {
            trace.trim();
        }
        Ok(trace)
    }

    /// Leaves out the most popular twentieth, and what is asked for once.
    fn trim(&mut self) {
        let mut counts = vec![0u64; self.names.len()];
        for request in &self.requests {
            counts[request.name as usize] += 1;
        }
        let mut sorted: Vec<u64> = counts.iter().copied().filter(|count| *count > 0).collect();
        sorted.sort_unstable();
        // The 95th percentile, between the two nearest in proportion, as numpy has it.
        let at = 0.95 * sorted.len().saturating_sub(1) as f64;
        let near = |at: f64| sorted.get(at as usize).copied().unwrap_or(0) as f64;
        let (low, high) = (near(at.floor()), near(at.ceil()));
        let most = low + (high - low) * (at - at.floor());
        let stays = |count: u64| count > 1 && count as f64 <= most;
        let before = self.requests.len();
        self.requests
            .retain(|request| stays(counts[request.name as usize]));
        let left = counts.iter().filter(|count| stays(**count)).count();
        self.notes.push(format!(
            "{} of {before} requests left out: for what is asked for most, and what is once; {left} models stay",
            before - self.requests.len()
        ));
    }
}

const UNKNOWN: &str = "its first line is that of no known format: `t_s,model`, \
    `minute,func,count`, Azure Functions 2019 (`HashOwner,HashApp,HashFunction,Trigger,1,...`) or \
    2021 (`app,func,end_timestamp,duration`), or a journal of `mrm events --export`";

/// Requests under construction.
struct Builder {
    trace: Trace,
    by_name: HashMap<String, u32>,
    requests_max: usize,
}

impl Builder {
    fn new(options: &TraceOptions) -> Self {
        Self {
            trace: Trace::default(),
            by_name: HashMap::new(),
            requests_max: options.requests_max,
        }
    }

    /// The number of a name.
    fn name(&mut self, name: &str) -> Result<u32, String> {
        if let Some(number) = self.by_name.get(name) {
            return Ok(*number);
        }
        if name.is_empty() {
            return Err("the model has no name".to_owned());
        }
        let number = u32::try_from(self.trace.names.len()).map_err(|_| "too many models")?;
        self.trace.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), number);
        Ok(number)
    }

    fn push(&mut self, asked: Asked) -> Result<(), String> {
        self.room_for(1)?;
        self.trace.requests.push(asked);
        Ok(())
    }

    fn room_for(&self, more: u64) -> Result<(), String> {
        let all = more.saturating_add(self.trace.requests.len() as u64);
        if all > self.requests_max as u64 {
            return Err(format!(
                "more than {} requests: cut the trace into parts",
                self.requests_max
            ));
        }
        Ok(())
    }
}
