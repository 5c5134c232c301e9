//! Open models.
//!
//! ```no_run
//! let model = mrm_client::Client::connect()?.open("bert/base")?;
//! let image = model.segment(0).expect("a model has a file").bytes();
//! println!("{} has {} bytes", model.name(), image.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::content::{Open, Part};
use crate::device::{CloseError, DeviceError, DeviceWeights};
use crate::error::{LocalCode, Refusal, SegmentError, TensorError, What};
use crate::mapping::CopyOnWrite;
use crate::open::OpenOptions;
use crate::tensor::{Tensor, TensorLayout, Tensors};
use crate::vram::RawStream;
use mrm_proto::ids::VersionId;
use mrm_proto::reply::Origin;
use mrm_proto::table::{ModelKind, Table, TableError, TensorRef};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// An open model: a lease on one version, and its bytes mapped read-only, in host memory or on a
/// device.
///
/// Cheap to clone. When the last clone is dropped, the mapping goes and the lease is given back;
/// on a device that waits for queued work, see [`close`](Self::close). What was opened stays what
/// it was: if the file changes, or the daemon dies, the bytes remain. (On a device they do so
/// unless it is lost, or shared by legacy handles: see [`lost`](Self::lost).)
#[derive(Clone)]
pub struct Model {
    pub(crate) open: Arc<Open>,
    pub(crate) why_host: Option<Arc<DeviceError>>,
}

/// A model that was not closed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct NotClosed {
    /// The model, as it was. `None` when part of it was closed: the rest is closed later, with the
    /// lease kept until then.
    pub model: Option<Model>,
    /// Why.
    pub source: CloseError,
}

impl crate::Fault for NotClosed {
    fn number(&self) -> u16 {
        LocalCode::CloseRefused.number()
    }
    fn retryable(&self) -> bool {
        LocalCode::CloseRefused.retryable()
    }
}

/// One file of a model.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'m> {
    model: &'m Model,
    index: usize,
    part: &'m Part,
}

