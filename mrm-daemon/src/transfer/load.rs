//! Loading a file into a sealed segment.

use super::direct::{Means, ReadWay, Way, choose};
use super::error::LoadError;
use super::fill::fill;
use super::populate::filled_meanwhile;
use super::rank::Turn;
use crate::degraded::Degraded;
use crate::device::feed::FeedWriter;
use crate::format::HeaderCheck;
use crate::memory::stock::Stock;
use crate::memory::{HostSegment, MemoryError, Reserved, Unsealed, charge_for};
use crate::source::{Identity, Source};
use mrm_proto::error::ErrorCode;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What an operator can do about clients that pin what they were lent early.
const EARLY_PINNED_CURE: &str = "the file is loaded once more, and its users get no grants before the last \
                                 byte for ten minutes or longer; who pins memory should open with all of it";

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
    /// Who is told of each piece that is there, if anybody wants to know.
    pub onlooker: Option<&'a dyn Onlooker>,
    /// The numbers of the pieces of [`PIECE_BYTES`](super::PIECE_BYTES) that are read before the others, in this order.
    /// Those that are named twice or not there are passed over.
    pub first: &'a [u32],
    /// Its place among other loads, if it is to give way to any.
    pub turn: Option<&'a Turn>,
    /// The page cache was asked to read it ahead: it is read from there.
    pub is_ahead: bool,
    /// Hashing need not stand in the way: what comes from the page cache, as fast as memory can be
    /// copied, and what comes from the disk nearly at once, comes without its digest. Not where
    /// something is fed from it, which needs that.
    pub hash_later: bool,
}

/// Who looks on while a file is loaded. Called on the threads that read: it must not block.
pub trait Onlooker: Sync {
    /// The memory is promised and reads as zero, its length is sealed, and it is about to be filled
    /// through `fd`, which is open for writing. Its pages may still be allocated meanwhile.
    fn begun(&self, fd: BorrowedFd<'_>);
    /// These bytes of the file are in place: whole pieces, each told once, in any order. They were
    /// not compared with the file's identity yet; the load may still fail.
    fn filled(&self, bytes: Range<u64>);
    /// All of it is in place, but somebody who was lent the memory keeps it from being sealed: it is
    /// thrown away, and the file is loaded into other memory, of which nothing more is told.
    fn thrown_away(&self);
}

/// A file in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Its exact image.
    pub segment: HostSegment,
    /// The blake3 digest of the image: of what is in memory, not of what the disk was asked for.
    /// `None` if it was left for later.
    pub digest: Option<[u8; 32]>,
    /// How many bytes were read.
    pub read_bytes: u64,
    /// How long it took, from the allocation to the seal.
    pub took_us: u64,
    /// How it was read.
    pub way: ReadWay,
}

/// Reads the source, as it was resolved, into a sealed segment. Blocks.
///
/// # Errors
/// If it changed, cannot be read, does not fit into memory, or `cancel` was set. Nothing is left
/// in memory then.
pub fn load(order: &Order<'_>, degraded: &Degraded) -> Result<Loaded, LoadError> {
    load_by(order, &Means::KERNEL, None, degraded)
}

/// As [`load`], into memory of `stock` as far as it has any.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    order: &Order<'_>,
    stock: &Stock,
    degraded: &Degraded,
) -> Result<Loaded, LoadError> {
    load_by(order, &Means::KERNEL, Some(stock), degraded)
}

/// As [`load`], with these means of reading.
pub(super) fn load_by(
    order: &Order<'_>,
    means: &Means,
    stock: Option<&Stock>,
    degraded: &Degraded,
) -> Result<Loaded, LoadError> {
    let outcome = load_and_feed(order, means, stock, degraded);
    if let Some(feed) = order.feed {
        match &outcome {
            Ok(Loaded {
                segment,
                digest: Some(digest),
                ..
            }) => feed.done(segment.fd(), *digest),
            Ok(_) => feed.failed(ErrorCode::Internal, &"it was loaded without its digest"),
            Err(error) => feed.failed(error.code(), &error),
        }
    }
    outcome
}

