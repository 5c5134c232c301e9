//! `mrm warm`.

use super::change::Report;
use crate::failure::Failure;
use crate::http::{Api, model_target};
use crate::out::Out;
use crate::progress::Progress;
use crate::units;
use crate::wire::{Model, Warmed};
use serde_json::Value;
use std::time::Duration;

const POLL_EVERY: Duration = Duration::from_millis(250);

/// Loads each model, going on past those that are refused.
pub(super) async fn run(
    api: &Api,
    names: &[String],
    wait: Duration,
    out: Out,
) -> Result<(), Failure> {
    let mut report = Report::new(out);
    for name in names {
        let outcome = warm(api, name, wait, out).await;
        report.add(name, outcome)?;
    }
    report.finish()
}

async fn warm(api: &Api, name: &str, wait: Duration, out: Out) -> Result<(Value, String), Failure> {
    let target = format!(
        "{}?wait_ms={}",
        model_target(name, "warm"),
        wait.as_millis()
    );
    let document = with_progress(api, name, api.post(&target, wait), out).await?;
    let warmed: Warmed = api.read(&document)?;
    let size = units::bytes(warmed.bytes);
    let took = units::seconds(warmed.took_ms / 1e3);
    let words = match warmed.origin.as_str() {
        "hit" => format!("already resident ({size})"),
        "joined" => format!("resident after {took}, by a load under way ({size})"),
        _ => format!("loaded in {took} ({size})"),
    };
    Ok((document, words))
}

/// Draws how far the load is while `answer` is awaited. What the polls answer is only drawn:
/// their failures say nothing about the request itself.
async fn with_progress(
    api: &Api,
    name: &str,
    answer: impl Future<Output = Result<Value, Failure>>,
    out: Out,
) -> Result<Value, Failure> {
    let mut progress = Progress::new(out, name);
    if !progress.enabled() {
        return answer.await;
    }
    let target = model_target(name, "");
    let poll = async {
        tokio::time::sleep(crate::progress::APPEARS_AFTER).await;
        let mut tick = tokio::time::interval(POLL_EVERY);
        loop {
            tick.tick().await;
            if let Ok(document) = api.get(&target).await
                && let Ok(model) = api.read::<Model>(&document)
            {
                progress.update(model.loaded_bytes, model.bytes);
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        () = poll => Err(Failure::System("the progress display ended".into())),
    }
}
