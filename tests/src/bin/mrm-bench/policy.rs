//! `policy`: what each policy would have had to load, on recorded requests, against what is
//! promised. Writes `tests/bench/policy.md`.
//!
//! A directory with the whole traces (`--traces`, `MRM_TRACES`) gives the figures; without one the
//! sample of this repository is taken, on which only what has to hold of every trace is judged.

mod days;
mod decide;
mod figures;
mod page;

use mrm_core::policy::Choice;
use std::path::Path;

pub(crate) use days::{read as read_days, sample_dir};

/// A figure with what is promised of it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// In words; none where the figure is for information.
    pub(crate) limit: Option<String>,
    pub(crate) holds: bool,
}

impl Figure {
    pub(crate) fn info(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            limit: None,
            holds: true,
        }
    }

    pub(crate) fn most(
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        limit: f64,
    ) -> Self {
        Self {
            limit: Some(format!("at most {limit}")),
            // What is not a number holds nothing.
            holds: value <= limit,
            ..Self::info(what, value, unit)
        }
    }

    pub(crate) fn least(
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        limit: f64,
    ) -> Self {
        Self {
            limit: Some(format!("at least {limit}")),
            holds: value >= limit,
            ..Self::info(what, value, unit)
        }
    }

    /// As it is, for information alone.
    pub(crate) fn unjudged(self) -> Self {
        Self {
            limit: None,
            holds: true,
            ..self
        }
    }

    fn line(&self) -> String {
        let limit = self.limit.as_deref().unwrap_or("-");
        let verdict = match (&self.limit, self.holds) {
            (None, _) => "",
            (Some(_), true) => "holds",
            (Some(_), false) => "FAILS",
        };
        format!(
            "{:<78} {:>12} {:<12} {:<16} {verdict}",
            self.what,
            number(self.value),
            self.unit,
            limit
        )
    }
}

pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Measures, prints, and writes the page. Returns whether all holds.
/// `judged` is the policy that the promises are about: the default.
pub(crate) fn measure(traces: Option<&Path>, page: &Path, judged: Choice) -> bool {
    let dir = traces.map_or_else(sample_dir, Path::to_owned);
    let days = days::read(&dir);
    println!(
        "{}: {} requests, {} models, {}",
        dir.display(),
        days.days[0].workload.requests.len(),
        days.days[0].workload.models.len(),
        if days.whole {
            "the whole trace"
        } else {
            "a sample: only what holds of every trace is judged"
        },
    );
    let told = |figure: &Figure| println!("{}", figure.line());
    let study = figures::Study::of(&days, judged);
    let mut figures = Vec::new();
    study.figures(&mut |figure| {
        told(&figure);
        figures.push(figure);
    });
    for figure in decide::measure(&days, judged) {
        told(&figure);
        figures.push(figure);
    }
    if days.whole {
        std::fs::write(page, page::render(&days, &study, &figures)).expect("writes the page");
        println!("written to {}", page.display());
    }
    figures.iter().all(|figure| figure.holds)
}
