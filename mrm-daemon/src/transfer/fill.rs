//! Filling an image and hashing it, in each of the ways a file can be read.

use super::direct::{DirectFile, Way, refused};
use super::error::LoadError;
use super::hash::{Chunk, PartHash, Subtree, digest};
use super::lanes::message;
use super::load::Order;
use super::piece::{Next, Piece, pieces_from};
use super::populate::Passage;
use super::read::{Buffered, CHUNK_BYTES, Reader};
use super::ring::{Ring, Then};
use super::stream;
use crate::degraded::Degraded;
use crate::failpoint::{self, Point};
use crate::source::{Source, SourceError};
use rustix::io::Errno;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, available_parallelism};

/// How many chunks the hash may be behind: beyond that they leave the processor's cache.
const BEHIND_MAX: usize = 4;
/// Most threads that copy one file from the page cache.
const COPIERS_MAX: usize = 4;
/// How much is copied before it is hashed: what the cache of one core holds.
const COPY_BYTES: usize = 512 << 10;
/// From here on an image does not stay in the processor's caches anyway, and is copied past them.
const STREAM_BYTES: usize = 32 << 20;
/// What is copied past the caches goes through so much that stays in them.
const SCRATCH_BYTES: usize = 256 << 10;
/// Up to here whoever waits for a file would wait a twentieth longer for the hash of what came last, or
/// a quarter of a small one, most of which comes at once. A longer file is hashed while it comes: it need
/// not be read again for that, and its last pieces count for less.
const SHORT_BYTES: usize = 128 << 20;
/// Threads that read one file directly: while some hash, another keeps the disk busy.
const DIRECT_READERS: usize = 3;

/// Fills the image of `bytes` bytes, which lies in `pages` as far as the gate lets through, and
/// returns its digest, unless the order leaves that for later.
pub(super) fn fill(
    order: &Order<'_>,
    way: Way,
    (pages, gate): (&mut [u8], &Passage<'_>),
    bytes: usize,
    degraded: &Degraded,
) -> Result<Option<[u8; 32]>, LoadError> {
    let hashes = !order.hash_later || order.feed.is_some();
    let direct = |file: DirectFile| {
        move |piece: &mut Piece<'_>, _: &mut Vec<u8>, hash: Hash<'_>| {
            hashed(piece, hash, |piece| {
                read_direct(order, &file, piece, degraded)
            })
        }
    };
    match way {
        Way::Buffered => {
            let mut reader = Buffered::new(order.source, order.cancel);
            one_reader(order, &mut reader, (pages, gate), bytes).map(Some)
        }
        Way::Cached => {
            let past_caches = bytes >= STREAM_BYTES;
            let fetch =
                |piece: &mut Piece<'_>, scratch: &mut Vec<u8>, hash: Hash<'_>| match past_caches {
                    true => read_through(order, piece, scratch, hash),
                    false => hashed(piece, hash, |piece| read_rest(order, piece, COPY_BYTES)),
                };
            let threads = processors().min(COPIERS_MAX);
            readers(order, (&fetch, hashes), (pages, gate), bytes, threads)
        }
        // A disk is slower than the hash beside it.
        Way::Direct(file, ring) => {
            let hashes = hashes || bytes > SHORT_BYTES;
            match ring {
                None => {
                    let fetch = (&direct(file) as &Fetch<'_>, hashes);
                    readers(order, fetch, (pages, gate), bytes, DIRECT_READERS)
                }
                Some(ring) => {
                    let by = (&file, *ring, hashes);
                    one_ring(order, by, (pages, gate), bytes, degraded)
                }
            }
        }
    }
}

/// How many processors this process may use. Asked once: each time takes twenty calls.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, usize::from))
}

/// One thread reads from the first byte to the last. A large image is hashed by a second thread, a
/// few chunks behind; when that cannot keep up, the reading thread hashes too.
fn one_reader(
    order: &Order<'_>,
    reader: &mut dyn Reader,
    (pages, gate): (&mut [u8], &Passage<'_>),
    bytes: usize,
) -> Result<[u8; 32], LoadError> {
    let filled = Filled::new(order, bytes);
    if bytes <= CHUNK_BYTES {
        let image = &mut pages[..bytes];
        reader.read(0, image)?;
        filled.add(0, 0..bytes as u64);
        return Ok(*blake3::hash(image).as_bytes());
    }
    hashed_behind(order, bytes.div_ceil(CHUNK_BYTES), |sender| {
        let mut own = Vec::new();
        for mut piece in gate.pass(pieces_from(pages, bytes, order.first)) {
            let (index, range, offset) = (piece.index, piece.range(), piece.offset());
            let bytes = piece.rest(usize::MAX);
            reader.read(offset, bytes)?;
            piece.took(usize::MAX, 1);
            filled.add(index, range);
            let bytes = piece.into_bytes();
            hash_later(&sender, Chunk { index, bytes }, &mut own);
        }
        Ok(own)
    })
}

/// One thread has several reads under way. Its hashing, if any, is a second thread's, as in
/// [`one_reader`].
fn one_ring<'i>(
    order: &Order<'_>,
    (file, ring, hashes): (&DirectFile, Ring, bool),
    (pages, gate): (&'i mut [u8], &Passage<'_>),
    bytes: usize,
    degraded: &Degraded,
) -> Result<Option<[u8; 32]>, LoadError> {
    let filled = Filled::new(order, bytes);
    let run = |there: &mut dyn FnMut(Chunk<'i>)| {
        let mut failed = None;
        let ran = ring.run(
            file.fd(),
            gate.pass(pieces_from(pages, bytes, order.first)),
            |mut piece, read| {
                let next =
                    cancelled(order).and_then(|()| note(order, file, &mut piece, read, degraded));
                let ended = match next {
                    Ok(Next::On) => return Then::Again(piece),
                    Ok(Next::Nothing) => Ok(()),
                    Ok(Next::Rest) => finish(order, &mut piece),
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    failed = Some(error);
                    return Then::Stop;
                }
                let index = piece.index;
                filled.add(index, piece.range());
                let bytes = piece.into_bytes();
                there(Chunk { index, bytes });
                Then::Kept
            },
        );
        match (failed, ran) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(unreadable(order.source, Errno::from_io_error(&error))),
            (None, Ok(())) => Ok(()),
        }
    };
    if !hashes {
        return run(&mut |_| ()).map(|()| None);
    }
    let digest = hashed_behind(order, bytes.div_ceil(CHUNK_BYTES), |sender| {
        let mut own = Vec::new();
        run(&mut |chunk| hash_later(&sender, chunk, &mut own))?;
        Ok(own)
    });
    digest.map(Some)
}

