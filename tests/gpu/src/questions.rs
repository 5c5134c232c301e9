//! The questions about sharing on which sources disagree, asked of this driver.

use crate::Anything;
use crate::agent::Agent;
use crate::report::Recorder;
use crate::scale::{MIB, Scale};
use crate::smi;
use crate::wire::{Command, How, Poke};
use std::process::Stdio;

/// The step.
pub(crate) fn step(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let mut watcher = Agent::ready()?;
    let free = watcher.free_bytes()?;
    namespaces(scale, recorder)?;
    stray_writes(scale, recorder)?;
    dead_exporters(scale, recorder)?;
    attribution(scale, recorder)?;
    let missing = watcher.await_free_bytes(free)?;
    recorder.check(
        "device memory is at the baseline after all that was killed",
        missing <= 64 * MIB,
        format!("{} MiB are missing", missing / MIB),
    )
}

/// How to start a process in new namespaces here, if that is allowed.
fn unshare(flags: &'static [&'static str]) -> Result<Vec<&'static str>, String> {
    let tries = [
        &["unshare", "--kill-child"][..],
        &["unshare", "--user", "--map-root-user", "--kill-child"],
    ];
    let mut why = String::new();
    for first in tries {
        let words = [first, flags].concat();
        let mut command = std::process::Command::new("unshare");
        command.args(&words[1..]).arg("true").stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok(words),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

/// 1: importers in other namespaces.
fn namespaces(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let cases: [(&str, &[&str]); 4] = [
        ("the exporter's", &[]),
        ("another IPC namespace", &["--ipc", "--fork"]),
        (
            "another PID namespace",
            &["--pid", "--mount-proc", "--fork"],
        ),
        (
            "other PID and IPC namespaces",
            &["--pid", "--mount-proc", "--ipc", "--fork"],
        ),
    ];
    recorder.table(
        "Importing in other namespaces",
        &["importer in", "vmm", "legacy"],
    )?;
    let mut lines = Vec::new();
    let mut exporter = Agent::ready()?;
    for (name, flags) in cases {
        let words = match flags {
            [] => Ok(Vec::new()),
            flags => unshare(flags),
        };
        let words = match words {
            Ok(words) => words,
            Err(why) => {
                let why = format!("could not be asked: {why}");
                recorder.row(&[name.into(), why.clone().into(), why.clone().into()])?;
                lines.push(format!("{name}: {why}"));
                continue;
            }
        };
        let mut said = Vec::new();
        for how in How::BOTH {
            let came = import_below(&words, how, scale, &mut exporter);
            let text = came
                .clone()
                .map_or_else(|error| error, |()| "works".to_owned());
            if how == How::Vmm {
                let what = format!("vmm imports in {name}");
                recorder.check_ok(&what, came.map(|()| "every byte right".to_owned()))?;
            }
            said.push(text);
        }
        recorder.row(&[name.into(), said[0].clone().into(), said[1].clone().into()])?;
        lines.push(format!("{name}: {}", said[1]));
    }
    recorder.answer(1, format!("legacy handles in {}", lines.join("; in ")))
}

fn import_below(
    words: &[&str],
    how: How,
    scale: Scale,
    exporter: &mut Agent,
) -> Result<(), String> {
    let mut importer = Agent::start_below(words).map_err(|error| error.to_string())?;
    importer.tell(&Command::Retain)?;
    let parcel = exporter.lend(how, scale.lent_bytes(), 1)?;
    importer.open(&parcel)?;
    importer.check(1)?;
    importer.tell(&Command::Drop).map(drop)
}

/// 2: writes through mappings for reading, by three ways to write, and by one who allows himself.
fn stray_writes(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let columns = ["write by", "the write", "the writer's context", "others"];
    recorder.table("Writing through a read-only mapping", &columns)?;
    let mut exporter = Agent::ready()?;
    let mut reader = Agent::ready()?;
    let parcel = exporter.lend(How::Vmm, scale.lent_bytes(), 2)?;
    reader.open(&parcel)?;
    let mut lines = Vec::new();
    let mut ways = vec![(Poke::Fill, "the driver's fill"), (Poke::Copy, "a copy")];
    if scale == Scale::Fake {
        recorder.skip("a kernel that writes", "the fake driver runs no kernels")?;
    } else {
        ways.push((Poke::Kernel, "a kernel"));
    }
    for (poke, name) in ways {
        let mut writer = Agent::ready()?;
        writer.open(&parcel)?;
        let wrote = writer.poke(poke).map(|()| "went through".to_owned());
        if let Err(error) = &wrote
            && error.starts_with("module_")
        {
            recorder.skip("a kernel that writes", error.clone())?;
            continue;
        }
        let wrote = wrote.unwrap_or_else(|error| error);
        let after = writer.tell(&Command::Synchronize);
        let after = after.map_or_else(|error| error, |_| "alive".to_owned());
        let others = reader.check(2).and_then(|()| exporter.check(2));
        let alive = others
            .clone()
            .map_or_else(|error| error, |()| "unharmed".to_owned());
        recorder.row(&[
            name.into(),
            wrote.clone().into(),
            after.clone().into(),
            alive.into(),
        ])?;
        let what = format!("a write through a read-only mapping by {name} harms nobody else");
        recorder.check_ok(&what, others.map(|()| format!("the write: {wrote}")))?;
        lines.push(format!("{name}: {wrote}, the writer's context {after}"));
    }
    let mut writer = Agent::ready()?;
    writer.open(&parcel)?;
    let allowed = writer.tell(&Command::AllowWriting).map(drop);
    let allowed = allowed.and_then(|()| writer.poke(Poke::Copy));
    let changed = reader.check(2).is_err();
    let upgrade = match (allowed, changed) {
        (Ok(()), true) => {
            "an importer can give itself write access, and others see its write".to_owned()
        }
        (Ok(()), false) => {
            "an importer can give itself write access, but others do not see its write".to_owned()
        }
        (Err(why), true) => format!("write access was refused ({why}), yet bytes changed"),
        (Err(why), false) => format!("an importer cannot give itself write access ({why})"),
    };
    let mps = if std::path::Path::new("/tmp/nvidia-mps/control").exists()
        || std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").is_some()
    {
        "this was with MPS"
    } else {
        "with MPS it could not be asked: no MPS control daemon runs here"
    };
    recorder.answer(2, format!("{}; {upgrade}; {mps}", lines.join("; ")))
}

/// 3: exporters that are killed, and a descriptor in a process without CUDA.
fn dead_exporters(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let mut lines = Vec::new();
    for how in How::BOTH {
        let mut exporter = Agent::ready()?;
        let mut importer = Agent::ready()?;
        let parcel = exporter.lend(how, scale.lent_bytes(), 3)?;
        importer.open(&parcel)?;
        importer.check(3)?;
        exporter.kill()?;
        let kept = importer.check(3);
        let text = kept
            .clone()
            .map_or_else(|error| error, |()| "keeps every byte".to_owned());
        lines.push(format!("{}: an importer {text}", how.name()));
        if how == How::Legacy {
            continue;
        }
        let what = "a vmm importer keeps the bytes of a killed exporter";
        recorder.check_ok(what, kept.map(|()| "every byte right".to_owned()))?;
        // Now only this process, which has no CUDA, keeps the memory: by the descriptor.
        importer.kill()?;
        let mut next = Agent::ready()?;
        let again = next.open(&parcel).and_then(|()| next.check(3));
        let text = again.clone().map_or_else(
            |error| format!("cannot be imported again ({error})"),
            |()| "keeps every byte, and a new process imports it".to_owned(),
        );
        lines.push(format!("a descriptor in a process without CUDA {text}"));
        let what = "a descriptor alone keeps device memory, and is imported again";
        recorder.check_ok(what, again.map(|()| "every byte right".to_owned()))?;
    }
    recorder.answer(3, lines.join("; "))
}

/// 8: whom `nvidia-smi` charges.
fn attribution(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    if let Err(why) = smi::used_by() {
        recorder.skip("whom nvidia-smi charges", why.clone())?;
        return recorder.answer(8, format!("could not be asked: {why}"));
    }
    let columns = ["when", "used MiB", "exporter MiB", "importer MiB"];
    recorder.table("Whom nvidia-smi charges", &columns)?;
    let mut lines = Vec::new();
    let mut exporter = Agent::ready()?;
    let mut importer = Agent::ready()?;
    let pids = (exporter.pid(), importer.pid());
    let mut look = |when: &str| -> Anything<()> {
        let (all, by) = (smi::used_mib()?, smi::used_by()?);
        let of = |pid| {
            by.get(&pid)
                .cloned()
                .unwrap_or_else(|| "not listed".to_owned())
        };
        let (theirs, ours) = (of(pids.0), of(pids.1));
        lines.push(format!(
            "{when}: {all} used, exporter {theirs}, importer {ours}"
        ));
        recorder.row(&[when.into(), all.into(), theirs.into(), ours.into()])
    };
    look("both have a context")?;
    let parcel = exporter.lend(How::Vmm, scale.lent_bytes(), 8)?;
    look("the exporter has allocated")?;
    importer.open(&parcel)?;
    look("the importer has mapped")?;
    drop(parcel);
    exporter.kill()?;
    look("the exporter was killed")?;
    importer.kill()?;
    look("the importer was killed")?;
    let lent = scale.lent_bytes() / MIB;
    recorder.answer(8, format!("vmm, {lent} MiB lent: {}", lines.join("; ")))
}
