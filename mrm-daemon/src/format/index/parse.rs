//! From JSON to an index, without building a tree.

use super::super::json::shorten;
use super::{Index, IndexProblem};
use mrm_proto::limits::{SEGMENTS_PER_MODEL_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_PER_MODEL_MAX};
use mrm_proto::name::{FileName, NameError};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Most shards: the index itself is a segment too.
const SHARDS_MAX: usize = SEGMENTS_PER_MODEL_MAX - 1;

pub(super) fn parse(text: &str) -> Result<Index, IndexProblem> {
    let mut problem = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = TopLevel {
        problem: &mut problem,
    }
    .deserialize(&mut json);
    parsed
        .and_then(|index| json.end().map(|()| index))
        .map_err(|e| {
            problem.unwrap_or_else(|| IndexProblem::Malformed {
                reason: shorten(&e.to_string()),
            })
        })
}

/// Errors of serde carry text only, so a typed problem travels beside them.
fn raise<T, E: Error>(slot: &mut Option<IndexProblem>, problem: IndexProblem) -> Result<T, E> {
    let text = problem.to_string();
    *slot = Some(problem);
    Err(E::custom(text))
}

struct TopLevel<'p> {
    problem: &'p mut Option<IndexProblem>,
}

impl<'de> DeserializeSeed<'de> for TopLevel<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Index, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if index.is_some() {
                let reason = "`weight_map` is there twice".to_owned();
                return raise(self.problem, IndexProblem::Malformed { reason });
            }
            index = Some(map.next_value_seed(WeightMap {
                problem: &mut *self.problem,
            })?);
        }
        match index {
            Some(index) => Ok(index),
            None => {
                let reason = "it has no `weight_map`".to_owned();
                raise(self.problem, IndexProblem::Malformed { reason })
            }
        }
    }
}

struct WeightMap<'p> {
    problem: &'p mut Option<IndexProblem>,
}

impl<'de> DeserializeSeed<'de> for WeightMap<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Index, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_> {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to shard names as `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut numbers: BTreeMap<FileName, usize> = BTreeMap::new();
        let mut tensors: HashMap<String, usize> = HashMap::new();
        while let Some((tensor, shard)) = map.next_entry::<String, Cow<'de, str>>()? {
            if let Some(problem) = tensor_problem(&tensor, &tensors) {
                return raise(self.problem, problem);
            }
            let shard = match shard_name(shard) {
                Ok(shard) => shard,
                Err(problem) => return raise(self.problem, problem),
            };
            let next = numbers.len();
            let number = *numbers.entry(shard).or_insert(next);
            if numbers.len() > SHARDS_MAX {
                let (what, max) = ("shards", SHARDS_MAX);
                return raise(self.problem, IndexProblem::TooMany { what, max });
            }
            tensors.insert(tensor, number);
        }
        Ok(in_order_of_names(numbers, tensors))
    }
}

fn tensor_problem(tensor: &str, known: &HashMap<String, usize>) -> Option<IndexProblem> {
    if known.contains_key(tensor) {
        return Some(IndexProblem::Duplicate {
            tensor: shorten(tensor),
        });
    }
    if known.len() == TENSORS_PER_MODEL_MAX {
        return Some(IndexProblem::TooMany {
            what: "tensors",
            max: TENSORS_PER_MODEL_MAX,
        });
    }
    (tensor.len() > TENSOR_NAME_BYTES_MAX).then_some(IndexProblem::TooMany {
        what: "bytes in a tensor's name",
        max: TENSOR_NAME_BYTES_MAX,
    })
}

fn shard_name(text: Cow<'_, str>) -> Result<FileName, IndexProblem> {
    let shown = shorten(&text);
    FileName::new(text).map_err(|error| match error {
        NameError::Slash | NameError::NotPlain => IndexProblem::Outside { shard: shown },
        NameError::Empty | NameError::TooLong { .. } | NameError::Control(_) => {
            IndexProblem::Malformed {
                reason: format!("the shard name {shown:?}: {error}"),
            }
        }
    })
}

/// Shards are numbered as they come; from here on their number is their place among the names.
fn in_order_of_names(
    numbers: BTreeMap<FileName, usize>,
    mut tensors: HashMap<String, usize>,
) -> Index {
    let mut place_of = vec![0; numbers.len()];
    for (place, &number) in numbers.values().enumerate() {
        place_of[number] = place;
    }
    for shard in tensors.values_mut() {
        *shard = place_of[*shard];
    }
    Index {
        shards: numbers.into_keys().collect(),
        tensors,
    }
}