/// Several threads read, each a piece at a time, which it hashes too if it is told so.
fn readers(
    order: &Order<'_>,
    (fetch, hashes): (&Fetch<'_>, bool),
    (pages, gate): (&mut [u8], &Passage<'_>),
    bytes: usize,
    threads: usize,
) -> Result<Option<[u8; 32]>, LoadError> {
    let chunks = bytes.div_ceil(CHUNK_BYTES);
    let filled = Filled::new(order, bytes);
    let pieces = Mutex::new(gate.pass(pieces_from(pages, bytes, order.first)));
    let stop = AtomicBool::new(false);
    if chunks == 1 {
        let mut whole = blake3::Hasher::new();
        for mut piece in pieces.into_inner().unwrap_or_else(PoisonError::into_inner) {
            fetch_all(order, fetch, &mut piece, &mut Vec::new(), &mut |bytes| {
                if hashes {
                    whole.update(bytes);
                }
            })?;
            filled.add(piece.index, piece.range());
        }
        return Ok(hashes.then(|| *whole.finalize().as_bytes()));
    }
    let work = || -> Result<Vec<Subtree>, LoadError> {
        let _stop = StopOthers(&stop);
        let (mut own, mut scratch) = (Vec::new(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let Some(mut piece) = lock(&pieces).next() else {
                break;
            };
            let mut part = hashes.then(|| PartHash::of(piece.index));
            let hash = &mut |bytes: &[u8]| {
                if let Some(part) = &mut part {
                    part.update(bytes);
                }
            };
            fetch_all(order, fetch, &mut piece, &mut scratch, hash)?;
            filled.add(piece.index, piece.range());
            own.extend(part.map(|part| part.finish()));
        }
        Ok(own)
    };
    let subtrees = std::thread::scope(|scope| {
        let mut others = Vec::new();
        for _ in 1..threads.min(chunks) {
            let other = Builder::new()
                .name("mrm-read".to_owned())
                .spawn_scoped(scope, work);
            others.push(other.map_err(|cause| {
                stop.store(true, Ordering::Relaxed);
                no_thread(order, cause)
            })?);
        }
        let mut all = work();
        for other in others {
            // A panic is one of the load, on whichever thread.
            let theirs = other.join().unwrap_or_else(|panic| resume_unwind(panic));
            all = all.and_then(|mut all| {
                all.extend(theirs?);
                Ok(all)
            });
        }
        all
    })?;
    if !hashes {
        return Ok(None);
    }
    let digest = digest(subtrees, chunks);
    Ok(Some(digest.ok_or_else(|| {
        not_hashed(order, "a part was not hashed")
    })?))
}

/// Tells the other readers that one of them failed. One that found nothing to do tells them what
/// they will see for themselves, after the piece that each still has.
struct StopOthers<'a>(&'a AtomicBool);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes note of the next bytes.
type Hash<'a> = &'a mut dyn FnMut(&[u8]);

/// Reads the next bytes of a piece and hashes them; has a buffer to do so.
type Fetch<'a> =
    dyn Fn(&mut Piece<'_>, &mut Vec<u8>, Hash<'_>) -> Result<(), LoadError> + Sync + 'a;

/// Reads a piece to its end.
fn fetch_all(
    order: &Order<'_>,
    fetch: &Fetch<'_>,
    piece: &mut Piece<'_>,
    scratch: &mut Vec<u8>,
    hash: Hash<'_>,
) -> Result<(), LoadError> {
    while !piece.is_whole() {
        cancelled(order)?;
        fetch(piece, scratch, &mut *hash)?;
    }
    Ok(())
}

/// Hashes what `read` brought.
fn hashed(
    piece: &mut Piece<'_>,
    hash: Hash<'_>,
    read: impl FnOnce(&mut Piece<'_>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let before = piece.done();
    read(piece)?;
    hash(piece.since(before));
    Ok(())
}

/// One read of a piece through the page cache and a buffer that stays in the processor's cache,
/// from which it is hashed, and copied past the caches to where it is to go.
fn read_through(
    order: &Order<'_>,
    piece: &mut Piece<'_>,
    scratch: &mut Vec<u8>,
    hash: Hash<'_>,
) -> Result<(), LoadError> {
    scratch.resize(SCRATCH_BYTES, 0);
    let at = piece.offset();
    let into = piece.rest(SCRATCH_BYTES);
    let wanted = into.len();
    let count = order.source.read_at(at, &mut scratch[..wanted])?;
    if count == 0 {
        return Err(LoadError::changed(
            order.source,
            format!("it ends at byte {at}"),
        ));
    }
    let bytes = &scratch[..count.min(wanted)];
    hash(bytes);
    stream::copy(bytes, into);
    piece.took(bytes.len(), 1);
    Ok(())
}

/// One read of a piece past the page cache, and the rest if blocks do not fit it.
fn read_direct(
    order: &Order<'_>,
    file: &DirectFile,
    piece: &mut Piece<'_>,
    degraded: &Degraded,
) -> Result<(), LoadError> {
    let offset = piece.offset();
    let read = rustix::io::pread(file.fd(), piece.blocks(), offset);
    match note(order, file, piece, read, degraded)? {
        Next::Nothing | Next::On => Ok(()),
        Next::Rest => finish(order, piece),
    }
}

/// What follows from a direct read.
fn note(
    order: &Order<'_>,
    file: &DirectFile,
    piece: &mut Piece<'_>,
    read: Result<usize, Errno>,
    degraded: &Degraded,
) -> Result<Next, LoadError> {
    let read = match failpoint::fails(Point::Read) {
        true => Err(Errno::IO),
        false => read,
    };
    match read {
        Ok(count) => Ok(piece.took(count, file.block())),
        Err(Errno::INTR) => Ok(Next::On),
        // It took the flag, and then not the read.
        Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::AGAIN)) => {
            let said = std::io::Error::from(errno);
            refused(
                degraded,
                format!("`{}`: reading: {said}", order.source.label()),
            );
            Ok(Next::Rest)
        }
        Err(errno) => Err(unreadable(order.source, Some(errno))),
    }
}

/// Reads the rest of a piece through the page cache.
fn finish(order: &Order<'_>, piece: &mut Piece<'_>) -> Result<(), LoadError> {
    while !piece.is_whole() {
        cancelled(order)?;
        read_rest(order, piece, CHUNK_BYTES)?;
    }
    Ok(())
}

/// One read of a piece through the page cache.
fn read_rest(order: &Order<'_>, piece: &mut Piece<'_>, bytes_max: usize) -> Result<(), LoadError> {
    let at = piece.offset();
    match order.source.read_at(at, piece.rest(bytes_max))? {
        0 => Err(LoadError::changed(
            order.source,
            format!("it ends at byte {at}"),
        )),
        count => {
            piece.took(count, 1);
            Ok(())
        }
    }
}

fn cancelled(order: &Order<'_>) -> Result<(), LoadError> {
    if order.cancel.load(Ordering::Relaxed) {
        return Err(LoadError::Cancelled {
            name: order.source.label().to_owned(),
        });
    }
    Ok(())
}

fn unreadable(source: &dyn Source, errno: Option<Errno>) -> LoadError {
    LoadError::Source(SourceError::Unreadable {
        name: source.label().to_owned(),
        action: "read",
        errno: errno.unwrap_or(Errno::IO),
    })
}

fn no_thread(order: &Order<'_>, cause: std::io::Error) -> LoadError {
    LoadError::Thread {
        name: order.source.label().to_owned(),
        cause,
    }
}

fn not_hashed(order: &Order<'_>, message: &str) -> LoadError {
    LoadError::Hash {
        name: order.source.label().to_owned(),
        message: message.to_owned(),
    }
}

/// Reads with `read`, which returns what it hashed itself, while a thread hashes what it is sent.
fn hashed_behind<'i>(
    order: &Order<'_>,
    chunks: usize,
    read: impl FnOnce(SyncSender<Chunk<'i>>) -> Result<Vec<Subtree>, LoadError>,
) -> Result<[u8; 32], LoadError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Chunk<'i>>(BEHIND_MAX);
        let hash = Builder::new()
            .name("mrm-hash".to_owned())
            .spawn_scoped(scope, move || {
                receiver.into_iter().map(Subtree::of).collect::<Vec<_>>()
            })
            .map_err(|cause| no_thread(order, cause))?;
        let read = read(sender);
        // The sender is gone, so the thread ends after what it was sent.
        let hashed = hash.join();
        let mut subtrees = read?;
        subtrees.extend(hashed.map_err(|panic| not_hashed(order, message(panic.as_ref())))?);
        digest(subtrees, chunks).ok_or_else(|| not_hashed(order, "a part was not hashed"))
    })
}