fn load_and_feed(
    order: &Order<'_>,
    means: &Means,
    stock: Option<&Stock>,
    degraded: &Degraded,
) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    let (name, bytes) = (order.source.label(), order.identity.bytes);
    let memory = |cause| LoadError::Memory {
        name: name.to_owned(),
        cause,
    };
    let (unsealed, mut digest, mut way) = fill_segment(order, means, stock, degraded)?;
    let segment = match (unsealed.seal(degraded), order.onlooker) {
        (Ok(segment), _) => segment,
        (Err(why @ MemoryError::Pinned { .. }), Some(onlooker)) => {
            degraded.report("early_pinned", memory(why).to_string(), EARLY_PINNED_CURE);
            onlooker.thrown_away();
            if let Some(feed) = order.feed {
                feed.begin_anew();
            }
            let again = Order {
                onlooker: None,
                is_ahead: false,
                ..*order
            };
            let before = digest;
            let unsealed;
            (unsealed, digest, way) = fill_segment(&again, means, stock, degraded)?;
            if digest != before {
                let what = "it was read twice and was not the same";
                return Err(LoadError::changed(order.source, what));
            }
            unsealed.seal(degraded).map_err(memory)?
        }
        (Err(why), _) => return Err(memory(why)),
    };
    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let how = way.as_str();
    tracing::debug!(name, bytes, how, took_us, "loaded");
    Ok(Loaded {
        segment,
        digest,
        read_bytes: bytes,
        took_us,
        way,
    })
}

/// Reads the source into memory that nothing but a seal is missing from; its digest, if that was not
/// left for later, and how it was read.
fn fill_segment(
    order: &Order<'_>,
    means: &Means,
    stock: Option<&Stock>,
    degraded: &Degraded,
) -> Result<(Unsealed, Option<[u8; 32]>, ReadWay), LoadError> {
    let bytes = order.identity.bytes;
    let memory = |cause| LoadError::Memory {
        name: order.source.label().to_owned(),
        cause,
    };
    order.progress.store(0, Ordering::Relaxed);
    unchanged(order.source, &order.identity)?;
    let mut reserved = match stock {
        Some(stock) => stock.reserve(bytes, order.charge_bytes, degraded),
        None => Reserved::take(bytes, order.charge_bytes, degraded),
    }
    .map_err(memory)?;
    if let Some(feed) = order.feed {
        feed.begin(reserved.fd());
    }
    if let Some(onlooker) = order.onlooker {
        onlooker.begun(reserved.fd());
    }
    let chosen = match order.is_ahead {
        true => Way::Buffered,
        false => choose(order.source, &order.identity, means, degraded),
    };
    let way = chosen.name();
    let ready_bytes = reserved.ready_bytes();
    let (pages, mut populator) = reserved.parts().map_err(memory)?;
    if stock.is_some() {
        // It puts together what stays small.
        populator.hasten();
    }
    let length = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(pages.len());
    let running = order.turn.map(Turn::begin);
    let more = || stock.is_some_and(Stock::give_up);
    let digest = filled_meanwhile(&mut populator, ready_bytes, &more, |gate| {
        let gate = gate.giving_way(running.as_ref());
        fill(order, chosen, (pages, &gate), length, degraded)
    })
    .map_err(memory)??;
    drop(running);
    let huge = populator.finish(degraded);
    let mut unsealed = reserved.populated(huge).map_err(memory)?;
    verify(order, unsealed.as_mut_slice())?;
    Ok((unsealed, digest, way))
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

impl<'a> Order<'a> {
    /// An order for all of a source, charged for its length, that nobody looks on, and that needs none
    /// of it before the rest.
    #[must_use]
    pub fn new(
        source: &'a dyn Source,
        identity: Identity,
        progress: &'a AtomicU64,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self {
            source,
            identity,
            charge_bytes: charge_for(identity.bytes),
            header: None,
            progress,
            cancel,
            feed: None,
            onlooker: None,
            first: &[],
            turn: None,
            is_ahead: false,
            hash_later: false,
        }
    }

    /// The bytes before `bytes` are there.
    pub(super) fn filled(&self, bytes: u64) {
        self.progress.store(bytes, Ordering::Relaxed);
        if let Some(feed) = self.feed {
            feed.filled(bytes);
        }
    }

    /// A piece is there.
    pub(super) fn there(&self, bytes: Range<u64>) {
        if let Some(onlooker) = self.onlooker {
            onlooker.filled(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
