//! An agent's side: one command, one reply, until the step's process is gone.

use crate::Anything;
use crate::bare::{Bare, BareMapping};
use crate::serve_client;
use crate::stats::{Rounds, Summary, timed_us};
use crate::wire::{Attached, Command, How, Poke, Reply, handle_of, hex_of, receive, send};
use mrm_client::{Client, Model};
use mrm_cuda::{Context, Export, Mapping, Ring, Sealed, Stream, Upload, probe, release_deferred};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// Serves on standard input.
pub(crate) fn serve() -> Anything<()> {
    let stdin = std::io::stdin();
    let mut state = State::default();
    while let Some((command, fd)) = receive::<Command>(&stdin)? {
        let (reply, fd) = match state.obey(command, fd) {
            Ok(done) => done,
            Err(error) => {
                let error = Some(error.to_string());
                let reply = Reply {
                    error,
                    ..Reply::default()
                };
                (reply, None)
            }
        };
        send(stdin.as_fd(), &reply, fd.as_ref().map(AsFd::as_fd))?;
    }
    Ok(())
}

/// An export that was taken.
enum Taken {
    Vmm(OwnedFd, u64),
    Legacy([u8; 64], u64),
}

impl Taken {
    fn bytes(&self) -> u64 {
        match self {
            Self::Vmm(_, bytes) | Self::Legacy(_, bytes) => *bytes,
        }
    }

    fn how(&self) -> How {
        match self {
            Self::Vmm(..) => How::Vmm,
            Self::Legacy(..) => How::Legacy,
        }
    }

    fn export(&self) -> Anything<Export> {
        Ok(match self {
            Self::Vmm(fd, _) => Export::Vmm(fd.try_clone()?),
            Self::Legacy(handle, _) => Export::Legacy(*handle),
        })
    }
}

#[derive(Default)]
struct State {
    // In the order in which they are to be dropped.
    model: Option<Model>,
    client: Option<Client>,
    mappings: Vec<Mapping>,
    sealed: Vec<Sealed>,
    taken: Vec<Taken>,
    stream: Option<Stream>,
    context: Option<Context>,
    bare: Option<Bare>,
}

type Done = Anything<(Reply, Option<OwnedFd>)>;

impl State {
    fn obey(&mut self, command: Command, fd: Option<OwnedFd>) -> Done {
        let mut reply = Reply::default();
        match command {
            Command::Retain => reply.text = self.context()?.device().uuid.to_string(),
            Command::Memory => {
                let memory = self.context()?.memory()?;
                (reply.free_bytes, reply.total_bytes) = (memory.free_bytes, memory.total_bytes);
            }
            Command::Allocate {
                how,
                bytes,
                count,
                seed,
            } => self.allocate(how, bytes, count, seed)?,
            Command::Export { at } => {
                let sealed = self.sealed.get(at).ok_or("no such allocation")?;
                match sealed.export()? {
                    Export::Vmm(fd) => return Ok((reply, Some(fd))),
                    Export::Legacy(handle) => reply.text = hex_of(handle),
                }
            }
            Command::Take { how, bytes, handle } => self.taken.push(match how {
                How::Vmm => Taken::Vmm(fd.ok_or("no descriptor came")?, bytes),
                How::Legacy => Taken::Legacy(handle_of(&handle)?, bytes),
            }),
            Command::Open => self.mappings = self.open()?,
            Command::Check { seed } => self.check(seed)?,
            Command::Attach(rounds) => reply.attached = Some(self.attach(rounds)?),
            Command::Poke(poke) => self.poke(poke)?,
            Command::AllowWriting => {
                let mapping = self.mappings.first().ok_or("nothing is open")?;
                let (pointer, bytes) = (mapping.pointer(), mapping.bytes());
                self.bare()?.allow(pointer, bytes, true)?;
            }
            Command::Connect { socket } => self.client = Some(Client::connect_to(socket)?),
            Command::OpenModel { name, on_device } => {
                let client = self.client.as_ref().ok_or("not connected")?;
                let (model, us) = timed_us(|| serve_client::open(client, &name, on_device));
                let model = self.model.insert(model?);
                (reply.took_us, reply.text) = (us, serve_client::origin(model).to_owned());
            }
            Command::CompareModel { file } => {
                self.bare()?;
                let bare = self.bare.as_ref().ok_or("no driver")?;
                let model = self.model.as_ref().ok_or("no model is open")?;
                serve_client::compare(model, bare, &file)?;
            }
            Command::CloseModel => self.model.take().ok_or("no model is open")?.close()?,
            Command::PokeModel(poke) => self.poke_model(poke)?,
            Command::OpenRounds { name, rounds } => {
                reply.attached = Some(self.open_rounds(&name, rounds)?);
            }
            Command::Upload { bytes } => reply.took_us = self.upload(bytes)?,
            Command::Synchronize => self.context()?.synchronize()?,
            Command::Drop => {
                self.mappings.clear();
                self.sealed.clear();
                self.taken.clear();
                release_deferred();
            }
            Command::CreateWithoutContext { bytes } => {
                let bare = Bare::without_context(0)?;
                let (_, fd) = bare.create_and_export(usize::try_from(bytes)?)?;
                return Ok((reply, Some(fd)));
            }
        }
        Ok((reply, None))
    }

