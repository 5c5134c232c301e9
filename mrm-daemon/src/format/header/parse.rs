//! From JSON to facts, without building a tree.

use super::{Header, HeaderProblem};

pub(super) fn parse(_text: &str) -> Result<Header, HeaderProblem> {
    Ok(Header::default())
}
