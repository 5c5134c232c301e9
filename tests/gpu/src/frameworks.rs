//! Weights in the hands of torch, CuPy and plain Python.

use crate::daemon::Daemon;
use crate::model_file::ModelFile;
use crate::report::Recorder;
use crate::scale::Scale;
use crate::{Anything, Place, python};

/// The step.
pub(crate) fn step(scale: Scale, place: &Place, recorder: &mut Recorder) -> Anything<()> {
    let bytes = scale.model_bytes().first().copied().unwrap_or(1_000_000);
    let model = ModelFile::write(&place.scratch, "frameworks", bytes, 40)?;
    let daemon = Daemon::start(&place.bundle, std::slice::from_ref(&model))?;
    let (socket, file) = (daemon.socket(), model.path.clone());
    let arguments = [
        ("--socket", &*socket.to_string_lossy()),
        ("--model", model.name.as_str()),
        ("--file", &*file.to_string_lossy()),
    ];
    let done = python::run(place, "frameworks", &arguments, recorder);
    let none = daemon.await_no_leases()?;
    recorder.check(
        "a Python program that ends leaves no lease",
        none,
        format!("{none}"),
    )?;
    done
}
