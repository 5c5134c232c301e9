//! Deciding what a set of files is, and describing it.

use super::{
    FileLayout, FormatError, Header, HeaderCheck, HeaderProblem, Index, IndexProblem, Layout,
    METADATA_PAIRS_MAX, SAFETENSORS_SUFFIX, index,
};
use crate::source::{Identity, Source, settle};
use mrm_proto::limits::{SAFETENSORS_HEADER_BYTES_MAX, SEGMENTS_PER_MODEL_MAX};
use mrm_proto::name::FileName;
use mrm_proto::table::{ModelKind, TableBuilder};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Finds out what `files` are, reading headers only. Blocks.
///
/// One file called `*.safetensors` is safetensors; one called `*.safetensors.index.json` together
/// with exactly the shards that it names is a sharded model; any other single file is opaque. A
/// `.safetensors` file that breaks its format is an error, never opaque. Where shards have
/// metadata with the same key, the first shard's counts.
///
/// # Errors
/// When the files do not belong together, or one of them breaks a rule of its format.
pub fn inspect(files: &[(FileName, Arc<dyn Source>)]) -> Result<Layout, FormatError> {
    let set = FileSet::of(files)?;
    let sources: Vec<&dyn Source> = files.iter().map(|(_, source)| source.as_ref()).collect();
    let identities = settle(&sources)?;
    let files: Vec<_> = files
        .iter()
        .zip(identities)
        .enumerate()
        .map(|(position, ((name, source), identity))| Input {
            name,
            source: source.as_ref(),
            identity,
            position,
        })
        .collect();
    match set {
        FileSet::Opaque => opaque(&files[0]),
        FileSet::Safetensors => single(&files[0]),
        FileSet::Sharded { index } => sharded(&files, index),
    }
}

/// What a set of files is, by its names.
enum FileSet {
    Opaque,
    Safetensors,
    Sharded { index: usize },
}

impl FileSet {
    fn of(files: &[(FileName, Arc<dyn Source>)]) -> Result<Self, FormatError> {
        let wrong = |reason: String| Err(FormatError::FileSet { reason });
        if files.len() > SEGMENTS_PER_MODEL_MAX {
            let count = files.len();
            return wrong(format!(
                "{count} files, at most {SEGMENTS_PER_MODEL_MAX} make a model"
            ));
        }
        let mut names = HashSet::new();
        let twice = files
            .iter()
            .map(|(name, _)| name)
            .find(|name| !names.insert(*name));
        let mut indexes = files
            .iter()
            .enumerate()
            .filter(|(_, f)| index::is_index(f.0.as_str()));
        match (files, twice, indexes.next(), indexes.next()) {
            ([], ..) => wrong("no file was given".to_owned()),
            (_, Some(name), Some((_, (index, _))), None) if name != index => {
                let problem = IndexProblem::Twice {
                    shard: name.clone(),
                };
                Err(FormatError::Index {
                    file: index.clone(),
                    problem,
                })
            }
            (_, Some(name), ..) => wrong(format!("two files are called `{name}`")),
            (_, None, Some((_, (a, _))), Some((_, (b, _)))) => {
                wrong(format!("`{a}` and `{b}` are both an index"))
            }
            (_, None, Some((index, _)), None) => Ok(Self::Sharded { index }),
            ([(name, _)], None, None, _) if name.as_str().ends_with(SAFETENSORS_SUFFIX) => {
                Ok(Self::Safetensors)
            }
            ([_], None, None, _) => Ok(Self::Opaque),
            ([(a, _), (b, _), ..], None, None, _) => {
                let count = files.len();
                wrong(format!(
                    "{count} files (`{a}`, `{b}`, ...) without an index of shards"
                ))
            }
        }
    }
}

struct Input<'a> {
    name: &'a FileName,
    source: &'a dyn Source,
    identity: Identity,
    position: usize,
}

impl Input<'_> {
    fn layout(&self, check: Option<HeaderCheck>) -> FileLayout {
        FileLayout {
            name: self.name.clone(),
            position: self.position,
            bytes: self.identity.bytes,
            identity: self.identity,
            check,
        }
    }

    fn failed(&self, problem: HeaderProblem) -> FormatError {
        FormatError::Header {
            file: self.name.clone(),
            problem,
        }
    }

    /// The header, unless it takes more than `header_bytes_left`.
    fn header(&self, header_bytes_left: u64) -> Result<(Header, HeaderCheck), FormatError> {
        let file_bytes = self.identity.bytes;
        if file_bytes < 8 {
            return Err(self.failed(HeaderProblem::Truncated {
                needs_bytes: 8,
                file_bytes,
            }));
        }
        let mut prefix = [0; 8];
        self.source.read_exact_at(0, &mut prefix)?;
        let header_bytes =
            Header::length(prefix, file_bytes).map_err(|problem| self.failed(problem))?;
        if header_bytes > header_bytes_left {
            return Err(self.failed(HeaderProblem::TotalLength));
        }
        // Allocated only now that the file is known to be that long.
        let mut start = vec![0; 8 + usize::try_from(header_bytes).unwrap_or(0)];
        let (length, text) = start.split_at_mut(8);
        length.copy_from_slice(&prefix);
        self.source.read_exact_at(8, text)?;
        let header = Header::parse(text, file_bytes - 8 - header_bytes)
            .map_err(|problem| self.failed(problem))?;
        Ok((header, HeaderCheck::of(&start)))
    }
}