    fn context(&mut self) -> Anything<Context> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        let driver = probe()?;
        let device = driver.devices()?.into_iter().next().ok_or("no device")?;
        let context = Context::retain(driver, device.uuid)?;
        Ok(self.context.insert(context).clone())
    }

    fn bare(&mut self) -> Anything<&Bare> {
        self.context()?;
        if self.bare.is_none() {
            self.bare = Some(Bare::enter(0)?);
        }
        Ok(self.bare.as_ref().ok_or("no driver")?)
    }

    fn stream(&mut self) -> Anything<&Stream> {
        let context = self.context()?;
        if self.stream.is_none() {
            self.stream = Some(Stream::new(&context)?);
        }
        Ok(self.stream.as_ref().ok_or("no stream")?)
    }

    fn allocate(&mut self, how: How, bytes: u64, count: usize, seed: Option<u64>) -> Anything<()> {
        let context = self.context()?;
        let mut ring = Ring::new(&context, 4 << 20, 2)?;
        for _ in 0..count {
            let allocation = how.mechanism().sharing().allocate(&context, bytes)?;
            let mut upload = Upload::new(&mut ring, allocation)?;
            let mut at = 0;
            while let Some(seed) = seed
                && at < bytes
            {
                let len = upload.slot_bytes().min(bytes - at);
                upload.stage(at, len, |slot| fill(seed, at, slot))?;
                at += len;
            }
            self.sealed.push(upload.finish()?);
        }
        Ok(())
    }

    fn open(&mut self) -> Anything<Vec<Mapping>> {
        let context = self.context()?;
        self.taken
            .iter()
            .map(|taken| {
                let sharing = taken.how().mechanism().sharing();
                Ok(sharing.import(&context, taken.export()?, taken.bytes())?)
            })
            .collect()
    }

    fn check(&mut self, seed: u64) -> Anything<()> {
        self.stream()?;
        let stream = self.stream.as_ref().ok_or("no stream")?;
        let view = |at, len| match (self.mappings.first(), self.sealed.first()) {
            (Some(mapping), _) => mapping.view(at, len),
            (None, Some(sealed)) => sealed.view(at, len),
            (None, None) => Err(mrm_cuda::ShareError::Empty),
        };
        let mapped = self.mappings.first().map(Mapping::bytes);
        let bytes = mapped.or_else(|| self.sealed.first().map(Sealed::bytes));
        let bytes = bytes.ok_or("nothing to check")?;
        let (mut read, mut expected) = (vec![0; 4 << 20], vec![0; 4 << 20]);
        let mut at = 0;
        while at < bytes {
            let len = (bytes - at).min(4 << 20);
            let part = ..usize::try_from(len)?;
            stream.copy_out(view(at, len)?, &mut read[part])?;
            fill(seed, at, &mut expected[part])?;
            let differs = serve_client::first_difference(&read[part], &expected[part]);
            if let Some(wrong) = differs {
                return Err(format!("byte {} of {bytes} is wrong", at + wrong).into());
            }
            at += len;
        }
        Ok(())
    }

    fn poke(&mut self, poke: Poke) -> Anything<()> {
        let pointer = self.mappings.first().ok_or("nothing is open")?.pointer();
        self.poke_at(pointer, poke)
    }

    fn poke_model(&mut self, poke: Poke) -> Anything<()> {
        let model = self.model.as_ref().ok_or("no model is open")?;
        let weights = model.device().ok_or("it is in host memory")?;
        let (pointer, _) = weights.allocations().first().ok_or("it is empty")?;
        self.poke_at(*pointer, poke)
    }

    fn poke_at(&mut self, pointer: u64, poke: Poke) -> Anything<()> {
        let bare = self.bare()?;
        Ok(match poke {
            Poke::Fill => bare.poke_by_fill(pointer),
            Poke::Copy => bare.poke_by_copy(pointer),
            Poke::Kernel => bare.poke_by_kernel(pointer),
        }?)
    }

    fn upload(&mut self, bytes: u64) -> Anything<f64> {
        let context = self.context()?;
        let mut ring = Ring::new(&context, 8 << 20, 4)?;
        let (done, us) = timed_us(|| -> Anything<()> {
            let allocation = How::Vmm.mechanism().sharing().allocate(&context, bytes)?;
            let mut upload = Upload::new(&mut ring, allocation)?;
            let mut at = 0;
            while at < bytes {
                let len = upload.slot_bytes().min(bytes - at);
                upload.stage(at, len, |_| Ok::<(), Infallible>(()))?;
                at += len;
            }
            upload.finish()?;
            Ok(())
        });
        done.map(|()| us)
    }

    /// The client's opens beside the least that an importer can do with as much memory.
    fn open_rounds(&mut self, name: &str, rounds: Rounds) -> Anything<Attached> {
        let context = self.context()?;
        self.bare()?;
        let bare = self.bare.as_ref().ok_or("no driver")?;
        let client = self.client.as_ref().ok_or("not connected")?;
        let how = self.taken.first().ok_or("nothing was taken")?.how();
        let granularity = how.mechanism().sharing().granularity_bytes(&context)?;
        let (mut floors, mut opens, mut closes) = (Vec::new(), Vec::new(), Vec::new());
        let start = Instant::now();
        while rounds.go_on(floors.len(), start) {
            let (attached, us) = timed_us(|| attach_bare(bare, &self.taken, granularity));
            detach_bare(bare, attached?)?;
            floors.push(us);
            let (open_us, close_us) = serve_client::round(client, name)?;
            opens.push(open_us);
            closes.push(close_us);
        }
        Ok(Attached {
            bare: Summary::of(floors),
            library: Summary::of(opens),
            close: Summary::of(closes),
        })
    }

    /// In turns, so that what else goes on here concerns both alike.
    fn attach(&mut self, rounds: Rounds) -> Anything<Attached> {
        let context = self.context()?;
        self.bare()?;
        let bare = self.bare.as_ref().ok_or("no driver")?;
        let how = self.taken.first().ok_or("nothing was taken")?.how();
        let sharing = how.mechanism().sharing();
        let granularity = sharing.granularity_bytes(&context)?;
        let (mut floors, mut opens, mut closes) = (Vec::new(), Vec::new(), Vec::new());
        let start = Instant::now();
        while rounds.go_on(floors.len(), start) {
            let (attached, us) = timed_us(|| attach_bare(bare, &self.taken, granularity));
            detach_bare(bare, attached?)?;
            floors.push(us);
            let exports = self
                .taken
                .iter()
                .map(|taken| Ok((taken.export()?, taken.bytes())))
                .collect::<Anything<Vec<_>>>()?;
            let (mappings, us) = timed_us(|| sharing.import_all(&context, exports));
            let mappings = mappings?;
            opens.push(us);
            let (closed, us) = timed_us(|| {
                mappings
                    .into_iter()
                    .try_for_each(|mapping| mapping.close(&[]))
            });
            closed?;
            closes.push(us);
        }
        Ok(Attached {
            bare: Summary::of(floors),
            library: Summary::of(opens),
            close: Summary::of(closes),
        })
    }
}

