//! `[[model]]` and `[[catalogue]]`: lists of what is registered.

use super::Size;
use super::file::{self, Document, unknown_among};
use super::problem::{Place, Problem, Wrong};
use super::setting::{CATALOGUES_FLAG, CATALOGUES_KEY, GRANULARITIES, MODELS_FLAG, MODELS_KEY};
use super::values::{self, absolute};
use super::{CatalogueEntry, GpuEntry, Granularity, ModelEntry};
use crate::status::WarmOn;
use crate::status::place::PlaceError;
use mrm_proto::name::ModelName;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::de::{DeTable, DeValue};

/// The lists that one layer sets; `None` where it names none.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) models: Option<Vec<(ModelEntry, Place)>>,
    pub(super) catalogues: Option<Vec<(CatalogueEntry, Place)>>,
    /// Only the file has any.
    pub(super) gpus: Vec<(GpuEntry, Place)>,
}

const MODEL_KEYS: &[&str] = &[
    "name",
    "path",
    "pin",
    "eager",
    "granularity",
    "workspace_bytes",
    "warm_on",
];
const CATALOGUE_KEYS: &[&str] = &["root", "prefix"];

/// One table of a list, with what it takes to say what is wrong in it.
struct Row<'a> {
    document: Document<'a>,
    list: &'static str,
    place: Place,
    table: &'a DeTable<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Row<'_> {
    fn refuse_unknown(&mut self, known: &[&str]) {
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let place = self.document.place(key.span().start);
                let full = format!("{}.{name}", self.list);
                self.problems
                    .push(unknown_among(name, known).at(place, &full, None));
            }
        }
    }

    fn place_of(&self, key: &str) -> Place {
        let found = self.table.get_key_value(key);
        found.map_or_else(
            || self.place.clone(),
            |(k, _)| self.document.place(k.span().start),
        )
    }

    fn problem(&mut self, key: &str, value: Option<String>, wrong: Wrong) {
        let place = self.place_of(key);
        self.problems
            .push(wrong.at(place, &format!("{}.{key}", self.list), value));
    }

    /// The parsed string at `key`; a missing one is a problem when `required`.
    fn string<T>(
        &mut self,
        key: &str,
        required: bool,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let Some(value) = self.table.get(key) else {
            if required {
                let remedy = format!("add `{key} = \"...\"` below [[{}]]", self.list);
                self.problem(key, None, Wrong::new("is missing", remedy));
            }
            return None;
        };
        let value = value.get_ref();
        let Some(text) = value.as_str() else {
            let reason = format!("has the type {}", value.type_str());
            self.problem(key, None, Wrong::new(reason, "give a string in quotes"));
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(wrong) => {
                self.problem(key, Some(text.to_owned()), wrong);
                None
            }
        }
    }

    /// So many bytes; 0 where it is not said.
    fn bytes(&mut self, key: &str) -> u64 {
        let Some(value) = self.table.get(key).map(toml::Spanned::get_ref) else {
            return 0;
        };
        let place = self.place_of(key);
        let read = file::given(value, place).and_then(|given| match values::size(&given) {
            Ok(Size::Bytes(bytes)) => Ok(bytes),
            Ok(Size::Percent(_)) => Err(Wrong::new(
                "is a share, of nothing",
                "write for example \"8GiB\" or a plain number of bytes",
            )),
            Err(wrong) => Err(wrong),
        });
        read.unwrap_or_else(|wrong| {
            self.problem(key, None, wrong);
            0
        })
    }

    fn boolean(&mut self, key: &str) -> bool {
        let Some(value) = self.table.get(key).map(toml::Spanned::get_ref) else {
            return false;
        };
        value.as_bool().unwrap_or_else(|| {
            let reason = format!("has the type {}", value.type_str());
            self.problem(key, None, Wrong::new(reason, "give true or false"));
            false
        })
    }
}

