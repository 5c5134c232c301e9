//! Where the bytes of an image come from, one segment or file at a time.

use super::error::FillError;
use super::feed::{HostFeed, Mapped};
use super::fill::FileFeed;
use crate::transfer::{Buffered, LoadError, Reader, ended, other_header, unchanged};
use mrm_cuda::Registered;
use mrm_proto::layout::LayoutError;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How much of a file is read at a time where no tensor of it lies.
const SKIP_BYTES: usize = 256 << 10;

/// What an image is gathered from.
pub(super) trait Supply {
    /// Fills `into` with what segment `segment` has at `from`, which may take a while.
    fn read(&mut self, segment: usize, from: u64, into: &mut [u8]) -> Result<(), FillError>;

    /// The segment, if the device may copy from it by itself.
    fn registered(&self, segment: usize) -> Option<&Registered<Mapped>>;

    /// Waits until it is known that what was read is what was to be read. Returns the digest of
    /// each segment.
    fn verify(&mut self) -> Result<Vec<[u8; 32]>, FillError>;
}

/// Segments in host memory.
pub(super) struct Segments<'a> {
    pub(super) feeds: &'a [Arc<HostFeed>],
    pub(super) registered: Vec<Option<Registered<Mapped>>>,
    pub(super) cancel: &'a AtomicBool,
}

impl Supply for Segments<'_> {
    fn read(&mut self, segment: usize, from: u64, into: &mut [u8]) -> Result<(), FillError> {
        let feed = self.feeds.get(segment).ok_or(LayoutError::Damaged)?;
        feed.wait_for(from.saturating_add(into.len() as u64), self.cancel)?;
        Ok(feed.read_at(from, into)?)
    }

    fn registered(&self, segment: usize) -> Option<&Registered<Mapped>> {
        self.registered.get(segment)?.as_ref()
    }

    fn verify(&mut self) -> Result<Vec<[u8; 32]>, FillError> {
        let digests = self.feeds.iter().map(|feed| feed.digest(self.cancel));
        Ok(digests.collect::<Result<_, _>>()?)
    }
}

/// Files, each of which is read from its first byte to its last, and hashed.
pub(super) struct Files<'a>(Vec<Sequential<'a>>);

struct Sequential<'a> {
    file: &'a FileFeed,
    reader: Buffered<'a>,
    /// What is before was read, once, and hashed.
    at: u64,
    whole: blake3::Hasher,
    header: blake3::Hasher,
}

impl<'a> Files<'a> {
    /// Fails unless each file is what it was when it was resolved.
    pub(super) fn new(files: &'a [FileFeed], cancel: &'a AtomicBool) -> Result<Self, FillError> {
        let open = |file: &'a FileFeed| {
            unchanged(file.source.as_ref(), &file.identity)?;
            Ok(Sequential {
                file,
                reader: Buffered::new(file.source.as_ref(), cancel),
                at: 0,
                whole: blake3::Hasher::new(),
                header: blake3::Hasher::new(),
            })
        };
        let files: Result<Vec<_>, LoadError> = files.iter().map(open).collect();
        Ok(Self(files?))
    }
}

impl Supply for Files<'_> {
    fn read(&mut self, segment: usize, from: u64, into: &mut [u8]) -> Result<(), FillError> {
        let file = self.0.get_mut(segment).ok_or(LayoutError::Damaged)?;
        Ok(file.read(from, into)?)
    }

    fn registered(&self, _segment: usize) -> Option<&Registered<Mapped>> {
        None
    }

    fn verify(&mut self) -> Result<Vec<[u8; 32]>, FillError> {
        let digests: Result<Vec<_>, LoadError> =
            self.0.iter_mut().map(Sequential::verify).collect();
        Ok(digests?)
    }
}

impl Sequential<'_> {
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), LoadError> {
        // Tensors come in the order of their files, so this is rare: what was hashed is read again.
        let again = usize::try_from(self.at.saturating_sub(from)).unwrap_or(usize::MAX);
        let (again, new) = into.split_at_mut(again.min(into.len()));
        self.reader.read(from, again)?;
        if new.is_empty() {
            return Ok(());
        }
        self.skip_to(from + again.len() as u64)?;
        self.read_on(new)
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), LoadError> {
        if self.at >= offset {
            return Ok(());
        }
        let mut scratch = vec![0; SKIP_BYTES];
        while self.at < offset {
            let left = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
            let bytes = left.min(scratch.len());
            self.read_on(&mut scratch[..bytes])?;
        }
        Ok(())
    }

    fn read_on(&mut self, into: &mut [u8]) -> Result<(), LoadError> {
        self.reader.read(self.at, into)?;
        self.whole.update(into);
        let header_bytes = self.file.check.map_or(0, |check| check.bytes);
        let of_header = usize::try_from(header_bytes.saturating_sub(self.at)).unwrap_or(usize::MAX);
        self.header.update(&into[..of_header.min(into.len())]);
        self.at += into.len() as u64;
        Ok(())
    }

    fn verify(&mut self) -> Result<[u8; 32], LoadError> {
        let source = self.file.source.as_ref();
        self.skip_to(self.file.identity.bytes)?;
        ended(source, &self.file.identity)?;
        match &self.file.check {
            Some(check) if *self.header.finalize().as_bytes() != check.digest => {
                Err(other_header(source))
            }
            Some(_) | None => Ok(*self.whole.finalize().as_bytes()),
        }
    }
}
