//! What an agent does with a command. One line in, one line out; `error ...` is a refusal.

use crate::machine::{Agent, Answer, receive, send};
use crate::raw::{Raw, in_a_fork};
use crate::uploading::Uploads;
use mrm_cuda::choose::{Trial, prove};
use mrm_cuda::share::{NotClosed, View};
use mrm_cuda::{
    Allocation, Context, DeviceUuid, Driver, Export, Mapping, Mechanism, Sealed, Setting, Stream,
    choose, probe, release_deferred,
};
use std::error::Error;
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};

pub(crate) type Anything<T> = Result<T, Box<dyn Error>>;

/// Serves commands on standard input until the other side is gone.
pub(crate) fn serve() {
    let mut state = State::default();
    let stdin = std::io::stdin();
    while let Ok(Some(Answer { text, fd })) = receive(stdin.as_fd()) {
        let words: Vec<&str> = text.split(' ').collect();
        let (text, fd) = match state.obey(&words, fd) {
            Ok((text, fd)) => (text, fd),
            Err(error) => (format!("error {error}"), None),
        };
        if send(stdin.as_fd(), &text, fd.as_ref().map(AsFd::as_fd)).is_err() {
            break;
        }
    }
}

#[derive(Default)]
struct State {
    context: Option<Context>,
    stream: Option<Stream>,
    allocation: Option<Allocation>,
    sealed: Option<Sealed>,
    mapping: Option<Mapping>,
    raw: Option<Raw>,
    /// Of `crowd`.
    crowd: Vec<OwnedFd>,
    captured: Option<*mut c_void>,
    /// Of `import-all`.
    mappings: Vec<Mapping>,
    uploads: Uploads,
}

/// Bytes by which the conformance tests know an allocation.
pub(crate) fn fill(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes)
        .map(|at| {
            (at ^ at >> 8 ^ at >> 16)
                .wrapping_mul(167)
                .wrapping_add(seed)
                .to_le_bytes()[0]
        })
        .collect()
}

fn there<T>(thing: &Option<T>) -> Anything<&T> {
    thing.as_ref().ok_or_else(|| "there is none".into())
}

fn mechanism(word: &str) -> Mechanism {
    if word == "vmm" {
        Mechanism::Vmm
    } else {
        Mechanism::Legacy
    }
}

fn first() -> Anything<(Driver, DeviceUuid)> {
    let driver = probe()?;
    let device = driver.devices()?.into_iter().next().ok_or("no device")?;
    Ok((driver, device.uuid))
}

/// `vmm` with a descriptor, or `legacy HEX`.
fn export_of(words: &[&str], fd: Option<OwnedFd>) -> Anything<(Mechanism, Export)> {
    match words {
        ["vmm"] => Ok((Mechanism::Vmm, Export::Vmm(fd.ok_or("no descriptor came")?))),
        ["legacy", hex] => {
            let mut handle = [0; 64];
            for (at, byte) in handle.iter_mut().enumerate() {
                *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2).ok_or("short")?, 16)?;
            }
            Ok((Mechanism::Legacy, Export::Legacy(handle)))
        }
        other => Err(format!("no export: {other:?}").into()),
    }
}

fn words_of(export: Export) -> (String, Option<OwnedFd>) {
    match export {
        Export::Vmm(fd) => ("vmm".to_owned(), Some(fd)),
        Export::Legacy(handle) => {
            let hex: String = handle.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("legacy {hex}"), None)
        }
    }
}

impl State {
    fn ready(&mut self) -> Anything<(Context, &Stream)> {
        if self.context.is_none() {
            let (driver, device) = first()?;
            self.context = Some(Context::retain(driver, device)?);
        }
        let context = there(&self.context)?.clone();
        if self.stream.is_none() {
            self.stream = Some(Stream::new(&context)?);
        }
        Ok((context, there(&self.stream)?))
    }