/// The models of a file.
pub(super) fn models_of_file(
    document: Document<'_>,
    place: Place,
    value: &DeValue<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<(ModelEntry, Place)> {
    rows(document, MODELS_KEY, place, value, problems, |row| {
        row.refuse_unknown(MODEL_KEYS);
        let name = row.string("name", true, model_name);
        let path = row.string("path", true, absolute);
        let (pin, eager) = (row.boolean("pin"), row.boolean("eager"));
        let granularity = row.string("granularity", false, |word| {
            let remedy = || format!("give one of {}", GRANULARITIES.join(", "));
            Granularity::from_word(word).ok_or_else(|| Wrong::new("not a known word", remedy()))
        });
        let workspace_bytes = row.bytes("workspace_bytes");
        let warm_on = warm_on(row, pin);
        Some((
            ModelEntry {
                name: name?,
                path: path?,
                pin,
                eager,
                granularity,
                workspace_bytes,
                warm_on,
            },
            row.place_of("name"),
        ))
    })
}

fn warm_on(row: &mut Row<'_>, pin: bool) -> WarmOn {
    let read = |text: &str| {
        let remedy = "give one of host, device, best, or a device's UUID, GPU-...";
        let wrong = |error: PlaceError| Wrong::new(error.to_string(), remedy);
        text.parse().map_err(wrong)
    };
    let given = row.string("warm_on", false, read);
    if given.is_some() && !pin {
        let reason = "is only for a model that is pinned";
        let wrong = Wrong::new(reason, "add `pin = true`, or remove it");
        row.problem("warm_on", None, wrong);
    }
    given.unwrap_or_default()
}

/// The catalogues of a file.
pub(super) fn catalogues_of_file(
    document: Document<'_>,
    place: Place,
    value: &DeValue<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<(CatalogueEntry, Place)> {
    rows(document, CATALOGUES_KEY, place, value, problems, |row| {
        row.refuse_unknown(CATALOGUE_KEYS);
        let root = row.string("root", true, absolute);
        let prefix = row.string("prefix", false, model_name);
        Some((
            CatalogueEntry {
                root: root?,
                prefix,
            },
            row.place_of("root"),
        ))
    })
}

fn rows<T>(
    document: Document<'_>,
    list: &'static str,
    place: Place,
    value: &DeValue<'_>,
    problems: &mut Vec<Problem>,
    mut read: impl FnMut(&mut Row<'_>) -> Option<T>,
) -> Vec<T> {
    let not_list = || Wrong::new("is a list of tables", format!("write each as [[{list}]]"));
    let Some(array) = value.as_array() else {
        problems.push(not_list().at(place, list, None));
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in array.iter() {
        let place = document.place(item.span().start);
        match item.get_ref().as_table() {
            Some(table) => {
                found.extend(read(&mut Row {
                    document,
                    list,
                    place,
                    table,
                    problems,
                }));
            }
            None => problems.push(not_list().at(place, list, None)),
        }
    }
    found
}

/// `NAME=PATH` texts of flags or of a variable.
pub(super) fn models_of_texts<'a>(
    texts: impl Iterator<Item = &'a str>,
    place: &Place,
    problems: &mut Vec<Problem>,
) -> Vec<(ModelEntry, Place)> {
    let parse = |text: &str| {
        let form = || Wrong::new("not NAME=PATH", "write for example bert=/models/bert");
        let (name, path) = text.split_once('=').ok_or_else(form)?;
        Ok(ModelEntry::new(model_name(name)?, absolute(path)?))
    };
    of_texts(texts, place, MODELS_FLAG, problems, parse)
}

/// Roots as texts of flags or of a variable.
pub(super) fn catalogues_of_texts<'a>(
    texts: impl Iterator<Item = &'a str>,
    place: &Place,
    problems: &mut Vec<Problem>,
) -> Vec<(CatalogueEntry, Place)> {
    let parse = |text: &str| {
        Ok(CatalogueEntry {
            root: absolute(text)?,
            prefix: None,
        })
    };
    of_texts(texts, place, CATALOGUES_FLAG, problems, parse)
}

fn of_texts<'a, T>(
    texts: impl Iterator<Item = &'a str>,
    place: &Place,
    key: &str,
    problems: &mut Vec<Problem>,
    parse: impl Fn(&str) -> Result<T, Wrong>,
) -> Vec<(T, Place)> {
    let mut found = Vec::new();
    for text in texts {
        match parse(text) {
            Ok(entry) => found.push((entry, place.clone())),
            Err(wrong) => problems.push(wrong.at(place.clone(), key, Some(text.to_owned()))),
        }
    }
    found
}

fn model_name(text: &str) -> Result<ModelName, Wrong> {
    ModelName::new(text).map_err(|error| {
        Wrong::new(
            error.to_string(),
            "give a plain relative name, for example \"org/bert\"",
        )
    })
}

/// Each model once.
pub(super) fn unique_models(
    entries: Vec<(ModelEntry, Place)>,
    problems: &mut Vec<Problem>,
) -> Vec<ModelEntry> {
    let key = |entry: &ModelEntry| entry.name.clone();
    unique(entries, problems, key, |entry| {
        (
            "model.name",
            entry.name.to_string(),
            "give each model a name of its own",
        )
    })
}

/// Each root once per prefix.
pub(super) fn unique_catalogues(
    entries: Vec<(CatalogueEntry, Place)>,
    problems: &mut Vec<Problem>,
) -> Vec<CatalogueEntry> {
    let key = |entry: &CatalogueEntry| (tidy(&entry.root), entry.prefix.clone());
    unique(entries, problems, key, |entry| {
        let root = entry.root.display().to_string();
        (
            "catalogue.root",
            root,
            "remove one of the two, or give them different prefixes",
        )
    })
}

fn unique<T, K: Ord>(
    entries: Vec<(T, Place)>,
    problems: &mut Vec<Problem>,
    key: impl Fn(&T) -> K,
    describe: impl Fn(&T) -> (&'static str, String, &'static str),
) -> Vec<T> {
    let mut seen: BTreeMap<K, Place> = BTreeMap::new();
    let mut kept = Vec::with_capacity(entries.len());
    for (entry, place) in entries {
        match seen.get(&key(&entry)) {
            Some(first) => {
                let (key, value, remedy) = describe(&entry);
                let wrong = Wrong::new(format!("is given twice, first at {first}"), remedy);
                problems.push(wrong.at(place, key, Some(value)));
            }
            None => {
                seen.insert(key(&entry), place);
                kept.push(entry);
            }
        }
    }
    kept
}

/// Without `.` components and doubled or trailing slashes, so that equal roots compare equal.
fn tidy(path: &std::path::Path) -> PathBuf {
    path.components().collect()
}
