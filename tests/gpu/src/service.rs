//! The daemon and its clients: every byte, what clients cost, and who may die.

use crate::Anything;
use crate::Place;
use crate::agent::Agent;
use crate::daemon::Daemon;
use crate::model_file::ModelFile;
use crate::report::Recorder;
use crate::scale::{MIB, Scale};
use crate::wire::{Command, Poke};
use std::time::Duration;

/// What N clients may add, each, of the model.
const SHARE_MAX: f64 = 0.01;
/// How long a load from disk may take.
const OPEN_TIME: Duration = Duration::from_secs(150);
/// What nobody counts: the driver's own rounding and caches.
const SLACK_BYTES: u64 = 64 * MIB;

/// The step.
pub(crate) fn step(scale: Scale, place: &Place, recorder: &mut Recorder) -> Anything<()> {
    let model = ModelFile::write(&place.scratch, "service", scale.service_bytes(), 200)?;
    let mut watcher = Agent::ready()?;
    let before = watcher.free_bytes()?;
    let mut daemon = Daemon::start(&place.bundle, std::slice::from_ref(&model))?;
    let idle = watcher.free_bytes()?;
    facts(&daemon, recorder)?;
    recorder.table("Device memory", &["what", "MiB"])?;
    recorder.row(&["the daemon without models".into(), mib(before, idle).into()])?;

    let mut holder = client(&daemon)?;
    let with_context = watcher.free_bytes()?;
    let opened = open(&mut holder, &model)?;
    recorder.check("the first open loads", opened == "loaded", opened)?;
    let loaded = watcher.free_bytes()?;
    recorder.row(&[
        "the model, opened by one client".into(),
        mib(with_context, loaded).into(),
    ])?;
    recorder.row(&["the model's file".into(), (model.bytes / MIB).into()])?;
    compare(recorder, "the client that loaded", &mut holder, &model)?;

    for count in scale.clients() {
        many(*count, &daemon, &model, &mut watcher, recorder)?;
    }
    let missing = watcher.await_free_bytes(loaded)?;
    let all: usize = scale.clients().iter().sum();
    let what = format!("SIGKILL of {all} clients gives back what they cost");
    freed(recorder, &what, missing)?;
    stray_write(scale, &daemon, &model, &mut holder, recorder)?;

    holder.kill()?;
    let none = daemon.await_no_leases()?;
    recorder.check("killed clients leave no lease", none, format!("{none}"))?;
    daemon.evict(&model.name)?;
    let missing = watcher.await_free_bytes(idle)?;
    freed(
        recorder,
        "an evicted model gives back its device memory",
        missing,
    )?;

    // The daemon dies under a client.
    let mut survivor = client(&daemon)?;
    open(&mut survivor, &model)?;
    daemon.kill()?;
    compare(
        recorder,
        "a client whose daemon was killed",
        &mut survivor,
        &model,
    )?;
    survivor.kill()?;
    let missing = watcher.await_free_bytes(before)?;
    freed(
        recorder,
        "SIGKILL of daemon and client leaves the baseline",
        missing,
    )
}

/// A client in a process of its own, connected, with its context.
pub(crate) fn client(daemon: &Daemon) -> Anything<Agent> {
    let mut client = Agent::ready()?;
    client.wait_up_to(OPEN_TIME)?;
    let socket = daemon.socket();
    client.tell(&Command::Connect { socket })?;
    Ok(client)
}

fn open(client: &mut Agent, model: &ModelFile) -> Result<String, String> {
    let name = model.name.clone();
    let on_device = true;
    let reply = client.tell(&Command::OpenModel { name, on_device })?;
    Ok(reply.text)
}

/// What the daemon says of its device.
fn facts(daemon: &Daemon, recorder: &mut Recorder) -> Anything<()> {
    let device = daemon.device()?;
    for name in [
        "sharing",
        "sharing_why",
        "granularity",
        "context_bytes",
        "registration",
    ] {
        recorder.fact(&format!("mrmd: {name}"), device[name].to_string())?;
    }
    let ready = device["state"] == "ready";
    recorder.check(
        "the daemon's device is ready",
        ready,
        device["cause"].to_string(),
    )
}

fn compare(
    recorder: &mut Recorder,
    who: &str,
    client: &mut Agent,
    model: &ModelFile,
) -> Anything<()> {
    let file = model.path.clone();
    let same = client.tell(&Command::CompareModel { file });
    let same = same.map(|_| format!("{} bytes", model.bytes));
    recorder.check_ok(&format!("every byte is right: {who}"), same)
}

fn freed(recorder: &mut Recorder, what: &str, missing: u64) -> Anything<()> {
    let detail = format!("{} MiB are missing", missing / MIB);
    recorder.check(what, missing <= SLACK_BYTES, detail)
}

/// So many clients more, whose contexts are not counted.
fn many(
    count: usize,
    daemon: &Daemon,
    model: &ModelFile,
    watcher: &mut Agent,
    recorder: &mut Recorder,
) -> Anything<()> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(client(daemon)?);
    }
    let before = watcher.free_bytes()?;
    let mut hits = 0;
    for client in &mut clients {
        hits += usize::from(open(client, model)? == "hit");
    }
    let added = before.saturating_sub(watcher.free_bytes()?);
    let share = added as f64 / count as f64 / model.bytes as f64;
    let what = format!("{count} clients more");
    recorder.row(&[what.clone().into(), (added as f64 / MIB as f64).into()])?;
    recorder.check(&format!("{what} hit"), hits == count, format!("{hits} did"))?;
    let name = format!("device memory that each of {count} clients adds, of the model");
    recorder.at_most(&name, share, SHARE_MAX)?;
    if let Some(last) = clients.last_mut() {
        compare(
            recorder,
            &format!("the last of {count} clients"),
            last,
            model,
        )?;
    }
    clients.into_iter().try_for_each(Agent::kill)
}

/// A client writes through its mapping; another, the daemon and a new one are unharmed.
fn stray_write(
    scale: Scale,
    daemon: &Daemon,
    model: &ModelFile,
    holder: &mut Agent,
    recorder: &mut Recorder,
) -> Anything<()> {
    let mut writer = client(daemon)?;
    open(&mut writer, model)?;
    let mut poke = |way| writer.tell(&Command::PokeModel(way));
    let mut wrote = match scale {
        Scale::Fake => poke(Poke::Fill),
        Scale::Full | Scale::Quick => poke(Poke::Kernel),
    };
    // A kernel that was not loaded has written nothing.
    if let Err(error) = &wrote
        && error.starts_with("module_")
    {
        recorder.skip("a kernel that writes", error.clone())?;
        wrote = poke(Poke::Fill);
    }
    let detail = wrote.as_ref().err().cloned().unwrap_or_default();
    recorder.check(
        "a client's write through its mapping fails",
        wrote.is_err(),
        detail,
    )?;
    compare(recorder, "a client beside one that wrote", holder, model)?;
    let mut next = client(daemon)?;
    open(&mut next, model)?;
    compare(
        recorder,
        "a client that came after one that wrote",
        &mut next,
        model,
    )
}

fn mib(before: u64, after: u64) -> f64 {
    before.saturating_sub(after) as f64 / MIB as f64
}
