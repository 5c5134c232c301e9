//! What a context costs, and what can be done without one.

use crate::Anything;
use crate::agent::{Agent, Parcel};
use crate::report::Recorder;
use crate::scale::{MIB, Scale};
use crate::smi;
use crate::wire::Command;

/// The step.
pub(crate) fn step(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    recorder.table("Device memory that a process costs", &["process", "MiB"])?;
    let before = smi::used_mib();
    let mut watcher = Agent::ready()?;
    match (before, smi::used_mib()) {
        (Ok(before), Ok(after)) => {
            let cost = after.saturating_sub(before);
            recorder.row(&["the first with a context (nvidia-smi)".into(), cost.into()])?;
        }
        (Err(why), _) | (_, Err(why)) => recorder.skip("what nvidia-smi says of contexts", why)?,
    }
    let free = watcher.free_bytes()?;
    let second = Agent::ready()?;
    let context = free.saturating_sub(watcher.free_bytes()?);
    recorder.row(&["another with a context".into(), mib(context).into()])?;
    drop(second);
    let missing = watcher.await_free_bytes(free)?;
    recorder.check(
        "a killed process gives its context's memory back",
        missing <= 64 * MIB,
        format!("{} MiB are missing", missing / MIB),
    )?;
    let without = without_context(scale, recorder, &mut watcher)?;
    let context = mib(context);
    recorder.answer(5, format!("{without}; a context costs {context:.0} MiB"))
}

/// Creates and exports in a process that has no context; what came of it, in words.
fn without_context(scale: Scale, recorder: &mut Recorder, watcher: &mut Agent) -> Anything<String> {
    let bytes = scale.lent_bytes().next_multiple_of(2 * MIB);
    let free = watcher.free_bytes()?;
    let mut maker = Agent::start()?;
    let made = maker.ask_with(&Command::CreateWithoutContext { bytes }, None);
    let (_, fd) = match made {
        Ok(made) => made,
        Err(error) => return Ok(format!("cuMemCreate without a context fails ({error})")),
    };
    let fd = fd.ok_or("no descriptor came")?;
    let taken = free.saturating_sub(watcher.free_bytes()?);
    let extra = mib(taken.saturating_sub(bytes));
    recorder.row(&[
        "one that creates and exports, without a context".into(),
        extra.into(),
    ])?;
    let opened = watcher.open(&Parcel::of_vmm(bytes, fd));
    watcher.tell(&Command::Drop)?;
    let opened = match opened {
        Ok(()) => "another process maps it".to_owned(),
        Err(error) => format!("another process cannot map it ({error})"),
    };
    Ok(format!(
        "cuMemCreate and export need no context: {opened}, and beside the memory itself the \
         process costs {extra:.0} MiB"
    ))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
