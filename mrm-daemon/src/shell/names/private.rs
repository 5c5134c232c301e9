//! Copies on devices that one user has for himself.
//!
//! A model that such a user opens on a device has a number of its own, and so have what it stands for,
//! its image, and the content of that: to the decider it is another model, which it never lends to
//! anybody else. Its files and its table in host memory are those that everybody has.

use super::{ModelOrigin, ModelRecord, Names};
use mrm_core::id::{ModelId, VersionId};
use mrm_proto::name::{FileName, ModelName};
use std::sync::Arc;

impl Names {
    /// The id of a registered name for the user `uid` alone, known or new.
    pub(in crate::shell) fn private(&mut self, name: &ModelName, uid: u32) -> ModelId {
        let key = (name.clone(), uid);
        if let Some(&model) = self.by_owner.get(&key) {
            return model;
        }
        let model = ModelId(self.next());
        self.by_owner.insert(key, model);
        let record = ModelRecord {
            name: name.clone(),
            text: label_of(name.as_str(), uid),
            origin: ModelOrigin::Registered,
            owner: Some(uid),
            passed_by: None,
            no_image: None,
            seen: None,
        };
        self.models.insert(model, Box::new(record));
        model
    }

    /// A new id for files that a client of the user `uid` passed, for that user alone if they are
    /// `private`.
    pub(in crate::shell) fn passed(
        &mut self,
        label: ModelName,
        files: Vec<(FileName, crate::source::PassedFd)>,
        (uid, private): (u32, bool),
    ) -> ModelId {
        let owner = private.then_some(uid);
        let model = ModelId(self.next());
        let text = match owner {
            Some(uid) => label_of(label.as_str(), uid),
            None => label.to_shared(),
        };
        let record = ModelRecord {
            name: label,
            text,
            origin: ModelOrigin::Passed(Some(files)),
            owner,
            passed_by: Some(uid),
            no_image: None,
            seen: None,
        };
        self.models.insert(model, Box::new(record));
        model
    }

    /// The registered models that users have for themselves.
    pub(in crate::shell) fn private_models(&self) -> impl Iterator<Item = ModelId> {
        self.by_owner.values().copied()
    }

    /// The model that a version is called after, if it is known and not passed.
    pub(in crate::shell) fn model_of(&self, version: VersionId) -> Option<ModelId> {
        let record = self.versions.get(&version)?;
        let Some(uid) = record.owner else {
            return self.find(&ModelName::new(&*record.label).ok()?);
        };
        let name = ModelName::new(name_of(&record.label, uid)?).ok()?;
        self.by_owner.get(&(name, uid)).copied()
    }

    /// Whether a client of the user `uid` could have been lent a version: what is in the catalogue is
    /// for everybody who may connect, what was passed for those who passed it, and what one user has
    /// for himself is for nobody else.
    pub(in crate::shell) fn is_for(&self, version: VersionId, uid: u32) -> bool {
        self.versions.get(&version).is_some_and(|record| {
            let passed = !record.foreign || record.passed_by.contains(&uid);
            passed && record.owner.is_none_or(|owner| owner == uid)
        })
    }

    /// A client of the user `uid` passed the files of a version.
    pub(in crate::shell) fn note_passed(&mut self, version: VersionId, uid: u32) {
        if let Some(record) = self.versions.get_mut(&version)
            && record.passed_by.insert(uid)
        {
            self.news.insert(version);
        }
    }

    /// Whether other users may have been lent a version than when this was asked last.
    pub(in crate::shell) fn take_news_of(&mut self, version: VersionId) -> bool {
        self.news.remove(&version)
    }
}

/// What people call the model `name` of the user `uid`.
fn label_of(name: &str, uid: u32) -> Arc<str> {
    Arc::from(format!("{name} (uid {uid})"))
}

/// The name of what is called that for the user `uid`.
pub(in crate::shell) fn name_of(label: &str, uid: u32) -> Option<&str> {
    label.strip_suffix(&format!(" (uid {uid})"))
}
