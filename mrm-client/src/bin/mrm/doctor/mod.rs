//! `mrm doctor`.
use crate::{args::Global, failure::Failure, out::Out};
pub(crate) async fn run(_global: &Global, _out: Out) -> Result<(), Failure> {
    Err(Failure::Unhealthy(0))
}
