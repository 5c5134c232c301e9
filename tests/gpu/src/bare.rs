//! The driver with nothing in between: the floor of every figure, and what steps must do behind
//! the library's back (write where it is forbidden, export without a context).
//!
//! The unsafe file of this program. Everything here is done on the thread that made the [`Bare`].

use cudarc::driver::sys::{
    CUipcMemHandle, CUmemAccess_flags_enum as Access, CUmemAccessDesc,
    CUmemAllocationHandleType_enum as HandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1 as AllocationFlags,
    CUmemAllocationType_enum as AllocationType, CUmemLocation, CUmemLocationType_enum as Location,
};
use libloading::Library;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

const POSIX_FD: HandleType = HandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// A kernel that stores one word: what a client's own code does, which no call checks before.
const POKE: &[u8] = b".version 7.0\n.target sm_70\n.address_size 64\n\
.visible .entry poke(.param .u64 p) {\n\
.reg .u64 %rd<2>;\n.reg .u32 %r<2>;\n\
ld.param.u64 %rd1, [p];\ncvta.to.global.u64 %rd1, %rd1;\n\
mov.u32 %r1, 3735928559;\nst.global.u32 [%rd1], %r1;\nret;\n}\n\0";

macro_rules! table {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Table {
            $($field: Option<unsafe extern "C" fn($($argument),*) -> u32>,)*
        }

        impl Table {
            fn find(library: &Library) -> Self {
                Self { $(
                    // SAFETY: the type is the one that the driver's header declares for this
                    // symbol, an enum standing as the integer that it is in C.
                    $field: unsafe { library.get($symbol) }.ok().map(|symbol| *symbol),
                )* }
            }
        }
    };
}

table! {
    init = "cuInit" (c_uint);
    device_get = "cuDeviceGet" (*mut c_int, c_int);
    retain = "cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int);
    push = "cuCtxPushCurrent_v2" (*mut c_void);
    synchronize = "cuCtxSynchronize" ();
    create = "cuMemCreate" (*mut u64, usize, *const CUmemAllocationProp, u64);
    release = "cuMemRelease" (u64);
    export = "cuMemExportToShareableHandle" (*mut c_void, u64, c_uint, u64);
    import = "cuMemImportFromShareableHandle" (*mut u64, *mut c_void, c_uint);
    reserve = "cuMemAddressReserve" (*mut u64, usize, usize, u64, u64);
    unreserve = "cuMemAddressFree" (u64, usize);
    map = "cuMemMap" (u64, usize, usize, u64, u64);
    unmap = "cuMemUnmap" (u64, usize);
    set_access = "cuMemSetAccess" (u64, usize, *const CUmemAccessDesc, usize);
    ipc_open = "cuIpcOpenMemHandle_v2" (*mut u64, CUipcMemHandle, c_uint);
    ipc_close = "cuIpcCloseMemHandle" (u64);
    alloc = "cuMemAlloc_v2" (*mut u64, usize);
    free = "cuMemFree_v2" (u64);
    set = "cuMemsetD8_v2" (u64, u8, usize);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    copy_in = "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, *mut c_void);
    copy_in_now = "cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    copy_out = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    module_load = "cuModuleLoadData" (*mut *mut c_void, *const c_void);
    module_function = "cuModuleGetFunction" (*mut *mut c_void, *mut c_void, *const c_char);
    launch = "cuLaunchKernel" (*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void);
}

macro_rules! call {
    ($self:ident.$field:ident($($argument:expr),*)) => {{
        let function = $self.table.$field
            .ok_or_else(|| format!("the driver has no function for {}", stringify!($field)))?;
        // SAFETY: what is passed are numbers, which the driver checks, and live places of the
        // caller, which it writes one value to or reads one structure from. Lengths of host
        // memory are those of the caller's slices, and every copy is waited for before its slice
        // ends (`copy_in`), or is taken synchronously.
        let code = unsafe { function($($argument),*) };
        if code == 0 { Ok(()) } else { Err(format!("{}: error {code}", stringify!($field))) }
    }};
}

/// The driver, on one thread.
pub(crate) struct Bare {
    table: Table,
    device: c_int,
    thread: PhantomData<*const ()>,
}

/// A mapping that was made by bare calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BareMapping {
    pub(crate) pointer: u64,
    bytes: usize,
    handle: u64,
}

