//! The configuration file: TOML in which every key is known and every problem has its line.

use super::devices::{self, GPU_KEY};
use super::entries::{self, Entries};
use super::problem::{Place, Problem, Wrong, closest};
use super::setting::{CATALOGUES_KEY, DEVICE_TABLE, Key, Kind, MODELS_KEY, SETTINGS};
use super::values::{Form, Given};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What a file sets.
#[derive(Debug, Default)]
pub(super) struct FileLayer {
    pub(super) scalars: Vec<(Key, Given)>,
    pub(super) entries: Entries,
}

/// The text of a file and where it is, to tell an offset's line.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Document<'_> {
    pub(super) fn place(self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Reads every key of `document`; what is wrong goes to `problems`.
pub(super) fn read(document: Document<'_>, problems: &mut Vec<Problem>) -> FileLayer {
    let (root, errors) = DeTable::parse_recoverable(document.text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        let wrong = Wrong::new(
            format!("not TOML: {}", error.message().replace('\n', ", ")),
            "correct the syntax of this line",
        );
        problems.push(wrong.at(document.place(offset), "", None));
    }
    let mut layer = FileLayer::default();
    if !errors.is_empty() {
        // What a broken document seems to say would only bury the line that broke it.
        return layer;
    }
    for (key, value) in root.get_ref().iter() {
        let place = document.place(key.span().start);
        match (key.get_ref().as_ref(), value.get_ref()) {
            (MODELS_KEY, value) => {
                layer.entries.models =
                    Some(entries::models_of_file(document, place, value, problems));
            }
            (CATALOGUES_KEY, value) => {
                layer.entries.catalogues = Some(entries::catalogues_of_file(
                    document, place, value, problems,
                ));
            }
            (name, DeValue::Table(table)) if is_table(name) => {
                for (key, value) in table.iter() {
                    if (name, key.get_ref().as_ref()) == (DEVICE_TABLE, GPU_KEY) {
                        let (place, value) = (document.place(key.span().start), value.get_ref());
                        layer.entries.gpus =
                            devices::gpus_of_file(document, place, value, problems);
                    } else {
                        scalar(document, name, key, value, &mut layer, problems);
                    }
                }
            }
            (name, _) if is_table(name) => {
                let wrong = Wrong::new("is a table", format!("write it as [{name}]"));
                problems.push(wrong.at(place, name, None));
            }
            _ => scalar(document, "", key, value, &mut layer, problems),
        }
    }
    layer
}

fn is_table(name: &str) -> bool {
    SETTINGS
        .iter()
        .any(|row| row.table_and_name().0 == name && !name.is_empty())
}

fn scalar(
    document: Document<'_>,
    table: &str,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
    layer: &mut FileLayer,
    problems: &mut Vec<Problem>,
) {
    let name = key.get_ref().as_ref();
    let place = document.place(key.span().start);
    let Some(row) = SETTINGS
        .iter()
        .find(|row| row.table_and_name() == (table, name))
    else {
        let full = if table.is_empty() {
            name.to_owned()
        } else {
            format!("{table}.{name}")
        };
        problems.push(unknown(table, name).at(place, &full, None));
        return;
    };
    let read = match row.kind {
        Kind::Uuids | Kind::Uids => given_list(value.get_ref(), place.clone()),
        Kind::Path
        | Kind::Mode
        | Kind::Group
        | Kind::Size
        | Kind::DeviceSize
        | Kind::Bytes { .. }
        | Kind::Integer { .. }
        | Kind::Choice(_)
        | Kind::Policy => given(value.get_ref(), place.clone()),
    };
    match read {
        Ok(given) => layer.scalars.push((row.key, given)),
        Err(wrong) => problems.push(wrong.at(place, row.path, None)),
    }
}

/// A list of strings, or what [`given`] takes.
fn given_list(value: &DeValue<'_>, place: Place) -> Result<Given, Wrong> {
    let Some(items) = value.as_array() else {
        return given(value, place);
    };
    let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
    match texts {
        Some(texts) => Ok(Given {
            text: texts.join(","),
            form: Form::List,
            place,
        }),
        None => Err(Wrong::new(
            "has something that is not a string",
            "give each in quotes",
        )),
    }
}

/// A string or an integer.
pub(super) fn given(value: &DeValue<'_>, place: Place) -> Result<Given, Wrong> {
    let (text, form) = match value {
        DeValue::String(text) => (text.to_string(), Form::Quoted),
        DeValue::Integer(number) => (
            number.as_str().to_owned(),
            Form::Integer {
                radix: number.radix(),
            },
        ),
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => {
            return Err(Wrong::new(
                format!("has the type {}", value.type_str()),
                "give a string in quotes or a whole number",
            ));
        }
    };
    Ok(Given { text, form, place })
}

fn unknown(table: &str, name: &str) -> Wrong {
    if let Some(row) = SETTINGS.iter().find(|row| row.table_and_name().1 == name) {
        let remedy = match row.table_and_name().0 {
            "" => "move it above the first table".to_owned(),
            home => format!("move it to [{home}]"),
        };
        return Wrong::new("is not a setting of this table", remedy);
    }
    let here = SETTINGS.iter().map(|row| row.table_and_name());
    let here = here
        .filter(|(home, _)| *home == table)
        .map(|(_, name)| name);
    let mut names: Vec<&str> = here.collect();
    if table.is_empty() {
        names.extend(
            SETTINGS
                .iter()
                .map(|row| row.table_and_name().0)
                .filter(|t| !t.is_empty()),
        );
        names.extend([MODELS_KEY, CATALOGUES_KEY]);
    }
    if table == DEVICE_TABLE {
        names.push(GPU_KEY);
    }
    unknown_among(name, &names)
}

/// `name` is none of `names`.
pub(super) fn unknown_among(name: &str, names: &[&str]) -> Wrong {
    let remedy = match closest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "remove it; `mrmd --check` prints every setting".to_owned(),
    };
    Wrong::new("is not a setting", remedy)
}