impl Model {
    /// The name that it was opened by, or the label of local files.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.open.name
    }

    /// The immutable version that the name stood for. Numbers are of one run of the daemon, and of
    /// those that take its memory over.
    #[must_use]
    pub fn version(&self) -> VersionId {
        self.open.version
    }

    /// What the open cost the daemon: a hit, a load, or a load joined.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.open.origin
    }

    /// From the daemon's receipt of the request to its reply, in microseconds.
    #[must_use]
    pub fn took_us(&self) -> u64 {
        self.open.took_us
    }

    /// Size of all its files; on a device, of its allocations.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        let parts = self.open.content.parts().iter();
        let files = parts.map(|part| part.mapping.len() as u64);
        self.device()
            .map_or_else(|| files.sum(), DeviceWeights::bytes_total)
    }

    /// Where on a device its weights are; `None` in host memory.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceWeights> {
        self.open.content.device()
    }

    /// Why it is in host memory, when the open asked for the best that could be had.
    #[must_use]
    pub fn why_host(&self) -> Option<&DeviceError> {
        self.why_host.as_deref()
    }

    /// Why what is mapped is of no use any more: its device was lost, or its memory went with the
    /// daemon that lent it by legacy handles; or, on a device or in host memory, it does not hold
    /// what was loaded any more (`damaged`). Looks, without waiting, at what the daemon has said by
    /// now; a later open of the name gets a new lease.
    #[must_use]
    pub fn lost(&self) -> Option<Refusal> {
        self.open.lease.catch_up();
        let taken = self.open.lease.lost();
        taken.or_else(|| self.open.content.lost())
    }

    /// Whether the daemon counts a lease on it now, as far as is known. Not so while there is no
    /// session, and never again once a daemon came that did not take over what the last one lent.
    ///
    /// What is mapped stays readable either way, and the same ([`lost`](Self::lost) tells the
    /// exception). Without a lease the daemon does not know that it is in use: it is not in its
    /// books, and a later open of the name gets a new lease and, where need be, loads anew. A
    /// program that would rather be counted opens the name again and drops this one.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        let lease = &self.open.lease;
        if lease.is_inherited() {
            return false;
        }
        lease.catch_up();
        lease.is_counted() && lease.lost().is_none()
    }

    /// Gives it back, as dropping does, but tells when that cannot be done now.
    ///
    /// On a device, the last handle of the process on the weights waits until all work that the
    /// process queued there is done, and unmaps them. That is refused while a stream is captured
    /// into a graph, which may refer to them: a capture on the default stream or one that it waits
    /// for is noticed without harm; for others see [`close_on`](Self::close_on). A graph keeps no
    /// hold on what it was captured with: keep the model as long as the graph is launched.
    ///
    /// A refused model comes back, still mapped and leased, but a later open of the name maps
    /// anew. In host memory nothing is ever refused.
    ///
    /// # Errors
    /// When a stream is being captured, or the driver refuses.
    pub fn close(self) -> Result<(), NotClosed> {
        self.close_naming(&[])
    }

    /// As [`close`](Self::close), naming streams of the program that may be captured: for streams
    /// made non-blocking, as torch's are, the driver does not tell otherwise, and waiting spoils
    /// their capture.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    #[cfg(feature = "cuda")]
    pub fn close_on(self, streams: &[RawStream]) -> Result<(), NotClosed> {
        self.close_naming(streams)
    }

    fn close_naming(self, streams: &[RawStream]) -> Result<(), NotClosed> {
        crate::device::retry_deferred();
        let why_host = self.why_host;
        // Others still use the open, or its memory: nothing is to be closed yet.
        let Some(mut open) = Arc::into_inner(self.open) else {
            return Ok(());
        };
        let mut content = match Arc::try_unwrap(open.content) {
            Ok(content) if !open.lease.is_inherited() => content,
            Ok(_) | Err(_) => return Ok(()),
        };
        let Err((source, whole)) = content.close(streams) else {
            return Ok(());
        };
        if !whole {
            let model = None;
            return Err(NotClosed { model, source });
        }
        open.content = Arc::new(content);
        let open = Arc::new(open);
        let model = Some(Self { open, why_host });
        Err(NotClosed { model, source })
    }

    /// Its files, each mapped as a whole. None of what is on a device, or is still being
    /// [filled](crate::WaitFor::Layout).
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment<'_>> {
        let all = 0..self.open.content.parts().len();
        let there: Vec<_> = all.filter_map(|index| self.segment(index)).collect();
        there.into_iter()
    }

    /// The `index`-th file, unless it is still being [filled](crate::WaitFor::Layout).
    #[must_use]
    pub fn segment(&self, index: usize) -> Option<Segment<'_>> {
        if !self.is_sealed(index) {
            return None;
        }
        let part = self.open.content.parts().get(index)?;
        Some(Segment {
            model: self,
            index,
            part,
        })
    }

    /// All its tensors. A model of one opaque file has none. Waits for all of a model that is still
    /// being [filled](crate::WaitFor::Layout).
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged; when what is being filled does not
    /// come.
    pub fn tensors(&self) -> Result<Tensors<'_>, TensorError> {
        self.await_whole()?;
        let tensors = Tensors::new(self.table()?, self);
        let whole = *self
            .open
            .content
            .whole
            .get_or_init(|| tensors.iter().count() == tensors.len());
        if whole {
            Ok(tensors)
        } else {
            Err(self.damaged("an entry"))
        }
    }

    /// The tensor called `name`. Waits for it, if it is still being
    /// [filled](crate::WaitFor::Layout), for as long as the open did.
    ///
    /// # Errors
    /// When there is none, or the tensor table is damaged; when it does not come.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, TensorError> {
        self.tensor_within(name, self.open.wait)
    }

    /// As [`tensor`](Self::tensor), but waits at most as long as `wait`.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn tensor_within(&self, name: &str, wait: Duration) -> Result<Tensor<'_>, TensorError> {
        let entry = self.entry(name)?;
        if let Some(touches) = &self.open.touches {
            touches.add(entry.position, self.table()?.len());
        }
        self.await_tensor(&entry, wait)?;
        Tensor::new(self, entry).ok_or_else(|| self.damaged("an entry"))
    }

    pub(crate) fn entry(&self, name: &str) -> Result<TensorRef<'_>, TensorError> {
        let table = self.table()?;
        table.find(name).ok_or_else(|| TensorError::NotFound {
            model: self.name().to_owned(),
            tensor: name.to_owned(),
            tensors: table.len(),
        })
    }

    /// The names of its tensors, in the order of the files. Waits for none of them.
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn tensor_names(&self) -> Result<Vec<&str>, TensorError> {
        let names = self
            .table()?
            .iter()
            .map(|entry| entry.map(|entry| entry.name));
        let names: Option<Vec<&str>> = names.collect();
        names.ok_or_else(|| self.damaged("an entry"))
    }

    /// What the tensor called `name` is. Does not wait for it, and is no use of it.
    ///
    /// # Errors
    /// When there is none, or the tensor table is damaged.
    pub fn layout(&self, name: &str) -> Result<TensorLayout<'_>, TensorError> {
        self.entry(name).map(TensorLayout::new)
    }

    /// What its tensors are, in the order of the files. Waits for none of them.
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn layouts(&self) -> Result<Vec<TensorLayout<'_>>, TensorError> {
        let entries = self.table()?.iter();
        let layouts: Option<Vec<_>> = entries.map(|entry| entry.map(TensorLayout::new)).collect();
        layouts.ok_or_else(|| self.damaged("an entry"))
    }

    /// Names of its files, in order, whether or not they are [filled](crate::WaitFor::Layout).
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn file_names(&self) -> Result<Vec<&str>, TensorError> {
        Ok(self.table()?.segment_names())
    }

    /// What kind of files it consists of.
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn kind(&self) -> Result<ModelKind, TensorError> {
        Ok(self.table()?.kind())
    }

    /// Metadata pairs, as the file had them.
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn metadata(&self) -> Result<Vec<(&str, &str)>, TensorError> {
        Ok(self.table()?.metadata())
    }

    /// Whether both are handles on one open: the same lease and the same memory.
    #[must_use]
    pub fn same_open(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }

    /// What the options ask for besides the open itself.
    pub(crate) fn for_asker(self, how: &OpenOptions<'_>) -> Self {
        // What is not there yet is not to be touched.
        if how.populate && self.is_whole() {
            self.open.content.populate();
        }
        self
    }

    pub(crate) fn table(&self) -> Result<Table<'_>, TensorError> {
        self.open.content.table(self.name())
    }

    fn damaged(&self, what: &'static str) -> TensorError {
        TensorError::Table {
            model: self.name().to_owned(),
            source: TableError::Bounds(what),
        }
    }
}

