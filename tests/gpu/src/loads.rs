//! How long a client waits for its weights: on the device, in host memory, on disk; beside the
//! stages alone, and beside a program without a manager.

use crate::Anything;
use crate::Place;
use crate::agent::Agent;
use crate::daemon::Daemon;
use crate::model_file::ModelFile;
use crate::python::Python;
use crate::report::Recorder;
use crate::scale::Scale;
use crate::service;
use crate::stats::timed_us;
use crate::wire::{Command, How};
use std::time::{Duration, Instant};

/// A hit beside import, map and access of as much.
const HIT_MAX: f64 = 1.3;
/// A miss beside the slowest of its stages.
const MISS_MAX: f64 = 1.15;
/// How fast a miss is beside no manager.
const SPEED_MIN: f64 = 0.95;

/// The step.
pub(crate) fn step(scale: Scale, place: &Place, recorder: &mut Recorder) -> Anything<()> {
    let start = Instant::now();
    let mut models = Vec::new();
    for bytes in scale.model_bytes() {
        let name = format!("{}-MB", bytes / 1_000_000);
        match ModelFile::write(&place.scratch, &name, *bytes, 300) {
            Ok(model) => models.push(model),
            Err(error) => recorder.skip(&format!("a model of {name}"), error.to_string())?,
        }
    }
    let mut opened = Vec::new();
    for model in &models {
        opened.push(model.clone());
        if model.bytes < 2_000_000_000 {
            opened.extend([model.by("block"), model.by("tensor")]);
        }
    }
    let daemon = Daemon::start(&place.bundle, &opened)?;
    let plain = match Python::start(place, "load_file") {
        Ok(plain) => Some(plain),
        Err(why) => {
            recorder.skip("safetensors.torch.load_file(device=\"cuda\")", why)?;
            None
        }
    };
    let mut loads = Loads {
        client: service::client(&daemon)?,
        exporter: Agent::ready()?,
        daemon,
        plain,
        recorder,
        scale,
        end: start + Duration::from_secs(place.time_s),
    };
    loads.hits(&opened)?;
    loads.misses(&models)
}

struct Loads<'r> {
    client: Agent,
    exporter: Agent,
    daemon: Daemon,
    plain: Option<Python>,
    recorder: &'r mut Recorder,
    scale: Scale,
    /// When the step is stopped.
    end: Instant,
}

/// Seconds of one way to the weights.
#[derive(Clone, Copy)]
struct Took {
    miss: f64,
    host_hit: f64,
    disk: f64,
    fill: f64,
    upload: f64,
    plain_cold: Option<f64>,
    plain_warm: Option<f64>,
}

