//! What a directory holds, by the names in it.

use super::CatalogueError;
use crate::format::{INDEX_SUFFIX, SAFETENSORS_SUFFIX};
use crate::source::{RootDir, SourceError};
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most entries of one directory that an open looks through.
pub(super) const DIRECTORY_ENTRIES_MAX: usize = 65_536;
/// The file that a directory's model is, if it is there.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// The index that is meant where a directory has several.
pub(super) const MAIN_INDEX: &str = "model.safetensors.index.json";
/// Most files that an error names.
const NAMED_MAX: usize = 5;

/// The model of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// No file of a known format.
    None,
    /// One file.
    Single(String),
    /// An index and its shards.
    Sharded(String),
    /// Several files, none of which is the model's.
    Ambiguous(Vec<String>),
}

impl Weights {
    /// The model of a directory that holds files called `names`.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let (mut files, mut indexes) = (Vec::new(), Vec::new());
        for name in names {
            if name == SINGLE_FILE {
                return Self::Single(name.to_owned());
            } else if name.ends_with(INDEX_SUFFIX) {
                indexes.push(name);
            } else if name.ends_with(SAFETENSORS_SUFFIX) {
                files.push(name);
            }
        }
        let owned = |names: &[&str]| names.iter().take(NAMED_MAX).map(|n| (*n).into()).collect();
        match (indexes.as_slice(), files.as_slice()) {
            ([], []) => Self::None,
            ([], [file]) => Self::Single((*file).to_owned()),
            ([], several) => Self::Ambiguous(owned(several)),
            ([index], _) => Self::Sharded((*index).to_owned()),
            (several, _) if several.contains(&MAIN_INDEX) => Self::Sharded(MAIN_INDEX.to_owned()),
            (several, _) => Self::Ambiguous(owned(several)),
        }
    }

    /// The model of the directory `rel`.
    pub(super) fn find(root: &RootDir, rel: &Path) -> Result<Self, CatalogueError> {
        // The usual names are asked for first, so that a large directory need not be listed.
        if exists(root, &rel.join(SINGLE_FILE))? {
            return Ok(Self::Single(SINGLE_FILE.to_owned()));
        }
        if exists(root, &rel.join(MAIN_INDEX))? {
            return Ok(Self::Sharded(MAIN_INDEX.to_owned()));
        }
        let listing = list(root, rel, DIRECTORY_ENTRIES_MAX)?;
        if listing.is_cut {
            let (path, entries_max) = (root.path().join(rel), DIRECTORY_ENTRIES_MAX);
            return Err(CatalogueError::TooManyEntries { path, entries_max });
        }
        Ok(Self::of(listing.file_names()))
    }
}

/// Whether something is there. A link that leads outside is an error, not an absence.
pub(super) fn exists(root: &RootDir, rel: &Path) -> Result<bool, SourceError> {
    match root.file_type(rel) {
        Ok(_) => Ok(true),
        Err(SourceError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The entries of one directory, by name.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<(OsString, FileType)>,
    /// Whether there are more than were asked for.
    pub(super) is_cut: bool,
}

impl Listing {
    /// Names of what may be files: not of directories.
    pub(super) fn file_names(&self) -> impl Iterator<Item = &str> {
        self.entries
            .iter()
            .filter(|(_, kind)| *kind != FileType::Directory)
            .filter_map(|(name, _)| name.to_str())
    }
}

/// Lists the directory `rel`, at most `entries_max` entries of it.
pub(super) fn list(root: &RootDir, rel: &Path, entries_max: usize) -> Result<Listing, SourceError> {
    let failed = |errno: Errno| SourceError::Unreadable {
        name: root.path().join(rel).display().to_string(),
        action: "list",
        errno,
    };
    let fd = root.open_dir(rel)?;
    let mut listing = Listing::default();
    for entry in Dir::new(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if listing.entries.len() == entries_max {
            listing.is_cut = true;
            break;
        }
        listing.entries.push((name.to_owned(), entry.file_type()));
    }
    listing.entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_holds_the_model_that_its_names_say() {
        let of = |names: &[&str]| Weights::of(names.iter().copied());
        let single = |name: &str| Weights::Single(name.to_owned());
        let sharded = |name: &str| Weights::Sharded(name.to_owned());
        assert_eq!(of(&["config.json", "README.md"]), Weights::None);
        assert_eq!(
            of(&["a.safetensors", "config.json"]),
            single("a.safetensors")
        );
        assert_eq!(
            of(&[MAIN_INDEX, "x.safetensors", SINGLE_FILE]),
            single(SINGLE_FILE)
        );
        assert_eq!(
            of(&["a.safetensors", "b.safetensors", MAIN_INDEX]),
            sharded(MAIN_INDEX)
        );
        let other = "other.safetensors.index.json";
        assert_eq!(of(&[other, "a.safetensors"]), sharded(other));
        assert_eq!(of(&[other, MAIN_INDEX]), sharded(MAIN_INDEX));
        let several = ["a.safetensors", "b.safetensors"];
        assert_eq!(
            of(&several),
            Weights::Ambiguous(several.map(String::from).to_vec())
        );
    }
}
