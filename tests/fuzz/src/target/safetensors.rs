//! Headers and indexes of safetensors: what is accepted describes its files exactly.
//!
//! An input of [`header()`] is the length of the data in four bytes, and the header's text. One of
//! [`index()`] is the index itself, for which the target makes shards that fit.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::safetensors};
//! let text = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
//! assert_eq!(safetensors::header(&[&[2, 0, 0, 0], &text[..]].concat()), Verdict::Accepted);
//! assert_eq!(safetensors::header(&[&[3, 0, 0, 0], &text[..]].concat()), Verdict::Refused);
//! assert_eq!(safetensors::index(br#"{"weight_map":{"w":"a.safetensors"}}"#), Verdict::Accepted);
//! ```

use super::{assert_says, take};
use crate::Verdict;
use mrm_daemon::format::{
    self, FormatError, Header, HeaderCheck, INDEX_SUFFIX, Index, METADATA_PAIRS_MAX, is_index,
};
use mrm_daemon::source::{Identity, Source, SourceError};
use mrm_proto::limits::{SEGMENTS_PER_MODEL_MAX, TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX};
use mrm_proto::name::FileName;
use mrm_proto::table::{ModelKind, Table};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The header of one file, by itself and as a whole file.
pub fn header(mut input: &[u8]) -> Verdict {
    // More than half of 64 bits in the end: large files are as likely as small ones.
    let word = u32::from_le_bytes(take(&mut input));
    let data_bytes = u64::from(word & 0x00ff_ffff) << (word >> 24).min(39);
    let text = input;
    let parsed = Header::parse(text, data_bytes);
    let prefix = (text.len() as u64).to_le_bytes();
    let start = [&prefix, text].concat();
    let file_bytes = start.len() as u64 + data_bytes;
    match Header::length(prefix, file_bytes) {
        Ok(bytes) => assert_eq!(bytes, text.len() as u64),
        Err(_) => assert!(text.is_empty(), "only an empty header has a bad length"),
    }
    let whole = format::inspect(&[(name("m.safetensors"), File::of(&start, file_bytes))]);
    match (parsed, whole) {
        (Ok(header), Ok(layout)) => {
            covers(&header, data_bytes);
            describes(&header, &layout, &start);
            is_json_object(text);
            Verdict::Accepted
        }
        (Err(problem), Err(error)) => {
            if !text.is_empty() {
                assert_eq!(problem.code(), error.code(), "{problem}; {error}");
            }
            assert!(!problem.remedy().is_empty());
            assert_says(&error)
        }
        (parsed, whole) => panic!("by itself {parsed:?}, as a file {whole:?}"),
    }
}

/// The tensors follow each other, and take what their shapes need.
fn covers(header: &Header, data_bytes: u64) {
    let mut at = 0;
    let mut names = HashSet::new();
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, at, "{tensor:?}");
        assert!(tensor.begin <= tensor.end, "{tensor:?}");
        let needs = tensor.dtype.byte_len_of_shape(&tensor.shape);
        assert_eq!(needs, Some(tensor.end - tensor.begin), "{tensor:?}");
        assert!(tensor.shape.len() <= TENSOR_RANK_MAX);
        assert!(tensor.name.len() <= TENSOR_NAME_BYTES_MAX);
        assert!(names.insert(&tensor.name), "twice: {tensor:?}");
        at = tensor.end;
    }
    assert_eq!(at, data_bytes, "bytes of no tensor");
    assert!(header.metadata.len() <= METADATA_PAIRS_MAX);
    let keys: HashSet<_> = header.metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), header.metadata.len(), "a key twice");
}

/// The tensor table says what the header says.
fn describes(header: &Header, layout: &format::Layout, start: &[u8]) {
    assert_eq!(
        (layout.kind, layout.files.len()),
        (ModelKind::Safetensors, 1)
    );
    let table = Table::parse(&layout.table).expect("our own table");
    assert_eq!(table.len(), header.tensors.len());
    let pairs = header.metadata.iter();
    let pairs: Vec<_> = pairs.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(table.metadata(), pairs);
    for (tensor, entry) in header.tensors.iter().zip(table.iter()) {
        let entry = entry.expect("our own entry");
        assert_eq!(entry.name, tensor.name);
        assert_eq!(entry.offset, start.len() as u64 + tensor.begin);
        assert_eq!(entry.bytes, tensor.end - tensor.begin);
        assert!(entry.shape().eq(tensor.shape.iter().copied()));
        let found = table.find(&tensor.name).expect("by name");
        assert_eq!(found.offset, entry.offset);
    }
    let check = layout.files[0].check.expect("a header was read");
    assert_eq!(check, HeaderCheck::of(start));
    assert!(check.holds(start));
    assert!(!check.holds(&start[..start.len() - 1]));
}

/// Another parser agrees that this is JSON.
fn is_json_object(text: &[u8]) {
    // It bounds numbers where we skip them, so only its word on the syntax counts.
    let parsed: Result<BTreeMap<String, IgnoredAny>, _> = serde_json::from_slice(text);
    assert!(parsed.is_ok(), "{parsed:?}");
}

