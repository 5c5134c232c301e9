//! What is remembered of models over a restart: read at the start, written every few minutes and at
//! the end.

use super::{Shell, State};
use crate::statistics::{MODELS_MAX, STATISTICS_FILE, Statistics};
use crate::transfer::Lane;
use mrm_core::event::Event;
use mrm_core::policy::Memory;
use mrm_proto::name::ModelName;
use std::ops::Bound;
use std::time::{Duration, Instant};

/// How often it is written.
const EVERY: Duration = Duration::from_secs(300);

/// When that is due.
pub(super) struct Remembering {
    at: Instant,
    /// Uses that were written already, and orders of use.
    uses: u64,
    turns: u64,
}

impl Remembering {
    pub(super) fn new() -> Self {
        Self {
            at: Instant::now() + EVERY,
            uses: 0,
            turns: 0,
        }
    }

    pub(super) const fn wake_at(&self) -> Option<Instant> {
        Some(self.at)
    }
}

impl Shell {
    /// Takes in what the last daemon remembered.
    pub(crate) fn recall(&self) {
        self.with(State::recall);
    }

    /// Writes down what the next daemon is to remember.
    pub(crate) fn remember(&self) {
        self.with(|state| {
            if let Some(statistics) = state.statistics() {
                let outcome = statistics.write(&state.config.state_dir);
                state.note_written(outcome.map_err(|error| error.to_string()));
            }
        });
    }
}

impl State {
    fn recall(&mut self) {
        let dir = self.config.state_dir.clone();
        let statistics = match Statistics::read(&dir) {
            Ok(Some(statistics)) => statistics,
            Ok(None) => return,
            Err(error) => {
                let file = dir.join(STATISTICS_FILE);
                let cause = format!(
                    "what was remembered of models is lost: {}: {error}",
                    file.display()
                );
                let cure = "nothing need be done: it is written anew; if this comes again, look at \
                            the disk of `state_dir`";
                self.degraded.report("statistics", cause, cure);
                return;
            }
        };
        let models = statistics.models.len();
        self.step(Event::RecallAll(Box::new(statistics.experience)));
        for (name, memory) in statistics.models.into_iter().take(MODELS_MAX) {
            let Ok(name) = ModelName::new(name) else {
                continue;
            };
            let model = self.names.registered(&name);
            let memory = Box::new(memory);
            self.step(Event::Recall { model, memory });
            self.forget_if_unknown(model);
        }
        for order in statistics.orders {
            self.orders.learn(order.table, order.files);
        }
        self.remembering.uses = self.core.view().uses();
        self.remembering.turns = self.orders.turns();
        tracing::info!(models, "what was remembered of models is known again");
    }

    /// What is remembered of the models used last, if anything was used or learned since it was last
    /// asked.
    fn statistics(&mut self) -> Option<Statistics> {
        let (view, now) = (self.core.view(), self.now());
        let (uses, turns) = (view.uses(), self.orders.turns());
        if (uses, turns) == (self.remembering.uses, self.remembering.turns) {
            return None;
        }
        let known = self.names.registered_models(Bound::Unbounded);
        let known = known.filter_map(|(name, model)| Some((name, view.memory(model, now)?)));
        let mut models: Vec<(String, Memory)> = known
            .map(|(name, memory)| (name.as_str().to_owned(), memory))
            .collect();
        let orders = self.orders.all();
        if models.is_empty() && orders.is_empty() {
            return None;
        }
        models.sort_by_key(|(_, memory)| memory.idle_us);
        models.truncate(MODELS_MAX);
        let experience = view.experience();
        self.remembering.uses = uses;
        self.remembering.turns = turns;
        Some(Statistics {
            experience,
            models,
            orders,
        })
    }

    pub(super) fn remember_if_due(&mut self) {
        if self.remembering.at > Instant::now() {
            return;
        }
        self.remembering.at = Instant::now() + EVERY;
        let Some(statistics) = self.statistics() else {
            return;
        };
        let (dir, degraded) = (self.config.state_dir.clone(), self.degraded.clone());
        let write = move || {
            if let Err(error) = statistics.write(&dir) {
                report(&degraded, &error.to_string());
            }
        };
        if let Some(lanes) = &self.lanes {
            // A lane that takes no more work is of a daemon that ends, which writes once more.
            drop(lanes.submit(Lane::Registered, Box::new(write)));
        }
    }

    fn note_written(&self, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            report(&self.degraded, &error);
        }
    }
}

fn report(degraded: &crate::degraded::Degraded, error: &str) {
    let cause = format!("what is remembered of models cannot be written: {error}");
    let cure = "make room on the disk of `state_dir`, and let the daemon's user write there";
    degraded.report("statistics", cause, cure);
}
