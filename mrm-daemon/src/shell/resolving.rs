//! What models stand for: their files are found, opened and looked into.
//!
//! A model that is in use is looked at again and again, and nearly always found as it was. What its
//! files were the last time is kept, so that only what changed has to be read.

use super::State;
use super::names::{Found, FoundFile, FoundImage, ModelOrigin, Seen, States};
use super::work::{Completed, fault, run_in};
use crate::catalogue::{Catalogue, CatalogueError, OpenFiles};
use crate::failpoint::{self, Point};
use crate::format::inspect;
use crate::integrity::Lists;
use crate::source::{FileSource, PassedFd};
use crate::transfer::{Lane, Lost};
use mrm_core::event::{Event, Fault, Part, Resolution, SegmentFact};
use mrm_core::id::{Bytes, ModelId, OpId, VersionId};
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::{Granularity, Layout};
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::table::Table;
use std::sync::Arc;

/// What a look at a model's files brought.
pub(crate) enum Looked {
    /// They were read, as far as they say what the model is; what they were before that, if the next
    /// look will be at the same files.
    Into(Found, Option<States>),
    /// They are what they were when the model stood for this version. None is open.
    Same {
        version: VersionId,
        path: Option<String>,
    },
}

impl State {
    /// Carries out `Effect::Resolve`.
    pub(super) fn resolve(&mut self, op: OpId, model: ModelId) {
        let seen = self.names.model(model).and_then(|record| {
            let seen = record.seen?;
            let served = self.core.view().is_served_from_memory(model, seen.version);
            served.then_some(seen)
        });
        self.look(op, model, seen);
    }

    /// Looks at a model's files, and into them unless they are as they were `seen`.
    fn look(&mut self, op: OpId, model: ModelId, seen: Option<Seen>) {
        let completion = self.report(move |outcome| Completed::Resolved { op, model, outcome });
        let catalogue = Arc::clone(&self.catalogue);
        let Some(record) = self.names.model_mut(model) else {
            return completion.lost(Lost::Dropped);
        };
        let name = record.name.clone();
        let own = self.granularities.get(&name).copied();
        let has_devices = !self.tier.devices.is_empty();
        let granularity = has_devices.then(|| self.tier.config.layout(own));
        match &mut record.origin {
            ModelOrigin::Registered => {
                let lists = self.lists.clone();
                run_in(&self.lanes, Lane::Registered, completion, move || {
                    look_at_registered(&catalogue, &name, granularity, &lists, seen)
                })
            }
            ModelOrigin::Passed(files) => {
                let files = files.take().unwrap_or_default();
                run_in(&self.lanes, Lane::Foreign, completion, move || {
                    find_passed(files, granularity).map(|found| Looked::Into(found, None))
                });
            }
        }
    }

    pub(super) fn resolved(&mut self, op: OpId, model: ModelId, outcome: Result<Looked, Fault>) {
        failpoint::pass(Point::Resolved);
        let outcome = match outcome {
            Ok(Looked::Into(found, states)) => self.looked_into(model, found, states),
            Ok(Looked::Same { version, path }) => match self.found_same(model, version, path) {
                Some(resolution) => Ok(resolution),
                // Meanwhile it went, or somebody came who needs more of it than is there.
                None => return self.look(op, model, None),
            },
            Err(fault) => Err(fault),
        };
        let passed_by = self.names.model(model).and_then(|record| record.passed_by);
        let version = outcome.as_ref().ok().map(|found| found.version);
        if let (Some(version), Some(uid)) = (version, passed_by) {
            self.names.note_passed(version, uid);
        }
        self.step(Event::Resolved { op, outcome });
        if let Some(version) = version {
            // What came too late for the decider to care, it never learnt of.
            match self.core.view().version(version) {
                None => self.names.forget_version(version),
                Some(_) => self.keep_version(version),
            }
        }
        self.supplies_stale = true;
        self.forget_if_unknown(model);
    }

