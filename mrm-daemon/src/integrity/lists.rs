//! Files of the catalogue against the lists beside them.

use super::manifest::{Expected, ManifestError, expected};
use super::{CHUNK_BYTES, Sums};
use crate::config::ManifestPolicy;
use crate::degraded::Degraded;
use crate::format::is_index;
use crate::source::{Identity, Source, SourceError};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::sync::Arc;

/// What lists mean, and what is known of files. Clones share what is known.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    policy: ManifestPolicy,
    sums: Sums,
    degraded: Degraded,
}

/// A file that a list names.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// What it should be.
    pub(crate) expected: Arc<Expected>,
    /// What was resolved.
    pub(crate) identity: Identity,
    /// Its path.
    pub(crate) file: String,
}

impl Lists {
    pub(crate) fn new(policy: ManifestPolicy, degraded: Degraded) -> Self {
        let sums = Sums::default();
        Self {
            policy,
            sums,
            degraded,
        }
    }

    /// What a file should be, if a list says. Where lists are required, the file is read and
    /// compared, unless that was done before. Blocks.
    ///
    /// # Errors
    /// When it is known to be another file, or it must be listed and is not, or cannot be read.
    pub(crate) fn look_up(
        &self,
        source: &dyn Source,
        identity: &Identity,
    ) -> Result<Option<Arc<Expected>>, ManifestError> {
        let file = Path::new(source.label());
        let required = match self.policy {
            ManifestPolicy::Off => return Ok(None),
            ManifestPolicy::IfPresent => false,
            ManifestPolicy::Required => true,
        };
        let listed = match expected(file) {
            Err(error) if !required => {
                let cure = "correct the list of digests, or remove it";
                self.degraded.report("manifest", error.to_string(), cure);
                return Ok(None);
            }
            listed => listed?,
        };
        let Some(listed) = listed else {
            // What an index names is looked at one by one.
            return match required && !is_index(source.label()) {
                true => Err(ManifestError::Missing {
                    file: file.to_owned(),
                }),
                false => Ok(None),
            };
        };
        let found = match self.sums.get(identity) {
            None if required => Some(self.sum(source, identity)?),
            known => known,
        };
        match found {
            Some(found) if found != listed.sha256 => {
                Err(ManifestError::mismatch(file, &listed, &found))
            }
            Some(_) | None => Ok(Some(Arc::new(listed))),
        }
    }

    /// Whether a file is known to be what it should be.
    pub(crate) fn knows(&self, listed: &Listed) -> bool {
        self.sums.get(&listed.identity) == Some(listed.expected.sha256)
    }

    /// Takes note of what a file is; whether it is what it should be.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn found(&self, listed: &Listed, sha256: [u8; 32]) -> Result<(), ManifestError> {
        self.sums.insert(listed.identity, sha256);
        if sha256 == listed.expected.sha256 {
            return Ok(());
        }
        let file = Path::new(&listed.file);
        Err(ManifestError::mismatch(file, &listed.expected, &sha256))
    }

    fn sum(&self, source: &dyn Source, identity: &Identity) -> Result<[u8; 32], SourceError> {
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        loop {
            let read = source.read_at(at, &mut chunk)?;
            if read == 0 {
                break;
            }
            hasher.update(&chunk[..read]);
            at += read as u64;
        }
        if source.identity()? != *identity {
            let name = source.label().to_owned();
            return Err(SourceError::Changed { name });
        }
        let sha256 = hasher.finalize().into();
        self.sums.insert(*identity, sha256);
        Ok(sha256)
    }
}