impl Loads<'_> {
    /// Opens of what is on the device, in turns with bare imports of as much in one allocation.
    fn hits(&mut self, models: &[ModelFile]) -> Anything<()> {
        let columns = [
            "MB",
            "tensors",
            "put together by",
            "rounds",
            "bare p50 us",
            "open p50 us",
            "open p99 us",
            "open / bare",
            "close p50 us",
        ];
        self.recorder
            .table("Opening what is on the device", &columns)?;
        for model in models {
            let mut holder = service::client(&self.daemon)?;
            open(&mut holder, model)?;
            // As much memory as the model has there, of which the daemon has its own.
            let parcel = {
                self.exporter.tell(&Command::Drop)?;
                let (how, bytes) = (How::Vmm, model.bytes);
                let (count, seed) = (1, None);
                self.exporter.tell(&Command::Allocate {
                    how,
                    bytes,
                    count,
                    seed,
                })?;
                self.exporter.export(0, how, bytes)?
            };
            self.client.tell(&Command::Drop)?;
            self.client.take(&parcel)?;
            let (name, rounds) = (model.name.clone(), self.scale.rounds());
            let reply = self.client.tell(&Command::OpenRounds { name, rounds })?;
            let seen = reply.attached.ok_or("no samples")?;
            self.client.tell(&Command::Drop)?;
            self.exporter.tell(&Command::Drop)?;
            let ratio = seen.library.p50_us / seen.bare.p50_us;
            self.recorder.row(&[
                (model.bytes / 1_000_000).into(),
                model.tensors.into(),
                model.granularity.into(),
                seen.library.n.into(),
                seen.bare.p50_us.into(),
                seen.library.p50_us.into(),
                seen.library.p99_us.into(),
                ratio.into(),
                seen.close.p50_us.into(),
            ])?;
            let name = format!(
                "device hit of {}, beside import, map and access",
                model.name
            );
            if model.granularity == "model" {
                self.recorder.at_most(&name, ratio, HIT_MAX)?;
            }
            holder.kill()?;
            self.daemon.await_no_leases()?;
            self.daemon.evict(&model.name)?;
        }
        Ok(())
    }

    fn misses(&mut self, models: &[ModelFile]) -> Anything<()> {
        let columns = [
            "MB",
            "cold miss s",
            "host hit s",
            "disk alone s",
            "memory alone s",
            "device alone s",
            "miss / slowest stage",
            "sum of stages s",
            "load_file cold s",
            "load_file warm s",
        ];
        self.recorder
            .table("Opening what is not on the device", &columns)?;
        // Seconds of a round for each byte, as the last model had it.
        let mut pace = 0.0;
        for model in models {
            let expected_s = pace * model.bytes as f64;
            if Instant::now() + Duration::from_secs_f64(expected_s) > self.end {
                let why = format!("it would take {expected_s:.0} s, which are not left");
                self.recorder
                    .skip(&format!("loading {}", model.name), why)?;
                continue;
            }
            if let Err(error) = model.make_cold() {
                self.recorder
                    .skip(&format!("a cold {}", model.name), error.to_string())?;
                continue;
            }
            let (took, us) = timed_us(|| self.best_of_rounds(model));
            let took = took?;
            pace = us / 1e6 / model.bytes as f64 / rounds_of(model) as f64;
            self.judge(model, took)?;
        }
        Ok(())
    }

    /// The best of several rounds, of each figure: what else the machine does only adds.
    fn best_of_rounds(&mut self, model: &ModelFile) -> Anything<Took> {
        let mut best = self.round(model)?;
        for _ in 1..rounds_of(model) {
            let took = self.round(model)?;
            let least = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.min(b));
            best = Took {
                miss: best.miss.min(took.miss),
                host_hit: best.host_hit.min(took.host_hit),
                disk: best.disk.min(took.disk),
                fill: best.fill.min(took.fill),
                upload: best.upload.min(took.upload),
                plain_cold: least(best.plain_cold, took.plain_cold),
                plain_warm: least(best.plain_warm, took.plain_warm),
            };
        }
        Ok(best)
    }

    fn round(&mut self, model: &ModelFile) -> Anything<Took> {
        let name = &model.name;
        model.make_cold()?;
        let miss = self.timed_open(model, "loaded")?;
        self.daemon.evict(name)?;
        self.daemon.mrm(&["warm", name, "--wait", "120s"])?;
        let host_hit = self.timed_open(model, "promoted")?;
        self.daemon.evict(name)?;

        model.make_cold()?;
        let one = model.read_by(1)?;
        model.make_cold()?;
        let disk = model.read_by(4)?.min(one);
        // The file is in the page cache now.
        let fill = model.fill_memory()?;
        let bytes = model.bytes;
        let upload = self.client.tell(&Command::Upload { bytes })?.took_us / 1e6;

        let (mut plain_cold, mut plain_warm) = (None, None);
        if let Some(plain) = &mut self.plain {
            let path = model.path.to_string_lossy();
            model.make_cold()?;
            plain_cold = Some(plain.seconds(&path)?);
            plain_warm = Some(plain.seconds(&path)?);
        }
        Ok(Took {
            miss,
            host_hit,
            disk,
            fill,
            upload,
            plain_cold,
            plain_warm,
        })
    }

    /// Seconds of one open on the device, which must come about as `expected`.
    fn timed_open(&mut self, model: &ModelFile, expected: &str) -> Anything<f64> {
        let (name, on_device) = (model.name.clone(), true);
        let reply = self.client.tell(&Command::OpenModel { name, on_device })?;
        let file = model.path.clone();
        if model.bytes < 2_000_000_000 {
            self.client.tell(&Command::CompareModel { file })?;
        }
        self.client.tell(&Command::CloseModel)?;
        self.daemon.await_no_leases()?;
        if reply.text != expected {
            return Err(format!(
                "{}: the open was {}, not {expected}",
                model.name, reply.text
            )
            .into());
        }
        Ok(reply.took_us / 1e6)
    }

    fn judge(&mut self, model: &ModelFile, took: Took) -> Anything<()> {
        let slowest = took.disk.max(took.fill).max(took.upload);
        let ratio = took.miss / slowest;
        let seconds = |value: Option<f64>| value.map_or(serde_json::Value::Null, Into::into);
        self.recorder.row(&[
            (model.bytes / 1_000_000).into(),
            took.miss.into(),
            took.host_hit.into(),
            took.disk.into(),
            took.fill.into(),
            took.upload.into(),
            ratio.into(),
            (took.disk + took.fill + took.upload).into(),
            seconds(took.plain_cold),
            seconds(took.plain_warm),
        ])?;
        let name = &model.name;
        let what = format!("cold miss of {name}, beside its slowest stage alone");
        self.recorder.at_most(&what, ratio, MISS_MAX)?;
        if let Some(plain) = took.plain_cold {
            let what = format!("speed of a cold miss of {name}, beside no manager");
            self.recorder
                .at_least(&what, plain / took.miss, SPEED_MIN)?;
        }
        Ok(())
    }
}

fn rounds_of(model: &ModelFile) -> u32 {
    match model.bytes {
        0..500_000_000 => 4,
        500_000_000..2_000_000_000 => 3,
        _ => 1,
    }
}

fn open(client: &mut Agent, model: &ModelFile) -> Result<(), String> {
    let (name, on_device) = (model.name.clone(), true);
    client
        .tell(&Command::OpenModel { name, on_device })
        .map(drop)
}