    fn looked_into(
        &mut self,
        model: ModelId,
        found: Found,
        states: Option<States>,
    ) -> Result<Resolution, Fault> {
        let Some(record) = self.names.model_mut(model) else {
            return Err(fault(ErrorCode::Internal, &"the model was forgotten"));
        };
        let image = found.image.as_ref();
        record.no_image = image.and_then(|image| image.as_ref().err().copied());
        record.seen = None;
        let foreign = matches!(record.origin, ModelOrigin::Passed(_));
        let named = (Arc::clone(&record.text), record.owner);
        let resolution = self.adopt(found, named, foreign)?;
        if let Some(record) = self.names.model_mut(model) {
            let version = resolution.version;
            record.seen = states.map(|states| Seen { version, states });
        }
        Ok(resolution)
    }

    /// The version whose files are as they were, unless something has to be read of them after all.
    fn found_same(
        &mut self,
        model: ModelId,
        version: VersionId,
        path: Option<String>,
    ) -> Option<Resolution> {
        if !self.core.view().is_served_from_memory(model, version) {
            return None;
        }
        let segments = self.facts_of(version)?;
        self.names.set_path(version, path);
        Some(Resolution { version, segments })
    }

    /// Gives what was found its numbers.
    fn adopt(
        &mut self,
        found: Found,
        (label, owner): (Arc<str>, Option<u32>),
        foreign: bool,
    ) -> Result<Resolution, Fault> {
        let files_max = self.config.files_waiting_max;
        if self.names.files_waiting() + found.files.len() > files_max {
            let message = "too many opened files wait to be loaded: try again later";
            return Err(fault(ErrorCode::Exhausted, &message));
        }
        let tier = &self.tier;
        let charge = |layout: &Layout| tier.charge_for(layout);
        let version = self.names.version((&label, owner), foreign, found, charge);
        match self.facts_of(version) {
            Some(segments) => Ok(Resolution { version, segments }),
            None => {
                let twice = format!("`{label}`: two of its files are one and the same file");
                self.names.forget_version(version);
                Err(fault(ErrorCode::ShardMismatch, &twice))
            }
        }
    }

    /// What the decider is to know of a version; `None` if a file is in it twice.
    pub(super) fn facts_of(&self, version: VersionId) -> Option<Vec<SegmentFact>> {
        let record = self.names.version_of(version)?;
        let mut segments: Vec<SegmentFact> = Vec::with_capacity(record.parts.len());
        for part in record.parts.iter() {
            if segments.iter().any(|fact| fact.source == part.source) {
                return None;
            }
            segments.push(SegmentFact {
                source: part.source,
                charge: Bytes(crate::memory::charge_for(part.bytes)),
                pieces: 1,
                // The table comes first, then each file.
                part: if segments.is_empty() {
                    Part::Table
                } else {
                    Part::File
                },
            });
        }
        if let Some(Ok(image)) = &record.image {
            segments.push(SegmentFact {
                source: image.source,
                charge: Bytes(image.charge_bytes),
                pieces: image.pieces,
                part: Part::Image,
            });
        }
        Some(segments)
    }
}

fn look_at_registered(
    catalogue: &Catalogue,
    name: &ModelName,
    granularity: Option<Granularity>,
    lists: &Lists,
    seen: Option<Seen>,
) -> Result<Looked, Fault> {
    let refuse = |e: CatalogueError| fault(e.code(), &e);
    let spec = catalogue
        .find(name)
        .ok_or_else(|| refuse(catalogue.not_found(name)))?;
    let files = catalogue.open_files(&spec).map_err(refuse)?;
    let path = catalogue.path_of(&spec);
    let path = path.map(|path| path.display().to_string());
    // Before anything is read: what changes while it is read is looked into again.
    let identities = files.iter().map(|(_, source)| source.identity());
    let identities = identities.collect::<Result<Vec<_>, _>>();
    let identities = identities.map_err(|e| fault(e.code(), &e))?;
    let opened = || files.iter().zip(&identities);
    let states = States::of(opened().map(|((name, _), is)| (name, *is)), granularity);
    if let Some(Seen { version, .. }) = seen.filter(|seen| seen.states == states) {
        for ((_, source), is) in opened() {
            let listed = lists.look_up(source.as_ref(), is);
            listed.map_err(|error| fault(error.code(), &error))?;
        }
        return Ok(Looked::Same { version, path });
    }
    let mut found = look_into(files, path, granularity)?;
    look_up(&mut found, lists)?;
    Ok(Looked::Into(found, Some(states)))
}