    fn obey(&mut self, words: &[&str], fd: Option<OwnedFd>) -> Anything<(String, Option<OwnedFd>)> {
        let said = |text: String| Ok((text, None));
        match words {
            ["probe"] => said(probed()),
            ["devices"] => said(devices()?),
            ["device", uuid] => said(probe()?.device(uuid.parse()?)?.ordinal.to_string()),
            ["ready"] => self.ready().map(|_| (String::from("ok"), None)),
            ["memory"] => {
                let memory = self.ready()?.0.memory()?;
                said(format!("{} {}", memory.free_bytes, memory.total_bytes))
            }
            ["allocate", how, bytes, seed] => {
                said(self.allocate(mechanism(how), bytes.parse()?, seed.parse()?)?)
            }
            ["reserve", how, bytes] => said(self.reserve(mechanism(how), bytes.parse()?)?),
            ["export"] => Ok(words_of(there(&self.sealed)?.export()?)),
            ["import", bytes, export @ ..] => {
                let (how, export) = export_of(export, fd)?;
                said(self.import(how, export, bytes.parse()?)?)
            }
            ["reclaim", bytes, export @ ..] => {
                let (how, export) = export_of(export, fd)?;
                said(self.reclaim(how, export, bytes.parse()?)?)
            }
            ["check", bytes, seed] => said(self.check(bytes.parse()?, seed.parse()?)?),
            ["free"] => {
                self.sealed.take().ok_or("nothing to free")?.free()?;
                said("ok".to_owned())
            }
            ["forget"] => {
                (self.allocation, self.sealed, self.mapping) = (None, None, None);
                (self.mappings, self.uploads) = (Vec::new(), Uploads::default());
                self.crowd = Vec::new();
                said("ok".to_owned())
            }
            ["import-all", bytes, count, bad, export @ ..] => {
                said(self.import_all(bytes.parse()?, count.parse()?, *bad == "bad", export, fd)?)
            }
            ["crowd", spare] => said(self.crowd(spare.parse()?)?),
            ["up", words @ ..] => said(self.upload(words)?),
            ["close"] => said(self.close(false)?),
            ["close", "naming"] => said(self.close(true)?),
            ["fork"] => said(self.fork()?),
            ["deferred"] => said(release_deferred().to_string()),
            ["choose", setting] => {
                let context = self.ready()?.0;
                said(chosen(&context, setting.parse()?)?)
            }
            ["prove", device, bytes, seed, export @ ..] => {
                let (mechanism, export) = export_of(export, fd)?;
                let (bytes, seed, device) = (bytes.parse()?, seed.parse()?, device.parse()?);
                let context = Context::retain(probe()?, device)?;
                prove(
                    &context,
                    Trial {
                        device,
                        mechanism,
                        export,
                        bytes,
                        seed,
                    },
                )?;
                said("ok".to_owned())
            }
            raw => said(self.behind(raw)?),
        }
    }

    /// What a fork of this process gets, and whether it leaves alone what is not its own.
    fn fork(&mut self) -> Anything<String> {
        let context = self.ready()?.0;
        let refused = in_a_fork(|| {
            let error = context.memory().err().map(|error| error.to_string());
            (self.sealed, self.mapping, self.stream) = (None, None, None);
            error.is_some_and(|error| error.contains("a fork cannot use CUDA"))
        })?;
        Ok(refused.to_string())
    }

