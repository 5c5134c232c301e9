//! Models that were opened by their layout: what of them is there, and waiting for it.
//!
//! ```no_run
//! use mrm_client::{Client, OpenOptions, WaitFor};
//! let client = Client::connect()?;
//! let model = client.open_with("llama/70b", &OpenOptions::new().wait_for(WaitFor::Layout))?;
//! let first = model.tensor("model.embed_tokens.weight")?; // waits for this one alone
//! println!("{} bytes, the rest is there: {}", first.bytes_total(), model.is_whole());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::content::Memory;
use crate::error::TensorError;
use crate::model::Model;
use crate::open::OpenOptions;
use mrm_proto::limits::WAIT_MS_MAX;
use mrm_proto::request::WaitFor;
use mrm_proto::table::TensorRef;
use std::time::{Duration, Instant};

/// No wait is longer: beyond it a deadline could not be told.
const WAIT_MAX: Duration = Duration::from_millis(WAIT_MS_MAX);

impl Model {
    /// Whether the tensor called `name` is there. Always so, but for a model that was opened by its
    /// [layout](crate::WaitFor::Layout) and is still being filled. Looks, without waiting, at what
    /// the daemon has said by now.
    ///
    /// # Errors
    /// When there is no such tensor, the tensor table is damaged, or the load failed.
    pub fn ready(&self, name: &str) -> Result<bool, TensorError> {
        let entry = self.entry(name)?;
        if self.has(&entry) {
            return Ok(true);
        }
        self.open.lease.catch_up();
        match self.has(&entry) {
            true => Ok(true),
            false => self.may_come(name).map(|()| false),
        }
    }

    /// Whether all of it is there, and sealed. Looks, without waiting, at what the daemon has said.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Some(fate) = &self.open.filling else {
            return true;
        };
        let whole = || fate.filling().is_none_or(|filling| filling.is_whole());
        if !whole() {
            self.open.lease.catch_up();
        }
        whole()
    }

    /// Whether it is what an open asks for: all, or the layout.
    pub(crate) fn serves(&self, how: &OpenOptions<'_>) -> bool {
        how.wait_for == WaitFor::Layout || self.is_whole()
    }

    /// Waits until all of it is there and sealed.
    ///
    /// # Errors
    /// When it is not within `wait`, the load failed, the daemon went away, or what it lent turns out
    /// not to be sealed.
    pub fn wait_whole(&self, wait: Duration) -> Result<(), TensorError> {
        let done = || {
            let fate = self.open.filling.as_ref();
            fate.and_then(|fate| fate.filling())
                .is_none_or(|filling| filling.is_whole())
        };
        self.await_or_fail("all tensors", wait, done)?;
        self.check_sealed()
    }

    /// Waits for a tensor.
    pub(crate) fn await_tensor(
        &self,
        entry: &TensorRef<'_>,
        wait: Duration,
    ) -> Result<(), TensorError> {
        let done = || self.has(entry);
        self.await_or_fail(entry.name, wait, done)?;
        if self.open.filling.is_some() && self.is_whole() {
            self.check_sealed()?;
        }
        Ok(())
    }

    /// Waits for the whole model, for as long as the open said.
    pub(crate) fn await_whole(&self) -> Result<(), TensorError> {
        self.wait_whole(self.open.wait)
    }

    /// Whether the segment of this index may be lent out as a whole.
    pub(crate) fn is_sealed(&self, segment: usize) -> bool {
        let fate = self.open.filling.as_ref();
        let sealed = fate
            .and_then(|fate| fate.filling())
            .is_none_or(|filling| filling.is_sealed(segment));
        sealed && self.check_sealed_one(segment)
    }

    fn has(&self, entry: &TensorRef<'_>) -> bool {
        let fate = self.open.filling.as_ref();
        let bytes = entry.offset..entry.offset.saturating_add(entry.bytes);
        fate.and_then(|fate| fate.filling())
            .is_none_or(|filling| filling.has(entry.segment as usize, &bytes))
    }

    fn await_or_fail(
        &self,
        what: &str,
        wait: Duration,
        done: impl Fn() -> bool,
    ) -> Result<(), TensorError> {
        if done() {
            return Ok(());
        }
        let Some(fate) = &self.open.filling else {
            return Ok(());
        };
        if let Some(connection) = self.open.lease.connection() {
            let over = || done() || fate.why().is_some();
            connection.await_frames(Instant::now() + wait.min(WAIT_MAX), over);
        }
        if done() {
            return Ok(());
        }
        self.may_come(what)?;
        Err(TensorError::NotReady {
            model: self.name().to_owned(),
            tensor: what.to_owned(),
            waited: wait,
        })
    }

    /// Fails if what is not there will never be.
    fn may_come(&self, what: &str) -> Result<(), TensorError> {
        let why = self.open.filling.as_ref().and_then(|fate| fate.why());
        let (model, tensor) = (self.name().to_owned(), what.to_owned());
        match why {
            Some(source) => Err(TensorError::LoadFailed {
                model,
                tensor,
                source,
            }),
            None if !self.open.lease.is_counted() => Err(TensorError::DaemonGone { model, tensor }),
            None => Ok(()),
        }
    }

    /// Once it is whole, the kernel says so for each segment.
    fn check_sealed(&self) -> Result<(), TensorError> {
        if self.open.filling.is_none() {
            return Ok(());
        }
        let Memory::Host(_) = &self.open.content.memory else {
            return Ok(());
        };
        self.open.content.check_sealed().map_err(|source| {
            let model = self.name().to_owned();
            TensorError::NotSealed { model, source }
        })
    }

    fn check_sealed_one(&self, segment: usize) -> bool {
        self.open.filling.is_none() || self.open.content.is_sealed(segment)
    }
}
