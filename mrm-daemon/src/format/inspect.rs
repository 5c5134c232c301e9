//! Deciding what a set of files is.

use super::{FormatError, Layout};
use crate::source::Source;
use mrm_proto::name::FileName;
use std::sync::Arc;

/// Finds out what `files` are, reading headers only.
///
/// # Errors
/// When they do not belong together, or one of them breaks a rule of its format.
pub fn inspect(_files: &[(FileName, Arc<dyn Source>)]) -> Result<Layout, FormatError> {
    Err(FormatError::FileSet { reason: "not implemented".into() })
}
