//! Open models.
//!
//! ```no_run
//! let model = mrm_client::Client::connect()?.open("bert/base")?;
//! let image = model.segment(0).expect("a model has a file").bytes();
//! println!("{} has {} bytes", model.name(), image.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::error::{SegmentError, TensorError, What};
use crate::mapping::Mapping;
use crate::tensor::{Tensor, Tensors};
use mrm_proto::ids::{LeaseId, VersionId};
use mrm_proto::reply::{Opened, Origin};
use mrm_proto::table::{ModelKind, Table, TableError};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

/// An open model: a lease on one version, and its bytes mapped read-only.
///
/// Cheap to clone. When the last clone is dropped, the mapping goes and the lease is given back.
/// What was opened stays what it was: if the file changes, or the daemon dies, the bytes remain.
#[derive(Clone)]
pub struct Model(pub(crate) Arc<Open>);

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
        &self.0.name
    }

    /// The immutable version that the name stood for. Numbers are of one run of the daemon.
    #[must_use]
    pub fn version(&self) -> VersionId {
        self.0.version
    }

    /// What the open cost the daemon: a hit, a load, or a load joined.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// From the daemon's receipt of the request to its reply, in microseconds.
    #[must_use]
    pub fn took_us(&self) -> u64 {
        self.0.took_us
    }

    /// Size of all its files.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.segments()
            .map(|segment| segment.bytes().len() as u64)
            .sum()
    }

    /// Its files, each mapped as a whole.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment<'_>> {
        let parts = self.0.content.parts.iter().enumerate();
        parts.map(|(index, part)| Segment {
            model: self,
            index,
            part,
        })
    }

    /// The `index`-th file.
    #[must_use]
    pub fn segment(&self, index: usize) -> Option<Segment<'_>> {
        let part = self.0.content.parts.get(index)?;
        Some(Segment {
            model: self,
            index,
            part,
        })
    }

    /// All its tensors. A model of one opaque file has none.
    ///
    /// # Errors
    /// When the tensor table cannot be mapped, or is damaged.
    pub fn tensors(&self) -> Result<Tensors<'_>, TensorError> {
        let tensors = Tensors::new(self.table()?, self);
        let whole = *self
            .0
            .content
            .whole
            .get_or_init(|| tensors.iter().count() == tensors.len());
        if whole {
            Ok(tensors)
        } else {
            Err(self.damaged("an entry"))
        }
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// When there is none, or the tensor table is damaged.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, TensorError> {
        let table = self.table()?;
        let Some(entry) = table.find(name) else {
            let (model, tensor) = (self.name().to_owned(), name.to_owned());
            return Err(TensorError::NotFound {
                model,
                tensor,
                tensors: table.len(),
            });
        };
        Tensor::new(self, entry).ok_or_else(|| self.damaged("an entry"))
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
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn table(&self) -> Result<Table<'_>, TensorError> {
        let content = &*self.0.content;
        let mapped = content.table.get_or_init(|| {
            Mapping::new(content.table_fd.as_fd(), content.table_bytes, What::Table)
        });
        let failed = |source: &SegmentError| TensorError::TableSegment {
            model: self.name().to_owned(),
            source: source.clone(),
        };
        let bytes = mapped.as_ref().map_err(failed)?.bytes();
        Table::parse(bytes).map_err(|source| TensorError::Table {
            model: self.name().to_owned(),
            source,
        })
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

    /// The sealed memory file itself, open for reading, for a mapping of one's own: private and
    /// writable, for instance.
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
            .field("segments", &self.0.content.parts.len())
            .finish_non_exhaustive()
    }
}

/// One granted open. Fields are dropped in order: the memory goes before the lease.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) name: Box<str>,
    pub(crate) version: VersionId,
    pub(crate) origin: Origin,
    pub(crate) took_us: u64,
    pub(crate) content: Arc<Content>,
    pub(crate) lease: Lease,
}

/// The memory of one version, shared by every open of it in the process.
#[derive(Debug)]
pub(crate) struct Content {
    parts: Vec<Part>,
    table_fd: OwnedFd,
    table_bytes: u64,
    /// Mapped when the first tensor is asked for: opaque users never pay for it.
    table: OnceLock<Result<Mapping, SegmentError>>,
    /// Whether every entry leads to a tensor, once somebody asked for all of them.
    whole: OnceLock<bool>,
}

impl Content {
    /// Whether this is what a grant describes.
    pub(crate) fn is_of(&self, opened: &Opened) -> bool {
        let lengths = self
            .parts
            .iter()
            .map(|part| part.mapping.bytes().len() as u64);
        self.table_bytes == opened.table_bytes && lengths.eq(opened.segments_bytes.iter().copied())
    }
}

/// One segment.
#[derive(Debug)]
pub(crate) struct Part {
    mapping: Mapping,
    fd: OwnedFd,
}

impl Content {
    /// Checks and maps what came with a grant. `fds` are those of the segments.
    pub(crate) fn new(
        opened: &Opened,
        table_fd: OwnedFd,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, SegmentError> {
        let mut parts = Vec::with_capacity(opened.segments_bytes.len());
        for (index, (&bytes, fd)) in opened.segments_bytes.iter().zip(fds).enumerate() {
            let mapping = Mapping::new(fd.as_fd(), bytes, What::Segment(index))?;
            parts.push(Part { mapping, fd });
        }
        let table_bytes = opened.table_bytes;
        let (table, whole) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            parts,
            table_fd,
            table_bytes,
            table,
            whole,
        })
    }
}

/// The right to map a version. Given back when dropped, without waiting.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) holder: Arc<dyn Holder>,
}

/// A session that leases can be given back to.
pub(crate) trait Holder: std::fmt::Debug + Send + Sync {
    /// Gives a lease back without blocking; does nothing when the session is over.
    fn give_back(&self, lease: LeaseId);
    /// Whether the session is not known to be over.
    fn is_live(&self) -> bool;
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.holder.give_back(self.id);
    }
}