/// An index, by itself and with shards made for it.
pub fn index(input: &[u8]) -> Verdict {
    let index = match Index::parse(input) {
        Ok(index) => index,
        Err(problem) => {
            assert!(!problem.remedy().is_empty());
            assert!(problem.code().number() >= 400);
            return assert_says(&problem);
        }
    };
    assert!(index.shards.is_sorted_by(|a, b| a < b), "{index:?}");
    assert!(index.shards.len() < SEGMENTS_PER_MODEL_MAX);
    let used: HashSet<_> = index.tensors.values().copied().collect();
    assert_eq!(used.len(), index.shards.len(), "a shard of no tensors");
    assert!(used.iter().all(|&shard| shard < index.shards.len()));
    for shard in &index.shards {
        assert!(!shard.as_str().contains('/'), "{shard:?} leads elsewhere");
    }
    let Plain { weight_map: map } = serde_json::from_slice(input).expect("an index in JSON");
    assert_eq!(map.len(), index.tensors.len());
    for (tensor, &shard) in &index.tensors {
        assert_eq!(map[tensor], index.shards[shard].as_str());
    }
    with_shards(input, &index);
    Verdict::Accepted
}

/// An index as a plain reader of JSON sees it.
#[derive(Deserialize)]
struct Plain {
    weight_map: BTreeMap<String, String>,
}

type Files = Vec<(FileName, Arc<dyn Source>)>;

fn with_shards(text: &[u8], index: &Index) {
    let index_name = name(&format!("m{INDEX_SUFFIX}"));
    let mut files: Files = vec![(index_name, File::of(text, text.len() as u64))];
    let shard = |number: usize, without: Option<&str>| {
        let names = index.tensors.iter().filter(|(_, n)| **n == number);
        let mut names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.retain(|name| Some(*name) != without);
        File::with_tensors(&names)
    };
    for (number, file) in index.shards.iter().enumerate() {
        files.push((file.clone(), shard(number, None)));
    }
    let is_odd = index.shards.iter().any(|file| is_index(file.as_str()));
    let layout = match format::inspect(&files) {
        Ok(layout) => layout,
        Err(error) => {
            assert!(is_odd, "shards made for it: {error}");
            return;
        }
    };
    assert!(!is_odd, "a shard that is called an index");
    let table = Table::parse(&layout.table).expect("our own table");
    assert_eq!(table.len(), index.tensors.len());
    for (tensor, &number) in &index.tensors {
        let entry = table.find(tensor).expect("by name");
        assert_eq!((entry.segment as usize, entry.bytes), (number, 1));
    }
    let names: Vec<_> = layout.files.iter().map(|file| &file.name).collect();
    let shards: Vec<_> = index.shards.iter().collect();
    assert_eq!(names[..shards.len()], shards);

    // A shard that is not there, one tensor too few, and one file too many.
    let fewer = &files[..files.len() - 1];
    assert!(matches!(refused(fewer), FormatError::Index { .. }));
    let (number, missing) = (
        index.shards.len() - 1,
        index
            .tensors
            .iter()
            .find(|(_, n)| **n + 1 == files.len() - 1),
    );
    let (tensor, _) = missing.expect("every shard has a tensor");
    let mut damaged = files.clone();
    damaged[number + 1].1 = shard(number, Some(tensor));
    assert!(matches!(refused(&damaged), FormatError::Index { .. }));
    let mut more = files;
    more.push((name("one more file"), File::with_tensors(&[])));
    if !index.shards.contains(&name("one more file")) {
        assert!(matches!(refused(&more), FormatError::FileSet { .. }));
    }
}

fn refused(files: &[(FileName, Arc<dyn Source>)]) -> FormatError {
    format::inspect(files).expect_err("these files do not belong together")
}

fn name(text: &str) -> FileName {
    FileName::new(text).expect("a good name")
}

/// A file of which only the first bytes are ever read.
struct File {
    start: Vec<u8>,
    bytes: u64,
}

impl File {
    fn of(start: &[u8], bytes: u64) -> Arc<dyn Source> {
        let start = start.to_vec();
        Arc::new(Self { start, bytes })
    }

    /// A safetensors file with a tensor of one byte for each name.
    fn with_tensors(names: &[&str]) -> Arc<dyn Source> {
        let mut header = serde_json::Map::new();
        for (at, tensor) in names.iter().enumerate() {
            let facts = serde_json::json!({
                "dtype": "U8", "shape": [1], "data_offsets": [at, at + 1],
            });
            header.insert((*tensor).to_owned(), facts);
        }
        let text = serde_json::Value::Object(header).to_string();
        let start = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        Self::of(&start, (start.len() + names.len()) as u64)
    }
}

impl Source for File {
    fn label(&self) -> &str {
        "a made-up file"
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        Ok(Identity {
            dev: 1,
            ino: 1,
            bytes: self.bytes,
            mtime_ns: 0,
            ctime_ns: 0,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let at = usize::try_from(offset).ok();
        let rest = at.and_then(|at| self.start.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