/// Page-locked memory of the driver's.
pub(crate) struct Locked<'a> {
    bare: &'a Bare,
    address: *mut c_void,
    bytes: usize,
}

impl Bare {
    /// With the primary context of device `ordinal` current on this thread, to its end.
    pub(crate) fn enter(ordinal: i32) -> Result<Self, String> {
        let bare = Self::without_context(ordinal)?;
        let mut context = ptr::null_mut();
        call!(bare.retain(&raw mut context, bare.device))?;
        call!(bare.push(context))?;
        Ok(bare)
    }

    /// Initialised, and no more.
    pub(crate) fn without_context(ordinal: i32) -> Result<Self, String> {
        // SAFETY: loading runs the initialisers of the CUDA driver, as every CUDA program does.
        let library = unsafe { Library::new("libcuda.so.1") }.map_err(|error| error.to_string())?;
        let table = Table::find(Box::leak(Box::new(library)));
        let mut bare = Self {
            table,
            device: 0,
            thread: PhantomData,
        };
        call!(bare.init(0))?;
        let mut device = 0;
        call!(bare.device_get(&raw mut device, ordinal))?;
        bare.device = device;
        Ok(bare)
    }

    pub(crate) fn synchronize(&self) -> Result<(), String> {
        call!(self.synchronize())
    }

    fn location(&self) -> CUmemLocation {
        CUmemLocation {
            type_: Location::CU_MEM_LOCATION_TYPE_DEVICE,
            id: self.device,
        }
    }

