//! What an agent does with the commands that begin with `up`: filling memory beside the caller.

use crate::agent::{Anything, fill};
use memmap2::Mmap;
use mrm_cuda::{
    Allocation, Context, CudaError, Ending, Mechanism, RegisterError, Registered, Ring, Sealed,
    ShareError, Stream, Upload, UploadError, probe,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Owners of registered memory that live.
static OWNERS: AtomicUsize = AtomicUsize::new(0);

/// A mapping of a sealed memfd, read-only as the daemon has it, which is counted.
pub(crate) struct Segment(Mmap);

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        // Neither at the beginning of a page nor to the end of one.
        self.0.get(100..self.0.len() - 100).unwrap_or(&[])
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        OWNERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The same segment for several.
#[derive(Clone)]
struct Shared(Arc<Segment>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// What `up` commands leave behind for later ones.
#[derive(Default)]
pub(crate) struct Uploads {
    ring: Option<Ring>,
    registered: Option<Registered<Segment>>,
}

/// An error, and whether it says that the device is lost.
fn told(error: &dyn std::fmt::Display, cuda: Option<CudaError>) -> Box<dyn std::error::Error> {
    let lost = cuda.is_some_and(CudaError::device_lost);
    format!("{error}; lost: {lost}").into()
}

fn share(error: ShareError) -> Box<dyn std::error::Error> {
    told(&error, error.cuda())
}

fn upload<E: std::fmt::Display>(error: UploadError<E>) -> Box<dyn std::error::Error> {
    told(&error, error.cuda())
}

fn register_error(error: RegisterError) -> Box<dyn std::error::Error> {
    told(&error, error.cuda())
}

fn segment(bytes: u64, seed: u64) -> Anything<Segment> {
    let fd = memfd_create("segment", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(&[0; 100])?;
    file.write_all(&fill(seed, bytes))?;
    file.write_all(&[0; 100])?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let mapped = Mmap::map_if_safe(&file)?;
    OWNERS.fetch_add(1, Ordering::SeqCst);
    Ok(Segment(mapped))
}

/// Memory on another device where there is one, else on the same.
fn elsewhere(here: &Context, bytes: u64, seed: u64) -> Anything<(Arc<Sealed>, bool)> {
    let devices = probe()?.devices()?;
    let other = devices
        .iter()
        .find(|device| device.uuid != here.device().uuid);
    let context = match other {
        Some(device) => Context::retain(here.driver(), device.uuid)?,
        None => here.clone(),
    };
    let stream = Stream::new(&context)?;
    let mut memory = Mechanism::Vmm.sharing().allocate(&context, bytes)?;
    memory.copy_in(0, &fill(seed, bytes), &stream)?;
    Ok((Arc::new(memory.seal(&stream)?), other.is_some()))
}

fn stage_all(upload_: &mut Upload<'_>, from: &[u8], offset: u64) -> Anything<()> {
    let mut at = offset;
    for part in from.chunks(usize::try_from(upload_.slot_bytes())?) {
        upload_.is_ready().map_err(share)?;
        let copy = |slot: &mut [u8]| {
            slot.copy_from_slice(part);
            Ok::<(), String>(())
        };
        upload_.stage(at, part.len() as u64, copy).map_err(upload)?;
        at += part.len() as u64;
    }
    Ok(())
}

impl Uploads {
    /// The words behind `up`. What was filled comes back with what is to be said.
    pub(crate) fn obey(
        &mut self,
        context: &Context,
        words: &[&str],
    ) -> Anything<(String, Option<Sealed>)> {
        let said = |text: &str| Ok((text.to_owned(), None));
        match words {
            ["ring", slot_bytes, slots] => {
                let ring = Ring::new(context, slot_bytes.parse()?, slots.parse()?);
                self.ring = Some(ring.map_err(share)?);
                said("ok")
            }
            ["register", bytes, seed] => {
                let segment = segment(bytes.parse()?, seed.parse()?)?;
                let registered = Registered::new(context, segment);
                self.registered = Some(registered.map_err(register_error)?);
                said("ok")
            }
            ["register-twice", bytes] => {
                let pages = Shared(Arc::new(segment(bytes.parse()?, 0)?));
                let first = Registered::new(context, pages.clone()).map_err(register_error)?;
                let second = Registered::new(context, pages).map_err(register_error);
                drop(first);
                second.map(|_| ("registered".to_owned(), None))
            }
            ["owners"] => said(&OWNERS.load(Ordering::SeqCst).to_string()),
            ["forget"] => {
                *self = Self::default();
                said("ok")
            }
            ["stage", how, bytes, seed] => {
                let (bytes, seed) = (bytes.parse()?, seed.parse()?);
                let mut upload = self.begin(context, how, bytes)?;
                stage_all(&mut upload, &fill(seed, bytes), 0)?;
                Ok(("ok".to_owned(), Some(upload.finish().map_err(share)?)))
            }
            ["row", how, bytes, count] => self.row(context, how, bytes.parse()?, count.parse()?),
            ["stage-on", how, bytes, seed] => self.stage_on(context, how, bytes, seed),
            ["abandon", how, bytes] => {
                let bytes = bytes.parse()?;
                let mut upload = self.begin(context, how, bytes)?;
                stage_all(&mut upload, &fill(1, bytes), 0)?;
                drop(upload);
                said("ok")
            }
            ["registered", how, bytes] => self.out_of_registered(context, how, bytes.parse()?),
            ["peer", how, bytes, seed] => {
                self.out_of_peer(context, how, bytes.parse()?, seed.parse()?)
            }
            ["all", how, bytes, seed] => self.all(context, how, bytes.parse()?, seed.parse()?),
            ["misuse", how] => self.misuse(context, how),
            ["devices"] => said(&on_other_device(context)?),
            other => Err(format!("no such command: up {other:?}").into()),
        }
    }

    fn begin(&mut self, context: &Context, how: &str, bytes: u64) -> Anything<Upload<'_>> {
        let ring = self.ring.as_mut().ok_or("there is no ring")?;
        Ok(Upload::new(ring, allocate(context, how, bytes)?)?)
    }

    /// Fills several, one after the other, before it waits for any; the seed of each is its number.
    /// What comes back is the last.
    fn row(
        &mut self,
        context: &Context,
        how: &str,
        bytes: u64,
        count: u64,
    ) -> Anything<(String, Option<Sealed>)> {
        let mut endings = Vec::new();
        for seed in 0..count {
            let mut upload = self.begin(context, how, bytes)?;
            stage_all(&mut upload, &fill(seed, bytes), 0)?;
            endings.push(upload.end().map_err(share)?);
        }
        let sealed: Result<Vec<_>, _> = endings.into_iter().map(Ending::seal).collect();
        let mut sealed = sealed.map_err(share)?;
        let stream = Stream::new(context)?;
        for (seed, sealed) in (0..).zip(&sealed) {
            let whole = sealed.bytes();
            let mut read = vec![0; usize::try_from(whole)?];
            stream.copy_out(sealed.view(0, whole)?, &mut read)?;
            if read != fill(seed, bytes) {
                return Err(format!("allocation {seed} is wrong").into());
            }
        }
        Ok((sealed.len().to_string(), sealed.pop()))
    }

    /// Goes on after an error, and tells the last.
    fn stage_on(
        &mut self,
        context: &Context,
        how: &str,
        bytes: &str,
        seed: &str,
    ) -> Anything<(String, Option<Sealed>)> {
        let (bytes, seed) = (bytes.parse()?, seed.parse()?);
        let mut upload = self.begin(context, how, bytes)?;
        let (mut at, mut told) = (0, String::new());
        let slot_bytes = usize::try_from(upload.slot_bytes())?;
        for part in fill(seed, bytes).chunks(slot_bytes) {
            if let Err(error) = stage_all(&mut upload, part, at) {
                told = error.to_string();
            }
            at += part.len() as u64;
        }
        Ok((told, Some(upload.finish().map_err(share)?)))
    }

    /// The registration is given up as soon as its copies are started.
    fn out_of_registered(
        &mut self,
        context: &Context,
        how: &str,
        bytes: u64,
    ) -> Anything<(String, Option<Sealed>)> {
        let registered = self.registered.take().ok_or("nothing is registered")?;
        let mut upload = self.begin(context, how, bytes)?;
        let half = bytes / 2;
        upload
            .from_registered(half, &registered, half..bytes)
            .map_err(share)?;
        upload
            .from_registered(0, &registered, 0..half)
            .map_err(share)?;
        drop(registered);
        let during = OWNERS.load(Ordering::SeqCst);
        let sealed = upload.finish().map_err(share)?;
        let after = OWNERS.load(Ordering::SeqCst);
        Ok((format!("{during} {after}"), Some(sealed)))
    }

    /// So is the memory on the other device.
    fn out_of_peer(
        &mut self,
        context: &Context,
        how: &str,
        bytes: u64,
        seed: u64,
    ) -> Anything<(String, Option<Sealed>)> {
        let (there, other) = elsewhere(context, bytes, seed)?;
        let mut upload = self.begin(context, how, bytes)?;
        upload.from_peer(0, &there, 0..bytes).map_err(share)?;
        let watch = Arc::downgrade(&there);
        drop(there);
        let during = watch.strong_count();
        let sealed = upload.finish().map_err(share)?;
        let text = format!("{during} {} {other}", watch.strong_count());
        Ok((text, Some(sealed)))
    }

    /// A third each through the ring, out of registered memory and from another device.
    fn all(
        &mut self,
        context: &Context,
        how: &str,
        bytes: u64,
        seed: u64,
    ) -> Anything<(String, Option<Sealed>)> {
        let (there, _) = elsewhere(context, bytes, seed)?;
        let mut ring = Ring::new(context, 30_000, 2).map_err(share)?;
        let registered = Registered::new(context, segment(bytes, seed)?);
        let registered = registered.map_err(register_error)?;
        let memory = allocate(context, how, bytes)?;
        let mut upload = Upload::new(&mut ring, memory)?;
        let third = bytes / 3;
        let here = fill(seed, bytes);
        let first = here.get(..usize::try_from(third)?).ok_or("short")?;
        stage_all(&mut upload, first, 0)?;
        upload
            .from_registered(third, &registered, third..2 * third)
            .map_err(share)?;
        upload
            .from_peer(2 * third, &there, 2 * third..bytes)
            .map_err(share)?;
        let sealed = upload.finish().map_err(share)?;
        Ok(("ok".to_owned(), Some(sealed)))
    }

    /// Each wrong call, as it is refused; what is right works all the same.
    fn misuse(&mut self, context: &Context, how: &str) -> Anything<(String, Option<Sealed>)> {
        let registered = self.registered.clone().ok_or("nothing is registered")?;
        let (there, _) = elsewhere(context, 4096, 1)?;
        let mut upload = self.begin(context, how, 10_000)?;
        let slot = upload.slot_bytes();
        let nothing = |_: &mut [u8]| -> Result<(), String> { Err("it was filled".to_owned()) };
        let too_much = 10_001_u64.min(slot);
        let no = |result: Result<(), String>| result.err().unwrap_or_else(|| "done".to_owned());
        let text = |error: ShareError| error.to_string();
        let mut refusals = vec![
            no(upload
                .stage(10_001 - too_much, too_much, nothing)
                .map_err(|error| error.to_string())),
            no(upload
                .stage(u64::MAX, 1, nothing)
                .map_err(|error| error.to_string())),
            no(upload
                .stage(0, slot + 1, nothing)
                .map_err(|error| error.to_string())),
            no(upload
                .stage(0, 5, |_| Err("the disk is gone"))
                .map_err(|error| error.to_string())),
        ];
        let len = registered.bytes();
        let reversed = std::ops::Range { start: 9, end: 4 };
        for range in [
            0..len + 1,
            len..len + 1,
            reversed.clone(),
            u64::MAX - 1..u64::MAX,
        ] {
            refusals.push(no(upload
                .from_registered(0, &registered, range)
                .map_err(text)));
        }
        for range in [0..4097, reversed] {
            refusals.push(no(upload.from_peer(0, &there, range).map_err(text)));
        }
        refusals.push(no(upload
            .from_registered(9_999, &registered, 0..2)
            .map_err(text)));
        refusals.push(no(upload.from_peer(9_999, &there, 0..2).map_err(text)));
        upload.from_registered(10_000, &registered, 3..3)?;
        upload.from_peer(10_000, &there, 4..4)?;
        stage_all(&mut upload, &fill(5, 10_000), 0)?;
        let sealed = upload.finish()?;
        Ok((refusals.join("|"), Some(sealed)))
    }
}

fn allocate(context: &Context, how: &str, bytes: u64) -> Anything<Allocation> {
    let how = if how == "vmm" {
        Mechanism::Vmm
    } else {
        Mechanism::Legacy
    };
    how.sharing().allocate(context, bytes).map_err(share)
}

/// Which devices read each other, and what comes of a ring of the wrong one.
fn on_other_device(context: &Context) -> Anything<String> {
    let myself = context.can_access(context)?;
    let devices = context.driver().devices()?;
    let Some(other) = devices
        .iter()
        .find(|device| device.uuid != context.device().uuid)
    else {
        return Ok(format!("{myself}|one device"));
    };
    let other = Context::retain(context.driver(), other.uuid)?;
    let (to, from) = (context.can_access(&other)?, other.can_access(context)?);
    let mut ring = Ring::new(&other, 4096, 1)?;
    let memory = allocate(context, "vmm", 4096)?;
    let refused = Upload::new(&mut ring, memory).map(|_| ());
    let refused = refused.map_err(|error| error.to_string());
    Ok(format!("{myself}|{to}|{from}|{refused:?}"))
}
