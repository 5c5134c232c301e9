//! What is open: the memory of a version, and the lease that keeps it.

use crate::device::{CloseError, Device, DeviceWeights};
use crate::error::{Refusal, SegmentError, TensorError, What};
use crate::lease::{Fate, Lease};
use crate::mapping::{self, Mapping};
use crate::tables::TableSegment;
use crate::touches::Touches;
use crate::vram::{Contexts, Mapped, RawStream};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::ids::VersionId;
use mrm_proto::layout::{Layout, LayoutError, Place};
use mrm_proto::reply::{OnDevice, Opened, Origin, Sharing};
use mrm_proto::table::{Table, TableError};
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// One granted open. Fields are dropped in order: the memory goes before the lease.
#[derive(Debug)]
pub(crate) struct Open {
    /// What was asked to be kept free on its device.
    pub(crate) reserve_bytes: u64,
    pub(crate) name: Box<str>,
    pub(crate) version: VersionId,
    pub(crate) origin: Origin,
    pub(crate) took_us: u64,
    /// How long a tensor is waited for that is not there yet.
    pub(crate) wait: Duration,
    /// What the daemon said of it, if it was granted before it was filled.
    pub(crate) filling: Option<Arc<Fate>>,
    pub(crate) content: Arc<Content>,
    /// In which order its tensors are used, if that is worth telling; told before the lease goes.
    pub(crate) touches: Option<Touches>,
    pub(crate) lease: Arc<Lease>,
}

impl Open {
    /// Whether all of it is there, as far as the daemon was heard.
    pub(crate) fn is_whole(&self) -> bool {
        let filling = self.filling.as_ref().and_then(|fate| fate.filling());
        filling.is_none_or(|filling| filling.is_whole())
    }

    /// Whether it may stand for its name: its lease counts, and was not taken away.
    pub(crate) fn is_good(&self) -> bool {
        self.lease.is_counted() && self.content.lost().is_none() && self.lease.lost().is_none()
    }
}

/// The memory of one version, shared by every open of it in the process.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) memory: Memory,
    table: Arc<TableSegment>,
    /// Whether every entry leads to a tensor, once somebody asked for all of them.
    pub(crate) whole: OnceLock<bool>,
    /// Once every page is mapped.
    populated: OnceLock<()>,
    /// Whether what was lent before it was filled is sealed, once it was said to be.
    sealed: OnceLock<Result<(), SegmentError>>,
}

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Memory {
    /// One segment a file.
    Host(Vec<Part>),
    Device(Box<Vram>),
}

/// One segment.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) mapping: Mapping,
    pub(crate) fd: OwnedFd,
}

/// Weights on a device, mapped, and the lease that they were mapped with. That lease is given back
/// when they are closed, though the open that brought it may be gone before.
#[derive(Debug)]
pub(crate) struct Vram {
    pub(crate) weights: DeviceWeights,
    mapped: Mapped,
    /// Made when the first tensor is asked for.
    layout: OnceLock<Result<Layout, LayoutError>>,
    keeper: Arc<Lease>,
}

impl Part {
    fn check(&self, index: usize) -> Result<(), SegmentError> {
        let bytes = self.mapping.len() as u64;
        mapping::check(self.fd.as_fd(), bytes, What::Segment(index))
    }
}