enum Attachment {
    Vmm(BareMapping),
    Legacy(u64),
}

fn attach_bare(bare: &Bare, taken: &[Taken], granularity: u64) -> Result<Vec<Attachment>, String> {
    taken
        .iter()
        .map(|taken| match taken {
            Taken::Vmm(fd, bytes) => {
                let bytes = bytes.next_multiple_of(granularity);
                Ok(Attachment::Vmm(bare.attach(fd.as_fd(), bytes)?))
            }
            Taken::Legacy(handle, _) => Ok(Attachment::Legacy(bare.open(*handle)?)),
        })
        .collect()
}

fn detach_bare(bare: &Bare, attached: Vec<Attachment>) -> Result<(), String> {
    attached.into_iter().try_for_each(|one| match one {
        Attachment::Vmm(mapping) => bare.detach(mapping),
        Attachment::Legacy(pointer) => bare.close(pointer),
    })
}

/// The bytes of `seed` from byte `from` on, of which no two blocks are alike. `from` is a multiple
/// of 8.
fn fill(seed: u64, from: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
    for (word, chunk) in (from / 8..).zip(bytes.chunks_mut(8)) {
        let mixed = (word ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).to_le_bytes();
        chunk.copy_from_slice(&mixed[..chunk.len()]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn a_part_is_filled_as_the_whole_is() {
        let mut whole = [0; 61];
        fill(3, 0, &mut whole).unwrap();
        let mut part = [0; 21];
        fill(3, 40, &mut part).unwrap();
        assert_eq!(part, whole[40..]);
        let mut other = [0; 61];
        fill(4, 0, &mut other).unwrap();
        assert_ne!(other, whole);
    }
}
