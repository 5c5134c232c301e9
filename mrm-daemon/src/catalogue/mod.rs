//! The operator's models: which names there are, and which files each stands for.
//!
//! A name is either an entry of its own ([`Entry`]) or a path below a root ([`Root`]). A name below
//! a root is looked up when it is opened, so that new models need no scan; [`Catalogue::scan`] is
//! for listings. Both may block on a disk and belong on a worker thread; [`Catalogue::find`] does
//! no IO.
//!
//! Below a root a name is the relative path of a file, or of a directory that holds one model.
//! A Hugging Face hub cache gives its models the names `org/name` (what `refs/main` says) and
//! `org/name@revision`. Names with a component that begins with a dot are not served from roots.
//!
//! A directory holds one model if it has `model.safetensors`; else exactly one
//! `*.safetensors.index.json` (with several, `model.safetensors.index.json`); else exactly one
//! `*.safetensors`.
//!
//! ```
//! use mrm_daemon::catalogue::{Catalogue, Root};
//! use mrm_daemon::degraded::Degraded;
//! use mrm_proto::name::ModelName;
//!
//! let root = tempfile::tempdir()?;
//! std::fs::create_dir(root.path().join("bert"))?;
//! std::fs::write(root.path().join("bert/model.safetensors"), b"")?;
//! let roots = vec![Root { path: root.path().to_owned(), prefix: None }];
//! let catalogue = Catalogue::new(vec![], roots, Degraded::new())?;
//!
//! let spec = catalogue.find(&ModelName::new("bert")?).ok_or("no root could hold it")?;
//! let files = catalogue.open_files(&spec)?;
//! assert_eq!(files[0].0.as_str(), "model.safetensors");
//! assert_eq!(catalogue.scan().models[0].name.as_str(), "bert");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod directory;
mod error;
mod hub;
mod locate;
mod scan;
mod similar;
#[cfg(test)]
mod tests;

pub use error::CatalogueError;
pub use scan::{Cut, SCAN_CUTS_MAX, SCAN_DEPTH_MAX, SCAN_ENTRIES_MAX, Scan, Scanned};

use crate::degraded::Degraded;
use crate::source::Source;
use mrm_proto::name::{FileName, ModelName};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A model that the operator registered by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: ModelName,
    /// A file, or a directory that holds one model. Absolute.
    pub path: PathBuf,
    /// Never evict it.
    pub pin: bool,
    /// Evict it as soon as nobody holds it.
    pub eager: bool,
}

/// A directory whose models are all registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The directory. Absolute.
    pub path: PathBuf,
    /// What comes before the relative path in a name.
    pub prefix: Option<ModelName>,
}

/// What a name may stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name.
    pub name: ModelName,
    /// Never evict it.
    pub pin: bool,
    /// Evict it as soon as nobody holds it.
    pub eager: bool,
    place: Place,
}

/// Where to look for a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// The path of an entry.
    Entry(PathBuf),
    /// Below the roots with these numbers, by the rest of the name.
    Roots(Vec<(usize, String)>),
}

/// An opened model: each file with its name.
pub type OpenFiles = Vec<(FileName, Arc<dyn Source>)>;

/// Everything that the operator registered. Made anew by a reload.
#[derive(Debug)]
pub struct Catalogue {
    entries: BTreeMap<ModelName, Entry>,
    roots: Vec<Root>,
    degraded: Degraded,
    names: Mutex<locate::Names>,
}

impl Catalogue {
    /// A catalogue of these entries and roots. Looks at no file.
    ///
    /// # Errors
    /// When two entries share a name, or a path is not absolute.
    pub fn new(
        entries: Vec<Entry>,
        roots: Vec<Root>,
        degraded: Degraded,
    ) -> Result<Self, CatalogueError> {
        let paths = entries
            .iter()
            .map(|e| &e.path)
            .chain(roots.iter().map(|r| &r.path));
        if let Some(path) = paths.into_iter().find(|path| !path.is_absolute()) {
            return Err(CatalogueError::NotAbsolute { path: path.clone() });
        }
        let mut by_name = BTreeMap::new();
        for entry in entries {
            let name = entry.name.clone();
            if by_name.insert(name.clone(), entry).is_some() {
                return Err(CatalogueError::DuplicateName { name });
            }
        }
        Ok(Self {
            entries: by_name,
            roots,
            degraded,
            names: Mutex::default(),
        })
    }

