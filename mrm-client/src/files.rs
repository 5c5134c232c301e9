//! Local files that make a model: found, opened and named by the client.
//!
//! The rules are those of the daemon's catalogue. A directory holds one model if it has
//! `model.safetensors`; else one `*.safetensors.index.json` (with several,
//! `model.safetensors.index.json`) with the shards that it names; else exactly one
//! `*.safetensors`. A file is an index with its shards, or a model by itself.

use crate::error::OpenError;
use mrm_proto::limits::{INDEX_BYTES_MAX, MODEL_NAME_BYTES_MAX, SEGMENTS_PER_MODEL_MAX};
use mrm_proto::name::{FileName, ModelName};
use rustix::fs::{FileType, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SUFFIX: &str = ".safetensors";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Files that make one model, open for reading.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    pub(crate) label: ModelName,
    pub(crate) names: Vec<FileName>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Finds and opens what `path` stands for.
pub(crate) fn collect(path: &Path) -> Result<LocalFiles, OpenError> {
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(path, e))?;
    let file = if metadata.is_dir() {
        main_file(path)?
    } else {
        path.to_owned()
    };
    let is_index = name_of(&file)?.as_str().ends_with(INDEX_SUFFIX);
    let label = match (metadata.is_dir(), is_index) {
        (false, true) => label(file.parent().unwrap_or(path)),
        _ => label(path),
    };
    let main = open_regular(&file)?;
    let mut files = LocalFiles {
        label,
        names: vec![name_of(&file)?],
        fds: Vec::new(),
    };
    if !is_index {
        files.fds.push(main);
        return Ok(files);
    }
    let mut main = File::from(main);
    let shards = shards_of(&file, &mut main)?;
    files.fds.push(main.into());
    for shard in shards {
        let shard_path = file.with_file_name(shard.as_str());
        files.fds.push(open_regular(&shard_path)?);
        files.names.push(shard);
    }
    Ok(files)
}

/// The file of a directory that says what its model consists of.
fn main_file(directory: &Path) -> Result<PathBuf, OpenError> {
    let entries = std::fs::read_dir(directory).map_err(|e| unreadable(directory, e))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(|e| unreadable(directory, e))?.file_name();
        if let Some(name) = name
            .to_str()
            .filter(|n| n.ends_with(SUFFIX) || n.ends_with(INDEX_SUFFIX))
        {
            names.insert(name.to_owned());
        }
    }
    let (indices, plain): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| name.ends_with(INDEX_SUFFIX));
    let has = |name: &str| names.contains(name).then(|| directory.join(name));
    let only = |list: &[&String]| match list {
        [one] => Some(directory.join(one)),
        _ => None,
    };
    has("model.safetensors")
        .or_else(|| only(&indices))
        .or_else(|| has("model.safetensors.index.json"))
        .or_else(|| {
            if indices.is_empty() {
                only(&plain)
            } else {
                None
            }
        })
        .ok_or_else(|| {
            let found = names.len();
            let reason = format!(
                "the directory holds {found} safetensors files and indices, none of which is the \
                 obvious one; name the file or the index to open"
            );
            not_a_model(directory, reason)
        })
}

/// Names of the shards that an index lists, each once, in order.
fn shards_of(path: &Path, index: &mut File) -> Result<Vec<FileName>, OpenError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let mut text = Vec::new();
    let read = index
        .by_ref()
        .take(INDEX_BYTES_MAX + 1)
        .read_to_end(&mut text);
    read.map_err(|e| unreadable(path, e))?;
    if text.len() as u64 > INDEX_BYTES_MAX {
        let reason = format!("the index is over the limit of {INDEX_BYTES_MAX} bytes");
        return Err(not_a_model(path, reason));
    }
    let index: Index = serde_json::from_slice(&text).map_err(|e| {
        not_a_model(
            path,
            format!("the index is not JSON with a `weight_map` of strings: {e}"),
        )
    })?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() || shards.len() >= SEGMENTS_PER_MODEL_MAX {
        let reason = format!(
            "the index names {} shards; from 1 to {} can be opened",
            shards.len(),
            SEGMENTS_PER_MODEL_MAX - 1
        );
        return Err(not_a_model(path, reason));
    }
    let name = |shard: String| {
        let shown = shard.escape_debug().to_string();
        FileName::new(shard).map_err(|e| {
            not_a_model(
                path,
                format!("the index names the shard `{shown}`, but {e}"),
            )
        })
    };
    shards.into_iter().map(name).collect()
}

