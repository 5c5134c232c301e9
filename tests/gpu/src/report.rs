//! What a step found, written to its file after every entry: a step that hangs keeps what it had.

use crate::Anything;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// It ended, and everything that it checked holds.
    Passed,
    /// It ended with an error, or something does not hold.
    Failed,
    /// It was stopped at its deadline.
    TimedOut,
    /// The time of the whole run was over before.
    #[default]
    NotRun,
}

/// All that is known of one step.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) found: Found,
    /// Why it did not pass, and the end of what it printed.
    #[serde(default)]
    pub(crate) error: Option<String>,
}

/// What a step writes itself.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Found {
    /// What the machine is.
    pub(crate) facts: BTreeMap<String, String>,
    pub(crate) tables: Vec<Table>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) checks: Vec<Check>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) skipped: Vec<Skipped>,
}

/// Measurements side by side. A cell is text, a number or null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
}

/// A number with its limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) limit: f64,
    /// Whether the limit is the largest good value, not the smallest.
    pub(crate) at_most: bool,
    /// Whether it counts: on the fake driver nothing measures speed.
    pub(crate) judged: bool,
}

impl Figure {
    pub(crate) fn holds(&self) -> bool {
        if self.at_most {
            self.value <= self.limit
        } else {
            self.value >= self.limit
        }
    }
}

/// Something that is so or is not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) holds: bool,
    pub(crate) detail: String,
}

/// A line for one of the open questions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) question: u32,
    pub(crate) text: String,
}

/// What could not be asked here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Found {
    /// What does not hold, in words.
    pub(crate) fn broken(&self) -> Vec<String> {
        let checks = self.checks.iter().filter(|check| !check.holds);
        let figures = self.figures.iter().filter(|f| f.judged && !f.holds());
        checks
            .map(|check| format!("{}: {}", check.what, check.detail))
            .chain(figures.map(|f| format!("{}: {:.3}, limit {}", f.name, f.value, f.limit)))
            .collect()
    }
}

/// Collects what a step finds, and keeps its file up to date.
pub(crate) struct Recorder {
    found: Found,
    path: PathBuf,
    judged: bool,
}

impl Recorder {
    /// `judged`: whether figures count.
    pub(crate) fn new(path: &Path, judged: bool) -> Self {
        Self {
            found: Found::default(),
            path: path.to_owned(),
            judged,
        }
    }

    pub(crate) fn fact(&mut self, name: &str, value: impl Into<String>) -> Anything<()> {
        self.found.facts.insert(name.to_owned(), value.into());
        self.save()
    }

    /// Begins a table; [`Recorder::row`] adds to it.
    pub(crate) fn table(&mut self, title: &str, columns: &[&str]) -> Anything<()> {
        self.found.tables.push(Table {
            title: title.to_owned(),
            columns: columns.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
        });
        self.save()
    }

    /// Adds a row to the last table.
    pub(crate) fn row(&mut self, cells: &[Value]) -> Anything<()> {
        let table = self.found.tables.last_mut().ok_or("no table was begun")?;
        table.rows.push(cells.to_vec());
        self.save()
    }

    /// A number that must be at most `limit`.
    pub(crate) fn at_most(&mut self, name: &str, value: f64, limit: f64) -> Anything<()> {
        self.figure(name, value, limit, true)
    }

    /// A number that must be at least `limit`.
    pub(crate) fn at_least(&mut self, name: &str, value: f64, limit: f64) -> Anything<()> {
        self.figure(name, value, limit, false)
    }

    fn figure(&mut self, name: &str, value: f64, limit: f64, at_most: bool) -> Anything<()> {
        self.found.figures.push(Figure {
            name: name.to_owned(),
            value,
            limit,
            at_most,
            judged: self.judged,
        });
        self.save()
    }

    pub(crate) fn check(
        &mut self,
        what: &str,
        holds: bool,
        detail: impl Into<String>,
    ) -> Anything<()> {
        self.found.checks.push(Check {
            what: what.to_owned(),
            holds,
            detail: detail.into(),
        });
        self.save()
    }

    /// A check that holds when `result` is no error.
    pub(crate) fn check_ok(&mut self, what: &str, result: Result<String, String>) -> Anything<()> {
        let holds = result.is_ok();
        self.check(what, holds, result.unwrap_or_else(|error| error))
    }

    pub(crate) fn answer(&mut self, question: u32, text: impl Into<String>) -> Anything<()> {
        let text = text.into();
        self.found.answers.push(Answer { question, text });
        self.save()
    }

    pub(crate) fn skip(&mut self, what: &str, why: impl Into<String>) -> Anything<()> {
        self.found.skipped.push(Skipped {
            what: what.to_owned(),
            why: why.into(),
        });
        self.save()
    }

    fn save(&self) -> Anything<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&self.found)?)?;
        Ok(fs::rename(new, &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, at_most: bool, judged: bool) -> Figure {
        Figure {
            name: "ratio".to_owned(),
            value,
            limit: 1.3,
            at_most,
            judged,
        }
    }

    #[test]
    fn a_figure_over_its_limit_counts_only_where_it_is_judged() {
        let found = |figure| Found {
            figures: vec![figure],
            ..Found::default()
        };
        assert!(found(figure(1.3, true, true)).broken().is_empty());
        assert_eq!(found(figure(1.31, true, true)).broken().len(), 1);
        assert!(found(figure(1.31, true, false)).broken().is_empty());
        assert_eq!(found(figure(1.2, false, true)).broken().len(), 1);
        assert_eq!(found(figure(f64::NAN, true, true)).broken().len(), 1);
    }

    #[test]
    fn what_was_found_is_in_the_file_at_once() {
        let path = std::env::temp_dir().join(format!("mrm-gpu-report-{}", std::process::id()));
        let mut recorder = Recorder::new(&path, true);
        recorder.table("attach", &["bytes", "us"]).unwrap();
        recorder.row(&[1.into(), 2.5.into()]).unwrap();
        recorder.check("a byte", false, "is wrong").unwrap();
        let found: Found = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(found.tables[0].rows[0][1], 2.5);
        assert_eq!(found.broken(), ["a byte: is wrong"]);
    }
}