    /// What `name` may stand for: an entry, or a path below roots that nobody has looked at yet.
    /// `None` when no entry has the name and no root could hold it.
    #[must_use]
    pub fn find(&self, name: &ModelName) -> Option<ModelSpec> {
        if let Some(entry) = self.entries.get(name) {
            return Some(self.spec_of(entry));
        }
        let below: Vec<_> = self
            .roots
            .iter()
            .enumerate()
            .filter_map(|(i, root)| Some((i, root.rest(name)?.to_owned())))
            .collect();
        let spec = |below| ModelSpec {
            name: name.clone(),
            pin: false,
            eager: false,
            place: Place::Roots(below),
        };
        (!below.is_empty()).then(|| spec(below))
    }

    /// Every entry, by name.
    pub fn entries(&self) -> impl Iterator<Item = ModelSpec> + '_ {
        self.entries.values().map(|entry| self.spec_of(entry))
    }

    /// The names of entries from `first` on, in order.
    pub fn entry_names(&self, first: Bound<&str>) -> impl Iterator<Item = &ModelName> {
        let range = self.entries.range::<str, _>((first, Bound::Unbounded));
        range.map(|(name, _)| name)
    }

    /// Whether there is an entry of this name.
    #[must_use]
    pub fn has_entry(&self, name: &ModelName) -> bool {
        self.entries.contains_key(name)
    }

    /// Whether a name is looked up at the same places in another catalogue.
    #[must_use]
    pub fn agrees_on(&self, name: &ModelName, other: &Self) -> bool {
        let (here, there) = (self.find(name), other.find(name));
        here.zip(there)
            .is_some_and(|(here, there)| self.paths_of(&here).eq(other.paths_of(&there)))
    }

    /// The error for a name that [`find`](Self::find) does not know, with what it may have meant.
    /// Does no IO.
    #[must_use]
    pub fn not_found(&self, name: &ModelName) -> CatalogueError {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let scanned = Arc::clone(&names.list);
        drop(names);
        let known = self
            .entries
            .keys()
            .chain(scanned.iter())
            .map(ModelName::as_str);
        CatalogueError::NotFound {
            name: name.clone(),
            similar: similar::closest(name.as_str(), known),
            anything: !(self.entries.is_empty() && self.roots.is_empty()),
        }
    }

    /// Opens what the model consists of now. Blocks.
    ///
    /// # Errors
    /// When there is no such model, a file is missing, outside its root, or no regular file.
    pub fn open_files(&self, spec: &ModelSpec) -> Result<OpenFiles, CatalogueError> {
        match &spec.place {
            Place::Entry(path) => locate::open_entry(path, &self.degraded),
            Place::Roots(below) => self.open_below(&spec.name, below),
        }
    }

    /// Lists every model. Blocks, but looks at no more than [`SCAN_ENTRIES_MAX`] directory entries.
    #[must_use]
    pub fn scan(&self) -> Scan {
        let scan = scan::scan(self, scan::Bounds::default());
        self.remember(&scan);
        scan
    }

    /// The path for listings: an entry's own, or where the name would be in the first root.
    #[must_use]
    pub fn path_of(&self, spec: &ModelSpec) -> Option<PathBuf> {
        self.paths_of(spec).next()
    }

    /// Everywhere that a model is looked for, in order.
    fn paths_of(&self, spec: &ModelSpec) -> impl Iterator<Item = PathBuf> {
        let (entry, below) = match &spec.place {
            Place::Entry(path) => (Some(path.clone()), &[][..]),
            Place::Roots(below) => (None, below.as_slice()),
        };
        let below = below
            .iter()
            .filter_map(|(i, rest)| Some(self.roots.get(*i)?.path.join(rest)));
        entry.into_iter().chain(below)
    }

    fn spec_of(&self, entry: &Entry) -> ModelSpec {
        ModelSpec {
            name: entry.name.clone(),
            pin: entry.pin,
            eager: entry.eager,
            place: Place::Entry(entry.path.clone()),
        }
    }
}

impl Root {
    /// What is left of `name` below this root, unless it cannot be there.
    fn rest<'n>(&self, name: &'n ModelName) -> Option<&'n str> {
        let rest = match &self.prefix {
            None => name.as_str(),
            Some(prefix) => name
                .as_str()
                .strip_prefix(prefix.as_str())?
                .strip_prefix('/')?,
        };
        let hidden = rest.split('/').any(|part| part.starts_with('.'));
        (!hidden && !rest.is_empty()).then_some(rest)
    }
}
