//! `mrm-hold SOCKET`: a client that does what it reads from standard input and prints what came of
//! it, one line of JSON each. For tests that need clients that can be killed.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool of tests fails loudly"
)]

use mrm_client::device::DeviceWeights;
use mrm_client::{Client, Devices, Fault, Model, OpenOptions, Tier};
use mrm_tests::cuda::Cuda;
use mrm_tests::{Random, checksum};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Duration;

fn main() {
    let socket = std::env::args_os().nth(1).expect("usage: mrm-hold SOCKET");
    let mut holder = Holder {
        socket: socket.into(),
        client: None,
        models: BTreeMap::new(),
    };
    for line in std::io::stdin().lock().lines() {
        let command: Vec<Value> = serde_json::from_str(&line.expect("text")).expect("an array");
        println!("{}", holder.obey(&command));
    }
}

struct Holder {
    socket: std::path::PathBuf,
    client: Option<Client>,
    models: BTreeMap<String, Model>,
}

impl Holder {
    fn obey(&mut self, command: &[Value]) -> Value {
        let text = |i: usize| command[i].as_str().expect("text");
        match text(0) {
            "open" => self.open(text(1), text(2), command[3].as_u64().expect("ms"), false),
            "path" => self.open(text(1), text(2), 60_000, true),
            "open-on" => {
                let reserve_bytes = command.get(5).and_then(Value::as_u64).unwrap_or(0);
                let how = (command[4].as_u64().expect("ms"), reserve_bytes);
                self.open_on(text(1), text(2), text(3), how, false)
            }
            "path-on" => self.open_on(text(1), text(2), text(3), (60_000, 0), true),
            "device-tensors" => device_tensors(&self.models[text(1)]),
            "device-free" => json!({"ok": true, "bytes": Cuda::of(ordinal(command)).free_bytes()}),
            "device-take" => {
                let pointer = Cuda::of(0).take(command[1].as_u64().expect("bytes"));
                json!({"ok": true, "pointer": pointer})
            }
            "device-give" => {
                Cuda::of(0).give(command[1].as_u64().expect("a pointer"));
                json!({"ok": true})
            }
            "device-write" => {
                let weights = self.models[text(1)].device().expect("on a device");
                Cuda::write(weights.allocations()[0].0);
                json!({"ok": true})
            }
            "lost" => self.models[text(1)].lost().map_or_else(
                || json!({"ok": false}),
                |why| json!({"ok": true, "code": why.reply().number, "message": why.reply().message}),
            ),
            "equal" => equal(&self.models[text(1)], &paths(&command[2])),
            "tensors" => tensors(&self.models[text(1)]),
            "close" => json!({"ok": self.models.remove(text(1)).is_some()}),
            "close-checked" => self.close_checked(text(1)),
            "deferred" => json!({"ok": true, "left": mrm_client::device::release_deferred()}),
            "churn" => self.churn(&command[1..]),
            "churn-on" => self.churn_on(&command[1..]),
            "fork-idle" => fork_idle(),
            "fork-open" => self.fork_open(text(1), text(2), &paths(&command[3])),
            other => panic!("no such command: {other}"),
        }
    }

    fn client(&mut self) -> Result<Client, mrm_client::ConnectError> {
        if self.client.is_none() {
            self.client = Some(Client::connect_to(&self.socket)?);
        }
        Ok(self.client.clone().expect("was made"))
    }