impl Content {
    /// Checks and maps what came with a grant of host memory. `fds` are those of the segments.
    pub(crate) fn in_host(
        opened: &Opened,
        table: Arc<TableSegment>,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, SegmentError> {
        let mut parts = Vec::with_capacity(opened.segments_bytes.len());
        for (index, (&bytes, fd)) in opened.segments_bytes.iter().zip(fds).enumerate() {
            let what = What::Segment(index);
            let filling = opened.filling.iter().flatten();
            let mapping = if filling.copied().any(|filling| filling as usize == index) {
                Mapping::new_filling(fd.as_fd(), bytes, what)?
            } else {
                Mapping::new(fd.as_fd(), bytes, what)?
            };
            parts.push(Part { mapping, fd });
        }
        Ok(Self::new(Memory::Host(parts), table))
    }

    /// Maps what came with a grant on a device. `fds` are those of the allocations.
    pub(crate) fn on_device(
        grant: &OnDevice,
        table: Arc<TableSegment>,
        fds: Vec<OwnedFd>,
        contexts: &mut Contexts,
        keeper: &Arc<Lease>,
    ) -> Result<Self, Arc<dyn Error + Send + Sync>> {
        let (device, mapped): (Device, Mapped) = contexts.import(grant, fds, keeper)?;
        let vram = Vram {
            weights: DeviceWeights {
                device,
                sharing: grant.sharing,
                granularity: grant.granularity,
                allocations: mapped.allocations(),
            },
            mapped,
            layout: OnceLock::new(),
            keeper: Arc::clone(keeper),
        };
        Ok(Self::new(Memory::Device(Box::new(vram)), table))
    }

    fn new(memory: Memory, table: Arc<TableSegment>) -> Self {
        Self {
            memory,
            table,
            whole: OnceLock::new(),
            populated: OnceLock::new(),
            sealed: OnceLock::new(),
        }
    }

    /// Whether a segment that was lent before it was filled is sealed as any other.
    pub(crate) fn is_sealed(&self, index: usize) -> bool {
        let part = self.parts().get(index);
        part.is_some_and(|part| part.check(index).is_ok())
    }

    /// The same for all; looks once.
    pub(crate) fn check_sealed(&self) -> Result<(), SegmentError> {
        let check = || {
            let mut parts = self.parts().iter().enumerate();
            parts.try_for_each(|(index, part)| part.check(index))
        };
        self.sealed.get_or_init(check).clone()
    }

    /// Whether this is what a grant describes.
    pub(crate) fn is_of(&self, opened: &Opened) -> bool {
        let same = match (&self.memory, &opened.device) {
            (Memory::Host(parts), None) => {
                let lengths = parts.iter().map(|part| part.mapping.len() as u64);
                lengths.eq(opened.segments_bytes.iter().copied())
            }
            (Memory::Device(vram), Some(grant)) => vram.is_of(grant),
            (Memory::Host(_), Some(_)) | (Memory::Device(_), None) => false,
        };
        same && self.table.len() == opened.table_bytes
    }

    /// Whether it is still good for others: on a device, whether the lease that it was mapped with
    /// counts. What a lease does not keep may have been freed and loaded again since.
    pub(crate) fn is_kept(&self) -> bool {
        match &self.memory {
            Memory::Host(_) => true,
            Memory::Device(vram) => vram.keeper.is_counted() && vram.keeper.lost().is_none(),
        }
    }

    /// Whether what it maps in host memory is behind these descriptors.
    pub(crate) fn maps<F: AsFd>(&self, fds: &[F]) -> bool {
        let parts = self.parts();
        let same = |(part, fd): (&Part, &F)| is_same(part.fd.as_fd(), fd.as_fd());
        parts.len() == fds.len() && parts.iter().zip(fds).all(same)
    }

    /// The segments in host memory; none of what is on a device.
    pub(crate) fn parts(&self) -> &[Part] {
        match &self.memory {
            Memory::Host(parts) => parts,
            Memory::Device(_) => &[],
        }
    }

    /// Maps every page of what is in host memory, once.
    pub(crate) fn populate(&self) {
        self.populated
            .get_or_init(|| self.parts().iter().for_each(|part| part.mapping.populate()));
    }

    /// Where the weights are on a device.
    pub(crate) fn device(&self) -> Option<&DeviceWeights> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(vram) => Some(&vram.weights),
        }
    }

    /// Why the memory is of no use any more, if that is so.
    pub(crate) fn lost(&self) -> Option<Refusal> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(vram) => vram.lost(),
        }
    }

    /// Closes what is on a device. `Err` says whether nothing was closed.
    pub(crate) fn close(&mut self, streams: &[RawStream]) -> Result<(), (CloseError, bool)> {
        match &mut self.memory {
            Memory::Host(_) => Ok(()),
            Memory::Device(vram) => {
                let all = vram.mapped.len();
                let closed = vram.mapped.close(streams);
                closed.map_err(|why| (why, vram.mapped.len() == all))
            }
        }
    }

    /// The tensor table of `model`.
    pub(crate) fn table(&self, model: &str) -> Result<Table<'_>, TensorError> {
        let failed = |source: &SegmentError| TensorError::TableSegment {
            model: model.to_owned(),
            source: source.clone(),
        };
        let bytes = self.table.bytes().map_err(failed)?;
        let table = Table::parse(bytes).map_err(|source| damaged(model, source))?;
        if let Memory::Device(vram) = &self.memory {
            let layout = vram.layout.get_or_init(|| vram.lay_out(&table));
            layout.as_ref().map_err(|why| match why {
                LayoutError::NoTensors | LayoutError::TooManyAllocations | LayoutError::Damaged => {
                    damaged(model, TableError::Bounds("a place on the device"))
                }
            })?;
        }
        Ok(table)
    }
}

fn damaged(model: &str, source: TableError) -> TensorError {
    TensorError::Table {
        model: model.to_owned(),
        source,
    }
}

impl Vram {
    /// Address of the tensor at `position` in the file order: 0 for one of no bytes, and `None`
    /// where the table disagrees with what was granted.
    pub(crate) fn address(&self, position: u32, bytes: u64) -> Option<u64> {
        if bytes == 0 {
            return Some(0);
        }
        let layout = self.layout.get()?.as_ref().ok()?;
        let Place {
            allocation,
            offset_bytes,
        } = layout.place(position)?;
        let (start, size) = *self.weights.allocations.get(allocation as usize)?;
        let end = offset_bytes.checked_add(bytes)?;
        (end <= size).then(|| start + offset_bytes)
    }

    fn lay_out(&self, table: &Table<'_>) -> Result<Layout, LayoutError> {
        let layout = Layout::new(table, self.weights.granularity)?;
        let granted = self.weights.allocations.iter().map(|(_, bytes)| *bytes);
        if layout.allocations_bytes().iter().copied().eq(granted) {
            Ok(layout)
        } else {
            Err(LayoutError::Damaged)
        }
    }

    fn is_of(&self, grant: &OnDevice) -> bool {
        let weights = &self.weights;
        let sizes = weights.allocations.iter().map(|(_, bytes)| *bytes);
        weights.uuid() == grant.uuid
            && weights.sharing == grant.sharing
            && weights.granularity == grant.granularity
            && sizes.eq(grant.allocations_bytes.iter().copied())
    }

    fn lost(&self) -> Option<Refusal> {
        let gone = || match self.weights.sharing {
            Sharing::Legacy if !self.keeper.is_counted() => {
                let message = "the session with mrmd ended, and memory shared by legacy handles \
                               goes with the daemon: open the model again";
                Some(Refusal(ErrorReply::new(ErrorCode::DeviceLost, message)))
            }
            Sharing::Legacy | Sharing::Vmm => None,
        };
        self.keeper.lost().or_else(gone)
    }
}

impl AsFd for Part {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether these are the same memory. If it cannot be told, it is taken for another.
fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

impl Drop for Vram {
    fn drop(&mut self) {
        self.mapped.retire(&self.keeper);
    }
}
