//! Files, what is in them, and what was in them before.
//!
//! Bytes are a number, the *content*. Sizes go with contents, so that files of one content are
//! charged alike.

use crate::random::mix;
use crate::settings::PAGE_BYTES;
use std::collections::{BTreeMap, BTreeSet};

/// A content of a tensor table or of an image is made from those of the files.
const TABLE: u64 = 0x0074_6162_6c65;
const IMAGE: u64 = 0x0069_6d61_6765;

/// A file in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) inode: u64,
    pub(crate) state: u64,
}

/// Contents with the time since when they were in a file.
type History = Vec<(u64, u64)>;

/// A model's files; `None` while they are not there.
type Files = Option<Vec<u64>>;

#[derive(Debug)]
struct OnDisk {
    files: Files,
    /// What its files were, and since when.
    before: Vec<(u64, Files)>,
    /// In the operator's catalogue.
    registered: bool,
}

/// All files.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    inodes: BTreeMap<u64, History>,
    models: Vec<OnDisk>,
    made: u64,
}

impl Disk {
    /// Adds a model with files of these contents.
    pub(crate) fn add_model(&mut self, contents: &[u64]) {
        let files: Vec<u64> = contents.iter().map(|of| self.create(*of, 0)).collect();
        self.models.push(OnDisk {
            files: Some(files.clone()),
            before: vec![(0, Some(files))],
            registered: true,
        });
    }

    /// Makes a file.
    pub(crate) fn create(&mut self, content: u64, now: u64) -> u64 {
        self.made += 1;
        self.inodes.insert(self.made, vec![(now, content)]);
        self.made
    }

    pub(crate) fn models(&self) -> usize {
        self.models.len()
    }

    pub(crate) fn is_registered(&self, model: usize) -> bool {
        self.models.get(model).is_some_and(|model| model.registered)
    }

    pub(crate) fn register(&mut self, model: usize, registered: bool) {
        if let Some(model) = self.models.get_mut(model) {
            model.registered = registered;
        }
    }

    /// The files of a model, if they are there.
    pub(crate) fn files(&self, model: usize) -> Option<&[u64]> {
        self.models.get(model)?.files.as_deref()
    }

    /// A file as it is now.
    pub(crate) fn look(&self, inode: u64) -> Option<(Identity, u64)> {
        let history = self.inodes.get(&inode)?;
        let (_, content) = history.last()?;
        let state = history.len() as u64;
        Some((Identity { inode, state }, *content))
    }

    /// What a file in this state contains, unless it changed since.
    pub(crate) fn read(&self, identity: Identity) -> Option<u64> {
        let (now, content) = self.look(identity.inode)?;
        (now == identity).then_some(content)
    }

    /// Writes over a file.
    pub(crate) fn overwrite(&mut self, inode: u64, content: u64, now: u64) {
        if let Some(history) = self.inodes.get_mut(&inode) {
            history.push((now, content));
        }
    }

    /// Puts other files in the place of a model's, or none.
    pub(crate) fn set_files(&mut self, model: usize, files: Files, now: u64) {
        if let Some(model) = self.models.get_mut(model) {
            model.files.clone_from(&files);
            model.before.push((now, files));
        }
    }

    /// What these files contained, together, from `from` to `to`.
    pub(crate) fn contained(&self, inodes: &[u64], from: u64, to: u64) -> BTreeSet<Vec<u64>> {
        let files = inodes.iter().map(|inode| self.inodes.get(inode));
        let Some(files) = files.collect::<Option<Vec<&History>>>() else {
            return BTreeSet::new();
        };
        let changes = files
            .iter()
            .flat_map(|file| file.iter().map(|(since, _)| *since));
        let changes = changes.filter(|since| (from..=to).contains(since));
        let mut times = BTreeSet::from([from.saturating_sub(1), from]);
        times.extend(changes);
        let at = |time: u64| {
            let content = |file: &&History| {
                let mut then = file.iter().rev().filter(|(since, _)| *since <= time);
                then.next().map(|(_, content)| *content)
            };
            files.iter().map(content).collect::<Option<Vec<u64>>>()
        };
        times.into_iter().filter_map(at).collect()
    }

    /// What a model stood for, from `from` to `to`.
    pub(crate) fn stood_for(&self, model: usize, from: u64, to: u64) -> BTreeSet<Vec<u64>> {
        let Some(model) = self.models.get(model) else {
            return BTreeSet::new();
        };
        let mut all = BTreeSet::new();
        let mut ends = model.before.iter().skip(1).map(|(since, _)| *since);
        for (since, files) in &model.before {
            let until = ends.next().unwrap_or(u64::MAX);
            let (first, last) = (from.max(*since), to.min(until));
            if let (Some(files), true) = (files, first <= last) {
                all.append(&mut self.contained(files, first, last));
            }
        }
        all
    }
}

/// What a file of this content takes.
pub(crate) const fn bytes_of(content: u64) -> u64 {
    (content % 5 + 1) * PAGE_BYTES
}

/// The tensor table of a model.
pub(crate) fn table_of(contents: &[u64]) -> u64 {
    contents
        .iter()
        .fold(TABLE, |sum, content| mix(sum ^ content))
}

/// What devices get of a model.
pub(crate) fn image_of(contents: &[u64]) -> u64 {
    contents
        .iter()
        .fold(IMAGE, |sum, content| mix(sum ^ content))
}

/// In how many allocations an image is.
pub(crate) const fn pieces_of(image: u64) -> u64 {
    image % 4 + 1
}

/// Whether there is anything in a model for devices.
pub(crate) fn has_image(contents: &[u64]) -> bool {
    !table_of(contents).is_multiple_of(6)
}
