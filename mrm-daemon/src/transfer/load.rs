//! Loading a file into a sealed segment.

use super::error::LoadError;
use super::hash::{Chunk, Subtree, digest};
use super::lanes::message;
use super::read::{Buffered, CHUNK_BYTES, Reader};
use crate::degraded::Degraded;
use crate::device::feed::FeedWriter;
use crate::format::HeaderCheck;
use crate::memory::{HostSegment, Unsealed};
use crate::source::{Identity, Source};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::Builder;
use std::time::Instant;

/// How many chunks the hash may be behind: beyond that they leave the processor's cache.
const BEHIND_MAX: usize = 4;

/// What is to be loaded, and how it is watched.
pub struct Order<'a> {
    /// Where the bytes come from.
    pub source: &'a dyn Source,
    /// What it was when it was resolved. It must still be that, before and after.
    pub identity: Identity,
    /// What was charged for it; the segment takes no more.
    pub charge_bytes: u64,
    /// What its first bytes were when they were parsed.
    pub header: Option<HeaderCheck>,
    /// How many bytes were read so far.
    pub progress: &'a AtomicU64,
    /// Set it to give up.
    pub cancel: &'a AtomicBool,
    /// Who reads what is there before all of it is, if anybody may.
    pub feed: Option<&'a FeedWriter>,
}

/// A file in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Its exact image.
    pub segment: HostSegment,
    /// The blake3 digest of the image: of what is in memory, not of what the disk was asked for.
    pub digest: [u8; 32],
    /// How many bytes were read.
    pub read_bytes: u64,
    /// How long it took, from the allocation to the seal.
    pub took_us: u64,
}

/// Reads the source, as it was resolved, into a sealed segment. Blocks.
///
/// # Errors
/// If it changed, cannot be read, does not fit into memory, or `cancel` was set. Nothing is left
/// in memory then.
pub fn load(order: &Order<'_>, degraded: &Degraded) -> Result<Loaded, LoadError> {
    let outcome = load_and_feed(order, degraded);
    if let Some(feed) = order.feed {
        match &outcome {
            Ok(loaded) => feed.done(loaded.segment.fd(), loaded.digest),
            Err(error) => feed.failed(error.code(), &error),
        }
    }
    outcome
}

fn load_and_feed(order: &Order<'_>, degraded: &Degraded) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    let bytes = order.identity.bytes;
    let memory = |cause| LoadError::Memory {
        name: order.source.label().to_owned(),
        cause,
    };
    order.progress.store(0, Ordering::Relaxed);
    unchanged(order.source, &order.identity)?;
    let mut unsealed = Unsealed::allocate(bytes, order.charge_bytes, degraded).map_err(memory)?;
    if let Some(feed) = order.feed {
        feed.begin(unsealed.fd());
    }
    let mut reader = Buffered::new(order.source, order.cancel);
    let digest = fill(order, &mut reader, unsealed.as_mut_slice())?;
    verify(order, unsealed.as_mut_slice())?;
    let segment = unsealed.seal(degraded).map_err(memory)?;
    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Loaded {
        segment,
        digest,
        read_bytes: bytes,
        took_us,
    })
}

/// Checks that what was read is the file that was resolved, from its first byte to its last.
fn verify(order: &Order<'_>, image: &[u8]) -> Result<(), LoadError> {
    ended(order.source, &order.identity)?;
    match &order.header {
        Some(header) if !header.holds(image) => Err(other_header(order.source)),
        Some(_) | None => Ok(()),
    }
}

/// What is said of a file that does not begin as it did.
pub(crate) fn other_header(source: &dyn Source) -> LoadError {
    LoadError::changed(source, "its header is not the one that was parsed")
}

/// Fails unless the source ends where it did, and is what it was.
pub(crate) fn ended(source: &dyn Source, was: &Identity) -> Result<(), LoadError> {
    let mut more = [0];
    if source.read_at(was.bytes, &mut more)? > 0 {
        return Err(LoadError::changed(source, "it grew"));
    }
    unchanged(source, was)
}

/// Fails unless the source is what it was.
pub(crate) fn unchanged(source: &dyn Source, was: &Identity) -> Result<(), LoadError> {
    let now = source.identity()?;
    let what = if now == *was {
        return Ok(());
    } else if (now.dev, now.ino) != (was.dev, was.ino) {
        "it is another file".to_owned()
    } else if now.bytes != was.bytes {
        format!("it had {} bytes and has {} now", was.bytes, now.bytes)
    } else {
        "it was written to".to_owned()
    };
    Err(LoadError::changed(source, what))
}

impl Order<'_> {
    /// The bytes before `bytes` are there.
    fn filled(&self, bytes: u64) {
        self.progress.store(bytes, Ordering::Relaxed);
        if let Some(feed) = self.feed {
            feed.filled(bytes);
        }
    }
}

/// Fills the image and returns its digest. A large image is hashed by a second thread, a few
/// chunks behind; when that cannot keep up, the reading thread hashes too.
fn fill(
    order: &Order<'_>,
    reader: &mut dyn Reader,
    image: &mut [u8],
) -> Result<[u8; 32], LoadError> {
    if image.len() <= CHUNK_BYTES {
        reader.read(0, image)?;
        order.filled(image.len() as u64);
        return Ok(*blake3::hash(image).as_bytes());
    }
    let name = || order.source.label().to_owned();
    let failed = |message: &str| LoadError::Hash {
        name: name(),
        message: message.to_owned(),
    };
    let chunks = image.len().div_ceil(CHUNK_BYTES);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(BEHIND_MAX);
        let hash = Builder::new()
            .name("mrm-hash".to_owned())
            .spawn_scoped(scope, move || {
                receiver.into_iter().map(Subtree::of).collect::<Vec<_>>()
            })
            .map_err(|cause| LoadError::Thread {
                name: name(),
                cause,
            })?;
        let filled = fill_chunks(order, reader, image, sender);
        // The sender is gone, so the thread ends after what it was sent.
        let hashed = hash.join();
        let mut subtrees = filled?;
        subtrees.extend(hashed.map_err(|panic| failed(message(panic.as_ref())))?);
        digest(subtrees, chunks).ok_or_else(|| failed("a part was not hashed"))
    })
}

/// Fills the image; returns what this thread hashed of it.
fn fill_chunks<'i>(
    order: &Order<'_>,
    reader: &mut dyn Reader,
    image: &'i mut [u8],
    hash: SyncSender<Chunk<'i>>,
) -> Result<Vec<Subtree>, LoadError> {
    let mut own = Vec::new();
    let mut offset = 0;
    for (index, bytes) in image.chunks_mut(CHUNK_BYTES).enumerate() {
        reader.read(offset, bytes)?;
        offset += bytes.len() as u64;
        order.filled(offset);
        match hash.try_send(Chunk { index, bytes }) {
            Ok(()) => {}
            Err(TrySendError::Full(chunk)) => own.push(Subtree::of(chunk)),
            // It panicked; joining it says how.
            Err(TrySendError::Disconnected(_)) => break,
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests;
