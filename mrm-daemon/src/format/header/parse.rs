//! From JSON to facts, without building a tree.
//!
//! The rules that JSON libraries leave open are decided here: no key twice at any level that we
//! look at, no number that is not a whole one, nothing that grows beyond its bound while it is
//! read. Fields that the format does not know are skipped, as the reference implementation does.

use super::super::json::shorten;
use super::{Header, HeaderProblem, METADATA_PAIRS_MAX, TensorFact};
use mrm_proto::dtype::DType;
use mrm_proto::limits::{TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX, TENSORS_PER_MODEL_MAX};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Parses a header's JSON. Shapes and offsets are as the file says, not yet checked.
pub(super) fn parse(text: &str) -> Result<Header, HeaderProblem> {
    let mut problem = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = TopLevel {
        problem: &mut problem,
    }
    .deserialize(&mut json);
    let header = match parsed.and_then(|header| json.end().map(|()| header)) {
        Ok(header) => header,
        Err(e) => return Err(problem.unwrap_or_else(|| malformed(e.to_string()))),
    };
    if let Some(name) = first_twice(header.tensors.iter().map(|tensor| tensor.name.as_str())) {
        return Err(HeaderProblem::Duplicate {
            tensor: shorten(name),
        });
    }
    match first_twice(header.metadata.iter().map(|(key, _)| key.as_str())) {
        Some(key) => Err(malformed(format!(
            "metadata has the key {:?} twice",
            shorten(key)
        ))),
        None => Ok(header),
    }
}

fn first_twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::with_capacity(names.size_hint().0);
    names.find(|name| !seen.insert(*name))
}

fn malformed(reason: impl AsRef<str>) -> HeaderProblem {
    HeaderProblem::Malformed {
        reason: shorten(reason.as_ref()),
    }
}

/// Errors of serde carry text only, so a typed problem travels beside them.
fn raise<T, E: Error>(slot: &mut Option<HeaderProblem>, problem: HeaderProblem) -> Result<T, E> {
    let text = problem.to_string();
    *slot = Some(problem);
    Err(E::custom(text))
}

struct TopLevel<'p> {
    problem: &'p mut Option<HeaderProblem>,
}

impl<'de> DeserializeSeed<'de> for TopLevel<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Header, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let problem = self.problem;
        let mut header = Header::default();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.is_some() {
                    return raise(problem, malformed("`__metadata__` is there twice"));
                }
                metadata = Some(map.next_value_seed(Metadata {
                    problem: &mut *problem,
                })?);
                continue;
            }
            if header.tensors.len() == TENSORS_PER_MODEL_MAX {
                let (what, max) = ("tensors", TENSORS_PER_MODEL_MAX);
                return raise(problem, HeaderProblem::TooMany { what, max });
            }
            if name.len() > TENSOR_NAME_BYTES_MAX {
                let (what, max) = ("bytes in a tensor's name", TENSOR_NAME_BYTES_MAX);
                return raise(problem, HeaderProblem::TooMany { what, max });
            }
            let tensor = map.next_value_seed(Tensor {
                name,
                problem: &mut *problem,
            })?;
            header.tensors.push(tensor);
        }
        header.metadata = metadata.unwrap_or_default();
        Ok(header)
    }
}

struct Metadata<'p> {
    problem: &'p mut Option<HeaderProblem>,
}

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings as `__metadata__`")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            if pairs.len() == METADATA_PAIRS_MAX {
                let (what, max) = ("pairs of metadata", METADATA_PAIRS_MAX);
                return raise(self.problem, HeaderProblem::TooMany { what, max });
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

struct Tensor<'p> {
    name: String,
    problem: &'p mut Option<HeaderProblem>,
}

impl<'de> DeserializeSeed<'de> for Tensor<'_> {
    type Value = TensorFact;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<TensorFact, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = TensorFact;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorFact, A::Error> {
        let Self { name, problem } = self;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let is_twice = match field.as_str() {
                "dtype" => {
                    let text = map.next_value::<String>()?;
                    let Some(known) = DType::from_name(&text) else {
                        let (tensor, dtype) = (shorten(&name), shorten(&text));
                        return raise(problem, HeaderProblem::Dtype { tensor, dtype });
                    };
                    dtype.replace(known).is_some()
                }
                "shape" => shape
                    .replace(map.next_value_seed(Shape { problem })?)
                    .is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if is_twice {
                let reason = format!("the field `{field}` is twice in {:?}", shorten(&name));
                return raise(problem, HeaderProblem::Malformed { reason });
            }
        }
        match (dtype, shape, offsets) {
            (Some(dtype), Some(shape), Some([begin, end])) => Ok(TensorFact {
                name,
                dtype,
                shape,
                begin,
                end,
            }),
            (dtype, shape, _) => {
                let field = match (dtype, shape) {
                    (None, _) => "dtype",
                    (Some(_), None) => "shape",
                    (Some(_), Some(_)) => "data_offsets",
                };
                let reason = format!("tensor {:?} has no `{field}`", shorten(&name));
                raise(problem, HeaderProblem::Malformed { reason })
            }
        }
    }
}

struct Shape<'p> {
    problem: &'p mut Option<HeaderProblem>,
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<u64>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element()? {
            if shape.len() == TENSOR_RANK_MAX {
                let (what, max) = ("dimensions in a tensor", TENSOR_RANK_MAX);
                return raise(self.problem, HeaderProblem::TooMany { what, max });
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}