    fn open(&mut self, alias: &str, name: &str, wait_ms: u64, is_path: bool) -> Value {
        let options = OpenOptions::new().wait(Duration::from_millis(wait_ms));
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return failure(&error),
        };
        let opened = match is_path {
            true => client.open_path_with(name, &options),
            false => client.open_with(name, &options),
        };
        match opened {
            Ok(model) => {
                let reply = json!({
                    "ok": true, "version": model.version().0, "bytes": model.bytes_total(),
                    "origin": format!("{:?}", model.origin()).to_lowercase(),
                });
                self.models.insert(alias.to_owned(), model);
                reply
            }
            Err(error) => failure(&error),
        }
    }

    /// Closes, and says why that was refused. What was refused is dropped.
    fn close_checked(&mut self, alias: &str) -> Value {
        let model = self.models.remove(alias).expect("is open");
        match model.close() {
            Ok(()) => json!({"ok": true}),
            Err(error) => failure(&error),
        }
    }

    /// Opens on a device: `best`, `best:` and a device, `cuda`, `cuda:N` or a UUID.
    fn open_on(
        &mut self,
        alias: &str,
        name: &str,
        device: &str,
        (wait_ms, reserve_bytes): (u64, u64),
        is_path: bool,
    ) -> Value {
        let tier = match device {
            "best" => Tier::Best(Devices::Visible),
            device => match device.strip_prefix("best:") {
                Some(device) => Tier::Best(device.parse().expect("a device")),
                None => Tier::Device(device.parse().expect("a device")),
            },
        };
        let options = OpenOptions::new()
            .wait(Duration::from_millis(wait_ms))
            .tier(tier)
            .reserve_bytes(reserve_bytes);
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return failure(&error),
        };
        let opened = match is_path {
            true => client.open_path_with(name, &options),
            false => client.open_with(name, &options),
        };
        match opened {
            Ok(model) => {
                let reply = json!({
                    "ok": true, "version": model.version().0,
                    "origin": format!("{:?}", model.origin()).to_lowercase(),
                    "device": model.device().map(|weights| weights.uuid().to_string()),
                    "ordinal": model.device().map(DeviceWeights::ordinal),
                    "sharing": model.device().map(|weights| format!("{:?}", weights.sharing()).to_lowercase()),
                    "allocations": model.device().map(|weights| weights.allocations().len()),
                    "why_host": model.why_host().map(ToString::to_string),
                });
                self.models.insert(alias.to_owned(), model);
                reply
            }
            Err(error) => failure(&error),
        }
    }

    /// Opens, compares and closes at random: `[rounds, seed, [[name, path], ...]]`.
    fn churn(&mut self, arguments: &[Value]) -> Value {
        let rounds = arguments[0].as_u64().expect("a number");
        let mut random = Random(arguments[1].as_u64().expect("a number"));
        let models = arguments[2].as_array().expect("a list");
        for _ in 0..rounds {
            let chosen = random.below(models.len() as u64);
            let model = &models[usize::try_from(chosen).expect("fits")];
            let opened = self.open("churn", model[0].as_str().expect("a name"), 60_000, false);
            if opened["ok"] != true {
                return opened;
            }
            let same = equal(&self.models["churn"], &paths(&json!([model[1]])));
            if same["ok"] != true {
                return same;
            }
            self.models.remove("churn");
        }
        json!({"ok": true})
    }

    /// The same on devices, and compares tensors: `[rounds, seed, {name: tensors, ...}, [device]]`.
    /// What a full device refuses is counted.
    fn churn_on(&mut self, arguments: &[Value]) -> Value {
        let rounds = arguments[0].as_u64().expect("a number");
        let mut random = Random(arguments[1].as_u64().expect("a number"));
        let models: Vec<_> = arguments[2].as_object().expect("models").iter().collect();
        let devices = arguments[3].as_array().expect("devices");
        let mut below = |len: usize| usize::try_from(random.below(len as u64)).expect("fits");
        let (mut refused, mut on_device) = (0, 0);
        for _ in 0..rounds {
            let (name, expected) = models[below(models.len())];
            let device = devices[below(devices.len())].as_str().expect("text");
            let opened = self.open_on("churn", name, device, (500, 0), false);
            if opened["ok"] != true {
                if opened["code"] != "no_room" {
                    return opened;
                }
                refused += 1;
                continue;
            }
            let model = &self.models["churn"];
            let read = match model.device() {
                Some(_) => device_tensors(model),
                None => tensors(model),
            };
            on_device += u64::from(model.device().is_some());
            if read["tensors"] != *expected {
                return json!({"ok": false, "model": name, "opened": opened});
            }
            if below(3) > 0 {
                self.models.remove("churn");
            }
        }
        self.models.remove("churn");
        json!({"ok": true, "refused": refused, "on_device": on_device})
    }

    /// A child uses the inherited model and client; the parent waits for it.
    fn fork_open(&mut self, inherited: &str, name: &str, files: &[String]) -> Value {
        // SAFETY: this process has one thread, so that no lock is held by another.
        match unsafe { fork() }.expect("forks") {
            ForkResult::Child => {
                let inherits = self.models.contains_key(inherited);
                let opened = self.open("child", name, 60_000, false);
                let same =
                    opened["ok"] == true && equal(&self.models["child"], files)["ok"] == true;
                // What was inherited is the parent's to give back: dropping it here must do nothing.
                self.models.clear();
                std::process::exit(i32::from(!(inherits && same)))
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).expect("waits");
                json!({"ok": status == WaitStatus::Exited(child, 0), "status": format!("{status:?}")})
            }
        }
    }
}

