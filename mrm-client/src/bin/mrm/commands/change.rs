//! `mrm pin`, `mrm unpin`, `mrm hint`, `mrm evict`; and how a command on several models reports.

use crate::failure::Failure;
use crate::http::{Api, model_target};
use crate::out::Out;
use crate::units;
use serde_json::{Value, json};
use std::time::Duration;

/// What to change about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Pin,
    Unpin,
    Hint {
        /// From now on.
        due: Duration,
    },
    Evict {
        /// `host` or the UUID of a device; `None`: from everywhere.
        from: Option<String>,
    },
}

impl Change {
    fn target(&self, name: &str) -> String {
        match self {
            Self::Pin => model_target(name, "pin"),
            Self::Unpin => model_target(name, "unpin"),
            Self::Hint { due } => {
                format!("{}?in_ms={}", model_target(name, "hint"), due.as_millis())
            }
            Self::Evict { from: None } => model_target(name, "evict"),
            Self::Evict { from: Some(tier) } => {
                format!("{}?tier={tier}", model_target(name, "evict"))
            }
        }
    }

    /// What happened, in words, by the daemon's answer.
    fn done(&self, answer: &Value) -> String {
        let changed = answer["changed"] != Value::Bool(false);
        match self {
            Self::Pin if changed => "pinned".into(),
            Self::Pin => "already pinned".into(),
            Self::Unpin if changed => "no longer pinned".into(),
            Self::Unpin => "was not pinned".into(),
            Self::Hint { due } => {
                format!("expected in {}", units::seconds(due.as_secs_f64()))
            }
            Self::Evict { from } => {
                let place = from.as_deref().map(super::warm::place).unwrap_or_default();
                match answer["freed_bytes"].as_u64() {
                    Some(0) => format!("was not resident{place}"),
                    Some(bytes) => format!("evicted, {} freed{place}", units::bytes(bytes)),
                    None => "evicted".into(),
                }
            }
        }
    }
}

/// Changes each model, going on past those that are refused.
pub(super) async fn run(
    api: &Api,
    names: &[String],
    change: &Change,
    out: Out,
) -> Result<(), Failure> {
    let mut report = Report::new(out);
    for name in names {
        let answer = api.post(&change.target(name), Duration::ZERO).await;
        let words = |answer: Value| {
            let words = change.done(&answer);
            (answer, words)
        };
        report.add(name, answer.map(words))?;
    }
    report.finish()
}

/// Collects what happened to each of several models. Text is printed as it comes; JSON is one
/// document `{"results": [...]}`, with the first error also at its top.
#[derive(Debug)]
pub(super) struct Report {
    out: Out,
    results: Vec<Value>,
    first: Option<Failure>,
}

impl Report {
    /// Nothing happened yet.
    pub(super) fn new(out: Out) -> Self {
        Self {
            out,
            results: Vec::new(),
            first: None,
        }
    }

    /// Adds the outcome for one model: the daemon's document and the words for it, or a failure.
    ///
    /// # Errors
    /// A failure that would meet every other model too, or one of printing.
    pub(super) fn add(
        &mut self,
        name: &str,
        outcome: Result<(Value, String), Failure>,
    ) -> Result<(), Failure> {
        match outcome {
            Ok((mut document, words)) => {
                if self.out.json {
                    document["name"] = json!(name);
                    self.results.push(document);
                    return Ok(());
                }
                self.out.confirm(&format!("{name}: {words}"))
            }
            Err(failure @ Failure::Refused(_)) => {
                if self.out.json {
                    self.results
                        .push(json!({"name": name, "error": failure.to_json()}));
                } else {
                    self.out.failure_text(&failure, name);
                }
                self.first.get_or_insert(failure);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Prints the JSON document, and ends with the first failure's status if there was one.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.out.json {
            let mut document = json!({"results": self.results});
            if let Some(first) = &self.first {
                document["error"] = first.to_json();
            }
            self.out.document(&document)?;
        }
        self.first
            .map_or(Ok(()), |first| Err(Failure::Reported(Box::new(first))))
    }
}
