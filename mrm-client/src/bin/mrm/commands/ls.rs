//! `mrm ls`.

use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::table::{Align, Cell, Table};
use crate::units;
use crate::wire::{Model, ModelDevice};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
struct Models {
    models: Vec<Model>,
}

/// Prints the models whose names begin with `prefix`.
pub(super) async fn run(api: &Api, prefix: Option<&str>, out: Out) -> Result<(), Failure> {
    let document = api.models(prefix.unwrap_or_default()).await?;
    if out.json {
        return out.document(&document);
    }
    let models: Models = api.read(&document)?;
    if models.models.is_empty() {
        match prefix {
            Some(prefix) => out.note(&format!("no model's name begins with `{prefix}`")),
            None => out.note("no models: register one with `mrmd --model NAME=PATH`"),
        }
        return Ok(());
    }
    out.text(&table(&models.models, out.look))
}

/// The models as a table.
pub(super) fn table(models: &[Model], look: Look) -> String {
    let mut columns = vec![
        ("NAME", Align::Shrink),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("HUGE", Align::Right),
        ("LEASES", Align::Right),
        ("PIN", Align::Left),
        ("LAST USE", Align::Left),
    ];
    let on_devices = models.iter().any(|model| !model.devices.is_empty());
    if on_devices {
        columns.push(("DEVICES", Align::Left));
    }
    let mut table = Table::new(&columns);
    for model in models {
        let devices = on_devices.then(|| devices(model));
        table.row(row(model).into_iter().chain(devices));
    }
    table.render(look)
}

fn row(model: &Model) -> [Cell; 7] {
    let pin = match (model.pinned, model.eager) {
        (true, _) => "pinned",
        (false, true) => "eager",
        (false, false) => "",
    };
    [
        model.name.as_str().into(),
        state(model),
        super::show::size(model.bytes).into(),
        huge(model).into(),
        model.leases.to_string().into(),
        pin.into(),
        model
            .last_used_s_ago
            .map_or_else(|| "-".into(), units::ago)
            .into(),
    ]
}

/// Where it is besides host memory.
fn devices(model: &Model) -> Cell {
    let on = |device: &ModelDevice| {
        let uuid = super::status::short(&device.uuid);
        match device.state.as_str() {
            "resident" => uuid,
            _ => format!("{uuid} {}", on_device(device)),
        }
    };
    let all: Vec<String> = model.devices.iter().map(on).collect();
    all.join(", ").into()
}

/// The state on a device; a copy on its way says how far it is.
pub(super) fn on_device(device: &ModelDevice) -> String {
    match device.state.as_str() {
        "loading" => format!(
            "loading {}",
            units::percent(device.loaded_bytes, device.bytes)
        ),
        other => other.to_owned(),
    }
}

/// The state in its colour; a load says how far it is.
pub(super) fn state(model: &Model) -> Cell {
    match model.state.as_str() {
        "resident" => Cell::toned("resident", Tone::Good),
        "absent" => Cell::toned("absent", Tone::Faint),
        "loading" => {
            let share = units::percent(model.loaded_bytes, model.bytes);
            let left = model.eta_ms.map_or_else(String::new, |ms| {
                format!(", {} left", units::seconds(ms / 1e3))
            });
            Cell::toned(&format!("loading {share}{left}"), Tone::Warning)
        }
        other => Cell::toned(other, Tone::Warning),
    }
}

/// The share of the model's memory that is in huge pages.
pub(super) fn huge(model: &Model) -> String {
    match model.charged_bytes {
        0 => "-".into(),
        charged => units::percent(model.huge_bytes, charged),
    }
}