    fn properties(&self) -> CUmemAllocationProp {
        CUmemAllocationProp {
            type_: AllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: POSIX_FD,
            location: self.location(),
            win32HandleMetaData: ptr::null_mut(),
            allocFlags: AllocationFlags {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        }
    }

    /// Creates memory and exports it. Neither maps it nor, by itself, needs a context.
    pub(crate) fn create_and_export(&self, bytes: usize) -> Result<(u64, OwnedFd), String> {
        let (mut handle, properties) = (0, self.properties());
        call!(self.create(&raw mut handle, bytes, &raw const properties, 0))?;
        let mut fd: c_int = -1;
        call!(self.export((&raw mut fd).cast(), handle, POSIX_FD.0, 0))?;
        // SAFETY: the driver made the descriptor for this caller, and says that it succeeded.
        Ok((handle, unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Import, reservation, mapping and read access: the least that an importer can do.
    pub(crate) fn attach(&self, fd: BorrowedFd<'_>, bytes: u64) -> Result<BareMapping, String> {
        let bytes = usize::try_from(bytes).map_err(|error| error.to_string())?;
        let number = usize::try_from(fd.as_raw_fd()).map_err(|error| error.to_string())?;
        let number: *mut c_void = ptr::without_provenance_mut(number);
        let (mut handle, mut pointer) = (0, 0);
        call!(self.import(&raw mut handle, number, POSIX_FD.0))?;
        call!(self.reserve(&raw mut pointer, bytes, 0, 0, 0))?;
        call!(self.map(pointer, bytes, 0, handle, 0))?;
        let mapping = BareMapping {
            pointer,
            bytes,
            handle,
        };
        self.allow(pointer, bytes as u64, false)?;
        Ok(mapping)
    }

    /// Undoes [`Bare::attach`].
    pub(crate) fn detach(&self, mapping: BareMapping) -> Result<(), String> {
        call!(self.unmap(mapping.pointer, mapping.bytes))?;
        call!(self.unreserve(mapping.pointer, mapping.bytes))?;
        self.release(mapping.handle)
    }

    /// Gives a handle back.
    pub(crate) fn release(&self, handle: u64) -> Result<(), String> {
        call!(self.release(handle))
    }

    /// Sets what this process may do with a mapping.
    pub(crate) fn allow(&self, pointer: u64, bytes: u64, write: bool) -> Result<(), String> {
        let bytes = usize::try_from(bytes).map_err(|error| error.to_string())?;
        let flags = if write {
            Access::CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        } else {
            Access::CU_MEM_ACCESS_FLAGS_PROT_READ
        };
        let access = CUmemAccessDesc {
            location: self.location(),
            flags,
        };
        call!(self.set_access(pointer, bytes, &raw const access, 1))
    }

    /// Opens a legacy handle; its address.
    pub(crate) fn open(&self, handle: [u8; 64]) -> Result<u64, String> {
        let reserved = handle.map(|byte| c_char::from_ne_bytes([byte]));
        let mut pointer = 0;
        call!(self.ipc_open(&raw mut pointer, CUipcMemHandle { reserved }, 1))?;
        Ok(pointer)
    }

    pub(crate) fn close(&self, pointer: u64) -> Result<(), String> {
        call!(self.ipc_close(pointer))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, String> {
        let mut pointer = 0;
        call!(self.alloc(&raw mut pointer, bytes))?;
        Ok(pointer)
    }

    pub(crate) fn free(&self, pointer: u64) -> Result<(), String> {
        call!(self.free(pointer))
    }

    /// Writes 4 bytes at `pointer` by the driver's own fill, and waits.
    pub(crate) fn poke_by_fill(&self, pointer: u64) -> Result<(), String> {
        call!(self.set(pointer, 0xee, 4))?;
        self.synchronize()
    }

    /// Writes 4 bytes at `pointer` by a copy, and waits.
    pub(crate) fn poke_by_copy(&self, pointer: u64) -> Result<(), String> {
        let bytes = [0xee_u8; 4];
        call!(self.copy_in_now(pointer, bytes.as_ptr().cast(), bytes.len()))?;
        self.synchronize()
    }

    /// Writes 4 bytes at `pointer` by a kernel, and waits.
    pub(crate) fn poke_by_kernel(&self, pointer: u64) -> Result<(), String> {
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        call!(self.module_load(&raw mut module, POKE.as_ptr().cast()))?;
        call!(self.module_function(&raw mut function, module, c"poke".as_ptr()))?;
        let mut pointer = pointer;
        let mut parameters = [(&raw mut pointer).cast::<c_void>()];
        let (none, parameters) = (ptr::null_mut(), parameters.as_mut_ptr());
        call!(self.launch(
            function,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            ptr::null_mut(),
            parameters,
            none
        ))?;
        self.synchronize()
    }

    /// Page-locked memory, of undefined content until it is written.
    pub(crate) fn lock(&self, bytes: usize) -> Result<Locked<'_>, String> {
        let mut address = ptr::null_mut();
        call!(self.host_alloc(&raw mut address, bytes, 0))?;
        if address.is_null() {
            return Err("host_alloc: no address".to_owned());
        }
        // SAFETY: the driver has just allocated `bytes` bytes there.
        unsafe { address.cast::<u8>().write_bytes(1, bytes) };
        Ok(Locked {
            bare: self,
            address,
            bytes,
        })
    }

    /// Copies to `to` and waits: one plain copy.
    pub(crate) fn copy_in(&self, to: u64, from: &[u8]) -> Result<(), String> {
        let (bytes, stream) = (from.len(), ptr::null_mut());
        call!(self.copy_in(to, from.as_ptr().cast(), bytes, stream))?;
        self.synchronize()
    }

    /// Copies from `from`, and waits.
    pub(crate) fn copy_out(&self, to: &mut [u8], from: u64) -> Result<(), String> {
        call!(self.copy_out(to.as_mut_ptr().cast(), from, to.len()))
    }
}

impl Locked<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are allocated there until `self` drops, and `lock` wrote them.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.bytes) }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(free) = self.bare.table.host_free {
            // SAFETY: allocated by `Bare::lock`, freed once, and every copy from it was waited for.
            let _ = unsafe { free(self.address) };
        }
    }
}

/// Asks the kernel to put huge pages behind a memfd of `bytes` bytes; its error when it does not.
pub(crate) fn collapse(fd: BorrowedFd<'_>, bytes: usize) -> rustix::io::Result<()> {
    const ALIGN: usize = 2 << 20;
    let none = ptr::null_mut();
    let reserved = bytes + ALIGN;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let area = unsafe { mmap_anonymous(none, reserved, ProtFlags::empty(), MapFlags::PRIVATE) }?;
    let start = area.wrapping_byte_add(area.addr().next_multiple_of(ALIGN) - area.addr());
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the range lies within the area above, which nothing refers to.
    let mapped = unsafe { mmap(start, bytes, ProtFlags::READ, flags, fd, 0) };
    let collapsed = mapped.and_then(|start| {
        // SAFETY: the range was mapped above. MADV_COLLAPSE keeps addresses and contents.
        match unsafe { libc::madvise(start, bytes, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    });
    // SAFETY: the area was made above, and no pointer into it is left.
    unsafe { munmap(area, reserved) }?;
    collapsed
}
