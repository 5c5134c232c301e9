//! A trace and the models that it asks for, joined.
//!
//! ```
//! use mrm_simulate::catalogue::Catalogue;
//! use mrm_simulate::trace::{Trace, TraceOptions};
//! use mrm_simulate::workload::{Binding, Workload};
//! let options = TraceOptions::default();
//! let trace = Trace::read("t".as_ref(), "t_s,model\n0,a\n1,b\n".as_bytes(), &options)?;
//! let models = "model,bytes,load_s,exec_s\na,100,2.5,0.1\n";
//! let models = Catalogue::read("m".as_ref(), models.as_bytes())?;
//! let refused = Workload::of(&trace, &models, &Binding::default()).unwrap_err();
//! assert!(refused.to_string().contains("`b`"));
//! # Ok::<(), mrm_simulate::catalogue::BadInput>(())
//! ```

use crate::catalogue::{Catalogue, Model};
use crate::random::Random;
use crate::trace::Trace;
use mrm_core::id::Time;

/// The trace asks for what is not in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the trace asks for {unknown} models that the catalogue does not have, the first is `{first}`: \
     add them, or leave out what asks for them with --skip-unknown, or draw a model for each with --draw"
)]
pub struct UnknownModels {
    /// How many.
    pub unknown: usize,
    /// One of them.
    pub first: String,
}

/// What becomes of a name that the catalogue does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// It is an error. Where all names are hashes, it is drawn.
    #[default]
    Refuse,
    /// Its requests are left out.
    Skip,
    /// It is as large and as slow as one of the catalogue, by chance.
    Draw,
}

/// How a trace and a catalogue are joined.
#[derive(Debug, Clone, Copy, Default)]
pub struct Binding {
    /// What becomes of a name that the catalogue does not have.
    pub unknown: Unknown,
    /// For what is drawn.
    pub seed: u64,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// When.
    pub at: Time,
    /// What, by its place in [`Workload::models`].
    pub model: u32,
    /// For how long it holds it, in microseconds.
    pub exec_us: u64,
}

/// What is replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// What is asked for at least once.
    pub models: Vec<Model>,
    /// The requests, in order of time.
    pub requests: Vec<Request>,
}

impl Workload {
    /// Joins a trace with a catalogue; returns also what a person should know about it.
    ///
    /// # Errors
    /// When the trace asks for what is not there, and nothing is to be done about it.
    pub fn of(
        trace: &Trace,
        catalogue: &Catalogue,
        binding: &Binding,
    ) -> Result<(Self, Vec<String>), UnknownModels> {
        let mut asked = vec![false; trace.names.len()];
        for request in &trace.requests {
            asked[request.name as usize] = true;
        }
        let mut notes = Vec::new();
        let found = names(trace, catalogue, binding, (&asked, &mut notes))?;
        let mut models = Vec::new();
        let mut places: Vec<Option<u32>> = vec![None; trace.names.len()];
        for ((place, model), asked) in places.iter_mut().zip(found).zip(&asked) {
            if let (Some(model), true) = (model, *asked) {
                *place = u32::try_from(models.len()).ok();
                models.push(model);
            }
        }
        let request = |request: &crate::trace::Asked| {
            let model = places[request.name as usize]?;
            let usual = models.get(model as usize)?.exec_us;
            Some(Request {
                at: request.at,
                model,
                exec_us: request.exec_us.unwrap_or(usual),
            })
        };
        let requests: Vec<Request> = trace.requests.iter().filter_map(request).collect();
        let left_out = trace.requests.len() - requests.len();
        if left_out > 0 {
            notes.push(format!(
                "{left_out} of {} requests left out: their models are not in the catalogue",
                trace.requests.len()
            ));
        }
        Ok((Self { models, requests }, notes))
    }

    /// The bytes of all models.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        let bytes = self.models.iter().map(|model| model.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// The size of the largest model, bytes.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        self.models
            .iter()
            .map(|model| model.bytes)
            .max()
            .unwrap_or(0)
    }

    /// What it would be with so many of its models, drawn by chance.
    #[must_use]
    pub fn subset(&self, models: usize, seed: u64) -> Self {
        let mut all: Vec<usize> = (0..self.models.len()).collect();
        Random::new(seed).shuffle(&mut all);
        all.truncate(models);
        all.sort_unstable();
        let mut places: Vec<Option<u32>> = vec![None; self.models.len()];
        for (place, of) in (0..).zip(&all) {
            places[*of] = Some(place);
        }
        let request = |request: &Request| {
            let model = places[request.model as usize]?;
            Some(Request { model, ..*request })
        };
        Self {
            models: all.iter().map(|of| self.models[*of].clone()).collect(),
            requests: self.requests.iter().filter_map(request).collect(),
        }
    }
}

/// The model of each name that is asked for.
fn names(
    trace: &Trace,
    catalogue: &Catalogue,
    binding: &Binding,
    (asked, notes): (&[bool], &mut Vec<String>),
) -> Result<Vec<Option<Model>>, UnknownModels> {
    // What is published calls a function by its app too; a catalogue may not.
    let find = |name: &String| {
        let short = name.rsplit('/').next().unwrap_or(name);
        let short = || trace.anonymous.then(|| catalogue.find(short)).flatten();
        catalogue.find(name).or_else(short).cloned()
    };
    let mut found: Vec<Option<Model>> = trace.names.iter().map(find).collect();
    let missing = |found: &[Option<Model>]| {
        let all = found.iter().zip(asked).enumerate();
        let missing = all.filter(|(_, (model, asked))| model.is_none() && **asked);
        missing.map(|(at, _)| at).collect::<Vec<usize>>()
    };
    let without = missing(&found);
    let Some(first) = without.first() else {
        return Ok(found);
    };
    let all_are_hashes = trace.anonymous && found.iter().all(Option::is_none);
    match binding.unknown {
        Unknown::Refuse if !all_are_hashes => Err(UnknownModels {
            unknown: without.len(),
            first: trace.names[*first].clone(),
        }),
        Unknown::Skip => Ok(found),
        Unknown::Refuse | Unknown::Draw => {
            let mut random = Random::new(binding.seed);
            for at in &without {
                let drawn = &catalogue.models()[random.below(catalogue.models().len())];
                found[*at] = Some(Model {
                    name: trace.names[*at].clone(),
                    ..drawn.clone()
                });
            }
            notes.push(format!(
                "{} functions are not in the catalogue: each is as large and as slow as one of its {} \
                 models, drawn with seed {}",
                without.len(),
                catalogue.models().len(),
                binding.seed
            ));
            Ok(found)
        }
    }
}
