//! Listing every model, within bounds.

use super::Catalogue;
use mrm_proto::name::ModelName;
use std::path::PathBuf;

mod walk;

/// Most directory entries that one scan looks at.
pub const SCAN_ENTRIES_MAX: usize = 200_000;
/// How many directories deep a scan goes below a root.
pub const SCAN_DEPTH_MAX: usize = 8;

/// Most parts that a scan names of those that it left out.
pub const SCAN_CUTS_MAX: usize = 64;

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// The models, by name. An entry hides a file of a root with its name.
    pub models: Vec<Scanned>,
    /// What was left out, and why; at most [`SCAN_CUTS_MAX`].
    pub cuts: Vec<Cut>,
    /// How many more parts were left out.
    pub cuts_unlisted: usize,
}

/// One model of a [`Scan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Its name.
    pub name: ModelName,
    /// The file or directory that it stands for.
    pub path: PathBuf,
    /// Whether it is an entry of its own, not found below a root.
    pub entry: bool,
}

/// A part that a [`Scan`] left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// The bound of directory entries was reached.
    #[error("stopped at {path:?} after {entries_max} directory entries; split the root")]
    Entries {
        /// Where.
        path: PathBuf,
        /// The bound.
        entries_max: usize,
    },
    /// A directory deeper than the bound.
    #[error("{path:?} is more than {depth_max} directories deep; register it as a root by itself")]
    Depth {
        /// The directory.
        path: PathBuf,
        /// The bound.
        depth_max: usize,
    },
    /// Something that cannot be looked into.
    #[error("{path:?} cannot be looked into: {reason}")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// File names that cannot be part of a model's name.
    #[error("{files} names in {path:?} cannot be model names; rename them")]
    Unnameable {
        /// The directory.
        path: PathBuf,
        /// How many.
        files: usize,
    },
}

/// How far a scan goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) entries_max: usize,
    pub(super) depth_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries_max: SCAN_ENTRIES_MAX,
            depth_max: SCAN_DEPTH_MAX,
        }
    }
}

/// Lists the entries and what is below the roots of `catalogue`.
pub(super) fn scan(catalogue: &Catalogue, bounds: Bounds) -> Scan {
    let mut walk = walk::Walk::new(bounds);
    for entry in catalogue.entries.values() {
        walk.add(entry.name.clone(), entry.path.clone(), true);
    }
    for root in &catalogue.roots {
        walk.root(root);
    }
    walk.finish()
}
