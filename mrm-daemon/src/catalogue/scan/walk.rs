//! Walking below a root: no link to a directory is descended, so the walk cannot loop or leave.

use super::super::directory::{Listing, Weights, list};
use super::super::{Root, hub};
use super::{Bounds, Cut, SCAN_CUTS_MAX, Scan, Scanned};
use crate::source::{RootDir, SourceError};
use mrm_proto::name::ModelName;
use rustix::fs::FileType;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub(super) struct Walk {
    bounds: Bounds,
    entries_left: usize,
    /// Whether the bound of entries ended the walk.
    is_over: bool,
    models: BTreeMap<ModelName, Scanned>,
    cuts: Vec<Cut>,
    cuts_unlisted: usize,
}

/// A directory that is still to be looked into.
struct Pending {
    rel: PathBuf,
    depth: usize,
}

impl Walk {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries_left: bounds.entries_max,
            is_over: false,
            models: BTreeMap::new(),
            cuts: Vec::new(),
            cuts_unlisted: 0,
        }
    }

    /// Adds a model. The first of a name counts, as it does for an open.
    pub(super) fn add(&mut self, name: ModelName, path: PathBuf, entry: bool) {
        self.models
            .entry(name.clone())
            .or_insert(Scanned { name, path, entry });
    }

    pub(super) fn finish(self) -> Scan {
        let Self {
            models,
            cuts,
            cuts_unlisted,
            ..
        } = self;
        Scan {
            models: models.into_values().collect(),
            cuts,
            cuts_unlisted,
        }
    }

    /// Adds what is below `root`.
    pub(super) fn root(&mut self, root: &Root) {
        let dir = match RootDir::open(&root.path) {
            Ok(dir) => dir,
            Err(error) => return self.unreadable(&root.path, &error),
        };
        let mut below = Below {
            walk: self,
            root,
            dir,
            pending: Vec::new(),
        };
        below.pending.push(Pending {
            rel: PathBuf::new(),
            depth: 0,
        });
        while !below.walk.is_over {
            let Some(next) = below.pending.pop() else {
                break;
            };
            below.look_into(&next);
        }
    }

    fn cut(&mut self, cut: Cut) {
        if self.cuts.len() < SCAN_CUTS_MAX {
            self.cuts.push(cut);
        } else {
            self.cuts_unlisted += 1;
        }
    }

    fn unreadable(&mut self, path: &Path, error: &SourceError) {
        self.cut(Cut::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        });
    }
}

/// The walk below one root.
struct Below<'w> {
    walk: &'w mut Walk,
    root: &'w Root,
    dir: RootDir,
    pending: Vec<Pending>,
}

impl Below<'_> {
    fn look_into(&mut self, at: &Pending) {
        if at.depth > self.walk.bounds.depth_max {
            let (path, depth_max) = (self.path(&at.rel), self.walk.bounds.depth_max);
            return self.walk.cut(Cut::Depth { path, depth_max });
        }
        let Some(listing) = self.list(&at.rel) else {
            return;
        };
        let is_root = at.depth == 0;
        if !is_root && is_model(&listing) {
            self.add(&at.rel, at.rel.to_str());
            return;
        }
        let mut unnameable = 0;
        for (name, kind) in &listing.entries {
            if is_hidden(name) {
                continue;
            }
            let rel = at.rel.join(name);
            let Some(text) = name.to_str().filter(|_| self.name(rel.to_str()).is_some()) else {
                unnameable += 1;
                continue;
            };
            match kind {
                FileType::Directory => match hub::repo_name(text) {
                    Some(repo) => self.repository(&rel, &at.rel.join(repo), at.depth),
                    None => self.pending.push(Pending {
                        rel,
                        depth: at.depth + 1,
                    }),
                },
                FileType::RegularFile => self.add(&rel, rel.to_str()),
                FileType::Symlink | FileType::Unknown => self.follow(rel, at.depth),
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice => {}
            }
        }
        if unnameable > 0 {
            let path = self.path(&at.rel);
            self.walk.cut(Cut::Unnameable {
                path,
                files: unnameable,
            });
        }
    }

    /// A link, or an entry whose type the filesystem does not tell.
    fn follow(&mut self, rel: PathBuf, depth: usize) {
        match self.dir.file_type(&rel) {
            Ok(FileType::RegularFile) => self.add(&rel, rel.to_str()),
            Ok(FileType::Directory) if self.is_link(&rel) => {
                if self.list(&rel).is_some_and(|listing| is_model(&listing)) {
                    self.add(&rel, rel.to_str());
                }
            }
            Ok(FileType::Directory) => self.pending.push(Pending {
                rel,
                depth: depth + 1,
            }),
            Ok(_) => {}
            Err(error) => {
                let path = self.path(&rel);
                self.walk.unreadable(&path, &error);
            }
        }
    }

    fn is_link(&self, rel: &Path) -> bool {
        // Only its own type is asked for; nothing is opened through it.
        self.path(rel)
            .symlink_metadata()
            .is_ok_and(|meta| meta.file_type().is_symlink())
    }

    /// A repository of a hub cache: its current revision and each of its snapshots.
    fn repository(&mut self, repo: &Path, name: &Path, depth: usize) {
        let snapshots = repo.join("snapshots");
        let Ok(FileType::Directory) = self.dir.file_type(&snapshots) else {
            return self.pending.push(Pending {
                rel: repo.to_owned(),
                depth: depth + 1,
            });
        };
        let Some(revisions) = self.list(&snapshots) else {
            return;
        };
        let current = hub::snapshot(&self.dir, repo, None).ok();
        for (revision, _) in revisions.entries {
            let snapshot = snapshots.join(&revision);
            if !self
                .list(&snapshot)
                .is_some_and(|listing| is_model(&listing))
            {
                continue;
            }
            let (Some(name), Some(revision)) = (name.to_str(), revision.to_str()) else {
                continue;
            };
            self.add(&snapshot, Some(&format!("{name}@{revision}")));
            if current.as_deref() == Some(&snapshot) {
                self.add(&snapshot, Some(name));
            }
        }
    }

    fn list(&mut self, rel: &Path) -> Option<Listing> {
        let listing = match list(&self.dir, rel, self.walk.entries_left) {
            Ok(listing) => listing,
            Err(error) => {
                let path = self.path(rel);
                self.walk.unreadable(&path, &error);
                return None;
            }
        };
        self.walk.entries_left -= listing.entries.len();
        if listing.is_cut {
            self.walk.is_over = true;
            let (path, entries_max) = (self.path(rel), self.walk.bounds.entries_max);
            self.walk.cut(Cut::Entries { path, entries_max });
        }
        Some(listing)
    }

    fn add(&mut self, rel: &Path, name: Option<&str>) {
        if let Some(name) = self.name(name) {
            let path = self.path(rel);
            self.walk.add(name, path, false);
        }
    }

    /// The model's name for a path below the root.
    fn name(&self, rest: Option<&str>) -> Option<ModelName> {
        let rest = rest?;
        let name = match &self.root.prefix {
            Some(prefix) => ModelName::new(format!("{prefix}/{rest}")),
            None => ModelName::new(rest),
        };
        name.ok()
    }

    fn path(&self, rel: &Path) -> PathBuf {
        self.root.path.join(rel)
    }
}

fn is_model(listing: &Listing) -> bool {
    match Weights::of(listing.file_names()) {
        Weights::Single(_) | Weights::Sharded(_) => true,
        Weights::None | Weights::Ambiguous(_) => false,
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
