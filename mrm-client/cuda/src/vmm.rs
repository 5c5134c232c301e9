//! Sharing by virtual memory management: an allocation is exported as a file descriptor, and each
//! importer maps it for itself, read-only.
//!
//! The memory lives while any of these does: the exporter's handle or mapping, the descriptor, an
//! importer's mapping. So an importer outlives the exporter, and nothing outlives them all.
//!
//! This is one of the files with unsafe code.

use crate::context::{Context, Entered};
use crate::deferred::{Held, Parts, Release};
use crate::error::{CallError, CudaError, ShareError};
use crate::share::{
    Allocation, Block, Export, Exported, Mapping, Mechanism, Sealed, Sharing, call_failed, padded,
};
use cudarc::driver::sys::{
    CUmemAccess_flags_enum as Access, CUmemAccessDesc,
    CUmemAllocationHandleType_enum as HandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1 as AllocationFlags,
    CUmemAllocationType_enum as AllocationType, CUmemLocation, CUmemLocationType_enum as Location,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

const GRANULARITY_MINIMUM: u32 = 0;
const POSIX_FD: HandleType = HandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// The mechanism.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vmm;

/// What one allocation or import holds, each part of which is given back once.
struct Region {
    context: Context,
    handle: Option<u64>,
    address: u64,
    /// Of the address range; zero when none is reserved.
    reserved_bytes: usize,
    mapped: bool,
    /// Whether the caller may have queued work on it, on streams that are not known here.
    lent: bool,
}

struct Owned {
    held: Held<Region>,
    exported: Exported,
}

impl Sharing for Vmm {
    fn mechanism(&self) -> Mechanism {
        Mechanism::Vmm
    }

    fn granularity_bytes(&self, context: &Context) -> Result<u64, ShareError> {
        if let Some(bytes) = context.vmm_granularity_bytes().get() {
            return Ok(*bytes);
        }
        let failed = |source| call_failed(context, "ask for the granularity of memory", source);
        let entered = context.enter().map_err(failed)?;
        let (mut bytes, properties) = (0, properties(context));
        let ask = entered.table().mem_granularity;
        // SAFETY: the driver reads `properties` and writes one integer to `bytes`.
        let code = unsafe { ask(&raw mut bytes, &raw const properties, GRANULARITY_MINIMUM) };
        CallError::check("cuMemGetAllocationGranularity", code).map_err(failed)?;
        Ok(*context
            .vmm_granularity_bytes()
            .get_or_init(|| (bytes as u64).max(1)))
    }

    fn allocate(&self, context: &Context, bytes: u64) -> Result<Allocation, ShareError> {
        let block_bytes = padded(context, bytes, self.granularity_bytes(context)?)?;
        let failed = |source| allocate_failed(context, block_bytes, source);
        let entered = context.enter().map_err(failed)?;
        let mut region = Held(Region::none(context));
        region.0.create(&entered, block_bytes).map_err(failed)?;
        let fd = region.0.export(&entered).map_err(|source| {
            // The driver has no code of its own for this.
            no_descriptor().map_or_else(|| failed(source), ShareError::Descriptor)
        })?;
        region.0.map(&entered, block_bytes).map_err(failed)?;
        region
            .0
            .allow(&entered, Access::CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
            .map_err(failed)?;
        let pointer = region.0.address;
        let block = Box::new(Owned::new(region, fd));
        Ok(Allocation::new(
            context,
            block,
            pointer,
            bytes,
            block_bytes as u64,
        ))
    }

    fn import(&self, context: &Context, export: Export, bytes: u64) -> Result<Mapping, ShareError> {
        let fd = descriptor_of(export)?;
        let (mut region, _) = self.map_read_only(context, &fd, bytes, "import memory")?;
        region.0.lent = true;
        let pointer = region.0.address;
        Ok(Mapping::new(
            context,
            Box::new(region),
            Mechanism::Vmm,
            pointer,
            bytes,
        ))
    }

    fn reclaim(&self, context: &Context, export: Export, bytes: u64) -> Result<Sealed, ShareError> {
        let fd = descriptor_of(export)?;
        let (region, block_bytes) = self.map_read_only(context, &fd, bytes, "reclaim memory")?;
        let pointer = region.0.address;
        let block = Box::new(Owned::new(region, fd));
        Ok(Sealed::new(context, block, pointer, bytes, block_bytes))
    }
}

impl Vmm {
    /// What another process exported, and how many bytes of it are mapped here.
    fn map_read_only(
        self,
        context: &Context,
        fd: &OwnedFd,
        bytes: u64,
        doing: &'static str,
    ) -> Result<(Held<Region>, u64), ShareError> {
        let block_bytes = padded(context, bytes, self.granularity_bytes(context)?)?;
        let failed = |source| call_failed(context, doing, source);
        let entered = context.enter().map_err(failed)?;
        let mut region = Held(Region::none(context));
        region.0.import(&entered, fd).map_err(failed)?;
        region.0.map(&entered, block_bytes).map_err(|source| {
            let not_so = CallError::Driver {
                call: "cuMemMap",
                error: CudaError::INVALID_VALUE,
            };
            if source != not_so {
                return failed(source);
            }
            let device = context.device().uuid;
            ShareError::SizeMismatch {
                device,
                bytes,
                why: source.to_string(),
            }
        })?;
        region
            .0
            .allow(&entered, Access::CU_MEM_ACCESS_FLAGS_PROT_READ)
            .map_err(failed)?;
        // The mapping alone keeps the memory from now on.
        region.0.forget_handle(&entered).map_err(failed)?;
        Ok((region, block_bytes as u64))
    }
}

fn descriptor_of(export: Export) -> Result<OwnedFd, ShareError> {
    match export {
        Export::Vmm(fd) => Ok(fd),
        Export::Legacy(_) => {
            let (wanted, given) = (Mechanism::Vmm, Mechanism::Legacy);
            Err(ShareError::WrongMechanism { wanted, given })
        }
    }
}

/// Why this process cannot open anything any more, if so.
fn no_descriptor() -> Option<rustix::io::Errno> {
    use rustix::io::Errno;
    let tried = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
    tried
        .err()
        .filter(|errno| matches!(*errno, Errno::MFILE | Errno::NFILE))
}

fn allocate_failed(context: &Context, block_bytes: usize, source: CallError) -> ShareError {
    if source.cuda() == Some(CudaError::OUT_OF_MEMORY) {
        return ShareError::OutOfMemory {
            device: context.device().uuid,
            requested_bytes: block_bytes as u64,
            free_bytes: context.memory().ok().map(|memory| memory.free_bytes),
        };
    }
    call_failed(context, "allocate memory", source)
}

fn properties(context: &Context) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: AllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: POSIX_FD,
        location: location(context),
        win32HandleMetaData: ptr::null_mut(),
        allocFlags: AllocationFlags {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

fn location(context: &Context) -> CUmemLocation {
    CUmemLocation {
        type_: Location::CU_MEM_LOCATION_TYPE_DEVICE,
        id: context.number(),
    }
}

impl Region {
    fn none(context: &Context) -> Self {
        let context = context.clone();
        Self {
            context,
            handle: None,
            address: 0,
            reserved_bytes: 0,
            mapped: false,
            lent: false,
        }
    }

    fn create(&mut self, entered: &Entered<'_>, bytes: usize) -> Result<(), CallError> {
        let (mut handle, properties) = (0, properties(&self.context));
        let create = entered.table().mem_create;
        // SAFETY: the driver reads `properties` and writes one integer to `handle`.
        let code = unsafe { create(&raw mut handle, bytes, &raw const properties, 0) };
        CallError::check("cuMemCreate", code)?;
        self.handle = Some(handle);
        Ok(())
    }

    fn import(&mut self, entered: &Entered<'_>, fd: &OwnedFd) -> Result<(), CallError> {
        let mut handle = 0;
        // The driver takes the number of the descriptor in place of a pointer.
        let number = ptr::without_provenance_mut(usize::try_from(fd.as_raw_fd()).unwrap_or(0));
        let import = entered.table().mem_import;
        // SAFETY: the driver writes one integer to `handle`; the descriptor is open, and stays the
        // caller's. The driver checks what it refers to.
        let code = unsafe { import(&raw mut handle, number, POSIX_FD.0) };
        CallError::check("cuMemImportFromShareableHandle", code)?;
        self.handle = Some(handle);
        Ok(())
    }

    fn export(&self, entered: &Entered<'_>) -> Result<OwnedFd, CallError> {
        let mut fd: RawFd = -1;
        let (handle, export) = (self.handle.unwrap_or(0), entered.table().mem_export);
        // SAFETY: for this type of handle the driver writes one int, the new descriptor, to `fd`.
        let code = unsafe { export((&raw mut fd).cast(), handle, POSIX_FD.0, 0) };
        CallError::check("cuMemExportToShareableHandle", code)?;
        // SAFETY: the driver made the descriptor for this caller, and says that it succeeded.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The driver does not promise this; a child that inherits it would pin the memory. An
        // error is of no consequence for an open descriptor.
        let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
        Ok(fd)
    }

    fn map(&mut self, entered: &Entered<'_>, bytes: usize) -> Result<(), CallError> {
        let table = entered.table();
        // SAFETY: the driver writes one address to `address`; 0 leaves place and alignment to it.
        let code = unsafe { (table.mem_reserve)(&raw mut self.address, bytes, 0, 0, 0) };
        CallError::check("cuMemAddressReserve", code)?;
        self.reserved_bytes = bytes;
        let handle = self.handle.unwrap_or(0);
        // SAFETY: the range is reserved by the lines above and nothing is mapped in it; the driver
        // checks the handle, and `bytes` against its size.
        let code = unsafe { (table.mem_map)(self.address, bytes, 0, handle, 0) };
        CallError::check("cuMemMap", code)?;
        self.mapped = true;
        Ok(())
    }

    fn allow(&self, entered: &Entered<'_>, access: Access) -> Result<(), CallError> {
        let description = CUmemAccessDesc {
            location: location(&self.context),
            flags: access,
        };
        let allow = entered.table().mem_set_access;
        // SAFETY: the range is mapped and owned; the driver reads one description.
        let code = unsafe { allow(self.address, self.reserved_bytes, &raw const description, 1) };
        CallError::check("cuMemSetAccess", code)
    }

    fn forget_handle(&mut self, entered: &Entered<'_>) -> Result<(), CallError> {
        if let Some(handle) = self.handle {
            // SAFETY: the handle was created or imported here, and is forgotten below.
            let code = unsafe { (entered.table().mem_release)(handle) };
            CallError::check("cuMemRelease", code)?;
            self.handle = None;
        }
        Ok(())
    }
}

impl Parts for Region {
    fn take(&mut self) -> Self {
        let nothing = Self::none(&self.context);
        std::mem::replace(self, nothing)
    }
}

impl Release for Region {
    fn release(&mut self) -> Result<(), CallError> {
        if !self.mapped && self.reserved_bytes == 0 && self.handle.is_none() {
            return Ok(());
        }
        let context = self.context.clone();
        let entered = context.enter()?;
        let table = entered.table();
        if self.mapped {
            if self.lent {
                entered.settle()?;
            }
            // SAFETY: the range is mapped and owned. Queued work was waited for: here for an
            // import, by the contracts of `Stream` for an own allocation.
            let code = unsafe { (table.mem_unmap)(self.address, self.reserved_bytes) };
            CallError::check("cuMemUnmap", code)?;
            self.mapped = false;
        }
        if self.reserved_bytes > 0 {
            // SAFETY: the range was reserved here, whole, and nothing is mapped in it.
            let code = unsafe { (table.mem_address_free)(self.address, self.reserved_bytes) };
            CallError::check("cuMemAddressFree", code)?;
            self.reserved_bytes = 0;
        }
        self.forget_handle(&entered)
    }
}

impl Owned {
    fn new(held: Held<Region>, fd: OwnedFd) -> Self {
        Self {
            held,
            exported: Exported::Fd(Arc::new(fd)),
        }
    }
}

impl Release for Owned {
    fn release(&mut self) -> Result<(), CallError> {
        self.held.release()
    }
}

impl Block for Owned {
    fn seal(&mut self) -> Result<(), CallError> {
        let region = &self.held.0;
        let entered = region.context.enter()?;
        region.allow(&entered, Access::CU_MEM_ACCESS_FLAGS_PROT_READ)
    }

    fn exported(&self) -> &Exported {
        &self.exported
    }
}
