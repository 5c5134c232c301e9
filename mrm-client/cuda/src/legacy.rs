//! Sharing by the older inter-process handles: 64 bytes that name an allocation of a live process.
//!
//! A handle exposes the whole block that the allocation lies in, so each allocation here has whole
//! blocks of its own. Importers can write: the driver has no read-only way. The memory dies with
//! the exporter, whoever has it open.
//!
//! This is one of the files with unsafe code.

use crate::context::Context;
use crate::deferred::{Held, Parts, Release};
use crate::error::{CallError, CudaError, ShareError};
use crate::share::{
    Allocation, Block, Export, Exported, Mapping, Mechanism, Sealed, Sharing, call_failed, padded,
};
use cudarc::driver::sys::CUipcMemHandle;

/// The driver carves smaller allocations out of blocks of this size, and shares whole blocks.
const BLOCK_BYTES: u64 = 2 << 20;
/// The one flag that the driver defines: what peer access needs is enabled on opening.
const LAZY_ENABLE_PEER_ACCESS: u32 = 1;

/// The mechanism.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Legacy;

/// An allocation of this process, or one of another that is open here.
struct Memory {
    context: Context,
    /// Zero when there is none, or none any more.
    address: u64,
    imported: bool,
    /// Whether the caller may have queued work on it, on streams that are not known here.
    lent: bool,
}

struct Owned {
    held: Held<Memory>,
    exported: Exported,
}

impl Sharing for Legacy {
    fn mechanism(&self) -> Mechanism {
        Mechanism::Legacy
    }

    fn granularity_bytes(&self, _context: &Context) -> Result<u64, ShareError> {
        Ok(BLOCK_BYTES)
    }

    fn allocate(&self, context: &Context, bytes: u64) -> Result<Allocation, ShareError> {
        let block_bytes = padded(context, bytes, BLOCK_BYTES)?;
        let failed = |source: CallError| match source.cuda() {
            Some(CudaError::OUT_OF_MEMORY) => ShareError::OutOfMemory {
                device: context.device().uuid,
                requested_bytes: block_bytes as u64,
                free_bytes: context.memory().ok().map(|memory| memory.free_bytes),
            },
            _ => call_failed(context, "allocate memory", source),
        };
        let entered = context.enter().map_err(failed)?;
        let mut memory = Held(Memory::none(context, false));
        // SAFETY: the context is current, and the driver writes one address.
        let code = unsafe { (entered.table().mem_alloc)(&raw mut memory.0.address, block_bytes) };
        CallError::check("cuMemAlloc_v2", code).map_err(failed)?;
        let pointer = memory.0.address;
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the driver writes 64 bytes to `handle`; the address is an own allocation.
        let code = unsafe { (entered.table().ipc_get)(&raw mut handle, pointer) };
        CallError::check("cuIpcGetMemHandle", code).map_err(failed)?;
        let handle = handle
            .reserved
            .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
        let block = Box::new(Owned {
            held: memory,
            exported: Exported::Handle(handle),
        });
        Ok(Allocation::new(
            context,
            block,
            pointer,
            bytes,
            block_bytes as u64,
        ))
    }

    fn import(&self, context: &Context, export: Export, bytes: u64) -> Result<Mapping, ShareError> {
        let handle = match export {
            Export::Legacy(handle) => handle,
            Export::Vmm(_) => {
                let (wanted, given) = (Mechanism::Legacy, Mechanism::Vmm);
                return Err(ShareError::WrongMechanism { wanted, given });
            }
        };
        let block_bytes = padded(context, bytes, BLOCK_BYTES)?;
        let failed = |source| call_failed(context, "import memory", source);
        let entered = context.enter().map_err(failed)?;
        let table = entered.table();
        let handle = CUipcMemHandle {
            reserved: handle.map(|byte| std::ffi::c_char::from_ne_bytes(byte.to_ne_bytes())),
        };
        let mut memory = Held(Memory::none(context, true));
        let address = &raw mut memory.0.address;
        // SAFETY: the context is current; the driver writes one address, and checks the handle.
        let code = unsafe { (table.ipc_open)(address, handle, LAZY_ENABLE_PEER_ACCESS) };
        CallError::check("cuIpcOpenMemHandle_v2", code).map_err(failed)?;
        let pointer = memory.0.address;
        let (mut start, mut there_bytes) = (0, 0);
        // SAFETY: the driver writes one integer to each place; the address is open, above.
        let code =
            unsafe { (table.mem_address_range)(&raw mut start, &raw mut there_bytes, pointer) };
        CallError::check("cuMemGetAddressRange_v2", code).map_err(failed)?;
        if start != pointer || there_bytes < block_bytes {
            let why = format!("{there_bytes} bytes are there, {block_bytes} belong to it");
            return Err(ShareError::SizeMismatch {
                device: context.device().uuid,
                bytes,
                why,
            });
        }
        memory.0.lent = true;
        Ok(Mapping::new(
            context,
            Box::new(memory),
            Mechanism::Legacy,
            pointer,
            bytes,
        ))
    }

    fn reclaim(
        &self,
        context: &Context,
        export: Export,
        _bytes: u64,
    ) -> Result<Sealed, ShareError> {
        Err(match export {
            Export::Legacy(_) => ShareError::Gone {
                device: context.device().uuid,
            },
            Export::Vmm(_) => {
                let (wanted, given) = (Mechanism::Legacy, Mechanism::Vmm);
                ShareError::WrongMechanism { wanted, given }
            }
        })
    }
}

impl Memory {
    fn none(context: &Context, imported: bool) -> Self {
        Self {
            context: context.clone(),
            address: 0,
            imported,
            lent: false,
        }
    }
}

impl Parts for Memory {
    fn take(&mut self) -> Self {
        let nothing = Self::none(&self.context, self.imported);
        std::mem::replace(self, nothing)
    }
}

impl Release for Memory {
    fn release(&mut self) -> Result<(), CallError> {
        if self.address == 0 {
            return Ok(());
        }
        let context = self.context.clone();
        let entered = context.enter()?;
        if self.lent {
            entered.settle()?;
        }
        if self.imported {
            // SAFETY: opened here and closed once; queued work was waited for.
            let code = unsafe { (entered.table().ipc_close)(self.address) };
            CallError::check("cuIpcCloseMemHandle", code)?;
        } else {
            // SAFETY: allocated here and freed once; the driver waits for queued work.
            let code = unsafe { (entered.table().mem_free)(self.address) };
            CallError::check("cuMemFree_v2", code)?;
        }
        self.address = 0;
        Ok(())
    }
}

impl Release for Owned {
    fn release(&mut self) -> Result<(), CallError> {
        self.held.release()
    }
}

impl Block for Owned {
    fn seal(&mut self) -> Result<(), CallError> {
        // There is no access to take away.
        Ok(())
    }

    fn exported(&self) -> &Exported {
        &self.exported
    }
}
