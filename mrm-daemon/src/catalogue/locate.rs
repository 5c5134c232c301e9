//! From a place in the catalogue to opened files.

use super::{Catalogue, CatalogueError, OpenFiles, Scan};
use crate::degraded::Degraded;
use mrm_proto::name::ModelName;
use std::path::Path;

pub(super) fn open_entry(path: &Path, _d: &Degraded) -> Result<OpenFiles, CatalogueError> {
    Err(CatalogueError::NotAModel { path: path.to_owned() })
}

impl Catalogue {
    pub(super) fn open_below(
        &self,
        name: &ModelName,
        _below: &[(usize, String)],
    ) -> Result<OpenFiles, CatalogueError> {
        Err(self.not_found(name))
    }

    pub(super) fn remember(&self, _scan: &Scan) {}
}