fn opaque(file: &Input<'_>) -> Result<Layout, FormatError> {
    if file.identity.bytes == 0 {
        return Err(FormatError::Empty {
            file: file.name.clone(),
        });
    }
    let mut table = TableBuilder::new(ModelKind::Opaque);
    table.segment(file.name.as_str());
    Ok(Layout {
        kind: ModelKind::Opaque,
        files: vec![file.layout(None)],
        table: table.build()?,
    })
}

fn single(file: &Input<'_>) -> Result<Layout, FormatError> {
    let mut model = Model::new();
    model.add(file, file.header(SAFETENSORS_HEADER_BYTES_MAX)?)?;
    model.finish()
}

fn sharded(files: &[Input<'_>], index_at: usize) -> Result<Layout, FormatError> {
    let index_file = &files[index_at];
    let (index, index_check) = index::load(
        index_file.name,
        index_file.source,
        index_file.identity.bytes,
    )?;
    let wrong = |problem| FormatError::Index {
        file: index_file.name.clone(),
        problem,
    };

    let mut by_name: BTreeMap<&FileName, &Input<'_>> = files
        .iter()
        .filter(|f| f.position != index_at)
        .map(|f| (f.name, f))
        .collect();
    let mut shards = Vec::with_capacity(index.shards.len());
    for shard in &index.shards {
        let missing = || {
            wrong(IndexProblem::Missing {
                shard: shard.clone(),
            })
        };
        shards.push(by_name.remove(shard).ok_or_else(missing)?);
    }
    if let Some((name, _)) = by_name.first_key_value() {
        let reason = format!(
            "the index `{}` does not name the file `{name}`",
            index_file.name
        );
        return Err(FormatError::FileSet { reason });
    }

    let mut model = Model::new();
    let mut header_bytes_left = SAFETENSORS_HEADER_BYTES_MAX;
    let mut tensors = 0;
    for (number, shard) in shards.iter().enumerate() {
        let (header, check) = shard.header(header_bytes_left)?;
        header_bytes_left = header_bytes_left.saturating_sub(check.bytes);
        let misplaced = header
            .tensors
            .iter()
            .find(|t| index.tensors.get(&t.name) != Some(&number));
        if let Some(tensor) = misplaced {
            let (tensor, found) = (super::json::shorten(&tensor.name), shard.name.clone());
            return Err(wrong(IndexProblem::Misplaced { tensor, found }));
        }
        tensors += header.tensors.len();
        model.add(shard, (header, check))?;
    }
    // Each tensor found is in its one place, so as many as listed means that none is absent.
    if tensors != index.tensors.len() {
        return Err(wrong(absent(&index, &model.names)));
    }
    model.table.segment(index_file.name.as_str());
    model.files.push(index_file.layout(Some(index_check)));
    model.finish()
}

fn absent(index: &Index, found: &HashSet<String>) -> IndexProblem {
    let missing = index
        .tensors
        .iter()
        .filter(|(name, _)| !found.contains(*name))
        .min();
    let (tensor, shard) = missing.map_or(("", 0), |(name, &shard)| (name.as_str(), shard));
    IndexProblem::Absent {
        tensor: super::json::shorten(tensor),
        shard: index.shards[shard].clone(),
    }
}

/// A safetensors model while its files are added.
struct Model {
    table: TableBuilder,
    files: Vec<FileLayout>,
    names: HashSet<String>,
    metadata: HashSet<String>,
}

impl Model {
    fn new() -> Self {
        Self {
            table: TableBuilder::new(ModelKind::Safetensors),
            files: Vec::new(),
            names: HashSet::new(),
            metadata: HashSet::new(),
        }
    }

    fn add(
        &mut self,
        file: &Input<'_>,
        (header, check): (Header, HeaderCheck),
    ) -> Result<(), FormatError> {
        let segment = self.table.segment(file.name.as_str());
        for (key, value) in header.metadata {
            if self.metadata.contains(&key) {
                continue;
            }
            if self.metadata.len() == METADATA_PAIRS_MAX {
                let (what, max) = ("pairs of metadata", METADATA_PAIRS_MAX);
                return Err(file.failed(HeaderProblem::TooMany { what, max }));
            }
            self.table.metadata(&key, &value);
            self.metadata.insert(key);
        }
        for tensor in header.tensors {
            let (offset, bytes) = (check.bytes + tensor.begin, tensor.end - tensor.begin);
            self.table.tensor(
                &tensor.name,
                tensor.dtype,
                &tensor.shape,
                segment,
                offset,
                bytes,
            );
            self.names.insert(tensor.name);
        }
        self.files.push(file.layout(Some(check)));
        Ok(())
    }

    fn finish(self) -> Result<Layout, FormatError> {
        let table = self.table.build()?;
        Ok(Layout {
            kind: ModelKind::Safetensors,
            files: self.files,
            table,
        })
    }
}