/// Leaves a chunk to the hash thread, unless that is behind.
fn hash_later<'i>(hash: &SyncSender<Chunk<'i>>, chunk: Chunk<'i>, own: &mut Vec<Subtree>) {
    match hash.try_send(chunk) {
        Ok(()) => {}
        Err(TrySendError::Full(chunk)) => own.push(Subtree::of(chunk)),
        // It panicked; joining it says how.
        Err(TrySendError::Disconnected(_)) => {}
    }
}

/// Which pieces are there, of pieces that come in any order: what waits is told of those without a
/// gap before them.
struct Filled<'a> {
    order: &'a Order<'a>,
    bytes: usize,
    state: Mutex<(Vec<bool>, usize)>,
}

impl<'a> Filled<'a> {
    fn new(order: &'a Order<'a>, bytes: usize) -> Self {
        let none = vec![false; bytes.div_ceil(CHUNK_BYTES)];
        Self {
            order,
            bytes,
            state: Mutex::new((none, 0)),
        }
    }

    fn add(&self, index: usize, range: Range<u64>) {
        self.order.there(range);
        let mut state = lock(&self.state);
        let (there, next) = &mut *state;
        if let Some(there) = there.get_mut(index) {
            *there = true;
        }
        let before = *next;
        while there.get(*next) == Some(&true) {
            *next += 1;
        }
        if *next > before {
            // Under the lock, so that it never goes back.
            let bytes = self.bytes.min(*next * CHUNK_BYTES);
            self.order.filled(bytes as u64);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is whole between any two statements, whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