/// Opens without ever waiting: not for the other end of a FIFO, not for a terminal.
fn open_regular(path: &Path) -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let failed = |e: rustix::io::Errno| unreadable(path, e.into());
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(failed)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(not_a_model(
            path,
            format!("it is no regular file but a {kind:?}"),
        ));
    }
    Ok(fd)
}

fn name_of(path: &Path) -> Result<FileName, OpenError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| not_a_model(path, "its name is not UTF-8 text".to_owned()))?;
    FileName::new(name).map_err(|e| not_a_model(path, e.to_string()))
}

/// What to call the model in listings: the last part of the path, made a legal name.
fn label(path: &Path) -> ModelName {
    let absolute = std::fs::canonicalize(path);
    let path = if path.file_name().is_some() {
        path
    } else {
        absolute.as_deref().unwrap_or(path)
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let clean = |c: char| if c.is_control() { '_' } else { c };
    let mut name: String = name.chars().map(clean).collect();
    while name.len() > MODEL_NAME_BYTES_MAX {
        name.pop();
    }
    ModelName::new(name).unwrap_or_else(|_| FALLBACK_LABEL.clone())
}

static FALLBACK_LABEL: std::sync::LazyLock<ModelName> = std::sync::LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the literal keeps every rule of a name")]
    ModelName::new("unnamed").expect("a legal name")
});

fn unreadable(path: &Path, source: std::io::Error) -> OpenError {
    OpenError::File {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn not_a_model(path: &Path, reason: String) -> OpenError {
    OpenError::NotAModel {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        directory
    }

    fn names(path: &Path) -> Vec<String> {
        let files = collect(path).expect("a model");
        assert_eq!(files.names.len(), files.fds.len());
        files.names.iter().map(ToString::to_string).collect()
    }

    const INDEX: &str = r#"{"metadata":{"total_size":1},
        "weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;

    #[test]
    fn a_directory_is_what_its_obvious_file_says() {
        let one = directory(&[("only.safetensors", ""), ("config.json", "{}")]);
        assert_eq!(names(one.path()), ["only.safetensors"]);
        let shards = [
            ("m-1.safetensors", ""),
            ("m-2.safetensors", ""),
            ("m-3.safetensors", ""),
        ];
        let sharded =
            directory(&[&[("model.safetensors.index.json", INDEX)], &shards[..]].concat());
        let wanted = [
            "model.safetensors.index.json",
            "m-1.safetensors",
            "m-2.safetensors",
        ];
        assert_eq!(names(sharded.path()), wanted);
        assert_eq!(names(&sharded.path().join(wanted[0])), wanted);
        let label = collect(&sharded.path().join(wanted[0]))
            .expect("a model")
            .label;
        assert_eq!(
            Some(label.as_str()),
            sharded.path().file_name().and_then(|n| n.to_str())
        );
        assert_eq!(
            names(&sharded.path().join("m-3.safetensors")),
            ["m-3.safetensors"]
        );
        let both = directory(&[("model.safetensors", ""), ("x.safetensors", "")]);
        assert_eq!(names(both.path()), ["model.safetensors"]);
    }

    #[test]
    fn what_is_no_model_is_refused_with_a_reason() {
        let outside = INDEX.replace("m-1", "../m-1");
        let none = INDEX.replace("weight_map", "weights");
        for files in [
            &[][..],
            &[("a.safetensors", ""), ("b.safetensors", "")],
            &[("model.safetensors.index.json", outside.as_str())],
            &[("model.safetensors.index.json", none.as_str())],
            &[("model.safetensors.index.json", r#"{"weight_map":{}}"#)],
            &[("model.safetensors.index.json", "")],
        ] {
            let directory = directory(files);
            let refused = collect(directory.path());
            assert!(
                matches!(refused, Err(OpenError::NotAModel { .. })),
                "{files:?}: {refused:?}"
            );
        }
        let missing = directory(&[("model.safetensors.index.json", INDEX)]);
        assert!(matches!(
            collect(missing.path()),
            Err(OpenError::File { .. })
        ));
        assert!(matches!(
            collect(Path::new("/nonexistent")),
            Err(OpenError::File { .. })
        ));
        assert!(matches!(
            collect(Path::new("/dev/null")),
            Err(OpenError::NotAModel { .. })
        ));
    }

    #[test]
    fn a_fifo_does_not_hang() {
        let directory = directory(&[]);
        let fifo = directory.path().join("model.safetensors");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).expect("fifo");
        assert!(matches!(
            collect(directory.path()),
            Err(OpenError::NotAModel { .. })
        ));
    }
}
