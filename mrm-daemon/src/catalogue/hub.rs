//! The layout of a Hugging Face hub cache.
//!
//! `models--ORG--NAME/` holds `blobs/`, `refs/REF` (a file with a revision) and
//! `snapshots/REVISION/`, whose files are links into `blobs/`.

use super::CatalogueError;
use super::directory::{exists, list};
use crate::source::{FileSource, RootDir, Source, SourceError};
use mrm_proto::name::FileName;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const REPO_PREFIX: &str = "models--";
/// Longest content of a ref: a revision is a hash of 40 digits.
const REF_BYTES_MAX: usize = 256;

/// The name `org/name` (or `name`) of the repository in a directory of this name.
pub(super) fn repo_name(directory: &str) -> Option<String> {
    let rest = directory
        .strip_prefix(REPO_PREFIX)
        .filter(|rest| !rest.is_empty())?;
    Some(match rest.split_once("--") {
        Some((org, name)) if !org.is_empty() && !name.is_empty() => format!("{org}/{name}"),
        Some(_) | None => rest.to_owned(),
    })
}

/// Whether `directory` is a repository of a hub cache by its name.
pub(super) fn is_repo(directory: &OsStr) -> bool {
    directory.to_str().and_then(repo_name).is_some()
}

/// Where the model `rest` would be in a hub cache, with the revision that it asks for.
pub(super) fn candidates(rest: &str) -> Vec<(PathBuf, Option<&str>)> {
    let (path, revision) = match rest.rsplit_once('@') {
        Some((path, revision)) if is_component(revision) && !path.is_empty() => {
            (path, Some(revision))
        }
        Some(_) | None => (rest, None),
    };
    let mut out = Vec::new();
    let (parent, name) = path
        .rsplit_once('/')
        .map_or(("", path), |(parent, name)| (parent, name));
    if !parent.is_empty() {
        let (above, org) = parent.rsplit_once('/').unwrap_or(("", parent));
        out.push((
            Path::new(above).join(format!("{REPO_PREFIX}{org}--{name}")),
            revision,
        ));
    }
    out.push((
        Path::new(parent).join(format!("{REPO_PREFIX}{name}")),
        revision,
    ));
    out
}

/// The snapshot directory of `repo` for `revision`, or for what `refs/main` says.
pub(super) fn snapshot(
    root: &RootDir,
    repo: &Path,
    revision: Option<&str>,
) -> Result<PathBuf, CatalogueError> {
    let snapshots = repo.join("snapshots");
    if let Some(revision) = revision.filter(|revision| is_component(revision)) {
        let direct = snapshots.join(revision);
        if exists(root, &direct)? {
            return Ok(direct);
        }
    }
    let reference = repo.join("refs").join(revision.unwrap_or("main"));
    match read_ref(root, &reference) {
        Ok(revision) => Ok(snapshots.join(revision)),
        // A cache filled by revision has no refs. Its one snapshot is what anybody would mean.
        Err(CatalogueError::Source(SourceError::Missing { name, root: base }))
            if revision.is_none() =>
        {
            let listing = list(root, &snapshots, 2)?;
            match listing.entries.as_slice() {
                [(only, _)] => Ok(snapshots.join(only)),
                _ => Err(SourceError::Missing { name, root: base }.into()),
            }
        }
        Err(error) => Err(error),
    }
}

fn read_ref(root: &RootDir, reference: &Path) -> Result<String, CatalogueError> {
    let file = FileSource::beneath(root, reference)?;
    let mut text = [0; REF_BYTES_MAX];
    let length = file.read_at(0, &mut text)?;
    let revision = std::str::from_utf8(&text[..length])
        .map(str::trim)
        .unwrap_or_default();
    if is_component(revision) {
        return Ok(revision.to_owned());
    }
    Err(CatalogueError::BadFileName {
        path: root.path().join(reference),
        reason: "the revision in it is not the name of a snapshot; download the model again".into(),
    })
}

fn is_component(text: &str) -> bool {
    FileName::new(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_directories_have_names() {
        assert_eq!(
            repo_name("models--org--bert-base").as_deref(),
            Some("org/bert-base")
        );
        assert_eq!(repo_name("models--gpt2").as_deref(), Some("gpt2"));
        assert_eq!(repo_name("models--").as_deref(), None);
        assert_eq!(repo_name("datasets--org--x").as_deref(), None);
    }

    #[test]
    fn names_lead_to_repository_directories() {
        let paths = |rest| -> Vec<(String, Option<&str>)> {
            let shown = |(path, rev): (PathBuf, _)| (path.display().to_string(), rev);
            candidates(rest).into_iter().map(shown).collect()
        };
        assert_eq!(paths("gpt2"), [("models--gpt2".to_owned(), None)]);
        assert_eq!(
            paths("hub/org/m@v1"),
            [
                ("hub/models--org--m".to_owned(), Some("v1")),
                ("hub/org/models--m".to_owned(), Some("v1"))
            ]
        );
    }
}