    /// Leaves room for so many descriptors, and no more.
    fn crowd(&mut self, spare: usize) -> Anything<String> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let (current, maximum) = (Some(256), getrlimit(Resource::Nofile).maximum);
        setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
        let null = std::fs::File::open("/dev/null")?;
        while let Ok(fd) = null.try_clone() {
            self.crowd.push(fd.into());
        }
        self.crowd.push(null.into());
        let left = self.crowd.len().saturating_sub(spare);
        self.crowd.truncate(left);
        Ok("ok".to_owned())
    }

    /// What goes past the crate.
    fn behind(&mut self, words: &[&str]) -> Anything<String> {
        self.ready()?;
        if self.raw.is_none() {
            self.raw = Some(Raw::enter()?);
        }
        let raw = there(&self.raw)?;
        match words {
            ["write"] => raw.write(there(&self.mapping)?.pointer())?,
            ["current"] => return Ok(raw.current()?.to_string()),
            ["capture", how] => self.captured = Some(raw.capture(*how == "nonblocking")?),
            ["end"] => raw.end_capture(self.captured.take().ok_or("no capture")?)?,
            other => return Err(format!("no such command: {other:?}").into()),
        }
        Ok("ok".to_owned())
    }

    fn reserve(&mut self, how: Mechanism, bytes: u64) -> Anything<String> {
        let context = self.ready()?.0;
        self.allocation = Some(how.sharing().allocate(&context, bytes)?);
        Ok("ok".to_owned())
    }

    fn allocate(&mut self, how: Mechanism, bytes: u64, seed: u64) -> Anything<String> {
        let (context, stream) = self.ready()?;
        let mut allocation = how.sharing().allocate(&context, bytes)?;
        allocation.copy_in(0, &fill(seed, bytes), stream)?;
        let sealed = allocation.seal(stream)?;
        let charged = sealed.charged_bytes();
        self.sealed = Some(sealed);
        Ok(charged.to_string())
    }

    fn import(&mut self, how: Mechanism, export: Export, bytes: u64) -> Anything<String> {
        let context = self.ready()?.0;
        self.mapping = Some(how.sharing().import(&context, export, bytes)?);
        Ok(there(&self.mapping)?.pointer().to_string())
    }

    fn reclaim(&mut self, how: Mechanism, export: Export, bytes: u64) -> Anything<String> {
        let context = self.ready()?.0;
        self.sealed = Some(how.sharing().reclaim(&context, export, bytes)?);
        Ok(there(&self.sealed)?.charged_bytes().to_string())
    }

    fn upload(&mut self, words: &[&str]) -> Anything<String> {
        let context = self.ready()?.0;
        let (text, sealed) = self.uploads.obey(&context, words)?;
        self.sealed = sealed.or(self.sealed.take());
        Ok(text)
    }

    /// Imports one export several times at once, the last of which may be none.
    fn import_all(
        &mut self,
        bytes: u64,
        count: usize,
        bad: bool,
        words: &[&str],
        fd: Option<OwnedFd>,
    ) -> Anything<String> {
        let context = self.ready()?.0;
        let mut exports = Vec::new();
        for at in 0..count {
            let again = fd.as_ref().map(OwnedFd::try_clone).transpose()?;
            let (_, export) = export_of(words, again)?;
            let export = match export {
                Export::Vmm(_) if bad && at + 1 == count => {
                    Export::Vmm(std::fs::File::open("/dev/null")?.into())
                }
                Export::Legacy(_) if bad && at + 1 == count => Export::Legacy([0; 64]),
                good => good,
            };
            exports.push((export, bytes));
        }
        let how = mechanism(words.first().ok_or("no export")?);
        self.mappings = how.sharing().import_all(&context, exports)?;
        // Each is checked by itself: the last takes the place of the one that `check` reads.
        self.mapping = self.mappings.pop();
        Ok(self.mappings.len().to_string())
    }

    fn check(&mut self, bytes: u64, seed: u64) -> Anything<String> {
        self.ready()?;
        let view: View<'_> = match (&self.mapping, &self.sealed) {
            (Some(mapping), _) => mapping.view(0, bytes)?,
            (None, Some(sealed)) => sealed.view(0, bytes)?,
            (None, None) => return Err("nothing to check".into()),
        };
        let expected = fill(seed, bytes);
        let mut read = vec![0; expected.len()];
        there(&self.stream)?.copy_out(view, &mut read)?;
        match read
            .iter()
            .zip(&expected)
            .position(|(read, expected)| read != expected)
        {
            Some(at) => Err(format!("byte {at} is wrong").into()),
            None => Ok("right".to_owned()),
        }
    }

    fn close(&mut self, naming: bool) -> Anything<String> {
        let streams: Vec<_> = self
            .captured
            .filter(|_| naming)
            .map(Raw::stream)
            .into_iter()
            .collect();
        let mapping = self.mapping.take().ok_or("nothing to close")?;
        match mapping.close(&streams) {
            Ok(()) => Ok("ok".to_owned()),
            Err(NotClosed { mapping, source }) => {
                self.mapping = Some(*mapping);
                Err(source.into())
            }
        }
    }
}

fn probed() -> String {
    match probe() {
        Ok(driver) => format!("ok|{}|{}", driver.version(), driver.library()),
        Err(failure) => format!("{}|{}|{}", failure.id(), failure.cause(), failure.cure()),
    }
}

fn devices() -> Anything<String> {
    let mut text = String::new();
    for device in probe()?.devices()? {
        let (major, minor) = device.compute_capability;
        let line = format!(
            "{} {} {} {} {} {major}.{minor} {} {}\n",
            device.ordinal,
            device.uuid,
            device.total_bytes,
            device.vmm,
            device.posix_fd,
            device.read_only_register,
            device.pci_bus_id
        );
        text.push_str(&line);
    }
    Ok(text)
}

/// Chooses with a self-test in a process of its own, which sees what this one sees.
fn chosen(context: &Context, setting: Setting) -> Anything<String> {
    let mut in_a_child = |trial: Trial| {
        let mut child = Agent::start(&[]);
        let (device, bytes, seed) = (trial.device, trial.bytes, trial.seed);
        let (words, fd) = words_of(trial.export);
        let command = format!("prove {device} {bytes} {seed} {words}");
        child
            .ask_with(&command, fd.as_ref().map(AsFd::as_fd))
            .map(drop)
    };
    let choice = choose(setting, context, &mut in_a_child)?;
    Ok(format!(
        "{}|{}|{}",
        choice.mechanism,
        choice.why,
        choice.passed_over.len()
    ))
}
