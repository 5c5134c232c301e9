//! Reading a source from its first byte to its last, through the page cache.

use super::error::LoadError;
use crate::source::Source;
use rustix::fs::Advice;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much is read before it is handed on: enough to keep a disk busy, little enough for a
/// cancel to be noticed and for the hash to find it in the processor's cache.
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// Asks the kernel to read a whole file into the page cache, without waiting for it: several small
/// files are read at a time that way.
pub(crate) fn read_ahead(source: &dyn Source) {
    if let Some(fd) = source.fd() {
        // A filesystem that cannot is as good as before.
        let _ = rustix::fs::fadvise(fd, 0, None, Advice::WillNeed);
    }
}

/// A way to read.
pub(crate) trait Reader {
    /// Fills `chunk` with what the source has at `offset`.
    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), LoadError>;
}

/// Reads through the page cache.
pub(crate) struct Buffered<'a> {
    source: &'a dyn Source,
    cancel: &'a AtomicBool,
}

impl<'a> Buffered<'a> {
    /// A reader that goes from the beginning to the end, and gives up when `cancel` is set.
    pub(crate) fn new(source: &'a dyn Source, cancel: &'a AtomicBool) -> Self {
        if let Some(fd) = source.fd() {
            // Doubles how far the kernel reads ahead. A filesystem that cannot is as good as before.
            let _ = rustix::fs::fadvise(fd, 0, None, Advice::Sequential);
        }
        Self { source, cancel }
    }
}

impl Reader for Buffered<'_> {
    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), LoadError> {
        let mut done = 0;
        while done < chunk.len() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(LoadError::Cancelled {
                    name: self.source.label().to_owned(),
                });
            }
            let at = offset + done as u64;
            match self.source.read_at(at, &mut chunk[done..])? {
                0 => {
                    return Err(LoadError::changed(
                        self.source,
                        format!("it ends at byte {at}"),
                    ));
                }
                count => done += count,
            }
        }
        Ok(())
    }
}
