//! `mrm verify`.

use super::change::Report;
use super::status::short;
use crate::args::Verify;
use crate::failure::Failure;
use crate::http::{Api, model_target};
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::progress::{APPEARS_AFTER, Progress};
use crate::table::{Align, Cell, Table};
use crate::units;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

const POLL_EVERY: Duration = Duration::from_millis(250);
/// What a row of everything is called where an error needs a name.
const EVERYTHING: &str = "everything";

/// `POST /v1/models/{name}/verify`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Verified {
    intact: bool,
    bytes: u64,
    took_ms: f64,
    segments: Vec<Segment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Segment {
    model: Option<String>,
    part: String,
    tier: String,
    bytes: u64,
    outcome: String,
    detail: Option<String>,
}

/// What of `GET /v1/status` tells how far it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    integrity: Integrity,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Integrity {
    waiting_bytes: u64,
    done_bytes: u64,
    checked_bytes_total: u64,
}

/// Checks each model, or everything, going on past those that are refused.
pub(super) async fn run(api: &Api, args: &Verify, out: Out) -> Result<(), Failure> {
    let mut report = Report::new(out);
    let mut damaged = 0;
    let names = args.models.iter().map(|name| Some(name.as_str()));
    let everything = args.all.then_some(None);
    for name in names.chain(everything) {
        let outcome = verify(api, name, args.wait, out).await;
        let outcome = outcome.map(|(document, verified)| {
            let bad = |segment: &&Segment| segment.outcome == "damaged";
            damaged += verified.segments.iter().filter(bad).count();
            (document, words(&verified, out.look))
        });
        report.add(name.unwrap_or(EVERYTHING), outcome)?;
    }
    report.finish()?;
    match damaged {
        0 => Ok(()),
        damaged => Err(Failure::Damaged(damaged)),
    }
}

async fn verify(
    api: &Api,
    name: Option<&str>,
    wait: Duration,
    out: Out,
) -> Result<(Value, Verified), Failure> {
    let path = name.map_or_else(
        || "/v1/verify".to_owned(),
        |name| model_target(name, "verify"),
    );
    let target = format!("{path}?wait_ms={}", wait.as_millis());
    let answer = api.post(&target, wait);
    let document = with_progress(api, name.unwrap_or(EVERYTHING), answer, out).await?;
    let verified = api.read(&document)?;
    Ok((document, verified))
}

/// What was found: in one line, and a table of what is not intact.
fn words(verified: &Verified, look: Look) -> String {
    let count = verified.segments.len();
    if count == 0 {
        return "nothing of it is in memory".into();
    }
    let bad: Vec<&Segment> = verified
        .segments
        .iter()
        .filter(|segment| segment.outcome != "intact")
        .collect();
    let word = match (verified.intact, bad.is_empty()) {
        (true, true) => "intact",
        (true, false) => "nothing damaged",
        (false, _) => "DAMAGED",
    };
    let mut words = format!(
        "{word}: {count} segments, {} in {}",
        units::bytes(verified.bytes),
        units::seconds(verified.took_ms / 1e3)
    );
    if !bad.is_empty() {
        let _ = write!(words, "\n{}", table(&bad, look).trim_end());
    }
    words
}

fn table(segments: &[&Segment], look: Look) -> String {
    let mut table = Table::new(&[
        ("MODEL", Align::Shrink),
        ("PART", Align::Left),
        ("WHERE", Align::Left),
        ("SIZE", Align::Right),
        ("OUTCOME", Align::Left),
        ("", Align::Left),
    ]);
    for segment in segments {
        let tone = if segment.outcome == "damaged" {
            Tone::Bad
        } else {
            Tone::Warning
        };
        let place = match segment.tier.as_str() {
            "host" => "host".to_owned(),
            uuid => short(uuid),
        };
        table.row([
            Cell::from(segment.model.as_deref().unwrap_or("-")),
            Cell::from(segment.part.as_str()),
            Cell::from(place),
            Cell::from(units::bytes(segment.bytes)),
            Cell::toned(&segment.outcome, tone),
            Cell::from(segment.detail.as_deref().unwrap_or("")),
        ]);
    }
    table.render(look)
}

/// Draws how far the checks are while `answer` is awaited: those of everybody who asked, since one
/// thread does them one after the other.
async fn with_progress(
    api: &Api,
    label: &str,
    answer: impl Future<Output = Result<Value, Failure>>,
    out: Out,
) -> Result<Value, Failure> {
    let mut progress = Progress::new(out, label);
    if !progress.enabled() {
        return answer.await;
    }
    let poll = async {
        let mut before = None;
        tokio::time::sleep(APPEARS_AFTER).await;
        let mut tick = tokio::time::interval(POLL_EVERY);
        loop {
            tick.tick().await;
            if let Ok(document) = api.get("/v1/status").await
                && let Ok(Status { integrity }) = api.read::<Status>(&document)
            {
                let checked = integrity.checked_bytes_total;
                let done = checked - *before.get_or_insert(checked);
                let total = done + integrity.waiting_bytes;
                progress.update(done + integrity.done_bytes, total);
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        () = poll => Err(Failure::System("the progress display ended".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(outcome: &str, detail: Option<&str>) -> Segment {
        Segment {
            model: Some("org/bert".into()),
            part: "file".into(),
            tier: "host".into(),
            bytes: 2 << 20,
            outcome: outcome.into(),
            detail: detail.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_not_intact_is_listed() {
        let mut verified = Verified {
            intact: true,
            bytes: 2 << 20,
            took_ms: 45.25,
            segments: vec![segment("intact", None)],
        };
        let intact = words(&verified, Look::PLAIN);
        assert_eq!(intact, "intact: 1 segments, 2.0 MiB in 45.2 ms");
        verified.segments.push(segment("gone", None));
        assert!(words(&verified, Look::PLAIN).starts_with("nothing damaged: 2 segments"));
        verified.intact = false;
        verified
            .segments
            .push(segment("damaged", Some("it holds 00")));
        let damaged = words(&verified, Look::PLAIN);
        assert!(damaged.starts_with("DAMAGED: 3 segments"), "{damaged}");
        assert!(damaged.contains("damaged  it holds 00"), "{damaged}");
        assert!(!damaged.contains("intact"), "{damaged}");
        assert_eq!(
            words(&Verified::default(), Look::PLAIN),
            "nothing of it is in memory"
        );
    }
}