impl<'m> Segment<'m> {
    /// Name of the file whose image this is, if the tensor table can be read.
    #[must_use]
    pub fn name(&self) -> Option<&'m str> {
        self.model
            .table()
            .ok()?
            .segment_names()
            .get(self.index)
            .copied()
    }

    /// Its position among the model's segments.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// The exact image of the file.
    #[must_use]
    pub fn bytes(&self) -> &'m [u8] {
        self.part.mapping.bytes()
    }

    /// A mapping of the file's image that can be written to. Pages stay shared until they are
    /// written; what is written nobody else sees, and it is gone with the mapping. It may outlive
    /// the model, and then, like any mapping, keeps the memory.
    ///
    /// Those who only read keep their 2 MiB pages; the kernel copies 4 KiB for each page that is
    /// written here.
    ///
    /// # Errors
    /// When there is no address space for it.
    pub fn copy_on_write(&self) -> Result<CopyOnWrite, SegmentError> {
        let bytes = self.bytes().len() as u64;
        CopyOnWrite::new(self.part.fd.as_fd(), bytes, What::Segment(self.index))
    }

    /// The sealed memory file itself, open for reading, for a mapping of one's own.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'m> {
        self.part.fd.as_fd()
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name())
            .field("version", &self.version())
            .field("segments", &self.open.content.parts().len())
            .field("device", &self.device().map(DeviceWeights::uuid))
            .finish_non_exhaustive()
    }
}
