//! From a place in the catalogue to opened files.

use super::directory::Weights;
use super::{Catalogue, CatalogueError, OpenFiles, Scan, hub, scan};
use crate::degraded::Degraded;
use crate::format::{FormatError, IndexProblem, is_index, read_index};
use crate::source::{FileSource, Resolution, RootDir, Source, SourceError};
use mrm_proto::name::{FileName, ModelName};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Most directory entries looked at to suggest names.
const SUGGEST_ENTRIES_MAX: usize = 4_000;
/// How long the names for suggestions are kept.
const SUGGEST_KEPT: Duration = Duration::from_secs(60);

/// Names that a scan found, for suggestions.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) list: Arc<[ModelName]>,
    taken: Option<Instant>,
}

/// Opens the model that an entry's `path` names. Links on the way to it are the operator's own and
/// are followed; links inside it must stay inside.
pub(super) fn open_entry(path: &Path, degraded: &Degraded) -> Result<OpenFiles, CatalogueError> {
    let real = |path: &Path| path.canonicalize().map_err(|e| not_resolved(path, &e));
    let target = real(path)?;
    if target.is_dir() {
        let (root, rel) = base_of(&target)?;
        return Opener { root, degraded }.directory(&rel);
    }
    let name = file_name(path)?;
    if is_index(name.as_str()) {
        // Its shards are beside the name that the operator gave, not beside what a link leads to.
        let parent = real(path.parent().unwrap_or(Path::new("/")))?;
        let (root, rel) = base_of(&parent)?;
        return Opener { root, degraded }.sharded(&rel, name);
    }
    let root = RootDir::open(target.parent().unwrap_or(Path::new("/")))?;
    let rel = PathBuf::from(target.file_name().unwrap_or_default());
    Opener { root, degraded }.single(&rel, name)
}

impl Catalogue {
    /// Opens the first of the places below roots that holds a model.
    pub(super) fn open_below(
        &self,
        name: &ModelName,
        below: &[(usize, String)],
    ) -> Result<OpenFiles, CatalogueError> {
        let mut absent_root = None;
        for (number, rest) in below {
            let Some(root) = self.roots.get(*number) else {
                continue;
            };
            let root = match RootDir::open(&root.path) {
                Ok(root) => root,
                Err(error) => {
                    absent_root.get_or_insert(error);
                    continue;
                }
            };
            let opener = Opener {
                root,
                degraded: &self.degraded,
            };
            if let Some(files) = opener.below(rest)? {
                return Ok(files);
            }
        }
        // The model may well be in the root that cannot be looked into.
        if let Some(error) = absent_root {
            return Err(error.into());
        }
        self.refresh_names();
        Err(self.not_found(name))
    }

    /// Keeps the names of `scan` for suggestions.
    pub(super) fn remember(&self, scan: &Scan) {
        let list = scan
            .models
            .iter()
            .filter(|m| !m.entry)
            .map(|m| m.name.clone())
            .collect();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        *names = Names {
            list,
            taken: Some(Instant::now()),
        };
    }

    fn refresh_names(&self) {
        let taken = self
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .taken;
        if taken.is_none_or(|taken| taken.elapsed() > SUGGEST_KEPT) {
            let bounds = scan::Bounds {
                entries_max: SUGGEST_ENTRIES_MAX,
                ..scan::Bounds::default()
            };
            self.remember(&scan::scan(self, bounds));
        }
    }
}

/// Opens models below one root.
struct Opener<'d> {
    root: RootDir,
    degraded: &'d Degraded,
}

