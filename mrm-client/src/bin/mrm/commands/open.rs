//! `mrm open`.

use crate::args::{Global, Open};
use crate::failure::Failure;
use crate::out::Out;

/// Opens a model.
pub(super) fn run(_open: &Open, _global: &Global, _out: Out) -> Result<u8, Failure> {
    Err(Failure::Usage("not built yet".into()))
}