/// The device that a command names in its second word; the first where it names none.
fn ordinal(command: &[Value]) -> u32 {
    let named = command.get(1).and_then(Value::as_u64).unwrap_or(0);
    u32::try_from(named).expect("small")
}

/// A child that keeps a copy of every descriptor until it is killed.
fn fork_idle() -> Value {
    // SAFETY: this process has one thread, so that no lock is held by another.
    match unsafe { fork() }.expect("forks") {
        ForkResult::Child => loop {
            nix::unistd::pause();
        },
        ForkResult::Parent { child } => json!({"ok": true, "pid": child.as_raw()}),
    }
}

fn paths(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|path| path.as_str().expect("a path").to_owned())
        .collect()
}

/// Whether each segment is the image of its file.
fn equal(model: &Model, files: &[String]) -> Value {
    if model.segments().len() != files.len() {
        return json!({"ok": false, "segments": model.segments().len(), "files": files.len()});
    }
    for (segment, file) in model.segments().zip(files) {
        let expected = std::fs::read(file).expect("readable");
        if segment.bytes() != expected {
            let at = segment
                .bytes()
                .iter()
                .zip(&expected)
                .position(|(a, b)| a != b);
            return json!({"ok": false, "file": file, "differs_at": at});
        }
    }
    json!({"ok": true})
}

/// Name, type, shape and checksum of every tensor.
fn tensors(model: &Model) -> Value {
    let tensors = model.tensors().expect("a table");
    let list: BTreeMap<String, Value> = tensors
        .iter()
        .map(|tensor| {
            let sum = checksum(tensor.bytes().expect("in host memory"));
            (
                tensor.name().to_owned(),
                json!([tensor.dtype().name(), tensor.shape(), sum]),
            )
        })
        .collect();
    json!({"ok": true, "tensors": list})
}

/// Name, type, shape and checksum of every tensor, read back from the device.
fn device_tensors(model: &Model) -> Value {
    let weights = model.device().expect("on a device");
    let cuda = Cuda::of(weights.ordinal());
    let tensors = model.tensors().expect("a table");
    let list: BTreeMap<String, Value> = tensors
        .iter()
        .map(|tensor| {
            let bits = tensor.dtype().bits() * tensor.shape().iter().product::<u64>();
            let bytes = bits.div_ceil(8);
            let pointer = tensor.device_pointer().expect("on a device");
            let read = match bytes {
                0 => Vec::new(),
                bytes => {
                    assert_eq!(pointer % 256, 0, "{} is not aligned", tensor.name());
                    cuda.read(pointer, bytes)
                }
            };
            let sum = checksum(&read);
            (
                tensor.name().to_owned(),
                json!([tensor.dtype().name(), tensor.shape(), sum]),
            )
        })
        .collect();
    json!({"ok": true, "tensors": list})
}

fn failure(error: &impl Fault) -> Value {
    json!({
        "ok": false, "code": error.name(), "message": error.to_string(),
        "retryable": error.retryable(),
    })
}