impl Opener<'_> {
    /// The model `rest`, if there is one.
    fn below(&self, rest: &str) -> Result<Option<OpenFiles>, CatalogueError> {
        let rel = Path::new(rest);
        match self.kind(rel)? {
            None => {}
            Some(FileType::Directory) => match self.directory(rel) {
                Ok(files) => return Ok(Some(files)),
                // A directory of models is none itself; a repository may still have the name.
                Err(CatalogueError::NotAModel { .. }) => {}
                Err(error) => return Err(error),
            },
            Some(_) => return self.file(rel).map(Some),
        }
        for (repo, revision) in hub::candidates(rest) {
            if self.kind(&repo)? == Some(FileType::Directory) {
                return match hub::snapshot(&self.root, &repo, revision) {
                    Ok(snapshot) => self.directory(&snapshot).map(Some),
                    // A revision that the cache does not have is a name that does not exist.
                    Err(CatalogueError::Source(SourceError::Missing { .. }))
                        if revision.is_some() =>
                    {
                        Ok(None)
                    }
                    Err(error) => Err(error),
                };
            }
        }
        Ok(None)
    }

    fn kind(&self, rel: &Path) -> Result<Option<FileType>, CatalogueError> {
        match self.root.file_type(rel) {
            Ok(kind) => Ok(Some(kind)),
            Err(
                SourceError::Missing { .. }
                | SourceError::Unreadable {
                    errno: Errno::NAMETOOLONG,
                    ..
                },
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&self, rel: &Path) -> Result<OpenFiles, CatalogueError> {
        let path = || self.root.path().join(rel);
        if rel.file_name().is_some_and(hub::is_repo)
            && self.kind(&rel.join("snapshots"))? == Some(FileType::Directory)
        {
            let snapshot = hub::snapshot(&self.root, rel, None)?;
            return self.directory(&snapshot);
        }
        match Weights::find(&self.root, rel)? {
            Weights::None => Err(CatalogueError::NotAModel { path: path() }),
            Weights::Ambiguous(files) => Err(CatalogueError::Ambiguous {
                path: path(),
                files,
            }),
            Weights::Single(file) => {
                let name = file_name(Path::new(&file))?;
                self.single(&rel.join(file), name)
            }
            Weights::Sharded(index) => self.sharded(rel, file_name(Path::new(&index))?),
        }
    }

    fn file(&self, rel: &Path) -> Result<OpenFiles, CatalogueError> {
        let name = file_name(rel)?;
        if is_index(name.as_str()) {
            return self.sharded(rel.parent().unwrap_or(Path::new("")), name);
        }
        self.single(rel, name)
    }

    fn single(&self, rel: &Path, name: FileName) -> Result<OpenFiles, CatalogueError> {
        Ok(vec![(name, self.open(rel)?)])
    }

    /// The index `name` in the directory `rel`, with its shards.
    fn sharded(&self, rel: &Path, name: FileName) -> Result<OpenFiles, CatalogueError> {
        let index_source = self.open(&rel.join(name.as_str()))?;
        let index = read_index(&name, index_source.as_ref())?;
        let mut files: OpenFiles = Vec::with_capacity(index.shards.len() + 1);
        for shard in index.shards {
            let source = match self.open(&rel.join(shard.as_str())) {
                Err(CatalogueError::Source(SourceError::Missing { .. })) => {
                    let problem = IndexProblem::Missing { shard };
                    return Err(FormatError::Index {
                        file: name,
                        problem,
                    }
                    .into());
                }
                opened => opened?,
            };
            files.push((shard, source));
        }
        files.push((name, index_source));
        Ok(files)
    }

    fn open(&self, rel: &Path) -> Result<Arc<dyn Source>, CatalogueError> {
        let file = FileSource::beneath(&self.root, rel)?;
        if file.resolution() == Resolution::Walked {
            self.degraded.report(
                "openat2",
                "the kernel or a sandbox does not offer openat2(2), so paths are checked one by one",
                "run on Linux 5.6 or newer, and allow openat2 in the seccomp profile",
            );
        }
        Ok(Arc::new(file))
    }
}

/// What the files of the directory `real` must stay below: the directory itself, or the whole
/// repository where it is a snapshot of a hub cache, since those link into `blobs`.
fn base_of(real: &Path) -> Result<(RootDir, PathBuf), CatalogueError> {
    let snapshots = real
        .parent()
        .filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
    let repo = snapshots.and_then(Path::parent);
    if let Some(repo) = repo.filter(|repo| repo.file_name().is_some_and(hub::is_repo)) {
        let rel = Path::new("snapshots").join(real.file_name().unwrap_or_default());
        return Ok((RootDir::open(repo)?, rel));
    }
    let root = RootDir::open(real)?;
    if real.file_name().is_some_and(hub::is_repo)
        && super::directory::exists(&root, Path::new("snapshots"))?
    {
        let snapshot = hub::snapshot(&root, Path::new(""), None)?;
        return Ok((root, snapshot));
    }
    Ok((root, PathBuf::new()))
}

fn file_name(path: &Path) -> Result<FileName, CatalogueError> {
    let bad = |reason: String| CatalogueError::BadFileName {
        path: path.to_owned(),
        reason,
    };
    let name = path.file_name().and_then(OsStr::to_str);
    let name = name.ok_or_else(|| bad("the name is not UTF-8".to_owned()))?;
    FileName::new(name).map_err(|e| bad(e.to_string()))
}

fn not_resolved(path: &Path, error: &std::io::Error) -> SourceError {
    let name = path.display().to_string();
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) | None => SourceError::Missing {
            name,
            root: path.parent().unwrap_or(path).to_owned(),
        },
        Some(errno) => SourceError::Unreadable {
            name,
            action: "resolve",
            errno,
        },
    }
}
