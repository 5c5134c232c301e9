//! The allocations of an open on a device, which may come in several frames.

use crate::error::SessionError;
use crate::request::tables;
use mrm_proto::ids::RequestId;
use mrm_proto::limits::ALLOCATIONS_PER_MODEL_MAX;
use mrm_proto::reply::{Handed, IpcHandle, Opened, Sharing};
use std::os::fd::OwnedFd;

/// Most descriptors that may wait at one session for the `Opened` that they belong to, or for the
/// thread that asked.
pub(crate) const DESCRIPTORS_WAITING_MAX: usize = 4 * ALLOCATIONS_PER_MODEL_MAX;

/// What came ahead of an `Opened`.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    fds: Vec<OwnedFd>,
    handles: Vec<IpcHandle>,
}

impl Gathered {
    /// How many descriptors there are.
    pub(crate) fn descriptors(&self) -> usize {
        self.fds.len()
    }

    /// Adds what the next frame brought: in order, and not too many.
    pub(crate) fn add(
        &mut self,
        id: RequestId,
        handed: Handed,
        fds: Vec<OwnedFd>,
    ) -> Result<(), SessionError> {
        let before = self.fds.len() + self.handles.len();
        if handed.from != before as u64 {
            return Err(out_of_place(format!(
                "request {id} was handed allocations from {}, and has {before}",
                handed.from
            )));
        }
        self.fds.extend(fds);
        self.handles.extend(handed.handles);
        if self.fds.len() + self.handles.len() > ALLOCATIONS_PER_MODEL_MAX {
            return Err(out_of_place(format!(
                "request {id} was handed more than {ALLOCATIONS_PER_MODEL_MAX} allocations"
            )));
        }
        Ok(())
    }

    /// Puts what was gathered before what came with `opened` itself: `fds` are then those of the
    /// table, if it came, and of every allocation.
    pub(crate) fn finish(
        self,
        id: RequestId,
        opened: &mut Opened,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), SessionError> {
        let tables = tables(opened);
        let Some(on_device) = &mut opened.device else {
            return if self.fds.is_empty() && self.handles.is_empty() {
                Ok(())
            } else {
                Err(out_of_place(format!(
                    "request {id} was handed allocations, and opened in host memory"
                )))
            };
        };
        // The table comes first.
        fds.splice(tables..tables, self.fds);
        on_device.handles.splice(0..0, self.handles);
        let (handles, descriptors) = (on_device.handles.len(), fds.len() - tables);
        let wanted = on_device.allocations_bytes.len();
        let fits = match on_device.sharing {
            Sharing::Vmm => (descriptors, handles) == (wanted, 0),
            Sharing::Legacy => (descriptors, handles) == (0, wanted),
        };
        if fits && wanted <= ALLOCATIONS_PER_MODEL_MAX {
            return Ok(());
        }
        Err(out_of_place(format!(
            "request {id} got {descriptors} descriptors and {handles} handles of {wanted} \
             allocations"
        )))
    }
}

fn out_of_place(what: String) -> SessionError {
    SessionError::OutOfPlace(what)
}
