//! What a file should be by a list that somebody signed off: its SHA-256.
//!
//! Looked for beside the file, in this order: `FILE.sha256`, then `SHA256SUMS`, `SHA256SUMS.txt`,
//! `sha256sums.txt` and `sha256sum.txt`, each as `sha256sum` writes it (or `sha256sum --tag`). A
//! file of a Hugging Face hub cache is a link to a blob, and the blob of a large file is called
//! what it should be.
//!
//! ```
//! use mrm_daemon::integrity::manifest::{expected, parse};
//! let dir = tempfile::tempdir()?;
//! let file = dir.path().join("model.safetensors");
//! std::fs::write(&file, b"weights")?;
//! assert_eq!(expected(&file)?, None);
//! let listed = format!("{}  model.safetensors\n", "ab".repeat(32));
//! std::fs::write(dir.path().join("SHA256SUMS"), &listed)?;
//! assert_eq!(expected(&file)?.map(|found| found.sha256), Some([0xab; 32]));
//! assert!(parse("no list").is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::source::{FileSource, RootDir, Source, SourceError};
use mrm_proto::error::ErrorCode;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Lists, in the order in which they are looked for after that of the one file.
const LISTS: [&str; 4] = [
    "SHA256SUMS",
    "SHA256SUMS.txt",
    "sha256sums.txt",
    "sha256sum.txt",
];
/// Largest list.
pub const LIST_BYTES_MAX: usize = 4 << 20;
/// A digest in hex.
const HEX_BYTES: usize = 64;

/// What a file should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// Where that is said.
    pub by: PathBuf,
}

/// Why it is not known what a file should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A list that is none.
    #[error("{}: line {line}: {why}; write it with sha256sum", .list.display())]
    Malformed {
        /// The list.
        list: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A list that is too long.
    #[error("{} has more than {LIST_BYTES_MAX} bytes: list fewer files", .list.display())]
    TooLong {
        /// The list.
        list: PathBuf,
    },
    /// A list that cannot be read.
    #[error("{cause}")]
    Unreadable {
        /// The list.
        list: PathBuf,
        /// Why.
        cause: String,
    },
    /// The file itself cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No list that names the file, where one must.
    #[error(
        "no list of digests names {}: write one beside it (sha256sum FILE > FILE.sha256), or set \
         integrity.manifest to if-present",
        .file.display()
    )]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file is another.
    #[error(
        "{} is not the file that {} lists: SHA-256 {found} instead of {listed}; fetch it again, or \
         correct the list",
        .file.display(), .by.display()
    )]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// Where it is said what it should be.
        by: PathBuf,
        /// What it is, in hex.
        found: String,
        /// What it should be, in hex.
        listed: String,
    },
}

impl ManifestError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Source(error) => error.code(),
            Self::Malformed { .. } | Self::TooLong { .. } | Self::Unreadable { .. } => {
                ErrorCode::ManifestMalformed
            }
            Self::Missing { .. } => ErrorCode::ManifestMissing,
            Self::Mismatch { .. } => ErrorCode::ManifestMismatch,
        }
    }

    /// That `file` is not what `expected` says.
    #[must_use]
    pub fn mismatch(file: &Path, expected: &Expected, found: &[u8; 32]) -> Self {
        Self::Mismatch {
            file: file.to_owned(),
            by: expected.by.clone(),
            found: hex(found),
            listed: hex(&expected.sha256),
        }
    }
}

/// What the file at `path` should be, as far as a list says. Reads what is beside it. Blocks.
///
/// # Errors
/// When there is a list, and it cannot be read or is none.
pub fn expected(path: &Path) -> Result<Option<Expected>, ManifestError> {
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(None);
    };
    let own = format!("{name}.sha256");
    let own = std::iter::once((own.as_str(), true));
    for (list, of_one) in own.chain(LISTS.map(|list| (list, false))) {
        let path = dir.join(list);
        let Some(text) = read(dir, list)? else {
            continue;
        };
        let entries = parse(&text).map_err(|(line, why)| ManifestError::Malformed {
            list: path.clone(),
            line,
            why,
        })?;
        let mut entries = entries.into_iter();
        let found = entries.find(|entry| match entry.name {
            Some(listed) => listed == name || of_one && base_of(listed) == name,
            None => of_one,
        });
        if let Some(entry) = found {
            let sha256 = entry.sha256;
            return Ok(Some(Expected { sha256, by: path }));
        }
    }
    Ok(blob(path))
}

/// What the name of the blob says that a link of a hub cache leads to.
fn blob(path: &Path) -> Option<Expected> {
    let target = std::fs::read_link(path).ok()?;
    let in_blobs = target.parent()?.file_name()? == "blobs";
    let sha256 = digest(target.file_name()?.to_str()?)?;
    let by = path.parent()?.join(&target);
    in_blobs.then_some(Expected { sha256, by })
}

fn read(dir: &Path, name: &str) -> Result<Option<String>, ManifestError> {
    let list = dir.join(name);
    let unreadable = |error: SourceError| ManifestError::Unreadable {
        list: list.clone(),
        cause: error.to_string(),
    };
    let root = RootDir::open(dir).map_err(unreadable)?;
    let source = match FileSource::beneath(&root, Path::new(name)) {
        Ok(source) => source,
        Err(SourceError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = vec![0; LIST_BYTES_MAX + 1];
    let mut length = 0;
    while length < bytes.len() {
        match source.read_at(length as u64, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) => return Err(unreadable(error)),
        }
    }
    if length > LIST_BYTES_MAX {
        return Err(ManifestError::TooLong { list });
    }
    bytes.truncate(length);
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(ManifestError::Malformed {
            list,
            line: 1,
            why: "it is not text",
        }),
    }
}

/// One line of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'t> {
    /// The SHA-256.
    pub sha256: [u8; 32],
    /// Of which file; `None` where the line has the digest alone.
    pub name: Option<&'t str>,
}

/// Reads a list. Empty lines and those that begin with `#` are skipped.
///
/// # Errors
/// The first line that is neither, from 1, and what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Entry<'_>>, (usize, &'static str)> {
    let mut entries = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        entries.push(entry(line).map_err(|why| (number, why))?);
    }
    if entries.is_empty() {
        return Err((1, "it lists nothing"));
    }
    Ok(entries)
}

fn entry(line: &str) -> Result<Entry<'_>, &'static str> {
    // As `sha256sum --tag` writes it.
    if let Some(rest) = line.strip_prefix("SHA256 (") {
        let (name, text) = rest.rsplit_once(") = ").ok_or("no digest after a name")?;
        let sha256 = digest(text).ok_or("no SHA-256 of 64 hexadecimal digits")?;
        return Ok(Entry {
            sha256,
            name: Some(plain(name)),
        });
    }
    let end = line.find(char::is_whitespace).unwrap_or(line.len());
    let (text, rest) = line.split_at(end);
    let sha256 = digest(text).ok_or("no SHA-256 of 64 hexadecimal digits")?;
    let name = rest.trim_start().trim_start_matches('*');
    let name = (!name.is_empty()).then(|| plain(name));
    Ok(Entry { sha256, name })
}

/// A name without the `./` that `find` puts before it.
fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

fn base_of(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != HEX_BYTES || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..HEX_BYTES).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// A digest as text.
#[must_use]
pub fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
