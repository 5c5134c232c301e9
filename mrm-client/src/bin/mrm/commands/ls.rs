//! `mrm ls`.

use crate::failure::Failure;
use crate::http::Api;
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::table::{Align, Cell, Table};
use crate::units;
use crate::wire::Model;
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
    let mut table = Table::new(&[
        ("NAME", Align::Shrink),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("HUGE", Align::Right),
        ("LEASES", Align::Right),
        ("PIN", Align::Left),
        ("LAST USE", Align::Left),
    ]);
    for model in models {
        table.row(row(model));
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

/// The state in its colour; a load says how far it is.
pub(super) fn state(model: &Model) -> Cell {
    match model.state.as_str() {
        "resident" => Cell::toned("resident", Tone::Good),
        "absent" => Cell::toned("absent", Tone::Faint),
        "loading" => {
            let share = units::percent(model.loaded_bytes, model.bytes);
            Cell::toned(&format!("loading {share}"), Tone::Warning)
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
