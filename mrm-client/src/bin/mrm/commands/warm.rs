//! `mrm warm`.

use super::change::Report;
use super::status::short;
use crate::args::Warm;
use crate::failure::Failure;
use crate::http::{Api, model_target};
use crate::out::Out;
use crate::progress::Progress;
use crate::units;
use crate::wire::{Model, Warmed};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

const POLL_EVERY: Duration = Duration::from_millis(250);

/// Loads each model, going on past those that are refused.
pub(super) async fn run(api: &Api, args: &Warm, out: Out) -> Result<(), Failure> {
    let mut report = Report::new(out);
    for name in &args.models {
        let outcome = warm(api, name, args, out).await;
        report.add(name, outcome)?;
    }
    report.finish()
}

async fn warm(api: &Api, name: &str, args: &Warm, out: Out) -> Result<(Value, String), Failure> {
    let (wait, tier) = (args.wait, args.device.as_deref());
    let wait_ms = wait.as_millis();
    let mut target = format!("{}?wait_ms={wait_ms}", model_target(name, "warm"));
    if let Some(tier) = tier {
        let _ = write!(target, "&tier={tier}");
    }
    let document = with_progress(api, (name, tier), api.post(&target, wait), out).await?;
    let warmed: Warmed = api.read(&document)?;
    let words = words(&warmed, tier);
    Ok((document, words))
}

/// What happened. Where, if a device was asked for.
fn words(warmed: &Warmed, tier: Option<&str>) -> String {
    let size = units::bytes(warmed.bytes);
    let took = units::seconds(warmed.took_ms / 1e3);
    let place = tier.map(|_| place(&warmed.tier)).unwrap_or_default();
    let words = match warmed.origin.as_str() {
        "hit" => format!("already resident{place} ({size})"),
        "joined" => format!("resident{place} after {took}, by a load under way ({size})"),
        "promoted" => {
            let device = short(&warmed.tier);
            format!("copied from memory to {device} in {took} ({size})")
        }
        _ => format!("loaded{place} in {took} ({size})"),
    };
    match (tier, warmed.tier.as_str()) {
        (Some("best"), "host") => words + "; no device could take it",
        (_, _) => words,
    }
}

/// A tier in a sentence. A daemon of an older release names none.
pub(super) fn place(tier: &str) -> String {
    match tier {
        "" => String::new(),
        "host" => " in host memory".into(),
        uuid => format!(" on {}", short(uuid)),
    }
}

/// How far a load is: bytes in place, and of how many.
fn loaded(model: &Model, tier: Option<&str>) -> (u64, u64) {
    let mut devices = model.devices.iter().filter(|device| {
        let is_meant = tier.is_some_and(|tier| ["device", "best", &device.uuid].contains(&tier));
        is_meant && device.state == "loading"
    });
    match devices.next() {
        Some(device) => (device.loaded_bytes, device.bytes),
        None => (model.loaded_bytes, model.bytes),
    }
}

/// Draws how far the load is while `answer` is awaited. What the polls answer is only drawn:
/// their failures say nothing about the request itself.
async fn with_progress(
    api: &Api,
    (name, tier): (&str, Option<&str>),
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
                let (loaded_bytes, bytes) = loaded(&model, tier);
                progress.update(loaded_bytes, bytes);
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
    use crate::wire::ModelDevice;

    const UUID: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";

    fn warmed(origin: &str, tier: &str) -> Warmed {
        Warmed {
            tier: tier.into(),
            origin: origin.into(),
            bytes: 1 << 20,
            took_ms: 45.25,
        }
    }

    #[test]
    fn the_words_say_what_was_done_and_where() {
        for (origin, tier, asked, expected) in [
            ("loaded", "host", None, "loaded in 45.2 ms (1.0 MiB)"),
            ("hit", "host", None, "already resident (1.0 MiB)"),
            (
                "promoted",
                UUID,
                Some("device"),
                "copied from memory to GPU-5a3c1b2e in 45.2 ms (1.0 MiB)",
            ),
            (
                "hit",
                "host",
                Some("best"),
                "already resident in host memory (1.0 MiB); no device could take it",
            ),
            // A daemon that does not say where.
            ("loaded", "", Some(UUID), "loaded in 45.2 ms (1.0 MiB)"),
        ] {
            assert_eq!(words(&warmed(origin, tier), asked), expected);
        }
    }

    #[test]
    fn progress_is_that_of_the_device_that_is_loaded() {
        let device = |uuid: &str, state: &str, loaded_bytes| ModelDevice {
            uuid: uuid.into(),
            state: state.into(),
            bytes: 100,
            reserved_bytes: 0,
            loaded_bytes,
            leases: 0,
        };
        let model = Model {
            bytes: 90,
            loaded_bytes: 80,
            devices: vec![device("GPU-1", "resident", 100), device(UUID, "loading", 7)],
            ..Model::default()
        };
        for (tier, expected) in [
            (None, (80, 90)),
            (Some("device"), (7, 100)),
            (Some("best"), (7, 100)),
            (Some(UUID), (7, 100)),
            (Some("GPU-1"), (80, 90)),
        ] {
            assert_eq!(loaded(&model, tier), expected, "{tier:?}");
        }
    }
}
