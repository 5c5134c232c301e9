//! The importer's side: another process's memory, mapped.

use crate::context::Context;
use crate::deferred::{Release, release_deferred};
use crate::error::{CallError, CloseError, ShareError};
use crate::share::{Mechanism, check};
use crate::stream::{RawStream, View};
use std::fmt;
use thiserror::Error;

/// Another process's memory, mapped in this one. Closed when it drops; see [`Mapping::close`].
pub struct Mapping {
    context: Context,
    held: Box<dyn Release>,
    mechanism: Mechanism,
    pointer: u64,
    bytes: u64,
}

impl Mapping {
    pub(crate) fn new(
        context: &Context,
        held: Box<dyn Release>,
        mechanism: Mechanism,
        pointer: u64,
        bytes: u64,
    ) -> Self {
        // A good moment for what could not be closed before: this thread waits anyway.
        release_deferred();
        Self {
            context: context.clone(),
            held,
            mechanism,
            pointer,
            bytes,
        }
    }

    /// Its address on the device, in this process.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How it was shared.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The context that it is mapped in.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// A range to be read, by [`Stream::copy_out`](crate::Stream::copy_out).
    ///
    /// # Errors
    /// When the range is not within the mapping.
    pub fn view(&self, offset_bytes: u64, len_bytes: u64) -> Result<View<'_>, ShareError> {
        let (pointer, bytes) = check(self.pointer, self.bytes, offset_bytes, len_bytes)?;
        Ok(View::within(self, pointer, bytes))
    }

    /// Waits for all work that this process queued on the device, and unmaps.
    ///
    /// Refuses while a stream is being captured into a graph, for the graph may refer to the
    /// mapping. A capture on one of `streams`, or on any stream that the default stream waits for,
    /// is noticed without disturbing it. The driver cannot be asked about others (those made
    /// non-blocking, as torch's are): waiting then fails, the mapping stays, and the capture may
    /// be spoilt. So name the streams that may be captured.
    ///
    /// A mapping that drops closes in the same way; if that is refused, it stays mapped until a
    /// later import or [`release_deferred`]. A graph that was captured keeps no hold on it: keep
    /// the mapping as long as the graph is launched.
    ///
    /// # Errors
    /// Gives the mapping back, still mapped.
    pub fn close(mut self, streams: &[RawStream]) -> Result<(), NotClosed> {
        let closed = self
            .refuse_capturing(streams)
            .and_then(|()| self.held.release());
        closed.map_err(|error| {
            let capturing = error.cuda().is_some_and(crate::CudaError::is_capture);
            let source = if capturing {
                CloseError::Capturing
            } else {
                CloseError::Call(error)
            };
            NotClosed {
                mapping: Box::new(self),
                source,
            }
        })
    }

    fn refuse_capturing(&self, streams: &[RawStream]) -> Result<(), CallError> {
        if streams.is_empty() {
            return Ok(());
        }
        let entered = self.context.enter()?;
        streams
            .iter()
            .try_for_each(|stream| entered.refuse_capturing(stream.0))
    }
}

/// A mapping that was not closed.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct NotClosed {
    /// It is still mapped.
    pub mapping: Box<Mapping>,
    /// Why.
    pub source: CloseError,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("device", &self.context.device().uuid)
            .field("mechanism", &self.mechanism)
            .field("pointer", &format_args!("{:#x}", self.pointer))
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