/// What the files should be, as far as lists beside them say.
fn look_up(found: &mut Found, lists: &Lists) -> Result<(), Fault> {
    for file in &mut found.files {
        let expected = lists.look_up(file.source.as_ref(), &file.identity);
        file.expected = expected.map_err(|error| fault(error.code(), &error))?;
    }
    Ok(())
}

fn find_passed(
    passed: Vec<(FileName, PassedFd)>,
    granularity: Option<Granularity>,
) -> Result<Found, Fault> {
    let mut files: OpenFiles = Vec::with_capacity(passed.len());
    for (name, fd) in passed {
        let source = FileSource::foreign(fd, name.as_str()).map_err(|e| fault(e.code(), &e))?;
        files.push((name, Arc::new(source)));
    }
    look_into(files, None, granularity)
}

/// Reads and checks the headers; notes the state of each file.
fn look_into(
    files: OpenFiles,
    path: Option<String>,
    granularity: Option<Granularity>,
) -> Result<Found, Fault> {
    let layout = inspect(&files).map_err(|e| fault(e.code(), &e))?;
    let table = Table::parse(&layout.table).map_err(|e| fault(ErrorCode::Internal, &e))?;
    let tensors = table.len() as u64;
    let image = granularity.map(|granularity| {
        let layout = Layout::new(&table, granularity)?;
        Ok(FoundImage {
            granularity,
            layout,
        })
    });
    let found = layout.files.into_iter().filter_map(|file| {
        let (_, source) = files.get(file.position)?;
        let (name, identity, check) = (file.name, file.identity, file.check);
        Some(FoundFile {
            name,
            source: Arc::clone(source),
            identity,
            check,
            expected: None,
        })
    });
    Ok(Found {
        kind: layout.kind,
        tensors,
        files: found.collect(),
        table: layout.table,
        path,
        image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Root;
    use crate::config::ManifestPolicy;
    use crate::degraded::Degraded;
    use crate::format::testing::{index, one_tensor};
    use sha2::{Digest as _, Sha256};
    use std::fs;
    use std::path::Path;

    const FILE: &str = "m.safetensors";

    fn look(root: &Path, seen: Option<Seen>) -> Result<Looked, Fault> {
        look_by(root, None, ManifestPolicy::IfPresent, seen)
    }

    fn look_by(
        root: &Path,
        granularity: Option<Granularity>,
        policy: ManifestPolicy,
        seen: Option<Seen>,
    ) -> Result<Looked, Fault> {
        look_at(FILE, root, granularity, policy, seen)
    }

    fn look_at(
        name: &str,
        root: &Path,
        granularity: Option<Granularity>,
        policy: ManifestPolicy,
        seen: Option<Seen>,
    ) -> Result<Looked, Fault> {
        let degraded = Degraded::new();
        let path = root.to_owned();
        let roots = vec![Root { path, prefix: None }];
        let catalogue = Catalogue::new(vec![], roots, degraded.clone()).unwrap();
        let lists = Lists::new(policy, degraded);
        let name = ModelName::new(name).unwrap();
        look_at_registered(&catalogue, &name, granularity, &lists, seen)
    }

    fn seen(root: &Path) -> Seen {
        seen_by(look(root, None))
    }

    fn seen_by(looked: Result<Looked, Fault>) -> Seen {
        match looked.unwrap() {
            Looked::Into(_, states) => Seen {
                version: VersionId(7),
                states: states.unwrap(),
            },
            Looked::Same { .. } => panic!("nothing was seen before"),
        }
    }

    #[test]
    fn what_is_as_it_was_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        fs::write(&file, one_tensor("w")).unwrap();
        let seen = seen(dir.path());
        let Ok(Looked::Same { version, path }) = look(dir.path(), Some(seen)) else {
            panic!("nothing changed");
        };
        assert_eq!(version, VersionId(7));
        assert_eq!(path.as_deref(), file.to_str());
    }

    #[test]
    fn what_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join(FILE), dir.path().join("other"));
        fs::write(&file, one_tensor("w")).unwrap();
        let seen = seen(dir.path());
        // Another file of the same length, in the place of the first.
        fs::write(&other, one_tensor("x")).unwrap();
        fs::rename(&other, &file).unwrap();
        assert!(matches!(look(dir.path(), Some(seen)), Ok(Looked::Into(..))));
        fs::write(&file, "no model").unwrap();
        assert!(look(dir.path(), Some(seen)).is_err());
        fs::remove_file(&file).unwrap();
        assert!(look(dir.path(), Some(seen)).is_err());
    }

    #[test]
    fn what_must_be_listed_must_be_at_each_look() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), one_tensor("w")).unwrap();
        let seen = seen(dir.path());
        let looked = look_by(dir.path(), None, ManifestPolicy::Required, Some(seen));
        assert!(looked.is_err(), "it is not listed, and must be");
    }

    fn list(directory: &Path, file: &str, bytes: &[u8]) {
        let digest = Sha256::digest(bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(directory.join(file), bytes).unwrap();
        let listed = directory.join(format!("{file}.sha256"));
        fs::write(listed, format!("{hex}  {file}\n")).unwrap();
    }

    #[test]
    fn of_shards_each_must_be_listed_and_their_index_need_not() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m");
        fs::create_dir(&model).unwrap();
        let shards = [("a.safetensors", "x"), ("b.safetensors", "y")];
        for (shard, tensor) in shards {
            list(&model, shard, &one_tensor(tensor));
        }
        let weights = shards.map(|(shard, tensor)| (tensor, shard));
        let map = model.join("model.safetensors.index.json");
        fs::write(map, index(&weights)).unwrap();
        let required = ManifestPolicy::Required;
        let look = |seen| look_at("m", dir.path(), None, required, seen);
        let seen = seen_by(look(None));
        assert!(matches!(look(Some(seen)), Ok(Looked::Same { .. })));
        fs::remove_file(model.join("b.safetensors.sha256")).unwrap();
        assert!(
            look(Some(seen)).is_err(),
            "the files are the same, and one is not listed"
        );
        assert!(look(None).is_err());
    }

    #[test]
    fn a_model_that_is_called_like_an_index_must_be_listed() {
        let (dir, name) = (tempfile::tempdir().unwrap(), "pytorch_model.bin.index.json");
        fs::write(dir.path().join(name), "no index of safetensors").unwrap();
        let looked = look_at(name, dir.path(), None, ManifestPolicy::Required, None);
        assert!(looked.is_err());
        list(dir.path(), name, b"no index of safetensors");
        let looked = look_at(name, dir.path(), None, ManifestPolicy::Required, None);
        assert!(matches!(looked, Ok(Looked::Into(..))));
    }

    #[test]
    fn another_way_to_lay_it_out_is_another_look() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), one_tensor("w")).unwrap();
        let model = Some(Granularity::Model);
        let seen = seen_by(look_by(dir.path(), model, ManifestPolicy::Off, None));
        let tensor = Some(Granularity::Tensor);
        let looked = look_by(dir.path(), tensor, ManifestPolicy::Off, Some(seen));
        assert!(matches!(looked, Ok(Looked::Into(..))));
    }
}
